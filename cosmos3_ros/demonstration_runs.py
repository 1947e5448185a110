"""`cosmos3 make-dataset`: demonstrations of the simulated Franka's tasks by the scripted hand, as a LeRobot data set.

workers: episodes, whole --> numbers, finished videos --> this process: data set and journal, in the order of the seeds
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from cosmos3_ros.demonstration_leads import check_lead
from cosmos3_ros.demonstrations import DISTURBED, Demonstrator, Take, Terms
from cosmos3_ros.eval_runs import mixed
from cosmos3_ros.recorder_episodes import episode_plan, player_of, setting_of
from cosmos3_ros.safety_expert import check_arm
from engine.contract import load_contract
from engine.datasets.writer import DatasetWriter, Feature, Plan
from engine.errors import CosmosError, InvalidInput, Problem
from engine.evaluation.closed_loop import EpisodeRecord
from engine.evaluation.closed_loop_runs import Journal
from engine.evaluation.tasks import TASKS, Episode, Jitter, check_tasks, make_episode

Bars = Callable[[], AbstractContextManager[Callable[[str, float], None]]]

MADE_BY = 'cosmos3 make-dataset'
START_SEED = 100_000
"""Seed of the first demonstration: evaluations count from 0, and shall never meet an episode that was learned from."""
JOURNAL = Path('meta/cosmos3_episodes.jsonl')
"""What came of every episode that was run, those that were dropped included."""

_UNDER_WAY = '.under_way'  # folder of the videos of episodes that are not part of the data set yet
_PACKAGES = ('numpy', 'scipy', 'mujoco', 'av')


@dataclass(frozen=True)
class DatasetOptions:
    """What is to be made.

    Attributes:
        output: Folder of the data set; episodes that it has already are not run again.
        terms: How episodes are demonstrated.
        tasks: Their names.
        episodes: Of each task; those that are dropped count.
        start_seed: Seed of the first; the others count up from it.
        jitter: How much the beginnings differ.
        share_scene: How many seeds in a row have one scene and are about its objects in turn.
        only_successes: Whether episodes are dropped that did not succeed, or in which the hand never took over.
        workers: Processes that run episodes; with 1 it is this one.
    """

    output: Path
    terms: Terms = field(default_factory=Terms)
    tasks: tuple[str, ...] = tuple(TASKS)
    episodes: int = 100
    start_seed: int = START_SEED
    jitter: Jitter = field(default_factory=lambda: Jitter(start_rad=0.25, light=0.15))
    share_scene: int = 1
    only_successes: bool = True
    workers: int = 1


@dataclass(frozen=True)
class Made:
    """What there is now.

    Attributes:
        root: The data set.
        records: Of every episode that was asked for, in their order.
        dropped: Task and seed of those that are not part of it.
        episodes: How many are part of it.
        rows: Of all of them.
        run: How many of them this call has run.
    """

    root: Path
    records: Sequence[EpisodeRecord]
    dropped: Sequence[tuple[str, int]]
    episodes: int
    rows: int
    run: int


def make_dataset(options: DatasetOptions, bars: Bars) -> Made:
    """Run all episodes that are missing, and add them to the data set.

    Args:
        options: What to do.
        bars: Makes progress bars.

    Raises:
        CosmosError: Something that was asked for does not work; or the folder holds another data set.
    """
    _check(options)
    seeds = range(options.start_seed, options.start_seed + options.episodes)
    # Seed by seed, so that a run cut short has some of each task, and a longer one begins like a shorter one.
    every = [make_episode(task, seed, options.jitter, options.share_scene) for task in options.tasks for seed in seeds]
    episodes = mixed(every)
    plan = dataset_plan(options)
    writer = DatasetWriter(options.output, plan, go_on=True)
    journal = Journal(options.output / JOURNAL, plan.origin)
    there = {(str(one['suite_task']), int(one['seed'])) for one in writer.notes}
    # An episode that is there without a word in the journal is one that a call ended on: its numbers are run again.
    missing = [one for one in episodes if one.key not in journal.records]
    run = len(missing)
    folder = _emptied(options.output / _UNDER_WAY)
    try:
        with bars() as report:
            report('episodes', 1.0 - len(missing) / len(episodes))
            for done, take in enumerate(_takes(missing, options, folder), start=1):
                shown = take.record.success and not take.led
                if take.record.key not in there and (shown or not options.only_successes):
                    _keep(writer, missing[done - 1], take)
                for path in take.videos.values():
                    path.unlink(missing_ok=True)
                journal.add(take.record)
                report('episodes', 1.0 - (len(missing) - done) / len(episodes))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    records = [journal.records[one.key] for one in episodes]
    kept = {(str(one['suite_task']), int(one['seed'])) for one in writer.notes}
    dropped = [record.key for record in records if record.key not in kept]
    return Made(options.output, records, dropped, writer.episodes, writer.frames, run)


def dataset_plan(options: DatasetOptions) -> Plan:
    """What the data set holds, and what its episodes depend on beside task and seed.

    Raises:
        CosmosError: The contract cannot be read, or is for another robot.
    """
    terms = options.terms
    contract = load_contract(terms.contract)
    check_arm(contract)
    if terms.led:
        check_lead(contract.timing, terms.loop)
    player = {
        'made_by': MADE_BY,
        'policy': 'expert',
        'loop': asdict(terms.loop),
        'tasks': [task for task in TASKS if task in options.tasks],
        'start_seed': options.start_seed,
        'jitter': asdict(options.jitter),
        **({'share_scene': options.share_scene} if options.share_scene > 1 else {}),
        'linger_s': terms.linger_s,
        'disturbed': terms.disturbed,
        **({'led': {'share': terms.led, **player_of(terms.leader)}} if terms.led else {}),
        'only_successes': options.only_successes,
        'versions': {name: version(name) for name in _PACKAGES},
    }
    plan = episode_plan(contract, terms.picture, player)
    return replace(plan, features={**plan.features, DISTURBED: Feature((DISTURBED,))})


def _keep(writer: DatasetWriter, episode: Episode, take: Take) -> None:
    notes: dict[str, str | float | bool] = {'suite_task': episode.task, 'seed': episode.seed, 'target': episode.target}
    notes |= {'setting': setting_of(episode), 'success': take.record.success, 'disturbances': take.disturbances}
    with writer.episode(episode.instruction, **notes) as target:
        for camera, path in take.videos.items():
            target.copy_video(camera, path, take.stats[camera])
        for row in range(take.length):
            target.add({key: values[row] for key, values in take.columns.items()}, {})


def _emptied(folder: Path) -> Path:
    """The folder, without what a call left in it that was ended."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _takes(episodes: Sequence[Episode], options: DatasetOptions, folder: Path) -> Iterator[Take]:
    """Episodes as they were run, in their order, whoever ran them."""
    if not episodes:
        return
    if options.workers == 1:
        demonstrator = Demonstrator(options.terms, folder)
        try:
            yield from map(demonstrator.take, episodes)
        finally:
            demonstrator.close()
        return
    # Processes that were forked would share locks and OpenGL contexts with this one.
    context = multiprocessing.get_context('spawn')
    workers = min(options.workers, len(episodes))
    pool = ProcessPoolExecutor(workers, context, _begin, (options.terms, folder))
    try:
        yield from pool.map(_work, episodes)
    except BrokenProcessPool as error:
        raise CosmosError(
            f'a process that ran episodes ended before its time ({error}) -> call again to go on'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_DEMONSTRATORS: list[Demonstrator | CosmosError] = []  # the one of this process, if it is a worker


def _begin(terms: Terms, folder: Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _DEMONSTRATORS[:] = [Demonstrator(terms, folder)]
        atexit.register(_finish)
    except CosmosError as error:  # told by the first episode: a pool says of its beginning only that it broke
        _DEMONSTRATORS[:] = [error]
    except Exception as error:  # of whatever loads the one who leads
        _DEMONSTRATORS[:] = [CosmosError(f'a process cannot run episodes: {type(error).__name__}: {error}')]


def _finish() -> None:
    for one in _DEMONSTRATORS:
        if isinstance(one, Demonstrator):
            one.close()
    _DEMONSTRATORS.clear()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for episodes for ever."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _work(episode: Episode) -> Take:
    demonstrator = _DEMONSTRATORS[0]
    if isinstance(demonstrator, CosmosError):
        raise CosmosError(str(demonstrator))
    return demonstrator.take(episode)


def _check(options: DatasetOptions) -> None:
    check_tasks(options.tasks)
    terms, jitter = options.terms, options.jitter
    ranges: dict[str, tuple[Any, float, float]] = {
        'episodes': (options.episodes, 1, 1_000_000),
        'start_seed': (options.start_seed, 0, 2**31 - 1),
        'workers': (options.workers, 1, 1024),
        'share_scene': (options.share_scene, 1, 1024),
        'replan_rows': (terms.loop.replan_rows, 1, 1024),
        'latency': (terms.loop.latency_s, 0.0, 10.0),
        'linger': (terms.linger_s, 0.0, 10.0),
        'perturb': (terms.disturbed, 0.0, 1.0),
        'led': (terms.led, 0.0, 1.0),
        'start_jitter': (jitter.start_rad, 0.0, 0.3),
        'light_jitter': (jitter.light, 0.0, 1.0),
        'camera_jitter': (jitter.camera_m, 0.0, 0.2),
        'camera_turn': (jitter.camera_rad, 0.0, 0.5),
    }
    problems = [
        Problem(name, 'out of range', str(value), f'{low} to {high}')
        for name, (value, low, high) in ranges.items()
        if not low <= value <= high
    ]
    if bool(terms.led) != bool(terms.led_by):
        remedy = 'name both --led and --led-by, or none'
        problems.append(Problem('led', 'goes with whoever leads', f'{terms.led:g}, by {terms.led_by!r}', remedy=remedy))
    if not options.tasks:
        problems.append(Problem('task', 'none is named', '', ', '.join(TASKS)))
    if problems:
        raise InvalidInput('demonstrations', problems)
