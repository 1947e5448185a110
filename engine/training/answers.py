"""What the scripted hand would have done in recorded moments, had it been asked for something else.

Where an arm is on its way, the picture says where to, and a network that is shown nothing but what was done learns to
go on, and not to listen. So in moments of recorded episodes the hand is asked for every other object, too, and answers
with the chunk with which it would turn there: the picture is the same, and only words tell the chunks apart. Where the
arm was led or pushed away, it is asked for the object that the episode is about, too.

    answers.json    version, corpus, contract, texts
    answers.npz     A answers
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidInput, Problem

VERSION = 1
CARD, NUMBERS = 'answers.json', 'answers.npz'


@dataclass(frozen=True, eq=False)
class Answers:
    """A answers to what nobody asked.

    Attributes:
        frames: [A], frame of the corpus in which each begins.
        text: [A], which of the texts it answers.
        joints: Float32 [A, rows, J] rad, where the joints are to be, one row later each.
        gripper: Float32 [A, rows], closed fraction, likewise.
        texts: What was asked.
        corpus: Fingerprint of the corpus.
        fingerprint: Changes with everything.
    """

    frames: NDArray[np.int64]
    text: NDArray[np.int64]
    joints: NDArray[np.float32]
    gripper: NDArray[np.float32]
    texts: tuple[str, ...]
    corpus: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.frames)


def open_answers(root: Path) -> Answers:
    """Open what :func:`engine.training.answering.make_answers` made.

    Raises:
        InvalidInput: It is none, damaged, or of another version.
    """
    remedy = 'make it with cosmos3 train answers'
    try:
        text = (root / CARD).read_text(encoding='utf-8')
        card: Mapping[str, Any] = json.loads(text)
        raw = (root / NUMBERS).read_bytes()
        with np.load(root / NUMBERS) as file:
            arrays = {name: file[name] for name in ('frames', 'text', 'joints', 'gripper')}
    except (OSError, ValueError, LookupError, BadZipFile) as error:
        raise InvalidInput(f'answers {root}', [Problem(str(root), 'cannot be read', str(error), '', remedy)]) from error
    if not isinstance(card, dict) or card.get('version') != VERSION:
        raise InvalidInput(f'answers {root}', [Problem(str(root), 'are of another version', remedy=remedy)])
    shapes = {name: array.shape for name, array in arrays.items()}
    texts = tuple(map(str, card.get('texts', ())))
    count, rows = shapes['gripper'] if len(shapes['gripper']) == 2 else (-1, -1)
    sound = shapes['frames'] == shapes['text'] == (count,) and shapes['joints'][:2] == (count, rows)
    if not sound or (count and not 0 <= arrays['text'].min() <= arrays['text'].max() < len(texts)):
        raise InvalidInput(f'answers {root}', [Problem(str(root), 'are damaged', str(shapes), '', remedy)])
    fingerprint = hashlib.sha256(text.encode() + raw).hexdigest()[:16]
    return Answers(**arrays, texts=texts, corpus=str(card.get('corpus')), fingerprint=fingerprint)
