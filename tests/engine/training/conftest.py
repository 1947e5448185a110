"""Recordings made of numbers alone, for training without a simulator."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from engine.checkpoint import Checkpoint, open_checkpoint
from engine.contract import Contract, load_contract
from engine.resources import find_config
from engine.tiny import make_tiny
from engine.training.examples import Examples, Recorded

EPISODES, LENGTH = 6, 40


@pytest.fixture(scope='session')
def fresh_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Tiny, as a training begins with."""
    return open_checkpoint(make_tiny(tmp_path_factory.mktemp('fresh') / 'it', weights='fresh'))


@pytest.fixture(scope='session')
def small_contract(tmp_path_factory: pytest.TempPathFactory) -> Contract:
    """Micro's contract with a picture of 2 x 2 tokens, rows as offsets."""
    document = yaml.safe_load(find_config('contracts', 'micro_joint_pos').read_text(encoding='utf-8'))
    document['views']['size'] = [64, 64]
    scale = {'mean': [0.0] * 7 + [0.5], 'std': [0.1] * 7 + [0.5]}
    document['embodiment'] |= {'normalization': 'meanstd', 'offsets': True, 'statistics': scale}
    document['embodiment']['state_statistics'] = {'mean': [0.0] * 7 + [0.5], 'std': [1.0] * 7 + [0.5]}
    path = tmp_path_factory.mktemp('contracts') / 'small.yaml'
    path.write_text(yaml.safe_dump(document), encoding='utf-8')
    return load_contract(path)


@pytest.fixture(scope='session')
def numbers() -> Recorded:
    """Episodes of two instructions: joints run up for one and down for the other, pictures brighten with the time.

    Joints are measured to be at rest throughout, so that nothing but the words says where to.
    """
    return make_numbers()


def make_numbers() -> Recorded:
    """See :func:`numbers`."""
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(EPISODES), LENGTH)
    time = np.tile(np.arange(LENGTH), EPISODES)
    sign = np.where(episode % 2 == 0, 1.0, -1.0)
    later = 0.15 * sign[:, None] * np.ones(7)
    joints = 0.001 * rng.standard_normal((len(time), 7))
    pattern = rng.standard_normal((48, 4, 4))
    first = (time[:, None, None, None] / LENGTH * pattern).astype(np.float16)
    starts = np.array([e * LENGTH + s for e in range(EPISODES) for s in range(0, LENGTH - 16, 4)])
    clips = np.stack([np.stack([first[s + 4 * k] for k in range(5)], axis=1) for s in starts])
    position = np.column_stack([0.5 + 0.001 * time, 0.001 * sign * time, np.full(len(time), 0.3)])
    disturbed = np.zeros(len(time), bool)
    disturbed[5] = True
    return Recorded(
        joints=joints,
        gripper=np.zeros(len(time)),
        commanded=later,
        commanded_gripper=(time > 20).astype(np.float64),
        position=position,
        quaternion=np.tile([0.0, 0.0, 0.0, 1.0], (len(time), 1)),
        episode=episode,
        disturbed=disturbed,
        instructions=tuple('go up' if e % 2 == 0 else 'go down' for e in range(EPISODES)),
        first=first,
        clips=clips,
        starts=starts,
    )


@pytest.fixture(scope='session')
def examples(numbers: Recorded, small_contract: Contract, fresh_checkpoint: Checkpoint) -> Examples:
    """Batches of those."""
    return Examples(numbers, small_contract, fresh_checkpoint.load_tokenizer())
