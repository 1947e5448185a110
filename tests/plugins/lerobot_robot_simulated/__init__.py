"""A LeRobot robot that needs no hardware: the simulated Franka, which moves on by one row with each action."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig


@RobotConfig.register_subclass('simulated')
@dataclass
class SimulatedConfig(RobotConfig):
    """How long it moves, where it writes what it did, and what it calls its columns, in its own order."""

    rows: int = 20
    log: str = ''
    columns: list[str] = field(default_factory=list)


class Simulated(Robot):
    """The arm of the tasks; after `rows` actions it is as if somebody pressed Ctrl-C."""

    config_class = SimulatedConfig
    name = 'simulated'

    def __init__(self, config: SimulatedConfig) -> None:
        from lerobot_env_cosmos3.environment import Cosmos3Env

        super().__init__(config)
        self.config, self._played = config, []
        self._env = Cosmos3Env('reach', size=(36, 64))
        joints = [f'panda_joint{number}.pos' for number in range(1, 8)]
        self._own = [*joints, 'panda_finger_joint1.pos']
        self._columns = config.columns or self._own
        self._connected = False

    @property
    def observation_features(self) -> dict[str, Any]:
        return self.action_features | dict.fromkeys(('wrist', 'exterior_1', 'exterior_2'), (36, 64, 3))

    @property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(self._columns, float)

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        self._seen, _ = self._env.reset(seed=0)
        self._connected = True

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        if len(self._played) >= self.config.rows:
            raise KeyboardInterrupt
        state = dict(zip(self._own, map(float, self._seen['agent_pos']), strict=True))
        return {name: state[name] for name in self._columns} | self._seen['pixels']

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        row = np.array([action[name] for name in self._own])
        self._played.append(row)
        self._seen, *_ = self._env.step(row)
        return action

    def disconnect(self) -> None:
        self._env.close()
        self._connected = False
        np.save(self.config.log, np.array(self._played))
