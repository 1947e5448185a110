"""The command `cosmos3 train`: recordings to a corpus, the video autoencoder, latents of the corpus."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos3_ros.cli_train_model import add_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from engine.training.autoencoder_recipe import AutoencoderRecipe

Bars = Callable[[], AbstractContextManager[Callable[[str, float], None]]]
Commands = Any  # argparse has no public name for what add_subparsers returns

_MICRO = 'micro_joint_pos'


def add_train(commands: Commands, bars: Bars) -> None:
    """Add `cosmos3 train` with its own commands."""
    parser = commands.add_parser('train', help='train on recordings: a corpus of them, the video autoencoder')
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='KIND')
    _add_corpus(kinds, bars)
    _add_autoencoder(kinds, bars)
    _add_latents(kinds, bars)
    _add_answers(kinds, bars)
    _add_widen(kinds)
    add_model(kinds, bars)


def _add_corpus(kinds: Commands, bars: Bars) -> None:
    command = kinds.add_parser('corpus', help='decode data sets once, as the policy sees them, into flat arrays')
    add = command.add_argument
    add('data_sets', type=Path, nargs='+', metavar='DATA_SET', help='LeRobot data set (v3), or a folder with one table')
    add('--contract', default=_MICRO, help=f'name in config/contracts or a path (default: {_MICRO})')
    add('--instruction', default='', help='text for episodes that have none')
    add('--workers', type=int, default=1, help='processes that share the episodes (default: 1)')
    add('-o', '--output', type=Path, required=True, help='folder to make; an earlier corpus there is replaced')
    command.set_defaults(run=lambda arguments: _corpus(arguments, bars))


def _corpus(given: argparse.Namespace, bars: Bars) -> int:
    from engine.contract import load_contract
    from engine.training.corpus import make_corpus

    contract = load_contract(given.contract)
    with bars() as report:
        made = make_corpus(
            given.data_sets, contract, given.output, given.workers, report, instruction=given.instruction
        )
    texts = len(set(made.instructions))
    size = made.composites.nbytes / 1e9
    print(f'{made.root}: {len(made.lengths)} episodes, {len(made)} frames, {texts} instructions, {size:.1f} GB')
    for what, count in made.card['remarks'].items():
        print(f'in {count} episodes: {what}')
    return 0


def _add_autoencoder(kinds: Commands, bars: Bars) -> None:
    command = kinds.add_parser('autoencoder', help='train a small causal video autoencoder on a corpus')
    add = command.add_argument
    add('corpus', type=Path, help='folder that cosmos3 train corpus made')
    add('--contract', default=_MICRO, help=f'name in config/contracts or a path (default: {_MICRO})')
    add('--recipe', type=Path, help='YAML file; what it leaves out is as in engine/training/autoencoder_recipe.py')
    add('--minutes', type=float, default=0.0, help='of training altogether; the learning rate follows the clock')
    add('--steps', type=int, default=0, help='in place of minutes: steps altogether')
    add('--begin-with', type=Path, help='folder of an autoencoder of the same widths, in place of random weights')
    add('--threads', type=int, default=0, help='of PyTorch; 0: as many as it likes')
    add('--device', default='cpu', help='where it is trained: cpu, cuda, ...')
    add('--dtype', default='float32', choices=('float32', 'bfloat16'), help='of convolutions; weights stay float32')
    add('-o', '--output', type=Path, required=True, help='folder of the run; one that is there goes on')
    command.set_defaults(run=lambda arguments: _autoencoder(arguments, bars))


def _recipe(path: Path | None) -> AutoencoderRecipe:
    from engine.training.autoencoder_recipe import AutoencoderRecipe

    return AutoencoderRecipe() if path is None else AutoencoderRecipe.read(path)


def _autoencoder(given: argparse.Namespace, bars: Bars) -> int:
    import json

    import torch
    from rich.console import Console

    from engine.contract import load_contract
    from engine.training.autoencoder_training import REPORT, Order, train_autoencoder
    from engine.training.corpus import open_corpus

    if given.threads > 0:
        torch.set_num_threads(given.threads)
    order = Order(
        _recipe(given.recipe),
        given.minutes,
        given.steps,
        given.begin_with,
        given.device,
        torch.bfloat16 if given.dtype == 'bfloat16' else None,
    )
    with bars() as report:
        made = train_autoencoder(open_corpus(given.corpus), load_contract(given.contract), given.output, order, report)
    document = json.loads((given.output / REPORT).read_text(encoding='utf-8'))
    Console().print(_likeness(document['held_out']))
    size = document['parameters'] / 1e6
    print(f'{made}: {size:.2f} M parameters, {document["steps"]} steps in {document["seconds"] / 60:.1f} min')
    return 0


def _likeness(found: Mapping[str, Any]) -> Table:
    from rich.table import Table

    views = list(found['frames']['psnr'])
    table = Table(title='PSNR in dB of what was not trained on (of those pixels that differ from the mean)')
    for name in ('', *views):
        table.add_column(name, justify='right' if name else 'left')
    rows = {'frames': found['frames']}
    if found['clips']:
        rows |= {'clips': found['clips'], 'first frame repeated': found['clips']['control']}
    for name, part in rows.items():
        standing_out = part['psnr_of_what_differs']
        cells = (f'{part["psnr"][view]:.1f} ({standing_out.get(view, float("nan")):.1f})' for view in views)
        table.add_row(name, *cells)
    return table


def _add_latents(kinds: Commands, bars: Bars) -> None:
    command = kinds.add_parser('latents', help='encode a corpus: every frame by itself, and clips')
    add = command.add_argument
    add('corpus', type=Path, help='folder that cosmos3 train corpus made')
    add('--autoencoder', required=True, help='folder with vae/: of a training, or a checkpoint; or a hub id')
    add('--contract', default=_MICRO, help=f'name in config/contracts or a path (default: {_MICRO})')
    add('--stride', type=int, default=4, help='frames from the start of one clip to the next; 0: no clips (default: 4)')
    add('--every', type=int, default=1, help='of the frames by themselves encode each so many (default: 1)')
    add('--frames', type=int, default=17, help='of a clip, 4 k + 1 (default: 17)')
    add('--only-whole', action='store_true', help='no clips that go on at rest behind the end of an episode')
    add('--threads', type=int, default=0, help='of PyTorch; 0: as many as it likes')
    add('--device', default='cpu', help='where it is encoded: cpu, cuda, ...')
    add('--dtype', default='float32', choices=('float32', 'bfloat16'), help='of the autoencoder')
    add('-o', '--output', type=Path, required=True, help='folder to make; what was begun there goes on')
    command.set_defaults(run=lambda arguments: _latents(arguments, bars))


def _latents(given: argparse.Namespace, bars: Bars) -> int:
    import torch

    from engine.checkpoint.source import resolve
    from engine.contract import load_contract
    from engine.training.corpus import open_corpus
    from engine.training.latents import Terms, encode_corpus

    if given.threads > 0:
        torch.set_num_threads(given.threads)
    terms = Terms(given.frames, given.stride, given.every, not given.only_whole, given.dtype, given.device)
    corpus, contract = open_corpus(given.corpus), load_contract(given.contract)
    with bars() as report:
        made = encode_corpus(corpus, contract, resolve(given.autoencoder), given.output, terms, report)
    print(f'{made.root}: {len(made.first)} frames, {len(made.starts)} clips')
    return 0


def _add_answers(kinds: Commands, bars: Bars) -> None:
    command = kinds.add_parser(
        'answers', help='ask the scripted hand, in recorded moments, for every other object that lies there'
    )
    add = command.add_argument
    add('data_sets', type=Path, nargs='+', metavar='DATA_SET', help='what the corpus was made of, in the same order')
    add('--corpus', type=Path, required=True, help='folder that cosmos3 train corpus made')
    add('--contract', default=_MICRO, help=f'name in config/contracts or a path (default: {_MICRO})')
    add('--every', type=int, default=1, help='in each so many frames; as the latents (default: 1)')
    add('--workers', type=int, default=1, help='processes that share the episodes (default: 1)')
    add('-o', '--output', type=Path, required=True, help='folder to make; earlier answers there are replaced')
    command.set_defaults(run=lambda arguments: _answers(arguments, bars))


def _answers(given: argparse.Namespace, bars: Bars) -> int:
    from engine.contract import load_contract
    from engine.training.answering import make_answers
    from engine.training.corpus import open_corpus

    corpus, contract = open_corpus(given.corpus), load_contract(given.contract)
    with bars() as report:
        made = make_answers(
            given.data_sets,
            corpus,
            contract,
            given.output,
            every=given.every,
            workers=given.workers,
            report=report,
        )
    print(f'{given.output}: {len(made)} answers, {len(made.texts)} instructions')
    return 0


def _add_widen(kinds: Commands) -> None:
    command = kinds.add_parser(
        'widen', help='make room for imagination: silence latent channels that say nothing, and carry the rest through'
    )
    add = command.add_argument
    add('base', help='checkpoint that knows something: a directory or a hub id')
    add('--into', required=True, help='checkpoint of the width that is wanted: make-tiny --weights fresh --width N')
    add('--latents', type=Path, required=True, help='folder that cosmos3 train latents made with its autoencoder')
    add('--contract', default=_MICRO, help=f'name in config/contracts or a path (default: {_MICRO})')
    add('--channels', type=int, default=16, help='latent channels that are kept (default: 16)')
    add('--turned', type=Path, help='folder for the same latents as the new autoencoder makes them')
    add('-o', '--output', type=Path, required=True, help='folder to make')
    command.set_defaults(run=_widen)


def _widen(given: argparse.Namespace) -> int:
    from engine.checkpoint import open_checkpoint
    from engine.contract import load_contract
    from engine.training.latents import open_latents
    from engine.training.widening import turn_latents, widen

    base, into, latents = open_checkpoint(given.base), open_checkpoint(given.into), open_latents(given.latents)
    axes = widen(base, into, load_contract(given.contract), latents, given.channels, given.output)
    if given.turned is not None:
        turn_latents(latents, axes, given.output, given.turned)
    print(f'{given.output}: {given.channels} channels, {100 * axes.share:.1f} % of the variance of latents')
    return 0
