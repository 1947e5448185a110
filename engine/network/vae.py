"""The causal video autoencoder between pixels and the latents that the transformer denoises.

4 frames and 16 x 16 pixels become one latent position of 48 channels, the first frame alone the first latent frame.
Latents are the posterior's *mode*, normalised with the checkpoint's per-channel mean and standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.errors import ObservationError, Problem
from engine.network.autoencoder import VideoAutoencoder


class VideoVae:
    """Encode pictures and video to normalised latents, and decode latents to pixels. Never tracks gradients.

    Move the autoencoder to its device and type before wrapping it. Calls keep no state and may overlap.

    Attributes:
        autoencoder: The network.
        spatial: Pixels to a latent position, in height and in width (16).
        temporal: Frames to a latent frame after the first (4).
        latent_channels: Channels of a latent position (48).
    """

    def __init__(self, autoencoder: VideoAutoencoder) -> None:
        """Wrap `autoencoder` in the type and on the device it has now."""
        config = autoencoder.config
        self.autoencoder = autoencoder.eval()
        self.spatial = config.spatial
        self.temporal = config.temporal
        self.latent_channels = config.z_dim
        self.dtype = autoencoder.dtype
        self.device = autoencoder.device
        # Statistics are rounded to the autoencoder's type before use, and inverted in it: diffusers and NVIDIA's
        # framework both do, and in bfloat16 the difference is visible.
        self._mean = self._statistic(config.latents_mean)
        self._inverse_std: torch.Tensor = 1.0 / self._statistic(config.latents_std)

    @property
    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and inverse standard deviation of the latents [1, C, 1, 1, 1], in the autoencoder's type."""
        return self._mean, self._inverse_std

    def _statistic(self, values: tuple[float, ...]) -> torch.Tensor:
        return torch.tensor(values, dtype=self.dtype, device=self.device).view(1, -1, 1, 1, 1)

    @torch.no_grad()
    def encode_frame(self, rgb: torch.Tensor) -> torch.Tensor:
        """Encode one picture: latent frame 0 of every video that starts with it, because the autoencoder is causal.

        Args:
            rgb: [3, H, W] in -1..1, float; H and W multiples of `spatial`.

        Returns:
            [1, latent_channels, 1, H / spatial, W / spatial], float32 (float64 from a float64 autoencoder).

        Raises:
            ObservationError: the shape does not fit.
        """
        _raise('picture to encode', [*_rank(rgb, 3, '[3, H, W]'), *self._multiples(rgb)])
        return self._encode(rgb[:, None], None)

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
        return self._encode(video, between)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, between: Callable[[], None] | None = None) -> torch.Tensor:
        """Decode normalised latents to pixels.

        Pixels are ``(clamp(x, -1, 1) + 1) * 127.5``, cut off to whole numbers as NVIDIA's policy server does.

        Args:
            latents: [1, latent_channels, T, h, w].
            between: Called before every convolution of the decoder. Any other work may be done in it.

        Returns:
            uint8 [(T - 1) * temporal + 1, h * spatial, w * spatial, 3] on the autoencoder's device.

        Raises:
            ObservationError: the shape does not fit.
        """
        _raise('latents to decode', self._latent_problems(latents))
        scaled = latents.to(self.device, self.dtype) / self._inverse_std + self._mean
        decoded = self.autoencoder.decode(scaled, between)
        levels: torch.Tensor = (decoded[0].float().clamp(-1.0, 1.0) + 1.0) * 127.5
        return levels.to(torch.uint8).permute(1, 2, 3, 0).contiguous()

    def _encode(self, video: torch.Tensor, between: Callable[[], None] | None) -> torch.Tensor:
        moments = self.autoencoder.encode(video[None].to(self.device, self.dtype), between)
        normalised = (moments[:, : self.latent_channels] - self._mean) * self._inverse_std
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


def _rank(pixels: torch.Tensor, rank: int, expected: str) -> list[Problem]:
    problems = []
    if pixels.ndim != rank or pixels.shape[0] != 3:
        problems.append(Problem('shape', 'not that of RGB pixels', str(list(pixels.shape)), expected))
    if not pixels.is_floating_point():
        problems.append(Problem('type', 'not a float type', str(pixels.dtype), 'float in -1..1'))
    return problems


def _raise(subject: str, problems: list[Problem]) -> None:
    if problems:
        raise ObservationError(subject, problems)
