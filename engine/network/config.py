"""What a Cosmos 3 transformer is made of: the public `transformer/config.json`, validated once.

Keys, defaults and their effect are those of diffusers' `Cosmos3OmniTransformer` (0.42); the three presets are the
published Cosmos3-Nano, Cosmos3-Super and Cosmos3-Edge configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal

from engine.errors import CheckpointError, Problem

Family = Literal['nano', 'super', 'edge']

_DEFAULT_AXES = (24, 20, 20)

# Switches that training frameworks write down and that change the computation. Only these values are implemented
# (every public checkpoint has them), so any other value is refused rather than silently computed wrongly.
_FIXED: dict[str, Any] = {
    'attention_bias': False,
    'enable_fps_modulation': True,
    'joint_attn_implementation': 'two_way',
    'position_embedding_type': 'unified_3d_mrope',
    'qk_norm_for_diffusion': True,
    'temporal_compression_factor': 4,
    'temporal_compression_factor_sound': 1,
    'unified_3d_mrope_reset_spatial_ids': True,
    'video_temporal_causal': False,
}
_FIXED_ROPE: dict[str, Any] = {'rope_type': 'default', 'mrope_interleaved': True}


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and switches of one transformer; field names are the public keys.

    Attributes:
        hidden_size: Width of both towers' residual streams.
        num_hidden_layers: Layers; each holds an understanding and a generation half.
        num_attention_heads: Query heads.
        num_key_value_heads: Key/value heads; each serves `num_attention_heads / num_key_value_heads` query heads.
        head_dim: Width of one head.
        intermediate_size: Width of the MLPs.
        vocab_size: Rows of the token embedding and of the language head.
        rms_norm_eps: Added to the mean square in every RMS norm.
        hidden_act: 'silu' = gated MLP (Qwen), 'relu2' = un-gated squared ReLU (Nemotron; also selects its norm order).
        rope_theta: Base of the rotary frequencies.
        rope_axes_dim: Frequencies given to the time, height and width axes; they sum to `head_dim / 2`.
        qk_norm_for_text: Whether the understanding tower normalises queries and keys per head.
        use_und_k_norm_for_gen: Whether generation sees understanding keys through a norm of their own.
        latent_channel: Channels of the video latents.
        latent_patch_size: Edge of one patch, in latent cells.
        action_gen: Whether the checkpoint has an action head.
        action_dim: Channels of one action row; None without an action head.
        num_embodiment_domains: Rows of the per-embodiment action head tables.
        sound_gen: Whether the checkpoint has a sound head (exports may still omit its tensors).
        sound_dim: Channels of one sound latent; None without a sound head.
        sound_latent_fps: Sound latents per second.
        base_fps: Frame rate (1/s) at which positions advance by one per latent frame before modulation.
        unified_3d_mrope_temporal_modality_margin: Gap in temporal position between the text and what is generated.
        timestep_scale: Factor from the sampler's timestep, 0 to 1000, to the time embedder's input.
        dtype: Storage type of the weights on disk.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float = 1e-6
    hidden_act: str = 'silu'
    rope_theta: float = 5e6
    rope_axes_dim: tuple[int, int, int] = _DEFAULT_AXES
    qk_norm_for_text: bool = True
    use_und_k_norm_for_gen: bool = False
    latent_channel: int = 48
    latent_patch_size: int = 2
    action_gen: bool = False
    action_dim: int | None = None
    num_embodiment_domains: int = 32
    sound_gen: bool = False
    sound_dim: int | None = None
    sound_latent_fps: float = 25.0
    base_fps: float = 24.0
    unified_3d_mrope_temporal_modality_margin: int = 15000
    timestep_scale: float = 0.001
    dtype: str = 'bfloat16'

    NANO: ClassVar[TransformerConfig]
    SUPER: ClassVar[TransformerConfig]
    EDGE: ClassVar[TransformerConfig]

    def __post_init__(self) -> None:
        """Refuse values that do not fit together.

        Raises:
            CheckpointError: Listing every fault.
        """
        _raise_if_any('transformer configuration', _find_problems(asdict(self), 'TransformerConfig'))

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], where: str = 'transformer/config.json') -> TransformerConfig:
        """Read the public JSON object.

        Unknown keys are informational and ignored; so is the legacy `qk_norm`, which is superseded by
        `qk_norm_for_text`. The rotary axes are `rope_axes_dim`, else `rope_scaling.mrope_section`, else (24, 20, 20).

        Args:
            d: The decoded JSON object.
            where: File name for error messages.

        Raises:
            CheckpointError: Listing every missing key, wrong value and unsupported switch.
        """
        values = {f.name: d.get(f.name, f.default) for f in fields(cls) if f.name in d or f.default is not MISSING}
        values['rope_axes_dim'] = _read_axes(d)
        problems = [*_missing(d, where), *_find_problems(values, where), *_find_unsupported(d, where)]
        _raise_if_any('transformer configuration', problems)
        return cls(**values)

    @classmethod
    def tiny(cls, variant: Literal['nano', 'edge'], vocab_size: int) -> TransformerConfig:
        """Smallest sizes that keep every structural feature of a family; for tests and dry runs.

        Args:
            variant: 'nano' (gated MLP, text query/key norms, sound) or 'edge' (un-gated, own key norm, no sound).
            vocab_size: Rows of the token embedding.
        """
        return replace(
            cls.EDGE if variant == 'edge' else cls.NANO,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=128,
            vocab_size=vocab_size,
            rope_axes_dim=(4, 2, 2),
        )

    def to_dict(self) -> dict[str, Any]:
        """The public JSON object; diffusers and `from_dict` read it back to the same model."""
        values = asdict(self)
        axes = list(values.pop('rope_axes_dim'))
        return {
            '_class_name': 'Cosmos3OmniTransformer',
            **values,
            **_FIXED,
            'max_action_dim': self.action_dim,
            'patch_latent_dim': self.patch_latent_dim,
            'rope_scaling': {**_FIXED_ROPE, 'mrope_section': axes},
        }

    @property
    def family(self) -> Family:
        """Which published family the computation follows; a scaled-down Nano is still 'nano'."""
        if self.hidden_act == 'relu2':
            return 'edge'
        return 'super' if self.hidden_size == 5120 or self.num_attention_heads == 64 else 'nano'

    @property
    def patch_latent_dim(self) -> int:
        """Numbers in one vision token: channels times the cells of one patch."""
        return self.latent_channel * self.latent_patch_size**2

    @property
    def norms_und_keys_for_gen(self) -> bool:
        """Whether `k_norm_und_for_gen` exists: diffusers builds it only where the text keys have no norm already."""
        return self.use_und_k_norm_for_gen and not self.qk_norm_for_text


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_positive_even(value: object) -> bool:
    return isinstance(value, int) and _is_positive_int(value) and value % 2 == 0


def _is_margin(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float('inf')


def _is_axes(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(_is_positive_int(v) for v in value)


_COUNT = (_is_positive_int, 'a positive integer')
_POSITIVE = (_is_positive, 'a positive number')
_FLAG = (lambda value: isinstance(value, bool), 'true or false')
_WIDTH = (lambda value: value is None or _is_positive_int(value), 'a positive integer, or null without that head')
_DTYPES = ('bfloat16', 'float16', 'float32', 'float64')

_CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    'hidden_size': _COUNT,
    'num_hidden_layers': _COUNT,
    'num_attention_heads': _COUNT,
    'num_key_value_heads': _COUNT,
    'head_dim': (_is_positive_even, 'a positive even integer'),
    'intermediate_size': _COUNT,
    'vocab_size': _COUNT,
    'rms_norm_eps': _POSITIVE,
    'hidden_act': (lambda value: value in ('silu', 'relu2'), "'silu' or 'relu2'"),
    'rope_theta': _POSITIVE,
    'rope_axes_dim': (_is_axes, 'three positive integers (time, height, width)'),
    'qk_norm_for_text': _FLAG,
    'use_und_k_norm_for_gen': _FLAG,
    'latent_channel': _COUNT,
    'latent_patch_size': _COUNT,
    'action_gen': _FLAG,
    'action_dim': _WIDTH,
    'num_embodiment_domains': _COUNT,
    'sound_gen': _FLAG,
    'sound_dim': _WIDTH,
    'sound_latent_fps': _POSITIVE,
    'base_fps': _POSITIVE,
    'unified_3d_mrope_temporal_modality_margin': (_is_margin, 'an integer >= 0'),
    'timestep_scale': _POSITIVE,
    'dtype': (lambda value: value in _DTYPES, ', '.join(_DTYPES)),
}


def _raise_if_any(subject: str, problems: list[Problem]) -> None:
    if problems:
        raise CheckpointError(subject, problems)


def _missing(d: Mapping[str, Any], where: str) -> list[Problem]:
    required = [f.name for f in fields(TransformerConfig) if f.default is MISSING]
    return [Problem(f'{where}: {key}', 'is missing', allowed=_CHECKS[key][1]) for key in required if key not in d]


def _read_axes(d: Mapping[str, Any]) -> object:
    """The rotary axes as a tuple if they look like a list; anything else is passed on for the checks to report."""
    axes = d.get('rope_axes_dim')
    scaling = d.get('rope_scaling')
    if axes is None and isinstance(scaling, Mapping):
        axes = scaling.get('mrope_section')
    if axes is None:
        return _DEFAULT_AXES
    return tuple(axes) if isinstance(axes, list | tuple) else axes


def _find_problems(values: Mapping[str, Any], where: str) -> list[Problem]:
    """Faults of single values, then of combinations of those values that are sound by themselves."""
    sound: dict[str, Any] = {}
    problems = []
    for name, value in values.items():
        accepts, allowed = _CHECKS[name]
        if accepts(value):
            sound[name] = value
        else:
            problems.append(Problem(f'{where}: {name}', 'has a wrong value', repr(value), allowed))
    return problems + _find_conflicts(sound, where)


def _find_conflicts(sound: Mapping[str, Any], where: str) -> list[Problem]:
    problems = []
    heads, kv_heads = sound.get('num_attention_heads'), sound.get('num_key_value_heads')
    if heads and kv_heads and heads % kv_heads:
        allowed = f'multiples of num_key_value_heads = {kv_heads}'
        problems.append(Problem(f'{where}: num_attention_heads', 'cannot be shared out evenly', str(heads), allowed))
    problems += _find_axis_conflicts(sound, where)
    for head in ('action', 'sound'):
        if sound.get(f'{head}_gen') and f'{head}_dim' in sound and sound[f'{head}_dim'] is None:
            what = f'is null although {head}_gen is true'
            problems.append(Problem(f'{where}: {head}_dim', what, allowed='a positive integer', remedy='set it'))
    return problems


def _find_axis_conflicts(sound: Mapping[str, Any], where: str) -> list[Problem]:
    axes, head_dim = sound.get('rope_axes_dim'), sound.get('head_dim')
    if axes is None or head_dim is None:
        return []
    key, half = f'{where}: rope_axes_dim', head_dim // 2
    if sum(axes) != half:
        return [
            Problem(key, 'does not fill one head', str(list(axes)), f'three numbers with the sum head_dim/2 = {half}')
        ]
    # Height takes frequencies 1, 4, 7, ... and width 2, 5, 8, ...: each must find all of its own inside the head.
    if 3 * axes[1] > half + 1 or 3 * axes[2] > half:
        allowed = f'height at most {(half + 1) // 3}, width at most {half // 3}'
        return [Problem(key, 'cannot be interleaved', str(list(axes)), allowed)]
    return []


def _find_unsupported(d: Mapping[str, Any], where: str) -> list[Problem]:
    """Switches whose values this implementation does not have."""
    scaling = d.get('rope_scaling') or {}
    expected = [(key, d.get(key, value), value) for key, value in _FIXED.items()]
    if isinstance(scaling, Mapping):
        expected += [(f'rope_scaling.{key}', scaling.get(key, value), value) for key, value in _FIXED_ROPE.items()]
    else:
        expected.append(('rope_scaling', scaling, 'an object or null'))
    channels, patch = d.get('latent_channel', 48), d.get('latent_patch_size', 2)
    if _is_positive_int(channels) and _is_positive_int(patch):
        expected.append(('patch_latent_dim', d.get('patch_latent_dim', channels * patch**2), channels * patch**2))
    remedy = 'use a checkpoint of the public two-way architecture'
    return [
        Problem(f'{where}: {key}', 'is not supported', repr(value), repr(only), remedy)
        for key, value, only in expected
        if value != only
    ]


TransformerConfig.NANO = TransformerConfig(
    hidden_size=4096,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=12288,
    vocab_size=151936,
    action_gen=True,
    action_dim=64,
    sound_gen=True,
    sound_dim=64,
)
TransformerConfig.SUPER = TransformerConfig(
    hidden_size=5120,
    num_hidden_layers=64,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=25600,
    vocab_size=151936,
    action_gen=True,
    action_dim=64,
    sound_gen=True,
    sound_dim=64,
)
TransformerConfig.EDGE = TransformerConfig(
    hidden_size=2048,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=9216,
    vocab_size=131072,
    rms_norm_eps=1e-5,
    hidden_act='relu2',
    rope_theta=1e8,
    qk_norm_for_text=False,
    use_und_k_norm_for_gen=True,
    action_gen=True,
    action_dim=64,
)
