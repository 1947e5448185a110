"""One process at a time works in a folder."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import CosmosError


@contextmanager
def alone_in(folder: Path, what: str) -> Iterator[None]:
    """Keep this user's other processes on this machine out of a folder; ends with the process at the latest.

    What is locked is a file of its own for temporary files: folders of a network cannot always be locked, and whoever
    writes into this one may lock it in turn. Where that is not to be had either, nobody is kept out.

    Args:
        folder: Need not be there.
        what: What another process would be doing, for the message.

    Raises:
        CosmosError: Another one is at it.
    """
    name = hashlib.sha256(os.fsencode(folder.expanduser().resolve())).hexdigest()[:16]
    file = Path(tempfile.gettempdir()) / f'cosmos3_{os.getuid()}_{name}.lock'
    try:
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CosmosError(f'another process is {what} -> wait for it') from error
        except OSError:
            pass
        yield
    finally:
        os.close(lock)
