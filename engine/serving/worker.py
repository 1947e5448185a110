"""The threads that infer, so that whoever answers pings never waits for the network."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Worker:
    """Does jobs in the order in which they were submitted: one after the other, or a few at a time.

    Its threads end with the process: a job that cannot be interrupted must not keep a server from being stopped.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        """Start the threads; more than one is for policies that compute elsewhere."""
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit[T](self, job: Callable[[], T]) -> Future[T]:
        """Line a job up; one whose future is cancelled before its turn is passed over."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future

    def stop(self, timeout_s: float = 0.0) -> None:
        """Let the threads end after the jobs that were submitted, and wait so long for each."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(timeout_s)

    def _work(self) -> None:
        while (entry := self._jobs.get()) is not None:
            future, job = entry
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except Exception as error:
                future.set_exception(error)
            except BaseException as error:  # who waits must learn of it, and not end for it
                future.set_exception(RuntimeError(f'{type(error).__name__}: {error}'))
            del future, job, entry  # pictures must not be kept until the next request
