"""What was imagined for a moment beside what was then shown, for the first episode of each kind."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.judge import Judgement
from cosmos3_ros.safety_expert import Rows, Seen
from cosmos3_ros.safety_model import Judging, Network
from engine.dynamics import Rollout
from engine.evaluation.video import side_by_side

Picture = NDArray[np.uint8]
_MOMENTS = 3
_QUALITY = 80


class Gallery:
    """Judges as :class:`Judging` does, and keeps pictures of the moments after a hazard began."""

    def __init__(self, network: Network, judging: Judging) -> None:
        self._network, self._judging = network, judging
        self._kept: list[tuple[Seen, Rollout | None]] = []

    def __call__(
        self, index: int, seen: Seen, proposed: Rows, rows: Rows, instruction: str, follows: bool = True
    ) -> Judgement:
        """As :meth:`Judging.__call__`."""
        found = self._judging(index, seen, proposed, rows, instruction, follows)
        self._kept.append((seen, found.rollout))
        return found

    def save(self, path: Path, begin: int) -> None:
        """Write the chunks from `begin` on as a JPEG: what was shown next beside what was imagined for then."""
        from PIL import Image

        first = max(0, min(begin, len(self._kept) - 1 - _MOMENTS))
        moments = list(pairwise(self._kept))[first : first + _MOMENTS]
        rows = [
            side_by_side(*pair, '', ('shown', 'imagined one chunk before'))
            for (before, rollout), (after, _) in moments
            if rollout is not None and (pair := self._pair(before, rollout, after))
        ]
        if rows:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.concatenate(rows)).save(path, quality=_QUALITY)

    def _pair(self, before: Seen, rollout: Rollout, after: Seen) -> tuple[Picture, Picture]:
        dynamics = self._network.judge.dynamics
        shift = round((after.stamp_ns - before.stamp_ns) * 1e-9 * dynamics.terms.fps)
        imagined = rollout.begin(min(shift, dynamics.terms.chunk) + 1)[-1]
        return dynamics.seen_as(rollout, after.views), imagined
