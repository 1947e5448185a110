"""How far a chunk can be believed: small scores on what was imagined, seen and planned, and nothing that decides.

Every score is a number for each moment, 0 where all is well, larger the worse; what is too large says
:mod:`engine.calibration`. Each is evidence of something else:

=====================  =============================================================================================
:func:`disagreement`   the policy's own video and forward dynamics of its actions are two answers to one question
:func:`cycle_error`    inverse dynamics of the imagined video should find the actions that it was imagined for
:func:`seed_variance`  where other noise gives another future, the model does not know (UNISafe, arXiv 2505.00779)
:func:`mismatch`       what the cameras show now against what was imagined for now: surprise and standstill
:func:`inconsistency`  a chunk that contradicts the one before over the same time (Sentinel, arXiv 2410.04640)
=====================  =============================================================================================

Videos are pictures, uint8 [F, H, W, 3], or latents, float [F, H, W, C]: these need not be decoded, and say less about
what people would see. Scores of the one and of the other are not comparable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.actions import PoseCodec, Poses
from engine.actions.rotations import rotation_distance
from engine.errors import InvalidInput, Problem

Floats = NDArray[np.float64]
VERSION = 2
"""Of what the scores mean: bands of another version say nothing about them."""
STILL = 1.0 / 255.0
"""Change of a picture below which it counts as no change, so that a scene at rest does not divide by nothing."""


NOTHING = 16.0 / 255.0
"""Change of a picture that counts half to :func:`mismatch`: an autoencoder flickers by as much over a still scene."""


def disagreement(imagined: ArrayLike, other: ArrayLike) -> Floats:
    """How far two videos from the same first frame drift apart, as a share of how far the first one moves.

    Args:
        imagined: Forward dynamics of the actions.
        other: The policy's own video of the same actions, as many frames of that kind and size or more.

    Returns:
        [F - 1]: root mean square difference of each frame after the first, over that to the first frame.

    Raises:
        InvalidInput: The videos do not fit.
    """
    first, second = _videos(imagined, other)
    apart = _rms(second[1 : len(first)] - first[1:])
    moved = _rms(first[1:] - first[0])
    return apart / np.maximum(moved, STILL)


@dataclass(frozen=True)
class CycleError:
    """What inverse dynamics found against what was asked for, for each row.

    Attributes:
        translation: [N] m, the largest of all bodies.
        rotation: [N] rad, likewise.
        gripper: [N] of the closed fraction.
    """

    translation: Floats
    rotation: Floats
    gripper: Floats


def cycle_error(found: ArrayLike, given: ArrayLike, codec: PoseCodec) -> CycleError:
    """Compare rows of motion step by step, in physical units.

    Args:
        found: [N, D] in the model's space, of inverse dynamics.
        given: [N, D], that the video was imagined for.
        codec: Of both.

    Raises:
        InvalidInput: The rows do not fit, or hold no rotations.
    """
    steps = [_steps(rows, codec) for rows in (found, given)]
    if len({len(poses.position) for poses, _ in steps}) != 1:
        counts = ' and '.join(str(len(poses.position)) for poses, _ in steps)
        raise InvalidInput('cycle', [Problem('rows', 'are not as many', counts)])
    (mine, my_grip), (theirs, their_grip) = steps
    apart = np.linalg.norm(mine.position - theirs.position, axis=-1)
    turned = rotation_distance(mine.rotation, theirs.rotation)
    grip = np.abs(my_grip - their_grip)
    return CycleError(*(x.reshape(len(x), -1).max(1) for x in (apart, np.asarray(turned), grip)))


def _steps(rows: ArrayLike, codec: PoseCodec) -> tuple[Poses, Floats]:
    """The motion of each row by itself, whatever its neighbours."""
    lead = () if codec.bodies == 1 else (codec.bodies,)
    decoded = [codec.decode(row[None], Poses.identity(lead)) for row in np.asarray(rows, np.float64)]
    poses = Poses(*(np.concatenate([getattr(one.poses, name) for one in decoded]) for name in ('position', 'rotation')))
    return poses, np.concatenate([one.gripper for one in decoded])


def seed_variance(futures: Sequence[ArrayLike]) -> Floats:
    """How far futures of the same actions under different noise lie apart, as a share of how far they move.

    Args:
        futures: Two videos or more, of one kind and size.

    Returns:
        [F - 1]: standard deviation over the futures, root mean square over the picture, over the mean motion.

    Raises:
        InvalidInput: There is but one, or they do not fit each other.
    """
    if len(futures) < 2:
        raise InvalidInput('seed variance', [Problem('futures', 'are too few', str(len(futures)), '2 or more')])
    videos = np.stack([_videos(futures[0], future)[1] for future in futures])
    spread = _rms(videos.std(axis=0, ddof=1)[1:])
    moved = np.mean([_rms(video[1:] - video[0]) for video in videos], axis=0)
    return spread / np.maximum(moved, STILL)


@dataclass(frozen=True)
class Mismatch:
    """How what the cameras show came to differ from what was imagined for the same moment.

    Changes since the first picture are compared and not pictures, since what an autoencoder loses of a picture it loses
    of the first one, too. With e the change that was imagined, s the one that is seen, and N for :data:`NOTHING`
    (root mean squares, in shares of the full scale):

    Attributes:
        surprise: What changed did so otherwise than was imagined: (1 - cos(e, s)) * s^2 / (s^2 + N^2), 0 to 2.
        standstill: Less has changed than was imagined, as with frozen pictures or an arm that does not do what it was
            told: (1 - s / e, at least 0) * e^2 / (e^2 + N^2), 0 to 1.
    """

    surprise: float
    standstill: float


def mismatch(imagined: ArrayLike, seen: ArrayLike, begun: ArrayLike, before: ArrayLike) -> Mismatch:
    """Hold what the cameras show now to what was imagined for now.

    Args:
        imagined: For now, uint8 [H, W, 3].
        seen: Of the same moment and size.
        begun: The first picture as imagination has it, encoded and decoded.
        before: The same as it was seen.

    Raises:
        InvalidInput: The pictures do not fit.
    """
    mine, theirs = _videos(np.stack([begun, imagined]), np.stack([before, seen]))
    expected, found = mine[1] - mine[0], theirs[1] - theirs[0]
    asked, came, both = (float(np.mean(one)) for one in (expected**2, found**2, expected * found))
    apart = 1.0 - both / math.sqrt(asked * came) if min(asked, came) > 0 else 1.0
    less = max(0.0, 1.0 - math.sqrt(came / asked)) if asked > 0 else 0.0
    return Mismatch(apart * came / (came + NOTHING**2), less * asked / (asked + NOTHING**2))


def inconsistency(earlier: ArrayLike, later: ArrayLike, shift: int, scale: ArrayLike = 1.0) -> float:
    """How far a chunk is from the one before it over the time that both speak of.

    Args:
        earlier: Actions [N, D] in physical units.
        later: Actions [M, D], observed `shift` rows later.
        shift: Rows between the two observations, 1 or more.
        scale: By which each column is divided: what counts as a large difference in it.

    Returns:
        Root mean square over shared rows and columns; 0 where the chunks share none.

    Raises:
        InvalidInput: The chunks are of different widths, or `shift` is out of range.
    """
    one, other = np.asarray(earlier, np.float64), np.asarray(later, np.float64)
    problems = []
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        problems.append(Problem('chunks', 'do not fit each other', f'{list(one.shape)} and {list(other.shape)}'))
    if shift < 1:
        problems.append(Problem('shift', 'is out of range', str(shift), '1 or more'))
    if problems:
        raise InvalidInput('consistency', problems)
    shared = min(len(one) - shift, len(other))
    if shared <= 0:
        return 0.0
    apart = (one[shift : shift + shared] - other[:shared]) / np.asarray(scale, np.float64)
    return float(np.sqrt(np.mean(apart**2)))


def _videos(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    """Both as [F, H, W, C], pictures in 0..1; the second may be longer and is cut."""
    one, other = np.asarray(first), np.asarray(second)
    sound = one.ndim == 4 and one.shape[1:] == other.shape[1:] and other.ndim == 4 and 2 <= len(one) <= len(other)
    pictures = {one.dtype, other.dtype} == {np.dtype(np.uint8)}
    latents = one.dtype.kind == other.dtype.kind == 'f' and np.isfinite(one).all() and np.isfinite(other).all()
    if not sound or not (pictures or latents):
        found = f'{one.dtype} {list(one.shape)} and {other.dtype} {list(other.shape)}'
        allowed = 'uint8 [F, H, W, 3] or finite float [F, H, W, C], of one size, two frames or more'
        raise InvalidInput('videos', [Problem('frames', 'do not fit each other', found, allowed)])
    scale = 255.0 if pictures else 1.0
    return one / scale, other[: len(one)] / scale


def _rms(difference: Floats) -> Floats:
    """Root mean square of each picture."""
    found: Floats = np.sqrt(np.mean(difference**2, axis=(-3, -2, -1)))
    return found
