# ruff: noqa: ARG001 (all generators have one signature)
"""What a policy may send and what else may happen to a guard: generators that property tests and long runs share.

Each takes a bench and a random generator. A bench is whatever has these: `guard`, `limits`, `now` (ns), `arm` [J],
`sequence`, `reports`, `follows`, `told` (the command in force), `auditor.command`, `wave(...)`, `tick()`,
`pass_time(ms)`. Chunks give rows [N, J] and changed header fields; events act.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

MS = 1_000_000
STEP = 66_666_667
MIDDLE = np.array([0.0, 0.0, 0.0, -1.5, 0.0, 1.8, 0.0])
"""A pose of the Panda far from the ends of its joints."""

_STANDING = 7 * MS
"""Length of a command that is none of the guard's, and lets the arm stand where it is."""

Bench = Any
Happening = tuple[Any, dict[str, Any]]


# What a policy may send. Each takes the bench and a random generator, and gives rows and changed header fields.


def gentle(bench: Bench, rng: np.random.Generator) -> Happening:
    """A slow wave of three joints."""
    return bench.wave(amplitude=rng.uniform(-0.5, 0.5), period=rng.uniform(1.5, 5), joints=rng.permutation(7)[:3]), {}


def swift(bench: Bench, rng: np.random.Generator) -> Happening:
    """A least-jerk motion towards any pose, about as fast as the robot's limits allow."""
    limits = bench.limits
    way = rng.uniform(limits.lower, limits.upper) - bench.arm
    way *= rng.uniform(0.1, 1.0)
    # Peaks of a least-jerk motion: 1.875 of its mean speed, 5.774 way/duration², 60 way/duration³.
    way_of = np.abs(way)
    fastest = max(
        1.875 * (way_of / limits.velocity).max(),
        (5.774 * (way_of / limits.acceleration).max()) ** 0.5,
        (60.0 * (way_of / limits.jerk).max()) ** (1 / 3),
    )
    s = np.minimum(np.arange(1, 33) * (STEP * 1e-9 / (fastest * rng.uniform(0.9, 1.8))), 1.0)[:, None]
    return bench.arm + way * s**3 * (10 - 15 * s + 6 * s**2), {}


def rushed(bench: Bench, rng: np.random.Generator) -> Happening:
    """Constant speed from the first row on, up to a fifth too fast."""
    speed = rng.uniform(-1, 1, 7) * bench.limits.velocity / bench.limits.scale * rng.uniform(0, 1.2)
    return bench.arm + np.arange(1, 33)[:, None] * STEP * 1e-9 * speed, {}


def wandering(bench: Bench, rng: np.random.Generator) -> Happening:
    """A random walk, from noise to nonsense."""
    return bench.arm + np.cumsum(rng.normal(0, rng.choice([0.001, 0.01, 0.1]), (32, 7)), axis=0), {}


def reversing(bench: Bench, rng: np.random.Generator) -> Happening:
    """A wave that goes back to its start from one row to the next."""
    rows, _ = gentle(bench, rng)
    rows[rng.integers(1, 31) :] = rows[0]
    return rows, {}


def jumping(bench: Bench, rng: np.random.Generator) -> Happening:
    """A wave in which one joint jumps."""
    rows, _ = gentle(bench, rng)
    rows[rng.integers(0, 32) :, rng.integers(7)] += rng.normal(0, 0.2)
    return rows, {}


def offset(bench: Bench, rng: np.random.Generator) -> Happening:
    """A wave that does not begin where the arm is."""
    rows, _ = gentle(bench, rng)
    return rows + rng.normal(0, 0.03, 7), {}


def poisoned(bench: Bench, rng: np.random.Generator) -> Happening:
    """One number that is none, or too large for any joint."""
    rows, _ = gentle(bench, rng)
    rows[rng.integers(32), rng.integers(7)] = rng.choice([np.nan, np.inf, -np.inf, 1e300])
    return rows, {}


def huge(bench: Bench, rng: np.random.Generator) -> Happening:
    """Numbers of any size."""
    return rng.normal(0, 10.0 ** rng.integers(0, 30), (32, 7)), {}


def mis_shaped(bench: Bench, rng: np.random.Generator) -> Happening:
    """Wrong shapes and wrong types."""
    rows, _ = gentle(bench, rng)
    return [rows[:1], rows[:, :6], rows[0], [], None, 'rows', [[1.0], [1.0, 2.0]]][rng.integers(7)], {}


def short(bench: Bench, rng: np.random.Generator) -> Happening:
    """A few rows only."""
    rows, _ = gentle(bench, rng)
    return rows[: rng.integers(2, 8)], {}


def late(bench: Bench, rng: np.random.Generator) -> Happening:
    """An old observation."""
    rows, _ = gentle(bench, rng)
    return rows, {'stamp_ns': bench.now - int(rng.integers(0, 2500)) * MS}


def early(bench: Bench, rng: np.random.Generator) -> Happening:
    """A stamp ahead of the clock."""
    rows, _ = gentle(bench, rng)
    return rows, {'stamp_ns': bench.now + int(rng.integers(0, 100)) * MS}


def of_another_epoch(bench: Bench, rng: np.random.Generator) -> Happening:
    """An older or a newer epoch."""
    rows, _ = gentle(bench, rng)
    return rows, {'epoch': max(0, bench.guard.epoch + int(rng.integers(-2, 2)))}


