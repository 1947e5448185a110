"""How good an autoencoder is: pictures it was not trained on, there and back, by view, against doing nothing."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.evaluation.open_loop_pictures import LEAST_ERROR
from engine.network.autoencoder import VideoAutoencoder
from engine.network.vae import VideoVae
from engine.observation.views import split
from engine.training.autoencoder_pictures import Frames, Pictures

CLIP = 17
AWAY = 24
"""Levels by which a pixel differs from the mean of all pictures to belong to what is looked for."""


def likeness(
    network: VideoAutoencoder, pictures: Pictures, *, frames: int = 64, clips: int = 12, held: bool = True
) -> dict[str, Any]:
    """PSNR in dB, for all of the picture and each view.

    Args:
        network: Configured with the statistics of its latents or without; they cancel.
        pictures: Where from.
        frames: How many by themselves, at most.
        clips: How many of 17 frames.
        held: From the episodes for validation, or the others.

    Returns:
        `frames` and `clips`, the latter None without a long enough episode; in each `psnr`, and `psnr_of_what_differs`
        over those pixels alone that differ from the mean of all pictures. Of clips all frames count but the first, and
        `control` has the same of the first frame repeated.
    """
    chosen = pictures.frames(held=held, count=frames)
    pairs = [there_and_back(network, pictures, int(start), 1) for start in chosen]
    found: dict[str, Any] = {'frames': {'count': len(pairs), **_figures(pairs, pictures)}, 'clips': None}
    starts = pictures.starts(CLIP, held=held, count=clips)
    if len(starts):
        whole = [there_and_back(network, pictures, int(start), CLIP) for start in starts]
        later = [(real[1:], made[1:]) for real, made in whole]
        still = [(real[1:], np.repeat(real[:1], CLIP - 1, axis=0)) for real, _ in whole]
        control = _figures(still, pictures)
        found['clips'] = {'count': len(whole), **_figures(later, pictures), 'control': control}
    return found


def there_and_back(network: VideoAutoencoder, pictures: Pictures, start: int, length: int) -> tuple[Frames, Frames]:
    """A clip as it was and as it came back."""
    vae, (rows, columns) = VideoVae(network), pictures.grid
    at = np.array([start])
    latents = vae.encode(pictures.on_canvas(at, length)[0])[..., :rows, :columns]
    return pictures.shown(at, length)[0], vae.decode(latents).cpu().numpy()


def _figures(pairs: Sequence[tuple[Frames, Frames]], pictures: Pictures) -> dict[str, dict[str, float]]:
    errors = [np.square(real.astype(np.float32) - made.astype(np.float32)) for real, made in pairs]
    away = [np.abs(real.astype(np.int16) - pictures.mean).max(axis=-1) > AWAY for real, _ in pairs]
    by_view: dict[str, list[float]] = {}
    of_what_differs: dict[str, tuple[float, int]] = {}
    for error, differs in zip(errors, away, strict=True):
        for view, some in _views(error, pictures).items():
            by_view.setdefault(view, []).extend(_decibel(some.mean(axis=(1, 2, 3))).tolist())
        masks = _views(np.repeat(differs[..., None], 3, axis=-1), pictures)
        for view, some in _views(error, pictures).items():
            total, count = of_what_differs.get(view, (0.0, 0))
            of_what_differs[view] = total + float(some[masks[view]].sum()), count + int(masks[view].sum())
    return {
        'psnr': {view: float(np.mean(values)) for view, values in by_view.items()},
        'psnr_of_what_differs': {
            view: float(_decibel(np.array(total / count))) for view, (total, count) in of_what_differs.items() if count
        },
    }


def _views(values: NDArray[Any], pictures: Pictures) -> dict[str, NDArray[Any]]:
    """All of them and each view of frames [F, h, w, 3]."""
    return {'all': values, **split(values, pictures.composition, pictures.size)}


def _decibel(error: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(10 * np.log10(255**2 / np.maximum(np.asarray(error, np.float64), LEAST_ERROR)))


# ---- Pictures -------------------------------------------------------------------------------------------------------


def samples(network: VideoAutoencoder, pictures: Pictures, count: int = 5) -> bytes:
    """A PNG file: frames that were not trained on above what came back and four times the difference; then a clip."""
    columns = [
        _column(*there_and_back(network, pictures, int(start), 1)) for start in pictures.frames(held=True, count=count)
    ]
    starts = pictures.starts(CLIP, held=True, count=3)
    if len(starts):
        real, made = there_and_back(network, pictures, int(starts[len(starts) // 2]), CLIP)
        columns += [_column(real[[at]], made[[at]]) for at in (0, 4, 8, 16)]
    _, encoded = cv2.imencode('.png', cv2.cvtColor(np.hstack(columns), cv2.COLOR_RGB2BGR))
    return encoded.tobytes()


def _column(real: Frames, made: Frames) -> Frames:
    apart = np.clip(128 + 4 * (made[0].astype(np.int16) - real[0].astype(np.int16)), 0, 255).astype(np.uint8)
    column = np.vstack([real[0], made[0], apart])
    return np.pad(column, ((2, 2), (2, 2), (0, 0)), constant_values=255)


def curves(journal: Sequence[Mapping[str, float]]) -> bytes:
    """A PNG file: losses and validations against minutes of training."""
    from matplotlib.figure import Figure

    figure = Figure((9.0, 3.2), layout='constrained')
    left, right = figure.subplots(1, 2)
    for name in ('frames/l1', 'clips/l1', 'frames/edges', 'clips/edges'):
        _plot(left, journal, name, name)
    for name in sorted({key for line in journal for key in line if key.startswith('valid/')}):
        _plot(right, journal, name, name.removeprefix('valid/'))
    left.set(yscale='log', ylabel='loss')
    right.set(ylabel='PSNR [dB], not trained on')
    for axis in (left, right):
        axis.set_xlabel('minutes', fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(color='#e5e5e5')
        if axis.lines:
            axis.legend(fontsize=7, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110)
    return buffer.getvalue()


def _plot(axis: Any, journal: Sequence[Mapping[str, float]], name: str, label: str) -> None:
    points = [(line['seconds'] / 60.0, line[name]) for line in journal if name in line]
    if points:
        axis.plot(*zip(*points, strict=True), lw=1.2, label=label, marker='.' if len(points) < 30 else '')
