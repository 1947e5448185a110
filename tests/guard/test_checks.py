"""Each rejection names joint, row, value and limit; what is within the limits is accepted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cosmos3_ros.guard.checks import Acceptance, Observed, SpliceContext, check_chunk
from cosmos3_ros.guard.chunk import Chunk
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guard.motion import JointsState, instants, state_at
from cosmos3_ros.guard.options import CheckOptions, GuardOptions, OptionsError
from cosmos3_ros.guard.reasons import Reason
from cosmos3_ros.guard.tracker import Braker

STEP = 66_666_667
H = STEP * 1e-9
T0 = 1_000_000_000_000
HOME = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])
PANDA = load_limits('panda')
J2 = 1


def rest_rows(rows=32):
    return np.repeat(HOME[None], rows, axis=0)


def ramp(joint, speed, rows=32, acceleration=2.0):
    """From rest to a constant speed (rad/s) of one joint."""
    t = np.arange(1, rows + 1) * H
    rising = min(abs(speed) / acceleration, t[-1])
    moved = np.where(t < rising, acceleration * t**2 / 2, acceleration * rising**2 / 2 + abs(speed) * (t - rising))
    result = rest_rows(rows)
    result[:, joint] += np.sign(speed) * moved
    return result


def context(now=T0, state=None, observed=None, **changes):
    state = state or JointsState.at_rest(HOME)
    seen = observed or Observed(HOME, np.zeros(7))
    fields = {
        'now_ns': now,
        'start_ns': now + 20_000_000,
        'state': state,
        'observed': seen,
        'rest_since_ns': None,
        'epoch': 3,
        'last_sequence': 5,
    }
    return SpliceContext(**{**fields, **changes})


def chunk(rows, stamp=T0, epoch=3, sequence=6):
    return Chunk(stamp, epoch, sequence, STEP, PANDA.joint_names, np.asarray(rows, dtype=np.float64), None)


def judge(rows, ctx=None, options=None, limits=PANDA, **fields):
    return check_chunk(chunk(rows, **fields), limits, ctx or context(), options or CheckOptions())


def changed(row, joint, by):
    rows = rest_rows()
    rows[row:, joint] += by
    return rows


def test_standing_still_is_accepted():
    verdict = judge(rest_rows())
    assert isinstance(verdict, Acceptance)
    assert verdict.splice_jump == 0.0
    assert verdict.rows_dropped == 0


def test_a_gentle_motion_is_accepted_with_the_shortest_fade():
    verdict = judge(ramp(J2, 0.5))
    assert isinstance(verdict, Acceptance)
    assert verdict.window_rows == 3


GOLDEN = {
    'stale epoch': (
        {'rows': rest_rows(), 'epoch': 2},
        'CHUNK_STALE_EPOCH: epoch 2, present epoch 3',
    ),
    'duplicate': (
        {'rows': rest_rows(), 'sequence': 5},
        'CHUNK_DUPLICATE: sequence 5, last seen 5',
    ),
    'out of order': (
        {'rows': rest_rows(), 'sequence': 4},
        'CHUNK_OUT_OF_ORDER: sequence 4, last seen 5',
    ),
    'from the future': (
        {'rows': rest_rows(), 'stamp': T0 + 60_000_000},
        'CHUNK_FROM_FUTURE: stamp ahead of the clock by 0.0600 s, limit 0.0500 s',
    ),
    'too old': (
        {'rows': rest_rows(), 'stamp': T0 - 2_100_000_000},
        'CHUNK_EXPIRED: age of its observation 2.1000 s, limit 2.0000 s',
    ),
    'all rows past': (
        {'rows': rest_rows(4), 'stamp': T0 - 300_000_000},
        'CHUNK_EXPIRED: time left after the splice -0.0533 s, limit 0.0667 s',
    ),
    'a jump of 0.1 rad at the start': (
        {'rows': changed(0, J2, 0.1)},
        'START_JUMP: panda_joint2, row 0: distance from the measured position 0.1000 rad, limit 0.0500 rad',
    ),
    'beyond the upper end': (
        {'rows': ramp(5, 1.5, acceleration=10.0)},
        'POSITION_LIMIT: panda_joint6, row 19: position 3.7725 rad, limit 3.7325 rad',
    ),
    'beyond the lower end': (
        {'rows': ramp(3, -0.4)},
        'POSITION_LIMIT: panda_joint4, row 21: position -3.0599 rad, limit -3.0518 rad',
    ),
    'too fast': (
        {'rows': changed(7, 4, 0.2)},
        'VELOCITY_LIMIT: panda_joint5, row 7: speed 3.0000 rad/s, limit 2.6100 rad/s',
    ),
    'too fast backwards': (
        {'rows': changed(7, 4, -0.2)},
        'VELOCITY_LIMIT: panda_joint5, row 7: speed 3.0000 rad/s, limit 2.6100 rad/s',
    ),
    'within the speed but from rest': (
        {'rows': changed(9, J2, 0.04)},
        'ACCELERATION_LIMIT: panda_joint2, row 9: acceleration 9.0000 rad/s^2, limit 7.5000 rad/s^2',
    ),
}


@pytest.mark.parametrize('name', GOLDEN)
def test_each_rejection_names_joint_row_value_and_limit(name):
    fields, text = GOLDEN[name]
    assert judge(**fields).text == text


def test_a_reversal_is_refused_for_its_acceleration():
    rows = ramp(0, 0.8)
    rows[16:] = rows[16] - (rows[16:] - rows[16])
    verdict = judge(rows)
    assert (verdict.reason, verdict.joint, verdict.row) == (Reason.ACCELERATION_LIMIT, 'panda_joint1', 17)


def test_jerk_is_refused_where_its_limit_is_lower_than_what_the_accelerations_allow():
    gentle = dataclasses.replace(PANDA, jerk=np.full(7, 50.0))
    verdict = judge(changed(9, 0, 0.02), limits=gentle)
    expected = 'JERK_LIMIT: panda_joint1, row 9: jerk 67.5000 rad/s^3, limit 50.0000 rad/s^3'
    assert verdict.text == expected


def test_a_chunk_far_from_the_motion_in_progress_is_refused():
    """The first row agrees with what was observed; but the arm has gone elsewhere since."""
    elsewhere = HOME.copy()
    elsewhere[0] += 0.25
    verdict = judge(rest_rows(), context(state=JointsState.at_rest(elsewhere)))
    expected = 'SPLICE_JUMP: panda_joint1, row 0: distance from the commanded position 0.2500 rad, limit 0.2000 rad'
    assert verdict.text == expected


def test_a_start_from_rest_into_full_motion_is_refused_for_the_acceleration_of_the_splice():
    """Speed alone would pass: the rows move evenly at 1.5 rad/s, and the arm stands."""
    rows = HOME + np.arange(0, 8)[:, None] * H * 1.5 * np.eye(7)[J2]
    verdict = judge(rows)
    assert (verdict.reason, verdict.joint) == (Reason.ACCELERATION_LIMIT, 'panda_joint2')
    assert 'acceleration of the splice' in verdict.text
    assert verdict.limit == pytest.approx(0.99 * 7.5)


def test_a_late_chunk_is_joined_with_a_longer_fade_if_the_shortest_is_too_hard():
    rows = ramp(J2, 0.8, rows=20, acceleration=4.0)
    late = context(now=T0 + 200_000_000)
    verdict = judge(rows, late)
    assert isinstance(verdict, Acceptance)
    assert verdict.window_rows > 3
    assert verdict.rows_dropped == 3
    assert isinstance(judge(rows, late, CheckOptions(blend_rows=(3,))), type(judge(rows, epoch=0)))


def test_running_into_the_end_of_the_range_is_refused_although_every_row_is_inside():
    rows = ramp(3, -0.8, rows=11, acceleration=6.0)
    assert rows[:, 3].min() > PANDA.soft_lower[3]
    verdict = judge(rows)
    assert (verdict.reason, verdict.joint, verdict.row) == (Reason.STOPPING_DISTANCE, 'panda_joint4', 10)
    assert verdict.text.startswith('STOPPING_DISTANCE: panda_joint4, row 10: would come to rest at -3.0')
    assert verdict.value < verdict.limit == pytest.approx(-3.0518)


def test_stopping_before_the_end_of_the_range_is_accepted():
    rows = rest_rows(33)
    way = PANDA.soft_lower[3] + 0.001 - HOME[3]
    rows[:, 3] += way * (1 - np.cos(np.linspace(0, np.pi, 34)[1:])) / 2
    assert isinstance(judge(rows), Acceptance)


def test_from_any_instant_of_an_accepted_motion_the_arm_can_stop_within_its_limits():
    rng = np.random.default_rng(1)
    braker = Braker(PANDA, ramp_ns=40_000_000, period_ns=10_000_000)
    accepted = 0
    while accepted < 40:
        target = HOME + rng.uniform(-1, 1, 7) * [0.5, 0.5, 0.5, 0.53, 0.5, 0.5, 0.5]
        rows = HOME + (target - HOME) * (1 - np.cos(np.linspace(0, rng.uniform(2, 4), 25)[1:]))[:, None] / 2
        verdict = judge(rows)
        if not isinstance(verdict, Acceptance):
            continue
        accepted += 1
        for time in instants(verdict.motion.start_ns, verdict.motion.end_ns, 37_000_000).tolist():
            assert braker.brake(state_at(verdict.motion, time), time) is not None


def test_a_moving_arm_may_be_ahead_of_its_observation_by_one_step_and_its_lag():
    speed = 0.6 * np.eye(7)[J2]
    rows = HOME + (np.arange(1, 33)[:, None] * H + 0.15) * speed
    running = JointsState(HOME + 0.17 * speed, speed, np.zeros(7))
    assert isinstance(judge(rows, context(state=running, observed=Observed(HOME, speed))), Acceptance)
    assert judge(rows, context(state=running)).reason is Reason.START_JUMP


def test_an_observation_without_a_remembered_joint_state_is_refused():
    verdict = judge(rest_rows(), dataclasses.replace(context(), observed=None))
    assert verdict.text == 'CHUNK_EXPIRED: no joint state is remembered for the time of its observation'


def test_a_newer_epoch_begins_its_own_sequence():
    assert isinstance(judge(rest_rows(), epoch=4, sequence=1), Acceptance)


def test_clocks_of_two_machines_may_differ_a_little():
    assert isinstance(judge(rest_rows(), stamp=T0 + 40_000_000), Acceptance)


def test_an_arm_inside_the_margin_may_leave_it_inwards_and_not_go_further_out():
    edge = HOME.copy()
    edge[5] = PANDA.upper[5] - 0.005
    here = context(state=JointsState.at_rest(edge), observed=Observed(edge, np.zeros(7)))
    inwards = edge + ramp(5, -0.3) - HOME
    outwards = edge + ramp(5, 0.3) - HOME
    assert isinstance(judge(inwards, here), Acceptance)
    assert judge(outwards, here).reason is Reason.POSITION_LIMIT


def test_reduced_speed_refuses_what_full_speed_accepts():
    rows = ramp(J2, 0.8, rows=20)
    assert isinstance(judge(rows), Acceptance)
    assert judge(rows, limits=PANDA.scaled(0.25)).reason is Reason.VELOCITY_LIMIT


def test_an_arm_at_rest_since_the_observation_may_play_a_late_chunk_from_its_first_row():
    options = CheckOptions(replay_from_rest=True)
    late = context(now=T0 + 1_500_000_000, rest_since_ns=T0 - 1)
    verdict = judge(ramp(J2, 0.5), late, options)
    assert isinstance(verdict, Acceptance)
    assert (verdict.rows_dropped, verdict.motion.end_ns) == (0, late.start_ns + 32 * STEP)
    moved_since = dataclasses.replace(late, rest_since_ns=T0 + 1)
    assert judge(ramp(J2, 0.5), moved_since, options).reason is Reason.SPLICE_JUMP


def test_whatever_is_accepted_is_within_all_limits_in_continuous_time():
    rng = np.random.default_rng(0)
    accepted = 0
    for seed in range(200):
        start = JointsState(HOME, rng.normal(0, 0.2, 7), rng.normal(0, 1.0, 7))
        drift = rng.normal(0, 0.6, 7) * H
        rows = HOME + np.cumsum(drift + rng.normal(0, 0.004, (16, 7)), axis=0)
        verdict = judge(rows, context(state=start), CheckOptions(start_jump_rad=0.2), sequence=6 + seed)
        if not isinstance(verdict, Acceptance):
            continue
        accepted += 1
        motion = verdict.motion
        values = motion.derivatives(np.arange(motion.start_ns, motion.end_ns, 500_000, dtype=np.int64))
        assert (values[:, 0] >= PANDA.lower).all()
        assert (values[:, 0] <= PANDA.upper).all()
        for order, limit in ((1, PANDA.velocity), (2, PANDA.acceleration), (3, PANDA.jerk)):
            assert (np.abs(values[:, order]) <= limit).all()
    assert accepted > 40


@pytest.mark.parametrize(
    ('changes', 'where'),
    [
        ({'start_jump_rad': 0.0}, 'start_jump_rad'),
        ({'splice_jump_rad': -1.0}, 'splice_jump_rad'),
        ({'blend_rows': ()}, 'blend_rows'),
        ({'blend_rows': (6, 3)}, 'blend_rows'),
        ({'blend_rows': (0, 3)}, 'blend_rows'),
        ({'max_age_ns': 0}, 'max_age_ns'),
        ({'future_tolerance_ns': -1}, 'future_tolerance_ns'),
    ],
)
def test_a_tolerance_out_of_range_is_refused_by_name(changes, where):
    with pytest.raises(OptionsError) as error:
        CheckOptions(**changes)
    assert [problem.where for problem in error.value.problems] == [where]


@pytest.mark.parametrize(
    ('changes', 'where'),
    [
        ({'period_ns': 0}, 'period_ns'),
        ({'commit_ns': 15_000_000}, 'commit_ns'),
        ({'heartbeat_max_age_ns': 0}, 'heartbeat_max_age_ns'),
        ({'sources': {'wrist': 0}}, 'sources.wrist'),
        ({'tracking_error_rad': float('nan')}, 'tracking_error_rad'),
        ({'reset_cooldown_ns': -1}, 'reset_cooldown_ns'),
        ({'standstill_rad_s': 0.0}, 'standstill_rad_s'),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(changes, where):
    with pytest.raises(OptionsError) as error:
        GuardOptions(**changes)
    assert [problem.where for problem in error.value.problems] == [where]


def test_all_wrong_options_are_listed_at_once():
    with pytest.raises(OptionsError) as error:
        GuardOptions(period_ns=0, reanchor_rad=-1.0, clock_tolerance_ns=-5)
    assert len(error.value.problems) == 3
