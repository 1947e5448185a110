"""Noise drawn ahead: the same numbers as when it is asked for, drawn once, and only what is expected."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampler import RequestSeed, framework_noise, request_seeds
from engine.sampler_ahead import NoiseAhead

SHAPE = (1, 4, 3, 2, 2)


class Drawn:
    """Stands before the generator and notes which seeds are drawn, by whom; can hold the drawing thread back."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.ahead: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.begun = threading.Event()

    def __call__(self, seed: int, shape: tuple[int, ...]) -> torch.Tensor:
        is_ahead = threading.current_thread().name.startswith('noise')
        (self.ahead if is_ahead else self.asked).append(seed)
        if is_ahead:
            self.begun.set()
            assert self.free.wait(10)
        return framework_noise(seed, shape)


@pytest.fixture
def drawn() -> Iterator[Drawn]:
    record = Drawn()
    yield record
    record.free.set()


def ask(ahead: NoiseAhead[torch.Tensor], *seeds: int) -> None:
    """Requests as a policy makes them, one after another, each with the right noise."""
    for seed in seeds:
        assert torch.equal(ahead.take(seed, SHAPE), framework_noise(seed, SHAPE))
        ahead.draw_ahead()


def fail(_seed: int, _shape: tuple[int, ...]) -> torch.Tensor:
    """A generator without memory."""
    raise MemoryError


def settle(ahead: NoiseAhead[torch.Tensor]) -> None:
    """Wait until nothing is being drawn."""
    ahead._worker.submit(lambda: None).result()


@settings(max_examples=30, deadline=None)
@given(seeds=st.lists(st.one_of(st.integers(0, 5), st.integers(0, 2**32 - 1)), max_size=12))
def test_whatever_is_expected_the_noise_is_that_of_the_seed(seeds: list[int]) -> None:
    ask(NoiseAhead(framework_noise), *seeds)


def test_the_seeds_of_the_policy_node_are_drawn_once_each_and_all_but_the_first_ahead(drawn: Drawn) -> None:
    ahead = NoiseAhead(drawn)
    seeds = list(islice(request_seeds(7), 5))
    for seed in seeds:
        ask(ahead, seed)
        settle(ahead)
    assert drawn.asked == seeds[:1]
    assert drawn.ahead == [*seeds[1:], seeds[-1].following]


def test_the_same_seed_again_is_drawn_once(drawn: Drawn) -> None:
    ask(NoiseAhead(drawn), 3, 3, 3, 3)
    assert (drawn.asked, drawn.ahead) == ([3], [])


@pytest.mark.parametrize(('first', 'step'), [(0, 1), (10, -2), (5, 7)])
def test_an_arithmetic_sequence_is_drawn_ahead_from_its_fourth_member_on(drawn: Drawn, first: int, step: int) -> None:
    ahead = NoiseAhead(drawn)
    for n in range(5):
        ask(ahead, first + n * step)
        settle(ahead)
    assert drawn.asked == [first, first + step, first + 2 * step]
    assert drawn.ahead == [first + n * step for n in (3, 4, 5)]


def test_seeds_without_a_rule_are_not_guessed(drawn: Drawn) -> None:
    ask(NoiseAhead(drawn), 3, 14, 15, 92, 65, 35)
    assert drawn.ahead == []


def test_no_seed_beyond_those_that_the_generator_takes_is_expected(drawn: Drawn) -> None:
    ask(NoiseAhead(drawn), 2, 1, 0)
    ask(NoiseAhead(drawn), 2**32 - 3, 2**32 - 2, 2**32 - 1)
    assert drawn.ahead == []


def test_noise_of_another_shape_is_not_handed_out(drawn: Drawn) -> None:
    ahead = NoiseAhead(drawn)
    ask(ahead, RequestSeed(1, 2))
    settle(ahead)
    assert ahead.take(2, (5,)).shape == (5,)
    assert drawn.asked == [1, 2]


def test_who_asks_for_what_is_being_drawn_waits_for_it(drawn: Drawn) -> None:
    ahead = NoiseAhead(drawn)
    drawn.free.clear()
    ask(ahead, RequestSeed(1, 2))
    assert drawn.begun.wait(10)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ahead.take, 2, SHAPE)
        drawn.free.set()
        assert torch.equal(waiting.result(10), framework_noise(2, SHAPE))
    assert (drawn.asked, drawn.ahead) == ([1], [2])


def test_a_wrong_guess_holds_nobody_up(drawn: Drawn) -> None:
    ahead = NoiseAhead(drawn)
    drawn.free.clear()
    ask(ahead, RequestSeed(1, 2))
    assert drawn.begun.wait(10)
    ask(ahead, RequestSeed(50, 51))  # at once, while 2 is being drawn; 51 has to wait behind it
    ask(ahead, 51)  # not begun yet: drawn by whoever asks
    assert drawn.asked == [1, 50, 51]
    drawn.free.set()
    settle(ahead)
    assert drawn.ahead == [2], 'what was called off is not drawn'


def test_a_draw_that_failed_is_made_again() -> None:
    outcomes = iter([framework_noise, fail, framework_noise])

    def draw(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
        return next(outcomes)(seed, shape)

    ahead = NoiseAhead(draw)
    assert ahead.take(RequestSeed(1, 2), SHAPE) is not None
    ahead.draw_ahead()
    settle(ahead)
    ask(ahead, 2)
    assert next(outcomes, None) is None


def test_threads_that_ask_at_once_get_their_own_noise() -> None:
    ahead = NoiseAhead(framework_noise)
    chains: list[Callable[[], None]] = [
        lambda: ask(ahead, *islice(request_seeds(1), 20)),
        lambda: ask(ahead, *range(20)),
        lambda: ask(ahead, *([5] * 20)),
    ]
    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(chain) for chain in chains]:
            future.result(30)


def test_a_seed_that_knows_its_successor_is_a_number_like_any_other() -> None:
    seed = next(request_seeds(0))
    assert (seed, type(int(seed)), f'{seed}', seed + 1) == (1826701615, int, '1826701615', 1826701616)
    assert RequestSeed(4).following is None
