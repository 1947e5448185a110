"""Boxes, points and trajectories on a picture, with their labels, readable on any size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.answers.values import Box, Point, Trajectory
from engine.errors import InvalidInput, Problem

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

_COLOURS: tuple[Colour, ...] = (
    (255, 80, 60),
    (60, 190, 255),
    (130, 230, 60),
    (255, 190, 40),
    (225, 120, 255),
    (70, 235, 205),
)
"""RGB, bright, so that a dark rim and dark letters go with all of them. One for each label, in order of appearance."""
_DARK: Colour = (20, 20, 20)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_HEIGHT = 22  # pixels of a capital letter of this font at scale 1
_SMALLEST_LETTER = 9  # pixels; below this nobody can read it


def draw(rgb: Picture, marks: Iterable[Box | Point | Trajectory]) -> Picture:
    """Draw on a copy of a picture; the widths of lines and the letters follow its size.

    Args:
        rgb: uint8 [H, W, 3].
        marks: What to draw. Equal labels have equal colours. Only ASCII can be drawn, other letters turn into question
            marks; a label that is wider than the picture is cut.

    Returns:
        uint8 [H, W, 3], a new array.

    Raises:
        InvalidInput: `rgb` is no such picture.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise InvalidInput('drawing', [Problem('rgb', 'is no picture', f'{rgb.dtype} {rgb.shape}', 'uint8 [H, W, 3]')])
    canvas = np.ascontiguousarray(rgb).copy()
    marks = list(marks)
    labels = list(dict.fromkeys(mark.label for mark in marks))
    colours = {label: _COLOURS[number % len(_COLOURS)] for number, label in enumerate(labels)}
    for mark in marks:
        _draw_shape(canvas, mark, colours[mark.label])
    for mark in marks:  # above all shapes
        _draw_label(canvas, mark, colours[mark.label])
    return canvas


def _width(canvas: Picture) -> int:
    """Of a line, pixels."""
    return max(1, round(min(canvas.shape[:2]) / 200))


def _draw_shape(canvas: Picture, mark: Box | Point | Trajectory, colour: Colour) -> None:
    width = _width(canvas)
    for ink, extra in ((_DARK, width), (colour, 0)):  # a dark rim first, so that it can be seen on anything
        if isinstance(mark, Box):
            (left, top), (right, bottom) = _corners(canvas, mark)
            cv2.rectangle(canvas, (left, top), (right, bottom), ink, width + 2 * extra, cv2.LINE_AA)
        elif isinstance(mark, Point):
            cv2.circle(canvas, _place(canvas, mark.x, mark.y), 3 * width + extra, ink, cv2.FILLED, cv2.LINE_AA)
        else:
            _draw_path(canvas, [_place(canvas, x, y) for x, y in mark.points], ink, width, extra)


def _draw_path(canvas: Picture, places: Sequence[tuple[int, int]], ink: Colour, width: int, extra: int) -> None:
    """A line through all places: a ring where it begins, dots between, an arrow where it ends."""
    for start, end in pairwise(places):
        cv2.line(canvas, start, end, ink, width + 2 * extra, cv2.LINE_AA)
    for place in places[1:-1]:
        cv2.circle(canvas, place, 2 * width + extra, ink, cv2.FILLED, cv2.LINE_AA)
    cv2.circle(canvas, places[0], 4 * width, ink, width + 2 * extra, cv2.LINE_AA)
    before = next((place for place in reversed(places) if place != places[-1]), None)
    if before is None:  # it stays where it is
        return
    back = np.subtract(before, places[-1]) / np.hypot(*np.subtract(before, places[-1]))
    for side in (np.array([-back[1], back[0]]), np.array([back[1], -back[0]])):
        barb = np.add(places[-1], 6 * width * (back + 0.6 * side)).round().astype(int)
        cv2.line(canvas, places[-1], (int(barb[0]), int(barb[1])), ink, width + 2 * extra, cv2.LINE_AA)


def _draw_label(canvas: Picture, mark: Box | Point | Trajectory, colour: Colour) -> None:
    """Dark letters on a bar of the mark's colour: above or below a box, beside a point; always inside the picture."""
    height, width = canvas.shape[:2]
    letter = max(_SMALLEST_LETTER, round(min(height, width) / 40))
    scale, stroke, margin = letter / _FONT_HEIGHT, max(1, letter // 8), max(2, letter // 3)
    text = _fitting(mark.label, scale, stroke, width - 2 * margin)
    if not text:
        return
    (across, up), down = cv2.getTextSize(text, _FONT, scale, stroke)
    bar_width, bar_height = across + 2 * margin, up + down + 2 * margin
    x, y = _label_corner(canvas, mark, bar_height)
    x, y = max(0, min(x, width - bar_width)), max(0, min(y, height - bar_height))
    cv2.rectangle(canvas, (x, y), (x + bar_width - 1, y + bar_height - 1), colour, cv2.FILLED)
    cv2.putText(canvas, text, (x + margin, y + margin + up), _FONT, scale, _DARK, stroke, cv2.LINE_AA)


def _label_corner(canvas: Picture, mark: Box | Point | Trajectory, bar_height: int) -> tuple[int, int]:
    """Upper left corner where the bar of a label would be if there were room."""
    width = _width(canvas)
    if isinstance(mark, Box):
        (left, top), (_, bottom) = _corners(canvas, mark)
        above, below = top - bar_height, bottom + width
        if above >= 0:
            return left - width, above
        return left - width, below if below + bar_height <= canvas.shape[0] else top
    x, y = _place(canvas, mark.x, mark.y) if isinstance(mark, Point) else _place(canvas, *mark.points[0])
    return x + 6 * width, y - bar_height // 2


def _fitting(label: str, scale: float, stroke: int, room: int) -> str:
    """As much of a label as fits in `room` pixels; a cut one ends in two dots."""
    plain = ' '.join(label.split()).encode('ascii', 'replace').decode()

    def fits(text: str) -> bool:
        return cv2.getTextSize(text, _FONT, scale, stroke)[0][0] <= room

    if fits(plain):
        return plain
    return next((cut for end in range(len(plain) - 1, 0, -1) if fits(cut := f'{plain[:end].rstrip()}..')), '')


def _corners(canvas: Picture, box: Box) -> tuple[tuple[int, int], tuple[int, int]]:
    return _place(canvas, box.x1, box.y1), _place(canvas, box.x2, box.y2)


def _place(canvas: Picture, x: int, y: int) -> tuple[int, int]:
    """The pixel at a normalised point; the right and the lower edge belong to the last one."""
    height, width = canvas.shape[:2]
    across, down = Point('', x, y).pixels(width, height)
    return min(int(across), width - 1), min(int(down), height - 1)
