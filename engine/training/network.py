"""Both towers for many sequences at once, with gradients: what training evaluates.

It is the network of :mod:`engine.network.transformer` with a batch dimension: the same modules under the same names,
the same positions, the same sums. Sequences of a batch share one layout and differ in prompts, times and numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.errors import CosmosError
from engine.network.layers import JointAttention, Layer
from engine.network.placement import Placement, make_placement
from engine.network.rope import text_positions
from engine.network.transformer import CosmosTransformer
from engine.sequence import Layout

_BLOCK = 16  # tokens that prompts are filled up to, where shapes should be few
_PLACEMENTS = 512  # a layout with as many lengths of prompts as there are


@dataclass(frozen=True)
class Prompts:
    """What generation reads of P prompts, padded at the end to the longest.

    Attributes:
        keys: Per layer [P, U, kv_heads, head_dim], normalised and rotated.
        values: Likewise.
        lengths: Tokens of each.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    lengths: tuple[int, ...]

    @property
    def present(self) -> Tensor:
        """Bool [P, U], where there is a token."""
        longest = self.keys[0].shape[1]
        places = torch.arange(longest, device=self.keys[0].device)
        return places < torch.tensor(self.lengths, device=places.device)[:, None]


@dataclass(frozen=True)
class Noisy:
    """B sequences of one layout on their way from noise to data.

    Attributes:
        vision: [B, Nv, patch_latent_dim], clean frames included; None without vision.
        action: [B, rows, action_dim], likewise.
        vision_time: [B], timesteps of the vision, 0 to 1000.
        action_time: [B], those of the actions.
    """

    vision: Tensor | None
    action: Tensor | None
    vision_time: Tensor
    action_time: Tensor


