"""Random weights for every part of a tiny checkpoint.

Values are drawn so that activations keep a spread near one from layer to layer: a comparison of two implementations on
these weights exercises every tensor, and nothing vanishes or overflows in half precision. The draws come from NumPy,
whose streams do not depend on the processor, in the order of the tensors' names: the same seed gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from engine.tiny_sound import sound_shapes

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.network.config import TransformerConfig

_PREDICTIONS = ('proj_out.', 'action_proj_out.', 'audio_proj_out.')
_ADDED = ('to_out.weight', 'to_add_out.weight', 'down_proj.weight')

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, torch.Tensor]


def random_transformer_tensors(config: TransformerConfig, generator: np.random.Generator) -> Tensors:
    """Draw every tensor of the transformer, float32, by its public name.

    Args:
        config: Dimensions and optional parts.
        generator: Source of the numbers; advanced by the call.
    """
    from engine.network.transformer import CosmosTransformer

    shapes = _meta_shapes(lambda: CosmosTransformer(config, sound=config.sound_gen, action=config.action_gen))
    # A row of these tables is the flattened [in, out] matrix of one embodiment, so its length is not the fan-in.
    fan_in = {'action_proj_in.fc.weight': config.action_dim, 'action_proj_out.fc.weight': config.hidden_size}
    return {name: _draw(name, shapes[name], generator, fan_in.get(name)) for name in sorted(shapes)}


def fresh_transformer_tensors(config: TransformerConfig, generator: np.random.Generator) -> Tensors:
    """Weights that a training begins with: matrices by their fan-in, all else neutral, nothing predicted yet.

    What is added to the residual stream begins small, the smaller the more layers add to it.
    """
    tensors = random_transformer_tensors(config, generator)
    depth = math.sqrt(2 * config.num_hidden_layers)
    for name, tensor in tensors.items():
        if name.startswith(_PREDICTIONS):
            tensor.zero_()
        elif name.endswith('.weight') and tensor.ndim == 1:
            tensor.fill_(1.0)
        elif name.endswith(('bias', 'bias.weight', 'modality_embed')):
            tensor.zero_()
        elif name.endswith(_ADDED):
            tensor.div_(depth)
    return tensors


def random_vae_tensors(config: Mapping[str, Any], generator: np.random.Generator) -> Tensors:
    """Draw every tensor of the video autoencoder that `vae/config.json` describes, float32."""
    from engine.network.autoencoder import VideoAutoencoder
    from engine.network.autoencoder_config import AutoencoderConfig

    sizes = AutoencoderConfig.from_dict(config)
    return _draw_all(_meta_shapes(lambda: VideoAutoencoder(sizes)), generator)


def random_sound_tensors(config: Mapping[str, Any], generator: np.random.Generator) -> Tensors:
    """Draw every tensor of the sound tokenizer that `sound_tokenizer/config.json` describes, float32."""
    return _draw_all(sound_shapes(config), generator)


def random_vision_tensors(config: Mapping[str, Any], generator: np.random.Generator) -> Tensors:
    """Draw every tensor of the vision encoder described by the root `config.json`, float32.

    Nano's file holds the bare names of Qwen3-VL's vision tower; Edge's holds `model.visual.*` and `model.projector.*`.
    """
    shapes = _edge_vision_shapes(config) if config['model_type'] == 'cosmos3_edge' else _nano_vision_shapes(config)
    return _draw_all(shapes, generator)


def _nano_vision_shapes(config: Mapping[str, Any]) -> Shapes:
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    return _meta_shapes(lambda: Qwen3VLVisionModel(Qwen3VLVisionConfig(**config['vision_config'])))


def _edge_vision_shapes(config: Mapping[str, Any]) -> Shapes:
    from transformers import Cosmos3EdgeConfig, Cosmos3EdgeForConditionalGeneration

    shapes = _meta_shapes(lambda: Cosmos3EdgeForConditionalGeneration(Cosmos3EdgeConfig.from_dict(dict(config))))
    return {name: shape for name, shape in shapes.items() if name.startswith(('model.visual.', 'model.projector.'))}


def _meta_shapes(build: Callable[[], torch.nn.Module]) -> Shapes:
    """Names and shapes of a module's tensors without allocating any."""
    with torch.device('meta'):
        module = build()
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _draw_all(shapes: Shapes, generator: np.random.Generator) -> Tensors:
    return {name: _draw(name, shapes[name], generator, None) for name in sorted(shapes)}


def _draw(name: str, shape: tuple[int, ...], generator: np.random.Generator, fan_in: int | None) -> torch.Tensor:
    """One tensor: gains near one, offsets near zero, tables of embeddings and matrices scaled by their fan-in."""
    values = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
    if name.endswith(('gamma', 'weight_g')) or (name.endswith('weight') and len(shape) == 1):
        return 1 + 0.1 * values
    if name.endswith(('bias', 'bias.weight', 'alpha', 'beta', 'modality_embed')):
        return 0.1 * values
    if name.endswith(('embed_tokens.weight', 'pos_embed.weight', 'position_embedding.weight')):
        return 0.5 * values
    return values / math.sqrt(fan_in or math.prod(shape[1:]))
