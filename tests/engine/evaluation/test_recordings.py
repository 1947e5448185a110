"""Recordings give what can be believed, say what cannot, and make up nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial.transform import Rotation

from engine.errors import CosmosError, InvalidInput
from engine.evaluation.recording_signals import SCHEMAS
from engine.evaluation.recordings import open_recording
from engine.evaluation.video import VideoReader, VideoWriter

ROWS = 20
GENERATOR = np.random.default_rng(5)
JOINTS = GENERATOR.uniform(-2, 2, (ROWS, 7))
POSE = GENERATOR.uniform(-1, 1, (ROWS, 6))
CLOSED = np.linspace(0, 1, ROWS)
SHADES = {'wrist': 40, 'exterior_1': 110, 'exterior_2': 180}


def film(path: Path, shade: int, frames: int = ROWS) -> None:
    """A video of plain grey; each frame is one shade brighter than the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, 15, (16, 24)) as writer:
        for index in range(frames):
            writer.write(np.full((16, 24, 3), shade + index, np.uint8))


def shade(picture: np.ndarray) -> float:
    return float(picture.mean())


def save(path: Path, columns: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: pa.array(np.asarray(v).tolist()) for name, v in columns.items()}), path)


def table_columns() -> dict[str, np.ndarray]:
    return {
        'timestamp': np.arange(ROWS) / 15,
        'observation.state.cartesian_position': POSE,
        'observation.state.joint_positions': JOINTS,
        'observation.state.gripper_position': CLOSED,
        'action.gripper_position': CLOSED,
    }


def make_table(root: Path, views: tuple[str, ...] = tuple(SHADES), frames: int = ROWS, **changes) -> Path:
    """A directory of the table-and-videos layout; `changes` replace columns by the part of their name given."""
    columns = table_columns()
    for part, values in changes.items():
        columns[next(name for name in columns if part in name)] = values
    save(root / 'episode.parquet', columns)
    for view in views:
        film(root / f'{view}.mp4', SHADES[view], frames)
    return root


def schema_columns(name: str) -> dict[str, np.ndarray]:
    """The same episode in the words of each schema."""
    grip = CLOSED[:, None]
    return {
        'NVIDIA droid_plus (Cosmos3-DROID)': {
            'observation.state.joint_positions': JOINTS,
            'observation.state.cartesian_position': POSE,
            'observation.state.gripper_position': CLOSED,
            'action.joint_position': JOINTS,
            'action.gripper_position': CLOSED,
        },
        'NVIDIA droid_lerobot': {'observation.state': POSE, 'action': np.hstack([POSE, 1 - grip])},
        'LeRobot droid_1.0.1': {
            'observation.state': np.hstack([JOINTS, grip]),
            'observation.state.cartesian_position': POSE,
            'action': np.hstack([JOINTS, grip]),
        },
        'openpi': {'joint_position': JOINTS, 'gripper_position': grip, 'actions': np.hstack([JOINTS, grip])},
        'cosmos3_ros': {
            'observation.state': np.hstack([JOINTS, grip]),
            'observation.end_effector': POSE,
            'action': np.hstack([JOINTS, grip]),
        },
    }[name]


def make_lerobot(root: Path, schema, tasks=('put the cube in the bowl',), cameras=None) -> Path:
    """A LeRobot v3 data set of one episode, as small as it can be."""
    cameras = schema.cameras if cameras is None else cameras
    columns = schema_columns(schema.name)
    features = {name: {'dtype': 'float32', 'shape': list(values.shape[1:])} for name, values in columns.items()}
    features |= {key: {'dtype': 'video', 'shape': [16, 24, 3]} for key in schema.cameras.values()}
    info = {
        'codebase_version': 'v3.0',
        'fps': 15,
        'features': features,
        'data_path': 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet',
        'video_path': 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4',
    }
    (root / 'meta').mkdir(parents=True)
    (root / 'meta/info.json').write_text(json.dumps(info))
    entry = {'episode_index': [0], 'length': [ROWS], 'tasks': [list(tasks)]}
    for part in ('data', *(f'videos/{key}' for key in schema.cameras.values())):
        entry |= {f'{part}/chunk_index': [0], f'{part}/file_index': [0]}
    pq_path = root / 'meta/episodes/chunk-000/file-000.parquet'
    pq_path.parent.mkdir(parents=True)
    pq.write_table(pa.table(entry), pq_path)
    save(root / 'data/chunk-000/file-000.parquet', columns | {'episode_index': np.zeros(ROWS, int)})
    for view, key in cameras.items():
        film(root / f'videos/{key}/chunk-000/file-000.mp4', SHADES[view])
    return root


