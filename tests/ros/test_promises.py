"""What the guard's shell promises: stops that do not wait, watchdogs, modes, parameters, and robots side by side.

docs/guard.md lists the promises with the tests that pin them; tests of other files are among them.
"""

# ruff: noqa: F811 (fixtures are imported, and named again where they are used)

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.parameter import Parameter as RosParameter
from std_msgs.msg import Bool, String
from trajectory_msgs.msg import JointTrajectory

from cosmos3_msgs.msg import GuardStatus, LimitsInForce, PolicyStatus
from cosmos3_ros import qos
from cosmos3_ros.parameters import ParameterSet
from tests.ros.guard_bench import HOME, LIMITS, Bench, bench, contract, travel  # noqa: F401 (fixtures among them)


class Button:
    """An emergency stop that reports its state."""

    def __init__(self, b: Bench, profile: Any = None) -> None:
        self._node, self._graph = b.observer, b.graph
        self._publisher = self._node.create_publisher(Bool, 'estop', profile or qos.status())
        b.graph.eventually(lambda: self._publisher.get_subscription_count() == 1)

    def report(self, pressed: bool) -> None:
        self._publisher.publish(Bool(data=pressed))

    def lose(self) -> None:
        """Its publisher goes away."""
        self._node.destroy_publisher(self._publisher)


def guarded_by_a_button(bench: Any, **parameters: Any) -> tuple[Bench, Button]:
    """A guard that is up and has an emergency stop, which has reported that it is released."""
    b = bench(estop_topic='estop', **parameters)
    assert b.node.transition('configure'), b.node.last_failure
    assert b.node.transition('activate'), b.node.last_failure
    button = Button(b)
    button.report(False)
    b.graph.eventually(lambda: b.chunks.get_subscription_count() == 1 and bool(b.statuses))
    b.graph.eventually(lambda: b.node.guard.obstacle(b.node.now_ns()) is None, what='a clear way')
    return b, button


# Stops that do not wait


def test_a_pause_acts_before_it_is_answered_and_so_in_less_than_one_control_period(graph, bench):
    b = bench().up().moving()
    assert b.call('pause').success
    answered_ns = b.arm.now_ns()
    b.until(GuardStatus.HOLDING)
    graph.eventually(b.is_at_rest)
    assert b.began_to_brake_ns() <= answered_ns


def test_an_emergency_stop_acts_at_once_and_latches(graph, bench):
    b, button = guarded_by_a_button(bench)
    b.moving()
    button.report(True)
    status = b.until(GuardStatus.FAULT, reason='EMERGENCY_STOP')
    graph.eventually(b.is_at_rest)
    assert b.began_to_brake_ns() <= status.header.stamp.sec * 10**9 + status.header.stamp.nanosec
    assert b.send(travel(0.1)).reason_name == 'FAULT_LATCHED'


def test_before_a_required_emergency_stop_was_heard_no_chunk_is_accepted(graph, bench):
    b = bench(estop_topic='estop')
    assert b.node.transition('configure')
    assert b.node.transition('activate')
    graph.eventually(
        lambda: b.chunks.get_subscription_count() == 1 and b.node.guard._watch.stale(b.node.now_ns()) is None
    )
    decision = b.send(travel(0.1))
    assert (decision.accepted, decision.reason_name) == (False, 'EMERGENCY_STOP')
    assert 'nothing has been heard' in decision.text
    Button(b).report(False)
    graph.eventually(lambda: b.node.guard.obstacle(b.node.now_ns()) is None)
    assert b.send(travel(0.1)).accepted


def test_a_reset_is_refused_while_the_emergency_stop_is_pressed_and_says_so(graph, bench):
    b, button = guarded_by_a_button(bench, reset_cooldown_s=0.0)
    button.report(True)
    b.until(GuardStatus.FAULT, reason='EMERGENCY_STOP')
    answer = b.call('reset')
    assert not answer.success
    assert 'the emergency stop is pressed' in answer.message
    button.report(False)
    graph.eventually(lambda: b.call('reset').success)


def test_silence_of_a_supervised_emergency_stop_latches(graph, bench):
    b, _ = guarded_by_a_button(bench, estop_max_age_s=0.3)
    assert 'silent' in b.until(GuardStatus.FAULT, reason='EMERGENCY_STOP').text


def test_the_loss_of_the_emergency_stops_publisher_latches(graph, bench):
    b, button = guarded_by_a_button(bench)
    button.lose()
    assert '/estop' in b.until(GuardStatus.FAULT, reason='LIVELINESS_LOST').text


