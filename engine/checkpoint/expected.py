"""What the configuration says a part must hold, compared with what its files hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from engine.checkpoint.inspection import WEIGHTS, Inspection, Json, Part
from engine.errors import CheckpointError
from engine.network.autoencoder import VideoAutoencoder
from engine.network.autoencoder_config import AutoencoderConfig
from engine.network.config import TransformerConfig
from engine.network.transformer import CosmosTransformer

Shapes = dict[str, tuple[int, ...]]

LANGUAGE_HEAD = 'lm_head.weight'
_SOUND = 'audio_'
# A table of learned positions that training frameworks still save and nothing reads.
_IGNORED = 'action_pos_embed.'
_FLOATS = {'BF16', 'F16', 'F32', 'F64'}
_QUANTIZED_TYPES = {'F8_E4M3', 'F8_E5M2', 'U8', 'I8'}
_QUANTIZER = '_quantizer.'


def build_transformer(config: TransformerConfig, *, sound: bool, action: bool, lm_head: bool) -> CosmosTransformer:
    """The network without memory for its weights (meta device)."""
    with torch.device('meta'):
        return CosmosTransformer(config, sound=sound, action=action, lm_head=lm_head)


def build_vae(config: Mapping[str, Any]) -> VideoAutoencoder:
    """The video autoencoder that `vae/config.json` describes, without memory for its weights (meta device).

    Raises:
        CheckpointError: It describes none; lists every fault.
    """
    sizes = AutoencoderConfig.from_dict(config)
    with torch.device('meta'):
        return VideoAutoencoder(sizes)


def check_transformer(look: Inspection, config: TransformerConfig, part: Part) -> None:
    """Report every tensor of the transformer that is missing, extra, mis-shaped or of another type.

    Optional are the sound head as a whole (policy exports leave it out although the configuration names it) and the
    language head, which only the reasoner needs.
    """
    known = set(part.tensors) | part.lost
    sound = config.sound_gen and any(name.startswith(_SOUND) for name in known)
    model = build_transformer(config, sound=sound, action=config.action_gen, lm_head=LANGUAGE_HEAD in known)
    ignored = {name for name in part.tensors if name.startswith(_IGNORED)}
    compare(look, 'transformer', _shapes(model), part, ignored)


def check_vae(look: Inspection, config: Json, part: Part) -> None:
    """Report every tensor of the video autoencoder that differs from its configuration."""
    try:
        expected = _shapes(build_vae(config))
    except CheckpointError as error:
        look.problems += error.problems
        return
    compare(look, 'vae', expected, part, set())


def check_vision_encoder(look: Inspection, expected: torch.nn.Module, part: Part) -> None:
    """Report every tensor of the vision encoder that differs from the configuration."""
    compare(look, 'vision_encoder', _shapes(expected), part, set())


def find_quantization(config: Json | None, part: Part) -> str:
    """What shows that weights are quantised (ModelOpt's FP8 exports, for one); empty if nothing does."""
    for name, tensor in part.tensors.items():
        if _QUANTIZER in name:
            return name
        if tensor.dtype in _QUANTIZED_TYPES:
            return f'{name} of type {tensor.dtype}'
    return 'quantization_config' if config and config.get('quantization_config') else ''


def compare(look: Inspection, folder: str, expected: Shapes, part: Part, ignored: set[str]) -> None:
    """Report what tells `part` from `expected`, tensor by tensor.

    Args:
        look: Receives the faults.
        folder: Folder of the part.
        expected: Shapes by name.
        part: What was found.
        ignored: Names that may be there for all we care.
    """
    for name in sorted(expected.keys() - part.tensors.keys() - part.lost):
        look.report(f'{folder}/{part.files.get(name, WEIGHTS)}: {name}', 'is missing', allowed=_shape(expected[name]))
    for name, tensor in sorted(part.tensors.items()):
        where = f'{folder}/{tensor.file.name}: {name}'
        if name not in expected:
            if name not in ignored:
                look.report(
                    where, 'is not part of this model', _shape(tensor.shape), remedy='is config.json the right one?'
                )
            continue
        if tensor.shape != expected[name]:
            look.report(where, 'has the wrong shape', _shape(tensor.shape), _shape(expected[name]))
        if tensor.dtype not in _FLOATS:
            look.report(where, 'has the wrong type', tensor.dtype, ', '.join(sorted(_FLOATS)))
        if name not in part.files:
            look.report(where, 'is not listed in the index')


def _shapes(model: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _shape(shape: tuple[int, ...]) -> str:
    return f'[{", ".join(map(str, shape))}]'
