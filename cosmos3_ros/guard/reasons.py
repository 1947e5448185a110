"""Why the guard refused or stopped: a closed list, each entry with one sentence for the person in front of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Reason(IntEnum):
    """Every reason the guard can give. Number and name are stable and meant for messages, logs and counters."""

    sentence: str

    def __new__(cls, code: int, sentence: str) -> Reason:
        """Attach the sentence to the member."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        return member

    NONE = 0, 'Nothing keeps the robot from moving.'
    NOT_ACTIVE = 1, 'The guard is not active.'
    FAULT_LATCHED = 2, 'A fault is latched; it needs a reset by a person.'
    PAUSED = 3, 'Motion is paused on request.'
    STALE_JOINT_STATE = 4, 'No valid joint state has arrived within its maximum age.'
    INVALID_JOINT_STATE = 5, 'A joint state was not usable and was treated as not received.'
    MISSING_JOINT = 6, 'A joint state lacks a joint of the robot and was treated as not received.'
    STALE_SOURCE = 7, 'A required source is older than its maximum age.'
    HEARTBEAT_LOST = 8, 'The heartbeat of the policy process stopped.'
    UNSUPPORTED_ACTION_SPACE = 9, 'The chunk speaks an action space the guard cannot check.'
    CHUNK_JOINT_NAMES = 10, "The chunk's joints are not the robot's joints."
    CHUNK_SHAPE = 11, 'The chunk has the wrong shape, or a header that makes no sense.'
    CHUNK_NOT_FINITE = 12, 'The chunk holds a value that is not a finite number.'
    CHUNK_STALE_EPOCH = 13, 'The chunk was computed before the last reset.'
    CHUNK_OUT_OF_ORDER = 14, 'A newer chunk of the same epoch was already received.'
    CHUNK_DUPLICATE = 15, 'This chunk was already received.'
    CHUNK_FROM_FUTURE = 16, 'The chunk is stamped later than the present time.'
    CHUNK_EXPIRED = 17, 'The chunk is too old, or too few of its rows are still to come.'
    START_JUMP = 18, 'The first row is far from where the robot was when it was observed.'
    SPLICE_JUMP = 19, 'The chunk is far from the motion in progress.'
    ROBOT_MOVING = 20, 'The robot moves although the guard does not command it.'
    POSITION_LIMIT = 21, 'A joint would leave its position range.'
    VELOCITY_LIMIT = 22, 'A joint would move faster than its limit.'
    ACCELERATION_LIMIT = 23, 'A joint would accelerate harder than its limit.'
    JERK_LIMIT = 24, 'The acceleration of a joint would change faster than its limit.'
    STOPPING_DISTANCE = 25, 'A joint could no longer stop within its limits.'
    STARVED = 26, 'The chunk was played to its end and no new one came in time.'
    TICK_LATE = 27, 'The control tick came later than the motion already sent reaches.'
    CLOCK_JUMP = 28, 'The clock jumped backwards.'
    STOP_REQUESTED = 29, 'A stop was requested.'
    TRACKING_ERROR = 30, 'The robot does not follow its commands.'
    OUTPUT_CHECK = 31, 'A command failed the last check before leaving and was withheld.'
    WORKSPACE = 32, 'The tool point would leave its workspace.'
    TOOL_SPEED = 33, 'The tool point would move or turn faster than its limit.'
    SELF_COLLISION = 34, 'Two parts of the arm would come too close to each other.'
    EMERGENCY_STOP = 36, 'An emergency stop is pressed, or has fallen silent.'
    LIVELINESS_LOST = 37, 'The publisher of a watched topic is gone.'
    DEADLINE_MISSED = 38, 'A watched topic did not come within its agreed period.'
    VERDICT_STOP = 39, 'Imagination objects to the chunk.'
    VERDICT_UNKNOWN = 40, 'No verdict of imagination has arrived within its maximum age.'
    VERDICT_SLOW = 41, 'No motion as slow as imagination asks for keeps the limits.'


@dataclass(frozen=True)
class Rejection:
    """One thing that was refused.

    Attributes:
        reason: Why.
        text: One line for people; names joint, row, value with its unit, and the limit where they exist.
        joint: Name of the offending joint; empty if no single joint is to blame.
        row: Index of the offending row of the chunk; None if no row is to blame.
        value: Offending value in SI units; None if it is not a number.
        limit: What would have been accepted, in the unit of `value`.
    """

    reason: Reason
    text: str
    joint: str = ''
    row: int | None = None
    value: float | None = None
    limit: float | None = None

    def __str__(self) -> str:
        return self.text


def reject(
    reason: Reason,
    what: str,
    *,
    joint: str = '',
    row: int | None = None,
    value: float | None = None,
    limit: float | None = None,
    unit: str = '',
) -> Rejection:
    """Compose a rejection whose text reads 'REASON: joint, row N: what VALUE UNIT, limit LIMIT UNIT'."""
    where = ', '.join(part for part in (joint, '' if row is None else f'row {row}') if part)
    head = f'{reason.name}: {where}: ' if where else f'{reason.name}: '
    measured = '' if value is None else f' {_number(value)}{_unit(unit)}'
    allowed = '' if limit is None else f', limit {_number(limit)}{_unit(unit)}'
    return Rejection(reason, f'{head}{what}{measured}{allowed}', joint, row, value, limit)


def _number(value: float) -> str:
    return f'{value:.4f}'


def _unit(unit: str) -> str:
    return f' {unit}' if unit else ''
