"""Faults of a contract that only show when several of its sections are read together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.actions import ActionSpace, Kind, embodiment
from engine.errors import InvalidInput, Problem

if TYPE_CHECKING:
    from engine.contract import ArmTerms, Contract


def repeated_names(where: str, arms: Sequence[ArmTerms]) -> Iterator[Problem]:
    """What several arms, or an arm and a gripper, claim at once: joints and frames, each once.

    Args:
        where: Key of the section of the arms.
        arms: All arms. A list of joints that names one twice within itself has been reported on its own.
    """
    joints = [joint for arm in arms for joint in dict.fromkeys(arm.joints)]
    joints += [arm.gripper.joint for arm in arms if arm.gripper is not None]
    frames = [arm.end_effector_frame for arm in arms]
    for what, names in (('joint', joints), ('end_effector_frame', frames)):
        for name in dict.fromkeys(names):
            if name and names.count(name) > 1:
                yield Problem(where, f'names a {what} {names.count(name)} times', name, 'once among all arms')


def cross_check(contract: Contract, note: Callable[[Problem], None]) -> None:
    """Note every fault between the sections of a contract whose sections are sound by themselves."""
    terms = contract.embodiment
    try:
        space = embodiment(terms.domain).space(terms.action_space)
    except InvalidInput as error:
        for problem in error.problems:
            note(replace(problem, where=f'embodiment ({problem.where})'))
    else:
        if space.dim != terms.raw_action_dim:
            value, allowed = str(terms.raw_action_dim), f'{space.dim} for {terms.domain} in {terms.action_space}'
            note(Problem('embodiment.raw_action_dim', 'does not fit the action space', value, allowed))
        else:
            for problem in _arms_of_rows(contract, space):
                note(problem)
        if terms.state_row and not space.state_row:
            what = 'is not part of these rows: training put no measured state before them'
            note(Problem('embodiment.state_row', what, 'true', 'false'))
    if terms.action_space == 'joint_position' and contract.state.joint_states is None:
        note(Problem('state.joint_states', 'is needed by action_space joint_position', 'null'))
    if terms.action_space == 'ee_delta' and not contract.state.end_effectors:
        note(Problem('state.end_effector', 'is needed by action_space ee_delta', 'null'))
    if terms.offsets and (terms.action_space != 'joint_position' or not terms.state_row):
        what, allowed = 'are from the measured joints', 'action_space joint_position and state_row true'
        note(Problem('embodiment.offsets', what, terms.action_space, allowed))
    if terms.offsets and terms.normalization != 'none' and terms.state_statistics is None:
        what = 'are needed: offsets and states have different scales'
        note(Problem('embodiment.state_statistics', what, 'null', 'as embodiment.statistics, of measured states'))
    if terms.history_rows and not terms.state_row:
        note(Problem('embodiment.history_rows', 'needs state_row: true', str(terms.history_rows)))


def _arms_of_rows(contract: Contract, space: ActionSpace) -> Iterator[Problem]:
    """Where the robot's arms are not those that a row moves, body by body and gripper by gripper."""
    arms = contract.robot.arms
    joint_rows = contract.embodiment.action_space == 'joint_position'
    moved = space.of_kind(Kind.JOINT if joint_rows else Kind.ROT6D)
    where = 'robot.arms' if arms[0].name else 'robot.joints'
    bodies = tuple(segment.name.rpartition('_')[0] for segment in moved)
    if len(bodies) != len(arms) or (len(bodies) > 1 and bodies != tuple(arm.name for arm in arms)):
        given = ', '.join(arm.name or 'one without a name' for arm in arms)
        allowed = ', '.join(body or 'one' for body in bodies) + ', in this order, as a row has them'
        remedy = 'name them under robot.arms' if where == 'robot.joints' else ''
        yield Problem(where, f'are not the arms of {contract.embodiment.domain}', given, allowed, remedy)
        return
    for arm, segment in zip(arms, moved, strict=True):
        if joint_rows and len(arm.joints) != segment.size:
            key = f'robot.arms.{arm.name}.joints' if arm.name else 'robot.joints'
            yield Problem(key, 'do not fill a row', f'{len(arm.joints)} joints', f'{segment.size}, as a row has them')
    gripping = [segment.name.rpartition('_')[0] for segment in space.of_kind(Kind.GRIPPER)]
    for arm, body in zip(arms, bodies, strict=True):
        if (arm.gripper is not None) != (body in gripping):
            key = f'robot.arms.{arm.name}.gripper' if arm.name else 'robot.gripper'
            what = 'has no number in a row' if arm.gripper is not None else 'is missing: a row has a number for it'
            yield Problem(key, what, '' if arm.gripper is None else arm.gripper.joint)
