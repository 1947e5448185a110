"""The policy's own video where a chunk comes without one: for policies that make actions alone, or are elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

import engine
from cosmos3_ros.judge import Dreamer, Proposal
from engine.contract import Contract
from engine.turns import Priority


def dreamer_of(model: engine.Cosmos3, contract: Contract, *, warm_up: bool = False) -> Dreamer:
    """What the policy of these weights would do in the place of whoever proposed a chunk, as it imagines that.

    It gives way to the policy at work, as imagination does. Its noise is that of the imagination that it is held to.

    Args:
        model: The weights.
        contract: Of the chunks that are proposed.
        warm_up: Whether to do it once now, so that the first one is not late.

    Raises:
        ContractError: The checkpoint does not fit.
    """
    policy = model.policy(replace(contract, sampler=replace(contract.sampler, video=True)))
    policy.priority = Priority.DYNAMICS
    if warm_up:
        policy.warm_up()

    def dream(proposal: Proposal, seed: int, cancelled: Callable[[], bool]) -> torch.Tensor | None:
        if proposal.observation is None:
            return None
        return policy.infer(proposal.observation, seed, cancelled).latents

    return dream
