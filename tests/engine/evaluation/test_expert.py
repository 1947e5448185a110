"""The scripted hand: its kinematics are the simulator's, its plans straight, slow enough and on time."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('mujoco', reason='the simulator is not installed')

from engine.errors import InvalidInput
from engine.evaluation import franka_scene as scene
from engine.evaluation.expert import ACCELERATION, VELOCITY, Course, Expert, Mistaken
from engine.evaluation.expert_kinematics import DOWN, downwards, place, solve
from engine.evaluation.expert_paths import Seen
from engine.evaluation.simulated_franka import Pose, SimulatedFranka
from engine.evaluation.tasks import TASKS, Episode, make_episode

STEP_S, ROWS, NS = 1 / 15, 32, 1_000_000_000
HEIGHT = {thing.name: thing.height for thing in scene.OBJECTS}


def seen_at(episode: Episode, seconds: float = 1.0, joints: np.ndarray | None = None) -> Seen:
    """The beginning of an episode, as an eye would have it."""
    objects = {
        name: Pose(np.array([x, y, HEIGHT[name]]), np.array([0.0, 0.0, np.sin(turn / 2), np.cos(turn / 2)]))
        for name, (x, y, turn) in episode.setting.places.items()
    }
    return Seen(round(seconds * NS), {}, np.array(episode.setting.joints) if joints is None else joints, 0.0, objects)


def whole_way(episode: Episode) -> np.ndarray:
    """All rows of a plan that nothing disturbs, [N, 7]."""
    expert, rows, now, joints = Expert(STEP_S, ROWS), [], 1.0, None
    expert.begin(episode)
    for _ in range(6):
        chunk = expert.act(seen_at(episode, now, joints))
        rows.append(chunk.positions[:15])
        now, joints = now + 15 * STEP_S, chunk.positions[14]
    return np.concatenate([np.array(episode.setting.joints)[None], *rows])


def test_the_tool_is_where_the_simulator_has_it() -> None:
    robot, rng = SimulatedFranka(render_views=()), np.random.default_rng(0)
    for _ in range(10):
        joints = rng.uniform([j.lower for j in scene.ARM], [j.upper for j in scene.ARM])
        setting = make_episode('reach', 0).setting
        robot.arrange(scene.Setting(tuple(joints), setting.places))
        np.testing.assert_allclose(place(joints).position, robot.tool_position(), atol=1e-9)


def test_the_jacobian_is_the_derivative() -> None:
    joints, step = np.array(scene.HOME) + 0.1, 1e-6
    found = place(joints).jacobian
    for column in range(7):
        apart = np.eye(7)[column] * step
        slope = (place(joints + apart).position - place(joints - apart).position) / (2 * step)
        np.testing.assert_allclose(found[:3, column], slope, atol=1e-8)


def test_joints_are_found_for_poses_in_reach_and_none_are_made_up_beyond() -> None:
    goals = np.array([[0.5, 0.1, 0.1], [0.55, 0.0, 0.05]])
    found = solve(goals, [downwards(0.4)] * 2, np.array(scene.HOME))
    for joints, goal in zip(found, goals, strict=True):
        np.testing.assert_allclose(place(joints).position, goal, atol=1e-5)
        np.testing.assert_allclose(place(joints).rotation, downwards(0.4), atol=2e-4)
    with pytest.raises(InvalidInput, match='cannot be reached'):
        solve(np.array([[1.2, 0.0, 0.1]]), [DOWN], np.array(scene.HOME))


@pytest.mark.parametrize('task', TASKS)
def test_rows_keep_the_limits_of_the_joints(task: str) -> None:
    for seed in range(3):
        rows = whole_way(make_episode(task, seed))
        assert (np.abs(np.diff(rows, axis=0)) / STEP_S < 0.5 * VELOCITY).all()
        assert (np.abs(np.diff(rows, n=2, axis=0)) / STEP_S**2 < 0.8 * ACCELERATION).all()


def test_a_push_is_straight_and_ends_at_the_circle() -> None:
    for seed in range(4):
        episode = make_episode('push', seed)
        tools = np.array([place(row).position for row in whole_way(episode)])
        low = tools[tools[:, 2] < 0.035]
        start, goal = np.array(episode.setting.places[episode.target][:2]), np.array(episode.setting.zone)
        ahead = (goal - start) / np.linalg.norm(goal - start)
        aside = (low[:, :2] - start) @ np.array([-ahead[1], ahead[0]])
        assert np.abs(aside).max() < 1e-3
        assert 0.02 < np.min((goal - low[:, :2]) @ ahead) < 0.05


def test_equal_episodes_have_equal_plans_and_the_seed_decides_the_pace() -> None:
    episode = make_episode('lift', 2)
    np.testing.assert_array_equal(whole_way(episode), whole_way(episode))
    hurried = Episode('lift', 3, episode.target, episode.instruction, episode.setting)
    assert np.abs(whole_way(hurried) - whole_way(episode)).max() > 0.01


def test_an_object_that_moves_before_it_is_reached_is_followed() -> None:
    episode, expert = make_episode('reach', 1), Expert(STEP_S, ROWS)
    expert.begin(episode)
    seen = seen_at(episode)
    before = expert.act(seen).positions[-1]
    shifted = dict(seen.objects)
    place_ = seen.objects[episode.target].position + np.array([0.0, 0.06, 0.0])
    shifted[episode.target] = Pose(place_, np.array([0.0, 0.0, 0.0, 1.0]))
    after = expert.act(Seen(seen.stamp_ns, {}, seen.joints, 0.0, shifted)).positions[-1]
    assert place(after).position[1] - place(before).position[1] == pytest.approx(0.06, abs=0.02)


def test_an_object_out_of_reach_leaves_the_hand_at_rest() -> None:
    episode, expert = make_episode('reach', 1), Expert(STEP_S, ROWS)
    expert.begin(episode)
    seen = seen_at(episode)
    away = {name: Pose(np.array([1.5, 0.0, 0.0]), pose.quaternion) for name, pose in seen.objects.items()}
    rows = expert.act(Seen(seen.stamp_ns, {}, seen.joints, 0.0, away))
    np.testing.assert_allclose(rows.positions, np.tile(seen.joints, (ROWS, 1)))


def test_the_gripper_is_told_at_the_beginning_of_a_leg_and_takes_a_moment() -> None:
    course = Course(np.array([0.0, 3.0]), np.zeros((2, 7)), np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 0.0]), 1.0)
    np.testing.assert_allclose(course.grip(np.array([0.5, 1.0, 1.1, 1.5, 2.0, 2.2, 9.0])), [0, 0, 0.5, 1, 1, 0, 0])


def course_of(position: np.ndarray, speed: np.ndarray, now: float) -> Course:
    """A steady motion, as far as anybody has to know it."""
    times = now + 0.01 * np.arange(-2, 3)
    return Course(times, position + (times - now)[:, None] * speed, np.array([now]), np.zeros(1), now)


def taken_over(episode: Episode, joints: np.ndarray, speed: np.ndarray, ahead_s: float = np.inf) -> Expert:
    expert = Expert(STEP_S, ROWS, latency_s=0.0, ahead_s=ahead_s)
    expert.begin(episode)
    expert.take_over(seen_at(episode, 1.0, joints), course_of(joints, speed, 1.0))
    return expert


def test_a_motion_of_somebody_else_is_gone_on_with_at_its_speed_and_led_to_the_object() -> None:
    episode, speed = make_episode('reach', 4), np.array([0.3, 0.1, -0.2, 0.2, 0.0, 0.1, 0.2])
    joints = np.array(episode.setting.joints)
    expert = taken_over(episode, joints, speed)
    times = 1.0 + 0.01 * np.arange(800)
    path = np.stack([expert.moving(time)[0] for time in times])
    np.testing.assert_allclose(path[1] - path[0], 0.01 * speed, atol=2e-4)
    assert (np.abs(np.diff(path, n=2, axis=0)) / 0.01**2 < 0.8 * ACCELERATION).all(), 'without a jump anywhere'
    x, y, _ = episode.setting.places[episode.target]
    np.testing.assert_allclose(place(path[-1]).position[:2], [x, y], atol=1e-3)
    rows = expert.act(seen_at(episode, 1.0, joints)).positions
    np.testing.assert_allclose(rows[0], expert.moving(1.0 + STEP_S)[0], atol=1e-9)


def test_a_hand_that_is_nearly_there_does_not_go_up_first() -> None:
    episode = make_episode('reach', 4)
    end = whole_way(episode)[-1]
    aside = solve(place(end).position[None] + [0.015, -0.01, 0.005], [place(end).rotation], end)[0]
    expert = taken_over(episode, aside, np.array([0.0, 0.2, 0.0, 0.1, 0.0, 0.0, 0.0]))
    path = np.stack([expert.moving(1.0 + 0.02 * k)[0] for k in range(100)])
    heights = [place(row).position[2] for row in path]
    assert max(heights) < heights[0] + 0.02
    np.testing.assert_allclose(path[-1], end, atol=0.02)
    np.testing.assert_allclose(path[1] - path[0], [0.0, 0.004, 0.0, 0.002, 0.0, 0.0, 0.0], atol=1e-3)


def test_what_is_planned_no_further_than_a_chunk_has_the_same_rows() -> None:
    for seed in range(4):
        episode, speed = make_episode('reach', seed), np.full(7, 0.1)
        joints = np.array(episode.setting.joints)
        short, whole = (taken_over(episode, joints, speed, ahead) for ahead in (ROWS * STEP_S / 2, np.inf))
        rows = [hand.act(seen_at(episode, 1.0, joints)).positions[: ROWS // 2] for hand in (short, whole)]
        np.testing.assert_array_equal(*rows)
        assert short.end_s < whole.end_s


def test_a_mistaken_hand_goes_to_another_object() -> None:
    for seed in range(6):
        episode, hand = make_episode('reach', seed), Mistaken(STEP_S, ROWS)
        hand.begin(episode)
        joints = hand.act(seen_at(episode)).positions[-1]
        hand.act(seen_at(episode, 1.0 + ROWS * STEP_S, joints))
        tool = place(hand.moving(hand.end_s)[0]).position[:2]
        near = min(episode.setting.places, key=lambda name: np.hypot(*(tool - episode.setting.places[name][:2])))
        assert near != episode.target
