"""The simulated arm as sensors and drives of a ROS graph, for episodes: the guard is another process, as on a robot.

joint states, pictures, /clock --> guard, policy --> joint trajectory, gripper command --> simulated arm

Time is simulated. It passes no faster than real time, and stands still whenever the guard owes a command or the policy
a chunk: what an episode comes to must not depend on how busy the machine is. Sensors are sent as on a robot, where the
next message makes up for one that is lost; while time stands still for a chunk there is no next one, so the last is
sent again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.publisher import Publisher
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

from cosmos3_msgs.msg import ActionChunk, ChunkDecision, GuardStatus, PolicyStatus
from cosmos3_ros import qos
from cosmos3_ros.conversions import ImageWriter, JointReader, joint_state, ns_to_stamp, stamp_to_ns
from cosmos3_ros.eval_world import Simulated
from cosmos3_ros.guarded_robot import NS, ORIGIN_NS, SETTLE_S, TICK_NS, seen_of, views_of
from cosmos3_ros.sim_robot import HAND, read_trajectory
from engine.contract import Contract
from engine.errors import CosmosError, InvalidInput
from engine.evaluation import franka_scene as scene
from engine.evaluation.expert_paths import Rows, Seen
from engine.evaluation.simulated_franka import SimulatedFranka
from engine.evaluation.tasks import Episode

CLOCK_TOPIC = 'clock'
"""Within the namespace, so that several graphs have times of their own; `/clock` of the nodes is remapped to it."""
PICTURE_PERIOD_NS = round(NS / 15)
COMMAND_PATIENCE_S = 20.0
"""How long the guard is waited for, on the machine's clock."""
CHUNK_PATIENCE_S = 60.0
"""Likewise for a chunk: a network on a processor takes its time."""
CHECK_PERIOD_S = 0.5
READY_S = 30.0
BEAT_S = 0.05
STOP_S = 3.0
"""Longer than any stop of the guard lasts."""
_READY = (GuardStatus.WAITING, GuardStatus.HOLDING)
_MOVING = (GuardStatus.TRACKING, GuardStatus.BRAKING)
_STOPPED = (GuardStatus.BRAKING, GuardStatus.HOLDING, GuardStatus.FAULT)


