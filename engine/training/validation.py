"""What a network that is being trained can do with episodes that it has not seen, next to doing nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.actions import JointCodec
from engine.errors import CosmosError
from engine.policy import policy_codec
from engine.training.examples import Examples
from engine.training.flow import Batch, sample
from engine.training.network import BatchedTransformer

_SEED = 11
_BEGINNING_ROWS = 8


@dataclass(frozen=True)
class Validation:
    """Measures a transformer on held-out windows; the same ones every time.

    Attributes:
        examples: Where they come from.
        count: Windows of each task.
        tasks: Which ones; of :data:`engine.training.recipe.TASKS`.
        dynamics_steps: Steps of the sampler for forward and inverse dynamics.
    """

    examples: Examples
    count: int = 64
    tasks: tuple[str, ...] = ('action', 'policy', 'forward', 'inverse')
    dynamics_steps: int = 8

    def __call__(self, network: BatchedTransformer) -> Mapping[str, float]:
        """Figures by name.

        `action` and `policy`: root mean square error of the chunk's joints in rad, and `hold` that of staying where the
        arm is; `action_beginning` that of windows from the beginnings of episodes, where words decide, and
        `action_other_words` the same with other prompts, some of which may mean the same: as long as both are alike,
        nobody listens. (Likewise `policy_...`; only where there are two prompts or more.) `answers` and
        `answers_other_words` are of answers to what nobody asked: of pictures in which the arm is on its way elsewhere.
        `forward`: error of the imagined video's latents, `forward_repeat` that of the first frame again and
        again, `forward_wrong` that of the video imagined for another window's actions; latents have a spread of 1.
        `inverse`: error of the rows in the model's space, `inverse_rest` that of standing still.
        """
        found: dict[str, float] = {}
        network.eval()
        try:
            for task in self.tasks:
                if len(self.examples.windows(task, held_out=True)):
                    found |= self._measure(network, task)
            if 'action' in self.tasks and len(self.examples.windows('answers', held_out=True)):
                found |= self._asked(network)
        finally:
            network.train()
        return found

    def _measure(self, network: BatchedTransformer, task: str) -> dict[str, float]:
        batch = self._batch(network, task, self.examples.windows(task, held_out=True))
        if task in ('action', 'policy'):
            return self._policy(network, task, batch) | self._words(network, task)
        if task == 'forward':
            return self._forward(network, batch)
        _, rows = self._sampled(network, batch, self.dynamics_steps)
        true = batch.action
        true, rest = _there(true), torch.from_numpy(self.examples.rest.astype(np.float32))
        width = len(rest)
        standing = rest.to(true.device) - true[..., :width]
        return {'inverse': _rms(_there(rows) - true, width), 'inverse_rest': _rms(standing, width)}

    def _batch(self, network: BatchedTransformer, task: str, windows: NDArray[np.int64]) -> Batch:
        return self.examples.batch(task, self._chosen(windows)).to(network.transformer.device)

    def _chosen(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same ones every time."""
        return np.sort(np.random.default_rng(_SEED).choice(windows, min(self.count, len(windows)), replace=False))

    def _words(self, network: BatchedTransformer, task: str) -> dict[str, float]:
        """What difference words make where they matter."""
        windows = self.examples.beginnings(task, _BEGINNING_ROWS, held_out=True, disturbed=False)
        every = self.examples.prompts(task)
        if not len(windows) or len(every) < 2:
            return {}
        batch = self._batch(network, task, windows)
        names = (f'{task}_beginning', f'{task}_other_words')
        return {
            name: self._policy(network, task, one)[task]
            for name, one in zip(names, (batch, _with_other_words(batch, every)), strict=True)
        }

    def _asked(self, network: BatchedTransformer) -> dict[str, float]:
        """What it does where it is asked for something else than what the arm is about."""
        some = self._chosen(self.examples.windows('answers', held_out=True))
        batch = self.examples.batch('action', some[:0], answers=some).to(network.transformer.device)
        both = {'answers': batch, 'answers_other_words': _with_other_words(batch, self.examples.prompts('answers'))}
        return {name: self._policy(network, 'action', one)['action'] for name, one in both.items()}

    def _sampled(self, network: BatchedTransformer, batch: Batch, steps: int) -> tuple[Tensor | None, Tensor | None]:
        place = network.place(batch.layout)
        shift = self.examples.shift_of(batch.task)
        return sample(network, batch, place, steps=steps, shift=shift, seed=_SEED)

    def _policy(self, network: BatchedTransformer, task: str, batch: Batch) -> dict[str, float]:
        contract, of = self.examples.contract, policy_codec(self.examples.contract)
        _, rows = self._sampled(network, batch, contract.sampler.steps)
        given, width = contract.embodiment.clean_rows, contract.embodiment.raw_action_dim
        made, true = (_there(part)[:, given:, :width].double().cpu().numpy() for part in (rows, batch.action))
        if not isinstance(of, JointCodec):
            return {task: float(np.sqrt(np.mean((made - true) ** 2)))}
        zero = np.zeros(len(contract.robot.joints))
        made_joints, true_joints = (of.decode(part, zero).joint_positions for part in (made, true))
        found = {task: float(np.sqrt(np.mean((made_joints - true_joints) ** 2)))}
        if of.offsets:
            found['hold'] = float(np.sqrt(np.mean(true_joints**2)))
        return found

    def _forward(self, network: BatchedTransformer, batch: Batch) -> dict[str, float]:
        true, rows = _there(batch.vision), _there(batch.action)
        right, _ = self._sampled(network, batch, self.dynamics_steps)
        turned = Batch(batch.task, batch.layout, batch.ids, batch.which, true, rows.roll(len(rows) // 2, 0))
        wrong, _ = self._sampled(network, turned, self.dynamics_steps)
        frames = batch.layout.vision.frames if batch.layout.vision else 1
        first = true.shape[1] // frames
        errors = {'forward': right, 'forward_repeat': true[:, :first].repeat(1, frames, 1), 'forward_wrong': wrong}
        seen = network.place(batch.layout).vision
        free = _there(None if seen is None else seen.free)[first:].float()
        return {
            name: float(((_there(part) - true)[:, first:].square() * free).sum() / (free.sum() * len(true)))
            for name, part in errors.items()
        }


def _with_other_words(batch: Batch, every: tuple[tuple[int, ...], ...]) -> Batch:
    ahead = 1 + (len(every) - 1) // 2
    return replace(batch, ids=tuple(every[(every.index(one) + ahead) % len(every)] for one in batch.ids))


def _there(part: Tensor | None) -> Tensor:
    if part is None:
        raise CosmosError('a batch lacks what its task is about')
    return part


def _rms(wrong: Tensor, width: int) -> float:
    return float(wrong[..., :width].square().mean().sqrt())
