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

import numpy as np

from cosmos3_ros.guard.chunk import Chunk
from cosmos3_ros.guard.kernels import FadedSpline
from cosmos3_ros.guard.motion import Array, JointsState, Motion, Samples, Shifted, Times


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
        self._spline = FadedSpline(
            chunk.positions,
            chunk.due_ns(0),
            chunk.step_ns,
            start_ns,
            self.window_ns,
            state.positions,
            state.velocities,
            state.accelerations,
        )
        #: Distance between the motion in progress and the chunk at the splice, rad [J].
        self.jump: Array = self._spline.jump
        self.largest_jump = self._spline.largest_jump

    def sample(self, times_ns: Times) -> Samples:
        """States at the given instants, clipped to [start, end]."""
        values = self.derivatives(times_ns)
        return Samples(times_ns, values[:, 0], values[:, 1], values[:, 2])

    def derivatives(self, times_ns: Times) -> Array:
        """Position, velocity, acceleration and jerk [S, 4, J] at the given instants, clipped to [start, end].

        The jerk steps at the rows; its value there is that of the later side.
        """
        return self._spline.derivatives(times_ns)

    def state(self, time_ns: int) -> JointsState:
        """State at one instant, clipped to [start, end]."""
        positions, velocities, accelerations, _ = self._spline.state(time_ns)
        return JointsState(positions, velocities, accelerations)


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
        only = self.in_force(int(times_ns[0]))
        if only is self.in_force(int(times_ns[-1])):
            return only.sample(times_ns)
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
