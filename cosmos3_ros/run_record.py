"""What a run left behind: everything that was commanded, measured, decided and seen, and whether limits were kept.

Pure data, gathered by :mod:`cosmos3_ros.run_recorder` and told by :mod:`cosmos3_ros.run_report`. Times are seconds of
the graph's clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.limits import RobotLimits

if TYPE_CHECKING:
    from engine.evaluation.simulated_franka import Pose

ROUNDING = 1e-6
"""Relative excess over a limit that is rounding: messages carry float64, times whole nanoseconds."""


@dataclass(frozen=True)
class SeenChunk:
    """A chunk on its way from policy to guard; `arrived` and `stamp` in seconds, `positions` [rows, J] or None.

    `grippers` are closed fractions [rows, G], or None; `instruction` is what it is for.
    """

    epoch: int
    sequence: int
    stamp: float
    arrived: float
    rows: int
    positions: NDArray[np.float64] | None
    instruction: str = ''
    grippers: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class SeenCommand:
    """One trajectory on its way to the robot, [K] times (s) and [K, J] positions, velocities, accelerations."""

    times: NDArray[np.float64]
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    accelerations: NDArray[np.float64]


@dataclass(frozen=True)
class Decision:
    """What the guard said of a chunk."""

    epoch: int
    sequence: int
    accepted: bool
    reason: str
    text: str
    splice_jump: float
    observation_age: float


@dataclass(frozen=True)
class Leg:
    """One instruction of a run: its words, and when it began and ended (s)."""

    instruction: str
    begin_s: float
    end_s: float


@dataclass
class RunRecord:
    """Everything seen on the topics during a run.

    Attributes:
        joint_names: The robot's joints, in the order of all arrays.
        chunks: Chunks in order of arrival.
        commands: Commands in order of arrival.
        decisions: The guard's decisions.
        measured: Times (s) and joint positions [J].
        objects: Times (s) and where a simulated robot says that its loose objects are, by name.
        legs: The instructions, in order.
        notes: Times (s) and what happened then, in words.
        frames: Times (s) and composed views, uint8 [H, W, 3].
        stages: Median and 95th percentile of each stage of inference (s).
        guard_text: The guard's last word.
        margins: Smallest margins as the guard reports them: rad, rad/s, rad/s².
        observation_age: Median and 95th percentile (s) as the guard reports them.
        dry_run: Whether commands were withheld.
    """

    joint_names: tuple[str, ...]
    chunks: list[SeenChunk] = field(default_factory=list)
    commands: list[SeenCommand] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    measured: list[tuple[float, NDArray[np.float64]]] = field(default_factory=list)
    objects: list[tuple[float, Mapping[str, Pose]]] = field(default_factory=list)
    legs: list[Leg] = field(default_factory=list)
    notes: list[tuple[float, str]] = field(default_factory=list)
    frames: list[tuple[float, NDArray[np.uint8]]] = field(default_factory=list)
    stages: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    guard_text: str = ''
    margins: tuple[float, float, float] = (np.inf, np.inf, np.inf)
    observation_age: tuple[float, float] = (np.nan, np.nan)
    dry_run: bool = False

    @property
    def accepted(self) -> int:
        """Chunks that the guard let through."""
        return sum(decision.accepted for decision in self.decisions)

    @property
    def rejections(self) -> Counter[str]:
        """How many chunks were refused, by reason."""
        return Counter(decision.reason for decision in self.decisions if not decision.accepted)

    @property
    def splice_jumps(self) -> list[float]:
        """Distances (rad) bridged between two chunks, largest over the joints."""
        return [d.splice_jump for d in self.decisions if d.accepted and np.isfinite(d.splice_jump)]

    @property
    def largest_splice_jump(self) -> float:
        """Largest distance (rad) bridged between two chunks; 0 if there was no splice."""
        return max(self.splice_jumps, default=0.0)

    @property
    def travelled(self) -> NDArray[np.float64]:
        """Range (rad) that each measured joint went through, [J]."""
        if not self.measured:
            return np.zeros(len(self.joint_names))
        return np.ptp(np.stack([positions for _, positions in self.measured]), axis=0)


@dataclass(frozen=True)
class Excess:
    """The command that came closest to a limit, or went beyond it.

    Attributes:
        quantity: `position`, `velocity` or `acceleration`.
        joint: Name of the joint.
        value: Commanded value: rad, rad/s or rad/s².
        limit: The limit it is compared with.
        margin: Distance to the limit, negative beyond it.
    """

    quantity: str
    joint: str
    value: float
    limit: float
    margin: float

    @property
    def exceeded(self) -> bool:
        """Whether the limit was broken by more than rounding."""
        return self.margin < -ROUNDING * max(1.0, abs(self.limit))


def closest_to_limits(commands: Sequence[SeenCommand], limits: RobotLimits) -> list[Excess]:
    """For each quantity, the commanded point that came closest to its limit; computed apart from the guard.

    Besides the velocities and accelerations that the commands state, the mean velocity between two points counts.
    """
    if not commands:
        return []
    positions = np.concatenate([c.positions for c in commands])
    stated = np.concatenate([c.velocities for c in commands])
    travelled = [np.diff(c.positions, axis=0) / np.diff(c.times)[:, None] for c in commands if len(c.times) > 1]
    velocities = np.concatenate([stated, *travelled])
    accelerations = np.concatenate([c.accelerations for c in commands])
    lower, upper = positions - limits.lower, limits.upper - positions
    nearer_lower = lower.min() <= upper.min()
    return [
        _closest(
            'position',
            positions,
            limits.lower if nearer_lower else limits.upper,
            lower if nearer_lower else upper,
            limits.joint_names,
        ),
        _closest('velocity', velocities, limits.velocity, limits.velocity - np.abs(velocities), limits.joint_names),
        _closest(
            'acceleration',
            accelerations,
            limits.acceleration,
            limits.acceleration - np.abs(accelerations),
            limits.joint_names,
        ),
    ]


def _closest(
    quantity: str,
    values: NDArray[np.float64],
    limit: NDArray[np.float64],
    margin: NDArray[np.float64],
    names: Sequence[str],
) -> Excess:
    row, joint = np.unravel_index(int(np.argmin(margin)), margin.shape)
    return Excess(quantity, names[joint], float(values[row, joint]), float(limit[joint]), float(margin[row, joint]))
