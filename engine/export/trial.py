"""Holds what was compiled to the reference: opens both, runs the same observations, compares.

Engines run where their GPU is. Elsewhere the same precision is calculated by PyTorch instead, with the rules of the
engines, and the outcome says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.backends.choice import AUTO, ONNX_RUNTIME, TENSORRT, Machine, choose
from engine.cosmos3 import COMPILED_AS, Cosmos3, load_compiled, load_with_torch
from engine.errors import CosmosError, InvalidInput
from engine.export.accuracy import Accuracy, collect_chunks, compare_chunks, make_observations
from engine.export.parts import generation_bytes
from engine.policy import layout_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engine.backends.card import Card
    from engine.checkpoint import Checkpoint
    from engine.contract import Contract
    from engine.policy import Observation

Report = Callable[[str, float], None]
SEEDS = (0, 1)
_DTYPES = {compiled: dtype for dtype, compiled in COMPILED_AS.items()}
_MOST_OPERATIONS = 2e13
"""Floating point operations that a processor is asked for at most: a few minutes on two cores."""


class TooCostly(CosmosError):
    """The reference does not fit into memory, or would take too long here."""


@dataclass(frozen=True)
class Trial:
    """What is run: a checkpoint under a contract, with so many made-up observations, each under all of `SEEDS`."""

    checkpoint: Checkpoint
    contract: Contract
    observations: int

    def check_cost(self, memory: int) -> None:
        """Do nothing if the reference can be run here.

        Args:
            memory: Host memory that may be used, bytes; where there is a GPU, its own free memory counts instead.

        Raises:
            TooCostly: It cannot; says what it would take.
        """
        config, layout, sampler = self.checkpoint.transformer_config, layout_of(self.contract), self.contract.sampler
        generation = generation_bytes(config, torch.float32)
        words = 4 * config.vocab_size * config.hidden_size
        needed = int(1.2 * (2 * generation + 2 * words))  # both towers, all words, some room
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            memory = torch.cuda.mem_get_info()[0]
        if needed > memory:
            raise TooCostly(f'the reference takes {needed / 1e9:.0f} GB of memory, and there are {memory / 1e9:.0f} GB')
        tokens = layout.tokens(config.latent_patch_size)
        forwards = sampler.steps * (2 if sampler.guidance != 1 else 1)
        runs = 2 * self.observations * len(SEEDS)
        operations = generation / 2 * tokens * forwards * runs  # two for each weight of four bytes, and token
        if operations > _MOST_OPERATIONS and not on_gpu:
            raise TooCostly(f'the comparison takes {operations:.1e} operations, and there is no GPU')

    def compare(self, folder: Path, card: Card, report: Report) -> Accuracy:
        """Run the compiled parts, or PyTorch with their precision where they cannot be run, and the reference."""
        observations = make_observations(self.contract, self.observations)
        subject, name = self._subject(folder, card)
        found = self._chunks(subject, observations, lambda share: report('compiled', share))
        del subject  # the reference needs the room
        reference = load_with_torch(self.checkpoint, _device(), 'float32')
        wanted = self._chunks(reference, observations, lambda share: report('reference', share))
        return compare_chunks(self.contract, found, wanted, (name, f'torch, float32, {_device()}'))

    def _chunks(
        self, model: Cosmos3, observations: list[Observation], report: Callable[[float], None]
    ) -> NDArray[np.float64]:
        return collect_chunks(model.policy(self.contract), observations, SEEDS, report)

    def _subject(self, folder: Path, card: Card) -> tuple[Cosmos3, str]:
        """The compiled parts if this machine runs them, and what to call them."""
        try:
            chosen = choose(AUTO, _device(), card, Machine.this(_device()))
        except InvalidInput:
            dtype = _DTYPES[card.precision]
            model = load_with_torch(self.checkpoint, _device(), dtype)
            return model, f'torch, {dtype}, {_device()}: the arithmetic of the parts, which do not run here'
        model = load_compiled(folder, card, self.checkpoint, chosen.name, _device())
        where = {ONNX_RUNTIME: 'cpu', TENSORRT: card.gpu or ', '.join(card.targets)}[chosen.name]
        return model, f'{chosen.name}, {card.precision}, {where}'


def _device() -> torch.device:
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