# ---- The real DROID sample ------------------------------------------------------------------------------------------


@pytest.fixture
def droid(shared_data: Path):
    with open_recording(shared_data / 'droid') as recording:
        yield recording


def test_the_droid_sample_has_722_frames_at_15_hz_and_one_view(droid):
    assert len(droid) == droid.length == 722
    assert droid.fps == 15.0
    assert droid.views == ('exterior_2',)
    assert droid.missing_views == ('wrist', 'exterior_1')
    assert droid.frame(0).views['exterior_2'].shape == (360, 640, 3)
    assert 'camera robolab_example_rollout: not the name of a view; not used' in droid.warnings


def test_the_broken_columns_of_the_droid_sample_are_named_and_not_used(droid):
    for column in ('observation.state.joint_positions', 'action.joint_position'):
        assert sum(text.startswith(f'{column}:') and text.endswith('not used') for text in droid.warnings) == 1
    assert any(text.startswith('observation.state.gripper_position: constant') for text in droid.warnings)
    assert all(droid.frame(index).joint_positions is None for index in (0, 1, 400))


def test_the_poses_and_gripper_of_the_droid_sample_are_those_of_its_table(droid, shared_data):
    table = pq.read_table(shared_data / 'droid/episode.parquet')
    pose = np.array(table['observation.state.cartesian_position'].to_pylist())
    closed = table['action.gripper_position'].to_numpy()
    for index in (0, 123, 124, 400):
        frame = droid.frame(index)
        position, quaternion = frame.end_effector
        np.testing.assert_allclose(position, pose[index, :3], atol=1e-12)
        expected = Rotation.from_euler('xyz', pose[index, 3:])
        assert (Rotation.from_quat(quaternion) * expected.inv()).magnitude() < 1e-9
        assert frame.gripper == pytest.approx(closed[index])
        assert frame.timestamp_s == pytest.approx(index / 15)
        assert frame.instruction == ''


def test_the_droid_sample_decodes_in_one_pass_and_out_of_order(droid, shared_data):
    reader = VideoReader(shared_data / 'droid/exterior_2.mp4')
    for index in (30, 31, 35, 5):
        np.testing.assert_array_equal(droid.frame(index).views['exterior_2'], reader.frame(index))


def test_a_camera_stands_in_for_another_only_when_told_and_says_so(shared_data):
    stand_ins = {'wrist': 'exterior_2', 'exterior_1': 'robolab_example_rollout'}
    with open_recording(shared_data / 'droid', stand_ins, instruction='pick up the cup') as recording:
        frame = recording.frame(3)
        assert list(frame.views) == ['wrist', 'exterior_1', 'exterior_2']
        assert recording.missing_views == ()
        np.testing.assert_array_equal(frame.views['wrist'], frame.views['exterior_2'])
        assert frame.views['exterior_1'].shape == (480, 864, 3)
        assert frame.instruction == 'pick up the cup'
        assert 'view wrist is missing: exterior_2 stands in for it' in recording.warnings
        assert not any('not the name of a view' in text for text in recording.warnings)
        # The other video is shorter, and that is said too.
        assert recording.length == 150
        assert any('150 frames' in text and '722 rows' in text for text in recording.warnings)


# ---- The table-and-videos layout ------------------------------------------------------------------------------------


def test_a_sound_table_is_given_back_whole_and_without_warnings(tmp_path):
    with open_recording(make_table(tmp_path)) as recording:
        frames = list(recording)
        assert recording.warnings == ()
        assert recording.missing_views == ()
    np.testing.assert_allclose([frame.joint_positions for frame in frames], JOINTS)
    np.testing.assert_allclose([frame.gripper for frame in frames], CLOSED)
    np.testing.assert_allclose([frame.end_effector[0] for frame in frames], POSE[:, :3])
    for view, first in SHADES.items():
        np.testing.assert_allclose([shade(f.views[view]) for f in frames], first + np.arange(ROWS), atol=1.5)


@pytest.mark.parametrize(
    ('values', 'reason'),
    [
        (JOINTS[:, :6], '6 wide, 7 needed'),
        (JOINTS[:, 0], '1 wide, 7 needed'),
        (np.vstack([JOINTS[:1], np.repeat(JOINTS[1:2], ROWS - 1, axis=0)]), 'never changes after row 1'),
        (np.where(np.arange(ROWS)[:, None] == 4, np.nan, JOINTS), 'row 4'),
        (np.rad2deg(JOINTS), 'neither radians'),
        (np.full(ROWS, 'text'), '0 wide'),
    ],
)
def test_joint_positions_that_cannot_be_right_are_left_out_and_named(tmp_path, values, reason):
    with open_recording(make_table(tmp_path, joint_positions=values)) as recording:
        assert recording.frame(ROWS - 1).joint_positions is None
        [warning] = [text for text in recording.warnings if 'joint_positions:' in text]
    assert reason in warning


