"""One set of weights behind all surfaces: the prompt cache, the denoising loop and the clock of each stage."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

import torch

from engine.network.heads import patchify, unpatchify
from engine.network.placement import Tokens
from engine.runtime_lanes import hand_out, make_lanes
from engine.sampler import Guidance, Schedule, Unfinished, UniPc, check_precision, combine
from engine.turns import Cancelled, Priority, Turn, Turns, give_way

if TYPE_CHECKING:
    from torch import Tensor

    from engine.backends.base import Backend, Step
    from engine.backends.torch_reference import TorchReference
    from engine.network.transformer import Prefix
    from engine.observation.tokenizer import PromptTokenizer
    from engine.sequence import Layout

PROMPTS_KEPT = 32
"""Prompts whose keys and values stay in memory; one of 190 tokens takes 28 MB on Nano."""


@dataclass
class Stopwatch:
    """Seconds spent per stage of one request, in order of first use.

    Time in which other requests had the weights is stage `wait`, and no part of the stage in which it came up.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, *, with_waits: bool = False) -> Iterator[None]:
        """Add the time of the block to stage `name`; waits for the GPU so that each stage pays for its own kernels.

        Args:
            name: Of the stage.
            with_waits: Whether waiting for other requests counts, as it does for the whole of a request.
        """
        start, waited = time.perf_counter(), self._waited
        try:
            yield
        finally:
            if self.device.type == 'cuda':
                torch.cuda.current_stream(self.device).synchronize()
            spent = time.perf_counter() - start - (0.0 if with_waits else self._waited - waited)
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def wait(self, seconds: float) -> None:
        """Add to the time in which the request waited for others."""
        self.seconds['wait'] = self._waited + seconds

    @property
    def _waited(self) -> float:
        return self.seconds.get('wait', 0.0)


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
        in_tokens: Whether `vision` has been cut into tokens, as :func:`~engine.network.heads.patchify` does; then it
            comes back in tokens.
    """

    layout: Layout
    caption: str
    schedule: Schedule
    guidance: Guidance
    vision: Tensor | None = None
    action: Tensor | None = None
    in_tokens: bool = False


class FrameCodec(Protocol):
    """The video autoencoder, as far as a policy needs it."""

    def encode_frame(self, rgb: Tensor) -> Tensor:
        """[3, H, W] in -1..1 to normalised latents [1, C, 1, h, w] float32."""

    def encode(self, video: Tensor, between: Callable[[], None]) -> Tensor:
        """[3, F, H, W] in -1..1 to normalised latents [1, C, T, h, w] float32; `between` as in `decode`."""

    def decode(self, latents: Tensor, between: Callable[[], None]) -> Tensor:
        """Normalised latents [1, C, T, h, w] to pixels, uint8 [F, H, W, 3].

        `between` is called wherever other work, though not another `decode`, may be done before this goes on.
        """


class Runtime:
    """Weights, prompt cache and denoising loop, shared by all surfaces.

    Requests are made in `torch.inference_mode()`: results are put where the network's velocities are.

    One request at a time has the turn; the policy's go first, and others give way to them before every pass of the
    network and wherever the backend lets them in between.

    Attributes:
        turns: Who has the turn and who waits, with a count of both.
    """

    def __init__(self, backend: Backend, vae: FrameCodec, tokenizer: PromptTokenizer) -> None:
        """Take charge of a loaded backend, video autoencoder and tokenizer."""
        self.backend = backend
        self.vae = vae
        self.tokenizer = tokenizer
        self.turns = Turns()
        self._lanes = make_lanes(backend.device)
        self._prefixes: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    @contextmanager
    def turn(
        self, priority: Priority, watch: Stopwatch | None = None, cancelled: Callable[[], bool] | None = None
    ) -> Iterator[Turn]:
        """Have the weights for the block; on a GPU its work is done in the stream of the priority, and done at the end.

        Args:
            priority: Of the request. A block within this one has to have the same.
            watch: Receives the time of stage `wait`.
            cancelled: Asked while the request waits for its turn, or to go on with it.

        Raises:
            Cancelled: `cancelled` returned True while the request waited.
        """
        lane = self._lanes[priority]
        watch = watch or Stopwatch(self.backend.device)
        with (
            self.turns.take(priority, cancelled, pace=lane.pace, settle=lane.finish, waited=watch.wait) as turn,
            lane.active(),
        ):
            yield turn

    def prefix(self, caption: str) -> Prefix:
        """Keys and values of a prompt, from the cache if this caption was seen before. To be called within a turn.

        The understanding tower reads text alone, so they depend on nothing else and are exact for every later request.

        Raises:
            ObservationError: The caption is longer than the checkpoint's limit.
        """
        ids = tuple(self.tokenizer.encode(caption))
        found = self._prefixes.get(ids)
        if found is None:
            found = self.backend.prefix(list(ids))  # may give way: the cache can be another one afterwards
            self._prefixes[ids] = found
        self._prefixes.move_to_end(ids)
        while len(self._prefixes) > PROMPTS_KEPT:
            self._prefixes.popitem(last=False)
        return found

    def denoise(
        self,
        task: Task,
        watch: Stopwatch,
        cancelled: Callable[[], bool] = lambda: False,
        priority: Priority = Priority.POLICY,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Run the sampler. Whatever else the weights were used for in between, the result is the same to the last bit.

        Args:
            task: What to denoise.
            watch: Receives the time of stages `wait`, `prefix` and `denoise`.
            cancelled: Asked before every step, and while the request waits for others.
            priority: More urgent requests go first, also when this one has begun.

        Returns:
            Clean vision latents and action rows, float32, shapes as in `task`; clean positions as they were given.

        Raises:
            Cancelled: `cancelled` returned True.
        """
        with self.turn(priority, watch, cancelled):
            prompts = self._prompts(task, watch)
            with watch.stage('denoise'):
                sample = tuple(part.finish() for part in self._run(task, prompts, cancelled))
                vision, action = _from_tokens(task, sample, self.backend.patch)
        hand_out(vision)
        hand_out(action)
        return vision, action

    def denoise_actions(
        self,
        task: Task,
        watch: Stopwatch,
        cancelled: Callable[[], bool] = lambda: False,
        priority: Priority = Priority.POLICY,
    ) -> tuple[Unfinished, Tensor]:
        """As :meth:`denoise`, for whoever needs the actions now and may never look at the video.

        Args:
            task: What to denoise: vision in tokens, and actions.
            watch: As there.
            cancelled: Likewise.
            priority: Likewise.

        Returns:
            The video's tokens before the last update, and the clean action rows.
        """
        with self.turn(priority, watch, cancelled):
            prompts = self._prompts(task, watch)
            with watch.stage('denoise'):
                video, rows = self._run(task, prompts, cancelled)
                action = rows.finish()
                if len(task.schedule) == 1:
                    video.finish()  # it is still where it began, in memory of whoever asks
        for tensor in (*video.tensors, action):
            hand_out(tensor)
        return video, action

    def _prompts(self, task: Task, watch: Stopwatch) -> list[Prefix]:
        """The prompt, and the empty one if guidance needs it."""
        with watch.stage('prefix'):
            guided = any(task.guidance.mask(task.schedule))
            return [self.prefix(caption) for caption in ((task.caption, '') if guided else (task.caption,))]

    @property
    def together(self) -> bool:
        """Whether the backend denoises several requests at once, see :meth:`denoise_together`."""
        return self.backend.together

    def denoise_together(
        self,
        tasks: Sequence[Task],
        watch: Stopwatch,
        cancelled: Callable[[], bool] = lambda: False,
        priority: Priority = Priority.POLICY,
    ) -> list[tuple[Tensor, Tensor]]:
        """Run the sampler for several requests that differ in pictures, states, words and noise alone.

        Results equal those of :meth:`denoise` up to the order of sums.

        Args:
            tasks: With the same layout, schedule and guidance, vision in tokens.
            watch: As in :meth:`denoise`.
            cancelled: Likewise; gives all of them up.
            priority: Likewise.
        """
        first = tasks[0]
        step_together = cast('TorchReference', self.backend).step_together
        with self.turn(priority, watch, cancelled):
            with watch.stage('prefix'):
                conditional = [self.prefix(task.caption) for task in tasks]
                guided = any(first.guidance.mask(first.schedule))
                unconditional = [self.prefix('')] * len(tasks) if guided else []
            with watch.stage('denoise'):
                prompts = (conditional, unconditional)
                steps = [step_together(prefixes, first.layout) for prefixes in prompts if prefixes]
                parts = zip(*(_to_tokens(task, self.backend.patch) for task in tasks), strict=True)
                run = _sample(first, tuple(torch.cat(part) for part in parts), steps, cancelled)
                sample = (part.finish() for part in run)
                vision, action = ([one.clone() for one in part.chunk(len(tasks))] for part in sample)
        found = list(zip(vision, action, strict=True))
        for pair in found:
            for part in pair:
                hand_out(part)
        return found

    def encode(self, video: Tensor) -> Tensor:
        """Encode a clip, [3, F, H, W] in -1..1 to latents [1, C, T, h, w]. To be called within a turn of imagination.

        More urgent requests go first between its convolutions.
        """
        return self.vae.encode(video, give_way)

    def decode(
        self, latents: Tensor, cancelled: Callable[[], bool] | None = None, watch: Stopwatch | None = None
    ) -> Tensor:
        """Decode a clip for people to see: uint8 [F, H, W, 3] in the processor's memory.

        It runs at the priority of imagination, always. The reference autoencoder gives way before every convolution. A
        compiled one is a single piece, which a policy's request on a processor waits for; on a GPU it overtakes, since
        the turn is over once the piece is launched.

        Args:
            latents: Normalised, [1, C, T, h, w].
            cancelled: Asked while the request waits for others.
            watch: Receives the time of stage `wait`.

        Raises:
            Cancelled: `cancelled` returned True.
        """
        lane, watch = self._lanes[Priority.DYNAMICS], watch or Stopwatch(self.backend.device)
        with lane.active():
            lane.borrow(latents)
            with self.turns.take(Priority.DYNAMICS, cancelled, pace=lane.pace, waited=watch.wait):
                pixels = self.vae.decode(latents, give_way)
            return pixels.cpu()

    def _run(self, task: Task, prompts: list[Prefix], cancelled: Callable[[], bool]) -> tuple[Unfinished, ...]:
        """Make the step for each prompt, and run the solver on tokens."""
        steps = [self.backend.step(prompt, task.layout) for prompt in prompts]
        return _sample(task, _to_tokens(task, self.backend.patch), steps, cancelled)


