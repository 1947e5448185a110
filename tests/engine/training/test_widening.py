"""Room for imagination: a wider network does what it did, carries its tokens, and leaves silent channels alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.checkpoint import Checkpoint, open_checkpoint
from engine.contract import Contract
from engine.errors import CheckpointError, InvalidInput
from engine.network.vae import VideoVae
from engine.policy import layout_of
from engine.tiny import make_tiny
from engine.training.autoencoder_files import autoencoder_fingerprint, load_autoencoder
from engine.training.examples import Examples, Recorded
from engine.training.latents import Latents
from engine.training.network import BatchedTransformer, Noisy
from engine.training.recipe import Recipe
from engine.training.trainer import Length, Trainer
from engine.training.widening import (
    Axes,
    principal_axes,
    turn_autoencoder,
    turn_latents,
    turned_tensors,
    widen,
    widened_tensors,
)

CHANNELS, KEPT = 48, 8


@pytest.fixture(scope='module')
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Random, no wider than a token."""
    root = tmp_path_factory.mktemp('narrow') / 'it'
    return open_checkpoint(make_tiny(root, size='micro', weights='random', sound=False, width=192))


@pytest.fixture(scope='module')
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    root = tmp_path_factory.mktemp('wide') / 'it'
    return open_checkpoint(make_tiny(root, size='micro', weights='fresh', sound=False))


@pytest.fixture(scope='module')
def latents(narrow: Checkpoint) -> Latents:
    """Of which eight axes say everything."""
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((KEPT, CHANNELS)) * np.linspace(2.0, 0.5, KEPT)[:, None]

    def some(*shape: int) -> NDArray[np.float16]:
        return (np.moveaxis(rng.standard_normal((*shape, KEPT)) @ mixed, -1, 1) + 0.3).astype(np.float16)

    card = {'version': 1, 'autoencoder': autoencoder_fingerprint(narrow.root)}
    return Latents(Path(), card, some(40, 4, 4), some(10, 5, 4, 4), np.arange(10), np.full(10, 17))


@pytest.fixture(scope='module')
def wide(
    narrow: Checkpoint,
    fresh: Checkpoint,
    small_contract: Contract,
    latents: Latents,
    tmp_path_factory: pytest.TempPathFactory,
) -> Checkpoint:
    output = tmp_path_factory.mktemp('widened') / 'it'
    widen(narrow, fresh, small_contract, latents, KEPT, output)
    return open_checkpoint(output)


def network(checkpoint: Checkpoint) -> BatchedTransformer:
    return BatchedTransformer(checkpoint.load_transformer('cpu', torch.float32, ('policy', 'dynamics'))).eval()


