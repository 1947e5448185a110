"""Where the recordings in circulation keep cameras, joints, gripper and end effector, and which columns to believe.

DROID episodes come in four key schemas that differ in every name, and published ones have broken columns. A column that
contradicts itself is not used: it is named in a warning instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from engine.actions.rotations import matrix_to_quaternion, rpy_to_matrix

Floats = npt.NDArray[np.float64]
Columns = Mapping[str, npt.NDArray[np.generic]]

VIEWS = ('wrist', 'exterior_1', 'exterior_2')
ARM_JOINTS = 7

_JUDGED_FROM = 10  # rows; a shorter episode may well stand still
_STUCK_AFTER = 0.1  # a column that never changes after this part of the episode is stuck, if the robot moves later
_STILL = 1e-3  # m or rad; less than this is no motion


@dataclass(frozen=True)
class Field:
    """A column, or some of its channels.

    Attributes:
        column: Name of the column.
        first: First channel used.
        opened: For a gripper: the column holds the opening, 1 = open, in place of the closed fraction.
    """

    column: str
    first: int = 0
    opened: bool = False


@dataclass(frozen=True)
class Schema:
    """How one family of recordings names its features.

    Attributes:
        name: Whose schema it is.
        cameras: Feature key of each view.
        joints: Measured joint positions, rad, the best first.
        commanded: Commanded joint positions: checked, not used.
        gripper: Gripper positions, 1 = closed unless `opened`, the best first.
        pose: End-effector pose: x, y, z in m; roll, pitch, yaw about fixed axes x, y, z in rad.
    """

    name: str
    cameras: Mapping[str, str]
    joints: tuple[Field, ...] = ()
    commanded: tuple[Field, ...] = ()
    gripper: tuple[Field, ...] = ()
    pose: tuple[Field, ...] = ()

    def keys(self) -> set[str]:
        """Every key that the schema may use."""
        fields = self.joints + self.commanded + self.gripper + self.pose
        return {*self.cameras.values(), *(field.column for field in fields)}


def _cameras(pattern: str, names: Iterable[str]) -> dict[str, str]:
    return dict(zip(VIEWS, (pattern.format(name) for name in names), strict=True))


_IMAGES = ('wrist_image_left', 'exterior_image_1_left', 'exterior_image_2_left')

SCHEMAS = (
    Schema(
        'NVIDIA droid_plus (Cosmos3-DROID)',
        _cameras('observation.image.{}', _IMAGES),
        joints=(Field('observation.state.joint_positions'),),
        commanded=(Field('action.joint_position'),),
        gripper=(Field('observation.state.gripper_position'), Field('action.gripper_position')),
        pose=(Field('observation.state.cartesian_position'),),
    ),
    Schema(
        # The cosmos-framework's table of DROID sources marks this one's gripper as an opening.
        'NVIDIA droid_lerobot',
        _cameras('observation.images.{}', _IMAGES),
        gripper=(Field('action', 6, opened=True),),
        pose=(Field('observation.state'),),
    ),
    Schema(
        'LeRobot droid_1.0.1',
        _cameras('observation.images.{}', ('wrist_left', 'exterior_1_left', 'exterior_2_left')),
        joints=(Field('observation.state.joint_position'), Field('observation.state')),
        commanded=(Field('action.joint_position'),),
        gripper=(
            Field('observation.state.gripper_position'),
            Field('observation.state', ARM_JOINTS),
            Field('action.gripper_position'),
        ),
        pose=(Field('observation.state.cartesian_position'),),
    ),
    Schema(
        'openpi',
        _cameras('{}', _IMAGES),
        joints=(Field('joint_position'),),
        gripper=(Field('gripper_position'),),
    ),
    Schema(
        'cosmos3_ros',
        _cameras('observation.images.{}', VIEWS),
        joints=(Field('observation.state'),),
        commanded=(Field('action'),),
        gripper=(Field('observation.state', ARM_JOINTS), Field('observation.gripper')),
        pose=(Field('observation.end_effector'),),
    ),
)

# Keys that recordings of any robot have, with any meaning.
_EVERYBODYS = {'observation.state', 'action'}


def recognise(keys: Iterable[str]) -> Schema | None:
    """The schema that names the most of `keys`; None if none names any that tells DROID from other robots."""
    present = set(keys)
    best = max(SCHEMAS, key=lambda schema: len(schema.keys() & present))
    return best if (best.keys() & present) - _EVERYBODYS else None


@dataclass(frozen=True)
class Signals:
    """What of the robot's state can be believed, N rows.

    Attributes:
        joints: [N, 7] rad, or None.
        gripper: [N] closed fraction, or None.
        positions: [N, 3] of the end effector in the base frame, m, or None.
        quaternions: [N, 4] of the end effector, x, y, z, w; None exactly where `positions` is.
        warnings: Each column that is not used, and why; what is missing.
    """

    joints: Floats | None
    gripper: Floats | None
    positions: Floats | None
    quaternions: Floats | None
    warnings: tuple[str, ...]


def read_signals(columns: Columns, schema: Schema) -> Signals:
    """Take the robot's state from the columns of one episode, each [N] or [N, channels]."""
    warnings: list[str] = []
    pose = _first_sound(columns, schema.pose, 6, warnings)
    asleep = partial(_asleep, witness=pose)
    joints = _first_sound(columns, schema.joints, ARM_JOINTS, warnings, asleep)
    told = partial(_asleep, witness=joints if pose is None else pose)
    _first_sound(columns, schema.commanded, ARM_JOINTS, warnings, told)
    gripper = _gripper(columns, schema.gripper, warnings)
    for name, found in (('joint positions', joints), ('gripper position', gripper), ('end-effector pose', pose)):
        if found is None:
            warnings.append(f'the recording has no usable {name}')
    if pose is None:
        return Signals(joints, gripper, None, None, tuple(warnings))
    return Signals(joints, gripper, pose[:, :3], matrix_to_quaternion(rpy_to_matrix(pose[:, 3:])), tuple(warnings))


