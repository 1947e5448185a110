"""From the scores of recorded successes to thresholds that a success crosses seldom: functional conformal bands.

A score means nothing by itself: some tasks are hard to imagine, and all are hard to imagine at some moments. The band
follows FAIL-Detect (arXiv 2503.08558) and, behind it, split conformal prediction of whole curves (Diquigiovanni et al.,
arXiv 2102.06746): half of the episodes say where scores usually lie and how much they vary at each moment, the others
how far a success can leave that. Under one assumption, that a new success is like the recorded ones and no longer than
the longest of them, it stays below the band *at all times* with at least the stated probability, however few episodes
there were and however scores are distributed.

Nothing of this says how many failures are found. That takes failures.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import InvalidInput, Problem

Floats = NDArray[np.float64]
SCHEMA = 1
_LEAST_WIDTH = 1e-9
_LEAST_SHARE = 0.1
"""Of the largest width. Where a score was 0 in every one of a few episodes, and elsewhere was not, how much it can vary
there is not known; a width of next to nothing would have a small score there lift the whole band."""


@dataclass(frozen=True)
class Band:
    """An upper limit of one score for every moment of an episode.

    Attributes:
        threshold: For each step; later steps have the last one.
        false_alarm_rate: Largest probability with which a success crosses it anywhere.
        episodes: Successes that it was made of.
    """

    threshold: tuple[float, ...]
    false_alarm_rate: float
    episodes: int

    def at(self, step: int) -> float:
        """Threshold of a step, from 0."""
        return self.threshold[min(max(step, 0), len(self.threshold) - 1)]


def make_band(scores: Sequence[ArrayLike], false_alarm_rate: float = 0.05) -> Band:
    """The band of a score.

    Args:
        scores: Of each successful episode, a value for every step. Shorter ones stay at their last value.
        false_alarm_rate: Largest probability with which a success may cross the band, above 0 and below 1.

    Raises:
        InvalidInput: Too few episodes for that rate, empty ones, or scores that are not finite; lists every fault.
    """
    curves = [np.asarray(one, np.float64).reshape(-1) for one in scores]
    _check(curves, false_alarm_rate)
    usual, others = curves[::2], curves[1::2]
    length = max(len(curve) for curve in curves)
    filled = _filled(usual, length)
    mean = np.mean(filled, axis=0)
    width = np.std(filled, axis=0)  # and not the farthest of few, which is another one each time
    width = np.maximum(width, _LEAST_WIDTH + max(_LEAST_SHARE * np.max(width), 1e-3 * np.max(np.abs(filled))))
    beyond = np.max((_filled(others, length) - mean) / width, axis=1)
    rank = math.ceil((1 - false_alarm_rate) * (len(others) + 1))
    factor = float(np.sort(beyond)[rank - 1])
    return Band(tuple(float(x) for x in mean + factor * width), false_alarm_rate, len(curves))


def fewest_episodes(false_alarm_rate: float) -> int:
    """Successes that a band of this rate takes."""
    return 2 * math.ceil(1 / false_alarm_rate - 1 - 1e-9)


def _check(curves: Sequence[Floats], false_alarm_rate: float) -> None:
    problems = []
    if not 0 < false_alarm_rate < 1:
        raise InvalidInput(
            'calibration', [Problem('false_alarm_rate', 'is out of range', str(false_alarm_rate), 'above 0, below 1')]
        )
    need = fewest_episodes(false_alarm_rate)
    if len(curves) < need:
        remedy = f'record more, or allow a rate of {1 / (len(curves) // 2 + 1):.2f}'
        problems.append(Problem('episodes', 'are too few for this rate', str(len(curves)), f'{need} or more', remedy))
    for number, curve in enumerate(curves):
        if not len(curve):
            problems.append(Problem(f'episode {number}', 'has no scores'))
        elif not np.isfinite(curve).all():
            step = int(np.flatnonzero(~np.isfinite(curve))[0])
            problems.append(Problem(f'episode {number}', f'is not finite at step {step}', str(curve[step])))
    if problems:
        raise InvalidInput('calibration', problems)


def _filled(curves: Sequence[Floats], length: int) -> Floats:
    """[episodes, length]; what an episode does not have is its last value, as a finished one stays where it is."""
    return np.stack([np.concatenate([curve, np.full(length - len(curve), curve[-1])]) for curve in curves])


@dataclass(frozen=True)
class Calibration:
    """Bands of several scores, and what they are good for.

    Attributes:
        bands: By name of the score.
        provenance: Of what they were made: checkpoint, contract, recordings, recipe of imagination, date.
    """

    bands: Mapping[str, Band]
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with anything in it."""
        return hashlib.sha256(json.dumps(self._document(), sort_keys=True).encode()).hexdigest()[:12]

    def crossed(self, scores: Mapping[str, float], step: int) -> list[str]:
        """Names of the scores above their band; those without a band have no limit."""
        return [name for name, score in scores.items() if name in self.bands and not score <= self.bands[name].at(step)]

    def differences(self, **expected: str) -> list[Problem]:
        """In what the provenance is another than expected: bands hold for what they were made of and nothing else."""
        return [
            Problem(f'provenance.{key}', 'is another', self.provenance.get(key, 'not stated'), value)
            for key, value in expected.items()
            if self.provenance.get(key) != value
        ]

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        partial = path.with_name(f'.{path.name}.partial')
        partial.write_text(json.dumps(self._document(), indent=1), encoding='utf-8')
        partial.replace(path)

    def _document(self) -> dict[str, Any]:
        bands = {name: asdict(band) for name, band in self.bands.items()}
        return {'schema': SCHEMA, 'provenance': dict(self.provenance), 'bands': bands}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it.

        Raises:
            InvalidInput: The file is not there, damaged, or of another kind.
        """
        try:
            document = json.loads(path.read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise InvalidInput('calibration', [Problem(str(path), 'cannot be read', str(error))]) from error
        try:
            if document['schema'] != SCHEMA:
                raise InvalidInput(str(path), [Problem('schema', 'is unknown', str(document['schema']), str(SCHEMA))])
            bands = {str(name): _band(band) for name, band in document['bands'].items()}
            provenance = {str(key): str(value) for key, value in document['provenance'].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInput(str(path), [Problem('document', 'is no calibration', repr(error))]) from error
        return cls(bands, provenance)


def _band(found: Mapping[str, Any]) -> Band:
    threshold = tuple(float(x) for x in found['threshold'])
    if not threshold or not all(map(math.isfinite, threshold)):
        raise ValueError('a threshold is missing or not finite')
    return Band(threshold, float(found['false_alarm_rate']), int(found['episodes']))
