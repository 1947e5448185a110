"""How much a count can be trusted."""

from __future__ import annotations

import math

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
