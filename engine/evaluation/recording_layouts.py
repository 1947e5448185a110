"""Two layouts of recorded episodes on disk: LeRobot data sets (v3), and a state table beside the cameras' videos.

LeRobot's own reader is not used: importing it takes some twenty seconds of processor time, it turns to the network when
a file is missing, and it refuses a whole data set for one missing camera. The layout is plain JSON, Parquet and MP4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.errors import CosmosError, InvalidInput, Problem
from engine.evaluation.recording_signals import VIEWS, Schema, recognise
from engine.evaluation.video import Picture, VideoReader

_INFO = Path('meta/info.json')


class Camera(Protocol):
    """Pictures of one camera by row of the episode."""

    @property
    def length(self) -> int:
        """Number of pictures."""

    def frame(self, index: int) -> Picture:
        """Picture `index`, u8 [H, W, 3] RGB."""

    def close(self) -> None:
        """Free what it holds."""


class StillPictures:
    """A camera whose pictures are stored one by one, each a PNG or JPEG file in a cell of the table."""

    def __init__(self, name: str, cells: list[Mapping[str, Any]]) -> None:
        self._name, self._cells = name, cells

    @property
    def length(self) -> int:
        """Number of pictures."""
        return len(self._cells)

    def frame(self, index: int) -> Picture:
        """Picture `index`, u8 [H, W, 3] RGB."""
        encoded = np.frombuffer(self._cells[index].get('bytes') or b'', np.uint8)
        picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
        if picture is None:
            raise CosmosError(f'{self._name}: picture {index} is missing or damaged')
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)

    def close(self) -> None:
        """Nothing to free."""


@dataclass(frozen=True)
class Episode:
    """One episode as found on disk, nothing judged yet.

    Attributes:
        schema: How its features are named.
        cameras: Every camera by its name in the recording.
        views: Which of those names stands for which view.
        columns: Every numeric column by name, [N] or [N, channels].
        fps: Rows per second.
        instruction: Task text; empty if there is none.
        warnings: What is odd about it.
    """

    schema: Schema
    cameras: dict[str, Camera]
    views: dict[str, str]
    columns: dict[str, npt.NDArray[np.generic]]
    fps: float
    instruction: str
    warnings: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Rows of the state table."""
        return len(next(iter(self.columns.values())))


def read_episode(path: Path, index: int) -> Episode:
    """Episode `index` of the recording in directory `path`, in whichever layout it is.

    Raises:
        InvalidInput: With every fault found.
    """
    if (path / _INFO).is_file():
        return _read_lerobot(path, index)
    if path.is_dir() and any(path.glob('*.parquet')):
        return _read_table(path, index)
    allowed = f'a directory with {_INFO} (LeRobot v3), or with one .parquet table and <view>.mp4 videos'
    value = '' if path.exists() else 'nothing at that place'
    raise InvalidInput(f'recording {path}', [Problem(str(path), 'is no recording', value, allowed)])


# ---- LeRobot v3 -----------------------------------------------------------------------------------------------------


def _read_lerobot(root: Path, index: int) -> Episode:
    info = _lerobot_info(root)
    entry = _lerobot_entry(root, index)
    features: Mapping[str, Mapping[str, Any]] = info['features']
    schema = recognise(features)
    if schema is None:
        raise InvalidInput(f'recording {root}', [_unknown_schema(str(root / _INFO), features)])
    table = _lerobot_rows(root, info, entry, index)
    cameras, warnings = _lerobot_cameras(root, info, entry, table)
    views = {view: key for view, key in schema.cameras.items() if key in cameras}
    columns = _columns(table.drop_columns([name for name in table.column_names if name in cameras]))
    return Episode(
        schema, cameras, views, columns, float(info['fps']), _first_task(entry.get('tasks')), tuple(warnings)
    )


