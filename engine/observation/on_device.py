"""From camera pictures to the autoencoder's input on the device that runs it: pixels travel as bytes, once.

The same numbers as :func:`~engine.observation.views.compose`, :func:`~engine.observation.geometry.fit` and
:func:`~engine.observation.geometry.to_unit` give, to the bit and on any device. That rests on exact arithmetic: scales
whose weights are multiples of 1/16, as all camera sizes in use have towards the DROID composite. Other scales, and a
composite that is larger than its canvas, would come out a level higher or lower here and there, because devices round
differently; then the processor composes, and only the composite travels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
import torch.nn.functional as F

from engine.observation.geometry import UNIT_LEVELS, Canvas, Pixels, as_tensor, content_size, fit, sources, to_unit
from engine.observation.views import Plan, Size, compose, extent, plan_views


def compose_on(
    views: Mapping[str, Pixels], composition: str, size: Size, canvas: Canvas, device: torch.device
) -> torch.Tensor:
    """Compose camera views, fit the composite to its canvas and scale it for the video autoencoder.

    Args:
        views: uint8 [H, W, 3] RGB for each view of the composition, letter-boxed if need be.
        composition: One of :data:`~engine.observation.views.COMPOSITIONS`.
        size: Height and width of the composite in pixels.
        canvas: What it is fitted to.
        device: Where that is done.

    Returns:
        float32 in -1..1, [3, canvas height, canvas width], on the device.

    Raises:
        InvalidInput: there is no such composition.
        ObservationError: a view is missing, unknown or not of that type and shape; lists every fault.
    """
    plan = plan_views(views, composition, size)
    if content_size(*size, canvas) != size:
        return to_unit(fit(compose(views, composition, size), canvas).pixels, device)
    if plan.exact:
        picture = _follow(plan, {name: as_tensor(views[name]).to(device) for name in plan.names}, device)
    else:
        picture = as_tensor(compose(views, composition, size)).to(device)
    rows, columns = _sources(size, canvas, device)
    # Through a table of the 256 levels: less arithmetic, and the very numbers of the processor.
    return _levels(device)[picture[rows][:, columns].permute(2, 0, 1).int()]


def _follow(plan: Plan, views: Mapping[str, torch.Tensor], device: torch.device) -> torch.Tensor:
    """The composite, uint8 [H, W, 3]."""
    picture = torch.empty((*(plan.size if plan.tilewise else plan.whole), 3), dtype=torch.uint8, device=device)
    for name, tile in zip(plan.names, plan.tiles, strict=True):
        view = _resize(views[name], extent(tile))
        final = plan.final(tile) if plan.tilewise else tile
        picture[final] = _resize(view, extent(final))
    return _resize(picture, plan.size)


def _resize(image: torch.Tensor, size: Size) -> torch.Tensor:
    """As :func:`engine.observation.views.resize`, for scales with exact weights."""
    if image.shape[:2] == size:
        return image
    planes = image.permute(2, 0, 1)[None].float()
    resized = F.interpolate(planes, size=size, mode='bilinear', align_corners=False)
    return resized[0].permute(1, 2, 0).to(torch.uint8)


@lru_cache(maxsize=8)
def _sources(size: Size, canvas: Canvas, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = sources(*size, canvas)
    return torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)


@lru_cache(maxsize=8)
def _levels(device: torch.device) -> torch.Tensor:
    """What each level of a byte is in -1..1."""
    return torch.tensor(UNIT_LEVELS, device=device)
