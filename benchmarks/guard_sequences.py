"""A million short lives of a guard: whatever a policy sends, does any command break a limit of the robot?

    python benchmarks/guard_sequences.py --sequences 1000000 --state FILE --save
    python benchmarks/guard_sequences.py --sequences 2000                   # a quick look

Each sequence is a guard of its own that gets a few chunks, good, bad and absurd, while other things happen. An auditor
that shares no code with the guard judges every command that left. The same seed gives the same sequences; with
`--state` a run that was interrupted goes on where it was. The exit code is 1 if there was any violation. See README.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import hazards
import numpy as np
from auditor import Audit, Book
from expert import commanded
from figures import commit, machine, save, table
from numpy.typing import NDArray

from cosmos3_ros.guard.checks import Acceptance, CheckOptions
from cosmos3_ros.guard.chunk import ReceivedChunk
from cosmos3_ros.guard.guard import Command, Guard
from cosmos3_ros.guard.limits import RobotLimits, load_limits
from cosmos3_ros.guard.options import GuardOptions

Array = NDArray[np.float64]

MS = hazards.MS
BLOCK = 500
"""Sequences that are made from one seed, audited together and noted together."""

# Good chunks come more often, so that there is motion that the others can meet.
CHUNKS = (*hazards.CHUNKS, *[hazards.gentle] * 3, *[hazards.swift] * 7, *[hazards.offset] * 2, *[hazards.late] * 2)
EVENTS = (*hazards.EVENTS, *hazards.DISTURBANCES)
SCALES = (1.0, 1.0, 1.0, 0.5, 0.1)
PERIODS_MS = (10, 10, 20, 50)
EMBODIED = 0.2
"""Share of sequences in which self-collision and tool speed are checked: they take time, and suit few random poses."""
PACES = (0.1, 0.5, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.1, 1.3, 2.5, 6.0)
"""Time between ticks as a share of the control period."""


class Life:
    """One guard, one arm and one clock: the bench that the hazards act on."""

    def __init__(self, limits: RobotLimits, options: GuardOptions, home: Array, book: Book) -> None:
        self.limits = limits
        self.guard = Guard(limits, options)
        self.auditor = self
        self.book = book
        self.now = 1_700_000_000_000_000_000
        self.arm = home
        self.follows = self.reports = True
        self.told: Command | None = None
        self.sequence = 0
        self.verdicts: Counter[str] = Counter()
        self._before: int = -1
        self.guard.activate(self.now)
        self.report()
        self.now += 400 * MS
        self.report()

    def report(self) -> None:
        """The arm says where it is; its speeds have to be found out."""
        self.guard.on_joint_state(self.now, self.now, self.limits.joint_names, self.arm)

    def command(self, command: Command) -> None:
        """Note a command for the audit, with the one that was in force and the place of the arm."""
        self._before = self.book.note(command, self.limits, self.told, self._before, self.now, self.arm)

    def tick(self) -> None:
        """One control period."""
        command = self.guard.tick(self.now)
        if command is not None:
            self.command(command)
            self.told = command

    def pass_time(self, ms: float) -> None:
        """The arm goes on by itself."""
        self.now += round(ms * MS)
        if self.told is not None and self.follows:
            self.arm = commanded(self.told, self.now)

    def wave(self, amplitude: float, period: float, joints: Array) -> Array:
        """A gentle motion of some joints from where the arm stands: rad, s."""
        t = np.arange(1, 33) * (hazards.STEP * 1e-9 * 2 * np.pi / period)
        direction = np.zeros(len(self.arm))
        direction[joints] = amplitude / 2
        return self.arm + (1 - np.cos(t))[:, None] * direction

    def send(self, positions: Any, **changes: Any) -> None:
        """A chunk arrives."""
        self.sequence += 1
        fields = {
            'stamp_ns': self.now,
            'epoch': self.guard.epoch,
            'sequence': self.sequence,
            'step_ns': hazards.STEP,
            'joint_names': self.limits.joint_names,
            'positions': positions,
        }
        verdict = self.guard.on_chunk(ReceivedChunk(**{**fields, **changes}), self.now)
        self.verdicts['accepted' if isinstance(verdict, Acceptance) else verdict.reason.name] += 1


def live(life: Life, rng: np.random.Generator, period_ms: int) -> None:
    """Two to four chunks and now and then something else, with a few ticks after each."""
    for number in range(rng.integers(2, 5)):
        kinds = CHUNKS if number else (hazards.gentle, hazards.swift, CHUNKS[rng.integers(len(CHUNKS))])
        rows, changes = kinds[rng.integers(len(kinds))](life, rng)
        life.send(rows, **changes)
        _ticks(life, rng, period_ms)
        if rng.random() < 0.25:
            EVENTS[rng.integers(len(EVENTS))](life, rng)
            _ticks(life, rng, period_ms)


def _ticks(life: Life, rng: np.random.Generator, period_ms: int) -> None:
    for pace in rng.integers(len(PACES), size=rng.integers(1, 4)):
        life.pass_time(PACES[pace] * period_ms)
        if life.reports:
            life.report()
        life.tick()


def home(limits: RobotLimits, rng: np.random.Generator) -> Array:
    """Where an arm stands at first: anywhere, in the middle, or close to the end of some joint."""
    kind = rng.random()
    if kind < 0.2:
        return hazards.MIDDLE.copy()
    pose = rng.uniform(limits.lower + 0.03, limits.upper - 0.03)
    if kind < 0.5:
        joint, gap = rng.integers(len(pose)), rng.uniform(0.0, 0.1)
        pose[joint] = limits.lower[joint] + gap if rng.random() < 0.5 else limits.upper[joint] - gap
    return pose


def run_block(task: tuple[int, int, int]) -> dict[str, Any]:
    """Run `count` sequences of one block of a seed and audit them; the totals."""
    seed, block, count = task
    rng, robots = np.random.default_rng([seed, block]), _robots()
    audit, verdicts, stops = Audit(), Counter[str](), Counter[str]()
    book = Book()
    for index in range(count):
        limits = robots[SCALES[rng.integers(len(SCALES))], bool(rng.random() < EMBODIED)]
        period_ms = PERIODS_MS[rng.integers(len(PERIODS_MS))]
        book.label = f'block {block}, sequence {index}'
        life = Life(
            limits,
            _options(period_ms, replay=bool(rng.random() < 0.3), slowing=bool(rng.random() < 0.3)),
            home(limits, rng),
            book,
        )
        try:
            live(life, rng, period_ms)
        except Exception:  # nothing that arrives may make the guard raise
            audit.violation(book.label, f'raised: {traceback.format_exc(limit=-2)}')
        verdicts += life.verdicts
        stops.update({reason.name: n for reason, n in life.guard.statistics().stops.items()})
    if stops['OUTPUT_CHECK']:
        audit.violation(f'block {block}', 'the last check withheld a command')
    audit.judge(book)
    return {'block': block, 'sequences': count, 'verdicts': dict(verdicts), 'stops': dict(stops), **audit.result()}


@cache
def _robots() -> dict[tuple[float, bool], RobotLimits]:
    """By the share of the speeds that is used, and whether the guard knows the arm as a body."""
    panda = load_limits('panda')
    robots = {(scale, True): panda.scaled(scale) for scale in set(SCALES)}
    return robots | {(scale, False): replace(limits, chain=None) for (scale, _), limits in robots.items()}


@cache
def _options(period_ms: int, *, replay: bool, slowing: bool) -> GuardOptions:
    return GuardOptions(
        period_ns=period_ms * MS,
        commit_ns=max(30, 3 * period_ms) * MS,
        reset_cooldown_ns=20 * MS,
        checks=CheckOptions(start_jump_rad=0.1, replay_from_rest=replay, slowest_pace=0.3 if slowing else 1.0),
    )


class Ledger:
    """Totals of the blocks done, kept in a file so that a run can be continued."""

    def __init__(self, path: Path | None, seed: int) -> None:
        self._path = path
        self._commit = commit()  # of the code that runs, whatever happens to the checkout meanwhile
        self.totals: dict[str, Any] = {
            'seed': seed,
            'done': [],
            'sequences': 0,
            'commands': 0,
            'points': 0,
            'verdicts': {},
            'stops': {},
            'smallest': {},
            'largest': {},
            'violations': 0,
            'first_violations': [],
            'seconds': 0.0,
            'commits': [],
        }
        if path is not None and path.is_file():
            self.totals = json.loads(path.read_text(encoding='utf-8'))
            if self.totals['seed'] != seed:
                raise SystemExit(f'{path} holds a run of seed {self.totals["seed"]}, not {seed}: name another file')

    def add(self, found: dict[str, Any]) -> None:
        """Add a block."""
        totals = self.totals
        totals['done'].append(found['block'])
        for key in ('sequences', 'commands', 'points', 'violations'):
            totals[key] += found[key]
        for key in ('verdicts', 'stops'):
            totals[key] = dict(Counter(totals[key]) + Counter(found[key]))
        for key, better in (('smallest', min), ('largest', max)):
            for name, value in found[key].items():
                totals[key][name] = better(value, totals[key].get(name, value))
        totals['first_violations'] = (totals['first_violations'] + found['first_violations'])[:20]

    def keep(self, seconds: float) -> None:
        """Write the file, whole or not at all."""
        self.totals['seconds'] = round(seconds, 1)
        self.totals['commits'] = sorted({*self.totals['commits'], self._commit})
        if self._path is None:
            return
        beside = self._path.with_suffix('.new')
        beside.write_text(json.dumps(self.totals), encoding='utf-8')
        os.replace(beside, self._path)


def run(sequences: int, workers: int, seed: int, state: Path | None) -> dict[str, Any]:
    """Run what is missing of the first `sequences` sequences of a seed."""
    ledger = Ledger(state, seed)
    done = set(ledger.totals['done'])
    blocks = -(-sequences // BLOCK)
    tasks = [(seed, b, min(BLOCK, sequences - b * BLOCK)) for b in range(blocks) if b not in done]
    began, spent, told = time.monotonic(), ledger.totals['seconds'], -np.inf
    started_with = ledger.totals['sequences']
    for found in _results(tasks, workers):
        ledger.add(found)
        elapsed = time.monotonic() - began
        if elapsed - told >= 20.0 or len(ledger.totals['done']) == blocks:
            told = elapsed
            ledger.keep(spent + elapsed)
            rate = (ledger.totals['sequences'] - started_with) / elapsed
            left = (sequences - ledger.totals['sequences']) / rate
            print(
                f'{ledger.totals["sequences"]:>9,} of {sequences:,} sequences, {ledger.totals["commands"]:,} commands, '
                f'{ledger.totals["violations"]} violations, {rate:.0f}/s, {left / 60:.1f} min left',
                flush=True,
            )
    return ledger.totals


def _results(tasks: list[tuple[int, int, int]], workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1:
        yield from map(run_block, tasks)
        return
    with multiprocessing.get_context('spawn').Pool(workers) as pool:
        yield from pool.imap_unordered(run_block, tasks)


def report(totals: dict[str, Any]) -> str:
    """The totals as Markdown."""
    verdicts = sorted(totals['verdicts'].items(), key=lambda item: -item[1])
    chunks = sum(totals['verdicts'].values())
    lines = [
        f'**{totals["sequences"]:,}** sequences, {chunks:,} chunks, {totals["commands"]:,} commands with '
        f'{totals["points"]:,} points, **{totals["violations"]} violations**; {totals["seconds"]:,.0f} s.',
        table(('chunks', 'number', 'share'), [(name, f'{n:,}', f'{n / chunks:.2%}') for name, n in verdicts]),
        table(('stops begun', 'number'), [(name, f'{n:,}') for name, n in sorted(totals['stops'].items())]),
        table(('smallest margin', 'share of the limit'), [(k, f'{v:.3g}') for k, v in totals['smallest'].items()]),
        table(('largest excess, interpolated', 'value'), [(k, f'{v:.3g}') for k, v in totals['largest'].items()]),
    ]
    return '\n\n'.join(lines)


def main() -> int:
    """Run, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sequences', type=int, default=10_000, help='how many; whole blocks of 500 run fastest')
    parser.add_argument('--workers', type=int, default=1, help='processes')
    parser.add_argument('--seed', type=int, default=0, help='decides every sequence')
    parser.add_argument('--state', type=Path, help='file that a run can be continued from')
    parser.add_argument('--save', action='store_true', help='write results/guard_sequences.json and .md')
    options = parser.parse_args()
    totals = run(options.sequences, options.workers, options.seed, options.state)
    text = report(totals)
    print(text)
    for violation in totals['first_violations']:
        print(violation)
    if options.save:
        figures = {key: value for key, value in totals.items() if key != 'done'}
        save('guard_sequences', {'machine': machine(), **figures}, f'# Chunk sequences against the guard\n\n{text}')
    return 1 if totals['violations'] else 0


if __name__ == '__main__':
    sys.exit(main())
