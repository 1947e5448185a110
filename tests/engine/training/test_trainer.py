"""A run learns, can be interrupted, and leaves a checkpoint that every reader opens."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import engine
from engine.checkpoint import open_checkpoint
from engine.errors import CheckpointError, CosmosError, InvalidInput
from engine.training.curves import draw_curves
from engine.training.journal import read_journal
from engine.training.recipe import Recipe
from engine.training.trainer import JOURNAL, STATE, Length, Trainer, learning_rate, trained_names
from engine.training.validation import Validation
from engine.training.writing import write_trained

ALL = ('generation', 'understanding', 'heads')
RECIPE = Recipe(
    tasks={'action': 4.0, 'policy': 1.0, 'forward': 1.0, 'inverse': 1.0},
    batch=dict.fromkeys(('action', 'policy', 'forward', 'inverse'), 16),
    captions=2,
    learning_rate=2e-3,
    trained=ALL,
    ema=0.9,
    committed=0.3,
)


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    """Several threads add up in whatever order they come, and no two runs are alike to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_trainer(checkpoint, examples, folder, recipe=RECIPE):
    torch.manual_seed(0)
    return Trainer(checkpoint.load_transformer(dtype=torch.float32), examples, recipe, folder)


def weights_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.averaged_weights().items()}


@pytest.fixture(scope='module')
def learned(fresh_checkpoint, examples, tmp_path_factory):
    """A run of some seconds."""
    folder = tmp_path_factory.mktemp('run')
    trainer = make_trainer(fresh_checkpoint, examples, folder)
    before = Validation(examples, 32)(trainer.network)
    trainer.run(Length(steps=400), validate=Validation(examples, 32))
    return trainer, before, folder


def test_a_policy_does_what_it_is_told_after_training(learned):
    _, before, folder = learned
    after = json.loads((folder / JOURNAL).read_text().splitlines()[-1])
    for name in ('action', 'policy'):
        assert after[f'valid/{name}'] < 0.4 * before['hold'], name
        assert after[f'valid/{name}_other_words'] > 3 * after[f'valid/{name}_beginning'], name
    assert after['valid/hold'] == before['hold']


def test_a_run_that_was_interrupted_goes_on_as_if_nothing_had_happened(fresh_checkpoint, examples, tmp_path):
    whole = make_trainer(fresh_checkpoint, examples, tmp_path / 'whole')
    whole.run(Length(steps=8))
    first = make_trainer(fresh_checkpoint, examples, tmp_path / 'halves')
    first.run(Length(steps=8), stopped=lambda: first.progress.step == 4)
    assert first.progress.step == 4
    second = make_trainer(fresh_checkpoint, examples, tmp_path / 'halves')
    second.run(Length(steps=8))
    for name, tensor in weights_of(whole).items():
        torch.testing.assert_close(weights_of(second)[name], tensor, rtol=0, atol=0, msg=name)


def test_a_folder_of_another_recipe_is_not_gone_on_with(fresh_checkpoint, examples, tmp_path):
    make_trainer(fresh_checkpoint, examples, tmp_path).keep()
    with pytest.raises(InvalidInput, match=r'learning_rate: is another in this run'):
        make_trainer(fresh_checkpoint, examples, tmp_path, replace(RECIPE, learning_rate=1e-5))


def test_a_folder_that_holds_something_else_or_a_run_of_other_recordings_is_refused(
    fresh_checkpoint, examples, tmp_path
):
    (tmp_path / 'thesis.txt').write_text('years of work')
    with pytest.raises(InvalidInput, match='holds something else'):
        make_trainer(fresh_checkpoint, examples, tmp_path)
    transformer = fresh_checkpoint.load_transformer(dtype=torch.float32)
    Trainer(transformer, examples, RECIPE, tmp_path / 'run', origin={'corpus': 'a'})
    with pytest.raises(InvalidInput, match='corpus: is another in this run, got a, allowed: b'):
        Trainer(transformer, examples, RECIPE, tmp_path / 'run', origin={'corpus': 'b'})


