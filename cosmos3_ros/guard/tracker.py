"""Jerk-limited braking, the proof that it fits, and the last check of every command before it leaves.

Whatever is sent ends in a braking motion that has been checked against all limits. So there is always a safe thing to
do: what has been sent already.
"""

from __future__ import annotations

import math

import numpy as np
from ruckig import ControlInterface, InputParameter, Ruckig, RuckigError, Synchronization, Trajectory

from cosmos3_ros.guard import kernels
from cosmos3_ros.guard.body import Finding, Known
from cosmos3_ros.guard.limits import RobotLimits
from cosmos3_ros.guard.motion import NS, Array, JointsState, Samples, Times, instants
from cosmos3_ros.guard.reasons import Reason, Rejection, reject
from cosmos3_ros.guard.stop_check import StopCheck

# A comfortable stop leaves a tenth of the acceleration limit to whoever interpolates between the points of a command.
_COMFORT = 0.9
# Differences of floating-point numbers, far below any physical meaning: absolute, and relative for mean values.
_ROUNDING = 1e-9
_TOLERANCE = 1e-6
# What two commands may differ by on top of what the jerk between their points can make, rad and rad/s.
_INTERPOLATION = 1e-6


class Brake:
    """Deceleration of all joints to rest, from `start_ns` to `end_ns`; at rest from then on."""

    def __init__(self, start_ns: int, end_ns: int, trajectory: Trajectory, period_ns: int) -> None:
        """Wrap a solved trajectory.

        Args:
            start_ns: Instant at which it begins.
            end_ns: Instant from which on all joints are at rest.
            trajectory: What the solver found; its time starts at 0.
            period_ns: Spacing of :attr:`points`.
        """
        self.start_ns = start_ns
        self.end_ns = end_ns
        self._trajectory = trajectory
        #: The whole stop, at most `period_ns` apart.
        self.points = self.sample(instants(start_ns, end_ns, period_ns))

    def sample(self, times_ns: Times) -> Samples:
        """States at the given instants, clipped to [start, end]; exactly at rest from the end on."""
        joints = self._trajectory.degrees_of_freedom
        states = kernels.sample_stop(self._trajectory.at_time, times_ns, self.start_ns, self.end_ns, joints)
        return Samples(times_ns, states[:, 0], states[:, 1], states[:, 2])

    def state(self, time_ns: int) -> JointsState:
        """State at one instant, clipped to [start, end]; exactly at rest from the end on."""
        elapsed = min(max(time_ns - self.start_ns, 0), self.end_ns - self.start_ns) / NS
        positions, velocities, accelerations = self._trajectory.at_time(elapsed)
        if time_ns >= self.end_ns:
            return JointsState.at_rest(np.array(positions))
        return JointsState(np.array(positions), np.array(velocities), np.array(accelerations))


class Braker:
    """Finds a way to stop from a state, if there is one within the limits. One ruckig instance, made once.

    Two ways are tried. The comfortable stop brings all joints to rest at the same instant, so that the arm stays close
    to its path, with a softened rise of the deceleration. The hard stop gives each joint its full acceleration and
    jerk.
    """

    def __init__(self, limits: RobotLimits, ramp_ns: int, period_ns: int) -> None:
        """Prepare the solver.

        Args:
            limits: What the joints may do.
            ramp_ns: Time in which the comfortable stop builds up its full deceleration (jerk permitting).
            period_ns: Spacing of the points of a stop, and the shortest duration of one.
        """
        joints = len(limits.joint_names)
        self._limits = limits
        self._period_ns = period_ns
        self._solver = Ruckig(joints)
        self._input = InputParameter(joints)
        self._input.control_interface = ControlInterface.Velocity
        self._input.target_velocity = [0.0] * joints
        self._input.target_acceleration = [0.0] * joints
        gentle = _COMFORT * limits.acceleration
        comfortable = (Synchronization.Time, gentle, np.minimum(limits.jerk, gentle * (NS / ramp_ns)))
        hard = (Synchronization.No, limits.acceleration, limits.jerk)
        self._ways = [(sync, acceleration.tolist(), jerk.tolist()) for sync, acceleration, jerk in (comfortable, hard)]
        self._jerks = [np.array(jerk) for _, _, jerk in self._ways]
        # Between two points h apart a joint can turn round, and be further out than at either by a h²/8 at most.
        # (The solver's own position_extrema are not used: for joints that stand still they include zero.)
        self._beyond = limits.acceleration * ((period_ns / NS) ** 2 / 8)
        self._lower, self._upper = limits.lower - _ROUNDING, limits.upper + _ROUNDING
        self._stop_check = StopCheck(limits)

    def remember(self, known: Known) -> None:
        """Take note of a position near which a stop will be asked for: that may save looking at the body there."""
        self._stop_check.known.append(known)

    @property
    def hindrance(self) -> Finding | None:
        """What stops from the last state would break of the body's limits; None if that was not the matter.

        A stop that would only be too fast for the tool is returned if there is no other: it is better than none.
        """
        return self._stop_check.hindrance

    def brake(self, state: JointsState, start_ns: int) -> Brake | None:
        """A stop from `state` that stays within the limits; None if there is none or the solver fails."""
        self._input.current_position = state.positions.tolist()
        self._input.current_velocity = state.velocities.tolist()
        self._input.current_acceleration = state.accelerations.tolist()
        found: Brake | None = None
        self._stop_check.hindrance = None
        for way, jerk in zip(self._ways, self._jerks, strict=True):
            trajectory = self._solve(way)
            if trajectory is None:
                continue
            duration_ns = max(self._period_ns, math.ceil(trajectory.duration * NS))
            brake = Brake(start_ns, start_ns + duration_ns, trajectory, self._period_ns)
            if self._fits(brake, state, jerk):
                found = found or brake
                if self.hindrance is None:
                    return brake
        return found

    def _solve(self, way: tuple[Synchronization, list[float], list[float]]) -> Trajectory | None:
        self._input.synchronization, self._input.max_acceleration, self._input.max_jerk = way
        trajectory = Trajectory(len(self._limits.joint_names))
        try:
            result = self._solver.calculate(self._input, trajectory)
        except RuckigError:
            return None  # raised for input it cannot use, such as numbers that are not finite
        return trajectory if int(result) >= 0 and math.isfinite(trajectory.duration) else None

    def _fits(self, brake: Brake, state: JointsState, jerk: Array) -> bool:
        found = kernels.stop_bounds(
            brake.points.positions,
            state.velocities,
            state.accelerations,
            self._beyond,
            jerk,
            self._lower,
            self._upper,
            self._limits.velocity,
        )
        if found is None:
            return False
        lowest, highest, peak = found
        return self._stop_check.fits(brake, brake.points, (lowest, highest), peak, jerk)


