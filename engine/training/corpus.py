"""Recorded episodes as flat arrays, in the form in which training reads them thousands of times.

    data sets --contract--> composites [N, H, W, 3], numbers [N, ...], what they come from

Pictures are decoded and composed once, exactly as the policy composes what it sees.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from engine.contract import Contract
from engine.errors import CosmosError, InvalidInput, Problem
from engine.evaluation.open_loop_recorded import Track, episodes_of, track_of, track_problems
from engine.evaluation.recording_layouts import Episode, read_episode
from engine.evaluation.recording_signals import ARM_JOINTS
from engine.export.folders import workshop
from engine.observation.views import compose, in_shape

VERSION = 1
CARD, COMPOSITES, NUMBERS = 'corpus.json', 'composites.npy', 'numbers.npz'
DISTURBED = 'disturbed'
"""A column of this name says by 1 that something else than the policy moved the arm."""
HELD_OUT, TOGETHER = 20, 12
"""Of every so many episodes one is kept for validation, so many in a row: neighbours may share a scene, and what shares
one with what is trained on says little. The ends of a row still may."""

Report = Callable[[str, float], None]
Numbers = Mapping[str, NDArray[Any]]

_WIDTHS = {
    'joints': ARM_JOINTS,
    'gripper': 0,
    'commanded': ARM_JOINTS,
    'commanded_gripper': 0,
    'position': 3,
    'quaternion': 4,
}
_MOST_FAULTS = 50


@dataclass(frozen=True, eq=False)
class Corpus:
    """N frames of E episodes, frame after frame.

    Attributes:
        root: Its folder.
        card: As in `corpus.json`: contract, rates, origins, remarks.
        composites: [N, H, W, 3] bytes, RGB, on disk: what the policy would have composed.
        numbers: By name, float64 unless said otherwise: `joints` [N, 7] rad and `gripper` [N] closed fraction, both
            measured; `commanded` [N, 7] and `commanded_gripper` [N], where they were to be one row later; `position`
            [N, 3] m and `quaternion` [N, 4] (x, y, z, w) of the end effector; `episode` int64 [N], ascending; `frame`
            int64 [N] within it; `disturbed` bool [N]. What the recordings lack is not a number.
        instructions: Of each episode.
        fingerprint: Changes with everything but the pictures.
    """

    root: Path
    card: Mapping[str, Any]
    composites: NDArray[np.uint8]
    numbers: Numbers
    instructions: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.composites)

    @property
    def episode(self) -> NDArray[np.int64]:
        """[N], the episode of each frame."""
        return self.numbers['episode']

    @property
    def first(self) -> NDArray[np.int64]:
        """[E], the first frame of each episode."""
        return np.array([one['first'] for one in self.card['episodes']], np.int64)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[E], frames of each episode."""
        return np.array([one['frames'] for one in self.card['episodes']], np.int64)


