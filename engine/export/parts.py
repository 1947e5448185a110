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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn

from engine.errors import InvalidInput, Problem
from engine.network.autoencoder import decode_clip, encode_clip
from engine.network.heads import DomainLinear, linear_at_least_float32
from engine.network.layers import GENERATION, KeysValues, Layer, Rotary
from engine.network.placement import Placement, make_placement
from engine.network.rope import rotary, text_positions

if TYPE_CHECKING:
    from engine.network.config import TransformerConfig
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
        outputs: Names of what it returns; their shapes follow from the inputs.
        examples: Inputs to trace it with and to check it by.
    """

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
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
        hidden = hidden.to(stream_type(hidden.dtype))
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

    In float16 the sum that goes from layer to layer, the last norm and the heads are float32. They are the smallest
    part of the work, and rounding them would cost the most: a normalised channel reaches the square root of the width,
    where numbers lie 0.004 to 0.03 apart. The sum could exceed the range of float16, too.
    """

    def __init__(self, transformer: CosmosTransformer, dtype: torch.dtype, domain: int, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last, self.count = first, last, len(transformer.layers)
        self.dtype = dtype
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
        time = self.time_embedder(given['timestep'] * self.timestep_scale).to(stream_type(self.dtype))
        vision = self._head(self.proj_in, given['vision']) + given['vision_noisy'] * time
        rows = self._head(self.action_in, given['action']) + self.action_embed
        return torch.cat([vision, rows + given['action_noisy'] * time])

    def _end(self, hidden: Tensor, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        split = [given['vision_free'].shape[0], given['action_free'].shape[0]]
        last = self.norm(hidden) if hidden.dtype is self.dtype else self.norm.exactly(hidden)
        vision, action = torch.split(last, split)
        exact = torch.promote_types(self.dtype, torch.float32)
        return (
            torch.where(given['vision_free'], self._head(self.proj_out, vision).to(exact), 0.0),
            torch.where(given['action_free'], self._head(self.action_out, action).to(exact), 0.0),
        )

    def _head(self, head: nn.Linear, x: Tensor) -> Tensor:
        if stream_type(self.dtype) is not self.dtype:
            return linear_at_least_float32(head, x)
        out: Tensor = head(x.to(self.dtype))
        return out


def stream_type(dtype: torch.dtype) -> torch.dtype:
    """Type of the sum that goes from layer to layer, in parts that calculate in `dtype`."""
    return torch.float32 if dtype is torch.float16 else dtype


class EncoderPart(nn.Module):
    """One picture to the first latent frame."""

    def __init__(self, vae: VideoVae) -> None:
        super().__init__()
        self.encoder, self.quant = vae.autoencoder.encoder, vae.autoencoder.quant_conv
        self.mean, self.inverse_std = (nn.Buffer(value) for value in vae.statistics)
        self.channels, self.dtype = vae.latent_channels, vae.dtype

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        """[3, H, W] float32 in -1..1 to normalised latents [1, C, 1, h, w] float32."""
        mode = encode_clip(self.encoder, self.quant, pixels[None, :, None].to(self.dtype))[:, : self.channels]
        normalised: Tensor = (mode - self.mean) * self.inverse_std
        return (normalised.float(),)


class DecoderPart(nn.Module):
    """Latents of one clip to its pixels."""

    def __init__(self, vae: VideoVae) -> None:
        super().__init__()
        self.decoder, self.quant = vae.autoencoder.decoder, vae.autoencoder.post_quant_conv
        self.mean, self.inverse_std = (nn.Buffer(value) for value in vae.statistics)
        self.dtype = vae.dtype

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        """Normalised latents [1, C, T, h, w] float32 to pixels [3, F, H, W] float32 in -1..1."""
        scaled = latents.to(self.dtype) / self.inverse_std + self.mean
        return (decode_clip(self.decoder, self.quant, scaled)[0].float().clamp(-1.0, 1.0),)


def _attend_exactly(layers: nn.ModuleList, exact: bool) -> None:
    for layer in cast('list[Layer]', list(layers)):
        layer.self_attn.exact = exact


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


class Weights(Protocol):
    """Where the weights of a network come from that is built without memory for them."""

    def load(self, names: Sequence[str]) -> None:
        """Fill these tensors."""

    def forget(self, names: Sequence[str]) -> None:
        """Give their memory back."""


class _Loaded:
    """Weights that are there already."""

    def load(self, names: Sequence[str]) -> None:
        """Nothing is left to do."""

    def forget(self, names: Sequence[str]) -> None:
        """Whoever loaded them keeps them."""


LOADED = _Loaded()


@contextmanager
def prompt_part(
    transformer: CosmosTransformer, dtype: torch.dtype, prompt: int, weights: Weights = LOADED, *, exact: bool = False
) -> Iterator[Part]:
    """The understanding tower, while the context lasts.

    Args:
        transformer: The network.
        dtype: Type it calculates in.
        prompt: Length of the prompt it is traced with, 2 or more; other lengths will do as well.
        weights: Loads the tower's weights for as long as they are needed.
        exact: See :class:`StepPlan`.
    """
    names = _names(transformer, lambda name: not _is_generation(name))
    weights.load(names)
    _attend_exactly(transformer.layers, exact)
    try:
        ids = torch.arange(prompt, device=transformer.embed_tokens.weight.device) % transformer.config.vocab_size
        cos, sin = (part.to(ids.device) for part in rotary(text_positions(prompt), transformer.config, dtype))
        given = {'ids': ids, 'rotary_cos': cos, 'rotary_sin': sin}
        yield _part('prefix', PromptPart(transformer).eval(), given, ('keys', 'values'), dict.fromkeys(given, 0))
    finally:
        _attend_exactly(transformer.layers, False)
        weights.forget(names)


@dataclass(frozen=True)
class StepPlan:
    """What a denoising step is made for.

    Attributes:
        layout: Its tokens.
        prompt: Length of the prompt it is traced with.
        segments: Into how many pieces of layers it is cut.
        exact: Whether it attends in float32, whatever its type. Processors calculate so in any case, and only lose
            digits on the way; the kernels of a GPU are another matter.
    """

    layout: Layout
    prompt: int
    segments: int = 1
    exact: bool = False

    def names(self) -> list[str]:
        """Names of the segments, in order."""
        if self.segments == 1:
            return ['step']
        return [f'step_{index + 1}_of_{self.segments}' for index in range(self.segments)]


@contextmanager
def step_part(
    transformer: CosmosTransformer, dtype: torch.dtype, plan: StepPlan, index: int, weights: Weights = LOADED
) -> Iterator[Part]:
    """One segment of the denoising step, while the context lasts; layers are dealt out as equally as can be.

    Args:
        transformer: The network.
        dtype: Type it calculates in.
        plan: What it is made for.
        index: Which segment, from 0.
        weights: Loads the segment's weights for as long as they are needed.

    Raises:
        InvalidInput: The layout lacks vision or actions, or there are more segments than layers.
    """
    config, count = transformer.config, transformer.config.num_hidden_layers
    if plan.layout.action is None or plan.layout.vision is None or plan.layout.sound is not None:
        what = 'needs vision and actions without sound; other tasks run on PyTorch'
        raise InvalidInput('compiled step', [Problem('layout', what, str(plan.layout))])
    if not 1 <= plan.segments <= count:
        problem = Problem('segments', 'out of range', str(plan.segments), f'1 to {count}, the number of layers')
        raise InvalidInput('compiled step', [problem])
    first, last = (count * cut // plan.segments for cut in (index, index + 1))
    names = _step_names(transformer, first, last)
    weights.load(names)
    _attend_exactly(transformer.layers, plan.exact)
    try:
        device = transformer.state_dict()[names[0]].device
        placement = make_placement(config, plan.layout, plan.prompt, device, dtype)
        module = StepPart(transformer, dtype, plan.layout.action.domain_id, first, last).eval()
        inputs, outputs = step_ports(first == 0, last == count)
        given = _step_examples(config, placement, plan.prompt, last - first)
        yield _part(plan.names()[index], module, {key: given[key] for key in inputs}, outputs, {'keys': 1, 'values': 1})
    finally:
        _attend_exactly(transformer.layers, False)
        weights.forget(names)


def generation_bytes(config: TransformerConfig, dtype: torch.dtype) -> int:
    """Memory of the generation tower's layers."""
    hidden, heads, keys = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    attention = hidden * config.head_dim * (2 * heads + 2 * keys)
    matrices = 2 if config.hidden_act == 'relu2' else 3
    return config.num_hidden_layers * (attention + matrices * hidden * config.intermediate_size) * dtype.itemsize


_ENTRY = ('proj_in.', 'time_embedder.', 'action_proj_in.', 'action_modality_embed')
_EXIT = ('proj_out.', 'norm_moe_gen.', 'action_proj_out.')


def _is_generation(name: str) -> bool:
    """Whether a tensor is of no use to the understanding tower's keys and values."""
    heads = name.startswith((*_ENTRY, *_EXIT, 'audio_', 'lm_head.', 'norm.'))
    return heads or any(part in name for part in GENERATION)


def _step_names(transformer: CosmosTransformer, first: int, last: int) -> list[str]:
    heads = (*(_ENTRY if first == 0 else ()), *(_EXIT if last == transformer.config.num_hidden_layers else ()))
    layers = tuple(f'layers.{index}.' for index in range(first, last))

    def wanted(name: str) -> bool:
        of_layer = name.startswith(layers) and any(part in name for part in GENERATION)
        return of_layer or name.startswith(heads)

    return _names(transformer, wanted)


def _names(transformer: CosmosTransformer, wanted: Callable[[str], bool]) -> list[str]:
    return [name for name in transformer.state_dict() if wanted(name)]


def encoder_part(vae: VideoVae, height: int, width: int) -> Part:
    """The encoder of one picture of a canvas, in pixels."""
    pixels = torch.rand((3, height, width), generator=_generator()) * 2 - 1
    return _part('encoder', EncoderPart(vae).eval(), {'pixels': pixels.to(vae.device)}, ('latents',))


def decoder_part(vae: VideoVae, frames: int, height: int, width: int) -> Part:
    """The decoder of a clip of so many latent frames, rows and columns."""
    latents = torch.randn((1, vae.latent_channels, frames, height, width), generator=_generator())
    return _part('decoder', DecoderPart(vae).eval(), {'latents': latents.to(vae.device)}, ('pixels',))


def _step_examples(config: TransformerConfig, placement: Placement, prompt: int, layers: int) -> dict[str, Tensor]:
    device, dtype = placement.cos.device, placement.cos.dtype
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
        'hidden': noise(len(placement.cos), config.hidden_size).to(stream_type(dtype)),
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
) -> Part:
    """A part by its example inputs; `lengths` names the axis of the prompt's tokens in each input that has one."""
    axes = lengths or {}
    ports = tuple(Port.of(key, tensor, axes.get(key)) for key, tensor in given.items())
    return Part(name, module, ports, tuple(outputs), tuple(given.values()))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
