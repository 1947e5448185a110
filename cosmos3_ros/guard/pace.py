"""Slower along the same path: what is left of a chunk that is too fast for the robot, at a pace that it can keep.

A motion q(t) played at pace p is q(p t): the same path in joint space, with p times the velocities, p² times the
accelerations and p³ times the jerks (path-velocity decomposition: K. Kant, S. Zucker, Int. J. Robotics Research 5(3),
1986). Nothing is pushed sideways.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cosmos3_ros.guard.chunk import Chunk
from cosmos3_ros.guard.limits import RobotLimits
from cosmos3_ros.guard.motion import NS
from cosmos3_ros.guard.reasons import Reason

SLOWER_HELPS = frozenset(
    {
        Reason.VELOCITY_LIMIT,
        Reason.ACCELERATION_LIMIT,
        Reason.JERK_LIMIT,
        Reason.STOPPING_DISTANCE,
        Reason.TOOL_SPEED,
    }
)
"""Reasons against a chunk that a slower pace can remove."""
_ROOM = 0.98
_STEP = 0.8
_ROUNDING = 1e-9


@dataclass(frozen=True)
class PaceCap:
    """Somebody wants chunks to be played slowly.

    Attributes:
        pace: Share of its own speed at which a chunk is played at most, 0 < pace < 1.
        since_ns: Since when; an arm that was slow already since a chunk's observation is behind the chunk by that.
        why: In one sentence, for people.
    """

    pace: float
    since_ns: int
    why: str

    def allows(self, chunk: Chunk) -> bool:
        """Whether a chunk is played slowly enough."""
        return chunk.pace <= self.pace * (1.0 + _ROUNDING)

    def slowed(self, chunk: Chunk, from_ns: int) -> Chunk:
        """The chunk at this pace from an instant on, whatever it has been played at so far."""
        return at_pace(chunk, self.pace / chunk.pace, from_ns)


def paces(chunk: Chunk, limits: RobotLimits, slowest: float) -> Iterator[float]:
    """Paces below 1 to try, the fastest first.

    Args:
        chunk: A well-formed chunk that is too fast.
        limits: Limits of the robot.
        slowest: Smallest pace worth trying, 0 < slowest <= 1.

    Yields:
        First the pace at which the rows by themselves keep the joints' limits, with a little room, then ever slower
        ones down to `slowest`: the splice, the tool or the stop may need more.
    """
    pace = min(_ROOM, rows_pace(chunk, limits) * _ROOM)
    while pace >= slowest:
        yield pace
        pace *= _STEP
    if pace / _STEP > slowest:
        yield slowest


def rows_pace(chunk: Chunk, limits: RobotLimits) -> float:
    """The pace at which the rows just keep every joint within its limits; above 1 if they have room."""
    step = chunk.step_ns / NS
    needed = 0.0
    for order, limit in enumerate((limits.velocity, limits.acceleration, limits.jerk), start=1):
        rates = np.abs(np.diff(chunk.positions, order, axis=0)) / (step**order * limit)
        needed = max(needed, float(rates.max(initial=0.0)) ** (1 / order))
    return 1.0 / needed if needed > 0.0 else np.inf


def at_pace(chunk: Chunk, pace: float, from_ns: int) -> Chunk:
    """The same rows at another pace from an instant on; at that instant it is where the chunk itself would be.

    Args:
        chunk: What to play.
        pace: Share of its own speed, > 0; it is never exceeded by rounding.
        from_ns: Instant at which both coincide.
    """
    step_ns = math.ceil(chunk.step_ns / pace)
    since_first = (from_ns - chunk.due_ns(0)) * step_ns // chunk.step_ns
    return chunk.retimed(step_ns, from_ns - since_first)
