"""The simulated Franka tasks of cosmos3_ros as LeRobot environments, `--env.type=cosmos3`.

Every LeRobot program imports this package. It registers the configuration and loads nothing else.
"""

from lerobot_env_cosmos3.configuration import Cosmos3EnvConfig as Cosmos3EnvConfig

__all__ = ['Cosmos3EnvConfig']
