"""What a scripted hand sees, what it proposes, and the smooth paths in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.evaluation.simulated_franka import Pose

Floats = NDArray[np.float64]

CLOSING_S = 0.2
"""How long a planned gripper takes from open to closed, s; the fingers follow at their own speed."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What is shown to whoever proposes, and to the judge.

    Attributes:
        stamp_ns: Time of the observation.
        views: Pictures by view, uint8 [H, W, 3]; empty if nobody looks at them.
        joints: [J] rad, measured.
        gripper: Measured, 0 = open, 1 = closed.
        objects: Pose of each loose object in the base frame, as a faultless eye would find it in the pictures.
    """

    stamp_ns: int
    views: Mapping[str, NDArray[np.uint8]]
    joints: Floats
    gripper: float
    objects: Mapping[str, Pose]


@dataclass(frozen=True, eq=False)
class Rows:
    """A chunk.

    Attributes:
        positions: [N, J] rad.
        grippers: [N], 0 = open, 1 = closed.
    """

    positions: Floats
    grippers: Floats


@dataclass(frozen=True, eq=False)
class Plan:
    """Quintics through keyframes; before the first and after the last there is rest.

    Attributes:
        knots: [S + 1] s.
        coefficients: [S, 6, J], in ascending powers of the seconds since the stretch began.
        grip_s: When the gripper begins to close.
    """

    knots: Floats
    coefficients: Floats
    grip_s: float

    @property
    def end_s(self) -> float:
        """When it is done."""
        return float(self.knots[-1])

    def state(self, times: Floats) -> tuple[Floats, Floats, Floats]:
        """Positions, velocities and accelerations [N, J] at times [N]."""
        times = np.clip(times, self.knots[0], self.knots[-1])
        stretch = np.clip(np.searchsorted(self.knots, times, side='right') - 1, 0, len(self.coefficients) - 1)
        t = (times - self.knots[stretch])[:, None]
        c = np.moveaxis(self.coefficients[stretch], 1, 0)
        powers = [t**k for k in range(6)]
        position = sum(c[k] * powers[k] for k in range(6))
        velocity = sum(k * c[k] * powers[k - 1] for k in range(1, 6))
        acceleration = sum(k * (k - 1) * c[k] * powers[k - 2] for k in range(2, 6))
        return np.asarray(position), np.asarray(velocity), np.asarray(acceleration)

    def gripper(self, times: Floats) -> Floats:
        """Closed fraction [N] at times [N]."""
        return np.clip((times - self.grip_s) / CLOSING_S, 0.0, 1.0)


def quintic(start: Sequence[Floats], goal: Floats, seconds: float) -> Floats:
    """Coefficients [6, J] from a position, velocity and acceleration to rest at `goal`: the path of least jerk.

    T. Flash and N. Hogan, J. Neurosci. 5(7), 1985.
    """
    q, v, a = start
    t, way = seconds, goal - (q + v * seconds + a * seconds**2 / 2)
    slower, softer = -(v + a * t) * t, -a * t**2
    return np.stack(
        [
            q,
            v,
            a / 2,
            (10 * way - 4 * slower + softer / 2) / t**3,
            (-15 * way + 7 * slower - softer) / t**4,
            (6 * way - 3 * slower + softer / 2) / t**5,
        ]
    )
