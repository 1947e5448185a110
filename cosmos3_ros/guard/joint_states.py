"""What the robot has measured of itself: validated on arrival, remembered to look back at an observation."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.checks import Observed
from cosmos3_ros.guard.motion import NS
from cosmos3_ros.guard.reasons import Reason, Rejection, reject

Array = NDArray[np.float64]

_SPACING_NS = 4_000_000  # remembering every state of a 1 kHz driver would buy nothing
_REMEMBERED = 1024  # four seconds at that spacing; older observations are refused anyway
_LOOK_BACK_NS = 100_000_000  # an observation may be that much older than the first joint state


class JointStates:
    """The last valid joint state and a short history, in the robot's order of joints."""

    def __init__(self, joint_names: tuple[str, ...], future_tolerance_ns: int) -> None:
        self._joint_names = joint_names
        self._future_tolerance_ns = future_tolerance_ns
        self._order_of: tuple[tuple[str, ...], list[int]] = ((), [])
        self._history: deque[tuple[int, Observed]] = deque(maxlen=_REMEMBERED)
        self._last: tuple[int, Observed] | None = None

    @property
    def stamp_ns(self) -> int | None:
        """Stamp of the last valid state; None if there is none."""
        return None if self._last is None else self._last[0]

    @property
    def latest(self) -> Observed | None:
        """The last valid state; None if there is none."""
        return None if self._last is None else self._last[1]

    def forget(self) -> None:
        """Drop everything, for a clock that jumped."""
        self._history.clear()
        self._last = None

    def receive(
        self,
        stamp_ns: int,
        now_ns: int,
        names: Sequence[str],
        positions: Sequence[float] | Array,
        velocities: Sequence[float] | Array | None,
    ) -> Rejection | None:
        """Take one joint state, or say why it is not usable; it is then as if it had not been received.

        Args:
            stamp_ns: When it was measured.
            now_ns: Present time.
            names: Joints in any order; joints that are not the robot's are ignored.
            positions: One per name, rad.
            velocities: One per name, rad/s; None, empty or not finite if the driver does not know them: they are then
                taken from successive positions.
        """
        order = self._order(names)
        if isinstance(order, Rejection):
            return order
        unusable = self._unusable(stamp_ns, now_ns, names, positions)
        if unusable is not None:
            return unusable
        if self._last is not None and stamp_ns <= self._last[0]:
            return None  # overtaken on the way: what is known is newer
        measured = _numbers(positions)[order]
        bad = ~np.isfinite(measured)
        if bad.any():
            joint = int(bad.argmax())
            return reject(Reason.INVALID_JOINT_STATE, f'position is {measured[joint]}', joint=self._joint_names[joint])
        self._remember(stamp_ns, Observed(measured, self._speeds(stamp_ns, measured, velocities, order, len(names))))
        return None

    def at(self, stamp_ns: int) -> Observed | None:
        """The last state not later than `stamp_ns`; None if it is not remembered.

        The first state of all also answers for a moment before it, so that a chunk whose camera frame is a little older
        is not refused.
        """
        for stamp, observed in reversed(self._history):
            if stamp <= stamp_ns:
                return observed
        if self._history and self._history[0][0] - stamp_ns <= _LOOK_BACK_NS:
            return self._history[0][1]
        return None

    def _order(self, names: Sequence[str]) -> list[int] | Rejection:
        given = tuple(names)
        if given != self._order_of[0]:  # drivers send the same names every time
            missing = [name for name in self._joint_names if name not in given]
            if missing:
                return reject(Reason.MISSING_JOINT, f'joint state lacks: {", ".join(missing)}', joint=missing[0])
            self._order_of = (given, [given.index(name) for name in self._joint_names])
        return self._order_of[1]

    def _unusable(
        self, stamp_ns: int, now_ns: int, names: Sequence[str], positions: Sequence[float] | Array
    ) -> Rejection | None:
        if len(positions) != len(names):
            return reject(Reason.INVALID_JOINT_STATE, f'{len(names)} names but {len(positions)} positions')
        ahead = stamp_ns - now_ns
        if ahead > self._future_tolerance_ns:
            limit = self._future_tolerance_ns / NS
            what = 'stamp ahead of the clock by'
            return reject(Reason.INVALID_JOINT_STATE, what, value=ahead / NS, limit=limit, unit='s')
        return None

    def _speeds(
        self,
        stamp_ns: int,
        measured: Array,
        velocities: Sequence[float] | Array | None,
        order: list[int],
        count: int,
    ) -> Array:
        if velocities is not None and len(velocities) == count:
            speeds = _numbers(velocities)[order]
            if np.isfinite(speeds).all():
                return speeds
        if not self._history:
            return np.zeros(len(measured))
        stamp, before = self._history[-1]
        return (measured - before.positions) / (max(stamp_ns - stamp, 1) / NS)

    def _remember(self, stamp_ns: int, observed: Observed) -> None:
        self._last = (stamp_ns, observed)
        if not self._history or stamp_ns - self._history[-1][0] >= _SPACING_NS:
            self._history.append(self._last)


def _numbers(values: Sequence[float] | Array) -> Array:
    """The values as floats [N]; not-a-number in place of whatever is none, so that one check finds them all."""
    try:
        numbers = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        return np.full(len(values), np.nan)
    return numbers if numbers.ndim == 1 else np.full(len(values), np.nan)
