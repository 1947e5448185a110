"""Two arms go the same way as one: a contract, rows of both, one chunk, one guard, and a gripper each."""

# ruff: noqa: F811 (fixtures are imported, and named again where they are used)

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from rclpy.parameter import Parameter as RosParameter
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from cosmos3_msgs.msg import ActionChunk, ChunkDecision, GuardStatus
from cosmos3_ros import qos
from cosmos3_ros.conversions import Pose
from cosmos3_ros.gripper_output import action_name
from cosmos3_ros.guard.kinematics import frame_poses
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.inputs import JOINT_STATES, Inputs, pose_streams
from cosmos3_ros.policy_loop import PolicyLoop, TimedChunk
from cosmos3_ros.policy_node import chunk_message, joint_state_reader
from cosmos3_ros.pose_bridge import PoseBridge
from cosmos3_ros.replay_robot import check_recording
from engine.actions import matrix_to_quaternion
from engine.contract import load_contract
from engine.errors import ContractError, InvalidInput, ObservationError
from engine.policy import Observation, PolicyChunk
from tests.ros.guard_bench import (  # noqa: F401 (fixtures)
    ARMS,
    HOME,
    ROWS,
    bench,
    contract,
    contract_file,
    contract_of_two,
    travel,
)

PAIR = load_limits('panda_pair')
DUAL = load_contract('demo_dual')
FINGERS = tuple(f'{arm}_panda_finger_joint1' for arm in ARMS)
GRIPPERS = np.column_stack([np.where(np.arange(ROWS) < 10, 0.0, 1.0), np.linspace(0.5, 0.0, ROWS)])


def both(left, right):
    return np.hstack([travel(left), travel(right)])


# From poses to joints


@pytest.fixture(scope='module')
def bridge():
    return PoseBridge(DUAL)


def poses(joints):
    """Rows [N, 14] of position and quaternion of both flanges in `base`."""
    found = []
    for number, arm in enumerate(PAIR.arms):
        columns = np.ascontiguousarray(np.atleast_2d(joints)[:, 7 * number : 7 * number + 7], np.float64)
        frame = DUAL.robot.arms[number].end_effector_frame
        positions, rotations = frame_poses(arm.chain, arm.joint_names, columns, frame)
        found.append(np.hstack([positions, matrix_to_quaternion(rotations)]))
    return np.hstack(found)


def seen(joints, **changes):
    measured = poses(joints)[0].reshape(2, 7)
    fields = {'end_effector_position': measured[:, :3], 'end_effector_quaternion': measured[:, 3:]}
    return Observation(images={}, instruction='go', joint_positions=joints, **{**fields, **changes})


def chunk(rows):
    return PolicyChunk(rows.astype(np.float32), None, 'go', 0, {'total': 0.1})


def test_each_arm_follows_its_own_poses_in_the_frame_that_both_stand_on(bridge):
    course, start = both(0.2, -0.15), np.tile(HOME, 2)
    translated = bridge.joints(chunk(np.hstack([poses(course), GRIPPERS])), seen(start)).actions
    assert translated.shape == (ROWS, 16)
    reached, wanted = poses(translated[:, :14]), poses(course)
    for first in (0, 7):
        np.testing.assert_allclose(reached[:, first : first + 3], wanted[:, first : first + 3], atol=3e-5)
    np.testing.assert_allclose(translated[:, 14:], GRIPPERS, atol=1e-6)


def test_a_pose_in_the_base_of_its_own_arm_is_brought_into_the_common_one(bridge):
    wanted = poses(np.tile(HOME, 2))[0]
    for number, (arm, side) in enumerate((('left', 0.4), ('right', -0.4))):
        expected = wanted[7 * number : 7 * number + 7]
        own = Pose(expected[:3] - [0, side, 0], expected[3:], f'{arm}_panda_link0')
        found = bridge.in_base(number, own)
        np.testing.assert_allclose(found.position, expected[:3], atol=1e-9)
        np.testing.assert_allclose(np.abs(found.quaternion @ expected[3:]), 1.0, atol=1e-9)
        assert found.frame_id == 'base'
        for frame in ('base', 'world', f'{arm}_panda_link3'):
            kept = replace(own, frame_id=frame)
            assert bridge.in_base(number, kept) is kept


