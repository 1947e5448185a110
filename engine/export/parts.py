"""The pieces of the network that are compiled, each a function of tensors alone with named inputs and outputs.

    prefix    (ids, cos, sin) -> (keys, values)                                   any length of prompt
    step      (tokens, keys, values, placement, timestep) -> velocities           one layout, any length of prompt
    encoder   (pixels) -> (latents)                                               one picture of one canvas
    decoder   (latents) -> (pixels)                                               one clip

A step may be cut into segments of a few layers each, for builders that need several times the memory of the weights;
then the hidden states of all tokens go from one segment to the next. What is exact in float32 (pixels, samples,
velocities, latents) is float32 at every boundary; what only the towers read is of the type they calculate in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from engine.errors import InvalidInput, Problem
from engine.network.heads import DomainLinear
from engine.network.layers import KeysValues, Layer, Rotary
from engine.network.placement import Placement
from engine.network.rope import rotary, text_positions
from engine.network.vae import space_to_channels

if TYPE_CHECKING:
    from engine.network.transformer import CosmosTransformer
    from engine.network.vae import VideoVae
    from engine.sequence import Layout

LENGTH = 'length'
"""Name of the one axis whose size is not fixed: the tokens of the prompt."""
LONGEST = 512
"""Longest prompt that a compiled step can be given."""


@dataclass(frozen=True)
class Port:
    """A tensor that goes into a part or comes out of it; an axis of variable size has its name in place of a size."""

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, name: str, tensor: Tensor, length_axis: int | None = None) -> Port:
        """The port through which such a tensor goes; `length_axis` is the axis of the prompt's tokens."""
        shape: list[int | str] = list(tensor.shape)
        if length_axis is not None:
            shape[length_axis] = LENGTH
        return cls(name, tuple(shape), tensor.dtype)


@dataclass(frozen=True, eq=False)
class Part:
    """One piece to compile.

    Attributes:
        name: Its file name, without an ending.
        module: Takes the inputs in order and returns a tuple of the outputs.
        inputs: What it takes.
        outputs: What it returns.
        examples: Inputs to trace it with and to check it by.
    """

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    examples: tuple[Tensor, ...]


