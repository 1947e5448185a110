"""The guard's messages: chunks as it takes them, and what it says in the form that goes on topics."""

from __future__ import annotations

import array
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from numpy.typing import NDArray
from rclpy.serialization import deserialize_message
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from cosmos3_msgs.msg import ActionChunk, ChunkDecision, GuardStatus, LimitsInForce
from cosmos3_msgs.msg import Verdict as VerdictMessage
from cosmos3_ros.conversions import ns_to_stamp, stamp_to_ns
from cosmos3_ros.guard.checks import Acceptance
from cosmos3_ros.guard.chunk import JOINT_POSITION, ReceivedChunk
from cosmos3_ros.guard.guard import Guard
from cosmos3_ros.guard.limits import RobotLimits
from cosmos3_ros.guard.reasons import Reason, Rejection
from cosmos3_ros.guard.state import Command, GuardState, Slowed
from cosmos3_ros.guard.statistics import Statistics
from cosmos3_ros.guard.verdicts import Verdict


def received_chunk(message: ActionChunk) -> ReceivedChunk:
    """The message as the guard takes it; nothing in it is trusted yet."""
    positions = _in_rows(message.positions, message.rows, len(message.joint_names))
    grippers = _in_rows(message.grippers, message.rows, len(message.gripper_names))
    spaces = {ActionChunk.JOINT_POSITION: JOINT_POSITION, ActionChunk.END_EFFECTOR_POSE: 'end_effector_pose'}
    usable_step = math.isfinite(message.step_dt) and 0 < message.step_dt < 1e6
    return ReceivedChunk(
        stamp_ns=stamp_to_ns(message.header.stamp),
        epoch=message.epoch,
        sequence=message.sequence,
        step_ns=_ns(message.step_dt) if usable_step else 0,
        joint_names=list(message.joint_names),
        positions=positions,
        gripper=grippers if grippers.size or len(message.gripper_names) else None,
        gripper_names=list(message.gripper_names),
        action_space=spaces.get(message.action_space, f'number {message.action_space}'),
    )


def received_verdict(message: VerdictMessage) -> Verdict:
    """The message as the guard takes it: what it is about and what it says. Its scores are for people."""
    return Verdict(
        epoch=message.epoch,
        sequence=message.sequence,
        stamp_ns=stamp_to_ns(message.stamp),
        decision=message.decision,
        text=message.text,
    )


def _in_rows(numbers: Any, rows: int, columns: int) -> NDArray[np.float64]:
    """The numbers [rows, columns]; as they came, [M], if there are not as many as that."""
    found: NDArray[np.float64] = np.asarray(numbers, np.float64)
    return found.reshape(rows, columns) if columns and found.size == rows * columns else found


