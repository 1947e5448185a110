"""How a network is trained: one YAML file, checked as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import yaml

from engine.errors import InvalidInput, Problem

TASKS = ('action', 'policy', 'forward', 'inverse')
"""What a batch can be about, by what is noisy.

========== ======================= =========================== ==========================================
task       clean                   noisy                       for
========== ======================= =========================== ==========================================
action     picture, state          actions                     the policy, at a fraction of the tokens
policy     picture, state          actions and the video       the policy as it is run
forward    picture, actions        video                       forward dynamics
inverse    video                   actions                     inverse dynamics
========== ======================= =========================== ==========================================
"""

GROUPS = ('generation', 'understanding', 'heads', 'attention', 'mlp')
"""Parts of a transformer that can be trained by themselves: the generation tower, the understanding tower with its
embeddings, the heads and embedders of vision, actions and time, and within the generation tower attention or MLPs."""


@dataclass(frozen=True)
class Recipe:
    """Figures of a training run.

    Attributes:
        tasks: Share of the batches of each task.
        batch: Sequences of a batch, of each task.
        captions: Different prompts in a batch; each is read once for all its sequences.
        shift: Of the noise levels towards noise, as the sampler's.
        logit_mean: Of the normal distribution whose logistic is a noise level before the shift.
        logit_std: Its standard deviation.
        independent_times: Whether vision and actions are noisy to different degrees.
        action_weight: Of the actions' loss where there is a video's beside it.
        condition_dropout: Share of sequences that are not told what is asked for, which guidance needs.
        hidden: Largest share of a picture's tokens that are blank where nothing but actions is learned, so that scenes
            are not learned by heart; drawn for each sequence.
        beginnings: Share of sequences of 'action' and 'policy' that begin within the first `beginning_rows` of an
            episode, or after a disturbance. Words decide there; later the arm is on its way, and the picture says
            where to.
        beginning_rows: How many rows are a beginning.
        answers: Share of the sequences of 'action' that are answers to what nobody asked, where there are such; see
            :mod:`engine.training.answers`. The others are as above. Not in batches with rows that are given.
        committed: Share of batches in which the first rows of a chunk are given, as when they are being executed.
        most_committed: How many at most.
        given: Share of the batches of 'policy' in which all rows but the last are given, as when the video of a chunk
            that is there already is asked for.
        trained: Parts that are trained, of :data:`GROUPS`.
        learning_rate: At its highest.
        warmup: Share of the run in which it rises.
        final: Share of it that is left at the end.
        weight_decay: Of matrices; gains, offsets and embeddings have none.
        betas: Of AdamW.
        clip: Longest gradient.
        ema: Share of the averaged weights that a step keeps; 0 for none.
        recompute: Whether layers are calculated again on the way back, for less memory.
        seed: Of all that is drawn.
    """

    tasks: Mapping[str, float] = field(default_factory=lambda: {'policy': 1.0, 'forward': 1.0, 'inverse': 1.0})
    batch: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(TASKS, 16))
    captions: int = 8
    shift: float = 5.0
    logit_mean: float = 0.0
    logit_std: float = 1.0
    independent_times: bool = False
    action_weight: float = 1.0
    condition_dropout: float = 0.1
    hidden: float = 0.0
    beginnings: float = 0.0
    beginning_rows: int = 15
    answers: float = 0.0
    committed: float = 0.0
    most_committed: int = 6
    given: float = 0.0
    trained: tuple[str, ...] = ('generation', 'heads')
    learning_rate: float = 1e-4
    warmup: float = 0.02
    final: float = 0.02
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    ema: float = 0.999
    recompute: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise InvalidInput with every fault."""
        problems = [*_shares(self.tasks), *_counts(self.batch), *_names(self.trained), *_betas(self.betas)]
        for name, least, most in (
            ('shift', 1e-3, 1e4),
            ('logit_std', 1e-3, 100.0),
            ('logit_mean', -20.0, 20.0),
            ('action_weight', 0.0, 1e6),
            ('condition_dropout', 0.0, 1.0),
            ('hidden', 0.0, 1.0),
            ('beginnings', 0.0, 1.0),
            ('answers', 0.0, 1.0),
            ('committed', 0.0, 1.0),
            ('given', 0.0, 1.0),
            ('learning_rate', 1e-12, 10.0),
            ('warmup', 0.0, 1.0),
            ('final', 0.0, 1.0),
            ('weight_decay', 0.0, 10.0),
            ('clip', 1e-6, 1e6),
            ('ema', 0.0, 1.0 - 1e-9),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                remedy = 'write 1.0e-4, which YAML reads as a number, and not 1e-4' if isinstance(value, str) else ''
                problems.append(Problem(name, 'is no number', repr(value), f'{least:g} to {most:g}', remedy))
            elif not least <= value <= most:
                problems.append(Problem(name, 'is out of range', repr(value), f'{least:g} to {most:g}'))
        for name, least in (('captions', 1), ('most_committed', 1), ('beginning_rows', 1), ('seed', 0)):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                problems.append(Problem(name, 'is no count', repr(count), f'{least} or more'))
        shares = self.tasks if isinstance(self.tasks, Mapping) else {}
        missing = [task for task, share in shares.items() if task in TASKS and share and task not in self.batch]
        problems += [Problem(f'batch.{task}', 'is missing', allowed='1 or more') for task in missing]
        if problems:
            raise InvalidInput('training recipe', problems)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a YAML file; what it leaves out is as above.

        Raises:
            InvalidInput: It cannot be read, has unknown keys, or a figure is out of range; lists every fault.
        """
        try:
            document = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidInput('training recipe', [Problem(str(path), 'cannot be read', str(error))]) from error
        if not isinstance(document, dict):
            raise InvalidInput('training recipe', [Problem(str(path), 'is no mapping', repr(document)[:60])])
        known = {one.name: one.type for one in fields(cls)}
        unknown = [
            Problem(str(key), 'is no key of a recipe', '', ', '.join(known)) for key in document if key not in known
        ]
        if unknown:
            raise InvalidInput(f'training recipe {path}', unknown)
        if isinstance(document.get('batch'), dict):
            document['batch'] = {**dict.fromkeys(TASKS, 16), **document['batch']}
        for name in ('trained', 'betas'):
            if isinstance(document.get(name), list):
                document[name] = tuple(document[name])
        try:
            return cls(**document)
        except TypeError as error:
            raise InvalidInput(
                f'training recipe {path}', [Problem('values', 'are of wrong types', str(error))]
            ) from error

    def document(self) -> dict[str, Any]:
        """As YAML and JSON take it."""
        found = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def _betas(betas: tuple[float, float]) -> list[Problem]:
    sound = isinstance(betas, tuple) and len(betas) == 2 and all(isinstance(b, float) and 0 <= b < 1 for b in betas)
    return [] if sound else [Problem('betas', 'are not two shares', repr(betas), 'two numbers from 0 to below 1')]


def _shares(tasks: Mapping[str, float]) -> list[Problem]:
    if not isinstance(tasks, Mapping):
        return [Problem('tasks', 'are no shares', repr(tasks), 'a mapping of tasks to shares')]
    problems = [Problem(f'tasks.{name}', 'is unknown', '', ', '.join(TASKS)) for name in tasks if name not in TASKS]
    bad = [
        name
        for name, share in tasks.items()
        if not (isinstance(share, int | float) and math.isfinite(share) and share >= 0)
    ]
    problems += [Problem(f'tasks.{name}', 'is no share', str(tasks[name]), '0 or more') for name in bad]
    if not bad and not sum(tasks.values()) > 0:
        problems.append(Problem('tasks', 'leaves nothing to train', str(dict(tasks)), 'a share above 0'))
    return problems


def _counts(batch: Mapping[str, int]) -> list[Problem]:
    problems = [Problem(f'batch.{name}', 'is unknown', '', ', '.join(TASKS)) for name in batch if name not in TASKS]
    bad = {name: count for name, count in batch.items() if not (isinstance(count, int) and count >= 1)}
    return problems + [Problem(f'batch.{name}', 'is no count', repr(n), '1 or more') for name, n in bad.items()]


def _names(trained: tuple[str, ...]) -> list[Problem]:
    if not trained:
        return [Problem('trained', 'leaves nothing to train', '', ', '.join(GROUPS))]
    return [Problem('trained', 'is unknown', repr(name), ', '.join(GROUPS)) for name in trained if name not in GROUPS]
