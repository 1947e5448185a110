"""Raw rows (SI units, rot6d) to the network's scale and back.

Formulas and names are those of NVIDIA cosmos-framework, `action_processing.py`. With z = (x - offset) / scale:
quantile, quantile_rot: z between the 1st and 99th percentile; minmax: between minimum and maximum; meanstd: standard
score; quantile_rot_scale_floor: as quantile_rot, with a scale wide enough that no recorded value passes 5;
asinh_rot: asinh(z) / asinh(1); piecewise_asinh_rot: z up to 1, then 1 + asinh(z - 1), odd in z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from engine.actions.arrays import Floats, as_floats
from engine.actions.statistics import Method, Statistics
from engine.errors import InvalidInput, Problem

RANGE_FLOOR = 1e-6
"""Least range (percentiles, extrema) of a channel: one that never moved is mapped to 0 and back to where it stood."""

STD_FLOOR = 1e-8
"""Least standard deviation of a channel, for the same reason."""

LARGEST_SCORE = 5.0
"""What quantile_rot_scale_floor maps the most extreme recorded value to, at most."""

_UNIT = math.asinh(1.0)
_CLAMPED = (Method.QUANTILE, Method.QUANTILE_ROT, Method.QUANTILE_ROT_SCALE_FLOOR, Method.MINMAX)


@dataclass(frozen=True, eq=False)
class Normalizer:
    """One method with its figures resolved; build it with :func:`normalizer`.

    Attributes:
        method: Which formula.
        offset: Raw value that maps to 0, [D]; a scalar 0 for `none`.
        scale: Raw distance that maps to 1, [D], positive; a scalar 1 for `none`.
        clamp: Whether `forward` cuts to [-1, 1], as mid-training did. What was cut cannot come back.
    """

    method: Method
    offset: Floats
    scale: Floats
    clamp: bool = False

    @property
    def dim(self) -> int | None:
        """Number of channels, None if any will do."""
        return self.offset.size if self.offset.ndim else None

    def forward(self, raw: ArrayLike) -> Floats:
        """Return normalised rows of raw rows, both [..., D].

        Raises:
            InvalidInput: Another width, or values that are not finite.
        """
        z = (as_floats(raw, 'raw rows', self.offset.shape) - self.offset) / self.scale
        if self.method is Method.ASINH_ROT:
            return np.asarray(np.arcsinh(z) / _UNIT)
        if self.method is Method.PIECEWISE_ASINH_ROT:
            return _outside_unit(z, np.arcsinh)
        return np.clip(z, -1.0, 1.0) if self.clamp else z

    def inverse(self, rows: ArrayLike) -> Floats:
        """Return raw rows of normalised rows, both [..., D]; the exact inverse of an unclamped `forward`.

        Raises:
            InvalidInput: Another width, or values that are not finite.
        """
        z = as_floats(rows, 'normalised rows', self.offset.shape)
        if self.method is Method.ASINH_ROT:
            z = np.sinh(z * _UNIT)
        elif self.method is Method.PIECEWISE_ASINH_ROT:
            z = _outside_unit(z, np.sinh)
        return z * self.scale + self.offset


NO_NORMALIZATION = Normalizer(Method.NONE, np.zeros(()), np.ones(()))
"""Rows stay in raw units: what the released DROID policy was trained with."""


def normalizer(method: Method | str, statistics: Statistics | None = None, clamp: bool = False) -> Normalizer:
    """Resolve a method and its statistics.

    Args:
        method: Name of the method.
        statistics: What it reads; not needed for `none`.
        clamp: Cut normalised values to [-1, 1]; only for the range methods (quantile..., minmax).

    Raises:
        InvalidInput: Unknown method, statistics that lack what it reads, or a clamp on a method that has none.
    """
    method = Method.parse(method)
    if clamp and method not in _CLAMPED:
        problem = Problem('clamp', f'does not exist for {method}', 'true', 'false, or one of ' + ', '.join(_CLAMPED))
        raise InvalidInput('normalization', [problem])
    if method is Method.NONE:
        return NO_NORMALIZATION
    if statistics is None:
        problem = Problem('statistics', f'are missing: {method} needs them', allowed='published ones or a file')
        raise InvalidInput('normalization', [problem])
    offset, scale = _resolve(method, statistics)
    return Normalizer(method, offset, scale, clamp)


def _resolve(method: Method, statistics: Statistics) -> tuple[Floats, Floats]:
    if method is Method.MEANSTD:
        mean, std = statistics.need('mean', 'std')
        return mean, np.maximum(std, STD_FLOOR)
    low, high = statistics.need('min', 'max') if method is Method.MINMAX else statistics.need('q01', 'q99')
    offset = (low + high) / 2
    scale = np.maximum(high - low, RANGE_FLOOR) / 2
    if method is Method.QUANTILE_ROT_SCALE_FLOOR:
        least, most = statistics.need('min', 'max')
        farthest = np.maximum(np.abs(least - offset), np.abs(most - offset))
        scale = np.maximum(scale, farthest / LARGEST_SCORE)
    return offset, scale


def _outside_unit(z: Floats, bend: np.ufunc) -> Floats:
    """Keep |z| <= 1 as it is and bend what lies beyond; value and slope are continuous at 1."""
    size = np.abs(z)
    tail = np.sign(z) * (1 + bend(np.maximum(size - 1, 0)))
    return np.where(size <= 1, z, tail)
