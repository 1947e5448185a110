"""Completes bags whose recorder was killed: every whole record is kept, what is cut off at the end is not."""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosbags.rosbag2 import Reader, ReaderError, StoragePlugin, Writer

from cosmos3_ros.recorder_bag import CUSTOM_CONTRACT, VERSION, deserialised, types_in
from cosmos3_ros.recorder_topics import RECORDING
from engine.errors import InvalidInput, Problem

# The container, as the MCAP specification has it: magic, then records of an opcode, a length and so many bytes.
MAGIC = b'\x89MCAP0\r\n'
_FOOTER, _HEADER, _DATA_END = 0x02, 0x01, 0x0F
_RECORD = struct.Struct('<BQ')
_COPY = 1 << 20


@dataclass(frozen=True)
class Recovered:
    """What was saved.

    Attributes:
        messages: How many.
        seconds: From the first to the last.
        lost_bytes: At the end of the file, of records that were never finished.
        kept: The file as it was found.
    """

    messages: int
    seconds: float
    lost_bytes: int
    kept: Path | None


def is_complete(bag: Path) -> bool:
    """Whether a bag was closed."""
    return (bag / 'metadata.yaml').is_file()


def recover(bag: Path) -> Recovered:
    """Complete a bag in its place; the file as it was is kept beside it, with `.broken` behind its name.

    Whatever interrupts this, it can be called again: the bag counts as complete only when everything is in its place.

    Args:
        bag: Its folder.

    Raises:
        InvalidInput: It needs no recovery, it is being recorded, or there is nothing to be saved.
    """
    _refuse_complete(bag)
    if not bag.is_dir():
        raise InvalidInput(
            f'bag {bag}', [Problem(str(bag), 'is no bag of ours', 'no folder', 'a folder with one .mcap')]
        )
    with _held(bag, 'is being recovered by another', 'wait for it'):
        _resume(bag)
        file = _only_file(bag)
        with _held(file, 'is still being recorded', 'end the recorder: that completes the bag'):
            _refuse_complete(bag)  # by now, perhaps
            return _recover(bag, file)


def _refuse_complete(bag: Path) -> None:
    if is_complete(bag):
        raise InvalidInput(f'bag {bag}', [Problem(str(bag), 'is complete', remedy='use it as it is')])


def _workplace(bag: Path) -> Path:
    """Where the new bag grows."""
    return bag.with_name(f'{bag.name}.recovering')


def _resume(bag: Path) -> None:
    """Undo what a call before this one began, so that the original lies where it lay.

    Raises:
        InvalidInput: Something that is not ours is in the way.
    """
    made = _workplace(bag)
    half_way = (made / 'metadata.yaml').is_file() and not (made / f'{made.name}.mcap').exists()
    for kept in sorted(bag.glob('*.mcap.broken')):
        file = kept.with_suffix('')
        if file.exists() and not half_way:
            remedy = f'it is the original of a recovery: move it, or {file.name}, to another folder and call again'
            raise InvalidInput(f'bag {bag}', [Problem(str(kept), 'exists already', '', '', remedy)])
        kept.replace(file)
    (bag / f'{bag.name}.whole.mcap').unlink(missing_ok=True)
    if not made.exists():
        return
    for name in (f'{made.name}.mcap', 'metadata.yaml', 'metadata.yaml.tmp'):
        (made / name).unlink(missing_ok=True)
    try:
        made.rmdir()
    except OSError as error:
        problem = Problem(str(made), 'is in the way', str(error), '', 'move it to another folder')
        raise InvalidInput(f'bag {bag}', [problem]) from error


def _only_file(bag: Path) -> Path:
    files = sorted(bag.glob('*.mcap'))
    if len(files) != 1:
        value = ', '.join(file.name for file in files) or 'none'
        raise InvalidInput(f'bag {bag}', [Problem(str(bag), 'is no bag of ours', value, 'a folder with one .mcap')])
    return files[0]


