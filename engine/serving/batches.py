"""Several robots' requests in one pass of the network.

Whoever comes while nothing is computed waits a moment for others, and computes for all that came; whoever comes in the
meantime is of the next round.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from numpy import uint8
from numpy.typing import NDArray

from engine.errors import CosmosError, InvalidInput, Problem
from engine.policy_observation import Observation, PolicyChunk
from engine.turns import Cancelled

if TYPE_CHECKING:
    from engine.policy import Policy
    from engine.serving.service import Infers

MOST = 64
"""Requests of one round at the most."""


class InfersTogether(Protocol):
    """As much of :class:`engine.policy.Policy` as this needs."""

    @property
    def together(self) -> bool:
        """Whether several requests share passes of the network."""

    def infer(self, observation: Observation, seed: int, cancelled: Callable[[], bool]) -> PolicyChunk:
        """One chunk."""

    def infer_together(
        self, observations: Sequence[Observation], seeds: Sequence[int], cancelled: Callable[[], bool]
    ) -> list[PolicyChunk]:
        """A chunk for each."""

    def imagined_video(self, chunk: PolicyChunk) -> NDArray[uint8]:
        """What was imagined with it."""


@dataclass(eq=False)
class _Asked:
    """A request that waits for its round.

    Attributes:
        observation: Of a robot.
        seed: Of its noise.
        cancelled: Whether nobody waits for it any more.
        done: Set when there is an outcome.
        chunk: What came of it.
        error: Or why nothing did.
    """

    observation: Observation
    seed: int
    cancelled: Callable[[], bool]
    done: threading.Event = field(default_factory=threading.Event)
    chunk: PolicyChunk | None = None
    error: Exception | None = None


def in_rounds(policy: Policy, most: int, wait_s: float) -> Infers:
    """The policy itself if a round has one request, else one that computes for several at once.

    Raises:
        InvalidInput: As :class:`Batches`.
    """
    return policy if most == 1 else Batches(policy, most, wait_s)


class Batches:
    """A policy that is asked by several threads and computes for as many of them as there are at once.

    Attributes:
        parallel: Requests of one round at the most, and so the threads that may ask at a time.
        rounds: How many requests each round so far had, by size: sizes that never came are not there.
    """

    def __init__(self, policy: InfersTogether, most: int, wait_s: float = 0.0) -> None:
        """Ask this policy.

        Args:
            policy: Whose backend computes several requests at once.
            most: Requests of one round at the most.
            wait_s: How long the first of a round waits for others.

        Raises:
            InvalidInput: The backend computes one request at a time, or a number makes no sense.
        """
        problems = []
        if not 2 <= most <= MOST:
            problems.append(Problem('batch', 'is out of range', str(most), f'2 to {MOST}'))
        if not 0 <= wait_s <= 1:
            problems.append(Problem('batch_wait', 'is out of range', f'{wait_s:g} s', '0 to 1 s'))
        if not policy.together:
            remedy = "leave it out, or take backend 'torch'"
            problems.append(Problem('batch', 'this backend computes one request at a time', remedy=remedy))
        if problems:
            raise InvalidInput('requests in rounds', problems)
        self.parallel = most
        self.rounds: dict[int, int] = {}
        self._policy, self._wait_s = policy, wait_s
        self._waiting: list[_Asked] = []
        self._came = threading.Condition()
        self._computing = threading.Lock()

    def infer(self, observation: Observation, seed: int, cancelled: Callable[[], bool]) -> PolicyChunk:
        """One chunk."""
        return self.infer_in('', observation, seed, cancelled)

    def infer_in(
        self, _session: str, observation: Observation, seed: int, cancelled: Callable[[], bool]
    ) -> PolicyChunk:
        """One chunk of actions, computed with those of others that ask at the same time.

        Raises:
            InvalidInput: The observation does not fit the contract. Others of the round are not affected.
            Cancelled: `cancelled` returned True.
            CosmosError: The policy could not infer.
        """
        mine = _Asked(observation, seed, cancelled)
        with self._came:
            self._waiting.append(mine)
            self._came.notify_all()
        while not mine.done.is_set():
            with self._computing:  # whoever gets it computes for all that wait, this one included
                if not mine.done.is_set():
                    self._compute(self._next_round())
        if mine.error is not None:
            raise mine.error
        if mine.chunk is None:
            raise CosmosError('a request got lost on its way through its round')
        return mine.chunk

    def imagined_video(self, chunk: PolicyChunk) -> NDArray[uint8]:
        """What was imagined with a chunk."""
        return self._policy.imagined_video(chunk)

    def _next_round(self) -> list[_Asked]:
        """Those that wait, the longest first, after a moment for others to come."""
        until = time.monotonic() + self._wait_s
        with self._came:
            while len(self._waiting) < self.parallel and (left := until - time.monotonic()) > 0:
                self._came.wait(left)
            taken, self._waiting = self._waiting[: self.parallel], self._waiting[self.parallel :]
        return taken

    def _compute(self, asked: list[_Asked]) -> None:
        try:
            wanted = [one for one in asked if not one.cancelled()]
            if wanted:
                self.rounds[len(wanted)] = self.rounds.get(len(wanted), 0) + 1
                self._compute_wanted(wanted)
        finally:  # nobody of a round may wait for an outcome that never comes
            for one in asked:
                if not one.done.is_set():
                    self._settle(one, error=Cancelled('nobody waits for it any more'))

    def _compute_wanted(self, wanted: list[_Asked]) -> None:
        try:
            chunks = self._together(wanted) if len(wanted) > 1 else [None]
        except Exception as error:
            for one in wanted:
                self._settle(one, error=error)
            return
        for one, chunk in zip(wanted, chunks, strict=True):
            try:
                self._settle(one, chunk or self._policy.infer(one.observation, one.seed, one.cancelled))
            except Exception as error:
                self._settle(one, error=error)

    def _together(self, wanted: list[_Asked]) -> Sequence[PolicyChunk | None]:
        """A chunk for each; None for each if one observation is faulty: that one alone is to hear of it."""
        try:
            return self._policy.infer_together(
                [one.observation for one in wanted],
                [one.seed for one in wanted],
                lambda: all(one.cancelled() for one in wanted),
            )
        except InvalidInput:
            return [None] * len(wanted)

    @staticmethod
    def _settle(one: _Asked, chunk: PolicyChunk | None = None, error: Exception | None = None) -> None:
        one.chunk, one.error = chunk, error
        one.done.set()
