"""The compiled arithmetic says the same as NumPy in long hand, and never yes to what is no number."""

from __future__ import annotations

import dataclasses
import importlib
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicHermiteSpline

from cosmos3_ros.guard import kernels
from cosmos3_ros.guard.body import Known
from cosmos3_ros.guard.figures import Workspace
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guard.motion import Samples
from cosmos3_ros.guard.tracker import peak_speed

PANDA = load_limits('panda')
BODY = PANDA.body
JOINTS = 7
H = 0.0625
NANO = 1_000_000_000

seeds = st.integers(0, 2**32 - 1)
# What may go wrong with one of the numbers.
poisons = st.sampled_from([None, None, np.nan, np.inf, -np.inf])
quick = settings(max_examples=60, deadline=None)


def poisoned(rng, array, poison):
    if poison is not None:
        array[tuple(rng.integers(size) for size in array.shape)] = poison
    return array


def limits_of(rng, scale=1.0):
    """Lower, upper, velocity, acceleration and jerk, near to what the numbers of these tests are."""
    return -rng.uniform(0.5, 2, JOINTS), rng.uniform(0.5, 2, JOINTS), *(rng.uniform(0.5, 4, (3, JOINTS)) * scale)


def scaled(rng, array):
    """Small enough for the limits about every second time."""
    return array * 10.0 ** rng.uniform(-2, 0.5)


# Whether limits are kept


@quick
@given(seeds, poisons)
def test_rows_keep_their_limits_when_their_differences_do(seed, poison):
    rng = np.random.default_rng(seed)
    lower, upper, *rates = limits_of(rng, 8.0)
    rows = poisoned(rng, scaled(rng, np.cumsum(rng.normal(0, 0.2, (rng.integers(2, 9), JOINTS)), axis=0)), poison)
    with np.errstate(invalid='ignore'):
        expected = (rows >= lower - 1e-9).all() and (rows <= upper + 1e-9).all()
        for order, limit in enumerate(rates, start=1):
            expected &= (np.abs(np.diff(rows, order, axis=0)) / H**order / limit <= 1 + 1e-9).all()
        assert kernels.rows_keep(rows, H, lower, upper, *rates, 1e-9) == expected
        assert not (poison is not None and expected)


@quick
@given(seeds, poisons)
def test_states_keep_their_limits_when_each_number_does(seed, poison):
    rng = np.random.default_rng(seed)
    lower, upper, *rates = limits_of(rng)
    values = poisoned(rng, scaled(rng, rng.normal(0, 1, (5, 4, JOINTS))), poison)
    expected = (values[:, 0] >= lower - 1e-9).all() and (values[:, 0] <= upper + 1e-9).all()
    expected &= all((np.abs(values[:, i + 1]) / (0.99 * limit) <= 1 + 1e-9).all() for i, limit in enumerate(rates))
    assert kernels.states_keep(values, lower, upper, *rates, 0.99, 1e-9) == expected
    assert kernels.none_above(values[:, 1], rates[0], 1e-9) == (np.abs(values[:, 1]) / rates[0] <= 1 + 1e-9).all()
    np.testing.assert_array_equal(kernels.magnitudes(values), np.abs(values).max(axis=0))
    assert not (poison is not None and expected)


@quick
@given(seeds, poisons)
def test_the_peaks_of_rows_are_the_largest_of_their_differences(seed, poison):
    rng = np.random.default_rng(seed)
    rows = poisoned(rng, rng.normal(0, 1, (rng.integers(2, 9), JOINTS)), poison)
    still = np.zeros((1, JOINTS))
    with np.errstate(invalid='ignore'):
        accelerations = np.concatenate([still, np.diff(rows, 2, axis=0) / H**2, still])
        jerks = np.diff(accelerations, axis=0) / H
        expected = np.abs(accelerations).max(axis=0), np.abs(jerks).max(axis=0)
        np.testing.assert_allclose(kernels.row_peaks(rows, H), expected, rtol=1e-12, atol=1e-9)


@quick
@given(seeds)
def test_an_arm_inside_the_margin_may_use_the_range_as_far_as_it_has_come(seed):
    rng = np.random.default_rng(seed)
    lower, upper, *_ = limits_of(rng)
    at = rng.uniform(-2.5, 2.5, JOINTS)
    bounds = kernels.position_bounds(lower, upper, 0.1, at)
    np.testing.assert_array_equal(bounds[0], np.maximum(lower, np.minimum(lower + 0.1, at)))
    np.testing.assert_array_equal(bounds[1], np.minimum(upper, np.maximum(upper - 0.1, at)))


