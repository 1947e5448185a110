"""What tests of the reasoner share: pictures to look at, transformers' model, a look at every choice of a token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from engine.reasoner_sampling import TokenChooser
from engine.reasoner_talk import Message, Picture, Video

REFERENCES = {
    'cosmos3_omni': 'Cosmos3OmniForConditionalGeneration',
    'cosmos3_edge': 'Cosmos3EdgeForConditionalGeneration',
}


def picture(height: int, width: int, seed: int) -> Picture:
    """Noise over a slope of colours: no two patches are alike."""
    noise = np.random.default_rng(seed).integers(0, 128, (height, width, 3))
    slope = np.linspace(0, 127, width)[None, :, None] * np.array([1.0, 0.5, 0.2])
    return Picture((noise + slope).astype(np.uint8))


def video(frames: int, height: int, width: int, fps: float, seed: int = 0, **options: Any) -> Video:
    """Pictures that differ from frame to frame."""
    return Video(np.stack([picture(height, width, seed + n).rgb for n in range(frames)]), fps, **options)


class Reference:
    """transformers' model and processor, loaded from the same directory by their own `from_pretrained`."""

    def __init__(self, root: Path, dtype: torch.dtype = torch.float32) -> None:
        kind = REFERENCES[transformers.AutoConfig.from_pretrained(root).model_type]
        self.model = getattr(transformers, kind).from_pretrained(root, dtype=dtype).eval()
        self.processor = transformers.AutoProcessor.from_pretrained(root)

    def inputs(self, messages: Sequence[Message]) -> dict[str, Any]:
        """A conversation through the processor, which samples the frames of videos itself."""
        parts = [part for message in messages for part in message.parts]
        stills = [Image.fromarray(part.rgb) for part in parts if isinstance(part, Picture)]
        clips = [part for part in parts if isinstance(part, Video)]
        media: dict[str, Any] = {'images': stills} if stills else {}
        if clips:
            about = [{'total_num_frames': len(clip.frames), 'fps': clip.fps} for clip in clips]
            media |= {'videos': [clip.frames for clip in clips], 'video_metadata': about, 'return_metadata': True}
            media |= {'fps': clips[0].sample_fps, 'do_sample_frames': True}
        text = self.processor.apply_chat_template(
            [{'role': message.role, 'content': [_item(part) for part in message.parts]} for message in messages],
            tokenize=False,
            add_generation_prompt=True,
        )
        inputs = self.processor(text=[text], return_tensors='pt', return_mm_token_type_ids=True, **media)
        inputs.pop('video_metadata', None)
        return inputs

    def answer(self, messages: Sequence[Message], tokens: int, **options: Any) -> tuple[list[int], torch.Tensor]:
        """Tokens of a greedy answer, and the scores [tokens, vocab_size] from which each was chosen."""
        inputs = self.inputs(messages)
        out = self.model.generate(
            **inputs,
            max_new_tokens=tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
        return out.sequences[0, inputs['input_ids'].shape[1] :].tolist(), torch.cat(out.logits)


def _item(part: Any) -> dict[str, str]:
    if isinstance(part, str):
        return {'type': 'text', 'text': part}
    return {'type': 'image' if isinstance(part, Picture) else 'video'}


@dataclass
class Choices:
    """Every choice of a token.

    Attributes:
        tokens: Chosen.
        scores: [vocab_size] each, before penalties.
    """

    tokens: list[int] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)


@contextmanager
def choices(monkeypatch: pytest.MonkeyPatch) -> Iterator[Choices]:
    """Look at the choices that are made in the block."""
    seen, choose = Choices(), TokenChooser.choose

    def look(self: TokenChooser, scores: torch.Tensor, allowed: torch.Tensor | None = None) -> int:
        token = choose(self, scores, allowed)
        seen.scores.append(scores.clone())
        seen.tokens.append(token)
        return token

    with monkeypatch.context() as patch:
        patch.setattr(TokenChooser, 'choose', look)
        yield seen
