"""A guard node on its graph between a policy's chunks and an arm that follows commands; used by several tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rclpy.parameter import Parameter as RosParameter
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from cosmos3_msgs.msg import ActionChunk, ChunkDecision, GuardStatus, PolicyStatus
from cosmos3_ros import qos
from cosmos3_ros.conversions import joint_state, ns_to_stamp, stamp_to_ns
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guard_node import GuardNode

JOINTS = tuple(f'panda_joint{i}' for i in range(1, 8))
FINGER = 'panda_finger_joint1'
HOME = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.8, 0.8])
ROWS, STEP_S = 32, 1 / 15
LIMITS = load_limits('panda')
ARMS = ('left', 'right')
"""Of the contract robomind_dual."""


def travel(distance: np.ndarray | float, rows: int = ROWS) -> np.ndarray:
    """Rows [rows, 7] from HOME by `distance`, along a minimum-jerk course that begins and ends at rest."""
    s = np.arange(1, rows + 1)[:, None] / rows
    return HOME + np.asarray(distance) * (10 * s**3 - 15 * s**4 + 6 * s**5)


class Motion:
    """A received trajectory, as arrays."""

    def __init__(self, message: JointTrajectory) -> None:
        self.names = tuple(message.joint_names)
        self.stamp_ns = stamp_to_ns(message.header.stamp)
        self.times = np.array([p.time_from_start.sec + p.time_from_start.nanosec * 1e-9 for p in message.points])
        self.positions, self.velocities, self.accelerations = (
            np.array([getattr(p, field) for p in message.points])
            for field in ('positions', 'velocities', 'accelerations')
        )

    def at(self, time_ns: int) -> np.ndarray:
        """Positions [J] at a time; at rest after the end."""
        seconds = (time_ns - self.stamp_ns) * 1e-9
        return np.array([np.interp(seconds, self.times, column) for column in self.positions.T])


class Arm:
    """What a robot and a running policy do: follow commands, report joints, and say 'running'; all from a thread.

    Attributes:
        reports: Whether joint states are published.
        spoil: Applied to each joint state on its way out.
        policy: State that the policy claims; None for silence.
        clock_ns: Simulated time; None to live by the wall clock. Set it to make the clock jump.
    """

    def __init__(
        self, graph: Any, clock_ns: int | None = None, namespace: str = '', prefixes: tuple[str, ...] = ('',)
    ) -> None:
        self.joints = tuple(prefix + joint for prefix in prefixes for joint in JOINTS)
        self.fingers = tuple(prefix + FINGER for prefix in prefixes)
        self.reports = True
        self.spoil: Callable[[JointState], JointState] = lambda message: message
        self.policy: int | None = PolicyStatus.RUNNING
        self.clock_ns = clock_ns
        self.position = np.tile(HOME, len(prefixes))
        self.motions: list[Motion] = []
        self._node = graph.node('arm', namespace=namespace)
        self._clock = self._node.create_publisher(ClockMessage, '/clock', qos.sensor())
        offer = qos.with_terms(qos.sensor(10), deadline_s=0.2)
        self._joints = self._node.create_publisher(JointState, 'joint_states', offer)
        self._policy = self._node.create_publisher(PolicyStatus, 'policy/status', qos.heartbeat(0.1))
        self._node.create_subscription(JointTrajectory, 'joint_trajectory', self._on_command, qos.status(1000))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds if self.clock_ns is None else self.clock_ns

    def _on_command(self, message: JointTrajectory) -> None:
        self.motions.append(Motion(message))

    def _run(self) -> None:
        count = 0
        while not self._stopping.wait(0.02):
            if self.clock_ns is not None:
                self.clock_ns += 20_000_000
                self._clock.publish(ClockMessage(clock=ns_to_stamp(self.clock_ns)))
            now = self.now_ns()
            if self.motions:
                self.position = self.motions[-1].at(now)
            if self.reports:
                names = (*self.joints, *self.fingers)
                positions = np.append(self.position, [0.04] * len(self.fingers))
                state = joint_state(names, positions, ns_to_stamp(now), np.zeros(len(names)))
                self._joints.publish(self.spoil(state))
            count += 1
            if self.policy is not None and count % 3 == 0:
                self._policy.publish(PolicyStatus(state=self.policy))

    def lose_policy(self) -> None:
        """The policy's publisher goes away."""
        self.policy = None
        self._node.destroy_publisher(self._policy)

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()


