"""Videos of actions and actions of videos, as diffusers' pipeline makes them, in any number of windows."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import engine
from engine import dynamics as module
from engine.contract import load_contract
from engine.dynamics import Dynamics, DynamicsTerms
from engine.errors import InvalidInput, ObservationError
from engine.runtime import Task
from engine.sampler import flow_unipc_schedule
from engine.turns import Priority

STEPS = 3
CHUNK = 8


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> engine.Cosmos3:
    return engine.load(engine.make_tiny(tmp_path_factory.mktemp('checkpoint') / 'tiny', sound=False))


@pytest.fixture(scope='module')
def terms() -> DynamicsTerms:
    """Short windows of a DROID arm's deltas, in few steps."""
    return DynamicsTerms.published('droid_lerobot', chunk=CHUNK, tier=256, steps=STEPS)


@pytest.fixture(scope='module')
def dynamics(model: engine.Cosmos3, terms: DynamicsTerms) -> Dynamics:
    return model.dynamics(terms)


@pytest.fixture(scope='module')
def picture() -> np.ndarray:
    """Of a size that is neither scaled nor cropped on its canvas, but padded."""
    return np.random.default_rng(0).integers(0, 256, (176, 208, 3), np.uint8)


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 10)).astype(np.float32)


# As diffusers does it