def test_poses_of_arms_that_were_exchanged_are_refused_by_the_name_of_each(bridge):
    start = np.tile(HOME, 2)
    exchanged = poses(start)[0].reshape(2, 7)[::-1]
    observation = seen(start, end_effector_position=exchanged[:, :3])
    with pytest.raises(
        ObservationError, match=r'end_effector\.left: is 0\.800 m(.|\n)*end_effector\.right: is 0\.800 m'
    ):
        bridge.joints(chunk(np.hstack([poses(both(0.1, 0.1)), GRIPPERS])), observation)


def test_a_pose_out_of_reach_is_refused_by_arm_and_row(bridge):
    rows = np.hstack([poses(both(0.1, 0.1)), GRIPPERS])
    rows[4:, 7] += 3.0
    with pytest.raises(InvalidInput, match='right row 4'):
        bridge.joints(chunk(rows), seen(np.tile(HOME, 2)))


def test_a_contract_whose_arms_are_not_those_of_the_robot_file_is_refused_by_arm():
    left, right = DUAL.robot.arms
    mixed = replace(left, joints=(*left.joints[:6], right.joints[6])), replace(right, end_effector_frame='hand')
    with pytest.raises(ContractError, match=r'robot\.arms\.left\.joints') as caught:
        PoseBridge(replace(DUAL, robot=replace(DUAL.robot, arms=mixed)))
    assert 'robot.arms.right.end_effector_frame' in str(caught.value)


# What is observed, and what is sent


def test_an_observation_has_a_pose_of_each_arm_and_waits_for_both():
    inputs = Inputs(DUAL)
    now, picture = 1_000_000_000, np.zeros((4, 4, 3), np.uint8)
    for view in DUAL.views.streams:
        inputs.push(view, now, now, picture)
    left, right = pose_streams(DUAL)
    assert (left, right) == ('end_effector.left', 'end_effector.right')
    inputs.push(left, now, now, Pose(np.array([0.3, 0.4, 0.5]), np.array([1.0, 0, 0, 0]), 'base'))
    assert [missing.stream for missing in inputs.observe(now, 'go')] == [right]
    inputs.push(right, now, now, Pose(np.array([0.3, -0.4, 0.5]), np.array([0, 0, 0, 1.0]), 'base'))
    observation, _ = inputs.observe(now, 'go')
    np.testing.assert_array_equal(observation.end_effector_position, [[0.3, 0.4, 0.5], [0.3, -0.4, 0.5]])
    np.testing.assert_array_equal(observation.end_effector_quaternion, [[1, 0, 0, 0], [0, 0, 0, 1]])
    assert JOINT_STATES not in [buffer.name for buffer in inputs.buffers], 'these rows have no state'


def test_joints_of_both_arms_and_both_grippers_are_read_by_name():
    names = [*FINGERS, *DUAL.robot.joints][::-1]
    values = dict(zip(names, np.linspace(0.0, 0.04, 16), strict=True))
    message = JointState(name=names, position=list(values.values()))
    joints, closed = joint_state_reader(DUAL, 'joint_states', needs_arm=True)(message)
    np.testing.assert_allclose(joints, [values[name] for name in DUAL.robot.joints])
    np.testing.assert_allclose(closed, [1 - values[name] / 0.04 for name in FINGERS])


