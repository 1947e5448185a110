"""Plays chunks by time: which state the arm is to be in at any instant, across any number of splices.

A chunk becomes a uniform cubic B-spline with its rows as control points (C. de Boor, "A Practical Guide to Splines").
That choice carries the checks of the rows over to continuous time: positions stay in the convex hull of the rows,
speeds below the largest difference of neighbours, accelerations below the largest second difference, and the
acceleration is continuous. The price: the curve passes a row at a distance of one sixth of the second difference there
(0.2 mrad at an acceleration of 0.3 rad/s² and 15 rows per second).

A splice fades the difference between the motion in progress and the new spline (position, velocity and acceleration) to
zero over a window, by the quintic polynomial of least jerk for these ends (T. Flash, N. Hogan, J. Neurosci. 5(7),
1985).
"""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.chunk import Chunk
from cosmos3_ros.guard.motion import NS, Array, JointsState, Motion, Samples, Times

# Row i holds the polynomial coefficients (1, s, s², s³) that the i-th power contributes to the four control points.
_BASIS = np.array([[1, 4, 1, 0], [-3, 0, 3, 0], [3, -6, 3, 0], [-1, 3, -3, 1]], dtype=np.float64) / 6.0
_FRONT_PAD = 2  # control points before row 0, so that the spline is defined from the chunk's stamp on


