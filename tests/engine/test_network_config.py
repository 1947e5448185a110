"""The public `transformer/config.json`, and everything that can be wrong with it."""

from __future__ import annotations

import json

import pytest

from engine.errors import CheckpointError
from engine.network.config import TransformerConfig

# Cosmos3-Nano's published file, word for word.
NANO_FILE = """{
  "_class_name": "Cosmos3OmniTransformer", "_diffusers_version": "0.37.1", "action_dim": 64, "action_gen": true,
  "attention_bias": false, "attention_dropout": 0.0, "base_fps": 24, "dtype": "bfloat16",
  "enable_fps_modulation": true, "freeze_und": false, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
  "initializer_range": 0.02, "intermediate_size": 12288, "joint_attn_implementation": "two_way",
  "latent_channel": 48, "latent_patch_size": 2, "max_action_dim": 64, "max_position_embeddings": 262144,
  "model_type": "qwen3_vl_text", "num_attention_heads": 32, "num_embodiment_domains": 32, "num_hidden_layers": 36,
  "num_key_value_heads": 8, "patch_latent_dim": 192, "position_embedding_type": "unified_3d_mrope", "qk_norm": false,
  "qk_norm_for_diffusion": true, "qk_norm_for_text": true, "rms_norm_eps": 1e-06,
  "rope_scaling": {"mrope_interleaved": true, "mrope_section": [24, 20, 20], "rope_type": "default"},
  "rope_theta": 5000000, "sound_dim": 64, "sound_gen": true, "sound_latent_fps": 25,
  "temporal_compression_factor_sound": 1, "timestep_scale": 0.001, "unified_3d_mrope_reset_spatial_ids": true,
  "unified_3d_mrope_temporal_modality_margin": 15000, "use_cache": true, "use_moe": true,
  "video_temporal_causal": false, "vocab_size": 151936}"""
EDGE_FILE = """{
  "_class_name": "Cosmos3OmniTransformer", "action_dim": 64, "action_gen": true, "attention_bias": false,
  "backbone_type": "cosmos3_edge_nemotron_dense", "base_fps": 24, "head_dim": 128, "hidden_act": "relu2",
  "hidden_size": 2048, "intermediate_size": 9216, "num_attention_heads": 16, "num_hidden_layers": 28,
  "num_key_value_heads": 8, "qk_norm_for_text": false, "rms_norm_eps": 1e-05,
  "rope_scaling": {"mrope_section": [24, 20, 20]}, "rope_theta": 100000000.0, "sound_dim": null, "sound_gen": false,
  "temporal_compression_factor": 4, "use_und_k_norm_for_gen": true, "vocab_size": 131072}"""


def nano(**changes: object) -> dict[str, object]:
    return {**json.loads(NANO_FILE), **changes}


def faults_of(d: dict[str, object]) -> dict[str, str]:
    with pytest.raises(CheckpointError) as error:
        TransformerConfig.from_dict(d, 'c.json')
    return {problem.where.removeprefix('c.json: '): problem.what for problem in error.value.problems}


def test_the_published_nano_file_is_the_nano_preset() -> None:
    assert TransformerConfig.from_dict(json.loads(NANO_FILE)) == TransformerConfig.NANO


def test_the_exported_edge_file_is_the_edge_preset() -> None:
    assert TransformerConfig.from_dict(json.loads(EDGE_FILE)) == TransformerConfig.EDGE


def test_the_legacy_qk_norm_key_changes_nothing() -> None:
    assert TransformerConfig.from_dict(nano(qk_norm=True)) == TransformerConfig.from_dict(nano(qk_norm=False))
    assert TransformerConfig.from_dict(nano()).qk_norm_for_text


def test_unknown_keys_are_ignored() -> None:
    assert TransformerConfig.from_dict(nano(freeze_und=True, color='green')) == TransformerConfig.NANO


