"""Reads what the guard needs of a robot description in URDF; every fault at once, whatever the text is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.capsules import Capsule
from cosmos3_ros.guard.figures import LimitsError
from cosmos3_ros.guard.kinematics import Chain, Frame
from engine.actions.rotations import axis_angle_to_matrix, rpy_to_matrix
from engine.errors import Problem

Array = NDArray[np.float64]

_LONGEST = 8_000_000  # characters; descriptions with their shapes inlined stay below one million
_TURNING = ('revolute', 'continuous')
_Z = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, eq=False)
class DescribedJoint:
    """A joint of a description.

    Attributes:
        name: Its name.
        kind: 'revolute', 'continuous', 'fixed', or another type of URDF.
        parent: Link it sits on.
        child: Link it carries.
        translation: Its origin in the parent [3], m.
        rotation: Its axes in the parent [3, 3].
        axis: Direction it turns about [3], in its own axes.
        limits: Stated figures by 'lower', 'upper' (rad), 'velocity', 'acceleration', 'jerk' and 'effort'.
    """

    name: str
    kind: str
    parent: str
    child: str
    translation: Array
    rotation: Array
    axis: Array
    limits: dict[str, float]

    @property
    def turns(self) -> bool:
        """Whether it is one that the guard can command."""
        return self.kind in _TURNING


@dataclass(frozen=True, eq=False)
class Description:
    """A robot description.

    Attributes:
        name: Name of the robot.
        joints: All joints by the link that they carry.
        links: Names of all links.
        capsules: Cylinders and spheres of the collision shapes, in the frames of their links.
        other_shapes: Links with collision shapes of other kinds (meshes, boxes).
    """

    name: str
    joints: dict[str, DescribedJoint]
    links: tuple[str, ...]
    capsules: tuple[Capsule, ...]
    other_shapes: tuple[str, ...]

    def path(self, tip: str) -> list[DescribedJoint]:
        """The joints from the root of the tree to a link, in this order; it ends where a link comes up again."""
        path: list[DescribedJoint] = []
        seen = set()
        while tip in self.joints and tip not in seen:
            seen.add(tip)
            path.append(self.joints[tip])
            tip = path[-1].parent
        return path[::-1]


def read_description(text: str, *, where: str = 'robot_description') -> Description:
    """Read a description.

    Args:
        text: URDF.
        where: What to call it in error texts.

    Raises:
        LimitsError: It is no URDF, or parts of it cannot be used; every fault is listed.
    """
    problem = _unreadable(text)
    if problem is not None:
        raise LimitsError(where, [problem])
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        problem = Problem(where, f'is not well-formed XML: {error}', remedy='is this the text of a URDF, not its path?')
        raise LimitsError(where, [problem]) from error
    reader = _Reader()
    description = reader.robot(root)
    if reader.problems:
        raise LimitsError(where, reader.problems)
    return description


def chain_to(description: Description, base: str, tip: str) -> Chain:
    """Kinematics from one link to another, with the links that are fixed to those in between.

    Each joint turns about its frame's z axis afterwards: where the description has another axis, the frame of the
    child is turned, and so are the places of what it carries.

    Args:
        description: The robot.
        base: Link everything is measured in.
        tip: Link that becomes the tool; `base` is on the way to it.
    """
    path = description.path(tip)
    start = next((index for index, joint in enumerate(path) if joint.parent == base), len(path))
    turned = {base: np.eye(3)}  # axes of each link in the description, seen in those of its frame here
    frames = []
    branches = [joint for joint in description.joints.values() if joint.kind == 'fixed' and joint not in path]
    for joint in [*path[start:], *_behind(branches, {base, *(j.child for j in path[start:])})]:
        before = turned[joint.parent]
        align = _z_to(joint.axis) if joint.turns else np.eye(3)
        rotation = before @ joint.rotation @ align
        turned[joint.child] = align.T
        name = joint.name if joint.turns else ''
        frames.append(Frame(joint.child, joint.parent, before @ joint.translation, rotation, name))
    return Chain(base, tuple(frames), tip)


def capsules_in(description: Description, chain: Chain) -> tuple[Capsule, ...]:
    """The capsules of the chain's links, in the frames of :func:`chain_to`."""
    turned = {joint.child: _z_to(joint.axis).T if joint.turns else np.eye(3) for joint in description.joints.values()}
    found = []
    for shape in description.capsules:
        if shape.link in chain.names:
            axes = turned[shape.link] if shape.link != chain.base else np.eye(3)
            found.append(Capsule(shape.link, axes @ shape.start, axes @ shape.end, shape.radius))
    return tuple(found)


