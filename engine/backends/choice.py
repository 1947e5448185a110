"""Which backend runs a checkpoint on this machine, and why.

===============  ==========================================================================================
torch            PyTorch, eager: the reference, everywhere
torch-compiled   PyTorch with compiled layers: any GPU, and the fastest one where TensorRT-RTX has no kernels
onnxruntime      graphs of compiled parts, on a processor
tensorrt         engines of compiled parts, on the GPU they were built for
===============  ==========================================================================================

`auto` takes compiled parts if they are given and a GPU with compiled layers if there is one. It never passes over
compiled parts that do not fit: whoever hands them over counts on their speed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from engine.backends.card import ONNX, Card
from engine.backends.tensorrt_api import FULL, INSTALL, RTX, find_tensorrt, gpu_of
from engine.errors import CosmosError, InvalidInput, Problem

AUTO, TORCH, TORCH_COMPILED = 'auto', 'torch', 'torch-compiled'
ONNX_RUNTIME, TENSORRT = 'onnxruntime', 'tensorrt'
BACKENDS = (AUTO, TORCH, TORCH_COMPILED, ONNX_RUNTIME, TENSORRT)
COMPILED = (ONNX_RUNTIME, TENSORRT)
"""Backends that run compiled parts."""
_RUN_BY_ONNX_RUNTIME = ('fp32', 'fp16')


@dataclass(frozen=True)
class Machine:
    """What there is to run a network with.

    Attributes:
        gpu: Name and target of the GPU, such as ('NVIDIA H100', 'sm_90'); None without one.
        tensorrt: Version of each flavour of TensorRT that is installed.
        packages: 'onnxruntime', if it is installed.
        uncompilable: Why layers cannot be compiled for the GPU; nothing if they can.
    """

    gpu: tuple[str, str] | None = None
    tensorrt: Mapping[str, str] = field(default_factory=dict)
    packages: frozenset[str] = frozenset()
    uncompilable: tuple[Problem, ...] = ()

    @classmethod
    def this(cls, device: torch.device) -> Machine:
        """Look around, on behalf of a network that is to run on `device`."""
        found = {}
        for flavour in (FULL, RTX):
            try:
                found[flavour] = find_tensorrt(flavour).version
            except CosmosError:
                continue  # what is not installed is told when it is asked for
        packages = [ONNX_RUNTIME] if importlib.util.find_spec(ONNX_RUNTIME) else []
        return cls(gpu_of(device), found, frozenset(packages), _uncompilable(device))


def _uncompilable(device: torch.device) -> tuple[Problem, ...]:
    if device.type != 'cuda':
        return ()  # on a processor nobody compiles layers unless asked to, and then it is found out
    from engine.backends.torch_compiled import missing_for  # it imports PyTorch's compiler, which takes seconds

    return tuple(missing_for(device))


@dataclass(frozen=True)
class Choice:
    """A backend and what speaks for it, in words for the log."""

    name: str
    reason: str


def choose(wanted: str, device: torch.device, card: Card | None, machine: Machine) -> Choice:
    """Choose a backend.

    Args:
        wanted: One of `BACKENDS`.
        device: Where PyTorch would run.
        card: Of the compiled parts, if there are any.
        machine: What there is.

    Raises:
        InvalidInput: It cannot run here; lists everything that speaks against it.
    """
    if wanted not in BACKENDS:
        raise InvalidInput('backend', [Problem('backend', 'is unknown', repr(wanted), ', '.join(BACKENDS))])
    name, reason = (wanted, 'as asked for') if wanted != AUTO else _best(device, card, machine)
    problems = [*_obstacles(name, card, machine)]
    if problems:
        raise InvalidInput(f'backend {name}', problems)
    return Choice(name, reason)


def _best(device: torch.device, card: Card | None, machine: Machine) -> tuple[str, str]:
    """What `auto` means here, whether or not it will do."""
    if card is not None and card.builder['flavour'] != ONNX:
        return TENSORRT, f'the compiled parts hold engines for {", ".join(card.targets)}'
    if card is not None:
        return ONNX_RUNTIME, 'the compiled parts hold graphs and no engines'
    if device.type != 'cuda':
        return TORCH, f'there are no compiled parts, and compiling layers does not pay on {device.type}'
    if machine.uncompilable:
        lacking = ', '.join(f'{problem.where} {problem.what}' for problem in machine.uncompilable)
        return TORCH, f'there are no compiled parts, and layers cannot be compiled: {lacking}'
    gpu = machine.gpu[0] if machine.gpu else 'the GPU'
    return TORCH_COMPILED, f'there are no compiled parts; layers are compiled for {gpu}'


def _obstacles(name: str, card: Card | None, machine: Machine) -> Iterator[Problem]:
    if name in COMPILED and card is None:
        remedy = 'make them with cosmos3 compile and name their folder'
        yield Problem('compiled', 'is missing: this backend runs compiled parts', remedy=remedy)
    if name not in COMPILED and card is not None:
        remedy = f'leave them out, or use {" or ".join(COMPILED)}'
        yield Problem('compiled', 'cannot be used: this backend runs the checkpoint itself', name, remedy=remedy)
    if name == TORCH_COMPILED:
        yield from machine.uncompilable
    if name == ONNX_RUNTIME and card is not None:
        yield from _against_onnx_runtime(card, machine)
    if name == TENSORRT and card is not None:
        yield from _against_tensorrt(card, machine)


def _against_onnx_runtime(card: Card, machine: Machine) -> Iterator[Problem]:
    if ONNX_RUNTIME not in machine.packages:
        yield Problem(ONNX_RUNTIME, 'is not installed', remedy='pip install onnxruntime (requirements/compile.txt)')
    if card.precision not in _RUN_BY_ONNX_RUNTIME:
        remedy = 'compile a twin with --precision fp32 or fp16'
        allowed = ', '.join(_RUN_BY_ONNX_RUNTIME)
        yield Problem('precision', 'does not run in ONNX Runtime', card.precision, allowed, remedy)


def _against_tensorrt(card: Card, machine: Machine) -> Iterator[Problem]:
    """Engines belong to one flavour and version of TensorRT and to the GPUs that they were built for."""
    flavour, version = card.builder['flavour'], card.builder['version']
    if flavour == ONNX:
        yield Problem('compiled', 'holds graphs and no engines', remedy='compile with --target')
        return
    installed = machine.tensorrt.get(flavour)
    if installed is None:
        yield Problem(flavour, 'is not installed', '', version, INSTALL[flavour])
    elif installed != version:
        remedy = f'compile again, or install {flavour} {version}'
        yield Problem(flavour, 'is not the version that built the engines', installed, version, remedy)
    built_for = card.gpu or ', '.join(card.targets)
    if machine.gpu is None:
        remedy = 'run on a machine with that GPU, or leave the compiled parts out'
        yield Problem('GPU', 'is missing', 'none that PyTorch can use', built_for, remedy)
        return
    here = f'{machine.gpu[0]} ({machine.gpu[1]})'
    same = here == card.gpu if card.gpu else machine.gpu[1] in card.targets
    if not same:
        remedy = f'compile for it: --target {machine.gpu[1]}, or with full TensorRT --target native'
        yield Problem('GPU', 'is not one that the engines were built for', here, built_for, remedy)
