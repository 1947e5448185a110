"""The network that is trained is the one that runs, with a batch dimension."""

from __future__ import annotations

import pytest
import torch

from engine.checkpoint import open_checkpoint
from engine.network.heads import patchify
from engine.sequence import forward_dynamics_layout, inverse_dynamics_layout, policy_layout
from engine.tiny import make_tiny
from engine.training.network import BatchedTransformer, Noisy

SIZES = {'height': 6, 'width': 7, 'fps': 15, 'domain_id': 8}
LAYOUTS = {
    'policy': policy_layout(chunk=8, raw_dim=8, state=True, committed=2, **SIZES),
    'forward': forward_dynamics_layout(chunk=8, raw_dim=10, **SIZES),
    'inverse': inverse_dynamics_layout(chunk=8, raw_dim=10, **SIZES),
}
IDS = ((1, 2, 3, 4, 5, 6, 7), (9, 8, 7), (4,))


@pytest.fixture(scope='module', params=['nano', 'edge'])
def transformer(request, tmp_path_factory):
    path = make_tiny(tmp_path_factory.mktemp('tiny') / 'it', request.param, weights='random')
    return open_checkpoint(path).load_transformer(dtype=torch.float32)


@pytest.mark.parametrize('task', LAYOUTS)
def test_a_batch_says_what_each_of_its_sequences_says_by_itself(transformer, task):
    layout, generator = LAYOUTS[task], torch.Generator().manual_seed(3)
    which, times = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([999.0, 700.0, 400.0, 20.0, 3.0])
    shape = (5, 1, 48, layout.vision.frames, layout.vision.height, layout.vision.width)
    vision = torch.randn(shape, generator=generator)
    action = torch.randn(5, layout.action.rows, 64, generator=generator)
    action[..., layout.action.raw_dim :] = 0
    tokens = torch.stack([patchify(one, 2) for one in vision])
    with torch.no_grad():
        found = BatchedTransformer(transformer)(IDS, which, layout, Noisy(tokens, action, times, times))
        for k, p in enumerate(which):
            prefix = transformer.prefix(torch.tensor(IDS[p]))
            alone = transformer.denoise(prefix, layout, vision[k], action[k], None, float(times[k]))
            torch.testing.assert_close(found[0][k], patchify(alone.vision, 2), rtol=0, atol=2e-5)
            torch.testing.assert_close(found[1][k], alone.action, rtol=0, atol=2e-5)


def test_calculating_layers_again_on_the_way_back_changes_no_gradient(transformer):
    layout, which, times = LAYOUTS['policy'], torch.tensor([0, 1]), torch.tensor([900.0, 300.0])
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randn(2, layout.vision.tokens(2), 192, generator=generator)
    action = torch.randn(2, layout.action.rows, 64, generator=generator)
    gradients = []
    for recompute in (False, True):
        transformer.requires_grad_(True).zero_grad()
        network = BatchedTransformer(transformer, recompute=recompute)
        vision, rows = network(IDS[:2], which, layout, Noisy(tokens, action, times, times))
        (vision.square().mean() + rows.square().mean()).backward()
        gradients.append({name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7, msg=name)
