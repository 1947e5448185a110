"""How regular a 100 Hz tick is in a Python node: Python's own switch interval against the one this package sets.

    python benchmarks/control_period.py

One process, as in the tests: a node that ticks at 100 Hz and sends a trajectory each time, and a robot that listens to
it and reports its joints at 50 Hz. Both settings take turns; the figures are milliseconds between ticks.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time

import numpy as np
import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from cosmos3_ros import qos
from cosmos3_ros.node_base import SWITCH_INTERVAL_S, NodeExecutor

PERIOD_S = 0.01
JOINTS = [f'joint_{number}' for number in range(7)]


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


def periods_ms(switch_interval_s: float, seconds: float) -> np.ndarray:
    """Milliseconds between ticks during `seconds` of life."""
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


def main() -> None:
    """Take turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=4.0, help='length of each turn')
    parser.add_argument('--turns', type=int, default=3, help='turns of each setting')
    options = parser.parse_args()
    python_s = sys.getswitchinterval()
    rclpy.init(args=[])
    measured: dict[float, list[np.ndarray]] = {python_s: [], SWITCH_INTERVAL_S: []}
    for _ in range(options.turns):
        for interval, turns in measured.items():
            turns.append(periods_ms(interval, options.seconds))
    rclpy.try_shutdown()
    print('switch interval    ticks    p50 ms    p99 ms    worst ms')
    tails = []
    for interval, turns in measured.items():
        together = np.concatenate(turns)
        p50, p99 = np.percentile(together, [50, 99])
        tails.append(p99)
        print(f'{interval * 1e3:12.1f} ms {len(together):8d} {p50:9.1f} {p99:9.1f} {together.max():11.1f}')
    print(f"p99 of Python's own interval over ours: {tails[0] / tails[1]:.1f}x")


if __name__ == '__main__':
    main()