def _behind(branches: list[DescribedJoint], known: set[str]) -> Iterator[DescribedJoint]:
    """Those of the branches that hang on known links, each after the one that carries it."""
    waiting = branches
    while waiting:
        ready = [joint for joint in waiting if joint.parent in known]
        if not ready:
            return
        yield from ready
        known |= {joint.child for joint in ready}
        waiting = [joint for joint in waiting if joint.parent not in known]


def _z_to(axis: Array) -> Array:
    """A rotation that turns the z axis into the given direction [3, 3]."""
    across = np.cross(_Z, axis)
    sine = float(np.linalg.norm(across))
    if sine < 1e-12:
        return np.eye(3) if axis[2] > 0 else np.diag([1.0, -1.0, -1.0])
    return axis_angle_to_matrix(across / sine * math.atan2(sine, float(axis[2])))


def _unreadable(text: str) -> Problem | None:
    """What forbids to hand a text to the XML parser at all."""
    if len(text) > _LONGEST:
        return Problem('robot_description', 'too long', f'{len(text)} characters', f'at most {_LONGEST}')
    if '<!DOCTYPE' in text or '<!ENTITY' in text:
        return Problem('robot_description', 'declares entities or a document type, which URDF has no use for')
    return None


class _Reader:
    """Collects every fault of a description."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def robot(self, root: ElementTree.Element) -> Description:
        if root.tag != 'robot':
            self._fault('(root element)', 'is no URDF', f'<{root.tag}>', '<robot>')
        macros = sorted({element.tag for element in root.iter() if 'xacro' in str(element.tag)})
        if macros:
            self._fault('(root element)', 'holds xacro macros', macros[0], '', 'expand them: `xacro FILE > FILE.urdf`')
        links = self._unique('link', [element.get('name', '') for element in root.findall('link')])
        known = set(links)
        joints = [self._joint(element) for element in root.findall('joint')]
        self._unique('joint', [joint.name for joint in joints])
        self._unique('child link of a joint', [joint.child for joint in joints])
        for joint in joints:
            for side, name in (('parent', joint.parent), ('child', joint.child)):
                if name not in known:
                    self._fault(f'joint {joint.name}, {side}', 'unknown link', repr(name))
        capsules: list[Capsule] = []
        others = []
        for link in root.findall('link'):
            for shape in link.findall('collision'):
                found = self._capsule(link.get('name', ''), shape)
                capsules += [found] if found is not None and not _is_cap(found, capsules) else []
                others += [] if found is not None else [link.get('name', '')]
        children = {joint.child: joint for joint in joints}
        return Description(root.get('name', ''), children, links, tuple(capsules), tuple(dict.fromkeys(others)))

    def _joint(self, element: ElementTree.Element) -> DescribedJoint:
        name = element.get('name', '')
        where = f'joint {name}'
        kind = element.get('type', '')
        translation, rotation = self._origin(where, element)
        axis = self._numbers(f'{where}, axis', _attribute(element, 'axis', 'xyz'), 3, np.array([1.0, 0.0, 0.0]))
        length = float(np.linalg.norm(axis))
        if kind in _TURNING and length < 1e-6:
            self._fault(f'{where}, axis', 'has no direction', str(axis.tolist()))
        parent, child = (_attribute(element, side, 'link') or '' for side in ('parent', 'child'))
        limits = self._limits(where, element.find('limit'), kind) if kind in _TURNING else {}
        return DescribedJoint(name, kind, parent, child, translation, rotation, axis / max(length, 1e-6), limits)

    def _limits(self, where: str, element: ElementTree.Element | None, kind: str) -> dict[str, float]:
        """The figures of a limit; a speed of zero is taken for one that is not stated."""
        figures = {}
        for key in ('lower', 'upper', 'velocity', 'acceleration', 'jerk', 'effort'):
            text = None if element is None else element.get(key)
            if text is None or (kind == 'continuous' and key in ('lower', 'upper')):
                continue
            number = float(self._numbers(f'{where}, limit {key}', text, 1, np.zeros(1))[0])
            if key not in ('lower', 'upper') and number < 0.0:
                self._fault(f'{where}, limit {key}', 'negative', text)
            elif number != 0.0 or key in ('lower', 'upper'):
                figures[key] = number
        if figures.get('lower', -math.inf) >= figures.get('upper', math.inf):
            self._fault(f'{where}, limit', 'leaves no range', f'[{figures["lower"]:g}, {figures["upper"]:g}]')
        return figures

    def _capsule(self, link: str, shape: ElementTree.Element) -> Capsule | None:
        """The capsule around a cylinder, or a sphere as one; None for other shapes."""
        where = f'link {link}, collision'
        cylinder, sphere = shape.find('geometry/cylinder'), shape.find('geometry/sphere')
        round_ = cylinder if cylinder is not None else sphere
        if round_ is None:
            return None
        centre, rotation = self._origin(where, shape)
        radius = float(self._numbers(f'{where}, radius', round_.get('radius'), 1, None)[0])
        length = 0.0 if cylinder is None else float(self._numbers(f'{where}, length', round_.get('length'), 1, None)[0])
        half = rotation[:, 2] * (length / 2)
        return Capsule(link, centre - half, centre + half, radius)

    def _origin(self, where: str, element: ElementTree.Element) -> tuple[Array, Array]:
        xyz = self._numbers(f'{where}, origin xyz', _attribute(element, 'origin', 'xyz'), 3, np.zeros(3))
        rpy = self._numbers(f'{where}, origin rpy', _attribute(element, 'origin', 'rpy'), 3, np.zeros(3))
        return xyz, rpy_to_matrix(rpy)

    def _numbers(self, where: str, text: str | None, count: int, absent: Array | None) -> Array:
        if text is None and absent is not None:
            return absent
        try:
            numbers = np.array([float(word) for word in (text or '').split()])
        except ValueError:
            numbers = np.zeros(0)
        if len(numbers) != count or not np.isfinite(numbers).all():
            self._fault(where, 'missing' if text is None else 'not usable', text or '', f'{count} finite numbers')
            return np.zeros(count)
        return numbers

    def _unique(self, what: str, names: list[str]) -> tuple[str, ...]:
        for name, count in Counter(names).items():
            if not name or count > 1:
                self._fault(f'{what} {name!r}', 'named twice' if name else 'has no name')
        return tuple(names)

    def _fault(self, where: str, what: str, value: str = '', allowed: str = '', remedy: str = '') -> None:
        shown = value if len(value) <= 80 else f'{value[:77]}...'
        self.problems.append(Problem(where, what, shown, allowed, remedy))


def _attribute(element: ElementTree.Element, tag: str, name: str) -> str | None:
    found = element.find(tag)
    return None if found is None else found.get(name)


def _is_cap(shape: Capsule, before: list[Capsule]) -> bool:
    """Whether a sphere is one of the round ends of a capsule that is known already."""
    if (shape.start != shape.end).any():
        return False
    return any(
        other.link == shape.link
        and abs(other.radius - shape.radius) < 1e-9
        and min(np.abs(other.start - shape.start).max(), np.abs(other.end - shape.start).max()) < 1e-9
        for other in before
    )
