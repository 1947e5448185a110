"""Calls something at a fixed rate from a thread of its own, by absolute deadlines of the steady clock.

A timer of rclpy is served by the executor, which rebuilds its wait set in Python around every single callback; what it
calls at 100 Hz comes late whenever anything else is due. This thread waits for nothing but the time. Nothing here knows
ROS.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

_REMEMBERED = 4096  # periods that the percentiles are taken of: 40 s at 100 Hz
REMEDY = (
    'grant it the right to a real-time priority: `rtprio 60` for its user in /etc/security/limits.conf, LimitRTPRIO=60 '
    'in a systemd unit, or --ulimit rtprio=60 for a container'
)


@dataclass(frozen=True)
class Periods:
    """How regular the calls were.

    Attributes:
        ticks: Calls since the start.
        missed: Deadlines since the start at which there was no call, because the one before still ran or was late.
        p50_ms: Median time between the beginnings of two calls, over the last few thousand; NaN before there are two.
        p99_ms: Its 99th percentile.
        worst_ms: The longest since the start; NaN before there are two calls.
    """

    ticks: int
    missed: int
    p50_ms: float
    p99_ms: float
    worst_ms: float


def _lift_other_threads() -> None:
    """Give the threads of this process without a real-time priority the lowest one, which theirs inherit.

    Raises:
        OSError: The process may not have it.
    """
    for name in os.listdir('/proc/self/task'):
        with suppress(ProcessLookupError, FileNotFoundError):  # it has ended
            if os.sched_getscheduler(int(name)) == os.SCHED_OTHER:
                os.sched_setscheduler(int(name), os.SCHED_RR, os.sched_param(1))


class _Job:
    """Something to do in the loop's thread, for a thread that waits for its outcome."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._outcome: Any = None
        self._error: BaseException | None = None
        self.done = threading.Event()

    def run(self) -> None:
        """Do it."""
        try:
            self._outcome = self._work()
        except BaseException as error:  # raised again where the outcome is waited for
            self._error = error
        self.done.set()

    def outcome(self) -> Any:
        """What came of it; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._outcome


class ControlLoop:
    """The thread. It runs from :meth:`start` to :meth:`stop`, any number of times."""

    def __init__(
        self,
        tick: Callable[[], None],
        period_ns: int,
        on_failure: Callable[[str], None],
        priority: int = 0,
        *,
        owns_process: bool = False,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            tick: What to call.
            period_ns: Time between two calls.
            on_failure: Called with the traceback if `tick` raised; the thread ends then.
            priority: Real-time priority (SCHED_FIFO, 1 to 99) to ask for; 0 to run as any other thread.
            owns_process: Whether the process is there for these calls alone: then its other threads get a real-time
                priority, too, the lowest there is. The call needs Python's lock, and whichever of them holds it while
                other processes keep it from a core would keep the call waiting, whatever priority that has. They keep
                it until the process ends.
        """
        self._tick, self._period_ns, self._on_failure, self._priority = tick, period_ns, on_failure, priority
        self._owns_process = owns_process
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._jobs: deque[_Job] = deque()
        self._began_ns: deque[int] = deque(maxlen=_REMEMBERED)
        self._ticks = self._missed = self._worst_ns = 0
        self.why_not_realtime = ''
        """Why the thread has no real-time priority though it asked for one; empty if it has, or asked for none."""

    @property
    def running(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin to call, at once; returns when the thread has its priority."""
        self.stop()
        self._ending, ready = threading.Event(), threading.Event()
        self._began_ns.clear()
        self._ticks = self._missed = self._worst_ns = 0
        self._thread = threading.Thread(target=self._run, args=(ready, self._ending), name='control', daemon=True)
        self._thread.start()
        ready.wait()

    def stop(self, timeout_s: float = 1.0) -> bool:
        """Call no more; return whether the last call has ended, which is waited for up to `timeout_s`.

        May be called from within a call; then that is the last one.
        """
        self._ending.set()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout_s)
        return not thread.is_alive()

    def after_tick[T](self, work: Callable[[], T]) -> T:
        """Do something in the loop's thread, right after a call; return its outcome, or raise what it raised.

        There it has most of a period for itself. In another thread it would hold up the call that comes due while it
        holds a lock, or Python's own. If the loop does not run, it is done here and now.
        """
        job = _Job(work)
        if not self.running or threading.current_thread() is self._thread:
            job.run()
            return job.outcome()
        self._jobs.append(job)
        while not job.done.wait(0.1):
            if not self.running and self._withdraw(job):
                job.run()
        return job.outcome()

    def _withdraw(self, job: _Job) -> bool:
        try:
            self._jobs.remove(job)
        except ValueError:  # the loop has taken it
            return False
        return True

    def periods(self) -> Periods:
        """How regular the calls have been."""
        began = np.array(list(self._began_ns), dtype=np.int64)
        if len(began) < 2:
            return Periods(self._ticks, self._missed, np.nan, np.nan, np.nan)
        p50, p99 = np.percentile(np.diff(began) / 1e6, [50, 99])
        return Periods(self._ticks, self._missed, float(p50), float(p99), self._worst_ns / 1e6)

    def _run(self, ready: threading.Event, ending: threading.Event) -> None:
        self._ask_for_priority()
        ready.set()
        try:
            self._call_until(ending)
        except Exception:  # whatever it was: whoever owns this must know that nothing is called any more
            self._on_failure(traceback.format_exc())

    def _ask_for_priority(self) -> None:
        self.why_not_realtime = ''
        if not self._priority:
            return
        try:
            # Of this thread alone, and not of threads or processes that it starts.
            policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
            os.sched_setscheduler(0, policy, os.sched_param(self._priority))
        except (AttributeError, OSError) as error:  # not every system has it, not everybody may
            self.why_not_realtime = str(error)
            return
        if self._owns_process:
            with suppress(OSError):  # this thread has its priority all the same
                _lift_other_threads()

    def _call_until(self, ending: threading.Event) -> None:
        due_ns = time.monotonic_ns()
        while not ending.is_set():
            self._note(time.monotonic_ns())
            self._tick()
            if self._jobs:
                self._jobs.popleft().run()
            due_ns += self._period_ns
            behind_ns = time.monotonic_ns() - due_ns
            if behind_ns > 0:
                # Deadlines that have passed are let go: calls that follow each other without a pause mend nothing.
                lost = -(-behind_ns // self._period_ns)
                self._missed += lost
                due_ns += lost * self._period_ns
            ending.wait((due_ns - time.monotonic_ns()) / 1e9)

    def _note(self, now_ns: int) -> None:
        began = self._began_ns
        if began:
            self._worst_ns = max(self._worst_ns, now_ns - began[-1])
        began.append(now_ns)
        self._ticks += 1
