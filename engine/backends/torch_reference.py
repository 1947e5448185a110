"""PyTorch, eager: the reference that all other backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.network.transformer import CosmosTransformer, Prefix, Velocities
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
        return next(self.transformer.parameters()).device

    def prefix(self, ids: list[int]) -> Prefix:
        """See :meth:`Backend.prefix`."""
        with torch.inference_mode():
            return self.transformer.prefix(torch.tensor(ids, dtype=torch.long, device=self.device))

    def denoise(
        self,
        prefix: Prefix,
        layout: Layout,
        *,
        vision: Tensor | None = None,
        action: Tensor | None = None,
        sound: Tensor | None = None,
        timestep: float = 0.0,
    ) -> Velocities:
        """See :meth:`Backend.denoise`."""
        with torch.inference_mode():
            return self.transformer.denoise(prefix, layout, vision, action, sound, timestep)
