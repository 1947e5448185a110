"""Errors for the person who must fix them: what is wrong, where, its value, what is allowed, and the remedy.

Every error that user input can cause is a :class:`CosmosError`. Validation never stops at the first fault:
it collects :class:`Problem` items and raises one error that lists them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One fault in something the user supplied.

    Attributes:
        where: File, key, tensor, topic or argument that is wrong.
        what: What is wrong with it, in a few words.
        value: The offending value as text; empty if there is none (a missing thing has no value).
        allowed: What would be accepted, as text; empty if `what` says it already.
        remedy: What to do about it; empty if it is plain from `allowed`.
    """

    where: str
    what: str
    value: str = ''
    allowed: str = ''
    remedy: str = ''

    def __str__(self) -> str:
        text = f'{self.where}: {self.what}'
        if self.value:
            text += f', got {self.value}'
        if self.allowed:
            text += f', allowed: {self.allowed}'
        if self.remedy:
            text += f' -> {self.remedy}'
        return text


class CosmosError(Exception):
    """Root of all errors this project raises on purpose; its text is meant for people."""


class InvalidInput(CosmosError, ValueError):
    """Something supplied by the user is wrong; `problems` lists every fault found."""

    def __init__(self, subject: str, problems: Iterable[Problem]) -> None:
        """Build the message from `subject` (what was being read) and its `problems` (at least one)."""
        self.subject = subject
        self.problems = tuple(problems)
        noun = 'problem' if len(self.problems) == 1 else 'problems'
        lines = [f'{subject}: {len(self.problems)} {noun}', *(f'  - {p}' for p in self.problems)]
        super().__init__('\n'.join(lines))


class ContractError(InvalidInput):
    """A contract file is malformed, or does not fit the checkpoint, the robot or the request."""


class CheckpointError(InvalidInput):
    """A checkpoint directory is incomplete, damaged or of an unknown layout."""


class ObservationError(InvalidInput):
    """An observation lacks something, or something in it has the wrong shape, type or value."""


class TalkerError(CosmosError):
    """A reasoner could not be had: its endpoint is unreachable, refused, was too slow or sent what is no answer."""


class ServerError(CosmosError):
    """A remote policy could not be had: its server is unreachable, refused, was too slow or sent what is no chunk."""


class ServerUnavailable(ServerError):
    """A policy server cannot be reached, has no room, or is too slow: it may be there again in a moment."""
