"""The video autoencoder: what diffusers computes on the same weights; causality, normalisation, pixels, refusals."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanUpsample
from torch import Tensor

from engine.errors import CheckpointError, ObservationError
from engine.network.autoencoder import VideoAutoencoder
from engine.network.autoencoder_config import AutoencoderConfig
from engine.network.vae import VideoVae

CHANNELS = 48
CONFIG: dict[str, Any] = {
    'base_dim': 4,
    'decoder_base_dim': 4,
    'z_dim': CHANNELS,
    'dim_mult': [1, 2, 4, 4],
    'num_res_blocks': 1,
    'temperal_downsample': [False, True, True],
    'is_residual': True,
    'in_channels': 12,
    'out_channels': 12,
    'patch_size': 2,
    'scale_factor_spatial': 16,
    'latents_mean': torch.randn(CHANNELS, generator=torch.Generator().manual_seed(0)).tolist(),
    'latents_std': (0.5 + torch.rand(CHANNELS, generator=torch.Generator().manual_seed(1))).tolist(),
}
VARIANTS: dict[str, dict[str, Any]] = {
    'narrow': {},
    'two blocks a stage, a wider decoder': {'num_res_blocks': 2, 'base_dim': 8, 'decoder_base_dim': 12},
    'three stages, both over time': {'dim_mult': [1, 2, 2], 'temperal_downsample': [True, True]},
    'time halved once, one width for both': {'temperal_downsample': [False, True, False], 'decoder_base_dim': None},
}
# Latents and pixels are of the order of one.
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.05}


def make_reference(dtype: torch.dtype, **changes: object) -> AutoencoderKLWan:
    """A small autoencoder of diffusers, of the checkpoint's own shape, with weights that are not zero anywhere."""
    generator = torch.Generator().manual_seed(0)
    with torch.device('meta'):
        autoencoder = AutoencoderKLWan(**(CONFIG | changes))
    autoencoder = autoencoder.to_empty(device='cpu').requires_grad_(False).eval()
    for name, weight in autoencoder.named_parameters():
        weight.normal_(generator=generator)
        if name.endswith('gamma'):
            weight.mul_(0.1).add_(1)
        else:
            weight.mul_(0.1 if name.endswith('bias') else weight[0].numel() ** -0.5)
    return autoencoder.to(dtype)


def make_autoencoder(dtype: torch.dtype = torch.float64, **changes: object) -> VideoAutoencoder:
    """Ours, with the weights of that reference."""
    autoencoder = VideoAutoencoder(AutoencoderConfig.from_dict(CONFIG | changes)).to(dtype)
    autoencoder.load_state_dict(make_reference(dtype, **changes).state_dict(), strict=True)
    return autoencoder


