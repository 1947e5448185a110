"""What of a run is worth keeping: every topic that its contract names, and what policy and guard say.

Nothing here needs ROS: topics are told by name and type, so that a bag can be read where ROS is not running.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.contract import Contract

RECORDING = 'cosmos3/recording'
"""Topic of the first message of a bag: the contract's text, and which topic plays which role, as JSON in a String."""

IMAGE, JOINTS, POSE = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/JointState', 'geometry_msgs/msg/PoseStamped'
CHUNK, POLICY, GUARD, DECISION, COMMAND, GRIPPER = 'chunk', 'policy', 'guard', 'decision', 'command', 'gripper'
"""Roles of topics; those of inputs are `view.NAME`, `joint_states`, and `end_effector` or `end_effector.ARM`."""


@dataclass(frozen=True)
class RecordedTopic:
    """One topic of a run.

    Attributes:
        role: What it is to the run.
        name: Its name, relative.
        type: Its type, such as 'sensor_msgs/msg/Image'.
        depth: Messages that may wait to be taken.
        latched: Whether the last message is wanted even if it came before.
        reliable: Whether every message is asked for.
    """

    role: str
    name: str
    type: str
    depth: int
    latched: bool = False
    reliable: bool = False


def recorded_topics(contract: Contract) -> tuple[RecordedTopic, ...]:
    """Every topic of a run under this contract."""
    from cosmos3_ros.inputs import JOINT_STATES, pose_streams

    found = [RecordedTopic(f'view.{name}', s.topic, IMAGE, 10) for name, s in contract.views.streams.items()]
    if contract.state.joint_states is not None:
        found.append(RecordedTopic(JOINT_STATES, contract.state.joint_states.topic, JOINTS, 200))
    found += [RecordedTopic(name, stream.topic, POSE, 200) for name, stream in pose_streams(contract).items()]
    found += [
        RecordedTopic(CHUNK, 'policy/chunk', 'cosmos3_msgs/msg/ActionChunk', 50, reliable=True),
        RecordedTopic(POLICY, 'policy/status', 'cosmos3_msgs/msg/PolicyStatus', 50, latched=True, reliable=True),
        RecordedTopic(GUARD, 'guard/status', 'cosmos3_msgs/msg/GuardStatus', 50, latched=True, reliable=True),
        RecordedTopic(DECISION, 'guard/decision', 'cosmos3_msgs/msg/ChunkDecision', 50, reliable=True),
        RecordedTopic(COMMAND, 'joint_trajectory', 'trajectory_msgs/msg/JointTrajectory', 200, reliable=True),
    ]
    arms = [arm for arm in contract.robot.arms if arm.gripper is not None]
    found += [
        RecordedTopic(f'{GRIPPER}.{arm.name}'.rstrip('.'), f'{arm.prefix}gripper/command', JOINTS, 50, reliable=True)
        for arm in arms
    ]
    return tuple(found)
