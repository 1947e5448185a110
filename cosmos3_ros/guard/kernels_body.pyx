# cython: language_level=3, boundscheck=True, wraparound=False, initializedcheck=False, cdivision=True
"""Compiled arithmetic of the arm as a body: where its links are, how far apart, how fast its tool, and what may change.

Each class holds what was prepared for one arm, and checks the shapes of what it is given before it computes. The
scratch memory of a class is safe because no method calls back into Python before it is done with it. All comparisons
are written so that not-a-number fails them.
"""

from libc.math cimport INFINITY, cos, fabs, sin, sqrt
from libc.stdint cimport int64_t

import numpy as np

cdef double TINY = 1e-12  # squares of lengths below this count as those of a point, m²
cdef double HALF_PER_NS = 0.5e-9


# The fmin and fmax of C prefer a number to not-a-number; these do not.


cdef inline double _least(double a, double b) noexcept:
    return a if a < b or a != a else b


cdef inline double _most(double a, double b) noexcept:
    return a if a > b or a != a else b


cdef inline double _within(double fraction) noexcept:
    fraction = 0.0 if 0.0 > fraction else fraction
    return 1.0 if 1.0 < fraction else fraction


cdef inline double segment_distance(
    const double *apart, const double *d1, const double *d2, double a, double e, double per_a, double per_e
) noexcept:
    """Distance of two line segments (C. Ericson, "Real-Time Collision Detection", 5.1.9).

    Args:
        apart: From the start of the second to the start of the first [3], m.
        d1: From the start of the first to its end [3], m.
        d2: From the start of the second to its end [3], m.
        a: Square of the length of the first, m².
        e: Square of the length of the second, m².
        per_a: 1 / a, finite for a point.
        per_e: 1 / e, finite for a point.
    """
    cdef double b = d1[0] * d2[0] + d1[1] * d2[1] + d1[2] * d2[2]
    cdef double c = d1[0] * apart[0] + d1[1] * apart[1] + d1[2] * apart[2]
    cdef double f = d2[0] * apart[0] + d2[1] * apart[1] + d2[2] * apart[2]
    # The point of the first segment that is nearest to the line of the second; then the point of the second that is
    # nearest to it; and once more, in case that one was cut off at an end.
    cdef double area = a * e - b * b
    cdef double first = _within((b * f - c * e) / (TINY if area < TINY else area))
    cdef double second = _within((b * first + f) * per_e)
    cdef double x, y, z
    first = _within((b * second - c) * per_a)
    x = apart[0] + d1[0] * first - d2[0] * second
    y = apart[1] + d1[1] * first - d2[1] * second
    z = apart[2] + d1[2] * first - d2[2] * second
    return sqrt(x * x + y * y + z * z)


cdef inline double _inverse(double square) noexcept:
    return 1.0 / (TINY if square < TINY else square)


def segment_distances(
    const Py_ssize_t[:] first,
    const Py_ssize_t[:] second,
    const double[:] squares,
    const double[:, :, :] starts,
    const double[:, :, :] ways,
):
    """Distances between the segments of each pair [K, S], m.

    Args:
        first: Index of one segment of each pair [K].
        second: Index of the other [K].
        squares: Square of the length of each segment [C], m².
        starts: One end of each segment [C, 3, S], m.
        ways: From there to the other end [C, 3, S], m.
    """
    cdef Py_ssize_t count = first.shape[0], segments = squares.shape[0], samples = starts.shape[2], k, s, i
    cdef double apart[3]
    cdef double d1[3]
    cdef double d2[3]
    _same('second', second.shape[0], count)
    _shape('starts', starts.shape[0], starts.shape[1], starts.shape[2], segments, 3, samples)
    _shape('ways', ways.shape[0], ways.shape[1], ways.shape[2], segments, 3, samples)
    _indices('first', first, segments)
    _indices('second', second, segments)
    found = np.empty((count, samples))
    cdef double[:, ::1] distances = found
    cdef double a, e, per_a, per_e
    for k in range(count):
        a, e = squares[first[k]], squares[second[k]]
        per_a, per_e = _inverse(a), _inverse(e)
        for s in range(samples):
            for i in range(3):
                apart[i] = starts[first[k], i, s] - starts[second[k], i, s]
                d1[i] = ways[first[k], i, s]
                d2[i] = ways[second[k], i, s]
            distances[k, s] = segment_distance(apart, d1, d2, a, e, per_a, per_e)
    return found


