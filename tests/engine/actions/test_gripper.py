"""Polarity: robots say 1 for closed, the model says 1 for open; a wrong sign opens the hand that should grasp."""

from __future__ import annotations

import numpy as np
import pytest

from engine.actions import GripperTravel, to_model_gripper, to_robot_gripper
from engine.errors import InvalidInput

PANDA = GripperTravel(open=0.04, closed=0.0)
ROBOTIQ = GripperTravel(open=0.0, closed=0.8)


def test_an_open_robot_gripper_is_one_in_the_model_and_a_closed_one_zero():
    np.testing.assert_array_equal(to_model_gripper([0.0, 1.0]), [1.0, 0.0])


def test_what_the_model_calls_open_opens_the_robot():
    np.testing.assert_array_equal(to_robot_gripper([1.0, 0.0]), [0.0, 1.0])


def test_there_and_back_is_the_identity_even_beyond_the_ends():
    values = np.linspace(-0.25, 1.25, 7)
    np.testing.assert_allclose(to_robot_gripper(to_model_gripper(values)), values, atol=1e-15)


@pytest.mark.parametrize('convert', [to_model_gripper, to_robot_gripper])
def test_nothing_is_clipped_or_thresholded(convert):
    np.testing.assert_allclose(convert([-0.1, 0.4, 1.1]), [1.1, 0.6, -0.1])


@pytest.mark.parametrize('convert', [to_model_gripper, to_robot_gripper])
def test_a_gripper_that_is_not_a_number_is_refused_by_row(convert):
    with pytest.raises(InvalidInput, match=r'gripper\[1\]: is not finite'):
        convert([0.0, float('nan')])


@pytest.mark.parametrize(('travel', 'opened', 'closed'), [(PANDA, 0.04, 0.0), (ROBOTIQ, 0.0, 0.8)])
def test_both_ends_of_travel_read_as_open_and_closed(travel, opened, closed):
    np.testing.assert_array_equal(travel.closed_fraction([opened, closed]), [0.0, 1.0])
    np.testing.assert_array_equal(travel.position([0.0, 1.0]), [opened, closed])


@pytest.mark.parametrize('travel', [PANDA, ROBOTIQ])
def test_positions_come_back_all_along_the_travel(travel):
    positions = np.linspace(travel.open, travel.closed, 11)
    np.testing.assert_allclose(travel.position(travel.closed_fraction(positions)), positions, atol=1e-15)


@pytest.mark.parametrize('travel', [PANDA, ROBOTIQ])
def test_from_the_finger_to_the_model_and_back_both_ends_meet(travel):
    for position, model in ((travel.open, 1.0), (travel.closed, 0.0)):
        assert to_model_gripper(travel.closed_fraction(position)) == model
        assert travel.position(to_robot_gripper(model)) == position


def test_a_reading_just_beyond_its_end_is_noise_and_clipped():
    np.testing.assert_array_equal(PANDA.closed_fraction([0.0401, -0.0003]), [0.0, 1.0])


def test_a_reading_far_beyond_its_end_is_a_fault():
    with pytest.raises(InvalidInput, match=r'beyond its travel, got 0.8, allowed: 0.04 \(open\) to 0 \(closed\)'):
        PANDA.closed_fraction(0.8)


def test_a_command_beyond_the_ends_stops_at_them():
    np.testing.assert_array_equal(PANDA.position([-0.3, 1.7]), [0.04, 0.0])


@pytest.mark.parametrize('ends', [(0.04, 0.04), (float('nan'), 0.0), (float('inf'), 0.0)])
def test_ends_that_span_no_travel_are_refused(ends):
    with pytest.raises(InvalidInput, match='span no travel'):
        GripperTravel(*ends)
