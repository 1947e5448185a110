"""Chunks of poses become chunks of joint positions that lead the arm through the same poses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cosmos3_ros.guard.kinematics import frame_poses
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.inverse_kinematics import InverseKinematics
from cosmos3_ros.pose_bridge import PoseBridge
from engine.actions import Poses, matrix_to_quaternion
from engine.contract import load_contract
from engine.errors import ContractError, InvalidInput, ObservationError
from engine.policy import Observation, PolicyChunk

PANDA = load_limits('panda')
HOME = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])
CONTRACT = load_contract('droid_ee_delta')


def with_frame(name):
    arm = replace(CONTRACT.robot.arms[0], end_effector_frame=name)
    return replace(CONTRACT, robot=replace(CONTRACT.robot, arms=(arm,)))


@pytest.fixture(scope='module')
def bridge() -> PoseBridge:
    return PoseBridge(CONTRACT)


def poses(joints):
    """Rows [N, 7] of position and quaternion of panda_link8."""
    positions, rotations = frame_poses(
        PANDA.chain, PANDA.joint_names, np.atleast_2d(joints).astype(float), 'panda_link8'
    )
    return np.hstack([positions, matrix_to_quaternion(rotations)])


def seen(joints=HOME, **changes):
    pose = poses(joints)[0]
    fields = {'joint_positions': joints, 'end_effector_position': pose[:3], 'end_effector_quaternion': pose[3:]}
    return Observation(images={}, instruction='go', gripper_position=0.0, **{**fields, **changes})


def chunk(joints, gripper):
    actions = np.column_stack([poses(joints), gripper]).astype(np.float32)
    return PolicyChunk(actions, None, 'go', 0, {})


def course():
    s = np.linspace(0, 1, 33)[1:, None]
    return HOME + np.array([0.3, -0.2, 0.1, 0.25, -0.3, 0.2, 0.4]) * (3 * s**2 - 2 * s**3)


def test_rows_of_poses_become_rows_of_joints_with_the_gripper_kept(bridge):
    gripper = np.linspace(0, 1, 32)
    translated = bridge.joints(chunk(course(), gripper), seen())
    assert translated.actions.shape == (32, 8)
    assert translated.actions.dtype == np.float32
    np.testing.assert_allclose(poses(translated.actions[:, :7])[:, :3], poses(course())[:, :3], atol=3e-5)
    np.testing.assert_allclose(translated.actions[:, 7], gripper, atol=1e-6)


def test_a_pose_of_another_base_or_tool_is_refused(bridge):
    elsewhere = seen(end_effector_position=poses(HOME)[0, :3] + [0.0, 0.0, 0.1034])
    with pytest.raises(ObservationError, match=r'0\.103 m .* publish it in panda_link0'):
        bridge.joints(chunk(course(), np.zeros(32)), elsewhere)


def test_a_pose_out_of_reach_is_refused_by_row(bridge):
    far = chunk(course(), np.zeros(32))
    far.actions[5:, 0] += 3.0
    with pytest.raises(InvalidInput, match='row 5'):
        bridge.joints(far, seen())


@pytest.mark.parametrize(
    ('changed', 'text'),
    [
        (replace(CONTRACT, state=replace(CONTRACT.state, joint_states=None)), 'joint_states'),
        (with_frame('flange'), 'flange'),
    ],
)
def test_a_contract_that_cannot_be_bridged_is_refused_with_the_way_out(changed, text):
    with pytest.raises(ContractError, match=text) as caught:
        PoseBridge(changed)
    assert 'end_effector_chunks' in str(caught.value)


def test_the_recorded_poses_of_a_whole_droid_episode_can_be_followed_by_the_joints_of_a_panda(shared_data):
    pandas = pytest.importorskip('pandas')
    table = pandas.read_parquet(shared_data / 'droid' / 'episode.parquet')
    recorded = np.stack(table['observation.state.cartesian_position'].to_numpy())
    path = Poses.from_rpy(recorded[:, :3], recorded[:, 3:])
    positions, rotations = path.position, path.rotation
    arm = InverseKinematics(PANDA.chain, PANDA.joint_names, 'panda_link8')
    start = arm.solve(positions[:1], rotations[:1], HOME)[0]
    joints = arm.solve(positions, rotations, start)
    np.testing.assert_allclose(poses(joints)[:, :3], positions, atol=2e-5)
    assert (joints > PANDA.lower).all()
    assert (joints < PANDA.upper).all()
    assert (np.abs(np.diff(joints, axis=0)) * 15 < PANDA.velocity).all(), 'as smooth as the motion that was recorded'
