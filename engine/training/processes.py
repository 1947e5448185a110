"""Joins the processes that train together, as `torchrun` starts them; alone there is nothing to join."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


@contextmanager
def joined(device: str) -> Iterator[tuple[str, bool]]:
    """The device of this process, and whether it is the first one.

    Args:
        device: As asked for; 'cuda' becomes the GPU of this process.
    """
    count = int(os.environ.get('WORLD_SIZE', '1'))
    if count == 1:
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


def leave(code: int = 0) -> None:
    """End this process at once if it is one of several; everything must be written. Alone, do nothing.

    Threads of PyTorch's autograd outlive their process group. When the interpreter is taken down they ask for its lock,
    and on a busy machine some of them find it gone and abort: torchrun then takes a finished training for a failed one,
    and ends the other processes, too.
    """
    if int(os.environ.get('WORLD_SIZE', '1')) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
