"""Promises of the common node: failures explain themselves, nothing is left behind, the end is clean."""

from __future__ import annotations

import hashlib
import signal
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Log
from rclpy.parameter import Parameter as RosParameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from rosgraph_msgs.msg import Clock as ClockMessage
from std_msgs.msg import String

from cosmos3_ros import qos
from cosmos3_ros.node_base import CosmosLifecycleNode
from cosmos3_ros.parameters import Parameter, ParameterSet, Required
from cosmos3_ros.process import stop_grace_s
from engine.errors import ContractError, InvalidInput, Problem


class Probe(CosmosLifecycleNode):
    """Writes down its life, and fails where it is told to."""

    def __init__(self, name: str = 'probe', fail_in: dict[str, Exception] | None = None, **kwargs: object) -> None:
        self.calls: list[str] = []
        self.fail_in = fail_in or {}
        self.jumps: list[float] = []
        super().__init__(name, **kwargs)

    def _note(self, hook: str) -> None:
        self.calls.append(hook)
        if hook in self.fail_in:
            raise self.fail_in[hook]

    def configure_node(self) -> None:
        self.publisher = self.advertise(String, 'words', qos.status())
        self.subscribe(String, 'heard', lambda message: None, qos.sensor())
        self.create_timer(100.0, lambda: None)
        self._note('configure')

    def activate_node(self) -> None:
        self.publisher.publish(String(data='first'))
        self._note('activate')

    def deactivate_node(self) -> None:
        self.publisher.publish(String(data='stop'))
        self._note('deactivate')

    def cleanup_node(self) -> None:
        self._note('cleanup')

    def shutdown_node(self) -> None:
        self._note('shutdown')

    def clock_jumped(self, backward_s: float) -> None:
        self.jumps.append(backward_s)


USER_FAULT = ContractError('contract x.yaml', [Problem('timing/fps', 'must be positive', '-1', '> 0')])
UP = ['configure', 'activate']
DOWN = ['deactivate', 'cleanup']


def entity_count(node: CosmosLifecycleNode) -> int:
    return len(node._entities())


def test_the_hooks_follow_the_lifecycle_twice_and_nothing_is_left_over(graph):
    probe = graph.add(Probe())
    before = entity_count(probe)
    for _ in range(2):
        assert all(probe.transition(name) for name in ('configure', 'activate', 'deactivate', 'cleanup'))
        assert entity_count(probe) == before
    assert probe.transition('shutdown')
    assert probe.calls == [*UP, *DOWN] * 2 + ['shutdown']


@pytest.mark.parametrize(
    ('transitions', 'calls'),
    [
        ([], []),
        (['configure'], ['configure', 'cleanup']),
        (['configure', 'activate'], [*UP, *DOWN]),
        (['configure', 'activate', 'deactivate'], [*UP, *DOWN]),
    ],
)
def test_shutdown_undoes_whatever_was_done(graph, transitions, calls):
    probe = graph.add(Probe())
    for name in transitions:
        assert probe.transition(name)
    assert probe.transition('shutdown')
    assert probe.calls == [*calls, 'shutdown']
    assert probe.state_label == 'finalized'


def test_a_users_fault_in_configure_fails_with_its_text_and_can_be_tried_again(graph):
    probe = graph.add(Probe(fail_in={'configure': USER_FAULT}))
    assert not probe.transition('configure')
    assert probe.state_label == 'unconfigured'
    assert 'timing/fps: must be positive, got -1' in probe.last_failure
    probe.fail_in.clear()
    assert probe.transition('configure')
    assert probe.last_failure == ''


def test_a_defect_in_configure_is_logged_with_its_traceback(graph):
    logs: list[Log] = []
    everything = QoSProfile(depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL)  # all that was said before, too
    graph.node('listener').create_subscription(Log, '/rosout', logs.append, everything)
    # Nodes of one name in a process share a log publisher, and it ends with the first of them: a name of its own.
    probe = graph.add(Probe('defective', fail_in={'configure': ZeroDivisionError('no wheels')}))
    assert not probe.transition('configure')
    graph.eventually(lambda: any('Traceback' in log.msg and 'no wheels' in log.msg for log in logs))
    assert probe.state_label == 'unconfigured'
    assert probe.calls == ['configure', 'cleanup']


