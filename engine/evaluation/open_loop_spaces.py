"""What differs between chunks of joints and chunks of poses: how far two rows are apart, how fast rows move, limits.

Rows hold what :attr:`engine.policy.PolicyChunk.actions` holds, without the grippers: joints in rad, or a position in m
and a quaternion x, y, z, w. A channel is what errors are counted in: a joint, or the position and the turn of a pose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.actions import Poses, matrix_to_axis_angle, quaternion_to_matrix
from engine.actions.poses import framewise_deltas, integrate_framewise
from engine.actions.rotations import rotation_distance

Floats = NDArray[np.float64]

POSE_COLUMNS = 7
_VECTOR = 3


class Channel(NamedTuple):
    """One thing that errors are counted in."""

    name: str
    unit: str


class Space(Protocol):
    """Arithmetic of one kind of rows."""

    @property
    def channels(self) -> tuple[Channel, ...]:
        """What errors are counted in, C of them."""

    @property
    def columns(self) -> int:
        """Numbers in a row, without grippers."""

    @property
    def alike(self) -> bool:
        """Whether all channels have one unit, so that their mean means something."""

    def apart(self, first: ArrayLike, second: ArrayLike) -> Floats:
        """Distance [..., C] of rows [..., columns]; leading shapes broadcast."""

    def steps(self, path: Floats) -> Floats:
        """Motion [..., n - 1, M] between the n rows of paths [..., n, columns]."""

    def sizes(self, motion: Floats) -> Floats:
        """Magnitude [..., C] of motion [..., M], or of its differences."""

    def speed(self, motion: Floats) -> Floats:
        """One number [...] of motion [..., M], for a profile of speed."""

    def go_on(self, before: Floats, now: Floats, count: int) -> Floats:
        """Rows [count, columns] that repeat the step from row `before` to row `now`."""


@dataclass(frozen=True)
class JointSpace:
    """Joint positions, rad.

    Attributes:
        joints: Their names.
    """

    joints: tuple[str, ...]
    alike = True

    @property
    def channels(self) -> tuple[Channel, ...]:
        """One for each joint."""
        return tuple(Channel(name, 'rad') for name in self.joints)

    @property
    def columns(self) -> int:
        """As many as joints."""
        return len(self.joints)

    def apart(self, first: ArrayLike, second: ArrayLike) -> Floats:
        """Absolute differences, rad."""
        return np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64))

    def steps(self, path: Floats) -> Floats:
        """Differences of the joints."""
        return np.diff(path, axis=-2)

    def sizes(self, motion: Floats) -> Floats:
        """Of each joint by itself."""
        return np.abs(motion)

    def speed(self, motion: Floats) -> Floats:
        """Length of the way in joint space."""
        return np.asarray(np.linalg.norm(motion, axis=-1))

    def go_on(self, before: Floats, now: Floats, count: int) -> Floats:
        """The same difference, again and again."""
        return now + np.arange(1, count + 1)[:, None] * (now - before)


@dataclass(frozen=True)
class PoseSpace:
    """Poses of one end effector: position in m, quaternion x, y, z, w."""

    channels = (Channel('position', 'm'), Channel('rotation', 'rad'))
    columns = POSE_COLUMNS
    alike = False

    def apart(self, first: ArrayLike, second: ArrayLike) -> Floats:
        """Distance in m and angle of the turn between them in rad."""
        one, other = np.broadcast_arrays(np.asarray(first, np.float64), np.asarray(second, np.float64))
        distance = np.linalg.norm(one[..., :_VECTOR] - other[..., :_VECTOR], axis=-1)
        turns = (quaternion_to_matrix(rows[..., _VECTOR:]) for rows in (one, other))
        return np.stack([distance, rotation_distance(*turns)], axis=-1)

    def steps(self, path: Floats) -> Floats:
        """Differences of the position, and the turn as a rotation vector in the pose before."""
        turns = quaternion_to_matrix(path[..., _VECTOR:])
        turned = np.swapaxes(turns[..., :-1, :, :], -1, -2) @ turns[..., 1:, :, :]
        return np.concatenate([np.diff(path[..., :_VECTOR], axis=-2), matrix_to_axis_angle(turned)], axis=-1)

    def sizes(self, motion: Floats) -> Floats:
        """Lengths of both vectors."""
        return np.asarray(np.linalg.norm(motion.reshape(*motion.shape[:-1], 2, _VECTOR), axis=-1))

    def speed(self, motion: Floats) -> Floats:
        """Length of the way of the frame's origin."""
        return np.asarray(np.linalg.norm(motion[..., :_VECTOR], axis=-1))

    def go_on(self, before: Floats, now: Floats, count: int) -> Floats:
        """The same motion in the frame of the pose, again and again: along a screw."""
        start, end = to_poses(before), to_poses(now)
        step = framewise_deltas(Poses(*(np.stack([a, b]) for a, b in zip(_parts(start), _parts(end), strict=True))))
        again = Poses(np.repeat(step.position, count, axis=0), np.repeat(step.rotation, count, axis=0))
        return to_rows(integrate_framewise(end, again)[1:])


