"""From a caption to the token ids of a prompt, by the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError, ObservationError, Problem

MAX_TOKENS = 4096
"""Longest prompt the public checkpoints were trained with, all added tokens included."""
PROMPTS_REMEMBERED = 64

_START = '<|vision_start|>'
# Published ids of (end of turn, start of generation), for tokenizers that do not name them.
_FALLBACK = {'nano': (151645, 151652), 'super': (151645, 151652), 'edge': (11, 20)}


@dataclass(frozen=True)
class PromptTokenizer:
    """Renders one user turn through the chat template and closes it as the model was trained: end of turn, start.

    The template is the checkpoint's own, never assumed: Edge's adds thinking markers that Nano's does not have.
    Instances may be used from several threads at once. They remember the prompts that were asked for last: a policy
    asks for the same one at every tick, and rendering and encoding it takes a millisecond.

    Attributes:
        tokenizer: The checkpoint's `PreTrainedTokenizerFast`.
        family: Model family: `nano`, `super` or `edge`.
        eos_id: Token that ends every turn, put after the rendered prompt as well.
        start_id: Token that starts generation (`<|vision_start|>`), the last of every prompt.
        limit: Largest number of tokens of a prompt.
    """

    tokenizer: Any
    family: str
    eos_id: int
    start_id: int
    limit: int = MAX_TOKENS
    _remembered: Callable[[str, str | None], tuple[int, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, '_remembered', lru_cache(PROMPTS_REMEMBERED)(self._encode))

    @classmethod
    def from_directory(
        cls, directory: Path, family: str, config: Mapping[str, Any] | None = None, limit: int = MAX_TOKENS
    ) -> PromptTokenizer:
        """Load `text_tokenizer/` of a checkpoint.

        Args:
            directory: The folder with `tokenizer.json`, `tokenizer_config.json` and the chat template.
            family: Model family, whose published ids stand in for special tokens that the tokenizer does not name.
            config: The checkpoint's root `config.json`; asked for `vision_start_token_id` before the family is.
            limit: Largest number of tokens of a prompt.

        Raises:
            CheckpointError: The tokenizer cannot be read or has no chat template.
        """
        from transformers import PreTrainedTokenizerFast

        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        except Exception as error:  # the Rust tokenizer raises nothing more specific
            problem = Problem(str(directory), 'cannot be read as a tokenizer', f'{type(error).__name__}: {error}')
            raise CheckpointError('tokenizer', [problem]) from error
        if not tokenizer.chat_template:
            remedy = 'add the published chat_template.jinja to this folder'
            raise CheckpointError('tokenizer', [Problem(str(directory), 'has no chat template', remedy=remedy)])
        fallback_eos, fallback_start = _FALLBACK[family]
        start = tokenizer.backend_tokenizer.token_to_id(_START)
        return cls(
            tokenizer,
            family,
            eos_id=fallback_eos if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
            start_id=(config or {}).get('vision_start_token_id', fallback_start) if start is None else start,
            limit=limit,
        )

    def encode(self, caption: str, system_prompt: str | None = None) -> list[int]:
        """Token ids of a prompt: rendered turns, end of turn, start of generation.

        Args:
            caption: What the user says; empty for the unconditional branch of guidance.
            system_prompt: A system turn before it. The public checkpoints were trained without one for generation and
                action, so there is none unless asked for.

        Returns:
            The ids, at least two and at most `limit`.

        Raises:
            ObservationError: The prompt has more than `limit` tokens. It is never truncated: half an instruction may
                ask for the opposite of the whole.
        """
        return list(self._remembered(caption, system_prompt))

    def _encode(self, caption: str, system_prompt: str | None) -> tuple[int, ...]:
        # Rendering and encoding apart, because the combined call changes the tokenizer's settings on the way.
        rendered = self.tokenizer.apply_chat_template(
            _messages(caption, system_prompt), tokenize=False, add_generation_prompt=True, add_vision_id=False
        )
        ids = self.tokenizer.backend_tokenizer.encode(rendered, add_special_tokens=False).ids
        prompt = (*ids, self.eos_id, self.start_id)
        if len(prompt) > self.limit:
            value = f'{len(prompt)} tokens ({len(caption)} characters)'
            allowed = f'at most {self.limit} tokens'
            problem = Problem('instruction', 'is too long', value, allowed, 'say it in fewer words')
            raise ObservationError('prompt', [problem])
        return prompt


def _messages(caption: str, system_prompt: str | None) -> list[dict[str, str]]:
    system = [] if system_prompt is None else [{'role': 'system', 'content': system_prompt}]
    return [*system, {'role': 'user', 'content': caption}]