class BatchedTransformer(nn.Module):
    """A transformer as training sees it; it has no parameters of its own.

    Args:
        transformer: Whose weights are used.
        recompute: Keep the input of each layer alone, and calculate the rest again on the way back: a third more work
            for a fraction of the memory.
        compiled: Compile what runs a layer of the generation tower, once for each shape of a batch; prompts are then
            filled up to whole blocks, so that there are few shapes.
    """

    def __init__(self, transformer: CosmosTransformer, *, recompute: bool = False, compiled: bool = False) -> None:
        super().__init__()
        self.transformer = transformer
        self._block = _BLOCK if compiled else 1
        generate = torch.compile(_generate, dynamic=False) if compiled else _generate
        layers = cast('list[Layer]', list(transformer.layers))
        # Modules of their own, so that weights which are spread over several GPUs are gathered layer by layer.
        self.steps = nn.ModuleList([_Step(layer, generate, recompute=recompute) for layer in layers])
        self._place = lru_cache(maxsize=_PLACEMENTS)(make_placement)
        # Before weights are spread over several processes.
        self._read = (transformer.proj_in.weight.detach() != 0).any(dim=0)

    def forward(
        self, ids: Sequence[Sequence[int]], which: Tensor, layout: Layout, noisy: Noisy
    ) -> tuple[Tensor | None, Tensor | None]:
        """Velocities of vision and of actions, float32, in the shapes of `noisy`; exactly 0 where nothing is generated.

        Args:
            ids: Token ids of P prompts.
            which: Int64 [B], the prompt of each sequence; in the processor's memory.
            layout: Of every sequence; without sound.
            noisy: The sequences.
        """
        return self.denoise(self.read(ids), which, layout, noisy)

    def place(self, layout: Layout) -> Placement:
        """Where of a layout anything may change that makes a difference.

        Latent channels can be silent (:mod:`engine.training.widening`): always 0 when they are encoded, and whatever is
        generated there has no effect. They get no noise in training and count for nothing.
        """
        place = self.transformer.place(layout, 1)
        if place.vision is None:
            return place
        free = place.vision.free
        return place._replace(vision=place.vision._replace(free=free & self._read.to(free.device)))

    def read(self, ids: Sequence[Sequence[int]]) -> Prompts:
        """Run the understanding tower over P prompts."""
        model = self.transformer
        lengths = tuple(len(one) for one in ids)
        longest = -(-max(lengths) // self._block) * self._block
        # What is filled in at the end is never seen: the tower is causal, and generation masks it.
        table = torch.zeros(len(ids), longest, dtype=torch.int64, device=model.device)
        for row, one in zip(table, ids, strict=True):
            row[: len(one)] = torch.tensor(one, device=model.device)
        hidden: Tensor = model.embed_tokens(table)
        turn = model.rotations(text_positions(longest))
        cos, sin = turn.cos[None, :, None], turn.sin[None, :, None]
        keys, values = [], []
        for index, step in enumerate(self.steps, start=1):
            if index == len(self.steps):
                seen = step('prefix', hidden, cos, sin)
            else:
                hidden, *seen = step('understand', hidden, cos, sin)
            keys.append(seen[0])
            values.append(seen[1])
        return Prompts(tuple(keys), tuple(values), lengths)

    def denoise(
        self, prompts: Prompts, which: Tensor, layout: Layout, noisy: Noisy
    ) -> tuple[Tensor | None, Tensor | None]:
        """As :meth:`forward`, for prompts that were read already."""
        model = self.transformer
        places = [
            self._place(model.config, layout, prompts.lengths[p], model.device, model.dtype) for p in which.tolist()
        ]
        hidden = self._project_in(places[0], noisy)
        cos = torch.stack([place.cos for place in places])[:, :, None]
        sin = torch.stack([place.sin for place in places])[:, :, None]
        chosen = which.to(hidden.device)
        own = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        seen = torch.cat([prompts.present[chosen], own], dim=1)[:, None, None]
        for step, keys, values in zip(self.steps, prompts.keys, prompts.values, strict=True):
            hidden = step('generate', hidden, cos, sin, keys[chosen], values[chosen], seen)
        return self._project_out(model.norm_moe_gen(hidden), places[0], noisy)

    def _time(self, timesteps: Tensor) -> Tensor:
        """[B, 1, hidden_size]."""
        model = self.transformer
        scaled = timesteps.to(model.device, torch.float32) * model.config.timestep_scale
        kind = 'cuda' if scaled.is_cuda else 'cpu'  # shapes without memory have no autocast of their own
        with torch.autocast(kind, enabled=False):  # in float32 whatever the products are in, as it is run
            found: Tensor = model.time_embedder(scaled).to(model.dtype)
        return found[:, None]

    def _project_in(self, place: Placement, noisy: Noisy) -> Tensor:
        model, parts = self.transformer, []
        if noisy.vision is not None and place.vision is not None:
            time = self._time(noisy.vision_time)
            parts.append(model.proj_in(noisy.vision.to(model.dtype)) + place.vision.noisy * time)
        if noisy.action is not None and place.action is not None:
            rows = model.action_proj_in(noisy.action.to(model.dtype), place.action.domain)
            time = self._time(noisy.action_time)
            parts.append(rows + model.action_modality_embed + place.action.noisy * time)
        if not parts:
            raise CosmosError('a batch needs vision, actions or both')
        return torch.cat(parts, dim=1)

    def _project_out(self, hidden: Tensor, place: Placement, noisy: Noisy) -> tuple[Tensor | None, Tensor | None]:
        model, vision, action = self.transformer, None, None
        count = 0 if noisy.vision is None else noisy.vision.shape[1]
        if place.vision is not None:
            vision = torch.where(place.vision.free, model.proj_out(hidden[:, :count]).float(), 0.0)
        if place.action is not None:
            out = model.action_proj_out(hidden[:, count:], place.action.domain)
            action = torch.where(place.action.free, out.float(), 0.0)
        return vision, action


class _Step(nn.Module):
    """What is done with one layer."""

    def __init__(self, layer: Layer, generate: Callable[..., Tensor], *, recompute: bool) -> None:
        super().__init__()
        self.layer = layer
        self._functions: dict[str, Callable[..., Any]] = {
            'prefix': _prefix,
            'understand': _understand,
            'generate': generate,
        }
        self._recompute = recompute

    def forward(self, name: str, *inputs: Tensor) -> Any:
        """Call a function of the layer."""
        function = self._functions[name]
        if self._recompute and torch.is_grad_enabled():
            return checkpoint(function, self.layer, *inputs, use_reentrant=False)
        return function(self.layer, *inputs)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _heads(x: Tensor, attention: JointAttention) -> Tensor:
    return x.unflatten(-1, (-1, attention.head_dim))


def _seen(attention: JointAttention, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys as the tower sees them, keys as generation sees them (rotated), and values, of understanding tokens."""
    keys = attention.norm_k(_heads(attention.to_k(x), attention))
    shown = _rotate(attention.k_norm_und_for_gen(keys), cos, sin)
    return keys, shown, _heads(attention.to_v(x), attention)


def _prefix(layer: Layer, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    _, shown, values = _seen(layer.self_attn, layer.input_layernorm(hidden), cos, sin)
    return shown, values


def _understand(layer: Layer, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    attention, x = layer.self_attn, layer.input_layernorm(hidden)
    query = _rotate(attention.norm_q(_heads(attention.to_q(x), attention)), cos, sin)
    keys, shown, values = _seen(attention, x, cos, sin)
    attended = _attend(query, _rotate(keys, cos, sin), values, None)
    hidden = hidden + attention.to_out(attended)
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden)), shown, values


def _generate(
    layer: Layer, hidden: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, seen: Tensor
) -> Tensor:
    attention, x = layer.self_attn, layer.input_layernorm_moe_gen(hidden)
    query = _rotate(attention.norm_added_q(_heads(attention.add_q_proj(x), attention)), cos, sin)
    own = _rotate(attention.norm_added_k(_heads(attention.add_k_proj(x), attention)), cos, sin)
    all_keys = torch.cat([keys, own], dim=1)
    all_values = torch.cat([values, _heads(attention.add_v_proj(x), attention)], dim=1)
    hidden = hidden + attention.to_add_out(_attend(query, all_keys, all_values, seen))
    out: Tensor = hidden + layer.mlp_moe_gen(layer.post_attention_layernorm_moe_gen(hidden))
    return out


def _attend(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None) -> Tensor:
    """[B, N, heads, head_dim] to [B, N, heads * head_dim]; causal without a mask of what is seen."""
    shared = query.shape[2] // keys.shape[2]
    batch, tokens, heads, dim = query.shape
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if seen is None:
        keys, values = (x.repeat_interleave(shared, dim=1) for x in (keys, values))
        out = F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, is_causal=True)
        return out.transpose(1, 2).reshape(batch, tokens, heads * dim)
    # Heads that share a key head become more queries of it, as in `engine.network.layers.attend`.
    query = query.unflatten(2, (-1, shared)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    out = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
    return out.unflatten(2, (shared, tokens)).permute(0, 3, 1, 2, 4).reshape(batch, tokens, heads * dim)
