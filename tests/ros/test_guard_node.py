"""Promises of the guard node in a real graph: what reaches the robot, what it is told, and that it stops."""

# ruff: noqa: F811 (fixtures are imported, and named again where they are used)

from __future__ import annotations

import math

import numpy as np
import pytest
from rcl_interfaces.srv import DescribeParameters
from rclpy.parameter import Parameter as RosParameter
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import JointState

from cosmos3_msgs.msg import ActionChunk, GuardStatus, LimitsInForce, PolicyStatus
from cosmos3_ros import qos
from cosmos3_ros.conversions import ns_to_stamp
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guard_node import PARAMETERS
from tests.ros.guard_bench import (  # noqa: F401 (fixtures among them)
    HOME,
    JOINTS,
    LIMITS,
    ROWS,
    Bench,
    Motion,
    bench,
    contract,
    contract_file,
    travel,
)

# What reaches the robot


def test_an_accepted_chunk_brings_the_arm_where_it_says_within_the_limits(graph, bench):
    b = bench().up()
    decision = b.send(travel(0.3))
    assert (decision.accepted, decision.reason_name) == (True, 'NONE')
    b.until(GuardStatus.HOLDING)
    graph.eventually(b.is_at_rest)
    np.testing.assert_allclose(b.arm.position, HOME + 0.3, atol=0.01)
    for motion in b.arm.motions:
        assert motion.names == JOINTS
        assert motion.times[0] == 0
        assert (np.diff(motion.times) > 0).all()
        assert (motion.positions > LIMITS.soft_lower).all()
        assert (motion.positions < LIMITS.soft_upper).all()
        assert (np.abs(motion.velocities) <= LIMITS.velocity).all()
        assert (np.abs(motion.accelerations) <= LIMITS.acceleration).all()


def test_every_command_ends_at_rest(graph, bench):
    b = bench().up().moving()
    b.until(GuardStatus.HOLDING)
    assert len(b.arm.motions) > 20
    for motion in b.arm.motions:
        assert not motion.velocities[-1].any()
        assert not motion.accelerations[-1].any()
        assert motion.times[-1] < 1.0, 'the stop is not far away'


def test_after_the_arm_is_at_rest_there_is_silence(graph, bench):
    b = bench().up().moving()
    b.until(GuardStatus.HOLDING)
    told = len(b.statuses)
    graph.eventually(lambda: len(b.statuses) > told + 3)  # whatever was on its way has come
    count = len(b.arm.motions)
    graph.eventually(lambda: len(b.statuses) > told + 8)
    assert len(b.arm.motions) == count


def test_joints_of_a_chunk_may_come_in_any_order(graph, bench):
    b = bench().up()
    order = [3, 0, 6, 2, 5, 1, 4]
    distance = np.linspace(-0.1, 0.2, 7)
    assert b.send(travel(distance)[:, order], joint_names=[JOINTS[i] for i in order]).accepted
    b.until(GuardStatus.HOLDING)
    graph.eventually(b.is_at_rest)
    np.testing.assert_allclose(b.arm.position, HOME + distance, atol=0.01)


def test_a_dry_run_judges_and_previews_and_sends_nothing(graph, bench):
    b = bench(dry_run=True).up()
    assert b.send(travel(0.3), gripper=np.linspace(0, 1, ROWS)).accepted
    graph.eventually(lambda: len(b.previews) > 10)
    assert b.until(GuardStatus.TRACKING).dry_run
    assert b.observer.count_publishers('joint_trajectory') == 0
    assert b.observer.count_publishers('gripper/command') == 0
    assert b.observer.count_publishers('guard/preview/gripper/command') == 1
    assert b.arm.motions == []
    assert not Motion(b.previews[-1]).velocities[-1].any()


def test_dry_run_is_the_default():
    assert next(parameter for parameter in PARAMETERS if parameter.name == 'dry_run').default is True


# Decisions


