"""The `guard` node: the last process before the robot, and the only one that commands it.

===================  ====================================================  =======================================
subscribes           `policy/chunk`, `policy/status`                       chunks; the policy's heartbeat
                     the contract's joint states                           where the robot is
                     the topic of the parameter `estop_topic`              an emergency stop
                     `dynamics/verdict`                                    what imagination makes of chunks
publishes            `joint_trajectory`                                    commands; `~/preview/...` in a dry run
                     `gripper/command`, or `ARM/gripper/command` for       likewise
                     each named arm of a contract with several
                     `~/decision`                                          what became of each chunk, and why;
                                                                           once more when it is slowed down
                     `~/status`, `~/mode`, `~/limits` (latched)            state, mode and limits in force
services             `~/stop`, `~/reset`, `~/pause`, `~/resume`            `std_srvs/Trigger`
===================  ====================================================  =======================================

It imports neither PyTorch nor the network. All judgement lives in :mod:`cosmos3_ros.guard`; this is its shell.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.parameter import Parameter as RosParameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from cosmos3_msgs.msg import ActionChunk, PolicyStatus, Verdict
from cosmos3_ros import diagnostics, qos
from cosmos3_ros.control_loop import REMEDY, ControlLoop
from cosmos3_ros.conversions import stamp_to_ns
from cosmos3_ros.gripper_output import INTERFACES, TOPIC
from cosmos3_ros.guard.checks import Acceptance
from cosmos3_ros.guard.chunk import ReceivedChunk
from cosmos3_ros.guard.guard import Answer, Guard, GuardState
from cosmos3_ros.guard.limits import RobotLimits, load_limits
from cosmos3_ros.guard.options import ON_STOP, ON_UNKNOWN, CheckOptions, GuardOptions, VerdictOptions
from cosmos3_ros.guard.reasons import Rejection
from cosmos3_ros.guard.robot_description import limits_with_description
from cosmos3_ros.guard_messages import GuardView, received_chunk, received_verdict
from cosmos3_ros.guard_outputs import CommandOutput, GripperChoice, Reports
from cosmos3_ros.node_base import CosmosLifecycleNode, configured
from cosmos3_ros.parameters import Parameter, ParameterSet, Required
from cosmos3_ros.watchdogs import Watchdogs
from engine.contract import Contract, load_contract
from engine.errors import ContractError, InvalidInput, Problem

RUNNING = 'a running policy'
"""Name of the source that keeps the arm moving: status messages that say chunks are being made."""

PARAMETERS = (
    Parameter('contract', Required(str), 'Contract: a name in config/contracts, or a path.'),
    Parameter(
        'robot_description',
        '',
        'Path of a URDF file whose limits hold as well as those of the robot file, the more restrictive of each; '
        'empty: none.',
    ),
    Parameter('dry_run', True, 'Judge and plan as usual, but send nothing to the robot; see `~/preview`.'),
    Parameter('control_rate_hz', 100.0, 'Rate of commands.', 'Hz', minimum=20.0, maximum=1000.0),
    Parameter(
        'speed_scale',
        1.0,
        "Share of the robot's own velocity, acceleration and jerk limits to use; changed while the arm rests.",
        minimum=0.01,
        maximum=1.0,
        read_only=False,
    ),
    Parameter('start_jump_rad', 0.05, 'Allowed distance of row 0 from the measured joints.', 'rad', 0.001, 0.5),
    Parameter('splice_jump_rad', 0.2, 'Allowed distance between two chunks where they join.', 'rad', 0.001, 0.5),
    Parameter('chunk_max_age_s', 2.0, 'Oldest observation a chunk may stem from on arrival.', 's', 0.05, 60.0),
    Parameter(
        'slowest_pace',
        0.5,
        'A chunk too fast for the robot is played slower along the same path, down to this share of its own speed; '
        '1: it is rejected.',
        minimum=0.01,
        maximum=1.0,
    ),
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
        'Smallest change of the closed fraction that is sent to a gripper.',
        minimum=0.0,
        maximum=1.0,
        read_only=False,
    ),
    Parameter(
        'gripper_interface',
        TOPIC,
        'How grippers are told: on a topic, or as goals of an action of control_msgs.',
        one_of=tuple(INTERFACES),
    ),
    Parameter(
        'gripper_action',
        'gripper/gripper_cmd',
        "Name of the action server of the gripper, if it has one; {arm} in it stands for the arm's name, which goes in "
        'front if there is none.',
    ),
    Parameter(
        'gripper_max_effort', 0.0, "Largest force of the gripper's actions; 0: the server's own.", 'N', 0.0, 1000.0
    ),
    Parameter('estop_topic', '', 'Topic of an emergency stop (std_msgs/Bool, true: stop); empty: none.'),
    Parameter('estop_max_age_s', 0.0, 'Longest silence of the emergency stop; 0: it may be silent.', 's', 0.0, 60.0),
    Parameter(
        'estop_deadline_s', 0.0, 'Deadline to demand of the publisher of the emergency stop; 0: none.', 's', 0.0, 60.0
    ),
    Parameter('estop_lease_s', 0.0, 'Liveliness lease to demand of the same; 0: none.', 's', minimum=0.0, maximum=60.0),
    Parameter(
        'joint_states_deadline_s', 0.0, 'Deadline to demand of the publisher of joint states; 0: none.', 's', 0.0, 10.0
    ),
    Parameter('heed_verdicts', True, 'Heed verdicts of imagination: they can slow the arm down or stop it.'),
    Parameter(
        'on_stop_verdict',
        'latch',
        'After a STOP: a fault until a person resets it (latch), or a stop until a later chunk is found better (hold).',
        one_of=ON_STOP,
    ),
    Parameter(
        'slow_verdict_pace',
        0.5,
        'Largest share of its own speed at which a chunk is played after a SLOW.',
        minimum=0.01,
        maximum=0.99,
    ),
    Parameter(
        'on_unknown_verdict',
        'ignore',
        'When nothing is known of the newest chunks: go on as without imagination (ignore), as after a SLOW (slow), or '
        'stand until something is known (stop).',
        one_of=ON_UNKNOWN,
    ),
    Parameter(
        'verdict_max_age_s',
        2.0,
        'Oldest observation that a verdict may be about, and how long the last one that said something counts.',
        's',
        0.05,
        60.0,
    ),
    Parameter(
        'realtime_priority',
        40,
        'Real-time priority (SCHED_FIFO) of the control thread, if the process may have one; the other threads of the '
        'executable then get 1. 0: none.',
        minimum=0,
        maximum=98,
    ),
)
STATUS_PERIOD_S = 0.1
LOOK_PERIOD_NS = 20_000_000
"""How often the guard looks for what the middleware noticed, and for others who command the arm."""

Act = Callable[[Guard, int], object]
"""Something that the guard does at a time; False if that need not be acted upon at once."""


class GuardNode(CosmosLifecycleNode):
    """Lifecycle shell around a :class:`~cosmos3_ros.guard.guard.Guard`."""

    def __init__(self, name: str = 'guard', *, owns_process: bool = False, **kwargs: Any) -> None:
        """Start unconfigured.

        Args:
            name: Its name on the graph.
            owns_process: Whether nothing else runs in this process, see
                :class:`~cosmos3_ros.control_loop.ControlLoop`.
            kwargs: Of the node.
        """
        super().__init__(name, **kwargs)
        self._owns_process = owns_process
        self.parameters = ParameterSet(self, PARAMETERS, self._apply)
        self.add_on_set_parameters_callback(self._may_change)
        self.guard: Guard | None = None
        self.output: CommandOutput | None = None
        self.loop: ControlLoop | None = None
        self._contract: Contract | None = None
        self._reports: Reports | None = None
        self._watchdogs: Watchdogs | None = None
        # The guard's calls must not overlap, and callbacks of several groups make them. The time is taken inside as
        # well: one that was taken before waiting would look like a clock that runs backwards.
        self._lock = threading.Lock()
        self._telling = threading.Lock()  # so that what is told leaves in order; never taken inside the other
        self._new_limits: RobotLimits | None = None
        self._joint_states = self._policy_status = self._emergency_stop = ''
        self._looked_ns = 0
        self._control_failure = ''
        self._hinted = False

    def configure_node(self) -> None:
        """Read contract and limits; open topics and services."""
        values = self.parameters
        self._contract = contract = load_contract(values['contract'])
        limits = limits_of(contract, values['speed_scale'], values['robot_description'])
        options = self._guard_options(contract)
        rehearse(limits, options)
        self.guard = Guard(limits, options, contract.robot.gripper_joints)
        choice = GripperChoice(values['gripper_interface'], values['gripper_action'], values['gripper_max_effort'])
        self.output = CommandOutput(self, limits.joint_names, contract.robot.arms, choice, values['dry_run'])
        self.output.hysteresis = values['gripper_hysteresis']
        self._reports = Reports(self, values['dry_run'])
        self._watchdogs = Watchdogs(self, self._on_alarm)
        if not values['dry_run']:
            self._watchdogs.reserve(self.output.topic)
        self._open_inputs(contract)
        self._open_services()
        self._open_control()
        self.diagnostics.setHardwareID(limits.name)
        self.diagnostics.add('guard', self._report_guard)
        self.diagnostics.add('control', self._report_control)
        for gripper in self.output.grippers:
            self.diagnostics.add(gripper.name, gripper.output.report)
        mode = 'dry run: nothing is sent' if values['dry_run'] else 'commands are sent'
        self.get_logger().info(f'limits of {limits.name} at scale {limits.scale:g}; {mode}')
        for remark in (*limits.differences, *limits.unchecked):
            self.get_logger().warning(remark)

    def activate_node(self) -> None:
        """Begin to guard."""
        guard = configured(self.guard)
        with self._lock:
            guard.activate(self.now_ns())
        configured(self.output).begin()
        configured(self._reports).begin(guard.limits)
        self._publish_status()
        self._start_ticking()

    def deactivate_node(self) -> None:
        """Send the stop, last of all."""
        if self.loop is not None:
            self.loop.stop()
        guard, output = self.guard, self.output
        if guard is None or output is None:
            return
        with self._lock:
            last = guard.deactivate(self.now_ns())
            if last is not None:
                output.send(last)
        output.rest()
        self._publish_status()

    def cleanup_node(self) -> None:
        """Forget limits and contract."""
        for task in ('guard', 'control'):
            self.diagnostics.removeByName(task)
        if self.output is not None:
            for gripper in self.output.grippers:
                self.diagnostics.removeByName(gripper.name)
            self.output.close()
        self.guard = self.output = self.loop = None
        self._contract = self._reports = self._watchdogs = self._new_limits = None

    def clock_jumped(self, backward_s: float) -> None:
        """The guard notices by itself: every call tells it the time."""

    def _working(self) -> Guard | None:
        """The guard, if the node is active; a callback must keep it in a local, for cleaning up may take it away."""
        return self.guard if self.active else None

    def _guard_options(self, contract: Contract) -> GuardOptions:
        values = self.parameters
        states, estop_max_age_s = contract.state.joint_states, values['estop_max_age_s']
        period_ns = round(1e9 / values['control_rate_hz'])
        return GuardOptions(
            period_ns=period_ns,
            commit_ns=max(30_000_000, 3 * period_ns),
            joint_state_max_age_ns=_ns(states.max_age_s if states else 0.1),
            heartbeat_max_age_ns=_ns(values['heartbeat_max_age_s']),
            emergency_stop=bool(values['estop_topic']),
            emergency_stop_max_age_ns=_ns(estop_max_age_s) if estop_max_age_s else None,
            sources={RUNNING: _ns(values['policy_max_age_s'])},
            tracking_error_rad=values['tracking_error_rad'],
            reset_cooldown_ns=_ns(values['reset_cooldown_s']),
            dry_run=values['dry_run'],
            checks=CheckOptions(
                start_jump_rad=values['start_jump_rad'],
                splice_jump_rad=values['splice_jump_rad'],
                max_age_ns=_ns(values['chunk_max_age_s']),
                replay_from_rest=values['replay_from_rest'],
                slowest_pace=values['slowest_pace'],
            ),
            verdicts=self._verdict_options() if values['heed_verdicts'] else None,
        )

    def _verdict_options(self) -> VerdictOptions:
        values = self.parameters
        return VerdictOptions(
            on_stop=values['on_stop_verdict'],
            slow_pace=values['slow_verdict_pace'],
            on_unknown=values['on_unknown_verdict'],
            max_age_ns=_ns(values['verdict_max_age_s']),
        )

    # Parameters that change

    def _may_change(self, changes: Sequence[RosParameter]) -> SetParametersResult:
        guard = self.guard
        if guard is None or all(change.name != 'speed_scale' for change in changes):
            return SetParametersResult(successful=True)
        with self._lock:
            rests = guard.at_rest
        reason = '' if rests else 'speed_scale: the arm moves; call ~/pause, and set it when the arm rests'
        return SetParametersResult(successful=rests, reason=reason)

    def _apply(self, changes: Mapping[str, Any]) -> None:
        if self.output is not None:
            self.output.hysteresis = changes.get('gripper_hysteresis', self.output.hysteresis)
        if 'speed_scale' in changes and self._contract is not None:
            limits = limits_of(self._contract, changes['speed_scale'], self.parameters['robot_description'])
            rehearse(limits, self._guard_options(self._contract))
            self._new_limits = limits
            self._change_limits()

    def _change_limits(self) -> None:
        """Put new limits in force; if the arm was set in motion in between, as soon as it rests."""
        guard, limits, reports = self.guard, self._new_limits, self._reports
        if guard is None or limits is None or reports is None:
            return
        with self._lock:
            changed = guard.change_limits(limits, self.now_ns()).ok
        if changed:
            self._new_limits = None
            reports.limits(limits)
            self.get_logger().info(f'limits of {limits.name} at scale {limits.scale:g} are in force')

    # Inputs

    def _open_inputs(self, contract: Contract) -> None:
        # Apart from the tick, and from each other: rclpy serves timers before subscriptions of the same group, so that
        # a tick that takes a whole period would leave the guard deaf.
        policy, watchdogs = MutuallyExclusiveCallbackGroup(), configured(self._watchdogs)
        self.subscribe(ActionChunk, 'policy/chunk', self._on_chunk, qos.status(), policy)
        status = self.subscribe(PolicyStatus, 'policy/status', self._on_policy, qos.latched(), policy)
        self._policy_status = status.topic_name
        self._watch_policy(policy)
        states = contract.state.joint_states
        if states is not None:
            profile = qos.with_terms(qos.sensor(50), deadline_s=self.parameters['joint_states_deadline_s'])
            heard = self.subscribe(JointState, states.topic, self._on_joints, profile, self.sensor_group)
            self._joint_states = heard.topic_name
            if self.parameters['joint_states_deadline_s']:
                watchdogs.listen(heard, self.topic_events[heard.topic_name])
        if self.parameters['estop_topic']:
            self._open_emergency_stop(self.parameters['estop_topic'])
        if self.parameters['heed_verdicts']:
            # A group of its own: whatever imagination sends, and however often, nothing else waits behind it.
            group = MutuallyExclusiveCallbackGroup()
            self.subscribe(Verdict, 'dynamics/verdict', self._on_verdict, qos.status(), group)

    def _watch_policy(self, group: CallbackGroup) -> None:
        """Hear of a policy process that hangs or is gone as soon as the middleware knows."""
        values, watchdogs = self.parameters, configured(self._watchdogs)
        # A little less than what the ages of messages allow: the middleware is to be first, if it is to be of any use.
        deadline_s = 0.9 * min(values['policy_max_age_s'], values['heartbeat_max_age_s'])
        lease_s = max(qos.LEASE_S, 0.6 * values['heartbeat_max_age_s'])
        terms = qos.with_terms(qos.status(1), deadline_s=deadline_s, lease_s=lease_s)
        watchdogs.demand(PolicyStatus, 'policy/status', terms, group)

    def _open_emergency_stop(self, topic: str) -> None:
        values, group = self.parameters, MutuallyExclusiveCallbackGroup()
        # As deep as this, so that a short press is not lost behind the release that follows it.
        profile = qos.with_terms(
            qos.status(depth=50), deadline_s=values['estop_deadline_s'], lease_s=values['estop_lease_s']
        )
        heard = self.subscribe(Bool, topic, self._on_emergency_stop, profile, group)
        self._emergency_stop = heard.topic_name
        configured(self._watchdogs).listen(heard, self.topic_events[heard.topic_name], self._on_emergency_stop_lost)

    def _open_services(self) -> None:
        for name, answer in (
            ('stop', self._stop),
            ('reset', self._reset),
            ('pause', self._pause),
            ('resume', self._resume),
        ):
            self.create_service(Trigger, f'~/{name}', answer, callback_group=self.service_group)

    def _on_joints(self, message: JointState) -> None:
        guard, watchdogs = self._working(), self._watchdogs
        if guard is None or watchdogs is None:
            return
        stamp, position, velocity = stamp_to_ns(message.header.stamp), message.position, message.velocity
        with self._lock:
            refused = guard.on_joint_state(
                stamp, self.now_ns(), message.name, np.asarray(position), np.asarray(velocity)
            )
        watchdogs.heard(self._joint_states)
        if refused is not None:
            self.get_logger().error(f'joint state ignored. {refused.text}', throttle_duration_sec=1.0)

    def _on_policy(self, message: PolicyStatus) -> None:
        guard, watchdogs = self._working(), self._watchdogs
        if guard is None or watchdogs is None:
            return
        with self._lock:
            now = self.now_ns()
            guard.on_heartbeat(now)
            if message.state == PolicyStatus.RUNNING:
                guard.on_source(RUNNING, now, now)
        watchdogs.heard(self._policy_status)

    def _on_chunk(self, message: ActionChunk) -> None:
        guard, reports = self._working(), self._reports
        if guard is None or reports is None:
            return
        received, loop = received_chunk(message), self.loop

        def judge() -> tuple[Acceptance | Rejection, int]:
            with self._lock:
                now = self.now_ns()
                return guard.on_chunk(received, now), now

        # It takes a few milliseconds: between two ticks, so that none has to wait for it.
        verdict, now = judge() if loop is None else loop.after_tick(judge)
        reports.decision(message, verdict, now)
        # While the arm is stopped the log says why already; the decision is told on its topic in any case.
        if isinstance(verdict, Rejection) and verdict.reason is not guard.cause.reason:
            self.get_logger().warning(
                f'chunk {message.epoch}/{message.sequence} rejected. {verdict.text}', throttle_duration_sec=1.0
            )

    def _on_verdict(self, message: Verdict) -> None:
        guard = self._working()
        if guard is None:
            return
        verdict, answers = received_verdict(message), list[Answer]()

        def hear(guard: Guard, now: int) -> bool:
            answers.append(guard.on_verdict(verdict, now))
            return answers[0].ok and message.decision in (Verdict.SLOW, Verdict.STOP)

        self._act(guard, hear)
        if answers and not answers[0].ok:
            what = f'verdict about chunk {message.epoch}/{message.sequence} ignored: {answers[0].text}'
            self.get_logger().warning(what, throttle_duration_sec=1.0)

    def _on_emergency_stop(self, message: Bool) -> None:
        guard, watchdogs = self.guard, self._watchdogs
        if guard is None or watchdogs is None:
            return
        watchdogs.heard(self._emergency_stop)
        # An inactive guard remembers it too: activation with an emergency stop pressed must not begin with motion.
        self._act(guard, lambda guard, now: guard.on_emergency_stop(message.data, now), at_once=message.data)

    def _on_emergency_stop_lost(self, loss: Rejection) -> None:
        guard = self.guard
        if guard is not None:
            self._act(guard, lambda guard, now: guard.on_emergency_stop_lost(loss, now))

    def _on_alarm(self, topic: str, alarm: Rejection | None) -> None:
        guard = self._working()
        if guard is not None:
            self._act(guard, lambda guard, now: guard.on_alarm(topic, alarm, now), at_once=alarm is not None)

    # Commands

    def _open_control(self) -> None:
        """Tick by the steady clock in a thread of its own; simulated time can be waited for by the executor alone."""
        rate_hz = self.parameters['control_rate_hz']
        self._failed = self.create_guard_condition(self._raise_failure)
        if self.get_clock().ros_time_is_active:
            self.create_timer(1.0 / rate_hz, self._tick, callback_group=self.control_group)
        else:
            priority = self.parameters['realtime_priority']
            self.loop = ControlLoop(
                self._tick,
                round(1e9 / rate_hz),
                self._on_control_failure,
                priority,
                owns_process=self._owns_process,
            )
        self.create_timer(STATUS_PERIOD_S, self._tell_regularly, callback_group=self.service_group)

    def _start_ticking(self) -> None:
        loop = self.loop
        if loop is None:
            return
        loop.start()
        if loop.why_not_realtime and not self._hinted:
            self._hinted = True
            self.get_logger().warning(
                f'the control thread has no real-time priority ({loop.why_not_realtime}): its commands come late when '
                f'the machine is busy. To mend it, {REMEDY}; realtime_priority: 0 silences this.'
            )

    def _on_control_failure(self, what: str) -> None:
        self._control_failure = what
        self._failed.trigger()

    def _raise_failure(self) -> None:
        """Raise in the executor what the control thread raised: the program must end, and stop the robot."""
        raise RuntimeError(f'the control thread broke down:\n{self._control_failure}')

    def _tick(self) -> None:
        guard = self._working()
        if guard is None:
            return
        self._act(guard)
        now_ns = time.monotonic_ns()
        if now_ns - self._looked_ns >= LOOK_PERIOD_NS and self._watchdogs is not None:
            self._looked_ns = now_ns
            self._watchdogs.look()

    def _act(self, guard: Guard, act: Act | None = None, *, at_once: bool = True) -> None:
        """Let the guard act on something and send what it then commands, without waiting for the next tick."""
        output, reports = self.output, self._reports
        if output is None or reports is None:
            return
        with self._lock:
            now = self.now_ns()
            urgent = act is None or act(guard, now) is not False
            command = guard.tick(now) if at_once and urgent else None
            if command is not None:
                output.send(command)  # before anybody else may speak: commands leave in the order they were made
            state, cause, slowed = guard.state, guard.cause, guard.take_slowed()
        if slowed is not None:
            reports.slowed(slowed, now)
        if reports.is_news(state, cause):
            self._publish_status()

    # What is told

    def _tell_regularly(self) -> None:
        self._change_limits()
        self._publish_status()

    def _publish_status(self) -> None:
        guard, reports = self._working(), self._reports
        if guard is None or reports is None:
            return
        with self._telling:
            with self._lock:
                now, view = self.now_ns(), GuardView.of(guard)
            reports.status(view, now)

    def _report_guard(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        guard = self.guard
        if guard is None:
            stat.summary(diagnostics.STALE, 'not configured')
            return stat
        with self._lock:
            view = GuardView.of(guard)
        state, counts = view.state, view.counts
        level = diagnostics.OK if state in (GuardState.WAITING, GuardState.TRACKING) else diagnostics.WARN
        stat.summary(diagnostics.ERROR if state is GuardState.FAULT else level, f'{state}: {view.cause.text}')
        stat.add('mode', view.mode(self.parameters['dry_run']))
        stat.add('chunks accepted / received', f'{counts.chunks_accepted} / {counts.chunks_received}')
        for reason, count in counts.rejections.items():
            stat.add(f'rejected: {reason.name}', count)
        for reason, count in counts.stops.items():
            stat.add(f'stopped: {reason.name}', count)
        for decision, count in counts.verdicts.items():
            stat.add(f'verdicts: {decision.name}', count)
        if counts.verdicts_ignored:
            stat.add('verdicts ignored', counts.verdicts_ignored)
        stat.add('largest splice jump [rad]', f'{counts.largest_splice_jump:.4f}')
        return stat

    def _report_control(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        """How regular the ticks are."""
        loop = self.loop
        if loop is None:
            stat.summary(diagnostics.OK, 'ticks follow simulated time')
            return stat
        periods, wanted_ms = loop.periods(), 1e3 / self.parameters['control_rate_hz']
        late = periods.p99_ms > 2.0 * wanted_ms
        stat.summary(
            diagnostics.WARN if late else diagnostics.OK,
            f'period p99 {periods.p99_ms:.2f} ms, wanted {wanted_ms:.2f} ms' if loop.running else 'not running',
        )
        stat.add(
            'period p50 / p99 / worst [ms]', f'{periods.p50_ms:.3f} / {periods.p99_ms:.3f} / {periods.worst_ms:.3f}'
        )
        stat.add('ticks / missed deadlines', f'{periods.ticks} / {periods.missed}')
        stat.add('real-time priority', loop.why_not_realtime or self.parameters['realtime_priority'])
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

    def _answer(self, response: Trigger.Response, act: Act, done: str) -> Trigger.Response:
        guard = self._working()
        if guard is None:
            response.success, response.message = False, 'the guard is not active'
            return response
        self._act(guard, act)
        response.success, response.message = True, done
        self._publish_status()
        return response


def limits_of(contract: Contract, scale: float = 1.0, robot_description: str = '') -> RobotLimits:
    """Limits of a contract's robot, in the contract's order of joints.

    Args:
        contract: Names the robot file.
        scale: Share of velocity, acceleration and jerk to use.
        robot_description: Path of a URDF file whose figures hold as well, the more restrictive of each; empty: none.

    Raises:
        InvalidInput: The robot has no file, or its file is faulty or has other joints.
        ContractError: The contract's rows are not joint positions and it names no joints to guard.
    """
    if not contract.robot.joints:
        problem = Problem('robot.joints', 'is empty: there is nothing to guard')
        raise ContractError(f'contract {contract.name}', [problem])
    limits = load_limits(contract.robot.description)
    if robot_description:
        limits = limits_with_description(limits, _urdf(robot_description))
    return limits.scaled(scale).for_joints(contract.robot.joints)


def _urdf(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        problem = Problem('robot_description', f'cannot be read: {error}', path, 'path of a URDF file')
        raise InvalidInput('parameters of the guard', [problem]) from error


def rehearse(limits: RobotLimits, options: GuardOptions) -> None:
    """Judge and play one chunk with nobody listening: whatever is prepared at its first use is ready then."""
    alone = dataclasses.replace(options, heartbeat_max_age_ns=None, sources={}, emergency_stop=False, verdicts=None)
    guard, now = Guard(limits, alone), 1_000_000_000
    positions, names = (limits.soft_lower + limits.soft_upper) / 2, limits.joint_names
    guard.activate(now)
    guard.on_joint_state(now, now, names, positions)
    guard.on_chunk(ReceivedChunk(now, guard.epoch, 1, 50_000_000, names, np.tile(positions, (32, 1))), now)
    guard.tick(now)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
