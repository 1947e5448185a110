"""The server with real clients on real sockets: every dialect, sessions, seeds, limits, keys, pages, and its end."""

from __future__ import annotations

import http.client
import logging
import re
import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import engine
from engine.errors import InvalidInput
from engine.sampler import request_seeds
from engine.serving.server import BackgroundServer, PolicyServer, ServerOptions
from engine.serving.sessions import Sessions
from tests.engine.serving.clients import (
    OMNI,
    Client,
    Held,
    Instant,
    RoboArenaClient,
    RoboLabClient,
    composite,
    exteriors,
    pack_legacy,
    picture,
    serving,
    state,
    views,
    with_history,
)


def get(server: BackgroundServer, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection('127.0.0.1', server.server.port, timeout=10)
    connection.request('GET', path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def metric(server: BackgroundServer, line: str) -> float:
    found = re.search(rf'^{re.escape(line)} (\S+)$', get(server, '/metrics')[1], re.M)
    return float(found[1]) if found else 0.0


# Clients that we did not write, and some written from their makers' documents


def test_openpis_own_client_is_served(server, instant, droid):
    client = WebsocketClientPolicy('127.0.0.1', server.server.port)
    assert client.get_server_metadata()['action_space'] == 'joint_position'
    first, second = (client.infer(views(shift)) for shift in (0.0, 1.0))
    np.testing.assert_array_equal(first['actions'], instant.infer(*instant.seen[0]).actions)
    assert first['actions'].shape == (32, 8)
    assert list(first['server_timing']) == ['infer_ms']
    assert second['server_timing']['prev_total_ms'] > second['server_timing']['infer_ms']
    np.testing.assert_allclose(second['actions'][0, :7] - first['actions'][0, :7], 1.0, rtol=1e-6)


def test_openpis_own_client_is_told_every_fault_and_nothing_of_this_machine(server):
    client = WebsocketClientPolicy(server.url)
    with pytest.raises(RuntimeError) as raised:
        client.infer({'observation/wrist_image_left': picture()})
    told = str(raised.value)
    assert 'Error in inference server' in told
    for key in ('exterior_image_1_left', 'exterior_image_2_left', 'joint_position', 'gripper_position', 'prompt'):
        assert f'{key}: is missing' in told
    assert 'Traceback' not in told
    assert 'File "' not in told
    with pytest.raises(ConnectionClosed) as closed:
        client._ws.recv(timeout=10)
    assert closed.value.rcvd.code == 1011


def test_a_roboarena_client_is_configured_served_and_reset(server, instant):
    client = RoboArenaClient(server.url)
    assert (client.resolution, client.wrist, client.cameras, client.space) == ([360, 640], True, 2, 'joint_position')
    observation = client.observation()
    assert client.infer(observation).shape == (32, 8)
    for number, view in enumerate(('exterior_1', 'exterior_2')):
        sent = observation[f'observation/exterior_image_{number}_left']
        np.testing.assert_array_equal(instant.seen[-1][0].images[view], sent)
    assert client.reset() == 'reset successful'
    assert client.infer(client.observation()).shape == (32, 8)
    del observation['prompt']
    with pytest.raises(RuntimeError, match='prompt: is missing'):
        client.infer(observation)


def test_a_robolab_client_gets_the_actions_of_the_policy_for_the_composite_that_it_made(model, droid):
    contract = replace(droid, sampler=replace(droid.sampler, steps=1, guidance=1.0))
    policy = model.policy(contract)
    cameras = [picture(480, 640, 1), picture(480, 640, 2), picture(360, 640, 3)]
    names = ('wrist', 'exterior_1', 'exterior_2')
    with serving(policy, contract) as server:
        client = RoboLabClient(server.url)
        rows = client.infer(*cameras)
        client.close()
    measured = state()
    observation = engine.Observation(
        dict(zip(names, cameras, strict=True)),
        'put the red cube in the bowl',
        measured['observation/joint_position'],
        measured['observation/gripper_position'],
    )
    wanted = policy.infer(observation, next(request_seeds(0))).actions.copy()
    wanted[:, -1] = wanted[:, -1] > 0.5
    np.testing.assert_array_equal(rows, wanted)


@pytest.mark.parametrize('older', [False, True])
def test_a_vllm_omni_client_is_served_and_keeps_its_connection_after_faults(server, instant, older):
    with Client(server.url, OMNI) as client:
        assert client.metadata['needs_session_id'] is True
        request = composite(seed=5, session_id='a', endpoint='infer')
        rows = client.ask(pack_legacy(request) if older else request)
        assert (rows.shape, rows.dtype, instant.seen[-1][1]) == ((32, 8), np.float32, 5)
        fault = client.ask({'endpoint': 'infer'})
        assert (fault['type'], fault['message']) == ('error', 'Invalid request payload')
        assert len(fault['problems']) == 6
        assert client.ask(b'\xc1')['message'] == 'Invalid request payload'
        assert client.ask('{"type": "ping"}')['message'] == 'Invalid request payload'
        assert client.ask({'endpoint': 'reset', 'session_id': 'a'}) == {'status': 'reset successful'}
        assert client.ask(request).shape == (32, 8)


def test_clients_of_all_dialects_are_served_at_one_port_at_a_time(server):
    with ExitStack() as stack:
        plain, omni = (stack.enter_context(Client(server.url, path)) for path in ('/', OMNI))
        assert plain.ask(composite())['action'].shape == (32, 8)
        assert plain.ask(exteriors(0, 1) | state() | {'prompt': 'go', 'endpoint': 'infer'})['actions'].shape == (32, 8)
        assert omni.ask(views()).shape == (32, 8)
        assert plain.ask(views())['action'].shape == (32, 8)
    assert metric(server, 'cosmos3_requests_total{dialect="cosmos-framework",outcome="ok"}') == 2
    assert metric(server, 'cosmos3_requests_total{dialect="roboarena",outcome="ok"}') == 1


def test_a_forced_dialect_takes_requests_of_no_other(instant, droid):
    with serving(instant, droid, dialect='roboarena') as server, Client(server.url) as client:
        assert 'endpoint: is missing' in client.ask(views())


def test_the_gripper_reaches_the_policy_in_the_robots_convention(server, instant):
    with Client(server.url) as client:
        rows = client.ask(composite())['action']
    assert np.ravel(instant.seen[-1][0].gripper_position).tolist() == [0.25]
    np.testing.assert_array_equal(rows[:, -1], 0.25 + np.arange(32, dtype=np.float32))


def test_a_video_is_sent_where_it_is_wanted(instant, droid):
    with serving(instant, droid, decode_video=True) as server, Client(server.url) as client:
        assert client.ask(composite())['video'].shape == (5, 8, 16, 3)
        assert list(client.ask({**exteriors(0, 1), **state(), 'prompt': 'go', 'endpoint': 'infer'})) == ['actions']


# Seeds and sessions


def test_seeds_advance_as_the_reference_servers_unless_they_are_given_or_fixed(droid):
    for options, wanted in (({}, [1826701615, 9, 1367864807]), ({'deterministic': True, 'seed': 3}, [3, 9, 3])):
        policy = Instant(droid)
        with serving(policy, droid, **options) as server, Client(server.url) as client:
            for changed in ({}, {'seed': 9}, {}):
                client.ask(composite(**changed))
        assert [seed for _, seed in policy.seen] == wanted


def joints_seen(policy: Instant) -> list[list[float]]:
    return [np.asarray(observation.joint_positions)[:, 0].round(3).tolist() for observation, _ in policy.seen]


def test_states_of_a_session_are_remembered_across_connections_and_forgotten_on_reset(droid):
    contract = with_history(droid, 2)
    policy = Instant(contract)
    with serving(policy, contract) as server:
        assert server.server.service.metrics.requests == {}
        for shift in (1.0, 2.0):
            client = RoboArenaClient(server.url)
            assert client.sessions is True
            client.infer(client.observation(shift))
            client.close()
        client = RoboArenaClient(server.url)
        client.infer(client.observation(3.0))
        client.infer(client.observation(4.0))
        other = RoboArenaClient(server.url, 'episode 2')
        other.infer(other.observation(9.0))
        client.reset()
        client.infer(client.observation(5.0))
        client.close()
        other.close()
    # The oldest known row stands for those before it.
    assert joints_seen(policy) == [
        [1.1, 1.1, 1.1],
        [1.1, 1.1, 2.1],
        [1.1, 2.1, 3.1],
        [2.1, 3.1, 4.1],
        [9.1, 9.1, 9.1],
        [5.1, 5.1, 5.1],
    ]


def test_a_connection_without_a_session_has_one_of_its_own_and_a_history_that_is_sent_is_taken(droid):
    contract = with_history(droid, 2)
    policy = Instant(contract)
    history = {
        'observation/joint_position': np.arange(5.0)[:, None] * np.ones(7),
        'observation/gripper_position': np.zeros((5, 1)),
    }
    with serving(policy, contract) as server:
        for _ in range(2):
            with Client(server.url) as client:
                client.ask(composite(1.0))
                client.ask(composite() | history)
                client.ask(composite(7.0))
    assert joints_seen(policy) == 2 * [[1.1, 1.1, 1.1], [2, 3, 4], [3, 4, 7.1]]


def test_the_session_that_was_not_heard_of_for_longest_is_forgotten_first():
    sessions = Sessions(rows=2, most=2)
    for name in ('a', 'b', 'a', 'c'):
        sessions.find(name).complete({'x': np.full((1, 1), ord(name) * 1.0)})
    assert len(sessions) == 2
    assert sessions.find('a').complete({'x': np.zeros((1, 1))})['x'].ravel().tolist() == [97, 0]
    assert sessions.find('b').complete({'x': np.zeros((1, 1))})['x'].ravel().tolist() == [0, 0]


# Keep-alives, queues, order


def test_pings_are_answered_during_an_inference_that_outlasts_their_timeout(droid):
    policy = Held(droid)
    options = {'ping_interval_s': 0.05, 'ping_timeout_s': 0.5}
    with (
        serving(policy, droid, **options) as server,
        Client(server.url, ping_interval=0.05, ping_timeout=0.5) as client,
    ):
        client.send(composite())
        assert policy.begun.acquire(timeout=10)
        # Each of these takes a round trip through the server's event loop; together they outlast the timeouts.
        began = time.monotonic()
        while time.monotonic() - began < 1.3:
            assert client.socket.ping().wait(timeout=0.5)
        policy.go.set()
        assert client.receive()['action'].shape == (32, 8)


def test_requests_beyond_the_queue_are_told_so_in_their_dialect_and_may_come_back(droid):
    policy = Held(droid)
    with serving(policy, droid, queue=1) as server, ExitStack() as stack:
        clients = [stack.enter_context(Client(server.url)) for _ in range(3)]
        omni = stack.enter_context(Client(server.url, OMNI))
        clients[0].send(composite())
        assert policy.begun.acquire(timeout=10)
        clients[1].send(composite())
        while metric(server, 'cosmos3_queue_depth') < 2:
            pass
        assert clients[2].ask(composite()).startswith('busy: 2 requests are in hand')
        fault = omni.ask(composite())
        assert (fault['message'], fault['code']) == ('Server busy', 'busy')
        policy.go.set()
        assert all(client.receive()['action'].shape == (32, 8) for client in clients[:2])
        assert clients[2].ask(composite())['action'].shape == (32, 8)
        assert omni.ask(composite()).shape == (32, 8)
        assert metric(server, 'cosmos3_requests_total{dialect="vllm-omni",outcome="busy"}') == 1


def test_requests_that_are_sent_ahead_are_answered_in_order_and_those_too_many_refused_in_order(droid):
    policy = Held(droid)
    with serving(policy, droid, pipelined=3) as server, Client(server.url, OMNI) as client:
        for shift in range(5):
            client.send(composite(float(shift)))
        client.socket.ping().wait(timeout=10)  # all of them have arrived
        policy.go.set()
        answers = [client.receive() for _ in range(5)]
        np.testing.assert_allclose([rows[0, 0] for rows in answers[:3]], [0.1, 1.1, 2.1], rtol=1e-6)
        assert [answer['code'] for answer in answers[3:]] == ['busy', 'busy']


def test_a_client_that_asks_too_often_is_told_so(instant, droid):
    with serving(instant, droid, rate_hz=0.01) as server, Client(server.url, OMNI) as client:
        answers = [client.ask(composite()) for _ in range(3)]
        assert [type(answer) for answer in answers] == [np.ndarray, np.ndarray, dict]
        assert answers[2]['code'] == 'rate'


def test_the_inference_of_a_client_that_left_is_given_up_and_its_waiting_request_never_begun(droid):
    policy = Held(droid)
    with serving(policy, droid) as server, Client(server.url) as patient:
        clients = [Client(server.url) for _ in range(2)]
        clients[0].send(composite(1.0))
        assert policy.begun.acquire(timeout=10)
        clients[1].send(composite(2.0))
        patient.send(composite(3.0))
        while metric(server, 'cosmos3_queue_depth') < 3:
            pass
        clients[1].socket.close()
        clients[0].socket.socket.close()  # no farewell
        clients[0].socket.close()
        assert policy.given_up.acquire(timeout=10)
        policy.go.set()
        assert patient.receive()['action'][0, 0] == np.float32(3.1)
        assert len(policy.seen) == 1
        assert metric(server, 'cosmos3_queue_depth') == 0


def test_a_silent_connection_is_closed_after_its_time_but_not_while_it_waits(droid):
    policy = Held(droid)
    with serving(policy, droid, idle_s=0.1) as server, Client(server.url) as client:
        client.send(composite())
        assert policy.begun.acquire(timeout=10)
        with pytest.raises(TimeoutError):
            client.socket.recv(timeout=0.4)
        policy.go.set()
        assert client.receive()['action'].shape == (32, 8)
        with pytest.raises(ConnectionClosed, match=r'idle for 0\.1 s'):
            client.receive()


# Who is let in


def test_without_the_key_nothing_but_health_is_told(instant, droid):
    with serving(instant, droid, api_key='a-key') as server:
        port = server.server.port
        for header in ({}, {'Authorization': 'Api-Key b-key'}, {'Authorization': 'Bearer a-key'}):
            with pytest.raises(InvalidStatus) as raised:
                connect(server.url, additional_headers=header, proxy=None)
            assert raised.value.response.status_code == 401
            assert get(server, '/metrics', **header)[0] == 401
        assert get(server, '/healthz') == (200, 'OK\n')
        assert get(server, '/metrics', Authorization='Api-Key a-key')[0] == 200
        assert WebsocketClientPolicy('127.0.0.1', port, api_key='a-key').infer(views())['actions'].shape == (32, 8)
    assert instant.seen


def test_web_pages_are_kept_out_and_unknown_paths_are_not_found(server):
    for status, path, origin in ((403, '/', 'https://example.org'), (404, '/predict', None), (404, '/../etc', None)):
        with pytest.raises(InvalidStatus) as raised:
            connect(server.url + path, origin=origin, proxy=None)
        assert raised.value.response.status_code == status
    assert get(server, '/')[0] == 426


def test_a_web_page_that_is_named_is_let_in(instant, droid):
    page = 'https://robots.example.org'
    with serving(instant, droid, origins=(page,)) as server, Client(server.url, origin=page) as client:
        assert client.ask(composite())['action'].shape == (32, 8)


def test_no_more_clients_are_taken_than_there_is_room_for(instant, droid):
    with serving(instant, droid, connections=2) as server:
        with Client(server.url), Client(server.url) as second:
            with pytest.raises(InvalidStatus) as raised:
                connect(server.url, proxy=None)
            assert raised.value.response.status_code == 503
            assert get(server, '/healthz') == (200, 'OK\n')
            assert second.ask(composite())['action'].shape == (32, 8)
            assert metric(server, 'cosmos3_connections_refused_total{reason="full"}') == 1
        while metric(server, 'cosmos3_connections'):
            pass
        with Client(server.url) as client:
            assert client.ask(composite())['action'].shape == (32, 8)


def test_a_message_beyond_the_limit_ends_its_connection_and_no_other(instant, droid):
    with serving(instant, droid, message_bytes=2**20 + 50_000) as server, Client(server.url) as other:
        with Client(server.url) as client, pytest.raises(ConnectionClosed) as raised:
            client.ask(composite() | {'more': np.zeros(100_000, np.uint8)})
        assert raised.value.rcvd.code == 1009
        assert other.ask(composite())['action'].shape == (32, 8)


# Defects


class Broken(Instant):
    """Fails, or gives what no robot may be given."""

    def infer(self, observation, seed=0, cancelled=lambda: False):
        chunk = super().infer(observation, seed, cancelled)
        if observation.instruction == 'nan':
            chunk.actions[3, 2] = np.nan
            return chunk
        raise RuntimeError('secret of the machine')


@pytest.mark.parametrize('prompt', ['fail', 'nan'])
def test_a_defect_is_logged_with_a_number_that_the_client_is_told_and_nothing_else(droid, caplog, prompt):
    with serving(Broken(droid), droid) as server:
        with Client(server.url) as client, caplog.at_level(logging.ERROR):
            told = client.ask(composite() | {'prompt': prompt})
        number = re.fullmatch('internal error ([0-9a-f]{8}); the log of the server says more', told)[1]
        assert number in caplog.text
        with Client(server.url, OMNI) as client:
            fault = client.ask(composite() | {'prompt': prompt})
            assert fault['message'] == 'Internal inference error'
            assert 'traceback' not in fault
            assert client.ask({'endpoint': 'reset'}) == {'status': 'reset successful'}


def test_tracebacks_are_sent_to_those_who_asked_for_them(droid):
    with serving(Broken(droid), droid, tracebacks=True) as server, Client(server.url) as client:
        assert 'RuntimeError: secret of the machine' in client.ask(composite())


# Beginning and end


def test_a_port_in_use_and_options_out_of_range_are_explained(server, instant, droid):
    with pytest.raises(InvalidInput, match='port: is in use'):
        BackgroundServer(PolicyServer(instant, droid, ServerOptions(port=server.server.port))).__enter__()
    with pytest.raises(InvalidInput, match='host: cannot be listened at'):
        BackgroundServer(PolicyServer(instant, droid, ServerOptions(host='192.0.2.1'))).__enter__()
    with pytest.raises(InvalidInput) as raised:
        ServerOptions(port=70000, dialect='grpc', queue=-1, idle_s=float('nan'), api_key='')
    assert [problem.where for problem in raised.value.problems] == ['port', 'queue', 'idle_s', 'dialect', 'api_key']


def test_only_this_machine_is_served_unless_told_otherwise(server, instant, droid, caplog):
    assert server.url.startswith('ws://127.0.0.1:')
    with caplog.at_level(logging.WARNING), serving(instant, droid, host='0.0.0.0'):
        assert 'can be reached from other machines, and no key is asked for' in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING), serving(instant, droid, host='0.0.0.0', api_key='k'):
        assert caplog.text == ''


def test_what_is_under_way_is_finished_before_the_end_and_nothing_more_is_taken(droid):
    policy = Held(droid)
    with serving(policy, droid) as server, Client(server.url) as client, Client(server.url, OMNI) as waiting:
        idle = Client(server.url)
        client.send(composite(1.0))
        assert policy.begun.acquire(timeout=10)
        waiting.send(composite(2.0))
        while metric(server, 'cosmos3_queue_depth') < 2:
            pass
        drained = server.drain()
        assert idle.ask(composite()) == 'stopping: the server is being shut down'
        with pytest.raises(OSError):
            connect(server.url, proxy=None)
        policy.go.set()
        assert client.receive()['action'][0, 0] == np.float32(1.1)
        assert waiting.receive()[0, 0] == np.float32(2.1)
        drained.result(timeout=10)
        assert client.until_closed() == 1001
        idle.socket.close()


def test_what_takes_too_long_is_given_up_at_the_end(droid):
    policy = Held(droid)
    with serving(policy, droid, drain_s=0.2) as server, Client(server.url) as client:
        client.send(composite())
        assert policy.begun.acquire(timeout=10)
        server.drain().result(timeout=10)
        assert policy.given_up.acquire(timeout=10)
        assert client.until_closed() == 1001


# What is measured


def test_metrics_are_what_prometheus_reads(server):
    with Client(server.url) as client:
        for _ in range(3):
            client.ask(composite())
        client.ask({})
    status, text = get(server, '/metrics')
    assert status == 200
    lines = [line for line in text.splitlines() if not line.startswith('#')]
    assert all(re.fullmatch(r'[a-z0-9_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+', line) for line in lines)
    named = {line.split()[2] for line in text.splitlines() if line.startswith('# TYPE')}
    assert {line.partition('{')[0].partition(' ')[0] for line in lines} <= {
        *named,
        *(f'{name}_{part}' for name in named for part in ('bucket', 'sum', 'count')),
    }
    assert 'cosmos3_requests_total{dialect="cosmos-framework",outcome="ok"} 3' in lines
    assert 'cosmos3_requests_total{dialect="openpi",outcome="invalid"} 1' in lines
    assert 'cosmos3_inference_seconds_count{surface="policy"} 3' in lines
    assert 'cosmos3_request_seconds_bucket{dialect="cosmos-framework",le="+Inf"} 3' in lines
