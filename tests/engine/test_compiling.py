"""A checkpoint compiled for a contract does what the reference does, and nothing half-made is ever left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import engine
from benchmarks.compile_cases import make_checkpoint
from engine.backends.card import EngineError, read_card
from engine.checkpoint import open_checkpoint
from engine.contract import load_contract
from engine.errors import ContractError, CosmosError, InvalidInput, ObservationError
from engine.export import compiling
from engine.export.compiling import Compiled, Order, compile_checkpoint, segments_for
from engine.export.parts import StepPlan, prompt_part, step_part
from engine.network import layers
from engine.policy import layout_of

ort = pytest.importorskip('onnxruntime')


def short(contract: engine.Contract) -> engine.Contract:
    """The contract with the shortest chunk there is: two latent frames."""
    return replace(contract, timing=replace(contract.timing, chunk_rows=4))


@pytest.fixture(scope='module')
def contract() -> engine.Contract:
    return short(load_contract('demo_joint_pos'))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine.make_tiny(tmp_path_factory.mktemp('compiling') / 'nano', sound=False)


@pytest.fixture(scope='module')
def compiled(checkpoint: Path, contract: engine.Contract, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Graphs in float32, with the step in two pieces."""
    order = Order(open_checkpoint(checkpoint), contract, 'fp32', segments=2)
    return compile_checkpoint(order, tmp_path_factory.mktemp('compiled') / 'nano')


@pytest.fixture
def observation(contract: engine.Contract) -> engine.Observation:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (180, 320, 3), dtype=np.uint8) for name in contract.views.streams}
    joints = rng.uniform(-1.0, 1.0, (1, len(contract.robot.joints)))
    return engine.Observation(images, 'open the drawer', joints, np.array([0.3]))


def instructions(observation: engine.Observation) -> tuple[engine.Observation, ...]:
    """The same instant under two instructions of different length."""
    other = replace(observation, instruction='put every block that you can find into the box on the left')
    return observation, other


@pytest.mark.slow
def test_graphs_of_float32_give_the_chunks_of_the_reference(
    checkpoint: Path, contract: engine.Contract, compiled: Compiled, observation: engine.Observation
) -> None:
    reference = engine.load(checkpoint).policy(contract)
    ours = engine.load(checkpoint, compiled=compiled.folder).policy(contract)
    assert ours.runtime.backend.name == 'onnxruntime'
    assert set(compiled.card.parts) == {'prefix', 'step_1_of_2', 'step_2_of_2', 'encoder', 'decoder'}
    for seed, seen in enumerate(instructions(observation)):
        expected, found = reference.infer(seen, seed), ours.infer(seen, seed)
        np.testing.assert_allclose(found.actions, expected.actions, atol=1e-4)
        np.testing.assert_allclose(found.latents.numpy(), expected.latents.numpy(), atol=1e-4)
    committed = expected.actions[:2]
    for policy in (reference, ours):
        given = policy.infer(observation, committed=committed).actions
        np.testing.assert_allclose(given[:2], committed, atol=1e-4)
    np.testing.assert_allclose(given, reference.infer(observation, committed=committed).actions, atol=1e-4)
    pictures = ours.imagined_video(found).astype(int) - reference.imagined_video(expected)
    assert abs(pictures).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(('family', 'weights'), [('nano', 'reflex'), ('edge', 'reflex')])
def test_graphs_of_float16_are_as_near_to_the_reference_as_their_digits_allow(
    family: str, weights: str, contract: engine.Contract, observation: engine.Observation, tmp_path: Path
) -> None:
    """All four steps with guidance, against float32."""
    tiny = make_checkpoint(tmp_path / family, family, weights)
    order = Order(open_checkpoint(tiny), contract, 'fp16', decoder=False)
    ours = engine.load(tiny, compiled=compile_checkpoint(order, tmp_path / 'compiled').folder).policy(contract)
    assert (len(ours.schedule.timesteps), ours.guidance.scale) == (4, 3.0)
    reference = engine.load(tiny).policy(contract)
    for seed, seen in enumerate(instructions(observation)):
        expected, found = reference.infer(seen, seed), ours.infer(seen, seed)
        assert 0 < abs(found.actions - expected.actions).max() <= 5e-3
        assert 0 < abs(found.latents - expected.latents).max() <= 5e-3
    pictures = [policy.imagined_video(expected) for policy in (reference, ours)]
    np.testing.assert_array_equal(*pictures, err_msg='parts without a decoder leave clips to PyTorch')


@pytest.mark.parametrize(('exact', 'expected'), [(True, torch.float32), (False, torch.float16)])
def test_exact_parts_attend_in_float32_and_leave_the_network_and_what_is_kept_of_a_prompt_as_they_were(
    checkpoint: Path, contract: engine.Contract, monkeypatch: pytest.MonkeyPatch, exact: bool, expected: torch.dtype
) -> None:
    half = open_checkpoint(checkpoint).load_transformer('cpu', torch.float16)
    attended: list[tuple[torch.dtype, ...]] = []
    attend = layers.attend

    def watched(*heads: torch.Tensor, causal: bool) -> torch.Tensor:
        attended.append(tuple(part.dtype for part in heads))
        return attend(*heads, causal=causal)

    monkeypatch.setattr(layers, 'attend', watched)
    with torch.inference_mode():
        with prompt_part(half, torch.float16, 96, exact=exact) as part:
            prompt = part.module(*part.examples)
        with step_part(half, torch.float16, StepPlan(layout_of(contract), 96, exact=exact), 0) as part:
            part.module(*part.examples)
    assert {kept.dtype for kept in prompt} == {torch.float16}
    assert set(attended) == {(expected,) * 3}
    assert len(attended) == 2 * len(half.layers) - 1, 'of the last layer a prompt is not attended to'
    assert not any(layer.self_attn.exact for layer in half.layers)


