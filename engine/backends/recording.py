"""A denoising step recorded once and replayed: one launch in place of hundreds, where a step is over before they are.

A recording (a CUDA graph) reads and writes fixed addresses. So it has buffers of its own, into which the numbers of a
request are copied, and out of which its velocities are copied before another recording uses that memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

Function = Callable[..., Any]
"""Tensors in named tuples and tuples in, the same out; without a decision that depends on a value."""
Results = Sequence[Tensor | None]
Recorder = Callable[[Callable[[], Results]], tuple[Callable[[], None], Results]]
"""Takes a function without arguments; returns what repeats it, and where its results are then."""

RECORDINGS_KEPT = 8
"""Each holds copies of a prompt's keys and values and room for one step: some 200 MB for Nano with 700 tokens."""


class Recordings:
    """Recordings of one function by the shapes of what goes in; the one not used for longest makes room for a new one.

    Args:
        function: Takes what is constant for a while and what changes with every call.
        record: See :data:`Recorder`.
    """

    def __init__(self, function: Function, record: Recorder) -> None:
        self._function, self._record = function, record
        self._kept: OrderedDict[Any, Recording] = OrderedDict()

    def find(self, constant: Any, changing: Any) -> Recording:
        """The recording for arguments of such shapes; made now if there is none."""
        leaves, structure = tree_flatten((constant, changing))
        key = (str(structure), *((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves))
        if key not in self._kept:
            if len(self._kept) == RECORDINGS_KEPT:
                self._kept.popitem(last=False)
            self._kept[key] = Recording(self._function, constant, changing, self._record)
        self._kept.move_to_end(key)
        return self._kept[key]


class Recording:
    """One function, recorded for arguments of certain shapes."""

    def __init__(self, function: Function, constant: Any, changing: Any, record: Recorder) -> None:
        """Record `function(constant, changing)` with copies of both."""
        self._constant, self._changing = _Buffers(constant), _Buffers(changing)
        self._loaded: Any = None
        structure: Any = None

        def run() -> list[Tensor | None]:
            nonlocal structure
            leaves, structure = tree_flatten(function(self._constant.own, self._changing.own))
            return leaves

        self._replay, leaves = record(run)
        self._result = tree_unflatten(leaves, structure)

    def __call__(self, constant: Any, changing: Any) -> Any:
        """Run it on these arguments.

        Args:
            constant: Copied only if it is another object than last time.
            changing: Copied every time.

        Returns:
            New tensors.
        """
        if self._loaded is not constant:
            self._constant.load(constant)
            self._loaded = constant
        self._changing.load(changing)
        self._replay()
        return tree_map(_copy, self._result)


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


class _Buffers:
    """Tensors of a recording's own, in the structure of an argument."""

    def __init__(self, argument: Any) -> None:
        leaves, structure = tree_flatten(argument)
        copies = [_copy(leaf) for leaf in leaves]
        self.own = tree_unflatten(copies, structure)
        self._tensors = [x for x in copies if isinstance(x, Tensor)]

    def load(self, argument: Any) -> None:
        """Copy the numbers of an argument of the same structure."""
        given = [x for x in tree_flatten(argument)[0] if isinstance(x, Tensor)]
        torch._foreach_copy_(self._tensors, given)


def cuda_recorder(device: torch.device) -> Recorder:
    """Records CUDA graphs, which share their memory: they are replayed one at a time."""
    # A graph has the priority of the stream that it was recorded on, and shares memory with those of the same stream.
    places: dict[int, tuple[torch.cuda.Stream, Any]] = {}

    def record(function: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
        here = torch.cuda.current_stream(device)
        if here.priority not in places:
            stream = torch.cuda.Stream(device, priority=here.priority)
            places[here.priority] = stream, torch.cuda.graph_pool_handle()
        side, pool = places[here.priority]
        # What is made when something runs for the first time (compiled kernels, plans, workspaces) cannot be recorded.
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(2):
                function()
        here.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile, for pictures say.
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode='thread_local'):
            results = function()
        return graph.replay, results

    return record
