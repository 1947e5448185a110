"""The arithmetic of the guard that runs for every chunk and every command, compiled: `kernels_*.pyx` beside this file.

What takes hundreds of small NumPy calls takes one call here. There is no second way to compute the same: the tests hold
each kernel to formulas of their own.
"""

from __future__ import annotations

try:
    from cosmos3_ros.guard.kernels_body import BodyKernel, ChainKernel, any_below, segment_distances
    from cosmos3_ros.guard.kernels_motion import (
        FadedSpline,
        arranged,
        command_keeps,
        continues,
        farthest,
        has_room_to_stop,
        instants,
        interpolated,
        joined,
        magnitudes,
        none_above,
        position_bounds,
        row_peaks,
        rows_keep,
        sample_stop,
        states_keep,
        stop_bounds,
        times_between,
    )
except ImportError as error:
    raise ImportError(
        f"the guard's kernels (cosmos3_ros/guard/kernels_*.pyx) are not compiled for this Python: {error}; "
        'in a checkout run `make setup`, in a workspace build the package anew'
    ) from error

__all__ = [
    'BodyKernel',
    'ChainKernel',
    'FadedSpline',
    'any_below',
    'arranged',
    'command_keeps',
    'continues',
    'farthest',
    'has_room_to_stop',
    'instants',
    'interpolated',
    'joined',
    'magnitudes',
    'none_above',
    'position_bounds',
    'row_peaks',
    'rows_keep',
    'sample_stop',
    'segment_distances',
    'states_keep',
    'stop_bounds',
    'times_between',
]
