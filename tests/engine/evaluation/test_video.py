"""Videos come back as they were written, and a broken run leaves none behind."""

from __future__ import annotations

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from engine.errors import CosmosError, InvalidInput
from engine.evaluation.video import VideoReader, VideoWriter, read_video, side_by_side


def clip(frames: int = 12, height: int = 60, width: int = 80) -> np.ndarray:
    """A disc that wanders over a gradient, u8 [F, H, W, 3]; a frame's number can be told from the disc's place."""
    y, x = np.mgrid[:height, :width]
    ground = np.stack([x * 2, y * 3, 200 - x], -1).astype(np.uint8)
    pictures = np.stack([ground] * frames)
    for i, picture in enumerate(pictures):
        cv2.circle(picture, (6 + i * (width - 12) // frames, height // 2), 6, (250, 250, 250), -1)
    return pictures


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def write(path, pictures, fps=15):
    with VideoWriter(path, fps, pictures.shape[1:3]) as writer:
        for picture in pictures:
            writer.write(picture)


def test_a_video_comes_back_as_it_was_written(tmp_path):
    pictures = clip()
    write(tmp_path / 'a.mp4', pictures)
    back = list(read_video(tmp_path / 'a.mp4'))
    assert len(back) == len(pictures)
    assert all(frame.dtype == np.uint8 for frame in back)
    assert min(psnr(a, b) for a, b in zip(pictures, back, strict=True)) > 33


def test_an_odd_size_is_padded_with_its_last_row_and_column(tmp_path):
    pictures = clip(4, 61, 79)
    write(tmp_path / 'odd.mp4', pictures)
    back = np.stack(list(read_video(tmp_path / 'odd.mp4')))
    assert back.shape == (4, 62, 80, 3)
    assert psnr(pictures, back[:, :61, :79]) > 33
    assert psnr(back[:, 60], back[:, 61]) > 33


@pytest.mark.parametrize('fps', [5, 15, 29.97])
def test_the_frame_rate_is_kept(tmp_path, fps):
    write(tmp_path / 'rate.mp4', clip(4), fps)
    assert VideoReader(tmp_path / 'rate.mp4').fps == pytest.approx(fps, rel=1e-3)


def write_until_a_frame_is_wrong(writer):
    writer.write(clip(1)[0])
    writer.write(clip(1, 20, 20)[0])


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / 'a.mp4'
    path.write_text('what was there before')
    with pytest.raises(InvalidInput), VideoWriter(path, 15, (60, 80)) as writer:
        write_until_a_frame_is_wrong(writer)
    assert path.read_text() == 'what was there before'
    assert list(tmp_path.iterdir()) == [path]
    write(path, clip(3))
    assert len(list(read_video(path))) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_all_wrong_options_of_a_video_are_named(tmp_path):
    with pytest.raises(InvalidInput) as caught:
        VideoWriter(tmp_path / 'nowhere' / 'a.mp4', fps=0, size=(0, 10))
    assert len(caught.value.problems) == 3


def test_a_frame_of_another_shape_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match='shape'), VideoWriter(tmp_path / 'a.mp4', 15, (60, 80)) as writer:
        writer.write(np.zeros((60, 81, 3), np.uint8))


def test_frames_can_be_asked_for_in_any_order(tmp_path):
    pictures = clip(30)
    write(tmp_path / 'a.mp4', pictures)
    reader = VideoReader(tmp_path / 'a.mp4')
    assert reader.length == 30
    assert reader.size == (60, 80)
    for index in (0, 0, 7, 29, 29, 3, 4, 28, 0):
        nearest = np.argmax([psnr(picture, reader.frame(index)) for picture in pictures])
        assert nearest == index
    for outside in (-1, 30):
        with pytest.raises(IndexError):
            reader.frame(outside)


def test_a_stretch_of_a_video_begins_at_its_time(tmp_path):
    pictures = clip(40)
    write(tmp_path / 'a.mp4', pictures, fps=10)
    reader = VideoReader(tmp_path / 'a.mp4', start_s=2.5, length=5)
    for index in (0, 1, 4, 2):
        assert np.argmax([psnr(picture, reader.frame(index)) for picture in pictures]) == 25 + index


def test_what_is_no_video_is_refused_by_name(tmp_path):
    (tmp_path / 'text.mp4').write_text('not a video')
    for name in ('text.mp4', 'missing.mp4'):
        with pytest.raises(CosmosError, match=name):
            VideoReader(tmp_path / name)


def test_a_truncated_video_says_where_it_ends(tmp_path):
    write(tmp_path / 'a.mp4', clip(10))
    reader = VideoReader(tmp_path / 'a.mp4', length=15)
    with pytest.raises(CosmosError, match='10 of 15'):
        reader.frame(12)
    assert np.argmax([psnr(picture, reader.frame(9)) for picture in clip(10)]) == 9


def test_pictures_of_different_size_stand_side_by_side_at_one_height():
    left, right = np.full((90, 120, 3), 200, np.uint8), np.full((45, 50, 3), 90, np.uint8)
    plain = side_by_side(left, right)
    assert plain.shape == (90, 220, 3)
    assert (plain[:, :120] == 200).all()
    assert (plain[:, 120:] == 90).all()


def test_titles_and_caption_are_written_outside_the_pictures():
    left, right = np.full((90, 120, 3), 200, np.uint8), np.full((90, 100, 3), 90, np.uint8)
    picture = side_by_side(left, right, caption='step 12 — grasp the cube ' * 5, titles=('measured', 'imagined'))
    below = np.flatnonzero((picture[:, 0] == 200).all(-1))
    assert picture.shape[1] == 220
    np.testing.assert_array_equal(picture[below[0] : below[-1] + 1], side_by_side(left, right))
    top, bottom = picture[: below[0]], picture[below[-1] + 1 :]
    assert (top[:, :120] > 150).any()
    assert (top[:, 120:] > 150).any()
    assert (bottom > 150).any()
    assert not (bottom[:, -3:] > 150).any(), 'the caption runs out of the picture'


def test_a_repeatable_video_does_not_depend_on_what_lay_in_memory(tmp_path):
    code = (
        'import sys, numpy as np\n'
        'from engine.evaluation.video import VideoWriter\n'
        'pictures = np.load(sys.argv[1])\n'
        'with VideoWriter(sys.argv[2], 15, pictures.shape[1:3], repeatable=True) as writer:\n'
        '    for picture in pictures: writer.write(picture)\n'
    )
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 40, (30, 180, 320, 3)).astype(np.uint8)
    np.save(tmp_path / 'pictures.npy', clip(30, 180, 320) // 2 + noise)
    for fill in ('85', '170'):  # glibc fills whatever is given out with this
        command = [sys.executable, '-c', code, tmp_path / 'pictures.npy', tmp_path / f'{fill}.mp4']
        subprocess.run(command, check=True, env={**os.environ, 'MALLOC_PERTURB_': fill}, timeout=60)
    assert (tmp_path / '85.mp4').read_bytes() == (tmp_path / '170.mp4').read_bytes()
