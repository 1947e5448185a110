"""Data sets for tests: small, sound, and in the words of each schema; and the DROID sample as NVIDIA laid it out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.datasets.adapters import DROID_STEP_RAD
from engine.evaluation.recording_signals import VIEWS
from engine.evaluation.video import VideoWriter

ROWS, FPS = 60, 15
TIMES = np.arange(ROWS) / FPS
# An arm that swings gently, and a hand that closes in the middle.
JOINTS = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.8, 0.8]) + 0.2 * np.sin(TIMES[:, None] + np.arange(7))
TARGETS = np.concatenate([JOINTS[1:], JOINTS[-1:]])
CLOSED = np.clip((TIMES - 1.5) * 2, 0, 1)
POSE = np.hstack([0.4 + 0.05 * np.sin(TIMES)[:, None] * [1, -1, 0.5], 0.3 * np.cos(TIMES)[:, None] * [1, 0.5, -1]])
POSE_TARGETS = np.concatenate([POSE[1:], POSE[-1:]])
GRIP = CLOSED[:, None]
CAMERAS = {
    'droid_plus': 'observation.image.{}_image{}_left',
    'droid_lerobot': 'observation.images.{}_image{}_left',
    'lerobot_droid': 'observation.images.{}{}_left',
    'openpi': '{}_image{}_left',
    'cosmos3_ros': 'observation.images.{}{}',
}
COLUMNS: Mapping[str, Mapping[str, np.ndarray]] = {
    'droid_plus': {
        'observation.state.joint_positions': JOINTS,
        'observation.state.cartesian_position': POSE,
        'observation.state.gripper_position': GRIP,
        'action.joint_position': TARGETS,
        'action.gripper_position': GRIP,
    },
    'droid_lerobot': {
        'observation.state': np.hstack([POSE, 1 - GRIP]),
        'action': np.hstack([POSE_TARGETS, 1 - GRIP]),
    },
    'lerobot_droid': {
        'observation.state': np.hstack([JOINTS, GRIP]),
        'observation.state.joint_position': JOINTS,
        'observation.state.cartesian_position': POSE,
        'action': np.hstack([TARGETS, GRIP]),
    },
    'openpi': {
        'joint_position': JOINTS,
        'gripper_position': GRIP,
        'actions': np.hstack([(TARGETS - JOINTS) / DROID_STEP_RAD, GRIP]),
    },
    'cosmos3_ros': {
        'observation.state': np.hstack([JOINTS, GRIP]),
        'observation.end_effector': POSE,
        'action': np.hstack([TARGETS, GRIP]),
    },
}
"""The same episode in the words of each schema."""


def camera(schema: str, view: str) -> str:
    """Key of a view's camera in a schema."""
    kind, _, number = view.partition('_')
    return CAMERAS[schema].format(kind, f'_{number}' if number else '')


def film(path: Path, frames: int = ROWS, size: tuple[int, int] = (48, 64)) -> None:
    """A video that becomes brighter from frame to frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, FPS, size) as writer:
        for index in range(frames):
            writer.write(np.full((*size, 3), 40 + 3 * index, np.uint8))


def table(path: Path, columns: Mapping[str, Any]) -> None:
    """Save a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: pa.array(np.asarray(v).tolist()) for name, v in columns.items()}), path)


def write_json(path: Path, document: Any) -> None:
    """Save a document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def make_v2(
    root: Path, schema: str = 'droid_plus', changes: Mapping[str, Any] | None = None, words: str = 'do it'
) -> Path:
    """A sound LeRobot v2.1 data set of one episode; `changes` replace columns, or remove those that are None."""
    columns = {**COLUMNS[schema], **_counting(), **(changes or {})}
    columns = {name: values for name, values in columns.items() if values is not None}
    features = {
        name: {'dtype': 'float32', 'shape': [_width(values)], 'names': None} for name, values in columns.items()
    }
    features |= {camera(schema, view): {'dtype': 'video', 'shape': [48, 64, 3], 'names': None} for view in VIEWS}
    info = {
        'codebase_version': 'v2.1',
        'fps': FPS,
        'total_episodes': 1,
        'total_frames': ROWS,
        'chunks_size': 1000,
        'features': features,
        'data_path': 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet',
        'video_path': 'videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4',
    }
    write_json(root / 'meta/info.json', info)
    (root / 'meta/episodes.jsonl').write_text(json.dumps({'episode_index': 0, 'tasks': [words], 'length': ROWS}) + '\n')
    table(root / 'data/chunk-000/episode_000000.parquet', columns)
    for view in VIEWS:
        film(root / f'videos/chunk-000/{camera(schema, view)}/episode_000000.mp4')
    return root


def _counting() -> dict[str, np.ndarray]:
    frames = np.arange(ROWS)
    zeros = np.zeros(ROWS, int)
    return {
        'timestamp': TIMES,
        'frame_index': frames,
        'episode_index': zeros,
        'index': frames,
        'task_index': zeros,
    }


def _width(values: Any) -> int:
    array = np.asarray(values)
    return 1 if array.ndim == 1 else array.shape[1]


def nvidia_sample(root: Path, shared_data: Path) -> Path:
    """The DROID sample with the index that NVIDIA published it with, and one of its three videos."""
    source = shared_data / 'droid'
    cameras = [camera('droid_plus', view) for view in VIEWS]
    columns = pq.read_table(source / 'episode.parquet')
    features: dict[str, Any] = {
        name: {'dtype': 'float32', 'shape': [6] if 'cartesian' in name else [], 'names': None}
        for name in columns.column_names
    }
    features |= {key: {'dtype': 'video', 'shape': [360, 640, 3], 'names': None} for key in cameras}
    info = {
        'codebase_version': 'v3.0',
        'fps': FPS,
        'total_episodes': 1,
        'total_frames': 722,
        'features': features,
        'data_path': 'data/chunk-{episode_chunk:03d}/file-{episode_file:03d}.parquet',
        'video_path': 'videos/{video_key}/chunk-{episode_chunk:03d}/file-{episode_file:03d}.mp4',
    }
    write_json(root / 'meta/info.json', info)
    entry = {'episode_index': [0], 'length': [722], 'tasks': [[' |  | ']], 'dataset_from_index': [0]}
    index = root / 'meta/episodes/chunk-000/file-000.parquet'
    index.parent.mkdir(parents=True)
    pq.write_table(pa.table({**entry, 'dataset_to_index': [722]}), index)
    pq.write_table(pa.table({'task_index': [0], 'task': [' |  | ']}), root / 'meta/tasks.parquet')
    data = root / 'data/chunk-000/file-000.parquet'
    data.parent.mkdir(parents=True)
    data.write_bytes((source / 'episode.parquet').read_bytes())
    video = root / f'videos/{cameras[2]}/chunk-000/file-000.mp4'
    video.parent.mkdir(parents=True)
    video.write_bytes((source / 'exterior_2.mp4').read_bytes())
    return root
