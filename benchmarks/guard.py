"""What the guard costs, and what it does to the joints of successive chunks.

    python benchmarks/guard.py                    # time of a judgement and of a tick; accelerations where chunks meet
    python benchmarks/guard.py --jitter 60 --save # and how regular the ticks of a guard process are

See README.md beside this file for how each figure is taken.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
from expert import NS, REPLAN_ROWS, STEP_NS, TELEOPERATION, Conditions, Rehearsal, simulated_expert

from cosmos3_ros.guard.checks import Acceptance
from cosmos3_ros.guard.guard import Guard
from cosmos3_ros.guard.limits import load_limits

CLEAN = Conditions(chunk_noise=0.003)


def measure_calls(repetitions: int, seed: int = 0) -> dict[str, Any]:
    """Time `on_chunk` followed by `tick`, and `tick` alone, under replanning every 8 rows.

    The arm moves all the time, as the simulated expert does, and successive chunks disagree by 3 mrad. Every time that
    a chunk arrives, it is judged, spliced and followed by a tick: that pair is one repetition.
    """
    limits = load_limits('panda')
    motion = simulated_expert(limits, repetitions * REPLAN_ROWS * STEP_NS / NS + 20.0, seed, TELEOPERATION)
    stage = Rehearsal(Guard(limits), motion, CLEAN, np.random.default_rng(seed))
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


if __name__ == '__main__':
    import json

    print(json.dumps(measure_calls(2000), indent=1))