cdef class ChainKernel:
    """Forward kinematics of a serial chain, prepared for one order of joints and one set of points on its links."""

    cdef readonly Py_ssize_t joints, points, width
    cdef Py_ssize_t[::1] _columns, _links
    cdef double[:, :, ::1] _steps
    cdef double[:, ::1] _local
    # Of the sample in hand: x, y and z axis and origin of the base and of each link, and the points, in the base frame.
    cdef double[:, :, ::1] _frames
    cdef double[:, ::1] _placed

    def __init__(self, columns, steps, links, local, width):
        """Prepare.

        Args:
            columns: Column of each joint of the chain in arrays of positions [J].
            steps: Where each joint's axis sits in the link before it [J, 4, 3]: axes as rows, then the origin, m.
            links: Link of each point [P], 0 is the base.
            local: The points in their links' frames [P, 3], m.
            width: Number of columns that positions have.
        """
        self._columns = np.array(columns, dtype=np.intp)
        self._steps = np.array(steps, dtype=np.float64).reshape(-1, 4, 3)
        self._links = np.array(links, dtype=np.intp)
        self._local = np.array(local, dtype=np.float64).reshape(-1, 3)
        self.joints, self.points, self.width = self._columns.shape[0], self._links.shape[0], width
        _same('steps', self._steps.shape[0], self.joints)
        _same('local', self._local.shape[0], self.points)
        _indices('columns', self._columns, width)
        _indices('links', self._links, self.joints + 1)
        frames = np.zeros((self.joints + 1, 4, 3))
        frames[0, :3] = np.eye(3)
        self._frames = frames
        self._placed = np.empty((self.points, 3))

    cdef int place_one(self, const double[:, :] positions, Py_ssize_t sample) except -1:
        """Place the arm at one of the samples: fills the frames and the points."""
        cdef Py_ssize_t k, p, r, i
        cdef double angle, cosine, sine, x, y
        cdef double *point
        cdef double *link
        cdef double *ahead
        cdef const double *step
        cdef const double *local
        for k in range(self.joints):
            link, ahead, step = &self._frames[k, 0, 0], &self._frames[k + 1, 0, 0], &self._steps[k, 0, 0]
            for r in range(4):
                for i in range(3):
                    ahead[3 * r + i] = (
                        step[3 * r] * link[i] + step[3 * r + 1] * link[3 + i] + step[3 * r + 2] * link[6 + i]
                    )
            angle = positions[sample, self._columns[k]]
            cosine, sine = cos(angle), sin(angle)
            for i in range(3):
                x, y = ahead[i], ahead[3 + i]
                ahead[i] = cosine * x + sine * y
                ahead[3 + i] = cosine * y - sine * x
                ahead[9 + i] += link[9 + i]
        for p in range(self.points):
            link, local, point = &self._frames[self._links[p], 0, 0], &self._local[p, 0], &self._placed[p, 0]
            for i in range(3):
                point[i] = link[9 + i] + local[0] * link[i] + local[1] * link[3 + i] + local[2] * link[6 + i]
        return 0

    cdef int tool_speed(
        self, const double[:, :] velocities, Py_ssize_t sample, Py_ssize_t point, double *linear, double *angular
    ) except -1:
        """Speed of a point of the last link, m/s, and of its rotation, rad/s, of the arm as it was last placed.

        The columns of the geometric Jacobian, `axis x (point - origin)` and `axis`, times the joints' velocities.
        """
        cdef double way[3]
        cdef double turn[3]
        cdef double arm[3]
        cdef Py_ssize_t k, i
        cdef double speed
        cdef const double *axis
        cdef const double *origin
        for i in range(3):
            way[i] = turn[i] = 0.0
        for k in range(self.joints):
            speed = velocities[sample, self._columns[k]]
            axis, origin = &self._frames[k + 1, 2, 0], &self._frames[k + 1, 3, 0]
            for i in range(3):
                arm[i] = self._placed[point, i] - origin[i]
                turn[i] += speed * axis[i]
            way[0] += speed * (axis[1] * arm[2] - axis[2] * arm[1])
            way[1] += speed * (axis[2] * arm[0] - axis[0] * arm[2])
            way[2] += speed * (axis[0] * arm[1] - axis[1] * arm[0])
        linear[0] = sqrt(way[0] * way[0] + way[1] * way[1] + way[2] * way[2])
        angular[0] = sqrt(turn[0] * turn[0] + turn[1] * turn[1] + turn[2] * turn[2])
        return 0

    def place(self, const double[:, :] positions):
        """Place the arm at positions [S, width], rad.

        Returns:
            Direction of each joint's axis [J, 3, S], a point on each axis [J, 3, S], m, and the points [P, 3, S], m, in
            the base frame.
        """
        cdef Py_ssize_t samples = positions.shape[0], s, k, p, i
        _same('columns of positions', positions.shape[1], self.width)
        all_axes, all_origins = np.empty((self.joints, 3, samples)), np.empty((self.joints, 3, samples))
        all_points = np.empty((self.points, 3, samples))
        cdef double[:, :, ::1] axes = all_axes, origins = all_origins, points = all_points
        for s in range(samples):
            self.place_one(positions, s)
            for i in range(3):
                for k in range(self.joints):
                    axes[k, i, s] = self._frames[k + 1, 2, i]
                    origins[k, i, s] = self._frames[k + 1, 3, i]
                for p in range(self.points):
                    points[p, i, s] = self._placed[p, i]
        return all_axes, all_origins, all_points

    def speeds(self, const double[:, :] positions, const double[:, :] velocities, Py_ssize_t point):
        """Speed of a point of the last link, m/s [S], and of its rotation, rad/s [S].

        Args:
            positions: [S, width], rad.
            velocities: [S, width], rad/s.
            point: Which of the points.
        """
        cdef Py_ssize_t samples = positions.shape[0], s
        _same('columns of positions', positions.shape[1], self.width)
        _same('columns of velocities', velocities.shape[1], self.width)
        _same('rows of velocities', velocities.shape[0], samples)
        if not 0 <= point < self.points:
            raise IndexError(f'point {point} of {self.points}')
        found = np.empty((2, samples))
        cdef double[:, ::1] both = found
        for s in range(samples):
            self.place_one(positions, s)
            self.tool_speed(velocities, s, point, &both[0, s], &both[1, s])
        return found[0], found[1]