def test_an_arm_that_stands_still_with_its_joints_is_believed(tmp_path):
    still = {'cartesian_position': np.tile(POSE[0], (ROWS, 1)), 'joint_positions': np.tile(JOINTS[0], (ROWS, 1))}
    with open_recording(make_table(tmp_path, **still)) as recording:
        np.testing.assert_allclose(recording.frame(9).joint_positions, JOINTS[0])
        assert recording.warnings == ()


def test_a_gripper_column_that_sleeps_while_the_command_moves_is_not_used(tmp_path):
    with open_recording(make_table(tmp_path, **{'state.gripper': np.zeros(ROWS)})) as recording:
        assert recording.frame(ROWS - 1).gripper == 1.0
        assert any('observation.state.gripper_position: constant' in text for text in recording.warnings)


def test_a_video_shorter_than_the_table_shortens_the_recording_and_says_so(tmp_path):
    with open_recording(make_table(tmp_path, frames=ROWS - 3)) as recording:
        assert len(list(recording)) == ROWS - 3
        assert sum('17 frames, the table 20 rows' in text for text in recording.warnings) == 3
        with pytest.raises(IndexError):
            recording.frame(ROWS - 3)


def test_all_faults_of_a_video_map_are_named_at_once(tmp_path):
    root = make_table(tmp_path, views=('wrist',))
    with pytest.raises(InvalidInput) as caught:
        open_recording(root, {'wrist': 'wrist', 'exterior_1': 'ceiling', 'top': 'wrist'})
    assert len(caught.value.problems) == 3
    for part in ('has this view itself', "'ceiling'", "'top'"):
        assert part in str(caught.value)


def test_faults_of_the_table_and_of_the_video_are_named_together(tmp_path):
    save(tmp_path / 'episode.parquet', {'speed': np.zeros(3)})
    (tmp_path / 'wrist.mp4').write_text('not a video')
    with pytest.raises(InvalidInput) as caught:
        open_recording(tmp_path, {'top': 'wrist'})
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    for part in ("'top'", 'wrist.mp4', 'speed', 'frame rate'):
        assert part in text


@pytest.mark.parametrize(
    ('prepare', 'reason'),
    [
        (lambda root: None, 'is no recording'),
        (lambda root: (root / 'a.parquet').write_text('not a table'), 'cannot be read as Parquet'),
        (lambda root: [save(root / name, table_columns()) for name in ('a.parquet', 'b.parquet')], 'several tables'),
        (lambda root: save(root / 'a.parquet', table_columns()), 'no camera'),
        (
            lambda root: pq.write_table(pa.table({'timestamp': pa.array([], pa.float64())}), root / 'a.parquet'),
            'no rows',
        ),
        (lambda root: save(root / 'a.parquet', {**table_columns(), 'episode_index': np.ones(ROWS, int)}), '1 to 1'),
    ],
)
def test_what_is_no_recording_is_refused_with_the_reason(tmp_path, prepare, reason):
    prepare(tmp_path)
    with pytest.raises(InvalidInput, match=reason):
        open_recording(tmp_path)


# ---- LeRobot data sets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('schema', SCHEMAS, ids=lambda schema: schema.name)
def test_each_schema_of_droid_gives_the_same_episode(tmp_path, schema):
    with open_recording(make_lerobot(tmp_path / 'set', schema)) as recording:
        frames = list(recording)
        assert recording.missing_views == ()
    assert len(frames) == ROWS
    np.testing.assert_allclose([frame.gripper for frame in frames], CLOSED, atol=1e-12)
    assert all(frame.instruction == 'put the cube in the bowl' for frame in frames)
    for view, first in SHADES.items():
        np.testing.assert_allclose([shade(f.views[view]) for f in frames], first + np.arange(ROWS), atol=1.5)
    if schema.joints:
        np.testing.assert_allclose([frame.joint_positions for frame in frames], JOINTS)
    else:
        assert all(frame.joint_positions is None for frame in frames)
    if schema.pose:
        np.testing.assert_allclose([frame.end_effector[0] for frame in frames], POSE[:, :3])
    else:
        assert all(frame.end_effector is None for frame in frames)


