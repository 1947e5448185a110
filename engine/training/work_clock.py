"""How long a run has worked, whatever lay in between."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class WorkClock:
    """Seconds of work."""

    def __init__(self, before: float) -> None:
        """Go on counting from `before`, the seconds of work before an interruption."""
        self._began = time.monotonic() - before

    @property
    def seconds(self) -> float:
        """Altogether, those before an interruption included."""
        return time.monotonic() - self._began

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done in here is no work of the run."""
        at = time.monotonic()
        yield
        self._began += time.monotonic() - at
