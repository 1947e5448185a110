"""Joins the processes that train together, as `torchrun` starts them; alone there is nothing to join."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def are_several() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get('WORLD_SIZE', '1')) > 1


@contextmanager
def joined(device: str) -> Iterator[tuple[str, bool]]:
    """The device of this process, and whether it is the first one.

    Args:
        device: As asked for; 'cuda' becomes the GPU of this process.
    """
    if not are_several():
        yield device, True
        return
    local = int(os.environ.get('LOCAL_RANK', '0'))
    on_gpu = device.startswith('cuda')
    if on_gpu:
        torch.cuda.set_device(local)
        device = f'cuda:{local}'
    dist.init_process_group('nccl' if on_gpu else 'gloo')
    try:
        yield device, dist.get_rank() == 0
    finally:
        dist.destroy_process_group()
