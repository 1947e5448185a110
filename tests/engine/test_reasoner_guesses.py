"""Reading ahead what is likely to follow saves passes of the network and changes nothing in an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import engine
from engine.reasoner import Reasoner
from engine.reasoner_guesses import GUESSES, LONGEST_PAUSE, Guesser
from engine.reasoner_questions import Skills, plan
from engine.reasoner_talk import ANSWERING, Message, Sampling, user
from tests.engine.reasoner_world import Choices, choices, picture

PLAN = (
    '{"steps": [{"instruction": "pick up the red cube", "success": "the red cube is above the table"}, '
    '{"instruction": "put the red cube in the bowl", "success": "the red cube is in the bowl"}]}'
)
SAMPLINGS = {
    'greedy': Sampling(max_tokens=60),
    'drawn': Sampling(temperature=1.0, max_tokens=60, seed=3),
    'as published': replace(ANSWERING, max_tokens=60, repetition_penalty=1.1),
}
QUESTION = [user(picture(96, 128, 7), 'red cube red cube red cube red cube. What is next?')]


@pytest.fixture(scope='module')
def reasoner(model: engine.Cosmos3) -> Reasoner:
    return model.reasoner()


def one_by_one(reasoner: Reasoner) -> Reasoner:
    return Reasoner(reasoner.runtime, replace(reasoner.parts, guesses=False))


def dictated(reasoner: Reasoner, text: str, messages: list[Message], monkeypatch: pytest.MonkeyPatch) -> Choices:
    """Have a text written whatever the weights would rather write."""
    tokens = [*reasoner.parts.reader.encode(text), reasoner.parts.ends[0]]
    vocabulary = reasoner.parts.transformer.config.vocab_size

    def allowed(written: Sequence[int]) -> torch.Tensor:
        return torch.arange(vocabulary) == tokens[len(written)]

    with choices(monkeypatch) as seen:
        said = reasoner.generate(messages, sampling=Sampling(max_tokens=len(tokens) + 5), allowed=allowed)
    assert said.text == text
    assert (said.finish, said.tokens, seen.tokens) == ('stop', len(tokens), tokens)
    seen.passes = said.passes
    return seen


@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_an_answer_and_its_scores_are_those_of_writing_token_by_token(
    reasoner: Reasoner, monkeypatch: pytest.MonkeyPatch, sampling: str
) -> None:
    found = []
    for one in (reasoner, one_by_one(reasoner)):
        with choices(monkeypatch) as seen:
            said = one.generate(QUESTION, sampling=SAMPLINGS[sampling])
        found.append((said, seen))
    (said, seen), (expected, slowly) = found
    assert (said.text, said.finish, said.tokens) == (expected.text, expected.finish, expected.tokens)
    assert seen.tokens == slowly.tokens
    torch.testing.assert_close(torch.stack(seen.scores), torch.stack(slowly.scores), rtol=0, atol=1e-4)
    assert said.passes <= expected.passes == expected.tokens


def test_a_plan_takes_fewer_passes_than_tokens(reasoner: Reasoner, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [user(plan('clear the table', Skills(examples=('pick up the red cube',))).words)]
    quickly = dictated(reasoner, PLAN, messages, monkeypatch)
    slowly = dictated(one_by_one(reasoner), PLAN, messages, monkeypatch)
    torch.testing.assert_close(torch.stack(quickly.scores), torch.stack(slowly.scores), rtol=0, atol=1e-4)
    assert slowly.passes == len(slowly.tokens)
    assert quickly.passes < 0.8 * slowly.passes


def test_a_limit_of_tokens_holds_in_the_middle_of_guesses(reasoner: Reasoner) -> None:
    whole = reasoner.generate(QUESTION, sampling=Sampling(max_tokens=40))
    for limit in range(1, 25):
        said = reasoner.generate(QUESTION, sampling=Sampling(max_tokens=limit))
        assert (said.tokens, said.finish) == (limit, 'length')
        assert whole.text.startswith(said.text.rstrip('\N{REPLACEMENT CHARACTER}'))


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


@given(st.lists(st.integers(0, 5), max_size=60), st.lists(st.integers(0, GUESSES), max_size=60))
def test_wrong_guesses_make_for_pauses_that_end(prompt: list[int], learned: list[int]) -> None:
    guesser = Guesser([*prompt, 1, 2, 1, 2])
    for right in learned:
        guesser.learn(right)
    quiet = 0
    while not guesser.guess():
        quiet += 1
    assert quiet <= (LONGEST_PAUSE if learned and not learned[-1] else 0)
    assert all(token in {*prompt, 1, 2} for token in guesser.guess())
