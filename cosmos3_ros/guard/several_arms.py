"""Robots of several arms: each arm as it is alone, under names of its own, and the arms held clear of each other.

Two arms on one base are one serial chain too: from the last link of the one back to the base, and out to the tool of
the other. So whatever holds for the distance of two links of one arm holds for links of two arms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.body import Body, Finding, Known
from cosmos3_ros.guard.capsules import Capsule, Capsules
from cosmos3_ros.guard.kinematics import Chain, Frame, joint_places, places
from cosmos3_ros.guard.motion import Motion, Times

Array = NDArray[np.float64]

# Turns an axis round: a joint seen from its far side turns the other way.
_ROUND = np.diag([1.0, -1.0, -1.0])


@dataclass(frozen=True, eq=False)
class Mount:
    """Where an arm stands, and what its names begin with.

    Attributes:
        prefix: Put before every joint and frame of the arm.
        base: Frame in which all arms stand.
        translation: The arm's own base in that frame [3], m.
        rotation: Its axes there, as columns [3, 3].
    """

    prefix: str
    base: str
    translation: Array
    rotation: Array

    def chain(self, chain: Chain) -> Chain:
        """The arm's chain in the common base, its own base being the first of the fixed frames."""
        foot = Frame(self.prefix + chain.base, self.base, self.translation, self.rotation)
        frames = [
            replace(
                frame,
                name=self.prefix + frame.name,
                parent=self.prefix + frame.parent,
                joint=self.prefix + frame.joint if frame.joint else '',
            )
            for frame in chain.frames
        ]
        return Chain(self.base, (foot, *frames), self.prefix + chain.tool)

    def capsules(self, capsules: Capsules) -> Capsules:
        """The arm's body under its names."""
        shapes = tuple(replace(shape, link=self.prefix + shape.link) for shape in capsules.shapes)
        never = frozenset(frozenset(self.prefix + link for link in pair) for pair in capsules.never_checked)
        return Capsules(shapes, capsules.clearance, never)


@dataclass(frozen=True)
class BetweenArms:
    """What is kept between two arms.

    Attributes:
        clearance: Distance between any two of their capsules, m.
        never_checked: Pairs of links of different arms that are allowed to touch.
    """

    clearance: float
    never_checked: frozenset[frozenset[str]] = frozenset()

    def capsules(self, one: Sequence[Capsule], other: Sequence[Capsule]) -> Capsules:
        """The capsules of two arms, of which only those of different arms are watched."""
        own = {frozenset(pair) for arm in (one, other) for pair in product([shape.link for shape in arm], repeat=2)}
        return Capsules((*one, *other), self.clearance, self.never_checked | own)


def chain_through(one: Chain, other: Chain) -> Chain:
    """One serial chain through two arms that stand in the same base.

    Args:
        one: The arm whose last link the chain begins with.
        other: The arm that it ends with.

    Returns:
        A chain with the joints of both, those of the first in reverse, and with all of their frames.
    """
    steps = joint_places(one)
    links = [f'{one.tool}, link {index}' for index in range(len(steps) + 1)]
    frames = []
    for index in reversed(range(len(steps))):
        # The step from link k to link k + 1 is S Rz(q). Back it is Rz(-q) S⁻¹, and Rz(-q) is X Rz(q) X with X = Rx(pi).
        back = _ROUND @ steps[index].rotation.T
        turned = f'{links[index + 1]}, turned round'
        frames.append(Frame(turned, links[index + 1], np.zeros(3), _ROUND, one.joints[index]))
        frames.append(Frame(links[index], turned, -back @ steps[index].translation, back))
    for name, place in places(one).items():
        frames.append(Frame(name, links[place.link], place.translation, place.rotation))
    return Chain(links[-1], (*frames, *other.frames), other.tool)


@dataclass(frozen=True, eq=False)
class KnownOfSeveral(Known):
    """What is known of a robot of several arms at one position: of each body by itself, and all of it together."""

    parts: tuple[Known, ...] = ()


class SeveralBodies:
    """Several checks of one motion as one: it keeps the limits if it keeps those of each. The interface of `Body`."""

    def __init__(self, bodies: Sequence[Body]) -> None:
        """Combine.

        Args:
            bodies: The checks; all of them know the same order of joints.
        """
        self._bodies = tuple(bodies)

    def clearances(self, positions: Array) -> Array:
        """Smallest distance between two watched capsules [S], m, at positions [S, J]; infinite if none are watched."""
        smallest: Array = np.min([body.clearances(positions) for body in self._bodies], axis=0)
        return smallest

    def know(self, positions: Array) -> KnownOfSeveral:
        """Look at one position [J], rad."""
        return _together([body.know(positions) for body in self._bodies])

    def keeps(self, known: Known, lowest: Array, highest: Array, speed: Array) -> bool:
        """Whether no motion within these bounds can break a limit; see :meth:`Body.keeps`."""
        if not isinstance(known, KnownOfSeveral):
            return False
        pairs = zip(self._bodies, known.parts, strict=True)
        return all(body.keeps(part, lowest, highest, speed) for body, part in pairs)

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
        """Judge a motion; the earliest violation of any limit is returned. See :meth:`Body.judge`."""
        verdicts = [
            body.judge(motion, times_ns, acceleration, jerk, stopping=stopping, speeds=speeds) for body in self._bodies
        ]
        found = [finding for finding, _ in verdicts if finding is not None]
        return min(found, key=lambda finding: finding.time_ns, default=None), _together([k for _, k in verdicts])


def _together(parts: Sequence[Known]) -> KnownOfSeveral:
    return KnownOfSeveral(parts[0].positions, np.concatenate([part.margins for part in parts]), tuple(parts))