# Stops and commands


@quick
@given(seeds, poisons)
def test_a_stop_fits_when_its_range_and_its_peak_speed_do(seed, poison):
    rng = np.random.default_rng(seed)
    lower, upper, velocity, _, jerk = limits_of(rng)
    positions = poisoned(rng, scaled(rng, rng.normal(0, 1, (6, JOINTS))), poison)
    v, a = scaled(rng, rng.normal(0, 1, (2, JOINTS))) * (rng.random(JOINTS) < 0.8)
    beyond = rng.uniform(0, 0.1, JOINTS)
    more = beyond * ((v != 0) | (a != 0))
    expected = positions.min(axis=0) - more, positions.max(axis=0) + more, peak_speed(v, a, jerk)
    fits = (expected[0] >= lower).all() and (expected[1] <= upper).all() and (expected[2] <= velocity).all()
    found = kernels.stop_bounds(positions, v, a, beyond, jerk, lower, upper, velocity)
    assert (found is not None) == fits
    assert not (poison is not None and fits)
    if found is not None:
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@quick
@given(seeds, poisons, st.sampled_from(['sound', 'times', 'moving at the end', 'jump']))
def test_a_command_keeps_the_limits_when_its_points_and_their_differences_do(seed, poison, fault):
    rng = np.random.default_rng(seed)
    limits = limits_of(rng, 4.0)
    times = np.cumsum(rng.integers(5_000_000, 20_000_000, 9))
    t = ((times[-1] - times) / NANO)[:, None]
    jerks = scaled(rng, rng.normal(0, 4, JOINTS))
    p, v, a = -jerks * t**3 / 6, jerks * t**2 / 2, -jerks * t  # a constant jerk down to rest
    if fault == 'times':
        times[4] = times[3]
    elif fault == 'moving at the end':
        v[-1, 2] = 1e-12
    elif fault == 'jump':
        p[4, 1] += rng.choice([1e-9, 1e-5, 1e-2])
    poisoned(rng, (p, v, a)[rng.integers(3)], poison)
    kept = kernels.command_keeps(times, p, v, a, *limits, 1e-6, 1e-9)
    assert kept == sound(times, p, v, a, *limits)
    assert not (poison is not None and kept)


def sound(times, p, v, a, lower, upper, velocity, acceleration, jerk):
    """The same judgement in NumPy."""
    dt = (np.diff(times) / NANO)[:, None]
    if not (dt > 0).all() or v[-1].any() or a[-1].any():
        return False
    with np.errstate(invalid='ignore'):
        mean_v, mean_a, mean_j = (np.diff(x, axis=0) / dt for x in (p, v, a))
        jump = (mean_v - ((v[1:] + v[:-1]) / 2 - mean_j * (dt**2 / 12))) / dt**2
        pairs = (v, velocity), (a, acceleration), (mean_v, velocity), (mean_a, acceleration), (mean_j, jerk)
        most = all((np.abs(x) <= limit * (1 + 1e-6) + 1e-9).all() for x, limit in (*pairs, (jump, jerk / 6)))
        return bool(most and (p >= lower - 1e-9).all() and (p <= upper + 1e-9).all())


@quick
@given(seeds)
def test_between_its_points_a_command_is_the_cubic_through_positions_and_velocities(seed):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.integers(5_000_000, 20_000_000, 6))
    p, v = rng.normal(0, 1, (2, 6, JOINTS))
    spline = CubicHermiteSpline((times - times[0]) / NANO, p, v)
    at = int(rng.integers(times[0] - 10_000_000, times[-1] + 10_000_000))
    inside = (np.clip(at, times[0], times[-1]) - times[0]) / NANO
    found, span = kernels.interpolated(times, p, v, at)
    assert span in np.diff(times) / NANO
    np.testing.assert_allclose(found[0], spline(inside), atol=1e-11)
    np.testing.assert_allclose(found[1], spline(inside, 1), atol=1e-8)
    jerk = np.full(JOINTS, 10.0)
    assert kernels.continues(found[0], found[1], found, jerk, span, 1e-6)
    off = found.copy()
    off[rng.integers(2), rng.integers(JOINTS)] += rng.choice([10 * span**2, np.nan, np.inf])
    assert not kernels.continues(off[0], off[1], found, jerk, span, 1e-6)


