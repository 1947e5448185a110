"""A report of a safety simulation: one HTML file with tables and pictures in it, which loads nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cosmos3_ros.judge import MONITORS
from cosmos3_ros.safety_episode import EpisodeRecord
from cosmos3_ros.safety_figures import curve, split
from cosmos3_ros.safety_tables import Grid, grids, hazard_grid, in_short, limits_of, results_facts
from engine.calibration import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 0.6em 0; font-size: 13px; }
td, th { border-bottom: 1px solid #ddd; padding: 3px 9px; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
figure { display: inline-block; margin: 0.6em; vertical-align: top; }
img { max-width: 100%; }
.scroll { overflow-x: auto; }
.limits { background: #fff6e0; border-left: 4px solid #e0a020; padding: 0.4em 1em; }
.note { color: #555; font-size: 13px; max-width: 60em; }
"""
_GREY, _INK, _LIMIT = '#9aa0a6', '#1f77b4', '#d62728'


def write_report(
    path: Path,
    results: Mapping[str, Any],
    episodes: Sequence[EpisodeRecord],
    calibration: Calibration,
    pictures: Path,
) -> None:
    """Write the report.

    Args:
        path: The HTML file.
        results: Figures of :func:`~cosmos3_ros.safety_figures.tell` with their provenance.
        episodes: All of the run.
        calibration: The bands.
        pictures: Folder of the pictures of single episodes; those that are missing are left out.
    """
    tested = [one for one in episodes if one.purpose == 'test']
    limits = ''.join(f'<p>{escape(text)}</p>' for text in limits_of(results))
    plots = {'ROC curves': roc_plot(tested, results), 'Scores over time': score_plot(tested, results, calibration)}
    parts = [
        '<h1>Safety simulation: how well verdicts of imagination work</h1>',
        f'<p><b>{escape(in_short(results))}.</b></p>',
        f'<div class="limits"><h2>What this shows, and what it does not</h2>{limits}</div>',
        f'<p class="note">{escape(results_facts(results))}.</p>',
        *map(_table, grids(results)),
        *(f'<h2>{title}</h2>{_image(_png(figure), title, "image/png")}' for title, figure in plots.items()),
        '<p class="note">Grey: nominal test episodes. Blue: the first episode with the hazard. Red: the band. Dashed: '
        'the beginning of the hazard.</p>',
        '<h2>Imagined and shown</h2>',
        '<p class="note">The first test episode of each kind, from the chunk on with which the hazard began: what was '
        'shown to policy and judge, and what had been imagined for that moment one chunk before.</p>',
        *_pictures(pictures),
        _table(hazard_grid()),
    ]
    body = '\n'.join(parts)
    head = f'<meta charset="utf-8"><title>Safety simulation</title><style>{_STYLE}</style>'
    path.write_text(f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n', encoding='utf-8')


def _table(grid: Grid) -> str:
    head = ''.join(f'<th>{escape(name)}</th>' for name in grid.head)
    rows = ''.join('<tr>' + ''.join(f'<td>{escape(cell)}</td>' for cell in row) + '</tr>' for row in grid.rows)
    note = f'<p class="note">{escape(grid.note)}</p>' if grid.note else ''
    return f'<h2>{escape(grid.title)}</h2><div class="scroll"><table><tr>{head}</tr>{rows}</table></div>{note}'


def _image(content: bytes, text: str, kind: str) -> str:
    return f'<img alt="{escape(text)}" src="data:{kind};base64,{base64.b64encode(content).decode()}">'


def _pictures(folder: Path) -> list[str]:
    """The pictures of single episodes, the nominal one first."""
    files = sorted(folder.glob('*.jpg'), key=lambda file: (file.stem != 'nominal', file.stem))
    return [
        f'<figure>{_image(file.read_bytes(), file.stem, "image/jpeg")}<figcaption>{escape(file.stem)}</figcaption>'
        '</figure>'
        for file in files
    ] or ['<p>None were kept.</p>']


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=100)
    return buffer.getvalue()


