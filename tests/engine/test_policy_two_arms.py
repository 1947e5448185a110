"""Rows of two arms are those of their codecs, on the way in and on the way out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import engine
from engine.actions import Poses, codec, quaternion_to_matrix
from engine.errors import ObservationError
from engine.policy import Policy
from tests.engine.test_policy import watched

Observe = Callable[..., engine.Observation]
START = np.array([[0.36, 0.4, 0.49], [0.36, -0.4, 0.49]])
TURNED = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])


@pytest.fixture(scope='module')
def contract() -> engine.Contract:
    return engine.load_contract('demo_dual')


@pytest.fixture(scope='module')
def look(observe: Observe) -> Observe:
    """Make an observation of two arms."""

    def make(**changed: Any) -> engine.Observation:
        pictures = list(observe().images.values())
        fields: dict[str, Any] = {
            'images': dict(zip(('front', 'left', 'right'), pictures, strict=True)),
            'end_effector_position': START,
            'end_effector_quaternion': TURNED,
        }
        return observe(**(fields | changed))

    return make


@pytest.fixture(scope='module')
def chunk(model: engine.Cosmos3, contract: engine.Contract, look: Observe) -> engine.PolicyChunk:
    return model.policy(contract).infer(look(), seed=3)


def poses(rows: np.ndarray) -> Poses:
    """Poses [N, 2] of rows of a chunk."""
    numbers = rows[:, :14].astype(np.float64).reshape(-1, 2, 7)
    return Poses(numbers[..., :3], quaternion_to_matrix(numbers[..., 3:]))


def test_a_chunk_holds_the_pose_of_each_arm_and_then_both_grippers(chunk: engine.PolicyChunk) -> None:
    assert (chunk.actions.shape, chunk.actions.dtype) == ((16, 16), np.float32)
    quaternions = chunk.actions[:, :14].reshape(16, 2, 7)[..., 3:]
    np.testing.assert_allclose(np.linalg.norm(quaternions, axis=-1), 1.0, atol=1e-6)
    path = np.concatenate([START[None], poses(chunk.actions).position])
    steps = np.linalg.norm(np.diff(path, axis=0), axis=-1)
    assert (steps < 0.02).all(), 'the tiny checkpoint moves arms as a robot can'
    assert (np.linalg.norm(path[-1] - path[0], axis=-1) > 1e-3).all(), 'both of them'
    assert (np.ptp(chunk.actions[:, 14:], axis=0) > 0.05).all(), 'and both grippers'


def test_rows_of_the_network_are_those_that_the_codec_writes(
    model: engine.Cosmos3, backend: Any, contract: engine.Contract, look: Observe, chunk: engine.PolicyChunk
) -> None:
    given = chunk.actions[:4].astype(np.float64)
    policy = watched(model, backend, contract)
    continued = policy.infer(look(), seed=4, committed=given)
    path = poses(given)
    whole = Poses(
        np.concatenate([START[None], path.position]),
        np.concatenate([quaternion_to_matrix(TURNED)[None], path.rotation]),
    )
    expected = codec('robomind-franka-dual', 'ee_delta', 'quantile').encode_trajectory(whole, given[:, 14:])
    np.testing.assert_allclose(backend.actions[0][:4, :20].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(continued.actions[:4, [0, 1, 2, 7, 8, 9]], given[:, [0, 1, 2, 7, 8, 9]], atol=1e-5)
    np.testing.assert_allclose(continued.actions[:4, 14:], given[:, 14:], atol=1e-5)


def test_each_arm_sets_out_from_its_own_pose(
    model: engine.Cosmos3, contract: engine.Contract, look: Observe, chunk: engine.PolicyChunk
) -> None:
    moved = START + np.array([[0.0, 0.0, 0.0], [0.1, -0.05, 0.02]])
    there = model.policy(contract).infer(look(end_effector_position=moved), seed=3).actions
    np.testing.assert_allclose(there[:, :7], chunk.actions[:, :7], atol=1e-6)
    shift = (moved - START)[1]
    np.testing.assert_allclose(there[:, 7:10] - shift, chunk.actions[:, 7:10], atol=1e-6)


@pytest.mark.parametrize(
    ('changes', 'where'),
    [
        ({'end_effector_position': START[0]}, 'end_effector_position'),
        ({'end_effector_quaternion': TURNED[:1]}, 'end_effector_quaternion'),
        ({'end_effector_position': np.where(np.arange(3) == 1, np.nan, START)}, 'end_effector_position'),
    ],
)
def test_the_pose_of_an_arm_that_is_missing_or_wrong_is_named(
    model: engine.Cosmos3, contract: engine.Contract, look: Observe, changes: dict[str, Any], where: str
) -> None:
    with pytest.raises(ObservationError) as caught:
        model.policy(contract).infer(look(**changes))
    assert [problem.where for problem in caught.value.problems] == [where]


def test_rows_of_joints_are_put_in_order_arms_first_and_grippers_behind(
    model: engine.Cosmos3, contract: engine.Contract, look: Observe
) -> None:
    terms = replace(
        contract.embodiment, domain='robotwin', action_space='joint_position', raw_action_dim=14, normalization='none'
    )
    arms = tuple(replace(arm, joints=arm.joints[:6]) for arm in contract.robot.arms)
    policy = Policy(model.runtime, replace(contract, embodiment=terms, robot=replace(contract.robot, arms=arms)))
    rows = torch.zeros(16, 64)
    rows[:, :14] = torch.arange(16 * 14).view(16, 14)
    decoded = policy._decode(rows, look())
    np.testing.assert_array_equal(decoded[1], [*range(14, 20), *range(21, 27), 20, 27])
    np.testing.assert_allclose(policy._committed_rows(look(), decoded[:3]), rows[:3, :14].numpy())
