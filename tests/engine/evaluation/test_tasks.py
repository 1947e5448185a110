"""Tasks: a seed decides everything, there is room for everything, and the watch believes the simulator alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from engine.errors import InvalidInput
from engine.evaluation import franka_scene as scene
from engine.evaluation.simulated_franka import Pose
from engine.evaluation.tasks import BOWL, NAMES, TASKS, Jitter, make_episode, wordings
from engine.evaluation.tasks_watch import HOLD_S, Truth, Watch

RADIUS = {thing.name: thing.radius for thing in scene.OBJECTS}
HEIGHT = {thing.name: thing.height for thing in scene.OBJECTS}
SEEDS = range(60)
BOTH_FINGERS = ('panda_finger1', 'panda_finger2')

# Episodes


@pytest.mark.parametrize('task', TASKS)
def test_an_episode_is_its_task_and_its_seed(task: str) -> None:
    assert make_episode(task, 5) == make_episode(task, 5)
    assert make_episode(task, 5).setting != make_episode(task, 6).setting


@pytest.mark.parametrize('task', TASKS)
def test_seeds_name_every_object_in_every_wording(task: str) -> None:
    episodes = [make_episode(task, seed) for seed in range(500)]
    wanted = {words for target in TASKS[task].targets for words in wordings(task, target)}
    assert {one.instruction for one in episodes} == wanted


@pytest.mark.parametrize('task', TASKS)
def test_an_instruction_names_its_object_and_no_distractor(task: str) -> None:
    for one in (make_episode(task, seed) for seed in SEEDS):
        named = {thing for thing, names in NAMES.items() if any(name in one.instruction for name in names)}
        assert named - ({BOWL} if task == 'place' else set()) == {one.target}


@pytest.mark.parametrize('task', TASKS)
def test_nothing_lies_where_something_else_does_or_out_of_reach(task: str) -> None:
    for seed in SEEDS:
        places = make_episode(task, seed).setting.places
        assert set(places) == set(RADIUS)
        for (one, a), (other, b) in itertools.combinations(places.items(), 2):
            assert math.dist(a[:2], b[:2]) > RADIUS[one] + RADIUS[other] + 0.049
        assert all(0.3 < math.hypot(x, y) < 0.7 for x, y, _ in places.values())


def test_the_way_of_a_push_is_free() -> None:
    for seed in SEEDS:
        one = make_episode('push', seed)
        start, goal = np.array(one.setting.places[one.target][:2]), np.array(one.setting.zone)
        assert 0.12 <= np.linalg.norm(goal - start) <= 0.22
        for name in set(RADIUS) - {one.target}:
            way = start + np.linspace(0, 1, 50)[:, None] * (goal - start)
            apart = np.linalg.norm(way - one.setting.places[name][:2], axis=1).min()
            assert apart > RADIUS[name] + 0.075


def test_only_a_push_has_a_circle() -> None:
    assert {task for task in TASKS if make_episode(task, 0).setting.zone is not None} == {'push'}


def test_seeds_that_share_a_scene_name_its_objects_in_turn() -> None:
    shared = [make_episode('reach', seed, share_scene=4) for seed in range(40, 48)]
    assert {one.target for one in shared[:4]} == {one.target for one in shared[4:]} == set(TASKS['reach'].targets)
    assert all(one.setting == shared[0].setting for one in shared[:4]), 'nothing but words tells them apart'
    assert shared[4].setting != shared[0].setting
    assert shared[0] == make_episode('reach', 40), 'the first of them is what it was'
    assert all(one.instruction in wordings('reach', one.target) for one in shared)
    with pytest.raises(InvalidInput, match='share_scene: out of range, got 0'):
        make_episode('reach', 0, share_scene=0)
    with pytest.raises(InvalidInput, match='laid out around what is pushed'):
        make_episode('push', 0, share_scene=2)


def test_each_kind_of_jitter_changes_what_it_says_and_nothing_else() -> None:
    plain = make_episode('lift', 3, Jitter(start_rad=0.0))
    assert plain.setting.joints == scene.HOME
    changes = {
        'joints': make_episode('lift', 3, Jitter(0.1)),
        'light': make_episode('lift', 3, Jitter(0.0, light=0.2)),
        'cameras': make_episode('lift', 3, Jitter(0.0, camera_m=0.01)),
    }
    for name, changed in changes.items():
        assert getattr(changed.setting, name) != getattr(plain.setting, name)
        assert replace(changed.setting, **{name: getattr(plain.setting, name)}) == plain.setting
        assert (changed.target, changed.instruction) == (plain.target, plain.instruction)
    turns = np.array(changes['joints'].setting.joints) - scene.HOME
    assert 0.05 < np.abs(turns).max() <= 0.1
    assert np.abs(np.array(changes['light'].setting.light) - 1).max() <= 0.2


def test_an_unknown_task_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match='reach, push, lift, place'):
        make_episode('juggle', 0)


# The watch


class Play:
    """An episode told instant by instant, every 50 ms; what is not said stays as it was."""

    def __init__(self, task: str, target: str = 'red_cube') -> None:
        found = next(one for one in (make_episode(task, seed) for seed in range(200)) if one.target == target)
        self.episode, self.time = found, 0.0
        self.tool = np.array([0.3, 0.0, 0.4])
        self.objects = {
            name: Pose(np.array([x, y, HEIGHT[name]]), np.array([0.0, 0.0, 0.0, 1.0]))
            for name, (x, y, _) in found.setting.places.items()
        }
        self.contacts: frozenset[tuple[str, str]] = frozenset()
        self.watch = Watch(found, self.truth())

    def truth(self) -> Truth:
        return Truth(self.time, self.tool.copy(), dict(self.objects), self.contacts)

    def at(self, name: str) -> np.ndarray:
        return self.objects[name].position

    def go(self, seconds: float, each: Callable[[], None] = lambda: None) -> Play:
        for _ in range(round(seconds / 0.05)):
            each()
            self.time = round(self.time + 0.05, 9)
            self.watch.look(self.truth())
        return self

    def put(self, name: str, place: np.ndarray) -> None:
        self.objects[name] = Pose(np.asarray(place, float), self.objects[name].quaternion)

    def hover(self, name: str) -> None:
        self.tool = self.at(name) + np.array([0.01, 0.0, 0.05])

    def hold(self, name: str, height: float = 0.1) -> None:
        self.put(name, np.array([*self.at(name)[:2], HEIGHT[name] + height]))
        self.tool = self.at(name).copy()
        self.contacts = frozenset((finger, name) for finger in BOTH_FINGERS)


def test_success_is_told_when_it_has_held_and_dated_to_when_it_began() -> None:
    play = Play('reach').go(1.0)
    play.hover('red_cube')
    assert not play.go(HOLD_S).watch.done
    assert play.go(0.05).watch.done
    found = play.watch.findings()
    assert (found.success_s, found.milestones, found.progress) == (1.05, {'reached': 1.05}, 1.0)
    assert found.reached == ((1.05, 'red_cube'),)


def test_what_is_interrupted_begins_anew() -> None:
    play = Play('reach')
    play.hover('red_cube')
    play.go(HOLD_S)
    play.tool = np.array([0.3, 0.0, 0.4])
    play.go(0.1)
    play.hover('red_cube')
    assert not play.go(HOLD_S).watch.done
    assert play.go(0.1).watch.done


def test_a_hand_beside_or_far_above_the_object_has_not_reached_it() -> None:
    for shift in ([0.04, 0.0, 0.03], [0.0, 0.0, 0.1]):
        play = Play('reach')
        play.tool = play.at('red_cube') + shift
        assert not play.go(1.0).watch.done


def test_a_hand_above_another_object_is_told_and_is_no_success() -> None:
    play = Play('reach')
    play.hover('blue_disc')
    found = play.go(1.0).watch.findings()
    assert (found.success, found.progress) == (False, 0.0)
    assert found.wrong == ((0.05, 'blue_disc', 'reached'),)


def test_an_object_in_the_hand_is_lifted_and_one_that_lies_high_is_not() -> None:
    play = Play('lift')
    play.hold('red_cube')
    assert play.go(1.0).watch.findings().success
    other = Play('lift')
    other.hold('red_cube')
    other.contacts = frozenset([(BOTH_FINGERS[0], 'red_cube')])
    assert not other.go(1.0).watch.done


def test_a_push_counts_when_the_object_lies_still_in_the_circle() -> None:
    play = Play('push')
    zone = np.array([*play.episode.setting.zone, HEIGHT['red_cube']])

    def roll() -> None:
        play.put('red_cube', zone + np.array([0.02 * math.sin(10 * play.time), 0.0, 0.0]))

    assert not play.go(1.0, roll).watch.done, 'it moves'
    found = play.go(0.7).watch.findings()
    assert found.success
    assert list(found.milestones) == ['moved', 'halfway', 'in the circle']


def test_what_was_carried_was_not_pushed() -> None:
    play = Play('push')
    play.hold('red_cube')
    play.go(0.1)
    play.contacts = frozenset()
    play.put('red_cube', np.array([*play.episode.setting.zone, HEIGHT['red_cube']]))
    assert not play.go(2.0).watch.done


def test_an_object_in_the_bowl_counts_once_the_hand_has_let_go() -> None:
    play = Play('place')
    play.hold('red_cube')
    play.go(0.2)
    play.put('red_cube', play.at(BOWL) + np.array([0.01, 0.0, 0.03]))
    assert not play.go(1.0).watch.done, 'the fingers are at it'
    play.contacts = frozenset()
    found = play.go(0.6).watch.findings()
    assert found.success
    assert found.wrong == ()


def test_a_bowl_that_was_knocked_over_holds_nothing() -> None:
    play = Play('place')
    play.put('red_cube', play.at(BOWL) + np.array([0.01, 0.0, 0.03]))
    play.objects[BOWL] = Pose(play.at(BOWL), np.array([math.sin(0.5), 0.0, 0.0, math.cos(0.5)]))
    assert not play.go(2.0).watch.done


def test_other_objects_that_are_moved_or_grasped_are_told_with_their_time() -> None:
    play = Play('lift').go(0.5)
    play.put('green_ball', play.at('green_ball') + np.array([0.03, 0.0, 0.0]))
    play.go(0.5)
    play.hold('blue_disc', 0.0)
    play.go(0.1)
    assert play.watch.findings().wrong == ((0.55, 'green_ball', 'moved'), (1.05, 'blue_disc', 'grasped'))


def test_touching_the_table_is_counted_and_timed() -> None:
    play = Play('lift')
    for touching in (True, False, True):
        play.contacts = frozenset([('panda_finger1', 'table')]) if touching else frozenset()
        play.go(0.3)
    found = play.watch.findings()
    assert (found.table_contacts, found.table_s) == (2, pytest.approx(0.6))


def test_the_way_of_the_tool_is_measured() -> None:
    play = Play('lift')

    def move() -> None:
        play.tool = play.tool + np.array([0.01, 0.0, 0.0])

    found = play.go(1.0, move).watch.findings()
    assert (found.path_m, found.top_speed) == (pytest.approx(0.2), pytest.approx(0.2))
