"""Whatever contract can be read can be compiled for, and then the graphs do what the reference does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from benchmarks.compile_cases import BOUND, FAMILIES, Case, cases, make_checkpoint, try_case

pytest.importorskip('onnxruntime')
pytest.importorskip('tensorrt_rtx_bindings')


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp('fuzz')
    return {family: make_checkpoint(folder / family, family) for family in FAMILIES}


# One case, always the same: benchmarks/compile_fuzz.py runs many. Each takes seconds, so a case that fails is
# reported as it is and not made smaller.
@pytest.mark.slow
@settings(
    max_examples=1,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(case=cases())
def test_any_contract_compiles_and_gives_the_numbers_of_the_reference(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, case: Case
) -> None:
    outcome = try_case(case, checkpoints[case.family], tmp_path_factory.mktemp('case'))
    assert outcome.rows <= BOUND
    assert outcome.latents <= BOUND
    assert outcome.levels <= 1
    assert outcome.layers > 100
