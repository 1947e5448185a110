"""A tiny checkpoint, made and loaded once for all tests of the engine, and something for its policy to look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine
from engine.backends.base import Step
from engine.backends.torch_reference import TorchReference
from engine.network.placement import Tokens
from engine.network.transformer import Prefix
from engine.sequence import Layout


class Recorder(TorchReference):
    """The reference backend, which also keeps what it was asked.

    Attributes:
        prompts: Token ids of every prefix computed.
        steps: Length of the prefix and timestep of every denoising step.
        actions: Action rows that every step was given.
    """

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        self.prompts: list[list[int]] = []
        self.steps: list[tuple[int, float]] = []
        self.actions: list[torch.Tensor] = []

    def prefix(self, ids: list[int]) -> Prefix:
        self.prompts.append(ids)
        return super().prefix(ids)

    def step(self, prefix: Prefix, layout: Layout) -> Step:
        inner = super().step(prefix, layout)

        def run(tokens: Tokens, timestep: float) -> Tokens:
            self.steps.append((prefix.length, timestep))
            self.actions.append(tokens.action.clone())
            return inner(tokens, timestep)

        return run


@pytest.fixture(scope='session')
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the demonstration, whose policy reacts to the state it is shown."""
    return engine.make_tiny(tmp_path_factory.mktemp('checkpoints') / 'nano')


@pytest.fixture(scope='session')
def tiny_edge_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for the Edge family; its `checkpoint.json` says which policy it was made for."""
    return engine.make_tiny(tmp_path_factory.mktemp('checkpoints') / 'edge', 'edge')


@pytest.fixture(scope='session')
def model(tiny_checkpoint: Path) -> engine.Cosmos3:
    return engine.load(tiny_checkpoint)


@pytest.fixture
def backend(model: engine.Cosmos3) -> Recorder:
    """The model's network with a record of its own."""
    return Recorder(model.runtime.backend.transformer)


@pytest.fixture(scope='session')
def demo_contract() -> engine.Contract:
    """The DROID contract at a quarter of its pixels."""
    return engine.load_contract('demo_joint_pos')


@pytest.fixture(scope='session')
def observe() -> Callable[..., engine.Observation]:
    """Make an observation of a Franka at rest above a table; every field can be replaced."""

    def make(**changed: Any) -> engine.Observation:
        generator = np.random.default_rng(0)
        views = ('wrist', 'exterior_1', 'exterior_2')
        images = {name: generator.integers(0, 256, (180, 320, 3), np.uint8) for name in views}
        fields: dict[str, Any] = {
            'images': images,
            'instruction': 'Pick up the red cube and put it in the bowl',
            'joint_positions': np.array([0.1, -0.6, 0.05, -2.4, 0.0, 1.9, 0.1]),
            'gripper_position': 0.25,
            'end_effector_position': np.array([0.45, -0.1, 0.3]),
            'end_effector_quaternion': np.array([1.0, 0.0, 0.0, 0.0]),
        }
        return engine.Observation(**(fields | changed))

    return make
