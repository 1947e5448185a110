"""Where the links of a serial arm are, for many positions of its joints at once.

Conventions are those of URDF: each frame is placed in its parent by a translation and a rotation, and a joint turns its
frame about that frame's own z axis. A description with other axes is brought into this form when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.figures import freeze_arrays

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame of the arm.

    Attributes:
        name: Its name; links are called by the name of their frame.
        parent: Name of the frame it is placed in.
        translation: Its origin in the parent [3], m.
        rotation: Its axes in the parent, as columns [3, 3], where its joint stands at zero.
        joint: Joint that turns it about its z axis; empty if it is fixed to its parent.
    """

    name: str
    parent: str
    translation: Array
    rotation: Array
    joint: str = ''

    def __post_init__(self) -> None:
        freeze_arrays(self)


@dataclass(frozen=True, eq=False)
class Chain:
    """A serial arm: from its base through its joints to the tool point.

    Attributes:
        base: Name of the frame everything is measured in.
        frames: Every frame after the one it is placed in; each joint is beyond the one before.
        tool: Name of the frame whose origin is the tool point.
    """

    base: str
    frames: tuple[Frame, ...]
    tool: str

    @property
    def joints(self) -> tuple[str, ...]:
        """The joints from the base to the tool."""
        return tuple(frame.joint for frame in self.frames if frame.joint)

    @property
    def names(self) -> tuple[str, ...]:
        """Every frame, the base first."""
        return (self.base, *(frame.name for frame in self.frames))


@dataclass(frozen=True, eq=False)
class Place:
    """Where a frame is fixed: to link `link` (0 is the base, k is behind the k-th joint), by the transform."""

    link: int
    rotation: Array
    translation: Array


@dataclass(frozen=True, eq=False)
class Placement:
    """The arm at S positions.

    Attributes:
        axes: Direction of each joint's axis in the base frame [J, 3, S], in the order of the chain.
        origins: A point on each axis [J, 3, S], m.
        points: Points of the links [R, 3, S], m; `Kinematics.where` says which row is which.
    """

    axes: Array
    origins: Array
    points: Array


def places(chain: Chain) -> dict[str, Place]:
    """For each frame, the moving link it is fixed to and where it sits there."""
    found = {chain.base: Place(0, np.eye(3), np.zeros(3))}
    for frame in chain.frames:
        parent = found[frame.parent]
        rotation = parent.rotation @ frame.rotation
        translation = parent.translation + parent.rotation @ frame.translation
        moved = Place(parent.link + 1, np.eye(3), np.zeros(3)) if frame.joint else None
        found[frame.name] = moved or Place(parent.link, rotation, translation)
    return found


def joint_places(chain: Chain) -> list[Place]:
    """For each joint, where its axis sits in the link before it."""
    fixed = places(chain)
    result = []
    for frame in chain.frames:
        if frame.joint:
            parent = fixed[frame.parent]
            translation = parent.translation + parent.rotation @ frame.translation
            result.append(Place(parent.link, parent.rotation @ frame.rotation, translation))
    return result


class Kinematics:
    """Forward kinematics of a chain, prepared for one order of joints and one set of points on the links.

    All points of a link, and the step to the next link, are one matrix that is multiplied with the axes and the origin
    of the link. Arrays keep the samples in their last dimension, so that every operation runs over contiguous numbers.
    """

    def __init__(self, chain: Chain, joint_names: Sequence[str], points: Sequence[Array]) -> None:
        """Prepare.

        Args:
            chain: The arm.
            joint_names: Meaning of the columns of positions; holds all joints of the chain.
            points: For the base and each moving link the points that are wanted of it [P_k, 3], m, in its own frame.
        """
        steps = joint_places(chain)
        own = [np.asarray(part, dtype=np.float64).reshape(-1, 3) for part in points]
        #: Position of each joint of the chain in `joint_names` [J].
        self.columns = np.array([list(joint_names).index(name) for name in chain.joints], dtype=np.intp)
        self._base = own[0]
        self._first = np.vstack([steps[0].rotation.T, steps[0].translation])[:, :, None]
        self._links: list[tuple[Array, slice, slice]] = []
        rows, where = len(own[0]), [np.arange(len(own[0]))]
        for index, part in enumerate(own[1:]):
            ahead = _step(steps[index + 1]) if index + 1 < len(steps) else np.zeros((0, 4))
            matrix = np.vstack([ahead, np.hstack([part, np.ones((len(part), 1))])])
            before, begin, end = slice(rows, rows + 4), rows + len(ahead), rows + len(matrix)
            self._links.append((matrix, slice(rows, end), before))
            where.append(np.arange(begin, end))
            rows = end
        #: Where each of the points that were asked for is in `Placement.points` [P].
        self.where = np.concatenate(where)
        self._rows = rows
        self._desks: dict[int, _Desk] = {}

    def place(self, positions: Array) -> Placement:
        """Place the arm.

        Args:
            positions: [S, J], rad, in the order of `joint_names`.

        Returns:
            Axes and points in the base frame.
        """
        desk = self._desks.pop(len(positions), None) or _Desk(self._links, self._rows, len(positions))
        angles = positions.T[self.columns]
        np.cos(angles, out=desk.cosines)
        np.sin(angles, out=desk.sines[:, 0])
        np.negative(desk.sines[:, 0], out=desk.sines[:, 1])
        desk.points[: len(self._base)] = self._base[:, :, None]
        desk.first[:] = self._first
        twisted = desk.twisted
        for both, swapped, rest, cosine, sine, turned, fixed, matrix, flat, ahead in desk.steps:
            np.multiply(both, cosine, turned)
            np.multiply(swapped, sine, twisted)
            np.add(turned, twisted, turned)
            fixed[:] = rest
            np.matmul(matrix, flat, ahead)
        placement = Placement(desk.links[:, 2].copy(), desk.links[:, 3].copy(), desk.points.copy())
        if len(self._desks) < _DESKS:
            self._desks[len(positions)] = desk
        return placement

    def velocity(self, placement: Placement, point: int, velocities: Array) -> tuple[Array, Array]:
        """Velocity of a point of the last link, and of its rotation.

        The columns of the geometric Jacobian, `axis x (point - origin)` and `axis`, times the joints' velocities.

        Args:
            placement: The arm.
            point: Index of the point in `placement.points`.
            velocities: [S, J], rad/s.

        Returns:
            Translation [3, S], m/s, and rotation [3, S], rad/s, in the base frame.
        """
        turning = placement.axes * velocities.T[self.columns][:, None]
        arm = placement.points[point] - placement.origins
        products = np.einsum('kis,kjs->ijs', turning, arm)
        linear = products[_NEXT, _AFTER_NEXT] - products[_AFTER_NEXT, _NEXT]
        return linear, np.add.reduce(turning)


