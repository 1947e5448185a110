"""What a verdict of imagination costs on each rung of the ladder, and how far that is from what the machine can do.

    python benchmarks/verdict_cost.py --save                                  # tiny, on this machine's processor
    python benchmarks/verdict_cost.py --size nano --device cuda --save        # Nano's true dimensions, random weights

All rungs judge the same chunks in turns, each after the chunk before, as in a run. The floor is that of the matrix
products, attention and unavoidable traffic of the generation tower; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from figures import commit, facts, processor_name, save, table
from floors import floor_seconds, rates_of, work_of
from policy_latency import CONTRACTS, INSTRUCTION
from policy_sides import SIZES, make_parts

import engine
from cosmos3_ros.judge import LADDER, Judge, Proposal, Rung, rungs
from cosmos3_ros.motion_bridge import MotionBridge
from engine.backends.torch_compiled import TorchCompiled
from engine.backends.torch_reference import TorchReference
from engine.dynamics import Dynamics, DynamicsTerms
from engine.network.vae import VideoVae
from engine.observation.geometry import choose_canvas, content_size, latent_crop
from engine.runtime import Runtime
from engine.sequence import LATENT_CHANNELS, forward_dynamics_layout, latent_frames

REPEATS = {'tiny': 5, 'mid': 3, 'nano': 5}
REPLAN_ROWS = 8
HOME = np.array([0.0, -0.6, 0.0, -2.5, 0.0, 1.9, 0.0])


@dataclass
class Column:
    """One rung: its work, and the seconds of its verdicts.

    Attributes:
        rung: Its name.
        passes: Of the network.
        tokens: Of the generation tower in each.
        teraflop: Of all passes.
        floor: What the GPU needs at least for them, s; None if its rates are unknown.
        seconds: Of each verdict.
    """

    rung: str
    passes: int
    tokens: int
    teraflop: float
    floor: float | None
    seconds: list[float] = field(default_factory=list)

    def milliseconds(self, q: float) -> float:
        """Percentile of its verdicts."""
        return float(np.percentile(self.seconds, q)) * 1e3


def main() -> None:
    """Run all rungs, print the table, keep it if asked to."""
    options = parse_options()
    device = torch.cuda.get_device_name() if options.device == 'cuda' else processor_name()
    machine = {
        'device': device,
        'torch': torch.__version__,
        'threads': torch.get_num_threads(),
        'commit': commit(),
        'date': time.strftime('%Y-%m-%d', time.gmtime()),
    }
    contract = engine.load_contract(options.contract or CONTRACTS[options.size])
    with tempfile.TemporaryDirectory() as scratch:
        judge, text = make_judge(options, contract, Path(scratch))
        columns = measure(judge, contract, options)
    lines = [
        f'# Verdicts on {device}: {options.size}, contract {contract.name}',
        '',
        facts(machine) + '.',
        '',
        text,
        '',
    ]
    lines += [report(columns), '', verdict_of(columns)]
    whole = '\n'.join(lines)
    print(whole)
    if options.save:
        name = re.sub(r'[^a-z0-9]+', '_', f'verdict_cost_{options.size}_{device}'.lower()).strip('_')
        save(name, {'machine': machine, 'contract': contract.name, 'columns': [vars(c) for c in columns]}, whole)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--size', choices=SIZES, default='tiny')
    parser.add_argument('--contract', help='default: DROID for tiny and nano, demo for mid')
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--backend', default='torch', choices=['torch', 'torch-compiled'])
    parser.add_argument('--rungs', default=','.join(r.name for r in LADDER), help='comma between them; default: all')
    parser.add_argument('--repeats', type=int, help='chunks judged by each rung after one to warm up')
    parser.add_argument('--save', action='store_true', help='keep figures and table in benchmarks/results')
    options = parser.parse_args()
    if options.device == 'cuda' and not torch.cuda.is_available():
        parser.error('PyTorch sees no GPU here')
    if options.size == 'nano' and options.device != 'cuda':
        parser.error('nano has 15 billion parameters: it needs --device cuda and 40 GB of its memory')
    return options


def make_judge(options: argparse.Namespace, contract: engine.Contract, scratch: Path) -> tuple[Judge, str]:
    """A judge on random weights, and what they are."""
    parts = make_parts(options.size, scratch, options.device)
    backend = (TorchCompiled if options.backend == 'torch-compiled' else TorchReference)(parts.transformer)
    runtime = Runtime(backend, VideoVae(parts.autoencoder), parts.tokenizer)
    dynamics = Dynamics(runtime, DynamicsTerms.of_contract(contract), contract)
    kind = str(parts.dtype).removeprefix('torch.')
    text = f'{parts.parameters / 1e6:,.4g} M parameters, {kind}, random, {options.backend}.'
    return Judge(dynamics, MotionBridge(contract, dynamics.terms)), text


def measure(judge: Judge, contract: engine.Contract, options: argparse.Namespace) -> list[Column]:
    """Let the rungs take turns, two chunks each: the second one can be compared with the first."""
    ladder = rungs(options.rungs.split(','))
    columns = {rung: make_column(judge, contract, rung, options) for rung in ladder}
    for turn in range((options.repeats or REPEATS[options.size]) + 1):
        for rung, column in columns.items():
            judge.reset()
            for moment in (0, 1):
                proposal = make_proposal(judge, contract, moment)
                began = time.perf_counter()
                judge.judge(proposal, rung, turn)
                spent = time.perf_counter() - began
            if turn:
                column.seconds.append(spent)
    return list(columns.values())


def make_proposal(judge: Judge, contract: engine.Contract, moment: int) -> Proposal:
    """A slow wave before noise, with a video of the policy's that is noise."""
    terms, generator = judge.dynamics.terms, np.random.default_rng(moment)
    views = {name: generator.integers(0, 256, (180, 320, 3), np.uint8) for name in contract.views.streams}
    times = np.arange(1, contract.timing.chunk_rows + 1)[:, None] + moment * REPLAN_ROWS
    positions = HOME + 0.01 * times * np.eye(7)[0]
    rows, columns = grid_of(contract, terms.tier)
    own = torch.randn(1, LATENT_CHANNELS, latent_frames(contract.timing.chunk_rows + 1), rows, columns)
    stamp = round(moment * REPLAN_ROWS * 1e9 / terms.fps)
    return Proposal(stamp, views, positions[0], positions, np.zeros(len(positions)), INSTRUCTION, own)


