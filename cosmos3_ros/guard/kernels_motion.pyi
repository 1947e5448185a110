from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Times = NDArray[np.int64]

def instants(start_ns: int, end_ns: int, step_ns: int) -> Times: ...
def times_between(start_ns: int, end_ns: int, origin_ns: int, step_ns: int, per_step: int) -> Times: ...

class FadedSpline:
    jump: Array
    largest_jump: float
    def __init__(
        self,
        rows: Array,
        due_ns: int,
        step_ns: int,
        start_ns: int,
        window_ns: int,
        positions: Array,
        velocities: Array,
        accelerations: Array,
    ) -> None: ...
    def derivatives(self, times_ns: Times) -> Array: ...
    def state(self, time_ns: int) -> Array: ...

def arranged(values: Array, order: NDArray[np.intp]) -> tuple[Array, bool]: ...
def position_bounds(lower: Array, upper: Array, margin: float, positions: Array) -> Array: ...
def none_above(values: Array, limit: Array, rounding: float) -> bool: ...
def rows_keep(
    rows: Array,
    step: float,
    lower: Array,
    upper: Array,
    velocity: Array,
    acceleration: Array,
    jerk: Array,
    rounding: float,
) -> bool: ...
def states_keep(
    values: Array,
    lower: Array,
    upper: Array,
    velocity: Array,
    acceleration: Array,
    jerk: Array,
    share: float,
    rounding: float,
) -> bool: ...
def row_peaks(rows: Array, step: float) -> Array: ...
def magnitudes(values: Array) -> Array: ...
def has_room_to_stop(
    positions: Array,
    velocities: Array,
    accelerations: Array,
    lower: Array,
    upper: Array,
    acceleration: Array,
    jerk: Array,
) -> bool: ...
def sample_stop(
    at_time: Callable[[float], tuple[list[float], list[float], list[float]]],
    times_ns: Times,
    start_ns: int,
    end_ns: int,
    joints: int,
) -> Array: ...
def stop_bounds(
    positions: Array,
    velocities: Array,
    accelerations: Array,
    beyond: Array,
    jerk: Array,
    lower: Array,
    upper: Array,
    velocity: Array,
) -> Array | None: ...
def command_keeps(
    times_ns: Times,
    positions: Array,
    velocities: Array,
    accelerations: Array,
    lower: Array,
    upper: Array,
    velocity: Array,
    acceleration: Array,
    jerk: Array,
    tolerance: float,
    rounding: float,
) -> bool: ...
def interpolated(times_ns: Times, positions: Array, velocities: Array, time_ns: int) -> tuple[Array, float]: ...
def farthest(one: Array, other: Array) -> tuple[int, float]: ...
def joined(
    piece_ns: Times,
    piece_positions: Array,
    piece_velocities: Array,
    piece_accelerations: Array,
    stop_ns: Times,
    stop_positions: Array,
    stop_velocities: Array,
    stop_accelerations: Array,
) -> tuple[Times, Array, Array, Array]: ...
def continues(
    positions: Array, velocities: Array, before: Array, jerk: Array, span: float, rounding: float
) -> bool: ...
