"""Rotations: matrices inside, six numbers for the network, quaternions and angles for everybody else.

All functions take any leading dimensions and work in float64. A matrix acts on column vectors: `R @ v`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from engine.actions.arrays import Floats, as_floats, refuse_rows

_SMALLEST = 1e-6
"""Below this a direction is noise: lengths of rot6d columns and quaternions, sine of the angle between columns."""


def project_to_so3(matrices: ArrayLike) -> Floats:
    """Return the proper rotation nearest to each matrix (Frobenius norm, determinant +1), by SVD.

    Args:
        matrices: Shape [..., 3, 3].

    Raises:
        InvalidInput: A matrix has rank below two, so no nearest rotation is singled out.
    """
    array = as_floats(matrices, 'matrices', (3, 3))
    left, scales, right = np.linalg.svd(array)
    flat = scales[..., 1] <= _SMALLEST * scales[..., 0]
    refuse_rows(flat, array, 'matrices', what='determines no rotation', allowed='a matrix of rank 2 or 3')
    # The last singular direction carries the reflection, if there is one.
    left[..., :, -1] *= np.sign(np.linalg.det(left) * np.linalg.det(right))[..., None]
    return np.asarray(left @ right)


def matrix_to_rot6d(rotation: ArrayLike) -> Floats:
    """Return the first two *columns* of each matrix, one after the other: [..., 6]. Identity is [1,0,0,0,1,0].

    Source: Zhou et al., arXiv 1812.07035; the column order is that of NVIDIA cosmos-framework, `pose_utils.py`.
    """
    array = as_floats(rotation, 'rotation', (3, 3))
    return np.concatenate([array[..., :, 0], array[..., :, 1]], axis=-1)


def rot6d_to_matrix(rot6d: ArrayLike) -> Floats:
    """Return the rotation that six predicted numbers stand for: [..., 3, 3].

    The third column is the cross product of the first two, then the triple is projected to SO(3) by SVD. That is the
    decoding of NVIDIA cosmos-framework; Gram-Schmidt would favour the first column and give other rotations.

    Args:
        rot6d: Shape [..., 6]: first column, second column. They need be neither unit nor orthogonal.

    Raises:
        InvalidInput: Not finite, or columns that are zero or parallel; each such row is named.
    """
    array = as_floats(rot6d, 'rot6d', (6,))
    first, second = array[..., :3], array[..., 3:]
    third = np.cross(first, second)
    lengths = np.linalg.norm(first, axis=-1), np.linalg.norm(second, axis=-1)
    zero = np.minimum(*lengths) <= _SMALLEST
    parallel = np.linalg.norm(third, axis=-1) <= _SMALLEST * lengths[0] * lengths[1]
    allowed = 'two columns, neither zero nor parallel'
    refuse_rows(zero | parallel, array, 'rot6d', what='determines no rotation', allowed=allowed)
    # The determinant is |first x second|^2 > 0, so the projection can never have to undo a reflection here.
    # Scaling the third column to the size of the others would move the result away from the reference's.
    return project_to_so3(np.stack([first, second, third], axis=-1))


def quaternion_to_matrix(quaternion: ArrayLike) -> Floats:
    """Return [..., 3, 3] from quaternions [..., 4] in x, y, z, w order, normalised first.

    Raises:
        InvalidInput: A quaternion is not finite or has no length; each such row is named.
    """
    array = as_floats(quaternion, 'quaternion', (4,))
    length = np.linalg.norm(array, axis=-1)
    allowed = 'four numbers that are not all zero'
    refuse_rows(length <= _SMALLEST, array, 'quaternion', what='has no length', allowed=allowed)
    x, y, z, w = np.moveaxis(array / length[..., None], -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_quaternion(rotation: ArrayLike) -> Floats:
    """Return unit quaternions [..., 4] in x, y, z, w order with w >= 0.

    The matrix determines 4 q qT, of which the row with the largest diagonal entry gives q without cancellation
    (Shepperd's method, Journal of Guidance and Control 1(3), 1978).
    """
    r = as_floats(rotation, 'rotation', (3, 3))
    xx, yy, zz = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    xy, xz, yz = r[..., 0, 1] + r[..., 1, 0], r[..., 0, 2] + r[..., 2, 0], r[..., 1, 2] + r[..., 2, 1]
    xw, yw, zw = r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]
    outer = [
        [1 + xx - yy - zz, xy, xz, xw],
        [xy, 1 - xx + yy - zz, yz, yw],
        [xz, yz, 1 - xx - yy + zz, zw],
        [xw, yw, zw, 1 + xx + yy + zz],
    ]
    square = np.stack([np.stack(row, axis=-1) for row in outer], axis=-2)
    best = np.argmax(np.diagonal(square, axis1=-2, axis2=-1), axis=-1)
    q = np.take_along_axis(square, best[..., None, None], axis=-2)[..., 0, :]
    q /= np.linalg.norm(q, axis=-1, keepdims=True)
    return np.asarray(np.where(q[..., 3:] < 0, -q, q))


def rpy_to_matrix(rpy: ArrayLike) -> Floats:
    """Return [..., 3, 3] from roll, pitch, yaw [..., 3] in rad: fixed axes x, then y, then z (URDF, tf2, DROID)."""
    roll, pitch, yaw = np.moveaxis(as_floats(rpy, 'rpy', (3,)), -1, 0)
    about_x, about_y, about_z = (
        axis_angle_to_matrix(angle[..., None] * axis) for angle, axis in zip((roll, pitch, yaw), np.eye(3), strict=True)
    )
    return np.asarray(about_z @ about_y @ about_x)


def matrix_to_rpy(rotation: ArrayLike) -> Floats:
    """Return roll, pitch, yaw [..., 3] in rad, pitch within [-pi/2, pi/2].

    At the ends of pitch, where roll and yaw turn about one axis, yaw is 0.
    """
    r = as_floats(rotation, 'rotation', (3, 3))
    level = np.hypot(r[..., 0, 0], r[..., 1, 0])
    pitch = np.arctan2(-r[..., 2, 0], level)
    upright = level <= _SMALLEST
    roll_upright = np.arctan2(-np.sign(r[..., 2, 0]) * r[..., 0, 1], r[..., 1, 1])
    roll = np.where(upright, roll_upright, np.arctan2(r[..., 2, 1], r[..., 2, 2]))
    yaw = np.where(upright, 0.0, np.arctan2(r[..., 1, 0], r[..., 0, 0]))
    return np.stack([roll, pitch, yaw], axis=-1)


def axis_angle_to_matrix(axis_angle: ArrayLike) -> Floats:
    """Return [..., 3, 3] from rotation vectors [..., 3]: direction is the axis, length the angle in rad (Rodrigues)."""
    vector = as_floats(axis_angle, 'axis_angle', (3,))
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vector, -1, 0)
    zero = np.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    cross = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
    # numpy's sinc is sin(pi t)/(pi t): both quotients stay exact at angle 0.
    return np.asarray(
        np.eye(3) + np.sinc(angle / np.pi) * cross + 0.5 * np.sinc(angle / (2 * np.pi)) ** 2 * (cross @ cross)
    )


def matrix_to_axis_angle(rotation: ArrayLike) -> Floats:
    """Return rotation vectors [..., 3] in rad, of length at most pi."""
    q = matrix_to_quaternion(rotation)
    sine = np.linalg.norm(q[..., :3], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, q[..., 3:])
    per_sine = np.divide(angle, sine, out=np.full_like(sine, 2.0), where=sine > 0)
    return np.asarray(q[..., :3] * per_sine)


def rotation_distance(first: ArrayLike, second: ArrayLike) -> Floats:
    """Return the angle in rad, [...], of the rotation that takes `first` to `second` (both [..., 3, 3]).

    Half angles keep full precision at both ends, where the arc cosine of the trace loses half of the digits.
    """
    a, b = as_floats(first, 'first', (3, 3)), as_floats(second, 'second', (3, 3))
    sine = np.linalg.norm(a - b, axis=(-2, -1)) / np.sqrt(8)
    trace = np.sum(a * b, axis=(-2, -1))
    return np.asarray(2 * np.arctan2(sine, np.sqrt(np.maximum(1 + trace, 0)) / 2))
