"""Plots of an open-loop run, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.evaluation.open_loop_pictures import Frames

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

_INK, _RED, _GREEN, _GREY, _OCHRE = '#1f3f6e', '#c0392b', '#2a7f4f', '#8a8a8a', '#b8860b'
_COLOURS = {
    'policy': _INK, 'hold': _GREY, 'repeat_action': _OCHRE, 'repeat_step': _RED,
    'imagined': _INK, 'ceiling': _GREEN, 'repeat_first': _GREY, 'other_actions': _RED, 'reversed': _OCHRE,
}  # fmt: skip
NAMES = {
    'policy': 'policy',
    'real': 'real',
    'recorded': 'recorded',
    'hold': 'hold pose',
    'repeat_action': 'repeat last action',
    'repeat_step': 'repeat last step',
    'imagined': 'imagined',
    'ceiling': 'codec ceiling',
    'repeat_first': 'repeat first frame',
    'other_actions': 'actions of another moment',
    'reversed': 'reversed actions',
    'found': 'inverse dynamics',
    'still': 'nothing moves',
}
"""What the makers of figures are called where people read."""
_COLUMNS = 4
_SHOWN = 4


@dataclass(frozen=True)
class Plot:
    """A picture.

    Attributes:
        name: Of its file.
        title: Above it.
        png: The picture.
        note: Below it.
    """

    name: str
    title: str
    png: bytes
    note: str = ''


def plots(document: Mapping[str, Any], example: Mapping[str, Frames] | None = None) -> list[Plot]:
    """Every plot that there are figures for.

    Args:
        document: As in `open_loop.json`.
        example: Videos of one window by who made them, the real one among them.
    """
    found = []
    if policy := document.get('policy'):
        found += [_lead_time(policy), _chunks(policy)]
    if dynamics := document.get('dynamics'):
        found.append(_likeness(dynamics, (document.get('policy') or {}).get('fps') or dynamics['fps']))
    if example:
        found.append(_example(example))
    return found


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure((width, height), layout='constrained')


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110)
    return buffer.getvalue()


def _curve(axis: Axes, times: Floats, estimate: Mapping[str, Any], who: str, pick: Any = ...) -> None:
    """A line with its interval as a band."""
    value, low, high = (np.array(estimate[key], np.float64)[pick] for key in ('value', 'low', 'high'))
    axis.plot(times, value, color=_COLOURS[who], lw=1.8, label=NAMES[who])
    axis.fill_between(times, low, high, color=_COLOURS[who], alpha=0.15, lw=0)


def _lead_time(policy: Mapping[str, Any]) -> Plot:
    """Error by lead time: one axis for each channel, and one for all joints."""
    shown = [(one['name'], one['unit'], number) for number, one in enumerate(policy['channels'])]
    width = np.array(policy['lead_time']['policy']['rmse']['value']).shape[-1]
    shown += [('all joints', shown[0][1], width - 1)] if width > len(shown) else []
    across = min(_COLUMNS, len(shown))
    down = -(-len(shown) // across)
    figure = _figure(2.9 * across + 0.4, 2.4 * down + 0.4)
    axes = figure.subplots(down, across, squeeze=False, sharex=True)
    times = np.arange(1, policy['rows'] + 1) / policy['fps']
    for axis, (name, unit, index) in zip(axes.flat, shown, strict=False):
        for who, found in reversed(policy['lead_time'].items()):
            _curve(axis, times, found['rmse'], who, (..., index))
        _dress(axis, name, f'RMSE [{unit}]')
        axis.set_ylim(0, _top(policy['lead_time'], index))
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis in axes[-1]:
        axis.set_xlabel('lead time [s]', fontsize=8)
    _legend(figure, axes.flat[0])
    return Plot(
        'lead_time',
        'Error against lead time',
        _png(figure),
        'Bands: 95 % intervals. Repeating the last step may leave the axes, which are made for the others.',
    )


def _top(by_lead_time: Mapping[str, Any], index: int) -> float:
    """High enough for the policy and the steady guesses; a step that is repeated may leave the picture."""
    steady = [
        np.array(found['rmse']['value'])[:, index].max() for who, found in by_lead_time.items() if who != 'repeat_step'
    ]
    return float(max(1.25 * max(steady), 1e-6))


def _dress(axis: Axes, title: str, label: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_ylabel(label, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(color='#e5e5e5')


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc='outside upper center', ncols=len(labels), fontsize=8, frameon=False)


def _chunks(policy: Mapping[str, Any]) -> Plot:
    """How far chunks contradict each other and how far seeds do, by row; and whether the gripper is right."""
    channel = np.array(policy['lead_time']['policy']['rmse']['value']).shape[-1] - 1
    channel = channel if channel == len(policy['channels']) else 0
    named = policy['channels'][min(channel, len(policy['channels']) - 1)]
    parts = [key for key in ('overlap', 'seed_spread') if key in policy]
    gripper = policy.get('gripper')
    count = 1 + bool(gripper)
    figure = _figure(4.4 * count + 0.3, 2.9)
    axes = figure.subplots(1, count, squeeze=False)[0]
    titles = {'overlap': 'chunk against the one before', 'seed_spread': 'spread over seeds'}
    for key, colour in zip(parts, (_INK, _OCHRE), strict=False):
        value, low, high = (np.array(policy[key]['by_row'][end], float)[:, channel] for end in ('value', 'low', 'high'))
        times = np.arange(1, len(value) + 1) / policy['fps']
        axes[0].plot(times, value, color=colour, lw=1.8, label=titles[key])
        axes[0].fill_between(times, low, high, color=colour, alpha=0.15, lw=0)
    _dress(axes[0], 'all joints' if channel else named['name'], f'root mean square [{named["unit"]}]')
    if gripper:
        times = np.arange(1, policy['rows'] + 1) / policy['fps']
        for who, found in reversed(gripper['accuracy_by_lead_time'].items()):
            _curve(axes[1], times, found, who)
        _dress(axes[1], 'gripper', 'right [share]')
        axes[1].set_ylim(-0.03, 1.03)
    for axis in axes:
        axis.set_xlabel('time of the row [s]', fontsize=8)
        if axis.lines:
            axis.legend(fontsize=8, loc='lower center', bbox_to_anchor=(0.5, 1.08), ncols=2, frameon=False)
    return Plot('chunks', 'Agreement of chunks, and the gripper', _png(figure))


def _likeness(dynamics: Mapping[str, Any], fps: float) -> Plot:
    views = dynamics['views']
    figure = _figure(2.9 * len(views) + 0.4, 5.2)
    axes = figure.subplots(2, len(views), squeeze=False, sharex=True, sharey='row')
    times = np.arange(1, dynamics['rows'] + 1) / fps
    for row, (kind, label) in enumerate((('psnr', 'PSNR [dB]'), ('ssim', 'SSIM'))):
        for axis, view in zip(axes[row], views, strict=True):
            for who, by_view in reversed(dynamics[kind].items()):
                _curve(axis, times, by_view[view]['by_frame'], who)
            _dress(axis, view if not row else '', label if view == views[0] else '')
    for axis in axes[1]:
        axis.set_xlabel('imagined time [s]', fontsize=8)
    _legend(figure, axes.flat[0])
    return Plot('dynamics', 'Forward dynamics against time', _png(figure), 'Against the real video; higher is better.')


def _example(example: Mapping[str, Frames]) -> Plot:
    """Some frames of each video, one row for each."""
    length = len(example['real'])
    at = np.unique(np.linspace(0, length - 1, _SHOWN).round().astype(int))
    height, width = example['real'].shape[1:3]
    across = 2.3
    figure = _figure(across * len(at) + 1.2, across * len(example) * height / width + 0.4)
    axes = figure.subplots(len(example), len(at), squeeze=False)
    for row, (who, frames) in zip(axes, example.items(), strict=True):
        for axis, index in zip(row, at, strict=True):
            axis.imshow(frames[index])
            axis.set(xticks=[], yticks=[])
            if who == 'real':
                axis.set_title(f'frame {index + 1}', fontsize=8)
        row[0].set_ylabel(NAMES[who].replace(' of ', '\nof '), fontsize=8, rotation=0, ha='right', va='center')
    return Plot('example', 'The window in which the most changes', _png(figure))


def saved(found: Sequence[Plot], folder: Any) -> None:
    """Write each picture into a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for plot in found:
        (folder / f'{plot.name}.png').write_bytes(plot.png)
