"""From pictures and joint states to a chunk of actions, on the tiny checkpoint."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import engine
from engine.actions import Poses, framewise_deltas, quaternion_to_matrix
from engine.contract import with_preset
from engine.errors import ObservationError
from engine.policy import Policy, layout_of
from engine.runtime import Cancelled, Runtime
from engine.sampler import framework_noise, request_seeds

Observe = Callable[..., engine.Observation]

ROUNDING = 5e-5
"""Of float32 over four steps; values are of the order of 1, the largest differences seen of 3e-5."""


@pytest.fixture(scope='session')
def policy(model: engine.Cosmos3, demo_contract: engine.Contract) -> Policy:
    return model.policy(demo_contract)


@pytest.fixture(scope='session')
def chunk(policy: Policy, observe: Observe) -> engine.PolicyChunk:
    return policy.infer(observe(), seed=3)


def watched(model: engine.Cosmos3, backend: Any, contract: engine.Contract) -> Policy:
    """A policy of the model's weights whose network keeps a record."""
    return Policy(Runtime(backend, model.runtime.vae, model.runtime.tokenizer), contract)


def in_the_256_tier(contract: engine.Contract, **embodiment: Any) -> engine.Contract:
    return replace(
        contract,
        views=replace(contract.views, size=(256, 304)),
        timing=replace(contract.timing, resolution_tier=256),
        embodiment=replace(contract.embodiment, **embodiment),
    )


def same(one: engine.PolicyChunk, other: engine.PolicyChunk) -> bool:
    return np.array_equal(one.actions, other.actions) and torch.equal(one.latents, other.latents)


# ---------------------------------------------------------------------------------------------- what comes back


def test_a_chunk_is_rows_of_joint_targets_and_the_latents_of_the_imagined_video(chunk: engine.PolicyChunk) -> None:
    assert (chunk.actions.shape, chunk.actions.dtype) == ((32, 8), np.float32)
    assert (chunk.latents.shape, chunk.latents.dtype) == ((1, 48, 9, 16, 19), torch.float32)
    assert np.isfinite(chunk.actions).all()
    assert torch.isfinite(chunk.latents).all()
    assert (chunk.seed, chunk.instruction) == (3, 'Pick up the red cube and put it in the bowl')


def test_a_chunk_tells_the_time_of_each_stage_of_its_making(chunk: engine.PolicyChunk) -> None:
    stages = ('wait', 'compose', 'encode', 'noise', 'prefix', 'denoise', 'decode')
    assert set(chunk.seconds) == {*stages, 'total'}
    assert all(seconds > 0 for seconds in chunk.seconds.values())
    assert sum(chunk.seconds[stage] for stage in stages) <= chunk.seconds['total']


def test_the_released_policys_contract_yields_its_shapes(model: engine.Cosmos3, observe: Observe) -> None:
    policy = model.policy(engine.load_contract('droid_joint_pos'))
    assert policy.layout.split(2) == (3060, 33, 0)
    chunk = policy.infer(observe())
    assert chunk.actions.shape == (32, 8)
    assert chunk.latents.shape == (1, 48, 9, 33, 40)


def test_the_same_seed_gives_the_same_chunk(policy: Policy, observe: Observe, chunk: engine.PolicyChunk) -> None:
    assert same(policy.infer(observe(), seed=3), chunk)


def test_another_seed_gives_another_chunk(policy: Policy, observe: Observe, chunk: engine.PolicyChunk) -> None:
    other = policy.infer(observe(), seed=4)
    assert float(np.abs(other.actions - chunk.actions).max()) > 1e-3


def test_a_loaded_checkpoint_gives_the_same_chunk_every_time_it_is_loaded(
    tiny_checkpoint: Path, demo_contract: engine.Contract, observe: Observe, chunk: engine.PolicyChunk
) -> None:
    assert same(engine.load(tiny_checkpoint).policy(demo_contract).infer(observe(), seed=3), chunk)


def test_another_picture_gives_another_chunk(policy: Policy, observe: Observe, chunk: engine.PolicyChunk) -> None:
    for name in observe().images:
        images = dict(observe().images) | {name: np.zeros((180, 320, 3), np.uint8)}
        assert not torch.equal(policy.infer(observe(images=images), seed=3).latents, chunk.latents)


