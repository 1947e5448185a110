"""The dataset doctor: what a data set is, what is wrong with it, and what a contract finds in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.contract import Contract
from engine.datasets.adapters import CommonEpisode, detect, short_name, to_common
from engine.datasets.column_checks import Bounds, column_faults, video_faults
from engine.datasets.faults import Fault
from engine.datasets.layout_checks import layout_faults
from engine.datasets.survey import Survey, open_episode, survey
from engine.errors import InvalidInput
from engine.evaluation.recording_layouts import Episode
from engine.evaluation.recording_signals import Field, Schema

Report = Callable[[float], None]


@dataclass(frozen=True)
class Need:
    """One thing that a contract reads, and where the data set has it.

    Attributes:
        name: Such as 'view wrist' or 'joint positions'.
        found: The column or camera, empty if there is none.
        missing: Why it counts as missing; empty if it is there.
    """

    name: str
    found: str
    missing: str = ''


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Attributes:
        root: The data set.
        layout: 'LeRobot v3', 'LeRobot v2' or 'table and videos'.
        schema: Short name of its schema.
        fps: Rows per second, None if unknown.
        episodes: How many.
        rows: How many in all.
        cameras: Those that have pictures in every episode.
        faults: The grave ones first.
        needs: What the contract reads; empty without one.
        examined: How many episodes were looked into.
    """

    root: Path
    layout: str
    schema: str
    fps: float | None
    episodes: int
    rows: int
    cameras: tuple[str, ...]
    faults: tuple[Fault, ...]
    needs: tuple[Need, ...]
    examined: int

    @property
    def healthy(self) -> bool:
        """Whether nothing grave was found, and the contract has what it reads."""
        return not any(one.grave for one in self.faults) and not any(need.missing for need in self.needs)


def examine(
    path: Path,
    contract: Contract | None = None,
    bounds: Bounds | None = None,
    *,
    schema: str = '',
    given: str = '',
    most: int = 50,
    report: Report | None = None,
) -> Diagnosis:
    """Examine a data set; nothing of it is changed.

    Args:
        path: Its folder, or one .parquet file with videos beside it.
        contract: What the data shall be good for, if anything in particular.
        bounds: Limits of that contract's robot.
        schema: Short name of the schema, where columns of several are there.
        given: What the actions hold, where the numbers contradict the schema.
        most: Episodes that are looked into; evenly spread if there are more.
        report: Told the share that is done.

    Raises:
        InvalidInput: Nothing there can be read.
    """
    found = survey(path)
    chosen = detect({*found.columns, *found.cameras}, schema)
    faults = list(layout_faults(found, chosen))
    numbers = _spread(list(found.episodes), most)
    commons: list[CommonEpisode] = []
    for done, number in enumerate(numbers, start=1):
        more, common = _examine_episode(found, number, chosen, given, bounds)
        faults += more
        commons += [common] if common is not None else []
        if report is not None:
            report(done / len(numbers))
    merged = sorted(merge(faults), key=lambda one: not one.grave)
    needs = contract_needs(contract, found, chosen, commons) if contract is not None else ()
    return Diagnosis(
        found.root,
        found.layout,
        short_name(chosen),
        found.fps,
        len(found.episodes),
        sum(one.rows for one in found.episodes.values()),
        found.views,
        tuple(merged),
        tuple(needs),
        len(numbers),
    )


def _spread(numbers: list[int], most: int) -> list[int]:
    if len(numbers) <= most:
        return numbers
    chosen = np.unique(np.linspace(0, len(numbers) - 1, most).round().astype(int))
    return [numbers[index] for index in chosen]


def _examine_episode(
    found: Survey, number: int, schema: Schema, given: str, bounds: Bounds | None
) -> tuple[list[Fault], CommonEpisode | None]:
    fps = found.fps or 0.0
    with closing(_Closing(open_episode(found, number, schema))) as held:
        episode = held.episode
        faults = list(video_faults(episode, found.episodes[number].rows, fps))
        try:
            common = to_common(episode, given)
        except InvalidInput as error:
            return [*faults, *(Fault('ambiguous', problem, episodes=1) for problem in error.problems)], None
        faults += column_faults(episode, common, fps, bounds)
    return [replace(one, episodes=1) for one in faults], common


class _Closing:
    """An episode whose cameras are closed with it."""

    def __init__(self, episode: Episode) -> None:
        self.episode = episode

    def close(self) -> None:
        for camera in self.episode.cameras.values():
            camera.close()


def merge(faults: list[Fault]) -> list[Fault]:
    """The same fault of several episodes as one, with the values of the first."""
    kept: dict[tuple[str, str, str], Fault] = {}
    for one in faults:
        what = one.problem.what if one.code != 'column' else ''
        key = (one.code, one.problem.where, what)
        before = kept.get(key)
        kept[key] = one if before is None else replace(before, episodes=before.episodes + one.episodes)
    return list(kept.values())


def contract_needs(contract: Contract, found: Survey, schema: Schema, commons: list[CommonEpisode]) -> list[Need]:
    """What a contract reads and what it is asked for, and where the data set has it."""
    needs = [_view_need(view, found, schema) for view in contract.views.streams]
    joints = contract.embodiment.action_space == 'joint_position'
    if joints:
        needs.append(_signal_need('joint positions', schema.joints, [one.joints for one in commons], found))
    if contract.robot.grippers:
        needs.append(_signal_need('gripper', schema.gripper, [one.gripper for one in commons], found))
    if contract.state.end_effectors:
        needs.append(_signal_need('end-effector pose', schema.pose, [one.poses for one in commons], found))
    asked = [one.actions.joints if joints else one.actions.poses for one in commons]
    name = 'actions (joint targets)' if joints else 'actions (poses)'
    needs.append(Need(name, '' if _lacking(asked) else 'as the adapter reads them', _lacking(asked)))
    if found.fps is not None and abs(found.fps - contract.timing.fps) > 1e-3:
        needs.append(Need('rate', f'{found.fps:g} Hz', f'{contract.timing.fps:g} Hz are asked for'))
    return needs


def _view_need(view: str, found: Survey, schema: Schema) -> Need:
    key = next((key for key in (schema.cameras.get(view, ''), view) if key in found.views), '')
    return Need(f'view {view}', key, '' if key else f'no video of {schema.cameras.get(view, view)}')


def _signal_need(name: str, fields: Sequence[Field], values: Sequence[object], found: Survey) -> Need:
    columns = [field.column for field in fields if field.column in found.columns]
    why = _lacking(values)
    return Need(name, '' if why else (columns[0] if len(columns) == 1 else ', '.join(columns)), why)


def _lacking(values: Sequence[object]) -> str:
    lacking = sum(value is None for value in values)
    if not values:
        return 'no episode could be read'
    return f'nothing that can be believed in {lacking} of {len(values)} episodes' if lacking else ''
