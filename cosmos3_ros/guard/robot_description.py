"""Combines a robot file with the robot description that the driver publishes: the more restrictive figure wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.capsules import Capsules
from cosmos3_ros.guard.figures import LimitsError
from cosmos3_ros.guard.kinematics import Chain, frame_poses, places
from cosmos3_ros.guard.limits import RobotLimits
from cosmos3_ros.guard.urdf import DescribedJoint, Description, capsules_in, chain_to, read_description
from engine.errors import Problem

Array = NDArray[np.float64]

_WHERE = 'robot_description'
_UNITS = {'lower': 'rad', 'upper': 'rad', 'velocity': 'rad/s', 'acceleration': 'rad/s^2', 'jerk': 'rad/s^3'}
# Figures that are rounded to four digits in one place and five in another are the same figure.
_SAME = 1e-4
# Kinematics that differ by more are those of another arm; calibrated ones differ by millimetres.
_ANOTHER_ARM_M = 0.02
_SAME_PLACE_M = 1e-4


@dataclass
class _Findings:
    """What has been noticed so far."""

    problems: list[Problem]
    differences: list[str]


def limits_with_description(
    limits: RobotLimits | None, urdf_text: str, *, tip: str | None = None, margin: float | None = None
) -> RobotLimits:
    """Hold a robot to both its file and its description.

    Of positions, velocities, and accelerations and jerks where the description states them, the more restrictive figure
    of each joint is used. Kinematics and body are those of the file; if it has no kinematics, those of the description
    are used, and its cylinders and spheres if the file has no capsules.

    Args:
        limits: What the robot file says; None if there is none: then the description must state every figure.
        urdf_text: URDF, as published on `robot_description`.
        tip: Link whose origin is the tool point, if the kinematics are taken from the description; None: the last link
            that moves. Without a robot file it also decides which joints are meant: those on the way to it.
        margin: Distance kept from both position ends, rad; for a robot without a file.

    Returns:
        The combined limits. Their `differences` say where both disagreed, and what is not covered.

    Raises:
        LimitsError: The description cannot be used, lacks a joint, describes another arm, or a figure is in neither of
            both; every fault is listed.
    """
    description = read_description(urdf_text)
    findings = _Findings([], [])
    joints = _joints(limits, description, tip, findings)
    _finish(findings)
    figures = _figures(limits, joints, findings)
    if limits is None:
        limits = _without_file(description, joints, figures, margin, findings)
    else:
        limits = replace(limits, **figures)
    for name, low, high in zip(limits.joint_names, limits.soft_lower, limits.soft_upper, strict=True):
        if low >= high:
            what = 'file and description together leave no range'
            findings.problems.append(Problem(f'position of {name}', what, f'[{low:g}, {high:g}] less the margin'))
    limits = _with_kinematics(limits, description, joints, tip, findings)
    _finish(findings)
    return replace(limits, differences=(*limits.differences, *findings.differences))


def _finish(findings: _Findings) -> None:
    if findings.problems:
        raise LimitsError(_WHERE, findings.problems)


def _joints(
    limits: RobotLimits | None, description: Description, tip: str | None, findings: _Findings
) -> list[DescribedJoint]:
    """The robot's joints as described, in its own order."""
    if tip is not None and tip not in description.links:
        findings.problems.append(Problem('tip', 'unknown link', repr(tip), ', '.join(description.links)))
        return []
    if limits is None:
        found = [] if tip is None else [joint for joint in description.path(tip) if joint.kind != 'fixed']
        if not found:
            what = 'no joint is meant: there is no robot file, and no link `tip` behind moving joints is named'
            findings.problems.append(Problem('tip', what))
    else:
        by_name = {joint.name: joint for joint in description.joints.values()}
        found = [by_name[name] for name in limits.joint_names if name in by_name]
        known = ', '.join(joint.name for joint in description.joints.values() if joint.turns)
        findings.problems += [
            Problem(f'joint {name}', 'is in the robot file and not in the description', allowed=known)
            for name in limits.joint_names
            if name not in by_name
        ]
    findings.problems += [
        Problem(f'joint {joint.name}', 'cannot be guarded', joint.kind, 'revolute or continuous')
        for joint in found
        if not joint.turns
    ]
    return found


