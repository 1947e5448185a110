"""Trajectories of joints: what a command says, checked, and the path that it means at every instant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.errors import InvalidInput, Problem

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class JointPath:
    """Desired motion of all J joints: one cubic per segment and joint, then rest at the end.

    Attributes:
        times_ns: [S + 1] knots, strictly increasing, on the simulation's clock.
        coefficients: [S, 4, J], in ascending powers of the seconds since the segment began.
        end: [J] position held from the last knot on, rad.
    """

    times_ns: npt.NDArray[np.int64]
    coefficients: Floats
    end: Floats

    @classmethod
    def rest(cls, positions: Floats, now_ns: int) -> JointPath:
        """Hold `positions` [J] from now on."""
        return cls(np.array([now_ns], np.int64), np.empty((0, 4, len(positions))), positions.copy())

    @classmethod
    def through(cls, times_ns: npt.NDArray[np.int64], positions: Floats, velocities: Floats | None) -> JointPath:
        """Path through `positions` [S + 1, J] at `times_ns`: cubic Hermite with `velocities`, else straight lines."""
        duration = (np.diff(times_ns) * 1e-9)[:, None]
        start, step = positions[:-1], np.diff(positions, axis=0)
        slope = step / duration
        if velocities is None:
            coefficients = np.stack([start, slope, np.zeros_like(step), np.zeros_like(step)], axis=1)
        else:
            v0, v1 = velocities[:-1], velocities[1:]
            square = (3 * slope - 2 * v0 - v1) / duration
            cube = (v0 + v1 - 2 * slope) / duration**2
            coefficients = np.stack([start, v0, square, cube], axis=1)
        return cls(times_ns, coefficients, positions[-1].copy())

    def sample(self, times_ns: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Desired positions and velocities, each [N, J], at `times_ns` [N] not before the first knot."""
        moving = times_ns < self.times_ns[-1]
        if moving.all():  # as a rule
            return self._sample(times_ns)
        positions = np.tile(self.end, (len(times_ns), 1))
        velocities = np.zeros_like(positions)
        if moving.any():
            positions[moving], velocities[moving] = self._sample(times_ns[moving])
        return positions, velocities

    def _sample(self, times_ns: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """The same at times before the last knot."""
        segment = np.searchsorted(self.times_ns, times_ns, side='right') - 1
        t = ((times_ns - self.times_ns[segment]) * 1e-9)[:, None]
        found = self.coefficients[segment]
        a, b, c, d = found[:, 0], found[:, 1], found[:, 2], found[:, 3]
        return a + t * (b + t * (c + t * d)), b + t * (2 * c + t * 3 * d)


def in_the_past(end_ns: int, now_ns: int) -> Problem:
    """Return the fault of a trajectory that ended at `end_ns`."""
    late = (now_ns - end_ns) * 1e-9
    return Problem('times_s', 'the whole trajectory lies in the past', f'an end {late:.3f} s ago', 'an end yet to come')


def as_trajectory(
    joints: Sequence[str], times_s: npt.ArrayLike, positions: npt.ArrayLike, velocities: npt.ArrayLike | None
) -> tuple[Floats, Floats, Floats | None]:
    """Return times [K] and positions and velocities [K, J] as float64 arrays.

    Raises:
        InvalidInput: With all that is wrong with them.
    """
    times = np.asarray(times_s, np.float64)
    goals = np.asarray(positions, np.float64)
    rates = None if velocities is None else np.asarray(velocities, np.float64)
    problems = _time_problems(times) + _table_problems('positions', goals, times.size, joints)
    if rates is not None:
        problems += _table_problems('velocities', rates, times.size, joints)
        if rates.ndim == 2 and rates.size and np.abs(rates[-1]).max() > np.finfo(np.float32).eps:
            problems.append(Problem('velocities', 'the last row is not at rest', repr(rates[-1].tolist()), 'zeros'))
    if problems:
        raise InvalidInput('joint trajectory', problems)
    return times, goals, rates


def _time_problems(times: Floats) -> list[Problem]:
    if times.ndim != 1 or not times.size:
        return [Problem('times_s', 'wrong shape', str(times.shape), '[K] with at least one point')]
    if not np.isfinite(times).all() or times[0] < 0 or (np.diff(times) <= 0).any():
        return [Problem('times_s', 'out of order', repr(times.tolist()), 'finite, not negative, strictly increasing')]
    return []


def _table_problems(name: str, table: Floats, rows: int, joints: Sequence[str]) -> list[Problem]:
    if table.shape != (rows, len(joints)):
        return [Problem(name, 'wrong shape', str(table.shape), f'({rows}, {len(joints)})')]
    if np.isfinite(table).all():
        return []
    bad = np.argwhere(~np.isfinite(table))
    return [
        Problem(f'{name}[{row}]', 'not a finite number', str(table[row, joint]), '', joints[joint])
        for row, joint in bad
    ]
