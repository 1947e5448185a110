"""Chunks are played by time, smoothly, and one takes over from another without a jump."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import BSpline

from cosmos3_ros.guard.chunk import Chunk
from cosmos3_ros.guard.executor import ChunkExecutor, ChunkMotion
from cosmos3_ros.guard.motion import Hold, JointsState, instants

STEP = 66_666_667
H = STEP * 1e-9
JOINTS = 7
NAMES = tuple(f'j{i}' for i in range(JOINTS))


def chunk_of(rows, stamp=0):
    return Chunk(stamp, 1, 1, STEP, NAMES, np.asarray(rows, dtype=np.float64), None)


def random_rows(seed, rows=32):
    return np.cumsum(np.random.default_rng(seed).normal(0, 0.01, (rows, JOINTS)), axis=0)


def joined_at(chunk, time, window_rows=3, state=None):
    """A motion that starts where the chunk itself is (or at `state`)."""
    # A fade of one nanosecond is over when the motion begins.
    own = state or ChunkMotion(chunk, time - 1, JointsState.at_rest(np.zeros(JOINTS)), 1).state(time)
    return ChunkMotion(chunk, time, own, window_rows * STEP)


def test_the_motion_is_the_uniform_cubic_b_spline_of_the_rows():
    rows = random_rows(0)
    motion = joined_at(chunk_of(rows), STEP)
    knots = (np.arange(len(rows) + 4) - 2 + 1) * H  # row k is due at (k + 1) h and sits in the middle of its support
    reference = BSpline(knots, rows, 3)
    times = np.linspace(4 * H, (len(rows) - 3) * H, 500)
    ns = np.round(times * 1e9).astype(np.int64)
    got = motion.derivatives(ns)
    for order in range(3):
        np.testing.assert_allclose(got[:, order], reference(ns * 1e-9, order), atol=10.0 ** (-9 + 3 * order), rtol=0)


def test_velocity_acceleration_and_jerk_are_the_derivatives_of_the_position():
    motion = joined_at(chunk_of(random_rows(1)), 2 * STEP, state=JointsState.at_rest(np.full(JOINTS, 0.1)))
    times = np.arange(3 * STEP + 1_000_000, 9 * STEP, 7_000_003, dtype=np.int64)
    values = motion.derivatives(times)
    delta = 20_000
    for order in range(3):
        up, down = motion.derivatives(times + delta)[:, order], motion.derivatives(times - delta)[:, order]
        slope = (up - down) / (2 * delta * 1e-9)
        scale = np.abs(values[:, order + 1]).max()
        np.testing.assert_allclose(values[:, order + 1], slope, atol=2e-3 * scale)


def test_positions_speeds_and_accelerations_stay_within_those_of_the_rows():
    for seed in range(50):
        rows = random_rows(seed)
        motion = joined_at(chunk_of(rows), STEP)
        values = motion.derivatives(instants(STEP, motion.end_ns, 3_000_000))
        assert (values[:, 0] <= rows.max(axis=0) + 1e-9).all()
        assert (np.abs(values[:, 1]) <= np.abs(np.diff(rows, axis=0)).max(axis=0) / H + 1e-9).all()
        assert (np.abs(values[:, 2]) <= np.abs(np.diff(rows, 2, axis=0)).max(axis=0) / H**2 + 1e-9).all()


def test_the_curve_passes_each_row_within_a_sixth_of_its_second_difference():
    rows = random_rows(3)
    motion = joined_at(chunk_of(rows), STEP)
    for k in range(1, 31):
        second = rows[k - 1] - 2 * rows[k] + rows[k + 1]
        at_row = motion.sample(np.array([(k + 1) * STEP])).positions[0]
        np.testing.assert_allclose(at_row - rows[k], second / 6, atol=1e-9)


def test_the_curve_ends_at_the_last_row_when_it_is_due():
    rows = random_rows(4)
    motion = joined_at(chunk_of(rows), 10 * STEP)
    end = motion.sample(np.array([motion.end_ns]))
    assert motion.end_ns == 32 * STEP
    np.testing.assert_allclose(end.positions[0], rows[-1], atol=1e-9)
    np.testing.assert_allclose(end.velocities[0], (rows[-1] - rows[-2]) / H, atol=1e-7)


def test_a_splice_begins_exactly_with_the_state_it_continues():
    rng = np.random.default_rng(5)
    state = JointsState(*rng.normal(0, [[0.1], [0.3], [1.0]], (3, JOINTS)))
    motion = ChunkMotion(chunk_of(random_rows(5)), 4 * STEP + 12345, state, 3 * STEP)
    start = motion.sample(np.array([motion.start_ns])).state(0)
    np.testing.assert_allclose(start.positions, state.positions, atol=1e-12)
    np.testing.assert_allclose(start.velocities, state.velocities, atol=1e-10)
    np.testing.assert_allclose(start.accelerations, state.accelerations, atol=1e-8)


def test_after_the_window_only_the_chunk_is_left():
    chunk = chunk_of(random_rows(6))
    spliced = ChunkMotion(chunk, 4 * STEP, JointsState.at_rest(np.full(JOINTS, 0.3)), 3 * STEP)
    alone = joined_at(chunk, 4 * STEP)
    times = instants(7 * STEP, 32 * STEP, 5_000_000)
    np.testing.assert_allclose(spliced.derivatives(times), alone.derivatives(times), atol=1e-12)


def test_the_fade_is_smooth_where_it_ends():
    chunk = chunk_of(np.zeros((32, JOINTS)))
    motion = ChunkMotion(chunk, 0, JointsState.at_rest(np.full(JOINTS, 0.1)), 3 * STEP)
    just_before = motion.derivatives(np.array([3 * STEP - 1000]))[0]
    assert np.abs(just_before[:3]).max() < 1e-3


def test_a_window_longer_than_the_chunk_ends_with_it():
    chunk = chunk_of(random_rows(7))
    motion = ChunkMotion(chunk, 30 * STEP, JointsState.at_rest(np.zeros(JOINTS)), 12 * STEP)
    end = motion.sample(np.array([motion.end_ns]))
    np.testing.assert_allclose(end.positions[0], chunk.positions[-1], atol=1e-9)


def test_the_reported_jump_is_the_distance_at_the_splice():
    motion = ChunkMotion(chunk_of(np.full((8, JOINTS), 0.25)), STEP, JointsState.at_rest(np.zeros(JOINTS)), STEP)
    np.testing.assert_allclose(motion.jump, 0.25)


def test_a_motion_takes_over_at_its_start_and_not_before():
    hold = Hold(0, np.zeros(JOINTS))
    executor = ChunkExecutor(hold)
    motion = ChunkMotion(chunk_of(np.full((8, JOINTS), 0.1)), 2 * STEP, JointsState.at_rest(np.zeros(JOINTS)), STEP)
    executor.splice(motion)
    assert executor.in_force(2 * STEP - 1) is hold
    assert executor.in_force(2 * STEP) is motion


def test_sampling_across_splices_equals_sampling_each_part():
    executor = ChunkExecutor(Hold(0, np.zeros(JOINTS)))
    first = ChunkMotion(chunk_of(random_rows(8)), STEP, JointsState.at_rest(np.zeros(JOINTS)), 3 * STEP)
    executor.splice(first)
    second = ChunkMotion(chunk_of(random_rows(9)), 5 * STEP, executor.state(5 * STEP), 3 * STEP)
    executor.splice(second)
    times = instants(0, 10 * STEP, 11_000_000)
    together = executor.sample(times)
    for index, time in enumerate(times.tolist()):
        alone = executor.state(time)
        np.testing.assert_allclose(together.positions[index], alone.positions, atol=1e-15)
        np.testing.assert_allclose(together.accelerations[index], alone.accelerations, atol=1e-12)


def test_a_splice_replaces_one_that_would_have_begun_later():
    executor = ChunkExecutor(Hold(0, np.zeros(JOINTS)))
    rest = JointsState.at_rest(np.zeros(JOINTS))
    later = ChunkMotion(chunk_of(random_rows(10)), 5 * STEP, rest, STEP)
    sooner = ChunkMotion(chunk_of(random_rows(11)), 3 * STEP, rest, STEP)
    executor.splice(later)
    executor.splice(sooner)
    assert executor.in_force(6 * STEP) is sooner


def test_pruning_keeps_what_is_in_force():
    executor = ChunkExecutor(Hold(0, np.zeros(JOINTS)))
    rest = JointsState.at_rest(np.zeros(JOINTS))
    motions = [ChunkMotion(chunk_of(random_rows(k)), k * STEP, rest, STEP) for k in (1, 2, 3)]
    for motion in motions:
        executor.splice(motion)
    executor.prune(2 * STEP)
    assert executor.in_force(2 * STEP) is motions[1]
    assert executor.in_force(0) is motions[1]
    assert executor.latest is motions[2]


@pytest.mark.parametrize(('start', 'end', 'step'), [(0, 100, 30), (5, 6, 10), (0, 30, 30), (7, 10_000_007, 333)])
def test_instants_include_both_ends_and_are_close_enough(start, end, step):
    times = instants(start, end, step)
    assert (times[0], times[-1]) == (start, end)
    assert (np.diff(times) <= step + 1).all()
    assert (np.diff(times) > 0).all()
