"""A whole training run: what is there is opened and checked, the network is trained, and a checkpoint is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from engine.checkpoint import open_checkpoint
from engine.contract import Contract, load_contract
from engine.cosmos3 import contract_differences
from engine.errors import ContractError, InvalidInput, Problem
from engine.training.corpus import Corpus, open_corpus
from engine.training.curves import draw_curves
from engine.training.examples import Examples, Recorded
from engine.training.latents import Latents, open_latents
from engine.training.recipe import Recipe
from engine.training.trainer import JOURNAL, Length, Progress, Trainer
from engine.training.validation import Validation
from engine.training.writing import write_trained

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
    contract, base = load_contract(order.contract), open_checkpoint(order.base)
    if problems := contract_differences(base, contract):
        raise ContractError(f'contract {contract.name} and checkpoint {base.root}', problems)
    corpus, latents = open_corpus(order.corpus), open_latents(order.latents)
    _check(order, contract, corpus, latents)
    transformer = base.load_transformer(order.device, torch.float32)
    examples = Examples(
        recorded(corpus, latents), contract, base.load_tokenizer(), base.transformer_config.latent_patch_size
    )
    trainer = Trainer(
        transformer, examples, order.recipe, order.folder, autocast=DTYPES[order.products], compiled=order.compiled
    )
    validation = Validation(examples, tasks=tuple(task for task, share in order.recipe.tasks.items() if share > 0))
    progress = trainer.run(
        order.length, report=report, stopped=stopped, validate=validation, validate_minutes=order.validate_minutes
    )
    draw_curves(order.folder / JOURNAL, order.folder / CURVES)
    if order.output is not None:
        origin = {
            'name': order.name,
            'policy': {
                'action_chunk_size': contract.timing.chunk_rows,
                'conditioning_fps': contract.timing.fps,
                'domain_name': contract.embodiment.domain,
            },
            'training': {
                'base': base.provenance.get('name', str(order.base)),
                'base_fingerprint': base.fingerprint,
                'contract': {'name': contract.name, 'fingerprint': contract.fingerprint},
                'corpus': dict(corpus.card),
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
        write_trained(base, order.output, trainer.averaged_weights(), origin, order.vae)
    return progress


def recorded(corpus: Corpus, latents: Latents) -> Recorded:
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
    )


def last_validation(journal: Path) -> dict[str, float]:
    """The figures of the last validation in a journal; empty if there was none."""
    lines = journal.read_text(encoding='utf-8').splitlines() if journal.is_file() else []
    for line in reversed(lines):
        found = {key.partition('/')[2]: value for key, value in json.loads(line).items() if key.startswith('valid/')}
        if found:
            return found
    return {}


def _check(order: Order, contract: Contract, corpus: Corpus, latents: Latents) -> None:
    problems = []
    if order.products not in DTYPES:
        problems.append(Problem('products', 'is unknown', order.products, ', '.join(DTYPES)))
    if len(latents.first) != len(corpus):
        remedy = 'encode this corpus'
        problems.append(
            Problem(str(order.latents), 'are of another corpus', str(len(latents.first)), str(len(corpus)), remedy)
        )
    empty = [name for name in ('joints', 'commanded') if np.isnan(corpus.numbers[name]).any()]
    if contract.embodiment.action_space == 'joint_position':
        problems += [
            Problem(name, 'is missing in some recordings', remedy='use cosmos3 dataset doctor') for name in empty
        ]
    if problems:
        raise InvalidInput(f'training with {order.corpus}', problems)
