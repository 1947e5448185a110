"""The system in its own processes for a long run, somebody who watches it from outside, and what that one may spoil.

Joint states and the pictures of the wrist pass through the watcher, who can hold them back, and who is the emergency
stop. Times in s and ns.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from auditor import Audit, Book
from numpy.typing import NDArray
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from cosmos3_msgs.action import RunPolicy
from cosmos3_msgs.msg import ChunkDecision, GuardStatus, PolicyStatus
from cosmos3_ros import qos
from cosmos3_ros.action_client import ActionClient
from cosmos3_ros.bringup import Options, ProcessSpec, processes
from cosmos3_ros.conversions import stamp_to_ns
from cosmos3_ros.guard.limits import RobotLimits
from cosmos3_ros.middleware_events import QuietEvents
from cosmos3_ros.node_base import NodeExecutor
from cosmos3_ros.runner import Runner

Array = NDArray[np.float64]

NAMESPACE = 'soak'
CONTRACT = 'demo_joint_pos'
MOVING_RAD_S = 0.02
NEAR_RAD = 0.06
"""How far from the measured joints a command may begin if it does not continue another: the guard's own tolerance."""
# The emergency stop reports its state all the time; a silence counts as pressed.
_ESTOP = {'estop_topic': 'emergency_stop', 'estop_max_age_s': 1.0}
_ESTOP_PERIOD_S = 0.1
_HELD_BACK = {'sim_robot': (('joint_states', 'joint_states_raw'), ('camera/wrist/image_raw', 'camera/wrist/raw'))}
_GAP_NS = 25_000_000  # commands come each 10 ms; after a longer gap the older one may not be the one in force
_SILENCE_NS = 500_000_000  # after so long without a command the arm has come to rest and its joints are known
_SAME_TIME_NS = 20_000_000
_MEASURED = 1000
"""Joint states that are kept, 100 in a second: commands are judged once in a second or so."""


@dataclass(frozen=True)
class Trajectory:
    """A command in the form that the auditor reads."""

    stamp_ns: int
    times_ns: NDArray[np.int64]
    positions: Array
    velocities: Array
    accelerations: Array


@dataclass(frozen=True)
class Start:
    """The first command after a silence, with what was known when it came."""

    command: Trajectory
    before: str
    guard: str
    heard_ns: int
    """How much later than the command the latest joint state was stamped."""


@dataclass(frozen=True)
class Memory:
    """Resident bytes of a process.

    Attributes:
        own: Its own, which is what may not grow: anonymous pages and those of files.
        shared: Of segments that the middleware shares with other processes. Their sizes are fixed, up to 17 MB each for
            one that carries pictures, but a page of one counts as resident from its first use on.
    """

    own: int
    shared: int

    @staticmethod
    def of(pid: int) -> Memory:
        """Read what the kernel says of it.

        Raises:
            OSError, KeyError: There is no such process, or it is just ending.
        """
        status = Path(f'/proc/{pid}/status').read_text(encoding='ascii')
        sizes = {name: value for name, _, value in (line.partition(':') for line in status.splitlines())}
        own, files, shared = (int(sizes[name].split()[0]) * 1024 for name in ('RssAnon', 'RssFile', 'RssShmem'))
        return Memory(own + files, shared)


def read_command(message: JointTrajectory, names: tuple[str, ...]) -> Trajectory:
    """Read a trajectory message, columns in the order of `names`."""
    order = [message.joint_names.index(name) for name in names]

    def columns(field: str) -> Array:
        return np.array([getattr(point, field) for point in message.points])[:, order]

    times = [p.time_from_start.sec * 10**9 + p.time_from_start.nanosec for p in message.points]
    fields = (columns('positions'), columns('velocities'), columns('accelerations'))
    return Trajectory(stamp_to_ns(message.header.stamp), np.array(times, np.int64), *fields)


