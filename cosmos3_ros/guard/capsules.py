"""The arm's own body as capsules, and how far they are from each other.

A capsule is every point within a radius of a line segment. The distance of two capsules is that of their segments less
both radii (C. Ericson, "Real-Time Collision Detection", 5.1.9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.figures import freeze_arrays
from cosmos3_ros.guard.kernels import segment_distances
from cosmos3_ros.guard.kinematics import Chain, Kinematics, places, reach, reach_back

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

# Boxes of joint positions that are looked at before a pair is taken as one that might meet.
_MOST_BOXES = 4096


@dataclass(frozen=True, eq=False)
class Capsule:
    """A part of a link.

    Attributes:
        link: Frame it is fixed to.
        start: One end of its segment in that frame [3], m.
        end: The other end [3], m; the same for a sphere.
        radius: m.
    """

    link: str
    start: Array
    end: Array
    radius: float

    def __post_init__(self) -> None:
        freeze_arrays(self)


@dataclass(frozen=True, eq=False)
class Capsules:
    """The body of an arm.

    Attributes:
        shapes: Its capsules.
        clearance: Distance that is kept between two capsules, m.
        never_checked: Pairs of links that are allowed to touch, such as neighbours.
    """

    shapes: tuple[Capsule, ...]
    clearance: float
    never_checked: frozenset[frozenset[str]]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of capsules that could meet.

    Attributes:
        first: Index of one capsule of each pair [K].
        second: Index of the other [K], on a link further from the base.
        influence: By how much the distance can change per joint movement, at most [K, J], m/rad, in the chain's order.
    """

    first: Indices
    second: Indices
    influence: Array


def link_points(chain: Chain, capsules: Sequence[Capsule]) -> tuple[list[Array], Indices]:
    """Ends of all capsules, sorted by the moving link they belong to.

    Returns:
        For the base and each link of the chain, its points [P_k, 3], m, in the link's frame. And for each capsule where
        its two ends are in the sequence of all points [C, 2].
    """
    fixed = places(chain)
    gathered: list[list[Array]] = [[] for _ in range(len(chain.joints) + 1)]
    owners: list[list[tuple[int, int]]] = [[] for _ in gathered]
    for index, capsule in enumerate(capsules):
        place = fixed[capsule.link]
        for side, point in enumerate((capsule.start, capsule.end)):
            gathered[place.link].append(place.translation + place.rotation @ point)
            owners[place.link].append((index, side))
    where = np.zeros((len(capsules), 2), dtype=np.intp)
    for position, (index, side) in enumerate(owner for link in owners for owner in link):
        where[index, side] = position
    return [np.array(points).reshape(-1, 3) for points in gathered], where


def segment_lengths(capsules: Sequence[Capsule]) -> Array:
    """Length of the axis of each capsule [C], m."""
    return np.array([np.linalg.norm(capsule.end - capsule.start) for capsule in capsules])


class SegmentPairs:
    """Pairs of line segments of fixed lengths, and the distances between them."""

    def __init__(self, lengths: Array, first: Indices, second: Indices) -> None:
        """Prepare.

        Args:
            lengths: Length of each segment [C], m; zero for a point.
            first: Index of one segment of each pair [K].
            second: Index of the other [K].
        """
        self._first, self._second = np.asarray(first, dtype=np.intp), np.asarray(second, dtype=np.intp)
        self._squares = lengths**2

    def distances(self, starts: Array, ways: Array) -> Array:
        """Distances between the segments of each pair [K, S], m.

        Args:
            starts: One end of each segment [C, 3, S], m.
            ways: From there to the other end [C, 3, S], m.
        """
        return segment_distances(self._first, self._second, self._squares, starts, ways)


def pairs_that_can_meet(chain: Chain, capsules: Capsules, ranges: tuple[tuple[float, float], ...]) -> Pairs:
    """The pairs that must be watched: all but those on one link, those never checked, and those that cannot meet.

    Whether two capsules can come within the clearance is found by dividing the ranges of the joints between them into
    boxes: a box is done with when the distance in its middle exceeds what the joints can change within the box.

    Args:
        chain: The arm.
        capsules: Its body.
        ranges: Lower and upper end of each joint of the chain, rad.
    """
    key = (*_content(chain), *_content(capsules), ranges)
    if key not in _FOUND:
        if len(_FOUND) >= _MOST_FOUND:
            _FOUND.pop(next(iter(_FOUND)), None)
        _FOUND[key] = _find_pairs(chain, capsules, ranges)
    return _FOUND[key]