def make_video(frames: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(3, frames, 32, 48, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)


@pytest.fixture(scope='module')
def vae() -> VideoVae:
    return VideoVae(make_autoencoder())


@pytest.fixture(scope='module')
def video() -> Tensor:
    return make_video(9)


# As diffusers does it


@pytest.mark.parametrize(
    ('variant', 'frames', 'dtype'),
    [
        *((variant, 9, dtype) for variant in VARIANTS for dtype in ROUNDING),
        *(('narrow', frames, torch.float32) for frames in (1, 5, 33)),
    ],
    ids=str,
)
def test_latents_and_pixels_are_those_of_diffusers(
    variant: str, frames: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    # It doubles pictures by way of float32 whatever their type is, which would cost a float64 decoder its digits.
    monkeypatch.setattr(WanUpsample, 'forward', torch.nn.Upsample.forward)
    ours, theirs = make_autoencoder(dtype, **VARIANTS[variant]), make_reference(dtype, **VARIANTS[variant])
    video = make_video(frames, dtype)[None, ..., :16, :]
    with torch.no_grad():
        moments, latent = ours.encode(video), theirs.encode(video).latent_dist
        pixels, wanted = ours.decode(latent.mode()), theirs.decode(latent.mode()).sample
    assert moments.shape == latent.parameters.shape
    assert float(latent.mean.std()) > 0.1
    torch.testing.assert_close(moments[:, :CHANNELS], latent.mean, rtol=0, atol=ROUNDING[dtype])
    torch.testing.assert_close(pixels.clamp(-1, 1), wanted, rtol=0, atol=ROUNDING[dtype])
    assert float(wanted.std()) > 0.1


def test_clips_of_a_batch_do_not_touch(vae: VideoVae, video: Tensor):
    pair = torch.stack([video, -video])
    together = vae.autoencoder.encode(pair)
    for index, clip in enumerate(pair):
        torch.testing.assert_close(vae.autoencoder.encode(clip[None])[0], together[index], rtol=0, atol=1e-12)


def test_gradients_reach_every_weight_and_the_pixels():
    autoencoder, video = make_autoencoder(), make_video(9)[None].requires_grad_()
    decoded = autoencoder.decode(autoencoder.encode(video)[:, :CHANNELS])
    torch.nn.functional.mse_loss(decoded, torch.zeros_like(decoded)).backward()
    without = [name for name, weight in autoencoder.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []
    assert video.grad.abs().sum(dim=(0, 1, 3, 4)).all()


def test_the_configuration_is_written_as_it_was_read():
    config = AutoencoderConfig.from_dict(CONFIG)
    assert AutoencoderConfig.from_dict(config.to_dict()) == config
    assert {key: config.to_dict()[key] for key in CONFIG} == CONFIG


@pytest.mark.parametrize(
    ('changes', 'wrong'),
    [
        ({'dim_mult': 'wide', 'z_dim': 0, 'num_res_blocks': True}, ['z_dim', 'dim_mult', 'num_res_blocks']),
        ({'latents_mean': [0.0], 'latents_std': [0.0] * CHANNELS}, ['latents_std', 'latents_mean']),
        ({'temperal_downsample': [True], 'in_channels': 3}, ['temperal_downsample', 'in_channels']),
        ({'dim_mult': [1, 2, 3, 5]}, ['dim_mult']),
        ({'is_residual': False, 'patch_size': None}, ['patch_size', 'is_residual']),
    ],
)
def test_a_configuration_that_describes_no_autoencoder_is_refused_with_every_fault(
    changes: dict[str, Any], wrong: list[str]
):
    with pytest.raises(CheckpointError) as error:
        AutoencoderConfig.from_dict(CONFIG | changes)
    assert [problem.where for problem in error.value.problems] == [f'vae/config.json: {name}' for name in wrong]


def test_keys_that_are_missing_are_named():
    with pytest.raises(CheckpointError) as error:
        AutoencoderConfig.from_dict({'is_residual': True, 'decoder_base_dim': 4})
    assert {problem.what for problem in error.value.problems} == {'is missing'}
    assert len(error.value.problems) == 8


# The adapter


def test_the_adapter_states_its_compression(vae: VideoVae):
    assert (vae.spatial, vae.temporal, vae.latent_channels) == (16, 4, CHANNELS)


def test_shapes_follow_the_compression(vae: VideoVae, video: Tensor):
    latents = vae.encode(video)
    assert latents.shape == (1, CHANNELS, 3, 2, 3)
    assert vae.encode_frame(video[:, 0]).shape == (1, CHANNELS, 1, 2, 3)
    pixels = vae.decode(latents)
    assert pixels.shape == (9, 32, 48, 3)
    assert pixels.dtype == torch.uint8


def test_one_frame_encodes_to_the_first_latent_of_any_video_that_starts_with_it(vae: VideoVae, video: Tensor):
    first = vae.encode(video)[:, :, :1]
    torch.testing.assert_close(vae.encode(video[:, :1]), first, rtol=0, atol=1e-12)
    torch.testing.assert_close(vae.encode_frame(video[:, 0]), first, rtol=0, atol=1e-12)


def test_a_single_frame_is_encoded_as_well_in_single_precision(video: Tensor):
    vae = VideoVae(make_autoencoder(torch.float32))
    torch.testing.assert_close(vae.encode_frame(video[:, 0]), vae.encode(video)[:, :, :1], rtol=0, atol=2e-5)


def test_latents_depend_on_no_later_frame(vae: VideoVae, video: Tensor):
    latents = vae.encode(video)
    changed = video.clone()
    changed[:, 1:] = -changed[:, 1:]
    assert torch.equal(vae.encode(changed)[:, :, 0], latents[:, :, 0])
    assert not torch.equal(vae.encode(changed)[:, :, 1], latents[:, :, 1])
    changed = video.clone()
    changed[:, 5:] = -changed[:, 5:]
    assert torch.equal(vae.encode(changed)[:, :, :2], latents[:, :, :2])
    torch.testing.assert_close(vae.encode(video[:, :5]), latents[:, :, :2], rtol=0, atol=1e-12)


def test_pixels_depend_on_no_later_latent(vae: VideoVae, video: Tensor):
    latents = vae.encode(video)
    changed = latents.clone()
    changed[:, :, 2:] += 3.0
    before, after = vae.decode(latents), vae.decode(changed)
    assert torch.equal(before[:5], after[:5])
    assert not torch.equal(before[5:], after[5:])


def test_latents_are_the_normalised_mode(vae: VideoVae, video: Tensor):
    config = vae.autoencoder.config
    mode = make_reference(torch.float64).encode(video[None]).latent_dist.mode()
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (config.latents_mean, config.latents_std))
    expected = (mode - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(vae.encode(video), expected, rtol=1e-12, atol=1e-12)


def test_statistics_are_rounded_to_the_autoencoders_type_and_inverted_in_it(video: Tensor):
    autoencoder = make_autoencoder(torch.bfloat16)
    with torch.no_grad():
        mode = autoencoder.encode(video[None].bfloat16())[:, :CHANNELS]
    mean = torch.tensor(autoencoder.config.latents_mean).bfloat16().view(1, -1, 1, 1, 1)
    inverse = 1 / torch.tensor(autoencoder.config.latents_std).bfloat16().view(1, -1, 1, 1, 1)
    latents = VideoVae(autoencoder).encode(video.float())
    assert latents.dtype == torch.float32
    assert torch.equal(latents, ((mode - mean) * inverse).float())


def test_decoded_pixels_are_clamped_and_cut_off(vae: VideoVae):
    latents = 5 * torch.randn(1, CHANNELS, 2, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    std = torch.tensor(vae.autoencoder.config.latents_std, dtype=torch.float64).view(1, -1, 1, 1, 1)
    mean = torch.tensor(vae.autoencoder.config.latents_mean, dtype=torch.float64).view(1, -1, 1, 1, 1)
    decoded = make_reference(torch.float64).decode(latents * std + mean).sample[0]
    expected = ((decoded.float().clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(1, 2, 3, 0)
    pixels = vae.decode(latents)
    assert (pixels.int() - expected.int()).abs().max() <= 1  # a division more or less can move a level
    assert (pixels == expected).float().mean() > 0.999


def test_nothing_tracks_gradients(vae: VideoVae, video: Tensor):
    assert not vae.encode_frame(video[:, 0].clone().requires_grad_()).requires_grad
    assert not vae.encode(video.clone().requires_grad_()).requires_grad


def convolutions(module: torch.nn.Module) -> int:
    return sum(isinstance(part, torch.nn.Conv2d | torch.nn.Conv3d) for part in module.modules())


def test_other_work_can_be_done_before_every_convolution(vae: VideoVae, video: Tensor):
    calls: list[None] = []
    vae.encode(video, lambda: calls.append(None))
    # The first frame passes no convolution over time; the two chunks after it pass all.
    over_time = 2
    encoder = convolutions(vae.autoencoder.encoder) + 1
    assert len(calls) == 3 * encoder - over_time
    latents = vae.encode(video)
    calls.clear()
    vae.decode(latents, lambda: calls.append(None))
    decoder = convolutions(vae.autoencoder.decoder) + 1
    assert len(calls) == 3 * decoder - over_time


def test_clips_may_be_encoded_and_decoded_between_the_convolutions_of_others(vae: VideoVae, video: Tensor):
    latents = vae.encode(video)
    pixels = vae.decode(latents)
    calls = itertools.count()

    def other_work() -> None:
        if next(calls) in (3, 40):
            assert torch.equal(vae.encode(video), latents)
            assert torch.equal(vae.decode(latents), pixels)

    assert torch.equal(vae.encode(video[:, :5], other_work), latents[:, :, :2])
    calls = itertools.count()
    assert torch.equal(vae.decode(latents[:, :, :2], other_work), pixels[:5])


def test_two_threads_may_use_one_autoencoder(vae: VideoVae, video: Tensor):
    wanted = [vae.encode(video), vae.encode(-video)]
    found: dict[int, list[bool]] = {0: [], 1: []}

    def encode(index: int) -> None:
        for _ in range(5):
            found[index].append(torch.equal(vae.encode(video if index == 0 else -video), wanted[index]))

    threads = [threading.Thread(target=encode, args=(index,)) for index in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: [True] * 5, 1: [True] * 5}


def test_a_video_that_does_not_fit_is_refused_with_every_fault(vae: VideoVae):
    with pytest.raises(ObservationError) as error:
        vae.encode(torch.zeros(3, 8, 30, 50, dtype=torch.uint8))
    assert [problem.where for problem in error.value.problems] == ['type', 'height', 'width', 'frames']


def test_a_picture_of_the_wrong_layout_is_refused(vae: VideoVae):
    with pytest.raises(ObservationError, match=r'\[32, 48, 3\]'):
        vae.encode_frame(torch.zeros(32, 48, 3))


def test_latents_of_another_shape_are_refused(vae: VideoVae):
    with pytest.raises(ObservationError, match=r'\[1, 48, T, h, w\]'):
        vae.decode(torch.zeros(1, 16, 2, 2, 2))