def _parts(poses: Poses) -> tuple[Floats, Floats]:
    return poses.position, poses.rotation


def to_poses(rows: ArrayLike) -> Poses:
    """Rows [..., 7 or more] as poses."""
    values = np.asarray(rows, np.float64)
    return Poses(values[..., :_VECTOR], quaternion_to_matrix(values[..., _VECTOR:POSE_COLUMNS]))


def to_rows(poses: Poses) -> Floats:
    """Poses as rows [..., 7]."""
    return np.concatenate([poses.position, poses.quaternion], axis=-1)


# Limits


class Limits(Protocol):
    """What a robot may do, as shares of it that are used."""

    def used(self, path: Floats, fps: float) -> dict[str, Floats]:
        """Share used by 'position' [..., n - 1, C], 'velocity' [..., n - 1, C], 'acceleration' [..., n - 2, C].

        Above 1 the limit is violated. A limit that the robot file lacks is left out.

        Args:
            path: [..., n, columns]; the first row is where the robot is, and is not judged.
            fps: Rows per second.
        """


@dataclass(frozen=True, eq=False)
class JointLimits:
    """Limits of joints, each array [J].

    Attributes:
        lower: Smallest position, rad.
        upper: Largest position, rad.
        velocity: Smallest and largest velocity, rad/s, at positions [..., J]: some robots are slower near the ends.
        acceleration: Largest acceleration, rad/s².
    """

    lower: Floats
    upper: Floats
    velocity: Callable[[Floats], tuple[Floats, Floats]]
    acceleration: Floats

    def used(self, path: Floats, fps: float) -> dict[str, Floats]:
        """See :class:`Limits`; derivatives are differences of rows."""
        middle, half = (self.upper + self.lower) / 2, (self.upper - self.lower) / 2
        steps = np.diff(path, axis=-2)
        slowest, fastest = self.velocity(path[..., 1:, :])
        # Where a limit is zero, at the very end of the range, any motion outwards is beyond it.
        bound = np.maximum(np.where(steps < 0, -slowest, fastest), 1e-9)
        return {
            'position': np.abs(path[..., 1:, :] - middle) / half,
            'velocity': np.abs(steps) * fps / bound,
            'acceleration': np.abs(np.diff(steps, axis=-2)) * fps**2 / self.acceleration,
        }


@dataclass(frozen=True, eq=False)
class PoseLimits:
    """Cartesian limits; each pair is that of the position (m) and of the turn (rad).

    Attributes:
        velocity: m/s and rad/s.
        acceleration: m/s² and rad/s².
    """

    velocity: tuple[float, float]
    acceleration: tuple[float, float]

    def used(self, path: Floats, fps: float) -> dict[str, Floats]:
        """See :class:`Limits`; of poses there are no limits of position here."""
        space = PoseSpace()
        steps = space.steps(path)
        return {
            'velocity': space.sizes(steps) * fps / np.array(self.velocity),
            'acceleration': space.sizes(np.diff(steps, axis=-2)) * fps**2 / np.array(self.acceleration),
        }
