"""What the guard promises of an emergency stop on a topic, of alarms, and of limits that change."""

from __future__ import annotations

import numpy as np
import pytest

from cosmos3_ros.guard.checks import Acceptance
from cosmos3_ros.guard.guard import GuardState
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guard.reasons import Reason, reject

MS = 1_000_000


@pytest.fixture
def guarded(make_bench):
    """A bench whose guard has an emergency stop that must report at least every 200 ms."""
    return make_bench(emergency_stop=True, emergency_stop_max_age_ns=200 * MS)


def run_with_reports(bench, ms, pressed=False):
    """Let time pass while the emergency stop reports every 10 ms."""
    for _ in range(ms // 10):
        bench.guard.on_emergency_stop(pressed, bench.now)
        bench.run(10)


def in_motion(bench):
    bench.guard.on_emergency_stop(False, bench.now)
    verdict = bench.send(bench.wave())
    assert isinstance(verdict, Acceptance), verdict
    run_with_reports(bench, 600)
    assert bench.guard.state is GuardState.TRACKING
    assert bench.speed > 0.01
    return bench


def test_before_an_emergency_stop_was_heard_of_no_chunk_is_accepted(guarded):
    assert guarded.send(guarded.wave()).reason is Reason.EMERGENCY_STOP
    assert guarded.guard.state is GuardState.WAITING, 'nothing is latched by that'
    guarded.guard.on_emergency_stop(False, guarded.now)
    assert isinstance(guarded.send(guarded.wave()), Acceptance)


def test_a_pressed_emergency_stop_brakes_with_the_next_tick_and_latches(guarded):
    bench = in_motion(guarded)
    bench.guard.on_emergency_stop(True, bench.now)
    assert bench.guard.state is GuardState.FAULT
    assert bench.guard.cause.reason is Reason.EMERGENCY_STOP
    speeds = np.abs(bench.tick().velocities).max(axis=1)
    assert (np.diff(speeds[3:]) <= 1e-9).all(), 'from the first tick on it only decelerates'
    run_with_reports(bench, 1500, pressed=True)
    bench.auditor.trace(bench.trace)
    assert bench.speed < 1e-9


def test_a_reset_is_refused_while_the_emergency_stop_is_pressed_and_says_so(guarded):
    bench = in_motion(guarded)
    run_with_reports(bench, 1500, pressed=True)
    answer = bench.guard.reset(bench.now)
    assert not answer.ok
    run_with_reports(bench, 1000)
    assert bench.guard.state is GuardState.FAULT, 'to release it is not a reset'
    assert bench.guard.reset(bench.now).ok


def test_the_refusal_names_the_emergency_stop_even_when_the_cool_down_is_over(make_bench):
    bench = make_bench(emergency_stop=True, reset_cooldown_ns=0)
    bench.guard.on_emergency_stop(True, bench.now)
    answer = bench.guard.reset(bench.now)
    assert not answer.ok
    assert 'the emergency stop is pressed' in answer.text


@pytest.mark.parametrize('moving', [True, False])
def test_silence_of_a_supervised_emergency_stop_latches(guarded, moving):
    bench = in_motion(guarded) if moving else guarded
    bench.guard.on_emergency_stop(False, bench.now)
    bench.run(200)
    assert bench.guard.state is not GuardState.FAULT
    bench.run(20)
    assert bench.guard.state is GuardState.FAULT
    assert bench.guard.cause.reason is Reason.EMERGENCY_STOP
    assert 'silent for 0.2' in bench.guard.cause.text
    bench.run(1500)
    assert not bench.guard.reset(bench.now).ok


def test_an_emergency_stop_that_nobody_supervises_may_be_silent(make_bench):
    bench = make_bench(emergency_stop=True)
    bench.guard.on_emergency_stop(False, bench.now)
    bench.run(5000)
    assert isinstance(bench.send(bench.wave()), Acceptance)


def test_the_loss_of_its_publisher_latches_until_it_reports_again(guarded):
    bench = in_motion(guarded)
    bench.guard.on_emergency_stop_lost(reject(Reason.LIVELINESS_LOST, '/estop'), bench.now)
    assert bench.guard.cause.reason is Reason.LIVELINESS_LOST
    bench.run(1500)
    assert not bench.guard.reset(bench.now).ok
    run_with_reports(bench, 1000)
    assert bench.guard.reset(bench.now).ok


def test_an_emergency_stop_pressed_before_activation_latches_on_activation(make_bench):
    bench = make_bench(emergency_stop=True, activate=False)
    bench.guard.on_emergency_stop(True, bench.now)
    assert bench.guard.state is GuardState.INACTIVE
    bench.guard.activate(bench.now)
    assert bench.guard.state is GuardState.FAULT


def test_a_clock_set_back_leaves_a_pressed_emergency_stop_pressed(guarded):
    bench = guarded
    bench.guard.on_emergency_stop(True, bench.now)
    bench.now -= 10**12
    bench.report()
    assert bench.guard.obstacle(bench.now).reason is Reason.EMERGENCY_STOP
    assert not bench.guard.reset(bench.now + 10**10).ok


def test_an_alarm_brakes_is_named_and_is_over_when_it_is_lifted(make_bench):
    bench = make_bench()
    assert isinstance(bench.send(bench.wave()), Acceptance)
    bench.run(600)
    bench.guard.on_alarm('/policy/status', reject(Reason.DEADLINE_MISSED, '/policy/status'), bench.now)
    bench.run(10)
    assert bench.guard.state is GuardState.BRAKING
    assert bench.guard.cause.reason is Reason.DEADLINE_MISSED
    bench.until_quiet()
    bench.report()
    assert bench.send(bench.wave()).reason is Reason.DEADLINE_MISSED
    bench.guard.on_alarm('/policy/status', None, bench.now)
    assert isinstance(bench.send(bench.wave()), Acceptance)


def test_limits_change_while_the_arm_rests_and_hold_from_then_on(make_bench):
    bench = make_bench()
    assert isinstance(bench.send(bench.wave()), Acceptance)
    bench.run(600)
    slow = load_limits('panda', scale=0.01)
    refused = bench.guard.change_limits(slow, bench.now)
    assert not refused.ok
    assert 'moves' in refused.text
    bench.until_quiet()
    bench.report()
    assert bench.guard.change_limits(slow, bench.now).ok
    assert bench.send(bench.wave()).reason in (Reason.VELOCITY_LIMIT, Reason.ACCELERATION_LIMIT, Reason.JERK_LIMIT)
    assert bench.guard.change_limits(load_limits('panda'), bench.now).ok
    assert isinstance(bench.send(bench.wave()), Acceptance)
    bench.run(600)
    bench.auditor.trace(bench.trace)


def test_limits_of_other_joints_are_refused(bench):
    other = bench.limits.for_joints(tuple(reversed(bench.limits.joint_names)))
    assert not bench.guard.change_limits(other, bench.now).ok
