"""What imagination said of the policy's chunks, and what follows from it: slower, or not at all.

A verdict can only object. Where it is late, absent, garbage or wrong, the arm does what it would do without it, unless
the options ask for more care: :class:`~cosmos3_ros.guard.options.VerdictOptions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from cosmos3_ros.guard.motion import NS
from cosmos3_ros.guard.options import GuardOptions
from cosmos3_ros.guard.pace import PaceCap
from cosmos3_ros.guard.reasons import Reason, Rejection, reject

_LONGEST_TEXT = 200  # it goes into states and logs at every stop, and somebody else wrote it
_LARGEST_INTEGER = 2**62


class Decision(IntEnum):
    """What imagination makes of a chunk; the numbers are those of the message."""

    UNKNOWN = 0
    OK = 1
    SLOW = 2
    STOP = 3


_NUMBERS = frozenset(Decision)


@dataclass(frozen=True, eq=False)
class Verdict:
    """A verdict as it arrived; nothing about it is trusted.

    Attributes:
        epoch: Of the chunk that it is about.
        sequence: Of the same.
        stamp_ns: Time of the observation behind that chunk.
        decision: A number of :class:`Decision`, or any other.
        text: A sentence for people.
    """

    epoch: int
    sequence: int
    stamp_ns: int
    decision: int
    text: str = ''


class Verdicts:
    """The books of one epoch. Without options nobody listens, and nothing is ever in the way."""

    def __init__(self, options: GuardOptions, epoch: int = 0, begun_ns: int = 0) -> None:
        """Nothing has been said of any chunk of this epoch, which began at `begun_ns`."""
        self._guard_options = options
        self._options = options.verdicts
        self._tolerance_ns = options.checks.future_tolerance_ns
        self._epoch = epoch
        self._begun_ns = begun_ns
        self._newest: int | None = None  # chunk of the newest verdict that said something
        self._known_ns: int | None = None  # when it was received
        self._stop: tuple[int, Rejection] | None = None  # chunk that must not be executed, and why
        self._slow: tuple[int, PaceCap] | None = None  # chunk that must not be executed fast

    @property
    def epoch(self) -> int:
        """Verdicts of any other epoch are ignored."""
        return self._epoch

    @property
    def latches(self) -> bool:
        """Whether a STOP is to be latched."""
        return self._options is not None and self._options.on_stop == 'latch'

    def in_epoch(self, epoch: int, now_ns: int) -> Verdicts:
        """The books as a chunk of an epoch finds them: these, or new ones."""
        return self if epoch == self._epoch else Verdicts(self._guard_options, epoch, now_ns)

    def receive(self, verdict: Verdict, now_ns: int) -> Decision | str:
        """Take a verdict.

        Args:
            verdict: As it arrived.
            now_ns: Present time.

        Returns:
            What it counts as; why it is ignored if it does not count. Never raises for bad content.
        """
        ignored = self._why_ignored(verdict, now_ns)
        if ignored:
            return ignored
        decision = Decision(int(verdict.decision))
        if decision is not Decision.UNKNOWN:
            before = self.cap(now_ns)
            self._newest, self._known_ns = int(verdict.sequence), now_ns
            self._lift(decision, self._newest)
            self._impose(decision, verdict, now_ns if before is None else before.since_ns)
        return decision

    def obstacle(self, now_ns: int) -> Rejection | None:
        """Why nothing may be executed now, as far as imagination is concerned."""
        if self._options is None:
            return None
        if self._stop is not None:
            return self._stop[1]
        return self._silence(now_ns) if self._options.on_unknown == 'stop' else None

    def cap(self, now_ns: int) -> PaceCap | None:
        """How fast chunks may be played now at most; None: at their own pace."""
        if self._options is None:
            return None
        if self._slow is not None:
            return self._slow[1]
        silence = self._silence(now_ns) if self._options.on_unknown == 'slow' else None
        if silence is None:
            return None
        return PaceCap(self._options.slow_pace, self._unknown_from_ns(), silence.text)

    def _why_ignored(self, verdict: Verdict, now_ns: int) -> str:
        """Why a verdict does not count; empty if it does."""
        if self._options is None:
            return 'verdicts are not heeded'
        garbage = _why_garbage(verdict)
        if garbage:
            return garbage
        if verdict.epoch != self._epoch:
            return f'it is of epoch {verdict.epoch}, the present one is {self._epoch}'
        age_ns = now_ns - int(verdict.stamp_ns)
        if not -self._tolerance_ns <= age_ns <= self._options.max_age_ns:
            limit = self._options.max_age_ns / NS
            return f'its observation is {age_ns / NS:.4f} s old, allowed up to {limit:.4f} s'
        if self._newest is not None and verdict.sequence < self._newest:
            return f'it is about chunk {verdict.sequence}, and of chunk {self._newest} more is known'
        return ''

    def _lift(self, decision: Decision, sequence: int) -> None:
        """End what was said of earlier chunks, as far as this one is found better."""
        if decision is Decision.STOP:
            return
        if self._stop is not None and self._stop[0] < sequence:
            self._stop = None
        if decision is Decision.OK and self._slow is not None and self._slow[0] < sequence:
            self._slow = None

    def _impose(self, decision: Decision, verdict: Verdict, since_ns: int) -> None:
        if self._options is None or decision is Decision.OK:
            return
        sequence = int(verdict.sequence)
        said = f'imagination says {decision.name} of chunk {self._epoch}/{sequence}{_quoted(verdict.text)}'
        if decision is Decision.STOP:
            self._stop = sequence, reject(Reason.VERDICT_STOP, said)
        else:
            self._slow = sequence, PaceCap(self._options.slow_pace, since_ns, said)

    def _silence(self, now_ns: int) -> Rejection | None:
        """That nothing is known any more, or yet; None if something is."""
        if self._options is None:
            return None
        if self._known_ns is None:
            return reject(Reason.VERDICT_UNKNOWN, f'nothing is known yet of any chunk of epoch {self._epoch}')
        age_ns, limit_ns = now_ns - self._known_ns, self._options.max_age_ns
        if age_ns <= limit_ns:
            return None
        what = 'age of the last verdict that said something'
        return reject(Reason.VERDICT_UNKNOWN, what, value=age_ns / NS, limit=limit_ns / NS, unit='s')

    def _unknown_from_ns(self) -> int:
        if self._options is None or self._known_ns is None:
            return self._begun_ns
        return self._known_ns + self._options.max_age_ns


def _why_garbage(verdict: Verdict) -> str:
    """What about a verdict makes no sense; empty if all of it does."""
    for name in ('epoch', 'sequence', 'stamp_ns', 'decision'):
        if not _is_usable(getattr(verdict, name)):
            return f'its {name} is no whole number, or too large'
    return '' if verdict.decision in _NUMBERS else f'its decision is {verdict.decision}, which means nothing'


def _is_usable(value: Any) -> bool:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and -_LARGEST_INTEGER <= value <= _LARGEST_INTEGER


def _quoted(text: Any) -> str:
    """What somebody else wrote, in one short line."""
    words = ' '.join(text.split())[:_LONGEST_TEXT] if isinstance(text, str) else ''
    return f': {words}' if words else ''
