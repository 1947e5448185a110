"""Reads a robot file: every figure with its unit and source, every fault at once. The format: docs/robots.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.capsules import Capsule, Capsules
from cosmos3_ros.guard.figures import CartesianLimits, LimitsError, NearEnds, Workspace
from cosmos3_ros.guard.kinematics import Chain, Frame, places
from engine.actions.rotations import rpy_to_matrix
from engine.errors import Problem

Array = NDArray[np.float64]
Block = TypeVar('Block')

SCHEMA = 1
_UNITS = {'position': 'rad', 'velocity': 'rad/s', 'acceleration': 'rad/s^2', 'jerk': 'rad/s^3', 'torque': 'N m'}
_CARTESIAN = ('translation', 'rotation', 'elbow')
_CARTESIAN_UNITS = {'translation': 'm', 'rotation': 'rad', 'elbow': 'rad'}
_BODY = ('kinematics', 'capsules', 'workspace')
_TOP_LEVEL = ('schema', 'name', 'description', 'joints', *_UNITS, 'cartesian', *_BODY)
_NEAR_ENDS = {'gain': 'rad/s^2', 'offset': 'rad/s', 'lower': 'rad', 'upper': 'rad'}
POSE_UNITS = {'xyz': 'm', 'rpy': 'rad'}
_NO_POSE = (np.zeros(3), np.eye(3))


def read_robot(document: object, *, where: str) -> dict[str, Any]:
    """Read a parsed robot file.

    Args:
        document: What the YAML file holds.
        where: Name of the file for error texts.

    Returns:
        The arguments of :class:`cosmos3_ros.guard.limits.RobotLimits`.

    Raises:
        LimitsError: Every fault of the document.
    """
    reader = Reader()
    root = reader.mapping('(top level)', document, _TOP_LEVEL)
    reader.equal('schema', root.get('schema'), SCHEMA)
    joints = reader.names('joints', root.get('joints'))
    position = reader.block(root, 'position', _UNITS['position'], ('lower', 'upper', 'margin'))
    lower = reader.numbers('position.lower', position.get('lower'), len(joints))
    upper = reader.numbers('position.upper', position.get('upper'), len(joints))
    margin = reader.number('position.margin', position.get('margin'), minimum=0.0)
    blocks = {key: reader.rates(root, key, joints) for key in ('velocity', 'acceleration', 'jerk')}
    near_ends = reader.optional(blocks['velocity'][0], 'near_ends', _near_ends, joints)
    torque = reader.rates(root, 'torque', joints)[1] if 'torque' in root else None
    cartesian = reader.cartesian(root['cartesian']) if 'cartesian' in root else {}
    reader.ranges(joints, lower, upper, margin)
    chain = reader.optional(root, 'kinematics', _chain, joints)
    capsules = reader.optional(root, 'capsules', _capsules, chain)
    workspace = reader.optional(root, 'workspace', _workspace, chain)
    name = reader.text('name', root.get('name'))
    reader.finish(f'robot file {where}')
    sourced = {'position': position, **{key: block for key, (block, _) in blocks.items()}}
    sourced |= {key: root[key] for key in ('cartesian', *_BODY) if key in root}
    return {
        'name': name,
        'joint_names': joints,
        'lower': lower,
        'upper': upper,
        **{key: limit for key, (_, limit) in blocks.items()},
        'margin': margin,
        'source': '\n'.join(f'{key}: {block["source"]}' for key, block in sourced.items()),
        'torque': torque,
        'cartesian': cartesian,
        'near_ends': near_ends,
        'chain': chain,
        'capsules': capsules,
        'workspace': workspace,
    }


class Reader:
    """Collects every fault; hands out stand-ins of the right type so that reading can go on to the next one."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def fault(self, where: str, what: str, value: str = '', allowed: str = '', remedy: str = '') -> None:
        """Note one fault."""
        self.problems.append(Problem(where, what, value, allowed, remedy))

    def finish(self, subject: str) -> None:
        """Raise what has been noted, if anything."""
        if self.problems:
            raise LimitsError(subject, self.problems)

    def optional(
        self, root: Mapping[str, Any], key: str, read: Callable[[Reader, Mapping[str, Any], Any], Block], context: Any
    ) -> Block | None:
        """What `read` makes of a block, if it is there and all of it can be used."""
        if key not in root:
            return None
        before = len(self.problems)
        block = read(self, root, context)
        return block if len(self.problems) == before else None

    def mapping(self, where: str, value: object, keys: Sequence[str]) -> dict[str, Any]:
        """A mapping with none but these keys."""
        if not isinstance(value, dict):
            self.fault(where, 'must be a mapping', type(value).__name__, ', '.join(keys))
            return {}
        for key in value:
            if key not in keys:
                self.fault(where, 'unknown key', repr(key), ', '.join(keys))
        return value

    def listed(self, where: str, value: object, what: str) -> list[Any]:
        """A list that is not empty."""
        if isinstance(value, list) and value:
            return value
        self.fault(where, f'must be a list of {what}', '' if value is None else repr(value))
        return []

    def block(self, root: Mapping[str, Any], key: str, unit: object, content: Sequence[str]) -> dict[str, Any]:
        """A block with its unit and its source."""
        if key not in root:
            self.fault(key, 'missing', remedy='state the limit with its unit and source; there is no default')
            return {}
        block = self.mapping(key, root[key], ('unit', 'source', *content))
        self.equal(f'{key}.unit', block.get('unit'), unit)
        self.text(f'{key}.source', block.get('source'))
        return block

    def rates(self, root: Mapping[str, Any], key: str, joints: Sequence[str]) -> tuple[dict[str, Any], Array]:
        """A block with one positive limit per joint, and that limit."""
        more = ('near_ends',) if key == 'velocity' else ()
        block = self.block(root, key, _UNITS[key], ('limit', *more))
        return block, self.numbers(f'{key}.limit', block.get('limit'), len(joints), positive=True)

    def cartesian(self, value: object) -> dict[str, CartesianLimits]:
        """Limits of the end effector by name."""
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
        """Exactly this value."""
        if value != wanted or isinstance(value, bool):
            what, given = ('missing', '') if value is None else ('not supported', repr(value))
            self.fault(where, what, given, repr(wanted))

    def text(self, where: str, value: object) -> str:
        """A text that is not empty."""
        if not isinstance(value, str) or not value.strip():
            self.fault(where, 'must be a text that is not empty', '' if value is None else repr(value))
            return ''
        return value

    def one_of(self, where: str, value: object, known: Sequence[str]) -> str:
        """One of the known names."""
        if not isinstance(value, str) or value not in known:
            what = 'missing' if value is None else 'unknown name'
            self.fault(where, what, '' if value is None else repr(value), ', '.join(known))
            return ''
        return value

    def names(self, where: str, value: object) -> tuple[str, ...]:
        """Names of joints, none twice."""
        if not isinstance(value, list) or not value or not all(isinstance(n, str) and n for n in value):
            self.fault(where, 'must be a list of joint names', '' if value is None else repr(value))
            return ()
        for name in dict.fromkeys(value):
            if value.count(name) > 1:
                self.fault(where, 'joint named twice', repr(name))
        return tuple(value)

    def number(self, where: str, value: object, *, minimum: float | None = None, above: float | None = None) -> float:
        """A finite number in a range."""
        number = _as_float(value)
        allowed = f'a number >= {minimum:g}' if minimum is not None else f'a number > {above or 0.0:g}'
        too_small = number is not None and (
            (minimum is not None and number < minimum) or (above is not None and number <= above)
        )
        if number is None or too_small:
            what, given = ('missing', '') if value is None else ('not usable', repr(value))
            self.fault(where, what, given, allowed)
            return 1.0
        return number

    def numbers(
        self, where: str, value: object, count: int, *, positive: bool = False, each: str = ', one per joint'
    ) -> Array:
        """Finite numbers [count]."""
        if not isinstance(value, list):
            what, given = ('missing', '') if value is None else ('must be a list', repr(value))
            self.fault(where, what, given, f'{count} numbers')
            return np.ones(count)
        if len(value) != count:
            self.fault(where, 'wrong number of entries', str(len(value)), f'{count}{each}')
            return np.ones(count)
        parsed = [_as_float(item) for item in value]
        allowed = 'finite numbers > 0' if positive else 'finite numbers'
        for index, number in enumerate(parsed):
            if number is None or (positive and number <= 0.0):
                self.fault(f'{where}[{index}]', 'not usable', repr(value[index]), allowed)
        return np.array([1.0 if number is None else number for number in parsed])

    def vector(self, where: str, value: object) -> Array:
        """Three finite numbers."""
        return self.numbers(where, value, 3, each='')

    def box(self, where: str, block: Mapping[str, Any]) -> Workspace:
        """A box by its `lower` and `upper` corner."""
        lower = self.vector(f'{where}.lower', block.get('lower'))
        upper = self.vector(f'{where}.upper', block.get('upper'))
        for axis, low, high in zip('xyz', lower, upper, strict=True):
            if low >= high and 'lower' in block and 'upper' in block:
                self.fault(where, f'has no room along {axis}', f'[{low:g}, {high:g}]', 'lower < upper')
        return Workspace(lower, upper)

    def ranges(self, joints: Sequence[str], lower: Array, upper: Array, margin: float) -> None:
        """Lower ends below upper ones, with room for the margins."""
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


