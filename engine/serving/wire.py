"""What policy servers and their clients say to each other: msgpack, with marked maps that stand for arrays.

Three kinds of map are read as arrays or numbers, openpi's and the older one of msgpack-numpy:

    {b'__ndarray__': True, b'data': bytes, b'dtype': '<f4', b'shape': [2, 3]}
    {b'__npgeneric__': True, b'data': 0.5, b'dtype': '<f4'}
    {b'nd': True, b'type': '<f4', b'kind': b'', b'shape': [2, 3], b'data': bytes}

Only the first two are written. Nothing that a stranger sends is believed: sizes are compared with what is there before
anything is made of them, and no type is read whose bytes could be anything but numbers or text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import msgpack
import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidInput, Problem

_TYPE: Final = re.compile(r'[<>|=]?([biufSU])([1-9]\d{0,6})')
_WIDEST: Final = {'b': 1, 'i': 8, 'u': 8, 'f': 8}
"""Bytes an item at most; 16 bytes of a float differ from machine to machine."""
_LEGACY: Final = frozenset({'nd', 'type', 'shape', 'data'})


@dataclass(frozen=True)
class Limits:
    """What a message may hold at most.

    Attributes:
        size: Bytes of the whole message.
        arrays: Arrays and marked numbers.
        containers: Maps and lists, arrays included.
        length: Entries of a map or a list.
        depth: Maps and lists within each other, the outermost one included.
        dimensions: Of an array.
        key: Bytes of a key. Other texts may be as long as the message.
    """

    size: int = 64 * 2**20
    arrays: int = 64
    containers: int = 256
    length: int = 1024
    depth: int = 6
    dimensions: int = 8
    key: int = 256


LIMITS: Final = Limits()


class WireError(InvalidInput):
    """A message that cannot be read, or claims what is not allowed."""


def pack(value: Any) -> bytes:
    """Write maps, lists, texts, numbers and arrays, as openpi's `msgpack_numpy` does to the byte.

    Raises:
        ValueError: An array is of objects, records or complex numbers.
        TypeError: It holds something else.
    """
    return bytes(msgpack.packb(value, default=_mark))


def _mark(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in 'OVc':
        raise ValueError(f'arrays of {value.dtype} are not sent')
    if isinstance(value, np.ndarray):
        return {b'__ndarray__': True, b'data': value.tobytes(), b'dtype': value.dtype.str, b'shape': value.shape}
    if isinstance(value, np.generic):
        return {b'__npgeneric__': True, b'data': value.item(), b'dtype': value.dtype.str}
    raise TypeError(f'{type(value).__name__} is not sent')


def unpack(message: bytes, limits: Limits = LIMITS) -> Any:
    """Read a message.

    Returns:
        Maps, lists, texts, bytes, numbers, None, and for marked maps arrays (read-only, sharing memory with what was
        read) and NumPy scalars.

    Raises:
        WireError: It is no msgpack, or goes beyond the limits, or an array in it is not what it claims to be.
    """
    if len(message) > limits.size:
        _refuse('message', 'is too large', f'{len(message)} bytes', f'at most {limits.size}')
    reader = _Reader(limits)
    try:
        value = msgpack.unpackb(
            message,
            raw=False,
            strict_map_key=True,
            object_hook=reader.map,
            list_hook=reader.list,
            ext_hook=_no_extension,
            max_array_len=limits.length,
            max_map_len=limits.length,
            max_str_len=limits.size,
            max_bin_len=limits.size,
            max_ext_len=64,
        )
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        what = ' '.join(str(error).split())[:120] or type(error).__name__
        _refuse('message', f'cannot be read as msgpack ({what})', f'{len(message)} bytes')
    _check_tree(value, limits)
    return value


class _Reader:
    """Makes arrays of marked maps, and counts what a message is made of while it is read."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._containers = 0
        self._arrays = 0

    def list(self, found: list[Any]) -> list[Any]:
        """Count a list."""
        self._count()
        return found

    def map(self, found: dict[Any, Any]) -> Any:
        """Count a map, and make an array or a number of a marked one."""
        self._count()
        if b'__ndarray__' in found:
            return self._array(found.get(b'data'), found.get(b'dtype'), found.get(b'shape'))
        if b'__npgeneric__' in found:
            return self._number(found.get(b'data'), found.get(b'dtype'))
        names = {key if isinstance(key, str) else key.decode('ascii', 'replace'): key for key in found}
        if 'nd' in names and found[names['nd']] is True and names.keys() >= _LEGACY:
            return self._array(*(found[names[name]] for name in ('data', 'type', 'shape')))
        if names.keys() == {'nd', 'type', 'data'} and found[names['nd']] is False:
            return self._array(found[names['data']], found[names['type']], [])[()]
        return found

    def _count(self) -> None:
        self._containers += 1
        if self._containers > self._limits.containers:
            _refuse('message', 'has too many maps and lists', '', f'at most {self._limits.containers}')

    def _count_array(self) -> None:
        self._arrays += 1
        if self._arrays > self._limits.arrays:
            _refuse('message', 'has too many arrays', '', f'at most {self._limits.arrays}')

    def _array(self, data: Any, name: Any, shape: Any) -> NDArray[Any]:
        self._count_array()
        kind = _type(name)
        sizes = _shape(shape, self._limits.dimensions)
        if not isinstance(data, bytes):
            _refuse('array', 'has no bytes as data', type(data).__name__, 'bin')
        claimed = math.prod(sizes) * kind.itemsize
        if claimed != len(data):
            _refuse('array', 'claims another size than it has', f'{claimed} bytes', f'{len(data)}, which are there')
        return np.ndarray(sizes, kind, data)

    def _number(self, data: Any, name: Any) -> np.generic:
        self._count_array()
        kind = _type(name)
        if not isinstance(data, int | float | str | bytes):
            _refuse('number', 'is none', type(data).__name__)
        try:
            made = kind.type(data)
        except (ValueError, TypeError, OverflowError) as error:
            _refuse('number', f'does not fit its type {kind.str} ({error})', repr(data)[:40])
        return made


