"""The `guard` node: the last process before the robot, and the only one that commands it.

===================  ====================================================  =======================================
subscribes           `policy/chunk`, `policy/status`                       chunks; the policy's heartbeat
                     the contract's joint states                           where the robot is
publishes            `joint_trajectory`, `gripper/command`                 commands; `~/preview/...` in a dry run
                     `~/decision`                                          what became of each chunk, and why
                     `~/status`, `~/limits` (latched)                      state and limits in force
services             `~/stop`, `~/reset`, `~/pause`, `~/resume`            `std_srvs/Trigger`
===================  ====================================================  =======================================

It imports neither PyTorch nor the network. All judgement lives in :mod:`cosmos3_ros.guard`; this is its shell.
"""

from __future__ import annotations

import array
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from numpy.typing import NDArray
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from cosmos3_msgs.msg import ActionChunk, ChunkDecision, GuardStatus, LimitsInForce, PolicyStatus
from cosmos3_ros import diagnostics, qos
from cosmos3_ros.conversions import ns_to_stamp, stamp_to_ns
from cosmos3_ros.guard.checks import Acceptance
from cosmos3_ros.guard.chunk import JOINT_POSITION, ReceivedChunk
from cosmos3_ros.guard.guard import Command, Guard, GuardState
from cosmos3_ros.guard.limits import RobotLimits, load_limits
from cosmos3_ros.guard.options import CheckOptions, GuardOptions
from cosmos3_ros.guard.reasons import Reason, Rejection
from cosmos3_ros.node_base import CosmosLifecycleNode, configured
from cosmos3_ros.parameters import Parameter, ParameterSet, Required
from engine.contract import Contract, GripperTerms, load_contract
from engine.errors import ContractError, Problem

RUNNING = 'a running policy'
"""Name of the source that keeps the arm moving: status messages that say chunks are being made."""

PARAMETERS = (
    Parameter('contract', Required(str), 'Contract: a name in config/contracts, or a path.'),
    Parameter('dry_run', True, 'Judge and plan as usual, but send nothing to the robot; see `~/preview`.'),
    Parameter('control_rate_hz', 100.0, 'Rate of commands.', 'Hz', minimum=20.0, maximum=1000.0),
    Parameter(
        'speed_scale',
        1.0,
        "Share of the robot's own velocity, acceleration and jerk limits to use.",
        minimum=0.01,
        maximum=1.0,
    ),
    Parameter('start_jump_rad', 0.05, 'Allowed distance of row 0 from the measured joints.', 'rad', 0.001, 0.5),
    Parameter('splice_jump_rad', 0.2, 'Allowed distance between two chunks where they join.', 'rad', 0.001, 0.5),
    Parameter('chunk_max_age_s', 2.0, 'Oldest observation a chunk may stem from on arrival.', 's', 0.05, 60.0),
    Parameter(
        'replay_from_rest',
        False,
        'Play a late chunk from its first row if the arm stands still; for policies slower than their chunks.',
    ),
    Parameter('heartbeat_max_age_s', 0.5, 'Longest silence of the policy process.', 's', 0.05, 10.0),
    Parameter('policy_max_age_s', 0.35, 'How long the arm moves on after the policy stopped running.', 's', 0.05, 10.0),
    Parameter('tracking_error_rad', 0.3, 'Allowed distance between command and measurement.', 'rad', 0.01, 3.2),
    Parameter('reset_cooldown_s', 0.5, 'Time after a fault during which a reset is refused.', 's', 0.0, 60.0),
    Parameter(
        'gripper_hysteresis',
        0.02,
        'Smallest change of the closed fraction that is sent to the gripper.',
        minimum=0.0,
        maximum=1.0,
        read_only=False,
    ),
)
STATUS_PERIOD_S = 0.1


