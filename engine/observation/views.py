"""Several cameras in one picture, laid out as the checkpoint was trained.

Resizing follows NVIDIA's policy server to the bit: bilinear without antialiasing, half-pixel centres, cut off to whole
levels. Letter-boxing follows openpi's `resize_with_pad`, which robots' clients apply before they send a picture.

What a picture becomes is a :class:`Plan`, which the processor follows here and a GPU in
:mod:`engine.observation.on_device`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final, cast

import cv2
import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from engine.errors import InvalidInput, ObservationError, Problem
from engine.observation.geometry import Pixels, as_tensor

_KERNELS: dict[str, Callable[[Pixels, Pixels], None]] = {}
# A checkout that was not set up does without: the same by way of floats, in three times the time.
with suppress(ModuleNotFoundError):
    from engine.observation.kernels_pixels import double, halve

    _KERNELS.update(double=double, halve=halve)

Size = tuple[int, int]
"""(height, width) in pixels."""

Tile = tuple[slice, slice]
"""Rows and columns of the composite that a view takes."""

_PACKED = (3, 1)  # bytes from pixel to pixel, and from colour to colour

ASPECT_TOLERANCE = 0.03
"""Relative difference in shape that is scaled away rather than padded: tiles of rounded sizes, 152 x 304 for 16:9."""


@dataclass(frozen=True)
class Composition:
    """How views become one picture.

    Attributes:
        views: Names of the views, in the order in which `join` and `tiles` speak of them.
        join: For a first view of a given size, the size of the composite in which it keeps that size, and where each
            view lies in it.
        tiles: Where each view lies in a composite of a given size.
        view_size: The size of view that fits a composite of a given size without resampling the first one.
    """

    views: tuple[str, ...]
    join: Callable[[Size], tuple[Size, tuple[Tile, ...]]]
    tiles: Callable[[Size], tuple[Tile, ...]]
    view_size: Callable[[Size], Size]


@dataclass(frozen=True)
class Plan:
    """How views of known sizes become a composite: each is brought to its tile, then the whole to its size.

    Attributes:
        names: Views in the order of the tiles.
        tiles: Where each view lies in the whole.
        whole: Size of the picture that the tiles make up.
        size: Size of the composite.
        tilewise: Whether each tile may be brought to its final size by itself: the whole is reduced by whole numbers
            that divide all tiles, so that no pixel of the composite has its origin in two of them.
        exact: Whether the weights of all resizing are exact in float32, so that every device gives the same.
    """

    names: tuple[str, ...]
    tiles: tuple[Tile, ...]
    whole: Size
    size: Size
    tilewise: bool
    exact: bool

    def final(self, tile: Tile) -> Tile:
        """Where a tile lies in the composite, if they are made `tilewise`."""
        (rows, columns), (down, across) = tile, (self.whole[0] // self.size[0], self.whole[1] // self.size[1])
        return (
            slice(rows.start // down, rows.stop // down),
            slice(columns.start // across, columns.stop // across),
        )


def _one_over_two_joined(size: Size) -> tuple[Size, tuple[Tile, ...]]:
    h, w = size
    whole = (h + h // 2, w)
    return whole, (
        (slice(0, h), slice(0, w)),
        (slice(h, whole[0]), slice(0, w // 2)),
        (slice(h, whole[0]), slice(w // 2, w)),
    )


def _one_over_two_tiles(size: Size) -> tuple[Tile, ...]:
    (h, w), top = size, size[0] * 2 // 3
    return (
        (slice(0, top), slice(0, w)),
        (slice(top, h), slice(0, w // 2)),
        (slice(top, h), slice(w // 2, w)),
    )


def _all_of(size: Size) -> tuple[Tile, ...]:
    return ((slice(0, size[0]), slice(0, size[1])),)


COMPOSITIONS: Final[Mapping[str, Composition]] = MappingProxyType(
    {
        'single': Composition(
            views=('main',),
            join=lambda size: (size, _all_of(size)),
            tiles=_all_of,
            view_size=lambda size: size,
        ),
        # The DROID layout: the wrist at full size above the two exteriors at half of it, side by side.
        'wrist_over_two_exteriors': Composition(
            views=('wrist', 'exterior_1', 'exterior_2'),
            join=_one_over_two_joined,
            tiles=_one_over_two_tiles,
            view_size=lambda size: (size[0] * 2 // 3, size[1]),
        ),
        # The same layout as RoboMIND's two Frankas have it: the front on top, the views from the sides below.
        'front_over_two_sides': Composition(
            views=('front', 'left', 'right'),
            join=_one_over_two_joined,
            tiles=_one_over_two_tiles,
            view_size=lambda size: (size[0] * 2 // 3, size[1]),
        ),
    }
)


def compose(views: Mapping[str, Pixels], composition: str, size: Size, out: Pixels | None = None) -> Pixels:
    """Compose camera views into the picture that the network sees.

    The composite is made at the size of its first view and then brought to `size`; its aspect ratio may change in that,
    so letter-box views of another shape first (:func:`letterbox` with :func:`view_size`).

    Args:
        views: uint8 [H, W, 3] RGB for each view of the composition; sizes may differ from view to view.
        composition: One of :data:`COMPOSITIONS`.
        size: Height and width of the result in pixels.
        out: Memory for the result, uint8 of its shape; a part of a larger picture will do.

    Returns:
        uint8 [height, width, 3]: `out`, or else newly allocated or, for a single view of that very size, the view
        itself.

    Raises:
        InvalidInput: there is no such composition.
        ObservationError: a view is missing, unknown or not of that type and shape; lists every fault.
        ValueError: `out` is of another shape or type.
    """
    plan = plan_views(views, composition, size)
    if len(plan.tiles) == 1:
        return resize(views[plan.names[0]], size, out)
    joined = plan.size if plan.tilewise else plan.whole
    picture = out if out is not None and joined == size else np.empty((*joined, 3), np.uint8)
    for name, tile in zip(plan.names, plan.tiles, strict=True):
        view = resize(views[name], extent(tile))
        final = plan.final(tile) if plan.tilewise else tile
        resize(view, extent(final), picture[final])
    return picture if picture is out else resize(picture, size, out)


def plan_views(views: Mapping[str, Pixels], composition: str, size: Size) -> Plan:
    """What :func:`compose` does with these views.

    Raises:
        InvalidInput: there is no such composition.
        ObservationError: a view is missing, unknown or not of that type and shape; lists every fault.
    """
    layout = _layout(composition)
    problems = _view_problems(views, layout)
    if problems:
        raise ObservationError(f'views for composition {composition}', problems)
    sizes = [_size(views[name]) for name in layout.views]
    return _plan(composition, tuple(sizes), size)


@lru_cache(maxsize=64)
def _plan(composition: str, views: tuple[Size, ...], size: Size) -> Plan:
    layout = COMPOSITIONS[composition]
    whole, tiles = layout.join(views[0])
    resizings = [*zip(views, map(extent, tiles), strict=True), (whole, size)]
    factors = [old // new for old, new in zip(whole, size, strict=True)]
    tilewise = all(old == new * factor for old, new, factor in zip(whole, size, factors, strict=True)) and all(
        edge % factor == 0
        for tile in tiles
        for side, factor in zip(tile, factors, strict=True)
        for edge in (side.start, side.stop)
    )
    return Plan(layout.views, tiles, whole, size, tilewise, all(is_exact(*pair) for pair in resizings))


def extent(tile: Tile) -> Size:
    """Height and width of a tile."""
    rows, columns = tile
    return rows.stop - rows.start, columns.stop - columns.start


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


def in_shape(views: Mapping[str, Pixels], composition: str, size: Size) -> dict[str, Pixels]:
    """The views of a composition in the shape of their tiles: of another one they are letter-boxed.

    That is what NVIDIA's evaluation clients do; views of the right shape are left to :func:`compose` to scale.

    Args:
        views: uint8 [H, W, 3] RGB for each view of the composition.
        composition: One of :data:`COMPOSITIONS`.
        size: Height and width of the composite.

    Raises:
        ObservationError: A view is missing.
    """
    tile, wanted = view_size(composition, size), _layout(composition).views
    missing = [name for name in wanted if name not in views]
    if missing:
        given = f'given: {", ".join(views) or "none"}'
        raise ObservationError('views', [Problem(name, 'is missing', remedy=given) for name in missing])
    return {name: _in_shape(views[name], tile) for name in wanted}


def _in_shape(picture: Pixels, tile: Size) -> Pixels:
    """The picture itself if its aspect ratio is that of `tile`, else letter-boxed to it."""
    height, width = picture.shape[:2]
    same = abs(height * tile[1] / (width * tile[0]) - 1) < ASPECT_TOLERANCE
    return picture if same else letterbox(picture, tile)


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


def resize(image: Pixels, size: Size, out: Pixels | None = None) -> Pixels:
    """Bilinear, half-pixel centres, no antialiasing, cut off to whole levels: PyTorch's `interpolate`, to the bit.

    Args:
        image: uint8 [H, W, 3].
        size: Height and width of the result in pixels.
        out: Memory for the result, uint8 of its shape; a part of a larger picture will do.

    Returns:
        uint8 [height, width, 3]: `out`, or else a new one, or `image` itself if it has that size.

    Raises:
        ValueError: `out` is of another shape or type.
    """
    if out is not None and (out.shape, out.dtype) != ((*size, 3), np.dtype(np.uint8)):
        raise ValueError(f'out has to be uint8 {[*size, 3]}, got {out.dtype} {list(out.shape)}')
    if image.shape[:2] == size:
        if out is None:
            return image
        out[:] = image
        return out
    out = np.empty((*size, 3), np.uint8) if out is None else out
    if not _by_two(image, out):
        np.copyto(out, _resized(image, size), casting='unsafe')  # which cuts off what is behind the point
    return out


def _by_two(image: Pixels, out: Pixels) -> bool:
    """Resize to half or twice the size where that is compiled for the layout in memory; returns whether it was."""
    height, width = _size(image)
    name = {(2 * height, 2 * width): 'double', (height / 2, width / 2): 'halve'}.get(_size(out), '')
    kernel = _KERNELS.get(name)
    if kernel is None or image.strides[1:] != _PACKED or out.strides[1:] != _PACKED:
        return False
    kernel(image, out)
    return True


def _resized(image: Pixels, size: Size) -> NDArray[np.float32]:
    """Levels of :func:`resize` before they are cut off, [height, width, 3]."""
    if is_exact(_size(image), size):
        # Every weight and every sum is exact then, so that any implementation gives the same; this one is fast.
        levels = cv2.resize(image.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        return cast('NDArray[np.float32]', levels)
    planes = as_tensor(image).permute(2, 0, 1)[None].float()
    resized: NDArray[np.float32] = (
        F.interpolate(planes, size=size, mode='bilinear', align_corners=False)[0].permute(1, 2, 0).numpy()
    )
    return resized


def is_exact(old: Size, new: Size) -> bool:
    """Whether linear weights from one size to the other are multiples of 1/16, as for halves, doubles and quarters.

    Two such weights and a level take 4 + 4 + 8 bits; positions up to 2**16 take another few: float32 holds 24.
    """
    return all(a * 8 % b == 0 and max(a, b) <= 2**16 for a, b in zip(old, new, strict=True))


def _size(image: Pixels) -> Size:
    return image.shape[0], image.shape[1]


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
