"""How much memory a training takes, without taking it: the network is run on tensors that have shapes alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.actions import MODEL_WIDTH
from engine.contract import Contract
from engine.errors import InvalidInput, Problem
from engine.network.config import TransformerConfig
from engine.network.placement import make_placement
from engine.network.transformer import CosmosTransformer
from engine.policy import layout_of
from engine.sequence import Layout
from engine.training.flow import Batch, flow_loss
from engine.training.network import BatchedTransformer
from engine.training.recipe import Recipe
from engine.training.trainer import trained_names

_META = torch.device('meta')
_FLOAT = 4


@dataclass(frozen=True)
class Memory:
    """Bytes that one process takes.

    Attributes:
        weights: Of both towers.
        gradients: Of what is trained.
        optimizer: Two moments of each trained number.
        averaged: A second copy of what is trained; 0 without averaging.
        activations: What a step keeps for its way back; the largest of all tasks.
    """

    weights: int
    gradients: int
    optimizer: int
    averaged: int
    activations: int

    @property
    def total(self) -> int:
        """All of it; a few GB for the libraries and for what comes and goes are to be added."""
        return self.weights + self.gradients + self.optimizer + self.averaged + self.activations

    def shared_by(self, processes: int) -> Memory:
        """Of each of several processes over which all weights are spread.

        Raises:
            InvalidInput: That is no number of processes.
        """
        if processes < 1:
            raise InvalidInput('training memory', [Problem('processes', 'are too few', str(processes), '1 or more')])

        def part(size: int) -> int:
            return -(-size // processes)

        return replace(
            self,
            weights=part(self.weights),
            gradients=part(self.gradients),
            optimizer=part(self.optimizer),
            averaged=part(self.averaged),
        )


def training_memory(
    config: TransformerConfig,
    contract: Contract,
    recipe: Recipe,
    *,
    autocast: torch.dtype | None = torch.bfloat16,
    prompt_tokens: int = 120,
) -> Memory:
    """What a step of a recipe takes at the true sizes of a network.

    Args:
        config: Of the network.
        contract: Whose pictures and rows.
        recipe: Its batches and what of the network it trains.
        autocast: Type of the matrix products; weights, gradients and moments are float32.
        prompt_tokens: Of a prompt.
    """
    with torch.device(_META):
        transformer = CosmosTransformer(config, sound=False, lm_head=False)
    names = trained_names(transformer, recipe.trained)
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(name in names)
    trained = sum(p.numel() for p in transformer.parameters() if p.requires_grad)
    network = BatchedTransformer(transformer, recompute=recipe.recompute)
    layouts = {task: layout_of(contract, video=task != 'action') for task, share in recipe.tasks.items() if share > 0}
    largest = max(
        _kept(network, layout, recipe.batch[task], recipe, prompt_tokens, autocast) for task, layout in layouts.items()
    )
    return Memory(
        weights=sum(p.numel() for p in transformer.parameters()) * _FLOAT,
        gradients=trained * _FLOAT,
        optimizer=2 * trained * _FLOAT,
        averaged=trained * _FLOAT if recipe.ema else 0,
        activations=largest,
    )


def _kept(
    network: BatchedTransformer,
    layout: Layout,
    count: int,
    recipe: Recipe,
    prompt_tokens: int,
    autocast: torch.dtype | None,
) -> int:
    """Bytes that a step keeps for its way back, weights left out."""
    config = network.transformer.config
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    vision, rows, _ = layout.split(config.latent_patch_size)
    captions = min(recipe.captions, count)
    batch = Batch(
        'policy',
        layout,
        ((0,) * prompt_tokens,) * captions,
        torch.arange(count) % captions,
        torch.empty(count, vision, config.patch_latent_dim, device=_META),
        torch.empty(count, rows, MODEL_WIDTH, device=_META),
    )
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # two tensors at one address would count as one

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in sizes and key not in own:
            sizes[key] = storage.nbytes()
            alive.append(tensor)
        return tensor

    place = make_placement(config, layout, 1, _META, torch.float32)
    with (
        torch.autocast('cpu', autocast or torch.bfloat16, enabled=autocast is not None),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        loss = flow_loss(network, batch, place, recipe, torch.Generator())
    del loss
    return sum(sizes.values())
