"""How a video autoencoder is trained: its widths, what it is shown, what counts as wrong, how it learns."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import yaml

from engine.errors import CheckpointError, InvalidInput, Problem
from engine.network.autoencoder_config import AutoencoderConfig

Z_DIM, TEMPORAL_DOWNSAMPLE, PATCH = 48, (False, True, True), 2
"""What Cosmos 3 fixes: 48 channels for every 16 x 16 pixels and, after the first frame, every four frames."""


@dataclass(frozen=True)
class AutoencoderRecipe:
    """One training. Pixels are -1..1 throughout.

    Attributes:
        base_dim: Channels of the encoder's first stage.
        decoder_base_dim: Channels of the decoder's last stage.
        dim_mult: Widths of the stages as multiples of these.
        num_res_blocks: Residual blocks of a stage of the encoder; the decoder's have one more.
        clips: Share of steps that show clips; the others show frames by themselves.
        clip_frames: Lengths of clips, each 4 k + 1; drawn so that each gets as many frames.
        pixels: About how many pixels of frames a step shows, from which the size of the batch follows.
        crop: Height and width of what is cut out in the first part of the run, multiples of 16.
        whole: Share of the run, its last part, in which pictures are shown whole and on their canvas, as the policy
            has them; attention over a picture needs it.
        contrast: How much more a pixel counts that differs from the mean of all pictures: small things do.
        contrast_level: Difference from the mean at which that is reached.
        l2: Weight of squared differences, beside 1 for absolute ones.
        edges: Weight of differences between neighbouring pixels, which keep outlines sharp.
        kl: Weight of the divergence of latents from a standard normal distribution.
        learning_rate: At its highest.
        warmup: Share of the run in which it rises.
        final: What is left of it in the end, as a share.
        weight_decay: Of AdamW.
        betas: Likewise.
        ema: How slowly the averaged weights follow, for each step.
        clip: Largest norm of the gradient.
        seed: Of weights and batches.
    """

    base_dim: int = 16
    decoder_base_dim: int = 12
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 1
    clips: float = 0.3
    clip_frames: tuple[int, ...] = (5, 9, 17)
    pixels: int = 80_000
    crop: tuple[int, int] = (96, 112)
    whole: float = 0.4
    contrast: float = 4.0
    contrast_level: float = 0.3
    l2: float = 1.0
    edges: float = 0.4
    kl: float = 1e-5
    learning_rate: float = 5e-4
    warmup: float = 0.03
    final: float = 0.01
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    ema: float = 0.998
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise InvalidInput if something is out of range; lists every fault."""
        problems = [*self._range_problems(), *self._size_problems()]
        if problems:
            raise InvalidInput('recipe of an autoencoder', problems)

    def _range_problems(self) -> list[Problem]:
        shares = ('clips', 'whole', 'warmup', 'final', 'ema')
        problems = [
            Problem(name, 'is no share', repr(value), '0 to 1')
            for name in shares
            if not 0 <= (value := getattr(self, name)) <= 1
        ]
        weights = ('contrast', 'l2', 'edges', 'kl', 'weight_decay')
        positive = ('contrast_level', 'learning_rate', 'clip', 'pixels')
        for name, least in (*((name, 0.0) for name in weights), *((name, 1e-12) for name in positive)):
            value = getattr(self, name)
            if not math.isfinite(value) or value < least:
                problems.append(Problem(name, 'is out of range', repr(value), f'from {least:g}'))
        return problems

    def _size_problems(self) -> list[Problem]:
        problems = [
            Problem('clip_frames', 'is no length of a clip', repr(frames), '4 k + 1')
            for frames in self.clip_frames
            if frames < 5 or frames % 4 != 1
        ]
        if not self.clip_frames:
            problems.append(Problem('clip_frames', 'is empty', '', '4 k + 1, one or more'))
        if len(self.crop) != 2 or any(side < 16 or side % 16 for side in self.crop):
            problems.append(Problem('crop', 'is no size', repr(self.crop), 'height and width, multiples of 16'))
        try:
            self.config()
        except CheckpointError as error:
            problems += error.problems
        return problems

    def config(self) -> AutoencoderConfig:
        """Of the autoencoder, latents not normalised yet."""
        document = {
            'base_dim': self.base_dim,
            'decoder_base_dim': self.decoder_base_dim,
            'z_dim': Z_DIM,
            'dim_mult': list(self.dim_mult),
            'num_res_blocks': self.num_res_blocks,
            'temperal_downsample': list(TEMPORAL_DOWNSAMPLE),
            'patch_size': PATCH,
            'is_residual': True,
            'latents_mean': [0.0] * Z_DIM,
            'latents_std': [1.0] * Z_DIM,
        }
        return AutoencoderConfig.from_dict(document, 'recipe')

    def rate(self, share: float) -> float:
        """Learning rate after a share of the run: up in a straight line, then down along half a cosine."""
        if share < self.warmup:
            return self.learning_rate * max(share, 1e-3) / self.warmup
        along = min(1.0, (share - self.warmup) / max(1e-9, 1.0 - self.warmup))
        return self.learning_rate * (self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * along)))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a YAML file; what it leaves out is as above.

        Raises:
            InvalidInput: It cannot be read, has unknown keys, or something is out of range; lists every fault.
        """
        try:
            document = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            problem = Problem(str(path), 'cannot be read', str(error))
            raise InvalidInput('recipe of an autoencoder', [problem]) from error
        known = [one.name for one in fields(cls)]
        if not isinstance(document, dict) or set(document) - set(known):
            given = repr(document)[:60] if not isinstance(document, dict) else ', '.join(set(document) - set(known))
            problem = Problem(str(path), 'is no recipe', given, ', '.join(known))
            raise InvalidInput('recipe of an autoencoder', [problem])
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
        try:
            return cls(**values)
        except TypeError as error:
            problem = Problem(str(path), 'has values of wrong types', str(error))
            raise InvalidInput('recipe of an autoencoder', [problem]) from error

    def document(self) -> dict[str, Any]:
        """As YAML and JSON take it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
