"""A video autoencoder by itself on disk: `config.json` and its weights, as a checkpoint's folder `vae` has them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.checkpoint.expected import build_vae
from engine.checkpoint.loading import fill
from engine.checkpoint.shards import read_header
from engine.errors import CheckpointError, Problem
from engine.export.folders import workshop
from engine.network.autoencoder import VideoAutoencoder
from engine.network.autoencoder_config import AutoencoderConfig

CONFIG, WEIGHTS = 'config.json', 'diffusion_pytorch_model.safetensors'


def load_autoencoder(
    folder: Path, device: torch.device | str = 'cpu', dtype: torch.dtype = torch.float32
) -> VideoAutoencoder:
    """Load an autoencoder.

    Args:
        folder: That holds its configuration and weights, or one with them in `vae/`: a training's, or a checkpoint.
        device: Where its weights go.
        dtype: Their type there.

    Raises:
        CheckpointError: Something is missing or does not fit; lists every fault.
    """
    place = place_of(folder)
    try:
        document: Mapping[str, Any] = json.loads((place / CONFIG).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        problem = Problem(str(place / CONFIG), 'cannot be read', str(error))
        raise CheckpointError(f'autoencoder {folder}', [problem]) from error
    model = build_vae(document)
    stored, problems = read_header(place / WEIGHTS, str(place / WEIGHTS))
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if not problems:
        problems = [
            Problem(f'{place / WEIGHTS}: {name}', 'is missing or of another shape', found, str(list(shape)))
            for name, shape in wanted.items()
            if (found := str(list(stored[name].shape)) if name in stored else 'nothing') != str(list(shape))
        ]
    if problems:
        raise CheckpointError(f'autoencoder {folder}', problems)
    fill(model, stored, device, dtype)
    return model


def write_autoencoder(folder: Path, config: AutoencoderConfig, weights: Mapping[str, Tensor]) -> Path:
    """Write an autoencoder into a folder, whole or not at all, in bfloat16; an earlier one there is replaced."""
    with workshop(folder, CONFIG) as shop:
        text = json.dumps(config.to_dict(), indent=2) + '\n'
        (shop / CONFIG).write_text(text, encoding='utf-8')
        stored = {name: tensor.detach().to('cpu', torch.bfloat16).contiguous() for name, tensor in weights.items()}
        save_file(stored, shop / WEIGHTS, metadata={'format': 'pt'})
    return folder


def autoencoder_fingerprint(folder: Path) -> str:
    """Changes with configuration and weights."""
    place, found = place_of(folder), hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        try:
            found.update((place / name).read_bytes())
        except OSError as error:
            problem = Problem(str(place / name), 'cannot be read', str(error))
            raise CheckpointError(f'autoencoder {folder}', [problem]) from error
    return found.hexdigest()[:16]


def place_of(folder: Path) -> Path:
    """Where the files of an autoencoder lie: in a folder itself, or in its `vae/`."""
    return folder if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() else folder / 'vae'
