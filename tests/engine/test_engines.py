"""TensorRT for RTX builds the parts for GPUs that are not there, in bfloat16 and in FP8, or says why it does not."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx.numpy_helper import to_array

import engine
from engine.backends.tensorrt_api import NATIVE, RTX, TensorRt, find_tensorrt
from engine.contract import load_contract
from engine.errors import CosmosError, InvalidInput
from engine.export.engines import build_engine
from engine.export.fp8 import quantise_step
from engine.export.onnx_files import write_onnx
from engine.export.parts import StepPlan, prompt_part, step_part
from engine.policy import layout_of

pytest.importorskip('tensorrt_rtx_bindings')


@pytest.fixture(scope='module')
def tensorrt() -> TensorRt:
    return find_tensorrt(RTX)


@pytest.fixture(scope='module', params=['nano', 'edge'])
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix and step of a tiny checkpoint in bfloat16."""
    folder = tmp_path_factory.mktemp('graphs')
    contract = load_contract('demo_joint_pos')
    contract = replace(contract, timing=replace(contract.timing, chunk_rows=4))
    model = engine.load(engine.make_tiny(folder / 'tiny', request.param, sound=False), dtype='bfloat16')
    transformer = model.runtime.backend.transformer
    with prompt_part(transformer, torch.bfloat16, 96) as part:
        write_onnx(part, folder)
    with step_part(transformer, torch.bfloat16, StepPlan(layout_of(contract), 96), 0) as part:
        write_onnx(part, folder)
    return folder


def test_parts_build_for_two_generations_of_gpus_at_once(tensorrt: TensorRt, graphs: Path) -> None:
    targets = tensorrt.check_targets(('SM89', 'sm_120', 'sm120'), None)
    assert targets == ('sm_89', 'sm_120')
    told: list[tuple[str, float]] = []
    for name in ('prefix', 'step'):
        built = build_engine(
            tensorrt, graphs / f'{name}.onnx', graphs / f'{name}.engine', targets, lambda *said: told.append(said)
        )
        assert (graphs / f'{name}.engine').stat().st_size == built.bytes > 100_000
        assert built.layers > 100
        assert told[-1][1] == 1.0
    assert not list(graphs.glob('*.partial'))


def tensors(graph: Path) -> dict[str, bytes]:
    """All constants of a graph by name."""
    return {entry.name: to_array(entry).tobytes() for entry in onnx.load(str(graph)).graph.initializer}


def test_fp8_builds_where_there_is_fp8_and_is_refused_with_the_reason_elsewhere(
    tensorrt: TensorRt, graphs: Path, tmp_path: Path
) -> None:
    for file in graphs.glob('step.onnx*'):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    graph, target = tmp_path / 'step.onnx', tmp_path / 'step.engine'
    before = graph.with_name('step.onnx.data').stat().st_size
    stored = tensors(graph)
    assert quantise_step(graph) in (12, 14)  # q, k, v, out, up and down of two layers; of Nano, gate too
    kept = tensors(graph).items() & stored.items()
    assert {'proj_in.weight', 'time_embedder.linear_1.weight'} <= {name for name, _ in kept}
    assert graph.with_name('step.onnx.data').stat().st_size < 0.75 * before
    build_engine(tensorrt, graph, target, ('sm_89', 'sm_120'))
    target.unlink()
    with pytest.raises(CosmosError, match='fp8'):
        build_engine(tensorrt, graph, target, ('sm_86',))
    assert not target.exists()


def test_a_graph_that_cannot_be_read_is_refused_with_what_tensorrt_says(tensorrt: TensorRt, tmp_path: Path) -> None:
    (tmp_path / 'step.onnx').write_bytes(b'no graph')
    with pytest.raises(InvalidInput, match=r'step\.onnx'):
        build_engine(tensorrt, tmp_path / 'step.onnx', tmp_path / 'step.engine', ('sm_89',))


def test_targets_that_cannot_be_met_come_with_the_way_out(tensorrt: TensorRt) -> None:
    hopper = ('NVIDIA H100', 'sm_90')
    with pytest.raises(InvalidInput) as error:
        tensorrt.check_targets((NATIVE, 'sm_90', 'sm_89'), hopper)
    texts = [str(problem) for problem in error.value.problems]
    assert len(texts) == 2
    assert 'NVIDIA H100 (sm_90): is not supported by TensorRT-RTX' in texts[0]
    assert all('full TensorRT' in text and 'torch-compiled' in text for text in texts)
    with pytest.raises(InvalidInput, match='there is no GPU on this machine'):
        tensorrt.check_targets((NATIVE,), None)
    with pytest.raises(InvalidInput, match='is missing'):
        tensorrt.check_targets((), None)
    full = TensorRt('tensorrt', '11.0', api=None)
    assert full.check_targets(('native', 'sm_90'), hopper) == ('native', 'sm_90')
    with pytest.raises(InvalidInput, match='builds for the GPU of this machine alone'):
        full.check_targets(('sm_89',), hopper)


def test_a_flavour_that_is_not_installed_is_named_with_the_way_to_get_it() -> None:
    if importlib.util.find_spec('tensorrt') is None:
        with pytest.raises(CosmosError, match='pip install tensorrt '):
            find_tensorrt('tensorrt')
    with pytest.raises(CosmosError, match='there are tensorrt and tensorrt_rtx'):
        find_tensorrt('openvino')
