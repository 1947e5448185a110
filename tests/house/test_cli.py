"""The command line: answers at once, explains faults, and leaves nothing half-done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cosmos3_ros.cli import main


def test_help_is_answered_without_loading_the_network() -> None:
    code = (
        'import sys\nfrom cosmos3_ros.cli import main\n'
        'try:\n    main(["--help"])\nexcept SystemExit as end:\n    assert end.code == 0\n'
        'assert not {"torch", "rclpy", "mujoco"} & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, timeout=60)


def test_a_tiny_checkpoint_is_made_and_found_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['make-tiny', str(tmp_path / 'tiny')]) == 0
    assert main(['inspect', str(tmp_path / 'tiny'), '--contract', 'demo_joint_pos']) == 0
    told = capsys.readouterr().out
    assert 'family nano' in told
    assert 'fits contract demo_joint_pos' in told


def test_a_damaged_checkpoint_is_reported_and_not_traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(['make-tiny', str(tmp_path / 'tiny')])
    shard = next((tmp_path / 'tiny' / 'transformer').glob('*.safetensors'))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert main(['inspect', str(tmp_path / 'tiny')]) == 2
    told = capsys.readouterr().err
    assert shard.name in told
    assert 'Traceback' not in told


def test_an_unknown_contract_is_answered_with_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(['demo', '--contract', 'nosuch', '--output', str(tmp_path)]) == 2
    assert 'droid_joint_pos' in capsys.readouterr().err


def test_a_directory_with_other_things_in_it_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / 'thesis.txt').write_text('do not lose', encoding='utf-8')
    assert main(['make-tiny', str(tmp_path)]) == 2
    assert (tmp_path / 'thesis.txt').read_text(encoding='utf-8') == 'do not lose'
