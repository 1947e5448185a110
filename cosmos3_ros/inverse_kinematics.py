"""From poses of the end effector to positions of the joints, row after row, near to where the arm is.

Damped least squares on the geometric Jacobian (C. Wampler, IEEE Trans. Systems, Man and Cybernetics 16(1), 1986;
Y. Nakamura, H. Hanafusa, J. Dyn. Sys. Meas. Control 108(3), 1986): each row starts from the solution of the one before
and takes the smallest steps that lead to its pose, so that a redundant arm keeps its elbow where it was. Nothing is
clamped to the joints' ranges: whether the rows may be executed is for the guard to say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.kinematics import Chain, Kinematics, places
from engine.actions import matrix_to_axis_angle
from engine.errors import InvalidInput, Problem

Array = NDArray[np.float64]

POSITION_TOLERANCE_M = 1e-5
ROTATION_TOLERANCE_RAD = 1e-4
_ITERATIONS = 60
_DAMPING = 0.02
_LARGEST_STEP_RAD = 0.25


class InverseKinematics:
    """Inverse kinematics of one frame of an arm."""

    def __init__(self, chain: Chain, joint_names: Sequence[str], frame: str) -> None:
        """Prepare.

        Args:
            chain: The arm.
            joint_names: Order of the joints in all arrays; holds every joint of the chain and no other.
            frame: The frame whose poses are given.

        Raises:
            InvalidInput: The chain has no such frame, or other joints.
        """
        problems = []
        if frame not in chain.names:
            problems.append(Problem('frame', 'is not in the kinematics', frame, ', '.join(chain.names)))
        elif places(chain)[frame].link != len(chain.joints):
            problems.append(Problem('frame', 'is not moved by all joints', frame))
        if set(joint_names) != set(chain.joints):
            problems.append(Problem('joints', 'differ from those of the kinematics', ', '.join(joint_names)))
        if problems:
            raise InvalidInput('inverse kinematics', problems)
        place = places(chain)[frame]
        self._rotation = place.rotation
        corners = place.translation + np.vstack([np.zeros(3), np.eye(3)])
        points: list[Array] = [np.zeros((0, 3))] * len(chain.joints) + [corners]
        self._kinematics = Kinematics(chain, joint_names, points)
        self._columns = self._kinematics.columns

    def pose(self, joints: Array) -> tuple[Array, Array]:
        """Position [3], m, and rotation [3, 3] of the frame at joint positions [J], rad, in the base of the chain."""
        position, rotation, _ = self._place(joints)
        return position, rotation

    def solve(self, positions: Array, rotations: Array, start: Array) -> Array:
        """Joint positions that bring the frame to the given poses.

        Args:
            positions: [N, 3], m, in the base of the chain.
            rotations: [N, 3, 3], likewise.
            start: [J], rad: where the arm is; the first row is looked for near it.

        Returns:
            [N, J], rad.

        Raises:
            InvalidInput: A pose is out of reach, or too far from the one before; names the row and what is left.
        """
        joints = np.array(start, dtype=np.float64)
        rows = np.empty((len(positions), len(joints)))
        for row, (position, rotation) in enumerate(zip(positions, rotations, strict=True)):
            joints = rows[row] = self._solve_one(position, rotation, joints, row)
        return rows

    def _solve_one(self, position: Array, rotation: Array, start: Array, row: int) -> Array:
        joints = start.copy()
        for _ in range(_ITERATIONS):
            here, turned, jacobian = self._place(joints)
            shift = position - here
            turn = matrix_to_axis_angle(rotation @ turned.T)
            apart, angle = float(np.linalg.norm(shift)), float(np.linalg.norm(turn))
            if apart <= POSITION_TOLERANCE_M and angle <= ROTATION_TOLERANCE_RAD:
                return joints
            # Full steps near the goal, careful ones far from it, where the Jacobian says little.
            damping = _DAMPING * min(1.0, apart / 0.1 + angle / 0.5)
            normal = jacobian @ jacobian.T + (damping**2 + 1e-12) * np.eye(6)
            step = jacobian.T @ np.linalg.solve(normal, np.concatenate([shift, turn]))
            joints[self._columns] += step * min(1.0, _LARGEST_STEP_RAD / max(float(np.abs(step).max()), 1e-12))
        what = f'cannot be reached; {apart * 1e3:.1f} mm and {np.degrees(angle):.1f} degrees are left'
        remedy = 'the pose is beyond the arm, at a singularity, or far from the row before'
        raise InvalidInput('inverse kinematics', [Problem(f'row {row}', what, np.array2string(position), '', remedy)])

    def _place(self, joints: Array) -> tuple[Array, Array, Array]:
        """Position, rotation, and geometric Jacobian [6, J] in the order of the chain."""
        placement = self._kinematics.place(joints[None])
        corners = placement.points[self._kinematics.where][:, :, 0]
        position = corners[0]
        link = (corners[1:] - position).T  # axes of the last link, as columns
        axes, origins = placement.axes[:, :, 0], placement.origins[:, :, 0]
        jacobian = np.vstack([np.cross(axes, position - origins).T, axes.T])
        return position, link @ self._rotation, jacobian
