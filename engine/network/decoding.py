"""Text, token after token: the understanding tower with the keys and values of what was read before.

    reading = Reading(transformer, capacity=512)
    scores = reading.read(prompt_ids)          # the whole prompt at once
    while ...:
        scores = reading.read(next_id)         # one token, or several

It attends to its keys as they are. What generation reads of a prompt is another view of the same tower, with a norm of
its own: :meth:`CosmosTransformer.prefix`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.errors import InvalidInput, Problem
from engine.network.layers import JointAttention, Rotary, attend, rotate
from engine.network.rope import rotary, text_positions

if TYPE_CHECKING:
    from engine.network.transformer import CosmosTransformer


class Reading:
    """One text that is read and continued. Memory for all of it is taken at the start."""

    def __init__(self, transformer: CosmosTransformer, capacity: int) -> None:
        """Prepare for a text of at most `capacity` tokens.

        Raises:
            InvalidInput: The capacity is not positive.
        """
        if capacity < 1:
            raise InvalidInput('reading', [Problem('capacity', 'out of range', str(capacity), 'a whole number from 1')])
        config = transformer.config
        self._transformer = transformer
        self._length = 0
        cos, sin = rotary(text_positions(capacity), config, transformer.dtype)
        self._cos, self._sin = cos.to(transformer.device), sin.to(transformer.device)
        shape = (config.num_hidden_layers, capacity, config.num_key_value_heads, config.head_dim)
        self._keys = torch.empty(shape, dtype=transformer.dtype, device=transformer.device)
        self._values = torch.empty_like(self._keys)

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return self._length

    def read(self, ids: Tensor) -> Tensor:
        """Read on.

        Args:
            ids: Token ids, int64 [n]: the prompt at first, later what was said.

        Returns:
            Scores [vocab_size] of the token that follows the last one, in the transformer's type.

        Raises:
            InvalidInput: The text gets longer than the capacity, or several tokens follow others at once.
            CosmosError: The transformer was loaded without its language head.
        """
        start, end = self._length, self._length + len(ids)
        problems = []
        if not len(ids) or end > len(self._cos):
            allowed = f'1 to {len(self._cos) - start}'
            problems.append(Problem('ids', 'do not fit the capacity', f'{len(ids)} tokens', allowed))
        if start and len(ids) > 1:
            problems.append(Problem('ids', 'follow others', f'{len(ids)} tokens', 'one at a time after the prompt'))
        if problems:
            raise InvalidInput('reading', problems)
        table = self._transformer.embed_tokens
        hidden = table(ids.to(table.weight.device)).to(self._keys.device)
        turn = Rotary(self._cos[start:end], self._sin[start:end])
        for index, layer in enumerate(self._transformer.understanding_layers()):
            attended = self._attend(index, layer.self_attn, layer.input_layernorm(hidden), turn, end)
            hidden = hidden + attended
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        self._length = end
        return self._transformer.logits(self._transformer.norm(hidden[-1]))

    def _attend(self, index: int, attention: JointAttention, x: Tensor, turn: Rotary, end: int) -> Tensor:
        def heads(projected: Tensor) -> Tensor:
            return projected.view(len(x), -1, attention.head_dim)

        start = end - len(x)
        self._keys[index, start:end] = rotate(attention.norm_k(heads(attention.to_k(x))), turn)
        self._values[index, start:end] = heads(attention.to_v(x))
        query = rotate(attention.norm_q(heads(attention.to_q(x))), turn)
        seen = self._keys[index, :end], self._values[index, :end]
        # A prompt sees what stands before each of its tokens; a token alone sees everything.
        out: Tensor = attention.to_out(attend(query, *seen, causal=start == 0 and end > 1))
        return out
