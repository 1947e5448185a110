"""Configures and activates managed nodes from outside, where `ros2 lifecycle` is not installed."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.client import Client
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from engine.errors import CosmosError

_TRANSITIONS = {
    'configure': Transition.TRANSITION_CONFIGURE,
    'activate': Transition.TRANSITION_ACTIVATE,
    'deactivate': Transition.TRANSITION_DEACTIVATE,
    'cleanup': Transition.TRANSITION_CLEANUP,
}
_RETRY_S = 0.02


class LifecycleClient:
    """Drives managed nodes by name. It has a node and an executor of its own, so calls simply block.

    ::

        with LifecycleClient() as client:
            client.bring_up('/sim_robot', timeout_s=20.0)
    """

    def __init__(self, context: Context | None = None) -> None:
        """Join the ROS graph; ROS must be initialised."""
        self._node = Node('lifecycle_client', context=context, start_parameter_services=False, enable_rosout=False)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self._node)
        self._clients: dict[tuple[type, str], Client] = {}

    def __enter__(self) -> Self:
        """Return this object."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the graph."""
        self.close()

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown(timeout_sec=0.5)
        self._node.destroy_node()

    def state(self, node: str, timeout_s: float = 5.0) -> str:
        """Return the state of `node`: 'unconfigured', 'inactive', 'active', 'configuring', ...

        Raises:
            CosmosError: It did not answer within `timeout_s`.
        """
        answer = self._call(GetState, f'{node}/get_state', GetState.Request(), timeout_s)
        return str(answer.current_state.label)

    def change(self, node: str, transition: str, timeout_s: float = 30.0) -> bool:
        """Send `node` through `configure`, `activate`, `deactivate` or `cleanup`; return whether it succeeded.

        Raises:
            CosmosError: It did not answer within `timeout_s`.
        """
        request = ChangeState.Request(transition=Transition(id=_TRANSITIONS[transition]))
        return bool(self._call(ChangeState, f'{node}/change_state', request, timeout_s).success)

    def bring_up(self, node: str, timeout_s: float = 60.0) -> None:
        """Configure and activate `node`.

        Raises:
            CosmosError: A transition failed (the node's log says why), or it did not answer in time.
        """
        deadline = time.monotonic() + timeout_s
        for transition in ('configure', 'activate'):
            if not self.change(node, transition, max(0.1, deadline - time.monotonic())):
                raise CosmosError(f'{node} could not {transition}; its log says why')

    def wait_for(self, node: str, state: str, timeout_s: float = 60.0) -> None:
        """Return as soon as `node` is in `state`.

        Raises:
            CosmosError: It is not after `timeout_s`; names the state it is in.
        """
        deadline = time.monotonic() + timeout_s
        seen = 'not answering'
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                seen = self.state(node, left_s)
            except CosmosError:
                if seen == 'not answering':
                    raise
                break  # what it was when it last answered says more
            if seen == state:
                return
            self._executor.spin_once(timeout_sec=_RETRY_S)
        raise CosmosError(f'{node} is {seen}, not {state}, after {timeout_s:g} s')

    def _call(self, kind: type, name: str, request: Any, timeout_s: float) -> Any:
        client = self._clients.get((kind, name))
        if client is None:
            client = self._clients[kind, name] = self._node.create_client(kind, name)
        deadline = time.monotonic() + timeout_s
        while not client.service_is_ready():
            if time.monotonic() > deadline:
                raise CosmosError(f'nobody offers {name} after {timeout_s:g} s: is the node running?')
            self._executor.spin_once(timeout_sec=_RETRY_S)
        future = client.call_async(request)
        self._executor.spin_until_future_complete(future, max(0.0, deadline - time.monotonic()))
        if not future.done():
            raise CosmosError(f'{name} did not answer within {timeout_s:g} s')
        return future.result()
