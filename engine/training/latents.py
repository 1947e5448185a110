"""A corpus as latents: every frame by itself, as the policy encodes what it sees, and clips, as it imagines them.

    corpus --autoencoder--> first.npy [K, C, h, w], clips.npy [M, C, T, h, w], starts.npy [M], real.npy [M]

Latents are normalised and cut to the cells that the policy denoises. Encoding takes a while, so what was begun goes on
when it is called again; the folder is there when it is complete, and not before.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.contract import Contract
from engine.errors import CosmosError, InvalidInput, Problem
from engine.network.vae import VideoVae
from engine.observation.geometry import choose_canvas, content_size, latent_crop
from engine.training.alone import alone_in
from engine.training.autoencoder_files import autoencoder_fingerprint, load_autoencoder
from engine.training.autoencoder_pictures import on_canvas
from engine.training.corpus import Corpus

VERSION = 1
CARD, BEGUN, DONE = 'latents.json', 'begun.json', 'done.json'
FIRST, CLIPS, STARTS, REAL = 'first.npy', 'clips.npy', 'starts.npy', 'real.npy'
REST_ROWS, REST_RAD, REST_M = 3, 0.01, 0.002
"""An arm is at rest whose joints turn by less in so many rows; or whose hand moves by less, if there are no joints."""
LEAST_REAL = 5
"""A clip shows at least so many frames that were recorded."""
_EVERY = 32  # batches between two notes of how far it is

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Terms:
    """What is encoded, and how.

    Attributes:
        frames: Of a clip, 4 k + 1.
        stride: Frames from the start of a clip to that of the next; 0: no clips.
        every: Of the frames that are encoded by themselves, each so many; neighbours are nearly alike.
        past_the_end: Whether a clip may go on with the last frame behind the end of an episode that ends at rest.
        dtype: Of the autoencoder: float32 or bfloat16.
        device: Where.
        batch: Frames to encode at once, about.
    """

    frames: int = 17
    stride: int = 4
    every: int = 1
    past_the_end: bool = True
    dtype: str = 'float32'
    device: str = 'cpu'
    batch: int = 16

    def __post_init__(self) -> None:
        """Raise InvalidInput if something is out of range; lists every fault."""
        problems = []
        if self.frames < LEAST_REAL or self.frames % 4 != 1:
            problems.append(Problem('frames', 'is no length of a clip', str(self.frames), '4 k + 1, from 5'))
        if self.stride < 0:
            problems.append(Problem('stride', 'is out of range', str(self.stride), '0 or more'))
        if self.every < 1:
            problems.append(Problem('every', 'is out of range', str(self.every), '1 or more'))
        if self.dtype not in ('float32', 'bfloat16'):
            problems.append(Problem('dtype', 'is not known', repr(self.dtype), 'float32, bfloat16'))
        if self.batch < 1:
            problems.append(Problem('batch', 'is out of range', str(self.batch), '1 or more'))
        if problems:
            raise InvalidInput('latents', problems)


@dataclass(frozen=True, eq=False)
class Latents:
    """An encoded corpus of N frames.

    Attributes:
        root: Its folder.
        card: As in `latents.json`.
        first: Float16 [K, C, h, w], frames 0, `every`, 2 `every`, ... by themselves; on disk.
        clips: Float16 [M, C, T, h, w]; on disk.
        starts: [M], the frame with which each clip begins.
        real: [M], how many frames of it were recorded; behind them the last one stays.
    """

    root: Path
    card: Mapping[str, Any]
    first: NDArray[np.float16]
    clips: NDArray[np.float16]
    starts: NDArray[np.int64]
    real: NDArray[np.int64]

    @property
    def every(self) -> int:
        """Frames from one that is encoded by itself to the next."""
        return int(self.card.get('every', 1))


def open_latents(root: Path) -> Latents:
    """Open an encoded corpus.

    Raises:
        InvalidInput: It is none, or not of this version, or damaged.
    """
    try:
        card = json.loads((root / CARD).read_text(encoding='utf-8'))
        first, clips = (np.load(root / name, mmap_mode='r') for name in (FIRST, CLIPS))
        starts, real = (np.load(root / name) for name in (STARTS, REAL))
    except (OSError, ValueError) as error:
        remedy = 'make it with cosmos3 train latents'
        raise InvalidInput(f'latents {root}', [Problem(str(root), 'cannot be read', str(error), '', remedy)]) from error
    if not isinstance(card, dict) or card.get('version') != VERSION or not len(starts) == len(real) == len(clips):
        problem = Problem(str(root), 'is of another version or damaged', remedy='encode the corpus anew')
        raise InvalidInput(f'latents {root}', [problem])
    return Latents(root, card, first, clips, starts, real)


def encode_corpus(
    corpus: Corpus,
    contract: Contract,
    autoencoder: Path,
    output: Path,
    terms: Terms | None = None,
    report: Report | None = None,
) -> Latents:
    """Encode a corpus; what was begun of the same goes on, and what is there already is used.

    Args:
        corpus: What is encoded.
        contract: Whose pictures they are.
        autoencoder: Folder with `vae/`, or that folder.
        output: Folder to make; other latents there are replaced.
        terms: Which clips, and how.
        report: Told what is being done, and the share of it that is done.

    Raises:
        InvalidInput: Corpus and contract do not fit, or the output holds something else.
        CheckpointError: The autoencoder cannot be loaded.
        CosmosError: The disk is full, or another process encodes into the same folder.
    """
    terms = terms or Terms()
    if tuple(corpus.card['size']) != contract.views.size:
        given, allowed = str(corpus.card['size']), str(list(contract.views.size))
        raise InvalidInput('latents', [Problem('corpus: size', 'is not that of the contract', given, allowed)])
    key = {
        'version': VERSION,
        'corpus': corpus.fingerprint,
        'autoencoder': autoencoder_fingerprint(autoencoder),
        'tier': contract.timing.resolution_tier,
        **{name: value for name, value in asdict(terms).items() if name not in ('device', 'batch')},
    }
    if terms.every == 1:  # as of latents that were made when there was no other
        del key['every']
    output = output.absolute()
    if _holds(output, key):
        return open_latents(output)
    encoder = _Encoder(corpus, contract, autoencoder, terms)
    try:
        with _unfinished(output, key) as folder:
            _fill(folder, encoder, report or (lambda _what, _share: None))
            card = {**key, 'frames_of_corpus': len(corpus), 'clips': len(encoder.starts)}
            (folder / CARD).write_text(json.dumps(card, indent=1) + '\n', encoding='utf-8')
            for name in (BEGUN, DONE):
                (folder / name).unlink()
            if output.exists():
                shutil.rmtree(output)
            folder.replace(output)
    except OSError as error:
        raise CosmosError(f'making {output} failed: {error}') from error
    return open_latents(output)


def clip_starts(corpus: Corpus, terms: Terms) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where clips begin, and how many frames of each were recorded, both [M]."""
    starts, real = list[int](), list[int]()
    if terms.stride:
        for first, length in zip(corpus.first, corpus.lengths, strict=True):
            goes_on = terms.past_the_end and at_rest(corpus, int(first + length - 1), int(length))
            least = min(LEAST_REAL, terms.frames) if goes_on else terms.frames
            for at in range(0, int(length) - least + 1, terms.stride):
                starts.append(int(first) + at)
                real.append(min(terms.frames, int(length) - at))
    return np.array(starts, np.int64), np.array(real, np.int64)


