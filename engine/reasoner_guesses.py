"""Guesses of what an answer goes on with: what came the last time that the same tokens stood there.

Plans, boxes and events say the same words again and again, and much of what is answered was in the question. A layer
that reads several tokens reads its weights once, which is what a single token costs. So the tokens that are likely to
follow are read along with the last one; each is then chosen as ever, from the scores behind all those before it, and
what comes after the first wrong guess is forgotten. The answer is the same, up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Sequence

GUESSES = 7
"""Tokens read along at a time. Eight rows cost a processor hardly more than one in bfloat16, twice it in float32."""
PATTERNS = (4, 2)
"""So many tokens have to have stood there before; the longer pattern is looked for first."""
LONGEST_PAUSE = 8
"""Tokens that are written one by one, at most, before guesses are tried again; they may come true from here on."""


class Guesser:
    """Guesses the tokens of one answer. Where guesses do not come true, it makes them more and more seldom."""

    def __init__(self, prompt: Sequence[int]) -> None:
        """Begin an answer to a prompt."""
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where what followed a pattern the last time begins
        self._pause = self._wait = 0
        for token in prompt:
            self.add(token)

    def add(self, token: int) -> None:
        """The text goes on with this token."""
        for length in PATTERNS:
            if len(self._text) >= length:
                self._after[tuple(self._text[-length:])] = len(self._text)
        self._text.append(token)

    def guess(self) -> list[int]:
        """`GUESSES` tokens that may follow, or none."""
        if self._wait:
            self._wait -= 1
            return []
        for length in PATTERNS:
            begin = self._after.get(tuple(self._text[-length:]))
            if begin is not None:
                period = len(self._text) - begin  # what is copied beyond the end of the text are guesses themselves
                return [self._text[begin + number % period] for number in range(GUESSES)]
        return []

    def learn(self, right: int) -> None:
        """So many of the latest guesses were right, from the first on."""
        self._pause = 0 if right else min(max(1, 2 * self._pause), LONGEST_PAUSE)
        self._wait = self._pause
