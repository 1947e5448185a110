"""Events of the middleware (incompatible profiles, missed deadlines) looked at now and then instead of waited for.

rclpy rebuilds its wait set in Python around every single callback, and each publisher and subscription puts two to four
events into it. They are most of the wait set of a node and almost never happen; a node at 100 Hz spends a whole core on
them. What matters at once (silence, lateness) is watched by the nodes themselves; a node that wants to hear of an event
sooner may ask for a few of them more often.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from rclpy.event_handler import EventHandler
from rclpy.exceptions import InvalidHandle
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.waitable import Waitable


class QuietEvents(Node):
    """A node whose executor does not wait for middleware events; :meth:`serve_events` serves those that are due."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._serving = threading.Lock()
        super().__init__(*args, **kwargs)

    @property
    def waitables(self) -> Iterator[Waitable]:
        """What the executor waits for: everything but middleware events."""
        return (waitable for waitable in super().waitables if not isinstance(waitable, EventHandler))

    @property
    def event_handlers(self) -> list[EventHandler]:
        """Handlers of the events of all publishers and subscriptions."""
        return [waitable for waitable in super().waitables if isinstance(waitable, EventHandler)]

    def serve_events(self, handlers: Sequence[EventHandler] | None = None) -> None:
        """Call the handler of every event that happened since the last call.

        Args:
            handlers: Whom to ask; None: all. Returns at once if another thread is about it.
        """
        if not self._serving.acquire(blocking=False):  # a handler can be in one wait set only
            return
        try:
            happened = [(handler, _take(handler)) for handler in self._due(handlers)]
        finally:
            self._serving.release()
        for handler, data in happened:
            if data is not None:
                handler.callback(data)

    def _due(self, wanted: Sequence[EventHandler] | None) -> list[EventHandler]:
        handlers = []
        with ExitStack() as in_use:
            for handler in self.event_handlers if wanted is None else wanted:
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


def _take(handler: EventHandler) -> Any:
    try:
        return handler.take_data()
    except InvalidHandle:  # its publisher or subscription was destroyed in this very moment
        return None
