"""From chunks of end-effector poses to chunks of joint positions, which are what the guard can judge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.inverse_kinematics import InverseKinematics
from engine.actions import quaternion_to_matrix
from engine.contract import Contract
from engine.errors import ContractError, InvalidInput, ObservationError, Problem
from engine.policy import Observation, PolicyChunk

POSITION_APART_M = 0.02
ROTATION_APART_RAD = 0.1
"""How far the measured pose may be from that of the measured joints: two messages are of two moments."""


class PoseBridge:
    """Inverse kinematics for the arm and the end-effector frame of a contract."""

    def __init__(self, contract: Contract) -> None:
        """Prepare.

        Raises:
            ContractError: The contract names no joint states or joints, or its robot file has no kinematics or no such
                frame; lists all faults.
        """
        robot = contract.robot
        limits = load_limits(robot.description)
        remedy = 'complete the contract or the robot file, or set end_effector_chunks to poses'
        problems = []
        if contract.state.joint_states is None:
            problems.append(Problem('state.joint_states', 'is needed to find joint positions', remedy=remedy))
        if limits.chain is None:
            what = 'has no kinematics'
            problems.append(Problem('robot.description', what, str(robot.description), remedy=remedy))
        if problems or limits.chain is None:
            raise ContractError(f'contract {contract.name}', problems)
        try:
            self._arm = InverseKinematics(limits.chain, robot.joints, robot.end_effector_frame)
        except InvalidInput as error:
            found = [replace(problem, remedy=remedy) for problem in error.problems]
            raise ContractError(f'contract {contract.name}', found) from error
        self._base, self._joints = limits.chain.base, len(robot.joints)

    def joints(self, chunk: PolicyChunk, observation: Observation) -> PolicyChunk:
        """The same chunk, its rows as joint positions.

        Args:
            chunk: Rows of position (m), quaternion xyzw and, if there is one, the gripper.
            observation: What it was made from; with the arm's joint positions.

        Returns:
            Rows of joint positions (rad) and the gripper, float32.

        Raises:
            ObservationError: Joints and pose were not measured of the same arm in the same base.
            InvalidInput: A row cannot be reached.
        """
        measured = np.asarray(observation.joint_positions, np.float64).reshape(-1, self._joints)[-1]
        self._compare(measured, observation)
        rows = chunk.actions.astype(np.float64)
        joints = self._arm.solve(rows[:, :3], quaternion_to_matrix(rows[:, 3:7]), measured)
        return replace(chunk, actions=np.hstack([joints, rows[:, 7:]]).astype(np.float32))

    def _compare(self, measured: NDArray[np.float64], observation: Observation) -> None:
        position, rotation = self._arm.pose(measured)
        seen = np.asarray(observation.end_effector_position, np.float64).reshape(-1, 3)[-1]
        turned = quaternion_to_matrix(np.asarray(observation.end_effector_quaternion, np.float64).reshape(-1, 4)[-1])
        apart = float(np.linalg.norm(seen - position))
        angle = float(np.arccos(np.clip((np.trace(turned.T @ rotation) - 1) / 2, -1, 1)))
        if apart <= POSITION_APART_M and angle <= ROTATION_APART_RAD:
            return
        what = f'is {apart:.3f} m and {angle:.2f} rad from where the joints put the frame'
        remedy = f'publish it in {self._base}, of the frame that the contract names'
        allowed = f'{POSITION_APART_M} m, {ROTATION_APART_RAD} rad'
        raise ObservationError('observation', [Problem('end_effector', what, '', allowed, remedy)])
