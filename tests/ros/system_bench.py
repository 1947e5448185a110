"""The whole system in its own processes, for tests that watch it from outside."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from cosmos3_ros.bringup import ProcessSpec
from cosmos3_ros.runner import Runner
from engine.errors import CosmosError

STARTED_S = 120.0  # a busy machine takes its time to import PyTorch
GRACE_S = 20.0  # and its time to end
AT_REST_RAD_S = 0.01
MOVING_RAD_S = 0.03


def can_draw() -> str:
    """Why pictures cannot be drawn here; empty if they can."""
    from engine.evaluation.simulated_franka import SimulatedFranka  # MuJoCo is not installed everywhere

    try:
        robot = SimulatedFranka(image_size=(16, 16), render_views=('wrist',))
        robot.render()
        robot.close()
    except CosmosError as error:
        return str(error)
    return ''


class System:
    """The processes of the system, each of which can be ended and started again by itself.

    When a test fails, its report shows the end of what each of them wrote.
    """

    def __init__(self, specs: Iterable[ProcessSpec], logs: Path) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.logs = logs
        self._runners: dict[str, Runner] = {}

    def start(self, name: str) -> None:
        """Start a process, unless it runs."""
        running = self._runners.get(name)
        if running is None or running.poll()[name] is not None:
            self._runners[name] = Runner([self.specs[name]], log_directory=self.logs, grace_s=GRACE_S).__enter__()

    def start_all(self) -> None:
        """Start every process that does not run."""
        for name in self.specs:
            self.start(name)

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process."""
        self._runners[name].send_signal(name, number)

    def wait(self, name: str, timeout: float = GRACE_S) -> int:
        """Wait for the end of a process; return its exit code."""
        runner = self._runners.pop(name)
        deadline = time.monotonic() + timeout
        pause = threading.Event()
        while (code := runner.poll()[name]) is None and time.monotonic() < deadline:
            pause.wait(0.01)
        runner.stop(signal.SIGKILL)
        assert code is not None, f'{name} did not end within {timeout} s; its log ends with\n{self.log(name)}'
        return code

    def log(self, name: str) -> str:
        """The end of what a process wrote."""
        path = self.logs / f'{name}.log'
        return '\n'.join(path.read_text(errors='replace').splitlines()[-30:]) if path.exists() else ''

    def close(self) -> None:
        """End all processes."""
        for runner in self._runners.values():
            runner.stop()
        self._runners.clear()
