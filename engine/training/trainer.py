"""Runs a training: steps, a learning rate that follows the run, averaged weights, what is kept, and how it goes on.

A run is a folder:

    run.yaml         recipe, and what the run depends on beside it
    journal.jsonl    one line for every hundred steps: losses, time, learning rate; validations
    state.pt         weights, averaged weights, optimizer; replaced as a whole
    curves.png

What is drawn in a step depends on the seed and the number of the step alone, so a run that was interrupted goes on as
if nothing had happened (the learning rate of a run that is measured in minutes follows the clock).
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from engine.errors import CosmosError, InvalidInput, Problem
from engine.network.layers import GENERATION
from engine.network.transformer import CosmosTransformer
from engine.training.denormals import without_denormals
from engine.training.examples import Examples
from engine.training.flow import Loss, flow_loss
from engine.training.journal import go_back, write_line
from engine.training.network import BatchedTransformer
from engine.training.recipe import Recipe
from engine.training.work_clock import WorkClock

STATE, JOURNAL, RECIPE = 'state.pt', 'journal.jsonl', 'run.yaml'
EVERY = 100
"""Steps of one line of the journal."""


@dataclass(frozen=True)
class Length:
    """How long a run is: steps, or minutes of work, whichever is given.

    Attributes:
        steps: Steps altogether; 0 if time decides.
        minutes: Minutes altogether, those before an interruption included; 0 if steps decide.
    """

    steps: int = 0
    minutes: float = 0.0

    def __post_init__(self) -> None:
        """Raise InvalidInput unless exactly one is given."""
        if (self.steps > 0) == (self.minutes > 0) or self.steps < 0 or not math.isfinite(self.minutes):
            given = f'{self.steps} steps, {self.minutes} minutes'
            raise InvalidInput('training', [Problem('length', 'is not one length', given, 'steps or minutes')])

    def share(self, step: int, seconds: float) -> float:
        """How much of it is done, 0 to 1."""
        return min(1.0, step / self.steps if self.steps else seconds / (60.0 * self.minutes))


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        step: Steps done.
        seconds: Of work, those before an interruption included.
        share: Of the whole run, 0 to 1.
        losses: Mean of each task's losses since the last line of the journal: 'policy/action', ...
    """

    step: int = 0
    seconds: float = 0.0
    share: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)


Validate = Callable[[BatchedTransformer], Mapping[str, float]]


