"""Promises of a gripper that is driven by actions; run by test_gripper.py where control_msgs can be imported."""

# ruff: noqa: F811 (fixtures are imported, and named again where they are used)

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from control_msgs.action import GripperCommand, ParallelGripperCommand
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup

from cosmos3_msgs.msg import GuardStatus
from cosmos3_ros.middleware_events import QuietEvents
from cosmos3_ros.node_base import NodeExecutor
from tests.ros.guard_bench import (  # noqa: F401 (fixtures among them)
    ARMS,
    HOME,
    ROWS,
    Bench,
    bench,
    contract,
    contract_of_two,
    travel,
)

CLOSING = np.where(np.arange(ROWS) < 10, 0.0, 1.0)
ACTIONS = {'parallel_gripper_command': ParallelGripperCommand, 'gripper_command': GripperCommand}


class Gripper:
    """An action server with threads of its own, which does what `kind` says.

    'good' reaches every goal; 'busy' accepts goals and never ends them; 'refusing' refuses them; 'deaf' does not even
    answer.
    """

    def __init__(self, interface: str, kind: str, name: str = '') -> None:
        self.kind, self.positions, self.cancelled = kind, [], 0
        self._parallel = interface == 'parallel_gripper_command'
        self._action = ACTIONS[interface]
        self._ending = threading.Event()
        self._node = QuietEvents(f'{name}gripper_driver')
        self._executor = NodeExecutor(num_threads=8)
        self._server = ActionServer(
            self._node,
            self._action,
            f'{name or kind}/{interface}',
            self._execute,
            goal_callback=self._on_goal,
            cancel_callback=self._on_cancel,
            callback_group=ReentrantCallbackGroup(),
        )
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin)
        self._thread.start()

    def _on_goal(self, goal: Any) -> GoalResponse:
        command = goal.command
        self.positions.append(command.position[0] if self._parallel else command.position)
        if self.kind == 'deaf':
            self._ending.wait()
        return GoalResponse.REJECT if self.kind == 'refusing' else GoalResponse.ACCEPT

    def _on_cancel(self, _goal: Any) -> CancelResponse:
        self.cancelled += 1
        return CancelResponse.ACCEPT

    def _execute(self, handle: Any) -> Any:
        while self.kind == 'busy' and not self._ending.wait(0.01) and not handle.is_cancel_requested:
            pass
        if handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.succeed()
        return self._action.Result()

    def close(self) -> None:
        """End, however much hangs."""
        self._ending.set()
        self._executor.end(self._thread)
        self._server.destroy()
        self._node.destroy_node()


@pytest.fixture
def gripper(graph) -> Iterator[Callable[..., Gripper]]:
    made: list[Gripper] = []

    def make(interface: str, kind: str, name: str = '') -> Gripper:
        made.append(Gripper(interface, kind, name))
        return made[-1]

    yield make
    for one in made:
        one.close()


def guarded(bench: Callable[..., Bench], interface: str, kind: str) -> Bench:
    """A guard whose gripper is such a server, up."""
    return bench(gripper_interface=interface, gripper_action=f'{kind}/{interface}').up()


def largest_gap_ms(b: Bench) -> float:
    """Longest time between two commands to the arm."""
    stamps = np.array([motion.stamp_ns for motion in b.arm.motions])
    return float(np.diff(stamps).max() / 1e6)


def said_of_the_gripper(graph: Any, text: str, gripper: str = 'gripper') -> None:
    """Wait until diagnostics say something of the gripper."""
    told: list[str] = []
    graph.node('listener').create_subscription(
        DiagnosticArray,
        '/diagnostics',
        lambda message: told.extend(s.message for s in message.status if s.name == f'guard: {gripper}'),
        10,
    )
    graph.eventually(lambda: any(text in one for one in told), 10.0, f'diagnostics say {text!r}')


@pytest.mark.parametrize('interface', list(ACTIONS))
def test_positions_become_goals_in_metres_on_change(graph, bench, gripper, interface):
    server, b = gripper(interface, 'good'), guarded(bench, interface, 'good')
    assert b.send(travel(0.1), gripper=CLOSING).accepted
    b.until(GuardStatus.HOLDING)
    graph.eventually(lambda: len(server.positions) == 2)
    np.testing.assert_allclose(server.positions, [0.04, 0.0], atol=1e-9)
    assert b.gripper == [], 'nothing goes to the topic'
    said_of_the_gripper(graph, f'goals go to /good/{interface}')


def test_a_goal_under_way_gives_place_to_a_newer_one(graph, bench, gripper):
    server, b = gripper('gripper_command', 'busy'), guarded(bench, 'gripper_command', 'busy')
    assert b.send(travel(0.1), gripper=CLOSING).accepted
    graph.eventually(lambda: len(server.positions) == 2)
    graph.eventually(lambda: server.cancelled == 1, what='the first goal is cancelled')


@pytest.mark.parametrize(
    ('kind', 'text'),
    [('deaf', 'answer'), ('refusing', 'refuses'), ('busy', 'goals go to'), ('absent', 'no action server')],
)
def test_the_gripper_never_blocks_the_arm(graph, bench, gripper, kind, text):
    """Promise 21: a server that hangs, refuses, never ends or is not there."""
    interface = 'parallel_gripper_command'
    if kind != 'absent':
        gripper(interface, kind)
    b = guarded(bench, interface, kind)
    assert b.send(travel(0.2), gripper=np.linspace(0.0, 1.0, ROWS)).accepted
    b.until(GuardStatus.HOLDING)
    graph.eventually(b.is_at_rest)
    np.testing.assert_allclose(b.arm.position, HOME + 0.2, atol=0.01)
    assert 'TICK_LATE' not in {status.reason_name for status in b.statuses}
    assert largest_gap_ms(b) < 1000.0, 'a call that waits for the server would take seconds'
    said_of_the_gripper(graph, text)
    assert b.node.transition('deactivate')
    assert b.node.transition('cleanup'), 'and it does not keep the node from ending'


def test_a_gripper_that_hangs_holds_up_neither_the_arms_nor_the_other_gripper(graph, bench, gripper, contract_of_two):
    interface = 'gripper_command'
    gripper(interface, 'deaf', 'left')
    right = gripper(interface, 'good', 'right')
    b = bench(contract_of_two, arms=ARMS, gripper_interface=interface, gripper_action='/{arm}/gripper_command').up()
    course = np.hstack([travel(0.1), travel(-0.1)])
    assert b.send(course, gripper=np.column_stack([CLOSING, CLOSING])).accepted
    b.until(GuardStatus.HOLDING)
    graph.eventually(lambda: len(right.positions) == 2, what='both goals of the right gripper')
    np.testing.assert_allclose(right.positions, [0.04, 0.0], atol=1e-9)
    graph.eventually(b.is_at_rest)
    np.testing.assert_allclose(b.arm.position, [*HOME + 0.1, *HOME - 0.1], atol=0.01)
    said_of_the_gripper(graph, 'answer', 'left gripper')
    said_of_the_gripper(graph, 'goals go to /right/gripper_command', 'right gripper')
