"""Rewrites the graph of a denoising step so that the matrix products of the generation tower run in FP8.

Weights get one scale for each output channel, activations one for each token, found while it runs; products are
accumulated and returned in the graph's own type. What is written are plain QuantizeLinear and DequantizeLinear nodes
around the products, which TensorRT turns into its FP8 kernels:

    y = DQ(Q(x / s_x)) @ DQ(w_fp8, s_w) * s_x        s_x = max |x| of the token / 448

Products that read the same activations (q, k, v; gate, up) share its quantisation. Heads, norms, the time embedder and
the residual stream stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from engine.errors import InvalidInput, Problem
from engine.network.fp8 import LARGEST, SMALLEST, TOWER

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

_INLINE, _ALIGNMENT = 1024, 4096  # bytes; readers map pages into memory


def quantise_step(graph: Path) -> int:
    """Rewrite the ONNX file of a step in place.

    Args:
        graph: The file; its weights lie beside it and are written anew.

    Returns:
        Number of products that are quantised.

    Raises:
        InvalidInput: There is none to quantise: the file is no step of the generation tower.
    """
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    data = graph.with_name(f'{graph.name}.data')
    partial = data.with_name(f'{data.name}.partial')
    try:
        with partial.open('wb') as stream:
            count = _Rewriter(model.graph, _Weights(graph.parent, stream, data.name)).run()
        if not count:
            raise InvalidInput(str(graph.name), [Problem('graph', 'has no matrix product of the generation tower')])
        partial.replace(data)
    finally:
        partial.unlink(missing_ok=True)
    onnx.save(model, str(graph))
    return count


class _Weights:
    """Weights on their way from one file to another, one at a time: a network's do not fit into memory twice."""

    def __init__(self, folder: Path, stream: BinaryIO, name: str) -> None:
        """Read from files in `folder`, write to `stream`, which will be the file `name` of that folder."""
        self.folder = folder
        self.stream = stream
        self.name = name

    def read(self, entry: onnx.TensorProto) -> NDArray[Any]:
        """The numbers of a tensor."""
        from onnx import helper, numpy_helper

        if not entry.external_data:
            return numpy_helper.to_array(entry)
        place = {item.key: item.value for item in entry.external_data}
        dtype = helper.tensor_dtype_to_np_dtype(entry.data_type)
        offset, count = int(place.get('offset', 0)), math.prod(entry.dims)
        return np.fromfile(self.folder / place['location'], dtype, count, offset=offset).reshape(tuple(entry.dims))

    def write(self, entry: onnx.TensorProto, values: NDArray[Any]) -> None:
        """Give a tensor its numbers, of its own type: in the graph if they are few, else in the file."""
        entry.dims[:] = values.shape
        del entry.external_data[:]
        if values.nbytes <= _INLINE:
            entry.data_location, entry.raw_data = entry.DEFAULT, values.tobytes()
            return
        self.stream.write(bytes(-self.stream.tell() % _ALIGNMENT))
        place = {'location': self.name, 'offset': self.stream.tell(), 'length': values.nbytes}
        self.stream.write(np.ascontiguousarray(values).view(np.uint8).data)
        entry.ClearField('raw_data')
        entry.data_location = entry.EXTERNAL
        for key, value in place.items():
            entry.external_data.add(key=key, value=str(value))


