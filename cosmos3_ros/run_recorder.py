"""A node that watches a run from outside and keeps a :class:`~cosmos3_ros.run_record.RunRecord` of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from geometry_msgs.msg import PoseArray, PoseStamped
from numpy.typing import NDArray
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

from cosmos3_msgs.msg import ActionChunk, ChunkDecision, GuardStatus, PolicyStatus
from cosmos3_ros import qos
from cosmos3_ros.conversions import JointReader, image_to_rgb, message_to_pose, stamp_to_ns
from cosmos3_ros.run_record import Decision, RunRecord, SeenChunk, SeenCommand
from engine.contract import Contract
from engine.errors import ObservationError
from engine.evaluation.franka_scene import OBJECTS
from engine.evaluation.simulated_franka import Pose
from engine.observation.views import compose


class RunRecorder(Node):
    """Subscribes to everything a run says; relative topics, so it must live in the run's namespace."""

    def __init__(self, contract: Contract, namespace: str = '', pictures: str = '') -> None:
        """Start recording at once; :attr:`recording` can pause it. Topics of pictures begin with `pictures`."""
        super().__init__('run_recorder', namespace=namespace)
        self.contract = contract
        self.record = RunRecord(contract.robot.joints)
        self.recording = True
        self.policy_status: PolicyStatus | None = None
        self.guard_status: GuardStatus | None = None
        self._views: dict[str, NDArray[np.uint8]] = {}
        self._pace = next(iter(contract.views.streams))
        self._subscribe(pictures)

    @property
    def sensors_deliver(self) -> bool:
        """Whether every view has arrived at least once."""
        return len(self._views) == len(self.contract.views.streams)

    def _subscribe(self, pictures: str) -> None:
        latched, status = qos.latched(), qos.status(50)
        self.create_subscription(ActionChunk, 'policy/chunk', self._on_chunk, status)
        self.create_subscription(PolicyStatus, 'policy/status', self._on_policy, latched)
        self.create_subscription(GuardStatus, 'guard/status', self._on_guard, latched)
        self.create_subscription(ChunkDecision, 'guard/decision', self._on_decision, status)
        self.create_subscription(JointTrajectory, 'joint_trajectory', self._on_command, status)
        self.create_subscription(PoseArray, 'objects', self._on_objects, qos.sensor(5))  # of a simulated robot
        terms = self.contract.state.joint_states
        if terms is not None:
            self._joints = JointReader(self.contract.robot.joints, terms.topic)
            self.create_subscription(JointState, terms.topic, self._on_joints, qos.sensor(50))
        for name, stream in self.contract.views.streams.items():
            topic = f'{pictures}{stream.topic}'
            self.create_subscription(Image, topic, partial(self._on_image, name, topic), qos.sensor(2))

    def now_s(self) -> float:
        """Time of the graph's clock."""
        return self.get_clock().now().nanoseconds / 1e9

    def _on_chunk(self, message: ActionChunk) -> None:
        positions = None
        if message.action_space == ActionChunk.JOINT_POSITION:
            positions = np.asarray(message.positions).reshape(message.rows, -1)
        stamp = stamp_to_ns(message.header.stamp) / 1e9
        grippers = np.asarray(message.grippers).reshape(message.rows, -1) if message.grippers else None
        chunk = SeenChunk(
            message.epoch, message.sequence, stamp, self.now_s(), message.rows, positions, message.instruction, grippers
        )
        self.record.chunks.append(chunk)

    def _on_policy(self, message: PolicyStatus) -> None:
        self.policy_status = message
        stages = zip(message.stage_names, message.stage_p50_s, message.stage_p95_s, strict=True)
        self.record.stages = {name: (p50, p95) for name, p50, p95 in stages}

    def _on_guard(self, message: GuardStatus) -> None:
        self.guard_status = message
        record = self.record
        record.guard_text, record.dry_run = message.text, message.dry_run
        record.margins = (
            message.smallest_position_margin,
            message.smallest_velocity_margin,
            message.smallest_acceleration_margin,
        )
        record.observation_age = (message.observation_age_p50_s, message.observation_age_p95_s)

    def _on_decision(self, message: ChunkDecision) -> None:
        if any((seen.epoch, seen.sequence) == (message.epoch, message.sequence) for seen in self.record.decisions[-8:]):
            return  # told again: a chunk in progress was slowed
        self.record.decisions.append(
            Decision(
                message.epoch,
                message.sequence,
                message.accepted,
                message.reason_name,
                message.text,
                message.splice_jump,
                message.observation_age,
            )
        )

    def _on_command(self, message: JointTrajectory) -> None:
        if not self.recording or not message.points:
            return
        start = stamp_to_ns(message.header.stamp) / 1e9 or self.now_s()
        order = [message.joint_names.index(name) for name in self.record.joint_names]
        times = [point.time_from_start.sec + point.time_from_start.nanosec / 1e9 for point in message.points]
        self.record.commands.append(
            SeenCommand(
                start + np.array(times),
                *(_columns(message, name, order) for name in ('positions', 'velocities', 'accelerations')),
            )
        )

    def _on_joints(self, message: JointState) -> None:
        if not self.recording:
            return
        try:
            positions = self._joints.read(message).positions
        except ObservationError:
            return
        self.record.measured.append((stamp_to_ns(message.header.stamp) / 1e9, positions))

    def _on_objects(self, message: PoseArray) -> None:
        if not self.recording or len(message.poses) != len(OBJECTS):
            return
        there = {}
        for thing, pose in zip(OBJECTS, message.poses, strict=True):
            try:
                found = message_to_pose(PoseStamped(header=message.header, pose=pose), f'objects/{thing.name}')
            except ObservationError:
                return
            there[thing.name] = Pose(found.position, found.quaternion)
        self.record.objects.append((stamp_to_ns(message.header.stamp) / 1e9, there))

    def _on_image(self, name: str, topic: str, message: Image) -> None:
        try:
            self._views[name] = image_to_rgb(message, topic)
        except ObservationError:
            return
        if self.recording and name == self._pace and len(self._views) == len(self.contract.views.streams):
            views = self.contract.views
            picture = compose(self._views, views.composition, views.size)
            self.record.frames.append((stamp_to_ns(message.header.stamp) / 1e9, picture))


def _columns(message: JointTrajectory, name: str, order: Sequence[int]) -> NDArray[np.float64]:
    """[points, J] of one quantity; zeros where a point does not state it."""
    rows = [getattr(point, name) or [0.0] * len(order) for point in message.points]
    return np.asarray(rows, np.float64)[:, order]
