"""A recorded episode as proposals: what was done next stands for what somebody proposes to do."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from cosmos3_ros.judge import Proposal
from engine.actions import Poses, quaternion_to_matrix
from engine.contract import Contract
from engine.dynamics import DynamicsTerms
from engine.errors import InvalidInput, Problem
from engine.evaluation.recordings import Frame, Recording

_SAME_RATE = 0.01


def check_recording(recording: Recording, contract: Contract, terms: DynamicsTerms) -> None:
    """Do nothing if the episode can be judged.

    Raises:
        InvalidInput: It lacks views or poses, or has another rate or too few frames; lists every fault.
    """
    problems = []
    missing = [view for view in contract.views.streams if view not in recording.views]
    if missing:
        problems.append(Problem('views', 'are missing', ', '.join(missing), '', 'name stand-ins in video_map'))
    if abs(recording.fps / terms.fps - 1) > _SAME_RATE:
        problems.append(Problem('fps', 'is another than that of the contract', f'{recording.fps:g}', f'{terms.fps:g}'))
    if len(recording) < 2:
        problems.append(Problem('frames', 'are too few', str(len(recording)), '2 or more'))
    elif recording.frame(0).end_effector is None:
        problems.append(Problem('end effector', 'has no poses that can be believed'))
    if problems:
        raise InvalidInput(f'recording {recording.path}', problems)


def recorded_proposals(
    recording: Recording, contract: Contract, terms: DynamicsTerms, stride: int = 0, rows: int = 0
) -> Iterator[Proposal]:
    """Chunks of an episode, each with what was seen at its beginning.

    Args:
        recording: Checked by :func:`check_recording`.
        contract: Whose views are looked at.
        terms: Of the imagination.
        stride: Rows from one chunk to the next; 0: their length.
        rows: Their length; 0: that of the contract's chunks. The last one may be shorter.
    """
    rows = rows or contract.timing.chunk_rows
    starts = range(0, len(recording) - 1, stride or rows)
    kept: dict[int, Frame] = {}
    for start in starts:
        last = min(start + rows, len(recording) - 1)
        kept = {index: kept.get(index) or recording.frame(index) for index in range(start, last + 1)}
        yield _proposal(list(kept.values()), recording, contract, terms)


def _proposal(frames: list[Frame], recording: Recording, contract: Contract, terms: DynamicsTerms) -> Proposal:
    poses = [frame.end_effector for frame in frames if frame.end_effector is not None]
    path = Poses(
        np.stack([position for position, _ in poses]),
        quaternion_to_matrix(np.stack([quaternion for _, quaternion in poses])),
    )
    closed = np.array([frame.gripper or 0.0 for _, frame in pairwise(frames)])
    first = frames[0]
    return Proposal(
        stamp_ns=round(first.timestamp_s * 1e9),
        views={view: first.views[view] for view in contract.views.streams},
        joints=np.zeros(0),
        positions=path.position[1:],
        grippers=closed,
        instruction=recording.instruction,
        motion=terms.codec().encode_trajectory(path, closed).astype(np.float32),
    )
