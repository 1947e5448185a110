"""Every proposal gets a word, in time or not; the best rung that fits is used; what fails breaks nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from cosmos3_ros.dynamics_loop import DynamicsLoop, Pending, Times, Told, work
from cosmos3_ros.judge import LADDER, Decision, Judgement, Proposal, Rung
from engine.errors import InvalidInput, Problem
from engine.runtime import Cancelled

SLOW, FAST = Rung('slow', steps=20), Rung('fast', steps=2)
PROPOSAL = Proposal(0, {}, np.zeros(7), np.zeros((4, 7)), np.zeros(4))


class HeldBack:
    """Stands in for a judge; each judgement lasts until it is let go or given up."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.began = threading.Event()
        self.used: list[Rung] = []
        self.skipped = self.resets = 0
        self.error: Exception | None = None

    def dream_passes(self, _rung: Rung) -> float:
        return 0.0

    def judge(self, _proposal: Proposal, rung: Rung, _seed: int, *, cancelled: Callable[[], bool]) -> Judgement:
        self.used.append(rung)
        self.began.set()
        if self.error is not None:
            raise self.error
        while not self.free.wait(0.002):
            if cancelled():
                raise Cancelled('given up')
        return Judgement(Decision.OK, 'fine', rung=rung)

    def skip(self, _proposal: Proposal) -> None:
        self.skipped += 1

    def reset(self) -> None:
        self.resets += 1


