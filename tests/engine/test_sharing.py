"""Several surfaces on one set of weights: actions first, and the same results as if each had the weights to itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

import engine
from engine.backends.base import Step
from engine.backends.torch_reference import TorchReference
from engine.network.placement import Tokens
from engine.network.transformer import Prefix
from engine.policy import Policy
from engine.runtime import Cancelled, Runtime, Stopwatch, Task
from engine.runtime_lanes import AHEAD, GpuLane
from engine.sampler import Guidance, flow_unipc_schedule
from engine.sequence import Layout, forward_dynamics_layout, policy_layout
from engine.turns import Priority

LIMIT_S = 60.0
CPU = torch.device('cpu')


def until(condition: Callable[[], bool]) -> None:
    """Return as soon as other threads have made it true."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, 'this never came true'
        time.sleep(0)


class Traced(TorchReference):
    """The reference backend, which also tells when a pass begins and ends, and whose.

    Attributes:
        log: 'begin' or 'end', and the number of clean action rows: all of them in imagination.
        before: Called before a pass, with its number of clean rows and the number of passes with as many so far.
    """

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        self.log: list[tuple[str, int]] = []
        self.before: Callable[[int, int], None] = lambda _clean, _passes: None

    def begin(self, clean: int) -> None:
        self.before(clean, self.log.count(('begin', clean)))
        self.log.append(('begin', clean))

    def step(self, prefix: Prefix, layout: Layout) -> Step:
        inner, clean = super().step(prefix, layout), len(layout.action.clean)

        def run(tokens: Tokens, timestep: float) -> Tokens:
            self.begin(clean)
            velocities = inner(tokens, timestep)
            self.log.append(('end', clean))
            return velocities

        return run


class InOnePiece(Traced):
    """A backend as compiled ones are: a pass cannot be interrupted."""

    def step(self, prefix: Prefix, layout: Layout) -> Step:
        placement, clean = self.transformer.place(layout, prefix.length), len(layout.action.clean)

        def run(tokens: Tokens, timestep: float) -> Tokens:
            self.begin(clean)
            time = torch.full((1,), timestep)
            found = self.transformer.denoise_tokens(tokens, prefix.keys, prefix.values, placement, time)
            self.log.append(('end', clean))
            return found

        return run


@pytest.fixture(params=[Traced, InOnePiece])
def backend(request: pytest.FixtureRequest, model: engine.Cosmos3) -> Traced:
    return request.param(model.runtime.backend.transformer)


@pytest.fixture
def runtime(model: engine.Cosmos3, backend: Traced) -> Runtime:
    return Runtime(backend, model.runtime.vae, model.runtime.tokenizer)


