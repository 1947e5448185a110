"""Which tokens are generated, which of them are given (clean), and at what rate they happen.

One Cosmos 3 network serves every task; the task is only a matter of what is noisy:

    policy             first latent frame clean, state (and history) rows clean, the rest noisy
    forward dynamics   first latent frame clean, all action rows clean
    inverse dynamics   all latent frames clean, all action rows noisy
    text/image/video to video   some leading latent frames clean, or none; optionally sound

A :class:`Layout` says exactly that, without any tensor. It is hashable, so whatever depends on nothing but the layout
can be calculated once and kept. Tokens are ordered vision, action, sound, as in NVIDIA's cosmos-framework.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from engine.errors import InvalidInput, Problem

LATENT_CHANNELS = 48
TEMPORAL_COMPRESSION = 4  # pixel frames per latent frame after the first, of the Wan 2.2 video autoencoder
SOUND_RATE = 48_000  # Hz
SOUND_HOP = 1_920  # samples per sound latent


@dataclass(frozen=True)
class VisionItem:
    """A clip of video latents.

    Attributes:
        frames: Latent frames.
        height: Rows of the latent grid (pixels / 16), before patching.
        width: Columns of the latent grid.
        fps: Pixel frames per second.
        clean: Latent frames that are given, ascending; the others are generated.
    """

    frames: int
    height: int
    width: int
    fps: float
    clean: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raise InvalidInput with every fault."""
        sizes = {'frames': self.frames, 'height': self.height, 'width': self.width}
        _refuse('vision item', [*_not_positive(**sizes, fps=self.fps), *_bad_clean(self.clean, self.frames)])

    def grid(self, patch: int) -> tuple[int, int, int]:
        """Tokens along time, height and width; an incomplete patch at the edge counts as one."""
        return self.frames, math.ceil(self.height / patch), math.ceil(self.width / patch)

    def tokens(self, patch: int) -> int:
        """Tokens of the whole clip."""
        return math.prod(self.grid(patch))


