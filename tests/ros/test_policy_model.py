"""What takes time is done and told while the policy node configures; what does not fit is refused there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from cosmos3_ros.policy_model import MODEL_PARAMETERS, load_policy
from engine.contract import load_contract
from engine.errors import CosmosError, InvalidInput
from engine.export.accuracy import make_observations


@pytest.fixture
def contract() -> engine.Contract:
    found = load_contract('demo_joint_pos')
    return replace(found, timing=replace(found.timing, chunk_rows=4))


def values_of(checkpoint: Path, **given: Any) -> dict[str, Any]:
    defaults = {parameter.name: parameter.default for parameter in MODEL_PARAMETERS}
    return defaults | {'contract': 'demo_joint_pos', 'checkpoint': str(checkpoint)} | given


@pytest.mark.slow
def test_graphs_are_built_once_while_configuring_and_run_as_the_reference_does(
    tiny_checkpoint: Path, contract: engine.Contract, tmp_path: Path
) -> None:
    pytest.importorskip('onnxruntime')
    told: list[str] = []
    values = values_of(tiny_checkpoint, build=True, compiled=str(tmp_path / 'compiled'))
    ours = load_policy(values, contract, told.append)
    reference = load_policy(values_of(tiny_checkpoint, warm_up=False), contract, lambda text: None)
    (observation,) = make_observations(contract, 1)
    expected = reference.infer(observation).actions
    np.testing.assert_allclose(ours.infer(observation).actions, expected, atol=1e-4)
    said = '\n'.join(told)
    for expected_line in (
        'building step: graph',
        'built, fp32',
        'compiled parts verified',
        'backend onnxruntime: the compiled parts hold graphs and no engines',
        'weights loaded for onnxruntime on cpu',
        'warmed up in',
        'a chunk takes',
    ):
        assert expected_line in said
    told.clear()
    load_policy(values, contract, told.append)
    assert 'already built' in '\n'.join(told)
    with pytest.raises(CosmosError, match='differs from the compiled parts'):
        load_policy(values | {'build': False}, load_contract('demo_joint_pos'), told.append)


@pytest.mark.parametrize(
    ('given', 'where'),
    [
        ({'build': True}, 'compiled'),
        ({'build': True, 'compiled': 'somewhere', 'dtype': 'float64'}, 'dtype'),
        ({'backend': 'tensorrt'}, 'compiled'),
        ({'compiled': 'nowhere'}, 'engine.json'),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_a_way_out(
    tiny_checkpoint: Path, contract: engine.Contract, given: dict[str, Any], where: str
) -> None:
    with pytest.raises(InvalidInput) as raised:
        load_policy(values_of(tiny_checkpoint, **given), contract, lambda text: None)
    (problem,) = raised.value.problems
    assert problem.where.endswith(where)
    assert problem.remedy or problem.allowed


def test_a_node_with_unfit_parts_stays_unconfigured_and_says_why(policy_bench) -> None:
    bench = policy_bench(compiled='nowhere')
    assert not bench.node.transition('configure')
    assert 'nowhere' in bench.node.last_failure
    assert 'cosmos3 compile' in bench.node.last_failure
    assert bench.node.state_label == 'unconfigured'


def test_the_preset_of_the_node_decides_the_steps(policy_bench) -> None:
    bench = policy_bench(preset='fast')
    assert bench.node.transition('configure'), bench.node.last_failure
    assert len(bench.node.loop.policy.schedule) == 2
