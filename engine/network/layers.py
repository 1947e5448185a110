"""One layer of the mixture of transformers: two towers that share nothing but the attention of the second on the first.

Module and parameter names are those of the published checkpoints. Tensors carry no batch dimension: a sequence is
[tokens, width], and heads are [tokens, heads, head_dim].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.network.config import TransformerConfig
from engine.network.fp8 import read_together

GENERATION = ('_moe_gen', 'add_q_proj', 'add_k_proj', 'add_v_proj', 'to_add_out', 'norm_added_')
"""Parts of the names of a layer's tensors that only generation reads."""


class Rotary(NamedTuple):
    """Cosines and sines of each token's rotation, both [tokens, head_dim] in the model's type."""

    cos: Tensor
    sin: Tensor


class KeysValues(NamedTuple):
    """Keys and values of one layer's understanding tokens, as generation reads them.

    Both are [tokens, kv_heads, head_dim]; keys are normalised and rotated.
    """

    keys: Tensor
    values: Tensor


class Sequenced(NamedTuple):
    """One of several sequences in a stream.

    Attributes:
        rows: Int64 [N], where in the stream its tokens are.
        prefix: What they read of understanding.
    """

    rows: Tensor
    prefix: KeysValues


class Place(NamedTuple):
    """Where tokens go in a memory of earlier ones, and what of it they see.

    Attributes:
        slots: Int64 [tokens], where their keys and values are put.
        mask: [tokens, slots of the memory] in the model's type, 0 where a token sees and -inf where it does not; None
            if they see themselves alone, each what came before it.
    """

    slots: Tensor
    mask: Tensor | None


class RmsNorm(nn.Module):
    """RMS norm with the statistic in float32 (float64 in a float64 model).

    In half precision the two backbones round at different places: Qwen (Nano, Super) casts to the model's type before
    it multiplies by the weight, Nemotron (Edge) after. `F.rms_norm` multiplies before it casts.

    Args:
        width: Length of the normalised dimension.
        eps: Added to the mean square.
        nemotron: Whether to round after the multiplication.
    """

    def __init__(self, width: int, eps: float, *, nemotron: bool) -> None:
        super().__init__()
        self.eps = eps
        self.nemotron = nemotron
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension; of a stream that is wider than the model's type, into that type."""
        if x.dtype != self.weight.dtype:
            return self.exactly(x).to(self.weight.dtype)
        if self.nemotron:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, eps=self.eps) * self.weight

    def exactly(self, x: Tensor) -> Tensor:
        """Normalise the last dimension in the type of `x`."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class HeadNorm(RmsNorm):
    """The norm of single heads, which stay in their own type if that is wider than the model's."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return self.exactly(x) if x.dtype != self.weight.dtype else super().forward(x)


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)), of Nano and Super."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [tokens, hidden_size] to the same shape."""
        x = read_together(x, self.gate_proj)
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class SquaredReluMlp(nn.Module):
    """down(relu(up(x))^2), of Edge."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [tokens, hidden_size] to the same shape."""
        out: Tensor = self.down_proj(F.relu(self.up_proj(x)).square())
        return out


