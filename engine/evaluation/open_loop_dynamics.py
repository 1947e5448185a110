"""How good imagination is: recorded motion in, the recorded video to be held to; and recorded video in, its motion.

A figure of likeness alone says little: a camera that sees a still table is easy to imagine. So the same windows are
held to controls. `ceiling` is the real video, encoded and decoded: the best that any video of this network can be.
`repeat_first` shows the first frame for ever. `other_actions` are imagined for the motion of another window, and
`reversed` for the same motion backwards: a network that listens to its actions does worse with them.

What inverse dynamics finds is compared row by row in physical units, beside the guess that nothing moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.actions import PoseCodec, Poses, inverse
from engine.actions.poses import framewise_deltas, integrate_framewise
from engine.actions.rotations import rotation_distance
from engine.errors import InvalidInput
from engine.evaluation.open_loop_pictures import Frames, psnr, ssim
from engine.evaluation.open_loop_statistics import Tally, Unit, plain
from engine.evaluation.statistics import Proportion

Floats = NDArray[np.float64]
Picture = NDArray[np.uint8]
Tile = tuple[slice, slice]

WHOLE = 'all'
"""Name of the whole picture among its tiles."""
LIKENESS = {'psnr': psnr, 'ssim': ssim}
WRONG = ('other_actions', 'reversed')
BETTER_DB = 0.01
"""A video counts as better than another one from so much on: less is rounding."""
QUANTITIES = {'translation': 'mm', 'rotation': 'deg', 'gripper': 'closed fraction'}
"""What is found of motion, and its units."""


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch of a recording, W + 1 frames.

    Attributes:
        name: Of its episode.
        index: Of its first frame.
        views: Pictures of the first frame by view.
        frames: uint8 [W + 1, H, W, 3], the composed views.
        path: Poses of the end effector, leading shape [W + 1].
        closed: [W] closed fractions that the rows ask for.
        instruction: What was asked for; may be empty.
    """

    name: str
    index: int
    views: Mapping[str, Picture]
    frames: Frames
    path: Poses
    closed: Floats
    instruction: str

    def rows(self, codec: PoseCodec) -> NDArray[np.float32]:
        """The recorded motion, [W, D] in the model's space."""
        return codec.encode_trajectory(self.path, self.closed).astype(np.float32)

    def backwards(self, codec: PoseCodec) -> NDArray[np.float32]:
        """Every step of the motion undone in place of done, [W, D]."""
        path = integrate_framewise(self.path[0], inverse(framewise_deltas(self.path)))
        return codec.encode_trajectory(path, self.closed).astype(np.float32)


class Imaginer(Protocol):
    """Forward and inverse dynamics, of a network or of anything else."""

    @property
    def rows(self) -> int:
        """Rows of a window."""

    @property
    def codec(self) -> PoseCodec:
        """What writes poses as rows."""

    def composite(self, views: Mapping[str, Picture]) -> Picture:
        """The one picture of all views, uint8 [H, W, 3]."""

    def shown(self, frames: Frames) -> Frames:
        """Composed pictures [F, H, W, 3] in the size and cut in which they are imagined."""

    def tiles(self, size: tuple[int, int]) -> Mapping[str, Tile]:
        """Where each view lies in imagined pictures of a size (height, width)."""

    def through_codec(self, frames: Frames) -> Frames | None:
        """Composed pictures encoded and decoded, as imagined ones are shown; None if there is no codec."""

    def imagine(self, window: Window, rows: NDArray[np.float32], seed: int) -> Frames:
        """The video [N + 1, h, w, 3] that rows [N, D] cause from the first frame of a window."""

    def actions(self, window: Window, seed: int) -> NDArray[np.float32]:
        """The rows [W, D] that lead through the frames of a window."""


