"""What a reasoner is shown: pictures of several views as of one moment, sampled as a policy's inputs are.

Unlike :mod:`cosmos3_ros.inputs` this needs no PyTorch: whoever asks an endpoint loads none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.streams import StreamBuffer, Timeline, reference_stamp, sample_all
from engine.contract import Contract
from engine.errors import InvalidInput, ObservationError, Problem
from engine.reasoner_talk import Part, Picture

DEPTH = 8
"""Pictures of each view that are kept, as for a policy."""


@dataclass(frozen=True)
class Scene:
    """Pictures of one moment.

    Attributes:
        stamp_ns: The moment.
        pictures: By view, uint8 [H, W, 3].
    """

    stamp_ns: int
    pictures: Mapping[str, NDArray[np.uint8]]

    def media(self) -> tuple[Part, ...]:
        """As parts of a question; several pictures with their names before them."""
        if len(self.pictures) == 1:
            return tuple(Picture(rgb, name) for name, rgb in self.pictures.items())
        return tuple(part for name, rgb in self.pictures.items() for part in (f'View {name}:', Picture(rgb, name)))


class Views:
    """The newest pictures of a contract's views. Thread-safe."""

    def __init__(self, contract: Contract, timeline: Timeline = Timeline.HEADER) -> None:
        """Make empty buffers."""
        self._buffers: dict[str, StreamBuffer[NDArray[np.uint8]]] = {
            name: StreamBuffer(name, int(terms.max_age_s * 1e9), DEPTH, timeline=timeline)
            for name, terms in contract.views.streams.items()
        }
        self._rejected: dict[str, str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of all views."""
        return tuple(self._buffers)

    @property
    def rejected(self) -> Mapping[str, str]:
        """Views whose latest picture could not be used, and why."""
        return dict(self._rejected)

    def push(self, name: str, stamp_ns: int, receive_ns: int, picture: NDArray[np.uint8]) -> None:
        """A picture has come; see :meth:`StreamBuffer.push` for the times."""
        self._rejected.pop(name, None)
        self._buffers[name].push(stamp_ns, receive_ns, picture)

    def reject(self, name: str, error: ObservationError) -> bool:
        """Note that the latest picture of a view counts as not received; return whether the reason is a new one."""
        why = '; '.join(str(problem) for problem in error.problems)
        before, self._rejected[name] = self._rejected.get(name), why
        return why != before

    def clear(self) -> None:
        """Forget everything, as on activation and after a jump of the clock."""
        self._rejected.clear()
        for buffer in self._buffers.values():
            buffer.clear()

    def check(self, names: Sequence[str]) -> None:
        """Refuse views that the contract does not have.

        Raises:
            InvalidInput: There are such; lists all of them.
        """
        known = ', '.join(self._buffers)
        problems = [Problem('views', 'has no such view', name, known) for name in names if name not in self._buffers]
        if problems:
            raise InvalidInput('views', problems)

    def seen(self, names: Sequence[str], now_ns: int) -> Scene | tuple[str, ...]:
        """Pictures of these views as of one moment, or what is missing: names with the reason and the age."""
        buffers = [self._buffers[name] for name in names]
        snapshot = sample_all(buffers, reference_stamp(buffers, now_ns), now_ns)
        if not snapshot.complete:
            return tuple(missing.explained(self._rejected.get(missing.stream, '')) for missing in snapshot.missing)
        pictures = {name: snapshot.samples[name].value for name in names}
        return Scene(snapshot.reference_ns, pictures)

    def missing(self, names: Sequence[str], now_ns: int) -> tuple[str, ...]:
        """What keeps these views from being seen; empty if nothing does."""
        found = self.seen(names, now_ns)
        return () if isinstance(found, Scene) else found
