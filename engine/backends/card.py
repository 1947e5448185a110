"""The engine card: what a folder of compiled parts holds, what it was made of, and how near it is to the reference.

It is the last file that is written; a folder without a readable card is no compiled checkpoint. Every file that the
card names is there with its length and digest, or the folder is refused; and so is a card that somebody has edited.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from engine.errors import InvalidInput, Problem

CARD = 'engine.json'
SCHEMA = 1
ONNX = 'onnx'
"""Builder of a folder that holds graphs alone, for ONNX Runtime."""
_DAMAGED = 'compile the checkpoint again'


class EngineError(InvalidInput):
    """Compiled parts are damaged, incomplete, or not made for what they are asked to do."""


@dataclass(frozen=True)
class StoredFile:
    """One file of the folder: its name, length in bytes, and SHA-256."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> StoredFile:
        """Measure a file."""
        return cls(path.name, path.stat().st_size, digest(path))


@dataclass(frozen=True)
class StoredPort:
    """A tensor at the boundary of a part; an axis of variable size is given by name."""

    name: str
    shape: tuple[int | str, ...]
    type: str


@dataclass(frozen=True)
class StoredPart:
    """One compiled piece.

    Attributes:
        name: 'prefix', 'step' (or 'step_1_of_3' and so on), 'encoder', 'decoder'.
        files: The graph, its weights, and the engine if there is one.
        inputs: What it takes, in order.
        outputs: What it returns, in order.
        layers: Layers of the engine as TensorRT counts them; 0 without an engine.
        seconds: Time per stage of its making: export, build.
    """

    name: str
    files: Mapping[str, StoredFile]
    inputs: tuple[StoredPort, ...]
    outputs: tuple[StoredPort, ...]
    layers: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """Everything about a folder of compiled parts.

    Attributes:
        key: Digest of whatever can change the result; equal keys mean equal engines.
        made: When, ISO 8601 in UTC.
        checkpoint: Fingerprint and family of the checkpoint.
        contract: Name and fingerprint of the contract.
        layout: The tokens that the step was made for, canvas and clip.
        precision: 'fp32', 'fp16', 'bf16' or 'fp8'.
        builder: Flavour and version of what built the engines; 'onnx' alone if there are none.
        targets: GPUs that the engines are for; empty without engines.
        gpu: GPU that they were built on, or an empty text.
        versions: Of the packages that had a hand in it.
        parts: The pieces by name.
        accuracy: What was compared with what, and by how much they differed; empty if nothing was.
    """

    key: str
    made: str
    checkpoint: Mapping[str, str]
    contract: Mapping[str, str]
    layout: Mapping[str, Any]
    precision: str
    builder: Mapping[str, str]
    targets: tuple[str, ...]
    gpu: str
    versions: Mapping[str, str]
    parts: Mapping[str, StoredPart]
    accuracy: Mapping[str, Any]
    schema: int = SCHEMA

    def write(self, folder: Path) -> None:
        """Write the card into its folder, whole or not at all."""
        partial = folder / f'{CARD}.partial'
        document = json.loads(json.dumps(asdict(self)))
        signed = {**document, 'digest': _signature(document)}
        partial.write_text(json.dumps(signed, indent=1, sort_keys=True) + '\n', encoding='utf-8')
        partial.replace(folder / CARD)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open('rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def read_card(folder: Path, *, whole: bool = True) -> Card:
    """Read the card of a folder and hold the folder to it.

    Args:
        folder: Where the parts are.
        whole: Whether to read every file for its digest; otherwise lengths alone are compared.

    Raises:
        EngineError: There is no card, it cannot be read, or a file is not what it says; lists every fault.
    """
    path = folder / CARD
    if not path.is_file():
        what = 'is no compiled checkpoint' if folder.is_dir() else 'there is no such folder'
        raise EngineError(f'compiled parts in {folder}', [Problem(str(path), what, remedy='cosmos3 compile')])
    try:
        document = json.loads(path.read_text(encoding='utf-8'))
        card = _read(document)
    except (ValueError, TypeError, KeyError, AttributeError, UnicodeDecodeError) as error:
        fault = Problem(CARD, 'cannot be read', f'{type(error).__name__}: {error}', remedy=_DAMAGED)
        raise EngineError(f'compiled parts in {folder}', [fault]) from error
    problems = [*_broken_files(folder, card, whole)]
    if problems:
        raise EngineError(f'compiled parts in {folder}', problems)
    return card


def _signature(document: Mapping[str, Any]) -> str:
    """Digest of everything that a card says."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _read(signed: Any) -> Card:
    document = {key: value for key, value in signed.items() if key != 'digest'}
    if document['schema'] != SCHEMA:
        raise ValueError(f'schema {document["schema"]!r}, this version reads {SCHEMA}')
    if signed['digest'] != _signature(document):
        raise ValueError('it has been changed since it was written')
    unknown = set(document) - {item.name for item in fields(Card)}
    if unknown:
        raise ValueError(f'unknown keys {", ".join(sorted(unknown))}')
    parts = {
        name: StoredPart(
            **{
                **part,
                'files': {key: StoredFile(**file) for key, file in part['files'].items()},
                'inputs': tuple(_port(port) for port in part['inputs']),
                'outputs': tuple(_port(port) for port in part['outputs']),
            }
        )
        for name, part in document['parts'].items()
    }
    return Card(**{**document, 'targets': tuple(document['targets']), 'parts': parts})


def _port(stored: Mapping[str, Any]) -> StoredPort:
    return StoredPort(stored['name'], tuple(stored['shape']), stored['type'])


def _broken_files(folder: Path, card: Card, whole: bool) -> Iterator[Problem]:
    for part in card.parts.values():
        for file in part.files.values():
            path = folder / file.name
            if Path(file.name).name != file.name:
                yield Problem(file.name, 'leads out of the folder', remedy=_DAMAGED)
            elif not path.is_file():
                yield Problem(file.name, 'is missing', remedy=_DAMAGED)
            elif path.stat().st_size != file.bytes:
                found, wanted = f'{path.stat().st_size} bytes', f'{file.bytes} bytes'
                yield Problem(file.name, 'has another length', found, wanted, _DAMAGED)
            elif whole and digest(path) != file.sha256:
                yield Problem(file.name, 'has other contents than when it was made', remedy=_DAMAGED)
