"""The quality-of-service profiles of this package, and what happens when two of them do not match.

Mismatched profiles are the commonest silent failure in ROS 2: both sides run and nothing arrives. Every subscription
and publisher of ours therefore reports it as an error, with the policy at fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSProfile,
    QoSReliabilityPolicy,
    qos_policy_name_from_kind,
)


def sensor(depth: int = 1) -> QoSProfile:
    """Cameras (`depth` 1) and joint states (10 to 50): the newest counts, a lost one is not sent again.

    A best-effort reader matches best-effort and reliable writers; a reliable reader would not match the former.
    """
    return _profile(QoSReliabilityPolicy.BEST_EFFORT, QoSDurabilityPolicy.VOLATILE, depth)


def command() -> QoSProfile:
    """Trajectories to one controller: must arrive, and only the newest is of use."""
    return _profile(QoSReliabilityPolicy.RELIABLE, QoSDurabilityPolicy.VOLATILE, 1)


def latched() -> QoSProfile:
    """Modes, contracts and limits in force: whoever comes late gets the last one too."""
    return _profile(QoSReliabilityPolicy.RELIABLE, QoSDurabilityPolicy.TRANSIENT_LOCAL, 1)


def status(depth: int = 10) -> QoSProfile:
    """Status and events: every one arrives, in order."""
    return _profile(QoSReliabilityPolicy.RELIABLE, QoSDurabilityPolicy.VOLATILE, depth)


def _profile(reliability: QoSReliabilityPolicy, durability: QoSDurabilityPolicy, depth: int) -> QoSProfile:
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=depth, reliability=reliability, durability=durability)


@dataclass
class TopicEvents:
    """What the middleware reported about one topic of a node, counted since its creation.

    Attributes:
        topic: Name of the topic, fully resolved.
        incompatible: Other ends that were found with an incompatible profile.
        last_incompatible_policy: Name of the policy at fault, empty if there was none.
        deadlines_missed: Times that the agreed period was exceeded.
        messages_lost: Messages that were dropped before they were read.
        alive: Writers that assert their liveliness at present (subscriptions only).
    """

    topic: str
    incompatible: int = 0
    last_incompatible_policy: str = ''
    deadlines_missed: int = 0
    messages_lost: int = 0
    alive: int = 0


def subscription_events(events: TopicEvents, logger: RcutilsLogger) -> SubscriptionEventCallbacks:
    """Callbacks that count into `events` and log an incompatible writer as an error."""

    def lost(info: Any) -> None:
        events.messages_lost = info.total_count

    def deadline(info: Any) -> None:
        events.deadlines_missed = info.total_count
        logger.warning(f'{events.topic}: deadline missed ({info.total_count} times)', throttle_duration_sec=1.0)

    def liveliness(info: Any) -> None:
        events.alive = info.alive_count

    return SubscriptionEventCallbacks(
        incompatible_qos=lambda info: _incompatible(events, logger, info, 'publisher', 'offers'),
        deadline=deadline,
        liveliness=liveliness,
        message_lost=lost,
    )


def publisher_events(events: TopicEvents, logger: RcutilsLogger) -> PublisherEventCallbacks:
    """Callbacks that count into `events` and log an incompatible reader as an error."""

    def deadline(info: Any) -> None:
        events.deadlines_missed = info.total_count

    def liveliness(info: Any) -> None:
        logger.error(f'{events.topic}: liveliness lost ({info.total_count} times)')

    return PublisherEventCallbacks(
        incompatible_qos=lambda info: _incompatible(events, logger, info, 'subscription', 'requests'),
        deadline=deadline,
        liveliness=liveliness,
    )


def _incompatible(events: TopicEvents, logger: RcutilsLogger, info: Any, other: str, verb: str) -> None:
    events.incompatible = info.total_count
    events.last_incompatible_policy = qos_policy_name_from_kind(info.last_policy_kind)
    logger.error(
        f'{events.topic}: a {other} {verb} an incompatible {events.last_incompatible_policy}; nothing will be '
        f'exchanged with it. Change its profile, or ours by the parameters qos_overrides.{events.topic}.*'
    )
