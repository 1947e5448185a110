"""Judges the newest proposal within the time there is, on a thread of its own; knows nothing of ROS.

A verdict that comes after its chunk has been played is worth nothing. So a proposal has a budget, counted from its
arrival: the best rung of the ladder is taken whose usual time fits into what is left, and what is not done by then is
given up. A proposal that still waits when the next one arrives is overtaken. In all these cases somebody hears
`unknown`, and why: silence is never left to be interpreted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from statistics import median

from cosmos3_ros.judge import Decision, Judge, Judgement, Proposal, Rung, failed
from engine.errors import CosmosError, InvalidInput, Problem
from engine.runtime import Cancelled

TIMES_KEPT = 8
_MARGIN = 1.2
"""By how much a rung may take longer than usual before it is too late."""
_SMALL = 0.25
"""Work of a rung on the smallest tier, as a share of that on the usual one."""
_PROBE = 10
"""Proposals in a row into whose time nothing fits, until the cheapest rung is tried all the same."""
_FORGET = 30
"""Proposals for which a rung is passed over until one of its times is forgotten."""
_PICTURES = 10.0
"""Work of decoding what was imagined for now, in passes of the network."""
_FULL = 2.5
"""Work of all windows and the decoding between them, in windows."""


def _nothing() -> Proposal:
    raise InvalidInput('proposal', [Problem('chunk', 'is not there')])


@dataclass(frozen=True)
class Pending:
    """A proposal on its way to a verdict.

    Attributes:
        epoch: Count of resets.
        sequence: Place within the epoch.
        stamp_ns: Time of its observation.
        make: Gathers the proposal; may raise what says why it cannot be had.
        arrived_s: When it came, by the steady clock.
    """

    epoch: int
    sequence: int
    stamp_ns: int
    make: Callable[[], Proposal] = field(default=_nothing)
    arrived_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Told:
    """A verdict on its way out.

    Attributes:
        pending: What it is about.
        judgement: What became of it.
        cost_s: Time since its arrival.
        proposal: What was judged; None if it could not be gathered, or was not looked at.
    """

    pending: Pending
    judgement: Judgement
    cost_s: float
    proposal: Proposal | None = None


class Times:
    """What each rung takes: measured where it was used, else estimated from the others by the work they are."""

    def __init__(self, beside: Callable[[Rung], float] = lambda _rung: 0.0) -> None:
        """Nothing is known.

        Args:
            beside: Passes of the network that a rung takes beside its own.
        """
        self._work: Callable[[Rung], float] = lambda rung: work(rung) + beside(rung)
        self._kept: dict[Rung, deque[float]] = {}
        self._passed_over: dict[Rung, int] = {}
        self._refused = 0

    def add(self, rung: Rung, seconds: float) -> None:
        """A rung took so long, or longer if it was given up."""
        self._kept.setdefault(rung, deque(maxlen=TIMES_KEPT)).append(seconds)
        self._passed_over[rung] = 0

    def usual(self, rung: Rung) -> float | None:
        """Seconds; None if no rung has been used at all."""
        if rung in self._kept:
            return median(self._kept[rung])
        rates = [median(times) / self._work(known) for known, times in self._kept.items()]
        return max(rates) * self._work(rung) if rates else None

    def best(self, ladder: Sequence[Rung], seconds: float) -> Rung | None:
        """The best rung that fits into so much time; None if none does.

        The cheapest, if nothing is known yet, and now and then if nothing fits: what was slow is not slow for ever.
        """
        for rung in ladder:
            usual = self.usual(rung)
            if usual is not None and usual * _MARGIN <= seconds:
                self._refused = 0
                return rung
            self._pass_over(rung)
        if self._kept:
            self._refused += 1
            if self._refused < _PROBE:
                return None
        # What is known is old by now, or nothing is known yet: begin with the cheapest, and learn.
        self._kept.clear()
        self._refused = 0
        return min(ladder, key=self._work)

    def _pass_over(self, rung: Rung) -> None:
        """A rung that was slow once is not slow for ever: forget its times one by one while it is not used."""
        if rung not in self._kept:
            return
        self._passed_over[rung] = self._passed_over.get(rung, 0) + 1
        if self._passed_over[rung] >= _FORGET and len(self._kept) > 1:
            self._passed_over[rung] = 0
            self._kept[rung].popleft()
            if not self._kept[rung]:
                del self._kept[rung]

    def table(self) -> dict[str, float]:
        """Median time of each rung that was used, s."""
        return {rung.name: median(list(times)) for rung, times in list(self._kept.items())}


def work(rung: Rung) -> float:
    """Passes of the network that a rung takes, in those of one window on the usual canvas."""
    windows = _FULL if rung.windows is None else float(rung.windows)
    passes = rung.steps * (rung.seeds + rung.cycle) * windows * (1.0 if rung.tier is None else _SMALL)
    return passes + _PICTURES * rung.pictures


class DynamicsLoop:
    """Owns the worker thread; at most one proposal waits."""

    def __init__(
        self,
        judge: Judge,
        ladder: Sequence[Rung],
        budget_s: float,
        tell: Callable[[Told], None],
        report: Callable[[str, BaseException], None],
        *,
        seed: int = 0,
    ) -> None:
        """Start the thread, idle.

        Args:
            judge: Used by this thread alone.
            ladder: Rungs that may be used, the best first.
            budget_s: Time for each proposal.
            tell: Receives every verdict, on the thread or on that of :meth:`submit`.
            report: Receives a sentence and the exception of what failed for a reason that nobody expected.
            seed: Of the noise; the same for all proposals.
        """
        self.judge = judge
        self.ladder = tuple(ladder)
        self.budget_s = budget_s
        self.times = Times(judge.dream_passes)
        self.counts = dict.fromkeys(Decision, 0)
        self._seed = seed
        self._tell, self._report = tell, report
        self._changed = threading.Condition()
        self._waiting: Pending | None = None
        self._jobs: deque[tuple[Callable[[Callable[[], bool]], object], Future[object]]] = deque()
        self._epoch: int | None = None
        self._closing = False
        self._dropped = False
        self._thread = threading.Thread(target=self._work, name='dynamics', daemon=True)
        self._thread.start()

    def submit(self, pending: Pending) -> None:
        """Judge this next; one that still waits is overtaken."""
        with self._changed:
            overtaken, self._waiting = self._waiting, pending
            self._changed.notify_all()
        if overtaken is not None:
            self._conclude(overtaken, Judgement(Decision.UNKNOWN, f'overtaken by chunk {pending.sequence}'))

    def run[T](self, job: Callable[[Callable[[], bool]], T]) -> Future[T]:
        """Do something else with the judge, between two proposals; what arrives meanwhile is overtaken or late.

        Args:
            job: Is given what says whether it shall end.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._closing or not self._thread.is_alive():
                future.set_exception(Cancelled('the dynamics node was shut down'))
                return future
            self._jobs.append((job, future))  # type: ignore[arg-type]
            self._changed.notify_all()
        return future

    def reset(self) -> None:
        """Begin anew, as on activation or after a jump of the clock: what waits, and what is under way, is void."""
        with self._changed:
            self._waiting, self._epoch, self._dropped = None, None, True
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread; what is under way is given up at its next step."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        while self._jobs:
            _, future = self._jobs.popleft()
            if not future.done():
                future.set_exception(Cancelled('the dynamics node was shut down'))

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._closing or self._waiting or self._jobs):
                    self._changed.wait()
                if self._closing:
                    return
                job = self._jobs.popleft() if self._jobs else None
                pending, self._waiting = (None, self._waiting) if job else (self._waiting, None)
                self._dropped = False
            if job is not None:
                self._do(*job)
            elif pending is not None:
                self._judge(pending)

    def _do(self, job: Callable[[Callable[[], bool]], object], future: Future[object]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(job(lambda: self._closing))
        except BaseException as error:  # whatever it is, it belongs to who asked for it
            future.set_exception(error)

    def _judge(self, pending: Pending) -> None:
        proposal = None
        try:
            proposal = pending.make()
            with self._changed:
                anew = pending.epoch != self._epoch
                if not self._dropped:
                    self._epoch = pending.epoch
            if anew:
                self.judge.reset()
            judgement = self._within_budget(pending, proposal)
        except CosmosError as error:
            judgement = failed(error)
        except Exception as error:
            self._report(f'chunk {pending.epoch}/{pending.sequence} could not be judged: {error}', error)
            judgement = failed(error)
        if not self._dropped:
            self._conclude(pending, judgement, proposal)

    def _within_budget(self, pending: Pending, proposal: Proposal) -> Judgement:
        deadline = pending.arrived_s + self.budget_s
        began = time.monotonic()
        rung = self.times.best(self.ladder, deadline - began)
        if rung is None:
            self.judge.skip(proposal)
            left = max(0.0, deadline - began)
            return Judgement(Decision.UNKNOWN, f'no rung of the ladder fits into the {left:.2f} s that are left')
        try:
            judgement = self.judge.judge(
                proposal,
                rung,
                self._seed,
                cancelled=lambda: self._closing or self._dropped or time.monotonic() > deadline,
            )
        except Cancelled:
            if self._closing or self._dropped:
                raise
            # It would have taken longer; as long as that, it is not tried again with so little time.
            self.times.add(rung, max(time.monotonic() - began, self.budget_s))
            self.judge.skip(proposal)
            return Judgement(Decision.UNKNOWN, self._late(rung))
        self.times.add(rung, time.monotonic() - began)
        if time.monotonic() > deadline:  # the last question was asked before the last piece of work
            return replace(judgement, decision=Decision.UNKNOWN, text=self._late(rung))
        return judgement

    def _late(self, rung: Rung) -> str:
        return f'late: the rung {rung.name} was not done within {self.budget_s:.2f} s'

    def _conclude(self, pending: Pending, judgement: Judgement, proposal: Proposal | None = None) -> None:
        self.counts[judgement.decision] += 1
        try:
            self._tell(Told(pending, judgement, time.monotonic() - pending.arrived_s, proposal))
        except Exception as error:  # whoever listens must not bring down who judges
            self._report(f'the verdict about chunk {pending.epoch}/{pending.sequence} was not told: {error}', error)
