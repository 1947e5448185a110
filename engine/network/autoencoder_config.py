"""What a video autoencoder is made of: the public `vae/config.json`, validated once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from engine.errors import CheckpointError, Problem

RGB = 3


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of one residual (Wan 2.2) video autoencoder; field names are the public keys, *sic*.

    Keys without a field change nothing: `attn_scales` belongs to another variant, and `dropout` to training.

    Attributes:
        base_dim: Channels of the encoder's first stage.
        z_dim: Channels of a latent position.
        dim_mult: Channels of each stage of the encoder as a multiple of `base_dim`; the decoder's, in reverse order.
        num_res_blocks: Residual blocks of each stage of the encoder; the decoder's have one more.
        temperal_downsample: Whether frames are halved in number behind a stage; for all stages but the last.
        patch_size: Edge of the squares of pixels that become channels before the first convolution.
        latents_mean: For each latent channel, the mean of what is encoded.
        latents_std: The same, standard deviation.
        decoder_base_dim: Channels of the decoder's last stage; as `base_dim` if not given.
    """

    base_dim: int
    z_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temperal_downsample: tuple[bool, ...]
    patch_size: int
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    decoder_base_dim: int | None = None

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], where: str = 'vae/config.json') -> AutoencoderConfig:
        """Read the public JSON object.

        Args:
            d: The decoded JSON object.
            where: File name for error messages.

        Raises:
            CheckpointError: Listing every missing key, wrong value, conflict and unsupported switch.
        """
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in d.items()}
        problems = [*_find_problems(values, where), *_find_unsupported(values, where)]
        if problems:
            raise CheckpointError('video autoencoder configuration', problems)
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    def to_dict(self) -> dict[str, Any]:
        """The public JSON object; diffusers and `from_dict` read it back to the same autoencoder."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {
            '_class_name': 'AutoencoderKLWan',
            **values,
            'in_channels': self.pixel_channels,
            'is_residual': True,
            'out_channels': self.pixel_channels,
            'scale_factor_spatial': self.spatial,
            'scale_factor_temporal': self.temporal,
        }

    @property
    def spatial(self) -> int:
        """Pixels to a latent position, in height and in width."""
        return self.patch_size * 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal(self) -> int:
        """Frames to a latent frame after the first."""
        return 2 ** sum(self.temperal_downsample)

    @property
    def pixel_channels(self) -> int:
        """Channels before the first convolution and after the last."""
        return RGB * self.patch_size**2

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels of the encoder's stages, in order."""
        return tuple(self.base_dim * factor for factor in self.dim_mult)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of the decoder's stages, in order."""
        return tuple((self.decoder_base_dim or self.base_dim) * factor for factor in reversed(self.dim_mult))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _all(accepts: Callable[[Any], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, tuple) and len(value) > 0 and all(map(accepts, value))


_COUNT = (_is_count, 'a positive integer')
_CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    'base_dim': _COUNT,
    'z_dim': _COUNT,
    'dim_mult': (_all(_is_count), 'a list of positive integers'),
    'num_res_blocks': _COUNT,
    'temperal_downsample': (_all(lambda value: isinstance(value, bool)), 'a list of true and false'),
    'patch_size': _COUNT,
    'latents_mean': (_all(_is_number), 'a list of numbers'),
    'latents_std': (_all(lambda value: _is_number(value) and value > 0), 'a list of positive numbers'),
    'decoder_base_dim': (lambda value: value is None or _is_count(value), 'a positive integer, or null for base_dim'),
}


def _find_problems(values: Mapping[str, Any], where: str) -> list[Problem]:
    """Faults of single values, then of combinations of those values that are sound by themselves."""
    sound: dict[str, Any] = {}
    problems = []
    for field in fields(AutoencoderConfig):
        name, (accepts, allowed) = field.name, _CHECKS[field.name]
        if name not in values:
            if field.default is MISSING:
                problems.append(Problem(f'{where}: {name}', 'is missing', allowed=allowed))
        elif accepts(values[name]):
            sound[name] = values[name]
        else:
            problems.append(Problem(f'{where}: {name}', 'has a wrong value', _shown(values[name]), allowed))
    return [*problems, *_find_wrong_lengths(sound, where), *_find_uneven_shortcuts(sound, where)]


def _find_wrong_lengths(sound: Mapping[str, Any], where: str) -> list[Problem]:
    channels, stages = sound.get('z_dim'), len(sound.get('dim_mult', ()))
    wanted = {
        'latents_mean': (channels, f'one number for each of z_dim = {channels} channels'),
        'latents_std': (channels, f'one number for each of z_dim = {channels} channels'),
        'temperal_downsample': (stages - 1 if stages else None, f'{stages - 1} values, one less than dim_mult has'),
    }
    return [
        Problem(f'{where}: {name}', 'has the wrong length', f'{len(sound[name])} values', allowed)
        for name, (count, allowed) in wanted.items()
        if count is not None and name in sound and len(sound[name]) != count
    ]


def _find_uneven_shortcuts(sound: Mapping[str, Any], where: str) -> list[Problem]:
    """Stages whose channels cannot be averaged, or repeated, into those of the next."""
    factors, halvings = sound.get('dim_mult'), sound.get('temperal_downsample')
    if factors is None or halvings is None or len(halvings) != len(factors) - 1:
        return []
    down = [4 * (2 if halved else 1) for halved in halvings] + [1]
    pairs = zip((1, *factors), factors, down, strict=False)
    averaged = all(before * cells % after == 0 for before, after, cells in pairs)
    back = tuple(reversed(factors))
    repeated = all(
        after * cells % before == 0
        for before, after, cells in zip((back[0], *back), back, reversed(down[:-1]), strict=False)
    )
    if averaged and repeated:
        return []
    return [Problem(f'{where}: dim_mult', 'has widths that do not divide each other', _shown(factors))]


def _find_unsupported(values: Mapping[str, Any], where: str) -> list[Problem]:
    """Switches whose values this implementation does not have."""
    problems = []
    if values.get('is_residual') is not True:
        what, allowed = 'is not the autoencoder of Cosmos 3', 'true, the residual Wan 2.2 variant'
        problems.append(Problem(f'{where}: is_residual', what, _shown(values.get('is_residual')), allowed))
    if not _is_count(values.get('patch_size')):
        return problems
    channels = RGB * values['patch_size'] ** 2
    return problems + [
        Problem(f'{where}: {name}', 'does not fit patch_size', _shown(values[name]), str(channels))
        for name in ('in_channels', 'out_channels')
        if values.get(name, channels) != channels
    ]


def _shown(value: object) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)
