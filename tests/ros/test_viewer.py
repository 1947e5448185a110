"""Promises of the viewer: it shows what there is, says how old it is, keeps nobody waiting, and only shows."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser
from http import HTTPStatus
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rclpy.parameter import Parameter as RosParameter
from sensor_msgs.msg import Image

from cosmos3_msgs.msg import ChunkDecision, GuardStatus, PolicyStatus, Verdict
from cosmos3_ros import qos, viewer_server
from cosmos3_ros.conversions import ns_to_stamp, rgb_to_image
from cosmos3_ros.viewer_board import PictureSlot
from cosmos3_ros.viewer_node import ViewerNode

VIEWS = ('wrist', 'exterior_1', 'exterior_2')
NOTHING = float('nan')


class Viewing:
    """A viewer on its graph, publishers of all that it shows, and a browser of sorts."""

    def __init__(self, graph: Any, activate: bool = True, **parameters: Any) -> None:
        values = {'contract': 'demo_joint_pos', 'port': 0, 'rate_hz': 50.0, **parameters}
        overrides = [RosParameter(name, value=value) for name, value in values.items()]
        self.graph = graph
        self.node = graph.add(ViewerNode(parameter_overrides=overrides))
        self.robot = graph.node('robot')
        if activate:
            assert self.node.transition('configure'), self.node.last_failure
            assert self.node.transition('activate'), self.node.last_failure

    def publisher(self, message_type: type, topic: str, profile: Any) -> Any:
        made = self.robot.create_publisher(message_type, topic, profile)
        self.graph.eventually(lambda: made.get_subscription_count() == 1)
        return made

    def camera(self, view: str = 'wrist') -> Any:
        return self.publisher(Image, f'camera/{view}/image_raw', qos.sensor())

    def stamp(self, ago_s: float = 0.0) -> Any:
        return ns_to_stamp(self.node.now_ns() - round(ago_s * 1e9))

    def picture(self, level: int = 128, ago_s: float = 0.0, size: tuple[int, int] = (36, 64)) -> Image:
        return rgb_to_image(np.full((*size, 3), (level, 0, 0), np.uint8), self.stamp(ago_s), 'camera')

    def get(self, path: str, **options: Any) -> tuple[int, Any, bytes]:
        """Status, headers and body of an answer."""
        request = urllib.request.Request(self.node.server.url.rstrip('/') + path, **options)
        try:
            with urllib.request.urlopen(request, timeout=5.0) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.headers, refusal.read()

    def state(self) -> dict[str, Any]:
        status, _, body = self.get('/state')
        assert status == HTTPStatus.OK
        return json.loads(body)

    def view(self, name: str = 'wrist') -> dict[str, Any]:
        return next(view for view in self.state()['views'] if view['name'] == name)

    def shows(self, publisher: Any, make: Any, told: Any) -> Any:
        """Publish until the state says so (the first of best effort may be lost); return the state's answer."""
        answers: list[Any] = []

        def published() -> bool:
            publisher.publish(make())
            answers.append(told())
            return bool(answers[-1])

        self.graph.eventually(published)
        return answers[-1]

    def connect(self) -> socket.socket:
        made = socket.create_connection(self.node.server.server_address[:2], timeout=5.0)
        made.settimeout(5.0)
        return made


@pytest.fixture
def viewing(graph):
    """Start a viewer: `viewing()`; keyword arguments are its parameters."""
    return lambda **options: Viewing(graph, **options)


# What is shown


def test_with_nothing_on_any_topic_the_page_says_that_there_is_nothing_yet(viewing):
    v = viewing()
    state = v.state()
    assert [view['number'] for view in state['views']] == [0, 0, 0]
    assert [view['age_s'] for view in state['views']] == [None, None, None]
    assert [state[name] for name in ('verdict', 'guard', 'decision', 'policy')] == [None] * 4
    assert (state['imagination'], state['verdicts']) == (False, [])
    status, _, body = v.get(state['views'][0]['path'])
    assert (status, body) == (503, b'camera/wrist/image_raw: nothing yet\n')


