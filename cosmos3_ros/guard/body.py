"""What the arm as a body must keep: clear of itself, its tool point within a box and within its speeds.

A motion is looked at on a grid, and what lies between two of its points is bounded: no distance changes by more than
the joints' movements times their greatest lever arms. Where that bound does not suffice the interval is halved (F.
Schwarzer, M. Saha, J.-C. Latombe, "Adaptive dynamic collision checking for single and multiple robots in complex
environments", IEEE Trans. Robotics 21(3), 2005). Speeds of the tool point are treated alike, one derivative higher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.capsules import Capsules, link_points, pairs_that_can_meet, segment_lengths
from cosmos3_ros.guard.figures import CartesianLimits, Workspace
from cosmos3_ros.guard.kernels import BodyKernel, any_below
from cosmos3_ros.guard.kinematics import Chain, Kinematics, places, reach
from cosmos3_ros.guard.motion import Motion, Samples, Times
from cosmos3_ros.guard.reasons import Reason

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

# What may be lost between two points of the grid beyond what holds at the points: of a distance, m; of a speed, as a
# fraction of its limit.
DISTANCE_TOLERANCE = 0.002
SPEED_TOLERANCE = 0.01
# An arm that stands in a forbidden place may not creep further in by that tolerance, again and again.
_INSIDE = 0.1
# Points of a motion that are looked at before it is given up as too close to call. A chunk needs some 40.
_MOST_POINTS = 4000
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Finding:
    """Where a motion breaks one of the body's limits.

    Attributes:
        reason: WORKSPACE, TOOL_SPEED or SELF_COLLISION.
        what: What the value is.
        part: The links, or the frame, that it is about.
        time_ns: When.
        value: Offending value, m, m/s or rad/s.
        limit: What would have been accepted.
        unit: Unit of both.
    """

    reason: Reason
    what: str
    part: str
    time_ns: int
    value: float
    limit: float
    unit: str


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the arm at one position: the position [J], rad, and the distances left to each limit [D], m."""

    positions: Array
    margins: Array


@dataclass(frozen=True, eq=False)
class _Line:
    """One thing that is watched along a motion; its margin is what is left to the limit."""

    reason: Reason
    what: str
    part: str
    limit: float
    unit: str


@dataclass(frozen=True, eq=False)
class _Span:
    """Intervals of a motion: both ends of each, with the margins [K, I] there."""

    begin: Samples
    end: Samples
    margins: tuple[Array, Array]

    def __len__(self) -> int:
        return len(self.begin.times_ns)

    def only(self, chosen: NDArray[np.bool_]) -> _Span:
        begin, end = (_chosen(samples, chosen) for samples in (self.begin, self.end))
        return _Span(begin, end, (self.margins[0][:, chosen], self.margins[1][:, chosen]))

    def halved(self, middle: Samples, margins: Array) -> _Span:
        begin, end = self.margins
        both = np.concatenate([begin, margins], axis=1), np.concatenate([margins, end], axis=1)
        return _Span(_after(self.begin, middle), _after(middle, self.end), both)


