"""Training of the video autoencoder: it learns, goes on where it was stopped, and leaves what others can open."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from engine.contract import Contract, load_contract
from engine.errors import CheckpointError, CosmosError, InvalidInput
from engine.network.vae import VideoVae
from engine.training.autoencoder_files import WEIGHTS, autoencoder_fingerprint, load_autoencoder, write_autoencoder
from engine.training.autoencoder_pictures import Pictures
from engine.training.autoencoder_recipe import AutoencoderRecipe
from engine.training.autoencoder_report import likeness
from engine.training.autoencoder_training import (
    JOURNAL,
    REPORT,
    STATE,
    AutoencoderTrainer,
    Order,
    losses,
    make_network,
    train_autoencoder,
)
from engine.training.corpus import CARD, COMPOSITES, NUMBERS, VERSION, Corpus, open_corpus

NARROW = AutoencoderRecipe(
    base_dim=4, decoder_base_dim=4, clip_frames=(5,), clips=0.5, pixels=30_000, crop=(48, 64), learning_rate=2e-3
)
LENGTHS = (20, 19, 20)


@pytest.fixture(scope='module')
def contract() -> Contract:
    return load_contract('micro_joint_pos')


@pytest.fixture(scope='module')
def corpus(tmp_path_factory: pytest.TempPathFactory, contract: Contract) -> Corpus:
    """Three episodes of a bright block that wanders over a floor, under a sky that becomes darker."""
    root, (height, width) = tmp_path_factory.mktemp('corpora') / 'wanders', contract.views.size
    root.mkdir()
    frames = np.zeros((sum(LENGTHS), height, width, 3), np.uint8)
    frames[:, height // 3 :] = (90, 110, 130)
    for number, frame in enumerate(frames):
        frame[: height // 3] = 200 - 2 * number
        frame[height // 2 : height // 2 + 24, 3 * number : 3 * number + 24] = (220, 40, 40)
    np.save(root / COMPOSITES, frames)
    ones = np.ones(len(frames))
    numbers = {name: np.zeros((len(frames), 7)) for name in ('joints', 'commanded')}
    numbers |= {'gripper': ones, 'commanded_gripper': ones, 'disturbed': ones > 1}
    numbers |= {'position': np.zeros((len(frames), 3)), 'quaternion': np.zeros((len(frames), 4))}
    numbers |= {'episode': np.repeat(np.arange(3), LENGTHS), 'frame': np.concatenate([np.arange(n) for n in LENGTHS])}
    np.savez(root / NUMBERS, **numbers)
    first = np.concatenate([[0], np.cumsum(LENGTHS)[:-1]])
    episodes = [
        {'instruction': 'look', 'origin': 0, 'number': number, 'first': int(at), 'frames': count}
        for number, (at, count) in enumerate(zip(first, LENGTHS, strict=True))
    ]
    card = {'version': VERSION, 'size': [height, width], 'frames': len(frames), 'episodes': episodes}
    (root / CARD).write_text(json.dumps(card))
    return open_corpus(root)


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus, contract: Contract) -> Path:
    """A folder with a short run that is complete."""
    folder = tmp_path_factory.mktemp('runs') / 'narrow'
    train_autoencoder(corpus, contract, folder, Order(NARROW, steps=60))
    return folder


def weights_of(trainer: AutoencoderTrainer) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in trainer.network.parameters()])


# Learning


def test_what_comes_back_becomes_more_alike(run: Path, corpus: Corpus, contract: Contract):
    pictures = Pictures(corpus, contract, NARROW)
    before = likeness(make_network(NARROW), pictures, frames=4, clips=1)
    after = json.loads((run / REPORT).read_text())['held_out']
    assert after['frames']['psnr']['all'] > before['frames']['psnr']['all'] + 3
    assert after['clips']['psnr']['all'] > before['clips']['psnr']['all'] + 3
    assert set(after['clips']['control']['psnr']) == {'all', 'wrist', 'exterior_1', 'exterior_2'}


def test_normalised_latents_of_the_corpus_have_mean_0_and_deviation_1(run: Path, corpus: Corpus, contract: Contract):
    vae, pictures = VideoVae(load_autoencoder(run)), Pictures(corpus, contract, NARROW)
    rows, columns = pictures.grid
    some = pictures.frames(held=False, count=100)
    firsts = torch.cat(
        [vae.encode(pictures.on_canvas(some[[n]], 1)[0])[..., :rows, :columns] for n in range(len(some))]
    )
    starts = pictures.starts(5, held=False, count=100)
    later = torch.cat([vae.encode(pictures.on_canvas(starts[[n]], 5)[0])[:, :, 1:, :rows, :columns] for n in range(30)])
    means, squares = (
        torch.stack([part.transpose(0, 1).flatten(1).pow(power).mean(1) for part in (firsts, later)]).mean(0)
        for power in (1, 2)
    )
    torch.testing.assert_close(means, torch.zeros(48), rtol=0, atol=0.15)
    torch.testing.assert_close(squares, torch.ones(48), rtol=0, atol=0.3)


def test_pixels_that_stand_out_of_their_view_count_more(corpus: Corpus, contract: Contract):
    pictures = Pictures(corpus, contract, NARROW)
    shown = pictures.draw(np.random.default_rng(0), whole=True)
    red = (shown.wanted[:, 0] > 0.6) & (shown.wanted[:, 1] < 0)
    counts = shown.counts[:, 0]
    assert counts[red].mean() > 2 * counts[..., 70:90, :].mean()  # the floor of the same view
    drawn = [float(pictures.draw(np.random.default_rng(seed), whole=True).counts.mean()) for seed in range(30)]
    assert np.mean(drawn) == pytest.approx(1, abs=0.1)


def test_batches_are_cut_out_in_steps_of_a_latent_and_later_whole_on_the_canvas(corpus: Corpus, contract: Contract):
    pictures = Pictures(corpus, contract, NARROW)
    seen = set()
    for seed in range(8):
        cut, whole = (pictures.draw(np.random.default_rng(seed), whole=whole) for whole in (False, True))
        assert cut.wanted.shape[-2:] == (48, 64)
        assert whole.pixels.shape[-2:] == (256, 320)
        assert whole.wanted.shape[-2:] == (192, 224)
        assert len(cut.pixels) * cut.pixels.shape[2] * 48 * 64 == pytest.approx(NARROW.pixels, rel=0.3)
        seen.add(cut.pixels.shape[2])
    assert seen == {1, 5}


def test_every_weight_learns(corpus: Corpus, contract: Contract):
    network = make_network(NARROW)
    rng = np.random.default_rng(3)
    with torch.no_grad():  # what changes nothing yet learns by its last layer first
        for name, weight in network.named_parameters():
            if name.endswith('weight') and not weight.any():
                weight.normal_(std=0.1)
    while (shown := Pictures(corpus, contract, NARROW).draw(rng, whole=False)).pixels.shape[2] == 1:
        pass
    sum(losses(network, shown, torch.Generator().manual_seed(0)).values()).backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()] == []


# Runs


def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(corpus: Corpus, contract: Contract, tmp_path: Path):
    order = Order(NARROW, steps=6)
    whole = AutoencoderTrainer(corpus, contract, tmp_path / 'whole', order)
    whole.run()
    stopped = AutoencoderTrainer(corpus, contract, tmp_path / 'stopped', order)
    stopped.run(stopped=lambda: stopped.progress.step == 3)
    again = AutoencoderTrainer(corpus, contract, tmp_path / 'stopped', order)
    assert again.progress.step == 3
    again.run()
    assert torch.equal(weights_of(whole), weights_of(again))
    assert all(torch.equal(whole.averaged[name], again.averaged[name]) for name in whole.averaged)


def test_a_run_that_is_interrupted_keeps_what_it_has_and_is_not_finished(
    corpus: Corpus, contract: Contract, tmp_path: Path
):
    trainer = AutoencoderTrainer(corpus, contract, tmp_path / 'run', Order(NARROW, steps=6))

    def interrupt(here: object) -> None:
        if trainer.progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.run(interrupt)
    assert AutoencoderTrainer(corpus, contract, tmp_path / 'run', Order(NARROW, steps=6)).progress.step == 2
    with pytest.raises(CosmosError, match='not at its end'):
        trainer.finish()


def test_a_run_of_minutes_ends_by_the_clock(corpus: Corpus, contract: Contract, tmp_path: Path):
    trainer = AutoencoderTrainer(corpus, contract, tmp_path / 'run', Order(NARROW, minutes=0.02))
    trainer.run()
    assert trainer.progress.share == 1
    assert trainer.progress.seconds >= 1.2
    assert AutoencoderTrainer(corpus, contract, tmp_path / 'run', Order(NARROW, minutes=0.02)).progress.seconds > 1.2


def test_another_recipe_in_the_same_folder_is_refused_with_every_difference(
    run: Path, corpus: Corpus, contract: Contract
):
    other = Order(replace(NARROW, kl=1.0, seed=1), steps=60)
    with pytest.raises(InvalidInput) as error:
        AutoencoderTrainer(corpus, contract, run, other)
    assert [problem.where for problem in error.value.problems] == ['kl', 'seed']


def test_a_folder_with_other_things_in_it_is_left_alone(corpus: Corpus, contract: Contract, tmp_path: Path):
    (tmp_path / 'chapter.tex').write_text('do not lose')
    with pytest.raises(InvalidInput, match='holds something else'):
        AutoencoderTrainer(corpus, contract, tmp_path, Order(NARROW, steps=1))


def test_a_damaged_state_is_named(corpus: Corpus, contract: Contract, tmp_path: Path):
    AutoencoderTrainer(corpus, contract, tmp_path / 'run', Order(NARROW, steps=2)).keep()
    (tmp_path / 'run' / STATE).write_bytes(b'nothing')
    with pytest.raises(CosmosError, match='cannot be gone on with'):
        AutoencoderTrainer(corpus, contract, tmp_path / 'run', Order(NARROW, steps=2))


def test_a_run_may_begin_with_the_weights_of_another(run: Path, corpus: Corpus, contract: Contract, tmp_path: Path):
    trainer = AutoencoderTrainer(corpus, contract, tmp_path / 'run', Order(NARROW, steps=2, begin_with=run))
    wanted = load_autoencoder(run).state_dict()
    assert all(torch.equal(weight, wanted[name]) for name, weight in trainer.network.state_dict().items())
    wider = replace(NARROW, base_dim=8)
    with pytest.raises(InvalidInput, match='other widths'):
        AutoencoderTrainer(corpus, contract, tmp_path / 'wider', Order(wider, steps=2, begin_with=run))


def test_a_training_has_one_length():
    for lengths in ({}, {'steps': 1, 'minutes': 1.0}):
        with pytest.raises(InvalidInput, match='is not one length'):
            Order(NARROW, **lengths)


def test_a_recipe_is_read_back_and_its_faults_are_listed(tmp_path: Path):
    path = tmp_path / 'recipe.yaml'
    path.write_text('base_dim: 8\nclip_frames: [5, 17]\n')
    assert AutoencoderRecipe.read(path) == AutoencoderRecipe(base_dim=8, clip_frames=(5, 17))
    path.write_text('breadth: 8\n')
    with pytest.raises(InvalidInput, match='breadth'):
        AutoencoderRecipe.read(path)
    with pytest.raises(InvalidInput) as error:
        AutoencoderRecipe(clips=2.0, clip_frames=(6,), crop=(10, 16), dim_mult=(1, 3, 7, 2))
    where = [problem.where for problem in error.value.problems]
    assert where == ['clips', 'clip_frames', 'crop', 'recipe: dim_mult']


# What is left


def test_diffusers_opens_the_result_and_computes_the_same(run: Path, corpus: Corpus, contract: Contract):
    theirs, ours = AutoencoderKLWan.from_pretrained(run / 'vae', torch_dtype=torch.float32), load_autoencoder(run)
    video = Pictures(corpus, contract, NARROW).on_canvas(np.array([2]), 5)
    with torch.no_grad():
        mode = theirs.encode(video).latent_dist.mode()
        torch.testing.assert_close(ours.encode(video)[:, :48], mode, rtol=0, atol=1e-3)
        torch.testing.assert_close(ours.decode(mode).clamp(-1, 1), theirs.decode(mode).sample, rtol=0, atol=1e-3)
    assert theirs.config.latents_std == pytest.approx(list(ours.config.latents_std))


def test_journal_curves_and_samples_are_left(run: Path):
    lines = [json.loads(line) for line in (run / JOURNAL).read_text().splitlines()]
    assert {'step', 'seconds', 'rate', 'frames/l1', 'clips/l1', 'clips/kl'} <= {key for line in lines for key in line}
    for name in ('curves.png', 'samples.png'):
        assert cv2.imread(str(run / name)).std() > 1


def test_a_damaged_autoencoder_is_refused_by_tensor(run: Path, tmp_path: Path):
    whole = load_autoencoder(run)
    weights = dict(whole.state_dict())
    del weights['quant_conv.bias']
    write_autoencoder(tmp_path / 'vae', whole.config, weights)
    with pytest.raises(CheckpointError, match=r'quant_conv\.bias'):
        load_autoencoder(tmp_path)
    (tmp_path / 'vae' / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load_autoencoder(tmp_path)
    with pytest.raises(CheckpointError, match='cannot be read'):
        autoencoder_fingerprint(tmp_path)