def test_a_second_compilation_finds_the_first(
    checkpoint: Path, contract: engine.Contract, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = Order(open_checkpoint(checkpoint), contract, 'fp32', segments=2)
    again = compile_checkpoint(order, compiled.folder)
    assert again.cached
    assert again.card == compiled.card
    keys = {
        compiling._key(compiling._plan(changed))
        for changed in (
            order,
            replace(order, precision='fp16'),
            replace(order, segments=1),
            replace(order, contract=replace(contract, fingerprint='another')),
        )
    }
    assert len(keys) == 4
    monkeypatch.setattr(compiling, '_versions', lambda: {'torch': '3.0'})
    assert compiling._key(compiling._plan(order)) not in keys


def test_a_card_names_the_length_of_every_file_and_what_it_was_made_of(compiled: Compiled, checkpoint: Path) -> None:
    card = read_card(compiled.folder)
    assert card.checkpoint['fingerprint'] == open_checkpoint(checkpoint).fingerprint
    assert card.builder['flavour'] == 'onnx'
    assert card.layout['rows'] == 5
    ports = {port.name: port.shape for port in card.parts['step_1_of_2'].inputs}
    assert ports['keys'] == (1, 'length', 2, 16)
    assert {file.name for part in card.parts.values() for file in part.files.values()} == {
        path.name for path in compiled.folder.iterdir() if path.name != 'engine.json'
    }


def test_parts_of_another_checkpoint_or_contract_are_refused(
    compiled: Compiled, tmp_path: Path, checkpoint: Path
) -> None:
    other = engine.make_tiny(tmp_path / 'other', seed=1, sound=False)
    with pytest.raises(EngineError, match='is another one'):
        engine.load(other, compiled=compiled.folder)
    with pytest.raises(ContractError, match=r'layout\.frames: differs'):
        engine.load(checkpoint, compiled=compiled.folder).policy(load_contract('demo_joint_pos'))


def test_a_prompt_that_is_too_long_for_the_parts_is_refused(
    compiled: Compiled, checkpoint: Path, contract: engine.Contract, observation: engine.Observation
) -> None:
    policy = engine.load(checkpoint, compiled=compiled.folder).policy(contract)
    with pytest.raises(ObservationError, match='2 to 512 tokens'):
        policy.infer(replace(observation, instruction='very ' * 600 + 'slowly'))


def test_what_cannot_be_made_is_refused_before_anything_is_written(
    checkpoint: Path, contract: engine.Contract, tmp_path: Path
) -> None:
    opened = open_checkpoint(checkpoint)
    order = Order(opened, contract, 'fp32')
    with pytest.raises(InvalidInput, match="precision: is unknown, got 'int8'"):
        compile_checkpoint(replace(order, precision='int8'), tmp_path / 'out')
    with pytest.raises(InvalidInput, match='name the GPU'):
        compile_checkpoint(replace(order, precision='fp8'), tmp_path / 'out')
    with pytest.raises(InvalidInput, match='out of range, got 9'):
        compile_checkpoint(replace(order, segments=9), tmp_path / 'out')
    misfit = replace(contract, checkpoint=replace(contract.checkpoint, families=('edge',)))
    with pytest.raises(ContractError, match='families'):
        compile_checkpoint(replace(order, contract=misfit), tmp_path / 'out')
    with pytest.raises(CosmosError, match='unknown flavour'):
        compile_checkpoint(replace(order, targets=('sm_89',), flavour='openvino'), tmp_path / 'out')
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'notes.txt').write_text('keep')
    with pytest.raises(InvalidInput, match='holds something else'):
        compile_checkpoint(order, tmp_path / 'mine')
    assert [path.name for path in tmp_path.rglob('*')] == ['mine', 'notes.txt']


def test_an_interrupted_compilation_leaves_the_earlier_one_as_it_was(
    checkpoint: Path, contract: engine.Contract, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compiling, 'decoder_part', interrupted)
    monkeypatch.setattr(compiling, 'encoder_part', interrupted)
    before = sorted(compiled.folder.parent.rglob('*'))
    order = Order(open_checkpoint(checkpoint), contract, 'fp32', segments=1)
    with pytest.raises(KeyboardInterrupt):
        compile_checkpoint(order, compiled.folder)
    assert sorted(compiled.folder.parent.rglob('*')) == before
    assert read_card(compiled.folder) == compiled.card


def test_a_step_is_cut_into_as_many_pieces_as_the_memory_asks_for(checkpoint: Path) -> None:
    import torch

    opened = open_checkpoint(checkpoint)
    assert segments_for(opened.transformer_config, torch.float32, 10**9) == 1
    assert segments_for(opened.transformer_config, torch.float32, 1) == opened.transformer_config.num_hidden_layers
