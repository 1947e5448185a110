"""An encoded corpus: what the policy would encode, clips of episodes, going on, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import engine
from engine.contract import Contract, load_contract
from engine.errors import CheckpointError, CosmosError, InvalidInput
from engine.network.vae import VideoVae
from engine.observation.geometry import choose_canvas, fit, to_unit
from engine.training import latents
from engine.training.corpus import CARD, COMPOSITES, NUMBERS, VERSION, Corpus, open_corpus
from engine.training.latents import Terms, clip_starts, encode_corpus, open_latents

LENGTHS = (12, 4, 9)
SHORT = Terms(frames=5, stride=4)


@pytest.fixture(scope='module')
def contract() -> Contract:
    return load_contract('micro_joint_pos')


@pytest.fixture(scope='module')
def corpus(tmp_path_factory: pytest.TempPathFactory, contract: Contract) -> Corpus:
    """Episodes of 12, 4 and 9 frames of noise; the first ends at rest."""
    root, size = tmp_path_factory.mktemp('corpora') / 'noise', contract.views.size
    root.mkdir()
    count, noise = sum(LENGTHS), np.random.default_rng(0)
    np.save(root / COMPOSITES, noise.integers(0, 256, (count, *size, 3), np.uint8))
    joints = np.linspace(0, 1, count)[:, None] * np.ones(7)
    joints[8:12] = joints[8]
    numbers = {'joints': joints, 'commanded': joints, 'gripper': np.zeros(count), 'commanded_gripper': np.zeros(count)}
    numbers |= {'position': np.zeros((count, 3)), 'quaternion': np.zeros((count, 4)), 'disturbed': np.zeros(count) > 1}
    numbers |= {'episode': np.repeat(np.arange(3), LENGTHS), 'frame': np.concatenate([np.arange(n) for n in LENGTHS])}
    np.savez(root / NUMBERS, **numbers)
    first = np.concatenate([[0], np.cumsum(LENGTHS)[:-1]])
    episodes = [{'instruction': 'look', 'first': int(at), 'frames': n} for at, n in zip(first, LENGTHS, strict=True)]
    card = {'version': VERSION, 'size': list(size), 'frames': count, 'episodes': episodes}
    (root / CARD).write_text(json.dumps(card))
    return open_corpus(root)


@pytest.fixture(scope='module')
def vae(model: engine.Cosmos3) -> VideoVae:
    return model.runtime.vae


def on_canvas(frames: np.ndarray, contract: Contract) -> torch.Tensor:
    canvas = choose_canvas(contract.timing.resolution_tier, *contract.views.size)
    return to_unit(fit(frames, canvas).pixels)


def test_frames_and_clips_are_encoded_as_the_policy_encodes_them(
    corpus: Corpus, contract: Contract, tiny_checkpoint: Path, tmp_path: Path, vae: VideoVae
):
    told: list[tuple[str, float]] = []
    found = encode_corpus(
        corpus, contract, tiny_checkpoint, tmp_path / 'latents', SHORT, lambda what, share: told.append((what, share))
    )
    assert found.first.shape == (25, 48, 12, 14)
    assert found.first.dtype == np.float16
    assert dict(told) == {'frames': 1.0, 'clips': 1.0}
    for frame in (0, 17, 24):
        wanted = vae.encode_frame(on_canvas(corpus.composites[frame], contract))[0, :, 0, :12, :14]
        np.testing.assert_allclose(found.first[frame], wanted, rtol=2e-3, atol=2e-3)
    assert found.clips.shape == (len(found.starts), 48, 2, 12, 14)
    for number, start in enumerate(found.starts):
        last = start + found.real[number] - 1
        frames = corpus.composites[np.minimum(np.arange(start, start + 5), last)]
        wanted = vae.encode(on_canvas(frames, contract))[0, :, :, :12, :14]
        np.testing.assert_allclose(found.clips[number], wanted, rtol=2e-3, atol=2e-3)


def test_neighbours_that_are_nearly_alike_can_be_left_out(
    corpus: Corpus, contract: Contract, tiny_checkpoint: Path, tmp_path: Path
):
    every = encode_corpus(corpus, contract, tiny_checkpoint, tmp_path / 'every', Terms(stride=0, batch=8))
    third = encode_corpus(corpus, contract, tiny_checkpoint, tmp_path / 'third', Terms(stride=0, every=3, batch=4))
    assert (every.every, third.every) == (1, 3)
    assert len(third.first) == 9
    np.testing.assert_allclose(third.first, every.first[::3], rtol=2e-3, atol=2e-3)


def test_clips_lie_within_episodes_and_go_on_only_at_rest(corpus: Corpus):
    starts, real = clip_starts(corpus, Terms(frames=9, stride=2))
    assert list(zip(starts.tolist(), real.tolist(), strict=True)) == [(0, 9), (2, 9), (4, 8), (6, 6), (16, 9)]
    starts, _ = clip_starts(corpus, Terms(frames=9, stride=2, past_the_end=False))
    assert starts.tolist() == [0, 2, 16]
    assert len(clip_starts(corpus, Terms(stride=0))[0]) == 0


def test_an_arm_without_joints_rests_when_its_hand_does(corpus: Corpus):
    blind = {**corpus.numbers, 'joints': np.full((25, 7), np.nan), 'commanded': np.full((25, 7), np.nan)}
    starts, _ = clip_starts(replace(corpus, numbers=blind), Terms(frames=17, stride=4))
    assert starts.tolist() == [0, 4, 16, 20]
    moving = {**blind, 'gripper': np.linspace(0, 1, 25)}
    assert len(clip_starts(replace(corpus, numbers=moving), Terms(frames=17, stride=4))[0]) == 0


def test_what_was_interrupted_goes_on_and_comes_out_the_same(
    corpus: Corpus, contract: Contract, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    terms = replace(SHORT, batch=2)
    whole = encode_corpus(corpus, contract, tiny_checkpoint, tmp_path / 'whole', terms)
    monkeypatch.setattr(latents, '_EVERY', 1)

    def interrupt(what: str, share: float) -> None:
        if what == 'clips' and share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_corpus(corpus, contract, tiny_checkpoint, tmp_path / 'parts', terms, interrupt)
    assert not (tmp_path / 'parts').exists()
    told: list[tuple[str, float]] = []
    parts = encode_corpus(
        corpus, contract, tiny_checkpoint, tmp_path / 'parts', terms, lambda what, share: told.append((what, share))
    )
    assert [share for what, share in told if what == 'frames'] == [0.0, 1.0]
    assert np.array_equal(whole.first, parts.first)
    assert np.array_equal(whole.clips, parts.clips)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['parts', 'whole']


def test_what_is_there_is_used_and_other_latents_are_replaced(
    corpus: Corpus, contract: Contract, tiny_checkpoint: Path, tmp_path: Path
):
    made = encode_corpus(corpus, contract, tiny_checkpoint, tmp_path / 'latents', SHORT)
    file = made.root / latents.FIRST
    before = file.stat().st_mtime_ns
    encode_corpus(corpus, contract, tiny_checkpoint, made.root, SHORT)
    assert file.stat().st_mtime_ns == before
    again = encode_corpus(corpus, contract, tiny_checkpoint, made.root, Terms(frames=5, stride=0))
    assert len(again.clips) == len(again.starts) == 0
    assert again.clips.shape[1:] == (48, 2, 12, 14)


def test_what_is_no_place_for_latents_is_refused(
    corpus: Corpus, contract: Contract, tiny_checkpoint: Path, tmp_path: Path
):
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis' / 'chapter.tex').write_text('do not lose')
    with pytest.raises(InvalidInput, match='holds something else'):
        encode_corpus(corpus, contract, tiny_checkpoint, tmp_path / 'thesis', SHORT)
    with pytest.raises(CheckpointError):
        encode_corpus(corpus, contract, tmp_path, tmp_path / 'latents', SHORT)
    other = replace(contract, views=replace(contract.views, size=(96, 112)))
    with pytest.raises(InvalidInput, match='is not that of the contract'):
        encode_corpus(corpus, other, tiny_checkpoint, tmp_path / 'latents', SHORT)
    with pytest.raises(InvalidInput, match='cannot be read'):
        open_latents(tmp_path / 'thesis')
    assert [path.name for path in tmp_path.iterdir()] == ['thesis']


def test_two_processes_do_not_encode_into_one_folder(
    corpus: Corpus, contract: Contract, tiny_checkpoint: Path, tmp_path: Path
):
    def meanwhile(what: str, share: float) -> None:
        encode_corpus(corpus, contract, tiny_checkpoint, tmp_path / 'latents', SHORT)

    with pytest.raises(CosmosError, match='another process'):
        encode_corpus(corpus, contract, tiny_checkpoint, tmp_path / 'latents', SHORT, meanwhile)


def test_terms_out_of_range_are_listed():
    with pytest.raises(InvalidInput) as error:
        Terms(frames=6, stride=-1, every=0, dtype='float8', batch=0)
    assert [problem.where for problem in error.value.problems] == ['frames', 'stride', 'every', 'dtype', 'batch']
