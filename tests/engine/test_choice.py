"""The backend is chosen by what is given and what is here, and whatever speaks against it is said at once."""

from __future__ import annotations

import pytest
import torch

from engine.backends.card import Card
from engine.backends.choice import (
    AUTO,
    BACKENDS,
    ONNX_RUNTIME,
    TENSORRT,
    TORCH,
    TORCH_COMPILED,
    Choice,
    Machine,
    choose,
)
from engine.errors import InvalidInput, Problem

ADA, HOPPER = ('NVIDIA GeForce RTX 4090', 'sm_89'), ('NVIDIA H100', 'sm_90')
EVERYTHING = frozenset({'onnxruntime'})
NO_TRITON = (Problem('triton', 'is not installed', remedy='pip install triton'),)
RTX, FULL = {'tensorrt_rtx': '1.7.1'}, {'tensorrt': '11.4.0'}
CPU, CUDA = torch.device('cpu'), torch.device('cuda')


def card(flavour: str = 'tensorrt_rtx', version: str = '1.7.1', precision: str = 'bf16', **changed: object) -> Card:
    terms: dict[str, object] = {
        'key': 'k',
        'made': '2026-01-01T00:00:00+00:00',
        'checkpoint': {},
        'contract': {},
        'layout': {},
        'precision': precision,
        'builder': {'flavour': flavour, 'version': version},
        'targets': ('sm_89', 'sm_120'),
        'gpu': '',
        'versions': {},
        'parts': {},
        'accuracy': {},
    }
    return Card(**(terms | changed))  # type: ignore[arg-type]


def graphs(precision: str = 'fp32') -> Card:
    return card('onnx', '1.23', precision, targets=())


def native(gpu: tuple[str, str]) -> Card:
    return card('tensorrt', '11.4.0', targets=('native',), gpu=f'{gpu[0]} ({gpu[1]})')


@pytest.mark.parametrize(
    ('device', 'parts', 'machine', 'name', 'because'),
    [
        (CPU, None, Machine(), TORCH, 'does not pay on cpu'),
        (CPU, None, Machine(packages=EVERYTHING), TORCH, 'does not pay on cpu'),
        (CUDA, None, Machine(HOPPER, packages=EVERYTHING), TORCH_COMPILED, 'NVIDIA H100'),
        (CUDA, None, Machine(HOPPER, uncompilable=NO_TRITON), TORCH, 'triton is not installed'),
        (CPU, graphs(), Machine(packages=EVERYTHING), ONNX_RUNTIME, 'no engines'),
        (CUDA, card(), Machine(ADA, RTX, EVERYTHING), TENSORRT, 'sm_89, sm_120'),
        (CUDA, native(HOPPER), Machine(HOPPER, FULL, EVERYTHING), TENSORRT, 'native'),
    ],
)
def test_auto_takes_the_fastest_that_runs_and_says_why(
    device: torch.device, parts: Card | None, machine: Machine, name: str, because: str
) -> None:
    chosen = choose(AUTO, device, parts, machine)
    assert chosen.name == name
    assert because in chosen.reason


@pytest.mark.parametrize('name', [name for name in BACKENDS if name != AUTO])
def test_what_is_asked_for_is_taken_where_it_runs(name: str) -> None:
    parts = {ONNX_RUNTIME: graphs('fp16'), TENSORRT: card()}.get(name)
    assert choose(name, CUDA, parts, Machine(ADA, RTX, EVERYTHING)) == Choice(name, 'as asked for')


@pytest.mark.parametrize(
    ('wanted', 'parts', 'machine', 'said'),
    [
        ('vulkan', None, Machine(), ['backend']),
        (TENSORRT, None, Machine(ADA, RTX), ['compiled']),
        (ONNX_RUNTIME, None, Machine(packages=EVERYTHING), ['compiled']),
        (TORCH, graphs(), Machine(), ['compiled']),
        (TORCH_COMPILED, card(), Machine(ADA, packages=EVERYTHING), ['compiled']),
        (TORCH_COMPILED, None, Machine(ADA, uncompilable=NO_TRITON), ['triton']),
        (ONNX_RUNTIME, graphs('bf16'), Machine(), ['onnxruntime', 'precision']),
        (TENSORRT, graphs(), Machine(ADA, RTX), ['compiled']),
        (AUTO, card(), Machine(), ['tensorrt_rtx', 'GPU']),
        (AUTO, card(), Machine(HOPPER, RTX), ['GPU']),
        (AUTO, card(), Machine(ADA, {'tensorrt_rtx': '1.6'}), ['tensorrt_rtx']),
        (AUTO, card(), Machine(HOPPER, {'tensorrt_rtx': '1.6'}), ['tensorrt_rtx', 'GPU']),
        (AUTO, native(HOPPER), Machine(('NVIDIA H200', 'sm_90'), FULL), ['GPU']),
    ],
)
def test_what_does_not_run_is_refused_with_every_reason_and_a_way_out(
    wanted: str, parts: Card | None, machine: Machine, said: list[str]
) -> None:
    with pytest.raises(InvalidInput) as raised:
        choose(wanted, CUDA, parts, machine)
    assert [problem.where for problem in raised.value.problems] == said
    assert all(problem.remedy or problem.allowed for problem in raised.value.problems)


def test_compiled_parts_that_do_not_fit_are_never_passed_over() -> None:
    for machine in (Machine(), Machine(HOPPER, packages=EVERYTHING)):
        with pytest.raises(InvalidInput):
            choose(AUTO, CUDA, card(), machine)


def test_this_machine_is_told_as_it_is() -> None:
    here = Machine.this(CPU)
    assert (here.gpu is not None) == torch.cuda.is_available()
    assert here.packages <= EVERYTHING
