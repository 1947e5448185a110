"""Taking turns on one set of weights: the policy before imagination, imagination before reasoning.

One request at a time has the turn. A long one lets more urgent ones pass where that is cheap, between two passes of the
network or two of its layers, and goes on afterwards where it stopped:

    with turns.take(Priority.DYNAMICS) as turn:
        for timestep in timesteps:
            turn.give_way()
            ...

Whoever gives way must expect that others used the weights, the backend and the cache of prompts in the meantime. What
is to outlast :meth:`Turn.give_way` has to be its own: local variables, and copies of whatever a backend may overwrite
in its next call (see :class:`engine.backends.base.Step`). Code that does not know for whom it works, such as a backend
between two layers, calls :func:`give_way`, which does nothing outside of a turn.
"""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import count

from engine.errors import CosmosError

POLL_S = 0.005
"""Time after which a waiting request is first asked whether it has been given up; only those that can be are asked."""
SELDOM_S = 0.05
"""Longest time between two such questions; it is doubled up to this, so that long waits cost nobody processor time."""


class Priority(IntEnum):
    """Who goes first; the greater number does."""

    REASONER = 0
    DYNAMICS = 1
    POLICY = 2


class Cancelled(CosmosError):
    """A request was given up because its caller asked for it: while it waited, or between two denoising steps."""


@dataclass
class Traffic:
    """What the requests of one priority went through so far.

    The policy starves others by design: `overtaken`, `waiting` and `longest_wait_s` show it.

    Attributes:
        requests: Turns asked for.
        waits: Times that one had to wait, for its turn or for going on with it.
        hand_overs: Times that one gave way to a more urgent request.
        overtaken: Times that a waiting one saw the turn go to a request that was asked for later.
        given_up: Requests that were given up, or failed, while they waited.
        waiting: Requests that wait now.
        waited_s: Time of all waits that are over, in seconds.
        longest_wait_s: The longest single wait in seconds, those of now included.
    """

    requests: int = 0
    waits: int = 0
    hand_overs: int = 0
    overtaken: int = 0
    given_up: int = 0
    waiting: int = 0
    waited_s: float = 0.0
    longest_wait_s: float = 0.0


def _nothing() -> None:
    """Do nothing."""


def _ignore(_seconds: float) -> None:
    """Do nothing with a time."""


class Turn:
    """The place of one request, from the moment it is asked for to its end.

    Attributes:
        priority: Of the request.
        number: Requests are numbered in the order in which they were asked for.
        thread: Identifier of the thread that works on it.
    """

    def __init__(
        self,
        turns: Turns,
        priority: Priority,
        number: int,
        cancelled: Callable[[], bool] | None,
        pace: Callable[[], None],
        settle: Callable[[], None],
        waited: Callable[[float], None],
    ) -> None:
        """Use :meth:`Turns.take`."""
        self.priority = priority
        self.number = number
        self.thread = threading.get_ident()
        self._turns = turns
        self._cancelled = cancelled
        self._pace = pace
        self._settle = settle
        self._waited = waited
        self._called = threading.Event()
        self._since = 0.0

    @property
    def place(self) -> tuple[int, int]:
        """Waiting requests are served in ascending order of this."""
        return -self.priority, self.number

    def give_way(self) -> None:
        """Let every more urgent request that waits go first; returns when this one has the turn again.

        It keeps its place: none of the same priority gets in between.

        Raises:
            Cancelled: The request was given up while it waited to go on. It does not have the turn any more.
            RuntimeError: The request does not have the turn.
        """
        self._pace()
        if self._turns.wanted(self):
            self._settle()
            self._turns.hand_over(self)

    def wait(self) -> None:
        """Sleep until the turn comes.

        Raises:
            Cancelled: The request was given up first.
        """
        if self._cancelled is None:
            self._called.wait()
            return
        pause = POLL_S
        while not self._called.wait(pause):
            if self._cancelled():
                raise Cancelled('given up while another request had the turn')
            pause = min(2.0 * pause, SELDOM_S)


