"""A report of a closed-loop run: one HTML file with tables, plots and films in it, which loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from engine.evaluation.closed_loop import EpisodeRecord
from engine.evaluation.report import aggregate, by_task
from engine.evaluation.report_films import Film
from engine.evaluation.report_plots import plots
from engine.evaluation.statistics import Proportion
from engine.evaluation.tasks import TASKS, Episode

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { margin-bottom: 0.1em; } h2 { margin-top: 1.6em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 0.6em 0; font-size: 13px; }
td, th { border-bottom: 1px solid #e3e3e3; padding: 3px 10px; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
td.words, th.words { text-align: left; white-space: normal; }
figure { display: inline-block; margin: 0.5em 1em 0.5em 0; vertical-align: top; }
figcaption { font-size: 13px; color: #555; }
img, video { max-width: 100%; }
video { width: 540px; }
.scroll { overflow-x: auto; }
.note { color: #555; font-size: 13px; max-width: 62em; }
"""
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
    body = '\n'.join(_parts(records, episodes, provenance, films))
    head = f'<meta charset="utf-8"><title>Closed loop</title><style>{_STYLE}</style>'
    path.write_text(f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n', encoding='utf-8')


def _parts(
    records: Sequence[EpisodeRecord],
    episodes: Mapping[tuple[str, int], Episode],
    provenance: Mapping[str, Any],
    films: Sequence[Film],
) -> Iterator[str]:
    yield '<h1>Closed loop on the simulated Franka</h1>'
    yield f'<p><b>{escape(in_short(records, provenance))}.</b></p>'
    yield _table(*summary(records))
    yield (
        '<p class="note">Success with the interval of Wilson; <i>Beta</i> is the interval that holds 95 % of '
        'Beta(k + 1, n - k + 1). Progress: the share of the milestones of a task, on average. Time: the median of the '
        'successes. First to the right one: of the episodes in which the hand stayed above any object, those in which '
        'the first was the one that the instruction names. Wrong object: episodes in which another one was moved, '
        'grasped or stayed above. Refused: episodes in which the guard refused a chunk or stopped.</p>'
    )
    for title, png in plots(records, episodes).items():
        yield f'<h2>{escape(title)}</h2><img alt="{escape(title)}" src="{_data(png, "image/png")}">'
    if films:
        yield '<h2>Seen</h2>' + ''.join(map(_film, films))
        yield '<p class="note">The first success and the first failure of each task, run once more.</p>'
    yield from _failures(records)
    yield '<h2>Where this comes from</h2>' + _table(('what', ''), list(_flat(provenance)), words=True)


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
    yield '<h2>Failures</h2>' + _table(head, rows, words=True) + more


def _last_milestone(record: EpisodeRecord) -> str:
    done = [name for name in TASKS[record.task].milestones if name in record.milestones]
    return done[-1] if done else 'nothing'


def _events(record: EpisodeRecord) -> str:
    events = [(when, f'{name.replace("_", " ")} {how}') for when, name, how in record.wrong]
    events += [(when, f'guard: {why}') for when, why in record.refusals[:2]]
    found = [f'{text} at {when:.1f} s' for when, text in sorted(events)]
    found += [f'table touched {record.table_s:.1f} s'] if record.table_contacts else []
    return ', '.join(found)


def _flat(values: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f'{prefix}{name}: ')
        elif value not in (None, ''):
            yield f'{prefix}{name}'.replace('_', ' '), str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> str:
    kind = ' class="words"' if words else ''
    first = ''.join(f'<th{kind}>{escape(name)}</th>' for name in head)
    body = ''.join('<tr>' + ''.join(f'<td{kind}>{escape(text)}</td>' for text in row) + '</tr>' for row in rows)
    return f'<div class="scroll"><table><tr>{first}</tr>{body}</table></div>'


def _film(film: Film) -> str:
    source, poster = _data(film.path.read_bytes(), 'video/mp4'), _data(film.poster, 'image/jpeg')
    return (
        f'<figure><video controls muted loop preload="metadata" poster="{poster}" src="{source}"></video>'
        f'<figcaption>{escape(film.caption)}</figcaption></figure>'
    )


def _data(content: bytes, kind: str) -> str:
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'
