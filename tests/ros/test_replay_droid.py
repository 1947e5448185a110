"""Promises on a real recording: an episode of DROID, played through the graph, becomes chunks of poses."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from geometry_msgs.msg import PoseStamped
from rclpy.parameter import Parameter as RosParameter
from sensor_msgs.msg import Image, JointState

pytest.importorskip('pyarrow', reason='recordings cannot be read without pyarrow')

import engine
from cosmos3_msgs.msg import ActionChunk
from cosmos3_ros import qos
from cosmos3_ros.conversions import image_to_rgb, message_to_pose, stamp_to_ns
from cosmos3_ros.replay_robot import ReplayRobotNode
from engine.contract import Contract, load_contract

STAND_INS = ['wrist:=exterior_2', 'exterior_1:=exterior_2']  # the recording at hand has one camera


@pytest.fixture
def contract(tmp_path) -> Contract:
    """The shipped contract of end-effector deltas at a quarter of its pixels, for a machine without a GPU."""
    shipped = Path(__file__).resolve().parents[2] / 'config' / 'contracts' / 'droid_ee_delta.yaml'
    data = yaml.safe_load(shipped.read_text(encoding='utf-8'))
    data['views']['size'] = [256, 304]
    data['timing']['resolution_tier'] = 256
    for stream in (*data['views']['streams'].values(), *data['state'].values()):
        stream['max_age_s'] = 1.0  # this machine may be busy
    path = tmp_path / 'droid_ee_delta_256.yaml'
    path.write_text(yaml.safe_dump(data), encoding='utf-8')
    return load_contract(path)


class Listener:
    """Everything the replay published, by stamp."""

    def __init__(self, graph: Any, contract: Contract) -> None:
        self.heard: dict[str, dict[int, Any]] = {name: {} for name in (*contract.views.streams, 'pose', 'joints')}
        node = graph.node('listener')
        for name, terms in contract.views.streams.items():
            node.create_subscription(Image, terms.topic, partial(self._keep, name), qos.sensor(5))
        node.create_subscription(
            PoseStamped, contract.state.end_effectors[0].topic, partial(self._keep, 'pose'), qos.sensor(50)
        )
        node.create_subscription(
            JointState, contract.state.joint_states.topic, partial(self._keep, 'joints'), qos.sensor(50)
        )

    def _keep(self, name: str, message: Any) -> None:
        self.heard[name][stamp_to_ns(message.header.stamp)] = message

    def has(self, chunk: ActionChunk) -> bool:
        """Whether it heard all that was published at the stamp of a chunk."""
        return all(stamp_to_ns(chunk.header.stamp) in messages for messages in self.heard.values())

    def at(self, chunk: ActionChunk) -> dict[str, Any]:
        stamp = stamp_to_ns(chunk.header.stamp)
        return {name: messages[stamp] for name, messages in self.heard.items()}


@pytest.fixture
def played(graph, shared_data, contract, policy_bench):
    """An episode that plays, a policy that follows it, and somebody who listens."""
    listener = Listener(graph, contract)
    bench = policy_bench(contract=contract.source, replan_rows=4, end_effector_chunks='poses').up()
    values = {
        'contract': contract.source,
        'recording': str(shared_data / 'droid'),
        'video_map': STAND_INS,
        'loop': True,
    }
    replay = graph.add(ReplayRobotNode(parameter_overrides=[RosParameter(k, value=v) for k, v in values.items()]))
    assert replay.transition('configure'), replay.last_failure
    assert replay.transition('activate'), replay.last_failure
    bench.run(instruction='put the marker in the pot')
    graph.eventually(lambda: any(listener.has(chunk) for chunk in list(bench.chunks)), 40.0, 'a chunk of a frame heard')
    return listener, next(chunk for chunk in bench.chunks if listener.has(chunk))


def poses_of(chunk: ActionChunk) -> np.ndarray:
    """Positions and quaternions, [rows, 7]."""
    rows = [(p.position, p.orientation) for p in chunk.poses]
    return np.array([[p.x, p.y, p.z, q.x, q.y, q.z, q.w] for p, q in rows])


@pytest.mark.slow
def test_the_episode_becomes_chunks_of_poses_in_the_frame_of_the_measurement(played):
    listener, chunk = played
    poses = poses_of(chunk)
    measured = message_to_pose(listener.at(chunk)['pose'], 'pose')

    assert chunk.action_space == ActionChunk.END_EFFECTOR_POSE
    assert chunk.header.frame_id == measured.frame_id == 'panda_link0'
    assert list(chunk.end_effector_frames) == ['panda_link8']
    assert chunk.rows == len(poses) == len(chunk.grippers) == 32
    assert not chunk.positions
    assert not chunk.joint_names
    np.testing.assert_allclose(np.linalg.norm(poses[:, 3:], axis=1), 1.0, atol=1e-6)


@pytest.mark.slow
def test_a_chunk_is_what_the_engine_makes_of_that_frame_and_the_pose_measured_with_it(
    played, contract, tiny_checkpoint
):
    listener, chunk = played
    heard = listener.at(chunk)
    measured = message_to_pose(heard['pose'], 'pose')
    finger = dict(zip(heard['joints'].name, heard['joints'].position, strict=True))[contract.robot.grippers[0].joint]
    observation = engine.Observation(
        images={name: image_to_rgb(heard[name], name) for name in contract.views.streams},
        instruction=chunk.instruction,
        gripper_position=float(contract.robot.grippers[0].travel.closed_fraction(finger)),
        end_effector_position=measured.position,
        end_effector_quaternion=measured.quaternion,
    )
    expected = engine.load(tiny_checkpoint).policy(contract).infer(observation, seed=0)
    np.testing.assert_allclose(poses_of(chunk), expected.actions[:, :7], atol=1e-6)
    np.testing.assert_allclose(chunk.grippers, expected.actions[:, 7], atol=1e-6)
