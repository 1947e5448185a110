"""Reads mappings of a contract's file, key by key, and notes every fault."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from engine.errors import Problem


class Reader:
    """Reads one mapping of the file, key by key, noting every fault instead of stopping at the first."""

    def __init__(self, data: object, where: str, problems: list[Problem]) -> None:
        self.where = where
        self.problems = problems
        self.data: dict[str, Any] = data if isinstance(data, dict) else {}
        self.read: set[str] = set()
        if not isinstance(data, dict):
            self.problem(where or 'file', 'must be a mapping of keys to values', repr(data)[:80])

    def problem(self, where: str, what: str, value: str = '', allowed: str = '', remedy: str = '') -> None:
        """Note a fault; see :class:`~engine.errors.Problem` for the arguments."""
        self.problems.append(Problem(where, what, value, allowed, remedy))

    def key(self, name: str) -> str:
        """Return the dotted key of an entry, as faults name it."""
        return f'{self.where}.{name}' if self.where else name

    def section(self, name: str) -> Reader:
        """Return a reader of the mapping under `name`; of an empty one if there is none."""
        self.read.add(name)
        if name not in self.data:
            self.problem(self.key(name), 'section is missing')
            return Reader({}, self.key(name), [])  # one report is enough
        return Reader(self.data[name], self.key(name), self.problems)

    def take[T](self, name: str, kinds: type | tuple[type, ...], fallback: T, *, optional: bool = False) -> Any | T:
        """Return the value under `name`, or `fallback` if it is missing or of another type than `kinds`."""
        self.read.add(name)
        if name not in self.data:
            if not optional:
                self.problem(self.key(name), 'is missing')
            return fallback
        value = self.data[name]
        if value is None and optional:
            return fallback
        if isinstance(value, bool) != (kinds is bool) or not isinstance(value, kinds):
            expected = kinds.__name__ if isinstance(kinds, type) else ' or '.join(k.__name__ for k in kinds)
            self.problem(self.key(name), 'has the wrong type', repr(value), expected)
            return fallback
        return value

    def text(self, name: str, allowed: Sequence[str] | None = None) -> str:
        """Return a text, which must be among `allowed` if that is given; empty if it is missing."""
        value = str(self.take(name, str, ''))
        if allowed is not None and name in self.data and isinstance(self.data[name], str) and value not in allowed:
            self.problem(self.key(name), 'is not known', repr(value), ', '.join(allowed))
        return value

    def optional_text(self, name: str) -> str | None:
        """Return a text, or None where the file says null or nothing."""
        value = self.take(name, str, None, optional=True)
        return None if value is None else str(value)

    def number(self, name: str, low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> float:
        """Return a number from `low` (itself excluded if `above`) to `high`; NaN if it is missing."""
        value = self.take(name, (int, float), math.nan)
        ok = math.isfinite(value) and (low < value if above else low <= value) and value <= high
        if isinstance(self.data.get(name), (int, float)) and not ok:
            self.problem(
                self.key(name), 'is out of range', repr(value), f'{"above" if above else "from"} {low:g} to {high:g}'
            )
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int:
        """Return an integer from `low` to `high`; `low` if it is missing."""
        value = self.take(name, int, low)
        if not low <= value <= high:
            self.problem(self.key(name), 'is out of range', str(value), f'{low} to {high}')
        return int(value)

    def finish(self) -> None:
        """Note every key that nobody has asked for."""
        for name in self.data:
            if name not in self.read:
                self.problem(self.key(str(name)), 'is not a key of a contract', '', ', '.join(sorted(self.read)))
