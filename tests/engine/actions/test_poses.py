"""Poses obey the group, and both ways of writing motion lead back to the path they came from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from engine.actions import (
    Poses,
    anchored_deltas,
    compose,
    framewise_deltas,
    integrate_anchored,
    integrate_framewise,
    inverse,
    rotation_distance,
)
from engine.errors import InvalidInput

EXACT = 1e-12
WAYS = [(framewise_deltas, integrate_framewise), (anchored_deltas, integrate_anchored)]


def random_poses(*shape: int, seed: int = 0) -> Poses:
    rng = np.random.default_rng(seed)
    quaternion = rng.normal(size=(*shape, 4))
    return Poses.from_quaternion(rng.normal(size=(*shape, 3)), quaternion)


def assert_same(actual: Poses, expected: Poses, metres: float = EXACT, radians: float = 1e-11) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.position, expected.position, rtol=0, atol=metres)
    assert rotation_distance(actual.rotation, expected.rotation).max(initial=0) <= radians


def homogeneous(poses: Poses) -> np.ndarray:
    matrix = np.zeros((*poses.shape, 4, 4))
    matrix[..., :3, :3], matrix[..., :3, 3], matrix[..., 3, 3] = poses.rotation, poses.position, 1
    return matrix


def test_composition_is_the_product_of_homogeneous_matrices():
    a, b = random_poses(7, seed=1), random_poses(7, seed=2)
    np.testing.assert_allclose(homogeneous(compose(a, b)), homogeneous(a) @ homogeneous(b), atol=EXACT)


def test_composition_broadcasts_leading_dimensions():
    path, fixed = random_poses(5, 2), random_poses(2, seed=3)
    assert_same(compose(path, fixed)[3], compose(path[3], fixed))
    assert compose(random_poses(), path).shape == (5, 2)


def test_a_pose_times_its_inverse_is_the_identity_on_either_side():
    poses = random_poses(4, 3)
    assert_same(compose(poses, inverse(poses)), Poses.identity((4, 3)))
    assert_same(compose(inverse(poses), poses), Poses.identity((4, 3)))


def test_composition_is_associative():
    a, b, c = (random_poses(5, seed=seed) for seed in range(3))
    assert_same(compose(compose(a, b), c), compose(a, compose(b, c)))


def test_framewise_deltas_are_the_inverse_of_a_pose_times_the_next():
    poses = random_poses(6)
    matrices = homogeneous(poses)
    expected = np.linalg.inv(matrices[:-1]) @ matrices[1:]
    np.testing.assert_allclose(homogeneous(framewise_deltas(poses)), expected, atol=EXACT)


def test_anchored_deltas_are_the_inverse_of_the_first_pose_times_each_later_one():
    poses = random_poses(6)
    matrices = homogeneous(poses)
    expected = np.linalg.inv(matrices[0]) @ matrices[1:]
    np.testing.assert_allclose(homogeneous(anchored_deltas(poses)), expected, atol=EXACT)


@pytest.mark.parametrize(('deltas', 'integrate'), WAYS)
@given(length=st.integers(2, 40), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_integrating_the_deltas_of_a_path_gives_the_path(deltas, integrate, length, seed):
    poses = random_poses(length, seed=seed)
    assert_same(integrate(poses[0], deltas(poses)), poses, metres=1e-11)


@pytest.mark.parametrize(('deltas', 'integrate'), WAYS)
def test_several_bodies_travel_side_by_side(deltas, integrate):
    poses = random_poses(9, 3)
    together = deltas(poses)
    alone = deltas(Poses(poses.position[:, 1], poses.rotation[:, 1]))
    np.testing.assert_allclose(together.position[:, 1], alone.position, atol=EXACT)
    assert_same(integrate(poses[0], together), poses)


def test_framewise_integration_is_the_running_product_one_by_one():
    start, deltas = random_poses(), random_poses(23, seed=5)
    expected = [homogeneous(start)]
    for delta in homogeneous(deltas):
        expected.append(expected[-1] @ delta)
    np.testing.assert_allclose(homogeneous(integrate_framewise(start, deltas)), expected, atol=1e-11)


def test_ten_thousand_rows_in_single_precision_stay_rotations():
    turn = Rotation.from_rotvec([0.01, -0.02, 0.015]).as_matrix().astype(np.float32)
    deltas = Poses(np.full((10_000, 3), 1e-3), np.broadcast_to(turn, (10_000, 3, 3)))
    path = integrate_framewise(Poses.identity(), deltas)
    skew = np.swapaxes(path.rotation, -1, -2) @ path.rotation - np.eye(3)
    assert np.abs(skew).max() < 1e-13


def test_a_path_of_one_turn_in_steps_comes_back_to_its_orientation():
    step = Rotation.from_euler('z', 2 * np.pi / 360).as_matrix()
    deltas = Poses(np.tile([0.01, 0, 0], (360, 1)), np.broadcast_to(step, (360, 3, 3)))
    assert_same(integrate_framewise(Poses.identity(), deltas)[-1], Poses.identity(), metres=1e-10)


def test_no_deltas_leave_the_start():
    start = random_poses()
    empty = Poses(np.zeros((0, 3)), np.zeros((0, 3, 3)))
    assert_same(integrate_framewise(start, empty), start.reshape((1,)))


@pytest.mark.parametrize('deltas', [framewise_deltas, anchored_deltas])
@pytest.mark.parametrize('poses', [Poses.identity(), Poses.identity((1,))])
def test_fewer_than_two_poses_are_no_path(deltas, poses):
    with pytest.raises(InvalidInput, match='2 poses or more'):
        deltas(poses)


def test_a_start_for_another_number_of_bodies_is_refused():
    with pytest.raises(InvalidInput, match='does not fit the deltas'):
        integrate_framewise(Poses.identity(), Poses.identity((4, 2)))


def test_a_matrix_that_is_no_rotation_is_refused_by_row():
    rotation = np.tile(np.eye(3), (3, 1, 1))
    rotation[1] *= 1.01
    rotation[2, 2, 2] = -1
    with pytest.raises(InvalidInput) as caught:
        Poses(np.zeros((3, 3)), rotation)
    assert [problem.where for problem in caught.value.problems] == ['rotation[1]', 'rotation[2]']


def test_positions_and_rotations_of_different_length_are_refused():
    with pytest.raises(InvalidInput, match='other rows'):
        Poses(np.zeros((2, 3)), np.eye(3))


def test_poses_cannot_be_changed_and_do_not_change_with_their_source():
    source = np.zeros(3)
    pose = Poses(source, np.eye(3))
    source[0] = 1
    assert pose.position[0] == 0
    with pytest.raises(ValueError, match='read-only'):
        pose.rotation[0, 0] = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        pose.position = source


def test_quaternions_and_angles_read_back_as_they_were_given():
    rpy = np.array([[0.1, -0.2, 3.0], [-3.0, 1.2, 0.5]])
    np.testing.assert_allclose(Poses.from_rpy(np.zeros((2, 3)), rpy).rpy, rpy, atol=EXACT)
    quaternion = Rotation.from_euler('xyz', rpy).as_quat(canonical=True)
    np.testing.assert_allclose(Poses.from_quaternion(np.zeros((2, 3)), quaternion).quaternion, quaternion, atol=EXACT)


def test_length_and_slices_run_along_the_first_dimension():
    poses = random_poses(5, 2)
    assert len(poses) == 5
    assert poses[1:3].shape == (2, 2)
    assert poses[0].shape == (2,)
