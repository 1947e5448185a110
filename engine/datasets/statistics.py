"""Statistics of features as LeRobot keeps them: of each episode, and of all together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Stats = dict[str, Floats]
"""min, max, mean, std, count, and the quantiles q01 to q99 of one feature; shapes as LeRobot has them."""

QUANTILES = {'q01': 0.01, 'q10': 0.10, 'q50': 0.50, 'q90': 0.90, 'q99': 0.99}
PICTURES_SAMPLED = 64
"""Pictures of an episode and camera that count; neighbours look alike."""
_PIXELS = 48  # of each side of a picture that count
_VALUES = 256  # of a byte


def of_rows(values: NDArray[np.generic]) -> Stats:
    """Statistics of a column, [N] or [N, channels]: each [channels], the count [1]."""
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    return _of(rows)


def of_pictures(pictures: Sequence[NDArray[np.uint8]]) -> Stats:
    """Statistics of pictures, each uint8 [H, W, 3]: of each channel between 0 and 1, [3, 1, 1]; the count [1]."""
    tally = PictureTally()
    for picture in pictures:
        tally.add(picture)
    return tally.stats()


class PictureTally:
    """Pictures counted one by one, for whoever does not keep them.

    A byte has 256 values, so that how often each occurred says all that statistics ask for, and sooner than a sort.
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self._counts = np.zeros((3, _VALUES), np.int64)
        self._pictures = 0

    def add(self, picture: NDArray[np.uint8]) -> None:
        """Count one more, uint8 [H, W, 3]."""
        thinned = _thinned(picture).reshape(-1, 3)
        for channel in range(3):
            self._counts[channel] += np.bincount(thinned[:, channel], minlength=_VALUES)
        self._pictures += 1

    def stats(self) -> Stats:
        """Statistics of what was counted, as :func:`of_pictures` has them; there was at least one picture."""
        levels = np.arange(_VALUES) / (_VALUES - 1)
        total = self._counts.sum(axis=1)
        mean = self._counts @ levels / total
        spread = (self._counts * (levels - mean[:, None]) ** 2).sum(axis=1) / total
        found = {
            'min': np.array([np.flatnonzero(counts)[0] for counts in self._counts]) / (_VALUES - 1),
            'max': np.array([np.flatnonzero(counts)[-1] for counts in self._counts]) / (_VALUES - 1),
            'mean': mean,
            'std': np.sqrt(spread),
        }
        for name, share in QUANTILES.items():
            found[name] = np.array([_quantile(counts, share) for counts in self._counts]) / (_VALUES - 1)
        return {key: value.reshape(3, 1, 1) for key, value in found.items()} | {
            'count': np.array([float(self._pictures)])
        }


def _quantile(counts: NDArray[np.int64], share: float) -> float:
    """A quantile of bytes that occurred so often [256], as `np.quantile` has it: straight between neighbours."""
    up_to = np.cumsum(counts)
    place = share * (up_to[-1] - 1)
    before, after = np.searchsorted(up_to, [np.floor(place), np.ceil(place)], side='right')
    return float(before + (after - before) * (place - np.floor(place)))


def sampled_indices(length: int) -> NDArray[np.intp]:
    """Which pictures of an episode count: evenly spread, first and last among them."""
    return np.unique(np.linspace(0, length - 1, min(length, PICTURES_SAMPLED)).round().astype(np.intp))


def _thinned(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    return picture[:: max(1, height // _PIXELS), :: max(1, width // _PIXELS)]


def _of(rows: Floats) -> Stats:
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    return {
        'min': rows.min(axis=0),
        'max': rows.max(axis=0),
        'mean': rows.mean(axis=0),
        'std': rows.std(axis=0),
        'count': np.array([float(len(rows))]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def together(parts: Sequence[Stats]) -> Stats:
    """Statistics of several episodes as one.

    All but the quantiles are exact. Those are means of the episodes' quantiles, weighted by their lengths, which is
    what LeRobot makes of them, too.
    """
    weights = np.array([float(part['count'][0]) for part in parts])
    weights = (weights / weights.sum()).reshape(-1, *[1] * parts[0]['mean'].ndim)
    means = np.stack([part['mean'] for part in parts])
    mean = (means * weights).sum(axis=0)
    variances = np.stack([part['std'] ** 2 for part in parts])
    found = {
        'min': np.stack([part['min'] for part in parts]).min(axis=0),
        'max': np.stack([part['max'] for part in parts]).max(axis=0),
        'mean': mean,
        'std': np.sqrt(((variances + (means - mean) ** 2) * weights).sum(axis=0)),
        'count': np.stack([part['count'] for part in parts]).sum(axis=0),
    }
    return found | {key: (np.stack([part[key] for part in parts]) * weights).sum(axis=0) for key in QUANTILES}


def as_document(stats: Mapping[str, Stats]) -> dict[str, dict[str, object]]:
    """As JSON takes them."""
    return {name: {key: _plain(key, value) for key, value in found.items()} for name, found in stats.items()}


def _plain(key: str, value: Floats) -> object:
    return [int(value[0])] if key == 'count' else value.tolist()
