"""What leaves the guard: commands to arm and gripper, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from cosmos3_msgs.msg import ActionChunk, ChunkDecision, GuardStatus, LimitsInForce
from cosmos3_ros import qos
from cosmos3_ros.gripper_output import TOPIC, GripperOutput, action_name, open_gripper
from cosmos3_ros.guard.checks import Acceptance
from cosmos3_ros.guard.guard import Command, GuardState, Slowed
from cosmos3_ros.guard.limits import RobotLimits
from cosmos3_ros.guard.reasons import Rejection
from cosmos3_ros.guard_messages import (
    GuardView,
    TrajectoryWriter,
    decision_message,
    limits_message,
    slowed_message,
    status_message,
)
from cosmos3_ros.node_base import CosmosLifecycleNode
from engine.contract import ArmTerms, GripperTerms


@dataclass(frozen=True)
class GripperChoice:
    """How the grippers are told where to go; see :func:`~cosmos3_ros.gripper_output.open_gripper`."""

    interface: str = TOPIC
    action: str = ''
    max_effort: float = 0.0


class GripperCommands:
    """Commands on their way to one gripper, when they change."""

    def __init__(self, name: str, terms: GripperTerms, output: GripperOutput) -> None:
        """`name` is that of its task in the diagnostics."""
        self.name, self.output = name, output
        self._terms = terms
        self._sent: float | None = None

    def send(self, wanted: float, stamp_ns: int, hysteresis: float) -> None:
        """Let it close to `wanted` (0 open, 1 closed) if that is `hysteresis` or more from what it was told last."""
        sent = self._sent
        if sent is not None and (wanted == sent or abs(wanted - sent) < hysteresis):
            return
        self._sent = wanted
        self.output.send(float(self._terms.travel.position(wanted)), stamp_ns)

    def forget(self) -> None:
        """Whatever it was told may have been changed by others: the next wish is sent in any case."""
        self._sent = None


class CommandOutput:
    """Commands on their way to arms and grippers; in a dry run, on their way to whoever wants to see them."""

    def __init__(
        self,
        node: CosmosLifecycleNode,
        joint_names: tuple[str, ...],
        arms: tuple[ArmTerms, ...],
        choice: GripperChoice,
        dry_run: bool,
    ) -> None:
        """Open the outputs.

        Args:
            node: Whose publishers they are.
            joint_names: Joints of the arms, in the order of all commands.
            arms: What the contract says of the arms and their grippers; that of an arm with a name is told under
                that name: `left/gripper/command`.
            choice: How the grippers are told.
            dry_run: Whether commands go to `~/preview` instead.

        Raises:
            InvalidInput: The grippers are to be told by an action of a package that is not installed, or all by the
                same.
        """
        prefix = '~/preview/' if dry_run else ''
        self._trajectory = node.advertise(JointTrajectory, f'{prefix}joint_trajectory', qos.command())
        self._writer = TrajectoryWriter(joint_names)
        interface = TOPIC if dry_run else choice.interface
        topics = [f'{prefix}{arm.prefix}gripper/command' for arm in arms]
        names = topics if interface == TOPIC else [action_name(choice.action, arm) for arm in arms]
        self.grippers = tuple(
            GripperCommands(
                f'{arm.name} gripper'.lstrip(),
                arm.gripper,
                open_gripper(node, interface, name, arm.gripper.joint, choice.max_effort),
            )
            for arm, name in zip(arms, names, strict=True)
            if arm.gripper is not None
        )
        """In the order of the contract's grippers."""
        self.hysteresis = 0.0
        """Smallest change of the closed fraction that is sent to a gripper."""

    @property
    def topic(self) -> str:
        """Where commands to the arm go."""
        return self._trajectory.topic_name

    @property
    def dropped(self) -> int:
        """Commands to the arm that were not sent because the node was not active."""
        return self._trajectory.dropped

    def send(self, command: Command) -> None:
        """Send to the arms, and to each gripper that is to change; never waits for any."""
        self._trajectory.publish(self._writer.message(command))
        if command.gripper is None:
            return
        for gripper, wanted in zip(self.grippers, command.gripper, strict=True):
            gripper.send(wanted, command.stamp_ns, self.hysteresis)

    def begin(self) -> None:
        """Begin anew: see :meth:`GripperCommands.forget`."""
        for gripper in self.grippers:
            gripper.forget()

    def rest(self) -> None:
        """Drop what the grippers have not been told yet."""
        for gripper in self.grippers:
            gripper.output.rest()

    def close(self) -> None:
        """End what runs in the background."""
        for gripper in self.grippers:
            gripper.output.close()


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

    def slowed(self, slowed: Slowed, now_ns: int) -> None:
        """Tell that a chunk which was accepted before goes on more slowly."""
        self._decisions.publish(slowed_message(slowed, now_ns))

    def limits(self, limits: RobotLimits) -> None:
        """Tell which limits are in force."""
        self._limits.publish(limits_message(limits, self._node.now_ns()))

    def is_news(self, state: object, cause: Rejection) -> bool:
        """Whether this differs from what was told last."""
        return (state, cause.reason) != self._told

    def status(self, view: GuardView, now_ns: int) -> None:
        """Tell what the guard is doing; on a change, into the log as well."""
        if self.is_news(view.state, view.cause):
            # The end of a stop says nothing that its beginning has not said.
            known = view.state is GuardState.HOLDING and self._told == (GuardState.BRAKING, view.cause.reason)
            self._told = (view.state, view.cause.reason)
            if not known:
                self._node.get_logger().info(f'{view.state}: {view.cause.text}')
        mode = view.mode(self._dry_run)
        if mode != self._told_mode:
            self._told_mode = mode
            self._mode.publish(String(data=mode))
        self._status.publish(status_message(view, now_ns, self._dry_run))
