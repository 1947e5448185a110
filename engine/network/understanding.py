"""Reading a conversation and writing an answer with the understanding tower, which a memory of keys and values joins.

    memory = Memory(transformer)
    hidden = read(transformer, transformer.embed(ids), positions, memory)     # the conversation, all tokens at once
    writer = Writer(transformer, memory, position)
    logits = writer([token])                                                  # then token by token, or some at a time

The weights are those with which prompts of generation are read (:meth:`CosmosTransformer.prefix`). A memory belongs to
one request, so that whatever is done with the weights between two layers changes nothing in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.network.layers import KeysValues, Layer, Place, Rotary
from engine.network.transformer import CosmosTransformer

GROWTH = 256
"""A memory grows by so many tokens; for Nano in bfloat16 that is 38 MB."""

ReadLayer = Callable[[Layer, Tensor, Rotary, KeysValues, Place], Tensor]


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Depths:
    """What the vision encoder adds behind the first layers (deepstack).

    Attributes:
        where: Int64 [pieces], which of the tokens that are read are pieces of pictures.
        features: For each of the first layers, [pieces, hidden_size].
    """

    where: Tensor
    features: Sequence[Tensor]


class Memory:
    """Keys and values of the tokens that were read so far, layer by layer, in tensors with room for more.

    Attributes:
        layers: Per layer keys and values, both [kv_heads, room, head_dim], keys as the tower itself sees them.
        length: Tokens in it. May be set back: what comes then takes the place of what was read since.
    """

    def __init__(self, transformer: CosmosTransformer, room: int = GROWTH) -> None:
        """Make room for `room` tokens, rounded up."""
        config = transformer.config
        shape = (config.num_key_value_heads, _rounded(room), config.head_dim)
        options: Any = {'dtype': transformer.dtype, 'device': transformer.device}
        # Zeros, because attention multiplies what a mask hides by 0, and chance may have left a NaN there.
        self.layers = [
            KeysValues(torch.zeros(shape, **options), torch.zeros(shape, **options))
            for _ in range(config.num_hidden_layers)
        ]
        self.length = 0

    @property
    def room(self) -> int:
        """Tokens that fit in."""
        return self.layers[0].keys.shape[1]

    def make_room(self, tokens: int) -> bool:
        """Make it large enough for `tokens` more tokens; layer by layer, so that only one is there twice.

        Returns:
            Whether it had to grow.
        """
        missing = self.length + tokens - self.room
        if missing <= 0:
            return False
        for index, layer in enumerate(self.layers):
            self.layers[index] = KeysValues(*(_extended(part, _rounded(missing)) for part in layer))
        return True

    @property
    def bytes(self) -> int:
        """Memory it takes."""
        return sum(part.nbytes for layer in self.layers for part in layer)


def read(
    transformer: CosmosTransformer,
    hidden: Tensor,
    positions: Tensor,
    memory: Memory,
    depths: Depths | None = None,
    between: Callable[[], None] = _nothing,
) -> Tensor:
    """Read tokens that follow those in a memory, and remember them.

    Args:
        transformer: Whose understanding tower reads.
        hidden: Embeddings of the tokens [n, hidden_size], pieces of pictures in place.
        positions: Float32 [3, n].
        memory: What was read before; grows if need be.
        depths: What to add behind the first layers.
        between: Called before every layer; whatever uses the weights may run in it.

    Returns:
        Hidden states [n, hidden_size] behind the last layer; :func:`score` makes scores of them.
    """
    memory.make_room(len(hidden))
    rotary = transformer.rotations(positions)
    place = _place(memory, len(hidden), hidden)
    for index, layer in enumerate(transformer.understanding_layers()):
        between()
        hidden = layer.read(hidden, rotary, memory.layers[index], place)
        if depths is not None and index < len(depths.features):
            hidden.index_add_(0, depths.where, depths.features[index])
    memory.length += len(hidden)
    return hidden


def score(transformer: CosmosTransformer, hidden: Tensor) -> Tensor:
    """Scores [n, vocab_size] of what follows each of the hidden states [n, hidden_size] behind the last layer.

    Raises:
        CosmosError: The language head was not loaded.
    """
    return transformer.logits(transformer.norm(hidden))


class Writer:
    """Reads an answer as it is written: one token after the other, or several at once.

    Shapes change only with the number of tokens, and where the memory has to grow. The first call of each may compile.
    """

    def __init__(
        self,
        transformer: CosmosTransformer,
        memory: Memory,
        position: int,
        between: Callable[[], None] = _nothing,
        read_layer: ReadLayer = Layer.read,
    ) -> None:
        """Go on where a memory ends.

        Args:
            transformer: Whose understanding tower reads.
            memory: What was read before.
            position: Of the next token, on all three axes.
            between: Called before every layer.
            read_layer: What runs one layer, for those who have compiled it.
        """
        self._transformer, self._memory = transformer, memory
        self._ahead = position - memory.length
        self._between, self._read_layer = between, read_layer
        self._prepare()

    def __call__(self, tokens: Sequence[int]) -> Tensor:
        """Scores [n, vocab_size] of what follows each of n tokens."""
        count = len(tokens)
        if self._memory.make_room(count):
            self._prepare()
        transformer, at = self._transformer, self._memory.length
        slots = self._slots[at : at + count]
        place = Place(slots, _mask(slots, self._slots, transformer.dtype))
        rotary = Rotary(self._turns.cos[at : at + count], self._turns.sin[at : at + count])
        hidden = transformer.embed_tokens.weight[list(tokens)].to(transformer.device)
        for index, layer in enumerate(transformer.understanding_layers()):
            self._between()
            hidden = self._read_layer(layer, hidden, rotary, self._memory.layers[index], place)
        self._memory.length += count
        return score(transformer, hidden)

    def forget(self, count: int) -> None:
        """The last `count` tokens are not part of the answer after all."""
        self._memory.length -= count

    def _prepare(self) -> None:
        """All that follows from the room there is: slots and rotations."""
        room, transformer = self._memory.room, self._transformer
        self._slots = torch.arange(room, device=transformer.device)
        self._turns = transformer.rotations((torch.arange(room, dtype=torch.float32) + self._ahead).expand(3, room))


def _place(memory: Memory, tokens: int, like: Tensor) -> Place:
    """The slots behind what is in a memory; a mask only if there is something."""
    slots = torch.arange(memory.length, memory.length + tokens, device=like.device)
    if not memory.length:
        return Place(slots, None)
    return Place(slots, _mask(slots, torch.arange(memory.room, device=like.device), like.dtype))


def _mask(slots: Tensor, room: Tensor, dtype: torch.dtype) -> Tensor:
    """Each of the tokens at `slots` sees all slots of `room` up to its own."""
    unseen = room > slots[:, None]
    return torch.zeros(unseen.shape, dtype=dtype, device=room.device).masked_fill_(unseen, -torch.inf)


def _rounded(tokens: int) -> int:
    return -(-tokens // GROWTH) * GROWTH


def _extended(part: Tensor, more: int) -> Tensor:
    heads, _, dim = part.shape
    return torch.cat([part, part.new_zeros(heads, more, dim)], dim=1)
