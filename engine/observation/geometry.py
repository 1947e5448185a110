"""Where a picture goes on the canvas that the network works on: canvas sizes, fitting, padding, cropping of latents.

A picture is never enlarged or distorted: it is reduced if it must be, placed at the top left of a canvas from a fixed
table, and mirrored into what is left at the right and at the bottom. Only latents that hold content are denoised.
Table and rules are those of NVIDIA's cosmos-framework for action data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from engine.errors import InvalidInput, ObservationError, Problem

Pixels = npt.NDArray[np.uint8]

LATENT_PIXELS: Final = 16
"""Pixels to a latent position, in height and in width."""

ASPECTS: Final = ('1,1', '4,3', '3,4', '16,9', '9,16')
"""Names of the aspect ratios, width before height; ties between them go to the earlier one."""

_TABLE: Final[Mapping[str, tuple[tuple[int, int], ...]]] = {
    # (height, width) for each of ASPECTS
    '256': ((256, 256), (256, 320), (320, 256), (192, 320), (320, 192)),
    '480': ((640, 640), (544, 736), (736, 544), (480, 832), (832, 480)),
    '704': ((960, 960), (832, 1088), (1088, 832), (704, 1280), (1280, 704)),
    '720': ((960, 960), (832, 1104), (1104, 832), (720, 1280), (1280, 720)),
    '768': ((1024, 1024), (880, 1184), (1184, 880), (768, 1360), (1360, 768)),
    '1080': ((1440, 1440), (1248, 1664), (1664, 1248), (1080, 1920), (1920, 1080)),
    '1280': ((1712, 1712), (1472, 1968), (1968, 1472), (1280, 2272), (2272, 1280)),
    '2048': ((2728, 2728), (2368, 3160), (3160, 2368), (2048, 3640), (3640, 2048)),
    'gt_2048': ((5464, 5464), (4728, 6304), (6304, 4728), (4096, 7280), (7280, 4096)),
}

# cosmos-framework alone offers this one, for video only; diffusers and vllm-omni send such pictures to 3,4 or 9,16.
_TWO_THIRDS: Final = ('480', '2,3', (768, 512))

UNIT_LEVELS: Final = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1)
"""What each level of a byte is in -1..1, float32 [256]; not to be written to."""
UNIT_LEVELS.flags.writeable = False


@dataclass(frozen=True)
class Canvas:
    """The picture size that the network works on: `height` and `width` in pixels, `aspect` as in :data:`ASPECTS`."""

    height: int
    width: int
    aspect: str

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width


@dataclass(frozen=True, eq=False)
class FittedImage:
    """A picture on its canvas.

    Attributes:
        pixels: uint8 [..., canvas height, canvas width, 3]; content at the top left, its reflection around it.
        content_h: Rows that hold content.
        content_w: Columns that hold content.
    """

    pixels: Pixels
    content_h: int
    content_w: int


def canvases(tier: str | int, *, two_thirds: bool = False) -> tuple[Canvas, ...]:
    """All canvases of a resolution tier.

    Args:
        tier: 256, 480, 704, 720, 768, 1080, 1280, 2048 or 'gt_2048'.
        two_thirds: Include the 512 x 768 portrait canvas that only cosmos-framework has, and only in tier 480.

    Raises:
        InvalidInput: there is no such tier.
    """
    name = str(tier)
    if name not in _TABLE:
        raise InvalidInput('resolution tier', [Problem('tier', 'unknown', repr(tier), ', '.join(_TABLE))])
    found = tuple(Canvas(*size, aspect) for size, aspect in zip(_TABLE[name], ASPECTS, strict=True))
    extra_tier, extra_aspect, extra_size = _TWO_THIRDS
    return (*found, Canvas(*extra_size, extra_aspect)) if two_thirds and name == extra_tier else found


def choose_canvas(tier: str | int, h: int, w: int, *, two_thirds: bool = False) -> Canvas:
    """The canvas of `tier` whose height / width is closest to that of a picture of `h` by `w` pixels.

    Raises:
        InvalidInput: there is no such tier, or the picture is empty.
    """
    if h < 1 or w < 1:
        raise InvalidInput('picture size', [Problem('size', 'empty', f'{h} x {w}', 'at least 1 x 1')])
    return min(canvases(tier, two_thirds=two_thirds), key=lambda canvas: abs(canvas.height / canvas.width - h / w))


def tier_of(h: int, w: int) -> str:
    """The tier that cosmos-framework assumes for a picture of `h` by `w` pixels when none is asked for.

    Raises:
        InvalidInput: the picture is larger than any tier's.
    """
    if (h, w) in _TABLE['768']:
        return '768'
    for limit, tier in ((256, '256'), (640, '480'), (960, '720'), (2048, '768')):
        if min(h, w) <= limit:
            return tier
    raise InvalidInput('picture size', [Problem('size', 'too large', f'{h} x {w}', 'shorter side up to 2048')])


def aspect_label(height: int, width: int) -> str:
    """Name of a canvas's aspect ratio: the table's where the size is in it, else the reduced 'width,height'."""
    for tier in _TABLE:
        for canvas in canvases(tier, two_thirds=True):
            if canvas.size == (height, width):
                return canvas.aspect
    divisor = math.gcd(width, height)
    return f'{width // divisor},{height // divisor}'


def content_size(h: int, w: int, canvas: Canvas) -> tuple[int, int]:
    """Size (height, width) that a picture of `h` by `w` pixels takes on `canvas`; never more than its own."""
    scale = min(canvas.width / w, canvas.height / h, 1.0)
    # The framework rounds a half up; a sliver of a picture keeps one pixel.
    return max(1, int(scale * h + 0.5)), max(1, int(scale * w + 0.5))


def fit(image: Pixels, canvas: Canvas) -> FittedImage:
    """Place a picture on its canvas.

    Reduction is bicubic with antialiasing, computed in float32 and rounded to whole levels. Padding goes to the right
    and to the bottom and mirrors the content without repeating its edge; where it would exceed the content, the edge is
    repeated instead. A picture of the canvas's own size is returned as it is, not copied.

    Args:
        image: uint8 [..., H, W, 3]; leading axes, such as time, are kept.
        canvas: From :func:`choose_canvas`.

    Raises:
        ObservationError: `image` is not of that type and shape.
    """
    _check_pixels(image)
    h, w = image.shape[-3:-1]
    size = content_size(h, w, canvas)
    pixels = image if size == (h, w) else _reduce(image, size)
    return FittedImage(_pad(pixels, canvas), *size)


def fill_margins(picture: Pixels, content: tuple[int, int], canvas: Canvas) -> None:
    """Fill what is to the right of and below the content of a canvas, in place, as :func:`fit` does.

    Args:
        picture: uint8 [canvas height, canvas width, 3], contiguous, with the content at the top left.
        content: Height and width of the content.
        canvas: Whose picture it is.
    """
    h, w = content
    bottom, right = canvas.height - h, canvas.width - w
    if bottom or right:
        # It is documented to work where the source lies in the middle of the destination already.
        cv2.copyMakeBorder(picture[:h, :w], 0, bottom, 0, right, _border(h, w, canvas), picture)


def latent_crop(content_h: int, content_w: int) -> tuple[int, int]:
    """Rows and columns of latents to denoise for that much content; those covered only in part are dropped."""
    return max(1, content_h // LATENT_PIXELS), max(1, content_w // LATENT_PIXELS)


def to_unit(
    pixels: Pixels, device: torch.device | str | None = None, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Pixels as the video autoencoder wants them.

    Args:
        pixels: uint8 [H, W, 3], or a video [F, H, W, 3].
        device: Where to; the pixels travel as bytes and are converted there.
        out: Memory for the result, of its shape and on that device; new memory costs more than the conversion, and
            least is done where colours are innermost in it.

    Returns:
        float32 in -1..1, [3, H, W] or [3, F, H, W]; the same bits on every device.

    Raises:
        ObservationError: `pixels` is not of that type and shape.
        ValueError: `out` is of another shape or type.
    """
    _check_pixels(pixels)
    shape = (3, *pixels.shape[:-1])
    if out is not None and (tuple(out.shape), out.dtype) != (shape, torch.float32):
        raise ValueError(f'out has to be float32 {list(shape)}, got {out.dtype} {list(out.shape)}')
    if torch.device(device or 'cpu').type == 'cpu':
        return _looked_up(pixels, out)
    levels = as_tensor(pixels).to(device).movedim(-1, 0)
    unit = levels.float() if out is None else out.copy_(levels)
    # A tensor as divisor: GPUs multiply by the rounded inverse of a plain number, and give other bits than processors.
    return unit.div_(torch.full((), 127.5, device=unit.device)).sub_(1.0)


