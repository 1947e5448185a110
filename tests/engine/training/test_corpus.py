"""Corpora: what the policy would see, what the recordings say, whole or not at all, every fault by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.contract import Contract, load_contract
from engine.datasets.writer import DatasetWriter, Feature, Plan
from engine.errors import InvalidInput
from engine.evaluation.recording_signals import VIEWS
from engine.evaluation.recordings import open_recording
from engine.training.corpus import CARD, COMPOSITES, NUMBERS, held_out, make_corpus, open_corpus

FPS = 15
WORDS = ('reach the red cube', 'push the blue ball')
HOME = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.8, 0.8])
POSE = ('x', 'y', 'z', 'roll', 'pitch', 'yaw')
ARM = (*(f'joint{number}' for number in range(1, 8)), 'gripper')


def write_set(
    root: Path,
    lengths: Sequence[int] = (9, 12),
    words: Sequence[str] = WORDS,
    *,
    fps: float = FPS,
    size: tuple[int, int] = (128, 224),
    disturbed: bool = False,
) -> Path:
    """A data set in our own words: an arm that swings while its pictures change in every frame."""
    features = {
        'observation.state': Feature(ARM),
        'observation.end_effector': Feature(POSE),
        'action': Feature(ARM),
    } | ({'disturbed': Feature(('disturbed',))} if disturbed else {})
    cameras = {f'observation.images.{view}': size for view in VIEWS}
    writer = DatasetWriter(root, Plan(fps, features, cameras, origin={'recorded': 'for a test'}))
    noise = np.random.default_rng(0)
    for number, (length, text) in enumerate(zip(lengths, words, strict=True)):
        with writer.episode(text) as episode:
            for row in range(length):
                joints = HOME + 0.1 * np.sin((row + number) / 10 + np.arange(7))
                ahead = HOME + 0.1 * np.sin((row + 1 + number) / 10 + np.arange(7))
                closed = min(1.0, row / length)
                values = {
                    'observation.state': np.append(joints, closed),
                    'observation.end_effector': np.array([0.4 + 0.01 * row, 0.1, 0.3, 0.1, 0.0, 0.2]),
                    'action': np.append(ahead, closed),
                } | ({'disturbed': np.array([float(3 <= row < 5)])} if disturbed else {})
                pictures = {key: picture(row, key, noise, size) for key in cameras}
                episode.add(values, pictures)
    return root


def picture(row: int, key: str, noise: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Coarse noise that becomes brighter from row to row."""
    coarse = noise.integers(0, 120, (size[0] // 16, size[1] // 16, 3))
    return (np.kron(coarse, np.ones((16, 16, 1))) + 4 * row + len(key)).astype(np.uint8)


@pytest.fixture(scope='module')
def contract() -> Contract:
    return load_contract('micro_joint_pos')


@pytest.fixture(scope='module')
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp('sets') / 'swings', disturbed=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_composite_is_what_the_policy_composes(
    data_set: Path, contract: Contract, model: engine.Cosmos3, observe: Callable[..., Any], tmp_path: Path
):
    corpus = make_corpus([data_set], contract, tmp_path / 'corpus')
    policy = model.policy(contract)
    assert corpus.composites.shape == (21, *contract.views.size, 3)
    for number, first in enumerate(corpus.first):
        with open_recording(data_set, episode=number) as recording:
            for index, frame in enumerate(recording):
                wanted = policy.composite(observe(images=frame.views))
                assert np.array_equal(corpus.composites[first + index], wanted)


def test_pictures_of_another_shape_are_letter_boxed_as_the_policy_does_it(
    contract: Contract, model: engine.Cosmos3, observe: Callable[..., Any], tmp_path: Path
):
    square = write_set(tmp_path / 'square', (2,), WORDS[:1], size=(96, 96))
    corpus = make_corpus([square], contract, tmp_path / 'corpus')
    with open_recording(square) as recording:
        wanted = model.policy(contract).composite(observe(images=recording.frame(1).views))
    assert np.array_equal(corpus.composites[1], wanted)


def test_numbers_are_those_of_the_recordings_frame_after_frame(data_set: Path, contract: Contract, tmp_path: Path):
    corpus = make_corpus([data_set, data_set], contract, tmp_path / 'corpus')
    found = corpus.numbers
    assert corpus.instructions == WORDS * 2
    assert corpus.lengths.tolist() == [9, 12, 9, 12]
    assert np.array_equal(corpus.episode, np.repeat(np.arange(4), corpus.lengths))
    assert np.array_equal(found['frame'][:9], np.arange(9))
    with open_recording(data_set, episode=1) as recording:
        frames = list(recording)
    here = slice(9, 21)
    assert np.array_equal(found['joints'][here], [one.joint_positions for one in frames])
    assert np.array_equal(found['gripper'][here], [one.gripper for one in frames])
    assert np.array_equal(found['position'][here], [one.end_effector[0] for one in frames])
    assert np.array_equal(found['quaternion'][here], [one.end_effector[1] for one in frames])
    np.testing.assert_allclose(found['commanded'][9:20], found['joints'][10:21], atol=1e-6)
    assert np.array_equal(found['commanded'][20], found['commanded'][19])
    assert np.flatnonzero(found['disturbed'][here]).tolist() == [3, 4]
    assert corpus.card['origins'][0] == {'name': 'swings', 'own': {'recorded': 'for a test'}}


def test_several_processes_make_the_same_corpus(data_set: Path, contract: Contract, tmp_path: Path):
    alone = make_corpus([data_set], contract, tmp_path / 'alone')
    told: list[tuple[str, float]] = []
    shared = make_corpus([data_set], contract, tmp_path / 'shared', 2, lambda what, share: told.append((what, share)))
    assert np.array_equal(alone.composites, shared.composites)
    assert alone.fingerprint == shared.fingerprint
    assert dict(told) == {'tables': 1.0, 'pictures': 1.0}


def test_without_a_column_of_disturbances_there_are_none(contract: Contract, tmp_path: Path):
    corpus = make_corpus([write_set(tmp_path / 'set', (3,), WORDS[:1])], contract, tmp_path / 'corpus')
    assert not corpus.numbers['disturbed'].any()


def test_every_fault_of_every_episode_is_named_and_nothing_is_left_behind(contract: Contract, tmp_path: Path):
    fast = write_set(tmp_path / 'fast', (3, 3), ('reach the red cube', ' '), fps=30)
    blind = write_set(tmp_path / 'blind', (3,), WORDS[:1])
    for file in (blind / 'videos' / 'observation.images.wrist').rglob('*.mp4'):
        file.unlink()
    with pytest.raises(InvalidInput) as error:
        make_corpus([fast, blind, tmp_path / 'nowhere'], contract, tmp_path / 'corpus')
    assert 'nowhere' in str(error.value)
    with pytest.raises(InvalidInput) as error:
        make_corpus([fast, blind], contract, tmp_path / 'corpus')
    where = [problem.where for problem in error.value.problems]
    assert where == ['fast/0: fps', 'fast/1: fps', 'fast/1', 'blind/0: view wrist']
    assert names(tmp_path) == ['blind', 'fast']


def test_a_video_that_ends_too_early_is_named_with_its_frame(contract: Contract, tmp_path: Path):
    short = write_set(tmp_path / 'short', (6,), WORDS[:1])
    other = write_set(tmp_path / 'other', (4,), WORDS[:1])
    place = 'videos/observation.images.wrist/chunk-000/file-000.mp4'
    (short / place).write_bytes((other / place).read_bytes())
    with pytest.raises(InvalidInput, match='short/0: frame 4: has no picture'):
        make_corpus([short], contract, tmp_path / 'corpus')
    assert names(tmp_path) == ['other', 'short']


def test_an_episode_without_words_takes_those_that_are_given(contract: Contract, tmp_path: Path):
    silent = write_set(tmp_path / 'silent', (3,), (' ',))
    corpus = make_corpus([silent], contract, tmp_path / 'corpus', instruction='reach the cube')
    assert corpus.instructions == ('reach the cube',)


def test_an_earlier_corpus_is_replaced_and_anything_else_left_alone(data_set: Path, contract: Contract, tmp_path: Path):
    make_corpus([data_set], contract, tmp_path / 'corpus')
    again = make_corpus([data_set, data_set], contract, tmp_path / 'corpus')
    assert len(again) == 42
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis' / 'chapter.tex').write_text('do not lose')
    with pytest.raises(InvalidInput, match='holds something else'):
        make_corpus([data_set], contract, tmp_path / 'thesis')
    assert names(tmp_path) == ['corpus', 'thesis']


@pytest.mark.parametrize(
    ('harm', 'named'),
    [
        (lambda root: (root / COMPOSITES).write_bytes((root / COMPOSITES).read_bytes()[:-100]), 'cannot be read'),
        (lambda root: (root / NUMBERS).unlink(), NUMBERS),
        (lambda root: (root / CARD).write_text(json.dumps({'version': 7})), 'version'),
        (
            lambda root: (root / CARD).write_text((root / CARD).read_text().replace('"frames": 21', '"frames": 20')),
            '21',
        ),
    ],
)
def test_a_damaged_corpus_is_refused(
    harm: Callable[[Path], Any], named: str, data_set: Path, contract: Contract, tmp_path: Path
):
    make_corpus([data_set], contract, tmp_path / 'corpus')
    harm(tmp_path / 'corpus')
    with pytest.raises(InvalidInput, match=named):
        open_corpus(tmp_path / 'corpus')


def test_a_contract_of_another_rate_is_told_apart(data_set: Path, contract: Contract, tmp_path: Path):
    slow = replace(contract, timing=replace(contract.timing, fps=10))
    with pytest.raises(InvalidInput, match='is another than that of the contract'):
        make_corpus([data_set], slow, tmp_path / 'corpus')


def test_a_twentieth_of_the_episodes_is_held_out_in_rows_of_twelve_and_of_few_the_last():
    assert np.flatnonzero(held_out(45)).tolist() == [43, 44]
    assert np.flatnonzero(held_out(480)).tolist() == [*range(228, 240), *range(468, 480)]
    assert held_out(3).tolist() == [False, False, True]
