"""Detail that an imagined video cannot show: where little changes, that of the first picture is still there.

An autoencoder blurs, and denoising leaves a flicker, also over a table on which nothing moves. There is no need for it
there, since the first picture is known. So an imagined frame f_t gives way to the picture p that was seen, as far as it
does not differ from the first imagined frame f_0:

    w_t = exp(-(b_t / CHANGE)^4), b_t = |f_t - f_0|, largest colour, blurred over BLUR pixels
    shown_t = w_t p + (1 - w_t) f_t

Flicker is weak but everywhere, motion is strong in one place: changes below half of CHANGE count for nothing, and half
above it for all. What is imagined but weakly there is left out with the flicker, so this is for people, and for
comparison with real pictures; no monitor uses it. The figures were chosen on episodes that no published figure is of.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidInput, Problem

Frames = NDArray[np.uint8]
CHANGE = 40.0
"""Of 255; a change of this size leaves a third of the first picture."""
BLUR = 6.0
"""Pixels; standard deviation, a third of an autoencoder's cell. Edges of what moves change less than its middle."""


def keep_detail(frames: Frames, seen: Frames) -> Frames:
    """Frames with the detail of what was seen wherever they change little.

    Args:
        frames: Imagined, uint8 [F, H, W, 3], the first of them of the moment that was seen.
        seen: The picture of that moment, uint8 [H, W, 3].

    Returns:
        uint8 [F, H, W, 3]; the first frame is what was seen.

    Raises:
        InvalidInput: They are of different sizes or kinds.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != seen.shape or seen.dtype != np.uint8:
        found = f'{frames.dtype} {list(frames.shape)} and {seen.dtype} {list(seen.shape)}'
        raise InvalidInput('detail', [Problem('frames', 'do not fit what was seen', found, 'uint8, of one size')])
    first, kept = frames[0].astype(np.float32), seen.astype(np.float32)
    return np.stack([_shown(frame.astype(np.float32), first, kept) for frame in frames])


def _shown(frame: NDArray[np.float32], first: NDArray[np.float32], seen: NDArray[np.float32]) -> Frames:
    change = cv2.GaussianBlur(np.abs(frame - first).max(axis=-1), (0, 0), BLUR)
    share = np.exp(-((change / CHANGE) ** 4))[..., None]
    shown: Frames = np.round(share * seen + (1.0 - share) * frame).astype(np.uint8)
    return shown
