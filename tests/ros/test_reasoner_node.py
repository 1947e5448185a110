"""Questions to a reasoner node: what it shows, what it answers, what it refuses, and that nobody waits for it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.parameter import Parameter as RosParameter

from cosmos3_msgs.msg import ReasonerStatus
from cosmos3_msgs.srv import Ask
from cosmos3_ros.reasoner_node import PARAMETERS, ReasonerNode
from cosmos3_ros.reasoner_talker import RUNTIMES
from engine.backends.choice import BACKENDS
from tests.openai_server import Hang, OpenAIServer, Reply, Status, choosing, in_turn
from tests.ros.reasoner_bench import (  # noqa: F401 (fixtures among them)
    CONTRACT,
    Mind,
    ReasonerBench,
    endpoint,
    mind,
    reasoner_bench,
)

ASK, TOLD = Ask.Request, Ask.Response
HEIGHT, WIDTH = 90, 160
BOX = '```json\n[{"bbox_2d": [100, 200, 300, 400], "label": "red cube"}]\n```'
POINTS = '[{"point_2d": [500, 0], "label": "gripper"}, {"point_2d": [1000, 1000], "label": "gripper"}]'


@pytest.fixture
def bench(reasoner_bench: Callable[..., ReasonerBench], sensors: Callable[..., Any]) -> ReasonerBench:  # noqa: F811
    made = reasoner_bench().up()
    sensors()
    return made.sees()


def test_words_are_answered_with_words_and_where_the_time_went(bench):
    bench.mind.otherwise = lambda request: Reply('a red cube', reasoning='I look closely.')
    told = bench.ask(thinking=True)
    assert (told.success, told.reason, told.text, told.thinking) == (
        True,
        TOLD.ANSWERED,
        'a red cube',
        'I look closely.',
    )
    assert np.isnan(told.confidence)
    assert told.tokens > 0
    assert dict(zip(told.stage_names, told.stage_s, strict=True))['total'] > 0
    (request,) = bench.server.requests
    assert list(told.views) == ['wrist', 'exterior_1', 'exterior_2']
    assert len(request.media()) == 3
    assert [f'View {name}:' in request.text for name in told.views] == [True] * 3
    assert 'Write your final answer immediately after the </think> tag' in request.text


def test_the_views_that_a_question_names_are_shown_and_no_others(bench):
    told = bench.ask(views=['exterior_1'])
    assert list(told.views) == ['exterior_1']
    (request,) = bench.server.requests
    assert len(request.media()) == 1
    assert 'View' not in request.text
    age_s = bench.node.now_ns() / 1e9 - told.stamp.sec - told.stamp.nanosec / 1e9
    assert 0 <= age_s < 5.0


def test_yes_and_no_come_with_their_probability(bench):
    bench.mind.otherwise = lambda request: choosing(yes=0.9, no=0.1)
    told = bench.ask('Is the cube red?', kind=ASK.YES_NO)
    assert (told.yes, told.text) == (True, 'yes')
    assert told.confidence == pytest.approx(0.9)
    np.testing.assert_allclose(told.probabilities, [0.9, 0.1])
    bench.mind.otherwise = lambda request: 'No.'
    told = bench.ask('Is the cube red?', kind=ASK.YES_NO, thinking=True)
    assert (told.success, told.yes) == (True, False)
    assert np.isnan(told.confidence)


def test_one_of_several_texts_is_chosen_by_its_probability(bench):
    bench.mind.otherwise = lambda request: choosing(red=0.2, green=0.7, blue=0.1)
    told = bench.ask('Which colour has the cube?', kind=ASK.CHOICE, choices=['red', 'green', 'blue'])
    assert (told.text, told.yes) == ('green', False)
    np.testing.assert_allclose(told.probabilities, [0.2, 0.7, 0.1], atol=1e-6)


def test_places_come_in_pixels_of_the_view_that_they_are_in(bench):
    bench.mind.otherwise = lambda request: BOX if 'bbox_2d' in request.text else POINTS
    told = bench.ask('every cube', kind=ASK.BOXES, views=['wrist', 'exterior_2'])
    assert [(box.view, box.label) for box in told.boxes] == [('wrist', 'red cube'), ('exterior_2', 'red cube')]
    box = told.boxes[0]
    np.testing.assert_allclose(
        [box.x_min, box.y_min, box.x_max, box.y_max], [0.1 * WIDTH, 0.2 * HEIGHT, 0.3 * WIDTH, 0.4 * HEIGHT]
    )
    assert [len(request.media()) for request in bench.server.requests] == [1, 1], 'each view by itself'
    told = bench.ask('the gripper', kind=ASK.POINTS, views=['wrist'])
    assert [(point.x, point.y) for point in told.points] == [(0.5 * WIDTH, 0.0), (WIDTH, HEIGHT)]
    (path,) = bench.ask('lift the cube', kind=ASK.TRAJECTORY, views=['wrist']).paths
    assert (path.view, path.label) == ('wrist', 'gripper')
    np.testing.assert_allclose([path.x, path.y], [[0.5 * WIDTH, WIDTH], [0.0, HEIGHT]])


def test_a_malformed_answer_is_asked_for_once_more_and_then_told(bench):
    answers = iter(['a cube', BOX, 'a cube', 'somewhere'])
    bench.mind.otherwise = lambda request: next(answers)
    told = bench.ask('every cube', kind=ASK.BOXES, views=['wrist'])
    assert (told.success, told.retries, len(told.boxes)) == (True, 1, 1)
    told = bench.ask('every cube', kind=ASK.BOXES, views=['wrist'])
    assert (told.success, told.reason) == (False, TOLD.MALFORMED)
    assert 'answer 2 of the reasoner, too, is malformed' in told.text


def test_a_view_without_a_fresh_picture_is_refused_with_its_name_and_age(reasoner_bench, sensors):  # noqa: F811
    bench = reasoner_bench().up()
    drivers = sensors()
    drivers.change['exterior_2'] = lambda message: None
    bench.sees('wrist', 'exterior_1')
    told = bench.ask()
    assert (told.success, told.reason) == (False, TOLD.NO_VIEW)
    assert told.text == 'exterior_2 (never received)'
    drivers.change['wrist'] = lambda message: None
    bench.graph.eventually(lambda: bool(bench.node.views.missing(('wrist',), bench.node.now_ns())))
    told = bench.ask(views=['wrist'])
    assert told.reason == TOLD.NO_VIEW
    assert 'wrist (stale, ' in told.text
    assert ' s > ' in told.text
    assert bench.ask(views=['exterior_1']).success
    assert len(bench.server.requests) == 1


@pytest.mark.parametrize(
    ('faulty', 'where'),
    [
        ({'question': ''}, 'question'),
        ({'kind': 77}, 'kind'),
        ({'views': ['elbow']}, 'elbow'),
        ({'kind': ASK.CHOICE, 'choices': ['red']}, 'choices'),
        ({'choices': ['red', 'blue']}, 'choices'),
        ({'kind': ASK.CHOICE, 'choices': ['red', 'blue'], 'thinking': True}, 'thinking'),
    ],
)
def test_a_faulty_question_is_refused_and_nobody_is_asked(bench, faulty, where):
    told = bench.ask(**{'question': 'What is it?', **faulty})
    assert (told.success, told.reason) == (False, TOLD.REFUSED)
    assert where in told.text
    assert bench.server.requests == []


def test_an_answer_that_takes_too_long_is_given_up(bench):
    bench.mind.otherwise = lambda request: Hang()
    request = ASK(question='What is it?')
    request.timeout.nanosec = 300_000_000
    began = time.monotonic()
    future = bench.questions.call_async(request)
    bench.graph.eventually(future.done)
    told = future.result()
    assert time.monotonic() - began < 12.0, 'sooner than other questions would be given up'
    assert (told.reason, told.text) == (TOLD.NO_ANSWER, 'no answer within 0.3 s')
    assert bench.server.wait_until(lambda server: server.abandoned == 1), 'the endpoint is told that nobody waits'


def test_an_endpoint_that_refuses_or_is_gone_is_named_in_the_answer_and_in_diagnostics(bench):
    heard: list[DiagnosticStatus] = []
    bench.client.create_subscription(DiagnosticArray, '/diagnostics', lambda told: heard.extend(told.status), 10)
    bench.mind.otherwise = lambda request: Status(503, 'loading weights')
    told = bench.ask()
    assert told.reason == TOLD.NO_ANSWER
    assert 'loading weights' in told.text
    bench.graph.eventually(
        lambda: any(
            one.name.endswith('reasoner: reasoner') and one.level == DiagnosticStatus.WARN and '503' in one.message
            for one in heard
        ),
        what='a warning',
    )
    bench.server.close()
    assert 'cannot be reached' in bench.ask().text
    bench.graph.eventually(lambda: bench.statuses[-1].unanswered == 2, what='a status that counts it')


def test_questions_can_be_asked_while_a_plan_is_thought_of(bench):
    bench.mind.plans = [Hang()]
    handle, future = bench.begin(execute=False)
    bench.graph.eventually(lambda: bool(bench.mind.asked_to_plan))
    assert bench.ask().text == 'a red cube'
    handle.cancel_goal_async()
    bench.outcome(future)


def test_without_being_active_it_refuses_and_a_question_under_way_ends_with_the_node(bench):
    bench.mind.otherwise = lambda request: Hang()
    future = bench.questions.call_async(ASK(question='What is it?'))
    bench.graph.eventually(lambda: bool(bench.server.requests))
    assert bench.node.transition('deactivate')
    bench.graph.eventually(future.done, 12.0)
    assert future.result().reason == TOLD.REFUSED
    told = bench.ask()
    assert told.reason == TOLD.REFUSED
    assert 'is not active' in told.text


def test_the_whole_life_can_be_lived_twice(reasoner_bench):  # noqa: F811
    bench = reasoner_bench()
    for _ in range(2):
        for transition in ('configure', 'activate', 'deactivate', 'cleanup'):
            assert bench.node.transition(transition), bench.node.last_failure
    assert bench.node.asker is None
    bench.says(ReasonerStatus.INACTIVE)


def test_all_that_a_back_end_lacks_is_told_at_once(graph, monkeypatch):
    monkeypatch.delenv('NO_SUCH_KEY', raising=False)
    bench = ReasonerBench(graph, None, Mind(), backend='remote', api_key_variable='NO_SUCH_KEY', views=['wrist'])
    assert not bench.node.transition('configure')
    for where in ('url', 'remote_model', 'NO_SUCH_KEY'):
        assert where in bench.node.last_failure
    other = graph.add(ReasonerNode('other', parameter_overrides=[RosParameter('contract', value=CONTRACT)]))
    assert not other.transition('configure')
    assert 'checkpoint: must be given with backend: local' in other.last_failure


def test_views_that_the_contract_does_not_have_are_refused(reasoner_bench):  # noqa: F811
    bench = reasoner_bench(views=['wrist', 'elbow'])
    assert not bench.node.transition('configure')
    assert 'elbow' in bench.node.last_failure


def test_the_key_of_an_endpoint_comes_from_the_environment_and_is_shown_nowhere(graph, sensors, monkeypatch):
    monkeypatch.setenv('TEST_REASONER_KEY', 'k-4711')
    with OpenAIServer(in_turn('a cube'), api_key='k-4711') as server:
        bench = ReasonerBench(graph, server, Mind(), api_key_variable='TEST_REASONER_KEY').up()
        sensors()
        assert bench.sees().ask().text == 'a cube'
        shown = [bench.node.parameters[parameter.name] for parameter in PARAMETERS]
        assert 'k-4711' not in str(shown)


def test_a_node_that_asks_an_endpoint_needs_no_pytorch():
    code = 'import sys, cosmos3_ros.reasoner_node, engine.reasoner_remote; print("torch" in sys.modules)'
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert (found.stdout.strip(), found.returncode) == ('False', 0), found.stderr


def test_the_runtimes_that_can_hold_a_reasoner_are_backends_of_the_engine():
    assert set(RUNTIMES) < set(BACKENDS)


def test_the_weights_of_the_policy_answer_and_the_policy_gets_its_chunks_meanwhile(
    graph, policy_bench, sensors, tiny_checkpoint: Path
):
    policy = policy_bench().up()
    bench = ReasonerBench(graph, None, Mind(), checkpoint=str(tiny_checkpoint), max_tokens=2000, timeout_s=200.0).up()
    assert bench.node.asker.talker.runtime is policy.node.loop.policy.runtime, 'one set of weights'
    sensors()
    bench.sees()
    policy.run()
    policy.have_chunks(1, 40.0)
    before = len(policy.chunks)
    request = {'views': ['wrist'], 'timeout': Duration(sec=4)}
    told = bench.ask(**request)
    assert len(policy.chunks) > before, 'the policy goes first'
    # Random weights talk for long, and not all of it can be printed.
    assert told.reason in (TOLD.ANSWERED, TOLD.MALFORMED, TOLD.NO_ANSWER), told.text
    told = bench.ask('Is it red?', kind=ASK.YES_NO, views=['wrist'])
    assert told.success, told.text
    assert sum(told.probabilities) == pytest.approx(1.0)
    assert bench.says(ReasonerStatus.IDLE).backend == 'local'
