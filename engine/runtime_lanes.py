"""Where the work of each priority runs: on a GPU in a stream of its own, on a processor in the thread that asks.

A GPU works on what was launched earlier while the thread is already elsewhere. So a request that gives way first lets
the GPU finish, and the turn passes between streams with nothing under way: no tensor is ever used by two of them at
once. That it need not wait long is what :meth:`Lane.pace` is for. The one exception is decoding a video, which shares
nothing with the steps of others: it may still run when the next request begins, and the GPU then prefers the
stream of the higher priority.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from engine.turns import Priority

if TYPE_CHECKING:
    from torch import Tensor

AHEAD = 4
"""By how many points at which a request may give way its thread may be ahead of the GPU: layers, at best."""


class Lane:
    """The lane on a processor, where work is done when it is asked for."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Work in this lane for the block."""
        yield

    def pace(self) -> None:
        """Wait until the device is at most `AHEAD` calls of this behind the thread."""

    def finish(self) -> None:
        """Wait until everything launched in this lane is done."""

    def borrow(self, tensor: Tensor) -> None:
        """Keep the memory of a tensor that was made elsewhere until this lane has done with it."""


class GpuLane(Lane):
    """A stream with the GPU's preference for its priority."""

    def __init__(self, device: torch.device, priority: Priority) -> None:
        """Make the stream; CUDA calls the most urgent by the lowest number, and 0 the least urgent."""
        self.device = device
        self.stream = torch.cuda.Stream(device, priority=-int(priority))
        # Nobody is more urgent than the highest priority: it may launch as far ahead as it likes.
        self._paced = priority is not max(Priority)
        self._launched: deque[torch.cuda.Event] = deque()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Launch in this stream, after what the caller has launched in its own; all of it is done at the end."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            try:
                yield
            finally:
                self.finish()

    def pace(self) -> None:
        """See :meth:`Lane.pace`."""
        if self._paced:
            event = torch.cuda.Event(blocking=True)
            event.record(self.stream)
            self._launched.append(event)
            if len(self._launched) > AHEAD:
                self._launched.popleft().synchronize()

    def finish(self) -> None:
        """See :meth:`Lane.finish`."""
        self.stream.synchronize()

    def borrow(self, tensor: Tensor) -> None:
        """See :meth:`Lane.borrow`."""
        if tensor.is_cuda:
            tensor.record_stream(self.stream)


def hand_out(tensor: Tensor | None) -> None:
    """Keep the memory of a tensor that was made in a lane until the caller's stream has done with it."""
    if tensor is not None and tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))


def make_lanes(device: torch.device) -> dict[Priority, Lane]:
    """A lane for every priority."""
    if device.type != 'cuda':
        return dict.fromkeys(Priority, Lane())
    return {priority: GpuLane(device, priority) for priority in Priority}
