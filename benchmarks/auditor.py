"""Judges commands by formulas of its own, thousands at a time; it shares no code with the guard.

A command is what left the guard: points with times, positions, velocities and accelerations. It is judged by its
points, by the quintic that a trajectory controller draws between two of them, and by the command that was in force
before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROUNDING = 1e-6
_INNER = (0.25, 0.5, 0.75)
"""Where between two points the quintic is looked at."""
INTERPOLATION = 0.03
"""By how much of the velocity limit a quintic through sound points may be faster between them."""
_KEPT = 20


@dataclass
class Book:
    """Commands to be judged together.

    Attributes:
        label: What is being tried, for the text of a violation.
        commands: Each with the limits it is held to and where it came from.
        continued: Pairs of a command and the one it takes over from: their numbers, seconds since the first point of
            the older one, and where the arm was.
    """

    label: str = ''
    commands: list[tuple[Any, Any, str]] = field(default_factory=list)
    continued: list[tuple[int, int, float, Array]] = field(default_factory=list)

    def note(self, command: Any, limits: Any, before: Any, before_number: int, now_ns: int, arm: Array) -> int:
        """Note a command that left at `now_ns`; its number.

        Args:
            command: The command.
            limits: Limits of the robot.
            before: The command in force until then, in the present clock; None if there is none.
            before_number: Its number.
            now_ns: Present time.
            arm: Where the arm is, rad [J].
        """
        self.commands.append((command, limits, self.label))
        number = len(self.commands) - 1
        if before is not None:
            self.continued.append((number, before_number, (now_ns - before.stamp_ns) * 1e-9, arm))
        return number


@dataclass
class Audit:
    """What an auditor found so far.

    Attributes:
        commands: Commands judged.
        points: Their points.
        violations: How many things were wrong.
        first: The first of them, as text.
        smallest: The smallest distance of a point to a limit, as a share of the limit (of the range, for positions).
        largest: The largest values that have an allowance instead of a limit.
    """

    commands: int = 0
    points: int = 0
    violations: int = 0
    first: list[str] = field(default_factory=list)
    smallest: dict[str, float] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)

    def violation(self, label: str, what: str, count: int = 1) -> None:
        """Something is wrong."""
        self.violations += count
        if len(self.first) < _KEPT:
            self.first.append(f'{label}: {what}')

    def result(self) -> dict[str, Any]:
        """Everything, for a file."""
        return {
            'commands': self.commands,
            'points': self.points,
            'violations': self.violations,
            'first_violations': self.first,
            'smallest': self.smallest,
            'largest': self.largest,
        }

    def judge(self, book: Book) -> None:
        """Judge all commands of a book."""
        if not book.commands:
            return
        points = _Points.of(book)
        self.commands += len(book.commands)
        self.points += len(points.times)
        self._form(book, points)
        self._points(book, points)
        self._steps(book, points)
        self._continuity(book, points)

    def _hold(self, book: Book, owner: NDArray[np.int64], ok: NDArray[np.bool_], what: str) -> None:
        """Every entry of `ok` must be true; `owner` says to which command each belongs."""
        if not ok.all():
            wrong = np.unique(owner[~ok.reshape(len(ok), -1).all(axis=1)])
            self.violation(book.commands[wrong[0]][2], what, len(wrong))

    def _least(self, name: str, values: Array) -> None:
        self.smallest[name] = min(self.smallest.get(name, np.inf), float(values.min(initial=np.inf)))

    def _most(self, name: str, values: Array) -> None:
        self.largest[name] = max(self.largest.get(name, 0.0), float(values.max(initial=0.0)))

    def _form(self, book: Book, points: _Points) -> None:
        everything = np.concatenate((points.p, points.v, points.a), axis=1)
        self._hold(book, points.owner, np.isfinite(everything), 'a number is not finite')
        numbers = np.arange(len(book.commands))
        self._hold(book, numbers, points.times[points.first] == 0, 'the first point is not now')
        last = points.v[points.last], points.a[points.last]
        self._hold(book, numbers, (last[0] == 0) & (last[1] == 0), 'the end is not at rest')

    def _points(self, book: Book, points: _Points) -> None:
        of = points.owner
        left = np.minimum(points.p - points.lower[of], points.upper[of] - points.p)
        self._hold(book, of, left >= -1e-9, 'position limit')
        self._least('position', left / (points.upper[of] - points.lower[of]))
        for name, values, limit in (('velocity', points.v, points.fast), ('acceleration', points.a, points.hard)):
            share = np.abs(values) / limit[of]
            self._hold(book, of, share <= 1 + ROUNDING, f'{name} limit')
            self._least(name, 1 - share)

    def _steps(self, book: Book, points: _Points) -> None:
        begin = points.inner
        of, dt = points.owner[begin], ((points.times[begin + 1] - points.times[begin]) * 1e-9)[:, None]
        self._hold(book, of, dt > 0, 'times do not rise')
        for name, values, limit in (
            ('mean velocity', points.p, points.fast),
            ('mean acceleration', points.v, points.hard),
            ('mean jerk', points.a, points.jerk),
        ):
            share = np.abs(values[begin + 1] - values[begin]) / (limit[of] * dt)
            self._hold(book, of, share <= 1 + 2 * ROUNDING, f'{name} between points')
            self._least(name, 1 - share)
        coefficients = quintic(points, begin, dt)
        for s in _INNER:
            position, speed = along(coefficients, s, dt)
            excess = np.maximum(points.lower[of] - position, position - points.upper[of])
            self._hold(book, of, excess <= 1e-4, 'position limit between points, as a controller interpolates')
            self._most('position between points beyond its limit, rad', excess)
            share = np.abs(speed) / points.fast[of] - 1
            self._hold(book, of, share <= INTERPOLATION, 'velocity limit between points, as a controller interpolates')
            self._most('velocity between points beyond its limit, share', share)

    def _continuity(self, book: Book, points: _Points) -> None:
        """A command begins where the one before it is, or, from rest, where the arm is."""
        if not book.continued:
            return
        number, before, since, arm = (np.array(column) for column in zip(*book.continued, strict=True))
        times = np.round(since * 1e9).astype(np.int64)
        begin = points.locate(before, times)
        dt = ((points.times[begin + 1] - points.times[begin]) * 1e-9)[:, None]
        s = np.clip((times - points.times[begin])[:, None] * 1e-9 / dt, 0.0, 1.0)
        position, speed = along(quintic(points, begin, dt), s, dt)
        first = points.first[number]
        jump, step = np.abs(points.p[first] - position), np.abs(points.v[first] - speed)
        # A motion whose jerk stays below j differs from the quintic through its states, h apart, by at most j h³/25.3
        # and in speed by j h²/4.9: the error begins and ends with nothing, and the quintic has the least ∫jerk² of all.
        jerk = points.jerk[number]
        near = (jump <= jerk * dt**3 / 25.3 + ROUNDING) & (step <= jerk * dt**2 / 4.9 + ROUNDING)
        # From rest to rest a command may also begin where the arm is: somebody has moved it, or it did not follow.
        moving = np.where((times >= points.times[points.last[before]])[:, None], 0.0, points.v[begin])
        still = (speed, moving, points.v[begin + 1], points.v[first], points.p[first] - arm)
        taken_over = np.logical_and.reduce([np.abs(values).max(axis=1) <= ROUNDING for values in still])
        self._hold(book, number, near | taken_over[:, None], 'does not continue the command before it')
        self._most('jump of position between commands, rad', jump[~taken_over])
        self._most('jump of velocity between commands, rad/s', step[~taken_over])


@dataclass(frozen=True)
class _Points:
    """All points of all commands [P], and per command [C] where they are and what limits hold."""

    times: NDArray[np.int64]
    p: Array
    v: Array
    a: Array
    owner: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    lower: Array
    upper: Array
    fast: Array
    hard: Array
    jerk: Array

    @classmethod
    def of(cls, book: Book) -> _Points:
        commands = [command for command, _, _ in book.commands]
        counts = np.array([len(command.times_ns) for command in commands])
        last = np.cumsum(counts) - 1
        return cls(
            np.concatenate([c.times_ns for c in commands]),
            np.concatenate([c.positions for c in commands]),
            np.concatenate([c.velocities for c in commands]),
            np.concatenate([c.accelerations for c in commands]),
            np.repeat(np.arange(len(commands)), counts),
            last - counts + 1,
            last,
            *(
                np.array([getattr(limits, name) for _, limits, _ in book.commands])
                for name in ('lower', 'upper', 'velocity', 'acceleration', 'jerk')
            ),
        )

    @property
    def inner(self) -> NDArray[np.int64]:
        """Points that are not the last of their command."""
        return np.delete(np.arange(len(self.times)), self.last)

    def locate(self, command: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.int64]:
        """The last point of each command that is not later than a time, and not its very last."""
        span = int(self.times.max()) + int(times.max()) + 2
        ascending = self.times + self.owner * span
        found = np.searchsorted(ascending, command * span + times, side='right') - 1
        return np.clip(found, self.first[command], self.last[command] - 1)


def quintic(points: _Points, begin: NDArray[np.int64], dt: Array) -> list[Array]:
    """Coefficients by s in 0..1 of the quintics between points `begin` and the next, `dt` [S, 1] seconds later."""
    end = begin + 1
    p0, p1 = points.p[begin], points.p[end]
    v0, v1 = points.v[begin] * dt, points.v[end] * dt
    a0, a1 = points.a[begin] * dt**2, points.a[end] * dt**2
    d, dv, da = p1 - p0 - v0 - a0 / 2, v1 - v0 - a0, a1 - a0
    return [p0, v0, a0 / 2, 10 * d - 4 * dv + da / 2, -15 * d + 7 * dv - da, 6 * d - 3 * dv + da / 2]


def along(coefficients: list[Array], s: Any, dt: Array) -> tuple[Array, Array]:
    """Position and velocity at `s`."""
    c0, c1, c2, c3, c4, c5 = coefficients
    position = c0 + s * (c1 + s * (c2 + s * (c3 + s * (c4 + s * c5))))
    velocity = (c1 + s * (2 * c2 + s * (3 * c3 + s * (4 * c4 + s * 5 * c5)))) / dt
    return position, velocity
