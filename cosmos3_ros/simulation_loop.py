"""Lets a simulated robot live in real time: one thread for its physics, one for its cameras.

The physics thread paces itself against a clock and does not wait for pictures; the camera thread owns the OpenGL
context and skips pictures that it has no time for. Nothing here knows ROS.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.evaluation.simulated_franka import SimulatedFranka

SLICE_NS = 5_000_000  # physics advances this much at a time: fine enough for 100 Hz states and a 200 Hz clock
_GIVE_UP_NS = 100_000_000  # further behind than this, time is let go instead of hurried after
_WINDOW_NS = 2_000_000_000  # over which the real-time factor is averaged

Pictures = Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Outputs:
    """What the loop tells, from its own threads. Stamps are in nanoseconds.

    Attributes:
        on_slice: After every slice of physics, with its stamp.
        on_state: When joint states are due, with their stamp.
        on_pictures: When pictures were taken, with their stamp.
        on_failure: When a thread broke down, with the traceback; it has ended then.
    """

    on_slice: Callable[[int], None]
    on_state: Callable[[int], None]
    on_pictures: Callable[[int, Pictures], None]
    on_failure: Callable[[str], None]


@dataclass(frozen=True)
class Pace:
    """How time passes.

    Attributes:
        clock_ns: The clock to keep up with.
        speed: Simulated seconds for each second of that clock.
        own_time: Whether stamps are simulated time; otherwise they are times of `clock_ns`, and `speed` must be 1.
        state_period_ns: Simulated time between joint states.
        picture_period_ns: Simulated time between pictures.
    """

    clock_ns: Callable[[], int]
    speed: float
    own_time: bool
    state_period_ns: int
    picture_period_ns: int


@dataclass(frozen=True)
class Performance:
    """How well the loop keeps up.

    Attributes:
        real_time_factor: Simulated seconds for each second of the clock, over the last two seconds.
        frame_ms: Milliseconds that the latest sets of pictures took, oldest first.
        skipped: Sets of pictures that there was no time for.
        let_go_s: Seconds that were let go because the machine could not keep up.
    """

    real_time_factor: float
    frame_ms: tuple[float, ...]
    skipped: int
    let_go_s: float


class SimulationLoop:
    """The two threads; they run from :meth:`start` to :meth:`stop`, any number of times."""

    def __init__(self, robot: SimulatedFranka, pace: Pace, outputs: Outputs) -> None:
        self._robot, self._pace, self._outputs = robot, pace, outputs
        self._stopping = threading.Event()
        self._picture_due = threading.Event()
        self._cameras_ready = threading.Event()
        self._threads: list[threading.Thread] = []
        self._origin_clock_ns = self._origin_robot_ns = 0
        self._progress: deque[tuple[int, int]] = deque()
        self._frame_ms: deque[float] = deque(maxlen=60)
        self._skipped = 0
        self._let_go_ns = 0

    def start(self) -> None:
        """Let time pass, as soon as the cameras are ready."""
        self._stopping.clear()
        self._picture_due.clear()
        self._cameras_ready.clear()
        self._progress.clear()
        self._threads = [
            threading.Thread(target=self._guarded, args=(body,), name=name, daemon=True)
            for name, body in (('physics', self._run_physics), ('cameras', self._run_cameras))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let time stand still; returns when both threads have ended."""
        self._stopping.set()
        self._picture_due.set()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def stamp_ns(self, robot_ns: int) -> int:
        """Return the stamp of a moment of the robot's own time."""
        if self._pace.own_time:
            return robot_ns
        return self._origin_clock_ns + robot_ns - self._origin_robot_ns

    def robot_ns(self, stamp_ns: int) -> int:
        """Return the moment of the robot's own time that a stamp means."""
        if self._pace.own_time:
            return stamp_ns
        return self._origin_robot_ns + stamp_ns - self._origin_clock_ns

    @property
    def performance(self) -> Performance:
        """How well the loop keeps up."""
        progress = list(self._progress)
        (clock_0, robot_0), (clock_1, robot_1) = (progress[0], progress[-1]) if progress else ((0, 0), (0, 0))
        factor = (robot_1 - robot_0) / (clock_1 - clock_0) if clock_1 > clock_0 else float('nan')
        return Performance(factor, tuple(self._frame_ms), self._skipped, self._let_go_ns / 1e9)

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except Exception:  # a thread that dies in silence would look like a robot that stands still
            self._outputs.on_failure(traceback.format_exc())

    def _synchronise(self) -> None:
        self._origin_clock_ns, self._origin_robot_ns = self._pace.clock_ns(), self._robot.time_ns

    def _run_physics(self) -> None:
        robot, pace = self._robot, self._pace
        self._cameras_ready.wait()  # opening OpenGL holds up every other thread for a good part of a second
        self._synchronise()
        state_due = robot.time_ns + pace.state_period_ns
        picture_due = robot.time_ns + pace.picture_period_ns
        while not self._stopping.is_set():
            self._await_slice(robot.time_ns + SLICE_NS)
            robot.advance(SLICE_NS / 1e9)
            now = robot.time_ns
            stamp = self.stamp_ns(now)
            self._outputs.on_slice(stamp)
            if now >= state_due:
                state_due += pace.state_period_ns
                self._outputs.on_state(stamp)
            if now >= picture_due:
                picture_due += pace.picture_period_ns
                self._skipped += self._picture_due.is_set()
                self._picture_due.set()
            self._note_progress(now)

    def _await_slice(self, robot_ns: int) -> None:
        """Wait for the moment at which the robot's time may reach `robot_ns`."""
        pace = self._pace
        while not self._stopping.is_set():
            due_ns = self._origin_clock_ns + (robot_ns - self._origin_robot_ns) / pace.speed
            early_ns = due_ns - pace.clock_ns()
            if early_ns > 10 * SLICE_NS / pace.speed:  # the clock was set back
                self._synchronise()
            elif early_ns > 0:
                self._stopping.wait(early_ns / 1e9)
            else:
                if early_ns < -_GIVE_UP_NS:
                    self._let_go_ns += int(-early_ns)
                    self._synchronise()
                return

    def _note_progress(self, robot_ns: int) -> None:
        clock_ns = self._pace.clock_ns()
        progress = self._progress
        if progress and clock_ns < progress[-1][0]:
            progress.clear()
        progress.append((clock_ns, robot_ns))
        while clock_ns - progress[0][0] > _WINDOW_NS:
            progress.popleft()

    def _run_cameras(self) -> None:
        try:
            self._open_cameras()
            while True:
                self._picture_due.wait()
                if self._stopping.is_set():
                    return
                self._picture_due.clear()
                began_ns = self._pace.clock_ns()
                stamp = self.stamp_ns(self._robot.time_ns)
                pictures = self._robot.render()
                self._frame_ms.append((self._pace.clock_ns() - began_ns) / 1e6)
                self._outputs.on_pictures(stamp, pictures)
        finally:
            self._robot.close()  # the OpenGL context belongs to this thread

    def _open_cameras(self) -> None:
        try:
            self._robot.render()
        finally:
            self._cameras_ready.set()


def check_cameras(robot: SimulatedFranka) -> None:
    """Take one set of pictures and throw it away, so that what is wrong with OpenGL shows before anything runs.

    Raises:
        CosmosError: Pictures cannot be drawn here; the text names the packages to install.
    """
    failures: list[BaseException] = []

    def attempt() -> None:
        try:
            robot.render()
        except BaseException as error:  # raised again below, in the caller's thread
            failures.append(error)
        finally:
            robot.close()

    thread = threading.Thread(target=attempt, name='camera-check')
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