def test_a_chunk_of_poses_names_the_frame_of_each_arm():
    rows = np.hstack([poses(both(0.1, -0.1)), GRIPPERS])
    message = chunk_message(TimedChunk(1, 1, 1, chunk(rows), 0, 'base'), DUAL, poses=True)
    assert list(message.end_effector_frames) == ['left_panda_link8', 'right_panda_link8']
    assert (len(message.poses), message.header.frame_id) == (2 * ROWS, 'base')
    np.testing.assert_allclose(
        [message.poses[5].position.y, message.poses[5].orientation.w], rows[2, [8, 13]], atol=1e-6
    )
    assert list(message.gripper_names) == list(FINGERS)
    np.testing.assert_allclose(np.reshape(message.grippers, (ROWS, 2)), GRIPPERS, atol=1e-6)


def test_poses_in_frames_of_their_own_make_no_chunk(policy_of_two):
    """A chunk of poses has one frame: what was measured in two cannot be sent, and is not sent as if it were one."""
    dropped, sent = threading.Event(), []
    texts = []

    def on_error(text, _error):
        texts.append(text)
        dropped.set()

    inputs = Inputs(DUAL)
    loop = PolicyLoop(policy_of_two, inputs, lambda: 10**9, sent.append, on_error)
    try:
        for view in DUAL.views.streams:
            inputs.push(view, 10**9, 10**9, np.zeros((36, 64, 3), np.uint8))
        for name, frame in zip(pose_streams(DUAL), ('left_panda_link0', 'right_panda_link0'), strict=True):
            inputs.push(name, 10**9, 10**9, Pose(np.array([0.3, 0.0, 0.5]), np.array([1.0, 0, 0, 0]), frame))
        loop.begin('go')
        assert dropped.wait(20.0)
    finally:
        loop.close()
    assert "end_effector.left in 'left_panda_link0'" in texts[0]
    assert sent == []


@pytest.fixture(scope='module')
def policy_of_two(tiny_checkpoint):
    import engine

    return engine.load(tiny_checkpoint).policy(DUAL)


# The guard


@pytest.fixture
def guarded(graph, bench, contract_of_two):
    """A guard of both arms, up, and what it told each gripper."""
    b = bench(contract_of_two, arms=ARMS)
    b.told = {arm: [] for arm in ARMS}
    for arm, messages in b.told.items():
        b.observer.create_subscription(JointState, f'{arm}/gripper/command', messages.append, qos.status(1000))
    return b.up()


def test_both_arms_move_as_one_and_each_gripper_hears_of_its_own_changes_alone(graph, guarded):
    b = guarded
    assert b.send(both(0.2, -0.1), gripper=GRIPPERS).accepted, b.decisions[-1].text
    b.until(GuardStatus.HOLDING)
    graph.eventually(b.is_at_rest)
    np.testing.assert_allclose(b.arm.position, [*HOME + 0.2, *HOME - 0.1], atol=0.01)
    assert set(b.arm.motions[-1].names) == set(PAIR.joint_names), 'one trajectory for all joints'
    for arm, finger in zip(ARMS, FINGERS, strict=True):
        assert {tuple(message.name) for message in b.told[arm]} == {(finger,)}
    np.testing.assert_allclose([message.position[0] for message in b.told['left']], [0.04, 0.0], atol=1e-9)
    opening = np.array([message.position[0] for message in b.told['right']])
    assert len(opening) > 5
    assert (np.diff(opening) > 0).all()
    assert b.gripper == [], 'nothing goes to the topic of a single gripper'


@pytest.mark.parametrize(
    ('names', 'text'),
    [
        (FINGERS[:1], 'grippers missing: right_panda_finger_joint1'),
        (('panda_finger_joint1', FINGERS[1]), 'grippers unknown: panda_finger_joint1'),
    ],
)
def test_grippers_of_another_robot_are_refused_and_nothing_moves(guarded, names, text):
    decision = guarded.send(both(0.2, -0.1), gripper=GRIPPERS, gripper_names=list(names))
    assert (decision.accepted, decision.reason_name) == (False, 'CHUNK_JOINT_NAMES')
    assert text in decision.text
    assert guarded.arm.motions == []


