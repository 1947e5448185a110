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

from cosmos3_ros.node_base import CosmosLifecycleNode, NodeExecutor  # noqa: E402


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
        """Make a plain node and spin it."""
        return self.add(Node(name, **kwargs))

    def eventually(self, condition: Callable[[], bool], timeout: float = 10.0, what: str = '') -> None:
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
        self._executor.shutdown(timeout_sec=5.0)
        self._thread.join(timeout=5.0)
        for node in self._nodes:
            node.destroy_node()
        if self._failure is not None:
            raise self._failure


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