class GraphWorld(Simulated):
    """A :class:`~engine.evaluation.closed_loop.World` whose guard is a node elsewhere.

    Its own thread is that of the caller, who also owns the OpenGL context; messages arrive in those of an executor that
    spins `node`.

    Attributes:
        robot: The simulated arm.
        step_ns: Time from row to row.
        refusals: When a chunk was refused or the motion stopped, s since the episode began, and why.
        chunks: Chunks that a policy elsewhere sent in this episode, with the seconds that each took.
        check: Called whenever something is late: raises if whoever owes it is gone.
    """

    def __init__(self, node: Node, robot: SimulatedFranka, contract: Contract, *, scripted: bool, draws: bool) -> None:
        """Open the topics.

        Args:
            node: In the namespace of the graph.
            robot: To be seen and moved.
            contract: Of an arm in joint positions.
            scripted: Whether chunks come from :meth:`offer`, so that this world is the policy too.
            draws: Whether pictures are published.
        """
        self.robot, self._node, self._contract = robot, node, contract
        self.step_ns = round(NS / contract.timing.fps)
        self.refusals: list[tuple[float, str]] = []
        self.chunks: list[float] = []
        self._draws, self._scripted = draws, scripted
        self._changed = threading.Condition()
        self._commands: list[JointTrajectory] = []
        self._grips: list[JointState] = []
        self._decisions: dict[tuple[int, int], ChunkDecision] = {}
        self._guard = GuardStatus()
        self._began_ns = self._picture_due_ns = self.now_ns
        self._commanded_ns = self._chunk_due_ns = self._laid_out_ns = 0
        self._sequence, self._attentive, self._due_wall_s = 0, False, time.monotonic()
        self._pictures: list[tuple[Publisher, Image]] = []
        self._told: list[tuple[Publisher, Any]] = []
        self._replan_ns = self._latency_ns = 0
        self.check: Callable[[], None] = lambda: None
        self._open()

    def _open(self) -> None:
        make, contract = self._node.create_publisher, self._contract
        self._clock = make(ClockMessage, CLOCK_TOPIC, qos.sensor())
        states = contract.state.joint_states
        self._states = make(JointState, states.topic if states else 'joint_states', qos.sensor(depth=10))
        self._cameras = {
            view: (make(Image, stream.topic, qos.sensor()), ImageWriter(f'{view}_camera_optical_frame'))
            for view, stream in contract.views.streams.items()
        }
        hear = self._node.create_subscription
        hear(JointTrajectory, 'joint_trajectory', self._on_command, qos.command())
        hear(JointState, 'gripper/command', self._on_grip, qos.command())
        hear(GuardStatus, 'guard/status', self._on_guard, qos.latched())
        hear(ChunkDecision, 'guard/decision', self._on_decision, qos.status(50))
        self._fingers = JointReader(scene.FINGER_JOINTS[:1], 'gripper/command')
        if self._scripted:
            self._chunks = make(ActionChunk, 'policy/chunk', qos.status())
            self._beats = make(PolicyStatus, 'policy/status', qos.heartbeat(BEAT_S))
            steady = Clock(clock_type=ClockType.STEADY_TIME)  # as the policy does: it is alive when time stands still
            self._node.create_timer(BEAT_S, self._beat, clock=steady)
        else:
            hear(ActionChunk, 'policy/chunk', self._on_chunk, qos.status(50))

    # What the graph says; in the threads of the executor

    def _note(self, change: Callable[[], Any]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()

    def _beat(self) -> None:
        beat = PolicyStatus(state=PolicyStatus.RUNNING, state_name='RUNNING')
        beat.header.stamp = ns_to_stamp(self.now_ns)
        self._beats.publish(beat)

    def _on_command(self, message: JointTrajectory) -> None:
        stamp_ns = stamp_to_ns(message.header.stamp)

        def change() -> None:
            if stamp_ns >= self._laid_out_ns:
                self._commands.append(message)
                self._commanded_ns = max(self._commanded_ns, stamp_ns)

        self._note(change)

    def _on_grip(self, message: JointState) -> None:
        def change() -> None:
            if stamp_to_ns(message.header.stamp) >= self._laid_out_ns:
                self._grips.append(message)

        self._note(change)

    def _on_guard(self, message: GuardStatus) -> None:
        def change() -> None:
            before, self._guard = self._guard, message
            if self._attentive and message.state in _STOPPED and message.state != before.state:
                self.refusals.append((self.now_s, message.reason_name))

        self._note(change)

    def _on_decision(self, message: ChunkDecision) -> None:
        def change() -> None:
            if self._scripted:  # nobody else asks for one of them
                self._decisions[message.epoch, message.sequence] = message
            if self._attentive and not message.accepted:
                self.refusals.append((self.now_s, message.reason_name))

        self._note(change)

    def _on_chunk(self, message: ActionChunk) -> None:
        def change() -> None:
            if self._attentive:
                self.chunks.append(message.inference.sec + message.inference.nanosec / NS)
                self._expect_after(stamp_to_ns(message.header.stamp) + self._replan_ns)

        self._note(change)

    def _expect_after(self, observed_ns: int) -> None:
        """The next chunk is made from the first pictures from then on."""
        self._chunk_due_ns = observed_ns + PICTURE_PERIOD_NS + TICK_NS + self._latency_ns

    # The world

    @property
    def now_ns(self) -> int:
        """Time on the clock of the graph; the first instant is not zero, and it never goes back."""
        return self.robot.time_ns + ORIGIN_NS

    @property
    def now_s(self) -> float:
        """Seconds since the episode began."""
        return (self.now_ns - self._began_ns) / NS

    @property
    def guard(self) -> GuardStatus:
        """What the guard said last."""
        return self._guard

    def lay_out(self, episode: Episode) -> None:
        """Lay everything out anew and let it come to rest, while nobody guards."""
        self._attentive = False
        # A guard that is asked back while its last stop still lasts brings that to its end first: where the arm was.
        self.robot.advance(STOP_S)
        self.robot.arrange(episode.setting)
        self.robot.advance(SETTLE_S)
        with self._changed:
            self._commands.clear()
            self._grips.clear()
            self._guard = GuardStatus()  # what it said counts no more
            self._laid_out_ns = self.now_ns  # nor the stop that it sent last, which may still be on its way
        self._tell(self.now_ns)

    def begin(self, _episode: Episode) -> None:
        """Begin with what was laid out, as soon as the guard is ready for chunks.

        Raises:
            CosmosError: It does not become ready.
        """
        until_s = time.monotonic() + READY_S
        while self._guard.state not in _READY or self._guard.reason_name != 'NONE':
            self.check()
            if time.monotonic() > until_s:
                raise CosmosError(f'the guard does not wait for chunks: {self._guard.state_name}, {self._guard.text}')
            self.tick()
        self.refusals, self.chunks = [], []
        self._began_ns, self._attentive, self._chunk_due_ns = self.now_ns, True, 0

    def end(self) -> None:
        """The episode is over: what the graph says from now on counts no more."""
        self._attentive, self._chunk_due_ns = False, 0

    def expect_chunks(self, replan_rows: int, latency_s: float) -> None:
        """From now on let time stand still whenever the policy's next chunk would be older than `latency_s`."""
        self._replan_ns, self._latency_ns = replan_rows * self.step_ns, round(latency_s * NS)
        with self._changed:
            self._expect_after(self.now_ns)

    def seen(self, with_pictures: bool) -> Seen:
        """What is to be seen now."""
        views = views_of(self.robot, self._contract) if with_pictures else {}
        return seen_of(self.robot, self.now_ns, views)

    def offer(self, stamp_ns: int, rows: Rows) -> str:
        """Publish a chunk as a policy does, and wait for the guard's word: 'ACCEPTED', or why not."""
        self._sequence += 1
        key = self._guard.epoch, self._sequence
        self._chunks.publish(self._message(stamp_ns, rows, *key))
        self._wait(lambda: key in self._decisions, COMMAND_PATIENCE_S, 'the word of the guard on a chunk')
        decision = self._decisions.pop(key)
        return 'ACCEPTED' if decision.accepted else str(decision.reason_name)

    def _message(self, stamp_ns: int, rows: Rows, epoch: int, sequence: int) -> ActionChunk:
        robot, contract = self._contract.robot, self._contract
        message = ActionChunk(
            epoch=epoch,
            sequence=sequence,
            step_dt=self.step_ns / NS,
            contract=contract.name,
            joint_names=list(robot.joints),
            rows=len(rows.positions),
            positions=rows.positions.ravel().tolist(),
            gripper_names=list(robot.gripper_joints),
            grippers=rows.grippers.ravel().tolist(),
        )
        message.header.stamp = ns_to_stamp(stamp_ns)
        return message

    # Time

    def tick(self) -> None:
        """Let one control period pass: tell what is, hear what is to be done, do it."""
        now = self.now_ns
        self._tell(now)
        self._await(now)
        self._obey()
        self.robot.advance(TICK_NS / NS)

    def _tell(self, now: int) -> None:
        """The clock comes last: whoever acts on it has heard the rest, or will in a moment."""
        if self._draws and now >= self._picture_due_ns:
            self._picture_due_ns = max(self._picture_due_ns + PICTURE_PERIOD_NS, now)
            stamp, views = ns_to_stamp(now), views_of(self.robot, self._contract)
            cameras = ((*self._cameras[view], picture) for view, picture in views.items())
            self._pictures = [(publisher, writer.fill(picture, stamp)) for publisher, writer, picture in cameras]
            self._show()
        self._tell_state(now)

    def _show(self) -> None:
        self._repeat(self._pictures)

    @staticmethod
    def _repeat(messages: Sequence[tuple[Publisher, Any]]) -> None:
        for publisher, message in messages:
            publisher.publish(message)

    def _tell_state(self, now: int) -> None:
        stamp, state = ns_to_stamp(now), self.robot.joint_state()
        message = joint_state(state.names, state.positions, stamp, state.velocities, state.efforts)
        self._told = [(self._states, message), (self._clock, ClockMessage(clock=stamp))]
        self._repeat(self._told)

    def _await(self, now: int) -> None:
        if self._guard.state in _MOVING:
            self._wait(
                lambda: self._commanded_ns >= now or self._guard.state not in _MOVING,
                COMMAND_PATIENCE_S,
                'a command of the guard, which moves the arm',
            )
        if 0 < (due := self._chunk_due_ns) <= now:
            self._wait(
                lambda: self._chunk_due_ns != due or self._guard.state == GuardStatus.FAULT,
                CHUNK_PATIENCE_S,
                'a chunk of the policy',
                again=True,
            )
        self._pace()

    def _wait(self, condition: Callable[[], bool], patience_s: float, what: str, *, again: bool = False) -> None:
        """Wait for what the graph owes.

        Raises:
            CosmosError: It did not come: what comes of the episode would say nothing about the policy.
        """
        until_s = time.monotonic() + patience_s
        while time.monotonic() < until_s:
            with self._changed:
                if self._changed.wait_for(condition, CHECK_PERIOD_S):
                    return
            self.check()
            if again:
                self._show()
                self._repeat(self._told)
        raise CosmosError(f'{what} did not come within {patience_s:g} s; simulated time stands still')

    def _pace(self) -> None:
        left_s = self._due_wall_s - time.monotonic()
        if left_s > 0:
            time.sleep(left_s)
        self._due_wall_s = max(self._due_wall_s, time.monotonic()) + TICK_NS / NS

    def _obey(self) -> None:
        with self._changed:
            commands, grips = self._commands[-1:], self._grips[-1:]
            self._commands.clear()
            self._grips.clear()
        for message in commands:
            times, positions, velocities = read_trajectory(message, self.robot.kind.joints)
            start_ns = stamp_to_ns(message.header.stamp) - ORIGIN_NS
            try:
                self.robot.set_trajectory(times, positions, velocities, start_ns)
            except InvalidInput:  # the end of a stop that is over: the arm goes on holding
                if self._attentive:
                    self.refusals.append((self.now_s, 'COMMAND_LATE'))
        for grip in grips:
            finger_m = float(self._fingers.read(grip).positions[0])
            self.robot.set_gripper(float(HAND.closed_fraction(finger_m)))
