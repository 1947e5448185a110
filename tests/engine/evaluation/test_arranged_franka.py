"""A scene can be laid out as an episode wants it, and nothing of it is left at the next reset."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('mujoco', reason='the simulator is not installed')

from engine.errors import InvalidInput
from engine.evaluation import franka_scene as scene
from engine.evaluation.simulated_franka import SimulatedFranka
from engine.evaluation.tasks import Jitter, make_episode

VIEWS = ('exterior_1',)
SETTING = make_episode('push', 0, Jitter(0.1)).setting


@pytest.fixture(scope='module')
def robot() -> SimulatedFranka:
    return SimulatedFranka(0, (90, 160), VIEWS, zone=True)


def shown(robot: SimulatedFranka, setting: scene.Setting) -> np.ndarray:
    robot.arrange(setting)
    return robot.render()['exterior_1'].astype(int)


def test_everything_is_where_it_was_put(robot: SimulatedFranka) -> None:
    robot.arrange(SETTING)
    np.testing.assert_array_equal(robot.joint_state().positions[:7], SETTING.joints)
    for name, pose in robot.objects().items():
        x, y, turn = SETTING.places[name]
        np.testing.assert_allclose(pose.position[:2], (x, y))
        assert 2 * np.arctan2(pose.quaternion[2], pose.quaternion[3]) == pytest.approx(turn)
    robot.advance(0.3)
    np.testing.assert_allclose(robot.joint_state().positions[:7], SETTING.joints, atol=2e-3)
    assert robot.contacts() == frozenset()


def test_the_mark_lies_where_it_was_put_and_nothing_feels_it(robot: SimulatedFranka) -> None:
    with_mark, without = shown(robot, SETTING), shown(robot, replace(SETTING, zone=None))
    purple = (with_mark[..., 2] > with_mark[..., 1] + 40) & (with_mark != without).any(axis=-1)
    assert 20 < purple.sum() < 500
    before = robot.objects()['red_cube'].position
    robot.arrange(replace(SETTING, zone=SETTING.places['red_cube'][:2]))
    robot.advance(0.2)
    np.testing.assert_allclose(robot.objects()['red_cube'].position, before, atol=1e-3)


def test_lamps_and_cameras_change_what_is_seen_and_not_what_happens(robot: SimulatedFranka) -> None:
    plain = shown(robot, SETTING)
    dark = shown(robot, replace(SETTING, light=(0.6, 0.6, 0.6)))
    assert dark.mean() < 0.85 * plain.mean()
    moved = shown(robot, replace(SETTING, cameras={'exterior_1': ((0.0, 0.0, 0.0), (0.0, 0.0, np.pi))}))
    assert np.abs(moved[::-1, ::-1] - plain).mean() < 3.0, 'upside down'
    robot.advance(0.2)
    other = SimulatedFranka(render_views=(), zone=True)
    other.arrange(SETTING)
    other.advance(0.2)
    np.testing.assert_array_equal(robot.joint_state().positions, other.joint_state().positions)


def test_a_reset_gives_back_the_scene_as_it_was_built(robot: SimulatedFranka) -> None:
    robot.reset(4)
    before = robot.render()['exterior_1']
    robot.arrange(replace(SETTING, light=(0.5, 2.0, 0.5), cameras={'exterior_1': ((0.1, 0.1, 0.1), (0.1, 0.2, 0.3))}))
    robot.advance(0.1)
    robot.reset(4)
    np.testing.assert_array_equal(robot.render()['exterior_1'], before)


def test_a_scene_that_can_have_a_mark_looks_like_one_that_cannot_while_it_is_away(robot: SimulatedFranka) -> None:
    robot.reset(2)
    plain = SimulatedFranka(2, (90, 160), VIEWS)
    np.testing.assert_array_equal(robot.render()['exterior_1'], plain.render()['exterior_1'])
    plain.close()


def test_all_faults_of_a_setting_are_told_at_once() -> None:
    places = {**SETTING.places, 'spoon': (0.4, 0.0, 0.0)}
    del places['red_cube']
    wrong = scene.Setting((9.0, *scene.HOME[1:]), places, (0.5, 0.0), cameras={'front': ((0, 0, 0), (0, 0, 0))})
    with pytest.raises(InvalidInput) as raised:
        SimulatedFranka(render_views=()).arrange(wrong)
    found = {problem.where for problem in raised.value.problems}
    assert found == {'places.red_cube', 'places.spoon', 'cameras.front', 'joints.panda_joint1', 'zone'}
