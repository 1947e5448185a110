"""The `replay_robot` node: a recorded episode in the place of robot driver and cameras.

=============  =======================================  =======================================================
publishes      the contract's views                     `Image`, with the recording's own timing
               the contract's `joint_states`            arm joints and gripper, those that the recording has
               the contract's `end_effector`            or `end_effector_pose`, if the recording has poses
               `/clock`                                 with `publish_clock`
subscribes     `joint_trajectory`, `gripper/command`    only to count them: the past does not follow commands
=============  =======================================  =======================================================
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

from cosmos3_ros import diagnostics, qos
from cosmos3_ros.conversions import ImageWriter, Pose, joint_state, ns_to_stamp, pose_to_message
from cosmos3_ros.node_base import CosmosLifecycleNode, CountingPublisher, configured
from cosmos3_ros.parameters import Parameter, ParameterSet, Required
from engine.contract import Contract, load_contract
from engine.errors import InvalidInput, Problem
from engine.evaluation.recordings import Frame, Recording, open_recording

PARAMETERS = (
    Parameter('contract', Required(str), 'Contract whose inputs to play: a name in config/contracts, or a path.'),
    Parameter('recording', Required(str), 'Directory of the recording: a LeRobot data set, or one table and videos.'),
    Parameter('episode_index', 0, 'Which episode of a data set.', minimum=0, maximum=2**31 - 1),
    Parameter('video_map', (), "Stand-ins for views that the recording has not, as 'wrist:=exterior_2'."),
    Parameter(
        'rate',
        1.0,
        'Recorded seconds for each real one; other than 1 only with publish_clock.',
        minimum=0.01,
        maximum=100.0,
    ),
    Parameter('loop', False, 'Begin anew at the end; time goes on.'),
    Parameter('publish_clock', False, 'Publish the time of the recording on /clock and stamp everything with it.'),
)
_COMMANDS = {'joint_trajectory': JointTrajectory, 'gripper/command': JointState}
_BASE = 'panda_link0'
_CLOCK_PERIOD_NS = 10_000_000
_GIVE_UP_NS = 500_000_000  # further from the clock than this, the rest of the episode is moved
_OWN_TIME_STARTS_NS = 1_000_000_000  # 0 would mean "no time" to whoever reads the stamps


class Player:
    """Plays frames from a thread of its own, each at its time.

    Attributes:
        finished: Set when the last frame was played.
        frame: Index of the frame played last, -1 before the first.
        time_ns: Recorded time that has passed since the start; it goes on when the recording has ended.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        clock_ns: Callable[[], int],
        rate: float,
        loop: bool,
        on_frame: Callable[[Frame, int], None],
        on_time: Callable[[int], None],
        on_failure: Callable[[str], None],
    ) -> None:
        """Prepare to play.

        Args:
            recording: What to play; the thread alone may use it while it runs.
            clock_ns: The clock to keep up with.
            rate: Recorded seconds for each second of that clock.
            loop: Begin anew at the end.
            on_frame: Called with each frame, and its time since the start in recorded ns.
            on_time: Called every 10 recorded ms with the time since the start in recorded ns.
            on_failure: Called with the traceback if the thread breaks down.
        """
        self.finished = threading.Event()
        self.frame = -1
        self.time_ns = 0
        self._recording, self._clock_ns, self._rate, self._loop = recording, clock_ns, rate, loop
        self._on_frame, self._on_time, self._on_failure = on_frame, on_time, on_failure
        self._stopping = threading.Event()
        self._origin_ns = 0
        self._thread = threading.Thread(target=self._run, name='player', daemon=True)

    def start(self) -> None:
        """Play from the start; once only."""
        self._origin_ns = self._clock_ns()
        self._thread.start()

    def stop(self) -> None:
        """Stop playing; returns when the thread has ended."""
        self._stopping.set()
        self._thread.join()

    def clock_time_ns(self, time_ns: int) -> int:
        """Return when, by the clock kept up with, `time_ns` since the start is due."""
        return self._origin_ns + round(time_ns / self._rate)

    def _run(self) -> None:
        try:
            while self._play_once() and self._loop:
                self._let_pass(self.time_ns + round(1e9 / self._recording.fps))
            self.finished.set()
            while not self._stopping.is_set():
                self._let_pass(self.time_ns + _CLOCK_PERIOD_NS)
        except Exception:  # a thread that dies in silence would look like an episode without end
            self._on_failure(traceback.format_exc())

    def _play_once(self) -> bool:
        """Play all frames; return False if stopped before the end."""
        start_ns = self.time_ns
        for index in range(self._recording.length):
            frame = self._recording.frame(index)
            due_ns = start_ns + round(frame.timestamp_s * 1e9)
            self._let_pass(due_ns)
            if self._stopping.is_set():
                return False
            self._on_frame(frame, due_ns)
            self.frame = index
        return True

    def _let_pass(self, end_ns: int) -> None:
        """Let time pass until `end_ns`, or until stopped."""
        while self.time_ns < end_ns and not self._stopping.is_set():
            self.time_ns = min(end_ns, self.time_ns - self.time_ns % _CLOCK_PERIOD_NS + _CLOCK_PERIOD_NS)
            early_ns = self.clock_time_ns(self.time_ns) - self._clock_ns()
            if abs(early_ns) > _GIVE_UP_NS:  # the machine was too slow, or the clock was set
                self._origin_ns -= early_ns
            elif early_ns > 0:
                self._stopping.wait(early_ns / 1e9)
            self._on_time(self.time_ns)


