"""Every tolerance and time-out of the guard, with its reason. Times are integer nanoseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from engine.errors import InvalidInput, Problem

_MS = 1_000_000
ON_STOP = ('latch', 'hold')
ON_UNKNOWN = ('ignore', 'slow', 'stop')


class OptionsError(InvalidInput):
    """Options of the guard are out of range or contradict each other; every fault is listed."""


@dataclass(frozen=True)
class CheckOptions:
    """Tolerances of the judgement of a chunk.

    Attributes:
        start_jump_rad: Distance allowed between row 0 and the measured position at the observation, for an arm at rest.
        tracking_lag_ns: How far the arm may lag behind its command; widens `start_jump_rad` by measured speed times
            this.
        splice_jump_rad: Distance allowed between the motion in progress and the chunk where it takes over. 0.2 rad is
            the largest step that the DROID runtime lets a joint make.
        blend_rows: Lengths of the fade, in rows, tried in this order; the first that keeps all limits is used.
        max_age_ns: Oldest observation a chunk may stem from when it arrives.
        future_tolerance_ns: How far ahead of the clock a stamp may lie (clocks of two machines differ).
        replay_from_rest: Whether an arm that has been at rest since the observation plays a late chunk from its first
            row instead of dropping the rows already past. For hosts whose inference takes longer than the rows it
            yields.
        slowest_pace: Share of its own speed down to which a chunk that is too fast is slowed, along the same path;
            1 means that it is rejected instead.
    """

    start_jump_rad: float = 0.05
    tracking_lag_ns: int = 150 * _MS
    splice_jump_rad: float = 0.2
    blend_rows: tuple[int, ...] = (3, 6, 12)
    max_age_ns: int = 2000 * _MS
    future_tolerance_ns: int = 50 * _MS
    replay_from_rest: bool = False
    slowest_pace: float = 1.0

    def __post_init__(self) -> None:
        problems = _not_positive(self, ('start_jump_rad', 'splice_jump_rad', 'max_age_ns'))
        problems += _negative(self, ('tracking_lag_ns', 'future_tolerance_ns'))
        rows = self.blend_rows
        if not rows or any(r < 1 for r in rows) or list(rows) != sorted(set(rows)):
            problems.append(Problem('blend_rows', 'not usable', str(rows), 'rising whole numbers >= 1'))
        if not 0.0 < self.slowest_pace <= 1.0:
            problems.append(Problem('slowest_pace', 'out of range', str(self.slowest_pace), '0 < pace <= 1'))
        if problems:
            raise OptionsError('check options', problems)


@dataclass(frozen=True)
class VerdictOptions:
    """What the guard makes of verdicts of imagination. None of it can make the arm faster, or a check milder.

    Attributes:
        on_stop: What follows a STOP: 'latch', a fault until a person resets it; 'hold', a stop until a later chunk is
            found better, or a new epoch begins.
        slow_pace: Share of its own speed at which a chunk is played at most after a SLOW, 0 < pace < 1.
        on_unknown: What follows when nothing is known of the newest chunks: 'ignore', nothing; 'slow', as after a SLOW;
            'stop', the arm stands until something is known.
        max_age_ns: Oldest observation that a verdict may be about; after this long the last one that said something
            is no knowledge any more.
    """

    on_stop: str = 'latch'
    slow_pace: float = 0.5
    on_unknown: str = 'ignore'
    max_age_ns: int = 2000 * _MS

    def __post_init__(self) -> None:
        problems = _not_positive(self, ('max_age_ns',))
        for name, allowed in (('on_stop', ON_STOP), ('on_unknown', ON_UNKNOWN)):
            value = getattr(self, name)
            if value not in allowed:
                problems.append(Problem(name, 'not usable', str(value), f'one of {", ".join(allowed)}'))
        if not 0.0 < self.slow_pace < 1.0:
            problems.append(Problem('slow_pace', 'out of range', str(self.slow_pace), '0 < pace < 1'))
        if problems:
            raise OptionsError('verdict options', problems)


@dataclass(frozen=True)
class GuardOptions:
    """Rates and time-outs of the guard.

    Attributes:
        period_ns: Control period; also the spacing of the points of a command.
        commit_ns: How much of the motion each command carries before its own braking begins. It bridges late ticks and
            transport; if the guard dies, the arm goes on for at most this long before it brakes.
        brake_ramp_ns: Time in which a comfortable stop builds up its deceleration.
        joint_state_max_age_ns: Oldest joint state with which the arm may move.
        heartbeat_max_age_ns: Longest silence of the policy process; None if no heartbeat is required.
        emergency_stop: Whether an emergency stop must have been heard of before the arm may move.
        emergency_stop_max_age_ns: Longest silence of an emergency stop that was heard of; None if it may be silent.
        sources: Largest age by name of further sources that must be alive for the arm to move.
        tracking_error_rad: Largest distance between commanded and measured position while moving.
        tracking_error_hold_ns: How long that distance may be exceeded before the guard stops.
        reanchor_rad: An arm at rest that is further than this from its last command was moved by somebody else; the
            next motion then starts where it is measured.
        standstill_rad_s: Measured speed below which the arm counts as standing still.
        reset_cooldown_ns: Time after a latched fault during which a reset is refused.
        clock_tolerance_ns: A clock that runs back by more than this has jumped.
        dry_run: Judge every chunk from the measured state, as if nothing had been commanded before: for a guard whose
            commands are not sent.
        checks: Tolerances of the judgement of a chunk.
        verdicts: What is made of verdicts of imagination; None: nobody listens to them.
    """

    period_ns: int = 10 * _MS
    commit_ns: int = 30 * _MS
    brake_ramp_ns: int = 40 * _MS
    joint_state_max_age_ns: int = 100 * _MS
    heartbeat_max_age_ns: int | None = None
    emergency_stop: bool = False
    emergency_stop_max_age_ns: int | None = None
    sources: Mapping[str, int] = field(default_factory=dict)
    tracking_error_rad: float = 0.3
    tracking_error_hold_ns: int = 100 * _MS
    reanchor_rad: float = 0.05
    standstill_rad_s: float = 0.05
    reset_cooldown_ns: int = 500 * _MS
    clock_tolerance_ns: int = 0
    dry_run: bool = False
    checks: CheckOptions = field(default_factory=CheckOptions)
    verdicts: VerdictOptions | None = None

    def __post_init__(self) -> None:
        positive = [f.name for f in fields(self) if f.name.endswith(('_ns', '_rad', '_rad_s'))]
        zero_allowed = ('tracking_error_hold_ns', 'reset_cooldown_ns', 'clock_tolerance_ns')
        problems = _not_positive(self, [name for name in positive if name not in zero_allowed])
        problems += _negative(self, zero_allowed)
        problems += [
            Problem(f'sources.{name}', 'not usable', str(age), 'an age > 0 ns')
            for name, age in self.sources.items()
            if age <= 0
        ]
        if not problems and self.commit_ns < 2 * self.period_ns:
            what = f'shorter than two control periods (period_ns is {self.period_ns})'
            remedy = 'a command must outlast the wait for the next one'
            problems.append(Problem('commit_ns', what, str(self.commit_ns), f'>= {2 * self.period_ns}', remedy))
        if problems:
            raise OptionsError('guard options', problems)


def _not_positive(options: object, names: list[str] | tuple[str, ...]) -> list[Problem]:
    values = [(name, getattr(options, name)) for name in names]
    return [Problem(n, 'out of range', str(v), 'a number > 0') for n, v in values if v is not None and not v > 0]


def _negative(options: object, names: tuple[str, ...]) -> list[Problem]:
    values = [(name, getattr(options, name)) for name in names]
    return [Problem(n, 'out of range', str(v), 'a number >= 0') for n, v in values if not v >= 0]