@dataclass(frozen=True)
class ActionItem:
    """Rows of actions of one embodiment.

    Attributes:
        rows: Action rows, including history and state rows.
        domain_id: Embodiment domain, which selects the weights of the action heads.
        raw_dim: Channels this embodiment uses; the network's remaining channels are zero.
        fps: Rows per second.
        start: Pixel frame at which row 0 sits: 1 for actions that lead to frame 1, 0 for a state row, negative with
            history.
        clean: Rows that are given, ascending; the others are generated.
    """

    rows: int
    domain_id: int
    raw_dim: int
    fps: float
    start: int = 1
    clean: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raise InvalidInput with every fault."""
        problems = [*_not_positive(rows=self.rows, raw_dim=self.raw_dim, fps=self.fps)]
        if self.domain_id < 0:
            problems.append(Problem('domain_id', 'is negative', str(self.domain_id), '0 or more'))
        _refuse('action item', [*problems, *_bad_clean(self.clean, self.rows)])


@dataclass(frozen=True)
class SoundItem:
    """Sound latents (25 per second), all generated.

    Attributes:
        frames: Sound latents.
    """

    frames: int

    def __post_init__(self) -> None:
        """Raise InvalidInput if there is nothing to generate."""
        _refuse('sound item', _not_positive(frames=self.frames))


@dataclass(frozen=True)
class Layout:
    """Everything one denoising run generates, together with what it is given.

    Attributes:
        vision: The clip, or None for actions alone.
        action: The action rows, or None.
        sound: The sound track of the clip, or None.
    """

    vision: VisionItem | None = None
    action: ActionItem | None = None
    sound: SoundItem | None = None

    def __post_init__(self) -> None:
        """Raise InvalidInput if nothing is left to attend to, or sound stands alone."""
        if self.vision is None and self.action is None:
            what = 'has neither vision nor action' if self.sound is None else 'has sound without vision'
            _refuse('layout', [Problem('layout', what, allowed='vision, action or both; sound only beside them')])

    def tokens(self, patch: int) -> int:
        """Tokens of the generation segment."""
        return sum(self.split(patch))

    def split(self, patch: int) -> tuple[int, int, int]:
        """Tokens of vision, action and sound, in the order in which they are packed."""
        return (
            self.vision.tokens(patch) if self.vision else 0,
            self.action.rows if self.action else 0,
            self.sound.frames if self.sound else 0,
        )


def latent_frames(video_frames: int) -> int:
    """Latent frames of a clip: one for the first pixel frame and one for every four that follow.

    Raises:
        InvalidInput: If the clip does not have 4k + 1 frames.
    """
    if video_frames < 1 or (video_frames - 1) % TEMPORAL_COMPRESSION:
        below = max(1, (video_frames - 1) // TEMPORAL_COMPRESSION * TEMPORAL_COMPRESSION + 1)
        remedy = f'use {below} or {below + TEMPORAL_COMPRESSION}'
        _refuse('clip', [Problem('video_frames', 'has no whole latents', str(video_frames), '4k + 1 frames', remedy)])
    return (video_frames - 1) // TEMPORAL_COMPRESSION + 1


def sound_latents(video_frames: int, fps: float) -> int:
    """Sound latents that cover a clip of `video_frames` at `fps` (1/s), the last one possibly in part.

    The sample count is truncated to an integer first, as in diffusers' Cosmos 3 pipeline.
    """
    return math.ceil(int(video_frames / fps * SOUND_RATE) / SOUND_HOP)


def policy_layout(
    *,
    chunk: int,
    height: int,
    width: int,
    fps: float,
    domain_id: int,
    raw_dim: int,
    state: bool,
    history: int = 0,
    committed: int = 0,
    video: bool = True,
) -> Layout:
    """Actions to take from the current frame on, denoised together with the video they will cause.

    The rows are `history` past actions (oldest first), then the measured state if `state`, then `chunk` actions; all
    before the chunk are given, and so are its first `committed` rows, which are being executed while the others are
    computed. Positions follow cosmos-framework's joint video and action mode.

    Args:
        chunk: Actions to generate, a multiple of 4 (one latent frame per four).
        height: Rows of the latent grid.
        width: Columns of the latent grid.
        fps: Actions and video frames per second.
        domain_id: Embodiment domain of the action heads.
        raw_dim: Channels this embodiment uses.
        state: Whether the row before the first action is the measured state.
        history: Rows of past actions.
        committed: Leading rows of the chunk that are settled already, fewer than `chunk`.
        video: Whether the video is generated too; without it vision is the current frame alone.

    Raises:
        InvalidInput: Listing every fault.
    """
    problems = [] if history >= 0 else [Problem('history', 'is negative', str(history), '0 or more')]
    if not 0 <= committed < max(chunk, 1):
        problems.append(Problem('committed', 'leaves nothing to generate', str(committed), f'0 to {chunk - 1}'))
    _refuse('policy layout', problems)
    given = history + int(state)
    vision = VisionItem(latent_frames(chunk + 1) if video else 1, height, width, fps, clean=(0,))
    action = ActionItem(chunk + given, domain_id, raw_dim, fps, start=1 - given, clean=tuple(range(given + committed)))
    return Layout(vision, action)


def forward_dynamics_layout(*, chunk: int, height: int, width: int, fps: float, domain_id: int, raw_dim: int) -> Layout:
    """The video that `chunk` given actions will cause, from the current frame on; arguments as in `policy_layout`."""
    vision = VisionItem(latent_frames(chunk + 1), height, width, fps, clean=(0,))
    return Layout(vision, ActionItem(chunk, domain_id, raw_dim, fps, clean=tuple(range(chunk))))


def inverse_dynamics_layout(*, chunk: int, height: int, width: int, fps: float, domain_id: int, raw_dim: int) -> Layout:
    """The `chunk` actions that lead through a given clip of `chunk + 1` frames; arguments as in `policy_layout`."""
    frames = latent_frames(chunk + 1)
    vision = VisionItem(frames, height, width, fps, clean=tuple(range(frames)))
    return Layout(vision, ActionItem(chunk, domain_id, raw_dim, fps))


def text_to_video_layout(
    *,
    video_frames: int,
    height: int,
    width: int,
    fps: float,
    clean: tuple[int, ...] = (),
    sound: bool = False,
) -> Layout:
    """A clip from text, continuing whatever latent frames are given.

    Args:
        video_frames: Pixel frames, 4k + 1; one frame is an image.
        height: Rows of the latent grid.
        width: Columns of the latent grid.
        fps: Pixel frames per second.
        clean: Given latent frames: () from text alone, (0,) from an image, (0, 1) from five frames of video.
        sound: Whether to generate the sound track too.

    Raises:
        InvalidInput: Listing every fault.
    """
    vision = VisionItem(latent_frames(video_frames), height, width, fps, clean)
    return Layout(vision, sound=SoundItem(sound_latents(video_frames, fps)) if sound else None)


def _not_positive(**numbers: float) -> Iterable[Problem]:
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            yield Problem(name, 'is not positive', str(value), 'more than 0')


def _bad_clean(clean: tuple[int, ...], count: int) -> Iterable[Problem]:
    """Ascending order is demanded so that equal layouts compare equal."""
    if any(not 0 <= index < count for index in clean):
        yield Problem('clean', 'points outside the item', str(clean), f'0 to {count - 1}')
    if any(later <= earlier for earlier, later in pairwise(clean)):
        yield Problem('clean', 'is not ascending', str(clean), 'each index once, in ascending order')


def _refuse(subject: str, problems: Iterable[Problem]) -> None:
    found = list(problems)
    if found:
        raise InvalidInput(subject, found)
