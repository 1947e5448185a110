"""How much counts can be trusted: intervals of a proportion, and the comparison of two runs with the same seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy import special

from engine.errors import InvalidInput, Problem

Z95 = 1.959963984540054
"""Standard deviations on both sides of the mean of a normal distribution that hold 95 % of it."""


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927); (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    share, spread = hits / trials, Z95**2 / trials
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def beta_interval(hits: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion as those see it who held every value for equally likely before.

    What they believe afterwards is the distribution Beta(hits + 1, misses + 1) (T. Bayes, Phil. Trans. 53, 1763); the
    interval leaves 2.5 % of it out on either side.
    """
    tails = special.betaincinv(hits + 1, trials - hits + 1, (0.025, 0.975))
    return float(tails[0]), float(tails[1])


@dataclass(frozen=True)
class Proportion:
    """k of n, with both intervals.

    Attributes:
        hits: k.
        trials: n.
    """

    hits: int
    trials: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.trials:
            problem = Problem('hits', 'are out of range', str(self.hits), f'0 to {self.trials}')
            raise InvalidInput('proportion', [problem])

    @property
    def rate(self) -> float:
        """Share; not a number without trials."""
        return self.hits / self.trials if self.trials else math.nan

    @property
    def wilson(self) -> tuple[float, float]:
        """See :func:`wilson`."""
        return wilson(self.hits, self.trials)

    @property
    def beta(self) -> tuple[float, float]:
        """See :func:`beta_interval`."""
        return beta_interval(self.hits, self.trials)

    def __str__(self) -> str:
        low, high = (100 * x for x in self.wilson)
        share = f'{100 * self.rate:.1f} %' if self.trials else '-'
        return f'{self.hits}/{self.trials} = {share} [{low:.1f}, {high:.1f}]'


@dataclass(frozen=True)
class Paired:
    """Two runs of the same episodes, by who succeeded in which.

    Attributes:
        both: Episodes in which both succeeded.
        only_first: In which the first did and the second did not.
        only_second: The other way round.
        neither: In which neither did.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def trials(self) -> int:
        """Episodes that both ran."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def first(self) -> Proportion:
        """Successes of the first."""
        return Proportion(self.both + self.only_first, self.trials)

    @property
    def second(self) -> Proportion:
        """Successes of the second."""
        return Proportion(self.both + self.only_second, self.trials)

    @property
    def p_value(self) -> float:
        """How likely episodes would come out as differently if both were equally good; exact, two-sided.

        Only those episodes tell in which one succeeded and the other did not (Q. McNemar, Psychometrika 12, 1947); each
        of them would be a toss of a coin.
        """
        tosses = self.only_first + self.only_second
        fewer = min(self.only_first, self.only_second)
        tail = sum(math.comb(tosses, k) for k in range(fewer + 1)) / 2**tosses
        return min(1.0, 2 * tail)

    @property
    def difference(self) -> tuple[float, float, float]:
        """Second less first, with its 95 % interval, all as shares.

        The interval is that of A. Agresti and Y. Min, Statistics in Medicine 24, 2005: Wald's, after half an episode
        was added to each of the four counts. (0, -1, 1) without episodes.
        """
        if not self.trials:
            return 0.0, -1.0, 1.0
        n, gains, losses = self.trials + 2.0, self.only_second + 0.5, self.only_first + 0.5
        middle = (gains - losses) / n
        half = Z95 * math.sqrt(max(0.0, gains + losses - (gains - losses) ** 2 / n)) / n
        found = (self.only_second - self.only_first) / self.trials
        return found, max(-1.0, middle - half), min(1.0, middle + half)


def pair(first: Mapping[tuple[str, int], bool], second: Mapping[tuple[str, int], bool]) -> Paired:
    """Compare two runs by the episodes that both have.

    Args:
        first: Success by task and seed.
        second: Likewise, of the other run.
    """
    outcomes = [(first[key], second[key]) for key in first if key in second]
    return Paired(*(outcomes.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))))
