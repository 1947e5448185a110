"""Composites against an independent formulation, to the bit, and everything that is wrong with views at once."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import contract
from engine.errors import InvalidInput, ObservationError
from engine.observation import views as views_module
from engine.observation.geometry import choose_canvas, fill_margins, fit
from engine.observation.kernels_pixels import double, halve
from engine.observation.views import COMPOSITIONS, compose, letterbox, resize, split, view_size

DROID = 'wrist_over_two_exteriors'


def picture(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def droid_views(*sizes: tuple[int, int]) -> dict[str, np.ndarray]:
    named = zip(COMPOSITIONS[DROID].views, sizes, strict=True)
    return {name: picture(*size, seed) for seed, (name, size) in enumerate(named)}


def reference_resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(planes, size=size, mode='bilinear', align_corners=False)
    return resized[0].permute(1, 2, 0).numpy().astype(np.uint8)


def reference_composite(views: dict[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    h, w = views['wrist'].shape[:2]
    left, right = (reference_resize(views[name], (h // 2, w // 2)) for name in ('exterior_1', 'exterior_2'))
    whole = np.concatenate([views['wrist'], np.concatenate([left, right], axis=1)], axis=0)
    return whole if whole.shape[:2] == size else reference_resize(whole, size)


@pytest.mark.parametrize(
    'sizes',
    [
        [(360, 640)] * 3,
        [(180, 320)] * 3,
        [(480, 640)] * 3,
        [(720, 1280), (480, 640), (360, 640)],
        [(361, 642), (123, 77), (720, 1280)],
    ],
)
def test_the_droid_composite_is_the_reference_servers_to_the_bit(sizes: list[tuple[int, int]]):
    views = droid_views(*sizes)
    composite = compose(views, DROID, (540, 640))
    assert composite.dtype == np.uint8
    np.testing.assert_array_equal(composite, reference_composite(views, (540, 640)))


def test_halving_cuts_the_mean_of_four_pixels_off():
    views = droid_views((360, 640), (360, 640), (360, 640))
    composite = compose(views, DROID, (540, 640))
    np.testing.assert_array_equal(composite[:360], views['wrist'])
    for name, columns in (('exterior_1', slice(0, 320)), ('exterior_2', slice(320, 640))):
        blocks = views[name].astype(int).reshape(180, 2, 320, 2, 3).sum(axis=(1, 3))
        np.testing.assert_array_equal(composite[360:, columns], blocks // 4)


@settings(max_examples=60, deadline=None)
@given(
    old=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    new=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    seed=st.integers(0, 1000),
)
def test_any_resize_is_pytorchs_to_the_bit(old: tuple[int, int], new: tuple[int, int], seed: int):
    image = picture(*old, seed)
    np.testing.assert_array_equal(resize(image, new), reference_resize(image, new))


@settings(max_examples=60, deadline=None)
@given(
    new=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    eighths=st.tuples(st.integers(1, 48), st.integers(1, 48)),
    seed=st.integers(0, 1000),
)
def test_the_fast_resize_is_pytorchs_to_the_bit(new: tuple[int, int], eighths: tuple[int, int], seed: int):
    new = (8 * new[0], 8 * new[1])
    old = (new[0] * eighths[0] // 8, new[1] * eighths[1] // 8)
    image = picture(*old, seed)
    np.testing.assert_array_equal(resize(image, new), reference_resize(image, new))


LAYOUTS = {
    'as it comes': lambda image: image,
    'cut out of a larger picture': lambda image: np.pad(image, ((2, 1), (1, 3), (0, 0)))[2:-1, 1:-3],
    'colours the other way round': lambda image: image[..., ::-1].copy()[..., ::-1],
    'upside down': lambda image: image[::-1].copy()[::-1],
    'mirrored': lambda image: image[:, ::-1].copy()[:, ::-1],
    'columns first': np.asfortranarray,
}


@pytest.mark.parametrize('layout', LAYOUTS)
@settings(max_examples=30, deadline=None)
@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0, 1000), halved=st.booleans())
def test_half_and_double_are_pytorchs_to_the_bit_however_the_pixels_lie(
    layout: str, size: tuple[int, int], seed: int, halved: bool
):
    """And what is beside the place that they are written to stays as it is."""
    large = (2 * size[0], 2 * size[1])
    old, new = (large, size) if halved else (size, large)
    image = LAYOUTS[layout](picture(*old, seed))
    image.flags.writeable = False
    around = picture(new[0] + 2, new[1] + 2, seed + 1)
    expected = around.copy()
    expected[1:-1, 1:-1] = reference_resize(picture(*old, seed), new)
    resize(image, new, around[1:-1, 1:-1])
    np.testing.assert_array_equal(around, expected)


def test_half_and_double_are_compiled_and_spare_the_way_through_floats(monkeypatch: pytest.MonkeyPatch):
    image, by_floats = picture(20, 30), views_module._resized
    assert set(views_module._KERNELS) == {'double', 'halve'}
    monkeypatch.setattr(views_module, '_resized', None)
    compiled = [resize(image, size) for size in ((40, 60), (10, 15))]
    monkeypatch.setattr(views_module, '_KERNELS', {})
    monkeypatch.setattr(views_module, '_resized', by_floats)
    for found in compiled:
        np.testing.assert_array_equal(found, resize(image, found.shape[:2]))


@pytest.mark.parametrize('kernel', [double, halve])
@pytest.mark.parametrize('shape', [(6, 8, 3), (5, 8, 3), (0, 0, 3), (12, 16, 1), (3, 4, 4)])
def test_the_compiled_ones_refuse_shapes_that_do_not_belong_together(kernel, shape: tuple[int, int, int]):
    with pytest.raises(ValueError, match='must'):
        kernel(picture(6, 8), np.empty(shape, np.uint8))
    with pytest.raises(ValueError, match='must'):
        kernel(np.empty(shape, np.uint8), picture(6, 8))


@pytest.mark.parametrize(('kernel', 'size'), [(double, (12, 16)), (halve, (3, 4))])
def test_the_compiled_ones_refuse_pixels_that_lie_apart_and_results_that_cannot_be_written(kernel, size: tuple):
    image, out = picture(6, 8), picture(*size)
    for one, other in ((image[..., ::-1], out), (image, out[..., ::-1]), (image[:, ::-1], out)):
        with pytest.raises(ValueError, match='one after another'):
            kernel(one, other)
    out.flags.writeable = False
    with pytest.raises(ValueError, match='read-only'):
        kernel(image, out)


@pytest.mark.parametrize('size', [(6, 8), (12, 16), (5, 7)])
def test_memory_of_another_shape_is_refused_for_a_result(size: tuple[int, int]):
    for shape, dtype in (((1, size[1], 3), np.uint8), ((*size, 3), np.float32)):
        with pytest.raises(ValueError, match='out has to be'):
            resize(picture(6, 8), size, np.zeros(shape, dtype))


@pytest.mark.parametrize('sizes', [[(180, 320)] * 3, [(360, 640)] * 3, [(720, 1280)] * 3, [(361, 642)] * 3])
@pytest.mark.parametrize('whole', [(540, 640), (544, 736)])
def test_a_composite_made_on_its_canvas_is_the_one_that_is_fitted_to_it(sizes: list, whole: tuple[int, int]):
    views, canvas = droid_views(*sizes), choose_canvas(480, *whole)
    place = picture(*canvas.size, 9)
    compose(views, DROID, whole, out=place[: whole[0], : whole[1]])
    fill_margins(place, whole, canvas)
    np.testing.assert_array_equal(place, fit(compose(views, DROID, whole), canvas).pixels)


def test_a_single_view_can_be_made_on_its_canvas_too():
    image, place = picture(40, 60), picture(50, 70, 1)
    for size in ((40, 60), (20, 30), (33, 44)):
        compose({'main': image}, 'single', size, out=place[: size[0], : size[1]])
        np.testing.assert_array_equal(place[: size[0], : size[1]], resize(image, size))


@pytest.mark.parametrize('old', [(180, 320), (270, 320), (360, 640), (1080, 1280), (2160, 2560)])
def test_camera_sizes_are_resized_to_the_bit(old: tuple[int, int]):
    image = picture(*old)
    np.testing.assert_array_equal(resize(image, (540, 640)), reference_resize(image, (540, 640)))


def test_a_single_view_is_only_resized():
    image = picture(270, 320)
    np.testing.assert_array_equal(compose({'main': image}, 'single', (540, 640)), reference_resize(image, (540, 640)))
    assert compose({'main': image}, 'single', (270, 320)) is image


def test_the_compositions_are_those_that_contracts_may_name():
    assert {name: layout.views for name, layout in COMPOSITIONS.items()} == dict(contract.COMPOSITIONS)


@pytest.mark.parametrize('composition', COMPOSITIONS)
def test_splitting_undoes_composing(composition: str):
    size = (540, 640)
    layout = COMPOSITIONS[composition]
    views = {name: picture(*view_size(composition, size), seed) for seed, name in enumerate(layout.views)}
    parts = split(compose(views, composition, size), composition)
    assert list(parts) == list(layout.views)
    for name, part in parts.items():
        np.testing.assert_array_equal(part, resize(views[name], part.shape[:2]))
    assert sum(part[..., 0].size for part in parts.values()) == 540 * 640


def test_a_decoded_video_is_split_where_the_whole_composite_is():
    video = np.stack([picture(528, 640, seed) for seed in range(2)])
    parts = split(video, DROID, (540, 640))
    assert parts['wrist'].shape == (2, 360, 640, 3)
    assert parts['exterior_1'].shape == parts['exterior_2'].shape == (2, 168, 320, 3)
    np.testing.assert_array_equal(parts['exterior_2'], video[:, 360:, 320:])


def test_cameras_are_asked_for_the_size_that_needs_no_resampling():
    assert view_size(DROID, (540, 640)) == (360, 640)
    assert view_size('single', (256, 320)) == (256, 320)


@pytest.mark.parametrize('size', [(720, 1280), (480, 640), (180, 320), (1000, 333), (360, 641), (360, 640)])
def test_letterboxing_is_openpis(size: tuple[int, int]):
    image_tools = pytest.importorskip('openpi_client.image_tools')
    image = picture(*size)
    np.testing.assert_array_equal(letterbox(image, (360, 640)), image_tools.resize_with_pad(image, 360, 640))


def test_letterboxing_centres_the_whole_picture_on_black():
    boxed = letterbox(np.full((480, 640, 3), 200, np.uint8), (360, 640))
    assert (boxed[:, 80:560] == 200).all()
    assert (boxed[:, :80] == 0).all()
    assert (boxed[:, 560:] == 0).all()


def test_every_fault_of_the_views_is_listed():
    views = {
        'wrist': np.zeros((360, 640, 3), np.float32),
        'exterior_2': np.zeros((360, 640), np.uint8),
        'front': picture(360, 640),
    }
    with pytest.raises(ObservationError) as error:
        compose(views, DROID, (540, 640))
    assert [(problem.where, problem.what.split()[0]) for problem in error.value.problems] == [
        ('view exterior_1', 'missing'),
        ('view front', 'unknown'),
        ('view wrist', 'not'),
        ('view exterior_2', 'not'),
    ]


@pytest.mark.parametrize('bad', [[[1, 2, 3]], None, np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_picture_is_refused(bad: object):
    with pytest.raises(ObservationError, match='view main'):
        compose({'main': bad}, 'single', (540, 640))  # type: ignore[dict-item]
    with pytest.raises(ObservationError, match='image'):
        letterbox(bad, (360, 640))  # type: ignore[arg-type]


def test_a_wrist_picture_that_cannot_be_halved_is_refused():
    with pytest.raises(ObservationError, match='360 x 641'):
        compose(droid_views((360, 641), (360, 640), (360, 640)), DROID, (540, 640))


def test_an_unknown_composition_is_refused_with_the_known_ones():
    for function in (lambda: compose({}, 'grid', (1, 1)), lambda: view_size('grid', (1, 1))):
        with pytest.raises(InvalidInput, match='single, wrist_over_two_exteriors, front_over_two_sides'):
            function()


def test_views_are_left_as_they_were():
    views = droid_views((180, 320), (180, 320), (180, 320))
    kept = {name: view.copy() for name, view in views.items()}
    compose(views, DROID, (540, 640))[:] = 0
    for name, view in views.items():
        np.testing.assert_array_equal(view, kept[name])


@pytest.mark.parametrize('size', [(180, 320), (360, 640)])
def test_composing_takes_a_small_part_of_a_control_period(size: tuple[int, int]):
    views = droid_views(size, size, size)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        compose(views, DROID, (540, 640))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.003