class ChunkMotion:
    """One chunk from a splice on: its spline, and the fading difference to the motion it continues.

    It is defined from the splice to the instant at which the last row is due; there it passes exactly through the row
    with the speed of the last step.
    """

    def __init__(self, chunk: Chunk, start_ns: int, state: JointsState, window_ns: int) -> None:
        """Continue `state` at `start_ns` and follow the chunk alone after `window_ns`.

        Args:
            chunk: What to play.
            start_ns: Instant of the splice, before the end of the chunk.
            state: The motion in progress at that instant.
            window_ns: Length of the fade; it is shortened to end with the chunk at the latest.
        """
        self.chunk = chunk
        self.start_ns = start_ns
        self.end_ns = chunk.end_ns
        self.window_ns = min(window_ns, self.end_ns - start_ns)
        self._controls = _padded(chunk.positions)
        self._fade: Array = np.zeros((6, state.positions.shape[0]))
        own = self.sample(np.array([start_ns], dtype=np.int64)).state(0)
        #: Largest distance between the motion in progress and the chunk at the splice, rad [J].
        self.jump: Array = np.abs(own.positions - state.positions)
        self._fade = _quintic_to_zero(state, own, self.window_ns / NS)

    def sample(self, times_ns: Times) -> Samples:
        """States at the given instants, clipped to [start, end]."""
        times = np.clip(times_ns, self.start_ns, self.end_ns)
        parts = [self._derivative(times, order) for order in range(3)]
        return Samples(times_ns, parts[0], parts[1], parts[2])

    def jerk(self, times_ns: Times) -> Array:
        """Jerk at the given instants, rad/s³ [S, J]; right-hand values where it steps."""
        return self._derivative(np.clip(times_ns, self.start_ns, self.end_ns), 3)

    def _derivative(self, times_ns: Times, order: int) -> Array:
        return self._spline(times_ns, order) + self._faded(times_ns, order)

    def _spline(self, times_ns: Times, order: int) -> Array:
        step_ns = self.chunk.step_ns
        since_first = times_ns - self.chunk.due_ns(0)
        segment = np.clip(since_first // step_ns, -1, self.chunk.rows - 2)
        s = (since_first - segment * step_ns) / step_ns
        weights = _powers(s, 4, order) @ _BASIS / (step_ns / NS) ** order
        first = segment + (_FRONT_PAD - 1)
        return _blend(weights, self._controls, first)

    def _faded(self, times_ns: Times, order: int) -> Array:
        window = self.window_ns / NS
        tau = np.minimum((times_ns - self.start_ns) / self.window_ns, 1.0)
        inside = (tau < 1.0)[:, None]
        return np.where(inside, _powers(tau, 6, order) @ self._fade, 0.0) / window**order


class ChunkExecutor:
    """The whole commanded motion: a sequence of motions, each taking over at its own start.

    The last motion that has begun at an instant is in force then. Splices lie in the future by a few control periods,
    so that what has been sent already stays true.
    """

    def __init__(self, motion: Motion) -> None:
        self._motions: list[Motion] = [motion]

    @property
    def latest(self) -> Motion:
        """The motion that is in force after all splices."""
        return self._motions[-1]

    @property
    def end_ns(self) -> int:
        """When the latest motion ends."""
        return self.latest.end_ns

    def restart(self, motion: Motion) -> None:
        """Forget everything else; `motion` is in force at all times."""
        self._motions = [motion]

    def splice(self, motion: Motion) -> None:
        """Let `motion` take over at its start; whatever was planned to begin then or later is dropped."""
        kept = [m for m in self._motions if m.start_ns < motion.start_ns]
        self._motions = [*kept, motion]

    def prune(self, now_ns: int) -> None:
        """Drop motions that have been taken over before `now_ns`."""
        while len(self._motions) > 1 and self._motions[1].start_ns <= now_ns:
            self._motions.pop(0)

    def in_force(self, time_ns: int) -> Motion:
        """The motion in force at an instant."""
        index = bisect.bisect_right([m.start_ns for m in self._motions], time_ns) - 1
        return self._motions[max(index, 0)]

    def sample(self, times_ns: Times) -> Samples:
        """States at ascending instants."""
        starts = np.array([m.start_ns for m in self._motions[1:]], dtype=np.int64)
        cuts = np.searchsorted(times_ns, starts).tolist()
        pieces = np.split(times_ns, cuts)
        parts = [m.sample(t) for m, t in zip(self._motions, pieces, strict=True) if len(t)]
        if len(parts) == 1:
            return parts[0]
        return Samples(
            times_ns,
            np.concatenate([p.positions for p in parts]),
            np.concatenate([p.velocities for p in parts]),
            np.concatenate([p.accelerations for p in parts]),
        )

    def state(self, time_ns: int) -> JointsState:
        """State at one instant."""
        return self.in_force(time_ns).sample(np.array([time_ns], dtype=np.int64)).state(0)


def _padded(rows: Array) -> Array:
    """Control points: the rows, continued at both ends with the speed there so that the curve meets the end rows."""
    first, last = rows[1] - rows[0], rows[-1] - rows[-2]
    return np.concatenate([[rows[0] - 2 * first, rows[0] - first], rows, [rows[-1] + last]])


def _powers(s: Array, count: int, order: int) -> Array:
    """The order-th derivatives of 1, s, s², ... as columns: [S, count]."""
    columns = [np.zeros_like(s)] * min(order, count)
    for power in range(order, count):
        factor = float(np.prod(np.arange(power - order + 1, power + 1)))
        columns.append(factor * s ** (power - order))
    return np.stack(columns, axis=1)


def _blend(weights: Array, controls: Array, first: NDArray[np.int64]) -> Array:
    """Weighted sums of four neighbouring control points each: [S, J]."""
    picked = controls[first[:, None] + np.arange(4)]
    result: Array = np.einsum('sk,skj->sj', weights, picked)
    return result


def _quintic_to_zero(state: JointsState, own: JointsState, window: float) -> Array:
    """Coefficients [6, J] over the normalised window of the polynomial from the difference (p, v, a) to (0, 0, 0)."""
    p = state.positions - own.positions
    v = (state.velocities - own.velocities) * window
    a = (state.accelerations - own.accelerations) * window**2
    third = -(20 * p + 12 * v + 3 * a) / 2
    fourth = (30 * p + 16 * v + 3 * a) / 2
    fifth = -(12 * p + 6 * v + a) / 2
    return np.stack([p, v, a / 2, third, fourth, fifth])
