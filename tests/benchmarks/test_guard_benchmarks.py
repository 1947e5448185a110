"""The benchmarks of the guard run, give the same twice, and their auditor sees what is wrong."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from benchmarks.auditor import Audit, Book
from benchmarks.figures import wilson
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guard.motion import JointsState
from cosmos3_ros.guard.tracker import Braker

MS = 1_000_000
PANDA = load_limits('panda')


@dataclasses.dataclass(frozen=True)
class Command:
    stamp_ns: int
    times_ns: Any
    positions: Any
    velocities: Any
    accelerations: Any


@pytest.fixture
def stop() -> Command:
    """A sound command: a stop of an arm under way."""
    state = JointsState(np.array([0.0, 0.0, 0.0, -1.5, 0.0, 1.8, 0.0]), 0.4 * PANDA.velocity, np.zeros(7))
    points = Braker(PANDA, 40 * MS, 10 * MS).brake(state, 0).points
    return Command(0, points.times_ns, points.positions, points.velocities, points.accelerations)


def violations(*commands: Command, arm: Any = None) -> list[str]:
    book, audit, before, number = Book(), Audit(), None, -1
    for command in commands:
        where = command.positions[0] if arm is None else arm
        number = book.note(command, PANDA, before, number, command.stamp_ns, where)
        before = command
    audit.judge(book)
    assert audit.violations == 0 or audit.first
    return audit.first


def changed(command: Command, field: str, row: int, joint: int, value: float) -> Command:
    array = getattr(command, field).copy()
    array[row, joint] = value
    return dataclasses.replace(command, **{field: array})


def run(repository, script: str, *arguments: object) -> str:
    command = [sys.executable, str(repository / 'benchmarks' / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_auditor_has_nothing_to_say_of_a_sound_command(stop):
    assert violations(stop) == []


@pytest.mark.parametrize(
    ('field', 'value', 'said'),
    [
        ('positions', np.nan, 'not finite'),
        ('positions', 3.0, 'position limit'),
        ('velocities', 2.2, 'velocity limit'),
        ('accelerations', 15.1, 'acceleration limit'),
    ],
)
def test_the_auditor_sees_one_number_beyond_its_limit(stop, field, value, said):
    assert any(said in text for text in violations(changed(stop, field, 2, 0, value)))


def test_the_auditor_sees_positions_that_velocities_do_not_tell_of(stop):
    moved = stop.positions.copy()
    moved[3:] += 0.05
    assert any('mean velocity' in text for text in violations(dataclasses.replace(stop, positions=moved)))


def test_the_auditor_sees_a_command_that_does_not_end_at_rest(stop):
    assert any('end' in text for text in violations(changed(stop, 'velocities', -1, 3, 1e-6)))


def test_the_auditor_sees_a_command_that_does_not_go_on_from_the_one_before(stop):
    """Halfway through a stop, the rest of it goes on; the same rest a milliradian aside does not."""
    rest = Command(40 * MS, stop.times_ns[4:] - stop.times_ns[4], *(a[4:] for a in _columns(stop)))
    assert stop.times_ns[4] == pytest.approx(40 * MS, abs=4 * MS)
    rest = dataclasses.replace(rest, stamp_ns=int(stop.times_ns[4]))
    assert violations(stop, rest) == []
    aside = dataclasses.replace(rest, positions=rest.positions + 1e-3)
    assert any('continue' in text for text in violations(stop, aside))


def _columns(command: Command) -> tuple[Any, Any, Any]:
    return command.positions, command.velocities, command.accelerations


def test_the_interval_of_a_proportion_is_that_of_wilson():
    assert wilson(0, 100) == pytest.approx((0.0, 0.0370), abs=1e-4)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_same_seed_gives_the_same_sequences_and_a_finished_run_is_not_repeated(repository, tmp_path):
    states = [tmp_path / 'first.json', tmp_path / 'second.json']
    for state in states:
        run(repository, 'guard_sequences.py', '--sequences', 40, '--seed', 5, '--state', state)
    first, second = (json.loads(state.read_text()) for state in states)
    seconds = first['seconds']
    assert first['commands'] > 100
    assert first['violations'] == 0
    assert {**first, 'seconds': 0} == {**second, 'seconds': 0}
    run(repository, 'guard_sequences.py', '--sequences', 40, '--seed', 5, '--state', states[0])
    assert json.loads(states[0].read_text())['seconds'] == seconds


def test_injected_violations_of_limits_are_all_refused_and_clean_motion_is_not(repository):
    told = run(repository, 'guard_alarms.py', '--minutes', 0.2, '--trials', 2)
    rows = [line for line in told.splitlines() if ' limit |' in line]
    assert len(rows) == 4
    assert all('| 100.00% |' in row for row in rows)
    assert '| 0.00% |' in next(line for line in told.splitlines() if line.startswith('| simulated expert'))


def test_the_time_of_a_judgement_is_measured_on_chunks_that_are_accepted(repository):
    told = run(repository, 'guard.py', '--repetitions', 40, '--boundaries', 0)
    assert '40 chunks, of which 40 were accepted' in told