def test_a_dry_run_previews_each_gripper_apart(graph, bench, contract_of_two):
    b = bench(contract_of_two, arms=ARMS, dry_run=True)
    told = {arm: [] for arm in ARMS}
    for arm, messages in told.items():
        b.observer.create_subscription(
            JointState, f'guard/preview/{arm}/gripper/command', messages.append, qos.status()
        )
    b.up()
    assert b.send(both(0.1, 0.1), gripper=GRIPPERS).accepted, b.decisions[-1].text
    graph.eventually(lambda: all(told.values()), what='a preview for each')
    assert [list(told[arm][0].name) for arm in ARMS] == [[finger] for finger in FINGERS]
    assert b.arm.motions == []


@pytest.mark.parametrize(
    ('pattern', 'names'),
    [
        ('gripper/gripper_cmd', ['left/gripper/gripper_cmd', 'right/gripper/gripper_cmd']),
        ('/{arm}_hand/gripper_cmd', ['/left_hand/gripper_cmd', '/right_hand/gripper_cmd']),
    ],
)
def test_the_action_of_each_gripper_has_the_name_of_its_arm(pattern, names):
    assert [action_name(pattern, arm) for arm in DUAL.robot.arms] == names
    alone = replace(DUAL.robot.arms[0], name='')
    if '{arm}' in pattern:
        with pytest.raises(InvalidInput, match='no name'):
            action_name(pattern, alone)
    else:
        assert action_name(pattern, alone) == pattern


def test_a_recording_of_one_arm_is_refused_for_two():
    with pytest.raises(InvalidInput, match='arms of contract demo_dual'):
        check_recording(None, None, DUAL)


def test_one_action_for_the_grippers_of_both_arms_is_refused(bench, contract_of_two):
    b = bench(contract_of_two, arms=ARMS, gripper_interface='gripper_command', gripper_action='/hand/gripper_cmd')
    assert not b.node.transition('configure')
    assert '{arm}' in b.node.last_failure


# The whole chain


def can_simulate() -> bool:
    try:
        from engine.evaluation.franka_scene import PANDA_PAIR
        from engine.evaluation.simulated_franka import SimulatedFranka

        robot = SimulatedFranka(image_size=(16, 16), render_views=('front',), robot=PANDA_PAIR)
        robot.render()
        robot.close()
    except Exception:
        return False
    return True


def test_the_simulated_pair_stands_where_the_robot_file_says():
    pytest.importorskip('mujoco', reason='MuJoCo is not installed')
    from engine.evaluation.franka_scene import PANDA_PAIR
    from engine.evaluation.simulated_franka import SimulatedFranka

    robot = SimulatedFranka(render_views=(), robot=PANDA_PAIR)
    assert PANDA_PAIR.joints == PAIR.joint_names == DUAL.robot.joints
    state = robot.joint_state()
    joints = np.array([state.positions[state.names.index(name)] for name in DUAL.robot.joints])
    for arm, expected in zip(ARMS, poses(joints)[0].reshape(2, 7), strict=True):
        np.testing.assert_allclose(robot.end_effector_pose(arm).position, expected[:3], atol=1e-6)
    assert {arm.chain.base for arm in PAIR.arms} == {PANDA_PAIR.base}


