"""Compiled layers, recorded steps and an off-loaded tower do what the reference does; a new prompt compiles nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

import engine
from engine.backends import torch_compiled
from engine.backends.recording import RECORDINGS_KEPT, Recordings
from engine.backends.torch_compiled import FP8, TorchCompiled
from engine.backends.torch_reference import TorchReference
from engine.checkpoint import open_checkpoint
from engine.checkpoint.loading import forget
from engine.errors import CosmosError, InvalidInput
from engine.network.offload import rests_on_host
from engine.network.placement import Tokens
from engine.network.transformer import CosmosTransformer
from engine.runtime import Runtime
from engine.sequence import Layout, policy_layout

IDS = ([3, 14, 15, 9, 26, 5], [2, 7, 18], [5, 3, 5])
SURFACES = ('policy', 'dynamics', 'generator')
FAMILIES = ('nano', 'edge')


@pytest.fixture(scope='module')
def checkpoints(tiny_checkpoint: Path, tiny_edge_checkpoint: Path) -> dict[str, Path]:
    return {'nano': tiny_checkpoint, 'edge': tiny_edge_checkpoint}


@pytest.fixture
def transformer(tiny_checkpoint: Path) -> CosmosTransformer:
    return open_checkpoint(tiny_checkpoint).load_transformer(dtype=torch.float32, surfaces=SURFACES)


@pytest.fixture
def compiled_graphs() -> Callable[[], int]:
    """How many graphs have been compiled since."""
    before = counters['stats']['unique_graphs']
    return lambda: counters['stats']['unique_graphs'] - before


def layout_of(chunk: int) -> Layout:
    return policy_layout(chunk=chunk, height=4, width=6, fps=15.0, domain_id=8, raw_dim=10, state=True)


def tokens_for(layout: Layout, seed: int = 11) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    count = layout.tokens(2) - layout.action.rows
    action = torch.randn(layout.action.rows, 64, generator=generator) * (torch.arange(64) < layout.action.raw_dim)
    return Tokens(torch.randn(count, 192, generator=generator), action, None)


def assert_close(found: Tokens, wanted: Tokens, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found.vision, wanted.vision, atol=tolerance, rtol=0)
    torch.testing.assert_close(found.action, wanted.action, atol=tolerance, rtol=0)


def assert_same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize('family', FAMILIES)
def test_compiled_layers_give_the_chunks_of_the_reference_and_another_prompt_compiles_nothing(
    checkpoints: dict[str, Path],
    family: str,
    observe: Callable[..., engine.Observation],
    compiled_graphs: Callable[[], int],
) -> None:
    contract = engine.load_contract('demo_joint_pos')
    contract = replace(contract, timing=replace(contract.timing, chunk_rows=4))
    runtime = engine.load(checkpoints[family], backend='torch').runtime
    reference = engine.Policy(runtime, contract)
    ours = engine.Policy(Runtime(TorchCompiled(runtime.backend.transformer), runtime.vae, runtime.tokenizer), contract)
    for seed, instruction in enumerate(('open the drawer', 'put every block that you can find into the box')):
        seen = observe(instruction=instruction)
        expected, found = reference.infer(seen, seed), ours.infer(seen, seed)
        np.testing.assert_allclose(found.actions, expected.actions, atol=1e-4)
        np.testing.assert_allclose(found.latents.numpy(), expected.latents.numpy(), atol=1e-4)
        assert compiled_graphs() == 1, 'one graph for two layers, with and without guidance, and for every prompt'


@pytest.mark.slow
def test_a_second_layout_compiles_once_more_and_then_any_number_of_tokens_fits(
    transformer: CosmosTransformer, compiled_graphs: Callable[[], int]
) -> None:
    reference, ours = TorchReference(transformer), TorchCompiled(transformer)
    for chunk, ids in zip((4, 8, 12, 16), (*IDS, IDS[0]), strict=True):
        layout = layout_of(chunk)
        wanted = reference.step(reference.prefix(ids), layout)(tokens_for(layout), 624)
        assert_close(ours.step(ours.prefix(ids), layout)(tokens_for(layout), 624), wanted)
    assert compiled_graphs() == 2


@pytest.mark.slow
def test_a_compiled_tower_in_fp8_is_as_exact_as_one_that_is_not_compiled(transformer: CosmosTransformer) -> None:
    layout = layout_of(4)
    exact = TorchReference(transformer)
    prefix = exact.prefix(IDS[0])
    wanted = exact.step(prefix, layout)(tokens_for(layout), 624)
    ours = TorchCompiled(transformer, precision=FP8)
    eager = exact.step(prefix, layout)(tokens_for(layout), 624)
    found = ours.step(prefix, layout)(tokens_for(layout), 624)
    for one, other, truth in zip(found[:2], eager[:2], wanted[:2], strict=True):
        # Sums in another order move a number over the edge between two steps now and then, so the two differ.
        assert (one - other).norm() < 0.02 * truth.norm()
        assert (one - truth).norm() < 1.1 * (other - truth).norm() < 0.1 * truth.norm()


def record_here(function: Callable[[], Sequence[Tensor | None]]) -> tuple[Callable[[], None], Sequence[Tensor | None]]:
    """What a GPU's recorder does, on a processor: results are always in the same place."""
    results = function()

    def replay() -> None:
        for kept, new in zip(results, function(), strict=True):
            if kept is not None:
                kept.copy_(new)

    return replay, results


