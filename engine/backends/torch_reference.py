"""PyTorch, eager: the reference that all other backends are held to."""

from __future__ import annotations

import torch

from engine.backends.base import Step
from engine.network.placement import Tokens
from engine.network.transformer import CosmosTransformer, Prefix
from engine.sequence import Layout


class TorchReference:
    """Runs a loaded :class:`CosmosTransformer` as it is."""

    name = 'torch'

    def __init__(self, transformer: CosmosTransformer) -> None:
        """Wrap `transformer`, whose device and dtype decide where and how precisely it runs."""
        self.transformer = transformer

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
            return self.transformer.prefix(torch.tensor(ids, dtype=torch.long, device=self.device))

    def step(self, prefix: Prefix, layout: Layout) -> Step:
        """See :meth:`Backend.step`."""
        placement = self.transformer.place(layout, prefix.length)

        def run(tokens: Tokens, timestep: float) -> Tokens:
            with torch.inference_mode():
                time = torch.full((1,), timestep, dtype=torch.float32, device=self.device)
                return self.transformer.denoise_tokens(tokens, prefix.keys, prefix.values, placement, time)

        return run
