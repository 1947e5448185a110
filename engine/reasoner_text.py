"""From tokens to what is said: whole characters, stop texts, thinking and answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.reasoner_talk import END_OF_THINKING

BEGIN_OF_THINKING = '<think>'
_BROKEN = '\ufffd'  # what a decoder writes for bytes that make no character, or none yet


class Transcript:
    """The text of an answer as it grows; tells its listener every piece once it is certain."""

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        hidden: frozenset[int] = frozenset(),
        stop: Sequence[str] = (),
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        """Begin.

        Args:
            decode: Text of tokens.
            hidden: Tokens that are no text, such as the end of a turn.
            stop: Texts that end the answer and are no part of it.
            on_text: Told every piece.
        """
        self.text = ''
        self._decode, self._hidden, self._stop, self._on_text = decode, hidden, tuple(stop), on_text
        self._pending: list[int] = []
        self._told = 0

    def add(self, token: int) -> bool:
        """Take the next token; True if a stop text is complete with it."""
        if token in self._hidden:
            return False
        self._pending.append(token)
        piece = self._decode(self._pending)
        if piece.endswith(_BROKEN):  # the rest of a character may be on its way
            return False
        self._pending.clear()
        return self._append(piece)

    def end(self) -> None:
        """Nothing follows: what was held back is text after all."""
        if self._pending:
            self._append(self._decode(self._pending))
            self._pending.clear()
        self._tell(len(self.text))

    def _append(self, piece: str) -> bool:
        self.text += piece
        found = [at for at in (self.text.find(stop, self._told) for stop in self._stop) if at >= 0]
        if found:
            self.text = self.text[: min(found)]
        self._tell(len(self.text) - (0 if found else self._held_back()))
        return bool(found)

    def _held_back(self) -> int:
        """Characters at the end with which a stop text may begin."""
        fresh = self.text[self._told :]
        starts = (stop[:length] for stop in self._stop for length in range(1, len(stop)))
        return max((len(start) for start in starts if fresh.endswith(start)), default=0)

    def _tell(self, end: int) -> None:
        piece, self._told = self.text[self._told : end], max(end, self._told)
        if piece and self._on_text is not None:
            self._on_text(piece)


def split_thinking(text: str, *, opened: bool = False) -> tuple[str, str]:
    """Thinking and answer, both stripped; thinking that was begun and never ended is all there is.

    Args:
        text: What was written.
        opened: Whether the prompt ended with `<think>`, so that the text begins within the thinking.
    """
    before, found, after = text.partition(END_OF_THINKING)
    begun = before.lstrip().startswith(BEGIN_OF_THINKING)
    if not (found or begun or opened):
        return '', text.strip()
    return before.strip().removeprefix(BEGIN_OF_THINKING).strip(), after.strip()