# What has been found for arms of the same shape: it takes a fifth of a second, and a robot file is read more than once.
_FOUND: dict[tuple[object, ...], Pairs] = {}
_MOST_FOUND = 16


def _content(arm: Chain | Capsules) -> tuple[object, ...]:
    """Everything that matters for which pairs can meet, in a form that can be compared."""
    if isinstance(arm, Chain):
        frames = ((f.name, f.parent, f.joint, f.translation.tobytes(), f.rotation.tobytes()) for f in arm.frames)
        return (arm.base, *frames)
    shapes = tuple((s.link, s.start.tobytes(), s.end.tobytes(), s.radius) for s in arm.shapes)
    return (arm.clearance, arm.never_checked, shapes)


def _find_pairs(chain: Chain, capsules: Capsules, ranges: tuple[tuple[float, float], ...]) -> Pairs:
    shapes = capsules.shapes
    fixed = places(chain)
    candidates = []
    for one, other in combinations(range(len(shapes)), 2):
        links = fixed[shapes[one].link].link, fixed[shapes[other].link].link
        if links[0] == links[1] or frozenset((shapes[one].link, shapes[other].link)) in capsules.never_checked:
            continue
        candidates.append((one, other) if links[0] < links[1] else (other, one))
    watched, influences = [], []
    for pair in candidates:
        influence = _influence(chain, [shapes[index] for index in pair])
        if _can_meet(chain, [shapes[index] for index in pair], influence, ranges, capsules.clearance):
            watched.append(pair)
            influences.append(influence)
    indices = np.array(watched, dtype=np.intp).reshape(-1, 2)
    return Pairs(indices[:, 0], indices[:, 1], np.array(influences).reshape(len(watched), len(chain.joints)))


def _influence(chain: Chain, pair: Sequence[Capsule]) -> Array:
    """By how much each joint can change the distance of two capsules, m/rad [J]; the first is nearer to the base.

    Whichever of the two is seen as the one that is turned, so the smaller of both radii counts.
    """
    points, _ = link_points(chain, pair)
    links = [places(chain)[capsule.link].link for capsule in pair]
    between = np.zeros(len(chain.joints))
    between[links[0] : links[1]] = 1.0
    back = reach_back(chain, links[0], points[links[0]])
    return between * np.minimum(back, reach(chain, links[1], points[links[1]]))


def _can_meet(
    chain: Chain, pair: Sequence[Capsule], influence: Array, ranges: Sequence[tuple[float, float]], clearance: float
) -> bool:
    points, where = link_points(chain, pair)
    kinematics = Kinematics(chain, chain.joints, points)
    where = kinematics.where[where]
    close = clearance + pair[0].radius + pair[1].radius
    segments = SegmentPairs(segment_lengths(pair), np.array([0]), np.array([1]))
    lower, upper = np.array(ranges).T
    middles, halves = ((lower + upper) / 2)[None], ((upper - lower) / 2)[None]
    while len(middles):
        ends = kinematics.place(middles).points[where]
        distance = segments.distances(ends[:, 0], ends[:, 1] - ends[:, 0])[0]
        if (distance < close).any() or len(middles) > _MOST_BOXES:
            return True
        open_ = distance - halves @ influence < close
        middles, halves = _divided(middles[open_], halves[open_], influence)
    return False


def _divided(middles: Array, halves: Array, influence: Array) -> tuple[Array, Array]:
    """Each box cut in two across the joint that matters most in it."""
    if not len(middles):
        return middles, halves
    widest = (halves * influence).argmax(axis=1)
    rows = np.arange(len(middles))
    halves = halves.copy()
    halves[rows, widest] /= 2
    shift = np.zeros_like(halves)
    shift[rows, widest] = halves[rows, widest]
    return np.concatenate([middles - shift, middles + shift]), np.concatenate([halves, halves])
