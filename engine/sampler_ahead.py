"""Noise that is there before it is asked for: the numbers of :func:`engine.sampler.framework_noise`, drawn ahead.

The reference's generator takes 26 ms for the noise of a DROID chunk, and another would give other numbers. But they
depend on the seed alone, and mostly it is known which seed is next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from engine.sampler import RequestSeed

LEAD_S = 0.005
"""Time that whoever has been served is given to make use of it, before the thread draws what is next."""
_SEEDS = 2**32


@dataclass(frozen=True)
class _Draw[T]:
    """Noise that has been drawn, or is going to be; `urgent` once somebody waits for it."""

    seed: int
    shape: tuple[int, ...]
    noise: Future[T]
    urgent: threading.Event

    def is_of(self, seed: int, shape: tuple[int, ...]) -> bool:
        """Whether this is what was asked for, and neither failed nor was called off."""
        void = self.noise.cancelled() or (self.noise.done() and self.noise.exception() is not None)
        return (self.seed, self.shape) == (seed, shape) and not void


class NoiseAhead[T]:
    """Draws the noise of the request that is expected next, on a thread of its own. Thread-safe.

    Expected is what a :class:`~engine.sampler.RequestSeed` names as its successor. Of plain numbers, it is the next of
    an arithmetic sequence once three of it have been asked for. Otherwise nothing is drawn ahead, and the noise asked
    for last is kept, for the case that the same seed comes again.

    A wrong guess costs time of another core and nothing else: :meth:`take` returns the noise of the seed that it is
    given. At most two pieces of noise exist at a time, one kept and one being drawn.
    """

    def __init__(self, draw: Callable[[int, tuple[int, ...]], T]) -> None:
        """Start with nothing drawn; the thread begins with the first draw.

        Args:
            draw: Makes the noise of a seed and a shape: :func:`~engine.sampler.framework_noise`, and whatever else can
                be done with it beforehand.
        """
        self._draw = draw
        self._worker = ThreadPoolExecutor(1, thread_name_prefix='noise')
        self._lock = threading.Lock()
        self._asked: tuple[int, ...] = ()  # seeds of the latest requests, newest last
        self._shape: tuple[int, ...] = ()
        self._kept: _Draw[T] | None = None

    def take(self, seed: int, shape: tuple[int, ...]) -> T:
        """The noise of a seed. It may be handed out again: only what every request writes over may be written to.

        Args:
            seed: Seed of the request, 0..2**32 - 1.
            shape: Of the noise.

        Returns:
            What `draw` made of them. If it is being made at this moment, that is waited for.
        """
        with self._lock:
            self._asked, self._shape = (*self._asked, seed)[-3:], shape
            kept = self._kept
        # What can still be cancelled has not been begun: the thread has other things to do, so draw it here.
        if kept is not None and kept.is_of(seed, shape) and not kept.noise.cancel():
            kept.urgent.set()
            return kept.noise.result()
        drawn: Future[T] = Future()
        drawn.set_result(self._draw(seed, shape))
        with self._lock:
            self._kept = _Draw(seed, shape, drawn, threading.Event())
        return drawn.result()

    def draw_ahead(self) -> None:
        """Begin to draw what is expected next; returns at once. To be called when a core is free."""
        with self._lock:
            seed, shape, kept = self._expected(), self._shape, self._kept
            if seed is None or (kept is not None and kept.is_of(seed, shape)):
                return
            if kept is not None:
                kept.noise.cancel()
            urgent = threading.Event()
            self._kept = _Draw(seed, shape, self._worker.submit(self._draw_later, seed, shape, urgent), urgent)

    def _draw_later(self, seed: int, shape: tuple[int, ...], urgent: threading.Event) -> T:
        urgent.wait(LEAD_S)
        return self._draw(seed, shape)

    def _expected(self) -> int | None:
        following = None
        if self._asked and isinstance(self._asked[-1], RequestSeed):
            following = self._asked[-1].following
        elif len(self._asked) == 3 and self._asked[2] - self._asked[1] == self._asked[1] - self._asked[0]:
            following = 2 * self._asked[2] - self._asked[1]
        return following if following is not None and 0 <= following < _SEEDS else None
