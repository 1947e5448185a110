"""FP8 rounds the generation tower's products and nothing else, by one rule in PyTorch and in ONNX graphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from engine.backends.compiled import _shared_inputs
from engine.errors import InvalidInput
from engine.network import fp8
from engine.network.config import TransformerConfig
from engine.network.fp8 import Fp8Linear, has_kernel, misfits, quantise, quantise_generation, quantise_weight
from engine.network.placement import Tokens
from engine.network.transformer import CosmosTransformer, Prefix
from engine.sequence import Layout, policy_layout

IDS = torch.arange(3, 30)
LAYOUT = policy_layout(chunk=8, height=6, width=8, fps=15.0, domain_id=8, raw_dim=10, state=True)
FAMILIES = ('nano', 'edge')
LINEARS = {'nano': 14, 'edge': 12}  # q, k, v, out, (gate,) up and down of two layers
BOUND = 0.01
"""Relative error of velocities of these networks, whose residual stream carries most of what goes out."""


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def make(family: str, dtype: torch.dtype = torch.float32) -> CosmosTransformer:
    torch.manual_seed(7)
    model = CosmosTransformer(TransformerConfig.tiny(family, 50), sound=False, lm_head=False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5))
    return model.requires_grad_(False).to(dtype)


def tokens_for(layout: Layout) -> Tokens:
    generator = torch.Generator().manual_seed(11)
    count = layout.tokens(2) - layout.action.rows
    action = torch.randn(layout.action.rows, 64, generator=generator) * (torch.arange(64) < layout.action.raw_dim)
    return Tokens(torch.randn(count, 192, generator=generator), action, None)


def denoise(model: CosmosTransformer, prefix: Prefix, timestep: float = 624.0) -> Tensor:
    """All velocities of a step in one row, float64."""
    placement = model.place(LAYOUT, prefix.length)
    time = torch.tensor([timestep])
    out = model.denoise_tokens(tokens_for(LAYOUT), prefix.keys, prefix.values, placement, time)
    return torch.cat([part.flatten() for part in out if part is not None]).double()


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_a_token_is_within_half_a_step_of_what_it_was() -> None:
    x = torch.randn(200, 64) * torch.logspace(-4, 6, 200).unsqueeze(1)
    values, scales = quantise(x)
    assert (values.dtype, scales.dtype, scales.shape) == (torch.float8_e4m3fn, torch.float32, (200, 1))
    assert torch.equal(values.float().abs().amax(1), torch.full((200,), 448.0))
    # Three digits after the leading one; below 2**-6 steps of 2**-9.
    half_a_step = torch.maximum(x.abs() * 2.0**-4, scales * 2.0**-10)
    assert ((values.float() * scales - x).abs() <= half_a_step * 1.0001).all()


def test_zeros_stay_zeros_and_what_is_no_number_is_not_hidden() -> None:
    x = torch.zeros(3, 16)
    x[1] = 1e-30
    x[2, 0] = float('nan')
    linear = Fp8Linear(nn.Linear(16, 16, bias=False))
    out = linear(x)
    assert torch.equal(out[:2], torch.zeros(2, 16))
    assert out[2].isnan().all()


@pytest.mark.parametrize('family', FAMILIES)
def test_only_the_products_of_the_generation_tower_are_quantised(family: str) -> None:
    model, before = make(family), make(family)
    prefix = before.prefix(IDS)
    assert quantise_generation(model) == LINEARS[family]
    assert quantise_generation(model) == 0
    replaced = {name for name, module in model.named_modules() if isinstance(module, Fp8Linear)}
    linears = {name for name, module in before.named_modules() if isinstance(module, nn.Linear)}
    of_the_tower = {name for name in linears if any(part in name for part in ('add_', 'to_add_out', '_moe_gen'))}
    assert replaced == of_the_tower
    again = model.prefix(IDS)
    for one, other in zip((*prefix.keys, *prefix.values), (*again.keys, *again.values), strict=True):
        assert torch.equal(one, other)
    other = {name: tensor for name, tensor in model.state_dict().items() if name.rpartition('.')[0] not in replaced}
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in other.items())


class Casts(TorchDispatchMode):
    """Counts conversions to FP8."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        out = function(*arguments, **(named or {}))
        given = {x.dtype for x in arguments if isinstance(x, Tensor)}
        self.count += isinstance(out, Tensor) and out.dtype == fp8.FP8 and fp8.FP8 not in given
        return out