def repeated(bench: Bench, rng: np.random.Generator) -> Happening:
    """A sequence number that was there before."""
    rows, _ = gentle(bench, rng)
    return rows, {'sequence': max(0, bench.sequence - int(rng.integers(0, 3)))}


def oddly_timed(bench: Bench, rng: np.random.Generator) -> Happening:
    """A time between rows that no policy has."""
    rows, _ = gentle(bench, rng)
    return rows, {'step_ns': int(rng.choice([0, 1, 1000, 5 * MS, 33 * MS, 200 * MS, 900 * MS, 2000 * MS]))}


def permuted(bench: Bench, rng: np.random.Generator) -> Happening:
    """Columns in another order, named so."""
    rows, _ = gentle(bench, rng)
    order = rng.permutation(7)
    return rows[:, order], {'joint_names': tuple(bench.limits.joint_names[i] for i in order)}


def misnamed(bench: Bench, rng: np.random.Generator) -> Happening:
    """Too few names."""
    rows, _ = gentle(bench, rng)
    return rows, {'joint_names': bench.limits.joint_names[: rng.integers(0, 7)]}


CHUNKS = (
    gentle,
    swift,
    rushed,
    wandering,
    reversing,
    jumping,
    offset,
    poisoned,
    huge,
    mis_shaped,
    short,
    late,
    early,
    of_another_epoch,
    repeated,
    oddly_timed,
    permuted,
    misnamed,
)


# What else may happen.


def nothing(bench: Bench, rng: np.random.Generator) -> None:
    """Time passes."""


def poisoned_state(bench: Bench, rng: np.random.Generator) -> None:
    """A joint state without a number in it."""
    bench.guard.on_joint_state(bench.now, bench.now, bench.limits.joint_names, bench.arm * np.nan)


def silent_robot(bench: Bench, rng: np.random.Generator) -> None:
    """Joint states end, or come again."""
    bench.reports = not bench.reports


def stop(bench: Bench, rng: np.random.Generator) -> None:
    """Somebody asks for a stop."""
    bench.guard.request_stop('test', bench.now)


def reset(bench: Bench, rng: np.random.Generator) -> None:
    """Somebody asks for a reset."""
    bench.guard.reset(bench.now)


def pause(bench: Bench, rng: np.random.Generator) -> None:
    """Somebody asks for a pause."""
    bench.guard.pause(bench.now)


def resume(bench: Bench, rng: np.random.Generator) -> None:
    """Somebody ends the pause."""
    bench.guard.resume(bench.now)


def restart(bench: Bench, rng: np.random.Generator) -> None:
    """The guard is deactivated and activated again."""
    last = bench.guard.deactivate(bench.now)
    if last is not None:
        bench.auditor.command(last)
        bench.told = last
    bench.guard.activate(bench.now)


def clock_back(bench: Bench, rng: np.random.Generator) -> None:
    """The clock is set back; the arm goes on as it was told."""
    jump = int(rng.integers(1, 3000)) * MS
    bench.now -= jump
    if bench.told is not None:  # the arm's controller does not notice
        bench.told = dataclasses.replace(bench.told, stamp_ns=bench.told.stamp_ns - jump)
    bench.tick()


def started_over(bench: Bench, rng: np.random.Generator) -> None:
    """A simulation begins anew: the clock is set back, and the arm stands somewhere else and was told nothing.

    Not again before the guard has said something: a second one could put the arm beside its old place by chance.
    """
    if bench.told is not None and bench.told.times_ns[-1] == _STANDING:
        return
    bench.now -= int(rng.integers(1000, 4000)) * MS  # further than the guard may be held up: it shall notice
    limits, joint = bench.limits, rng.integers(len(bench.arm))
    bench.arm = np.clip(bench.arm, limits.lower, limits.upper)
    bench.arm[joint] += 0.5 if 2 * bench.arm[joint] < limits.lower[joint] + limits.upper[joint] else -0.5
    told, bench.told = bench.told, None
    if told is not None:  # a command that lets it stand there, for the next one to be compared with
        rest, still = np.tile(bench.arm, (2, 1)), np.zeros((2, len(bench.arm)))
        span = np.array([0, _STANDING])
        stands = dataclasses.replace(
            told, stamp_ns=bench.now, times_ns=span, positions=rest, velocities=still, accelerations=still
        )
        bench.auditor.command(stands)  # as one that continues nothing
        bench.told = stands


def blocked_arm(bench: Bench, rng: np.random.Generator) -> None:
    """The arm stops following, or follows again."""
    bench.follows = not bench.follows


def foreign_hand(bench: Bench, rng: np.random.Generator) -> None:
    """Somebody moves the arm a little; a robot that stands takes that, one that moves is disturbed by it."""
    bench.arm = bench.arm + rng.normal(0, 0.05, len(bench.arm))


def clock_forward(bench: Bench, rng: np.random.Generator) -> None:
    """The guard is held up for up to 0.2 s."""
    jump = int(rng.integers(1, 3000)) * MS
    bench.pass_time(min(jump // MS, 200))


EVENTS = (
    nothing,
    poisoned_state,
    silent_robot,
    stop,
    reset,
    pause,
    resume,
    restart,
    clock_back,
    clock_forward,
)

DISTURBANCES = (blocked_arm, foreign_hand, started_over)
"""Events after which the arm is no longer where it was told to be."""