class JointAttention(nn.Module):
    """Grouped-query attention: understanding is causal; generation sees all of understanding and of itself.

    Attributes:
        exact: Whether heads are normalised, rotated and attended to in float32, whatever type the products have. What
            generation reads of the understanding tokens is of the model's type all the same. For single sequences
            from their beginning, as :meth:`prefix`, :meth:`understand` and :meth:`generate` have them.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.exact = False
        self.head_dim = config.head_dim
        hidden, dim = config.hidden_size, config.head_dim
        queries, keys = config.num_attention_heads * dim, config.num_key_value_heads * dim
        self.to_q = nn.Linear(hidden, queries, bias=False)
        self.to_k = nn.Linear(hidden, keys, bias=False)
        self.to_v = nn.Linear(hidden, keys, bias=False)
        self.to_out = nn.Linear(queries, hidden, bias=False)
        self.norm_q = head_norm(config, present=config.qk_norm_for_text)
        self.norm_k = head_norm(config, present=config.qk_norm_for_text)
        self.k_norm_und_for_gen = head_norm(config, present=config.norms_und_keys_for_gen)
        self.add_q_proj = nn.Linear(hidden, queries, bias=False)
        self.add_k_proj = nn.Linear(hidden, keys, bias=False)
        self.add_v_proj = nn.Linear(hidden, keys, bias=False)
        self.to_add_out = nn.Linear(queries, hidden, bias=False)
        self.norm_added_q = head_norm(config, present=True)
        self.norm_added_k = head_norm(config, present=True)

    def prefix(self, x: Tensor, rotary: Rotary) -> KeysValues:
        """What generation reads of the understanding tokens `x` [U, hidden_size]."""
        return self._seen_by_generation(self._und_keys(x), self._heads(self.to_v(x)), rotary, x.dtype)

    def understand(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, KeysValues]:
        """Causal self-attention of the understanding tokens [U, hidden_size], and what generation reads of them.

        The tower itself attends to its keys as they are; only generation sees them through `k_norm_und_for_gen`.
        """
        query = rotate(self.norm_q(self._heads(self.to_q(x))), rotary)
        keys, values = self._und_keys(x), self._heads(self.to_v(x))
        attended = attend(query, rotate(keys, rotary), values, causal=True)
        return self.to_out(attended.to(x.dtype)), self._seen_by_generation(keys, values, rotary, x.dtype)

    def read(self, x: Tensor, rotary: Rotary, memory: KeysValues, place: Place) -> Tensor:
        """Causal self-attention of understanding tokens [n, hidden_size] that follow those in `memory`.

        Their own keys, as the tower itself sees them, and values are put there. No shape depends on how many came
        before.

        Args:
            x: The tokens.
            rotary: Their rotations.
            memory: Keys and values, both [kv_heads, slots, head_dim]; written to.
            place: Where in it.
        """
        query = rotate(self.norm_q(self._heads(self.to_q(x))), rotary)
        keys, values = rotate(self._und_keys(x), rotary), self._heads(self.to_v(x))
        memory.keys.index_copy_(1, place.slots, keys.transpose(0, 1))
        memory.values.index_copy_(1, place.slots, values.transpose(0, 1))
        if place.mask is None:
            out: Tensor = self.to_out(attend(query, keys, values, causal=True))
        else:
            out = self.to_out(attend_memory(query, memory, place.mask))
        return out

    def generate(self, x: Tensor, rotary: Rotary, prefix: KeysValues) -> Tensor:
        """Attention of the generation tokens [N, hidden_size] to the prefix and to each other, without a mask."""
        query, keys, values = self._generated(x, rotary)
        seen = (torch.cat([a.to(b.dtype), b]) for a, b in zip(prefix, (keys, values), strict=True))
        attended = attend(query, *seen, causal=False)
        out: Tensor = self.to_add_out(attended.to(x.dtype))
        return out

    def generate_together(self, x: Tensor, rotary: Rotary, sequences: Sequence[Sequenced]) -> Tensor:
        """As :meth:`generate` for several sequences whose tokens [B * N, hidden_size] share the products alone."""
        query, keys, values = self._generated(x, rotary)
        attended = torch.empty(len(x), query.shape[1] * self.head_dim, dtype=query.dtype, device=query.device)
        for rows, prefix in sequences:
            seen = torch.cat([prefix.keys, keys[rows]]), torch.cat([prefix.values, values[rows]])
            attended[rows] = attend(query[rows], *seen, causal=False)
        out: Tensor = self.to_add_out(attended)
        return out

    def _generated(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of generation tokens."""
        x = read_together(x, self.add_q_proj)
        query = rotate(self.norm_added_q(self._heads(self.add_q_proj(x))), rotary)
        keys = rotate(self.norm_added_k(self._heads(self.add_k_proj(x))), rotary)
        return query, keys, self._heads(self.add_v_proj(x))

    def _und_keys(self, x: Tensor) -> Tensor:
        keys: Tensor = self.norm_k(self._heads(self.to_k(x)))
        return keys

    def _seen_by_generation(self, keys: Tensor, values: Tensor, rotary: Rotary, dtype: torch.dtype) -> KeysValues:
        return KeysValues(rotate(self.k_norm_und_for_gen(keys), rotary).to(dtype), values.to(dtype))

    def _heads(self, x: Tensor) -> Tensor:
        heads = x.view(x.shape[0], -1, self.head_dim)
        return heads.float() if self.exact else heads


