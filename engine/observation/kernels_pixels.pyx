# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Compiled resizing of bytes to half and to twice their size, by linear weights, cut off to whole levels.

All sums are of whole numbers, so the results are those of any exact implementation: :func:`engine.observation.views.resize`
by way of floats, and PyTorch's `interpolate`. Rows are added first, which the compiler does for many numbers at once.
Pixels have three colours; a pixel is written as four bytes, the last of which the next one overwrites.
"""

from libc.stdint cimport uint8_t, uint16_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cdef enum:
    COLOURS = 3


def halve(const uint8_t[:, :, :] image, uint8_t[:, :, :] out):
    """Mean of each two by two pixels, cut off.

    Args:
        image: uint8 [2 H, 2 W, 3]; rows may lie apart.
        out: uint8 [H, W, 3], written to; rows may lie apart.

    Raises:
        ValueError: The shapes do not fit.
    """
    _check(image, out, out.shape[0] * 2, out.shape[1] * 2)
    cdef Py_ssize_t height = out.shape[0], across = out.shape[1], wide = image.shape[1] * COLOURS, row, i
    cdef uint16_t *pairs = <uint16_t *>malloc(wide * sizeof(uint16_t))
    cdef uint8_t *means = <uint8_t *>malloc(wide + 1)
    cdef const uint8_t *upper
    cdef const uint8_t *lower
    cdef uint8_t *to
    if pairs == NULL or means == NULL:
        free(pairs)
        free(means)
        raise MemoryError
    with nogil:
        for row in range(height):
            upper, lower, to = &image[2 * row, 0, 0], &image[2 * row + 1, 0, 0], &out[row, 0, 0]
            for i in range(wide):
                pairs[i] = <uint16_t>(upper[i] + lower[i])
            for i in range(wide - COLOURS):
                means[i] = <uint8_t>((pairs[i] + pairs[i + COLOURS]) >> 2)
            for i in range(across - 1):
                memcpy(to + COLOURS * i, means + 2 * COLOURS * i, COLOURS + 1)
            memcpy(to + COLOURS * (across - 1), means + 2 * COLOURS * (across - 1), COLOURS)
        free(pairs)
        free(means)


def double(const uint8_t[:, :, :] image, uint8_t[:, :, :] out):
    """Each pixel becomes two by two, which take 9, 3, 3 and 1 of 16 parts from the four nearest; edges are repeated.

    Args:
        image: uint8 [H, W, 3]; rows may lie apart.
        out: uint8 [2 H, 2 W, 3], written to; rows may lie apart.

    Raises:
        ValueError: The shapes do not fit.
    """
    _check(image, out, out.shape[0] // 2, out.shape[1] // 2)
    if out.shape[0] % 2 or out.shape[1] % 2:
        raise ValueError(f'out: {out.shape[0]} x {out.shape[1]}, must be even')
    cdef Py_ssize_t height = image.shape[0], across = image.shape[1], wide = across * COLOURS, row, other, i
    cdef uint16_t *mixed = <uint16_t *>malloc((wide + 2 * COLOURS) * sizeof(uint16_t))
    cdef uint8_t *left = <uint8_t *>malloc(wide + 1)
    cdef uint8_t *right = <uint8_t *>malloc(wide + 1)
    cdef uint16_t *inner = mixed + COLOURS
    cdef const uint8_t *near
    cdef const uint8_t *far
    cdef uint8_t *to
    if mixed == NULL or left == NULL or right == NULL:
        free(mixed)
        free(left)
        free(right)
        raise MemoryError
    with nogil:
        for row in range(2 * height):
            other = row // 2 + (1 if row % 2 else -1)
            other = min(max(other, 0), height - 1)
            near, far, to = &image[row // 2, 0, 0], &image[other, 0, 0], &out[row, 0, 0]
            for i in range(wide):
                inner[i] = <uint16_t>(3 * near[i] + far[i])
            for i in range(COLOURS):
                mixed[i] = inner[i]
                inner[wide + i] = inner[wide - COLOURS + i]
            for i in range(wide):
                left[i] = <uint8_t>((3 * inner[i] + mixed[i]) >> 4)
                right[i] = <uint8_t>((3 * inner[i] + inner[i + COLOURS]) >> 4)
            for i in range(across - 1):
                memcpy(to + 2 * COLOURS * i, left + COLOURS * i, COLOURS + 1)
                memcpy(to + 2 * COLOURS * i + COLOURS, right + COLOURS * i, COLOURS + 1)
            memcpy(to + 2 * COLOURS * (across - 1), left + wide - COLOURS, COLOURS)
            memcpy(to + 2 * COLOURS * (across - 1) + COLOURS, right + wide - COLOURS, COLOURS)
        free(mixed)
        free(left)
        free(right)


cdef _check(const uint8_t[:, :, :] image, uint8_t[:, :, :] out, Py_ssize_t height, Py_ssize_t width):
    """Raise if the shapes do not fit, or if the pixels of a row do not lie one after another."""
    if out.shape[2] != COLOURS or image.shape[2] != COLOURS or 0 in (out.shape[0], out.shape[1]):
        raise ValueError('image and out: must be [height, width, 3], not empty')
    if (image.shape[0], image.shape[1]) != (height, width):
        raise ValueError(f'image: {image.shape[0]} x {image.shape[1]}, must be {height} x {width} for this out')
    if not (image.strides[2] == out.strides[2] == 1 and image.strides[1] == out.strides[1] == COLOURS):
        raise ValueError('image and out: pixels of a row must lie one after another')
