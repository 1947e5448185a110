"""From the text of an answer to values. A parser returns all of it, or raises with every fault; none mends anything."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from typing import Any

from engine.answers.json_text import MAX_CHARACTERS, excerpt, final_answer, json_in, refuse
from engine.answers.values import SCALE, Box, Event, Plan, PlanStep, Point, Trajectory
from engine.errors import InvalidInput, Problem

MAX_ITEMS = 200
"""Of boxes, points, events in one answer."""
MAX_STEPS = 32
"""Of a plan."""
MAX_LABEL = 200
"""Characters."""
MAX_SENTENCE = 1000
"""Characters of a caption, an instruction, a condition."""
MAX_SECONDS = 24 * 3600.0
"""Latest time of an event if nobody says how long the video is."""

_CLOCK = re.compile(r'(?P<minutes>[0-9]{2,4}):(?P<seconds>[0-5][0-9](?:\.[0-9]{1,3})?)')
_CONTROL_TOKEN = re.compile(r'<\|[^<>|]*\|>|</?think>')
_YES_NO = re.compile(r'(yes|no)[.!]?', re.IGNORECASE)

Problems = list[Problem]


def parse_boxes(text: str) -> tuple[Box, ...]:
    """Boxes of an answer: `[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}, ...]` or one such object.

    Raises:
        InvalidInput: The answer is malformed; lists every fault.
    """
    return _items(text, _box)


def parse_points(text: str) -> tuple[Point, ...]:
    """Points of an answer: `[{"point_2d": [x, y], "label": "..."}, ...]` or one such object.

    Raises:
        InvalidInput: The answer is malformed; lists every fault.
    """
    return _items(text, _point)


def parse_trajectories(text: str) -> tuple[Trajectory, ...]:
    """Trajectories of an answer: its points in their order, those with the same label together.

    Raises:
        InvalidInput: The answer is malformed, has no point, or a trajectory has a single one; lists every fault.
    """
    by_label: dict[str, list[tuple[int, int]]] = {}
    for point in parse_points(text):
        by_label.setdefault(point.label, []).append((point.x, point.y))
    if not by_label:
        refuse('holds no trajectory', '[]', 'two points or more')
    _raise([_count(f'trajectory {excerpt(label)}', points, 2) for label, points in by_label.items() if len(points) < 2])
    return tuple(Trajectory(label, tuple(points)) for label, points in by_label.items())


def parse_events(text: str, until_s: float = MAX_SECONDS) -> tuple[Event, ...]:
    """Events of an answer: `[{"start": 1.5, "end": 3, "caption": "..."}, ...]`, or one such object.

    Args:
        text: The answer; its times are seconds as numbers, or minutes and seconds as `"mm:ss.ff"`.
        until_s: Latest time that is possible, s: the duration of the video.

    Raises:
        InvalidInput: The answer is malformed; lists every fault.
    """
    return _items(text, lambda item, where, problems: _event(item, where, problems, until_s))


def parse_plan(text: str, max_steps: int = MAX_STEPS, *, may_be_empty: bool = False) -> Plan:
    """The plan of an answer: `{"steps": [{"instruction": "...", "success": "..."}, ...]}`, the list, or one step.

    Args:
        text: The answer.
        max_steps: Most steps.
        may_be_empty: Whether no step at all is an answer: nothing is left to do.

    Raises:
        InvalidInput: The answer is malformed; lists every fault.
    """
    value = json_in(text)
    problems: Problems = []
    where = 'answer'
    if isinstance(value, dict) and 'steps' in value:
        _check_keys(value, where, {'steps'}, problems)
        value, where = value['steps'], 'answer.steps'
        if not isinstance(value, list):
            problems.append(Problem(where, 'is no list', excerpt(value), 'a list of steps'))
    steps = _collect(value, _step, problems, where)
    if not int(not may_be_empty) <= len(steps) <= max_steps:
        problems.append(_count(where, steps, int(not may_be_empty), max_steps))
    _raise(problems)
    return Plan(tuple(step for step in steps if step is not None))


def parse_yes_no(text: str) -> bool:
    """True for "yes", False for "no"; in any case, with a full stop or without.

    Raises:
        InvalidInput: It says anything else.
    """
    answer = final_answer(text)
    match = _YES_NO.fullmatch(answer)
    if match is None:
        refuse('is neither yes nor no', excerpt(answer), 'yes or no, nothing else')
    return match[1].lower() == 'yes'


def parse_text(text: str, max_characters: int = MAX_CHARACTERS) -> str:
    """Free text, stripped.

    Raises:
        InvalidInput: It is empty, too long, or holds control characters.
    """
    answer = final_answer(text)
    problems: Problems = []
    _check_words(answer, 'answer', max_characters, problems)
    _raise(problems)
    return answer


def as_json(values: Sequence[Box | Point | Trajectory | Event] | Plan) -> str:
    """Values as the model writes them; the parsers read it back."""
    if isinstance(values, Plan):
        return json.dumps(values.document())
    documents = [value.document() for value in values]
    flat = [item for document in documents for item in (document if isinstance(document, list) else [document])]
    return json.dumps(flat)


type _ItemParser[T] = Callable[[dict[str, Any], str, Problems], T | None]


def _items[T](text: str, parse: _ItemParser[T]) -> tuple[T, ...]:
    problems: Problems = []
    found = _collect(json_in(text), parse, problems)
    _raise(problems)
    return tuple(item for item in found if item is not None)


def _collect[T](value: Any, parse: _ItemParser[T], problems: Problems, whole: str = 'answer') -> list[T | None]:
    """Parse a list of objects, or one object in place of a list of one; None where an item is wrong."""
    single = isinstance(value, dict)
    items = [value] if single else value if isinstance(value, list) else []
    if len(items) > MAX_ITEMS:
        problems.append(_count(whole, items, 0, MAX_ITEMS))
        return []
    found: list[T | None] = []
    for number, item in enumerate(items):
        where = whole if single else f'{whole}[{number}]'
        if isinstance(item, dict):
            found.append(parse(item, where, problems))
        else:
            problems.append(Problem(where, 'is no object', excerpt(item), 'an object in braces'))
            found.append(None)
    return found


def _box(item: dict[str, Any], where: str, problems: Problems) -> Box | None:
    before = len(problems)
    _check_keys(item, where, {'bbox_2d', 'label'}, problems)
    corners = _coordinates(item, 'bbox_2d', 4, where, problems)
    label = _words(item, 'label', MAX_LABEL, where, problems)
    if len(problems) > before:
        return None
    x1, y1, x2, y2 = corners
    if x1 >= x2 or y1 >= y2:
        allowed = 'x1 < x2 and y1 < y2 in [x1, y1, x2, y2]'
        problems.append(Problem(f'{where}.bbox_2d', 'has its corners in the wrong order', excerpt(corners), allowed))
        return None
    return Box(label, x1, y1, x2, y2)


def _point(item: dict[str, Any], where: str, problems: Problems) -> Point | None:
    before = len(problems)
    _check_keys(item, where, {'point_2d', 'label'}, problems)
    place = _coordinates(item, 'point_2d', 2, where, problems)
    label = _words(item, 'label', MAX_LABEL, where, problems)
    return None if len(problems) > before else Point(label, *place)


def _event(item: dict[str, Any], where: str, problems: Problems, until_s: float) -> Event | None:
    before = len(problems)
    _check_keys(item, where, {'start', 'end', 'caption'}, problems)
    start, end = (_time(item, key, until_s, where, problems) for key in ('start', 'end'))
    caption = _words(item, 'caption', MAX_SENTENCE, where, problems)
    if len(problems) == before and start > end:
        problems.append(Problem(where, 'ends before it begins', f'{start:g} to {end:g} s', 'start <= end'))
    return None if len(problems) > before else Event(start, end, caption)


def _step(item: dict[str, Any], where: str, problems: Problems) -> PlanStep | None:
    before = len(problems)
    _check_keys(item, where, {'instruction', 'success'}, problems)
    instruction, success = (_words(item, key, MAX_SENTENCE, where, problems) for key in ('instruction', 'success'))
    return None if len(problems) > before else PlanStep(instruction, success)


def _check_keys(item: dict[str, Any], where: str, keys: Collection[str], problems: Problems) -> None:
    problems += [Problem(f'{where}.{key}', 'is missing') for key in sorted(set(keys) - set(item))]
    allowed = ', '.join(sorted(keys))
    problems += [
        Problem(where, 'has an unknown key', excerpt(key), allowed) for key in sorted(set(item) - set(keys), key=str)
    ]


def _coordinates(item: dict[str, Any], key: str, count: int, where: str, problems: Problems) -> tuple[int, ...]:
    """So many whole numbers from 0 to 1000; faults are added to `problems`, and then the result means nothing."""
    value = item.get(key, ())
    where = f'{where}.{key}'
    if key not in item:
        return ()
    if not isinstance(value, list) or len(value) != count:
        problems.append(Problem(where, f'is no list of {count}', excerpt(value), f'{count} whole numbers'))
        return ()
    wrong = [
        Problem(f'{where}[{number}]', 'is out of range', excerpt(entry), f'a whole number from 0 to {SCALE}')
        for number, entry in enumerate(value)
        if type(entry) is not int or not 0 <= entry <= SCALE
    ]
    problems += wrong
    return tuple(value) if not wrong else ()


def _time(item: dict[str, Any], key: str, until_s: float, where: str, problems: Problems) -> float:
    """Seconds; faults are added to `problems`, and then the result means nothing."""
    if key not in item:
        return 0.0
    value = item[key]
    match = _CLOCK.fullmatch(value) if isinstance(value, str) else None
    number = int(match['minutes']) * 60 + float(match['seconds']) if match else value
    if type(number) not in (int, float) or not 0 <= number <= until_s:
        allowed = f'seconds as a number, or "mm:ss.ff"; from 0 to {until_s:g} s'
        problems.append(Problem(f'{where}.{key}', 'is no time in the video', excerpt(value), allowed))
        return 0.0
    return float(number)


def _words(item: dict[str, Any], key: str, longest: int, where: str, problems: Problems) -> str:
    """A sentence; faults are added to `problems`, and then the result means nothing."""
    value = item.get(key)
    if key not in item:
        return ''
    if not isinstance(value, str):
        problems.append(Problem(f'{where}.{key}', 'is no text', excerpt(value), 'a text in quotes'))
        return ''
    _check_words(value, f'{where}.{key}', longest, problems)
    return value


def _check_words(value: str, where: str, longest: int, problems: Problems) -> None:
    if not value.strip() or len(value) > longest:
        problems.append(Problem(where, 'is empty or too long', excerpt(value), f'1 to {longest} characters'))
    if control := _CONTROL_TOKEN.search(value):  # words become parts of other conversations, and a policy's prompt
        problems.append(Problem(where, 'spells out a control token', control[0], remedy='leave it out'))
    if odd := sorted({character for character in value if _is_control(character)}):
        problems.append(Problem(where, 'holds characters that cannot be printed', ascii(''.join(odd[:8]))))


def _is_control(character: str) -> bool:
    """Whether it is a control character other than white space, or half of a surrogate pair."""
    return unicodedata.category(character) in ('Cc', 'Cs') and character not in '\n\r\t'


def _count(where: str, items: Collection[Any], least: int, most: int | None = None) -> Problem:
    allowed = f'{least} or more' if most is None else f'{least} to {most}'
    return Problem(where, 'has the wrong number of entries', str(len(items)), allowed)


def _raise(problems: Problems) -> None:
    if problems:
        raise InvalidInput('answer of the reasoner', problems)
