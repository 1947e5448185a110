"""Writes the folder that LeRobot's `--policy.path` takes.

python -m lerobot_policy_cosmos3 FOLDER --checkpoint=CHECKPOINT --contract=droid_joint_pos
"""

from __future__ import annotations

import sys
from pathlib import Path

import draccus

from engine.cosmos3 import contract_differences
from engine.errors import ContractError, CosmosError
from lerobot_policy_cosmos3.configuration_cosmos3 import Cosmos3Config

USAGE = """usage: python -m lerobot_policy_cosmos3 FOLDER --contract=NAME --checkpoint=CHECKPOINT
       python -m lerobot_policy_cosmos3 FOLDER --contract=NAME --backend=remote --url=ws://HOST:PORT"""


def main(words: list[str] | None = None) -> int:
    """Write the folder; the checkpoint is verified and held to the contract, and not loaded.

    Args:
        words: The folder, then fields of :class:`Cosmos3Config` as `--name=value`.
    """
    words = sys.argv[1:] if words is None else words
    if not words or words[0].startswith('-'):
        print(USAGE, file=sys.stderr)
        return 2
    from lerobot_policy_cosmos3.modeling_cosmos3 import write_folder

    try:
        config = draccus.parse(Cosmos3Config, args=words[1:])
        config.validate_features()
        _check(config)
        write_folder(config, Path(words[0]))
    except CosmosError as error:
        print(error, file=sys.stderr)
        return 1
    print(f'lerobot-eval --policy.path={words[0]} --env.type=cosmos3')
    print(f'lerobot-rollout --policy.path={words[0]} --fps={config.load_contract().timing.fps:g} --robot.type=...')
    return 0


def _check(config: Cosmos3Config) -> None:
    """Do nothing if the checkpoint is sound and fits the contract.

    Raises:
        CheckpointError: It is incomplete or damaged.
        ContractError: It does not fit; lists every difference.
    """
    if config.backend != 'local':
        return
    from engine.checkpoint import open_checkpoint

    contract, checkpoint = config.load_contract(), open_checkpoint(config.checkpoint_source)
    if problems := contract_differences(checkpoint, contract):
        raise ContractError(f'contract {contract.name} and checkpoint {config.checkpoint}', problems)


if __name__ == '__main__':
    sys.exit(main())
