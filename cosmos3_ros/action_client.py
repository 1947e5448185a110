"""An action client that may be used from any thread, whatever the number of threads that spin its node."""

from __future__ import annotations

import threading
from typing import Any

from rclpy import action
from rclpy.task import Future


class ActionClient(action.ActionClient):
    """rclpy's client, but no answer is lost that comes back before the request has been noted.

    rclpy first sends a request and then notes under which number. A thread that receives the answer in between finds
    no such number and drops it ("Ignoring unexpected goal response"); the future then stays open for ever. And it may
    be made while its node is being spun: Kilted's rclpy shows it to the executor before it has its lock.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what :class:`rclpy.action.ActionClient` takes."""
        self._noting = threading.RLock()
        self._lock = threading.Lock()  # until Kilted's own takes its place; without one the executor's thread would die
        super().__init__(*args, **kwargs)

    def send_goal_async(self, *args: Any, **kwargs: Any) -> Future:
        """See :meth:`rclpy.action.ActionClient.send_goal_async`."""
        with self._noting:
            return super().send_goal_async(*args, **kwargs)

    def _cancel_goal_async(self, *args: Any, **kwargs: Any) -> Future:
        with self._noting:
            return super()._cancel_goal_async(*args, **kwargs)

    def _get_result_async(self, *args: Any, **kwargs: Any) -> Future:
        with self._noting:
            return super()._get_result_async(*args, **kwargs)

    async def execute(self, taken_data: Any) -> None:
        """Handle what has arrived, once every request under way has been noted."""
        with self._noting:
            pass
        await super().execute(taken_data)
