"""The `policy` node: camera frames and joint states in, action chunks out, for one instruction at a time.

===================  =================================================  ==========================================
subscribes           topics of the contract's views and states          images, joint states, end-effector poses
                     `guard/status`                                     to end a run when the guard has stopped it
                     `guard/decision`                                   which chunk is executed, to continue it
publishes            `~/chunk`                                          `ActionChunk`
                     `~/status` (latched, 10 Hz)                        `PolicyStatus`; the guard's heartbeat
action server        `run_policy`                                       `RunPolicy`
===================  =================================================  ==========================================
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from rclpy.action import GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import Image, JointState

from cosmos3_msgs.action import RunPolicy
from cosmos3_msgs.msg import ActionChunk, ChunkDecision, GuardStatus, PolicyStatus
from cosmos3_ros import diagnostics, qos
from cosmos3_ros.conversions import JointReader, image_to_rgb, message_to_pose, ns_to_stamp, stamp_to_ns
from cosmos3_ros.goal_server import GoalServer
from cosmos3_ros.inputs import JOINT_STATES, Inputs, pose_streams
from cosmos3_ros.node_base import CosmosLifecycleNode, configured
from cosmos3_ros.parameters import Parameter, ParameterSet
from cosmos3_ros.policy_loop import End, LoopOptions, Phase, PolicyLoop, Run, TimedChunk
from cosmos3_ros.policy_model import POLICY_PARAMETERS, find_policy
from cosmos3_ros.pose_bridge import PoseBridge
from cosmos3_ros.process import conclude_s
from cosmos3_ros.proposals import PROPOSALS
from cosmos3_ros.streams import Timeline
from engine.contract import Contract, load_contract, with_preset
from engine.errors import ContractError, CosmosError, ObservationError, Problem
from engine.policy_observation import POSE_COLUMNS

if TYPE_CHECKING:
    from engine.policy import Policy
    from engine.serving.client import RemotePolicy

PARAMETERS = (
    *POLICY_PARAMETERS,
    Parameter(
        'timeline',
        'header',
        'Time that counts for an input: when it was acquired (header) or when it arrived (receive).',
        one_of=('header', 'receive'),
    ),
    Parameter(
        'replan_rows', 8, 'Rows between the observations of successive chunks.', minimum=1, maximum=512, read_only=False
    ),
    Parameter(
        'execute_rows',
        0,
        'Rows of each chunk that are handed to the guard, the horizon of execution; 0: all.',
        minimum=0,
        maximum=1024,
        read_only=False,
        check=lambda rows: 'a single row is no motion' if rows == 1 else None,
    ),
    Parameter(
        'splice',
        'blend',
        'How a chunk joins the one before: the guard blends them (blend), or the policy also continues the rows that '
        'are executed while it computes (prefix; no published checkpoint was trained for that).',
        one_of=('blend', 'prefix'),
    ),
    Parameter(
        'end_effector_chunks',
        'joints',
        'How chunks of end-effector contracts leave: as joint positions found by inverse kinematics (joints), which '
        'the guard can execute, or as they are (poses).',
        one_of=('joints', 'poses'),
    ),
    Parameter(
        'input_timeout_s',
        5.0,
        'How long an input may stay missing or stale before the run is given up.',
        's',
        minimum=0.1,
        maximum=600.0,
        read_only=False,
    ),
    Parameter('seed', 0, "Seed of the noise of a run's first chunk.", minimum=0, maximum=2**31 - 1, read_only=False),
    Parameter('fixed_seed', False, 'Use `seed` itself for every chunk.', read_only=False),
    Parameter(
        'status_period_s',
        0.1,
        'Time between two status messages; the guard waits for them.',
        's',
        minimum=0.02,
        maximum=1.0,
    ),
    Parameter('record_directory', '', 'Where to keep the imagined latents of every chunk; empty: nowhere.'),
)
FEEDBACK_PERIOD_S = 0.2
_WAITS = (Phase.WAITING, Phase.NO_SERVER)


class PolicyNode(CosmosLifecycleNode):
    """Lifecycle shell around a :class:`PolicyLoop`."""

    def __init__(self, name: str = 'policy', **kwargs: Any) -> None:
        """Start unconfigured."""
        super().__init__(name, **kwargs)
        self.parameters = ParameterSet(self, PARAMETERS, self._apply)
        self.loop: PolicyLoop | None = None
        self.contract: Contract | None = None
        self._recorder: LatentRecorder | None = None
        self._policy: Policy | RemotePolicy | None = None
        self._goals: GoalServer | None = None
        self._accepting = False

    def configure_node(self) -> None:
        """Load contract and checkpoint, build and warm up, open topics and the action server."""
        values = self.parameters
        self.contract = contract = with_preset(load_contract(values['contract']), values['preset'])
        _check_servable(contract, values['splice'])
        to_joints = values['end_effector_chunks'] == 'joints' and contract.embodiment.action_space == 'ee_delta'
        bridge = PoseBridge(contract) if to_joints else None
        self._policy = policy = find_policy(values, contract, self.get_logger().info)
        if values['record_directory']:
            self._recorder = LatentRecorder(Path(values['record_directory']))
        inputs = Inputs(contract, Timeline(values['timeline']), needs_joints=bridge is not None)
        publish = partial(self._publish_chunk, contract, contract.embodiment.action_space == 'ee_delta' and not bridge)
        self.loop = PolicyLoop(
            policy,
            inputs,
            self.now_ns,
            publish,
            self._report_error,
            self._options(),
            self._record_chunk,
            bridge.joints if bridge else None,
            self._publish_status,
        )
        self._open_outputs()
        self._open_inputs(contract, bridge)
        self.diagnostics.add('policy', self._report_policy)

    def activate_node(self) -> None:
        """Forget what was seen before; wait for instructions."""
        configured(self.loop).reset()
        self._accepting = True
        self._publish_status()

    def deactivate_node(self) -> None:
        """End the run; the guard brings the robot to rest when it hears that nothing runs."""
        self._accepting = False
        if self.loop is not None:
            self.loop.finish(End.DEACTIVATED, 'the policy node was deactivated')
            self._publish_status()
        if self._goals is not None and not self._goals.idle.wait(conclude_s()):
            self.get_logger().error('the run did not conclude in time; its client gets no result')

    def cleanup_node(self) -> None:
        """Release the network."""
        if self.loop is not None:
            self.loop.close()
            PROPOSALS.clear(self.resolve_topic_name('~/chunk'))
        close = getattr(self._policy, 'close', None)  # a connection has one, weights have none
        if close is not None:
            close()
        self.loop = self._recorder = self._goals = self._policy = None
        self.diagnostics.removeByName('policy')

    def clock_jumped(self, backward_s: float) -> None:
        """What was seen, and what is made of it, belongs to another time."""
        if self.loop is not None:
            self.loop.clock_jumped(round(backward_s * 1e9))

    def _options(self) -> LoopOptions:
        values = self.parameters
        return LoopOptions(
            replan_rows=values['replan_rows'],
            execute_rows=values['execute_rows'],
            continue_chunks=values['splice'] == 'prefix',
            input_timeout_ns=int(values['input_timeout_s'] * 1e9),
            server_timeout_ns=int(values['server_timeout_s'] * 1e9),
            seed=values['seed'],
            fixed_seed=values['fixed_seed'],
        )

    def _apply(self, changes: Mapping[str, Any]) -> None:
        if self.loop is not None:
            self.loop.options = self._options()

    # Inputs

    def _open_inputs(self, contract: Contract, bridge: PoseBridge | None) -> None:
        # Pictures take long to read. Neither states nor the guard's word wait for them.
        states = MutuallyExclusiveCallbackGroup()
        for name, terms in contract.views.streams.items():
            self.subscribe(Image, terms.topic, partial(self._on_image, name, terms.topic), qos.sensor())
        if contract.state.joint_states is not None:
            topic = contract.state.joint_states.topic
            read = joint_state_reader(contract, topic, bridge is not None)
            self.subscribe(JointState, topic, partial(self._on_joints, read), qos.sensor(depth=50), states)
        for number, (name, terms) in enumerate(pose_streams(contract).items()):
            place = partial(bridge.in_base, number) if bridge else lambda pose: pose
            on_pose = partial(self._on_pose, name, terms.topic, place)
            self.subscribe(PoseStamped, terms.topic, on_pose, qos.sensor(depth=50), states)
        self.subscribe(GuardStatus, 'guard/status', self._on_guard, qos.latched(), self.control_group)
        self.subscribe(ChunkDecision, 'guard/decision', self._on_decision, qos.status(), self.control_group)

    def _take(self, name: str, read: Callable[[], Any], stamp: Time) -> None:
        """Read one message into its buffer; one that does not fit is reported once and counts as not received."""
        loop = self.loop
        if loop is None or not self.active:
            return
        try:
            value = read()
        except ObservationError as error:
            if loop.inputs.reject(name, error):
                self.get_logger().error(f'{name}: message ignored. {error}')
            return
        loop.inputs.push(name, stamp_to_ns(stamp), self.now_ns(), value)
        loop.wake()

    def _on_image(self, name: str, topic: str, message: Image) -> None:
        self._take(name, lambda: image_to_rgb(message, topic), message.header.stamp)

    def _on_joints(self, read: Callable[[JointState], Any], message: JointState) -> None:
        self._take(JOINT_STATES, lambda: read(message), message.header.stamp)

    def _on_pose(self, name: str, topic: str, place: Callable[[Any], Any], message: PoseStamped) -> None:
        self._take(name, lambda: place(message_to_pose(message, topic)), message.header.stamp)

    def _on_guard(self, message: GuardStatus) -> None:
        if self.loop is None:
            return
        if message.state == GuardStatus.FAULT:
            self.loop.finish(End.STOPPED_BY_GUARD, f'the guard stopped: {message.text}')
        self.loop.follow_epoch(message.epoch)
        if message.state != GuardStatus.TRACKING:
            self.loop.continuation.interrupted()

    def _on_decision(self, message: ChunkDecision) -> None:
        if self.loop is not None:  # a chunk that is played slower is not where its rows say
            in_time = message.accepted and message.pace == 1.0
            self.loop.continuation.decided(message.epoch, message.sequence, in_time)
            if message.accepted and not in_time:
                self.loop.continuation.interrupted()

    # Outputs

    def _open_outputs(self) -> None:
        self._chunks = self.advertise(ActionChunk, '~/chunk', qos.status())
        self._status = self.advertise(PolicyStatus, '~/status', qos.heartbeat(self.parameters['status_period_s']))
        self.create_timer(
            self.parameters['status_period_s'],
            self._publish_status,
            callback_group=self.control_group,
            clock=Clock(clock_type=ClockType.STEADY_TIME),  # "this process is alive" does not depend on simulated time
        )
        self._goals = GoalServer(self, RunPolicy, 'run_policy', self._execute, self._on_goal)

    def _publish_chunk(self, contract: Contract, poses: bool, timed: TimedChunk) -> None:
        PROPOSALS.put(self._chunks.topic_name, timed)  # first: the message makes others look for it
        self._chunks.publish(chunk_message(timed, contract, poses))

    def _record_chunk(self, timed: TimedChunk) -> None:
        if self._recorder is not None:
            self._recorder.add(timed)

    def _publish_status(self) -> None:
        loop = self.loop
        if loop is None or not self.active:
            return
        # From the beginning of a deactivation on, or the last status before silence could tell of a node that waits.
        state = None if self._accepting else PolicyStatus.INACTIVE
        self._status.publish(status_message(loop, self.now_ns(), state))

    def _report_error(self, text: str, error: BaseException) -> None:
        if isinstance(error, CosmosError):
            self.get_logger().error(text)
            return
        self.get_logger().error(f'{text}\n{"".join(traceback.format_exception(error))}')

    def _report_policy(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        loop = self.loop
        if loop is None:
            stat.summary(diagnostics.STALE, 'not configured')
            return stat
        run = loop.run
        waiting = run is not None and run.end is None and run.phase in _WAITS
        stat.summary(diagnostics.WARN if waiting else diagnostics.OK, run.text or run.phase.value if run else 'idle')
        if loop.outage:
            stat.mergeSummary(diagnostics.ERROR, loop.outage)
        if isinstance(url := getattr(loop.policy, 'url', None), str):
            stat.add('policy server', url)
            stat.add('connections so far', getattr(loop.policy, 'generation', 0))
        for name, reason in loop.inputs.rejected.items():
            stat.mergeSummary(diagnostics.ERROR, f'{name}: {reason}')
        for stage, (p50, p95) in loop.latencies.percentiles().items():
            stat.add(f'{stage} p50 / p95 [ms]', f'{p50 * 1e3:.1f} / {p95 * 1e3:.1f}')
        if loop.delays.expected is not None:
            stat.add('observation to chunk, longest of the newest [ms]', f'{loop.delays.expected * 1e3:.1f}')
        return stat

    # Action

    def _on_goal(self, goal: RunPolicy.Goal) -> GoalResponse:
        loop = self.loop
        limit_ns = goal.time_limit.sec * 1_000_000_000 + goal.time_limit.nanosec
        if loop is None or not self._accepting:
            return self._refuse('the node is not active')
        if limit_ns < 0:
            return self._refuse(f'time_limit is negative ({limit_ns / 1e9:g} s)')
        if loop.run is not None and loop.run.end is None:
            return self._refuse(f'already following {loop.run.instruction!r}; cancel that goal first')
        try:
            loop.policy.check_instruction(goal.instruction)
        except CosmosError as error:
            return self._refuse(str(error))
        return GoalResponse.ACCEPT

    def _refuse(self, why: str) -> GoalResponse:
        self.get_logger().error(f'run_policy goal refused: {why}')
        return GoalResponse.REJECT

    def _execute(self, handle: ServerGoalHandle) -> RunPolicy.Result:
        loop, goal = self.loop, handle.request
        if loop is None or not self._accepting:
            handle.abort()
            return RunPolicy.Result(reason=RunPolicy.Result.DEACTIVATED, text='the policy node was deactivated')
        limit_ns = goal.time_limit.sec * 1_000_000_000 + goal.time_limit.nanosec
        try:
            run = loop.begin(goal.instruction, limit_ns)
        except CosmosError as error:
            handle.abort()
            return RunPolicy.Result(reason=RunPolicy.Result.POLICY_ERROR, text=str(error))
        self.get_logger().info(f'following {goal.instruction!r}')
        while not run.ended.wait(FEEDBACK_PERIOD_S):
            if handle.is_cancel_requested:
                loop.finish(End.CANCELED, 'canceled by a client')
            handle.publish_feedback(self._feedback(run, loop))
        return self._conclude(handle, run)

    def _feedback(self, run: Run, loop: PolicyLoop) -> RunPolicy.Feedback:
        latest, (phase, missing) = loop.latencies.latest, run.doing
        return RunPolicy.Feedback(
            phase=phase.value,
            chunks=run.chunks,
            last_latency_s=latest,
            elapsed=_duration(run.lasted_ns(self.now_ns())),
            text='; '.join(missing),
        )

    def _conclude(self, handle: ServerGoalHandle, run: Run) -> RunPolicy.Result:
        end = run.end or End.POLICY_ERROR
        if end is End.TIME_LIMIT:
            handle.succeed()
        elif end is End.CANCELED and handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.abort()
        self._publish_status()
        self.get_logger().info(f'run ended: {run.text} ({run.chunks} chunks)')
        return RunPolicy.Result(
            reason=end.value,
            text=run.text,
            chunks=run.chunks,
            duration=_duration(run.lasted_ns(self.now_ns())),
        )


class LatentRecorder:
    """Keeps the imagined latents of every chunk as `chunk_EPOCH_SEQUENCE.npz`, to be decoded at leisure."""

    def __init__(self, directory: Path) -> None:
        """Make the directory.

        Raises:
            CosmosError: It cannot be made or written to.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CosmosError(f'record_directory {directory} cannot be used: {error.strerror}') from error
        self._directory = directory

    def add(self, timed: TimedChunk) -> None:
        """Write one chunk: `latents` float16 [1, 48, T, h, w], `actions` float32 [rows, D], `stamp_ns`."""
        np.savez(
            self._directory / f'chunk_{timed.epoch}_{timed.sequence:05d}.npz',
            latents=timed.chunk.latents.cpu().numpy().astype(np.float16),
            actions=timed.chunk.actions,
            stamp_ns=timed.stamp_ns,
        )