def test_what_was_torn_when_a_run_was_killed_is_left_out_and_what_is_done_again_is_not_told_twice(
    fresh_checkpoint, examples, tmp_path
):
    trainer = make_trainer(fresh_checkpoint, examples, tmp_path)
    trainer.run(Length(steps=4), stopped=lambda: trainer.progress.step == 2)
    with (tmp_path / JOURNAL).open('a') as journal:
        journal.write('{"step": 3, "seconds": 1.0, "action/action": 1.0}\n{"step": 100, "sec')
    again = make_trainer(fresh_checkpoint, examples, tmp_path)
    assert [line['step'] for line in read_journal(tmp_path / JOURNAL)] == [2]
    again.run(Length(steps=4))
    assert [line['step'] for line in read_journal(tmp_path / JOURNAL)] == [2, 4]


@pytest.mark.parametrize('damage', [b'', b'not a state', b'PK\x03\x04'])
def test_a_damaged_state_is_named(fresh_checkpoint, examples, tmp_path, damage):
    make_trainer(fresh_checkpoint, examples, tmp_path)
    (tmp_path / STATE).write_bytes(damage)
    with pytest.raises(CosmosError, match=r'state\.pt cannot be gone on with'):
        make_trainer(fresh_checkpoint, examples, tmp_path)


def test_what_is_not_to_be_trained_stays_as_it_was(fresh_checkpoint, examples, tmp_path):
    trainer = make_trainer(fresh_checkpoint, examples, tmp_path, replace(RECIPE, trained=('generation', 'heads')))
    before = {name: tensor.clone() for name, tensor in trainer.transformer.state_dict().items()}
    trainer.run(Length(steps=3))
    changed = {
        name for name, tensor in trainer.transformer.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed
    assert not changed & trained_names(trainer.transformer, ('understanding',))
    assert 'lm_head.weight' not in changed


def test_every_tensor_but_the_language_head_belongs_to_a_group(fresh_checkpoint):
    transformer = fresh_checkpoint.load_transformer()
    assert trained_names(transformer, ALL) == {n for n, _ in transformer.named_parameters()} - {'lm_head.weight'}
    for part in ('attention', 'mlp'):
        assert trained_names(transformer, (part,)) < trained_names(transformer, ('generation',))


def test_a_trained_checkpoint_opens_and_says_what_the_trainer_says(learned, fresh_checkpoint, examples, tmp_path):
    trainer, _, _ = learned
    path = write_trained(fresh_checkpoint, tmp_path / 'trained', trainer.averaged_weights(), {'name': 'micro'})
    opened = open_checkpoint(path)
    assert opened.provenance['name'] == 'micro'
    assert opened.fingerprint != fresh_checkpoint.fingerprint
    loaded = opened.load_transformer(dtype=torch.float32).state_dict()
    for name, tensor in trainer.averaged_weights().items():
        torch.testing.assert_close(loaded[name], tensor.to(torch.bfloat16).float(), rtol=0, atol=0, msg=name)
    model = engine.load(path, backend='torch')
    assert model.policy(examples.contract) is not None
    write_trained(fresh_checkpoint, path, {}, {'name': 'again'})
    with pytest.raises(CheckpointError, match='holds something else'):
        write_trained(fresh_checkpoint, fresh_checkpoint.root, {}, {})


def test_weights_of_something_else_are_refused_by_name(fresh_checkpoint, tmp_path):
    wrong = {'proj_in.weight': torch.zeros(3), 'nothing': torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r'(?s)nothing: is no tensor.*proj_in\.weight: has another shape'):
        write_trained(fresh_checkpoint, tmp_path / 'x', wrong, {})
    assert not (tmp_path / 'x').exists()


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate(RECIPE, share) for share in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(RECIPE.learning_rate)
    assert rates.index(max(rates)) == 2
    assert rates[-1] == pytest.approx(RECIPE.learning_rate * RECIPE.final)


def test_curves_are_drawn(learned, tmp_path):
    draw_curves(learned[2] / JOURNAL, tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').stat().st_size > 5_000


@pytest.mark.parametrize('wrong', [
    {'tasks': {'policy': 0.0}}, {'tasks': {'dance': 1.0}}, {'batch': {'policy': 0}}, {'trained': ()},
    {'trained': ('everything',)}, {'learning_rate': 0.0}, {'ema': 1.0}, {'shift': float('nan')}, {'captions': 0},
    {'learning_rate': '1e-4'}, {'betas': (0.9, 1.5)}, {'betas': (0.9,)}, {'seed': -1}, {'captions': 8.5},
    {'tasks': {'policy': 'much'}}, {'tasks': ['policy']}, {'tasks': {'policy': 1.0}, 'batch': {}},
])  # fmt: skip
def test_recipes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InvalidInput, match='training recipe'):
        Recipe(**wrong)


def test_a_recipe_survives_its_file(tmp_path):
    import yaml

    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(RECIPE.document()), encoding='utf-8')
    assert Recipe.read(tmp_path / 'recipe.yaml') == RECIPE
    (tmp_path / 'recipe.yaml').write_text('batch: {policy: 8}', encoding='utf-8')
    assert Recipe.read(tmp_path / 'recipe.yaml').batch == {'action': 16, 'policy': 8, 'forward': 16, 'inverse': 16}
    (tmp_path / 'recipe.yaml').write_text('learning_rat: 1', encoding='utf-8')
    with pytest.raises(InvalidInput, match='learning_rat: is no key'):
        Recipe.read(tmp_path / 'recipe.yaml')