class _Rewriter:
    """One pass over a graph."""

    def __init__(self, graph: onnx.GraphProto, files: _Weights) -> None:
        from onnx import TensorProto

        self.graph = graph
        self.files = files
        self.weights = {entry.name: entry for entry in graph.initializer}
        self.stored = set(self.weights)
        self.nodes: list[Any] = []
        self.quantised: dict[str, tuple[str, str]] = {}
        self.fp8 = TensorProto.FLOAT8E4M3FN

    def run(self) -> int:
        """Rewrite; returns how many products were."""
        count = 0
        for node in list(self.graph.node):
            if node.op_type in ('Gemm', 'MatMul') and self._is_of_the_tower(node):
                self._product(node)
                count += 1
            else:
                self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.graph.node for name in node.input}
        kept = [entry for entry in self.graph.initializer if entry.name in used]
        for entry in kept:
            if entry.name in self.stored and entry.external_data:
                self.files.write(entry, self.files.read(entry))
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        return count

    def _is_of_the_tower(self, node: Any) -> bool:
        weight = node.input[1]
        return weight in self.weights and any(part in weight for part in TOWER)

    def _product(self, node: Any) -> None:
        from onnx import helper

        weight = self.weights[node.input[1]]
        activations, scale = self._activations(node.input[0], weight.data_type)
        node.input[0], node.input[1] = activations, self._weight(node, weight)
        output, raw = node.output[0], f'{node.output[0]}_unscaled'
        node.output[0] = raw
        self.nodes += [node, helper.make_node('Mul', [raw, scale], [output])]

    def _activations(self, name: str, dtype: int) -> tuple[str, str]:
        """Names of the activations, quantised and back, and of their scales [tokens, 1]."""
        if name not in self.quantised:
            self.nodes += list(self._quantising(name, dtype))
            self.quantised[name] = f'{name}_dequantised', f'{name}_scale'
        return self.quantised[name]

    def _quantising(self, name: str, dtype: int) -> Iterator[Any]:
        from onnx import TensorProto, helper

        def step(operator: str, inputs: list[str], ending: str, **attributes: Any) -> Any:
            return helper.make_node(operator, inputs, [f'{name}{ending}'], **attributes)

        one = self._constant('fp8_one', np.ones(()), dtype)
        zero = self._constant('fp8_zero', np.zeros(()), self.fp8)
        per_step = self._constant('fp8_per_step', np.array(1.0 / LARGEST), dtype)
        smallest = self._constant('fp8_smallest_scale', np.array(SMALLEST), dtype)
        axis = self._constant('fp8_token', np.array([-1], dtype=np.int64), TensorProto.INT64)
        yield step('Abs', [name], '_size')
        yield step('ReduceMax', [f'{name}_size', axis], '_largest', keepdims=1)
        yield step('Mul', [f'{name}_largest', per_step], '_own_scale')
        yield step('Max', [f'{name}_own_scale', smallest], '_scale')
        yield step('Div', [name, f'{name}_scale'], '_scaled')
        yield step('QuantizeLinear', [f'{name}_scaled', one, zero], '_fp8')
        yield step('DequantizeLinear', [f'{name}_fp8', one], '_dequantised')

    def _weight(self, node: Any, weight: Any) -> str:
        """Store a weight in FP8 with a scale for each output channel; the name of what restores it."""
        from onnx import helper

        values = self.files.read(weight).astype(np.float32)
        rows = node.op_type == 'Gemm' and any(item.name == 'transB' and item.i for item in node.attribute)
        axis = 0 if rows else 1
        largest = np.maximum(values.max(axis=1 - axis), -values.min(axis=1 - axis))
        scales = np.maximum(largest, SMALLEST * LARGEST) / LARGEST
        values /= np.expand_dims(scales, 1 - axis)
        quantised = self._constant(f'{weight.name}_fp8', values, self.fp8)
        scale = self._constant(f'{weight.name}_scale', scales, weight.data_type)
        zeros = self._constant(f'{weight.name}_zero', np.zeros_like(scales), self.fp8)
        restored = f'{weight.name}_restored'
        self.nodes.append(helper.make_node('DequantizeLinear', [quantised, scale, zeros], [restored], axis=axis))
        return restored

    def _constant(self, name: str, values: Any, dtype: int) -> str:
        from onnx import helper

        if name not in self.weights:
            array = np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(dtype))
            entry = self.graph.initializer.add()
            entry.name, entry.data_type = name, dtype
            self.files.write(entry, array)
            self.weights[name] = entry
        return name
