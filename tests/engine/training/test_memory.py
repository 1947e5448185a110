"""What a training would take is known before anything is taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.network.config import TransformerConfig
from engine.network.placement import make_placement
from engine.training.flow import flow_loss
from engine.training.memory import training_memory
from engine.training.network import BatchedTransformer
from engine.training.recipe import Recipe

RECIPE = Recipe(
    tasks={'policy': 1.0}, batch={'policy': 4}, captions=2, trained=('generation', 'understanding', 'heads')
)


def test_a_step_keeps_what_was_calculated_without_memory(fresh_checkpoint, examples):
    transformer = fresh_checkpoint.load_transformer(dtype=torch.float32)
    network, sizes, alive = BatchedTransformer(transformer), {}, []
    transformer.requires_grad_(True)
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(tensor):
        alive.append(tensor)
        if (key := tensor.untyped_storage().data_ptr()) not in own:
            sizes[key] = tensor.untyped_storage().nbytes()
        return tensor

    batch = examples.draw('policy', 4, np.random.default_rng(0), captions=2)
    place = make_placement(transformer.config, batch.layout, 1, torch.device('cpu'), torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        flow_loss(network, batch, place, RECIPE, torch.Generator())
    expected = training_memory(
        transformer.config, examples.contract, RECIPE, autocast=None, prompt_tokens=max(map(len, batch.ids))
    )
    assert expected.activations == pytest.approx(sum(sizes.values()), rel=0.2)


def test_nano_does_not_fit_one_gpu_and_fits_eight(examples):
    recipe = replace(RECIPE, recompute=True, trained=('generation', 'heads'))
    alone = training_memory(TransformerConfig.NANO, examples.contract, recipe)
    assert 50e9 < alone.weights < 70e9
    assert alone.total > 141e9
    assert alone.shared_by(8).total < 80e9


def test_calculating_layers_again_takes_a_fraction_of_the_memory(examples):
    kept = training_memory(TransformerConfig.NANO, examples.contract, RECIPE)
    again = training_memory(TransformerConfig.NANO, examples.contract, replace(RECIPE, recompute=True))
    assert again.activations < kept.activations / 10