@quick
@given(seeds, poisons)
def test_there_is_room_to_stop_only_where_the_longest_stop_ends_inside(seed, poison):
    rng = np.random.default_rng(seed)
    lower, upper, _, acceleration, jerk = limits_of(rng, 5.0)
    p, v, a = poisoned(rng, scaled(rng, rng.normal(0, 0.5, (3, JOINTS))), poison)
    with np.errstate(invalid='ignore'):
        rise = acceleration / jerk
        speed = np.abs(v) + np.abs(a) * rise
        way = speed * (speed / acceleration + 3 * rise)
        expected = bool(((p - way >= lower) & (p + way <= upper)).all())
    assert kernels.has_room_to_stop(p, v, a, lower, upper, acceleration, jerk) == expected
    assert not (poison is not None and expected)


@quick
@given(seeds)
def test_a_piece_and_the_stop_that_begins_with_its_last_point_become_one_command(seed):
    rng = np.random.default_rng(seed)
    piece, stop = samples_of(rng, rng.integers(1, 5)), samples_of(rng, rng.integers(1, 5))
    arrays = [(s.times_ns, s.positions, s.velocities, s.accelerations) for s in (piece, stop)]
    for one, first, second in zip(kernels.joined(*arrays[0], *arrays[1]), *arrays, strict=True):
        np.testing.assert_array_equal(one, np.concatenate([first, second[1:]]))


@quick
@given(seeds, poisons)
def test_the_joint_that_is_furthest_apart_is_the_one_with_the_largest_difference(seed, poison):
    rng = np.random.default_rng(seed)
    one, other = poisoned(rng, rng.normal(0, 1, (2, JOINTS)), poison)
    joint, apart = kernels.farthest(one, other)
    differences = np.abs(one - other)
    assert joint == differences.argmax()
    np.testing.assert_array_equal(apart, differences[joint])


@quick
@given(seeds, poisons)
def test_columns_are_sorted_and_what_is_no_number_is_noticed(seed, poison):
    rng = np.random.default_rng(seed)
    values, order = poisoned(rng, rng.normal(0, 1, (5, JOINTS)), poison), rng.permutation(JOINTS)
    found, finite = kernels.arranged(values, order)
    np.testing.assert_array_equal(found, values[:, order])
    assert finite == (poison is None)
    with pytest.raises(IndexError, match=r'must be in 0\.\.6'):
        kernels.arranged(values, order + 1)


# Instants and motions


