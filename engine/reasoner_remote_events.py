"""What an OpenAI-compatible endpoint sends: server-sent events or one document, put together to an answer."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, get_args

from engine.reasoner_talk import Answer, Finish
from engine.reasoner_text import split_thinking

_DONE = '[DONE]'


class Malformed(ValueError):
    """The server sent what is no answer; the text says what."""


async def events(pieces: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """Data of server-sent events, up to the event that says it is done.

    Raises:
        Malformed: The bytes are not UTF-8.
    """
    buffer, lines = b'', list[str]()
    async for piece in pieces:
        *complete, buffer = (buffer + piece).split(b'\n')
        for line in complete:
            text = _decode(line).removesuffix('\r')
            if text.startswith('data:'):
                lines.append(text.removeprefix('data:').removeprefix(' '))
            elif not text and lines:
                data = '\n'.join(lines)
                if data == _DONE:
                    return
                yield data
                lines.clear()


def server_says(content: bytes) -> str:
    """What the body of an error says, whichever of the usual forms it has."""
    text = content.decode(errors='replace')
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text
    inner = body.get('error', body) if isinstance(body, dict) else body
    said = inner.get('message') or inner.get('detail') if isinstance(inner, dict) else inner
    return str(said or text)


class Reception:
    """An answer as it comes in.

    Its thinking comes among its words, or apart from them where the server has a parser for it.
    """

    def __init__(
        self, on_text: Callable[[str], None] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`on_text` is told every piece; `clock` says how many seconds the request has taken."""
        self._on_text, self._clock = on_text, clock
        self._words: list[str] = []
        self._thinking: list[str] = []
        self._finish: str | None = None
        self._usage: dict[str, Any] = {}
        self._first_s: float | None = None

    @property
    def text(self) -> str:
        """Its words so far."""
        return ''.join(self._words)

    def take_event(self, data: str) -> None:
        """Take one event of a stream.

        Raises:
            Malformed: It is no piece of an answer.
        """
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raise Malformed(f'sent an event that is no JSON: {data[:100]!r}') from None
        self._take(event, 'delta')

    def take_whole(self, document: Any) -> None:
        """Take the only document of an answer that is not streamed.

        Raises:
            Malformed: It is no answer.
        """
        self._take(document, 'message')

    def answer(self) -> Answer:
        """The answer, once everything was taken.

        Raises:
            Malformed: It broke off, or ended for a reason that leaves no answer.
        """
        if self._finish is None:
            raise Malformed(f'broke off after {self.text[-60:]!r}' if self.text else 'sent an empty answer')
        if self._finish not in get_args(Finish):
            raise Malformed(f'ended the answer for another reason than its end: {self._finish!r}')
        thinking, text = split_thinking(self.text)
        seconds = {'first': self._first_s if self._first_s is not None else self._clock(), 'total': self._clock()}
        return Answer(
            text=text,
            thinking=''.join(self._thinking).strip() or thinking,
            finish='stop' if self._finish == 'stop' else 'length',
            prompt_tokens=self._count('prompt_tokens'),
            tokens=self._count('completion_tokens'),
            seconds=seconds,
        )

    def _take(self, document: Any, key: str) -> None:
        choices = document.get('choices') if isinstance(document, dict) else None
        if not isinstance(choices, list):
            raise Malformed(f'sent no answer but {server_says(json.dumps(document).encode())[:200]!r}')
        usage = document.get('usage')
        self._usage = usage if isinstance(usage, dict) else self._usage
        if not choices and key == 'delta':
            return  # an event of usage alone
        choice = choices[0] if choices and isinstance(choices[0], dict) else {}
        part = choice.get(key)
        if not isinstance(part, dict):
            raise Malformed(f'sent an answer without its {key}')
        # Two names of one thing: vLLM's before and since version 0.12.
        self._take_words(part.get('reasoning_content') or part.get('reasoning'), self._thinking)
        self._take_words(part.get('content'), self._words)
        self._finish = choice.get('finish_reason') or self._finish

    def _take_words(self, content: Any, words: list[str]) -> None:
        if not isinstance(content, str | None):
            raise Malformed(f'sent {type(content).__name__} in place of words')
        if content:
            self._first_s = self._clock() if self._first_s is None else self._first_s
            words.append(content)
            if self._on_text is not None:
                self._on_text(content)

    def _count(self, key: str) -> int:
        count = self._usage.get(key)
        return count if type(count) is int and count >= 0 else 0


def _decode(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise Malformed(f'sent an event that is no UTF-8: {line[:60]!r}') from None