def test_the_order_in_which_pictures_are_given_means_nothing(
    policy: Policy, observe: Observe, chunk: engine.PolicyChunk
) -> None:
    images = observe().images
    backwards = {name: images[name] for name in reversed(images)}
    assert same(policy.infer(observe(images=backwards), seed=3), chunk)


def test_pictures_nobody_asked_for_are_ignored(policy: Policy, observe: Observe, chunk: engine.PolicyChunk) -> None:
    images = dict(observe().images) | {'ceiling': np.zeros((4, 4, 3), np.uint8)}
    assert same(policy.infer(observe(images=images), seed=3), chunk)


def test_an_observation_is_left_as_it_was(policy: Policy, observe: Observe) -> None:
    given, kept = observe(), observe()
    policy.infer(given)
    assert all(np.array_equal(given.images[name], kept.images[name]) for name in kept.images)
    assert np.array_equal(given.joint_positions, kept.joint_positions)


def test_the_imagined_video_has_the_contracts_frames_and_shows_the_observation_first(
    policy: Policy, observe: Observe, chunk: engine.PolicyChunk
) -> None:
    video = policy.imagined_video(chunk)
    assert (video.shape, video.dtype) == ((33, 256, 304, 3), np.uint8)
    # The tiny autoencoder draws no likeness; that frame 0 comes from the observation shows in what its latents are.
    vae = policy.runtime.vae
    picture = torch.from_numpy(np.pad(policy.composite(observe()), ((0, 0), (0, 16), (0, 0)), mode='reflect'))
    encoded = vae.encode_frame(picture.permute(2, 0, 1).float() / 127.5 - 1)
    assert torch.equal(chunk.latents[:, :, :1], encoded[..., :16, :19])


# ---------------------------------------------------------------------------------------------- state and gripper


def test_a_chunk_starts_near_the_measured_state_and_follows_it(policy: Policy, observe: Observe) -> None:
    for offset in (0.0, 0.2):
        measured = observe().joint_positions + offset
        chunk = policy.infer(observe(joint_positions=measured))
        assert float(np.abs(chunk.actions[0, :7] - measured).max()) < 0.05
        assert float(np.abs(np.diff(chunk.actions[:, :7], axis=0)).max()) < 0.1


def test_the_measured_state_reaches_the_network_unchanged_in_every_step(
    model: engine.Cosmos3, backend: Any, demo_contract: engine.Contract, observe: Observe
) -> None:
    policy = watched(model, backend, demo_contract)
    observation = observe()
    policy.infer(observation)
    expected = np.zeros(64, np.float32)
    expected[:7], expected[7] = observation.joint_positions, 1 - observation.gripper_position
    assert len(backend.actions) == 8
    assert all(np.array_equal(seen[0].numpy(), expected) for seen in backend.actions)


@pytest.mark.parametrize(('measured', 'inside'), [(0.0, 1.0), (1.0, 0.0)])
def test_an_open_gripper_is_0_outside_and_1_inside_the_model(
    model: engine.Cosmos3,
    backend: Any,
    demo_contract: engine.Contract,
    observe: Observe,
    measured: float,
    inside: float,
) -> None:
    policy = watched(model, backend, demo_contract)
    chunk = policy.infer(observe(gripper_position=measured))
    assert float(backend.actions[0][0, 7]) == inside
    assert abs(float(chunk.actions[0, 7]) - measured) < 0.1


def test_history_rows_come_before_the_state_and_never_go_out_again(
    model: engine.Cosmos3, backend: Any, demo_contract: engine.Contract, observe: Observe
) -> None:
    contract = replace(demo_contract, embodiment=replace(demo_contract.embodiment, history_rows=2))
    policy = watched(model, backend, contract)
    rows = observe().joint_positions + np.array([[-0.02], [-0.01], [0.0]])
    chunk = policy.infer(observe(joint_positions=rows, gripper_position=np.array([0.0, 0.5, 1.0])))
    assert backend.actions[0].shape == (35, 64)
    np.testing.assert_array_equal(backend.actions[0][:3, :7].numpy(), rows.astype(np.float32))
    np.testing.assert_array_equal(backend.actions[0][:3, 7].numpy(), [1.0, 0.5, 0.0])
    assert chunk.actions.shape == (32, 8)


def test_one_row_may_come_with_or_without_its_first_dimension(
    policy: Policy, observe: Observe, chunk: engine.PolicyChunk
) -> None:
    single = observe(joint_positions=observe().joint_positions[None], gripper_position=np.array([0.25]))
    assert same(policy.infer(single, seed=3), chunk)