def _figures(limits: RobotLimits | None, joints: list[DescribedJoint], findings: _Findings) -> dict[str, Any]:
    """The more restrictive of both figures for each joint, by quantity [J]; absent in both is a fault."""
    result: dict[str, Any] = {}
    for key, unit in _UNITS.items():
        of_file = None if limits is None else getattr(limits, key)
        scale = 1.0 if limits is None or key in ('lower', 'upper') else limits.scale
        values = np.full(len(joints), np.nan)
        for index, joint in enumerate(joints):
            described = joint.limits.get(key)
            stated = [] if of_file is None else [float(of_file[index])]
            stated += [] if described is None else [described * scale]
            if not stated:
                what = f'{key} is stated neither in a robot file nor in the description'
                remedy = 'write a robot file (docs/robots.md); there is no default'
                findings.problems.append(Problem(f'joint {joint.name}', what, remedy=remedy))
                continue
            values[index] = max(stated) if key == 'lower' else min(stated)
            if len(stated) == 2 and abs(stated[0] - stated[1]) > _SAME * max(1.0, abs(stated[0])):
                findings.differences.append(
                    f'{joint.name}: {key} is {stated[0]:g} {unit} in the robot file and {stated[1]:g} {unit} in the '
                    f'description; {values[index]:g} {unit} is used'
                )
        result[key] = values
    return result


def _without_file(
    description: Description,
    joints: list[DescribedJoint],
    figures: dict[str, Any],
    margin: float | None,
    findings: _Findings,
) -> RobotLimits:
    if margin is None or not margin >= 0.0:
        given = '' if margin is None else repr(margin)
        findings.problems.append(Problem('margin', 'must be stated without a robot file', given, 'a number >= 0, rad'))
    _finish(findings)
    source = f'{_WHERE} of {description.name!r}'
    names = tuple(joint.name for joint in joints)
    return RobotLimits(description.name, names, **figures, margin=margin or 0.0, source=source)


def _with_kinematics(
    limits: RobotLimits, description: Description, joints: list[DescribedJoint], tip: str | None, findings: _Findings
) -> RobotLimits:
    if limits.parts:
        for arm in limits.parts:
            if arm.chain is not None:
                own = [joint for joint in joints if joint.name in arm.joint_names]
                last = max(own, key=lambda joint: len(description.path(joint.child)))
                _compare(arm, arm.chain, description, last.child, _first_moving(description, last.child), findings)
        return limits
    last = max(joints, key=lambda joint: len(description.path(joint.child)))
    path = description.path(tip or last.child)
    on_path = [joint.name for joint in path if joint.kind != 'fixed']
    missing = [name for name in limits.joint_names if name not in on_path]
    others = [name for name in on_path if name not in limits.joint_names]
    if missing or others:
        text = f'{", ".join(missing or others)} {"not on the way to" if missing else "not guarded, but on the way to"}'
        findings.differences.append(
            f'The joints are no single chain to {tip or last.child} ({text} it): kinematics are not taken from the '
            'description.'
        )
        return limits
    first = _first_moving(description, tip or last.child)
    if limits.chain is not None:
        _compare(limits, limits.chain, description, last.child, first, findings)
        return limits
    chain = chain_to(description, first, tip or last.child)
    combined = replace(limits, chain=chain)
    return combined if limits.capsules is not None else _with_capsules(combined, chain, description, findings)


def _first_moving(description: Description, link: str) -> str:
    """What the first joint on the way to a link moves against."""
    return next(joint for joint in description.path(link) if joint.kind != 'fixed').parent


