"""Chunks of rows: from files, to the length of a chunk, to the width of the network."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from engine.actions.arrays import Floats, as_floats
from engine.errors import InvalidInput, Problem

MODEL_WIDTH = 64
"""Channels of an action token."""


def pad_channels(rows: ArrayLike, width: int = MODEL_WIDTH) -> Floats:
    """Return rows [..., D] with zeros appended up to [..., width].

    Raises:
        InvalidInput: Rows that are wider already, or not finite.
    """
    array = _rows(rows)
    missing = width - array.shape[-1]
    if missing < 0:
        raise InvalidInput('rows', [Problem('rows', 'are too wide', str(array.shape[-1]), f'at most {width}')])
    return np.concatenate([array, np.zeros((*array.shape[:-1], missing))], axis=-1)


def fit_chunk(rows: ArrayLike, length: int) -> Floats:
    """Return exactly `length` rows of [T, D]: the last one repeated if there are too few, the end dropped if too many.

    Raises:
        InvalidInput: No rows at all, rows that are not finite, or a length below one.
    """
    array = _rows(rows)
    if array.ndim != 2 or len(array) == 0:
        raise InvalidInput('rows', [Problem('rows', 'are no chunk', f'shape {array.shape}', '[T, D] with T >= 1')])
    if length < 1:
        raise InvalidInput('chunk', [Problem('length', 'is too small', str(length), 'at least 1')])
    fitted: Floats = np.take(array, np.minimum(np.arange(length), len(array) - 1), axis=0)
    return fitted


def read_action_file(path: str | Path, dim: int | None = None) -> Floats:
    """Read an action file: a JSON list of T rows of D numbers, in model space. Returns [T, D].

    Args:
        path: The file.
        dim: Required width; None takes that of the first row.

    Raises:
        InvalidInput: The file cannot be read or is malformed; every faulty row is named.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError) as fault:
        raise InvalidInput(f'action file {path}', [Problem(str(path), 'cannot be read', str(fault))]) from fault
    problems = _faults(rows, dim)
    if problems:
        raise InvalidInput(f'action file {path}', problems)
    return np.array(rows, dtype=np.float64)


def _faults(rows: object, dim: int | None) -> list[Problem]:
    if not isinstance(rows, list) or not rows:
        return [Problem('file', 'is no list of rows', type(rows).__name__, 'a list of one or more rows of numbers')]
    if dim is None:
        dim = next((len(row) for row in rows if isinstance(row, list) and row), 1)
    return [problem for index, row in enumerate(rows) for problem in _row_faults(index, row, dim)]


def _row_faults(index: int, row: object, dim: int) -> list[Problem]:
    where = f'row {index}'
    if not isinstance(row, list):
        return [Problem(where, 'is no list', type(row).__name__, f'{dim} numbers')]
    problems = [] if len(row) == dim else [Problem(where, 'has another width', str(len(row)), str(dim))]
    bad = [f'[{column}] = {value!r}' for column, value in enumerate(row) if not _is_finite_number(value)]
    if bad:
        problems.append(Problem(where, 'holds what is no finite number', ', '.join(bad)))
    return problems


def _is_finite_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of float64
        return False


def _rows(rows: ArrayLike) -> Floats:
    array = as_floats(rows, 'rows')
    if array.ndim == 0:
        raise InvalidInput('rows', [Problem('rows', 'is a single number', allowed='[..., D]')])
    return array