# ---------------------------------------------------------------------------------------------- end-effector deltas


@pytest.fixture(scope='session')
def pose_contract() -> engine.Contract:
    return in_the_256_tier(engine.load_contract('droid_ee_delta'))


def test_end_effector_chunks_are_poses_that_set_out_from_the_measured_one(
    model: engine.Cosmos3, pose_contract: engine.Contract, observe: Observe
) -> None:
    policy = model.policy(pose_contract)
    here = observe()
    chunk = policy.infer(here)
    assert (chunk.actions.shape, chunk.actions.dtype) == ((32, 8), np.float32)
    np.testing.assert_allclose(np.linalg.norm(chunk.actions[:, 3:7], axis=1), 1.0, atol=1e-6)

    # Deltas are relative, so a start elsewhere must give the same motion as seen from there. What differs is only what
    # the network makes of the other state row; hiding that row leaves nothing.
    blind = model.policy(in_the_256_tier(pose_contract, state_row=False))
    turn = np.array([0.0, np.sin(0.4), 0.0, np.cos(0.4)])
    there = observe(end_effector_position=np.array([0.2, 0.3, 0.5]), end_effector_quaternion=turn)
    motions = [relative(blind.infer(o, seed=5).actions, o) for o in (here, there)]
    np.testing.assert_allclose(motions[0].position, motions[1].position, atol=1e-5)
    np.testing.assert_allclose(motions[0].rotation, motions[1].rotation, atol=1e-5)


def relative(actions: np.ndarray, start: engine.Observation) -> Poses:
    """Poses of a chunk as seen from the measured one."""
    turn = quaternion_to_matrix(start.end_effector_quaternion)
    position = (actions[:, :3] - start.end_effector_position) @ turn
    return Poses(position, turn.T @ quaternion_to_matrix(actions[:, 3:7]))


def test_a_pose_is_needed_even_where_the_network_does_not_see_it(
    model: engine.Cosmos3, pose_contract: engine.Contract, observe: Observe
) -> None:
    blind = model.policy(in_the_256_tier(pose_contract, state_row=False))
    with pytest.raises(ObservationError) as caught:
        blind.infer(observe(end_effector_position=None, end_effector_quaternion=np.zeros(3)))
    assert [p.where for p in caught.value.problems] == ['end_effector_position', 'end_effector_quaternion']


def test_an_orientation_without_length_is_refused(
    model: engine.Cosmos3, pose_contract: engine.Contract, observe: Observe
) -> None:
    with pytest.raises(ObservationError, match='quaternion'):
        model.policy(pose_contract).infer(observe(end_effector_quaternion=np.zeros(4)))


# ---------------------------------------------------------------------------------------------- committed rows


def test_committed_rows_come_back_as_they_were_given_and_the_others_continue_them(
    policy: Policy, observe: Observe, chunk: engine.PolicyChunk
) -> None:
    committed = chunk.actions[:6].astype(np.float64) + 0.03
    continued = policy.infer(observe(), seed=3, committed=committed)
    np.testing.assert_allclose(continued.actions[:6], committed, atol=1e-6)
    assert continued.actions.shape == chunk.actions.shape
    assert not np.array_equal(continued.actions[6:], chunk.actions[6:]), 'the network sees what is committed'


def test_committed_rows_reach_the_network_as_clean_tokens_behind_the_state_in_every_step(
    model: engine.Cosmos3, backend: Any, demo_contract: engine.Contract, observe: Observe
) -> None:
    policy = watched(model, backend, demo_contract)
    rows = np.column_stack([observe().joint_positions + np.linspace(0.01, 0.03, 3)[:, None], [0.0, 0.5, 1.0]])
    policy.infer(observe(), committed=rows)
    expected = np.column_stack([rows[:, :7], 1 - rows[:, 7]]).astype(np.float32)
    assert len(backend.actions) == 8
    assert all(np.array_equal(seen[1:4, :8].numpy(), expected) for seen in backend.actions)
    assert backend.actions[0].shape == (33, 64)


def test_a_state_row_and_committed_rows_are_the_clean_ones(policy: Policy) -> None:
    assert policy.layout.action.clean == (0,)
    assert layout_of(policy.contract, 5).action.clean == (0, 1, 2, 3, 4, 5)


