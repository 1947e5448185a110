"""The command `cosmos3 compile`: what it makes and says, what it refuses, and how it ends."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

import engine
from benchmarks.compile_cases import make_checkpoint
from cosmos3_ros.cli import main
from engine.backends.card import read_card
from engine.export import compiling
from engine.resources import find_config

pytest.importorskip('onnxruntime')

OPTIONS = ('--precision', 'fp32', '--no-decoder')


@dataclass(frozen=True)
class Ran:
    """One run of the command: its exit code, and what it said."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(['compile', *map(str, arguments)])
    return Ran(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope='module')
def contract(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contract of the demonstration with the shortest chunk there is."""
    document = yaml.safe_load(find_config('contracts', 'demo_joint_pos').read_text())
    document['timing']['chunk_rows'] = 4
    document['name'] = 'short'
    path = tmp_path_factory.mktemp('contracts') / 'short.yaml'
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp('checkpoints') / 'edge', 'edge', 'reflex')


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('command') / 'made'


@pytest.fixture(scope='module')
def first(checkpoint: Path, contract: Path, folder: Path) -> Ran:
    """The first run, which makes the folder; test_engine_folders.py has the decoder too."""
    return run(checkpoint, '--contract', contract, *OPTIONS, '--accuracy', 1, '-o', folder)


@pytest.mark.slow
def test_a_folder_is_made_and_told_of(first: Ran, folder: Path) -> None:
    card = read_card(folder)
    assert first.code == 0, first.err
    assert f'{folder}: made, fp32, key {card.key[:12]}' in first.out
    assert f'onnx {card.builder["version"]}, for ONNX Runtime' in first.out
    assert set(card.parts) == {'prefix', 'step', 'encoder'}
    for name in card.parts:
        assert any(line.split()[:1] == [name] and 'export' in line for line in first.out.splitlines())
    assert card.contract['name'] == 'short'
    assert card.accuracy['quantities']['panda_joint1']['worst'] <= 1e-4
    assert 'accuracy:' in first.out


@pytest.mark.slow
def test_what_it_makes_of_edge_gives_the_chunks_of_the_reference(
    first: Ran, checkpoint: Path, contract: Path, folder: Path
) -> None:
    assert first.code == 0, first.err
    terms = engine.load_contract(contract)
    reference = engine.load(checkpoint).policy(terms)
    ours = engine.load(checkpoint, compiled=folder).policy(terms)
    assert ours.runtime.backend.name == 'onnxruntime'
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (180, 320, 3), dtype=np.uint8) for name in terms.views.streams}
    for seed, instruction in enumerate(('open the drawer', 'put every block that you can find into the box')):
        observation = engine.Observation(images, instruction, rng.uniform(-1.0, 1.0, (1, 7)), np.array([0.3]))
        expected, found = reference.infer(observation, seed), ours.infer(observation, seed)
        np.testing.assert_allclose(found.actions, expected.actions, atol=1e-4)
        np.testing.assert_allclose(found.latents.numpy(), expected.latents.numpy(), atol=1e-4)


@pytest.mark.slow
def test_the_second_run_says_that_it_is_already_there(
    first: Ran, checkpoint: Path, contract: Path, folder: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = run(checkpoint, '--contract', contract, *OPTIONS, '-o', folder)
    assert again.code == 0
    assert f'{folder}: already there, fp32' in again.out
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (('--target', 'sm_90'), ('sm_90', 'full TensorRT on that GPU', 'torch-compiled', 'sm_89')),
        (('--target', 'sm_89,sm_90', '--precision', 'fp8'), ('sm_90', 'torch-compiled')),
        (('--precision', 'int4'), ('precision: is unknown', 'fp32, fp16, bf16, fp8')),
        (('--precision', 'fp8'), ('name the GPU', '--target')),
        (('--segments', '9'), ('segments: out of range', '1 to 2')),
        (('--target', 'sm_89', '--flavour', 'openvino'), ('unknown flavour', 'tensorrt_rtx')),
    ],
)
def test_what_cannot_be_made_is_refused_with_the_alternative(
    checkpoint: Path, contract: Path, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    if '--target' in arguments:
        pytest.importorskip('tensorrt_rtx_bindings')
    ran = run(checkpoint, '--contract', contract, '-o', tmp_path / 'made', '--flavour', 'tensorrt_rtx', *arguments)
    assert ran.code == 2
    for word in words:
        assert word in ran.err
    assert 'Traceback' not in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_and_a_contract_that_are_not_there_are_named(checkpoint: Path, contract: Path) -> None:
    ran = run(checkpoint.parent / 'nowhere', '--contract', contract, '-o', checkpoint.parent / 'made')
    assert (ran.code, 'nowhere' in ran.err) == (2, True)
    ran = run(checkpoint, '--contract', 'nosuch', '-o', checkpoint.parent / 'made')
    assert ran.code == 2
    assert 'demo_joint_pos' in ran.err


def test_an_interrupted_run_ends_with_its_own_code_and_leaves_nothing(
    checkpoint: Path, contract: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compiling, 'write_onnx', interrupted)
    ran = run(checkpoint, '--contract', contract, '-o', tmp_path / 'made')
    assert ran.code == 130
    assert list(tmp_path.iterdir()) == []
