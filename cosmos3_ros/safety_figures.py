"""From episodes to figures: who found what, how often for nothing, how early, and with which uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.intervals import Z95, wilson
from cosmos3_ros.judge import MONITORS
from cosmos3_ros.safety_episode import ChunkRecord, EpisodeRecord

Floats = NDArray[np.float64]
Alarms = Callable[[EpisodeRecord], list[float]]
"""Times of an episode's alarms, s since it began."""

_ALARMING = ('SLOW', 'STOP')
PHYSICAL = ('table', 'obstacle', 'deviation', 'failed')
"""Harm that is none of the guard's doing."""

RULES = {'any monitor (slow or stop)': _ALARMING, 'two monitors (stop)': ('STOP',)}
GUARD = 'guard alone'
BOTH = 'guard or any monitor'


def proportion(hits: int, trials: int) -> dict[str, Any]:
    """Counts, share and interval."""
    return {
        'hits': hits,
        'trials': trials,
        'rate': hits / trials if trials else None,
        'ci95': list(wilson(hits, trials)),
    }


def area_under_curve(bad: Sequence[float], good: Sequence[float]) -> dict[str, Any]:
    """Probability that a bad episode scores above a good one, ties half, with its 95 % interval.

    The interval is that of J. A. Hanley and B. J. McNeil, Radiology 143, 1982. Where all of the ones are above all of
    the others it would have no width; there it is Wilson's, of as many trials as the smaller group has episodes.
    """
    if not bad or not good:
        return {'auc': None, 'ci95': [0.0, 1.0], 'bad': len(bad), 'good': len(good)}
    x, y = np.asarray(bad)[:, None], np.asarray(good)[None]
    area = float(np.mean((x > y) + 0.5 * (x == y)))
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    m, n = len(bad), len(good)
    if area in (0.0, 1.0):
        trials = min(m, n)
        return {'auc': area, 'ci95': list(wilson(round(area * trials), trials)), 'bad': m, 'good': n}
    variance = area * (1 - area) + (m - 1) * (q1 - area**2) + (n - 1) * (q2 - area**2)
    half = Z95 * math.sqrt(max(variance, 0.0) / (m * n))
    return {'auc': area, 'ci95': [max(0.0, area - half), min(1.0, area + half)], 'bad': m, 'good': n}


def curve(bad: Sequence[float], good: Sequence[float]) -> tuple[Floats, Floats]:
    """False-alarm and detection rates for every threshold, from (0, 0) to (1, 1)."""
    limits = np.concatenate([[math.inf], np.unique([*bad, *good])[::-1]])
    rates = [np.array([np.mean(np.asarray(values) >= limit) for limit in limits]) for values in (good, bad)]
    return rates[0], rates[1]


def alarms_by_source() -> dict[str, Alarms]:
    """All that can raise an alarm: each monitor, the rules, the guard, and guard and monitors together."""

    def of_monitor(name: str) -> Alarms:
        return lambda episode: _times(episode, lambda chunk: name in chunk.crossed)

    def of_rule(decisions: Sequence[str]) -> Alarms:
        return lambda episode: _times(episode, lambda chunk: chunk.decision in decisions)

    sources: dict[str, Alarms] = {name: of_monitor(name) for name in MONITORS}
    sources |= {name: of_rule(decisions) for name, decisions in RULES.items()}
    sources[GUARD] = lambda episode: [when for when, _ in episode.stops]
    sources[BOTH] = lambda episode: sorted([*sources[GUARD](episode), *of_rule(_ALARMING)(episode)])
    return sources


def _times(episode: EpisodeRecord, alarming: Callable[[ChunkRecord], bool]) -> list[float]:
    return [chunk.arrived_s for chunk in episode.chunks if alarming(chunk)]


def onset(episode: EpisodeRecord) -> float:
    """Arrival of the first affected chunk: alarms from then on count as detections. Infinite without a hazard."""
    return next((chunk.arrived_s for chunk in episode.chunks if chunk.active), math.inf)


