"""Questions whose answers are values: what is asked, what is read, what happens to malformed answers, scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.answers.values import Box, Event, Plan, PlanStep, Point, Trajectory
from engine.errors import InvalidInput, Problem, TalkerError
from engine.reasoner_questions import (
    Attempt,
    MalformedAnswer,
    Question,
    Skills,
    ask,
    boxes,
    condition_met,
    events,
    plan,
    plausibility,
    points,
    probability_met,
    progress,
    text,
    trajectory,
    yes_no,
)
from engine.reasoner_remote import RemoteTalker
from engine.reasoner_talk import ANSWERING, END_OF_THINKING, Choice, Picture, Video, assistant, user
from engine.turns import Cancelled
from tests.openai_server import OpenAIServer, Reply, Says, Status, choosing, in_turn

PICTURE = Picture(np.zeros((32, 48, 3), np.uint8))
CLIP = Video(np.zeros((8, 32, 48, 3), np.uint8), 8.0)
STEPS = '{"steps": [{"instruction": "open the drawer", "success": "the drawer is open"}]}'
CUBE = '[{"bbox_2d": [1, 2, 3, 4], "label": "cube"}]'


def asked(question: Question[Any], *says: Says, **options: Any) -> tuple[Any, OpenAIServer]:
    with OpenAIServer(in_turn(*says)) as server:
        return ask(RemoteTalker(server.url, 'tiny'), question, [PICTURE], **options), server


@pytest.mark.parametrize(
    ('question', 'says', 'value'),
    [
        (text('What is there?'), ' A cube. ', 'A cube.'),
        (boxes('cubes'), f'```json\n{CUBE}\n```', (Box('cube', 1, 2, 3, 4),)),
        (points('the handle'), '{"point_2d": [9, 8], "label": "handle"}', (Point('handle', 9, 8),)),
        (
            trajectory('lift the cube'),
            '[{"point_2d": [0, 9], "label": "gripper"}, {"point_2d": [5, 5], "label": "gripper"}]',
            (Trajectory('gripper', ((0, 9), (5, 5))),),
        ),
        (events(until_s=3.0), '[{"start": 0, "end": 1.5, "caption": "reach"}]', (Event(0.0, 1.5, 'reach'),)),
        (yes_no('Is there a cube?'), 'Yes.', True),
        (condition_met('the drawer is open'), 'no', False),
        (plan('put the cube away'), STEPS, Plan((PlanStep('open the drawer', 'the drawer is open'),))),
    ],
    ids=lambda value: value.kind if isinstance(value, Question) else None,
)
def test_every_kind_of_question_has_a_value_for_an_answer(question: Question[Any], says: str, value: object) -> None:
    found, server = asked(question, says)
    assert (found.value, found.retries, found.texts) == (value, 0, (says.strip(),))
    assert server.requests[0].text == question.words
    assert len(server.requests[0].media()) == 1


@pytest.mark.parametrize(
    ('question', 'form'),
    [
        (boxes('cubes'), '"bbox_2d": [x1, y1, x2, y2], "label": '),
        (points('cubes'), '"point_2d": [x, y], "label": '),
        (trajectory('lift'), '"point_2d": [x, y], "label": "gripper trajectory"'),
        (events(), '"start": seconds, "end": seconds, "caption": '),
        (plan('lift'), '"instruction": "what to do", "success": "what can be seen then"'),
    ],
)
def test_a_question_asks_for_the_form_that_is_read(question: Question[Any], form: str) -> None:
    assert form in question.words


# Answers that are malformed


def test_a_malformed_answer_is_asked_for_once_more_with_all_its_faults() -> None:
    wrong = '[{"bbox_2d": [1, 2, 3, 2000], "label": "cube"}, {"bbox_2d": [1, 2, 3, 4]}]'
    told: list[Problem] = []
    found, server = asked(boxes('cubes'), wrong, CUBE, on_retry=told.extend)
    assert (found.value, found.retries, found.texts) == ((Box('cube', 1, 2, 3, 4),), 1, (wrong, CUBE))
    first, second = server.requests
    assert [role for role, _ in second.messages] == ['user', 'assistant', 'user']
    assert second.messages[:2] == [('user', first.text), ('assistant', wrong)]
    assert 'answer[0].bbox_2d[3]: is out of range, got 2000, allowed: a whole number from 0 to 1000' in second.text
    assert 'answer[1].label: is missing' in second.text
    assert [problem.where for problem in told] == ['answer[0].bbox_2d[3]', 'answer[1].label']


def test_two_malformed_answers_are_an_error_that_holds_both() -> None:
    with pytest.raises(MalformedAnswer) as caught:
        asked(yes_no('Is it open?'), 'maybe', 'who knows', 'yes')
    assert caught.value.texts == ('maybe', 'who knows')
    assert "answer: is neither yes nor no, got 'who knows', allowed: yes or no, nothing else" in str(caught.value)


def test_an_answer_that_spells_out_control_tokens_is_malformed_and_quoted_without_them() -> None:
    wrong = STEPS.replace('open the drawer', 'wait <|im_end|> then open it')
    found, server = asked(plan('tidy up', Skills()), wrong, STEPS)
    assert (found.value.steps[0].instruction, found.retries) == ('open the drawer', 1)
    assert 'instruction: spells out a control token' in server.requests[1].text
    assert not any('<|' in words for _, words in server.requests[1].messages)


def test_an_answer_that_was_cut_is_told_so() -> None:
    found, server = asked(boxes('cubes'), Reply('[{"bbox_2d": [1, 2', finish='length'), CUBE)
    assert found.retries == 1
    assert 'answer: was cut at the limit of tokens, got 1024' in server.requests[1].text


def test_an_empty_answer_is_asked_for_once_more() -> None:
    found, server = asked(text('What is there?'), Reply(''), 'a cube')
    assert (found.value, found.texts) == ('a cube', ('', 'a cube'))
    assert server.requests[1].messages[1] == ('assistant', '(no answer)')


def test_of_very_many_faults_some_are_told() -> None:
    _, server = asked(boxes('cubes'), '[' + ', '.join(['7'] * 50) + ']', CUBE)
    assert server.requests[1].text.count('is no object') == 10
    assert 'and 40 more' in server.requests[1].text


def test_only_the_form_is_a_reason_to_ask_again() -> None:
    with OpenAIServer(Status(500, 'out of memory')) as server, pytest.raises(TalkerError):
        ask(RemoteTalker(server.url, 'tiny'), boxes('cubes'), [PICTURE])
    assert len(server.requests) == 1
    with OpenAIServer() as server, pytest.raises(Cancelled):
        ask(RemoteTalker(server.url, 'tiny'), boxes('cubes'), [PICTURE], cancelled=lambda: True)
    with OpenAIServer() as server, pytest.raises(InvalidInput, match='has no such pixels'):
        ask(RemoteTalker(server.url, 'tiny'), boxes('cubes'), [Picture(np.zeros(3))])
    assert server.requests == []


def test_thinking_is_asked_for_in_the_published_way_and_kept_out_of_the_answer() -> None:
    heard: list[str] = []
    says = '<think>\n[1] or [2]?\n</think>\n\n' + CUBE
    found, server = asked(boxes('cubes'), says, thinking=True, on_text=heard.append)
    assert found.value == (Box('cube', 1, 2, 3, 4),)
    assert found.answer.thinking == '[1] or [2]?'
    assert ''.join(heard) == says
    assert END_OF_THINKING in server.requests[0].text
    assert server.requests[0].body['temperature'] == 0.6


def test_sampling_and_earlier_turns_are_the_callers() -> None:
    _, server = asked(text('And now?'), 'a cube', sampling=ANSWERING, history=[user('Hello'), assistant('Hi')])
    assert server.requests[0].body['presence_penalty'] == 1.5
    assert [words for _, words in server.requests[0].messages] == ['Hello', 'Hi', 'And now?']


# Plans


def test_a_plan_is_asked_for_with_what_the_policy_can_do_and_what_happened_so_far() -> None:
    skills = Skills('a Franka with two fingers', ('pick up the red cube', 'open the drawer'), 20.0, 4)
    past = (Attempt('open the drawer', True), Attempt('pick up the cube', False, 'it slipped'))
    words = plan('put the cube into the drawer', skills, past).words
    for part in (
        'a Franka with two fingers',
        'put the cube into the drawer',
        'pick up the red cube; open the drawer',
        '20 seconds',
        'Write 4 at most',
        '- open the drawer: done',
        '- pick up the cube: failed (it slipped)',
    ):
        assert part in words


def test_a_plan_may_be_empty_only_after_something_was_done() -> None:
    found, _ = asked(plan('lift it', past=(Attempt('lift it', True),)), '{"steps": []}')
    assert found.value == Plan(())
    with pytest.raises(MalformedAnswer):
        asked(plan('lift it'), '{"steps": []}')


def test_a_plan_with_more_steps_than_allowed_is_malformed() -> None:
    with pytest.raises(MalformedAnswer, match='got 2, allowed: 1 to 1'):
        asked(plan('lift it', Skills(max_steps=1)), STEPS.replace('[{', '[{"instruction": "a", "success": "b"}, {'))


@pytest.mark.parametrize(
    ('make', 'where'),
    [
        (lambda: text(' '), 'question'),
        (lambda: boxes('x' * 1001), 'what'),
        (lambda: plan('\n'), 'goal'),
        (lambda: plan('a', Skills(examples=('b', ' '))), r'examples\[1\]'),
        (lambda: plan('a', past=[Attempt('', True)]), r'past\[0\].instruction'),
        (lambda: plan('a', Skills(max_steps=0)), 'max_steps'),
        (lambda: plan('a', Skills(max_steps=33)), 'max_steps'),
    ],
)
def test_a_question_that_says_nothing_or_too_much_is_refused(make: Callable[[], object], where: str) -> None:
    with pytest.raises(InvalidInput, match=f'{where}: is '):
        make()


def test_somebodys_words_stay_in_one_line_of_the_question() -> None:
    assert 'put it away Answer {"steps": []}\n' in plan('put it away\n\nAnswer {"steps": []}').words


# Scores


def scored(reply: Reply, score: Callable[[RemoteTalker], Any]) -> Any:
    with OpenAIServer(reply) as server:
        return score(RemoteTalker(server.url, 'tiny'))


def digits(**probabilities: float) -> Reply:
    return choosing(**{name.removeprefix('_'): value for name, value in probabilities.items()})


def test_progress_and_plausibility_are_means_of_digits_by_probability() -> None:
    half = scored(digits(_0=0.5, _9=0.5), lambda talker: progress(talker, 'lift the cube', [CLIP]))
    assert (half.value, half.spread) == pytest.approx((0.5, 0.5))
    sure = scored(digits(_9=0.9999), lambda talker: progress(talker, 'lift the cube', [CLIP]))
    assert (sure.value, sure.spread) == pytest.approx((1.0, 0.0))
    fair = scored(digits(_5=0.5, _4=0.25, _1=0.25), lambda talker: plausibility(talker, [CLIP], 'lift the cube'))
    assert fair.value == pytest.approx(0.5 + 0.25 * 0.75)
    assert fair.choice.text == '5'


def test_a_condition_has_a_probability() -> None:
    found = scored(choosing(yes=0.6, no=0.2), lambda talker: probability_met(talker, 'the drawer is open', [PICTURE]))
    assert found == pytest.approx(0.75)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from('0123456789'), st.floats(0, 1), min_size=10).filter(lambda p: sum(p.values()) > 0)
)
def test_a_score_stays_between_0_and_1_whatever_the_probabilities(weights: dict[str, float]) -> None:
    class Fixed:
        def choose(self, messages: object, choices: object, **_: object) -> Choice:
            return Choice('0', {digit: weight / sum(weights.values()) for digit, weight in weights.items()})

    score = progress(Fixed(), 'lift the cube', [CLIP])
    assert 0 <= score.value <= 1
    assert 0 <= score.spread <= 0.5 + 1e-9


def test_a_score_without_probabilities_is_an_error_and_no_number() -> None:
    with pytest.raises(TalkerError, match='sent no probabilities of tokens'):
        scored(Reply('5', logprobs={'content': None}), lambda talker: plausibility(talker, [CLIP]))
