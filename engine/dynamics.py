"""The dynamics surface: a picture and rows of actions -> the video that they will cause, and from a video its actions.

Long rows are imagined in windows of the length that the network was trained on. A window after the first starts from
the last frames of the one before, decoded and encoded again as they are; no picture or video file lies in between, as
it does in the published examples. All windows have the canvas of the first picture, while an example that reads its
last frame from a file chooses anew: that makes a difference only for pictures that are scaled or cut to whole latents.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from engine.actions import MODEL_WIDTH, Embodiment, Normalizer, PoseCodec, codec, embodiment
from engine.dynamics_detail import keep_detail
from engine.errors import ContractError, CosmosError, InvalidInput, ObservationError, Problem
from engine.observation.geometry import (
    LATENT_PIXELS,
    Canvas,
    canvases,
    choose_canvas,
    content_size,
    fit,
    latent_crop,
    to_unit,
)
from engine.observation.prompts import ACTION_FORMATS, VIEWPOINTS, action_prompt
from engine.observation.views import compose, in_shape
from engine.runtime import Stopwatch, Task
from engine.runtime_lanes import hand_out
from engine.sampler import Guidance, flow_unipc_schedule, framework_noise
from engine.sequence import (
    LATENT_CHANNELS,
    TEMPORAL_COMPRESSION,
    Layout,
    forward_dynamics_layout,
    inverse_dynamics_layout,
    latent_frames,
)
from engine.turns import Priority

if TYPE_CHECKING:
    from torch import Tensor

    from engine.contract import Contract
    from engine.runtime import Runtime

Frames = NDArray[np.uint8]
"""RGB, uint8 [F, H, W, 3]."""
SPACE = 'ee_delta'
"""The action space that imagination was trained on; other ones need the bridge of the robot's kinematics first."""
_FASTEST = 1000  # rows per second
_LARGEST_SEED = 2**32 - 1  # of the generator that the framework's noise comes from
_SHIFTS = {'camera_pose': 5.0}  # where the framework's example has another than 10


