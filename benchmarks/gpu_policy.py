"""Every way to run a policy, side by side in one run, and how far each is from what the machine can do.

    python benchmarks/gpu_policy.py                                  # tiny, on this machine's processor
    python benchmarks/gpu_policy.py --size nano --device cuda --save # Nano's true dimensions, random weights

All sides work on the same weights and take turns. The floor is that of the matrix products, attention and unavoidable
memory traffic of the generation tower at the rates of the GPU; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import diffusers
import numpy as np
import torch
from figures import commit, facts, processor_name, save, table
from floors import floor_seconds, rates_of, work_of
from policy_latency import CONTRACTS, INSTRUCTION, make_observation
from policy_sides import SIZES, Parts, Reference, comparable, make_parts

import engine
from cosmos3_ros.processor import keep_freed_memory
from engine.backends.base import Backend, Step
from engine.backends.torch_compiled import TorchCompiled
from engine.backends.torch_reference import TorchReference
from engine.contract import with_preset
from engine.export.accuracy import collect_chunks, compare_chunks, make_observations
from engine.network.fp8 import quantise_generation
from engine.network.placement import Tokens
from engine.network.rope import text_positions
from engine.network.transformer import CosmosTransformer, Prefix
from engine.network.understanding import Memory, Writer, read, score
from engine.network.vae import VideoVae
from engine.policy import Policy
from engine.runtime import FrameCodec, Runtime, Stopwatch, Task
from engine.sampler import Guidance, flow_unipc_schedule, request_seeds
from engine.sequence import Layout, forward_dynamics_layout

REPEATS = {'tiny': 5, 'mid': 3, 'nano': 20}
OUTSIDE_REPEATS = 12
OUTSIDE_PAUSE_S = 0.06
"""Between requests, as a loop has it that waits for the rows to be executed."""
IMAGINED_ROWS = 16
IMAGINED_STEPS = {'tiny': 4, 'mid': 4, 'nano': 30}
QUESTION, ANSWER = 404, 100
"""Tokens of a question with one picture, and of its answer."""


@dataclass(frozen=True)
class Column:
    """What one side took.

    Attributes:
        name: Of the side.
        precision: Of its matrix products: 'float32', 'bfloat16' or 'fp8'.
        total: Seconds of every request.
        denoise: Seconds of its denoising loops.
        outside: Seconds of a request outside the networks; None where it cannot be told apart.
        peak_gb: Most memory of the device during its requests, the weights of all sides included; 0 on a processor.
        teraflop: Of the generation tower in one request.
        floor: What the GPU needs at least for that, s; None if its rates are unknown.
        rmse: Largest root mean square difference of a joint from the eager side, rad; None for other schedules.
    """

    name: str
    precision: str
    total: list[float]
    denoise: list[float]
    outside: float | None
    peak_gb: float
    teraflop: float
    floor: float | None
    rmse: float | None

    @property
    def median(self) -> float:
        """Median of the whole request, s."""
        return statistics.median(self.total)

    @property
    def denoise_median(self) -> float:
        """Median of the denoising loop, s."""
        return statistics.median(self.denoise)


class Timed:
    """A backend whose networks are timed: prefix and steps."""

    def __init__(self, backend: Backend) -> None:
        self.inner = backend
        self.name, self.device, self.patch = backend.name, backend.device, backend.patch
        self.seconds = 0.0

    def prefix(self, ids: list[int]) -> Prefix:
        """As the backend does it."""
        return self.inner.prefix(ids)

    def step(self, prefix: Prefix, layout: Layout) -> Step:
        """As the backend does it, timed."""
        step = self.inner.step(prefix, layout)

        def run(tokens: Tokens, timestep: float) -> Tokens:
            start = time.perf_counter()
            found = step(tokens, timestep)
            if self.device.type == 'cuda':
                torch.cuda.current_stream(self.device).synchronize()
            self.seconds += time.perf_counter() - start
            return found

        return run


def main() -> None:
    """Run all sides, print the tables, keep them if asked to."""
    options = parse_options()
    keep_freed_memory()  # as in the nodes' process, whose OpenCV has one thread too
    cv2.setNumThreads(1)
    warnings.filterwarnings('ignore', category=FutureWarning)
    diffusers.utils.logging.set_verbosity_error()
    device = torch.cuda.get_device_name() if options.device == 'cuda' else processor_name()
    machine = {
        'device': device,
        'torch': torch.__version__,
        'diffusers': diffusers.__version__,
        'threads': torch.get_num_threads(),
        'commit': commit(),
        'date': time.strftime('%Y-%m-%d', time.gmtime()),
    }
    contract = comparable(engine.load_contract(options.contract or CONTRACTS[options.size]))
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, contract, Path(scratch))
        columns = bench.policies()
        others = {} if options.no_surfaces else bench.surfaces()
    lines = [f'# Policy on {device}: {options.size}, contract {contract.name}', '', facts(machine) + '.', '']
    lines += [describe(bench), '', policy_table(columns), '', verdicts(columns), '']
    if others:
        lines += [table(['other surfaces', 'ms, median'], [[k, milliseconds(v)] for k, v in others.items()])]
    text = '\n'.join(lines)
    print(text)
    if options.save:
        name = re.sub(r'[^a-z0-9]+', '_', f'gpu_policy_{options.size}_{device}'.lower()).strip('_')
        save(name, {'machine': machine, 'columns': [asdict(c) for c in columns], 'surfaces': others}, text)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--size', choices=SIZES, default='tiny')
    parser.add_argument('--contract', help='default: DROID for tiny and nano, demo for mid')
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--repeats', type=int, help='requests of each side after two to warm up (default: 5, 3, 20)')
    parser.add_argument('--sides', help='names of sides, comma between them; default: all that run here')
    parser.add_argument('--no-surfaces', action='store_true', help='leave imagination and reasoner out')
    parser.add_argument('--save', action='store_true', help='keep figures and tables in benchmarks/results')
    options = parser.parse_args()
    if options.size == 'nano' and options.device != 'cuda':
        parser.error('nano has 15 billion parameters: it needs --device cuda and 70 GB of its memory')
    if options.device == 'cuda' and not torch.cuda.is_available():
        parser.error('PyTorch sees no GPU here')
    return options


class Bench:
    """The weights, and every side that runs on them."""

    def __init__(self, options: argparse.Namespace, contract: engine.Contract, scratch: Path) -> None:
        self.options, self.contract, self.scratch = options, contract, scratch
        tell('making the weights')
        self.parts = make_parts(options.size, scratch, options.device)
        self.config = self.parts.transformer.config
        self.observation = make_observation(contract)
        self.vae = VideoVae(self.parts.autoencoder)
        self.device = self.parts.device
        self.gpu = torch.cuda.get_device_name() if options.device == 'cuda' else ''
        self.eager = self._policy(TorchReference(self.parts.transformer), contract)
        self.prompt = self.eager.runtime.prefix(self.eager.caption(INSTRUCTION)).length
        self.tokens = self.eager.layout.tokens(self.config.latent_patch_size)

    def policies(self) -> list[Column]:
        """Warm all sides up, let them take turns, then measure each one's accuracy and memory."""
        sides = self._sides()
        wanted = self.options.sides.split(',') if self.options.sides else list(sides)
        unknown = set(wanted) - set(sides)
        if unknown:
            raise SystemExit(f'unknown sides {", ".join(sorted(unknown))}; there are {", ".join(sides)}')
        runs = {name: self._runner(name, sides[name]) for name in wanted}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        peaks: dict[str, float] = {}
        for name, run in runs.items():
            tell(f'warm-up, {name}')
            run(0)
            self._reset_peak()
            run(1)
            peaks[name] = self._peak_gb()
        repeats = self.options.repeats or REPEATS[self.options.size]
        for turn in range(repeats):
            tell(f'turn {turn + 1} of {repeats}')
            for name, run in runs.items():
                seconds[name].append(run(turn))
        return [self._column(name, sides[name], seconds[name], peaks[name]) for name in runs]

    def surfaces(self) -> dict[str, float]:
        """Median seconds of an imagination, and of a question read and answered."""
        tell('imagination')
        steps = IMAGINED_STEPS[self.options.size]
        imagine = self._imagination(steps)
        found = {
            f'imagination, {IMAGINED_ROWS + 1} frames, {steps} steps with guidance': timed(imagine, self.device, 3)
        }
        tell('reasoner')
        if self.parts.transformer.lm_head is None:
            self.parts.transformer.lm_head = _language_head(self.parts)
        found[f'reasoner, {QUESTION} tokens read'] = timed(self._question(), self.device, 3)
        found[f'reasoner, {QUESTION} tokens read and {ANSWER} said one by one, eager'] = timed(
            self._answer, self.device, 3
        )
        return found

    # Sides

    def _sides(self) -> dict[str, Policy | Reference]:
        fast = with_preset(self.contract, 'fast')
        transformer = self.parts.transformer
        compiled = TorchCompiled(transformer)
        half = quantised(transformer)
        sides: dict[str, Policy | Reference] = {
            'diffusers': Reference(self.parts, self.contract, self.scratch / 'tiny' / 'scheduler'),
            'eager': self.eager,
            'compiled': self._policy(compiled, self.contract),
            'compiled, 2 steps': self._policy(compiled, fast),
        }
        if half is not None:
            fp8 = TorchCompiled(half)
            sides['compiled, fp8'] = self._policy(fp8, self.contract)
            sides['compiled, fp8, 2 steps'] = self._policy(fp8, fast)
        if self.options.size == 'tiny' and self.options.device == 'cpu':
            sides['onnxruntime'] = self._graphs()
        return sides

    def _policy(self, backend: Backend, contract: engine.Contract, vae: FrameCodec | None = None) -> Policy:
        return Policy(Runtime(backend, vae or self.vae, self.parts.tokenizer), contract)

    def _graphs(self) -> Policy:
        from engine.checkpoint import open_checkpoint
        from engine.export.compiling import Order, compile_checkpoint

        tell('compiling graphs')
        checkpoint = self.scratch / 'tiny'
        made = compile_checkpoint(
            Order(open_checkpoint(checkpoint), self.contract, 'fp32', decoder=False), self.scratch / 'graphs'
        )
        return engine.load(checkpoint, compiled=made.folder).policy(self.contract)

    def _runner(self, name: str, side: Policy | Reference) -> Callable[[int], tuple[float, float]]:
        """Run one request; returns seconds of the whole and of the denoising."""
        if isinstance(side, Reference):
            composite = self.eager.composite(self.observation)

            def theirs(seed: int) -> tuple[float, float]:
                side.infer(composite, INSTRUCTION, seed)
                return side.watch.seconds['total'], side.watch.seconds['denoise']

            return theirs

        def ours(seed: int) -> tuple[float, float]:
            seconds = side.infer(self.observation, seed).seconds
            return seconds['total'], seconds['denoise']

        return ours

    def _column(
        self, name: str, side: Policy | Reference, seconds: list[tuple[float, float]], peak_gb: float
    ) -> Column:
        steps = 2 if '2 steps' in name else self.contract.sampler.steps
        precision = 'fp8' if 'fp8' in name else str(self.parts.dtype).removeprefix('torch.')
        work = work_of(self.config, self.tokens, self.prompt) * (2 * steps)
        rates = rates_of(self.gpu)
        floor = None if rates is None or precision == 'float32' else floor_seconds(work, rates, precision)
        outside = rmse = None
        if isinstance(side, Policy):
            tell(f'outside the networks and accuracy, {name}')
            outside = self._outside(side)
            rmse = None if '2 steps' in name or name == 'eager' else self._rmse(side)
        total, denoise = ([pair[i] for pair in seconds] for i in (0, 1))
        return Column(name, precision, total, denoise, outside, peak_gb, work.teraflop, floor, rmse)

    def _outside(self, side: Policy) -> float:
        """Seconds of a request in which neither tower nor autoencoder work; median of a few, seeded as a node does."""
        watched = Timed(side.runtime.backend)
        policy = Policy(Runtime(watched, side.runtime.vae, side.runtime.tokenizer), side.contract)
        found = []
        for _, seed in zip(range(OUTSIDE_REPEATS), request_seeds(0), strict=False):
            watched.seconds = 0.0
            seconds = policy.infer(self.observation, seed).seconds
            found.append(seconds['total'] - seconds['encode'] - seconds['prefix'] - watched.seconds)
            time.sleep(OUTSIDE_PAUSE_S)
        return statistics.median(found[2:])  # the first one reads the prompt

    def _rmse(self, side: Policy) -> float:
        """Largest root mean square difference of a joint from the eager side, rad."""
        observations, seeds = make_observations(self.contract, 2), (0, 1)
        found, wanted = (collect_chunks(policy, observations, seeds) for policy in (side, self.eager))
        return compare_chunks(self.contract, found, wanted, ('', '')).worst_joint_rmse

    # Other surfaces

    def _imagination(self, steps: int) -> Callable[[], Any]:
        vision, action = self.eager.layout.vision, self.eager.layout.action
        layout = forward_dynamics_layout(
            chunk=IMAGINED_ROWS,
            height=vision.height,
            width=vision.width,
            fps=self.contract.timing.fps,
            domain_id=action.domain_id,
            raw_dim=action.raw_dim,
        )
        guidance = Guidance(self.contract.sampler.guidance)
        noise = torch.randn(1, self.config.latent_channel, layout.vision.frames, vision.height, vision.width)
        rows = torch.zeros(layout.action.rows, self.config.action_dim)
        task = Task(
            layout,
            self.eager.caption(INSTRUCTION),
            flow_unipc_schedule(steps, self.contract.sampler.shift),
            guidance,
            vision=noise.to(self.device),
            action=rows.to(self.device),
        )
        compiled = Runtime(TorchCompiled(self.parts.transformer), self.vae, self.parts.tokenizer)

        def run() -> None:
            with torch.inference_mode():
                compiled.denoise(task, Stopwatch(self.device))

        return run

    def _question(self) -> Callable[[], tuple[Memory, torch.Tensor]]:
        transformer = self.parts.transformer
        ids = torch.arange(QUESTION, device=self.device) % self.config.vocab_size

        def ask() -> tuple[Memory, torch.Tensor]:
            memory = Memory(transformer, QUESTION + ANSWER)
            with torch.inference_mode():
                hidden = read(transformer, transformer.embed(ids), text_positions(QUESTION), memory)
                return memory, score(transformer, hidden[-1:])

        return ask

    def _answer(self) -> None:
        memory, scores = self._question()()
        writer = Writer(self.parts.transformer, memory, QUESTION)
        with torch.inference_mode():
            for _ in range(ANSWER):
                scores = writer([int(scores.argmax())])

    def _reset_peak(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats()

    def _peak_gb(self) -> float:
        return torch.cuda.max_memory_allocated() / 1e9 if self.device.type == 'cuda' else 0.0


def quantised(transformer: CosmosTransformer) -> CosmosTransformer | None:
    """The same transformer with its generation tower in FP8, all else shared; None where a GPU has no kernel for it."""
    on_gpu = transformer.device.type == 'cuda'
    if on_gpu and (torch.cuda.get_device_capability() < (8, 9) or transformer.dtype is not torch.bfloat16):
        return None
    # Keep what is not quantised in one copy: `deepcopy` takes what it is told it has copied already.
    memo = {id(tensor): tensor for tensor in (*transformer.parameters(), *transformer.buffers())}
    twin = copy.deepcopy(transformer, memo)
    quantise_generation(twin)
    return twin


def _language_head(parts: Parts) -> torch.nn.Linear:
    config = parts.transformer.config
    head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False, device=parts.device, dtype=parts.dtype)
    return head.requires_grad_(False)