@quick
@given(st.integers(-(10**18), 10**18), st.integers(0, 10**10), st.integers(10**6, 10**9), st.integers(1, 16), seeds)
def test_instants_are_those_of_exact_arithmetic(start, length, step, per_step, seed):
    count = max(1, -(-length // step))
    expected = [start + length * k // count for k in range(count + 1)]
    assert kernels.instants(start, start + length, step).tolist() == expected
    origin = start + seed % (3 * step) - step
    first, last = (start - origin) * per_step // step, (start + length - origin) * per_step // step
    raster = [origin + k * step // per_step for k in range(first, last + 1)]
    inner = [time for time in raster if start < time < start + length]
    found = kernels.times_between(start, start + length, origin, step, per_step)
    assert found.tolist() == [start, *inner, start + length]


@quick
@given(seeds)
def test_a_fade_is_the_quintic_that_takes_a_difference_to_nothing(seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 0.1, (8, JOINTS))
    p, v, a = rng.normal(0, 1, (3, JOINTS))
    step, window = 62_500_000, 150_000_000
    due = 1_700_000_000_000_000_000
    motion = kernels.FadedSpline(rows, due, step, due, window, p, v, a)
    alone = kernels.FadedSpline(rows, due, step, due, 0, p, v, a)
    times = due + np.array([0, 1, 40_000_000, 110_000_000, 149_999_999, window, 2 * window])
    ends = [
        [np.prod(range(k - n + 1, k + 1)) * x ** max(k - n, 0) * (k >= n) for k in range(6)]
        for x in (0, window / NANO)
        for n in (0, 1, 2)
    ]
    own = alone.state(due)
    wanted = np.zeros((6, JOINTS))
    wanted[:3] = np.array([p, v, a]) - own[:3]
    quintic = np.linalg.solve(np.array(ends, dtype=float), wanted)
    for time, state, base in zip(times, motion.derivatives(times), alone.derivatives(times), strict=True):
        x = (time - due) / NANO
        fade = [np.polynomial.polynomial.polyval(x, np.polynomial.polynomial.polyder(quintic, n)) for n in range(4)]
        expected = base + (np.array(fade) if x < window / NANO else 0.0)
        scale = np.abs(quintic).max()
        np.testing.assert_allclose(state, expected, atol=1e-11 * scale)
        np.testing.assert_array_equal(motion.state(int(time)), state)
    np.testing.assert_array_equal(motion.jump, np.abs(own[0] - p))


def test_a_chunk_that_stands_still_stands_still_exactly():
    at = np.random.default_rng(0).normal(0, 1, JOINTS)
    motion = kernels.FadedSpline(np.tile(at, (5, 1)), 10**18, 66_666_667, 10**18, 10**8, at, at * 0, at * 0)
    states = motion.derivatives(10**18 + np.arange(0, 3 * 10**8, 7_000_001))
    assert (states[:, 0] == at).all()
    assert not states[:, 1:].any()


# The body


def in_numpy(body, positions, velocities, workspace):
    """Distance to the nearest wall [S], and by the Jacobian speed and rotation of the tool [S]."""
    placement = body._kinematics.place(positions)
    arm = placement.points[body._tool] - placement.origins
    columns = body._kinematics.columns
    turning = placement.axes * velocities.T[columns][:, None]
    linear = np.cross(turning, arm, axis=1).sum(axis=0)
    tool = placement.points[body._tool]
    wall = np.minimum(tool - workspace.lower[:, None], workspace.upper[:, None] - tool).min(axis=0)
    return wall, np.linalg.norm(linear, axis=0), np.linalg.norm(turning.sum(axis=0), axis=0)


def test_margins_of_the_tool_are_those_of_its_box_and_its_jacobian():
    box = Workspace(np.array([0.2, -0.3, 0.2]), np.array([0.7, 0.3, 0.7]))
    body = dataclasses.replace(PANDA, workspace=box).body
    rng = np.random.default_rng(1)
    q, v = rng.uniform(PANDA.lower, PANDA.upper, (50, JOINTS)), rng.normal(0, 1, (50, JOINTS))
    margins = body.margins(q, v)
    wall, speed, turn = in_numpy(body, q, v, box)
    np.testing.assert_allclose(margins[-3], wall, atol=1e-12)
    np.testing.assert_allclose(margins[-2], body._limits[-2] - speed, atol=1e-12)
    np.testing.assert_allclose(margins[-1], body._limits[-1] - turn, atol=1e-12)
    for broken in (np.nan, np.inf):
        q[3, 2] = broken
        assert kernels.any_below(body.margins(q, v), np.full(len(margins), -1e300))


def samples_of(rng, count):
    times = np.cumsum(rng.integers(5_000_000, 60_000_000, count))
    q, v, a = rng.normal(0, 1, (3, count, JOINTS)) * [[[0.5]], [[0.3]], [[1.0]]]
    return Samples(times, q, v, a)


@quick
@given(seeds, poisons)
def test_intervals_are_doubtful_where_the_bound_on_the_change_says_so(seed, poison):
    rng = np.random.default_rng(seed)
    s = samples_of(rng, 6)
    lines = len(BODY._lines)
    margins = poisoned(rng, rng.uniform(0, 0.2, (lines, 6)) * 10.0 ** rng.uniform(-1, 2, (1, 6)), poison)
    sure, acceleration, jerk = -BODY.tolerance, rng.uniform(1, 9, JOINTS), rng.uniform(10, 90, JOINTS)
    h = (np.diff(s.times_ns) * 0.5e-9)[:, None]
    speed, rate = (np.abs(x[:-1]) + np.abs(x[1:]) for x in (s.velocities, s.accelerations))
    gain = h * acceleration
    gained, peak = np.minimum(h * (rate + h * jerk), 2 * gain), speed / 2 + gain
    turned = np.einsum('ij,kjl,il->ki', peak, BODY._couplings, peak) * (2 * h[:, 0])
    change = np.concatenate([BODY._influence @ (h * (speed + gain)).T, BODY._levers @ gained.T + turned])
    with np.errstate(invalid='ignore'):
        expected = (~(margins[:, :-1] + margins[:, 1:] - change >= 2 * sure[:, None])).any(axis=0)
    found = BODY._kernel.doubtful(
        *(part for x in (s.times_ns, s.velocities, s.accelerations) for part in (x[:-1], x[1:])),
        margins[:, :-1],
        margins[:, 1:],
        sure,
        acceleration,
        jerk,
    )
    np.testing.assert_array_equal(np.zeros(5, bool) if found is None else found, expected)


@quick
@given(seeds, poisons, st.booleans(), st.booleans())
def test_a_motion_is_only_waved_through_where_neither_an_instant_nor_an_interval_is_in_doubt(
    seed, poison, stopping, speeds
):
    rng = np.random.default_rng(seed)
    s = samples_of(rng, 6)
    s.positions[:] = 0.1 * s.positions + [0, -0.6, 0, -2.5, 0, 1.9, 0]
    s.velocities[:] *= 10.0 ** rng.uniform(-2, 1)
    poisoned(rng, (s.positions, s.velocities, s.accelerations)[rng.integers(3)], poison)
    acceleration, jerk = rng.uniform(1, 9, JOINTS), rng.uniform(10, 90, JOINTS)
    arrays = s.times_ns, s.positions, s.velocities, s.accelerations
    tolerance, distances = BODY.tolerance, BODY._distances
    with np.errstate(invalid='ignore'):
        margins, floor, sure, kept = BODY._kernel.look(
            *arrays, acceleration, jerk, tolerance, 0.1, 1e-9, stopping, speeds
        )
        np.testing.assert_array_equal(margins, BODY.margins(s.positions, s.velocities))
        expected = np.minimum(margins[:, 0], 0.0)
        if not (stopping and speeds):
            expected[distances:] = 0.0 if speeds else -np.inf
        wanted = np.where(expected < -tolerance, expected - 0.1 * tolerance, -tolerance)
    np.testing.assert_array_equal(floor, expected - 1e-9)
    np.testing.assert_array_equal(sure, wanted)
    pairs = (part for x in (s.times_ns, s.velocities, s.accelerations) for part in (x[:-1], x[1:]))
    doubtful = BODY._kernel.doubtful(*pairs, margins[:, :-1], margins[:, 1:], sure, acceleration, jerk)
    assert kept == (doubtful is None and not kernels.any_below(margins, floor))
    assert not (poison is not None and speeds and kept and not np.isfinite(s.velocities).all())


@quick
@given(seeds, poisons)
def test_what_is_known_of_a_position_keeps_only_what_its_margins_cover(seed, poison):
    rng = np.random.default_rng(seed)
    at = rng.normal(0, 0.3, JOINTS)
    away = rng.uniform(0, 1, (2, JOINTS)) * 10.0 ** rng.uniform(-3, -0.5)
    lowest, highest = at - away[0], at + away[1]
    speed = rng.uniform(0, 1, JOINTS) * 10.0 ** rng.uniform(-2, 0.5)
    known = Known(at, rng.uniform(0, 0.3, BODY._distances))
    poisoned(rng, (lowest, highest, speed, known.margins)[rng.integers(4)], None if poison is None else np.nan)
    with np.errstate(invalid='ignore'):
        ways = BODY._influence @ np.maximum(highest - at, at - lowest)
        kept = (ways <= known.margins).all() and (BODY._levers @ speed <= BODY._limits[BODY._distances :]).all()
    assert BODY.keeps(known, lowest, highest, speed) == kept
    assert not (poison is not None and kept)


# What is given to them


@pytest.mark.parametrize(
    'call',
    [
        lambda: kernels.rows_keep(np.zeros((3, 7)), H, *np.ones((4, 7)), np.ones(6), 1e-9),
        lambda: kernels.none_above(np.zeros((3, 7)), np.ones(8), 1e-9),
        lambda: kernels.FadedSpline(np.zeros((3, 7)), 0, 1, 0, 1, *np.zeros((3, 6))),
        lambda: kernels.interpolated(np.arange(3), np.zeros((2, 7)), np.zeros((3, 7)), 0),
        lambda: BODY.margins(np.zeros((3, 6)), np.zeros((3, 6))),
        lambda: BODY.margins(np.zeros((3, 7)), np.zeros((2, 7))),
        lambda: kernels.any_below(np.zeros((3, 2)), np.zeros(2)),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(call):
    with pytest.raises(ValueError, match='must be'):
        call()


def test_where_nothing_has_been_compiled_the_error_says_what_to_do(monkeypatch):
    monkeypatch.delitem(sys.modules, 'cosmos3_ros.guard.kernels')
    monkeypatch.setitem(sys.modules, 'cosmos3_ros.guard.kernels_body', None)
    with pytest.raises(ImportError, match=r'not compiled for this Python: .*run `make setup`'):
        importlib.import_module('cosmos3_ros.guard.kernels')
