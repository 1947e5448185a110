"""Open, verify and load checkpoints in the public layout.

checkpoint = open_checkpoint('DIR-or-hub-id')          # reads headers, reports every fault, loads nothing
transformer = checkpoint.load_transformer('cuda', torch.bfloat16)
"""

from __future__ import annotations

from engine.checkpoint.opening import SURFACES, Checkpoint, open_checkpoint
from engine.checkpoint.shards import StoredTensor

__all__ = ['SURFACES', 'Checkpoint', 'StoredTensor', 'open_checkpoint']