class Layer(nn.Module):
    """Pre-norm attention and MLP, once for each tower."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = JointAttention(config)
        self.mlp = make_mlp(config)
        self.mlp_moe_gen = make_mlp(config)
        self.input_layernorm = hidden_norm(config)
        self.input_layernorm_moe_gen = hidden_norm(config)
        self.post_attention_layernorm = hidden_norm(config)
        self.post_attention_layernorm_moe_gen = hidden_norm(config)

    def prefix(self, hidden: Tensor, rotary: Rotary) -> KeysValues:
        """What generation reads of the understanding stream [U, hidden_size]; does not advance that stream."""
        return self.self_attn.prefix(self.input_layernorm(hidden), rotary)

    def understand(self, hidden: Tensor, rotary: Rotary) -> tuple[Tensor, KeysValues]:
        """Advance the understanding stream [U, hidden_size]; also what generation reads of it."""
        attended, seen = self.self_attn.understand(self.input_layernorm(hidden), rotary)
        hidden = hidden + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), seen

    def read(self, hidden: Tensor, rotary: Rotary, memory: KeysValues, place: Place) -> Tensor:
        """Advance the understanding stream of tokens [n, hidden_size] that follow others; see `JointAttention.read`."""
        hidden = hidden + self.self_attn.read(self.input_layernorm(hidden), rotary, memory, place)
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out

    def generate(self, hidden: Tensor, rotary: Rotary, prefix: KeysValues) -> Tensor:
        """Advance the generation stream [N, hidden_size]."""
        hidden = hidden + self.self_attn.generate(self.input_layernorm_moe_gen(hidden), rotary, prefix)
        out: Tensor = hidden + self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(hidden))
        return out

    def generate_together(self, hidden: Tensor, rotary: Rotary, sequences: Sequence[Sequenced]) -> Tensor:
        """Advance the generation streams of several sequences, [B * N, hidden_size] together."""
        attended = self.self_attn.generate_together(self.input_layernorm_moe_gen(hidden), rotary, sequences)
        hidden = hidden + attended
        out: Tensor = hidden + self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(hidden))
        return out


def attend(query: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> Tensor:
    """Scaled dot-product attention over [tokens, heads, head_dim]; returns [tokens, heads * head_dim].

    Without a mask a query does not care where it stands, so the heads that share a key head are laid out as more
    queries of that one head: the same sums, a tenth faster on a CPU than reading the keys once for each head.
    """
    # It is right for GPUs too: the products are as many, flash and cuDNN kernels take any number of queries without a
    # mask and cut them into the same tiles, and no kernel needs to know grouped heads. The copy into this order becomes
    # part of the rotation's kernel, and the way back part of what follows, where the layer is compiled.
    tokens, heads, dim = query.shape
    shared = 1 if causal else heads // keys.shape[1]
    query = query.view(tokens, -1, shared, dim).permute(1, 2, 0, 3).reshape(1, heads // shared, shared * tokens, dim)
    keys, values = (x.transpose(0, 1).unsqueeze(0) for x in (keys, values))
    out = F.scaled_dot_product_attention(query, keys, values, is_causal=causal, enable_gqa=causal)
    return out.view(-1, shared, tokens, dim).permute(2, 0, 1, 3).reshape(tokens, heads * dim)


def attend_memory(query: Tensor, memory: KeysValues, mask: Tensor) -> Tensor:
    """Attention of a few tokens [n, heads, head_dim] to a memory; returns [n, heads * head_dim].

    Args:
        query: Rotated queries.
        memory: Keys and values, both [kv_heads, slots, head_dim].
        mask: [n, slots], added to the scores.
    """
    # Heads that share a key head become more queries of that head, as in `attend`: keys are read once for all of them.
    tokens, heads, dim = query.shape
    shared = heads // memory.keys.shape[0]
    query = query.view(tokens, -1, shared, dim).permute(1, 2, 0, 3).reshape(1, -1, shared * tokens, dim)
    mask = mask if tokens == 1 else mask.repeat(shared, 1)
    out = F.scaled_dot_product_attention(query, memory.keys[None], memory.values[None], attn_mask=mask[None, None])
    return out.view(-1, shared, tokens, dim).permute(2, 0, 1, 3).reshape(tokens, heads * dim)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate heads [tokens, heads, head_dim]; dimension k is paired with k + head_dim / 2."""
    first, second = x.chunk(2, dim=-1)
    return x * rotary.cos.unsqueeze(1) + torch.cat([-second, first], dim=-1) * rotary.sin.unsqueeze(1)


def hidden_norm(config: TransformerConfig) -> RmsNorm:
    """A norm of the residual stream."""
    return RmsNorm(config.hidden_size, config.rms_norm_eps, nemotron=config.hidden_act == 'relu2')


def head_norm(config: TransformerConfig, *, present: bool) -> nn.Module:
    """A norm of single heads, or nothing in its place (and then no parameter)."""
    if not present:
        return nn.Identity()
    return HeadNorm(config.head_dim, config.rms_norm_eps, nemotron=config.hidden_act == 'relu2')


def make_mlp(config: TransformerConfig) -> nn.Module:
    """The MLP that belongs to `hidden_act`."""
    return SquaredReluMlp(config) if config.hidden_act == 'relu2' else GatedMlp(config)
