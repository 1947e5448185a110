"""Intervals and comparisons are those of the books, checked against scipy and by what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from engine.errors import InvalidInput
from engine.evaluation.statistics import Paired, Proportion, beta_interval, pair, wilson

COUNTS = [(0, 1), (1, 1), (0, 20), (3, 20), (10, 20), (20, 20), (97, 100), (499, 1000)]


@pytest.mark.parametrize(('hits', 'trials'), COUNTS)
def test_wilsons_interval_is_that_of_scipy(hits: int, trials: int) -> None:
    wanted = stats.binomtest(hits, trials).proportion_ci(0.95, method='wilson')
    assert wilson(hits, trials) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


@pytest.mark.parametrize(('hits', 'trials'), COUNTS)
def test_the_beta_interval_leaves_two_and_a_half_percent_on_either_side(hits: int, trials: int) -> None:
    low, high = beta_interval(hits, trials)
    believed = stats.beta(hits + 1, trials - hits + 1)
    assert (believed.cdf(low), believed.sf(high)) == pytest.approx((0.025, 0.025), abs=1e-9)


def test_without_trials_everything_is_possible() -> None:
    none = Proportion(0, 0)
    assert none.wilson == (0.0, 1.0)
    assert none.beta == pytest.approx((0.025, 0.975))
    assert str(none) == '0/0 = - [0.0, 100.0]'


@pytest.mark.parametrize('interval', [wilson, beta_interval])
def test_more_trials_of_the_same_share_make_an_interval_narrower_about_it(interval) -> None:
    widths = []
    for scale in (1, 4, 16, 64):
        low, high = interval(3 * scale, 4 * scale)
        assert 0.0 <= low < 0.75 < high <= 1.0
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize('interval', [wilson, beta_interval])
def test_misses_are_hits_in_a_mirror(interval) -> None:
    low, high = interval(3, 20)
    assert interval(17, 20) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(('hits', 'trials'), [(-1, 5), (6, 5)])
def test_more_hits_than_trials_are_refused(hits: int, trials: int) -> None:
    with pytest.raises(InvalidInput, match='out of range'):
        Proportion(hits, trials)


@pytest.mark.parametrize(('one', 'other'), [(0, 0), (1, 0), (5, 5), (9, 2), (0, 12), (30, 47)])
def test_mcnemars_test_is_a_fair_coin_among_the_episodes_that_differ(one: int, other: int) -> None:
    found = Paired(40, one, other, 3).p_value
    wanted = stats.binomtest(one, one + other).pvalue if one + other else 1.0
    assert found == pytest.approx(wanted)


def test_exchanging_two_runs_turns_the_difference_round_and_nothing_else() -> None:
    there, back = Paired(30, 4, 11, 5), Paired(30, 11, 4, 5)
    middle, low, high = there.difference
    assert back.difference == pytest.approx((-middle, -high, -low))
    assert there.p_value == back.p_value
    assert (there.first, there.second) == (back.second, back.first) == (Proportion(34, 50), Proportion(41, 50))


def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says() -> None:
    shares, truth = np.array([0.55, 0.10, 0.25, 0.10]), 0.15
    drawn = np.random.default_rng(0).multinomial(60, shares, 3000)
    spans = [Paired(*(int(count) for count in row)).difference for row in drawn]
    kept = np.mean([low <= truth <= high for _, low, high in spans])
    assert 0.93 < kept < 0.985


def test_two_runs_are_compared_by_the_episodes_that_both_have() -> None:
    first = {('reach', 0): True, ('reach', 1): True, ('reach', 2): False, ('push', 0): True}
    second = {('reach', 0): True, ('reach', 1): False, ('reach', 2): True, ('lift', 0): True}
    assert pair(first, second) == Paired(1, 1, 1, 0)
