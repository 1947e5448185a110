"""The configuration documents of a tiny checkpoint: the public keys and values, with small dimensions.

Every document carries the keys of the published repositories, including those that readers must ignore, so that code
which works here meets nothing new in a real checkpoint. The VAE's latent statistics are the public ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.tiny_tokenizer import TinyTokenizer

Json = dict[str, Any]

HIDDEN, INTERMEDIATE, LAYERS = 128, 256, 2
HEADS, KEY_VALUE_HEADS, HEAD_DIM, MROPE_SECTION = 4, 2, 16, [4, 2, 2]
_VISION_HIDDEN, _VISION_INTERMEDIATE, _VISION_HEADS = 32, 64, 2


@dataclass(frozen=True)
class Sizes:
    """Dimensions of both towers, under their public names but for the last, `rope_scaling.mrope_section`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    mrope_section: tuple[int, int, int]

    @classmethod
    def tiny(cls) -> Sizes:
        """As small as can be: nothing could be learned with them, everything can be tried."""
        first, second, third = MROPE_SECTION
        return cls(HIDDEN, INTERMEDIATE, LAYERS, HEADS, KEY_VALUE_HEADS, HEAD_DIM, (first, second, third))

    def document(self) -> Json:
        """The public keys, without `mrope_section`."""
        names = ('hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads')
        return {name: getattr(self, name) for name in (*names, 'num_key_value_heads', 'head_dim')}


MICRO = Sizes(256, 512, 6, 6, 3, 32, (8, 4, 4))
"""Of Cosmos3-micro: what two processor cores train in an hour or two."""

# Statistics of Wan 2.2's 48 latent channels, as published in the configuration of diffusers' Wan2.2-TI2V-5B VAE.
_LATENTS_MEAN = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
]  # fmt: skip
_LATENTS_STD = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
]  # fmt: skip


def transformer(*, edge: bool, sound: bool, vocab_size: int, sizes: Sizes | None = None) -> Json:
    """`transformer/config.json`."""
    sizes = sizes or Sizes.tiny()
    return {
        '_class_name': 'Cosmos3OmniTransformer',
        '_diffusers_version': '0.37.1',
        'action_dim': 64,
        'action_gen': True,
        'attention_bias': False,
        'attention_dropout': 0.0,
        'base_fps': 24,
        'dtype': 'bfloat16',
        'enable_fps_modulation': True,
        'latent_channel': 48,
        'latent_patch_size': 2,
        'max_action_dim': 64,
        'num_embodiment_domains': 32,
        'patch_latent_dim': 192,
        'timestep_scale': 0.001,
        'unified_3d_mrope_reset_spatial_ids': True,
        'unified_3d_mrope_temporal_modality_margin': 15000,
        'vocab_size': vocab_size,
        **sizes.document(),
        **(_edge_transformer(sizes) if edge else _nano_transformer(sound, sizes)),
    }


def _nano_transformer(sound: bool, sizes: Sizes) -> Json:
    return {
        'freeze_und': False,
        'hidden_act': 'silu',
        'initializer_range': 0.02,
        'joint_attn_implementation': 'two_way',
        'max_position_embeddings': 262144,
        'model_type': 'qwen3_vl_text',
        'position_embedding_type': 'unified_3d_mrope',
        # A legacy key of the public file that contradicts the two below and means nothing.
        'qk_norm': False,
        'qk_norm_for_diffusion': True,
        'qk_norm_for_text': True,
        'rms_norm_eps': 1e-6,
        'rope_scaling': {'mrope_interleaved': True, 'mrope_section': list(sizes.mrope_section), 'rope_type': 'default'},
        'rope_theta': 5000000,
        'sound_dim': 64 if sound else None,
        'sound_gen': sound,
        'sound_latent_fps': 25,
        'temporal_compression_factor_sound': 1,
        'use_cache': True,
        'use_moe': True,
        'video_temporal_causal': False,
    }


