"""A simulated arm behind the guard, in this process and in simulated time: what the ROS graph does, without ROS.

chunk --> guard, asked at 100 Hz --> joint trajectory --> simulated arm --> measured joints --> guard
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.chunk import ReceivedChunk
from cosmos3_ros.guard.guard import Command, Guard, GuardState
from cosmos3_ros.guard.limits import RobotLimits
from engine.contract import Contract
from engine.evaluation import franka_scene as scene
from engine.evaluation.expert_paths import Rows, Seen
from engine.evaluation.simulated_franka import SimulatedFranka

Floats = NDArray[np.float64]

NS = 1_000_000_000
TICK_NS = 10_000_000
"""Control period of the guard."""
ORIGIN_NS = NS
"""Time at which every episode begins; no stamp is zero."""
ACCEPTED = 'ACCEPTED'
"""What is said of a chunk that the guard has taken."""
SETTLE_S = 0.3
"""How long loose objects have to come to rest before an episode begins."""
_ARM = len(scene.ARM_JOINTS)


def views_of(robot: SimulatedFranka, contract: Contract) -> dict[str, NDArray[np.uint8]]:
    """Pictures of the views that a contract names, uint8 [H, W, 3]."""
    pictures = robot.render()
    return {view: pictures[view] for view in contract.views.streams}


def seen_of(robot: SimulatedFranka, stamp_ns: int, views: Mapping[str, NDArray[np.uint8]]) -> Seen:
    """What is to be seen of a simulated robot now, at `stamp_ns` of its episodes' clock."""
    positions = robot.joint_state().positions
    closed = 1.0 - float(positions[_ARM]) / scene.FINGER_TRAVEL
    return Seen(stamp_ns, views, positions[:_ARM].copy(), min(max(closed, 0.0), 1.0), robot.objects())


class GuardedRobot:
    """Robot and guard, and the time between them; one episode after another.

    Attributes:
        robot: The simulated arm.
        guard: That of this episode.
        step_ns: Time from row to row.
        refusals: When a chunk was refused or the motion stopped, s since the episode began, and why.
    """

    def __init__(self, robot: SimulatedFranka, limits: RobotLimits, contract: Contract) -> None:
        self.robot, self._limits, self._contract = robot, limits, contract
        self.step_ns = round(NS / contract.timing.fps)
        self._grippers = contract.robot.gripper_joints

    def start(self) -> None:
        """Begin an episode with the scene as it is: things come to rest, and a new guard takes over."""
        self.robot.advance(SETTLE_S)
        self._began_ns = self.robot.time_ns
        self.refusals: list[tuple[float, str]] = []
        self.guard = Guard(self._limits, gripper_names=self._grippers)
        self.guard.activate(self.now_ns)
        self._report()
        self._sequence, self._before = 0, self.guard.state

    @property
    def now_ns(self) -> int:
        """Time of this episode; the first instant is not zero."""
        return self.robot.time_ns - self._began_ns + ORIGIN_NS

    @property
    def now_s(self) -> float:
        """Seconds since the episode began."""
        return (self.now_ns - ORIGIN_NS) / NS

    def seen(self, with_pictures: bool) -> Seen:
        """What is to be seen now."""
        views = views_of(self.robot, self._contract) if with_pictures else {}
        return seen_of(self.robot, self.now_ns, views)

    def offer(self, stamp_ns: int, rows: Rows) -> str:
        """Hand a chunk to the guard: 'ACCEPTED', or why not."""
        self._sequence += 1
        verdict = self.guard.on_chunk(
            ReceivedChunk(
                stamp_ns,
                self.guard.epoch,
                self._sequence,
                self.step_ns,
                self._limits.joint_names,
                rows.positions,
                rows.grippers[:, None],
                self._grippers,
            ),
            self.now_ns,
        )
        name = getattr(getattr(verdict, 'reason', None), 'name', ACCEPTED)
        if name != ACCEPTED:
            self.refusals.append((self.now_s, name))
        return name

    def tick(self) -> None:
        """Let one control period pass."""
        command = self.guard.tick(self.now_ns)
        if command is not None:
            self._obey(command)
        self.robot.advance(TICK_NS / NS)
        self._report()
        state = self.guard.state
        if state is not self._before and state not in (GuardState.TRACKING, GuardState.WAITING):
            self.refusals.append((self.now_s, self.guard.cause.reason.name))
        self._before = state

    def _obey(self, command: Command) -> None:
        start_ns = command.stamp_ns - ORIGIN_NS + self._began_ns
        self.robot.set_trajectory(command.times_ns / NS, command.positions, command.velocities, start_ns)
        if command.gripper is not None:
            self.robot.set_gripper(command.gripper[0])

    def _report(self) -> None:
        state = self.robot.joint_state()
        names, now = self._limits.joint_names, self.now_ns
        self.guard.on_joint_state(now, now, names, state.positions[:_ARM], state.velocities[:_ARM])