class GuardNode(CosmosLifecycleNode):
    """Lifecycle shell around a :class:`~cosmos3_ros.guard.guard.Guard`."""

    def __init__(self, name: str = 'guard', **kwargs: Any) -> None:
        """Start unconfigured."""
        super().__init__(name, **kwargs)
        self.parameters = ParameterSet(self, PARAMETERS, self._apply)
        self.guard: Guard | None = None
        # The guard's calls must not overlap, and callbacks of several groups make them. The time is taken inside as
        # well: one that was taken before waiting would look like a clock that runs backwards.
        self._lock = threading.Lock()
        self._gripper: GripperTerms | None = None
        self._sent_gripper: float | None = None
        self._told: tuple[object, ...] = ()
        self._hysteresis = 0.0
        self._dry_run = True

    def configure_node(self) -> None:
        """Read contract and limits; open topics and services."""
        contract = load_contract(self.parameters['contract'])
        limits = limits_of(contract, self.parameters['speed_scale'])
        self.guard = Guard(limits, self._guard_options(contract))
        self._gripper = contract.robot.gripper
        self._hysteresis = self.parameters['gripper_hysteresis']
        self._dry_run = self.parameters['dry_run']
        self._open_outputs()
        self._open_inputs(contract)
        self.diagnostics.setHardwareID(limits.name)
        self.diagnostics.add('guard', self._report_guard)
        mode = 'dry run: nothing is sent' if self._dry_run else 'commands are sent'
        self.get_logger().info(f'limits of {limits.name} at scale {limits.scale:g}; {mode}')

    def activate_node(self) -> None:
        """Begin to guard."""
        guard = configured(self.guard)
        with self._lock:
            guard.activate(self.now_ns())
        self._sent_gripper = None
        self._limits.publish(limits_message(guard.limits, self.now_ns()))
        self._publish_status()

    def deactivate_node(self) -> None:
        """Send the stop, last of all."""
        guard = self.guard
        if guard is None:
            return
        with self._lock:
            last = guard.deactivate(self.now_ns())
            if last is not None:
                self._send(last)
        self._publish_status()

    def cleanup_node(self) -> None:
        """Forget limits and contract."""
        self.guard = None
        self.diagnostics.removeByName('guard')

    def clock_jumped(self, backward_s: float) -> None:
        """The guard notices by itself: every call tells it the time."""

    def _working(self) -> Guard | None:
        """The guard, if the node is active; a callback must keep it in a local, for cleaning up may take it away."""
        return self.guard if self.active else None

    def _guard_options(self, contract: Contract) -> GuardOptions:
        values = self.parameters
        states = contract.state.joint_states
        period_ns = round(1e9 / values['control_rate_hz'])
        return GuardOptions(
            period_ns=period_ns,
            commit_ns=max(30_000_000, 3 * period_ns),
            joint_state_max_age_ns=_ns(states.max_age_s if states else 0.1),
            heartbeat_max_age_ns=_ns(values['heartbeat_max_age_s']),
            sources={RUNNING: _ns(values['policy_max_age_s'])},
            tracking_error_rad=values['tracking_error_rad'],
            reset_cooldown_ns=_ns(values['reset_cooldown_s']),
            dry_run=values['dry_run'],
            checks=CheckOptions(
                start_jump_rad=values['start_jump_rad'],
                splice_jump_rad=values['splice_jump_rad'],
                max_age_ns=_ns(values['chunk_max_age_s']),
                replay_from_rest=values['replay_from_rest'],
            ),
        )

    def _apply(self, changes: Mapping[str, Any]) -> None:
        self._hysteresis = changes.get('gripper_hysteresis', self._hysteresis)

    # Inputs

    def _open_inputs(self, contract: Contract) -> None:
        # Apart from the tick, and from each other: rclpy serves timers before subscriptions of the same group, so that
        # a tick that takes a whole period would leave the guard deaf.
        policy = MutuallyExclusiveCallbackGroup()
        self.subscribe(ActionChunk, 'policy/chunk', self._on_chunk, qos.status(), policy)
        self.subscribe(PolicyStatus, 'policy/status', self._on_policy, qos.latched(), policy)
        if contract.state.joint_states is not None:
            topic = contract.state.joint_states.topic
            self.subscribe(JointState, topic, self._on_joints, qos.sensor(depth=50), self.sensor_group)
        for name, answer in (
            ('stop', self._stop),
            ('reset', self._reset),
            ('pause', self._pause),
            ('resume', self._resume),
        ):
            self.create_service(Trigger, f'~/{name}', answer, callback_group=self.service_group)
        self.create_timer(1.0 / self.parameters['control_rate_hz'], self._tick, callback_group=self.control_group)

    def _on_joints(self, message: JointState) -> None:
        guard = self._working()
        if guard is None:
            return
        stamp, position, velocity = stamp_to_ns(message.header.stamp), message.position, message.velocity
        with self._lock:
            refused = guard.on_joint_state(
                stamp, self.now_ns(), message.name, np.asarray(position), np.asarray(velocity)
            )
        if refused is not None:
            self.get_logger().error(f'joint state ignored. {refused.text}', throttle_duration_sec=1.0)

    def _on_policy(self, message: PolicyStatus) -> None:
        guard = self._working()
        if guard is None:
            return
        with self._lock:
            now = self.now_ns()
            guard.on_heartbeat(now)
            if message.state == PolicyStatus.RUNNING:
                guard.on_source(RUNNING, now, now)

    def _on_chunk(self, message: ActionChunk) -> None:
        guard = self._working()
        if guard is None:
            return
        received = received_chunk(message)
        with self._lock:
            now = self.now_ns()
            verdict = guard.on_chunk(received, now)
        self._decisions.publish(decision_message(message, verdict, now))
        if isinstance(verdict, Rejection):
            self.get_logger().warning(
                f'chunk {message.epoch}/{message.sequence} rejected. {verdict.text}', throttle_duration_sec=1.0
            )

    # Commands

    def _open_outputs(self) -> None:
        prefix = '~/preview/' if self._dry_run else ''
        self._trajectory = self.advertise(JointTrajectory, f'{prefix}joint_trajectory', qos.command())
        self._gripper_command = self.advertise(JointState, f'{prefix}gripper/command', qos.command())
        self._decisions = self.advertise(ChunkDecision, '~/decision', qos.status())
        self._status = self.advertise(GuardStatus, '~/status', qos.latched())
        self._limits = self.advertise(LimitsInForce, '~/limits', qos.latched())
        self.create_timer(STATUS_PERIOD_S, self._publish_status, callback_group=self.service_group)

    def _tick(self) -> None:
        guard = self._working()
        if guard is None:
            return
        with self._lock:
            command = guard.tick(self.now_ns())
            if command is not None:
                self._send(command)  # before anybody else may speak: commands leave in the order they were made
            told = (guard.state, guard.cause.reason)
        if told != self._told:
            self._publish_status()

    def _send(self, command: Command) -> None:
        self._trajectory.publish(trajectory_message(command))
        wanted = command.gripper
        if self._gripper is None or wanted is None:
            return
        sent = self._sent_gripper
        if sent is not None and (wanted == sent or abs(wanted - sent) < self._hysteresis):
            return
        self._sent_gripper = wanted
        position = float(self._gripper.travel.position(wanted))
        message = JointState(name=[self._gripper.joint], position=[position])
        message.header.stamp = ns_to_stamp(command.stamp_ns)
        self._gripper_command.publish(message)

    # What is told

    def _publish_status(self) -> None:
        guard = self._working()
        if guard is None:
            return
        with self._lock:
            message = status_message(guard, self.now_ns(), self._dry_run)
            state, cause = guard.state, guard.cause
            changed = self._told != (state, cause.reason)
            self._told = (state, cause.reason)
        if changed:
            self.get_logger().info(f'{state}: {cause.text}')
        self._status.publish(message)

    def _report_guard(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        guard = self.guard
        if guard is None:
            stat.summary(diagnostics.STALE, 'not configured')
            return stat
        with self._lock:
            state, cause, counts = guard.state, guard.cause, guard.statistics()
        level = diagnostics.OK if state in (GuardState.WAITING, GuardState.TRACKING) else diagnostics.WARN
        stat.summary(diagnostics.ERROR if state is GuardState.FAULT else level, f'{state}: {cause.text}')
        stat.add('chunks accepted / received', f'{counts.chunks_accepted} / {counts.chunks_received}')
        for reason, count in counts.rejections.items():
            stat.add(f'rejected: {reason.name}', count)
        for reason, count in counts.stops.items():
            stat.add(f'stopped: {reason.name}', count)
        stat.add('largest splice jump [rad]', f'{counts.largest_splice_jump:.4f}')
        return stat

    # Services

    def _stop(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._answer(response, lambda guard, now: guard.request_stop('asked for by ~/stop', now), 'stopping')

    def _pause(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._answer(response, lambda guard, now: guard.pause(now), 'pausing')

    def _resume(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._answer(response, lambda guard, now: guard.resume(now), 'chunks are accepted again')

    def _reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        guard = self._working()
        if guard is None:
            response.success, response.message = False, 'the guard is not active'
            return response
        with self._lock:
            response.success, response.message = guard.reset(self.now_ns())
        self._publish_status()
        return response

    def _answer(self, response: Trigger.Response, act: Callable[[Guard, int], None], done: str) -> Trigger.Response:
        guard = self._working()
        if guard is None:
            response.success, response.message = False, 'the guard is not active'
            return response
        with self._lock:
            act(guard, self.now_ns())
        response.success, response.message = True, done
        self._publish_status()
        return response


def limits_of(contract: Contract, scale: float = 1.0) -> RobotLimits:
    """Limits of a contract's robot, in the contract's order of joints.

    Raises:
        InvalidInput: The robot has no file, or its file is faulty or has other joints.
        ContractError: The contract's rows are not joint positions and it names no joints to guard.
    """
    if not contract.robot.joints:
        problem = Problem('robot.joints', 'is empty: there is nothing to guard')
        raise ContractError(f'contract {contract.name}', [problem])
    return load_limits(contract.robot.description, scale=scale).for_joints(contract.robot.joints)


def received_chunk(message: ActionChunk) -> ReceivedChunk:
    """The message as the guard takes it; nothing in it is trusted yet."""
    positions: Any = np.asarray(message.positions, np.float64)
    joints = len(message.joint_names)
    if joints and positions.size == message.rows * joints:
        positions = positions.reshape(message.rows, joints)
    spaces = {ActionChunk.JOINT_POSITION: JOINT_POSITION, ActionChunk.END_EFFECTOR_POSE: 'end_effector_pose'}
    usable_step = math.isfinite(message.step_dt) and 0 < message.step_dt < 1e6
    return ReceivedChunk(
        stamp_ns=stamp_to_ns(message.header.stamp),
        epoch=message.epoch,
        sequence=message.sequence,
        step_ns=_ns(message.step_dt) if usable_step else 0,
        joint_names=list(message.joint_names),
        positions=positions,
        gripper=np.asarray(message.gripper, np.float64) if len(message.gripper) else None,
        action_space=spaces.get(message.action_space, f'number {message.action_space}'),
    )


def trajectory_message(command: Command) -> JointTrajectory:
    """The command as a trajectory controller takes it."""
    message = JointTrajectory(joint_names=list(command.joint_names))
    message.header.stamp = ns_to_stamp(command.stamp_ns)
    rows = zip(command.times_ns, command.positions, command.velocities, command.accelerations, strict=True)
    message.points = [
        JointTrajectoryPoint(
            time_from_start=Duration(sec=int(time_ns) // 1_000_000_000, nanosec=int(time_ns) % 1_000_000_000),
            positions=_doubles(positions),
            velocities=_doubles(velocities),
            accelerations=_doubles(accelerations),
        )
        for time_ns, positions, velocities, accelerations in rows
    ]
    return message


def decision_message(chunk: ActionChunk, verdict: Acceptance | Rejection, now_ns: int) -> ChunkDecision:
    """What became of a chunk."""
    stamp = stamp_to_ns(chunk.header.stamp)
    message = ChunkDecision(
        decided=ns_to_stamp(now_ns),
        stamp=chunk.header.stamp,
        epoch=chunk.epoch,
        sequence=chunk.sequence,
        accepted=not isinstance(verdict, Rejection),
        row=-1,
        value=math.nan,
        limit=math.nan,
        splice_jump=math.nan,
        observation_age=(now_ns - stamp) / 1e9,
        reason_name=Reason.NONE.name,
    )
    if not isinstance(verdict, Rejection):
        message.splice_jump = verdict.splice_jump
        message.text = f'accepted; {verdict.rows_dropped} rows were past'
        return message
    message.reason, message.reason_name = int(verdict.reason), verdict.reason.name
    message.text, message.joint = verdict.text, verdict.joint
    message.row = -1 if verdict.row is None else verdict.row
    message.value = math.nan if verdict.value is None else verdict.value
    message.limit = math.nan if verdict.limit is None else verdict.limit
    return message


def status_message(guard: Guard, now_ns: int, dry_run: bool) -> GuardStatus:
    """State, cause and extremes of the guard."""
    counts, cause = guard.statistics(), guard.cause
    ages = np.asarray(counts.observation_ages) if counts.observation_ages else np.array([math.nan])
    message = GuardStatus(
        state=getattr(GuardStatus, guard.state.value),
        state_name=guard.state.value,
        reason=int(cause.reason),
        reason_name=cause.reason.name,
        text=cause.text,
        epoch=guard.epoch,
        dry_run=dry_run,
        accepted=counts.chunks_accepted,
        rejected=sum(counts.rejections.values()),
        buffer_s=guard.buffer_ns / 1e9,
        smallest_position_margin=counts.position_margin.value,
        smallest_velocity_margin=counts.velocity_margin.value,
        smallest_acceleration_margin=counts.acceleration_margin.value,
        rejection_names=[reason.name for reason in counts.rejections],
        rejection_counts=list(counts.rejections.values()),
        largest_splice_jump=counts.largest_splice_jump,
        observation_age_p50_s=float(np.percentile(ages, 50)),
        observation_age_p95_s=float(np.percentile(ages, 95)),
    )
    message.header.stamp = ns_to_stamp(now_ns)
    return message


def limits_message(limits: RobotLimits, now_ns: int) -> LimitsInForce:
    """The limits that commands are held to."""
    message = LimitsInForce(
        robot=limits.name,
        source=limits.source,
        joint_names=list(limits.joint_names),
        position_min=_doubles(limits.soft_lower),
        position_max=_doubles(limits.soft_upper),
        velocity=_doubles(limits.velocity),
        acceleration=_doubles(limits.acceleration),
        jerk=_doubles(limits.jerk),
        scale=limits.scale,
    )
    message.header.stamp = ns_to_stamp(now_ns)
    return message


def _doubles(values: NDArray[np.float64]) -> array.array[float]:
    return array.array('d', np.ascontiguousarray(values, np.float64).tobytes())


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
