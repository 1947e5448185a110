"""Poses of the end effector become joint positions that lead there, smoothly and near to where the arm is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cosmos3_ros.guard.kinematics import frame_poses
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.inverse_kinematics import InverseKinematics
from engine.errors import InvalidInput

PANDA = load_limits('panda')
HOME = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])
FRAME = 'panda_link8'


@pytest.fixture(scope='module')
def arm():
    return InverseKinematics(PANDA.chain, PANDA.joint_names, FRAME)


def poses(joints):
    return frame_poses(PANDA.chain, PANDA.joint_names, np.atleast_2d(joints), FRAME)


def course(seed, rows=32):
    """A smooth motion of all joints from HOME."""
    rng = np.random.default_rng(seed)
    s = np.linspace(0, 1, rows)[:, None]
    return HOME + rng.uniform(-0.4, 0.4, 7) * (3 * s**2 - 2 * s**3)


def test_the_pose_is_that_of_the_forward_kinematics(arm):
    position, rotation = arm.pose(HOME)
    expected_position, expected_rotation = poses(HOME)
    np.testing.assert_allclose(position, expected_position[0], atol=1e-12)
    np.testing.assert_allclose(rotation, expected_rotation[0], atol=1e-12)


@pytest.mark.parametrize('seed', range(8))
def test_a_row_of_poses_is_reached_in_every_row(arm, seed):
    positions, rotations = poses(course(seed))
    joints = arm.solve(positions, rotations, HOME)
    reached, turned = poses(joints)
    np.testing.assert_allclose(reached, positions, atol=2e-5)
    angles = Rotation.from_matrix(turned @ rotations.transpose(0, 2, 1)).magnitude()
    assert angles.max() < 2e-4


@pytest.mark.parametrize('seed', range(4))
def test_rows_are_as_smooth_as_the_poses_and_the_elbow_stays(arm, seed):
    wanted = course(seed)
    joints = arm.solve(*poses(wanted), HOME)
    assert np.abs(joints[0] - HOME).max() < 1e-3
    assert np.abs(np.diff(joints, axis=0)).max() < 2 * np.abs(np.diff(wanted, axis=0)).max()
    assert np.abs(np.diff(joints, 2, axis=0)).max() < 0.01


def test_standing_still_stays_exactly_where_the_arm_is(arm):
    positions, rotations = poses(np.repeat(HOME[None], 5, axis=0))
    np.testing.assert_array_equal(arm.solve(positions, rotations, HOME), np.repeat(HOME[None], 5, axis=0))


def test_a_pose_out_of_reach_names_the_row_and_what_is_left(arm):
    positions, rotations = poses(course(0))
    positions[7:] += [2.0, 0.0, 0.0]
    with pytest.raises(InvalidInput, match=r'row 7.*cannot be reached'):
        arm.solve(positions, rotations, HOME)


def test_joints_may_come_in_another_order():
    names = PANDA.joint_names[::-1]
    arm = InverseKinematics(PANDA.chain, names, FRAME)
    positions, rotations = poses(course(3))
    joints = arm.solve(positions, rotations, HOME[::-1])
    np.testing.assert_allclose(poses(joints[:, ::-1])[0], positions, atol=2e-5)


@pytest.mark.parametrize(
    ('joints', 'frame', 'text'),
    [
        (PANDA.joint_names, 'nowhere', 'not in the kinematics'),
        (PANDA.joint_names, 'panda_link3', 'not moved by all joints'),
        (PANDA.joint_names[:6], FRAME, 'differ from those'),
    ],
)
def test_what_does_not_fit_the_arm_is_refused(joints, frame, text):
    with pytest.raises(InvalidInput, match=text):
        InverseKinematics(PANDA.chain, joints, frame)
