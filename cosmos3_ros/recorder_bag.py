"""Writes the bag of a run: MCAP, by `rosbags`, without a ROS installation's own tools.

A bag is complete when it is closed. Until then everything up to the last :meth:`BagWriter.sync` is on the disk in
whole chunks, so whatever ends the process costs what came after that, and
:func:`cosmos3_ros.recorder_recovery.recover` makes a bag of the rest.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.rosbag2 import CompressionMode, StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from cosmos3_ros.recorder_topics import RECORDING
from engine.errors import InvalidInput, Problem

OWN_PACKAGE = 'cosmos3_msgs'
CUSTOM_CONTRACT = 'cosmos3.contract'
"""Under this key the contract's text is in the bag's `metadata.yaml`, too."""
_IDL_RULE = '=' * 80 + '\n'
VERSION: Final = 9  # of the format of rosbag2: that of Jazzy and later


def typestore() -> Typestore:
    """Types of messages that may be in a bag: those of ROS 2 Jazzy, and our own where they are installed."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, text in _own_messages().items():
        store.register(get_types_from_msg(text, name))
    return store


def _own_messages() -> dict[str, str]:
    """Definitions of our own messages by type: as they are installed, else as they lie in a source tree."""
    folder = next((place for place in _message_folders() if place.is_dir()), None)
    files = sorted(folder.glob('*.msg')) if folder is not None else []
    return {f'{OWN_PACKAGE}/msg/{file.stem}': file.read_text(encoding='utf-8') for file in files}


def _message_folders() -> Iterator[Path]:
    """Where they may be, whether a ROS prefix is sourced or not."""
    here = Path(__file__).resolve()
    prefixes = [Path(p) for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    found = find_spec(OWN_PACKAGE)
    installed = Path(found.origin).resolve().parents if found is not None and found.origin else ()
    for prefix in (*prefixes, *installed, *here.parents):
        yield prefix / 'share' / OWN_PACKAGE / 'msg'
    yield here.parents[1] / OWN_PACKAGE / 'msg'


def types_in(connections: Iterable[Connection]) -> Typestore:
    """Types of a bag's messages as the bag itself defines them; those it does not define, as they are known here."""
    found: dict[str, Any] = {}
    for one in connections:
        text = one.msgdef.data
        if one.msgdef.format is MessageDefinitionFormat.MSG:
            found |= get_types_from_msg(text, one.msgtype)
        elif one.msgdef.format is MessageDefinitionFormat.IDL:
            for part in text.split(_IDL_RULE) if text.startswith(_IDL_RULE) else [text]:
                found |= (
                    get_types_from_idl(part.partition('\n')[2] if part.startswith('IDL: ') else part) if part else {}
                )
    store = get_typestore(Stores.EMPTY)
    if found:
        store.register(found)
    missing = {one.msgtype for one in connections} - store.types.keys()
    return typestore() if missing else store


def deserialised(store: Typestore, data: bytes, kind: str) -> Any:
    """A message of its bytes (CDR).

    Fast DDS leaves bytes of no meaning behind the end of a message whose size it estimated, which `deserialize_cdr`
    of the store takes for another definition; here definitions come from the bag itself, and the rest is ignored.
    """
    definition = store.get_msgdef(kind)
    read = definition.deserialize_cdr_le if data[1] & 1 else definition.deserialize_cdr_be
    message, _ = read(data[4:], 0, definition.cls, store)
    return message


class BagWriter:
    """One bag that is being written. For one thread at a time."""

    def __init__(
        self, path: Path, topics: Mapping[str, str], about: Mapping[str, Any], time_ns: int, *, compress: bool = False
    ) -> None:
        """Begin a bag; what it is about is on the disk when this returns.

        Args:
            path: Its folder; must not exist.
            topics: Type of each topic by its full name.
            about: What is told of the bag in its first message; `contract` is the contract's text.
            time_ns: Time of that message.
            compress: Whether chunks are compressed (zstd).

        Raises:
            InvalidInput: The folder is there already, or a type is unknown; lists every fault.
        """
        self.path, self.messages, self.bytes = path, 0, 0
        self._store = typestore()
        unknown = [Problem(name, 'has an unknown type', kind) for name, kind in topics.items() if not self._knows(kind)]
        if path.exists():
            unknown.append(Problem(str(path), 'exists already', remedy='name another folder'))
        if unknown:
            raise InvalidInput(f'bag {path}', unknown)
        self._writer = Writer(path, version=VERSION, storage_plugin=StoragePlugin.MCAP)
        if compress:
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.set_custom_data(CUSTOM_CONTRACT, str(about.get('contract', '')))
        self._writer.open()
        self._lock_file()
        self._connections: dict[str, Connection] = {}
        self._add(f'/{RECORDING}', 'std_msgs/msg/String')
        for name, kind in topics.items():
            self._add(name, kind)
        text = self._store.types['std_msgs/msg/String'](data=json.dumps(dict(about)))
        self.write(f'/{RECORDING}', time_ns, bytes(self._store.serialize_cdr(text, 'std_msgs/msg/String')))
        self.sync()

    def _lock_file(self) -> None:
        """Hold the file for as long as it is written, so that nobody completes a bag that is still growing."""
        storage: Any = self._writer.storage
        # Of our own, since the storage closes its file before there is `metadata.yaml`.
        self._held = os.fdopen(os.dup(storage.bio.fileno()), 'wb')
        with suppress(OSError):  # a file system without locks is no reason to record nothing
            fcntl.flock(self._held.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _knows(self, kind: str) -> bool:
        return kind in self._store.types

    def _add(self, name: str, kind: str) -> None:
        self._connections[name] = self._writer.add_connection(name, kind, typestore=self._store)

    def write(self, topic: str, time_ns: int, data: bytes) -> None:
        """Append a message, serialised as CDR, that arrived at `time_ns`."""
        self._writer.write(self._connections[topic], time_ns, data)
        self.messages += 1
        self.bytes += len(data)

    def sync(self) -> None:
        """Bring everything so far to the disk, in whole chunks.

        Raises:
            OSError: The disk is full, or gone.
        """
        # The pending chunk is the storage's own affair, and rosbags closes one only when it is a mebibyte large.
        storage: Any = self._writer.storage
        if storage.chunk.bio.tell():
            storage.close_chunk()
        storage.bio.flush()
        os.fsync(storage.bio.fileno())

    def close(self) -> None:
        """Complete the bag: index and `metadata.yaml`."""
        self._writer.close()
        self._held.close()

    def abandon(self) -> None:
        """Leave the bag as it is on the disk, incomplete; see :func:`~cosmos3_ros.recorder_recovery.recover`."""
        try:
            self._writer.abort()
        finally:
            self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()
