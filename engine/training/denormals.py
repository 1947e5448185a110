"""Numbers next to nothing, which cost a processor a hundred times as much as others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def without_denormals() -> Iterator[None]:
    """Take them for 0 meanwhile. It is a matter of this thread and of those that PyTorch starts in it."""
    for kind in (np.float32, np.float64):
        np.finfo(kind)  # asked for the first time meanwhile, it would complain
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
