"""Turns a data set, however it is laid out, into one that LeRobotDataset loads, with what can be believed of it.

Nothing is made up: a column that contradicts itself and a camera without video are left out, and said so. Where the
recording does not say what was asked of the robot, there are no actions, unless the caller wants those that were
achieved: where the arm was one row later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.contract import Contract
from engine.datasets.adapters import Actions, CommonEpisode, as_rpy, detect, to_common
from engine.datasets.survey import Survey, open_episode, survey
from engine.datasets.writer import DatasetWriter, EpisodeWriter, Feature, Plan
from engine.errors import ContractError, CosmosError, InvalidInput, Problem
from engine.evaluation.recording_layouts import Camera, Episode
from engine.evaluation.recording_signals import ARM_JOINTS, VIEWS, Schema
from engine.evaluation.video import VideoReader

Floats = NDArray[np.float64]

STATE, END_EFFECTOR, GRIPPER = 'observation.state', 'observation.end_effector', 'observation.gripper'
ACTION, ACTION_POSE, ACTION_GRIPPER = 'action', 'action.end_effector', 'action.gripper'
POSE_NAMES = ('x', 'y', 'z', 'roll', 'pitch', 'yaw')
JOINT_NAMES = tuple(f'joint_{number}' for number in range(1, ARM_JOINTS + 1))
CLOSED = 'gripper_closed'
"""Name of the gripper's channel: 0 = open, 1 = closed."""


def camera_key(view: str) -> str:
    """Key of a view's pictures."""
    return f'observation.images.{view}'


@dataclass(frozen=True)
class Order:
    """What is to be made.

    Attributes:
        contract: Whose views, joints and rate the data set shall have, if any.
        contract_text: Its file, to go with the data set.
        schema: Short name of the schema, where columns of several are there.
        given: What the actions hold, where the numbers contradict the schema.
        achieved: Whether actions that the recording lacks are those that were achieved one row later.
        instruction: Text for episodes that have none.
    """

    contract: Contract | None = None
    contract_text: str = ''
    schema: str = ''
    given: str = ''
    achieved: bool = False
    instruction: str = ''


@dataclass(frozen=True)
class Converted:
    """What came of it.

    Attributes:
        root: The new data set.
        episodes: How many.
        rows: How many in all.
        features: Keys of its columns and cameras.
        left_out: What was left out or changed, and why.
    """

    root: Path
    episodes: int
    rows: int
    features: tuple[str, ...]
    left_out: tuple[str, ...]


def convert(path: Path, output: Path, order: Order, report: Callable[[float], None] | None = None) -> Converted:
    """Convert a data set.

    Args:
        path: Where it is.
        output: Folder of the new one; must not exist.
        order: What is to be made.
        report: Told the share that is done.

    Raises:
        InvalidInput: It cannot be read, or lacks what the contract asks for; lists every fault.
    """
    found = survey(path)
    schema = detect({*found.columns, *found.cameras}, order.schema)
    if found.fps is None:
        problem = Problem(str(path), 'does not say how many rows a second has', '', 'timestamps, or a video')
        raise InvalidInput(f'data set {path}', [problem])
    episode, working = _typical(found, schema)
    try:
        common = _with_actions(to_common(episode, order.given), order)
        views = _views(working, episode, order)
        plan = _plan(found, episode, common, views, order)
        check_contract(path, plan, order.contract)
    finally:
        _close(episode)
    writer = DatasetWriter(output, plan)
    notes = dict.fromkeys(_left_out(found, common, views, working))
    for done, number in enumerate(found.episodes, start=1):
        notes |= dict.fromkeys(_convert_episode(found, number, schema, writer, order, views))
        if report is not None:
            report(done / len(found.episodes))
    keys = (*plan.features, *plan.cameras)
    return Converted(output, writer.episodes, writer.frames, keys, tuple(notes))


