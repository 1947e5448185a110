"""PyTorch, eager: the reference that all other backends are held to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.backends.base import Step
from engine.errors import InvalidInput, Problem
from engine.network.layers import KeysValues, Layer, Rotary, Sequenced
from engine.network.placement import Tokens, place_together
from engine.network.transformer import CosmosTransformer, Prefix
from engine.sequence import Layout
from engine.turns import give_way


class TorchReference:
    """Runs a loaded :class:`CosmosTransformer` as it is."""

    name = 'torch'
    together = True
    """Whether there is :meth:`step_together`."""

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

    def step_together(self, prefixes: Sequence[Prefix], layout: Layout) -> Step:
        """The denoising step of several requests of one layout, whatever their prompts.

        Args:
            prefixes: Of B requests, from :meth:`prefix`.
            layout: Of each; without sound.

        Returns:
            A step on B times the tokens: vision of all requests, then action of all.
        """
        if layout.vision is None or layout.action is None or layout.sound is not None:
            raise InvalidInput('requests together', [Problem('layout', 'needs vision and action, and no sound')])
        vision = math.prod(layout.vision.grid(self.patch))
        placements = [self.transformer.place(layout, prefix.length) for prefix in prefixes]
        placement, rows = place_together(placements, (vision, layout.action.rows))
        layers = range(len(prefixes[0].keys))
        seen = [[KeysValues(one.keys[layer], one.values[layer]) for one in prefixes] for layer in layers]
        sequences = [[Sequenced(*pair) for pair in zip(rows, of_layer, strict=True)] for of_layer in seen]

        def run(tokens: Tokens, timestep: float) -> Tokens:
            of_layers = iter(sequences)

            def generate(layer: Layer, hidden: Tensor, rotary: Rotary, _prefix: KeysValues) -> Tensor:
                give_way()
                return layer.generate_together(hidden, rotary, next(of_layers))

            with torch.inference_mode():
                time = torch.full((1,), timestep, dtype=torch.float32, device=self.device)
                first = prefixes[0]
                return self.transformer.denoise_tokens(tokens, first.keys, first.values, placement, time, generate)

        return run


def _generate(layer: Layer, hidden: Tensor, rotary: Rotary, prefix: KeysValues) -> Tensor:
    """A layer, once more urgent requests have passed: the hidden states are all that there is to keep."""
    give_way()
    return layer.generate(hidden, rotary, prefix)
