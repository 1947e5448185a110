"""What lies in a folder that is said to be a data set: its files, episodes and cameras, however broken its index is.

LeRobot data sets of v2 and v3, and a table beside videos, are read. Files are looked for where the index says and,
where it says nothing that can be used, by their names and contents. Nothing is judged here;
:mod:`engine.datasets.layout_checks` holds the index to what a reader needs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engine.errors import CosmosError, InvalidInput, Problem
from engine.evaluation.recording_layouts import Camera, Episode, StillPictures
from engine.evaluation.recording_signals import VIEWS, Schema
from engine.evaluation.video import VideoReader

INFO = Path('meta/info.json')
V3, V2, TABLE = 'LeRobot v3', 'LeRobot v2', 'table and videos'


@dataclass(frozen=True)
class VideoPlace:
    """Where the pictures of one camera and episode are; `start_s` within the file."""

    path: Path
    start_s: float = 0.0
    whole: bool = True
    """Whether the file holds this episode alone."""
    told: bool = False
    """Whether the index says where in the file the episode begins."""


@dataclass(frozen=True)
class EpisodePlace:
    """Where one episode is.

    Attributes:
        index: Its number.
        table: File with its rows.
        rows: How many.
        task: What was asked for; empty if nothing is known.
        videos: By camera.
        unclear: Cameras whose file holds other episodes, too, while nothing says where this one begins in it.
    """

    index: int
    table: Path
    rows: int
    task: str
    videos: Mapping[str, VideoPlace]
    unclear: tuple[str, ...] = ()


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        root: The folder.
        layout: :data:`V3`, :data:`V2` or :data:`TABLE`.
        info: `meta/info.json`, empty if there is none.
        fps: Rows per second, None if nothing says so.
        cameras: Every camera by key, with pictures or not.
        episodes: By number, in order.
        index: What `meta/episodes` says of each episode.
    """

    root: Path
    layout: str
    info: Mapping[str, Any]
    fps: float | None
    cameras: tuple[str, ...]
    episodes: Mapping[int, EpisodePlace]
    index: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of the first episode's table."""
        first = next(iter(self.episodes.values()))
        return tuple(pq.read_schema(first.table).names)

    @property
    def views(self) -> tuple[str, ...]:
        """Cameras that have pictures in every episode."""
        return tuple(key for key in self.cameras if all(key in one.videos for one in self.episodes.values()))


def survey(path: Path) -> Survey:
    """Look at a folder, or at one `.parquet` file.

    Raises:
        InvalidInput: There is nothing, or nothing that can be read here; says what it looks like.
    """
    if (path / INFO).is_file():
        return _lerobot(path)
    tables = [path] if path.suffix == '.parquet' and path.is_file() else sorted(path.glob('*.parquet'))
    if len(tables) == 1:
        return _table(tables[0])
    raise InvalidInput(f'data set {path}', [_unreadable(path, tables)])


def open_episode(found: Survey, index: int, schema: Schema) -> Episode:
    """One episode with its columns and cameras; close the cameras after use.

    Raises:
        InvalidInput: There is no such episode.
    """
    if index not in found.episodes:
        known = ', '.join(map(str, list(found.episodes)[:5]))
        raise InvalidInput(f'data set {found.root}', [Problem('episode', 'does not exist', str(index), known)])
    place = found.episodes[index]
    table = rows_of(place)
    cameras: dict[str, Camera] = {}
    warnings = []
    for key in found.cameras:
        try:
            if key in place.videos:
                video = place.videos[key]
                cameras[key] = VideoReader(video.path, video.start_s, None if video.whole else place.rows)
            elif key in table.column_names:
                cameras[key] = StillPictures(f'{found.root}: {key}', table[key].to_pylist())
        except CosmosError as error:
            warnings.append(f'camera {key} cannot be had: {error}')
    views = {view: key for view, key in schema.cameras.items() if key in cameras}
    views |= {view: view for view in VIEWS if view in cameras}
    fps = found.fps or 0.0
    kept = table.drop_columns([name for name in table.column_names if name in found.cameras])
    return Episode(schema, cameras, views, as_columns(kept), fps, place.task, tuple(warnings))


