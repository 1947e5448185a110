"""Folders that appear whole or not at all, however many make them at once and however they end."""

from __future__ import annotations

import ctypes
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from engine.backends.card import CARD
from engine.errors import CosmosError, InvalidInput, Problem

_PARTIAL = '.partial'
_FROM_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD and the flag of renameat2(2), Linux


@contextmanager
def workshop(folder: Path, card: str = CARD) -> Iterator[Path]:
    """A folder beside the one that is wanted, which takes its place in the end, or is gone if something goes wrong.

    Two that make the same folder at the same time do not see each other; the later one replaces the earlier one's.
    What a killed process has left behind is cleared away.

    Args:
        folder: What is wanted. An earlier one of its kind there is replaced; anything else is left alone and refused.
        card: File by which its kind is known, that of compilations by default.

    Raises:
        InvalidInput: The folder holds something else, or cannot be made.
        CosmosError: Files cannot be written while the context lasts.
    """
    folder = folder.absolute()
    _check(folder, card)
    with ExitStack() as held:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _locked(folder.parent):
                _clear_away(folder)
                shop = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', suffix=_PARTIAL, dir=folder.parent))
                held.callback(shutil.rmtree, shop, ignore_errors=True)
                held.enter_context(_locked(shop))
        except OSError as error:
            raise InvalidInput('output', [Problem(str(folder), 'cannot be made', str(error))]) from error
        try:
            yield shop
            shop.chmod(0o755)  # temporary folders are private
            with _locked(folder.parent):
                _put(shop, folder, card)
        except OSError as error:
            raise CosmosError(f'making {folder} failed: {error}') from error


def _check(folder: Path, card: str) -> None:
    """Do nothing if the folder may be replaced: it is not there, empty, or holds such a card."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / card).is_file())):
        remedy = 'name a folder that is not there yet'
        raise InvalidInput('output', [Problem(str(folder), 'holds something else', remedy=remedy)])


def _clear_away(folder: Path) -> None:
    """Remove workshops whose process is gone: while it lives it holds a lock on its own."""
    for left in folder.parent.glob(f'.{glob.escape(folder.name)}.*{_PARTIAL}'):
        try:
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue  # none of ours
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # at work
        else:
            shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(lock)


def _put(shop: Path, folder: Path, card: str) -> None:
    """Put the finished folder in place of an earlier one, which is left in the workshop."""
    _check(folder, card)
    if not folder.exists():
        shop.replace(folder)
    elif not _exchange(shop, folder):
        _put_by_turns(shop, folder)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one go, which a killed process has done or not; False where that cannot be done."""
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    paths = (os.fsencode(path) for path in (one, other))
    return exchange(_FROM_HERE, next(paths), _FROM_HERE, next(paths), _RENAME_EXCHANGE) == 0


def _put_by_turns(shop: Path, folder: Path) -> None:
    """The same with two renames; the earlier folder comes back if that is interrupted."""
    with tempfile.TemporaryDirectory(prefix=f'.{folder.name}.', suffix='.old', dir=folder.parent) as place:
        old = Path(place) / folder.name
        try:
            folder.replace(old)
            shop.replace(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.replace(folder)
            raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among those who ask for this folder; on a file system without locks, side by side."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
