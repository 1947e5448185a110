"""Jerk-limited braking, the proof that it fits, and the last check of every command before it leaves.

Whatever is sent ends in a braking motion that has been checked against all limits. So there is always a safe thing to
do: what has been sent already.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ruckig import ControlInterface, InputParameter, Ruckig, RuckigError, Synchronization, Trajectory

from cosmos3_ros.guard.limits import RobotLimits
from cosmos3_ros.guard.motion import NS, Array, JointsState, Samples, Times
from cosmos3_ros.guard.reasons import Reason, Rejection, reject

# A comfortable stop leaves a tenth of the acceleration limit to whoever interpolates between the points of a command.
_COMFORT = 0.9
_ROUNDING = 1e-9  # relative: differences of floating-point numbers only, far below any physical meaning


@dataclass(frozen=True, eq=False)
class Brake:
    """Deceleration of all joints to rest, from `start_ns` to `end_ns`; at rest from then on."""

    start_ns: int
    end_ns: int
    trajectory: Trajectory

    def sample(self, times_ns: Times) -> Samples:
        """States at the given instants, clipped to [start, end]; exactly at rest from the end on."""
        elapsed = np.clip(times_ns - self.start_ns, 0, None) / NS
        states = np.array([self.trajectory.at_time(t) for t in elapsed.tolist()], dtype=np.float64)
        done = times_ns >= self.end_ns
        states[done, 1:] = 0.0
        return Samples(times_ns, states[:, 0], states[:, 1], states[:, 2])


class Braker:
    """Finds a way to stop from a state, if there is one within the limits. One ruckig instance, made once.

    Two ways are tried. The comfortable stop brings all joints to rest at the same instant, so that the arm stays close
    to its path, with a softened rise of the deceleration. The hard stop gives each joint its full acceleration and
    jerk.
    """

    def __init__(self, limits: RobotLimits, ramp_ns: int, minimum_ns: int) -> None:
        """Prepare the solver.

        Args:
            limits: What the joints may do.
            ramp_ns: Time in which the comfortable stop builds up its full deceleration (jerk permitting).
            minimum_ns: Shortest duration reported, so that commands never hold points closer than that.
        """
        joints = len(limits.joint_names)
        self._limits = limits
        self._minimum_ns = minimum_ns
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

    def brake(self, state: JointsState, start_ns: int) -> Brake | None:
        """A stop from `state` that stays within the limits; None if there is none or the solver fails."""
        self._input.current_position = state.positions.tolist()
        self._input.current_velocity = state.velocities.tolist()
        self._input.current_acceleration = state.accelerations.tolist()
        for way, jerk in zip(self._ways, self._jerks, strict=True):
            trajectory = self._solve(way)
            if trajectory is not None and self._fits(trajectory, state, jerk):
                duration_ns = max(self._minimum_ns, int(np.ceil(trajectory.duration * NS)))
                return Brake(start_ns, start_ns + duration_ns, trajectory)
        return None

    def _solve(self, way: tuple[Synchronization, list[float], list[float]]) -> Trajectory | None:
        self._input.synchronization, self._input.max_acceleration, self._input.max_jerk = way
        trajectory = Trajectory(len(self._limits.joint_names))
        try:
            result = self._solver.calculate(self._input, trajectory)
        except RuckigError:
            return None  # raised for input it cannot use, such as numbers that are not finite
        return trajectory if int(result) >= 0 and np.isfinite(trajectory.duration) else None

    def _fits(self, trajectory: Trajectory, state: JointsState, jerk: Array) -> bool:
        extrema = trajectory.position_extrema
        inside = all(
            low <= bound.min and bound.max <= high
            for bound, low, high in zip(extrema, self._limits.lower.tolist(), self._limits.upper.tolist(), strict=True)
        )
        return inside and bool((peak_speed(state.velocities, state.accelerations, jerk) <= self._limits.velocity).all())


def peak_speed(velocities: Array, accelerations: Array, jerk: Array) -> Array:
    """Largest speed on the way to rest: an acceleration along the motion takes time to be removed.

    With jerk j an acceleration a needs a/j seconds to vanish and adds a²/(2 j) to the speed meanwhile.

    Args:
        velocities: [..., J], rad/s.
        accelerations: [..., J], rad/s².
        jerk: [J], rad/s³.
    """
    along = accelerations * np.sign(velocities) > 0.0
    peak: Array = np.abs(velocities) + np.where(along, accelerations**2 / (2 * jerk), 0.0)
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
    values = (samples.positions, samples.velocities, samples.accelerations)
    if not all(np.isfinite(v).all() for v in values):
        return reject(Reason.OUTPUT_CHECK, 'a command holds a number that is not finite')
    steps = np.diff(samples.times_ns)
    if (steps <= 0).any():
        return reject(Reason.OUTPUT_CHECK, 'the times of a command do not rise')
    if samples.velocities[-1].any() or samples.accelerations[-1].any():
        return reject(Reason.OUTPUT_CHECK, 'a command does not end at rest')
    dt = (steps / NS)[:, None]
    return (
        _outside(samples, limits)
        or _above('velocity', samples.velocities, limits.velocity, limits, 'rad/s')
        or _above('acceleration', samples.accelerations, limits.acceleration, limits, 'rad/s^2')
        or _above('mean velocity', np.diff(samples.positions, axis=0) / dt, limits.velocity, limits, 'rad/s')
        or _above('mean acceleration', np.diff(samples.velocities, axis=0) / dt, limits.acceleration, limits, 'rad/s^2')
        or _above('mean jerk', np.diff(samples.accelerations, axis=0) / dt, limits.jerk, limits, 'rad/s^3')
        or _above(
            'disagreement of position and velocity', _mismatch(samples, dt), limits.jerk * dt**3 / 6, limits, 'rad'
        )
    )


def check_continuity(samples: Samples, before: Samples, limits: RobotLimits) -> Rejection | None:
    """Compare the first point of a command with what the previous command says of that instant.

    Args:
        samples: Points of the new command.
        before: Points of the previous command; taken as at rest after its last point.
        limits: Hard limits; they bound the error of interpolating between points.
    """
    time = int(samples.times_ns[0])
    index = int(np.clip(np.searchsorted(before.times_ns, time, side='right') - 1, 0, len(before.times_ns) - 2))
    span = (before.times_ns[index + 1] - before.times_ns[index]) / NS
    s = min(max((time - before.times_ns[index]) / NS / span, 0.0), 1.0)
    position, velocity = _hermite(before, index, span, s)
    # Between two points the jerk may step by twice its limit; a cubic through positions and slopes misses that by less.
    near = limits.jerk * span**3 / 24 + 1e-6
    similar = limits.jerk * span**2 / 4 + 1e-6
    jump, step = np.abs(samples.positions[0] - position), np.abs(samples.velocities[0] - velocity)
    return _above('jump of position between commands', jump[None], near, limits, 'rad') or _above(
        'jump of velocity between commands', step[None], similar, limits, 'rad/s'
    )


def _hermite(samples: Samples, index: int, span: float, s: float) -> tuple[Array, Array]:
    """Position and velocity of the cubic through two points, at the fraction `s` of the span between them."""
    p0, p1 = samples.positions[index], samples.positions[index + 1]
    m0, m1 = samples.velocities[index] * span, samples.velocities[index + 1] * span
    position = (1 + 2 * s) * (1 - s) ** 2 * p0 + s * (1 - s) ** 2 * m0 + s**2 * (3 - 2 * s) * p1 + s**2 * (s - 1) * m1
    slope = 6 * s * (s - 1) * (p0 - p1) + (1 - s) * (1 - 3 * s) * m0 + s * (3 * s - 2) * m1
    return position, slope / span


def _mismatch(samples: Samples, dt: Array) -> Array:
    """Difference between position steps and the integral of velocity (Euler-Maclaurin trapezoid with end slopes)."""
    v, a = samples.velocities, samples.accelerations
    integral = dt * (v[:-1] + v[1:]) / 2 - dt**2 * np.diff(a, axis=0) / 12
    mismatch: Array = np.diff(samples.positions, axis=0) - integral
    return mismatch


def _outside(samples: Samples, limits: RobotLimits) -> Rejection | None:
    excess = np.maximum(limits.lower - samples.positions, samples.positions - limits.upper)
    if excess.max() <= _ROUNDING:
        return None
    joint = int(excess.max(axis=0).argmax())
    value = float(samples.positions[excess[:, joint].argmax(), joint])
    limit = float(limits.upper[joint] if value > limits.upper[joint] else limits.lower[joint])
    return reject(
        Reason.OUTPUT_CHECK, 'position', joint=limits.joint_names[joint], value=value, limit=limit, unit='rad'
    )


def _above(what: str, values: Array, limit: Array, limits: RobotLimits, unit: str) -> Rejection | None:
    allowed = np.broadcast_to(limit, values.shape)
    excess = np.abs(values) - allowed * (1 + 1e-6) - _ROUNDING
    if excess.max() <= 0.0:
        return None
    row, joint = (int(i) for i in np.unravel_index(excess.argmax(), excess.shape))
    value, bound = float(values[row, joint]), float(allowed[row, joint])
    return reject(Reason.OUTPUT_CHECK, what, joint=limits.joint_names[joint], value=value, limit=bound, unit=unit)