def _edge_transformer(sizes: Sizes) -> Json:
    return {
        'backbone_type': 'cosmos3_edge_nemotron_dense',
        'hidden_act': 'relu2',
        'qk_norm_for_text': False,
        'rms_norm_eps': 1e-5,
        'rope_scaling': {'mrope_section': list(sizes.mrope_section)},
        'rope_theta': 100000000.0,
        'sound_dim': None,
        'sound_gen': False,
        'temporal_compression_factor': 4,
        'use_und_k_norm_for_gen': True,
    }


def root(tokenizer: TinyTokenizer, sizes: Sizes | None = None) -> Json:
    """`config.json`: what transformers reads to load the understanding tower and the vision encoder."""
    sizes = sizes or Sizes.tiny()
    edge = tokenizer.edge
    return {
        'allow_patterns_overrides': ['*/*.safetensors'],
        'architectures': [f'Cosmos3{"Edge" if tokenizer.edge else ""}ForConditionalGeneration'],
        'dtype': 'bfloat16',
        'image_token_id': tokenizer.id_of('<|image_pad|>'),
        'model': {'resolution': '480' if tokenizer.edge else '720', 'use_system_prompt': False},
        'model_type': 'cosmos3_edge' if tokenizer.edge else 'cosmos3_omni',
        'text_config': _edge_text(tokenizer, sizes) if edge else _nano_text(tokenizer, sizes),
        'tie_word_embeddings': False,
        'video_token_id': tokenizer.id_of('<|video_pad|>'),
        'vision_config': _edge_vision() if edge else _nano_vision(sizes),
        'vision_end_token_id': tokenizer.id_of('<|vision_end|>'),
        'vision_start_token_id': tokenizer.id_of('<|vision_start|>'),
        **(_edge_projector(sizes) if edge else {}),
    }


def _text(tokenizer: TinyTokenizer, sizes: Sizes) -> Json:
    return {
        'attention_bias': False,
        'attention_dropout': 0.0,
        'dtype': 'bfloat16',
        'initializer_range': 0.02,
        'use_cache': True,
        'vocab_size': tokenizer.vocab_size,
        **sizes.document(),
    }


def _nano_text(tokenizer: TinyTokenizer, sizes: Sizes) -> Json:
    return {
        **_text(tokenizer, sizes),
        'bos_token_id': tokenizer.id_of('<|endoftext|>'),
        'eos_token_id': tokenizer.id_of('<|im_end|>'),
        'hidden_act': 'silu',
        'max_position_embeddings': 262144,
        'model_type': 'qwen3_vl_text',
        'rms_norm_eps': 1e-6,
        'rope_scaling': {'mrope_interleaved': True, 'mrope_section': list(sizes.mrope_section), 'rope_type': 'default'},
        'rope_theta': 5000000,
    }


def _edge_text(tokenizer: TinyTokenizer, sizes: Sizes) -> Json:
    return {
        **_text(tokenizer, sizes),
        'bos_token_id': tokenizer.id_of('<s>'),
        'eos_token_id': tokenizer.id_of('<|im_end|>'),
        'hidden_act': 'relu2',
        'max_position_embeddings': 131072,
        'mlp_bias': False,
        'model_type': 'cosmos3_edge_text',
        'pad_token_id': tokenizer.id_of('<unk>'),
        'rms_norm_eps': 1e-5,
        'rope_parameters': {
            'rope_type': 'default',
            'rope_theta': 100000000.0,
            'mrope_section': list(sizes.mrope_section),
        },
    }


