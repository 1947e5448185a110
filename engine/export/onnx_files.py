"""Writes a part as an ONNX file with its weights beside it, and checks that the file is what was meant.

Opset 23 has attention with grouped heads and RMS norms as single operators, which TensorRT turns into fused kernels.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine.errors import CosmosError, InvalidInput, Problem
from engine.export.parts import LENGTH, LONGEST, Part, Port, StepPart

if TYPE_CHECKING:
    import onnx

OPSET = 23
_MISSING = 'pip install onnx onnxscript (requirements/compile.txt)'
_TYPES = {
    torch.float32: 'FLOAT',
    torch.float16: 'FLOAT16',
    torch.bfloat16: 'BFLOAT16',
    torch.int64: 'INT64',
    torch.bool: 'BOOL',
}


@dataclass(frozen=True)
class Graph:
    """An ONNX file with what goes into it and comes out of it."""

    path: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def write_onnx(part: Part, folder: Path) -> Graph:
    """Write `part.name`.onnx and `part.name`.onnx.data into a folder that exists.

    Args:
        part: The piece; its module is traced with its examples.
        folder: Where the two files go.

    Raises:
        CosmosError: The packages for it are not installed, or PyTorch cannot export the piece.
        InvalidInput: The file's inputs and outputs are not those of the part; lists every difference.
    """
    path = folder / f'{part.name}.onnx'
    traced, program = _exported(part)
    program.save(str(path), external_data=True)
    outputs = tuple(_outputs(part, traced))
    problems = [
        *_differences('input', part.inputs, _graph(path).input),
        *_differences('output', outputs, _graph(path).output),
    ]
    if problems:
        raise InvalidInput(f'{path.name}', problems)
    return Graph(path, part.inputs, outputs)


def _outputs(part: Part, traced: torch.export.ExportedProgram) -> Iterator[Port]:
    """What PyTorch knows of the outputs."""
    (node,) = traced.graph.find_nodes(op='output')
    for name, value in zip(part.outputs, node.args[0], strict=True):
        tensor = value.meta['val']
        shape = tuple(size if isinstance(size, int) else LENGTH for size in tensor.shape)
        yield Port(name, shape, tensor.dtype)


def _exported(part: Part) -> tuple[torch.export.ExportedProgram, Any]:
    """A part as PyTorch traces it, and as an ONNX program."""
    try:
        import onnxscript  # noqa: F401, the exporter needs it
    except ImportError as error:
        raise CosmosError(f'cannot write ONNX files: {error}; {_MISSING}') from error
    length = torch.export.Dim(LENGTH, min=2, max=LONGEST)
    axes = tuple(
        {axis: length for axis, size in enumerate(port.shape) if size == LENGTH} or None for port in part.inputs
    )
    variable: Any = (axes,) if isinstance(part.module, StepPart) else axes
    with _quiet(), torch.no_grad():
        try:
            traced = torch.export.export(part.module, part.examples, dynamic_shapes=variable if any(axes) else None)
            return traced, torch.onnx.export(
                traced,
                dynamo=True,
                opset_version=OPSET,
                input_names=[port.name for port in part.inputs],
                output_names=list(part.outputs),
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
            raise CosmosError(f'{part.name} cannot be exported: {type(error).__name__}: {error}') from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints each of its stages and warns about itself."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        yield


def _graph(path: Path) -> onnx.GraphProto:
    import onnx

    return onnx.load(str(path), load_external_data=False).graph


def _differences(kind: str, ports: Sequence[Port], values: Sequence[onnx.ValueInfoProto]) -> Iterator[Problem]:
    """In what the declared tensors of a file differ from the ports that were meant."""
    from onnx import TensorProto

    names = [port.name for port in ports], [value.name for value in values]
    if names[0] != names[1]:
        yield Problem(f'{kind}s', 'are others', ', '.join(names[1]), ', '.join(names[0]))
        return
    for port, value in zip(ports, values, strict=True):
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_value if dim.HasField('dim_value') else LENGTH for dim in tensor.shape.dim)
        if shape != port.shape:
            yield Problem(f'{kind} {port.name}', 'has another shape', str(list(shape)), str(list(port.shape)))
        if tensor.elem_type != TensorProto.DataType.Value(_TYPES[port.dtype]):
            found = TensorProto.DataType.Name(tensor.elem_type)
            yield Problem(f'{kind} {port.name}', 'has another type', found, _TYPES[port.dtype])
