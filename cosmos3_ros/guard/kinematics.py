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
from cosmos3_ros.guard.kernels import ChainKernel

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
    """Forward kinematics of a chain, prepared for one order of joints and one set of points on the links."""

    def __init__(self, chain: Chain, joint_names: Sequence[str], points: Sequence[Array]) -> None:
        """Prepare.

        Args:
            chain: The arm.
            joint_names: Meaning of the columns of positions; holds all joints of the chain.
            points: For the base and each moving link the points that are wanted of it [P_k, 3], m, in its own frame.
        """
        own = [np.asarray(part, dtype=np.float64).reshape(-1, 3) for part in points]
        steps = [np.vstack([step.rotation.T, step.translation]) for step in joint_places(chain)]
        links = np.repeat(np.arange(len(own)), [len(part) for part in own])
        #: Position of each joint of the chain in `joint_names` [J].
        self.columns = np.array([list(joint_names).index(name) for name in chain.joints], dtype=np.intp)
        #: Where each of the points that were asked for is in `Placement.points` [P].
        self.where = np.arange(len(links))
        #: The compiled part, for whoever goes on from there.
        self.kernel = ChainKernel(self.columns, np.array(steps), links, np.concatenate(own), len(joint_names))

    def place(self, positions: Array) -> Placement:
        """Place the arm.

        Args:
            positions: [S, J], rad, in the order of `joint_names`.

        Returns:
            Axes and points in the base frame.
        """
        return Placement(*self.kernel.place(positions))


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
