# cython: language_level=3, boundscheck=True, wraparound=False, initializedcheck=False, cdivision=True
"""Compiled arithmetic of motions: splines and fades, and whether states, rows and commands keep the joints' limits.

Every function checks the shapes of what it is given before it computes. Those that judge answer yes or no; whoever
wants to know where and why looks again, slowly. All comparisons are written so that not-a-number fails them.
"""

from libc.math cimport fabs, isfinite
from libc.stdint cimport int64_t

import numpy as np

cdef double NS = 1e9
cdef enum:
    ORDERS = 4  # position, velocity, acceleration, jerk

# The fmin and fmax of C prefer a number to not-a-number; these do not.


cdef inline double _least(double a, double b) noexcept:
    return a if a < b or a != a else b


cdef inline double _most(double a, double b) noexcept:
    return a if a > b or a != a else b


cdef inline int64_t _floor(int64_t a, int64_t b) noexcept:
    """a // b for b > 0, rounded down as Python does."""
    cdef int64_t quotient = a / b
    return quotient - 1 if a % b < 0 else quotient


def instants(int64_t start_ns, int64_t end_ns, int64_t step_ns):
    """Evenly spaced instants from `start_ns` to `end_ns`, both included, at most `step_ns` > 0 apart."""
    if step_ns <= 0:
        raise ValueError(f'step_ns: {step_ns}, must be > 0')
    cdef int64_t count = max(1, -_floor(start_ns - end_ns, step_ns)), k
    found = np.empty(count + 1, dtype=np.int64)
    cdef int64_t[::1] times = found
    for k in range(count + 1):
        times[k] = start_ns + _floor((end_ns - start_ns) * k, count)
    return found


def times_between(int64_t start_ns, int64_t end_ns, int64_t origin_ns, int64_t step_ns, int64_t per_step):
    """Both ends, and between them every instant `origin_ns + k step_ns / per_step`, k a whole number.

    Args:
        start_ns: First instant.
        end_ns: Last instant; >= `start_ns`.
        origin_ns: An instant of the raster.
        step_ns: Time between rows, > 0.
        per_step: Instants of the raster per row, > 0.
    """
    if step_ns <= 0 or per_step <= 0 or end_ns < start_ns:
        raise ValueError(f'step_ns: {step_ns}, per_step: {per_step}, end_ns - start_ns: {end_ns - start_ns}')
    cdef int64_t first = _floor((start_ns - origin_ns) * per_step, step_ns)
    cdef int64_t last = _floor((end_ns - origin_ns) * per_step, step_ns), k, time
    cdef Py_ssize_t filled = 1
    found = np.empty(last - first + 3, dtype=np.int64)
    cdef int64_t[::1] times = found
    times[0] = start_ns
    for k in range(first, last + 1):
        time = origin_ns + _floor(k * step_ns, per_step)
        if start_ns < time < end_ns:
            times[filled] = time
            filled += 1
    times[filled] = end_ns
    return found[: filled + 1]


