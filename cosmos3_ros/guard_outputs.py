"""What leaves the guard: commands to arm and gripper, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from cosmos3_msgs.msg import ActionChunk, ChunkDecision, GuardStatus, LimitsInForce
from cosmos3_ros import diagnostics, qos
from cosmos3_ros.gripper_output import TOPIC, GripperOutput, TopicGripper, open_gripper
from cosmos3_ros.guard.checks import Acceptance
from cosmos3_ros.guard.guard import Command
from cosmos3_ros.guard.limits import RobotLimits
from cosmos3_ros.guard.reasons import Rejection
from cosmos3_ros.guard_messages import (
    GuardView,
    TrajectoryWriter,
    decision_message,
    limits_message,
    status_message,
)
from cosmos3_ros.node_base import CosmosLifecycleNode
from engine.contract import GripperTerms


@dataclass(frozen=True)
class GripperChoice:
    """How the gripper is told where to go; see :func:`~cosmos3_ros.gripper_output.open_gripper`."""

    interface: str = TOPIC
    action: str = ''
    max_effort: float = 0.0


class CommandOutput:
    """Commands on their way to the arm and to the gripper; in a dry run, on their way to whoever wants to see them."""

    def __init__(
        self,
        node: CosmosLifecycleNode,
        joint_names: tuple[str, ...],
        terms: GripperTerms | None,
        choice: GripperChoice,
        dry_run: bool,
    ) -> None:
        """Open the outputs.

        Args:
            node: Whose publishers they are.
            joint_names: Joints of the arm, in the order of all commands.
            terms: What the contract says of the gripper; None if the robot has none.
            choice: How the gripper is told.
            dry_run: Whether commands go to `~/preview` instead.

        Raises:
            InvalidInput: The gripper is to be told by an action of a package that is not installed.
        """
        prefix = '~/preview/' if dry_run else ''
        self._trajectory = node.advertise(JointTrajectory, f'{prefix}joint_trajectory', qos.command())
        self._writer = TrajectoryWriter(joint_names)
        self._terms = terms
        self._gripper: GripperOutput | None = None
        if terms is not None and (dry_run or choice.interface == TOPIC):
            self._gripper = TopicGripper(node, terms.joint, f'{prefix}gripper/command')
        elif terms is not None:
            self._gripper = open_gripper(node, choice.interface, choice.action, terms.joint, choice.max_effort)
        self._sent_gripper: float | None = None
        self.hysteresis = 0.0
        """Smallest change of the closed fraction that is sent to the gripper."""

    @property
    def topic(self) -> str:
        """Where commands to the arm go."""
        return self._trajectory.topic_name

    @property
    def dropped(self) -> int:
        """Commands to the arm that were not sent because the node was not active."""
        return self._trajectory.dropped

    def send(self, command: Command) -> None:
        """Send to the arm, and to the gripper if that is to change; never waits for either."""
        self._trajectory.publish(self._writer.message(command))
        wanted, sent = command.gripper, self._sent_gripper
        if self._gripper is None or self._terms is None or wanted is None:
            return
        if sent is not None and (wanted == sent or abs(wanted - sent) < self.hysteresis):
            return
        self._sent_gripper = wanted
        self._gripper.send(float(self._terms.travel.position(wanted)), command.stamp_ns)

    def begin(self) -> None:
        """Whatever was sent before may have been changed by others: the next wish is sent in any case."""
        self._sent_gripper = None

    def rest(self) -> None:
        """Drop what the gripper has not been told yet."""
        if self._gripper is not None:
            self._gripper.rest()

    def close(self) -> None:
        """End what runs in the background."""
        if self._gripper is not None:
            self._gripper.close()

    def report_gripper(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        """Say how the gripper is told."""
        if self._gripper is not None:
            return self._gripper.report(stat)
        stat.summary(diagnostics.OK, 'the contract has no gripper')
        return stat


class Reports:
    """What the guard tells: a decision for each chunk; status, mode and limits for whoever comes."""

    def __init__(self, node: CosmosLifecycleNode, dry_run: bool) -> None:
        self._node, self._dry_run = node, dry_run
        self._decisions = node.advertise(ChunkDecision, '~/decision', qos.status())
        self._status = node.advertise(GuardStatus, '~/status', qos.latched())
        self._mode = node.advertise(String, '~/mode', qos.latched())
        self._limits = node.advertise(LimitsInForce, '~/limits', qos.latched())
        self._told: tuple[object, ...] = ()
        self._told_mode = ''

    def begin(self, limits: RobotLimits) -> None:
        """Tell everything anew."""
        self._told_mode = ''
        self.limits(limits)

    def decision(self, chunk: ActionChunk, verdict: Acceptance | Rejection, now_ns: int) -> None:
        """Tell what became of a chunk."""
        self._decisions.publish(decision_message(chunk, verdict, now_ns))

    def limits(self, limits: RobotLimits) -> None:
        """Tell which limits are in force."""
        self._limits.publish(limits_message(limits, self._node.now_ns()))

    def is_news(self, state: object, cause: Rejection) -> bool:
        """Whether this differs from what was told last."""
        return (state, cause.reason) != self._told

    def status(self, view: GuardView, now_ns: int) -> None:
        """Tell what the guard is doing; on a change, into the log as well."""
        if self.is_news(view.state, view.cause):
            self._told = (view.state, view.cause.reason)
            self._node.get_logger().info(f'{view.state}: {view.cause.text}')
        mode = view.mode(self._dry_run)
        if mode != self._told_mode:
            self._told_mode = mode
            self._mode.publish(String(data=mode))
        self._status.publish(status_message(view, now_ns, self._dry_run))
