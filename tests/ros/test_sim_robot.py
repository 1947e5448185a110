"""Promises of the simulated robot: it behaves like a robot driver with cameras, and like its trajectory controller."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseArray, PoseStamped
from rclpy.parameter import Parameter as RosParameter
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import Image, JointState
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

pytest.importorskip('mujoco', reason='MuJoCo is not installed')

from cosmos3_ros import qos
from cosmos3_ros.conversions import JointReader, image_to_rgb, message_to_pose, ns_to_stamp, stamp_to_ns
from cosmos3_ros.sim_robot import SimRobotNode
from engine.evaluation.franka_scene import ARM_JOINTS, CAMERAS, FINGER_JOINTS, HOME, OBJECTS
from tests.ros.system_bench import can_draw

TARGET = np.array(HOME) + np.array([0.1, -0.05, 0.08, 0.06, -0.1, 0.05, 0.1])
HOLDING = 0.03  # rad; the servo sags a little under load


WHY_NOT = can_draw()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or 'pictures can be drawn')


class Bench:
    """A simulated robot on its graph, and everything it said."""

    def __init__(self, graph, activate: bool = True, **parameters: object) -> None:
        values = {'image_height': 36, 'image_width': 64, **parameters}
        overrides = [RosParameter(name, value=value) for name, value in values.items()]
        self.graph = graph
        self.node = graph.add(SimRobotNode(parameter_overrides=overrides))
        self.observer = graph.node('observer')
        self.joints: list[JointState] = []
        self.poses: list[PoseStamped] = []
        self.images: dict[str, list[Image]] = {view: [] for view in CAMERAS}
        self.reader = JointReader(ARM_JOINTS, 'joint_states')
        self.observer.create_subscription(JointState, 'joint_states', self.joints.append, qos.sensor(50))
        self.observer.create_subscription(PoseStamped, 'end_effector_pose', self.poses.append, qos.sensor(50))
        for view, seen in self.images.items():
            self.observer.create_subscription(Image, f'camera/{view}/image_raw', seen.append, qos.sensor())
        self.commands = self.observer.create_publisher(JointTrajectory, 'joint_trajectory', qos.command())
        self.gripper = self.observer.create_publisher(JointState, 'gripper/command', qos.command())
        if activate:
            assert self.node.transition('configure'), self.node.last_failure
            assert self.node.transition('activate'), self.node.last_failure
            graph.eventually(lambda: len(self.joints) > 2 and self.commands.get_subscription_count() == 1)

    def position(self) -> np.ndarray:
        return self.reader.read(self.joints[-1]).positions

    def is_at(self, target: np.ndarray) -> bool:
        return bool(np.abs(self.position() - target).max() < HOLDING)

    def refusals(self) -> str:
        return self.node._last_refusal


def trajectory(*points, names=ARM_JOINTS, stamp_ns: int = 0, velocities: bool = False) -> JointTrajectory:
    message = JointTrajectory(joint_names=list(names))
    message.header.stamp = ns_to_stamp(stamp_ns)
    for seconds, positions in points:
        whole, rest = divmod(round(seconds * 1e9), 10**9)
        message.points.append(
            JointTrajectoryPoint(
                positions=[float(p) for p in positions],
                velocities=[0.0] * len(positions) if velocities else [],
                time_from_start=Duration(sec=whole, nanosec=rest),
            )
        )
    return message


def test_joint_states_poses_and_pictures_come_with_their_rates(graph):
    bench = Bench(graph)
    graph.eventually(lambda: all(len(seen) >= 8 for seen in bench.images.values()) and len(bench.joints) >= 50, 20.0)
    for messages in (bench.joints, bench.poses):
        steps_s = np.diff([stamp_to_ns(message.header.stamp) for message in list(messages)]) * 1e-9
        periods = np.rint(steps_s * 100.0)  # a lost message makes a step of two periods
        assert periods.min() >= 1
        np.testing.assert_allclose(steps_s, periods / 100.0, atol=6e-3)
    for seen in bench.images.values():
        steps_s = np.diff([stamp_to_ns(message.header.stamp) for message in list(seen)]) * 1e-9
        assert steps_s.min() > 0
        assert steps_s.mean() > 0.9 / 15.0  # fewer if the machine is busy, never more
    assert list(bench.joints[0].name) == [*ARM_JOINTS, *FINGER_JOINTS]
    assert np.isfinite(bench.joints[0].velocity).all()


def test_every_camera_sees_something_else(graph):
    bench = Bench(graph)
    graph.eventually(lambda: all(bench.images.values()), 20.0)
    pictures = [image_to_rgb(seen[-1], view, size=(36, 64)) for view, seen in bench.images.items()]
    assert all(picture.std() > 5 for picture in pictures)
    assert not any(np.array_equal(pictures[0], other) for other in pictures[1:])


def test_stamps_are_times_of_the_nodes_clock(graph):
    bench = Bench(graph)
    count = len(bench.joints)
    before = bench.node.now_ns()
    graph.eventually(lambda: len(bench.joints) > count + 5)
    age_s = (before - stamp_to_ns(bench.joints[count].header.stamp)) * 1e-9
    assert abs(age_s) < 1.0


def test_the_pose_is_that_of_the_flange(graph):
    bench = Bench(graph, views=['wrist'])
    graph.eventually(lambda: len(bench.poses) > 0)
    pose = message_to_pose(bench.poses[-1], 'end_effector_pose')
    expected = bench.node.robot.end_effector_pose()
    np.testing.assert_allclose(pose.position, expected.position, atol=5e-3)
    assert pose.frame_id == 'panda_link0'


def test_where_the_objects_are_is_told_in_their_order(graph):
    bench = Bench(graph, activate=False, views=['wrist'])
    told: list[PoseArray] = []
    bench.observer.create_subscription(PoseArray, 'objects', told.append, qos.sensor(5))
    assert bench.node.transition('configure')
    assert bench.node.transition('activate')
    graph.eventually(lambda: len(told) > 2)
    expected = bench.node.robot.objects()
    places = [(pose.position.x, pose.position.y) for pose in told[-1].poses]
    np.testing.assert_allclose(places, [expected[thing.name].position[:2] for thing in OBJECTS], atol=5e-3)
    assert told[-1].header.frame_id == 'panda_link0'
    assert stamp_to_ns(told[2].header.stamp) - stamp_to_ns(told[1].header.stamp) > 0.05e9


def test_a_trajectory_is_followed_and_its_last_point_held(graph):
    bench = Bench(graph, views=['wrist'])
    bench.commands.publish(trajectory((0.3, TARGET)))
    graph.eventually(lambda: bench.is_at(TARGET))
    count = len(bench.joints)
    graph.eventually(lambda: len(bench.joints) > count + 50)
    assert bench.is_at(TARGET)


def test_permuted_joints_are_put_in_order(graph):
    bench = Bench(graph, views=['wrist'])
    order = [3, 0, 6, 2, 5, 1, 4]
    bench.commands.publish(trajectory((0.3, TARGET[order]), names=[ARM_JOINTS[i] for i in order], velocities=True))
    graph.eventually(lambda: bench.is_at(TARGET))


def test_a_newer_trajectory_replaces_an_older_one(graph):
    bench = Bench(graph, views=['wrist'])
    bench.commands.publish(trajectory((60.0, TARGET)))
    graph.eventually(lambda: bench.node._accepted == 1)
    bench.commands.publish(trajectory((0.3, TARGET)))
    graph.eventually(lambda: bench.is_at(TARGET))


def test_a_trajectory_with_a_stamp_begins_at_that_time(graph):
    bench = Bench(graph, views=['wrist'], publish_clock=True)
    start_ns = stamp_to_ns(bench.joints[-1].header.stamp) + 400_000_000
    bench.commands.publish(trajectory((0.0, HOME), (0.2, TARGET), stamp_ns=start_ns))
    graph.eventually(lambda: bench.is_at(TARGET))
    away = [np.abs(bench.reader.read(message).positions - HOME).max() for message in list(bench.joints)]
    moving = next(i for i, distance in enumerate(away) if distance > HOLDING)
    assert stamp_to_ns(bench.joints[moving].header.stamp) > start_ns


@pytest.mark.parametrize(
    ('message', 'text'),
    [
        (trajectory((0.3, TARGET), names=['elbow', *ARM_JOINTS[1:]]), 'elbow: unknown joint'),
        (trajectory((0.3, TARGET), names=['elbow', *ARM_JOINTS[1:]]), 'panda_joint1: is named 0 times'),
        (trajectory((0.3, TARGET[:6]), names=ARM_JOINTS[:6]), 'panda_joint7: is named 0 times'),
        (trajectory((0.3, TARGET[:6])), 'points[0].positions: wrong length, got 6, allowed: 7'),
        (trajectory(), 'points: there are none'),
        (trajectory((0.3, [math.nan, *TARGET[1:]])), 'not a finite number'),
        (trajectory((0.3, TARGET), (0.2, HOME)), 'out of order'),
        (trajectory((0.3, TARGET), stamp_ns=1), 'lies in the past'),
    ],
)
def test_a_faulty_trajectory_is_refused_with_a_reason_and_nothing_moves(graph, message, text):
    bench = Bench(graph, views=['wrist'])
    bench.commands.publish(message)
    graph.eventually(lambda: text in bench.refusals())
    assert bench.node._accepted == 0
    assert bench.is_at(np.array(HOME))


def test_the_gripper_goes_where_it_is_told(graph):
    bench = Bench(graph, views=['wrist'])
    fingers = JointReader(FINGER_JOINTS, 'joint_states')
    assert fingers.read(bench.joints[-1]).positions.min() > 0.035
    bench.gripper.publish(JointState(name=['panda_finger_joint1'], position=[0.0]))
    graph.eventually(lambda: fingers.read(bench.joints[-1]).positions.max() < 0.005)


def test_a_gripper_command_out_of_reach_is_refused(graph):
    bench = Bench(graph, views=['wrist'])
    bench.gripper.publish(JointState(name=['panda_finger_joint1'], position=[0.8]))
    graph.eventually(lambda: 'gripper/command' in bench.refusals())
    assert 'beyond its travel' in bench.refusals()


def test_a_reset_brings_the_arm_back(graph):
    bench = Bench(graph, views=['wrist'])
    bench.commands.publish(trajectory((0.2, TARGET)))
    graph.eventually(lambda: bench.is_at(TARGET))
    client = bench.observer.create_client(Trigger, 'sim_robot/reset')
    graph.eventually(client.service_is_ready)
    answer = client.call_async(Trigger.Request())
    graph.eventually(answer.done)
    assert answer.result().success
    graph.eventually(lambda: bench.is_at(np.array(HOME)))


def test_simulated_time_runs_on_the_clock_topic_at_the_wanted_speed(graph):
    times: list[int] = []
    bench = Bench(graph, activate=False, publish_clock=True, speed=3.0, views=['wrist'])
    bench.observer.create_subscription(
        ClockMessage, '/clock', lambda message: times.append(stamp_to_ns(message.clock)), qos.sensor(10)
    )
    assert bench.node.transition('configure')
    assert bench.node.transition('activate')
    graph.eventually(lambda: len(times) > 100 and len(bench.joints) > 10)
    assert all(later > earlier for earlier, later in pairwise(times))
    assert stamp_to_ns(bench.joints[-1].header.stamp) <= bench.node.robot.time_ns
    assert bench.node.loop.performance.real_time_factor <= 3.1


def test_simulated_time_never_goes_back_over_a_second_activation(graph):
    bench = Bench(graph, publish_clock=True)
    assert bench.node.transition('deactivate')
    last_ns = stamp_to_ns(bench.joints[-1].header.stamp)
    graph.eventually(lambda: bench.node.transition('activate'))
    count = len(bench.joints)
    graph.eventually(lambda: len(bench.joints) > count + 5 and len(bench.images['wrist']) > 2)
    assert stamp_to_ns(bench.joints[-1].header.stamp) > last_ns


@pytest.mark.parametrize(
    ('parameters', 'text'),
    [
        ({'use_sim_time': True}, 'the simulated robot makes the time itself'),
        ({'speed': 2.0}, 'real time has one speed'),
    ],
)
def test_contradictory_time_is_refused(graph, parameters, text):
    bench = Bench(graph, activate=False, **parameters)
    assert not bench.node.transition('configure')
    assert text in bench.node.last_failure


def test_nothing_is_published_after_deactivation_and_all_again_after_activation(graph):
    bench = Bench(graph)
    graph.eventually(lambda: all(bench.images.values()))
    assert bench.node.transition('deactivate')
    publishers = list(bench.node._counting_publishers)
    sent = [publisher.sent for publisher in publishers]
    assert bench.node.transition('activate')
    assert [publisher.dropped for publisher in publishers] == [0] * len(publishers)
    graph.eventually(lambda: all(p.sent > before for p, before in zip(publishers, sent, strict=True)))


def test_the_whole_life_can_be_lived_twice(graph):
    bench = Bench(graph, activate=False)
    for _ in range(2):
        assert all(bench.node.transition(name) for name in ('configure', 'activate', 'deactivate', 'cleanup'))
    assert bench.node.robot is None


def test_diagnostics_tell_the_real_time_factor_and_the_frame_time(graph):
    reports: list[DiagnosticArray] = []
    bench = Bench(graph)
    bench.observer.create_subscription(DiagnosticArray, '/diagnostics', reports.append, 10)

    def details() -> dict[str, str]:
        found = [s for report in reports for s in report.status if s.name == 'sim_robot: simulation']
        return {value.key: value.value for value in found[-1].values} if found else {}

    graph.eventually(lambda: 'frame time p50 / p95 [ms]' in details())
    assert float(details()['real-time factor']) > 0.1
