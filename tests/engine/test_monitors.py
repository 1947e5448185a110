"""Each score is 0 where all is well, grows with what it is evidence of, and with nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from engine.actions import Poses, codec
from engine.actions.rotations import axis_angle_to_matrix
from engine.errors import InvalidInput
from engine.monitors import cycle_error, disagreement, inconsistency, mismatch, seed_variance

DROID = codec('droid_lerobot', 'ee_delta', 'quantile')
DUAL = codec('robomind-franka-dual', 'ee_delta', 'quantile')


def video(speed: float, frames: int = 5, seed: int = 0) -> np.ndarray:
    """A bright square that moves to the right over a grey scene."""
    scene = np.random.default_rng(seed).integers(60, 120, (32, 48, 3))
    made = np.repeat(scene[None], frames, axis=0)
    for number in range(frames):
        left = 4 + round(speed * number)
        made[number, 10:20, left : left + 10] = 240
    return made.astype(np.uint8)


def test_two_videos_disagree_as_far_as_they_drift_apart_in_shares_of_the_motion() -> None:
    assert disagreement(video(3), video(3)).tolist() == [0.0] * 4
    slower, still = disagreement(video(3), video(2)), disagreement(video(3), video(0))
    assert (slower < still).all()
    np.testing.assert_allclose(still, 1.0, atol=1e-9)
    assert (disagreement(video(0), video(0)) == 0).all(), 'a scene at rest divides by nothing'
    assert len(disagreement(video(3), video(3, frames=9))) == 4, 'the other may go on'


def test_futures_that_noise_decides_have_a_spread_and_those_that_actions_decide_have_none() -> None:
    np.testing.assert_allclose(seed_variance([video(3)] * 3), np.zeros(4), atol=1e-12)
    some, much = seed_variance([video(3), video(2)]), seed_variance([video(3), video(0), video(5)])
    assert 0 < some.mean() < much.mean()
    with pytest.raises(InvalidInput, match='futures: are too few, got 1'):
        seed_variance([video(3)])


def test_a_change_as_imagined_is_no_surprise_and_one_that_did_not_come_is_a_standstill() -> None:
    seen = video(3)
    asked = mismatch(seen[4], seen[4], seen[0], seen[0])
    assert asked.surprise == pytest.approx(0.0, abs=1e-9)
    assert asked.standstill == pytest.approx(0.0, abs=1e-9)
    frozen = mismatch(seen[4], seen[0], seen[0], seen[0])
    assert 0.9 < frozen.standstill < 1.0, 'nothing happened'
    assert frozen.surprise == 0.0, 'and one event is told by one score'
    unasked = mismatch(seen[0], seen[4], seen[0], seen[0])
    assert (unasked.surprise > 0.9, unasked.standstill) == (True, 0.0), 'nothing was imagined, and much happened'


def test_a_change_into_another_place_is_a_surprise_and_no_standstill() -> None:
    seen = video(3)
    near, elsewhere = (mismatch(video(speed)[4], seen[4], seen[0], seen[0]) for speed in (2, 6))
    assert 0.1 < near.surprise < elsewhere.surprise < 1.0
    assert max(near.standstill, elsewhere.standstill) < 0.3
    mirrored = mismatch(seen[0], seen[4], seen[4], seen[0])
    assert 1.5 < mirrored.surprise < 2.0, 'the opposite of what was imagined'


def test_what_an_autoencoder_loses_of_every_picture_is_no_mismatch() -> None:
    seen = video(3)
    darker = (seen // 2 * 2).astype(np.uint8)
    still = mismatch(darker[0], seen[0], darker[0], seen[0])
    assert (still.surprise, still.standstill) == (0.0, 0.0)
    assert mismatch(darker[4], seen[4], darker[0], seen[0]).surprise < 0.05
    flicker = np.clip(seen[0].astype(int) + np.random.default_rng(0).integers(-3, 4, seen[0].shape), 0, 255)
    rest = mismatch(flicker.astype(np.uint8), seen[0], seen[0], seen[0])
    assert max(rest.surprise, rest.standstill) < 0.1, 'an arm at rest'


@pytest.mark.parametrize('bodies', [1, 2])
def test_the_cycle_error_is_in_metres_radians_and_shares_of_the_gripper(bodies: int) -> None:
    of = DROID if bodies == 1 else DUAL
    rng = np.random.default_rng(0)
    lead = (6,) if bodies == 1 else (6, 2)
    turns = axis_angle_to_matrix(rng.uniform(-0.05, 0.05, (*lead, 3)))
    path = Poses(np.cumsum(rng.uniform(-0.01, 0.01, (*lead, 3)), axis=0), turns)
    grippers = np.full((5, bodies), 0.5) if bodies > 1 else np.full(5, 0.5)
    given = of.encode_trajectory(path, grippers)
    same = cycle_error(given, given, of)
    for error in (same.translation, same.rotation, same.gripper):
        np.testing.assert_allclose(error, np.zeros(5), atol=1e-12)
    moved = path.position.copy()
    moved[(slice(3, None), *([0] if bodies > 1 else []))] += [0.03, 0.0, 0.04]
    off = cycle_error(of.encode_trajectory(Poses(moved, turns), 1 - grippers * 0.4), given, of)
    np.testing.assert_allclose(off.translation, [0, 0, 0.05, 0, 0], atol=1e-9)
    np.testing.assert_allclose(off.gripper, np.full(5, 0.3), atol=1e-9)
    spun = turns.copy()
    spun[-1] = turns[-1] @ axis_angle_to_matrix(np.array([0.0, 0.0, 0.2]))
    twisted = cycle_error(of.encode_trajectory(Poses(path.position, spun), grippers), given, of)
    np.testing.assert_allclose(twisted.rotation, [0, 0, 0, 0, 0.2], atol=1e-9)


def test_rows_that_are_not_as_many_are_refused() -> None:
    rows = DROID.encode_trajectory(Poses(np.zeros((4, 3)), np.tile(np.eye(3), (4, 1, 1))), np.zeros(3))
    with pytest.raises(InvalidInput, match='rows: are not as many, got 3 and 2'):
        cycle_error(rows, rows[:2], DROID)


def test_chunks_are_compared_over_the_time_that_both_speak_of() -> None:
    course, off = np.linspace(0, 1, 40)[:, None] * [1.0, 2.0], np.array([0.3, 0.4])
    assert inconsistency(course[:16], course[5:21], 5) == pytest.approx(0.0)
    assert inconsistency(course[:16], course[5:21] + off, 5) == pytest.approx(np.sqrt((0.09 + 0.16) / 2))
    assert inconsistency(course[:16], course[5:21] + off, 5, scale=[0.3, 0.4]) == pytest.approx(1.0)
    assert inconsistency(course[:16], course[16:32] + 9, 16) == 0.0, 'they share no moment'
    with pytest.raises(InvalidInput, match=r'chunks: do not fit(.|\n)*shift: is out of range'):
        inconsistency(course[:16], course[:16, :1], 0)


@pytest.mark.parametrize('other', [video(1)[:3], video(1)[:, :, :8], video(1).astype(float), video(1)[0]])
def test_videos_that_do_not_fit_each_other_are_refused(other: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match='frames: do not fit each other'):
        disagreement(video(1), other)
