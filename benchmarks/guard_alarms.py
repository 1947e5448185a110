"""How often the guard refuses what is good, and how often it lets through what is not.

    python benchmarks/guard_alarms.py --episode FOLDER --save

False alarms are counted on clean motion, recorded and simulated, that a policy predicts perfectly and an arm follows
with a small lag. Faults of each kind are put into the same motion while it goes on; the unaltered chunk follows, so
that the next trial meets an arm in motion. Rates come with Wilson's 95 % interval. See README.md for what counts.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from expert import (
    GRIPPER,
    REPLAN_ROWS,
    SET_IN_S,
    STEP_NS,
    TELEOPERATION,
    Conditions,
    Motion,
    Rehearsal,
    from_rest,
    simulated_expert,
)
from faults import CHUNK_FAULTS, ROBOT_FAULTS, misbehave
from figures import facts, machine, save, table, wilson
from recorded import droid_episode

from cosmos3_ros.guard.checks import Acceptance
from cosmos3_ros.guard.guard import Guard, GuardState
from cosmos3_ros.guard.limits import RobotLimits, load_limits

STATE_TRIAL_S = 4.0


@dataclass
class Tally:
    """Trials of one kind and what became of them."""

    trials: int = 0
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, reason: str, text: str = '') -> None:
        """Note one trial; no reason means that nothing was refused."""
        self.trials += 1
        if reason:
            self.refused += 1
            self.reasons[reason] += 1
            if len(self.examples) < 10:
                self.examples.append(text)

    def figures(self) -> dict[str, Any]:
        """Counts, rate and interval."""
        low, high = wilson(self.refused, self.trials)
        return {
            'trials': self.trials,
            'refused': self.refused,
            'rate': self.refused / max(1, self.trials),
            'interval': [low, high],
            'reasons': dict(self.reasons),
            'examples': self.examples,
        }


class Stage:
    """Rehearsals of one motion, one after another: a new one, from rest, when the arm was stopped."""

    def __init__(self, limits: RobotLimits, motion: Motion, seed: int) -> None:
        self.limits, self.motion, self.seed = limits, motion, seed
        self.restarts = 0

    def chunks(self) -> Iterator[tuple[Rehearsal, int, float]]:
        """For each chunk: the rehearsal as it arrives, when it was observed (ns), when in the motion that is (s)."""
        since_s = 0.0
        while since_s < self.motion.duration_s - 3.0:
            rehearsal = self._rehearsal(since_s)
            observed, last = 0, int((rehearsal.motion.duration_s - 3.0) * 1e9)
            while observed < last:
                stamp = rehearsal.origin_ns + observed
                rehearsal.until(stamp)
                rehearsal.until(stamp + rehearsal.delay_ns())
                at_s = since_s + max(0.0, observed / 1e9 - SET_IN_S / 2)
                yield rehearsal, stamp, at_s
                observed += REPLAN_ROWS * STEP_NS
                if rehearsal.guard.state not in (GuardState.TRACKING, GuardState.WAITING):
                    break
            since_s += max(REPLAN_ROWS * STEP_NS / 1e9, observed / 1e9 - SET_IN_S / 2)
            self.restarts += observed < last

    def _rehearsal(self, since_s: float) -> Rehearsal:
        rng = np.random.default_rng([self.seed, self.restarts])
        return Rehearsal(Guard(self.limits, gripper_names=GRIPPER), from_rest(self.motion, since_s), Conditions(), rng)


def false_alarms(limits: RobotLimits, motion: Motion, repeats: int, seed: int) -> dict[str, Any]:
    """Play a motion `repeats` times and count refused chunks and stops."""
    tally, stops, restarts = Tally(), Counter[str](), 0
    for repeat in range(repeats):
        stage = Stage(limits, motion, seed + repeat)
        seen: list[Rehearsal] = []
        for rehearsal, stamp, at in stage.chunks():
            if not seen or seen[-1] is not rehearsal:
                seen.append(rehearsal)
            verdict = rehearsal.guard.on_chunk(rehearsal.chunk(stamp), rehearsal.now_ns)
            good = isinstance(verdict, Acceptance)
            tally.add('' if good else verdict.reason.name, '' if good else f'{at:.2f} s: {verdict.text}')
        restarts += stage.restarts
        for rehearsal in seen:
            stops.update({r.name: n for r, n in rehearsal.guard.statistics().stops.items()})
    minutes = motion.duration_s * repeats / 60
    name = {'motion': motion.name, 'minutes': round(minutes, 2), 'repeats': repeats}
    return {**name, **tally.figures(), 'stops': dict(stops), 'restarts': restarts}


def chunk_faults(limits: RobotLimits, trials: int, seed: int) -> dict[str, dict[str, Any]]:
    """Faulty chunks into a motion that goes on; a trial each, and then the chunk as it should have been."""
    tallies = {name: Tally() for name in CHUNK_FAULTS}
    rng = np.random.default_rng(seed)
    seconds = trials * len(tallies) / 4 * REPLAN_ROWS * STEP_NS / 1e9
    motion = simulated_expert(limits, 1.2 * seconds + 60.0, seed, TELEOPERATION)
    names = list(tallies)
    for number, (rehearsal, stamp, _) in enumerate(Stage(limits, motion, seed).chunks()):
        if rehearsal.guard.state is GuardState.TRACKING:
            for k in range(4):
                name = names[(4 * number + k) % len(names)]
                chunk = CHUNK_FAULTS[name](rehearsal, stamp, rng)
                verdict = rehearsal.guard.on_chunk(chunk, rehearsal.now_ns)
                refused = not isinstance(verdict, Acceptance)
                tallies[name].add(verdict.reason.name if refused else '', verdict.text if refused else '')
        rehearsal.guard.on_chunk(rehearsal.chunk(stamp), rehearsal.now_ns)
        if min(tally.trials for tally in tallies.values()) >= trials:
            break
    return {name: tally.figures() for name, tally in tallies.items()}


def robot_faults(limits: RobotLimits, trials: int, seed: int) -> dict[str, dict[str, Any]]:
    """Faults of the robot while it moves: detected if the guard stops it, or refuses a chunk, within four seconds."""
    found = {}
    for kind, name in enumerate(ROBOT_FAULTS):
        tally, worst = Tally(), 0.0
        for trial in range(trials):
            motion = simulated_expert(limits, 20.0, seed + 1000 * kind + trial, TELEOPERATION)
            rehearsal = Rehearsal(
                Guard(limits, gripper_names=GRIPPER), motion, Conditions(), np.random.default_rng([seed, kind, trial])
            )
            outcome = misbehave(rehearsal, ROBOT_FAULTS[name], STATE_TRIAL_S)
            tally.add(outcome.reason, outcome.reason)
            worst = max(worst, outcome.seconds)
        found[name] = {**tally.figures(), 'slowest_s': round(worst, 3)}
    return found


def report(document: dict[str, Any]) -> str:
    """Everything as Markdown."""

    def reasons(figures: dict[str, Any]) -> str:
        return ', '.join(f'{name} {count}' for name, count in figures['reasons'].items()) or '-'

    def row(name: str, figures: dict[str, Any]) -> list[object]:
        low, high = figures['interval']
        rate, interval = f'{figures["rate"]:.2%}', f'{low:.2%} to {high:.2%}'
        return [name, figures['trials'], figures['refused'], rate, interval, reasons(figures)]

    alarms = [row(f'{f["motion"]}, {f["minutes"]} min', f) for f in document['false_alarms']]
    faults = [row(name, f) for kind in ('chunk_faults', 'robot_faults') for name, f in document[kind].items()]
    head = ('rate', '95 % interval', 'reasons')
    parts = [
        '# Alarms of the guard, false and missed',
        facts(document['machine']) + '.',
        '## Clean motion',
        table(('motion', 'chunks', 'refused', *head), alarms),
        *(f'- {text}' for f in document['false_alarms'] for text in f['examples']),
        '## Injected faults',
        table(('fault', 'trials', 'detected', *head), faults),
    ]
    return '\n\n'.join(parts)


def main() -> int:
    """Count, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=12.0, help='of clean motion of each sort')
    parser.add_argument('--trials', type=int, default=200, help='of each fault')
    parser.add_argument('--episode', type=Path, help='folder of the recorded DROID episode')
    parser.add_argument('--seed', type=int, default=0, help='decides everything')
    parser.add_argument('--save', action='store_true', help='write results/guard_alarms.json and .md')
    options = parser.parse_args()
    limits = load_limits('panda')
    motions = [(simulated_expert(limits, options.minutes * 60, options.seed, TELEOPERATION), 1)]
    if options.episode:
        episode = droid_episode(options.episode)
        repeats = max(1, round(options.minutes * 60 / episode.duration_s))
        motions += [(episode, repeats), (droid_episode(options.episode, smooth_rows=1.0), repeats)]
    document = {
        'machine': machine(),
        'false_alarms': [false_alarms(limits, motion, repeats, options.seed) for motion, repeats in motions],
        'chunk_faults': chunk_faults(limits, options.trials, options.seed),
        'robot_faults': robot_faults(limits, options.trials, options.seed),
    }
    text = report(document)
    print(text)
    if options.save:
        save('guard_alarms', document, text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
