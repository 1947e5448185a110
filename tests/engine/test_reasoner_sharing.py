"""The reasoner beside the policy: one copy of every tensor, actions first, and the same results to the last bit."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine
from engine import tiny_configs
from engine.backends.base import Step
from engine.backends.torch_reference import TorchReference
from engine.network.layers import Layer
from engine.network.placement import Tokens
from engine.network.transformer import Prefix
from engine.policy import Policy
from engine.reasoner import Reasoner
from engine.reasoner_talk import Sampling, user
from engine.runtime import Runtime
from engine.sequence import Layout
from engine.turns import Cancelled, Priority
from tests.engine.reasoner_world import Choices, choices, picture

LIMIT_S = 60.0
TOKENS = 6
QUESTION = [user(picture(128, 96, 1), picture(64, 160, 2), 'Where is the gripper?')]


def until(condition: Callable[[], bool]) -> None:
    """Return as soon as other threads have made it true."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, 'this never came true'
        time.sleep(0)


class Shared:
    """A policy and a reasoner on one runtime.

    Attributes:
        log: What the reasoner begins ('block' of the vision encoder, 'read' or 'write' of a layer), and passes of the
            policy.
        before: Called before each of the reasoner's, with its kind and how many of it there were.
    """

    def __init__(self, model: engine.Cosmos3, contract: engine.Contract, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.before: Callable[[str, int], None] = lambda _kind, _count: None
        shared = self

        class Logged(TorchReference):
            def step(self, prefix: Prefix, layout: Layout) -> Step:
                inner = super().step(prefix, layout)

                def run(tokens: Tokens, timestep: float) -> Tokens:
                    shared.log.append('pass')
                    return inner(tokens, timestep)

                return run

        self.runtime = Runtime(Logged(model.runtime.backend.transformer), model.runtime.vae, model.runtime.tokenizer)
        self.policy = Policy(self.runtime, contract)
        made = model.reasoner()
        self.reasoner = Reasoner(self.runtime, replace(made.parts, read_layer=self._write))
        layer_read = Layer.read

        def read(layer: Layer, *inputs: Any) -> torch.Tensor:
            self.note('read')
            return layer_read(layer, *inputs)

        self._layer_read = layer_read
        monkeypatch.setattr(Layer, 'read', read)
        for block in made.parts.encoder.module.blocks:
            monkeypatch.setattr(block, 'forward', self._noting('block', block.forward))

    def note(self, kind: str) -> None:
        self.before(kind, self.log.count(kind))
        self.log.append(kind)

    def _write(self, layer: Layer, *inputs: Any) -> torch.Tensor:
        self.note('write')
        return self._layer_read(layer, *inputs)

    def _noting(self, kind: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*inputs: Any, **options: Any) -> Any:
            self.note(kind)
            return forward(*inputs, **options)

        return run


@pytest.fixture(scope='module')
def contract(demo_contract: engine.Contract) -> engine.Contract:
    return replace(demo_contract, timing=replace(demo_contract.timing, chunk_rows=4))


@pytest.fixture
def shared(model: engine.Cosmos3, contract: engine.Contract, monkeypatch: pytest.MonkeyPatch) -> Shared:
    return Shared(model, contract, monkeypatch)


@pytest.fixture
def other() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def ask(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Choices:
    with choices(monkeypatch) as seen:
        shared.reasoner.generate(QUESTION, sampling=Sampling(max_tokens=TOKENS))
    return seen


def same(first: Choices, second: Choices) -> bool:
    scores = zip(first.scores, second.scores, strict=True)
    return first.tokens == second.tokens and all(torch.equal(a, b) for a, b in scores)


@pytest.mark.parametrize(('kind', 'count'), [('block', 1), ('read', 0), ('write', 0), ('write', 5)])
def test_a_request_for_actions_waits_for_one_layer_and_both_results_are_those_of_each_alone(
    shared: Shared,
    observe: Callable[..., engine.Observation],
    monkeypatch: pytest.MonkeyPatch,
    other: ThreadPoolExecutor,
    kind: str,
    count: int,
) -> None:
    expected = shared.policy.infer(observe(), seed=2).actions
    passes = shared.log.count('pass')
    shared.log.clear()
    alone = ask(shared, monkeypatch)
    order = [*shared.log]
    shared.log.clear()
    acts: list[Future[Any]] = []

    def act(which: str, so_far: int) -> None:
        if (which, so_far) == (kind, count) and not acts:
            acts.append(other.submit(shared.policy.infer, observe(), 2))
            until(lambda: len(shared.runtime.turns.waiting) == 1)

    shared.before = act
    beside = ask(shared, monkeypatch)
    assert np.array_equal(acts[0].result(LIMIT_S).actions, expected)
    assert same(beside, alone)
    place = [n for n, what in enumerate(order) if what == kind][count] + 1
    assert shared.log == [*order[:place], *['pass'] * passes, *order[place:]]


def test_actions_one_after_the_other_leave_an_answer_as_it_is(
    shared: Shared,
    observe: Callable[..., engine.Observation],
    monkeypatch: pytest.MonkeyPatch,
    other: ThreadPoolExecutor,
) -> None:
    expected = shared.policy.infer(observe(), seed=2).actions
    alone, over = ask(shared, monkeypatch), threading.Event()
    # The instruction is read anew every time: prompts of generation and the answer go through the same layers at once.
    instructions = iter(f'Pick up cube {number}' for number in range(10**6))

    def act() -> list[bool]:
        found = []
        while not over.is_set():
            shared.policy.infer(observe(instruction=next(instructions)), seed=1)
            found.append(np.array_equal(shared.policy.infer(observe(), seed=2).actions, expected))
        return found

    acts = other.submit(act)
    try:
        until(lambda: shared.runtime.turns.holder is not None)
        beside = ask(shared, monkeypatch)
    finally:
        over.set()
    assert same(beside, alone)
    assert all(acts.result(LIMIT_S))
    assert shared.runtime.turns.traffic()[Priority.REASONER].hand_overs >= 1


def test_an_answer_can_be_given_up_while_others_have_the_weights(shared: Shared) -> None:
    asked, has, over = iter([False] * 3), threading.Event(), threading.Event()

    def hold() -> None:
        with shared.runtime.turns.take(Priority.POLICY):
            has.set()
            over.wait(LIMIT_S)

    thread = threading.Thread(target=hold)
    thread.start()
    assert has.wait(LIMIT_S)
    try:
        with pytest.raises(Cancelled, match='another request had the turn'):
            shared.reasoner.generate(QUESTION, cancelled=lambda: next(asked, True))
    finally:
        over.set()
        thread.join(LIMIT_S)
    assert 'read' not in shared.log


def test_the_reasoner_reads_with_the_very_tensors_of_policy_and_dynamics(
    model: engine.Cosmos3, contract: engine.Contract
) -> None:
    reasoner, policy, dynamics = model.reasoner(), model.policy(contract), model.dynamics(contract)
    towers = [surface.runtime.backend.transformer for surface in (policy, dynamics)] + [reasoner.parts.transformer]
    places = [{name: tensor.data_ptr() for name, tensor in tower.state_dict().items()} for tower in towers]
    assert places[0] == places[1] == places[2]
    assert len(set(places[0].values())) == len(places[0])


_MEASURE = """
import json, multiprocessing, resource, sys
import numpy as np
import torch
import transformers.models.qwen3_vl.modeling_qwen3_vl
from diffusers import AutoencoderKLWan
from transformers import AutoProcessor, Cosmos3OmniForConditionalGeneration
import engine
from engine.reasoner_talk import Picture, Sampling, user
root = sys.argv[1]


def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def measure(what):
    before = resident()
    if what == 'transformers':
        model = Cosmos3OmniForConditionalGeneration.from_pretrained(root, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(root)
    else:
        model, contract = engine.load(root), engine.load_contract('demo_joint_pos')
        policy = model.policy(contract) if what in ('policy', 'all') else None
        dynamics = model.dynamics(contract) if what in ('dynamics', 'all') else None
        if what in ('reasoner', 'all'):
            reasoner = model.reasoner()
            message = user(Picture(np.zeros((64, 64, 3), np.uint8)), 'what?')
            reasoner.generate([message], sampling=Sampling(max_tokens=4))
    return resident() - before


# A process of its own for each, forked from one that has imported everything and loaded nothing.
torch.set_num_threads(1)
with multiprocessing.get_context('fork').Pool(1, maxtasksperchild=1) as pool:
    cases = ('policy', 'dynamics', 'reasoner', 'transformers', 'all')
    print(json.dumps(dict(zip(cases, pool.map(measure, cases, chunksize=1)))))
"""


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of the tiny layout with enough weights that other memory does not matter: 300 MB in float32."""
    for name, value in {'HIDDEN': 768, 'INTERMEDIATE': 2048, 'LAYERS': 5, 'HEADS': 12, 'KEY_VALUE_HEADS': 4}.items():
        monkeypatch.setattr(tiny_configs, name, value)
    monkeypatch.setattr(tiny_configs, 'HEAD_DIM', 64)
    monkeypatch.setattr(tiny_configs, 'MROPE_SECTION', [12, 10, 10])
    return engine.make_tiny(tmp_path / 'large', weights='random', sound=False)


@pytest.mark.slow
@pytest.mark.timeout(600)  # five programs: a busy machine takes its time
def test_three_surfaces_take_the_memory_of_one_and_not_of_three(
    large: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, '-c', _MEASURE, str(large)]
    out = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout
    found = {what: size / 2**20 for what, size in json.loads(out.splitlines()[-1]).items()}
    apart = found['policy'] + found['dynamics'] + found['transformers']
    with capsys.disabled():
        sizes = ', '.join(f'{what} {size:.0f} MiB' for what, size in found.items())
        print(f'\n{sizes}; together {found["all"] / apart:.2f} of apart')
    assert found['policy'] > 200
    assert found['all'] < 1.3 * found['policy'], 'besides there are the vision encoder and what it works with'
    assert found['all'] < 0.6 * apart