@pytest.mark.parametrize(
    ('changes', 'axes'),
    [
        ({'rope_axes_dim': [16, 24, 24], 'rope_scaling': {'mrope_section': [24, 20, 20]}}, None),
        ({'rope_axes_dim': [28, 18, 18], 'rope_scaling': {'mrope_section': [24, 20, 20]}}, (28, 18, 18)),
        ({'rope_axes_dim': None, 'rope_scaling': {'mrope_section': [28, 18, 18]}}, (28, 18, 18)),
        ({'rope_scaling': {}}, (24, 20, 20)),
        ({'rope_scaling': None}, (24, 20, 20)),
    ],
)
def test_axes_come_from_their_own_key_then_from_rope_scaling_then_by_default(
    changes: dict[str, object], axes: tuple[int, ...] | None
) -> None:
    if axes is None:
        assert faults_of(nano(**changes)) == {'rope_axes_dim': 'cannot be interleaved'}
    else:
        assert TransformerConfig.from_dict(nano(**changes)).rope_axes_dim == axes


@pytest.mark.parametrize(
    'config',
    [
        TransformerConfig.NANO,
        TransformerConfig.SUPER,
        TransformerConfig.EDGE,
        TransformerConfig.tiny('nano', 50),
        TransformerConfig.tiny('edge', 50),
    ],
    ids=['nano', 'super', 'edge', 'tiny nano', 'tiny edge'],
)
def test_a_configuration_survives_its_own_json(config: TransformerConfig) -> None:
    assert TransformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_families_are_told_apart() -> None:
    assert TransformerConfig.NANO.family == TransformerConfig.tiny('nano', 50).family == 'nano'
    assert TransformerConfig.EDGE.family == TransformerConfig.tiny('edge', 50).family == 'edge'
    assert TransformerConfig.SUPER.family == 'super'


def test_the_und_key_norm_exists_only_without_text_norms() -> None:
    assert TransformerConfig.EDGE.norms_und_keys_for_gen
    assert not TransformerConfig.NANO.norms_und_keys_for_gen
    both = TransformerConfig.from_dict(nano(use_und_k_norm_for_gen=True))
    assert not both.norms_und_keys_for_gen


def test_all_faults_are_reported_at_once() -> None:
    faulty = nano(
        hidden_size=0,
        num_attention_heads=30,
        hidden_act='gelu',
        rope_theta='big',
        qk_norm_for_text='yes',
        attention_bias=True,
        joint_attn_implementation='three_way',
        rope_scaling={'rope_type': 'yarn', 'mrope_section': [24, 20, 21]},
        sound_dim=None,
        patch_latent_dim=191,
        dtype='int8',
    )
    del faulty['vocab_size']
    assert set(faults_of(faulty)) == {
        'vocab_size',
        'hidden_size',
        'num_attention_heads',
        'hidden_act',
        'rope_theta',
        'qk_norm_for_text',
        'attention_bias',
        'joint_attn_implementation',
        'rope_scaling.rope_type',
        'rope_axes_dim',
        'sound_dim',
        'patch_latent_dim',
        'dtype',
    }


def test_a_fault_says_where_what_value_and_what_is_allowed() -> None:
    with pytest.raises(
        CheckpointError, match=r"c\.json: hidden_act: has a wrong value, got 'gelu', allowed: 'silu' or"
    ):
        TransformerConfig.from_dict(nano(hidden_act='gelu'), 'c.json')


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('num_key_value_heads', 5),
        ('head_dim', 127),
        ('num_hidden_layers', True),
        ('rms_norm_eps', 0.0),
        ('rope_axes_dim', [64, 0, 0]),
        ('rope_axes_dim', 'abc'),
        ('action_dim', None),
        ('unified_3d_mrope_temporal_modality_margin', -1),
        ('rope_scaling', 'linear'),
        ('unified_3d_mrope_reset_spatial_ids', False),
        ('enable_fps_modulation', False),
        ('base_fps', float('inf')),
        ('latent_channel', 0),
    ],
)
def test_a_value_that_cannot_work_is_refused(key: str, value: object) -> None:
    assert faults_of(nano(**{key: value}))


def test_an_empty_file_names_every_missing_size() -> None:
    assert set(faults_of({})) == {
        'hidden_size',
        'num_hidden_layers',
        'num_attention_heads',
        'num_key_value_heads',
        'head_dim',
        'intermediate_size',
        'vocab_size',
    }
