"""The quality-of-service profiles of this package, and what happens when two of them do not match.

Mismatched profiles are the commonest silent failure in ROS 2: both sides run and nothing arrives. Every subscription
and publisher of ours therefore reports it as an error, with the policy at fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.duration import Duration
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSLivelinessPolicy,
    QoSPolicyKind,
    QoSProfile,
    QoSReliabilityPolicy,
    qos_policy_name_from_kind,
)

LEASE_S = 0.2
"""Lease that our own publishers offer where a watchdog asks for one; the middleware renews it by itself."""

OVERRIDABLE = (
    QoSPolicyKind.HISTORY,
    QoSPolicyKind.DEPTH,
    QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
)
"""What parameters `qos_overrides.TOPIC.*` may change; for publishers all but durability, which others rely on."""


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


def with_terms(profile: QoSProfile, *, deadline_s: float = 0.0, lease_s: float = 0.0) -> QoSProfile:
    """A copy of a profile that offers (publisher) or demands (subscription) a deadline and a liveliness lease.

    A subscription that demands more than its publisher offers receives nothing from it.

    Args:
        profile: What to start from.
        deadline_s: Longest time between two messages; 0: none.
        lease_s: Longest time without a sign of life of the publisher's process, which the middleware gives; 0: none.
    """
    made = _profile(profile.reliability, profile.durability, profile.depth)
    if deadline_s:
        made.deadline = Duration(nanoseconds=round(deadline_s * 1e9))
    if lease_s:
        made.liveliness = QoSLivelinessPolicy.AUTOMATIC
        made.liveliness_lease_duration = Duration(nanoseconds=round(lease_s * 1e9))
    return made


def heartbeat(period_s: float) -> QoSProfile:
    """Latched status that comes every `period_s` or more often, and whose silence others watch for."""
    return with_terms(latched(), deadline_s=3.0 * period_s, lease_s=LEASE_S)


def policy_name(kind: int) -> str:
    """Name of a policy that did not match, such as 'DURABILITY'."""
    return str(qos_policy_name_from_kind(kind))


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
        on_deadline: Called when a deadline was missed (subscriptions only).
        on_loss: Called when a writer has gone, with the number of those that are left (subscriptions only).
    """

    topic: str
    incompatible: int = 0
    last_incompatible_policy: str = ''
    deadlines_missed: int = 0
    messages_lost: int = 0
    alive: int = 0
    on_deadline: Callable[[], None] = lambda: None
    on_loss: Callable[[int], None] = lambda _left: None


def subscription_events(events: TopicEvents, logger: RcutilsLogger) -> SubscriptionEventCallbacks:
    """Callbacks that count into `events` and log an incompatible writer as an error."""

    def lost(info: Any) -> None:
        events.messages_lost = info.total_count

    def deadline(info: Any) -> None:
        events.deadlines_missed = info.total_count
        logger.warning(f'{events.topic}: deadline missed ({info.total_count} times)', throttle_duration_sec=1.0)
        events.on_deadline()

    def liveliness(info: Any) -> None:
        events.alive = info.alive_count
        if info.alive_count_change < 0:
            events.on_loss(info.alive_count)

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
    # The count last: whoever sees it from another thread finds the name.
    events.last_incompatible_policy = policy_name(info.last_policy_kind)
    events.incompatible = info.total_count
    logger.error(
        f'{events.topic}: a {other} {verb} an incompatible {events.last_incompatible_policy}; nothing will be '
        f'exchanged with it. Change its profile, or ours by the parameters qos_overrides.{events.topic}.*'
    )