class Body:
    """The checks that need to know where the arm's parts are. Immutable; any number of motions can be judged."""

    def __init__(
        self,
        chain: Chain,
        joint_names: Sequence[str],
        ranges: Mapping[str, tuple[float, float]],
        capsules: Capsules | None = None,
        workspace: Workspace | None = None,
        cartesian: Mapping[str, CartesianLimits] | None = None,
    ) -> None:
        """Prepare.

        Args:
            chain: The arm.
            joint_names: Meaning of the columns of positions.
            ranges: Lower and upper end of each joint, rad.
            capsules: Its body; None if self-collision is not checked.
            workspace: The box of the tool point; None if there is none.
            cartesian: Speeds of the tool point, by 'translation' and 'rotation'; what is absent is not checked.
        """
        self._chain = chain
        shapes = () if capsules is None else capsules.shapes
        tool = places(chain)[chain.tool]
        points, ends = link_points(chain, shapes)
        points[tool.link] = np.vstack([points[tool.link], tool.translation])
        self._kinematics = Kinematics(chain, joint_names, points)
        last = sum(map(len, points[: tool.link + 1])) - 1
        self._tool = int(self._kinematics.where[last])
        ends = self._kinematics.where[ends + (ends >= last)]
        self._workspace = workspace
        self._lines: list[_Line] = []
        pairs = self._prepare_geometry(capsules, ends, tuple(ranges[name] for name in chain.joints))
        self._prepare_speeds(cartesian or {})
        self._limits = np.array([line.limit for line in self._lines])
        limits = self._limits[self._distances :]
        self.tolerance = np.concatenate([np.full(self._distances, DISTANCE_TOLERANCE), SPEED_TOLERANCE * limits])
        self._kernel = BodyKernel(
            self._kinematics.kernel,
            self._tool,
            *pairs,
            None if workspace is None else (workspace.lower, workspace.upper),
            limits,
            'translation' in (cartesian or {}),
            self._influence,
            self._levers,
            self._couplings,
        )

    def _prepare_geometry(
        self, capsules: Capsules | None, ends: Indices, ranges: tuple[tuple[float, float], ...]
    ) -> tuple[Indices, Array, Array]:
        """Note the lines of pairs and walls; returns of pairs the ends [K, 4], squared lengths [K, 2], limits [K]."""
        influences = []
        prepared: tuple[Indices, Array, Array] = np.empty((0, 4), dtype=np.intp), np.empty((0, 2)), np.empty(0)
        if capsules is not None:
            pairs = pairs_that_can_meet(self._chain, capsules, ranges)
            both = np.stack([pairs.first, pairs.second], axis=1)
            radii = np.array([capsule.radius for capsule in capsules.shapes])
            squares = segment_lengths(capsules.shapes) ** 2
            prepared = ends[both].reshape(-1, 4), squares[both], radii[both].sum(axis=1) + capsules.clearance
            influences = list(pairs.influence)
            for one, other in zip(pairs.first, pairs.second, strict=True):
                part = f'{capsules.shapes[one].link} and {capsules.shapes[other].link}'
                line = _Line(Reason.SELF_COLLISION, 'distance between them', part, capsules.clearance, 'm')
                self._lines.append(line)
        tool = places(self._chain)[self._chain.tool]
        self._lever = reach(self._chain, tool.link, tool.translation[None])
        if self._workspace is not None:
            self._lines.append(_Line(Reason.WORKSPACE, 'distance to the nearest wall', self._chain.tool, 0.0, 'm'))
            influences.append(self._lever)
        self._distances = len(self._lines)
        self._influence = np.array(influences).reshape(self._distances, len(self._lever))
        return prepared

    def _prepare_speeds(self, cartesian: Mapping[str, CartesianLimits]) -> None:
        speeds = [name for name in ('translation', 'rotation') if name in cartesian]
        joints = len(self._lever)
        later = np.maximum(np.arange(joints)[:, None], np.arange(joints)[None, :])
        # How strongly one joint's speed turns what another contributes: d²x/dq_k dq_l is at most the lever of the outer
        # of both for a point; for a rotation it is 1, and only inner joints turn the axes of outer ones.
        coupling = {'translation': self._lever[later], 'rotation': np.triu(np.ones((joints, joints)), 1)}
        levers = {'translation': self._lever, 'rotation': np.ones(joints)}
        self._levers = np.array([levers[name] for name in speeds]).reshape(-1, joints)
        self._couplings = np.array([coupling[name] for name in speeds]).reshape(-1, joints, joints)
        for name in speeds:
            what, unit = ('speed', 'm/s') if name == 'translation' else ('rotation', 'rad/s')
            limit = (1.0 - SPEED_TOLERANCE) * cartesian[name].velocity
            self._lines.append(_Line(Reason.TOOL_SPEED, what, self._chain.tool, limit, unit))

    # At single positions

    def tool_position(self, positions: Array) -> Array:
        """Where the tool point is [S, 3], m in the base frame, at positions [S, J], rad."""
        return np.ascontiguousarray(self._kinematics.place(positions).points[self._tool].T)

    def tool_speeds(self, positions: Array, velocities: Array) -> tuple[Array, Array]:
        """Speed of the tool point, m/s [S], and of its rotation, rad/s [S]."""
        return self._kinematics.kernel.speeds(positions, velocities, self._tool)

    def clearances(self, positions: Array) -> Array:
        """Smallest distance between two watched capsules [S], m, at positions [S, J]; infinite if none are watched."""
        pairs = sum(line.reason is Reason.SELF_COLLISION for line in self._lines)
        distances = self.margins(positions, np.zeros_like(positions))[:pairs] + self._limits[:pairs, None]
        smallest: Array = np.min(distances, axis=0, initial=np.inf)
        return smallest

    def margins(self, positions: Array, velocities: Array) -> Array:
        """What is left to each limit at each instant [K, S]: m for distances, m/s and rad/s for speeds."""
        return self._kernel.margins(positions, velocities)

    # Around a position

    def know(self, positions: Array) -> Known:
        """Look at one position [J], rad."""
        margins = self.margins(positions[None], np.zeros((1, len(positions))))
        return Known(positions.copy(), margins[: self._distances, 0])

    def keeps(self, known: Known, lowest: Array, highest: Array, speed: Array) -> bool:
        """Whether no motion within these bounds can break a limit, by what is known of one position.

        No distance changes by more than the joints' ways from that position times their greatest lever arms.

        Args:
            known: A position near the motion.
            lowest: Smallest position of each joint in the motion [J], rad.
            highest: Largest position of each joint [J], rad.
            speed: Largest speed of each joint [J], rad/s.

        Returns:
            True if it is certain; False says nothing.
        """
        return self._kernel.keeps(known.positions, known.margins, lowest, highest, speed)

    # Along a motion

    def judge(
        self,
        motion: Motion,
        times_ns: Times,
        acceleration: Array,
        jerk: Array,
        *,
        stopping: bool = False,
        speeds: bool = True,
    ) -> tuple[Finding | None, Known]:
        """Judge a motion between the first and the last of the given instants, and everywhere in between.

        What is outside its limit at the first instant may stay so but not get worse; for the speeds of the tool point
        this holds while `stopping` only.

        Args:
            motion: The motion.
            times_ns: Where to look first [S], rising, S >= 2. The denser, the fewer intervals have to be halved.
            acceleration: Largest acceleration of each joint in the motion [J], rad/s².
            jerk: Largest jerk of each joint in the motion [J], rad/s³.
            stopping: Whether the motion is a stop.
            speeds: Whether the speeds of the tool point count.

        Returns:
            The first violation that was found, or None if none is possible beyond the tolerances of this module; and
            what is known of the last instant.
        """
        samples = motion.sample(times_ns)
        margins, floor, sure, kept = self._kernel.look(
            samples.times_ns,
            samples.positions,
            samples.velocities,
            samples.accelerations,
            acceleration,
            jerk,
            self.tolerance,
            _INSIDE,
            _ROUNDING,
            stopping,
            speeds,
        )
        last = Known(samples.positions[-1], margins[: self._distances, -1])
        if kept:
            return None, last
        bounds = acceleration, jerk
        found = self._worst(samples.times_ns, margins, floor)
        begin, end = _chosen(samples, slice(None, -1)), _chosen(samples, slice(1, None))
        span = self._doubtful(_Span(begin, end, (margins[:, :-1], margins[:, 1:])), sure, bounds)
        looked = len(times_ns)
        while found is None and span is not None:
            looked += len(span)
            middle = span.begin.times_ns + (span.end.times_ns - span.begin.times_ns) // 2
            if looked > _MOST_POINTS or (middle == span.begin.times_ns).any():
                return self._too_close(span), last
            samples = motion.sample(middle)
            margins = self.margins(samples.positions, samples.velocities)
            found = self._worst(middle, margins, floor)
            span = self._doubtful(span.halved(samples, margins), sure, bounds)
        return found, last

    def _worst(self, times_ns: Times, margins: Array, floor: Array) -> Finding | None:
        """The earliest instant at which a margin is below its floor; of several there, the worst."""
        if not any_below(margins, floor):
            return None
        below = ~(margins >= floor[:, None])
        instant = int(np.where(below.any(axis=0), times_ns, times_ns.max() + 1).argmin())
        line = int(np.where(below[:, instant], margins[:, instant] - floor, np.inf).argmin())
        return self._finding(line, int(times_ns[instant]), float(margins[line, instant]))

    def _finding(self, index: int, time_ns: int, margin: float) -> Finding:
        line = self._lines[index]
        value = line.limit - margin if line.reason is Reason.TOOL_SPEED else line.limit + margin
        return Finding(line.reason, line.what, line.part, time_ns, value, line.limit, line.unit)

    def _too_close(self, span: _Span) -> Finding:
        """What to say of a motion that runs so close to a limit that it cannot be shown to keep it."""
        margins = np.minimum(*span.margins)
        line, interval = (int(i) for i in np.unravel_index(margins.argmin(), margins.shape))
        found = self._finding(line, int(span.begin.times_ns[interval]), float(margins[line, interval]))
        what = f'cannot be shown to keep the limit between rows; {found.what}'
        return Finding(found.reason, what, found.part, found.time_ns, found.value, found.limit, found.unit)

    def _doubtful(self, span: _Span, sure: Array, bounds: tuple[Array, Array]) -> _Span | None:
        """The intervals in which a margin might fall below what is sure to be kept; None if there are none."""
        begin, end = span.begin, span.end
        doubtful = self._kernel.doubtful(
            begin.times_ns,
            end.times_ns,
            begin.velocities,
            end.velocities,
            begin.accelerations,
            end.accelerations,
            *span.margins,
            sure,
            *bounds,
        )
        return None if doubtful is None else span.only(doubtful)


def _chosen(samples: Samples, index: slice | NDArray[np.bool_]) -> Samples:
    return Samples(
        samples.times_ns[index], samples.positions[index], samples.velocities[index], samples.accelerations[index]
    )


def _after(first: Samples, second: Samples) -> Samples:
    return Samples(
        np.concatenate([first.times_ns, second.times_ns]),
        np.concatenate([first.positions, second.positions]),
        np.concatenate([first.velocities, second.velocities]),
        np.concatenate([first.accelerations, second.accelerations]),
    )