def noise(layout: Layout, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    action = torch.randn(layout.action.rows, 64, generator=generator)
    action[:, layout.action.raw_dim :] = 0
    shape = (1, 48, layout.vision.frames, layout.vision.height, layout.vision.width)
    return {'vision': torch.randn(shape, generator=generator), 'action': action}


@pytest.fixture
def acting() -> Task:
    """Five rows to generate behind three that are given."""
    layout = policy_layout(chunk=8, height=4, width=6, fps=15.0, domain_id=8, raw_dim=8, state=True, history=2)
    return Task(layout, 'open the drawer', flow_unipc_schedule(4, 5.0), Guidance(3.0), **noise(layout, 3))


@pytest.fixture
def imagining() -> Task:
    """What sixteen given rows will look like."""
    layout = forward_dynamics_layout(chunk=16, height=6, width=4, fps=10.0, domain_id=5, raw_dim=9)
    return Task(layout, 'close the lid', flow_unipc_schedule(6, 5.0), Guidance(2.0), **noise(layout, 4))


@pytest.fixture(scope='module')
def contract(demo_contract: engine.Contract) -> engine.Contract:
    """Chunks of four rows: two latent frames."""
    return replace(demo_contract, timing=replace(demo_contract.timing, chunk_rows=4))


@pytest.fixture
def other() -> Iterator[ThreadPoolExecutor]:
    """Another thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def denoise(runtime: Runtime, task: Task, priority: Priority, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        return runtime.denoise(task, Stopwatch(CPU), priority=priority, **options)


def same(first: tuple[torch.Tensor, ...], second: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize('asked_for', [0, 1, 5, 11])
def test_a_request_for_actions_waits_for_the_pass_under_way_at_most(
    runtime: Runtime, backend: Traced, acting: Task, imagining: Task, other: ThreadPoolExecutor, asked_for: int
) -> None:
    acts: list[Future[Any]] = []

    def ask(clean: int, passes: int) -> None:
        if (clean, passes) == (16, asked_for):
            acts.append(other.submit(denoise, runtime, acting, Priority.POLICY))
            until(lambda: len(runtime.turns.waiting) == 1)

    backend.before = ask
    denoise(runtime, imagining, Priority.DYNAMICS)
    acts[0].result(LIMIT_S)
    acted, imagined = [('begin', 3), ('end', 3)] * 8, [('begin', 16), ('end', 16)]
    # The reference gives way before its first layer, others at the end of the pass.
    meanwhile = [imagined[0], *acted, imagined[1]] if type(backend) is Traced else [*imagined, *acted]
    assert backend.log == [*imagined * asked_for, *meanwhile, *imagined * (11 - asked_for)]


def test_results_are_the_same_to_the_last_bit_however_often_a_request_gives_way(
    runtime: Runtime, acting: Task, imagining: Task, other: ThreadPoolExecutor
) -> None:
    alone = Runtime(TorchReference(runtime.backend.transformer), runtime.vae, runtime.tokenizer)
    expected = denoise(alone, imagining, Priority.DYNAMICS), denoise(alone, acting, Priority.POLICY)
    over = threading.Event()

    def act() -> list[bool]:
        found = []
        while not over.is_set():
            found.append(same(denoise(runtime, acting, Priority.POLICY), expected[1]))
        return found

    acts = other.submit(act)

    def gave_way() -> int:
        return runtime.turns.traffic()[Priority.DYNAMICS].hand_overs

    imagined = []
    try:
        until(lambda: runtime.turns.holder is not None)
        # How often a quick machine gives way in one request depends on how it schedules threads.
        while not imagined or (gave_way() < 3 and len(imagined) < 50):
            imagined.append(denoise(runtime, imagining, Priority.DYNAMICS))
    finally:
        over.set()
    assert all(same(one, expected[0]) for one in imagined)
    assert len(acts.result(LIMIT_S)) > 1
    assert all(acts.result())
    assert gave_way() >= 3


def test_prompts_read_by_two_requests_at_once_are_those_read_by_one(
    runtime: Runtime, acting: Task, imagining: Task, other: ThreadPoolExecutor
) -> None:
    expected = denoise(runtime, imagining, Priority.DYNAMICS)
    cold = Runtime(TorchReference(runtime.backend.transformer), runtime.vae, runtime.tokenizer)
    same_words = replace(acting, caption=imagining.caption)
    acts: list[Future[Any]] = []

    class Eager(TorchReference):
        def prefix(self, ids: list[int]) -> Prefix:
            if not acts:
                acts.append(other.submit(denoise, cold, same_words, Priority.POLICY))
                until(lambda: len(cold.turns.waiting) == 1)
            return super().prefix(ids)

    cold.backend = Eager(runtime.backend.transformer)
    assert same(denoise(cold, imagining, Priority.DYNAMICS), expected)
    assert same(acts[0].result(LIMIT_S), denoise(runtime, same_words, Priority.POLICY))
    assert cold.turns.traffic()[Priority.DYNAMICS].hand_overs == 1


def test_a_failure_and_a_cancellation_in_between_change_nothing_for_the_others(
    runtime: Runtime, backend: Traced, acting: Task, imagining: Task, other: ThreadPoolExecutor
) -> None:
    expected = denoise(runtime, imagining, Priority.DYNAMICS)
    backend.log.clear()  # counts start anew
    ends: list[Future[Any]] = []
    failing = replace(acting, caption='word ' * 20_000)

    def ask(clean: int, passes: int) -> None:
        if (clean, passes) == (16, 2):
            ends.append(other.submit(denoise, runtime, failing, Priority.POLICY))
        if (clean, passes) == (16, 4):
            ends.append(other.submit(denoise, runtime, acting, Priority.POLICY, cancelled=lambda: True))
        until(lambda: len(runtime.turns.waiting) == sum(not end.done() for end in ends))

    backend.before = ask
    assert same(denoise(runtime, imagining, Priority.DYNAMICS), expected)
    assert isinstance(ends[0].exception(LIMIT_S), engine.errors.ObservationError)
    assert isinstance(ends[1].exception(LIMIT_S), Cancelled)
    assert runtime.turns.holder is None


@contextmanager
def held(runtime: Runtime, done: Callable[[], bool]) -> Iterator[None]:
    """Another thread has the turn until this is so."""
    has = threading.Event()

    def hold() -> None:
        with runtime.turns.take(Priority.POLICY):
            has.set()
            until(done)

    thread = threading.Thread(target=hold)
    thread.start()
    assert has.wait(LIMIT_S)
    yield
    thread.join(LIMIT_S)


def test_waiting_for_others_is_a_stage_of_its_own(
    model: engine.Cosmos3, contract: engine.Contract, observe: Callable[..., engine.Observation]
) -> None:
    runtime = Runtime(model.runtime.backend, model.runtime.vae, model.runtime.tokenizer)
    policy = Policy(runtime, contract)
    policy.warm_up()
    with held(runtime, lambda: runtime.turns.traffic()[Priority.POLICY].longest_wait_s > 0.3):
        chunk = policy.infer(observe())
    rest = sum(seconds for stage, seconds in chunk.seconds.items() if stage not in ('wait', 'total'))
    assert chunk.seconds['wait'] > 0.3
    assert chunk.seconds['wait'] + rest <= chunk.seconds['total']


def test_waiting_in_the_middle_of_a_stage_is_no_part_of_it(
    runtime: Runtime, backend: Traced, acting: Task, imagining: Task, other: ThreadPoolExecutor
) -> None:
    def act() -> None:
        with runtime.turn(Priority.POLICY):
            until(lambda: runtime.turns.traffic()[Priority.DYNAMICS].longest_wait_s > 0.3)

    def ask(clean: int, passes: int) -> None:
        if passes == 3:
            other.submit(act)
            until(lambda: len(runtime.turns.waiting) == 1)

    backend.before = ask
    watch = Stopwatch(CPU)
    with torch.inference_mode(), watch.stage('total', with_waits=True):
        runtime.denoise(imagining, watch, priority=Priority.DYNAMICS)
    seconds = watch.seconds
    assert seconds['wait'] > 0.3
    assert seconds['wait'] + seconds['prefix'] + seconds['denoise'] <= seconds['total']


def test_a_request_for_actions_can_be_given_up_while_others_have_the_weights(
    model: engine.Cosmos3, contract: engine.Contract, observe: Callable[..., engine.Observation]
) -> None:
    runtime = Runtime(model.runtime.backend, model.runtime.vae, model.runtime.tokenizer)
    answers, over = iter([False, False, True]), threading.Event()
    with held(runtime, over.is_set):
        with pytest.raises(Cancelled, match='another request had the turn'):
            Policy(runtime, contract).infer(observe(), cancelled=lambda: next(answers))
        over.set()
    assert runtime.turns.holder is None
    assert runtime.turns.waiting == ()


def test_a_policy_in_the_background_makes_the_chunks_it_makes_alone(
    model: engine.Cosmos3,
    contract: engine.Contract,
    observe: Callable[..., engine.Observation],
    other: ThreadPoolExecutor,
) -> None:
    runtime = Runtime(model.runtime.backend, model.runtime.vae, model.runtime.tokenizer)
    front, back = Policy(runtime, contract), Policy(runtime, contract)
    back.priority = Priority.DYNAMICS
    expected = back.infer(observe(), seed=1), front.infer(observe(), seed=2)
    video = front.imagined_video(expected[1])
    for work, check in (
        (lambda: back.infer(observe(), seed=1), lambda found: np.array_equal(found.actions, expected[0].actions)),
        (lambda: front.imagined_video(expected[1]), lambda found: np.array_equal(found, video)),
    ):
        before = runtime.turns.traffic()[Priority.DYNAMICS].hand_overs
        under_way = other.submit(work)
        until(lambda: runtime.turns.holder is not None)
        assert np.array_equal(front.infer(observe(), seed=2).actions, expected[1].actions)
        assert check(under_way.result())
        assert runtime.turns.traffic()[Priority.DYNAMICS].hand_overs > before


@pytest.fixture
def cuda_log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of CUDA's streams. Without a GPU only the calls can be looked at."""
    log: list[str] = []
    numbers = count(1)

    class Stream:
        def __init__(self, device: torch.device, priority: int) -> None:
            self.priority = priority

        def wait_stream(self, other: str) -> None:
            log.append(f'after {other}')

        def synchronize(self) -> None:
            log.append('finish')

    class Event:
        def __init__(self, blocking: bool) -> None:
            self.number = next(numbers)

        def record(self, stream: Stream) -> None:
            log.append(f'mark {self.number}')

        def synchronize(self) -> None:
            log.append(f'wait {self.number}')

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        log.append(f'in {chosen.priority}')
        try:
            yield
        finally:
            log.append('out')

    for name, stand_in in (('Stream', Stream), ('Event', Event), ('stream', stream)):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: 'the caller')
    return log