TOGETHER = """
import sys
from pathlib import Path

import torch
import yaml

sys.path.insert(0, {tests!r})
from conftest import make_numbers
from test_trainer import RECIPE

from cosmos3_ros.process import leave
from engine.checkpoint import open_checkpoint
from engine.contract import load_contract
from engine.training.examples import Examples
from engine.training.processes import joined
from engine.training.trainer import Length, Trainer
from engine.training.validation import Validation

torch.set_num_threads(1)
with joined('cpu') as (device, leads):
    base = open_checkpoint({checkpoint!r})
    examples = Examples(make_numbers(), load_contract({contract!r}), base.load_tokenizer())
    for steps in (3, 6):
        trainer = Trainer(
            base.load_transformer(device, torch.float32), examples, RECIPE, Path({folder!r}), sharded={sharded}
        )
        trainer.run(
            Length(steps=6),
            validate=Validation(examples, 4),
            validate_minutes=0.0 if leads else 1e9,  # clocks differ; the first process decides for all
            keep_minutes=1e9 if leads else 0.0,
            stopped=lambda: leads and trainer.progress.step == steps,
        )
    weights = trainer.averaged_weights()
    if leads:
        torch.save(weights, Path({folder!r}) / 'weights.pt')
leave(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize('sharded', [False, True], ids=['each holds all', 'each holds a piece'])
def test_two_processes_train_one_network_and_go_on_together(
    fresh_checkpoint, small_contract, examples, tmp_path, sharded
):
    script = tmp_path / 'together.py'
    script.write_text(
        TOGETHER.format(
            tests=str(Path(__file__).parent),
            checkpoint=str(fresh_checkpoint.root),
            contract=small_contract.source,
            folder=str(tmp_path / 'run'),
            sharded=sharded,
        ),
        encoding='utf-8',
    )
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', str(script)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert found.returncode == 0, found.stderr[-4000:]
    weights = torch.load(tmp_path / 'run' / 'weights.pt', weights_only=True)
    before = fresh_checkpoint.load_transformer(dtype=torch.float32).state_dict()
    assert {name for name in weights if not torch.equal(weights[name], before[name])} >= {
        'layers.0.self_attn.add_q_proj.weight',
        'action_proj_out.fc.weight',
    }
    assert all(weights[name].shape == before[name].shape for name in before)
    lines = [json.loads(line) for line in (tmp_path / 'run' / JOURNAL).read_text().splitlines()]
    assert {line['step'] for line in lines if 'valid/action' in line} == {1, 2, 3, 4, 5, 6}
