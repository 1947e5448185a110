"""Whether a stop keeps what depends on the place: speed limits near the ends of the joints, and the body's limits."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.body import Body, Finding, Known
from cosmos3_ros.guard.limits import RobotLimits
from cosmos3_ros.guard.motion import NS, Array, Motion, Samples, instants
from cosmos3_ros.guard.reasons import Reason
from cosmos3_ros.guard.several_arms import SeveralBodies

if TYPE_CHECKING:
    from collections.abc import Iterable

_ROUNDING = 1e-9
_FINE_NS = 1_000_000
# Points of a stop at which the body is looked at first.
_POINTS = 12


class StopCheck:
    """Judges stops one after the other, and remembers positions it has looked at: successive stops are alike."""

    def __init__(self, limits: RobotLimits) -> None:
        self._limits = limits
        self._body = limits.body  # prepared now, not when the arm has to brake
        self.known: deque[Known] = deque(maxlen=3)
        """Positions that have been looked at; whoever has looked at one near a stop may add it."""
        self.hindrance: Finding | None = None
        """What the last stop would break of the body's limits. A stop that breaks only the speeds of the tool fits all
        the same: it is better than none."""

    def fits(self, stop: Motion, points: Samples, bounds: tuple[Array, Array], peak: Array, jerk: Array) -> bool:
        """Judge a stop whose joints keep their limits otherwise.

        Args:
            stop: The stop.
            points: Samples of the whole of it.
            bounds: Smallest and largest position of each joint in it, [J] each, rad.
            peak: Largest speed of each joint [J], rad/s.
            jerk: Largest jerk of each joint [J], rad/s³.
        """
        body = self._body
        self.hindrance = None
        if self._limits.near_ends is not None and not self._keeps_ends(stop, points):
            return False
        return body is None or self._keeps_body(body, stop, bounds, peak, jerk)

    def _keeps_ends(self, stop: Motion, points: Samples) -> bool:
        if not (points.velocities.any() or points.accelerations.any()):
            return True
        if keeps_near_ends(points, self._limits, _unevenness(points)).all():
            return True
        fine = stop.sample(instants(stop.start_ns, stop.end_ns, _FINE_NS))
        return bool(keeps_near_ends(fine, self._limits, _unevenness(fine)).all())

    def _keeps_body(
        self, body: Body | SeveralBodies, stop: Motion, bounds: tuple[Array, Array], peak: Array, jerk: Array
    ) -> bool:
        if _any_keeps(body, self.known, bounds, peak):
            return True
        self.known.append(body.know(stop.state(stop.start_ns).positions))
        if _any_keeps(body, [self.known[-1]], bounds, peak):
            return True
        step = -((stop.start_ns - stop.end_ns) // _POINTS)
        times = instants(stop.start_ns, stop.end_ns, max(1, step))
        acceleration = self._limits.acceleration
        self.hindrance, _ = body.judge(stop, times, acceleration, jerk, stopping=True)
        if self.hindrance is None or self.hindrance.reason is not Reason.TOOL_SPEED:
            return self.hindrance is None
        return body.judge(stop, times, acceleration, jerk, stopping=True, speeds=False)[0] is None


def _any_keeps(body: Body | SeveralBodies, known: Iterable[Known], bounds: tuple[Array, Array], peak: Array) -> bool:
    return any(body.keeps(position, *bounds, peak) for position in known)


def keeps_near_ends(samples: Samples, limits: RobotLimits, unevenness: Array) -> NDArray[np.bool_]:
    """Whether the limits near the ends of the joints hold at samples of a motion, and between them [S, J].

    Between two samples h apart a position lies within a h²/8 of the straight line between them, and a velocity within
    `unevenness`. The limit is a concave function of the position; so where it is kept with both to spare at two
    samples, it is kept on the line between them, and by the motion.

    Args:
        samples: States [S, J], S >= 2.
        limits: Limits with `near_ends`.
        unevenness: How far velocities between samples may be from the straight line [S, J] or [J], rad/s.
    """
    step = float(np.diff(samples.times_ns).max()) / NS
    beyond = limits.acceleration * (step * step / 8)
    lowest, _ = limits.velocity_bounds(samples.positions - beyond)
    _, highest = limits.velocity_bounds(samples.positions + beyond)
    v = samples.velocities
    inside: NDArray[np.bool_] = (v <= np.maximum(highest - unevenness, 0.0) + _ROUNDING) & (
        v >= np.minimum(lowest + unevenness, 0.0) - _ROUNDING
    )
    return inside


def _unevenness(points: Samples) -> Array:
    """How far each velocity can be from the straight line to its neighbours, by the change of acceleration [S, J]."""
    h = (np.diff(points.times_ns) / NS)[:, None]
    bend = np.abs(np.diff(points.accelerations, axis=0)) * h / 4
    none = np.zeros((1, bend.shape[1]))
    return np.maximum(np.concatenate([bend, none]), np.concatenate([none, bend]))
