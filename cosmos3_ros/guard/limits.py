"""Limits of one robot, read from a file that states each figure with its unit and source. Nothing has a default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from engine.errors import InvalidInput, Problem
from engine.resources import find_config

Array = NDArray[np.float64]

SCHEMA = 1
_UNITS = {'position': 'rad', 'velocity': 'rad/s', 'acceleration': 'rad/s^2', 'jerk': 'rad/s^3', 'torque': 'N m'}
_CARTESIAN = ('translation', 'rotation', 'elbow')
_CARTESIAN_UNITS = {'translation': 'm', 'rotation': 'rad', 'elbow': 'rad'}
_TOP_LEVEL = ('schema', 'name', 'description', 'joints', *_UNITS, 'cartesian')


class LimitsError(InvalidInput):
    """A robot file is malformed, incomplete or implausible, or does not fit the joints that are asked for."""


@dataclass(frozen=True)
class CartesianLimits:
    """Limits of one Cartesian quantity of the end effector, per second; kept as data.

    Attributes:
        velocity: m/s or rad/s.
        acceleration: m/s² or rad/s².
        jerk: m/s³ or rad/s³.
    """

    velocity: float
    acceleration: float
    jerk: float


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
        cartesian: Cartesian figures by name ('translation', 'rotation', 'elbow'), as data.
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

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                frozen = np.array(value, dtype=np.float64)
                frozen.setflags(write=False)
                object.__setattr__(self, item.name, frozen)

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
        return replace(self, joint_names=tuple(names), **arrays)


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
        document: What the YAML file holds.
        where: Name of the file for error texts.

    Raises:
        LimitsError: Every fault of the document.
    """
    reader = _Reader()
    root = reader.mapping('(top level)', document, _TOP_LEVEL)
    reader.equal('schema', root.get('schema'), SCHEMA)
    joints = reader.names('joints', root.get('joints'))
    position = reader.block(root, 'position', ('lower', 'upper', 'margin'))
    rates = {key: reader.block(root, key, ('limit',)) for key in ('velocity', 'acceleration', 'jerk')}
    torque = reader.block(root, 'torque', ('limit',)) if 'torque' in root else None
    lower = reader.numbers('position.lower', position.get('lower'), len(joints))
    upper = reader.numbers('position.upper', position.get('upper'), len(joints))
    margin = reader.number('position.margin', position.get('margin'), minimum=0.0)
    limits = {k: reader.numbers(f'{k}.limit', b.get('limit'), len(joints), positive=True) for k, b in rates.items()}
    effort = None if torque is None else reader.numbers('torque.limit', torque.get('limit'), len(joints), positive=True)
    cartesian = reader.cartesian(root['cartesian']) if 'cartesian' in root else {}
    reader.ranges(joints, lower, upper, margin)
    name = reader.text('name', root.get('name'))
    reader.finish(f'robot file {where}')
    sources = '\n'.join(f'{k}: {b["source"]}' for k, b in {'position': position, **rates}.items())
    return RobotLimits(
        name,
        joints,
        lower,
        upper,
        limits['velocity'],
        limits['acceleration'],
        limits['jerk'],
        margin=margin,
        source=sources,
        torque=effort,
        cartesian=cartesian,
    )


class _Reader:
    """Collects every fault; hands out stand-ins of the right type so that reading can go on to the next one."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def fault(self, where: str, what: str, value: str = '', allowed: str = '', remedy: str = '') -> None:
        self.problems.append(Problem(where, what, value, allowed, remedy))

    def finish(self, subject: str) -> None:
        if self.problems:
            raise LimitsError(subject, self.problems)

    def mapping(self, where: str, value: object, keys: Sequence[str]) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fault(where, 'must be a mapping', type(value).__name__, ', '.join(keys))
            return {}
        for key in value:
            if key not in keys:
                self.fault(where, 'unknown key', repr(key), ', '.join(keys))
        return value

    def block(self, root: dict[str, Any], key: str, content: Sequence[str]) -> dict[str, Any]:
        if key not in root:
            self.fault(key, 'missing', remedy='state the limit with its unit and source; there is no default')
            return {}
        block = self.mapping(key, root[key], ('unit', 'source', *content))
        self.equal(f'{key}.unit', block.get('unit'), _UNITS[key])
        self.text(f'{key}.source', block.get('source'))
        return block

    def cartesian(self, value: object) -> dict[str, CartesianLimits]:
        block = self.mapping('cartesian', value, ('source', *_CARTESIAN))
        self.text('cartesian.source', block.get('source'))
        return {key: self._cartesian_entry(key, block[key]) for key in _CARTESIAN if key in block}

    def _cartesian_entry(self, key: str, value: object) -> CartesianLimits:
        where = f'cartesian.{key}'
        names = ('velocity', 'acceleration', 'jerk')
        entry = self.mapping(where, value, ('unit', *names))
        self.equal(f'{where}.unit', entry.get('unit'), _CARTESIAN_UNITS[key])
        return CartesianLimits(*(self.number(f'{where}.{n}', entry.get(n), above=0.0) for n in names))

    def equal(self, where: str, value: object, wanted: object) -> None:
        if value != wanted or isinstance(value, bool):
            self.fault(
                where,
                'missing' if value is None else 'not supported',
                '' if value is None else repr(value),
                repr(wanted),
            )

    def text(self, where: str, value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            self.fault(where, 'must be a text that is not empty', '' if value is None else repr(value))
            return ''
        return value

    def names(self, where: str, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not value or not all(isinstance(n, str) and n for n in value):
            self.fault(where, 'must be a list of joint names', '' if value is None else repr(value))
            return ()
        for name in dict.fromkeys(value):
            if value.count(name) > 1:
                self.fault(where, 'joint named twice', repr(name))
        return tuple(value)

    def number(self, where: str, value: object, *, minimum: float | None = None, above: float | None = None) -> float:
        number = _as_float(value)
        allowed = f'a number >= {minimum:g}' if minimum is not None else f'a number > {above or 0.0:g}'
        too_small = number is not None and (
            (minimum is not None and number < minimum) or (above is not None and number <= above)
        )
        if number is None or too_small:
            self.fault(
                where, 'missing' if value is None else 'not usable', '' if value is None else repr(value), allowed
            )
            return 1.0
        return number

    def numbers(self, where: str, value: object, count: int, *, positive: bool = False) -> Array:
        stand_in = np.ones(count)
        if not isinstance(value, list):
            self.fault(
                where,
                'missing' if value is None else 'must be a list',
                '' if value is None else repr(value),
                f'{count} numbers',
            )
            return stand_in
        if len(value) != count:
            self.fault(where, 'wrong number of entries', str(len(value)), f'{count}, one per joint')
            return stand_in
        parsed = [_as_float(item) for item in value]
        allowed = 'finite numbers > 0' if positive else 'finite numbers'
        for index, number in enumerate(parsed):
            if number is None or (positive and number <= 0.0):
                self.fault(f'{where}[{index}]', 'not usable', repr(value[index]), allowed)
        return np.array([1.0 if number is None else number for number in parsed])

    def ranges(self, joints: Sequence[str], lower: Array, upper: Array, margin: float) -> None:
        if self.problems:
            return  # stand-ins would only add faults that are not in the file
        for name, low, high in zip(joints, lower, upper, strict=True):
            if low + margin >= high - margin:
                what = 'leaves no room between its ends less the margin'
                self.fault(f'position of {name}', what, f'[{low:g}, {high:g}] with margin {margin:g}')


def _as_float(value: object) -> float | None:
    """The value as a finite number; YAML's true and false are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if np.isfinite(value) else None