def at_rest(corpus: Corpus, frame: int, length: int) -> bool:
    """Whether neither arm nor gripper moves, or is told to, in the rows up to a frame, `length` into its episode."""
    if length <= REST_ROWS:
        return False
    rows = slice(frame - REST_ROWS, frame + 1)
    turns = [np.ptp(corpus.numbers[name][rows], axis=0).max() for name in ('joints', 'commanded')]
    grips = [np.ptp(corpus.numbers[name][rows]) for name in ('gripper', 'commanded_gripper')]
    if any(grip >= REST_RAD for grip in grips):  # what is not a number is not known to move
        return False
    if not np.isnan(turns[0]):
        return bool(np.nanmax(turns) < REST_RAD)
    return bool(np.ptp(corpus.numbers['position'][rows], axis=0).max() < REST_M)


# ---- Encoding -------------------------------------------------------------------------------------------------------


class _Encoder:
    """Batches of a corpus to batches of latents."""

    def __init__(self, corpus: Corpus, contract: Contract, autoencoder: Path, terms: Terms) -> None:
        height, width = contract.views.size
        self.corpus, self.terms = corpus, terms
        self._canvas = choose_canvas(contract.timing.resolution_tier, height, width)
        self.grid = latent_crop(*content_size(height, width, self._canvas))
        dtype = {'float32': torch.float32, 'bfloat16': torch.bfloat16}[terms.dtype]
        loaded = load_autoencoder(autoencoder, terms.device, dtype)
        for weight in loaded.parameters():
            if weight.ndim == 5:  # channels last: faster on processors
                weight.data = weight.data.to(memory_format=torch.channels_last_3d)
        self._vae = VideoVae(loaded)
        self.channels = self._vae.latent_channels
        self.starts, self.real = clip_starts(corpus, terms)
        self.times = (terms.frames - 1) // self._vae.temporal + 1

    def frames(self, at: slice) -> NDArray[np.float16]:
        """Latents [B, C, h, w] of frames by themselves, counted as those that are encoded."""
        every = self.terms.every
        frames = self.corpus.composites[at.start * every : at.stop * every : every]
        return self._encode(frames[:, None])[:, :, 0]

    def clips(self, at: slice) -> NDArray[np.float16]:
        """Latents [B, C, T, h, w] of clips."""
        ahead = np.arange(self.terms.frames)
        numbers = self.starts[at, None] + np.minimum(ahead, self.real[at, None] - 1)
        return self._encode(self.corpus.composites[numbers])

    @torch.inference_mode()
    def _encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float16]:
        """As :meth:`engine.network.vae.VideoVae.encode` does it, for several clips [B, F, H, W, 3] at once."""
        vae, (rows, columns) = self._vae, self.grid
        pixels: Tensor = on_canvas(frames, self._canvas).to(vae.device, vae.dtype, memory_format=torch.channels_last_3d)
        mean, inverse_std = vae.statistics
        latents = (vae.autoencoder.encode(pixels)[:, : self.channels] - mean) * inverse_std
        return np.asarray(latents[..., :rows, :columns].to('cpu', torch.float16).numpy())