@pytest.mark.parametrize(
    ('tasks', 'instruction'),
    [(['put it away | tidy up'], 'put it away'), ([' |  | '], ''), (['', 'tidy up'], 'tidy up'), ([], '')],
)
def test_the_first_wording_of_a_task_is_the_instruction(tmp_path, tasks, instruction):
    tasks = tasks or ['']
    with open_recording(make_lerobot(tmp_path / 'set', SCHEMAS[0], tasks)) as recording:
        assert recording.instruction == instruction


def test_a_lerobot_set_without_one_camera_still_opens_and_lists_it(tmp_path):
    cameras = {view: key for view, key in SCHEMAS[0].cameras.items() if view != 'wrist'}
    root = make_lerobot(tmp_path / 'set', SCHEMAS[0], cameras=cameras)
    with open_recording(root) as recording:
        assert recording.missing_views == ('wrist',)
        assert any(SCHEMAS[0].cameras['wrist'] in text and 'cannot be had' in text for text in recording.warnings)
    with open_recording(root, {'wrist': SCHEMAS[0].cameras['exterior_1']}) as recording:
        assert shade(recording.frame(0).views['wrist']) == pytest.approx(SHADES['exterior_1'], abs=1.5)


def test_a_damaged_lerobot_set_is_refused_with_the_reason(tmp_path):
    def broken(name, **changes):
        root = make_lerobot(tmp_path / name, SCHEMAS[0])
        info = json.loads((root / 'meta/info.json').read_text())
        info = {key: value for key, value in {**info, **changes}.items() if value is not None}
        (root / 'meta/info.json').write_text(json.dumps(info))
        return root

    cases = [
        (broken('old', codebase_version='v2.1'), 0, 'v2.1'),
        (broken('half', fps=None, data_path=None), 0, "(?s)'fps'.*'data_path'"),
        (broken('foreign', features={'observation.lidar': {'dtype': 'float32'}}), 0, 'observation.lidar'),
        (broken('another robot', features={'observation.state': {'dtype': 'float32'}, 'action': {}}), 0, 'known name'),
        (broken('elsewhere', data_path='data/{episode_chunk}.parquet'), 0, 'does not say where data is'),
        (broken('short'), 3, 'got 3, allowed: 0 to 0'),
    ]
    for root, episode, reason in cases:
        with pytest.raises(InvalidInput, match=reason):
            open_recording(root, episode=episode)
    (cases[0][0] / 'meta/info.json').write_text('{')
    with pytest.raises(InvalidInput, match='not JSON'):
        open_recording(cases[0][0])


def test_a_video_that_ends_early_says_so_at_the_frame(tmp_path):
    root = make_lerobot(tmp_path / 'set', SCHEMAS[0])
    film(root / f'videos/{SCHEMAS[0].cameras["wrist"]}/chunk-000/file-000.mp4', 10, frames=5)
    with open_recording(root) as recording:
        recording.frame(4)
        with pytest.raises(CosmosError, match='ends after 5 of 20'):
            recording.frame(6)


@pytest.mark.slow
@pytest.mark.parametrize('use_videos', [True, False], ids=['videos', 'stills'])
def test_a_set_written_by_lerobot_itself_reads_back(tmp_path, use_videos):
    lerobot = pytest.importorskip('lerobot.datasets.lerobot_dataset', reason='lerobot is not installed')
    keys = SCHEMAS[2].cameras
    features = {'observation.state': {'dtype': 'float32', 'shape': (8,), 'names': None}}
    kind = 'video' if use_videos else 'image'
    features |= {
        key: {'dtype': kind, 'shape': (32, 48, 3), 'names': ['height', 'width', 'channels']} for key in keys.values()
    }
    root = tmp_path / 'set'
    dataset = lerobot.LeRobotDataset.create('us/it', 15, features, root=root, use_videos=use_videos)
    for episode in range(2):
        for row in range(8):
            frame = {
                key: np.full((32, 48, 3), SHADES[view] + 40 * episode + row, np.uint8) for view, key in keys.items()
            }
            state = np.hstack([JOINTS[row] + episode, CLOSED[row]]).astype(np.float32)
            dataset.add_frame({'observation.state': state, 'task': f'task {episode}', **frame})
        dataset.save_episode()
    dataset.finalize()
    for episode in range(2):
        with open_recording(root, episode=episode) as recording:
            assert recording.instruction == f'task {episode}'
            frames = list(recording)
        np.testing.assert_allclose([f.joint_positions for f in frames], JOINTS[:8] + episode, atol=1e-6)
        np.testing.assert_allclose([f.gripper for f in frames], CLOSED[:8], atol=1e-6)
        for view, first in SHADES.items():
            expected = first + 40 * episode + np.arange(8)
            np.testing.assert_allclose([shade(f.views[view]) for f in frames], expected, atol=2.5)
