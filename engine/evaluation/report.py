"""From records of episodes to figures: LeRobot's `eval_info.json` with counts, intervals and provenance added."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.evaluation.closed_loop import EpisodeRecord
from engine.evaluation.statistics import Paired, Proportion, pair
from engine.evaluation.tasks import TASKS

GROUP = 'cosmos3'
"""LeRobot sorts tasks into groups; ours are one."""


def by_task(records: Sequence[EpisodeRecord]) -> dict[str, list[EpisodeRecord]]:
    """Records of each task that there is, in the order of the tasks, each by seed."""
    found = {name: sorted((one for one in records if one.task == name), key=lambda one: one.seed) for name in TASKS}
    return {name: some for name, some in found.items() if some}


def successes(records: Sequence[EpisodeRecord]) -> Proportion:
    """How many succeeded."""
    return Proportion(sum(one.success for one in records), len(records))


def eval_info(
    records: Sequence[EpisodeRecord],
    provenance: Mapping[str, Any],
    videos: Mapping[str, Sequence[str]] | None = None,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """All figures of a run.

    The keys of LeRobot 0.6's `eval_info.json` mean what they mean there: `sum_rewards` holds for each episode the share
    of the task's milestones that were reached, `max_rewards` 1 for success. Counts and Wilson's interval have the names
    that LeRobot gave them later, `n_success` and `pc_success_ci95`.

    Args:
        records: Of all tasks.
        provenance: What they come from.
        videos: Paths of videos by task.
        seconds: How long the run took.
    """
    tasks, videos = by_task(records), videos or {}
    listed = [
        {'task_group': GROUP, 'task_id': number, 'task': name, 'metrics': _metrics(some, videos.get(name, ()))}
        for number, (name, some) in enumerate(tasks.items())
    ]
    everything = aggregate(records) | {'video_paths': [path for paths in videos.values() for path in paths]}
    timing = {'eval_s': seconds, 'eval_ep_s': seconds / max(1, len(records))}
    return {
        'per_task': listed,
        'per_group': {GROUP: everything},
        'overall': everything | timing,
        'provenance': dict(provenance),
    }


def _metrics(records: Sequence[EpisodeRecord], videos: Sequence[str]) -> dict[str, Any]:
    return {
        'sum_rewards': [one.progress for one in records],
        'max_rewards': [float(one.success) for one in records],
        'successes': [one.success for one in records],
        'seeds': [one.seed for one in records],
        'video_paths': list(videos),
        **aggregate(records),
    }


def aggregate(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Figures of some episodes together."""
    found = successes(records)
    times = [one.success_s for one in records if one.success_s is not None]
    return {
        'avg_sum_reward': _mean([one.progress for one in records]),
        'avg_max_reward': _mean([float(one.success) for one in records]),
        'pc_success': None if math.isnan(found.rate) else 100 * found.rate,
        'n_episodes': found.trials,
        'n_success': found.hits,
        'pc_success_ci95': [100 * x for x in found.wilson],
        'pc_success_beta95': [100 * x for x in found.beta],
        'success_s_quartiles': [float(x) for x in np.percentile(times, [25, 50, 75])] if times else None,
        'first_reached': first_reached(records),
        'n_wrong_object': sum(bool(one.wrong) for one in records),
        'n_table_contact': sum(one.table_contacts > 0 for one in records),
        'n_refused': sum(bool(one.refusals) for one in records),
        'path_m': _mean([one.path_m for one in records]),
        'act_s': _mean([one.act_s for one in records]),
    }


def first_reached(records: Sequence[EpisodeRecord]) -> dict[str, int]:
    """In how many episodes the first object above which the hand stayed was the right one, a wrong one, or none."""
    first = [(one.reached[0][1], one.target) if one.reached else None for one in records]
    right = sum(found is not None and found[0] == found[1] for found in first)
    none = sum(found is None for found in first)
    return {'right': right, 'wrong': len(first) - right - none, 'none': none}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def compare(first: Sequence[EpisodeRecord], second: Sequence[EpisodeRecord]) -> dict[str, Paired]:
    """Two runs by the episodes that both have, for each task, and under 'all' for all of them."""
    outcomes = [{one.key: one.success for one in records} for records in (first, second)]
    names = [name for name in TASKS if any(key[0] == name for key in outcomes[0] if key in outcomes[1])]
    parts = {
        name: pair(*({key: won for key, won in found.items() if key[0] == name} for found in outcomes))
        for name in names
    }
    return {**parts, 'all': pair(*outcomes)}
