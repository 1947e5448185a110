"""`cosmos3 imagine` and `cosmos3 infer-actions`: files in, files out, and faults found before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engine
from cosmos3_ros.cli import main
from engine.evaluation.video import read_video

TERMS = ['--domain', 'droid_lerobot', '--tier', '256', '--chunk', '4', '--steps', '1']


@pytest.fixture(scope='module')
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(engine.make_tiny(tmp_path_factory.mktemp('checkpoint') / 'tiny', sound=False))


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """A picture and six rows."""
    x, y = np.meshgrid(np.linspace(0, 255, 160), np.linspace(0, 255, 128))
    Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)).save(tmp_path / 'now.png')
    (tmp_path / 'rows.json').write_text(json.dumps([[0.1] * 10] * 6), encoding='utf-8')
    return ['--image', str(tmp_path / 'now.png'), '--actions', str(tmp_path / 'rows.json')]


def test_a_picture_and_a_file_of_actions_become_a_video_and_a_video_becomes_a_file_of_actions(
    tiny: str, given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, rows = tmp_path / 'clip.mp4', tmp_path / 'found.json'
    assert main(['imagine', tiny, *given, *TERMS, '--prompt', 'push', '-o', str(clip)]) == 0
    assert f'{clip}: 7 frames of 160 x 128' in capsys.readouterr().out
    frames = list(read_video(clip))
    assert [frame.shape for frame in frames] == [(128, 160, 3)] * 7
    assert main(['infer-actions', tiny, '--video', str(clip), '--frames', '6', *TERMS, '-o', str(rows)]) == 0
    assert np.shape(json.loads(rows.read_text(encoding='utf-8'))) == (5, 10)
    again = ['imagine', tiny, '--image', str(clip), '--actions', str(rows), *TERMS, '-o', str(tmp_path / 'again.mp4')]
    assert main(again) == 0


def test_a_contract_says_what_a_domain_leaves_open(tiny: str, given: list[str], tmp_path: Path) -> None:
    clip = tmp_path / 'clip.mp4'
    terms = ['--contract', 'demo_joint_pos', '--chunk', '4', '--steps', '1', '--windows', '1']
    assert main(['imagine', tiny, *given, *terms, '-o', str(clip)]) == 0
    assert len(list(read_video(clip))) == 5


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (['--image', 'nowhere.png'], '--image: cannot be read'),
        (['--actions', 'nowhere.json'], '--actions: cannot be read'),
        (['--output', 'nowhere/clip.mp4'], '--output: cannot be made'),
        (['--output', '/proc/clip.mp4'], '--output: cannot be made'),
        (['--domain', 'droid'], 'domain: is unknown'),
        (['--domain', 'av'], 'raw_dim: is not the width of a row of av that is imagined, got 10, allowed: 9'),
        (['--chunk', '6'], 'chunk: has no whole latents'),
        (['--viewpoint', 'wrist'], "viewpoint: is unknown, got 'wrist'"),
        (['--tier', '999'], 'tier: unknown'),
        (['--steps', '0'], 'steps: too few'),
        (['--guidance', 'nan'], 'guidance: is not finite'),
        (['--fps', '0.5'], 'fps: is not known or out of range'),
        (['--overlap', '3'], 'overlap: has no whole latents'),
        (['--windows', '0'], 'windows: is too small'),
        (['--seed', '-1'], 'seed: is out of range'),
    ],
)
def test_faults_are_told_before_anything_is_loaded(
    given: list[str], changes: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ['imagine', 'no checkpoint', *given, *TERMS, '-o', str(tmp_path / 'clip.mp4'), *changes]
    assert main(command) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    'content', ['{"rows": 1}', '[[1, 2], [3]]', '[]', '["a"]', '[["1", "2"]]', '[[null, 1]]', '[[true]]', 'nothing']
)
def test_a_file_that_holds_no_rows_is_named(
    given: list[str], content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'rows.json').write_text(content, encoding='utf-8')
    assert main(['imagine', 'no checkpoint', *given, *TERMS, '-o', str(tmp_path / 'clip.mp4')]) == 2
    assert 'rows.json: 1 problem\n  - actions: are no rows' in capsys.readouterr().err


def test_rows_of_joint_positions_are_not_taken_for_motion(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'rows.json').write_text(json.dumps([[0.1] * 8] * 4), encoding='utf-8')
    assert main(['imagine', 'no checkpoint', *given, *TERMS, '-o', str(tmp_path / 'clip.mp4')]) == 2
    assert 'raw_dim: is not the width of a row of droid_lerobot that is imagined, got 8, allowed: 10' in (
        capsys.readouterr().err
    )


def test_numbers_without_measure_are_named(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'rows.json').write_text(f'[[1{"0" * 400}]]', encoding='utf-8')
    assert main(['imagine', 'no checkpoint', *given, *TERMS, '-o', str(tmp_path / 'clip.mp4')]) == 2
    assert 'actions: are too large' in capsys.readouterr().err