def _lerobot_info(root: Path) -> Mapping[str, Any]:
    try:
        info: Mapping[str, Any] = json.loads((root / _INFO).read_text(encoding='utf-8'))
    except ValueError as error:
        raise InvalidInput(f'recording {root}', [Problem(str(root / _INFO), f'is not JSON ({error})')]) from error
    problems = [
        Problem(str(root / _INFO), f'{key!r} is missing')
        for key in ('codebase_version', 'fps', 'features', 'data_path')
        if key not in info
    ]
    version = str(info.get('codebase_version', 'v3.'))
    if not version.startswith('v3.'):
        remedy = "convert it with LeRobot's own conversion script"
        problems.append(Problem(f'{root / _INFO}: codebase_version', 'unknown layout', version, 'v3.x', remedy))
    if problems:
        raise InvalidInput(f'recording {root}', problems)
    return info


def _lerobot_entry(root: Path, index: int) -> Mapping[str, Any]:
    """What meta/episodes says of episode `index`."""
    files = sorted((root / 'meta' / 'episodes').glob('*/*.parquet'))
    where, damaged = dict[int, Path](), list[Path]()
    for file in files:
        try:
            state = file.stat()
            for episode in _episodes_kept(file, state.st_mtime_ns, state.st_size):
                where.setdefault(episode, file)
        except (OSError, pa.ArrowException):
            damaged.append(file)
    for file in [where[index]] if index in where else damaged:
        found, _ = _read_parquet(file, index)
        if len(found):
            entry: Mapping[str, Any] = found.slice(0, 1).to_pylist()[0]
            return entry
    raise InvalidInput(f'recording {root}', [_no_such_episode(f'{root}/meta/episodes', index, list(where))])


@lru_cache(maxsize=2**16)
def _episodes_kept(file: Path, _time: int, _size: int) -> tuple[int, ...]:
    """Episodes of a file, remembered until it changes: thousands are not to be opened for each of thousands."""
    return tuple(_episodes_in(file))


def _lerobot_rows(root: Path, info: Mapping[str, Any], entry: Mapping[str, Any], index: int) -> pa.Table:
    file = root / _fill(root, info['data_path'], entry, 'data')
    table, _ = _read_parquet(file, index)
    if not len(table):
        raise InvalidInput(f'recording {root}', [Problem(str(file), f'has no rows of episode {index}')])
    return table


def _lerobot_cameras(
    root: Path, info: Mapping[str, Any], entry: Mapping[str, Any], table: pa.Table
) -> tuple[dict[str, Camera], list[str]]:
    """Every camera that can be had, and why the others cannot."""
    cameras: dict[str, Camera] = {}
    warnings = []
    for key, feature in info['features'].items():
        try:
            if feature.get('dtype') == 'video':
                file = root / _fill(root, str(info.get('video_path')), entry, f'videos/{key}', video_key=key)
                start_s = float(entry.get(f'videos/{key}/from_timestamp') or 0.0)
                cameras[key] = VideoReader(file, start_s, len(table))
            elif feature.get('dtype') == 'image' and key in table.column_names:
                cameras[key] = StillPictures(f'{root}: {key}', table[key].to_pylist())
        except InvalidInput as error:
            warnings.append(f'camera {key} cannot be had: {"; ".join(map(str, error.problems))}')
        except CosmosError as error:
            warnings.append(f'camera {key} cannot be had: {error}')
    return cameras, warnings


def _fill(root: Path, template: str, entry: Mapping[str, Any], part: str, **more: str) -> str:
    """Path of the file that holds `part` of an episode."""
    try:
        place = {name: entry[f'{part}/{name}'] for name in ('chunk_index', 'file_index')}
        return template.format(**place, **more)
    except (KeyError, IndexError) as error:
        problem = Problem(
            f'{root}/meta', f'does not say where {part} is', str(error), '', 'see LeRobot v3 meta/episodes'
        )
        raise InvalidInput(f'recording {root}', [problem]) from error


def _first_task(tasks: Any) -> str:
    """The first wording of the task; Cosmos3-DROID keeps several in one text, with bars between."""
    texts = [tasks] if isinstance(tasks, str) else list(tasks or [])
    wordings = (part.strip() for text in texts for part in str(text).split(' | '))
    return next((wording for wording in wordings if wording.strip(' |')), '')


# ---- A table and videos ---------------------------------------------------------------------------------------------


