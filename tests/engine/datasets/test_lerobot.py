"""What we write is what LeRobot's own LeRobotDataset loads: converted, recorded from ROS, recorded in the simulator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine.contract import load_contract
from engine.datasets.convert import Order, convert
from engine.datasets.writer import DatasetWriter, Feature, Plan
from engine.evaluation.video import VideoReader
from tests.engine.datasets.sets import JOINTS, POSE, ROWS, TARGETS, make_v2, nvidia_sample


@pytest.fixture(scope='module')
def load(tmp_path_factory):
    """The real class; its caches and its look at the network are kept out of the way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('HF_HUB_OFFLINE', '1')
        patch.setenv('HF_HOME', str(tmp_path_factory.mktemp('hub')))
        module = pytest.importorskip('lerobot.datasets.lerobot_dataset', reason='LeRobot is not installed')
        yield lambda root, **options: module.LeRobotDataset('local/set', root=root, video_backend='pyav', **options)


def picture(item, key: str) -> np.ndarray:
    """A picture of LeRobot's as bytes, [H, W, 3]."""
    return np.round(item[key].numpy() * 255).astype(np.uint8).transpose(1, 2, 0)


@pytest.mark.slow
def test_the_droid_sample_does_not_load_as_published_and_loads_when_converted(load, tmp_path, shared_data):
    source = nvidia_sample(tmp_path / 'droid', shared_data)
    with pytest.raises(ValueError, match='feature is not valid'):
        load(source)
    convert(source, tmp_path / 'new', Order(instruction='put it away', achieved=True))
    found = load(tmp_path / 'new')
    assert (len(found), found.num_episodes, found.fps) == (722, 1, 15)
    reader = VideoReader(shared_data / 'droid/exterior_2.mp4')
    for row in (0, 5):
        item = found[row]
        assert item['task'] == 'put it away'
        np.testing.assert_array_equal(picture(item, 'observation.images.exterior_2'), reader.frame(row))
    np.testing.assert_allclose(found[0]['observation.end_effector'][:3], [0.372795, 0.190765, 0.437169], atol=1e-5)
    np.testing.assert_array_equal(found[3]['action.end_effector'], found[4]['observation.end_effector'])
    assert set(found.meta.stats) >= {'observation.end_effector', 'observation.images.exterior_2'}


def test_values_pictures_clips_and_texts_are_those_that_were_written(load, tmp_path):
    convert(make_v2(tmp_path / 'set'), tmp_path / 'new', Order())
    found = load(tmp_path / 'new', delta_timestamps={'action': [0.0, 1 / 15, 2 / 15]})
    assert len(found) == ROWS
    for row in (0, 17, ROWS - 3):
        item = found[row]
        np.testing.assert_allclose(item['observation.state'][:7], JOINTS[row], atol=1e-6)
        np.testing.assert_allclose(item['observation.end_effector'], POSE[row], atol=1e-5)
        np.testing.assert_allclose(item['action'][:, :7], TARGETS[row : row + 3], atol=1e-6)
        assert abs(picture(item, 'observation.images.wrist').mean() - (40 + 3 * row)) < 3
        assert (item['task'], item['frame_index'].item()) == ('do it', row)


def test_several_episodes_under_several_tasks_are_kept_apart(load, tmp_path):
    writer = DatasetWriter(
        tmp_path / 'set', Plan(10.0, {'action': Feature(('x', 'y'))}, {'observation.images.a': (16, 16)})
    )
    for number, task in enumerate(('one', 'two', 'one')):
        with writer.episode(task) as episode:
            for row in range(4 + number):
                shade = np.full((16, 16, 3), 60 * number + 30, np.uint8)
                episode.add({'action': np.array([number, row])}, {'observation.images.a': shade})
    found = load(tmp_path / 'set')
    assert (len(found), found.num_episodes) == (15, 3)
    item = found[9 + 2]
    assert (item['task'], item['episode_index'].item(), item['action'].tolist()) == ('one', 2, [2.0, 2.0])
    assert abs(picture(item, 'observation.images.a').mean() - 150) < 3
    assert [found[row]['task'] for row in (0, 4, 9)] == ['one', 'two', 'one']


