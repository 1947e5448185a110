"""Limits of one robot, read from a file that states each figure with its unit and source. Nothing has a default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from cosmos3_ros.guard.arms_file import ArmsFile, is_arms_file, read_arms
from cosmos3_ros.guard.body import Body
from cosmos3_ros.guard.capsules import Capsules
from cosmos3_ros.guard.figures import CartesianLimits, LimitsError, NearEnds, Workspace, freeze_arrays
from cosmos3_ros.guard.kinematics import Chain
from cosmos3_ros.guard.robot_file import read_robot
from cosmos3_ros.guard.several_arms import BetweenArms, SeveralBodies, chain_through
from engine.errors import Problem
from engine.resources import find_config

__all__ = ['CartesianLimits', 'LimitsError', 'RobotLimits', 'load_limits', 'parse_limits']

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RobotLimits:
    """What the joints of one robot may do. All arrays have shape [J], in the order of `joint_names`.

    Attributes:
        name: Name of the robot file.
        joint_names: Joint names as the robot's driver spells them.
        lower: Smallest position, rad.
        upper: Largest position, rad.
        velocity: Largest speed, rad/s.
        acceleration: Largest acceleration, rad/s².
        jerk: Largest rate of change of acceleration, rad/s³.
        margin: Distance kept from both position ends on top of the stopping distance, rad.
        source: Where the figures come from, one line per quantity.
        scale: Fraction of the maker's velocity, acceleration and jerk that these arrays hold.
        torque: Largest torque, N m, as data; None if the file has none.
        cartesian: Cartesian figures by name ('translation', 'rotation', 'elbow'); the velocities of the first two are
            enforced for the tool point if `chain` is known.
        near_ends: How `velocity` shrinks near the ends of the joints' ranges; None if it does not.
        chain: Kinematics; None if the file has none.
        capsules: The arm's body for the check of self-collision; None if the file has none.
        workspace: Box of the tool point; None if the file has none.
        differences: Where this file and a robot description disagreed, one sentence each, and what was done.
        parts: The arms of a robot of several arms, each under the names and in the base frame of this robot; the
            arrays here hold their joints one arm after the other, and kinematics and bodies are theirs. Empty for a
            robot of one arm.
        between: What is kept between the arms; None for a robot of one arm.
    """

    name: str
    joint_names: tuple[str, ...]
    lower: Array
    upper: Array
    velocity: Array
    acceleration: Array
    jerk: Array
    margin: float
    source: str
    scale: float = 1.0
    torque: Array | None = None
    cartesian: Mapping[str, CartesianLimits] = field(default_factory=dict)
    near_ends: NearEnds | None = None
    chain: Chain | None = None
    capsules: Capsules | None = None
    workspace: Workspace | None = None
    differences: tuple[str, ...] = ()
    parts: tuple[RobotLimits, ...] = ()
    between: BetweenArms | None = None

    def __post_init__(self) -> None:
        freeze_arrays(self)

    @property
    def arms(self) -> tuple[RobotLimits, ...]:
        """Each arm by itself: this robot, if it has only one. Each has a name, joint names and a chain of its own."""
        return self.parts or (self,)

    @cached_property
    def body(self) -> Body | SeveralBodies | None:
        """The checks that need the kinematics; None if they are not known. Takes a fraction of a second to prepare."""
        bodies = [self._body(arm.chain, arm.capsules, arm) for arm in self.arms if arm.chain is not None]
        for one, other in combinations(self.parts, 2):
            if one.chain and one.capsules and other.chain and other.capsules and self.between:
                capsules = self.between.capsules(one.capsules.shapes, other.capsules.shapes)
                bodies.append(self._body(chain_through(one.chain, other.chain), capsules, None))
        return SeveralBodies(bodies) if len(bodies) > 1 else next(iter(bodies), None)

    def _body(self, chain: Chain, capsules: Capsules | None, arm: RobotLimits | None) -> Body:
        ranges = {
            name: (float(low), float(high))
            for name, low, high in zip(self.joint_names, self.lower, self.upper, strict=True)
        }
        workspace, cartesian = (None, {}) if arm is None else (arm.workspace, arm.cartesian)
        return Body(chain, self.joint_names, ranges, capsules, workspace, cartesian)

    @property
    def unchecked(self) -> tuple[str, ...]:
        """What the guard cannot check because the robot file does not state it, one sentence each."""
        if self.parts:
            of_arms = tuple(f'{arm.name}: {sentence}' for arm in self.parts for sentence in arm.unchecked)
            blind = any(arm.chain is None or arm.capsules is None for arm in self.parts)
            return of_arms + (('Not every arm has capsules: the arms may touch each other.',) if blind else ())
        missing = []
        if self.chain is None:
            missing.append('The robot file has no kinematics: speed and place of the tool are not checked.')
        else:
            for name, what in (('translation', 'speed'), ('rotation', 'rotation')):
                if name not in self.cartesian:
                    missing.append(f'The robot file has no cartesian.{name}: the {what} of the tool is not checked.')
            if self.workspace is None:
                missing.append('The robot file has no workspace: the tool may go wherever the arm reaches.')
        if self.capsules is None:
            missing.append('The robot file has no capsules: self-collision is not checked.')
        return tuple(missing)

    def velocity_bounds(self, positions: Array) -> tuple[Array, Array]:
        """Smallest and largest velocity at the given positions [..., J], rad/s, each of that shape or [J]."""
        if self.near_ends is None:
            return -self.velocity, self.velocity
        return self.near_ends.bounds(positions, self.velocity)

    @property
    def soft_lower(self) -> Array:
        """Smallest position a chunk may ask for, rad [J]."""
        return self.lower + self.margin

    @property
    def soft_upper(self) -> Array:
        """Largest position a chunk may ask for, rad [J]."""
        return self.upper - self.margin

    def scaled(self, scale: float) -> RobotLimits:
        """The same robot at reduced speed: velocity, acceleration and jerk times `scale`, for first runs.

        The Cartesian figures are reduced alike.

        Args:
            scale: Fraction of the present limits, 0 < scale <= 1.

        Raises:
            LimitsError: `scale` is outside that range.
        """
        if not 0.0 < scale <= 1.0:
            raise LimitsError(
                f'limits of {self.name}', [Problem('scale', 'out of range', str(scale), '0 < scale <= 1')]
            )
        return replace(
            self,
            velocity=self.velocity * scale,
            acceleration=self.acceleration * scale,
            jerk=self.jerk * scale,
            scale=self.scale * scale,
            cartesian={name: limit.scaled(scale) for name, limit in self.cartesian.items()},
            near_ends=None if self.near_ends is None else self.near_ends.scaled(scale),
            parts=tuple(arm.scaled(scale) for arm in self.parts),
        )

    def for_joints(self, names: Sequence[str]) -> RobotLimits:
        """The same limits in another order of joints.

        Args:
            names: Exactly the joints of this robot, in the wanted order.

        Raises:
            LimitsError: A joint is missing, unknown or named twice; all of them are listed.
        """
        problems = [
            Problem(n, 'no limits for this joint', allowed=', '.join(self.joint_names))
            for n in names
            if n not in self.joint_names
        ]
        problems += [Problem(n, 'joint of the robot not asked for') for n in self.joint_names if n not in names]
        problems += [Problem(n, 'named twice') for n in dict.fromkeys(names) if list(names).count(n) > 1]
        if problems:
            raise LimitsError(f'limits of {self.name}', problems)
        order = [self.joint_names.index(n) for n in names]
        arrays = {
            f.name: getattr(self, f.name)[order] for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)
        }
        near_ends = None if self.near_ends is None else self.near_ends.of_columns(order)
        return replace(self, joint_names=tuple(names), near_ends=near_ends, **arrays)


def load_limits(name_or_path: str | Path, *, scale: float = 1.0) -> RobotLimits:
    """Read and validate the limits of a robot.

    Args:
        name_or_path: Name of a file in config/robots, or a path.
        scale: Fraction of the maker's velocity, acceleration and jerk to use, 0 < scale <= 1.

    Raises:
        InvalidInput: There is no such file.
        LimitsError: The file is unreadable or wrong; every fault is listed.
    """
    path = find_config('robots', str(name_or_path))
    try:
        document = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LimitsError(f'robot file {path}', [Problem(path.name, f'is not readable YAML: {error}')]) from error
    return parse_limits(document, where=str(path)).scaled(scale)


def parse_limits(document: object, *, where: str) -> RobotLimits:
    """Build limits from a parsed robot file.

    Args:
        document: What the YAML file holds: one robot, or the robot files of several arms.
        where: Name of the file for error texts.

    Raises:
        InvalidInput: A robot file of one of several arms is not there.
        LimitsError: Every fault of the document.
    """
    if is_arms_file(document):
        return _of_several(read_arms(document, where=where), where)
    return RobotLimits(**read_robot(document, where=where))


def _of_several(file: ArmsFile, where: str) -> RobotLimits:
    """One robot of several arms: their figures one after the other, and the arms themselves."""
    parts, problems = [], []
    for entry in file.arms:
        alone = load_limits(entry.robot)
        if alone.parts:
            problems.append(Problem(entry.name, 'must be the file of one arm', entry.robot))
        if alone.workspace is not None and entry.workspace is None:
            what = f"the box of {entry.robot} is in that arm's own base"
            remedy = f'state it under `workspaces`, in the frame {entry.mount.base}'
            problems.append(Problem(entry.name, what, remedy=remedy))
        mount = entry.mount
        parts.append(
            replace(
                alone,
                name=entry.name,
                joint_names=tuple(mount.prefix + joint for joint in alone.joint_names),
                chain=None if alone.chain is None else mount.chain(alone.chain),
                capsules=None if alone.capsules is None else mount.capsules(alone.capsules),
                workspace=entry.workspace,
            )
        )
        if entry.workspace is not None and alone.chain is None:
            problems.append(Problem(entry.name, 'has a workspace', remedy=f'give {entry.robot} its kinematics'))
    names = {name for arm in parts if arm.chain is not None for name in arm.chain.names}
    for pair in file.between.never_checked:
        problems += [Problem('between_arms.never_checked', 'unknown link', repr(link)) for link in pair - names]
    if problems:
        raise LimitsError(f'robot file {where}', problems)
    figures = {key: np.concatenate([getattr(arm, key) for arm in parts]) for key in _FIGURES}
    return RobotLimits(
        file.name,
        tuple(name for arm in parts for name in arm.joint_names),
        **figures,
        margin=max(arm.margin for arm in parts),
        source='\n'.join([file.source, *(f'{arm.name}, {line}' for arm in parts for line in arm.source.splitlines())]),
        near_ends=_near_ends(parts),
        parts=tuple(parts),
        between=file.between,
    )


# One number per joint each.
_FIGURES = ('lower', 'upper', 'velocity', 'acceleration', 'jerk')


def _near_ends(arms: Sequence[RobotLimits]) -> NearEnds | None:
    if all(arm.near_ends is None for arm in arms):
        return None
    return NearEnds.joined([arm.near_ends or NearEnds.nowhere(len(arm.joint_names)) for arm in arms])
