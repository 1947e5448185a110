"""Batches hold what the policy and dynamics would be given, and what they are to make of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.errors import InvalidInput
from engine.network.heads import patchify
from engine.policy import canvas_of, policy_codec
from engine.training.answers import Answers
from engine.training.examples import Examples, cut, row_statistics

LENGTH = 40  # frames of every episode


def test_rows_of_a_chunk_decode_to_the_commands_that_followed(examples, numbers, small_contract):
    frames = np.array([50, 79, 100])
    rows = examples.chunks(frames)
    of = policy_codec(small_contract)
    for frame, row in zip(frames, rows, strict=True):
        np.testing.assert_allclose(row[0], of.encode_state(numbers.joints[frame], numbers.gripper[frame]))
        decoded = of.decode(row[1:], numbers.joints[frame])
        last = (frame // LENGTH + 1) * LENGTH - 1
        after = np.minimum(frame + np.arange(16), last)
        np.testing.assert_allclose(decoded.joint_positions, numbers.commanded[after], atol=1e-12)
        np.testing.assert_allclose(decoded.gripper, numbers.commanded_gripper[after], atol=1e-12)


def test_latents_are_cut_as_the_network_cuts_them():
    latents = np.random.default_rng(1).standard_normal((3, 48, 5, 5, 7)).astype(np.float16)
    for one, tokens in zip(latents, cut(latents, 2), strict=True):
        expected = patchify(torch.from_numpy(one.astype(np.float32))[None], 2)
        np.testing.assert_array_equal(tokens, expected.numpy())


def test_windows_in_which_something_else_moved_the_arm_teach_the_policy_nothing(examples, numbers):
    for held_out in (False, True):
        for frame in examples.windows('action', held_out=held_out):
            last = (frame // LENGTH + 1) * LENGTH - 1
            assert not numbers.disturbed[frame : min(frame + 16, last + 1)].any()


def test_windows_begin_where_a_picture_was_encoded(examples, numbers, small_contract, fresh_checkpoint):
    few = Examples(
        replace(numbers, first=numbers.first[::3], every=3), small_contract, fresh_checkpoint.load_tokenizer()
    )
    windows = few.windows('action')
    assert set(windows.tolist()) == {frame for frame in examples.windows('action').tolist() if frame % 3 == 0}
    seen = few.batch('action', windows[:5]).vision
    torch.testing.assert_close(seen, examples.batch('action', windows[:5]).vision)


def test_episodes_for_validation_are_not_trained_on(examples, numbers):
    for task in ('action', 'policy', 'forward', 'inverse'):
        episodes = []
        for held_out in (False, True):
            windows = examples.windows(task, held_out=held_out)
            frames = windows if task == 'action' else numbers.starts[windows]
            episodes.append(set(numbers.episode[frames].tolist()))
        assert all(episodes)
        assert not episodes[0] & episodes[1]


@pytest.mark.parametrize(('task', 'clean_frames', 'clean_rows'), [
    ('action', (0,), (0,)),
    ('policy', (0,), (0,)),
    ('forward', (0,), tuple(range(16))),
    ('inverse', (0, 1, 2, 3, 4), ()),
])  # fmt: skip
def test_what_is_given_is_a_matter_of_the_task(examples, task, clean_frames, clean_rows):
    batch = examples.draw(task, 5, np.random.default_rng(2), captions=2)
    assert batch.layout.vision.clean == clean_frames
    assert batch.layout.action.clean == clean_rows
    assert batch.vision.shape == (5, batch.layout.vision.tokens(2), 192)
    assert batch.action.shape == (5, batch.layout.action.rows, 64)
    assert not batch.action[..., batch.layout.action.raw_dim :].any()


def test_rows_that_are_being_executed_can_be_given_too(examples):
    layout = examples.draw('policy', 2, np.random.default_rng(2), committed=3).layout
    assert layout.action.clean == (0, 1, 2, 3)


def test_some_sequences_are_not_told_what_is_asked_for(examples):
    batch = examples.draw('action', 64, np.random.default_rng(3), condition_dropout=0.5)
    empty = [k for k, ids in enumerate(batch.ids) if ids == examples._no_ids]
    assert len(empty) == 1
    assert 16 < int((batch.which == empty[0]).sum()) < 48
    assert len(batch.ids) == 3


def test_statistics_are_those_of_the_rows_as_they_are_written(numbers, small_contract):
    found = dict(row_statistics(numbers, small_contract))
    offsets, states = found['statistics'], found['state_statistics']
    np.testing.assert_allclose(offsets['mean'][:7], 0.0, atol=0.02)
    np.testing.assert_allclose(offsets['std'][:7], 0.15, atol=0.005)
    np.testing.assert_allclose(states['std'][:7], 0.02)  # hardly moved: the floor
    assert offsets['std'][7] == pytest.approx(0.49, abs=0.03)
    assert states['mean'][7] == 1.0  # open


def test_latents_of_another_picture_size_are_refused(numbers, small_contract, fresh_checkpoint):
    wrong = replace(numbers, first=numbers.first[..., :2])
    with pytest.raises(InvalidInput, match='latents: have another size than the contract'):
        Examples(wrong, small_contract, fresh_checkpoint.load_tokenizer())


def test_beginnings_of_episodes_can_be_drawn_more_often(numbers, small_contract, fresh_checkpoint):
    calm = replace(numbers, disturbed=np.zeros(len(numbers.episode), bool))
    examples = Examples(calm, small_contract, fresh_checkpoint.load_tokenizer())
    rng = np.random.default_rng(4)
    drawn = {share: examples.draw('action', 64, rng, beginnings=share, beginning_rows=4) for share in (0.0, 1.0)}
    # In these recordings the gripper is told to close after twenty rows, which no window from the beginning reaches.
    told = {share: batch.action[:, 1:, 7] for share, batch in drawn.items()}
    assert len(torch.unique(told[1.0])) == 1
    assert len(torch.unique(told[0.0])) == 2


def test_tokens_of_pictures_can_be_hidden_from_sequences_that_learn_actions(examples):
    whole = examples.draw('action', 256, np.random.default_rng(5)).vision
    shown = examples.draw('action', 256, np.random.default_rng(5), hidden=0.5).vision
    blank = (shown == 0).all(dim=-1)
    torch.testing.assert_close(shown[~blank], whole[~blank])
    share = blank[(whole != 0).any(dim=-1).all(dim=-1)].float().mean(dim=1)
    assert 0.15 < float(share.mean()) < 0.35
    assert float(share.max()) > float(share.min())


def test_what_follows_a_disturbance_is_a_beginning_too(numbers, small_contract, fresh_checkpoint):
    frames, disturbed = np.arange(len(numbers.episode)), np.zeros(len(numbers.episode), bool)
    disturbed[[LENGTH + 3, LENGTH + 4, 2 * LENGTH + 10]] = True
    pushed = Examples(replace(numbers, disturbed=disturbed), small_contract, fresh_checkpoint.load_tokenizer())
    found = {int(frame) for held in (False, True) for frame in pushed.beginnings('action', 4, held_out=held)}
    wanted = {frame for frame in frames.tolist() if frame % LENGTH < 4} - set(range(LENGTH, LENGTH + 4))
    wanted |= {LENGTH + 5 + k for k in range(4)} | {2 * LENGTH + 11 + k for k in range(4)}
    assert found == {frame for frame in wanted if not disturbed[frame : frame + 16].any()}
    plain = {
        int(one) for held in (False, True) for one in pushed.beginnings('action', 4, held_out=held, disturbed=False)
    }
    assert plain == {frame for frame in found if frame % LENGTH < 4}


def test_a_recording_that_ends_in_motion_says_nothing_of_what_comes_after(examples):
    for frame in (*examples.windows('action'), *examples.windows('action', held_out=True)):
        assert frame % LENGTH + 16 <= LENGTH


def test_one_that_ends_at_rest_does(numbers, small_contract, fresh_checkpoint):
    still = replace(numbers, commanded=np.zeros_like(numbers.commanded), joints=np.zeros_like(numbers.joints))
    found = Examples(still, small_contract, fresh_checkpoint.load_tokenizer())
    assert LENGTH - 1 in found.windows('action') % LENGTH


def test_recordings_without_poses_teach_a_policy_and_no_dynamics(numbers, small_contract, fresh_checkpoint):
    blind = replace(numbers, position=np.full_like(numbers.position, np.nan))
    found = Examples(blind, small_contract, fresh_checkpoint.load_tokenizer())
    assert len(found.windows('action'))
    assert not len(found.windows('forward'))


def test_clips_that_are_too_short_are_refused_with_what_to_do(numbers, small_contract, fresh_checkpoint):
    short = replace(numbers, clips=numbers.clips[:, :, :4])
    with pytest.raises(InvalidInput, match=r'clips: are too short, got 4 latents, allowed: 5 -> .*--frames 17'):
        Examples(short, small_contract, fresh_checkpoint.load_tokenizer())


def test_the_gripper_of_the_last_frame_is_where_it_was_told_to_be(examples, numbers):
    rows = examples.motions(np.array([len(numbers.episode) - 1, LENGTH - 1]))
    np.testing.assert_allclose(rows[..., :9], np.broadcast_to(examples.rest[:9], rows[..., :9].shape), atol=1e-9)
    assert (rows[..., 9] != examples.rest[9]).all()


def test_dynamics_are_told_what_they_are_told_when_they_are_run(examples, small_contract, fresh_checkpoint):
    import engine

    dynamics = engine.load(fresh_checkpoint.root, backend='torch').dynamics(small_contract)
    caption = dynamics.caption('go up', canvas_of(small_contract))
    batch = examples.batch('forward', examples.windows('forward')[:1])
    assert batch.ids == (tuple(fresh_checkpoint.load_tokenizer().encode(caption)),)


def answers_to(numbers, frames, texts=('go there', 'go elsewhere')):
    rng = np.random.default_rng(6)
    joints = numbers.joints[frames][:, None] + rng.normal(0, 0.2, (len(frames), 16, 7))
    text = np.arange(len(frames)) % len(texts)
    gripper = rng.integers(2, size=(len(frames), 16))
    return Answers(frames, text, joints.astype(np.float32), gripper.astype(np.float32), texts, 'one', 'two')


def test_answers_show_a_recorded_picture_and_the_chunk_that_was_asked_for(numbers, small_contract, fresh_checkpoint):
    tokenizer = fresh_checkpoint.load_tokenizer()
    frames = np.arange(0, len(numbers.episode), 5)
    answers = answers_to(numbers, frames)
    examples = Examples(replace(numbers, answers=answers), small_contract, tokenizer)
    some = examples.windows('answers')[[1, 4, 8]]
    batch = examples.batch('action', some[:0], answers=some)
    of = policy_codec(small_contract)
    for one, rows, which in zip(some, batch.action.double().numpy(), batch.which, strict=True):
        decoded = of.decode(rows[1:, :8], numbers.joints[frames[one]])
        np.testing.assert_allclose(decoded.joint_positions, answers.joints[one], atol=1e-5)
        np.testing.assert_allclose(decoded.gripper, answers.gripper[one], atol=1e-5)
        state = of.encode_state(numbers.joints[frames[one]], numbers.gripper[frames[one]])
        np.testing.assert_allclose(rows[0, :8], state, atol=1e-5)
        assert batch.ids[int(which)] == examples._ids_of_answers[answers.text[one]]
    shown = examples.batch('action', frames[some]).vision
    torch.testing.assert_close(batch.vision, shown)


def test_as_many_sequences_are_answers_as_the_recipe_says(numbers, small_contract, fresh_checkpoint):
    tokenizer = fresh_checkpoint.load_tokenizer()
    frames = np.arange(0, len(numbers.episode), 5)
    examples = Examples(replace(numbers, answers=answers_to(numbers, frames)), small_contract, tokenizer)
    asked = set(examples._ids_of_answers)

    def share(answers, task='action'):
        batch = examples.draw(task, 400, np.random.default_rng(7), answers=answers)
        return np.mean([batch.ids[int(which)] in asked for which in batch.which])

    assert share(0.0) == 0.0
    assert 0.2 < share(0.3) < 0.4
    assert share(1.0) == 1.0
    assert share(1.0, 'policy') == 0.0, 'no video was recorded of what was not done'
    given = examples.draw('action', 50, np.random.default_rng(7), answers=1.0, committed=2)
    assert not asked & set(given.ids), 'rows that are given would say where it leads'
    plain = Examples(numbers, small_contract, tokenizer)
    torch.testing.assert_close(
        plain.draw('action', 8, np.random.default_rng(8), answers=0.5).action,
        plain.draw('action', 8, np.random.default_rng(8)).action,
    )


def test_answers_are_kept_for_validation_with_their_episodes(numbers, small_contract, fresh_checkpoint):
    frames = np.arange(0, len(numbers.episode), 5)
    examples = Examples(
        replace(numbers, answers=answers_to(numbers, frames)), small_contract, fresh_checkpoint.load_tokenizer()
    )
    episodes = [set(numbers.episode[frames[examples.windows('answers', held_out=held)]].tolist()) for held in (0, 1)]
    assert all(episodes)
    assert not episodes[0] & episodes[1]


def test_answers_that_do_not_fit_are_refused(numbers, small_contract, fresh_checkpoint):
    tokenizer = fresh_checkpoint.load_tokenizer()
    answers = answers_to(numbers, np.arange(0, 40, 5))
    short = replace(numbers, answers=replace(answers, joints=answers.joints[:, :4], gripper=answers.gripper[:, :4]))
    with pytest.raises(InvalidInput, match='answers: are not chunks of the contract'):
        Examples(short, small_contract, tokenizer)
    few = replace(numbers, first=numbers.first[::3], every=3, answers=answers)
    with pytest.raises(InvalidInput, match='answers: are to pictures that are not encoded'):
        Examples(few, small_contract, tokenizer)
