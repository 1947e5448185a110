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

from functools import lru_cache

import numpy as np

from cosmos3_ros.guard.chunk import Chunk
from cosmos3_ros.guard.motion import NS, Array, JointsState, Motion, Samples, Shifted, Times

_ORDERS = 4  # position, velocity, acceleration, jerk


def _with_derivatives(coefficients: Array) -> Array:
    """Coefficients of a polynomial and of its derivatives by its parameter: [P, K] -> [P, 4, K]."""
    orders = [coefficients]
    for _ in range(_ORDERS - 1):
        factors = np.arange(1, len(coefficients))[:, None]
        orders.append(np.concatenate([orders[-1][1:] * factors, np.zeros((1, coefficients.shape[1]))]))
    return np.stack(orders, axis=1)


# What each of four neighbouring control points contributes to the coefficients of 1, s, s², s³ of their segment.
_SPLINE = _with_derivatives(np.array([[1, 4, 1, 0], [-3, 0, 3, 0], [3, -6, 3, 0], [-1, 3, -3, 1]]) / 6.0)
# What position, velocity and acceleration at the start contribute to the quintic that ends with all three at zero.
_FADE = _with_derivatives(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0.5], [-10, -6, -1.5], [15, 8, 1.5], [-6, -3, -0.5]]))


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
        self._segments = _spline_segments(chunk)
        self._fade: Array = np.zeros((6, _ORDERS * state.positions.shape[0]))
        own = self.state(start_ns)
        #: Distance between the motion in progress and the chunk at the splice, rad [J].
        self.jump: Array = np.abs(own.positions - state.positions)
        self._fade = _quintic_to_zero(state, own, self.window_ns / NS)

    def sample(self, times_ns: Times) -> Samples:
        """States at the given instants, clipped to [start, end]."""
        if len(times_ns) == 1:
            state = self.state(int(times_ns[0]))
            return Samples(times_ns, state.positions[None], state.velocities[None], state.accelerations[None])
        values = self.derivatives(times_ns)
        return Samples(times_ns, values[:, 0], values[:, 1], values[:, 2])

    def derivatives(self, times_ns: Times) -> Array:
        """Position, velocity, acceleration and jerk [S, 4, J] at the given instants, clipped to [start, end].

        The jerk steps at the rows; its value there is that of the later side.
        """
        times = np.minimum(np.maximum(times_ns, self.start_ns), self.end_ns)
        values = self._spline(times)
        since = times - self.start_ns
        fading = since < self.window_ns
        if fading.any():
            powers = _powers(since / self.window_ns, 6)
            powers *= fading[:, None]
            values += powers @ self._fade
        return values.reshape(len(times), _ORDERS, -1)

    def state(self, time_ns: int) -> JointsState:
        """State at one instant, clipped to [start, end]: the same formulas as for many, without their overhead."""
        time = min(max(time_ns, self.start_ns), self.end_ns)
        step_ns = self.chunk.step_ns
        since_first = time - self.chunk.due_ns(0)
        segment = min(max(since_first // step_ns, -1), self.chunk.rows - 2)
        s = (since_first - segment * step_ns) / step_ns
        values = np.array((1.0, s, s * s, s * s * s)) @ self._segments[segment + 1].reshape(4, -1)
        since = time - self.start_ns
        if since < self.window_ns:
            tau = since / self.window_ns
            square = tau * tau
            cube = square * tau
            values += np.array((1.0, tau, square, cube, square * square, square * cube)) @ self._fade
        positions, velocities, accelerations, _ = values.reshape(_ORDERS, -1)
        return JointsState(positions, velocities, accelerations)

    def _spline(self, times_ns: Times) -> Array:
        step_ns = self.chunk.step_ns
        since_first = times_ns - self.chunk.due_ns(0)
        segment = np.minimum(np.maximum(since_first // step_ns, -1), self.chunk.rows - 2)
        s = (since_first - segment * step_ns) / step_ns
        segments = self._segments[segment + 1].reshape(len(s), 4, -1)
        values: Array = (_powers(s, 4)[:, None, :] @ segments)[:, 0]
        return values


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

    def shift(self, offset_ns: int) -> None:
        """Let everything happen that much later, for a clock that was set."""
        self._motions = [Shifted(motion, offset_ns) for motion in self._motions]

    def prune(self, now_ns: int) -> None:
        """Drop motions that have been taken over before `now_ns`."""
        while len(self._motions) > 1 and self._motions[1].start_ns <= now_ns:
            self._motions.pop(0)

    def in_force(self, time_ns: int) -> Motion:
        """The motion in force at an instant."""
        for motion in reversed(self._motions):
            if motion.start_ns <= time_ns:
                return motion
        return self._motions[0]

    def sample(self, times_ns: Times) -> Samples:
        """States at ascending instants."""
        if len(self._motions) == 1:
            return self._motions[0].sample(times_ns)
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
        return self.in_force(time_ns).state(time_ns)


def _powers(values: Array, count: int) -> Array:
    """The powers 0 .. count - 1 of each value: [S] -> [S, count]."""
    powers = np.empty((len(values), count))
    powers[:, 0] = 1.0
    powers[:, 1:] = values[:, None]
    return np.multiply.accumulate(powers, axis=1, out=powers)


def _spline_segments(chunk: Chunk) -> Array:
    """Polynomial coefficients of all segments and orders [N, 4, 4, J]; segment k leads to row k.

    At both ends the rows are continued with the speed there, so that the curve meets the first and the last row.
    """
    rows = chunk.positions
    first, last = rows[1] - rows[0], rows[-1] - rows[-2]
    count, joints = rows.shape
    controls = np.empty((count + 3, joints))
    controls[0], controls[1], controls[-1] = rows[0] - 2 * first, rows[0] - first, rows[-1] + last
    controls[2:-1] = rows
    neighbours = np.array([controls[k : k + count].ravel() for k in range(4)])  # [4, N J]
    segments: Array = _spline_per_second(chunk.step_ns / NS) @ neighbours  # one product for all of them
    return segments.reshape(4, _ORDERS, count, joints).transpose(2, 0, 1, 3)


def _quintic_to_zero(state: JointsState, own: JointsState, window: float) -> Array:
    """Coefficients [6, 4 J] of the polynomial from the difference of two states to none, and of its derivatives."""
    position = state.positions - own.positions
    velocity = (state.velocities - own.velocities) * window
    acceleration = (state.accelerations - own.accelerations) * window**2
    return (_fade_per_second(window) @ np.array([position, velocity, acceleration])).reshape(6, -1)


# Both depend on a span alone, and nearly all chunks share theirs.


@lru_cache(maxsize=16)
def _spline_per_second(step: float) -> Array:
    return _per_second(_SPLINE, step)


@lru_cache(maxsize=16)
def _fade_per_second(window: float) -> Array:
    return _per_second(_FADE, window)


def _per_second(coefficients: Array, span: float) -> Array:
    """Turn derivatives by a parameter that runs 0..1 in `span` seconds into time derivatives: [P, 4, K] -> [4 P, K]."""
    scale = span ** -np.arange(_ORDERS, dtype=np.float64)
    return (coefficients * scale[None, :, None]).reshape(-1, coefficients.shape[2])
