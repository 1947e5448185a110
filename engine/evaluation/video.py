"""Videos in and out, as RGB arrays: H.264 files, frames by index, pictures side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import cv2
import numpy as np
import numpy.typing as npt

from engine.errors import CosmosError, InvalidInput, Problem

Picture = npt.NDArray[np.uint8]

_BAR = 22  # height of a line of text, pixels
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK = (235, 235, 235)
_PAPER = 28


class VideoWriter:
    """Writes an H.264 file that every player opens (MP4, yuv420p).

    The file appears under its name only when it is complete: until :meth:`close`, or the end of a `with` block without
    an error, there is only a temporary file beside it. H.264 wants even sides, so an odd one gets its last row or
    column twice.
    """

    def __init__(self, path: str | Path, fps: float, size: tuple[int, int], *, repeatable: bool = False) -> None:
        """Open the file.

        Args:
            path: Where the video shall be; its directory must exist.
            fps: Frames per second.
            size: Height and width of the frames that will come, pixels.
            repeatable: Whether the same frames make the same bytes every time. The file is larger, and sooner done.

        Raises:
            InvalidInput: The directory is not there, or the rate or the size is not positive.
        """
        self._path = Path(path)
        _check_video(self._path, fps, size)
        self._size = (int(size[0]), int(size[1]))
        self._partial = self._path.with_name(f'.{self._path.name}.{os.getpid()}.partial')
        self._container = av.open(str(self._partial), 'w', format='mp4')
        self._stream = self._container.add_stream('libx264', rate=Fraction(fps).limit_denominator(10_000))
        self._stream.height, self._stream.width = (side + side % 2 for side in self._size)
        self._stream.pix_fmt = 'yuv420p'
        # x264 divides its work by the number of threads, and the tree of macroblocks that `veryfast` grows depends on
        # memory that it never wrote; `superfast` does without.
        self._stream.options = {'crf': '18', 'preset': 'superfast' if repeatable else 'veryfast'}
        self._stream.codec_context.thread_count = 1 if repeatable else 0

    def write(self, frame: Picture) -> None:
        """Append one frame, u8 [H, W, 3] RGB.

        Raises:
            InvalidInput: Another shape or type than promised.
        """
        if frame.dtype != np.uint8 or frame.shape != (*self._size, 3):
            problem = Problem(
                'frame', 'wrong type or shape', f'{frame.dtype} {frame.shape}', f'uint8 {(*self._size, 3)}'
            )
            raise InvalidInput(f'video {self._path}', [problem])
        height, width = self._size
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode='edge')
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))

    def close(self) -> None:
        """Finish the file and give it its name."""
        self._container.mux(self._stream.encode())
        self._container.close()
        self._partial.replace(self._path)

    def discard(self) -> None:
        """Drop what was written; a file that had the name before stays as it was."""
        self._container.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def _check_video(path: Path, fps: float, size: tuple[int, int]) -> None:
    problems = []
    if not path.parent.is_dir():
        problems.append(Problem(str(path.parent), 'no such directory', '', '', 'create it first'))
    if not 0 < fps <= 1000:
        problems.append(Problem('fps', 'out of range', repr(fps), 'above 0, up to 1000'))
    if len(size) != 2 or min(size) < 1:
        problems.append(Problem('size', 'impossible', repr(size), 'height and width, both positive'))
    if problems:
        raise InvalidInput(f'video {path}', problems)


class VideoReader:
    """Frames of a video, or of a stretch of it, by index.

    Ascending indices are cheap, each frame is decoded once; going back starts over from the beginning of the stretch.
    For one thread at a time.
    """

    def __init__(self, path: str | Path, start_s: float = 0.0, length: int | None = None) -> None:
        """Open the file.

        Args:
            path: Video file.
            start_s: Time of the stretch's first frame within the file, s.
            length: Frames in the stretch; None for all the file has.

        Raises:
            CosmosError: The file is not there or not a video.
        """
        self._path, self._start_s = Path(path), start_s
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, OSError, IndexError) as error:
            raise CosmosError(f'{path}: cannot be opened as a video ({error})') from error
        self._rate = float(self._stream.average_rate or 0.0)
        self._length = self._count() if length is None else length
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._next = 0
        self._latest: Picture = np.empty((0, 0, 3), np.uint8)
        self._latest_index = -1

    @property
    def fps(self) -> float:
        """Average frames per second; 0 if the file does not say."""
        return self._rate

    @property
    def length(self) -> int:
        """Number of frames."""
        return self._length

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self._stream.height, self._stream.width

    def frame(self, index: int) -> Picture:
        """Frame `index`, u8 [H, W, 3] RGB.

        Raises:
            IndexError: Not within the stretch.
            CosmosError: The file ends too early or is damaged.
        """
        if not 0 <= index < self._length:
            raise IndexError(f'{self._path}: frame {index} of {self._length}')
        if index != self._latest_index:
            if index < self._next or self._latest_index < 0:
                self._rewind()
            while self._next < index:
                self._decode_next()
            self._latest = np.asarray(self._decode_next().to_ndarray(format='rgb24'))
            self._latest_index = index
        return self._latest

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _decode_next(self) -> av.VideoFrame:
        try:
            frame = next(self._frames)
        except StopIteration:
            raise CosmosError(f'{self._path}: ends after {self._next} of {self._length} frames') from None
        except av.FFmpegError as error:
            raise CosmosError(f'{self._path}: frame {self._next} is damaged ({error})') from error
        self._next += 1
        return frame

    def _rewind(self) -> None:
        # Seeking lands on a key frame at or before the start; what precedes the start is decoded and dropped.
        base = self._stream.time_base or Fraction(1, 1)
        self._container.seek(int(self._start_s / base), stream=self._stream)
        earliest = self._start_s - 0.5 / self._rate if self._rate and self._start_s else float('-inf')
        self._frames = (f for f in self._container.decode(self._stream) if (f.time or 0.0) >= earliest)
        self._next = 0

    def _count(self) -> int:
        """Number of frames, from the header if it says, else by counting packets."""
        if self._stream.frames:
            return self._stream.frames
        count = sum(1 for packet in self._container.demux(self._stream) if packet.size)
        self._container.seek(0)
        return count


def read_video(path: str | Path) -> Iterator[Picture]:
    """Frames of a video file in order, each u8 [H, W, 3] RGB.

    Raises:
        CosmosError: The file is not there, not a video, or damaged.
    """
    reader = VideoReader(path)
    try:
        for index in range(reader.length):
            yield reader.frame(index)
    finally:
        reader.close()


def side_by_side(left: Picture, right: Picture, caption: str = '', titles: tuple[str, str] = ('', '')) -> Picture:
    """Two pictures in one, at the height of the taller, each under its title, with one caption below.

    Args:
        left: u8 [H, W, 3] RGB.
        right: u8 [H', W', 3] RGB; the lower of the two is enlarged, its proportions kept.
        caption: One line across the bottom; the text shrinks until it fits. Only ASCII can be drawn, other letters
            turn into question marks. No text, no line.
        titles: One line above each picture, likewise.

    Returns:
        u8 [H'', W'', 3] RGB; the same texts or absence of them and the same input sizes give the same size.
    """
    height = max(left.shape[0], right.shape[0])
    columns = [_scaled(picture, height) for picture in (left, right)]
    if any(titles):
        columns = [
            np.vstack([_line(title, picture.shape[1]), picture]) for title, picture in zip(titles, columns, strict=True)
        ]
    both = np.hstack(columns)
    return np.vstack([both, _line(caption, both.shape[1])]) if caption else both


def _scaled(picture: Picture, height: int) -> Picture:
    if picture.shape[0] == height:
        return picture
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _line(text: str, width: int) -> Picture:
    """A bar of this width with `text` in it."""
    bar = np.full((_BAR, width, 3), _PAPER, np.uint8)
    plain = text.encode('ascii', 'replace').decode()
    (extent, _), _ = cv2.getTextSize(plain, _FONT, 0.5, 1)
    scale = 0.5 * min(1.0, (width - 8) / max(extent, 1))
    cv2.putText(bar, plain, (4, _BAR - 7), _FONT, scale, _INK, 1, cv2.LINE_AA)
    return bar
