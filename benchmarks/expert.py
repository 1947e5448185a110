"""Clean motion to judge a guard by, and what a policy that predicts it perfectly would send.

Two kinds of motion: a simulated expert, who reaches from pose to pose as people do with a teleoperated arm, and a
recorded DROID episode, whose poses are turned into joints by :mod:`recorded`. Angles in rad, times in s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.chunk import ReceivedChunk
from cosmos3_ros.guard.guard import Command, Guard
from cosmos3_ros.guard.limits import RobotLimits

Array = NDArray[np.float64]

HOME = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])
REACH = np.array([0.6, 0.4, 0.4, 0.4, 0.5, 0.4, 0.6])
"""How far from home, to both sides, the simulated expert moves each joint, rad."""

GRIPPER = ('panda_finger_joint1',)

TELEOPERATION = (0.08, 0.35)
"""Peak speed of a reach as a share of the velocity limits: 0.2 to 0.8 rad/s for the Panda's large joints."""

NS = 1_000_000_000
STEP_NS = 66_666_667
ROWS = 32
REPLAN_ROWS = 8
TICK_NS = 10_000_000
SET_IN_S = 16 * STEP_NS / NS
"""Time in which a motion that begins in the middle comes up to speed; it loses half of that: whole rows, so that frames
of a recording stay frames and are not smoothed by taking values between them."""


@dataclass(frozen=True)
class Motion:
    """A motion of the arm and its gripper as functions of time.

    Attributes:
        name: What it is.
        duration_s: Its length.
        joints: Positions [S, J] at times [S]; beyond the end the last pose.
        gripper: Closed fraction [S] at times [S].
    """

    name: str
    duration_s: float
    joints: Callable[[Array], Array]
    gripper: Callable[[Array], Array]


def simulated_expert(limits: RobotLimits, duration_s: float, seed: int, pace: tuple[float, float]) -> Motion:
    """Reaches between random poses along least-jerk profiles, with pauses, and a gripper that closes and opens.

    The profile is that of T. Flash and N. Hogan, J. Neurosci. 5(7), 1985.

    Args:
        limits: The robot; no reach exceeds 0.6 of its accelerations.
        duration_s: At least this long.
        seed: Decides everything.
        pace: Smallest and largest share of the velocity limits at the peak of a reach.
    """
    rng = np.random.default_rng(seed)
    lower, upper = np.maximum(HOME - REACH, limits.soft_lower), np.minimum(HOME + REACH, limits.soft_upper)
    starts, lengths, poses, grips, now = [0.0], [], [HOME], [0.0], 1.0
    lengths.append(1.0)
    while now < duration_s:
        way = np.abs((target := rng.uniform(lower, upper)) - poses[-1])
        by_speed = 1.875 * (way / limits.velocity).max() / rng.uniform(*pace)
        by_acceleration = np.sqrt(5.774 * (way / limits.acceleration).max() / 0.6)
        reach = max(by_speed, by_acceleration, 0.3)
        starts += [now, now + reach]
        lengths += [reach, rng.choice([0.0, 0.1, 0.3, 0.8, 2.0])]
        poses += [target, target]
        grips += [grips[-1], float(rng.integers(2))]
        now += lengths[-2] + lengths[-1]
    begin, length, goal, grip = np.array(starts), np.array(lengths), np.array(poses), np.array(grips)
    before, grip_before = np.vstack([HOME[None], goal[:-1]]), np.concatenate([[0.0], grip[:-1]])

    def joints(times: Array) -> Array:
        index, s = _segment(times, begin, length)
        rise = (s**3 * (10 - 15 * s + 6 * s**2))[:, None]
        return before[index] + (goal[index] - before[index]) * rise

    def gripper(times: Array) -> Array:
        index, _ = _segment(times, begin, length)
        closing = np.clip((times - begin[index]) / 0.4, 0.0, 1.0)
        return grip_before[index] + (grip[index] - grip_before[index]) * closing

    return Motion('simulated expert', now, joints, gripper)


def from_rest(motion: Motion, since_s: float) -> Motion:
    """The same motion from `since_s` on, whose time sets in smoothly within a second: an arm begins from rest."""

    def warped(times: Array) -> Array:
        u = np.clip(times / SET_IN_S, 0.0, 1.0)
        return since_s + SET_IN_S * (u**3 - u**4 / 2) + np.maximum(times - SET_IN_S, 0.0)

    return Motion(
        motion.name,
        motion.duration_s - since_s + SET_IN_S / 2,
        lambda times: motion.joints(warped(times)),
        lambda times: motion.gripper(warped(times)),
    )


def _segment(times: Array, begin: Array, length: Array) -> tuple[NDArray[np.int64], Array]:
    index = np.clip(np.searchsorted(begin, times, side='right') - 1, 0, len(begin) - 1)
    return index, np.clip((times - begin[index]) / np.maximum(length[index], 1e-9), 0.0, 1.0)


