"""What does not change keeps the detail of the picture that was seen, and what changes is as imagined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.dynamics_detail import keep_detail
from engine.errors import InvalidInput


def blurred_square(left: int) -> np.ndarray:
    """A grey scene in which a white square stands."""
    made = np.full((32, 48, 3), 90, np.uint8)
    made[8:20, left : left + 12] = 240
    return made


def seen_square() -> np.ndarray:
    """The same with a pattern that an autoencoder would lose."""
    made = blurred_square(4).astype(int)
    made += 10 * (np.indices(made.shape[:2]).sum(0) % 2)[..., None]
    return made.astype(np.uint8)


def test_where_nothing_changes_the_picture_that_was_seen_stays_and_what_moves_is_as_imagined() -> None:
    seen = seen_square()
    shown = keep_detail(np.stack([blurred_square(4), blurred_square(4), blurred_square(30)]), seen)
    np.testing.assert_array_equal(shown[0], seen)
    np.testing.assert_array_equal(shown[1], seen)
    np.testing.assert_array_equal(shown[2][30:], seen[30:], 'far from what moves')
    assert np.abs(shown[2][11:17, 33:39].astype(int) - 240).max() <= 2, 'where it is now'
    assert np.abs(shown[2][11:17, 7:13].astype(int) - 90).max() <= 2, 'and where it was'


def test_flicker_is_not_shown_and_a_strong_change_is() -> None:
    seen, rng = seen_square(), np.random.default_rng(0)
    flicker = rng.integers(-25, 26, seen.shape)
    frames = np.stack([blurred_square(4), np.clip(blurred_square(4) + flicker, 0, 255).astype(np.uint8)])
    frames[1, 8:20, 30:42] = 240
    shown = keep_detail(frames, seen)[1].astype(int)
    assert np.abs(shown[:, :16] - seen[:, :16]).max() <= 2
    assert np.abs(shown[12:16, 34:38] - 240).max() <= 4


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.integers(0, 255))
def test_nothing_is_shown_that_was_neither_seen_nor_imagined(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    frames = np.clip(120 + rng.integers(-size, size + 1, (3, 16, 16, 3)), 0, 255).astype(np.uint8)
    seen = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    shown = keep_detail(frames, seen)
    assert (shown.shape, shown.dtype) == (frames.shape, np.uint8)
    assert (shown >= np.minimum(frames, seen)).all()
    assert (shown <= np.maximum(frames, seen)).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInput, match='do not fit what was seen'):
        keep_detail(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(InvalidInput, match='do not fit what was seen'):
        keep_detail(np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8))
