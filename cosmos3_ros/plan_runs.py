"""Runs of the policy for a plan: goals of the action `run_policy`, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from builtin_interfaces.msg import Duration
from rclpy.action.client import ClientGoalHandle

from cosmos3_msgs.action import RunPolicy
from cosmos3_ros.action_client import ActionClient
from cosmos3_ros.plan_execution import Order, RunEnd
from cosmos3_ros.plan_runner import PlanRunner

ENDS = {
    RunPolicy.Result.TIME_LIMIT: RunEnd.TIME_LIMIT,
    RunPolicy.Result.CANCELED: RunEnd.CANCELED,
    RunPolicy.Result.STOPPED_BY_GUARD: RunEnd.STOPPED_BY_GUARD,
    RunPolicy.Result.STALE_INPUT: RunEnd.STALE_INPUT,
    RunPolicy.Result.POLICY_ERROR: RunEnd.POLICY_ERROR,
    RunPolicy.Result.DEACTIVATED: RunEnd.DEACTIVATED,
}


class PolicyRuns:
    """See :class:`cosmos3_ros.plan_runner.Runs`."""

    def __init__(self, client: ActionClient, runner: PlanRunner) -> None:
        """Nothing is open."""
        self._client, self._runner = client, runner
        self._order: Order | None = None
        self._handle: ClientGoalHandle | None = None
        self._ending = self._forgotten = False
        self._hearing = threading.Lock()

    @property
    def open(self) -> Order | None:
        """The run that was asked for and has not ended."""
        return self._order

    @property
    def offered(self) -> bool:
        """Whether somebody offers to run the policy."""
        return self._client.server_is_ready()

    def begin(self, order: Order) -> None:
        """Ask for a run."""
        seconds, rest = divmod(order.limit_s, 1.0)
        limit = Duration(sec=int(seconds), nanosec=int(rest * 1e9))
        self._order, self._handle, self._ending = order, None, False
        sent = self._client.send_goal_async(RunPolicy.Goal(instruction=order.instruction, time_limit=limit))
        sent.add_done_callback(lambda done: self._hear(lambda: self._accepted(order, done)))

    def end(self) -> None:
        """Ask for the end of the open one; one that has not been accepted yet is ended then."""
        if self._handle is not None and not self._ending:
            self._handle.cancel_goal_async()
        self._ending = True

    def forget(self) -> None:
        """Nobody listens any more: what is open is to end, also if it only begins now."""
        with self._hearing:
            self._forgotten = True
        if self._order is not None:
            self.end()
        self._order = None

    def _hear(self, event: Callable[[], None]) -> None:
        """On a thread of the executor; once the runner has ended, it happens there."""
        with self._hearing:
            if not self._forgotten:
                self._runner.post(event)
                return
        event()

    def _accepted(self, order: Order, done: Any) -> None:
        handle, execution = done.result(), self._runner.execution
        if self._order is not order:
            if handle.accepted:
                handle.cancel_goal_async()
            return
        if not handle.accepted:
            self._order = None
            execution.run_refused(order.number)
            return
        self._handle = handle
        if self._ending:
            handle.cancel_goal_async()
        execution.run_began(order.number)
        handle.get_result_async().add_done_callback(lambda ended: self._hear(lambda: self._over(order, ended)))

    def _over(self, order: Order, done: Any) -> None:
        if self._order is not order:
            return
        result = done.result().result
        self._order = self._handle = None
        self._runner.execution.run_ended(order.number, ENDS.get(result.reason, RunEnd.POLICY_ERROR), result.text)
