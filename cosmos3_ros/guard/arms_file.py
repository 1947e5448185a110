"""Reads the file of a robot of several arms: which robot file each arm has, and where it stands. See docs/robots.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cosmos3_ros.guard.figures import Workspace
from cosmos3_ros.guard.robot_file import POSE_UNITS, SCHEMA, Reader
from cosmos3_ros.guard.several_arms import BetweenArms, Mount
from engine.actions.rotations import rpy_to_matrix

_TOP_LEVEL = ('schema', 'name', 'description', 'base', 'arms', 'between_arms', 'workspaces')


@dataclass(frozen=True, eq=False)
class MountedArm:
    """One arm as the file states it.

    Attributes:
        name: What the robot calls it, such as 'left'.
        robot: Name or path of its robot file.
        mount: Where it stands.
        workspace: Box of its tool point in the common base; None if the file gives none.
    """

    name: str
    robot: str
    mount: Mount
    workspace: Workspace | None


@dataclass(frozen=True, eq=False)
class ArmsFile:
    """A robot of several arms, as its file states it: its name, its arms in order, and what is kept between them."""

    name: str
    arms: tuple[MountedArm, ...]
    between: BetweenArms
    source: str


def is_arms_file(document: object) -> bool:
    """Whether a parsed robot file describes several arms by the files of each."""
    return isinstance(document, dict) and 'arms' in document


def read_arms(document: object, *, where: str) -> ArmsFile:
    """Read a parsed file.

    Args:
        document: What the YAML file holds.
        where: Name of the file for error texts.

    Raises:
        LimitsError: Every fault of the document.
    """
    reader = Reader()
    root = reader.mapping('(top level)', document, _TOP_LEVEL)
    reader.equal('schema', root.get('schema'), SCHEMA)
    name, base = reader.text('name', root.get('name')), reader.text('base', root.get('base'))
    block = reader.block(root, 'arms', POSE_UNITS, ('mounted',))
    entries = []
    for index, item in enumerate(reader.listed('arms.mounted', block.get('mounted'), 'arms')):
        keys = ('arm', 'robot', 'prefix', *POSE_UNITS)
        entries.append(reader.mapping(f'arms.mounted[{index}]', item, keys))
    names = _distinct(reader, entries, 'arm')
    _distinct(reader, entries, 'prefix')
    if block.get('mounted') and len(entries) < 2:
        reader.fault('arms.mounted', 'must be several arms', str(len(entries)), remedy='write the file of one robot')
    workspaces = _workspaces(reader, root, names)
    arms = tuple(_arm(reader, index, entry, base, workspaces) for index, entry in enumerate(entries))
    between = _between(reader, root)
    reader.finish(f'robot file {where}')
    source = f'arms: {block["source"]}\nbetween_arms: {root["between_arms"]["source"]}'
    return ArmsFile(name, arms, between, source)


def _distinct(reader: Reader, entries: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """The entries' texts under one key, of which none may be there twice."""
    texts = [reader.text(f'arms.mounted[{index}].{key}', entry.get(key)) for index, entry in enumerate(entries)]
    for text in dict.fromkeys(texts):
        if text and texts.count(text) > 1:
            reader.fault(f'arms.mounted, {key}', 'used twice', repr(text), 'one of its own for each arm')
    return texts


def _arm(
    reader: Reader, index: int, entry: Mapping[str, Any], base: str, workspaces: Mapping[str, Workspace]
) -> MountedArm:
    where = f'arms.mounted[{index}]'
    name = str(entry.get('arm'))
    robot = reader.text(f'{where}.robot', entry.get('robot'))
    translation = reader.vector(f'{where}.xyz', entry.get('xyz'))
    rotation = rpy_to_matrix(reader.vector(f'{where}.rpy', entry.get('rpy')))
    return MountedArm(name, robot, Mount(str(entry.get('prefix')), base, translation, rotation), workspaces.get(name))


def _between(reader: Reader, root: Mapping[str, Any]) -> BetweenArms:
    block = reader.block(root, 'between_arms', 'm', ('clearance', 'never_checked'))
    clearance = reader.number('between_arms.clearance', block.get('clearance'), minimum=0.0)
    never = block.get('never_checked') or []
    pairs = set()
    for index, pair in enumerate(reader.listed('between_arms.never_checked', never, 'pairs of links') if never else []):
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
            reader.fault(f'between_arms.never_checked[{index}]', 'must be two different links', repr(pair))
            continue
        pairs.add(frozenset(map(str, pair)))
    return BetweenArms(clearance, frozenset(pairs))


def _workspaces(reader: Reader, root: Mapping[str, Any], names: Sequence[str]) -> dict[str, Workspace]:
    if 'workspaces' not in root:
        return {}
    block = reader.block(root, 'workspaces', 'm', ('boxes',))
    found = {}
    for index, item in enumerate(reader.listed('workspaces.boxes', block.get('boxes'), 'boxes')):
        where = f'workspaces.boxes[{index}]'
        entry = reader.mapping(where, item, ('arm', 'lower', 'upper'))
        arm = reader.one_of(f'{where}.arm', entry.get('arm'), names)
        found[arm] = reader.box(where, entry)
    return found