def beyond_a_limit() -> np.ndarray:
    rows = travel(0.0)
    rows[20:, 3] = -3.2
    return rows


def not_a_number() -> np.ndarray:
    rows = travel(0.1)
    rows[5, 2] = math.nan
    return rows


def far_away() -> np.ndarray:
    rows = travel(0.0)
    rows[:, 1] += 0.5
    return rows


@pytest.mark.parametrize(
    ('rows', 'reason', 'joint', 'row', 'value', 'limit'),
    [
        (beyond_a_limit, 'POSITION_LIMIT', 'panda_joint4', 20, -3.2, -3.0518),
        (not_a_number, 'CHUNK_NOT_FINITE', 'panda_joint3', 5, math.nan, math.nan),
        (far_away, 'START_JUMP', 'panda_joint2', 0, 0.5, 0.05),
    ],
)
def test_a_rejection_names_joint_row_value_and_limit_and_nothing_moves(
    graph, bench, rows, reason, joint, row, value, limit
):
    b = bench().up()
    decision = b.send(rows())
    assert (decision.accepted, decision.reason_name) == (False, reason)
    assert (decision.joint, decision.row) == (joint, row)
    np.testing.assert_allclose([decision.value, decision.limit], [value, limit], atol=1e-6, equal_nan=True)
    assert reason in decision.text
    assert joint in decision.text
    assert (decision.epoch, decision.sequence) == (1_000, 1)
    count = len(b.statuses)
    graph.eventually(lambda: len(b.statuses) > count + 2)
    assert b.arm.motions == []
    assert b.statuses[-1].rejected == 1
    assert list(b.statuses[-1].rejection_names) == [reason]
    assert b.send(travel(0.1)).accepted, 'a good chunk afterwards is welcome'


def test_poses_are_refused_because_the_guard_cannot_check_them(graph, bench):
    b = bench().up()
    decision = b.send(
        np.empty((ROWS, 0)),
        action_space=ActionChunk.END_EFFECTOR_POSE,
        joint_names=[],
        end_effector_frames=['panda_link8'],
    )
    assert (decision.accepted, decision.reason_name) == (False, 'UNSUPPORTED_ACTION_SPACE')
    assert 'end_effector_pose' in decision.text
    assert b.arm.motions == []


@pytest.mark.parametrize(
    ('fields', 'reason'),
    [
        ({'joint_names': ['elbow', *JOINTS[1:]]}, 'CHUNK_JOINT_NAMES'),
        ({'positions': [0.0] * 10}, 'CHUNK_SHAPE'),
        ({'rows': 0, 'positions': []}, 'CHUNK_SHAPE'),
        ({'step_dt': math.nan}, 'CHUNK_SHAPE'),
        ({'step_dt': 0.0}, 'CHUNK_SHAPE'),
        ({'action_space': 7}, 'UNSUPPORTED_ACTION_SPACE'),
    ],
)
def test_a_malformed_chunk_is_refused_whole(graph, bench, fields, reason):
    b = bench().up()
    decision = b.send(travel(0.1), **fields)
    assert (decision.accepted, decision.reason_name) == (False, reason)
    assert b.arm.motions == []


def test_old_duplicate_and_overtaken_chunks_are_refused(graph, bench):
    b = bench().up()
    assert b.send(travel(0.1), sequence=5).accepted
    assert b.send(travel(0.1), sequence=5).reason_name == 'CHUNK_DUPLICATE'
    assert b.send(travel(0.1), sequence=4).reason_name == 'CHUNK_OUT_OF_ORDER'
    assert b.send(travel(0.1), epoch=999, sequence=6).reason_name == 'CHUNK_STALE_EPOCH'
    old = ns_to_stamp(b.arm.now_ns() - 3_000_000_000)
    header = ActionChunk().header
    header.stamp = old
    assert b.send(travel(0.1), header=header, sequence=7).reason_name == 'CHUNK_EXPIRED'


# What late joiners learn


