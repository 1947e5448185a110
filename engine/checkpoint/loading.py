"""From files to a module's memory, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from engine.checkpoint.shards import StoredTensor
from engine.errors import CheckpointError, Problem

_SAMPLE_BYTES = 64


def fill(module: nn.Module, stored: Mapping[str, StoredTensor], device: torch.device | str, dtype: torch.dtype) -> None:
    """Give a module built on the meta device its weights, and leave it ready for inference.

    Args:
        module: The module; every tensor of its state is replaced.
        stored: Where to find them by name; tensors that the module does not have are left alone.
        device: Where the weights go.
        dtype: Their type there.

    Raises:
        CheckpointError: A file can no longer be read as it was when it was verified.
    """
    state = {name: _read(name, stored[name], device, dtype) for name in module.state_dict()}
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False).eval()


def fill_some(
    module: nn.Module,
    stored: Mapping[str, StoredTensor],
    names: Iterable[str],
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """Give some of a module's tensors their weights; the others stay as they are.

    Raises:
        CheckpointError: A file can no longer be read as it was when it was verified.
    """
    state = {name: _read(name, stored[name], device, dtype) for name in names}
    module.load_state_dict(state, strict=False, assign=True)
    module.requires_grad_(False).eval()


def forget(module: nn.Module, names: Iterable[str]) -> None:
    """Give back the memory of some of a module's tensors, which are on the meta device from then on.

    Whoever holds one of them besides has an empty tensor: PyTorch's tracer keeps all that it has seen, and with it the
    weights of every part that was ever exported, for the life of the process.
    """
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    given = {name: own[name] for name in names}
    state = {name: torch.empty_like(tensor, device='meta') for name, tensor in given.items()}
    module.load_state_dict(state, strict=False, assign=True)
    for tensor in given.values():
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)


def sample(tensor: StoredTensor) -> bytes:
    """A few bytes from the middle of a tensor.

    Raises:
        CheckpointError: The file can no longer be read.
    """
    try:
        with tensor.file.open('rb') as stream:
            stream.seek((tensor.begin + tensor.end) // 2)
            return stream.read(min(_SAMPLE_BYTES, tensor.end - stream.tell()))
    except OSError as error:
        raise _gone(str(tensor.file), error) from error


def _read(name: str, stored: StoredTensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    # The file is opened anew for each tensor. One mapping for all of them would keep every page that was ever read in
    # memory until the last tensor is copied: a second copy of the shard.
    try:
        with safe_open(stored.file, framework='pt', device='cpu') as file:
            loaded: Tensor = file.get_tensor(name).to(device=device, dtype=dtype, copy=True)
    except (OSError, SafetensorError) as error:
        raise _gone(f'{stored.file}: {name}', error) from error
    return loaded


def _gone(where: str, error: Exception) -> CheckpointError:
    problem = Problem(where, 'has changed since the checkpoint was opened', str(error), remedy='load it again')
    return CheckpointError('checkpoint', [problem])
