"""The causal video autoencoder between pixels and the latents that the transformer denoises.

Wraps diffusers' `AutoencoderKLWan` (the residual Wan 2.2 variant): 4 frames and 16 x 16 pixels to one latent position
of 48 channels, the first frame alone to the first latent frame. Latents are the posterior's *mode*, normalised with
the checkpoint's per-channel mean and standard deviation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle

from engine.errors import CheckpointError, ObservationError, Problem


class VideoVae:
    """Encode pictures and video to normalised latents, and decode latents to pixels. Never tracks gradients.

    Move the autoencoder to its device and type before wrapping it. :meth:`encode_frame` keeps no state and may run
    while another thread decodes; :meth:`encode` and :meth:`decode` share the autoencoder's scratch memory and must not
    overlap with each other.

    Attributes:
        autoencoder: The wrapped `AutoencoderKLWan`.
        spatial: Pixels to a latent position, in height and in width (16).
        temporal: Frames to a latent frame after the first (4).
        latent_channels: Channels of a latent position (48).
        frame_encoder: The encoder for a single frame, with the weights of the whole one.
        patch: Edge of the squares of pixels that become channels before the first convolution (2).
    """

    def __init__(self, autoencoder: Any) -> None:
        """Wrap `autoencoder` (diffusers' `AutoencoderKLWan`), in the type and on the device it has now.

        Raises:
            CheckpointError: its configuration contradicts itself or is of another variant.
        """
        _check_config(autoencoder.config)
        config = autoencoder.config
        self.autoencoder = autoencoder.eval()
        self.spatial = config.patch_size * 2 ** len(config.temperal_downsample)
        self.temporal = 2 ** sum(config.temperal_downsample)
        self.latent_channels = int(config.z_dim)
        self.dtype: torch.dtype = autoencoder.dtype
        self.device: torch.device = autoencoder.device
        # Statistics are rounded to the autoencoder's type before use, and inverted in it: diffusers and NVIDIA's
        # framework both do, and in bfloat16 the difference is visible.
        self._mean = self._statistic(config.latents_mean)
        self._inverse_std: torch.Tensor = 1.0 / self._statistic(config.latents_std)
        self.frame_encoder = _single_frame_encoder(autoencoder.encoder)
        self.patch = int(config.patch_size)

    @property
    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and inverse standard deviation of the latents [1, C, 1, 1, 1], in the autoencoder's type."""
        return self._mean, self._inverse_std

    def _statistic(self, values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=self.dtype, device=self.device).view(1, -1, 1, 1, 1)

    @torch.no_grad()
    def encode_frame(self, rgb: torch.Tensor) -> torch.Tensor:
        """Encode one picture: latent frame 0 of every video that starts with it.

        Equal to ``encode(video)[:, :, :1]`` up to rounding, because the autoencoder is causal, at a fifth to a third
        of the cost of encoding the picture as a video of one frame.

        Args:
            rgb: [3, H, W] in -1..1, float; H and W multiples of `spatial`.

        Returns:
            [1, latent_channels, 1, H / spatial, W / spatial], float32 (float64 from a float64 autoencoder).

        Raises:
            ObservationError: the shape does not fit.
        """
        _raise('picture to encode', [*_rank(rgb, 3, '[3, H, W]'), *self._multiples(rgb)])
        pixels = rgb[None, :, None].to(self.device, self.dtype)
        moments = self.autoencoder.quant_conv(self.frame_encoder(space_to_channels(pixels, self.patch)))
        return self._normalise(moments[:, : self.latent_channels])

    @torch.no_grad()
    def encode(self, video: torch.Tensor, between: Callable[[], None] | None = None) -> torch.Tensor:
        """Encode a whole video.

        Args:
            video: [3, F, H, W] in -1..1, float; F one more than a multiple of `temporal`, H and W multiples of
                `spatial`.
            between: As in :meth:`decode`, before every convolution of the encoder.

        Returns:
            [1, latent_channels, (F - 1) / temporal + 1, H / spatial, W / spatial], float32 (float64 from a float64
            autoencoder).

        Raises:
            ObservationError: the shape does not fit.
        """
        _raise('video to encode', [*_rank(video, 4, '[3, F, H, W]'), *self._multiples(video), *self._frames(video)])
        hooks = [] if between is None else _call_before_convolutions(self.autoencoder.encoder, between)
        try:
            posterior = self.autoencoder.encode(video[None].to(self.device, self.dtype), return_dict=False)[0]
        finally:
            for hook in hooks:
                hook.remove()
            self.autoencoder.clear_cache()  # after an out-of-memory error too
        return self._normalise(posterior.mode())

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, between: Callable[[], None] | None = None) -> torch.Tensor:
        """Decode normalised latents to pixels.

        Pixels are ``(clamp(x, -1, 1) + 1) * 127.5``, cut off to whole numbers as NVIDIA's policy server does.

        Args:
            latents: [1, latent_channels, T, h, w].
            between: Called before every convolution of the decoder. It may do other work, :meth:`encode_frame` too, but
                neither encode nor decode a clip.

        Returns:
            uint8 [(T - 1) * temporal + 1, h * spatial, w * spatial, 3] on the autoencoder's device.

        Raises:
            ObservationError: the shape does not fit.
        """
        _raise('latents to decode', self._latent_problems(latents))
        scaled = latents.to(self.device, self.dtype) / self._inverse_std + self._mean
        hooks = [] if between is None else _call_before_convolutions(self.autoencoder.decoder, between)
        try:
            decoded = self.autoencoder.decode(scaled, return_dict=False)[0]
        finally:
            for hook in hooks:
                hook.remove()
            self.autoencoder.clear_cache()
        levels: torch.Tensor = (decoded[0].float().clamp(-1.0, 1.0) + 1.0) * 127.5
        return levels.to(torch.uint8).permute(1, 2, 3, 0).contiguous()

    def _normalise(self, mode: torch.Tensor) -> torch.Tensor:
        normalised = (mode - self._mean) * self._inverse_std
        return normalised.to(torch.promote_types(self.dtype, torch.float32))

    def _multiples(self, pixels: torch.Tensor) -> list[Problem]:
        named = zip(('height', 'width'), pixels.shape[-2:], strict=False)
        return [
            Problem(name, 'not a multiple', str(size), f'a multiple of {self.spatial}', 'pad it to a canvas first')
            for name, size in named
            if size < 1 or size % self.spatial
        ]

    def _frames(self, video: torch.Tensor) -> list[Problem]:
        count = video.shape[1] if video.ndim == 4 else 1
        if count % self.temporal == 1:
            return []
        remedy = 'drop or repeat frames at the end'
        return [Problem('frames', 'not decodable to itself', str(count), f'{self.temporal} k + 1', remedy)]

    def _latent_problems(self, latents: torch.Tensor) -> list[Problem]:
        expected = f'[1, {self.latent_channels}, T, h, w]'
        if latents.ndim == 5 and latents.shape[:2] == (1, self.latent_channels) and min(latents.shape[2:]) > 0:
            return []
        return [Problem('shape', 'not that of latents', str(list(latents.shape)), expected)]