def _near_ends(reader: Reader, velocity: Mapping[str, Any], joints: Sequence[str]) -> NearEnds:
    where = 'velocity.near_ends'
    block = reader.mapping(where, velocity['near_ends'], ('unit', *_NEAR_ENDS))
    reader.equal(f'{where}.unit', block.get('unit'), _NEAR_ENDS)
    values = {
        key: reader.numbers(f'{where}.{key}', block.get(key), len(joints), positive=key == 'gain') for key in _NEAR_ENDS
    }
    for index, offset in enumerate(values['offset']):
        if offset < 0.0:
            reader.fault(f'{where}.offset[{index}]', 'not usable', repr(float(offset)), 'finite numbers >= 0')
    return NearEnds(**values)


def _chain(reader: Reader, root: Mapping[str, Any], joints: Sequence[str]) -> Chain:
    block = reader.block(root, 'kinematics', POSE_UNITS, ('base', 'joints', 'frames', 'tool'))
    base = reader.text('kinematics.base', block.get('base'))
    frames: list[Frame] = []
    parent = base
    for index, item in enumerate(reader.listed('kinematics.joints', block.get('joints'), 'joints')):
        where = f'kinematics.joints[{index}]'
        entry = reader.mapping(where, item, ('joint', 'link', *POSE_UNITS))
        joint = reader.one_of(f'{where}.joint', entry.get('joint'), joints)
        frames.append(_frame(reader, where, entry, 'link', parent, joint))
        parent = frames[-1].name
    turned = [frame.joint for frame in frames]
    for name in joints:
        if turned.count(name) != 1:
            what = f'joint {name!r} must be in the chain exactly once'
            reader.fault('kinematics.joints', what, f'{turned.count(name)} times')
    known = [base, *(frame.name for frame in frames)]
    extra = block.get('frames', [])
    for index, item in enumerate(reader.listed('kinematics.frames', extra, 'frames') if extra else []):
        where = f'kinematics.frames[{index}]'
        entry = reader.mapping(where, item, ('frame', 'parent', *POSE_UNITS))
        fixed_to = reader.one_of(f'{where}.parent', entry.get('parent'), known)
        frames.append(_frame(reader, where, entry, 'frame', fixed_to, ''))
        known.append(frames[-1].name)
    for name in dict.fromkeys(known):
        if name and known.count(name) > 1:
            reader.fault('kinematics', 'frame named twice', repr(name))
    chain = Chain(base, tuple(frames), reader.one_of('kinematics.tool', block.get('tool'), known))
    if not reader.problems and places(chain)[chain.tool].link != len(joints):
        reader.fault('kinematics.tool', 'is not behind all joints', repr(chain.tool))
    return chain