def roc_plot(tested: Sequence[EpisodeRecord], results: Mapping[str, Any]) -> Figure:
    """One panel for each score: a curve over all hazards, thick, and one for each; dashed, as a share of the band."""
    from matplotlib.figure import Figure

    names = list(results['roc'])
    columns = max(1, min(3, len(names)))
    lines = max(1, -(-len(names) // columns))
    figure = Figure(figsize=(4 * columns, 3.8 * lines), layout='constrained')
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    hazards = [name for name in results['harm'] if name]
    for axis, name in zip(axes, names, strict=False):
        axis.plot([0, 1], [0, 1], color=_GREY, lw=0.8, ls=':')
        for hazard in [*hazards, '']:
            bad, good = split(tested, name, hazard)
            if bad and good:
                style = {'lw': 1.0, 'label': hazard} if hazard else {'lw': 2.6, 'color': 'black', 'label': 'all'}
                axis.plot(*curve(bad, good), drawstyle='steps-post', **style)
        bad, good = split(tested, name, '', of_band=True)
        if bad and good:
            axis.plot(
                *curve(bad, good), drawstyle='steps-post', lw=1.8, ls='--', color='black', label='all, of the band'
            )
        axis.set_title(name, fontsize=10)
        axis.set_xlabel('false alarms', fontsize=8)
        axis.set_ylabel('detections', fontsize=8)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize=6, loc='lower right')
    return figure


def score_plot(tested: Sequence[EpisodeRecord], results: Mapping[str, Any], calibration: Calibration) -> Figure:
    """A panel for each score and hazard: nominal episodes, the first with the hazard, and the band."""
    from matplotlib.figure import Figure

    names = list(results['roc']) or [MONITORS[0]]
    hazards = [name for name in results['harm'] if name] or ['']
    figure = Figure(figsize=(2.1 * len(hazards), 1.7 * len(names)), layout='constrained')
    axes = figure.subplots(len(names), len(hazards), squeeze=False, sharex=True, sharey='row')
    for name, line in zip(names, axes, strict=True):
        for hazard, axis in zip(hazards, line, strict=True):
            _draw_scores(axis, tested, name, hazard, calibration)
            axis.tick_params(labelsize=6)
            if name == 'inconsistency':  # from a mrad to radians
                axis.set_yscale('log')
        line[0].set_ylabel(name, fontsize=8)
    for hazard, axis in zip(hazards, axes[0], strict=True):
        axis.set_title(hazard or 'nominal', fontsize=8)
    axes[-1][0].set_xlabel('time [s]', fontsize=8)
    return figure


def _draw_scores(axis: Axes, tested: Sequence[EpisodeRecord], name: str, hazard: str, calibration: Calibration) -> None:
    for one in [one for one in tested if not one.hazard][:25]:
        axis.plot(*_series(one, name), color=_GREY, lw=0.4, alpha=0.6)
    found = next((one for one in tested if hazard and one.hazard == hazard), None)
    if found is not None:
        axis.plot(*_series(found, name), color=_INK, lw=1.4, marker='.', ms=3)
        if found.begin_s is not None:
            axis.axvline(found.begin_s, color='black', lw=0.8, ls='--')
    band = next((band for key, band in calibration.bands.items() if key.endswith(f'/{name}')), None)
    times = max(([chunk.observed_s for chunk in one.chunks] for one in tested), key=len, default=[])
    if band is not None:
        axis.plot(times, [band.at(step) for step in range(len(times))], color=_LIMIT, lw=1.0)


def _series(episode: EpisodeRecord, name: str) -> tuple[list[float], list[float]]:
    found = [(chunk.observed_s, chunk.scores[name]) for chunk in episode.chunks if name in chunk.scores]
    finite = [(when, score) for when, score in found if np.isfinite(score)]
    return [when for when, _ in finite], [score for _, score in finite]
