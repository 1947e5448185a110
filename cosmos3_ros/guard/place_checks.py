"""Checks of a motion that depend on where it leads: the speed near the ends of the joints, the tool, the body.

They come last, because they cost the most; what reaches them keeps the limits of every joint by itself.
"""

from __future__ import annotations

import numpy as np

from cosmos3_ros.guard import kernels
from cosmos3_ros.guard.body import Finding
from cosmos3_ros.guard.executor import ChunkMotion
from cosmos3_ros.guard.limits import RobotLimits
from cosmos3_ros.guard.motion import NS, Array, Samples, Times
from cosmos3_ros.guard.options import GuardOptions
from cosmos3_ros.guard.reasons import Reason, Rejection, reject
from cosmos3_ros.guard.stop_check import keeps_near_ends
from cosmos3_ros.guard.tracker import Braker

_HEADROOM = 0.99
# A fade's peaks between the points of its grid are this little above those at them; see checks.py.
_PEAKS = 1.01
_POINTS_PER_ROW = 8


def check_places(
    motion: ChunkMotion, limits: RobotLimits, fade_times: Times, fade: Array, braker: Braker | None = None
) -> Rejection | None:
    """Check what depends on the place, along the motion and in the stop from its end.

    Args:
        motion: The motion that would be executed; it keeps the limits of each joint.
        limits: Limits of the robot.
        fade_times: Instants of a grid over the fade [S], ns.
        fade: Position, velocity, acceleration and jerk there [S, 4, J].
        braker: Finds the stop from the end as it would be executed; None: one with the guard's default options.
    """
    body = limits.body
    if body is None and limits.near_ends is None:
        return None
    # Largest acceleration and jerk of each joint, of the chunk's own spline and of the whole motion.
    rows = kernels.row_peaks(motion.chunk.positions, motion.chunk.step_ns / NS)
    peaks = np.maximum(rows, _PEAKS * kernels.magnitudes(fade)[2:])
    found = _check_near_ends(motion, limits, fade_times, fade, (rows[1], peaks[1]))
    if found is not None:
        return found
    braker = braker or _default_braker(limits)
    if body is not None:
        finding, known = body.judge(motion, _row_times(motion), peaks[0], peaks[1])
        if finding is not None:
            return _rejection(finding, motion.chunk.row_at(finding.time_ns))
        braker.remember(known)
    return _check_stop(motion, braker)


def _check_stop(motion: ChunkMotion, braker: Braker) -> Rejection | None:
    stop = braker.brake(motion.state(motion.end_ns), motion.end_ns)
    if stop is not None and braker.hindrance is None:
        return None
    last = motion.chunk.rows - 1
    if braker.hindrance is not None:
        return _rejection(braker.hindrance, last, 'in the stop from its end, ')
    return reject(Reason.STOPPING_DISTANCE, 'no stop within the limits from its end', row=last)


def _default_braker(limits: RobotLimits) -> Braker:
    options = GuardOptions()
    return Braker(limits, options.brake_ramp_ns, options.period_ns)


def _rejection(finding: Finding, row: int, when: str = '') -> Rejection:
    what = f'{when}{finding.what}'
    return reject(
        finding.reason, what, joint=finding.part, row=row, value=finding.value, limit=finding.limit, unit=finding.unit
    )


def _row_times(motion: ChunkMotion) -> Times:
    """The start of a motion, and every instant after it at which a row is due."""
    chunk = motion.chunk
    return kernels.times_between(motion.start_ns, motion.end_ns, chunk.due_ns(0), chunk.step_ns, 1)


def _far_from_ends(motion: ChunkMotion, limits: RobotLimits, fade: Array) -> bool:
    """Whether the largest speed of each joint is allowed even at the positions of the motion nearest to its ends."""
    rows = motion.chunk.positions
    steps = np.abs(rows[1:] - rows[:-1])
    # The spline stays within its control points: the rows, and what continues them at both ends.
    more = 2 * steps[0] + steps[-1] + limits.acceleration * (motion.chunk.step_ns / NS) ** 2 / 8
    lowest = np.minimum(rows.min(axis=0), fade[:, 0].min(axis=0)) - more
    highest = np.maximum(rows.max(axis=0), fade[:, 0].max(axis=0)) + more
    peak = np.abs(fade[:, 1]).max(axis=0) * _PEAKS
    speed = np.maximum(steps.max(axis=0) / (motion.chunk.step_ns / NS), peak) / _HEADROOM
    downwards, upwards = limits.velocity_bounds(lowest)[0], limits.velocity_bounds(highest)[1]
    return bool(((speed <= upwards) & (speed <= -downwards)).all())


def _check_near_ends(
    motion: ChunkMotion, limits: RobotLimits, fade_times: Times, fade: Array, jerks: tuple[Array, Array]
) -> Rejection | None:
    """Check the speed near the ends of the joints' ranges along the whole motion."""
    if limits.near_ends is None or _far_from_ends(motion, limits, fade):
        return None
    due = motion.chunk.due_ns(0)
    step = motion.chunk.step_ns // _POINTS_PER_ROW
    begin = int(fade_times[-1])
    after = np.minimum(np.arange(begin, motion.end_ns + step, max(1, step), dtype=np.int64), motion.end_ns)
    rest = motion.sample(after)
    faded = Samples(fade_times, fade[:, 0], fade[:, 1], fade[:, 2])
    for samples, jerk in ((faded, jerks[1]), (rest, jerks[0])):
        h = float(np.diff(samples.times_ns).max()) / NS
        spare = Samples(samples.times_ns, samples.positions, samples.velocities / _HEADROOM, samples.accelerations)
        inside = keeps_near_ends(spare, limits, jerk * (h * h / 8))
        if not inside.all():
            index = int((~inside).any(axis=1).argmax())
            joint = int((~inside[index]).argmax())
            value = float(samples.velocities[index, joint])
            lowest, highest = limits.velocity_bounds(samples.positions[index])
            row = motion.chunk.row_at(max(int(samples.times_ns[index]), due))
            limit = _HEADROOM * float(-lowest[joint] if value < 0.0 else highest[joint])
            name, what = limits.joint_names[joint], 'speed near the end of the range'
            return reject(Reason.VELOCITY_LIMIT, what, joint=name, row=row, value=abs(value), limit=limit, unit='rad/s')
    return None
