"""The causal video autoencoder of Cosmos 3 (Wan 2.2, residual): pixels to latents and back, under the public names.

A clip of 4 k + 1 frames becomes k + 1 latent frames, every square of 16 x 16 pixels one position. Encoder and decoder
take it in chunks, the first frame and then four at a time, which changes nothing of the result: a latent frame depends
on its own and earlier pictures alone, a picture on its own and earlier latents.

Gradients follow the caller's mode, as for the transformer.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.network.autoencoder_blocks import (
    CausalConv,
    ChannelNorm,
    Downsampler,
    MiddleBlock,
    Past,
    ResidualBlock,
    Upsampler,
    average_down,
    repeat_up,
)
from engine.network.autoencoder_config import AutoencoderConfig

Between = Callable[[], None]


class VideoAutoencoder(nn.Module):
    """Encoder and decoder; every tensor has its public on-disk name.

    No call leaves anything behind in the modules, so calls may overlap.

    Args:
        config: Sizes and switches.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = CausalConv(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        self.post_quant_conv = CausalConv(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = Decoder(config)

    @property
    def dtype(self) -> torch.dtype:
        """Type in which it calculates."""
        return self.quant_conv.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.quant_conv.weight.device

    def encode(self, video: Tensor, between: Between | None = None) -> Tensor:
        """The posterior's mean and log-variance.

        One frame costs a third of what each later one does, since there is no time to look back on.

        Args:
            video: [B, 3, F, H, W] in -1..1, in the autoencoder's type; F one more than a multiple of `config.temporal`,
                H and W multiples of `config.spatial`.
            between: Called before every convolution; other clips may be encoded and decoded in it.

        Returns:
            [B, 2 z_dim, (F - 1) / temporal + 1, H / spatial, W / spatial], not normalised.
        """
        return encode_clip(self.encoder, self.quant_conv, video, between)

    def decode(self, latents: Tensor, between: Between | None = None) -> Tensor:
        """The pixels behind latents.

        Args:
            latents: [B, z_dim, T, h, w], not normalised, in the autoencoder's type.
            between: As for `encode`.

        Returns:
            [B, 3, (T - 1) * temporal + 1, h * spatial, w * spatial], about -1..1: not clamped.
        """
        return decode_clip(self.decoder, self.post_quant_conv, latents, between)


class Encoder(nn.Module):
    """Chunks of patched pixels to chunks of 2 `z_dim` channels, before the last, pointwise convolution."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.encoder_widths
        self.conv_in = CausalConv(config.pixel_channels, config.base_dim, (3, 3, 3))
        self.down_blocks = nn.ModuleList(
            DownStage(before, after, config.num_res_blocks, halving)
            for before, after, halving in zip(
                (config.base_dim, *widths), widths, (*config.temperal_downsample, None), strict=False
            )
        )
        self.mid_block = MiddleBlock(widths[-1])
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = CausalConv(widths[-1], 2 * config.z_dim, (3, 3, 3))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """[B, C, T, H, W] to [B, 2 z_dim, T', H', W']."""
        x = self.conv_in(x, past)
        for stage in self.down_blocks:
            x = stage(x, past)
        x = self.mid_block(x, past)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)), past)
        return out


class DownStage(nn.Module):
    """Residual blocks and a down-sampler, around them an average of what went in.

    Args:
        inputs: Channels that go in.
        outputs: Channels that come out.
        blocks: Number of residual blocks.
        halving: Whether frames are halved in number besides rows and columns; None: nothing is.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, halving: bool | None) -> None:
        super().__init__()
        self.outputs, self.time, self.space = outputs, 2 if halving else 1, 1 if halving is None else 2
        self.resnets = _residual_blocks(inputs, outputs, blocks)
        self.downsampler = None if halving is None else Downsampler(outputs, time=halving)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """[B, C, T, H, W] to [B, C', T', H', W']."""
        shortcut = average_down(x, self.outputs, self.time, self.space)
        for block in self.resnets:
            x = block(x, past)
        return shortcut + (x if self.downsampler is None else self.downsampler(x, past))


class Decoder(nn.Module):
    """Latent frames, one a chunk, to chunks of patched pixels."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.decoder_widths
        self.conv_in = CausalConv(config.z_dim, widths[0], (3, 3, 3))
        self.mid_block = MiddleBlock(widths[0])
        self.up_blocks = nn.ModuleList(
            UpStage(before, after, config.num_res_blocks + 1, doubling)
            for before, after, doubling in zip(
                (widths[0], *widths), widths, (*reversed(config.temperal_downsample), None), strict=False
            )
        )
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = CausalConv(widths[-1], config.pixel_channels, (3, 3, 3))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """[B, z_dim, 1, h, w] to [B, C, 1 or `temporal`, H, W]."""
        x = self.mid_block(self.conv_in(x, past), past)
        for stage in self.up_blocks:
            x = stage(x, past)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)), past)
        return out


class UpStage(nn.Module):
    """Residual blocks and an up-sampler, around them what went in, repeated; the last stage has neither.

    Args:
        inputs: Channels that go in.
        outputs: Channels that come out.
        blocks: Number of residual blocks.
        doubling: Whether frames are doubled in number besides rows and columns; None: nothing is.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, doubling: bool | None) -> None:
        super().__init__()
        self.outputs, self.time = outputs, 2 if doubling else 1
        self.resnets = _residual_blocks(inputs, outputs, blocks)
        self.upsampler = None if doubling is None else Upsampler(outputs, time=doubling)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """[B, C, T, H, W] to [B, C', T', H', W']."""
        before = x
        for block in self.resnets:
            x = block(x, past)
        if self.upsampler is None:
            return x
        return self.upsampler(x, past) + repeat_up(before, self.outputs, self.time, first=past.begins)


def _residual_blocks(inputs: int, outputs: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock(*widths) for widths in pairwise([inputs] + [outputs] * count))


def encode_clip(encoder: Encoder, quant_conv: CausalConv, video: Tensor, between: Between | None = None) -> Tensor:
    """Encode with that half of the weights alone; see :meth:`VideoAutoencoder.encode`."""
    past = Past(between)
    chunks = past.chunks(space_to_channels(video, encoder.config.patch_size), encoder.config.temporal)
    return torch.cat([quant_conv(encoder(chunk, past), past) for chunk in chunks], dim=2)


def decode_clip(
    decoder: Decoder, post_quant_conv: CausalConv, latents: Tensor, between: Between | None = None
) -> Tensor:
    """Decode with that half of the weights alone; see :meth:`VideoAutoencoder.decode`."""
    past = Past(between)
    decoded = [decoder(post_quant_conv(latent, past), past) for latent in past.chunks(latents, 1)]
    return channels_to_space(torch.cat(decoded, dim=2), decoder.config.patch_size)


def space_to_channels(pixels: Tensor, patch: int) -> Tensor:
    """[B, C, F, H, W] to [B, C * patch**2, F, H / patch, W / patch]; channel = (c, column in patch, row in patch)."""
    tiles = pixels.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # [B, C, F, H, row, W, column]
    return tiles.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def channels_to_space(channels: Tensor, patch: int) -> Tensor:
    """[B, C * patch**2, F, H, W] to [B, C, F, H * patch, W * patch], the way back from `space_to_channels`."""
    tiles = channels.unflatten(1, (-1, patch, patch))  # [B, C, column, row, F, H, W]
    return tiles.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
