"""Lets somebody else lead in some demonstrations at first, so that the hand shows how it goes on from where they end.

A policy that was trained on demonstrations makes mistakes that no demonstration knows, and never sees how they are made
good. Here it makes them: it leads for a while, its motion dies away, and the scripted hand goes on. What the policy did
is nothing to learn; its rows are known. The idea is that of DAgger: Ross, Gordon and Bagnell, "A Reduction of Imitation
Learning and Structured Prediction to No-Regret Online Learning", AISTATS 2011.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.demonstration_disturbances import INSTANT_S, Disturbed
from engine.contract import TimingTerms
from engine.errors import InvalidInput, Problem
from engine.evaluation.closed_loop import NS, Actor, LoopTerms
from engine.evaluation.expert_paths import Rows, Seen
from engine.evaluation.tasks import Episode

Floats = NDArray[np.float64]

LONGEST_SHARE = 0.55
"""Of an episode's time at most, that somebody else leads; the rest is for the hand."""

_SHORTEST_S = 0.3
_FADE_S = 0.6  # in which what was led comes to rest


@dataclass(frozen=True, eq=False)
class _Fading:
    """The motion of a chunk as it dies away, from `begin_s` on the clock of the stamps."""

    begin_s: float
    times: Floats
    rows: Rows

    @property
    def end_s(self) -> float:
        """When it is at rest."""
        return self.begin_s + _FADE_S

    def at(self, times: Floats) -> Rows:
        """Rows at times [N] of that clock: along the chunk, slower and slower."""
        share = np.clip((times - self.begin_s) / _FADE_S, 0.0, 1.0)
        along = self.begin_s + _FADE_S * (share - share**2 / 2)
        positions = np.stack([np.interp(along, self.times, column) for column in self.rows.positions.T], axis=1)
        grip = float(np.interp(self.begin_s, self.times, self.rows.grippers))
        return Rows(positions, np.full(len(times), grip))


def check_lead(timing: TimingTerms, loop: LoopTerms) -> None:
    """Refuse terms with which a chunk ends before its motion has died away.

    Raises:
        InvalidInput: It does.
    """
    needed = max(loop.replan_rows / timing.fps, loop.latency_s) + loop.latency_s + _FADE_S / 2
    if needed > timing.chunk_rows / timing.fps:
        allowed = f'{timing.chunk_rows / timing.fps:.2f} s, the length of a chunk'
        remedy = 'look more often, or with less latency'
        raise InvalidInput(
            'led demonstrations', [Problem('led', 'needs longer chunks', f'{needed:.2f} s', allowed, remedy)]
        )


class Led:
    """A scripted hand, and who leads before it; an :class:`~engine.evaluation.closed_loop.Actor`."""

    def __init__(self, hand: Disturbed, leader: Actor, timing: TimingTerms, loop: LoopTerms, share: float) -> None:
        """Take both.

        Args:
            hand: Goes on.
            leader: Leads.
            timing: Of the contract.
            loop: How the loop is closed.
            share: Of the episodes that are led, 0 to 1.
        """
        self._hand, self._leader, self._share = hand, leader, share
        self._step_s, self._rows = 1.0 / timing.fps, timing.chunk_rows
        self._delay_s = loop.latency_s

    @property
    def sees(self) -> bool:
        """Whether the next chunk needs pictures."""
        return self._left_s > 0 and self._leader.sees

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Of this episode: beginning and end of all that was not the hand's, ns on the clock of the stamps."""
        return [*self._led, *self._hand.spans]

    @property
    def leads(self) -> bool:
        """Whether the hand has not taken over yet."""
        return self._left_s > 0 or self._fading is not None

    def begin(self, episode: Episode) -> None:
        """The seed decides whether it is led, and for how long."""
        rng = np.random.default_rng([episode.seed, 6])
        led, seconds = rng.uniform() < self._share, rng.uniform(_SHORTEST_S, LONGEST_SHARE * episode.terms.horizon_s)
        self._left_s = float(seconds) if led else 0.0
        self._end_s: float | None = None
        self._last: tuple[Floats, Rows] | None = None
        self._fading: _Fading | None = None
        self._led: list[tuple[int, int]] = []
        self._hand.begin(episode)
        self._leader.begin(episode)

    def act(self, seen: Seen) -> Rows:
        """The next chunk: the leader's, one that dies away, or the hand's."""
        now = seen.stamp_ns * 1e-9
        times = now + self._step_s * np.arange(1, self._rows + 1, dtype=np.float64)
        if self._left_s > 0:
            if self._end_s is None:
                self._end_s = now + self._left_s
                self._led = [(round((now + self._delay_s) * NS), 2**62)]
            if self._last is None or now < self._end_s:
                rows = self._leader.act(seen)
                self._last = times, rows
                return rows
            self._fading, self._left_s = _Fading(now + self._delay_s, *self._last), 0.0
        if self._fading is None:
            return self._hand.act(seen)
        if now < self._fading.end_s - INSTANT_S:
            return self._fading.at(times)
        self._led = [(self._led[0][0], round((now + self._delay_s) * NS))]
        self._fading = None
        return self._hand.act(seen)
