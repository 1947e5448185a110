"""Compiles a checkpoint for a contract: graphs, engines, and the card, in a folder that appears whole or not at all."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine.backends.card import CARD, ONNX, Card, EngineError, StoredFile, StoredPart, StoredPort, read_card
from engine.backends.compiled import TYPES, layout_terms
from engine.backends.tensorrt_api import TensorRt, find_tensorrt, gpu_of
from engine.checkpoint.loading import forget
from engine.cosmos3 import contract_differences
from engine.errors import ContractError, InvalidInput, Problem
from engine.export.engines import SHORTEST, build_engine
from engine.export.folders import workshop
from engine.export.fp8 import quantise_step
from engine.export.onnx_files import OPSET, Graph, write_onnx
from engine.export.parts import (
    LONGEST,
    Part,
    Port,
    StepPlan,
    decoder_part,
    encoder_part,
    generation_bytes,
    prompt_part,
    step_part,
)
from engine.export.trial import TooCostly, Trial
from engine.policy import canvas_of, layout_of

if TYPE_CHECKING:
    from engine.checkpoint import Checkpoint
    from engine.contract import Contract
    from engine.network.config import TransformerConfig
    from engine.network.transformer import CosmosTransformer
    from engine.sequence import Layout

PRECISIONS = tuple(TYPES)
_PACKAGES = ('torch', 'onnx', 'onnxscript', 'numpy', 'ml-dtypes')
_MEMORY_PER_WEIGHT = 3.4
"""Host memory that building an engine takes, as a multiple of its weights (measured for TensorRT-RTX: 3.3)."""
_PROMPT = 96
"""Length of the prompt that parts are traced with."""
# Whatever decides what is written, so that a change of it makes old engines stale.
_SOURCES = ('export', 'network', 'backends/compiled.py', 'backends/card.py')

Report = Callable[[str, float], None]
"""Is told what is done and how much of it, 0..1."""


@dataclass(frozen=True)
class Order:
    """What is wanted.

    Attributes:
        checkpoint: The verified checkpoint.
        contract: What it is compiled for.
        precision: 'fp32', 'fp16', 'bf16' or 'fp8'.
        targets: GPUs to build engines for, such as 'sm_89' or 'native'; none: graphs alone, for ONNX Runtime.
        flavour: 'tensorrt' or 'tensorrt_rtx'; None: the full one if it is installed.
        segments: Pieces that the step is cut into; None: as few as the memory at hand allows.
        accuracy: Made-up observations by which the outcome is held to the reference, each under two seeds; 0: none.
            Left out, with the reason in the card, where the reference would need too much memory or time.
        decoder: Whether to compile the decoder of imagined videos too. Actions do not need it; without it PyTorch
            decodes.
    """

    checkpoint: Checkpoint
    contract: Contract
    precision: str = 'bf16'
    targets: tuple[str, ...] = ()
    flavour: str | None = None
    segments: int | None = None
    accuracy: int = 0
    decoder: bool = True


@dataclass(frozen=True)
class Compiled:
    """The outcome: where it is, its card, and whether it had been made before."""

    folder: Path
    card: Card
    cached: bool


@dataclass
class _Work:
    """An order with everything that follows from it."""

    order: Order
    tensorrt: TensorRt | None
    targets: tuple[str, ...]
    layout: Layout
    segments: int
    parts: dict[str, StoredPart] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return TYPES[self.order.precision]

    @property
    def exact(self) -> bool:
        """Whether attention is float32 although the rest is not: in graphs for processors."""
        return self.dtype is torch.float16 and not self.targets


def compile_checkpoint(order: Order, folder: Path, report: Report | None = None) -> Compiled:
    """Compile, unless the folder holds the very same already.

    Args:
        order: What is wanted.
        folder: Where it goes; made if it is not there. An earlier compilation in its place is replaced; anything else
            is left alone and refused.
        report: Is told of progress.

    Raises:
        ContractError: The contract does not fit the checkpoint.
        InvalidInput: The order cannot be met: precision, targets, segments; or the folder holds something else.
        CosmosError: A package is missing, or a part cannot be exported or built.
    """
    tell = report or _silence
    work = _plan(order)
    key = _key(work)
    found = _cached(folder, key)
    if found is not None:
        return Compiled(folder, found, cached=True)
    with workshop(folder) as shop:
        _make_parts(work, shop, tell)
        card = _card(work, key)
        if order.accuracy:
            card = replace(card, accuracy=_accuracy(work, shop, card, tell))
        card.write(shop)
    return Compiled(folder, card, cached=False)


def _silence(what: str, share: float) -> None:
    """Nobody wants to know."""


def _plan(order: Order) -> _Work:
    problems = contract_differences(order.checkpoint, order.contract)
    if problems:
        raise ContractError(f'contract {order.contract.name} and checkpoint {order.checkpoint.root}', problems)
    faults = []
    if order.precision not in PRECISIONS:
        faults.append(Problem('precision', 'is unknown', repr(order.precision), ', '.join(PRECISIONS)))
    if order.precision == 'fp8' and not order.targets:
        faults.append(Problem('precision', 'needs engines', 'fp8', remedy='name the GPU: --target sm_89'))
    layers = order.checkpoint.transformer_config.num_hidden_layers
    if order.segments is not None and not 1 <= order.segments <= layers:
        allowed = f'1 to {layers}, the number of layers'
        faults.append(Problem('segments', 'out of range', str(order.segments), allowed))
    if order.accuracy < 0:
        faults.append(Problem('accuracy', 'is negative', str(order.accuracy), '0 or more observations'))
    if faults:
        raise InvalidInput('compilation', faults)
    layout_terms(layout_of(order.contract))
    tensorrt = find_tensorrt(order.flavour) if order.targets else None
    targets = tensorrt.check_targets(order.targets, gpu_of()) if tensorrt else ()
    segments = order.segments or segments_for(
        order.checkpoint.transformer_config, TYPES[order.precision], memory_at_hand()
    )
    return _Work(order, tensorrt, targets, layout_of(order.contract), segments)


def segments_for(config: TransformerConfig, dtype: torch.dtype, memory: int) -> int:
    """Into how many pieces a step must be cut to be built within a memory, bytes."""
    needed = _MEMORY_PER_WEIGHT * generation_bytes(config, dtype)
    return min(config.num_hidden_layers, max(1, math.ceil(needed / max(1, memory))))


def memory_at_hand() -> int:
    """Memory that is free on this machine, less a reserve for everything else, bytes."""
    free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    try:
        lines = Path('/proc/meminfo').read_text(encoding='ascii').splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable'))
    except (OSError, StopIteration, ValueError):
        pass  # no Linux, or a very old one: what is free without the caches will do
    return int(0.8 * free)


# The cache


def _key(work: _Work) -> str:
    """Digest of whatever can change the result."""
    order = work.order
    terms = {
        'checkpoint': order.checkpoint.fingerprint,
        'contract': order.contract.fingerprint,
        'layout': _layout(work),
        'precision': order.precision,
        'targets': work.targets,
        'builder': _builder(work),
        'gpu': _gpu(work),
        'decoder': order.decoder,
        'segments': order.segments,  # not what the memory of this moment makes of None: either will do
        'opset': OPSET,
        'versions': _versions(),
        'sources': _sources(),
    }
    return hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()


def _layout(work: _Work) -> dict[str, Any]:
    """What the parts are made for: tokens, canvas, lengths of the prompt."""
    canvas = canvas_of(work.order.contract)
    return {
        **layout_terms(work.layout),
        'canvas': [canvas.height, canvas.width],
        'prompt': [SHORTEST, LONGEST],
    }


def _builder(work: _Work) -> dict[str, str]:
    if work.tensorrt is None:
        return {'flavour': ONNX, 'version': _version('onnx')}
    return {'flavour': work.tensorrt.flavour, 'version': work.tensorrt.version}


def _gpu(work: _Work) -> str:
    """The GPU whose measurements decide what is built; none if the engines are built from names alone."""
    gpu = gpu_of() if 'native' in work.targets or (work.tensorrt and not work.tensorrt.targets) else None
    return '' if gpu is None else f'{gpu[0]} ({gpu[1]})'


def _versions() -> dict[str, str]:
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return 'not installed'


def _sources() -> str:
    root = Path(__file__).resolve().parents[1]
    files = [
        file for name in _SOURCES for file in ([root / name] if name.endswith('.py') else (root / name).glob('*.py'))
    ]
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(file.relative_to(root).as_posix().encode() + b'\0' + file.read_bytes())
    return found.hexdigest()


def _cached(folder: Path, key: str) -> Card | None:
    """The card of an earlier compilation, if it is the same and whole."""
    if not (folder / CARD).is_file():
        return None
    try:
        card = read_card(folder)
    except EngineError:
        return None  # damaged: it is made anew
    return card if card.key == key else None


# The work


class _FromCheckpoint:
    """Fills a skeleton from the files of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, skeleton: CosmosTransformer, dtype: torch.dtype) -> None:
        self.checkpoint, self.skeleton, self.dtype = checkpoint, skeleton, dtype

    def load(self, names: Sequence[str]) -> None:
        """See :class:`engine.export.parts.Weights`."""
        self.checkpoint.fill(self.skeleton, names, 'cpu', self.dtype)

    def forget(self, names: Sequence[str]) -> None:
        """See :class:`engine.export.parts.Weights`."""
        forget(self.skeleton, names)


