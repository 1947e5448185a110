"""Recorded robot episodes: views, state and instruction of each frame, with what is wrong with them said aloud."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from engine.errors import InvalidInput, Problem
from engine.evaluation.recording_layouts import Camera, Episode, read_episode
from engine.evaluation.recording_signals import VIEWS, Signals, read_signals

Floats = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """One moment of a recording.

    Attributes:
        views: u8 [H, W, 3] RGB by view name; those that the recording has, and those with a stand-in.
        joint_positions: [7] rad, or None if the recording has none that can be believed.
        gripper: Closed fraction, 0 = open, 1 = closed, or None.
        end_effector: Position [3] in m and quaternion [4] (x, y, z, w) in the robot's base frame, or None.
        instruction: Task text; empty if the recording has none.
        timestamp_s: Seconds since the first frame.
    """

    views: Mapping[str, Picture]
    joint_positions: Floats | None
    gripper: float | None
    end_effector: tuple[Floats, Floats] | None
    instruction: str
    timestamp_s: float


class Recording:
    """One recorded episode; made by :func:`open_recording`. For one thread at a time.

    Frames are cheap in ascending order, because videos are decoded in one pass; going back decodes from the start.

    Attributes:
        path: Where it was read from.
        fps: Frames per second.
        length: Number of frames.
        instruction: Task text; empty if there is none.
        views: The views that each frame has.
        missing_views: Those of 'wrist', 'exterior_1', 'exterior_2' that it has not.
        warnings: What is wrong or odd: columns not used and why, views replaced, videos of another length.
    """

    def __init__(self, path: Path, episode: Episode, signals: Signals, stand_ins: Mapping[str, str]) -> None:
        cameras = _cast(episode, stand_ins)
        self.path = path
        self.fps = episode.fps
        self.instruction = episode.instruction
        self.views = tuple(cameras)
        self.missing_views = tuple(view for view in VIEWS if view not in cameras)
        self.length = min([episode.rows, *(camera.length for camera in cameras.values())])
        self.warnings = (*episode.warnings, *_remarks(episode, cameras, stand_ins), *signals.warnings)
        self._signals, self._cameras, self._times = signals, cameras, _times(episode)
        self._to_close = tuple(episode.cameras.values())

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Frame]:
        return (self.frame(index) for index in range(self.length))

    def frame(self, index: int) -> Frame:
        """Frame `index`.

        Raises:
            IndexError: Not within 0 to length - 1.
            CosmosError: A video is damaged at this place.
        """
        if not 0 <= index < self.length:
            raise IndexError(f'{self.path}: frame {index} of {self.length}')
        signals = self._signals
        pose = None
        if signals.positions is not None and signals.quaternions is not None:
            pose = (signals.positions[index], signals.quaternions[index])
        return Frame(
            views={view: camera.frame(index) for view, camera in self._cameras.items()},
            joint_positions=None if signals.joints is None else signals.joints[index],
            gripper=None if signals.gripper is None else float(signals.gripper[index]),
            end_effector=pose,
            instruction=self.instruction,
            timestamp_s=float(self._times[index]),
        )

    def close(self) -> None:
        """Close the videos."""
        for camera in self._to_close:
            camera.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_recording(
    path: str | Path, video_map: Mapping[str, str] | None = None, *, episode: int = 0, instruction: str | None = None
) -> Recording:
    """Open one recorded episode.

    Two layouts are read: a LeRobot v3 data set (a directory with meta/info.json) in any of the four key schemas in
    which DROID is published, and a directory with one .parquet table of the same columns and a video for each view:
    `wrist.mp4`, `exterior_1.mp4`, `exterior_2.mp4`.

    A column that cannot be right (joint positions that are not seven, or that stand still while the arm moves) is left
    out and named in `Recording.warnings`; a view without a video is listed in `Recording.missing_views`.

    Args:
        path: Directory of the recording.
        video_map: For a view that is missing, the camera that shall stand in for it: another view, or a camera by
            its name in the recording. Each such replacement becomes a warning; none is made unasked.
        episode: Which episode of it.
        instruction: Task text to use in place of the recorded one.

    Raises:
        InvalidInput: With every fault that was found.
    """
    root, stand_ins = Path(path), video_map or {}
    problems = [
        Problem('video_map', 'no such view', repr(view), ', '.join(VIEWS)) for view in stand_ins if view not in VIEWS
    ]
    try:
        found = read_episode(root, episode)
    except InvalidInput as error:
        raise InvalidInput(error.subject, [*problems, *error.problems]) from error
    if instruction is not None:
        found = replace(found, instruction=instruction)
    problems += _casting_problems(root, found, stand_ins)
    if problems:
        for camera in found.cameras.values():
            camera.close()
        raise InvalidInput(f'recording {root}', problems)
    return Recording(root, found, read_signals(found.columns, found.schema), stand_ins)


def _own_views(episode: Episode) -> dict[str, Camera]:
    return {view: episode.cameras[name] for view, name in episode.views.items()}


def _casting_problems(root: Path, episode: Episode, stand_ins: Mapping[str, str]) -> list[Problem]:
    available = {**episode.cameras, **_own_views(episode)}
    problems = []
    if not episode.views and not stand_ins:
        names = ', '.join(available) or 'no camera at all'
        remedy = f'name stand-ins in video_map for some of {", ".join(VIEWS)}'
        problems.append(Problem(str(root), 'has no camera of a known name', names, '', remedy))
    for view, source in stand_ins.items():
        where = f'video_map[{view!r}]'
        if view in episode.views:
            remedy = 'stand-ins are for missing views only'
            problems.append(Problem(where, 'the recording has this view itself', '', '', remedy))
        if source not in available:
            problems.append(Problem(where, 'no such camera in the recording', repr(source), ', '.join(available)))
    return problems


def _cast(episode: Episode, stand_ins: Mapping[str, str]) -> dict[str, Camera]:
    """The camera of each view, in the order of the views."""
    own = _own_views(episode)
    available = {**episode.cameras, **own}
    cast = {**own, **{view: available[source] for view, source in stand_ins.items()}}
    return {view: cast[view] for view in VIEWS if view in cast}


def _remarks(episode: Episode, cameras: Mapping[str, Camera], stand_ins: Mapping[str, str]) -> list[str]:
    remarks = [f'view {view} is missing: {source} stands in for it' for view, source in stand_ins.items()]
    remarks += [
        f'view {view} has {camera.length} frames, the table {episode.rows} rows; the shorter counts'
        for view, camera in cameras.items()
        if camera.length != episode.rows
    ]
    used = {id(camera) for camera in cameras.values()}
    spare = (name for name, camera in episode.cameras.items() if id(camera) not in used)
    return remarks + [f'camera {name}: not the name of a view; not used' for name in spare]


def _times(episode: Episode) -> Floats:
    """Seconds since the first row, by the recorded stamps if they are there and grow, else by the frame rate."""
    stamps = episode.columns.get('timestamp')
    if stamps is not None and np.issubdtype(stamps.dtype, np.number):
        seconds = stamps.astype(np.float64).reshape(len(stamps), -1)[:, 0]
        if (np.diff(seconds) > 0).all():
            return np.asarray(seconds - seconds[0])
    return np.arange(episode.rows) / episode.fps
