"""Layouts: which tokens exist, which are given, at what rate they happen."""

from __future__ import annotations

import pytest

from engine.errors import InvalidInput
from engine.sequence import (
    ActionItem,
    Layout,
    SoundItem,
    VisionItem,
    forward_dynamics_layout,
    inverse_dynamics_layout,
    latent_frames,
    policy_layout,
    sound_latents,
    text_to_video_layout,
)

DROID = {'chunk': 32, 'height': 33, 'width': 40, 'fps': 15.0, 'domain_id': 8, 'raw_dim': 8}


def test_the_droid_policy_generates_3093_tokens() -> None:
    layout = policy_layout(**DROID, state=True)
    assert layout.vision == VisionItem(9, 33, 40, 15.0, clean=(0,))
    assert layout.vision.grid(2) == (9, 17, 20)
    assert layout.split(2) == (3060, 33, 0)
    assert layout.tokens(2) == 3093


@pytest.mark.parametrize(
    ('state', 'history', 'rows', 'start', 'given'),
    [(False, 0, 32, 1, 0), (True, 0, 33, 0, 1), (True, 3, 36, -3, 4), (False, 3, 35, -2, 3)],
)
def test_state_and_history_are_given_and_shift_the_first_row(
    state: bool, history: int, rows: int, start: int, given: int
) -> None:
    action = policy_layout(**DROID, state=state, history=history).action
    assert action == ActionItem(rows, 8, 8, 15.0, start=start, clean=tuple(range(given)))


def test_forward_dynamics_is_given_all_actions_and_the_first_frame() -> None:
    layout = forward_dynamics_layout(**{**DROID, 'chunk': 16})
    assert layout.vision.frames == 5
    assert layout.vision.clean == (0,)
    assert layout.action.clean == tuple(range(16))
    assert layout.action.start == 1


def test_inverse_dynamics_is_given_all_frames_and_no_action() -> None:
    layout = inverse_dynamics_layout(**{**DROID, 'chunk': 16})
    assert layout.vision.clean == tuple(range(5))
    assert layout.action.clean == ()
    assert layout.action.rows == 16


def test_text_to_video_has_sound_only_if_asked() -> None:
    silent = text_to_video_layout(video_frames=189, height=44, width=80, fps=24.0)
    assert silent.vision.frames == 48
    assert silent.vision.clean == ()
    assert silent.sound is None
    loud = text_to_video_layout(video_frames=189, height=44, width=80, fps=24.0, sound=True)
    assert loud.sound == SoundItem(197)


@pytest.mark.parametrize(('video', 'latent'), [(1, 1), (5, 2), (17, 5), (33, 9), (189, 48)])
def test_four_frames_make_a_latent_after_the_first(video: int, latent: int) -> None:
    assert latent_frames(video) == latent


@pytest.mark.parametrize(('video', 'named'), [(0, 'use 1 or 5'), (2, 'use 1 or 5'), (16, 'use 13 or 17')])
def test_a_clip_without_whole_latents_is_refused_with_its_neighbours(video: int, named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        latent_frames(video)


@pytest.mark.parametrize(
    ('frames', 'fps', 'expected'), [(24, 24.0, 25), (189, 24.0, 197), (1, 24.0, 2), (25, 24.0, 27)]
)
def test_sound_covers_the_whole_clip(frames: int, fps: float, expected: int) -> None:
    assert sound_latents(frames, fps) == expected


def test_an_incomplete_patch_counts_as_one() -> None:
    assert VisionItem(2, 33, 39, 15.0).grid(2) == (2, 17, 20)
    assert VisionItem(2, 33, 39, 15.0).tokens(2) == 680


def test_equal_layouts_are_one_key() -> None:
    assert len({policy_layout(**DROID, state=True), policy_layout(**DROID, state=True)}) == 1


def test_every_fault_of_a_clip_is_named_at_once() -> None:
    with pytest.raises(InvalidInput) as error:
        VisionItem(0, -3, 40, float('nan'), clean=(4, 2))
    assert [p.where for p in error.value.problems] == ['frames', 'height', 'fps', 'clean', 'clean']


def test_every_fault_of_an_action_item_is_named_at_once() -> None:
    with pytest.raises(InvalidInput) as error:
        ActionItem(4, -1, 0, 0.0, clean=(0, 0, 4))
    assert [p.where for p in error.value.problems] == ['raw_dim', 'fps', 'domain_id', 'clean', 'clean']


def test_a_layout_without_vision_and_action_is_refused() -> None:
    with pytest.raises(InvalidInput, match='neither vision nor action'):
        Layout()
    with pytest.raises(InvalidInput, match='sound without vision'):
        Layout(sound=SoundItem(3))


def test_a_chunk_of_no_whole_latents_is_refused() -> None:
    with pytest.raises(InvalidInput, match='4k \\+ 1'):
        policy_layout(**{**DROID, 'chunk': 30}, state=True)


def test_negative_history_is_refused() -> None:
    with pytest.raises(InvalidInput, match='history'):
        policy_layout(**DROID, state=True, history=-1)
