"""Faults of a data set's index: what keeps LeRobotDataset 0.6.1 from loading it, and what it would load wrongly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.datasets.faults import Fault, fault, remark
from engine.datasets.survey import INFO, TABLE, V2, Survey, stays_inside
from engine.evaluation.recording_signals import VIEWS, Schema

_CONVERT = 'cosmos3 dataset convert'
_FIELDS = {'data_path': {'chunk_index', 'file_index'}, 'video_path': {'video_key', 'chunk_index', 'file_index'}}
_INDICES = ('dataset_from_index', 'dataset_to_index', 'length', 'tasks', 'data/chunk_index', 'data/file_index')


def layout_faults(found: Survey, schema: Schema) -> Iterator[Fault]:
    """Every fault of the layout."""
    if found.layout == TABLE:
        what = 'is missing: a table and videos are no LeRobot data set'
        yield fault('no_info', str(INFO), what, '', 'LeRobot v3', _CONVERT)
        yield from _missing_views(found, schema)
    else:
        yield from _info_faults(found)
        yield from _index_faults(found)
        yield from _missing_videos(found)
        yield from _count_faults(found)
    yield from _shared_videos(found)
    if found.fps is None:
        yield fault('fps', str(INFO), 'does not say how many rows a second has', str(found.info.get('fps')), 'above 0')
    yield from _task_faults(found)


def _info_faults(found: Survey) -> Iterator[Fault]:
    version = str(found.info.get('codebase_version', 'none'))
    if not version.startswith('v3.'):
        yield fault('version', f'{INFO}: codebase_version', 'is not read by LeRobot 0.6', version, 'v3.0', _CONVERT)
    for key, feature in found.info.get('features', {}).items():
        yield from _feature_faults(found, key, feature)
    if not found.info.get('features'):
        yield fault('features', f'{INFO}: features', 'are missing', '', '', _CONVERT)
    for key in _FIELDS:
        yield from _foreign_template(found, key)
    for key, fields in _FIELDS.items() if found.layout != V2 else ():
        yield from _template_faults(key, str(found.info.get(key, '')), fields, bool(found.cameras))
    if found.layout != V2 and (lacking := _without_statistics(found)):
        what = 'lacks statistics: policies cannot normalise'
        value = f'{len(lacking)} features: {", ".join(lacking[:3])}{", ..." if len(lacking) > 3 else ""}'
        yield fault('stats', 'meta/stats.json', what, value, 'min, max, mean, std of every feature', _CONVERT)


def _without_statistics(found: Survey) -> list[str]:
    """Features that `meta/stats.json` says nothing of."""
    try:
        told = json.loads((found.root / 'meta/stats.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        told = {}
    told = told if isinstance(told, dict) else {}
    needed = [
        key for key, one in found.info['features'].items() if isinstance(one, dict) and one.get('dtype') != 'string'
    ]
    return [key for key in needed if key not in told]


def _feature_faults(found: Survey, key: str, feature: Any) -> Iterator[Fault]:
    where = f'{INFO}: features.{key}'
    if not isinstance(feature, Mapping) or 'dtype' not in feature:
        yield fault('feature', where, 'does not say its dtype', str(feature), 'dtype, shape, names')
        return
    shape = feature.get('shape')
    if not isinstance(shape, list) or not shape:
        yield fault('shape', where, 'has an empty shape', f'shape {shape}', '[1] for a scalar', _CONVERT)
        return
    column = _column(found, key)
    if column is None:
        if feature['dtype'] != 'video':
            yield fault('column', where, 'is declared, and the table has no such column', '', '', _CONVERT)
        return
    width = _width(column)
    if width is not None and shape != [width] and feature['dtype'] not in ('image', 'string'):
        yield fault('width', key, 'is not as wide as declared', f'{width} in the table', f'{shape}', _CONVERT)


def _column(found: Survey, key: str) -> pa.DataType | None:
    schema = pq.read_schema(next(iter(found.episodes.values())).table)
    return schema.field(key).type if key in schema.names else None


def _width(kind: pa.DataType) -> int | None:
    """Channels of a column by its type; None if the type does not say."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    return 1 if pa.types.is_primitive(kind) else None


def _template_faults(key: str, template: str, fields: set[str], cameras: bool) -> Iterator[Fault]:
    if key == 'video_path' and not cameras:
        return
    used = set(re.findall(r'\{(\w+)', template))
    if used != fields:
        allowed = ', '.join(sorted(fields))
        what = 'names other fields than LeRobot v3 fills in'
        yield fault('path_template', f'{INFO}: {key}', what, repr(template), allowed, _CONVERT)