def test_limits_in_force_and_status_reach_whoever_comes_late(graph, bench):
    bench(speed_scale=0.5).up()
    limits: list[LimitsInForce] = []
    statuses: list[GuardStatus] = []
    late = graph.node('late')
    late.create_subscription(LimitsInForce, 'guard/limits', limits.append, qos.latched())
    late.create_subscription(GuardStatus, 'guard/status', statuses.append, qos.latched())
    graph.eventually(lambda: bool(limits) and bool(statuses))
    assert tuple(limits[0].joint_names) == JOINTS
    assert limits[0].robot == 'panda'
    assert limits[0].source
    assert limits[0].scale == 0.5
    np.testing.assert_allclose(limits[0].velocity, 0.5 * LIMITS.velocity)
    np.testing.assert_allclose(limits[0].acceleration, 0.5 * LIMITS.acceleration)
    np.testing.assert_allclose(limits[0].position_min, LIMITS.soft_lower)
    np.testing.assert_allclose(limits[0].position_max, LIMITS.soft_upper)


# Stopping


def braked(graph, b: Bench) -> None:
    """The arm has come to rest where the guard stopped it, well before the end of the chunk."""
    b.until(GuardStatus.HOLDING)
    graph.eventually(b.is_at_rest)
    assert not b.arm.motions[-1].velocities[-1].any()
    assert np.abs(b.arm.motions[-1].positions[-1] - HOME).max() < 0.29


def test_stale_joint_states_brake_the_arm_and_are_named(graph, bench):
    b = bench().up().moving()
    b.arm.reports = False
    assert 'age of the joint state' in b.stopped_for('STALE_JOINT_STATE').text
    braked(graph, b)
    assert b.send(travel(0.1)).reason_name == 'STALE_JOINT_STATE'


@pytest.mark.parametrize(
    ('spoil', 'text'),
    [
        (
            lambda m: JointState(header=m.header, name=m.name, position=[math.nan, *list(m.position)[1:]]),
            'panda_joint1',
        ),
        (lambda m: JointState(header=m.header, name=m.name[1:], position=list(m.position)[1:]), 'panda_joint1'),
    ],
    ids=['not a number', 'joint missing'],
)
def test_unusable_joint_states_count_as_none_and_the_stop_says_why(graph, bench, spoil, text):
    b = bench().up().moving()
    b.arm.spoil = spoil
    status = b.stopped_for('STALE_JOINT_STATE')
    assert 'the latest was not used' in status.text
    assert text in status.text
    braked(graph, b)


def test_a_silent_policy_process_brakes_the_arm(graph, bench):
    b = bench(heartbeat_max_age_s=0.3).up().moving()
    b.arm.policy = None
    reason = b.until(GuardStatus.BRAKING, GuardStatus.HOLDING).reason_name
    assert reason in ('HEARTBEAT_LOST', 'DEADLINE_MISSED', 'LIVELINESS_LOST'), 'whoever notices first'
    braked(graph, b)


@pytest.mark.parametrize('state', [PolicyStatus.IDLE, PolicyStatus.WAITING, PolicyStatus.FAILED])
def test_a_policy_that_makes_no_chunks_any_more_brakes_the_arm(graph, bench, state):
    b = bench(policy_max_age_s=0.3).up().moving()
    b.arm.policy = state
    assert "'a running policy'" in b.stopped_for('STALE_SOURCE').text
    braked(graph, b)


def test_motion_goes_on_with_the_next_chunk_after_a_stop_that_nobody_latched(graph, bench):
    b = bench(policy_max_age_s=0.3).up().moving()
    b.arm.policy = PolicyStatus.WAITING
    braked(graph, b)
    b.arm.policy = PolicyStatus.RUNNING
    graph.eventually(lambda: b.node.guard.obstacle(b.node.now_ns()) is None)
    here = b.arm.position - HOME
    assert b.send(travel(0.1) + here).accepted
    b.until(GuardStatus.TRACKING)


