"""What is said to a reasoner and what it answers: messages, how to sample, the answer; whoever computes it.

A conversation is a tuple of :class:`Message`. A message is a tuple of parts: pictures and videos first, words last, as
the published cookbook has it. Nothing here knows PyTorch, ROS or HTTP: the local weights
(:mod:`engine.reasoner`) and any OpenAI-compatible endpoint (:mod:`engine.reasoner_remote`) are both a :class:`Talker`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

THINK = (
    'Answer the question using the following format:\n\n<think>\nYour reasoning.\n</think>\n\n'
    'Write your final answer immediately after the </think> tag.'
)
"""What the published prompt guide appends to the user's words to ask for reasoning; the answer follows `</think>`."""
END_OF_THINKING = '</think>'
SYSTEM_PROMPT = 'You are a helpful assistant.'
"""Of the published prompt guide."""

Role = Literal['system', 'user', 'assistant']
Finish = Literal['stop', 'length']


@dataclass(frozen=True)
class Picture:
    """A still picture.

    Attributes:
        rgb: uint8 [H, W, 3].
        name: What it shows, e.g. a view of the contract; the model is not told.
    """

    rgb: NDArray[np.uint8]
    name: str = ''


@dataclass(frozen=True)
class Video:
    """Frames at a constant rate.

    Attributes:
        frames: uint8 [F, H, W, 3].
        fps: Frames per second of `frames`.
        sample_fps: Frames per second that the model is shown; None: all of `frames` as they are.
        name: What it shows; the model is not told.
    """

    frames: NDArray[np.uint8]
    fps: float
    sample_fps: float | None = 2.0
    name: str = ''


Part = str | Picture | Video


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """Its words."""
        return '\n'.join(part for part in self.parts if isinstance(part, str))


def user(*parts: Part) -> Message:
    """A turn of the user."""
    return Message('user', parts)


def assistant(text: str) -> Message:
    """A turn of the model."""
    return Message('assistant', (text,))


def system(text: str = SYSTEM_PROMPT) -> Message:
    """What comes before all turns."""
    return Message('system', (text,))


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most probable token (greedy).
        top_p: Smallest set of most probable tokens with this much probability; 1: all.
        top_k: Of so many most probable tokens; 0: of all.
        repetition_penalty: Divides the scores of tokens that occurred, prompt included (multiplies negative ones).
        presence_penalty: Is subtracted from the scores of tokens that were generated before.
        max_tokens: Longest answer, thinking included.
        seed: Of the draws.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    max_tokens: int = 1024
    seed: int = 0


GREEDY = Sampling()
ANSWERING = Sampling(temperature=0.7, top_p=0.8, top_k=20, presence_penalty=1.5, max_tokens=4096)
"""Published settings without reasoning."""
THINKING = Sampling(temperature=0.6, top_p=0.95, top_k=20, max_tokens=4096)
"""Published settings with reasoning."""


@dataclass(frozen=True)
class Answer:
    """What a reasoner said.

    Attributes:
        text: The final answer: without the thinking, stripped.
        thinking: What came before `</think>`; empty if there was none.
        finish: 'stop': the model ended, or a stop text came; 'length': the limit of tokens was reached first.
        prompt_tokens: Length of what was read.
        tokens: Number of tokens that were generated.
        seconds: Where the time went: `wait`, `vision`, `prefill`, `decode`, `total`; remote ones know `first` and
            `total`.
        passes: Of the network, in which they were generated: fewer than tokens where guesses came true; 0: not known.
    """

    text: str
    thinking: str = ''
    finish: Finish = 'stop'
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    passes: int = 0


@dataclass(frozen=True)
class Choice:
    """One of several texts, chosen by probability.

    Attributes:
        text: The most probable of the choices.
        probabilities: Of every choice, in the order given; they add up to 1.
    """

    text: str
    probabilities: dict[str, float]


class Talker(Protocol):
    """Whoever answers: the weights of this process, or an endpoint."""

    def generate(
        self,
        messages: Sequence[Message],
        *,
        sampling: Sampling = GREEDY,
        thinking: bool = False,
        stop: Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer a conversation.

        Args:
            messages: The conversation so far; the last turn is the user's.
            sampling: How to choose tokens.
            thinking: Whether to append :data:`THINK` to the last turn.
            stop: Texts that end the answer; they are not part of it.
            cancelled: Asked between tokens, and while the request waits.
            on_text: Told every piece of text as it comes, thinking included.

        Raises:
            InvalidInput: The conversation is malformed or too long; lists every fault.
            Cancelled: `cancelled` returned True.
            TalkerError: The answer could not be had (remote: endpoint unreachable, refused, or timed out).
        """

    def choose(
        self,
        messages: Sequence[Message],
        choices: Sequence[str],
        *,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Choice:
        """Choose one of several texts by the probability that the model gives each as its whole answer."""
