"""The Cosmos 3 network: text once, then as many denoising steps as you like.

    prefix = model.prefix(ids)                                         # once per prompt
    for t in timesteps:
        velocities = model.denoise(prefix, layout, vision, action, sound, t)

The understanding tower never sees what is generated, so its keys and values are exact for every step and every request
with the same prompt. Backends that compile the step use its tensor-only core, :meth:`CosmosTransformer.denoise_tokens`,
with what :meth:`CosmosTransformer.place` prepares once per layout and prefix length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from engine.errors import CosmosError, InvalidInput, Problem
from engine.network.config import TransformerConfig
from engine.network.heads import DomainLinear, Table, TimeEmbedder, patchify, unpatchify
from engine.network.layers import KeysValues, Layer, Rotary, hidden_norm
from engine.network.offload import move_to_host, stream_layers
from engine.network.placement import Placement, Tokens, find_misfits, find_wrong_shapes, make_placement
from engine.network.rope import rotary, text_positions
from engine.sequence import Layout

_PLACEMENTS_KEPT = 16  # two guidance branches for each of a few layouts; a large clip's placement takes 100 MB


@dataclass(frozen=True)
class Prefix:
    """The prompt as generation reads it.

    Attributes:
        keys: Per layer [length, kv_heads, head_dim], normalised and rotated.
        values: Per layer [length, kv_heads, head_dim].
        length: Text tokens; it also decides the temporal position of everything generated.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    length: int


@dataclass(frozen=True)
class Velocities:
    """Flow-matching velocities (noise minus data) in float32, or float64 from a float64 model.

    Attributes:
        vision: [1, C, T, h, w], exactly 0 on clean frames; None without vision.
        action: [rows, action_dim], exactly 0 on clean rows and on channels the embodiment does not use; None without.
        sound: [sound_dim, frames]; None without sound.
    """

    vision: Tensor | None
    action: Tensor | None
    sound: Tensor | None


