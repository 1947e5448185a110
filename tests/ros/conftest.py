"""A ROS graph for tests: isolated from every other, spinning in the background, waited for without sleeping."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

FIRST_PORT = 42_000  # a bound port claims the domain of the same index for this session
DOMAINS = range(1, 100)


def claim_domain() -> tuple[int, socket.socket]:
    """Claim a ROS domain that no other test session or worker on this machine uses."""
    first = os.getpid() % len(DOMAINS)
    for domain in [*DOMAINS[first:], *DOMAINS[:first]]:
        claim = socket.socket()
        try:
            claim.bind(('127.0.0.1', FIRST_PORT + domain))
        except OSError:
            claim.close()
            continue
        return domain, claim
    raise RuntimeError('all ROS domains are in use')


DOMAIN, _CLAIM = claim_domain()
os.environ['ROS_DOMAIN_ID'] = str(DOMAIN)
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'

import rclpy  # noqa: E402 (reads the domain from the environment)
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter as RosParameter  # noqa: E402
from rosgraph_msgs.msg import Clock as ClockMessage  # noqa: E402
from sensor_msgs.msg import Image, JointState  # noqa: E402

from cosmos3_msgs.action import RunPolicy  # noqa: E402
from cosmos3_msgs.msg import ActionChunk, PolicyStatus  # noqa: E402
from cosmos3_ros import qos  # noqa: E402
from cosmos3_ros.action_client import ActionClient  # noqa: E402
from cosmos3_ros.conversions import joint_state, ns_to_stamp, rgb_to_image  # noqa: E402
from cosmos3_ros.middleware_events import QuietEvents  # noqa: E402
from cosmos3_ros.node_base import CosmosLifecycleNode, NodeExecutor  # noqa: E402
from tests.ros.system_bench import System  # noqa: E402


class Graph:
    """Nodes of one test, spun by a thread until the test ends."""

    def __init__(self) -> None:
        self._executor = NodeExecutor(num_threads=4)
        self._nodes: list[Node] = []
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except BaseException as error:  # shown by the test that waits
            self._failure = error

    def add(self, node: Node) -> Node:
        """Spin `node` from now on."""
        self._nodes.append(node)
        self._executor.add_node(node)
        return node

    def node(self, name: str = 'observer', **kwargs: object) -> Node:
        """Make a plain node and spin it; it does without middleware events, which would cost it half a core."""
        return self.add(QuietEvents(name, **kwargs))

    def eventually(self, condition: Callable[[], bool], timeout: float = 30.0, what: str = '') -> None:
        """Return as soon as `condition` holds; fail if it does not within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        pause = threading.Event()
        while not condition():
            if self._failure is not None:
                raise self._failure
            if time.monotonic() > deadline:
                pytest.fail(f'did not happen within {timeout} s: {what or condition}')
            pause.wait(0.002)

    def close(self) -> None:
        """Stop everything; a failure in a callback fails the test."""
        for node in self._nodes:
            if isinstance(node, CosmosLifecycleNode):
                node.stop(timeout_s=5.0)
        self._executor.end(self._thread)
        for node in self._nodes:
            node.destroy_node()
        if self._failure is not None:
            raise self._failure


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """What the processes of a system wrote belongs to the report of a test that failed."""
    report = yield
    if report.failed:
        for system in (made for made in item.funcargs.values() if isinstance(made, System)):
            report.sections += [(f'log of {name}', system.log(name)) for name in system.specs]
    return report


@pytest.fixture(scope='session', autouse=True)
def ros() -> Iterator[None]:
    """ROS, initialised for the session."""
    rclpy.init(args=[])
    yield
    rclpy.try_shutdown()


@pytest.fixture
def graph(ros: None) -> Iterator[Graph]:
    """A graph for one test."""
    made = Graph()
    yield made
    made.close()


