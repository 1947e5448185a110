"""Flow matching: noise levels, what the network is shown, and how wrong it was.

``x = (1 - sigma) * clean + sigma * noise`` and the network predicts ``noise - clean``, as :mod:`engine.sampler` has it.
What is given stays clean and counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.network.placement import ActionPlacement, Placement, VisionPlacement
from engine.sampler import TRAIN_TIMESTEPS, UniPc, flow_unipc_schedule
from engine.sequence import Layout
from engine.training.network import Noisy
from engine.training.recipe import Recipe

Network = Callable[..., tuple[Tensor | None, Tensor | None]]
""":class:`~engine.training.network.BatchedTransformer`, or a wrapper of it."""


@dataclass(frozen=True)
class Batch:
    """B sequences of one task.

    Attributes:
        task: Which one, of :data:`engine.training.recipe.TASKS`.
        layout: Of all of them.
        ids: Token ids of P prompts.
        which: Int64 [B], the prompt of each; always in the processor's memory.
        vision: Float32 [B, Nv, patch_latent_dim], clean tokens; None without vision.
        action: Float32 [B, rows, action_dim], clean rows; None without actions.
    """

    task: str
    layout: Layout
    ids: tuple[tuple[int, ...], ...]
    which: Tensor
    vision: Tensor | None
    action: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        vision, action = (None if part is None else part.to(device) for part in (self.vision, self.action))
        return Batch(self.task, self.layout, self.ids, self.which, vision, action)


@dataclass(frozen=True)
class Loss:
    """How wrong velocities are: mean squares over what is generated, in the model's units.

    Attributes:
        vision: Of the video; None if none is generated.
        action: Of the rows; likewise.
    """

    vision: Tensor | None
    action: Tensor | None

    def total(self, action_weight: float) -> Tensor:
        """What is made small. Alone, actions have weight 1."""
        if self.vision is None and self.action is not None:
            return self.action
        if self.action is None and self.vision is not None:
            return self.vision
        if self.vision is None or self.action is None:
            raise ValueError('nothing was generated, so nothing can be learned')
        return self.vision + action_weight * self.action


def noise_levels(count: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Sigmas [count] in 0..1: a logistic-normal, shifted towards noise as the sampler's are.

    A network that is trained without the sampler's shift hardly ever sees the noise from which a policy starts.
    """
    normal = torch.randn(count, generator=generator) * recipe.logit_std + recipe.logit_mean
    even = torch.sigmoid(normal)
    return recipe.shift * even / (1.0 + (recipe.shift - 1.0) * even)


def flow_loss(
    network: Network,
    batch: Batch,
    place: Placement,
    recipe: Recipe,
    generator: torch.Generator,
) -> Loss:
    """The loss of one batch.

    Args:
        network: What is trained.
        batch: On the network's device.
        place: Where of the layout anything may change.
        recipe: Of the noise levels.
        generator: Of the noise, on the CPU, so that every device draws the same.
    """
    count = len(batch.which)
    device = place.cos.device
    first = noise_levels(count, recipe, generator)
    second = noise_levels(count, recipe, generator) if recipe.independent_times else first
    vision, vision_target = _mixed(batch.vision, None if place.vision is None else place.vision.free, first, generator)
    action, action_target = _mixed(batch.action, None if place.action is None else place.action.free, second, generator)
    times = (TRAIN_TIMESTEPS * sigma.to(device) for sigma in (first, second))
    found = network(batch.ids, batch.which, batch.layout, Noisy(vision, action, *times))
    seen, asked = batch.layout.vision, batch.layout.action
    return Loss(
        None if seen is None or len(seen.clean) == seen.frames else _wrong(found[0], vision_target, place.vision),
        None if asked is None or len(asked.clean) == asked.rows else _wrong(found[1], action_target, place.action),
    )


def sample(
    network: Network,
    batch: Batch,
    place: Placement,
    *,
    steps: int,
    shift: float,
    seed: int = 0,
) -> tuple[Tensor | None, Tensor | None]:
    """Generate what a batch leaves open, with the sampler that runs on robots and without guidance.

    Returns:
        Vision tokens and action rows in the shapes of the batch; what was given is as it was.
    """
    schedule, generator = flow_unipc_schedule(steps, shift), torch.Generator().manual_seed(seed)
    parts = []
    for clean, part in ((batch.vision, place.vision), (batch.action, place.action)):
        if clean is not None and part is not None:
            noise = torch.randn(clean.shape, generator=generator).to(clean.device)
            parts.append(torch.where(part.free, noise, clean))
    sampler, state = UniPc(schedule), tuple(parts)
    with torch.no_grad():
        for k, timestep in enumerate(schedule.timesteps):
            members = iter(state)
            vision = None if batch.vision is None else next(members)
            action = None if batch.action is None else next(members)
            time = torch.full((len(batch.which),), float(timestep), device=place.cos.device)
            out = network(batch.ids, batch.which, batch.layout, Noisy(vision, action, time, time))
            state = sampler.step(k, tuple(part for part in out if part is not None), state)
    members = iter(state)
    return (None if batch.vision is None else next(members)), (None if batch.action is None else next(members))


def _mixed(
    clean: Tensor | None, free: Tensor | None, sigma: Tensor, generator: torch.Generator
) -> tuple[Tensor | None, Tensor | None]:
    """What the network sees of clean numbers, and the velocity that it is to say."""
    if clean is None or free is None:
        return None, None
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    level = sigma.to(clean.device)[:, None, None]
    return torch.where(free, clean + level * (noise - clean), clean), noise - clean


def _wrong(out: Tensor | None, target: Tensor | None, place: VisionPlacement | ActionPlacement | None) -> Tensor | None:
    """Mean square over what is generated."""
    if out is None or target is None or place is None:
        return None
    wrong = torch.where(place.free, out - target, 0.0).square()
    return wrong.sum() / (place.free.sum() * len(out))
