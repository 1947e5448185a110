"""The face of the engine: load a checkpoint once, hand out its surfaces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ContractError, CosmosError, Problem

if TYPE_CHECKING:
    import torch

    from engine.checkpoint import Checkpoint
    from engine.contract import Contract
    from engine.policy import Policy
    from engine.runtime import Runtime


PRECISIONS = ('float32', 'bfloat16', 'float16', 'float64')


class Cosmos3:
    """A loaded checkpoint: one copy of the weights, from which every surface is served."""

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        """Use :func:`load`."""
        self.checkpoint = checkpoint
        self.runtime = runtime

    @property
    def family(self) -> str:
        """Model family: `nano`, `super` or `edge`."""
        return self.checkpoint.family

    def policy(self, contract: Contract) -> Policy:
        """The policy surface for one contract.

        Raises:
            ContractError: The contract does not fit this checkpoint; lists every difference.
        """
        from engine.policy import Policy

        problems = contract_differences(self.checkpoint, contract)
        if problems:
            raise ContractError(f'contract {contract.name} and checkpoint {self.checkpoint.root}', problems)
        return Policy(self.runtime, contract)


def contract_differences(checkpoint: Checkpoint, contract: Contract) -> list[Problem]:
    """Everything in which a contract and a checkpoint disagree; empty if they fit."""
    problems = []
    if checkpoint.family not in contract.checkpoint.families:
        problems.append(
            Problem(
                'checkpoint.families',
                'this checkpoint is of another family',
                checkpoint.family,
                ', '.join(contract.checkpoint.families),
                'choose another checkpoint or contract',
            )
        )
    config = checkpoint.transformer_config
    if not checkpoint.has_action:
        problems.append(
            Problem('transformer', 'has no action head', 'action_gen false', '', 'use a checkpoint with actions')
        )
    elif contract.embodiment.raw_action_dim > (config.action_dim or 0):
        problems.append(
            Problem(
                'embodiment.raw_action_dim',
                'exceeds the width of the action head',
                str(contract.embodiment.raw_action_dim),
                f'at most {config.action_dim}',
            )
        )
    terms = checkpoint.provenance.get('policy') or {}
    declared = (
        ('timing.chunk_rows', 'action_chunk_size', contract.timing.chunk_rows),
        ('timing.fps', 'conditioning_fps', contract.timing.fps),
        ('embodiment.domain', 'domain_name', contract.embodiment.domain),
    )
    for key, name, value in declared:
        if name in terms and terms[name] != value:
            problems.append(Problem(key, f'differs from checkpoint.json policy.{name}', str(value), str(terms[name])))
    return problems


def load(
    source: str | Path,
    device: str | torch.device = 'cpu',
    dtype: str | torch.dtype = 'float32',
    *,
    compiled: str | Path | None = None,
) -> Cosmos3:
    """Load a checkpoint in the public layout.

    Args:
        source: Directory, or hub id when the network is there.
        device: Where the weights go, e.g. `cpu` or `cuda`.
        dtype: Computing precision: `float32`, `bfloat16`, `float16` or `float64`.
        compiled: Folder that `cosmos3 compile` made of this checkpoint; its parts run in place of PyTorch, and device
            and precision are theirs.

    Returns:
        The model, ready to hand out surfaces.

    Raises:
        CheckpointError: The checkpoint is incomplete or damaged; lists every fault by file and tensor.
        EngineError: The compiled parts are damaged, or not of this checkpoint; lists every reason.
        CosmosError: The device or dtype is not to be had.
    """
    from engine.backends.torch_reference import TorchReference
    from engine.checkpoint import open_checkpoint
    from engine.runtime import Runtime

    where, precision = _device(device), _dtype(dtype)
    checkpoint = open_checkpoint(source)
    if compiled is not None:
        from engine.backends.opening import open_compiled

        backend, vae = open_compiled(Path(compiled), checkpoint.fingerprint, checkpoint.transformer_config)
        return Cosmos3(checkpoint, Runtime(backend, vae, checkpoint.load_tokenizer()))
    runtime = Runtime(
        TorchReference(checkpoint.load_transformer(where, precision)),
        checkpoint.load_vae(where, precision),
        checkpoint.load_tokenizer(),
    )
    return Cosmos3(checkpoint, runtime)


def _device(device: str | torch.device) -> torch.device:
    import torch

    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise CosmosError(f'device {str(device)!r} cannot be used here: {error}') from error
    return chosen


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    import torch

    names: dict[str, torch.dtype] = {name: getattr(torch, name) for name in PRECISIONS}
    if isinstance(dtype, torch.dtype) and dtype in names.values():
        return dtype
    if isinstance(dtype, str) and dtype in names:
        return names[dtype]
    raise CosmosError(f'dtype {dtype!r} is not one of {", ".join(names)}')
