"""Makes room for imagination in a small network: few channels, and a wider stream that carries them.

A network that generates says velocities, and a velocity is noise less data. So its stream has to carry the noise of
every number of a token from the first layer to the last, beside all that it thinks. The published networks are twenty
times as wide as a token. One that is no wider than a token, and has learned actions alone, hands on next to nothing of
it, and does not find the way there in an hour. Two things help, and neither changes much of what the network does with
actions:

- The channels of a small autoencoder are turned to their principal axes, and those that say nothing become silent:
  exactly 0 when they are encoded, and ignored by the network and by the decoder. Training leaves them out
  (:meth:`engine.training.network.BatchedTransformer.place`).
- The stream becomes wider by at least as many numbers as are left in a token. They carry the token through, and the
  head reads them: that is the noise. What is to be learned is the data. Norms of the stream of picture tokens notice
  a little of it; nothing else does.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.contract import Contract
from engine.errors import CheckpointError, CosmosError, InvalidInput, Problem
from engine.network.layers import RmsNorm
from engine.network.transformer import CosmosTransformer
from engine.policy import layout_of
from engine.training.autoencoder_files import autoencoder_fingerprint, load_autoencoder, write_autoencoder
from engine.training.examples import cut
from engine.training.latents import CARD, CLIPS, FIRST, REAL, STARTS, Latents, open_latents
from engine.training.network import BatchedTransformer, Noisy
from engine.training.writing import write_trained

Floats = NDArray[np.float64]
Tensors = dict[str, Tensor]

_SAMPLES = 200_000
"""Cells of latents that principal axes are found from."""
_CARRIED = 1.0
"""How strongly a token is carried. Weakly, the norms of the stream would notice even less, but whatever layers write
beside it while they learn would be blown up by as much."""
_AT_ONCE = 1000
_PICTURES = 64
"""Pictures by which the strength of the stream is measured."""
_TIME = 800.0
"""The noise level at which that is done, out of 1000."""
_TABLES = {'action_proj_in.fc.weight': 2, 'action_proj_out.fc.weight': 1}
"""Tables whose rows are flattened matrices, and which edge of those is the stream."""


@dataclass(frozen=True, eq=False)
class Axes:
    """Principal axes of normalised latents with C channels.

    Attributes:
        mean: [C].
        turn: [C, C], a column for each axis, the widest first.
        spread: [C], variances along them.
        kept: How many are kept.
    """

    mean: Floats
    turn: Floats
    spread: Floats
    kept: int

    @property
    def share(self) -> float:
        """Of the variance that is kept, 0 to 1."""
        return float(self.spread[: self.kept].sum() / self.spread.sum())

    @property
    def scale(self) -> float:
        """What makes the mean variance along those that are kept 1: noise has 1, too."""
        return float(1.0 / np.sqrt(self.spread[: self.kept].mean()))

    @property
    def matrix(self) -> Tensor:
        """`turn` with zeros for the axes that are not kept, float64 [C, C]."""
        return torch.from_numpy(self.turn * (np.arange(len(self.turn)) < self.kept))

    def apply(self, latents: NDArray[np.floating]) -> NDArray[np.float32]:
        """Latents [B, C, ...] along the axes, of spread 1 altogether; along those that are not kept they are 0."""
        moved = latents.astype(np.float64) - self.mean.reshape(1, -1, *[1] * (latents.ndim - 2))
        found = np.einsum('bc...,ck->bk...', moved, self.scale * self.turn[:, : self.kept])
        silent = [(0, 0), (0, len(self.mean) - self.kept), *[(0, 0)] * (latents.ndim - 2)]
        return np.pad(found, silent).astype(np.float32)


def widen(
    base: Checkpoint, into: Checkpoint, contract: Contract, latents: Latents, channels: int, output: Path
) -> Axes:
    """Write a wider checkpoint that acts as another does, carries its tokens through, and reads few channels.

    What has no part in actions is that of `into`: the vision encoder, and sound.

    Args:
        base: What it is to do.
        into: A checkpoint of the width that is wanted, and else of the same sizes and words; its weights are lost.
        contract: Whose pictures the latents are.
        latents: Encoded with the autoencoder of the base.
        channels: Latent channels that are kept.
        output: Folder to make.

    Raises:
        InvalidInput: `channels` is out of range.
        CheckpointError: The two do not fit, or the output holds something else; lists every fault.
        CosmosError: The disk is full.
    """
    patch = base.transformer_config.latent_patch_size
    narrow, wide = (one.load_transformer('cpu', torch.float32, ('policy', 'dynamics')) for one in (base, into))
    _raise_misfits(base, into, latents, channels * patch**2)
    axes = principal_axes(latents, channels)
    weights = widened_tensors(turned_tensors(narrow.state_dict(), axes, patch), narrow, wide)
    pictures = axes.apply(np.asarray(latents.first[:: max(1, len(latents.first) // _PICTURES)]))
    carry(weights, channels, patch, narrow.config.hidden_size)
    wide.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    say(weights, channels, patch, narrow.config.hidden_size, _strength(wide, contract, pictures))
    with tempfile.TemporaryDirectory() as scratch:
        vae = turn_autoencoder(base.root, axes, Path(scratch) / 'vae')
        origin = {
            'name': output.name,
            'widened': {'base': base.fingerprint, 'channels': channels, 'share': round(axes.share, 4)},
        }
        write_trained(into, output, weights, origin, vae)
    return axes


def principal_axes(latents: Latents, kept: int, seed: int = 0) -> Axes:
    """Principal axes of what was encoded, of frames by themselves and of clips.

    Raises:
        InvalidInput: `kept` is out of range.
    """
    channels = latents.first.shape[1]
    if not 1 <= kept <= channels:
        raise InvalidInput('widening', [Problem('channels', 'is out of range', str(kept), f'1 to {channels}')])
    rng, parts = np.random.default_rng(seed), []
    for array in (latents.first, latents.clips):
        if len(array):
            each = math.prod(array.shape[2:])
            some = np.sort(rng.choice(len(array), min(len(array), -(-_SAMPLES // each)), replace=False))
            parts.append(np.moveaxis(np.asarray(array[some], np.float64), 1, -1).reshape(-1, channels))
    cells = np.concatenate(parts)
    spread, turn = np.linalg.eigh(np.cov(cells.T))
    return Axes(cells.mean(axis=0), turn[:, ::-1].copy(), spread[::-1].copy(), kept)


def turn_autoencoder(folder: Path, axes: Axes, output: Path) -> Path:
    """Write an autoencoder whose latents are those of another as :meth:`Axes.apply` has them.

    The last convolution of its encoder and the first of its decoder see one place at a time, so they can take it over.

    Raises:
        CheckpointError: The autoencoder cannot be loaded.
    """
    model = load_autoencoder(folder)
    config, weights = model.config, {name: tensor.double() for name, tensor in model.state_dict().items()}
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (config.latents_mean, config.latents_std))
    middle, count = torch.from_numpy(axes.mean), len(axes.mean)
    encode, offset = weights['quant_conv.weight'], weights['quant_conv.bias']
    into = axes.matrix.T / std
    encode[:count] = torch.einsum('kc,ci...->ki...', into, encode[:count].clone())
    offset[:count] = into @ (offset[:count] - mean) - axes.matrix.T @ middle
    decode = weights['post_quant_conv.weight']
    weights['post_quant_conv.bias'] += torch.einsum('oc...,c->o...', decode, std * middle + mean).flatten()
    weights['post_quant_conv.weight'] = torch.einsum('oc...,ck->ok...', decode, std[:, None] * axes.matrix)
    plain = replace(config, latents_mean=(0.0,) * count, latents_std=(1.0 / axes.scale,) * count)
    return write_autoencoder(output, plain, weights)


def turn_latents(latents: Latents, axes: Axes, autoencoder: Path, output: Path) -> Latents:
    """Write latents as a turned autoencoder makes them, but for rounding: nothing is encoded again.

    Args:
        latents: Of the autoencoder before it was turned.
        axes: By which it was.
        autoencoder: Folder of the turned one.
        output: Folder to make.

    Raises:
        InvalidInput: The output holds something.
        CosmosError: The disk is full.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        remedy = 'name a folder that is not there yet'
        raise InvalidInput('turned latents', [Problem(str(output), 'holds something', remedy=remedy)])
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, array in ((FIRST, latents.first), (CLIPS, latents.clips)):
            _turn_file(output / name, array, axes)
        np.save(output / STARTS, latents.starts)
        np.save(output / REAL, latents.real)
        card = {**latents.card, 'autoencoder': autoencoder_fingerprint(autoencoder)}
        (output / CARD).write_text(json.dumps(card, indent=1) + '\n', encoding='utf-8')  # last: nobody opens a part
    except OSError as error:
        raise CosmosError(f'making {output} failed: {error}') from error
    return open_latents(output)


