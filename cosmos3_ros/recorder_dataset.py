"""Makes a LeRobot data set of the bag of a run: what a policy would have seen, row by row at the rate of the contract.

Rows are taken by the inputs of the policy node itself; see :mod:`cosmos3_ros.recorder_reader`. A row that lacks a
stream is a gap, and a gap ends an episode: nothing is filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.recorder_asked import Asked, Stretch, what_was_asked
from cosmos3_ros.recorder_reader import RunBag, observations
from engine.contract import Contract
from engine.datasets.adapters import as_rpy
from engine.datasets.convert import ACTION, CLOSED, END_EFFECTOR, GRIPPER, POSE_NAMES, STATE, Converted, camera_key
from engine.datasets.writer import DatasetWriter, Feature, Plan
from engine.errors import InvalidInput, Problem
from engine.policy_observation import Observation

Floats = NDArray[np.float64]

SHORTEST = 4
"""Rows; what is shorter is no episode."""
COMMANDED, ACHIEVED = 'commanded', 'achieved'


@dataclass(frozen=True)
class BagOrder:
    """What is to be made of a bag.

    Attributes:
        contract: Name or path of the contract to read it by; empty: the one in the bag.
        namespace: That of the topics, where the bag is not one of ours.
        actions: `commanded`: where the guard told the arm to be one row later. `achieved`: where it then was.
        instruction: Text for stretches that have none.
    """

    contract: str = ''
    namespace: str = ''
    actions: str = COMMANDED
    instruction: str = ''


@dataclass(eq=False)
class _Row:
    """One row of an episode under way."""

    time_ns: int
    values: dict[str, Floats]
    pictures: Mapping[str, NDArray[np.uint8]]


@dataclass
class _Notes:
    """What was left out, and how often."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, text: str) -> None:
        self.counts[text] = self.counts.get(text, 0) + 1

    def lines(self) -> tuple[str, ...]:
        return tuple(f'{count} rows: {text}' for text, count in self.counts.items())


def dataset_from_bag(
    path: Path, output: Path, order: BagOrder, report: Callable[[float], None] | None = None
) -> Converted:
    """Make a data set of a bag.

    Args:
        path: Folder of the bag.
        output: Folder of the data set; must not exist.
        order: What is to be made.
        report: Told the share of the bag that is read.

    Raises:
        InvalidInput: The bag cannot be read, nobody says what was to be done, or nothing of it makes an episode.
    """
    with RunBag(path, order.contract, order.namespace) as bag:
        asked = what_was_asked(bag)
        if order.actions == COMMANDED and not len(asked.joints.times):
            remedy = 'take the joints that were achieved: --actions achieved'
            raise InvalidInput(f'bag {path}', [Problem('commands', 'there are none: a dry run?', remedy=remedy)])
        stretches = _stretches(bag, asked, order)
        notes = _Notes()
        maker = _Maker(bag, output, order, asked, notes)
        moments = _moments(stretches, bag.contract)
        for done, (time_ns, found) in enumerate(_along(bag, [time_ns for time_ns, _ in moments]), start=1):
            maker.take(time_ns, found, moments[done - 1][1])
            if report is not None:
                report(done / len(moments))
        return maker.conclude()


def _stretches(bag: RunBag, asked: Asked, order: BagOrder) -> tuple[Stretch, ...]:
    """What becomes episodes: what policies drove, else all of the bag."""
    if asked.chunks and not asked.stretches:
        remedy = 'guard/decision and guard/status in the bag say why'
        raise InvalidInput(f'bag {bag.path}', [Problem('chunks', 'none was played by the guard', remedy=remedy)])
    told = asked.stretches or (Stretch(bag.start_ns, bag.end_ns, ''),)
    named = tuple(Stretch(one.start_ns, one.end_ns, one.instruction or order.instruction) for one in told)
    if kept := tuple(one for one in named if one.instruction):
        return kept
    problem = Problem('instruction', 'the bag does not say what was to be done', remedy='give the text: --instruction')
    raise InvalidInput(f'bag {bag.path}', [problem])


def _moments(stretches: tuple[Stretch, ...], contract: Contract) -> list[tuple[int, Stretch]]:
    step = 1e9 / contract.timing.fps
    return [
        (one.start_ns + round(row * step), one)
        for one in stretches
        for row in range(int((one.end_ns - one.start_ns) / step) + 1)
    ]


def _along(bag: RunBag, times: list[int]) -> Any:
    return observations(bag, times, needs_joints=bag.contract.state.joint_states is not None)