def _typical(found: Survey, schema: Schema) -> tuple[Episode, tuple[str, ...]]:
    """The first episode whose cameras can all be decoded, else the one with most of them; and these cameras."""
    best, most = next(iter(found.episodes)), -1
    for number in found.episodes:
        episode = open_episode(found, number, schema)
        working = tuple(key for key in found.views if _works(episode.cameras.get(key)))
        if len(working) == len(found.views):
            return episode, working
        _close(episode)
        if len(working) > most:
            best, most = number, len(working)
    episode = open_episode(found, best, schema)
    return episode, tuple(key for key in found.views if _works(episode.cameras.get(key)))


def _works(camera: Camera | None) -> bool:
    try:
        return camera is not None and camera.frame(0).ndim == 3
    except (CosmosError, IndexError):
        return False


def check_contract(path: Path, plan: Plan, contract: Contract | None) -> None:
    """Do nothing if a data set of this plan has what the contract reads.

    Raises:
        ContractError: It has not; lists everything that is missing.
    """
    if contract is None:
        return
    joints = contract.embodiment.action_space == 'joint_position'
    wanted = {f'view {view}': camera_key(view) for view in contract.views.streams}
    wanted |= {'joint positions': STATE, 'joint targets': ACTION} if joints else {'end-effector pose': END_EFFECTOR}
    remedy = 'cosmos3 dataset doctor says why; without --contract what is there is converted'
    problems = [
        Problem(name, 'the data set has none that can be believed', '', key, remedy)
        for name, key in wanted.items()
        if key not in plan.features and key not in plan.cameras
    ]
    if abs(plan.fps - contract.timing.fps) > 1e-3:
        problems.append(Problem('rate', 'is another', f'{plan.fps:g} Hz', f'{contract.timing.fps:g} Hz'))
    if problems:
        raise ContractError(f'data set {path} for contract {contract.name}', problems)


def _with_actions(common: CommonEpisode, order: Order) -> CommonEpisode:
    """The episode with achieved actions where it has none and they are wanted."""
    actions = common.actions
    if not order.achieved or actions.joints is not None or actions.poses is not None:
        return common
    gripper = actions.gripper if actions.gripper is not None else _later(common.gripper)
    return replace(common, actions=Actions(_later(common.joints), gripper, _later(common.poses)))


def _later(values: Floats | None) -> Floats | None:
    """Each row is the next one; the last stays."""
    return None if values is None else np.concatenate([values[1:], values[-1:]])


def _views(working: tuple[str, ...], episode: Episode, order: Order) -> dict[str, str]:
    """Camera of each view that works; cameras that are no view keep their names."""
    wanted = tuple(order.contract.views.streams) if order.contract else VIEWS
    named = {view: key for view, key in episode.views.items() if key in working and view in wanted}
    spare = () if order.contract else tuple(key for key in working if key not in episode.views.values())
    return named | {key.rpartition('.')[2]: key for key in spare}


def _plan(found: Survey, episode: Episode, common: CommonEpisode, views: Mapping[str, str], order: Order) -> Plan:
    fps = found.fps or 0.0
    cameras = {camera_key(view): episode.cameras[key].frame(0).shape[:2] for view, key in views.items()}
    contract = order.contract
    joints = contract.robot.joints if contract is not None and len(contract.robot.joints) == ARM_JOINTS else JOINT_NAMES
    origin = {'made_by': 'cosmos3 dataset convert', 'from': found.root.name, 'layout': found.layout}
    origin |= {'schema': common.schema, 'actions': 'achieved' if order.achieved else 'recorded'}
    return Plan(
        fps,
        features_of(common, joints),
        {key: (int(size[0]), int(size[1])) for key, size in cameras.items()},
        'franka',
        order.contract_text,
        origin,
    )


def features_of(common: CommonEpisode, joints: tuple[str, ...] = JOINT_NAMES) -> dict[str, Feature]:
    """Columns of a data set of such episodes."""
    pair = {**_features(STATE, END_EFFECTOR, GRIPPER, common.joints, common.poses, common.gripper, joints)}
    actions = common.actions
    return pair | _features(ACTION, ACTION_POSE, ACTION_GRIPPER, actions.joints, actions.poses, actions.gripper, joints)


