"""The benchmark of a tick runs and accounts for all of its time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_benchmark_of_a_tick_prints_every_stage_of_every_variant(repository: Path) -> None:
    options = ('--contract', 'demo_joint_pos', '--repeats', '1', '--pause', '0', '--threads', '1')
    command = [sys.executable, 'benchmarks/tick.py', *options]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tables = done.stdout.split('### ')[1:]
    assert len(tables) == 2
    for table in tables:
        rows = {cells[1].strip(): cells[2:-1] for line in table.splitlines() if (cells := line.split('|'))[1:]}
        stages = ('compose', 'encode', 'noise', 'prefix', 'denoise', 'decode', 'everything else')
        for column in range(4):
            assert float(rows['processor time'][column].split('/')[0]) > 0.0
            spent = [float(rows[stage][column].split('/')[1]) for stage in stages]
            assert abs(sum(spent) - float(rows['the whole call'][column].split('/')[1])) < 0.1