def test_a_missed_deadline_of_the_emergency_stop_latches_if_one_is_demanded(graph, bench):
    b = bench(estop_topic='estop', estop_deadline_s=0.3)
    assert b.node.transition('configure')
    assert b.node.transition('activate')
    Button(b, qos.with_terms(qos.status(), deadline_s=0.2)).report(False)
    assert '/estop' in b.until(GuardStatus.FAULT, reason='DEADLINE_MISSED').text


# Watchdogs of the middleware


def test_a_policy_that_misses_its_deadline_stops_the_arm_before_its_messages_are_too_old(graph, bench):
    b = bench(policy_max_age_s=1.5, heartbeat_max_age_s=5.0).up().moving()
    b.arm.policy = None
    assert '/policy/status' in b.stopped_for('DEADLINE_MISSED').text
    b.arm.policy = PolicyStatus.RUNNING
    graph.eventually(lambda: b.node.guard.obstacle(b.node.now_ns()) is None, what='the alarm is lifted')


def test_a_policy_whose_publisher_is_gone_stops_the_arm(graph, bench):
    b = bench().up().moving()
    b.arm.lose_policy()
    assert '/policy/status' in b.stopped_for('LIVELINESS_LOST').text


def test_a_missed_deadline_of_joint_states_stops_the_arm_if_one_is_demanded(graph, bench):
    b = bench(joint_states_deadline_s=0.5).up().moving()
    b.arm.reports = False
    assert '/joint_states' in b.stopped_for('DEADLINE_MISSED').text


# Who commands


def test_another_commander_on_the_output_stops_the_arm_and_is_named(graph, bench):
    b = bench().up().moving()
    stranger = graph.node('teleoperation')
    rival = stranger.create_publisher(JointTrajectory, 'joint_trajectory', qos.command())
    status = b.stopped_for('ROBOT_MOVING')
    assert '/teleoperation' in status.text
    b.until(GuardStatus.HOLDING)
    graph.eventually(b.is_at_rest)
    assert '/teleoperation' in b.send(travel(0.1) + b.arm.position - HOME).text
    stranger.destroy_publisher(rival)
    graph.eventually(lambda: b.node.guard.obstacle(b.node.now_ns()) is None, what='a clear way')
    assert b.send(travel(0.1) + b.arm.position - HOME).accepted


# The mode


def test_the_mode_is_latched_on_a_topic(graph, bench):
    b = bench().up()
    modes: list[str] = []
    late = graph.node('late')
    late.create_subscription(String, 'guard/mode', lambda message: modes.append(message.data), qos.latched())
    graph.eventually(lambda: modes == ['live'])
    assert b.call('pause').success
    graph.eventually(lambda: modes[-1] == 'paused')
    assert b.call('resume').success
    assert b.call('stop').success
    graph.eventually(lambda: modes[-1] == 'fault')
    assert b.node.transition('deactivate')
    graph.eventually(lambda: modes[-1] == 'inactive')
    assert modes == ['live', 'paused', 'live', 'fault', 'inactive']


def test_a_dry_run_says_so_in_its_mode(graph, bench):
    bench(dry_run=True).up()
    modes: list[str] = []
    graph.node('late').create_subscription(String, 'guard/mode', lambda m: modes.append(m.data), qos.latched())
    graph.eventually(lambda: modes == ['dry_run'])


# The control thread


def test_the_control_thread_lives_from_activation_to_deactivation_and_tells_how_regular_it_is(graph, bench):
    b = bench()
    told: list[str] = []
    graph.node('listener').create_subscription(
        DiagnosticArray, '/diagnostics', lambda m: told.extend(s.message for s in m.status if 'control' in s.name), 10
    )
    for _ in range(2):
        assert b.node.transition('configure')
        assert not b.node.loop.running
        assert b.node.transition('activate')
        graph.eventually(lambda: b.node.loop.periods().ticks > 20)
        loop = b.node.loop
        assert b.node.transition('deactivate')
        assert not loop.running
        assert b.node.transition('cleanup')
        assert b.node.loop is None
    assert b.node.transition('configure')
    assert b.node.transition('activate')
    graph.eventually(lambda: any('p99' in text for text in told))


def test_with_simulated_time_the_ticks_follow_it(graph, bench):
    b = bench(clock_ns=500 * 10**9).up()
    assert b.node.loop is None
    b.moving()


def test_a_tick_that_breaks_down_ends_the_program(graph, bench):
    b = bench().up()

    def fail(_now_ns: int) -> None:
        raise ArithmeticError('in a tick')

    b.node.guard.tick = fail
    with pytest.raises(RuntimeError, match='in a tick'):
        graph.eventually(lambda: False)
    graph._failure = None  # expected here


# Parameters


