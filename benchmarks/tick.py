"""What a tick of the policy costs outside the network: pictures, noise, solver, guidance and decoding, stage by stage.

    python benchmarks/tick.py --save

The network is replaced by one that answers at once, so that what is left is what this package adds to it. Variants work
in turns, so that whatever else the machine does falls on all of them. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import figures
import numpy as np
import torch

import engine
from cosmos3_ros.processor import keep_freed_memory
from engine.backends.base import Step
from engine.contract import with_preset
from engine.network.placement import Tokens
from engine.network.transformer import Prefix
from engine.observation.tokenizer import PromptTokenizer
from engine.policy import Policy, canvas_of, layout_of
from engine.runtime import Runtime
from engine.sampler import request_seeds
from engine.sequence import Layout
from engine.tiny_tokenizer import build_tokenizer

CAMERAS = {'720 x 1280': (720, 1280), '180 x 320': (180, 320)}
"""Pictures as DROID's cameras deliver them, and as the data set holds them."""
STAGES = ('compose', 'encode', 'noise', 'prefix', 'denoise', 'decode')
REST = 'everything else'
CALL = 'the whole call'
PROCESSOR = 'processor time'
"""Of all threads during the call, in which waiting for other programs does not count."""
INSTRUCTION = 'Pick up the red cube and put it in the bowl'
CHANNELS, PATCH, WIDTH = 48, 2, 64
QUANTILES = (0, 50, 95)
BUSY = 'Other programs kept the processors busy: the best times say what a quiet machine does, medians and 95th do not.'


class NoNetwork:
    """A backend that answers at once, with the same velocities each time.

    Attributes:
        seconds: That it took to copy them: every answer is a new tensor, as the policy may count on.
        worked: The same of all threads of the processor.
    """

    name = 'none'
    device = torch.device('cpu')
    patch = PATCH

    def __init__(self, layout: Layout) -> None:
        vision, action, _ = layout.split(PATCH)
        generator = torch.Generator().manual_seed(0)
        self.vision = torch.randn(vision, CHANNELS * PATCH**2, generator=generator)
        self.action = torch.randn(action, WIDTH, generator=generator)
        self.seconds = self.worked = 0.0

    def prefix(self, ids: list[int]) -> Prefix:
        """A prompt of which nothing is kept."""
        return Prefix((), (), len(ids))

    def step(self, _prefix: Prefix, _layout: Layout) -> Step:
        """A step that costs no more than a copy."""

        def answer(_tokens: Tokens, _timestep: float) -> Tokens:
            start, worked = time.perf_counter(), time.process_time()
            velocity = Tokens(self.vision.clone(), self.action.clone(), None)
            self.worked += time.process_time() - worked
            self.seconds += time.perf_counter() - start
            return velocity

        return answer


class NoAutoencoder:
    """The same latents for every picture."""

    def __init__(self, height: int, width: int) -> None:
        self.latents = torch.randn(
            1, CHANNELS, 1, height // 16, width // 16, generator=torch.Generator().manual_seed(1)
        )

    def encode_frame(self, _rgb: torch.Tensor) -> torch.Tensor:
        """Latents at once."""
        return self.latents

    def decode(self, *_: Any) -> torch.Tensor:
        """Nobody looks at the video here."""
        raise NotImplementedError


@dataclass
class Column:
    """One variant: its policy, and the seconds of its requests by stage, with the whole call as `CALL`."""

    policy: Policy
    seconds: list[Mapping[str, float]] = field(default_factory=list)

    def percentile(self, stage: str, q: float) -> float:
        """Of a stage, in milliseconds."""
        values = [request[stage] for request in self.seconds]
        return float(np.percentile(values, q)) * 1e3

    def text(self, stage: str) -> str:
        """Shortest time, median and 95th percentile of a stage, in milliseconds."""
        return ' / '.join(f'{self.percentile(stage, q):.2f}' for q in QUANTILES)


def main() -> None:
    """Measure, print, and keep the figures if asked to."""
    options = parse_options()
    keep_freed_memory()  # as in the nodes' process, whose OpenCV has one thread too
    cv2.setNumThreads(1)
    counts = [options.threads] if options.threads else sorted({torch.get_num_threads(), 1})
    contract = engine.load_contract(options.contract)
    tokenizer = make_tokenizer()
    found = {}
    for (name, size), threads in itertools.product(CAMERAS.items(), counts):
        torch.set_num_threads(threads)
        title = f'{name}, threads of PyTorch: {threads}'
        found[title] = make_columns(contract, tokenizer)
        measure(found[title], make_observation(contract, size), options.repeats, options.pause)
        print(f'\n{report(title, found[title])}', flush=True)
    if options.save:
        save(contract, found, options)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--contract', default='droid_joint_pos')
    parser.add_argument('--repeats', type=int, default=100, help='requests of each variant after its warm-up')
    parser.add_argument('--pause', type=float, default=0.06, help='seconds after each request, as a loop has them')
    parser.add_argument('--threads', type=int, help='of PyTorch (default: one, and then as many as it takes)')
    parser.add_argument('--save', action='store_true', help='keep figures and tables in benchmarks/results')
    return parser.parse_args()