class _Maker:
    """Gathers rows into episodes."""

    def __init__(self, bag: RunBag, output: Path, order: BagOrder, asked: Asked, notes: _Notes) -> None:
        self._bag, self._output, self._order, self._asked, self._notes = bag, output, order, asked, notes
        self._step_ns = round(1e9 / bag.contract.timing.fps)
        self._writer: DatasetWriter | None = None
        self._rows: list[_Row] = []
        self._stretch: Stretch | None = None

    def take(self, time_ns: int, found: Any, stretch: Stretch) -> None:
        """One moment: an observation, or what it lacks."""
        if stretch is not self._stretch:
            self._end()
            self._stretch = stretch
        if not isinstance(found[0], Observation):
            for missing in found:
                self._notes.add(f'{missing.stream} {missing.reason.value}')
            self._end()
            return
        observation = found[0]
        values = state_values(observation, self._bag.contract)
        if self._order.actions == COMMANDED:
            action = self._commanded(time_ns + self._step_ns, values)
            if action is None:
                self._notes.add('no command yet')
                return
            values[ACTION] = action
        self._rows.append(_Row(time_ns, values, {camera_key(v): p for v, p in observation.images.items()}))

    def _commanded(self, time_ns: int, values: Mapping[str, Floats]) -> Floats | None:
        """Joints and grippers that were asked for at a time."""
        joints = self._asked.joints.at(time_ns)
        if joints is None:
            return None
        measured = values[STATE][len(joints) :] if STATE in values else np.empty(0)
        asked = [one.at(time_ns) for one in self._asked.grippers]
        # A gripper that nobody has told anything stays where it is.
        closed = [found[0] if found is not None else measured[k] for k, found in enumerate(asked)]
        return np.concatenate([joints, closed])

    def _end(self) -> None:
        rows, self._rows = self._rows, []
        if len(rows) < SHORTEST or self._stretch is None:
            for _ in rows:
                self._notes.add(f'too short: fewer than {SHORTEST} rows between two gaps')
            return
        if self._order.actions == ACHIEVED:
            for row, later in zip(rows, [*rows[1:], rows[-1]], strict=True):
                row.values[ACTION] = later.values.get(STATE, later.values.get(END_EFFECTOR, np.empty(0)))
        if self._writer is None:
            self._writer = DatasetWriter(self._output, self._plan(rows[0]))
        with self._writer.episode(self._stretch.instruction, start_ns=float(rows[0].time_ns)) as episode:
            for row in rows:
                episode.add(row.values, row.pictures)

    def _plan(self, row: _Row) -> Plan:
        contract = self._bag.contract
        features = features_of(contract, row.values)
        origin = {'made_by': 'cosmos3 dataset from-bag', 'bag': self._bag.path.name, 'actions': self._order.actions}
        origin |= {
            'contract': contract.name,
            'fingerprint': contract.fingerprint,
            'bag_says': dict(self._bag.about.more),
        }
        sizes = {key: (int(p.shape[0]), int(p.shape[1])) for key, p in row.pictures.items()}
        fps = contract.timing.fps
        return Plan(fps, features, sizes, contract.robot.description, self._bag.contract_text, origin)

    def conclude(self) -> Converted:
        """End the last episode."""
        self._end()
        if self._writer is None:
            what = 'nothing of it makes an episode'
            raise InvalidInput(f'bag {self._bag.path}', [Problem('rows', what, '; '.join(self._notes.lines()))])
        plan = self._writer.plan
        keys = (*plan.features, *plan.cameras)
        return Converted(self._output, self._writer.episodes, self._writer.frames, keys, self._notes.lines())


def state_values(observation: Observation, contract: Contract) -> dict[str, Floats]:
    """Measured state of an observation, by the keys of a data set."""
    found = {}
    joints, closed = observation.joint_positions, observation.gripper_position
    grippers = np.empty(0) if closed is None else np.atleast_1d(np.asarray(closed, np.float64))
    if joints is not None and np.asarray(joints).size:
        found[STATE] = np.concatenate([np.asarray(joints, np.float64).reshape(-1), grippers])
    elif grippers.size:
        found[GRIPPER] = grippers
    if observation.end_effector_position is not None and observation.end_effector_quaternion is not None:
        positions = np.atleast_2d(observation.end_effector_position)
        poses = as_rpy(np.hstack([positions, np.atleast_2d(observation.end_effector_quaternion)]))
        for arm, pose in zip(contract.robot.arms, poses, strict=True):
            found[f'{END_EFFECTOR}.{arm.name}'.rstrip('.')] = pose
    return found


def features_of(contract: Contract, values: Mapping[str, Floats]) -> dict[str, Feature]:
    """Columns of such rows, with the names of the contract's joints."""
    closed = tuple(f'{arm.name}_{CLOSED}'.lstrip('_') for arm in contract.robot.arms if arm.gripper is not None)
    named = {STATE: (*contract.robot.joints, *closed), GRIPPER: closed}
    named[ACTION] = named[STATE] if STATE in values or len(values.get(ACTION, ())) != len(POSE_NAMES) else POSE_NAMES
    return {key: Feature(named.get(key, POSE_NAMES)) for key in values}
