"""The policy's own video where a chunk comes without one: of a policy of actions alone, or of another network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

import engine
from cosmos3_ros.judge import Proposal
from engine.contract import Contract
from engine.dynamics import DynamicsTerms
from engine.errors import ObservationError
from engine.policy import Policy
from engine.sequence import latent_frames
from engine.turns import Priority


def policy_with_video(model: engine.Cosmos3, contract: Contract) -> Policy:
    """The policy of a contract, which imagines the video beside its actions also where the contract leaves it out.

    Raises:
        ContractError: The checkpoint does not fit.
    """
    return model.policy(replace(contract, sampler=replace(contract.sampler, video=True)))


class PolicyDreamer:
    """What the policy of these weights would do in the place of whoever proposed a chunk, as it imagines that.

    It gives way to the policy at work, as imagination does, and takes the seed of the imagination that it is held to.

    Attributes:
        passes: What a dream takes, in passes of the network over one window of imagination.
    """

    def __init__(
        self, model: engine.Cosmos3, contract: Contract, report: Callable[[str], None] = lambda _why: None
    ) -> None:
        """Take the weights.

        Args:
            model: Which ones.
            contract: Of the chunks that are proposed.
            report: Told why there is no dream, once for each reason.

        Raises:
            ContractError: The checkpoint does not fit.
        """
        self._policy = policy = policy_with_video(model, contract)
        policy.priority = Priority.DYNAMICS
        guided = sum(policy.guidance.mask(policy.schedule))
        longer = latent_frames(contract.timing.chunk_rows + 1) / latent_frames(
            DynamicsTerms.of_contract(contract).chunk + 1
        )
        self.passes = (contract.sampler.steps + guided) * longer
        self._report, self._reasons = report, set[str]()

    def __call__(self, proposal: Proposal, seed: int, cancelled: Callable[[], bool]) -> torch.Tensor | None:
        """Latents [1, C, T, h, w]; None if what was seen is not known, or is not what a policy takes."""
        if proposal.observation is None:
            return None
        try:
            return self._policy.infer(proposal.observation, seed, cancelled).latents
        except ObservationError as error:
            why = '; '.join(map(str, error.problems))
            if why not in self._reasons:
                self._reasons.add(why)
                self._report(f'the policy cannot say what it would do, so that there is no disagreement: {why}')
            return None