class Bench:
    """A guard node on its graph between a policy's chunks and an arm, and everything that was said."""

    def __init__(
        self,
        graph: Any,
        contract: Path,
        clock_ns: int | None = None,
        namespace: str = '',
        arms: tuple[str, ...] = (),
        **parameters: object,
    ) -> None:
        values = {
            'contract': str(contract),
            'dry_run': False,
            'heartbeat_max_age_s': 2.0,  # this machine may be busy; tests of these limits set their own
            'policy_max_age_s': 2.0,
            'use_sim_time': clock_ns is not None,
            **parameters,
        }
        overrides = [RosParameter(name, value=value) for name, value in values.items()]
        self.graph = graph
        self.arm = Arm(graph, clock_ns, namespace, tuple(f'{arm}_' for arm in arms) or ('',))
        self.node = graph.add(GuardNode(parameter_overrides=overrides, namespace=namespace))
        self.observer = graph.node('observer', namespace=namespace)
        self.decisions: list[ChunkDecision] = []
        self.statuses: list[GuardStatus] = []
        self.gripper: list[JointState] = []
        self.previews: list[JointTrajectory] = []
        subscribe = self.observer.create_subscription
        subscribe(ChunkDecision, 'guard/decision', self.decisions.append, qos.status(50))
        subscribe(GuardStatus, 'guard/status', self.statuses.append, qos.latched())
        subscribe(JointState, 'gripper/command', self.gripper.append, qos.status(1000))
        subscribe(JointTrajectory, 'guard/preview/joint_trajectory', self.previews.append, qos.status(1000))
        self.chunks = self.observer.create_publisher(ActionChunk, 'policy/chunk', qos.status())
        self.sequence = 0
        self.epoch = 1_000

    def up(self) -> Bench:
        """Configure, activate, and wait until the guard has heard of arm and policy."""
        assert self.node.transition('configure'), self.node.last_failure
        assert self.node.transition('activate'), self.node.last_failure
        return self.up_already()

    def up_already(self) -> Bench:
        """Wait until an active guard has heard of arm and policy."""
        self.graph.eventually(lambda: self.chunks.get_subscription_count() == 1 and bool(self.statuses))
        self.graph.eventually(lambda: self.node.guard.obstacle(self.node.now_ns()) is None, what='a clear way')
        return self

    def send(self, course: np.ndarray, gripper: Any = (), **fields: Any) -> ChunkDecision:
        """Send a chunk; return the decision about it."""
        self.sequence += 1
        message = ActionChunk(
            epoch=self.epoch,
            sequence=self.sequence,
            step_dt=STEP_S,
            joint_names=list(self.arm.joints),
            rows=len(course),
            positions=np.asarray(course, np.float64).ravel().tolist(),
            gripper_names=list(self.arm.fingers) if len(gripper) else [],
            grippers=[float(value) for value in np.ravel(gripper)],
        )
        message.header.stamp = ns_to_stamp(self.arm.now_ns())
        for name, value in fields.items():
            setattr(message, name, value)
        count = len(self.decisions)
        self.chunks.publish(message)
        self.graph.eventually(lambda: len(self.decisions) > count, what='a decision')
        return self.decisions[-1]

    def moving(self) -> Bench:
        """Be in the middle of a motion."""
        assert self.send(travel(0.3)).accepted, self.decisions[-1].text
        self.graph.eventually(lambda: np.abs(self.arm.position - HOME).max() > 0.02, what='motion')
        return self

    def state(self) -> int:
        return self.statuses[-1].state

    def until(self, *states: int, reason: str = '') -> GuardStatus:
        """Wait for one of some states, and for a reason in it."""
        seen = len(self.statuses)

        def found() -> list[GuardStatus]:
            return [s for s in self.statuses[max(0, seen - 1) :] if s.state in states and reason in s.reason_name]

        self.graph.eventually(lambda: bool(found()), what=f'state {states} {reason}')
        return found()[0]

    def stopped_for(self, reason: str) -> GuardStatus:
        """Wait for a stop with a reason; a busy guard may have come to rest before it could tell that it brakes."""
        return self.until(GuardStatus.BRAKING, GuardStatus.HOLDING, reason=reason)

    def call(self, service: str) -> Trigger.Response:
        client = self.observer.create_client(Trigger, f'guard/{service}')
        self.graph.eventually(client.service_is_ready)
        future = client.call_async(Trigger.Request())
        self.graph.eventually(future.done)
        return future.result()

    def began_to_brake_ns(self) -> int:
        """Stamp of the first command of the stop that the last command belongs to: all of them end at one place."""
        last = self.arm.motions[-1].positions[-1]
        stop = [motion for motion in self.arm.motions if np.abs(motion.positions[-1] - last).max() < 1e-9]
        return stop[0].stamp_ns

    def is_at_rest(self) -> bool:
        """Whether the last command has been executed to its end, where it stands still."""
        last = self.arm.motions[-1]
        return self.arm.now_ns() > last.stamp_ns + last.times[-1] * 1e9


def contract_file(folder: Path, change: Callable[[dict[str, Any]], None], name: str = 'demo_joint_pos') -> Path:
    """A copy of a contract that ships, changed."""
    shipped = Path(__file__).resolve().parents[2] / 'config' / 'contracts' / f'{name}.yaml'
    data = yaml.safe_load(shipped.read_text(encoding='utf-8'))
    change(data)
    path = folder / 'contract.yaml'
    path.write_text(yaml.safe_dump(data), encoding='utf-8')
    return path


@pytest.fixture
def contract(tmp_path) -> Path:
    """The demonstration's contract with the patience that a busy machine needs."""

    def change(data: dict[str, Any]) -> None:
        for stream in (*data['views']['streams'].values(), data['state']['joint_states']):
            stream['max_age_s'] = 1.0

    return contract_file(tmp_path, change)


@pytest.fixture
def contract_of_two(tmp_path) -> Path:
    """The contract of two arms with the same patience."""

    def change(data: dict[str, Any]) -> None:
        state = data['state']
        for stream in (*data['views']['streams'].values(), state['joint_states'], *state['end_effector'].values()):
            stream['max_age_s'] = 1.0

    return contract_file(tmp_path, change, 'demo_dual')


@pytest.fixture
def bench(graph, contract) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(contract: object = contract, **options: Any) -> Bench:
        made.append(Bench(graph, contract, **options))
        return made[-1]

    yield make
    for one in made:
        one.arm.close()
