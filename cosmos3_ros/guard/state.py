"""What the guard says: its state, its answers to requests, and the commands it wants sent."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.checks import Acceptance
from cosmos3_ros.guard.reasons import Reason

Array = NDArray[np.float64]


class GuardState(StrEnum):
    """What the guard is doing."""

    INACTIVE = 'INACTIVE'
    """Not activated: commands nothing."""
    WAITING = 'WAITING'
    """Active; has commanded nothing yet."""
    TRACKING = 'TRACKING'
    """Plays accepted chunks."""
    BRAKING = 'BRAKING'
    """Decelerates to rest."""
    HOLDING = 'HOLDING'
    """At rest where it stopped; goes on with the next accepted chunk."""
    FAULT = 'FAULT'
    """Brakes or stands, and stays so until a person resets it."""


class Answer(NamedTuple):
    """Whether a request was granted, and what to tell the person who made it."""

    ok: bool
    text: str


class Slowed(NamedTuple):
    """A chunk that was accepted before is played more slowly from now on: how, and why in one sentence."""

    accepted: Acceptance
    why: str


@dataclass(frozen=True, eq=False)
class Command:
    """A trajectory to send. It starts with the present commanded state and always ends at rest.

    Attributes:
        stamp_ns: Time of its first point.
        joint_names: Meaning of the columns.
        times_ns: [S], time of each point from `stamp_ns`; the first is 0.
        positions: [S, J], rad.
        velocities: [S, J], rad/s; the last row is zero.
        accelerations: [S, J], rad/s²; the last row is zero.
        gripper: One number for each gripper, 0 = open, 1 = closed; None to leave the grippers as they are.
        state: State of the guard.
        reason: Why it is not moving, or NONE.
    """

    stamp_ns: int
    joint_names: tuple[str, ...]
    times_ns: NDArray[np.int64]
    positions: Array
    velocities: Array
    accelerations: Array
    gripper: tuple[float, ...] | None
    state: GuardState
    reason: Reason
