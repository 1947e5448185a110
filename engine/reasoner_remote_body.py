"""What is sent to an OpenAI-compatible endpoint: a conversation and how to sample, as JSON."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidInput, Problem
from engine.reasoner_checks import Dialect, check_conversation
from engine.reasoner_talk import THINK, Message, Part, Picture, Sampling, Video

PictureFormat = Literal['png', 'jpeg']
VideoFormat = Literal['frames', 'mp4']

JPEG_QUALITY = 95
MIN_FRAMES, MAX_FRAMES = 4, 768
"""Of a video; those of the published processor."""


def sampling_fields(sampling: Sampling, dialect: Dialect) -> dict[str, Any]:
    """Fields of the request. All of them are sent: a server has defaults of its own for what is left out."""
    fields: dict[str, Any] = {
        'temperature': sampling.temperature,
        'top_p': sampling.top_p,
        'presence_penalty': sampling.presence_penalty,
        'max_tokens': sampling.max_tokens,
        'seed': sampling.seed,
    }
    if dialect == 'vllm':
        fields |= {'top_k': sampling.top_k or -1, 'repetition_penalty': sampling.repetition_penalty}
    return fields


def conversation_fields(
    messages: Sequence[Message],
    pictures: PictureFormat,
    videos: VideoFormat,
    dialect: Dialect,
    *,
    thinking: bool = False,
) -> dict[str, Any]:
    """`messages` of the request, and with videos in MP4 how the server shall sample them.

    Raises:
        InvalidInput: The conversation is malformed, or two MP4 have different rates; lists every fault.
    """
    check_conversation(messages)
    turns = [_turn(message, pictures, videos) for message in messages]
    if thinking:
        turns[-1]['content'].append(_words(THINK))
    fields: dict[str, Any] = {'messages': turns}
    clips = [part for message in messages for part in message.parts if isinstance(part, Video)]
    if clips and videos == 'mp4' and dialect == 'vllm':
        # The file holds what is to be seen and no more; sampled at its own rate, all of it is.
        fields['mm_processor_kwargs'] = {'fps': _common_rate(clips), 'do_sample_frames': True}
    return fields


def sampled(video: Video) -> tuple[NDArray[np.int64], float]:
    """Indices of the frames that are shown, and how many of them there are a second.

    Frames are spread evenly from the first to the last, an even number of them (the model reads them in pairs), 4 to
    768 where there are so many; all of them if `sample_fps` is None.
    """
    count = len(video.frames)
    if video.sample_fps is None:
        return np.arange(count), video.fps
    wanted = min(max(count / video.fps * video.sample_fps, MIN_FRAMES), MAX_FRAMES, count)
    shown = max(int(wanted) // 2 * 2, 1)
    return np.linspace(0, count - 1, shown).round().astype(np.int64), shown / count * video.fps


def _turn(message: Message, pictures: PictureFormat, videos: VideoFormat) -> dict[str, Any]:
    if message.role != 'user':
        return {'role': message.role, 'content': message.text}  # what every server takes
    return {'role': 'user', 'content': [item for part in message.parts for item in _items(part, pictures, videos)]}


def _items(part: Part, pictures: PictureFormat, videos: VideoFormat) -> Iterator[dict[str, Any]]:
    if isinstance(part, str):
        yield _words(part)
    elif isinstance(part, Picture):
        yield _picture(part.rgb, pictures)
    elif videos == 'mp4':
        yield {'type': 'video_url', 'video_url': {'url': _data_url('video/mp4', encode_mp4(part))}}
    else:
        for index in sampled(part)[0]:
            yield _words(f'<{index / part.fps:.1f} seconds>')  # as the model's own processor announces frames
            yield _picture(part.frames[index], pictures)


def _words(text: str) -> dict[str, Any]:
    return {'type': 'text', 'text': text}


def _picture(rgb: NDArray[np.uint8], form: PictureFormat) -> dict[str, Any]:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if form == 'jpeg' else []
    _, encoded = cv2.imencode(f'.{form}', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    return {'type': 'image_url', 'image_url': {'url': _data_url(f'image/{form}', encoded.tobytes())}}


def _data_url(kind: str, data: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(data).decode()}'


def encode_mp4(video: Video) -> bytes:
    """The frames that are shown as an H.264 file; an odd side gets its last row or column twice."""
    import av

    indices, rate = sampled(video)
    height, width = (side + side % 2 for side in video.frames.shape[1:3])
    buffer = io.BytesIO()
    with av.open(buffer, 'w', format='mp4') as container:
        stream = container.add_stream('libx264', rate=Fraction(rate).limit_denominator(10_000))
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        stream.options = {'crf': '12', 'preset': 'veryfast'}
        for index in indices:
            frame = video.frames[index]
            padded = np.pad(frame, ((0, height - len(frame)), (0, width - frame.shape[1]), (0, 0)), mode='edge')
            container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format='rgb24')))
        container.mux(stream.encode())
    return buffer.getvalue()


def _common_rate(clips: Sequence[Video]) -> float:
    rates = sorted({round(sampled(clip)[1], 3) for clip in clips})
    if len(rates) > 1:
        remedy = "show them at one rate, or send videos as 'frames'"
        raise InvalidInput('conversation', [Problem('videos', 'have different rates', str(rates), remedy=remedy)])
    return rates[0]