def test_a_stop_latches_until_a_reset_which_comes_neither_too_early_nor_by_itself(graph, bench):
    b = bench(reset_cooldown_s=1.5).up().moving()
    assert b.call('stop').success
    b.until(GuardStatus.FAULT, reason='STOP_REQUESTED')
    early = b.call('reset')
    assert not early.success
    assert 'of the cool-down are left' in early.message
    graph.eventually(b.is_at_rest)
    assert b.send(travel(0.1)).reason_name == 'FAULT_LATCHED'
    assert b.state() == GuardStatus.FAULT
    graph.eventually(lambda: b.call('reset').success)
    b.until(GuardStatus.WAITING)
    assert b.send(travel(0.1)).reason_name == 'CHUNK_STALE_EPOCH', 'computed before the reset'
    b.epoch = b.statuses[-1].epoch
    assert b.send(travel(0.1) + b.arm.position - HOME).accepted


def test_a_reset_without_a_fault_is_refused(graph, bench):
    b = bench().up()
    answer = b.call('reset')
    assert not answer.success
    assert 'nothing is latched' in answer.message


def test_a_pause_brakes_and_refuses_chunks_until_it_is_lifted(graph, bench):
    b = bench().up().moving()
    assert b.call('pause').success
    b.stopped_for('PAUSED')
    braked(graph, b)
    here = b.arm.position - HOME
    assert b.send(travel(0.1) + here).reason_name == 'PAUSED'
    assert b.call('resume').success
    assert b.send(travel(0.1) + here).accepted


@pytest.mark.parametrize('service', ['stop', 'reset', 'pause', 'resume'])
def test_an_inactive_guard_says_so(graph, bench, service):
    b = bench()
    assert b.node.transition('configure')
    answer = b.call(service)
    assert not answer.success
    assert 'not active' in answer.message


def test_deactivation_sends_the_stop_last(graph, bench):
    b = bench().up().moving()
    assert b.node.transition('deactivate')
    graph.eventually(lambda: b.state() == GuardStatus.INACTIVE)
    start = b.arm.now_ns()
    graph.eventually(lambda: b.is_at_rest() and b.arm.now_ns() > start + 300_000_000)
    last = b.arm.motions[-1]
    assert last.velocities[0].any(), 'the arm was moving'
    speeds = np.abs(last.velocities).max(axis=1)
    assert not speeds[-1]
    assert speeds.max() < speeds[0] + 0.05, 'it gathers no speed beyond what easing out of an acceleration takes'
    assert last.times[-1] < 0.5
    assert b.node.output.dropped == 0


def test_a_clock_set_back_stops_the_arm_and_motion_can_begin_anew(graph, bench):
    b = bench(clock_ns=500 * 10**9).up().moving()
    epoch = b.statuses[-1].epoch
    b.arm.clock_ns = 100 * 10**9
    graph.eventually(lambda: any(s.reason_name == 'CLOCK_JUMP' for s in b.statuses))
    graph.eventually(lambda: b.state() == GuardStatus.HOLDING)
    graph.eventually(lambda: b.node.guard.obstacle(b.node.now_ns()) is None, what='joint states of the new time')
    b.arm.motions.clear()  # a robot whose clock was set back knows no commands from the future either
    assert b.statuses[-1].epoch > epoch
    assert b.send(travel(0.1) + b.arm.position - HOME).reason_name == 'CHUNK_STALE_EPOCH'
    b.epoch = b.statuses[-1].epoch
    graph.eventually(lambda: b.send(travel(0.1) + b.arm.position - HOME).accepted)
    graph.eventually(lambda: bool(b.arm.motions), what='commands in the new time')


