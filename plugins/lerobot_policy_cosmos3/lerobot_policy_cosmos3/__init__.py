"""NVIDIA Cosmos 3 as a LeRobot policy, `--policy.type=cosmos3`.

Every LeRobot program imports this package. It registers the configuration and loads nothing else.
"""

from lerobot_policy_cosmos3.configuration_cosmos3 import Cosmos3Config as Cosmos3Config

__all__ = ['Cosmos3Config']
