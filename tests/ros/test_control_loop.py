"""Promises of the control thread: on time by absolute deadlines, never in a burst, and gone when it is stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from cosmos3_ros.control_loop import ControlLoop

PERIOD_NS = 5_000_000


class Calls:
    """What is called: counts, notes its thread, and does what it is told on top."""

    def __init__(self) -> None:
        self.count = 0
        self.threads: set[int] = set()
        self.failures: list[str] = []
        self.act: Callable[[], None] = lambda: None
        self._grown = threading.Condition()

    def __call__(self) -> None:
        with self._grown:
            self.count += 1
            self.threads.add(threading.get_ident())
            self._grown.notify_all()
        self.act()

    def reach(self, count: int) -> None:
        with self._grown:
            assert self._grown.wait_for(lambda: self.count >= count, 20.0), f'only {self.count} calls'


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def loop(calls: Calls) -> Iterator[ControlLoop]:
    made = ControlLoop(calls, PERIOD_NS, calls.failures.append)
    yield made
    made.stop()


def test_deadlines_are_absolute_so_that_no_time_is_lost_however_long_a_call_takes(calls, loop):
    late = threading.Event()
    calls.act = lambda: late.wait(0.002)
    loop.start()
    calls.reach(60)
    loop.stop()
    began = list(loop._began_ns)
    periods = loop.periods()
    passed = (began[-1] - began[0]) / PERIOD_NS
    assert abs(passed - (periods.ticks - 1 + periods.missed)) < 1.0


def test_a_late_call_is_not_followed_by_a_burst(calls, loop):
    late = threading.Event()

    def dawdle() -> None:
        if calls.count == 5:
            late.wait(10.5 * PERIOD_NS / 1e9)

    calls.act = dawdle
    loop.start()
    calls.reach(15)
    loop.stop()
    assert loop.periods().missed >= 10
    assert loop.periods().worst_ms > 10 * PERIOD_NS / 1e6
    gaps = [b - a for a, b in zip(list(loop._began_ns)[5:], list(loop._began_ns)[6:], strict=False)]
    assert sorted(gaps)[len(gaps) // 2] > PERIOD_NS / 2, 'the deadlines that passed are let go'


def test_after_stop_nothing_is_called_any_more_and_it_can_start_again(calls, loop):
    for _ in range(3):
        before = calls.count
        loop.start()
        calls.reach(before + 3)
        assert loop.stop()
        stopped = calls.count
        assert not loop.running
        assert calls.count == stopped
    assert len(calls.threads) >= 1


def test_it_may_be_stopped_from_within_a_call(calls, loop):
    calls.act = loop.stop
    loop.start()
    calls.reach(1)
    loop._thread.join(10.0)
    assert not loop.running
    assert calls.count == 1


def test_a_call_that_raises_is_told_with_its_traceback_and_ends_the_thread(calls, loop):
    def fail() -> None:
        raise ArithmeticError('in a tick')

    calls.act = fail
    loop.start()
    loop._thread.join(10.0)
    assert not loop.running
    assert 'Traceback' in calls.failures[0]
    assert 'in a tick' in calls.failures[0]


def test_without_a_right_to_real_time_it_runs_all_the_same_and_says_why_not(calls):
    loop = ControlLoop(calls, PERIOD_NS, calls.failures.append, priority=10_000)  # nobody may have that
    loop.start()
    calls.reach(3)
    assert loop.stop()
    assert loop.why_not_realtime


PRIORITIES = """
import os, threading
from cosmos3_ros.control_loop import ControlLoop

found, called, end = dict(), threading.Event(), threading.Event()
before = threading.Thread(target=end.wait)
before.start()

def note():
    found['control'] = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK, os.sched_getparam(0).sched_priority
    called.set()

loop = ControlLoop(note, 5_000_000, print, priority=40, owns_process={owns})
loop.start()
assert called.wait(20.0)
after = threading.Thread(target=end.wait)
after.start()
for name, thread in (('main', threading.main_thread()), ('before', before), ('after', after)):
    found[name] = os.sched_getscheduler(thread.native_id), os.sched_getparam(thread.native_id).sched_priority
end.set()
loop.stop()
print(bool(loop.why_not_realtime), *(found[name] for name in ('control', 'main', 'before', 'after')), sep=';')
"""


@pytest.mark.parametrize('owns', [False, True])
def test_the_other_threads_of_a_process_of_its_own_get_the_lowest_real_time_priority_and_those_of_others_none(owns):
    code = PRIORITIES.format(owns=owns)
    output = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=60).stdout
    refused, control, *others = output.strip().split(';')
    usual, lowest = str((os.SCHED_OTHER, 0)), str((os.SCHED_RR, 1))
    if refused == 'True':  # this user has no right to any
        assert {control, *others} == {usual}
    else:
        assert control == str((os.SCHED_FIFO, 40))
        assert set(others) == {lowest if owns else usual}


def test_work_between_calls_is_done_in_the_threads_own_time_and_its_outcome_comes_back(calls, loop):
    loop.start()
    assert loop.after_tick(threading.get_ident) in calls.threads
    with pytest.raises(ZeroDivisionError):
        loop.after_tick(lambda: 1 / 0)
    assert loop.running, 'a failure of such work is its own'


def test_work_is_done_where_it_is_asked_for_while_the_loop_does_not_run(loop):
    assert loop.after_tick(threading.get_ident) == threading.get_ident()


def test_work_that_the_loop_did_not_get_to_is_done_when_it_has_ended(calls, loop):
    entered, gate = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        gate.wait(10.0)

    calls.act = hold
    loop.start()
    assert entered.wait(10.0)
    outcome: list[int] = []
    asking = threading.Thread(target=lambda: outcome.append(loop.after_tick(lambda: 7)))
    asking.start()
    calls.act = loop._ending.set  # the loop ends with this call
    loop._ending.set()
    gate.set()
    asking.join(10.0)
    assert outcome == [7]


def test_the_percentiles_are_those_of_the_calls(calls, loop):
    loop.start()
    calls.reach(50)
    loop.stop()
    periods = loop.periods()
    assert periods.ticks == calls.count
    assert 0.5 * PERIOD_NS / 1e6 < periods.p50_ms < 10 * PERIOD_NS / 1e6
    assert periods.p50_ms <= periods.p99_ms <= periods.worst_ms