def _first_sound(
    columns: Columns,
    fields: Iterable[Field],
    width: int,
    warnings: list[str],
    more_faults: Callable[[Floats], list[str]] | None = None,
) -> Floats | None:
    """Channels [N, width] of the first field that has no fault; every fault met on the way becomes a warning."""
    for field in fields:
        if field.column not in columns:
            continue
        values = _as_rows(columns[field.column])
        used = values[:, field.first : field.first + width]
        faults = _faults(values, field.first, width) + (more_faults(used) if more_faults else [])
        if not faults:
            return used
        warnings.append(f'{field.column}: {"; ".join(faults)}; not used')
    return None


def _as_rows(values: npt.NDArray[np.generic]) -> Floats:
    """Column as [N, channels]; rows of differing length, or of anything but numbers, give [N, 0]."""
    if not np.issubdtype(values.dtype, np.number):
        return np.empty((len(values), 0))
    return np.asarray(values, np.float64).reshape(len(values), -1)


def _faults(values: Floats, first: int, width: int) -> list[str]:
    """What is wrong with channels `first` to `first + width` of a column [N, channels]."""
    faults = []
    if values.shape[1] < first + width:
        faults.append(f'{values.shape[1]} wide, {first + width} needed')
    used = values[:, first : first + width]
    bad = np.flatnonzero(~np.isfinite(used).all(axis=1))
    if bad.size:
        faults.append(f'{bad.size} rows are not finite, the first is row {bad[0]}')
    # A position in metres or an angle in radians beyond one turn is in other units: millimetres or degrees.
    if not bad.size and used.size and np.abs(used).max() > 2 * np.pi:
        faults.append(f'reaches {np.abs(used).max():.4g}, which is neither radians nor metres')
    return faults


def _asleep(values: Floats, witness: Floats | None) -> list[str]:
    """The fault of joints that stand still for most of the episode, unless `witness` shows an arm at rest."""
    rows = len(values)
    if rows < _JUDGED_FROM or not values.size:
        return []
    changes = np.flatnonzero((values[1:] != values[:-1]).any(axis=1))
    last = int(changes[-1]) + 1 if changes.size else 0
    at_rest = witness is not None and np.ptp(witness[last:], axis=0).max() < _STILL
    return [] if at_rest or last >= _STUCK_AFTER * rows else [f'never changes after row {last} of {rows}']


def _gripper(columns: Columns, fields: Iterable[Field], warnings: list[str]) -> Floats | None:
    """Closed fraction [N] of the first field that is sound and does not sleep while another one moves."""
    sound: list[tuple[Field, Floats]] = []
    for field in fields:
        values = _gripper_field(columns, field, warnings)
        if values is not None:
            sound.append((field, values))
    awake = [(field, values) for field, values in sound if np.ptp(values) > _STILL]
    if awake:
        asleep = (field.column for field, values in sound if np.ptp(values) <= _STILL)
        warnings.extend(f'{name}: constant, although {awake[0][0].column} changes; not used' for name in asleep)
    chosen = awake or sound
    return chosen[0][1] if chosen else None


def _gripper_field(columns: Columns, field: Field, warnings: list[str]) -> Floats | None:
    if field.column not in columns:
        return None
    values = _as_rows(columns[field.column])
    if values.shape[1] <= field.first:
        warnings.append(f'{field.column}: {values.shape[1]} wide, {field.first + 1} needed; not used')
        return None
    fraction = values[:, field.first]
    if not ((fraction >= -0.05) & (fraction <= 1.05)).all():
        warnings.append(f'{field.column}: not a fraction between 0 and 1; not used')
        return None
    return np.clip(1.0 - fraction if field.opened else fraction, 0.0, 1.0)
