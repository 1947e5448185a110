"""Runs TensorRT engines. Tensors stay in the GPU's memory, and PyTorch's stream says what comes after what.

TensorRT-RTX finishes its kernels when an engine runs for the first time on a GPU; what it made is kept beside the
engines, so that the next start is quick.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.backends.card import EngineError
from engine.backends.tensorrt_api import RTX, Messages, TensorRt, find_tensorrt
from engine.errors import CosmosError, Problem

if TYPE_CHECKING:
    from engine.backends.card import Card, StoredPart
    from engine.backends.compiled import Runner

_LOG = logging.getLogger(__name__)
SELDOM = ('prefix', 'decoder')
"""Parts that run once for a prompt or on demand, and need not stay in the memory of a small GPU."""


def open_engines(folder: Path, card: Card, device: torch.device, *, offload: bool = False) -> dict[str, Runner]:
    """Open the engine of every part.

    Args:
        folder: Where they are.
        card: Of the folder, which fits this machine (:func:`engine.backends.choice.choose`).
        device: The GPU.
        offload: Whether the parts of `SELDOM` are read again whenever they run and given up after it.

    Raises:
        CosmosError: TensorRT is not installed.
        EngineError: An engine cannot be read; lists every fault.
    """
    tensorrt = find_tensorrt(card.builder['flavour'])
    runners: dict[str, Runner] = {}
    problems: list[Problem] = []
    for name, part in card.parts.items():
        engine = _Engine(tensorrt, folder / part.files['engine'].name, part, device)
        if offload and name in SELDOM:
            runners[name] = engine.run_once
            continue
        try:
            runners[name] = engine.open()
        except EngineError as error:
            problems += error.problems
    if problems:
        raise EngineError(f'compiled parts in {folder}', problems)
    return runners


@dataclass(frozen=True)
class _Engine:
    """The file of an engine."""

    tensorrt: TensorRt
    path: Path
    part: StoredPart
    device: torch.device

    def open(self) -> TensorRtRunner:
        return TensorRtRunner(self.tensorrt, self.path, self.part, self.device)

    def run_once(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read the engine, run it, give its memory back; the outputs are kept."""
        runner = self.open()
        found = runner(inputs)
        torch.cuda.synchronize(self.device)  # the engine must not go while its work is in the queue
        return found


@dataclass
class _Kernels:
    """Kernels that TensorRT-RTX finished for this GPU, in a file beside the engine."""

    path: Path
    cache: Any
    kept: bool = field(default=False)

    def read(self) -> None:
        try:
            self.kept = self.path.is_file() and bool(self.cache.deserialize(self.path.read_bytes()))
        except OSError as error:
            _LOG.warning('%s cannot be read (%s); kernels are made anew', self.path.name, error.strerror)

    def keep(self) -> None:
        """Write them down once; a folder that cannot be written to costs time at the next start and nothing else."""
        if self.kept:
            return
        self.kept = True
        partial = self.path.with_name(f'{self.path.name}.partial')
        try:
            partial.write_bytes(memoryview(self.cache.serialize()))
            partial.replace(self.path)
        except OSError as error:
            _LOG.warning('%s cannot be written (%s); kernels are made at every start', self.path.name, error.strerror)


class TensorRtRunner:
    """One engine, ready to run."""

    def __init__(self, tensorrt: TensorRt, path: Path, part: StoredPart, device: torch.device) -> None:
        """Read it.

        Raises:
            EngineError: TensorRT does not accept it, or its inputs and outputs are not those of the card.
        """
        self.device = device
        self._part = part
        self._messages = Messages()
        self._logger = self._messages.logger(tensorrt.api)
        self._runtime = tensorrt.api.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(path.name, [Problem(path.name, 'cannot be read', self._said(), remedy='compile again')])
        self._check_ports(path)
        self._kernels, self._context = self._make_context(tensorrt, path)
        if self._context is None:
            remedy = 'free memory of the GPU, or set offload'
            raise EngineError(path.name, [Problem(path.name, 'finds no room to run', self._said(), remedy=remedy)])

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run it on the present stream; the outputs are new tensors.

        Raises:
            CosmosError: TensorRT refuses; holds what it says.
        """
        held = []  # until the work is in the queue; memory that is freed later is used again behind it
        for port in self._part.inputs:
            tensor = inputs[port.name].contiguous()
            held.append(tensor)
            self._demand(self._context.set_input_shape(port.name, tuple(tensor.shape)), port.name)
            self._demand(self._context.set_tensor_address(port.name, tensor.data_ptr()), port.name)
        outputs = {}
        for port in self._part.outputs:
            shape = tuple(self._context.get_tensor_shape(port.name))
            outputs[port.name] = torch.empty(shape, dtype=getattr(torch, port.type), device=self.device)
            self._demand(self._context.set_tensor_address(port.name, outputs[port.name].data_ptr()), port.name)
        stream = torch.cuda.current_stream(self.device).cuda_stream
        self._demand(self._context.execute_async_v3(stream), self._part.name)
        if self._kernels is not None:
            self._kernels.keep()
        return outputs

    def _make_context(self, tensorrt: TensorRt, path: Path) -> tuple[_Kernels | None, Any]:
        if tensorrt.flavour != RTX:
            return None, self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        kernels = _Kernels(path.with_suffix('.kernels'), config.create_runtime_cache())
        kernels.read()
        config.set_runtime_cache(kernels.cache)
        return kernels, self._engine.create_execution_context(config)

    def _check_ports(self, path: Path) -> None:
        found = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}
        wanted = {port.name for port in (*self._part.inputs, *self._part.outputs)}
        if found != wanted:
            names = ', '.join(sorted(found)), ', '.join(sorted(wanted))
            raise EngineError(path.name, [Problem(path.name, 'has other inputs and outputs', *names)])

    def _demand(self, done: Any, what: str) -> None:
        if done is False:
            raise CosmosError(f'TensorRT cannot run {self._part.name} ({what}): {self._said()}')

    def _said(self) -> str:
        return '; '.join(self._messages.faults[-3:]) or 'it gave no reason'