class Theirs:
    """Diffusers' pipeline on the same files, with the schedule, the words and the noise of ours."""

    def __init__(self, model: engine.Cosmos3, terms: DynamicsTerms, monkeypatch: pytest.MonkeyPatch) -> None:
        from benchmarks.policy_sides import Parts, Reference

        contract = load_contract('droid_ee_delta')
        sampler = replace(contract.sampler, steps=terms.steps, guidance=terms.guidance, shift=terms.shift)
        runtime = model.runtime
        parts = Parts(runtime.backend.transformer, runtime.vae.autoencoder, runtime.tokenizer)
        root = model.checkpoint.root
        self.pipeline = Reference(parts, replace(contract, sampler=sampler), root / 'scheduler').pipeline
        self.terms = terms
        self.draws: list[torch.Tensor] = []
        monkeypatch.setattr(module, 'framework_noise', self._noise)

    def _noise(self, seed: int, shape: tuple[int, ...]) -> torch.Tensor:
        """What diffusers draws first under this seed."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def run(self, mode: str, seed: int, instruction: str, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import CosmosActionCondition

        condition = CosmosActionCondition(
            mode=mode,
            chunk_size=self.terms.chunk,
            domain_name=self.terms.embodiment.name,
            resolution_tier=self.terms.tier,
            view_point=self.terms.viewpoint,
            **given,
        )
        out = self.pipeline(
            instruction,
            negative_prompt='',
            fps=self.terms.fps,
            num_inference_steps=self.terms.steps,
            guidance_scale=self.terms.guidance,
            generator=torch.Generator().manual_seed(seed),
            action=condition,
            output_type='latent',
        )
        return out.video, out.action[0] if out.action is not None else torch.empty(0)


@pytest.mark.parametrize('guidance', [1.0, 3.0])
def test_what_actions_cause_is_what_diffusers_imagines(
    model: engine.Cosmos3, picture: np.ndarray, terms: DynamicsTerms, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = replace(terms, guidance=guidance)
    theirs = Theirs(model, terms, monkeypatch)
    given = rows(CHUNK)
    wanted, _ = theirs.run(
        'forward_dynamics', 4, 'lift the cup', image=Image.fromarray(picture), raw_actions=torch.from_numpy(given)
    )
    found = model.dynamics(terms).imagine(picture, given, 'lift the cup', seed=4)
    assert len(found.latents) == 1
    torch.testing.assert_close(found.latents[0], wanted, rtol=0, atol=1e-4)
    assert float(wanted[:, :, 1:].std()) > 0.1


def test_the_actions_behind_a_video_are_those_that_diffusers_finds(
    model: engine.Cosmos3, terms: DynamicsTerms, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = np.random.default_rng(1).integers(0, 256, (CHUNK + 1, 176, 208, 3), np.uint8)
    theirs = Theirs(model, terms, monkeypatch)
    _, wanted = theirs.run('inverse_dynamics', 5, 'lift the cup', video=[Image.fromarray(frame) for frame in video])
    # All frames are given, so theirs draws noise for a video first and throws it away.
    shape = model.dynamics(terms).imagine(video[0], rows(CHUNK)).latents[0].shape

    def after_the_video(seed: int, wanted_shape: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        torch.randn(shape, generator=generator)
        return torch.randn(wanted_shape, generator=generator)

    monkeypatch.setattr(module, 'framework_noise', after_the_video)
    found = model.dynamics(terms).actions_from_video(video, 'lift the cup', seed=5)
    np.testing.assert_allclose(found, wanted[:, :10].numpy(), atol=1e-4)


# Windows


def test_a_rollout_has_the_picture_of_now_and_a_frame_for_every_row(dynamics: Dynamics, picture: np.ndarray) -> None:
    told = []
    found = dynamics.imagine(picture, rows(19), 'push', progress=lambda done, of: told.append((done, of)))
    assert found.frames.shape == (20, 176, 208, 3)
    assert found.frames.dtype == np.uint8
    assert len(found.latents) == 3
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert {'encode', 'denoise', 'decode', 'total'} <= set(found.seconds)


def test_for_people_a_rollout_begins_with_the_picture_as_it_was_seen(dynamics: Dynamics, picture: np.ndarray) -> None:
    chunk = dynamics.terms.chunk
    rollout = dynamics.imagine(picture, rows(2 * chunk), 'push')
    shown = rollout.detailed
    assert shown.shape == rollout.frames.shape == (2 * chunk + 1, *shown.shape[1:])
    np.testing.assert_array_equal(shown[0], dynamics.seen_as(rollout, picture))
    assert not np.array_equal(rollout.frames[0], shown[0])


def test_a_window_starts_from_the_last_frame_of_the_one_before_as_it_is(
    dynamics: Dynamics, picture: np.ndarray
) -> None:
    given = rows(2 * CHUNK)
    whole = dynamics.imagine(picture, given, 'push', seed=7)
    first = dynamics.imagine(picture, given[:CHUNK], 'push', seed=7)
    second = dynamics.imagine(first.frames[-1], given[CHUNK:], 'push', seed=8)
    for found, wanted in zip(whole.latents, (first.latents[0], second.latents[0]), strict=True):
        assert torch.equal(found, wanted)
    np.testing.assert_array_equal(whole.frames, np.concatenate([first.frames, second.frames[1:]]))


def test_windows_may_share_several_frames_so_that_motion_goes_on(dynamics: Dynamics, picture: np.ndarray) -> None:
    given = rows(12)
    whole = dynamics.imagine(picture, given, 'push', overlap=5)
    assert len(whole.latents) == 2, 'the second one begins four frames earlier'
    assert whole.frames.shape[0] == 13
    shared = dynamics.runtime.encode(engine.observation.geometry.to_unit(_on_canvas(whole.frames[4:9])))
    torch.testing.assert_close(whole.latents[1][:, :, :2], shared[..., :11, :13], rtol=0, atol=0)
    assert not torch.equal(whole.latents[1], dynamics.imagine(picture, given, 'push').latents[1])


def _on_canvas(frames: np.ndarray) -> np.ndarray:
    from engine.observation.geometry import choose_canvas, fit

    return fit(frames, choose_canvas(256, *frames.shape[1:3])).pixels


def test_rows_that_are_missing_are_the_last_one_again(dynamics: Dynamics, picture: np.ndarray) -> None:
    given = rows(5)
    short = dynamics.imagine(picture, given)
    filled = dynamics.imagine(picture, np.concatenate([given, np.repeat(given[-1:], CHUNK - 5, axis=0)]))
    assert torch.equal(short.latents[0], filled.latents[0])
    np.testing.assert_array_equal(short.frames, filled.frames[:6])


def test_only_the_first_windows_are_imagined_where_that_is_asked_for(dynamics: Dynamics, picture: np.ndarray) -> None:
    found = dynamics.imagine(picture, rows(3 * CHUNK), windows=1)
    assert (len(found.latents), len(found.rows), len(found.frames)) == (1, CHUNK, CHUNK + 1)


def test_the_given_frame_stays_and_the_same_seed_gives_the_same_future(dynamics: Dynamics, picture: np.ndarray) -> None:
    found, again, other = (dynamics.imagine(picture, rows(CHUNK), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(found.latents[0], again.latents[0])
    assert torch.equal(found.latents[0][:, :, 0], other.latents[0][:, :, 0])
    assert not torch.equal(found.latents[0][:, :, 1:], other.latents[0][:, :, 1:])


def test_a_video_of_any_length_has_one_row_between_two_frames(dynamics: Dynamics) -> None:
    video = np.random.default_rng(1).integers(0, 256, (CHUNK + 4, 176, 208, 3), np.uint8)
    found = dynamics.actions_from_video(list(video), 'push', seed=3)
    assert found.shape == (CHUNK + 3, 10)
    np.testing.assert_array_equal(found[:CHUNK], dynamics.actions_from_video(video[: CHUNK + 1], 'push', seed=3))


# The framework's rules where diffusers has others


@pytest.fixture
def tasks(dynamics: Dynamics, monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """What the sampler is given, window by window."""
    given: list[Task] = []
    denoise = dynamics.runtime.denoise

    def watch(task: Task, *others: Any) -> Any:
        given.append(task)
        return denoise(task, *others)

    monkeypatch.setattr(dynamics.runtime, 'denoise', watch)
    return given


def test_every_window_and_every_modality_starts_the_frameworks_generator_anew(
    dynamics: Dynamics, picture: np.ndarray, tasks: list[Task]
) -> None:
    rollout = dynamics.imagine(picture, rows(2 * CHUNK), 'push', seed=7)
    for number, task in enumerate(tasks):
        noise = np.random.RandomState(7 + number).standard_normal(tuple(task.vision.shape)).astype(np.float32)
        np.testing.assert_array_equal(task.vision[:, :, 1:].numpy(), noise[:, :, 1:])
    tasks.clear()
    dynamics.actions_of(rollout, seed=7)
    for number, task in enumerate(tasks):
        noise = np.random.RandomState(7 + number).standard_normal((CHUNK, 64)).astype(np.float32)
        np.testing.assert_array_equal(task.action[:, :10].numpy(), noise[:, :10])
        assert torch.equal(task.vision, rollout.latents[number])


def test_only_content_is_denoised_and_rows_enter_as_they_are_given(
    dynamics: Dynamics, picture: np.ndarray, tasks: list[Task]
) -> None:
    given = rows(CHUNK)
    dynamics.imagine(picture, given, 'push')
    (task,) = tasks
    height, width = picture.shape[0] // 16, picture.shape[1] // 16
    assert task.vision.shape == (1, 48, 1 + CHUNK // 4, height, width), 'the canvas is larger'
    np.testing.assert_array_equal(task.action[:, :10].numpy(), given, err_msg='no statistics are applied to rows')
    assert not task.action[:, 10:].any()
    assert (task.layout.vision.clean, task.layout.action.clean) == ((0,), tuple(range(CHUNK)))


def test_the_schedule_begins_at_the_frameworks_timestep_and_tells_whole_numbers() -> None:
    of = DynamicsTerms.published
    for terms, first, last in (
        (of('droid_lerobot'), (999, 996, 992, 988), (605, 526, 416, 256)),
        (of('camera_pose', fps=30.0), (999, 992, 985, 978), None),
    ):
        schedule = flow_unipc_schedule(terms.steps, terms.shift)
        assert (terms.steps, schedule.timesteps[:4]) == (30, first)
        assert last is None or schedule.timesteps[-4:] == last
        assert all(isinstance(timestep, int) for timestep in schedule.timesteps)


def test_the_prompt_has_no_system_words_and_the_empty_one_is_never_read(
    dynamics: Dynamics, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    prefix = dynamics.runtime.prefix
    monkeypatch.setattr(dynamics.runtime, 'prefix', lambda caption: (read.append(caption), prefix(caption))[1])
    dynamics.imagine(picture, rows(CHUNK), 'push the cup')
    (caption,) = read
    assert json.loads(caption)['resolution'] == {'H': 256, 'W': 320}
    assert 'push the cup' in caption
    assert 'assistant' not in caption


# From a contract


def test_a_policy_of_joint_positions_imagines_in_deltas_of_poses_with_its_views(model: engine.Cosmos3) -> None:
    contract = load_contract('demo_joint_pos')
    found = model.dynamics(contract)
    assert (found.terms.raw_dim, found.terms.chunk, found.terms.fps) == (10, 16, contract.timing.fps)
    assert (found.terms.steps, found.terms.guidance, found.terms.shift) == (30, 1.0, 10.0)
    views = {name: np.full((180, 320, 3), 80 * number, np.uint8) for number, name in enumerate(contract.views.streams)}
    rollout = found.with_terms(steps=1, chunk=4).imagine(views, rows(4), 'push')
    height, width = (size // 16 * 16 for size in contract.views.size)
    assert rollout.frames.shape == (5, height, width, 3)


def test_the_action_file_of_the_umi_example_runs_as_it_is(model: engine.Cosmos3) -> None:
    folder = Path(__file__).resolve().parents[3] / 'shared' / 'data' / 'umi'
    if not folder.is_dir():
        pytest.skip('the example is not here')
    actions = json.loads((folder / 'umi.json').read_text(encoding='utf-8'))
    with Image.open(folder / 'umi.png') as file:
        picture = np.asarray(file.convert('RGB'))
    terms = DynamicsTerms.published('umi', fps=20.0, tier=256, steps=1)
    found = model.dynamics(terms).imagine(picture, actions, 'mouse arrangement')
    assert (len(found.latents), len(found.frames)) == (2, 33)


# What is refused


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (
            {'actions': rows(4)[:, :8]},
            r'actions: are not rows of this embodiment, got \[4, 8\], allowed: numbers \[N, 10\]',
        ),
        ({'actions': []}, 'actions: are not rows'),
        ({'actions': 'wave'}, 'actions: are not rows'),
        ({'actions': np.full((4, 10), np.nan)}, 'actions: are not finite at row 0, column 0'),
        ({'overlap': 4}, r'overlap: has no whole latents, got 4, allowed: 4 k \+ 1, below 8'),
        ({'overlap': 9}, 'overlap: has no whole latents'),
        ({'windows': 0}, 'windows: is too small, got 0'),
        ({'seed': -1}, 'seed: is out of range, got -1'),
        ({'seed': 2**32 - 1}, 'seed: is out of range'),
    ],
)
def test_actions_and_windows_that_do_not_fit_are_refused(
    dynamics: Dynamics, picture: np.ndarray, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        dynamics.imagine(picture, **{'actions': rows(4), **changes})


def test_pictures_that_do_not_fit_are_refused(dynamics: Dynamics, picture: np.ndarray) -> None:
    with pytest.raises(ObservationError, match='seen: is no RGB picture'):
        dynamics.imagine(picture.astype(float), rows(4))
    with pytest.raises(ObservationError, match='views: cannot be composed without a contract'):
        dynamics.imagine({'wrist': picture}, rows(4))
    with pytest.raises(ObservationError, match='frames: are no RGB video'):
        dynamics.actions_from_video(picture[None])
    with pytest.raises(ObservationError, match='frames: are not of one size'):
        dynamics.actions_from_video([picture, picture[:-1]])


def test_terms_that_cannot_be_are_refused() -> None:
    with pytest.raises(
        InvalidInput, match=r'chunk: has no whole latents, got 6(.|\n)*fps: is not known or out of range'
    ):
        DynamicsTerms.published('droid_lerobot', chunk=6, fps=0.0)
    with pytest.raises(InvalidInput, match='raw_dim: is not known or out of range'):
        DynamicsTerms.published('no_action', fps=10.0)
    with pytest.raises(
        InvalidInput, match='raw_dim: is not the width of a row of droid_lerobot that is imagined, got 8'
    ):
        DynamicsTerms.published('droid_lerobot', 8)
    assert DynamicsTerms.published('camera_pose').shift == 5.0, "as in the framework's example"


class Passing:
    """A request of the policy that comes while a clip is being encoded."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        self.order: list[str] = []

    def ask(self) -> None:
        with self.runtime.turn(Priority.POLICY):
            self.order.append('policy')


def test_a_request_for_actions_goes_first_while_a_video_is_encoded(
    dynamics: Dynamics, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = dynamics.runtime
    passing = Passing(runtime)
    video = np.random.default_rng(1).integers(0, 256, (CHUNK + 1, 176, 208, 3), np.uint8)
    alone = dynamics.actions_from_video(video)
    encode, first = runtime.vae.encode, []
    asking = threading.Thread(target=passing.ask)

    def encode_and_be_asked(pixels: torch.Tensor, between: Any) -> torch.Tensor:
        def asked() -> None:
            if not first:
                first.append(True)
                asking.start()
                while not runtime.turns.traffic()[Priority.POLICY].waiting:
                    pass  # it has asked once it waits
            between()

        found = encode(pixels, asked)
        passing.order.append('encoded')
        return found

    monkeypatch.setattr(runtime.vae, 'encode', encode_and_be_asked)
    np.testing.assert_array_equal(dynamics.actions_from_video(video), alone)
    asking.join(10.0)
    assert passing.order == ['policy', 'encoded']
