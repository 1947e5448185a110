"""Fixed frames are what the training data applied, step by step."""

from __future__ import annotations

import numpy as np
import pytest

from engine.actions import Poses, compose, frames
from engine.actions.spaces import AGIBOT


def rotated(pose: Poses, *rows: list[float]) -> Poses:
    return Poses(pose.position, pose.rotation @ np.array(rows))


@pytest.fixture
def measured() -> Poses:
    return Poses.from_rpy([0.4, -0.1, 0.5], [3.0, 0.2, -0.4])


def test_droid_turns_the_orientation_about_local_z_and_leaves_the_position(measured):
    turned = compose(measured, frames.DROID)
    np.testing.assert_array_equal(turned.position, measured.position)
    np.testing.assert_allclose(turned.rotation[:, 0], measured.rotation[:, 1])
    np.testing.assert_allclose(turned.rotation[:, 1], -measured.rotation[:, 0])
    np.testing.assert_allclose(turned.rotation[:, 2], measured.rotation[:, 2])


def test_bridge_turns_steps_back_to_the_flange_and_turns_again(measured):
    kinematic = rotated(measured, [0, 0, 1], [0, 1, 0], [-1, 0, 0])
    flange = Poses(kinematic.position - 0.093575 * kinematic.rotation[:, 0], kinematic.rotation)
    expected = rotated(flange, [0, 0, 1], [-1, 0, 0], [0, -1, 0])
    actual = compose(measured, frames.BRIDGE)
    np.testing.assert_allclose(actual.position, expected.position, atol=1e-15)
    np.testing.assert_allclose(actual.rotation, expected.rotation, atol=1e-15)


def test_fractal_steps_back_sixteen_centimetres_along_the_approach_and_turns():
    np.testing.assert_allclose(frames.FRACTAL.position, [-0.00506, -0.00167, -0.16351], atol=1e-5)
    np.testing.assert_allclose(frames.FRACTAL.rotation, [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], atol=0.005)
    np.testing.assert_allclose(frames.FRACTAL.rotation @ frames.FRACTAL.rotation.T, np.eye(3), atol=1e-14)


def test_umi_offsets_the_camera_to_the_fingers():
    np.testing.assert_array_equal(frames.UMI.position, [0, 0.086, 0.09])
    np.testing.assert_array_equal(frames.FAST_UMI.position, [0, 0.086, 0.056])
    np.testing.assert_array_equal(frames.UMI.rotation, np.eye(3))


def test_the_arms_of_agibot_are_turned_opposite_ways_and_its_head_is_not():
    head, right, left = AGIBOT[0].frames
    np.testing.assert_array_equal(head.rotation, np.eye(3))
    np.testing.assert_array_equal(right.rotation, [[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(left.rotation, right.rotation.T)


def test_the_hand_is_turned_like_the_left_arm():
    np.testing.assert_array_equal(frames.HAND.rotation, [[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