cdef class FadedSpline:
    """A uniform cubic B-spline through a chunk's rows, and a difference to it that fades away; see executor.py."""

    cdef readonly object jump
    cdef readonly double largest_jump
    cdef double[:, ::1] _controls, _apart
    cdef Py_ssize_t _rows, _joints
    cdef int64_t _due_ns, _step_ns, _start_ns, _end_ns, _window_ns
    cdef double _step, _window

    def __init__(
        self,
        const double[:, :] rows,
        int64_t due_ns,
        int64_t step_ns,
        int64_t start_ns,
        int64_t window_ns,
        const double[:] positions,
        const double[:] velocities,
        const double[:] accelerations,
    ):
        """Continue a state at `start_ns`.

        At both ends the rows are continued with the speed there, so that the curve meets the first and the last row.

        Args:
            rows: Control points [N, J], rad, N >= 2.
            due_ns: When the first row is due.
            step_ns: Time between rows, > 0.
            start_ns: First instant of the motion.
            window_ns: Length of the fade.
            positions: State to continue [J], rad.
            velocities: [J], rad/s.
            accelerations: [J], rad/s².
        """
        cdef Py_ssize_t count = rows.shape[0], joints = rows.shape[1], n, j
        if count < 2 or step_ns <= 0:
            raise ValueError(f'rows: {count}, must be >= 2; step_ns: {step_ns}, must be > 0')
        _state('state', positions, velocities, accelerations, joints)
        self._rows, self._joints = count, joints
        self._due_ns, self._step_ns, self._step = due_ns, step_ns, step_ns / NS
        self._start_ns, self._end_ns = start_ns, due_ns + (count - 1) * step_ns
        self._controls = np.empty((count + 3, joints))
        self._apart = np.zeros((3, joints))
        for j in range(joints):
            for n in range(count):
                self._controls[n + 2, j] = rows[n, j]
            self._controls[0, j] = rows[0, j] - 2 * (rows[1, j] - rows[0, j])
            self._controls[1, j] = rows[0, j] - (rows[1, j] - rows[0, j])
            self._controls[count + 2, j] = rows[count - 1, j] + (rows[count - 1, j] - rows[count - 2, j])
        self._window_ns = 0
        cdef double[:, ::1] own = self.state(start_ns)
        self._window_ns, self._window = window_ns, window_ns / NS
        self.jump = np.empty(joints)
        cdef double[::1] jump = self.jump
        for j in range(joints):
            jump[j] = fabs(own[0, j] - positions[j])
            self.largest_jump = _most(self.largest_jump, jump[j])
            self._apart[0, j] = positions[j] - own[0, j]
            self._apart[1, j] = (velocities[j] - own[1, j]) * self._window
            self._apart[2, j] = (accelerations[j] - own[2, j]) * self._window * self._window

    def derivatives(self, const int64_t[:] times_ns):
        """Position, velocity, acceleration and jerk [S, 4, J] at the given instants, clipped to [start, end]."""
        cdef Py_ssize_t samples = times_ns.shape[0], n
        found = np.empty((samples, ORDERS, self._joints))
        cdef double[:, :, ::1] values = found
        for n in range(samples):
            self._evaluate(times_ns[n], &values[n, 0, 0])
        return found

    def state(self, int64_t time_ns):
        """The same [4, J] at one instant."""
        found = np.empty((ORDERS, self._joints))
        cdef double[:, ::1] values = found
        self._evaluate(time_ns, &values[0, 0])
        return found

    cdef int _evaluate(self, int64_t time_ns, double *values) except -1:
        cdef int64_t time = min(max(time_ns, self._start_ns), self._end_ns)
        cdef int64_t since_first = time - self._due_ns, since = time - self._start_ns, segment
        cdef Py_ssize_t joints = self._joints, order, j
        cdef double weights[4][3]
        cdef double fade[4][3]
        cdef double one
        cdef double *weight
        cdef const double *control
        segment = min(max(_floor(since_first, self._step_ns), -1), self._rows - 2)
        _spline_weights(<double>(since_first - segment * self._step_ns) / self._step_ns, self._step, weights)
        control = &self._controls[segment + 1, 0]
        for order in range(ORDERS):
            weight = weights[order]
            for j in range(joints):
                # The weights of positions add up to one, those of the others to zero. By differences to one of the
                # control points, so that a chunk that stands still stands still exactly.
                one = control[joints + j]
                values[order * joints + j] = (one if order == 0 else 0.0) + (
                    weight[0] * (control[j] - one)
                    + weight[1] * (control[2 * joints + j] - one)
                    + weight[2] * (control[3 * joints + j] - one)
                )
        if since >= self._window_ns:
            return 0
        _fade_weights(<double>since / self._window_ns, self._window, fade)
        for order in range(ORDERS):
            weight = fade[order]
            for j in range(joints):
                values[order * joints + j] += (
                    weight[0] * self._apart[0, j] + weight[1] * self._apart[1, j] + weight[2] * self._apart[2, j]
                )
        return 0


