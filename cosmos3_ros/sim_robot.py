"""The `sim_robot` node: a simulated Franka, or two, in the place of robot driver and cameras.

=============  ===================================  ===========================================================
publishes      `joint_states`                       arms and fingers, 100 Hz
               `end_effector_pose`                  of `panda_link8` in `panda_link0`, 100 Hz
               `camera/VIEW/image_raw`              `wrist`, `exterior_1`, `exterior_2`, 15 Hz
               `objects`                            where the loose objects are, for whoever judges, 15 Hz
               `/clock`                             with `publish_clock`
subscribes     `joint_trajectory`                   as ros2_control's joint_trajectory_controller does
               `gripper/command`                    `JointState` of `panda_finger_joint1`, m
service        `~/reset`                            arms to the start pose, objects strewn anew
=============  ===================================  ===========================================================

With `robot` `panda_pair` there are two arms on one base: names of joints and frames begin with `left_` and `right_`,
poses and grippers have topics of their own (`left/end_effector_pose`, `left/gripper/command`), poses are in `base`, and
the views are `front`, `left`, `right`, `left_wrist` and `right_wrist`. One message has the joints of both arms.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseArray, PoseStamped
from numpy.typing import NDArray
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import Image, JointState
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from cosmos3_ros import diagnostics, qos
from cosmos3_ros.conversions import (
    ImageWriter,
    JointReader,
    Pose,
    joint_state,
    ns_to_stamp,
    pose_to_message,
    stamp_to_ns,
)
from cosmos3_ros.node_base import CosmosLifecycleNode, CountingPublisher, configured
from cosmos3_ros.parameters import Parameter, ParameterSet
from cosmos3_ros.simulation_loop import Outputs, Pace, SimulationLoop, check_cameras
from engine.actions.gripper import GripperTravel
from engine.errors import CosmosError, InvalidInput, Problem
from engine.evaluation import franka_scene as scene
from engine.evaluation.simulated_franka import SimulatedFranka


def _duplicates(views: tuple[str, ...]) -> str | None:
    return 'a camera is named twice' if len(set(views)) < len(views) else None


PARAMETERS = (
    Parameter(
        'seed',
        0,
        'Where the objects lie; counts from the next reset on.',
        minimum=0,
        maximum=2**31 - 1,
        read_only=False,
    ),
    Parameter('image_height', 180, 'Height of the pictures.', 'px', minimum=16, maximum=2160),
    Parameter('image_width', 320, 'Width of the pictures.', 'px', minimum=16, maximum=3840),
    Parameter('robot', scene.PANDA.name, 'Which robot: one arm, or two on one base.', one_of=tuple(scene.ROBOTS)),
    Parameter('views', (), "Cameras to simulate; empty: all of the robot's.", check=_duplicates),
    Parameter('joint_state_rate_hz', 100.0, 'Rate of joint_states and of the poses.', 'Hz', minimum=1.0, maximum=200.0),
    Parameter('image_rate_hz', 15.0, 'Rate of the pictures of each camera.', 'Hz', minimum=0.1, maximum=120.0),
    Parameter('publish_clock', False, 'Publish simulated time on /clock and stamp everything with it.'),
    Parameter(
        'speed',
        1.0,
        'Simulated seconds for each real one; other than 1 only with publish_clock.',
        minimum=0.01,
        maximum=100.0,
    ),
    Parameter(
        'real_time_warn', 0.9, 'Share of the wanted speed below which diagnostics warn.', minimum=0.0, maximum=1.0
    ),
)
# Commands computed in float32 may overshoot the ends of travel by a rounding error; a millimetre is more than one.
HAND = GripperTravel(open=scene.FINGER_TRAVEL, closed=0.0, slack=0.025)
"""Positions of a finger, m."""


class SimRobotNode(CosmosLifecycleNode):
    """Lifecycle shell around a :class:`SimulationLoop`."""

    def __init__(self, name: str = 'sim_robot', **kwargs: Any) -> None:
        """Start unconfigured."""
        super().__init__(name, **kwargs)
        self.parameters = ParameterSet(self, PARAMETERS, self._apply)
        self.robot: SimulatedFranka | None = None
        self.loop: SimulationLoop | None = None
        self._seed: int = self.parameters['seed']
        self._accepted = 0
        self._refused: dict[str, int] = {}
        self._last_refusal = ''
        self._breakdown = ''

    def configure_node(self) -> None:
        """Build the scene, try the cameras, open topics."""
        values = self.parameters
        self._check_time()
        size = (values['image_height'], values['image_width'])
        kind = scene.ROBOTS[values['robot']]
        self.robot = SimulatedFranka(self._seed, size, values['views'] or None, kind)
        check_cameras(self.robot)
        self._breakdown, self._last_refusal = '', ''
        self._accepted = 0
        self._refused.clear()
        self._open_outputs(kind, values['views'] or kind.cameras)
        outputs = Outputs(self._on_slice, self._on_state, self._on_pictures, self._on_failure)
        self.loop = SimulationLoop(self.robot, self._pace(), outputs)
        self.subscribe(JointTrajectory, 'joint_trajectory', self._on_trajectory, qos.command(), self.control_group)
        for arm in kind.arms:
            topic = f'{_topics_of(arm)}gripper/command'
            on_gripper = partial(self._on_gripper, arm.name, JointReader(arm.fingers[:1], topic), topic)
            self.subscribe(JointState, topic, on_gripper, qos.command(), self.control_group)
        self.create_service(Trigger, '~/reset', self._on_reset, callback_group=self.service_group)
        self.diagnostics.add('simulation', self._report)

    def activate_node(self) -> None:
        """Let time pass."""
        configured(self.loop).start()

    def deactivate_node(self) -> None:
        """Let time stand still."""
        if self.loop is not None:
            self.loop.stop()

    def cleanup_node(self) -> None:
        """Release the scene."""
        self.loop = self.robot = None
        self.diagnostics.removeByName('simulation')

    # Time

    def _check_time(self) -> None:
        problems = []
        if self.get_parameter('use_sim_time').value:
            remedy = 'set publish_clock here, and use_sim_time on the other nodes'
            problems.append(
                Problem('use_sim_time', 'the simulated robot makes the time itself', 'true', 'false', remedy)
            )
        if self.parameters['speed'] != 1.0 and not self.parameters['publish_clock']:
            value = str(self.parameters['speed'])
            problems.append(Problem('speed', 'real time has one speed', value, '1.0', 'set publish_clock'))
        if problems:
            raise InvalidInput('time of the simulated robot', problems)

    def _pace(self) -> Pace:
        values = self.parameters
        own_time = values['publish_clock']
        return Pace(
            clock_ns=time.monotonic_ns if own_time else self.now_ns,
            speed=values['speed'],
            own_time=own_time,
            state_period_ns=round(1e9 / values['joint_state_rate_hz']),
            picture_period_ns=self._picture_period_ns,
        )

    @property
    def _picture_period_ns(self) -> int:
        return round(1e9 / self.parameters['image_rate_hz'])

    def _apply(self, changes: Mapping[str, Any]) -> None:
        self._seed = changes.get('seed', self._seed)

    # Outputs

    def _open_outputs(self, kind: scene.SceneRobot, views: tuple[str, ...]) -> None:
        self._joint_states = self.advertise(JointState, 'joint_states', qos.sensor(depth=10))
        self._poses = {
            arm.name: self.advertise(PoseStamped, f'{_topics_of(arm)}end_effector_pose', qos.sensor(depth=10))
            for arm in kind.arms
        }
        self._cameras: dict[str, tuple[CountingPublisher, ImageWriter]] = {
            view: (
                self.advertise(Image, f'camera/{view}/image_raw', qos.sensor()),
                ImageWriter(f'{view}_camera_optical_frame'),
            )
            for view in views
        }
        self._objects = self.advertise(PoseArray, 'objects', qos.sensor())
        self._objects_due_ns = 0
        self._clock_topic = None
        if self.parameters['publish_clock']:
            self._clock_topic = self.advertise(ClockMessage, '/clock', qos.sensor())

    def _on_slice(self, stamp_ns: int) -> None:
        if self._clock_topic is not None:
            self._clock_topic.publish(ClockMessage(clock=ns_to_stamp(stamp_ns)))

    def _on_state(self, stamp_ns: int) -> None:
        robot, stamp = configured(self.robot), ns_to_stamp(stamp_ns)
        joints = robot.joint_state()
        self._joint_states.publish(
            joint_state(joints.names, joints.positions, stamp, joints.velocities, joints.efforts)
        )
        for arm, publisher in self._poses.items():
            pose = robot.end_effector_pose(arm)
            publisher.publish(pose_to_message(Pose(pose.position, pose.quaternion, robot.kind.base), stamp))
        if not 0 < self._objects_due_ns - stamp_ns <= self._picture_period_ns:  # due, or the clock was set back
            self._tell_objects(robot, stamp_ns)

    def _tell_objects(self, robot: SimulatedFranka, stamp_ns: int) -> None:
        period = self._picture_period_ns
        late = stamp_ns - self._objects_due_ns
        self._objects_due_ns = (self._objects_due_ns if 0 <= late < period else stamp_ns) + period
        stamp, there = ns_to_stamp(stamp_ns), robot.objects()
        messages = [pose_to_message(Pose(*there[thing.name], robot.kind.base), stamp) for thing in scene.OBJECTS]
        self._objects.publish(PoseArray(header=messages[0].header, poses=[message.pose for message in messages]))

    def _on_pictures(self, stamp_ns: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        stamp = ns_to_stamp(stamp_ns)
        for view, picture in pictures.items():
            publisher, writer = self._cameras[view]
            publisher.publish(writer.fill(picture, stamp))

    def _on_failure(self, trace: str) -> None:
        self._breakdown = trace.strip().splitlines()[-1]
        self.get_logger().fatal(f'the simulation broke down and stands still:\n{trace}')

    # Commands

    def _on_trajectory(self, message: JointTrajectory) -> None:
        robot, loop = self.robot, self.loop
        if robot is None or loop is None or not self.active:
            return
        try:
            times, positions, velocities = read_trajectory(message, robot.kind.joints)
            stamp_ns = stamp_to_ns(message.header.stamp)
            robot.set_trajectory(times, positions, velocities, loop.robot_ns(stamp_ns) if stamp_ns else None)
        except CosmosError as error:
            self._refuse('joint_trajectory', error)
        else:
            self._accepted += 1

    def _on_gripper(self, arm: str, reader: JointReader, topic: str, message: JointState) -> None:
        if self.robot is None or not self.active:
            return
        try:
            finger_m = reader.read(message).positions[0]
            self.robot.set_gripper(float(HAND.closed_fraction(finger_m)), arm)
        except CosmosError as error:
            self._refuse(topic, error)

    def _refuse(self, topic: str, error: CosmosError) -> None:
        self._refused[topic] = self._refused.get(topic, 0) + 1
        self._last_refusal = f'{topic}: {error}'
        self.get_logger().error(f'{topic}: command refused. {error}', throttle_duration_sec=1.0)

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self.robot is not None
        if self.robot is not None:
            self.robot.reset(self._seed)
        response.message = f'every arm at its start pose, objects strewn by seed {self._seed}'
        return response

    # Diagnostics

    def _report(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        loop = self.loop
        if loop is None or not self.active:
            stat.summary(diagnostics.OK, 'time stands still')
            return stat
        performance, wanted = loop.performance, self.parameters['speed']
        share = performance.real_time_factor / wanted
        if self._breakdown:
            stat.summary(diagnostics.ERROR, self._breakdown)
        elif share < self.parameters['real_time_warn']:
            stat.summary(diagnostics.WARN, f'too slow: {share:.0%} of the wanted speed')
        else:
            stat.summary(diagnostics.OK, 'keeps up')
        stat.add('real-time factor', f'{performance.real_time_factor:.3f}')
        stat.add('time let go [s]', f'{performance.let_go_s:.3f}')
        if performance.frame_ms:
            p50, p95 = np.percentile(performance.frame_ms, [50, 95])
            stat.add('frame time p50 / p95 [ms]', f'{p50:.1f} / {p95:.1f}')
        stat.add('frames skipped', performance.skipped)
        stat.add('trajectories accepted', self._accepted)
        for topic, count in self._refused.items():
            stat.add(f'{topic} refused', count)
        if self._last_refusal:
            stat.add('last refusal', self._last_refusal)
        return stat


def _topics_of(arm: scene.MountedArm) -> str:
    """What the names of an arm's own topics begin with."""
    return f'{arm.name}/' if arm.name else ''