def test_committed_poses_come_back_as_they_were_given(
    model: engine.Cosmos3, pose_contract: engine.Contract, observe: Observe
) -> None:
    policy = model.policy(pose_contract)
    first = policy.infer(observe(), seed=1).actions[:4]
    again = policy.infer(observe(), seed=2, committed=first.astype(np.float64)).actions
    np.testing.assert_allclose(again[:4, :3], first[:, :3], atol=1e-5)
    turn = quaternion_to_matrix(again[:4, 3:7]) @ np.swapaxes(quaternion_to_matrix(first[:, 3:7]), -1, -2)
    np.testing.assert_allclose(turn, np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-5)
    np.testing.assert_allclose(again[:4, 7], first[:, 7], atol=1e-5)


@pytest.mark.parametrize(
    ('committed', 'text'),
    [
        (np.zeros((0, 8)), 'wrong shape'),
        (np.zeros((32, 8)), 'wrong shape'),
        (np.zeros((3, 7)), 'wrong shape'),
        (np.zeros(8), 'wrong shape'),
        (np.full((2, 8), np.nan), 'not finite'),
    ],
)
def test_committed_rows_that_do_not_fit_are_refused(
    policy: Policy, observe: Observe, committed: np.ndarray, text: str
) -> None:
    with pytest.raises(ObservationError, match=text):
        policy.infer(observe(), committed=committed)


# ---------------------------------------------------------------------------------------------- prompt and guidance


def test_in_the_steady_state_the_understanding_tower_does_not_run(
    model: engine.Cosmos3, backend: Any, demo_contract: engine.Contract, observe: Observe, chunk: engine.PolicyChunk
) -> None:
    policy = watched(model, backend, demo_contract)
    policy.prepare(observe().instruction)
    assert len(backend.prompts) == 2
    first, second = (policy.infer(observe(), seed=3) for _ in range(2))
    assert len(backend.prompts) == 2
    assert same(first, second)
    assert same(first, chunk)
    policy.infer(observe(instruction='open the drawer'))
    assert len(backend.prompts) == 3, 'another instruction needs one new prefix; the empty prompt is still known'


@pytest.mark.parametrize(('interval', 'forwards'), [(None, 8), ((960.0, 1001.0), 5)])
def test_the_contracts_guidance_interval_decides_the_number_of_passes(
    model: engine.Cosmos3,
    backend: Any,
    demo_contract: engine.Contract,
    observe: Observe,
    interval: tuple[float, float] | None,
    forwards: int,
) -> None:
    contract = replace(demo_contract, sampler=replace(demo_contract.sampler, guidance_interval=interval))
    policy = watched(model, backend, contract)
    policy.infer(observe())
    assert len(backend.actions) == forwards


def test_warming_up_is_an_inference_and_changes_no_later_one(
    model: engine.Cosmos3, backend: Any, demo_contract: engine.Contract, observe: Observe, chunk: engine.PolicyChunk
) -> None:
    policy = watched(model, backend, demo_contract)
    policy.warm_up()
    assert len(backend.actions) == 8
    assert same(policy.infer(observe(), seed=3), chunk)


# ---------------------------------------------------------------------------------------------- work saved


def test_noise_drawn_ahead_changes_no_chunk(
    model: engine.Cosmos3, demo_contract: engine.Contract, observe: Observe, chunk: engine.PolicyChunk
) -> None:
    plain, ahead = (Policy(model.runtime, demo_contract, noise_ahead=switch) for switch in (False, True))
    for seed in islice(request_seeds(0), 3):
        one, other = plain.infer(observe(), seed), ahead.infer(observe(), seed)
        assert same(one, other)
        assert type(other.seed) is int
    assert same(ahead.infer(observe(), 3), chunk), 'a seed that nobody expected'


@pytest.mark.parametrize('steps', [1, 2, 4])
def test_a_chunk_is_the_same_whenever_its_video_is_looked_at(
    model: engine.Cosmos3, demo_contract: engine.Contract, observe: Observe, steps: int
) -> None:
    """Requests that come in between get the very noise of the first, with other pictures in it."""
    contract = in_the_256_tier(demo_contract)
    contract = replace(contract, sampler=replace(contract.sampler, steps=steps))
    at_once, later = (Policy(model.runtime, contract) for _ in range(2))
    expected = at_once.infer(observe(), seed=3)
    video, actions = expected.latents.clone(), expected.actions.copy()
    first = later.infer(observe(), seed=3)
    bright = {name: np.full_like(picture, 250) for name, picture in observe().images.items()}
    others = [later.infer(observe(images=bright), seed) for seed in (3, 3, 4)]
    assert torch.equal(first.latents, video)
    assert np.array_equal(first.actions, actions)
    assert not any(torch.equal(other.latents, video) for other in others)


