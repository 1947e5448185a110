"""Trains a causal video autoencoder (Wan 2.2, residual) on the pictures of a corpus.

A run is a folder:

    recipe.yaml      how
    journal.jsonl    losses, learning rate, time; validations
    state.pt         weights, averaged weights, optimizer; replaced as a whole
    vae/             the result, in the public layout; there when the run is complete
    report.json      how alike pictures are that were not trained on
    curves.png, samples.png

What a step is shown depends on the seed and the step's number alone, so a run that was interrupted goes on as if
nothing had happened (the learning rate of a run that is measured in minutes follows the clock).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.contract import Contract
from engine.errors import CosmosError, InvalidInput, Problem
from engine.network.autoencoder import VideoAutoencoder
from engine.network.autoencoder_blocks import FrameAttention, ResidualBlock
from engine.training.alone import alone_in
from engine.training.autoencoder_files import load_autoencoder, write_autoencoder
from engine.training.autoencoder_pictures import Pictures, Shown
from engine.training.autoencoder_recipe import AutoencoderRecipe
from engine.training.autoencoder_report import curves, likeness, samples
from engine.training.corpus import Corpus
from engine.training.denormals import without_denormals
from engine.training.journal import read_journal, write_line
from engine.training.work_clock import WorkClock

STATE, JOURNAL, RECIPE, REPORT, RESULT = 'state.pt', 'journal.jsonl', 'recipe.yaml', 'report.json', 'vae'
EVERY = 25
"""Steps of one line of the journal."""
_FIRST_LOG_VARIANCE = -7.0
_LEAST_STD = 1e-3
_STATISTICS_OF = (256, 32)  # frames, clips


@dataclass(frozen=True)
class Order:
    """What is to be trained.

    Attributes:
        recipe: How.
        minutes: Of training altogether, those before an interruption included; 0 if steps decide.
        steps: Steps altogether; 0 if time decides.
        begin_with: Folder of an autoencoder of the same widths to begin with; None for random weights.
        device: Where.
        autocast: Type of convolutions, if another than float32.
        keep_minutes: How often the state is kept.
        validate_minutes: How often frames that are not trained on are looked at.
    """

    recipe: AutoencoderRecipe = field(default_factory=AutoencoderRecipe)
    minutes: float = 0.0
    steps: int = 0
    begin_with: Path | None = None
    device: str = 'cpu'
    autocast: torch.dtype | None = None
    keep_minutes: float = 1.0
    validate_minutes: float = 2.0

    def __post_init__(self) -> None:
        """Raise InvalidInput unless exactly one length is given."""
        if (self.steps > 0) == (self.minutes > 0):
            given = f'{self.steps} steps, {self.minutes} minutes'
            raise InvalidInput('training', [Problem('length', 'is not one length', given, 'steps or minutes')])

    def share(self, step: int, seconds: float) -> float:
        """How much is done, 0 to 1."""
        return min(1.0, step / self.steps if self.steps else seconds / (60.0 * self.minutes))


@dataclass
class Progress:
    """Where a run is: steps done, seconds of training, share of all of it, the last step's losses."""

    step: int = 0
    seconds: float = 0.0
    share: float = 0.0
    losses: Mapping[str, float] = field(default_factory=dict)


def train_autoencoder(
    corpus: Corpus,
    contract: Contract,
    folder: Path,
    order: Order,
    report: Callable[[str, float], None] | None = None,
) -> Path:
    """Train, or go on with what a folder holds, to the end, and write the result.

    Args:
        corpus: What to learn from.
        contract: Whose pictures they are.
        folder: Of the run.
        order: What to do.
        report: Told what is being done, and the share of it that is done.

    Returns:
        Folder of the autoencoder.

    Raises:
        InvalidInput: The corpus does not fit, or the folder holds another run; lists every difference.
        CosmosError: What was kept there cannot be read, or another process trains there.
    """
    tell = report or (lambda _what, _share: None)
    with alone_in(folder, f'training in {folder}'):
        trainer = AutoencoderTrainer(corpus, contract, folder, order)
        tell('training', 0.0)
        trainer.run(lambda here: tell('training', here.share))
        return trainer.finish(lambda share: tell('looking at it', share))