def _read_table(root: Path, index: int) -> Episode:
    tables = sorted(root.glob('*.parquet'))
    if len(tables) > 1:
        names = ', '.join(table.name for table in tables)
        raise InvalidInput(f'recording {root}', [Problem(str(root), 'has several tables', names, 'one .parquet file')])
    table, known = _read_parquet(tables[0], index)
    if not len(table):
        raise InvalidInput(f'recording {root}', [_no_such_episode(str(tables[0]), index, known)])
    columns = _columns(table)
    schema = recognise(columns)
    cameras, problems = _open_videos(root)
    if schema is None:
        problems.append(_unknown_schema(str(tables[0]), columns))
    fps = _rate(columns, cameras)
    if fps is None:
        allowed = "a column 'timestamp' that grows, in seconds, or a video with a frame rate"
        problems.append(Problem(str(root), 'the frame rate is unknown', '', allowed))
    if schema is None or fps is None or problems:
        raise InvalidInput(f'recording {root}', problems)
    views = {view: view for view in VIEWS if view in cameras}
    return Episode(schema, cameras, views, columns, fps, '', ())


def _open_videos(root: Path) -> tuple[dict[str, Camera], list[Problem]]:
    cameras: dict[str, Camera] = {}
    problems = []
    for file in sorted(root.glob('*.mp4')):
        try:
            cameras[file.stem] = VideoReader(file)
        except CosmosError as error:
            problems.append(Problem(str(file), str(error)))
    return cameras, problems


def _rate(columns: Mapping[str, npt.NDArray[np.generic]], cameras: Mapping[str, Camera]) -> float | None:
    """Rows per second by the time stamps, else by the first video."""
    stamps = columns.get('timestamp')
    if stamps is not None and len(stamps) > 1 and np.issubdtype(stamps.dtype, np.number):
        steps = np.diff(stamps.astype(np.float64))
        if (steps > 0).all():
            return round(1.0 / float(np.median(steps)), 3)
    rates = (camera.fps for camera in cameras.values() if isinstance(camera, VideoReader))
    return next((rate for rate in rates if rate > 0), None)


# ---- Both -----------------------------------------------------------------------------------------------------------


def _read_parquet(file: Path, episode: int) -> tuple[pa.Table, list[int]]:
    """Rows of one episode, and the episodes that the file has; without episode numbers, all its rows are episode 0.

    Statistics of whole episodes, which LeRobot keeps beside its index, are passed over.
    """
    try:
        names = [name for name in pq.read_schema(file).names if not name.startswith('stats/')]
        if 'episode_index' not in names:
            table = pq.read_table(file, columns=names)
            return table.slice(0, len(table) if episode == 0 else 0), [0] if len(table) else []
        return pq.read_table(file, columns=names, filters=[('episode_index', '==', episode)]), _episodes_in(file)
    except (OSError, pa.ArrowException) as error:
        raise InvalidInput(f'recording {file}', [Problem(str(file), f'cannot be read as Parquet: {error}')]) from error


def _episodes_in(file: Path) -> list[int]:
    with pq.ParquetFile(file) as table:
        if 'episode_index' not in table.schema_arrow.names:
            return [0] if table.metadata.num_rows else []
        known: list[int] = pc.unique(table.read(columns=['episode_index'])['episode_index']).to_pylist()
        return known


def _columns(table: pa.Table) -> dict[str, npt.NDArray[np.generic]]:
    """Columns as arrays [N] or [N, channels]; one whose rows differ in length becomes an array of objects."""
    columns: dict[str, npt.NDArray[np.generic]] = {}
    for name in table.column_names:
        values = table[name].to_pylist()
        try:
            columns[name] = np.asarray(values)
        except ValueError:
            columns[name] = np.asarray([None] * len(values), object)
    return columns


def _no_such_episode(where: str, index: int, known: list[int]) -> Problem:
    allowed = f'{min(known)} to {max(known)}' if known else 'none, there are no rows'
    return Problem(where, 'no such episode', str(index), allowed)


def _unknown_schema(where: str, keys: Mapping[str, Any]) -> Problem:
    allowed = 'the feature names of NVIDIA droid_plus, NVIDIA droid_lerobot, LeRobot droid_1.0.1 or openpi'
    return Problem(where, 'no feature has a known name', ', '.join(keys), allowed)
