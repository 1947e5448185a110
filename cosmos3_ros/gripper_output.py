"""Ways to tell a gripper where to go. None of them ever keeps an arm, or another gripper, waiting.

A topic is written at once. An action is pursued by a thread of its own, which always has the newest target alone in
mind: a server that is absent, refuses, or never answers costs its gripper its motion and nobody else anything.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from action_msgs.msg import GoalStatus
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from sensor_msgs.msg import JointState

from cosmos3_ros import diagnostics, qos
from cosmos3_ros.action_client import ActionClient
from cosmos3_ros.conversions import ns_to_stamp
from cosmos3_ros.node_base import CosmosLifecycleNode
from engine.contract import ArmTerms
from engine.errors import InvalidInput, Problem

TOPIC = 'topic'
INTERFACES = {TOPIC: '', 'parallel_gripper_command': 'ParallelGripperCommand', 'gripper_command': 'GripperCommand'}
"""What may be chosen, and the action of `control_msgs` behind it."""

ARM = '{arm}'
"""Stands for the name of an arm in the name of its gripper's action."""

PATIENCE_S = 1.0
"""How long the answer to a goal may take before a newer target is sent all the same."""
RETRY_S = 0.1
REFUSALS = 5
"""How often one target is offered to a server that refuses it, for instance while it gives up the one before."""


