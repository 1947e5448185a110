"""What chunks of a run would cause, imagined afterwards: for policies that make actions alone, without their video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.motion_bridge import MotionBridge, expected_motion
from cosmos3_ros.run_record import RunRecord, SeenChunk
from engine.contract import Contract

if TYPE_CHECKING:
    from engine.dynamics import Dynamics

STEPS = 6
"""Denoising steps of a window, as on the rung `brief`."""
LAG_S = 0.05
"""Time constant with which the simulated arm follows."""


def imagine_chunks(
    record: RunRecord,
    chunks: Sequence[SeenChunk],
    checkpoint: str,
    contract: Contract,
    done: Callable[[SeenChunk], None] = lambda _chunk: None,
) -> dict[tuple[int, int], NDArray[np.uint8]]:
    """The video of each chunk, from what was seen when it was made: uint8 [rows + 1, H, W, 3] by epoch and sequence.

    Chunks without joints, and those of which neither picture nor joints are known, are left out.

    Args:
        record: The run.
        chunks: Which of its chunks.
        checkpoint: Whose forward dynamics.
        contract: Of the run.
        done: Told of every chunk when it is done.

    Raises:
        CosmosError: The checkpoint cannot be loaded, or has no such dynamics.
    """
    import engine

    dynamics = engine.load(checkpoint).dynamics(contract).with_terms(steps=STEPS)
    bridge = MotionBridge(contract, dynamics.terms)
    videos = {}
    for chunk in chunks:
        video = _video(record, chunk, dynamics, bridge)
        if video is not None:
            videos[chunk.epoch, chunk.sequence] = video
        done(chunk)
    return videos


def _video(record: RunRecord, chunk: SeenChunk, dynamics: Dynamics, bridge: MotionBridge) -> NDArray[np.uint8] | None:
    if chunk.positions is None or not record.frames or not record.measured:
        return None
    period = 1.0 / dynamics.terms.fps
    shown, picture = min(record.frames, key=lambda frame: abs(frame[0] - chunk.stamp))
    measured, joints = min(record.measured, key=lambda one: abs(one[0] - chunk.stamp))
    if max(abs(shown - chunk.stamp), abs(measured - chunk.stamp)) > period:
        return None
    path = expected_motion(joints, chunk.positions, period, LAG_S)
    closed = np.zeros(len(path) - 1) if chunk.grippers is None else chunk.grippers[:, 0]
    return dynamics.imagine(picture, bridge.rows(path, closed), chunk.instruction).frames
