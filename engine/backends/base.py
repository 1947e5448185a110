"""The one interface that every way of running the network has: a prefix once per prompt, then fixed-shape steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from engine.network.transformer import Prefix, Velocities
    from engine.sequence import Layout


class Backend(Protocol):
    """Runs the two towers. Inputs and outputs live on `device`; latents stay float32 outside."""

    name: str

    @property
    def device(self) -> torch.device:
        """Where inputs are expected and outputs appear."""

    def prefix(self, ids: list[int]) -> Prefix:
        """Keys and values of the understanding tower for one prompt; constant for these ids and weights."""

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
        """One forward pass of the generation tower.

        Args:
            prefix: From :meth:`prefix`.
            layout: Which tokens there are and which of them are clean.
            vision: Latents [1, 48, T, h, w].
            action: Rows [rows, 64].
            sound: Latents [64, T].
            timestep: Sampler time in [0, 1000).

        Returns:
            Velocities (noise minus clean) of the same shapes, exactly 0 on clean positions.
        """
