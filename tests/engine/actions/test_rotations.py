"""Rotations agree with SciPy, survive round trips, and name the rows they cannot use."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from engine.actions import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_quaternion,
    matrix_to_rot6d,
    matrix_to_rpy,
    project_to_so3,
    quaternion_to_matrix,
    rot6d_to_matrix,
    rotation_distance,
    rpy_to_matrix,
)
from engine.errors import InvalidInput

EXACT = 1e-12
angles = st.floats(-np.pi, np.pi)
vectors = arrays(np.float64, (4, 3), elements=st.floats(-1.8, 1.8))
quaternions = arrays(np.float64, (5, 4), elements=st.floats(-1, 1)).filter(
    lambda q: bool((np.linalg.norm(q, axis=-1) > 0.1).all())
)


def random_rotations(count: int = 64, seed: int = 0) -> np.ndarray:
    return Rotation.random(count, random_state=seed).as_matrix()


@given(quaternions)
def test_quaternions_make_the_matrices_of_scipy(q):
    np.testing.assert_allclose(quaternion_to_matrix(q), Rotation.from_quat(q).as_matrix(), atol=EXACT)


@given(quaternions)
def test_a_quaternion_comes_back_up_to_its_sign_and_length_with_w_not_negative(q):
    unit = q / np.linalg.norm(q, axis=-1, keepdims=True)
    back = matrix_to_quaternion(quaternion_to_matrix(q))
    assert (back[:, 3] >= 0).all()
    np.testing.assert_allclose(np.abs(np.sum(back * unit, axis=-1)), 1, atol=EXACT)


@pytest.mark.parametrize('axis', [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [-1, 2, -3]])
def test_half_turns_keep_their_axis_through_a_quaternion(axis):
    unit = np.array(axis) / np.linalg.norm(axis)
    q = matrix_to_quaternion(axis_angle_to_matrix(np.pi * unit))
    assert abs(q[:3] @ unit) == pytest.approx(1, abs=EXACT)


@given(arrays(np.float64, (6, 3), elements=angles))
def test_roll_pitch_yaw_are_extrinsic_xyz_as_in_scipy(rpy):
    np.testing.assert_allclose(rpy_to_matrix(rpy), Rotation.from_euler('xyz', rpy).as_matrix(), atol=EXACT)


@given(arrays(np.float64, (6, 3), elements=angles))
def test_roll_pitch_yaw_read_from_a_matrix_make_the_same_matrix(rpy):
    matrix = rpy_to_matrix(rpy)
    again = matrix_to_rpy(matrix)
    assert (np.abs(again[:, 1]) <= np.pi / 2).all()
    np.testing.assert_allclose(rpy_to_matrix(again), matrix, atol=5e-6)


@pytest.mark.parametrize('pitch', [np.pi / 2, -np.pi / 2])
@given(roll=angles, yaw=angles)
def test_at_the_ends_of_pitch_the_turn_is_kept_and_yaw_is_zero(pitch, roll, yaw):
    matrix = rpy_to_matrix([roll, pitch, yaw])
    again = matrix_to_rpy(matrix)
    assert again[2] == 0
    assert rotation_distance(rpy_to_matrix(again), matrix) < 1e-7


@given(vectors)
def test_axis_angles_make_the_matrices_of_scipy(vector):
    np.testing.assert_allclose(axis_angle_to_matrix(vector), Rotation.from_rotvec(vector).as_matrix(), atol=EXACT)


@given(vectors)
def test_an_axis_angle_below_half_a_turn_comes_back(vector):
    shorter = vector * np.minimum(1, 3.1 / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), 1e-300))
    np.testing.assert_allclose(matrix_to_axis_angle(axis_angle_to_matrix(shorter)), shorter, atol=1e-10)


def test_no_turn_is_an_axis_angle_of_zero():
    np.testing.assert_array_equal(matrix_to_axis_angle(np.eye(3)), np.zeros(3))


def test_rot6d_is_the_first_column_then_the_second():
    matrix = np.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(matrix_to_rot6d(matrix), [0, 3, 6, 1, 4, 7])
    np.testing.assert_array_equal(matrix_to_rot6d(np.eye(3)), [1, 0, 0, 0, 1, 0])


@given(quaternions)
def test_a_rotation_survives_rot6d(q):
    matrix = quaternion_to_matrix(q)
    np.testing.assert_allclose(rot6d_to_matrix(matrix_to_rot6d(matrix)), matrix, atol=EXACT)


@given(arrays(np.float64, (3, 6), elements=st.floats(-2, 2)))
def test_whatever_a_network_predicts_becomes_a_rotation_or_is_refused(predicted):
    try:
        matrix = rot6d_to_matrix(predicted)
    except InvalidInput:
        return
    np.testing.assert_allclose(np.swapaxes(matrix, -1, -2) @ matrix, np.broadcast_to(np.eye(3), (3, 3, 3)), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(matrix), 1, atol=1e-9)


def test_decoding_treats_both_columns_alike_where_gram_schmidt_favours_the_first():
    """Unit columns 80 degrees apart are both moved by 5 degrees."""
    ten = np.deg2rad(10)
    matrix = rot6d_to_matrix([1, 0, 0, np.sin(ten), np.cos(ten), 0])
    np.testing.assert_allclose(matrix_to_rpy(matrix), [0, 0, -ten / 2], atol=EXACT)


def test_decoding_takes_the_cross_product_as_it_is_before_projecting():
    """The reference does not rescale the third column: the projection of that very triple is the answer."""
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(2, 40, 3))
    triple = np.stack([first, second, np.cross(first, second)], axis=-1)
    left, _, right = np.linalg.svd(triple)
    np.testing.assert_allclose(rot6d_to_matrix(np.hstack([first, second])), left @ right, atol=1e-9)


@pytest.mark.parametrize(
    'bad',
    [[0, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0], [1, 2, 3, 2, 4, 6], [1, 2, 3, -1, -2, -3], [0] * 6],
    ids=['first zero', 'second zero', 'parallel', 'opposite', 'all zero'],
)
def test_columns_that_determine_no_rotation_are_refused_by_row(bad):
    rows = np.tile([1.0, 0, 0, 0, 1, 0], (4, 1))
    rows[2] = bad
    with pytest.raises(InvalidInput, match=r'rot6d\[2\]: determines no rotation') as caught:
        rot6d_to_matrix(rows)
    assert len(caught.value.problems) == 1


def test_every_row_that_is_not_finite_is_named():
    rows = np.tile([1.0, 0, 0, 0, 1, 0], (3, 2, 1))
    rows[0, 1, 3] = np.nan
    rows[2, 0, 0] = np.inf
    with pytest.raises(InvalidInput) as caught:
        rot6d_to_matrix(rows)
    assert [problem.where for problem in caught.value.problems] == ['rot6d[0, 1]', 'rot6d[2, 0]']


def test_a_quaternion_without_length_is_refused_by_row():
    with pytest.raises(InvalidInput, match=r'quaternion\[1\]: has no length'):
        quaternion_to_matrix([[0, 0, 0, 1], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ('convert', 'shape'),
    [
        (rot6d_to_matrix, (4,)),
        (quaternion_to_matrix, (3,)),
        (rpy_to_matrix, (4,)),
        (axis_angle_to_matrix, (2, 2)),
        (matrix_to_rot6d, (3,)),
        (matrix_to_quaternion, (3, 4)),
        (project_to_so3, (9,)),
    ],
)
def test_another_shape_is_refused_with_the_shape_that_is_wanted(convert, shape):
    with pytest.raises(InvalidInput, match=r'wrong shape, got .*, allowed: \[\.\.\., '):
        convert(np.ones(shape))


def test_words_are_refused():
    with pytest.raises(InvalidInput, match='not an array of numbers'):
        quaternion_to_matrix('upright')


def test_the_projection_leaves_rotations_alone_and_removes_noise():
    exact = random_rotations()
    np.testing.assert_allclose(project_to_so3(exact), exact, atol=EXACT)
    noisy = exact + np.random.default_rng(0).normal(scale=1e-4, size=exact.shape)
    assert rotation_distance(project_to_so3(noisy), exact).max() < 1e-3


def test_the_projection_of_a_reflection_is_a_proper_rotation_and_the_nearest_one():
    flipped = np.diag([1.0, 1.0, -0.2])
    np.testing.assert_allclose(project_to_so3(flipped), np.eye(3), atol=EXACT)


def test_a_matrix_of_rank_one_is_refused():
    with pytest.raises(InvalidInput, match='determines no rotation'):
        project_to_so3(np.outer([1, 2, 3], [1, 0, 0]))


@given(quaternions, quaternions)
def test_the_distance_is_the_angle_of_scipy(p, q):
    ours = rotation_distance(quaternion_to_matrix(p), quaternion_to_matrix(q))
    theirs = (Rotation.from_quat(p).inv() * Rotation.from_quat(q)).magnitude()
    np.testing.assert_allclose(ours, theirs, atol=1e-7)


@pytest.mark.parametrize('angle', [0.0, 1e-9, 1e-6, 1e-3, 1.0, np.pi - 1e-6, np.pi])
def test_the_distance_is_accurate_at_both_ends(angle):
    turn = axis_angle_to_matrix(angle * np.array([0.6, 0, 0.8]))
    assert rotation_distance(np.eye(3), turn) == pytest.approx(angle, rel=1e-6, abs=1e-12)


def test_leading_dimensions_are_kept_and_may_be_empty():
    assert rot6d_to_matrix(np.tile([1.0, 0, 0, 0, 1, 0], (2, 3, 1))).shape == (2, 3, 3, 3)
    assert rot6d_to_matrix(np.zeros((0, 6))).shape == (0, 3, 3)
    assert quaternion_to_matrix([0, 0, 0, 1]).shape == (3, 3)
    assert matrix_to_rpy(random_rotations(6).reshape(2, 3, 3, 3)).shape == (2, 3, 3)


def test_single_precision_in_is_double_precision_out():
    assert matrix_to_rot6d(np.eye(3, dtype=np.float32)).dtype == np.float64
