"""What is known of an emergency stop that reports its state: pressed, released, silent, lost, or never heard of.

It is one more way to ask the guard for a stop, beside the robot's own emergency stop and never in its place.
"""

from __future__ import annotations

from cosmos3_ros.guard.motion import NS
from cosmos3_ros.guard.options import GuardOptions
from cosmos3_ros.guard.reasons import Reason, Rejection, reject


class EmergencyStop:
    """The last report of the emergency stop. Without one in the options it never objects."""

    def __init__(self, options: GuardOptions) -> None:
        self._required = options.emergency_stop
        self._max_age_ns = options.emergency_stop_max_age_ns
        self._pressed = False
        self._lost: Rejection | None = None
        self._heard_ns: int | None = None

    def heard(self, pressed: bool, now_ns: int) -> None:
        """It reports; whoever reports is not lost any more."""
        self._pressed, self._lost, self._heard_ns = pressed, None, now_ns

    def lost(self, loss: Rejection) -> None:
        """Whoever reports it is gone; what it said last counts no more."""
        self._lost = loss

    def forget(self) -> None:
        """Forget when it was heard, for a clock that jumped; one that is pressed remains so."""
        self._heard_ns = None

    def demand(self, now_ns: int) -> Rejection | None:
        """Why a stop must be latched now; None if nothing demands one."""
        if self._pressed:
            return reject(Reason.EMERGENCY_STOP, 'the emergency stop is pressed')
        if self._lost is not None:
            return self._lost
        if self._heard_ns is None or self._max_age_ns is None or now_ns - self._heard_ns <= self._max_age_ns:
            return None
        silence, limit = (now_ns - self._heard_ns) / NS, self._max_age_ns / NS
        what = 'the emergency stop has been silent for'
        return reject(Reason.EMERGENCY_STOP, what, value=silence, limit=limit, unit='s')

    def obstacle(self, now_ns: int) -> Rejection | None:
        """Why the arm must not move: a stop is demanded, or a required emergency stop was never heard of."""
        demand = self.demand(now_ns)
        if demand is None and self._required and self._heard_ns is None:
            return reject(Reason.EMERGENCY_STOP, 'nothing has been heard of the emergency stop yet')
        return demand
