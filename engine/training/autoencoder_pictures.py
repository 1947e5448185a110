"""What an autoencoder is shown while it is trained: frames and clips of a corpus, cut out or whole on their canvas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.contract import Contract
from engine.errors import InvalidInput, Problem
from engine.observation.geometry import LATENT_PIXELS, Canvas, choose_canvas, content_size, fit, latent_crop, sources
from engine.observation.views import split
from engine.training.autoencoder_recipe import AutoencoderRecipe
from engine.training.corpus import Corpus, held_out

Frames = NDArray[np.uint8]
_MEAN_OF = 400
_STEP = LATENT_PIXELS


@dataclass(frozen=True, eq=False)
class Shown:
    """A batch.

    Attributes:
        pixels: Float32 [B, 3, F, H, W] in -1..1, what is encoded.
        grid: Rows and columns of latents that are decoded again; less than there are if there is a canvas.
        counts: Float32 [B, 1, F, h, w], how much each pixel of what is decoded counts; about 1 on average in each view.
    """

    pixels: Tensor
    grid: tuple[int, int]
    counts: Tensor

    @property
    def wanted(self) -> Tensor:
        """What the decoder should make of it, [B, 3, F, h, w]."""
        return self.pixels[..., : self.counts.shape[-2], : self.counts.shape[-1]]


class Pictures:
    """Draws frames and clips. What a batch holds follows from the generator alone."""

    def __init__(self, corpus: Corpus, contract: Contract, recipe: AutoencoderRecipe | None = None) -> None:
        """Prepare.

        Args:
            corpus: Where from.
            contract: Whose pictures they are.
            recipe: How large batches are, and what counts; the usual one by default.

        Raises:
            InvalidInput: The corpus is of another size than the contract, or has one episode only.
        """
        self.corpus, self.recipe = corpus, recipe or AutoencoderRecipe()
        height, width = contract.views.size
        problems = []
        if tuple(corpus.card['size']) != (height, width):
            given = str(corpus.card['size'])
            problems.append(Problem('corpus: size', 'is not that of the contract', given, f'{[height, width]}'))
        if len(corpus.lengths) < 2:
            problems.append(Problem('corpus: episodes', 'are too few', str(len(corpus.lengths)), '2 or more'))
        if problems:
            raise InvalidInput(f'corpus {corpus.root}', problems)
        self.size, self.composition = (height, width), contract.views.composition
        self.canvas = choose_canvas(contract.timing.resolution_tier, height, width)
        self.grid = latent_crop(*content_size(height, width, self.canvas))
        self._kept = held_out(len(corpus.lengths))
        self.mean, self._typical = self._usual()

    def frames(self, *, held: bool, count: int) -> NDArray[np.int64]:
        """At most so many frames, evenly spread over the episodes for validation or the others, int64 [n]."""
        there = np.flatnonzero(self._kept[self.corpus.episode] == held)
        return there[np.unique(np.linspace(0, len(there) - 1, min(count, len(there))).round().astype(np.int64))]

    def starts(self, length: int, *, held: bool, count: int) -> NDArray[np.int64]:
        """The same for clips: frames from which so many frames of one episode follow."""
        there = self._starts(length, held=held)
        if not len(there):
            return there
        return there[np.unique(np.linspace(0, len(there) - 1, min(count, len(there))).round().astype(np.int64))]

    def on_canvas(self, starts: NDArray[np.int64], length: int) -> Tensor:
        """Clips as the policy encodes them, float32 [B, 3, F, H, W] in -1..1."""
        return on_canvas(self._read(starts, length), self.canvas)

    def shown(self, starts: NDArray[np.int64], length: int) -> Frames:
        """Clips as far as the decoder shows them, bytes [B, F, h, w, 3]."""
        frames = self._read(starts, length)
        if content_size(*self.size, self.canvas) != self.size:
            frames = fit(frames, self.canvas).pixels
        return frames[..., : self.grid[0] * _STEP, : self.grid[1] * _STEP, :]

    def draw(self, rng: np.random.Generator, *, whole: bool) -> Shown:
        """A batch for training.

        Args:
            rng: Source of all that is drawn.
            whole: On the canvas, or cut out.
        """
        recipe = self.recipe
        rare = 1.0 / np.array(recipe.clip_frames)
        length = int(rng.choice(recipe.clip_frames, p=rare / rare.sum())) if rng.random() < recipe.clips else 1
        there = self._starts(length, held=False)
        if not len(there):
            length, there = 1, self._starts(1, held=False)
        rows, columns = self.grid[0] * _STEP, self.grid[1] * _STEP
        height, width = (rows, columns) if whole else (min(recipe.crop[0], rows), min(recipe.crop[1], columns))
        batch = max(1, round(recipe.pixels / (height * width * length)))
        starts = rng.choice(there, batch)
        shown = self.shown(starts, length)
        if whole:
            return Shown(self.on_canvas(starts, length), self.grid, self._counts(shown, self.mean, self._typical))
        # Cut out in steps of a latent position: the views lie in the same places in every picture.
        tops, lefts = (self._edges(rng, *sides, batch) for sides in ((rows, height), (columns, width)))
        places = [(slice(y, y + height), slice(x, x + width)) for y, x in zip(tops, lefts, strict=True)]
        frames = np.stack([clip[:, y, x] for clip, (y, x) in zip(shown, places, strict=True)])
        mean = np.stack([self.mean[y, x] for y, x in places])[:, None]
        typical = np.stack([self._typical[y, x] for y, x in places])[:, None]
        return Shown(_unit(frames), (height // _STEP, width // _STEP), self._counts(frames, mean, typical))

    def _counts(self, frames: Frames, mean: Frames, typical: NDArray[np.float32]) -> Tensor:
        """How much the pixels of frames [B, F, h, w, 3] count."""
        return torch.from_numpy(self._raised(frames, mean) / typical)[:, None]

    def _raised(self, frames: Frames, mean: Frames) -> NDArray[np.float32]:
        """More than 1 where frames [..., 3] differ from the mean, [...]."""
        away = np.abs(frames.astype(np.float32) - mean).max(axis=-1) * np.float32(1 / 127.5)
        share = np.minimum(away / self.recipe.contrast_level, 1.0).astype(np.float32)
        raised: NDArray[np.float32] = 1 + np.float32(self.recipe.contrast) * share
        return raised

    @staticmethod
    def _edges(rng: np.random.Generator, whole: int, part: int, count: int) -> NDArray[np.int64]:
        """Where parts begin; as often at an edge as makes what lies there as likely as what lies in the middle."""
        beyond = part // _STEP // 2
        last = (whole - part) // _STEP
        return np.clip(rng.integers(-beyond, last + beyond + 1, count), 0, last) * _STEP

    def _starts(self, length: int, *, held: bool) -> NDArray[np.int64]:
        numbers, episode = self.corpus.numbers['frame'], self.corpus.episode
        fits = numbers + length <= self.corpus.lengths[episode]
        return np.flatnonzero(fits & (self._kept[episode] == held))

    def _read(self, starts: NDArray[np.int64], length: int) -> Frames:
        """[B, F, H, W, 3]."""
        return np.stack([self.corpus.composites[start : start + length] for start in starts])

    def _usual(self) -> tuple[Frames, NDArray[np.float32]]:
        """The mean of the pictures as far as they are shown, [h, w, 3], and what weights are divided by, [h, w].

        The latter makes every view count alike, however small it is and however much of it changes all the time.
        """
        frames = self.shown(self.frames(held=False, count=_MEAN_OF), 1)[:, 0]
        mean = np.round(frames.mean(axis=0)).astype(np.uint8)
        raised = np.mean([self._raised(frame, mean) for frame in frames], axis=0)[..., None]
        typical = np.empty_like(raised)
        tiles = split(typical, self.composition, self.size)
        for view, some in tiles.items():
            alike = len(tiles) * some.size / typical.size
            some[...] = split(raised, self.composition, self.size)[view].mean() * alike
        return mean, typical[..., 0]


def on_canvas(frames: Frames, canvas: Canvas) -> Tensor:
    """Clips in bytes [B, F, H, W, 3] as the policy encodes them, float32 [B, 3, F, H, W] in -1..1."""
    height, width = frames.shape[2:4]
    if content_size(height, width, canvas) != (height, width):
        return _unit(fit(frames, canvas).pixels)
    rows, columns = sources(height, width, canvas)
    return _unit(frames[:, :, rows[:, None], columns[None]])


def _unit(frames: Frames) -> Tensor:
    """Bytes [B, F, H, W, 3] as float32 [B, 3, F, H, W] in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, 1))).float().div_(127.5).sub_(1.0)
