"""Action servers that can be destroyed at any moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node


class GoalServer(ActionServer):
    """An action server that knows when the last word about a goal is out.

    Destroying an action server between the end of a goal and the answer to its client would lose the answer, and break
    the callback that sends it.

    An executor sends an answer in a task of its own, some time after the goal has ended: a process that ends in between
    would leave the client waiting for ever. So whoever has asked for a result is counted until it was sent.

    Attributes:
        idle: Set while no accepted goal awaits its result, and no client that asked for one.
    """

    def __init__(
        self,
        node: Node,
        action: type,
        name: str,
        execute: Callable[[ServerGoalHandle], Any],
        judge: Callable[[Any], GoalResponse],
    ) -> None:
        """Offer an action on `node`; any goal that `judge` accepts may be cancelled, and is run by `execute`."""
        self.idle = threading.Event()
        self.idle.set()
        self._open = 0
        self._counting = threading.Lock()
        super().__init__(
            node,
            action,
            name,
            execute,
            callback_group=ReentrantCallbackGroup(),
            goal_callback=judge,
            cancel_callback=lambda _goal: CancelResponse.ACCEPT,
        )

    def notify_execute(self, goal_handle: ServerGoalHandle, execute_callback: Callable[..., Any] | None) -> None:
        """Count the goal as open, then let it be executed."""
        self._count(+1)
        super().notify_execute(goal_handle, execute_callback)

    def add_to_wait_set(self, wait_set: Any) -> None:
        """Say that it is invalid once it is destroyed, as all other entities do, so that executors leave it out."""
        with self:
            super().add_to_wait_set(wait_set)

    async def _execute_goal(self, execute_callback: Callable[..., Any], goal_handle: ServerGoalHandle) -> None:
        try:
            await super()._execute_goal(execute_callback, goal_handle)
        finally:
            self._count(-1)

    async def _execute_get_result_request(self, request_header_and_message: tuple[Any, Any]) -> None:
        _, request = request_header_and_message
        if bytes(request.goal_id.uuid) in self._goal_handles:  # others are answered at once
            self._count(+1)
        await super()._execute_get_result_request(request_header_and_message)

    def _send_result_response(self, request_header: Any, future: Any) -> None:
        try:
            super()._send_result_response(request_header, future)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._counting:
            self._open += change
            (self.idle.clear if self._open else self.idle.set)()
