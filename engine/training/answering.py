"""Asks the scripted hand in recorded moments for every object that lies there; see :mod:`engine.training.answers`.

data sets of `cosmos3 make-dataset` (where everything lay) + corpus (how the arm moved) --hand--> answers
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from engine.contract import Contract
from engine.errors import CosmosError, InvalidInput, Problem
from engine.evaluation import franka_scene as scene
from engine.evaluation.expert import Course, Expert
from engine.evaluation.expert_paths import Seen
from engine.evaluation.simulated_franka import Pose
from engine.evaluation.tasks import TASKS, Episode, wordings
from engine.export.folders import workshop
from engine.training.answers import CARD, NUMBERS, VERSION, Answers, open_answers
from engine.training.corpus import Corpus

Floats = NDArray[np.float64]
Report = Callable[[str, float], None]

TASK = 'reach'
"""The only task in which nothing but the arm moves, so that what was recorded stays true whatever is asked for. (Not so
where a leader pushed things about: answers then reach for where they lay at first.)"""

_NOTES = ('episode_index', 'suite_task', 'seed', 'target', 'setting', 'tasks', 'length')
_HEIGHT = {thing.name: thing.height for thing in scene.OBJECTS}
_AROUND_S: Floats = 0.01 * np.arange(
    -2, 3, dtype=np.float64
)  # of a motion under way, what tells its speed and how that changes
_LONGEST_S = 5.0
_AT_ONCE = 16  # episodes


@dataclass(frozen=True, eq=False)
class _Moments:
    """What is known of one episode: `at` are the rows in which the hand is asked."""

    first: int
    seed: int
    target: str
    setting: scene.Setting
    at: NDArray[np.int64]
    joints: Floats
    gripper: Floats
    commanded: Floats
    disturbed: NDArray[np.bool_]


@dataclass(frozen=True)
class _Hand:
    """Rate and rows of chunks."""

    step_s: float
    rows: int


def make_answers(
    data_sets: Sequence[Path],
    corpus: Corpus,
    contract: Contract,
    output: Path,
    *,
    every: int = 1,
    workers: int = 1,
    report: Report = lambda _what, _share: None,
) -> Answers:
    """Ask for every object that an episode was not about, and in disturbed rows for the one that it was about, too.

    Args:
        data_sets: What the corpus was made of, in the same order; of `cosmos3 make-dataset --task reach`.
        corpus: In whose frames it is asked.
        contract: Of the corpus; joint positions of the simulated Franka.
        output: Folder to make; earlier answers there are replaced.
        every: In each so many frames of the corpus: those of whose pictures there are latents.
        workers: Processes.
        report: Told what is being done, and the share of it that is done.

    Raises:
        InvalidInput: Data sets, corpus and contract do not fit together; lists every fault.
        CosmosError: The disk is full, or a process was killed.
    """
    _check(data_sets, corpus, contract, every)
    jobs = list(_moments(data_sets, corpus, every))
    hand = _Hand(1.0 / contract.timing.fps, contract.timing.chunk_rows)
    parts = [jobs[begin : begin + _AT_ONCE] for begin in range(0, len(jobs), _AT_ONCE)]
    report('answers', 0.0)
    found = list[tuple[int, str, Floats]]()
    for number, some in enumerate(_each(parts, hand, workers), start=1):
        found += some
        report('answers', number / len(parts))
    if not found:
        raise InvalidInput('answers', [Problem('answers', 'are none', remedy='every object is out of reach')])
    texts = sorted({text for _, text, _ in found})
    numbers = {text: number for number, text in enumerate(texts)}
    shape = (len(found), hand.rows, len(scene.ARM) + 1)
    rows = np.array([rows for _, _, rows in found], np.float32).reshape(shape)
    with workshop(output, CARD) as shop:
        with (shop / NUMBERS).open('wb') as stream:
            np.savez(
                stream,
                allow_pickle=False,
                frames=np.array([frame for frame, _, _ in found], np.int64),
                text=np.array([numbers[text] for _, text, _ in found], np.int64),
                joints=rows[..., :-1],
                gripper=rows[..., -1],
            )
        names = {'name': contract.name, 'fingerprint': contract.fingerprint}
        card = {'version': VERSION, 'corpus': corpus.fingerprint, 'contract': names, 'every': every, 'texts': texts}
        (shop / CARD).write_text(json.dumps(card, indent=1) + '\n', encoding='utf-8')
    return open_answers(output)


def _each(parts: Sequence[Sequence[_Moments]], hand: _Hand, workers: int) -> Iterator[list[tuple[int, str, Floats]]]:
    if workers <= 1:
        yield from (_answer(part, hand) for part in parts)
        return
    pool = ProcessPoolExecutor(max(1, min(workers, len(parts))), get_context('spawn'))
    try:
        yield from pool.map(_answer, parts, [hand] * len(parts))
    except BrokenProcessPool as error:
        raise CosmosError(f'a process that asked the hand ended before its time ({error})') from error
    finally:
        pool.shutdown(cancel_futures=True)


# ---- What there is --------------------------------------------------------------------------------------------------


def _check(data_sets: Sequence[Path], corpus: Corpus, contract: Contract, every: int) -> None:
    problems = []
    if every < 1:
        problems.append(Problem('every', 'is out of range', str(every), '1 or more'))
    if contract.embodiment.action_space != 'joint_position' or contract.robot.joints != scene.ARM_JOINTS:
        what = f'{contract.embodiment.action_space} of {", ".join(contract.robot.joints)}'
        problems.append(Problem('contract', 'is not of the simulated Franka', what, 'joint_position of the Panda'))
    if corpus.card['fps'] != contract.timing.fps:
        given, allowed = f'{contract.timing.fps} rows a second', str(corpus.card['fps'])
        problems.append(Problem('contract', 'has another rate than the corpus', given, allowed))
    made_of, named = [str(one['name']) for one in corpus.card['origins']], [path.resolve().name for path in data_sets]
    if made_of != named:
        remedy = 'name what the corpus was made of, in the same order'
        problems.append(
            Problem('data sets', 'are not those of the corpus', ', '.join(named), ', '.join(made_of), remedy)
        )
    if problems:
        raise InvalidInput('answers', problems)


def _moments(data_sets: Sequence[Path], corpus: Corpus, every: int) -> Iterator[_Moments]:
    """What there is to be asked in, episode after episode."""
    notes = [_notes(path) for path in data_sets]
    numbers = corpus.numbers
    for one in corpus.card['episodes']:
        first, length = int(one['first']), int(one['frames'])
        note = notes[one['origin']].get(int(one['number']), {})
        same = note and note['tasks'][0] == one['instruction'] and note['length'] >= length
        if not same or None in note.values():
            what = 'is not that of the corpus'
            remedy = 'name what the corpus was made of, or make the corpus anew'
            raise InvalidInput(
                'answers', [Problem(f'episode {one["number"]} of {data_sets[one["origin"]]}', what, remedy=remedy)]
            )
        setting = json.loads(note['setting'])
        rows = slice(first, first + length)
        frames = np.arange(first, first + length)
        yield _Moments(
            first,
            int(note['seed']),
            str(note['target']),
            scene.Setting(tuple(setting['joints']), {name: tuple(at) for name, at in setting['places'].items()}),
            np.flatnonzero(frames % every == 0),
            np.asarray(numbers['joints'][rows], np.float64),
            np.asarray(numbers['gripper'][rows], np.float64),
            np.asarray(numbers['commanded'][rows], np.float64),
            np.asarray(numbers['disturbed'][rows], np.bool_),
        )


def _notes(path: Path) -> dict[int, dict[str, Any]]:
    """What a data set says of its episodes, by number.

    Raises:
        InvalidInput: It is not of `cosmos3 make-dataset`, or of other tasks.
    """
    remedy = f'cosmos3 make-dataset --task {TASK}'
    try:
        table = pyarrow.dataset.dataset(path / 'meta' / 'episodes', format='parquet').to_table(columns=list(_NOTES))
    except (OSError, ValueError, LookupError, pyarrow.ArrowException) as error:
        what = 'does not say where everything lay'
        raise InvalidInput('answers', [Problem(str(path), what, str(error)[:200], '', remedy)]) from error
    found = table.to_pylist()
    others = sorted({str(one['suite_task']) for one in found} - {TASK})
    if others:
        what = 'has tasks in which more than the arm moves'
        raise InvalidInput('answers', [Problem(str(path), what, ', '.join(others), TASK, remedy)])
    return {int(one['episode_index']): one for one in found}


# ---- The hand -------------------------------------------------------------------------------------------------------


def _answer(part: Sequence[_Moments], hand: _Hand) -> list[tuple[int, str, Floats]]:
    """Frame, text and chunk [rows, J + 1] of every answer."""
    expert = Expert(hand.step_s, hand.rows, latency_s=0.0, ahead_s=hand.step_s * hand.rows)
    return [answer for one in part for answer in _answers_of(one, expert, hand)]


def _answers_of(one: _Moments, expert: Expert, hand: _Hand) -> Iterator[tuple[int, str, Floats]]:
    path = CubicSpline(hand.step_s * np.arange(len(one.commanded) + 1), np.vstack([one.joints[:1], one.commanded]))
    objects = {
        name: Pose(np.array([x, y, _HEIGHT[name]]), np.array([0.0, 0.0, 0.0, 1.0]))
        for name, (x, y, _) in one.setting.places.items()
    }
    rng = np.random.default_rng([one.seed, 8])
    for row in one.at:
        now = hand.step_s * int(row)
        seen = Seen(round(now * 1e9), {}, one.joints[row], float(one.gripper[row]), objects)
        times, speed = now + _AROUND_S, path(now, 1)
        # As fast as it is: with what it was about to do besides, it would first do more of that.
        under_way = Course(
            times, path(now) + _AROUND_S[:, None] * speed, np.array([now]), np.array([seen.gripper]), now
        )
        for target in TASKS[TASK].targets:
            words = str(rng.choice(wordings(TASK, target)))
            if target == one.target and not one.disturbed[row]:
                continue  # that is what was recorded
            expert.begin(Episode(TASK, one.seed, target, words, one.setting))
            try:
                expert.take_over(seen, under_way)
            except InvalidInput:  # out of reach from here
                continue
            if expert.end_s - now > _LONGEST_S:  # a way that leads far around: not what anybody should learn
                continue
            rows = expert.act(seen)
            yield one.first + int(row), words, np.column_stack([rows.positions, rows.grippers])
