"""How alike two videos are, frame by frame: PSNR and SSIM, by OpenCV and NumPy alone."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidInput, Problem

Frames = NDArray[np.uint8]
Floats = NDArray[np.float64]

LEAST_ERROR = 1 / 12
"""Mean square of what rounding to whole levels does: no two videos in bytes are known to be more alike than that."""
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(first: Frames, second: Frames) -> Floats:
    """Peak signal-to-noise ratio of each frame in dB, over all pixels and colours; 58.9 at most.

    Args:
        first: uint8 [F, H, W, 3].
        second: Likewise.

    Raises:
        InvalidInput: They are not of one shape.
    """
    _check(first, second)
    apart = first.astype(np.float32) - second.astype(np.float32)
    error = np.mean(apart.astype(np.float64) ** 2, axis=(1, 2, 3))
    return np.asarray(10 * np.log10(255**2 / np.maximum(error, LEAST_ERROR)))


def ssim(first: Frames, second: Frames) -> Floats:
    """Structural similarity of each frame, 1 for the same picture.

    Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, IEEE Trans. Image Processing 13(4), 2004: Gaussian window of
    11 x 11 pixels and standard deviation 1.5, K1 = 0.01, K2 = 0.03, on the luminance (ITU-R BT.601), the mean of all
    places where the window lies wholly inside. The pictures are not reduced first, as the authors do with large ones.

    Returns:
        [F]; not a number where the window does not fit.

    Raises:
        InvalidInput: They are not of one shape.
    """
    _check(first, second)
    if min(first.shape[1:3]) < _WINDOW:
        return np.full(len(first), np.nan)
    return np.array([_ssim(_luminance(one), _luminance(other)) for one, other in zip(first, second, strict=True)])


def _ssim(one: Floats, other: Floats) -> float:
    mean_one, mean_other = _blurred(one), _blurred(other)
    var_one, var_other = _blurred(one * one) - mean_one**2, _blurred(other * other) - mean_other**2
    covariance = _blurred(one * other) - mean_one * mean_other
    likeness = (2 * mean_one * mean_other + _C1) / (mean_one**2 + mean_other**2 + _C1)
    likeness *= (2 * covariance + _C2) / (var_one + var_other + _C2)
    return float(likeness.mean())


def _luminance(picture: NDArray[np.uint8]) -> Floats:
    return np.asarray(picture.astype(np.float64) @ np.array([0.299, 0.587, 0.114]))


def _blurred(values: Floats) -> Floats:
    """Weighted means of the windows that lie wholly inside."""
    edge = _WINDOW // 2
    whole = cv2.GaussianBlur(values, (_WINDOW, _WINDOW), _SIGMA, sigmaY=_SIGMA)
    return np.asarray(whole[edge:-edge, edge:-edge], np.float64)


def _check(first: Frames, second: Frames) -> None:
    if first.shape != second.shape or first.ndim != 4 or first.dtype != np.uint8 or second.dtype != np.uint8:
        found = f'{first.dtype} {list(first.shape)} and {second.dtype} {list(second.shape)}'
        raise InvalidInput('videos', [Problem('frames', 'do not fit each other', found, 'uint8 [F, H, W, 3] both')])