def test_robots_with_the_same_seed_have_their_own_pictures(
    model: engine.Cosmos3, demo_contract: engine.Contract, observe: Observe
) -> None:
    """Their noise is the same piece of memory."""
    policy = Policy(model.runtime, in_the_256_tier(demo_contract))
    bright = {name: np.full_like(picture, 250) for name, picture in observe().images.items()}
    robots = observe(), observe(images=bright)
    together = policy.infer_together(robots, (3, 3))
    assert not torch.equal(together[0].latents, together[1].latents)
    for robot, found in zip(robots, together, strict=True):
        alone = policy.infer(robot, 3)
        np.testing.assert_allclose(found.actions, alone.actions, atol=1e-4)
        np.testing.assert_allclose(found.latents.numpy(), alone.latents.numpy(), atol=1e-4)


@pytest.mark.parametrize('size', [(180, 320), (480, 640)])
def test_pictures_composed_on_the_device_change_no_chunk(
    model: engine.Cosmos3, demo_contract: engine.Contract, observe: Observe, size: tuple[int, int]
) -> None:
    generator = np.random.default_rng(1)
    images = {name: generator.integers(0, 256, (*size, 3), np.uint8) for name in observe().images}
    policies = (Policy(model.runtime, demo_contract, pictures_on_device=switch) for switch in (False, True))
    one, other = (policy.infer(observe(images=images), seed=2) for policy in policies)
    assert same(one, other)


def test_guidance_can_be_left_to_single_steps(
    model: engine.Cosmos3, backend: Any, demo_contract: engine.Contract, observe: Observe, chunk: engine.PolicyChunk
) -> None:
    for steps, passes, prompts in (((3, 4), 6, 2), ((), 4, 1), ((1, 2, 3, 4), 8, 2)):
        backend.actions.clear()
        backend.prompts.clear()
        contract = replace(demo_contract, sampler=replace(demo_contract.sampler, guidance_steps=steps))
        policy = watched(model, backend, contract)
        policy.prepare(observe().instruction)
        made = policy.infer(observe(), seed=3)
        assert (len(backend.actions), len(backend.prompts)) == (passes, prompts)
        assert same(made, chunk) == (passes == 8)


def test_the_fast_preset_makes_a_chunk_of_the_same_shape_with_half_the_passes(
    model: engine.Cosmos3, backend: Any, demo_contract: engine.Contract, observe: Observe, chunk: engine.PolicyChunk
) -> None:
    made = watched(model, backend, with_preset(demo_contract, 'fast')).infer(observe(), seed=3)
    assert len(backend.actions) == 4
    assert made.actions.shape == chunk.actions.shape


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize('instruction', ['', '   \n'])
def test_an_empty_instruction_is_refused(policy: Policy, observe: Observe, instruction: str) -> None:
    for attempt in (policy.check_instruction, policy.prepare, lambda text: policy.infer(observe(instruction=text))):
        with pytest.raises(ObservationError, match='instruction: is empty'):
            attempt(instruction)


def test_an_instruction_of_20000_characters_is_refused_with_its_length_and_the_limit(
    model: engine.Cosmos3, backend: Any, demo_contract: engine.Contract, observe: Observe
) -> None:
    policy = watched(model, backend, demo_contract)
    text = ('put the banana in the bowl ' * 800)[:20_000]
    for attempt in (policy.check_instruction, policy.prepare, lambda text: policy.infer(observe(instruction=text))):
        with pytest.raises(ObservationError, match='too long') as caught:
            attempt(text)
        assert '4096' in str(caught.value)
    assert backend.prompts == []
    assert backend.actions == []


