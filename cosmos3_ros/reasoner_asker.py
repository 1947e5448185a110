"""Asks a reasoner on threads of their own, so that whoever waits may stop waiting; knows nothing of ROS.

A question has a time limit, and may be given up. Talkers look for both every few hundredths of a second; one that does
not is not waited for.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from engine.errors import CosmosError, TalkerError
from engine.reasoner_talk import Talker
from engine.turns import Cancelled

GRACE_S = 1.0
"""How long a talker may take to notice that time is up."""
AT_ONCE = 8
"""Questions that may be under way, those that nobody waits for any more included."""
KEPT = 64
"""Times of answers that are kept."""

type Job[T] = Callable[[Talker, Callable[[], bool]], T]


class Asking[T]:
    """A question that is under way.

    Attributes:
        future: Its answer. An error is a CosmosError: a TalkerError if it came too late, Cancelled if it was given up.
    """

    def __init__(self, timeout_s: float) -> None:
        """It begins now."""
        self.future: Future[T] = Future()
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """Nobody wants to know any more."""
        self._given_up.set()

    def over(self) -> bool:
        """Whether the talker shall stop."""
        return self._given_up.is_set() or time.monotonic() > self._deadline_s

    @property
    def overdue(self) -> bool:
        """Whether the talker has not even noticed that it is late."""
        return not self.future.done() and time.monotonic() > self._deadline_s + GRACE_S

    def late(self) -> CosmosError:
        """What to say of a question that was stopped."""
        if self._given_up.is_set():
            return Cancelled('the question was given up')
        return TalkerError(f'no answer within {self._timeout_s:g} s')

    def result(self) -> T:
        """Wait for the answer.

        Raises:
            CosmosError: There is none.
        """
        left_s = self._deadline_s + GRACE_S - time.monotonic()
        try:
            return self.future.result(max(0.0, left_s))
        except TimeoutError:
            self.give_up()
            raise TalkerError(f'no answer within {self._timeout_s:g} s, and none to the demand to stop') from None


class Asker:
    """Asks one talker, several questions at a time if need be. Thread-safe.

    Attributes:
        asked: Questions so far.
        unanswered: How many of them had no usable answer; those that were given up do not count.
    """

    def __init__(self, talker: Talker, timeout_s: float) -> None:
        """Nothing is asked yet; `timeout_s` is for questions without a limit of their own."""
        self.talker = talker
        self.timeout_s = timeout_s
        self.asked = self.unanswered = 0
        self.last_failure = ''
        self._seconds: deque[float] = deque(maxlen=KEPT)
        self._open: set[Asking[Any]] = set()
        self._changed = threading.Condition()

    def ask[T](self, job: Job[T], timeout_s: float = 0.0) -> Asking[T]:
        """Begin a question.

        Args:
            job: Asks the talker that it is given, which is to ask what else it is given whether to stop.
            timeout_s: Its time limit; 0: the usual one.

        Raises:
            TalkerError: Too many are under way.
        """
        asking: Asking[T] = Asking(timeout_s or self.timeout_s)
        with self._changed:
            self.asked += 1
            if len(self._open) >= AT_ONCE:
                self.unanswered += 1
                raise TalkerError(f'{AT_ONCE} questions are under way, and none of them ends')
            self._open.add(asking)
        threading.Thread(target=self._work, args=(job, asking), name='question', daemon=True).start()
        return asking

    def times(self) -> tuple[float, float]:
        """Median and 95th percentile of the newest answers, s; NaN before the first."""
        seconds = list(self._seconds)
        return tuple(map(float, np.percentile(seconds, (50, 95)))) if seconds else (math.nan, math.nan)

    def reset(self) -> None:
        """Count anew."""
        with self._changed:
            self.asked = self.unanswered = 0
            self.last_failure = ''
            self._seconds.clear()

    def give_up(self, wait_s: float) -> bool:
        """Give up all that is under way; return whether it has ended within a time."""
        with self._changed:
            for asking in self._open:
                asking.give_up()
            return self._changed.wait_for(lambda: not self._open, wait_s)

    def _work[T](self, job: Job[T], asking: Asking[T]) -> None:
        began = time.monotonic()
        try:
            result = job(self.talker, asking.over)
        except BaseException as error:  # whatever it is, it belongs to who asked
            failure: BaseException = asking.late() if isinstance(error, Cancelled) else error
            self._note(asking, failure)
            asking.future.set_exception(failure)
        else:
            self._seconds.append(time.monotonic() - began)
            self._note(asking)
            asking.future.set_result(result)

    def _note(self, asking: Asking[Any], failure: BaseException | None = None) -> None:
        with self._changed:
            self._open.discard(asking)
            if failure is None:
                self.last_failure = ''
            elif not isinstance(failure, Cancelled):
                self.unanswered += 1
                self.last_failure = str(failure) or type(failure).__name__
            self._changed.notify_all()
