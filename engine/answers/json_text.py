"""The one JSON value in a text, or every reason why there is none.

A model wraps its JSON in a fence, puts words around it, or thinks first: all that is read. Nothing is repaired: what
would have to be guessed (a value that breaks off, a second one, a key that occurs twice) is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from engine.errors import InvalidInput, Problem

MAX_CHARACTERS = 100_000
"""Of the text; the longest published answers have some thousands."""
MAX_DEPTH = 6
"""Lists and objects within each other; the deepest published format has four."""

_END_OF_THINKING = '</think>'
_FENCE = '```'
_BEFORE = re.compile(r'.*```(?:json|JSON)?\s*', re.DOTALL)
_AFTER = re.compile(r'\s*```.*', re.DOTALL)
_ANSWER = re.compile(r'\s*<answer>(.*)</answer>\s*', re.DOTALL)
_OPENING = re.compile(r'[\[{]')
_BRACKET = re.compile(r'[\[\]{}]')


class _Refused(ValueError):
    """JSON that Python's parser would accept; the text says why it is refused."""


def final_answer(text: str) -> str:
    """What a text says in the end: behind the thinking, without `<answer>` tags, stripped.

    Raises:
        InvalidInput: It is too long, has no end of thinking or several, or says nothing.
    """
    if len(text) > MAX_CHARACTERS:
        refuse('is too long', f'{len(text)} characters', f'up to {MAX_CHARACTERS}')
    thinking, _, answer = text.rpartition(_END_OF_THINKING)
    if _END_OF_THINKING in thinking or '<think>' in answer:
        refuse('has no clear end of thinking', excerpt(text), f'nothing or one {_END_OF_THINKING} before the answer')
    if wrapped := _ANSWER.fullmatch(answer):
        answer = wrapped[1]
    if not answer.strip():
        refuse('is empty', '', 'an answer')
    return answer.strip()


def json_in(text: str) -> Any:
    """The value of the only list or object in a text: bare, in a fence, or with words around it.

    Raises:
        InvalidInput: There is none, or more than one; it breaks off or is malformed; it repeats a key, or holds a
            number that is not finite; or it is nested absurdly.
    """
    text = final_answer(text)
    opening = _OPENING.search(text)
    if opening is None:
        refuse('holds no JSON', excerpt(text), 'one list or object')
    value, end = _decode(text, opening.start())
    _check_surroundings(text[: opening.start()], text[end:])
    if _depth(value) > MAX_DEPTH:
        refuse('is nested too deeply', excerpt(text[opening.start() :]), f'up to {MAX_DEPTH} levels')
    return value


def refuse(what: str, value: str = '', allowed: str = '') -> NoReturn:
    """Raise because of the text as a whole."""
    raise InvalidInput('answer of the reasoner', [Problem('answer', what, value, allowed)])


def excerpt(value: object) -> str:
    """A value as an error shows it: short, in one line, printable."""
    text = ascii(value) if not isinstance(value, str) or not value.isprintable() else repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _decode(text: str, start: int) -> tuple[Any, int]:
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
    try:
        return decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        what = f'holds malformed JSON ({error.msg.lower()}, character {error.pos + 1} of {len(text)})'
        refuse(what, excerpt(text[max(0, error.pos - 20) : error.pos + 20]), 'one complete list or object')
    except _Refused as error:
        refuse(f'holds JSON {error}')
    except RecursionError:
        refuse('is nested too deeply', excerpt(text[start:]), f'up to {MAX_DEPTH} levels')
    except ValueError:  # digits beyond what Python turns into an int
        refuse('holds an absurdly long number', excerpt(text[start:]))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise _Refused(f'in which a key occurs twice: {", ".join(map(excerpt, twice))}')
    return dict(pairs)


def _constant(name: str) -> NoReturn:
    raise _Refused(f'with a number that is not finite: {name}')


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _Refused(f'with a number that is not finite: {excerpt(digits)}')
    return number


def _check_surroundings(before: str, after: str) -> None:
    """Words may stand around the value; brackets may not, and a fence has to be closed and hold the value alone."""
    if stray := _BRACKET.search(before + after):
        rest = (before + after)[stray.start() :]
        refuse('holds something like a second JSON value', excerpt(rest), 'one list or object, and words around it')
    fences = before.count(_FENCE) + after.count(_FENCE)
    fenced = _BEFORE.fullmatch(before) and _AFTER.fullmatch(after)
    if fences and (fences != 2 or not fenced):
        refuse('has a fence that is not closed right around the JSON', excerpt(before + '...' + after))


def _depth(value: Any) -> int:
    """Levels of lists and objects."""
    levels, layer = 0, [value]
    while layer := [item for item in layer if isinstance(item, list | dict)]:
        levels += 1
        layer = [inner for item in layer for inner in _inner(item)]
    return levels


def _inner(item: list[Any] | dict[str, Any]) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item