class CosmosTransformer(nn.Module):
    """Both towers with their embeddings and heads; every parameter has its public on-disk name.

    Gradients follow the caller's mode: wrap inference in `torch.inference_mode()`.

    Args:
        config: Sizes and switches.
        sound: Whether to build the sound head; by default as `config.sound_gen` says.
        action: Whether to build the action heads; by default as `config.action_gen` says.
        lm_head: Whether to build the language head, which only `logits` needs.

    Raises:
        InvalidInput: If a head is asked for whose width the configuration does not give.
    """

    action_proj_in: DomainLinear
    action_proj_out: DomainLinear
    audio_proj_in: nn.Linear
    audio_proj_out: nn.Linear

    def __init__(
        self,
        config: TransformerConfig,
        sound: bool | None = None,
        action: bool | None = None,
        *,
        lm_head: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.has_sound = config.sound_gen if sound is None else sound
        self.has_action = config.action_gen if action is None else action
        self._place = lru_cache(maxsize=_PLACEMENTS_KEPT)(make_placement)
        self._offloaded = False
        self.embed_tokens = Table(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.norm = hidden_norm(config)
        self.norm_moe_gen = hidden_norm(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False) if lm_head else None
        self.proj_in = nn.Linear(config.patch_latent_dim, config.hidden_size)
        self.proj_out = nn.Linear(config.hidden_size, config.patch_latent_dim)
        self.time_embedder = TimeEmbedder(config.hidden_size)
        self._add_optional_heads()

    def offload_understanding(self) -> None:
        """Keep what only prompts are read with in host memory; from then on they are read layer by layer.

        The memory is pinned if the device is a GPU. The final norm and the language head stay on the device. There is
        no way back, and asking again changes nothing. A transformer that was loaded this way
        (:meth:`engine.checkpoint.opening.Checkpoint.load_transformer`) has never taken more of the device.
        """
        if not self._offloaded:
            move_to_host(self, pinned=self.device.type == 'cuda')
            self._offloaded = True

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the towers calculate."""
        return self.norm_moe_gen.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm_moe_gen.weight.device

    def prefix(self, ids: Tensor, between: Callable[[], None] | None = None) -> Prefix:
        """Run the understanding tower over a prompt and keep what generation reads of it.

        The last layer's attention and MLP feed nothing that is generated, so they are left out.

        Args:
            ids: Token ids, int64 [U], U >= 1.
            between: Called before every layer; other prompts and steps may run in it.

        Raises:
            InvalidInput: If `ids` is not such a tensor or an id is outside the vocabulary.
        """
        hidden, turn = self._embed(ids)
        seen: list[KeysValues] = []
        for index, layer in enumerate(self.understanding_layers(), start=1):
            if between is not None:
                between()
            if index == len(self.layers):
                seen.append(layer.prefix(hidden, turn))
            else:
                hidden, keys_values = layer.understand(hidden, turn)
                seen.append(keys_values)
        return Prefix(tuple(s.keys for s in seen), tuple(s.values for s in seen), len(ids))

    def understand(self, ids: Tensor) -> Tensor:
        """Hidden states of a prompt after the final norm.

        Args:
            ids: Token ids, int64 [U], U >= 1.

        Returns:
            [U, hidden_size] in the model's type.

        Raises:
            InvalidInput: As for `prefix`.
        """
        hidden, turn = self._embed(ids)
        for layer in self.understanding_layers():
            hidden, _ = layer.understand(hidden, turn)
        out: Tensor = self.norm(hidden)
        return out

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of tokens, [U, hidden_size] on the model's device.

        Raises:
            InvalidInput: As for `prefix`.
        """
        _check_ids(ids, self.config.vocab_size)
        rows: Tensor = self.embed_tokens(ids.to(self.embed_tokens.weight.device))
        return rows.to(self.device)

    def rotations(self, positions: Tensor) -> Rotary:
        """Rotations of tokens at float32 positions [3, N], on the model's device and in its type."""
        cos, sin = rotary(positions, self.config, self.dtype)
        return Rotary(cos.to(self.device), sin.to(self.device))

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token scores [..., vocab_size] of hidden states [..., hidden_size].

        Raises:
            CosmosError: If the language head was not built or not loaded.
        """
        if self.lm_head is None:
            raise CosmosError('this transformer was loaded without lm_head.weight, so it cannot score tokens')
        out: Tensor = self.lm_head(hidden)
        return out

    def denoise(
        self,
        prefix: Prefix,
        layout: Layout,
        vision: Tensor | None,
        action: Tensor | None,
        sound: Tensor | None,
        timestep: float | Tensor,
    ) -> Velocities:
        """One evaluation of the generation tower.

        Args:
            prefix: The prompt, from `prefix`.
            layout: What is generated and what is given.
            vision: Latents [1, C, T, h, w] on the model's device, as the others; clean frames included; any float type.
            action: Rows [rows, action_dim], zero in channels the embodiment does not use.
            sound: Latents [sound_dim, frames].
            timestep: The sampler's timestep, 0 to 1000; a number or a tensor with one element.

        Returns:
            Velocities in the shapes of the inputs.

        Raises:
            InvalidInput: Listing everything in which inputs, layout and network differ.
        """
        inputs = Tokens(vision, action, sound)
        problems = [*self._misfits(layout), *find_wrong_shapes(self.config, layout, inputs)]
        if problems:
            raise InvalidInput('denoising step', problems)
        tokens = Tokens(
            vision=None if vision is None else patchify(vision, self.config.latent_patch_size),
            action=action,
            sound=None if sound is None else sound.T,
        )
        placement = self.place(layout, prefix.length)
        out = self.denoise_tokens(tokens, prefix.keys, prefix.values, placement, self._time(timestep))
        return self._unpack(out, layout)

    def place(self, layout: Layout, prefix_length: int) -> Placement:
        """What `denoise_tokens` needs of a layout after a prefix of `prefix_length` tokens; calculated once and kept.

        Raises:
            InvalidInput: If this network lacks a head that the layout needs.
        """
        problems = self._misfits(layout)
        if problems:
            raise InvalidInput('layout', problems)
        return self._place(self.config, layout, prefix_length, self.device, self.dtype)

    def denoise_tokens(
        self,
        tokens: Tokens,
        keys: tuple[Tensor, ...],
        values: tuple[Tensor, ...],
        placement: Placement,
        timestep: Tensor,
        generate: Callable[[Layer, Tensor, Rotary, KeysValues], Tensor] = Layer.generate,
    ) -> Tokens:
        """The denoising step on tensors alone: no bookkeeping, no branch on values, shapes fixed by the placement.

        Args:
            tokens: The generation segment; any float type.
            keys: Per layer [U, kv_heads, head_dim], from a prefix of the length the placement was made for.
            values: Per layer [U, kv_heads, head_dim].
            placement: From `place`.
            timestep: Float32 [1].
            generate: What runs one layer, for backends that have compiled it.

        Returns:
            Velocities of all tokens, float32 (float64 in a float64 model), exactly 0 where the placement is not free.
        """
        hidden = self._project_in(tokens, placement, timestep)
        turn = Rotary(placement.cos, placement.sin)
        for layer, layer_keys, layer_values in zip(self._towers(), keys, values, strict=True):
            hidden = generate(layer, hidden, turn, KeysValues(layer_keys, layer_values))
        return self._project_out(self.norm_moe_gen(hidden), tokens, placement)

    # What `torch.export` and `torch.compile` call.
    forward = denoise_tokens

    def _add_optional_heads(self) -> None:
        config, hidden = self.config, self.config.hidden_size
        widths = {'action_dim': (self.has_action, config.action_dim), 'sound_dim': (self.has_sound, config.sound_dim)}
        problems = [
            Problem(key, 'is not configured, but its head was asked for', allowed='a positive integer')
            for key, (wanted, width) in widths.items()
            if wanted and width is None
        ]
        if problems:
            raise InvalidInput('transformer', problems)
        if self.has_action and config.action_dim:
            self.action_proj_in = DomainLinear(config.action_dim, hidden, config.num_embodiment_domains)
            self.action_proj_out = DomainLinear(hidden, config.action_dim, config.num_embodiment_domains)
            self.action_modality_embed = nn.Parameter(torch.zeros(hidden))
        if self.has_sound and config.sound_dim:
            self.audio_proj_in = nn.Linear(config.sound_dim, hidden)
            self.audio_proj_out = nn.Linear(hidden, config.sound_dim)
            self.audio_modality_embed = nn.Parameter(torch.zeros(hidden))

    def _embed(self, ids: Tensor) -> tuple[Tensor, Rotary]:
        """Token embeddings [U, hidden_size] and their rotations."""
        return self.embed(ids), self.rotations(text_positions(len(ids)))

    def _project_in(self, tokens: Tokens, placement: Placement, timestep: Tensor) -> Tensor:
        """Tokens of all modalities as one stream [N, hidden_size]; only noisy ones are told the time."""
        time = self.time_embedder(timestep * self.config.timestep_scale).to(self.dtype)
        vision, action, parts = placement.vision, placement.action, []
        if tokens.vision is not None and vision is not None:
            parts.append(self.proj_in(tokens.vision.to(self.dtype)) + vision.noisy * time)
        if tokens.action is not None and action is not None:
            rows = self.action_proj_in(tokens.action.to(self.dtype), action.domain) + self.action_modality_embed
            parts.append(rows + action.noisy * time)
        if tokens.sound is not None:
            parts.append(self.audio_proj_in(tokens.sound.to(self.dtype)) + self.audio_modality_embed + time)
        return torch.cat(parts)

    def _project_out(self, hidden: Tensor, tokens: Tokens, placement: Placement) -> Tokens:
        """The heads on their own tokens, and 0 wherever nothing may change."""
        exact = torch.promote_types(self.dtype, torch.float32)
        parts = torch.split(hidden, [0 if part is None else part.shape[0] for part in tokens])
        vision = action = sound = None
        if placement.vision is not None:
            vision = torch.where(placement.vision.free, self.proj_out(parts[0]).to(exact), 0.0)
        if placement.action is not None:
            out = self.action_proj_out(parts[1], placement.action.domain)
            action = torch.where(placement.action.free, out.to(exact), 0.0)
        if tokens.sound is not None:
            sound = self.audio_proj_out(parts[2]).to(exact)
        return Tokens(vision, action, sound)

    def _unpack(self, tokens: Tokens, layout: Layout) -> Velocities:
        vision = None
        if tokens.vision is not None and layout.vision is not None:
            vision = unpatchify(tokens.vision, layout.vision, self.config.latent_patch_size)
        return Velocities(vision, tokens.action, None if tokens.sound is None else tokens.sound.T)

    def _towers(self) -> list[Layer]:
        return cast('list[Layer]', list(self.layers))

    def understanding_layers(self) -> Iterable[Layer]:
        """The layers with their understanding half on the device, each until the next is asked for."""
        layers = self._towers()
        return stream_layers(layers, self.config, self.device) if self._offloaded else layers

    def _time(self, timestep: float | Tensor) -> Tensor:
        """The timestep as float32 [1] on the device; a plain number gets there without stopping the device."""
        if isinstance(timestep, Tensor):
            return timestep.to(self.device, torch.float32).reshape(1)
        return torch.full((1,), timestep, dtype=torch.float32, device=self.device)

    def _misfits(self, layout: Layout) -> list[Problem]:
        return list(find_misfits(self.config, layout, action=self.has_action, sound=self.has_sound))


def _check_ids(ids: Tensor, vocab_size: int) -> None:
    problems = []
    if ids.dim() != 1 or not len(ids):
        problems.append(Problem('ids', 'is not a row of token ids', f'shape {list(ids.shape)}', '[U] with U >= 1'))
    if ids.dtype != torch.int64:
        problems.append(Problem('ids', 'has the wrong type', str(ids.dtype), 'torch.int64'))
    if not problems and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        found = f'{int(ids.min())} to {int(ids.max())}'
        problems.append(
            Problem('ids', 'leave the vocabulary', found, f'0 to {vocab_size - 1}', 'use its own tokenizer')
        )
    if problems:
        raise InvalidInput('prompt', problems)
