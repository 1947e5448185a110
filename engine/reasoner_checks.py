"""What may be said to a reasoner, whoever it is: conversations, samplings and stop texts are checked first."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from engine.errors import InvalidInput, Problem
from engine.reasoner_talk import Message, Part, Picture, Sampling, Video

Dialect = Literal['vllm', 'openai']
"""Of an endpoint; the weights of this process know all that 'vllm' does."""


def check_conversation(messages: Sequence[Message]) -> None:
    """Do nothing if the conversation can be sent.

    Raises:
        InvalidInput: It is empty, does not end with the user, or a part of it is malformed; lists every fault.
    """
    problems = []
    if not messages or messages[-1].role != 'user':
        last = messages[-1].role if messages else 'no message'
        problems.append(Problem('messages', 'do not end with a turn of the user', last))
    for number, message in enumerate(messages):
        where = f'messages[{number}]'
        if message.role == 'system' and number:
            problems.append(Problem(where, 'is of the system, but not the first'))
        if not message.text.strip() and not any(not isinstance(part, str) for part in message.parts):
            problems.append(Problem(where, 'says nothing', '', 'words, a picture or a video'))
        for place, part in enumerate(message.parts):
            problems += _part_problems(f'{where}.parts[{place}]', part, message.role)
    if problems:
        raise InvalidInput('conversation', problems)


def check_sampling(sampling: Sampling, dialect: Dialect) -> None:
    """Do nothing if such a sampling exists and the endpoint can be told of it.

    Raises:
        InvalidInput: A value is out of range, or has no field in the plain protocol; lists every fault.
    """
    ranges = (
        ('temperature', 0.0, 2.0),
        ('top_p', 1e-6, 1.0),
        ('top_k', 0, 2**31 - 1),
        ('repetition_penalty', 1e-3, 100.0),
        ('presence_penalty', -2.0, 2.0),
        ('max_tokens', 1, 2**31 - 1),
        ('seed', 0, 2**63 - 1),
    )
    problems = [
        Problem(name, 'is out of range', repr(value), f'{low:g} to {high:g}')
        for name, low, high in ranges
        if not low <= (value := getattr(sampling, name)) <= high
    ]
    if dialect == 'openai':
        remedy = "leave it at its default, or use the dialect 'vllm' if the endpoint knows the field"
        problems += [
            Problem(name, 'has no field in the plain protocol', repr(value), repr(neutral), remedy)
            for name, neutral in (('top_k', 0), ('repetition_penalty', 1.0))
            if (value := getattr(sampling, name)) != neutral
        ]
    if problems:
        raise InvalidInput('sampling', problems)


def check_stop(stop: Sequence[str]) -> None:
    """Do nothing if these can end an answer.

    Raises:
        InvalidInput: One is empty, or they are a single text in place of a sequence; lists every fault.
    """
    problems = [Problem(f'stop[{n}]', 'is empty') for n, text in enumerate(stop) if not text]
    if isinstance(stop, str):
        problems = [Problem('stop', 'is one text', repr(stop), 'a sequence of texts', f'[{stop!r}]')]
    if problems:
        raise InvalidInput('stop texts', problems)


def _part_problems(where: str, part: Part, role: str) -> Iterator[Problem]:
    if isinstance(part, str):
        if halves := ''.join(letter for letter in part if unicodedata.category(letter) == 'Cs'):
            yield Problem(where, 'holds half a character', ascii(halves[:8]), 'Unicode text')
        return
    if role != 'user':
        yield Problem(where, 'is no text in a turn that is not the user', type(part).__name__, 'words')
    pixels, axes = (part.rgb, 3) if isinstance(part, Picture) else (part.frames, 4)
    if pixels.dtype != np.uint8 or pixels.ndim != axes or pixels.shape[-1] != 3 or 0 in pixels.shape:
        allowed = 'uint8 [H, W, 3]' if axes == 3 else 'uint8 [F, H, W, 3]'
        yield Problem(where, 'has no such pixels', f'{pixels.dtype} {pixels.shape}', allowed)
    if isinstance(part, Video):
        rates = {'fps': part.fps, 'sample_fps': part.sample_fps or part.fps}
        for name, rate in rates.items():
            if not (math.isfinite(rate) and 0 < rate <= 1000):
                yield Problem(f'{where}.{name}', 'is out of range', repr(rate), 'above 0, up to 1000')
