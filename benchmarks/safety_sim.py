"""How well verdicts of imagination work where the truth is known: `cosmos3 safety-sim`, kept as a result.

    nice -n 10 python benchmarks/safety_sim.py --output FOLDER --workers 2 --save

A call that was interrupted goes on where it stopped, if it is given the same folder. See docs/safety_simulation.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from figures import facts, machine, save

from cosmos3_ros.safety_options import LATENCY_S, SafetyOptions
from cosmos3_ros.safety_sim import simulate
from cosmos3_ros.safety_tables import sections


@contextmanager
def lines() -> Iterator[Callable[[str, float], None]]:
    """Progress as lines of text, for logs."""
    yield lambda what, share: print(f'{what}: {share:.1%}', flush=True)


def main() -> int:
    """Run, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, default=Path('safety_output'), help='folder of the run')
    parser.add_argument('--checkpoint', default='', help='directory or hub id; empty: a tiny random one')
    parser.add_argument('--contract', default='demo_joint_pos', help='contract')
    parser.add_argument('--rung', default='small', help='how well chunks are imagined')
    parser.add_argument('--proposer', default='expert', choices=('expert', 'checkpoint'), help='who makes the chunks')
    parser.add_argument('--job', default='pick', choices=('pick', 'reach'), help='what the arm is about')
    parser.add_argument('--latency', type=float, default=LATENCY_S, help='seconds from an observation to its chunk')
    parser.add_argument('--false-alarm-rate', type=float, default=0.05, help='of the band of one monitor')
    parser.add_argument('--pictures', action='store_true', help='also compare what is seen with what was imagined')
    parser.add_argument('--name', default='safety_sim', help='of the files in results')
    parser.add_argument('--episodes', type=int, default=25, help='with each hazard')
    parser.add_argument('--nominal', type=int, default=50, help='without one')
    parser.add_argument('--calibration-episodes', type=int, default=40, help='for the bands')
    parser.add_argument('--seed', type=int, default=0, help='decides everything')
    parser.add_argument('--workers', type=int, default=1, help='processes')
    parser.add_argument('--save', action='store_true', help='write results/NAME.json and .md')
    given = vars(parser.parse_args())
    keep, name = given.pop('save'), given.pop('name')
    outcome = simulate(SafetyOptions(**given), lines, print)
    document = {'machine': machine(), **outcome.results}
    text = '\n\n'.join(['# Safety simulation', f'{facts(document["machine"])}.', *sections(outcome.results)])
    print(text)
    if keep:
        save(name, document, text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
