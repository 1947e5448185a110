"""Turns: one at a time, the most urgent first, and nothing left behind by whoever is gone."""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Queue
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.turns import SELDOM_S, Cancelled, Priority, Turn, Turns, give_way

LIMIT_S = 20.0


def until(condition: Callable[[], bool]) -> None:
    """Return as soon as other threads have made it true."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, 'this never came true'
        time.sleep(0)


class Failure(Exception):
    """What goes wrong within a turn."""


class Worker(threading.Thread):
    """A thread that asks for turns and does within them what it is told.

    Attributes:
        inside: All who have the turn.
        crowds: Those who had it together.
        gone: Set to give up its request.
        ended: How its requests ended.
    """

    inside: ClassVar[list[Worker]] = []
    crowds: ClassVar[list[list[Worker]]] = []

    def __init__(self, turns: Turns) -> None:
        super().__init__(daemon=True)
        self.turns = turns
        self.gone = threading.Event()
        self.ended: list[str] = []
        self.done = 0  # times it gave way and came back
        self._told: Queue[Priority | str] = Queue()
        self.start()

    def tell(self, what: Priority | str) -> None:
        self._told.put(what)

    def run(self) -> None:
        while isinstance(asked := self._told.get(), Priority):
            try:
                self.request(asked)
                self.ended.append('left')
            except (Cancelled, Failure) as error:
                self.ended.append(type(error).__name__)
            self.gone.clear()

    def request(self, priority: Priority) -> None:
        with self.turns.take(priority, self.gone.is_set) as turn:
            self.enter()
            while (told := self._told.get()) == 'give way':
                self.inside.remove(self)
                turn.give_way()
                self.enter()
                self.done += 1
            self.inside.remove(self)
            if told == 'fail':
                raise Failure

    def enter(self) -> None:
        """Others would be seen in the list if they were here at the same time."""
        self.inside.append(self)
        if self.inside != [self]:
            self.crowds.append(list(self.inside))


class TurnsMachine(RuleBasedStateMachine):
    """Threads and turns, beside a model of them that has no threads."""

    def __init__(self) -> None:
        super().__init__()
        Worker.inside, Worker.crowds = [], []
        self.turns = Turns()
        self.workers = [Worker(self.turns) for _ in range(5)]
        self.holder: tuple[int, int, int] | None = None  # -priority, number, worker
        self.queue: list[tuple[int, int, int]] = []
        self.asked = 0
        self.endings: list[list[str]] = [[] for _ in self.workers]
        self.counts = {p: {'requests': 0, 'hand_overs': 0, 'given_up': 0, 'overtaken': 0} for p in Priority}
        self.away: set[int] = set()  # numbers of those who gave way
        self.done = 0

    def idle(self) -> list[int]:
        busy = {place[2] for place in self.queue} | ({self.holder[2]} if self.holder else set())
        return [index for index in range(len(self.workers)) if index not in busy]

    def call_next(self) -> None:
        self.holder = self.queue.pop(0) if self.queue else None
        if self.holder and self.holder[1] in self.away:
            self.away.remove(self.holder[1])
            self.done += 1
        for place in self.queue:
            if self.holder and place[1] < self.holder[1]:
                self.count(place, 'overtaken')

    def count(self, place: tuple[int, int, int], what: str) -> None:
        self.counts[Priority(-place[0])][what] += 1

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), priority=st.sampled_from(Priority))
    def ask(self, data: st.DataObject, priority: Priority) -> None:
        worker = data.draw(st.sampled_from(self.idle()))
        place = (-priority, self.asked, worker)
        self.asked += 1
        self.count(place, 'requests')
        insort(self.queue, place)
        if self.holder is None:
            self.call_next()
        self.workers[worker].tell(priority)

    @precondition(lambda self: self.holder)
    @rule(fail=st.booleans())
    def end(self, fail: bool) -> None:
        worker = self.holder[2]
        self.endings[worker].append('Failure' if fail else 'left')
        self.call_next()
        self.workers[worker].tell('fail' if fail else 'leave')

    @precondition(lambda self: self.holder)
    @rule(gone=st.booleans())
    def give_way(self, gone: bool) -> None:
        place = self.holder
        if self.queue and self.queue[0][0] < place[0]:
            self.count(place, 'hand_overs')
            insort(self.queue, place)
            self.away.add(place[1])
            self.call_next()
            if gone:
                self.give_up(place)
                self.workers[place[2]].gone.set()
        else:
            self.done += 1
        self.workers[place[2]].tell('give way')

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def leave_the_queue(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(self.queue))
        self.give_up(place)
        self.workers[place[2]].gone.set()

    def give_up(self, place: tuple[int, int, int]) -> None:
        self.queue.remove(place)
        self.away.discard(place[1])
        self.count(place, 'given_up')
        self.endings[place[2]].append('Cancelled')

    def number_of(self, turn: Turn | None) -> int | None:
        return next((i for i, worker in enumerate(self.workers) if turn and worker.ident == turn.thread), None)

    def as_modelled(self) -> bool:
        return (
            self.number_of(self.turns.holder) == (self.holder[2] if self.holder else None)
            and [self.number_of(turn) for turn in self.turns.waiting] == [place[2] for place in self.queue]
            and [worker.ended for worker in self.workers] == self.endings
            and not any(self.workers[i].gone.is_set() for i in self.idle())
            and len(Worker.inside) == (self.holder is not None)
            and sum(worker.done for worker in self.workers) == self.done
        )

    @invariant()
    def everybody_is_where_the_model_says(self) -> None:
        until(self.as_modelled)
        assert Worker.crowds == []
        traffic = self.turns.traffic()
        found = {p: {what: getattr(traffic[p], what) for what in self.counts[p]} for p in Priority}
        assert found == self.counts
        assert sum(t.waiting for t in traffic.values()) == len(self.queue)

    def teardown(self) -> None:
        while self.holder:
            self.end(False)
            until(self.as_modelled)
        for worker in self.workers:
            worker.tell('go home')
            worker.join(LIMIT_S)
            assert not worker.is_alive()


TestAnySequenceOfRequests = TurnsMachine.TestCase
TestAnySequenceOfRequests.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@contextmanager
def another(turns: Turns, priority: Priority) -> Iterator[threading.Event]:
    """A request on another thread that has the turn until the event is set."""
    release, has = threading.Event(), threading.Event()

    def hold() -> None:
        with turns.take(priority):
            has.set()
            release.wait(LIMIT_S)

    thread = threading.Thread(target=hold)
    thread.start()
    assert has.wait(LIMIT_S)
    try:
        yield release
    finally:
        release.set()
        thread.join(LIMIT_S)
        assert not thread.is_alive()


def test_a_thread_that_has_the_turn_joins_it_instead_of_waiting_for_itself() -> None:
    turns = Turns()
    with turns.take(Priority.POLICY) as outer:
        with turns.take(Priority.POLICY) as inner:
            assert inner is outer
        assert turns.holder is outer
    assert turns.holder is None
    assert turns.traffic()[Priority.POLICY].requests == 1


@pytest.mark.parametrize('priority', [Priority.REASONER, Priority.POLICY])
def test_a_request_cannot_change_its_priority_halfway(priority: Priority) -> None:
    turns = Turns()
    with turns.take(Priority.DYNAMICS) as outer:
        with pytest.raises(RuntimeError, match=f'{priority.name} inside a turn of DYNAMICS'), turns.take(priority):
            pass
        assert turns.holder is outer


def test_a_question_that_fails_ends_the_wait_and_leaves_no_trace() -> None:
    turns = Turns()

    def cancelled() -> bool:
        raise Failure

    with another(turns, Priority.REASONER), pytest.raises(Failure), turns.take(Priority.POLICY, cancelled):
        pass
    assert turns.holder is None
    assert turns.waiting == ()
    assert turns.traffic()[Priority.POLICY].given_up == 1


def test_a_request_given_up_while_it_gave_way_may_not_go_on() -> None:
    turns, gone = Turns(), threading.Event()
    urgent = Worker(turns)
    with turns.take(Priority.DYNAMICS, gone.is_set) as turn:
        urgent.tell(Priority.POLICY)
        until(lambda: len(turns.waiting) == 1)
        gone.set()
        with pytest.raises(Cancelled):
            turn.give_way()
        with pytest.raises(RuntimeError, match='while it has the turn'):
            turns.hand_over(turn)
    assert turns.holder is not None, 'the turn of the other must not end with this request'
    urgent.tell('leave')
    until(lambda: turns.holder is None)
    urgent.tell('go home')


def test_waiting_takes_no_processor_time_and_asks_more_and_more_seldom() -> None:
    turns, asked, spent, waited = Turns(), [], [], []

    def wait() -> None:
        start = time.thread_time()
        with turns.take(Priority.POLICY, lambda: bool(asked.append(0)), waited=waited.append):
            spent.append(time.thread_time() - start)

    with another(turns, Priority.DYNAMICS) as release:
        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: turns.traffic()[Priority.POLICY].longest_wait_s > 0.2)
        release.set()
        thread.join(LIMIT_S)
    assert waited[0] > 0.2
    assert spent[0] < 0.05
    # After 5, 10, 20, 40 and then every 50 ms.
    assert 4 <= len(asked) <= 4 + waited[0] / SELDOM_S


def test_a_wait_that_is_not_over_shows_in_the_count() -> None:
    turns = Turns()
    worker = Worker(turns)
    with turns.take(Priority.POLICY):
        worker.tell(Priority.REASONER)
        until(lambda: turns.traffic()[Priority.REASONER].longest_wait_s > 0.01)
        found = turns.traffic()[Priority.REASONER]
        assert (found.waiting, found.waits, found.waited_s) == (1, 1, 0.0)
    worker.tell('leave')
    worker.tell('go home')
    worker.join(LIMIT_S)
    found = turns.traffic()[Priority.REASONER]
    assert found.waiting == 0
    assert found.waited_s == found.longest_wait_s > 0.01


def test_work_is_paced_wherever_it_may_give_way_and_settled_only_before_it_does() -> None:
    turns, log = Turns(), []
    urgent = Worker(turns)
    with turns.take(
        Priority.DYNAMICS,
        pace=lambda: log.append('pace'),
        settle=lambda: log.append(f'settle for {len(turns.waiting)}'),
        waited=lambda _seconds: log.append('waited'),
    ):
        give_way()
        urgent.tell(Priority.POLICY)
        until(lambda: len(turns.waiting) == 1)
        urgent.tell('leave')
        give_way()
    assert log == ['waited', 'pace', 'pace', 'settle for 1', 'waited']
    urgent.tell('go home')


def test_giving_way_without_a_turn_does_nothing() -> None:
    give_way()
    turns = Turns()
    with turns.take(Priority.REASONER):
        pass
    give_way()
    with another(turns, Priority.REASONER):
        give_way()  # the turn of another thread is not this thread's to give
        assert turns.holder is not None
