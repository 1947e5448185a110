"""The vision encoder of the reasoner: transformers' own code, of Qwen3-VL (Nano, Super) or of Cosmos 3 Edge.

It is built without memory for its weights, under the names of the checkpoint's file; the room `checkpoint` fills it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Seen:
    """What the understanding tower is shown of pictures, all of them in one row.

    Attributes:
        pieces: [pieces, hidden_size], one for each square of patches; they stand where the prompt leaves room for them.
        depths: For each of the first layers, [pieces, hidden_size] that is added behind it; none on Edge.
    """

    pieces: Tensor
    depths: tuple[Tensor, ...] = ()


class VisionEncoder(Protocol):
    """Turns patches into pieces.

    Attributes:
        module: Holds the weights by the names of the checkpoint's file.
        merge: Patches on each edge of a piece.
    """

    module: nn.Module
    merge: int

    def settle(self, device: torch.device | str) -> None:
        """Calculate what is in no file, once the weights are there."""

    def encode(self, patches: Tensor, grids: Tensor, between: Callable[[], None]) -> Seen:
        """Encode pictures, or frames of videos.

        Args:
            patches: [patches, numbers], as the checkpoint's processor cuts them.
            grids: Int64 [pictures, 3]: times, rows and columns of patches.
            between: Called before every block; whatever uses the device may run in it.
        """


def build_vision_encoder(config: Mapping[str, Any]) -> VisionEncoder:
    """The encoder that the root `config.json` describes, its weights on the meta device.

    Raises:
        KeyError, TypeError, ValueError: It describes none.
    """
    with torch.device('meta'):
        return EdgeVision(config) if config['model_type'] == 'cosmos3_edge' else QwenVision(config)


class QwenVision:
    """The encoder of Nano and Super, whose file has the bare names of Qwen3-VL's vision tower."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Build it."""
        from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

        self._config = Qwen3VLVisionConfig(**config['vision_config'])
        self.module: Any = Qwen3VLVisionModel(self._config)
        self.merge: int = self._config.spatial_merge_size

    def settle(self, device: torch.device | str) -> None:
        """See :meth:`VisionEncoder.settle`: the frequencies of its rotations."""
        self.module.rotary_pos_emb = type(self.module.rotary_pos_emb)(self._config).to(device)

    def encode(self, patches: Tensor, grids: Tensor, between: Callable[[], None]) -> Seen:
        """See :meth:`VisionEncoder.encode`."""
        with _before_each(self.module.blocks, between):
            out = self.module(patches.to(self.module.dtype), grid_thw=grids)
        return Seen(out.pooler_output, tuple(out.deepstack_features))


class EdgeVision:
    """The encoder of Edge and the projector behind it, `model.visual.*` and `model.projector.*` in their file."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Build it."""
        from transformers import Cosmos3EdgeConfig
        from transformers.models.cosmos3_edge.modeling_cosmos3_edge import (
            Cosmos3EdgePatchMerger,
            Cosmos3EdgeVisionModel,
        )

        whole = Cosmos3EdgeConfig.from_dict(dict(config))
        vision: Any = whole.vision_config
        self._visual: Any = Cosmos3EdgeVisionModel(vision)
        self._projector: Any = Cosmos3EdgePatchMerger(whole)
        parts = nn.ModuleDict({'visual': self._visual, 'projector': self._projector})
        self.module: nn.Module = nn.ModuleDict({'model': parts})
        self.merge: int = vision.spatial_merge_size

    def settle(self, device: torch.device | str) -> None:
        """See :meth:`VisionEncoder.settle`: everything is in the file."""

    def encode(self, patches: Tensor, grids: Tensor, between: Callable[[], None]) -> Seen:
        """See :meth:`VisionEncoder.encode`."""
        with _before_each(self._visual.encoder.layers, between):
            out = self._visual(patches.to(self._visual.dtype), grid_thw=grids)
        return Seen(self._projector(out.last_hidden_state))


@contextmanager
def _before_each(blocks: nn.ModuleList, between: Callable[[], None]) -> Iterator[None]:
    """Have `between` called before each of the blocks. One request at a time has the weights, and sets up its own."""
    hooks = [block.register_forward_pre_hook(lambda _module, _inputs: between()) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
