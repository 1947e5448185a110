"""The commands `cosmos3 train model` and `cosmos3 finetune`: the transformer, from scratch or from a checkpoint."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.training.recipe import Recipe
    from engine.training.trainer import Progress

Bars = Callable[[], AbstractContextManager[Callable[[str, float], None]]]
Commands = Any  # argparse has no public name for what add_subparsers returns


def add_model(kinds: Commands, bars: Bars) -> None:
    """Add `model` to the kinds of `cosmos3 train`."""
    command = kinds.add_parser('model', help='train the transformer on a corpus and its latents')
    _add_options(command)
    command.add_argument('--recipe', default='micro', help='name in config/training or a path (default: micro)')
    command.set_defaults(run=lambda arguments: _run(arguments, bars))


def add_finetune(commands: Commands, bars: Bars) -> None:
    """Add `cosmos3 finetune`."""
    command = commands.add_parser('finetune', help='go on training a checkpoint with data of your own')
    _add_options(command)
    command.add_argument('--recipe', default='finetune', help='name in config/training or a path (default: finetune)')
    command.set_defaults(run=lambda arguments: _run(arguments, bars))
    memory = commands.add_parser('finetune-memory', help='what fine-tuning would take, without taking it')
    memory.add_argument('base', help='checkpoint: a directory or a hub id; or nano, super, edge for their public sizes')
    memory.add_argument('--contract', default='droid_joint_pos', help='name in config/contracts or a path')
    memory.add_argument('--recipe', default='finetune', help='name in config/training or a path (default: finetune)')
    memory.add_argument('--processes', type=int, default=8, help='GPUs that share the weights in the second column')
    memory.set_defaults(run=_memory)


def _add_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add('base', help='checkpoint to begin with: a directory or a hub id')
    add('--corpus', type=Path, required=True, help='folder that cosmos3 train corpus made')
    add('--latents', type=Path, required=True, help='folder that cosmos3 train latents made of it')
    add('--answers', type=Path, help='folder that cosmos3 train answers made of it')
    add('--contract', default='micro_joint_pos', help='name in config/contracts or a path')
    add('--minutes', type=float, default=0.0, help='of work altogether; the learning rate follows the clock')
    add('--steps', type=int, default=0, help='in place of minutes: steps altogether')
    add('--run', type=Path, dest='folder', required=True, help='folder of the run; one that is there goes on')
    add('-o', '--output', type=Path, help='checkpoint to write at the end, in the public layout')
    add('--vae', type=Path, help='folder of the autoencoder that made the latents, if it is not the one of the base')
    add('--name', default='', help='of the checkpoint; empty for the name of its folder')
    add('--device', default='cpu', help='where it is trained: cpu, cuda, ...; torchrun starts one process for each GPU')
    add('--dtype', default='float32', choices=('float32', 'bfloat16'), help='of products; weights stay float32')
    add('--compile', action='store_true', help='compile layers first: takes minutes, saves a quarter of the time')
    add('--threads', type=int, default=0, help='of PyTorch; 0: as many as it likes')
    add('--validate-minutes', type=float, default=5.0, help='how often held-out episodes are looked at')


def _run(given: argparse.Namespace, bars: Bars) -> int:
    import torch

    from cosmos3_ros.process import leave
    from engine.training.processes import are_several, joined
    from engine.training.runs import Order, train
    from engine.training.trainer import Length

    if given.threads > 0:
        torch.set_num_threads(given.threads)
    name = given.name or (given.output.name if given.output else 'trained')
    with joined(given.device) as (device, leads), bars() as report:
        order = Order(
            given.base,
            given.corpus,
            given.latents,
            given.contract,
            _recipe(given.recipe),
            Length(given.steps, given.minutes),
            given.folder,
            given.output,
            given.vae,
            device,
            given.dtype,
            name,
            given.compile,
            given.validate_minutes,
            given.answers,
        )
        with _asked_to_stop() as stopped:
            progress = train(order, lambda here: report('training', here.share) if leads else None, stopped)
    if leads:
        _conclude(given, progress)
    if are_several():
        # Autograd's threads outlive the process group. They ask for the interpreter's lock while it is taken apart, and
        # on a busy machine abort the process: torchrun would take a finished training for a failed one.
        leave(0)
    return 0


def _memory(given: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from engine.contract import load_contract
    from engine.network.config import TransformerConfig
    from engine.training.memory import training_memory

    public = {'nano': TransformerConfig.NANO, 'super': TransformerConfig.SUPER, 'edge': TransformerConfig.EDGE}
    if given.base in public:
        config = public[given.base]
    else:
        from engine.checkpoint import open_checkpoint

        config = open_checkpoint(given.base).transformer_config
    alone = training_memory(config, load_contract(given.contract), _recipe(given.recipe))
    shared = alone.shared_by(given.processes)
    table = Table(title=f'{given.base}, {given.contract}, recipe {given.recipe}: GB of each process')
    for name in ('', 'alone', f'one of {given.processes}'):
        table.add_column(name, justify='right' if name else 'left')
    for name in ('weights', 'gradients', 'optimizer', 'averaged', 'activations', 'total'):
        table.add_row(name, *(f'{getattr(one, name) / 1e9:.1f}' for one in (alone, shared)))
    Console().print(table)
    return 0


def _recipe(name: str) -> Recipe:
    from engine.resources import find_config
    from engine.training.recipe import Recipe

    return Recipe.read(find_config('training', name))


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed: the step is finished, the run kept, the checkpoint written. A second one ends it."""
    asked = threading.Event()

    def ask(_number: int, _frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        print('\nstopping after this step; the run can be gone on with', file=sys.stderr)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _conclude(given: argparse.Namespace, progress: Progress) -> None:
    from rich.console import Console
    from rich.table import Table

    from engine.training.journal import last_validation
    from engine.training.runs import CURVES
    from engine.training.trainer import JOURNAL

    found: Mapping[str, float] = last_validation(given.folder / JOURNAL)
    table = Table(title='held-out episodes; joints in rad, latents and rows in the units of the model')
    table.add_column('figure')
    table.add_column('value', justify='right')
    for name, value in found.items():
        table.add_row(name, f'{value:.4f}')
    Console().print(table)
    print(f'{progress.step} steps in {progress.seconds / 60:.1f} min; curves: {given.folder / CURVES}')
    if given.output is not None:
        print(f'checkpoint: {given.output}')
