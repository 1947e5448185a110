"""How long a chunk of actions takes: this engine against diffusers' pipeline, same weights, same work, side by side.

    python benchmarks/policy_latency.py                     # tiny and mid on this machine's processor
    python benchmarks/policy_latency.py --sizes nano --device cuda --save

Both sides work in turns, so that whatever else the machine does falls on both. See README.md beside this file for what
is compared and how to read the table.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from figures import RESULTS, processor_name
from policy_sides import SIZES, Reference, comparable, make_ablated, make_parts, make_policy
from torch.utils.flop_counter import FlopCounterMode

import engine
from engine.policy import Policy

CONTRACTS = {'tiny': 'droid_joint_pos', 'mid': 'demo_joint_pos', 'nano': 'droid_joint_pos'}
REPEATS = {'tiny': 5, 'mid': 3, 'nano': 10}
INSTRUCTION = 'Pick up the red cube and put it in the bowl'
STAGES = ('compose', 'encode', 'noise', 'prefix', 'denoise', 'decode')
COLUMNS = {'ours': 'ours', 'ablated': 'ours, savings off', 'theirs': 'diffusers'}


@dataclass(frozen=True)
class Side:
    """One column of the table: seconds of every request by stage, and what one request consists of.

    Attributes:
        seconds: Per stage, in order of requests; `total` is the whole request, `processor` the time
            that all threads together worked on it.
        teraflop: Arithmetic of one request in matrix products, convolutions and attention.
        prompt: Tokens of the prompt in each branch of guidance.
        generation: Tokens denoised, of vision and action.
        forwards: Evaluations of the generation tower.
    """

    seconds: Mapping[str, list[float]]
    teraflop: float
    prompt: tuple[int, ...]
    generation: int
    forwards: int

    def median(self, stage: str = 'total') -> float | None:
        """Median of a stage in seconds; None if this side has no such stage."""
        return statistics.median(self.seconds[stage]) if stage in self.seconds else None

    @property
    def best(self) -> float:
        """Shortest whole request in seconds: what the machine can do when nothing else runs on it."""
        return min(self.seconds['total'])

    @property
    def p95(self) -> float:
        """95th percentile of the whole request in seconds."""
        return float(np.percentile(self.seconds['total'], 95))


@dataclass(frozen=True)
class Comparison:
    """All columns for one size."""

    size: str
    contract: str
    parameters: int
    dtype: str
    sides: Mapping[str, Side]

    @property
    def ratio(self) -> float:
        """Median of diffusers' time over median of ours."""
        return self.sides['theirs'].median() / self.sides['ours'].median()

    @property
    def processor_ratio(self) -> float:
        """The same of processor time, in which waiting for other programs does not count."""
        return self.sides['theirs'].median('processor') / self.sides['ours'].median('processor')

    @property
    def transformer_ratio(self) -> float:
        """The same for the transformer alone: its calls there, all of prefix and denoising (with the solver) here."""
        ours = self.sides['ours']
        return self.sides['theirs'].median('denoise') / (ours.median('prefix') + ours.median('denoise'))

    @property
    def best_ratio(self) -> float:
        """The same of the shortest times, which other programs on the machine disturb least."""
        return self.sides['theirs'].best / self.sides['ours'].best

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest ratio of two requests that ran one after the other."""
        pairs = zip(self.sides['theirs'].seconds['total'], self.sides['ours'].seconds['total'], strict=True)
        ratios = [theirs / ours for theirs, ours in pairs]
        return min(ratios), max(ratios)


def main() -> None:
    """Run the sizes asked for, print a table of each, and keep the figures if asked to."""
    options = parse_options()
    warnings.filterwarnings('ignore', category=FutureWarning)
    diffusers.utils.logging.set_verbosity_error()
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = describe_machine(options.device)
    print(f'{machine["device"]}, {machine["threads"]} threads, torch {machine["torch"]}', flush=True)
    found = []
    for size in options.sizes:
        contract = comparable(engine.load_contract(options.contract or CONTRACTS[size]))
        found.append(compare(size, contract, options.repeats or REPEATS[size], options.device))
        print('\n' + table(found[-1]), flush=True)
        gc.collect()
        if options.device == 'cuda':
            torch.cuda.empty_cache()
    if options.save:
        save(machine, found)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--sizes', type=read_sizes, default=['tiny', 'mid'], help=f'of {",".join(SIZES)}')
    parser.add_argument('--contract', help='for all sizes (default: DROID for tiny and nano, demo for mid)')
    parser.add_argument('--repeats', type=int, help='requests of each side after its warm-up (default: 5, 3, 10)')
    parser.add_argument('--threads', type=int, help="threads of PyTorch (default: PyTorch's own)")
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--save', action='store_true', help='keep figures and tables in benchmarks/results')
    options = parser.parse_args()
    if 'nano' in options.sizes and options.device != 'cuda':
        parser.error('nano has 15 billion parameters: it needs --device cuda and 40 GB of its memory')
    if options.device == 'cuda' and not torch.cuda.is_available():
        parser.error('PyTorch sees no GPU here')
    return options


def read_sizes(text: str) -> list[str]:
    """Split and check the value of --sizes."""
    sizes = text.split(',')
    unknown = [size for size in sizes if size not in SIZES]
    if unknown:
        raise argparse.ArgumentTypeError(f'{", ".join(unknown)} is not one of {", ".join(SIZES)}')
    return sizes


def compare(size: str, contract: engine.Contract, repeats: int, device: str) -> Comparison:
    """Warm every side up, then let them work in turns; the ablated one in every other round."""
    with tempfile.TemporaryDirectory() as scratch:
        parts = make_parts(size, Path(scratch), device)
        reference = Reference(parts, contract, Path(scratch) / 'tiny' / 'scheduler')
    ours, ablated = make_policy(parts, contract), make_ablated(parts, contract)
    observation = make_observation(contract)
    composite = ours.composite(observation)

    def run_theirs(seed: int) -> Mapping[str, float]:
        reference.infer(composite, INSTRUCTION, seed)
        return reference.watch.seconds

    runs: dict[str, Callable[[int], Mapping[str, float]]] = {
        'ours': lambda seed: ours.infer(observation, seed).seconds,
        'theirs': run_theirs,
        'ablated': lambda seed: ablated.infer(observation, seed).seconds,
    }
    ours.prepare(INSTRUCTION)
    teraflop = {}
    for name, run in runs.items():
        tell(f'{size}: warm-up, {COLUMNS[name]}')
        teraflop[name] = count_teraflop(run)
    seconds: dict[str, list[Mapping[str, float]]] = {name: [] for name in runs}
    for turn in range(repeats):
        tell(f'{size}: turn {turn + 1} of {repeats}')
        for name, run in runs.items():
            if name != 'ablated' or turn % 2 == 0:
                seconds[name].append(with_processor_time(run, turn))
    sides = {name: make_side(name, seconds[name], teraflop[name], ours, reference) for name in COLUMNS}
    check_same_work(sides, contract)
    return Comparison(size, contract.name, parts.parameters, short(parts.dtype), sides)


def tell(text: str) -> None:
    """Say what is going on, apart from the tables."""
    print(f'{time.strftime("%H:%M:%S")} {text}', file=sys.stderr, flush=True)


def with_processor_time(run: Callable[[int], Mapping[str, float]], seed: int) -> dict[str, float]:
    """Times of one request, with the processor time of all threads added."""
    start = time.process_time()
    return {**run(seed), 'processor': time.process_time() - start}


def make_observation(contract: engine.Contract) -> engine.Observation:
    """Noise in every camera; what is seen does not change the time."""
    generator, arms = np.random.default_rng(0), len(contract.robot.arms)
    several = (lambda pose: np.tile(pose, (arms, 1))) if arms > 1 else np.asarray
    return engine.Observation(
        images={name: generator.integers(0, 256, (180, 320, 3), np.uint8) for name in contract.views.streams},
        instruction=INSTRUCTION,
        joint_positions=np.tile([0.0, -0.6, 0.0, -2.5, 0.0, 1.9, 0.0], arms),
        gripper_position=np.zeros(arms) if arms > 1 else 0.0,
        end_effector_position=several([0.45, 0.0, 0.4]),
        end_effector_quaternion=several([1.0, 0.0, 0.0, 0.0]),
    )


def count_teraflop(run: Callable[[int], Any]) -> float:
    """Arithmetic of one request, which at the same time is the warm-up."""
    with FlopCounterMode(display=False, custom_mapping=dict.fromkeys(ATTENTION, attention_flop)) as counter:
        run(0)
    return counter.get_total_flops() / 1e12


def attention_flop(query: tuple[int, ...], keys: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Both products of attention [B, heads, tokens, width]; PyTorch's own formula knows no grouped heads."""
    batch, heads, tokens, width = query
    return 4 * batch * heads * tokens * keys[-2] * width


ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_efficient_attention,
    torch.ops.aten._scaled_dot_product_cudnn_attention,
)


