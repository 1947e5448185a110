"""Four schemas of DROID, and our own, read as one common episode.

=================  ==================================================================================================
schema             what is particular about it
=================  ==================================================================================================
`droid_plus`       NVIDIA's, of which Cosmos3-DROID was trained: `observation.image.*` without s, plural
                   `observation.state.joint_positions`; gripper 0 = open
`droid_lerobot`    NVIDIA's `droid_lerobot_20260115_no_noops`: end-effector poses alone, 7-D `action` = target pose
                   and gripper; gripper 1 = open
`lerobot_droid`    LeRobot's port: `observation.state` and `action` of 8; gripper 0 = open
`openpi`           openpi's conversion: `actions` = joint *velocities* in DROID's unit and gripper; 0 = open
`cosmos3_ros`      what this project writes: `observation.state` and `action` with names; gripper 0 = open
=================  ==================================================================================================

In the common episode angles are rad, lengths m, quaternions x, y, z, w, and grippers 0 = open, 1 = closed. Actions are
absolute targets: where the arm should be one row later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.actions.rotations import matrix_to_quaternion, matrix_to_rpy, quaternion_to_matrix, rpy_to_matrix
from engine.errors import InvalidInput, Problem
from engine.evaluation.recording_layouts import Episode
from engine.evaluation.recording_signals import ARM_JOINTS, SCHEMAS, Columns, Schema, read_signals

Floats = NDArray[np.float64]

DROID_STEP_RAD = 0.2
"""What a joint velocity of 1 means to DROID: rad in one row of 15 Hz (`max_joint_delta` of its `RobotIKSolver`)."""
GIVEN = ('position', 'velocity', 'cartesian')
"""What a column of actions can be told to hold."""

_NEAR_M = 0.15
_SHORT = {
    'NVIDIA droid_plus (Cosmos3-DROID)': 'droid_plus',
    'NVIDIA droid_lerobot': 'droid_lerobot',
    'LeRobot droid_1.0.1': 'lerobot_droid',
    'openpi': 'openpi',
    'cosmos3_ros': 'cosmos3_ros',
}


@dataclass(frozen=True, eq=False)
class Actions:
    """What was asked of the robot, N rows; None where the recording does not say.

    Attributes:
        joints: [N, 7] target positions, rad.
        gripper: [N] closed fraction.
        poses: [N, 7] target of the end effector in the base frame: x, y, z in m, quaternion x, y, z, w.
    """

    joints: Floats | None = None
    gripper: Floats | None = None
    poses: Floats | None = None


@dataclass(frozen=True, eq=False)
class CommonEpisode:
    """One episode, whatever it was called where it comes from; N rows.

    Attributes:
        schema: Short name of the schema it was read by.
        joints: [N, 7] measured, rad, or None.
        gripper: [N] closed fraction, 0 = open, or None.
        poses: [N, 7] end effector in the base frame: x, y, z in m, quaternion x, y, z, w; or None.
        actions: What was asked for.
        warnings: Columns that were not used, and why.
    """

    schema: str
    joints: Floats | None
    gripper: Floats | None
    poses: Floats | None
    actions: Actions
    warnings: tuple[str, ...]


def schema_names() -> tuple[str, ...]:
    """Short names of the schemas."""
    return tuple(_SHORT[schema.name] for schema in SCHEMAS)


def short_name(schema: Schema) -> str:
    """Short name of a schema."""
    return _SHORT[schema.name]


def detect(keys: Iterable[str], wanted: str = '') -> Schema:
    """The schema that a data set's keys belong to.

    Args:
        keys: Columns and cameras.
        wanted: Short name of the schema to use, whatever the keys look like; empty: find out.

    Raises:
        InvalidInput: No key, or keys of several schemas, are there; or there is no such schema.
    """
    by_name = {_SHORT[schema.name]: schema for schema in SCHEMAS}
    present = set(keys)
    if wanted and wanted not in by_name:
        raise InvalidInput('data set', [Problem('schema', 'unknown', repr(wanted), ', '.join(by_name))])
    if wanted:
        return by_name[wanted]
    told = {name: sorted(_of_one_alone(schema) & present) for name, schema in by_name.items()}
    told = {name: found for name, found in told.items() if found}
    if len(told) > 1:
        value = '; '.join(f'{name}: {", ".join(found)}' for name, found in told.items())
        raise InvalidInput(
            'data set', [Problem('columns', 'belong to several schemas', value, '', 'say which: --schema')]
        )
    counts = {name: len(schema.keys() & present) for name, schema in by_name.items()}
    best = next(iter(told)) if told else max(counts, key=lambda name: counts[name])
    if not told and not (by_name[best].keys() & present) - {'observation.state', 'action'}:
        allowed = f'the columns of one of {", ".join(by_name)}'
        raise InvalidInput('data set', [Problem('columns', 'are of no known schema', ', '.join(present), allowed)])
    return by_name[best]


def _of_one_alone(schema: Schema) -> set[str]:
    """Keys that no other schema has."""
    return schema.keys().difference(*(other.keys() for other in SCHEMAS if other is not schema)) | (
        {'actions'} if schema.name == 'openpi' else set()
    )


def to_common(episode: Episode, given: str = '') -> CommonEpisode:
    """Read an episode by the adapter of its schema.

    Args:
        episode: As found on disk.
        given: What `action` or `actions` holds, where the numbers contradict the schema: one of :data:`GIVEN`.

    Raises:
        InvalidInput: The actions are of an unknown kind and nobody said which, or there is no such kind.
    """
    if given and given not in GIVEN:
        raise InvalidInput('data set', [Problem('actions', 'unknown kind', repr(given), ', '.join(GIVEN))])
    return ADAPTERS[_SHORT[episode.schema.name]](episode, given)


def from_droid_plus(episode: Episode, _given: str = '') -> CommonEpisode:
    """NVIDIA's droid_plus: `action.joint_position` in rad, `action.gripper_position` 0 = open."""
    return _common(episode, _joint_targets(episode, 'action.joint_position', 'action.gripper_position'))