@pytest.mark.parametrize('fault', [USER_FAULT, RuntimeError('broken')])
def test_a_failed_activation_deactivates_again_and_publishes_no_more(graph, fault):
    probe = graph.add(Probe(fail_in={'activate': fault}))
    assert probe.transition('configure')
    assert not probe.transition('activate')
    assert probe.calls[:3] == ['configure', 'activate', 'deactivate']
    assert not probe.active
    assert not probe.publisher.is_activated


@pytest.mark.parametrize('fault', [USER_FAULT, RuntimeError('broken')])
def test_publishers_close_even_if_the_stop_hook_fails(graph, fault):
    probe = graph.add(Probe(fail_in={'deactivate': fault}))
    assert all(probe.transition(name) for name in UP)
    assert not probe.transition('deactivate')
    assert not probe.publisher.is_activated
    assert probe.state_label == 'unconfigured'


def test_the_stop_command_is_the_last_message_and_it_arrives(graph):
    heard: list[str] = []
    listener = graph.node('listener')
    listener.create_subscription(String, 'words', lambda message: heard.append(message.data), qos.status())
    probe = graph.add(Probe())
    assert probe.transition('configure')
    graph.eventually(lambda: probe.count_subscribers('words') == 1)
    assert probe.transition('activate')
    assert probe.transition('shutdown')
    graph.eventually(lambda: len(heard) == 2)
    assert heard == ['first', 'stop']


def test_messages_dropped_while_inactive_are_counted(graph):
    probe = graph.add(Probe())
    assert probe.transition('configure')
    for _ in range(3):
        probe.publisher.publish(String(data='too early'))
    assert (probe.publisher.sent, probe.publisher.dropped) == (0, 3)


def test_the_state_can_be_asked_for_while_configure_takes_long(graph):
    gate = threading.Event()
    entered = threading.Event()

    class Slow(Probe):
        def configure_node(self) -> None:
            entered.set()
            assert gate.wait(20.0)

    probe = graph.add(Slow())
    client = graph.node('asker')
    change = client.create_client(ChangeState, 'probe/change_state')
    ask = client.create_client(GetState, 'probe/get_state')
    graph.eventually(lambda: change.service_is_ready() and ask.service_is_ready())
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
    configuring = change.call_async(request)
    graph.eventually(entered.is_set)
    asked = ask.call_async(GetState.Request())
    second = change.call_async(request)
    graph.eventually(lambda: asked.done() and second.done())
    gate.set()
    graph.eventually(configuring.done)
    assert asked.result().current_state.label == 'configuring'
    assert not second.result().success
    assert configuring.result().success
    assert probe.state_label == 'inactive'


def test_an_impossible_transition_is_refused_and_the_node_lives_on(graph):
    probe = graph.add(Probe())
    change = graph.node('asker').create_client(ChangeState, 'probe/change_state')
    graph.eventually(change.service_is_ready)
    answer = change.call_async(ChangeState.Request(transition=Transition(id=Transition.TRANSITION_ACTIVATE)))
    graph.eventually(answer.done)
    assert not answer.result().success
    assert probe.transition('configure')


def test_autostart_configures_and_activates_once(graph):
    probe = graph.add(Probe(parameter_overrides=[RosParameter('autostart', value=True)]))
    graph.eventually(lambda: probe.calls == UP)
    assert probe.active


def test_autostart_does_not_retry_after_a_failure(graph):
    probe = graph.add(
        Probe(fail_in={'configure': USER_FAULT}, parameter_overrides=[RosParameter('autostart', value=True)])
    )
    graph.eventually(lambda: probe.last_failure != '')
    reports: list[DiagnosticArray] = []
    graph.node('listener').create_subscription(DiagnosticArray, '/diagnostics', reports.append, 10)
    graph.eventually(lambda: len(reports) >= 2)  # two seconds of chances to retry
    assert probe.calls.count('configure') == 1
    status = next(status for status in reports[-1].status if status.name == 'probe: lifecycle')
    assert status.level == DiagnosticStatus.ERROR
    assert 'timing/fps' in status.message


def test_a_backward_jump_of_simulated_time_is_told(graph):
    probe = graph.add(Probe(parameter_overrides=[RosParameter('use_sim_time', value=True)]))
    clock = graph.node('clock').create_publisher(ClockMessage, '/clock', 10)
    graph.eventually(lambda: clock.get_subscription_count() == 1)
    for seconds in (10, 11, 4):
        clock.publish(ClockMessage(clock=Time(seconds=seconds).to_msg()))
        graph.eventually(lambda now=seconds: probe.now_ns() == now * 1_000_000_000)
    graph.eventually(lambda: 7.0 in probe.jumps)  # it is told beside the change of the clock, not before it


