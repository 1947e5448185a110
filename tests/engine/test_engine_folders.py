"""Engines of every part of both families, the card that goes with them, and everything that can be wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import onnx
import pytest
import torch

import engine
from benchmarks.compile_cases import make_checkpoint
from engine.backends.card import CARD, SCHEMA, Card, EngineError, digest, read_card
from engine.backends.choice import TENSORRT, Machine, choose
from engine.backends.compiled import step_names
from engine.backends.tensorrt_api import RTX, Messages, find_tensorrt
from engine.checkpoint import open_checkpoint
from engine.contract import load_contract
from engine.errors import InvalidInput
from engine.export import compiling
from engine.export.compiling import Compiled, Order, compile_checkpoint
from engine.policy import canvas_of, layout_of

pytest.importorskip('tensorrt_rtx_bindings')

TARGETS = ('sm_89', 'sm_120')
PARTS = {'prefix', 'step', 'encoder', 'decoder'}
FILES = {'graph': '.onnx', 'weights': '.onnx.data', 'engine': '.engine'}


@pytest.fixture(scope='module')
def contract() -> engine.Contract:
    """The shortest chunk there is, at the smallest number of pixels."""
    demo = load_contract('demo_joint_pos')
    return replace(demo, timing=replace(demo.timing, chunk_rows=4))


@pytest.fixture(scope='module')
def order(tmp_path_factory: pytest.TempPathFactory, contract: engine.Contract) -> Order:
    """Nano in bfloat16."""
    tiny = engine.make_tiny(tmp_path_factory.mktemp('checkpoints') / 'nano', sound=False)
    return Order(open_checkpoint(tiny), contract, 'bf16', TARGETS, RTX)


@pytest.fixture(scope='module')
def made(order: Order, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compile_checkpoint(order, tmp_path_factory.mktemp('engines') / 'nano')


@pytest.fixture
def folder(made: Compiled, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(made.folder, tmp_path / 'engines')


def has_all_engines(made: Compiled, parts: set[str] = PARTS) -> bool:
    """Whether there is an engine of each of these parts and of no other, as large as what it holds asks for."""
    sizes = {name: part.files['engine'].bytes for name, part in made.card.parts.items()}
    layers = {name: part.layers for name, part in made.card.parts.items()}
    return set(sizes) == parts and min(sizes.values()) > 100_000 and min(layers.values()) > 50


@pytest.mark.slow
def test_every_part_of_nano_builds_in_bfloat16_for_both_gpus(made: Compiled) -> None:
    assert made.card.precision == 'bf16'
    assert made.card.targets == TARGETS
    assert has_all_engines(made)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('family', 'precision', 'matrices'),
    [('edge', 'bf16', 0), ('edge', 'fp8', 12), ('nano', 'fp8', 14)],
)
def test_the_other_parts_of_both_families_build_in_both_precisions_for_both_gpus(
    contract: engine.Contract, tmp_path: Path, family: str, precision: str, matrices: int
) -> None:
    """Of two layers q, k, v, out, up and down are in FP8, and in Nano the gate."""
    # The decoder is the same in both families, and in FP8 what it is in bfloat16.
    order = Order(
        open_checkpoint(make_checkpoint(tmp_path / family, family)), contract, precision, TARGETS, RTX, decoder=False
    )
    made = compile_checkpoint(order, tmp_path / 'engines')
    assert made.card.precision == precision
    assert made.card.targets == TARGETS
    assert has_all_engines(made, PARTS - {'decoder'})
    eights = {name: count_fp8(made.folder / f'{name}.onnx') for name in made.card.parts}
    assert eights.pop('step') == matrices
    assert set(eights.values()) == {0}


def count_fp8(graph: Path) -> int:
    """Matrices of a graph that are stored in FP8."""
    stored = onnx.load(str(graph), load_external_data=False).graph.initializer
    return sum(entry.data_type == onnx.TensorProto.FLOAT8E4M3FN and len(entry.dims) == 2 for entry in stored)


@pytest.mark.slow
def test_the_card_says_everything_about_the_engines(made: Compiled, order: Order, contract: engine.Contract) -> None:
    card, layout, canvas = read_card(made.folder), layout_of(contract), canvas_of(contract)
    age = datetime.now(UTC) - datetime.fromisoformat(card.made)
    expected = {
        'key': compiling._key(compiling._plan(order)),
        'made': card.made,
        'checkpoint': {'fingerprint': order.checkpoint.fingerprint, 'family': 'nano'},
        'contract': {'name': 'demo_joint_pos', 'fingerprint': contract.fingerprint},
        'layout': {
            'frames': layout.vision.frames,
            'height': layout.vision.height,
            'width': layout.vision.width,
            'rows': layout.action.rows,
            'domain_id': layout.action.domain_id,
            'canvas': [canvas.height, canvas.width],
            'prompt': [2, 512],
        },
        'precision': 'bf16',
        'builder': {'flavour': RTX, 'version': find_tensorrt(RTX).version},
        'targets': TARGETS,
        'gpu': '',
        'versions': {name: version(name) for name in card.versions},
        'parts': card.parts,
        'accuracy': {},
        'schema': SCHEMA,
    }
    assert {item.name for item in fields(Card)} == set(expected)
    assert {name: getattr(card, name) for name in expected} == expected
    assert 0 <= age.total_seconds() < 3600
    assert {'torch', 'onnx', 'onnxscript'} <= set(card.versions)
    for name, part in card.parts.items():
        assert {key: file.name for key, file in part.files.items()} == {
            key: f'{name}{ending}' for key, ending in FILES.items()
        }
        for file in part.files.values():
            path = made.folder / file.name
            assert (path.stat().st_size, digest(path)) == (file.bytes, file.sha256)
        assert set(part.seconds) == {'export', 'build'}
        assert min(part.seconds.values()) > 0
    named = {file.name for part in card.parts.values() for file in part.files.values()}
    assert {path.name for path in made.folder.iterdir()} == {*named, CARD}


@pytest.mark.slow
def test_the_ports_of_the_card_are_those_of_the_engines(made: Compiled, contract: engine.Contract) -> None:
    """What TensorRT reads from the graph: names and shapes, the prompt's length open."""
    tensorrt = find_tensorrt(RTX)
    logger = Messages().logger(tensorrt.api)
    for name, part in made.card.parts.items():
        network = tensorrt.api.Builder(logger).create_network(0)
        parser = tensorrt.api.OnnxParser(network, logger)
        assert parser.parse_from_file(str(made.folder / f'{name}.onnx'))
        for ports, count, tensor in (
            (part.inputs, network.num_inputs, network.get_input),
            (part.outputs, network.num_outputs, network.get_output),
        ):
            found = [(tensor(index).name, tuple(tensor(index).shape)) for index in range(count)]
            said = [(port.name, tuple(-1 if size == 'length' else size for size in port.shape)) for port in ports]
            assert found == said


