"""What each way of saving work is worth by itself, on a random network of medium size.

    python benchmarks/work_saved.py --save

Each line compares two policies on the same weights that differ in one thing and work in turns. See README.md beside
this file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import figures
import torch
from policy_sides import Parts, WholeClipVae, make_parts
from tick import INSTRUCTION, make_observation

import engine
from engine.backends.torch_reference import TorchReference
from engine.contract import with_preset
from engine.network.vae import VideoVae
from engine.policy import Policy, canvas_of
from engine.runtime import Runtime
from engine.sampler import Guidance, flow_unipc_schedule, request_seeds
from engine.sequence import Layout

CAMERA = (180, 320)
PIXELS = 16
"""To a latent, in height and in width."""
EXACT, ROUNDED, OTHER = 'to the bit', 'up to rounding', 'another chunk'
HEAD = ('saved', 'chunk', 'stage', 'without, ms', 'with, ms', 'ratio', 'whole chunk')


class ForgetfulRuntime(Runtime):
    """Reads its prompts again for every request."""

    def denoise_actions(self, *args: Any, **options: Any) -> Any:
        """Denoise without what earlier requests have left."""
        self._prefixes.clear()
        return super().denoise_actions(*args, **options)


@dataclass
class Side:
    """A policy, and the seconds of its requests by stage."""

    policy: Policy
    seconds: list[Mapping[str, float]] = field(default_factory=list)

    def median(self, stage: str) -> float:
        """Of a stage, in milliseconds."""
        return statistics.median(request[stage] for request in self.seconds) * 1e3


@dataclass(frozen=True)
class Line:
    """One saving.

    Attributes:
        name: What is saved.
        chunk: How chunks with it compare to those without.
        stage: The stage in which it is saved.
        without: The side that does without it.
        saved: The one that does not.
    """

    name: str
    chunk: str
    stage: str
    without: Side
    saved: Side

    def row(self) -> list[str]:
        """A row under `HEAD`."""
        times = [f'{side.median(self.stage):,.2f}' for side in (self.without, self.saved)]
        ratios = [f'{self.without.median(stage) / self.saved.median(stage):,.2f}' for stage in (self.stage, 'total')]
        return [self.name, self.chunk, self.stage, *times, *ratios]


def main() -> None:
    """Measure line by line, print the table, and keep it if asked to."""
    options = parse_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        parts = make_parts(options.size, Path(scratch), 'cpu')
    lines = [line for line in make_lines(parts) if options.only in line.name]
    sides = list({id(side): side for line in lines for side in (line.without, line.saved)}.values())
    seeds = request_seeds(0)
    warm_up(sides, next(seeds))
    for turn, seed in zip(range(1, options.repeats + 1), seeds, strict=False):
        tell(f'turn {turn} of {options.repeats}')
        measure(sides, seed)
        if options.save:  # a turn takes minutes
            save(options, parts, lines, turn)
    print(figures.table(HEAD, [line.row() for line in lines]))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--size', default='mid', choices=['tiny', 'mid'])
    parser.add_argument('--repeats', type=int, default=3, help='requests of each side')
    parser.add_argument('--only', default='', help='lines whose name contains this')
    parser.add_argument('--threads', type=int, help="threads of PyTorch (default: PyTorch's own)")
    parser.add_argument('--save', action='store_true', help='keep figures and table in benchmarks/results')
    return parser.parse_args()


def tell(text: str) -> None:
    """Say what has been found so far, apart from the table."""
    print(f'{time.strftime("%H:%M:%S")} {text}', file=sys.stderr, flush=True)


def make_lines(parts: Parts) -> list[Line]:
    """Everything that is saved, each with all other savings on.

    The demonstration's contract fills its canvas, so what depends on the canvas takes that of DROID, for one pass.
    """
    demo, droid = engine.load_contract('demo_joint_pos'), engine.load_contract('droid_joint_pos')
    one_pass = replace(droid, sampler=replace(droid.sampler, steps=1, guidance=1.0))

    def side(contract: engine.Contract, runtime: type[Runtime] = Runtime, **switches: bool) -> Side:
        made = runtime(TorchReference(parts.transformer), VideoVae(parts.autoencoder), parts.tokenizer)
        return Side(Policy(made, contract, **switches))

    def guided_in(*steps: int) -> Side:
        return side(replace(demo, sampler=replace(demo.sampler, guidance_steps=steps)))

    whole_clip, whole_canvas, as_it_is, cropped = side(demo), side(one_pass), side(demo), side(one_pass)
    whole_clip.policy.runtime.vae = WholeClipVae(parts.autoencoder, demo.timing.frames)
    whole_canvas.policy.layout = on_the_canvas(whole_canvas.policy)
    asked = side(one_pass, noise_ahead=False)
    fast = side(with_preset(demo, 'fast'))
    return [
        Line('prompt read once, not at every tick', EXACT, 'prefix', side(demo, ForgetfulRuntime), as_it_is),
        Line('first frame encoded, not the whole clip', ROUNDED, 'encode', whole_clip, as_it_is),
        Line('latents of the content, not of the canvas; one pass', OTHER, 'denoise', whole_canvas, cropped),
        Line('noise drawn ahead, not when asked for; one pass', EXACT, 'noise', asked, cropped),
        Line('2 guided steps, not 4 (preset `fast`)', OTHER, 'denoise', as_it_is, fast),
        Line('guidance in steps 3 and 4, not in all', OTHER, 'denoise', as_it_is, guided_in(3, 4)),
        Line('guidance in step 4, not in all', OTHER, 'denoise', as_it_is, guided_in(4)),
    ]


def on_the_canvas(policy: Policy) -> Layout:
    """The policy's tokens, with those that hold nothing but padding."""
    canvas, vision = canvas_of(policy.contract), policy.layout.vision
    return replace(policy.layout, vision=replace(vision, height=canvas.height // PIXELS, width=canvas.width // PIXELS))


def warm_up(sides: Sequence[Side], seed: int) -> None:
    """Let every side serve a request of a single pass, with the prompts read that the real ones need."""
    for side in sides:
        policy = side.policy
        policy.prepare(INSTRUCTION)
        sampler = policy.schedule, policy.guidance
        policy.schedule, policy.guidance = flow_unipc_schedule(1, policy.contract.sampler.shift), Guidance()
        policy.infer(make_observation(policy.contract, CAMERA), seed)
        policy.schedule, policy.guidance = sampler


def measure(sides: Sequence[Side], seed: int) -> None:
    """Let every side serve one request."""
    for side in sides:
        chunk = side.policy.infer(make_observation(side.policy.contract, CAMERA), seed)
        side.seconds.append(chunk.seconds)


def save(options: argparse.Namespace, parts: Parts, lines: Sequence[Line], turns: int) -> None:
    """Write `results/work_saved.json` and `results/work_saved.md`."""
    machine = figures.machine() | {'torch': torch.__version__, 'threads': torch.get_num_threads()}
    head = f'{options.size}: {parts.parameters / 1e6:,.4g} M random parameters; medians of {turns} requests.'
    text = figures.table(HEAD, [line.row() for line in lines])
    document = {
        'machine': machine,
        'size': options.size,
        'repeats': turns,
        'seconds': {line.name: {'without': line.without.seconds, 'with': line.saved.seconds} for line in lines},
    }
    figures.save('work_saved', document, f'# Work saved, one by one\n\n{figures.facts(machine)}.\n\n{head}\n\n{text}')


if __name__ == '__main__':
    main()