def test_callbacks_that_had_to_wait_for_each_other_do_not_make_the_clock_run_backwards(graph, bench):
    b = bench().up().moving()
    epoch = b.node.guard.epoch
    with b.node._lock:  # as a service does while joint states arrive
        start = b.arm.now_ns()
        graph.eventually(lambda: b.arm.now_ns() > start + 50_000_000)
        b.node.guard.resume(b.node.now_ns())
    count = len(b.statuses)
    graph.eventually(lambda: len(b.statuses) > count + 2)
    assert 'CLOCK_JUMP' not in {status.reason_name for status in b.statuses}
    assert b.node.guard.epoch == epoch


def test_ticks_that_follow_each_other_without_a_pause_leave_room_for_what_arrives(graph, bench):
    b = bench(control_rate_hz=1000.0).up()  # faster than this machine can tick
    assert b.send(travel(0.3)).accepted
    b.until(GuardStatus.HOLDING)
    assert 'STALE_JOINT_STATE' not in {status.reason_name for status in b.statuses}


def test_clients_that_pause_and_resume_all_the_time_upset_nothing(graph, bench):
    b = bench().up().moving()
    epoch = b.node.guard.epoch
    for service in ('pause', 'resume') * 5:
        assert b.call(service).success
    assert b.node.guard.epoch == epoch
    assert 'CLOCK_JUMP' not in {status.reason_name for status in b.statuses}


# The gripper


def test_the_gripper_is_told_only_of_changes_in_metres(graph, bench):
    b = bench().up()
    closing = np.where(np.arange(ROWS) < 10, 0.0, 1.0)
    assert b.send(travel(0.1), gripper=closing).accepted
    b.until(GuardStatus.HOLDING)
    assert [list(message.name) for message in b.gripper] == [['panda_finger_joint1']] * 2
    np.testing.assert_allclose([message.position[0] for message in b.gripper], [0.04, 0.0], atol=1e-9)


@pytest.mark.parametrize(('hysteresis', 'commands'), [(0.0, 32), (0.1, 10)])
def test_small_changes_of_the_gripper_are_not_sent(graph, bench, hysteresis, commands):
    b = bench().up()
    assert b.node.set_parameters([RosParameter('gripper_hysteresis', value=hysteresis)])[0].successful
    assert b.send(travel(0.1), gripper=np.linspace(0.0, 1.0, ROWS)).accepted
    b.until(GuardStatus.HOLDING)
    positions = np.array([message.position[0] for message in b.gripper])
    assert commands * 0.7 <= len(positions) <= commands
    assert (np.diff(positions) < 0).all(), 'each command is a change'


def test_a_chunk_without_a_gripper_leaves_it_alone(graph, bench):
    b = bench().up()
    assert b.send(travel(0.1)).accepted
    b.until(GuardStatus.HOLDING)
    assert b.gripper == []


# Parameters and lifecycle


def test_every_parameter_tells_what_it_does(graph, bench):
    b = bench()
    client = b.observer.create_client(DescribeParameters, 'guard/describe_parameters')
    graph.eventually(client.service_is_ready)
    future = client.call_async(DescribeParameters.Request(names=[parameter.name for parameter in PARAMETERS]))
    graph.eventually(future.done)
    for parameter, descriptor in zip(PARAMETERS, future.result().descriptors, strict=True):
        assert len(descriptor.description) > 15, parameter.name
        assert descriptor.read_only == parameter.read_only, parameter.name
        for suffix, unit in (('_s', '[s]'), ('_rad', '[rad]'), ('_hz', '[Hz]')):
            if parameter.name.endswith(suffix):
                assert unit in descriptor.description, parameter.name


def test_every_parameter_that_can_be_changed_takes_effect(graph, bench):
    changes = {
        'gripper_hysteresis': (0.5, lambda node: node.output.hysteresis == 0.5),
        'speed_scale': (0.5, lambda node: node.guard.limits.scale == 0.5),
    }
    b = bench().up()
    assert set(changes) == {parameter.name for parameter in PARAMETERS if not parameter.read_only}
    for name, (value, arrived) in changes.items():
        assert not arrived(b.node)
        assert b.node.set_parameters([RosParameter(name, value=value)])[0].successful
        assert arrived(b.node)