cdef class BodyKernel:
    """What is left to each limit of a body, and how far that can change. The limits are called lines, in this order:

    distances of pairs of capsules; distance of the tool point to the nearest wall; speed and rotation of the tool.
    """

    cdef ChainKernel _chain
    cdef readonly Py_ssize_t lines, distances
    cdef Py_ssize_t _pairs, _speeds, _tool
    cdef bint _walls, _translation
    cdef Py_ssize_t[:, ::1] _ends
    cdef double[:, ::1] _squares  # a, e, 1 / a and 1 / e of each pair
    cdef double[::1] _close, _lower, _upper, _limits
    cdef double[:, ::1] _influence, _levers  # by joints, then lines
    cdef double[:, :, ::1] _couplings
    # Of the interval in hand.
    cdef double[:, ::1] _joint  # bounds by joints of the chain
    cdef double[::1] _changes  # of each line

    def __init__(self, chain, tool, ends, squares, close, box, limits, translation, influence, levers, couplings):
        """Prepare.

        Args:
            chain: Places the arm.
            tool: Which of its points is the tool point.
            ends: For each pair of capsules, where both ends of the first are among its points, and those of the second
                [K, 4].
            squares: Squares of the lengths of the two axes of each pair [K, 2], m².
            close: Distance of the axes at which the limit of each pair is reached [K], m.
            box: Lower and upper corner of the box of the tool point [2, 3], m; None if there is none.
            limits: Largest speeds of the tool that are watched, m/s and rad/s, translation first.
            translation: Whether the first of them is that of the translation.
            influence: By how much each distance can change per joint movement [D, J], m/rad.
            levers: The same for each speed, per joint speed [V, J].
            couplings: How strongly one joint's speed turns what another contributes to each speed [V, J, J].
        """
        self._chain = chain
        joints = self._chain.joints
        self._tool, self._translation = tool, translation
        self._ends = np.array(ends, dtype=np.intp).reshape(-1, 4)
        both = np.array(squares, dtype=np.float64).reshape(-1, 2)
        self._squares = np.concatenate([both, 1.0 / np.maximum(both, TINY)], axis=1)
        self._close = np.array(close, dtype=np.float64)
        self._limits = np.array(limits, dtype=np.float64)
        self._walls = box is not None
        corners = np.zeros((2, 3)) if box is None else np.array(box, dtype=np.float64)
        self._lower, self._upper = corners[0].copy(), corners[1].copy()
        self._pairs, self._speeds = self._ends.shape[0], self._limits.shape[0]
        self.distances = self._pairs + self._walls
        self.lines = self.distances + self._speeds
        self._influence = np.array(influence, dtype=np.float64).reshape(-1, joints).T.copy()
        self._levers = np.array(levers, dtype=np.float64).reshape(-1, joints).T.copy()
        self._couplings = np.array(couplings, dtype=np.float64).reshape(-1, joints, joints)
        self._joint, self._changes = np.empty((3, joints)), np.empty(self.lines)
        _same('squares', len(both), self._pairs)
        _same('close', self._close.shape[0], self._pairs)
        _same('influence', self._influence.shape[1], self.distances)
        _same('levers', self._levers.shape[1], self._speeds)
        _same('couplings', self._couplings.shape[0], self._speeds)
        _same('corners of the box', corners.shape[1], 3)
        _indices('ends', np.append(self._ends, tool), self._chain.points)

    def margins(self, const double[:, :] positions, const double[:, :] velocities):
        """What is left to each limit at each instant [lines, S]: m for distances, m/s and rad/s for speeds.

        Args:
            positions: [S, width], rad.
            velocities: [S, width], rad/s.
        """
        cdef ChainKernel chain = self._chain
        cdef Py_ssize_t samples = positions.shape[0], s, k, i
        cdef double linear = 0.0, angular = 0.0, nearest, below, above
        cdef double apart[3]
        cdef double d1[3]
        cdef double d2[3]
        cdef const double *one
        cdef const double *other
        _same('columns of positions', positions.shape[1], chain.width)
        _same('columns of velocities', velocities.shape[1], chain.width)
        _same('rows of velocities', velocities.shape[0], samples)
        found = np.empty((self.lines, samples))
        cdef double[:, ::1] margins = found
        cdef const double[:, ::1] placed = chain._placed
        cdef const Py_ssize_t *ends
        cdef const double *square
        cdef const double *one_end
        cdef const double *other_end
        for s in range(samples):
            chain.place_one(positions, s)
            for k in range(self._pairs):
                ends, square = &self._ends[k, 0], &self._squares[k, 0]
                one, other = &placed[ends[0], 0], &placed[ends[2], 0]
                one_end, other_end = &placed[ends[1], 0], &placed[ends[3], 0]
                for i in range(3):
                    apart[i] = one[i] - other[i]
                    d1[i] = one_end[i] - one[i]
                    d2[i] = other_end[i] - other[i]
                nearest = segment_distance(apart, d1, d2, square[0], square[1], square[2], square[3])
                margins[k, s] = nearest - self._close[k]
            if self._walls:
                nearest = placed[self._tool, 0] - self._lower[0]
                for i in range(3):
                    below, above = placed[self._tool, i] - self._lower[i], self._upper[i] - placed[self._tool, i]
                    nearest = _least(_least(nearest, below), above)
                margins[self._pairs, s] = nearest
            if self._speeds:
                chain.tool_speed(velocities, s, self._tool, &linear, &angular)
                for k in range(self._speeds):
                    nearest = linear if self._translation and k == 0 else angular
                    margins[self.distances + k, s] = self._limits[k] - nearest
        return found

    def look(
        self,
        const int64_t[:] times_ns,
        const double[:, :] positions,
        const double[:, :] velocities,
        const double[:, :] accelerations,
        const double[:] acceleration,
        const double[:] jerk,
        const double[:] tolerance,
        double inside,
        double rounding,
        bint stopping,
        bint speeds,
    ):
        """Look at a motion at S >= 1 instants and between them.

        What is outside its limit at the first instant may stay so but not get worse; for the speeds of the tool this
        holds while `stopping` only.

        Args:
            times_ns: Instants, rising [S].
            positions: There [S, width], rad.
            velocities: [S, width], rad/s.
            accelerations: [S, width], rad/s².
            acceleration: Largest acceleration of each joint in the motion [width], rad/s².
            jerk: Largest jerk of each joint [width], rad/s³.
            tolerance: What may be lost of each line between the instants [lines].
            inside: Share of that for a line that is outside its limit from the start.
            rounding: What may be lost at the instants.
            stopping: Whether the motion is a stop.
            speeds: Whether the speeds of the tool count.

        Returns:
            Margins [lines, S]; the floor of each line at the instants [lines]; what is sure to be kept of it between
            them [lines]; and whether the whole motion keeps the limits for sure.
        """
        cdef Py_ssize_t samples = times_ns.shape[0], width = self._chain.width, k, n
        cdef double h, first
        _rows('accelerations', accelerations, samples, width)
        _same('rows of positions', positions.shape[0], samples)
        _same('instants', 1 if samples else 0, 1)
        _same('acceleration', acceleration.shape[0], width)
        _same('jerk', jerk.shape[0], width)
        _same('tolerance', tolerance.shape[0], self.lines)
        found = self.margins(positions, velocities)
        floors, surely = np.empty(self.lines), np.empty(self.lines)
        cdef const double[:, ::1] margins = found
        cdef double[::1] floor = floors, sure = surely
        for k in range(self.lines):
            first = _least(margins[k, 0], 0.0)
            if k >= self.distances and not (stopping and speeds):
                first = 0.0 if speeds else -INFINITY
            sure[k] = first - inside * tolerance[k] if first < -tolerance[k] else -tolerance[k]
            floor[k] = first - rounding
        if any_below(margins, floor):
            return found, floors, surely, False
        for n in range(samples - 1):
            h = (times_ns[n + 1] - times_ns[n]) * HALF_PER_NS
            self._bound_joints(
                h,
                velocities[n],
                velocities[n + 1],
                accelerations[n],
                accelerations[n + 1],
                acceleration,
                jerk,
            )
            self._bound_lines(h)
            for k in range(self.lines):
                if not margins[k, n] + margins[k, n + 1] - self._changes[k] >= 2 * sure[k]:
                    return found, floors, surely, False
        return found, floors, surely, True

    def keeps(
        self,
        const double[:] positions,
        const double[:] margins,
        const double[:] lowest,
        const double[:] highest,
        const double[:] speed,
    ):
        """Whether no motion within these bounds can break a limit, by what is known of one position.

        Args:
            positions: That position [width], rad.
            margins: What is left of each distance there [D], m.
            lowest: Smallest position of each joint in the motion [width], rad.
            highest: Largest position of each joint [width], rad.
            speed: Largest speed of each joint [width], rad/s.
        """
        cdef Py_ssize_t joints = self._chain.joints, width = self._chain.width, j, k, column
        cdef double change
        _same('margins', margins.shape[0], self.distances)
        _same('positions', positions.shape[0], width)
        _same('lowest', lowest.shape[0], width)
        _same('highest', highest.shape[0], width)
        _same('speed', speed.shape[0], width)
        for k in range(self.distances):
            change = 0.0
            for j in range(joints):
                column = self._chain._columns[j]
                change += self._influence[j, k] * _most(
                    highest[column] - positions[column], positions[column] - lowest[column]
                )
            if not change <= margins[k]:
                return False
        for k in range(self._speeds):
            change = 0.0
            for j in range(joints):
                change += self._levers[j, k] * speed[self._chain._columns[j]]
            if not change <= self._limits[k]:
                return False
        return True

    def doubtful(
        self,
        const int64_t[:] begin_ns,
        const int64_t[:] end_ns,
        const double[:, :] begin_velocities,
        const double[:, :] end_velocities,
        const double[:, :] begin_accelerations,
        const double[:, :] end_accelerations,
        const double[:, :] begin_margins,
        const double[:, :] end_margins,
        const double[:] sure,
        const double[:] acceleration,
        const double[:] jerk,
    ):
        """The intervals of a motion in which a margin might fall below what is sure to be kept.

        Within h seconds a joint that moves at v0 and v1 at the ends, with accelerations up to a, covers at most
        h (|v0| + |v1|) / 2 + a h² / 4.

        Args:
            begin_ns: Begin of each interval [I].
            end_ns: Its end [I].
            begin_velocities: [I, width], rad/s.
            end_velocities: [I, width], rad/s.
            begin_accelerations: [I, width], rad/s².
            end_accelerations: [I, width], rad/s².
            begin_margins: [lines, I].
            end_margins: [lines, I].
            sure: What is sure to be kept of each line [lines].
            acceleration: Largest acceleration of each joint in the motion [width], rad/s².
            jerk: Largest jerk of each joint in the motion [width], rad/s³.

        Returns:
            Which they are [I], or None if there are none.
        """
        cdef Py_ssize_t count = begin_ns.shape[0], width = self._chain.width, n, k
        cdef bint some = False
        _same('end_ns', end_ns.shape[0], count)
        _rows('begin_velocities', begin_velocities, count, width)
        _rows('end_velocities', end_velocities, count, width)
        _rows('begin_accelerations', begin_accelerations, count, width)
        _rows('end_accelerations', end_accelerations, count, width)
        _rows('begin_margins', begin_margins, self.lines, count)
        _rows('end_margins', end_margins, self.lines, count)
        _same('sure', sure.shape[0], self.lines)
        _same('acceleration', acceleration.shape[0], width)
        _same('jerk', jerk.shape[0], width)
        found = np.zeros(count, dtype=np.bool_)
        cdef unsigned char[::1] marks = found.view(np.uint8)
        cdef double h
        for n in range(count):
            h = (end_ns[n] - begin_ns[n]) * HALF_PER_NS  # half of it, which is what is needed
            self._bound_joints(
                h,
                begin_velocities[n],
                end_velocities[n],
                begin_accelerations[n],
                end_accelerations[n],
                acceleration,
                jerk,
            )
            self._bound_lines(h)
            for k in range(self.lines):
                if not begin_margins[k, n] + end_margins[k, n] - self._changes[k] >= 2 * sure[k]:
                    marks[n] = some = True
                    break
        return found if some else None

    cdef int _bound_joints(
        self,
        double h,
        const double[:] v0,
        const double[:] v1,
        const double[:] a0,
        const double[:] a1,
        const double[:] acceleration,
        const double[:] jerk,
    ) except -1:
        """Bounds for each joint in one interval of 2 h seconds: its way there and back, its speed's, its peak speed."""
        cdef Py_ssize_t j, column
        cdef double speed, gain, rate
        for j in range(self._chain.joints):
            column = self._chain._columns[j]
            speed = fabs(v0[column]) + fabs(v1[column])
            gain = h * acceleration[column]
            rate = fabs(a0[column]) + fabs(a1[column])
            self._joint[0, j] = h * (speed + gain)
            self._joint[1, j] = _least(h * (rate + h * jerk[column]), 2 * gain)
            self._joint[2, j] = speed / 2 + gain
        return 0

    cdef int _bound_lines(self, double h) except -1:
        """How far each margin moves at most, there and back, within the interval whose joints have been bounded."""
        cdef Py_ssize_t joints = self._chain.joints, count = self.distances, i, j, k
        cdef double one, turned
        cdef double *change
        cdef const double *influence
        if not self.lines:
            return 0
        change = &self._changes[0]
        for k in range(self.lines):
            change[k] = 0.0
        for j in range(joints):  # by lines inside, because none of these sums has to wait for another
            one = self._joint[0, j]
            if count:
                influence = &self._influence[j, 0]
                for k in range(count):
                    change[k] += influence[k] * one
        for k in range(self._speeds):
            turned = 0.0
            for j in range(joints):
                change[count + k] += self._levers[j, k] * self._joint[1, j]
                one = 0.0
                for i in range(joints):
                    one += self._joint[2, i] * self._couplings[k, i, j]
                turned += one * self._joint[2, j]
            change[count + k] += 2 * h * turned
        return 0