def rows_of(place: EpisodePlace) -> pa.Table:
    """The rows of one episode."""
    names = pq.read_schema(place.table).names
    filters = [('episode_index', '==', place.index)] if 'episode_index' in names else None
    return pq.read_table(place.table, filters=filters)


def as_columns(table: pa.Table) -> dict[str, NDArray[np.generic]]:
    """Columns as arrays [N] or [N, channels]; one whose rows differ in length becomes an array of objects."""
    columns: dict[str, NDArray[np.generic]] = {}
    for name in table.column_names:
        values = table[name].to_pylist()
        try:
            columns[name] = np.asarray(values)
        except ValueError:
            columns[name] = np.asarray([None] * len(values), object)
    return columns


def _unreadable(path: Path, tables: list[Path]) -> Problem:
    """What a folder is that cannot be read here."""
    allowed = f'a folder with {INFO} (LeRobot v2 or v3), or one .parquet table with .mp4 videos beside it'
    if not path.exists():
        return Problem(str(path), 'does not exist', '', allowed)
    if len(tables) > 1:
        return Problem(str(path), 'holds several tables', ', '.join(file.name for file in tables[:5]), allowed)
    if path.is_dir() and (path / 'trajectory.h5').is_file():
        remedy = "convert it with LeRobot's port_droid.py, then call again"
        return Problem(str(path), 'is a raw DROID episode: HDF5 is not read here', 'trajectory.h5', allowed, remedy)
    if path.is_dir() and (any(path.rglob('*.tfrecord*')) or (path / 'features.json').is_file()):
        value = ', '.join(tfds_features(path)[:8]) or 'no features.json'
        remedy = "convert it with LeRobot's port_droid.py where TensorFlow is installed, then call again"
        return Problem(str(path), 'is a TFDS data set: its records need TensorFlow', value, allowed, remedy)
    inside = sorted(str(file.parent.parent) for file in path.glob('*/meta/info.json')) if path.is_dir() else []
    if inside:
        return Problem(str(path), 'holds several data sets', ', '.join(inside[:5]), 'one of them')
    return Problem(str(path), 'is no data set', '', allowed)


def tfds_features(path: Path) -> list[str]:
    """Names of the features that a TFDS folder says it has."""
    for file in path.rglob('features.json'):
        found: list[str] = []
        _walk(json.loads(file.read_text(encoding='utf-8')), '', found)
        return sorted(found)
    return []


def _walk(node: Any, prefix: str, found: list[str]) -> None:
    """Leaves of the nested features of TFDS."""
    features = node.get('featuresDict', {}).get('features') if isinstance(node, dict) else None
    inner = node.get('sequence', {}).get('feature') if isinstance(node, dict) else None
    if isinstance(features, dict):
        for name, child in features.items():
            _walk(child, f'{prefix}/{name}' if prefix else name, found)
    elif inner is not None:
        _walk(inner, prefix, found)
    elif prefix:
        found.append(prefix)


# ---- LeRobot --------------------------------------------------------------------------------------------------------


def _lerobot(root: Path) -> Survey:
    info = _read_json(root / INFO)
    version = str(info.get('codebase_version', 'v3.0'))
    layout = V2 if version.startswith('v2') else V3
    if not isinstance(features := info.get('features'), dict):
        info['features'] = features = {}
    cameras = tuple(key for key, one in features.items() if isinstance(one, dict) and _pictures(one))
    index = _index(root, layout)
    tasks = _tasks(root)
    places: dict[int, EpisodePlace] = {}
    for table in sorted(root.glob('data/**/*.parquet')):
        for number, rows, task in _episodes_in(table, root):
            entry = index.get(number, {})
            videos = _videos(root, info, cameras, number, entry)
            places[number] = EpisodePlace(number, table, rows, _task(entry, tasks, task), videos)
    if not places:
        raise InvalidInput(f'data set {root}', [Problem(f'{root}/data', 'has no .parquet table with rows')])
    rate = _number(info.get('fps'))
    fps = rate if rate is not None and rate > 0 else None
    alone = _unshared(dict(sorted(places.items())))
    return Survey(root, layout, info, fps, cameras, alone, index)