def test_an_incompatible_profile_is_reported_with_the_policy(graph):
    probe = graph.add(Probe())
    assert probe.transition('configure')
    graph.node('greedy').create_subscription(String, 'words', lambda message: None, qos.latched())
    graph.eventually(lambda: probe.topic_events['/words'].incompatible == 1)
    assert probe.topic_events['/words'].last_incompatible_policy == 'DURABILITY'


def test_a_profile_can_be_overridden_by_parameters(graph):
    overrides = [RosParameter('qos_overrides./heard.subscription.depth', value=7)]
    probe = graph.add(Probe(parameter_overrides=overrides))
    assert probe.transition('configure')
    assert next(sub for sub in probe.subscriptions if sub.topic_name == '/heard').qos_profile.depth == 7


def test_a_busy_node_can_be_taken_down_and_up_again_while_it_spins(graph):
    class Busy(Probe):
        def configure_node(self) -> None:
            super().configure_node()
            self.ticks = [self.create_timer(0.0005, self.tick) for _ in range(5)]

        def tick(self) -> None:
            self.publisher.publish(String(data='tick'))

        def cleanup_node(self) -> None:
            super().cleanup_node()
            for timer in self.ticks:
                timer.cancel()

    probe = graph.add(Busy())
    # A reader that does not match makes middleware events, which are entities of their own.
    graph.node('mismatched').create_subscription(String, 'words', lambda message: None, qos.latched())
    for _ in range(30):
        assert all(probe.transition(name) for name in (*UP, 'deactivate', 'cleanup'))
    assert probe.calls == [*UP, *DOWN] * 30


def test_two_instances_live_under_their_namespaces(graph):
    left, right = (graph.add(Probe(namespace=name)) for name in ('left', 'right'))
    assert all(probe.transition('configure') for probe in (left, right))
    assert left.publisher.topic_name == '/left/words'
    assert right.publisher.topic_name == '/right/words'


def test_every_parameter_describes_itself(graph):
    probe = graph.add(Probe())
    assert probe.transition('configure')
    names = [name for name in probe.list_parameters([], 10).names if name not in _OF_RCLPY]
    assert {'autostart', 'diagnostic_updater.period'} <= set(names)
    assert all(descriptor.description for descriptor in probe.describe_parameters(names))


_OF_RCLPY = {'use_sim_time', 'start_type_description_service'}

RATE = Parameter('rate_hz', 15.0, 'How often.', 'Hz', minimum=1.0, maximum=100.0, read_only=False)
MODE = Parameter('mode', 'fast', 'How.', one_of=('fast', 'slow'), read_only=False)
CONTRACT = Parameter('contract', Required(str), 'Which contract.')
WEIGHTS = Parameter('weights', (1.0, 2.0), 'How much.', minimum=0.0)
NAMES = Parameter('names', (), 'Who.')


def declared(graph, parameters, on_change=None, **overrides):
    node = graph.node(parameter_overrides=[RosParameter(name, value=value) for name, value in overrides.items()])
    return node, ParameterSet(node, parameters, on_change)


def test_parameters_have_their_defaults_and_types(graph):
    _, parameters = declared(graph, [RATE, MODE, CONTRACT, WEIGHTS, NAMES], lambda new: None, contract='droid')
    assert parameters.as_dict() == {
        'rate_hz': 15.0,
        'mode': 'fast',
        'contract': 'droid',
        'weights': (1.0, 2.0),
        'names': (),
    }


def test_all_faulty_parameters_are_reported_at_once(graph):
    with pytest.raises(InvalidInput) as raised:
        declared(
            graph, [RATE, MODE, CONTRACT, WEIGHTS], lambda new: None, rate_hz=1000.0, mode='odd', weights=[1.0, -2.0]
        )
    assert [problem.where for problem in raised.value.problems] == ['rate_hz', 'mode', 'contract', 'weights']
    assert 'one of fast, slow' in str(raised.value)


def test_an_integer_for_a_number_with_a_unit_says_how_to_write_it(graph):
    with pytest.raises(InvalidInput, match=r'15\.0 instead of 15'):
        declared(graph, [RATE], lambda new: None, rate_hz=20)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 0.5])