class _Desk:
    """Arrays and views of them to place an arm at a number of samples: making them takes longer than filling them."""

    def __init__(self, links: Sequence[tuple[Array, slice, slice]], rows: int, samples: int) -> None:
        joints = len(links)
        self.cosines = np.empty((joints, samples))
        self.sines = np.empty((joints, 2, samples))  # of x, and with the opposite sign of y
        self.first = np.empty((4, 3, samples))
        self.links = np.empty((joints, 4, 3, samples))  # x, y and z axis of each link, and its origin
        self.points = np.empty((rows, 3, samples))
        self.twisted = np.empty((2, 3, samples))
        flat = self.points.reshape(rows, -1)
        before: Array = self.first
        self.steps = []
        for index, (matrix, filled, ahead) in enumerate(links):
            link = self.links[index]
            sine = self.sines[index][:, None]
            views = before[:2], before[1::-1], before[2:], self.cosines[index], sine, link[:2], link[2:]
            self.steps.append((*views, matrix, link.reshape(4, -1), flat[filled]))
            before = self.points[ahead]


# Sizes for which a desk is kept.
_DESKS = 8
# Indices of a cross product: its component i is a[i + 1] b[i + 2] - a[i + 2] b[i + 1], counted round.
_NEXT, _AFTER_NEXT = np.array([1, 2, 0]), np.array([2, 0, 1])


def _step(place: Place) -> Array:
    """The transform as rows that, applied to axes and origin of a link, give those of the next one [4, 4]."""
    rows = np.zeros((4, 4))
    rows[:3, :3], rows[3, :3], rows[3, 3] = place.rotation.T, place.translation, 1.0
    return rows


def frame_poses(chain: Chain, joint_names: Sequence[str], positions: Array, name: str) -> tuple[Array, Array]:
    """Pose of one frame in the base frame.

    Args:
        chain: The arm.
        joint_names: Meaning of the columns of positions.
        positions: [S, J], rad.
        name: Which frame.

    Returns:
        Origins [S, 3], m, and rotations [S, 3, 3].
    """
    place = places(chain)[name]
    corners = place.translation + np.vstack([np.zeros(3), place.rotation.T])
    points: list[Array] = [np.zeros((0, 3))] * (len(chain.joints) + 1)
    points[place.link] = corners
    kinematics = Kinematics(chain, joint_names, points)
    found = kinematics.place(positions).points[kinematics.where]
    origins = found[0].T
    rotations = np.moveaxis(found[1:] - found[0], 2, 0).swapaxes(1, 2)
    return np.ascontiguousarray(origins), np.ascontiguousarray(rotations)


def reach(chain: Chain, link: int, points: Array) -> Array:
    """How far points of a link can be from the axis of each joint, at any position of the joints.

    The lengths of the links between are added up, which no stretched arm exceeds; of the first piece only what is
    perpendicular to the axis counts.

    Args:
        chain: The arm.
        link: Index of the moving link the points belong to; 0 is the base.
        points: [P, 3], m, in that link's frame.

    Returns:
        For each joint of the chain, m [J]: zero for those that do not move the link.
    """
    steps = joint_places(chain)
    result = np.zeros(len(steps))
    own = float(np.linalg.norm(points, axis=1).max(initial=0.0))
    for joint in range(link):  # the joint that leads to link `joint + 1`
        if joint + 1 == link:
            result[joint] = np.hypot(points[:, 0], points[:, 1]).max(initial=0.0)
            continue
        pieces = [step.translation for step in steps[joint + 1 : link]]
        result[joint] = np.hypot(*pieces[0][:2]) + sum(np.linalg.norm(piece) for piece in pieces[1:]) + own
    return result


def reach_back(chain: Chain, link: int, points: Array) -> Array:
    """How far points of a link can be from the axis of each joint beyond it; see :func:`reach`.

    Returns:
        For each joint of the chain, m [J]: zero for those that come before the link.
    """
    steps = joint_places(chain)
    result = np.zeros(len(steps))
    for joint in range(link, len(steps)):
        axis = steps[joint].rotation[:, 2]
        if joint == link:
            across = np.cross(points - steps[joint].translation, axis)
            result[joint] = np.linalg.norm(across, axis=1).max(initial=0.0)
            continue
        pieces = [step.translation for step in steps[link + 1 : joint]]
        own = np.linalg.norm(points - steps[link].translation, axis=1).max(initial=0.0)
        nearest = np.linalg.norm(np.cross(steps[joint].translation, axis))
        result[joint] = nearest + sum(np.linalg.norm(piece) for piece in pieces) + own
    return result