@dataclass(frozen=True)
class DynamicsTerms:
    """What a clip is and how it is denoised. The figures are those of cosmos-framework's action examples.

    Attributes:
        embodiment: Whose actions they are.
        raw_dim: Numbers in a row.
        chunk: Rows of one window, a multiple of 4.
        fps: Rows, and frames of the clip, per second.
        normalization: How physical rows are scaled to the model's space.
        tier: Resolution tier of the canvas.
        viewpoint: Of the pictures; None to say nothing of it.
        description: What a composite shows, after the viewpoint's sentence.
        prompt: Format of the prompt, 'plain', 'json' or 'bare'.
        steps: Network evaluations for a window (two with guidance).
        guidance: Scale; 1 for none.
        shift: Of the schedule.
        normalizer: Scale of the rows by statistics of the checkpoint's own; None for the published ones.
    """

    embodiment: Embodiment
    raw_dim: int
    chunk: int
    fps: float
    normalization: str = 'quantile'
    tier: int = 480
    viewpoint: str | None = None
    description: str | None = None
    prompt: str = 'json'
    steps: int = 30
    guidance: float = 1.0
    shift: float = 10.0
    normalizer: Normalizer | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Raise InvalidInput with every fault."""
        problems = []
        if self.chunk < TEMPORAL_COMPRESSION or self.chunk % TEMPORAL_COMPRESSION:
            problems.append(Problem('chunk', 'has no whole latents', str(self.chunk), 'a multiple of 4'))
        if not 0 < self.raw_dim <= MODEL_WIDTH:
            problems.append(
                Problem('raw_dim', 'is not known or out of range', str(self.raw_dim), f'1 to {MODEL_WIDTH}')
            )
        if not 1 <= self.fps <= _FASTEST:
            problems.append(Problem('fps', 'is not known or out of range', str(self.fps), f'1 to {_FASTEST}'))
        if self.viewpoint is not None and self.viewpoint not in VIEWPOINTS:
            problems.append(Problem('viewpoint', 'is unknown', repr(self.viewpoint), ', '.join(VIEWPOINTS)))
        if self.prompt not in ACTION_FORMATS:
            problems.append(Problem('prompt', 'is unknown', repr(self.prompt), ', '.join(ACTION_FORMATS)))
        if not math.isfinite(self.guidance):
            problems.append(Problem('guidance', 'is not finite', str(self.guidance)))
        for check in (lambda: canvases(self.tier), lambda: flow_unipc_schedule(self.steps, self.shift)):
            try:
                check()
            except InvalidInput as error:
                problems += error.problems
        if problems:
            raise InvalidInput('terms of dynamics', problems)

    @classmethod
    def published(cls, domain: str, raw_dim: int | None = None, **changes: Any) -> Self:
        """Terms of an embodiment as it was trained, with whatever is to be different.

        Args:
            domain: Name of the embodiment.
            raw_dim: Numbers in a row; needed where no width is public, and else to be the public one.
            changes: Other attributes.

        Raises:
            InvalidInput: There is no such embodiment, its rate or the width of its rows is not public and not given, or
                a figure is out of range.
        """
        of = embodiment(domain)
        widths = sorted({of.raw_dims[SPACE]} if SPACE in of.raw_dims else set(of.raw_dims.values()))
        if raw_dim is not None and widths and raw_dim not in widths:
            allowed = ' or '.join(map(str, widths))
            problem = Problem(
                'raw_dim', f'is not the width of a row of {of.name} that is imagined', str(raw_dim), allowed
            )
            raise InvalidInput('terms of dynamics', [problem])
        width = raw_dim or (widths[0] if len(widths) == 1 else 0)
        known = SPACE in of.raw_dims and of.space(SPACE).statistics
        found = {
            'chunk': of.chunk,
            'fps': of.fps or 0.0,
            'viewpoint': of.viewpoint,
            'normalization': 'quantile' if known else 'none',
            'shift': _SHIFTS.get(of.name, cls.shift),
        }
        return cls(of, width, **(found | changes))

    @classmethod
    def of_contract(cls, contract: Contract) -> Self:
        """Terms that fit what a contract's policy sees: its rate, tier, views and prompt.

        Windows have the embodiment's own length and rows are deltas of poses, also if the policy's are others.

        Raises:
            ContractError: The embodiment has no such rows.
        """
        of = embodiment(contract.embodiment.domain)
        if SPACE not in of.raw_dims:
            have = ', '.join(of.raw_dims) or 'none'
            problem = Problem('embodiment.domain', f'has no action space {SPACE}', of.name, '', f'it has {have}')
            raise ContractError(f'dynamics for contract {contract.name}', [problem])
        prompt, timing, terms = contract.prompt, contract.timing, contract.embodiment
        return cls(
            of,
            of.raw_dims[SPACE],
            of.chunk,
            timing.fps,
            terms.normalization if terms.action_space == SPACE else 'quantile',
            timing.resolution_tier,
            prompt.viewpoint,
            prompt.description,
            prompt.format,
            normalizer=terms.normalizer if terms.action_space == SPACE else None,
        )

    def caption(self, instruction: str, canvas: Canvas) -> str:
        """The prompt of a window on a canvas for an instruction; '' stays ''."""
        return action_prompt(
            self.prompt,
            instruction,
            viewpoint=self.viewpoint,
            description=self.description,
            frames=self.chunk + 1,
            fps=self.fps,
            canvas=canvas,
        )

    def codec(self) -> PoseCodec:
        """What writes poses as rows and reads them.

        Raises:
            InvalidInput: The embodiment's rows are no deltas of poses, or its statistics are not public.
        """
        found = codec(self.embodiment, SPACE, self.normalizer or self.normalization)
        if not isinstance(found, PoseCodec):
            problem = Problem(self.embodiment.name, 'has rows that are no deltas of poses alone')
            raise InvalidInput('terms of dynamics', [problem])
        return found


@dataclass(frozen=True, eq=False)
class Rollout:
    """An imagined future.

    Attributes:
        latents: Of each window, float32 [1, C, T, h, w].
        rows: float32 [N, D]: the actions that it was imagined for.
        overlap: Frames of a window that were given, the last ones of the window before.
        instruction: The prompt's words.
        seed: Of the first window's noise; the others' follow.
        seconds: Time per stage.
    """

    latents: tuple[Tensor, ...]
    rows: NDArray[np.float32]
    overlap: int
    instruction: str
    seed: int
    seconds: Mapping[str, float]
    _clip: _Clip = field(repr=False)
    _given: Frames = field(repr=False)
    _decode: Callable[[Tensor], Frames] = field(repr=False)
    _decoded: list[Frames] = field(repr=False)
    _decoding: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def frames(self) -> Frames:
        """The observed frame and one for every row, [N + 1, H, W, 3]; windows are decoded when first asked for."""
        with self._decoding:
            while len(self._decoded) < len(self.latents):
                self._decoded.append(self._decode(self.latents[len(self._decoded)]))
        first, *others = self._decoded
        return np.concatenate([first, *(window[self.overlap :] for window in others)])[: len(self.rows) + 1]

    @property
    def detailed(self) -> Frames:
        """The same, [N + 1, H, W, 3], with the detail of the observed picture wherever little changes: for people."""
        return keep_detail(self.frames, self._clip.shown(self._given))

    def begin(self, frames: int) -> Frames:
        """The first frames alone, [N, H, W, 3], of the first window at most; nothing that comes later changes them."""
        with self._decoding:
            if not self._decoded:
                return self._decode(self.latents[0][:, :, : latent_frames(frames)])[:frames]
            return self._decoded[0][:frames]


@dataclass(frozen=True)
class _Clip:
    """Pictures of one size on their way into the network: the canvas they are padded to, and what of it is kept."""

    canvas: Canvas
    content: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of latents."""
        return latent_crop(*self.content)

    def shown(self, picture: Frames) -> Frames:
        """A picture [H, W, 3] reduced to the canvas and cut to whole latents, as imagined frames are."""
        height, width = (cells * LATENT_PIXELS for cells in self.grid)
        cut: Frames = fit(picture, self.canvas).pixels[:height, :width]
        return cut

    @classmethod
    def of(cls, tier: int, frames: Frames) -> Self:
        """For frames [..., H, W, 3]."""
        height, width = frames.shape[-3:-1]
        canvas = choose_canvas(tier, height, width)
        return cls(canvas, content_size(height, width, canvas))