class Turns:
    """Hands out the turn: the most urgent request first, within a priority in the order in which they were asked for.

    Thread-safe. A thread that has the turn and takes it again joins the turn it has.
    """

    def __init__(self) -> None:
        """Start with nobody."""
        self._mutex = threading.Lock()
        self._holder: Turn | None = None
        # In order of service. Nobody waits while nobody has the turn, so the turn always goes from hand to hand.
        self._waiting: list[Turn] = []
        self._numbers = count()
        self._traffic = {priority: Traffic() for priority in Priority}

    @contextmanager
    def take(
        self,
        priority: Priority,
        cancelled: Callable[[], bool] | None = None,
        *,
        pace: Callable[[], None] = _nothing,
        settle: Callable[[], None] = _nothing,
        waited: Callable[[float], None] = _ignore,
    ) -> Iterator[Turn]:
        """Wait for the turn, and have it for the block. However the block or the wait ends, the turn goes on.

        Args:
            priority: Of the request.
            cancelled: Asked while the request waits, after some milliseconds and then more and more seldom, down to
                every `SELDOM_S`; True gives it up.
            pace: Called wherever the request may give way. What runs by itself once it is launched, on a GPU, keeps
                here from getting far ahead of what has been calculated.
            settle: Called before the request gives way: finishes what it has launched.
            waited: Told the seconds of every wait, also of none (nearly 0) at the start, and of one that was given up.

        Raises:
            Cancelled: `cancelled` returned True while the request waited.
            RuntimeError: This thread has the turn at another priority.
        """
        held = self._holder
        if held is not None and held.thread == threading.get_ident():
            yield _join(held, priority)
            return
        turn = Turn(self, priority, next(self._numbers), cancelled, pace, settle, waited)
        outer = getattr(_here, 'turn', None)
        try:
            with self._mutex:
                self._traffic[priority].requests += 1
                self._line_up(turn)
            self._await(turn)
            _here.turn = turn
            yield turn
        finally:
            _here.turn = outer
            self._leave(turn)

    @property
    def holder(self) -> Turn | None:
        """Who has the turn."""
        return self._holder

    @property
    def waiting(self) -> tuple[Turn, ...]:
        """Who waits, in the order in which they will be served if nobody else comes."""
        with self._mutex:
            return tuple(self._waiting)

    def traffic(self) -> Mapping[Priority, Traffic]:
        """What happened so far, by priority; a copy."""
        now = time.perf_counter()
        with self._mutex:
            found = {priority: replace(traffic) for priority, traffic in self._traffic.items()}
            for turn in self._waiting:
                traffic = found[turn.priority]
                traffic.waiting += 1
                traffic.longest_wait_s = max(traffic.longest_wait_s, now - turn._since)
        return found

    def wanted(self, turn: Turn) -> bool:
        """Whether a request more urgent than the one that has the turn waits for it."""
        with self._mutex:
            return bool(self._waiting) and self._waiting[0].priority > turn.priority

    def hand_over(self, turn: Turn) -> None:
        """Pass the turn on to more urgent requests and wait until it comes back; see :meth:`Turn.give_way`."""
        with self._mutex:
            if self._holder is not turn:
                raise RuntimeError('a request can only give way while it has the turn')
            if not self._waiting or self._waiting[0].priority <= turn.priority:
                return  # whoever wanted it has left
            self._traffic[turn.priority].hand_overs += 1
            turn._called.clear()
            self._holder = None
            self._line_up(turn)
        self._await(turn)

    def _line_up(self, turn: Turn) -> None:
        """Queue a request. The mutex is held."""
        turn._since = time.perf_counter()
        insort(self._waiting, turn, key=lambda other: other.place)
        if self._holder is None:
            self._call_next()
        if self._holder is not turn:
            self._traffic[turn.priority].waits += 1

    def _call_next(self) -> None:
        """Give the turn to the first who waits. The mutex is held."""
        self._holder = self._waiting.pop(0) if self._waiting else None
        if self._holder is None:
            return
        for turn in self._waiting:
            if turn.number < self._holder.number:
                self._traffic[turn.priority].overtaken += 1
        self._holder._called.set()

    def _await(self, turn: Turn) -> None:
        """Wait for the turn and keep account of it."""
        gave_up = True
        try:
            turn.wait()
            gave_up = False
        finally:
            seconds = time.perf_counter() - turn._since
            with self._mutex:
                traffic = self._traffic[turn.priority]
                traffic.given_up += gave_up
                traffic.waited_s += seconds
                traffic.longest_wait_s = max(traffic.longest_wait_s, seconds)
            turn._waited(seconds)

    def _leave(self, turn: Turn) -> None:
        """Take a request out, whether it has the turn, waits for it, or was never queued."""
        with self._mutex:
            if self._holder is turn:
                self._call_next()
            elif turn in self._waiting:
                self._waiting.remove(turn)


_here = threading.local()


def give_way() -> None:
    """Let more urgent requests pass if this thread has a turn; see :meth:`Turn.give_way`."""
    turn: Turn | None = getattr(_here, 'turn', None)
    if turn is not None:
        turn.give_way()


def _join(held: Turn, priority: Priority) -> Turn:
    """The turn that this thread has already. One request has one priority, else the promises to the others break."""
    if held.priority is not priority:
        found = f'{priority.name} inside a turn of {held.priority.name}'
        raise RuntimeError(f'a request keeps its priority: asked for {found}; pass the same one along')
    return held
