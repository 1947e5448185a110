"""How probable each of several texts is, from the token probabilities that an endpoint lists."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidInput, Problem

NEGLIGIBLE = 0.01
"""Share of the probability found that choices may have which the endpoint does not list."""
_LEAST = -9999.0
_SLACK = 1e-3


class Unresolved(ValueError):
    """What was listed does not tell the choices apart; the text says why."""


class Contradictory(ValueError):
    """What was listed cannot be true, or is no list of probabilities; the text says why."""


@dataclass(frozen=True)
class Place:
    """One token of an answer: which it was, and the logarithms of the probabilities of what could have been there."""

    token: str
    logs: dict[str, float]

    @property
    def unlisted(self) -> float:
        """The greatest probability that a token can have which is not listed."""
        # The answer's own token is listed even if it is an unlikely one.
        likely = [math.exp(log) for token, log in self.logs.items() if token != self.token]
        rest = 1.0 - sum(math.exp(log) for log in self.logs.values())
        return max(0.0, min([*likely, rest]))


@dataclass(frozen=True)
class _Path:
    """A choice among the tokens listed: its probability if it is there, else how much it could have at most."""

    listed: bool
    probability: float


def check_choices(choices: Sequence[str]) -> None:
    """Do nothing if these can be chosen from by the tokens with which they begin.

    Raises:
        InvalidInput: Fewer than two, an empty one, space around one, or one that begins another; lists every fault.
    """
    problems = []
    if len(choices) < 2:
        problems.append(Problem('choices', 'are too few', str(len(choices)), '2 or more'))
    for number, choice in enumerate(choices):
        if not choice or choice != choice.strip():
            problems.append(Problem(f'choices[{number}]', 'is empty or has space around it', repr(choice)))
        elif begun := [other for place, other in enumerate(choices) if place != number and other.startswith(choice)]:
            problems.append(Problem(f'choices[{number}]', f'is the beginning of {begun[0]!r}', repr(choice)))
    if problems:
        raise InvalidInput('choices', problems)


def read_places(logprobs: Any, content: str) -> list[Place]:
    """Places from `choices[0].logprobs` of a response whose text is `content`.

    Raises:
        Contradictory: It is no such list, or numbers or tokens contradict each other.
    """
    entries = logprobs.get('content') if isinstance(logprobs, dict) else None
    if not isinstance(entries, list) or not entries:
        raise Contradictory('no probabilities of tokens')
    places = [_place(entry, first=not number) for number, entry in enumerate(entries)]
    spelled = ''.join(place.token for place in places).strip()
    if not spelled.startswith(content.strip()) and '\ufffd' not in spelled:
        raise Contradictory(
            f'probabilities of other tokens ({spelled[:40]!r}) than those of its text ({content[:40]!r})'
        )
    return places


def probabilities(choices: Sequence[str], places: Sequence[Place]) -> dict[str, float]:
    """Probability of each choice, relative to all of them.

    The answer that was given is followed token by token; a choice has the probability of the tokens up to the one that
    tells it apart from the others. One that is not listed counts as impossible if it cannot matter.

    Args:
        choices: As :func:`check_choices` wants them.
        places: Of the answer.

    Raises:
        Unresolved: Some cannot be told apart, or could matter without being listed.
    """
    paths = {choice: _follow(choice, [other for other in choices if other != choice], places) for choice in choices}
    listed = {choice: path.probability if path.listed else 0.0 for choice, path in paths.items()}
    missing = [choice for choice, path in paths.items() if not path.listed]
    total = sum(listed.values())
    missed = sum(paths[choice].probability for choice in missing)
    if missed > NEGLIGIBLE * total:
        raise Unresolved(f'no probability of {", ".join(map(repr, missing))}')
    if not total:
        raise Unresolved('a probability of 0 of every choice')
    return {choice: probability / total for choice, probability in listed.items()}


def _follow(choice: str, others: Sequence[str], places: Sequence[Place]) -> _Path:
    """Go along the answer while it says the same, and then one token off it."""
    spelled, log = '', 0.0
    for place in places:
        rest = choice[len(spelled) :]
        on_path = bool(place.token) and rest.startswith(place.token)
        # Off the path, the longest token is how the model itself would write it.
        fitting = [place.token] if on_path else [token for token in place.logs if token and rest.startswith(token)]
        if not fitting:
            return _Path(False, math.exp(log) * place.unlisted)
        token = max(fitting, key=len)
        spelled, log = spelled + token, log + place.logs[token]
        if not any(other.startswith(spelled) for other in others):
            return _Path(True, math.exp(log))
        if not on_path:
            break
    alike = ', '.join(repr(other) for other in others if other.startswith(spelled))
    raise Unresolved(f'no token that tells {choice!r} from {alike}')


def _place(entry: Any, *, first: bool) -> Place:
    """One entry of the list. Of an answer's first token, space in front does not count: with and without it is one."""
    own, own_log = _token(entry)
    top = entry.get('top_logprobs')
    if not isinstance(top, list):
        raise Contradictory('a token without its alternatives')
    listed = dict(_token(item) for item in top)
    if abs(listed.setdefault(own, own_log) - own_log) > 0.05:
        raise Contradictory(f'two probabilities of the token {own!r}')
    if sum(math.exp(log) for log in listed.values()) > 1.0 + _SLACK:
        raise Contradictory('probabilities that add up to more than 1')
    if not first:
        return Place(own, listed)
    merged: dict[str, float] = defaultdict(float)
    for token, log in listed.items():
        merged[token.lstrip()] += math.exp(log)
    return Place(own.lstrip(), {token: math.log(p) if p else _LEAST for token, p in merged.items()})


def _token(item: Any) -> tuple[str, float]:
    token = item.get('token') if isinstance(item, dict) else None
    log = item.get('logprob') if isinstance(item, dict) else None
    if not isinstance(token, str) or not isinstance(log, int | float) or not _LEAST <= log <= _SLACK:
        raise Contradictory(f'{str(item)[:60]} in place of a token and the logarithm of its probability')
    return token, float(log)
