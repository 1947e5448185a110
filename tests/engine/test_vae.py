"""The video autoencoder adapter on a tiny residual autoencoder: causality, normalisation, pixels, refusals."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan

from engine.errors import CheckpointError, ObservationError
from engine.network.vae import VideoVae

CHANNELS = 48


def make_autoencoder(dtype: torch.dtype = torch.float64, **changes: object) -> AutoencoderKLWan:
    """A small autoencoder of the checkpoint's own shape, with weights that are not zero anywhere."""
    generator = torch.Generator().manual_seed(0)
    config = {
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
        'latents_mean': torch.randn(CHANNELS, generator=generator).tolist(),
        'latents_std': (0.5 + torch.rand(CHANNELS, generator=generator)).tolist(),
    } | changes
    autoencoder = AutoencoderKLWan(**config)
    for parameter in autoencoder.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return autoencoder.to(dtype)


@pytest.fixture(scope='module')
def vae() -> VideoVae:
    return VideoVae(make_autoencoder())


@pytest.fixture(scope='module')
def video() -> torch.Tensor:
    return torch.rand(3, 9, 32, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def test_the_adapter_states_its_compression(vae: VideoVae):
    assert (vae.spatial, vae.temporal, vae.latent_channels) == (16, 4, CHANNELS)


def test_shapes_follow_the_compression(vae: VideoVae, video: torch.Tensor):
    latents = vae.encode(video)
    assert latents.shape == (1, CHANNELS, 3, 2, 3)
    assert vae.encode_frame(video[:, 0]).shape == (1, CHANNELS, 1, 2, 3)
    pixels = vae.decode(latents)
    assert pixels.shape == (9, 32, 48, 3)
    assert pixels.dtype == torch.uint8


def test_one_frame_encodes_to_the_first_latent_of_any_video_that_starts_with_it(vae: VideoVae, video: torch.Tensor):
    first = vae.encode(video)[:, :, :1]
    torch.testing.assert_close(vae.encode(video[:, :1]), first, rtol=0, atol=1e-12)
    torch.testing.assert_close(vae.encode_frame(video[:, 0]), first, rtol=0, atol=1e-12)


def test_a_single_frame_is_encoded_as_well_in_single_precision(video: torch.Tensor):
    vae = VideoVae(make_autoencoder(torch.float32))
    torch.testing.assert_close(vae.encode_frame(video[:, 0]), vae.encode(video)[:, :, :1], rtol=0, atol=2e-5)


def test_latents_depend_on_no_later_frame(vae: VideoVae, video: torch.Tensor):
    latents = vae.encode(video)
    changed = video.clone()
    changed[:, 1:] = -changed[:, 1:]
    assert torch.equal(vae.encode(changed)[:, :, 0], latents[:, :, 0])
    assert not torch.equal(vae.encode(changed)[:, :, 1], latents[:, :, 1])
    changed = video.clone()
    changed[:, 5:] = -changed[:, 5:]
    assert torch.equal(vae.encode(changed)[:, :, :2], latents[:, :, :2])
    torch.testing.assert_close(vae.encode(video[:, :5]), latents[:, :, :2], rtol=0, atol=1e-12)


def test_pixels_depend_on_no_later_latent(vae: VideoVae, video: torch.Tensor):
    latents = vae.encode(video)
    changed = latents.clone()
    changed[:, :, 2:] += 3.0
    before, after = vae.decode(latents), vae.decode(changed)
    assert torch.equal(before[:5], after[:5])
    assert not torch.equal(before[5:], after[5:])


def test_latents_are_the_normalised_mode(vae: VideoVae, video: torch.Tensor):
    config = vae.autoencoder.config
    with torch.no_grad():
        mode = vae.autoencoder.encode(video[None]).latent_dist.mode()
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (config.latents_mean, config.latents_std))
    expected = (mode - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(vae.encode(video), expected, rtol=1e-12, atol=1e-12)


def test_statistics_are_rounded_to_the_autoencoders_type_and_inverted_in_it(video: torch.Tensor):
    autoencoder = make_autoencoder(torch.bfloat16)
    with torch.no_grad():
        mode = autoencoder.encode(video[None].bfloat16()).latent_dist.mode()
    mean = torch.tensor(autoencoder.config.latents_mean).bfloat16().view(1, -1, 1, 1, 1)
    inverse = 1 / torch.tensor(autoencoder.config.latents_std).bfloat16().view(1, -1, 1, 1, 1)
    latents = VideoVae(autoencoder).encode(video.float())
    assert latents.dtype == torch.float32
    assert torch.equal(latents, ((mode - mean) * inverse).float())


def test_decoded_pixels_are_clamped_and_cut_off(vae: VideoVae):
    latents = 5 * torch.randn(1, CHANNELS, 2, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    std = torch.tensor(vae.autoencoder.config.latents_std, dtype=torch.float64).view(1, -1, 1, 1, 1)
    mean = torch.tensor(vae.autoencoder.config.latents_mean, dtype=torch.float64).view(1, -1, 1, 1, 1)
    with torch.no_grad():
        decoded = vae.autoencoder.decode(latents * std + mean).sample[0]
    expected = ((decoded.float().clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(1, 2, 3, 0)
    pixels = vae.decode(latents)
    assert (pixels.int() - expected.int()).abs().max() <= 1  # a division more or less can move a level
    assert (pixels == expected).float().mean() > 0.999


def test_nothing_tracks_gradients(vae: VideoVae, video: torch.Tensor):
    assert not vae.encode_frame(video[:, 0].clone().requires_grad_()).requires_grad
    assert not vae.encode(video.clone().requires_grad_()).requires_grad


def test_the_single_frame_encoder_copies_no_weights(vae: VideoVae):
    originals = {id(parameter) for parameter in vae.autoencoder.parameters()}
    twins = list(vae.frame_encoder.parameters())
    assert twins
    assert all(id(parameter) in originals for parameter in twins)


def test_no_feature_maps_outlive_a_call(vae: VideoVae, video: torch.Tensor, monkeypatch: pytest.MonkeyPatch):
    latents = vae.encode(video)
    vae.decode(latents)
    assert all(entry is None for entry in vae.autoencoder._enc_feat_map + vae.autoencoder._feat_map)

    def out_of_memory(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError('injected after the encoder has filled its maps')

    monkeypatch.setattr(vae.autoencoder.quant_conv, 'forward', out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        vae.encode(video)
    assert all(entry is None for entry in vae.autoencoder._enc_feat_map)


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


def test_an_autoencoder_of_another_variant_is_refused():
    with pytest.raises(CheckpointError) as error:
        VideoVae(AutoencoderKLWan(base_dim=4, num_res_blocks=1, latents_std=[1.0]))
    assert [problem.where for problem in error.value.problems] == ['latents_std', 'variant']