def test_pictures_come_through_as_they_were_published_with_their_age(viewing):
    v = viewing()
    v.shows(v.camera(), lambda: v.picture(200), lambda: v.view()['number'])
    status, headers, body = v.get('/view/wrist')
    pixels = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert (status, headers['Content-Type'], pixels.shape) == (200, 'image/jpeg', (36, 64, 3))
    assert np.abs(pixels.reshape(-1, 3).mean(0) - (0, 0, 200)).max() < 4  # blue, green, red
    assert 0.0 <= float(headers['X-Age-S']) < 2.0
    assert int(headers['X-Number']) >= 1


def test_large_pictures_are_reduced_and_keep_their_shape(viewing):
    v = viewing()
    v.shows(v.camera(), lambda: v.picture(size=(1200, 1920)), lambda: v.view()['number'])
    pixels = cv2.imdecode(np.frombuffer(v.get('/view/wrist')[2], np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (600, 960, 3)


def test_however_many_look_a_picture_is_encoded_once():
    slot = PictureSlot('camera/wrist/image_raw', 0.5, 75, period_s=0.0)
    slot.keep(rgb_to_image(np.zeros((360, 640, 3), np.uint8), ns_to_stamp(1), 'camera'))
    looking = [threading.Thread(target=slot.jpeg) for _ in range(12)]
    for thread in looking:
        thread.start()
    for thread in looking:
        thread.join()
    assert slot.encoded == 1
    assert slot.jpeg() is slot.jpeg()


def test_between_two_encoded_pictures_lies_at_least_the_period_asked_for(viewing):
    v = viewing(rate_hz=0.2)
    slot = v.node.board.views['wrist']
    for level in (10, 20, 30):
        slot.keep(v.picture(level))
        assert v.get('/view/wrist')[1]['X-Number'] == '1'
    assert slot.encoded == 1


def verdict(v: Viewing, **fields: Any) -> Verdict:
    values = {
        'decided': v.stamp(),
        'sequence': 7,
        'decision': Verdict.SLOW,
        'text': 'surprise is 0.9, allowed 0.5',
        'monitors': ['surprise', 'disagreement', 'uncertainty'],
        'scores': [0.9, NOTHING, float('inf')],
        'thresholds': [0.5, 0.4, NOTHING],
        **fields,
    }
    return Verdict(**values)


def test_verdicts_come_through_with_scores_thresholds_and_a_history(viewing):
    v = viewing()
    publisher = v.publisher(Verdict, 'dynamics/verdict', qos.status())
    publisher.publish(verdict(v, decision=Verdict.STOP))
    publisher.publish(verdict(v))
    v.graph.eventually(lambda: len(v.state()['verdicts']) == 2)
    state = v.state()
    told = state['verdict']
    assert (told['decision'], told['text'], told['stale']) == ('SLOW', 'surprise is 0.9, allowed 0.5', False)
    assert told['monitors'] == [
        {'name': 'surprise', 'score': 0.9, 'threshold': 0.5},
        {'name': 'disagreement', 'score': None, 'threshold': 0.4},
        {'name': 'uncertainty', 'score': 'Infinity', 'threshold': None},
    ]
    assert state['imagination']
    assert [decision for _, decision in state['verdicts']] == ['STOP', 'SLOW']


def test_a_verdict_that_contradicts_itself_is_unknown_and_breaks_nothing(viewing):
    v = viewing()
    publisher = v.publisher(Verdict, 'dynamics/verdict', qos.status())
    publisher.publish(verdict(v, decision=9, scores=[0.1], thresholds=[], monitors=['a', 'b'], text='x' * 10_000))
    v.graph.eventually(lambda: v.state()['verdict'] is not None)
    told = v.state()['verdict']
    assert (told['decision'], len(told['text'])) == ('UNKNOWN', 400)
    assert [monitor['score'] for monitor in told['monitors']] == [0.1, None]


def test_guard_and_policy_come_through_with_mode_reason_and_instruction(viewing):
    v = viewing()
    guard = v.publisher(GuardStatus, 'guard/status', qos.latched())
    message = GuardStatus(state=5, state_name='FAULT', reason_name='EMERGENCY_STOP', text='pressed', dry_run=True)
    message.header.stamp = v.stamp()
    guard.publish(message)
    policy = v.publisher(PolicyStatus, 'policy/status', qos.latched())
    message = PolicyStatus(state_name='WAITING', instruction='fold the towel', missing_or_stale=['wrist (stale)'])
    message.header.stamp = v.stamp()
    policy.publish(message)
    decisions = v.publisher(ChunkDecision, 'guard/decision', qos.status())
    decisions.publish(
        ChunkDecision(decided=v.stamp(), sequence=3, reason_name='VELOCITY', text='too fast', pace=NOTHING)
    )
    v.graph.eventually(lambda: all(v.state()[name] for name in ('guard', 'policy', 'decision')))
    state = v.state()
    told = state['guard']
    assert (told['state'], told['reason'], told['text'], told['dry_run'], told['stale']) == (
        'FAULT',
        'EMERGENCY_STOP',
        'pressed',
        True,
        False,
    )
    assert (state['policy']['instruction'], state['policy']['missing']) == ('fold the towel', ['wrist (stale)'])
    assert (state['decision']['accepted'], state['decision']['text'], state['decision']['pace']) == (
        False,
        'too fast',
        None,
    )


def test_imagined_frames_say_how_far_ahead_they_are_and_are_not_old_for_it(viewing):
    v = viewing()
    frames = v.publisher(Image, 'dynamics/imagined', qos.sensor(5))
    told = v.shows(frames, lambda: v.picture(ago_s=-1.5), lambda: v.state()['imagined']['ahead_s'])
    assert told == pytest.approx(1.5, abs=1.0)
    past = v.shows(frames, lambda: v.picture(ago_s=60.0), lambda: (s := v.state()['imagined'])['ahead_s'] < -59.0 and s)
    assert not past['stale']
    assert v.get('/imagined')[0] == HTTPStatus.OK


# What is old, and what cannot be read


def test_a_picture_that_was_long_under_way_is_marked_stale(viewing):
    v = viewing()
    told = v.shows(v.camera(), lambda: v.picture(ago_s=20.0), lambda: v.view()['number'] and v.view())
    assert told['stale']
    assert told['age_s'] > 19.0
    assert float(v.get('/view/wrist')[1]['X-Age-S']) > 19.0


def test_a_picture_becomes_stale_when_its_camera_falls_silent_whatever_its_stamp_says(viewing):
    v = viewing()
    v.shows(v.camera(), lambda: v.picture(ago_s=-3600.0), lambda: v.view()['number'])
    assert not v.view()['stale']
    v.graph.eventually(lambda: v.view()['stale'], 5.0, 'stale after the 0.5 s of the contract')


def test_old_verdicts_and_a_silent_guard_are_marked_stale(viewing):
    v = viewing()
    publisher = v.publisher(Verdict, 'dynamics/verdict', qos.status())
    publisher.publish(verdict(v, decided=v.stamp(ago_s=3.5)))
    guard, message = v.publisher(GuardStatus, 'guard/status', qos.latched()), GuardStatus(state_name='TRACKING')
    message.header.stamp = v.stamp(ago_s=1.5)
    guard.publish(message)
    v.graph.eventually(lambda: v.state()['verdict'] is not None and v.state()['guard'] is not None)
    state = v.state()
    assert (state['verdict']['stale'], state['guard']['stale']) == (True, True)


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        ({'encoding': '16UC1'}, "unknown encoding, got '16UC1'"),
        ({'height': 400}, 'too little data [bytes]'),
        ({'width': 0}, 'picture without pixels'),
        ({'step': 1}, 'row step too small [bytes]'),
    ],
)
def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_shown(viewing, change, named):
    v = viewing()

    def broken() -> Image:
        message = v.picture()
        for name, value in change.items():
            setattr(message, name, value)
        return message

    wrist, exterior = v.camera(), v.camera('exterior_1')
    v.shows(exterior, v.picture, lambda: v.view('exterior_1')['number'])
    assert named in v.shows(wrist, broken, lambda: v.view()['problem'])
    status, _, body = v.get('/view/wrist')
    assert (status, named in body.decode()) == (503, True)
    assert v.get('/view/exterior_1')[0] == HTTPStatus.OK
    v.shows(wrist, v.picture, lambda: not v.view()['problem'])
    assert v.get('/view/wrist')[0] == HTTPStatus.OK


