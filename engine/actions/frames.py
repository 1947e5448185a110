"""Fixed frames: what to multiply a robot's own pose by, from the right, to get the pose the model was trained on.

The training data turns end effectors so that z points along the approach and x, y follow the OpenCV camera. Each
constant F below gives `T_model = T_robot F`. Figures are those of the data set classes of NVIDIA cosmos-framework.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from engine.actions.poses import Poses, compose
from engine.actions.rotations import project_to_so3


def _turn(*rows: tuple[float, float, float]) -> Poses:
    return Poses(np.zeros(3), np.array(rows))


def _shift(x: float, y: float, z: float) -> Poses:
    return Poses(np.array([x, y, z]), np.eye(3))


NONE: Final = Poses.identity()
"""The robot's own frame: cameras in OpenCV axes, the flange of the RoboMIND UR5e, the head of AgiBot."""

QUARTER_TURN: Final = _turn((0, -1, 0), (1, 0, 0), (0, 0, 1))
"""+90 degrees about local z."""

QUARTER_TURN_BACK: Final = _turn((0, 1, 0), (-1, 0, 0), (0, 0, 1))
"""-90 degrees about local z."""

DROID: Final = QUARTER_TURN
"""From `panda_link8`, the frame of DROID's cartesian positions."""

ROBOMIND_FRANKA: Final = QUARTER_TURN
"""From the end effector of RoboMIND's Frankas, each arm alike."""

AGIBOT_RIGHT: Final = QUARTER_TURN
"""From `gripper_r_base_link` of the AgiBot G1."""

AGIBOT_LEFT: Final = QUARTER_TURN_BACK
"""From `gripper_l_base_link` of the AgiBot G1."""

HAND: Final = QUARTER_TURN_BACK
"""From the annotated wrist: x becomes thumb to pinky, y the outward palm normal, z wrist to fingertips."""

BRIDGE: Final = compose(
    # The controller records the orientation relative to a gripper that points down: undo it, step back from the
    # fingertip to the gripper's base, then turn to OpenCV axes.
    compose(_turn((0, 0, 1), (0, 1, 0), (-1, 0, 0)), _shift(-0.093575, 0, 0)),
    _turn((0, 0, 1), (-1, 0, 0), (0, -1, 0)),
)
"""From the state that the WidowX controller of BridgeData V2 records."""

_FRACTAL_FLANGE = Poses(
    np.array([-0.0050618476, -0.0016717725, -0.1635144743]),
    # Ten printed digits; the projection makes them a rotation to the last bit.
    project_to_so3(
        [
            [0.9999897671, -0.0008686425, 0.0044397163],
            [0.0008745501, 0.9999987346, -0.0013288658],
            [-0.0044385564, 0.0013327349, 0.9999892615],
        ]
    ),
)
FRACTAL: Final = compose(_FRACTAL_FLANGE, QUARTER_TURN_BACK)
"""From `link_gripper_tcp` of the Google robot: back to `link_gripper`, then to OpenCV axes."""

UMI: Final = _shift(0, 0.086, 0.09)
"""From the wrist camera of most UMI grippers to the fingers."""

FAST_UMI: Final = _shift(0, 0.086, 0.056)
"""From the wrist camera of FastUMI and touch-in-the-wild grippers, which sits further forward."""