cpdef any_below(const double[:, :] margins, const double[:] floor):
    """Whether a margin [K, S] is below its floor [K] at any instant, or not a number."""
    cdef Py_ssize_t k, s
    _same('floor', floor.shape[0], margins.shape[0])
    for k in range(margins.shape[0]):
        for s in range(margins.shape[1]):
            if not margins[k, s] >= floor[k]:
                return True
    return False


cdef int _same(str what, Py_ssize_t found, Py_ssize_t wanted) except -1:
    if found != wanted:
        raise ValueError(f'{what}: {found}, must be {wanted}')
    return 0


cdef int _rows(str what, const double[:, :] array, Py_ssize_t rows, Py_ssize_t columns) except -1:
    if array.shape[0] != rows or array.shape[1] != columns:
        raise ValueError(f'{what}: shape {[array.shape[0], array.shape[1]]}, must be {[rows, columns]}')
    return 0


cdef int _shape(
    str what, Py_ssize_t a, Py_ssize_t b, Py_ssize_t c, Py_ssize_t first, Py_ssize_t second, Py_ssize_t third
) except -1:
    if a != first or b != second or c != third:
        raise ValueError(f'{what}: shape {[a, b, c]}, must be {[first, second, third]}')
    return 0


cdef int _indices(str what, const Py_ssize_t[:] indices, Py_ssize_t count) except -1:
    cdef Py_ssize_t k
    for k in range(indices.shape[0]):
        if not 0 <= indices[k] < count:
            raise IndexError(f'{what}: {indices[k]}, must be in 0..{count - 1}')
    return 0
