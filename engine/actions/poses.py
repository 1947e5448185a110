"""Poses in SE(3) and the two ways the model speaks of motion: from frame to frame, or from one anchor.

Convention "framewise" (NVIDIA cosmos-framework: backward_framewise): delta_i = inverse(T_i) T_{i+1}.
Convention "anchored" (backward_anchored): delta_i = inverse(T_0) T_{i+1}.
Trajectories run along the first leading dimension; further leading dimensions (arms, batch) are carried along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from engine.actions.arrays import Floats, as_floats, refuse_rows
from engine.actions.rotations import (
    matrix_to_quaternion,
    matrix_to_rpy,
    project_to_so3,
    quaternion_to_matrix,
    rpy_to_matrix,
)
from engine.errors import InvalidInput, Problem

_ORTHONORMAL = 1e-4
"""How far R^T R may be from the identity: wide enough for float32 and for printed matrices, not for mistakes."""


@dataclass(frozen=True, eq=False)
class Poses:
    """Rigid transforms that take coordinates of the posed frame to coordinates of the reference frame.

    Attributes:
        position: Metres, [..., 3], in the reference frame; read-only.
        rotation: Rotation matrices, [..., 3, 3]; read-only.

    Raises:
        InvalidInput: Leading shapes differ, values are not finite, or a matrix is not a rotation (each is named).
    """

    position: Floats
    rotation: Floats

    def __post_init__(self) -> None:
        position = as_floats(self.position, 'position', (3,)).copy()
        rotation = as_floats(self.rotation, 'rotation', (3, 3)).copy()
        if position.shape[:-1] != rotation.shape[:-2]:
            allowed = f'{rotation.shape[:-2]}, as of the rotations'
            raise InvalidInput('poses', [Problem('position', 'has other rows', str(position.shape[:-1]), allowed)])
        skew = np.abs(np.swapaxes(rotation, -1, -2) @ rotation - np.eye(3)).max(axis=(-2, -1), initial=0.0)
        bad = (skew > _ORTHONORMAL) | (np.linalg.det(rotation) < 0)
        allowed = 'orthonormal columns, determinant +1'
        refuse_rows(bad, rotation, 'rotation', what='is no rotation', allowed=allowed, remedy='use project_to_so3')
        for name, array in (('position', position), ('rotation', rotation)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @classmethod
    def from_quaternion(cls, position: ArrayLike, quaternion: ArrayLike) -> Self:
        """Build from positions [..., 3] in m and quaternions [..., 4] in x, y, z, w order."""
        return cls(as_floats(position, 'position', (3,)), quaternion_to_matrix(quaternion))

    @classmethod
    def from_rpy(cls, position: ArrayLike, rpy: ArrayLike) -> Self:
        """Build from positions [..., 3] in m and roll, pitch, yaw [..., 3] in rad about fixed axes (URDF, DROID)."""
        return cls(as_floats(position, 'position', (3,)), rpy_to_matrix(rpy))

    @classmethod
    def identity(cls, shape: tuple[int, ...] = ()) -> Self:
        """Build identities of leading shape `shape`."""
        return cls(np.zeros((*shape, 3)), np.broadcast_to(np.eye(3), (*shape, 3, 3)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Leading shape."""
        return self.position.shape[:-1]

    @property
    def quaternion(self) -> Floats:
        """Unit quaternions [..., 4], x, y, z, w, with w >= 0."""
        return matrix_to_quaternion(self.rotation)

    @property
    def rpy(self) -> Floats:
        """Roll, pitch, yaw [..., 3] in rad about fixed axes."""
        return matrix_to_rpy(self.rotation)

    def __len__(self) -> int:
        return len(self.position) if self.shape else 0

    def __getitem__(self, index: int | slice) -> Poses:
        """Return some of the poses along the first leading dimension."""
        return Poses(self.position[index], self.rotation[index])

    def reshape(self, shape: tuple[int, ...]) -> Poses:
        """Return the same poses under another leading shape."""
        return Poses(self.position.reshape((*shape, 3)), self.rotation.reshape((*shape, 3, 3)))


def compose(first: Poses, second: Poses) -> Poses:
    """Return `first` times `second`, which is expressed in the frame that `first` poses. Leading shapes broadcast."""
    position = first.position + (first.rotation @ second.position[..., None])[..., 0]
    rotation = first.rotation @ second.rotation
    return Poses(np.broadcast_to(position, (*rotation.shape[:-2], 3)), rotation)


def inverse(poses: Poses) -> Poses:
    """Return the inverse transforms."""
    transposed = np.swapaxes(poses.rotation, -1, -2)
    return Poses(-(transposed @ poses.position[..., None])[..., 0], transposed)


def framewise_deltas(poses: Poses) -> Poses:
    """Return inverse(T_i) T_{i+1}: N deltas, each in the frame of the pose before it, from N + 1 poses."""
    _need_path(poses)
    return compose(inverse(poses[:-1]), poses[1:])


def anchored_deltas(poses: Poses) -> Poses:
    """Return inverse(T_0) T_{i+1}: N deltas, all in the frame of the first pose, from N + 1 poses."""
    _need_path(poses)
    return compose(inverse(poses[0]), poses[1:])


def integrate_framewise(start: Poses, deltas: Poses) -> Poses:
    """Return the N + 1 poses, `start` first, whose framewise deltas these are.

    Products are formed pairwise (a parallel prefix): log2(N) vectorised steps, through which rounding grows no further
    than that. Deltas are put on SO(3) before, since those in single precision would leave it together, and poses after.
    """
    product, stride = _tidy(deltas), 1
    while stride < len(deltas):
        product = _chain(product[:stride], compose(product[:-stride], product[stride:]))
        stride *= 2
    return integrate_anchored(start, product)


def integrate_anchored(start: Poses, deltas: Poses) -> Poses:
    """Return the N + 1 poses, `start` first, whose anchored deltas these are."""
    if start.shape != deltas.shape[1:]:
        problem = Problem('start', 'does not fit the deltas', str(start.shape), f'leading shape {deltas.shape[1:]}')
        raise InvalidInput('poses', [problem])
    return _chain(start.reshape((1, *start.shape)), _tidy(compose(start, deltas)))


def _tidy(poses: Poses) -> Poses:
    return Poses(poses.position, project_to_so3(poses.rotation))


def _chain(first: Poses, second: Poses) -> Poses:
    position = np.concatenate([first.position, second.position])
    return Poses(position, np.concatenate([first.rotation, second.rotation]))


def _need_path(poses: Poses) -> None:
    if len(poses) < 2:
        raise InvalidInput('poses', [Problem('poses', 'is no path', f'leading shape {poses.shape}', '2 poses or more')])