def _call_before_convolutions(module: nn.Module, between: Callable[[], None]) -> list[RemovableHandle]:
    convolutions = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]
    return [m.register_forward_pre_hook(lambda *_: between()) for m in convolutions]


class _LastTap(nn.Module):
    """A causal convolution over a video of one frame.

    Before the first frame there are only zeros, so of the kernel's temporal taps the last alone meets data. The
    weights stay those of the original; nothing is copied.
    """

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.convolution = convolution
        # The original pads by hand and keeps its size; its own `padding` attribute says 0.
        self.padding = (convolution.kernel_size[1] // 2, convolution.kernel_size[2] // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, 1, H, W] to [B, C', 1, H, W]."""
        weight, bias = self.convolution.weight[:, :, -1], self.convolution.bias
        return F.conv2d(x[:, :, 0], weight, bias, padding=self.padding)[:, :, None]


def _single_frame_encoder(encoder: nn.Module) -> nn.Module:
    """Rebuild `encoder` for one frame around the very same parameters: a third of the arithmetic or less."""
    shared: dict[int, Any] = {id(parameter): parameter for parameter in encoder.parameters()}
    twin = copy.deepcopy(encoder, shared)
    for name, module in list(twin.named_modules()):
        # Temporal down-sampling has a kernel of 1 x 1 pixels over time; it is skipped for the first frame.
        if isinstance(module, nn.Conv3d):
            parent, _, attribute = name.rpartition('.')
            setattr(twin.get_submodule(parent), attribute, _LastTap(module))
    return twin


def space_to_channels(pixels: torch.Tensor, patch: int) -> torch.Tensor:
    """[B, C, F, H, W] to [B, C * patch**2, F, H / patch, W / patch]; channel = (c, column in patch, row in patch)."""
    b, c, f, h, w = pixels.shape
    tiles = pixels.view(b, c, f, h // patch, patch, w // patch, patch)
    return tiles.permute(0, 1, 6, 4, 2, 3, 5).reshape(b, c * patch * patch, f, h // patch, w // patch)


def _rank(pixels: torch.Tensor, rank: int, expected: str) -> list[Problem]:
    problems = []
    if pixels.ndim != rank or pixels.shape[0] != 3:
        problems.append(Problem('shape', 'not that of RGB pixels', str(list(pixels.shape)), expected))
    if not pixels.is_floating_point():
        problems.append(Problem('type', 'not a float type', str(pixels.dtype), 'float in -1..1'))
    return problems


def _check_config(config: Any) -> None:
    problems = [
        Problem(name, 'not one value for each latent channel', str(len(config[name])), str(config.z_dim))
        for name in ('latents_mean', 'latents_std')
        if len(config[name]) != config.z_dim
    ]
    if not config.is_residual or not config.patch_size:
        found = f'is_residual={config.is_residual}, patch_size={config.patch_size}'
        problems.append(Problem('variant', 'not the autoencoder of Cosmos 3', found, 'the residual Wan 2.2 variant'))
    if problems:
        raise CheckpointError('video autoencoder configuration', problems)


def _raise(subject: str, problems: list[Problem]) -> None:
    if problems:
        raise ObservationError(subject, problems)