def make_tokenizer() -> PromptTokenizer:
    """That of the tiny checkpoint."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in build_tokenizer(edge=False, real_ids=False).files().items():
            (Path(scratch) / name).write_text(content, encoding='utf-8')
        return PromptTokenizer.from_directory(Path(scratch), 'nano')


def make_columns(contract: engine.Contract, tokenizer: PromptTokenizer) -> dict[str, Column]:
    """What a user has, and the same with each switch turned."""

    def column(terms: engine.Contract = contract, **switches: bool) -> Column:
        canvas = canvas_of(terms)
        runtime = Runtime(NoNetwork(layout_of(terms)), NoAutoencoder(*canvas.size), tokenizer)
        return Column(Policy(runtime, terms, **switches))

    return {
        'as it is': column(),
        'noise drawn when asked for': column(noise_ahead=False),
        'pictures through PyTorch': column(pictures_on_device=True),
        'preset fast': column(with_preset(contract, 'fast')),
    }


def make_observation(contract: engine.Contract, size: tuple[int, int]) -> engine.Observation:
    """Noise in every camera, an arm at rest."""
    generator, arms = np.random.default_rng(0), len(contract.robot.arms)
    several = (lambda pose: np.tile(pose, (arms, 1))) if arms > 1 else np.asarray
    return engine.Observation(
        images={name: generator.integers(0, 256, (*size, 3), np.uint8) for name in contract.views.streams},
        instruction=INSTRUCTION,
        joint_positions=np.tile([0.0, -0.6, 0.0, -2.5, 0.0, 1.9, 0.0], arms),
        gripper_position=np.zeros(arms) if arms > 1 else 0.0,
        end_effector_position=several([0.45, 0.0, 0.4]),
        end_effector_quaternion=several([1.0, 0.0, 0.0, 0.0]),
    )


def measure(columns: Mapping[str, Column], observation: engine.Observation, repeats: int, pause: float) -> None:
    """Let the variants work in turns, with seeds as the policy node has them."""
    for turn, seed in zip(range(repeats + 3), request_seeds(0), strict=False):
        for column in columns.values():
            network = column.policy.runtime.backend
            network.seconds = network.worked = 0.0
            start, worked = time.perf_counter(), time.process_time()
            chunk = column.policy.infer(observation, seed)
            call, worked = time.perf_counter() - start, time.process_time() - worked
            call, worked = call - network.seconds, worked - network.worked
            if turn >= 3:
                known = {stage: chunk.seconds[stage] for stage in STAGES}
                known['denoise'] -= network.seconds
                column.seconds.append({**known, REST: call - sum(known.values()), CALL: call, PROCESSOR: worked})
            time.sleep(pause)


def report(name: str, columns: Mapping[str, Column]) -> str:
    """One size of picture as markdown."""
    stages = (*STAGES, REST, CALL, PROCESSOR)
    rows: list[list[object]] = [[stage, *(column.text(stage) for column in columns.values())] for stage in stages]
    first, *others = columns.values()
    whole = first.percentile(CALL, 50)
    rows.append(['ratio to the first', '1.00', *(f'{column.percentile(CALL, 50) / whole:.2f}' for column in others)])
    return f'### Cameras {name}\n\n{figures.table(["ms: best / p50 / p95", *columns], rows)}'


def save(contract: engine.Contract, found: Mapping[str, Mapping[str, Column]], options: argparse.Namespace) -> None:
    """Write `results/tick.json` and `results/tick.md`."""
    machine = figures.machine() | {'torch': torch.__version__}
    terms = contract.sampler
    head = (
        f'Contract {contract.name}: {len(contract.views.streams)} cameras, composite {contract.views.size[0]} x '
        f'{contract.views.size[1]}, {terms.steps} steps, guidance {terms.guidance:g}, '
        f'{layout_of(contract).tokens(PATCH)} tokens; {options.repeats} requests of each variant.'
    )
    sections = [report(name, columns) for name, columns in found.items()]
    if machine['load'] > machine['cores']:
        sections.insert(0, BUSY)
    text = '\n\n'.join(['# A tick of the policy outside the network', f'{figures.facts(machine)}.', head, *sections])
    document = {
        'machine': machine,
        'contract': contract.name,
        'repeats': options.repeats,
        'milliseconds_best_p50_p95': {
            name: {
                variant: {
                    stage.strip('*'): [column.percentile(stage, q) for q in QUANTILES] for stage in column.seconds[0]
                }
                for variant, column in columns.items()
            }
            for name, columns in found.items()
        },
    }
    figures.save('tick', document, text)


if __name__ == '__main__':
    main()