def _nano_vision(sizes: Sizes) -> Json:
    return {
        # One tap for each decoder layer there is; the public model has three taps and dozens of layers.
        'deepstack_visual_indexes': [0, 1],
        'depth': 3,
        'hidden_act': 'gelu_pytorch_tanh',
        'hidden_size': _VISION_HIDDEN,
        'in_channels': 3,
        'initializer_range': 0.02,
        'intermediate_size': _VISION_INTERMEDIATE,
        'model_type': 'qwen3_vl_vision',
        'num_heads': _VISION_HEADS,
        'num_position_embeddings': 2304,
        'out_hidden_size': sizes.hidden_size,
        'patch_size': 16,
        'spatial_merge_size': 2,
        'temporal_patch_size': 2,
    }


def _edge_vision() -> Json:
    return {
        'attention_dropout': 0.0,
        'hidden_act': 'gelu_pytorch_tanh',
        'hidden_size': _VISION_HIDDEN,
        'intermediate_size': _VISION_INTERMEDIATE,
        'layer_norm_eps': 1e-6,
        'model_type': 'cosmos3_edge_vision',
        'num_attention_heads': _VISION_HEADS,
        'num_channels': 3,
        'num_hidden_layers': 2,
        'num_patches': 256,
        'patch_size': 16,
        'spatial_merge_size': 2,
    }


def _edge_projector(sizes: Sizes) -> Json:
    return {
        'projector_config': {
            'hidden_size': _VISION_HIDDEN,
            'intermediate_size': 5 * sizes.hidden_size,
            'out_hidden_size': sizes.hidden_size,
            'spatial_merge_size': 2,
            'use_deepstack': False,
        },
        'projector_hidden_size': 5 * sizes.hidden_size,
    }


def vae() -> Json:
    """`vae/config.json`: the residual Wan 2.2 autoencoder (48 channels, 16x in space, 4x in time), very narrow.

    Four channels and one block per stage keep a 544x736 frame affordable on one processor core.
    """
    return {
        '_class_name': 'AutoencoderKLWan',
        '_diffusers_version': '0.37.1',
        'attn_scales': [],
        'base_dim': 4,
        'decoder_base_dim': 8,
        'dim_mult': [1, 2, 4, 4],
        'dropout': 0.0,
        'in_channels': 12,
        'is_residual': True,
        'latents_mean': _LATENTS_MEAN,
        'latents_std': _LATENTS_STD,
        'num_res_blocks': 1,
        'out_channels': 12,
        'patch_size': 2,
        'scale_factor_spatial': 16,
        'scale_factor_temporal': 4,
        'temperal_downsample': [False, True, True],
        'z_dim': 48,
    }


def sound_tokenizer() -> Json:
    """`sound_tokenizer/config.json`: 48 kHz stereo, 25 latents of 64 channels per second."""
    return {
        '_class_name': 'Cosmos3AVAEAudioTokenizer',
        '_diffusers_version': '0.37.1',
        'bottleneck_type': 'vae',
        'dec_c_mults': [1, 2, 4, 8, 16],
        'dec_dim': 4,
        'dec_out_channels': 2,
        'dec_strides': [2, 4, 5, 6, 8],
        'enc_c_mults': [1, 2, 4],
        'enc_dim': 8,
        'enc_latent_dim': 128,
        'enc_strides': [4, 5, 6],
        'enc_type': 'spec_convnext',
        'hop_size': 1920,
        'model_type': 'autoencoder_v2',
        'sampling_rate': 48000,
        'stereo': True,
        'vocoder_input_dim': 64,
    }


def scheduler(*, edge: bool) -> Json:
    """`scheduler/scheduler_config.json`: as published, although neither family samples actions with it as it stands."""
    return {
        '_class_name': 'Cosmos3EdgeUniPCMultistepScheduler' if edge else 'UniPCMultistepScheduler',
        '_diffusers_version': '0.37.1',
        'final_sigmas_type': 'zero',
        'flow_shift': 3.0 if edge else 1.0,
        'num_train_timesteps': 1000,
        'prediction_type': 'flow_prediction',
        'solver_order': 2,
        'solver_type': 'bh2',
        'timestep_spacing': 'linspace',
        'use_flow_sigmas': True,
        'use_karras_sigmas': not edge,
        **({} if edge else {'sigma_max': 200.0, 'sigma_min': 0.147}),
    }


