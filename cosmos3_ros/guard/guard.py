"""The guard: a small state machine between the policy and the robot.

    INACTIVE --activate--> WAITING --chunk accepted--> TRACKING --nothing more to play, something stale--> BRAKING
    BRAKING --at rest--> HOLDING --chunk accepted--> TRACKING          any --stop, fault--> FAULT --reset--> WAITING

It is fed with what arrives and asked once per control period for the next command. It knows no clock: every call says
what time it is, in integer nanoseconds. It starts no thread and raises nothing for bad input; calls must not overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard import kernels
from cosmos3_ros.guard.checks import (
    Acceptance,
    Observed,
    SpliceContext,
    check_chunk,
    check_freshness,
    check_slower,
    splice,
)
from cosmos3_ros.guard.chunk import Chunk, ReceivedChunk, arrange
from cosmos3_ros.guard.emergency_stop import EmergencyStop
from cosmos3_ros.guard.executor import ChunkMotion
from cosmos3_ros.guard.limits import RobotLimits
from cosmos3_ros.guard.motion import NS, JointsState, Samples
from cosmos3_ros.guard.options import GuardOptions
from cosmos3_ros.guard.output import CommandedMotion
from cosmos3_ros.guard.reasons import Reason, Rejection, reject
from cosmos3_ros.guard.state import Answer, Command, GuardState, Slowed
from cosmos3_ros.guard.statistics import Recorder, Statistics
from cosmos3_ros.guard.verdicts import Decision, Verdict, Verdicts
from cosmos3_ros.guard.watch import Watch

__all__ = ['Answer', 'Command', 'Guard', 'GuardState', 'Slowed']

Array = NDArray[np.float64]

# A chunk refused for one of these is not entered in the books: its numbers may be wrong or of another time.
_NOT_BOOKED = frozenset(
    {
        Reason.CHUNK_STALE_EPOCH,
        Reason.CHUNK_OUT_OF_ORDER,
        Reason.CHUNK_DUPLICATE,
        Reason.CHUNK_FROM_FUTURE,
        Reason.CHUNK_EXPIRED,
    }
)
# How far an arm may be behind its command, as a time.
_LAG_S = 0.1
# What is in the way while nothing is.
_NOTHING = reject(Reason.NONE, Reason.NONE.sentence)


class Guard:
    """Judges chunks, plays accepted ones within the limits, and stops when anything is not as it must be."""

    def __init__(
        self, limits: RobotLimits, options: GuardOptions | None = None, gripper_names: Sequence[str] = ()
    ) -> None:
        """Make an inactive guard.

        Args:
            limits: Limits of the robot; its order of joints is the order of all commands.
            options: Rates, time-outs and tolerances; the defaults suit a 100 Hz control period.
            gripper_names: Joints that stand for the robot's grippers; their order is that of `Command.gripper`.
        """
        self.limits = limits
        self.gripper_names = tuple(gripper_names)
        self.options = options or GuardOptions()
        self._watch = Watch(limits.joint_names, self.options)
        self._emergency_stop = EmergencyStop(self.options)
        self._verdicts = Verdicts(self.options)
        self._motion = CommandedMotion(limits, self.options)
        self._recorder = Recorder()
        self._state = GuardState.INACTIVE
        self._cause = reject(Reason.NOT_ACTIVE, Reason.NOT_ACTIVE.sentence)
        self._now_ns = 0
        self._epoch = 0
        self._sequence: int | None = None
        self._latched_ns = 0
        self._active_since_ns = 0
        self._apart_since_ns: int | None = None
        self._played: ChunkMotion | None = None
        self._late = False
        self._quiet = True
        self._lost = False  # the clock jumped in the middle of a motion; where the arm is has yet to be measured
        self._paused = False
        self._slowed: Slowed | None = None

    @property
    def state(self) -> GuardState:
        """What the guard is doing."""
        return self._state

    @property
    def cause(self) -> Rejection:
        """Why the robot is not (or no longer) moving: its reason is NONE while nothing is in the way."""
        return self._cause

    @property
    def epoch(self) -> int:
        """Chunks of older epochs are refused; a chunk of a newer one raises it."""
        return self._epoch

    @property
    def at_rest(self) -> bool:
        """Whether nothing was commanded to move, as of the last call."""
        return self._quiet and not self._motion.is_stopping(self._now_ns)

    @property
    def paused(self) -> bool:
        """Whether motion is paused on request."""
        return self._paused

    @property
    def buffer_ns(self) -> int:
        """Time that the accepted chunk still covers; 0 if there is none."""
        motion = self._motion.chunk_motion
        return 0 if motion is None else max(0, motion.end_ns - self._now_ns)

    def statistics(self) -> Statistics:
        """Counts and extremes since the last activation."""
        return self._recorder.snapshot()

    # What arrives

    def on_joint_state(
        self,
        stamp_ns: int,
        now_ns: int,
        names: Sequence[str],
        positions: Sequence[float] | Array,
        velocities: Sequence[float] | Array | None = None,
    ) -> Rejection | None:
        """Take a measured joint state.

        Args:
            stamp_ns: When it was measured.
            now_ns: Present time.
            names: Joints in any order; those that are not the robot's are ignored.
            positions: One per name, rad.
            velocities: One per name, rad/s; None or empty if unknown.

        Returns:
            Why it was not used; None if it was (or if a newer one is known already).
        """
        self._observe_clock(now_ns)
        discarded = self._watch.joint_states.receive(stamp_ns, now_ns, names, positions, velocities)
        self._watch.discarded = discarded
        if discarded is not None:
            self._recorder.discarded[discarded.reason] += 1
        return discarded

    def on_heartbeat(self, now_ns: int) -> None:
        """The policy process is alive."""
        self._observe_clock(now_ns)
        self._watch.heartbeat(now_ns)

    def on_source(self, name: str, stamp_ns: int, now_ns: int) -> None:
        """A source named in the options delivered something measured at `stamp_ns`."""
        self._observe_clock(now_ns)
        self._watch.source(name, stamp_ns, now_ns)

    def on_emergency_stop(self, pressed: bool, now_ns: int) -> None:
        """The emergency stop reports; pressed, it latches a stop that the next tick begins."""
        self._observe_clock(now_ns)
        self._emergency_stop.heard(pressed, now_ns)
        self._heed_emergency_stop(now_ns)

    def on_emergency_stop_lost(self, loss: Rejection, now_ns: int) -> None:
        """Whoever reports the emergency stop is gone, or late: stop and latch. `loss` says how that was noticed."""
        self._observe_clock(now_ns)
        self._emergency_stop.lost(loss)
        self._heed_emergency_stop(now_ns)

    def on_alarm(self, topic: str, alarm: Rejection | None, now_ns: int) -> None:
        """Something is wrong, or right again, with a topic: nothing moves while there is an alarm.

        An alarm can only stop the arm earlier than the ages of messages would; it never replaces their check.

        Args:
            topic: What it is about; each topic has one alarm at most.
            alarm: Why nothing may move; None: all is well again.
            now_ns: Present time.
        """
        self._observe_clock(now_ns)
        self._watch.alarm(topic, alarm)

    def on_verdict(self, verdict: Verdict, now_ns: int) -> Answer:
        """Imagination has judged a chunk; whatever it says can only make the arm slower or stop it.

        What it objects to is heeded by the next tick: call that at once.

        Args:
            verdict: As it arrived; nothing about it needs to be valid.
            now_ns: Present time.

        Returns:
            Whether it counts, and what it says; or why it is ignored.
        """
        self._observe_clock(now_ns)
        if self._state is GuardState.INACTIVE:
            return Answer(False, self._cause.text)
        said = self._verdicts.receive(verdict, now_ns)
        if not isinstance(said, Decision):
            self._recorder.verdicts_ignored += self.options.verdicts is not None
            return Answer(False, said)
        self._recorder.verdicts[said] += 1
        objection = self._verdicts.obstacle(now_ns)
        if said is Decision.STOP and self._verdicts.latches and objection is not None:
            self._latch(objection, now_ns)
        return Answer(True, said.name)

    def on_chunk(self, received: ReceivedChunk, now_ns: int) -> Acceptance | Rejection:
        """Judge a chunk and, if it is accepted, let it take over within two control periods.

        Args:
            received: The chunk as it arrived; nothing about it needs to be valid.
            now_ns: Present time.

        Returns:
            How it will be joined to the motion in progress, or why nothing of it will be executed.
        """
        self._observe_clock(now_ns)
        self._recorder.chunks_received += 1
        verdict = self._judge(received, now_ns)
        if isinstance(verdict, Rejection):
            self._recorder.rejections[verdict.reason] += 1
        else:
            self._recorder.chunks_accepted += 1
            self._recorder.rows_dropped += verdict.rows_dropped
            self._recorder.largest_splice_jump = max(self._recorder.largest_splice_jump, verdict.splice_jump)
        return verdict

    # What is asked for

    def activate(self, now_ns: int) -> Answer:
        """Begin to guard. Chunks from before are refused; the robot stays where it is until a chunk is accepted."""
        self._observe_clock(now_ns)
        if self._state is not GuardState.INACTIVE:
            return Answer(False, f'the guard is active already, in state {self._state}')
        self._recorder = Recorder()
        self._paused = False
        self._begin(now_ns)
        if self._motion.is_stopping(now_ns):  # deactivated a moment ago: bring that to its end first
            self._state, self._quiet = GuardState.BRAKING, False
        self._heed_emergency_stop(now_ns)
        return Answer(True, 'active; waiting for the first chunk')

    def deactivate(self, now_ns: int) -> Command | None:
        """Stop guarding.

        Returns:
            The last command to send: the stop from the present motion. None if the robot is at rest already.
        """
        self._observe_clock(now_ns)
        if self._state is GuardState.INACTIVE:
            return None
        inactive = reject(Reason.NOT_ACTIVE, Reason.NOT_ACTIVE.sentence)
        self._motion.catch_up(now_ns)
        self._stop(now_ns, GuardState.INACTIVE, inactive)
        last = None if self._quiet or self._lost else self._stopping_command(now_ns)
        self._quiet, self._lost = True, False
        self._verdicts = Verdicts(self.options, self._epoch, now_ns)
        return last

    def request_stop(self, text: str, now_ns: int) -> None:
        """Stop and latch: somebody wants the robot to stand still.

        Args:
            text: Who asks and why.
            now_ns: Present time.
        """
        self._observe_clock(now_ns)
        self._latch(reject(Reason.STOP_REQUESTED, text), now_ns)

    def pause(self, now_ns: int) -> None:
        """Come to rest and refuse chunks until :meth:`resume`; nothing is latched."""
        self._observe_clock(now_ns)
        self._paused = True

    def resume(self, now_ns: int) -> None:
        """Accept chunks again."""
        self._observe_clock(now_ns)
        self._paused = False

    def reset(self, now_ns: int) -> Answer:
        """Clear a latched fault, on behalf of a person who has looked.

        Returns:
            Granted only at rest, after the cool-down, and with a fresh joint state; else the text says what is in the
            way.
        """
        self._observe_clock(now_ns)
        if self._state is not GuardState.FAULT:
            return Answer(False, f'nothing is latched; the guard is in state {self._state}')
        left = self._latched_ns + self.options.reset_cooldown_ns - now_ns
        if left > 0:
            return Answer(False, f'too early: {left / NS:.2f} s of the cool-down are left ({self._cause.text})')
        if not self._quiet:
            return Answer(False, 'the robot is still braking')
        # Not the policy: it ends its run when a fault is latched, and is started anew after the reset.
        obstacle = self._emergency_stop.obstacle(now_ns) or self._watch.stale_joint_state(now_ns)
        if obstacle is not None:
            return Answer(False, obstacle.text)
        text = f'reset after {self._cause.text}'
        self._begin(now_ns)
        return Answer(True, f'{text}; epoch {self._epoch} begins, start the policy anew')

    def change_limits(self, limits: RobotLimits, now_ns: int) -> Answer:
        """Hold everything to other limits from now on; granted while the arm is at rest.

        Args:
            limits: Limits of the same joints in the same order.
            now_ns: Present time.
        """
        self._observe_clock(now_ns)
        if limits.joint_names != self.limits.joint_names:
            return Answer(False, f'limits of other joints: {", ".join(limits.joint_names)}')
        if not self.at_rest:
            return Answer(False, 'the arm moves; limits can be changed while it is at rest: call ~/pause first')
        rest, since = self._motion.state(now_ns), self._motion.rest_since(now_ns)
        self.limits = limits
        self._motion = CommandedMotion(limits, self.options)
        self._motion.anchor(rest.positions, now_ns if since is None else since)
        return Answer(True, f'limits of {limits.name} at scale {limits.scale:g}')

    def tick(self, now_ns: int) -> Command | None:
        """The command to send now; to be called once per control period.

        Returns:
            A trajectory that ends at rest; None when there is nothing (more) to say: the robot is at rest and has been
            told.
        """
        self._observe_clock(now_ns)
        self._heed_emergency_stop(now_ns)
        if self._state is GuardState.INACTIVE or self._quiet:
            return None
        self._late = self._motion.catch_up(now_ns) or self._late
        self._find_arm(now_ns)
        if self._lost or self._quiet:
            return None
        self._check_following(now_ns)
        if self._state is GuardState.TRACKING:
            self._supervise(now_ns)
        if self._state is GuardState.TRACKING:
            command = self._playing_command(now_ns)
            if command is not None:
                return command
        elif self._motion.chunk_motion is not None:
            self._motion.brake(now_ns)  # latched since the last tick
        return self._stopping_command(now_ns)

    def take_slowed(self) -> Slowed | None:
        """That the chunk in progress goes on more slowly since the last call; None if it does not."""
        slowed, self._slowed = self._slowed, None
        return slowed

    # How a chunk is judged

    def _judge(self, received: ReceivedChunk, now_ns: int) -> Acceptance | Rejection:
        refusal = self._not_ready(now_ns)
        if refusal is not None:
            return refusal
        chunk = arrange(received, self.limits.joint_names, self.gripper_names)
        if isinstance(chunk, Rejection):
            return chunk
        self._late = self._motion.catch_up(now_ns) or self._late
        self._find_arm(now_ns)
        if self._lost:
            return reject(Reason.CLOCK_JUMP, 'the arm may still follow what it was sent before')
        anchor = self._anchor(now_ns)
        if isinstance(anchor, Rejection):
            return anchor
        books = self._verdicts.in_epoch(chunk.epoch, now_ns)
        context = self._context(chunk, anchor, books, now_ns)
        objection = books.obstacle(now_ns)
        verdict: Acceptance | Rejection
        if objection is None:
            verdict = check_chunk(chunk, self.limits, context, self.options.checks, self._motion.braker)
        else:  # what is refused for this is booked: imagination judges it all the same
            verdict = check_freshness(chunk, context, self.options.checks) or objection
        if isinstance(verdict, Acceptance) or verdict.reason not in _NOT_BOOKED:
            self._epoch, self._sequence, self._verdicts = chunk.epoch, chunk.sequence, books
        if isinstance(verdict, Acceptance):
            self._adopt(verdict, anchor, now_ns)
        return verdict

    def _not_ready(self, now_ns: int) -> Rejection | None:
        """Why no chunk is welcome at all."""
        if self._state is GuardState.INACTIVE:
            return self._cause
        if self._state is GuardState.FAULT:
            return reject(Reason.FAULT_LATCHED, self._cause.text)
        return self._obstacle_apart_from_verdicts(now_ns)

    def obstacle(self, now_ns: int) -> Rejection | None:
        """What forbids motion at this instant, latched faults apart.

        Emergency stop, pause, alarm, a stale source, a verdict of imagination: the first that is in the way.
        """
        return self._obstacle_apart_from_verdicts(now_ns) or self._verdicts.obstacle(now_ns)

    def _obstacle_apart_from_verdicts(self, now_ns: int) -> Rejection | None:
        demanded = self._emergency_stop.obstacle(now_ns)
        if demanded is not None:
            return demanded
        return reject(Reason.PAUSED, Reason.PAUSED.sentence) if self._paused else self._watch.stale(now_ns)

    def _anchor(self, now_ns: int) -> Array | Rejection | None:
        """Where the next motion has to start if not from the last command: measured positions [J]."""
        measured = self._watch.joint_states.latest
        if measured is None:
            return reject(Reason.STALE_JOINT_STATE, 'no joint state yet')
        if self.options.dry_run:
            return measured.positions
        if self._state not in (GuardState.WAITING, GuardState.HOLDING):
            return None
        apart = np.abs(self._motion.state(now_ns).positions - measured.positions).max()
        if self._state is GuardState.HOLDING and apart <= self.options.reanchor_rad:
            return None
        return self._moving(measured) or measured.positions

    def _moving(self, measured: Observed) -> Rejection | None:
        """Refuse to take over an arm that somebody else moves at this instant."""
        speeds = np.abs(measured.velocities)
        joint, limit = int(speeds.argmax()), self.options.standstill_rad_s
        if speeds[joint] <= limit:
            return None
        name, value = self.limits.joint_names[joint], float(speeds[joint])
        return reject(Reason.ROBOT_MOVING, 'measured speed', joint=name, value=value, limit=limit, unit='rad/s')

    def _context(self, chunk: Chunk, anchor: Array | None, books: Verdicts, now_ns: int) -> SpliceContext:
        observed = self._watch.joint_states.at(chunk.stamp_ns)
        if anchor is None:
            start_ns = max(self._motion.takeover_ns(now_ns), chunk.stamp_ns)
            state, since = self._motion.state(start_ns), self._motion.rest_since(now_ns)
        else:
            start_ns = max(now_ns + 2 * self.options.period_ns, chunk.stamp_ns)
            state, since = JointsState.at_rest(anchor), self._anchored_since(now_ns)
        cap = books.cap(now_ns)
        return SpliceContext(now_ns, start_ns, state, observed, since, self._epoch, self._sequence, cap)

    def _anchored_since(self, now_ns: int) -> int:
        """Since when the robot stands where it is measured, as far as the guard can tell."""
        return self._active_since_ns if self._state is GuardState.WAITING or self.options.dry_run else now_ns

    def _adopt(self, accepted: Acceptance, anchor: Array | None, now_ns: int) -> None:
        if anchor is not None:
            self._motion.anchor(anchor, self._anchored_since(now_ns))
        self._motion.adopt(accepted.motion)
        self._played = accepted.motion
        self._slowed = None
        self._state = GuardState.TRACKING
        self._cause = _NOTHING
        self._late = self._quiet = False
        self._apart_since_ns = None

    # How the motion goes on, or ends

    def _supervise(self, now_ns: int) -> None:
        """While playing: stop for whatever is in the way; mend a late tick; slow down if somebody wants that."""
        obstacle = self.obstacle(now_ns)
        motion = self._motion.chunk_motion
        if obstacle is not None:
            self._stop(now_ns, GuardState.BRAKING, obstacle)
        elif self._late:
            self._resume_late(now_ns)
        elif motion is not None and motion.end_ns - now_ns < self.options.period_ns:
            self._starve()
        elif motion is not None:
            self._heed_cap(motion, now_ns)

    def _heed_cap(self, motion: ChunkMotion, now_ns: int) -> None:
        """Let the chunk in progress go on as slowly as it has to, along its path; brake if that cannot be."""
        cap = self._verdicts.cap(now_ns)
        if cap is None or cap.allows(motion.chunk):
            return
        start_ns = max(self._motion.takeover_ns(now_ns), motion.start_ns)
        state = self._motion.state(start_ns)
        context = SpliceContext(now_ns, start_ns, state, None, None, self._epoch, self._sequence)
        slower = check_slower(motion, cap, self.limits, context, self.options.checks, self._motion.braker)
        if isinstance(slower, Acceptance):
            self._motion.adopt(slower.motion)
            self._played, self._slowed = slower.motion, Slowed(slower, cap.why)
        else:
            self._stop(now_ns, GuardState.BRAKING, reject(Reason.VERDICT_SLOW, f'{cap.why}; but {slower.text}'))

    def _resume_late(self, now_ns: int) -> None:
        """The robot has begun to brake because this tick is late: rejoin the chunk if the limits allow it."""
        self._late = False
        motion = self._played
        if motion is None or motion.end_ns - now_ns < motion.chunk.step_ns:
            self._starve()
            return
        state, cap = self._motion.state(now_ns), self._verdicts.cap(now_ns)
        slow = cap is not None and not cap.allows(motion.chunk)
        chunk = cap.slowed(motion.chunk, now_ns) if cap is not None and slow else motion.chunk
        joined = splice(chunk, self.limits, now_ns, state, self.options.checks, self._motion.braker)
        late = reject(Reason.TICK_LATE, Reason.TICK_LATE.sentence)
        self._recorder.stops[Reason.TICK_LATE] += 1
        if isinstance(joined, Acceptance):
            self._motion.adopt(joined.motion)
            self._played = joined.motion
            self._slowed = Slowed(joined, cap.why) if cap is not None and slow else self._slowed
        else:
            self._state, self._cause = GuardState.BRAKING, late

    def _starve(self) -> None:
        self._motion.let_brake()
        self._enter(GuardState.BRAKING, reject(Reason.STARVED, Reason.STARVED.sentence))

    def _stop(self, now_ns: int, state: GuardState, cause: Rejection) -> None:
        """Begin to brake now, unless that has been done."""
        if self._motion.chunk_motion is not None:
            self._motion.brake(now_ns)
        self._enter(state, cause)

    def _enter(self, state: GuardState, cause: Rejection) -> None:
        if not self._quiet:
            self._recorder.stops[cause.reason] += 1
        self._state, self._cause = state, cause

    def _latch(self, cause: Rejection, now_ns: int) -> None:
        """Latch a fault; the next tick begins to brake. Another one prolongs the cool-down, the first cause stays."""
        self._latched_ns = now_ns
        if self._state not in (GuardState.INACTIVE, GuardState.FAULT):
            self._enter(GuardState.FAULT, cause)

    def _begin(self, now_ns: int) -> None:
        """Stand still and wait, in a new epoch: nothing computed before counts any more."""
        self._state = GuardState.WAITING
        self._cause = reject(Reason.NONE, 'waiting for the first chunk')
        self._begin_epoch(now_ns)
        self._active_since_ns = now_ns
        self._late, self._quiet, self._lost = False, True, False

    def _begin_epoch(self, now_ns: int) -> None:
        self._epoch, self._sequence = self._epoch + 1, None
        self._verdicts = self._verdicts.in_epoch(self._epoch, now_ns)

    def _playing_command(self, now_ns: int) -> Command | None:
        points = self._motion.advance(now_ns)
        if isinstance(points, Rejection):
            self._motion.let_brake()
            if points.reason is Reason.OUTPUT_CHECK:
                self._latch(points, now_ns)
            else:
                self._enter(GuardState.BRAKING, points)
            return None
        return self._command(points, now_ns)

    def _stopping_command(self, now_ns: int) -> Command | None:
        """What is left of the stop. The last one says that the robot is at rest; after it there is silence."""
        points = self._motion.remainder(now_ns)
        if isinstance(points, Rejection):
            self._latch(points, now_ns)
            self._quiet = True  # what was sent before ends at rest; nothing better is known
            return None
        if self._motion.end_ns <= now_ns:
            self._rest()
        return self._command(points, now_ns)

    def _command(self, points: Samples, now_ns: int) -> Command:
        self._recorder.executed(points, now_ns + self.options.period_ns, self.limits)
        playing = self._motion.playing(now_ns)
        gripper = None
        if playing is not None:
            self._recorder.aged(now_ns - playing.chunk.stamp_ns)
            if playing.chunk.gripper is not None:
                wanted = playing.chunk.gripper[playing.chunk.row_at(now_ns)].tolist()
                gripper = tuple(min(max(one, 0.0), 1.0) for one in wanted)  # beyond its travel: fully open or closed
        return Command(
            now_ns,
            self.limits.joint_names,
            points.times_ns - now_ns,
            points.positions,
            points.velocities,
            points.accelerations,
            gripper,
            self._state,
            self._cause.reason,
        )

    # What must not happen

    def _heed_emergency_stop(self, now_ns: int) -> None:
        """Latch what the emergency stop demands; as long as it does, the cool-down begins anew."""
        demand = self._emergency_stop.demand(now_ns)
        if demand is not None:
            self._latch(demand, now_ns)

    def _check_following(self, now_ns: int) -> None:
        """Latch a fault if the robot has been away from its commanded position for too long."""
        measured, stamp_ns = self._watch.joint_states.latest, self._watch.joint_states.stamp_ns
        moving = self._state in (GuardState.TRACKING, GuardState.BRAKING) and not self.options.dry_run
        if not moving or measured is None or stamp_ns is None:
            self._apart_since_ns = None
            return
        joint, apart = kernels.farthest(self._motion.state(stamp_ns).positions, measured.positions)
        limit = self.options.tracking_error_rad
        if apart <= limit:
            self._apart_since_ns = None
            return
        self._apart_since_ns = stamp_ns if self._apart_since_ns is None else self._apart_since_ns
        if stamp_ns - self._apart_since_ns >= self.options.tracking_error_hold_ns:
            name, value = self.limits.joint_names[joint], apart
            what = 'distance between commanded and measured position'
            cause = reject(Reason.TRACKING_ERROR, what, joint=name, value=value, limit=limit, unit='rad')
            self._latch(cause, now_ns)

    def _find_arm(self, now_ns: int) -> None:
        """After a jump of the clock, say nothing until a joint state of the new time confirms where the arm is.

        It stops by what it was sent. A simulation that started over has put it somewhere else, and a command for the
        old place would throw it there: the guard is silent then until the stop is over, and begins where the arm is.
        """
        if not self._lost:
            return
        measured, stamp_ns = self._watch.joint_states.latest, self._watch.joint_states.stamp_ns
        if measured is not None and stamp_ns is not None:
            planned = self._motion.state(stamp_ns)
            allowed = self.options.reanchor_rad + _LAG_S * np.abs(planned.velocities)
            self._lost = bool((np.abs(planned.positions - measured.positions) > allowed).any())
        if self._lost and self._motion.end_ns <= now_ns:  # whatever was sent is over
            self._lost = False
            self._rest()

    def _rest(self) -> None:
        """Nothing is left to say: silence from now on."""
        self._quiet = True
        self._state = GuardState.HOLDING if self._state is GuardState.BRAKING else self._state

    def _observe_clock(self, now_ns: int) -> None:
        """Notice a clock that runs backwards: everything known is of another time then; stop."""
        before, self._now_ns = self._now_ns, now_ns
        if now_ns >= before - self.options.clock_tolerance_ns:
            return
        self._watch.forget()
        self._emergency_stop.forget()
        self._latched_ns = min(self._latched_ns, now_ns)
        self._active_since_ns = now_ns
        self._apart_since_ns = None
        self._motion.rebase(before, now_ns)
        self._lost = not self._quiet
        self._begin_epoch(now_ns)
        if self._state in (GuardState.TRACKING, GuardState.BRAKING, GuardState.HOLDING):
            jump = reject(Reason.CLOCK_JUMP, 'the clock ran backwards by', value=(before - now_ns) / NS, unit='s')
            self._enter(GuardState.HOLDING if self._quiet else GuardState.BRAKING, jump)