# Browsers


def test_events_follow_each_other_until_the_browser_leaves(viewing):
    v = viewing()
    with urllib.request.urlopen(f'{v.node.server.url}events', timeout=5.0) as stream:
        lines = [stream.readline() for _ in range(8)]
    events = [json.loads(line[6:]) for line in lines if line.startswith(b'data: ')]
    assert len(events) == 3
    assert events[0]['contract'] == 'demo_joint_pos'
    v.graph.eventually(lambda: v.node.server.connections == 0, what='the end of the thread of a browser that left')


def test_browsers_that_do_not_read_or_never_ask_hold_nobody_up(viewing):
    v = viewing()
    camera = v.camera()
    v.shows(camera, v.picture, lambda: v.view()['number'])
    silent = [v.connect() for _ in range(10)]
    deaf = [v.connect() for _ in range(10)]
    for one in deaf:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        one.sendall(b'GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n')
    before = v.view()['number']
    started = time.monotonic()
    v.shows(camera, v.picture, lambda: v.view()['number'] > before)
    assert v.get('/view/wrist')[0] == HTTPStatus.OK
    assert time.monotonic() - started < 2.0
    for one in (*silent, *deaf):
        one.close()
    v.graph.eventually(lambda: v.node.server.connections == 0, what='the end of all threads')