def from_droid_lerobot(episode: Episode, _given: str = '') -> CommonEpisode:
    """NVIDIA's droid_lerobot: `action` is x, y, z, roll, pitch, yaw and gripper with 1 = open."""
    return _common(episode, _pose_targets(episode, opened=True))


def from_lerobot_droid(episode: Episode, given: str = '') -> CommonEpisode:
    """LeRobot's port: `action.joint_position`, else `action`: joint positions and gripper of 8, 0 = open.

    A 7-D `action` is refused unless the caller says what it is: DROID's own was documented as joint velocities for
    years and holds a pose and the gripper.
    """
    columns = episode.columns
    if 'action.joint_position' in columns:
        return _common(episode, _joint_targets(episode, 'action.joint_position', 'action.gripper_position'))
    rows = _rows(columns, 'action')
    if rows is None:
        return _common(episode, Actions())
    if rows.shape[1] == ARM_JOINTS and given != 'cartesian':
        remedy = 'say that it is a pose and the gripper: --actions cartesian'
        problem = Problem('action', 'is 7 wide: joints without gripper, or a pose with it', '7', '8', remedy)
        raise InvalidInput('data set', [problem])
    if rows.shape[1] == ARM_JOINTS:
        return _common(episode, _pose_targets(episode, opened=False))
    return _common(episode, Actions(rows[:, :ARM_JOINTS], _fraction(rows[:, ARM_JOINTS:], opened=False)))


def from_openpi(episode: Episode, given: str = '') -> CommonEpisode:
    """The conversion of openpi: `actions` are velocities, 1 = 0.2 rad a row, and the gripper's target, 0 = open.

    Targets are `joint_position` + 0.2 x velocity. If the numbers follow positions better, it is refused unless the
    caller says `velocity` or `position`.
    """
    rows = _rows(episode.columns, 'actions')
    common = _common(episode, Actions())
    if rows is None or rows.shape[1] < ARM_JOINTS + 1 or common.joints is None:
        return common
    asked, gripper = rows[:, :ARM_JOINTS], _fraction(rows[:, ARM_JOINTS:], opened=False)
    moved = common.joints + DROID_STEP_RAD * asked
    if not given and _misses(asked, common.joints) < _misses(moved, common.joints):
        remedy = 'say which: --actions position or --actions velocity'
        problem = Problem('actions', 'look like joint positions, and openpi writes velocities', '', '', remedy)
        raise InvalidInput('data set', [problem])
    return replace(common, actions=Actions(asked if given == 'position' else moved, gripper))


