"""PyTorch with the layers of the generation tower compiled: one function for all of them, for any length of prompt.

Fused are norms, rotations, activations, additions and, in FP8, the quantisation of what a product reads. Products and
attention are those of the libraries, which at thousands of tokens is where the time goes. Heads and time embedder run
as they are: ten small kernels in a step of hundreds.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import count
from subprocess import CalledProcessError
from types import FunctionType
from typing import cast

import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import InvalidCxxCompiler
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.backends.base import Step
from engine.backends.recording import Recorder, Recordings, cuda_recorder
from engine.backends.torch_reference import TorchReference
from engine.errors import CosmosError, InvalidInput, Problem
from engine.network.fp8 import quantise_generation
from engine.network.layers import KeysValues, Layer, Place, Rotary
from engine.network.placement import Placement, Tokens
from engine.network.transformer import CosmosTransformer, Prefix
from engine.sequence import Layout
from engine.turns import give_way

AS_LOADED = 'as loaded'
FP8 = 'fp8'
RECORDED_TOKENS = 1000
"""Steps of at most so many tokens are recorded on a GPU; larger ones take far longer than launching their kernels."""
RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {'cuda': cuda_recorder}
"""What records steps, by type of device; where there is none, steps are not recorded."""

# From the fastest down; PyTorch takes the first that can do what it is asked.
_ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
_OLDEST_GPU = 7  # major compute capability, Volta
_NUMBERS = count(1)
_Constant = tuple[tuple[Tensor, ...], tuple[Tensor, ...], Placement]
_Changing = tuple[Tokens, Tensor]
_Generate = Callable[[Layer, Tensor, Rotary, KeysValues], Tensor]


class TorchCompiled(TorchReference):
    """Runs a loaded :class:`CosmosTransformer` with its layers compiled.

    The first step compiles (seconds on a processor, up to a minute on a GPU); another layout compiles once more, for
    any number of tokens from then on. Another prompt does not.
    """

    name = 'torch-compiled'
    together = False

    def __init__(
        self,
        transformer: CosmosTransformer,
        *,
        precision: str = AS_LOADED,
        offload: bool = False,
        recorded_tokens: int = RECORDED_TOKENS,
    ) -> None:
        """Wrap a transformer; nothing is compiled yet.

        Args:
            transformer: Its device and dtype decide where and how precisely it runs.
            precision: 'as loaded', or 'fp8', which replaces the linears of the transformer's generation tower for good.
            offload: Keep its understanding tower in host memory, from where it comes when a new prompt is read.
            recorded_tokens: The largest number of tokens with which steps are recorded as CUDA graphs; 0 for never.

        Raises:
            InvalidInput: `precision` is unknown, the GPU does not have it, or there is nothing here to compile with.
        """
        if precision not in (AS_LOADED, FP8):
            problem = Problem('precision', 'is unknown', repr(precision), f'{AS_LOADED}, {FP8}')
            raise InvalidInput('torch-compiled', [problem])
        check_compiler(transformer.device)
        super().__init__(transformer, offload=offload)
        if precision == FP8:
            quantise_generation(transformer)
        self._generate = _compile_layer()
        make = RECORDERS.get(self.device.type)
        as_a_whole = partial(self._denoise, generate=self._generate)
        self._recordings = Recordings(as_a_whole, make(self.device)) if make else None
        self._recorded_tokens = recorded_tokens

    def step(self, prefix: Prefix, layout: Layout) -> Step:
        """See :meth:`Backend.step`.

        The step raises :class:`CosmosError` if it cannot be compiled.
        """
        constant = (prefix.keys, prefix.values, self.transformer.place(layout, prefix.length))
        recordings = self._recordings if len(constant[2].cos) <= self._recorded_tokens else None
        denoise: Callable[[_Constant, _Changing], Tokens] | None = None

        def run(tokens: Tokens, timestep: float) -> Tokens:
            nonlocal denoise
            with torch.inference_mode(), _attention(self.device), _compiling():
                time = torch.full((1,), timestep, dtype=torch.float32, device=self.device)
                if denoise is None:
                    in_turn = partial(self._denoise, generate=self._generate_in_turn)
                    denoise = recordings.find(constant, (tokens, time)) if recordings else in_turn
                return denoise(constant, (tokens, time))

        return run

    def _denoise(self, constant: _Constant, changing: _Changing, generate: _Generate) -> Tokens:
        (keys, values, placement), (tokens, time) = constant, changing
        for tensor in (*keys, *values):
            _leave_length_open(tensor)
        return self.transformer.denoise_tokens(tokens, keys, values, placement, time, generate)

    def _generate_in_turn(self, layer: Layer, hidden: Tensor, rotary: Rotary, prefix: KeysValues) -> Tensor:
        """A layer, once more urgent requests have passed; what is recorded lets nobody pass."""
        give_way()
        return self._generate(layer, hidden, rotary, prefix)


def check_compiler(device: torch.device) -> None:
    """Do nothing if `torch.compile` finds here what it needs for `device`.

    Raises:
        InvalidInput: Everything that is missing, and how to get it.
    """
    problems = missing_for(device)
    if problems:
        raise InvalidInput("backend torch-compiled (without it there is 'torch', which compiles nothing)", problems)


def missing_for(device: torch.device) -> list[Problem]:
    """Everything that `torch.compile` does not find here, and how to get it."""
    return [*(_missing_for_gpu(device) if device.type == 'cuda' else _missing_for_processor())]


def _missing_for_processor() -> Iterator[Problem]:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        yield Problem('C++ compiler', 'is not installed', remedy='apt install g++')


def _missing_for_gpu(device: torch.device) -> Iterator[Problem]:
    """Triton makes the kernels, and has a C compiler make what launches them."""
    if importlib.util.find_spec('triton') is None:
        yield Problem('triton', 'is not installed', remedy='pip install triton')
    if not any(shutil.which(name) for name in (os.environ.get('CC', 'gcc'), 'gcc', 'clang')):
        yield Problem('C compiler', 'is not installed', remedy='apt install gcc')
    major, minor = torch.cuda.get_device_capability(device)
    if major < _OLDEST_GPU:
        yield Problem('GPU', 'is too old for Triton', f'sm_{major}{minor}', f'sm_{_OLDEST_GPU}0 and newer')


def _generate(layer: Layer, hidden: Tensor, rotary: Rotary, prefix: KeysValues) -> Tensor:
    return layer.generate(hidden, rotary, prefix)


def _compile_layer() -> _Generate:
    """A compiled function of its own for one backend; layers of it share what is compiled.

    PyTorch keeps what it compiled, at most eight pieces, and what it learned of sizes that vary by the function's code
    and name. Two models must not share either.
    """
    code = _generate.__code__.replace(co_name=f'_generate_{next(_NUMBERS)}')
    return cast('_Generate', torch.compile(FunctionType(code, globals())))


def compile_read_layer() -> Callable[[Layer, Tensor, Rotary, KeysValues, Place], Tensor]:
    """A compiled :meth:`Layer.read` for the reasoner, which writes with it token by token.

    It compiles when it is first called with one token and with several, and once more for each when the memory first
    grows; after that for any size of it. :meth:`engine.reasoner.Reasoner.warm_up` sees to all of them.
    """
    code = _read.__code__.replace(co_name=f'_read_{next(_NUMBERS)}')
    compiled = torch.compile(FunctionType(code, globals()))

    def read(layer: Layer, hidden: Tensor, rotary: Rotary, memory: KeysValues, place: Place) -> Tensor:
        with _compiling():
            out: Tensor = compiled(layer, hidden, rotary, memory, place)
        return out

    return read


def _read(layer: Layer, hidden: Tensor, rotary: Rotary, memory: KeysValues, place: Place) -> Tensor:
    return layer.read(hidden, rotary, memory, place)


def _leave_length_open(tensor: Tensor) -> None:
    """Have what is compiled with the keys or values of a prompt take any other length too."""
    # A wish, not an order: where a kernel must know the length after all, a new prompt compiles and does not fail.
    if not hasattr(tensor, '_dynamo_weak_dynamic_indices'):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """The order in which kernels of attention are tried on a GPU."""
    return sdpa_kernel(_ATTENTION, set_priority=True) if device.type == 'cuda' else nullcontext()


@contextmanager
def _compiling() -> Iterator[None]:
    """Turn the compiler's own errors into one that names a way out."""
    try:
        yield
    except (BackendCompilerFailed, CalledProcessError) as error:
        reason = str(error).partition('\n')[0]
        remedy = "install the headers of Python (apt install python3-dev), or choose the backend 'torch'"
        raise CosmosError(f'torch-compiled could not compile a layer: {reason}; {remedy}') from error
