"""How regular the commands of a guard are at 100 Hz: ticks of rclpy's executor against a thread of their own.

    python benchmarks/control_period.py                      # the guard's process, with a recorder of everything
    python benchmarks/control_period.py --busy 2             # and two processes that compute without a pause
    python benchmarks/control_period.py --switch-interval    # Python's own switch interval against the one set here

The guard runs in a process of its own, as in service, and plays chunks that follow each other without a pause.
A second process is the robot and the policy: it reports joints at 100 Hz, says that a policy runs at 10 Hz, and sends a
chunk of 32 rows every 8 rows. A third one records every topic to a file. The figures are milliseconds between the
stamps of successive commands, so what a controller would see; all ways take turns: `timer` is the executor's,
`thread` one with a real-time priority, `process` the same where the guard's other threads have the lowest one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from cosmos3_msgs.msg import ActionChunk, ChunkDecision, GuardStatus, PolicyStatus
from cosmos3_ros import qos
from cosmos3_ros.conversions import joint_state, ns_to_stamp, stamp_to_ns
from cosmos3_ros.middleware_events import QuietEvents
from cosmos3_ros.node_base import SWITCH_INTERVAL_S, NodeExecutor

PERIOD_S = 0.01
JOINTS = [f'panda_joint{number}' for number in range(1, 8)]
FINGER = 'panda_finger_joint1'
HOME = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.8, 0.8])
ROWS, STEP_S, REPLAN_ROWS = 32, 1 / 15, 8
SWAY_RAD, SWAY_S = 0.3, 4.0

GUARD = """
import sys
from functools import partial
from cosmos3_ros.guard_node import GuardNode
from cosmos3_ros.node_base import spin

class TimerGuard(GuardNode):
    def _open_control(self):
        super()._open_control()
        self.loop = None
        self.create_timer(1.0 / self.parameters['control_rate_hz'], self._tick, callback_group=self.control_group)

kinds = {'timer': TimerGuard, 'thread': GuardNode, 'process': partial(GuardNode, owns_process=True)}
import gc; gc.freeze()
spin(kinds[sys.argv[1]], args=sys.argv[1:])
"""

RECORDER = """
import sys, threading
import rclpy
from rclpy.executors import ExternalShutdownException
from cosmos3_msgs.msg import ActionChunk, ChunkDecision, GuardStatus, PolicyStatus
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory
from cosmos3_ros import qos
from cosmos3_ros.middleware_events import QuietEvents

rclpy.init(args=[])
node, file = QuietEvents('recorder'), open(sys.argv[1], 'wb')
topics = (
    (JointState, 'joint_states', qos.sensor(50)), (JointTrajectory, 'joint_trajectory', qos.status(100)),
    (ActionChunk, 'policy/chunk', qos.status(50)), (PolicyStatus, 'policy/status', qos.latched()),
    (GuardStatus, 'guard/status', qos.latched()), (ChunkDecision, 'guard/decision', qos.status(50)),
)
for kind, topic, profile in topics:
    node.create_subscription(kind, topic, file.write, profile, raw=True)
try:
    rclpy.spin(node)
except (KeyboardInterrupt, ExternalShutdownException):
    pass