class DynamicsMeter:
    """Takes windows one after the other, and concludes.

    Attributes:
        windows: How many there were.
        example: Of the window in which the most changes: the real video and all others by who made them, [W, h, w, 3].
    """

    def __init__(self, imaginer: Imaginer, block: int, seed: int = 0) -> None:
        """Begin with nothing.

        Args:
            imaginer: Who imagines.
            block: Frames of a unit of the bootstrap.
            seed: Of the noise.
        """
        self._imaginer, self._block, self._seed = imaginer, block, seed
        self._tally, self.windows = Tally(), 0
        self._wins: dict[str, list[bool]] = {}
        self._tiles: tuple[str, ...] = ()
        self.example: dict[str, Frames] = {}
        self._stillest = np.inf

    def add(self, window: Window, other: NDArray[np.float32] | None) -> dict[str, Any]:
        """Count a window.

        Args:
            window: Which one.
            other: Rows of another window, or None if there is none.
        """
        videos = self._videos(window, other)
        real = self._imaginer.shown(window.frames)[1:]
        unit: Unit = (window.name, window.index // self._block)
        tiles = {WHOLE: (slice(None), slice(None)), **self._imaginer.tiles((real.shape[1], real.shape[2]))}
        line: dict[str, Any] = {'kind': 'dynamics', 'episode': window.name, 'frame': window.index}
        for kind, like in LIKENESS.items():
            found = {
                who: {tile: like(frames[:, *cut], real[:, *cut]) for tile, cut in tiles.items()}
                for who, frames in videos.items()
            }
            for who, by_tile in found.items():
                for tile, values in by_tile.items():
                    self._tally.add(unit, f'{kind}.{who}.{tile}', values)
            line[kind] = {who: plain(by_tile[WHOLE].mean()) for who, by_tile in found.items()}
        for who in WRONG:
            if who in videos:
                self._wins.setdefault(who, []).append(line['psnr']['imagined'] > line['psnr'][who] + BETTER_DB)
        if line['psnr']['repeat_first'] < self._stillest:
            self._stillest, self.example = line['psnr']['repeat_first'], {'real': real, **videos}
        self._tiles, self.windows = tuple(tiles), self.windows + 1
        return line

    def _videos(self, window: Window, other: NDArray[np.float32] | None) -> dict[str, Frames]:
        """What is held to the real video, each [W, h, w, 3] without the first frame."""
        imaginer, codec = self._imaginer, self._imaginer.codec
        shown = imaginer.shown(window.frames)
        found: dict[str, Frames] = {}
        ceiling = imaginer.through_codec(window.frames)
        if ceiling is not None:
            found['ceiling'] = ceiling
        found['imagined'] = imaginer.imagine(window, window.rows(codec), self._seed)
        if other is not None:
            found['other_actions'] = imaginer.imagine(window, other, self._seed)
        found['reversed'] = imaginer.imagine(window, window.backwards(codec), self._seed)
        found['repeat_first'] = np.repeat(shown[:1], len(shown), axis=0)
        return {who: frames[1:] for who, frames in found.items()}

    def conclude(self) -> dict[str, Any]:
        """All figures: likeness by who made the video, by view and by time; and what wrong actions cost."""
        if not self.windows:
            return {}
        who = [
            name for name in ('ceiling', 'imagined', 'repeat_first', *WRONG) if f'psnr.{name}.{WHOLE}' in self._tally
        ]
        return {
            'windows': self.windows,
            'rows': self._imaginer.rows,
            'views': list(self._tiles),
            **{kind: {name: self._likeness(kind, name) for name in who} for kind in LIKENESS},
            'gain': {kind: {name: self._gain(kind, name) for name in who if name != 'imagined'} for kind in LIKENESS},
            'gain_by_view': {
                name: {tile: self._gain_by_frame(name, tile) for tile in self._tiles}
                for name in who
                if name != 'imagined'
            },
            'wrong_is_worse': {name: _proportion(wins) for name, wins in self._wins.items()},
            'intervals': self._tally.how(self._block),
        }

    def _likeness(self, kind: str, who: str) -> dict[str, Any]:
        found = {}
        for tile in self._tiles:
            draws = self._tally.draws(f'{kind}.{who}.{tile}')
            by_frame, mean = self._tally.estimate(draws), self._tally.estimate(draws.mean(axis=-1))
            found[tile] = {'mean': mean.document(), 'by_frame': by_frame.document()}
        return found

    def _gain(self, kind: str, who: str) -> dict[str, Any]:
        """By how much the imagined video is more like the real one than the one of `who`, over all frames."""
        mine, theirs = (self._tally.draws(f'{kind}.{name}.{WHOLE}').mean(axis=-1) for name in ('imagined', who))
        return self._tally.estimate(mine - theirs).document()

    def _gain_by_frame(self, who: str, tile: str) -> dict[str, Any]:
        """The same in dB for each frame and one view, from the same draws."""
        mine, theirs = (self._tally.draws(f'psnr.{name}.{tile}') for name in ('imagined', who))
        return self._tally.estimate(mine - theirs).document()


def _proportion(wins: list[bool]) -> dict[str, Any]:
    found = Proportion(sum(wins), len(wins))
    return {'k': found.hits, 'n': found.trials, 'wilson95': list(found.wilson)}


class InverseMeter:
    """Holds the motion that is found in real videos to the recorded one."""

    def __init__(self, imaginer: Imaginer, block: int, seed: int = 0) -> None:
        """Begin with nothing; see :class:`DynamicsMeter`."""
        self._imaginer, self._block, self._seed = imaginer, block, seed
        self._tally, self.windows, self.unreadable = Tally(), 0, 0

    def add(self, window: Window) -> dict[str, Any]:
        """Count a window. Rows that hold no rotation count as unreadable, and for nothing else."""
        codec, unit = self._imaginer.codec, (window.name, window.index // self._block)
        given = _steps(window.rows(codec), codec)
        line: dict[str, Any] = {'kind': 'inverse', 'episode': window.name, 'frame': window.index}
        self.windows += 1
        still = (
            np.zeros_like(given[0]),
            np.broadcast_to(np.eye(3), given[1].shape),
            np.full_like(given[2], given[2][0]),
        )
        try:
            found = _steps(self._imaginer.actions(window, self._seed), codec)
        except InvalidInput as error:
            self.unreadable += 1
            return line | {'unreadable': '; '.join(map(str, error.problems))}
        for who, motion in (('found', found), ('still', still)):
            apart = _apart(motion, given)
            for name, values in apart.items():
                self._tally.add(unit, f'{who}.{name}', (values**2).mean())
            line[who] = {name: float(np.sqrt((values**2).mean())) for name, values in apart.items()}
        return line

    def conclude(self) -> dict[str, Any]:
        """Root mean squares of what was found and of the guess that nothing moves, in mm, degrees, closed fraction."""
        if not self.windows:
            return {}
        measured = self.unreadable < self.windows
        return {
            'windows': self.windows,
            'unreadable': self.unreadable,
            'units': dict(QUANTITIES),
            'rmse': {who: self._errors(who) for who in ('found', 'still')} if measured else {},
            'intervals': self._tally.how(self._block) if measured else '',
        }

    def _errors(self, who: str) -> dict[str, Any]:
        return {name: self._tally.root(f'{who}.{name}').document() for name in QUANTITIES}


_Steps = tuple[Floats, Floats, Floats]
"""Of each row by itself: translation [W, 3] in m, rotation [W, 3, 3], closed fraction [W]."""


def _steps(rows: NDArray[np.floating], codec: PoseCodec) -> _Steps:
    decoded = [codec.decode(row[None], Poses.identity()) for row in np.asarray(rows, np.float64)]
    grips = np.array([float(one.gripper[0]) if one.gripper.size else 0.0 for one in decoded])
    return (
        np.concatenate([one.poses.position for one in decoded]),
        np.concatenate([one.poses.rotation for one in decoded]),
        grips,
    )


def _apart(first: _Steps, second: _Steps) -> dict[str, Floats]:
    return {
        'translation': 1e3 * np.linalg.norm(first[0] - second[0], axis=-1),
        'rotation': np.degrees(rotation_distance(first[1], second[1])),
        'gripper': np.abs(first[2] - second[2]),
    }