def test_the_speed_can_be_changed_while_the_arm_rests_and_the_limits_in_force_say_so(graph, bench):
    b = bench().up()
    limits: list[LimitsInForce] = []
    graph.node('late').create_subscription(LimitsInForce, 'guard/limits', limits.append, qos.latched())
    b.moving()
    (refused,) = b.node.set_parameters([RosParameter('speed_scale', value=0.5)])
    assert not refused.successful
    assert 'moves' in refused.reason
    assert b.node.parameters['speed_scale'] == 1.0
    b.until(GuardStatus.HOLDING)
    graph.eventually(b.is_at_rest)
    graph.eventually(lambda: b.node.guard.at_rest)
    assert b.node.set_parameters([RosParameter('speed_scale', value=0.5)])[0].successful
    graph.eventually(lambda: limits[-1].scale == 0.5)
    np.testing.assert_allclose(limits[-1].velocity, 0.5 * LIMITS.velocity)
    assert b.send(travel(-0.1) + b.arm.position - HOME).accepted, 'and it goes on from where it is'


NODES = {
    'guard_node': ('GuardNode', {'contract': 'demo_joint_pos'}),
    'policy_node': ('PolicyNode', {'contract': 'demo_joint_pos', 'checkpoint': 'none'}),
    'sim_robot': ('SimRobotNode', {}),
    'replay_robot': ('ReplayRobotNode', {'contract': 'demo_joint_pos', 'recording': 'none'}),
    'instruction_client': ('Instructor', {'instruction': 'wave'}),
}
UNITS = {'_s': '[s]', '_rad': '[rad]', '_hz': '[Hz]', '_m': '[m]'}


def another_value(parameter: Any, value: Any) -> Any:
    """A value that is allowed and differs from the present one."""
    if parameter.one_of:
        return next(choice for choice in parameter.one_of if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return parameter.maximum if value != parameter.maximum else parameter.minimum
    if isinstance(value, float):
        return (value + parameter.maximum) / 2 if value != parameter.maximum else parameter.minimum
    return f'{value}x'


@pytest.mark.parametrize('module', NODES)
def test_every_parameter_has_a_descriptor_and_every_one_that_can_be_changed_takes_effect(graph, module):
    node = make(graph, module)
    for parameter in importlib.import_module(f'cosmos3_ros.{module}').PARAMETERS:
        (descriptor,) = node.describe_parameters([parameter.name])
        assert len(descriptor.description) > 10, parameter.name
        assert descriptor.read_only == parameter.read_only
        for suffix, unit in UNITS.items():
            assert not parameter.name.endswith(suffix) or unit in descriptor.description, parameter.name
        if parameter.kind in (int, float) and not parameter.array:
            assert descriptor.integer_range or descriptor.floating_point_range, f'{parameter.name} has no range'
        if parameter.array:
            continue
        value = another_value(parameter, node.parameters[parameter.name])
        (result,) = node.set_parameters([RosParameter(parameter.name, value=value)])
        assert result.successful != parameter.read_only, f'{parameter.name}: {result.reason}'
        assert bool(result.reason) == parameter.read_only, 'a refusal says why'
        assert (node.parameters[parameter.name] == value) != parameter.read_only


def make(graph: Any, module: str) -> Any:
    """The node of a module, with the parameters that it cannot do without."""
    name, required = NODES[module]
    overrides = [RosParameter(key, value=value) for key, value in required.items()]
    module = importlib.import_module(f'cosmos3_ros.{module}')
    if name == 'Instructor':  # takes what it needs from the command line alone
        node = graph.node('instruct', parameter_overrides=overrides)
        node.parameters = ParameterSet(node, module.PARAMETERS)
        return node
    return graph.add(getattr(module, name)(parameter_overrides=overrides))


# Robots side by side


def test_two_robots_under_two_namespaces_do_not_disturb_each_other(graph, bench):
    left, right = bench(namespace='left').up(), bench(namespace='right').up()
    left.moving()
    right.moving()
    assert left.call('stop').success
    left.until(GuardStatus.FAULT, reason='STOP_REQUESTED')
    graph.eventually(left.is_at_rest)
    right.until(GuardStatus.HOLDING, reason='STARVED')
    graph.eventually(right.is_at_rest)
    # A guard that a busy machine held up has let the arm brake a little early, by what it had sent before.
    np.testing.assert_allclose(right.arm.position, HOME + 0.3, atol=0.05)
    assert np.abs(left.arm.position - HOME).max() < 0.29, 'stopped on its way'
    assert 'FAULT' not in {status.state_name for status in right.statuses}
    assert {motion.names for motion in left.arm.motions} == {motion.names for motion in right.arm.motions}
