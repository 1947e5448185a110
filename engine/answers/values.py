"""Boxes, points, trajectories, events, plans.

Coordinates are whole numbers from 0 to 1000 per axis, whatever the size of the picture: 0 is its left or upper edge,
1000 its right or lower one, as the published cookbooks of Cosmos 3 have it. `document` writes a value as they show it.
"""

from __future__ import annotations

from dataclasses import dataclass

SCALE = 1000
"""What the width and the height of every picture count as."""


def to_pixels(x: int, y: int, width: int, height: int) -> tuple[float, float]:
    """Where a normalised point lies in a picture of this size, in pixels from its upper left corner."""
    return x / SCALE * width, y / SCALE * height


@dataclass(frozen=True)
class Box:
    """A rectangle around something; `x1` < `x2` and `y1` < `y2`, all of 0 to 1000."""

    label: str
    x1: int
    y1: int
    x2: int
    y2: int

    def pixels(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in a picture of this size, px."""
        return *to_pixels(self.x1, self.y1, width, height), *to_pixels(self.x2, self.y2, width, height)

    def document(self) -> dict[str, object]:
        """As the model writes it."""
        return {'bbox_2d': [self.x1, self.y1, self.x2, self.y2], 'label': self.label}


@dataclass(frozen=True)
class Point:
    """A place, of 0 to 1000 per axis."""

    label: str
    x: int
    y: int

    def pixels(self, width: int, height: int) -> tuple[float, float]:
        """From the left and from above in a picture of this size, px."""
        return to_pixels(self.x, self.y, width, height)

    def document(self) -> dict[str, object]:
        """As the model writes it."""
        return {'point_2d': [self.x, self.y], 'label': self.label}


@dataclass(frozen=True)
class Trajectory:
    """Places to be passed in this order, at least two, of 0 to 1000 per axis."""

    label: str
    points: tuple[tuple[int, int], ...]

    def pixels(self, width: int, height: int) -> tuple[tuple[float, float], ...]:
        """Its points in a picture of this size, px."""
        return tuple(to_pixels(x, y, width, height) for x, y in self.points)

    def document(self) -> list[dict[str, object]]:
        """As the model writes it: one object a point."""
        return [Point(self.label, x, y).document() for x, y in self.points]


@dataclass(frozen=True)
class Event:
    """What happens in a stretch of a video; seconds from its beginning, `start_s` <= `end_s`."""

    start_s: float
    end_s: float
    caption: str

    def document(self) -> dict[str, object]:
        """As the model writes it."""
        return {'start': self.start_s, 'end': self.end_s, 'caption': self.caption}


@dataclass(frozen=True)
class PlanStep:
    """One instruction to a policy.

    Attributes:
        instruction: What the policy is told.
        success: What can be seen once it has been done.
    """

    instruction: str
    success: str

    def document(self) -> dict[str, object]:
        """As the model is asked to write it."""
        return {'instruction': self.instruction, 'success': self.success}


@dataclass(frozen=True)
class Plan:
    """Steps in their order."""

    steps: tuple[PlanStep, ...]

    def document(self) -> dict[str, object]:
        """As the model is asked to write it."""
        return {'steps': [step.document() for step in self.steps]}
