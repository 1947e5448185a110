"""The understanding tower is the language model that transformers loads from the same tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.network.config import TransformerConfig
from engine.network.transformer import CosmosTransformer

transformers = pytest.importorskip('transformers', reason='transformers is the reference here')

VOCABULARY = 60
IDS = torch.tensor([3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32])
VISION = {'hidden_size': 16, 'intermediate_size': 16, 'num_heads': 2, 'depth': 1, 'out_hidden_size': 64}
RENAMED = {
    'to_q': 'q_proj',
    'to_k': 'k_proj',
    'to_v': 'v_proj',
    'to_out': 'o_proj',
    'norm_q': 'q_norm',
    'norm_k': 'k_norm',
}
RENAMED_EDGE = {**RENAMED, 'up_proj': 'fc1', 'down_proj': 'fc2'}


def text_config(config: TransformerConfig, **more: object) -> dict[str, object]:
    names = ('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads')
    names += ('num_key_value_heads', 'head_dim', 'hidden_act', 'rms_norm_eps')
    rope = {'rope_type': 'default', 'rope_theta': config.rope_theta, 'mrope_section': list(config.rope_axes_dim)}
    return {name: getattr(config, name) for name in names} | {'rope_parameters': rope, **more}


def omni() -> tuple[CosmosTransformer, nn.Module, dict[str, str]]:
    config = TransformerConfig.tiny('nano', VOCABULARY)
    text = text_config(config, model_type='qwen3_vl_text', pad_token_id=0)
    tower = {**VISION, 'model_type': 'qwen3_vl_vision', 'deepstack_visual_indexes': [0]}
    ids = {'image_token_id': 51, 'video_token_id': 52, 'vision_start_token_id': 53, 'vision_end_token_id': 54}
    reference = transformers.Cosmos3OmniConfig(text_config=text, vision_config=tower, **ids)
    return CosmosTransformer(config), transformers.Cosmos3OmniForConditionalGeneration(reference), RENAMED


def edge() -> tuple[CosmosTransformer, nn.Module, dict[str, str]]:
    config = TransformerConfig.tiny('edge', VOCABULARY)
    tower = {'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2}
    ids = {'image_token_id': 51, 'video_token_id': 52, 'vision_start_token_id': 53, 'vision_end_token_id': 54}
    reference = transformers.Cosmos3EdgeConfig(
        text_config=text_config(config), vision_config=tower, projector_hidden_size=16, **ids
    )
    return CosmosTransformer(config), transformers.Cosmos3EdgeForConditionalGeneration(reference), RENAMED_EDGE


def load(reference: nn.Module, ours: CosmosTransformer, renamed: dict[str, str]) -> None:
    """Give the reference our understanding tower; every tensor of its language model must be given."""
    theirs = {name for name in reference.state_dict() if 'language_model' in name or name.startswith('lm_head')}
    weights: dict[str, Tensor] = {}
    for name, tensor in ours.state_dict().items():
        parts = [renamed.get(part, part) for part in name.split('.')]
        weights['.'.join(parts if parts[0] == 'lm_head' else ['model', 'language_model', *parts])] = tensor
    reference.load_state_dict({name: weights[name] for name in theirs}, strict=False)


@pytest.mark.parametrize('build', [omni, edge])
def test_hidden_states_and_logits_equal_those_of_transformers(build: object) -> None:
    torch.manual_seed(5)
    ours, reference, renamed = build()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.5 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5))
        load(reference, ours, renamed)
        reference.eval()
        hidden = ours.understand(IDS)
        expected = reference.model(input_ids=IDS[None]).last_hidden_state[0]
        scores = reference(input_ids=IDS[None]).logits[0]
        torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.logits(hidden), scores, rtol=0, atol=1e-5)
    assert hidden.abs().max() > 0.1
