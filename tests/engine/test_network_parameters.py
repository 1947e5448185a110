"""Names, shapes and counts of the published checkpoints, without allocating them."""

from __future__ import annotations

import functools

import pytest
import torch

from engine.errors import InvalidInput
from engine.network.config import TransformerConfig
from engine.network.transformer import CosmosTransformer

CONFIGS = {'nano': TransformerConfig.NANO, 'super': TransformerConfig.SUPER, 'edge': TransformerConfig.EDGE}
GENERATION = ('moe_gen', 'add_', 'norm_added', 'proj_in', 'proj_out', 'time_embedder', 'modality_embed')
Shapes = dict[str, tuple[int, ...]]


@functools.cache
def shapes_of(family: str, **heads: bool) -> Shapes:
    with torch.device('meta'):
        model = CosmosTransformer(CONFIGS[family], **heads)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def size(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def generation_part(shapes: Shapes) -> Shapes:
    return {name: shape for name, shape in shapes.items() if any(mark in name for mark in GENERATION)}


def layer_shapes(c: TransformerConfig) -> Shapes:
    hidden, dim, inner = c.hidden_size, c.head_dim, c.intermediate_size
    queries, keys = c.num_attention_heads * dim, c.num_key_value_heads * dim
    shapes: Shapes = {}
    for names, tower in (
        (('to_q', 'to_k', 'to_v', 'to_out'), ''),
        (('add_q_proj', 'add_k_proj', 'add_v_proj', 'to_add_out'), '_moe_gen'),
    ):
        sizes = ((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries))
        shapes |= {f'self_attn.{name}.weight': shape for name, shape in zip(names, sizes, strict=True)}
        shapes[f'input_layernorm{tower}.weight'] = shapes[f'post_attention_layernorm{tower}.weight'] = (hidden,)
        shapes[f'mlp{tower}.up_proj.weight'] = (inner, hidden)
        shapes[f'mlp{tower}.down_proj.weight'] = (hidden, inner)
        if c.family != 'edge':
            shapes[f'mlp{tower}.gate_proj.weight'] = (inner, hidden)
    own = ('k_norm_und_for_gen',) if c.family == 'edge' else ('norm_q', 'norm_k')
    return shapes | {f'self_attn.{name}.weight': (dim,) for name in (*own, 'norm_added_q', 'norm_added_k')}


def published_shapes(c: TransformerConfig) -> Shapes:
    hidden = c.hidden_size
    shapes: Shapes = {
        'embed_tokens.weight': (c.vocab_size, hidden),
        'norm.weight': (hidden,),
        'lm_head.weight': (c.vocab_size, hidden),
        'norm_moe_gen.weight': (hidden,),
        'proj_in.weight': (hidden, 192),
        'proj_in.bias': (hidden,),
        'proj_out.weight': (192, hidden),
        'proj_out.bias': (192,),
        'time_embedder.linear_1.weight': (hidden, 256),
        'time_embedder.linear_1.bias': (hidden,),
        'time_embedder.linear_2.weight': (hidden, hidden),
        'time_embedder.linear_2.bias': (hidden,),
        'action_proj_in.fc.weight': (32, 64 * hidden),
        'action_proj_in.bias.weight': (32, hidden),
        'action_proj_out.fc.weight': (32, hidden * 64),
        'action_proj_out.bias.weight': (32, 64),
        'action_modality_embed': (hidden,),
    }
    if c.sound_gen:
        shapes |= {
            'audio_proj_in.weight': (hidden, 64),
            'audio_proj_in.bias': (hidden,),
            'audio_proj_out.weight': (64, hidden),
            'audio_proj_out.bias': (64,),
            'audio_modality_embed': (hidden,),
        }
    layers = {f'layers.{i}.{name}': s for i in range(c.num_hidden_layers) for name, s in layer_shapes(c).items()}
    return shapes | layers


@pytest.mark.parametrize('family', CONFIGS)
def test_every_tensor_has_its_published_name_and_shape(family: str) -> None:
    assert shapes_of(family) == published_shapes(CONFIGS[family])


@pytest.mark.parametrize(
    ('family', 'tensors', 'total', 'understanding', 'generation'),
    [
        ('nano', 814, 15_173_669_120, 8_190_735_360, 6_982_933_760),
        ('super', 1430, 64_019_736_832, 32_762_123_264, 31_257_613_568),
        ('edge', 549, 3_369_657_024, 1_946_277_376, 1_423_379_648),
    ],
)
def test_parameters_add_up_to_the_published_counts(
    family: str, tensors: int, total: int, understanding: int, generation: int
) -> None:
    shapes = shapes_of(family)
    assert len(shapes) == tensors
    assert size(shapes) == total
    assert size(generation_part(shapes)) == generation
    assert size(shapes) - size(generation_part(shapes)) == understanding


def test_leaving_heads_out_leaves_out_their_tensors_only() -> None:
    full = set(shapes_of('nano'))
    assert full - set(shapes_of('nano', sound=False)) == {n for n in full if n.startswith('audio_')}
    assert full - set(shapes_of('nano', action=False)) == {n for n in full if n.startswith('action_')}
    assert full - set(shapes_of('nano', lm_head=False)) == {'lm_head.weight'}


def test_a_head_without_a_configured_width_is_refused() -> None:
    with pytest.raises(InvalidInput, match='sound_dim'):
        CosmosTransformer(TransformerConfig.tiny('edge', 50), sound=True)
