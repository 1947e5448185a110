"""Promises of the replay: what was recorded comes again, in its time; what is missing is said."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from rclpy.parameter import Parameter as RosParameter
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

pytest.importorskip('pyarrow', reason='recordings cannot be read without pyarrow')
import pyarrow as pa
import pyarrow.parquet as pq

from cosmos3_ros import qos
from cosmos3_ros.conversions import JointReader, image_to_rgb, stamp_to_ns
from cosmos3_ros.replay_robot import ReplayRobotNode, read_video_map
from engine.errors import InvalidInput

FPS = 15
FRAMES = 30
JOINTS = tuple(f'panda_joint{i}' for i in range(1, 8))
SHADES = {'wrist': 40, 'exterior_1': 120, 'exterior_2': 200}


def write_video(path: Path, shade: int) -> None:
    """Pictures of one shade that brightens by one with each frame."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), FPS, (64, 48))
    assert writer.isOpened()
    for index in range(FRAMES):
        writer.write(np.full((48, 64, 3), shade + index, np.uint8))
    writer.release()


def write_episode(folder: Path, *, views=tuple(SHADES), joints: bool = True) -> Path:
    t = np.arange(FRAMES) / FPS
    wave = np.stack([0.1 * np.sin(t + i) for i in range(7)], axis=1)
    pose = np.column_stack([0.4 + 0.1 * t, 0.1 * t, 0.5 - 0.1 * t, np.pi + 0 * t, 0 * t, 0.1 * t])
    columns = {
        'timestamp': pa.array(t.astype(np.float32)),
        'observation.state.cartesian_position': pa.array(pose.tolist()),
        'observation.state.gripper_position': pa.array((t / t[-1]).tolist()),
    }
    if joints:
        columns['observation.state.joint_positions'] = pa.array(wave.tolist())
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / 'episode.parquet')
    for view in views:
        write_video(folder / f'{view}.mp4', SHADES[view])
    return folder


class Bench:
    """A replay on its graph, and everything it said."""

    def __init__(self, graph, recording: Path, contract: str = 'droid_joint_pos', **parameters: object) -> None:
        values = {'contract': contract, 'recording': str(recording), **parameters}
        overrides = [RosParameter(name, value=value) for name, value in values.items()]
        self.node = graph.add(ReplayRobotNode(parameter_overrides=overrides))
        self.observer = graph.node('observer')
        self.joints: list[JointState] = []
        self.poses: list[PoseStamped] = []
        self.images: dict[str, list[Image]] = {view: [] for view in SHADES}
        self.observer.create_subscription(JointState, 'joint_states', self.joints.append, qos.sensor(50))
        self.observer.create_subscription(PoseStamped, 'end_effector_pose', self.poses.append, qos.sensor(50))
        for view, seen in self.images.items():
            self.observer.create_subscription(Image, f'camera/{view}/image_raw', seen.append, qos.sensor(5))
        self.commands = self.observer.create_publisher(JointTrajectory, 'joint_trajectory', qos.command())
        self.graph = graph

    def play(self) -> None:
        assert self.node.transition('configure'), self.node.last_failure
        self.graph.eventually(lambda: all(p.get_subscription_count() for p in self.node._counting_publishers[:5]))
        assert self.node.transition('activate'), self.node.last_failure


def test_an_episode_comes_with_its_pictures_joints_poses_and_timing(graph, tmp_path):
    bench = Bench(graph, write_episode(tmp_path))
    bench.play()
    graph.eventually(lambda: bench.node.player.finished.is_set() and len(bench.joints) > 20)
    reader = JointReader((*JOINTS, 'panda_finger_joint1'), 'joint_states')
    for message in bench.joints:
        index = round((stamp_to_ns(message.header.stamp) - stamp_to_ns(bench.joints[0].header.stamp)) * 1e-9 * FPS)
        positions = reader.read(message).positions
        np.testing.assert_allclose(positions[:7], [0.1 * np.sin(index / FPS + i) for i in range(7)], atol=1e-6)
        np.testing.assert_allclose(positions[7], 0.04 * (1 - index / (FRAMES - 1)), atol=1e-6)
    for view, seen in bench.images.items():
        index = round((stamp_to_ns(seen[-1].header.stamp) - stamp_to_ns(bench.joints[0].header.stamp)) * 1e-9 * FPS)
        assert abs(int(image_to_rgb(seen[-1], view).mean()) - SHADES[view] - index) <= 6  # video compression
    assert len(bench.poses) > 20


