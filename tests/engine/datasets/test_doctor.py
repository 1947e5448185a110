"""The doctor names what is wrong and where, finds nothing in what is sound, and converts what can be believed."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cosmos3_ros.cli import main
from engine.contract import load_contract
from engine.datasets.adapters import ADAPTERS, detect, schema_names, to_common
from engine.datasets.convert import Order, convert
from engine.datasets.doctor import examine
from engine.datasets.survey import open_episode, survey
from engine.datasets.writer import VIDEO_PATH, DatasetWriter, Feature, Plan
from engine.errors import ContractError, CosmosError, InvalidInput
from engine.evaluation.recordings import open_recording
from engine.evaluation.video import VideoReader
from tests.engine.datasets.sets import (
    CLOSED,
    COLUMNS,
    JOINTS,
    POSE,
    POSE_TARGETS,
    ROWS,
    TARGETS,
    TIMES,
    film,
    make_v2,
    nvidia_sample,
    table,
)

CONTRACT = load_contract('demo_joint_pos')
WAY_OUT = 'cosmos3 dataset convert'


def codes(path: Path, **options) -> set[str]:
    return {one.code for one in examine(path, **options).faults if one.grave}


def common(path: Path, schema: str = '', given: str = ''):
    found = survey(path)
    chosen = detect({*found.columns, *found.cameras}, schema)
    episode = open_episode(found, 0, chosen)
    try:
        return to_common(episode, given)
    finally:
        for held in episode.cameras.values():
            held.close()


@pytest.fixture(scope='module')
def sound(tmp_path_factory) -> Path:
    """A data set of ours without faults; do not change it."""
    folder = tmp_path_factory.mktemp('sound')
    convert(make_v2(folder / 'old'), folder / 'set', Order())
    return folder / 'set'


# ---- The real sample ------------------------------------------------------------------------------------------------


def test_the_droid_sample_as_published_has_its_five_faults_of_layout_and_its_broken_columns(tmp_path, shared_data):
    found = examine(nvidia_sample(tmp_path / 'droid', shared_data))
    told = [(one.code, one.problem.where) for one in found.faults if one.grave]
    layout = ['shape', 'episode_columns', 'path_template', 'video_missing', 'stats']
    assert {code for code, _ in told} == {*layout, 'column', 'instruction'}
    assert [where for code, where in told if code == 'video_missing'] == [
        'observation.image.wrist_image_left',
        'observation.image.exterior_image_1_left',
    ]
    assert [where for code, where in told if code == 'column'] == [
        'observation.state.joint_positions',
        'action.joint_position',
        'observation.state.gripper_position',
    ]
    assert all(one.problem.what and (one.problem.remedy or one.problem.allowed) for one in found.faults)


def test_the_bare_droid_sample_is_examined_and_the_command_says_that_it_is_ill(shared_data, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')
    assert main(['dataset', 'doctor', str(shared_data / 'droid'), '--contract', 'droid_ee_delta']) == 1
    told = capsys.readouterr().out
    for text in ('never changes after row 6 of 722', 'constant, although', 'wrist', 'instruction', '7 faults'):
        assert text in told


def test_the_droid_sample_becomes_a_data_set_without_faults(tmp_path, shared_data):
    made = convert(nvidia_sample(tmp_path / 'droid', shared_data), tmp_path / 'new', Order(instruction='put it away'))
    assert (made.episodes, made.rows) == (1, 722)
    assert codes(tmp_path / 'new') == set()
    video = tmp_path / 'new/videos/observation.images.exterior_2/chunk-000/file-000.mp4'
    assert video.read_bytes() == (shared_data / 'droid/exterior_2.mp4').read_bytes(), 'not encoded again'
    source = pq.read_table(shared_data / 'droid/episode.parquet')
    rows = pq.read_table(tmp_path / 'new/data/chunk-000/file-000.parquet')
    pose = np.array(source['observation.state.cartesian_position'].to_pylist())
    found = np.array(rows['observation.end_effector'].to_pylist())
    np.testing.assert_allclose(found[:, :3], pose[:, :3], atol=1e-6)
    turned = np.abs(np.angle(np.exp(1j * (found[:, 3:] - pose[:, 3:]))))
    assert turned.max() < 1e-5
    assert 'observation.state' not in rows.column_names, 'joints that contradict themselves are not passed on'


# ---- Schemas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('schema', schema_names())
def test_every_schema_gives_the_same_episode(tmp_path, schema):
    found = common(make_v2(tmp_path / 'set', schema))
    assert found.schema == schema
    np.testing.assert_allclose(found.gripper, CLOSED, atol=1e-9)
    np.testing.assert_allclose(found.actions.gripper, CLOSED, atol=1e-9)
    if schema == 'droid_lerobot':
        np.testing.assert_allclose(found.poses[:, :3], POSE[:, :3], atol=1e-9)
        np.testing.assert_allclose(found.actions.poses[:, :3], POSE_TARGETS[:, :3], atol=1e-9)
        return
    np.testing.assert_allclose(found.joints, JOINTS, atol=1e-9)
    np.testing.assert_allclose(found.actions.joints, TARGETS, atol=1e-9)


@pytest.mark.parametrize('schema', schema_names())
def test_a_sound_data_set_has_no_fault_but_its_version(tmp_path, schema):
    assert codes(make_v2(tmp_path / 'set', schema)) == {'version'}
    convert(tmp_path / 'set', tmp_path / 'new', Order())
    assert codes(tmp_path / 'new') == set()
    assert examine(tmp_path / 'new').schema == 'cosmos3_ros'


def test_every_schema_that_is_known_has_an_adapter():
    assert set(ADAPTERS) == set(schema_names())


def test_columns_of_two_schemas_are_refused_with_the_way_out(tmp_path):
    path = make_v2(tmp_path / 'set', changes={'joint_position': JOINTS, 'actions': JOINTS})
    with pytest.raises(InvalidInput, match=r'several schemas.*--schema'):
        examine(path)
    assert examine(path, schema='droid_plus').schema == 'droid_plus'


def test_velocities_that_look_like_positions_are_refused_until_somebody_says_what_they_are(tmp_path):
    path = make_v2(tmp_path / 'set', 'openpi', {'actions': np.hstack([TARGETS, CLOSED[:, None]])})
    with pytest.raises(InvalidInput, match='--actions position'):
        common(path)
    np.testing.assert_allclose(common(path, given='position').actions.joints, TARGETS)


def test_seven_actions_without_names_are_refused_until_somebody_says_what_they_are(tmp_path):
    seven = np.hstack([POSE_TARGETS, CLOSED[:, None]])
    path = make_v2(tmp_path / 'set', 'lerobot_droid', {'action': seven})
    with pytest.raises(InvalidInput, match='--actions cartesian'):
        common(path)
    assert 'ambiguous' in codes(path)
    np.testing.assert_allclose(common(path, given='cartesian').actions.poses[:, :3], POSE_TARGETS[:, :3])


# ---- Single faults --------------------------------------------------------------------------------------------------

SPIKE, WRONG = JOINTS.copy(), JOINTS.copy()
SPIKE[30:, 2] += 0.5
WRONG[10, 3] = np.nan
LATE, SKIP = TIMES.copy(), np.arange(ROWS)
LATE[40:] += 0.05
SKIP[20:] += 3


@pytest.mark.parametrize(
    ('code', 'changes'),
    [
        ('timestamps', {'timestamp': LATE}),
        ('gap', {'frame_index': SKIP}),
        ('not_finite', {'observation.state.joint_positions': WRONG}),
        ('velocity', {'observation.state.joint_positions': SPIKE}),
        ('unit', {'observation.state.joint_positions': np.degrees(JOINTS)}),
        ('unit', {'observation.state.cartesian_position': POSE * 1000}),
        ('gripper_polarity', {'action.gripper_position': 1 - CLOSED}),
        ('column', {'observation.state.gripper_position': 100 * CLOSED}),
        ('quaternion_norm', {'observation.quaternion': np.full((ROWS, 4), 0.7)}),
    ],
)
def test_each_fault_of_the_numbers_is_found_and_nothing_else(tmp_path, code, changes):
    assert codes(make_v2(tmp_path / 'set', changes=changes)) - {'version'} - {'column'} | {code} == {code}
    assert code in codes(tmp_path / 'set')


def test_an_arm_that_is_told_to_stay_and_stays_is_no_fault(tmp_path):
    rng = np.random.default_rng(2)
    state = np.hstack([JOINTS[:1] + 1e-5 * rng.normal(size=(ROWS, 7)), CLOSED[:, None]])
    asked = np.hstack([np.repeat(JOINTS[:1], ROWS, axis=0), CLOSED[:, None]])
    still = {'observation.state': state, 'action': asked, 'observation.end_effector': None}
    assert codes(make_v2(tmp_path / 'still', 'cosmos3_ros', still)) == {'version'}
    moving = {**still, 'observation.state': np.hstack([JOINTS, CLOSED[:, None]])}
    assert 'column' in codes(make_v2(tmp_path / 'moving', 'cosmos3_ros', moving))


def test_a_quaternion_with_the_scalar_in_front_is_found(tmp_path):
    from engine.datasets.adapters import as_poses

    right = as_poses(POSE)[:, 3:]
    assert codes(make_v2(tmp_path / 'right', changes={'observation.quaternion': right})) == {'version'}
    turned = {'observation.quaternion': np.roll(right, 1, axis=1)}
    assert 'quaternion_order' in codes(make_v2(tmp_path / 'turned', changes=turned))


def test_joints_in_another_order_are_beyond_the_robots_range(tmp_path):
    from cosmos3_ros.cli_dataset import _bounds

    path = make_v2(tmp_path / 'set', changes={'observation.state.joint_positions': JOINTS[:, ::-1]})
    assert 'joint_range' in codes(path, contract=CONTRACT, bounds=_bounds(CONTRACT))


def test_a_short_video_and_one_that_cannot_be_decoded_are_found(tmp_path):
    path = make_v2(tmp_path / 'set')
    short, broken = sorted(path.rglob('*.mp4'))[:2]
    film(short, ROWS - 7)
    broken.write_bytes(b'no video')
    found = examine(path)
    assert {'video_length', 'video_damaged'} <= {one.code for one in found.faults}
    (length,) = (one.problem for one in found.faults if one.code == 'video_length')
    assert (length.value, length.allowed) == ('53 frames', '60, as the table has rows')


def test_the_contract_is_told_what_it_would_find(tmp_path):
    path = make_v2(tmp_path / 'set')
    found = examine(path, CONTRACT)
    assert [need.missing for need in found.needs] == [''] * 6
    shutil.rmtree(next(path.glob('videos/*/observation.image.wrist_image_left')))
    needs = {need.name: need.missing for need in examine(path, CONTRACT).needs}
    assert 'no video' in needs['view wrist']
    with pytest.raises(ContractError, match='view wrist'):
        convert(path, tmp_path / 'new', Order(CONTRACT))
    assert not (tmp_path / 'new').exists()


def test_a_converted_data_set_carries_its_contract_and_the_names_of_its_joints(tmp_path):
    text = Path(CONTRACT.source).read_text()
    convert(make_v2(tmp_path / 'set'), tmp_path / 'new', Order(CONTRACT, text))
    assert (tmp_path / 'new/meta/contract.yaml').read_text() == text
    features = json.loads((tmp_path / 'new/meta/info.json').read_text())['features']
    assert features['observation.state']['names'] == [*CONTRACT.robot.joints, 'gripper_closed']
    with open_recording(tmp_path / 'new') as recording:
        assert recording.instruction == 'do it'
        np.testing.assert_allclose(recording.frame(30).joint_positions, JOINTS[30], atol=1e-6)


def test_actions_that_are_not_recorded_are_left_out_unless_those_achieved_are_wanted(tmp_path):
    gone = {'action.joint_position': None, 'action.gripper_position': None}
    path = make_v2(tmp_path / 'set', changes=gone)
    assert 'action' not in convert(path, tmp_path / 'one', Order()).features
    convert(path, tmp_path / 'two', Order(achieved=True))
    rows = pq.read_table(tmp_path / 'two/data/chunk-000/file-000.parquet')
    np.testing.assert_allclose(np.array(rows['action'].to_pylist())[:, :7], TARGETS, atol=1e-6)


def test_what_is_no_data_set_is_refused_with_what_it_looks_like(tmp_path):
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw/trajectory.h5').write_bytes(b'')
    (tmp_path / 'tfds').mkdir()
    tree = {'featuresDict': {'features': {'steps': {'sequence': {'feature': {'tensor': {}}}}}}}
    (tmp_path / 'tfds/features.json').write_text(json.dumps(tree))
    for name, text in (('raw', 'HDF5'), ('tfds', 'steps'), ('nowhere', 'does not exist')):
        with pytest.raises(InvalidInput, match=text):
            examine(tmp_path / name)
    table(tmp_path / 'other/episode.parquet', {'temperature': np.zeros(3)})
    assert main(['dataset', 'doctor', str(tmp_path / 'other')]) == 2


def test_episodes_of_several_processes_are_not_recorded_into_one_data_set(tmp_path, capsys):
    pytest.importorskip('mujoco', reason='the simulator is not installed')
    folders = ['--record', str(tmp_path / 'set'), '-o', str(tmp_path / 'run')]
    assert main(['eval', 'closed-loop', '--episodes', '1', '--workers', '2', *folders]) == 2
    assert 'recorded by one process' in capsys.readouterr().err
    assert not (tmp_path / 'set').exists()


@pytest.mark.parametrize('name', ['info.json', 'stats.json', 'tasks.parquet', 'file-000.parquet', 'file-000.mp4'])
@pytest.mark.parametrize('content', [b'', b'{"a": [1'], ids=['empty', 'damaged'])
def test_a_damaged_file_is_a_fault_and_never_a_breakdown(tmp_path, sound, name, content, capsys):
    shutil.copytree(sound, tmp_path / 'set')
    for file in (tmp_path / 'set').rglob(name):
        file.write_bytes(content)
    assert main(['dataset', 'doctor', str(tmp_path / 'set')]) in (1, 2)
    assert 'Traceback' not in capsys.readouterr().err


# ---- An index that holds anything at all ----------------------------------------------------------------------------


def survives(path: Path, new: Path) -> None:
    """Whatever the doctor and the conversion make of a data set, they say it in words."""
    for attempt in (lambda: examine(path), lambda: convert(path, new, Order(instruction='do it'))):
        with suppress(CosmosError):
            attempt()


@pytest.mark.parametrize('name', ['episodes', 'tasks'])
@pytest.mark.parametrize(
    'line',
    [
        *('[]', 'null', '5', '"x"', '{}', '{"episode_index": null}', '{"episode_index": "x"}'),
        *('{"episode_index": 0, "tasks": 5}', '{"episode_index": [], "tasks": {}}', '{"episode_index": NaN}'),
        *('{"task_index": null, "task": 3}', '{"task_index": 0, "task": null}'),
    ],
)
def test_any_line_of_the_old_index_is_lived_with(tmp_path, name, line):
    path = make_v2(tmp_path / 'set')
    (path / f'meta/{name}.jsonl').write_text(line + '\n')
    assert len(examine(path).cameras) == 3
    assert convert(path, tmp_path / 'new', Order(instruction='do it')).rows == ROWS


@pytest.mark.parametrize(
    'template',
    [
        *(
            '{video_key.foo}/a.mp4',
            '{video_key[x]}',
            '{video_key[0]}',
            '{0}',
            '{',
            '{video_key:d}',
            '{episode_index:q}',
        ),
        *('x' * 5000, '\0', None, 7, [], {'a': 1}),
    ],
)
def test_any_template_of_paths_is_lived_with(tmp_path, template):
    path = make_v2(tmp_path / 'set')
    info = json.loads((path / 'meta/info.json').read_text())
    (path / 'meta/info.json').write_text(json.dumps(info | {'video_path': template}))
    assert len(examine(path).cameras) == 3, 'found by their names'


@pytest.mark.parametrize('absolute', [True, False])
def test_a_template_that_leads_out_of_the_data_set_is_not_followed_and_is_told(tmp_path, absolute):
    path = make_v2(tmp_path / 'set')
    film(tmp_path / 'private.mp4')
    shutil.rmtree(path / 'videos')
    info = json.loads((path / 'meta/info.json').read_text())
    template = str(tmp_path / 'private.mp4') if absolute else 'videos/../../private.mp4'
    (path / 'meta/info.json').write_text(json.dumps(info | {'video_path': template}))
    found = examine(path)
    assert found.cameras == ()
    assert [one for one in found.faults if one.code == 'path_template' and 'leads out' in one.problem.what]


@pytest.mark.parametrize('starts', [('a', 'b'), (None, None), (float('nan'), float('inf')), (True, False)])
def test_a_beginning_that_is_no_number_counts_as_not_told(tmp_path, starts):
    path = two_in_one(tmp_path / 'set', starts)
    assert 'video_shared' in codes(path)


@pytest.mark.parametrize('column', ['episode_index', 'task_index', 'timestamp', 'action.joint_position'])
@pytest.mark.parametrize(
    'cells',
    [[None] * ROWS, ['x'] * ROWS, [[1]] * ROWS, [None], [float('nan')]],
    ids=['no values', 'words', 'lists', 'one without', 'one NaN'],
)
def test_any_cell_of_a_table_is_lived_with(tmp_path, column, cells):
    path = make_v2(tmp_path / 'set')
    shutil.rmtree(path / 'videos')
    file = path / 'data/chunk-000/episode_000000.parquet'
    rows = pq.read_table(file).to_pydict()
    if isinstance(rows[column][0], list) and len(cells) == 1:
        cells = [[*cells, *rows[column][0][1:]]]
    rows[column] = [*cells, *rows[column][len(cells) :]]
    pq.write_table(pa.table(rows), file)
    survives(path, tmp_path / 'new')


def test_a_row_without_a_number_is_of_no_episode(tmp_path):
    path = make_v2(tmp_path / 'set')
    file = path / 'data/chunk-000/episode_000000.parquet'
    rows = pq.read_table(file).to_pydict()
    pq.write_table(
        pa.table(rows | {'episode_index': [*rows['episode_index'][:-1], None], 'task_index': [None] * ROWS}), file
    )
    found = examine(path)
    assert (found.episodes, found.rows) == (1, ROWS - 1)
    assert 'counts' in {one.code for one in found.faults}


# ---- Several episodes in one video ----------------------------------------------------------------------------------


def two_in_one(root: Path, starts: tuple[float | str, float | str] | None) -> Path:
    """A LeRobot v3 data set of two episodes in one table and one video for each camera; `starts` are from the index."""
    make_v2(root)
    info = json.loads((root / 'meta/info.json').read_text())
    info |= {'codebase_version': 'v3.0', 'total_episodes': 2, 'video_path': VIDEO_PATH}
    (root / 'meta/info.json').write_text(json.dumps(info))
    file = root / 'data/chunk-000/episode_000000.parquet'
    rows = pq.read_table(file).to_pydict()
    half = ROWS // 2
    frames = np.tile(np.arange(half), 2)
    rows |= {'episode_index': np.repeat([0, 1], half), 'frame_index': frames, 'timestamp': frames / 15}
    table(file, rows)
    keys = [path.parent.name for path in sorted(root.glob('videos/*/*/*.mp4'))]
    for key in keys:
        film(root / f'videos/{key}/chunk-000/file-000.mp4')
    shutil.rmtree(root / 'videos/chunk-000')
    if starts is not None:
        (root / 'meta/episodes.jsonl').unlink()
        columns = {f'videos/{key}/{name}': [0, 0] for key in keys for name in ('chunk_index', 'file_index')}
        columns |= {f'videos/{key}/from_timestamp': list(starts) for key in keys}
        table(
            root / 'meta/episodes/chunk-000/file-000.parquet',
            {'episode_index': [0, 1], 'length': [half] * 2, **columns},
        )
    return root


def brightness(root: Path, episode: int) -> float:
    """Mean of the first picture of an episode of a data set of ours."""
    reader = VideoReader(root / f'videos/observation.images.wrist/chunk-000/file-{episode:03d}.mp4')
    mean = float(reader.frame(0).mean())
    reader.close()
    return mean


@pytest.mark.parametrize('starts', [None, (0.0, 0.0)], ids=['no index', 'the same beginning'])
def test_no_episode_gets_the_pictures_of_another(tmp_path, starts):
    path = two_in_one(tmp_path / 'set', starts)
    told = [one.problem.where for one in examine(path).faults if one.code == 'video_shared']
    assert len(told) == 3
    assert 'video_missing' not in codes(path)
    made = convert(path, tmp_path / 'new', Order(instruction='do it'))
    assert made.episodes == 2
    assert not [key for key in made.features if 'images' in key]
    assert sum('nothing says where each begins' in note for note in made.left_out) == 3


def test_a_video_of_several_episodes_is_used_where_the_index_says_where_each_begins(tmp_path):
    path = two_in_one(tmp_path / 'set', (0.0, ROWS / 2 / 15))
    assert 'video_shared' not in codes(path)
    convert(path, tmp_path / 'new', Order(instruction='do it'))
    assert abs(brightness(tmp_path / 'new', 0) - 40) < 3
    assert abs(brightness(tmp_path / 'new', 1) - (40 + 3 * ROWS / 2)) < 3


# ---- Damaged videos of some episodes --------------------------------------------------------------------------------


def three(root: Path) -> list[Path]:
    """A LeRobot v2 data set of three episodes; returns the videos of the wrist."""
    make_v2(root)
    (root / 'meta/episodes.jsonl').unlink()
    first = root / 'data/chunk-000/episode_000000.parquet'
    rows = pq.read_table(first).to_pydict()
    videos = sorted(root.glob('videos/chunk-000/*/*.mp4'))
    for number in (1, 2):
        table(first.with_name(f'episode_{number:06d}.parquet'), {**rows, 'episode_index': np.full(ROWS, number)})
        for video in videos:
            shutil.copyfile(video, video.with_name(f'episode_{number:06d}.mp4'))
    return sorted(root.glob('videos/chunk-000/*wrist*/*.mp4'))


def cut_inside(video: Path) -> None:
    """Make the pictures of a video undecodable, and leave its index as it is."""
    data = bytearray(video.read_bytes())
    start = data.index(b'mdat') + 8
    data[start : start + 20_000] = bytes(min(20_000, len(data) - start))
    video.write_bytes(bytes(data))


@pytest.mark.parametrize('number', [0, 1, 2])
@pytest.mark.parametrize('damage', [lambda video: video.write_bytes(b'no video'), cut_inside], ids=['open', 'decode'])
def test_an_episode_with_a_damaged_video_is_left_out_and_named_and_the_others_are_converted(tmp_path, number, damage):
    damage(three(tmp_path / 'set')[number])
    made = convert(tmp_path / 'set', tmp_path / 'new', Order(instruction='do it'))
    assert made.episodes == 2
    assert 'observation.images.wrist' in made.features
    assert [note for note in made.left_out if note.startswith(f'episode {number}: left out')]
    assert codes(tmp_path / 'new') == set()
    assert len(list((tmp_path / 'new').rglob('*.mp4'))) == 6


def test_a_camera_whose_videos_are_all_damaged_is_left_out_and_named(tmp_path):
    for video in three(tmp_path / 'set'):
        video.write_bytes(b'no video')
    made = convert(tmp_path / 'set', tmp_path / 'new', Order(instruction='do it'))
    assert made.episodes == 3
    assert 'observation.images.wrist' not in made.features
    assert 'camera observation.image.wrist_image_left: cannot be decoded' in made.left_out


# ---- The writer -----------------------------------------------------------------------------------------------------

PLAN = Plan(15.0, {'observation.state': Feature(('a', 'b'))}, {'observation.images.main': (16, 24)}, contract='name: x')
PICTURE = {'observation.images.main': np.full((16, 24, 3), 90, np.uint8)}


def add(writer: DatasetWriter, rows: int, task: str = 'do it', *, picture=None, wrong_from: int = 10**9) -> None:
    """An episode; from a row on with another picture, if there is one."""
    with writer.episode(task) as episode:
        for row in range(rows):
            pictures = PICTURE if row < wrong_from else {'observation.images.main': picture}
            episode.add({'observation.state': np.array([row, -row])}, pictures)


def test_an_episode_that_was_not_closed_leaves_nothing(tmp_path):
    writer = DatasetWriter(tmp_path / 'set', PLAN)
    add(writer, 5)
    before = {file: file.read_bytes() for file in (tmp_path / 'set').rglob('*') if file.is_file()}
    with pytest.raises(InvalidInput):
        add(writer, 5, picture=np.zeros((2, 2, 3), np.uint8), wrong_from=3)
    assert {file: file.read_bytes() for file in (tmp_path / 'set').rglob('*') if file.is_file()} == before


def test_a_data_set_goes_on_where_it_stopped_and_its_statistics_are_those_of_all_rows(tmp_path):
    add(DatasetWriter(tmp_path / 'set', PLAN), 5)
    writer = DatasetWriter(tmp_path / 'set', PLAN, go_on=True)
    add(writer, 11, 'do that')
    assert (writer.episodes, writer.frames) == (2, 16)
    values = np.concatenate([np.arange(5), np.arange(11)])
    stats = json.loads((tmp_path / 'set/meta/stats.json').read_text())['observation.state']
    assert stats['count'] == [16]
    np.testing.assert_allclose(stats['mean'], [values.mean(), -values.mean()])
    np.testing.assert_allclose(stats['std'], [values.std()] * 2)
    other = Plan(30.0, PLAN.features, PLAN.cameras, contract='name: y')
    with pytest.raises(InvalidInput, match=r'fps.*another(.|\n)*another contract'):
        DatasetWriter(tmp_path / 'set', other, go_on=True)
    with pytest.raises(InvalidInput, match='not empty'):
        DatasetWriter(tmp_path / 'set', PLAN)


def test_a_data_set_goes_on_only_with_what_it_comes_from(tmp_path):
    origin = {'made_by': 'us', 'policy': 'expert', 'loop': {'latency_s': 0.2}}
    plan = replace(PLAN, origin=origin)
    add(DatasetWriter(tmp_path / 'set', plan), 5)
    assert DatasetWriter(tmp_path / 'set', plan, go_on=True).episodes == 1
    for changed in ({**origin, 'policy': 'random'}, {**origin, 'loop': {'latency_s': 0.0}}, {'made_by': 'us'}):
        before = (tmp_path / 'set/meta/cosmos3.json').read_bytes()
        with pytest.raises(InvalidInput, match=r'cosmos3\.json: (policy|loop): is another'):
            DatasetWriter(tmp_path / 'set', replace(PLAN, origin=changed), go_on=True)
        assert (tmp_path / 'set/meta/cosmos3.json').read_bytes() == before
    (tmp_path / 'set/meta/cosmos3.json').unlink()
    with pytest.raises(InvalidInput, match='policy: is another, got None'):
        DatasetWriter(tmp_path / 'set', plan, go_on=True)


@pytest.mark.parametrize('file', ['meta/info.json', 'meta/episodes/chunk-000/file-000.parquet'])
def test_a_damaged_data_set_is_not_gone_on_with(tmp_path, file):
    add(DatasetWriter(tmp_path / 'set', PLAN), 5)
    (tmp_path / 'set' / file).write_bytes(b'[')
    with pytest.raises(InvalidInput):
        DatasetWriter(tmp_path / 'set', PLAN, go_on=True)


def test_episodes_of_another_policy_are_not_added_to_a_recorded_data_set(tmp_path):
    pytest.importorskip('mujoco', reason='the simulator is not installed')
    from cosmos3_ros.eval_world import Cast
    from cosmos3_ros.recorder_episodes import RecordingRunner

    RecordingRunner(Cast('hold'), tmp_path / 'set').close()
    RecordingRunner(Cast('hold'), tmp_path / 'set').close()
    with pytest.raises(InvalidInput, match='policy: is another, got hold, allowed: random'):
        RecordingRunner(Cast('random'), tmp_path / 'set')
    entry = {'episode_index': [0], 'tasks': [['x']], 'length': [1], 'seed': [3]}
    table(tmp_path / 'set/meta/episodes/chunk-000/file-000.parquet', entry)
    with pytest.raises(InvalidInput, match='episode 0: does not say its suite_task'):
        RecordingRunner(Cast('hold'), tmp_path / 'set')


def test_a_row_that_does_not_fit_is_refused_with_everything_that_is_wrong(tmp_path):
    writer = DatasetWriter(tmp_path / 'set', PLAN)
    with pytest.raises(InvalidInput) as raised, writer.episode('do it') as episode:
        episode.add({'observation.state': np.array([np.nan, 0.0])}, {})
    assert len(raised.value.problems) == 2
    assert set(COLUMNS) == set(schema_names())
