"""What a safetensors file says it holds, checked against what it can hold; no tensor is read.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the length N of the header, little-endian; N bytes of
JSON that map each name to type, shape and offsets; then the data, without holes, in which offset 0 is the first byte.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import Problem

_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # the library's own limit
_ITEM_BYTES = {
    'BOOL': 1, 'U8': 1, 'I8': 1, 'F8_E4M3': 1, 'F8_E5M2': 1, 'U16': 2, 'I16': 2, 'F16': 2, 'BF16': 2, 'U32': 4,
    'I32': 4, 'F32': 4, 'U64': 8, 'I64': 8, 'F64': 8,
}  # fmt: skip
_NAMED = 3


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies.

    Attributes:
        file: The safetensors file.
        dtype: Storage type in the format's own spelling, e.g. `BF16`.
        shape: Dimensions.
        begin: First byte in the file.
        end: First byte after it.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: Path, where: str) -> tuple[dict[str, StoredTensor], list[Problem]]:
    """Read the names, types and shapes of a file's tensors.

    Args:
        file: A safetensors file.
        where: How error messages call it.

    Returns:
        The tensors by name, none if the header is unusable, and every fault of the file.
    """
    try:
        with file.open('rb') as stream:
            size = os.fstat(stream.fileno()).st_size
            header, problem = _parse(stream.read(_LENGTH_BYTES), stream, size, where)
    except OSError as error:
        return {}, [Problem(where, 'cannot be read', error.strerror or str(error))]
    if header is None:
        return {}, [problem] if problem else []
    begin = size - header.data_bytes
    tensors, problems = _read_entries(header.entries, file, begin, where)
    if not problems:
        problems = _find_gaps(tensors, begin, where) or _find_misfit(tensors, begin, size, where)
    return tensors, problems


@dataclass(frozen=True)
class _Header:
    entries: dict[str, Any]
    data_bytes: int


def _parse(start: bytes, stream: Any, size: int, where: str) -> tuple[_Header | None, Problem | None]:
    """Decode the header, or say why that is impossible."""
    remedy = 'download or write this file again'
    if len(start) < _LENGTH_BYTES:
        return None, Problem(where, 'is truncated', f'{size} bytes', 'a header and data', remedy)
    (length,) = struct.unpack('<Q', start)
    if length > _LONGEST_HEADER:
        return None, Problem(where, 'is not a safetensors file', f'a header of {length} bytes', remedy=remedy)
    if length > size - _LENGTH_BYTES:
        allowed = f'at least {length + _LENGTH_BYTES} bytes, as its header needs'
        return None, Problem(where, 'is truncated', f'{size} bytes', allowed, remedy)
    try:
        entries = json.loads(stream.read(length))
    except (ValueError, RecursionError) as error:
        return None, Problem(where, 'has a damaged header', f'{type(error).__name__}: {error}', remedy=remedy)
    if not isinstance(entries, dict):
        return None, Problem(where, 'has a damaged header', type(entries).__name__, 'a JSON object', remedy)
    entries.pop('__metadata__', None)
    return _Header(entries, size - _LENGTH_BYTES - length), None


def _read_entries(
    entries: dict[str, Any], file: Path, begin: int, where: str
) -> tuple[dict[str, StoredTensor], list[Problem]]:
    tensors, problems = {}, []
    for name, entry in entries.items():
        try:
            first, last = entry['data_offsets']
            shape = tuple(entry['shape'])
            natural = all(isinstance(n, int) and n >= 0 for n in (first, last, *shape))
            consistent = natural and last - first == math.prod(shape) * _ITEM_BYTES[entry['dtype']]
        except (TypeError, ValueError, KeyError):
            consistent = False
        if consistent:
            tensors[name] = StoredTensor(file, entry['dtype'], shape, begin + first, begin + last)
        else:
            what = 'is described inconsistently in the header'
            problems.append(Problem(f'{where}: {name}', what, json.dumps(entry), 'type, shape and offsets that agree'))
    return tensors, problems


def _find_gaps(tensors: dict[str, StoredTensor], begin: int, where: str) -> list[Problem]:
    """Holes or overlaps between tensors: the format forbids both."""
    expected, problems = begin, []
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != expected:
            what = 'overlaps the tensor before it' if tensor.begin < expected else 'leaves a hole before it'
            problems.append(Problem(f'{where}: {name}', what, f'byte {tensor.begin}', f'byte {expected}'))
        expected = tensor.end
    return problems


def _find_misfit(tensors: dict[str, StoredTensor], begin: int, size: int, where: str) -> list[Problem]:
    """A file that is shorter than its header promises, or longer."""
    end = max((tensor.end for tensor in tensors.values()), default=begin)
    remedy = 'download or write this file again'
    if size > end:
        return [Problem(where, 'is longer than its header says', f'{size} bytes', f'{end} bytes', remedy)]
    if size < end:
        cut = sorted(name for name, tensor in tensors.items() if tensor.end > size)
        value = f'{size} bytes; cut off or incomplete: {abridge(cut)}'
        return [Problem(where, 'is truncated', value, f'{end} bytes, as its header says', remedy)]
    return []


def abridge(names: list[str]) -> str:
    """A few of the names, and how many more there are."""
    more = f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''
    return ', '.join(names[:_NAMED]) + more
