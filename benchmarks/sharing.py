"""What sharing the weights costs the policy: a chunk alone, and while imagination uses the same network all the time.

    python benchmarks/sharing.py --save

The ways of sharing take turns within one run, so that the load of other programs falls on all. See README.md beside
this file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import figures
import numpy as np
import torch
from policy_latency import CONTRACTS, INSTRUCTION, make_observation
from policy_sides import SIZES, Parts, make_parts

import engine
from engine.backends.base import Step
from engine.backends.torch_reference import TorchReference
from engine.network.placement import Tokens
from engine.network.transformer import Prefix
from engine.network.vae import VideoVae
from engine.policy import Policy
from engine.runtime import Cancelled, Runtime, Stopwatch, Task
from engine.sampler import Guidance, flow_unipc_schedule
from engine.sequence import Layout, forward_dynamics_layout
from engine.turns import Priority, Turns

CHUNK = 4
"""Rows of a chunk: an eighth of the contract's, so that many fit into a run. Layers and passes are as many as ever."""
ROWS = 4
"""Actions whose consequences are imagined at a time: a pass of imagination is as long as one of the policy."""
STEPS = 6
GOAL = 1.1
HEAD = (
    'imagination beside it',
    'chunk, p50',
    'p95',
    'of it wait, p50',
    'p95',
    'longer by, p50',
    'p95',
    'processor, p50',
    'p95',
    'p95 / alone',
    'chunks',
)


class WholeRequests(Turns):
    """One lock, held from the beginning of a request to its end, as it was before there were turns."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()

    @contextmanager
    def take(self, *_: Any, waited: Callable[[float], None], **__: Any) -> Iterator[None]:
        """Hold the lock."""
        start = time.perf_counter()
        with self._lock:
            waited(time.perf_counter() - start)
            yield


class WholePasses(TorchReference):
    """Gives way before a pass of the network and not within it."""

    def step(self, prefix: Prefix, layout: Layout) -> Step:
        """The reference's step, uninterrupted."""
        placement = self.transformer.place(layout, prefix.length)

        def run(tokens: Tokens, timestep: float) -> Tokens:
            with torch.inference_mode():
                moment = torch.full((1,), timestep, dtype=torch.float32, device=self.device)
                return self.transformer.denoise_tokens(tokens, prefix.keys, prefix.values, placement, moment)

        return run


class Imagination:
    """A surface that denoises clips without a pause, on a thread of its own."""

    def __init__(self, runtime: Runtime, task: Task) -> None:
        """Use `runtime` for `task`, again and again."""
        self._runtime, self._task = runtime, task
        self._over = threading.Event()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Imagine for the length of the block."""
        self._over.clear()
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _work(self) -> None:
        device = self._runtime.backend.device
        with torch.inference_mode():
            while not self._over.is_set():
                try:
                    self._runtime.denoise(self._task, Stopwatch(device), self._over.is_set, Priority.DYNAMICS)
                except Cancelled:
                    return


@dataclass
class Way:
    """One way of sharing: a policy, and whether imagination runs beside it.

    Attributes:
        name: In the table.
        policy: Whose requests are timed.
        imagination: What else uses its weights; None for nothing.
        chunks: Seconds of every request, from asking to having the chunk.
        waits: Seconds of them in which imagination had the weights.
        work: Processor time of all threads meanwhile: that of the request, and of imagination while it waits. What
            other programs do to the machine is not in it.
    """

    name: str
    policy: Policy
    imagination: Imagination | None
    chunks: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)

    @property
    def longer(self) -> list[float]:
        """By which share of itself each request was longer for the wait: nothing but the wait, on the same machine."""
        return [wait / (chunk - wait) for chunk, wait in zip(self.chunks, self.waits, strict=True)]

    def measure(self, observation: engine.Observation, requests: int, gaps: Iterator[float]) -> None:
        """Ask for chunks with pauses between them."""
        for seed in range(requests):
            time.sleep(next(gaps))
            start = time.process_time()
            seconds = self.policy.infer(observation, seed).seconds
            self.work.append(time.process_time() - start)
            self.chunks.append(seconds['total'])
            self.waits.append(seconds['wait'])

    def round(self, observation: engine.Observation, requests: int, gaps: Iterator[float]) -> None:
        """One visit to this way of sharing."""
        if self.imagination is None:
            self.measure(observation, requests, gaps)
            return
        with self.imagination.going_on():
            self.measure(observation, requests, gaps)


def main() -> None:
    """Measure, print the table, keep it if asked to."""
    options = parse_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    contract = engine.load_contract(CONTRACTS[options.size])
    contract = replace(contract, timing=replace(contract.timing, chunk_rows=options.chunk))
    with tempfile.TemporaryDirectory() as scratch:
        parts = make_parts(options.size, Path(scratch), options.device)
    ways, pass_s = make_ways(parts, contract)
    observation = make_observation(contract)
    for turn in range(options.rounds):
        for way in ways:
            if turn % 2 and isinstance(way.policy.runtime.turns, WholeRequests):
                continue  # it takes long, and two digits are enough
            print(f'{time.strftime("%H:%M:%S")} round {turn + 1} of {options.rounds}: {way.name}', file=sys.stderr)
            way.round(observation, options.requests, random_gaps(pass_s, turn))
        if options.save:  # after every round: a run that is ended early has measured what it has
            keep(options, parts, ways, pass_s)
    print(report(ways))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--size', default='mid', choices=SIZES)
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--chunk', type=int, default=CHUNK, help='rows of a chunk')
    parser.add_argument('--rounds', type=int, default=8, help='visits to each way of sharing')
    parser.add_argument('--requests', type=int, default=3, help='chunks per visit')
    parser.add_argument('--threads', type=int, help="threads of PyTorch (default: PyTorch's own)")
    parser.add_argument('--save', action='store_true', help='keep figures and table in benchmarks/results')
    return parser.parse_args()


def make_ways(parts: Parts, contract: engine.Contract) -> tuple[list[Way], float]:
    """All ways of sharing, warmed up, the policy alone first; and the seconds of one pass of imagination."""
    ways, pass_s = [], 0.0
    for name, backend, turns in (
        ('none', TorchReference, Turns),
        ('a lock for whole requests', TorchReference, WholeRequests),
        ('turns, handed over between passes', WholePasses, Turns),
        ('turns, handed over between layers', TorchReference, Turns),
    ):
        runtime = Runtime(backend(parts.transformer), VideoVae(parts.autoencoder), parts.tokenizer)
        runtime.turns = turns()
        policy = Policy(runtime, contract)
        task = make_task(policy)
        policy.prepare(INSTRUCTION)
        if not ways:
            policy.infer(make_observation(contract))
        start = time.perf_counter()
        with torch.inference_mode():
            runtime.denoise(make_task(policy, 1), Stopwatch(parts.device))
        pass_s = time.perf_counter() - start
        ways.append(Way(name, policy, None if name == 'none' else Imagination(runtime, task)))
    return ways, pass_s


def make_task(policy: Policy, steps: int = STEPS) -> Task:
    """Forward dynamics on the policy's canvas: the first frame and all actions are given, the video is not."""
    item, rows = policy.layout.vision, policy.layout.action
    layout = forward_dynamics_layout(
        chunk=ROWS,
        height=item.height,
        width=item.width,
        fps=item.fps,
        domain_id=rows.domain_id,
        raw_dim=rows.raw_dim,
    )
    device, generator = policy.runtime.backend.device, torch.Generator().manual_seed(0)
    vision = torch.randn(1, 48, layout.vision.frames, item.height, item.width, generator=generator)
    action = torch.randn(ROWS, 64, generator=generator)
    action[:, rows.raw_dim :] = 0
    schedule = flow_unipc_schedule(steps, 5.0)
    return Task(layout, 'imagine', schedule, Guidance(), vision.to(device), action.to(device))