class ReplayRobotNode(CosmosLifecycleNode):
    """Lifecycle shell around a :class:`Player`.

    Attributes:
        commands: Messages received by topic.
    """

    def __init__(self, name: str = 'replay_robot', **kwargs: Any) -> None:
        """Start unconfigured."""
        super().__init__(name, **kwargs)
        self.parameters = ParameterSet(self, PARAMETERS)
        self.recording: Recording | None = None
        self.player: Player | None = None
        self.commands = dict.fromkeys(_COMMANDS, 0)
        self._own_time_ns = _OWN_TIME_STARTS_NS
        self._breakdown = ''

    def configure_node(self) -> None:
        """Open the recording, compare it with the contract, open topics."""
        values = self.parameters
        self._check_time()
        self._contract = contract = load_contract(values['contract'])
        stand_ins = read_video_map(values['video_map'])
        self.recording = open_recording(values['recording'], stand_ins, episode=values['episode_index'])
        for warning in self.recording.warnings:
            self.get_logger().warning(f'{self.recording.path.name}: {warning}')
        first = self.recording.frame(0)
        check_recording(self.recording, first, contract)
        self._open_outputs(contract, first)
        for topic, kind in _COMMANDS.items():
            self.subscribe(kind, topic, partial(self._count, topic), qos.command(), self.control_group)
        self.diagnostics.add('replay', self._report)

    def activate_node(self) -> None:
        """Play from the start."""
        recording = configured(self.recording)
        self._breakdown = ''
        self.commands = dict.fromkeys(_COMMANDS, 0)
        self.player = Player(
            recording,
            clock_ns=time.monotonic_ns if self._clock_topic else self.now_ns,
            rate=self.parameters['rate'],
            loop=self.parameters['loop'],
            on_frame=self._on_frame,
            on_time=self._on_time,
            on_failure=self._on_failure,
        )
        self.player.start()

    def deactivate_node(self) -> None:
        """Stop playing."""
        if self.player is not None:
            self.player.stop()
            self._own_time_ns += self.player.time_ns
            self.player = None

    def cleanup_node(self) -> None:
        """Close the recording."""
        if self.recording is not None:
            self.recording.close()
            self.recording = None
        self.diagnostics.removeByName('replay')

    def _check_time(self) -> None:
        values, problems = self.parameters, []
        if self.get_parameter('use_sim_time').value:
            remedy = 'set publish_clock here, and use_sim_time on the other nodes'
            problems.append(Problem('use_sim_time', 'the replay makes the time itself', 'true', 'false', remedy))
        if values['rate'] != 1.0 and not values['publish_clock']:
            what = 'real time has one speed'
            problems.append(Problem('rate', what, str(values['rate']), '1.0', 'set publish_clock'))
        if problems:
            raise InvalidInput('time of the replay', problems)

    # Outputs

    def _open_outputs(self, contract: Contract, first: Frame) -> None:
        self._views: dict[str, tuple[CountingPublisher, ImageWriter]] = {
            view: (self.advertise(Image, terms.topic, qos.sensor()), ImageWriter(f'{view}_camera_optical_frame'))
            for view, terms in contract.views.streams.items()
        }
        self._joint_states = self._poses = self._clock_topic = None
        if recorded_joints(first, contract)[0]:
            topic = contract.state.joint_states.topic if contract.state.joint_states else 'joint_states'
            self._joint_states = self.advertise(JointState, topic, qos.sensor(depth=10))
        if first.end_effector is not None:
            topic = contract.state.end_effectors[0].topic if contract.state.end_effectors else 'end_effector_pose'
            self._poses = self.advertise(PoseStamped, topic, qos.sensor(depth=10))
        if self.parameters['publish_clock']:
            self._clock_topic = self.advertise(ClockMessage, '/clock', qos.sensor())

    def _stamp(self, time_ns: int) -> Time:
        if self._clock_topic is not None:
            return ns_to_stamp(self._own_time_ns + time_ns)
        return ns_to_stamp(configured(self.player).clock_time_ns(time_ns))

    def _on_time(self, time_ns: int) -> None:
        if self._clock_topic is not None:
            self._clock_topic.publish(ClockMessage(clock=self._stamp(time_ns)))

    def _on_frame(self, frame: Frame, time_ns: int) -> None:
        stamp = self._stamp(time_ns)
        for view, (publisher, writer) in self._views.items():
            publisher.publish(writer.fill(frame.views[view], stamp))
        if self._joint_states is not None:
            names, positions = recorded_joints(frame, self._contract)
            self._joint_states.publish(joint_state(names, np.array(positions), stamp))
        if self._poses is not None and frame.end_effector is not None:
            self._poses.publish(pose_to_message(Pose(*frame.end_effector, _BASE), stamp))

    def _on_failure(self, trace: str) -> None:
        self._breakdown = trace.strip().splitlines()[-1]
        self.get_logger().fatal(f'the replay broke down:\n{trace}')

    def _count(self, topic: str, _message: object) -> None:
        self.commands[topic] += 1

    # Diagnostics

    def _report(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        player, recording = self.player, self.recording
        if self._breakdown:
            stat.summary(diagnostics.ERROR, self._breakdown)
        elif player is None or recording is None:
            stat.summary(diagnostics.OK, 'not playing')
        elif player.finished.is_set():
            stat.summary(diagnostics.OK, 'played to the end')
        else:
            stat.summary(diagnostics.OK, f'frame {player.frame + 1} of {recording.length}')
        for topic, count in self.commands.items():
            stat.add(f'{topic} received and ignored', count)
        return stat


def read_video_map(entries: tuple[str, ...]) -> dict[str, str]:
    """Return stand-ins by view from texts like 'wrist:=exterior_2'.

    Raises:
        InvalidInput: Texts are of another form, or name a view twice; lists every fault.
    """
    pairs = [entry.partition(':=') for entry in entries]
    views = [view for view, _, _ in pairs]
    problems = [
        Problem('video_map', 'not understood', repr(entry), "'VIEW:=CAMERA', as in 'wrist:=exterior_2'")
        for entry, (view, sign, camera) in zip(entries, pairs, strict=True)
        if not (view and sign and camera)
    ]
    problems += [Problem('video_map', 'names a view twice', view) for view in set(views) if views.count(view) > 1]
    if problems:
        raise InvalidInput('video_map', problems)
    return {view: camera for view, _, camera in pairs}


def check_recording(recording: Recording, first: Frame, contract: Contract) -> None:
    """Refuse a recording that has not what the contract's policy reads.

    Raises:
        InvalidInput: Views, joints or poses are missing; lists all of them.
    """
    if len(contract.robot.arms) > 1:
        arms = ', '.join(arm.name for arm in contract.robot.arms)
        what, allowed = 'are several, and recordings of one arm are all that is read', 'a contract of one arm'
        raise InvalidInput('recording', [Problem(f'arms of contract {contract.name}', what, arms, allowed)])
    have = ', '.join(recording.views)
    remedy = "another camera can stand in: video_map ['VIEW:=CAMERA']"
    problems = [
        Problem(f'view {view}', 'is missing', '', f'recorded: {have}', remedy)
        for view in contract.views.streams
        if view not in recording.views
    ]
    if contract.embodiment.action_space == 'joint_position' and first.joint_positions is None:
        remedy = 'use a contract of end-effector actions' if first.end_effector is not None else ''
        problems.append(Problem('joint positions', 'the recording has none that can be believed', remedy=remedy))
    elif first.joint_positions is not None and len(first.joint_positions) != len(contract.robot.joints):
        width, allowed = str(len(first.joint_positions)), str(len(contract.robot.joints))
        problems.append(Problem('joint positions', 'not as many as the robot has joints', width, allowed))
    if contract.state.joint_states is not None and contract.robot.grippers and first.gripper is None:
        problems.append(Problem('gripper', 'the recording has no position that can be believed'))
    if contract.state.end_effectors and first.end_effector is None:
        problems.append(Problem('end-effector pose', 'the recording has none that can be believed'))
    if problems:
        raise InvalidInput(f'recording {recording.path} for contract {contract.name}', problems)


def recorded_joints(frame: Frame, contract: Contract) -> tuple[list[str], list[float]]:
    """Return names and positions (rad, m) of the joints that a recording knows; empty if it knows none."""
    names: list[str] = []
    positions: list[float] = []
    if frame.joint_positions is not None:
        names += contract.robot.joints
        positions += frame.joint_positions.tolist()
    if contract.robot.grippers and frame.gripper is not None:
        gripper = contract.robot.grippers[0]
        names.append(gripper.joint)
        positions.append(float(gripper.travel.position(frame.gripper)))
    return names, positions