def _looked_up(pixels: Pixels, out: torch.Tensor | None) -> torch.Tensor:
    """The same on the processor, which writes each number once if it looks it up."""
    result = np.empty(pixels.shape, np.float32) if out is None else out.movedim(0, -1).numpy()
    # The table works on matrices: the frames of a video stand one above the other.
    levels = np.ascontiguousarray(pixels).reshape(-1, *pixels.shape[-2:])
    if result.flags.c_contiguous:
        cv2.LUT(levels, UNIT_LEVELS, result.reshape(levels.shape))
    else:
        result[:] = cv2.LUT(levels, UNIT_LEVELS).reshape(result.shape)
    return torch.from_numpy(result).movedim(-1, 0)


def sources(h: int, w: int, canvas: Canvas) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Which row and which column of a picture of `h` by `w` pixels each row and column of the canvas shows.

    For a picture that need not be reduced; see :func:`fit`.
    """
    rows, columns = np.arange(canvas.height), np.arange(canvas.width)
    if _is_mirrored(h, w, canvas):
        return np.minimum(rows, 2 * (h - 1) - rows), np.minimum(columns, 2 * (w - 1) - columns)
    return np.minimum(rows, h - 1), np.minimum(columns, w - 1)


def as_tensor(pixels: Pixels) -> torch.Tensor:
    """Pixels as a tensor to be read only; shares memory where PyTorch can."""
    # It cannot share memory that runs backwards, and warns about memory that it must not write to.
    return torch.from_numpy(pixels if pixels.flags.writeable and min(pixels.strides) >= 0 else pixels.copy())


def _check_pixels(image: Pixels) -> None:
    problems = []
    if image.dtype != np.uint8:
        problems.append(Problem('type', 'not bytes', str(image.dtype), 'uint8, 0..255'))
    if image.ndim < 3 or image.shape[-1] != 3 or 0 in image.shape:
        problems.append(Problem('shape', 'not that of RGB pixels', str(list(image.shape)), '[H, W, 3], none empty'))
    if problems:
        raise ObservationError('picture', problems)


def _reduce(image: Pixels, size: tuple[int, int]) -> Pixels:
    # Through float32 and not torch's own uint8 kernel: this is what torchvision's (v1) resize does, and they differ by
    # a level here and there.
    planes = as_tensor(image.reshape(-1, *image.shape[-3:])).permute(0, 3, 1, 2).contiguous()
    resized = F.interpolate(planes.float(), size, mode='bicubic', align_corners=False, antialias=True)
    levels = resized.clamp_(0.0, 255.0).round_().to(torch.uint8).permute(0, 2, 3, 1)
    return np.ascontiguousarray(levels.numpy()).reshape(*image.shape[:-3], *size, 3)


def _pad(pixels: Pixels, canvas: Canvas) -> Pixels:
    h, w = pixels.shape[-3:-1]
    bottom, right = canvas.height - h, canvas.width - w
    if bottom == right == 0:
        return pixels
    if pixels.ndim == 3:
        border = _border(h, w, canvas)
        return cv2.copyMakeBorder(np.ascontiguousarray(pixels), 0, bottom, 0, right, border).astype(
            np.uint8, copy=False
        )
    widths = [*[(0, 0)] * (pixels.ndim - 3), (0, bottom), (0, right), (0, 0)]
    return np.pad(pixels, widths, mode='reflect' if _is_mirrored(h, w, canvas) else 'edge')


def _border(h: int, w: int, canvas: Canvas) -> int:
    return cv2.BORDER_REFLECT_101 if _is_mirrored(h, w, canvas) else cv2.BORDER_REPLICATE


def _is_mirrored(h: int, w: int, canvas: Canvas) -> bool:
    return canvas.height - h < h and canvas.width - w < w