def make_side(
    name: str, requests: list[Mapping[str, float]], teraflop: float, ours: Policy, reference: Reference
) -> Side:
    """Turn the times of one side's requests into a column, together with what both sides say they do."""
    seconds = {stage: [request[stage] for request in requests] for stage in requests[0]}
    if name == 'theirs':
        prompt = tuple(dict.fromkeys(reference.prompts))
        return Side(seconds, teraflop, prompt, reference.generation, len(reference.prompts))
    guided = ours.guidance.mask(ours.schedule)
    branches = (ours.caption(INSTRUCTION), '') if any(guided) else (ours.caption(INSTRUCTION),)
    prompt = tuple(ours.runtime.prefix(caption).length for caption in branches)
    forwards = len(guided) + sum(guided)
    patch = ours.runtime.backend.transformer.config.latent_patch_size
    return Side(seconds, teraflop, prompt, ours.layout.tokens(patch), forwards)


def check_same_work(sides: Mapping[str, Side], contract: engine.Contract) -> None:
    """Refuse to compare if prompts, tokens or passes differ by more than the rows that diffusers does not know."""
    ours, theirs = sides['ours'], sides['theirs']
    if ours.generation - theirs.generation != contract.embodiment.clean_rows:
        raise SystemExit(f'tokens differ: {ours.generation} here, {theirs.generation} in diffusers')
    if (ours.prompt, ours.forwards) != (theirs.prompt, theirs.forwards):
        raise SystemExit(f'work differs: {ours.prompt}, {ours.forwards}; diffusers: {theirs.prompt}, {theirs.forwards}')


