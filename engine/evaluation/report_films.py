"""Films of single episodes: the first success and the first failure of each task, run once more with the cameras on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.evaluation.closed_loop import EpisodeRecord, Runner, World
from engine.evaluation.tasks import Episode
from engine.evaluation.video import VideoWriter, side_by_side

Picture = NDArray[np.uint8]

FPS = 15
_LINGER = 8  # frames of the end
_PREFERRED = ('exterior_1', 'wrist')


@dataclass(frozen=True, eq=False)
class Film:
    """A film of an episode.

    Attributes:
        task: Of the episode.
        seed: Of the episode.
        success: What is to be seen in it.
        path: The file.
        poster: A picture from its middle, JPEG.
    """

    task: str
    seed: int
    success: bool
    path: Path
    poster: bytes

    @property
    def caption(self) -> str:
        """What is to be seen, in words."""
        return f'{self.task}, seed {self.seed}: {"done" if self.success else "not done"}'


def worth_seeing(records: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    """The first success and the first failure of each task."""
    found: dict[tuple[str, bool], EpisodeRecord] = {}
    for one in sorted(records, key=lambda one: one.seed):
        found.setdefault((one.task, one.success), one)
    return sorted(found.values(), key=lambda one: (list(_order(records)).index(one.task), not one.success))


def _order(records: Sequence[EpisodeRecord]) -> dict[str, None]:
    return dict.fromkeys(one.task for one in records)


def make_films(
    runner: Runner, episodes: Mapping[tuple[str, int], Episode], records: Sequence[EpisodeRecord], folder: Path
) -> list[Film]:
    """Run what is worth seeing once more and film it.

    Args:
        runner: Of the same policy as the records, with pictures.
        episodes: By task and seed.
        records: What came of them.
        folder: Where films go; made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_film(runner, episodes[one.key], folder) for one in worth_seeing(records)]


def _film(runner: Runner, episode: Episode, folder: Path) -> Film:
    camera = _Camera(episode)
    record = runner.run(episode, camera)
    frames = camera.frames + camera.frames[-1:] * _LINGER
    path = folder / f'{episode.task}_{episode.seed}.mp4'
    with VideoWriter(path, FPS, (frames[0].shape[0], frames[0].shape[1])) as writer:
        for frame in frames:
            writer.write(frame)
    middle = frames[int(0.6 * len(camera.frames))]
    _, poster = cv2.imencode('.jpg', np.ascontiguousarray(middle[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return Film(episode.task, episode.seed, record.success, path, poster.tobytes())


class _Camera:
    """Takes a picture of two views side by side whenever one is due."""

    def __init__(self, episode: Episode) -> None:
        self._episode, self._due_s = episode, 0.0
        self.frames: list[Picture] = []

    def __call__(self, world: World) -> None:
        """A control period has passed."""
        if world.now_s < self._due_s - 1e-9:
            return
        self._due_s += 1 / FPS
        views = world.seen(True).views
        names = [name for name in _PREFERRED if name in views]
        names += [name for name in views if name not in names]
        chosen = names[:2] * 2  # with one view alone it is shown twice
        # Above the pictures: below them a player has its buttons.
        titles = self._episode.instruction, f'{world.now_s:.1f} s'
        self.frames.append(side_by_side(views[chosen[0]], views[chosen[1]], '', titles))