def test_a_browser_that_stops_reading_is_given_up(viewing, monkeypatch):
    monkeypatch.setattr(viewer_server._Handler, 'timeout', 0.2)
    v = viewing(rate_hz=60.0)
    site = viewer_server.Site({}, '/events', lambda: b'x' * 1_000_000, 0.01)
    monkeypatch.setattr(v.node.server, 'site', site)
    one = v.connect()
    one.sendall(b'GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n')
    assert one.recv(15) == b'HTTP/1.1 200 OK'
    v.graph.eventually(lambda: v.node.server.connections == 0, 5.0, 'the end of its thread')
    one.close()


def test_more_connections_than_allowed_are_sent_away_and_the_others_stay(viewing, monkeypatch):
    monkeypatch.setattr(viewer_server, 'MOST_CONNECTIONS', 3)
    v = viewing()
    kept = [v.connect() for _ in range(3)]
    v.graph.eventually(lambda: v.node.server.connections == 3)
    with v.connect() as refused:
        assert refused.recv(12) == b'HTTP/1.1 503'
    kept.pop().close()
    v.graph.eventually(lambda: v.node.server.connections == 2)
    assert v.get('/')[0] == HTTPStatus.OK
    for one in kept:
        one.close()


def test_deactivation_is_prompt_ends_all_connections_and_frees_the_port(viewing):
    v = viewing()
    server = v.node.server
    browsers = [v.connect() for _ in range(5)]
    for one in browsers[:3]:
        one.sendall(b'GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n')
        assert one.recv(15) == b'HTTP/1.1 200 OK'
    v.graph.eventually(lambda: server.connections == 5)
    started = time.monotonic()
    assert v.node.transition('deactivate')
    assert time.monotonic() - started < 1.0
    assert server.connections == 0
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(server.server_address[:2])
    for one in browsers:
        one.close()
    assert v.node.transition('activate'), v.node.last_failure
    assert v.get('/')[0] == HTTPStatus.OK


# What it may not do


@pytest.mark.parametrize('method', ['POST', 'PUT', 'DELETE', 'HEAD', 'OPTIONS', 'PATCH', 'BREW'])
def test_the_page_can_only_be_looked_at(viewing, method):
    v = viewing()
    for path in ('/', '/state', '/view/wrist'):
        status, headers, _ = v.get(path, method=method)
        assert (status, headers['Allow']) == (405, 'GET')


@pytest.mark.parametrize(
    'path', ['/index.html', '/view/', '/view/nose', '/../setup.py', '//state/', '/view/..%2f..%2fsetup.py', '/state/x']
)
def test_unknown_paths_are_not_found_and_lead_to_no_file(viewing, path):
    status, headers, body = viewing().get(path)
    assert (status, body) == (404, b'there is nothing here\n')
    assert headers['X-Content-Type-Options'] == 'nosniff'


