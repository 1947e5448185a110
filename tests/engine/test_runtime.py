"""The prompt cache, the denoising loop and its clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import engine
from engine.network.heads import patchify
from engine.runtime import PROMPTS_KEPT, Cancelled, Runtime, Stopwatch, Task
from engine.sampler import Guidance, flow_unipc_schedule
from engine.sequence import Layout, policy_layout

CAPTION = 'open the drawer'


@pytest.fixture
def runtime(model: engine.Cosmos3, backend: Any) -> Runtime:
    return Runtime(backend, model.runtime.vae, model.runtime.tokenizer)


@pytest.fixture
def task() -> Task:
    layout = policy_layout(chunk=8, height=4, width=6, fps=15.0, domain_id=8, raw_dim=8, state=True, history=2)
    generator = torch.Generator().manual_seed(3)
    action = torch.randn(layout.action.rows, 64, generator=generator)
    action[:, 8:] = 0
    vision = torch.randn(1, 48, 3, 4, 6, generator=generator)
    return Task(layout, CAPTION, flow_unipc_schedule(4, 5.0), Guidance(3.0), vision, action)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def run(runtime: Runtime, task: Task) -> tuple[Tensor, Tensor]:
    return runtime.denoise(task, Stopwatch(torch.device('cpu')))


def test_a_prompt_is_read_once_and_gives_the_same_answer_from_then_on(
    runtime: Runtime, backend: Any, task: Task
) -> None:
    first = run(runtime, task)
    assert len(backend.prompts) == 2  # the caption and the empty one
    second = run(runtime, task)
    assert len(backend.prompts) == 2
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_answer_does_not_depend_on_what_was_cached_before(runtime: Runtime, backend: Any, task: Task) -> None:
    for caption in ('close the drawer', 'wipe the table'):
        run(runtime, replace(task, caption=caption))
    warm = run(runtime, task)
    cold = run(Runtime(backend, runtime.vae, runtime.tokenizer), task)
    assert all(torch.equal(a, b) for a, b in zip(warm, cold, strict=True))


def test_another_caption_gives_another_answer(runtime: Runtime, task: Task) -> None:
    vision, _ = run(runtime, task)
    other, _ = run(runtime, replace(task, caption='close the drawer'))
    assert not torch.equal(vision, other)


def test_the_prompt_least_used_is_forgotten_first(runtime: Runtime, backend: Any) -> None:
    captions = [f'task {n}' for n in range(PROMPTS_KEPT)]
    for caption in captions:
        runtime.prefix(caption)
    runtime.prefix(captions[0])
    runtime.prefix('one more')
    before = len(backend.prompts)
    runtime.prefix(captions[0])
    assert len(backend.prompts) == before, 'a prompt just used must be kept'
    runtime.prefix(captions[1])
    assert len(backend.prompts) == before + 1, 'the oldest prompt must have made room'


def test_given_rows_frames_and_unused_channels_come_back_bit_for_bit(runtime: Runtime, task: Task) -> None:
    vision, action = run(runtime, task)
    clean = list(task.layout.action.clean)
    assert clean == [0, 1, 2]
    assert torch.equal(action[clean], task.action[clean])
    assert torch.equal(vision[:, :, 0], task.vision[:, :, 0])
    assert not action[:, 8:].any()
    assert bool((action[3:, :8] != task.action[3:, :8]).all()), 'everything else must have moved'
    assert bool((vision[:, :, 1:] != task.vision[:, :, 1:]).all())


def test_the_network_sees_the_given_rows_unchanged_in_every_step(runtime: Runtime, backend: Any, task: Task) -> None:
    run(runtime, task)
    assert len(backend.actions) == 8
    assert all(torch.equal(seen[:3], task.action[:3]) for seen in backend.actions)


def test_a_run_leaves_its_inputs_alone(runtime: Runtime, task: Task) -> None:
    vision, action = task.vision.clone(), task.action.clone()
    run(runtime, task)
    assert torch.equal(task.vision, vision)
    assert torch.equal(task.action, action)


def test_the_timesteps_are_those_of_the_schedule_prompt_before_empty_prompt(
    runtime: Runtime, backend: Any, task: Task
) -> None:
    run(runtime, task)
    long, short = runtime.prefix(CAPTION).length, runtime.prefix('').length
    assert backend.steps == [(length, t) for t in (999, 937, 833, 624) for length in (long, short)]


@pytest.mark.parametrize(
    ('guidance', 'forwards'),
    [
        (Guidance(3.0), 8),
        (Guidance(3.0, (960, 1001)), 5),
        (Guidance(3.0, (600, 900)), 6),
        (Guidance(3.0, (833, 999), strict=True), 5),
        (Guidance(3.0, (833, 999), strict=False), 7),
        (Guidance(3.0, (0, 100)), 4),
        (Guidance(3.0, steps=(3, 4)), 6),
        (Guidance(1.0), 4),
    ],
    ids=str,
)
def test_guidance_costs_a_second_pass_only_in_the_steps_it_acts_in(
    runtime: Runtime, backend: Any, task: Task, guidance: Guidance, forwards: int
) -> None:
    run(runtime, replace(task, guidance=guidance))
    assert len(backend.steps) == forwards


@pytest.mark.parametrize('guidance', [Guidance(1.0), Guidance(3.0, (0, 100)), Guidance(3.0, steps=())], ids=str)
def test_without_a_guided_step_the_empty_prompt_is_never_read(
    runtime: Runtime, backend: Any, task: Task, guidance: Guidance
) -> None:
    run(runtime, replace(task, guidance=guidance))
    assert len(backend.prompts) == 1


def test_guidance_changes_the_answer(runtime: Runtime, task: Task) -> None:
    plain, _ = run(runtime, replace(task, guidance=Guidance(1.0)))
    guided, _ = run(runtime, task)
    assert not torch.equal(plain, guided)


def test_video_or_actions_alone_can_be_denoised(runtime: Runtime, backend: Any, task: Task) -> None:
    vision, action = runtime.denoise(
        replace(task, layout=Layout(action=task.layout.action), vision=None), Stopwatch(torch.device('cpu'))
    )
    assert vision is None
    assert action.shape == task.action.shape
    assert torch.isfinite(action).all()


@pytest.mark.parametrize('steps', [1, 2, 4, 6])
@pytest.mark.parametrize('guidance', [Guidance(3.0), Guidance(1.0)], ids=['guided', 'not guided'])
def test_a_video_that_is_finished_later_is_the_same_and_whoever_needs_the_actions_has_them(
    runtime: Runtime, task: Task, steps: int, guidance: Guidance
) -> None:
    """And where it began is not needed any more."""
    cut = replace(
        task,
        schedule=flow_unipc_schedule(steps, 5.0),
        guidance=guidance,
        vision=patchify(task.vision, runtime.backend.patch),
        in_tokens=True,
    )
    video, action = run(runtime, cut)
    later, rows = runtime.denoise_actions(cut, Stopwatch(torch.device('cpu')))
    cut.vision.zero_()
    assert torch.equal(rows, action)
    assert torch.equal(later.finish(), video)
    assert later.finish() is later.finish()
    assert len(later.tensors) == 1, 'nothing else is kept'


@pytest.mark.parametrize('done', [0, 1, 3])
def test_a_request_is_given_up_before_the_step_in_which_its_caller_says_so(
    runtime: Runtime, backend: Any, task: Task, done: int
) -> None:
    answers = iter([False] * done + [True])
    with pytest.raises(Cancelled, match=f'before step {done + 1} of 4'):
        runtime.denoise(task, Stopwatch(torch.device('cpu')), lambda: next(answers))
    assert len(backend.steps) == 2 * done


def test_a_request_given_up_leaves_no_trace_in_the_next(runtime: Runtime, task: Task) -> None:
    expected = run(runtime, task)
    answers = iter([False, False, True])
    with pytest.raises(Cancelled):
        runtime.denoise(task, Stopwatch(torch.device('cpu')), lambda: next(answers))
    assert all(torch.equal(a, b) for a, b in zip(run(runtime, task), expected, strict=True))


def test_stages_are_timed_in_order_also_when_they_fail(runtime: Runtime, task: Task) -> None:
    watch = Stopwatch(torch.device('cpu'))
    with pytest.raises(Cancelled):
        runtime.denoise(task, watch, lambda: True)
    assert list(watch.seconds) == ['wait', 'prefix', 'denoise']
    before = watch.seconds['prefix']
    with watch.stage('prefix'):
        runtime.prefix('another caption')
    assert watch.seconds['prefix'] > before


def test_steps_at_double_precision_show_only_rounding(model: engine.Cosmos3, runtime: Runtime, task: Task) -> None:
    exact = engine.load(model.checkpoint.root, dtype='float64')
    precise = Runtime(exact.runtime.backend, exact.runtime.vae, exact.runtime.tokenizer)
    _, single = run(runtime, task)
    _, double = run(precise, replace(task, vision=task.vision.double(), action=task.action.double()))
    assert double.dtype == torch.float64
    np.testing.assert_allclose(single.double().numpy(), double.numpy(), atol=2e-3)