cdef void _spline_weights(double s, double step, double weights[4][3]) noexcept:
    """What the first, third and fourth of four neighbouring control points contribute at s = 0..1 of `step` seconds."""
    cdef double r = 1 - s, scale = 1 / step
    cdef Py_ssize_t order, k
    weights[0][0], weights[0][1], weights[0][2] = r * r * r / 6, (1 + s * (3 + s * (3 - 3 * s))) / 6, s * s * s / 6
    weights[1][0], weights[1][1], weights[1][2] = -r * r / 2, (1 + s * (2 - 3 * s)) / 2, s * s / 2
    weights[2][0], weights[2][1], weights[2][2] = r, 1 - 3 * s, s
    weights[3][0], weights[3][1], weights[3][2] = -1, -3, 1
    for order in range(1, ORDERS):
        for k in range(3):
            weights[order][k] *= scale
        scale /= step


cdef void _fade_weights(double x, double window, double weights[4][3]) noexcept:
    """What a difference of position, velocity (times `window`) and acceleration (times its square) is after x = 0..1.

    The quintic that ends with all three at zero, and its derivatives by time.
    """
    cdef double square = x * x, cube = x * x * x, scale = 1 / window
    cdef Py_ssize_t order, k
    weights[0][0] = 1 + cube * (-10 + x * (15 - 6 * x))
    weights[0][1] = x + cube * (-6 + x * (8 - 3 * x))
    weights[0][2] = square * (0.5 + x * (-1.5 + x * (1.5 - 0.5 * x)))
    weights[1][0] = square * (-30 + x * (60 - 30 * x))
    weights[1][1] = 1 + square * (-18 + x * (32 - 15 * x))
    weights[1][2] = x * (1 + x * (-4.5 + x * (6 - 2.5 * x)))
    weights[2][0] = x * (-60 + x * (180 - 120 * x))
    weights[2][1] = x * (-36 + x * (96 - 60 * x))
    weights[2][2] = 1 + x * (-9 + x * (18 - 10 * x))
    weights[3][0] = -60 + x * (360 - 360 * x)
    weights[3][1] = -36 + x * (192 - 180 * x)
    weights[3][2] = -9 + x * (36 - 30 * x)
    for order in range(1, ORDERS):
        for k in range(3):
            weights[order][k] *= scale
        scale /= window


# Chunks


def arranged(const double[:, :] values, const Py_ssize_t[:] order):
    """The columns of an array [N, K] in another order.

    Args:
        values: What to arrange.
        order: For each column of the result, where it is in `values` [J].

    Returns:
        A new array [N, J], and whether all of it are finite numbers.
    """
    cdef Py_ssize_t rows = values.shape[0], columns = order.shape[0], n, j
    cdef bint finite = True
    for j in range(columns):
        if not 0 <= order[j] < values.shape[1]:
            raise IndexError(f'order: {order[j]}, must be in 0..{values.shape[1] - 1}')
    found = np.empty((rows, columns))
    cdef double[:, ::1] result = found
    for n in range(rows):
        for j in range(columns):
            result[n, j] = values[n, order[j]]
            finite = finite and isfinite(result[n, j])
    return found, finite


# Whether limits are kept


def position_bounds(const double[:] lower, const double[:] upper, double margin, const double[:] positions):
    """Limits less a margin, widened to where the arm is already, never beyond the limits: lowest and highest [2, J]."""
    cdef Py_ssize_t joints = positions.shape[0], j
    _state('limits', lower, upper, positions, joints)
    found = np.empty((2, joints))
    cdef double[:, ::1] bounds = found
    for j in range(joints):
        bounds[0, j] = _most(lower[j], _least(lower[j] + margin, positions[j]))
        bounds[1, j] = _least(upper[j], _most(upper[j] - margin, positions[j]))
    return found


def none_above(const double[:, :] values, const double[:] limit, double rounding):
    """Whether every |value| [S, J] is at most its limit [J], but for a share of `rounding`."""
    cdef Py_ssize_t n, j
    cdef double most = 1 + rounding
    _same('limit', limit.shape[0], values.shape[1])
    for n in range(values.shape[0]):
        for j in range(values.shape[1]):
            if not fabs(values[n, j]) / limit[j] <= most:
                return False
    return True


