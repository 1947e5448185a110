"""What reaches the joints where one chunk follows another: our executor, LeRobot's queue, and naive replay.

All three get the same stream of chunks: predictions of a clean motion that disagree a little from chunk to chunk, each
of which arrives a while after it was observed.

- **Ours**: the guard's commands, one each 10 ms.
- **LeRobot**: its `ActionQueue` in real-time-chunking mode, which drops the rows that were executed during inference,
  at 15 rows per second. The policy-side guidance of that method is no part of the queue: all get the same stream.
- **Naive**: every chunk is played from its first row when it arrives.

Rows of the last two are brought to the robot's rate in two ways: straight lines, by LeRobot's own `ActionInterpolator`
with a factor of 7 (105 Hz); and, as generously as can be, by the cubic spline through all rows that were played, which
needs to know the future.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from expert import GRIPPER, NS, REPLAN_ROWS, STEP_NS, TELEOPERATION, TICK_NS, Conditions, Rehearsal, simulated_expert
from numpy.typing import NDArray

from cosmos3_ros.guard.checks import Acceptance
from cosmos3_ros.guard.guard import Guard
from cosmos3_ros.guard.limits import load_limits

Array = NDArray[np.float64]

FACTOR = 7
"""Commands per row that the linear interpolator makes: 105 Hz."""
BEFORE_S, AFTER_S = 0.07, 0.30
"""What counts as the boundary: a row before the switch to a new chunk, and four after it."""


@dataclass(frozen=True)
class Stream:
    """Chunks in order of arrival: observed and arrived at (ns since the start), and rows [N, J] in rad."""

    observed: list[int]
    arrived: list[int]
    rows: list[Array]


@dataclass(frozen=True)
class Played:
    """Positions [S, J] that were commanded, `period_s` apart from `start_s` on, and when a new chunk took over, s."""

    positions: Array
    start_s: float
    period_s: float
    switches: list[float]


def make_stream(rehearsal: Rehearsal, count: int, offset: float) -> Stream:
    """Predictions of the rehearsal's motion that are off by `offset` rad at first, and by twice more at the end."""
    rng, joints = rehearsal.rng, len(rehearsal.arm)
    observed = [k * REPLAN_ROWS * STEP_NS for k in range(count)]
    arrived = [stamp + rehearsal.delay_ns() for stamp in observed]
    rows = []
    for stamp in observed:
        truth = rehearsal.rows(rehearsal.origin_ns + stamp)
        drift = np.linspace(0, 1, len(truth))[:, None] * rng.normal(0, 2 * offset, joints)
        rows.append(truth + rng.normal(0, offset, joints) + drift)
    return Stream(observed, arrived, rows)


def play_ours(rehearsal: Rehearsal, stream: Stream) -> tuple[Played, int]:
    """What the guard commands, and how many chunks it refused."""
    rehearsal.commands, switches, refused = [], [], 0
    for observed, arrived, rows in zip(stream.observed, stream.arrived, stream.rows, strict=True):
        rehearsal.until(rehearsal.origin_ns + arrived)
        chunk = rehearsal.chunk(rehearsal.origin_ns + observed, positions=rows)
        verdict = rehearsal.guard.on_chunk(chunk, rehearsal.now_ns)
        if isinstance(verdict, Acceptance):
            switches.append((verdict.motion.start_ns - rehearsal.origin_ns) / NS)
        refused += not isinstance(verdict, Acceptance)
    positions = np.array([command.positions[0] for command in rehearsal.commands])
    start_s = (rehearsal.commands[0].stamp_ns - rehearsal.origin_ns) / NS
    return Played(positions, start_s, TICK_NS / NS, switches[1:]), refused


def play_queue(stream: Stream) -> tuple[Played, Array]:
    """What LeRobot's queue and interpolator command, and the rows that the queue gave."""
    import torch
    from lerobot.policies.rtc.action_queue import ActionQueue
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    queue = ActionQueue(RTCConfig(enabled=True))
    index_at: dict[int, int] = {}

    def observe(number: int) -> None:
        index_at[number] = queue.get_action_index()

    def merge(number: int) -> None:
        late = math.ceil((stream.arrived[number] - stream.observed[number]) / STEP_NS)
        rows = torch.from_numpy(stream.rows[number])
        queue.merge(rows, rows, late, index_at[number] if number else None)

    def take() -> Array | None:
        action = queue.get()
        return None if action is None else action.numpy()

    return _row_by_row(stream, observe, merge, take)