def _frame(reader: Reader, where: str, entry: Mapping[str, Any], key: str, parent: str, joint: str) -> Frame:
    name = reader.text(f'{where}.{key}', entry.get(key))
    translation = reader.vector(f'{where}.xyz', entry.get('xyz'))
    rotation = rpy_to_matrix(reader.vector(f'{where}.rpy', entry.get('rpy')))
    return Frame(name, parent, translation, rotation, joint)


def _capsules(reader: Reader, root: Mapping[str, Any], chain: Chain | None) -> Capsules:
    block = reader.block(root, 'capsules', 'm', ('clearance', 'shapes', 'never_checked'))
    clearance = reader.number('capsules.clearance', block.get('clearance'), minimum=0.0)
    known = _known_frames(reader, root, chain, 'capsules')
    shapes = []
    for index, item in enumerate(reader.listed('capsules.shapes', block.get('shapes'), 'capsules')):
        where = f'capsules.shapes[{index}]'
        entry = reader.mapping(where, item, ('link', 'from', 'to', 'radius'))
        shapes.append(
            Capsule(
                reader.one_of(f'{where}.link', entry.get('link'), known),
                reader.vector(f'{where}.from', entry.get('from')),
                reader.vector(f'{where}.to', entry.get('to')),
                reader.number(f'{where}.radius', entry.get('radius'), above=0.0),
            )
        )
    links = list(dict.fromkeys(shape.link for shape in shapes))
    pairs = set()
    never = block.get('never_checked', [])
    for index, pair in enumerate(reader.listed('capsules.never_checked', never, 'pairs of links') if never else []):
        where = f'capsules.never_checked[{index}]'
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
            reader.fault(where, 'must be two different links', repr(pair))
            continue
        pairs.add(frozenset(reader.one_of(where, name, links) for name in pair))
    return Capsules(tuple(shapes), clearance, frozenset(pairs))


def _workspace(reader: Reader, root: Mapping[str, Any], chain: Chain | None) -> Workspace:
    block = reader.block(root, 'workspace', 'm', ('lower', 'upper'))
    _known_frames(reader, root, chain, 'workspace')
    return reader.box('workspace', block)


def _known_frames(reader: Reader, root: Mapping[str, Any], chain: Chain | None, key: str) -> tuple[str, ...]:
    """Frames of the chain; a file that has none cannot have what stands on it."""
    if chain is not None:
        return chain.names
    if 'kinematics' not in root:
        reader.fault(key, 'needs the kinematics', remedy='add the block kinematics, or remove this one')
    else:
        reader.fault(key, 'cannot be read before the faults of kinematics are mended')
    return ()
