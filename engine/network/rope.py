"""Where each token sits in time, height and width, and the rotations that follow from it.

Positions are float32 and reproduce cosmos-framework's and diffusers' `get_3d_mrope_ids_vae_tokens` bit for bit. Around
15000 float32 has steps of 1/1024; the network was trained on positions rounded that way, so neither the precision nor
the order of the operations may change. Everything here is computed on the CPU, whose division is correctly rounded
(CUDA multiplies by a reciprocal instead), and moved to the accelerator once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from engine.network.config import TransformerConfig
from engine.sequence import TEMPORAL_COMPRESSION, ActionItem, Layout, SoundItem, VisionItem

_CPU = torch.device('cpu')


def text_positions(n: int) -> Tensor:
    """Positions of `n` text tokens, float32 [3, n]: token k sits at k on all three axes."""
    return torch.arange(n, dtype=torch.float32, device=_CPU).expand(3, n)


def reading_positions(kinds: Sequence[int], grids: Iterator[tuple[int, int]]) -> Tensor:
    """Positions of what the reasoner reads, words and pictures, float32 [3, n] (Qwen3-VL's `get_rope_index`).

    A word advances all axes by 1. A picture stands still in time, its rows and columns count from where it begins, and
    words go on after the longer of its edges. Pictures and the frames of a video never touch: words stand between.

    Args:
        kinds: Of every token: 0 for a word, something else for a piece of a picture.
        grids: Rows and columns of pieces of every picture, in order.
    """
    parts, at = [], 0
    for kind, run in groupby(kinds):
        count = len(list(run))
        if kind == 0:
            parts.append(text_positions(count) + at)
            at += count
            continue
        rows, columns = next(grids)
        row, column = torch.meshgrid(text_positions(rows)[0], text_positions(columns)[0], indexing='ij')
        parts.append(torch.stack([torch.zeros(rows * columns), row.flatten(), column.flatten()]) + at)
        at += max(rows, columns)
    return torch.cat(parts, dim=1)


def generation_offset(prefix_length: int, config: TransformerConfig) -> int:
    """Temporal position at which every generated modality starts, after a prefix of `prefix_length` text tokens."""
    return prefix_length + config.unified_3d_mrope_temporal_modality_margin


def vision_positions(item: VisionItem, patch: int, offset: int, base_fps: float = 24.0) -> Tensor:
    """Positions of a clip's tokens, float32 [3, tokens], ordered by frame, row, column.

    A latent frame advances time by `base_fps / fps`; rows and columns count from 0 in every clip.

    Args:
        item: The clip.
        patch: Edge of one patch, in latent cells.
        offset: Temporal position of frame 0.
        base_fps: Frame rate (1/s) at which one latent frame advances time by 1.
    """
    frames, rows, columns = item.grid(patch)
    compression = TEMPORAL_COMPRESSION
    time = _times(frames, 0, item.fps / compression, base_fps / compression, offset)
    row = torch.arange(rows, dtype=torch.float32, device=_CPU)
    column = torch.arange(columns, dtype=torch.float32, device=_CPU)
    return torch.stack([axis.flatten() for axis in torch.meshgrid(time, row, column, indexing='ij')])


def action_positions(item: ActionItem, offset: int, base_fps: float = 24.0) -> Tensor:
    """Positions of action rows, float32 [3, rows]: four rows advance time as far as one latent frame of the same fps.

    Args:
        item: The action rows; its `start` shifts row 0.
        offset: Temporal position of pixel frame 0.
        base_fps: As for `vision_positions`.
    """
    return _line(_times(item.rows, item.start, item.fps, base_fps / TEMPORAL_COMPRESSION, offset))


def sound_positions(item: SoundItem, offset: int, base_fps: float = 24.0, latent_fps: float = 25.0) -> Tensor:
    """Positions of sound latents, float32 [3, frames].

    Sound advances `base_fps` units per second, four times as fast as vision. That is how the network was trained.

    Args:
        item: The sound latents.
        offset: Temporal position of the first one.
        base_fps: As for `vision_positions`.
        latent_fps: Sound latents per second.
    """
    return _line(_times(item.frames, 0, latent_fps, base_fps, offset))


def layout_positions(layout: Layout, prefix_length: int, config: TransformerConfig) -> Tensor:
    """Positions of the whole generation segment, float32 [3, tokens], in the layout's order."""
    offset = generation_offset(prefix_length, config)
    parts = []
    if layout.vision is not None:
        parts.append(vision_positions(layout.vision, config.latent_patch_size, offset, config.base_fps))
    if layout.action is not None:
        parts.append(action_positions(layout.action, offset, config.base_fps))
    if layout.sound is not None:
        parts.append(sound_positions(layout.sound, offset, config.base_fps, config.sound_latent_fps))
    return torch.cat(parts, dim=1)


def rotary(positions: Tensor, config: TransformerConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the interleaved three-axis rotary embedding (Qwen3-VL's interleaved MRoPE).

    Args:
        positions: Float32 [3, N] on the CPU.
        config: Head width, base and the axes' shares of the frequencies.
        dtype: Type of the result; the angles themselves are always float32.

    Returns:
        Two tensors [N, head_dim], both halves alike (rotate-half convention).
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=_CPU) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    angles = positions[_axis_of_frequency(config)].T * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _axis_of_frequency(config: TransformerConfig) -> Tensor:
    """Which axis (0 time, 1 height, 2 width) turns each frequency: T H W T H W ... until an axis is used up, then T."""
    axis = torch.zeros(config.head_dim // 2, dtype=torch.long, device=_CPU)
    for which in (1, 2):
        axis[which : 3 * config.rope_axes_dim[which] : 3] = which
    return axis


def _times(count: int, start: int, rate: float, base_rate: float, offset: int) -> Tensor:
    """Temporal positions; the order of these four operations decides the last bit."""
    return (torch.arange(count, dtype=torch.float32, device=_CPU) + start) / rate * base_rate + offset


def _line(time: Tensor) -> Tensor:
    """Tokens without a place in the picture: height and width 0."""
    return torch.stack([time, torch.zeros_like(time), torch.zeros_like(time)])
