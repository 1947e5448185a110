"""Opens compiled parts with the backend that runs them here, or says everything that speaks against it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.backends import onnx_runtime
from engine.backends.card import Card, EngineError, read_card
from engine.backends.compiled import CompiledBackend, CompiledVae
from engine.errors import Problem

if TYPE_CHECKING:
    from engine.network.config import TransformerConfig

ONNX_RUNTIME = onnx_runtime.NAME


def open_compiled(
    folder: Path, fingerprint: str, config: TransformerConfig, backend: str = ONNX_RUNTIME
) -> tuple[CompiledBackend, CompiledVae]:
    """Open a folder of compiled parts.

    Args:
        folder: What `cosmos3 compile` made.
        fingerprint: Of the checkpoint they must have been made from.
        config: Of that checkpoint.
        backend: 'onnxruntime'.

    Raises:
        EngineError: The folder is damaged, was made from another checkpoint, or cannot run here; lists every reason.
        CosmosError: A package is missing.
    """
    card = read_card(folder)
    problems = [*_mismatches(card, fingerprint, backend)]
    if problems:
        raise EngineError(f'compiled parts in {folder}', problems)
    device = torch.device('cpu')
    runners = onnx_runtime.open_graphs(folder, card)
    return CompiledBackend(backend, card, config, device, runners), CompiledVae(card, device, runners)


def _mismatches(card: Card, fingerprint: str, backend: str) -> Iterator[Problem]:
    if card.checkpoint['fingerprint'] != fingerprint:
        found, wanted = card.checkpoint['fingerprint'][:12], fingerprint[:12]
        yield Problem('checkpoint', 'is another one', f'made from {found}', wanted, 'compile this checkpoint')
    if backend != ONNX_RUNTIME:
        yield Problem('backend', 'cannot run compiled parts', backend, ONNX_RUNTIME)
