"""What the policy proposes, for others in its process: chunks with the observation and the video behind them.

A chunk message says what the robot is to do. What was seen, and what the policy imagined while it decided, is too large
to be sent to a node that sits beside it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cosmos3_ros.policy_loop import TimedChunk

KEPT = 4
"""Proposals that are kept of each policy; the video of one takes 7 MB until somebody looks at it, then 5."""


class ProposalBoard:
    """The newest proposals of each policy, under the topic that its chunks go out on. Thread-safe."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._kept: dict[str, OrderedDict[tuple[int, int], TimedChunk]] = {}

    def put(self, topic: str, timed: TimedChunk) -> None:
        """Keep a proposal; to be called before its message goes out."""
        with self._lock:
            kept = self._kept.setdefault(topic, OrderedDict())
            kept[timed.epoch, timed.sequence] = timed
            while len(kept) > KEPT:
                kept.popitem(last=False)

    def get(self, topic: str, epoch: int, sequence: int) -> TimedChunk | None:
        """A proposal, if it is still there."""
        with self._lock:
            return self._kept.get(topic, {}).get((epoch, sequence))

    def newest(self, topic: str) -> TimedChunk | None:
        """The last one, if there is any."""
        with self._lock:
            kept = self._kept.get(topic)
            return next(reversed(kept.values())) if kept else None

    def clear(self, topic: str) -> None:
        """Forget the proposals of a policy."""
        with self._lock:
            self._kept.pop(topic, None)


PROPOSALS = ProposalBoard()
"""Of this process."""