def random_gaps(pass_s: float, seed: int) -> Iterator[float]:
    """Pauses before requests (s): they may meet imagination anywhere in a pass. The same ones for all ways."""
    generator = np.random.default_rng(seed)
    while True:
        yield float(generator.uniform(0.5, 2.5) * pass_s)


def row(way: Way, alone: Way) -> tuple[str, ...]:
    """One line of the table."""
    times = [1e3 * np.percentile(values, p) for values in (way.chunks, way.waits) for p in (50, 95)]
    work = [1e3 * np.percentile(way.work, p) for p in (50, 95)]
    longer = [np.percentile(way.longer, p) for p in (50, 95)]
    cells = [*(f'{value:,.0f}' for value in times), *(f'{value:.1%}' for value in longer)]
    ratio = np.percentile(way.work, 95) / np.percentile(alone.work, 95)
    return way.name, *cells, *(f'{value:,.0f}' for value in work), f'{ratio:.2f}', str(len(way.chunks))


def verdict(ways: list[Way]) -> str:
    """Whether the goal is reached: by the waits themselves, by processor time and by the clock."""
    alone, best = ways[0], ways[-1]
    longer = 1 + np.percentile(best.longer, 95)
    work, clock = (
        np.percentile(getattr(best, name), 95) / np.percentile(getattr(alone, name), 95) for name in ('work', 'chunks')
    )
    reached = 'reached' if max(longer, work) <= GOAL else 'not reached'
    return (
        f'Times in ms. Goal, p95 within {GOAL:.2f} of alone: {reached}. A wait makes its own chunk {longer:.3f} times '
        f'as long (p95); p95 against p95 it is {work:.3f} by processor time, in which the load of other programs does '
        f'not count, and {clock:.3f} by the clock.'
    )


def report(ways: list[Way]) -> str:
    """The table and what it says."""
    return f'{figures.table(HEAD, [row(way, ways[0]) for way in ways])}\n\n{verdict(ways)}'


def keep(options: argparse.Namespace, parts: Parts, ways: list[Way], pass_s: float) -> None:
    """Write figures and table to `results`."""
    machine = figures.machine() | {'torch': torch.__version__, 'threads': torch.get_num_threads()}
    if options.device == 'cuda':
        machine['gpu'] = torch.cuda.get_device_name()
    settings = {
        'size': options.size,
        'parameters': parts.parameters,
        'chunk': options.chunk,
        'rows': ROWS,
        'steps': STEPS,
        'pass_s': pass_s,
    }
    measured = [
        {
            'name': way.name,
            'chunks_s': way.chunks,
            'waits_s': way.waits,
            'work_s': way.work,
        }
        for way in ways
    ]
    title = '# The policy beside imagination on the same weights'
    work = f'Network {options.size}, chunks of {options.chunk} rows, clips of {ROWS + 1} frames in {STEPS} steps'
    setting = f'{figures.facts(machine)}.\n\n{work}; a pass of imagination takes {1e3 * pass_s:,.0f} ms.'
    name = 'sharing' if options.device == 'cpu' else 'sharing_gpu'
    document = {'machine': machine, 'settings': settings, 'ways': measured}
    figures.save(name, document, f'{title}\n\n{setting}\n\n{report(ways)}')


if __name__ == '__main__':
    main()
