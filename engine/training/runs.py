"""A whole training run: what is there is opened and checked, the network is trained, and a checkpoint is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from engine.checkpoint import Checkpoint, open_checkpoint
from engine.contract import Contract, load_contract
from engine.cosmos3 import contract_differences, usable_device
from engine.errors import ContractError, InvalidInput, Problem
from engine.training.alone import alone_in
from engine.training.answers import Answers, open_answers
from engine.training.autoencoder_files import autoencoder_fingerprint, load_autoencoder
from engine.training.corpus import Corpus, open_corpus
from engine.training.curves import draw_curves
from engine.training.examples import Examples, Recorded
from engine.training.journal import last_validation
from engine.training.latents import Latents, open_latents
from engine.training.recipe import Recipe
from engine.training.trainer import JOURNAL, Length, Progress, Trainer
from engine.training.validation import Validation
from engine.training.writing import in_the_way, write_trained

if TYPE_CHECKING:
    from numpy.typing import NDArray

CURVES = 'curves.png'
DTYPES = {'float32': None, 'bfloat16': torch.bfloat16}


@dataclass(frozen=True)
class Order:
    """What is to be trained.

    Attributes:
        base: Checkpoint to begin with: a directory or a hub id.
        corpus: Folder of :func:`engine.training.corpus.make_corpus`.
        latents: Folder of :func:`engine.training.latents.encode_corpus`.
        contract: Name or path.
        recipe: How.
        length: How long.
        folder: Of the run.
        output: Checkpoint to write; None for none.
        vae: Folder of the autoencoder with which the corpus was encoded, if it is not the base's.
        device: Where to train.
        products: Type of the matrix products, of :data:`DTYPES`.
        name: Of the checkpoint.
        compiled: Whether layers are compiled first.
        validate_minutes: How often held-out episodes are looked at.
        answers: Folder of :func:`engine.training.answering.make_answers`, of the corpus; None for none.
    """

    base: str
    corpus: Path
    latents: Path
    contract: str
    recipe: Recipe
    length: Length
    folder: Path
    output: Path | None = None
    vae: Path | None = None
    device: str = 'cpu'
    products: str = 'float32'
    name: str = 'trained'
    compiled: bool = False
    validate_minutes: float = 5.0
    answers: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def train(
    order: Order,
    report: Callable[[Progress], None] = lambda _progress: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Progress:
    """Train, draw the curves, and write the checkpoint with averaged weights.

    Args:
        order: What.
        report: Told after every step.
        stopped: Asked after every step; the run is kept and a checkpoint written all the same.

    Raises:
        CosmosError: Checkpoint, contract, corpus, latents or folder are damaged or do not fit together; lists every
            difference.
    """
    usable_device(order.device)
    contract, base = load_contract(order.contract), open_checkpoint(order.base)
    if problems := contract_differences(base, contract):
        raise ContractError(f'contract {contract.name} and checkpoint {base.root}', problems)
    corpus, latents = open_corpus(order.corpus), open_latents(order.latents)
    answers = None if order.answers is None else open_answers(order.answers)
    _check(order, contract, base, corpus, latents, answers)
    several = dist.is_initialized() and dist.get_world_size() > 1
    sharded = several and order.device.startswith('cuda')
    # What is to be spread over GPUs is loaded beside them first: no GPU has room for all of a large network.
    transformer = base.load_transformer('cpu' if sharded else order.device, torch.float32, ('policy', 'dynamics'))
    patch = base.transformer_config.latent_patch_size
    examples = Examples(recorded(corpus, latents, answers), contract, base.load_tokenizer(), patch)
    _check_tasks(order, contract, examples)
    origin = {
        'base': base.fingerprint,
        'corpus': corpus.fingerprint,
        'latents': str(latents.card['autoencoder']),
        **({'every': str(latents.every)} if latents.every > 1 else {}),
        **({} if answers is None else {'answered': answers.fingerprint}),
        'contract': contract.fingerprint,
    }
    leads = not several or dist.get_rank() == 0
    with alone_in(order.folder, f'training in {order.folder}') if leads else nullcontext():
        trainer = Trainer(
            transformer,
            examples,
            order.recipe,
            order.folder,
            autocast=DTYPES[order.products],
            compiled=order.compiled,
            sharded=sharded,
            origin=origin,
        )
        validation = Validation(examples, tasks=tuple(task for task, share in order.recipe.tasks.items() if share > 0))
        progress = trainer.run(
            order.length, report=report, stopped=stopped, validate=validation, validate_minutes=order.validate_minutes
        )
        weights = trainer.averaged_weights()
        if leads:
            _conclude(order, contract, base, corpus, answers, progress, weights)
    return progress


def _conclude(
    order: Order,
    contract: Contract,
    base: Checkpoint,
    corpus: Corpus,
    answers: Answers | None,
    progress: Progress,
    weights: Mapping[str, torch.Tensor],
) -> None:
    """Write the checkpoint, then draw the curves."""
    if order.output is not None:
        origin = {
            'name': order.name,
            'policy': {
                'action_chunk_size': contract.timing.chunk_rows,
                'conditioning_fps': contract.timing.fps,
                'domain_name': contract.embodiment.domain,
            },
            'training': {
                'base': base.provenance.get('name', base.root.name),
                'base_fingerprint': base.fingerprint,
                'contract': {'name': contract.name, 'fingerprint': contract.fingerprint},
                'corpus': {
                    'fingerprint': corpus.fingerprint,
                    'episodes': len(corpus.instructions),
                    'frames': len(corpus),
                    **({} if answers is None else {'answers': len(answers)}),
                },
                'recipe': order.recipe.document(),
                'steps': progress.step,
                'seconds': round(progress.seconds, 1),
                'device': order.device,
                'products': order.products,
                'torch': torch.__version__,
                'validation': last_validation(order.folder / JOURNAL),
                **order.facts,
            },
        }
        write_trained(base, order.output, weights, origin, order.vae)
    draw_curves(order.folder / JOURNAL, order.folder / CURVES)


def recorded(corpus: Corpus, latents: Latents, answers: Answers | None = None) -> Recorded:
    """What examples are drawn from."""
    numbers = corpus.numbers
    named: dict[str, NDArray[np.float64]] = {
        name: np.asarray(numbers[name], np.float64)
        for name in ('joints', 'gripper', 'commanded', 'commanded_gripper', 'position', 'quaternion')
    }
    return Recorded(
        **named,
        episode=np.asarray(numbers['episode'], np.int64),
        disturbed=np.asarray(numbers['disturbed'], np.bool_),
        instructions=corpus.instructions,
        first=latents.first,
        clips=latents.clips,
        starts=np.asarray(latents.starts, np.int64),
        every=latents.every,
        answers=answers,
    )


def _check(
    order: Order, contract: Contract, base: Checkpoint, corpus: Corpus, latents: Latents, answers: Answers | None
) -> None:
    problems = [] if order.output is None else [*in_the_way(order.output.expanduser().resolve())]
    if order.products not in DTYPES:
        problems.append(Problem('products', 'is unknown', order.products, ', '.join(DTYPES)))
    given, allowed = str(latents.card.get('corpus')), corpus.fingerprint
    if given != allowed or len(latents.first) != -(-len(corpus) // latents.every):
        remedy = f'cosmos3 train latents {order.corpus}'
        problems.append(Problem(str(order.latents), 'are of another corpus', given, allowed, remedy))
    if answers is not None and answers.corpus != corpus.fingerprint:
        remedy = f'cosmos3 train answers --corpus {order.corpus}'
        problems.append(
            Problem(str(order.answers), 'are of another corpus', answers.corpus, corpus.fingerprint, remedy)
        )
    place = order.vae or base.root
    load_autoencoder(place)  # better to hear of it now than after the training
    given, allowed = str(latents.card.get('autoencoder')), autoencoder_fingerprint(place)
    if given != allowed:
        remedy = 'name the autoencoder that made them with --vae'
        problems.append(Problem(str(order.latents), f'are not of the autoencoder of {place}', given, allowed, remedy))
    if contract.embodiment.action_space == 'joint_position':
        problems += [
            Problem(name, 'is missing in some recordings', remedy='use cosmos3 dataset doctor')
            for name in ('joints', 'commanded')
            if np.isnan(corpus.numbers[name]).any()
        ]
    if problems:
        raise InvalidInput(f'training with {order.corpus}', problems)


def _check_tasks(order: Order, contract: Contract, examples: Examples) -> None:
    """Refuse recipes that ask for what is not there, or leave out what the policy will be run as."""
    shares = {task: share for task, share in order.recipe.tasks.items() if share > 0}
    remedy = 'encode clips, record poses, or leave the task out'
    problems = [
        Problem(f'tasks.{task}', 'has no window in these recordings', remedy=remedy)
        for task in shares
        if not len(examples.windows(task))
    ]
    if order.answers is not None and not (order.recipe.answers and shares.get('action')):
        what = 'are given, and the recipe has no use for them'
        problems.append(Problem('answers', what, str(order.answers), 'a share of answers, and one of action'))
    run_as, other = ('policy', 'action') if contract.sampler.video else ('action', 'policy')
    if other in shares and run_as not in shares:
        what = f'leaves out what contract {contract.name} runs (sampler.video {str(contract.sampler.video).lower()})'
        problems.append(Problem('tasks', what, ', '.join(shares), f'a share of {run_as}'))
    if problems:
        raise InvalidInput('training recipe', problems)