class AutoencoderTrainer:
    """One run."""

    def __init__(self, corpus: Corpus, contract: Contract, folder: Path, order: Order) -> None:
        """Begin a run, or go on; see :func:`train_autoencoder`."""
        self.pictures, self.folder, self.order = Pictures(corpus, contract, order.recipe), folder, order
        self.device = torch.device(order.device)
        self.network = make_network(order.recipe).to(self.device)
        if order.begin_with is not None:
            _begin_with(self.network, order.begin_with)
        self.averaged = {name: weight.detach().clone() for name, weight in self.network.named_parameters()}
        self._optimizer = _optimizer(self.network, order.recipe)
        self.progress = Progress()
        self._means: list[dict[str, float]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._take_up()

    # Training

    def run(
        self,
        report: Callable[[Progress], None] = lambda _progress: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train to the end, or until asked to stop; what is reached is kept, also if the process is interrupted."""
        with without_denormals():  # weights that begin at zero leave plenty of them
            try:
                self._go(report, stopped)
            finally:
                self.keep()

    def _go(self, report: Callable[[Progress], None], stopped: Callable[[], bool]) -> None:
        here, order = self.progress, self.order
        clock = WorkClock(here.seconds)
        kept = validated = clock.seconds
        here.share = order.share(here.step, here.seconds)
        while here.share < 1.0 and not stopped():
            here.losses = self._step()
            here.step, here.seconds = here.step + 1, clock.seconds
            here.share = order.share(here.step, here.seconds)
            self._note()
            report(here)
            with clock.stopped():
                if here.seconds - validated > 60.0 * order.validate_minutes:
                    write_line(self.folder / JOURNAL, self._line() | self._validation())
                    validated = here.seconds
                if here.seconds - kept > 60.0 * order.keep_minutes:
                    self.keep()
                    kept = here.seconds

    def _step(self) -> Mapping[str, float]:
        here, recipe = self.progress, self.order.recipe
        rng = np.random.default_rng([recipe.seed, here.step])
        shown = self.pictures.draw(rng, whole=here.share >= 1.0 - recipe.whole)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        for group in self._optimizer.param_groups:
            group['lr'] = recipe.rate(here.share)
        moved = Shown(shown.pixels.to(self.device), shown.grid, shown.counts.to(self.device))
        with self._autocast():
            parts = losses(self.network, moved, generator)
        total = weigh(parts, recipe)
        if not bool(torch.isfinite(total)):
            remedy = 'lower learning_rate, or begin in another folder'
            raise InvalidInput(
                'training', [Problem(f'step {here.step}', 'has a loss that is no number', remedy=remedy)]
            )
        total.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._average()
        return {name: float(part.detach()) for name, part in parts.items()} | {'frames': shown.pixels.shape[2]}

    def _autocast(self) -> Any:
        kind = self.order.autocast
        return nullcontext() if kind is None else torch.autocast(self.device.type, kind)

    @torch.no_grad()
    def _average(self) -> None:
        step = self.progress.step
        keep = min(self.order.recipe.ema, (1.0 + step) / (10.0 + step))  # the first weights are worth nothing
        now = [weight.detach() for _, weight in self.network.named_parameters()]
        torch._foreach_lerp_(list(self.averaged.values()), now, 1.0 - keep)

    # What comes of it

    def finish(self, tell: Callable[[float], None] = lambda _share: None) -> Path:
        """Write the autoencoder with the statistics of its latents, and how good it is."""
        result = self.folder / RESULT
        if self.progress.share < 1.0:
            raise CosmosError(f'{self.folder}: the run is not at its end -> go on with it')
        tell(0.0)
        network = self._averaged_network()
        mean, std = self._statistics(network)
        config = replace(self.order.recipe.config(), latents_mean=mean, latents_std=std)
        write_autoencoder(result, config, self.averaged)
        tell(0.5)
        written = load_autoencoder(result, self.device)
        figures = likeness(written, self.pictures)
        here = self.progress
        document = {
            'steps': here.step,
            'seconds': round(here.seconds, 1),
            'parameters': sum(weight.numel() for weight in written.parameters()),
            'corpus': {'fingerprint': self.pictures.corpus.fingerprint, 'frames': len(self.pictures.corpus)},
            'latents_std': [min(config.latents_std), max(config.latents_std)],
            'held_out': figures,
        }
        _replace_text(self.folder / REPORT, json.dumps(document, indent=1) + '\n')
        (self.folder / 'samples.png').write_bytes(samples(written, self.pictures))
        (self.folder / 'curves.png').write_bytes(curves(read_journal(self.folder / JOURNAL)))
        tell(1.0)
        return result

    def _averaged_network(self) -> VideoAutoencoder:
        network = VideoAutoencoder(self.order.recipe.config()).to(self.device)
        # As they will be read again: rounded.
        network.load_state_dict({name: weight.bfloat16().float() for name, weight in self.averaged.items()})
        return network.requires_grad_(False).eval()

    def _statistics(self, network: VideoAutoencoder) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel, frames by themselves and later ones of clips counted alike."""
        frames, clips = _STATISTICS_OF
        parts = [self._moments(network, self.pictures.frames(held=False, count=frames), 1)]
        length = max(self.order.recipe.clip_frames)
        starts = self.pictures.starts(length, held=False, count=clips)
        if len(starts):
            parts.append(self._moments(network, starts, length))
        mean, square = (torch.stack([part[number] for part in parts]).mean(0) for number in (0, 1))
        std = (square - mean.square()).clamp_min(_LEAST_STD**2).sqrt()
        return tuple(mean.tolist()), tuple(std.tolist())

    def _moments(self, network: VideoAutoencoder, starts: NDArray[np.int64], length: int) -> tuple[Tensor, Tensor]:
        """Mean and mean square of each channel, of the first latents if length is 1, else of the later ones."""
        rows, columns = self.pictures.grid
        total, square = torch.zeros(2, network.config.z_dim, dtype=torch.float64).unbind()
        count = 0
        for start in starts:
            pixels = self.pictures.on_canvas(np.array([start]), length).to(self.device)
            mode = network.encode(pixels)[:, : network.config.z_dim, min(1, length - 1) :, :rows, :columns]
            flat = mode.transpose(0, 1).flatten(1).double().cpu()
            total, square, count = total + flat.sum(1), square + flat.square().sum(1), count + flat.shape[1]
        return total / count, square / count

    def _validation(self) -> dict[str, float]:
        network = self._averaged_network()
        found = likeness(network, self.pictures, frames=16, clips=2)
        named = {f'valid/{view}': value for view, value in found['frames']['psnr'].items()}
        return named | ({'valid/clips': found['clips']['psnr']['all']} if found['clips'] else {})

    # What is kept

    def keep(self) -> None:
        """Write the state, whole or not at all."""
        state = {
            'weights': self.network.state_dict(),
            'averaged': self.averaged,
            'optimizer': self._optimizer.state_dict(),
            'step': self.progress.step,
            'seconds': self.progress.seconds,
        }
        unfinished = self.folder / f'.{STATE}'
        torch.save(state, unfinished)
        os.replace(unfinished, self.folder / STATE)

    def _take_up(self) -> None:
        path, state = self.folder / RECIPE, self.folder / STATE
        new = {**self.order.recipe.document(), 'corpus': self.pictures.corpus.fingerprint}
        if path.is_file():
            old = yaml.safe_load(path.read_text(encoding='utf-8'))
            differ = [
                Problem(
                    key, 'is another in the run that lies there', str(old.get(key)), str(value), 'name another folder'
                )
                for key, value in new.items()
                if old.get(key) != value
            ]
            if differ:
                raise InvalidInput(f'training run {self.folder}', differ)
        elif any(self.folder.iterdir()):
            problem = Problem(str(self.folder), 'holds something else', remedy='name a folder that is not there yet')
            raise InvalidInput('training run', [problem])
        else:
            _replace_text(path, yaml.safe_dump(new, sort_keys=False))
        if not state.is_file():
            return
        try:
            found = torch.load(state, map_location=self.device, weights_only=True)
            self.network.load_state_dict(found['weights'])
            self.averaged = found['averaged']
            self._optimizer.load_state_dict(found['optimizer'])
            self.progress = Progress(int(found['step']), float(found['seconds']))
        except (OSError, EOFError, RuntimeError, LookupError, ValueError, UnpicklingError) as error:
            raise CosmosError(f'{state} cannot be gone on with: {error} -> name another folder') from error

    def _note(self) -> None:
        """A line of means for every so many steps."""
        self._means.append(dict(self.progress.losses))
        if self.progress.step % EVERY == 0 or self.progress.share >= 1.0:
            write_line(self.folder / JOURNAL, self._line() | _mean_of(self._means))
            self._means.clear()

    def _line(self) -> dict[str, float]:
        here = self.progress
        return {'step': here.step, 'seconds': round(here.seconds, 1), 'rate': self.order.recipe.rate(here.share)}


# ---- What counts as wrong -------------------------------------------------------------------------------------------


def losses(network: VideoAutoencoder, shown: Shown, generator: torch.Generator) -> dict[str, Tensor]:
    """How wrong a batch comes back, by kind; see :class:`~engine.training.autoencoder_recipe.AutoencoderRecipe`.

    Args:
        network: What is trained.
        shown: On its device.
        generator: Of the noise that latents get, on the CPU, so that every device draws the same.
    """
    moments = network.encode(shown.pixels)[..., : shown.grid[0], : shown.grid[1]]
    mean, log_variance = moments.float().chunk(2, dim=1)
    log_variance = log_variance.clamp(-20.0, 4.0)
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    decoded = network.decode(mean + (0.5 * log_variance).exp() * noise).float()
    apart, counts = decoded - shown.wanted, shown.counts
    across = (apart.diff(dim=4).abs() * counts[..., 1:]).mean()
    down = (apart.diff(dim=3).abs() * counts[..., 1:, :]).mean()
    return {
        'l1': (apart.abs() * counts).mean(),
        'l2': (apart.square() * counts).mean(),
        'edges': across + down,
        'kl': 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean(),
    }


def weigh(parts: Mapping[str, Tensor], recipe: AutoencoderRecipe) -> Tensor:
    """What is made small."""
    weights = {'l1': 1.0, 'l2': recipe.l2, 'edges': recipe.edges, 'kl': recipe.kl}
    return torch.stack([weights[name] * part for name, part in parts.items()]).sum()


# ---- Parts ----------------------------------------------------------------------------------------------------------


def make_network(recipe: AutoencoderRecipe) -> VideoAutoencoder:
    """An autoencoder with random weights: blocks and attention change nothing yet, and latents get little noise.

    What goes around the blocks is an average going down and a repetition coming up; so it begins with a coarse picture,
    and learns several times as fast as with blocks that do anything.
    """
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        network = VideoAutoencoder(recipe.config())
    last = network.quant_conv
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, FrameAttention):
                module.proj.weight.zero_()
            elif isinstance(module, ResidualBlock):
                module.conv2.weight.zero_()
        last.weight[network.config.z_dim :] = 0.0
        if last.bias is not None:
            last.bias[network.config.z_dim :] = _FIRST_LOG_VARIANCE
    return network


def _begin_with(network: VideoAutoencoder, folder: Path) -> None:
    found = load_autoencoder(folder)
    try:
        network.load_state_dict(found.state_dict())
    except RuntimeError as error:
        problem = Problem(str(folder), 'has other widths than the recipe', str(error))
        raise InvalidInput('training', [problem]) from error


def _optimizer(network: nn.Module, recipe: AutoencoderRecipe) -> torch.optim.AdamW:
    matrices = [weight for weight in network.parameters() if weight.ndim > 1 and weight.shape[0] != weight.numel()]
    known = {id(weight) for weight in matrices}
    others = [weight for weight in network.parameters() if id(weight) not in known]
    groups = [{'params': matrices, 'weight_decay': recipe.weight_decay}, {'params': others, 'weight_decay': 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def _mean_of(some: list[dict[str, float]]) -> dict[str, float]:
    """Means by name; losses of clips and of frames by themselves are told apart."""
    found: dict[str, list[float]] = {}
    for one in some:
        kind = 'frames' if one['frames'] == 1 else 'clips'
        for name, value in one.items():
            if name != 'frames':
                found.setdefault(f'{kind}/{name}', []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _replace_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f'.{path.name}')
    unfinished.write_text(text, encoding='utf-8')
    os.replace(unfinished, path)