def test_a_value_that_is_not_allowed_is_refused_with_a_reason(graph, value):
    node, parameters = declared(graph, [RATE], lambda new: None)
    (result,) = node.set_parameters([RosParameter('rate_hz', value=value)])
    assert not result.successful
    assert 'rate_hz' in result.reason
    assert parameters['rate_hz'] == 15.0


def test_a_change_takes_effect_through_the_callback(graph):
    changes: list[dict[str, object]] = []
    node, parameters = declared(graph, [RATE, MODE], changes.append)
    result = node.set_parameters_atomically([RosParameter('rate_hz', value=20.0), RosParameter('mode', value='slow')])
    assert result.successful
    assert changes == [{'rate_hz': 20.0, 'mode': 'slow'}]
    assert parameters['rate_hz'] == 20.0


def test_a_read_only_parameter_cannot_be_changed(graph):
    node, parameters = declared(graph, [CONTRACT], contract='droid')
    (result,) = node.set_parameters([RosParameter('contract', value='other')])
    assert not result.successful
    assert parameters['contract'] == 'droid'


def test_a_changeable_parameter_that_nobody_applies_cannot_be_declared(graph):
    with pytest.raises(ValueError, match='nobody applies'):
        declared(graph, [RATE])


PROGRAM = """
import ctypes, sys, threading
from cosmos3_ros import process
if {early}:
    process.answer_signals()
print('importing', flush=True)
from cosmos3_ros.node_base import CosmosLifecycleNode, spin
from cosmos3_ros import qos
from std_msgs.msg import String

lock, stopped = threading.Lock(), threading.Event()

class Talker(CosmosLifecycleNode):
    def configure_node(self):
        print('configuring', flush=True)
        if {hang}:
            threading.Event().wait()
        self.words = self.advertise(String, 'words', qos.command())
        self.create_timer(0.01, self.tick)

    def tick(self):
        with lock:
            if not stopped.is_set():
                self.words.publish(String(data='go'))
        if {fail}:
            raise ArithmeticError('in a callback')

    def activate_node(self):
        print('active', flush=True)

    def deactivate_node(self):
        if {halt}:
            ctypes.PyDLL(None).sleep(600)  # keeps the interpreter's lock
        with lock:
            stopped.set()
            self.words.publish(String(data='stop'))

spin(lambda: Talker('talker'))
"""


@pytest.fixture
def talker(program, tmp_path: Path):
    def start(*, autostart: bool = True, **changes: bool):
        values = {'early': True, 'hang': False, 'halt': False, 'fail': False, **changes}
        path = tmp_path / 'talker.py'
        path.write_text(textwrap.dedent(PROGRAM.format(**values)))
        return program(str(path), '--ros-args', '-p', f'autostart:={str(autostart).lower()}')

    return start


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_active_node_with_stop_last_and_code_0(graph, talker, number):
    heard: list[str] = []
    listener = graph.node('listener')
    listener.create_subscription(String, 'words', lambda message: heard.append(message.data), qos.status(depth=1000))
    running = talker()
    graph.eventually(lambda: 'go' in heard, timeout=20.0)
    code, _ = running.end(number)
    assert code == 0, f'not by itself within its grace: {running.output}'
    graph.eventually(lambda: heard[-1] == 'stop')
    assert heard.count('stop') == 1
    assert 'Traceback' not in running.output


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_node_that_is_stuck_in_configure(talker, number):
    running = talker(hang=True)
    running.wait_for('configuring')
    code, _ = running.end(number, timeout=30.0)
    assert code == 0, running.output


def test_a_signal_ends_a_process_in_which_python_itself_has_come_to_a_halt(talker):
    """As when a library waits inside C for something of another process, and gives no other thread a turn."""
    running = talker(halt=True)
    running.wait_for('active')
    code, _ = running.end(signal.SIGTERM, timeout=60.0)
    assert code == 1, running.output
    assert 'deactivate_node' in running.output, 'it says where it stood'


def test_the_grace_is_enforced_in_a_process_without_stderr(program):
    code = (
        'import os, sys, threading\n'
        'os.close(2); sys.stderr = None\n'
        'from cosmos3_ros.process import StopRequest\n'
        'stop = StopRequest(); stop.take_over(lambda: 7, 0.1); stop.request()\n'
        'threading.Event().wait(30)\n'
    )
    assert program('-c', code).wait(20.0) == 7