def _make_parts(work: _Work, shop: Path, tell: Report) -> None:
    checkpoint = work.order.checkpoint
    skeleton = checkpoint.transformer_skeleton()
    weights = _FromCheckpoint(checkpoint, skeleton, work.dtype)
    with prompt_part(skeleton, work.dtype, _PROMPT, weights, exact=work.exact) as part:
        drawn = _draw(work, part, shop, tell)
    _build(work, drawn, shop, tell)
    plan = StepPlan(work.layout, _PROMPT, work.segments, work.exact)
    for index in range(work.segments):
        with step_part(skeleton, work.dtype, plan, index, weights) as part:
            drawn = _draw(work, part, shop, tell)
        _build(work, drawn, shop, tell)
    # Every action begins with the picture, and in float16 its encoder errs far more than the whole network does.
    encoding = torch.float32 if work.dtype is torch.float16 else work.dtype
    vae = checkpoint.load_vae('cpu', encoding)
    canvas, vision = canvas_of(work.order.contract), work.layout.vision
    _build(work, _draw(work, encoder_part(vae, canvas.height, canvas.width), shop, tell), shop, tell)
    if vision is not None and work.order.decoder:
        vae = vae if encoding is work.dtype else checkpoint.load_vae('cpu', work.dtype)
        part = decoder_part(vae, vision.frames, vision.height, vision.width)
        _build(work, _draw(work, part, shop, tell), shop, tell)