def rows_keep(
    const double[:, :] rows,
    double step,
    const double[:] lower,
    const double[:] upper,
    const double[:] velocity,
    const double[:] acceleration,
    const double[:] jerk,
    double rounding,
):
    """Whether rows [N, J] that are `step` seconds apart, and their first three differences, keep limits [J]."""
    cdef Py_ssize_t n, j
    cdef double most = 1 + rounding, before, rate, rate_before, rise, rise_before, x
    _limits(lower, upper, velocity, acceleration, jerk, rows.shape[1])
    for j in range(rows.shape[1]):
        before = rate_before = rise_before = 0.0
        for n in range(rows.shape[0]):
            x = rows[n, j]
            if not (lower[j] - x <= rounding and x - upper[j] <= rounding):
                return False
            if n == 0:
                before = x
                continue
            rate = (x - before) / step
            rise = (rate - rate_before) / step
            if not fabs(rate) / velocity[j] <= most:
                return False
            if n > 1 and not fabs(rise) / acceleration[j] <= most:
                return False
            if n > 2 and not fabs((rise - rise_before) / step) / jerk[j] <= most:
                return False
            before, rate_before, rise_before = x, rate, rise
    return True


def states_keep(
    const double[:, :, :] values,
    const double[:] lower,
    const double[:] upper,
    const double[:] velocity,
    const double[:] acceleration,
    const double[:] jerk,
    double share,
    double rounding,
):
    """Whether positions keep their range, and velocities, accelerations and jerks a share of their limits [J].

    Args:
        values: Position, velocity, acceleration and jerk at several instants [S, 4, J].
        lower: rad.
        upper: rad.
        velocity: rad/s.
        acceleration: rad/s².
        jerk: rad/s³.
        share: Of the limits of velocity, acceleration and jerk.
        rounding: By how much a limit may be exceeded: rad, or relative.
    """
    cdef Py_ssize_t n, j
    cdef double most = 1 + rounding
    _same('orders of values', values.shape[1], ORDERS)
    _limits(lower, upper, velocity, acceleration, jerk, values.shape[2])
    for n in range(values.shape[0]):
        for j in range(values.shape[2]):
            if not (
                lower[j] - values[n, 0, j] <= rounding
                and values[n, 0, j] - upper[j] <= rounding
                and fabs(values[n, 1, j]) / (share * velocity[j]) <= most
                and fabs(values[n, 2, j]) / (share * acceleration[j]) <= most
                and fabs(values[n, 3, j]) / (share * jerk[j]) <= most
            ):
                return False
    return True


def row_peaks(const double[:, :] rows, double step):
    """Largest acceleration and jerk of the spline through rows [N, J] that are `step` seconds apart [2, J].

    The spline begins and ends with the speed of the first and the last step, so without acceleration.
    """
    cdef Py_ssize_t count = rows.shape[0], n, j
    cdef double rise, before, square = step * step
    found = np.zeros((2, rows.shape[1]))
    cdef double[:, ::1] peaks = found
    for j in range(rows.shape[1]):
        before = 0.0
        for n in range(1, count):
            rise = (rows[n + 1, j] - 2 * rows[n, j] + rows[n - 1, j]) / square if n + 1 < count else 0.0
            peaks[0, j] = _most(peaks[0, j], fabs(rise))
            peaks[1, j] = _most(peaks[1, j], fabs((rise - before) / step))
            before = rise
    return found


def magnitudes(const double[:, :, :] values):
    """Largest magnitude over the instants: [S, K, J] -> [K, J]."""
    cdef Py_ssize_t n, k, j
    found = np.zeros((values.shape[1], values.shape[2]))
    cdef double[:, ::1] largest = found
    for n in range(values.shape[0]):
        for k in range(values.shape[1]):
            for j in range(values.shape[2]):
                largest[k, j] = _most(largest[k, j], fabs(values[n, k, j]))
    return found


# Stops and commands


