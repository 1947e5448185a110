"""What an episode needs of the network: the judge, the policy's own video, and the policy as a proposer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

import engine
from cosmos3_ros.dreams import policy_with_video
from cosmos3_ros.judge import Judge, Judgement, Proposal, Rung, rungs
from cosmos3_ros.motion_bridge import MotionBridge
from cosmos3_ros.safety_expert import Rows, Seen
from cosmos3_ros.safety_jobs import Job
from engine.calibration import Calibration
from engine.contract import Contract
from engine.errors import InvalidInput, Problem
from engine.policy import Observation

if TYPE_CHECKING:
    import torch

    from engine.policy import Policy, PolicyChunk

CHECKPOINT_CHUNKS = 8
"""Chunks of an episode that the policy itself makes."""


@dataclass(frozen=True)
class ModelTerms:
    """Which network judges, and how.

    Attributes:
        checkpoint: Directory or hub id.
        rung: Name of a rung of the ladder.
        pictures: Whether what was imagined for now is compared with what is seen, also on a rung that leaves it out.
        own_video: Whether the policy imagines the future, too, for the comparison of both: the one that it has made
            beside its chunk; where it makes none, another of its own accord for the words that were told, whatever was
            proposed; and with the rows of a scripted hand given.
        device: cpu, cuda, ...
        dtype: Precision.
        lag_s: Time constant with which the arm follows, for the judge.
    """

    checkpoint: str
    rung: str = 'small'
    pictures: bool = False
    own_video: bool = True
    device: str = 'cpu'
    dtype: str = 'float32'
    lag_s: float = 0.0

    @property
    def recipe(self) -> Rung:
        """The rung as it is used."""
        (rung,) = rungs([self.rung])
        return replace(rung, pictures=rung.pictures or self.pictures)


def recipe_text(terms: ModelTerms) -> str:
    """All that scores depend on beside checkpoint, contract and proposer, in words."""
    rung = terms.recipe
    parts = {
        'rung': rung.name,
        'steps': rung.steps,
        'tier': rung.tier or 'of the contract',
        'seeds': rung.seeds,
        'cycle': rung.cycle,
        'pictures': rung.pictures,
        'windows': rung.windows or 'all',
        'own video': terms.own_video,
        'lag': terms.lag_s,
    }
    return ', '.join(f'{name} {value}' for name, value in parts.items())


class Network:
    """A loaded checkpoint under one contract, for one episode after another."""

    def __init__(self, contract: Contract, terms: ModelTerms, calibration: Calibration | None = None) -> None:
        """Load it.

        Raises:
            CosmosError: The checkpoint cannot be loaded, or does not fit the contract.
        """
        self.contract, self.terms, self.rung = contract, terms, terms.recipe
        self.model = engine.load(terms.checkpoint, terms.device, terms.dtype)
        self.policy: Policy = self.model.policy(contract)
        self._dreamer = self.policy
        if terms.own_video and not contract.sampler.video:
            self._dreamer = policy_with_video(self.model, contract)
        dynamics = self.model.dynamics(contract)
        if self.rung.tier is not None and self.rung.tier > dynamics.terms.tier:
            problem = Problem(
                'rung', 'has more pixels than the contract', str(self.rung.tier), str(dynamics.terms.tier)
            )
            raise InvalidInput('safety simulation', [problem])
        self.judge = Judge(dynamics, MotionBridge(contract, dynamics.terms), calibration, lag_s=terms.lag_s)

    @property
    def fingerprint(self) -> str:
        """Of the checkpoint."""
        return self.model.checkpoint.fingerprint

    def begin(self, seed: int) -> Judging:
        """A new episode: what judges its chunks."""
        self.judge.reset()
        return Judging(self, seed)

    def observation(self, seen: Seen, instruction: str) -> Observation:
        """What is shown, as the policy takes it."""
        return Observation(seen.views, instruction, seen.joints, seen.gripper)

    def own_video(self, seen: Seen, rows: Rows | None, instruction: str, seed: int) -> torch.Tensor:
        """The video that the policy imagines, if all rows but the last are given or of its own accord.

        Returns:
            Latents [1, C, T, h, w].
        """
        given = None
        if rows is not None:
            given = np.column_stack([rows.positions, rows.grippers])[:-1].astype(np.float32)
        return self._dreamer.infer(self.observation(seen, instruction), seed, committed=given).latents


class Judging:
    """Judges the chunks of one episode in order.

    Attributes:
        last: The last judgement and what was shown to it, for pictures of it.
    """

    def __init__(self, network: Network, seed: int) -> None:
        self._network, self._seed = network, seed
        self.last: tuple[Judgement, Seen] | None = None

    def __call__(
        self, index: int, seen: Seen, proposed: Rows, rows: Rows, instruction: str, follows: bool = True
    ) -> Judgement:
        """Judge the next chunk.

        Args:
            index: Its number.
            seen: What was shown.
            proposed: What was proposed.
            rows: What became of it on the way, which is what is judged.
            instruction: What was asked for.
            follows: Whether the arm has done the chunk before since, as far as it was to.
        """
        network = self._network
        seed = (self._seed + 7919 * index) % 2**31
        own = None
        if network.terms.own_video:
            chunk = getattr(proposed, 'chunk', None)
            if chunk is not None and network.contract.sampler.video:
                own = chunk.latents
            else:
                own = network.own_video(seen, None if chunk else proposed, instruction, seed)
        moved = rows.positions, rows.grippers
        proposal = Proposal(seen.stamp_ns, seen.views, seen.joints, *moved, instruction, own, follows=follows)
        found = network.judge.judge(proposal, network.rung, seed)
        self.last = found, seen
        return found


@dataclass(frozen=True, eq=False)
class PolicyRows(Rows):
    """Rows that the policy made, with the inference that they came from."""

    chunk: PolicyChunk


class PolicyProposer:
    """The policy surface as a proposer."""

    sees = True

    def __init__(self, network: Network, job: Job) -> None:
        self._network, self._job, self._seed, self._count = network, job, 0, 0

    def reset(self, seed: int) -> None:
        """A new episode begins."""
        self._seed, self._count = seed, 0

    def chunks(self, _seen: Seen, _target: str) -> int:
        """How many chunks an episode takes."""
        return CHECKPOINT_CHUNKS

    def propose(self, seen: Seen, target: str) -> PolicyRows:
        """The next chunk."""
        self._count += 1
        observation = self._network.observation(seen, self._job.instruction(target))
        chunk = self._network.policy.infer(observation, (self._seed + self._count) % 2**31)
        joints = len(self._network.contract.robot.joints)
        actions = chunk.actions.astype(np.float64)
        return PolicyRows(actions[:, :joints], np.clip(actions[:, joints], 0.0, 1.0), chunk)


def make_calibration(
    curves: Mapping[str, list[list[float]]], rung: str, rate: float, provenance: Mapping[str, str]
) -> Calibration:
    """Bands of every monitor from the scores of successes.

    Args:
        curves: By monitor, for each episode a score for every chunk; NaN where there was none.
        rung: Name under which the bands are kept.
        rate: Largest probability with which a success crosses one band.
        provenance: Of what they are made.

    Raises:
        InvalidInput: There are too few episodes for the rate.
    """
    from engine.calibration import make_band

    bands, left_out = {}, []
    for name, episodes in curves.items():
        filled = [_filled(one) for one in episodes]
        if not all(one and all(map(math.isfinite, one)) for one in filled):
            left_out.append(name)
            continue
        bands[f'{rung}/{name}'] = make_band(filled, rate)
    if not bands:
        problem = Problem('scores', 'are missing or not finite in some success', ', '.join(left_out))
        raise InvalidInput('calibration', [problem])
    return Calibration(bands, {**provenance, 'left_out': ', '.join(left_out) or 'none'})


def _filled(scores: list[float]) -> list[float]:
    """A curve without gaps: what has no score yet has its first one, and later gaps keep the last."""
    known = [score for score in scores if not math.isnan(score)]
    if not known:
        return []
    found, last = [], known[0]
    for score in scores:
        last = last if math.isnan(score) else score
        found.append(last)
    return found
