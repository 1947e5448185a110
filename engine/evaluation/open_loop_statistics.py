"""Means of what was measured moment by moment, with intervals that know that neighbouring moments are alike.

Moments of one episode are no independent samples: their chunks overlap. So whole units are drawn again with
replacement, and the figure is computed anew of each draw (B. Efron, Ann. Statist. 7(1), 1979). Units are episodes where
there are enough of them, else blocks of an episode that do not overlap (E. Carlstein, Ann. Statist. 14(3), 1986). The
interval leaves 2.5 % of the draws out on either side. All figures of a run are computed of the same draws, so that
differences and quotients of two figures are those of paired samples.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Unit = tuple[str, int]
"""Name of an episode, and number of a block in it."""

DRAWS = 1000
ENOUGH_EPISODES = 10
"""From so many episodes on, they are the units; with fewer, blocks are."""
FEWEST_UNITS = 5
"""With fewer units than that there is no interval: a handful of draws of them says nothing."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """A figure, or an array of them, with its 95 % interval.

    Attributes:
        value: [...]; not a number where there was nothing to measure.
        low: [...]; not a number where there is no interval.
        high: Likewise.
    """

    value: Floats
    low: Floats
    high: Floats

    def __getitem__(self, index: Any) -> Estimate:
        return Estimate(*(np.asarray(part[index]) for part in (self.value, self.low, self.high)))

    def document(self) -> dict[str, Any]:
        """As JSON takes it: what is not a number becomes null."""
        return {name: plain(getattr(self, name)) for name in ('value', 'low', 'high')}


def plain(values: ArrayLike) -> Any:
    """Numbers as JSON takes them, nested as the array is; null for what is not finite."""
    array = np.asarray(values, np.float64)
    if array.ndim:
        return [plain(one) for one in array]
    return float(array) if np.isfinite(array) else None


class Tally:
    """Sums of what was measured, by name and unit."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[Unit, tuple[Floats, Floats]]] = {}
        self._units: dict[Unit, None] = {}
        self._weights: Floats | None = None

    def add(self, unit: Unit, name: str, values: ArrayLike) -> None:
        """Count `values` [...] of one moment; those that are not a number count for nothing."""
        found = np.asarray(values, np.float64)
        known = np.isfinite(found)
        total, count = np.where(known, found, 0.0), known.astype(np.float64)
        units = self._sums.setdefault(name, {})
        if unit in units:
            before = units[unit]
            total, count = before[0] + total, before[1] + count
        units[unit] = (total, count)
        self._units.setdefault(unit)
        self._weights = None

    def __contains__(self, name: str) -> bool:
        return name in self._sums

    @property
    def by_episode(self) -> bool:
        """Whether episodes are the units, and not blocks."""
        return len({episode for episode, _ in self._units}) >= ENOUGH_EPISODES

    @property
    def units(self) -> int:
        """How many units there are."""
        return len({self._key(unit) for unit in self._units})

    def _key(self, unit: Unit) -> Unit:
        return (unit[0], 0) if self.by_episode else unit

    def draws(self, name: str) -> Floats:
        """Means [1 + draws, ...] of what was counted under `name`; the first is that of everything."""
        first, *others = self._sums[name].items()
        total = {self._key(unit): np.zeros((2, *first[1][0].shape)) for unit in self._units}
        for unit, (values, count) in (first, *others):
            total[self._key(unit)] += np.stack([values, count])
        stacked = np.stack(list(total.values()))
        sums, counts = np.moveaxis(np.tensordot(self._drawn(len(total)), stacked, axes=1), 1, 0)
        return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)

    def _drawn(self, units: int) -> Floats:
        """How often each unit is in each draw, [1 + draws, units]; in the first, each once."""
        if self._weights is None:
            drawn = np.random.default_rng(0).multinomial(units, np.full(units, 1 / units), DRAWS)
            self._weights = np.vstack([np.ones(units), drawn]).astype(np.float64)
        return self._weights

    def mean(self, name: str) -> Estimate:
        """The mean under `name`."""
        return self.estimate(self.draws(name))

    def root(self, name: str) -> Estimate:
        """The root of the mean under `name`, which are squares."""
        return self.estimate(np.sqrt(self.draws(name)))

    def estimate(self, draws: Floats) -> Estimate:
        """A figure [...] from what it is of all draws, [1 + draws, ...]."""
        value, nothing = draws[0], np.full(draws.shape[1:], np.nan)
        if self.units < FEWEST_UNITS:
            return Estimate(value, nothing, nothing)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', RuntimeWarning)  # a figure that no draw has stays without an interval
            low, high = np.nanpercentile(draws[1:], [2.5, 97.5], axis=0)
        return Estimate(value, low, high)

    def how(self, block_rows: int) -> str:
        """How intervals were made, in words."""
        kind = 'episodes' if self.by_episode else f'blocks of {block_rows} frames'
        if self.units < FEWEST_UNITS:
            return f'none, of {self.units} {kind} (at least {FEWEST_UNITS} are needed)'
        return f'95 % by bootstrap: {self.units} {kind} drawn {DRAWS} times with replacement'