def peak_speed(velocities: Array, accelerations: Array, jerk: Array) -> Array:
    """Largest speed on the way to rest: an acceleration takes time to be removed, and changes the speed meanwhile.

    With jerk j an acceleration a needs |a|/j seconds to vanish and adds a |a| / (2 j) to the velocity.

    Args:
        velocities: [..., J], rad/s.
        accelerations: [..., J], rad/s².
        jerk: [J], rad/s³.
    """
    coasting = velocities + accelerations * np.abs(accelerations) / (2 * jerk)
    peak: Array = np.maximum(np.abs(velocities), np.abs(coasting))
    return peak


def stopping_displacement(velocities: Array, accelerations: Array, limit: Array, jerk: Array) -> Array:
    """Displacement of the time-optimal, jerk-limited stop, with sign.

    Jerk moves the acceleration to its opposite peak, holds it there if the limit is reached, and takes it back to zero;
    the three phases are integrated in closed form.

    Args:
        velocities: [..., J], rad/s.
        accelerations: [..., J], rad/s².
        limit: Largest deceleration [J], rad/s².
        jerk: Largest jerk [J], rad/s³.

    Returns:
        [..., J], rad; positive where the joint comes to rest at a larger position.
    """
    remaining = velocities + accelerations * np.abs(accelerations) / (2 * jerk)
    side = np.where(remaining < 0.0, -1.0, 1.0)
    v, a = velocities * side, accelerations * side
    peak = np.minimum(np.sqrt(np.maximum(jerk * v + a**2 / 2, 0.0)), limit)
    rise, fall = np.maximum(a + peak, 0.0) / jerk, peak / jerk
    v_rise = v + a * rise - jerk * rise**2 / 2
    hold = np.maximum(v_rise - peak**2 / (2 * jerk), 0.0) / np.maximum(peak, 1e-12)
    hold = np.where(peak >= limit, hold, 0.0)
    v_hold = v_rise - peak * hold
    along_rise = v * rise + a * rise**2 / 2 - jerk * rise**3 / 6
    along_hold = v_rise * hold - peak * hold**2 / 2
    along_fall = v_hold * fall - peak * fall**2 / 2 + jerk * fall**3 / 6
    total: Array = side * (along_rise + along_hold + along_fall)
    return total


def check_output(samples: Samples, limits: RobotLimits) -> Rejection | None:
    """Judge a command by its points alone, by finite differences, without knowing how it was made.

    Args:
        samples: Points of the command, S >= 2, in the order of time.
        limits: Hard limits.

    Returns:
        The first violation of a position, velocity, acceleration or jerk limit, of consistency between the columns, or
        of the promise to end at rest; None if there is none.
    """
    p, v, a = samples.positions, samples.velocities, samples.accelerations
    kept = kernels.command_keeps(
        samples.times_ns,
        p,
        v,
        a,
        limits.lower,
        limits.upper,
        limits.velocity,
        limits.acceleration,
        limits.jerk,
        _TOLERANCE,
        _ROUNDING,
    )
    fault = None if kept else _output_fault(samples, limits)
    if fault is not None or limits.near_ends is None:
        return fault
    dt = (np.diff(samples.times_ns) / NS)[:, None]
    return _near_ends(p, v, np.diff(p, axis=0) / dt, limits)


