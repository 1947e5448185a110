"""What a LeRobot environment of type `cosmos3` is: tasks, a contract, and what differs from episode to episode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from engine.errors import InvalidInput, Problem

if TYPE_CHECKING:
    import gymnasium as gym

    from engine.contract import Contract

STATE = 'agent_pos'
"""What LeRobot calls the measured joints in an environment's observations."""


@EnvConfig.register_subclass('cosmos3')
@dataclass
class Cosmos3EnvConfig(EnvConfig):
    """Configuration of :class:`~lerobot_env_cosmos3.environment.Cosmos3Env`.

    Attributes:
        task: `reach`, `push`, `lift`, `place`, or several of them with commas between.
        contract: Name or path of the contract: which views there are, and how many rows a second.
        fps: Rows a second; 0 for the contract's, which is all that is allowed.
        episode_length: Rows after which an episode ends at the latest; None for what the task allows.
        observation_height: Of the pictures of each view, pixels.
        observation_width: Likewise.
        start_jitter: Largest turn of every joint away from the start pose, rad.
        light_jitter: Largest share by which lamps are brighter or darker.
        camera_jitter: Largest shift of every camera, m.
        camera_turn: Largest turn of every camera, rad.
    """

    task: str | None = 'reach,push,lift,place'
    contract: str = 'demo_joint_pos'
    fps: int = 0
    episode_length: int | None = None
    observation_height: int = 180
    observation_width: int = 320
    start_jitter: float = 0.05
    light_jitter: float = 0.0
    camera_jitter: float = 0.0
    camera_turn: float = 0.0

    def __post_init__(self) -> None:
        """Check the options, and name the features of the contract.

        Raises:
            CosmosError: Options do not fit; lists every fault.
        """
        contract = self.load_contract()
        if problems := [*self._problems(contract)]:
            raise InvalidInput('environment cosmos3', problems)
        self.fps = round(contract.timing.fps)
        columns = len(contract.robot.joints) + len(contract.robot.grippers)
        size = (self.observation_height, self.observation_width, 3)
        views = {f'{OBS_IMAGES}.{view}': PolicyFeature(FeatureType.VISUAL, size) for view in contract.views.streams}
        self.features = {
            ACTION: PolicyFeature(FeatureType.ACTION, (columns,)),
            STATE: PolicyFeature(FeatureType.STATE, (columns,)),
            **views,
        }
        self.features_map = {ACTION: ACTION, STATE: OBS_STATE, **{key: key for key in views}}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, each once."""
        return tuple(dict.fromkeys(name.strip() for name in (self.task or '').split(',') if name.strip()))

    def load_contract(self) -> Contract:
        """The contract.

        Raises:
            CosmosError: There is none, something is wrong with it, or it is not for the simulated arm.
        """
        from cosmos3_ros.safety_expert import check_arm
        from engine.contract import load_contract

        contract = load_contract(self.contract)
        check_arm(contract)
        return contract

    def _problems(self, contract: Contract) -> Iterator[Problem]:
        from engine.evaluation.tasks import TASKS

        for name in self.tasks or ('',):
            if name not in TASKS:
                yield Problem('task', 'is unknown', repr(name), ', '.join(TASKS))
        rate = contract.timing.fps
        if self.fps not in (0, rate) or rate != round(rate):
            yield Problem('fps', 'is not the rate of the contract', f'{self.fps:g}', f'{rate:g}, a whole number')
        if self.episode_length is not None and self.episode_length < 1:
            yield Problem('episode_length', 'is no number of rows', str(self.episode_length), 'from 1 on')
        if self.max_parallel_tasks != 1:
            what = 'would draw from several threads, and each simulated robot belongs to one'
            yield Problem('max_parallel_tasks', what, str(self.max_parallel_tasks), '1', 'see --eval.batch_size')
        for name in ('start_jitter', 'light_jitter', 'camera_jitter', 'camera_turn'):
            if not 0 <= (value := getattr(self, name)) < 10:
                yield Problem(name, 'is out of range', f'{value:g}', 'from 0 on')

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """What the environments of all tasks are made with."""
        from engine.evaluation.tasks import Jitter

        return {
            'contract': self.contract,
            'size': (self.observation_height, self.observation_width),
            'jitter': Jitter(self.start_jitter, self.light_jitter, self.camera_jitter, self.camera_turn),
            'episode_length': self.episode_length,
        }

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """One vector of `n_envs` environments for each task, by the name of the task.

        An environment whose episode is over waits for the others, as in LeRobot's own: it is not simulated further, and
        what it says then counts nothing.

        Args:
            n_envs: How many environments run beside each other.
            use_async_envs: Whether each has a process of its own; a single one never has.
        """
        import gymnasium as gym
        from lerobot.envs.utils import _LazyAsyncVectorEnv, freeze_after_episode_end

        from lerobot_env_cosmos3.environment import Cosmos3Env

        found: dict[str, dict[int, gym.vector.VectorEnv]] = {}
        for task in self.tasks:
            makers = [partial(Cosmos3Env, task, **self.gym_kwargs)] * n_envs
            if use_async_envs and n_envs > 1:
                found[task] = {0: _LazyAsyncVectorEnv(makers)}
            else:
                frozen = [freeze_after_episode_end(make) for make in makers]
                found[task] = {0: gym.vector.SyncVectorEnv(frozen, autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP)}
        return found