@dataclass(frozen=True)
class _Drawn:
    """The graph of a part, written, and how long that took, s."""

    name: str
    graph: Graph
    seconds: float


def _draw(work: _Work, part: Part, shop: Path, tell: Report) -> _Drawn:
    """Export a part, and quantise it if that is wanted."""
    began = time.perf_counter()
    tell(f'{part.name}: graph', 0.0)
    graph = write_onnx(part, shop)
    if work.order.precision == 'fp8' and part.name.startswith('step'):
        quantise_step(graph.path)
    tell(f'{part.name}: graph', 1.0)
    return _Drawn(part.name, graph, round(time.perf_counter() - began, 2))


def _build(work: _Work, drawn: _Drawn, shop: Path, tell: Report) -> None:
    """Build the engine of a part, whose own weights need not be in memory any more, and note what there is of it."""
    graph, seconds, layers = drawn.graph, {'export': drawn.seconds}, 0
    files = {'graph': graph.path, 'weights': graph.path.with_name(f'{graph.path.name}.data')}
    if work.tensorrt is not None:
        gc.collect()  # what the exporter traced holds on to the weights in circles
        files['engine'] = shop / f'{drawn.name}.engine'
        built = build_engine(
            work.tensorrt,
            graph.path,
            files['engine'],
            work.targets,
            lambda _, share: tell(f'{drawn.name}: engine', share),
        )
        layers, seconds['build'] = built.layers, round(built.seconds, 2)
    stored = {key: StoredFile.of(path) for key, path in files.items() if path.is_file()}
    inputs, outputs = (tuple(_port(port) for port in ports) for ports in (graph.inputs, graph.outputs))
    work.parts[drawn.name] = StoredPart(drawn.name, stored, inputs, outputs, layers, seconds)


def _accuracy(work: _Work, shop: Path, card: Card, tell: Report) -> dict[str, Any]:
    """How far the parts are from the reference, or why nobody has looked."""
    order = work.order
    trial = Trial(order.checkpoint, order.contract, order.accuracy)
    try:
        trial.check_cost(memory_at_hand())
    except TooCostly as error:
        return {'left_out': str(error)}
    return trial.compare(shop, card, lambda what, share: tell(f'accuracy: {what}', share)).document()


def _port(port: Port) -> StoredPort:
    return StoredPort(port.name, port.shape, str(port.dtype).removeprefix('torch.'))


def _card(work: _Work, key: str) -> Card:
    order = work.order
    return Card(
        key=key,
        made=datetime.now(UTC).isoformat(timespec='seconds'),
        checkpoint={'fingerprint': order.checkpoint.fingerprint, 'family': order.checkpoint.family},
        contract={'name': order.contract.name, 'fingerprint': order.contract.fingerprint},
        layout=_layout(work),
        precision=order.precision,
        builder=_builder(work),
        targets=work.targets,
        gpu=_gpu(work),
        versions=_versions(),
        parts=work.parts,
        accuracy={},
    )