@contextmanager
def _held(path: Path, what: str, remedy: str) -> Iterator[None]:
    """A file or folder in our hands alone.

    Raises:
        InvalidInput: Somebody else has it.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: nobody can have it
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InvalidInput(f'bag {path}', [Problem(str(path), what, remedy=remedy)]) from error
        yield
    finally:
        os.close(handle)


def _recover(bag: Path, file: Path) -> Recovered:
    whole = whole_length(file)
    made, patched = _workplace(bag), bag / f'{bag.name}.whole.mcap'
    try:
        _closed_copy(file, whole, patched)
        messages, seconds = _rewrite(patched, made)
    finally:
        patched.unlink(missing_ok=True)
    lost = file.stat().st_size - whole
    kept = bag / f'{file.name}.broken'
    text = (made / 'metadata.yaml').read_text(encoding='utf-8').replace(f'{made.name}.mcap', file.name)
    (made / 'metadata.yaml').write_text(text, encoding='utf-8')
    # `metadata.yaml` last: until it is there the bag counts as incomplete, and the original can be had again.
    file.rename(kept)
    (made / f'{made.name}.mcap').rename(file)
    (made / 'metadata.yaml').rename(bag / 'metadata.yaml')
    made.rmdir()
    return Recovered(messages, seconds, lost, kept)


def whole_length(file: Path) -> int:
    """Bytes of a bag's file up to the end of its last whole record before the index.

    Raises:
        InvalidInput: It is no MCAP file.
    """
    size = file.stat().st_size
    with file.open('rb') as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise InvalidInput(f'bag {file}', [Problem(str(file), 'is no MCAP file')])
        end = stream.tell()
        while len(head := stream.read(_RECORD.size)) == _RECORD.size:
            opcode, length = _RECORD.unpack(head)
            following = end + _RECORD.size + length
            if opcode in (_FOOTER, _DATA_END) or following > size:
                break
            end = following
            stream.seek(end)
    return end


def _closed_copy(source: Path, length: int, target: Path) -> None:
    """The first `length` bytes of a file with an end behind them, so that readers take it for one without index."""
    with source.open('rb') as stream, target.open('wb') as out:
        left = length
        while left and (part := stream.read(min(_COPY, left))):
            out.write(part)
            left -= len(part)
        out.write(_RECORD.pack(_DATA_END, 4) + bytes(4))
        out.write(_RECORD.pack(_FOOTER, 20) + bytes(20) + MAGIC)


def _rewrite(source: Path, target: Path) -> tuple[int, float]:
    """A bag with index of one without; returns how many messages, and how many seconds they span."""
    try:
        with Reader(source) as reader:
            if not reader.message_count:
                raise InvalidInput(f'bag {source.parent}', [Problem(str(source.parent), 'holds no whole message')])
            store = types_in(reader.connections)
            about = next((c for c in reader.connections if c.topic.endswith(RECORDING)), None)
            with Writer(target, version=VERSION, storage_plugin=StoragePlugin.MCAP) as writer:
                added = {
                    one.id: writer.add_connection(
                        one.topic,
                        one.msgtype,
                        msgdef=one.msgdef.data,
                        rihs01=store.hash_rihs01(one.msgtype),
                        offered_qos_profiles=getattr(one.ext, 'offered_qos_profiles', ()),
                    )
                    for one in reader.connections
                }
                storage: Any = reader.storage  # in the order of the file: without an index only that can be had
                for connection, time_ns, data in storage.messages_scan(reader.connections):
                    if about is not None and connection.id == about.id:
                        writer.set_custom_data(
                            CUSTOM_CONTRACT, contract_text(deserialised(store, data, connection.msgtype))
                        )
                    writer.write(added[connection.id], time_ns, data)
            return reader.message_count, reader.duration / 1e9
    except ReaderError as error:
        raise InvalidInput(
            f'bag {source.parent}', [Problem(str(source.parent), 'cannot be read', str(error))]
        ) from error


def contract_text(message: Any) -> str:
    """The contract in the first message of a bag."""
    try:
        return str(json.loads(message.data)['contract'])
    except (ValueError, KeyError):
        return ''