def read_trajectory(message: JointTrajectory, joints: tuple[str, ...] = scene.ARM_JOINTS) -> tuple[Any, Any, Any]:
    """Return times [K] s, positions [K, J] rad, velocities [K, J] rad/s or None, in the order of `joints`.

    As ros2_control's joint trajectory controller does: joints by name in any order, each exactly once; velocities for
    all points or for none.

    Raises:
        InvalidInput: Joints are unknown, missing or named twice, points are missing or incomplete; lists every fault.
    """
    names = list(message.joint_names)
    problems = [Problem(name, 'unknown joint', '', ', '.join(joints)) for name in names if name not in joints]
    problems += [
        Problem(joint, f'is named {names.count(joint)} times', '', 'once')
        for joint in joints
        if names.count(joint) != 1
    ]
    problems += _point_problems(message, len(names))
    if problems:
        raise InvalidInput('joint trajectory', problems)
    columns = [names.index(joint) for joint in joints]
    times = np.array([p.time_from_start.sec + p.time_from_start.nanosec * 1e-9 for p in message.points])
    positions = np.array([point.positions for point in message.points])[:, columns]
    if not len(message.points[0].velocities):
        return times, positions, None
    return times, positions, np.array([point.velocities for point in message.points])[:, columns]


def _point_problems(message: JointTrajectory, width: int) -> list[Problem]:
    if not message.points:
        return [Problem('points', 'there are none')]
    problems = []
    with_velocities = len(message.points[0].velocities) > 0
    for row, point in enumerate(message.points):
        if len(point.positions) != width:
            problems.append(Problem(f'points[{row}].positions', 'wrong length', str(len(point.positions)), str(width)))
        expected = width if with_velocities else 0
        if len(point.velocities) != expected:
            value, allowed = str(len(point.velocities)), f'{expected}, as in the first point'
            problems.append(Problem(f'points[{row}].velocities', 'wrong length', value, allowed))
    return problems
