"""Look at every file of a checkpoint directory once and write down all that is wrong with it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.checkpoint.shards import StoredTensor, abridge, read_header
from engine.errors import Problem

Json = dict[str, Any]

WEIGHTS = 'diffusion_pytorch_model.safetensors'


@dataclass(frozen=True)
class Part:
    """The tensors of one part (`transformer`, `vae`, ...).

    Attributes:
        tensors: What its files hold, by name.
        lost: Names that the index places in a file which is missing or unreadable.
        files: File of each name, relative to the part's folder, as the index or the file itself says.
    """

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    files: dict[str, str] = field(default_factory=dict)


class Inspection:
    """Reads documents and headers below `root`; faults gather in `problems`, by path relative to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[Problem] = []

    def report(self, where: str, what: str, value: str = '', allowed: str = '', remedy: str = '') -> None:
        """Write down one fault."""
        self.problems.append(Problem(where, what, value, allowed, remedy))

    def has(self, path: str) -> bool:
        """Whether a file or folder exists below the root."""
        return (self.root / path).exists()

    def document(self, path: str, *, required: bool = True) -> Json | None:
        """A JSON object; None, with the reason written down, if it is missing or damaged."""
        try:
            document = json.loads((self.root / path).read_text(encoding='utf-8'))
        except FileNotFoundError:
            if required:
                self.report(path, 'is missing', remedy='download or write this file again')
            return None
        except (OSError, ValueError, RecursionError) as error:
            self.report(path, 'cannot be read as JSON', f'{type(error).__name__}: {error}')
            return None
        if not isinstance(document, dict):
            self.report(path, 'is not a JSON object', type(document).__name__)
            return None
        return document

    def header(self, path: str) -> dict[str, StoredTensor] | None:
        """Tensors of one safetensors file; None, with the reason written down, if nothing is known of them."""
        if not self.has(path):
            return None
        tensors, problems = read_header(self.root / path, path)
        self.problems += problems
        return tensors if tensors or not problems else None

    def part(self, folder: str) -> Part | None:
        """All tensors of a part that diffusers wrote: one file, or shards with an index.

        Returns:
            None, with the reason written down, if nothing is known of any of them.
        """
        index, single = f'{folder}/{WEIGHTS}.index.json', f'{folder}/{WEIGHTS}'
        if not self.has(index) and self.has(single):
            tensors = self.header(single)
            return None if tensors is None else Part(tensors, frozenset(), dict.fromkeys(tensors, WEIGHTS))
        if not self.has(index) and not self._shards(folder):
            self.report(single, 'is missing', remedy='download or write this file again')
            return None
        files = self._weight_map(self.document(index), index)
        return self._indexed(folder, files) if files else self._unindexed(folder)

    def _shards(self, folder: str) -> list[Path]:
        return sorted((self.root / folder).glob('*.safetensors'))

    def _weight_map(self, document: Json | None, index: str) -> dict[str, str]:
        """Tensor name to file name; entries that do not name a file beside the index are written down and dropped."""
        if document is None:
            return {}
        entries = document.get('weight_map')
        if not isinstance(entries, dict) or not entries:
            self.report(f'{index}: weight_map', 'is not a map from tensors to files', type(entries).__name__)
            return {}
        strange = {name: file for name, file in entries.items() if not (isinstance(file, str) and _is_plain(file))}
        for name, file in strange.items():
            self.report(f'{index}: {name}', 'is mapped to a strange place', repr(file), 'a file beside the index')
        return {name: file for name, file in entries.items() if name not in strange}

    def _unindexed(self, folder: str) -> Part | None:
        """Whatever lies there, so that its faults are reported along with the missing or useless index."""
        tensors: dict[str, StoredTensor] = {}
        for file in self._shards(folder):
            tensors |= self.header(f'{folder}/{file.name}') or {}
        files = {name: tensor.file.name for name, tensor in tensors.items()}
        return Part(tensors, frozenset(), files) if tensors else None

    def _indexed(self, folder: str, files: dict[str, str]) -> Part:
        tensors: dict[str, StoredTensor] = {}
        lost: set[str] = set()
        for file in sorted(set(files.values())):
            indexed = sorted(name for name, its_file in files.items() if its_file == file)
            header = self.header(f'{folder}/{file}')
            if header is None:
                lost |= set(indexed)
                self._report_lost(f'{folder}/{file}', indexed)
                continue
            tensors |= header
            for name in sorted(header.keys() & files.keys() - set(indexed)):
                self.report(f'{folder}/{file}: {name}', 'is in another file by the index', files[name], 'in one file')
        return Part(tensors, frozenset(lost), files)

    def _report_lost(self, file: str, indexed: list[str]) -> None:
        if not self.has(file):
            value = f'the index puts {len(indexed)} tensors there: {abridge(indexed)}'
            self.report(file, 'is missing', value, remedy='download this shard again')


def _is_plain(file: str) -> bool:
    return Path(file).name == file and file.endswith('.safetensors')
