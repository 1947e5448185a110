"""The understanding tower in host memory: it comes to the device layer by layer when a prompt is read, and leaves.

A prompt's keys and values are calculated once and kept, so the weights that make them need not lie on the device: for
Nano that is half of all weights, and a GPU of 24 GB then holds the generation tower. A new prompt costs the way of the
tower to the device. What is calculated is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from engine.network.config import TransformerConfig
from engine.network.layers import GENERATION, Layer

HOST = torch.device('cpu')
_PLACES = 2  # one layer calculates while the next is on its way


def rests_on_host(name: str) -> bool:
    """Whether a tensor of the transformer, by its public name, is read only where a prompt is."""
    return name.startswith(('embed_tokens.', 'layers.')) and not any(part in name for part in GENERATION)


def move_to_host(transformer: nn.Module, *, pinned: bool) -> None:
    """Move what rests on the host there, tensor by tensor.

    Args:
        transformer: Changed in place.
        pinned: Whether into memory that a GPU can fetch from by itself, while it calculates; not the embeddings, of
            which a few rows are read where they are.
    """
    for name, parameter in transformer.named_parameters():
        if rests_on_host(name):
            there = parameter.data.to(HOST)
            parameter.data = there.pin_memory() if pinned and not name.startswith('embed_tokens.') else there


def stream_layers(layers: Sequence[Layer], config: TransformerConfig, device: torch.device) -> Iterator[Layer]:
    """The layers with their understanding half on `device`, one after the other.

    A layer is there until the next one is asked for; its generation half is not.

    Args:
        layers: With their understanding half on the host.
        config: Of these layers.
        device: Where they shall calculate.
    """
    copies = torch.cuda.Stream(device) if device.type == 'cuda' else None
    places = [_Place(layers[0], config, device, copies) for _ in layers[:_PLACES]]
    try:
        places[0].fill(layers[0])
        for index, following in enumerate([*layers[1:], None]):
            if following is not None:
                places[(index + 1) % _PLACES].fill(following)
            place = places[index % _PLACES]
            place.wait()
            yield place.layer
            place.release()
    finally:
        if copies is not None:  # the places go, and nothing may still be on its way to them
            copies.synchronize()


class _Place:
    """Room on the device for the understanding half of one layer."""

    def __init__(
        self, like: Layer, config: TransformerConfig, device: torch.device, copies: torch.cuda.Stream | None
    ) -> None:
        """Make room for layers like `like`, to be filled on the stream `copies`; on a processor there is none."""
        with torch.device('meta'):
            self.layer = Layer(config).requires_grad_(False).eval()
        self._room = {name: torch.empty_like(tensor, device=device) for name, tensor in _half(like)}
        self.layer.load_state_dict(self._room, strict=False, assign=True)
        self._device, self._copies = device, copies
        if copies is not None:
            self._filled, self._free = torch.cuda.Event(), torch.cuda.Event()
            self._free.record(torch.cuda.current_stream(device))

    def fill(self, layer: Layer) -> None:
        """Send a layer here, as soon as the one that is here has been used."""
        if self._copies is None:
            self._copy(layer)
            return
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(self._free)
            self._copy(layer)
            self._filled.record(self._copies)

    def wait(self) -> None:
        """Let the device, not the program, wait until the layer is here."""
        if self._copies is not None:
            torch.cuda.current_stream(self._device).wait_event(self._filled)

    def release(self) -> None:
        """What has been asked of the layer is all."""
        if self._copies is not None:
            self._free.record(torch.cuda.current_stream(self._device))

    def _copy(self, layer: Layer) -> None:
        for name, tensor in _half(layer):
            self._room[name].copy_(tensor, non_blocking=True)


def _half(layer: Layer) -> Iterator[tuple[str, Tensor]]:
    """The understanding half of a layer, by names within the layer."""
    for name, tensor in layer.named_parameters():
        if rests_on_host(f'layers.{name}'):
            yield name, tensor.detach()
