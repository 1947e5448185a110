"""What it costs policy and guard that a reasoner thinks without a pause, on the same weights and in the same process.

    python benchmarks/thinking.py --save

As in service: a guard process at 100 Hz, what it hears and a recorder of every topic beside it, and a host process in
which a policy makes chunks while a reasoner, or nobody, uses the same weights. Both take turns, so that the load of
other programs falls on both. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import control_period
import figures
import numpy as np
import rclpy

import engine

ALONE, THINKING = 'policy alone', 'a reasoner thinks'
GOAL = 1.1
PERIOD_MS = control_period.PERIOD_S * 1e3
HEAD = (
    '',
    'chunk, p50 ms',
    'p95',
    'of it wait, p95',
    'longer by, p95',
    'chunks',
    'tokens/s',
    'guard off by p50 ms',
    'p99',
    'worst',
    'commands',
)

HOST = """
import json, os, sys, threading, time
os.nice(5)  # as the host process does
import numpy as np, torch
import engine
from engine.reasoner_talk import GREEDY, Picture, user
from engine.turns import Cancelled
from dataclasses import replace
from policy_latency import INSTRUCTION, make_observation

checkpoint, contract, seconds, thinks, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = engine.load(checkpoint)
contract = engine.load_contract(contract)
policy, observation = model.policy(contract), make_observation(contract)
policy.prepare(INSTRUCTION)
policy.infer(observation)
over, tokens = threading.Event(), []
words = user(Picture(observation.images['wrist'][::2, ::2].copy()), 'What should the robot do next, and why? ' * 8)

def think():
    reasoner = model.reasoner().without_guesses()  # random weights babble, and guesses would come true too often
    while not over.is_set():
        try:
            answer = reasoner.generate(
                (words,), sampling=replace(GREEDY, max_tokens=64), cancelled=over.is_set
            )
            tokens.append(answer.tokens)
        except Cancelled:
            return

thread = threading.Thread(target=think)
if thinks == 'yes':
    thread.start()
chunks, waits, end, seed = [], [], time.monotonic() + float(seconds), 0
gaps = np.random.default_rng(0)
print('ready', flush=True)
while time.monotonic() < end:
    time.sleep(gaps.uniform(0.02, 0.12))
    spent = policy.infer(observation, seed).seconds
    chunks.append(spent['total'])
    waits.append(spent['wait'])
    seed += 1
over.set()
if thinks == 'yes':
    thread.join()
print(json.dumps({'chunks_s': chunks, 'waits_s': waits, 'tokens': sum(tokens)}), flush=True)
"""


@dataclass
class Side:
    """One of the two: figures of all its turns."""

    name: str
    chunks_s: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    periods_ms: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def longer(self) -> np.ndarray:
        """By which share of itself each chunk was longer for waiting."""
        waits = np.array(self.waits_s)
        return waits / (np.array(self.chunks_s) - waits)

    @property
    def off_ms(self) -> np.ndarray:
        """How far the time between two commands was from the period."""
        return np.abs(np.array(self.periods_ms) - PERIOD_MS)


def main() -> None:
    """Take turns and print a table."""
    options = parse_options()
    rclpy.init(args=[])
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = options.checkpoint or str(engine.make_tiny(Path(scratch) / 'tiny'))
        sides = [Side(ALONE), Side(THINKING)]
        for turn in range(options.turns):
            for side in sides:
                print(f'# turn {turn + 1} of {options.turns}: {side.name}', file=sys.stderr)
                measure(side, checkpoint, options)
    rclpy.try_shutdown()
    text = report(sides)
    print(text)
    if options.save:
        keep(options, sides, text)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--checkpoint', default='', help='with a vision encoder; a tiny random one if left out')
    parser.add_argument('--contract', default='demo_joint_pos')
    parser.add_argument('--seconds', type=float, default=20.0, help='length of each turn')
    parser.add_argument('--turns', type=int, default=4, help='turns of each side')
    parser.add_argument('--threads', type=int, default=1, help='of PyTorch: the guard needs a core, too')
    parser.add_argument('--save', action='store_true', help='keep figures and table in benchmarks/results')
    return parser.parse_args()


def measure(side: Side, checkpoint: str, options: argparse.Namespace) -> None:
    """One turn: the host works while the guard's commands are timed."""
    thinks = 'yes' if side.name == THINKING else 'no'
    more = 5.0  # the host is at work before the guard is timed, and after
    arguments = [checkpoint, options.contract, str(options.seconds + 2 * more), thinks, str(options.threads)]
    host = subprocess.Popen(
        [sys.executable, '-c', HOST, *arguments], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    )
    if host.stdout is None or host.stdout.readline().strip() != 'ready':
        raise SystemExit('the host did not come up; its own words are above')
    periods, accepted, chunks = control_period.guard_periods_ms('process', options.seconds, record=True)
    print(f'# {accepted} of {chunks} chunks accepted', file=sys.stderr)
    found = json.loads(host.communicate()[0])
    side.periods_ms += periods.tolist()
    side.chunks_s += found['chunks_s']
    side.waits_s += found['waits_s']
    side.tokens += found['tokens']
    side.seconds += options.seconds + 2 * more


