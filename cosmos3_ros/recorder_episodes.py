"""Records episodes of the simulated Franka as a LeRobot data set, and plays recorded actions again.

A row is what was seen at a moment, and where the guard told arm and fingers to be one row later. Recording looks on: an
episode comes out the same with and without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.eval_world import SCRIPTED, Cast, RemoteActor, SimulatedWorld, make_actor
from cosmos3_ros.guard.guard import Command
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guarded_robot import ORIGIN_NS
from cosmos3_ros.recorder_asked import Targets, Way
from cosmos3_ros.safety_expert import check_arm
from engine.contract import Contract, load_contract
from engine.datasets.adapters import as_rpy
from engine.datasets.convert import ACTION, CLOSED, END_EFFECTOR, POSE_NAMES, STATE, camera_key
from engine.datasets.writer import DatasetWriter, Feature, Plan
from engine.errors import CosmosError, InvalidInput, Problem
from engine.evaluation.closed_loop import Actor, Camera, EpisodeRecord, LoopTerms, World, play
from engine.evaluation.expert_paths import Rows, Seen
from engine.evaluation.franka_scene import REVISION
from engine.evaluation.recording_signals import ARM_JOINTS
from engine.evaluation.simulated_franka import SimulatedFranka
from engine.evaluation.tasks import Episode
from engine.serving.addresses import SERVERS

Floats = NDArray[np.float64]


class RecordedWorld(SimulatedWorld):
    """The simulated world, with a memory for what was commanded."""

    def begin(self, episode: Episode) -> None:
        """Lay everything out anew, and forget."""
        self._told_arm = Way(ARM_JOINTS)
        self._told_gripper: list[tuple[int, float]] = []
        super().begin(episode)

    def _obey(self, command: Command) -> None:
        super()._obey(command)
        self._told_arm.add([int(command.stamp_ns + ahead) for ahead in command.times_ns], command.positions)
        if command.gripper is not None:
            self._told_gripper.append((int(command.stamp_ns), float(command.gripper[0])))

    def targets(self) -> tuple[Targets, Targets]:
        """Where arm and gripper were told to be, on the clock of the stamps."""
        moments = np.array([moment for moment, _ in self._told_gripper], np.int64)
        closed = np.array([[value] for _, value in self._told_gripper], np.float64).reshape(-1, 1)
        return self._told_arm.targets(), Targets(moments, closed, steady=True)


class EpisodeCamera:
    """Notes what is seen whenever a row is due; a :data:`~engine.evaluation.closed_loop.Camera`."""

    def __init__(self, also: Camera | None = None) -> None:
        """`also` is called, too."""
        self.seen: list[Seen] = []
        self.poses: list[Floats] = []
        self._also = also

    def __call__(self, world: World) -> None:
        """A control period has passed."""
        if self._also is not None:
            self._also(world)
        due = ORIGIN_NS + round(len(self.seen) * world.step_ns)
        if world.now_ns < due or not isinstance(world, SimulatedWorld):
            return
        self.seen.append(world.seen(True))
        pose = world.robot.end_effector_pose()
        self.poses.append(as_rpy(np.concatenate([pose.position, pose.quaternion])[None])[0])


class RecordingRunner:
    """Runs episodes in this process and adds each to a data set; takes the place of `WorldRunner`."""

    def __init__(self, cast: Cast, root: Path) -> None:
        """Build the scene, load the policy, and begin the data set or go on with it.

        Args:
            cast: Who plays, and where.
            root: Folder of the data set.

        Raises:
            CosmosError: The checkpoint, the contract or the simulator does not work; or there is another data set.
        """
        contract = load_contract(cast.contract)
        check_arm(contract)
        self._terms, self._actor = cast.terms, make_actor(cast, contract)
        robot = SimulatedFranka(render_views=None, zone=True)
        self.world = RecordedWorld(robot, load_limits(contract.robot.description), contract)
        try:
            self._writer = DatasetWriter(root, episode_plan(contract, robot.image_size, player_of(cast)), go_on=True)
            self._done = _recorded(root, self._writer.notes)
        except CosmosError:
            robot.close()
            raise

    def run(self, episode: Episode, camera: Camera | None = None) -> EpisodeRecord:
        """Run one episode and keep it, unless the data set has it already."""
        kept = EpisodeCamera(camera)
        record = play(self.world, self._actor, episode, self._terms, kept)
        name = (*episode.key, setting_of(episode))
        if name not in self._done:
            self._keep(episode, record, kept)
            self._done.add(name)
        return record

    def close(self) -> None:
        """Free the cameras."""
        self.world.robot.close()
        if isinstance(self._actor, RemoteActor):
            self._actor.close()

    def _keep(self, episode: Episode, record: EpisodeRecord, kept: EpisodeCamera) -> None:
        arm, gripper = self.world.targets()
        notes: dict[str, str | float | bool] = {'suite_task': episode.task, 'seed': episode.seed}
        notes |= {'setting': setting_of(episode), 'success': record.success}
        with self._writer.episode(episode.instruction, **notes) as target:
            for seen, pose in zip(kept.seen, kept.poses, strict=True):
                values = row_values(seen, pose, arm, gripper, self.world.step_ns)
                target.add(values, {camera_key(view): picture for view, picture in seen.views.items()})


def row_values(seen: Seen, pose: Floats, arm: Targets, gripper: Targets, step_ns: int) -> dict[str, Floats]:
    """The numbers of a row: what was measured, and where arm and gripper were told to be one row later.

    Args:
        seen: What was to be seen.
        pose: [6] of the end effector then.
        arm: What the arm was told, as :meth:`RecordedWorld.targets` has it.
        gripper: What the gripper was told.
        step_ns: From row to row.
    """
    later = seen.stamp_ns + step_ns
    # Before the first command arm and gripper rest where they are.
    joints, closed = arm.at(later), gripper.at(later)
    action = [*(seen.joints if joints is None else joints), seen.gripper if closed is None else closed[0]]
    return {STATE: np.array([*seen.joints, seen.gripper]), END_EFFECTOR: pose, ACTION: np.array(action)}


def setting_of(episode: Episode) -> str:
    """How the scene was at the beginning: with another jitter the same seed makes another episode."""
    return json.dumps(asdict(episode.setting), sort_keys=True)


def _recorded(root: Path, notes: Sequence[Mapping[str, Any]]) -> set[tuple[str, int, str]]:
    """Task, seed and setting of the episodes that are there.

    Raises:
        InvalidInput: An episode does not say.
    """
    problems = [
        Problem(f'episode {number}', f'does not say its {name}', remedy='name another folder')
        for number, one in enumerate(notes)
        for name in ('suite_task', 'seed', 'setting')
        if one.get(name) is None
    ]
    if problems:
        raise InvalidInput(f'data set {root}', problems)
    return {(str(one['suite_task']), int(one['seed']), str(one['setting'])) for one in notes}


def player_of(cast: Cast) -> dict[str, Any]:
    """Who plays and on what terms: what the episodes of one data set have in common.

    Raises:
        CheckpointError: The checkpoint cannot be opened.
    """
    found: dict[str, Any] = {'policy': cast.policy, 'loop': asdict(cast.terms)}
    if cast.policy in SCRIPTED:
        return found
    if cast.policy.startswith(SERVERS):
        return found | {'dialect': cast.dialect}
    from engine.checkpoint import open_checkpoint

    found |= {'policy': Path(cast.policy).name, 'checkpoint': open_checkpoint(cast.policy).fingerprint}
    return found | {'dtype': cast.dtype, 'compiled': Path(cast.compiled).name}


def episode_plan(contract: Contract, picture: tuple[int, int], player: Mapping[str, Any]) -> Plan:
    """What a data set of simulated episodes holds.

    Args:
        contract: Names joints and views.
        picture: Height and width of the pictures, pixels.
        player: Says who plays, and becomes part of where it is from.
    """
    joints = Feature((*contract.robot.joints, CLOSED), 'float64')
    sizes = {camera_key(view): picture for view in contract.views.streams}
    text = Path(contract.source).read_text(encoding='utf-8')
    origin = {'made_by': 'cosmos3 eval closed-loop --record', **player, 'contract': contract.name}
    origin |= {'fingerprint': contract.fingerprint, 'actions': 'commanded', 'scene': REVISION}
    features = {STATE: joints, END_EFFECTOR: Feature(POSE_NAMES, 'float64'), ACTION: joints}
    return Plan(contract.timing.fps, features, sizes, 'simulated_franka', text, origin)


class RecordedActions:
    """An actor that asks for what was recorded, row by row, and goes on with the last."""

    sees = False

    def __init__(self, actions: Floats, step_ns: int, chunk_rows: int) -> None:
        """Take actions.

        Args:
            actions: [N, J + 1]: target joints in rad and closed fraction, one row later each.
            step_ns: From row to row.
            chunk_rows: Rows of a chunk.
        """
        self._actions, self._step_ns, self._rows = np.asarray(actions, np.float64), step_ns, chunk_rows

    def begin(self, _episode: Episode) -> None:
        """Nothing to prepare."""

    def act(self, seen: Seen) -> Rows:
        """The rows that follow this moment."""
        first = round((seen.stamp_ns - ORIGIN_NS) / self._step_ns)
        rows = np.clip(np.arange(first, first + self._rows), 0, len(self._actions) - 1)
        return Rows(self._actions[rows, :-1], np.clip(self._actions[rows, -1], 0.0, 1.0))


def replay(
    actions: Floats, episode: Episode, contract: Contract, terms: LoopTerms | None = None
) -> tuple[EpisodeRecord, SimulatedWorld]:
    """Play recorded actions in a new simulator; returns what came of it, and the world as it was left.

    Args:
        actions: [N, J + 1], as recorded.
        episode: Its task and seed.
        contract: Under which it was recorded.
        terms: How the loop is closed. By default chunks arrive at once, so that nothing of the recording is missed.
    """
    robot = SimulatedFranka(render_views=(), zone=True)
    world = SimulatedWorld(robot, load_limits(contract.robot.description), contract)
    actor: Actor = RecordedActions(actions, world.step_ns, contract.timing.chunk_rows)
    return play(world, actor, episode, terms or LoopTerms(latency_s=0.0)), world
