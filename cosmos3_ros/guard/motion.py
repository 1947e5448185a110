"""Motion as a function of time: the states of all joints, sampled at any instants.

Times are integer nanoseconds of the node's clock; positions rad, velocities rad/s, accelerations rad/s².
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard import kernels

Array = NDArray[np.float64]
Times = NDArray[np.int64]

NS = 1_000_000_000


@dataclass(frozen=True, eq=False)
class JointsState:
    """Position, velocity and acceleration of all joints at one instant, each [J]."""

    positions: Array
    velocities: Array
    accelerations: Array

    @classmethod
    def at_rest(cls, positions: Array) -> JointsState:
        """Standing still at `positions`, rad [J]."""
        zero = np.zeros(len(positions))
        return cls(np.array(positions, dtype=np.float64), zero, zero)

    @property
    def is_at_rest(self) -> bool:
        """Whether every velocity and acceleration is exactly zero."""
        return not self.velocities.any() and not self.accelerations.any()


@dataclass(frozen=True, eq=False)
class Samples:
    """States at several instants: `times_ns` [S], the others [S, J]."""

    times_ns: Times
    positions: Array
    velocities: Array
    accelerations: Array

    def state(self, index: int) -> JointsState:
        """The state at one of the instants."""
        return JointsState(self.positions[index], self.velocities[index], self.accelerations[index])


class Motion(Protocol):
    """A motion of all joints from `start_ns` on; after `end_ns` it is at rest or has nothing more to say."""

    @property
    def start_ns(self) -> int:
        """First instant it is defined for."""

    @property
    def end_ns(self) -> int:
        """Last instant at which it changes anything."""

    def sample(self, times_ns: Times) -> Samples:
        """States at the given instants; instants outside are taken as the nearest end."""

    def state(self, time_ns: int) -> JointsState:
        """State at one instant; the same as a sample of one, in a fraction of the time."""


@dataclass(frozen=True, eq=False)
class Hold:
    """Standing still."""

    start_ns: int
    positions: Array

    @property
    def end_ns(self) -> int:
        """Nothing changes after the start."""
        return self.start_ns

    def sample(self, times_ns: Times) -> Samples:
        """The same state at every instant."""
        positions = np.repeat(self.positions[None, :], len(times_ns), axis=0)
        zero = np.zeros_like(positions)
        return Samples(times_ns, positions, zero, zero)

    def state(self, time_ns: int) -> JointsState:
        """The same state at any instant."""
        return JointsState.at_rest(self.positions)


@dataclass(frozen=True, eq=False)
class Shifted:
    """Another motion, `offset_ns` later: for a clock that was set."""

    motion: Motion
    offset_ns: int

    @property
    def start_ns(self) -> int:
        """First instant it is defined for."""
        return self.motion.start_ns + self.offset_ns

    @property
    def end_ns(self) -> int:
        """Last instant at which it changes anything."""
        return self.motion.end_ns + self.offset_ns

    def sample(self, times_ns: Times) -> Samples:
        """The other motion's states, that much earlier."""
        samples = self.motion.sample(times_ns - self.offset_ns)
        return Samples(times_ns, samples.positions, samples.velocities, samples.accelerations)

    def state(self, time_ns: int) -> JointsState:
        """The other motion's state, that much earlier."""
        return self.motion.state(time_ns - self.offset_ns)


def state_at(motion: Motion, time_ns: int) -> JointsState:
    """State of a motion at one instant."""
    return motion.state(time_ns)


def instants(start_ns: int, end_ns: int, step_ns: int) -> Times:
    """Evenly spaced instants from `start_ns` to `end_ns`, both included, at most `step_ns` apart."""
    return kernels.instants(start_ns, end_ns, step_ns)
