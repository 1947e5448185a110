"""Promises of the rows that the next chunk continues."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from cosmos3_ros.continuation import Continuation, Delays, Plan

STEP = 100_000_000
ROWS = np.arange(10.0)[:, None] * [1.0, -2.0]  # row k: (k, -2k), due at (k + 1) steps
PLAN = Plan(1_000 * STEP, STEP, ROWS)


@pytest.fixture
def continuation() -> Continuation:
    made = Continuation()
    made.sent(3, 1, PLAN)
    made.decided(3, 1, accepted=True)
    return made


def test_the_rows_that_will_be_passed_during_the_expected_delay_are_committed(continuation):
    rows = continuation.rows(1_003 * STEP, 0.25, 10)  # 0.25 s and the take-over are three rows
    np.testing.assert_allclose(rows, ROWS[3:6])


def test_between_two_rows_the_plan_is_interpolated(continuation):
    rows = continuation.rows(1_003 * STEP + STEP // 4, 0.1, 10)
    np.testing.assert_allclose(rows, [[3.25, -6.5], [4.25, -8.5]])


def test_a_plan_that_ends_sooner_commits_what_it_has(continuation):
    np.testing.assert_allclose(continuation.rows(1_007 * STEP, 0.5, 10), ROWS[7:])


def test_a_slow_policy_keeps_rows_to_decide(continuation):
    assert len(continuation.rows(1_000 * STEP, 5.0, 10)) == 6


@pytest.mark.parametrize('stamp', [990, 1_011, 5_000])
def test_a_plan_of_another_time_commits_nothing(continuation, stamp):
    assert continuation.rows(stamp * STEP, 0.25, 10) is None


def test_without_a_measured_delay_nothing_is_committed(continuation):
    assert continuation.rows(1_003 * STEP, None, 10) is None


def test_a_rejected_chunk_is_not_continued_and_the_one_before_is():
    c = Continuation()
    assert c.rows(1_003 * STEP, 0.25, 10) is None
    c.sent(3, 1, PLAN)
    assert c.rows(1_003 * STEP, 0.25, 10) is None, 'not decided yet'
    c.decided(3, 1, accepted=True)
    c.sent(3, 2, Plan(1_004 * STEP, STEP, ROWS + 7))
    c.decided(3, 2, accepted=False)
    np.testing.assert_allclose(c.rows(1_003 * STEP, 0.1, 10), ROWS[3:5])


def test_a_decision_about_somebody_elses_chunk_changes_nothing(continuation):
    continuation.decided(9, 9, accepted=True)
    np.testing.assert_allclose(continuation.rows(1_003 * STEP, 0.1, 10), ROWS[3:5])


@pytest.mark.parametrize('what', ['interrupted', 'forget'])
def test_an_arm_that_follows_no_chunk_continues_none(continuation, what):
    getattr(continuation, what)()
    assert continuation.rows(1_003 * STEP, 0.25, 10) is None


def test_waiting_for_a_decision_ends_with_the_decision():
    c = Continuation()
    c.sent(3, 1, PLAN)
    settled = threading.Event()
    waiting = threading.Thread(target=lambda: (c.settle(10.0), settled.set()))
    waiting.start()
    assert not settled.wait(0.05)
    c.decided(3, 1, accepted=True)
    waiting.join(10.0)
    assert settled.is_set()


def test_waiting_for_a_decision_that_never_comes_ends():
    c = Continuation()
    c.sent(3, 1, PLAN)
    c.settle(0.01)
    assert c.rows(1_003 * STEP, 0.25, 10) is None


def test_the_first_delay_of_a_run_counts_until_there_is_another():
    delays = Delays()
    assert delays.expected is None
    delays.add(3.0)  # reads the prompt as well
    assert delays.expected == 3.0
    delays.add(0.2)
    delays.add(0.4)
    delays.add(0.3)
    assert delays.expected == 0.4
    delays.restart()
    assert delays.expected is None


def test_old_delays_are_forgotten():
    delays = Delays()
    for seconds in (1.0, 2.0, *[0.1] * 8):
        delays.add(seconds)
    assert delays.expected == 0.1