class Program:
    """A program in a process of its own whose output is collected."""

    def __init__(self, *command: str, **environment: str) -> None:
        repository = Path(__file__).resolve().parents[2]
        env = {**os.environ, 'PYTHONPATH': str(repository), 'PYTHONUNBUFFERED': '1', **environment}
        self.process = subprocess.Popen(
            [sys.executable, *command], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._grown:
                self.lines.append(line.rstrip('\n'))
                self._grown.notify_all()

    @property
    def output(self) -> str:
        """Everything it wrote so far."""
        return '\n'.join(self.lines)

    def wait_for(self, text: str, timeout: float = 20.0) -> None:
        """Return as soon as `text` was written."""
        with self._grown:
            if not self._grown.wait_for(lambda: any(text in line for line in self.lines), timeout):
                pytest.fail(f'{text!r} was not written within {timeout} s; output:\n{self.output}')

    def end(self, number: signal.Signals, timeout: float = 10.0) -> tuple[int, float]:
        """Send a signal; return the exit code and the seconds that the end took."""
        started = time.monotonic()
        self.process.send_signal(number)
        return self.wait(timeout), time.monotonic() - started

    def wait(self, timeout: float = 10.0) -> int:
        """Wait for the end; return the exit code."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f'did not end within {timeout} s; output:\n{self.output}')
        self._reader.join(timeout=5.0)
        return code

    def close(self) -> None:
        """Make sure that it is gone."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def program() -> Iterator[Callable[..., Program]]:
    """Start programs: `program('-m', 'cosmos3_ros.sim_robot_node', ...)`; they are gone after the test."""
    started: list[Program] = []

    def start(*command: str, **environment: str) -> Program:
        started.append(Program(*command, **environment))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture(scope='session')
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint; do not change it."""
    from engine.tiny import make_tiny

    return make_tiny(tmp_path_factory.mktemp('checkpoint') / 'tiny')


ARM = tuple(f'panda_joint{i}' for i in range(1, 8))
FINGER = 'panda_finger_joint1'
VIEWS = ('wrist', 'exterior_1', 'exterior_2')
AT_REST = (0.0, -0.5, 0.0, -2.2, 0.0, 1.8, 0.8)


class Sensors:
    """What a robot's drivers do: pictures of three cameras and joint states, published from a thread.

    The robot stands still and the pictures stay the same, so that with the same noise every chunk is the same.

    Attributes:
        change: By stream, what to do to each message on its way out; it may return None to keep the message back.
        stamps: Stamps of the messages published so far, by stream [ns].
        clock_ns: Simulated time; None to live by the wall clock. Set it to make the clock jump.
    """

    def __init__(self, graph: Graph, rate_hz: float = 25.0, clock_ns: int | None = None) -> None:
        self.change: dict[str, Callable[[Any], Any]] = {}
        self.stamps: dict[str, list[int]] = {name: [] for name in (*VIEWS, 'joint_states')}
        self.clock_ns = clock_ns
        self._period_s = 1.0 / rate_hz
        self._node = graph.node('drivers')
        self._clock = self._node.create_publisher(ClockMessage, '/clock', qos.sensor())
        self._cameras = {
            view: self._node.create_publisher(Image, f'camera/{view}/image_raw', qos.sensor()) for view in VIEWS
        }
        self._joints = self._node.create_publisher(JointState, 'joint_states', qos.sensor(10))
        rng = np.random.default_rng(1)
        self._pictures = {view: rng.integers(0, 256, (90, 160, 3), np.uint8) for view in VIEWS}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds if self.clock_ns is None else self.clock_ns

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            if self.clock_ns is not None:
                self.clock_ns += round(self._period_s * 1e9)
                self._clock.publish(ClockMessage(clock=ns_to_stamp(self.clock_ns)))
            now_ns = self._now_ns()
            joints = joint_state((*ARM, FINGER), np.array([*AT_REST, 0.04]), ns_to_stamp(now_ns), np.zeros(8))
            self._publish('joint_states', self._joints, joints)
            for view, publisher in self._cameras.items():
                self._publish(view, publisher, rgb_to_image(self._pictures[view], ns_to_stamp(now_ns), view))

    def _publish(self, name: str, publisher: Any, message: Any) -> None:
        changed = self.change.get(name, lambda same: same)(message)
        if changed is not None:
            self.stamps[name].append(changed.header.stamp.sec * 10**9 + changed.header.stamp.nanosec)
            publisher.publish(changed)

    def close(self) -> None:
        """Fall silent."""
        self._stopping.set()
        self._thread.join()


@pytest.fixture
def sensors(graph: Graph) -> Iterator[Callable[..., Sensors]]:
    """Start drivers: `sensors()`; they are silent after the test."""
    started: list[Sensors] = []

    def start(**options: Any) -> Sensors:
        started.append(Sensors(graph, **options))
        return started[-1]

    yield start
    for one in started:
        one.close()


class PolicyBench:
    """A policy node on its graph, a client that gives it goals, and everything it said."""

    def __init__(self, graph: Graph, checkpoint: Path, **parameters: Any) -> None:
        from cosmos3_ros.policy_node import PolicyNode

        values = {
            'contract': 'demo_joint_pos',
            'checkpoint': str(checkpoint),
            'warm_up': False,
            'fixed_seed': True,
            **parameters,
        }
        overrides = [RosParameter(name, value=value) for name, value in values.items()]
        self.graph = graph
        self.node = graph.add(PolicyNode(parameter_overrides=overrides))
        self.client = graph.node('client')
        self.chunks: list[ActionChunk] = []
        self.statuses: list[PolicyStatus] = []
        self.feedback: list[RunPolicy.Feedback] = []
        self.client.create_subscription(ActionChunk, 'policy/chunk', self.chunks.append, qos.status(50))
        self.client.create_subscription(PolicyStatus, 'policy/status', self.statuses.append, qos.latched())
        self.goals = ActionClient(self.client, RunPolicy, 'run_policy')

    def up(self) -> PolicyBench:
        """Configure and activate."""
        assert self.node.transition('configure'), self.node.last_failure
        assert self.node.transition('activate'), self.node.last_failure
        self.graph.eventually(self.goals.server_is_ready)
        self.graph.eventually(lambda: bool(self.statuses))
        return self

    def ask(self, instruction: str = 'put the red cube in the bowl', limit_s: float = 0.0) -> Any:
        """Send a goal; return its handle, which says whether it was accepted."""
        goal = RunPolicy.Goal(instruction=instruction)
        goal.time_limit.sec, goal.time_limit.nanosec = int(limit_s), round(limit_s % 1.0 * 1e9)
        future = self.goals.send_goal_async(goal, feedback_callback=lambda told: self.feedback.append(told.feedback))
        self.graph.eventually(future.done)
        return future.result()

    def run(self, **options: Any) -> tuple[Any, Any]:
        """Send a goal that must be accepted; return its handle and the future of its outcome."""
        handle = self.ask(**options)
        assert handle.accepted
        return handle, handle.get_result_async()

    def outcome(self, future: Any, timeout: float = 10.0) -> Any:
        """Status and result of a goal, when it has ended."""
        self.graph.eventually(future.done, timeout, 'the end of the run')
        return future.result()

    def have_chunks(self, count: int, timeout: float = 15.0) -> list[ActionChunk]:
        """Wait until that many chunks have come."""
        self.graph.eventually(lambda: len(self.chunks) >= count, timeout, f'{count} chunks')
        return self.chunks


@pytest.fixture
def policy_bench(graph: Graph, tiny_checkpoint: Path) -> Callable[..., PolicyBench]:
    """Make a policy node with the tiny checkpoint; keyword arguments are its parameters."""

    def make(checkpoint: Path = tiny_checkpoint, **parameters: Any) -> PolicyBench:
        return PolicyBench(graph, checkpoint, **parameters)

    return make