def table(found: Comparison) -> str:
    """One size as markdown."""
    sides = {name: found.sides[name] for name in COLUMNS}
    other = {name: side.median() - sum(side.median(stage) or 0 for stage in STAGES) for name, side in sides.items()}
    rows = [(stage, [milliseconds(side.median(stage)) for side in sides.values()]) for stage in STAGES]
    rows += [
        ('everything else', [milliseconds(other[name]) for name in sides]),
        ('**total, median**', [f'**{milliseconds(side.median())}**' for side in sides.values()]),
        ('total, best', [milliseconds(side.best) for side in sides.values()]),
        ('total, p95', [milliseconds(side.p95) for side in sides.values()]),
        ('processor time, median', [milliseconds(side.median('processor')) for side in sides.values()]),
        ('requests timed', [str(len(side.seconds['total'])) for side in sides.values()]),
        ('arithmetic, TFLOP', [f'{side.teraflop:.3g}' for side in sides.values()]),
        ('tokens denoised', [str(side.generation) for side in sides.values()]),
        ('prompt tokens', [' and '.join(map(str, side.prompt)) for side in sides.values()]),
        ('passes', [str(side.forwards) for side in sides.values()]),
    ]
    low, high = found.range
    arithmetic = found.sides['theirs'].teraflop / found.sides['ours'].teraflop
    lines = [
        f'### {found.size}: {found.parameters / 1e6:,.4g} M parameters, {found.dtype}, contract {found.contract}',
        '',
        f'| ms | {" | ".join(COLUMNS.values())} |',
        '|---|' + '---:|' * len(COLUMNS),
        *(f'| {name} | {" | ".join(cells)} |' for name, cells in rows),
        '',
        f'**{found.ratio:.2f} times** as fast as diffusers (best against best {found.best_ratio:.2f}, '
        f'processor time {found.processor_ratio:.2f}, single pairs {low:.2f} to {high:.2f}); '
        f'transformer alone {found.transformer_ratio:.2f}, arithmetic {arithmetic:.2f}.',
    ]
    return '\n'.join(lines)


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds with three digits."""
    return '' if seconds is None else f'{max(0.0, seconds) * 1e3:,.{0 if seconds >= 0.1 else 2}f}'


def describe_machine(device: str) -> dict[str, Any]:
    """What the figures were taken with."""
    return {
        'device': torch.cuda.get_device_name() if device == 'cuda' else processor_name(),
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'diffusers': diffusers.__version__,
        'python': platform.python_version(),
    }


def save(machine: Mapping[str, Any], found: list[Comparison]) -> None:
    """Write figures and tables to `results`, under the device's name."""
    name = re.sub(r'[^a-z0-9]+', '_', machine['device'].lower()).strip('_')
    RESULTS.mkdir(exist_ok=True)
    figures = [
        asdict(one)
        | {
            'ratio': one.ratio,
            'best_ratio': one.best_ratio,
            'processor_ratio': one.processor_ratio,
            'transformer_ratio': one.transformer_ratio,
            'pairs': one.range,
        }
        for one in found
    ]
    document = {'machine': machine, 'comparisons': figures}
    (RESULTS / f'policy_latency_{name}.json').write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
    facts = ', '.join(f'{key} {value}' for key, value in machine.items() if key != 'device')
    text = '\n\n'.join([f'# Policy latency on {machine["device"]}', f'{facts}.', *map(table, found)])
    (RESULTS / f'policy_latency_{name}.md').write_text(text + '\n', encoding='utf-8')


def short(dtype: torch.dtype) -> str:
    """'torch.float32' -> 'float32'."""
    return str(dtype).removeprefix('torch.')


if __name__ == '__main__':
    main()
