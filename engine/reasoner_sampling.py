"""From scores to the next token: penalties, temperature, the most probable of them, a draw.

The order is that of transformers and vLLM: penalties, temperature, `top_k`, `top_p`. Probabilities are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.reasoner_talk import Sampling

COLDEST = 1e-5
"""Least temperature that scores are divided by; below it float32 may overflow, and the most probable token is sure."""


class TokenChooser:
    """Chooses the tokens of one answer."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab_size: int, device: torch.device) -> None:
        """Begin an answer to a prompt."""
        self._sampling = sampling
        # Draws are the processor's on every device: the same scores and seed, the same tokens.
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._occurred = self._written = None
        if sampling.repetition_penalty != 1.0:
            self._occurred = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self._occurred[torch.tensor(prompt, dtype=torch.long, device=device)] = True
        if sampling.presence_penalty:
            self._written = torch.zeros(vocab_size, dtype=torch.bool, device=device)

    def choose(self, scores: Tensor, allowed: Tensor | None = None) -> int:
        """The next token.

        Args:
            scores: [vocab_size], any float type.
            allowed: Bool [vocab_size]; None allows every token.
        """
        scores = self._penalised(scores.float())
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        token = int(scores.argmax()) if not self._sampling.temperature else self._draw(scores)
        for mask in (self._occurred, self._written):
            if mask is not None:
                mask[token] = True
        return token

    def _penalised(self, scores: Tensor) -> Tensor:
        if self._occurred is not None:
            factor = self._sampling.repetition_penalty
            less = torch.where(scores > 0, scores / factor, scores * factor)
            scores = torch.where(self._occurred, less, scores)
        if self._written is not None:
            scores = scores - self._written * self._sampling.presence_penalty
        return scores

    def _draw(self, scores: Tensor) -> int:
        probabilities, tokens = candidates(scores, self._sampling)
        return int(tokens[torch.multinomial(probabilities.cpu(), 1, generator=self._generator)])


def candidates(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Probabilities of the tokens that may be drawn, from the most probable down, and which tokens these are.

    Args:
        scores: Float32 [vocab_size], after penalties.
        sampling: Temperature above 0, `top_k`, `top_p`.
    """
    scores = scores / max(sampling.temperature, COLDEST)
    most = min(sampling.top_k, len(scores)) or len(scores)
    if most == len(scores) and sampling.top_p >= 1.0:
        return torch.softmax(scores, dim=0), torch.arange(most)
    best, tokens = torch.topk(scores, most)
    probabilities = torch.softmax(best, dim=0)
    if sampling.top_p < 1.0:
        before = probabilities.cumsum(0) - probabilities  # 0 for the first, which therefore always stays
        probabilities = torch.where(before < sampling.top_p, probabilities, 0.0)
        probabilities /= probabilities.sum()
    return probabilities, tokens
