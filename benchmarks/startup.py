"""How long a process takes until it can make its first chunk: ours, diffusers' pipeline, and PyTorch alone.

    python benchmarks/startup.py --save

Each start is a new process, and they take turns, so that the load of other programs falls on all. What counts is the
processor time, for it does not depend on how busy the machine is. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import figures

STARTS: Mapping[str, str] = {
    'PyTorch alone': 'import torch',
    'ours: an empty policy node': 'import cosmos3_ros.policy_node',
    'ours: the checkpoint loaded': 'import engine; engine.load({root!r})',
    "diffusers: the pipeline's class": 'from diffusers import Cosmos3OmniPipeline',
}
OURS, THEIRS = 'ours: the checkpoint loaded', "diffusers: the pipeline's class"
HEAD = ('what starts', 'processor, s', 'wall, s', 'processor, sources compiled anew, s')
UNCACHED = 'PYTHONDONTWRITEBYTECODE'


def start(code: str, *, anew: bool) -> tuple[float, float]:
    """Seconds of processor and of wall time of one process.

    Args:
        code: What it does.
        anew: Whether Python has to compile all sources, as where it may not keep what it compiled.
    """
    environment = {name: value for name, value in os.environ.items() if name != UNCACHED}
    with tempfile.TemporaryDirectory() as empty:
        if anew:
            environment |= {UNCACHED: '1', 'PYTHONPYCACHEPREFIX': empty}
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=False
        )
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f'{code} failed:\n{done.stderr[-2000:]}')
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    """Measure, print the table, keep it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--rounds', type=int, default=5, help='starts of each')
    parser.add_argument('--save', action='store_true', help='keep figures and table in benchmarks/results')
    options = parser.parse_args()
    import engine

    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in STARTS}
    with tempfile.TemporaryDirectory() as scratch:
        root = str(engine.make_tiny(Path(scratch) / 'tiny'))
        codes = {name: code.format(root=root) for name, code in STARTS.items()}
        for code in codes.values():  # so that Python has compiled everything once
            start(code, anew=False)
        for number in range(options.rounds):
            print(f'round {number + 1} of {options.rounds}', file=sys.stderr)
            for name, code in codes.items():
                measured[name].append((*start(code, anew=False), start(code, anew=True)[0]))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in measured.items()
    }
    rows = [(name, *(f'{value:.1f}' for value in values)) for name, values in medians.items()]
    ratios = [medians[THEIRS][column] / medians[OURS][column] for column in (0, 2)]
    text = (
        f'{figures.table(HEAD, rows)}\n\nMedians of {options.rounds} processes each. To import the pipeline of '
        f'diffusers takes {ratios[0]:.1f} times the processor time of loading our checkpoint, and {ratios[1]:.1f} '
        'times if all sources are compiled anew.'
    )
    print(text)
    if options.save:
        found = figures.machine()
        document = {'machine': found, 'rounds': options.rounds, 'seconds': measured}
        figures.save('startup', document, f'# Until the first chunk\n\n{figures.facts(found)}.\n\n{text}')


if __name__ == '__main__':
    main()
