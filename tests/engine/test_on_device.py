"""Pictures composed by PyTorch on a device: the very numbers of the processor's path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ObservationError
from engine.observation.geometry import Canvas, choose_canvas, fit, to_unit
from engine.observation.on_device import compose_on
from engine.observation.views import COMPOSITIONS, compose, plan_views

DROID = 'wrist_over_two_exteriors'
CPU = torch.device('cpu')


def pictures(composition: str, *sizes: tuple[int, int]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    names = COMPOSITIONS[composition].views
    return {n: generator.integers(0, 256, (*size, 3), np.uint8) for n, size in zip(names, sizes, strict=True)}


def expect_same(views: dict[str, np.ndarray], composition: str, size: tuple[int, int], canvas: Canvas) -> None:
    expected = to_unit(fit(compose(views, composition, size), canvas).pixels)
    found = compose_on(views, composition, size, canvas, CPU)
    assert (found.shape, found.dtype) == ((3, *canvas.size), torch.float32)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    'sizes',
    [
        [(720, 1280)] * 3,
        [(360, 640)] * 3,
        [(180, 320)] * 3,
        [(1080, 1920)] * 3,
        [(720, 1280), (180, 320), (360, 640)],
        [(361, 642), (123, 77), (720, 1280)],
    ],
    ids=str,
)
def test_the_droid_picture_is_the_processors_to_the_bit(sizes: list[tuple[int, int]]) -> None:
    expect_same(pictures(DROID, *sizes), DROID, (540, 640), choose_canvas(480, 540, 640))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=3, max_size=3),
    size=st.tuples(st.integers(4, 60), st.integers(4, 60)),
    room=st.tuples(st.integers(-2, 70), st.integers(-2, 70)),
)
def test_any_picture_is_the_processors_to_the_bit(
    sizes: list[tuple[int, int]], size: tuple[int, int], room: tuple[int, int]
) -> None:
    even = [(2 * h, 2 * w) for h, w in sizes]
    canvas = Canvas(max(1, size[0] + room[0]), max(1, size[1] + room[1]), '')
    expect_same(pictures(DROID, *even), DROID, size, canvas)
    expect_same(pictures('single', even[0]), 'single', size, canvas)


def test_a_composite_larger_than_its_canvas_is_reduced_the_same() -> None:
    expect_same(pictures(DROID, *[(720, 1280)] * 3), DROID, (1080, 1280), choose_canvas(256, 1080, 1280))


def test_only_scales_with_exact_weights_are_left_to_the_device() -> None:
    exact = [plan_views(pictures(DROID, *[size] * 3), DROID, (540, 640)).exact for size in [(720, 1280), (480, 848)]]
    assert exact == [True, False]


def test_faults_of_views_are_reported_as_elsewhere() -> None:
    views = pictures(DROID, *[(360, 640)] * 3)
    del views['wrist']
    with pytest.raises(ObservationError, match='view wrist'):
        compose_on(views, DROID, (540, 640), choose_canvas(480, 540, 640), CPU)


def test_pictures_that_run_backwards_or_may_not_be_written_to_are_taken() -> None:
    views = {name: view[:, ::-1, ::-1] for name, view in pictures(DROID, *[(180, 320)] * 3).items()}
    for view in views.values():
        view.flags.writeable = False
    expect_same(views, DROID, (540, 640), choose_canvas(480, 540, 640))
