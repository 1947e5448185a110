"""Counts and times of a server, as Prometheus reads them (text format 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

CONTENT_TYPE: Final = 'text/plain; version=0.0.4; charset=utf-8'
LATEST: Final = 256
"""Times that are kept one by one, for those who look at a server from inside."""
BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass
class Histogram:
    """How many times were how long."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total_s: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one time."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """One line for each bucket, and sum and count."""
        sofar = 0
        for edge, count in zip((*BUCKETS_S, '+Inf'), self.counts, strict=True):
            sofar += count
            yield f'{name}_bucket{{{labels},le="{edge}"}} {sofar}'
        yield f'{name}_sum{{{labels}}} {self.total_s:.6f}'
        yield f'{name}_count{{{labels}}} {sofar}'


class Metrics:
    """What happened so far. It belongs to the event loop; others may ask where that is said."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.requests: Counter[tuple[str, str]] = Counter()
        self.turned_away: Counter[str] = Counter()
        self._latency: dict[str, Histogram] = {}
        self._inference = Histogram()
        self._latest: dict[str, deque[float]] = {}

    def count(self, dialect: str, outcome: str, seconds: float | None = None) -> None:
        """One request has come to its end.

        Args:
            dialect: That of the request.
            outcome: `ok`, `reset`, `cancelled`, or why it was refused.
            seconds: From its arrival to its answer; None: not told.
        """
        self.requests[dialect, outcome] += 1
        if seconds is not None:
            self._latency.setdefault(dialect, Histogram()).observe(seconds)
            self._keep('request', seconds)

    def inferred(self, seconds: float) -> None:
        """One inference took so long."""
        self._inference.observe(seconds)
        self._keep('inference', seconds)

    def _keep(self, name: str, seconds: float) -> None:
        self._latest.setdefault(name, deque(maxlen=LATEST)).append(seconds)

    def latest(self) -> dict[str, list[float]]:
        """The newest times by what they are of: `request`, and `inference` alone. May be asked by any thread."""
        return {name: list(times) for name, times in list(self._latest.items())}

    def outcomes(self) -> Counter[str]:
        """Requests so far by outcome, whatever their dialect. May be asked by any thread."""
        found: Counter[str] = Counter()
        for (_, outcome), count in list(self.requests.items()):
            found[outcome] += count
        return found

    def turn_away(self, reason: str) -> None:
        """One connection was not taken."""
        self.turned_away[reason] += 1

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """The page.

        Args:
            gauges: Values of now by name, each with what it means.
        """
        return '\n'.join([*self._lines(), *_gauges(gauges), ''])

    def _lines(self) -> Iterator[str]:
        yield from _head('cosmos3_requests_total', 'counter', 'Requests by dialect and outcome.')
        for (dialect, outcome), count in sorted(self.requests.items()):
            yield f'cosmos3_requests_total{{dialect="{dialect}",outcome="{outcome}"}} {count}'
        yield from _head('cosmos3_connections_refused_total', 'counter', 'Connections that were not taken, by reason.')
        for reason, count in sorted(self.turned_away.items()):
            yield f'cosmos3_connections_refused_total{{reason="{reason}"}} {count}'
        yield from _head('cosmos3_request_seconds', 'histogram', 'From the arrival of a request to its answer.')
        for dialect, times in sorted(self._latency.items()):
            yield from times.lines('cosmos3_request_seconds', f'dialect="{dialect}"')
        yield from _head('cosmos3_inference_seconds', 'histogram', 'Time of the inference alone.')
        yield from self._inference.lines('cosmos3_inference_seconds', 'surface="policy"')


def _head(name: str, kind: str, help_: str) -> Iterator[str]:
    yield f'# HELP {name} {help_}'
    yield f'# TYPE {name} {kind}'


def _gauges(gauges: Mapping[str, tuple[str, float]]) -> Iterator[str]:
    for name, (help_, value) in gauges.items():
        yield from _head(name, 'gauge', help_)
        yield f'{name} {value:g}'