@pytest.mark.skipif(not can_simulate(), reason='pictures cannot be drawn here')
def test_a_policy_moves_two_simulated_arms_through_the_guard(graph, policy_bench, tmp_path):
    from cosmos3_ros.guard_node import GuardNode
    from cosmos3_ros.sim_robot import SimRobotNode

    # Everything is in this one process: on a busy machine a chunk takes many seconds, and has rows for as many.
    path = contract_file(tmp_path, lambda data: _with_patience(data, max_age_s=10.0, fps=3), 'demo_dual')

    def up(kind, **values):
        node = graph.add(kind(parameter_overrides=[RosParameter(name, value=value) for name, value in values.items()]))
        assert node.transition('configure'), node.last_failure
        assert node.transition('activate'), node.last_failure

    watch = graph.node('watch')
    heard = {name: [] for name in ('decisions', 'commands', 'joints', 'left', 'right', 'pose')}
    for kind, topic, name, profile in (
        (ChunkDecision, 'guard/decision', 'decisions', qos.status(50)),
        (JointTrajectory, 'joint_trajectory', 'commands', qos.status(1000)),
        (JointState, 'joint_states', 'joints', qos.sensor(50)),
        (JointState, 'left/gripper/command', 'left', qos.status(100)),
        (JointState, 'right/gripper/command', 'right', qos.status(100)),
        (PoseStamped, 'right/end_effector_pose', 'pose', qos.sensor(5)),
    ):
        watch.create_subscription(kind, topic, heard[name].append, profile)
    views = ['front', 'left', 'right']
    rates = {'joint_state_rate_hz': 25.0, 'image_rate_hz': 5.0}
    up(SimRobotNode, robot='panda_pair', views=views, image_height=36, image_width=64, **rates)
    patience = {'heartbeat_max_age_s': 5.0, 'policy_max_age_s': 5.0, 'chunk_max_age_s': 60.0, 'splice_jump_rad': 0.5}
    up(GuardNode, contract=str(path), dry_run=False, replay_from_rest=True, slowest_pace=0.2, **patience)
    policy = policy_bench(contract=str(path), input_timeout_s=60.0).up()
    _, outcome = policy.run()
    accepted = lambda: [decision for decision in heard['decisions'] if decision.accepted]  # noqa: E731
    graph.eventually(lambda: len(accepted()) >= 2, 90.0, 'two accepted chunks')
    start = _positions(heard['joints'][0])

    def moved(number):
        travelled = np.abs(_positions(heard['joints'][-1]) - start)[7 * number : 7 * number + 7]
        return travelled.max() > 0.02

    graph.eventually(lambda: moved(0) and moved(1) and heard['left'] and heard['right'], 60.0, 'motion of both arms')
    at_rest = {finger: heard['joints'][0].position[heard['joints'][0].name.index(finger)] for finger in FINGERS}

    def gripped(finger):
        newest = heard['joints'][-1]
        return abs(newest.position[newest.name.index(finger)] - at_rest[finger]) > 0.002

    graph.eventually(lambda: all(map(gripped, FINGERS)), 60.0, 'motion of both grippers')
    assert not outcome.done(), 'the run goes on'
    assert policy.chunks[0].action_space == ActionChunk.JOINT_POSITION
    assert list(policy.chunks[0].joint_names) == list(DUAL.robot.joints)
    assert len(policy.chunks[0].grippers) == 2 * policy.chunks[0].rows == 32
    _check_commands(heard['commands'])
    for name, finger in zip(ARMS, FINGERS, strict=True):
        assert all(list(message.name) == [finger] for message in heard[name])
        assert all(0.0 <= message.position[0] <= 0.04 for message in heard[name])
    assert heard['pose'][-1].header.frame_id == 'base'
    assert heard['pose'][-1].pose.position.y == pytest.approx(-0.4, abs=0.2)


def _check_commands(commands):
    limits = PAIR.for_joints(DUAL.robot.joints)
    for command in commands:
        assert tuple(command.joint_names) == DUAL.robot.joints
        rows = np.array([point.positions for point in command.points])
        speeds = np.array([point.velocities for point in command.points])
        assert ((rows >= limits.lower) & (rows <= limits.upper)).all()
        assert (np.abs(speeds) <= limits.velocity * (1 + 1e-6)).all()


def _with_patience(data, max_age_s, fps):
    state = data['state']
    for stream in (*data['views']['streams'].values(), state['joint_states'], *state['end_effector'].values()):
        stream['max_age_s'] = max_age_s
    data['timing']['fps'] = fps


def _positions(message):
    at = dict(zip(message.name, message.position, strict=True))
    return np.array([at[name] for name in DUAL.robot.joints])