def has_room_to_stop(
    const double[:] positions,
    const double[:] velocities,
    const double[:] accelerations,
    const double[:] lower,
    const double[:] upper,
    const double[:] acceleration,
    const double[:] jerk,
):
    """Whether a stop from a state [J] certainly ends within the range, by a bound on its way; False says nothing.

    A stop takes back the acceleration, builds up a deceleration and ends it, for a/j seconds each at most, and is never
    faster than |v| + |a| a/j.
    """
    cdef Py_ssize_t joints = positions.shape[0], j
    cdef double rise, speed, longest
    _state('state', positions, velocities, accelerations, joints)
    _limits(lower, upper, acceleration, acceleration, jerk, joints)
    for j in range(joints):
        rise = acceleration[j] / jerk[j]
        speed = fabs(velocities[j]) + fabs(accelerations[j]) * rise
        longest = speed * (speed / acceleration[j] + 3 * rise)
        if not (positions[j] - longest >= lower[j] and positions[j] + longest <= upper[j]):
            return False
    return True


def sample_stop(at_time, const int64_t[:] times_ns, int64_t start_ns, int64_t end_ns, Py_ssize_t joints):
    """States of a solved stop [S, 3, J]: positions, velocities, accelerations; exactly at rest from `end_ns` on.

    Args:
        at_time: The solver's function from seconds since the start to the three as lists [J].
        times_ns: Instants [S]; those outside the stop are taken as its nearest end.
        start_ns: When it begins.
        end_ns: When it ends.
        joints: J.
    """
    cdef Py_ssize_t samples = times_ns.shape[0], n, k, j
    cdef list column
    cdef int64_t time
    found = np.empty((samples, 3, joints))
    cdef double[:, :, ::1] states = found
    for n in range(samples):
        time = times_ns[n]
        columns = at_time(min(max(time - start_ns, 0), end_ns - start_ns) / NS)
        for k in range(3):
            column = columns[k]
            _same('joints of the stop', len(column), joints)
            for j in range(joints):
                states[n, k, j] = column[j] if k == 0 or time < end_ns else 0.0
    return found


def stop_bounds(
    const double[:, :] positions,
    const double[:] velocities,
    const double[:] accelerations,
    const double[:] beyond,
    const double[:] jerk,
    const double[:] lower,
    const double[:] upper,
    const double[:] velocity,
):
    """Lowest and highest position and largest speed of each joint in a stop [3, J]; None if one breaks its limit.

    Args:
        positions: Of the stop [S, J], S >= 1, rad.
        velocities: At its start [J], rad/s.
        accelerations: At its start [J], rad/s².
        beyond: How far a joint that moves can be from both neighbours between two points [J], rad.
        jerk: Largest jerk of the stop [J], rad/s³.
        lower: Lowest position allowed [J], rad.
        upper: Highest position allowed [J], rad.
        velocity: Largest speed allowed [J], rad/s.
    """
    cdef Py_ssize_t samples = positions.shape[0], joints = positions.shape[1], n, j
    cdef double low, high, more, peak
    if samples < 1:
        raise ValueError('positions: no instant')
    _state('start', velocities, accelerations, beyond, joints)
    _limits(lower, upper, velocity, jerk, jerk, joints)
    found = np.empty((3, joints))
    cdef double[:, ::1] bounds = found
    for j in range(joints):
        low = high = positions[0, j]
        for n in range(1, samples):
            low, high = _least(low, positions[n, j]), _most(high, positions[n, j])
        more = beyond[j] if velocities[j] != 0.0 or accelerations[j] != 0.0 else 0.0
        # An acceleration takes time to be removed, and changes the speed meanwhile; see peak_speed in tracker.py.
        peak = fabs(velocities[j] + accelerations[j] * fabs(accelerations[j]) / (2 * jerk[j]))
        peak = _most(fabs(velocities[j]), peak)
        if not (low - more >= lower[j] and high + more <= upper[j] and peak <= velocity[j]):
            return None
        bounds[0, j], bounds[1, j], bounds[2, j] = low - more, high + more, peak
    return found


