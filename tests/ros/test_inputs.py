"""Promises of the inputs: everything a contract's policy reads as of one moment, and a name for what is missing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cosmos3_ros.conversions import Pose
from cosmos3_ros.inputs import END_EFFECTOR, JOINT_STATES, Inputs
from cosmos3_ros.streams import Missing, Timeline
from engine.contract import load_contract
from engine.errors import ObservationError, Problem
from engine.policy import Observation, check_observation

S = 1_000_000_000
NOW = 1_000 * S
PICTURE = np.zeros((90, 160, 3), np.uint8)
JOINTS = np.arange(7) / 10
POSE = Pose(np.array([0.4, 0.0, 0.5]), np.array([1.0, 0.0, 0.0, 0.0]), 'panda_link0')


def fill(inputs: Inputs, stamp_ns: int = NOW, *, leave_out: tuple[str, ...] = ()) -> Inputs:
    values = dict.fromkeys(inputs.views, PICTURE)
    values |= {name: (JOINTS, 0.25) if name == JOINT_STATES else POSE for name in inputs.states}
    for name, value in values.items():
        if name not in leave_out:
            inputs.push(name, stamp_ns, NOW, value)
    return inputs


@pytest.fixture
def joint_contract():
    return load_contract('demo_joint_pos')


@pytest.fixture
def pose_contract():
    return load_contract('droid_ee_delta')


def test_a_complete_observation_satisfies_its_contract(joint_contract, pose_contract):
    for contract in (joint_contract, pose_contract):
        observation, snapshot = fill(Inputs(contract)).observe(NOW, 'stack the cups')
        assert isinstance(observation, Observation)
        check_observation(observation, contract)
        assert observation.instruction == 'stack the cups'
        assert snapshot.reference_ns == NOW


def test_the_observation_holds_what_was_pushed(joint_contract):
    observation, _ = fill(Inputs(joint_contract)).observe(NOW, 'go')
    np.testing.assert_array_equal(observation.joint_positions, JOINTS)
    assert observation.gripper_position == 0.25
    assert all(picture is PICTURE for picture in observation.images.values())
    assert observation.end_effector_position is None


def test_an_end_effector_observation_holds_pose_and_gripper(pose_contract):
    observation, snapshot = fill(Inputs(pose_contract)).observe(NOW, 'go')
    np.testing.assert_array_equal(observation.end_effector_position, POSE.position)
    np.testing.assert_array_equal(observation.end_effector_quaternion, POSE.quaternion)
    assert observation.gripper_position == 0.25
    assert snapshot.samples[END_EFFECTOR].value.frame_id == 'panda_link0'


@pytest.mark.parametrize('name', ['wrist', 'exterior_1', 'exterior_2', JOINT_STATES])
def test_every_input_that_is_missing_is_named(joint_contract, name):
    found = fill(Inputs(joint_contract), leave_out=(name,)).observe(NOW, 'go')
    assert [item.stream for item in found if isinstance(item, Missing)] == [name]


def test_an_end_effector_policy_waits_for_the_gripper_that_its_state_row_shows(pose_contract):
    found = fill(Inputs(pose_contract), leave_out=(JOINT_STATES,)).observe(NOW, 'go')
    assert [item.stream for item in found] == [JOINT_STATES]


def test_an_end_effector_policy_without_a_state_row_does_without_joint_states(pose_contract):
    contract = replace(pose_contract, embodiment=replace(pose_contract.embodiment, state_row=False))
    observation, _ = fill(Inputs(contract), leave_out=(JOINT_STATES,)).observe(NOW, 'go')
    check_observation(observation, contract)


def test_all_values_are_of_the_moment_up_to_which_the_slowest_stream_is_known(joint_contract):
    inputs = fill(Inputs(joint_contract), NOW - S // 10)
    for step in range(1, 10):
        inputs.push(JOINT_STATES, NOW - S // 10 + step * S // 100, NOW, (JOINTS + step, 1.0))
    observation, snapshot = inputs.observe(NOW, 'go')
    assert snapshot.reference_ns == NOW - S // 10
    np.testing.assert_array_equal(observation.joint_positions, JOINTS)


def test_without_a_synchronised_clock_the_time_of_arrival_can_count(joint_contract):
    inputs = fill(Inputs(joint_contract, Timeline.RECEIVE), stamp_ns=0)
    observation, snapshot = inputs.observe(NOW, 'go')
    assert isinstance(observation, Observation)
    assert snapshot.reference_ns == NOW


def test_a_missing_stream_is_explained_with_age_and_limit(joint_contract):
    inputs = fill(Inputs(joint_contract), NOW - 2 * S, leave_out=('wrist',))
    fill(inputs, leave_out=('wrist', 'exterior_2'))
    assert [inputs.explain(item) for item in inputs.observe(NOW, 'go')] == [
        'wrist (never received)',
        'exterior_2 (stale, 2.00 s > 0.50 s)',
    ]


def test_a_stream_from_the_future_is_explained_by_how_far_it_is_ahead(joint_contract):
    inputs = fill(Inputs(joint_contract), leave_out=('wrist',))
    inputs.push('wrist', NOW + 3 * S, NOW, PICTURE)
    assert [inputs.explain(item) for item in inputs.observe(NOW, 'go')] == [
        'wrist (only from the future, 3.00 s ahead)'
    ]


def test_an_unusable_message_explains_why_its_stream_is_missing_until_a_good_one_comes(joint_contract):
    inputs = fill(Inputs(joint_contract), leave_out=('wrist',))
    error = ObservationError('image', [Problem('camera/wrist', 'unknown encoding', "'yuv'"), Problem('x', 'y')])
    assert inputs.reject('wrist', error)
    assert not inputs.reject('wrist', error), 'the same fault again is nothing new'
    (missing,) = inputs.observe(NOW, 'go')
    assert inputs.explain(missing) == (
        "wrist (never received; the latest message was not usable: camera/wrist: unknown encoding, got 'yuv'; x: y)"
    )
    assert dict(inputs.rejected) == {'wrist': "camera/wrist: unknown encoding, got 'yuv'; x: y"}
    inputs.push('wrist', NOW, NOW, PICTURE)
    assert not inputs.rejected
    assert isinstance(inputs.observe(NOW, 'go')[0], Observation)
    assert inputs.reject('wrist', error), 'after a good one it is news again'


def test_clearing_forgets_values_and_faults(joint_contract):
    inputs = fill(Inputs(joint_contract))
    inputs.reject('wrist', ObservationError('image', [Problem('x', 'y')]))
    inputs.clear()
    assert len(inputs.observe(NOW, 'go')) == 4
    assert not inputs.rejected