def test_lanes_of_a_gpu_are_streams_in_order_of_priority(cuda_log: list[str]) -> None:
    lanes = [GpuLane(torch.device('cuda'), priority) for priority in sorted(Priority, reverse=True)]
    numbers = [lane.stream.priority for lane in lanes]
    assert numbers == sorted(set(numbers)), 'CUDA calls the most urgent by the lowest number'
    assert max(numbers) == 0, 'which is the least urgent that there is'


def test_a_lower_lane_never_runs_far_ahead_and_is_done_in_the_end_also_after_a_failure(cuda_log: list[str]) -> None:
    lane, paced = GpuLane(torch.device('cuda'), Priority.DYNAMICS), AHEAD + 2

    def fail() -> None:
        with lane.active():
            for _ in range(paced):
                lane.pace()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    marks = [f'mark {number + 1}' for number in range(paced)]
    assert cuda_log == [
        *('after the caller', 'in -1'),
        *(*marks[:-1], 'wait 1', marks[-1], 'wait 2'),
        *('finish', 'out'),
    ]


def test_nobody_is_more_urgent_than_the_policy_so_that_it_may_run_ahead(cuda_log: list[str]) -> None:
    lane = GpuLane(torch.device('cuda'), Priority.POLICY)
    with lane.active():
        lane.pace()
    assert cuda_log == ['after the caller', 'in -2', 'finish', 'out']
