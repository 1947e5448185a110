"""The difference between two ways of running a checkpoint is told in the units of the robot, row and joint included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.checkpoint import open_checkpoint
from engine.contract import load_contract
from engine.cosmos3 import load_with_torch
from engine.export.accuracy import collect_chunks, compare_chunks, make_observations
from engine.export.trial import TooCostly, Trial
from engine.policy import check_observation

CONTRACTS = ('demo_joint_pos', 'droid_ee_delta', 'demo_dual', 'robomind_dual')


@pytest.mark.parametrize('name', CONTRACTS)
def test_made_up_observations_fit_their_contract_and_repeat_with_their_seed(name: str) -> None:
    contract = load_contract(name)
    first, again = (make_observations(contract, 2, seed=3) for _ in range(2))
    for observation, same in zip(first, again, strict=True):
        check_observation(observation, contract)
        for view, picture in observation.images.items():
            np.testing.assert_array_equal(picture, same.images[view])
            assert picture.std() > 10, 'a picture without content would hide what a precision does to it'


def test_a_joint_that_is_off_is_named_with_its_row_and_its_radians() -> None:
    contract = load_contract('demo_joint_pos')
    wanted = np.random.default_rng(0).normal(size=(3, 2, 32, 8))
    found = wanted.copy()
    found[..., 2] += 0.01
    found[1, 0, 7, 2] += 0.09
    found[2, 1, 4, 7] -= 0.5
    told = compare_chunks(contract, found, wanted, ('this', 'that'))
    joint = told.quantities['panda_joint3']
    assert (joint.unit, joint.worst_row) == ('rad', 7)
    assert joint.worst == pytest.approx(0.1)
    assert 0.01 < joint.rmse < 0.02
    assert told.quantities['panda_joint1'].worst == 0
    assert told.quantities['panda_finger_joint1'].unit == 'closed fraction'
    assert told.quantities['panda_finger_joint1'].worst == pytest.approx(0.5)
    assert told.worst_joint_rmse == joint.rmse
    assert told.spread['panda_joint1'] == pytest.approx(np.sqrt(2), rel=0.3)
    assert (told.observations, told.seeds) == (3, 2)


@pytest.mark.parametrize('angle', [1e-7, 0.3, 3.1])
def test_a_pose_that_is_off_is_told_in_metres_and_radians(angle: float) -> None:
    contract = load_contract('droid_ee_delta')
    wanted = np.zeros((1, 2, 4, 8))
    wanted[..., :7] = [0.4, 0.1, 0.3, 0.0, 0.0, 0.0, 1.0]
    found = wanted.copy()
    found[..., 2] += 0.003
    found[..., 3:7] = [0.0, np.sin(angle / 2), 0.0, np.cos(angle / 2)]
    told = compare_chunks(contract, found, wanted, ('this', 'that')).quantities
    frame = contract.robot.end_effector_frames[0]
    assert told[f'{frame} position'].rmse == pytest.approx(0.003)
    assert told[f'{frame} rotation'].rmse == pytest.approx(angle, rel=1e-4)
    found[..., 3:7] *= -1  # the same rotation
    told = compare_chunks(contract, found, wanted, ('this', 'that')).quantities
    assert told[f'{frame} rotation'].rmse == pytest.approx(angle, rel=1e-4)


def test_the_reference_differs_from_itself_by_nothing_and_from_double_precision_by_rounding(
    tiny_checkpoint: Path,
) -> None:
    contract = load_contract('demo_joint_pos')
    contract = replace(contract, timing=replace(contract.timing, chunk_rows=4))
    checkpoint, observations = open_checkpoint(tiny_checkpoint), make_observations(contract, 1)
    chunks = []
    for dtype in ('float64', 'float32', 'float32'):
        policy = load_with_torch(checkpoint, torch.device('cpu'), dtype).policy(contract)
        chunks.append(collect_chunks(policy, observations, (0, 1)))
    rounded = compare_chunks(contract, chunks[1], chunks[0], ('single', 'double'))
    assert 0 < rounded.worst_joint_rmse < 1e-5
    assert compare_chunks(contract, chunks[2], chunks[1], ('reference', 'reference')).worst_joint_rmse == 0


def test_a_comparison_that_would_take_hours_is_left_out_with_its_cost(tiny_checkpoint: Path) -> None:
    trial = Trial(open_checkpoint(tiny_checkpoint), load_contract('demo_joint_pos'), 2)
    trial.check_cost(memory=10**10)
    with pytest.raises(TooCostly, match='GB of memory'):
        trial.check_cost(memory=10**6)
    with pytest.raises(TooCostly, match='operations'):
        replace(trial, observations=10**6).check_cost(memory=10**10)
