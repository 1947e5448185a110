"""A report of a closed-loop run: one HTML file with tables, plots and films in it, which loads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from engine.evaluation.closed_loop import EpisodeRecord
from engine.evaluation.report import aggregate, by_task
from engine.evaluation.report_films import Film
from engine.evaluation.report_page import data, picture, provenance_table, table, write_page
from engine.evaluation.report_plots import plots
from engine.evaluation.statistics import Proportion
from engine.evaluation.tasks import TASKS, Episode

_MOST_FAILURES = 60


def write_report(
    path: Path,
    records: Sequence[EpisodeRecord],
    episodes: Mapping[tuple[str, int], Episode],
    provenance: Mapping[str, Any],
    films: Sequence[Film] = (),
) -> None:
    """Write the report.

    Args:
        path: The HTML file.
        records: Of the run.
        episodes: By task and seed.
        provenance: Where the figures come from.
        films: Of single episodes.
    """
    write_page(path, 'Closed loop', _parts(records, episodes, provenance, films))


def _parts(
    records: Sequence[EpisodeRecord],
    episodes: Mapping[tuple[str, int], Episode],
    provenance: Mapping[str, Any],
    films: Sequence[Film],
) -> Iterator[str]:
    yield '<h1>Closed loop on the simulated Franka</h1>'
    yield f'<p><b>{escape(in_short(records, provenance))}.</b></p>'
    yield table(*summary(records))
    yield (
        '<p class="note">Success with the interval of Wilson; <i>Beta</i> is the interval that holds 95 % of '
        'Beta(k + 1, n - k + 1). Progress: the share of the milestones of a task, on average. Time: the median of the '
        'successes. First to the right one: of the episodes in which the hand stayed above any object, those in which '
        'the first was the one that the instruction names. Wrong object: episodes in which another one was moved, '
        'grasped or stayed above. Refused: episodes in which the guard refused a chunk or stopped.</p>'
    )
    for title, png in plots(records, episodes).items():
        yield picture(title, png)
    if films:
        yield '<h2>Seen</h2>' + ''.join(map(_film, films))
        yield '<p class="note">The first success and the first failure of each task, run once more.</p>'
    yield from _failures(records)
    yield provenance_table(provenance)


def in_short(records: Sequence[EpisodeRecord], provenance: Mapping[str, Any]) -> str:
    """The outcome in one sentence."""
    found = [f'{name} {successes.hits}/{successes.trials}' for name, successes in _counts(records).items()]
    return f'{provenance.get("policy", "policy")}: {", ".join(found)}'


def _counts(records: Sequence[EpisodeRecord]) -> dict[str, Proportion]:
    return {name: Proportion(sum(one.success for one in some), len(some)) for name, some in by_task(records).items()}


def summary(records: Sequence[EpisodeRecord]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of the table of all tasks."""
    head = (
        'task', 'success', '%', 'Wilson 95 %', 'Beta 95 %', 'progress', 'time, s', 'first to the right one',
        'wrong object', 'table touched', 'refused',
    )  # fmt: skip
    parts = by_task(records)
    return head, [_row(name, some) for name, some in (parts | ({'all': records} if len(parts) > 1 else {})).items()]


def _row(name: str, records: Sequence[EpisodeRecord]) -> tuple[str, ...]:
    found = aggregate(records)
    first, quartiles = found['first_reached'], found['success_s_quartiles']
    return (
        name,
        f'{found["n_success"]}/{found["n_episodes"]}',
        f'{found["pc_success"]:.1f}',
        _interval(found['pc_success_ci95']),
        _interval(found['pc_success_beta95']),
        f'{100 * found["avg_sum_reward"]:.0f} %',
        f'{quartiles[1]:.1f}' if quartiles else '-',
        f'{first["right"]}/{first["right"] + first["wrong"]}',
        str(found['n_wrong_object']),
        str(found['n_table_contact']),
        str(found['n_refused']),
    )


def _interval(percent: Sequence[float]) -> str:
    return f'{percent[0]:.1f} to {percent[1]:.1f}'


def _failures(records: Sequence[EpisodeRecord]) -> Iterator[str]:
    failed = [one for one in records if not one.success]
    if not failed:
        return
    head = ('task', 'seed', 'instruction', 'came as far as', 'what else happened')
    rows = [
        (one.task, str(one.seed), one.instruction, _last_milestone(one), _events(one))
        for one in failed[:_MOST_FAILURES]
    ]
    more = f'<p class="note">and {len(failed) - len(rows)} more</p>' if len(rows) < len(failed) else ''
    yield '<h2>Failures</h2>' + table(head, rows, words=True) + more


def _last_milestone(record: EpisodeRecord) -> str:
    done = [name for name in TASKS[record.task].milestones if name in record.milestones]
    return done[-1] if done else 'nothing'


def _events(record: EpisodeRecord) -> str:
    events = [(when, f'{name.replace("_", " ")} {how}') for when, name, how in record.wrong]
    events += [(when, f'guard: {why}') for when, why in record.refusals[:2]]
    found = [f'{text} at {when:.1f} s' for when, text in sorted(events)]
    found += [f'table touched {record.table_s:.1f} s'] if record.table_contacts else []
    return ', '.join(found)


def _film(film: Film) -> str:
    source, poster = data(film.path.read_bytes(), 'video/mp4'), data(film.poster, 'image/jpeg')
    return (
        f'<figure><video controls muted loop preload="metadata" poster="{poster}" src="{source}"></video>'
        f'<figcaption>{escape(film.caption)}</figcaption></figure>'
    )
