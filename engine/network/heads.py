"""From latents, actions and time to tokens and back; names are those of the published checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.sequence import VisionItem

_TIME_CHANNELS = 256
_TIME_PERIOD = 10_000.0


class TimeEmbedder(nn.Module):
    """Sinusoids through a two-layer MLP, always in float32 or better whatever type the weights are stored in.

    Args:
        hidden_size: Width of the result.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(_TIME_CHANNELS, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, t: Tensor) -> Tensor:
        """Embed scaled times [n] as [n, hidden_size], float32 (float64 in a float64 model)."""
        hidden = F.silu(linear_at_least_float32(self.linear_1, time_features(t)))
        return linear_at_least_float32(self.linear_2, hidden)


class Table(nn.Embedding):
    """An embedding table that is left alone where there is no memory for it (meta device).

    PyTorch draws a table's first numbers from a normal distribution, and on the meta device does so in Python: with the
    import of its compiler, which takes seconds, for numbers that nobody will ever see.
    """

    def reset_parameters(self) -> None:
        """Draw the first numbers, if there is room for numbers."""
        if not self.weight.is_meta:
            super().reset_parameters()


class DomainLinear(nn.Module):
    """A linear map with one matrix and bias per embodiment domain, stored as rows of embedding tables.

    Row d of `fc` viewed as [inputs, outputs] is the matrix of domain d: y = x @ W_d + b_d.
    """

    def __init__(self, inputs: int, outputs: int, domains: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.outputs = outputs
        self.fc = Table(domains, inputs * outputs)
        self.bias = Table(domains, outputs)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """Map [n, inputs] to [n, outputs] with the weights of `domain`, int64 [1]."""
        weight = self.fc(domain).view(self.inputs, self.outputs)
        out: Tensor = x @ weight + self.bias(domain)
        return out


def time_features(t: Tensor) -> Tensor:
    """Sinusoidal features of times [n]: float32 [n, 256], cosines first (as in diffusers' `Timesteps`)."""
    half = _TIME_CHANNELS // 2
    exponents = -math.log(_TIME_PERIOD) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float().unsqueeze(-1) * exponents.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def patchify(latents: Tensor, patch: int) -> Tensor:
    """Cut latents [1, C, T, h, w] into tokens [T * rows * columns, patch * patch * C].

    Tokens run by frame, row, column; numbers in a token by row, column, channel. An odd height or width is filled up
    with zeros at the bottom or right.
    """
    height, width = latents.shape[-2:]
    below, right = -height % patch, -width % patch
    padded = F.pad(latents, (0, right, 0, below)) if below or right else latents  # nothing to add would be a copy
    _, channels, frames, rows, columns = padded.shape
    cut = padded.reshape(channels, frames, rows // patch, patch, columns // patch, patch)
    return cut.permute(1, 2, 4, 3, 5, 0).reshape(-1, patch * patch * channels)


def unpatchify(tokens: Tensor, item: VisionItem, patch: int) -> Tensor:
    """Put tokens back together as latents [1, C, T, h, w] and drop what `patchify` filled up."""
    cut = tokens.view(*item.grid(patch), patch, patch, -1)  # [T, rows, columns, patch, patch, C]
    latents = cut.permute(5, 0, 1, 3, 2, 4).flatten(-2).flatten(-3, -2)
    return latents[..., : item.height, : item.width].unsqueeze(0)


@dataclass(frozen=True)
class VideoTokens:
    """A video as the network leaves it; putting it together costs more than all of a solver's updates of it.

    Attributes:
        finish: Returns them, [T * rows * columns, patch * patch * C]; they may not have been calculated before.
        item: What they are tokens of.
        patch: Edge of a token, in latent cells.
    """

    finish: Callable[[], Tensor]
    item: VisionItem
    patch: int

    def latents(self) -> Tensor:
        """The video as the autoencoder takes it, [1, C, T, h, w]."""
        return unpatchify(self.finish(), self.item, self.patch)


def linear_at_least_float32(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear map calculated in float32 (float64 if its weights are), whatever type its weights are stored in."""
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    return F.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
