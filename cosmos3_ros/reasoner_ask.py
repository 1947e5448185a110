"""The service `ask`: from its request to questions, from answers to its response."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cosmos3_msgs.msg import ViewBox, ViewPath, ViewPoint
from cosmos3_msgs.srv import Ask
from cosmos3_ros.reasoner_views import Scene
from engine.answers.values import Box, Point, Trajectory
from engine.errors import InvalidInput, Problem
from engine.reasoner_questions import Asked, Question, ask, boxes, points, text, trajectory, yes_no
from engine.reasoner_talk import GREEDY, THINKING, Answer, Part, Picture, Sampling, Talker, user

_GROUNDED: dict[int, Callable[[str], Question[Any]]] = {
    Ask.Request.BOXES: boxes,
    Ask.Request.POINTS: points,
    Ask.Request.TRAJECTORY: trajectory,
}
_KINDS = ('TEXT', 'YES_NO', 'CHOICE', 'BOXES', 'POINTS', 'TRAJECTORY')
_KIND_OF = {getattr(Ask.Request, name): name for name in _KINDS}
MAX_TIMEOUT_S = 600.0


@dataclass
class Found:
    """What is known of a question after its last answer; the fields of the response by another name."""

    text: str = ''
    thinking: str = ''
    yes: bool = False
    confidence: float = math.nan
    probabilities: tuple[float, ...] = ()
    boxes: list[ViewBox] = field(default_factory=list)
    points: list[ViewPoint] = field(default_factory=list)
    paths: list[ViewPath] = field(default_factory=list)
    retries: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, answer: Answer, retries: int) -> None:
        """One more answer; words of several ones go below each other."""
        self.text = '\n'.join(filter(None, (self.text, answer.text)))
        self.thinking = '\n'.join(filter(None, (self.thinking, answer.thinking)))
        self.retries += retries
        self.prompt_tokens += answer.prompt_tokens
        self.tokens += answer.tokens
        for stage, seconds in answer.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def timeout_of(request: Ask.Request) -> float:
    """Time limit of a request, s; 0: the usual one."""
    return request.timeout.sec + request.timeout.nanosec / 1e9


def check(request: Ask.Request) -> None:
    """Refuse what cannot be asked.

    Raises:
        InvalidInput: The request is faulty; lists every fault.
    """
    problems = []
    kind, choices = request.kind, list(request.choices)
    if kind not in _KIND_OF:
        allowed = ', '.join(f'{number} {name}' for number, name in _KIND_OF.items())
        problems.append(Problem('kind', 'is unknown', str(kind), allowed))
    if not 0.0 <= timeout_of(request) <= MAX_TIMEOUT_S:
        problems.append(
            Problem('timeout', 'is out of range', f'{timeout_of(request):g} s', f'0 to {MAX_TIMEOUT_S:g} s')
        )
    is_choice = kind == Ask.Request.CHOICE
    if is_choice and (len(set(choices)) < 2 or not all(choices)):
        problems.append(Problem('choices', 'are too few, or one is empty', str(choices), 'two different texts or more'))
    if choices and not is_choice:
        problems.append(Problem('choices', 'mean nothing with this kind', _KIND_OF.get(kind, str(kind)), 'CHOICE'))
    if is_choice and request.thinking:
        problems.append(Problem('thinking', 'is not possible with CHOICE'))
    try:
        _question(request)
    except InvalidInput as error:
        problems += error.problems
    if problems:
        raise InvalidInput('question', problems)


def answer(
    request: Ask.Request, scene: Scene, sampling: Sampling, talker: Talker, cancelled: Callable[[], bool]
) -> Found:
    """Ask it.

    Args:
        request: One that has been checked.
        scene: What the views show.
        sampling: Longest answer and seed; the rest is as the kind of question needs it.
        talker: Whom to ask.
        cancelled: Whether to stop.

    Raises:
        MalformedAnswer, InvalidInput, Cancelled, TalkerError: As :func:`engine.reasoner_questions.ask`.
    """
    question = _question(request)
    base = THINKING if request.thinking else GREEDY
    how = replace(base, max_tokens=sampling.max_tokens, seed=sampling.seed)

    def once(media: Sequence[Part]) -> Asked[Any]:
        return ask(talker, question, media, sampling=how, thinking=request.thinking, cancelled=cancelled)

    found = Found()
    if request.kind in _GROUNDED:
        for name, rgb in scene.pictures.items():
            asked = once((Picture(rgb, name),))
            found.add(asked.answer, asked.retries)
            height, width = rgb.shape[:2]
            for value in asked.value:
                _place(value, name, width, height, found)
    elif request.kind == Ask.Request.CHOICE or (request.kind == Ask.Request.YES_NO and not request.thinking):
        _choose(request, question, scene, talker, cancelled, found)
    else:
        asked = once(scene.media())
        found.add(asked.answer, asked.retries)
        found.yes = asked.value is True
    return found


def fill(response: Ask.Response, found: Found) -> None:
    """Put what was found into the response."""
    response.success, response.reason = True, Ask.Response.ANSWERED
    response.text, response.thinking = found.text, found.thinking
    response.yes, response.confidence = found.yes, found.confidence
    response.probabilities = list(found.probabilities)
    response.boxes, response.points, response.paths = found.boxes, found.points, found.paths
    response.retries, response.prompt_tokens, response.tokens = found.retries, found.prompt_tokens, found.tokens
    response.stage_names, response.stage_s = list(found.seconds), list(found.seconds.values())


def _question(request: Ask.Request) -> Question[Any]:
    """Raises InvalidInput if its words are none or too many."""
    if request.kind in _GROUNDED:
        return _GROUNDED[request.kind](request.question)
    if request.kind == Ask.Request.YES_NO:
        return yes_no(request.question)
    asked = text(request.question)
    if request.kind == Ask.Request.CHOICE:
        listed = ', '.join(repr(choice) for choice in request.choices)
        return replace(asked, words=f'{asked.words}\nAnswer with one of these and nothing else: {listed}.')
    return asked


def _choose(
    request: Ask.Request,
    question: Question[Any],
    scene: Scene,
    talker: Talker,
    cancelled: Callable[[], bool],
    found: Found,
) -> None:
    """By the probabilities of the texts, which is surer than by words."""
    choices = tuple(request.choices) or ('yes', 'no')
    choice = talker.choose([user(*scene.media(), question.words)], choices, cancelled=cancelled)
    found.text, found.confidence = choice.text, choice.probabilities[choice.text]
    found.probabilities = tuple(choice.probabilities[text] for text in choices)
    found.yes = not request.choices and choice.text == 'yes'


def _place(value: Box | Point | Trajectory, view: str, width: int, height: int, found: Found) -> None:
    """A value in pixels of its picture."""
    if isinstance(value, Box):
        edges = dict(zip(('x_min', 'y_min', 'x_max', 'y_max'), value.pixels(width, height), strict=True))
        found.boxes.append(ViewBox(view=view, label=value.label, **edges))
    elif isinstance(value, Point):
        x, y = value.pixels(width, height)
        found.points.append(ViewPoint(view=view, label=value.label, x=x, y=y))
    else:
        places = value.pixels(width, height)
        path = ViewPath(view=view, label=value.label, x=[x for x, _ in places], y=[y for _, y in places])
        found.paths.append(path)
