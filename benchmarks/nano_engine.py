"""Nano's denoising step at its true dimensions, exported and built without a GPU: how long, how large, how much memory.

    python benchmarks/nano_engine.py --save                         # bfloat16 and FP8, within 24 GB
    python benchmarks/nano_engine.py --precisions bf16 --memory 12
    python benchmarks/nano_engine.py --layers 2 --segments 2        # a quick look

The step is cut into as many segments of layers as the memory asks for, by the rule of `cosmos3 compile`. Each segment
is made in a process of its own, so that its peak of memory is its own too. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from figures import facts, machine, save, table

CONTRACT = 'droid_joint_pos'
TARGETS = ('sm_89', 'sm_120')
PRECISIONS = ('bf16', 'fp8')
GB = 1e9


@dataclass(frozen=True)
class Job:
    """What one process makes: segment `index` of `segments`, of a network of so many layers (None: all of Nano's)."""

    precision: str
    segments: int
    index: int
    layers: int | None
    targets: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class Segment:
    """What came of it: times in s, sizes in bytes.

    Attributes:
        name: Of the part.
        layers: Transformer layers in it.
        weights: Its weights in memory, before any quantisation.
        seconds: Of `random` (making weights up), `export`, `quantise` and `build`.
        graph: Size of the ONNX file and its weights.
        engine: Size of the engine.
        engine_layers: Layers of the engine as TensorRT counts them.
        peaks: Highest resident memory of the process up to the end of each stage, mapped files included.
        tokens: Tokens that the step denoises.
    """

    name: str
    layers: int
    weights: int
    seconds: dict[str, float]
    graph: int
    engine: int
    engine_layers: int
    peaks: dict[str, int]
    tokens: int

    @property
    def peak(self) -> int:
        """Highest resident memory of all stages, bytes."""
        return max(self.peaks.values())


def main() -> None:
    """Make all segments in each precision, print a table of each, and keep the figures if asked to."""
    options = parse_options()
    found: dict[str, list[Segment]] = {}
    with tempfile.TemporaryDirectory(prefix='nano_engine_') as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for precision in options.precisions:
            segments = options.segments or in_process(count_segments, precision, options.layers, options.memory)
            found[precision] = []
            for index in range(segments):
                job = Job(precision, segments, index, options.layers, options.targets, folder / precision)
                found[precision].append(in_process(make_segment, job))
                tell(f'{precision}: segment {index + 1} of {segments} made')
                if not options.keep:
                    remove_files(job.folder)
            print(f'\n### {precision}\n\n{table_of(found[precision])}', flush=True)
    if options.save:
        write(options, found)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--precisions', type=names, default=PRECISIONS, help='of bf16, fp8, fp16 (default: bf16,fp8)')
    parser.add_argument('--targets', type=names, default=TARGETS, help=f'GPUs (default: {",".join(TARGETS)})')
    parser.add_argument('--segments', type=int, help='pieces of the step; left out: as few as the memory allows')
    parser.add_argument('--memory', type=float, default=24.0, help='GB to use, if they are free (default: 24)')
    parser.add_argument('--layers', type=int, help="fewer layers than Nano's 36, for a quick look")
    parser.add_argument('--keep', type=Path, help='folder that graphs and engines go to; left out: they are removed')
    parser.add_argument('--save', action='store_true', help='keep figures and tables in benchmarks/results')
    options = parser.parse_args()
    if options.save and options.layers:
        parser.error('figures of fewer layers are not kept')
    return options


def names(text: str) -> tuple[str, ...]:
    """Split a list."""
    return tuple(text.split(','))


def tell(text: str) -> None:
    """Say what is going on, apart from the tables."""
    print(f'{time.strftime("%H:%M:%S")} {text}', file=sys.stderr, flush=True)


def in_process(function: Any, *arguments: Any) -> Any:
    """Call a function in a fresh process, which takes all of its memory with it when it ends."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(function, *arguments).result()


def remove_files(folder: Path) -> None:
    """Make room for the next segment."""
    for file in folder.iterdir():
        file.unlink()


# What follows runs in the processes of the segments.


def count_segments(precision: str, layers: int | None, memory: float) -> int:
    """Into how many segments the step is cut for a memory, GB, of which no more than is free is used."""
    from engine.backends.compiled import TYPES
    from engine.export.compiling import memory_at_hand, segments_for

    allowed = min(int(memory * GB), memory_at_hand())
    segments = segments_for(config_of(layers), TYPES[precision], allowed)
    tell(f'{precision}: {segments} segments for {allowed / GB:.1f} GB')
    return segments


def config_of(layers: int | None) -> Any:
    """Nano's configuration, without sound, which a policy has no use for."""
    from engine.network.config import TransformerConfig

    config = replace(TransformerConfig.NANO, sound_gen=False, sound_dim=None)
    return replace(config, num_hidden_layers=layers) if layers else config


class RandomWeights:
    """Fills a skeleton with random numbers for as long as a part needs them; see `engine.export.parts.Weights`."""

    def __init__(self, skeleton: Any, dtype: Any) -> None:
        self.skeleton, self.dtype = skeleton, dtype
        self.bytes = 0

    def load(self, names: Sequence[str]) -> None:
        """Make them up: matrices that keep activations of the order of one, norms around one, small biases."""
        import torch

        generator = torch.Generator().manual_seed(0)
        state, own = {}, self.skeleton.state_dict()
        for name in names:
            tensor = torch.empty(own[name].shape, dtype=self.dtype)
            spread = tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 0.1
            tensor.normal_(0.0, spread, generator=generator)
            if tensor.ndim == 1 and name.endswith('weight'):
                tensor.add_(1.0)
            state[name] = tensor
            self.bytes += tensor.nbytes
        self.skeleton.load_state_dict(state, strict=False, assign=True)
        self.skeleton.requires_grad_(False).eval()

    def forget(self, names: Sequence[str]) -> None:
        """Give their memory back."""
        from engine.checkpoint.loading import forget

        forget(self.skeleton, names)


def make_segment(job: Job) -> Segment:
    """Export a segment, quantise it for FP8, build its engine."""
    import gc

    import torch

    from engine.backends.compiled import TYPES
    from engine.backends.tensorrt_api import RTX, find_tensorrt
    from engine.contract import load_contract
    from engine.export.engines import build_engine
    from engine.export.fp8 import quantise_step
    from engine.export.onnx_files import write_onnx
    from engine.export.parts import StepPlan, step_part
    from engine.network.transformer import CosmosTransformer
    from engine.policy import layout_of

    job.folder.mkdir(parents=True, exist_ok=True)
    watch, config, dtype = Watch(), config_of(job.layers), TYPES[job.precision]
    plan = StepPlan(layout_of(load_contract(CONTRACT)), 96, job.segments)
    with torch.device('meta'):
        skeleton = CosmosTransformer(config, lm_head=False)
    weights = RandomWeights(skeleton, dtype)
    with ExitStack() as held:
        with watch.stage('random'):
            part = held.enter_context(step_part(skeleton, dtype, plan, job.index, weights))
        with watch.stage('export'):
            graph = write_onnx(part, job.folder)
        name, layers = part.name, len(part.module.layers)
    del part
    gc.collect()
    if job.precision == 'fp8':
        with watch.stage('quantise'):
            quantise_step(graph.path)
    tensorrt = find_tensorrt(RTX)
    targets = tensorrt.check_targets(job.targets, None)
    engine = job.folder / f'{name}.engine'
    with watch.stage('build'):
        built = build_engine(tensorrt, graph.path, engine, targets)
    size = sum(file.stat().st_size for file in job.folder.glob(f'{name}.onnx*'))
    tokens = plan.layout.tokens(config.latent_patch_size)
    return Segment(name, layers, weights.bytes, watch.seconds, size, built.bytes, built.layers, watch.peaks, tokens)


class Watch:
    """Time and peak of memory, stage by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what is done in the context."""
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 2)
        self.peaks[name] = peak_memory()


