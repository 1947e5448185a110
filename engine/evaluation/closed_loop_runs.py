"""Many episodes, one after another or side by side, each on disk as soon as it is done, so that a crash costs one."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from engine.errors import CosmosError, InvalidInput, Problem
from engine.evaluation.closed_loop import EpisodeRecord, Runner
from engine.evaluation.tasks import Episode

EPISODES_FILE = 'episodes.jsonl'

MakeRunner = Callable[[], Runner]
"""Makes what runs episodes, in whatever process it is called; it can be pickled."""


class Journal:
    """Records on disk, one a line, behind a line that says of which run; what is there already is not run again."""

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        """Open it, or begin it.

        Args:
            path: The file.
            run: What the records depend on beside task and seed, in plain values.

        Raises:
            InvalidInput: It holds another run, or is damaged.
        """
        self._path, self.records = path, dict[tuple[str, int], EpisodeRecord]()
        header = json.loads(json.dumps({'run': dict(run)}))
        if not path.exists():
            path.write_text(json.dumps(header) + '\n', encoding='utf-8')
            return
        found, records = _read(path)
        if found != header:
            raise InvalidInput(str(path), run_differences(found.get('run', {}), header['run']))
        self.records = {one.key: one for one in records}
        _mend(path)

    def add(self, record: EpisodeRecord) -> None:
        """Keep a record: the whole line at once, and on the disk before this returns."""
        self.records[record.key] = record
        line = (json.dumps(record.document()) + '\n').encode()
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)


def read_journal(path: Path) -> tuple[dict[str, Any], list[EpisodeRecord]]:
    """What a run was, and its records, in the order of tasks and seeds.

    Raises:
        InvalidInput: There is no such file, or it is damaged.
    """
    if not path.is_file():
        raise InvalidInput(str(path), [Problem('episodes', 'there are none', remedy='name the folder of a run')])
    found, records = _read(path)
    return dict(found.get('run', {})), sorted(records, key=lambda one: one.key)


def _read(path: Path) -> tuple[dict[str, Any], list[EpisodeRecord]]:
    lines = path.read_text(encoding='utf-8').splitlines()
    try:
        header = json.loads(lines[0]) if lines else {}
        records = [EpisodeRecord.from_document(json.loads(line)) for line in lines[1:] if _is_whole(line)]
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput(str(path), [Problem('episodes', 'cannot be read', str(error))]) from error
    return header, records


def _is_whole(line: str) -> bool:
    return line.startswith('{') and line.endswith('}')


def _mend(path: Path) -> None:
    """Drop half a line, which a call leaves that ended in the middle of one."""
    text = path.read_text(encoding='utf-8')
    whole = ''.join(f'{line}\n' for line in text.splitlines() if _is_whole(line))
    if whole != text:
        beside = path.with_name(f'.{path.name}.{os.getpid()}.partial')
        beside.write_text(whole, encoding='utf-8')
        beside.replace(path)


def run_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Problem]:
    """In what the run that lies in a folder differs from the one that is wanted; never empty."""
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    remedy = 'name another folder, or ask for the same again'
    return [
        Problem(key, 'is another in the run that lies there', str(found.get(key)), str(wanted.get(key)), remedy)
        for key in keys
    ] or [Problem('run', 'is not stated', remedy=remedy)]


def fill(
    journal: Journal,
    episodes: Sequence[Episode],
    make: MakeRunner,
    workers: int = 1,
    report: Callable[[float], None] | None = None,
) -> list[EpisodeRecord]:
    """Run those episodes that the journal lacks.

    Args:
        journal: Where records go.
        episodes: All that there shall be.
        make: Makes a runner.
        workers: Processes; with 1 it is this one.
        report: Told the share that is done, if anybody wants to know.

    Returns:
        The records of `episodes`, in their order, however they came about.

    Raises:
        CosmosError: A process ended before its time; a further call goes on.
    """
    missing = [one for one in episodes if one.key not in journal.records]
    tell = report or (lambda _share: None)
    tell(1.0 - len(missing) / max(1, len(episodes)))
    for done, record in enumerate(_run(missing, make, workers), start=1):
        journal.add(record)
        tell(1.0 - (len(missing) - done) / len(episodes))
    return [journal.records[one.key] for one in episodes]


def _run(episodes: Sequence[Episode], make: MakeRunner, workers: int) -> Iterator[EpisodeRecord]:
    """Records as they come, in any order if several processes are at work."""
    if not episodes:
        return
    if workers == 1:
        runner = make()
        try:
            yield from (runner.run(episode) for episode in episodes)
        finally:
            runner.close()
        return
    # Processes that were forked would share locks and OpenGL contexts with this one.
    context = multiprocessing.get_context('spawn')
    pool = ProcessPoolExecutor(min(workers, len(episodes)), context, _begin, (make,))
    try:
        for future in as_completed([pool.submit(_work, episode) for episode in episodes]):
            yield future.result()
    except BrokenProcessPool as error:
        raise CosmosError(
            f'a process that ran episodes ended before its time ({error}) -> call again to go on'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_RUNNERS: list[Runner | CosmosError] = []  # the one of this process, if it is a worker


def _begin(make: MakeRunner) -> None:
    try:
        _RUNNERS[:] = [make()]
        atexit.register(_finish)
    except CosmosError as error:  # told by the first episode: a pool says of its beginning only that it broke
        _RUNNERS[:] = [error]


def _work(episode: Episode) -> EpisodeRecord:
    runner = _RUNNERS[0]
    if isinstance(runner, CosmosError):
        raise CosmosError(str(runner))
    try:
        return runner.run(episode)
    finally:
        # The renderer, loaded meanwhile, closes its display at exit: pictures have to be freed before it does.
        atexit.unregister(_finish)
        atexit.register(_finish)


def _finish() -> None:
    for one in _RUNNERS:
        if not isinstance(one, CosmosError):
            one.close()
    _RUNNERS.clear()