def test_what_was_written_and_what_was_registered_is_done_before_the_end(program):
    code = (
        'import atexit, os, sys, threading, time\n'
        'from cosmos3_ros.process import leave\n'
        'atexit.register(lambda: print("registered"))\n'
        'threading.Thread(target=time.sleep, args=(600,)).start()\n'
        'print("written", end=" ")\n'
        'leave(3)\n'
    )
    running = program('-c', code, PYTHONUNBUFFERED='')
    assert running.wait(20.0) == 3, 'whatever thread is still at work'
    assert running.output == 'written registered'


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_imports_ends_the_process_at_once(talker, number):
    running = talker()
    running.wait_for('importing')
    code, _ = running.end(number)
    assert code == 0, running.output
    assert 'Traceback' not in running.output


def test_signals_at_random_moments_end_with_code_0(talker):
    random = np.random.default_rng(0)
    for number in [signal.SIGINT, signal.SIGTERM] * 3:
        running = talker()
        running.wait_for('importing')
        moment = threading.Event()
        moment.wait(float(random.uniform(0.0, 1.5)))  # the moment itself is what is under test
        code, _ = running.end(number)
        assert code == 0, running.output
        assert 'Traceback' not in running.output


def test_an_exception_in_a_callback_stops_the_node_and_is_told(graph, talker):
    heard: list[str] = []
    listener = graph.node('listener')
    listener.create_subscription(String, 'words', lambda message: heard.append(message.data), qos.status(depth=1000))
    running = talker(fail=True)
    assert running.wait(20.0) == 1
    assert 'in a callback' in running.output


def test_faulty_parameters_end_the_process_with_code_2_and_their_text(program):
    code = (
        'import sys; from cosmos3_ros.node_base import *; from cosmos3_ros.parameters import *\n'
        'class N(CosmosLifecycleNode):\n'
        '    def __init__(self):\n'
        '        super().__init__("n"); ParameterSet(self, [Parameter("contract", Required(str), "Which contract.")])\n'
        'spin(N)'
    )
    running = program('-c', code)
    assert running.wait(20.0) == 2
    assert 'contract: must be given: Which contract.' in running.output


def test_the_ros_context_is_shut_down_only_by_us():
    assert rclpy.ok()


class Flooded(CosmosLifecycleNode):
    """Has always a message for its first subscription, whose callback sends the next two, and now and then another."""

    def configure_node(self) -> None:
        self.heard = threading.Event()
        self.served = 0
        self.flood = self.advertise(String, 'flood', qos.status())
        self.word = self.advertise(String, 'word', qos.status())
        self.subscribe(String, 'flood', self._on_flood, qos.status())
        self.subscribe(String, 'word', lambda message: self.heard.set(), qos.status())

    def _on_flood(self, message: String) -> None:
        self.served += 1
        for _ in range(2):
            self.flood.publish(message)
        hashlib.pbkdf2_hmac('sha256', b'', b'', 10_000)  # takes its time over each, as over a picture, without the GIL


def test_every_subscription_comes_first_in_its_turn(graph):
    node = Flooded('flooded')
    assert node.transition('configure')
    topics = {subscription.topic_name for subscription in node.subscriptions}
    assert {next(iter(node.subscriptions)).topic_name for _ in topics} == topics
    node.destroy_node()


def test_a_subscription_is_served_however_busy_another_of_its_group_is(graph):
    node = graph.add(Flooded('flooded'))
    assert node.transition('configure')
    assert node.transition('activate')
    graph.eventually(lambda: node.count_subscribers('flood') and node.count_subscribers('word'))
    node.flood.publish(String(data='one picture after the other'))
    graph.eventually(lambda: node.served > 10)
    node.word.publish(String(data='the guard has stopped'))
    served = node.served
    assert node.heard.wait(5.0), f'{node.served - served} messages of the busy topic came before it'
    assert node.transition('deactivate')


@pytest.mark.parametrize(('said', 'grace_s'), [('7.5', 7.5), ('', 3.0), ('soon', 3.0), ('-1', 3.0), ('1e9', 3.0)])
def test_the_grace_is_what_the_supervisor_says_if_that_makes_sense(monkeypatch, said, grace_s):
    monkeypatch.setenv('COSMOS3_ROS_STOP_GRACE_S', said)
    assert stop_grace_s() == grace_s