def trajectory_message(command: Command) -> JointTrajectory:
    """The command as a trajectory controller takes it."""
    message = JointTrajectory(joint_names=list(command.joint_names))
    message.header.stamp = ns_to_stamp(command.stamp_ns)
    rows = zip(command.times_ns, command.positions, command.velocities, command.accelerations, strict=True)
    message.points = [
        JointTrajectoryPoint(
            time_from_start=Duration(sec=int(time_ns) // 1_000_000_000, nanosec=int(time_ns) % 1_000_000_000),
            positions=_doubles(positions),
            velocities=_doubles(velocities),
            accelerations=_doubles(accelerations),
        )
        for time_ns, positions, velocities, accelerations in rows
    ]
    return message


@dataclass(frozen=True)
class GuardView:
    """What the guard is and has done, at one moment."""

    state: GuardState
    cause: Rejection
    paused: bool
    epoch: int
    buffer_ns: int
    counts: Statistics

    @classmethod
    def of(cls, guard: Guard) -> GuardView:
        """Look at a guard; to be called where its calls are kept from overlapping."""
        return cls(guard.state, guard.cause, guard.paused, guard.epoch, guard.buffer_ns, guard.statistics())

    def mode(self, dry_run: bool) -> str:
        """In one word, what comes of an instruction: inactive, fault, paused, dry_run or live."""
        if self.state is GuardState.INACTIVE:
            return 'inactive'
        if self.state is GuardState.FAULT:
            return 'fault'
        if self.paused:
            return 'paused'
        return 'dry_run' if dry_run else 'live'


class TrajectoryWriter:
    """Writes commands as the bytes that go on the wire, some ten times faster than through message objects.

    A trajectory of twenty points is a message of a hundred objects, which take longer to make than the command itself
    takes to compute. All points have the same layout, so that NumPy can write them in one go. The layout is that of
    plain CDR, little endian (OMG DDS-XTypes 1.3, clause 7.4, encoding version 1): numbers aligned to their size from
    the end of the four bytes in front, sequences with their length in front.
    """

    def __init__(self, joint_names: tuple[str, ...]) -> None:
        """Prepare for the joints of one robot; try it once, since a middleware may speak another format."""
        self._joint_names = joint_names
        head = bytearray(struct.pack('<BBH iI I', 0, 1, 0, 0, 0, 1) + b'\0')  # format, stamp, empty frame_id
        _append(head, len(joint_names))
        for name in joint_names:
            encoded = name.encode() + b'\0'
            _append(head, len(encoded))
            head += encoded
        _append(head, 0)
        self._count_at = len(head) - 4
        if (len(head) - 4) % 8 == 0:  # the first length is followed by a gap: it is written here, once
            _append(head, len(joint_names))
        self._head = bytes(head)
        joints = (len(joint_names),)
        sequence = [('length', '<u4'), ('numbers', '<f8', joints)]
        after_gap = [('length', '<u4'), ('gap', '<u4'), ('numbers', '<f8', joints)]
        self._point = np.dtype(
            [
                ('positions', sequence),
                ('velocities', after_gap),
                ('accelerations', after_gap),
                ('effort', '<u4'),
                ('sec', '<i4'),
                ('nanosec', '<u4'),
            ]
        )
        self.works = self._try()

    def message(self, command: Command) -> JointTrajectory | bytes:
        """The command as something that a publisher of `JointTrajectory` sends."""
        return self._write(command) if self.works else trajectory_message(command)

    def _write(self, command: Command) -> bytes:
        points = np.zeros(len(command.times_ns), self._point)
        for name in ('positions', 'velocities', 'accelerations'):
            points[name]['length'] = len(self._joint_names)
            points[name]['numbers'] = getattr(command, name)
        points['sec'], points['nanosec'] = np.divmod(command.times_ns, 1_000_000_000)
        head = bytearray(self._head)
        struct.pack_into('<iI', head, 4, *divmod(command.stamp_ns, 1_000_000_000))
        struct.pack_into('<I', head, self._count_at, len(points))
        return bytes(head) + points.tobytes()

    def _try(self) -> bool:
        """Whether the middleware in use reads what is written here as what was meant."""
        shape = (3, len(self._joint_names))
        rows = np.arange(shape[0] * shape[1], dtype=np.float64).reshape(shape)
        times = np.array([0, 10_000_000, 1_500_000_000], dtype=np.int64)
        stamp_ns = 1_700_000_000_123_456_789
        command = Command(
            stamp_ns, self._joint_names, times, rows, rows + 0.5, -rows, None, GuardState.TRACKING, Reason.NONE
        )
        try:
            return bool(deserialize_message(self._write(command), JointTrajectory) == trajectory_message(command))
        except Exception:  # whatever a middleware makes of bytes that it does not understand
            return False


def _append(written: bytearray, number: int) -> None:
    """Append an unsigned 32-bit integer at its alignment."""
    written += b'\0' * (-len(written) % 4) + struct.pack('<I', number)


def decision_message(chunk: ActionChunk, verdict: Acceptance | Rejection, now_ns: int) -> ChunkDecision:
    """What became of a chunk."""
    stamp = stamp_to_ns(chunk.header.stamp)
    message = ChunkDecision(
        decided=ns_to_stamp(now_ns),
        stamp=chunk.header.stamp,
        epoch=chunk.epoch,
        sequence=chunk.sequence,
        accepted=not isinstance(verdict, Rejection),
        row=-1,
        value=math.nan,
        limit=math.nan,
        splice_jump=math.nan,
        pace=math.nan,
        observation_age=(now_ns - stamp) / 1e9,
        reason_name=Reason.NONE.name,
    )
    if not isinstance(verdict, Rejection):
        message.splice_jump = verdict.splice_jump
        message.pace = verdict.motion.chunk.pace
        slowed = f' at {message.pace:.2f} of its own pace' if message.pace < 1.0 else ''
        message.text = f'accepted{slowed}; {verdict.rows_dropped} rows were past'
        return message
    message.reason, message.reason_name = int(verdict.reason), verdict.reason.name
    message.text, message.joint = verdict.text, verdict.joint
    message.row = -1 if verdict.row is None else verdict.row
    message.value = math.nan if verdict.value is None else verdict.value
    message.limit = math.nan if verdict.limit is None else verdict.limit
    return message


def slowed_message(slowed: Slowed, now_ns: int) -> ChunkDecision:
    """That a chunk which was accepted before goes on more slowly."""
    chunk = slowed.accepted.motion.chunk
    return ChunkDecision(
        decided=ns_to_stamp(now_ns),
        stamp=ns_to_stamp(chunk.stamp_ns),
        epoch=chunk.epoch,
        sequence=chunk.sequence,
        accepted=True,
        reason_name=Reason.NONE.name,
        row=-1,
        value=math.nan,
        limit=math.nan,
        text=f'goes on at {chunk.pace:.2f} of its own pace: {slowed.why}',
        splice_jump=slowed.accepted.splice_jump,
        pace=chunk.pace,
        observation_age=(now_ns - chunk.stamp_ns) / 1e9,
    )


def status_message(view: GuardView, now_ns: int, dry_run: bool) -> GuardStatus:
    """State, cause and extremes of the guard."""
    counts, cause = view.counts, view.cause
    ages = np.asarray(counts.observation_ages) if counts.observation_ages else np.array([math.nan])
    message = GuardStatus(
        state=getattr(GuardStatus, view.state.value),
        state_name=view.state.value,
        reason=int(cause.reason),
        reason_name=cause.reason.name,
        text=cause.text,
        epoch=view.epoch,
        dry_run=dry_run,
        accepted=counts.chunks_accepted,
        rejected=sum(counts.rejections.values()),
        buffer_s=view.buffer_ns / 1e9,
        smallest_position_margin=counts.position_margin.value,
        smallest_velocity_margin=counts.velocity_margin.value,
        smallest_acceleration_margin=counts.acceleration_margin.value,
        rejection_names=[reason.name for reason in counts.rejections],
        rejection_counts=list(counts.rejections.values()),
        largest_splice_jump=counts.largest_splice_jump,
        observation_age_p50_s=float(np.percentile(ages, 50)),
        observation_age_p95_s=float(np.percentile(ages, 95)),
    )
    message.header.stamp = ns_to_stamp(now_ns)
    return message


def limits_message(limits: RobotLimits, now_ns: int) -> LimitsInForce:
    """The limits that commands are held to."""
    message = LimitsInForce(
        robot=limits.name,
        source=limits.source,
        joint_names=list(limits.joint_names),
        position_min=_doubles(limits.soft_lower),
        position_max=_doubles(limits.soft_upper),
        velocity=_doubles(limits.velocity),
        acceleration=_doubles(limits.acceleration),
        jerk=_doubles(limits.jerk),
        scale=limits.scale,
    )
    message.header.stamp = ns_to_stamp(now_ns)
    return message


def _doubles(values: NDArray[np.float64]) -> array.array[float]:
    return array.array('d', np.ascontiguousarray(values, np.float64).tobytes())


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