def tell(episodes: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """All figures of the test episodes."""
    tested = [one for one in episodes if one.purpose == 'test']
    judged = [name for name in MONITORS if any(name in c.thresholds for one in tested for c in one.chunks)]
    sources = {name: alarms for name, alarms in alarms_by_source().items() if name not in MONITORS or name in judged}
    names = sorted({one.hazard for one in tested if one.hazard})
    return {
        'episodes': _counts(tested),
        'sources': {name: _source(tested, alarms, names) for name, alarms in sources.items()},
        'roc': {name: _roc(tested, name, names) for name in _scored(tested)},
        'roc_of_band': {name: _roc(tested, name, names, of_band=True) for name in judged},
        'harm': {name: _harm([one for one in tested if one.hazard == name]) for name in ['', *names]},
        'cost_s': _quartiles([c.seconds for one in tested for c in one.chunks if c.decision]),
    }


def _scored(tested: Sequence[EpisodeRecord]) -> list[str]:
    return [name for name in MONITORS if any(name in chunk.scores for one in tested for chunk in one.chunks)]


def _counts(tested: Sequence[EpisodeRecord]) -> dict[str, Any]:
    bad = [one for one in tested if one.hazard]
    return {'hazard': len(bad), 'nominal': len(tested) - len(bad), 'chunks': sum(len(one.chunks) for one in tested)}


def _source(tested: Sequence[EpisodeRecord], alarms: Alarms, names: Iterable[str]) -> dict[str, Any]:
    """One source of alarms: its confusion matrix, rates and lead times."""
    found = {one.case: any(when >= onset(one) for when in alarms(one)) for one in tested if one.hazard}
    early = [one for one in tested if any(when < onset(one) for when in alarms(one))]
    bad, good = [one for one in tested if one.hazard], [one for one in tested if not one.hazard]
    wrong = sum(not one.hazard for one in early)
    harmful = [one for one in bad if _first_harm(one) is not None]
    return {
        'confusion': {
            'true_positive': sum(found.values()),
            'false_negative': len(bad) - sum(found.values()),
            'false_positive': wrong,
            'true_negative': len(good) - wrong,
            'early_alarms_in_hazard_episodes': len(early) - wrong,
        },
        'detection': proportion(sum(found.values()), len(bad)),
        'detection_of_harm': proportion(sum(found[one.case] for one in harmful), len(harmful)),
        'detection_by_hazard': {
            name: proportion(
                sum(found[one.case] for one in bad if one.hazard == name), sum(one.hazard == name for one in bad)
            )
            for name in names
        },
        'false_alarms_per_nominal_episode': proportion(wrong, len(good)),
        'false_alarms_per_episode': proportion(len(early), len(tested)),
        'false_alarms_per_chunk': _per_chunk(tested, alarms),
        'lead_s': _quartiles(_leads(harmful, alarms)),
        'lead_s_by_hazard': {
            name: _quartiles(_leads([one for one in harmful if one.hazard == name], alarms)) for name in names
        },
    }


def _per_chunk(tested: Sequence[EpisodeRecord], alarms: Alarms) -> dict[str, Any]:
    """Share of the sound chunks, of all episodes, in whose time an alarm was raised."""
    hits = trials = 0
    for one in tested:
        sound = [chunk.arrived_s for chunk in one.chunks if not chunk.active]
        raised = {max((s for s in sound if s <= when), default=None) for when in alarms(one) if when < onset(one)}
        hits, trials = hits + len(raised - {None}), trials + len(sound)
    return proportion(hits, trials)


def _first_harm(episode: EpisodeRecord) -> float | None:
    return min((when for kind, when in episode.harm.items() if kind in PHYSICAL), default=None)


def _leads(harmful: Sequence[EpisodeRecord], alarms: Alarms) -> list[float]:
    """Seconds from the first alarm after the onset to the first harm; negative where the alarm came too late."""
    found = []
    for one in harmful:
        first, harm = min((when for when in alarms(one) if when >= onset(one)), default=None), _first_harm(one)
        if first is not None and harm is not None:
            found.append(harm - first)
    return found


def _quartiles(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {'count': 0, 'median': None, 'quartiles': [None, None], 'positive': None}
    low, middle, high = (float(x) for x in np.percentile(values, [25, 50, 75]))
    share = float(np.mean(np.asarray(values) > 0))
    return {'count': len(values), 'median': middle, 'quartiles': [low, high], 'positive': share}


def largest(episode: EpisodeRecord, name: str, of_band: bool = False) -> float | None:
    """The largest score of an episode, from its onset on if there is one.

    Args:
        episode: Which one.
        name: Of the score.
        of_band: Whether each score is divided by the band at its moment, as an alarm looks at it.
    """
    since = onset(episode) if episode.hazard else -math.inf
    chunks = [chunk for chunk in episode.chunks if name in chunk.scores and chunk.arrived_s >= since]
    if not of_band:
        return max((chunk.scores[name] for chunk in chunks), default=None)
    shares = [chunk.scores[name] / limit for chunk in chunks if (limit := chunk.thresholds.get(name, 0.0)) > 0]
    return max(shares, default=None)


def split(
    tested: Sequence[EpisodeRecord], name: str, hazard: str = '', of_band: bool = False
) -> tuple[list[float], list[float]]:
    """Largest scores of the episodes with a hazard, or with any, and of those without; see :func:`largest`."""
    bad = [largest(one, name, of_band) for one in tested if one.hazard and (not hazard or one.hazard == hazard)]
    good = [largest(one, name, of_band) for one in tested if not one.hazard]
    return [x for x in bad if x is not None], [x for x in good if x is not None]


def _roc(tested: Sequence[EpisodeRecord], name: str, hazards: Iterable[str], of_band: bool = False) -> dict[str, Any]:
    by_hazard = {hazard: area_under_curve(*split(tested, name, hazard, of_band)) for hazard in hazards}
    return {**area_under_curve(*split(tested, name, '', of_band)), 'by_hazard': by_hazard}


def _harm(episodes: Sequence[EpisodeRecord]) -> dict[str, Any]:
    kinds: Mapping[str, int] = {kind: sum(kind in one.harm for one in episodes) for kind in (*PHYSICAL, 'guard_stop')}
    return {
        'episodes': len(episodes),
        'success': sum(bool(one.success) for one in episodes),
        'any_physical': sum(_first_harm(one) is not None for one in episodes),
        **kinds,
    }
