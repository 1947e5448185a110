"""Faults that a guard has to notice, put into an otherwise perfect policy or robot. Angles in rad, times in s or ns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from expert import NS, REPLAN_ROWS, ROWS, STEP_NS, Rehearsal
from numpy.typing import NDArray

from cosmos3_ros.guard.checks import Acceptance
from cosmos3_ros.guard.chunk import ReceivedChunk
from cosmos3_ros.guard.guard import GuardState

Array = NDArray[np.float64]
Fault = Callable[[Rehearsal, int, np.random.Generator], ReceivedChunk]

_FINE_NS = 2_000_000


def position_limit(stage: Rehearsal, stamp: int, rng: np.random.Generator) -> ReceivedChunk:
    """A smooth way to beyond the end of a joint."""
    rows, limits, joint = stage.rows(stamp), stage.guard.limits, rng.integers(7)
    goal = limits.upper[joint] + rng.uniform(0.001, 0.2)
    if rng.random() < 0.5:
        goal = limits.lower[joint] - rng.uniform(0.001, 0.2)
    s = np.arange(1, ROWS + 1) / ROWS
    rows[:, joint] += (goal - rows[-1, joint]) * s**3 * (10 - 15 * s + 6 * s**2)
    return stage.chunk(stamp, positions=rows)


def velocity_limit(stage: Rehearsal, stamp: int, rng: np.random.Generator) -> ReceivedChunk:
    """One joint is faster than its limit for a while, by 2 % to 200 %."""
    rows, limits, joint = stage.rows(stamp), stage.guard.limits, rng.integers(7)
    steps = np.diff(rows[:, joint], prepend=rows[0, joint])
    middle, width = rng.uniform(12, 20), 8
    bell = np.clip(1 + np.cos((np.arange(ROWS) - middle) * np.pi / width), 0, None) / 2
    bell[np.abs(np.arange(ROWS) - middle) > width] = 0
    most, side = int(bell.argmax()), rng.choice([-1, 1])
    wanted = side * rng.uniform(1.02, 3.0) * limits.velocity[joint] * STEP_NS / NS
    steps += bell * (wanted - steps[most]) / bell[most]
    rows[:, joint] = rows[0, joint] + np.cumsum(steps)
    return stage.chunk(stamp, positions=rows)


def acceleration_limit(stage: Rehearsal, stamp: int, rng: np.random.Generator) -> ReceivedChunk:
    """One joint changes its speed within a row by more than it can, by 2 % to 200 %."""
    rows, limits, joint = stage.rows(stamp), stage.guard.limits, rng.integers(7)
    row = rng.integers(8, ROWS - 1)
    now = rows[row + 1, joint] - 2 * rows[row, joint] + rows[row - 1, joint]
    wanted = rng.choice([-1, 1]) * rng.uniform(1.02, 3.0) * limits.acceleration[joint] * (STEP_NS / NS) ** 2
    rows[row + 1 :, joint] += (wanted - now) * np.arange(1, ROWS - row)
    return stage.chunk(stamp, positions=rows)


def jerk_limit(stage: Rehearsal, _stamp: int, rng: np.random.Generator) -> ReceivedChunk:
    """At 500 rows per second, accelerations within their limit that change too fast: slower rows cannot hold that."""
    limits, joint, dt = stage.guard.limits, rng.integers(7), _FINE_NS / NS
    stamp = stage.now_ns - 1_000_000
    rows = stage.rows(stamp, 400, _FINE_NS)
    size = rng.uniform(1.1, 1.6) * limits.jerk[joint] * dt**3 / 3
    row = rng.integers(40, 300)
    rows[row, joint] += rng.choice([-1, 1]) * size  # differences of the third order: 1, -3, 3, -1 times that
    return stage.chunk(stamp, positions=rows, step_ns=_FINE_NS, gripper=None)


def start_jump(stage: Rehearsal, stamp: int, rng: np.random.Generator) -> ReceivedChunk:
    """One joint is off for the whole chunk, by at least 20 mrad more than a moving joint may be."""
    rows, joint = stage.rows(stamp), rng.integers(7)
    times = np.array([stamp - stage.origin_ns - STEP_NS, stamp - stage.origin_ns]) / NS
    speed = float(np.abs(np.diff(stage.motion.joints(times)[:, joint]))[0]) * NS / STEP_NS
    rows[:, joint] += rng.choice([-1, 1]) * (0.07 + speed * 0.25 + rng.uniform(0.0, 0.4))
    return stage.chunk(stamp, positions=rows)


def splice_jump(stage: Rehearsal, stamp: int, rng: np.random.Generator) -> ReceivedChunk:
    """Begins where the arm is seen, and is elsewhere by the time it would take over."""
    rows, joint = stage.rows(stamp), rng.integers(7)
    row = min(int((stage.now_ns - stamp) // STEP_NS), ROWS - 4)
    rise = np.clip(np.arange(ROWS) / max(1, row), 0, 1)
    rows[:, joint] += rng.choice([-1, 1]) * rng.uniform(0.25, 0.6) * rise
    return stage.chunk(stamp, positions=rows)


def not_finite(stage: Rehearsal, stamp: int, rng: np.random.Generator) -> ReceivedChunk:
    """One number is none."""
    rows = stage.rows(stamp)
    rows[rng.integers(ROWS), rng.integers(7)] = rng.choice([np.nan, np.inf, -np.inf])
    return stage.chunk(stamp, positions=rows)


def columns_swapped(stage: Rehearsal, stamp: int, rng: np.random.Generator) -> ReceivedChunk:
    """All columns in another order than the names say, no joint in its own."""
    order = np.roll(np.arange(7), rng.integers(1, 7))
    return stage.chunk(stamp, positions=stage.rows(stamp)[:, order])


def wrong_names(stage: Rehearsal, stamp: int, rng: np.random.Generator) -> ReceivedChunk:
    """A joint is missing, unknown or named twice."""
    names = list(stage.guard.limits.joint_names)
    names[rng.integers(7)] = ('', 'elbow', names[rng.integers(7)])[rng.integers(2)]
    return stage.chunk(stamp, joint_names=tuple(names))


def wrong_shape(stage: Rehearsal, stamp: int, rng: np.random.Generator) -> ReceivedChunk:
    """A column or nearly all rows are missing, or rows are of different length."""
    rows = stage.rows(stamp)
    return stage.chunk(stamp, positions=[rows[:, :6], rows[:1], [[0.0] * 7, [0.0] * 6], rows[0]][rng.integers(4)])


def stale_observation(stage: Rehearsal, _stamp: int, rng: np.random.Generator) -> ReceivedChunk:
    """Made from what was seen 2.02 to 10 s ago."""
    return stage.chunk(stage.now_ns - int(rng.uniform(2.02, 10.0) * NS))


def degrees(stage: Rehearsal, stamp: int, _rng: np.random.Generator) -> ReceivedChunk:
    """The wrong unit."""
    return stage.chunk(stamp, positions=np.degrees(stage.rows(stamp)))


def duplicated(stage: Rehearsal, stamp: int, _rng: np.random.Generator) -> ReceivedChunk:
    """The chunk before once more."""
    again = stage.chunk(stamp)
    stage.sequence -= 1
    return replace(again, sequence=stage.sequence)


def out_of_order(stage: Rehearsal, stamp: int, rng: np.random.Generator) -> ReceivedChunk:
    """An older chunk after a newer one."""
    older = stage.chunk(stamp)
    stage.sequence -= 1
    return replace(older, sequence=max(0, stage.sequence - int(rng.integers(1, 20))))


def from_before_the_reset(stage: Rehearsal, stamp: int, _rng: np.random.Generator) -> ReceivedChunk:
    """Of an older epoch."""
    return stage.chunk(stamp, epoch=stage.guard.epoch - 1)


def from_the_future(stage: Rehearsal, _stamp: int, rng: np.random.Generator) -> ReceivedChunk:
    """Stamped 60 ms to 1 s ahead of the clock."""
    return stage.chunk(stage.now_ns + int(rng.uniform(0.06, 1.0) * NS))


CHUNK_FAULTS: dict[str, Fault] = {
    'position limit': position_limit,
    'velocity limit': velocity_limit,
    'acceleration limit': acceleration_limit,
    'jerk limit': jerk_limit,
    'start jump': start_jump,
    'splice jump': splice_jump,
    'not finite': not_finite,
    'columns in the wrong order': columns_swapped,
    'wrong joint names': wrong_names,
    'wrong shape': wrong_shape,
    'stale observation': stale_observation,
    'degrees in place of radians': degrees,
    'duplicated': duplicated,
    'out of order': out_of_order,
    'from before the reset': from_before_the_reset,
    'from the future': from_the_future,
}


def silent_joint_states(stage: Rehearsal) -> None:
    """The driver stops reporting."""
    stage.reports = False


def frozen_joint_states(stage: Rehearsal) -> None:
    """The driver reports the same joints for ever, with new stamps."""
    stage.frozen = stage.arm.copy()


def blocked(stage: Rehearsal) -> None:
    """The arm stands still, whatever it is told."""
    stage.blocked = True


ROBOT_FAULTS: dict[str, Callable[[Rehearsal], None]] = {
    'joint states stop': silent_joint_states,
    'joint states frozen': frozen_joint_states,
    'arm does not follow': blocked,
}


@dataclass(frozen=True)
class Outcome:
    """Why the guard stopped or refused, '' if it did not, and how long after the fault."""

    reason: str
    seconds: float


def misbehave(stage: Rehearsal, fault: Callable[[Rehearsal], None], within_s: float) -> Outcome:
    """Let a robot go wrong once its motion has gone on for a while and it moves; see what the guard makes of it."""
    observed, began = 0, 0
    while stage.elapsed_s < 15.0:
        stamp = stage.origin_ns + observed
        stage.until(stamp + stage.delay_ns())
        verdict = stage.guard.on_chunk(stage.chunk(stamp), stage.now_ns)
        if began and not isinstance(verdict, Acceptance):
            return Outcome(verdict.reason.name, (stage.now_ns - began) / NS)
        observed += REPLAN_ROWS * STEP_NS
        while stage.now_ns < stage.origin_ns + observed:
            stage.tick()
            if began and stage.guard.state is not GuardState.TRACKING:
                return Outcome(stage.guard.cause.reason.name, (stage.now_ns - began) / NS)
            if not began and stage.elapsed_s > 1.2 and stage.speed() > 0.1:
                fault(stage)
                began = stage.now_ns
        if began and stage.now_ns - began > within_s * NS:
            break
    return Outcome('', 0.0)