# By name, a value other than the default, and what it has to change in the guard.
SETTINGS = {
    'control_rate_hz': (50.0, lambda guard: guard.options.period_ns == 20_000_000),
    'start_jump_rad': (0.02, lambda guard: guard.options.checks.start_jump_rad == 0.02),
    'splice_jump_rad': (0.1, lambda guard: guard.options.checks.splice_jump_rad == 0.1),
    'chunk_max_age_s': (1.0, lambda guard: guard.options.checks.max_age_ns == 10**9),
    'slowest_pace': (0.25, lambda guard: guard.options.checks.slowest_pace == 0.25),
    'replay_from_rest': (True, lambda guard: guard.options.checks.replay_from_rest),
    'heartbeat_max_age_s': (1.0, lambda guard: guard.options.heartbeat_max_age_ns == 10**9),
    'policy_max_age_s': (1.0, lambda guard: list(guard.options.sources.values()) == [10**9]),
    'tracking_error_rad': (0.1, lambda guard: guard.options.tracking_error_rad == 0.1),
    'reset_cooldown_s': (2.0, lambda guard: guard.options.reset_cooldown_ns == 2 * 10**9),
    'dry_run': (True, lambda guard: guard.options.dry_run),
    'estop_topic': ('estop', lambda guard: guard.options.emergency_stop),
    'estop_max_age_s': (0.5, lambda guard: guard.options.emergency_stop_max_age_ns == 5 * 10**8),
    'on_stop_verdict': ('hold', lambda guard: guard.options.verdicts.on_stop == 'hold'),
    'slow_verdict_pace': (0.25, lambda guard: guard.options.verdicts.slow_pace == 0.25),
    'on_unknown_verdict': ('slow', lambda guard: guard.options.verdicts.on_unknown == 'slow'),
    'verdict_max_age_s': (1.0, lambda guard: guard.options.verdicts.max_age_ns == 10**9),
}
# Those that the guard's core has nothing to do with; tests of their own show what they do.
OF_THE_SHELL = {
    'contract',
    'gripper_interface',
    'gripper_action',
    'gripper_max_effort',
    'heed_verdicts',
    'estop_deadline_s',
    'estop_lease_s',
    'joint_states_deadline_s',
    'realtime_priority',
    'robot_description',
}


def test_every_parameter_of_the_start_reaches_the_guard(graph, bench):
    names = {parameter.name for parameter in PARAMETERS if parameter.read_only}
    assert set(SETTINGS) == names - OF_THE_SHELL
    b = bench(**{name: value for name, (value, _) in SETTINGS.items()})
    assert b.node.transition('configure')
    assert [name for name, (_, arrived) in SETTINGS.items() if not arrived(b.node.guard)] == []


@pytest.mark.parametrize('contract', ['no_such_contract', '/no/such/file.yaml'])
def test_without_a_contract_configuration_fails_by_name(graph, bench, contract):
    b = bench(contract=contract)
    assert not b.node.transition('configure')
    assert contract in b.node.last_failure
    assert b.node.state_label == 'unconfigured'


def test_without_limits_configuration_fails_and_the_guard_cannot_be_activated(graph, bench, tmp_path):
    b = bench(contract_file(tmp_path, lambda data: data['robot'].update(description='no_such_robot')))
    assert not b.node.transition('configure')
    assert 'no_such_robot' in b.node.last_failure
    assert not b.node.transition('activate')


def test_the_whole_life_can_be_lived_twice(graph, bench):
    b = bench().up()
    for _ in range(2):
        assert b.send(travel(0.05) + b.arm.position - HOME, epoch=b.epoch).accepted
        b.until(GuardStatus.HOLDING)
        assert b.node.transition('deactivate')
        assert b.node.transition('cleanup')
        assert b.node.guard is None
        b.statuses.clear()
        graph.eventually(lambda: b.chunks.get_subscription_count() == 0)
        b.up()


