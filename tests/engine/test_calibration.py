"""A success crosses its band as seldom as was promised, and a file says what it is good for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.calibration import Band, Calibration, fewest_episodes, make_band
from engine.errors import InvalidInput


def episodes(count: int, rng: np.random.Generator, kind: str = 'gamma', steps: int = 25) -> list[np.ndarray]:
    """Scores that rise and fall, of episodes that differ in length and as a whole."""
    shape = 1 + np.sin(np.linspace(0, 3, steps)) ** 2
    draw = {'gamma': lambda size: rng.gamma(1.0, 1.0, size), 'normal': lambda size: rng.normal(0, 1, size)}[kind]
    return [shape[: rng.integers(5, steps + 1)] * (1 + abs(draw(()))) + 0.1 * draw(()) for _ in range(count)]


def crosses(band: Band, scores: np.ndarray) -> bool:
    return any(score > band.at(step) for step, score in enumerate(scores))


@pytest.mark.parametrize('kind', ['gamma', 'normal'])
@pytest.mark.parametrize('rate', [0.1, 0.3])
def test_a_new_success_crosses_the_band_at_most_as_often_as_promised(kind: str, rate: float) -> None:
    rng = np.random.default_rng(0)
    crossed, tried = 0, 0
    for _ in range(400):
        band = make_band(episodes(40, rng, kind), rate)
        longest = len(band.threshold)
        new = [one[:longest] for one in episodes(10, rng, kind)]
        crossed += sum(crosses(band, one) for one in new)
        tried += len(new)
    assert crossed / tried <= rate + 0.02
    assert crossed / tried > rate / 4, 'and it is not so wide that nothing ever crosses it'


def test_the_band_is_narrow_where_scores_are_alike_and_wide_where_they_vary() -> None:
    rng = np.random.default_rng(0)
    scores = [np.array([1.0, 5.0]) + rng.normal(0, 1, 2) * [0.01, 1.0] for _ in range(60)]
    band = make_band(scores, 0.1)
    assert 1.0 < band.at(0) < 1.5
    assert band.at(1) > 6.0
    assert band.at(7) == band.at(1), 'what comes later has the last threshold'


def test_a_score_that_was_nothing_at_one_step_of_a_few_episodes_does_not_lift_the_band_of_the_others() -> None:
    rng = np.random.default_rng(0)
    scores = [np.array([0.0, 0.4 * rng.uniform()]) for _ in range(60)]
    scores[1] = np.array([0.02, 0.1])  # of the half that says how far a success can leave what is usual
    band = make_band(scores, 1 / 31)  # so that every one of that half has to stay below
    assert 0.02 <= band.at(0) < 0.1
    assert 0.3 < band.at(1) < 0.8


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12), min_size=20, max_size=40),
    rate=st.floats(0.1, 0.9),
)
def test_a_band_is_finite_and_as_long_as_the_longest_success(scores: list[list[float]], rate: float) -> None:
    band = make_band(scores, rate)
    assert len(band.threshold) == max(map(len, scores))
    assert np.isfinite(band.threshold).all()
    assert band.episodes == len(scores)
    stricter = make_band(scores, rate / 1.5) if len(scores) >= fewest_episodes(rate / 1.5) else band
    assert all(low <= high + 1e-6 for low, high in zip(band.threshold, stricter.threshold, strict=True))


def test_too_few_or_faulty_successes_are_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(
        InvalidInput, match=r'episodes: are too few for this rate, got 10, allowed: 38 or more -> record'
    ):
        make_band([[1.0]] * 10, 0.05)
    assert len(make_band([[1.0]] * 38, 0.05).threshold) == 1
    with pytest.raises(InvalidInput, match=r'episode 1: has no scores(.|\n)*episode 3: is not finite at step 1'):
        make_band([[1.0], [], [1.0], [1.0, np.nan]], 0.5)
    with pytest.raises(InvalidInput, match='false_alarm_rate: is out of range, got 1'):
        make_band([[1.0]] * 38, 1.0)


def test_scores_above_their_band_are_named_and_what_is_no_number_counts_as_above() -> None:
    found = Calibration({'surprise': Band((1.0, 2.0), 0.1, 40), 'cycle': Band((0.5,), 0.1, 40)})
    assert found.crossed({'surprise': 1.5, 'cycle': 0.4, 'other': 9.0}, step=0) == ['surprise']
    assert found.crossed({'surprise': 1.5, 'cycle': 0.6}, step=1) == ['cycle']
    assert found.crossed({'surprise': float('nan')}, step=5) == ['surprise']


def test_a_calibration_is_kept_with_its_provenance_and_found_to_be_of_something_else(tmp_path: Path) -> None:
    made = Calibration({'surprise': Band((1.0, 2.0), 0.1, 40)}, {'checkpoint': 'a1', 'contract': 'droid'})
    made.save(tmp_path / 'bands.json')
    assert Calibration.load(tmp_path / 'bands.json') == made
    assert [path.name for path in tmp_path.iterdir()] == ['bands.json']
    assert made.differences(checkpoint='a1') == []
    (problem,) = made.differences(checkpoint='b2', contract='droid')
    assert str(problem).startswith('provenance.checkpoint: is another, got a1, allowed: b2')


@pytest.mark.parametrize(
    'damage',
    [
        lambda text: text[:-20],
        lambda _text: '[]',
        lambda _text: '{}',
        lambda text: text.replace('"schema": 1', '"schema": 2'),
        lambda text: text.replace('1.0', '"high"'),
        lambda text: text.replace('1.0', 'NaN'),
        lambda text: json.dumps({**json.loads(text), 'bands': {'surprise': {}}}),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: object) -> None:
    path = tmp_path / 'bands.json'
    Calibration({'surprise': Band((1.0, 2.0), 0.1, 40)}).save(path)
    path.write_text(damage(path.read_text(encoding='utf-8')), encoding='utf-8')
    with pytest.raises(InvalidInput, match=r'cannot be read|is no calibration|is unknown'):
        Calibration.load(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r'nowhere\.json: cannot be read'):
        Calibration.load(tmp_path / 'nowhere.json')