def from_cosmos3(episode: Episode, _given: str = '') -> CommonEpisode:
    """Our own: `action` = joint positions and gripper, 0 = open; else `action.end_effector` and `action.gripper`."""
    rows = _rows(episode.columns, 'action')
    if rows is not None and rows.shape[1] >= ARM_JOINTS:
        return _common(episode, Actions(rows[:, :ARM_JOINTS], _fraction(rows[:, ARM_JOINTS:], opened=False)))
    gripper = _fraction(_rows(episode.columns, 'action.gripper'), opened=False)
    targets = _rows(episode.columns, 'action.end_effector')
    return _common(episode, Actions(None, gripper, None if targets is None else as_poses(targets)))


ADAPTERS: Mapping[str, Callable[[Episode, str], CommonEpisode]] = {
    'droid_plus': from_droid_plus,
    'droid_lerobot': from_droid_lerobot,
    'lerobot_droid': from_lerobot_droid,
    'openpi': from_openpi,
    'cosmos3_ros': from_cosmos3,
}
"""By short name of the schema."""


def as_poses(rows: Floats) -> Floats:
    """Poses [N, 7] with quaternions x, y, z, w of rows that begin with x, y, z, roll, pitch, yaw."""
    return np.hstack([rows[:, :3], matrix_to_quaternion(rpy_to_matrix(rows[:, 3:6]))])


def as_rpy(poses: Floats) -> Floats:
    """Rows x, y, z, roll, pitch, yaw [N, 6] of poses [N, 7]; the opposite of :func:`as_poses`."""
    return np.hstack([poses[:, :3], matrix_to_rpy(quaternion_to_matrix(poses[:, 3:]))])


# ---- Parts ----------------------------------------------------------------------------------------------------------


def _common(episode: Episode, actions: Actions) -> CommonEpisode:
    signals = read_signals(episode.columns, episode.schema)
    poses = None
    if signals.positions is not None and signals.quaternions is not None:
        poses = np.hstack([signals.positions, signals.quaternions])
    if actions.joints is not None and _broken(episode, signals.warnings):
        actions = replace(actions, joints=None)
    return CommonEpisode(_SHORT[episode.schema.name], signals.joints, signals.gripper, poses, actions, signals.warnings)


def _broken(episode: Episode, warnings: Iterable[str]) -> bool:
    """Whether the commanded joints were found unusable."""
    commanded = {field.column for field in episode.schema.commanded}
    return any(text.partition(':')[0] in commanded and text.endswith('not used') for text in warnings)


def _rows(columns: Columns, name: str) -> Floats | None:
    """A column as [N, channels]; None if it is missing or holds anything but finite numbers."""
    values = columns.get(name)
    if values is None or not np.issubdtype(values.dtype, np.number):
        return None
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    return rows if np.isfinite(rows).all() else None


def _fraction(values: Floats | None, *, opened: bool) -> Floats | None:
    """Closed fraction [N] of a gripper column; None if it is none."""
    if values is None or not values.size or values.min() < -0.05 or values.max() > 1.05:
        return None
    fraction = values.reshape(len(values), -1)[:, 0]
    return np.clip(1.0 - fraction if opened else fraction, 0.0, 1.0)


def _joint_targets(episode: Episode, joints: str, gripper: str) -> Actions:
    rows = _rows(episode.columns, joints)
    if rows is not None and rows.shape[1] != ARM_JOINTS:
        rows = None
    return Actions(rows, _fraction(_rows(episode.columns, gripper), opened=False))


def _pose_targets(episode: Episode, *, opened: bool) -> Actions:
    """Of a 7-D `action`: x, y, z, roll, pitch, yaw and the gripper."""
    rows = _rows(episode.columns, 'action')
    if rows is None or rows.shape[1] < ARM_JOINTS:
        return Actions()
    measured = _rows(episode.columns, episode.schema.pose[0].column) if episode.schema.pose else None
    if measured is not None and measured.shape[1] >= 6:
        apart = float(np.median(np.linalg.norm(rows[:, :3] - measured[:, :3], axis=1)))
        if apart > _NEAR_M:
            what = 'are no poses near the measured ones'
            raise InvalidInput(
                'data set', [Problem('action', what, f'{apart:.2f} m apart', f'up to {_NEAR_M} m', 'check the schema')]
            )
    return Actions(None, _fraction(rows[:, 6:], opened=opened), as_poses(rows))


def _misses(targets: Floats, joints: Floats) -> float:
    """Median distance, over rows and joints, between targets and where the arm was one row later, rad."""
    return float(np.median(np.abs(targets[:-1] - joints[1:]))) if len(joints) > 1 else 0.0
