"""Kinematics of the simulated Panda for those who plan its motion: where the tool is, and which joints bring it there.

Made of the same figures as the scene (:data:`engine.evaluation.franka_scene.ARM`). The inverse is damped least squares
on the geometric Jacobian (C. Wampler, IEEE Trans. Systems, Man and Cybernetics 16(1), 1986): each pose starts from the
solution of the one before, so that the elbow stays where it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from engine.errors import InvalidInput, Problem
from engine.evaluation import franka_scene as scene

Floats = NDArray[np.float64]

TOOL_M = 0.1034
"""From the flange to the point between the finger tips, m."""

POSITION_TOLERANCE_M = 1e-5
ROTATION_TOLERANCE_RAD = 1e-4
_ITERATIONS = 60
_DAMPING = 0.02
_LARGEST_STEP_RAD = 0.25
_MARGIN_RAD = 0.05  # kept free at both ends of the range of every joint
_TOOL = np.array([0.0, 0.0, scene.FLANGE_OFFSET + TOOL_M])


class Placement(NamedTuple):
    """Where the tool is: position [3] m, rotation [3, 3], and the geometric Jacobian [6, 7], all in the base."""

    position: Floats
    rotation: Floats
    jacobian: Floats


def place(joints: Floats) -> Placement:
    """Where the tool is at joint positions [7], rad. Its z axis points out of the hand, y along the fingers' travel."""
    rotation: Floats = np.eye(3)
    origin: Floats = np.zeros(3)
    axes, origins = np.empty((7, 3)), np.empty((7, 3))
    for number, (joint, fixed, angle) in enumerate(zip(scene.ARM, _FIXED, joints, strict=True)):
        origin = origin + rotation @ joint.origin
        rotation = rotation @ fixed
        axes[number], origins[number] = rotation[:, 2], origin
        c, s = math.cos(angle), math.sin(angle)
        rotation = rotation @ np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    position = origin + rotation @ _TOOL
    (x, y, z), (u, v, w) = axes.T, (position - origins).T
    return Placement(position, rotation, np.array([y * w - z * v, z * u - x * w, x * v - y * u, x, y, z]))


def solve(positions: Floats, rotations: Sequence[Floats], start: Floats) -> Floats:
    """Joint positions that bring the tool to the given poses.

    Args:
        positions: [N, 3] m.
        rotations: N times [3, 3].
        start: [7] rad; the first pose is looked for near it.

    Returns:
        [N, 7] rad, within the ranges of the joints.

    Raises:
        InvalidInput: A pose is out of reach, or too far from the one before; names it and what is left.
    """
    joints = np.array(start, np.float64)
    found = np.empty((len(positions), len(joints)))
    for row, (position, rotation) in enumerate(zip(positions, rotations, strict=True)):
        joints = found[row] = _solve_one(position, rotation, joints, row)
    return found


def _solve_one(position: Floats, rotation: Floats, start: Floats, row: int) -> Floats:
    joints = start.copy()
    for _ in range(_ITERATIONS):
        here = place(joints)
        shift = position - here.position
        turn = _rotation_vector(rotation @ here.rotation.T)
        apart, angle = float(np.linalg.norm(shift)), float(np.linalg.norm(turn))
        if apart <= POSITION_TOLERANCE_M and angle <= ROTATION_TOLERANCE_RAD:
            return _within_range(joints, position, row)
        # Full steps near the goal, careful ones far from it, where the Jacobian says little.
        damping = _DAMPING * min(1.0, apart / 0.1 + angle / 0.5)
        normal = here.jacobian @ here.jacobian.T + (damping**2 + 1e-12) * np.eye(6)
        step = here.jacobian.T @ np.linalg.solve(normal, np.concatenate([shift, turn]))
        joints += step * min(1.0, _LARGEST_STEP_RAD / max(float(np.abs(step).max()), 1e-12))
    what = f'cannot be reached; {apart * 1e3:.1f} mm and {math.degrees(angle):.1f} degrees are left'
    raise InvalidInput('the scripted hand', [Problem(f'pose {row}', what, np.array2string(position))])


def _rotation_vector(rotation: Floats) -> Floats:
    """Rotation vector [3] of a rotation [3, 3]; scipy's checks take longer than all else here."""
    m = rotation
    twice = np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])  # 2 sin(angle) times the axis
    sine, cosine = math.sqrt(float(twice @ twice)), float(m[0, 0] + m[1, 1] + m[2, 2]) - 1.0
    if sine < 1e-9 or cosine < -1.9:  # no turn at all; or nearly half a turn, where the axis is not in the difference
        return np.asarray(Rotation.from_matrix(rotation).as_rotvec())
    return twice * (math.atan2(sine, cosine) / sine)


def _within_range(joints: Floats, position: Floats, row: int) -> Floats:
    beyond = [
        Problem(f'pose {row}', f'is beyond the range of {name}', f'{value:.3f} rad at {np.array2string(position)}')
        for name, joint, value in zip(scene.ARM_JOINTS, scene.ARM, joints, strict=True)
        if not joint.lower + _MARGIN_RAD <= value <= joint.upper - _MARGIN_RAD
    ]
    if beyond:
        raise InvalidInput('the scripted hand', beyond)
    return joints


_FIXED = [Rotation.from_euler('x', joint.roll).as_matrix() for joint in scene.ARM]

DOWN = place(np.array(scene.HOME)).rotation
"""Rotation of a tool that points straight down as at the start pose, fingers to the left and right of the robot."""


def downwards(turn: float) -> Floats:
    """Rotation [3, 3] of a tool that points straight down, turned about the vertical by `turn` (rad)."""
    return np.asarray(Rotation.from_euler('z', turn).as_matrix() @ DOWN)
