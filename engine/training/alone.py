"""One process at a time works in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import CosmosError


@contextmanager
def alone_in(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes out of a folder; ends with the process at the latest.

    Where the file system cannot lock a folder, as some of a network, nobody is kept out.

    Args:
        folder: Is made if it is not there.
        what: What another process would be doing, for the message.

    Raises:
        CosmosError: Another one is at it, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise CosmosError(f'{folder} cannot be made: {error} -> name another folder') from error
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
