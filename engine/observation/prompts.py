"""The words the checkpoint was trained to read around an instruction, byte for byte.

Action checkpoints read plain sentences or JSON; text-to-video has a pair of formats of its own. Strings, order of
fields and rounding are those of NVIDIA's cosmos-framework. Odd grammar is part of the training data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from engine.errors import InvalidInput, Problem
from engine.observation.geometry import Canvas, aspect_label

VIEWPOINTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        'ego_view': 'This video is captured from a first-person perspective looking at the scene.',
        'third_person_view': (
            'This video is captured from a third-person perspective looking towards the agent from the front.'
        ),
        'wrist_view': 'This video is captured from a wrist-mounted camera.',
        'concat_view': 'This video contains concatenated views from multiple camera perspectives.',
        'top_down_2d_view': 'This video is captured from a top-down view of a flat 2D scene.',
        'video_game_view': 'This video is captured from an in-game camera perspective in a virtual environment.',
    }
)
"""The sentence for each viewpoint."""

DROID_DESCRIPTION: Final = (
    'The top row is from the wrist-mounted camera. The bottom row contains two horizontally concatenated third-person '
    'perspective views of the scene from opposite sides, with the robot visible.'
)
"""What follows the `concat_view` sentence for the DROID composite."""

ACTION_FORMATS: Final = ('plain', 'json', 'bare')
"""How the prompt of an action request is written; see :func:`action_prompt`."""

SYSTEM_PROMPTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        'image': 'You are a helpful assistant who will generate images from a give prompt.',
        'video': 'You are a helpful assistant who will generate videos from a give prompt.',
        'image_edit': "You are a helpful assistant who will edit images based on the user's instructions.",
        'transfer': (
            "You are a helpful assistant that generates images or videos following the user's instructions and control "
            'signals (edge maps, blur, depth, or segmentation).'
        ),
    }
)
"""System prompts. cosmos-framework uses none for generation and action, and so do the policies."""

_DURATION: Final = 'The video is {duration:.1f} seconds long and is of {fps:.0f} FPS.'
_RESOLUTION: Final = 'This {medium} is of {height}x{width} resolution.'
_NOT_DURATION: Final = 'The video is not {duration:.1f} seconds long and is not of {fps:.0f} FPS.'
_NOT_RESOLUTION: Final = 'This {medium} is not of {height}x{width} resolution.'


@dataclass(frozen=True)
class Clip:
    """What a prompt says of the video around it.

    Attributes:
        frames: Pixel frames, the observed one included; 1 is an image.
        fps: Frames per second.
        height: Rows of the padded canvas, pixels.
        width: Columns of the padded canvas, pixels.
    """

    frames: int
    fps: float
    height: int
    width: int

    def __post_init__(self) -> None:
        sizes = {'frames': self.frames, 'height': self.height, 'width': self.width}
        problems = [Problem(name, 'too small', str(n), 'a whole number from 1') for name, n in sizes.items() if n < 1]
        if not (math.isfinite(self.fps) and self.fps > 0):
            problems.append(Problem('fps', 'not a rate', str(self.fps), 'a finite number above 0'))
        if problems:
            raise InvalidInput('clip that a prompt describes', problems)

    @property
    def seconds(self) -> float:
        """Length of the video."""
        return self.frames / self.fps


@dataclass(frozen=True)
class IdleFrames:
    """How much of the action is standing still: `idle` of `rows` action rows, the state row included if there is one.

    Training prompts carried it, no known server sends it; `rows` None leaves the second number out.
    """

    idle: int
    rows: int | None

    def __str__(self) -> str:
        return f'{self.idle}.' if self.rows is None else f'{self.idle} out of {self.rows}.'


def conditioning_fps(fps: float) -> int:
    """The frame rate that action prompts state: whole frames per second, the fraction cut off.

    Raises:
        InvalidInput: `fps` is not finite or below 1, of which nothing would be left.
    """
    if not (math.isfinite(fps) and fps >= 1):
        raise InvalidInput('prompt', [Problem('fps', 'cannot be stated', str(fps), 'at least 1 frame per second')])
    return int(fps)


def action_prompt(
    format: str,  # noqa: A002 (named as in the contract)
    caption: str,
    *,
    viewpoint: str | None,
    description: str | None,
    frames: int,
    fps: float,
    canvas: Canvas,
    idle_frames: int | None = None,
    action_rows: int | None = None,
) -> str:
    """The prompt of an action request in either format, with the frame rate stated as a policy server states it.

    Args:
        format: 'plain' (the reference server's default), 'json' (the training recipe's), or 'bare' (the instruction
            and nothing else, for checkpoints of one's own that were trained so).
        caption: The instruction; empty for the unconditional branch.
        viewpoint: One of :data:`VIEWPOINTS`.
        description: What the composite shows, after the viewpoint's sentence.
        frames: Pixel frames, the observed one included.
        fps: Rows per second; the fraction is cut off.
        canvas: Padded canvas.
        idle_frames: Idle rows to state; None to leave the field out.
        action_rows: Action rows altogether, the state row included; stated with `idle_frames`.

    Raises:
        InvalidInput: the format is unknown or a number is out of range.
    """
    if format not in ACTION_FORMATS:
        raise InvalidInput('prompt', [Problem('format', 'unknown', repr(format), ', '.join(ACTION_FORMATS))])
    clip = Clip(frames, conditioning_fps(fps), *canvas.size)
    if format == 'bare':
        return caption.strip()
    writers = {'plain': plain_prompt, 'json': json_prompt}
    idle = None if idle_frames is None else IdleFrames(idle_frames, action_rows)
    return writers[format](caption, clip, viewpoint=viewpoint, description=description, idle=idle)


def plain_prompt(
    caption: str,
    clip: Clip,
    *,
    viewpoint: str | None = None,
    description: str | None = None,
    idle: IdleFrames | None = None,
) -> str:
    """Action prompt as sentences: caption, viewpoint and description, duration, resolution, idle frames.

    The duration is cut off to whole seconds. A sentence is joined with one space to text that ends in a full stop and
    with '. ' to any other, exclamation and question marks included, as the reference does. An unknown viewpoint drops
    its description too. An empty caption stays empty: that is the unconditional prompt.
    """
    if not caption:
        return ''
    view = VIEWPOINTS.get(viewpoint or '', '')
    sentences = [
        _framing(view, description) if view else '',
        _DURATION.format(duration=int(clip.seconds), fps=clip.fps),
        _RESOLUTION.format(medium='video', height=clip.height, width=clip.width),
        f'IdleFrames: {idle}' if idle else '',
    ]
    text = caption.rstrip()
    for sentence in filter(None, sentences):
        text += (' ' if text.endswith('.') else '. ') + sentence
    return text


def json_prompt(
    caption: str,
    clip: Clip,
    *,
    viewpoint: str | None = None,
    description: str | None = None,
    idle: IdleFrames | None = None,
    float_seconds: bool = False,
) -> str:
    """Action prompt as a JSON object: cinematography, actions, duration, fps, resolution, aspect ratio.

    The action's time is *rounded* to whole seconds (a half to the even one) and the duration *cut off*, as in training.
    An unknown viewpoint leaves only the description. Fields without content are left out. An empty caption stays empty:
    that is the unconditional prompt. Diffusers writes the same, but no description, and names the nearest of the five
    standard aspect ratios for a canvas that is not in the table.

    Args:
        caption: The instruction; a full stop is added unless it ends a sentence.
        clip: What the prompt says of the video.
        viewpoint: One of :data:`VIEWPOINTS`.
        description: What the composite shows.
        idle: Not used for inverse dynamics, where it would give the answer away.
        float_seconds: State time and duration to a hundredth of a second, for short clips at high rates.
    """
    if not caption:
        return ''
    framing = _framing(VIEWPOINTS.get(viewpoint or '', ''), description)
    action = {'time': _time_range(clip, float_seconds), 'description': _sentence(caption)}
    if idle:
        action['idle_frame'] = str(idle)
    prompt: dict[str, Any] = {'cinematography': {'framing': framing}} if framing else {}
    prompt['actions'] = [action]
    prompt |= _metadata(clip)
    if float_seconds:
        prompt['duration'] = f'{clip.seconds:.2f}s'
    return json.dumps(prompt)


def _framing(view: str, description: str | None) -> str:
    return ' '.join(filter(None, [view, (description or '').rstrip()]))


def _time_range(clip: Clip, float_seconds: bool) -> str:
    if float_seconds:
        return f'0.00-{clip.seconds:.2f}s'
    minutes, seconds = divmod(round(clip.seconds), 60)
    return f'0:00-{minutes}:{seconds:02d}'


def _sentence(caption: str) -> str:
    caption = caption.strip()
    return caption if caption.endswith(('.', '!', '?')) else f'{caption}.'


def _metadata(clip: Clip) -> dict[str, Any]:
    return {
        'duration': f'{int(clip.seconds)}s',
        'fps': float(clip.fps),
        'resolution': {'H': clip.height, 'W': clip.width},
        'aspect_ratio': aspect_label(clip.height, clip.width),
    }


def generation_prompt(prompt: str, clip: Clip) -> str:
    """Prompt of text-, image- or video-to-video with the facts of the clip.

    A JSON object gets the keys `duration`, `fps`, `resolution` and `aspect_ratio`, overwritten in place or appended;
    the first two are removed for an image. Other text gets two sentences (an image only the second) after its trailing
    full stops are removed; here the duration is not cut off.
    """
    document = _json_object(prompt)
    if document is None:
        return _with_sentences(prompt, clip, _DURATION, _RESOLUTION)
    metadata = _metadata(clip)
    if clip.frames == 1:
        for key in ('duration', 'fps'):
            document.pop(key, None)
            del metadata[key]
    return json.dumps(document | metadata)


def negative_prompt(prompt: str, clip: Clip, mode: Literal['none', 'same', 'inverse'] = 'inverse') -> str:
    """Negative prompt of generation, with the facts of the clip.

    Args:
        prompt: What to steer away from; may be empty. JSON is treated as any other text.
        clip: The video asked for.
        mode: 'inverse' negates the facts (diffusers' default), 'same' repeats them (what cosmos-framework's defaults
            come to), 'none' leaves the prompt alone (what action requests do).

    Raises:
        InvalidInput: the mode is unknown.
    """
    if mode == 'none':
        return prompt
    if mode == 'same':
        return _with_sentences(prompt, clip, _DURATION, _RESOLUTION)
    if mode == 'inverse':
        return _with_sentences(prompt, clip, _NOT_DURATION, _NOT_RESOLUTION)
    raise InvalidInput('negative prompt', [Problem('mode', 'unknown', repr(mode), 'none, same, inverse')])


def _with_sentences(prompt: str, clip: Clip, duration: str, resolution: str) -> str:
    medium = 'image' if clip.frames == 1 else 'video'
    sentences = [resolution.format(medium=medium, height=clip.height, width=clip.width)]
    if clip.frames > 1:
        sentences.insert(0, duration.format(duration=clip.seconds, fps=clip.fps))
    text = prompt.strip()
    for sentence in sentences:
        text = text.rstrip('.')
        text = f'{text}. {sentence}' if text else sentence
    return text


def _json_object(text: str) -> dict[str, Any] | None:
    """The object that `text` spells, or None where it spells none."""
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
