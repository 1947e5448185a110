"""From joint positions, commanded or measured, to the rows of motion that imagination understands, and back.

    joints --(forward kinematics)--> poses of the contract's end-effector frame --(codec)--> framewise deltas, scaled

A controller follows its targets with a delay, and a model that was trained on measured motion has never seen an arm
that is at once where it was told to be. :func:`expected_motion` says where a first-order lag leaves the arm meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cosmos3_ros.contract_arms import chain_of, key_of
from cosmos3_ros.guard.kinematics import Chain, frame_poses, places
from cosmos3_ros.guard.limits import load_limits
from engine.actions import Poses
from engine.contract import ArmTerms, Contract
from engine.dynamics import DynamicsTerms
from engine.errors import ContractError, InvalidInput, Problem

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Arm:
    """One arm: its kinematics, the frame whose motion counts, and its columns among all joints."""

    chain: Chain
    joints: tuple[str, ...]
    frame: str
    columns: slice


class MotionBridge:
    """Joint positions of a contract's arms as rows of its embodiment's `ee_delta` space, and rows as poses.

    Attributes:
        terms: What imagination was set up for; its codec knows the fixed frame, the polarity and the scale.
    """

    def __init__(self, contract: Contract, terms: DynamicsTerms) -> None:
        """Prepare.

        Raises:
            ContractError: The robot file has no kinematics, no such frame, or no arm with the joints of one of the
                contract's; or the embodiment has rows of another kind or number of arms. Lists all faults.
        """
        self.terms = terms
        problems: list[Problem] = []
        try:
            self._codec = terms.codec()
        except InvalidInput as error:
            problems += error.problems
        self._arms: list[_Arm] = []
        first = 0
        for arm in contract.robot.arms:
            columns = slice(first, first + len(arm.joints))
            first = columns.stop
            try:
                self._arms.append(_find_arm(arm, columns, contract.robot.description))
            except InvalidInput as error:
                problems += error.problems
        problems = problems or [*_bodies(contract, self._codec.bodies)]
        if problems:
            raise ContractError(f'contract {contract.name} and imagination', problems)

    @property
    def joints(self) -> int:
        """Joints of all arms."""
        return self._arms[-1].columns.stop

    def poses(self, joints: ArrayLike) -> Poses:
        """Where the arms' frames are in the robot's base.

        Args:
            joints: [N, J], rad, in the contract's order.

        Returns:
            Leading shape [N] for one arm, [N, B] for several.

        Raises:
            InvalidInput: Another width, or values that are not finite.
        """
        table = _table('joints', joints, self.joints)
        found = [
            frame_poses(arm.chain, arm.joints, np.ascontiguousarray(table[:, arm.columns]), arm.frame)
            for arm in self._arms
        ]
        if len(found) == 1:
            return Poses(*found[0])
        return Poses(*(np.stack(parts, axis=1) for parts in zip(*found, strict=True)))

    def rows(self, joints: ArrayLike, grippers: ArrayLike) -> NDArray[np.float32]:
        """The motion through joint positions, one step of the terms' rate apart.

        Args:
            joints: [N + 1, J], rad: where the arms start, and where they are after each of the N rows.
            grippers: [N] or [N, G] closed fractions (0 open, 1 closed): what each row asks for.

        Returns:
            float32 [N, D] in the model's space.

        Raises:
            InvalidInput: Fewer than two positions, other widths, or values that are not finite.
        """
        return self.exact_rows(joints, grippers).astype(np.float32)

    def exact_rows(self, joints: ArrayLike, grippers: ArrayLike) -> Floats:
        """The same in float64: in float32 a row is right to a tenth of a micrometre, and rows add up."""
        path = self.poses(joints)
        bodies, count = self._codec.bodies, len(path.position) - 1
        given = np.asarray(grippers, np.float64)
        closed = _table('grippers', given[:, None] if bodies == given.ndim == 1 else given, bodies)
        if len(closed) != count:
            problem = Problem('grippers', 'are not one for every row', str(len(closed)), str(count))
            raise InvalidInput('motion', [problem])
        if bodies == 1:
            closed = closed[:, 0]
        return self._codec.encode_trajectory(path, closed)

    def path(self, rows: ArrayLike, start: ArrayLike) -> tuple[Poses, Floats]:
        """Where rows lead, from joint positions.

        Args:
            rows: [N, D] in the model's space.
            start: [J], rad.

        Returns:
            Poses after each row, leading shape [N] or [N, B], and closed fractions, [N] or [N, G].

        Raises:
            InvalidInput: Other shapes, values that are not finite, or rows that hold no rotation.
        """
        found = self._codec.decode(rows, self.poses(np.reshape(start, (1, -1)))[0])
        return found.poses, found.gripper


def expected_motion(start: ArrayLike, targets: ArrayLike, period_s: float, lag_s: float) -> Floats:
    """Where an arm is at the end of each period if it follows its targets with a first-order lag.

    ``q[k + 1] = q[k] + (1 - exp(-period / lag)) * (target[k] - q[k])``: the exact answer of a first-order system to
    targets that are held for a period each. With a lag of 0 the arm is where it was told to be.

    Args:
        start: [J], measured, rad.
        targets: [N, J], commanded, rad.
        period_s: Time between two targets.
        lag_s: Time constant; for a Panda behind a joint impedance controller some hundredths of a second.

    Returns:
        [N + 1, J], rad; the first is `start`.

    Raises:
        InvalidInput: A time is out of range, or the joints do not fit or are not finite.
    """
    problems = []
    if not period_s > 0:
        problems.append(Problem('period_s', 'is not positive', str(period_s), 'above 0'))
    if not 0 <= lag_s < math.inf:
        problems.append(Problem('lag_s', 'is out of range', str(lag_s), '0 or more'))
    if problems:
        raise InvalidInput('expected motion', problems)
    share = 1.0 if lag_s == 0 else -math.expm1(-period_s / lag_s)
    first = np.asarray(start, np.float64)
    found = [_table('start', first[None], first.size)[0]]
    for target in _table('targets', targets, first.size):
        found.append(found[-1] + share * (target - found[-1]))
    return np.stack(found)


def _table(name: str, values: ArrayLike, width: int) -> Floats:
    table = np.asarray(values, np.float64)
    problems = []
    if table.ndim != 2 or table.shape[1] != width:
        problems.append(Problem(name, 'have another width', str(list(table.shape)), f'[N, {width}]'))
    elif not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0]
        problems.append(Problem(name, f'are not finite at row {row}, column {column}', str(table[row, column])))
    if problems:
        raise InvalidInput('motion', problems)
    return table


def _find_arm(arm: ArmTerms, columns: slice, description: str) -> _Arm:
    """The kinematics of an arm of the contract.

    Raises:
        InvalidInput: The robot file has no such arm, no kinematics for it, or no such frame.
    """
    chain = chain_of(arm, load_limits(description))
    if arm.end_effector_frame not in places(chain):
        where, allowed = f'{key_of(arm)}.end_effector_frame', ', '.join(places(chain))
        raise InvalidInput('robot', [Problem(where, 'is not in the robot file', arm.end_effector_frame, allowed)])
    return _Arm(chain, tuple(arm.joints), arm.end_effector_frame, columns)


def _bodies(contract: Contract, bodies: int) -> Iterator[Problem]:
    """Whether rows of so many bodies are those of the contract's arms."""
    arms = len(contract.robot.arms)
    if arms != bodies:
        yield Problem('embodiment.domain', f'moves {bodies} arms, and the robot has {arms}')
