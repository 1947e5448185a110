"""Chunks: what arrives from the policy, and the same thing brought into the robot's order of joints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard import kernels
from cosmos3_ros.guard.reasons import Reason, Rejection, reject

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

JOINT_POSITION = 'joint_position'
MINIMUM_ROWS = 2
MAXIMUM_ROWS = 1024  # over a minute at policy rates; anything longer is a mistake and would only cost time to check
_INTEGERS = (int, np.integer)
_LARGEST_INTEGER = 2**62  # leaves room to add a chunk's length in 64-bit arithmetic
_LONGEST_STEP_NS = 1_000_000_000  # slower than 1 Hz is no policy that this guard was made for


@dataclass(frozen=True, eq=False)
class ReceivedChunk:
    """A chunk exactly as it arrived; nothing about it is trusted yet.

    Attributes:
        stamp_ns: Time of the observation it was computed from, node clock.
        epoch: Count of resets that the sender knew of.
        sequence: Rises by at least one from chunk to chunk within an epoch.
        step_ns: Time between rows.
        joint_names: Meaning of the columns of `positions`, in any order.
        positions: [N, J], rad.
        gripper: [N, G], 0 = open, 1 = closed; None if the chunk does not command the grippers.
        gripper_names: Meaning of the columns of `gripper`, in any order: the joints that stand for the grippers.
        action_space: Meaning of the rows; the guard understands 'joint_position'.
    """

    stamp_ns: int
    epoch: int
    sequence: int
    step_ns: int
    joint_names: Sequence[str]
    positions: Any
    gripper: Any = None
    gripper_names: Sequence[str] = ()
    action_space: str = JOINT_POSITION


@dataclass(frozen=True, eq=False)
class Chunk:
    """A chunk in the robot's own order of joints; well formed and finite, not yet checked against any limit.

    Row k is the joint target to be *at* at `stamp_ns + delay_ns + (k + 1) * step_ns`.

    Attributes:
        stamp_ns: Time of the observation, ns.
        epoch: Count of resets.
        sequence: Number within the epoch.
        step_ns: Time between rows, ns.
        joint_names: The robot's joints.
        positions: [N, J], rad, read-only.
        gripper: [N, G], 0 = open, 1 = closed, read-only, in the robot's order of grippers; None if absent.
        gripper_names: Meaning of the columns of `gripper`.
        delay_ns: Deliberate shift of the whole chunk, ns; 0 unless an arm at rest starts it from its first row, or it
            is played at another pace.
        pace: Share of the policy's own speed at which it is played.
    """

    stamp_ns: int
    epoch: int
    sequence: int
    step_ns: int
    joint_names: tuple[str, ...]
    positions: Array
    gripper: Array | None
    gripper_names: tuple[str, ...] = ()
    delay_ns: int = 0
    pace: float = 1.0

    @property
    def rows(self) -> int:
        """Number of rows N."""
        return len(self.positions)

    @property
    def end_ns(self) -> int:
        """When the last row is due."""
        return self.due_ns(self.rows - 1)

    def due_ns(self, row: int) -> int:
        """When a row is due."""
        return self.stamp_ns + self.delay_ns + (row + 1) * self.step_ns

    def row_at(self, time_ns: int) -> int:
        """Index of the row being approached at a time; clipped to the rows there are."""
        return min(max(-((self.due_ns(0) - time_ns) // self.step_ns), 0), self.rows - 1)  # rounded up

    def rows_at(self, times_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index of the row being approached at each of the times [S]; clipped to the rows there are."""
        approached: NDArray[np.int64] = -((self.due_ns(0) - times_ns) // self.step_ns)  # rounded up, in integers
        return approached.clip(0, self.rows - 1)

    def starting_at(self, time_ns: int) -> Chunk:
        """The same rows, delayed so that the first is due one step after `time_ns`."""
        return replace(self, delay_ns=time_ns - self.stamp_ns)

    def retimed(self, step_ns: int, first_due_ns: int) -> Chunk:
        """The same rows, `step_ns` apart, the first due at `first_due_ns`."""
        delay_ns = first_due_ns - step_ns - self.stamp_ns
        return replace(self, step_ns=step_ns, delay_ns=delay_ns, pace=self.pace * self.step_ns / step_ns)


def arrange(
    received: ReceivedChunk, joint_names: tuple[str, ...], gripper_names: tuple[str, ...] = ()
) -> Chunk | Rejection:
    """Bring a chunk into the robot's order of joints, or say what is wrong with its form.

    Args:
        received: The chunk as it arrived.
        joint_names: The robot's joints in the robot's order.
        gripper_names: The joints that stand for its grippers, likewise; a chunk commands all of them or none.

    Returns:
        The chunk with its columns sorted by name, or the reason why it is malformed. Never raises for bad content.
    """
    if received.action_space != JOINT_POSITION:
        what = f"action space '{received.action_space}' is not '{JOINT_POSITION}'"
        return reject(Reason.UNSUPPORTED_ACTION_SPACE, what)
    order = _column_order(tuple(received.joint_names), joint_names)
    if isinstance(order, Rejection):
        return order
    header = _header(received)
    if isinstance(header, Rejection):
        return header
    positions = _positions(received.positions, len(joint_names))
    if isinstance(positions, Rejection):
        return positions
    gripper = _gripper(received, gripper_names, len(positions))
    if isinstance(gripper, Rejection):
        return gripper
    sorted_positions, finite = _sorted(positions, order)
    sorted_gripper, finite_too = (None, True) if gripper is None else _sorted(*gripper)
    chunk = Chunk(
        **header,
        joint_names=joint_names,
        positions=sorted_positions,
        gripper=sorted_gripper,
        gripper_names=gripper_names,
    )
    return chunk if finite and finite_too else _not_finite(chunk)


def _column_order(given: tuple[str, ...], wanted: tuple[str, ...], of: str = '') -> Indices | Rejection:
    if given == wanted:  # as most policies have them
        return np.arange(len(wanted))
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted]
    twice = [name for name in dict.fromkeys(given) if given.count(name) > 1]
    faults = [('missing', missing), ('unknown', extra), ('named twice', twice)]
    if any(names for _, names in faults):
        what = '; '.join(f'{of}{fault}: {", ".join(names)}' for fault, names in faults if names)
        return reject(Reason.CHUNK_JOINT_NAMES, what, joint=(missing + extra + twice)[0])
    return np.array([given.index(name) for name in wanted], dtype=np.intp)


