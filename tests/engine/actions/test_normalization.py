"""Normalisation: the ends land where they should, every method comes back, constant channels stay put."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine.actions import NO_NORMALIZATION, Method, normalizer, parse_statistics, published_statistics
from engine.errors import InvalidInput

DOCUMENT = {
    'mean': [0.1, -2.0, 0.5],
    'std': [0.5, 2.0, 0.01],
    'min': [-2.0, -9.0, 0.0],
    'max': [3.0, 9.0, 1.0],
    'q01': [-1.0, -4.0, 0.4],
    'q99': [1.0, 6.0, 0.6],
}
ALL = [method for method in Method if method is not Method.NONE]
RANGED = [Method.QUANTILE, Method.QUANTILE_ROT, Method.QUANTILE_ROT_SCALE_FLOOR, Method.MINMAX]
PERCENTILES = [Method.QUANTILE, Method.QUANTILE_ROT, Method.ASINH_ROT, Method.PIECEWISE_ASINH_ROT]
rows = arrays(np.float64, (5, 3), elements=st.floats(-20, 20))


def build(method, document=DOCUMENT, clamp=False):
    return normalizer(method, parse_statistics(document, Method.parse(method), 'test'), clamp)


@pytest.mark.parametrize('method', ALL)
@given(raw=rows)
def test_what_is_normalised_comes_back(method, raw):
    there = build(method)
    np.testing.assert_allclose(there.inverse(there.forward(raw)), raw, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('method', ALL)
@given(raw=rows)
def test_larger_stays_larger(method, raw):
    ordered = np.sort(raw, axis=0)
    assert (np.diff(build(method).forward(ordered), axis=0) >= 0).all()


@pytest.mark.parametrize('method', PERCENTILES)
def test_percentiles_land_on_minus_one_and_one(method):
    there = build(method)
    np.testing.assert_allclose(there.forward([DOCUMENT['q01'], DOCUMENT['q99']]), [[-1] * 3, [1] * 3], atol=1e-12)
    np.testing.assert_allclose(there.inverse([[-1] * 3, [1] * 3]), [DOCUMENT['q01'], DOCUMENT['q99']], atol=1e-12)


def test_extrema_land_on_minus_one_and_one():
    np.testing.assert_allclose(build('minmax').forward([DOCUMENT['min'], DOCUMENT['max']]), [[-1] * 3, [1] * 3])


def test_standard_scores_count_deviations_from_the_mean():
    np.testing.assert_allclose(build('meanstd').forward([0.6, -6.0, 0.5]), [1, -2, 0], atol=1e-12)


def test_the_quantile_formula_is_the_published_one():
    low, high, raw = np.array(DOCUMENT['q01']), np.array(DOCUMENT['q99']), np.array([0.3, 7.7, -0.1])
    np.testing.assert_allclose(build('quantile').forward(raw), 2 * (raw - low) / (high - low) - 1)


def test_asinh_is_the_published_formula():
    z = (np.array([9.0, -30.0, 0.5]) - [0, 1, 0.5]) / [1, 5, 0.1]
    np.testing.assert_allclose(build('asinh_rot').forward([9.0, -30.0, 0.5]), np.arcsinh(z) / math.asinh(1))


def test_piecewise_asinh_is_linear_to_one_and_bends_beyond_without_a_kink():
    there = build('piecewise_asinh_rot')
    np.testing.assert_allclose(there.forward([0.5, 1.0, 0.55]), [0.5, 0.0, 0.5], atol=1e-12)
    np.testing.assert_allclose(there.forward([4.0, -14.0, 0.5])[:2], [1 + math.asinh(3), -(1 + math.asinh(2))])
    inside, edge, outside = (there.forward([x, 1.0, 0.5])[0] for x in (1 - 1e-6, 1.0, 1 + 1e-6))
    assert outside - edge == pytest.approx(edge - inside, rel=1e-5)


def test_the_scale_floor_keeps_recorded_extrema_within_five():
    extrema = build('quantile_rot_scale_floor').forward([DOCUMENT['min'], DOCUMENT['max']])
    assert np.abs(extrema).max() == pytest.approx(5)
    # The third channel reaches 5 times its percentiles, the others stay as quantile_rot has them.
    plain = build('quantile_rot').forward([0.7, -3.0, 0.5])
    np.testing.assert_allclose(build('quantile_rot_scale_floor').forward([0.7, -3.0, 0.5])[:2], plain[:2])


def test_the_scale_floor_widens_a_channel_whose_tail_is_longer():
    document = {**DOCUMENT, 'max': [25.0, 9.0, 1.0]}
    there = build('quantile_rot_scale_floor', document)
    assert there.forward([25.0, 0, 0.5])[0] == pytest.approx(5)
    assert there.scale[0] == pytest.approx(5)


@pytest.mark.parametrize('method', RANGED)
def test_a_clamp_cuts_forward_only(method):
    there = build(method, clamp=True)
    np.testing.assert_array_equal(there.forward([100.0, -100.0, 0.5])[:2], [1, -1])
    assert there.inverse([2.0, 0, 0])[0] == build(method).inverse([2.0, 0, 0])[0]


@pytest.mark.parametrize('method', sorted(set(Method) - set(RANGED)))
def test_a_clamp_on_a_method_that_has_none_is_refused(method):
    with pytest.raises(InvalidInput, match=f'does not exist for {method}'):
        build(method, clamp=True)


@pytest.mark.parametrize('method', ALL)
def test_a_channel_that_never_moved_is_zero_and_comes_back_to_where_it_stood(method):
    still = {name: [0.0 if name == 'std' else 0.7] for name in DOCUMENT}
    there = build(method, still)
    assert there.forward([0.7])[0] == pytest.approx(0, abs=1e-9)
    assert there.inverse([0.0])[0] == pytest.approx(0.7)
    assert np.isfinite(there.forward([0.8])).all()


@pytest.mark.parametrize(('method', 'scale'), [('quantile', 0.5e-6), ('minmax', 0.5e-6), ('meanstd', 1e-8)])
def test_floors_are_those_of_the_reference_servers(method, scale):
    still = {name: [0.0] for name in DOCUMENT}
    assert build(method, still).scale[0] == scale


@given(rows)
def test_no_normalisation_changes_nothing_at_any_width(raw):
    np.testing.assert_array_equal(NO_NORMALIZATION.forward(raw), raw)
    np.testing.assert_array_equal(NO_NORMALIZATION.inverse(raw[:, :2]), raw[:, :2])
    assert normalizer('none') is NO_NORMALIZATION
    assert NO_NORMALIZATION.dim is None


@pytest.mark.parametrize('name', ['droid', 'bridge', 'fractal', 'robomind_franka', 'robomind_ur', 'libero', 'agibot'])
def test_a_robot_that_stands_still_is_within_the_published_range(name):
    there = normalizer('quantile_rot', published_statistics(name, Method.QUANTILE_ROT))
    still = np.zeros(there.dim)
    still[[3, 7]] = 1
    if there.dim == 29:
        still[[12, 16, 22, 26]] = 1
    assert np.abs(there.forward(still)).max() <= 1 + 1e-9


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(InvalidInput, match="'quantiles', allowed: none, quantile"):
        normalizer('quantiles')


def test_a_method_without_statistics_is_refused():
    with pytest.raises(InvalidInput, match='quantile needs them'):
        normalizer('quantile')


def test_a_method_whose_statistics_were_not_published_is_refused_by_name():
    with pytest.raises(InvalidInput, match="published statistics of droid: has no 'min'"):
        normalizer('quantile_rot_scale_floor', published_statistics('droid', Method.QUANTILE_ROT_SCALE_FLOOR))


@pytest.mark.parametrize('bad', [[0.0, 0.0], np.zeros((2, 4)), 1.0])
def test_rows_of_another_width_are_refused(bad):
    there = build('quantile')
    for convert in (there.forward, there.inverse):
        with pytest.raises(InvalidInput, match='wrong shape'):
            convert(bad)


def test_rows_that_are_not_finite_are_refused_by_row():
    with pytest.raises(InvalidInput, match=r'raw rows\[1\]: is not finite'):
        build('quantile').forward([[0, 0, 0], [0, np.nan, 0]])