def grid_of(contract: engine.Contract, tier: int) -> tuple[int, int]:
    """Latents of the contract's picture on a tier, rows and columns."""
    canvas = choose_canvas(tier, *contract.views.size)
    return latent_crop(*content_size(*contract.views.size, canvas))


def make_column(judge: Judge, contract: engine.Contract, rung: Rung, options: argparse.Namespace) -> Column:
    """What a rung consists of."""
    terms, backend = judge.dynamics.terms, judge.dynamics.runtime.backend
    rows, columns = grid_of(contract, rung.tier or terms.tier)
    layout = forward_dynamics_layout(
        chunk=terms.chunk,
        height=rows,
        width=columns,
        fps=terms.fps,
        domain_id=terms.embodiment.domain_id,
        raw_dim=terms.raw_dim,
    )
    windows = rung.windows or -(-contract.timing.chunk_rows // terms.chunk)
    branches = 2 if terms.guidance != 1.0 else 1
    passes, tokens = rung.steps * windows * (rung.seeds + rung.cycle) * branches, layout.tokens(backend.patch)
    work = work_of(backend.transformer.config, tokens, 200) * passes
    rates = rates_of(torch.cuda.get_device_name()) if options.device == 'cuda' else None
    return Column(rung.name, passes, tokens, work.teraflop, floor_seconds(work, rates, 'bfloat16') if rates else None)


def report(columns: list[Column]) -> str:
    """All rungs as Markdown."""
    rows = [
        [
            c.rung,
            c.passes,
            f'{c.tokens:,}',
            f'{c.milliseconds(50):,.0f}',
            f'{c.milliseconds(95):,.0f}',
            f'{c.milliseconds(50) / columns[0].milliseconds(50):.3f}',
            f'{c.teraflop / c.milliseconds(50) * 1e3:,.2f}',
            '-' if c.floor is None else f'{c.milliseconds(50) / 1e3 / c.floor:.2f}',
        ]
        for c in columns
    ]
    head = ['rung', 'passes', 'tokens', 'ms p50', 'ms p95', 'share of the first', 'TFLOP/s', 'times the floor']
    return table(head, rows)


def verdict_of(columns: list[Column]) -> str:
    """How often each rung could judge while a policy replans."""
    between = REPLAN_ROWS / 15.0
    fits = [c.rung for c in columns if c.milliseconds(95) <= between * 1e3]
    return (
        f'A policy that replans every {REPLAN_ROWS} rows at 15 Hz leaves {between * 1e3:.0f} ms. Alone here, '
        f'{", ".join(fits) if fits else "no rung"} would be done in that time.'
    )


if __name__ == '__main__':
    main()