def model_index(*, edge: bool, sound: bool) -> Json:
    """`model_index.json`: the parts of the diffusers pipeline and its flags."""
    document: Json = {
        '_class_name': 'Cosmos3OmniPipeline',
        '_diffusers_version': '0.37.1',
        'enable_safety_checker': False,
        'scheduler': ['diffusers', scheduler(edge=edge)['_class_name']],
        'text_tokenizer': ['transformers', 'PreTrainedTokenizerFast' if edge else 'Qwen2TokenizerFast'],
        'transformer': ['diffusers', 'Cosmos3OmniTransformer'],
        'vae': ['diffusers', 'AutoencoderKLWan'],
    }
    if sound:
        document['sound_tokenizer'] = ['diffusers', 'Cosmos3AVAEAudioTokenizer']
    if edge:
        document |= {'default_use_system_prompt': False, 'native_flow_shift': 3.0, 'use_native_flow_schedule': True}
    return document


def provenance(*, edge: bool, seed: int, weights: str, size: str = 'tiny') -> Json:
    """`checkpoint.json`: says plainly where these weights come from."""
    document: Json = {
        'created_by': 'cosmos3 make-tiny',
        'name': f'{size}-{"edge" if edge else "nano"}',
        'seed': seed,
        'weights': weights,
    }
    if edge:
        document['policy'] = {'action_chunk_size': 32, 'conditioning_fps': 15, 'domain_name': 'droid_lerobot'}
    return document


def generation(tokenizer: TinyTokenizer) -> Json:
    """`generation_config.json`: how the reasoner samples text."""
    if tokenizer.edge:
        return {
            'bos_token_id': tokenizer.id_of('<s>'),
            'eos_token_id': tokenizer.id_of('<|im_end|>'),
            'pad_token_id': tokenizer.id_of('<unk>'),
        }
    end_of_text = tokenizer.id_of('<|endoftext|>')
    return {
        'bos_token_id': end_of_text,
        'do_sample': True,
        'eos_token_id': [tokenizer.id_of('<|im_end|>'), end_of_text],
        'pad_token_id': end_of_text,
        'repetition_penalty': 1.0,
        'temperature': 0.7,
        'top_k': 20,
        'top_p': 0.8,
    }


def image_preprocessor(*, edge: bool) -> Json:
    """`preprocessor_config.json`: how the vision encoder's images are resized and normalised."""
    return {
        'image_mean': [0.5, 0.5, 0.5],
        'image_processor_type': 'Cosmos3EdgeImageProcessor' if edge else 'Qwen2VLImageProcessorFast',
        'image_std': [0.5, 0.5, 0.5],
        'merge_size': 2,
        'patch_size': 16,
        'processor_class': 'Cosmos3EdgeProcessor' if edge else 'Qwen3VLProcessor',
        'size': {'longest_edge': 16777216, 'shortest_edge': 65536},
        'temporal_patch_size': 1 if edge else 2,
    }


def video_preprocessor(*, edge: bool) -> Json:
    """`video_preprocessor_config.json`: the same for videos, sampled at two frames per second."""
    return {
        'fps': 2,
        'image_mean': [0.5, 0.5, 0.5],
        'image_std': [0.5, 0.5, 0.5],
        'max_frames': 768,
        'merge_size': 2,
        'min_frames': 4,
        'patch_size': 16,
        'processor_class': 'Cosmos3EdgeProcessor' if edge else 'Qwen3VLProcessor',
        'size': {'longest_edge': 25165824, 'shortest_edge': 4096},
        'temporal_patch_size': 1 if edge else 2,
        'video_processor_type': 'Cosmos3EdgeVideoProcessor' if edge else 'Qwen3VLVideoProcessor',
    }