def _foreign_template(found: Survey, key: str) -> Iterator[Fault]:
    template = str(found.info.get(key, ''))
    if not stays_inside(found.root, found.root / template):
        what = 'leads out of the data set: not followed'
        yield fault('path_template', f'{INFO}: {key}', what, repr(template), 'a path within the folder', _CONVERT)


def _index_faults(found: Survey) -> Iterator[Fault]:
    if found.layout == V2:
        return
    if not found.index:
        yield fault('episode_index', 'meta/episodes', 'is missing', '', 'one row for each episode', _CONVERT)
        return
    known = set(next(iter(found.index.values())))
    videos = [key for key in found.cameras if found.info['features'][key].get('dtype') == 'video']
    wanted = [*_INDICES, *(f'videos/{key}/{name}' for key in videos for name in ('chunk_index', 'file_index'))]
    wanted += [f'videos/{key}/from_timestamp' for key in videos]
    missing = [name for name in wanted if name not in known]
    if missing:
        value = f'{len(missing)} columns: {", ".join(missing[:3])}{", ..." if len(missing) > 3 else ""}'
        yield fault('episode_columns', 'meta/episodes', 'lacks columns that say where files are', value, '', _CONVERT)
    unlisted = [number for number in found.episodes if number not in found.index]
    if unlisted:
        yield fault('episode_index', 'meta/episodes', 'lacks episodes that have rows', str(unlisted[:5]), '', _CONVERT)


def _missing_videos(found: Survey) -> Iterator[Fault]:
    for key in found.cameras:
        if found.info['features'][key].get('dtype') != 'video':
            continue
        lacking = [number for number, one in found.episodes.items() if key not in one.videos and key not in one.unclear]
        if lacking:
            what = f'video is missing in {len(lacking)} of {len(found.episodes)} episodes'
            remedy = 'get the files, or leave the camera out: cosmos3 dataset convert does'
            yield Fault('video_missing', fault('', key, what, '', '', remedy).problem, True, len(lacking))


def _shared_videos(found: Survey) -> Iterator[Fault]:
    for key in found.cameras:
        unclear = [number for number, one in found.episodes.items() if key in one.unclear]
        if unclear:
            what = f'one video for several episodes, and nothing says where each begins: {len(unclear)} of them'
            allowed = f'videos/{key}/from_timestamp in meta/episodes'
            remedy = 'say it in the index, or leave the camera out: cosmos3 dataset convert does'
            problem = fault('', key, what, f'episodes {unclear[:5]}', allowed, remedy).problem
            yield Fault('video_shared', problem, True, len(unclear))


def _missing_views(found: Survey, schema: Schema) -> Iterator[Fault]:
    for view in VIEWS:
        if view not in found.cameras and schema.cameras.get(view) not in found.cameras:
            allowed = f'{view}.mp4 beside the table'
            yield fault(
                'video_missing', view, 'camera has no video', '', allowed, 'get the file, or do without the view'
            )


def _count_faults(found: Survey) -> Iterator[Fault]:
    rows = sum(one.rows for one in found.episodes.values())
    for key, counted in (('total_episodes', len(found.episodes)), ('total_frames', rows)):
        told = found.info.get(key)
        if told != counted:
            yield fault('counts', f'{INFO}: {key}', 'is not what the tables hold', str(told), str(counted), _CONVERT)


def _task_faults(found: Survey) -> Iterator[Fault]:
    silent = [number for number, one in found.episodes.items() if not one.task]
    if silent:
        what = f'say nothing in {len(silent)} of {len(found.episodes)} episodes'
        remedy = 'give the text: --instruction'
        problem = fault('', 'instructions', what, '', 'what the robot is to do', remedy).problem
        yield Fault('instruction', problem, True, len(silent))
    file: Path = found.root / 'meta/tasks.parquet'
    if found.layout in (TABLE, V2):
        return
    if not file.is_file():
        yield fault('tasks', 'meta/tasks.parquet', 'is missing', '', 'task and task_index', _CONVERT)
        return
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        yield fault('tasks', 'meta/tasks.parquet', 'cannot be read', str(error), '', _CONVERT)
        return
    texts = [name for name in ('task', '__index_level_0__') if name in table.column_names]
    if 'task_index' not in table.column_names or not texts or not pa.types.is_string(table[texts[0]].type):
        value = ', '.join(f'{field.name}: {field.type}' for field in table.schema)
        what = 'does not give a text for each number'
        yield fault('tasks', 'meta/tasks.parquet', what, value, 'index task: string, task_index: int64', _CONVERT)
    elif b'pandas' not in (table.schema.metadata or {}):
        what = 'keeps the texts in a column: LeRobot takes row numbers for them'
        yield remark('tasks', 'meta/tasks.parquet', what, '', 'a pandas index named task', _CONVERT)
