"""Boxes, points and trajectories: where they lie in a picture, and on it."""

from __future__ import annotations

import numpy as np
import pytest

from engine.answers.drawing import draw
from engine.answers.values import Box, Point, Trajectory
from engine.errors import InvalidInput

MARKS = (
    Box('a box with a very long name indeed', 0, 0, 500, 400),
    Box('Würfel', 900, 900, 1000, 1000),
    Point('corner', 1000, 1000),
    Trajectory('path', ((100, 900), (500, 500), (900, 100))),
    Trajectory('stays', ((300, 300), (300, 300))),
)


def test_coordinates_become_pixels_of_the_picture_at_hand() -> None:
    assert Box('a', 0, 250, 1000, 500).pixels(640, 480) == (0, 120, 640, 240)
    assert Point('a', 500, 100).pixels(1280, 720) == (640, 72)
    assert Trajectory('a', ((0, 0), (125, 1000))).pixels(800, 600) == ((0, 0), (100, 600))


@pytest.mark.parametrize('size', [(1, 1), (9, 300), (48, 64), (480, 640), (2160, 3840)])
def test_anything_can_be_drawn_on_a_picture_of_any_size_and_the_picture_stays_as_it_was(size: tuple[int, int]) -> None:
    picture = np.full((*size, 3), 127, np.uint8)
    drawn = draw(picture, MARKS)
    assert drawn.shape == picture.shape
    assert drawn.dtype == np.uint8
    assert (picture == 127).all()
    assert (drawn != picture).any()


def test_a_box_is_drawn_where_it_lies_and_nowhere_else() -> None:
    picture = np.zeros((400, 400, 3), np.uint8)
    changed = (draw(picture, [Box('cube', 250, 500, 750, 750)]) != picture).any(axis=-1)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert changed[200, 100:300].all()  # upper edge
    assert changed[200:300, 100].all()  # left edge
    assert not changed[220:280, 120:280].any()
    assert (columns.min(), columns.max()) == pytest.approx((100, 300), abs=4)
    assert rows.max() == pytest.approx(300, abs=4)


def test_it_can_be_seen_on_black_and_on_white() -> None:
    for ground in (0, 255):
        drawn = draw(np.full((200, 200, 3), ground, np.uint8), [Trajectory('path', ((100, 500), (900, 500)))])
        contrast = np.abs(drawn[:, 100].astype(int).sum(axis=-1) - 3 * ground)
        assert contrast.max() > 300


def test_equal_labels_have_equal_colours_and_other_labels_others() -> None:
    picture = np.zeros((300, 300, 3), np.uint8)
    drawn = draw(picture, [Point('a', 100, 900), Point('b', 400, 900), Point('a', 700, 900)])
    first, second, third = (tuple(drawn[270, x]) for x in (30, 120, 210))
    assert first == third != second


def test_a_label_stays_inside_the_picture_and_leaves_its_box_to_be_seen() -> None:
    picture = np.zeros((200, 300, 3), np.uint8)
    changed = (draw(picture, [Box('top', 600, 0, 1000, 500)]) != picture).any(axis=-1)
    assert changed[104:112, 180:220].any()  # below the box, as there is no room above
    assert not changed[20:80, 200:280].any()


@pytest.mark.parametrize('picture', [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_picture_is_refused(picture: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match='rgb: is no picture'):
        draw(picture, [])