def _sample(
    task: Task, sample: tuple[Tensor, ...], steps: list[Step], cancelled: Callable[[], bool]
) -> tuple[Unfinished, ...]:
    """Run the solver. Its updates are weighted sums, number by number, so cutting into tokens may come first."""
    check_precision(sample)
    sampler, guided, scale = UniPc(task.schedule), task.guidance.mask(task.schedule), task.guidance.scale
    last = len(task.schedule) - 1
    for index, timestep in enumerate(task.schedule.timesteps):
        give_way()
        if cancelled():
            raise Cancelled(f'given up before step {index + 1} of {len(task.schedule)}')
        velocity, other = _velocity(steps[0], task, sample, timestep), None
        if guided[index]:
            give_way()
            other = _velocity(steps[1], task, sample, timestep)
        if index == last:
            break
        velocity = velocity if other is None else combine(velocity, other, scale, overwrite=True)
        sample = sampler.step(index, velocity, sample, overwrite=True)
    others = other or (None,) * len(sample)
    sigma = float(task.schedule.sigmas[last])
    return tuple(Unfinished(*parts, scale, sigma) for parts in zip(sample, velocity, others, strict=True))


def _to_tokens(task: Task, patch: int) -> tuple[Tensor, ...]:
    """What is denoised, modality by modality, cut into tokens."""
    vision = task.vision if task.vision is None or task.in_tokens else patchify(task.vision, patch)
    return tuple(part for part in (vision, task.action) if part is not None)


def _from_tokens(task: Task, sample: tuple[Tensor, ...], patch: int) -> tuple[Tensor | None, Tensor | None]:
    parts = iter(sample)
    item = task.layout.vision
    vision = None if task.vision is None or item is None else next(parts)
    if vision is not None and item is not None and not task.in_tokens:
        vision = unpatchify(vision, item, patch)
    return vision, None if task.action is None else next(parts)


def _velocity(step: Step, task: Task, sample: tuple[Tensor, ...], timestep: float) -> tuple[Tensor, ...]:
    """What the network says."""
    parts = iter(sample)
    tokens = Tokens(
        vision=None if task.vision is None else next(parts),
        action=None if task.action is None else next(parts),
        sound=None,
    )
    return tuple(part for part in step(tokens, timestep) if part is not None)