@pytest.mark.slow
def test_a_second_compilation_of_engines_builds_nothing(made: Compiled, order: Order) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.folder.iterdir()}
    told: list[str] = []
    again = compile_checkpoint(order, made.folder, lambda what, share: told.append(what))
    assert again.cached
    assert again.card == made.card
    assert told == []
    assert {path: path.stat().st_mtime_ns for path in made.folder.iterdir()} == before


# What can be wrong


def edit(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Somebody edits the card by hand."""

    def damage(folder: Path) -> None:
        document = json.loads((folder / CARD).read_text())
        change(document)
        (folder / CARD).write_text(json.dumps(document))

    return damage


def forge(change: Callable[[Card, Path], Card]) -> Callable[[Path], None]:
    """A card that is sound by itself says what is not so."""

    def damage(folder: Path) -> None:
        change(read_card(folder), folder).write(folder)

    return damage


def flip(folder: Path) -> None:
    data = bytearray((folder / 'step.engine').read_bytes())
    data[len(data) // 2] ^= 16
    (folder / 'step.engine').write_bytes(data)


def truncate(folder: Path) -> None:
    data = (folder / 'step.engine').read_bytes()
    (folder / 'step.engine').write_bytes(data[: len(data) // 2])


def lead_out(card: Card, folder: Path) -> Card:
    shutil.copy(folder / 'step.engine', folder.parent / 'step.engine')
    part = card.parts['step']
    file = replace(part.files['engine'], name='../step.engine')
    return replace(card, parts={**card.parts, 'step': replace(part, files={**part.files, 'engine': file})})


def swap(folder: Path) -> None:
    encoder, decoder = ((folder / f'{name}.onnx.data').read_bytes() for name in ('encoder', 'decoder'))
    (folder / 'encoder.onnx.data').write_bytes(decoder)
    (folder / 'decoder.onnx.data').write_bytes(encoder)


def of_another(folder: Path) -> None:
    """Engines of the same sizes, built from something else."""
    for path in folder.glob('*.engine'):
        path.write_bytes(bytes(path.stat().st_size))


DAMAGES = {
    'truncated engine': (truncate, ['step.engine: has another length']),
    'flipped bit': (flip, ['step.engine: has other contents']),
    'missing engine': (lambda f: (f / 'prefix.engine').unlink(), ['prefix.engine: is missing']),
    'missing weights': (lambda f: (f / 'prefix.onnx.data').unlink(), ['prefix.onnx.data: is missing']),
    'weights of another part': (swap, ['encoder.onnx.data: has', 'decoder.onnx.data: has']),
    'engines of another compilation': (of_another, [f'{name}.engine: has other contents' for name in sorted(PARTS)]),
    'no card': (lambda f: (f / CARD).unlink(), ['engine.json: is no compiled checkpoint']),
    'unfinished card': (lambda f: (f / CARD).rename(f / f'{CARD}.partial'), ['is no compiled checkpoint']),
    'card is no JSON': (lambda f: (f / CARD).write_text('{'), ['engine.json: cannot be read']),
    'card of another schema': (edit(lambda d: d.update(schema=SCHEMA + 1)), [f'engine.json: .*schema {SCHEMA + 1}']),
    'edited target': (edit(lambda d: d['targets'].append('sm_90')), ['engine.json: .*changed since it was written']),
    'edited digest': (
        edit(lambda d: d['parts']['step']['files']['engine'].update(sha256='0' * 64)),
        ['engine.json: .*changed since it was written'],
    ),
    'path that leads out': (forge(lead_out), [r'\.\./step\.engine: leads out of the folder']),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', DAMAGES)
def test_whatever_is_damaged_is_refused_by_name_and_made_anew(name: str, folder: Path, order: Order) -> None:
    damage, words = DAMAGES[name]
    damage(folder)
    with pytest.raises(EngineError) as refused:
        read_card(folder)
    for word in words:
        refused.match(word)
    with pytest.raises(EngineError, match=words[0]):
        engine.load(order.checkpoint.root, compiled=folder)
    assert compiling._cached(folder, compiling._key(compiling._plan(order))) is None


@pytest.mark.slow
def test_a_card_that_lacks_a_part_of_the_step_is_refused(made: Compiled) -> None:
    parts = {name: part for name, part in made.card.parts.items() if name != 'step'}
    with pytest.raises(EngineError, match='step: is not complete'):
        step_names(replace(made.card, parts=parts))


@pytest.mark.slow
def test_engines_are_refused_on_another_gpu_with_another_version_and_on_this_machine(
    made: Compiled, order: Order
) -> None:
    here = made.card.builder['version']
    cuda = torch.device('cuda')
    good = Machine(('NVIDIA GeForce RTX 4090', 'sm_89'), {RTX: here})
    assert choose('auto', cuda, made.card, good).name == TENSORRT
    for machine, words in (
        (replace(good, gpu=('NVIDIA H100', 'sm_90')), r'NVIDIA H100 \(sm_90\)'),
        (replace(good, gpu=None), 'GPU: is missing'),
        (replace(good, tensorrt={RTX: '1.0.0'}), 'is not the version that built the engines, got 1.0.0'),
        (replace(good, tensorrt={}), 'tensorrt_rtx: is not installed'),
    ):
        with pytest.raises(InvalidInput, match=words):
            choose('auto', cuda, made.card, machine)
    if not torch.cuda.is_available():
        with pytest.raises(InvalidInput, match='GPU: is missing'):
            engine.load(order.checkpoint.root, compiled=made.folder)
