"""Positions to the last bit: the values the published networks were trained with."""

from __future__ import annotations

import pytest
import torch

from engine.network.config import TransformerConfig
from engine.network.rope import (
    action_positions,
    generation_offset,
    layout_positions,
    rotary,
    sound_positions,
    text_positions,
    vision_positions,
)
from engine.sequence import ActionItem, Layout, SoundItem, VisionItem, policy_layout

OFFSET = 15150  # 150 text tokens and the margin

# Measured on cosmos-framework and diffusers 0.42, which agree bit for bit.
VISION_15_FPS = [
    15150.0,
    15151.599609375,
    15153.2001953125,
    15154.7998046875,
    15156.400390625,
    15158.0,
    15159.599609375,
    15161.2001953125,
    15162.7998046875,
]
ACTION_15_FPS = [15150.0, 15150.400390625, 15150.7998046875, 15151.2001953125, 15151.599609375, 15152.0]
ACTION_5_FPS = [15151.2001953125, 15152.400390625]
SOUND = [15150.0, 15150.9599609375, 15151.919921875]


def test_text_counts_up_on_all_three_axes() -> None:
    positions = text_positions(4)
    assert positions.dtype == torch.float32
    assert positions.tolist() == [[0.0, 1.0, 2.0, 3.0]] * 3


def test_generation_starts_15000_after_the_text() -> None:
    assert generation_offset(150, TransformerConfig.NANO) == OFFSET


def test_a_policy_clip_at_15_fps_has_the_published_positions() -> None:
    positions = vision_positions(VisionItem(9, 33, 40, 15.0), 2, OFFSET)
    assert positions.dtype == torch.float32
    assert positions.shape == (3, 9 * 17 * 20)
    time, row, column = positions.view(3, 9, 17, 20)
    assert time[:, 0, 0].tolist() == VISION_15_FPS
    assert torch.equal(time, time[:, :1, :1].expand(9, 17, 20))
    assert row[3, :, 7].tolist() == list(range(17))
    assert column[8, 16].tolist() == list(range(20))


def test_a_clip_at_5_fps_has_the_published_positions() -> None:
    time = vision_positions(VisionItem(5, 2, 2, 5), 2, OFFSET)[0]
    assert [round(t, 4) for t in time.tolist()] == [15150.0, 15154.7998, 15159.5996, 15164.4004, 15169.2002]


def test_the_order_of_operations_decides_the_last_bit() -> None:
    time = vision_positions(VisionItem(26, 2, 2, 29.97), 2, OFFSET)[0]
    assert time[25].item() == 15170.0205078125, 'multiplying by one ratio instead gives 15170.01953125'


def test_actions_after_a_state_row_have_the_published_positions() -> None:
    positions = action_positions(ActionItem(33, 8, 8, 15.0, start=0, clean=(0,)), OFFSET)
    assert positions.dtype == torch.float32
    assert positions[0, :6].tolist() == ACTION_15_FPS
    assert positions[0, -1].item() == VISION_15_FPS[-1], 'the last row sits where the last latent frame does'
    assert not positions[1:].any()


def test_actions_without_a_state_row_have_the_published_positions() -> None:
    time = action_positions(ActionItem(16, 7, 10, 5), OFFSET)[0]
    assert time[:2].tolist() == ACTION_5_FPS
    assert time[-1].item() == 15169.2001953125


def test_every_fourth_action_sits_on_a_latent_frame() -> None:
    layout = policy_layout(chunk=32, height=2, width=2, fps=15.0, domain_id=8, raw_dim=8, state=True)
    frames = vision_positions(layout.vision, 2, OFFSET)[0]
    rows = action_positions(layout.action, OFFSET)[0]
    assert torch.equal(rows[::4], frames)


def test_sound_runs_at_24_units_a_second() -> None:
    positions = sound_positions(SoundItem(50), OFFSET)
    assert positions[0, :3].tolist() == SOUND
    assert positions[0, 49].item() == 15197.0400390625
    assert not positions[1:].any()


def test_history_reaches_back_before_the_first_frame() -> None:
    time = action_positions(ActionItem(4, 8, 8, 24.0, start=-2), OFFSET)[0]
    assert time.tolist() == [15149.5, 15149.75, 15150.0, 15150.25]


def test_one_frame_sits_at_the_offset_whatever_its_rate() -> None:
    for fps in (5.0, 15.0, 24.0):
        assert vision_positions(VisionItem(1, 2, 2, fps), 2, OFFSET).tolist() == [[OFFSET], [0.0], [0.0]]


def test_a_layout_is_packed_vision_action_sound() -> None:
    vision, action, sound = VisionItem(3, 3, 4, 15.0), ActionItem(8, 8, 8, 15.0), SoundItem(5)
    positions = layout_positions(Layout(vision, action, sound), 150, TransformerConfig.NANO)
    parts = [vision_positions(vision, 2, OFFSET), action_positions(action, OFFSET), sound_positions(sound, OFFSET)]
    assert torch.equal(positions, torch.cat(parts, dim=1))


@pytest.mark.parametrize('config', [TransformerConfig.NANO, TransformerConfig.EDGE], ids=['nano', 'edge'])
def test_frequencies_are_interleaved_and_time_takes_the_rest(config: TransformerConfig) -> None:
    angles = {}
    for axis in range(3):
        positions = torch.zeros(3, 1)
        positions[axis] = 1.0
        _, sin = rotary(positions, config, torch.float32)
        angles[axis] = {k for k in range(64) if sin[0, k] != 0}
        assert torch.equal(sin[0, :64], sin[0, 64:])
    assert angles[1] == set(range(1, 59, 3))
    assert angles[2] == set(range(2, 60, 3))
    assert angles[0] == set(range(64)) - angles[1] - angles[2]


def test_frequencies_fall_geometrically_from_one() -> None:
    positions = torch.zeros(3, 1)
    positions[0] = 1.0
    _, sin = rotary(positions, TransformerConfig.NANO, torch.float32)
    for k in (0, 3, 30, 63):
        assert sin[0, k].item() == pytest.approx(torch.sin(torch.tensor(5e6 ** (-2 * k / 128))).item(), rel=1e-6)


def test_angles_are_float32_even_in_a_float64_model() -> None:
    positions = layout_positions(Layout(VisionItem(3, 2, 2, 15.0)), 7, TransformerConfig.NANO)
    single, double = (rotary(positions, TransformerConfig.NANO, d)[0] for d in (torch.float32, torch.float64))
    assert double.dtype == torch.float64
    assert torch.equal(single.double(), double)
