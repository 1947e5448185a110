"""From what a robot measures and obeys to rows of the network, and back.

A codec is the only thing that writes or reads rows. On its robot side stand SI units, radians, poses of the robot's own
frame and grippers with 0 open, 1 closed; on its row side the model's frame, rot6d and grippers with 0 closed, 1 open.
"""

from __future__ import annotations

from engine.actions.embodiments import Embodiment, embodiment
from engine.actions.joint_codec import JointCodec
from engine.actions.layouts import ActionSpace, FrameConvention, Kind
from engine.actions.normalization import Normalizer, normalizer
from engine.actions.pose_codec import PoseCodec
from engine.actions.row_codec import Codec
from engine.actions.statistics import Method, Statistics, published_statistics
from engine.errors import InvalidInput, Problem

_MOVING = (FrameConvention.FRAMEWISE, FrameConvention.ANCHORED)
_OF_A_BODY = (Kind.TRANSLATION, Kind.ROT6D, Kind.GRIPPER)


def codec(of: Embodiment | str, action_space: str, normalization: Normalizer | Method | str) -> Codec:
    """Build the codec of an embodiment in one of its action spaces.

    Args:
        of: Embodiment, or its domain name.
        action_space: Name of the space; there is no default, for two spaces can have rows of the same width.
        normalization: A method, which reads the published statistics, or a normalizer built from other statistics. The
            released DROID policy takes `none`.

    Returns:
        A :class:`JointCodec` for absolute joints; a :class:`PoseCodec` for pose deltas whose fixed frames are public;
        else a plain :class:`Codec`, which splits and joins segments.

    Raises:
        InvalidInput: Unknown domain, action space or method, statistics that are not public, or of another width.
    """
    of = embodiment(of) if isinstance(of, str) else of
    space = of.space(action_space)
    if not isinstance(normalization, Normalizer):
        normalization = _published(of, space, Method.parse(normalization))
    return _kind_of_codec(space)(of, space, normalization)


def _kind_of_codec(space: ActionSpace) -> type[Codec]:
    if space.convention is FrameConvention.ABSOLUTE:
        return JointCodec
    whole = all(segment.kind in _OF_A_BODY for segment in space.segments)
    return PoseCodec if space.convention in _MOVING and space.frames and whole else Codec


def _published(of: Embodiment, space: ActionSpace, method: Method) -> Normalizer:
    if method is Method.NONE:
        return normalizer(method)
    if space.statistics is None:
        where = f'{of.name}, {space.name}'
        remedy = 'build a normalizer from a statistics file of your own and pass that'
        raise InvalidInput('normalization', [Problem(where, 'has no published statistics', method, 'none', remedy)])
    return normalizer(method, _narrow(published_statistics(space.statistics, method), space))


def _narrow(statistics: Statistics, space: ActionSpace) -> Statistics:
    # Published for two arms, UMI's statistics serve a single one with their first half, the right arm.
    return statistics.first(space.dim) if statistics.dim == 2 * space.dim else statistics
