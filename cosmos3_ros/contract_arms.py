"""The arms of a contract in its robot file."""

from __future__ import annotations

from cosmos3_ros.guard.kinematics import Chain
from cosmos3_ros.guard.limits import RobotLimits
from engine.contract import ArmTerms
from engine.errors import InvalidInput, Problem


def key_of(arm: ArmTerms) -> str:
    """Where an arm stands in the contract file."""
    return f'robot.arms.{arm.name}' if arm.name else 'robot'


def chain_of(arm: ArmTerms, limits: RobotLimits) -> Chain:
    """The kinematics of the arm of a robot file that has the joints of an arm of the contract.

    Raises:
        InvalidInput: There is none, or it has no kinematics.
    """
    same = [known for known in limits.arms if set(known.joint_names) == set(arm.joints)]
    if not same:
        allowed = ' or '.join(', '.join(known.joint_names) for known in limits.arms)
        what = f'are not those of an arm of {limits.name}'
        raise InvalidInput('robot', [Problem(f'{key_of(arm)}.joints', what, ', '.join(arm.joints), allowed)])
    chain = same[0].chain
    if chain is None:
        raise InvalidInput('robot', [Problem('robot.description', 'has no kinematics', limits.name)])
    return chain
