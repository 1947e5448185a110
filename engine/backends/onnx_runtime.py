"""ONNX Runtime: runs the graphs of compiled parts on a processor, to check them and for machines without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.backends.card import EngineError
from engine.errors import CosmosError, Problem

if TYPE_CHECKING:
    from engine.backends.card import Card
    from engine.backends.compiled import Runner

_MISSING = 'pip install onnxruntime (requirements/compile.txt)'


def open_graphs(folder: Path, card: Card) -> dict[str, Runner]:
    """Open the graph of every part.

    Raises:
        CosmosError: ONNX Runtime is not installed.
        EngineError: A graph cannot be read; lists every fault.
    """
    runners, problems = {}, []
    for name, part in card.parts.items():
        try:
            runners[name] = OnnxRunner(folder / part.files['graph'].name)
        except InvalidGraph as error:
            problems.append(Problem(part.files['graph'].name, 'cannot be opened', str(error)))
    if problems:
        raise EngineError(f'compiled parts in {folder}', problems)
    return dict(runners)


class InvalidGraph(Exception):
    """ONNX Runtime does not accept a graph."""


class OnnxRunner:
    """One graph."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            CosmosError: ONNX Runtime is not installed.
            InvalidGraph: It does not accept the graph.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise CosmosError(f'cannot run ONNX graphs: {error}; {_MISSING}') from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        # Its threads would otherwise keep the cores busy while PyTorch works between two steps.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, ['CPUExecutionProvider'])
        except Exception as error:  # onnxruntime has a class for each of its faults and no common one
            raise InvalidGraph(str(error)) from error
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        self._outputs = [entry.name for entry in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run it; the outputs are new tensors."""
        arrays = {name: inputs[name].contiguous().numpy() for name in self._inputs}
        found = self._session.run(self._outputs, arrays)
        return {name: torch.from_numpy(array) for name, array in zip(self._outputs, found, strict=True)}
