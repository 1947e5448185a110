"""What a recorded episode says of the robot, as arrays: where it was, and what it was told or did next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engine.actions import Poses, quaternion_to_matrix, rpy_to_matrix
from engine.actions.rotations import rotation_distance
from engine.contract import Contract
from engine.errors import InvalidInput, Problem
from engine.evaluation.recording_layouts import Episode, read_episode
from engine.evaluation.recording_signals import ARM_JOINTS, Field, Signals, read_signals

Floats = NDArray[np.float64]
Columns = Mapping[str, NDArray[np.generic]]

NEAR_RAD = 0.35
NEAR_M = 0.1
"""Commands are believed if for half of the rows they are nearer than that to where the robot was one row later."""
_POSE = 6
_SAME_RATE = 0.01


@dataclass(frozen=True, eq=False)
class Track:
    """One episode, N frames.

    Attributes:
        name: Folder and number of the episode.
        fps: Frames per second.
        instruction: What was asked for; may be empty.
        joints: [N, J] rad, measured, or None.
        poses: Of the end effector, leading shape [N], measured, or None.
        gripper: [N] closed fraction, or None.
        next_joints: [N - 1, J]: what row i asks for, which is where to be one frame later; None without joints.
        next_poses: The same of the pose.
        next_gripper: The same of the gripper.
        sources: Where joints, poses and grippers come from, and what comes next of them.
        commanded: Which of 'joints', 'poses', 'gripper' have commands of their own.
        warnings: Columns that were not believed, and why.
    """

    name: str
    fps: float
    instruction: str
    joints: Floats | None
    poses: Poses | None
    gripper: Floats | None
    next_joints: Floats | None = None
    next_poses: Poses | None = None
    next_gripper: Floats | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    commanded: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        parts = (self.joints, None if self.poses is None else self.poses.position, self.gripper)
        return next((len(part) for part in parts if part is not None), 0)

    def cut(self, frames: int) -> Track:
        """The first frames alone: a video may be shorter than the table."""
        if frames >= len(self):
            return self
        now = {name: _first(getattr(self, name), frames) for name in ('joints', 'poses', 'gripper')}
        after = {f'next_{name}': _first(getattr(self, f'next_{name}'), frames - 1) for name in now}
        return replace(self, **now, **after)


def _first(values: Any, count: int) -> Any:
    return None if values is None else values[:count]


def episodes_of(path: Path) -> list[int]:
    """Numbers of all episodes of a recording, in either layout.

    Raises:
        InvalidInput: There are none, or their table cannot be read.
    """
    files = sorted((path / 'meta' / 'episodes').glob('*/*.parquet')) or sorted(path.glob('*.parquet'))
    found: set[int] = set()
    for file in files:
        try:
            named = 'episode_index' in pq.read_schema(file).names
            table = pq.read_table(file, columns=['episode_index'] if named else [])
        except (OSError, pa.ArrowException) as error:
            raise InvalidInput(f'recording {path}', [Problem(str(file), f'cannot be read: {error}')]) from error
        found |= set(pc.unique(table['episode_index']).to_pylist()) if named else {0}
    if not found:
        allowed = 'a LeRobot v3 data set, or a folder with one .parquet table and videos'
        raise InvalidInput(f'recording {path}', [Problem(str(path), 'has no episodes', '', allowed)])
    return sorted(found)


def read_track(path: Path, episode: int, joints_of: Callable[[Poses], Floats] | None = None) -> Track:
    """Everything of an episode but its pictures.

    Args:
        path: Of the recording.
        episode: Which one of it.
        joints_of: Joints [N, J] that lead through poses, for recordings that have no joints.

    Raises:
        InvalidInput: It cannot be read; lists every fault.
    """
    found = read_episode(path, episode)
    for camera in found.cameras.values():
        camera.close()
    return track_of(f'{path.name}/{episode}', found, joints_of)


def track_of(name: str, found: Episode, joints_of: Callable[[Poses], Floats] | None = None) -> Track:
    """The same of an episode that is open already."""
    signals = read_signals(found.columns, found.schema)
    track = _with_future(_measured(name, found, signals), found)
    if track.joints is not None or track.poses is None or joints_of is None:
        return track
    joints = joints_of(track.poses)
    sources = {**track.sources, 'joints': 'inverse kinematics of the measured poses', 'next joints': _LATER}
    return replace(track, joints=joints, next_joints=joints[1:], sources=sources)


_LATER = 'the state one frame later'


def _measured(name: str, found: Episode, signals: Signals) -> Track:
    poses = None
    if signals.positions is not None and signals.quaternions is not None:
        poses = Poses(signals.positions, quaternion_to_matrix(signals.quaternions))
    parts = {'joints': signals.joints, 'poses': poses, 'gripper': signals.gripper}
    sources = {key: 'measured' for key, part in parts.items() if part is not None}
    return Track(
        name, found.fps, found.instruction, signals.joints, poses, signals.gripper,
        sources=sources, warnings=signals.warnings,
    )  # fmt: skip


def _with_future(track: Track, found: Episode) -> Track:
    """The same with what comes next: commands that can be believed, else what was measured one frame later."""
    joints, joint_column = _joint_commands(track, found)
    poses, pose_column = _pose_commands(track, found.columns)
    gripper, gripper_column = _gripper_commands(track, found)
    columns = {'joints': joint_column, 'poses': pose_column, 'gripper': gripper_column}
    there = {'joints': track.joints, 'poses': track.poses, 'gripper': track.gripper}
    said = {f'next {key}': column or _LATER for key, column in columns.items() if there[key] is not None}
    return replace(
        track,
        next_joints=joints if joints is not None else _after(track.joints),
        next_poses=poses if poses is not None else (None if track.poses is None else track.poses[1:]),
        next_gripper=gripper if gripper is not None else _after(track.gripper),
        sources={**track.sources, **said},
        commanded=frozenset(key for key, column in columns.items() if column),
    )


def _after(values: Floats | None) -> Floats | None:
    return None if values is None else values[1:]


def _joint_commands(track: Track, found: Episode) -> tuple[Floats | None, str]:
    """Commands [N - 1, J] and their column, or None: velocities, stuck columns and other robots are far off."""
    if track.joints is None:
        return None, ''
    for known in (*found.schema.commanded, Field('action'), Field('actions')):
        values = _channels(found.columns, known, ARM_JOINTS)
        if values is not None and np.median(np.abs(values[:-1] - track.joints[1:]).max(axis=1)) < NEAR_RAD:
            return values[:-1], known.column
    return None, ''


def _pose_commands(track: Track, columns: Columns) -> tuple[Poses | None, str]:
    column = 'action.cartesian_position'
    values = _channels(columns, Field(column), _POSE)
    if track.poses is None or values is None:
        return None, ''
    asked, there = Poses(values[:-1, :3], rpy_to_matrix(values[:-1, 3:])), track.poses[1:]
    near = np.median(np.linalg.norm(asked.position - there.position, axis=1)) < NEAR_M
    turned = np.median(rotation_distance(asked.rotation, there.rotation)) < NEAR_RAD
    return (asked, column) if near and turned else (None, '')


def _gripper_commands(track: Track, found: Episode) -> tuple[Floats | None, str]:
    """Commands [N - 1]; a column that never changes while the gripper moves is not believed."""
    if track.gripper is None:
        return None, ''
    own = [known for known in found.schema.gripper if known.column.startswith('action')]
    for known in (*own, Field('action', ARM_JOINTS), Field('actions', ARM_JOINTS)):
        values = _channels(found.columns, known, 1)
        if values is None or values.min() < -0.05 or values.max() > 1.05:
            continue
        closed = np.clip(1 - values[:, 0] if known.opened else values[:, 0], 0, 1)
        if np.ptp(closed) > 0 or np.ptp(track.gripper) < 0.1:
            return closed[:-1], known.column
    return None, ''


def _channels(columns: Columns, known: Field, width: int) -> Floats | None:
    """[N, width] of a column, or None if it has not as many or holds what is no finite number."""
    values = columns.get(known.column)
    if values is None or not np.issubdtype(values.dtype, np.number):
        return None
    rows = np.asarray(values, np.float64).reshape(len(values), -1)[:, known.first : known.first + width]
    return rows if rows.shape[1] == width and np.isfinite(rows).all() else None


# What a contract wants


@dataclass(frozen=True, eq=False)
class Truth:
    """An episode in the rows of a contract, N frames.

    Attributes:
        state: [N, D]: where the robot was.
        future: [N - 1, D]: what row i asks for.
        commanded: Whether the arm's part of `future` was commanded.
    """

    state: Floats
    future: Floats
    commanded: bool


def truth_of(track: Track, contract: Contract) -> Truth:
    """What an episode says in the rows of a contract; checked by :func:`track_problems`."""
    joints = contract.embodiment.action_space == 'joint_position'
    parts = (track.joints, track.next_joints) if joints else tuple(map(_pose_rows, (track.poses, track.next_poses)))
    grips = (track.gripper, track.next_gripper) if contract.robot.grippers else (None, None)
    state, future = (
        np.column_stack([part for part in (arm, grip) if part is not None])
        for arm, grip in zip(parts, grips, strict=True)
    )
    return Truth(state, future, ('joints' if joints else 'poses') in track.commanded)


def _pose_rows(poses: Poses | None) -> Floats | None:
    return None if poses is None else np.concatenate([poses.position, poses.quaternion], axis=-1)


def track_problems(track: Track, contract: Contract) -> list[Problem]:
    """Everything that keeps an episode from being held to a contract's policy."""
    problems = []
    if abs(track.fps / contract.timing.fps - 1) > _SAME_RATE:
        rates = f'{track.fps:g}', f'{contract.timing.fps:g}'
        problems.append(Problem(f'{track.name}: fps', 'is another than that of the contract', *rates))
    joints = contract.embodiment.action_space == 'joint_position'
    if (track.joints if joints else track.poses) is None:
        what = 'joint positions' if joints else 'poses of the end effector'
        problems.append(Problem(track.name, f'has no {what} that can be believed', '; '.join(track.warnings)))
    elif joints and track.joints is not None and track.joints.shape[1] != len(contract.robot.joints):
        counts = str(track.joints.shape[1]), str(len(contract.robot.joints))
        problems.append(Problem(f'{track.name}: joints', 'are not as many as those of the contract', *counts))
    if contract.robot.grippers and track.gripper is None:
        problems.append(Problem(track.name, 'has no gripper positions', remedy='none are made up'))
    return problems
