"""Whatever arrives, in whatever order and at whatever time: no command breaks a limit, and each one ends at rest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.hazards import (
    CHUNKS,
    EVENTS,
    MIDDLE,
    MS,
    clock_back,
    gentle,
    jumping,
    late,
    offset,
    rushed,
    swift,
    wandering,
)
from cosmos3_ros.guard.checks import Acceptance, CheckOptions
from cosmos3_ros.guard.guard import GuardState
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guard.reasons import Reason

PANDA = load_limits('panda')

TICKS = st.lists(st.sampled_from([1, 5, 9, 10, 10, 10, 11, 13, 25, 45, 80]), min_size=1, max_size=25)
CHUNK = st.tuples(st.sampled_from(CHUNKS), st.integers(0, 2**32 - 1), TICKS)
EVENT = st.tuples(st.sampled_from(EVENTS), st.integers(0, 2**32 - 1), TICKS)
LIVES = st.lists(st.one_of(CHUNK, CHUNK, CHUNK, EVENT), min_size=1, max_size=25)


def live(bench, life):
    """Let everything happen; the auditor judges each command on its way."""
    for happening, seed, ticks in life:
        rng = np.random.default_rng(seed)
        if happening in CHUNKS:
            rows, changes = happening(bench, rng)
            bench.send(rows, **changes)
        else:
            happening(bench, rng)
        for ms in ticks:
            bench.pass_time(ms)
            if bench.reports:
                bench.report()
            bench.tick()


def judge(bench):
    """The arm's own trace at 1 kHz; a controller's interpolation may overshoot accelerations between two points."""
    bench.run(600)
    assert bench.guard.cause.reason is not Reason.OUTPUT_CHECK, bench.guard.cause
    if len(bench.trace) > 3:
        trace = np.array(bench.trace)
        assert (trace >= PANDA.lower - 1e-4).all()
        assert (trace <= PANDA.upper + 1e-4).all()
        assert (np.abs(np.diff(trace, axis=0)) <= PANDA.velocity * 1e-3 * 1.01).all()
        assert (np.abs(np.diff(trace, 2, axis=0)) <= PANDA.acceleration * 1e-6 * 1.5).all()


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(life=LIVES, replay=st.booleans(), scale=st.sampled_from([1.0, 0.5, 0.1]), slowest=st.sampled_from([1.0, 0.3]))
def test_no_command_ever_breaks_a_limit_and_each_one_ends_at_rest(make_bench, life, replay, scale, slowest):
    checks = CheckOptions(replay_from_rest=replay, start_jump_rad=0.1, slowest_pace=slowest)
    bench = make_bench(limits=PANDA.scaled(scale), home=MIDDLE, reset_cooldown_ns=20 * MS, checks=checks)
    live(bench, life)
    judge(bench)


@pytest.mark.parametrize('seed', range(2))
def test_a_long_life_of_mostly_good_chunks_keeps_every_limit(make_bench, seed):
    """Hypothesis likes short lives; here the arm moves most of the time, often near the ends of its range."""
    rng = np.random.default_rng(seed)
    bench = make_bench(home=MIDDLE, reset_cooldown_ns=20 * MS, checks=CheckOptions(start_jump_rad=0.1))
    accepted = 0
    for _ in range(100):
        happening = rng.choice([gentle, gentle, gentle, swift, rushed, wandering, offset, late, jumping, clock_back])
        life = [(happening, int(rng.integers(2**32)), [10] * int(rng.integers(2, 30)))]
        before = bench.guard.statistics().chunks_accepted
        live(bench, life)
        accepted += bench.guard.statistics().chunks_accepted - before
    judge(bench)
    assert accepted > 30
    assert bench.guard.statistics().largest_splice_jump > 0.02


def test_a_thousand_random_feasible_splices_are_continuous(make_bench):
    """A policy that changes its mind: each chunk begins near the arm and heads elsewhere, some rows late."""
    rng = np.random.default_rng(7)
    bench = make_bench(home=MIDDLE, checks=CheckOptions(start_jump_rad=0.1))
    spliced = 0
    while spliced < 1000:
        target = MIDDLE + rng.uniform(-0.4, 0.4, 7)
        way = (1 - np.cos(np.linspace(0, np.pi, 33)[1:]))[:, None] / 2
        rows = bench.arm + (target - bench.arm) * way * rng.uniform(0.2, 1.0) + rng.normal(0, 0.01, 7)
        verdict = bench.send(rows, stamp_ns=bench.now - int(rng.integers(0, 150)) * MS)
        spliced += isinstance(verdict, Acceptance) and bench.guard.state is GuardState.TRACKING
        bench.run(10 * int(rng.integers(2, 8)))
    bench.auditor.trace(bench.trace)
    assert bench.guard.statistics().largest_splice_jump > 0.02


def test_a_clock_set_back_beside_the_end_of_a_joint_makes_no_command_jump(make_bench):
    """No stop from there fits the limits as they are checked: the arm goes on as it was told, and so must the plan."""
    close = np.array([2.4728, 0.8495, 0.5498, -0.9489, 2.3681, 3.7496, -0.9598])
    bench = make_bench(home=close, period_ns=50 * MS, commit_ns=150 * MS)
    way = (1 - np.cos(np.linspace(0, np.pi, 33)[1:]))[:, None] / 2
    assert isinstance(bench.send(close + (MIDDLE - close) * way * 0.5), Acceptance)
    bench.run(150, period=50)
    before = bench.arm
    clock_back(bench, np.random.default_rng(0))
    bench.run(600, period=50)
    assert np.abs(np.diff(np.array(bench.trace), axis=0)).max() <= PANDA.velocity.max() * 1e-3
    assert np.abs(bench.arm - before).max() < 0.3