def test_all_missing_views_are_listed(graph, tmp_path):
    bench = Bench(graph, write_episode(tmp_path, views=('exterior_2',)))
    assert not bench.node.transition('configure')
    assert 'view wrist: is missing' in bench.node.last_failure
    assert 'view exterior_1: is missing' in bench.node.last_failure


def test_another_camera_can_stand_in_for_a_missing_view(graph, tmp_path):
    stand_ins = ['wrist:=exterior_2', 'exterior_1:=exterior_2']
    bench = Bench(graph, write_episode(tmp_path, views=('exterior_2',)), video_map=stand_ins)
    bench.play()
    graph.eventually(lambda: all(bench.images.values()))
    assert all(image_to_rgb(seen[0], view).mean() > 190 for view, seen in bench.images.items())


@pytest.mark.parametrize('entries', [('wrist',), ('wrist:=',), (':=exterior_2',), ('wrist:=a', 'wrist:=b')])
def test_a_malformed_stand_in_is_refused(entries):
    with pytest.raises(InvalidInput, match='video_map'):
        read_video_map(entries)


def test_without_joints_a_joint_space_contract_is_refused_with_a_way_out(graph, tmp_path):
    bench = Bench(graph, write_episode(tmp_path, joints=False))
    assert not bench.node.transition('configure')
    assert 'joint positions: the recording has none' in bench.node.last_failure
    assert 'use a contract of end-effector actions' in bench.node.last_failure


def test_without_joints_poses_and_gripper_are_played_and_no_arm_joint_is_invented(graph, tmp_path):
    bench = Bench(graph, write_episode(tmp_path, joints=False), contract='droid_ee_delta')
    bench.play()
    graph.eventually(lambda: len(bench.poses) > 5 and len(bench.joints) > 5)
    assert all(list(message.name) == ['panda_finger_joint1'] for message in bench.joints)


def test_commands_are_counted_and_change_nothing(graph, tmp_path):
    bench = Bench(graph, write_episode(tmp_path))
    bench.play()
    graph.eventually(lambda: bench.commands.get_subscription_count() == 1)
    bench.commands.publish(JointTrajectory())
    graph.eventually(lambda: bench.node.commands['joint_trajectory'] == 1)


def test_in_simulated_time_an_episode_can_be_played_faster_and_again(graph, tmp_path):
    bench = Bench(graph, write_episode(tmp_path), rate=10.0, loop=True, publish_clock=True)
    bench.play()
    duration_ns = round(FRAMES / FPS * 1e9)
    graph.eventually(lambda: bench.node.player.time_ns > 2 * duration_ns)
    stamps = [stamp_to_ns(message.header.stamp) for message in list(bench.joints)]
    assert all(later > earlier for earlier, later in pairwise(stamps))
    assert not bench.node.player.finished.is_set()


def test_simulated_time_goes_on_over_a_second_activation(graph, tmp_path):
    bench = Bench(graph, write_episode(tmp_path), rate=5.0, publish_clock=True)
    bench.play()
    graph.eventually(lambda: len(bench.joints) > 3)
    assert bench.node.transition('deactivate')
    last_ns = stamp_to_ns(bench.joints[-1].header.stamp)
    assert bench.node.transition('activate')
    graph.eventually(lambda: stamp_to_ns(bench.joints[-1].header.stamp) > last_ns)


@pytest.mark.parametrize(
    ('parameters', 'text'),
    [({'use_sim_time': True}, 'the replay makes the time itself'), ({'rate': 2.0}, 'real time has one speed')],
)
def test_contradictory_time_is_refused(graph, tmp_path, parameters, text):
    bench = Bench(graph, write_episode(tmp_path), **parameters)
    assert not bench.node.transition('configure')
    assert text in bench.node.last_failure


def test_a_recording_that_is_not_there_is_refused(graph, tmp_path):
    bench = Bench(graph, tmp_path / 'nowhere')
    assert not bench.node.transition('configure')
    assert 'nowhere' in bench.node.last_failure


def test_the_recorded_droid_episode_plays_for_an_end_effector_contract(graph, shared_data):
    stand_ins = ['wrist:=exterior_2', 'exterior_1:=exterior_2']
    bench = Bench(graph, shared_data / 'droid', contract='droid_ee_delta', video_map=stand_ins)
    bench.play()
    graph.eventually(lambda: len(bench.poses) > 5 and all(bench.images.values()), 20.0)
    assert image_to_rgb(bench.images['wrist'][0], 'wrist').shape == (360, 640, 3)
    assert all('panda_joint1' not in message.name for message in bench.joints)