def test_recorded_steps_are_exact_whatever_they_ran_for_before(
    transformer: CosmosTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(torch_compiled.RECORDERS, 'cpu', lambda _: record_here)
    monkeypatch.setattr(torch_compiled, '_compile_layer', lambda: torch_compiled._generate)
    reference, ours = TorchReference(transformer), TorchCompiled(transformer)
    layouts = (layout_of(4), replace(layout_of(4), action=replace(layout_of(4).action, clean=(0, 1, 2))))
    pairs = [(ids, layout) for ids in IDS for layout in layouts]  # two prompts have the same length
    steps = [[backend.step(backend.prefix(ids), layout) for ids, layout in pairs] for backend in (reference, ours)]
    for seed, index in enumerate((0, 1, 2, 3, 4, 5, 4, 2, 2, 0)):
        tokens = tokens_for(pairs[index][1], seed)
        wanted, found = (steps[side][index](tokens, 624.0 + seed) for side in (0, 1))
        assert_same(found[:2], wanted[:2])
    assert len(ours._recordings._kept) == 2  # one for each length of prompt
    kept = found.action.clone()
    assert not torch.equal(steps[1][0](tokens, 999).action, kept)
    assert torch.equal(found.action, kept), 'what a recording returned stays as it is'


def test_large_steps_are_not_recorded(transformer: CosmosTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_compiled.RECORDERS, 'cpu', lambda _: record_here)
    monkeypatch.setattr(torch_compiled, '_compile_layer', lambda: torch_compiled._generate)
    layout = layout_of(4)
    count = layout.tokens(2)
    for limit, kept in ((count - 1, 0), (count, 1)):
        ours = TorchCompiled(transformer, recorded_tokens=limit)
        ours.step(ours.prefix(IDS[0]), layout)(tokens_for(layout), 624)
        assert len(ours._recordings._kept) == kept


def test_the_recording_not_used_for_longest_makes_room() -> None:
    recordings = Recordings(lambda constant, changing: constant[0] * changing, record_here)
    first = recordings.find((torch.ones(1),), torch.ones(1))
    for size in range(2, RECORDINGS_KEPT + 2):
        assert recordings.find((torch.ones(1),), torch.ones(1)) is first
        recordings.find((torch.ones(size),), torch.ones(size))
    assert len(recordings._kept) == RECORDINGS_KEPT
    assert recordings.find((torch.ones(1),), torch.ones(1)) is first


@pytest.mark.parametrize('family', FAMILIES)
def test_an_off_loaded_tower_makes_the_same_keys_and_values_to_the_last_bit(
    checkpoints: dict[str, Path], family: str
) -> None:
    checkpoint = open_checkpoint(checkpoints[family])
    whole = TorchReference(checkpoint.load_transformer())
    for apart in (
        TorchReference(checkpoint.load_transformer(offload=True)),
        TorchReference(checkpoint.load_transformer(), offload=True),
        TorchCompiled(checkpoint.load_transformer(), offload=True),
    ):
        for ids in IDS:
            wanted, found = whole.prefix(ids), apart.prefix(ids)
            assert_same((*found.keys, *found.values), (*wanted.keys, *wanted.values))
            assert found.length == wanted.length
        words = torch.tensor(IDS[0])
        assert torch.equal(apart.transformer.understand(words), whole.transformer.understand(words))


@pytest.mark.parametrize('family', FAMILIES)
def test_a_device_is_only_ever_given_the_generation_tower(checkpoints: dict[str, Path], family: str) -> None:
    # The device of this test is one that holds no numbers, and refuses to calculate with what lies elsewhere.
    checkpoint = open_checkpoint(checkpoints[family])
    model = checkpoint.load_transformer('meta', surfaces=SURFACES, offload=True)
    assert {name: p.device.type for name, p in model.named_parameters()} == {
        name: 'cpu' if rests_on_host(name) else 'meta' for name, _ in model.named_parameters()
    }
    prefix = model.prefix(torch.tensor(IDS[0]))
    step = TorchReference(model, offload=True).step(prefix, layout_of(4))
    velocities = step(Tokens(*(part.to('meta') for part in tokens_for(layout_of(4))[:2]), None), 624)
    assert {tensor.device.type for tensor in (*prefix.keys, *prefix.values, *velocities[:2])} == {'meta'}


@pytest.mark.parametrize('family', FAMILIES)
def test_what_rests_on_the_host_is_read_by_no_step_and_all_the_rest_is(
    checkpoints: dict[str, Path], family: str
) -> None:
    model = open_checkpoint(checkpoints[family]).load_transformer(surfaces=SURFACES)
    backend, layout = TorchReference(model), layout_of(4)
    step = backend.step(backend.prefix(IDS[0]), layout)
    wanted = step(tokens_for(layout), 624)
    on_host = [name for name in model.state_dict() if rests_on_host(name)]
    forget(model, on_host)
    assert_same(step(tokens_for(layout), 624)[:2], wanted[:2])
    for name, parameter in model.named_parameters():
        # Sound is not part of this layout; the last norm of the understanding tower is for scoring words.
        if name not in on_host and name != 'norm.weight' and not name.startswith('audio_'):
            kept = parameter.data.clone()
            parameter.data.fill_(float('nan'))
            assert any(part.isnan().any() for part in step(tokens_for(layout), 624)[:2]), name
            parameter.data.copy_(kept)


def test_a_machine_without_a_compiler_is_told_how_to_get_one(transformer: CosmosTransformer) -> None:
    with (
        inductor.patch({'cpp.cxx': ('no-such-compiler',)}),
        pytest.raises(InvalidInput, match=r'compiles nothing.*\n.*is not installed -> apt install g\+\+'),
    ):
        TorchCompiled(transformer)


def test_a_layer_that_cannot_be_compiled_is_an_error_with_a_way_out(
    transformer: CosmosTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError('Python.h: No such file or directory')

    monkeypatch.setattr(torch_compiled.torch, 'compile', lambda function: COMPILE(function, backend=broken))
    ours, layout = TorchCompiled(transformer), layout_of(4)
    step = ours.step(ours.prefix(IDS[0]), layout)
    with pytest.raises(CosmosError, match=r'could not compile a layer.*apt install python3-dev'):
        step(tokens_for(layout), 624)


COMPILE = torch.compile


def test_an_unknown_precision_is_refused(transformer: CosmosTransformer) -> None:
    with pytest.raises(InvalidInput, match="precision: is unknown, got 'int4', allowed: as loaded, fp8"):
        TorchCompiled(transformer, precision='int4')