def _fill(folder: Path, encoder: _Encoder, tell: Report) -> None:
    """Encode what is missing in an unfinished folder."""
    np.save(folder / STARTS, encoder.starts)
    np.save(folder / REAL, encoder.real)
    done = json.loads((folder / DONE).read_text(encoding='utf-8'))
    count, grid, frames = -(-len(encoder.corpus) // encoder.terms.every), encoder.grid, encoder.terms.frames
    parts = (
        (FIRST, 'frames', (count, encoder.channels, *grid), encoder.frames, encoder.terms.batch),
        (CLIPS, 'clips', (len(encoder.starts), encoder.channels, encoder.times, *grid), encoder.clips,
         max(1, encoder.terms.batch // frames)),
    )  # fmt: skip
    for name, what, shape, encode, batch in parts:
        array = _array(folder / name, shape, fresh=name not in done)
        tell(what, 0.0)
        for number, at in enumerate(range(done.get(name, 0), shape[0], batch), start=1):
            some = slice(at, min(at + batch, shape[0]))
            array[some] = encode(some)
            tell(what, some.stop / shape[0])
            if number % _EVERY == 0 or some.stop == shape[0]:
                done[name] = some.stop
                if isinstance(array, np.memmap):
                    array.flush()
                _note(folder / DONE, done)
        tell(what, 1.0)


def _array(path: Path, shape: tuple[int, ...], *, fresh: bool) -> NDArray[np.float16]:
    if not shape[0]:  # nothing can be mapped
        np.save(path, np.zeros(shape, np.float16))
        return np.zeros(shape, np.float16)
    if fresh:
        return np.lib.format.open_memmap(path, 'w+', np.float16, shape)
    return np.lib.format.open_memmap(path, 'r+')


# ---- Folders --------------------------------------------------------------------------------------------------------


def _holds(output: Path, key: Mapping[str, Any]) -> bool:
    """Whether exactly these latents are there.

    Raises:
        InvalidInput: Something else is.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    card = _document(output / CARD)
    if not card:
        remedy = 'name a folder that is not there yet'
        raise InvalidInput('output', [Problem(str(output), 'holds something else', remedy=remedy)])
    return all(card.get(name) == value for name, value in key.items()) and card.get('every', 1) == key.get('every', 1)


@contextmanager
def _unfinished(output: Path, key: Mapping[str, Any]) -> Iterator[Path]:
    """The folder beside the output in which it grows: what was begun of the same, or a new one."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.with_name(f'.{output.name}.unfinished')
    folder.mkdir(exist_ok=True)
    with alone_in(folder, f'making {output}'):
        if _document(folder / BEGUN) != dict(key):
            for path in folder.iterdir():
                path.unlink()
            _note(folder / DONE, {})
            _note(folder / BEGUN, key)
        yield folder


def _document(path: Path) -> dict[str, Any]:
    """A JSON object, empty if it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _note(path: Path, document: Mapping[str, Any]) -> None:
    unfinished = path.with_name(f'.{path.name}')
    unfinished.write_text(json.dumps(document), encoding='utf-8')
    os.replace(unfinished, path)
