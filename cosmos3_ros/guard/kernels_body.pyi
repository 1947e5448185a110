from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Times = NDArray[np.int64]
Indices = NDArray[np.intp]

def segment_distances(first: Indices, second: Indices, squares: Array, starts: Array, ways: Array) -> Array: ...
def any_below(margins: Array, floor: Array) -> bool: ...

class ChainKernel:
    joints: int
    points: int
    width: int
    def __init__(self, columns: Indices, steps: ArrayLike, links: ArrayLike, local: ArrayLike, width: int) -> None: ...
    def place(self, positions: Array) -> tuple[Array, Array, Array]: ...
    def speeds(self, positions: Array, velocities: Array, point: int) -> tuple[Array, Array]: ...

class BodyKernel:
    lines: int
    distances: int
    def __init__(
        self,
        chain: ChainKernel,
        tool: int,
        ends: ArrayLike,
        squares: ArrayLike,
        close: ArrayLike,
        box: ArrayLike | None,
        limits: Sequence[float] | Array,
        translation: bool,
        influence: Array,
        levers: Array,
        couplings: Array,
    ) -> None: ...
    def margins(self, positions: Array, velocities: Array) -> Array: ...
    def look(
        self,
        times_ns: Times,
        positions: Array,
        velocities: Array,
        accelerations: Array,
        acceleration: Array,
        jerk: Array,
        tolerance: Array,
        inside: float,
        rounding: float,
        stopping: bool,
        speeds: bool,
    ) -> tuple[Array, Array, Array, bool]: ...
    def keeps(self, positions: Array, margins: Array, lowest: Array, highest: Array, speed: Array) -> bool: ...
    def doubtful(
        self,
        begin_ns: Times,
        end_ns: Times,
        begin_velocities: Array,
        end_velocities: Array,
        begin_accelerations: Array,
        end_accelerations: Array,
        begin_margins: Array,
        end_margins: Array,
        sure: Array,
        acceleration: Array,
        jerk: Array,
    ) -> NDArray[np.bool_] | None: ...
