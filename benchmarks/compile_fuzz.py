"""Many made-up contracts compiled: do graphs and engines come of each, and do the graphs do what the reference does?

    python benchmarks/compile_fuzz.py --examples 40 --save

Each contract is exported in float32, built with TensorRT-RTX, run in ONNX Runtime over the whole policy loop beside
PyTorch; half of them are built once more in another precision. The same seed makes the same contracts. The exit code is
1 if any of them failed. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hypothesis
from compile_cases import BOUND, FAMILIES, Case, Outcome, cases, make_checkpoint, try_case
from figures import facts, machine, save, table
from hypothesis import HealthCheck, Phase, given, settings

TARGETS = ('sm_89', 'sm_120', 'sm_86')


def main() -> None:
    """Try as many contracts as asked for, and tell what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--examples', type=int, default=40, help='contracts (default: 40)')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='begin no further contract after this time')
    parser.add_argument('--seed', type=int, default=0, help='decides what they are (default: 0)')
    parser.add_argument('--save', action='store_true', help='keep figures and tables in benchmarks/results')
    options = parser.parse_args()
    began = time.monotonic()
    results: list[tuple[Case, Outcome | str]] = []
    with tempfile.TemporaryDirectory(prefix='compile_fuzz_') as scratch:
        checkpoints = {family: make_checkpoint(Path(scratch) / family, family) for family in FAMILIES}

        for number in range(options.examples):
            if time.monotonic() - began > 60 * options.minutes:
                break
            case = draw_case(options.seed * options.examples + number)
            results.append((case, outcome_of(case, checkpoints[case.family])))
            print(f'{time.strftime("%H:%M:%S")} {len(results)}: {results[-1]}', file=sys.stderr, flush=True)
            if options.save:  # what is done is kept, however the run ends
                write(options, results, tables(results, time.monotonic() - began))
    print(tables(results, time.monotonic() - began))
    raise SystemExit(int(bool(failures(results))))


def draw_case(seed: int) -> Case:
    """One contract, drawn by itself: within a run Hypothesis varies what it has tried already."""
    drawn: list[Case] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=3, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )
    @given(case=cases())
    def collect(case: Case) -> None:
        drawn.append(case)

    collect()
    return drawn[-1]  # it begins with the simplest that there is, and likes what is next to it


def outcome_of(case: Case, checkpoint: Path) -> Outcome | str:
    """What came of a case; of one that failed, the reason."""
    target = 'sm_89' if case.precision == 'fp8' else TARGETS[case.seed % len(TARGETS)]
    with tempfile.TemporaryDirectory(prefix='compile_fuzz_case_') as folder:
        try:
            return try_case(case, checkpoint, Path(folder), target, build_again=True)
        except Exception:  # whatever it is, it is what this script looks for
            return traceback.format_exc()


def failures(results: list[tuple[Case, Outcome | str]]) -> list[str]:
    """What went wrong, in words."""
    return [f'{case}: {outcome}' for case, outcome in results if isinstance(outcome, str) or not outcome.equal]


def tables(results: list[tuple[Case, Outcome | str]], seconds: float) -> str:
    """The outcome in Markdown."""
    found = [outcome for _, outcome in results if isinstance(outcome, Outcome)]
    wrong = failures(results)
    worst = [
        ('action rows', f'{max((o.rows for o in found), default=0.0):.1e}', f'{BOUND:g}'),
        ('latents of the imagined video', f'{max((o.latents for o in found), default=0.0):.1e}', f'{BOUND:g}'),
        ('its pixels, levels of 255', str(max((o.levels for o in found), default=0)), '1'),
    ]
    kinds = Counter((trait, value) for case, _ in results for trait, value in case.traits.items())
    rows = [(f'{trait}: {value}', number) for (trait, value), number in sorted(kinds.items())]
    tokens = [outcome.tokens for outcome in found] or [0]
    lines = [
        f'**{len(results)}** contracts, **{len(wrong)}** failed; {min(tokens)} to {max(tokens)} tokens; '
        f'{sum(o.layers for o in found):,} layers of engines; {seconds:,.0f} s.',
        '',
        table(('largest difference, float32', 'found', 'allowed'), worst),
        '',
        table(('contracts with', 'number'), rows),
        *(f'\n```\n{failure}\n```' for failure in wrong),
    ]
    return '\n'.join(lines)


def write(options: argparse.Namespace, results: list[tuple[Case, Outcome | str]], text: str) -> None:
    """Keep figures and tables."""
    packages = ('torch', 'onnx', 'onnxruntime', 'tensorrt-rtx-cu13-libs')
    here = machine() | {name: version(name) for name in packages}
    entries: list[dict[str, Any]] = [
        case.traits
        | {'seed': case.seed, 'size': case.document['views']['size'], 'steps': case.document['sampler']['steps']}
        | ({'failed': outcome} if isinstance(outcome, str) else asdict(outcome))
        for case, outcome in results
    ]
    document = {'machine': here, 'examples': options.examples, 'seed': options.seed, 'contracts': entries}
    head = (
        '# Made-up contracts, compiled\n\n'
        'Tiny checkpoints of random weights. Graphs in float32 run in ONNX Runtime against PyTorch over the whole\n'
        'policy loop. TensorRT-RTX builds engines in float32, of about half in a second precision; none runs here.\n'
    )
    save('compile_fuzz', document, f'{head}\n{text}\n\n{facts(here)}')


if __name__ == '__main__':
    main()