"""


def course(times_s: np.ndarray) -> np.ndarray:
    """Where the arm should be at times [S]: two joints sway for ever, positions rad [S, 7]."""
    sway = SWAY_RAD * (1 - np.cos(2 * np.pi * times_s / SWAY_S)) / 2
    return HOME + sway[:, None] * np.array([0, 1, 0, 1, 0, 0, 0])


class World(QuietEvents):
    """Robot and policy: follows commands, reports joints, sends chunks; notes the stamps of commands."""

    def __init__(self) -> None:
        super().__init__('world')
        self.stamps_ns: list[int] = []
        self.decisions: list[ChunkDecision] = []
        self.state = ''
        self._start_s = time.time()
        self._joints = self.create_publisher(JointState, 'joint_states', qos.sensor(10))
        self._status = self.create_publisher(PolicyStatus, 'policy/status', qos.heartbeat(0.1))
        self._chunks = self.create_publisher(ActionChunk, 'policy/chunk', qos.status())
        self.create_subscription(JointTrajectory, 'joint_trajectory', self._on_command, qos.status(100))
        self.create_subscription(ChunkDecision, 'guard/decision', self.decisions.append, qos.status(50))
        self.create_subscription(GuardStatus, 'guard/status', self._on_status, qos.latched())
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def _on_command(self, message: JointTrajectory) -> None:
        self.stamps_ns.append(stamp_to_ns(message.header.stamp))

    def _on_status(self, message: GuardStatus) -> None:
        self.state = message.state_name

    def _live(self) -> None:
        """An arm that is always where the course is: the guard follows it to a tenth of a milliradian."""
        count = sequence = 0
        next_chunk_s = 0.0
        while not self._ending.wait(PERIOD_S):
            now_s = time.time()
            here = course(np.array([now_s - self._start_s]))[0] if self.state == 'TRACKING' else HOME
            if self.state != 'TRACKING':
                self._start_s = now_s
            stamp = ns_to_stamp(round(now_s * 1e9))
            self._joints.publish(joint_state((*JOINTS, FINGER), np.append(here, 0.04), stamp, np.zeros(8)))
            if count % 10 == 0:
                self._status.publish(PolicyStatus(state=PolicyStatus.RUNNING))
            if now_s >= next_chunk_s:
                next_chunk_s, sequence = now_s + REPLAN_ROWS * STEP_S, sequence + 1
                self._send_chunk(now_s, sequence)
            count += 1

    def _send_chunk(self, now_s: float, sequence: int) -> None:
        rows = course(now_s - self._start_s + STEP_S * np.arange(1, ROWS + 1))
        chunk = ActionChunk(
            epoch=1000,
            sequence=sequence,
            step_dt=STEP_S,
            joint_names=JOINTS,
            rows=ROWS,
            positions=rows.ravel().tolist(),
            gripper_names=[FINGER],
            grippers=[0.0] * ROWS,
        )
        chunk.header.stamp = ns_to_stamp(round(now_s * 1e9))
        self._chunks.publish(chunk)

    def end(self) -> None:
        """Fall silent."""
        self._ending.set()
        self._thread.join()


def guard_periods_ms(kind: str, seconds: float, record: bool) -> tuple[np.ndarray, int, int]:
    """Milliseconds between commands during `seconds` of motion; chunks accepted, and chunks in all."""
    world, executor = World(), NodeExecutor(num_threads=2)
    executor.add_node(world)
    spinning = threading.Thread(target=executor.spin)
    spinning.start()
    arguments = ['contract:=demo_joint_pos', 'dry_run:=false', 'autostart:=true', 'policy_max_age_s:=1.0']
    options = [word for argument in arguments for word in ('-p', argument)]
    with tempfile.TemporaryDirectory() as folder:
        children = [
            subprocess.Popen([sys.executable, '-c', GUARD, kind, '--ros-args', '--log-level', 'error', *options])
        ]
        if record:
            children.append(subprocess.Popen([sys.executable, '-c', RECORDER, str(Path(folder) / 'topics.bin')]))
        _wait_for(lambda: len(world.stamps_ns) > 200, 60.0)
        first = len(world.stamps_ns)
        time.sleep(seconds)
        stamps = np.array(world.stamps_ns[first:])
        for child in children:
            child.terminate()
        for child in children:
            child.wait()
        world.end()
    executor.end(spinning)
    world.destroy_node()
    accepted = sum(decision.accepted for decision in world.decisions)
    return np.diff(stamps) / 1e6, accepted, len(world.decisions)


def _wait_for(condition: Any, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit('the guard did not come into motion')
        time.sleep(0.05)


class Ticker(Node):
    """Sends a short trajectory at every tick, after a millisecond of arithmetic in small pieces, as a guard does."""

    def __init__(self) -> None:
        super().__init__('ticker')
        self.ticks: list[float] = []
        self._commands = self.create_publisher(JointTrajectory, 'joint_trajectory', qos.command())
        self.create_subscription(JointState, 'joint_states', lambda message: np.asarray(message.position), 10)
        self.create_timer(PERIOD_S, self._tick, callback_group=MutuallyExclusiveCallbackGroup())

    def _tick(self) -> None:
        self.ticks.append(time.perf_counter())
        rows = np.zeros((8, len(JOINTS)))
        while time.perf_counter() < self.ticks[-1] + 0.001:
            rows = np.cumsum(rows, axis=0)
        points = [JointTrajectoryPoint(positions=row.tolist()) for row in rows]
        self._commands.publish(JointTrajectory(joint_names=JOINTS, points=points))


class Robot(Node):
    """Listens to commands and reports joints from a thread of its own."""

    def __init__(self) -> None:
        super().__init__('robot')
        self._states = self.create_publisher(JointState, 'joint_states', 10)
        self.create_subscription(JointTrajectory, 'joint_trajectory', lambda message: len(message.points), 10)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._report)
        self._thread.start()

    def _report(self) -> None:
        while not self._ending.wait(0.02):
            self._states.publish(JointState(name=JOINTS, position=[0.0] * len(JOINTS)))

    def end(self) -> None:
        """Fall silent."""
        self._ending.set()
        self._thread.join()


def ticker_periods_ms(switch_interval_s: float, seconds: float) -> np.ndarray:
    """Milliseconds between ticks of one process with ticker and robot, during `seconds` of life."""
    executor = NodeExecutor(num_threads=4)
    sys.setswitchinterval(switch_interval_s)
    ticker, robot = Ticker(), Robot()
    executor.add_node(ticker)
    executor.add_node(robot)
    spinning = threading.Thread(target=executor.spin)
    spinning.start()
    time.sleep(seconds)
    robot.end()
    executor.end(spinning)
    for node in (ticker, robot):
        node.destroy_node()
    return np.diff(ticker.ticks) * 1e3


def compare_switch_intervals(options: argparse.Namespace) -> None:
    """Python's own switch interval and ours take turns."""
    measured: dict[float, list[np.ndarray]] = {sys.getswitchinterval(): [], SWITCH_INTERVAL_S: []}
    for _ in range(options.turns):
        for interval, turns in measured.items():
            turns.append(ticker_periods_ms(interval, options.seconds))
    print_table({f'{interval * 1e3:.1f} ms': turns for interval, turns in measured.items()})