def held_out(episodes: int) -> NDArray[np.bool_]:
    """Which of so many episodes are kept for validation: of 240 the last twelve, of fewer as large a share, or one."""
    numbers = np.arange(episodes)
    if episodes < HELD_OUT * TOGETHER:
        return numbers >= episodes - max(1, episodes // HELD_OUT)
    return numbers // TOGETHER % HELD_OUT == HELD_OUT - 1


# ---- Reading --------------------------------------------------------------------------------------------------------


def open_corpus(root: Path) -> Corpus:
    """Open a corpus; its pictures stay on disk.

    Raises:
        InvalidInput: It is none, or damaged, or of another version; lists every fault.
    """
    try:
        text = (root / CARD).read_text(encoding='utf-8')
        card = json.loads(text)
        raw = (root / NUMBERS).read_bytes()
        with np.load(root / NUMBERS) as file:
            numbers = {name: file[name] for name in file.files}
        composites = np.load(root / COMPOSITES, mmap_mode='r')
    except (OSError, ValueError, BadZipFile) as error:
        remedy = 'make it with cosmos3 train corpus'
        raise InvalidInput(f'corpus {root}', [Problem(str(root), 'cannot be read', str(error), '', remedy)]) from error
    problems = list(_card_problems(root, card, numbers, composites))
    if problems:
        raise InvalidInput(f'corpus {root}', problems)
    fingerprint = hashlib.sha256(text.encode() + raw).hexdigest()[:16]
    instructions = tuple(str(one['instruction']) for one in card['episodes'])
    return Corpus(root, card, composites, numbers, instructions, fingerprint)


def _card_problems(root: Path, card: Any, numbers: Numbers, composites: NDArray[Any]) -> Sequence[Problem]:
    where, remedy = str(root / CARD), 'make the corpus anew'
    if not isinstance(card, dict) or card.get('version') != VERSION:
        found = card.get('version') if isinstance(card, dict) else card
        return [Problem(f'{where}: version', 'is another', repr(found), str(VERSION), remedy)]
    wanted = {*_WIDTHS, 'episode', 'frame', DISTURBED}
    problems = [Problem(f'{root / NUMBERS}: {name}', 'is missing', '', '', remedy) for name in wanted - set(numbers)]
    count = card.get('frames')
    lengths = {COMPOSITES: len(composites), **{name: len(values) for name, values in numbers.items()}}
    problems += [
        Problem(f'{root}: {name}', 'has another number of frames', str(length), str(count), remedy)
        for name, length in lengths.items()
        if length != count
    ]
    if composites.dtype != np.uint8 or composites.shape[1:] != (*card.get('size', ()), 3):
        shape = f'{composites.dtype} {list(composites.shape)}'
        problems.append(Problem(str(root / COMPOSITES), 'has another shape', shape, str(card.get('size')), remedy))
    return problems


# ---- Making ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """One episode to be read."""

    path: Path
    episode: int
    contract: Contract
    instruction: str

    @property
    def name(self) -> str:
        return f'{self.path.name}/{self.episode}'


@dataclass(frozen=True, eq=False)
class _Found:
    """What one episode says, its pictures left out."""

    frames: int
    numbers: Numbers
    instruction: str
    commanded: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Drawing:
    """One episode whose pictures are to be written."""

    job: _Job
    frames: int
    file: Path
    at: int


def make_corpus(
    data_sets: Sequence[Path],
    contract: Contract,
    output: Path,
    workers: int = 1,
    report: Report | None = None,
    *,
    instruction: str = '',
) -> Corpus:
    """Read data sets through a contract into one corpus.

    The folder is there when it is complete, and not before; an earlier corpus in its place is replaced.

    Args:
        data_sets: LeRobot data sets (v3) in any known schema, or folders of a table and videos.
        contract: Whose views, joints and rate.
        output: Folder to make.
        workers: Processes.
        report: Told what is being done, and the share of it that is done.
        instruction: For episodes that have none.

    Raises:
        InvalidInput: An episode cannot be read, or does not fit the contract; lists the faults of all of them.
        CosmosError: The disk is full, or a process was killed.
    """
    tell = report or (lambda _what, _share: None)
    jobs = _jobs(data_sets, contract, instruction)
    with workshop(output, CARD) as shop:
        looked = _each(_survey, jobs, workers, lambda share: tell('tables', share))
        found = [one for one in looked if isinstance(one, _Found)]
        _raise([problem for one in looked if not isinstance(one, _Found) for problem in one])
        first = np.concatenate([[0], np.cumsum([one.frames for one in found])])
        height, width = contract.views.size
        file = shop / COMPOSITES
        np.lib.format.open_memmap(file, 'w+', np.uint8, (int(first[-1]), height, width, 3)).flush()
        start = file.stat().st_size - int(first[-1]) * height * width * 3
        drawings = [
            _Drawing(job, one.frames, file, start + int(at) * height * width * 3)
            for job, one, at in zip(jobs, found, first[:-1], strict=True)
        ]
        drawn = _each(_draw, drawings, workers, lambda share: tell('pictures', share))
        _raise([problem for problems in drawn for problem in problems])
        _save(shop / NUMBERS, _together(found))
        card = _card(jobs, found, first[:-1], contract)
        (shop / CARD).write_text(json.dumps(card, indent=1) + '\n', encoding='utf-8')
    return open_corpus(output)


def _raise(problems: Sequence[Problem]) -> None:
    if not problems:
        return
    more = len(problems) - _MOST_FAULTS
    listed = [*problems[:_MOST_FAULTS], *([Problem('data sets', f'have {more} more faults')] if more > 0 else [])]
    raise InvalidInput('corpus', listed)


def _jobs(data_sets: Sequence[Path], contract: Contract, instruction: str) -> list[_Job]:
    problems, jobs = list[Problem](), list[_Job]()
    for path in data_sets:
        try:
            jobs += [_Job(path, episode, contract, instruction) for episode in episodes_of(path)]
        except InvalidInput as error:
            problems += error.problems
    if not data_sets:
        problems.append(Problem('data sets', 'are none', '', 'one or more folders'))
    _raise(problems)
    return jobs


def _each[Job, Result](
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, tell: Callable[[float], None]
) -> list[Result]:
    """What comes of every job, in their order."""
    tell(0.0)
    found = dict[int, Result]()
    if workers <= 1:
        for number, job in enumerate(jobs):
            found[number] = work(job)
            tell(len(found) / len(jobs))
        return list(found.values())
    pool = ProcessPoolExecutor(min(workers, len(jobs)), get_context('spawn'), _by_itself)
    try:
        futures = {pool.submit(work, job): number for number, job in enumerate(jobs)}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            tell(len(found) / len(jobs))
    except BrokenProcessPool as error:
        raise CosmosError(f'a process that read episodes ended before its time ({error})') from error
    finally:
        pool.shutdown(cancel_futures=True)
    return [found[number] for number in range(len(jobs))]


def _by_itself() -> None:
    """Threads for each picture, in processes that are as many as there are cores, only wait for each other."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


# ---- One episode ----------------------------------------------------------------------------------------------------


def _open(job: _Job) -> Episode:
    """Read an episode; the caller closes its cameras."""
    try:
        return read_episode(job.path, job.episode)
    except InvalidInput as error:
        raise InvalidInput(job.name, error.problems) from error
    except CosmosError as error:
        raise InvalidInput(job.name, [Problem(job.name, 'cannot be read', str(error))]) from error


def _close(found: Episode) -> None:
    for camera in found.cameras.values():
        camera.close()


def _survey(job: _Job) -> _Found | tuple[Problem, ...]:
    """Everything of an episode but its pictures, or what is wrong with it."""
    try:
        found = _open(job)
    except InvalidInput as error:
        return error.problems
    _close(found)
    track = track_of(job.name, found)
    missing = [name for name in job.contract.views.streams if name not in found.views]
    problems = [*track_problems(track, job.contract)]
    problems += [
        Problem(
            f'{job.name}: view {name}', 'is missing', ', '.join(found.views) or 'none', '', '; '.join(found.warnings)
        )
        for name in missing
    ]
    instruction = track.instruction.strip() or job.instruction.strip()
    if not instruction:
        problems.append(Problem(job.name, 'has no instruction', remedy='give one for all that have none'))
    if track.joints is not None and track.joints.shape[1] != ARM_JOINTS:
        problems.append(Problem(f'{job.name}: joints', 'are not seven', str(track.joints.shape[1])))
    if problems:
        return tuple(problems)
    length = min([len(track), *(found.cameras[found.views[name]].length for name in job.contract.views.streams)])
    numbers = _numbers(track.cut(length), length) | {DISTURBED: _disturbed(found, length)}
    commanded = 'joints' if job.contract.embodiment.action_space == 'joint_position' else 'poses'
    return _Found(length, numbers, instruction, commanded in track.commanded, track.warnings + found.warnings)


def _numbers(track: Track, length: int) -> dict[str, NDArray[Any]]:
    parts = {
        'joints': track.joints,
        'gripper': track.gripper,
        'commanded': _for_all(track.next_joints, track.joints),
        'commanded_gripper': _for_all(track.next_gripper, track.gripper),
        'position': None if track.poses is None else track.poses.position,
        'quaternion': None if track.poses is None else track.poses.quaternion,
    }
    absent = {name: np.full((length, width) if width else length, np.nan) for name, width in _WIDTHS.items()}
    return {name: absent[name] if part is None else np.asarray(part, np.float64) for name, part in parts.items()}


def _for_all(ahead: NDArray[np.float64] | None, here: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """What is asked for in every row; the last asks for what the one before it did, or for nothing new."""
    if ahead is None or here is None:
        return None
    return np.concatenate([ahead, ahead[-1:] if len(ahead) else here[-1:]])


def _disturbed(found: Episode, length: int) -> NDArray[np.bool_]:
    column = found.columns.get(DISTURBED)
    if column is None or column.dtype.kind not in 'biuf':
        return np.zeros(length, np.bool_)
    return np.asarray(column.reshape(len(column), -1)[:length, 0].astype(np.float64) > 0)


def _draw(drawing: _Drawing) -> tuple[Problem, ...]:
    """Write the pictures of an episode in their place; what is wrong with them."""
    views, job = drawing.job.contract.views, drawing.job
    try:
        found = _open(job)
    except InvalidInput as error:
        return error.problems
    index = 0
    try:
        with drawing.file.open('r+b') as stream:
            stream.seek(drawing.at)
            for index in range(drawing.frames):
                pictures = {name: found.cameras[found.views[name]].frame(index) for name in views.streams}
                shaped = in_shape(pictures, views.composition, views.size)
                stream.write(np.ascontiguousarray(compose(shaped, views.composition, views.size)).data)
    except CosmosError as error:
        return (Problem(f'{job.name}: frame {index}', 'has no picture', str(error)),)
    finally:
        _close(found)
    return ()


# ---- All of them ----------------------------------------------------------------------------------------------------


def _together(found: Sequence[_Found]) -> dict[str, NDArray[Any]]:
    frames = [one.frames for one in found]
    numbers = {name: np.concatenate([one.numbers[name] for one in found]) for name in (*_WIDTHS, DISTURBED)}
    numbers['episode'] = np.repeat(np.arange(len(found), dtype=np.int64), frames)
    numbers['frame'] = np.concatenate([np.arange(count, dtype=np.int64) for count in frames])
    return numbers


def _save(file: Path, numbers: Numbers) -> None:
    with file.open('wb') as stream:
        np.savez(stream, allow_pickle=False, **numbers)


def _card(
    jobs: Sequence[_Job], found: Sequence[_Found], first: NDArray[np.int64], contract: Contract
) -> dict[str, Any]:
    paths = list(dict.fromkeys(job.path for job in jobs))
    warnings = Counter(text for one in found for text in one.warnings)
    together = {name: sum(bool(np.isnan(one.numbers[name]).all()) for one in found) for name in _WIDTHS}
    return {
        'version': VERSION,
        'contract': {'name': contract.name, 'fingerprint': contract.fingerprint},
        'composition': contract.views.composition,
        'size': list(contract.views.size),
        'fps': contract.timing.fps,
        'frames': int(sum(one.frames for one in found)),
        'disturbed': int(sum(one.numbers[DISTURBED].sum() for one in found)),
        'commanded_episodes': sum(one.commanded for one in found),
        'episodes_without': {name: count for name, count in together.items() if count},
        'remarks': dict(warnings.most_common()),
        'origins': [_origin(path) for path in paths],
        'episodes': [
            {
                'instruction': one.instruction,
                'origin': paths.index(job.path),
                'number': job.episode,
                'first': int(at),
                'frames': one.frames,
            }
            for job, one, at in zip(jobs, found, first, strict=True)
        ],
    }


def _origin(path: Path) -> dict[str, Any]:
    """A data set's name, and what it says of where it comes from itself."""
    try:
        own = json.loads((path / 'meta' / 'cosmos3.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        own = {}
    return {'name': path.resolve().name, 'own': own}