def test_every_fault_of_an_observation_is_listed_and_nothing_is_computed(
    model: engine.Cosmos3, backend: Any, demo_contract: engine.Contract, observe: Observe
) -> None:
    policy = watched(model, backend, demo_contract)
    joints = observe().joint_positions.copy()
    joints[[2, 5]] = np.nan, np.inf
    images = {'wrist': np.zeros((180, 320, 3), np.float32), 'exterior_1': np.zeros((180, 320), np.uint8)}
    wrong = observe(instruction=' ', images=images, joint_positions=joints, gripper_position=None)
    with pytest.raises(ObservationError) as caught:
        policy.infer(wrong)
    assert [problem.where for problem in caught.value.problems] == [
        'instruction',
        'images.wrist',
        'images.exterior_1',
        'images.exterior_2',
        'joint_positions',
        'gripper_position',
    ]
    text = str(caught.value)
    assert all(part in text for part in ('demo_joint_pos', 'float32', '(2,)', '(5,)', '[180, 320]'))
    assert backend.actions == []


@pytest.mark.parametrize(
    ('field', 'value', 'what'),
    [
        ('joint_positions', None, 'missing'),
        ('joint_positions', np.zeros(6), 'shape'),
        ('joint_positions', np.zeros((2, 7)), 'shape'),
        ('joint_positions', ['a'] * 7, 'numeric'),
        ('joint_positions', np.array([0, 0, 0, np.nan, 0, 0, 0]), 'finite'),
        ('gripper_position', np.zeros(2), 'shape'),
        ('gripper_position', float('inf'), 'finite'),
        ('gripper_position', 'open', 'numeric'),
        ('instruction', None, 'text'),
        ('images', {}, 'missing'),
    ],
)
def test_a_fault_of_an_observation_is_named(
    policy: Policy, observe: Observe, field: str, value: Any, what: str
) -> None:
    with pytest.raises(ObservationError, match=rf'{field}.*{what}'):
        policy.infer(observe(**{field: value}))


@pytest.mark.parametrize('size', [(90, 160), (480, 640), (200, 100), (33, 47)])
def test_pictures_of_any_size_are_taken(policy: Policy, observe: Observe, size: tuple[int, int]) -> None:
    images = dict.fromkeys(('wrist', 'exterior_1', 'exterior_2'), np.full((*size, 3), 90, np.uint8))
    composite = policy.composite(observe(images=images))
    assert (composite.shape, composite.dtype) == ((256, 304, 3), np.uint8)
    assert composite.max() == 90


# ---------------------------------------------------------------------------------------------- threads


def test_a_request_can_be_given_up_between_steps_and_the_next_one_is_served(
    model: engine.Cosmos3, backend: Any, demo_contract: engine.Contract, observe: Observe, chunk: engine.PolicyChunk
) -> None:
    policy = watched(model, backend, demo_contract)
    answers = iter([False, False, True])
    with pytest.raises(Cancelled):
        policy.infer(observe(), cancelled=lambda: next(answers))
    assert len(backend.actions) == 4
    assert same(policy.infer(observe(), seed=3), chunk)


def test_requests_of_two_threads_get_the_chunks_they_would_get_alone(policy: Policy, observe: Observe) -> None:
    requests = [(observe(instruction=text), seed) for seed, text in enumerate(('pick', 'place', 'push', 'pull'))]
    alone = [policy.infer(observation, seed) for observation, seed in requests]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda request: policy.infer(*request), requests))
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))


def test_two_policies_of_one_model_share_its_weights_and_prompts(
    model: engine.Cosmos3, demo_contract: engine.Contract, pose_contract: engine.Contract
) -> None:
    one, other = model.policy(demo_contract), model.policy(pose_contract)
    assert one.runtime is other.runtime is model.runtime


# ---------------------------------------------------------------------------------------------- against diffusers