@pytest.mark.slow
def test_recorded_simulated_episodes_load_and_their_actions_bring_the_simulator_to_the_same_end(load, tmp_path):
    pytest.importorskip('mujoco', reason='the simulator is not installed')
    from cosmos3_ros.eval_world import Cast, WorldRunner
    from cosmos3_ros.recorder_episodes import RecordingRunner, replay
    from engine.evaluation.tasks import Jitter, make_episode

    contract = load_contract('demo_joint_pos')
    runner = RecordingRunner(Cast('expert'), tmp_path / 'set')
    ends = []
    for task, seed in (('reach', 0), ('lift', 1)):
        record = runner.run(make_episode(task, seed))
        assert record.success
        ends.append((record, runner.world.robot.joint_state().positions, runner.world.robot.objects()))
    assert WorldRunner(Cast('expert')).run(make_episode('reach', 0)) == ends[0][0], 'recording only looks on'
    found = load(tmp_path / 'set')
    assert found.num_episodes == 2
    for number, (record, joints, objects) in enumerate(ends):
        rows = np.flatnonzero(np.asarray(found.hf_dataset['episode_index']) == number)
        actions = np.stack([np.asarray(found.hf_dataset[int(row)]['action']) for row in rows])
        episode = make_episode(record.task, record.seed)
        assert found[int(rows[0])]['task'] == episode.instruction
        again, world = replay(actions, episode, contract)
        assert again.success
        # The guard blends and splines 15 rows a second anew: a milliradian is what that makes of it.
        np.testing.assert_allclose(world.robot.joint_state().positions, joints, atol=5e-3)
        for name, pose in world.robot.objects().items():
            np.testing.assert_allclose(pose.position, objects[name].position, atol=3e-3)
    again = RecordingRunner(Cast('expert'), tmp_path / 'set')
    again.run(make_episode('reach', 0))
    assert again._writer.episodes == 2, 'an episode that is there already is not recorded twice'
    again.run(make_episode('reach', 0, Jitter(start_rad=0.0)))
    assert again._writer.episodes == 3, 'the same seed with another jitter is another episode'
    assert load(tmp_path / 'set').num_episodes == 3


@pytest.mark.slow
def test_demonstrations_load_with_their_pictures_texts_and_marks(load, tmp_path):
    pytest.importorskip('mujoco', reason='the simulator is not installed')
    pytest.importorskip('sensor_msgs', reason='ROS 2 is not installed')
    from contextlib import nullcontext

    from cosmos3_ros.demonstration_runs import START_SEED, DatasetOptions, make_dataset
    from cosmos3_ros.demonstrations import Terms
    from engine.evaluation.tasks import make_episode

    terms = Terms(disturbed=1.0, picture=(90, 160))
    make_dataset(
        DatasetOptions(tmp_path / 'set', terms, ('reach',), 2), lambda: nullcontext(lambda _what, _share: None)
    )
    found = load(tmp_path / 'set', delta_timestamps={'action': [0.0, 1 / 15], 'disturbed': [0.0, 1 / 15]})
    assert found.num_episodes == 2
    marks = np.array(found.hf_dataset['disturbed'])
    assert set(np.unique(marks)) == {0.0, 1.0}
    first = int(np.flatnonzero(marks)[0])
    item = found[first - 1]
    assert item['disturbed'].ravel().tolist() == [0.0, 1.0]
    assert item['task'] == make_episode('reach', START_SEED).instruction
    assert picture(item, 'observation.images.wrist').shape == (90, 160, 3)


def test_a_run_recorded_from_ros_loads(load, tmp_path):
    pytest.importorskip('sensor_msgs', reason='ROS 2 is not installed')
    pytest.importorskip('rosbags', reason='rosbags is not installed')
    from cosmos3_ros.recorder_bag import BagWriter, typestore
    from cosmos3_ros.recorder_dataset import BagOrder, dataset_from_bag
    from cosmos3_ros.recorder_topics import recorded_topics

    contract = load_contract('demo_joint_pos')
    store = typestore()
    types = {f'/{one.name}': one.type for one in recorded_topics(contract)}
    about = {
        'contract': Path(contract.source).read_text(),
        'topics': {o.role: f'/{o.name}' for o in recorded_topics(contract)},
    }
    header, stamp = store.types['std_msgs/msg/Header'], store.types['builtin_interfaces/msg/Time']
    names = [*contract.robot.joints, 'panda_finger_joint1']
    with BagWriter(tmp_path / 'bag', types, about, 10**9) as bag:
        for row in range(30):
            time_ns = 10 * 10**9 + round(row * 1e9 / 15)
            head = header(stamp=stamp(sec=time_ns // 10**9, nanosec=time_ns % 10**9), frame_id='')
            positions = np.array([*JOINTS[row], 0.02])
            state = store.types['sensor_msgs/msg/JointState'](head, names, positions, np.empty(0), np.empty(0))
            bag.write('/joint_states', time_ns, bytes(store.serialize_cdr(state, 'sensor_msgs/msg/JointState')))
            for view in contract.views.streams.values():
                pixels = np.full(24 * 32 * 3, 40 + 5 * row, np.uint8)
                image = store.types['sensor_msgs/msg/Image'](head, 24, 32, 'rgb8', 0, 96, pixels)
                bag.write(f'/{view.topic}', time_ns, bytes(store.serialize_cdr(image, 'sensor_msgs/msg/Image')))
    made = dataset_from_bag(tmp_path / 'bag', tmp_path / 'set', BagOrder(actions='achieved', instruction='look'))
    found = load(tmp_path / 'set')
    assert len(found) == made.rows == 30
    item = found[12]
    np.testing.assert_allclose(item['observation.state'], [*JOINTS[12], 0.5], atol=1e-6)
    np.testing.assert_allclose(item['action'][:7], JOINTS[13], atol=1e-6)
    assert abs(picture(item, 'observation.images.exterior_1').mean() - 100) < 3
    assert json.loads((tmp_path / 'set/meta/cosmos3.json').read_text())['contract'] == 'demo_joint_pos'
