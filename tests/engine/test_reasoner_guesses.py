"""Reading ahead what is likely to follow saves passes of the network and changes nothing in an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import engine
from engine.network.rope import text_positions
from engine.network.understanding import GROWTH, Memory, Writer, read, score
from engine.reasoner import Reasoner
from engine.reasoner_guesses import GUESSES, LONGEST_PAUSE, RECALLED, Guesser
from engine.reasoner_questions import Skills, plan
from engine.reasoner_talk import ANSWERING, Answer, Message, Sampling, user
from engine.turns import Cancelled
from tests.engine.reasoner_world import Choices, choices, picture

PLAN = (
    '{"steps": [{"instruction": "pick up the red cube", "success": "the red cube is above the table"}, '
    '{"instruction": "put the red cube in the bowl", "success": "the red cube is in the bowl"}]}'
)
ASKED = [user(plan('clear the table', Skills(examples=('pick up the red cube',))).words)]
SAMPLINGS = {
    'greedy': Sampling(max_tokens=100),
    'drawn': Sampling(temperature=0.3, max_tokens=100, seed=3),
    'with penalties': replace(
        ANSWERING, temperature=0.3, max_tokens=100, presence_penalty=0.2, repetition_penalty=1.02
    ),
}
QUESTION = [user(picture(96, 128, 7), 'red cube red cube red cube red cube. What is next?')]


@pytest.fixture(scope='module')
def reasoner(model: engine.Cosmos3) -> Reasoner:
    return model.reasoner()


@dataclass
class Dictated:
    """An answer that was dictated, token by token, whatever the weights would rather say."""

    tokens: list[int]
    answer: Answer
    seen: Choices


def dictate(
    reasoner: Reasoner,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    messages: Sequence[Message] = ASKED,
    look: Callable[[int], None] = lambda _: None,
    limit: int = 1000,
    **options: Any,
) -> Dictated:
    """Have a text written; `look` is told how much of it is."""
    tokens = [*reasoner.parts.reader.encode(text), reasoner.parts.ends[0]]
    vocabulary = torch.arange(reasoner.parts.transformer.config.vocab_size)

    def allowed(written: Sequence[int]) -> torch.Tensor:
        look(len(written))
        return vocabulary == tokens[len(written)]

    with choices(monkeypatch) as seen:
        said = reasoner.generate(messages, sampling=Sampling(max_tokens=limit), allowed=allowed, **options)
    return Dictated(tokens, said, seen)


@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_an_answer_and_its_scores_are_those_of_writing_token_by_token(
    reasoner: Reasoner, monkeypatch: pytest.MonkeyPatch, sampling: str
) -> None:
    told: list[int] = []
    came_true = Guesser.came_true
    monkeypatch.setattr(Guesser, 'came_true', lambda self, count: told.append(count) or came_true(self, count))
    found = []
    for one in (reasoner, reasoner.without_guesses()):
        with choices(monkeypatch) as seen:
            said = one.generate(QUESTION, sampling=SAMPLINGS[sampling])
        found.append((said, seen))
    (said, seen), (expected, slowly) = found
    assert (said.text, said.finish, said.tokens) == (expected.text, expected.finish, expected.tokens)
    assert seen.tokens == slowly.tokens
    torch.testing.assert_close(torch.stack(seen.scores), torch.stack(slowly.scores), rtol=0, atol=1e-4)
    assert expected.passes == expected.tokens
    assert said.passes == said.tokens - sum(told)
    assert 0 in told, 'nothing was guessed wrongly, so nothing was forgotten'


def test_a_plan_takes_fewer_passes_than_tokens(reasoner: Reasoner, monkeypatch: pytest.MonkeyPatch) -> None:
    quickly = dictate(reasoner, PLAN, monkeypatch)
    slowly = dictate(reasoner.without_guesses(), PLAN, monkeypatch)
    for one in (quickly, slowly):
        assert (one.answer.text, one.answer.finish, one.seen.tokens) == (PLAN, 'stop', one.tokens)
    scores = [torch.stack(one.seen.scores) for one in (quickly, slowly)]
    torch.testing.assert_close(*scores, rtol=0, atol=1e-4)
    assert slowly.answer.passes == len(slowly.tokens)
    assert quickly.answer.passes < 0.8 * slowly.answer.passes


def test_a_limit_of_tokens_holds_wherever_it_falls_and_nothing_is_read_beyond_it(
    reasoner: Reasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_to: list[int] = []
    rows: set[int] = set()
    write = Writer.__call__

    def look(self: Writer, tokens: Sequence[int]) -> torch.Tensor:
        scores = write(self, tokens)
        read_to.append(self._memory.length)
        rows.add(len(tokens))
        return scores

    monkeypatch.setattr(Writer, '__call__', look)
    text = 'the red cube is in the bowl, ' * 6
    for limit in range(1, 40):
        read_to.clear()
        found = dictate(reasoner, text, monkeypatch, limit=limit)
        assert (found.answer.tokens, found.answer.finish) == (limit, 'length')
        assert found.seen.tokens == found.tokens[:limit]
        assert max(read_to, default=0) <= found.answer.prompt_tokens + limit
    assert rows == {1, 1 + GUESSES}, 'another number of rows might have to be compiled'


def test_a_stop_text_and_a_cancellation_count_also_among_guesses(
    reasoner: Reasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'the red cube is in the bowl, ' * 6
    whole = dictate(reasoner, text, monkeypatch)
    assert whole.answer.passes < len(whole.tokens)
    for stop in ('is in the bowl, the red', 'bowl, the red cube is', 'cube is in the bowl, the'):
        for turn in range(1, 5):
            until = text.index(stop, 29 * turn)
            ending = text[until - 29 * turn : until] + stop  # the words so far, which come only once
            said = dictate(reasoner, text, monkeypatch, stop=[ending]).answer
            assert said.text == text[: text.index(ending)].strip()
            assert said.finish == 'stop'
            assert said.tokens < len(whole.tokens)
    for last in range(len(whole.tokens) - 12, len(whole.tokens) - 3):
        written: list[int] = []
        with pytest.raises(Cancelled, match=f'after {last + 1} tokens'):
            dictate(
                reasoner,
                text,
                monkeypatch,
                look=written.append,
                cancelled=lambda: len(written) > last,  # noqa: B023
            )
        assert len(written) == last + 1


def test_with_the_tower_in_host_memory_guesses_come_true_as_well(
    tiny_checkpoint, reasoner: Reasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    offloaded = dictate(engine.load(tiny_checkpoint, offload=True).reasoner(), PLAN, monkeypatch)
    here = dictate(reasoner, PLAN, monkeypatch)
    assert offloaded.answer.passes == here.answer.passes < len(here.tokens)
    torch.testing.assert_close(torch.stack(offloaded.seen.scores), torch.stack(here.seen.scores), rtol=0, atol=1e-5)


def test_what_was_forgotten_is_never_seen_again_also_when_the_memory_grows(reasoner: Reasoner) -> None:
    transformer, begin = reasoner.parts.transformer, GROWTH - 4
    ids = torch.randint(40, 600, (begin + 21,), generator=torch.Generator().manual_seed(1))
    tokens, wrong = ids.tolist(), [41] * 7
    with torch.inference_mode():
        at_once = score(
            transformer, read(transformer, transformer.embed(ids), text_positions(len(ids)), Memory(transformer))
        )
        memory = Memory(transformer)
        read(transformer, transformer.embed(ids[:begin]), text_positions(begin), memory)
        writer, found = Writer(transformer, memory, begin), []
        for at in range(begin, begin + 20, 2):
            found.append(writer([*tokens[at : at + 2], *wrong])[:2])
            writer.forget(len(wrong))
        found.append(writer([tokens[begin + 20]]))
    assert memory.room == 2 * GROWTH
    torch.testing.assert_close(torch.cat(found), at_once[begin:], rtol=0, atol=1e-4)


def test_what_stood_there_before_is_what_is_guessed() -> None:
    guesser = Guesser([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
    assert guesser.guess() == []
    guesser.add(3)
    assert guesser.guess() == []
    guesser.add(4)
    assert guesser.guess() == [5, 6, 7, 8, 9, 10, 11]


def test_what_goes_round_is_guessed_to_go_on() -> None:
    assert Guesser([9, 1, 2, 3, 1, 2, 3, 1, 2]).guess() == [3, 1, 2, 3, 1, 2, 3]
    assert Guesser([5, 5, 5]).guess() == [5] * GUESSES


def test_the_longer_pattern_knows_better() -> None:
    # 1 2 3 4 went on with 7, and later 3 4 alone with 9.
    assert Guesser([1, 2, 3, 4, 7, 0, 6, 3, 4, 9, 1, 2, 3, 4]).guess()[0] == 7


def test_of_a_long_prompt_the_end_is_recalled() -> None:
    early, late = [1, 2, 3], [4, 5, 6]
    prompt = [*early, *range(1000, 1000 + RECALLED), *late]
    assert Guesser([*prompt, 1, 2]).guess() == []
    assert Guesser([*prompt, 4, 5]).guess()[0] == 6


def pauses_after(guesser: Guesser, count: int) -> int:
    """Tokens that are written without a guess after so many came true."""
    guesser.came_true(count)
    pause = 0
    while not guesser.guess():
        pause += 1
    return pause


def test_wrong_guesses_make_for_longer_and_longer_pauses_until_one_comes_true() -> None:
    guesser = Guesser([1, 2, 1, 2])
    assert [pauses_after(guesser, 0) for _ in range(7)] == [1, 2, 4, 8, 16, 16, 16]
    assert [pauses_after(guesser, count) for count in (1, 0, 0, GUESSES, 0)] == [0, 1, 2, 0, 1]


@given(st.lists(st.integers(0, 5), max_size=60), st.lists(st.integers(0, GUESSES), max_size=60))
def test_pauses_end_and_only_what_was_there_is_guessed(prompt: list[int], came_true: list[int]) -> None:
    guesser = Guesser([*prompt, 1, 2, 1, 2])
    for count in came_true:
        assert pauses_after(guesser, count) <= LONGEST_PAUSE
    guesses = guesser.guess()
    assert len(guesses) == GUESSES
    assert {*guesses} <= {*prompt, 1, 2}
