"""Writes what was trained as a checkpoint in the public layout: a copy of the one it began with, with other weights."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError, CosmosError, Problem
from engine.training.autoencoder_files import CONFIG, WEIGHTS, place_of

WRITTEN_BY = 'cosmos3 train'


def write_trained(
    base: Checkpoint,
    output: Path,
    weights: Mapping[str, Tensor],
    origin: Mapping[str, Any],
    vae: Path | None = None,
) -> Path:
    """Write a checkpoint, whole or not at all.

    Args:
        base: What the training began with; every file that is not replaced is copied from it.
        output: Folder, new or an earlier result of training.
        weights: Tensors of the transformer by public name; those that are missing stay as they are. They are stored in
            the type in which they were.
        origin: For `checkpoint.json`: what was trained, how, for how long.
        vae: Folder of an autoencoder that takes the place of the base's.

    Raises:
        CosmosError: The disk is full, or a file cannot be read.
        CheckpointError: The output holds something else, or a weight fits no tensor of the base; lists every fault.
    """
    output = output.expanduser().resolve()
    problems = [*in_the_way(output)]
    unknown = [name for name in weights if name not in base.tensors]
    problems += [Problem(name, 'is no tensor of the base', remedy='train what it has') for name in unknown]
    problems += [
        Problem(name, 'has another shape', str(list(tensor.shape)), str(list(base.tensors[name].shape)))
        for name, tensor in weights.items()
        if name in base.tensors and list(tensor.shape) != list(base.tensors[name].shape)
    ]
    if problems:
        raise CheckpointError(f'trained checkpoint {output}', problems)
    try:
        _write(base, output, weights, origin, vae)
    except (OSError, SafetensorError) as error:
        raise CosmosError(f'checkpoint {output} cannot be written: {error} -> make room, then run it again') from error
    return output


def _write(
    base: Checkpoint, output: Path, weights: Mapping[str, Tensor], origin: Mapping[str, Any], vae: Path | None
) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{output.name}-', dir=output.parent) as scratch:
        staging = Path(scratch) / 'checkpoint'
        shutil.copytree(base.root, staging, ignore=shutil.ignore_patterns('.*'))
        for file in sorted((staging / 'transformer').glob('*.safetensors')):
            _replace_tensors(file, weights)
        if vae is not None:
            shutil.rmtree(staging / 'vae')
            (staging / 'vae').mkdir()
            for name in (CONFIG, WEIGHTS):
                shutil.copyfile(place_of(vae) / name, staging / 'vae' / name)
        document = {**dict(origin), 'created_by': WRITTEN_BY}
        text = json.dumps(document, indent=2, ensure_ascii=False) + '\n'
        (staging / 'checkpoint.json').write_text(text, encoding='utf-8')
        if output.exists():
            os.replace(output, Path(scratch) / 'before')
        os.replace(staging, output)


def in_the_way(output: Path) -> list[Problem]:
    """What keeps a checkpoint from being written to a folder."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return []
    try:
        by = json.loads((output / 'checkpoint.json').read_text(encoding='utf-8')).get('created_by')
    except (OSError, ValueError, AttributeError):
        by = None
    if by == WRITTEN_BY:
        return []
    return [Problem(str(output), 'holds something else', remedy='name a folder that does not exist yet')]


def _replace_tensors(file: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a shard again with whatever of it was trained."""
    with safe_open(file, 'pt') as shard:
        metadata = shard.metadata()
        tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    changed = {
        name: weights[name].detach().to('cpu', old.dtype).contiguous()
        for name, old in tensors.items()
        if name in weights
    }
    if changed:
        unfinished = file.with_name(f'.{file.name}')
        save_file({**tensors, **changed}, unfinished, metadata=metadata)
        os.replace(unfinished, file)
