"""Events of the middleware (incompatible profiles, missed deadlines) looked at now and then instead of waited for.

rclpy rebuilds its wait set in Python around every single callback, and each publisher and subscription puts two to four
events into it. They are most of the wait set of a node and almost never happen; a node at 100 Hz spends a whole core on
them. What matters at once (silence, lateness) is watched by the nodes themselves, not by these events.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from rclpy.event_handler import EventHandler
from rclpy.exceptions import InvalidHandle
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.waitable import Waitable


class QuietEvents(Node):
    """A node whose executor does not wait for middleware events; :meth:`serve_events` serves those that are due."""

    @property
    def waitables(self) -> Iterator[Waitable]:
        """What the executor waits for: everything but middleware events."""
        return (waitable for waitable in super().waitables if not isinstance(waitable, EventHandler))

    @property
    def event_handlers(self) -> list[EventHandler]:
        """Handlers of the events of all publishers and subscriptions."""
        return [waitable for waitable in super().waitables if isinstance(waitable, EventHandler)]

    def serve_events(self) -> None:
        """Call the handler of every event that happened since the last call."""
        for handler in self._due():
            try:
                data = handler.take_data()
            except InvalidHandle:  # its publisher or subscription was destroyed in this very moment
                continue
            if data is not None:
                handler.callback(data)

    def _due(self) -> list[EventHandler]:
        handlers = []
        with ExitStack() as in_use:
            for handler in self.event_handlers:
                try:
                    in_use.enter_context(handler)
                except InvalidHandle:
                    continue
                handlers.append(handler)
            in_use.enter_context(self.context.handle)
            wait_set = rclpy_implementation.WaitSet(0, 0, 0, 0, 0, len(handlers), self.context.handle)
            wait_set.clear_entities()
            for handler in handlers:
                handler.add_to_wait_set(wait_set)
            wait_set.wait(0)
            return [handler for handler in handlers if handler.is_ready(wait_set)]