class Bench:
    """A loop, its judge, and all that was told."""

    def __init__(self, budget_s: float = 10.0, ladder: tuple[Rung, ...] = (SLOW, FAST)) -> None:
        self.judge, self.told, self.reports = HeldBack(), [], []
        self.loop = DynamicsLoop(
            self.judge, ladder, budget_s, self._tell, lambda text, _error: self.reports.append(text)
        )
        self._changed = threading.Condition()

    def _tell(self, told: Told) -> None:
        with self._changed:
            self.told.append(told)
            self._changed.notify_all()

    def propose(self, sequence: int, epoch: int = 1, make: Callable[[], Proposal] = lambda: PROPOSAL) -> None:
        self.loop.submit(Pending(epoch, sequence, 0, make))

    def after(self, count: int) -> list[tuple[int, Decision]]:
        """What was told once so many verdicts are out."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.told) >= count, 10), self.told
            return [(told.pending.sequence, told.judgement.decision) for told in self.told]


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def start(**options: object) -> Bench:
        benches.append(Bench(**options))
        return benches[-1]

    yield start
    for bench in benches:
        bench.judge.free.set()
        bench.loop.close()


def test_a_proposal_that_waits_is_overtaken_by_the_next_and_its_author_is_told(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.judge.free.clear()
    bench.propose(1)
    assert bench.judge.began.wait(5)
    bench.propose(2)
    bench.propose(3)
    assert bench.after(1) == [(2, Decision.UNKNOWN)]
    assert 'overtaken by chunk 3' in bench.told[0].judgement.text
    bench.judge.free.set()
    assert bench.after(3)[1:] == [(1, Decision.OK), (3, Decision.OK)]


def test_what_is_not_done_within_the_budget_is_unknown_and_not_tried_for_ever(make: Callable[..., Bench]) -> None:
    bench = make(budget_s=0.05)
    bench.loop.times.add(SLOW, 0.02)
    bench.loop.times.add(FAST, 0.001)
    bench.judge.free.clear()
    bench.propose(1)
    assert bench.after(1) == [(1, Decision.UNKNOWN)]
    assert 'late: the rung slow was not done within 0.05 s' in bench.told[0].judgement.text
    assert 0.05 <= bench.told[0].cost_s < 2
    for number in (2, 3):
        bench.propose(number)
        bench.after(number)
    assert bench.judge.used == [SLOW, SLOW, FAST], 'the slow one has shown that it needs longer'
    assert bench.judge.skipped == 3, 'the next chunk is compared with those that were not imagined, too'


def test_without_time_for_any_rung_nothing_is_begun(make: Callable[..., Bench]) -> None:
    bench = make(budget_s=0.01)
    bench.loop.times.add(FAST, 1.0)
    bench.loop.times.add(SLOW, 10.0)
    bench.propose(1)
    assert bench.after(1) == [(1, Decision.UNKNOWN)]
    assert 'no rung of the ladder fits' in bench.told[0].judgement.text
    assert bench.judge.used == []


def test_a_judgement_that_fails_is_unknown_and_the_next_one_is_made(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.judge.error = InvalidInput('proposal', [Problem('views', 'are missing')])
    bench.propose(1)
    assert bench.after(1) == [(1, Decision.UNKNOWN)]
    assert 'views: are missing' in bench.told[0].judgement.text
    assert bench.reports == [], 'what the user can mend needs no traceback'
    bench.judge.error = ZeroDivisionError('a defect')
    bench.propose(2)
    assert bench.after(2)[1] == (2, Decision.UNKNOWN)
    assert 'a defect' in bench.reports[0]

    def gone() -> Proposal:
        raise InvalidInput('proposal', [Problem('observations', 'are not known')])

    bench.judge.error = None
    bench.propose(3, make=gone)
    bench.propose(4)
    assert bench.after(4)[-1] == (4, Decision.OK)


def test_a_new_epoch_is_a_new_run(make: Callable[..., Bench]) -> None:
    bench = make()
    for number, epoch in enumerate((1, 1, 2), start=1):
        bench.propose(number, epoch)
        bench.after(number)
    assert bench.judge.resets == 2


def test_what_was_under_way_at_a_reset_is_not_told(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.judge.free.clear()
    bench.propose(1)
    assert bench.judge.began.wait(5)
    bench.loop.reset()
    bench.judge.free.set()
    bench.propose(2)
    assert bench.after(1) == [(2, Decision.OK)]


def test_jobs_run_between_judgements_and_keep_their_failures_to_themselves(make: Callable[..., Bench]) -> None:
    bench = make()
    assert bench.loop.run(lambda _over: 3).result(5) == 3
    failing = bench.loop.run(lambda _over: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failing.result(5)
    bench.propose(1)
    assert bench.after(1) == [(1, Decision.OK)]


def test_a_listener_that_fails_does_not_end_the_judging(make: Callable[..., Bench]) -> None:
    bench = make()
    told, bench._tell = bench._tell, None
    failures = iter([OSError('no space left'), None])

    def tell(verdict: Told) -> None:
        failure = next(failures)
        if failure is not None:
            raise failure
        told(verdict)

    bench.loop._tell = tell
    bench.propose(1)
    bench.loop.run(lambda _over: None).result(5)
    bench.propose(2)
    assert bench.after(1) == [(2, Decision.OK)]
    assert 'no space left' in bench.reports[0]


def test_what_is_done_after_its_time_is_unknown_and_keeps_its_scores(make: Callable[..., Bench]) -> None:
    bench = make(budget_s=0.05)

    def judge(_proposal: Proposal, rung: Rung, _seed: int, *, cancelled: Callable[[], bool]) -> Judgement:
        while not cancelled():
            threading.Event().wait(0.002)
        return Judgement(Decision.OK, 'fine', {'surprise': 1.0}, rung=rung)

    bench.judge.judge = judge
    bench.propose(1)
    assert bench.after(1) == [(1, Decision.UNKNOWN)]
    assert (bench.told[0].judgement.scores, bench.told[0].judgement.text[:4]) == ({'surprise': 1.0}, 'late')


def test_after_a_while_without_time_for_anything_the_cheapest_rung_is_tried_again() -> None:
    times = Times()
    for rung in (SLOW, FAST):
        for _ in range(8):
            times.add(rung, 60.0)
    assert [times.best((SLOW, FAST), 0.5) for _ in range(9)] == [None] * 9
    assert times.best((SLOW, FAST), 0.5) is FAST
    times.add(FAST, 0.01)
    assert times.best((SLOW, FAST), 0.5) is SLOW


def test_who_asks_after_the_end_is_told_so(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.loop.close()
    with pytest.raises(Cancelled):
        bench.loop.run(lambda _over: 3).result(5)


def test_closing_gives_up_what_is_under_way_and_what_waits(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.judge.free.clear()
    bench.propose(1)
    assert bench.judge.began.wait(5)
    waiting = bench.loop.run(lambda _over: 3)
    began = time.monotonic()
    bench.loop.close()
    assert time.monotonic() - began < 2
    with pytest.raises(Cancelled):
        waiting.result(1)


def test_times_of_other_rungs_are_estimated_from_the_work_and_forgotten_when_they_are_old() -> None:
    times = Times()
    assert times.best((SLOW, FAST), 1.0) is FAST, 'nothing is known: begin with the cheapest'
    times.add(FAST, 0.1)
    assert times.usual(SLOW) == pytest.approx(0.1 * work(SLOW) / work(FAST))
    assert times.best((SLOW, FAST), 0.5) is FAST
    assert times.best((SLOW, FAST), 5.0) is SLOW
    assert times.best((SLOW, FAST), 0.05) is None
    times.add(SLOW, 60.0)
    assert times.best((SLOW, FAST), 5.0) is FAST
    chosen = [times.best((SLOW, FAST), 5.0) for _ in range(40)]
    assert SLOW in chosen, 'what was slow once is tried again'


def test_the_ladder_goes_from_much_work_to_little() -> None:
    assert [work(rung) for rung in LADDER] == sorted((work(rung) for rung in LADDER), reverse=True)
