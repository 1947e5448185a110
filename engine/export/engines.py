"""Builds TensorRT engines from ONNX files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.backends.tensorrt_api import NATIVE, Messages, TensorRt
from engine.errors import CosmosError, InvalidInput, Problem
from engine.export.parts import LONGEST

SHORTEST, USUAL = 2, 192
"""Lengths of the prompt that a compiled part is made for, beside the longest."""


@dataclass(frozen=True)
class Built:
    """One engine that was built: its size in bytes, its layers, and how long it took, s."""

    bytes: int
    layers: int
    seconds: float


def build_engine(
    tensorrt: TensorRt,
    graph: Path,
    target: Path,
    targets: Sequence[str],
    report: Callable[[str, float], None] | None = None,
) -> Built:
    """Build an engine and write it; the file appears whole or not at all.

    Args:
        tensorrt: The flavour.
        graph: ONNX file; its weights lie beside it.
        target: File to write.
        targets: GPUs it is for, from :meth:`TensorRt.check_targets`.
        report: Is told what is done and how much of it, 0..1.

    Raises:
        InvalidInput: TensorRT cannot read the graph; lists what it says.
        CosmosError: TensorRT cannot build the engine; holds what it says.
    """
    began = time.perf_counter()
    messages = Messages()
    logger = messages.logger(tensorrt.api)
    builder = tensorrt.api.Builder(logger)
    network = _parsed(tensorrt, builder, logger, graph)
    _allow_fallbacks(tensorrt, network)
    config = _configured(tensorrt, builder, network, targets)
    if report is not None:
        config.progress_monitor = _monitor(tensorrt, report)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = '; '.join(messages.faults[-3:]) or 'it gave no reason'
        raise CosmosError(f'{graph.name}: TensorRT {tensorrt.version} cannot build the engine: {said}')
    partial = target.with_name(f'{target.name}.partial')
    partial.write_bytes(memoryview(plan))
    partial.replace(target)
    return Built(int(plan.nbytes), int(network.num_layers), time.perf_counter() - began)


def _parsed(tensorrt: TensorRt, builder: Any, logger: Any, graph: Path) -> Any:
    api = tensorrt.api
    flag = getattr(getattr(api, 'NetworkDefinitionCreationFlag', None), 'STRONGLY_TYPED', None)
    # Types are those of the graph. TensorRT 10 has to be told so, later ones know nothing else.
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = api.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        problems = [
            Problem(error.node_name() or graph.name, error.desc())
            for error in map(parser.get_error, range(parser.num_errors))
        ]
        raise InvalidInput(f'{graph.name}, read by {tensorrt.flavour} {tensorrt.version}', problems)
    return network


def _allow_fallbacks(tensorrt: TensorRt, network: Any) -> None:
    """Let attention be taken apart where there is no fused kernel, as in float32 and for heads of unusual width."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == tensorrt.api.LayerType.ATTENTION_INPUT:
            layer.__class__ = tensorrt.api.IAttentionInputLayer
            layer.attention.decomposable = True


def _configured(tensorrt: TensorRt, builder: Any, network: Any, targets: Sequence[str]) -> Any:
    config = builder.create_builder_config()
    profile, variable = builder.create_optimization_profile(), False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 in shape:
            variable = True
            sizes = [tuple(size if axis == -1 else axis for axis in shape) for size in (SHORTEST, USUAL, LONGEST)]
            profile.set_shape(tensor.name, *sizes)
    if variable:
        config.add_optimization_profile(profile)
    named = [target for target in targets if target != NATIVE]
    if named and tensorrt.targets:
        config.num_compute_capabilities = len(named)
        for index, target in enumerate(named):
            capability = getattr(tensorrt.api.ComputeCapability, target.replace('sm_', 'SM'))
            config.set_compute_capability(capability, index)
    return config


def _monitor(tensorrt: TensorRt, report: Callable[[str, float], None]) -> Any:
    """Translate TensorRT's nested phases into a share of the outermost one."""
    base: Any = tensorrt.api.IProgressMonitor

    class Monitor(base):
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.steps[name] = max(1, steps)
                report(name, 0.0)

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.steps:
                report(name, min(1.0, (step + 1) / self.steps[name]))
            return True

        def phase_finish(self, name: str) -> None:
            if self.steps.pop(name, None):
                report(name, 1.0)

    return Monitor()
