"""Stop requests (SIGINT, SIGTERM) that are honoured at any moment of a process's life.

Python runs signal handlers between bytecodes of the main thread, so a handler is late while the main thread imports a
large library or waits inside C, and taking a lock inside one can deadlock. Here the C-level handler writes one byte
into a pipe and a small thread reads it: it answers at once, wherever the main thread is. Only the standard library is
imported, so that this can run before anything heavy does.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
STUCK_S = 5.0  # after the grace: how long the end itself may take
STOP_GRACE_S = 3.0  # `ros2 launch` kills after 5 s
LONGEST_GRACE_S = 600.0
GRACE_VARIABLE = 'COSMOS3_ROS_STOP_GRACE_S'  # another grace, from a supervisor that waits for longer or less long
SUPERVISOR_VARIABLE = 'COSMOS3_ROS_SUPERVISOR'  # process id of the supervisor that this process must not outlive


class StopRequest:
    """The wish that this process ends; one per process, see :func:`answer_signals`.

    Until :meth:`take_over` nothing can be moving, and a stop request ends the process at once with exit code 0.
    Afterwards it sets :attr:`requested` and leaves the stopping to the program, for `grace_s` seconds; then the process
    is ended whatever still blocks it (a model that loads cannot be interrupted), with the exit code the program chose.
    If not even that goes through, because something inside C waits and keeps Python from running, the process is ended
    another :data:`STUCK_S` later with exit code 1, and says where each thread stood.
    """

    def __init__(self) -> None:
        self.requested = threading.Event()
        self._lock = threading.Lock()
        self._late_exit_code: Callable[[], int] | None = None
        self._grace_s = 0.0
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        threading.Thread(target=self._watch, name='stop-request', daemon=True).start()

    def listen(self) -> None:
        """Route SIGINT and SIGTERM here, also those that were held back so far; main thread only."""
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda _number, _frame: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def take_over(self, late_exit_code: Callable[[], int], grace_s: float) -> None:
        """From now on the program stops by itself when :attr:`requested` is set.

        Args:
            late_exit_code: Called if the program has not ended in time; returns the exit code to end with.
            grace_s: Seconds the program has for stopping.
        """
        with self._lock:
            self._late_exit_code, self._grace_s = late_exit_code, grace_s

    def request(self) -> None:
        """Ask this process to stop, as a signal would."""
        os.write(self._write_fd, b'\0')

    def follow_supervisor(self) -> None:
        """Stop when the process that :data:`SUPERVISOR_VARIABLE` names has ended, however it ended."""
        supervisor = os.environ.get(SUPERVISOR_VARIABLE, '')
        if supervisor.isdecimal() and int(supervisor) == os.getppid():
            threading.Thread(target=self._follow, args=(int(supervisor),), name='supervisor', daemon=True).start()

    def _follow(self, supervisor: int) -> None:
        try:
            descriptor = os.pidfd_open(supervisor)
        except ProcessLookupError:
            self.request()
            return
        select.select([descriptor], [], [])  # readable once it has ended
        self.request()

    def _watch(self) -> None:
        while os.read(self._read_fd, 64):
            with self._lock:
                late_exit_code, grace_s = self._late_exit_code, self._grace_s
                if late_exit_code is None:
                    os._exit(0)
            if self.requested.is_set():
                continue  # a second Ctrl-C, or the terminal and a supervisor both asking
            # Both before anybody hears of the request: whoever stops may never give this thread another turn.
            threading.Thread(target=self._enforce, args=(late_exit_code, grace_s), daemon=True).start()
            with suppress(Exception):  # there may be no stderr to write to
                # A thread of C's own, which needs no turn from the interpreter.
                faulthandler.dump_traceback_later(grace_s + STUCK_S, exit=True)
            self.requested.set()

    def _enforce(self, late_exit_code: Callable[[], int], grace_s: float) -> None:
        time.sleep(grace_s)
        os._exit(late_exit_code())


def stop_grace_s() -> float:
    """Seconds from a stop request to the end of this process: what :data:`GRACE_VARIABLE` says, or the default."""
    try:
        said = float(os.environ.get(GRACE_VARIABLE, ''))
    except ValueError:
        return STOP_GRACE_S
    return said if 0.0 < said <= LONGEST_GRACE_S else STOP_GRACE_S


def conclude_s() -> float:
    """How much of the grace may pass until all that is under way, as an action, has had its last word."""
    return 0.6 * stop_grace_s()


def leave(code: int) -> NoReturn:
    """End this process with an exit code once everything in it has stopped, and do not take the interpreter apart.

    That would run the destructors of every library in no particular order, beside threads that still belong to some of
    them: on a busy machine it takes seconds, and at times it hangs.
    """
    with suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    ctypes.CDLL(None).fflush(None)  # what was written from C
    os._exit(code)


_stop_request: StopRequest | None = None


def answer_signals() -> StopRequest:
    """Answer SIGINT and SIGTERM from now on; call it from the main thread, before heavy imports. Idempotent."""
    global _stop_request  # noqa: PLW0603 (signals belong to the process, so the answer to them does too)
    if _stop_request is None:
        _stop_request = StopRequest()
        _stop_request.listen()
        _stop_request.follow_supervisor()
    return _stop_request
