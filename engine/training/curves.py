"""Curves of a training run, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.training.journal import read_journal

_COLOURS = ('#1f3f6e', '#2a7f4f', '#c0392b', '#b7791f', '#6b4fa0', '#3a8f9e', '#7a7a7a')


def draw_curves(journal: Path, target: Path) -> None:
    """Draw losses, validations and learning rate of a journal over minutes of work."""
    from matplotlib.figure import Figure

    lines = read_journal(journal)
    groups = {
        'training loss': _series(lines, '', ('step', 'seconds', 'rate')),
        'held-out episodes': _series(lines, 'valid/'),
    }
    groups['learning rate'] = {'rate': _points(lines, 'rate')}
    figure = Figure((12.0, 3.6), layout='constrained')
    for axes, (title, series) in zip(figure.subplots(1, len(groups)), groups.items(), strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel('minutes')
        axes.grid(color='#e3e8ef', linewidth=0.6)
        for (name, points), colour in zip(series.items(), _COLOURS * 3, strict=False):
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, marker='.', markersize=3, label=name)
        if any(series.values()):
            axes.set_yscale('log')
            axes.legend(fontsize=7, frameon=False)
    figure.savefig(target, dpi=110)


def _series(lines: Sequence[Mapping[str, Any]], prefix: str, without: Sequence[str] = ()) -> dict[str, list[Any]]:
    names = dict.fromkeys(key for line in lines for key in line if key not in without)
    chosen = [name for name in names if name.startswith(prefix) and (prefix or not name.startswith('valid/'))]
    chosen = [name for name in chosen if name not in ('step', 'seconds', 'rate')]
    return {name.removeprefix(prefix): _points(lines, name) for name in chosen}


def _points(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(line['seconds'] / 60, line[name]) for line in lines if name in line and line[name] > 0]
