"""The Cosmos 3 model and what goes in and out of it. Never imports rclpy.

    model = engine.load('DIR-or-hub-id', device='cuda', dtype='bfloat16')
    policy = model.policy(engine.load_contract('droid_joint_pos'))
    chunk = policy.infer(engine.Observation(images=..., joint_positions=..., gripper_position=..., instruction='...'))

Names are imported when first used: `import engine` alone stays light and loads no PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.contract import Contract as Contract
    from engine.contract import load_contract as load_contract
    from engine.cosmos3 import Cosmos3 as Cosmos3
    from engine.cosmos3 import load as load
    from engine.policy import Observation as Observation
    from engine.policy import Policy as Policy
    from engine.policy import PolicyChunk as PolicyChunk
    from engine.tiny import make_tiny as make_tiny

_HOMES = {
    'Contract': 'engine.contract',
    'load_contract': 'engine.contract',
    'Cosmos3': 'engine.cosmos3',
    'load': 'engine.cosmos3',
    'Observation': 'engine.policy',
    'Policy': 'engine.policy',
    'PolicyChunk': 'engine.policy',
    'make_tiny': 'engine.tiny',
    'CosmosError': 'engine.errors',
    'InvalidInput': 'engine.errors',
    'ContractError': 'engine.errors',
    'CheckpointError': 'engine.errors',
    'ObservationError': 'engine.errors',
}

__all__ = [
    'CheckpointError',
    'Contract',
    'ContractError',
    'Cosmos3',
    'CosmosError',
    'InvalidInput',
    'Observation',
    'ObservationError',
    'Policy',
    'PolicyChunk',
    'load',
    'load_contract',
    'make_tiny',
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use."""
    if name not in _HOMES:
        raise AttributeError(f'module engine has no attribute {name!r}; it offers {", ".join(__all__)}')
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
