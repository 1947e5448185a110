"""The pieces of which the limits of a robot consist, beyond one number per joint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidInput

Array = NDArray[np.float64]


class LimitsError(InvalidInput):
    """A robot file is malformed, incomplete or implausible, or does not fit the joints that are asked for."""


@dataclass(frozen=True)
class CartesianLimits:
    """Limits of one Cartesian quantity of the end effector, per second.

    The velocities of 'translation' and 'rotation' are enforced for the tool point where the kinematics are known; the
    other figures are data.

    Attributes:
        velocity: m/s or rad/s.
        acceleration: m/s² or rad/s².
        jerk: m/s³ or rad/s³.
    """

    velocity: float
    acceleration: float
    jerk: float

    def scaled(self, scale: float) -> CartesianLimits:
        """The same at reduced speed."""
        return CartesianLimits(self.velocity * scale, self.acceleration * scale, self.jerk * scale)


@dataclass(frozen=True, eq=False)
class NearEnds:
    """Speed limits that shrink towards the ends of the joints' ranges; each array has shape [J].

    Outwards a joint may move at most at `sqrt(gain * distance) - offset`, where the distance is that to `upper` or
    `lower`; what is below zero counts as zero. The formula is that of Franka's FR3 (libfranka, `rate_limiting.h`;
    Franka documentation, "Robot and interface specifications").

    Attributes:
        gain: rad/s².
        offset: rad/s.
        lower: Where the square root becomes zero at the lower end, rad.
        upper: The same at the upper end, rad.
    """

    gain: Array
    offset: Array
    lower: Array
    upper: Array

    def __post_init__(self) -> None:
        freeze_arrays(self)

    @classmethod
    def nowhere(cls, joints: int) -> NearEnds:
        """Limits that shrink nowhere, for joints beside others whose limits do."""
        far = np.full(joints, 1e9)  # rad: its square root is faster than any joint
        return cls(np.ones(joints), np.zeros(joints), -far, far)

    @classmethod
    def joined(cls, parts: Sequence[NearEnds]) -> NearEnds:
        """The joints of all parts one after the other."""
        return cls(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(cls)))

    def scaled(self, scale: float) -> NearEnds:
        """The same at reduced speed: every limit times `scale`."""
        return replace(self, gain=self.gain * scale**2, offset=self.offset * scale)

    def of_columns(self, order: list[int]) -> NearEnds:
        """The same for the joints in another order."""
        return NearEnds(self.gain[order], self.offset[order], self.lower[order], self.upper[order])

    def bounds(self, positions: Array, velocity: Array) -> tuple[Array, Array]:
        """Range of the velocity at the given positions.

        Args:
            positions: [..., J], rad.
            velocity: Largest speed far from the ends [J], rad/s.

        Returns:
            Smallest (negative or zero) and largest (positive or zero) velocity, [..., J] each, rad/s.
        """
        return -self._speed(positions - self.lower, velocity), self._speed(self.upper - positions, velocity)

    def _speed(self, distance: Array, velocity: Array) -> Array:
        speed: Array = np.sqrt(np.maximum(self.gain * distance, 0.0)) - self.offset
        return np.minimum(np.maximum(speed, 0.0, out=speed), velocity, out=speed)


@dataclass(frozen=True, eq=False)
class Workspace:
    """A box that the tool point must not leave, in the base frame of the kinematics: lower and upper corner [3], m."""

    lower: Array
    upper: Array

    def __post_init__(self) -> None:
        freeze_arrays(self)


def freeze_arrays(owner: object) -> None:
    """Replace every array of a frozen dataclass by a copy that cannot be written to."""
    for item in fields(owner):  # type: ignore[arg-type]
        value = getattr(owner, item.name)
        if isinstance(value, np.ndarray):
            frozen = np.array(value, dtype=np.float64)
            frozen.setflags(write=False)
            object.__setattr__(owner, item.name, frozen)