@dataclass(frozen=True)
class Conditions:
    """What lies between a motion and what the guard gets to see of it.

    Attributes:
        delay_s: Shortest and longest time from an observation to the arrival of its chunk.
        lag_s: Time constant with which the arm follows its commands.
        position_noise: Of the measured joints, standard deviation, rad.
        velocity_noise: Of the measured joints, standard deviation, rad/s.
        row_noise: Of each row of a chunk, standard deviation, rad; a perfect policy has none.
        chunk_noise: By which successive chunks disagree, standard deviation, rad; none for a perfect policy.
    """

    delay_s: tuple[float, float] = (0.12, 0.35)
    lag_s: float = 0.03
    position_noise: float = 2e-4
    velocity_noise: float = 0.005
    row_noise: float = 0.0
    chunk_noise: float = 0.0


@dataclass
class Rehearsal:
    """One guard, an arm that follows with a small lag, and a policy that sees what comes; a clock turned by hand.

    Attributes:
        guard: Active, its clock at `origin_ns`.
        motion: What is to be done.
        conditions: What lies in between.
        rng: Where all chance comes from.
        names: Joint names under which the arm reports.
        reports: Whether joint states arrive.
        blocked: Whether the arm stands still whatever it is told.
        frozen: What the joint states say whatever the arm does; None: the truth.
        sequence: Number of the latest chunk.
        command: The command in force.
        commands: All commands, if a list is given.
    """

    guard: Guard
    motion: Motion
    conditions: Conditions
    rng: np.random.Generator
    origin_ns: int = 1_700_000_000 * NS
    reports: bool = True
    blocked: bool = False
    frozen: Array | None = None
    sequence: int = 0
    command: Command | None = None
    commands: list[Command] | None = None

    def __post_init__(self) -> None:
        self.now_ns = self.origin_ns
        self.arm = self.motion.joints(np.zeros(1))[0]
        self._before = self.arm
        self.guard.activate(self.now_ns)
        self.report()

    @property
    def elapsed_s(self) -> float:
        """Time of the motion."""
        return (self.now_ns - self.origin_ns) / NS

    def rows(self, stamp_ns: int, rows: int = ROWS, step_ns: int = STEP_NS) -> Array:
        """What the policy predicts from `stamp_ns` on: [rows, J]."""
        times = (stamp_ns - self.origin_ns + np.arange(1, rows + 1) * step_ns) / NS
        joints = self.motion.joints(times)
        if self.conditions.row_noise:
            joints = joints + self.rng.normal(0, self.conditions.row_noise, joints.shape)
        if self.conditions.chunk_noise:
            joints = joints + self.rng.normal(0, self.conditions.chunk_noise, joints.shape[1])
        return joints

    def chunk(self, stamp_ns: int, **changes: object) -> ReceivedChunk:
        """The policy's next chunk, made from what was seen at `stamp_ns`."""
        self.sequence += 1
        times = (stamp_ns - self.origin_ns + np.arange(1, ROWS + 1) * STEP_NS) / NS
        fields = {
            'stamp_ns': stamp_ns,
            'epoch': self.guard.epoch,
            'sequence': self.sequence,
            'step_ns': STEP_NS,
            'joint_names': self.guard.limits.joint_names,
            'gripper': self.motion.gripper(times)[:, None] if self.guard.gripper_names else None,
            'gripper_names': self.guard.gripper_names,
        }
        if 'positions' not in changes:
            fields['positions'] = self.rows(stamp_ns)
        return ReceivedChunk(**{**fields, **changes})

    def report(self) -> None:
        """One joint state, a millisecond old when it arrives."""
        noise, joints = self.conditions, len(self.arm)
        seen = self.arm if self.frozen is None else self.frozen
        positions = seen + self.rng.normal(0, noise.position_noise, joints)
        speed = np.zeros(joints) if self.frozen is not None else (self.arm - self._before) * (NS / TICK_NS)
        velocities = speed + self.rng.normal(0, noise.velocity_noise, joints)
        stamp = self.now_ns - 1_000_000
        self.guard.on_joint_state(stamp, self.now_ns, self.guard.limits.joint_names, positions, velocities)

    def tick(self) -> None:
        """One control period: the arm follows, reports, and gets its next command."""
        self.now_ns += TICK_NS
        self._before = self.arm
        if self.command is not None and not self.blocked:
            goal = commanded(self.command, self.now_ns)
            self.arm = self.arm + (goal - self.arm) * (1 - np.exp(-TICK_NS / NS / self.conditions.lag_s))
        if self.reports:
            self.report()
        command = self.guard.tick(self.now_ns)
        if command is not None:
            self.command = command
            if self.commands is not None:
                self.commands.append(command)

    def speed(self) -> float:
        """Speed of the fastest joint, rad/s."""
        return float(np.abs(self.arm - self._before).max()) * NS / TICK_NS

    def until(self, time_ns: int) -> None:
        """Tick until then."""
        while self.now_ns < time_ns:
            self.tick()

    def delay_ns(self) -> int:
        """How long the next inference takes, ns."""
        return int(self.rng.uniform(*self.conditions.delay_s) * NS)


def commanded(command: Command, time_ns: int) -> Array:
    """Position that a command asks for at an instant, straight between its points; its last point after its end."""
    since = time_ns - command.stamp_ns
    times = command.times_ns
    if since >= times[-1]:
        return command.positions[-1]
    index = int(np.searchsorted(times, since, side='right')) - 1
    share = (since - times[index]) / (times[index + 1] - times[index])
    positions: Array = command.positions[index] * (1 - share) + command.positions[index + 1] * share
    return positions