class Trainer:
    """One run over examples."""

    def __init__(
        self,
        transformer: CosmosTransformer,
        examples: Examples,
        recipe: Recipe,
        folder: Path,
        *,
        autocast: torch.dtype | None = None,
        compiled: bool = False,
        sharded: bool | None = None,
        origin: Mapping[str, str] | None = None,
    ) -> None:
        """Begin a run, or go on with the one in the folder.

        Args:
            transformer: In float32 (or the precision of its optimizer), on its device; is trained in place.
            examples: What it learns from.
            recipe: How.
            folder: Of the run.
            autocast: Type of the matrix products, if another.
            compiled: Whether layers are compiled first, which takes minutes and saves a quarter of the time.
            sharded: Whether weights are spread over all processes (FSDP2) and not held by each; None: on GPUs.
            origin: What the run depends on beside the recipe: fingerprints of checkpoint, corpus, contract.

        Raises:
            InvalidInput: The folder holds something else, or a run with another recipe or origin; lists every
                difference.
            CosmosError: What was kept there cannot be read.
        """
        self.transformer, self.examples, self.recipe, self.folder = transformer, examples, recipe, folder
        self.network = BatchedTransformer(transformer, recompute=recipe.recompute, compiled=compiled)
        self._autocast, self._origin = autocast, origin or {}
        self._names = trained_names(transformer, recipe.trained)
        for name, parameter in transformer.named_parameters():
            parameter.requires_grad_(name in self._names)
        self._sharded = _count() > 1 and (transformer.device.type == 'cuda' if sharded is None else sharded)
        self._called = self._spread()
        self._parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            _groups(transformer, self._names, recipe), lr=recipe.learning_rate, betas=recipe.betas, fused=_can_fuse()
        )
        self.averaged: dict[str, Tensor] = {}
        if recipe.ema:
            self.averaged = {name: p.detach().clone() for name, p in _named(transformer, self._names)}
        self.progress = Progress()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CosmosError(f'{folder} cannot be made: {error} -> name another folder') from error
        self._take_up()

    def run(
        self,
        length: Length,
        *,
        report: Callable[[Progress], None] = lambda _progress: None,
        validate: Validate | None = None,
        validate_minutes: float = 5.0,
        keep_minutes: float = 2.0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Progress:
        """Train to the end of the run, or until asked to stop; what is reached is kept.

        Args:
            length: Of the whole run.
            report: Told after every step.
            validate: What to measure with the averaged weights now and then, and at the end.
            validate_minutes: How often.
            keep_minutes: How often the state is kept.
            stopped: Asked after every step.
        """
        here = self.progress
        self.transformer.train()
        here.share = length.share(here.step, here.seconds)
        try:
            with without_denormals():
                every = _Every(validate_minutes if validate else math.inf, keep_minutes)
                self._go(length, every, report, validate, stopped)
        except KeyboardInterrupt:
            if _count() == 1:
                self.keep()
            raise
        if validate is not None:
            self._validate(validate)
        self.keep()
        return here

    def _go(
        self,
        length: Length,
        every: _Every,
        report: Callable[[Progress], None],
        validate: Validate | None,
        stopped: Callable[[], bool],
    ) -> None:
        """Step after step."""
        here, clock, sums = self.progress, WorkClock(self.progress.seconds), dict[str, list[float]]()
        validated = kept = here.seconds
        stop = here.share >= 1.0
        while not stop:
            for name, value in self._step(here).items():
                sums.setdefault(name, []).append(value)
            here.step += 1
            here.seconds = clock.seconds
            # Clocks differ, and all processes have to do the same in the same places.
            here.share, look, keep, asked = self._agreed(
                length.share(here.step, here.seconds),
                here.seconds - validated > 60.0 * every.validate_minutes,
                here.seconds - kept > 60.0 * every.keep_minutes,
                stopped(),
            )
            stop = here.share >= 1.0 or bool(asked)
            if here.step % EVERY == 0 or stop:
                here.losses = {name: float(np.mean(values)) for name, values in sums.items()}
                sums.clear()
                self._write(self._line())
            report(here)
            with clock.stopped():  # neither is work of the run
                if look and not stop and validate is not None:
                    self._validate(validate)
                    validated = here.seconds
                if keep and not stop:
                    self.keep()
                    kept = here.seconds

    def keep(self) -> None:
        """Write the state, whole or not at all."""
        state = {
            'weights': _gathered(_named(self.transformer, self._names)),
            'averaged': _gathered(self.averaged.items()),
            'optimizer': self._optimizer_state(),
            'step': self.progress.step,
            'seconds': self.progress.seconds,
        }
        if _leads():
            unfinished = self.folder / f'.{STATE}'
            try:
                torch.save(state, unfinished)
                os.replace(unfinished, self.folder / STATE)
            except (OSError, RuntimeError) as error:  # PyTorch's writer hides what the disk said
                raise CosmosError(f'{self.folder / STATE} cannot be written: {error} -> make room') from error
        _wait_for_all()  # whoever goes on from it finds it

    def averaged_weights(self) -> dict[str, Tensor]:
        """Every tensor of the transformer, trained ones averaged; of the first process alone. All have to call it."""
        return _gathered({**self.transformer.state_dict(), **self.averaged}.items())

    # One step

    def _step(self, here: Progress) -> dict[str, float]:
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, here.step, _rank()])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        # Every process draws the same task, so that all of them wait for each other in the same places.
        shared = np.random.default_rng([recipe.seed, here.step])
        task = str(shared.choice(list(recipe.tasks), p=_normal(recipe.tasks.values())))
        committed = 0
        if task in ('action', 'policy') and shared.random() < recipe.committed:
            committed = int(shared.integers(1, min(recipe.most_committed, self.examples.chunk - 1) + 1))
        if task == 'policy' and recipe.given and shared.random() < recipe.given:
            committed = self.examples.chunk - 1
        batch = self.examples.draw(
            task,
            recipe.batch[task],
            rng,
            captions=recipe.captions,
            condition_dropout=recipe.condition_dropout,
            hidden=recipe.hidden,
            committed=committed,
            beginnings=recipe.beginnings,
            beginning_rows=recipe.beginning_rows,
            answers=recipe.answers,
        ).to(self.transformer.device)
        place = self.network.place(batch.layout)
        rate = learning_rate(recipe, here.share)
        for group in self._optimizer.param_groups:
            group['lr'] = rate
        with torch.autocast(self.transformer.device.type, self._autocast) if self._autocast else nullcontext():
            loss: Loss = flow_loss(self._called, batch, place, recipe, generator)
        total = loss.total(recipe.action_weight)
        if not bool(torch.isfinite(total)):
            remedy = 'lower learning_rate, or go on from an earlier state'
            problem = Problem(f'step {here.step}', 'has a loss that is no number', task, remedy=remedy)
            raise InvalidInput('training', [problem])
        total.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, recipe.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._average(here.step)
        parts = (('vision', loss.vision), ('action', loss.action))
        return {f'{task}/{name}': float(part.detach()) for name, part in parts if part is not None}

    @torch.no_grad()
    def _average(self, step: int) -> None:
        if not self.averaged:
            return
        keep = min(self.recipe.ema, (1.0 + step) / (10.0 + step))  # the first weights are worth nothing
        now = dict(_named(self.transformer, self._names))
        old = list(self.averaged.values())
        torch._foreach_lerp_(old, [now[name].detach() for name in self.averaged], 1.0 - keep)

    # Several processes

    def _spread(self) -> nn.Module:
        """The network as it is called: by itself, or wrapped for as many processes as there are."""
        if _count() == 1:
            return self.network
        if self._sharded:
            from torch.distributed.fsdp import fully_shard

            for step in self.network.steps:
                fully_shard(step)
            # The layers are reached by a second way, through the transformer itself.
            fully_shard(self.network, ignored_params=set(self.network.steps.parameters()))
            return self.network
        return nn.parallel.DistributedDataParallel(self.network, find_unused_parameters=True)

    def _agreed(self, *figures: float) -> tuple[float, ...]:
        """What the first process says."""
        if _count() == 1:
            return figures
        told = torch.tensor(figures, dtype=torch.float64, device=self.transformer.device)
        dist.broadcast(told, 0)
        return tuple(told.tolist())

    # What is kept

    def _line(self) -> dict[str, Any]:
        here = self.progress
        rate = learning_rate(self.recipe, here.share)
        return {'step': here.step, 'seconds': round(here.seconds, 1), 'rate': rate, **here.losses}

    def _write(self, line: Mapping[str, Any]) -> None:
        if _leads():
            write_line(self.folder / JOURNAL, line)

    def _validate(self, validate: Validate) -> None:
        trained = {name: p.detach().clone() for name, p in _named(self.transformer, self.averaged)}
        self._put(self.averaged)
        try:
            found = validate(self.network)
        finally:
            if self._sharded:  # what lies outside of the layers is left whole by a look that no way back follows
                cast('Any', self.network).reshard()
            self._put(trained)
        here = self.progress
        self._write(
            {'step': here.step, 'seconds': round(here.seconds, 1), **{f'valid/{k}': v for k, v in found.items()}}
        )

    def _optimizer_state(self) -> dict[str, Any]:
        if not self._sharded:
            return self._optimizer.state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return dict(get_optimizer_state_dict(self.network, self._optimizer, options=options))

    def _set_optimizer_state(self, found: dict[str, Any]) -> None:
        if not self._sharded:
            self._optimizer.load_state_dict(found)
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        # What the last layer says to words alone is never trained, so nothing is known of it.
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_optimizer_state_dict(self.network, self._optimizer, found, options=options)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in _named(self.transformer, weights):
            parameter.copy_(_like(weights[name], parameter))

    def _take_up(self) -> None:
        state = self.folder / STATE
        self._check_same()
        if not state.is_file():
            return
        try:
            found = torch.load(state, map_location='cpu', mmap=True, weights_only=True)
            now = dict(_named(self.transformer, self._names))
            self._put(found['weights'])
            self.averaged = {
                name: _like(tensor.to(now[name].device), now[name]) for name, tensor in found['averaged'].items()
            }
            self._set_optimizer_state(found['optimizer'])
            self.progress = Progress(int(found['step']), float(found['seconds']))
        except (OSError, EOFError, RuntimeError, LookupError, ValueError, pickle.UnpicklingError) as error:
            raise CosmosError(f'{state} cannot be gone on with: {error} -> name another folder') from error
        if _leads():
            go_back(self.folder / JOURNAL, self.progress.step)
        _wait_for_all()

    def _check_same(self) -> None:
        """Refuse a folder whose run is another one; note what this run is in a new one."""
        place = self.folder / RECIPE
        new = {'recipe': self.recipe.document(), **dict(self._origin)}
        if not place.is_file():
            if any(self.folder.iterdir()):
                remedy = 'name another folder'
                raise InvalidInput('training run', [Problem(str(self.folder), 'holds something else', remedy=remedy)])
            _wait_for_all()  # nobody looks before all have looked
            if _leads():
                unfinished = self.folder / f'.{RECIPE}'
                unfinished.write_text(yaml.safe_dump(new, sort_keys=False), encoding='utf-8')
                os.replace(unfinished, place)
            _wait_for_all()
            return
        try:
            old = yaml.safe_load(place.read_text(encoding='utf-8'))
            # What a recipe did not have when the run began is as it is if nothing is said.
            given = {**Recipe().document(), **old.pop('recipe'), **old}
        except (OSError, yaml.YAMLError, AttributeError, LookupError, TypeError) as error:
            raise CosmosError(f'{place} cannot be read: {error} -> name another folder') from error
        wanted = {**self.recipe.document(), **dict(self._origin)}
        differ = [
            Problem(key, 'is another in this run', str(given.get(key)), str(wanted.get(key)), 'name another folder')
            for key in dict.fromkeys([*wanted, *given])
            if given.get(key) != wanted.get(key)
        ]
        if differ:
            raise InvalidInput(f'training run {self.folder}', differ)


