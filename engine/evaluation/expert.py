"""A scripted hand that does the tasks: it knows where everything lies, plans, and makes chunks of its plan.

Its way is made of legs: flights along the path of least jerk in joint space, straight lines of the tool, and waits
while the fingers close or open. It looks again with every observation: if the arm is not where the plan has it, if the
object moved before the hand was there, or if the plan is over and the task is not done, it plans anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from engine.errors import InvalidInput, Problem
from engine.evaluation import franka_scene as scene
from engine.evaluation.expert_kinematics import DOWN, Placement, downwards, place, solve
from engine.evaluation.expert_paths import CLOSING_S, Plan, Rows, Seen, quintic
from engine.evaluation.tasks import BOWL, TASKS, TOPS, Episode

Floats = NDArray[np.float64]
State = tuple[Floats, Floats, Floats]
"""Positions, velocities and accelerations of the joints, each [J]."""
Shape = Callable[[Floats, float], Floats]
"""Positions [N, J] at shares [N] of a leg, given how many seconds it lasts."""

VELOCITY = np.array([joint.velocity for joint in scene.ARM])
"""Velocity limits of the joints, rad/s."""

ACCELERATION = np.array([15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0])
"""Acceleration limits of the joints, rad/s²: Franka Control Interface documentation, limits of Panda/FER."""

GRASP_M = {'red_cube': 0.025, 'green_ball': 0.03, 'blue_disc': 0.016}
"""Height at which the tool takes an object, m."""

PUSH_M = {'red_cube': 0.02, 'blue_disc': 0.02}
"""Height at which the tool pushes an object, m."""

_AHEAD_M = {'red_cube': 0.034, 'blue_disc': 0.043}
# From the tool to the middle of an object that is pushed: two fingers some way apart lie against it.
_RADIUS = {thing.name: thing.radius for thing in scene.OBJECTS}
_HEIGHT = {thing.name: thing.height for thing in scene.OBJECTS}
_RAISED_M, _NEAR_M = 0.01, 0.03  # an object that is so far up, and so near to the tool, is in the hand
_PUSH_GRIP = 0.6
_ABOVE_M, _LIFT_M, _HOVER_M, _DESCENT_M = 0.10, 0.14, 0.03, 0.05
_FREE_M = 0.13  # height at which the tool may go anywhere
_THERE_M = 0.03  # so near to where it reaches for, it goes there straight
_RUN_UP_M = 0.04
_RELEASE_M = 0.045  # above where an object was taken
_GRIP_S, _RELEASE_S = 0.6, 0.5
_PACE = (0.30, 0.45)  # peak speed as a share of the velocity limits; teleoperation has 0.08 to 0.35
_SHARE = 0.6  # of the accelerations
_TOOL_PACE, _PUSH_PACE = 0.30, 0.16  # peak speed of the tool along a line, m/s
_TABLE_S = 0.01
_LINE_M = 0.01
_MOVED_M = 0.015
_LOST_RAD = 0.15
_PATIENCE_S = 1.0
_FADE_ROWS = 3.0
_STRETCH = 1.15
_PEAK = 1.875  # highest speed of a motion of least jerk, as a multiple of its mean


@dataclass(frozen=True, eq=False)
class Leg:
    """One piece of the way.

    Attributes:
        kind: 'fly', 'line' or 'wait'.
        tool: [3] m, where the tool shall be in the end.
        turn: About the vertical, rad, in the end.
        least_s: Shortest time.
        grip: What the gripper is told when it begins, 0 = open, 1 = closed.
        pace: Largest speed of the tool on a line, m/s.
    """

    kind: str
    tool: Floats
    turn: float
    least_s: float
    grip: float = 0.0
    pace: float = _TOOL_PACE


@dataclass(frozen=True, eq=False)
class Course:
    """A planned motion, as a table.

    Attributes:
        times: [N] s, rising.
        positions: [N, J] rad.
        grip_times: [G] s, when the gripper is told something else.
        grips: [G], what it is told.
        touch_s: When the hand is at the object.
    """

    times: Floats
    positions: Floats
    grip_times: Floats
    grips: Floats
    touch_s: float

    @property
    def end_s(self) -> float:
        """When it is done."""
        return float(self.times[-1])

    def at(self, times: Floats) -> Floats:
        """Joint positions [M, J], rad, at times [M]; rest before the beginning and after the end."""
        return np.stack([np.interp(times, self.times, column) for column in self.positions.T], axis=1)

    def moving(self, time_s: float) -> State:
        """Positions, velocities and accelerations, each [J], at a time."""
        before, now, after = self.at(time_s + np.array([-_TABLE_S, 0.0, _TABLE_S]))
        return now, (after - before) / (2 * _TABLE_S), (after - 2 * now + before) / _TABLE_S**2

    def grip(self, times: Floats) -> Floats:
        """What the gripper is told [M] at times [M]: from one value to the next in no time at all but `CLOSING_S`."""
        begins = np.column_stack([self.grip_times, self.grip_times + CLOSING_S]).ravel()
        values = np.column_stack([np.concatenate([self.grips[:1], self.grips[:-1]]), self.grips]).ravel()
        return np.interp(times, np.maximum.accumulate(begins), values)


class Expert:
    """The scripted hand, one episode after another."""

    sees = False
    """It needs no pictures."""

    def __init__(
        self,
        step_s: float,
        chunk_rows: int,
        velocity: Floats = VELOCITY,
        acceleration: Floats = ACCELERATION,
        latency_s: float = 0.2,
        ahead_s: float = math.inf,
    ) -> None:
        """Prepare.

        Args:
            step_s: Time from row to row, s.
            chunk_rows: Rows of a chunk.
            velocity: Limits [J], rad/s.
            acceleration: Limits [J], rad/s².
            latency_s: From an observation to the arrival of its chunk: until then nothing can be changed.
            ahead_s: How far it plans, for who asks for a single chunk: legs that would begin later are left out, and
                whether they are within reach is not asked.
        """
        self._step_s, self._rows, self._latency_s, self._ahead_s = step_s, chunk_rows, latency_s, ahead_s
        self._velocity, self._acceleration = velocity, acceleration

    def begin(self, episode: Episode) -> None:
        """A new episode; its seed decides how fast the hand is."""
        self._episode = episode
        self._pace = float(np.random.default_rng([episode.seed, 1]).uniform(*_PACE))
        self._course: Course | None = None
        self._aim: Floats = np.zeros(3)

    def act(self, seen: Seen) -> Rows:
        """The next chunk, from where the arm is seen to be into what is planned; rest if nothing can be planned."""
        course, now = self._attend(seen), seen.stamp_ns * 1e-9
        numbers = np.arange(1, self._rows + 1, dtype=np.float64)
        times = now + self._step_s * numbers
        apart = seen.joints - course.at(np.array([now]))[0]
        return Rows(course.at(times) + np.exp(-numbers / _FADE_ROWS)[:, None] * apart, course.grip(times))

    @property
    def end_s(self) -> float:
        """When the plan is done, on the clock of the stamps; there is one as soon as a chunk was made."""
        return 0.0 if self._course is None else self._course.end_s

    def moving(self, time_s: float) -> State:
        """Where the plan has the joints at a time, and how fast; there is one as soon as a chunk was made."""
        if self._course is None:
            raise InvalidInput('the scripted hand', [Problem('plan', 'there is none before the first chunk')])
        return self._course.moving(time_s)

    def look_again(self) -> None:
        """Forget the plan: the next chunk begins at rest, where the arm is seen to be."""
        self._course = None

    def take_over(self, seen: Seen, so_far: Course) -> None:
        """Plan from a motion that somebody else has under way; chunks then follow that plan.

        If the hand is nearly where it is to reach for, it goes there straight, and not up first.

        Args:
            seen: What is to be seen now.
            so_far: The motion, from a little before now to a little after it.

        Raises:
            InvalidInput: Something is out of reach, however the hand is turned.
        """
        self._course = self._renew(seen.stamp_ns * 1e-9, so_far, seen, straight=True)

    # Planning

    def _attend(self, seen: Seen) -> Course:
        """The plan for what is seen: the one there is, or a new one."""
        now, place_ = seen.stamp_ns * 1e-9, seen.objects[self._episode.target].position
        rest = Course(np.array([now]), seen.joints[None], np.array([now]), np.array([seen.gripper]), now)
        so_far = self._course or rest
        lost = bool(np.abs(so_far.at(np.array([now]))[0] - seen.joints).max() > _LOST_RAD)
        strayed = now < so_far.touch_s and bool(np.linalg.norm(place_ - self._aim) > _MOVED_M)
        if self._course is None or lost or strayed or now > so_far.end_s + _PATIENCE_S:
            try:
                self._course = self._renew(now, rest if lost else so_far, seen)
            except InvalidInput:  # out of reach: like a policy, it goes on with something
                self._course = so_far
        return self._course

    def _renew(self, now: float, so_far: Course, seen: Seen, *, straight: bool = False) -> Course:
        """A plan that goes on with `so_far` until it can arrive.

        Raises:
            InvalidInput: Something is out of reach, however the hand is turned.
        """
        self._aim = seen.objects[self._episode.target].position.copy()
        begin = now + self._latency_s
        state = so_far.moving(begin)
        here = place(state[0])
        legs, touch = _LEGS[self._episode.task](self._episode, seen)
        if straight and touch and np.linalg.norm(here.position - legs[touch - 1].tool) < _THERE_M:
            legs, touch = [replace(legs[touch - 1], kind='fly'), *legs[touch:]], 1
        elif here.position[2] < _FREE_M:  # up first, whatever lies around
            up = np.array([*here.position[:2], _FREE_M])
            grip = 1.0 if _in_hand(self._episode.target, seen) else 0.0
            legs, touch = [Leg('fly', up, _turn_of_hand(here), 0.6, grip), *legs], touch + 1
        new = self._within_reach(begin, state, legs, touch)
        before: Floats = np.linspace(
            now, begin, math.ceil(self._latency_s / _TABLE_S), endpoint=False, dtype=np.float64
        )
        times, rows = np.concatenate([before, new.times]), np.concatenate([so_far.at(before), new.positions])
        known = so_far.grip_times < begin
        grip_times, grips = (
            np.concatenate([so_far.grip_times[known], new.grip_times]),
            [*so_far.grips[known], *new.grips],
        )
        return Course(times, rows, grip_times, np.array(grips), new.touch_s)

    def _within_reach(self, now: float, start: State, legs: Sequence[Leg], touch: int) -> Course:
        """The legs laid out; where a joint ends before they do, with the hand the other way round."""
        for half_turn in (0.0, math.pi):
            try:
                return self._laid_out(now, start, [replace(leg, turn=leg.turn + half_turn) for leg in legs], touch)
            except InvalidInput:
                continue
        return self._laid_out(now, start, [replace(leg, turn=leg.turn - math.pi) for leg in legs], touch)

    def _laid_out(self, now: float, start: State, legs: Sequence[Leg], touch: int) -> Course:
        """The legs one after another, as a table; `touch` is how many there are before the hand is at the object."""
        times, positions, ends, state = [np.array([now])], [start[0][None]], [now], start
        turn = None
        for leg in legs:
            if ends[-1] - now > self._ahead_s:
                break
            ticks, rows = self._leg(leg, state, turn)
            times.append(ends[-1] + ticks)
            positions.append(rows)
            ends.append(float(times[-1][-1]))
            turn, state = leg.turn, (rows[-1], np.zeros_like(rows[-1]), np.zeros_like(rows[-1]))
        grips = np.array([leg.grip for leg in legs[: len(ends) - 1]])
        touch_s = ends[min(touch, len(ends) - 1)]
        return Course(np.concatenate(times), np.concatenate(positions), np.array(ends[:-1]), grips, touch_s)

    def _leg(self, leg: Leg, state: State, turn: float | None) -> tuple[Floats, Floats]:
        """Times [N] since it begins, the beginning left out, and positions [N, J]; as slow as the limits ask for."""
        if leg.kind == 'wait':
            return np.array([leg.least_s]), state[0][None].copy()
        make, seconds = self._flight(leg, state) if leg.kind == 'fly' else self._line(leg, state, turn)
        while True:
            ticks: Floats = np.linspace(0.0, seconds, 1 + max(2, round(seconds / _TABLE_S)), dtype=np.float64)
            rows = make(ticks / seconds, seconds)
            if seconds > 10.0 or self._kept(rows, ticks[1], state):
                return ticks[1:], rows[1:]
            seconds *= _STRETCH

    def _kept(self, rows: Floats, step: float, state: State) -> bool:
        """Whether speed and acceleration are kept; an arm under way may go on as fast as it is."""
        speed = np.abs(np.diff(rows, axis=0)) / step
        change = np.abs(np.diff(rows, n=2, axis=0)) / step**2
        fast = speed > np.maximum(self._pace * self._velocity, 1.05 * np.abs(state[1]))
        hard = change > np.maximum(_SHARE * self._acceleration, 1.05 * np.abs(state[2]))
        return not (fast.any() or hard.any())

    def _flight(self, leg: Leg, state: State) -> tuple[Shape, float]:
        """Through the joints, from the state it has to rest."""
        here = place(state[0]).position
        way = [here + (leg.tool - here) * share for share in (0.25, 0.5, 0.75, 1.0)]
        goal = solve(np.array(way), [downwards(leg.turn)] * len(way), state[0])[-1]

        def shape(shares: Floats, seconds: float) -> Floats:
            stretch = Plan(np.array([0.0, seconds]), quintic(state, goal, seconds)[None], math.inf)
            return stretch.state(shares * seconds)[0]

        return shape, leg.least_s

    def _line(self, leg: Leg, state: State, turn: float | None) -> tuple[Shape, float]:
        """Straight with the tool, from rest to rest, with the least jerk."""
        here = place(state[0]).position
        length = float(np.linalg.norm(leg.tool - here))
        shares = np.linspace(0.0, 1.0, 2 + math.ceil(length / _LINE_M))
        turns = leg.turn + (1.0 - shares) * (0.0 if turn is None else turn - leg.turn)
        tools = here + shares[:, None] * (leg.tool - here)
        rows = solve(tools, [downwards(angle) for angle in turns], state[0])
        rows[0] = state[0]
        spline = CubicSpline(shares, rows)

        def shape(u: Floats, _seconds: float) -> Floats:
            return np.asarray(spline(u**3 * (10 - 15 * u + 6 * u**2)))

        return shape, max(leg.least_s, _PEAK * length / leg.pace)


class Mistaken(Expert):
    """A scripted hand that does it to another object than it is asked to; the seed of the episode decides which."""

    def begin(self, episode: Episode) -> None:
        """A new episode."""
        others = [name for name in TASKS[episode.task].targets if name != episode.target]
        another = str(np.random.default_rng([episode.seed, 7]).choice(others))
        super().begin(replace(episode, target=another))


# What there is to be done, as legs, and how many of them lead to the object


def _legs_of_reach(episode: Episode, seen: Seen) -> tuple[list[Leg], int]:
    place_ = seen.objects[episode.target].position
    over = np.array([*place_[:2], TOPS[episode.target] + _HOVER_M])
    above = over + np.array([0.0, 0.0, _DESCENT_M])
    return [Leg('fly', above, 0.0, 0.8), Leg('line', over, 0.0, 0.5), Leg('wait', over, 0.0, 1.0)], 2


def _legs_of_lift(episode: Episode, seen: Seen) -> tuple[list[Leg], int]:
    pose, target = seen.objects[episode.target], episode.target
    turn = _turn_of(pose.quaternion) if target == 'red_cube' else 0.0
    at = np.array([*pose.position[:2], GRASP_M[target]])
    up = np.array([0.0, 0.0, 1.0])
    lifted = at + _LIFT_M * up
    if _in_hand(target, seen):
        turn = _turn_of_hand(place(seen.joints))
        return [Leg('line', lifted, turn, 0.8, 1.0), Leg('wait', lifted, turn, 0.8, 1.0)], 0
    return [
        Leg('fly', at + _ABOVE_M * up, turn, 0.8),
        Leg('line', at, turn, 0.7),
        Leg('wait', at, turn, _GRIP_S, 1.0),
        Leg('line', lifted, turn, 0.8, 1.0),
        Leg('wait', lifted, turn, 0.8, 1.0),
    ], 2


def _in_hand(target: str, seen: Seen) -> bool:
    """Whether the hand has the object and has begun to lift it: then it only has to go on."""
    where = seen.objects[target].position
    raised = where[2] > _HEIGHT[target] + _RAISED_M
    return bool(raised and np.linalg.norm(place(seen.joints).position - where) < _NEAR_M)


def _turn_of_hand(here: Placement) -> float:
    """Turn of a hand that points downwards about the vertical, rad; the opposite of :func:`downwards`."""
    turned = here.rotation @ DOWN.T
    return math.atan2(turned[1, 0], turned[0, 0])


def _turn_of(quaternion: Floats) -> float:
    """Turn of a cube about the vertical, rad; it has four sides, so the hand takes the nearest."""
    x, y, z, w = quaternion
    turn = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return (turn + math.pi / 4) % (math.pi / 2) - math.pi / 4


def _legs_of_place(episode: Episode, seen: Seen) -> tuple[list[Leg], int]:
    legs, touch = _legs_of_lift(episode, seen)
    bowl, turn = seen.objects[BOWL].position, legs[0].turn
    over = np.array([*bowl[:2], GRASP_M[episode.target] + _LIFT_M])
    low = np.array([*bowl[:2], GRASP_M[episode.target] + _RELEASE_M])
    return [
        *legs[:-1],
        Leg('fly', over, turn, 0.8, 1.0),
        Leg('line', low, turn, 0.7, 1.0),
        Leg('wait', low, turn, _RELEASE_S, 0.0),
        Leg('line', over, turn, 0.7),
    ], touch


def _legs_of_push(episode: Episode, seen: Seen) -> tuple[list[Leg], int]:
    target, goal = episode.target, np.array(episode.setting.zone or (0.5, 0.0))
    start = seen.objects[target].position[:2]
    way = goal - start
    ahead = way / max(float(np.linalg.norm(way)), 1e-6)
    turn = math.atan2(ahead[1], ahead[0])
    turn = (turn + math.pi / 2) % math.pi - math.pi / 2  # the hand is the same from both sides
    height = PUSH_M[target]

    def tool(place_: Floats, z: float) -> Floats:
        return np.array([*place_, z])

    behind = start - ahead * (_RADIUS[target] + _RUN_UP_M)
    end = goal - ahead * _AHEAD_M[target]
    back = end - ahead * 0.04
    return [
        Leg('fly', tool(behind, height + _ABOVE_M), turn, 0.8, _PUSH_GRIP),
        Leg('line', tool(behind, height), turn, 0.7, _PUSH_GRIP),
        Leg('line', tool(end, height), turn, 0.8, _PUSH_GRIP, _PUSH_PACE),
        Leg('wait', tool(end, height), turn, 0.2, _PUSH_GRIP),
        Leg('line', tool(back, height), turn, 0.5, _PUSH_GRIP),
        Leg('line', tool(back, _FREE_M), turn, 0.8, _PUSH_GRIP),
    ], 2


_LEGS: dict[str, Callable[[Episode, Seen], tuple[list[Leg], int]]] = {
    'reach': _legs_of_reach,
    'push': _legs_of_push,
    'lift': _legs_of_lift,
    'place': _legs_of_place,
}
