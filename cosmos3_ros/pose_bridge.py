"""From chunks of end-effector poses to chunks of joint positions, which are what the guard can judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.contract_arms import chain_of, key_of
from cosmos3_ros.conversions import Pose
from cosmos3_ros.guard.kinematics import Place, places
from cosmos3_ros.guard.limits import RobotLimits, load_limits
from cosmos3_ros.inverse_kinematics import InverseKinematics
from engine.actions import matrix_to_quaternion, quaternion_to_matrix
from engine.contract import ArmTerms, Contract
from engine.errors import ContractError, InvalidInput, ObservationError, Problem
from engine.policy_observation import POSE_COLUMNS, Observation, PolicyChunk

POSITION_APART_M = 0.02
ROTATION_APART_RAD = 0.1
"""How far the measured pose may be from that of the measured joints: two messages are of two moments."""


@dataclass(frozen=True)
class _Arm:
    """One arm of a contract, with its part of the robot file.

    Attributes:
        name: Of the contract; empty for the only arm.
        joints: Its columns among the joints of all arms.
        poses: Its columns among the poses of all arms.
        inverse: Its kinematics, in the contract's order of joints.
        base: Frame of the poses.
        fixed: Frames that do not move in it, by name: its own base may be mounted on that of the robot.
    """

    name: str
    joints: slice
    poses: slice
    inverse: InverseKinematics
    base: str
    fixed: Mapping[str, Place]

    def named(self, error: InvalidInput) -> list[Problem]:
        """The faults of this arm under its name."""
        return [replace(problem, where=f'{self.name} {problem.where}'.lstrip()) for problem in error.problems]


class PoseBridge:
    """Inverse kinematics for the arms and the end-effector frames of a contract, each arm by itself."""

    def __init__(self, contract: Contract) -> None:
        """Prepare.

        Raises:
            ContractError: The contract names no joint states, or its robot file has no kinematics, no such frame, or
                no arm with the joints of one of the contract's; lists all faults.
        """
        limits = load_limits(contract.robot.description)
        remedy = 'complete the contract or the robot file, or set end_effector_chunks to poses'
        problems = []
        if contract.state.joint_states is None:
            problems.append(Problem('state.joint_states', 'is needed to find joint positions'))
        self._arms: list[_Arm] = []
        first = 0
        for number, arm in enumerate(contract.robot.arms):
            joints = slice(first, first + len(arm.joints))
            poses = slice(POSE_COLUMNS * number, POSE_COLUMNS * (number + 1))
            try:
                self._arms.append(_arm(arm, joints, poses, limits))
            except InvalidInput as error:
                problems += error.problems
            first = joints.stop
        if problems:
            raise ContractError(f'contract {contract.name}', [replace(problem, remedy=remedy) for problem in problems])

    def in_base(self, number: int, pose: Pose) -> Pose:
        """A measured pose of arm `number` in the base of the robot file.

        Drivers measure in the base of their own arm. One that is given in a frame that the robot file does not fix to
        the base is handed back as it is: whether it is where the joints are shows when it is compared with them.
        """
        arm = self._arms[number]
        place = arm.fixed.get(pose.frame_id)
        if place is None or pose.frame_id == arm.base:
            return pose
        rotation = place.rotation @ quaternion_to_matrix(pose.quaternion)
        position = place.translation + place.rotation @ pose.position
        return Pose(position, matrix_to_quaternion(rotation), arm.base)

    def joints(self, chunk: PolicyChunk, observation: Observation) -> PolicyChunk:
        """The same chunk, its rows as joint positions.

        Args:
            chunk: Rows of position (m) and quaternion xyzw of each arm, and of the grippers.
            observation: What it was made from; with the joint positions of all arms.

        Returns:
            Rows of joint positions (rad), arm after arm, and the grippers, float32.

        Raises:
            ObservationError: Joints and pose were not measured of the same arm in the same base.
            InvalidInput: A row cannot be reached.
        """
        measured = np.asarray(observation.joint_positions, np.float64).reshape(-1, self._arms[-1].joints.stop)[-1]
        problems = [problem for arm in self._arms for problem in self._apart(arm, measured[arm.joints], observation)]
        if problems:
            raise ObservationError('observation', problems)
        rows = chunk.actions.astype(np.float64)
        found = []
        for arm in self._arms:
            poses = rows[:, arm.poses]
            try:
                solved = arm.inverse.solve(poses[:, :3], quaternion_to_matrix(poses[:, 3:]), measured[arm.joints])
            except InvalidInput as error:
                raise InvalidInput(error.subject, arm.named(error)) from error
            found.append(solved)
        grippers = rows[:, self._arms[-1].poses.stop :]
        return replace(chunk, actions=np.hstack([*found, grippers]).astype(np.float32))

    def _apart(self, arm: _Arm, measured: NDArray[np.float64], observation: Observation) -> Iterator[Problem]:
        """Whether the measured pose of an arm is not that of its measured joints."""
        number, arms = self._arms.index(arm), len(self._arms)
        position, rotation = arm.inverse.pose(measured)
        seen = np.asarray(observation.end_effector_position, np.float64).reshape(-1, arms, 3)[-1, number]
        quaternion = np.asarray(observation.end_effector_quaternion, np.float64).reshape(-1, arms, 4)[-1, number]
        turned = quaternion_to_matrix(quaternion)
        apart = float(np.linalg.norm(seen - position))
        angle = float(np.arccos(np.clip((np.trace(turned.T @ rotation) - 1) / 2, -1, 1)))
        if apart <= POSITION_APART_M and angle <= ROTATION_APART_RAD:
            return
        what = f'is {apart:.3f} m and {angle:.2f} rad from where the joints put the frame'
        remedy = f'publish it in {arm.base}, of the frame that the contract names'
        allowed = f'{POSITION_APART_M} m, {ROTATION_APART_RAD} rad'
        yield Problem(f'end_effector.{arm.name}'.rstrip('.'), what, '', allowed, remedy)


def _arm(terms: ArmTerms, joints: slice, poses: slice, limits: RobotLimits) -> _Arm:
    """An arm of the contract with the arm of the robot file that has its joints.

    Raises:
        InvalidInput: There is none, it has no kinematics, or no such frame.
    """
    chain = chain_of(terms, limits)
    try:
        inverse = InverseKinematics(chain, terms.joints, terms.end_effector_frame)
    except InvalidInput as error:
        faults = [replace(problem, where=f'{key_of(terms)}.end_effector_frame') for problem in error.problems]
        raise InvalidInput(error.subject, faults) from error
    fixed = {name: place for name, place in places(chain).items() if place.link == 0}
    return _Arm(terms.name, joints, poses, inverse, chain.base, fixed)
