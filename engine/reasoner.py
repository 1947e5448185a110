"""The reasoner surface: questions about what is seen, answered by the weights that are loaded already.

    reasoner = model.reasoner()
    answer = reasoner.generate([user(Picture(rgb), 'What is on the table?')])

The understanding tower reads and writes; generation reads its prompts with the same tensors. Only the vision encoder is
loaded besides. A request runs at the lowest priority: it gives way before every layer of the tower and before every
block of the encoder. What it needs afterwards is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from engine.backends.torch_compiled import check_compiler, compile_read_layer
from engine.errors import InvalidInput, Problem
from engine.network.layers import Layer
from engine.network.understanding import GROWTH, Depths, Memory, ReadLayer, Writer, read, score
from engine.reasoner_checks import check_sampling, check_stop
from engine.reasoner_guesses import GUESSES, Guesser
from engine.reasoner_reading import Reader, Reading
from engine.reasoner_sampling import TokenChooser
from engine.reasoner_talk import GREEDY, Answer, Choice, Finish, Message, Sampling
from engine.reasoner_text import Transcript, split_thinking
from engine.runtime import Runtime, Stopwatch
from engine.turns import Cancelled, Priority, give_way

if TYPE_CHECKING:
    from engine.network.transformer import CosmosTransformer
    from engine.network.vision_encoder import Seen, VisionEncoder

PATCHES_AT_ONCE = 16384
"""So many patches, or one picture if it has more, go through the vision encoder together: a picture of 2048 x 2048."""

Allowed = Callable[[Sequence[int]], Tensor | None]
"""Of the tokens written so far: which may come next, bool [vocab_size]; None for all."""


@dataclass(frozen=True)
class Parts:
    """What a reasoner works with.

    Attributes:
        transformer: With language head.
        encoder: None for words alone.
        reader: Of the same checkpoint.
        ends: Tokens that end an answer.
        limit: Most tokens of prompt and answer together.
        read_layer: What runs a layer while the answer is written.
        guessing: Whether tokens that are likely to follow are read along with the last one; see
            :mod:`engine.reasoner_guesses`.
    """

    transformer: CosmosTransformer
    encoder: VisionEncoder | None
    reader: Reader
    ends: tuple[int, ...]
    limit: int
    read_layer: ReadLayer = Layer.read
    guessing: bool = True


class _Written(NamedTuple):
    """Why an answer ended, its tokens, and the passes of the network in which they were written."""

    finish: Finish
    tokens: int
    passes: int


class Reasoner:
    """A :class:`engine.reasoner_talk.Talker` in this process. Thread-safe; requests take turns."""

    def __init__(self, runtime: Runtime, parts: Parts) -> None:
        """Use :meth:`engine.cosmos3.Cosmos3.reasoner`."""
        self.runtime = runtime
        self.parts = parts

    def compiled(self) -> Reasoner:
        """A reasoner on the same weights whose layers are compiled where it writes token by token.

        There are up to four things to compile, in up to a minute each: single tokens and guesses, before and after an
        answer outgrows its memory of some 256 tokens. Between two of them more urgent requests pass, within one nobody
        does. Have it :meth:`warm_up` before the robot moves.

        Raises:
            InvalidInput: There is nothing here to compile with; lists all that is missing.
        """
        check_compiler(self.parts.transformer.device)
        return Reasoner(self.runtime, replace(self.parts, read_layer=compile_read_layer()))

    def without_guesses(self) -> Reasoner:
        """A reasoner on the same weights that writes token by token; see `Parts.guessing`."""
        return Reasoner(self.runtime, replace(self.parts, guessing=False))

    def warm_up(self) -> None:
        """Run the layers in all ways in which answers are written, so that later ones have nothing to compile.

        How long that takes, and who waits: see :meth:`compiled`.
        """
        transformer, rows = self.parts.transformer, (1, 1 + GUESSES) if self.parts.guessing else (1,)
        with torch.inference_mode(), self.runtime.turn(Priority.REASONER):
            for room in (1, 1 + GROWTH):  # of any other size it is as of these two
                writer = Writer(transformer, Memory(transformer, room), 0, give_way, self.parts.read_layer)
                for count in rows:
                    writer([0] * count)

    def generate(
        self,
        messages: Sequence[Message],
        *,
        sampling: Sampling = GREEDY,
        thinking: bool = False,
        stop: Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
        on_text: Callable[[str], None] | None = None,
        allowed: Allowed | None = None,
    ) -> Answer:
        """Answer a conversation; see :meth:`engine.reasoner_talk.Talker.generate`.

        `on_text` is called by the thread that asked, while it has the weights: it has to be quick.

        Args:
            messages: See there, as for all that is not described here.
            sampling: See there.
            thinking: See there.
            stop: See there.
            cancelled: Asked besides before every layer of reading.
            on_text: See there.
            allowed: Restricts what may be written, token by token.

        Raises:
            InvalidInput: The conversation, the sampling or a stop text is malformed, or prompt and answer may exceed
                the checkpoint's limit; lists every fault. Nothing is ever cut off.
            Cancelled: `cancelled` returned True.
        """
        check_sampling(sampling, 'vllm')
        check_stop(stop)
        watch = Stopwatch(self.parts.transformer.device)
        with watch.stage('total', with_waits=True):
            with watch.stage('vision'):
                reading = self.parts.reader.read(messages, thinking=thinking)
            self._check_length(reading, sampling.max_tokens)
            guesser = self._guesser(reading)
            transcript = Transcript(self.parts.reader.decode, self.parts.reader.hidden, stop, on_text)
            with torch.inference_mode(), self.runtime.turn(Priority.REASONER, watch, cancelled):
                memory, hidden = self._read(reading, watch, cancelled)
                with watch.stage('decode'):
                    scores = score(self.parts.transformer, hidden)
                    writer = self._writer(memory, reading)
                    chooser = TokenChooser(sampling, reading.ids, scores.shape[-1], scores.device)

                    def choose(following: Tensor, before: Sequence[int]) -> int:
                        if cancelled():
                            raise Cancelled(f'given up after {len(before)} tokens of the answer')
                        return chooser.choose(following, None if allowed is None else allowed(before))

                    written = self._write(scores, writer, guesser, choose, transcript, sampling.max_tokens)
        thoughts, text = split_thinking(transcript.text, opened=reading.opened)
        return Answer(
            text, thoughts, written.finish, len(reading.ids), written.tokens, watch.seconds, passes=written.passes
        )

    def choose(
        self,
        messages: Sequence[Message],
        choices: Sequence[str],
        *,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Choice:
        """Choose one of several texts; see :meth:`engine.reasoner_talk.Talker.choose`.

        The probability of a choice is that of its tokens, one after the other, and of the end of the answer after them;
        those of all choices are then scaled so that they add up to 1. The conversation is read once.

        Raises:
            InvalidInput: The conversation or a choice is malformed or too long; lists every fault.
            Cancelled: `cancelled` returned True.
        """
        _check_choices(choices, self.parts.reader)
        watch = Stopwatch(self.parts.transformer.device)
        reading = self.parts.reader.read(messages)
        written = [self.parts.reader.encode(choice) for choice in choices]
        self._check_length(reading, 1 + max(map(len, written)))
        with torch.inference_mode(), self.runtime.turn(Priority.REASONER, watch, cancelled):
            memory, hidden = self._read(reading, watch, cancelled)
            logs = [self._log_probability(memory, reading, hidden, tokens, cancelled) for tokens in written]
        shares = torch.softmax(torch.tensor(logs, dtype=torch.float64), dim=0).tolist()
        return Choice(choices[shares.index(max(shares))], dict(zip(choices, shares, strict=True)))

    def _read(self, reading: Reading, watch: Stopwatch, cancelled: Callable[[], bool]) -> tuple[Memory, Tensor]:
        """Read a conversation; returns its memory and the last token's hidden state [1, hidden_size]."""
        between, transformer = _giving_way(cancelled, 'while the conversation was read'), self.parts.transformer
        with watch.stage('vision'):
            seen = self._see(reading, between)
        with watch.stage('prefill'):
            hidden = transformer.embed(torch.tensor(reading.ids, device=transformer.device))
            depths = None
            if seen is not None:
                where = reading.where.to(transformer.device)
                hidden[where] = seen.pieces.to(hidden.dtype)
                depths = Depths(where, seen.depths)
            memory = Memory(transformer, len(reading.ids) + 1)
            hidden = read(transformer, hidden, reading.positions, memory, depths, between)
        return memory, hidden[-1:].clone()  # not a view, which would keep all of them

    def _see(self, reading: Reading, between: Callable[[], None]) -> Seen | None:
        """Send pictures through the vision encoder, a few at a time; no picture and no frame attends to another."""
        encoder, device = self.parts.encoder, self.parts.transformer.device
        if reading.patches is None or encoder is None:
            return None
        seen, first = [], 0
        for grids in _batches(reading.grids):
            last = first + sum(times * rows * columns for times, rows, columns in grids)
            patches = reading.patches[first:last].to(device)
            seen.append(encoder.encode(patches, torch.tensor(grids, device=device), between))
            first = last
        depths = tuple(torch.cat(parts) for parts in zip(*(batch.depths for batch in seen), strict=True))
        return type(seen[0])(torch.cat([batch.pieces for batch in seen]), depths)

    def _writer(self, memory: Memory, reading: Reading) -> Writer:
        position = int(reading.positions.max()) + 1
        return Writer(self.parts.transformer, memory, position, give_way, self.parts.read_layer)

    def _guesser(self, reading: Reading) -> Guesser:
        pieces = set(reading.where.tolist())
        words = [token for place, token in enumerate(reading.ids) if place not in pieces]
        return Guesser(words, silent=not self.parts.guessing)

    def _write(
        self,
        scores: Tensor,
        writer: Writer,
        guesser: Guesser,
        choose: Callable[[Tensor, Sequence[int]], int],
        transcript: Transcript,
        limit: int,
    ) -> _Written:
        """Write an answer of at most `limit` tokens to the transcript.

        Args:
            scores: [1, vocab_size], of its first token.
            writer: Behind the conversation.
            guesser: Of what comes next.
            choose: From the scores of a token and all tokens before it to the token.
            transcript: What is written.
            limit: Most tokens.
        """
        written: list[int] = []
        guesses: list[int] = []
        passes = 1
        while True:
            right = 0
            for following, guess in zip(scores, [*guesses, None], strict=True):
                token = choose(following, written)
                written.append(token)
                ended = token in self.parts.ends or transcript.add(token)
                if ended or len(written) == limit:
                    transcript.end()
                    return _Written('stop' if ended else 'length', len(written), passes)
                guesser.add(token)
                if token != guess:
                    break
                right += 1
            if guesses:
                writer.forget(len(guesses) - right)
                guesser.came_true(right)
            # Nothing is read beyond the limit, and always as many: another number of rows might have to be compiled.
            guesses = guesser.guess() if limit - len(written) > GUESSES else []
            scores = writer([token, *guesses])
            passes += 1

    def _log_probability(
        self, memory: Memory, reading: Reading, hidden: Tensor, tokens: list[int], cancelled: Callable[[], bool]
    ) -> float:
        """Logarithm of the probability that the answer is these tokens and then ends; leaves the memory as it was."""
        transformer, between = self.parts.transformer, _giving_way(cancelled, 'while choices were compared')
        begin, length = int(reading.positions.max()) + 1, memory.length
        positions = torch.arange(begin, begin + len(tokens), dtype=torch.float32).expand(3, -1)
        ids = torch.tensor(tokens, device=transformer.device)
        after = read(transformer, transformer.embed(ids), positions, memory, between=between)
        memory.length = length
        logs = torch.log_softmax(score(transformer, torch.cat([hidden, after])).double(), dim=-1)
        ends = torch.logsumexp(logs[-1, list(self.parts.ends)], dim=0)
        return float(logs[torch.arange(len(tokens)), ids].sum() + ends)

    def _check_length(self, reading: Reading, more: int) -> None:
        """Refuse what the checkpoint was not made for, before anything is calculated."""
        total = len(reading.ids) + more
        if total > self.parts.limit:
            value = f'{len(reading.ids)} tokens read and up to {more} written'
            remedy = 'show less, or ask for a shorter answer (max_tokens)'
            problem = Problem('messages', 'are too long', value, f'at most {self.parts.limit} together', remedy)
            raise InvalidInput('conversation', [problem])


def _giving_way(cancelled: Callable[[], bool], when: str) -> Callable[[], None]:
    """What is done before every layer."""

    def between() -> None:
        give_way()
        if cancelled():
            raise Cancelled(f'given up {when}')

    return between


def _batches(grids: Sequence[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Pictures and frames, in order, in lists of up to `PATCHES_AT_ONCE` patches."""
    batch: list[tuple[int, int, int]] = []
    patches = 0
    for times, rows, columns in grids:
        for _ in range(times):
            if batch and patches + rows * columns > PATCHES_AT_ONCE:
                yield batch
                batch, patches = [], 0
            batch.append((1, rows, columns))
            patches += rows * columns
    if batch:
        yield batch


def _check_choices(choices: Sequence[str], reader: Reader) -> None:
    problems = [] if choices else [Problem('choices', 'are none', allowed='at least one text')]
    for number, choice in enumerate(choices):
        where = f'choices[{number}]'
        if not choice:
            problems.append(Problem(where, 'is empty'))
        if choice in choices[:number]:
            problems.append(Problem(where, 'is there twice', repr(choice)))
        if control := reader.control_in(choice):
            problems.append(Problem(where, 'spells out a control token', control))
    if problems:
        raise InvalidInput('choices', problems)
