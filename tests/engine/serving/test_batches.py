"""Requests in one round get what each would get alone, and nobody else's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import engine
from engine.errors import CosmosError, InvalidInput
from engine.policy_observation import Observation, PolicyChunk
from engine.serving.batches import Batches
from engine.serving.client import RemotePolicy
from engine.serving.options import ServerOptions
from engine.serving.server import BackgroundServer, PolicyServer
from engine.turns import Cancelled

WORDS = ('open the drawer', 'put every block that you can find into the box', 'wave')


@pytest.fixture(scope='module')
def robots(observe: Callable[..., Observation]) -> list[Observation]:
    """Six robots with other states and words."""
    found = []
    for number in range(6):
        seen = observe(instruction=WORDS[number % 3])
        assert seen.joint_positions is not None
        found.append(replace(seen, joint_positions=seen.joint_positions + 0.01 * number))
    return found


class Gate:
    """A policy that computes nothing before it is told to, and says what it was asked."""

    together = True

    def __init__(self) -> None:
        self.open, self.asked, self.begun = threading.Event(), list[tuple[int, ...]](), threading.Event()

    def infer(self, observation: Observation, seed: int, cancelled: Callable[[], bool]) -> PolicyChunk:
        return self.infer_together([observation], [seed], cancelled)[0]

    def infer_together(
        self, observations: Sequence[Observation], seeds: Sequence[int], cancelled: Callable[[], bool]
    ) -> list[PolicyChunk]:
        self.asked.append(tuple(seeds))
        self.begun.set()
        assert self.open.wait(20.0)
        if any(one.instruction == 'bad' for one in observations):
            raise InvalidInput('observation', [])
        if any(one.instruction == 'broken' for one in observations):
            raise CosmosError('the network broke')
        rows = [np.full((2, 8), seed, np.float32) for seed in seeds]
        return [PolicyChunk(row, None, one.instruction, 0, {}) for row, one in zip(rows, observations, strict=True)]


def ask(batches: Batches, count: int, gate: Gate, words: Sequence[str] = ()) -> list[PolicyChunk | Exception]:
    """Let a first robot be computed for, and `count` others come meanwhile."""
    never = lambda: False  # noqa: E731
    with ThreadPoolExecutor(count + 1) as pool:
        first = pool.submit(batches.infer, Observation({}, 'first'), 100, never)
        assert gate.begun.wait(20.0)
        said = [*words, *('go',) * (count - len(words))]
        others = [pool.submit(batches.infer, Observation({}, said[n]), n, never) for n in range(count)]
        while len(batches._waiting) < count:
            pass
        gate.open.set()
        return [one.exception() or one.result() for one in (first, *others)]  # type: ignore[misc]


def test_who_comes_while_another_is_computed_is_of_the_next_round_and_gets_its_own_answer() -> None:
    gate = Gate()
    batches = Batches(gate, 4)
    found = ask(batches, 6, gate)
    assert [float(one.actions[0, 0]) for one in found] == [100.0, *range(6)]
    assert [len(asked) for asked in gate.asked] == [1, 4, 2]
    assert batches.rounds == {1: 1, 4: 1, 2: 1}


def test_a_faulty_observation_is_told_to_its_robot_alone() -> None:
    gate = Gate()
    found = ask(Batches(gate, 4), 3, gate, ['bad'])
    assert isinstance(found[1], InvalidInput)
    assert [float(one.actions[0, 0]) for one in (found[0], *found[2:])] == [100.0, 1.0, 2.0]


def test_a_defect_is_told_to_all_of_its_round_and_the_next_one_is_computed() -> None:
    gate = Gate()
    batches = Batches(gate, 4)
    found = ask(batches, 3, gate, ['broken'])
    assert [type(one) for one in found[1:]] == [CosmosError] * 3
    assert float(batches.infer(Observation({}, 'go'), 7, lambda: False).actions[0, 0]) == 7.0


def test_a_request_that_nobody_waits_for_is_left_out() -> None:
    gate = Gate()
    gate.open.set()
    batches = Batches(gate, 4)
    with pytest.raises(Cancelled):
        batches.infer(Observation({}, 'go'), 0, lambda: True)
    assert gate.asked == []


def test_the_first_of_a_round_waits_for_others_as_long_as_it_is_told_to() -> None:
    gate = Gate()
    gate.open.set()
    batches = Batches(gate, 2, wait_s=1.0)
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(batches.infer, Observation({}, 'go'), n, lambda: False) for n in range(2)]
        assert [float(one.result().actions[0, 0]) for one in found] == [0.0, 1.0]
    assert gate.asked in ([(0, 1)], [(1, 0)])


@pytest.mark.parametrize(
    ('most', 'wait_s', 'together'), [(1, 0.0, True), (65, 0.0, True), (4, 2.0, True), (4, 0.0, False)]
)
def test_what_makes_no_sense_is_refused(most: int, wait_s: float, together: bool) -> None:
    gate = Gate()
    gate.together = together
    with pytest.raises(InvalidInput):
        Batches(gate, most, wait_s)


@pytest.mark.parametrize('family', ['nano', 'edge'])
def test_together_robots_get_the_chunks_that_each_gets_alone(
    family: str, tiny_checkpoint, tiny_edge_checkpoint, robots: list[Observation]
) -> None:
    contract = engine.load_contract('demo_joint_pos')
    contract = replace(contract, timing=replace(contract.timing, chunk_rows=4))
    runtime = engine.load({'nano': tiny_checkpoint, 'edge': tiny_edge_checkpoint}[family], backend='torch').runtime
    policy = engine.Policy(runtime, contract)
    alone = [policy.infer(seen, seed) for seed, seen in enumerate(robots[:3])]
    together = policy.infer_together(robots[:3], range(3))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other.actions, one.actions, atol=1e-5)
        np.testing.assert_allclose(other.latents.numpy(), one.latents.numpy(), atol=1e-5)
        assert (other.instruction, other.seed) == (one.instruction, one.seed)


@pytest.mark.slow
def test_behind_a_server_no_answers_of_a_round_are_crossed(tiny_checkpoint, robots: list[Observation]) -> None:
    contract = engine.load_contract('demo_joint_pos')
    contract = replace(contract, timing=replace(contract.timing, chunk_rows=4))
    policy = engine.Policy(engine.load(tiny_checkpoint, backend='torch').runtime, contract)
    batches = Batches(policy, 4, wait_s=0.5)
    with BackgroundServer(PolicyServer(batches, contract, ServerOptions(port=0))) as server:

        def robot(number: int) -> list[np.ndarray]:
            with RemotePolicy(server.url, contract, deadline_s=60.0) as remote:
                return [remote.infer(robots[number], seed=10 * number + turn).actions for turn in range(3)]

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(robot, range(4)))
    assert max(batches.rounds) > 1, 'they were computed together'
    for number, found in enumerate(answers):
        for turn, actions in enumerate(found):
            alone = policy.infer(robots[number], 10 * number + turn).actions
            np.testing.assert_allclose(actions, alone, atol=1e-5)
