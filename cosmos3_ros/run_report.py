"""Tells a run: a table for the terminal, a plot, and the video of what was seen beside what was imagined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from cosmos3_ros.run_judge import Reached
from cosmos3_ros.run_record import Excess, Leg, RunRecord


def summary_table(record: RunRecord, closest: Sequence[Excess]) -> Table:
    """The run in figures."""
    table = Table(title='The run in figures', show_header=False, title_justify='left', pad_edge=False)
    table.add_column(style='bold')
    table.add_column()
    table.add_row('chunks', f'{len(record.chunks)} from the policy, {record.accepted} accepted by the guard')
    for stage, (p50, p95) in record.stages.items():
        table.add_row(f'  {stage}', f'{p50 * 1e3:8.1f} ms p50   {p95 * 1e3:8.1f} ms p95')
    p50, p95 = record.observation_age
    table.add_row('observation age at execution', f'{p50 * 1e3:8.1f} ms p50   {p95 * 1e3:8.1f} ms p95')
    typical = float(np.median(record.splice_jumps)) if record.splice_jumps else 0.0
    table.add_row('jump between chunks', f'{typical:.4f} rad median, {record.largest_splice_jump:.4f} rad largest')
    rejections = ', '.join(f'{reason}: {count}' for reason, count in record.rejections.most_common()) or 'none'
    table.add_row('rejections', rejections)
    withheld = ' (dry run: withheld)' if record.dry_run else ''
    table.add_row('commands to the robot', f'{len(record.commands)}{withheld}')
    units = {'position': 'rad', 'velocity': 'rad/s', 'acceleration': 'rad/s²'}
    for excess in closest:
        unit = units[excess.quantity]
        verdict = '[red]EXCEEDED[/red]' if excess.exceeded else f'margin {excess.margin:.3f} {unit}'
        where = f'{excess.joint}: {excess.value:+.3f} of {excess.limit:+.3f} {unit}'
        table.add_row(f'closest to {excess.quantity} limit', f'{verdict}  ({where})')
    moved = ', '.join(f'{range_:.2f}' for range_ in record.travelled)
    table.add_row('measured range of motion', f'{moved} rad')
    return table


def reached_table(legs: Sequence[tuple[Leg, Reached]]) -> Table:
    """Whether the hand came to what was named."""
    table = Table(title='What was asked for, and where the hand went', title_justify='left', pad_edge=False)
    for name in ('instruction', 'there after', 'beside it in the end', 'stayed above others'):
        table.add_column(name, justify='left' if name == 'instruction' else 'right')
    for leg, found in legs:
        after = '[yellow]never[/yellow]' if found.after_s is None else f'{found.after_s:.1f} s'
        others = ', '.join(name.replace('_', ' ') for name in found.others) or '-'
        table.add_row(escape(leg.instruction), after, f'{100 * found.beside_m:.1f} cm', others)
    return table


def plot_joints(record: RunRecord, path: Path) -> None:
    """Commanded against measured joint positions, chunk arrivals as ticks, to a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.6 * len(record.joint_names) + 1), layout='constrained')
    axes = figure.subplots(len(record.joint_names), 1, sharex=True)
    start = record.measured[0][0] if record.measured else 0.0
    measured = np.array([t for t, _ in record.measured]) - start
    positions = np.stack([p for _, p in record.measured]) if record.measured else np.zeros((0, len(axes)))
    sent = np.array([c.times[0] for c in record.commands]) - start
    commanded = np.stack([c.positions[0] for c in record.commands]) if record.commands else np.zeros((0, len(axes)))
    accepted = {(d.epoch, d.sequence) for d in record.decisions if d.accepted}
    for joint, axis in enumerate(axes):
        axis.plot(measured, positions[:, joint], color='#1f77b4', lw=2.2, label='measured')
        axis.plot(sent, commanded[:, joint], color='#d62728', lw=1.0, label='commanded')
        for chunk in record.chunks:
            good = (chunk.epoch, chunk.sequence) in accepted
            axis.axvline(chunk.arrived - start, ymax=0.06, color='#2ca02c' if good else '#ff7f0e', lw=1.2)
        axis.set_ylabel(f'{record.joint_names[joint]}\n[rad]', fontsize=8)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    axes[0].legend(loc='upper right', fontsize=8, ncols=2)
    axes[0].set_title('Commanded and measured joints; green ticks: chunks accepted, orange: rejected', fontsize=10)
    axes[-1].set_xlabel('time [s]')
    figure.savefig(path, dpi=110)


def imagined_frame(
    record: RunRecord, imagined: Mapping[tuple[int, int], NDArray[np.uint8]], time: float, fps: float
) -> NDArray[np.uint8] | None:
    """What the newest chunk known at `time` imagined for that moment; None before the first chunk."""
    known = [c for c in record.chunks if c.arrived <= time and (c.epoch, c.sequence) in imagined]
    if not known:
        return None
    newest = known[-1]
    video = imagined[newest.epoch, newest.sequence]
    return video[min(max(round((time - newest.stamp) * fps), 0), len(video) - 1)]


def video_frames(
    record: RunRecord, imagined: Mapping[tuple[int, int], NDArray[np.uint8]], fps: float, titles: tuple[str, str]
) -> Iterator[NDArray[np.uint8]]:
    """Frames uint8 [H, W, 3] at `fps`: the composed views on the left, the imagined ones on the right."""
    from engine.evaluation.video import side_by_side

    for time, picture in record.frames:
        other = imagined_frame(record, imagined, time, fps)
        if other is None:
            other = np.full_like(picture, 32)
        note = next((text for since, text in reversed(record.notes) if since <= time), '')
        caption = f'{time - record.frames[0][0]:5.1f} s  {note}'.rstrip()
        yield side_by_side(picture, other, caption, titles)