# With the real policy


def test_a_camera_that_stops_brings_the_arm_to_rest(graph, bench, contract, sensors, policy_bench):
    drivers = sensors(rate_hz=10.0)
    drivers.change['joint_states'] = lambda message: None  # the arm reports its own
    b, p = bench(policy_max_age_s=0.35), policy_bench(contract=str(contract))
    b.arm.policy = None  # the policy speaks for itself
    p.up()
    assert b.node.transition('configure')
    assert b.node.transition('activate')
    graph.eventually(lambda: p.node.count_subscribers('policy/chunk') >= 2)
    _, future = p.run()
    graph.eventually(lambda: any(decision.accepted for decision in b.decisions) and bool(b.arm.motions), 20.0)
    drivers.change['wrist'] = lambda message: None
    graph.eventually(lambda: p.statuses[-1].state == PolicyStatus.WAITING)
    b.until(GuardStatus.HOLDING)
    graph.eventually(b.is_at_rest)
    assert not b.arm.motions[-1].velocities[-1].any()
    assert 'wrist (stale' in p.outcome(future, 15.0).result.text


def test_a_chunk_too_fast_for_the_limits_in_force_is_played_slower_and_that_is_told(bench):
    b = bench(speed_scale=0.25, slowest_pace=0.1).up()
    decision = b.send(travel(np.array([1.0, 0, 0, 0, 0, 0, 0])))
    assert decision.accepted, decision.text
    assert 0.1 <= decision.pace < 1.0
    assert 'of its own pace' in decision.text
    b.graph.eventually(lambda: b.arm.position[0] > HOME[0] + 0.02, what='motion along the same path')
    np.testing.assert_allclose(b.arm.position[1:], HOME[1:], atol=1e-6)


def test_a_chunk_too_fast_for_the_limits_in_force_is_refused_where_it_may_not_be_slowed(bench):
    decision = bench(speed_scale=0.25, slowest_pace=1.0).up().send(travel(np.array([1.0, 0, 0, 0, 0, 0, 0])))
    assert not decision.accepted
    assert decision.reason_name == 'VELOCITY_LIMIT'
    assert np.isnan(decision.pace)


def urdf(velocity):
    """The Panda as a robot description, slower than its file."""
    chain = load_limits('panda').chain
    parts = [f'<link name="{chain.base}"/>']
    for frame in (frame for frame in chain.frames if frame.joint):
        xyz = ' '.join(str(value) for value in frame.translation)
        rpy = ' '.join(str(value) for value in Rotation.from_matrix(frame.rotation).as_euler('xyz'))
        parts.append(
            f'<link name="{frame.name}"/><joint name="{frame.joint}" type="revolute"><parent link="{frame.parent}"/>'
            f'<child link="{frame.name}"/><origin xyz="{xyz}" rpy="{rpy}"/><axis xyz="0 0 1"/>'
            f'<limit lower="-2.5" upper="3.9" velocity="{velocity}" effort="10"/></joint>'
        )
    return f'<robot name="panda">{"".join(parts)}</robot>'


def test_the_limits_of_a_robot_description_hold_as_well(graph, bench, tmp_path):
    path = tmp_path / 'panda.urdf'
    path.write_text(urdf(1.25))
    b = bench(robot_description=str(path)).up()
    np.testing.assert_array_equal(b.node.guard.limits.velocity, 1.25)
    assert b.node.guard.limits.lower[0] == -2.5


@pytest.mark.parametrize('text', [None, 'no XML', '<robot name="other"/>'])
def test_a_robot_description_that_cannot_be_used_is_refused_at_the_start(graph, bench, tmp_path, text):
    path = tmp_path / 'panda.urdf'
    if text is not None:
        path.write_text(text)
    b = bench(robot_description=str(path))
    assert not b.node.transition('configure')
    assert 'robot' in str(b.node.last_failure)