@pytest.mark.parametrize('family', FAMILIES)
def test_q_k_and_v_share_one_quantisation_and_so_do_gate_and_up(family: str) -> None:
    model = make(family)
    quantise_generation(model)
    prefix = model.prefix(IDS)
    with Casts() as casts:
        denoise(model, prefix)
    assert casts.count == 2 * 4  # two layers: for q, k and v; for the way out; for gate and up; for down
    x = torch.randn(5, 64)
    attention = model.layers[0].self_attn
    assert torch.equal(attention.add_q_proj(quantise(x)), attention.add_q_proj(x))


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_velocities_are_within_the_stated_bound_of_those_of_float32(family: str, dtype: torch.dtype) -> None:
    exact, model = make(family), make(family, dtype)
    wanted = denoise(exact, exact.prefix(IDS))
    as_loaded = relative(denoise(model, model.prefix(IDS)), wanted)
    quantise_generation(model)
    found = relative(denoise(model, model.prefix(IDS)), wanted)
    assert as_loaded < found < BOUND


@pytest.mark.parametrize('family', FAMILIES)
def test_onnx_graphs_hold_the_same_weights_and_their_velocities_are_as_exact(family: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip('onnx')
    runtime = pytest.importorskip('onnxruntime')
    from engine.export import fp8 as rewriting
    from engine.export.onnx_files import write_onnx
    from engine.export.parts import StepPlan, step_part

    model = make(family)
    prefix = model.prefix(IDS)
    exact = denoise(model, prefix)
    with step_part(model, torch.float32, StepPlan(LAYOUT, len(IDS)), 0) as part:
        graph = write_onnx(part, tmp_path).path
    assert rewriting.quantise_step(graph) == quantise_generation(model)
    stored = {entry.name: onnx.numpy_helper.to_array(entry) for entry in onnx.load(str(graph)).graph.initializer}
    for name, linear in model.named_modules():
        if isinstance(linear, Fp8Linear):
            values, scales = stored[f'{name}.weight_fp8'], stored[f'{name}.weight_scale']
            assert torch.equal(torch.from_numpy(values.view('uint8').copy()), linear.weight.view(torch.uint8)), name
            assert torch.equal(torch.from_numpy(scales.copy()).flatten(), linear.scales.flatten()), name
    ours, theirs = denoise(model, prefix), run_graph(runtime.InferenceSession(str(graph)), model, prefix)
    assert relative(ours, exact) < 1.001 * relative(theirs, exact) < BOUND
    assert relative(ours, theirs) < 0.1 * relative(ours, exact)


def run_graph(session: Any, model: CosmosTransformer, prefix: Prefix) -> Tensor:
    """What an ONNX graph of the step makes of the inputs of :func:`denoise`."""
    tokens, placement = tokens_for(LAYOUT), model.place(LAYOUT, prefix.length)
    given = {
        **_shared_inputs(placement),
        'keys': torch.stack(prefix.keys),
        'values': torch.stack(prefix.values),
        'vision': tokens.vision,
        'action': tokens.action,
        'timestep': torch.tensor([624.0]),
    }
    out = session.run(['vision_velocity', 'action_velocity'], {name: value.numpy() for name, value in given.items()})
    return torch.cat([torch.from_numpy(part).flatten() for part in out]).double()


def test_a_weight_of_any_size_is_within_half_a_step_of_what_it_was() -> None:
    weight = torch.randn(64, 48) * torch.logspace(-4, 3, 64).unsqueeze(1)
    weight[5] = 0.0
    values, scales = quantise_weight(weight)
    largest = weight.abs().amax(1, keepdim=True)
    assert ((values.float() * scales - weight).abs() <= largest / 28 * 1.0001).all()  # from 256 to 448 it counts by 32
    assert torch.equal(values[5].float(), torch.zeros(48))


def test_the_kernel_of_gpus_accepts_what_it_is_given() -> None:
    with FakeTensorMode():
        linear = Fp8Linear(nn.Linear(64, 32, bias=False, dtype=torch.bfloat16)).to('cuda')
        out = linear.multiply(quantise(torch.empty(100, 64, device='cuda', dtype=torch.bfloat16)))
    assert (out.shape, out.dtype, out.device.type) == ((100, 32), torch.bfloat16, 'cuda')


def test_gpus_and_types_without_fp8_are_refused_with_the_way_out() -> None:
    assert not has_kernel(torch.device('cpu'), torch.bfloat16)
    assert not misfits((8, 9), torch.bfloat16)
    assert not misfits((9, 0), torch.bfloat16)
    message = str(InvalidInput('precision fp8', misfits((8, 6), torch.float16)))
    assert 'device: does not multiply in FP8, got sm_86, allowed: sm_89, sm_90 and newer -> use bfloat16' in message
    assert 'dtype: is not what products in FP8 return, got float16, allowed: bfloat16' in message