class System:
    """The processes, each of which can be ended and started again by itself."""

    def __init__(self, checkpoint: Path, logs: Path, *, use_sim_time: bool) -> None:
        options = Options(
            contract=CONTRACT,
            checkpoint=str(checkpoint),
            robot='sim',
            namespace=NAMESPACE,
            use_sim_time=use_sim_time,
        )
        specs = [
            replace(
                spec,
                remappings=_HELD_BACK.get(spec.name, ()),
                parameters={**spec.parameters, **(_ESTOP if spec.name == 'guard' else {})},
            )
            for spec in processes(options)
        ]
        self.specs: dict[str, ProcessSpec] = {spec.name: spec for spec in specs}
        self._logs = logs
        self._runners: dict[str, Runner] = {}
        self.starts: Counter[str] = Counter()

    def start(self) -> None:
        """Start whatever does not run."""
        for name, spec in self.specs.items():
            runner = self._runners.get(name)
            if runner is not None and runner.poll()[name] is None:
                continue
            self.starts[name] += 1
            self._runners[name] = Runner([spec], log_directory=self._logs / f'{self.starts[name]:03d}').__enter__()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one process."""
        self._runners[name].send_signal(name, number)

    def end(self, name: str, number: signal.Signals, within_s: float = 20.0) -> int | None:
        """End a process and wait for it; its exit code, None if it had to be killed."""
        self.signal(name, number)
        deadline, pause = time.monotonic() + within_s, threading.Event()
        while (code := self._runners[name].poll()[name]) is None and time.monotonic() < deadline:
            pause.wait(0.02)
        self._runners.pop(name).stop(signal.SIGKILL)
        return code

    def memory(self) -> dict[str, Memory]:
        """What each process keeps in memory, by its name and the number of its start."""
        found = {}
        for name, runner in self._runners.items():
            try:
                found[f'{name} {self.starts[name]}'] = Memory.of(runner.pid(name))
            except (OSError, KeyError):
                continue  # just ended
        return found

    def close(self) -> None:
        """Stop everything, the guard first."""
        for name in sorted(self._runners, key=lambda name: name != 'guard'):
            self._runners[name].stop()
        self._runners.clear()


class Watcher:
    """Hears everything, judges every command, and passes on what it is told to."""

    def __init__(self, limits: RobotLimits) -> None:
        self.limits = limits
        self.audit, self._book = Audit(), Book()
        self.passing = {'joint_states': True, 'wrist': True, 'emergency_stop': True}
        self.pressed = False
        self.joints: Array | None = None
        self.speed = 0.0
        self.status: GuardStatus | None = None
        self.policy: PolicyStatus | None = None
        self.status_count = self.policy_count = self.joints_count = 0
        self.decisions: Counter[str] = Counter()
        self.stops: Counter[str] = Counter()
        self.judged_starts = 0
        self.unexplained: list[str] = []
        self._last: Trajectory | None = None
        self._last_number = -1
        self._starts: list[Start] = []
        self._measured: deque[tuple[int, Array]] = deque(maxlen=_MEASURED)
        self._lock = threading.Lock()
        self.node = QuietEvents('soak_watcher', namespace=NAMESPACE)
        self._open()
        self._executor = NodeExecutor(num_threads=2)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def _open(self) -> None:
        node = self.node
        self._joint_states = node.create_publisher(JointState, 'joint_states', qos.sensor(10))
        self._wrist = node.create_publisher(Image, 'camera/wrist/image_raw', qos.sensor())
        self._emergency_stop = node.create_publisher(Bool, 'emergency_stop', qos.status(10))
        node.create_timer(_ESTOP_PERIOD_S, self._tell_emergency_stop)
        node.create_subscription(JointState, 'joint_states_raw', self._on_joints, qos.sensor(50))
        node.create_subscription(Image, 'camera/wrist/raw', self._on_wrist, qos.sensor())
        node.create_subscription(JointTrajectory, 'joint_trajectory', self._on_command, qos.status(500))
        node.create_subscription(GuardStatus, 'guard/status', self._on_status, qos.latched())
        node.create_subscription(PolicyStatus, 'policy/status', self._on_policy, qos.latched())
        node.create_subscription(ChunkDecision, 'guard/decision', self._on_decision, qos.status(100))
        self.goals = ActionClient(node, RunPolicy, 'run_policy')
        self._services = {name: node.create_client(Trigger, f'guard/{name}') for name in ('stop', 'reset')}

    def _on_joints(self, message: JointState) -> None:
        order = [message.name.index(name) for name in self.limits.joint_names]
        self.joints = np.array(message.position)[order]
        self.speed = float(np.abs(np.array(message.velocity)[order]).max())
        stamp_ns = stamp_to_ns(message.header.stamp)
        with self._lock:
            if self._measured and stamp_ns < self._measured[-1][0]:
                self._measured.clear()  # the clock was set back: the same stamps come again
            self._measured.append((stamp_ns, self.joints))
        self.joints_count += 1
        if self.passing['joint_states']:
            self._joint_states.publish(message)

    def _tell_emergency_stop(self) -> None:
        if self.passing['emergency_stop']:
            self._emergency_stop.publish(Bool(data=self.pressed))

    def _on_wrist(self, message: Image) -> None:
        if self.passing['wrist']:
            self._wrist.publish(message)

    def _on_command(self, message: JointTrajectory) -> None:
        command = read_command(message, self.limits.joint_names)
        with self._lock:
            last = self._last
            goes_on = last is not None and 0 < command.stamp_ns - last.stamp_ns <= _GAP_NS
            # From rest a command may begin where the arm is measured; how far that may be is looked at below.
            self._last_number = self._book.note(
                command,
                self.limits,
                last if goes_on else None,
                self._last_number,
                command.stamp_ns,
                command.positions[0],
            )
            if last is None or abs(command.stamp_ns - last.stamp_ns) > _SILENCE_NS:
                self._starts.append(self._start(command))
            self._last = command

    def _start(self, command: Trajectory) -> Start:
        last, status = self._last, self.status
        before = 'none' if last is None else f'{(last.stamp_ns - command.stamp_ns) / 1e9:+.3f} s'
        guard = 'unheard of' if status is None else f'{status.state_name}, {status.text!r}'
        latest = self._measured[-1][0] if self._measured else command.stamp_ns
        return Start(command, before, guard, latest - command.stamp_ns)

    def _on_status(self, message: GuardStatus) -> None:
        before, self.status = self.status, message
        self.status_count += 1
        stopped = message.state in (GuardStatus.BRAKING, GuardStatus.HOLDING, GuardStatus.FAULT)
        if stopped and (before is None or before.state == GuardStatus.TRACKING or before.reason != message.reason):
            self.stops[message.reason_name] += 1
        if stopped and (message.reason_name == 'NONE' or not message.text):
            self.unexplained.append(f'{message.state_name}: {message.reason_name} {message.text!r}')

    def _on_policy(self, message: PolicyStatus) -> None:
        self.policy = message
        self.policy_count += 1

    def _on_decision(self, message: ChunkDecision) -> None:
        self.decisions['accepted' if message.accepted else message.reason_name] += 1

    def judge(self) -> None:
        """Judge the commands heard since the last time."""
        with self._lock:
            book, self._book = self._book, Book()
            if self._last is not None:  # the next command is judged as a continuation of this one again
                self._last_number = self._book.note(self._last, self.limits, None, -1, 0, self._last.positions[0])
            starts, self._starts = self._starts, []
            measured = list(self._measured)
        self.audit.judge(book)
        for command in starts:
            self._judge_start(command, measured)

    def _judge_start(self, start: Start, measured: list[tuple[int, Array]]) -> None:
        """Compare where a command begins with the joints of that instant: on a busy machine the latest may be old."""
        command = start.command
        near = [joints for stamp_ns, joints in measured if abs(stamp_ns - command.stamp_ns) <= _SAME_TIME_NS]
        apart = min((float(np.abs(command.positions[0] - joints).max()) for joints in near), default=0.0)
        self.judged_starts += bool(near)
        if apart > NEAR_RAD:
            where = (command.positions[0] - near[-1]).round(3).tolist()
            stamps = [stamp_ns - command.stamp_ns for stamp_ns, _ in measured]
            self.audit.violation(
                'start',
                f'a command of {command.stamp_ns / 1e9:.3f} s begins {apart:.3f} rad from the joints measured then '
                f'(difference {where}); the one before {start.before}; guard {start.guard}; joints known from '
                f'{stamps[0] / 1e9:+.3f} s to {stamps[-1] / 1e9:+.3f} s of it, heard {start.heard_ns / 1e9:+.3f} s',
            )

    def ask(self, service: str, within_s: float = 5.0) -> Any:
        """Call a service of the guard; its answer, None if there was none in time."""
        client = self._services[service]
        if not client.wait_for_service(timeout_sec=within_s):
            return None
        future = client.call_async(Trigger.Request())
        return future.result() if self.wait(future.done, within_s) else None

    def instruct(self) -> bool:
        """Give the policy something to do; whether it took it."""
        if not self.goals.wait_for_server(timeout_sec=2.0):
            return False
        sent = self.goals.send_goal_async(RunPolicy.Goal(instruction='put the red cube in the bowl'))
        return self.wait(sent.done, 5.0) and sent.result().accepted

    def wait(self, condition: Callable[[], bool], within_s: float) -> bool:
        """Whether a condition came true in time."""
        deadline, pause = time.monotonic() + within_s, threading.Event()
        while not condition():
            if time.monotonic() > deadline:
                return False
            pause.wait(0.01)
        return True

    def close(self) -> None:
        """Stop listening."""
        self._executor.end(self._thread)
        self.node.destroy_node()


def recover(system: System, watcher: Watcher, within_s: float) -> tuple[float, str]:
    """Bring the system to where the arm follows the policy again: start, reset, instruct, as a person would.

    Returns:
        Seconds that it took, and what was still missing at the end; '' if it moves.
    """
    began, pause = time.monotonic(), threading.Event()
    seen = (watcher.status_count, watcher.policy_count, watcher.joints_count)
    missing = 'processes'
    while time.monotonic() - began < within_s:
        system.start()
        now = (watcher.status_count, watcher.policy_count, watcher.joints_count)
        if all(a > b for a, b in zip(now, seen, strict=True)):
            missing = _next_step(watcher)
            if not missing:
                return time.monotonic() - began, ''
        pause.wait(0.05)
    state = '' if watcher.status is None else f'; guard {watcher.status.state_name}: {watcher.status.text}'
    return time.monotonic() - began, f'{missing}{state}'


def _next_step(watcher: Watcher) -> str:
    """Do what is needed next; what is missing, '' if the arm moves."""
    status, policy = watcher.status, watcher.policy
    if status.state == GuardStatus.FAULT:
        answer = watcher.ask('reset')
        return f'a reset ({answer.message if answer else "no answer"})'
    if policy.state == PolicyStatus.IDLE:
        watcher.instruct()
        return 'an instruction'
    if status.state != GuardStatus.TRACKING:
        return 'an accepted chunk'
    return '' if watcher.speed > MOVING_RAD_S else 'motion'


def growth(samples: Iterable[tuple[float, int]]) -> float:
    """Share by which a memory grew over its samples (s, bytes), by the straight line of least squares."""
    times, sizes = (np.array(column, dtype=np.float64) for column in zip(*samples, strict=True))
    slope = np.polyfit(times - times[0], sizes, 1)[0]
    return float(slope * (times[-1] - times[0]) / sizes.mean())


def begin_ros(domain: int) -> None:
    """Talk to this machine alone, apart from everything else on it."""
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['ROS_DOMAIN_ID'] = str(domain)
    rclpy.init(args=[])
