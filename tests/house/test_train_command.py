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
from engine.training.answers import CARD, NUMBERS, open_answers
from engine.training.corpus import open_corpus
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
        ('train', 'answers', root / 'data', '--corpus', root / 'corpus', '--every', 5, '-o', root / 'answers'),
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


def test_a_checkpoint_is_widened_and_goes_on_with_latents_that_were_turned(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents, wide = made / 'of_base', made / 'wide'
    assert run('train', 'latents', made / 'corpus', '--autoencoder', made / 'base', '--stride', 16, '-o', latents) == 0
    assert run('make-tiny', wide, '--weights', 'fresh', '--no-sound', '--width', 160) == 0
    widen = ('train', 'widen', made / 'base', '--into', wide, '--latents', latents, '--turned', made / 'turned')
    assert run(*widen, '--channels', 9, '-o', made / 'widened') == 2
    assert 'hidden_size: has no room for a token, got 160, allowed: 164 or more' in capsys.readouterr().err
    assert run(*widen, '--channels', 8, '-o', made / 'widened') == 0
    assert 'of the variance of latents' in capsys.readouterr().out
    recipe = made / 'imagine.yaml'
    shares = '{action: 1.0, forward: 1.0, policy: 1.0}'
    sizes = '{action: 2, forward: 2, policy: 2}'
    recipe.write_text(f'tasks: {shares}\nbatch: {sizes}\ngiven: 0.5\n', encoding='utf-8')
    training = ('--corpus', made / 'corpus', '--latents', made / 'turned', '--recipe', recipe, '--steps', 4)
    output = made / 'imagines'
    assert run('train', 'model', made / 'widened', *training, '--run', made / 'run_of_wide', '-o', output) == 0
    contract = load_contract(CONTRACT)
    dynamics = engine.load(output).dynamics(contract).with_terms(steps=1)
    rollout = dynamics.imagine(np.full((*contract.views.size, 3), 90, np.uint8), np.zeros((4, 10)))
    assert rollout.frames.shape == (5, *contract.views.size, 3)


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


def test_the_hand_is_asked_for_every_other_object_in_every_recorded_moment(made: Path) -> None:
    answers, corpus = open_answers(made / 'answers'), open_corpus(made / 'corpus')
    assert set(answers.frames.tolist()) <= set(range(0, len(corpus), 5))
    by_frame = np.bincount(answers.frames, minlength=len(corpus))[::5]
    assert np.median(by_frame) == 3, 'three of the four objects, if they are within reach'
    own = [corpus.instructions[episode] for episode in corpus.episode[answers.frames]]
    asked = [answers.texts[text] for text in answers.text]
    assert not any(one.split()[-2:] == other.split()[-2:] for one, other in zip(own, asked, strict=True))
    # A chunk begins where the arm is, as fast as it is, and ends on the way to what was asked for.
    joints = corpus.numbers['joints'][answers.frames]
    assert np.abs(answers.joints[:, 0] - joints).max() < 0.15
    steps = np.diff(np.concatenate([joints[:, None], answers.joints], axis=1), axis=1)
    assert np.abs(steps).max() < 0.15
    assert np.abs(np.diff(steps, axis=1)).max() < 0.06
    assert np.abs(answers.joints[:, -1] - joints).max(axis=1).min() > 0.02


def test_a_network_is_trained_on_answers_too_if_the_recipe_says_so(made: Path) -> None:
    (made / 'asked.yaml').write_text('tasks: {action: 1.0}\nbatch: {action: 4}\nanswers: 0.5\n', encoding='utf-8')
    asked = ('--recipe', made / 'asked.yaml', '--vae', made / 'autoencoder', '--answers', made / 'answers')
    output = made / 'listens'
    assert train(made, *asked, '--run', made / 'asked', '-o', output) == 0
    origin = json.loads((output / 'checkpoint.json').read_text(encoding='utf-8'))
    assert origin['training']['corpus']['answers'] == len(open_answers(made / 'answers'))
    assert {'answers', 'answers_other_words'} <= set(origin['training']['validation'])


def test_answers_to_something_else_are_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / 'stale').mkdir()
    for name in (CARD, NUMBERS):
        (made / 'stale' / name).write_bytes(
            (made / 'answers' / name).read_bytes().replace(b'"corpus": "', b'"corpus": "x')
        )
    asked = ('--vae', made / 'autoencoder', '--answers', made / 'stale', '--run', made / 'refused')
    assert train(made, *asked) == 2
    assert 'are of another corpus' in capsys.readouterr().err
    useless = ('--vae', made / 'autoencoder', '--answers', made / 'answers', '--run', made / 'refused')
    assert train(made, *useless) == 2
    assert 'the recipe has no use for them' in capsys.readouterr().err
    given = ('--corpus', made / 'corpus', '--every', 0, '-o', made / 'none')
    assert run('train', 'answers', made / 'corpus', *given) == 2
    told = capsys.readouterr().err
    assert 'data sets: are not those of the corpus' in told
    assert 'every: is out of range' in told