@dataclass(frozen=True)
class _Every:
    """How often a run is looked at and kept."""

    validate_minutes: float
    keep_minutes: float


def learning_rate(recipe: Recipe, share: float) -> float:
    """Learning rate after a share of the run: up in a straight line, then down along half a cosine."""
    if share < recipe.warmup:
        return recipe.learning_rate * max(share, 1e-3) / recipe.warmup
    along = (share - recipe.warmup) / max(1e-9, 1.0 - recipe.warmup)
    fall = 0.5 * (1.0 + math.cos(math.pi * min(1.0, along)))
    return recipe.learning_rate * (recipe.final + (1.0 - recipe.final) * fall)


def trained_names(transformer: CosmosTransformer, groups: Iterable[str]) -> frozenset[str]:
    """Names of the parameters of some groups; see :data:`engine.training.recipe.GROUPS`."""
    wanted = set(groups)
    return frozenset(name for name, _ in transformer.named_parameters() if wanted & set(_groups_of(name)))


def _groups_of(name: str) -> Iterator[str]:
    if name.startswith('lm_head'):
        return  # words are not what is trained here
    if not name.startswith(('layers.', 'norm', 'embed_tokens')):
        yield 'heads'
        return
    if not any(part in name for part in (*GENERATION, 'norm_moe_gen', 'k_norm_und_for_gen')):
        yield 'understanding'
        return
    yield 'generation'
    if '.self_attn.' in name:
        yield 'attention'
    if '.mlp_moe_gen.' in name:
        yield 'mlp'


