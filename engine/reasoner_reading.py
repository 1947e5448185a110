"""From a conversation to what the network reads: tokens, where each sits, patches of pictures.

Rendering, tokens and patches are the work of transformers' processor and of the checkpoint's own chat template.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import InvalidInput, Problem
from engine.network.rope import reading_positions
from engine.reasoner_checks import check_conversation
from engine.reasoner_talk import THINK, Message, Part, Picture, Video
from engine.reasoner_text import BEGIN_OF_THINKING

_TAGS = ('<think>', '</think>')
_LONGEST_SIDES = 200  # ratio of edges up to which the published processors resize


@dataclass(frozen=True)
class Reading:
    """A conversation as the network reads it.

    Attributes:
        ids: Tokens.
        positions: Float32 [3, tokens].
        where: Int64 [pieces], which tokens are pieces of pictures: those of stills, then those of videos.
        patches: Float32 [patches, numbers] of stills, then of videos; None without any.
        grids: Times, rows and columns of patches, for each still and each video.
        opened: Whether the template has opened the thinking, so that the answer begins within it.
    """

    ids: list[int]
    positions: Tensor
    where: Tensor
    patches: Tensor | None = None
    grids: tuple[tuple[int, int, int], ...] = ()
    opened: bool = False


class Reader:
    """Prepares conversations for one checkpoint; may be used from several threads."""

    def __init__(self, processor: Any, config: Mapping[str, Any]) -> None:
        """Use a processor, or a tokenizer where there is no vision encoder, and the root `config.json`."""
        self._processor = processor
        self._tokenizer = getattr(processor, 'tokenizer', processor)
        self._sees = self._tokenizer is not processor
        self._pads = {'image': config.get('image_token_id'), 'video': config.get('video_token_id')}
        self._lock = threading.Lock()  # a tokenizer's settings change while it works
        added = self._tokenizer.added_tokens_decoder
        controls = {index: token.content for index, token in added.items() if token.special}
        self._controls = {index: text for index, text in controls.items() if text not in _TAGS}

    @property
    def hidden(self) -> frozenset[int]:
        """Tokens that are no text: all control tokens but those around thinking."""
        return frozenset(self._controls)

    def decode(self, ids: list[int]) -> str:
        """Text of tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        with self._lock:
            return list(self._tokenizer(text, add_special_tokens=False)['input_ids'])

    def read(self, messages: Sequence[Message], *, thinking: bool = False) -> Reading:
        """Prepare a conversation.

        Args:
            messages: The conversation, which ends with the user.
            thinking: Whether to append :data:`engine.reasoner_talk.THINK`.

        Raises:
            InvalidInput: The conversation is malformed, or shows pictures to a checkpoint that cannot see; lists
                every fault.
        """
        check_conversation(messages)
        problems = [*self._problems(messages)]
        if problems:
            raise InvalidInput('conversation', problems)
        parts = [part for message in messages for part in message.parts]
        with self._lock:
            text = self._render(messages, thinking=thinking)
            if not any(isinstance(part, Picture | Video) for part in parts):
                ids = self._tokenizer(text, add_special_tokens=False)['input_ids']
                return _words(list(ids), opened=_opens(text))
            inputs = self._process(text, parts)
        return self._assemble(inputs, parts, opened=_opens(text))

    def control_in(self, text: str) -> str:
        """A control token that the text spells out, which the model would take for one; empty if there is none."""
        return next((control for control in self._controls.values() if control in text), '')

    def _problems(self, messages: Sequence[Message]) -> Iterator[Problem]:
        for number, message in enumerate(messages):
            for place, part in enumerate(message.parts):
                where = f'messages[{number}].parts[{place}]'
                if isinstance(part, str):
                    found = self.control_in(part)
                    if found:
                        yield Problem(where, 'spells out a control token', found, remedy='leave it out')
                elif not self._sees:
                    what, remedy = 'is a picture, but this checkpoint has no vision encoder', 'describe it in words'
                    yield Problem(where, what, type(part).__name__, remedy=remedy)
                else:
                    yield from self._misfits(where, part)

    def _misfits(self, where: str, part: Picture | Video) -> Iterator[Problem]:
        shape = part.rgb.shape if isinstance(part, Picture) else part.frames.shape[1:]
        if max(shape[:2]) > _LONGEST_SIDES * min(shape[:2]):
            yield Problem(where, 'is too narrow', f'{shape[1]} x {shape[0]}', f'edges of up to 1 : {_LONGEST_SIDES}')
        least = 1 if isinstance(part, Picture) else self._processor.video_processor.temporal_patch_size
        if isinstance(part, Video) and len(part.frames) < least:
            yield Problem(where, 'is too short', f'{len(part.frames)} frames', f'at least {least}', 'send a Picture')

    def _render(self, messages: Sequence[Message], *, thinking: bool) -> str:
        turns = [{'role': message.role, 'content': [_item(part) for part in message.parts]} for message in messages]
        if thinking:
            turns[-1]['content'] = [*turns[-1]['content'], _item(f'\n{THINK}')]
        # Edge's template opens or closes the thinking by the last of these; Qwen's does not know it.
        options = {'tokenize': False, 'add_generation_prompt': True, 'enable_thinking': thinking}
        text: str = self._tokenizer.apply_chat_template(turns, chat_template=self._processor.chat_template, **options)
        return text

    def _process(self, text: str, parts: Sequence[Part]) -> Mapping[str, Any]:
        from PIL import Image

        stills = [Image.fromarray(part.rgb) for part in parts if isinstance(part, Picture)]
        clips = [self._sample(part) for part in parts if isinstance(part, Video)]
        media: dict[str, Any] = {'images': stills} if stills else {}
        if clips:
            media |= {'videos': [frames for frames, _ in clips], 'video_metadata': [about for _, about in clips]}
            media |= {'do_sample_frames': False, 'return_metadata': True}
        inputs: Mapping[str, Any] = self._processor(text=[text], return_tensors='pt', **media)
        return inputs

    def _sample(self, video: Video) -> tuple[NDArray[np.uint8], Any]:
        """The frames that are shown, [F, 3, H, W], and what announces their times."""
        from transformers.video_utils import VideoMetadata

        about = VideoMetadata(total_num_frames=len(video.frames), fps=video.fps)
        indices = np.arange(len(video.frames))
        if video.sample_fps is not None:
            indices = self._processor.video_processor.sample_frames(about, fps=video.sample_fps)
        about.frames_indices = indices.tolist()
        return np.ascontiguousarray(video.frames[indices].transpose(0, 3, 1, 2)), about

    def _assemble(self, inputs: Mapping[str, Any], parts: Sequence[Part], *, opened: bool) -> Reading:
        ids = inputs['input_ids'][0]
        kinds = [ids == self._pads[name] for name in ('image', 'video')]
        media = (('pixel_values', 'image_grid_thw'), ('pixel_values_videos', 'video_grid_thw'))
        grids = [inputs[grid].tolist() if grid in inputs else [] for _, grid in media]
        return Reading(
            ids=ids.tolist(),
            positions=reading_positions((kinds[0] | kinds[1]).int().tolist(), self._pieces(parts, *grids)),
            where=torch.cat([kind.nonzero()[:, 0] for kind in kinds]),
            patches=torch.cat([inputs[patches] for patches, grid in media if grid in inputs]),
            grids=tuple(tuple(grid) for grid in [*grids[0], *grids[1]]),
            opened=opened,
        )

    def _pieces(
        self, parts: Sequence[Part], stills: list[list[int]], clips: list[list[int]]
    ) -> Iterator[tuple[int, int]]:
        """Rows and columns of pieces of every picture and every frame, in the order of the conversation."""
        of_stills, of_clips, merge = iter(stills), iter(clips), self._processor.image_processor.merge_size
        for part in parts:
            if not isinstance(part, str):
                times, rows, columns = next(of_stills if isinstance(part, Picture) else of_clips)
                yield from [(rows // merge, columns // merge)] * times


def _words(ids: list[int], *, opened: bool) -> Reading:
    return Reading(ids, reading_positions([0] * len(ids), iter(())), torch.empty(0, dtype=torch.long), opened=opened)


def _opens(text: str) -> bool:
    return text.rstrip().endswith(BEGIN_OF_THINKING)


def _item(part: Part) -> dict[str, str]:
    if isinstance(part, str):
        return {'type': 'text', 'text': part}
    return {'type': 'image' if isinstance(part, Picture) else 'video'}
