"""The action spaces of all embodiments: which channels, relative to what, in which frames.

Layouts, conventions and frames are those of the data set classes of NVIDIA cosmos-framework; the layout of the YAM arms
is that of vLLM-Omni's Cosmos action contract. What neither states is `unpublished`, `as_recorded` or `opaque` here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from engine.actions import frames
from engine.actions.layouts import ActionSpace, FrameConvention, GripperConvention, Kind, Part, arm, body, lay_out
from engine.actions.poses import Poses

_OPEN = GripperConvention.OPEN_FRACTION
_RECORDED = GripperConvention.AS_RECORDED
_FRAMEWISE = FrameConvention.FRAMEWISE
_UNPUBLISHED = FrameConvention.UNPUBLISHED


def _ee_delta(
    parts: Iterable[Part], *fixed: Poses, gripper: GripperConvention = _OPEN, statistics: str | None = None
) -> ActionSpace:
    """Framewise end-effector deltas in the given fixed frames; without any, the frames are unpublished."""
    return ActionSpace('ee_delta', lay_out(parts), _FRAMEWISE, gripper, fixed or None, statistics=statistics)


def _camera_delta(translation_scale: float = 1.0) -> ActionSpace:
    parts, fixed = lay_out(body('camera')), (frames.NONE,)
    return ActionSpace('camera_delta', parts, _FRAMEWISE, frames=fixed, translation_scale=translation_scale)


def _hand_delta() -> ActionSpace:
    right = [*body('right_wrist'), ('right_tips', Kind.FINGERTIPS, 15)]
    left = [*body('left_wrist'), ('left_tips', Kind.FINGERTIPS, 15)]
    fixed = (frames.NONE, frames.HAND, frames.HAND)
    return ActionSpace('hand_delta', lay_out([*body('camera'), *right, *left]), _FRAMEWISE, frames=fixed)


def _control_delta(suffix: str, kind: Kind, size: int, statistics: str | None = None) -> ActionSpace:
    parts = [('translation', Kind.TRANSLATION, 3), ('rotation', kind, size), ('gripper', Kind.GRIPPER, 1)]
    name, relative_to = f'control_delta{suffix}', FrameConvention.CONTROLLER
    return ActionSpace(name, lay_out(parts), relative_to, _RECORDED, statistics=statistics)


def _native(parts: Iterable[Part], gripper: GripperConvention = GripperConvention.NONE) -> ActionSpace:
    return ActionSpace('native', lay_out(parts), _UNPUBLISHED, gripper)


def _agibot(statistics: str | None) -> ActionSpace:
    fixed = (frames.NONE, frames.AGIBOT_RIGHT, frames.AGIBOT_LEFT)
    return _ee_delta([*body('head'), *arm('right'), *arm('left')], *fixed, statistics=statistics)


DROID: Final = (
    ActionSpace(
        'joint_position',
        lay_out([('joints', Kind.JOINT, 7), ('gripper', Kind.GRIPPER, 1)]),
        FrameConvention.ABSOLUTE,
        _OPEN,
        state_row=True,
    ),
    ActionSpace('ee_delta', lay_out(arm()), _FRAMEWISE, _OPEN, (frames.DROID,), statistics='droid', state_row=True),
    ActionSpace('ee_delta_anchored', lay_out(arm()), FrameConvention.ANCHORED, _OPEN, (frames.NONE,), state_row=True),
)
"""joint_position is what the released policy speaks, ee_delta what forward dynamics and mid-training speak;
ee_delta_anchored exists in training code, relative to the chunk's first pose and without the fixed frame."""

ROBOMIND_FRANKA: Final = (_ee_delta(arm(), frames.ROBOMIND_FRANKA, statistics='robomind_franka'),)
ROBOMIND_FRANKA_DUAL: Final = (
    _ee_delta(
        [*arm('left'), *arm('right')],
        frames.ROBOMIND_FRANKA,
        frames.ROBOMIND_FRANKA,
        statistics='robomind_franka_dual',
    ),
)
ROBOMIND_UR: Final = (_ee_delta(arm(), frames.NONE, statistics='robomind_ur'),)
BRIDGE: Final = (_ee_delta(arm(), frames.BRIDGE, statistics='bridge'),)
FRACTAL: Final = (_ee_delta(arm(), frames.FRACTAL, gripper=_RECORDED, statistics='fractal'),)

UMI: Final = (_ee_delta(arm(), frames.UMI, gripper=GripperConvention.WIDTH, statistics='umi'),)
"""The published statistics have two arms; a single arm uses the first, the right one."""

YAM: Final = (_ee_delta([*arm('left'), *arm('right')]),)
AGIBOT: Final = (_agibot('agibot'),)
AGIBOT_GEAR: Final = (_agibot(None),)
"""The layout of AgiBot; which statistics it was trained with is not stated."""

AV: Final = (_camera_delta(translation_scale=1.35),)
CAMERA_POSE: Final = (_camera_delta(),)
HAND_POSE: Final = (_hand_delta(),)

LIBERO: Final = (
    _control_delta('', Kind.ROT6D, 6, statistics='libero'),
    _control_delta('_axis_angle', Kind.AXIS_ANGLE, 3),
    _control_delta('_matrix', Kind.MATRIX, 9),
)

ROBOTWIN: Final = (
    ActionSpace(
        'joint_position',
        lay_out(
            [
                ('left_joints', Kind.JOINT, 6),
                ('left_gripper', Kind.GRIPPER, 1),
                ('right_joints', Kind.JOINT, 6),
                ('right_gripper', Kind.GRIPPER, 1),
            ]
        ),
        FrameConvention.ABSOLUTE,
        _RECORDED,
    ),
)
BEHAVIOR1K: Final = (
    _native(
        [
            ('base', Kind.BASE, 3),
            ('trunk', Kind.JOINT, 4),
            ('arms', Kind.JOINT, 14),
            ('grippers', Kind.GRIPPER, 2),
        ],
        _RECORDED,
    ),
)
MANIPARENA: Final = (_native([*arm('first'), *arm('second')], _RECORDED),)
PUSHT: Final = (_native([('position', Kind.PLANAR, 2)]),)
DRAWANYTHING: Final = (_native([('action', Kind.OPAQUE, 3)]),)
EMBODIMENT_B: Final = (_native([('action', Kind.OPAQUE, 30)]),)
