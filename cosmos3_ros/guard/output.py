"""The commanded motion: what the robot has been told, what it will be told next, and the stop that comes with it.

Every command carries a short piece of the planned motion and then its own braking to rest. So what the robot does is
known at every instant, even if the next command is late or never comes: it follows the piece, then it brakes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard import kernels
from cosmos3_ros.guard.executor import ChunkExecutor, ChunkMotion
from cosmos3_ros.guard.limits import RobotLimits
from cosmos3_ros.guard.motion import Hold, JointsState, Motion, Samples, instants
from cosmos3_ros.guard.options import GuardOptions
from cosmos3_ros.guard.reasons import Reason, Rejection, reject
from cosmos3_ros.guard.tracker import Braker, check_continuity, check_output

Array = NDArray[np.float64]


class CommandedMotion:
    """The motion the robot follows, kept in step with what has been sent to it."""

    def __init__(self, limits: RobotLimits, options: GuardOptions) -> None:
        self._limits = limits
        self._options = options
        self._braker = Braker(limits, options.brake_ramp_ns, options.period_ns)
        nowhere = np.full(len(limits.joint_names), np.nan)  # until anchored; no number that could be taken for a pose
        self._executor = ChunkExecutor(Hold(0, nowhere))
        self._tail: Motion = self._executor.latest  # what the robot does once the committed piece is over
        self._committed_ns: int | None = None  # until when sent and planned motion agree; None: for ever
        self._sent: Samples | None = None

    @property
    def chunk_motion(self) -> ChunkMotion | None:
        """The chunk that is played or about to be played; None while braking or at rest."""
        latest = self._executor.latest
        return latest if isinstance(latest, ChunkMotion) else None

    @property
    def braker(self) -> Braker:
        """What finds the stops of the commands; it depends on the limits alone."""
        return self._braker

    @property
    def end_ns(self) -> int:
        """When the planned motion ends."""
        return self._executor.end_ns

    def state(self, time_ns: int) -> JointsState:
        """Planned state at an instant; the present one is the commanded state."""
        return self._executor.state(time_ns)

    def playing(self, time_ns: int) -> ChunkMotion | None:
        """The chunk in force at an instant."""
        motion = self._executor.in_force(time_ns)
        return motion if isinstance(motion, ChunkMotion) else None

    def rest_since(self, now_ns: int) -> int | None:
        """Since when the command has been at rest; None while it moves or is about to."""
        return None if self.chunk_motion is not None or self.end_ns > now_ns else self.end_ns

    def is_stopping(self, now_ns: int) -> bool:
        """Whether the robot still follows a stop that it was sent."""
        return self._sent is not None and self.chunk_motion is None and self.end_ns > now_ns

    def anchor(self, positions: Array, since_ns: int) -> None:
        """Forget everything: the robot stands at `positions`, and has done so since `since_ns`."""
        self._follow(Hold(since_ns, positions))
        self._sent = None

    def takeover_ns(self, now_ns: int) -> int:
        """Earliest instant at which a new motion can begin without contradicting what has been sent."""
        soon = now_ns + 2 * self._options.period_ns  # the next tick has passed by then, even a late one
        return soon if self._committed_ns is None else max(soon, self._committed_ns)

    def adopt(self, motion: ChunkMotion) -> None:
        """Play a chunk from its start on: :meth:`takeover_ns` or later, or now if the robot is known to brake."""
        if self._committed_ns is None:
            self._tail = self._executor.latest
            self._committed_ns = motion.start_ns
        self._executor.splice(motion)

    def catch_up(self, now_ns: int) -> bool:
        """If the committed piece is over, the robot follows the tail of the last command: note that.

        Returns:
            Whether a motion was interrupted by that.
        """
        if self._committed_ns is None or now_ns <= self._committed_ns:
            return False
        self.let_brake()
        return True

    def let_brake(self) -> None:
        """Do nothing more: the robot comes to rest by what it has been sent."""
        tail = self._tail
        self._executor.splice(tail)
        self._tail, self._committed_ns = tail, None

    def brake(self, now_ns: int) -> None:
        """Begin to stop at once; where that does not fit the limits, by what has been sent."""
        brake = self._braker.brake(self.state(now_ns), now_ns)
        if brake is None:
            self.let_brake()
        else:
            self._follow(brake)

    def rebase(self, old_now_ns: int, now_ns: int) -> None:
        """Carry the stop that the robot was sent over to a clock that has jumped; it is all that the robot will do."""
        self.catch_up(old_now_ns)
        if self.rest_since(old_now_ns) is not None:
            self._follow(Hold(now_ns, self.state(old_now_ns).positions))
        else:
            self.let_brake()
            self._executor.shift(now_ns - old_now_ns)
            self._tail = self._executor.latest
        self._sent = None

    def advance(self, now_ns: int) -> Samples | Rejection:
        """The next command: the planned motion for the committed time, then a stop.

        Returns:
            Its points, or why there is none: then nothing has changed and :meth:`let_brake` is the way out.
        """
        self._executor.prune(now_ns)
        until = min(now_ns + self._options.commit_ns, self.end_ns)
        piece = self._executor.sample(instants(now_ns, until, self._options.period_ns))
        brake = self._braker.brake(piece.state(-1), until)
        if brake is None:
            return reject(Reason.STOPPING_DISTANCE, 'no stop within the limits from the motion planned next')
        points = _joined(piece, brake.points)
        fault = self._fault(points)
        if fault is not None:
            return fault
        self._tail, self._committed_ns, self._sent = brake, until, points
        return points

    def remainder(self, now_ns: int) -> Samples | Rejection:
        """What is left of the stop in progress, as a command of its own; two equal points once at rest."""
        self._executor.prune(now_ns)
        period = self._options.period_ns
        points = self._executor.sample(instants(now_ns, max(self.end_ns, now_ns + period), period))
        fault = self._fault(points)
        if fault is None:
            self._sent = points
            return points
        return fault

    def _follow(self, motion: Motion) -> None:
        self._executor.restart(motion)
        self._tail, self._committed_ns = motion, None

    def _fault(self, points: Samples) -> Rejection | None:
        fault = check_output(points, self._limits)
        if fault is None and self._sent is not None:
            fault = check_continuity(points, self._sent, self._limits)
        return fault


def _joined(piece: Samples, stop: Samples) -> Samples:
    """A piece of motion and the stop that begins with its last point."""
    return Samples(
        *kernels.joined(
            piece.times_ns,
            piece.positions,
            piece.velocities,
            piece.accelerations,
            stop.times_ns,
            stop.positions,
            stop.velocities,
            stop.accelerations,
        )
    )
