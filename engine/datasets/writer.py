"""Writes data sets in LeRobot's layout (v3.0) that its LeRobotDataset 0.6.1 loads.

Each episode has files of its own, and `meta/` is written anew after each: whatever ends the process, the episodes that
were closed before are a data set. LeRobot's own writer is not used: importing it takes some twenty seconds, and an
episode that it has not finalised cannot be read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engine.datasets.statistics import Stats, as_document, of_pictures, of_rows, sampled_indices, together
from engine.errors import CosmosError, InvalidInput, Problem
from engine.evaluation.video import VideoReader, VideoWriter

Picture = NDArray[np.uint8]

VERSION = 'v3.0'
DATA_PATH = 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
VIDEO_PATH = 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4'
EPISODES_PATH = 'meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
INFO, STATS, TASKS = Path('meta/info.json'), Path('meta/stats.json'), Path('meta/tasks.parquet')
CONTRACT, OWN = Path('meta/contract.yaml'), Path('meta/cosmos3.json')
"""What LeRobot does not read: the contract as it was written, and where the data set comes from."""
FILES_A_CHUNK = 1000
_INDEX_COLUMNS = ('timestamp', 'frame_index', 'episode_index', 'index', 'task_index')


@dataclass(frozen=True)
class Feature:
    """One column of numbers.

    Attributes:
        names: Name of each channel; their number is the width.
        dtype: float32 or float64.
    """

    names: tuple[str, ...]
    dtype: str = 'float32'

    def document(self) -> dict[str, Any]:
        """As `info.json` has it."""
        return {'dtype': self.dtype, 'shape': [len(self.names)], 'names': list(self.names)}


@dataclass(frozen=True)
class Plan:
    """What a data set is to hold.

    Attributes:
        fps: Rows per second.
        features: Columns of numbers by key.
        cameras: Height and width of the pictures of each camera, by key.
        robot: What LeRobot calls robot_type.
        contract: Text of the contract, empty if there is none.
        origin: Where the data set comes from, in plain values.
    """

    fps: float
    features: Mapping[str, Feature]
    cameras: Mapping[str, tuple[int, int]]
    robot: str = 'franka'
    contract: str = ''
    origin: Mapping[str, Any] = field(default_factory=dict)

    def info(self) -> dict[str, Any]:
        """`info.json` of a data set without episodes."""
        rate = int(self.fps) if float(self.fps).is_integer() else self.fps
        cameras = {
            key: {
                'dtype': 'video',
                'shape': [*size, 3],
                'names': ['height', 'width', 'channels'],
                'info': {'video.height': size[0], 'video.width': size[1], 'video.fps': rate, 'video.channels': 3}
                | {'video.is_depth_map': False, 'has_audio': False},
            }
            for key, size in self.cameras.items()
        }
        indices = {
            name: {'dtype': 'float32' if name == 'timestamp' else 'int64', 'shape': [1], 'names': None}
            for name in _INDEX_COLUMNS
        }
        return {
            'codebase_version': VERSION,
            'robot_type': self.robot,
            'fps': rate,
            'total_episodes': 0,
            'total_frames': 0,
            'total_tasks': 0,
            'chunks_size': FILES_A_CHUNK,
            'data_files_size_in_mb': 100,
            'video_files_size_in_mb': 200,
            'splits': {},
            'data_path': DATA_PATH,
            'video_path': VIDEO_PATH if self.cameras else None,
            'features': {**{key: one.document() for key, one in self.features.items()}, **cameras, **indices},
        }


@dataclass
class _Kept:
    """What is known of the episodes that were closed."""

    tasks: dict[str, int] = field(default_factory=dict)
    episodes: int = 0
    frames: int = 0
    stats: dict[str, Stats] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)

    def count(self, stats: Mapping[str, Stats]) -> None:
        """Add an episode's statistics: one by one, or a large data set would spend its time on adding them all up."""
        for key, found in stats.items():
            self.stats[key] = together([self.stats[key], found]) if key in self.stats else found


