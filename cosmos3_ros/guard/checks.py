"""Judges a whole chunk before any of its rows moves the arm: accepts it with a splice that fits, or says why not.

Nothing is ever clamped. The rows are checked as they are; then the motion that would really be executed, from the
present commanded state through the fade into the chunk, is checked in continuous time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard import kernels
from cosmos3_ros.guard.chunk import Chunk
from cosmos3_ros.guard.executor import ChunkMotion
from cosmos3_ros.guard.limits import RobotLimits
from cosmos3_ros.guard.motion import NS, Array, JointsState, Times
from cosmos3_ros.guard.options import CheckOptions
from cosmos3_ros.guard.pace import SLOWER_HELPS, PaceCap, at_pace, paces
from cosmos3_ros.guard.place_checks import check_places
from cosmos3_ros.guard.reasons import Reason, Rejection, reject
from cosmos3_ros.guard.tracker import Braker, stopping_displacement

# The fade is looked at on a grid; between two of its points a peak may be a little higher. With this many points per
# row # and three rows the error stays below 0.4 % of a quintic's acceleration peak (h²/8 times the fourth derivative).
_POINTS_PER_ROW = 16
_HEADROOM = 0.99
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Observed:
    """Measured joints at the time a chunk was computed from, each [J]: positions rad, velocities rad/s."""

    positions: Array
    velocities: Array


@dataclass(frozen=True)
class SpliceContext:
    """What the guard knows when a chunk arrives.

    Attributes:
        now_ns: Present time.
        start_ns: Instant from which on the chunk can take over; later than what has been committed to the robot.
        state: Commanded state at `start_ns`.
        observed: Measured joints at the chunk's stamp; None if they are not remembered.
        rest_since_ns: Since when the command has been at rest; None while it moves.
        epoch: Present epoch.
        last_sequence: Last sequence number seen in this epoch; None if there was none.
        cap: How fast a chunk may be played at most; None: at its own pace.
    """

    now_ns: int
    start_ns: int
    state: JointsState
    observed: Observed | None
    rest_since_ns: int | None
    epoch: int
    last_sequence: int | None
    cap: PaceCap | None = None


@dataclass(frozen=True)
class Acceptance:
    """A chunk that may be executed.

    Attributes:
        motion: The motion to take over at its `start_ns`.
        rows_dropped: Rows that are due before the splice and will not be approached.
        window_rows: Length of the fade, in rows.
        splice_jump: Distance between the motion in progress and the chunk at the splice, largest over the joints, rad.
    """

    motion: ChunkMotion
    rows_dropped: int
    window_rows: int
    splice_jump: float


def check_chunk(
    chunk: Chunk, limits: RobotLimits, context: SpliceContext, options: CheckOptions, braker: Braker | None = None
) -> Acceptance | Rejection:
    """Judge a well-formed chunk.

    Args:
        chunk: Output of :func:`cosmos3_ros.guard.chunk.arrange`.
        limits: Limits of the robot, joints in the chunk's order.
        context: State of the motion in progress and of the books.
        options: Tolerances.
        braker: Finds the stop from the end of the chunk; None: one with the guard's default options.

    Returns:
        The shortest admissible splice, at the chunk's own pace if that can be, else slower along the same path as far
        as the options allow; or the first reason that speaks against the chunk at its own pace. With a cap it is then
        judged once more, at the pace that the cap allows: a cap lets nothing through that would not pass without it.
    """
    stale = check_freshness(chunk, context, options) or check_start(chunk, limits, context, options)
    if stale is not None:
        return stale
    since = context.rest_since_ns
    if options.replay_from_rest and since is not None and since <= chunk.stamp_ns:
        chunk = chunk.starting_at(context.start_ns)
    verdict = _check_down_to(options.slowest_pace, chunk, limits, context, options, braker)
    cap = context.cap
    if isinstance(verdict, Rejection) or cap is None or cap.allows(verdict.motion.chunk):
        return verdict
    origin_ns = chunk.due_ns(0) - chunk.step_ns
    slowed = cap.slowed(chunk, min(max(cap.since_ns, origin_ns), context.start_ns))
    verdict = _check_down_to(options.slowest_pace / cap.pace, slowed, limits, context, options, braker)
    if isinstance(verdict, Acceptance):
        return verdict
    return replace(verdict, text=f'{verdict.text} (at {slowed.pace:.2f} of its own pace: {cap.why})')


def check_slower(
    motion: ChunkMotion,
    cap: PaceCap,
    limits: RobotLimits,
    context: SpliceContext,
    options: CheckOptions,
    braker: Braker | None = None,
) -> Acceptance | Rejection:
    """Judge the rest of a chunk that is being played, at the pace that a cap allows.

    Args:
        motion: What is being played.
        cap: How fast it may go on.
        limits: Limits of the robot.
        context: Says when the change can begin, and the commanded state then. Chunk and measurement have been compared
            when the chunk was accepted: they are not again.
        options: Tolerances.
        braker: As for :func:`check_chunk`.

    Returns:
        How it goes on, along the same path; or why it cannot at this pace.
    """
    return _check_at_pace(cap.slowed(motion.chunk, context.start_ns), limits, context, options, braker)


def _check_down_to(
    slowest: float,
    chunk: Chunk,
    limits: RobotLimits,
    context: SpliceContext,
    options: CheckOptions,
    braker: Braker | None,
) -> Acceptance | Rejection:
    """Judge a chunk as it is timed, and if it is too fast at ever slower paces, down to `slowest` times its own."""
    verdict = _check_at_pace(chunk, limits, context, options, braker)
    if isinstance(verdict, Acceptance) or verdict.reason not in SLOWER_HELPS or slowest >= 1.0:
        return verdict
    for pace in paces(chunk, limits, slowest):
        slower = _check_at_pace(at_pace(chunk, pace, context.start_ns), limits, context, options, braker)
        if isinstance(slower, Acceptance):
            return slower
        if slower.reason not in SLOWER_HELPS:
            break
    return verdict


def _check_at_pace(
    chunk: Chunk, limits: RobotLimits, context: SpliceContext, options: CheckOptions, braker: Braker | None
) -> Acceptance | Rejection:
    wrong = check_time_left(chunk, context) or check_rows(chunk, limits, context.state)
    return wrong or splice(chunk, limits, context.start_ns, context.state, options, braker)


def check_freshness(chunk: Chunk, context: SpliceContext, options: CheckOptions) -> Rejection | None:
    """Refuse chunks of an older epoch, repeated or overtaken ones, and stamps that are too old or lie ahead."""
    if chunk.epoch < context.epoch:
        return reject(Reason.CHUNK_STALE_EPOCH, f'epoch {chunk.epoch}, present epoch {context.epoch}')
    last = context.last_sequence
    if chunk.epoch == context.epoch and last is not None and chunk.sequence <= last:
        reason = Reason.CHUNK_DUPLICATE if chunk.sequence == last else Reason.CHUNK_OUT_OF_ORDER
        return reject(reason, f'sequence {chunk.sequence}, last seen {last}')
    age = context.now_ns - chunk.stamp_ns
    if -age > options.future_tolerance_ns:
        limit = options.future_tolerance_ns / NS
        return reject(Reason.CHUNK_FROM_FUTURE, 'stamp ahead of the clock by', value=-age / NS, limit=limit, unit='s')
    if age > options.max_age_ns:
        limit = options.max_age_ns / NS
        return reject(Reason.CHUNK_EXPIRED, 'age of its observation', value=age / NS, limit=limit, unit='s')
    return None


def check_time_left(chunk: Chunk, context: SpliceContext) -> Rejection | None:
    """Refuse a chunk of which less than one row remains after the splice."""
    left = chunk.end_ns - context.start_ns
    if left >= chunk.step_ns:
        return None
    what = 'time left after the splice'
    return reject(Reason.CHUNK_EXPIRED, what, value=left / NS, limit=chunk.step_ns / NS, unit='s')


def check_start(chunk: Chunk, limits: RobotLimits, context: SpliceContext, options: CheckOptions) -> Rejection | None:
    """Refuse a chunk whose first row is not near the robot's measured pose at the time of its observation.

    A moving arm may be ahead: by one step, and by the lag of its drives behind the command.
    """
    if context.observed is None:
        return reject(Reason.CHUNK_EXPIRED, 'no joint state is remembered for the time of its observation')
    reach = (chunk.step_ns + options.tracking_lag_ns) / NS
    allowed = options.start_jump_rad + np.abs(context.observed.velocities) * reach
    jump = (chunk.positions[0] - context.observed.positions)[None]
    return _first_above(Reason.START_JUMP, 'distance from the measured position', jump, allowed, limits, 'rad')


def check_rows(chunk: Chunk, limits: RobotLimits, state: JointsState) -> Rejection | None:
    """Check positions, and first, second and third differences of all rows against the limits.

    For the B-spline that is executed these differences *are* the extremes of position, speed, acceleration and jerk.
    """
    rows, dt = chunk.positions, chunk.step_ns / NS
    lower, upper = position_bounds(limits, state)
    if not kernels.rows_keep(rows, dt, lower, upper, limits.velocity, limits.acceleration, limits.jerk, _ROUNDING):
        found = _first_row_beyond(rows, dt, limits, lower, upper)
        if found is not None:
            return found
    return None if limits.near_ends is None else _check_row_speeds(rows, dt, limits)


def _first_row_beyond(rows: Array, dt: float, limits: RobotLimits, lower: Array, upper: Array) -> Rejection | None:
    outside = _first_outside(Reason.POSITION_LIMIT, 'position', rows, lower, upper, limits)
    if outside is not None:
        return outside
    rate = rows
    for order, (reason, what, limit, unit) in enumerate(_rates(limits), start=1):
        rate = (rate[1:] - rate[:-1]) / dt
        found = _first_above(reason, what, rate, limit, limits, unit, first_row=order)
        if found is not None:
            return found
    return None


def _check_row_speeds(rows: Array, dt: float, limits: RobotLimits) -> Rejection | None:
    """Check the speed between rows against the limit at the row it leads to, which is the lower one outwards."""
    speeds = np.diff(rows, axis=0) / dt
    lowest, highest = limits.velocity_bounds(rows[1:])
    excess = np.maximum(speeds - highest, lowest - speeds)
    if excess.max() <= _ROUNDING:
        return None
    index = int((excess > _ROUNDING).any(axis=1).argmax())
    joint = int(excess[index].argmax())
    value, name = float(speeds[index, joint]), limits.joint_names[joint]
    bound = float(highest[index, joint] if value > 0.0 else -lowest[index, joint])
    what = 'speed near the end of the range'
    return reject(Reason.VELOCITY_LIMIT, what, joint=name, row=index + 1, value=abs(value), limit=bound, unit='rad/s')


def splice(
    chunk: Chunk,
    limits: RobotLimits,
    start_ns: int,
    state: JointsState,
    options: CheckOptions,
    braker: Braker | None = None,
) -> Acceptance | Rejection:
    """Find the shortest fade by which the chunk can take over within the limits.

    Args:
        chunk: A chunk whose rows have been checked.
        limits: Limits of the robot.
        start_ns: Instant of the splice, before the last row is due.
        state: Commanded state at that instant.
        options: The windows to try, in rows, and the largest jump.
        braker: Finds the stop from the end of the chunk; None: one with the guard's default options.

    Returns:
        The splice, or what is wrong with the longest fade tried.
    """
    verdict: Rejection | None = None
    for rows in options.blend_rows:
        motion = ChunkMotion(chunk, start_ns, state, rows * chunk.step_ns)
        verdict = _check_jump(motion, limits, options) or check_motion(motion, limits, state, braker)
        if verdict is None:
            dropped = max(0, (start_ns - chunk.due_ns(0)) // chunk.step_ns + 1)
            return Acceptance(motion, int(dropped), rows, motion.largest_jump)
        if verdict.reason is Reason.SPLICE_JUMP or motion.window_ns < rows * chunk.step_ns:
            break  # a longer window cannot mend it
    return verdict or reject(Reason.SPLICE_JUMP, 'no blend window is configured')


def check_motion(
    motion: ChunkMotion, limits: RobotLimits, state: JointsState, braker: Braker | None = None
) -> Rejection | None:
    """Check the motion that would be executed: the fade in continuous time, and that the arm can stop at any instant.

    After the fade the motion is the chunk's own spline, whose extremes are the differences of its rows. And a joint can
    stop from any instant without going beyond where the motion itself turns round, because the motion turns with no
    more than the same acceleration and jerk; so only the stop from its end needs a look. The same holds for speed
    limits that shrink towards the ends of a range: the hardest stop is at no place faster than the motion was there.

    It does not hold for the tool and the body, because the joints of a stop leave the path. They are checked along the
    motion and in the stop from its end; stops from in between are checked one by one before they are sent.
    """
    lower, upper = position_bounds(limits, state)
    times = _fade_grid(motion)
    values = motion.derivatives(times)
    if not kernels.states_keep(
        values, lower, upper, limits.velocity, limits.acceleration, limits.jerk, _HEADROOM, _ROUNDING
    ):
        found = _first_beyond(values, motion.chunk.rows_at(times), limits, lower, upper)
        if found is not None:
            return found
    outside = _check_stopping_distance(motion, limits, lower, upper)
    return outside or check_places(motion, limits, times, values, braker)


def _first_beyond(
    values: Array, rows: NDArray[np.int64], limits: RobotLimits, lower: Array, upper: Array
) -> Rejection | None:
    """The first kind of limit that a fade [S, 4, J] breaks, at the earliest of its instants; `rows` names them."""
    outside = _first_outside(Reason.POSITION_LIMIT, 'position', values[:, 0], lower, upper, limits, rows)
    if outside is not None:
        return outside
    for order, (reason, what, limit, unit) in enumerate(_rates(limits), start=1):
        of_splice = f'{what} of the splice'
        found = _first_above(reason, of_splice, values[:, order], _HEADROOM * limit, limits, unit, rows=rows)
        if found is not None:
            return found
    return None


def _check_stopping_distance(motion: ChunkMotion, limits: RobotLimits, lower: Array, upper: Array) -> Rejection | None:
    end = motion.state(motion.end_ns)
    # Only near the ends of the range is the way needed exactly.
    if kernels.has_room_to_stop(
        end.positions, end.velocities, end.accelerations, lower, upper, limits.acceleration, limits.jerk
    ):
        return None
    way = stopping_displacement(end.velocities, end.accelerations, limits.acceleration, limits.jerk)
    what, last = 'would come to rest at', np.array([motion.chunk.rows - 1])
    return _first_outside(Reason.STOPPING_DISTANCE, what, (end.positions + way)[None], lower, upper, limits, last)


def position_bounds(limits: RobotLimits, state: JointsState) -> tuple[Array, Array]:
    """Range a chunk may use, rad [J] each: the limits less the margin, widened to where the arm is already.

    An arm that stands inside the margin may leave it inwards, never go further out; the hard limit stays.
    """
    lower, upper = kernels.position_bounds(limits.lower, limits.upper, limits.margin, state.positions)
    return lower, upper


def _rates(limits: RobotLimits) -> tuple[tuple[Reason, str, Array, str], ...]:
    return (
        (Reason.VELOCITY_LIMIT, 'speed', limits.velocity, 'rad/s'),
        (Reason.ACCELERATION_LIMIT, 'acceleration', limits.acceleration, 'rad/s^2'),
        (Reason.JERK_LIMIT, 'jerk', limits.jerk, 'rad/s^3'),
    )


def _fade_grid(motion: ChunkMotion) -> Times:
    """Instants from the start of a fade to its end; the rows, where the jerk steps, are among them."""
    start, chunk = motion.start_ns, motion.chunk
    return kernels.times_between(start, start + motion.window_ns, chunk.due_ns(0), chunk.step_ns, _POINTS_PER_ROW)


def _check_jump(motion: ChunkMotion, limits: RobotLimits, options: CheckOptions) -> Rejection | None:
    if motion.largest_jump <= options.splice_jump_rad:
        return None
    row = np.array([motion.chunk.row_at(motion.start_ns)])
    allowed = np.full(len(motion.jump), options.splice_jump_rad)
    what = 'distance from the commanded position'
    return _first_above(Reason.SPLICE_JUMP, what, motion.jump[None], allowed, limits, 'rad', rows=row)


def _first_above(
    reason: Reason,
    what: str,
    values: Array,
    limit: Array,
    limits: RobotLimits,
    unit: str,
    *,
    first_row: int = 0,
    rows: NDArray[np.int64] | None = None,
) -> Rejection | None:
    """The earliest entry of |values| [S, J] above its limit [J]; among the joints of that instant the worst."""
    if kernels.none_above(values, limit, _ROUNDING):
        return None
    ratio = np.abs(values) / limit
    index = int((ratio > 1.0 + _ROUNDING).any(axis=1).argmax())
    joint = int(ratio[index].argmax())
    row = index + first_row if rows is None else int(rows[index])
    value, bound = float(abs(values[index, joint])), float(limit[joint])
    return reject(reason, what, joint=limits.joint_names[joint], row=row, value=value, limit=bound, unit=unit)


def _first_outside(
    reason: Reason,
    what: str,
    values: Array,
    lower: Array,
    upper: Array,
    limits: RobotLimits,
    rows: NDArray[np.int64] | None = None,
) -> Rejection | None:
    """The earliest entry of values [S, J] outside its range; among the joints of that instant the worst."""
    excess = np.maximum(lower - values, values - upper)
    if not excess.size or excess.max() <= _ROUNDING:
        return None
    index = int((excess > _ROUNDING).any(axis=1).argmax())
    joint = int(excess[index].argmax())
    row = index if rows is None else int(rows[index])
    value = float(values[index, joint])
    bound = float(upper[joint] if value > upper[joint] else lower[joint])
    return reject(reason, what, joint=limits.joint_names[joint], row=row, value=value, limit=bound, unit='rad')
