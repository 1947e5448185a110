"""Plots of a closed-loop run, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from engine.evaluation.closed_loop import EpisodeRecord
from engine.evaluation.report import by_task, successes
from engine.evaluation.tasks import TASKS, Episode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DONE, _FAILED, _INK, _FAINT = '#2a7f4f', '#c0392b', '#1f3f6e', '#c9d3e0'


def plots(records: Sequence[EpisodeRecord], episodes: Mapping[tuple[str, int], Episode]) -> dict[str, bytes]:
    """Every plot by its title.

    Args:
        records: Of a run.
        episodes: By task and seed.
    """
    from matplotlib.figure import Figure

    tasks = by_task(records)
    count = max(1, len(tasks))
    success, times = Figure((7.2, 0.9 + 0.5 * count), layout='constrained'), Figure((7.2, 3.2), layout='constrained')
    steps, places = (Figure((3.1 * count, size), layout='constrained') for size in (2.4, 2.5))
    _draw_success(success.subplots(), tasks)
    _draw_times(times.subplots(), tasks)
    for figure, draw in ((steps, _draw_milestones), (places, _draw_places)):
        axes = figure.subplots(1, count, squeeze=False)[0]
        for axis, (name, some) in zip(axes, tasks.items(), strict=False):
            draw(axis, name, some, episodes)
    return {
        "Success, with Wilson's 95 % interval": _png(success),
        'Share done by time': _png(times),
        'How far episodes came': _png(steps),
        'Where the object lay, seen from above': _png(places),
    }


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110)
    return buffer.getvalue()


def _draw_success(axis: Axes, tasks: Mapping[str, Sequence[EpisodeRecord]]) -> None:
    for row, (name, some) in enumerate(tasks.items()):
        found = successes(some)
        low, high = found.wilson
        axis.plot([100 * low, 100 * high], [row, row], color=_INK, lw=5, alpha=0.35, solid_capstyle='butt')
        axis.plot(100 * found.rate, row, 'o', color=_INK, ms=7)
        axis.text(103, row, f'{name}  {found.hits}/{found.trials}', va='center', fontsize=9)
    axis.set(xlim=(-2, 102), ylim=(len(tasks) - 0.5, -0.5), yticks=[], xlabel='success [%]')
    axis.grid(axis='x', color='#e5e5e5')


def _draw_times(axis: Axes, tasks: Mapping[str, Sequence[EpisodeRecord]]) -> None:
    for name, some in tasks.items():
        times = np.sort([one.success_s for one in some if one.success_s is not None])
        share = 100 * np.arange(1, len(times) + 1) / len(some)
        end = TASKS[name].horizon_s
        last = share[-1:] if len(share) else [0.0]
        axis.step([0, *times, end], [0, *share, *last], where='post', label=name, lw=1.8)
    axis.set(xlabel='time [s]', ylabel='done [%]', ylim=(-3, 103), xlim=(0, None))
    axis.grid(color='#e5e5e5')
    axis.legend(fontsize=8, loc='lower right')


def _draw_milestones(
    axis: Axes, name: str, records: Sequence[EpisodeRecord], _episodes: Mapping[tuple[str, int], Episode]
) -> None:
    order = TASKS[name].milestones
    shares = [100 * np.mean([step in one.milestones for one in records]) for step in order]
    axis.barh(range(len(order)), [100] * len(order), color=_FAINT, height=0.7)
    axis.barh(range(len(order)), shares, color=_INK, height=0.7)
    for row, (step, share) in enumerate(zip(order, shares, strict=True)):
        axis.text(2, row, f'{step}  {share:.0f} %', va='center', fontsize=8, color='white' if share > 45 else 'black')
    axis.set(xlim=(0, 100), ylim=(max(len(order), 4) - 0.4, -0.6), yticks=[])
    axis.set_title(name, fontsize=10)
    axis.tick_params(labelsize=7)


def _draw_places(
    axis: Axes, name: str, records: Sequence[EpisodeRecord], episodes: Mapping[tuple[str, int], Episode]
) -> None:
    """The table as the robot's own eyes would have it: x ahead is up, y to the left."""
    for success, colour, mark in ((True, _DONE, 'o'), (False, _FAILED, 'x')):
        some = [episodes[one.key].setting.places[one.target] for one in records if one.success is success]
        axis.plot([-y for _, y, _ in some], [x for x, _, _ in some], mark, color=colour, ms=4, ls='none')
    axis.set(xlim=(-0.32, 0.32), ylim=(0.3, 0.68), aspect='equal')
    axis.set_title(name, fontsize=10)
    axis.tick_params(labelsize=7)
    axis.set_xlabel('to the right [m]', fontsize=8)
    axis.set_ylabel('ahead [m]', fontsize=8)
