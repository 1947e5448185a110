"""What the doctor says of a data set: one fault, where it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import Problem


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, or odd, in a data set.

    Attributes:
        code: Stable name, for programs.
        problem: What, where, value, allowed, remedy.
        grave: Whether the data set cannot be loaded, or something in it cannot be believed; else it is a remark.
        episodes: How many episodes have it; 0 if it is of the data set as a whole.
    """

    code: str
    problem: Problem
    grave: bool = True
    episodes: int = 0


def fault(code: str, where: str, what: str, value: str = '', allowed: str = '', remedy: str = '') -> Fault:
    """A grave fault."""
    return Fault(code, Problem(where, what, value, allowed, remedy))


def remark(code: str, where: str, what: str, value: str = '', allowed: str = '', remedy: str = '') -> Fault:
    """Something odd that a reader can live with."""
    return Fault(code, Problem(where, what, value, allowed, remedy), grave=False)
