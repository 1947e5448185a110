"""What one may rely on when denoising: exact reuse, exact zeros, a step that compilers accept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from engine.errors import CosmosError, InvalidInput
from engine.network.config import TransformerConfig
from engine.network.heads import patchify, time_features, unpatchify
from engine.network.placement import Tokens
from engine.network.transformer import CosmosTransformer, Prefix, Velocities
from engine.sequence import (
    ActionItem,
    Layout,
    SoundItem,
    VisionItem,
    forward_dynamics_layout,
    inverse_dynamics_layout,
    policy_layout,
    text_to_video_layout,
)

VOCABULARY = 50
IDS = torch.tensor([3, 14, 15, 9, 26, 5, 35])
SIZE = {'height': 3, 'width': 4, 'fps': 15.0}
EMBODIMENT = {'domain_id': 8, 'raw_dim': 10}
POLICY = policy_layout(chunk=8, **SIZE, **EMBODIMENT, state=True)
FAMILIES = ('nano', 'edge')


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def make(family: str, dtype: torch.dtype = torch.float64, **heads: bool) -> CosmosTransformer:
    torch.manual_seed(7)
    with torch.no_grad():
        model = CosmosTransformer(TransformerConfig.tiny(family, VOCABULARY), **heads)
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5))
    return model.to(dtype)


@pytest.fixture(scope='module')
def models() -> dict[str, CosmosTransformer]:
    return {family: make(family) for family in FAMILIES}


def inputs_for(layout: Layout, dtype: torch.dtype = torch.float64, seed: int = 11) -> tuple[Tensor | None, ...]:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    vision, action, sound = layout.vision, layout.action, layout.sound
    return (
        None if vision is None else noise(1, 48, vision.frames, vision.height, vision.width),
        None if action is None else noise(action.rows, 64) * (torch.arange(64) < action.raw_dim),
        None if sound is None else noise(64, sound.frames),
    )


def same(one: Velocities, other: Velocities) -> bool:
    pairs = ((one.vision, other.vision), (one.action, other.action), (one.sound, other.sound))
    return all(a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


@pytest.mark.parametrize('family', FAMILIES)
def test_one_prefix_serves_every_step_exactly(models: dict[str, CosmosTransformer], family: str) -> None:
    model = models[family]
    kept = model.prefix(IDS)
    for step, timestep in enumerate((999, 937, 833, 624)):
        inputs = inputs_for(POLICY, seed=step)
        fresh = model.denoise(model.prefix(IDS), POLICY, *inputs, timestep)
        assert same(model.denoise(kept, POLICY, *inputs, timestep), fresh)


@pytest.mark.parametrize('family', FAMILIES)
def test_the_prefix_is_what_understanding_computes_layer_by_layer(
    models: dict[str, CosmosTransformer], family: str
) -> None:
    model = models[family]
    hidden, turn = model._embed(IDS)
    for layer, keys, values in zip(model.layers, *prefix_parts(model.prefix(IDS)), strict=True):
        hidden, seen = layer.understand(hidden, turn)
        assert torch.equal(seen.keys, keys)
        assert torch.equal(seen.values, values)
        assert keys.shape == values.shape == (len(IDS), 2, 16)


def prefix_parts(prefix: Prefix) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return prefix.keys, prefix.values


def test_denoising_uses_no_weight_of_the_understanding_tower(models: dict[str, CosmosTransformer]) -> None:
    model = make('nano')
    prefix, inputs = model.prefix(IDS), inputs_for(POLICY)
    before = model.denoise(prefix, POLICY, *inputs, 624)
    gen = ('moe_gen', 'add_', 'norm_added', 'proj_in', 'proj_out', 'time_embedder', 'modality_embed')
    for name, parameter in model.named_parameters():
        if not any(mark in name for mark in gen):
            parameter.fill_(float('nan'))
    assert same(before, model.denoise(prefix, POLICY, *inputs, 624))


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize(
    'layout',
    [
        POLICY,
        policy_layout(chunk=8, **SIZE, **EMBODIMENT, state=True, history=2),
        forward_dynamics_layout(chunk=8, **SIZE, **EMBODIMENT),
        inverse_dynamics_layout(chunk=8, **SIZE, **EMBODIMENT),
    ],
    ids=['policy', 'policy with history', 'forward dynamics', 'inverse dynamics'],
)
def test_what_is_given_has_exactly_no_velocity(
    models: dict[str, CosmosTransformer], family: str, layout: Layout
) -> None:
    model = models[family]
    out = model.denoise(model.prefix(IDS), layout, *inputs_for(layout), 833)
    frames = [f for f in range(layout.vision.frames) if f not in layout.vision.clean]
    rows = [r for r in range(layout.action.rows) if r not in layout.action.clean]
    assert not out.vision[:, :, list(layout.vision.clean)].any()
    assert not out.action[list(layout.action.clean)].any()
    assert not out.action[:, layout.action.raw_dim :].any()
    assert out.vision[:, :, frames].all()
    assert out.action[rows][:, : layout.action.raw_dim].all()


def test_time_reaches_noisy_tokens_only(models: dict[str, CosmosTransformer]) -> None:
    model = models['nano']
    placement = model.place(POLICY, len(IDS))
    vision, action, _ = inputs_for(POLICY)
    tokens = Tokens(patchify(vision, 2), action, None)
    early, late = (model._project_in(tokens, placement, torch.tensor([t])) for t in (999.0, 100.0))
    noisy = torch.cat([placement.vision.noisy, placement.action.noisy]).squeeze(1).bool()
    assert torch.equal(early[~noisy], late[~noisy])
    assert (early[noisy] != late[noisy]).any(dim=1).all()
    assert int((~noisy).sum()) == 2 * 2 + 1


def test_time_features_have_the_published_values() -> None:
    features = time_features(torch.tensor([999]) * 0.001)[0]
    assert features.dtype == torch.float32
    expected = {0: 0.5411435, 1: 0.5981213, 127: 1.0, 128: 0.8409303, 129: 0.8014055, 255: 0.0001074}
    for k, value in expected.items():
        assert features[k].item() == pytest.approx(value, abs=1.2e-7)  # one step of float32


def test_time_is_embedded_in_float32_from_bfloat16_weights() -> None:
    model = make('nano', torch.bfloat16)
    exact = make('nano', torch.bfloat16).float()
    t = torch.tensor([0.624])
    assert model.time_embedder(t).dtype == torch.float32
    assert torch.equal(model.time_embedder(t), exact.time_embedder(t))


@pytest.mark.parametrize(
    ('dtype', 'expected'),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_velocities_are_at_least_float32(dtype: torch.dtype, expected: torch.dtype) -> None:
    model = make('nano', dtype)
    layout = Layout(VisionItem(2, **SIZE), ActionItem(4, **EMBODIMENT, fps=15.0), SoundItem(3))
    out = model.denoise(model.prefix(IDS), layout, *inputs_for(layout, torch.float32), 624)
    assert {out.vision.dtype, out.action.dtype, out.sound.dtype} == {expected}


def test_a_placement_is_calculated_once() -> None:
    model = make('nano')
    again = policy_layout(chunk=8, **SIZE, **EMBODIMENT, state=True)
    assert model.place(POLICY, 7) is model.place(again, 7)
    assert model.place(POLICY, 8) is not model.place(POLICY, 7)


def test_a_placement_follows_the_model_to_another_type() -> None:
    model = make('nano')
    assert model.place(POLICY, 7).cos.dtype == torch.float64
    assert model.to(torch.bfloat16).place(POLICY, 7).cos.dtype == torch.bfloat16


def test_a_placement_made_in_inference_mode_still_trains() -> None:
    model = make('nano')
    with torch.inference_mode():
        model.place(POLICY, len(IDS))
    with torch.enable_grad():
        out = model.denoise(model.prefix(IDS), POLICY, *inputs_for(POLICY), 624)
        out.action.square().sum().backward()
    assert model.proj_in.weight.grad.any()
    assert model.embed_tokens.weight.grad.any()


def test_longer_prompts_shift_what_is_generated() -> None:
    model = make('nano')
    near, far = model.place(POLICY, 7), model.place(POLICY, 8)
    assert not torch.equal(near.cos, far.cos)


def test_a_step_in_tokens_equals_the_step_in_latents(models: dict[str, CosmosTransformer]) -> None:
    model = models['nano']
    prefix = model.prefix(IDS)
    vision, action, _ = inputs_for(POLICY)
    whole = model.denoise(prefix, POLICY, vision, action, None, 624)
    tokens = Tokens(patchify(vision, 2), action, None)
    out = model.denoise_tokens(tokens, prefix.keys, prefix.values, model.place(POLICY, 7), torch.tensor([624.0]))
    assert torch.equal(out.vision, patchify(whole.vision, 2)), 'the fill of incomplete patches has no velocity either'
    assert torch.equal(out.action, whole.action)


@pytest.mark.parametrize(('height', 'width'), [(33, 40), (3, 5), (2, 2), (1, 1)])
def test_patches_come_apart_as_they_were_put_together(height: int, width: int) -> None:
    latents = torch.randn(1, 48, 3, height, width)
    item = VisionItem(3, height, width, 15.0)
    tokens = patchify(latents, 2)
    assert tokens.shape == (item.tokens(2), 192)
    assert torch.equal(unpatchify(tokens, item, 2), latents)


def test_an_odd_grid_is_filled_with_zeros_below_and_right() -> None:
    tokens = patchify(torch.ones(1, 48, 1, 33, 39), 2).view(17, 20, 2, 2, 48)
    assert tokens[:16, :19].all()
    assert tokens[16, :, 0, 0].all()
    assert not tokens[16, :, 1].any()
    assert not tokens[:, 19, :, 1].any()


def test_a_token_runs_by_row_column_and_channel() -> None:
    latents = torch.arange(48 * 2 * 4, dtype=torch.float32).view(1, 48, 1, 2, 4)
    second = patchify(latents, 2)[1].view(2, 2, 48)
    for row in range(2):
        for column in range(2):
            assert torch.equal(second[row, column], latents[0, :, 0, row, 2 + column])


@pytest.mark.parametrize('family', FAMILIES)
def test_generation_sees_normalised_keys_and_understanding_its_own(
    models: dict[str, CosmosTransformer], family: str
) -> None:
    model = make(family)
    hidden, prefix = model.understand(IDS), model.prefix(IDS)
    marks = [p for n, p in model.named_parameters() if 'k_norm_und_for_gen' in n]
    for weight in marks:
        weight.mul_(2)
    changed = model.prefix(IDS)
    assert torch.equal(model.understand(IDS), hidden)
    factor = 2.0 if family == 'edge' else 1.0
    assert len(marks) == (2 if family == 'edge' else 0)
    for before, after in zip(prefix.keys, changed.keys, strict=True):
        assert torch.equal(after, factor * before)


def test_edge_keys_for_generation_have_unit_mean_square() -> None:
    model = make('edge')
    for layer in model.layers:
        layer.self_attn.k_norm_und_for_gen.weight.fill_(1.0)
    for keys in model.prefix(IDS).keys:
        torch.testing.assert_close(keys.square().mean(-1), torch.ones(len(IDS), 2, dtype=keys.dtype), rtol=0, atol=0.02)


def test_one_prompt_token_later_changes_nothing_before_it(models: dict[str, CosmosTransformer]) -> None:
    model = models['nano']
    other = IDS.clone()
    other[-1] = 1
    one, two = model.understand(IDS), model.understand(other)
    torch.testing.assert_close(one[:-1], two[:-1], rtol=0, atol=1e-12)
    assert not torch.equal(one[-1], two[-1])


@pytest.mark.parametrize('family', FAMILIES)
def test_the_step_exports_with_a_free_prompt_length(models: dict[str, CosmosTransformer], family: str) -> None:
    model = models[family]
    vision, action, _ = inputs_for(POLICY)
    tokens, time = Tokens(patchify(vision, 2), action, None), torch.tensor([624.0])

    def arguments(ids: Tensor) -> tuple[object, ...]:
        prefix = model.prefix(ids)
        return tokens, prefix.keys, prefix.values, model.place(POLICY, prefix.length), time

    length = torch.export.Dim('length', min=2, max=512)
    tokens_fixed, _, _, placement_fixed, _ = tree_map(lambda _: None, arguments(IDS))
    free = ({0: length},) * 2
    dynamic = (tokens_fixed, free, free, placement_fixed, None)
    program = torch.export.export(model, arguments(IDS), dynamic_shapes=dynamic).module()
    for ids in (IDS, IDS[:3], IDS.repeat(5)):
        torch.testing.assert_close(program(*arguments(ids)), model(*arguments(ids)), rtol=0, atol=1e-12)


def test_the_step_compiles_without_graph_breaks() -> None:
    model = make('nano')
    compiled = torch.compile(model.denoise_tokens, fullgraph=True, backend='aot_eager')
    vision, action, _ = inputs_for(POLICY)
    prefix, placement = model.prefix(IDS), model.place(POLICY, len(IDS))
    for timestep in (999.0, 624.0):
        step = (
            Tokens(patchify(vision, 2), action, None),
            prefix.keys,
            prefix.values,
            placement,
            torch.tensor([timestep]),
        )
        torch.testing.assert_close(compiled(*step), model.denoise_tokens(*step), rtol=0, atol=1e-12)


def test_a_timestep_may_be_a_number_or_a_tensor(models: dict[str, CosmosTransformer]) -> None:
    model = models['nano']
    prefix, inputs = model.prefix(IDS), inputs_for(POLICY)
    expected = model.denoise(prefix, POLICY, *inputs, 624)
    for timestep in (624.0, torch.tensor(624), torch.tensor([624.0])):
        assert same(model.denoise(prefix, POLICY, *inputs, timestep), expected)


def test_all_that_does_not_fit_the_layout_is_named_at_once(models: dict[str, CosmosTransformer]) -> None:
    model = models['edge']
    layout = Layout(VisionItem(3, **SIZE), ActionItem(9, domain_id=32, raw_dim=65, fps=15.0), SoundItem(4))
    with pytest.raises(InvalidInput) as error:
        model.denoise(model.prefix(IDS), layout, torch.zeros(1, 48, 3, 4, 4), torch.zeros(9, 10), None, 1)
    assert [problem.where for problem in error.value.problems] == [
        'layout.sound',
        'layout.action.raw_dim',
        'layout.action.domain_id',
        'vision',
        'action',
        'sound',
    ]


def test_a_network_without_action_heads_refuses_actions_and_still_makes_video() -> None:
    model = make('nano', action=False, sound=False)
    with pytest.raises(InvalidInput, match='action heads'):
        model.place(POLICY, 7)
    layout = text_to_video_layout(video_frames=5, **SIZE)
    assert model.denoise(model.prefix(IDS), layout, *inputs_for(layout), 999).vision.any()


def test_actions_alone_can_be_generated(models: dict[str, CosmosTransformer]) -> None:
    model = models['edge']
    layout = Layout(action=replace(POLICY.action, domain_id=3))
    out = model.denoise(model.prefix(IDS), layout, *inputs_for(layout), 999)
    assert out.vision is None
    assert out.action[1:, :10].all()
    assert not out.action[0].any()


def test_each_embodiment_has_weights_of_its_own(models: dict[str, CosmosTransformer]) -> None:
    model = models['nano']
    prefix, inputs = model.prefix(IDS), inputs_for(POLICY)
    other = replace(POLICY, action=replace(POLICY.action, domain_id=9))
    one, two = (model.denoise(prefix, layout, *inputs, 624) for layout in (POLICY, other))
    assert not torch.equal(one.action, two.action)


@pytest.mark.parametrize(
    ('ids', 'named'),
    [
        (torch.tensor([], dtype=torch.int64), 'row of token ids'),
        (torch.tensor([[1, 2]]), 'row of token ids'),
        (torch.tensor([1.0, 2.0]), 'torch.int64'),
        (torch.tensor([1, VOCABULARY]), '0 to 49'),
        (torch.tensor([-1, 2]), '0 to 49'),
    ],
)
def test_ids_that_are_no_prompt_are_refused(models: dict[str, CosmosTransformer], ids: Tensor, named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        models['nano'].prefix(ids)


def test_without_a_language_head_scoring_says_so() -> None:
    model = make('nano', lm_head=False)
    with pytest.raises(CosmosError, match=r'lm_head\.weight'):
        model.logits(model.understand(IDS))