def answer(
    of: BatchedTransformer, contract: Contract, pictures: NDArray[np.floating], *, video: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Velocities of video and actions of three sequences that begin with pictures [3, C, h, w]."""
    from engine.training.examples import cut

    layout, generator = layout_of(contract, video=video), torch.Generator().manual_seed(3)
    place = of.transformer.place(layout, 1)
    assert place.vision is not None
    assert place.action is not None
    vision = torch.randn(3, *place.vision.free.shape, generator=generator)
    first = torch.from_numpy(cut(pictures[:, :, None], 2).astype(np.float32))
    vision[:, : first.shape[1]] = first
    action = torch.randn(3, *place.action.free.shape, generator=generator) * place.action.free
    time = torch.full((3,), 900.0)
    with torch.no_grad():
        found = of(((1, 2, 3),), torch.zeros(3, dtype=torch.int64), layout, Noisy(vision, action, time, time))
    assert found[0] is not None
    assert found[1] is not None
    return found[0], found[1]


def test_a_wider_network_says_what_the_narrow_one_says(
    narrow: Checkpoint, fresh: Checkpoint, small_contract: Contract, latents: Latents
):
    before, after = network(narrow), network(fresh)
    weights = widened_tensors(before.transformer.state_dict(), before.transformer, after.transformer)
    after.transformer.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    pictures = latents.first[:3].astype(np.float32)
    for mine, theirs in zip(answer(after, small_contract, pictures, video=True),
                            answer(before, small_contract, pictures, video=True), strict=True):  # fmt: skip
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_turned_latents_tell_a_network_what_they_told_it_before(
    narrow: Checkpoint, small_contract: Contract, latents: Latents
):
    before, after = network(narrow), network(narrow)
    axes = principal_axes(latents, KEPT)
    assert axes.share > 0.999
    weights = turned_tensors(before.transformer.state_dict(), axes, 2)
    after.transformer.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    pictures = latents.first[:3].astype(np.float32)
    turned = axes.apply(pictures)
    assert (turned[:, KEPT:] == 0).all()
    assert axes.apply(latents.clips[:, :, 0]).shape == (10, CHANNELS, 4, 4)
    _, mine = answer(after, small_contract, turned)
    _, theirs = answer(before, small_contract, pictures)
    torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=2e-2)  # latents are in half precision


def test_the_velocity_of_noise_is_said_before_anything_is_learned(
    wide: Checkpoint, narrow: Checkpoint, small_contract: Contract, latents: Latents
):
    pictures = principal_axes(latents, KEPT).apply(latents.first[:3])
    heard = network(wide).place(layout_of(small_contract, video=True)).vision
    assert heard is not None
    assert int(heard.free[-1].sum()) == 4 * KEPT

    def unexplained(of: BatchedTransformer) -> float:
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn(3, *heard.free.shape, generator=generator)
        said, _ = answer(of, small_contract, pictures, video=True)
        return float((noise[:, heard.free] - said[:, heard.free]).square().mean())

    assert unexplained(network(wide)) < 0.1
    assert unexplained(network(narrow)) > 0.9


def test_a_widened_network_acts_nearly_as_the_narrow_one_does(
    wide: Checkpoint, narrow: Checkpoint, small_contract: Contract, latents: Latents
):
    pictures = latents.first[:3].astype(np.float32)
    _, theirs = answer(network(narrow), small_contract, pictures)
    _, mine = answer(network(wide), small_contract, principal_axes(latents, KEPT).apply(pictures))
    apart = (mine - theirs).square().mean().sqrt() / theirs.square().mean().sqrt()
    assert float(apart) < 0.15, 'carried tokens count a little in the norms of the stream'


def test_what_lies_in_silent_channels_makes_no_difference(wide: Checkpoint, small_contract: Contract, latents: Latents):
    of, pictures = network(wide), principal_axes(latents, KEPT).apply(latents.first[:3])
    noisy = pictures.copy()
    noisy[:, KEPT:] = np.random.default_rng(1).standard_normal(noisy[:, KEPT:].shape)
    for mine, theirs in zip(answer(of, small_contract, pictures), answer(of, small_contract, noisy), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_a_turned_autoencoder_shows_the_same_pictures_and_is_silent_where_nothing_is_said(
    narrow: Checkpoint, tmp_path: Path
):
    before = VideoVae(load_autoencoder(narrow.root))
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(3, 5, 32, 32, generator=generator) * 2 - 1
    seen = before.encode(video)
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.standard_normal((CHANNELS, CHANNELS)))
    everything = Axes(rng.standard_normal(CHANNELS), turn, np.linspace(2, 1, CHANNELS), CHANNELS)
    turned = VideoVae(load_autoencoder(turn_autoencoder(narrow.root, everything, tmp_path / 'all')))
    wanted = torch.from_numpy(everything.apply(seen.numpy()))
    torch.testing.assert_close(turned.encode(video), wanted, rtol=0.05, atol=0.05)  # weights are kept in bfloat16
    apart = (turned.decode(wanted).float() - before.decode(seen).float()).abs()
    assert float(apart.mean()) < 2.0, 'levels of 255'
    few = replace(everything, kept=5)
    quiet = VideoVae(load_autoencoder(turn_autoencoder(narrow.root, few, tmp_path / 'few')))
    latent = quiet.encode(video)
    assert (latent[:, 5:] == 0).all()
    assert float(latent[:, :5].std()) > 0.1
    filled = latent.clone()
    filled[:, 5:] = torch.randn(filled[:, 5:].shape, generator=generator)
    torch.testing.assert_close(quiet.decode(filled), quiet.decode(latent), rtol=0, atol=0)


def test_latents_are_turned_without_encoding_them_again(latents: Latents, wide: Checkpoint, tmp_path: Path):
    axes = principal_axes(latents, KEPT)
    found = turn_latents(latents, axes, wide.root, tmp_path / 'turned')
    np.testing.assert_allclose(found.first, axes.apply(latents.first), atol=2e-3, rtol=2e-3)
    np.testing.assert_allclose(found.clips, axes.apply(latents.clips), atol=2e-3, rtol=2e-3)
    assert found.card['autoencoder'] == autoencoder_fingerprint(wide.root)
    assert (found.clips[:, KEPT:] == 0).all()
    with pytest.raises(InvalidInput, match='holds something'):
        turn_latents(latents, axes, wide.root, tmp_path / 'turned')


def test_training_leaves_silent_channels_alone(
    wide: Checkpoint, numbers: Recorded, small_contract: Contract, tmp_path: Path
):
    silent = [np.where(np.arange(CHANNELS).reshape(1, -1, *[1] * (part.ndim - 2)) < KEPT, part, 0)
              for part in (numbers.first, numbers.clips)]  # fmt: skip
    recorded = replace(numbers, first=silent[0], clips=silent[1])
    examples = Examples(recorded, small_contract, wide.load_tokenizer())
    transformer = wide.load_transformer('cpu', torch.float32, ('policy', 'dynamics'))
    recipe = Recipe(
        tasks={'forward': 1.0, 'policy': 1.0}, batch={'forward': 4, 'policy': 4}, learning_rate=1e-3, given=0.5
    )
    before = transformer.proj_in.weight.detach().clone()
    trainer = Trainer(transformer, examples, recipe, tmp_path / 'run')
    trainer.run(Length(steps=6))
    cells = transformer.proj_in.weight.detach().unflatten(1, (4, CHANNELS))
    assert (cells[..., KEPT:] == 0).all()
    assert not torch.equal(transformer.proj_in.weight, before)
    assert (transformer.proj_out.weight.detach().unflatten(0, (4, CHANNELS))[:, KEPT:] == 0).all()


def test_a_widened_checkpoint_says_where_it_is_from(wide: Checkpoint, narrow: Checkpoint):
    origin = json.loads((wide.root / 'checkpoint.json').read_text(encoding='utf-8'))
    assert origin['widened']['base'] == narrow.fingerprint
    assert origin['widened']['channels'] == KEPT
    assert wide.transformer_config.hidden_size == 256


def test_checkpoints_that_differ_in_more_than_the_width_are_refused_with_every_difference(
    narrow: Checkpoint,
    fresh: Checkpoint,
    tiny_checkpoint: Path,
    small_contract: Contract,
    latents: Latents,
    tmp_path: Path,
):
    with pytest.raises(CheckpointError) as caught:
        widen(narrow, open_checkpoint(tiny_checkpoint), small_contract, latents, KEPT, tmp_path / 'other')
    assert {problem.where for problem in caught.value.problems} >= {'hidden_size', 'sizes'}
    with pytest.raises(CheckpointError, match='has no room for a token'):
        widen(narrow, fresh, small_contract, latents, 17, tmp_path / 'thick')
    others = replace(latents, card={**latents.card, 'autoencoder': 'another'})
    with pytest.raises(CheckpointError, match='are not of the autoencoder of the base'):
        widen(narrow, fresh, small_contract, others, KEPT, tmp_path / 'strange')
    with pytest.raises(InvalidInput, match='out of range'):
        principal_axes(latents, 49)
    assert not any(tmp_path.iterdir())