def row(side: Side) -> tuple[str, ...]:
    """One line of the table."""
    p50, p95 = (1e3 * np.percentile(side.chunks_s, p) for p in (50, 95))
    wait, longer = 1e3 * np.percentile(side.waits_s, 95), np.percentile(side.longer, 95)
    off50, off99 = np.percentile(side.off_ms, [50, 99])
    return (
        side.name,
        f'{p50:.1f}',
        f'{p95:.1f}',
        f'{wait:.2f}',
        f'{longer:.1%}',
        f'{len(side.chunks_s):,}',
        f'{side.tokens / side.seconds:.1f}',
        f'{off50:.3f}',
        f'{off99:.3f}',
        f'{side.off_ms.max():.2f}',
        f'{len(side.periods_ms):,}',
    )


def ratios(sides: list[Side]) -> dict[str, float]:
    """What thinking does to each figure, as a multiple of the figure without."""
    alone, thinking = sides
    return {
        'chunk, p50': float(np.percentile(thinking.chunks_s, 50) / np.percentile(alone.chunks_s, 50)),
        'chunk, p95': float(np.percentile(thinking.chunks_s, 95) / np.percentile(alone.chunks_s, 95)),
        'chunk and its wait against the chunk, p95': 1 + float(np.percentile(thinking.longer, 95)),
        'guard off by, p99': float(np.percentile(thinking.off_ms, 99) / np.percentile(alone.off_ms, 99)),
        'period of the guard, p99': float(np.percentile(thinking.periods_ms, 99) / np.percentile(alone.periods_ms, 99)),
    }


def report(sides: list[Side]) -> str:
    """The table and what it says."""
    said = ', '.join(f'{name} {value:.3f}' for name, value in ratios(sides).items())
    return f'{figures.table(HEAD, [row(side) for side in sides])}\n\nThinking over alone (goal {GOAL}): {said}.'


def keep(options: argparse.Namespace, sides: list[Side], text: str) -> None:
    """Write figures and table to `results`."""
    machine = figures.machine()
    settings: dict[str, Any] = {
        'contract': options.contract,
        'seconds of each turn': options.seconds,
        'turns': options.turns,
        'threads of PyTorch': options.threads,
    }
    document = {'machine': machine, 'settings': settings, 'sides': [vars(side) for side in sides]}
    for side in document['sides']:
        side['periods_ms'] = [round(value, 4) for value in side['periods_ms']]
    title = '# Policy and guard while a reasoner thinks'
    figures.save('thinking', document, f'{title}\n\n{figures.facts(machine)}.\n\n{figures.facts(settings)}.\n\n{text}')


if __name__ == '__main__':
    main()
