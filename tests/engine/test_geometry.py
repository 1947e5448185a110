"""Canvas choice, fitting and cropping: published figures, an independent resize, and properties of any picture."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.contract import RESOLUTION_TIERS
from engine.errors import InvalidInput, ObservationError
from engine.observation.geometry import (
    Canvas,
    aspect_label,
    canvases,
    choose_canvas,
    content_size,
    fit,
    latent_crop,
    tier_of,
    to_unit,
)


def picture(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def test_the_droid_composite_takes_the_published_place():
    canvas = choose_canvas(480, 540, 640)
    assert canvas == Canvas(544, 736, '4,3')
    fitted = fit(picture(540, 640), canvas)
    assert fitted.pixels.shape == (544, 736, 3)
    assert (fitted.content_h, fitted.content_w) == (540, 640)
    rows, columns = latent_crop(540, 640)
    assert (rows, columns) == (33, 40)
    patches = -(-rows // 2) * -(-columns // 2)
    assert (-(-rows // 2), -(-columns // 2)) == (17, 20)
    assert patches * 9 == 3060


@pytest.mark.parametrize(
    ('tier', 'size', 'aspect'),
    [
        (256, (256, 256), '1,1'),
        (256, (192, 320), '16,9'),
        (256, (256, 320), '4,3'),
        (480, (640, 640), '1,1'),
        (480, (480, 832), '16,9'),
        (480, (736, 544), '3,4'),
        (704, (832, 1088), '4,3'),
        (720, (720, 1280), '16,9'),
        (768, (768, 1360), '16,9'),
        (1080, (1248, 1664), '4,3'),
        (1280, (2272, 1280), '9,16'),
        (2048, (2368, 3160), '4,3'),
        ('gt_2048', (4096, 7280), '16,9'),
    ],
)
def test_a_picture_of_a_canvas_size_gets_that_canvas(tier: str | int, size: tuple[int, int], aspect: str):
    assert choose_canvas(tier, *size) == Canvas(*size, aspect)
    assert aspect_label(*size) == aspect


@pytest.mark.parametrize(
    ('size', 'aspect'),
    [
        ((480, 640), '4,3'),
        ((360, 640), '16,9'),
        ((1080, 1920), '16,9'),
        ((500, 500), '1,1'),
        ((1080, 720), '3,4'),
        ((1200, 720), '9,16'),
    ],
)
def test_other_pictures_get_the_closest_ratio(size: tuple[int, int], aspect: str):
    assert choose_canvas(480, *size).aspect == aspect


def test_the_portrait_canvas_of_one_reference_is_opt_in():
    assert choose_canvas(480, 1080, 720, two_thirds=True) == Canvas(768, 512, '2,3')
    assert choose_canvas(720, 1080, 720, two_thirds=True).aspect == '3,4'
    assert len(canvases(480)) == 5


def test_every_tier_of_a_contract_has_portrait_and_landscape_twins():
    for tier in RESOLUTION_TIERS:
        square, wide, tall, wider, taller = canvases(tier)
        assert square.height == square.width
        assert wide.size == tall.size[::-1]
        assert wider.size == taller.size[::-1]
        assert all(size % 16 == 0 for canvas in canvases(tier) for size in canvas.size)


def test_an_unknown_tier_is_refused_with_the_known_ones():
    with pytest.raises(InvalidInput, match=r'512.*256, 480'):
        choose_canvas(512, 540, 640)


def test_an_empty_picture_has_no_canvas():
    with pytest.raises(InvalidInput, match='0 x 640'):
        choose_canvas(480, 0, 640)


@pytest.mark.parametrize(
    ('size', 'tier'),
    [((256, 300), '256'), ((540, 640), '480'), ((641, 900), '720'), ((880, 1184), '768'), ((1080, 1920), '768')],
)
def test_the_tier_follows_from_the_shorter_side(size: tuple[int, int], tier: str):
    assert tier_of(*size) == tier


def test_a_picture_beyond_all_tiers_is_refused():
    with pytest.raises(InvalidInput, match='3000 x 4000'):
        tier_of(3000, 4000)


def test_padding_mirrors_the_content_without_its_edge():
    image = picture(540, 640)
    pixels = fit(image, choose_canvas(480, 540, 640)).pixels
    for k in range(4):
        np.testing.assert_array_equal(pixels[540 + k, :640], image[540 - 2 - k])
    for k in range(96):
        np.testing.assert_array_equal(pixels[:540, 640 + k], image[:, 640 - 2 - k])


def test_a_sliver_is_padded_with_its_edge():
    image = picture(100, 640)
    pixels = fit(image, Canvas(480, 832, '16,9')).pixels
    np.testing.assert_array_equal(pixels[100:, :640], np.broadcast_to(image[99:], (380, 640, 3)))
    np.testing.assert_array_equal(pixels[:100, 640:], np.broadcast_to(image[:, 639:], (100, 192, 3)))


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 64), w=st.integers(1, 64), bottom=st.integers(0, 80), right=st.integers(0, 80))
def test_content_that_fits_is_kept_exactly_and_padded_by_reflection(h: int, w: int, bottom: int, right: int):
    image = picture(h, w, seed=h)
    fitted = fit(image, Canvas(h + bottom, w + right, ''))
    assert (fitted.content_h, fitted.content_w) == (h, w)
    np.testing.assert_array_equal(fitted.pixels[:h, :w], image)
    if bottom < h and right < w:
        rows = [k if k < h else 2 * (h - 1) - k for k in range(h + bottom)]
        columns = [k if k < w else 2 * (w - 1) - k for k in range(w + right)]
    else:
        rows, columns = np.minimum(range(h + bottom), h - 1), np.minimum(range(w + right), w - 1)
    np.testing.assert_array_equal(fitted.pixels, image[np.ix_(rows, columns)])


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 5000), w=st.integers(1, 5000), tier=st.sampled_from([256, 480, 720]))
def test_content_is_never_enlarged_and_always_fits_its_canvas(h: int, w: int, tier: int):
    canvas = choose_canvas(tier, h, w)
    content_h, content_w = content_size(h, w, canvas)
    assert 1 <= content_h <= min(h, canvas.height)
    assert 1 <= content_w <= min(w, canvas.width)
    if h > canvas.height or w > canvas.width:
        assert content_h == canvas.height or content_w == canvas.width


def test_a_picture_of_the_canvas_size_is_not_copied():
    image = picture(544, 736)
    assert fit(image, Canvas(544, 736, '4,3')).pixels is image


@pytest.mark.parametrize('size', [(720, 1280), (601, 807), (1080, 720)])
def test_reduction_is_torchvisions_bicubic_to_the_bit(size: tuple[int, int]):
    functional = pytest.importorskip('torchvision.transforms.functional')
    image = picture(*size)
    canvas = choose_canvas(256, *size)
    fitted = fit(image, canvas)
    expected = functional.resize(
        torch.from_numpy(image).permute(2, 0, 1),
        [fitted.content_h, fitted.content_w],
        interpolation=functional.InterpolationMode.BICUBIC,
        antialias=True,
    )
    content = fitted.pixels[: fitted.content_h, : fitted.content_w]
    np.testing.assert_array_equal(content, expected.permute(1, 2, 0).numpy())


def test_a_whole_video_is_fitted_like_its_frames():
    video = np.stack([picture(300, 400, seed) for seed in range(3)])
    canvas = choose_canvas(256, 300, 400)
    fitted = fit(video, canvas)
    assert fitted.pixels.shape == (3, *canvas.size, 3)
    for frame, alone in zip(fitted.pixels, video, strict=True):
        np.testing.assert_array_equal(frame, fit(alone, canvas).pixels)


@pytest.mark.parametrize(('content', 'latents'), [((528, 640), (33, 40)), ((543, 655), (33, 40)), ((9, 15), (1, 1))])
def test_only_whole_latents_are_denoised(content: tuple[int, int], latents: tuple[int, int]):
    assert latent_crop(*content) == latents


def test_levels_become_units_in_single_precision():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    unit = to_unit(levels)
    assert unit.shape == (3, 16, 16)
    assert unit.dtype == torch.float32
    assert (unit.min(), unit.max()) == (-1.0, 1.0)
    expected = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    np.testing.assert_array_equal(unit[1].flatten().numpy(), expected)
    assert to_unit(np.zeros((5, 8, 8, 3), np.uint8)).shape == (3, 5, 8, 8)


@pytest.mark.parametrize('colours_innermost', [True, False])
def test_units_are_written_into_the_memory_that_is_given(colours_innermost: bool):
    video = np.stack([picture(20, 30), picture(20, 30)[::-1]])
    out = torch.empty(2, 20, 30, 3).movedim(-1, 0) if colours_innermost else torch.empty(3, 2, 20, 30)
    unit = to_unit(video, out=out)
    assert unit.data_ptr() == out.data_ptr()
    assert torch.equal(out, to_unit(video))


@pytest.mark.parametrize('out', [torch.empty(3, 30, 20), torch.empty(3, 20, 30, dtype=torch.float64)])
def test_memory_of_another_shape_or_type_is_refused(out: torch.Tensor):
    with pytest.raises(ValueError, match='out has to be float32'):
        to_unit(picture(20, 30), out=out)


def test_pictures_that_may_not_be_written_to_or_run_backwards_are_taken():
    image = picture(300, 400)[:, :, ::-1]
    image.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fitted = fit(image, choose_canvas(256, 300, 400))
        unit = to_unit(image)
    np.testing.assert_array_equal(fitted.pixels, fit(image.copy(), choose_canvas(256, 300, 400)).pixels)
    assert torch.equal(unit, to_unit(image.copy()))


@pytest.mark.parametrize('function', [lambda image: fit(image, Canvas(64, 64, '1,1')), to_unit])
def test_a_picture_of_another_kind_is_refused_with_every_fault(function):
    with pytest.raises(ObservationError) as error:
        function(np.zeros((3, 32, 32), np.float32))
    assert [problem.where for problem in error.value.problems] == ['type', 'shape']