def command_keeps(
    const int64_t[:] times_ns,
    const double[:, :] positions,
    const double[:, :] velocities,
    const double[:, :] accelerations,
    const double[:] lower,
    const double[:] upper,
    const double[:] velocity,
    const double[:] acceleration,
    const double[:] jerk,
    double tolerance,
    double rounding,
):
    """Whether the points of a command [S, J], S >= 2, keep the limits [J]; see check_output in tracker.py."""
    cdef Py_ssize_t last = times_ns.shape[0] - 1, joints = positions.shape[1], n, j
    cdef double dt, square, most_v, most_a, most_j, most_jump, mean_v, mean_a, mean_j, jump
    _points('positions', positions, last + 1, joints)
    _points('velocities', velocities, last + 1, joints)
    _points('accelerations', accelerations, last + 1, joints)
    _limits(lower, upper, velocity, acceleration, jerk, joints)
    if last < 1:
        return False
    for n in range(last):
        if times_ns[n + 1] <= times_ns[n]:
            return False
    for j in range(joints):
        if not (velocities[last, j] == 0.0 and accelerations[last, j] == 0.0):
            return False
        most_v = velocity[j] * (1 + tolerance) + rounding
        most_a = acceleration[j] * (1 + tolerance) + rounding
        most_j = jerk[j] * (1 + tolerance) + rounding
        most_jump = jerk[j] / 6 * (1 + tolerance) + rounding
        for n in range(last + 1):
            if not (positions[n, j] >= lower[j] - rounding and positions[n, j] <= upper[j] + rounding):
                return False
            if n == last:
                break
            dt = (times_ns[n + 1] - times_ns[n]) / NS
            square = dt * dt
            mean_v = (positions[n + 1, j] - positions[n, j]) / dt
            mean_a = (velocities[n + 1, j] - velocities[n, j]) / dt
            mean_j = (accelerations[n + 1, j] - accelerations[n, j]) / dt
            # The trapezoid rule, corrected by the slopes at its ends, gives the way to within a jerk's share.
            jump = (mean_v - ((velocities[n + 1, j] + velocities[n, j]) / 2 - mean_j * (square / 12))) / square
            if not (
                fabs(velocities[n, j]) <= most_v
                and fabs(accelerations[n, j]) <= most_a
                and fabs(mean_v) <= most_v
                and fabs(mean_a) <= most_a
                and fabs(mean_j) <= most_j
                and fabs(jump) <= most_jump
            ):
                return False
    return True


def interpolated(
    const int64_t[:] times_ns, const double[:, :] positions, const double[:, :] velocities, int64_t time_ns
):
    """Where a command is at an instant: the cubics through its points [S, J], S >= 2, clipped to both ends.

    Returns:
        Positions, rad, and velocities, rad/s [2, J]; and the time between the two points, s.
    """
    cdef Py_ssize_t samples = times_ns.shape[0], joints = positions.shape[1], index = 0, j
    cdef double span, s, r, turn
    if samples < 2:
        raise ValueError(f'times_ns: {samples} points, must be >= 2')
    _points('positions', positions, samples, joints)
    _points('velocities', velocities, samples, joints)
    while index < samples - 2 and times_ns[index + 1] <= time_ns:
        index += 1
    span = (times_ns[index + 1] - times_ns[index]) / NS
    s = _least(_most((time_ns - times_ns[index]) / NS / span, 0.0), 1.0)
    r, turn = 1 - s, 6 * s * (s - 1) / span
    found = np.empty((2, joints))
    cdef double[:, ::1] states = found
    for j in range(joints):
        states[0, j] = (
            (1 + 2 * s) * r * r * positions[index, j]
            + s * s * (3 - 2 * s) * positions[index + 1, j]
            + s * r * r * span * velocities[index, j]
            - s * s * r * span * velocities[index + 1, j]
        )
        states[1, j] = (
            turn * positions[index, j]
            - turn * positions[index + 1, j]
            + r * (1 - 3 * s) * velocities[index, j]
            + s * (3 * s - 2) * velocities[index + 1, j]
        )
    return found, span


def farthest(const double[:] one, const double[:] other):
    """Index of the entry [J] by which both differ most, and how much; the first that is no number, if there is one."""
    cdef Py_ssize_t worst = 0, j
    cdef double most = -1.0, apart
    _same('other', other.shape[0], one.shape[0])
    for j in range(one.shape[0]):
        apart = fabs(one[j] - other[j])
        if not apart <= most:
            worst, most = j, apart
            if apart != apart:
                break
    return worst, most


