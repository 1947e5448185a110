"""Write a small random checkpoint in exactly the public on-disk layout.

It stands in for the published weights wherever those are out of reach: in tests, in the demo, on a machine without a
network. Every file, key and tensor name is where the published repositories have it, so whatever reads the one reads
the other.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import save_file

from engine import tiny_configs
from engine.errors import CheckpointError, InvalidInput, Problem
from engine.network.config import TransformerConfig
from engine.tiny_tokenizer import TinyTokenizer, build_tokenizer
from engine.tiny_weights import (
    Tensors,
    fresh_transformer_tensors,
    random_sound_tensors,
    random_transformer_tensors,
    random_vae_tensors,
    random_vision_tensors,
)

Variant = Literal['nano', 'edge']
Weights = Literal['reflex', 'random', 'fresh']
Size = Literal['tiny', 'micro']

_CREATED_BY = 'cosmos3 make-tiny'
_WIDTH_STEP = 32
_SINGLE = 'diffusion_pytorch_model.safetensors'
_INDEX = 'diffusion_pytorch_model.safetensors.index.json'
_SHARDS = 2

# Tensors of the generation tower by a part of their name; Edge's root index leaves them out.
_GENERATOR_PARTS = (
    'moe_gen', 'add_q_proj', 'add_k_proj', 'add_v_proj', 'to_add_out', 'norm_added_', 'k_norm_und_for_gen',
)  # fmt: skip
_GENERATOR_HEADS = ('proj_in.', 'proj_out.', 'time_embedder.', 'action_', 'audio_')


def make_tiny(
    directory: Path | str,
    variant: Variant = 'nano',
    seed: int = 0,
    *,
    sound: bool = True,
    weights: Weights = 'reflex',
    real_ids: bool = False,
    size: Size = 'tiny',
    sentences: tuple[str, ...] = (),
    width: int = 0,
) -> Path:
    """Write a random checkpoint of a few megabytes; the same arguments give the same bytes.

    The directory appears whole or not at all. An earlier tiny checkpoint in its place is replaced; anything else is
    left alone and refused.

    Args:
        directory: Where the checkpoint goes; missing parents are created.
        variant: 'nano' (Qwen backbone, gated MLP) or 'edge' (Nemotron backbone, un-gated MLP).
        seed: Seed of all random weights, >= 0.
        sound: Whether to include the sound head and the sound tokenizer; Edge never has them.
        weights: 'random' draws everything; 'reflex' then replaces part of the generation tower by constructed weights
            with which the policy reacts to what it is shown; 'fresh' is what a training begins with.
        real_ids: Use the public vocabulary's size and token ids: the embeddings then take tens of megabytes.
        size: 'tiny', or 'micro', which can be trained to something.
        sentences: What the tokenizer shall read in few tokens.
        width: Of both towers' streams, in place of the size's own; 0 for that.

    Returns:
        The absolute path of the checkpoint.

    Raises:
        InvalidInput: `variant`, `seed` or `weights` is not one of those allowed (all faults at once).
        CheckpointError: `directory` holds something else.
    """
    _check_arguments(variant, seed, weights, size, width)
    target = Path(directory).expanduser().resolve()
    _check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f'.{target.name}-', dir=target.parent))
    try:
        tokenizer = build_tokenizer(edge=variant == 'edge', real_ids=real_ids, sentences=sentences)
        _write(staging, tokenizer, _Draw(seed, sound and variant == 'nano', weights, size, width))
        staging.chmod(0o755)
        _replace(target, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


@dataclass(frozen=True)
class _Draw:
    """What is drawn; see :func:`make_tiny`."""

    seed: int
    sound: bool
    weights: Weights
    size: Size
    width: int

    @property
    def sizes(self) -> tiny_configs.Sizes:
        """Of the towers."""
        usual = tiny_configs.MICRO if self.size == 'micro' else tiny_configs.Sizes.tiny()
        return replace(usual, hidden_size=self.width or usual.hidden_size)


def _check_arguments(variant: str, seed: int, weights: str, size: str, width: int) -> None:
    problems = []
    if variant not in get_args(Variant):
        problems.append(Problem('variant', 'is unknown', repr(variant), ', '.join(get_args(Variant))))
    if weights not in get_args(Weights):
        problems.append(Problem('weights', 'is unknown', repr(weights), ', '.join(get_args(Weights))))
    if size not in get_args(Size):
        problems.append(Problem('size', 'is unknown', repr(size), ', '.join(get_args(Size))))
    if weights == 'reflex' and size != 'tiny':
        problems.append(Problem('weights', 'are constructed for the tiny size alone', weights, 'random, fresh'))
    if width and (width < 0 or width % _WIDTH_STEP or weights == 'reflex'):
        remedy = 'reflex weights have the usual width' if weights == 'reflex' else ''
        problems.append(Problem('width', 'cannot be used', str(width), f'a multiple of {_WIDTH_STEP}', remedy))
    if seed < 0:
        problems.append(Problem('seed', 'is negative', str(seed), 'an integer >= 0'))
    if problems:
        raise InvalidInput('tiny checkpoint', problems)


def _check_target(target: Path) -> None:
    """Refuse to touch anything but a free path, an empty directory or an earlier tiny checkpoint."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        created_by = json.loads((target / 'checkpoint.json').read_text(encoding='utf-8')).get('created_by')
    except (OSError, ValueError, AttributeError):
        created_by = None
    if created_by != _CREATED_BY:
        what = 'holds something other than a tiny checkpoint' if target.is_dir() else 'is not a directory'
        remedy = 'choose another directory, or empty this one yourself'
        raise CheckpointError('tiny checkpoint', [Problem(str(target), what, remedy=remedy)])


