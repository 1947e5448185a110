"""The node behind the executable `instruct`: one `run_policy` goal from start to end."""

from __future__ import annotations

import threading
from typing import Any

import rclpy
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Duration
from rclpy.action.client import ClientGoalHandle
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from cosmos3_msgs.action import RunPolicy
from cosmos3_msgs.msg import PolicyStatus
from cosmos3_ros import qos
from cosmos3_ros.action_client import ActionClient
from cosmos3_ros.node_base import NodeExecutor
from cosmos3_ros.parameters import Parameter, ParameterSet, Required
from cosmos3_ros.process import StopRequest
from engine.errors import CosmosError

PARAMETERS = (
    Parameter('instruction', Required(str), 'What the policy is to do, in plain words.'),
    Parameter('time_limit_s', 0.0, 'When the run ends by itself; 0: never.', 's', minimum=0.0, maximum=86_400.0),
)
_CANCEL_S = 1.0
_ENDED_WELL = (GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_CANCELED)


class Instructor(Node):
    """Sends the goal once the policy is active, logs how it goes, and keeps the outcome.

    Attributes:
        ended: Set when there is nothing left to wait for.
        succeeded: Whether the run ended as it should; None until then.
    """

    def __init__(self) -> None:
        super().__init__('instruct')
        self.ended = threading.Event()
        self.succeeded: bool | None = None
        self._settings = ParameterSet(self, PARAMETERS)
        self._client = ActionClient(self, RunPolicy, 'run_policy')
        self._handle: ClientGoalHandle | None = None
        self._phase = ''
        self._sent = False
        # Only an active policy publishes its status, and only an active policy accepts goals.
        self.create_subscription(PolicyStatus, 'policy/status', self._on_status, qos.latched())

    def cancel(self) -> None:
        """Ask the policy to end the run; return when it has, or after a second."""
        if self._handle is not None and not self.ended.is_set():
            self._handle.cancel_goal_async()
            self.ended.wait(_CANCEL_S)

    def _on_status(self, _status: PolicyStatus) -> None:
        if self._sent or not self._client.server_is_ready():
            return
        self._sent = True
        seconds, rest = divmod(self._settings['time_limit_s'], 1.0)
        goal = RunPolicy.Goal(
            instruction=self._settings['instruction'],
            time_limit=Duration(sec=int(seconds), nanosec=int(rest * 1e9)),
        )
        self._client.send_goal_async(goal, feedback_callback=self._on_feedback).add_done_callback(self._on_answer)

    def _on_answer(self, future: Any) -> None:
        handle = future.result()
        if not handle.accepted:
            self._end(False, 'the policy refused the instruction; its log says why')
            return
        self._handle = handle
        self.get_logger().info(f'the policy follows {self._settings["instruction"]!r}')
        handle.get_result_async().add_done_callback(self._on_result)

    def _on_feedback(self, message: Any) -> None:
        feedback = message.feedback
        phase = f'{feedback.phase}: {feedback.text}' if feedback.text else feedback.phase
        if phase != self._phase:
            self._phase = phase
            self.get_logger().info(f'{phase} ({feedback.chunks} chunks so far)')

    def _on_result(self, future: Any) -> None:
        answer = future.result()
        self._end(answer.status in _ENDED_WELL, f'run ended: {answer.result.text} ({answer.result.chunks} chunks)')

    def _end(self, succeeded: bool, text: str) -> None:
        self.succeeded = succeeded
        logger = self.get_logger()
        (logger.info if succeeded else logger.error)(text)
        self.ended.set()


def follow(stop: StopRequest, arguments: list[str] | None = None) -> int:
    """Run one instruction to its end, or cancel it when `stop` is requested.

    Returns:
        Exit code: 0 if the run ended as it should or was cancelled, 1 if not, 2 if the parameters are wrong.
    """
    stop.take_over(late_exit_code=lambda: 0, grace_s=2 * _CANCEL_S)
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = Instructor()
    except CosmosError as error:
        rclpy.logging.get_logger('instruct').fatal(str(error))
        rclpy.try_shutdown()
        return 2
    executor = NodeExecutor(num_threads=2)
    executor.add_node(node)
    spinning = threading.Thread(target=executor.spin, daemon=True)
    spinning.start()
    while not node.ended.wait(0.05) and not stop.requested.is_set():
        pass
    node.cancel()
    executor.end(spinning)
    node.destroy_node()
    rclpy.try_shutdown()
    return 1 if node.succeeded is False and not stop.requested.is_set() else 0