def _compare(
    limits: RobotLimits, chain: Chain, description: Description, last: str, first: str, findings: _Findings
) -> None:
    """Compare where both put the tool, or the last link if the description does not know the tool's name."""
    ancestors = {joint.parent for joint in description.path(last)}
    # An arm of several stands on a frame of its own, which the description knows even if it has another common base.
    feet = [name for name, place in places(chain).items() if place.link == 0]
    foot = next((name for name in feet if name in ancestors), next(f.parent for f in chain.frames if f.joint))
    base = foot if foot in ancestors else first
    of_file = chain.tool if chain.tool in description.links else chain.frames[_last_moving(chain)].name
    described = chain_to(description, base, of_file if of_file in description.links else last)
    if set(described.joints) != set(limits.joint_names):
        findings.differences.append(f'{of_file} does not move with all joints in the description: not compared')
        return
    rng = np.random.default_rng(0)
    positions = rng.uniform(limits.lower, limits.upper, (16, len(limits.joint_names)))
    ours, our_axes = _seen_from(chain, limits.joint_names, positions, of_file, foot)
    theirs, their_axes = frame_poses(described, limits.joint_names, positions, described.tool)
    apart = float(np.linalg.norm(ours - theirs, axis=1).max())
    # As the way of a point 0.1 m from the origin.
    turned = 0.1 * float(np.linalg.norm(our_axes - their_axes, axis=(1, 2)).max())
    if max(apart, turned) > _ANOTHER_ARM_M:
        what = 'robot file and description put it in different places'
        value = f'up to {apart:.3f} m apart'
        findings.problems.append(
            Problem(f'kinematics, {of_file}', what, value, f'{_ANOTHER_ARM_M} m', 'is this the file of this robot?')
        )
    elif max(apart, turned) > _SAME_PLACE_M:
        findings.differences.append(
            f'Robot file and description put {of_file} up to {apart * 1e3:.1f} mm apart; the file is used'
        )


def _seen_from(chain: Chain, joint_names: Sequence[str], positions: Array, name: str, foot: str) -> tuple[Array, Array]:
    """Origins [S, 3] and axes [S, 3, 3] of a frame in another one that does not move."""
    origins, axes = frame_poses(chain, joint_names, positions, name)
    stands = places(chain)[foot]
    return (origins - stands.translation) @ stands.rotation, stands.rotation.T @ axes


def _last_moving(chain: Chain) -> int:
    return max(index for index, frame in enumerate(chain.frames) if frame.joint)


def _with_capsules(limits: RobotLimits, chain: Chain, description: Description, findings: _Findings) -> RobotLimits:
    """Take cylinders and spheres as the body; neighbours and what overlaps in the middle of the range are left out."""
    shapes = capsules_in(description, chain)
    shapeless = [link for link in description.other_shapes if link in chain.names]
    if shapeless:
        findings.differences.append(
            f'Only cylinders and spheres are used of the collision shapes; others belong to {", ".join(shapeless)}'
        )
    beyond = sorted({shape.link for shape in description.capsules} - set(chain.names))
    if beyond:
        findings.differences.append(
            f'Collision shapes that the joints do not move rigidly are not used: {", ".join(beyond)}'
        )
    if not shapes:
        return limits
    fixed = places(chain)
    links = list(dict.fromkeys(shape.link for shape in shapes))
    never = {frozenset(pair) for pair in combinations(links, 2) if abs(fixed[pair[0]].link - fixed[pair[1]].link) <= 1}
    for pair in combinations(links, 2):
        own = tuple(shape for shape in shapes if shape.link in pair)
        alone = replace(limits, capsules=Capsules(own, 0.0, frozenset(never)))
        middle = (limits.lower + limits.upper)[None] / 2
        if frozenset(pair) not in never and alone.body is not None and alone.body.clearances(middle)[0] < 0.0:
            never.add(frozenset(pair))
            findings.differences.append(
                f'The shapes of {pair[0]} and {pair[1]} overlap in the middle of the range: the pair is not checked'
            )
    return replace(limits, capsules=Capsules(shapes, 0.0, frozenset(never)))
