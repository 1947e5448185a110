"""A chunk that is too fast is played slower along the same path, or refused; it is never bent."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos3_ros.guard.checks import Acceptance, Observed, SpliceContext, check_chunk
from cosmos3_ros.guard.chunk import Chunk
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guard.motion import JointsState
from cosmos3_ros.guard.options import CheckOptions, OptionsError
from cosmos3_ros.guard.pace import at_pace, paces, rows_pace
from cosmos3_ros.guard.reasons import Reason, Rejection

STEP = 66_666_667
H = STEP * 1e-9
T0 = 1_000_000_000_000
PANDA = load_limits('panda')
HOME = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])
HALF = CheckOptions(slowest_pace=0.5)


def reach(speed, rows=32):
    """Joint 1 from rest to `speed` (rad/s) within half a second, and back to rest."""
    t = np.arange(1, rows + 1) * H
    s = np.clip(t / (rows * H), 0, 1)
    moved = np.repeat(HOME[None], rows, axis=0)
    moved[:, 0] += speed * rows * H / 1.875 * (10 * s**3 - 15 * s**4 + 6 * s**5)  # minimum jerk, peak at the middle
    return moved


def chunk(rows):
    return Chunk(T0, 1, 1, STEP, PANDA.joint_names, rows, np.linspace(0, 1, len(rows)))


def judge(rows, options):
    rest = JointsState.at_rest(HOME)
    context = SpliceContext(T0, T0 + 20_000_000, rest, Observed(HOME, np.zeros(7)), None, 1, None)
    return check_chunk(chunk(rows), PANDA, context, options)


def test_a_chunk_within_the_limits_is_played_at_its_own_pace():
    verdict = judge(reach(1.0), HALF)
    assert isinstance(verdict, Acceptance)
    assert verdict.motion.chunk.pace == 1.0


def test_a_chunk_that_is_too_fast_is_slowed_as_much_as_needed():
    assert judge(reach(2.6, 24), CheckOptions()).reason is Reason.VELOCITY_LIMIT
    verdict = judge(reach(2.6, 24), HALF)
    assert isinstance(verdict, Acceptance)
    assert 0.75 < verdict.motion.chunk.pace < 2.175 / 2.6
    samples = verdict.motion.sample(np.arange(verdict.motion.start_ns, verdict.motion.end_ns, 1_000_000))
    assert np.abs(samples.velocities).max() <= PANDA.velocity[0]
    assert np.abs(samples.velocities[:, 0]).max() > 0.9 * PANDA.velocity[0]


def test_it_passes_through_the_same_points_only_later():
    own, slower = chunk(reach(1.0)), at_pace(chunk(reach(1.0)), 0.5, T0 + 5 * STEP)
    np.testing.assert_array_equal(own.positions, slower.positions)
    assert slower.due_ns(4) == own.due_ns(4) == T0 + 5 * STEP, 'where both coincide'
    assert slower.due_ns(10) - slower.due_ns(4) == 12 * STEP
    assert slower.pace == 0.5


def test_the_gripper_stays_with_its_rows():
    slower = at_pace(chunk(reach(1.0)), 0.5, T0)
    assert slower.row_at(slower.due_ns(7)) == 7


def test_a_chunk_that_would_have_to_be_too_slow_is_refused_with_what_is_wrong_at_its_own_pace():
    verdict = judge(reach(6.0, 10), HALF)
    assert isinstance(verdict, Rejection)
    assert verdict.reason is Reason.VELOCITY_LIMIT
    assert verdict.limit == PANDA.velocity[0]


def test_what_slowness_does_not_mend_is_refused():
    rows = reach(1.0)
    rows[:, 3] = 0.5  # out of range
    assert judge(rows, HALF).reason is Reason.START_JUMP
    rows = reach(1.0)
    rows[5:, 5] += 4.0
    assert judge(rows, HALF).reason is Reason.POSITION_LIMIT


def test_a_start_from_rest_into_full_motion_is_slowed_too():
    running = HOME + np.arange(1, 33)[:, None] * H * np.array([0.55, 0, 0, 0, 0, 0, 0])
    at_once = judge(running, dataclasses.replace(CheckOptions(), blend_rows=(1,)))
    slowed = judge(running, dataclasses.replace(HALF, blend_rows=(1,)))
    assert isinstance(at_once, Rejection)
    assert isinstance(slowed, Acceptance)
    assert slowed.motion.chunk.pace < 1.0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.5, 2.5))
def test_at_the_pace_of_the_rows_their_differences_keep_every_limit(seed, scale):
    rng = np.random.default_rng(seed)
    rows = HOME + np.cumsum(rng.normal(0, 0.03 * scale, (32, 7)), axis=0)
    pace = rows_pace(chunk(rows), PANDA)
    step = H / pace
    for order, limit in enumerate((PANDA.velocity, PANDA.acceleration, PANDA.jerk), start=1):
        assert (np.abs(np.diff(rows, order, axis=0)) / step**order <= limit * (1 + 1e-9)).all()


def test_a_chunk_that_stands_still_has_all_the_room():
    assert rows_pace(chunk(np.repeat(HOME[None], 4, axis=0)), PANDA) == np.inf


@pytest.mark.parametrize('speed', [1.0, 2.3, 3.5])
def test_paces_to_try_fall_and_end_with_the_slowest(speed):
    tried = list(paces(chunk(reach(speed)), PANDA, 0.4))
    assert tried == sorted(tried, reverse=True)
    assert all(0.4 <= pace < 1.0 for pace in tried)
    assert tried[-1] == 0.4


def test_no_pace_is_tried_where_even_the_slowest_is_too_fast():
    assert list(paces(chunk(reach(30.0)), PANDA, 0.4)) == []


@pytest.mark.parametrize('pace', [0.0, -1.0, 1.5, np.nan])
def test_a_slowest_pace_outside_its_range_is_refused(pace):
    with pytest.raises(OptionsError, match='slowest_pace'):
        CheckOptions(slowest_pace=pace)
