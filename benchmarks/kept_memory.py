"""What it is worth that a process keeps the memory that it frees, for the chunks of a policy on a processor.

    python benchmarks/kept_memory.py --save

Processes that do and that do not take turns; each loads the policy and makes chunks of it. See README.md beside this
file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import figures
import numpy as np

import engine
from cosmos3_ros.processor import MALLOC_VARIABLES, keep_freed_memory
from engine.policy_observation import grey_observation
from engine.sampler import request_seeds

CHECKPOINT, CONTRACT = 'cosmos3-micro', 'micro_joint_pos'
PAUSE_S = 0.06
SETTLED = 5
"""Chunks after which a process has what it needs."""
SIDES = {'given back': False, 'kept': True}


def main() -> None:
    """Let processes take turns, print what became of them, and keep the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--rounds', type=int, default=4, help='processes of each kind (default: 4)')
    parser.add_argument('--chunks', type=int, default=60, help='that each of them makes (default: 60)')
    parser.add_argument('--save', action='store_true', help='keep figures and tables in benchmarks/results')
    parser.add_argument('--side', choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(SIDES[options.side], options.chunks)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side, runs in found.items():
            runs.append(ask(side, options.chunks))
            print(f'{side}: {runs[-1]}', file=sys.stderr, flush=True)
    text = report(found)
    print(text)
    if options.save:
        machine = figures.machine()
        document = {'machine': machine, 'chunks': options.chunks, 'runs': found}
        head = f'# Freed memory that stays with the process\n\n{figures.facts(machine)}.'
        about = f'{CHECKPOINT}, {options.rounds} processes of each kind with {options.chunks} chunks each.'
        figures.save('kept_memory', document, f'{head}\n\n{about}\n\n{text}')


def ask(side: str, chunks: int) -> dict[str, float]:
    """What a process of its own measures, without what the environment says of memory."""
    environment = {name: value for name, value in os.environ.items() if name not in MALLOC_VARIABLES}
    command = [sys.executable, __file__, '--side', side, '--chunks', str(chunks)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(keep: bool, chunks: int) -> dict[str, float]:
    """Median and 95th percentile of a chunk in ms, page faults of one, largest memory of the process in MB."""
    if keep and not keep_freed_memory():
        raise SystemExit('the C library of this machine does not keep memory when it is asked to')
    contract = engine.load_contract(CONTRACT)
    policy = engine.load(CHECKPOINT).policy(contract)
    policy.warm_up()
    observation, seconds, faults = grey_observation(contract), [], []
    for _, seed in zip(range(chunks + SETTLED), request_seeds(0), strict=False):
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        policy.infer(observation, seed)
        seconds.append(time.perf_counter() - start)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        time.sleep(PAUSE_S)
    p50, p95 = np.percentile(np.array(seconds[SETTLED:]) * 1e3, (50, 95))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {'p50': float(p50), 'p95': float(p95), 'faults': float(np.mean(faults[SETTLED:])), 'memory_mb': memory}


def report(found: dict[str, list[dict[str, float]]]) -> str:
    """Medians over the processes as markdown, and in how many turns it was worth something."""
    middle = {
        side: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for side, runs in found.items()
    }
    rows = [
        [side, f'{m["p50"]:.1f}', f'{m["p95"]:.1f}', f'{m["faults"]:,.0f}', f'{m["memory_mb"]:,.0f}']
        for side, m in middle.items()
    ]
    ratios = [kept['p50'] / given['p50'] for given, kept in zip(*found.values(), strict=True)]
    spread = f'{min(ratios):.2f} to {max(ratios):.2f}'
    return (
        figures.table(['memory is', 'chunk p50, ms', 'p95', 'page faults a chunk', 'memory, MB'], rows)
        + f'\n\nKept takes {statistics.median(ratios):.2f} of the time, {spread} over the turns.'
    )


if __name__ == '__main__':
    main()