def joined(
    const int64_t[:] piece_ns,
    const double[:, :] piece_positions,
    const double[:, :] piece_velocities,
    const double[:, :] piece_accelerations,
    const int64_t[:] stop_ns,
    const double[:, :] stop_positions,
    const double[:, :] stop_velocities,
    const double[:, :] stop_accelerations,
):
    """A piece of motion and the stop that begins with its last point: times [S], and the three [S, J]."""
    cdef Py_ssize_t first = piece_ns.shape[0], second = stop_ns.shape[0], joints = piece_positions.shape[1], n, j
    if second < 1:
        raise ValueError('stop_ns: no instant')
    _points('piece_positions', piece_positions, first, joints)
    _points('piece_velocities', piece_velocities, first, joints)
    _points('piece_accelerations', piece_accelerations, first, joints)
    _points('stop_positions', stop_positions, second, joints)
    _points('stop_velocities', stop_velocities, second, joints)
    _points('stop_accelerations', stop_accelerations, second, joints)
    all_times, states = np.empty(first + second - 1, dtype=np.int64), np.empty((3, first + second - 1, joints))
    cdef int64_t[::1] times = all_times
    cdef double[:, :, ::1] values = states
    for n in range(first):
        times[n] = piece_ns[n]
        for j in range(joints):
            values[0, n, j] = piece_positions[n, j]
            values[1, n, j] = piece_velocities[n, j]
            values[2, n, j] = piece_accelerations[n, j]
    for n in range(1, second):
        times[first + n - 1] = stop_ns[n]
        for j in range(joints):
            values[0, first + n - 1, j] = stop_positions[n, j]
            values[1, first + n - 1, j] = stop_velocities[n, j]
            values[2, first + n - 1, j] = stop_accelerations[n, j]
    return all_times, states[0], states[1], states[2]


def continues(
    const double[:] positions,
    const double[:] velocities,
    const double[:, :] before,
    const double[:] jerk,
    double span,
    double rounding,
):
    """Whether a command begins where the one before it is at that instant; see check_continuity in tracker.py.

    Args:
        positions: Its first point [J], rad.
        velocities: [J], rad/s.
        before: Position and velocity of the one before [2, J].
        jerk: Largest jerk [J], rad/s³.
        span: Time between the points of the one before, s.
        rounding: Allowed on top, rad and rad/s.
    """
    cdef Py_ssize_t joints = positions.shape[0], j
    _state('first point', positions, velocities, jerk, joints)
    _points('before', before, 2, joints)
    for j in range(joints):
        if not (
            fabs(positions[j] - before[0, j]) <= jerk[j] * span * span * span / 24 + rounding
            and fabs(velocities[j] - before[1, j]) <= jerk[j] * span * span / 4 + rounding
        ):
            return False
    return True


cdef int _same(str what, Py_ssize_t found, Py_ssize_t wanted) except -1:
    if found != wanted:
        raise ValueError(f'{what}: {found}, must be {wanted}')
    return 0


cdef int _points(str what, const double[:, :] array, Py_ssize_t rows, Py_ssize_t columns) except -1:
    if array.shape[0] != rows or array.shape[1] != columns:
        raise ValueError(f'{what}: shape {[array.shape[0], array.shape[1]]}, must be {[rows, columns]}')
    return 0


cdef int _state(str what, const double[:] one, const double[:] two, const double[:] three, Py_ssize_t joints) except -1:
    if one.shape[0] != joints or two.shape[0] != joints or three.shape[0] != joints:
        raise ValueError(f'{what}: of {[one.shape[0], two.shape[0], three.shape[0]]} joints, must be {joints}')
    return 0


cdef int _limits(
    const double[:] lower,
    const double[:] upper,
    const double[:] velocity,
    const double[:] acceleration,
    const double[:] jerk,
    Py_ssize_t joints,
) except -1:
    _state('range and velocity', lower, upper, velocity, joints)
    return _state('acceleration and jerk', acceleration, jerk, jerk, joints)