def compare_guards(options: argparse.Namespace) -> None:
    """A guard that ticks in rclpy's executor and those with a thread of its own take turns."""
    busy = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(options.busy)]
    measured: dict[str, list[np.ndarray]] = {'timer': [], 'thread': [], 'process': []}
    try:
        for _ in range(options.turns):
            for kind, turns in measured.items():
                periods, accepted, chunks = guard_periods_ms(kind, options.seconds, not options.no_record)
                turns.append(periods)
                print(f'# {kind}: {accepted} of {chunks} chunks accepted', file=sys.stderr)
    finally:
        for one in busy:
            one.kill()
    print_table(measured)


def print_table(measured: dict[str, list[np.ndarray]]) -> None:
    """Percentiles of the periods, and of what they differ from the period wanted."""
    print(f'load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores')
    print('                ticks   p50 ms   p99 ms   p99.9   worst   off by p99   off by worst')
    tails = []
    for name, turns in measured.items():
        periods = np.concatenate(turns)
        p50, p99, p999 = np.percentile(periods, [50, 99, 99.9])
        off = np.abs(periods - PERIOD_S * 1e3)
        tails.append(np.percentile(off, 99))
        row = f'{p50:8.2f} {p99:8.2f} {p999:7.2f} {periods.max():7.2f} {tails[-1]:12.3f} {off.max():14.2f}'
        print(f'{name:12} {len(periods):8d} {row}')
    print('p99 of the jitter over the last one: ' + ', '.join(f'{tail / tails[-1]:.1f}x' for tail in tails[:-1]))


def main() -> None:
    """Take turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=20.0, help='length of each turn')
    parser.add_argument('--turns', type=int, default=2, help='turns of each setting')
    parser.add_argument('--no-record', action='store_true', help='without the process that records every topic')
    parser.add_argument('--busy', type=int, default=0, help='processes beside it that compute without a pause')
    parser.add_argument('--switch-interval', action='store_true', help="compare Python's switch interval with ours")
    options = parser.parse_args()
    rclpy.init(args=[])
    (compare_switch_intervals if options.switch_interval else compare_guards)(options)
    rclpy.try_shutdown()


if __name__ == '__main__':
    main()