@dataclass(frozen=True)
class _Request:
    """What all windows of one call have in common."""

    instruction: str
    watch: Stopwatch
    cancelled: Callable[[], bool]


class Dynamics:
    """Imagines videos, and finds the actions behind them. Thread-safe; the policy's requests go first.

    Attributes:
        terms: What a window is and how it is denoised.
        contract: Whose views are composed into the picture; None if only whole pictures are given.
    """

    priority = Priority.DYNAMICS

    def __init__(self, runtime: Runtime, terms: DynamicsTerms, contract: Contract | None = None) -> None:
        """Use :meth:`engine.Cosmos3.dynamics`, which checks the terms against the checkpoint first."""
        self.runtime = runtime
        self.terms = terms
        self.contract = contract
        self.schedule = flow_unipc_schedule(terms.steps, terms.shift)
        self._device = runtime.backend.device

    def with_terms(self, **changes: Any) -> Dynamics:
        """The same with other terms: fewer steps, another tier.

        Raises:
            InvalidInput: A figure is out of range.
        """
        return Dynamics(self.runtime, replace(self.terms, **changes), self.contract)

    def caption(self, instruction: str, canvas: Canvas) -> str:
        """The prompt of a window for an instruction; '' stays ''."""
        return self.terms.caption(instruction, canvas)

    def imagine(
        self,
        seen: Frames | Mapping[str, Frames],
        actions: ArrayLike,
        instruction: str = '',
        seed: int = 0,
        *,
        overlap: int = 1,
        windows: int | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> Rollout:
        """The video that actions will cause.

        Args:
            seen: The picture of now, uint8 [H, W, 3], or one of each view of the contract.
            actions: [N, D] in the model's space, as action files hold them and codecs write them: row k leads from
                frame k to frame k + 1. Rows that are missing in the last window are its last one again.
            instruction: What is going on, in words; may be empty.
            seed: Of the noise of the first window; window k takes seed + k.
            overlap: Frames that a window shares with the one before it, 4 k + 1: from five on the network sees how
                things move and not only where they are. The published examples share one.
            windows: Imagine no more than so many, and leave the rows beyond them out; None for all.
            cancelled: Asked between denoising steps, and while the request waits for others.
            progress: Told the number of windows done, and of all.

        Raises:
            ObservationError: The picture does not fit, or the words are too many.
            InvalidInput: Actions, overlap, windows or seed do not fit; lists every fault.
            Cancelled: `cancelled` returned True.
        """
        rows = check_request(self.terms, actions, overlap, windows, seed)
        picture = self._picture(seen)
        given = picture[None]
        starts = _starts(len(rows), self.terms.chunk, overlap)[:windows]
        rows = rows[: starts[-1] + self.terms.chunk]
        request = _Request(instruction, Stopwatch(self._device), cancelled)
        clip = _Clip.of(self.terms.tier, given)
        latents: list[Tensor] = []
        decoded: list[Frames] = []
        with request.watch.stage('total', with_waits=True):
            for number, start in enumerate(starts):
                if number:
                    with request.watch.stage('decode'):
                        decoded.append(self._decoded(latents[-1], cancelled, request.watch))
                    given = decoded[-1][-overlap:]
                latents.append(
                    self._ahead(given, clip, _exactly(rows[start:], self.terms.chunk), seed + number, request)
                )
                progress(number + 1, len(starts))
        told = instruction, seed, dict(request.watch.seconds)
        return Rollout(tuple(latents), rows, overlap, *told, clip, picture, self._decoded, decoded)

    def actions_from_video(
        self,
        frames: Frames | Sequence[Frames],
        instruction: str = '',
        seed: int = 0,
        *,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> NDArray[np.float32]:
        """The actions that lead through a video.

        Args:
            frames: uint8 [N + 1, H, W, 3], at the rate of the terms. What is missing in the last window is the last
                frame again, and the rows for it are left out.
            instruction: What is going on, in words; may be empty.
            seed: Of the noise of the first window; window k takes seed + k.
            cancelled: As in :meth:`imagine`.

        Returns:
            float32 [N, D], in the model's space; row k leads from frame k to frame k + 1.

        Raises:
            ObservationError: The frames do not fit, or the words are too many.
            InvalidInput: The seed is out of range.
            Cancelled: `cancelled` returned True.
        """
        video, chunk = _check_video(frames), self.terms.chunk
        problems = _seed_problems(seed, len(video))
        if problems:
            raise InvalidInput('inverse dynamics', problems)
        request = _Request(instruction, Stopwatch(self._device), cancelled)
        clip = _Clip.of(self.terms.tier, video)
        found = [
            self._behind(_exactly(video[start:], chunk + 1), clip, seed + number, request)
            for number, start in enumerate(range(0, len(video) - 1, chunk))
        ]
        return np.concatenate(found)[: len(video) - 1]

    def actions_of(
        self, rollout: Rollout, seed: int = 0, *, cancelled: Callable[[], bool] = lambda: False
    ) -> NDArray[np.float32]:
        """The actions that lead through an imagined video, found in its latents: nothing is decoded for it.

        Args:
            rollout: Of these weights and of terms with this chunk and tier.
            seed: Of the noise of the first window; window k takes seed + k.
            cancelled: As in :meth:`imagine`.

        Returns:
            float32 [N, D], in the model's space: as many rows as the rollout has.

        Raises:
            Cancelled: `cancelled` returned True.
        """
        request = _Request(rollout.instruction, Stopwatch(self._device), cancelled)
        found = [
            self._behind_latents(latents, rollout._clip, seed + number, request)
            for number, latents in enumerate(rollout.latents)
        ]
        first, *others = found
        return np.concatenate([first, *(rows[rollout.overlap - 1 :] for rows in others)])[: len(rollout.rows)]

    def seen_as(self, rollout: Rollout, seen: Frames | Mapping[str, Frames]) -> Frames:
        """A picture as the frames of a rollout show it, composed, reduced and cut like them: uint8 [H, W, 3].

        Raises:
            ObservationError: The picture does not fit.
        """
        return rollout._clip.shown(self._picture(seen))

    # One window

    def _ahead(self, given: Frames, clip: _Clip, rows: NDArray[np.float32], seed: int, request: _Request) -> Tensor:
        """Latents of the window that begins with the frames `given` and is driven by the rows."""
        clean = latent_frames(len(given))
        plain = self._layout(forward_dynamics_layout, clip)
        if plain.vision is None:
            raise CosmosError(f'imagination needs vision, got {plain}')
        layout = replace(plain, vision=replace(plain.vision, clean=tuple(range(clean))))
        pixels = self._pixels(given, clip)  # before the turn, like the noise: nobody should wait for it
        noise = framework_noise(seed, (1, LATENT_CHANNELS, plain.vision.frames, *clip.grid))
        action = torch.zeros(len(rows), MODEL_WIDTH)
        action[:, : self.terms.raw_dim] = torch.from_numpy(rows)
        with torch.inference_mode(), self.runtime.turn(self.priority, request.watch, request.cancelled):
            vision = noise.to(self._device, copy=True)
            vision[:, :, :clean] = self._encoded(pixels, clip, request.watch)
            latents, _ = self._denoised(layout, clip, vision, action, request)
        hand_out(latents)
        return latents

    def _behind(self, video: Frames, clip: _Clip, seed: int, request: _Request) -> NDArray[np.float32]:
        """Rows of the window that these frames are."""
        pixels = self._pixels(video, clip)
        with torch.inference_mode(), self.runtime.turn(self.priority, request.watch, request.cancelled):
            return self._behind_latents(self._encoded(pixels, clip, request.watch), clip, seed, request)

    def _behind_latents(self, vision: Tensor, clip: _Clip, seed: int, request: _Request) -> NDArray[np.float32]:
        """Rows of the window that has these latents."""
        layout = self._layout(inverse_dynamics_layout, clip)
        action = framework_noise(seed, (self.terms.chunk, MODEL_WIDTH))
        action[:, self.terms.raw_dim :] = 0
        with torch.inference_mode(), self.runtime.turn(self.priority, request.watch, request.cancelled):
            _, rows = self._denoised(layout, clip, vision, action, request)
            found: NDArray[np.float32] = rows[:, : self.terms.raw_dim].float().cpu().numpy()
        return found

    def _layout(self, make: Callable[..., Layout], clip: _Clip) -> Layout:
        height, width = clip.grid
        terms = self.terms
        domain = terms.embodiment.domain_id
        return make(
            chunk=terms.chunk, height=height, width=width, fps=terms.fps, domain_id=domain, raw_dim=terms.raw_dim
        )

    def _pixels(self, frames: Frames, clip: _Clip) -> Tensor:
        """Frames on their canvas, [3, F, H, W] in -1..1."""
        return to_unit(fit(frames, clip.canvas).pixels)

    def _encoded(self, pixels: Tensor, clip: _Clip, watch: Stopwatch) -> Tensor:
        """Latents of frames [3, F, H, W], as far as they are denoised."""
        with watch.stage('encode'):
            on_device = pixels.to(self._device)
            one = pixels.shape[1] == 1
            latents = self.runtime.vae.encode_frame(on_device[:, 0]) if one else self.runtime.encode(on_device)
        height, width = clip.grid
        return latents[..., :height, :width]

    def _denoised(
        self, layout: Layout, clip: _Clip, vision: Tensor, action: Tensor, request: _Request
    ) -> tuple[Tensor, Tensor]:
        task = Task(
            layout,
            self.caption(request.instruction, clip.canvas),
            self.schedule,
            Guidance(self.terms.guidance),
            vision=vision.to(self._device),
            action=action.to(self._device),
        )
        latents, rows = self.runtime.denoise(task, request.watch, request.cancelled, self.priority)
        if latents is None or rows is None:
            raise CosmosError(f'the sampler lost a modality of {layout}')
        return latents, rows

    def _decoded(
        self, latents: Tensor, cancelled: Callable[[], bool] | None = None, watch: Stopwatch | None = None
    ) -> Frames:
        with torch.inference_mode():
            frames: Frames = self.runtime.decode(latents, cancelled, watch).numpy()
        return frames

    # What is given

    def _picture(self, seen: Frames | Mapping[str, Frames]) -> Frames:
        """One picture, [H, W, 3]."""
        if isinstance(seen, Mapping):
            if self.contract is None:
                problem = Problem('views', 'cannot be composed without a contract', ', '.join(seen))
                raise ObservationError('picture', [problem])
            views = self.contract.views
            return compose(in_shape(seen, views.composition, views.size), views.composition, views.size)
        picture = np.asarray(seen)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3 or min(picture.shape) < 3:
            kind = f'{picture.dtype} {list(picture.shape)}'
            raise ObservationError('picture', [Problem('seen', 'is no RGB picture', kind, 'uint8 [H, W, 3]')])
        return picture


def check_request(
    terms: DynamicsTerms, actions: ArrayLike, overlap: int = 1, windows: int | None = None, seed: int = 0
) -> NDArray[np.float32]:
    """Return the rows [N, raw_dim] of a request if all of it can be used; see :meth:`Dynamics.imagine`.

    Raises:
        InvalidInput: Something cannot; lists every fault.
    """
    chunk, width = terms.chunk, terms.raw_dim
    problems = []
    if overlap % TEMPORAL_COMPRESSION != 1 or not 1 <= overlap < chunk:
        problems.append(Problem('overlap', 'has no whole latents', str(overlap), f'4 k + 1, below {chunk}'))
    if windows is not None and windows < 1:
        problems.append(Problem('windows', 'is too small', str(windows), '1 or more'))
    try:
        rows = np.asarray(actions, np.float32)
    except (TypeError, ValueError, OverflowError):
        rows = np.zeros((0, 0), np.float32)
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != width:
        found = str(list(rows.shape)) if rows.size else type(actions).__name__
        problems.append(Problem('actions', 'are not rows of this embodiment', found, f'numbers [N, {width}]'))
    elif not np.isfinite(rows).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(rows))[0])
        problems.append(Problem('actions', f'are not finite at row {row}, column {column}', str(rows[row, column])))
    problems += _seed_problems(seed, len(rows))
    if problems:
        raise InvalidInput(f'imagination for {terms.embodiment.name}', problems)
    return rows