def _turn_file(path: Path, array: NDArray[np.float16], axes: Axes) -> None:
    if not len(array):
        np.save(path, np.asarray(array))
        return
    file = np.lib.format.open_memmap(path, 'w+', np.float16, array.shape)
    for begin in range(0, len(array), _AT_ONCE):
        file[begin : begin + _AT_ONCE] = axes.apply(np.asarray(array[begin : begin + _AT_ONCE]))
    file.flush()


def turned_tensors(weights: Mapping[str, Tensor], axes: Axes, patch: int) -> Tensors:
    """Weights, float64, of a transformer that sees of turned latents what it saw of others, as far as they are kept.

    Where a picture has an odd number of cells, what fills it up is now the mean and no longer 0.
    """
    found = {name: tensor.double() for name, tensor in weights.items()}
    cells = found['proj_in.weight'].unflatten(1, (patch**2, len(axes.mean)))
    found['proj_in.bias'] = found['proj_in.bias'] + torch.einsum('hpc,c->h', cells, torch.from_numpy(axes.mean))
    found['proj_in.weight'] = torch.einsum('hpc,ck->hpk', cells, axes.matrix / axes.scale).flatten(1)
    return found


def widened_tensors(weights: Mapping[str, Tensor], narrow: CosmosTransformer, wide: CosmosTransformer) -> Tensors:
    """Weights, float64, of a wider transformer that says what the narrow one says.

    The numbers by which its stream is wider stay 0, and nobody reads them yet.
    """
    old, new = narrow.config.hidden_size, wide.config.hidden_size
    norms = {f'{name}.weight' for name, module in wide.named_modules() if isinstance(module, RmsNorm)}
    found = {}
    for name, tensor in wide.state_dict().items():
        given = weights[name].double()
        if name in norms and len(given) == old:
            # The mean square is over more numbers now, of which the new ones are 0.
            found[name] = torch.ones(new, dtype=torch.float64)
            found[name][:old] = given * math.sqrt(old / new)
            continue
        edge = _TABLES.get(name)
        if edge is not None:
            given = given.unflatten(1, (-1, old) if edge == 2 else (old, -1))
        shape = tensor.shape if edge is None else [new if k == edge else size for k, size in enumerate(given.shape)]
        filled = torch.zeros(*shape, dtype=torch.float64)
        filled[tuple(map(slice, given.shape))] = given
        found[name] = filled.reshape(tensor.shape)
    return found


