"""One set of weights behind all surfaces: the prompt cache, the denoising loop and the clock of each stage."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from engine.errors import CosmosError
from engine.network.heads import patchify, unpatchify
from engine.network.placement import Tokens
from engine.sampler import Guidance, Schedule, UniPc, combine

if TYPE_CHECKING:
    from torch import Tensor

    from engine.backends.base import Backend, Step
    from engine.network.transformer import Prefix
    from engine.observation.tokenizer import PromptTokenizer
    from engine.sequence import Layout

PROMPTS_KEPT = 32
"""Prompts whose keys and values stay in memory; one of 190 tokens takes 28 MB on Nano."""


class Cancelled(CosmosError):
    """A request was given up between two denoising steps because its caller asked for it."""


@dataclass
class Stopwatch:
    """Seconds spent per stage of one request, in order of first use."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to stage `name`; waits for the GPU so that each stage pays for its own kernels."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == 'cuda':
                torch.cuda.synchronize(self.device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Task:
    """What to denoise: the tokens, the words, the schedule.

    Attributes:
        layout: Tokens and which of them are clean.
        caption: Prompt; the negative prompt is the empty caption.
        schedule: Timesteps and sigmas.
        guidance: Scale and the steps it is on.
        vision: Start sample [1, 48, T, h, w] float32, clean frames in place.
        action: Start sample [rows, 64] float32, clean rows in place and unused channels 0.
    """

    layout: Layout
    caption: str
    schedule: Schedule
    guidance: Guidance
    vision: Tensor | None = None
    action: Tensor | None = None


class FrameCodec(Protocol):
    """The video autoencoder, as far as a policy needs it."""

    def encode_frame(self, rgb: Tensor) -> Tensor:
        """[3, H, W] in -1..1 to normalised latents [1, C, 1, h, w] float32."""

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [1, C, T, h, w] to pixels, uint8 [F, H, W, 3]."""


class Runtime:
    """Weights, prompt cache and denoising loop. One request at a time; callers on other threads wait their turn."""

    def __init__(self, backend: Backend, vae: FrameCodec, tokenizer: PromptTokenizer) -> None:
        """Take charge of a loaded backend, video autoencoder and tokenizer."""
        self.backend = backend
        self.vae = vae
        self.tokenizer = tokenizer
        self.lock = threading.Lock()
        self._prefixes: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    def prefix(self, caption: str) -> Prefix:
        """Keys and values of a prompt, from the cache if this caption was seen before.

        The understanding tower reads text alone, so they depend on nothing else and are exact for every later request.

        Raises:
            ObservationError: The caption is longer than the checkpoint's limit.
        """
        ids = tuple(self.tokenizer.encode(caption))
        if ids not in self._prefixes:
            self._prefixes[ids] = self.backend.prefix(list(ids))
            while len(self._prefixes) > PROMPTS_KEPT:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(ids)
        return self._prefixes[ids]

    def denoise(
        self, task: Task, watch: Stopwatch, cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[Tensor | None, Tensor | None]:
        """Run the sampler.

        Args:
            task: What to denoise.
            watch: Receives the time of stages `prefix` and `denoise`.
            cancelled: Asked before every step.

        Returns:
            Clean vision latents and action rows, float32, shapes as in `task`; clean positions as they were given.

        Raises:
            Cancelled: `cancelled` returned True.
        """
        with watch.stage('prefix'):
            conditional = self.prefix(task.caption)
            unconditional = self.prefix('') if any(task.guidance.mask(task.schedule)) else None
        with watch.stage('denoise'):
            steps = [self.backend.step(prefix, task.layout) for prefix in (conditional, unconditional) if prefix]
            sample = self._sample(task, _to_tokens(task, self.backend.patch), steps, cancelled)
            return _from_tokens(task, sample, self.backend.patch)

    def _sample(
        self, task: Task, sample: tuple[Tensor, ...], steps: list[Step], cancelled: Callable[[], bool]
    ) -> tuple[Tensor, ...]:
        """Run the solver on tokens. Its updates are weighted sums, number by number, so cutting may come first."""
        sampler, guided = UniPc(task.schedule), task.guidance.mask(task.schedule)
        for index, timestep in enumerate(task.schedule.timesteps):
            if cancelled():
                raise Cancelled(f'given up before step {index + 1} of {len(task.schedule.timesteps)}')
            velocity = _velocity(steps[0], task, sample, timestep)
            if guided[index]:
                velocity = combine(velocity, _velocity(steps[1], task, sample, timestep), task.guidance.scale)
            sample = sampler.step(index, velocity, sample)
        return sample


def _to_tokens(task: Task, patch: int) -> tuple[Tensor, ...]:
    """What is denoised, modality by modality, cut into tokens."""
    vision = None if task.vision is None else patchify(task.vision, patch)
    return tuple(part for part in (vision, task.action) if part is not None)


def _from_tokens(task: Task, sample: tuple[Tensor, ...], patch: int) -> tuple[Tensor | None, Tensor | None]:
    parts = iter(sample)
    item = task.layout.vision
    vision = None if task.vision is None or item is None else unpatchify(next(parts), item, patch)
    return vision, None if task.action is None else next(parts)


def _velocity(step: Step, task: Task, sample: tuple[Tensor, ...], timestep: float) -> tuple[Tensor, ...]:
    parts = iter(sample)
    tokens = Tokens(
        vision=None if task.vision is None else next(parts),
        action=None if task.action is None else next(parts),
        sound=None,
    )
    # Guidance reads the velocities of both branches, and a backend may use one buffer for both.
    return tuple(part.clone() for part in step(tokens, timestep) if part is not None)
