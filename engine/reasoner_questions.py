"""Questions to a reasoner whose answers are values; asked once, once more if the answer is malformed, never guessed.

    asked = ask(talker, boxes('every cube'), [Picture(rgb)])
    asked.value     # (Box(label='red cube', x1=412, ...), ...)

The words are our own; the forms that they ask for are those of the published cookbooks of Cosmos 3, which is what the
model was trained to write. A score is read off the probabilities of its digits instead of from words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from engine.answers.parsers import (
    MAX_SECONDS,
    MAX_SENTENCE,
    MAX_STEPS,
    parse_boxes,
    parse_events,
    parse_plan,
    parse_points,
    parse_text,
    parse_trajectories,
    parse_yes_no,
)
from engine.answers.values import Box, Event, Plan, Point, Trajectory
from engine.errors import InvalidInput, Problem
from engine.reasoner_talk import GREEDY, THINKING, Answer, Choice, Message, Part, Sampling, Talker, assistant, user

RETRIES = 1
_TOLD = 10  # faults that are told to the model; more would not help it
_COORDINATES = (
    'Coordinates are whole numbers from 0 to 1000, whatever the size of the picture: x from its left edge to the '
    'right, y from its upper edge down.'
)
_PLAUSIBLE = {'1': 'impossible', '2': 'hardly possible', '3': 'doubtful', '4': 'likely', '5': 'just as it would happen'}


@dataclass(frozen=True)
class Question[T]:
    """What is asked, and how its answer is read.

    Attributes:
        kind: Short name for logs and errors.
        words: What the model is told, behind pictures and videos.
        parse: Text of an answer to its value; raises InvalidInput with every fault.
    """

    kind: str
    words: str
    parse: Callable[[str], T]


@dataclass(frozen=True)
class Asked[T]:
    """What came of a question.

    Attributes:
        answer: The answer that was read.
        value: What it says.
        retries: How many malformed answers came before it.
        texts: All answers in their order; the last one is `answer.text`.
    """

    answer: Answer
    value: T
    retries: int
    texts: tuple[str, ...]


class MalformedAnswer(InvalidInput):
    """The reasoner answered, also when asked again, but not in the form that was asked for.

    `texts` are its answers in their order; `problems` are those of the last one.
    """

    def __init__(self, kind: str, texts: Sequence[str], problems: Iterable[Problem]) -> None:
        self.texts = tuple(texts)
        super().__init__(f'{kind}: answer {len(self.texts)} of the reasoner, too, is malformed', problems)


@dataclass(frozen=True)
class Skills:
    """What the policy can do that is to follow a plan.

    Attributes:
        robot: What it moves, in words.
        examples: Instructions that it follows well; the model writes steps like them.
        step_s: How long it may take for a step, s; None: not told.
        max_steps: Most steps of a plan.
    """

    robot: str = 'a robot arm with a gripper'
    examples: tuple[str, ...] = ()
    step_s: float | None = None
    max_steps: int = 8


@dataclass(frozen=True)
class Attempt:
    """A step that was tried before: whether it was done, and if not, what is known of the reason."""

    instruction: str
    done: bool
    why: str = ''


@dataclass(frozen=True)
class Score:
    """A number from 0 to 1 that a reasoner gives, from the probabilities of its digits.

    Attributes:
        value: Their mean.
        spread: Their standard deviation: near 0 if it is sure, 0.5 at most.
        choice: The digits with their probabilities.
    """

    value: float
    spread: float
    choice: Choice


def text(question: str) -> Question[str]:
    """Any question; the answer is words."""
    _words('question', question)  # its lines stay as they are
    return Question('text', question.strip(), parse_text)


def boxes(what: str) -> Question[tuple[Box, ...]]:
    """Where things are; an empty answer means that there are none."""
    words = (
        f'Find in the picture: {_words("what", what)}\n'
        'Answer with JSON and nothing else, a list with one object for each thing found: '
        '[{"bbox_2d": [x1, y1, x2, y2], "label": "what it is"}]. x1, y1 is its upper left corner, x2, y2 its lower '
        f'right one. {_COORDINATES} If there is no such thing, answer [].'
    )
    return Question('boxes', words, parse_boxes)


def points(what: str) -> Question[tuple[Point, ...]]:
    """Where to point; an empty answer means nowhere."""
    words = (
        f'Point in the picture at: {_words("what", what)}\n'
        'Answer with JSON and nothing else, a list with one object for each place: '
        f'[{{"point_2d": [x, y], "label": "what it is"}}]. {_COORDINATES} If there is no such place, answer [].'
    )
    return Question('points', words, parse_points)


def trajectory(task: str) -> Question[tuple[Trajectory, ...]]:
    """Which way the gripper should take through the picture to do a task (published as action chain of thought)."""
    words = (
        f'The robot in the picture has this task: {_words("task", task)}\n'
        'Which way should its gripper take through the picture? Answer with JSON and nothing else, a list of points in '
        'the order in which they are passed, beginning where the gripper is now: '
        f'[{{"point_2d": [x, y], "label": "gripper trajectory"}}, ...]. {_COORDINATES}'
    )
    return Question('trajectory', words, parse_trajectories)


def events(what: str = '', until_s: float = MAX_SECONDS) -> Question[tuple[Event, ...]]:
    """What happens when in a video of `until_s` seconds; of one kind only, if `what` says which."""
    wanted = (
        f'Find in the video when this happens: {_words("what", what)}' if what else 'Say what happens in the video.'
    )
    words = (
        f'{wanted}\nAnswer with JSON and nothing else, a list in order of time: '
        '[{"start": seconds, "end": seconds, "caption": "what happens"}]. Times are seconds from the beginning of the '
        'video, as numbers such as 3.5. If there is nothing to tell, answer [].'
    )
    return Question('events', words, lambda answer: parse_events(answer, until_s))


def yes_no(question: str) -> Question[bool]:
    """A question to be answered by yes or no."""
    return Question('yes-no', f'{_words("question", question)}\n{_ONE_WORD}', parse_yes_no)


def condition_met(condition: str) -> Question[bool]:
    """Whether something can be seen to hold, such as the success condition of a step."""
    return Question('condition', _condition_words(condition), parse_yes_no)


def plan(goal: str, skills: Skills | None = None, past: Sequence[Attempt] = ()) -> Question[Plan]:
    """Which steps lead to a goal, from what the pictures show now.

    Args:
        goal: What is to be reached, in words.
        skills: Of the policy that will follow the plan.
        past: Steps that were tried already, in their order. Only then the plan may be empty: nothing is left to do.

    Raises:
        InvalidInput: A text is empty or too long, or `max_steps` is not 1 to 32; lists every fault of that text.
    """
    skills = skills or Skills()
    if not 1 <= skills.max_steps <= MAX_STEPS:
        raise InvalidInput(
            'plan', [Problem('max_steps', 'is out of range', str(skills.max_steps), f'1 to {MAX_STEPS}')]
        )
    parts = [
        f'You plan for {_words("robot", skills.robot)}. The goal is: {_words("goal", goal)}',
        *_skill_lines(skills),
        *_past_lines(past),
        f'Which steps lead from what you see now to the goal? Write {skills.max_steps} at most, each one thing for the '
        'robot to do, as a short instruction, with a condition that can be seen in a picture once the step has '
        'succeeded and not before.',
        *(['If the goal is reached already, answer {"steps": []}.'] if past else []),
        'Answer with JSON and nothing else: '
        '{"steps": [{"instruction": "what to do", "success": "what can be seen then"}, ...]}',
    ]
    limit, may_be_empty = skills.max_steps, bool(past)
    return Question('plan', '\n'.join(parts), lambda answer: parse_plan(answer, limit, may_be_empty=may_be_empty))


def ask[T](
    talker: Talker,
    question: Question[T],
    media: Sequence[Part] = (),
    *,
    sampling: Sampling | None = None,
    thinking: bool = False,
    history: Sequence[Message] = (),
    cancelled: Callable[[], bool] = lambda: False,
    on_text: Callable[[str], None] | None = None,
    on_retry: Callable[[Sequence[Problem]], None] | None = None,
) -> Asked[T]:
    """Ask, read the answer, and ask once more with what was wrong with it if it is malformed.

    Args:
        talker: Whom to ask.
        question: What to ask.
        media: Pictures and videos, and words that belong to them, in front of the question.
        sampling: How to choose tokens; None: greedily, and as published with `thinking`.
        thinking: Whether to let it think first.
        history: Turns before this one.
        cancelled: See :meth:`engine.reasoner_talk.Talker.generate`.
        on_text: Likewise; told the words of both answers.
        on_retry: Told what was wrong with the first answer, before it is asked once more.

    Raises:
        MalformedAnswer: The second answer was malformed, too.
        InvalidInput: The conversation is malformed or too long.
        Cancelled: `cancelled` returned True.
        TalkerError: There was no answer.
    """
    messages = [*history, user(*media, question.words)]
    sampling = sampling or (THINKING if thinking else GREEDY)
    texts: list[str] = []
    while True:
        answer = talker.generate(messages, sampling=sampling, thinking=thinking, cancelled=cancelled, on_text=on_text)
        texts.append(answer.text)
        try:
            return Asked(answer, question.parse(answer.text), len(texts) - 1, tuple(texts))
        except InvalidInput as error:
            problems = [*_cut_short(answer, sampling), *error.problems]
        if len(texts) > RETRIES:
            raise MalformedAnswer(question.kind, texts, problems)
        if on_retry is not None:
            on_retry(problems)
        messages += [assistant(_quoted(answer.text) or '(no answer)'), user(_quoted(_once_more(problems)))]


def probability_met(
    talker: Talker, condition: str, media: Sequence[Part], *, cancelled: Callable[[], bool] = lambda: False
) -> float:
    """How probable it is, 0 to 1, that a condition can be seen to hold; raises as :meth:`Talker.choose` does."""
    choice = talker.choose([user(*media, _condition_words(condition))], ('yes', 'no'), cancelled=cancelled)
    return choice.probabilities['yes']


def plausibility(
    talker: Talker, media: Sequence[Part], instruction: str = '', *, cancelled: Callable[[], bool] = lambda: False
) -> Score:
    """How far a video, imagined perhaps, obeys physics: 0 not at all, 1 as the world does.

    Args:
        talker: Whom to ask.
        media: The video.
        instruction: What the robot in it was told; empty: not told.
        cancelled: See :meth:`engine.reasoner_talk.Talker.choose`.

    Raises:
        InvalidInput, Cancelled, TalkerError: As :meth:`engine.reasoner_talk.Talker.choose` does.
    """
    told = f' The robot was told: {_words("instruction", instruction)}' if instruction else ''
    scale = ', '.join(f'{digit} {meaning}' for digit, meaning in _PLAUSIBLE.items())
    words = (
        f'Could the video have been filmed in the real world?{told}\nLook at whether things keep their shape and '
        'number, move only when something moves them, rest on something, and do not pass through each other.\n'
        f'Answer with one digit: {scale}.'
    )
    return _score(talker.choose([user(*media, words)], tuple(_PLAUSIBLE), cancelled=cancelled))


def progress(
    talker: Talker, goal: str, media: Sequence[Part], *, cancelled: Callable[[], bool] = lambda: False
) -> Score:
    """How far a task has come at the end of a video, imagined perhaps: 0 not begun, 1 done; as :func:`plausibility`."""
    words = (
        f'The robot in the video has this task: {_words("goal", goal)}\n'
        'How much of it is done at the end of the video? Answer with one digit from 0, nothing, to 9, all of it.'
    )
    return _score(talker.choose([user(*media, words)], tuple('0123456789'), cancelled=cancelled))


_ONE_WORD = 'Answer with one word: yes or no.'
_TAG = re.compile(r'<(?=[|/]?\w)')


def _condition_words(condition: str) -> str:
    return f'Can it be seen that this is so: {_words("condition", condition)}\n{_ONE_WORD}'


def _skill_lines(skills: Skills) -> list[str]:
    lines = []
    if skills.examples:
        examples = '; '.join(_words(f'examples[{n}]', example) for n, example in enumerate(skills.examples))
        lines.append(f'It follows instructions like these: {examples}.')
    if skills.step_s is not None:
        lines.append(f'It has {skills.step_s:g} seconds for a step.')
    return lines


def _past_lines(past: Sequence[Attempt]) -> list[str]:
    if not past:
        return []
    lines = ['So far:']
    for number, attempt in enumerate(past):
        outcome = 'done' if attempt.done else 'failed'
        why = f' ({_words(f"past[{number}].why", attempt.why)})' if attempt.why else ''
        lines.append(_quoted(f'- {_words(f"past[{number}].instruction", attempt.instruction)}: {outcome}{why}'))
    return [*lines, 'Do not repeat what is done. Find another way where something failed.']


def _score(choice: Choice) -> Score:
    """Mean and spread of digits, scaled so that the lowest is 0 and the highest 1."""
    digits = [int(digit) for digit in choice.probabilities]
    low, span = min(digits), max(digits) - min(digits)
    scaled = [(digit - low) / span for digit in digits]
    weights = list(choice.probabilities.values())
    mean = sum(weight * value for weight, value in zip(weights, scaled, strict=True))
    variance = sum(weight * (value - mean) ** 2 for weight, value in zip(weights, scaled, strict=True))
    return Score(min(max(mean, 0.0), 1.0), math.sqrt(variance), choice)


def _cut_short(answer: Answer, sampling: Sampling) -> list[Problem]:
    if answer.finish != 'length':
        return []
    return [Problem('answer', 'was cut at the limit of tokens', str(sampling.max_tokens), remedy='answer more briefly')]


def _once_more(problems: Sequence[Problem]) -> str:
    told = '\n'.join(f'- {problem}' for problem in problems[:_TOLD])
    more = f'\n- and {len(problems) - _TOLD} more' if len(problems) > _TOLD else ''
    return (
        f'That answer cannot be used:\n{told}{more}\nAnswer once more, in the form that was asked for and nothing else.'
    )


def _quoted(words: str) -> str:
    """What a model wrote, fit to be shown to it again: it may have spelled out tokens that control a conversation."""
    return _TAG.sub('< ', words)


def _words(name: str, words: str) -> str:
    """Somebody's words, fit to be put into a question: one line, stripped.

    Raises:
        InvalidInput: They are empty or too long.
    """
    line = ' '.join(words.split())
    if not line or len(line) > MAX_SENTENCE:
        value = f'{len(line)} characters'
        raise InvalidInput('question', [Problem(name, 'is empty or too long', value, f'1 to {MAX_SENTENCE}')])
    return line