def timed(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of several runs after one to warm up."""
    run()
    found = []
    for _ in range(repeats):
        watch = Stopwatch(device)
        with watch.stage('run'):
            run()
        found.append(watch.seconds['run'])
    return statistics.median(found)


# Tables


def describe(bench: Bench) -> str:
    """What one request consists of."""
    sampler = bench.contract.sampler
    count = bench.parts.parameters / 1e6
    return (
        f'{count:,.4g} M parameters, {str(bench.parts.dtype).removeprefix("torch.")}, random; '
        f'{bench.tokens:,} generation tokens, {bench.prompt} of the prompt, {sampler.steps} steps, guidance '
        f'{sampler.guidance:g}; the prompt is read before, one frame is encoded, the imagined video is not decoded.'
    )


def policy_table(columns: list[Column]) -> str:
    """All sides as Markdown."""
    first = next((c for c in columns if c.name == 'diffusers'), columns[0])
    rows = []
    for c in columns:
        rate = c.teraflop / c.denoise_median
        rows.append(
            [
                c.name,
                milliseconds(c.median),
                milliseconds(float(np.percentile(c.total, 95))),
                f'{first.median / c.median:.2f}',
                milliseconds(c.denoise_median),
                f'{rate:.3g}',
                '' if c.floor is None else f'{c.denoise_median / c.floor:.2f}',
                '' if c.outside is None else f'{c.outside * 1e3:.2f}',
                f'{c.peak_gb:.1f}' if c.peak_gb else '',
                '' if c.rmse is None else f'{c.rmse:.1e}',
            ]
        )
    head = ['ms per chunk', 'p50', 'p95', f'times {first.name}', 'denoise', 'TF/s', 'of the floor', 'outside', 'GB']
    return table([*head, 'RMSE, rad'], rows)


def verdicts(columns: list[Column]) -> str:
    """The goals, each with what was measured."""
    by_name = {c.name: c for c in columns}
    lines = []
    for name, most in (('compiled', 1.25), ('compiled, fp8', 1.35)):
        column = by_name.get(name)
        if column is not None and column.floor is not None:
            share = column.denoise_median / column.floor
            lines.append(f'- {name}: {share:.2f} of its floor ({column.floor * 1e3:.0f} ms), goal {most}')
    if {'diffusers', 'compiled'} <= set(by_name):
        times = by_name['diffusers'].median / by_name['compiled'].median
        lines.append(f'- compiled: {times:.2f} times as fast as diffusers, goal 2.5')
    fastest = min((c.outside for c in columns if c.outside is not None), default=None)
    if fastest is not None:
        lines.append(f'- outside the networks: {fastest * 1e3:.2f} ms a chunk on the best side, goal 3')
    return '\n'.join(lines)


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds with three digits or more."""
    return f'{seconds * 1e3:,.{0 if seconds >= 0.1 else 2}f}'


def tell(text: str) -> None:
    """Say what is going on, apart from the tables."""
    print(f'{time.strftime("%H:%M:%S")} {text}', file=sys.stderr, flush=True)


if __name__ == '__main__':
    main()
