"""What all codecs share: rows as named segments, units and polarity of grippers, normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.actions.arrays import Floats, as_floats
from engine.actions.embodiments import Embodiment
from engine.actions.gripper import to_model_gripper, to_robot_gripper
from engine.actions.layouts import ActionSpace, GripperConvention, Kind
from engine.actions.normalization import Normalizer
from engine.errors import InvalidInput, Problem


@dataclass(frozen=True, eq=False)
class Codec:
    """Reads and writes the rows of one embodiment in one action space; build it with :func:`engine.actions.codec`.

    On its own it knows segments only, which is all that is public of some embodiments.

    Attributes:
        embodiment: Whose rows.
        space: Which of its action spaces.
        normalizer: From raw rows to the network's scale.
    """

    embodiment: Embodiment
    space: ActionSpace
    normalizer: Normalizer

    def __post_init__(self) -> None:
        if self.normalizer.dim not in (None, self.dim):
            problem = Problem('normalizer', 'has another width', str(self.normalizer.dim), f'{self.dim}, as the rows')
            raise InvalidInput(self._subject, [problem])

    @property
    def dim(self) -> int:
        """Width of a row."""
        return self.space.dim

    def split(self, rows: ArrayLike) -> dict[str, Floats]:
        """Return the segments [..., size] of rows [..., D] by name, in raw units; frame and polarity as in the row.

        Raises:
            InvalidInput: Another width, or values that are not finite (each bad row is named).
        """
        raw = self._raw(rows)
        return {segment.name: raw[..., segment.channels] for segment in self.space.segments}

    def join(self, segments: Mapping[str, ArrayLike]) -> Floats:
        """Return rows [..., D] of segments [..., size] in raw units: the inverse of :meth:`split`.

        Raises:
            InvalidInput: Segments missing, unknown, or of another shape; all that are missing or unknown are listed.
        """
        wanted = {segment.name: segment.size for segment in self.space.segments}
        problems = [
            Problem(name, 'is no segment', allowed=', '.join(wanted)) for name in segments if name not in wanted
        ]
        problems += [Problem(name, 'is missing') for name in wanted if name not in segments]
        if problems:
            raise InvalidInput(self._subject, problems)
        parts = [as_floats(segments[name], name, (size,)) for name, size in wanted.items()]
        for name, part in zip(wanted, parts, strict=True):
            self._same_shape(name, part.shape, (*parts[0].shape[:-1], wanted[name]))
        return self.normalizer.forward(np.concatenate(parts, axis=-1))

    @property
    def _subject(self) -> str:
        return f'rows of {self.embodiment.name} in {self.space.name}'

    def _raw(self, rows: ArrayLike) -> Floats:
        return self.normalizer.inverse(as_floats(rows, 'rows', (self.dim,)))

    def _channels(self, kind: Kind) -> NDArray[np.intp]:
        """Return the channels of all segments of one kind, in row order; [] if there is none."""
        return self._by_kind[kind]

    @cached_property
    def _by_kind(self) -> Mapping[Kind, NDArray[np.intp]]:
        """Channels of every kind; they are asked for several times in each tick."""
        none = np.empty(0, dtype=np.intp)
        parts = {
            kind: [np.arange(part.start, part.channels.stop) for part in self.space.of_kind(kind)] for kind in Kind
        }
        return {kind: np.concatenate(found) if found else none for kind, found in parts.items()}

    def _write_grippers(self, raw: Floats, gripper: ArrayLike | None) -> None:
        """Put grippers in robot convention into raw rows [..., D]: [...] for one gripper, [..., G] for several."""
        channels = self._channels(Kind.GRIPPER)
        if channels.size == 0 and gripper is None:
            return
        values = as_floats(() if gripper is None else gripper, 'gripper')
        lead = raw.shape[:-1]
        self._same_shape('gripper', values.shape, lead if channels.size == 1 else (*lead, channels.size))
        values = to_model_gripper(values) if self._converts_grippers else values
        raw[..., channels] = values.reshape(*lead, channels.size)

    def _read_grippers(self, raw: Floats) -> Floats:
        """Return grippers of raw rows [..., D] in robot convention: [...] for one gripper, else [..., G]."""
        values = raw[..., self._channels(Kind.GRIPPER)]
        values = values[..., 0] if values.shape[-1] == 1 else values
        return to_robot_gripper(values) if self._converts_grippers else values

    @property
    def _converts_grippers(self) -> bool:
        return self.space.gripper is GripperConvention.OPEN_FRACTION

    def _same_shape(self, name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if shape != expected:
            raise InvalidInput(self._subject, [Problem(name, 'has the wrong shape', str(shape), str(expected))])

    def _need_state_row(self) -> None:
        if not self.space.state_row:
            what = 'is not part of these rows: training put no measured state before the actions'
            raise InvalidInput(self._subject, [Problem('state row', what, remedy='set state_row to false')])
