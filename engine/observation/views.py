"""Several cameras in one picture, laid out as the checkpoint was trained.

Resizing follows NVIDIA's policy server to the bit: bilinear without antialiasing, half-pixel centres, cut off to whole
levels. Letter-boxing follows openpi's `resize_with_pad`, which robots' clients apply before they send a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import cv2
import numpy as np
import torch.nn.functional as F
from PIL import Image

from engine.errors import InvalidInput, ObservationError, Problem
from engine.observation.geometry import Pixels, as_tensor

Size = tuple[int, int]
"""(height, width) in pixels."""

Tile = tuple[slice, slice]
"""Rows and columns of the composite that a view takes."""


@dataclass(frozen=True)
class Composition:
    """How views become one picture.

    Attributes:
        views: Names of the views, in the order in which `join` takes them.
        join: Puts the views together at the size of the first one.
        tiles: Where each view lies in a composite of a given size, in the same order.
        view_size: The size of view that fits a composite of a given size without resampling the first one.
    """

    views: tuple[str, ...]
    join: Callable[..., Pixels]
    tiles: Callable[[Size], tuple[Tile, ...]]
    view_size: Callable[[Size], Size]


def _one_over_two(top: Pixels, left: Pixels, right: Pixels) -> Pixels:
    h, w = top.shape[:2]
    half = (h // 2, w // 2)
    picture = np.empty((h + half[0], w, 3), np.uint8)
    picture[:h] = top
    picture[h:, : half[1]] = resize(left, half)
    picture[h:, half[1] :] = resize(right, half)
    return picture


def _one_over_two_tiles(size: Size) -> tuple[Tile, ...]:
    (h, w), top = size, size[0] * 2 // 3
    return (
        (slice(0, top), slice(0, w)),
        (slice(top, h), slice(0, w // 2)),
        (slice(top, h), slice(w // 2, w)),
    )


COMPOSITIONS: Final[Mapping[str, Composition]] = MappingProxyType(
    {
        'single': Composition(
            views=('main',),
            join=lambda view: view,
            tiles=lambda size: ((slice(0, size[0]), slice(0, size[1])),),
            view_size=lambda size: size,
        ),
        # The DROID layout: the wrist at full size above the two exteriors at half of it, side by side.
        'wrist_over_two_exteriors': Composition(
            views=('wrist', 'exterior_1', 'exterior_2'),
            join=_one_over_two,
            tiles=_one_over_two_tiles,
            view_size=lambda size: (size[0] * 2 // 3, size[1]),
        ),
        # The same layout as RoboMIND's two Frankas have it: the front on top, the views from the sides below.
        'front_over_two_sides': Composition(
            views=('front', 'left', 'right'),
            join=_one_over_two,
            tiles=_one_over_two_tiles,
            view_size=lambda size: (size[0] * 2 // 3, size[1]),
        ),
    }
)


def compose(views: Mapping[str, Pixels], composition: str, size: Size) -> Pixels:
    """Compose camera views into the picture that the network sees.

    The composite is made at the size of its first view and then brought to `size`; its aspect ratio may change in that,
    so letter-box views of another shape first (:func:`letterbox` with :func:`view_size`).

    Args:
        views: uint8 [H, W, 3] RGB for each view of the composition; sizes may differ from view to view.
        composition: One of :data:`COMPOSITIONS`.
        size: Height and width of the result in pixels.

    Returns:
        uint8 [height, width, 3], newly allocated or, for a single view of that very size, the view itself.

    Raises:
        InvalidInput: there is no such composition.
        ObservationError: a view is missing, unknown or not of that type and shape; lists every fault.
    """
    layout = _layout(composition)
    problems = _view_problems(views, layout)
    if problems:
        raise ObservationError(f'views for composition {composition}', problems)
    return resize(layout.join(*(views[name] for name in layout.views)), size)


def view_size(composition: str, size: Size) -> Size:
    """Size (height, width) that each camera picture should have for a composite of `size`.

    Raises:
        InvalidInput: there is no such composition.
    """
    return _layout(composition).view_size(size)


def split(composite: Pixels, composition: str, size: Size | None = None) -> dict[str, Pixels]:
    """Take a composite, or a video of composites, apart again.

    Args:
        composite: uint8 [..., H, W, 3].
        composition: One of :data:`COMPOSITIONS`.
        size: Height and width of the whole composite, if `composite` lacks rows or columns at the bottom or right: a
            decoded video ends at whole latents, 528 of the DROID composite's 540 rows.

    Returns:
        View into `composite` for each of the composition's views, as large as the composition shows it.

    Raises:
        InvalidInput: there is no such composition.
    """
    layout = _layout(composition)
    tiles = layout.tiles(size or (composite.shape[-3], composite.shape[-2]))
    return {name: composite[..., rows, columns, :] for name, (rows, columns) in zip(layout.views, tiles, strict=True)}


def letterbox(image: Pixels, size: Size) -> Pixels:
    """Scale a picture to fit into `size` without distortion, centred on black, as openpi's `resize_with_pad` does.

    Args:
        image: uint8 [H, W, 3].
        size: Height and width of the result in pixels.

    Returns:
        uint8 [height, width, 3]; `image` itself if it has that size.

    Raises:
        ObservationError: `image` is not of that type and shape.
    """
    problems = _pixel_problems('image', image)
    if problems:
        raise ObservationError('picture to letter-box', problems)
    (height, width), (h, w) = size, image.shape[:2]
    if (h, w) == (height, width):
        return image
    ratio = max(w / width, h / height)
    inner = (max(1, int(h / ratio)), max(1, int(w / ratio)))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    picture = np.zeros((height, width, 3), np.uint8)
    scaled = Image.fromarray(image).resize((inner[1], inner[0]), resample=Image.Resampling.BILINEAR)
    picture[top : top + inner[0], left : left + inner[1]] = np.asarray(scaled)
    return picture


def resize(image: Pixels, size: Size) -> Pixels:
    """Bilinear, half-pixel centres, no antialiasing, cut off to whole levels: PyTorch's `interpolate`, to the bit.

    Args:
        image: uint8 [H, W, 3].
        size: Height and width of the result in pixels.

    Returns:
        uint8 [height, width, 3]; `image` itself if it has that size.
    """
    if image.shape[:2] == size:
        return image
    if all(_exact_in_float32(old, new) for old, new in zip(image.shape[:2], size, strict=True)):
        # Every weight and every sum is exact then, so that any implementation gives the same; this one is fast.
        resized = cv2.resize(image.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        return resized.astype(np.uint8)
    planes = as_tensor(image).permute(2, 0, 1)[None].float()
    resized = F.interpolate(planes, size=size, mode='bilinear', align_corners=False)[0].permute(1, 2, 0).numpy()
    return resized.astype(np.uint8)


def _exact_in_float32(old: int, new: int) -> bool:
    """Whether linear weights from `old` to `new` samples are multiples of 1/16, as for halves, doubles and quarters.

    Two such weights and a level take 4 + 4 + 8 bits; positions up to 2**16 take another few: float32 holds 24.
    """
    return old * 8 % new == 0 and max(old, new) <= 2**16


def _layout(composition: str) -> Composition:
    if composition not in COMPOSITIONS:
        allowed = ', '.join(COMPOSITIONS)
        raise InvalidInput('composition of views', [Problem('composition', 'unknown', repr(composition), allowed)])
    return COMPOSITIONS[composition]


def _view_problems(views: Mapping[str, Pixels], layout: Composition) -> list[Problem]:
    allowed = ', '.join(layout.views)
    problems = [Problem(f'view {name}', 'missing', allowed=allowed) for name in layout.views if name not in views]
    problems += [Problem(f'view {name}', 'unknown', allowed=allowed) for name in views if name not in layout.views]
    for name in layout.views:
        if name in views:
            problems += _pixel_problems(f'view {name}', views[name])
    first = views.get(layout.views[0])
    if len(layout.views) > 1 and not problems and first is not None and (first.shape[1] % 2 or first.shape[0] < 2):
        size = f'{first.shape[0]} x {first.shape[1]}'
        remedy = 'the two pictures below it must fill its width'
        problems.append(Problem(f'view {layout.views[0]}', 'cannot be halved', size, 'an even width', remedy))
    return problems


def _pixel_problems(where: str, image: Pixels) -> list[Problem]:
    if not isinstance(image, np.ndarray):
        return [Problem(where, 'not an array', type(image).__name__, 'uint8 array [H, W, 3]')]
    problems = []
    if image.dtype != np.uint8:
        problems.append(Problem(where, 'not bytes', str(image.dtype), 'uint8, 0..255'))
    if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        problems.append(Problem(where, 'not of the shape of an RGB picture', str(list(image.shape)), '[H, W, 3]'))
    return problems