def _header(received: ReceivedChunk) -> dict[str, int] | Rejection:
    """The integers of a chunk, if they are integers in a range that time arithmetic can hold."""
    header: dict[str, int] = {}
    for name, smallest in (('stamp_ns', 0), ('epoch', 0), ('sequence', 0), ('step_ns', 1)):
        value = getattr(received, name)
        if isinstance(value, bool) or not isinstance(value, _INTEGERS):
            return reject(Reason.CHUNK_SHAPE, f'{name} is not an integer')
        if not smallest <= value <= _LARGEST_INTEGER:
            return reject(Reason.CHUNK_SHAPE, f'{name} is {value}, allowed {smallest}..{_LARGEST_INTEGER}')
        header[name] = int(value)
    if header['step_ns'] > _LONGEST_STEP_NS:
        return reject(Reason.CHUNK_SHAPE, 'time between rows', value=header['step_ns'] * 1e-9, limit=1.0, unit='s')
    return header


def _positions(data: Any, joints: int) -> Array | Rejection:
    positions = _numbers(data)
    if positions is None:
        return reject(Reason.CHUNK_SHAPE, f'positions are not numbers in rows of {joints}')
    if positions.ndim != 2 or positions.shape[1] != joints:
        return reject(Reason.CHUNK_SHAPE, f'positions have shape {list(positions.shape)}, must be [N, {joints}]')
    if not MINIMUM_ROWS <= len(positions) <= MAXIMUM_ROWS:
        return reject(Reason.CHUNK_SHAPE, f'{len(positions)} rows, allowed {MINIMUM_ROWS}..{MAXIMUM_ROWS}')
    return positions


def _gripper(received: ReceivedChunk, wanted: tuple[str, ...], rows: int) -> tuple[Array, Indices] | Rejection | None:
    """The gripper values [rows, G] as they arrived, and where the robot's grippers are among their columns."""
    if received.gripper is None and not len(received.gripper_names):
        return None
    order = _column_order(tuple(received.gripper_names), wanted, 'grippers ')
    if isinstance(order, Rejection):
        return order
    gripper = _numbers(received.gripper)
    if gripper is None:
        return reject(Reason.CHUNK_SHAPE, 'gripper values are not numbers')
    if gripper.shape != (rows, len(wanted)):
        what = f'gripper has shape {list(gripper.shape)}, must be [{rows}, {len(wanted)}]'
        return reject(Reason.CHUNK_SHAPE, what)
    return gripper, order


def _not_finite(chunk: Chunk) -> Rejection:
    """Which number of a chunk is none."""
    bad = np.argwhere(~np.isfinite(chunk.positions))
    if len(bad):
        row, column = (int(i) for i in bad[0])
        what = f'position is {chunk.positions[row, column]}'
        return reject(Reason.CHUNK_NOT_FINITE, what, joint=chunk.joint_names[column], row=row)
    gripper = np.zeros((0, 0)) if chunk.gripper is None else chunk.gripper
    row, column = (int(i) for i in np.argwhere(~np.isfinite(gripper))[0])
    what = f'gripper is {gripper[row, column]}'
    return reject(Reason.CHUNK_NOT_FINITE, what, joint=chunk.gripper_names[column], row=row)


def _numbers(data: Any) -> Array | None:
    """The data as floats; None if it is ragged or holds something that is no number."""
    try:
        return np.array(data, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None


def _sorted(values: Array, order: Indices) -> tuple[Array, bool]:
    """The columns in another order, read-only, and whether all of it are finite numbers."""
    found, finite = kernels.arranged(values, order)
    found.setflags(write=False)
    return found, finite