def _check_servable(contract: Contract, splice: str) -> None:
    """Refuse a contract that asks for what this node cannot feed."""
    problems = []
    rows, space = contract.embodiment.history_rows, contract.embodiment.action_space
    if rows:
        what = 'the policy node does not keep executed rows to feed back'
        remedy = 'call engine.Policy with your own history'
        problems.append(Problem('embodiment.history_rows', what, str(rows), '0', remedy))
    if splice == 'prefix' and space != 'joint_position':
        what = 'chunks of this action space cannot be continued'
        problems.append(Problem('embodiment.action_space', what, space, 'joint_position', "set splice to 'blend'"))
    if problems:
        raise ContractError(f'contract {contract.name}', problems)


def joint_state_reader(
    contract: Contract, topic: str, needs_arm: bool = False
) -> Callable[[JointState], tuple[Any, Any]]:
    """What reads a contract's joint states: positions [J] rad, and the closed fractions of its grippers.

    The latter are a number, with several grippers [G], with none None. End-effector policies look at the grippers
    alone, so for them the arms' joints may be missing from the message, unless they are needed for something else.
    """
    grippers = contract.robot.grippers
    arms = contract.robot.joints if needs_arm or contract.embodiment.action_space == 'joint_position' else ()
    reader = JointReader((*arms, *contract.robot.gripper_joints), topic)

    def read(message: JointState) -> tuple[Any, Any]:
        positions = reader.read(message).positions
        measured = zip(grippers, positions[len(arms) :], strict=True)
        closed = [float(gripper.travel.closed_fraction(position)) for gripper, position in measured]
        return positions[: len(arms)], np.array(closed) if len(closed) > 1 else next(iter(closed), None)

    return read


