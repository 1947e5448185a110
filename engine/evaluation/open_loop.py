"""Open loop: a policy, or imagination, is asked at recorded moments, and its answers are held to what happened.

Nothing is executed: whatever a policy answers, the next moment is the recorded one. So these figures say how well it
imitates, and not whether it would succeed. Whoever makes chunks or videos does so behind a small protocol, so that a
network, a server or a table of numbers can be measured alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.actions import Poses
from engine.contract import Contract
from engine.errors import InvalidInput, Problem
from engine.evaluation.open_loop_dynamics import DynamicsMeter, Imaginer, InverseMeter, Picture, Window
from engine.evaluation.open_loop_policy import PolicyMeter
from engine.evaluation.open_loop_recorded import Track, Truth
from engine.evaluation.recordings import Recording

Floats = NDArray[np.float64]
Line = dict[str, Any]
Report = Callable[[float], None]
"""Told the share that is done."""

IN_A_ROW = 4
"""Moments that are kept together when there are too many: each but the first of them shows a seam."""


@dataclass(frozen=True, eq=False)
class Source:
    """An episode.

    Attributes:
        track: Its arrays.
        open: Opens its pictures.
    """

    track: Track
    open: Callable[[], Recording]


@dataclass(frozen=True, eq=False)
class Moment:
    """What a policy is asked with.

    Attributes:
        name: Of the episode.
        index: Of the frame.
        views: uint8 [H, W, 3] RGB by view of the contract.
        instruction: What to do.
        state: Fields of an :class:`engine.policy.Observation` by name, as the contract wants them.
    """

    name: str
    index: int
    views: Mapping[str, Picture]
    instruction: str
    state: Mapping[str, Floats] = field(default_factory=dict)


class ChunkMaker(Protocol):
    """Whatever makes chunks."""

    def __call__(self, moment: Moment, seed: int) -> Floats:
        """Rows [K, D] in physical units, as in :attr:`engine.policy.PolicyChunk.actions`."""


def moments_of(frames: int, rows: int, stride: int) -> list[int]:
    """Frames of an episode after which a whole chunk was recorded."""
    return list(range(0, frames - rows, stride))


def thinned(moments: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """At most `most` of the moments (episode, frame), spread evenly, some in a row so that seams remain."""
    if len(moments) <= most:
        return list(moments)
    run = min(IN_A_ROW, most)
    starts = np.linspace(0, len(moments) - run, most // run).round().astype(int)
    kept = sorted({int(start) + k for start in starts for k in range(run)})
    return [moments[number] for number in kept]


def run_policy(
    sources: Sequence[Source],
    truths: Sequence[Truth],
    contract: Contract,
    maker: ChunkMaker,
    meter: PolicyMeter,
    seeds: Sequence[int],
    most: int,
    report: Report = lambda _share: None,
) -> Iterator[Line]:
    """Ask a policy at recorded moments, and count what it answers.

    Args:
        sources: Episodes.
        truths: The same in the rows of the contract.
        contract: What the policy wants to see.
        maker: The policy.
        meter: Counts.
        seeds: The policy is asked once with each.
        most: So many moments at most.
        report: Told the share that is done.

    Yields:
        What there is to say of each moment.

    Raises:
        InvalidInput: No episode is long enough, or a chunk has another shape.
    """
    everything = [
        (number, index)
        for number, source in enumerate(sources)
        for index in moments_of(len(source.track), meter.rows, meter.stride)
    ]
    kept = thinned(everything, most)
    if not kept:
        allowed = f'more than {meter.rows} frames'
        raise InvalidInput('open loop', [Problem('episodes', 'are too short for a chunk', '', allowed)])
    done = 0
    for number, source in enumerate(sources):
        indices = [index for episode, index in kept if episode == number]
        for moment in _moments(source, indices, contract):
            chunks = np.stack([_checked(maker(moment, seed), truths[number], meter) for seed in seeds])
            yield meter.add(source.track, truths[number], moment.index, chunks)
            done += 1
            report(done / len(kept))


def _checked(chunk: Floats, truth: Truth, meter: PolicyMeter) -> Floats:
    rows, wanted = np.asarray(chunk, np.float64), (meter.rows, truth.state.shape[1])
    if rows.shape != wanted or not np.isfinite(rows).all():
        found = str(list(rows.shape)) if rows.shape != wanted else 'numbers that are not finite'
        raise InvalidInput('chunk', [Problem('rows', 'are not those of the contract', found, str(list(wanted)))])
    return rows


def _moments(source: Source, indices: Sequence[int], contract: Contract) -> Iterator[Moment]:
    """In the order of time, since videos are decoded in one pass."""
    if not indices:
        return
    with source.open() as recording:
        for index in indices:
            frame = recording.frame(index)
            views = {view: frame.views[view] for view in contract.views.streams}
            yield Moment(
                source.track.name, index, views, recording.instruction, state_at(source.track, index, contract)
            )


def state_at(track: Track, index: int, contract: Contract) -> dict[str, Floats]:
    """What the robot knows of itself at a frame, in the fields of an observation.

    Before the first frame stands the first one again.
    """
    rows = max(1, contract.embodiment.clean_rows)
    at = np.maximum(np.arange(index - rows + 1, index + 1), 0)
    found: dict[str, Floats] = {}
    if track.joints is not None:
        found['joint_positions'] = track.joints[at]
    if track.gripper is not None:
        found['gripper_position'] = track.gripper[at]
    if track.poses is not None:
        found['end_effector_position'] = track.poses.position[at]
        found['end_effector_quaternion'] = track.poses.quaternion[at]
    return found


# Dynamics


def run_dynamics(
    sources: Sequence[Source],
    paths: Sequence[Poses],
    contract: Contract,
    imaginer: Imaginer,
    meters: tuple[DynamicsMeter | None, InverseMeter | None],
    most: int,
    report: Report = lambda _share: None,
) -> Iterator[Line]:
    """Imagine recorded windows, find the motion in them, and count both.

    Args:
        sources: Episodes.
        paths: Poses of the end effector in each, one for every frame.
        contract: Whose views are composed.
        imaginer: Forward and inverse dynamics.
        meters: Of the one and of the other; None for what is left out.
        most: So many windows at most, spread evenly; they do not overlap.
        report: Told the share that is done.

    Yields:
        What there is to say of each window, first of the one and then of the other.

    Raises:
        InvalidInput: No episode is long enough.
    """
    rows = imaginer.rows
    everything = [
        (number, index)
        for number, source in enumerate(sources)
        for index in range(0, len(source.track) - rows, rows + 1)
    ]
    if not everything:
        allowed = f'more than {rows} frames'
        raise InvalidInput('open loop', [Problem('episodes', 'are too short for a window', '', allowed)])
    kept = [everything[int(at)] for at in np.unique(np.linspace(0, len(everything) - 1, most).round())]
    motions = [_motion(sources[number], paths[number], index, imaginer) for number, index in kept]
    at = 0
    for number, source in enumerate(sources):
        indices = [index for episode, index in kept if episode == number]
        for window in _windows(source, paths[number], indices, contract, imaginer):
            other = motions[(at + len(kept) // 2) % len(kept)] if len(kept) > 1 else None
            dynamics, backwards = meters
            if dynamics is not None:
                yield dynamics.add(window, other)
            if backwards is not None:
                yield backwards.add(window)
            at += 1
            report(at / len(kept))


def _motion(source: Source, path: Poses, index: int, imaginer: Imaginer) -> NDArray[np.float32]:
    end = index + imaginer.rows
    return imaginer.codec.encode_trajectory(path[index : end + 1], _closed(source.track)[index:end]).astype(np.float32)


def _closed(track: Track) -> Floats:
    """What rows ask of the gripper, [N - 1]; open where the recording knows of none."""
    return np.zeros(len(track) - 1) if track.next_gripper is None else track.next_gripper


def _windows(
    source: Source, path: Poses, indices: Sequence[int], contract: Contract, imaginer: Imaginer
) -> Iterator[Window]:
    if not indices:
        return
    with source.open() as recording:
        for index in indices:
            end = index + imaginer.rows
            seen = [recording.frame(at).views for at in range(index, end + 1)]
            chosen = [{view: views[view] for view in contract.views.streams} for views in seen]
            yield Window(
                source.track.name,
                index,
                chosen[0],
                np.stack([imaginer.composite(views) for views in chosen]),
                path[index : end + 1],
                _closed(source.track)[index:end],
                recording.instruction,
            )
