"""What the numbers of `observation.state` and `action` are: their names, order and units, here and at the robot.

Both have the same columns. Contracts of joint positions: the joints, arm after arm, then the grippers. Contracts of
poses: position (m) and quaternion (x, y, z, w) of each arm, then the grippers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import Problem

if TYPE_CHECKING:
    from engine.contract import Contract

Floats = NDArray[np.float64]

POSE = ('x', 'y', 'z', 'qx', 'qy', 'qz', 'qw')
BEYOND_RAD = 0.1
"""How far a measured joint may be beyond its range before its order or unit is doubted, rad."""
BEYOND_SHARE = 0.1
"""Likewise for grippers, of the way from open to closed."""


def column_names(contract: Contract) -> tuple[str, ...]:
    """The columns of a contract, named as LeRobot names positions: with `.pos` at the end."""
    robot = contract.robot
    names: list[str] = list(robot.joints)
    if contract.embodiment.action_space == 'ee_delta':
        names = [f'{arm.name}_{axis}' if arm.name else axis for arm in robot.arms for axis in POSE]
    return tuple(f'{name}.pos' for name in (*names, *robot.gripper_joints))


def order_problems(given: Sequence[str], contract: Contract) -> Iterator[Problem]:
    """Everything that keeps `given` from being the contract's columns in another order."""
    names = column_names(contract)
    for name in names:
        if name not in given:
            yield Problem('columns', 'lack a column of the contract', remedy=f'name {name} where the robot has it')
    for name in dict.fromkeys(given):
        if name not in names:
            yield Problem('columns', 'name something else', repr(name), ', '.join(names))
        elif list(given).count(name) > 1:
            yield Problem('columns', 'name a column more than once', name)


@dataclass(frozen=True, eq=False)
class Columns:
    """Between a robot's numbers and the contract's: radians, metres, and grippers from 0 (open) to 1 (closed).

    Attributes:
        names: The contract's columns.
        place: [D] for each of them, where the robot has it.
        offset: [D] what the robot says at the contract's zero.
        scale: [D] the contract's unit over the robot's.
        arms: How many arms there are.
        joints: How many columns are joints; 0 if they are poses.
        lower: [D] the smallest value that can be measured, in the contract's units; -inf where that is not known.
        upper: [D] the largest, likewise.
    """

    names: tuple[str, ...]
    place: NDArray[np.int64]
    offset: Floats
    scale: Floats
    arms: int
    joints: int
    lower: Floats
    upper: Floats

    @classmethod
    def of(
        cls,
        contract: Contract,
        order: Sequence[str] | None = None,
        *,
        degrees: bool = False,
        gripper_open: float = 0.0,
        gripper_closed: float = 1.0,
    ) -> Columns:
        """The columns of a contract, at a robot that has them in this order and in these units."""
        names, robot = column_names(contract), contract.robot
        grippers = len(robot.grippers)
        body = len(names) - grippers
        joints = body if contract.embodiment.action_space == 'joint_position' else 0
        place = [list(order or names).index(name) for name in names]
        offset = [0.0] * body + [gripper_open] * grippers
        scale = [math.pi / 180 if degrees else 1.0] * body + [1 / (gripper_closed - gripper_open)] * grippers
        lower, upper = _ranges(contract) if joints else (np.full(body, -np.inf), np.full(body, np.inf))
        return cls(
            names,
            np.array(place),
            np.array(offset),
            np.array(scale),
            len(robot.arms),
            joints,
            np.append(lower - BEYOND_RAD, [-BEYOND_SHARE] * grippers),
            np.append(upper + BEYOND_RAD, [1 + BEYOND_SHARE] * grippers),
        )

    @property
    def body(self) -> int:
        """How many columns are no grippers."""
        return self.joints or len(POSE) * self.arms

    def from_robot(self, rows: Floats) -> Floats:
        """A robot's rows [..., D] in the contract's order and units."""
        return np.asarray((rows[..., self.place] - self.offset) * self.scale)

    def to_robot(self, rows: Floats) -> Floats:
        """The contract's rows [..., D] in the robot's order and units; grippers go no further than open and closed."""
        rows = rows.copy()
        rows[..., self.body :] = np.clip(rows[..., self.body :], 0.0, 1.0)
        found = np.empty_like(rows)
        found[..., self.place] = rows / self.scale + self.offset
        return found

    def problems(self, state: Floats) -> Iterator[Problem]:
        """What cannot have been measured, in the newest row of the contract's rows [rows, D].

        Joints in degrees, or in another order, mostly lie beyond the range of some joint.
        """
        for name, value, low, high in zip(self.names, state[-1], self.lower, self.upper, strict=True):
            if not low <= value <= high:  # also if it is not a number
                where, allowed = f'observation.state {name}', f'{low:.4g} to {high:.4g}'
                remedy = 'see columns, degrees, gripper_open and gripper_closed'
                yield Problem(where, 'is beyond its range', f'{value:.4g}', allowed, remedy)

    def fields(self, state: Floats) -> Mapping[str, Any]:
        """What an :class:`engine.Observation` takes of the contract's rows [rows, D]."""
        body, grippers = state[:, : self.body], state[:, self.body :]
        found: dict[str, Any] = {}
        if grippers.shape[1]:
            found['gripper_position'] = _newest(grippers[:, 0] if grippers.shape[1] == 1 else grippers)
        if self.joints:
            return found | {'joint_positions': _newest(body)}
        poses = body if self.arms == 1 else body.reshape(len(body), self.arms, len(POSE))
        position, quaternion = _newest(poses[..., :3]), _newest(poses[..., 3:])
        return found | {'end_effector_position': position, 'end_effector_quaternion': quaternion}


def _newest(rows: Floats) -> Floats:
    """Rows without their first dimension if there is one alone, as observations without a history are given."""
    return rows[0] if len(rows) == 1 else rows


def _ranges(contract: Contract) -> tuple[Floats, Floats]:
    """Ranges of the joints by the contract's robot file, rad; without bounds if it has other joints."""
    from cosmos3_ros.guard.limits import load_limits

    limits, joints = load_limits(contract.robot.description), contract.robot.joints
    if limits.joint_names != joints:
        return np.full(len(joints), -np.inf), np.full(len(joints), np.inf)
    return np.asarray(limits.lower), np.asarray(limits.upper)