def carry(weights: Tensors, channels: int, patch: int, old: int) -> None:
    """Let new numbers of the stream carry what is left of a token; in place.

    Args:
        weights: Of a widened transformer.
        channels: That are kept.
        patch: Edge of a token.
        old: Width of the stream before.
    """
    for place, number in enumerate(_kept_numbers(weights, channels, patch), start=old):
        weights['proj_in.weight'][place, number] = _CARRIED


def say(weights: Tensors, channels: int, patch: int, old: int, strength: float) -> None:
    """Let the head say what is carried as the velocity of pure noise, and nothing else; in place.

    Args:
        weights: As for :func:`carry`.
        channels: Likewise.
        patch: Likewise.
        old: Likewise.
        strength: Root mean square of the stream behind the last layer.
    """
    weights['proj_out.weight'].zero_()
    weights['proj_out.bias'].zero_()
    gain = math.sqrt(strength)  # the other half is up to the head, so that both can learn at one pace
    for place, number in enumerate(_kept_numbers(weights, channels, patch), start=old):
        weights['norm_moe_gen.weight'][place] = gain
        weights['proj_out.weight'][number, place] = strength / (gain * _CARRIED)


def _kept_numbers(weights: Mapping[str, Tensor], channels: int, patch: int) -> list[int]:
    """The numbers of a token that are left, by their places in it."""
    every = weights['proj_in.weight'].shape[1]
    return [number for number in range(every) if number % (every // patch**2) < channels]


def _strength(transformer: CosmosTransformer, contract: Contract, pictures: NDArray[np.float32]) -> float:
    """Root mean square of tokens of vision behind the last layer, where videos begin with pictures [B, C, h, w]."""
    layout, network = layout_of(contract, video=True), BatchedTransformer(transformer)
    place, seen = transformer.place(layout, 1), []
    vision = torch.from_numpy(cut(pictures[:, :, None], transformer.config.latent_patch_size).astype(np.float32))
    if place.vision is None or place.action is None or layout.vision is None:
        raise InvalidInput('widening', [Problem('contract', 'has no video', contract.name)])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(vision), *place.vision.free.shape, generator=generator)
    first = vision.shape[1]
    noise[:, :first] = vision
    action = torch.randn(len(vision), *place.action.free.shape, generator=generator) * place.action.free
    time = torch.full((len(vision),), _TIME)
    hook = transformer.norm_moe_gen.register_forward_pre_hook(
        lambda _norm, given: seen.append(given[0][:, first : noise.shape[1]].square().mean().sqrt())
    )
    with torch.no_grad():
        network.eval()(((1,),), torch.zeros(len(vision), dtype=torch.int64), layout, Noisy(noise, action, time, time))
    hook.remove()
    return float(seen[0])


def _raise_misfits(base: Checkpoint, into: Checkpoint, latents: Latents, carried: int) -> None:
    """Refuse two checkpoints that differ in more than the width, and latents of another autoencoder."""
    old, new = base.transformer_config, into.transformer_config
    problems = []
    if latents.card.get('autoencoder') != (mine := autoencoder_fingerprint(base.root)):
        given, remedy = str(latents.card.get('autoencoder')), 'encode the corpus with the base'
        problems.append(Problem('latents', 'are not of the autoencoder of the base', given, mine, remedy))
    if new.hidden_size < old.hidden_size + carried:
        least = f'{old.hidden_size + carried} or more'
        remedy = 'cosmos3 make-tiny --size micro --weights fresh --width N'
        problems.append(Problem('hidden_size', 'has no room for a token', str(new.hidden_size), least, remedy))
    if replace(new, hidden_size=old.hidden_size) != old:
        problems.append(Problem('sizes', 'differ in more than the width', str(into.root), str(base.root)))
    if base.load_tokenizer().encode('') != into.load_tokenizer().encode('') or _words(base) != _words(into):
        problems.append(Problem('tokenizer', 'is another', str(into.root), str(base.root)))
    if problems:
        raise CheckpointError(f'widening {base.root}', problems)


def _words(checkpoint: Checkpoint) -> bytes:
    return (checkpoint.root / 'text_tokenizer' / 'tokenizer.json').read_bytes()
