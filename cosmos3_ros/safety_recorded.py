"""Recorded episodes in place of simulated ones: what was done next stands for what was proposed.

A recording is cut into stretches of a few seconds, each an episode. Nothing is executed: the guard judges the chunks as
it does in a dry run, hazards are put into what is seen and proposed, and of harm nothing can be said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.contract_arms import chain_of
from cosmos3_ros.guard.chunk import ReceivedChunk
from cosmos3_ros.guard.guard import Guard
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guard.options import GuardOptions
from cosmos3_ros.guarded_robot import ACCEPTED, NS, TICK_NS
from cosmos3_ros.inverse_kinematics import InverseKinematics
from cosmos3_ros.safety_episode import ChunkRecord, EpisodeRecord, record_of
from cosmos3_ros.safety_expert import REPLAN_ROWS, Rows, Seen
from cosmos3_ros.safety_hazards import Hazard, make_hazard
from cosmos3_ros.safety_model import CHECKPOINT_CHUNKS, Network
from cosmos3_ros.safety_pictures import Gallery
from engine.actions import quaternion_to_matrix
from engine.contract import Contract, load_contract
from engine.errors import InvalidInput, Problem
from engine.evaluation import franka_scene as scene
from engine.evaluation.recordings import Frame, Recording, open_recording

if TYPE_CHECKING:
    from cosmos3_ros.safety_runs import Case, Setup

Floats = NDArray[np.float64]

_NEAR_STEPS = 12


@dataclass(frozen=True)
class Stretch:
    """A piece of a recording.

    Attributes:
        recording: Which one.
        first: Its first frame.
    """

    recording: int
    first: int


def open_with_stand_ins(path: str, contract: Contract) -> Recording:
    """A recording that has all views of a contract: for one that is missing, the first that is there stands in.

    Raises:
        InvalidInput: It cannot be read, has no camera, no poses, or another rate.
    """
    with open_recording(path) as found:
        there, fps, frames = found.views, found.fps, len(found)
        posed = bool(frames) and found.frame(0).end_effector is not None
    problems = []
    if not there:
        problems.append(Problem('views', 'there are none'))
    if not posed:
        problems.append(Problem('end effector', 'has no poses that can be believed'))
    if abs(fps / contract.timing.fps - 1) > 0.01:
        problems.append(Problem('fps', 'is another than that of the contract', f'{fps:g}', f'{contract.timing.fps:g}'))
    if problems:
        raise InvalidInput(f'recording {path}', problems)
    return open_recording(path, {view: there[0] for view in contract.views.streams if view not in there})


def stretches(paths: Sequence[str], contract: Contract) -> list[Stretch]:
    """All whole stretches, in order.

    Raises:
        InvalidInput: A recording cannot be used, or none is long enough.
    """
    length = _frames(contract)
    found = []
    for number, path in enumerate(paths):
        with open_with_stand_ins(path, contract) as recording:
            span = CHECKPOINT_CHUNKS * REPLAN_ROWS
            found += [Stretch(number, first) for first in range(0, len(recording) - length + 1, span)]
    if len(found) < 2:
        raise InvalidInput('recordings', [Problem('frames', 'are too few', '', f'two stretches of {length} or more')])
    return found


def _frames(contract: Contract) -> int:
    """Frames that a stretch looks at: the last chunk reaches beyond its observation."""
    return (CHECKPOINT_CHUNKS - 1) * REPLAN_ROWS + contract.timing.chunk_rows + 1


class RecordedRunner:
    """Runs cases on recordings. Even stretches make bands and odd ones are tested, unless all are for one purpose."""

    def __init__(self, setup: Setup) -> None:
        """Load the network and open the recordings.

        Raises:
            CosmosError: Something cannot be used.
        """
        self._setup, self._contract = setup, load_contract(setup.contract)
        self._limits = load_limits(self._contract.robot.description)
        self._network = Network(self._contract, setup.terms, setup.calibration)
        self._stretches = stretches(setup.recordings, self._contract)
        self._recordings = [open_with_stand_ins(path, self._contract) for path in setup.recordings]
        arm = self._contract.robot.arms[0]
        self._solver = InverseKinematics(chain_of(arm, self._limits), arm.joints, scene.FLANGE)

    def run(self, case: Case) -> EpisodeRecord:
        """Run one.

        Raises:
            InvalidInput: The poses cannot be reached by the contract's arm.
        """
        mine = self._stretches
        if self._setup.halves:
            mine = mine[0 if case.purpose == 'calibration' else 1 :: 2]
        stretch = mine[case.number % len(mine)]
        recording, seed = self._recordings[stretch.recording], case.seed()
        frames = [recording.frame(stretch.first + k) for k in range(_frames(self._contract))]
        hazard = make_hazard(case.hazard, seed, CHECKPOINT_CHUNKS)
        judging = Gallery(self._network, self._network.begin(seed))
        chunks, stops = self._play(frames, hazard, judging, recording.instruction or 'do the task')
        if self._setup.pictures is not None and case.purpose == 'test' and case.number == 0:
            judging.save(self._setup.pictures / f'{case.hazard or "nominal"}.jpg', hazard.begin if case.hazard else 1)
        began = chunks[hazard.begin].observed_s if case.hazard else None
        text = recording.instruction
        return EpisodeRecord(case.name, case.purpose, case.hazard, seed, text, began, tuple(chunks), tuple(stops))

    def _play(
        self, frames: Sequence[Frame], hazard: Hazard, judging: Gallery, instruction: str
    ) -> tuple[list[ChunkRecord], list[tuple[float, str]]]:
        joints, closed = self._joints(frames), np.array([frame.gripper or 0.0 for frame in frames])
        latency_ns, step_ns = round(self._setup.latency_s * NS), round(NS / self._contract.timing.fps)
        guard = _DryGuard(self._contract, joints, latency_ns)
        chunks, stops = [], []
        for index in range(CHECKPOINT_CHUNKS):
            now, after = (
                index * REPLAN_ROWS,
                slice(index * REPLAN_ROWS + 1, index * REPLAN_ROWS + 1 + self._contract.timing.chunk_rows),
            )
            views = {view: frames[now].views[view] for view in self._contract.views.streams}
            shown = hazard.seen(index, Seen(NS + now * step_ns, views, joints[now], float(closed[now]), {}))
            proposed = Rows(joints[after], closed[after])
            rows = hazard.rows(index, proposed)
            found = judging(index, shown, proposed, rows, instruction)
            said = guard.offer(shown.stamp_ns, rows)
            observed, arrived = now * step_ns / NS, (now * step_ns + latency_ns) / NS
            if said != ACCEPTED:
                stops.append((arrived, said))
            chunks.append(record_of(observed, arrived, hazard.active(index), said, found))
        return chunks, stops

    def _joints(self, frames: Sequence[Frame]) -> Floats:
        """Joints of every frame: those recorded, or those that lead through the recorded poses."""
        recorded = [frame.joint_positions for frame in frames if frame.joint_positions is not None]
        if len(recorded) == len(frames):
            return np.stack(recorded)
        poses = [frame.end_effector for frame in frames if frame.end_effector is not None]
        positions = np.stack([position for position, _ in poses])
        rotations = quaternion_to_matrix(np.stack([quaternion for _, quaternion in poses]))
        return self._solver.solve(positions, rotations, self._near(positions[0], rotations[0]))

    def _near(self, position: Floats, rotation: Floats) -> Floats:
        """Joints of the first pose, found step by step from the pose at which recordings begin."""
        from scipy.spatial.transform import Rotation, Slerp

        home = np.array(scene.HOME)
        here, turned = self._solver.pose(home)
        shares = np.linspace(0, 1, _NEAR_STEPS + 1)[1:]
        turns = Slerp([0, 1], Rotation.from_matrix(np.stack([turned, rotation])))(shares).as_matrix()
        return self._solver.solve(here + shares[:, None] * (position - here), turns, home)[-1]


class _DryGuard:
    """A guard whose commands nobody obeys: it hears where the recorded arm is, and judges."""

    def __init__(self, contract: Contract, joints: Floats, latency_ns: int) -> None:
        limits = load_limits(contract.robot.description)
        self._contract, self._joints, self._limits = contract, joints, limits
        self._guard = Guard(limits, GuardOptions(dry_run=True), contract.robot.gripper_joints)
        self._now_ns, self._sequence, self._latency_ns = NS, 0, latency_ns
        self._guard.activate(self._now_ns)
        self._hear()

    def offer(self, stamp_ns: int, rows: Rows) -> str:
        """What the guard says to a chunk when it arrives."""
        while self._now_ns < stamp_ns + self._latency_ns:
            self._now_ns += TICK_NS
            self._hear()
            self._guard.tick(self._now_ns)
        self._sequence += 1
        step_ns, names = round(NS / self._contract.timing.fps), self._contract.robot.gripper_joints
        chunk = ReceivedChunk(
            stamp_ns,
            self._guard.epoch,
            self._sequence,
            step_ns,
            self._limits.joint_names,
            rows.positions,
            rows.grippers[:, None],
            names,
        )
        verdict = self._guard.on_chunk(chunk, self._now_ns)
        return getattr(getattr(verdict, 'reason', None), 'name', ACCEPTED)

    def _hear(self) -> None:
        """The joints at this instant, straight between the frames."""
        frame = (self._now_ns - NS) / NS * self._contract.timing.fps
        at = min(int(frame), len(self._joints) - 2)
        step = self._joints[at + 1] - self._joints[at]
        joints = self._joints[at] + min(frame - at, 1.0) * step
        speed = step * self._contract.timing.fps
        self._guard.on_joint_state(self._now_ns, self._now_ns, self._limits.joint_names, joints, speed)
