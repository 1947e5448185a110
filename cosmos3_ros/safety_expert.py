"""A scripted hand that picks up the object it is told to: chunks like a good policy's, made from what is seen.

It reaches above the object, descends, closes the gripper and lifts, each stretch along the path of least jerk (T. Flash
and N. Hogan, J. Neurosci. 5(7), 1985) between the state that it has and rest. Where the object is, it takes from what
it is shown, as a policy takes it from pictures: what is shown wrongly it does wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy.spatial.transform import Rotation

from cosmos3_ros.contract_arms import chain_of
from cosmos3_ros.guard.limits import RobotLimits
from cosmos3_ros.inverse_kinematics import InverseKinematics
from cosmos3_ros.safety_jobs import JOBS, TARGETS, Job
from engine.contract import Contract
from engine.errors import InvalidInput, Problem
from engine.evaluation import franka_scene as scene
from engine.evaluation.expert_paths import Floats, Plan, Rows, Seen, quintic
from engine.evaluation.simulated_franka import Pose
from engine.evaluation.tasks import TOPS

REPLAN_ROWS = 8
"""Rows from one observation to the next."""

ABOVE_M = 0.10
HOVER_M = 0.04  # above the top of what is reached for
LIFT_M = 0.15
_TOOL_M = 0.1034  # from the flange to the point between the finger tips
_PACE = (0.30, 0.45)  # peak speed as a share of the velocity limits; teleoperation has 0.08 to 0.35
_SHARE = 0.6  # of the accelerations
_GRIP_S = 0.6
_MOVED_M = 0.015
_LOST_RAD = 0.15
_FADE_ROWS = 3.0
_STRETCH = 1.15


class Proposer(Protocol):
    """Whatever makes chunks of what is seen."""

    sees: bool
    """Whether it needs pictures."""

    def reset(self, seed: int) -> None:
        """A new episode begins."""

    def propose(self, seen: Seen, target: str) -> Rows:
        """The next chunk."""

    def chunks(self, seen: Seen, target: str) -> int:
        """How many chunks an episode that begins like this takes."""


class Expert:
    """The scripted hand, for a contract that has the one simulated arm. To reach, it only goes above the object."""

    sees = False

    def __init__(self, contract: Contract, limits: RobotLimits, job: Job = JOBS['pick']) -> None:
        """Prepare.

        Raises:
            InvalidInput: The contract is for another robot than the simulated one.
        """
        check_arm(contract)
        self._limits, self._rows, self._reaches = limits, contract.timing.chunk_rows, job.name == 'reach'
        self._step_s = 1.0 / contract.timing.fps
        arm = contract.robot.arms[0]
        self._solver = InverseKinematics(chain_of(arm, limits), arm.joints, scene.FLANGE)
        self._down = self._solver.pose(np.array(scene.HOME))[1]
        self.reset(0)

    def reset(self, seed: int) -> None:
        """A new episode begins; `seed` decides how fast the hand is."""
        self._pace = float(np.random.default_rng([seed, 1]).uniform(*_PACE))
        self._plan: Plan | None = None
        self._target = ''
        self._place: Floats = np.zeros(3)

    def chunks(self, seen: Seen, target: str) -> int:
        """How many chunks it takes, with half a second to come to rest."""
        self._attend(seen, target)
        length = self._plan.end_s - seen.stamp_ns * 1e-9 if self._plan else 0.0
        return int(np.ceil((length + 0.5) / (REPLAN_ROWS * self._step_s)))

    def propose(self, seen: Seen, target: str) -> Rows:
        """The next chunk, from where the arm is seen to be into what is planned.

        Raises:
            InvalidInput: The object is out of reach from the beginning.
        """
        plan = self._attend(seen, target)
        now = seen.stamp_ns * 1e-9
        times = now + self._step_s * np.arange(1, self._rows + 1, dtype=np.float64)
        fade = np.exp(-np.arange(1, self._rows + 1) / _FADE_ROWS)[:, None]
        apart = seen.joints - plan.state(np.array([now]))[0]
        return Rows(plan.state(times)[0] + fade * apart, plan.gripper(times))

    def _attend(self, seen: Seen, target: str) -> Plan:
        """The plan for what is seen: the one there is, or a new one if the arm or the object is elsewhere."""
        now, place = seen.stamp_ns * 1e-9, seen.objects[target].position
        if self._plan is None:
            return self._renew(now, (seen.joints, np.zeros_like(seen.joints), np.zeros_like(seen.joints)), seen, target)
        planned = [part[0] for part in self._plan.state(np.array([now]))]
        if np.abs(planned[0] - seen.joints).max() > _LOST_RAD:
            planned = [seen.joints, np.zeros_like(seen.joints), np.zeros_like(seen.joints)]
        elif target == self._target and (
            now > self._plan.grip_s - 0.1 or np.linalg.norm(place - self._place) < _MOVED_M
        ):
            return self._plan
        try:
            return self._renew(now, planned, seen, target)
        except InvalidInput:  # pushed out of reach: like a policy, it goes on with something
            return self._plan

    def _renew(self, now: float, start: Sequence[Floats], seen: Seen, target: str) -> Plan:
        above, grasp, lifted = self._keyframes(seen.objects[target], target, start[0])
        self._target, self._place = target, seen.objects[target].position.copy()
        knots, pieces, state = [now], [], list(start)
        whole = ((above, 0.8), (grasp, 0.7), (grasp, _GRIP_S), (lifted, 0.8))
        for goal, least in whole[:1] if self._reaches else whole:
            seconds = self._seconds(state, goal, least)
            pieces.append(quintic(state, goal, seconds))
            knots.append(knots[-1] + seconds)
            state = [goal, np.zeros_like(goal), np.zeros_like(goal)]
        self._plan = Plan(np.array(knots), np.array(pieces), np.inf if self._reaches else knots[2])
        return self._plan

    def _keyframes(self, thing: Pose, target: str, start: Floats) -> tuple[Floats, Floats, Floats]:
        """Joints above the object, at it, and when it is lifted."""
        axis = Rotation.from_quat(thing.quaternion).as_matrix()[:, 0]
        turn = float(np.arctan2(axis[1], axis[0])) if target == 'red_cube' else 0.0
        turn = (turn + np.pi / 4) % (np.pi / 2) - np.pi / 4  # a cube has four sides
        rotation = Rotation.from_euler('z', turn).as_matrix() @ self._down
        at = np.array([*thing.position[:2], TARGETS[target]]) - _TOOL_M * rotation[:, 2]
        here = self._solver.pose(start)[0]
        up, over = np.array([0.0, 0.0, 1.0]), ABOVE_M
        if self._reaches:
            over = TOPS[target] + HOVER_M - TARGETS[target]
        # Row by row, each near the one before, so that the elbow stays where it is.
        way = [here + (at + over * up - here) * share for share in (0.25, 0.5, 0.75, 1.0)]
        way += [at + over / 2 * up, at, at + LIFT_M / 2 * up, at + LIFT_M * up]
        way = way[:4] if self._reaches else way
        rows = self._solver.solve(np.array(way), np.array([rotation] * len(way)), start)
        return (rows[3], rows[3], rows[3]) if self._reaches else (rows[3], rows[5], rows[7])

    def _seconds(self, state: Sequence[Floats], goal: Floats, least: float) -> float:
        """As long as it takes to keep the speed and the accelerations."""
        limits, way = self._limits, np.abs(goal - state[0])
        by_speed = float(1.875 * (way / limits.velocity).max() / self._pace)
        by_acceleration = float(np.sqrt(5.774 * (way / limits.acceleration).max() / _SHARE))
        seconds = max(by_speed, by_acceleration, least)
        while not self._kept(state, goal, seconds):
            seconds *= _STRETCH
        return seconds

    def _kept(self, state: Sequence[Floats], goal: Floats, seconds: float) -> bool:
        """Whether an arm under way, too, stays within the limits; a long stop from full speed always does."""
        stretch = Plan(np.array([0.0, seconds]), quintic(state, goal, seconds)[None], 0.0)
        _, velocity, acceleration = stretch.state(np.linspace(0, seconds, 40, dtype=np.float64))
        fast = np.abs(velocity) > np.maximum(0.8 * self._limits.velocity, np.abs(state[1]))
        hard = np.abs(acceleration) > np.maximum(0.8 * self._limits.acceleration, np.abs(state[2]))
        return seconds > 10.0 or not (fast.any() or hard.any())


def check_arm(contract: Contract) -> None:
    """Do nothing if a contract has the one arm that can be simulated.

    Raises:
        InvalidInput: It has another, or chunks of something else than joint positions.
    """
    problems = []
    if contract.robot.joints != scene.PANDA.joints or len(contract.robot.grippers) != 1:
        found, allowed = ', '.join(contract.robot.joints), ', '.join(scene.PANDA.joints)
        problems.append(Problem('robot.joints', 'are not those of the simulated arm', found, allowed))
    unseen = [view for view in contract.views.streams if view not in scene.PANDA.cameras]
    if unseen:
        problems.append(Problem('views.streams', 'are not simulated', ', '.join(unseen), ', '.join(scene.CAMERAS)))
    if contract.embodiment.action_space != 'joint_position':
        space = contract.embodiment.action_space
        problems.append(Problem('embodiment.action_space', 'cannot be proposed here', space, 'joint_position'))
    if problems:
        raise InvalidInput(f'contract {contract.name} and the safety simulation', problems)
