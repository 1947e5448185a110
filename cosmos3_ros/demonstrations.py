"""Episodes of the scripted hand for a data set: one process runs them whole, and leaves numbers and finished videos.

Whoever writes the data set then only has to put them in their places: pictures are encoded where they are drawn, and do
not travel from process to process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.demonstration_disturbances import Disturbed
from cosmos3_ros.demonstration_leads import Led
from cosmos3_ros.eval_world import Cast, RemoteActor, make_actor
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guarded_robot import ORIGIN_NS
from cosmos3_ros.recorder_episodes import RecordedWorld, row_values
from cosmos3_ros.safety_expert import check_arm
from engine.contract import load_contract
from engine.datasets.adapters import as_rpy
from engine.datasets.convert import camera_key
from engine.datasets.statistics import PictureTally, Stats
from engine.evaluation.closed_loop import EpisodeRecord, LoopTerms, World, play
from engine.evaluation.expert import Expert
from engine.evaluation.expert_paths import Seen
from engine.evaluation.simulated_franka import SimulatedFranka
from engine.evaluation.tasks import Episode
from engine.evaluation.video import VideoWriter

Floats = NDArray[np.float64]

DISTURBED = 'disturbed'
"""Column of the data set: 1 where the action is part of a displacement, or of what somebody else led, else 0."""


@dataclass(frozen=True)
class Terms:
    """How episodes are demonstrated; with task and seed this decides every byte.

    Attributes:
        contract: Name or path.
        loop: How the loop is closed.
        linger_s: How long an episode goes on after success.
        disturbed: Share of the episodes in which the arm is displaced, once or twice.
        picture: Height and width of the pictures, pixels.
        led: Share of the episodes in which somebody else leads at first.
        led_by: Who: 'another' (the hand, on its way to another object), 'random', 'hold', a checkpoint, a server.
    """

    contract: str = 'micro_joint_pos'
    loop: LoopTerms = field(default_factory=lambda: LoopTerms(4, 0.0))
    linger_s: float = 0.6
    disturbed: float = 0.0
    picture: tuple[int, int] = (180, 320)
    led: float = 0.0
    led_by: str = ''

    @property
    def leader(self) -> Cast:
        """Who leads, as episodes know it."""
        return Cast(self.led_by, self.contract, self.loop)


@dataclass(frozen=True, eq=False)
class Take:
    """One episode as it was run, N rows.

    Attributes:
        record: What came of it.
        columns: [N, width] by feature.
        videos: Finished file by camera, N frames each; they are the caller's to move or to remove.
        stats: Of the pictures, by camera.
        disturbances: How often the arm was displaced, or led.
        led: Whether the hand never took over.
    """

    record: EpisodeRecord
    columns: Mapping[str, Floats]
    videos: Mapping[str, Path]
    stats: Mapping[str, Stats]
    disturbances: int
    led: bool = False

    @property
    def length(self) -> int:
        """Rows."""
        return len(next(iter(self.columns.values())))


class FilmingCamera:
    """Films what is seen whenever a row is due, and notes its numbers.

    It is a :data:`~engine.evaluation.closed_loop.Camera`.
    """

    def __init__(self, paths: Mapping[str, Path], fps: float, size: tuple[int, int]) -> None:
        """Open the films.

        Args:
            paths: File for each view.
            fps: Rows per second.
            size: Height and width of the pictures, pixels.
        """
        self.seen: list[Seen] = []
        self.poses: list[Floats] = []
        self._tallies = {view: PictureTally() for view in paths}
        self._films = {view: VideoWriter(path, fps, size, repeatable=True) for view, path in paths.items()}

    def __call__(self, world: World) -> None:
        """A control period has passed."""
        due = ORIGIN_NS + round(len(self.seen) * world.step_ns)
        if world.now_ns < due or not isinstance(world, RecordedWorld):
            return
        found = world.seen(True)
        for view, film in self._films.items():
            film.write(found.views[view])
            self._tallies[view].add(found.views[view])
        self.seen.append(Seen(found.stamp_ns, {}, found.joints, found.gripper, found.objects))
        self.poses.append(np.concatenate(world.robot.end_effector_pose()))

    def close(self) -> dict[str, Stats]:
        """Finish the films; statistics of their pictures by view."""
        for film in self._films.values():
            film.close()
        return {view: tally.stats() for view, tally in self._tallies.items()}

    def discard(self) -> None:
        """Drop the films."""
        for film in self._films.values():
            film.discard()


class Demonstrator:
    """Runs episodes in this process, one after another."""

    def __init__(self, terms: Terms, folder: Path) -> None:
        """Build the scene.

        Args:
            terms: How episodes are demonstrated.
            folder: Where videos are put; it must exist.

        Raises:
            CosmosError: The contract, the simulator or whoever leads does not work.
        """
        # A software renderer with threads of its own would share the core with the physics and only wait for itself.
        os.environ.setdefault('LP_NUM_THREADS', '0')
        self._terms, self._folder = terms, folder
        contract = load_contract(terms.contract)
        check_arm(contract)
        limits = load_limits(contract.robot.description)
        self._fps, self._views = contract.timing.fps, tuple(contract.views.streams)
        expert = Expert(
            1.0 / self._fps, contract.timing.chunk_rows, limits.velocity, limits.acceleration, terms.loop.latency_s
        )
        self._actor: Disturbed | Led = Disturbed(expert, limits, contract.timing, terms.loop, terms.disturbed)
        self._leader = make_actor(terms.leader, contract) if terms.led else None
        if self._leader is not None:
            self._actor = Led(self._actor, self._leader, contract.timing, terms.loop, terms.led)
        robot = SimulatedFranka(image_size=terms.picture, render_views=self._views, zone=True)
        self.world = RecordedWorld(robot, limits, contract)
        robot.render()  # better to hear now that it does not work

    def take(self, episode: Episode) -> Take:
        """Run one episode.

        Raises:
            CosmosError: The simulator failed.
        """
        stem = f'{episode.task}_{episode.seed}'
        paths = {view: self._folder / f'{stem}_{view}.mp4' for view in self._views}
        camera = FilmingCamera(paths, self._fps, self._terms.picture)
        try:
            record = play(self.world, self._actor, episode, self._terms.loop, camera, self._terms.linger_s)
            stats = camera.close()
        except BaseException:
            camera.discard()
            raise
        return Take(
            replace(record, act_s=0.0),  # what a chunk took is of this machine and this moment
            self._columns(camera),
            {camera_key(view): path for view, path in paths.items()},
            {camera_key(view): found for view, found in stats.items()},
            len(self._actor.spans),
            isinstance(self._actor, Led) and self._actor.leads,
        )

    def close(self) -> None:
        """Free the cameras, and end the connection to a server."""
        self.world.robot.close()
        if isinstance(self._leader, RemoteActor):
            self._leader.close()

    def _columns(self, camera: FilmingCamera) -> dict[str, Floats]:
        arm, gripper = self.world.targets()
        step = self.world.step_ns
        poses = as_rpy(np.stack(camera.poses))
        rows = [row_values(*one, arm, gripper, step) for one in zip(camera.seen, poses, strict=True)]
        stamps = np.array([seen.stamp_ns for seen in camera.seen], np.int64)
        pushed = np.zeros((len(stamps), 1))
        for begin, end in self._actor.spans:
            pushed[(stamps + step > begin) & (stamps < end)] = 1.0
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]} | {DISTURBED: pushed}