def peak_memory() -> int:
    """Highest resident memory of this process so far, bytes.

    Not `ru_maxrss`: that one is handed down from the process that started this one.
    """
    found = re.search(r'^VmHWM:\s+(\d+) kB$', Path('/proc/self/status').read_text(encoding='ascii'), re.MULTILINE)
    if found is None:
        raise SystemExit('this system does not tell the highest resident memory of a process')
    return int(found[1]) * 1024


# The table


def table_of(found: list[Segment]) -> str:
    """All segments of one precision, and their sum; of memory, the largest."""
    head = (
        'segment', 'layers', 'weights, GB', 'export, s', 'quantise, s', 'build, s', 'ONNX, GB', 'engine, GB',
        'engine layers', 'peak memory, GB', 'as multiple of the weights',
    )  # fmt: skip
    rows = [row(segment.name, [segment]) for segment in found]
    return table(head, [*rows, row('**all**', found)])


def row(name: str, found: list[Segment]) -> list[str]:
    """One line of the table."""
    seconds = [sum(segment.seconds.get(stage, 0.0) for segment in found) for stage in ('export', 'quantise', 'build')]
    peak = max(segment.peak for segment in found)
    return [
        name,
        str(sum(segment.layers for segment in found)),
        f'{sum(segment.weights for segment in found) / GB:.2f}',
        *(f'{value:.0f}' if value else '' for value in seconds),
        f'{sum(segment.graph for segment in found) / GB:.2f}',
        f'{sum(segment.engine for segment in found) / GB:.2f}',
        str(sum(segment.engine_layers for segment in found)),
        f'{peak / GB:.2f}',
        f'{max(segment.peak / segment.weights for segment in found):.2f}',
    ]


def write(options: argparse.Namespace, found: dict[str, list[Segment]]) -> None:
    """Keep figures and tables."""
    here = machine() | {name: version(name) for name in ('torch', 'onnx', 'tensorrt-rtx-cu13-libs')}
    tokens = next(iter(found.values()))[0].tokens
    head = (
        "# Nano's denoising step, compiled without a GPU\n\n"
        f'Cosmos3-Nano at its true dimensions with random weights, contract {CONTRACT} ({tokens:,} tokens, prompts of '
        f'2 to 512), TensorRT-RTX engines for {" and ".join(options.targets)}; cut for at most {options.memory:g} GB. '
        'Highest resident memory of the process of each segment, mapped files included.\n'
    )
    tables = '\n\n'.join(f'## {precision}\n\n{table_of(segments)}' for precision, segments in found.items())
    document = {
        'machine': here,
        'contract': CONTRACT,
        'targets': options.targets,
        'memory_gb': options.memory,
        'segments': {precision: [asdict(segment) for segment in segments] for precision, segments in found.items()},
    }
    save('nano_engine', document, f'{head}\n{tables}\n\n{facts(here)}')


if __name__ == '__main__':
    main()