def play_naive(stream: Stream) -> tuple[Played, Array]:
    """What replay of whole chunks from their first row commands."""
    playing: list[Array] = []

    def merge(number: int) -> None:
        playing[:] = list(stream.rows[number])

    return _row_by_row(stream, lambda _number: None, merge, lambda: playing.pop(0) if playing else None)


def _row_by_row(
    stream: Stream, observe: Callable[[int], None], merge: Callable[[int], None], take: Callable[[], Array | None]
) -> tuple[Played, Array]:
    """One row per step, interpolated in straight lines; a chunk counts from the first step after its arrival."""
    import torch
    from lerobot.utils.action_interpolator import ActionInterpolator

    interpolator = ActionInterpolator(FACTOR)
    rows, sent, switches, seen, merged, first = [], [], [], 0, 0, 0
    for step in range(stream.arrived[-1] // STEP_NS):
        now = step * STEP_NS
        while seen < len(stream.observed) and stream.observed[seen] <= now:
            observe(seen)
            seen += 1
        while merged < seen and stream.arrived[merged] <= now:
            merge(merged)
            switches.append(now / NS)
            merged += 1
        row = take()
        if row is None:
            continue
        first = first or step
        rows.append(row)
        interpolator.add(torch.from_numpy(row))
        while not interpolator.needs_new_action():
            sent.append(interpolator.get().numpy())
    # The interpolator is a row late: it reaches the row that it was given by the end of the step.
    start_s = (first * STEP_NS - (len(sent) % FACTOR - 1) * STEP_NS / FACTOR) / NS
    return Played(np.array(sent), start_s, STEP_NS / NS / FACTOR, switches[1:]), np.array(rows)


def through_spline(rows: Array, switches: list[float], start_s: float) -> Played:
    """Rows brought to 100 Hz by the cubic spline through all of them."""
    from scipy.interpolate import CubicSpline

    times = start_s + np.arange(len(rows)) * STEP_NS / NS
    fine = np.arange(times[0], times[-1], TICK_NS / NS)
    return Played(CubicSpline(times, rows)(fine), start_s, TICK_NS / NS, switches)


def peaks(played: Played) -> tuple[Array, Array]:
    """Largest acceleration and jerk, by differences of commands, around each switch: rad/s² and rad/s³, [switches]."""
    rise = np.abs(np.diff(played.positions, 2, axis=0)).max(axis=1) / played.period_s**2
    jerk = np.abs(np.diff(played.positions, 3, axis=0)).max(axis=1) / played.period_s**3
    accelerations, jerks = [], []
    for switch in played.switches:
        begin = int((switch - BEFORE_S - played.start_s) / played.period_s)
        end = int((switch + AFTER_S - played.start_s) / played.period_s)
        if begin >= 0 and end <= len(jerk):
            accelerations.append(rise[begin:end].max())
            jerks.append(jerk[begin:end].max())
    return np.array(accelerations), np.array(jerks)


def compare(chunks: int, seed: int, offset: float = 0.005) -> dict[str, dict[str, float]]:
    """Peaks at the boundaries of one stream for every executor, and their ratios to ours."""
    limits = load_limits('panda')
    motion = simulated_expert(limits, chunks * REPLAN_ROWS * STEP_NS / NS + 5.0, seed, TELEOPERATION)
    stage = Rehearsal(Guard(limits, gripper_names=GRIPPER), motion, Conditions(), np.random.default_rng(seed))
    stream = make_stream(stage, chunks, offset)
    ours, refused = play_ours(stage, stream)
    queue, queue_rows = play_queue(stream)
    naive, naive_rows = play_naive(stream)
    found = {
        'ours': _figures(ours),
        'LeRobot queue, straight lines': _figures(queue),
        'LeRobot queue, spline through the future': _figures(_splined(queue, queue_rows)),
        'naive replay, straight lines': _figures(naive),
        'naive replay, spline through the future': _figures(_splined(naive, naive_rows)),
    }
    found['ours']['refused'] = refused
    for figures in found.values():
        for key in ('acceleration', 'jerk'):
            figures[f'{key}_ratio'] = round(figures[f'{key}_median'] / found['ours'][f'{key}_median'], 2)
    return found


def _splined(played: Played, rows: Array) -> Played:
    return through_spline(rows, played.switches, played.start_s)


def _figures(played: Played) -> dict[str, float]:
    accelerations, jerks = peaks(played)
    figures: dict[str, float] = {'boundaries': len(accelerations)}
    for key, values in (('acceleration', accelerations), ('jerk', jerks)):
        figures[f'{key}_median'] = round(float(np.median(values)), 3)
        figures[f'{key}_worst'] = round(float(values.max()), 3)
    return figures
