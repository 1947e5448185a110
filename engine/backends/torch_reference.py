"""PyTorch, eager: the reference that all other backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.backends.base import Step
from engine.network.layers import KeysValues, Layer, Rotary
from engine.network.placement import Tokens
from engine.network.transformer import CosmosTransformer, Prefix
from engine.sequence import Layout
from engine.turns import give_way


class TorchReference:
    """Runs a loaded :class:`CosmosTransformer` as it is."""

    name = 'torch'

    def __init__(self, transformer: CosmosTransformer, *, offload: bool = False) -> None:
        """Wrap a transformer.

        Args:
            transformer: Its device and dtype decide where and how precisely it runs.
            offload: Keep its understanding tower in host memory, from where it comes when a new prompt is read.
        """
        self.transformer = transformer
        if offload:
            transformer.offload_understanding()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.transformer.device

    @property
    def patch(self) -> int:
        """See :attr:`Backend.patch`."""
        return self.transformer.config.latent_patch_size

    def prefix(self, ids: list[int]) -> Prefix:
        """See :meth:`Backend.prefix`."""
        with torch.inference_mode():
            return self.transformer.prefix(torch.tensor(ids, dtype=torch.long, device=self.device), give_way)

    def step(self, prefix: Prefix, layout: Layout) -> Step:
        """See :meth:`Backend.step`."""
        placement = self.transformer.place(layout, prefix.length)

        def run(tokens: Tokens, timestep: float) -> Tokens:
            with torch.inference_mode():
                time = torch.full((1,), timestep, dtype=torch.float32, device=self.device)
                return self.transformer.denoise_tokens(tokens, prefix.keys, prefix.values, placement, time, _generate)

        return run


def _generate(layer: Layer, hidden: Tensor, rotary: Rotary, prefix: KeysValues) -> Tensor:
    """A layer, once more urgent requests have passed: the hidden states are all that there is to keep."""
    give_way()
    return layer.generate(hidden, rotary, prefix)
