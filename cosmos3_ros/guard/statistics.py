"""Counts and extremes of one run of the guard, for reports and diagnostics."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.limits import RobotLimits
from cosmos3_ros.guard.motion import NS, Samples
from cosmos3_ros.guard.reasons import Reason
from cosmos3_ros.guard.verdicts import Decision

Array = NDArray[np.float64]

_AGES = 4096
_QUANTITIES = ('position', 'velocity', 'acceleration', 'jerk')


@dataclass(frozen=True)
class Margin:
    """The closest a commanded joint came to one of its limits.

    Attributes:
        joint: Which joint; empty if nothing has been commanded yet.
        value: What was left to the limit: rad (to the nearer hard end), rad/s, rad/s² or rad/s³; infinite before the
            first command.
        fraction: The same as a share of the limit; of the whole range for positions.
    """

    joint: str
    value: float
    fraction: float


@dataclass(frozen=True)
class Statistics:
    """A snapshot.

    Attributes:
        chunks_received: Chunks that arrived.
        chunks_accepted: Chunks that were accepted.
        rejections: Chunks refused, by reason.
        stops: Decelerations that the guard began, by reason.
        discarded_joint_states: Joint states not used, by reason.
        commands: Commands handed out.
        rows_dropped: Rows of accepted chunks that were past when the chunk took over.
        largest_splice_jump: rad; 0 if no chunk was accepted.
        position_margin: Smallest over all executed commands.
        velocity_margin: Smallest over all executed commands.
        acceleration_margin: Smallest over all executed commands.
        jerk_margin: Smallest over all executed commands, by differences of accelerations.
        observation_ages: s; age of the observation behind each executed command, the latest few thousand.
        verdicts: Verdicts of imagination that counted, by decision.
        verdicts_ignored: Verdicts that did not: garbage, of another epoch, too old or overtaken.
    """

    chunks_received: int
    chunks_accepted: int
    rejections: Mapping[Reason, int]
    stops: Mapping[Reason, int]
    discarded_joint_states: Mapping[Reason, int]
    commands: int
    rows_dropped: int
    largest_splice_jump: float
    position_margin: Margin
    velocity_margin: Margin
    acceleration_margin: Margin
    jerk_margin: Margin
    observation_ages: tuple[float, ...]
    verdicts: Mapping[Decision, int]
    verdicts_ignored: int


@lru_cache(maxsize=8)
def _whole(limits: RobotLimits) -> Array:
    """What the margins are shares of: [4, 1, J]."""
    return np.stack((limits.upper - limits.lower, limits.velocity, limits.acceleration, limits.jerk))[:, None]


class Recorder:
    """Gathers the statistics while the guard runs."""

    def __init__(self) -> None:
        self.chunks_received = 0
        self.chunks_accepted = 0
        self.commands = 0
        self.rows_dropped = 0
        self.largest_splice_jump = 0.0
        self.rejections: Counter[Reason] = Counter()
        self.stops: Counter[Reason] = Counter()
        self.discarded: Counter[Reason] = Counter()
        self.verdicts: Counter[Decision] = Counter()
        self.verdicts_ignored = 0
        self._ages: deque[float] = deque(maxlen=_AGES)
        self._margins = {key: Margin('', math.inf, math.inf) for key in _QUANTITIES}
        self._smallest = np.full((len(_QUANTITIES), 1), np.inf)  # the fractions of these margins

    def executed(self, samples: Samples, until_ns: int, limits: RobotLimits) -> None:
        """Note the part of a command that will be executed before the next one; the rest is superseded by it.

        Args:
            samples: Points of the command.
            until_ns: When the next command is expected.
            limits: Hard limits.
        """
        self.commands += 1
        count = max(2, int(np.searchsorted(samples.times_ns, until_ns, side='right')))
        p, v, a = samples.positions[:count], samples.velocities[:count], samples.accelerations[:count]
        times = samples.times_ns[:count]
        left = np.empty((len(_QUANTITIES), count, p.shape[1]))  # joints may have anything left to a limit, in its unit
        left[0] = np.minimum(p - limits.lower, limits.upper - p)
        left[1] = limits.velocity - np.abs(v)
        left[2] = limits.acceleration - np.abs(a)
        left[3, 1:] = limits.jerk - np.abs((a[1:] - a[:-1]) * (NS / (times[1:] - times[:-1]))[:, None])
        left[3, 0] = left[3, 1]
        fractions = (left / _whole(limits)).reshape(len(_QUANTITIES), -1)
        if (fractions < self._smallest).any():
            self._note(left.reshape(fractions.shape), fractions, limits)

    def aged(self, age_ns: int) -> None:
        """Note the age of the observation behind the motion of this instant."""
        self._ages.append(age_ns / NS)

    def snapshot(self) -> Statistics:
        """An independent copy of everything so far."""
        return Statistics(
            self.chunks_received,
            self.chunks_accepted,
            dict(self.rejections),
            dict(self.stops),
            dict(self.discarded),
            self.commands,
            self.rows_dropped,
            self.largest_splice_jump,
            self._margins['position'],
            self._margins['velocity'],
            self._margins['acceleration'],
            self._margins['jerk'],
            tuple(self._ages),
            dict(self.verdicts),
            self.verdicts_ignored,
        )

    def _note(self, left: Array, fractions: Array, limits: RobotLimits) -> None:
        for row, key in enumerate(_QUANTITIES):
            index = int(fractions[row].argmin())
            if fractions[row, index] < self._margins[key].fraction:
                joint = limits.joint_names[index % len(limits.joint_names)]
                self._margins[key] = Margin(joint, float(left[row, index]), float(fractions[row, index]))
                self._smallest[row] = fractions[row, index]