def _seed_problems(seed: int, rows: int) -> list[Problem]:
    """Windows have a seed each, at most one for every row."""
    if 0 <= seed <= _LARGEST_SEED - rows:
        return []
    return [Problem('seed', 'is out of range', str(seed), f'0 to {_LARGEST_SEED - rows}')]


def _starts(rows: int, chunk: int, overlap: int) -> list[int]:
    """The frame at which each window begins, so that all rows are covered."""
    stride = chunk - (overlap - 1)
    return list(range(0, max(1, rows - overlap + 1), stride))


def _exactly[A: NDArray[Any]](items: A, length: int) -> A:
    """The first `length` items; if there are fewer, the last one again and again."""
    return items[np.minimum(np.arange(length), len(items) - 1)]


def _check_video(frames: Frames | Sequence[Frames]) -> Frames:
    """Return frames as one array [F, H, W, 3], F > 1."""
    shapes = {np.shape(frame) for frame in frames}
    if len(shapes) != 1:
        found = ', '.join(map(str, sorted(shapes))) or 'none'
        raise ObservationError('video', [Problem('frames', 'are not of one size', found)])
    video = np.asarray(frames)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or min(video.shape[1:]) < 3 or len(video) < 2:
        kind = f'{video.dtype} {list(video.shape)}'
        raise ObservationError('video', [Problem('frames', 'are no RGB video', kind, 'uint8 [2 or more, H, W, 3]')])
    return video