class DatasetWriter:
    """A data set that grows by whole episodes. For one thread at a time."""

    def __init__(self, root: Path, plan: Plan, *, go_on: bool = False) -> None:
        """Begin a data set, or go on with one.

        Args:
            root: Its folder; must not exist, or be empty, or with `go_on` hold a data set of the same plan.
            plan: What it holds.
            go_on: Whether episodes may be added to what is there.

        Raises:
            InvalidInput: The folder holds something else, or comes from elsewhere; lists every difference.
        """
        self.root, self.plan = root, plan
        self._kept = _Kept()
        if (root / INFO).is_file() and go_on:
            self._take_up()
            return
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            remedy = 'name a folder that does not exist yet'
            raise InvalidInput(f'data set {root}', [Problem(str(root), 'is not empty', remedy=remedy)])
        (root / 'meta').mkdir(parents=True, exist_ok=True)
        if plan.contract:
            (root / CONTRACT).write_text(plan.contract, encoding='utf-8')
        _write_json(root / OWN, dict(plan.origin))
        self._write_meta()

    @property
    def episodes(self) -> int:
        """How many episodes there are."""
        return self._kept.episodes

    @property
    def frames(self) -> int:
        """How many rows all of them have."""
        return self._kept.frames

    @property
    def notes(self) -> tuple[dict[str, Any], ...]:
        """What was noted of each episode."""
        return tuple(self._kept.notes)

    def episode(self, task: str, **notes: str | float | bool) -> EpisodeWriter:
        """Begin an episode; it becomes part of the data set when it is closed.

        Args:
            task: What was asked for.
            notes: Become columns of `meta/episodes`; the same names in every episode.
        """
        return EpisodeWriter(self, task, dict(notes))

    def _take_up(self) -> None:
        info, origin = _document(self.root / INFO), _document(self.root / OWN)
        wanted = json.loads(json.dumps(self.plan.info()))
        remedy = 'name another folder, or ask for the same again'
        problems = [
            Problem(f'{self.root / INFO}: {key}', 'is another', str(info.get(key)), str(wanted[key]), remedy)
            for key in ('codebase_version', 'fps', 'features', 'robot_type')
            if info.get(key) != wanted[key]
        ]
        asked = json.loads(json.dumps(dict(self.plan.origin)))
        problems += [  # episodes of two policies in one data set could not be told apart any more
            Problem(f'{self.root / OWN}: {key}', 'is another', str(origin.get(key)), str(asked.get(key)), remedy)
            for key in dict.fromkeys([*asked, *origin])
            if origin.get(key) != asked.get(key)
        ]
        contract = self.root / CONTRACT
        if self.plan.contract != (contract.read_text(encoding='utf-8') if contract.is_file() else ''):
            problems.append(Problem(str(contract), 'is another contract', remedy=remedy))
        if problems:
            raise InvalidInput(f'data set {self.root}', problems)
        for name in sorted((self.root / 'meta/episodes').glob('*/*.parquet')):
            try:
                self._remember(pq.read_table(name).to_pylist()[0])
            except (OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
                problem = Problem(str(name), 'is no episode of ours', repr(error), remedy='name another folder')
                raise InvalidInput(f'data set {self.root}', [problem]) from error
        self._write_meta()

    def _remember(self, entry: Mapping[str, Any]) -> None:
        kept = self._kept
        kept.episodes, kept.frames = kept.episodes + 1, kept.frames + int(entry['length'])
        kept.tasks.setdefault(entry['tasks'][0], len(kept.tasks))
        stats: dict[str, Stats] = {}
        for name, value in entry.items():
            if name.startswith('stats/'):
                feature, _, key = name.removeprefix('stats/').rpartition('/')
                stats.setdefault(feature, {})[key] = np.asarray(value, np.float64)
        kept.count(stats)
        kept.notes.append({name: value for name, value in entry.items() if '/' not in name})

    def _write_meta(self) -> None:
        kept = self._kept
        info = self.plan.info() | {
            'total_episodes': kept.episodes,
            'total_frames': kept.frames,
            'total_tasks': len(kept.tasks),
            'splits': {'train': f'0:{kept.episodes}'},
        }
        if kept.tasks:
            _write_tasks(self.root / TASKS, kept.tasks)
            _write_json(self.root / STATS, as_document(kept.stats))
        _write_json(self.root / INFO, info)


class EpisodeWriter:
    """One episode under way; leaves nothing unless it is closed."""

    def __init__(self, owner: DatasetWriter, task: str, notes: dict[str, Any]) -> None:
        """Begin; see :meth:`DatasetWriter.episode`."""
        self._owner, self._task, self._notes = owner, task, notes
        index = owner.episodes
        self._place = {'chunk_index': index // FILES_A_CHUNK, 'file_index': index % FILES_A_CHUNK}
        self._rows: dict[str, list[NDArray[np.float64]]] = {key: [] for key in owner.plan.features}
        self._films: dict[str, VideoWriter] = {}
        self._copied: dict[str, Path] = {}
        self._known: dict[str, Stats] = {}

    @property
    def length(self) -> int:
        """Rows so far."""
        return len(next(iter(self._rows.values())))

    def add(self, values: Mapping[str, NDArray[np.float64]], pictures: Mapping[str, Picture]) -> None:
        """Append a row.

        Args:
            values: Of every feature, [width].
            pictures: Of every camera that is not copied, uint8 [H, W, 3] RGB.

        Raises:
            InvalidInput: Something is missing, of another width or size, or not finite; lists every fault.
        """
        if problems := self._row_problems(values, pictures):
            raise InvalidInput(f'row {self.length} of a data set', problems)
        for key in self._rows:
            self._rows[key].append(np.asarray(values[key], np.float64).reshape(-1))
        for key, picture in pictures.items():
            self._film(key).write(picture)

    def copy_video(self, key: str, path: Path, stats: Stats | None = None) -> None:
        """Use a video file as it is, in place of pictures; it must have one frame for each row, at the rate.

        Args:
            key: Of the camera.
            path: The file.
            stats: Of its pictures, from whoever made it; None: they are looked at here.

        Raises:
            InvalidInput: There is no such camera.
        """
        if key not in self._owner.plan.cameras:
            raise InvalidInput('episode', [Problem(key, 'no such camera', '', ', '.join(self._owner.plan.cameras))])
        self._copied[key] = path
        if stats is not None:
            self._known[key] = stats

    def _row_problems(self, values: Mapping[str, Any], pictures: Mapping[str, Picture]) -> list[Problem]:
        plan, problems = self._owner.plan, []
        for key, feature in plan.features.items():
            found = np.asarray(values.get(key, ()), np.float64).reshape(-1)
            if len(found) != len(feature.names):
                problems.append(Problem(key, 'has another width', str(len(found)), str(len(feature.names))))
            elif not np.isfinite(found).all():
                problems.append(Problem(key, 'is not finite', str(found)))
        for key, size in plan.cameras.items():
            if key not in self._copied and (key not in pictures or pictures[key].shape != (*size, 3)):
                value = str(pictures[key].shape) if key in pictures else 'none'
                problems.append(Problem(key, 'picture is missing or of another size', value, str((*size, 3))))
        return problems

    def _film(self, key: str) -> VideoWriter:
        if key not in self._films:
            path = self._owner.root / VIDEO_PATH.format(video_key=key, **self._place)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._films[key] = VideoWriter(path, self._owner.plan.fps, self._owner.plan.cameras[key])
        return self._films[key]

    def close(self) -> None:
        """Make the episode part of the data set; one without rows is dropped.

        Raises:
            CosmosError: A video that was to be copied has another number of frames, or cannot be decoded.
        """
        if not self.length:
            self.discard()
            return
        owner = self._owner
        for film in self._films.values():
            film.close()
        columns = {key: np.stack(rows) for key, rows in self._rows.items()}
        stats = {key: of_rows(values) for key, values in columns.items()} | self._finish_videos()
        task_index = owner._kept.tasks.setdefault(self._task, len(owner._kept.tasks))
        indices = self._indices(task_index)
        stats |= {key: of_rows(values) for key, values in indices.items()}
        self._write_rows(columns, indices)
        entry = self._entry(stats)
        _write_table(owner.root / EPISODES_PATH.format(**self._place), {k: pa.array([v]) for k, v in entry.items()})
        owner._kept.episodes += 1
        owner._kept.frames += self.length
        owner._kept.count(stats)
        owner._kept.notes.append(dict(self._notes))
        owner._write_meta()

    def discard(self) -> None:
        """Forget the episode."""
        for film in self._films.values():
            film.discard()
        self._films.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _finish_videos(self) -> dict[str, Stats]:
        """Put copied videos in their places and look at all; if one cannot be had, none is left behind."""
        try:
            for key, path in self._copied.items():
                self._copy(key, path)
            return self._picture_stats()
        except CosmosError:
            for key in self._owner.plan.cameras:
                (self._owner.root / VIDEO_PATH.format(video_key=key, **self._place)).unlink(missing_ok=True)
            raise

    def _copy(self, key: str, path: Path) -> None:
        reader = VideoReader(path)
        length = reader.length
        reader.close()
        if length != self.length:
            raise InvalidInput('episode', [Problem(str(path), 'has another length', str(length), str(self.length))])
        target = self._owner.root / VIDEO_PATH.format(video_key=key, **self._place)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)

    def _picture_stats(self) -> dict[str, Stats]:
        found = {}
        for key in self._owner.plan.cameras:
            if key in self._known:
                found[key] = self._known[key]
                continue
            reader = VideoReader(self._owner.root / VIDEO_PATH.format(video_key=key, **self._place))
            found[key] = of_pictures([reader.frame(int(index)) for index in sampled_indices(reader.length)])
            reader.close()
        return found

    def _indices(self, task_index: int) -> dict[str, NDArray[np.generic]]:
        count, kept = self.length, self._owner._kept
        frames = np.arange(count, dtype=np.int64)
        return {
            'timestamp': (frames / self._owner.plan.fps).astype(np.float32),
            'frame_index': frames,
            'episode_index': np.full(count, kept.episodes, np.int64),
            'index': frames + kept.frames,
            'task_index': np.full(count, task_index, np.int64),
        }

    def _write_rows(self, columns: Mapping[str, NDArray[Any]], indices: Mapping[str, NDArray[Any]]) -> None:
        arrays: dict[str, pa.Array] = {}
        for key, values in columns.items():
            feature = self._owner.plan.features[key]
            kind = pa.float32() if feature.dtype == 'float32' else pa.float64()
            flat = pa.array(values.astype(feature.dtype).ravel(), kind)
            width = len(feature.names)
            arrays[key] = flat if width == 1 else pa.FixedSizeListArray.from_arrays(flat, width)
        arrays |= {key: pa.array(values) for key, values in indices.items()}
        _write_table(self._owner.root / DATA_PATH.format(**self._place), arrays)

    def _entry(self, stats: Mapping[str, Stats]) -> dict[str, Any]:
        """The episode's row in meta/episodes."""
        kept, entry = self._owner._kept, dict[str, Any]()
        entry |= {'episode_index': kept.episodes, 'tasks': [self._task], 'length': self.length}
        entry |= {f'data/{name}': value for name, value in self._place.items()}
        entry |= {'dataset_from_index': kept.frames, 'dataset_to_index': kept.frames + self.length}
        for key in self._owner.plan.cameras:
            entry |= {f'videos/{key}/{name}': value for name, value in self._place.items()}
            entry |= {f'videos/{key}/from_timestamp': 0.0}
            entry |= {f'videos/{key}/to_timestamp': self.length / self._owner.plan.fps}
        entry |= {f'meta/episodes/{name}': value for name, value in self._place.items()}
        entry |= self._notes
        for key, found in as_document(stats).items():
            entry |= {f'stats/{key}/{name}': value for name, value in found.items()}
        return entry


def _document(path: Path) -> dict[str, Any]:
    """A JSON object, empty if it cannot be read: it then differs from whatever is wanted."""
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, document: Any) -> None:
    beside = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    beside.write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')
    beside.replace(path)


def _write_table(path: Path, arrays: Mapping[str, pa.Array], metadata: Mapping[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    pq.write_table(pa.table(dict(arrays)).replace_schema_metadata(metadata), beside)
    beside.replace(path)


def _write_tasks(path: Path, tasks: Mapping[str, int]) -> None:
    """The table of tasks; LeRobot finds the texts in the index of a pandas frame, so the file says it is one."""
    columns: Sequence[tuple[str, str, str]] = (('task_index', 'int64', 'int64'), ('task', 'unicode', 'object'))
    pandas = {
        'index_columns': ['task'],
        'column_indexes': [],
        'columns': [
            {'name': name, 'field_name': name, 'pandas_type': kind, 'numpy_type': numpy, 'metadata': None}
            for name, kind, numpy in columns
        ],
        'pandas_version': '2.0.0',
    }
    arrays = {'task_index': pa.array(list(tasks.values()), pa.int64()), 'task': pa.array(list(tasks))}
    _write_table(path, arrays, {'pandas': json.dumps(pandas)})
