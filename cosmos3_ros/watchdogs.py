"""Watches over topics from below and beside: deadlines and liveliness by the middleware, and who else commands.

All of this can only stop the arm earlier than the ages of messages would; it never takes the place of their check.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import EventHandler, SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription

from cosmos3_ros import qos
from cosmos3_ros.guard.reasons import Reason, Rejection, reject
from cosmos3_ros.middleware_events import QuietEvents

Alarm = Callable[[Rejection], None]


class Watchdogs:
    """All watchdogs of a node. They bark when :meth:`look` is called, or a little later: see `QuietEvents`."""

    def __init__(self, node: QuietEvents, alarm: Callable[[str, Rejection | None], None]) -> None:
        """Watch nothing yet.

        Args:
            node: Whose topics are watched.
            alarm: Called with the name of a topic and what is wrong with it, or None when it is right again.
        """
        self._node, self._alarm = node, alarm
        self._alarms: dict[str, Rejection] = {}
        # What is noted here and what is told must change together: else an alarm could be lifted before it is told, and
        # then stay for ever.
        self._changing = threading.Lock()
        self._handlers: list[EventHandler] = []
        self._own_topic = ''
        self._publishers: dict[str, tuple[int, Alarm]] = {}
        self._spoke: set[str] = set()

    def listen(self, subscription: Subscription, events: qos.TopicEvents, alarm: Alarm | None = None) -> None:
        """Raise an alarm when the publisher of a subscription misses the deadline that it demands.

        Args:
            subscription: Of the node.
            events: What the middleware says of it.
            alarm: Called instead of the node's own alarm, and then also if a publisher of the topic is gone.
        """
        topic = events.topic
        if alarm is None:
            events.on_deadline = lambda: self._raise(topic, missed(topic))
        else:
            events.on_deadline = lambda: alarm(missed(topic))
            events.on_loss = lambda left: alarm(gone(topic, left))
            self._publishers[topic] = (0, alarm)  # one that offers no lease leaves without such an event
        self._handlers += subscription.event_handlers

    def demand(self, message_type: type, topic: str, profile: QoSProfile, group: CallbackGroup) -> None:
        """Raise an alarm when the publisher of a topic does not keep deadline or lease of `profile`.

        A subscription that demands what its publisher does not offer hears nothing at all. So the demand is made by a
        second subscription, whose messages are thrown away unread: a publisher that offers less is heard all the same
        by the one that matters.
        """
        topic, logger = self._node.resolve_topic_name(topic), self._node.get_logger()

        def liveliness(info: Any) -> None:
            if info.alive_count_change < 0:
                self._raise(topic, gone(topic, info.alive_count))
            elif info.alive_count_change > 0:
                self.heard(topic)

        def incompatible(info: Any) -> None:
            logger.info(
                f'{topic}: its publisher offers no {qos.policy_name(info.last_policy_kind)} that would do; '
                'that it falls silent is noticed by the age of its messages alone'
            )

        callbacks = SubscriptionEventCallbacks(
            deadline=lambda _info: self._raise(topic, missed(topic)),
            liveliness=liveliness,
            incompatible_qos=incompatible,
            use_default_callbacks=False,
        )
        try:
            watching = self._node.create_subscription(
                message_type, topic, _throw_away, profile, callback_group=group, raw=True, event_callbacks=callbacks
            )
        except UnsupportedEventTypeError:  # not every middleware reports these; ages are checked anyway
            return
        self._handlers += watching.event_handlers

    def reserve(self, topic: str) -> None:
        """Raise an alarm while anybody but this node publishes on `topic`."""
        self._own_topic = topic

    def heard(self, topic: str) -> None:
        """A message came on `topic`: what was wrong with it is over."""
        if topic in self._publishers:
            self._spoke.add(topic)
        if topic not in self._alarms:
            return
        with self._changing:
            if self._alarms.pop(topic, None) is not None:
                self._alarm(topic, None)

    def look(self) -> None:
        """See what has happened; takes well below a millisecond."""
        if self._handlers:
            self._node.serve_events(self._handlers)
        for topic, (before, alarm) in self._publishers.items():
            spoke = topic in self._spoke  # whoever spoke since the last look was there, even if nobody is now
            self._spoke.discard(topic)
            now = self._node.count_publishers(topic)
            self._publishers[topic] = (now, alarm)
            if now < max(before, int(spoke)):
                alarm(gone(topic, now))
        if not self._own_topic:
            return
        others = other_commanders(self._node, self._own_topic)
        if others:
            what = f'somebody else commands it on {self._own_topic}: {", ".join(others)}'
            self._raise(self._own_topic, reject(Reason.ROBOT_MOVING, what))
        else:
            self.heard(self._own_topic)

    def _raise(self, topic: str, alarm: Rejection) -> None:
        with self._changing:
            if self._alarms.get(topic) != alarm:
                self._alarms[topic] = alarm
                self._alarm(topic, alarm)


def missed(topic: str) -> Rejection:
    """The alarm of a topic whose messages do not come in time."""
    return reject(Reason.DEADLINE_MISSED, f'{topic}: no message within the agreed period')


def gone(topic: str, left: int) -> Rejection:
    """The alarm of a topic that lost a publisher."""
    others = f'; {left} left' if left else ''
    return reject(Reason.LIVELINESS_LOST, f'{topic}: its publisher is gone{others}')


def _throw_away(_message: bytes) -> None:
    pass


def other_commanders(node: Node, topic: str) -> list[str]:
    """Names of the nodes that publish on a topic on which `node` has one publisher; empty if it is alone.

    Nodes of the same name as `node` do not count: they are what discovery still remembers, for 20 s and more, of one
    that was killed, and whose place this one has taken.
    """
    if node.count_publishers(topic) <= 1:  # by far the cheapest question, and almost always the last
        return []
    own = node.get_fully_qualified_name()
    names = {f'{info.node_namespace.rstrip("/")}/{info.node_name}' for info in node.get_publishers_info_by_topic(topic)}
    return sorted(names - {own})