def test_every_answer_forbids_framing_sniffing_and_keeping(viewing):
    v = viewing()
    for path in ('/', '/state', '/nowhere', '/imagined'):
        _, headers, _ = v.get(path)
        assert (headers['X-Frame-Options'], headers['X-Content-Type-Options']) == ('DENY', 'nosniff')
        assert (headers['Cache-Control'], headers['Cross-Origin-Resource-Policy']) == ('no-store', 'same-origin')
        assert "frame-ancestors 'none'" in headers['Content-Security-Policy']
        assert 'Python' not in headers['Server']


def test_a_page_from_elsewhere_cannot_read_by_a_name_of_its_own(viewing):
    v = viewing()
    host, port = v.node.server.server_address[:2]
    for name, expected in (('evil.example', 403), ('evil.example:8073', 403), ('localhost:1', 200), ('127.0.0.1', 200)):
        connection = http.client.HTTPConnection(host, port, timeout=5.0)
        connection.request('GET', '/state', headers={'Host': name})
        assert (name, connection.getresponse().status) == (name, expected)
        connection.close()


def test_it_is_bound_to_this_machine_by_default(viewing):
    v = viewing()
    assert v.node.server.server_address[0] == '127.0.0.1'
    assert v.node.parameters['address'] == '127.0.0.1'


def test_a_port_in_use_is_named_with_a_remedy_and_activation_can_be_tried_again(viewing):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        v = viewing(activate=False, port=taken.getsockname()[1])
        assert v.node.transition('configure')
        assert not v.node.transition('activate')
        assert f'port: is in use, got {taken.getsockname()[1]}' in v.node.last_failure
        assert 'give another one, or 0' in v.node.last_failure
    assert v.node.transition('activate'), v.node.last_failure


def test_an_address_of_another_machine_is_named_with_a_remedy(viewing):
    v = viewing(activate=False, address='192.0.2.1')
    assert v.node.transition('configure')
    assert not v.node.transition('activate')
    assert 'address: cannot be listened at' in v.node.last_failure
    assert '127.0.0.1 for browsers on this machine' in v.node.last_failure


# The page


class Elements(HTMLParser):
    """Tags, identifiers and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ('meta', 'link', 'img', 'br'):
            self.open.append(tag)
        for name, value in attributes:
            if name == 'id':
                self.ids.append(value or '')
            if name in ('src', 'href', 'action'):
                self.addresses.append(value or '')

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def page(repository: Path) -> str:
    return (repository / 'cosmos3_ros/viewer_page.html').read_text(encoding='utf-8')


def test_the_page_is_well_formed_needs_no_network_and_has_no_controls(page):
    elements = Elements(page)
    assert elements.open == []
    assert set(elements.addresses) <= {'data:,'}
    assert 'http' not in page
    assert set(elements.tags) & {'button', 'input', 'form', 'select', 'textarea', 'a', 'iframe'} == set()
    assert 'is no emergency stop' in page


def test_the_page_looks_only_for_what_it_has_and_asks_only_for_what_is_served(page):
    ids = set(Elements(page).ids)
    assert set(re.findall(r"\bel\('([\w-]+)'\)", page)) <= ids
    assert set(re.findall(r"EventSource\('([^']+)'\)", page)) == {'/events'}


def test_a_browser_is_told_to_run_the_script_of_the_page_and_no_other(viewing, page):
    _, headers, body = viewing().get('/')
    script = page.partition('<script>')[2].partition('</script>')[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert body.decode() == page
    assert f"script-src 'sha256-{digest}';" in headers['Content-Security-Policy']


def test_the_program_serves_until_it_is_asked_to_end(program):
    run = program(
        '-m', 'cosmos3_ros.viewer_process', '--ros-args',
        '-p', 'contract:=demo_joint_pos', '-p', 'port:=0', '-p', 'autostart:=true',
    )  # fmt: skip
    run.wait_for('the page is at http://127.0.0.1:')
    url = run.output.partition('the page is at ')[2].split()[0]
    with urllib.request.urlopen(f'{url}state', timeout=5.0) as answer:
        assert json.loads(answer.read())['contract'] == 'demo_joint_pos'
    code, took_s = run.end(signal.SIGTERM)
    assert code == 0
    assert took_s < 4.0


def test_the_viewer_loads_no_torch():
    code = 'import sys, cosmos3_ros.viewer_node\nsys.exit(bool({"torch", "transformers"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
