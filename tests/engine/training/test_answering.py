"""What the scripted hand is asked in recorded moments, and from where it answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('mujoco', reason='the simulator is not installed')

from engine.evaluation.expert import Expert
from engine.evaluation.expert_kinematics import place
from engine.evaluation.tasks import NAMES, make_episode
from engine.training.answering import _answers_of, _Hand, _Moments

HAND, FIRST = _Hand(1 / 15, 16), 700


@pytest.fixture
def led() -> _Moments:
    """An arm at rest; somebody else is in charge from row 5 to 9."""
    episode, rows = make_episode('reach', 3), 20
    joints = np.tile(np.array(episode.setting.joints), (rows, 1))
    disturbed = (np.arange(rows) >= 5) & (np.arange(rows) < 10)
    at = np.array([0, 7, 12])
    return _Moments(FIRST, 3, episode.target, episode.setting, at, joints, np.zeros(rows), joints, disturbed)


def answers(moments: _Moments) -> list[tuple[int, str, np.ndarray]]:
    return list(_answers_of(moments, Expert(HAND.step_s, HAND.rows, latency_s=0.0), HAND))


def test_where_somebody_else_is_in_charge_the_named_object_is_asked_for_too(led: _Moments) -> None:
    asked: dict[int, list[str]] = {}
    for frame, words, _ in answers(led):
        asked.setdefault(frame - FIRST, []).append(words)
    about = {row: sum(any(name in words for name in NAMES[led.target]) for words in asked[row]) for row in asked}
    assert {row: len(words) for row, words in asked.items()} == {0: 3, 7: 4, 12: 3}
    assert about == {0: 0, 7: 1, 12: 0}


def test_every_answer_leads_towards_what_was_asked_for(led: _Moments) -> None:
    for _, words, rows in answers(led):
        name = next(key for key, names in NAMES.items() if any(one in words for one in names))
        goal = np.array(led.setting.places[name][:2])
        begin, end = (np.linalg.norm(place(row).position[:2] - goal) for row in (led.joints[0], rows[-1, :7]))
        assert end < begin or begin < 0.03
        assert not rows[:, 7].any(), 'an open hand'


def test_what_is_out_of_reach_is_left_out(led: _Moments) -> None:
    places = {**led.setting.places, 'green_ball': (1.4, 0.0, 0.0)}
    far = replace(led, target='red_cube', setting=replace(led.setting, places=places))
    assert not any('green' in words for _, words, _ in answers(far))


def test_equal_moments_have_equal_answers(led: _Moments) -> None:
    for one, other in zip(answers(led), answers(led), strict=True):
        assert one[:2] == other[:2]
        np.testing.assert_array_equal(one[2], other[2])