def chunk_message(timed: TimedChunk, contract: Contract, poses: bool) -> ActionChunk:
    """The message of a chunk: SI units, joints by name, or poses as quaternions; grippers behind either, by name."""
    actions = timed.chunk.actions.astype(np.float64)
    message = ActionChunk(
        epoch=timed.epoch,
        sequence=timed.sequence,
        step_dt=contract.timing.step_s,
        contract=contract.name,
        rows=len(actions),
        instruction=timed.chunk.instruction,
        inference=_duration(int(timed.chunk.seconds['total'] * 1e9)),
    )
    message.header.stamp = ns_to_stamp(timed.stamp_ns)
    robot = contract.robot
    if not poses:
        grippers = len(robot.joints)
        message.action_space = ActionChunk.JOINT_POSITION
        message.joint_names = list(robot.joints)
        message.positions = actions[:, :grippers].ravel().tolist()
    else:
        grippers = POSE_COLUMNS * len(robot.arms)
        message.action_space = ActionChunk.END_EFFECTOR_POSE
        message.header.frame_id = timed.frame_id
        message.end_effector_frames = list(robot.end_effector_frames)
        message.poses = [_pose(pose) for pose in actions[:, :grippers].reshape(-1, POSE_COLUMNS)]
    message.gripper_names = list(robot.gripper_joints)
    message.grippers = actions[:, grippers : grippers + len(robot.grippers)].ravel().tolist()
    return message


