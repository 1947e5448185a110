"""What the guard promises, driven through its whole interface with an arm that does what it is told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ruckig import RuckigError

from cosmos3_ros.guard.checks import Acceptance, CheckOptions
from cosmos3_ros.guard.guard import GuardState
from cosmos3_ros.guard.reasons import Reason, Rejection

MS = 1_000_000
STEP = 66_666_667
J2 = 1


def accept(bench, positions, **changes):
    verdict = bench.send(positions, **changes)
    assert isinstance(verdict, Acceptance), verdict
    return verdict


def refused(bench, positions, **changes):
    verdict = bench.send(positions, **changes)
    assert isinstance(verdict, Rejection), verdict
    return verdict


def in_motion(bench, ms=600, **wave):
    accept(bench, bench.wave(**wave))
    bench.run(ms)
    assert bench.guard.state is GuardState.TRACKING
    assert bench.speed > 0.01
    return bench


def came_to_rest(bench):
    """Run until silence; the arm must have decelerated within its limits and stand."""
    left = bench.until_quiet()
    bench.auditor.trace(bench.trace)
    assert bench.speed < 1e-9
    return left


# Playing


def test_nothing_leaves_before_the_first_chunk(bench):
    assert bench.run(500) == []
    assert bench.guard.state is GuardState.WAITING


def test_an_accepted_chunk_moves_the_arm_along_its_rows(bench):
    rows = bench.wave()
    t0 = bench.now
    accept(bench, rows)
    for k in range(30):
        bench.run(((t0 + (k + 1) * STEP - bench.now) // MS) // 10 * 10)
        if k > 4:
            assert np.abs(bench.told.positions[0] - rows[k]).max() < 0.01
    bench.auditor.trace(bench.trace)


def test_every_command_begins_now_and_ends_at_rest_after_a_stop(bench):
    in_motion(bench)
    command = bench.tick()
    assert command.stamp_ns == bench.now
    assert command.times_ns[0] == 0
    assert not command.velocities[-1].any()
    assert np.abs(command.velocities[0]).max() > 0.01


def test_if_the_guard_dies_the_arm_stops_by_what_it_has_been_told(bench):
    in_motion(bench)
    last = bench.told
    bench.pass_time(1000)
    np.testing.assert_allclose(bench.arm, last.positions[-1], atol=1e-12)
    assert last.times_ns[-1] < 400 * MS
    bench.auditor.trace(bench.trace)


def test_permuted_joint_names_move_the_same_joints(make_bench):
    straight, turned = make_bench(), make_bench()
    rows = straight.wave()
    order = [3, 0, 6, 2, 1, 5, 4]
    accept(straight, rows)
    accept(turned, rows[:, order], joint_names=tuple(turned.limits.joint_names[i] for i in order))
    for one, other in zip(straight.run(1000), turned.run(1000), strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)


def test_joint_states_may_come_permuted_and_with_joints_of_others(bench):
    names = (*bench.limits.joint_names[::-1], 'panda_finger_joint1')
    bench.pass_time(10)
    assert bench.guard.on_joint_state(bench.now, bench.now, names, [*bench.arm[::-1], 0.04]) is None
    accept(bench, bench.wave())


def test_replanning_joins_chunks_without_a_step(bench):
    """Every 0.5 s a new chunk, 0.2 s old on arrival, of a policy that always wants the same wave."""
    long = bench.wave(rows=200)
    t0 = bench.now
    for start in range(0, 130, 8):
        stamp = t0 + start * STEP
        bench.run(max(0, (stamp + 200 * MS - bench.now) // MS // 10 * 10))
        accept(bench, long[start : start + 32], stamp_ns=stamp)
    bench.run(500)
    bench.auditor.trace(bench.trace)
    assert bench.guard.statistics().largest_splice_jump < 0.02
    assert bench.guard.statistics().stops == {}


def test_rows_already_past_are_not_played(bench):
    rows = bench.wave(amplitude=0.05)
    stamp = bench.now
    bench.run(400)
    verdict = accept(bench, rows, stamp_ns=stamp)
    assert verdict.rows_dropped == 6
    bench.run(600)
    assert np.abs(bench.told.positions[0] - rows[14]).max() < 0.005


def test_an_arm_at_rest_may_play_a_late_chunk_from_its_first_row(make_bench):
    bench = make_bench(checks=CheckOptions(replay_from_rest=True))
    rows, stamp = bench.wave(), bench.now
    bench.run(1500)
    verdict = accept(bench, rows, stamp_ns=stamp)
    assert verdict.rows_dropped == 0
    start = bench.now + 20 * MS
    bench.run(1000)
    k = (bench.now - start) // STEP - 1
    assert np.abs(bench.told.positions[0] - rows[k]).max() < 0.02


FINGER = ('panda_finger_joint1',)


def test_the_gripper_follows_the_row_being_approached(bench):
    gripper = np.where(np.arange(32) < 10, 0.0, 1.0)
    t0 = bench.now
    accept(bench, bench.wave(), gripper=gripper[:, None], gripper_names=FINGER)
    for command in bench.run(1500)[5:]:
        assert command.gripper == ((0.0,) if command.stamp_ns <= t0 + 10 * STEP else (1.0,))


def test_a_gripper_beyond_its_travel_is_open_or_closed(bench):
    gripper = np.where(np.arange(32) < 10, -0.02, 1.03)[:, None]
    accept(bench, bench.wave(), gripper=gripper, gripper_names=FINGER)
    assert {c.gripper for c in bench.run(1500)[5:]} == {(0.0,), (1.0,)}


def test_without_a_gripper_in_the_chunk_the_gripper_is_left_alone(bench):
    accept(bench, bench.wave())
    assert {c.gripper for c in bench.run(500)} == {None}


def test_each_of_two_grippers_follows_its_own_column_whatever_the_order_in_the_chunk(bench):
    bench.guard.gripper_names = ('left', 'right')
    columns = np.column_stack([np.linspace(0, 1, 32), np.where(np.arange(32) < 10, 0.0, 1.0)])
    accept(bench, bench.wave(), gripper=columns, gripper_names=('right', 'left'))
    for command in bench.run(1500)[5:]:
        left, right = command.gripper
        assert left in (0.0, 1.0)
        assert right in columns[:, 0]
    assert (left, right > 0.5) == (1.0, True)


def test_reduced_speed_holds_for_every_command(make_bench, panda):
    bench = make_bench(limits=panda.scaled(0.1))
    accept(bench, bench.wave(amplitude=0.06))
    bench.run(1000)
    came_to_rest(bench)  # the auditor judges by the reduced limits


# Silence and staleness


def test_at_the_end_of_a_chunk_the_arm_decelerates_once_and_then_there_is_silence(bench):
    in_motion(bench, rows=20)
    left = came_to_rest(bench)
    states = [c.state for c in left]
    assert states.count(GuardState.HOLDING) == 1
    assert states[-1] is GuardState.HOLDING
    assert left[-1].reason is Reason.STARVED
    assert bench.run(500) == []
    assert bench.guard.state is GuardState.HOLDING
    assert bench.guard.statistics().stops == {Reason.STARVED: 1}


def test_after_starving_the_next_chunk_goes_on_from_where_the_arm_stands(bench):
    in_motion(bench, rows=20)
    came_to_rest(bench)
    accept(bench, bench.wave(amplitude=-0.1))
    bench.run(800)
    assert bench.guard.state is GuardState.TRACKING
    bench.auditor.trace(bench.trace)


def test_a_chunk_that_comes_while_braking_is_joined_to_the_braking_motion(bench):
    in_motion(bench, rows=20)
    stamp, state = None, None
    for _ in range(200):
        bench.run(10)
        if bench.guard.state is GuardState.BRAKING:
            stamp, state = bench.now, bench.told
            break
    speed = np.abs(state.velocities[0]).max()
    assert speed > 0.01
    accept(bench, bench.arm + np.zeros((32, 7)), stamp_ns=stamp)
    bench.run(500)
    bench.auditor.trace(bench.trace)
    assert bench.guard.state is GuardState.TRACKING


def test_stale_joint_states_stop_the_arm_smoothly_and_say_so(bench):
    in_motion(bench)
    bench.reports = False
    left = came_to_rest(bench)
    assert left[-1].reason is Reason.STALE_JOINT_STATE
    assert bench.guard.state is GuardState.HOLDING
    assert bench.guard.cause.text.startswith('STALE_JOINT_STATE: age of the joint state 0.1100 s, limit 0.1000 s')


def test_chunks_are_refused_while_joint_states_are_stale_and_accepted_when_they_return(bench):
    bench.reports = False
    bench.run(200)
    verdict = refused(bench, bench.wave())
    assert verdict.text == 'STALE_JOINT_STATE: age of the joint state 0.2000 s, limit 0.1000 s'
    bench.report()
    accept(bench, bench.wave())


def test_before_any_joint_state_no_chunk_is_accepted(make_bench):
    bench = make_bench(activate=False)
    bench.guard.activate(bench.now)
    assert refused(bench, bench.wave()).text == 'STALE_JOINT_STATE: no joint state yet'


def test_not_a_number_in_a_joint_state_counts_as_not_received(bench):
    in_motion(bench)
    bench.reports = False
    for _ in range(15):
        bench.pass_time(10)
        poisoned = bench.arm.copy()
        poisoned[4] = np.nan
        verdict = bench.guard.on_joint_state(bench.now, bench.now, bench.limits.joint_names, poisoned)
        assert verdict.text == 'INVALID_JOINT_STATE: panda_joint5: position is nan'
        bench.tick()
    assert bench.guard.state is GuardState.BRAKING
    assert bench.guard.cause.reason is Reason.STALE_JOINT_STATE
    assert 'panda_joint5: position is nan' in bench.guard.cause.text
    came_to_rest(bench)
    assert bench.guard.statistics().discarded_joint_states == {Reason.INVALID_JOINT_STATE: 15}


@pytest.mark.parametrize(
    ('names', 'positions', 'ahead', 'text'),
    [
        (slice(0, 6), 6, 0, 'MISSING_JOINT: panda_joint7: joint state lacks: panda_joint7'),
        (slice(0, 7), 6, 0, 'INVALID_JOINT_STATE: 7 names but 6 positions'),
        (slice(0, 7), 7, 80, 'INVALID_JOINT_STATE: stamp ahead of the clock by 0.0800 s, limit 0.0500 s'),
    ],
)
def test_an_unusable_joint_state_is_refused_with_its_reason(bench, names, positions, ahead, text):
    verdict = bench.guard.on_joint_state(
        bench.now + ahead * MS, bench.now, bench.limits.joint_names[names], bench.arm[:positions]
    )
    assert verdict.text == text


def test_text_in_a_joint_state_is_refused_without_an_exception(bench):
    bench.pass_time(1)
    verdict = bench.guard.on_joint_state(bench.now, bench.now, bench.limits.joint_names, ['x'] * 7)
    assert verdict.reason is Reason.INVALID_JOINT_STATE


def test_an_overtaken_joint_state_does_not_replace_a_newer_one(bench):
    bench.pass_time(50)
    bench.report()
    old = np.full(7, 0.3)
    assert bench.guard.on_joint_state(bench.now - 30 * MS, bench.now, bench.limits.joint_names, old) is None
    accept(bench, bench.wave())


def test_velocities_that_are_not_numbers_are_taken_from_positions(bench):
    for _ in range(5):
        bench.pass_time(10)
        verdict = bench.guard.on_joint_state(
            bench.now, bench.now, bench.limits.joint_names, bench.arm, np.full(7, np.nan)
        )
        assert verdict is None
    accept(bench, bench.wave())


def test_a_lost_heartbeat_stops_the_arm(make_bench):
    bench = make_bench(heartbeat_max_age_ns=500 * MS)
    assert refused(bench, bench.wave()).text == 'HEARTBEAT_LOST: no heartbeat yet'
    bench.guard.on_heartbeat(bench.now)
    in_motion(bench, ms=400)
    left = came_to_rest(bench)
    assert left[-1].reason is Reason.HEARTBEAT_LOST
    assert bench.guard.cause.text == 'HEARTBEAT_LOST: silence for 0.5100 s, limit 0.5000 s'
    bench.guard.on_heartbeat(bench.now)
    accept(bench, bench.wave())


def test_a_required_source_that_stops_is_named_and_stops_the_arm(make_bench):
    bench = make_bench(sources={'wrist': 250 * MS})
    assert refused(bench, bench.wave()).text == "STALE_SOURCE: nothing yet from 'wrist'"
    bench.guard.on_source('wrist', bench.now, bench.now)
    accept(bench, bench.wave())
    left = came_to_rest(bench)
    assert left[-1].reason is Reason.STALE_SOURCE
    assert bench.guard.cause.text == "STALE_SOURCE: age of 'wrist' 0.2600 s, limit 0.2500 s"


def test_a_source_stamped_ahead_of_the_clock_does_not_stay_fresh_for_ever(make_bench):
    bench = make_bench(sources={'wrist': 250 * MS})
    bench.guard.on_source('wrist', bench.now + 10**12, bench.now)
    bench.run(300)
    assert refused(bench, bench.wave()).reason is Reason.STALE_SOURCE


# Order in time


def test_chunks_of_an_older_epoch_repeated_and_overtaken_ones_are_refused(bench):
    epoch = bench.guard.epoch
    accept(bench, bench.wave(), sequence=10)
    bench.run(50)
    here = bench.wave(start=bench.arm)
    assert refused(bench, here, sequence=10).reason is Reason.CHUNK_DUPLICATE
    assert refused(bench, here, sequence=9).reason is Reason.CHUNK_OUT_OF_ORDER
    assert refused(bench, here, epoch=epoch - 1, sequence=11).reason is Reason.CHUNK_STALE_EPOCH
    accept(bench, here, sequence=11)
    accept(bench, here, epoch=epoch + 5, sequence=1)
    assert refused(bench, here, epoch=epoch + 4, sequence=12).reason is Reason.CHUNK_STALE_EPOCH


def test_a_refused_chunk_is_not_accepted_when_it_is_sent_again(bench):
    jump = bench.arm + np.full((32, 7), 0.1)
    assert refused(bench, jump, sequence=10).reason is Reason.START_JUMP
    assert refused(bench, bench.wave(), sequence=10).reason is Reason.CHUNK_DUPLICATE


def test_garbage_does_not_use_up_sequence_numbers(bench):
    refused(bench, np.full((32, 7), np.nan), sequence=2**40)
    refused(bench, bench.wave(), sequence=2**40, stamp_ns=bench.now + 10**12)
    accept(bench, bench.wave(), sequence=1)


def test_a_rejected_chunk_leaves_the_motion_in_progress_untouched(make_bench):
    bench, undisturbed = make_bench(), make_bench()
    for one in (bench, undisturbed):
        accept(one, one.wave())
        one.run(300)
    jump = bench.arm + np.full((32, 7), 0.1)
    assert refused(bench, jump).reason is Reason.START_JUMP
    for one, other in zip(bench.run(600), undisturbed.run(600), strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)


def test_a_late_tick_is_survived_and_the_chunk_is_rejoined(bench):
    in_motion(bench)
    bench.pass_time(90)  # no tick: the arm has begun to brake by what it was told
    bench.report()
    bench.tick()
    assert bench.guard.state is GuardState.TRACKING
    bench.run(500)
    bench.auditor.trace(bench.trace)
    assert bench.guard.statistics().stops == {Reason.TICK_LATE: 1}


def test_a_very_late_tick_leaves_the_arm_at_rest_and_the_rest_of_the_chunk_is_joined_if_it_is_near(bench):
    in_motion(bench, amplitude=0.05)
    bench.pass_time(600)
    bench.report()
    bench.run(500)
    bench.auditor.trace(bench.trace)
    assert bench.guard.state in (GuardState.TRACKING, GuardState.HOLDING)


def test_a_late_tick_after_which_the_chunk_is_out_of_reach_ends_in_a_stop(bench):
    in_motion(bench, amplitude=0.8)
    bench.pass_time(400)
    bench.report()
    bench.tick()
    assert bench.guard.cause.reason is Reason.TICK_LATE
    came_to_rest(bench)
    assert bench.guard.state is GuardState.HOLDING


def test_a_tick_after_the_end_of_the_chunk_is_a_starved_one(bench):
    in_motion(bench, rows=12, ms=400)
    bench.pass_time(1000)
    bench.report()
    came_to_rest(bench)
    assert bench.guard.cause.reason is Reason.STARVED


def test_a_clock_that_jumps_back_stops_the_arm_and_forgets_everything(bench):
    in_motion(bench)
    epoch = bench.guard.epoch
    before = bench.told
    bench.now -= 5_000 * MS
    bench.told = dataclasses.replace(before, stamp_ns=bench.now - 10 * MS)  # the arm's controller keeps its own time
    bench.report()
    command = bench.tick()
    assert command.reason is Reason.CLOCK_JUMP
    assert bench.guard.state is GuardState.BRAKING
    assert bench.guard.epoch == epoch + 1
    assert refused(bench, bench.wave(), epoch=epoch).reason is Reason.CHUNK_STALE_EPOCH
    bench.until_quiet()
    assert bench.guard.state is GuardState.HOLDING
    assert 'ran backwards by 5.0' in bench.guard.cause.text
    accept(bench, bench.wave())


def test_a_clock_that_jumps_back_before_a_motion_begins_leaves_the_arm_where_it_stands(bench):
    accept(bench, bench.wave(amplitude=0.8))
    bench.run(10)
    stands = bench.arm.copy()
    bench.now -= 5_000 * MS
    bench.report()
    bench.until_quiet()
    np.testing.assert_allclose(bench.commands[-1].positions[-1], stands, atol=1e-3)
    assert bench.guard.state is GuardState.HOLDING


def test_after_a_clock_that_jumped_back_nothing_is_said_until_the_arm_was_measured_again(bench):
    in_motion(bench)
    bench.now -= 5_000 * MS
    assert bench.tick() is None
    assert bench.guard.state is GuardState.BRAKING
    assert 'ran backwards by 5.0' in bench.guard.cause.text
    bench.reports = False
    assert bench.run(2000) == []
    assert bench.guard.state is GuardState.HOLDING


@pytest.mark.parametrize('latched', [False, True], ids=['braking', 'fault'])
def test_a_simulation_that_started_over_in_the_middle_of_a_motion_gets_no_command_for_the_old_place(bench, latched):
    in_motion(bench)
    if latched:
        bench.guard.request_stop('somebody', bench.now)
    bench.now, bench.told = 0, None
    bench.tick()
    bench.arm = bench.arm - 0.15
    assert bench.run(1000) == []
    assert bench.guard.state is (GuardState.FAULT if latched else GuardState.HOLDING)
    if latched:
        assert bench.guard.reset(bench.now).ok
    accept(bench, bench.wave())
    first = bench.run(100)[0]
    np.testing.assert_allclose(first.positions[0], bench.arm, atol=0.01)


def test_no_chunk_begins_before_a_stop_from_before_the_jump_is_over_where_the_arm_is_elsewhere(bench):
    in_motion(bench)
    bench.now -= 5_000 * MS
    bench.arm, bench.told = bench.arm - 0.15, None
    bench.report()
    assert refused(bench, bench.wave()).reason is Reason.CLOCK_JUMP
    assert bench.run(1000) == []
    accept(bench, bench.wave())


def test_a_guard_switched_off_right_after_its_clock_jumped_says_nothing_more(bench):
    in_motion(bench)
    bench.now -= 5_000 * MS
    assert bench.guard.deactivate(bench.now) is None
    assert bench.guard.activate(bench.now).ok
    assert bench.run(100) == []


def test_a_clock_that_jumps_back_at_rest_needs_fresh_joint_states(bench):
    bench.now -= 5_000 * MS
    assert refused(bench, bench.wave()).text == 'STALE_JOINT_STATE: no joint state yet'


def test_a_clock_that_jumps_forward_makes_everything_stale(bench):
    in_motion(bench)
    bench.now += 3_600_000 * MS
    bench.tick()
    assert bench.guard.state in (GuardState.HOLDING, GuardState.BRAKING)
    bench.tick()
    assert bench.tick() is None


# Taking over and being taken over


def test_a_jump_of_a_tenth_of_a_radian_at_the_start_is_refused(bench):
    rows = bench.wave()
    rows[:, J2] += 0.1
    verdict = refused(bench, rows)
    assert verdict.text.startswith('START_JUMP: panda_joint2, row 0: distance from the measured position 0.1')
    assert bench.run(100) == []


def test_an_arm_that_somebody_moves_is_not_taken_over(bench):
    for _ in range(10):
        bench.pass_time(10)
        bench.arm = bench.arm + 0.002
        bench.report()
    assert (
        refused(bench, bench.wave()).text
        == 'ROBOT_MOVING: panda_joint1: measured speed 0.2000 rad/s, limit 0.0500 rad/s'
    )


def test_an_arm_moved_by_hand_while_holding_is_taken_over_where_it_is(bench):
    in_motion(bench, rows=20)
    came_to_rest(bench)
    bench.told = None
    for _ in range(50):
        bench.pass_time(10)
        bench.arm = bench.arm + 0.004
        bench.report()
    bench.run(50)
    moved = bench.arm.copy()
    accept(bench, bench.wave(amplitude=0.05))
    commands = bench.run(200)
    np.testing.assert_allclose(commands[0].positions[0], moved, atol=1e-9)


def test_a_small_sag_while_holding_does_not_move_the_start(bench):
    in_motion(bench, rows=20)
    left = came_to_rest(bench)
    held = left[-1].positions[-1]
    bench.told = None
    bench.arm = bench.arm - 0.01
    bench.run(50)
    accept(bench, bench.wave(amplitude=0.05))
    np.testing.assert_allclose(bench.run(50)[0].positions[0], held, atol=1e-9)


def stuck(bench):
    """An arm that stays behind its commands until the guard notices."""
    in_motion(bench, ms=100, amplitude=0.8, joints=(J2,))
    bench.follows = False
    for _ in range(300):
        bench.run(10)
        if bench.guard.state is GuardState.FAULT:
            return


def test_an_arm_that_does_not_follow_is_stopped_and_latched(bench):
    stuck(bench)
    assert bench.guard.cause.reason is Reason.TRACKING_ERROR
    assert bench.guard.cause.joint == 'panda_joint2'
    assert bench.guard.cause.value > bench.guard.cause.limit == 0.3
    left = bench.until_quiet()
    assert left[-1].state is GuardState.FAULT


def test_after_a_reset_the_motion_starts_where_the_arm_really_is(bench):
    stuck(bench)
    bench.until_quiet()
    where, bench.told = bench.arm.copy(), None
    bench.run(600)
    assert bench.guard.reset(bench.now).ok
    bench.follows = True
    accept(bench, bench.wave(amplitude=0.05))
    np.testing.assert_allclose(bench.run(50)[0].positions[0], where, atol=1e-9)


# Stops, faults, resets


def test_a_requested_stop_decelerates_latches_and_says_who_asked(bench):
    in_motion(bench)
    bench.guard.request_stop('emergency stop pressed', bench.now)
    assert bench.guard.state is GuardState.FAULT
    left = came_to_rest(bench)
    assert {c.state for c in left} == {GuardState.FAULT}
    assert bench.guard.cause.text == 'STOP_REQUESTED: emergency stop pressed'
    assert refused(bench, bench.wave()).text == 'FAULT_LATCHED: STOP_REQUESTED: emergency stop pressed'
    assert bench.run(300) == []


def test_a_stop_begins_with_the_next_command(bench):
    in_motion(bench, amplitude=0.8)
    bench.guard.request_stop('test', bench.now)
    bench.pass_time(10)
    command = bench.tick()
    speeds = np.linalg.norm(command.velocities, axis=1)
    assert (np.diff(speeds[2:]) <= 1e-9).all(), 'nothing but deceleration is left, once it is built up'


def test_a_reset_too_early_is_refused_with_the_time_left(bench):
    in_motion(bench)
    bench.guard.request_stop('test', bench.now)
    bench.run(400)
    answer = bench.guard.reset(bench.now)
    assert not answer.ok
    assert answer.text == 'too early: 0.10 s of the cool-down are left (STOP_REQUESTED: test)'


def test_a_further_stop_request_prolongs_the_cool_down_and_keeps_the_first_cause(bench):
    bench.guard.request_stop('first', bench.now)
    bench.run(400)
    bench.guard.request_stop('second', bench.now)
    bench.run(300)
    answer = bench.guard.reset(bench.now)
    assert not answer.ok
    assert 'first' in answer.text


def test_a_reset_is_refused_without_fresh_joint_states(bench):
    bench.guard.request_stop('test', bench.now)
    bench.reports = False
    bench.run(700)
    assert bench.guard.reset(bench.now).text.startswith('STALE_JOINT_STATE')


def test_a_reset_does_not_wait_for_a_policy_that_a_fault_has_ended(make_bench):
    bench = make_bench(heartbeat_max_age_ns=100 * MS, sources={'a running policy': 100 * MS})
    bench.guard.request_stop('test', bench.now)
    bench.run(700)  # nobody runs a policy meanwhile
    assert bench.guard.reset(bench.now).ok
    assert bench.guard.state is GuardState.WAITING


def test_a_reset_is_refused_while_the_arm_is_braking(make_bench):
    bench = make_bench(reset_cooldown_ns=0)
    in_motion(bench)
    bench.guard.request_stop('test', bench.now)
    bench.run(10)
    assert bench.guard.reset(bench.now).text == 'the robot is still braking'


def test_a_reset_begins_a_new_epoch_and_refuses_chunks_from_before(bench):
    epoch = bench.guard.epoch
    bench.guard.request_stop('test', bench.now)
    bench.run(600)
    assert bench.guard.reset(bench.now).ok
    assert bench.guard.state is GuardState.WAITING
    assert refused(bench, bench.wave(), epoch=epoch).reason is Reason.CHUNK_STALE_EPOCH
    accept(bench, bench.wave())


def test_a_reset_without_a_fault_says_there_is_none(bench):
    assert bench.guard.reset(bench.now).text == 'nothing is latched; the guard is in state WAITING'


def test_a_pause_stops_the_arm_refuses_chunks_and_ends_without_a_reset(bench):
    in_motion(bench)
    bench.guard.pause(bench.now)
    left = came_to_rest(bench)
    assert left[-1].reason is Reason.PAUSED
    assert refused(bench, bench.wave()).reason is Reason.PAUSED
    bench.guard.resume(bench.now)
    accept(bench, bench.wave())


def test_deactivation_hands_out_the_stop_as_its_last_command(bench):
    in_motion(bench)
    bench.pass_time(10)
    last = bench.guard.deactivate(bench.now)
    bench.auditor.command(last)
    assert last.state is GuardState.INACTIVE
    bench.told = last
    bench.pass_time(600)
    bench.auditor.trace(bench.trace)
    np.testing.assert_allclose(bench.arm, last.positions[-1], atol=1e-12)
    assert bench.guard.tick(bench.now) is None


def test_activation_while_the_last_stop_is_still_in_progress_goes_on_with_it(bench):
    in_motion(bench, amplitude=0.8)
    bench.told = bench.guard.deactivate(bench.now)
    bench.run(30)
    assert bench.guard.activate(bench.now).ok
    assert bench.guard.state is GuardState.BRAKING
    accept(bench, bench.arm + np.zeros((32, 7)))
    bench.run(300)
    bench.auditor.trace(bench.trace)


def test_a_guard_that_knows_no_pose_never_commands_one(make_bench):
    """Not even after a clock jump before the first joint state: nothing could be taken for the zero pose."""
    bench = make_bench(activate=False)
    bench.reports = False
    bench.run(50)
    bench.guard.activate(bench.now)
    bench.now -= 1000 * MS
    assert bench.run(200) == []
    bench.guard.request_stop('test', bench.now)
    assert bench.run(200) == []
    assert bench.guard.deactivate(bench.now) is None


def test_deactivation_at_rest_has_nothing_to_say(bench):
    assert bench.guard.deactivate(bench.now) is None
    assert bench.guard.deactivate(bench.now) is None


def test_an_inactive_guard_refuses_chunks_and_commands_nothing(make_bench):
    bench = make_bench(activate=False)
    bench.report()
    assert refused(bench, bench.wave()).text == 'NOT_ACTIVE: The guard is not active.'
    assert bench.run(100) == []


def test_activating_twice_is_refused(bench):
    assert not bench.guard.activate(bench.now).ok


def test_activation_begins_a_new_epoch_and_new_counts(bench):
    accept(bench, bench.wave())
    bench.run(200)
    epoch = bench.guard.epoch
    bench.guard.deactivate(bench.now)
    bench.until_quiet()
    bench.run(500)
    assert bench.guard.activate(bench.now).ok
    assert bench.guard.epoch == epoch + 1
    assert bench.guard.statistics().chunks_received == 0


def test_a_solver_that_fails_leaves_the_arm_to_the_stop_it_already_has(bench, monkeypatch):
    in_motion(bench)

    class Broken:
        def calculate(self, problem, trajectory):
            raise RuckigError('broken')

    monkeypatch.setattr(bench.guard._motion._braker, '_solver', Broken())
    bench.run(10)
    assert bench.guard.state is GuardState.BRAKING
    assert bench.guard.cause.reason is Reason.STOPPING_DISTANCE
    came_to_rest(bench)


def test_a_command_that_fails_the_last_check_does_not_leave_and_latches(bench, monkeypatch):
    in_motion(bench)
    told = bench.told
    sample = bench.guard._motion._executor.sample

    def jumping(times):
        points = sample(times)
        return dataclasses.replace(points, positions=points.positions + 0.01)

    monkeypatch.setattr(bench.guard._motion._executor, 'sample', jumping)
    bench.pass_time(10)
    bench.report()
    assert bench.tick() is None
    assert bench.guard.state is GuardState.FAULT
    assert bench.guard.cause.reason is Reason.OUTPUT_CHECK
    assert bench.told is told
    bench.pass_time(600)
    assert bench.speed < 1e-9
    bench.auditor.trace(bench.trace)


def test_a_stop_near_the_end_of_the_range_stays_inside(make_bench, panda):
    edge = np.array([0.0, 0.0, 0.0, -1.5, 0.0, 1.8, 0.0])
    edge[J2] = panda.soft_upper[J2] - 0.25
    bench = make_bench(home=edge)
    way = (1 - np.cos(np.linspace(0, np.pi, 17)[1:])) / 2 * 0.249
    rows = edge + np.concatenate([way, np.full(16, way[-1])])[:, None] * np.eye(7)[J2]
    for stop_after in range(100, 1100, 90):
        one = make_bench(home=edge)
        accept(one, rows)
        one.run(stop_after)
        one.guard.request_stop('test', one.now)
        came_to_rest(one)
        assert one.arm[J2] < panda.upper[J2]
    assert bench.guard.state is GuardState.WAITING


def test_in_a_dry_run_every_chunk_is_judged_from_where_the_arm_really_is(make_bench):
    bench = make_bench(dry_run=True)
    bench.follows = False
    for _ in range(20):
        accept(bench, bench.wave(amplitude=0.8))
        bench.run(500)
    assert bench.guard.statistics().stops == {}


# Books


def test_statistics_tell_what_happened(bench):
    assert bench.guard.statistics().position_margin.value == np.inf
    accept(bench, bench.wave())
    refused(bench, bench.arm + np.full((32, 7), 0.1))
    bench.run(300)
    bench.until_quiet(4000)
    told = bench.guard.statistics()
    assert (told.chunks_received, told.chunks_accepted) == (2, 1)
    assert told.rejections == {Reason.START_JUMP: 1}
    assert told.stops == {Reason.STARVED: 1}
    assert told.commands == len(bench.commands)
    trace = np.array([c.positions[0] for c in bench.commands])
    closest = np.minimum(trace - bench.limits.lower, bench.limits.upper - trace).min()
    assert told.position_margin.value == pytest.approx(closest, abs=1e-3)
    for margin in (told.velocity_margin, told.acceleration_margin, told.jerk_margin):
        assert 0 < margin.fraction < 1
        assert margin.joint in bench.limits.joint_names
    assert told.observation_ages[0] == pytest.approx(0.02, abs=0.011)
    assert max(told.observation_ages) <= 32 * STEP * 1e-9


def test_every_reason_has_a_number_a_name_and_a_sentence():
    assert len({reason.value for reason in Reason}) == len(Reason)
    assert Reason.NONE == 0
    assert all(reason.sentence.endswith('.') for reason in Reason)
    assert len({reason.sentence for reason in Reason}) == len(Reason)


def test_the_buffer_tells_how_long_the_chunk_still_lasts(bench):
    assert bench.guard.buffer_ns == 0
    accept(bench, bench.wave())
    bench.run(500)
    assert bench.guard.buffer_ns == 32 * STEP - 500 * MS