@pytest.fixture(scope='module')
def random_model(tmp_path_factory: pytest.TempPathFactory) -> engine.Cosmos3:
    return engine.load(engine.make_tiny(tmp_path_factory.mktemp('random') / 'nano', weights='random', seed=1))


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def reference_pipeline(model: engine.Cosmos3) -> Any:
    """Diffusers' pipeline on the same weights, with the native FlowUniPC schedule at shift 5."""
    diffusers = pytest.importorskip('diffusers', reason='diffusers is the reference here')
    from benchmarks.policy_sides import autoencoder_twin

    ours = model.runtime.backend.transformer
    transformer = diffusers.Cosmos3OmniTransformer.from_config(ours.config.to_dict())
    transformer.load_state_dict(ours.state_dict(), strict=True)
    scheduler = diffusers.UniPCMultistepScheduler.from_pretrained(model.checkpoint.root / 'scheduler')
    pipeline = diffusers.Cosmos3OmniPipeline(
        transformer.eval(),
        model.runtime.tokenizer.tokenizer,
        autoencoder_twin(model.runtime.vae.autoencoder),
        diffusers.UniPCMultistepScheduler.from_config(scheduler.config, use_karras_sigmas=False, flow_shift=5.0),
        enable_safety_checker=False,
        default_use_system_prompt=False,
        use_native_flow_schedule=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.usefixtures('no_gradients')
@pytest.mark.parametrize('guidance', [1.0, 3.0])
def test_from_pictures_to_poses_we_equal_diffusers_pipeline(
    random_model: engine.Cosmos3, pose_contract: engine.Contract, observe: Observe, guidance: float
) -> None:
    # What diffusers can do at all: no state row, its own JSON prompt without a description, ten numbers a row.
    contract = in_the_256_tier(pose_contract, state_row=False)
    contract = replace(
        contract,
        prompt=replace(contract.prompt, format='json', description=''),
        sampler=replace(contract.sampler, guidance=guidance),
    )
    policy, observation, seed = random_model.policy(contract), observe(), 6
    mine = policy.infer(observation, seed)

    pipeline = reference_pipeline(random_model)
    video, rows = run_reference(pipeline, policy, observation, seed)
    start = Poses(observation.end_effector_position, quaternion_to_matrix(observation.end_effector_quaternion))
    theirs = policy.codec.decode(rows.double().numpy(), start)
    assert float(video[:, :, 1:].std()) > 0.1
    torch.testing.assert_close(mine.latents, video, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(mine.actions[:, 7], theirs.gripper, rtol=0, atol=ROUNDING)
    # Row by row, as the network gave them: integration adds up the rounding of all rows before.
    given = Poses(mine.actions[:, :3].astype(np.float64), quaternion_to_matrix(mine.actions[:, 3:7]))
    motions = [
        framewise_deltas(Poses(np.vstack([start.position, p.position]), np.stack([start.rotation, *p.rotation])))
        for p in (given, theirs.poses)
    ]
    np.testing.assert_allclose(motions[0].position, motions[1].position, rtol=0, atol=ROUNDING)
    # A rotation is what remains of six random numbers once they are made square, which widens what rounding left.
    np.testing.assert_allclose(motions[0].rotation, motions[1].rotation, rtol=0, atol=2 * ROUNDING)


def run_reference(pipeline: Any, policy: Policy, observation: engine.Observation, seed: int) -> tuple[Tensor, Tensor]:
    """Latents and rows as diffusers makes them of the same pictures, prompt and noise, everything else its own."""
    from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import CosmosActionCondition
    from PIL import Image

    condition = CosmosActionCondition(
        mode='policy',
        chunk_size=policy.contract.timing.chunk_rows,
        domain_name=policy.embodiment.name,
        resolution_tier=policy.contract.timing.resolution_tier,
        image=Image.fromarray(policy.composite(observation)),
        view_point=policy.contract.prompt.viewpoint,
    )
    conditioned, *_ = pipeline.prepare_latents(
        action=condition, device='cpu', dtype=torch.float32, fps=policy.contract.timing.fps
    )
    latents = framework_noise(seed, tuple(conditioned.shape))
    latents[:, :, 0] = conditioned[:, :, 0]
    rows = framework_noise(seed, (policy.contract.timing.chunk_rows, 64))
    rows[:, policy.contract.embodiment.raw_action_dim :] = 0
    out = pipeline(
        observation.instruction,
        negative_prompt='',
        fps=policy.contract.timing.fps,
        num_inference_steps=policy.contract.sampler.steps,
        guidance_scale=policy.contract.sampler.guidance,
        action=condition,
        latents=latents,
        action_latents=rows,
        output_type='latent',
    )
    return out.video, out.action[0]


# ---------------------------------------------------------------------------------------------- the package's face


def test_every_public_name_can_be_had_and_the_import_itself_loads_no_torch() -> None:
    code = (
        'import sys, engine\n'
        'assert not {"torch", "diffusers", "transformers"} & set(sys.modules)\n'
        'missing = [name for name in engine.__all__ if getattr(engine, name, None) is None]\n'
        'assert not missing, missing\n'
        'try:\n    engine.polycy\n'
        'except AttributeError as error:\n    print(error)\n'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert 'polycy' in result.stdout
    assert 'load_contract' in result.stdout