def status_message(loop: PolicyLoop, now_ns: int, state: int | None = None) -> PolicyStatus:
    """What the loop is doing, as a message; `state` overrides what the loop says."""
    run = loop.run
    running = run is not None and run.end is None
    phase, missing = run.doing if run is not None else (Phase.WAITING, ())
    if state is None:
        state = PolicyStatus.IDLE
        if run is not None and run.end is End.POLICY_ERROR:
            state = PolicyStatus.FAILED
        elif running:
            state = PolicyStatus.WAITING if phase in _WAITS else PolicyStatus.RUNNING
    stages = loop.latencies.percentiles()
    message = PolicyStatus(
        state=state,
        state_name=_STATE_NAMES[state],
        instruction=run.instruction if running else '',
        epoch=loop.epoch,
        sequence=loop.sequence,
        chunks=loop.chunks,
        stage_names=list(stages),
        stage_p50_s=[p50 for p50, _ in stages.values()],
        stage_p95_s=[p95 for _, p95 in stages.values()],
        missing_or_stale=list(missing) if running else [],
        text=run.text if run is not None else '',
    )
    message.header.stamp = ns_to_stamp(now_ns)
    return message


_STATE_NAMES = {getattr(PolicyStatus, name): name for name in ('INACTIVE', 'IDLE', 'WAITING', 'RUNNING', 'FAILED')}


def _pose(numbers: np.ndarray) -> Pose:
    x, y, z, qx, qy, qz, qw = (float(v) for v in numbers)
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))


def _duration(nanoseconds: int) -> Duration:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return Duration(sec=seconds, nanosec=rest)
