"""Arrays at the edge of this package: converted once, checked once, faults named by row."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import InvalidInput, Problem

Floats = NDArray[np.float64]
"""Everything in this package computes in double precision; the caller casts to the network's type."""


def as_floats(values: ArrayLike, where: str, tail: tuple[int, ...] = ()) -> Floats:
    """Return `values` as finite float64 whose last dimensions are `tail`; any leading dimensions are kept.

    Args:
        values: Numbers of shape [..., *tail].
        where: Name of the argument, used in errors.
        tail: Required trailing shape; `()` accepts any shape.

    Raises:
        InvalidInput: Not numbers, another trailing shape, or values that are not finite (each bad row is named).
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as fault:
        raise InvalidInput(where, [Problem(where, 'is not an array of numbers', str(fault))]) from fault
    if array.ndim < len(tail) or array.shape[array.ndim - len(tail) :] != tail:
        shape = ', '.join(['...', *map(str, tail)])
        raise InvalidInput(where, [Problem(where, 'has the wrong shape', str(array.shape), f'[{shape}]')])
    finite = np.isfinite(array)
    if not finite.all():
        bad = np.asarray(np.any(~finite, axis=tuple(range(-len(tail), 0))))
        refuse_rows(bad, array, where, what='is not finite', allowed='finite numbers')
    return array


def refuse_rows(
    bad: NDArray[np.bool_], values: Floats, where: str, *, what: str, allowed: str, remedy: str = ''
) -> None:
    """Raise one :class:`InvalidInput` that names every row of `values` for which `bad` is true; else do nothing.

    Args:
        bad: Shape [...], true for a faulty row.
        values: Shape [..., *tail]: the rows themselves, quoted in the error.
        where: Name of the array.
        what: What is wrong with a faulty row.
        allowed: What would be accepted.
        remedy: What to do about it.
    """
    problems = [
        Problem(_row_name(where, tuple(index)), what, _quote(values[tuple(index)]), allowed, remedy)
        for index in np.argwhere(bad)
    ]
    if problems:
        raise InvalidInput(where, problems)


def _row_name(where: str, index: tuple[int, ...]) -> str:
    return f'{where}[{", ".join(map(str, index))}]' if index else where


def _quote(row: Floats | np.float64) -> str:
    text = np.array2string(np.asarray(row), precision=6, separator=', ', threshold=12)
    return ' '.join(text.split())