def _number(value: Any) -> float | None:
    """A value that is said to be a number; None if it is none."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if numeric and math.isfinite(value) else None


def _pictures(feature: Mapping[str, Any]) -> bool:
    return feature.get('dtype') in ('video', 'image')


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, OSError) as error:
        raise InvalidInput(f'data set {path}', [Problem(str(path), 'cannot be read as JSON', str(error))]) from error
    if not isinstance(found, dict):
        raise InvalidInput(f'data set {path}', [Problem(str(path), 'is no JSON object')])
    return found


def _episodes_in(table: Path, root: Path) -> list[tuple[int, int, int | None]]:
    """Number, rows and task index of each episode in a table."""
    try:
        names = pq.read_schema(table).names
        wanted = [name for name in ('episode_index', 'task_index') if name in names]
        columns = pq.read_table(table, columns=wanted or names[:1])
    except (OSError, pa.ArrowException) as error:
        where = str(table.relative_to(root)) if table.is_relative_to(root) else str(table)
        raise InvalidInput(f'data set {root}', [Problem(where, f'cannot be read as Parquet: {error}')]) from error
    numbers = _numbers(columns, 'episode_index') if 'episode_index' in wanted else np.zeros(len(columns))
    tasks = _numbers(columns, 'task_index')
    found = []
    for number in dict.fromkeys(numbers[np.isfinite(numbers)].tolist()):  # a row without a number is of no episode
        own = numbers == number
        task = tasks[own][0]
        found.append((int(number), int(own.sum()), int(task) if np.isfinite(task) else None))
    return found


def _numbers(columns: pa.Table, name: str) -> NDArray[np.float64]:
    """A column of indices; NaN where there is none."""
    kind = columns[name].type if name in columns.column_names else pa.null()
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return np.full(len(columns), np.nan)
    return np.asarray(columns[name], np.float64)


def _index(root: Path, layout: str) -> dict[int, Mapping[str, Any]]:
    """What meta/episodes says, by episode."""
    if layout == V2:
        return _by_number(_lines(root, 'episodes'))
    rows: list[dict[str, Any]] = []
    for file in sorted((root / 'meta' / 'episodes').rglob('*.parquet')):
        try:
            names = [name for name in pq.read_schema(file).names if not name.startswith('stats/')]
            rows += pq.read_table(file, columns=names).to_pylist()
        except (OSError, pa.ArrowException):
            continue  # told by the checks of the layout
    return _by_number(rows)


def _by_number(entries: list[dict[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Entries of an index; one without a number counts by its place, one with an impossible number not at all."""
    numbers = [_number(one.get('episode_index', place)) for place, one in enumerate(entries)]
    return {int(number): one for number, one in zip(numbers, entries, strict=True) if number is not None}


def _lines(root: Path, name: str) -> list[dict[str, Any]]:
    file = root / 'meta' / f'{name}.jsonl'
    if not file.is_file():
        return []
    try:
        lines = [json.loads(line) for line in file.read_text(encoding='utf-8').splitlines() if line.strip()]
        return [line for line in lines if isinstance(line, dict)]
    except ValueError as error:
        raise InvalidInput(f'data set {root}', [Problem(str(file), 'cannot be read', str(error))]) from error


def _tasks(root: Path) -> dict[int, str]:
    """Texts of the tasks by their numbers; whatever cannot be read is left out."""
    file = root / 'meta' / 'tasks.parquet'
    try:
        rows = pq.read_table(file).to_pylist() if file.is_file() else _lines(root, 'tasks')
    except (OSError, pa.ArrowException):
        rows = []  # told by the checks of the layout
    found = {}
    for row in rows:
        text = row.get('task', row.get('__index_level_0__'))
        if isinstance(text, str) and isinstance(row.get('task_index'), int):
            found[int(row['task_index'])] = text
    return found


def _task(entry: Mapping[str, Any], tasks: Mapping[int, str], number: int | None) -> str:
    """The first wording; Cosmos3-DROID keeps several in one text, with bars between."""
    told = entry.get('tasks')
    texts = [told] if isinstance(told, str) else list(told) if isinstance(told, list) else []
    if not texts and number is not None and number in tasks:
        texts = [tasks[number]]
    wordings = (part.strip() for text in texts if isinstance(text, str) for part in text.split(' | '))
    return next((wording for wording in wordings if wording.strip(' |')), '')