def _output_fault(samples: Samples, limits: RobotLimits) -> Rejection | None:
    """What is wrong with the points of a command that are known not to keep the limits."""
    steps = samples.times_ns[1:] - samples.times_ns[:-1]
    if not (steps > 0).all():
        return reject(Reason.OUTPUT_CHECK, 'the times of a command do not rise')
    p, v, a = samples.positions, samples.velocities, samples.accelerations
    if v[-1].any() or a[-1].any():
        return reject(Reason.OUTPUT_CHECK, 'a command does not end at rest')
    outside = _outside(p, limits)
    if outside is not None:
        return outside
    dt = (steps / NS)[:, None]
    mean_v, mean_a, mean_j = ((x[1:] - x[:-1]) / dt for x in (p, v, a))
    # The trapezoid rule, corrected by the slopes at its ends, gives the way to within a jerk's share.
    mismatch = (mean_v - ((v[1:] + v[:-1]) / 2 - mean_j * (dt**2 / 12))) / dt**2
    quantities = (
        ('velocity', v[:-1], limits.velocity, 'rad/s'),  # the last row is known to be at rest
        ('acceleration', a[:-1], limits.acceleration, 'rad/s^2'),
        ('mean velocity', mean_v, limits.velocity, 'rad/s'),
        ('mean acceleration', mean_a, limits.acceleration, 'rad/s^2'),
        ('mean jerk', mean_j, limits.jerk, 'rad/s^3'),
        ('disagreement of position and velocity', mismatch, limits.jerk / 6, 'rad/s^3'),
    )
    found = (_above(what, values, limit, limits, unit) for what, values, limit, unit in quantities)
    return next((fault for fault in found if fault is not None), None)


def check_continuity(samples: Samples, before: Samples, limits: RobotLimits) -> Rejection | None:
    """Compare the first point of a command with what the previous command says of that instant.

    Args:
        samples: Points of the new command.
        before: Points of the previous command; taken as at rest after its last point.
        limits: Hard limits; they bound the error of interpolating between points.
    """
    time_ns = int(samples.times_ns[0])
    expected, span = kernels.interpolated(before.times_ns, before.positions, before.velocities, time_ns)
    # Between two points the jerk may step by twice its limit; a cubic through positions and slopes misses that by less.
    positions, velocities = samples.positions[0], samples.velocities[0]
    if kernels.continues(positions, velocities, expected, limits.jerk, span, _INTERPOLATION):
        return None
    near, similar = limits.jerk * span**3 / 24 + _INTERPOLATION, limits.jerk * span**2 / 4 + _INTERPOLATION
    jump, step = np.abs(positions - expected[0]), np.abs(velocities - expected[1])
    return _above('jump of position between commands', jump[None], near, limits, 'rad') or _above(
        'jump of velocity between commands', step[None], similar, limits, 'rad/s'
    )


def _near_ends(positions: Array, velocities: Array, mean: Array, limits: RobotLimits) -> Rejection | None:
    """The worst velocity of a point, or mean velocity to the next one, above what is allowed at its place."""
    lowest, highest = limits.velocity_bounds(positions)
    # On the way from one point to the next the limit is somewhere between those of both.
    ways = np.minimum(lowest[:-1], lowest[1:]), np.maximum(highest[:-1], highest[1:])
    for what, values, (low, high) in (('velocity', velocities, (lowest, highest)), ('mean velocity', mean, ways)):
        allowed = np.where(values < 0.0, -low, high)
        excess = np.abs(values) - allowed * (1 + _TOLERANCE) - _ROUNDING
        if not (excess <= 0.0).all():
            row, joint = (int(i) for i in np.unravel_index(excess.argmax(), excess.shape))
            value, limit = float(values[row, joint]), float(allowed[row, joint])
            name, text = limits.joint_names[joint], f'{what} near the end of the range'
            return reject(Reason.OUTPUT_CHECK, text, joint=name, value=value, limit=limit, unit='rad/s')
    return None


def _outside(positions: Array, limits: RobotLimits) -> Rejection | None:
    lowest, highest = np.minimum.reduce(positions), np.maximum.reduce(positions)
    if ((lowest >= limits.lower - _ROUNDING) & (highest <= limits.upper + _ROUNDING)).all():
        return None
    excess = np.maximum(limits.lower - positions, positions - limits.upper)
    row, joint = (int(i) for i in np.unravel_index(excess.argmax(), excess.shape))
    value = float(positions[row, joint])
    limit = float((limits.lower if value < limits.lower[joint] else limits.upper)[joint])
    return reject(
        Reason.OUTPUT_CHECK, 'position', joint=limits.joint_names[joint], value=value, limit=limit, unit='rad'
    )


def _above(what: str, values: Array, limit: Array, limits: RobotLimits, unit: str) -> Rejection | None:
    """The worst of |values| [S, J] above its limit [J]; numbers that are not finite count as above."""
    if (np.abs(values) <= limit * (1 + _TOLERANCE) + _ROUNDING).all():
        return None
    row, joint = (int(i) for i in np.unravel_index((np.abs(values) / limit).argmax(), values.shape))
    value, bound = float(values[row, joint]), float(limit[joint])
    return reject(Reason.OUTPUT_CHECK, what, joint=limits.joint_names[joint], value=value, limit=bound, unit=unit)