def _groups(transformer: nn.Module, names: Iterable[str], recipe: Recipe) -> list[dict[str, Any]]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in _named(transformer, names):
        plain = parameter.ndim < 2 or 'embed' in name or name.startswith('action_proj')
        (others if plain else matrices).append(parameter)
    decays = ((matrices, recipe.weight_decay), (others, 0.0))
    return [{'params': some, 'weight_decay': decay} for some, decay in decays if some]


def _named(transformer: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, nn.Parameter]]:
    wanted = set(names)
    return ((name, parameter) for name, parameter in transformer.named_parameters() if name in wanted)


def _normal(shares: Iterable[float]) -> Any:
    found = np.array(list(shares), np.float64)
    return found / found.sum()


def _whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may hold a piece. To be called by all of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _gathered(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Whole tensors in the processor's memory, one after another; of the first process alone."""
    found = {}
    for name, tensor in tensors:
        whole = _whole(tensor.detach())
        if _leads():
            found[name] = whole.cpu()
    return found


def _like(whole: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, spread as another one is."""
    if isinstance(other, DTensor) and not isinstance(whole, DTensor):
        return distribute_tensor(whole, other.device_mesh, other.placements)
    return whole


def _wait_for_all() -> None:
    if _count() > 1:
        dist.barrier()


def _count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _leads() -> bool:
    return _rank() == 0


def _can_fuse() -> bool:
    return _count() == 1