class GripperOutput(Protocol):
    """One way to tell a gripper where to go."""

    def send(self, position: float, stamp_ns: int) -> None:
        """Let the gripper go to `position` (of the contract's joint: m or rad); returns at once."""
        ...

    def rest(self) -> None:
        """Forget what has not been told yet; the gripper keeps what it holds."""
        ...

    def report(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        """Say how it goes."""
        ...

    def close(self) -> None:
        """End; before the node's entities are destroyed."""
        ...


class TopicGripper:
    """Publishes the position as a joint state."""

    def __init__(self, node: CosmosLifecycleNode, joint: str, topic: str) -> None:
        self._publisher = node.advertise(JointState, topic, qos.command())
        self._joint = joint

    def send(self, position: float, stamp_ns: int) -> None:
        """See :class:`GripperOutput`."""
        message = JointState(name=[self._joint], position=[position])
        message.header.stamp = ns_to_stamp(stamp_ns)
        self._publisher.publish(message)

    def rest(self) -> None:
        """Nothing waits here."""

    def report(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        """See :class:`GripperOutput`."""
        stat.summary(diagnostics.OK, f'{self._publisher.sent} commands on {self._publisher.topic_name}')
        return stat

    def close(self) -> None:
        """The publisher belongs to the node."""


class ActionGripper:
    """Makes every new position a goal of an action server; a newer one takes the place of what is under way."""

    def __init__(self, node: CosmosLifecycleNode, action_type: Any, name: str, goal_of: Callable[[float], Any]) -> None:
        """Look for the server; it need not be there yet.

        Args:
            node: The node whose client this is.
            action_type: Type of the action.
            name: Name of the action.
            goal_of: Makes a goal of a position.
        """
        self._name, self._goal_of = node.resolve_service_name(name), goal_of
        self._client = ActionClient(node, action_type, name, callback_group=ReentrantCallbackGroup())
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ending = False
        self._target: float | None = None  # not told yet
        self._told: float | None = None
        self._number = 0  # of the newest goal sent; answers to older ones no longer matter
        self._answer: Future | None = None
        self._sent_s = 0.0
        self._running: Any = None
        self._refused_in_a_row = 0
        self._counts = {'sent': 0, 'reached': 0, 'not reached': 0, 'refused': 0, 'unanswered': 0}
        self._trouble = ''
        self._thread = threading.Thread(target=self._pursue, name='gripper', daemon=True)
        self._thread.start()

    def send(self, position: float, stamp_ns: int) -> None:
        """See :class:`GripperOutput`."""
        with self._lock:
            self._target, self._refused_in_a_row = position, 0
        self._wake.set()

    def rest(self) -> None:
        """See :class:`GripperOutput`."""
        with self._lock:
            self._target = None

    def close(self) -> None:
        """See :class:`GripperOutput`."""
        self._ending = True
        self._wake.set()
        self._thread.join(PATIENCE_S)

    def report(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        """See :class:`GripperOutput`."""
        with self._lock:
            trouble, counts, waiting = self._trouble, dict(self._counts), self._target is not None
        if self._is_unanswered():
            trouble = trouble or f'{self._name} has not answered for {time.monotonic() - self._sent_s:.1f} s'
        stat.summary(diagnostics.WARN if trouble else diagnostics.OK, trouble or f'goals go to {self._name}')
        for what, count in counts.items():
            stat.add(f'goals {what}', count)
        stat.add('target waits', waiting)
        return stat

    # The thread

    def _pursue(self) -> None:
        while not self._ending:
            self._wake.wait(None if self._target is None else RETRY_S)
            self._wake.clear()
            if self._target is None or self._ending:
                continue
            if not self._client.server_is_ready():
                self._trouble = f'no action server at {self._name}'
            elif not self._is_waiting():
                self._send_newest()

    def _is_unanswered(self) -> bool:
        return self._answer is not None and not self._answer.done()

    def _is_waiting(self) -> bool:
        """Whether a goal is still on its way: goals must not pile up at a server that does not answer."""
        if not self._is_unanswered():
            return False
        if time.monotonic() - self._sent_s < PATIENCE_S:
            return True
        self._counts['unanswered'] += 1
        self._trouble = f'{self._name} does not answer'
        return False

    def _send_newest(self) -> None:
        with self._lock:
            target, self._target = self._target, None
            running, self._running = self._running, None
            if target is None:
                return
            self._number += 1
            number = self._number
            self._told, self._sent_s = target, time.monotonic()
            self._counts['sent'] += 1
        if running is not None:
            running.cancel_goal_async()
        self._answer = self._client.send_goal_async(self._goal_of(target))
        self._answer.add_done_callback(partial(self._on_answer, number))

    # Answers, in threads of the executor

    def _on_answer(self, number: int, future: Future) -> None:
        handle = future.result()
        with self._lock:
            if number != self._number or handle is None:
                newest = False
            else:
                newest = True
                self._note_answer(handle)
        if handle is not None and handle.accepted:
            if newest:
                handle.get_result_async().add_done_callback(partial(self._on_result, number))
            else:
                handle.cancel_goal_async()  # it was answered after a newer one had been sent
        self._wake.set()

    def _note_answer(self, handle: Any) -> None:
        if handle.accepted:
            self._running, self._refused_in_a_row, self._trouble = handle, 0, ''
            return
        self._counts['refused'] += 1
        self._refused_in_a_row += 1
        self._trouble = f'{self._name} refuses goals'
        if self._target is None and self._refused_in_a_row < REFUSALS:
            self._target = self._told

    def _on_result(self, number: int, future: Future) -> None:
        outcome = future.result()
        with self._lock:
            if number != self._number or outcome is None:
                return
            reached = outcome.status == GoalStatus.STATUS_SUCCEEDED
            self._running = None
            self._counts['reached' if reached else 'not reached'] += 1
            self._trouble = '' if reached else f'{self._name} gave up a goal (status {outcome.status})'


def action_name(pattern: str, arm: ArmTerms) -> str:
    """Name of the action of an arm's gripper.

    Args:
        pattern: A name in which `{arm}` stands for the arm's. Without that, the arm's name goes in front of it, if the
            arm has one.
        arm: The arm.

    Raises:
        InvalidInput: The pattern is an absolute name without `{arm}` although arms have names, or one with it although
            they have none.
    """
    problem = None
    if ARM in pattern and not arm.name:
        what, remedy = f"has {ARM} in it, but the contract's arm has no name", 'give the name of the action itself'
        problem = Problem('gripper_action', what, pattern, '', remedy)
    elif arm.name and ARM not in pattern and pattern.startswith('/'):
        what, remedy = 'is one name for the grippers of all arms', f'as in /{ARM}_hand/gripper_cmd'
        problem = Problem('gripper_action', what, pattern, f'a name with {ARM} in it', remedy)
    if problem is not None:
        raise InvalidInput('parameters of the guard', [problem])
    return pattern.replace(ARM, arm.name) if ARM in pattern else f'{arm.prefix}{pattern}'


def open_gripper(node: CosmosLifecycleNode, interface: str, name: str, joint: str, max_effort: float) -> GripperOutput:
    """Open one of :data:`INTERFACES` to a gripper.

    Args:
        node: The node that commands it.
        interface: Which.
        name: Name of the topic, or of the action server.
        joint: Name of the contract's gripper joint.
        max_effort: Largest force, N; 0: what the server thinks best.

    Raises:
        InvalidInput: The interface needs a package that is not installed.
    """
    if interface == TOPIC:
        return TopicGripper(node, joint, name)
    try:
        actions = importlib.import_module('control_msgs.action')
    except ImportError as error:
        what = f'needs the ROS package control_msgs, which cannot be imported ({error})'
        remedy = 'install it: apt install ros-$ROS_DISTRO-control-msgs'
        problem = Problem('gripper_interface', what, interface, TOPIC, remedy)
        raise InvalidInput('parameters of the guard', [problem]) from error
    action_type = getattr(actions, INTERFACES[interface])

    def goal_of(position: float) -> Any:
        goal = action_type.Goal()
        if interface == 'gripper_command':
            goal.command.position, goal.command.max_effort = position, max_effort
        else:
            goal.command.name, goal.command.position = [joint], [position]
            goal.command.effort = [max_effort] if max_effort else []
        return goal

    return ActionGripper(node, action_type, name, goal_of)
