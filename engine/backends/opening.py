"""Opens compiled parts with the backend that runs them here, or says everything that speaks against it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.backends.card import Card, EngineError
from engine.backends.choice import TENSORRT
from engine.backends.compiled import CompiledBackend, CompiledVae
from engine.errors import Problem

if TYPE_CHECKING:
    from engine.network.config import TransformerConfig


def open_compiled(
    folder: Path,
    card: Card,
    config: TransformerConfig,
    backend: str,
    device: torch.device,
    *,
    offload: bool = False,
) -> tuple[CompiledBackend, CompiledVae]:
    """Open a folder of compiled parts.

    Args:
        folder: What `cosmos3 compile` made.
        card: Of this folder, from :func:`engine.backends.card.read_card`.
        config: Of the checkpoint they were made from.
        backend: 'onnxruntime' or 'tensorrt', from :func:`engine.backends.choice.choose`.
        device: Where engines run; graphs run on the processor.
        offload: Whether engines that run seldom are kept out of the GPU's memory.

    Raises:
        EngineError: A part cannot be opened; lists every reason.
        CosmosError: A package is missing.
    """
    if backend == TENSORRT:
        from engine.backends.tensorrt_runner import open_engines

        where = device if device.type == 'cuda' else torch.device('cuda')
        runners = open_engines(folder, card, where, offload=offload)
    else:
        from engine.backends.onnx_runtime import open_graphs

        where = torch.device('cpu')
        runners = open_graphs(folder, card)
    return CompiledBackend(backend, card, config, where, runners), CompiledVae(card, where, runners)


def check_origin(folder: Path, card: Card, fingerprint: str) -> None:
    """Do nothing if compiled parts were made from the checkpoint of this fingerprint.

    Raises:
        EngineError: They were not.
    """
    made_from = card.checkpoint['fingerprint']
    if made_from != fingerprint:
        what = f'made from {made_from[:12]}'
        problem = Problem('checkpoint', 'is another one', what, fingerprint[:12], 'compile this checkpoint')
        raise EngineError(f'compiled parts in {folder}', [problem])
