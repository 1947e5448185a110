"""What was asked of the robot during a recorded run: stretches that policies drove, and the commands of the guard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.conversions import stamp_to_ns
from cosmos3_ros.guard.state import GuardState
from cosmos3_ros.recorder_reader import BagMessage, RunBag
from cosmos3_ros.recorder_topics import CHUNK, COMMAND, DECISION, GRIPPER, GUARD
from engine.contract import Contract

Floats = NDArray[np.float64]
Times = NDArray[np.int64]

SILENT_NS = 1_000_000_000
"""A guard that has said nothing for so long counts as gone; it says what it does ten times a second."""


@dataclass(frozen=True)
class Stretch:
    """A time during which one instruction was followed without a break; ns on the clock of the stamps."""

    start_ns: int
    end_ns: int
    instruction: str


@dataclass(frozen=True, eq=False)
class Targets:
    """Where something was to be, at which time; between two times it moves, after the last it stays.

    Attributes:
        times: [K] ns, rising.
        values: [K, width].
        steady: Whether it stays at a value until the next time, instead of moving there.
    """

    times: Times
    values: Floats
    steady: bool = False

    def at(self, time_ns: int) -> Floats | None:
        """The target at a time; None before the first."""
        if not len(self.times) or time_ns < self.times[0]:
            return None
        index = int(np.searchsorted(self.times, time_ns, 'right')) - 1
        if self.steady or index + 1 == len(self.times):
            return np.asarray(self.values[index])
        span = float(self.times[index + 1] - self.times[index])
        share = (time_ns - self.times[index]) / span
        return np.asarray((1.0 - share) * self.values[index] + share * self.values[index + 1])


class Way:
    """What plans that follow each other add up to: each counts until the first point of the next."""

    def __init__(self, width: int) -> None:
        """Nothing is planned yet; points will have `width` values."""
        self._width = width
        self._times: list[int] = []
        self._values: list[Floats] = []

    def add(self, times: Sequence[int], values: Sequence[Floats] | Floats) -> None:
        """A plan: its times in ns, rising, and the values at each."""
        # Of the plan before only what comes before this one was meant: the rest is how it would have gone on.
        while len(times) and self._times and self._times[-1] >= times[0]:
            self._times.pop()
            self._values.pop()
        self._times += [int(time_ns) for time_ns in times]
        self._values += [np.asarray(value, np.float64) for value in values]

    def targets(self, *, steady: bool = False) -> Targets:
        """All of it; `steady` as in :class:`Targets`."""
        values = np.array(self._values, np.float64).reshape(-1, self._width)
        return Targets(np.array(self._times, np.int64), values, steady)


@dataclass(frozen=True, eq=False)
class Asked:
    """What was asked of the robot.

    Attributes:
        stretches: That policies drove; empty if nobody drove.
        chunks: Whether policies said anything at all.
        joints: Commands of the guard, [K, J] rad; no times if there were none.
        grippers: Closed fraction asked of each gripper, in the order of the contract.
    """

    stretches: tuple[Stretch, ...]
    joints: Targets
    grippers: tuple[Targets, ...]
    chunks: bool = False


@dataclass
class _Gathered:
    chunks: list[Any] = field(default_factory=list)
    decisions: dict[tuple[int, int, int], bool] = field(default_factory=dict)
    states: list[tuple[int, bool]] = field(default_factory=list)
    commands: list[tuple[int, Any]] = field(default_factory=list)
    grippers: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


def what_was_asked(bag: RunBag) -> Asked:
    """Read the chunks of a bag, what the guard said of them, and its commands."""
    arms = [arm for arm in bag.contract.robot.arms if arm.gripper is not None]
    roles = {f'{GRIPPER}.{arm.name}'.rstrip('.'): arm for arm in arms}
    found = _Gathered(grippers={role: [] for role in roles})
    for one in bag.messages(CHUNK, DECISION, GUARD, COMMAND, *roles):
        if one.role == CHUNK:
            found.chunks.append(one.message)
        elif one.role == DECISION:
            found.decisions.setdefault(_name(one.message, one.message.stamp), bool(one.message.accepted))
        elif one.role == GUARD:
            moment = stamp_to_ns(one.message.header.stamp) or one.time_ns
            found.states.append((moment, one.message.state_name == GuardState.TRACKING))
        elif one.role == COMMAND and len(one.message.points):
            found.commands.append((stamp_to_ns(one.message.header.stamp) or one.time_ns, one.message))
        elif one.role in roles:
            found.grippers[one.role].append(_gripper(one, bag.contract, roles[one.role].gripper))
    # Without a word of the guard, as in bags of others, whatever a policy said was done.
    driven = [one for one in found.chunks if found.decisions.get(_name(one, one.header.stamp), not found.decisions)]
    grippers = [_steady(found.grippers[role]) for role in roles]
    if not any(len(one.times) for one in grippers):
        grippers = [_of_chunks(driven, column) for column in range(len(arms))]
    stretches = _stretches(driven)
    if found.states:
        stretches = _obeyed(stretches, _tracked(found.states), round(1e9 / bag.contract.timing.fps))
    joints = _commanded(found.commands, bag.contract.robot.joints)
    return Asked(stretches, joints, tuple(grippers), bool(found.chunks))


def _name(message: Any, stamp: Any) -> tuple[int, int, int]:
    """What tells a chunk from all others."""
    return stamp_to_ns(stamp), int(message.epoch), int(message.sequence)


def _gripper(one: BagMessage, _contract: Contract, terms: Any) -> tuple[int, float]:
    position = float(one.message.position[list(one.message.name).index(terms.joint)])
    return stamp_to_ns(one.message.header.stamp) or one.time_ns, float(terms.travel.closed_fraction(position))


def _steady(events: Sequence[tuple[int, float]]) -> Targets:
    """Of events in order of time; each holds until the next."""
    ordered = sorted(events, key=lambda event: event[0])
    times = np.array([time_ns for time_ns, _ in ordered], np.int64)
    return Targets(times, np.array([[value] for _, value in ordered], np.float64).reshape(-1, 1), steady=True)


def _of_chunks(chunks: Sequence[Any], column: int) -> Targets:
    """What the policy asked of a gripper whose commands are not topics: of each moment by the newest chunk."""
    way = Way(1)
    for chunk in chunks:
        if len(chunk.gripper_names):
            rows = np.asarray(chunk.grippers, np.float64).reshape(int(chunk.rows), -1)
            way.add(_row_times(chunk), rows[:, column])
    return way.targets(steady=True)


def _row_times(chunk: Any) -> list[int]:
    start, step = stamp_to_ns(chunk.header.stamp), round(float(chunk.step_dt) * 1e9)
    return [start + (row + 1) * step for row in range(int(chunk.rows))]


def _stretches(chunks: Sequence[Any]) -> tuple[Stretch, ...]:
    """Chunks that follow each other without a break, under one instruction and in one epoch."""
    found: list[tuple[Stretch, int]] = []
    for chunk in sorted(chunks, key=lambda one: stamp_to_ns(one.header.stamp)):
        start_ns, end_ns = stamp_to_ns(chunk.header.stamp), _row_times(chunk)[-1]
        last = found[-1] if found else None
        same = last is not None and last[0].instruction == chunk.instruction and last[1] == chunk.epoch
        if last is not None and same and start_ns <= last[0].end_ns:
            found[-1] = Stretch(last[0].start_ns, max(end_ns, last[0].end_ns), chunk.instruction), int(chunk.epoch)
        else:
            if last is not None and start_ns < last[0].end_ns:  # another word has been given: it ends there
                found[-1] = Stretch(last[0].start_ns, start_ns, last[0].instruction), last[1]
            found.append((Stretch(start_ns, end_ns, str(chunk.instruction)), int(chunk.epoch)))
    return tuple(stretch for stretch, _ in found)


def _tracked(states: Sequence[tuple[int, bool]]) -> list[tuple[int, int]]:
    """Times from and to which the guard said that it plays chunks; it must say so again and again."""
    found: list[tuple[int, int]] = []
    ordered = sorted(states)
    for (start_ns, tracking), (next_ns, _) in zip(
        ordered, [*ordered[1:], (ordered[-1][0] + SILENT_NS, False)], strict=True
    ):
        end_ns = min(next_ns, start_ns + SILENT_NS)
        if tracking and found and found[-1][1] == start_ns:
            found[-1] = found[-1][0], end_ns
        elif tracking:
            found.append((start_ns, end_ns))
    return found


def _obeyed(stretches: Sequence[Stretch], tracked: Sequence[tuple[int, int]], step_ns: int) -> tuple[Stretch, ...]:
    """What of the stretches the guard played. The action of the last row is still that of a policy, not of a stop."""
    return tuple(
        Stretch(max(one.start_ns, start_ns), min(one.end_ns, end_ns - step_ns), one.instruction)
        for one in stretches
        for start_ns, end_ns in tracked
        if max(one.start_ns, start_ns) < min(one.end_ns, end_ns - step_ns)
    )


def _commanded(commands: Sequence[tuple[int, Any]], joints: tuple[str, ...]) -> Targets:
    """The path of the guard's commands; the end of each, which nobody saw, is how it would have braked."""
    way = Way(len(joints))
    for start_ns, message in commands:
        order = [list(message.joint_names).index(name) for name in joints]
        ahead = [int(p.time_from_start.sec) * 10**9 + int(p.time_from_start.nanosec) for p in message.points]
        way.add([start_ns + one for one in ahead], [np.asarray(p.positions)[order] for p in message.points])
    return way.targets()
