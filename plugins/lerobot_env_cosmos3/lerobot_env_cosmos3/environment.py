"""One task as a Gymnasium environment: a row in, the next pictures and joints out.

Scenes, instructions and judgement are those of `cosmos3 eval closed-loop`: an episode is a task and a seed, and whether
it succeeded is read from the simulator at every control period. The loop is another one: LeRobot hands over one row
at a time and lets the world wait for it, so there is no latency, and no guard, which judges chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.eval_world import SimulatedWorld
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guarded_robot import NS, ORIGIN_NS, TICK_NS
from engine.contract import load_contract
from engine.errors import InvalidInput, Problem
from engine.evaluation.simulated_franka import SimulatedFranka
from engine.evaluation.tasks import TASKS, Episode, Jitter, check_tasks, make_episode
from engine.evaluation.tasks_watch import Findings, Watch
from engine.observation.views import compose, in_shape

Floats = NDArray[np.float64]
Observation = dict[str, Any]

MS_NS = 1_000_000


class RowWorld(SimulatedWorld):
    """The world of closed-loop episodes, whose arm follows rows as they come and not what a guard makes of chunks."""

    def follow(self, row: Floats, due_ns: int, each: Callable[[], bool]) -> bool:
        """Go to a row in a straight line, and let the time until then pass.

        Args:
            row: [J + 1] joints in rad, then the gripper, 0 open, 1 closed.
            due_ns: When the arm should be there; a whole number of milliseconds.
            each: Called at the end of every control period.

        Returns:
            Whether `each` said that this is the end.
        """
        self.robot.set_trajectory([(due_ns - self.now_ns) / NS], [row[:-1]])
        self.robot.set_gripper(float(np.clip(row[-1], 0.0, 1.0)))
        while (now := self.now_ns) < due_ns:
            period = now + TICK_NS - (now - ORIGIN_NS) % TICK_NS
            self.robot.advance((min(period, due_ns) - now) / NS)
            if self.now_ns == period and each():
                return True
        return False


class Cosmos3Env(gym.Env[Observation, Floats]):
    """A task on the simulated Franka. The scene is built at the first reset.

    Observations: `pixels`, uint8 [H, W, 3] by view, and `agent_pos`, float32: measured joints in rad, then the gripper,
    0 open, 1 closed. Actions have the same columns: where the arm should be one row from now. The rewards of an
    episode add up to the share of the task's milestones that were reached.

    Attributes:
        task: Name of the task.
        task_description: What is asked for in this episode.
        episode: The episode; None before the first.
        world: Robot and scene; None before the first reset.
    """

    metadata: ClassVar[dict[str, Any]] = {'render_modes': ['rgb_array'], 'render_fps': 15}

    def __init__(
        self,
        task: str,
        contract: str = 'demo_joint_pos',
        size: tuple[int, int] = (180, 320),
        jitter: Jitter | None = None,
        episode_length: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            task: Name of the task.
            contract: Name or path; it has to be for this arm.
            size: Height and width of the pictures of each view.
            jitter: What differs from episode to episode beside the objects.
            episode_length: Rows after which an episode ends at the latest; None for what the task allows.

        Raises:
            CosmosError: There is no such task or contract.
        """
        check_tasks([task])
        self.task, self.task_description = task, ''
        self.render_mode = 'rgb_array'
        self._contract, self._size, self._jitter = load_contract(contract), size, jitter
        self._fps = self._contract.timing.fps
        self.metadata = {**type(self).metadata, 'render_fps': round(self._fps)}
        allowed = math.ceil(TASKS[task].horizon_s * self._fps - 1e-9)
        self._max_episode_steps = min(allowed, episode_length or allowed)  # LeRobot asks for it by this name
        self.episode: Episode | None = None
        self.world: RowWorld | None = None
        columns = len(self._contract.robot.joints) + 1
        unbounded = gym.spaces.Box(-np.inf, np.inf, (columns,), np.float32)
        pictures = {view: gym.spaces.Box(0, 255, (*size, 3), np.uint8) for view in self._contract.views.streams}
        self.action_space = unbounded
        self.observation_space = gym.spaces.Dict({'pixels': gym.spaces.Dict(pictures), 'agent_pos': unbounded})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin the episode of a seed; without one, that of a seed that follows from the last one given."""
        super().reset(seed=seed, options=options)
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        self.world = self.world or self._build()
        self.episode = make_episode(self.task, number, self._jitter)
        self.task_description = self.episode.instruction
        self.world.begin(self.episode)
        self._watch, self._steps, self._progress = Watch(self.episode, self.world.truth()), 0, 0.0
        return self._observe(self.world), self._info()

    def step(self, action: Floats) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Play one row.

        Raises:
            InvalidInput: It is not one finite number for each column, or there was no reset.
        """
        row = self._checked(action)
        world, watch = self._under_way()
        self._steps += 1

        def look() -> bool:
            watch.look(world.truth())
            return watch.done

        world.follow(row, ORIGIN_NS + round(1000 * self._steps / self._fps) * MS_NS, look)
        before, self._progress = self._progress, watch.findings().progress
        over = self._steps >= self._max_episode_steps
        return self._observe(world), self._progress - before, watch.done, over and not watch.done, self._info()

    def render(self) -> NDArray[np.uint8]:
        """What the policy sees: the views composed as the contract says, uint8 [H, W, 3]."""
        views = self._contract.views
        return compose(in_shape(self._seen, views.composition, views.size), views.composition, views.size)

    def close(self) -> None:
        """Free what pictures are drawn with."""
        if self.world is not None:
            self.world.robot.close()

    @property
    def findings(self) -> Findings:
        """What came of the episode so far, as `cosmos3 eval closed-loop` records it."""
        return self._under_way()[1].findings()

    # Parts

    def _build(self) -> RowWorld:
        robot = SimulatedFranka(image_size=self._size, render_views=tuple(self._contract.views.streams), zone=True)
        return RowWorld(robot, load_limits(self._contract.robot.description), self._contract)

    def _under_way(self) -> tuple[RowWorld, Watch]:
        if self.world is None:
            raise InvalidInput(
                'environment cosmos3', [Problem('episode', 'has not begun', remedy='call reset() first')]
            )
        return self.world, self._watch

    def _observe(self, world: RowWorld) -> Observation:
        seen = world.seen(with_pictures=True)
        self._seen = seen.views
        return {'pixels': dict(seen.views), 'agent_pos': np.append(seen.joints, seen.gripper).astype(np.float32)}

    def _info(self) -> dict[str, Any]:
        found = self._watch.findings()
        return {'is_success': found.success, 'progress': found.progress, 'wrong': len(found.wrong)}

    def _checked(self, action: Floats) -> Floats:
        row = np.asarray(action, np.float64)
        wanted = self.action_space.shape
        if row.shape != wanted or not np.isfinite(row).all():
            value = np.array2string(row, precision=3) if row.shape == wanted else str(list(row.shape))
            what = 'is not one finite number for each column'
            raise InvalidInput('environment cosmos3', [Problem('action', what, value, str(list(wanted or ())))])
        return row