class PromptPart(nn.Module):
    """The understanding tower, as far as generation reads it."""

    def __init__(self, transformer: CosmosTransformer) -> None:
        super().__init__()
        self.embed_tokens = transformer.embed_tokens
        self.layers = transformer.layers

    def forward(self, ids: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all layers [layers, U, kv_heads, head_dim] of a prompt [U]."""
        hidden, turn = self.embed_tokens(ids), Rotary(cos, sin)
        *before, last = cast('list[Layer]', list(self.layers))
        seen: list[KeysValues] = []
        for layer in before:
            hidden, keys_values = layer.understand(hidden, turn)
            seen.append(keys_values)
        seen.append(last.prefix(hidden, turn))
        return torch.stack([s.keys for s in seen]), torch.stack([s.values for s in seen])


class StepPart(nn.Module):
    """The generation tower from layer `first` to before layer `last`; with the heads where they belong.

    Which tokens are clean is an input, so that rows which are given later on (committed ones) need no part of their
    own. The domain of the actions is fixed: of the heads for all embodiments only one is kept.
    """

    def __init__(self, transformer: CosmosTransformer, domain: int, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last, self.count = first, last, len(transformer.layers)
        self.dtype = transformer.dtype
        self.timestep_scale = transformer.config.timestep_scale
        self.layers = nn.ModuleList(list(transformer.layers)[first:last])
        if first == 0:
            self.proj_in, self.time_embedder = transformer.proj_in, transformer.time_embedder
            self.action_in = _of_domain(transformer.action_proj_in, domain)
            self.action_embed = transformer.action_modality_embed
        if last == self.count:
            self.norm, self.proj_out = transformer.norm_moe_gen, transformer.proj_out
            self.action_out = _of_domain(transformer.action_proj_out, domain)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See :func:`step_ports` for what goes in and comes out."""
        given = dict(zip(step_ports(self.first == 0, self.last == self.count)[0], inputs, strict=True))
        hidden = self._begin(given) if self.first == 0 else given['hidden']
        turn = Rotary(given['rotary_cos'], given['rotary_sin'])
        pairs = zip(given['keys'].unbind(0), given['values'].unbind(0), strict=True)
        for layer, (keys, values) in zip(cast('list[Layer]', list(self.layers)), pairs, strict=True):
            hidden = layer.generate(hidden, turn, KeysValues(keys, values))
        return self._end(hidden, given) if self.last == self.count else (hidden,)

    def _begin(self, given: Mapping[str, Tensor]) -> Tensor:
        time = self.time_embedder(given['timestep'] * self.timestep_scale).to(self.dtype)
        vision = self.proj_in(given['vision'].to(self.dtype)) + given['vision_noisy'] * time
        rows = self.action_in(given['action'].to(self.dtype)) + self.action_embed
        return torch.cat([vision, rows + given['action_noisy'] * time])

    def _end(self, hidden: Tensor, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        split = [given['vision_free'].shape[0], given['action_free'].shape[0]]
        vision, action = torch.split(self.norm(hidden), split)
        exact = torch.promote_types(self.dtype, torch.float32)
        return (
            torch.where(given['vision_free'], self.proj_out(vision).to(exact), 0.0),
            torch.where(given['action_free'], self.action_out(action).to(exact), 0.0),
        )


class EncoderPart(nn.Module):
    """One picture to the first latent frame."""

    def __init__(self, vae: VideoVae) -> None:
        super().__init__()
        self.encoder, self.quant = vae.frame_encoder, vae.autoencoder.quant_conv
        self.mean, self.inverse_std = (nn.Buffer(value) for value in vae.statistics)
        self.patch, self.channels, self.dtype = vae.patch, vae.latent_channels, vae.dtype

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        """[3, H, W] float32 in -1..1 to normalised latents [1, C, 1, h, w] float32."""
        cut = space_to_channels(pixels[None, :, None].to(self.dtype), self.patch)
        mode = self.quant(self.encoder(cut))[:, : self.channels]
        normalised: Tensor = (mode - self.mean) * self.inverse_std
        return (normalised.float(),)


class DecoderPart(nn.Module):
    """Latents of one clip to its pixels."""

    def __init__(self, vae: VideoVae) -> None:
        super().__init__()
        self.autoencoder = vae.autoencoder
        self.mean, self.inverse_std = (nn.Buffer(value) for value in vae.statistics)
        self.dtype = vae.dtype

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        """Normalised latents [1, C, T, h, w] float32 to pixels [3, F, H, W] float32 in -1..1."""
        scaled = latents.to(self.dtype) / self.inverse_std + self.mean
        decoded: Tensor = self.autoencoder.decode(scaled, return_dict=False)[0]
        self.autoencoder.clear_cache()
        return (decoded[0].float().clamp(-1.0, 1.0),)


def _of_domain(heads: DomainLinear, domain: int) -> nn.Linear:
    """The linear map of one embodiment, out of the table of all."""
    weight = heads.fc.weight[domain].view(heads.inputs, heads.outputs)
    linear = nn.Linear(heads.inputs, heads.outputs, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight.T)
        linear.bias.copy_(heads.bias.weight[domain])
    return linear.requires_grad_(False)


# What goes in and comes out


def step_ports(begins: bool, ends: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the inputs and outputs of a segment of the step, in order."""
    common = ('keys', 'values', 'rotary_cos', 'rotary_sin')
    entry = ('vision', 'action', 'timestep', 'vision_noisy', 'action_noisy') if begins else ('hidden',)
    exit_ = ('vision_free', 'action_free') if ends else ()
    return (*entry, *common, *exit_), ('vision_velocity', 'action_velocity') if ends else ('hidden_out',)


def prompt_part(transformer: CosmosTransformer, ids: Tensor) -> Part:
    """The understanding tower, traced with a prompt of two tokens or more."""
    cos, sin = (part.to(ids.device) for part in rotary(text_positions(len(ids)), transformer.config, transformer.dtype))
    given = {'ids': ids, 'rotary_cos': cos, 'rotary_sin': sin}
    return _part('prefix', PromptPart(transformer).eval(), given, ('keys', 'values'), dict.fromkeys(given, 0), 1)


def step_parts(transformer: CosmosTransformer, layout: Layout, prompt: int, segments: int = 1) -> Iterator[Part]:
    """The denoising step of a layout, cut into segments of layers as equal as can be.

    Args:
        transformer: The network.
        layout: Vision and actions.
        prompt: Length of the prompt it is traced with; other lengths will do as well.
        segments: Number of pieces, from 1 to the number of layers.
    """
    config, placement = transformer.config, transformer.place(layout, prompt)
    if layout.action is None or placement.action is None or placement.vision is None:
        what = 'needs vision and actions; other tasks run on PyTorch'
        raise InvalidInput('compiled step', [Problem('layout', what, str(layout))])
    if not 1 <= segments <= config.num_hidden_layers:
        allowed = f'1 to {config.num_hidden_layers}'
        raise InvalidInput('compiled step', [Problem('segments', 'out of range', str(segments), allowed)])
    cuts = [config.num_hidden_layers * index // segments for index in range(segments + 1)]
    for index, (first, last) in enumerate(pairwise(cuts)):
        module = StepPart(transformer, layout.action.domain_id, first, last).eval()
        names, outputs = step_ports(first == 0, last == config.num_hidden_layers)
        given = _step_examples(transformer, placement, prompt, last - first)
        name = 'step' if segments == 1 else f'step_{index + 1}_of_{segments}'
        yield _part(name, module, {key: given[key] for key in names}, outputs, {'keys': 1, 'values': 1})


def encoder_part(vae: VideoVae, height: int, width: int) -> Part:
    """The encoder of one picture of a canvas, in pixels."""
    pixels = torch.rand((3, height, width), generator=_generator()) * 2 - 1
    return _part('encoder', EncoderPart(vae).eval(), {'pixels': pixels.to(vae.device)}, ('latents',))


def decoder_part(vae: VideoVae, frames: int, height: int, width: int) -> Part:
    """The decoder of a clip of so many latent frames, rows and columns."""
    latents = torch.randn((1, vae.latent_channels, frames, height, width), generator=_generator())
    return _part('decoder', DecoderPart(vae).eval(), {'latents': latents.to(vae.device)}, ('pixels',))


def _step_examples(transformer: CosmosTransformer, placement: Placement, prompt: int, layers: int) -> dict[str, Tensor]:
    config, device, dtype = transformer.config, transformer.device, transformer.dtype
    vision, action = placement.vision, placement.action
    if vision is None or action is None:
        raise InvalidInput('compiled step', [Problem('placement', 'lacks vision or actions')])
    generator = _generator()

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    keys = (layers, prompt, config.num_key_value_heads, config.head_dim)
    return {
        'vision': noise(*vision.free.shape) * vision.free,
        'action': noise(*action.free.shape) * action.free,
        'timestep': torch.full((1,), 624.0, device=device),
        'vision_noisy': vision.noisy,
        'action_noisy': action.noisy,
        'hidden': noise(len(placement.cos), config.hidden_size).to(dtype),
        'keys': noise(*keys).to(dtype),
        'values': noise(*keys).to(dtype),
        'rotary_cos': placement.cos,
        'rotary_sin': placement.sin,
        'vision_free': vision.free,
        'action_free': action.free,
    }


def _part(
    name: str,
    module: nn.Module,
    given: Mapping[str, Tensor],
    outputs: Sequence[str],
    lengths: Mapping[str, int] | None = None,
    output_length: int | None = None,
) -> Part:
    """Run the module once to see what comes out of it."""
    with torch.inference_mode():
        found = module(*given.values())
    axes = lengths or {}
    return Part(
        name,
        module,
        tuple(Port.of(key, tensor, axes.get(key)) for key, tensor in given.items()),
        tuple(Port.of(key, tensor, output_length) for key, tensor in zip(outputs, found, strict=True)),
        tuple(given.values()),
    )


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
