"""What will be executed anyway while the next chunk is computed, so that the next chunk can continue it.

With *prefix conditioning* the policy is told the rows that the arm will have passed by the time the new chunk arrives,
and generates only what comes after them. The new chunk then agrees with the old one where they join, whatever the
network thinks of the past. It is the training-time form of what K. Black, M. Galliker and S. Levine describe for
inference in "Real-Time Execution of Action Chunking Flow Policies" (2025).
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TAKE_OVER_S = 0.05
"""From the arrival of a chunk to the instant at which the guard lets it take over, and a little more."""
LEAST_NEW_ROWS = 4
"""Rows that stay for the policy to decide, however slow it is."""
_DELAYS = 8
_PENDING = 8


class Delays:
    """How long it takes from an observation to the chunk made from it, as measured for each request of a run."""

    def __init__(self) -> None:
        """Know nothing."""
        self._kept: deque[float] = deque(maxlen=_DELAYS)
        self._first = True

    def restart(self) -> None:
        """A run begins: its first request also reads the new prompt, which says nothing about the others."""
        self._kept.clear()
        self._first = True

    def add(self, seconds: float) -> None:
        """Note one request."""
        if self._first and self._kept:
            self._kept.clear()  # the second request replaces what the first one suggested
            self._first = False
        self._kept.append(seconds)

    @property
    def expected(self) -> float | None:
        """The longest of the newest requests [s]; None before the first."""
        return max(self._kept, default=None)


@dataclass(frozen=True)
class Plan:
    """A chunk that was sent: row k is due at `stamp_ns + (k + 1) * step_ns`; rows [N, D] in physical units."""

    stamp_ns: int
    step_ns: int
    rows: NDArray[np.floating]

    def at(self, times_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Rows [K, D] at the given times, interpolated linearly; times must lie between first and last row."""
        place = (times_ns - self.stamp_ns) / self.step_ns - 1
        below = np.clip(np.floor(place).astype(np.int64), 0, len(self.rows) - 2)
        share = (place - below)[:, None]
        rows: NDArray[np.float64] = (1 - share) * self.rows[below] + share * self.rows[below + 1]
        return rows

    def covers(self, times_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the times lie between the first and the last row."""
        within: NDArray[np.bool_] = (times_ns >= self.stamp_ns + self.step_ns) & (
            times_ns <= self.stamp_ns + len(self.rows) * self.step_ns
        )
        return within


class Continuation:
    """Keeps the plan that the guard executes. Thread-safe."""

    def __init__(self) -> None:
        """Nothing is executed."""
        self._changed = threading.Condition()
        self._sent: dict[tuple[int, int], Plan] = {}
        self._undecided: set[tuple[int, int]] = set()
        self._plan: Plan | None = None

    def sent(self, epoch: int, sequence: int, plan: Plan) -> None:
        """A chunk is on its way to the guard."""
        with self._changed:
            self._sent[epoch, sequence] = plan
            self._undecided.add((epoch, sequence))
            while len(self._sent) > _PENDING:
                oldest = next(iter(self._sent))
                del self._sent[oldest]
                self._undecided.discard(oldest)

    def decided(self, epoch: int, sequence: int, accepted: bool) -> None:
        """The guard has judged a chunk; decisions about chunks of others are ignored."""
        with self._changed:
            plan = self._sent.get((epoch, sequence))
            self._undecided.discard((epoch, sequence))
            if plan is not None and accepted:
                self._plan = plan
            self._changed.notify_all()

    def interrupted(self) -> None:
        """The arm does not follow any chunk."""
        with self._changed:
            self._plan = None

    def forget(self) -> None:
        """Whatever was sent is void: a new run, a new epoch."""
        with self._changed:
            self._sent.clear()
            self._undecided.clear()
            self._plan = None
            self._changed.notify_all()

    def settle(self, timeout_s: float) -> None:
        """Wait for the guard's word on the newest chunk, but no longer than that."""
        with self._changed:
            self._changed.wait_for(lambda: not self._undecided, timeout_s)

    def rows(self, stamp_ns: int, delay_s: float | None, count: int) -> NDArray[np.float64] | None:
        """Rows that will be executed while a chunk is computed.

        Args:
            stamp_ns: Time of the observation that the chunk is computed from.
            delay_s: How long that is expected to take; None if unknown.
            count: Rows of the chunk.

        Returns:
            [K, D], rows 0..K-1 of the new chunk as the old plan has them; None if there is nothing to continue.
        """
        with self._changed:
            plan = self._plan
        if plan is None or delay_s is None:
            return None
        wanted = min(math.ceil((delay_s + TAKE_OVER_S) * 1e9 / plan.step_ns), count - LEAST_NEW_ROWS)
        times = stamp_ns + plan.step_ns * np.arange(1, wanted + 1, dtype=np.int64)
        known = plan.covers(times)
        if not len(known) or not known[0]:
            return None
        return plan.at(times[: len(known) if known.all() else int(known.argmin())])