def _replace(target: Path, staging: Path) -> None:
    """Put `staging` in the place of `target` (absent, empty or an earlier checkpoint) by renames alone."""
    if not target.exists() or not any(target.iterdir()):
        os.replace(staging, target)
        return
    with tempfile.TemporaryDirectory(prefix=f'.{target.name}-old-', dir=target.parent) as old:
        os.replace(target, Path(old) / 'checkpoint')
        os.replace(staging, target)


def _write(root: Path, tokenizer: TinyTokenizer, draw: _Draw) -> None:
    edge, sound = tokenizer.edge, draw.sound
    # One stream for each part: leaving a part out does not change the others.
    for_transformer, for_vae, for_vision, for_sound = np.random.default_rng(draw.seed).spawn(4)
    config = tiny_configs.transformer(edge=edge, sound=sound, vocab_size=tokenizer.vocab_size, sizes=draw.sizes)
    described = tiny_configs.root(tokenizer, draw.sizes)
    vision = random_vision_tensors(described, for_vision)
    shards = _write_transformer(root / 'transformer', config, for_transformer, draw.weights)
    origin = tiny_configs.provenance(edge=edge, seed=draw.seed, weights=draw.weights, size=draw.size)
    _write_root(root, tokenizer, described, sound, origin)
    vae, audio = tiny_configs.vae(), tiny_configs.sound_tokenizer()
    _write_part(root / 'vae', vae, random_vae_tensors(vae, for_vae))
    _write_part(root / 'vision_encoder', described['vision_config'], vision, 'model.safetensors')
    _write_json(root / 'scheduler' / 'scheduler_config.json', tiny_configs.scheduler(edge=edge))
    for name, content in tokenizer.files().items():
        _write_text(root / 'text_tokenizer' / name, content)
    if sound:
        _write_part(root / 'sound_tokenizer', audio, random_sound_tensors(audio, for_sound))
    _write_root_index(root, edge, shards, vision)


def _write_root(
    root: Path, tokenizer: TinyTokenizer, described: Mapping[str, Any], sound: bool, provenance: Mapping[str, Any]
) -> None:
    """The documents beside the parts: what the whole is, and the assets of the reasoner."""
    edge = tokenizer.edge
    _write_json(root / 'config.json', described)
    _write_json(root / 'checkpoint.json', provenance)
    _write_json(root / 'model_index.json', tiny_configs.model_index(edge=edge, sound=sound))
    _write_json(root / 'generation_config.json', tiny_configs.generation(tokenizer))
    _write_json(root / 'preprocessor_config.json', tiny_configs.image_preprocessor(edge=edge))
    _write_json(root / 'video_preprocessor_config.json', tiny_configs.video_preprocessor(edge=edge))
    _write_text(root / 'chat_template.jinja', tokenizer.chat_template)
    _write_text(root / 'tokenizer.json', tokenizer.tokenizer_json())


def _write_transformer(
    directory: Path, document: Mapping[str, Any], generator: np.random.Generator, weights: Weights
) -> dict[str, Tensors]:
    """Write configuration, shards and index; return the shards by file name."""
    config = TransformerConfig.from_dict(document)
    draw = fresh_transformer_tensors if weights == 'fresh' else random_transformer_tensors
    tensors = draw(config, generator)
    if weights == 'reflex':
        from engine import tiny_reflex

        tiny_reflex.apply(tensors, config.to_dict())
    _write_json(directory / 'config.json', document)
    shards = _split(tensors)
    for file, shard in shards.items():
        _save(directory / file, shard)
    _write_json(directory / _INDEX, _index({name: file for file, shard in shards.items() for name in shard}, tensors))
    return shards


def _split(tensors: Tensors) -> dict[str, Tensors]:
    """Deal the tensors, in order, to shards of about equal size."""
    share = sum(tensor.numel() for tensor in tensors.values()) / _SHARDS
    files = [f'diffusion_pytorch_model-{n + 1:05d}-of-{_SHARDS:05d}.safetensors' for n in range(_SHARDS)]
    shards: dict[str, Tensors] = {file: {} for file in files}
    before = 0
    for name, tensor in tensors.items():
        shards[files[int(before // share)]][name] = tensor
        before += tensor.numel()
    return shards


def _write_root_index(root: Path, edge: bool, shards: Mapping[str, Tensors], vision: Tensors) -> None:
    """The index from which transformers gathers the understanding tower and the vision encoder."""
    tensors = dict(vision)
    files = dict.fromkeys(vision, 'vision_encoder/model.safetensors')
    for file, shard in shards.items():
        kept = {name: tensor for name, tensor in shard.items() if not (edge and _is_generator(name))}
        files |= dict.fromkeys(kept, f'transformer/{file}')
        tensors |= kept
    _write_json(root / 'model.safetensors.index.json', _index(files, tensors))


def _is_generator(name: str) -> bool:
    return name.startswith(_GENERATOR_HEADS) or any(part in name for part in _GENERATOR_PARTS)


def _index(files: Mapping[str, str], tensors: Tensors) -> dict[str, Any]:
    size = sum(tensor.numel() for tensor in tensors.values()) * torch.bfloat16.itemsize
    return {'metadata': {'total_size': size}, 'weight_map': dict(sorted(files.items()))}


def _write_part(directory: Path, config: Mapping[str, Any], tensors: Tensors, file: str = _SINGLE) -> None:
    _write_json(directory / 'config.json', config)
    _save(directory / file, tensors)


def _save(path: Path, tensors: Tensors) -> None:
    """Store in bfloat16, as all published weights are."""
    stored = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    save_file(stored, path, metadata={'format': 'pt'})
    path.chmod(0o644)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    _write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + '\n')


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8', newline='\n')
