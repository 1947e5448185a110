"""Channel statistics: the published ones, and files of the two forms in which NVIDIA cosmos-framework stores them.

Flat form: `{"q01": [D], "q99": [D], ...}`. Block form: `{"metadata": {...}, "global": {...}, "global_raw": {...}}`:
`global` carries identity statistics (-1 | 1) on the rotation channels, `global_raw` the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from engine.actions.arrays import Floats
from engine.errors import InvalidInput, Problem

CHANNELS = ('mean', 'std', 'min', 'max', 'q01', 'q99')
"""Names of the statistics that a file may hold, each a list of D numbers."""


class Method(StrEnum):
    """How rows are normalised; names as in NVIDIA cosmos-framework, `none` for its absence."""

    NONE = 'none'
    QUANTILE = 'quantile'
    QUANTILE_ROT = 'quantile_rot'
    QUANTILE_ROT_SCALE_FLOOR = 'quantile_rot_scale_floor'
    ASINH_ROT = 'asinh_rot'
    PIECEWISE_ASINH_ROT = 'piecewise_asinh_rot'
    MEANSTD = 'meanstd'
    MINMAX = 'minmax'

    @classmethod
    def parse(cls, name: str) -> Method:
        """Return the method called `name`.

        Raises:
            InvalidInput: There is no such method.
        """
        try:
            return cls(name)
        except ValueError as fault:
            problem = Problem('normalization', 'is unknown', repr(name), ', '.join(cls))
            raise InvalidInput('normalization', [problem]) from fault

    @property
    def block(self) -> str:
        """Which block of a file in block form this method reads."""
        return 'global_raw' if '_rot' in self.value else 'global'


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of D channels in raw units (SI, rot6d).

    Attributes:
        name: Where they are from, for errors.
        values: Statistic name (one of `CHANNELS`) -> [D].
    """

    name: str
    values: Mapping[str, Floats]

    def __post_init__(self) -> None:
        sizes = {array.shape for array in self.values.values()}
        if len(sizes) != 1 or len(next(iter(sizes))) != 1:
            shapes = ', '.join(f'{key} {array.shape}' for key, array in self.values.items())
            problem = Problem(self.name, 'needs statistics of one length', shapes, ', '.join(CHANNELS))
            raise InvalidInput('action statistics', [problem])

    def __eq__(self, other: object) -> bool:
        """Whether these are the same figures, whatever they are called."""
        return isinstance(other, Statistics) and self._figures == other._figures

    def __hash__(self) -> int:
        return hash(self._figures)

    @property
    def _figures(self) -> tuple[tuple[str, tuple[float, ...]], ...]:
        return tuple(sorted((key, tuple(map(float, array))) for key, array in self.values.items()))

    @property
    def dim(self) -> int:
        """Number of channels D."""
        return len(next(iter(self.values.values())))

    def need(self, *names: str) -> tuple[Floats, ...]:
        """Return the named statistics.

        Raises:
            InvalidInput: Some are not there; each is named.
        """
        has = ', '.join(self.values)
        remedy = 'supply a statistics file that has it, or choose another method'
        missing = [
            Problem(self.name, f'has no {name!r}', has, remedy=remedy) for name in names if name not in self.values
        ]
        if missing:
            raise InvalidInput('action statistics', missing)
        return tuple(self.values[name] for name in names)

    def first(self, dim: int) -> Statistics:
        """Return the statistics of the first `dim` channels (one arm of two-armed statistics)."""
        return Statistics(f'{self.name}, first {dim}', {key: array[:dim] for key, array in self.values.items()})


def parse_statistics(document: object, method: Method, name: str) -> Statistics:
    """Pick what `method` reads out of a statistics document of either form.

    Args:
        document: Parsed JSON.
        method: Decides between the blocks `global` and `global_raw`.
        name: Name of the document, for errors.

    Raises:
        InvalidInput: No object, the block is missing, or a statistic is no list of finite numbers; all are listed.
    """
    block = _choose_block(document, method, name)
    values: dict[str, Floats] = {}
    problems = []
    for key in CHANNELS:
        if key not in block:
            continue
        array = _numbers(block[key])
        if array is None:
            problems.append(Problem(f'{name}: {key}', 'is no list of finite numbers', str(block[key])[:60]))
        else:
            values[key] = array
    if not values and not problems:
        problems.append(Problem(name, 'holds no statistics', ', '.join(map(str, block)), ', '.join(CHANNELS)))
    if problems:
        raise InvalidInput('action statistics', problems)
    return Statistics(name, values)


def read_statistics(path: str | Path, method: Method) -> Statistics:
    """Read what `method` needs from a JSON file of either form.

    Raises:
        InvalidInput: The file cannot be read, is no JSON, or is malformed.
    """
    try:
        document = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError) as fault:
        raise InvalidInput('action statistics', [Problem(str(path), 'cannot be read', str(fault))]) from fault
    return parse_statistics(document, method, str(path))


def published_statistics(name: str, method: Method) -> Statistics:
    """Return the statistics that NVIDIA published for a data set (1st and 99th percentiles only).

    Args:
        name: Data set: droid, bridge, fractal, robomind_franka, robomind_franka_dual, robomind_ur, umi (right arm, then
            left), agibot or libero.
        method: Decides between the blocks where there are two.

    Raises:
        InvalidInput: None are included for that data set.
    """
    data = _published()
    if name not in data:
        remedy = 'read the statistics from a file of your own'
        problem = Problem('statistics', 'are not included for this data set', repr(name), ', '.join(data), remedy)
        raise InvalidInput('action statistics', [problem])
    return parse_statistics(data[name], method, f'published statistics of {name}')


@cache
def _published() -> Mapping[str, Any]:
    text = files('engine.actions').joinpath('statistics.json').read_text(encoding='utf-8')
    data: Mapping[str, Any] = json.loads(text)['datasets']
    return data


def _choose_block(document: object, method: Method, name: str) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        problem = Problem(name, 'is no JSON object', type(document).__name__, 'statistics in flat or block form')
        raise InvalidInput('action statistics', [problem])
    blocks = [key for key in ('global', 'global_raw') if isinstance(document.get(key), Mapping)]
    if not blocks:
        return document
    if method.block not in blocks:
        problem = Problem(name, f'has no block {method.block!r}, which {method} reads', ', '.join(blocks))
        raise InvalidInput('action statistics', [problem])
    block: Mapping[str, Any] = document[method.block]
    return block


def _numbers(value: object) -> Floats | None:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return array if array.ndim == 1 and array.size > 0 and bool(np.isfinite(array).all()) else None
