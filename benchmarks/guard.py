"""What the guard costs, and what it does to the joints of successive chunks.

    python benchmarks/guard.py                    # time of a judgement and of a tick; accelerations where chunks meet
    python benchmarks/guard.py --jitter 60 --save # and how regular the ticks of a guard process are

See README.md beside this file for how each figure is taken.
"""

from __future__ import annotations

import argparse
import gc
import time
from dataclasses import replace
from typing import Any

import numpy as np
from chunk_boundaries import compare
from expert import GRIPPER, NS, REPLAN_ROWS, STEP_NS, TELEOPERATION, TICK_NS, Conditions, Rehearsal, simulated_expert
from figures import facts, machine, save, table

from cosmos3_ros.guard.checks import Acceptance
from cosmos3_ros.guard.guard import Guard
from cosmos3_ros.guard.limits import RobotLimits, load_limits

CLEAN = Conditions(chunk_noise=0.003)


def measure_calls(limits: RobotLimits, repetitions: int, seed: int = 0) -> dict[str, Any]:
    """Time `on_chunk` followed by `tick`, and `tick` alone, under replanning every 8 rows.

    The arm moves all the time, as the simulated expert does, and successive chunks disagree by 3 mrad. Every time that
    a chunk arrives, it is judged, spliced and followed by a tick: that pair is one repetition.
    """
    motion = simulated_expert(limits, repetitions * REPLAN_ROWS * STEP_NS / NS + 20.0, seed, TELEOPERATION)
    stage = Rehearsal(Guard(limits, gripper_names=GRIPPER), motion, CLEAN, np.random.default_rng(seed))
    stage.tick = _timed_tick(stage, ticks := [])
    pairs, chunks, accepted = [], [], 0
    observed = stage.now_ns
    gc.collect()
    gc.freeze()
    while len(pairs) < repetitions:
        stage.until(observed + stage.delay_ns())
        chunk = stage.chunk(observed)
        before = time.perf_counter_ns()
        verdict = stage.guard.on_chunk(chunk, stage.now_ns)
        between = time.perf_counter_ns()
        command = stage.guard.tick(stage.now_ns)
        after = time.perf_counter_ns()
        stage.command = command or stage.command
        accepted += isinstance(verdict, Acceptance)
        pairs.append((after - before) / 1e3)
        chunks.append((between - before) / 1e3)
        observed += REPLAN_ROWS * STEP_NS
        stage.until(observed)
    gc.unfreeze()
    return {
        'repetitions': repetitions,
        'accepted': accepted,
        'chunk_and_tick_us': percentiles(pairs[20:]),
        'chunk_us': percentiles(chunks[20:]),
        'tick_us': percentiles(ticks[1000:]),
        'ticks': len(ticks),
    }


def _timed_tick(stage: Rehearsal, times: list[float]) -> Any:
    """`stage.tick` that notes how long the guard took for it, in microseconds."""
    inner, guard_tick = stage.tick, stage.guard.tick

    def timed(now_ns: int) -> Any:
        before = time.perf_counter_ns()
        command = guard_tick(now_ns)
        times.append((time.perf_counter_ns() - before) / 1e3)
        return command

    def tick() -> None:
        stage.guard.tick = timed
        inner()
        del stage.guard.tick

    return tick


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p99, p99.9 and the worst."""
    p50, p99, p999 = np.percentile(values, [50, 99, 99.9])
    return {
        'p50': round(p50, 1),
        'p99': round(p99, 1),
        'p99.9': round(p999, 1),
        'worst': round(max(values), 1),
    }


def measure_jitter(seconds: float) -> dict[str, Any]:
    """Time between the commands of a guard process while another process records every topic, ms."""
    import rclpy
    from control_period import guard_periods_ms

    rclpy.init(args=[])
    try:
        periods, accepted, decided = guard_periods_ms('thread', seconds, record=True)
    finally:
        rclpy.try_shutdown()
    late = np.abs(np.asarray(periods) - TICK_NS / 1e6)
    p50, p99 = np.percentile(late, [50, 99])
    figures = {'p50': round(p50, 3), 'p99': round(p99, 3), 'worst': round(float(late.max()), 3)}
    return {'ticks': len(late), 'off_the_period_ms': figures, 'accepted': accepted, 'decided': decided}


def report(document: dict[str, Any]) -> str:
    """All figures as Markdown."""
    kinds = (('with the body', document['calls']), ('joints alone', document['calls_joints_alone']))
    rows = [
        (f'{name}, {kind}', *calls[key].values())
        for kind, calls in kinds
        for name, key in (
            ('judge a chunk of 32 x 8, splice it, next command', 'chunk_and_tick_us'),
            ('of that, the judgement', 'chunk_us'),
            ('a tick', 'tick_us'),
        )
    ]
    calls = document['calls']
    parts = [
        '# What the guard costs, and what it does where chunks meet',
        facts(document['machine']) + '.',
        table(('us', 'p50', 'p99', 'p99.9', 'worst'), rows),
        f'{calls["repetitions"]:,} chunks, of which {calls["accepted"]:,} were accepted, and {calls["ticks"]:,} ticks.',
    ]
    if 'boundaries' in document:
        head = ('executor', 'boundaries', 'acceleration', 'worst', 'jerk', 'worst', 'ratio', 'jerk ratio')
        keys = ('boundaries', 'acceleration_median', 'acceleration_worst', 'jerk_median', 'jerk_worst')
        ratios = ('acceleration_ratio', 'jerk_ratio')
        found = document['boundaries']
        parts += [
            'Peaks around the instants at which a new chunk takes over, by differences of the commands that are sent: '
            'medians and the worst in rad/s^2 and rad/s^3, and ratios of the medians to ours.',
            table(head, [(name, *(f[key] for key in (*keys, *ratios))) for name, f in found.items()]),
            f'Of ours, {found["ours"]["refused"]} chunks were refused.',
        ]
    if 'jitter' in document:
        late = document['jitter']['off_the_period_ms']
        parts.append(
            f'Commands of a guard process at 100 Hz, with every topic recorded, are off the period by {late["p50"]} ms '
            f'(p50), {late["p99"]} ms (p99), {late["worst"]} ms (worst of {document["jitter"]["ticks"]:,}).'
        )
    return '\n\n'.join(parts)


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repetitions', type=int, default=3000, help='chunks to time')
    parser.add_argument('--boundaries', type=int, default=300, help='chunks to compare executors on; 0: do not')
    parser.add_argument('--jitter', type=float, default=0.0, metavar='SECONDS', help='of a guard process; 0: do not')
    parser.add_argument('--seed', type=int, default=0, help='decides motion, delays and disagreement')
    parser.add_argument('--save', action='store_true', help='write results/guard.json and .md')
    options = parser.parse_args()
    panda = load_limits('panda')
    document: dict[str, Any] = {
        'machine': machine(),
        'calls': measure_calls(panda, options.repetitions, options.seed),
        'calls_joints_alone': measure_calls(replace(panda, chain=None), options.repetitions, options.seed),
    }
    if options.boundaries:
        document['boundaries'] = compare(options.boundaries, options.seed)
    if options.jitter:
        document['jitter'] = measure_jitter(options.jitter)
    text = report(document)
    print(text)
    if options.save:
        save('guard', document, text)


if __name__ == '__main__':
    main()
