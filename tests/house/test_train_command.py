"""From nothing to a checkpoint that drives the simulated robot: the commands of docs/training.md, in their order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import engine
from cosmos3_ros.cli import main
from engine.contract import load_contract
from engine.training.alone import alone_in
from engine.training.journal import read_journal

pytestmark = pytest.mark.slow
CONTRACT = 'micro_joint_pos'


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything up to what the network is trained with, of two short episodes."""
    root = tmp_path_factory.mktemp('training')
    steps = (
        ('make-dataset', '--task', 'reach', '--episodes', 2, '-o', root / 'data'),
        ('train', 'corpus', root / 'data', '-o', root / 'corpus'),
        ('train', 'autoencoder', root / 'corpus', '--steps', 2, '-o', root / 'autoencoder'),
        (
            'train',
            'latents',
            root / 'corpus',
            '--autoencoder',
            root / 'autoencoder',
            '--stride',
            16,
            '-o',
            root / 'latents',
        ),
        ('make-tiny', root / 'base', '--weights', 'fresh', '--no-sound'),
    )
    for words in steps:
        assert run(*words) == 0, words
    (root / 'recipe.yaml').write_text(
        'tasks: {action: 0.5, policy: 0.5}\nbatch: {action: 4, policy: 2}\n', encoding='utf-8'
    )
    return root


def train(root: Path, *more: object) -> int:
    return run(
        'train', 'model', root / 'base', '--corpus', root / 'corpus', '--latents', root / 'latents', '--recipe',
        root / 'recipe.yaml', '--steps', 3, *more,
    )  # fmt: skip


def test_a_checkpoint_comes_out_that_the_engine_opens_and_that_says_where_it_is_from(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = made / 'micro'
    assert train(made, '--vae', made / 'autoencoder', '--run', made / 'run', '-o', output) == 0
    assert 'held-out episodes' in capsys.readouterr().out
    assert (made / 'run' / 'curves.png').stat().st_size > 5_000
    assert read_journal(made / 'run' / 'journal.jsonl')[-1]['step'] == 3
    origin = json.loads((output / 'checkpoint.json').read_text(encoding='utf-8'))
    assert origin['name'] == 'micro'
    assert origin['training']['steps'] == 3
    assert origin['training']['corpus']['episodes'] == 2
    assert str(made) not in json.dumps(origin)
    contract = load_contract(CONTRACT)
    policy = engine.load(output, backend='torch').policy(contract)
    views = {view: np.full((180, 320, 3), 90, np.uint8) for view in contract.views.streams}
    joints = np.array([0.0, -0.6, 0.0, -2.5, 0.0, 1.9, 0.0])
    seen = engine.Observation(views, 'reach for the red cube', joints, 0.0)
    chunk = policy.infer(seen, 1)
    assert chunk.actions.shape == (16, 8)
    assert np.abs(chunk.actions[:, :7] - joints).max() < 2.0, 'rows of offsets become absolute positions around the arm'
    assert chunk.latents.shape[2] == 1, 'no video is made'
    further = policy.infer(seen, 1, committed=chunk.actions[:3])
    np.testing.assert_allclose(further.actions[:3], chunk.actions[:3], atol=1e-4)
    both = policy.infer_together([seen, seen], [1, 2])
    np.testing.assert_allclose(both[0].actions, chunk.actions, atol=1e-4)


def test_latents_of_another_autoencoder_are_refused_before_anything_is_trained(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(made, '--run', made / 'other') == 2
    told = capsys.readouterr().err
    assert 'are not of the autoencoder of' in told
    assert '--vae' in told
    assert not (made / 'other').exists()


def test_a_run_is_trained_by_one_process_at_a_time(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made / 'busy'
    with alone_in(folder, 'training'):
        assert train(made, '--vae', made / 'autoencoder', '--run', folder) == 2
    assert 'another process is training in' in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize(('words', 'told'), [
    (('--vae', 'nowhere'), 'cannot be read'),
    (('--device', 'toaster'), "device 'toaster' cannot be used here"),
    (('--recipe', 'nonsense'), "unknown name, got 'nonsense'"),
    (('--contract', 'droid_joint_pos', '--vae', 'AUTOENCODER'), 'latents: have another size than the contract'),
])  # fmt: skip
def test_what_cannot_work_is_said_before_anything_is_trained(
    made: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    given = [made / 'autoencoder' if word == 'AUTOENCODER' else word for word in words]
    assert train(made, '--run', made / 'never', *given) == 2
    assert told in capsys.readouterr().err
    assert not (made / 'never').exists()


def test_a_folder_of_somebody_elses_is_not_written_over(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = made / 'taken'
    taken.mkdir(exist_ok=True)
    (taken / 'thesis.txt').write_text('years of work', encoding='utf-8')
    assert train(made, '--vae', made / 'autoencoder', '--run', made / 'never', '-o', taken) == 2
    assert 'holds something else' in capsys.readouterr().err
    assert [file.name for file in taken.iterdir()] == ['thesis.txt']


def test_what_fine_tuning_takes_is_told_without_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert run('finetune-memory', 'edge', '--processes', 2) == 0
    assert 'activations' in capsys.readouterr().out
    assert run('finetune-memory', 'edge', '--processes', 0) == 2
    assert 'processes: are too few' in capsys.readouterr().err
