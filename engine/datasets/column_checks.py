"""Faults of an episode's numbers: times, gaps, units, polarity, spikes, what cannot be right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.actions.rotations import quaternion_to_matrix, rotation_distance
from engine.datasets.adapters import CommonEpisode
from engine.datasets.faults import Fault, fault, remark
from engine.errors import CosmosError
from engine.evaluation.recording_layouts import Episode
from engine.evaluation.video import VideoReader

Floats = NDArray[np.float64]

FASTEST_RAD_S = 2.62
"""Fastest joint of a Franka Panda, rad/s."""
FASTEST_M_S = 1.7
"""Fastest its hand goes, m/s."""
_SLACK = 1.25  # beyond the fastest: differences of sampled positions are rougher than velocities
_JUMP_RAD = 0.3  # between two targets
_IDLE_RAD = 1e-3
_IDLE_SHARE = 0.5
_UNIT = 1e-2  # how far a quaternion's length may be from 1


@dataclass(frozen=True)
class Bounds:
    """Limits of the robot, in the order of the joints; NaN where nothing is known."""

    lower: Floats
    upper: Floats
    velocity: Floats


def column_faults(episode: Episode, common: CommonEpisode, fps: float, bounds: Bounds | None = None) -> Iterator[Fault]:
    """Every fault of one episode's numbers.

    Args:
        episode: As found on disk.
        common: The same, read by its adapter.
        fps: Rows per second, as the data set says.
        bounds: Limits of the robot, if a contract names it.
    """
    yield from _time_faults(episode, fps)
    yield from _index_faults(episode)
    yield from _number_faults(episode)
    yield from _unused(common)
    yield from _quaternion_faults(episode, common)
    yield from _polarity(common)
    yield from _speed_faults(common, fps, bounds)
    yield from _range_faults(common, bounds)
    yield from _idle(common)


def _scalar(columns: Mapping[str, NDArray[np.generic]], name: str) -> Floats | None:
    values = columns.get(name)
    if values is None or not np.issubdtype(values.dtype, np.number):
        return None
    return np.asarray(values, np.float64).reshape(len(values), -1)[:, 0]


def _time_faults(episode: Episode, fps: float) -> Iterator[Fault]:
    stamps = _scalar(episode.columns, 'timestamp')
    if stamps is None or len(stamps) < 2 or not fps:
        return
    steps = np.diff(stamps)
    off = np.flatnonzero(np.abs(steps - 1.0 / fps) > 1e-3)
    if off.size:
        value = f'{off.size} steps, the first after row {off[0]}: {steps[off[0]]:.4f} s'
        yield fault('timestamps', 'timestamp', f'does not go at {fps:g} Hz', value, f'{1 / fps:.4f} s')


def _index_faults(episode: Episode) -> Iterator[Fault]:
    for name in ('frame_index', 'index'):
        values = _scalar(episode.columns, name)
        if values is None:
            continue
        gaps = np.flatnonzero(np.diff(values) != 1)
        if gaps.size:
            value = f'{gaps.size} gaps, the first after row {gaps[0]}'
            yield fault('gap', name, 'does not count up by one', value, '', 'rows are missing or out of order')
        elif name == 'frame_index' and len(values) and values[0] != 0:
            yield fault('gap', name, 'does not begin with 0', f'{values[0]:.0f}', '0')


def _number_faults(episode: Episode) -> Iterator[Fault]:
    for name, values in episode.columns.items():
        if not np.issubdtype(values.dtype, np.floating):
            continue
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
        if bad.size:
            yield fault('not_finite', name, 'is not finite', f'{bad.size} rows, the first is row {bad[0]}')


def _unused(common: CommonEpisode) -> Iterator[Fault]:
    """What the reader of recordings found unusable."""
    for text in common.warnings:
        where, _, what = text.partition(': ')
        if text.endswith('; not used') and 'are not finite' not in what:
            code = 'unit' if 'neither radians' in what else 'column'
            yield fault(code, where, what.removesuffix('; not used'), '', '', 'left out by cosmos3 dataset convert')


def _quaternion_faults(episode: Episode, common: CommonEpisode) -> Iterator[Fault]:
    for name, values in episode.columns.items():
        if 'quat' not in name.lower() or values.ndim != 2 or values.shape[1] != 4:
            continue
        rows = np.asarray(values, np.float64)
        lengths = np.linalg.norm(rows, axis=1)
        worst = int(np.argmax(np.abs(lengths - 1.0)))
        if abs(lengths[worst] - 1.0) > _UNIT:
            yield fault('quaternion_norm', name, 'is not of unit length', f'{lengths[worst]:.4g} in row {worst}', '1')
        elif common.poses is not None:
            yield from _order_faults(name, rows, common.poses)


def _order_faults(name: str, rows: Floats, poses: Floats) -> Iterator[Fault]:
    """A quaternion that agrees with the measured pose only if it is read as w, x, y, z."""
    reference = quaternion_to_matrix(poses[:, 3:])
    as_it_is, turned = (
        float(np.median(rotation_distance(quaternion_to_matrix(rows[:, order]), reference)))
        for order in ([0, 1, 2, 3], [1, 2, 3, 0])
    )
    if turned < 0.05 < as_it_is:
        value = f'{as_it_is:.2f} rad from the pose, {turned:.2f} rad if read as w, x, y, z'
        yield fault('quaternion_order', name, 'is in the order w, x, y, z', value, 'x, y, z, w', 'reorder')


def _polarity(common: CommonEpisode) -> Iterator[Fault]:
    """Measured and asked for gripper that go against each other: one of them is the other way round."""
    asked, measured = common.actions.gripper, common.gripper
    if asked is None or measured is None or min(np.ptp(asked), np.ptp(measured)) < 0.2:
        return
    # The fingers follow within half a second, so the better of a few lags counts.
    found = [_correlation(asked[: len(asked) - lag], measured[lag:]) for lag in range(min(9, len(asked) - 2))]
    best = max(found, key=abs)
    if best < -0.5:
        remedy = 'flip one of them: 0 is open, 1 is closed'
        yield fault(
            'gripper_polarity', 'gripper', 'closes when it is told to open', f'correlation {best:.2f}', '', remedy
        )


def _correlation(first: Floats, second: Floats) -> float:
    if min(np.ptp(first), np.ptp(second)) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _speed_faults(common: CommonEpisode, fps: float, bounds: Bounds | None) -> Iterator[Fault]:
    if common.joints is not None and len(common.joints) > 1:
        limit = np.full(common.joints.shape[1], FASTEST_RAD_S) if bounds is None else bounds.velocity
        speed = np.abs(np.diff(common.joints, axis=0)) * fps
        fast = np.argwhere(speed > _SLACK * limit)
        if fast.size:
            row, joint = fast[int(np.argmax(speed[fast[:, 0], fast[:, 1]]))]
            value = f'{speed[row, joint]:.2f} rad/s, joint {joint + 1} after row {row}, {len(fast)} in all'
            yield fault('velocity', 'joint positions', 'jump', value, f'{_SLACK * limit[joint]:.2f} rad/s')
    if common.poses is not None and len(common.poses) > 1:
        speeds = np.linalg.norm(np.diff(common.poses[:, :3], axis=0), axis=1) * fps
        if (row := int(np.argmax(speeds))) >= 0 and speeds[row] > _SLACK * FASTEST_M_S:
            value = f'{speeds[row]:.2f} m/s after row {row}'
            yield fault('velocity', 'end effector', 'jumps', value, f'{_SLACK * FASTEST_M_S:.2f} m/s')
    asked = common.actions.joints
    if asked is not None and len(asked) > 1:
        jumps = np.abs(np.diff(asked, axis=0)).max(axis=1)
        count = int((jumps > _JUMP_RAD).sum())
        if count:
            value = f'{count} times, up to {jumps.max():.2f} rad'
            yield remark('action_jump', 'actions', 'jump from row to row', value, f'{_JUMP_RAD} rad')


def _range_faults(common: CommonEpisode, bounds: Bounds | None) -> Iterator[Fault]:
    if common.joints is None or bounds is None or common.joints.shape[1] != len(bounds.lower):
        return
    beyond = np.maximum(bounds.lower - common.joints, common.joints - bounds.upper)
    row, joint = np.unravel_index(int(np.argmax(beyond)), beyond.shape)
    if beyond[row, joint] > 1e-3:
        value = f'joint {joint + 1} in row {row}: {common.joints[row, joint]:.3f} rad'
        allowed = f'{bounds.lower[joint]:.3f} to {bounds.upper[joint]:.3f} rad'
        yield fault(
            'joint_range', 'joint positions', "are beyond the robot's", value, allowed, 'another order, or robot?'
        )


def _idle(common: CommonEpisode) -> Iterator[Fault]:
    rows = common.joints if common.joints is not None else common.poses
    if rows is None or len(rows) < 2:
        return
    still = (np.abs(np.diff(rows, axis=0)).max(axis=1) < _IDLE_RAD).mean()
    if still > _IDLE_SHARE:
        yield remark('idle', 'motion', 'stands still', f'{still:.0%} of the rows', f'up to {_IDLE_SHARE:.0%}')


def video_faults(episode: Episode, rows: int, fps: float) -> Iterator[Fault]:
    """Every fault of one episode's videos: their length and rate, and whether they can be decoded at all."""
    for key, camera in episode.cameras.items():
        if camera.length != rows:
            value, allowed = f'{camera.length} frames', f'{rows}, as the table has rows'
            yield fault('video_length', key, 'has another length than the table', value, allowed)
        if isinstance(camera, VideoReader) and fps and camera.fps and abs(camera.fps - fps) > 1e-2 * fps:
            yield fault('video_rate', key, 'has another rate than the table', f'{camera.fps:g} Hz', f'{fps:g} Hz')
        try:
            camera.frame(0)
        except (CosmosError, IndexError) as error:
            yield fault('video_damaged', key, 'cannot be decoded', str(error))
    for text in episode.warnings:
        yield fault('video_damaged', 'camera', text)
