"""What a node says about its health on `/diagnostics`, once a second.

Names and calls are those of the `diagnostic_updater` package, which cannot be relied on to be installed: a task is
anything with a `name` and a `run(stat)` that fills in a status, and `Updater.add` takes a task, or a name with a
function. To put that package's `Updater` in place of this one, no task has to change.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from cosmos3_ros.parameters import Parameter, ParameterSet

OK = DiagnosticStatus.OK
WARN = DiagnosticStatus.WARN
ERROR = DiagnosticStatus.ERROR
STALE = DiagnosticStatus.STALE

_PERIOD = Parameter('diagnostic_updater.period', 1.0, 'Time between two reports.', 's', minimum=0.1, maximum=60.0)


class DiagnosticStatusWrapper(DiagnosticStatus):
    """A status with the two calls that tasks use to fill it in."""

    def summary(self, level: bytes, message: str) -> None:
        """Set level and message."""
        self.level, self.message = level, message

    def mergeSummary(self, level: bytes, message: str) -> None:  # noqa: N802 (name of diagnostic_updater)
        """Keep the worse level; messages of things that are wrong are joined, that of a mere OK gives way."""
        if (level > OK) == (self.level > OK):
            self.message = '; '.join(text for text in (self.message, message) if text)
        elif level > self.level:
            self.message = message
        self.level = max(level, self.level)

    def add(self, key: str, value: object) -> None:
        """Append a detail."""
        self.values.append(KeyValue(key=key, value=str(value)))


class DiagnosticTask(Protocol):
    """One thing whose health is reported."""

    name: str

    def run(self, stat: DiagnosticStatusWrapper) -> DiagnosticStatusWrapper:
        """Fill in `stat` and return it."""
        ...


class FunctionDiagnosticTask:
    """A task made of a function."""

    def __init__(self, name: str, function: Callable[[DiagnosticStatusWrapper], DiagnosticStatusWrapper]) -> None:
        self.name = name
        self._function = function

    def run(self, stat: DiagnosticStatusWrapper) -> DiagnosticStatusWrapper:
        """Call the function."""
        return self._function(stat)


class Updater:
    """Collects a node's tasks and publishes them on `/diagnostics`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._tasks: list[DiagnosticTask] = []
        self._lock = threading.Lock()
        self._hardware_id = ''
        self._parameters = ParameterSet(node, [_PERIOD])
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._timer = node.create_timer(
            self._parameters['diagnostic_updater.period'],
            self.update,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=Clock(clock_type=ClockType.STEADY_TIME),  # a simulation that stands still must show up here
        )

    def setHardwareID(self, hardware_id: str) -> None:  # noqa: N802 (name of diagnostic_updater)
        """Set which piece of hardware is reported on: the robot's name or serial number."""
        self._hardware_id = hardware_id

    def add(
        self,
        task: DiagnosticTask | str,
        function: Callable[[DiagnosticStatusWrapper], DiagnosticStatusWrapper] | None = None,
    ) -> None:
        """Report `task` from now on; either a task, or a name and a function."""
        if isinstance(task, str):
            if function is None:
                raise TypeError(f'{task}: a name needs a function')
            task = FunctionDiagnosticTask(task, function)
        with self._lock:
            self._tasks.append(task)

    def removeByName(self, name: str) -> bool:  # noqa: N802 (name of diagnostic_updater)
        """Stop reporting the task `name`; return whether there was one."""
        with self._lock:
            before = len(self._tasks)
            self._tasks = [task for task in self._tasks if task.name != name]
            return len(self._tasks) < before

    def update(self) -> None:
        """Run every task and publish what they say."""
        with self._lock:
            tasks = list(self._tasks)
        message = DiagnosticArray(status=[self._run(task) for task in tasks])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)

    force_update = update

    def _run(self, task: DiagnosticTask) -> DiagnosticStatus:
        stat = DiagnosticStatusWrapper()
        stat.name = f'{self._node.get_fully_qualified_name().lstrip("/")}: {task.name}'
        stat.hardware_id = self._hardware_id
        try:
            stat = task.run(stat)
        except Exception as error:  # a broken report must not take the node down with it
            stat.summary(ERROR, f'the report itself failed: {error!r}')
        return DiagnosticStatus(
            level=stat.level, name=stat.name, message=stat.message, hardware_id=stat.hardware_id, values=stat.values
        )


class StreamDiagnostic:
    """Health of one incoming stream: `OK`, `NotReceived`, `WarnRate`, `ErrorRate` or `Timeout`."""

    def __init__(
        self,
        name: str,
        clock_ns: Callable[[], int],
        *,
        warn_rate_hz: float,
        error_rate_hz: float,
        timeout_s: float,
        window: int = 10,
    ) -> None:
        """Describe what is expected of the stream.

        Args:
            name: Name of the stream.
            clock_ns: Present time of the node's clock.
            warn_rate_hz: Below this rate it is reported as `WarnRate`.
            error_rate_hz: Below this rate it is reported as `ErrorRate`.
            timeout_s: After this much silence it is reported as `Timeout`.
            window: Number of arrivals that the rate is averaged over.
        """
        self.name = name
        self._clock_ns = clock_ns
        self._warn_rate_hz, self._error_rate_hz, self._timeout_s = warn_rate_hz, error_rate_hz, timeout_s
        self._arrivals: deque[int] = deque(maxlen=window + 1)
        self._delay_s: float | None = None
        self._lock = threading.Lock()

    def tick(self, stamp_ns: int | None = None) -> None:
        """Note that a message arrived now; `stamp_ns` is its acquisition time, if it has one."""
        now_ns = self._clock_ns()
        with self._lock:
            if self._arrivals and now_ns < self._arrivals[-1]:
                self._arrivals.clear()  # the clock was set back
            self._arrivals.append(now_ns)
            self._delay_s = None if stamp_ns is None else (now_ns - stamp_ns) / 1e9

    def clear(self) -> None:
        """Forget all arrivals, as on activation."""
        with self._lock:
            self._arrivals.clear()
            self._delay_s = None

    def run(self, stat: DiagnosticStatusWrapper) -> DiagnosticStatusWrapper:
        """Report level, rate, silence and the delay from acquisition to arrival."""
        now_ns = self._clock_ns()
        with self._lock:
            arrivals, delay_s = list(self._arrivals), self._delay_s
        if not arrivals:
            stat.summary(ERROR, 'NotReceived')
            return stat
        silence_s = (now_ns - arrivals[-1]) / 1e9
        rate_hz = _rate_hz(arrivals)
        stat.summary(*self._verdict(silence_s, rate_hz))
        stat.add('rate [Hz]', 'unknown' if rate_hz is None else f'{rate_hz:.1f}')
        stat.add('silent for [s]', f'{silence_s:.3f}')
        if delay_s is not None:
            stat.add('acquisition to arrival [s]', f'{delay_s:.4f}')
        return stat

    def _verdict(self, silence_s: float, rate_hz: float | None) -> tuple[bytes, str]:
        if silence_s > self._timeout_s:
            return ERROR, 'Timeout'
        if rate_hz is not None and rate_hz < self._error_rate_hz:
            return ERROR, 'ErrorRate'
        if rate_hz is not None and rate_hz < self._warn_rate_hz:
            return WARN, 'WarnRate'
        return OK, 'OK'


def _rate_hz(arrivals_ns: list[int]) -> float | None:
    span_ns = arrivals_ns[-1] - arrivals_ns[0]
    return (len(arrivals_ns) - 1) * 1e9 / span_ns if span_ns > 0 else None