def _type(name: Any) -> np.dtype[Any]:
    """The type that a message names, if it is of plain numbers or text."""
    text = name.decode('ascii', 'replace') if isinstance(name, bytes) else name
    match = _TYPE.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match[2]) > _WIDEST.get(match[1], 10**6):
        allowed = 'numbers of up to 8 bytes, truth values, texts'
        _refuse('array', 'has a type that is not read', repr(name)[:40], allowed)
    try:
        return np.dtype(text)
    except TypeError:
        _refuse('array', 'has a type that does not exist', repr(name)[:40])


def _shape(value: Any, most: int) -> tuple[int, ...]:
    sound = isinstance(value, list) and all(type(size) is int and 0 <= size < 2**40 for size in value)
    if not sound or len(value) > most:
        _refuse('array', 'has no shape', repr(value)[:60], f'a list of at most {most} sizes')
    return tuple(value)


def _no_extension(code: int, _data: bytes) -> NoReturn:
    _refuse('message', 'has an extension of msgpack', f'type {code}', 'none')


def _check_tree(value: Any, limits: Limits, depth: int = 1) -> None:
    """Refuse what is nested too deeply, long keys, and what only msgpack knows (its timestamps)."""
    if isinstance(value, dict | list) and depth > limits.depth:
        _refuse('message', 'is nested too deeply', '', f'at most {limits.depth} maps and lists within each other')
    if isinstance(value, dict):
        for key, entry in value.items():
            if len(key) > limits.key:
                _refuse('message', 'has a key that is too long', f'{len(key)} bytes', f'at most {limits.key}')
            _check_tree(entry, limits, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            _check_tree(entry, limits, depth + 1)
    elif not isinstance(value, bool | int | float | str | bytes | np.ndarray | np.generic | None):
        _refuse('message', 'has a value that is not read', type(value).__name__)


def as_map(value: Any) -> Mapping[str, Any]:
    """A message that has to be a map with texts as keys.

    Raises:
        WireError: It is none.
    """
    if not isinstance(value, dict):
        _refuse('message', 'is no map', type(value).__name__, 'a map of named fields')
    strange = [key for key in value if not isinstance(key, str)]
    if strange:
        _refuse('message', 'has a key that is no text', repr(strange[0])[:40])
    return value


def _refuse(where: str, what: str, value: str = '', allowed: str = '') -> NoReturn:
    raise WireError('message', [Problem(where, what, value, allowed)])