def _features(
    rows: str,
    pose: str,
    gripper: str,
    joints: Floats | None,
    poses: Floats | None,
    closed: Floats | None,
    names: tuple[str, ...],
) -> dict[str, Feature]:
    found = {}
    if joints is not None:
        found[rows] = Feature((*names, CLOSED) if closed is not None else names)
    elif closed is not None:
        found[gripper] = Feature((CLOSED,))
    if poses is not None:
        found[pose] = Feature(POSE_NAMES)
    return found


def row_values(common: CommonEpisode) -> dict[str, Floats]:
    """Columns [N, width] of an episode, by the keys of :func:`features_of`."""
    actions, found = common.actions, dict[str, Floats]()
    for rows, pose, gripper, joints, poses, closed in (
        (STATE, END_EFFECTOR, GRIPPER, common.joints, common.poses, common.gripper),
        (ACTION, ACTION_POSE, ACTION_GRIPPER, actions.joints, actions.poses, actions.gripper),
    ):
        if joints is not None:
            found[rows] = joints if closed is None else np.hstack([joints, closed[:, None]])
        elif closed is not None:
            found[gripper] = closed[:, None]
        if poses is not None:
            found[pose] = as_rpy(poses)
    return found


def _convert_episode(
    found: Survey, number: int, schema: Schema, writer: DatasetWriter, order: Order, views: Mapping[str, str]
) -> list[str]:
    """Write one episode; return what was left out of it."""
    episode = open_episode(found, number, schema)
    try:
        common = _with_actions(to_common(episode, order.given), order)
        values = row_values(common)
        lacking = [key for key in writer.plan.features if key not in values]
        if lacking:
            return [f'episode {number}: left out, it has no {", ".join(lacking)} that can be believed']
        blind = [key for key in views.values() if key not in episode.cameras]
        if blind:
            return [f'episode {number}: left out, no pictures of {", ".join(blind)}', *episode.warnings]
        cameras = {camera_key(view): episode.cameras[key] for view, key in views.items()}
        rows = min([found.episodes[number].rows, *(camera.length for camera in cameras.values())])
        with writer.episode(episode.instruction or order.instruction) as target:
            _write(found, number, target, values, cameras, views, rows)
        short = found.episodes[number].rows - rows
        return [f'episode {number}: {short} rows without pictures'] if short else []
    except CosmosError as error:  # a video that cannot be decoded to its end; the writer has forgotten the episode
        return [f'episode {number}: left out, {error}']
    finally:
        _close(episode)


def _write(
    found: Survey,
    number: int,
    target: EpisodeWriter,
    values: Mapping[str, Floats],
    cameras: Mapping[str, Camera],
    views: Mapping[str, str],
    rows: int,
) -> None:
    drawn = dict(cameras)
    for view, key in views.items():
        place = found.episodes[number].videos.get(key)
        camera = cameras[camera_key(view)]
        if place is not None and place.whole and not place.start_s and _as_it_is(camera, rows, found.fps or 0.0):
            target.copy_video(camera_key(view), place.path)
            del drawn[camera_key(view)]
    for row in range(rows):
        pictures = {key: camera.frame(row) for key, camera in drawn.items()}
        target.add({key: column[row] for key, column in values.items()}, pictures)


def _as_it_is(camera: Camera, rows: int, fps: float) -> bool:
    """Whether a video can be used without encoding it again, which would cost quality."""
    return isinstance(camera, VideoReader) and camera.length == rows and abs(camera.fps - fps) < 1e-6


def _left_out(found: Survey, common: CommonEpisode, views: Mapping[str, str], working: tuple[str, ...]) -> list[str]:
    lost = [f'camera {key}: {_why_lost(found, key)}' for key in found.cameras if key not in found.views]
    unused = [f'camera {key}: not asked for' for key in working if key not in views.values()]
    broken = [f'camera {key}: cannot be decoded' for key in found.views if key not in working]
    return [*common.warnings, *lost, *broken, *unused]


def _why_lost(found: Survey, key: str) -> str:
    shared = any(key in one.unclear for one in found.episodes.values())
    return 'one video for several episodes, and nothing says where each begins' if shared else 'no video'


def _close(episode: Episode) -> None:
    for camera in episode.cameras.values():
        camera.close()
