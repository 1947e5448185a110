"""An engine that cannot run here is refused with TensorRT's own words, and nothing of it is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.backends.card import Card, EngineError, StoredFile, StoredPart, StoredPort
from engine.backends.tensorrt_api import RTX, find_tensorrt
from engine.backends.tensorrt_runner import open_engines
from engine.errors import CosmosError
from engine.export.engines import build_engine

pytest.importorskip('tensorrt_rtx_bindings')
helper = pytest.importorskip('onnx.helper')
onnx = pytest.importorskip('onnx')


@pytest.fixture(scope='module')
def engine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine that adds a tensor to itself."""
    folder = tmp_path_factory.mktemp('engine')
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 8]) for name in 'xy']
    graph = helper.make_graph([helper.make_node('Add', ['x', 'x'], ['y'])], 'double', ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 23)], ir_version=10)
    onnx.save(model, str(folder / 'step.onnx'))
    build_engine(find_tensorrt(RTX), folder / 'step.onnx', folder / 'step.engine', ('sm_89',))
    return folder / 'step.engine'


def card_of(file: Path) -> Card:
    x, y = (StoredPort(name, (4, 8), 'float32') for name in 'xy')
    return Card(
        key='k',
        made='2026-01-01T00:00:00+00:00',
        checkpoint={},
        contract={},
        layout={},
        precision='bf16',
        builder={'flavour': RTX, 'version': find_tensorrt(RTX).version},
        targets=('sm_89',),
        gpu='',
        versions={},
        parts={'step': StoredPart('step', {'engine': StoredFile.of(file)}, (x,), (y,))},
        accuracy={},
    )


def test_a_damaged_engine_is_named_with_what_tensorrt_says_of_it(engine_file: Path, tmp_path: Path) -> None:
    damaged = tmp_path / 'step.engine'
    damaged.write_bytes(b'not an engine' * 100)
    with pytest.raises(EngineError) as raised:
        open_engines(tmp_path, card_of(damaged), torch.device('cuda'))
    (problem,) = raised.value.problems
    assert problem.where == 'step.engine'
    assert 'Serialization' in problem.value
    assert problem.remedy


@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
def test_an_engine_without_a_gpu_says_that_there_is_none(engine_file: Path) -> None:
    with pytest.raises(EngineError) as raised:
        open_engines(engine_file.parent, card_of(engine_file), torch.device('cuda'))
    assert 'cuda' in raised.value.problems[0].value.lower()


@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
def test_a_part_that_runs_seldom_is_not_opened_before_it_runs(engine_file: Path) -> None:
    card = card_of(engine_file)
    step = card.parts['step']
    seldom = {'prefix': StoredPart('prefix', step.files, step.inputs, step.outputs)}
    runners = open_engines(
        engine_file.parent, Card(**{**vars(card), 'parts': seldom}), torch.device('cuda'), offload=True
    )
    with pytest.raises(CosmosError, match='cannot be read'):
        runners['prefix']({'x': torch.zeros(4, 8)})
