"""Whether the hand came to what was named is judged as the evaluation does, from what a run left behind."""

from __future__ import annotations

import numpy as np
import pytest

from cosmos3_ros.run_judge import judge, target_of
from cosmos3_ros.run_record import Leg, RunRecord
from cosmos3_ros.run_report import reached_table
from engine.evaluation.expert_kinematics import downwards, solve
from engine.evaluation.franka_scene import ARM_JOINTS, HOME, OBJECTS
from engine.evaluation.simulated_franka import Pose
from engine.evaluation.tasks import NAMES, TASKS, TOPS, make_episode, wordings

PLACES = make_episode('reach', 0).setting.places


def above(name: str) -> np.ndarray:
    """Joints with the tool 3 cm above an object."""
    x, y, _ = PLACES[name]
    return solve(np.array([[x, y, TOPS[name] + 0.03]]), [downwards(0.0)], np.array(HOME))[0]


def run(*stays: tuple[float, np.ndarray]) -> RunRecord:
    """A run in which the arm is at each of the joints for so many seconds."""
    record = RunRecord(ARM_JOINTS)
    heights = {thing.name: thing.height for thing in OBJECTS}
    there = {
        name: Pose(np.array([x, y, heights[name]]), np.array([0.0, 0.0, 0.0, 1.0]))
        for name, (x, y, _) in PLACES.items()
    }
    time = 100.0
    for seconds, joints in stays:
        for _ in range(round(seconds * 100)):
            record.measured.append((time, joints))
            time += 0.01
    record.objects = [(100.0 + 0.066 * k, there) for k in range(round((time - 100.0) / 0.066))]
    return record


def test_a_hand_that_stays_above_what_was_named_has_reached_it():
    record = run((1.0, np.array(HOME)), (1.0, above('red_cube')))
    found = judge(record, Leg('reach for the red cube', 100.0, 102.0))
    assert found.target == 'red_cube'
    assert found.after_s == pytest.approx(1.0, abs=0.02)
    assert found.beside_m < 0.001
    assert found.others == ()


def test_a_hand_above_something_else_has_not_and_it_is_named():
    record = run((0.5, np.array(HOME)), (1.0, above('blue_disc')), (0.3, above('red_cube')))
    found = judge(record, Leg('go to the red block', 100.0, 101.8))
    assert found.after_s is None, 'too short a stay'
    assert found.others == ('blue_disc',)
    table = reached_table([(Leg('go to the red block', 100.0, 101.8), found)])
    assert table.row_count == 1


def test_each_leg_is_judged_by_its_own_time():
    record = run((1.0, above('red_cube')), (1.0, above('green_ball')))
    assert judge(record, Leg('hover over the green ball', 101.0, 102.0)).after_s == pytest.approx(0.0, abs=0.02)
    assert judge(record, Leg('hover over the green ball', 100.0, 101.0)).after_s is None


def test_where_the_hand_was_from_the_leg_before_is_not_held_against_it():
    record = run((1.0, above('red_cube')), (1.0, above('blue_disc')))
    assert judge(record, Leg('go to the blue disc', 100.0, 102.0)).others == ()
    assert judge(record, Leg('reach for the red cube', 100.0, 102.0)).others == ('blue_disc',)


def test_where_nobody_can_tell_nothing_is_said():
    record = run((1.0, above('red_cube')))
    two_arms = RunRecord(tuple(f'{side}_{name}' for side in ('left', 'right') for name in ARM_JOINTS))
    two_arms.measured = [(time, np.tile(joints, 2)) for time, joints in record.measured]
    two_arms.objects = record.objects
    assert judge(two_arms, Leg('reach for the red cube', 100.0, 101.0)) is None
    assert judge(record, Leg('put the red cube in the bowl', 100.0, 101.0)) is None
    assert judge(record, Leg('reach for the red cube', 200.0, 201.0)) is None
    record.objects.clear()
    assert judge(record, Leg('reach for the red cube', 100.0, 101.0)) is None


def test_every_wording_of_the_evaluation_is_understood():
    for target in TASKS['reach'].targets:
        assert {target_of(words) for words in wordings('reach', target)} == {target}
    assert target_of(f'Reach for the {NAMES["red_cube"][1]}.') == 'red_cube'
    assert target_of('lift the red cube') is None
