"""Layouts: what each number of a row means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from engine.actions.poses import Poses
from engine.errors import InvalidInput, Problem


class Kind(StrEnum):
    """What a segment of a row holds; units are raw (SI), before any normalisation."""

    TRANSLATION = 'translation'
    """Metres."""
    ROT6D = 'rot6d'
    """First two columns of a rotation matrix, column after column."""
    AXIS_ANGLE = 'axis_angle'
    """Rotation vector, rad."""
    MATRIX = 'matrix'
    """Rotation matrix, row after row."""
    GRIPPER = 'gripper'
    """One number per gripper; see :class:`GripperConvention`."""
    JOINT = 'joint'
    """Joint positions, rad (m if prismatic)."""
    PLANAR = 'planar'
    """A point in the plane of the picture, unit unpublished."""
    FINGERTIPS = 'fingertips'
    """Points in the wrist frame, metres, x, y, z after each other, thumb to little finger."""
    BASE = 'base'
    """Three numbers of a mobile base, units unpublished."""
    OPAQUE = 'opaque'
    """Published as a width only: passed on, never interpreted."""


class GripperConvention(StrEnum):
    """What a gripper channel means in model space; codecs convert only `open_fraction`."""

    NONE = 'none'
    """The row has no gripper."""
    OPEN_FRACTION = 'open_fraction'
    """0 closed, 1 open; the robot side of a codec speaks the inverse, 0 open, 1 closed."""
    WIDTH = 'width'
    """Opening width in metres, on both sides of a codec."""
    AS_RECORDED = 'as_recorded'
    """As the data set stores it, polarity unpublished; passed through on both sides of a codec."""


class FrameConvention(StrEnum):
    """What the pose segments of a row are relative to."""

    FRAMEWISE = 'framewise'
    """Each to the pose one row before: inverse(T_i) T_{i+1}."""
    ANCHORED = 'anchored'
    """All to the pose at the start of the chunk: inverse(T_0) T_{i+1}."""
    ABSOLUTE = 'absolute'
    """To nothing: joint positions."""
    CONTROLLER = 'controller'
    """Commands of the simulator's own end-effector controller, not measured poses."""
    UNPUBLISHED = 'unpublished'
    """Not stated in public; no codec integrates it."""


Part = tuple[str, Kind, int]
"""Name, kind and size of a segment that has yet to be placed."""


@dataclass(frozen=True)
class Segment:
    """Channels `start` to `start + size` of a row, under one name.

    Attributes:
        name: Unique within the row, such as `left_rotation`.
        kind: What the numbers are.
        start: First channel.
        size: Number of channels.
    """

    name: str
    kind: Kind
    start: int
    size: int

    @property
    def channels(self) -> slice:
        """Slice of the row."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True, eq=False)
class ActionSpace:
    """One way in which rows of an embodiment are written.

    Attributes:
        name: What a contract calls it.
        segments: The row from channel 0 on, without gaps.
        convention: What poses are relative to.
        gripper: What gripper channels mean.
        frames: One fixed frame per posed body, in row order (see `frames.py`); None if they are unpublished.
        translation_scale: Translations in a row are metres times this.
        statistics: Name of the published statistics; None if there are none.
        state_row: Whether training put the measured state before the actions, as a row of the same width.
    """

    name: str
    segments: tuple[Segment, ...]
    convention: FrameConvention
    gripper: GripperConvention = GripperConvention.NONE
    frames: tuple[Poses, ...] | None = None
    translation_scale: float = 1.0
    statistics: str | None = None
    state_row: bool = False

    def __post_init__(self) -> None:
        bodies = len(self.of_kind(Kind.ROT6D))
        if self.frames is not None and len(self.frames) != bodies:
            problem = Problem('frames', 'do not match the posed bodies', str(len(self.frames)), str(bodies))
            raise InvalidInput(f'action space {self.name}', [problem])

    @property
    def dim(self) -> int:
        """Width of a row."""
        return sum(segment.size for segment in self.segments)

    def of_kind(self, kind: Kind) -> tuple[Segment, ...]:
        """Return the segments of one kind, in row order."""
        return tuple(segment for segment in self.segments if segment.kind is kind)


def lay_out(parts: Iterable[Part]) -> tuple[Segment, ...]:
    """Return segments one after the other of the given names, kinds and sizes."""
    segments: list[Segment] = []
    for name, kind, size in parts:
        start = segments[-1].channels.stop if segments else 0
        segments.append(Segment(name, kind, start, size))
    return tuple(segments)


def body(prefix: str = '') -> list[Part]:
    """Return the nine channels of a posed body: translation, rotation."""
    return [(_join(prefix, 'translation'), Kind.TRANSLATION, 3), (_join(prefix, 'rotation'), Kind.ROT6D, 6)]


def arm(prefix: str = '') -> list[Part]:
    """Return the ten channels of an arm: translation, rotation, gripper."""
    return [*body(prefix), (_join(prefix, 'gripper'), Kind.GRIPPER, 1)]


def _join(prefix: str, name: str) -> str:
    return f'{prefix}_{name}' if prefix else name
