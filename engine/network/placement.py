"""A layout as tensors: where its tokens sit, which are noisy, which numbers may change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.errors import Problem
from engine.network.config import TransformerConfig
from engine.network.heads import patchify
from engine.network.rope import layout_positions, rotary
from engine.sequence import ActionItem, Layout, VisionItem


class Tokens(NamedTuple):
    """The numbers of one generation segment, per token; None for what a layout lacks.

    Attributes:
        vision: [Nv, patch_latent_dim].
        action: [rows, action_dim].
        sound: [frames, sound_dim].
    """

    vision: Tensor | None
    action: Tensor | None
    sound: Tensor | None


class VisionPlacement(NamedTuple):
    """Which vision tokens and numbers are generated.

    Attributes:
        noisy: [Nv, 1] in the model's type, 1 where a token is generated and 0 where it is given.
        free: Bool [Nv, patch_latent_dim], where a velocity may differ from 0: neither on given tokens nor in the fill
            of incomplete patches, so that a sampler may stay in tokens from the first step to the last.
    """

    noisy: Tensor
    free: Tensor


class ActionPlacement(NamedTuple):
    """Which action rows and channels are generated.

    Attributes:
        noisy: [rows, 1] in the model's type, 1 where a row is generated and 0 where it is given.
        free: Bool [rows, action_dim]: neither on given rows nor on channels the embodiment does not use.
        domain: Int64 [1], the embodiment domain.
    """

    noisy: Tensor
    free: Tensor
    domain: Tensor


class Placement(NamedTuple):
    """All a denoising step needs to know of a layout, the same for every step; named tuples pass through exporters.

    Attributes:
        cos: [N, head_dim] in the model's type, for all tokens in the order vision, action, sound.
        sin: As `cos`.
        vision: None without vision.
        action: None without action.
    """

    cos: Tensor
    sin: Tensor
    vision: VisionPlacement | None
    action: ActionPlacement | None


def make_placement(
    config: TransformerConfig, layout: Layout, prefix_length: int, device: torch.device, dtype: torch.dtype
) -> Placement:
    """Place a layout after a prefix of `prefix_length` tokens.

    Calculated on the CPU, so that every machine gets the same bits. The tensors are ordinary ones even when first asked
    for in inference mode, because training may ask for the same ones later.
    """
    with torch.inference_mode(mode=False), torch.no_grad():
        cos, sin = rotary(layout_positions(layout, prefix_length, config), config, dtype)
        return Placement(
            cos=cos.to(device),
            sin=sin.to(device),
            vision=None if layout.vision is None else _place_vision(layout.vision, config, device, dtype),
            action=None if layout.action is None else _place_action(layout.action, config, device, dtype),
        )


def place_together(placements: Sequence[Placement], tokens: tuple[int, int]) -> tuple[Placement, list[Tensor]]:
    """One placement for several sequences of the same layout, modality after modality.

    Args:
        placements: Of one layout without sound, after prefixes of any lengths.
        tokens: How many tokens of vision and of action each has.

    Returns:
        The placement of all tokens, and for each sequence int64 [N] where its tokens are.
    """
    count = len(placements)
    parts = [torch.split(torch.arange(count * part), part) for part in tokens]
    offset = count * tokens[0]
    rows = [torch.cat([vision, offset + action]) for vision, action in zip(*parts, strict=True)]
    order = torch.argsort(torch.cat(rows)).to(placements[0].cos.device)
    first = placements[0]
    vision, action = first.vision, first.action
    together = Placement(
        cos=torch.cat([one.cos for one in placements])[order],
        sin=torch.cat([one.sin for one in placements])[order],
        vision=vision and VisionPlacement(vision.noisy.repeat(count, 1), vision.free.repeat(count, 1)),
        action=action and ActionPlacement(action.noisy.repeat(count, 1), action.free.repeat(count, 1), action.domain),
    )
    return together, [one.to(first.cos.device) for one in rows]


def find_misfits(config: TransformerConfig, layout: Layout, *, action: bool, sound: bool) -> Iterator[Problem]:
    """What a layout asks for and a network with these heads cannot do."""
    if layout.sound is not None and not sound:
        yield Problem('layout.sound', 'needs a sound head, which this network lacks', remedy='leave sound out')
    if layout.action is None:
        return
    if not action:
        yield Problem('layout.action', 'needs action heads, which this network lacks', remedy='leave action out')
        return
    item, width = layout.action, config.action_dim or 0
    if item.raw_dim > width:
        yield Problem('layout.action.raw_dim', 'exceeds the action head', str(item.raw_dim), f'1 to {width}')
    if item.domain_id >= config.num_embodiment_domains:
        allowed = f'0 to {config.num_embodiment_domains - 1}'
        yield Problem('layout.action.domain_id', 'is not an embodiment domain', str(item.domain_id), allowed)


def find_wrong_shapes(config: TransformerConfig, layout: Layout, inputs: Tokens) -> Iterator[Problem]:
    """Inputs of a denoising step (latents, not yet cut into tokens) that are not what the layout announces."""
    vision, action, sound = layout.vision, layout.action, layout.sound
    grid = None if vision is None else (1, config.latent_channel, vision.frames, vision.height, vision.width)
    rows = None if action is None else (action.rows, config.action_dim)
    track = None if sound is None else (config.sound_dim, sound.frames)
    for name, tensor, shape in zip(Tokens._fields, inputs, (grid, rows, track), strict=True):
        found = None if tensor is None else tuple(tensor.shape)
        if found != shape:
            yield Problem(name, 'does not match the layout', _shape(found), _shape(shape))


def _place_vision(
    item: VisionItem, config: TransformerConfig, device: torch.device, dtype: torch.dtype
) -> VisionPlacement:
    patch = config.latent_patch_size
    frames = torch.ones(item.frames, dtype=torch.bool)
    frames[list(item.clean)] = False
    _, rows, columns = item.grid(patch)
    noisy = frames.repeat_interleave(rows * columns).unsqueeze(-1)
    cells = frames.view(1, 1, -1, 1, 1).expand(1, config.latent_channel, -1, item.height, item.width)
    return VisionPlacement(noisy.to(device, dtype), patchify(cells, patch).to(device))


def _place_action(
    item: ActionItem, config: TransformerConfig, device: torch.device, dtype: torch.dtype
) -> ActionPlacement:
    rows = torch.ones(item.rows, 1, dtype=torch.bool)
    rows[list(item.clean)] = False
    free = rows & (torch.arange(config.action_dim or 0) < item.raw_dim)
    return ActionPlacement(rows.to(device, dtype), free.to(device), torch.tensor([item.domain_id], device=device))


def _shape(shape: tuple[int | None, ...] | None) -> str:
    return 'nothing' if shape is None else str(list(shape))
