"""Watches all that must be alive for the arm to move: joint states, heartbeat, further sources. Stale means stop."""

from __future__ import annotations

from cosmos3_ros.guard.joint_states import JointStates
from cosmos3_ros.guard.motion import NS
from cosmos3_ros.guard.options import GuardOptions
from cosmos3_ros.guard.reasons import Reason, Rejection, reject


class Watch:
    """When each source was last heard of."""

    def __init__(self, joint_names: tuple[str, ...], options: GuardOptions) -> None:
        self._options = options
        self.joint_states = JointStates(joint_names, options.checks.future_tolerance_ns)
        self.discarded: Rejection | None = None
        """Why the latest joint state was not used; None if it was."""
        self._heartbeat_ns: int | None = None
        self._sources: dict[str, int] = {}
        self._alarms: dict[str, Rejection] = {}

    def heartbeat(self, now_ns: int) -> None:
        """The policy process is alive."""
        self._heartbeat_ns = now_ns

    def source(self, name: str, stamp_ns: int, now_ns: int) -> None:
        """A source delivered something measured at `stamp_ns`; a stamp ahead of the clock counts as the present."""
        stamp_ns = min(stamp_ns, now_ns)
        self._sources[name] = max(stamp_ns, self._sources.get(name, stamp_ns))

    def alarm(self, topic: str, alarm: Rejection | None) -> None:
        """Raise the alarm of a topic, or lift it (None)."""
        if alarm is None:
            self._alarms.pop(topic, None)
        else:
            self._alarms[topic] = alarm

    def forget(self) -> None:
        """Drop everything heard so far, for a clock that jumped; alarms do not depend on the clock."""
        self.joint_states.forget()
        self.discarded = None
        self._heartbeat_ns = None
        self._sources.clear()

    def stale(self, now_ns: int) -> Rejection | None:
        """The first source that is too old, or an alarm, if there is any."""
        stale = self.stale_joint_state(now_ns) or self._stale_source(now_ns) or self._silent(now_ns)
        return stale or next(iter(self._alarms.values()), None)

    def stale_joint_state(self, now_ns: int) -> Rejection | None:
        """Why what is known of the joints is too old, if it is."""
        stamp = self.joint_states.stamp_ns
        because = '' if self.discarded is None else f' (the latest was not used: {self.discarded.text})'
        allowed = self._options.joint_state_max_age_ns
        if stamp is None:
            return reject(Reason.STALE_JOINT_STATE, f'no joint state yet{because}')
        if now_ns - stamp <= allowed:
            return None
        return _too_old(Reason.STALE_JOINT_STATE, f'age of the joint state{because}', now_ns - stamp, allowed)

    def _stale_source(self, now_ns: int) -> Rejection | None:
        for name, allowed in self._options.sources.items():
            stamp = self._sources.get(name)
            if stamp is None:
                return reject(Reason.STALE_SOURCE, f"nothing yet from '{name}'")
            if now_ns - stamp > allowed:
                return _too_old(Reason.STALE_SOURCE, f"age of '{name}'", now_ns - stamp, allowed)
        return None

    def _silent(self, now_ns: int) -> Rejection | None:
        allowed = self._options.heartbeat_max_age_ns
        if allowed is None:
            return None
        if self._heartbeat_ns is None:
            return reject(Reason.HEARTBEAT_LOST, 'no heartbeat yet')
        silence = now_ns - self._heartbeat_ns
        return _too_old(Reason.HEARTBEAT_LOST, 'silence for', silence, allowed) if silence > allowed else None


def _too_old(reason: Reason, what: str, age_ns: int, allowed_ns: int) -> Rejection:
    return reject(reason, what, value=age_ns / NS, limit=allowed_ns / NS, unit='s')
