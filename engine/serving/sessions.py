"""What a server remembers of a robot between two requests: the last measured states, where the policy looks at them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

State = Mapping[str, NDArray[np.float64]]
"""Measured fields, each with a first dimension of time, newest last."""

MOST_SESSIONS: Final = 1024


class Session:
    """The states of one robot, newest last."""

    def __init__(self, rows: int) -> None:
        """Keep what a policy needs that looks at so many rows, now included."""
        self._rows = rows
        self._kept: dict[str, NDArray[np.float64]] = {}

    def complete(self, state: State) -> dict[str, NDArray[np.float64]]:
        """The state with the rows that the policy looks at, [rows, ...], and remember it.

        A client that sends a history knows better than this memory. Before there is one, the oldest known row stands
        for those before it: a robot is at rest when it begins.

        Args:
            state: [T, ...] for each field, T equal for all: 1, or at least what the policy needs.
        """
        whole = {}
        for name, rows in state.items():
            known = rows if len(rows) >= self._rows else np.concatenate([self._kept.get(name, rows[:0]), rows])
            missing = self._rows - len(known)
            whole[name] = np.concatenate([np.repeat(known[:1], missing, axis=0), known]) if missing > 0 else known
            whole[name] = whole[name][-self._rows :]
            self._kept[name] = known[len(known) - min(len(known), self._rows - 1) :]
        return whole


class Sessions:
    """The sessions of all robots; of more than `most`, those that were not heard of for longest are forgotten."""

    def __init__(self, rows: int, most: int = MOST_SESSIONS) -> None:
        """Sessions for a policy that looks at so many rows of the state, now included."""
        self._rows = rows
        self._most = most
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, name: str) -> Session:
        """The session of this name; a new one if there is none."""
        session = self._sessions.setdefault(name, Session(self._rows))
        self._sessions.move_to_end(name)
        while len(self._sessions) > self._most:
            self._sessions.popitem(last=False)
        return session

    def forget(self, name: str) -> None:
        """Start this session anew; nothing if there is none."""
        self._sessions.pop(name, None)
