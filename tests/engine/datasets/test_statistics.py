"""Statistics of data sets: those of counted pictures are NumPy's, and one by one they add up to those of all."""

from __future__ import annotations

import numpy as np
import pytest

from engine.datasets.statistics import QUANTILES, PictureTally, as_document, of_pictures, of_rows, together
from engine.datasets.writer import DatasetWriter, Feature, Plan


@pytest.fixture
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 90 + 20 * number, (96, 96, 3)).astype(np.uint8) for number in range(5)]


def test_counted_pictures_have_the_statistics_that_numpy_finds(pictures: list[np.ndarray]) -> None:
    found = of_pictures(pictures)
    seen = np.concatenate([picture[::2, ::2].reshape(-1, 3) for picture in pictures]) / 255.0  # as many as count
    assert found['count'] == [5]
    for name, wanted in (('min', seen.min(0)), ('max', seen.max(0)), ('mean', seen.mean(0)), ('std', seen.std(0))):
        np.testing.assert_allclose(found[name], wanted.reshape(3, 1, 1), atol=1e-12)
    for name, share in QUANTILES.items():
        np.testing.assert_allclose(found[name], np.quantile(seen, share, axis=0).reshape(3, 1, 1), atol=1e-12)


def test_pictures_need_not_be_kept_to_be_counted(pictures: list[np.ndarray]) -> None:
    tally = PictureTally()
    for picture in pictures:
        tally.add(picture)
        picture[:] = 0
    assert tally.stats()['max'].min() > 0.3


def test_a_data_set_that_grows_has_the_statistics_of_all_its_episodes(tmp_path) -> None:
    rng = np.random.default_rng(1)
    values = [rng.normal(number, 1 + number, (10 + 7 * number, 2)) for number in range(6)]
    plan = Plan(15, {'action': Feature(('a', 'b'), 'float64')}, {})
    for part in (values[:3], values[3:]):  # as by two calls
        writer = DatasetWriter(tmp_path / 'set', plan, go_on=True)
        for rows in part:
            with writer.episode('wave') as episode:
                for row in rows:
                    episode.add({'action': row}, {})
    found = as_document(writer._kept.stats)['action']
    wanted = as_document({'action': together([of_rows(rows) for rows in values])})['action']
    assert found['count'] == wanted['count'] == [sum(map(len, values))]
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10)
    np.testing.assert_allclose(found['std'], np.concatenate(values).std(axis=0), rtol=1e-10)