def _videos(
    root: Path, info: Mapping[str, Any], cameras: tuple[str, ...], number: int, entry: Mapping[str, Any]
) -> dict[str, VideoPlace]:
    """Where each camera's pictures are: as the index says, else the only file that can be meant."""
    found = {}
    for key in cameras:
        file = _told(root, info, key, number, entry) or _guessed(root, key, number)
        if file is not None:
            start_s = _number(entry.get(f'videos/{key}/from_timestamp'))
            found[key] = VideoPlace(file, start_s or 0.0, told=start_s is not None)
    return found


def _told(root: Path, info: Mapping[str, Any], key: str, number: int, entry: Mapping[str, Any]) -> Path | None:
    """The file that the template of the index means; None if there is none, or if it is not of this data set."""
    size = info.get('chunks_size')
    size = size if isinstance(size, int) and size > 0 else 1000
    place = {'episode_chunk': number // size, 'episode_index': number, 'video_key': key}
    place |= {
        name: entry[f'videos/{key}/{name}'] for name in ('chunk_index', 'file_index') if f'videos/{key}/{name}' in entry
    }
    try:
        file = root / str(info.get('video_path')).format(**place)
        return file if stays_inside(root, file) and file.is_file() else None
    except (KeyError, ValueError, IndexError, AttributeError, TypeError, OSError):
        return None


def stays_inside(root: Path, file: Path) -> bool:
    """Whether a path leads nowhere but into a folder; links inside it are its own affair."""
    return Path(os.path.normpath(file)).is_relative_to(os.path.normpath(root))


def _guessed(root: Path, key: str, number: int) -> Path | None:
    """A file in a folder of the camera's name: that of the episode's number, else the only one there is."""
    files = [file for file in sorted(root.glob('videos/**/*.mp4')) if key in file.parts or file.stem == key]
    numbered = [file for file in files if file.stem == f'episode_{number:06d}']
    if numbered:
        return numbered[0]
    return files[0] if len(files) == 1 else None


def _unshared(places: Mapping[int, EpisodePlace]) -> dict[int, EpisodePlace]:
    """The same, with videos marked that several episodes share, and without those that cannot be told apart."""
    users: dict[Path, list[float | None]] = {}
    for place in places.values():
        for video in place.videos.values():
            users.setdefault(video.path, []).append(video.start_s if video.told else None)
    return {number: _alone(place, users) for number, place in places.items()}


def _alone(place: EpisodePlace, users: Mapping[Path, list[float | None]]) -> EpisodePlace:
    """An episode with the videos that are certainly its own; `users` are the beginnings told for each file."""
    videos, unclear = {}, []
    for key, one in place.videos.items():
        starts = users[one.path]
        if len(starts) > 1 and (not one.told or starts.count(one.start_s) > 1):
            unclear.append(key)
        else:
            videos[key] = replace(one, whole=len(starts) == 1)
    return replace(place, videos=videos, unclear=tuple(unclear))


# ---- A table and videos ---------------------------------------------------------------------------------------------


def _table(table: Path) -> Survey:
    root = table.parent
    videos = {file.stem: file for file in sorted(root.glob('*.mp4'))}
    known = [stem for stem in videos if stem in VIEWS or stem == table.stem]
    cameras = tuple(known or videos)
    places = {
        number: EpisodePlace(number, table, rows, '', {key: VideoPlace(videos[key]) for key in cameras})
        for number, rows, _ in _episodes_in(table, root)
    }
    columns = as_columns(pq.read_table(table, columns=[n for n in pq.read_schema(table).names if n == 'timestamp']))
    fps = _rate_of(columns.get('timestamp')) or _rate_of_video([videos[key] for key in cameras])
    return Survey(root, TABLE, {}, fps, cameras, _unshared(places))


def _rate_of(stamps: NDArray[np.generic] | None) -> float | None:
    if stamps is None or len(stamps) < 2 or not np.issubdtype(stamps.dtype, np.number):
        return None
    steps = np.diff(stamps.astype(np.float64))
    steps = steps[steps > 0]
    return round(1.0 / float(np.median(steps)), 3) if len(steps) else None


def _rate_of_video(files: list[Path]) -> float | None:
    for file in files:
        try:
            reader = VideoReader(file)
        except CosmosError:
            continue
        rate = reader.fps
        reader.close()
        if rate > 0:
            return rate
    return None
