"""Displaces the arm of a demonstration now and then, so that the hand shows how it goes on from where it never planned.

At a moment that the seed decides, the chunks lead away from the plan: smoothly, to rest at joints some way off, within
limits and well above the table. Then the hand looks again and plans from there. The displacement itself is nothing to
learn; its rows are known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.guard.limits import RobotLimits
from engine.contract import TimingTerms
from engine.evaluation.closed_loop import NS, LoopTerms
from engine.evaluation.expert import Expert
from engine.evaluation.expert_kinematics import place
from engine.evaluation.expert_paths import Plan, Rows, Seen, quintic
from engine.evaluation.tasks import Episode

Floats = NDArray[np.float64]

FARTHEST_RAD = 0.15
"""Largest turn of a joint by one disturbance."""

INSTANT_S = 0.011
"""More than a control period, by which observations come early or late."""

_SECONDS = (0.25, 0.5)  # how long one lasts, to whole observations; a faster arm needs the longer one to brake
_SHARE = 0.6  # of the accelerations that the displacement may take, and 0.9 of them with the motion it breaks off
_KEPT = 0.9
_LOW_M, _ABOVE_M = 0.05, 0.075  # where the tool must begin and end, so that no finger comes down on what lies there
_SINK_M = 0.003
_MARGIN_RAD = 0.1  # to the ends of every joint
_EARLY, _LATE = 0.05, 0.85  # of the planned time, when one may happen; the rest is for the goal
_SECOND = 0.4  # share of the disturbed episodes that have a second one
_TRIES = 40  # at each observation; if all are out of bounds, the next one will do
_PEAK = 10 / math.sqrt(3)  # highest acceleration of a motion of least jerk, as a multiple of way / time²


@dataclass(frozen=True, eq=False)
class _Displacement:
    """One that is under way: from `begin_s`, on the clock of the stamps."""

    begin_s: float
    path: Plan

    @property
    def end_s(self) -> float:
        """When the arm is at rest somewhere else."""
        return self.begin_s + self.path.end_s

    def at(self, times: Floats) -> Floats:
        """Joints [N, J] at times [N] of that clock."""
        return self.path.state(times - self.begin_s)[0]


class Disturbed:
    """A scripted hand that is pushed in some of its episodes; an :class:`~engine.evaluation.closed_loop.Actor`."""

    sees = False
    """It needs no pictures."""

    def __init__(self, expert: Expert, limits: RobotLimits, timing: TimingTerms, loop: LoopTerms, share: float) -> None:
        """Take a hand.

        Args:
            expert: The hand.
            limits: Of the robot.
            timing: Of the contract.
            loop: How the loop is closed.
            share: Of the episodes that are disturbed, 0 to 1.
        """
        self._expert, self._limits, self._share = expert, limits, share
        self._step_s, self._rows = 1.0 / timing.fps, timing.chunk_rows
        self._every_s, self._delay_s = loop.replan_rows * self._step_s, loop.latency_s
        self.spans: list[tuple[int, int]] = []
        """Of this episode: beginning and end of every displacement, ns on the clock of the stamps."""

    def begin(self, episode: Episode) -> None:
        """The seed decides whether, how often, and at which share of the plan."""
        self._expert.begin(episode)
        self._rng = np.random.default_rng([episode.seed, 5])
        pushed, twice = self._rng.uniform(size=2)
        self._left = 0 if pushed >= self._share else 2 if twice < _SECOND else 1
        self._due_s: float | None = None
        self._away: _Displacement | None = None
        self._grip = 0.0
        self.spans = []

    def act(self, seen: Seen) -> Rows:
        """The next chunk: the hand's own, or away from it."""
        now = seen.stamp_ns * 1e-9
        if self._away is not None and now >= self._away.end_s - INSTANT_S:
            self.spans[-1] = self.spans[-1][0], round((now + self._delay_s) * NS)
            self._away = self._due_s = None
            self._expert.look_again()
        if self._away is None:
            own = self._expert.act(seen)
            if self._due_s is None:
                self._due_s = self._moment(now) if self._left else math.inf
            self._away = self._push(now + self._delay_s) if now >= self._due_s else None
            if self._away is None:
                return own
            self._grip = float(own.grippers[0])
        times = now + self._step_s * np.arange(1, self._rows + 1, dtype=np.float64)
        return Rows(self._away.at(times), np.full(self._rows, self._grip))

    def _moment(self, now: float) -> float:
        """A time within the plan at which the hand is not down at the table."""
        for _ in range(_TRIES):
            time_s = now + float(self._rng.uniform(_EARLY, _LATE)) * (self._expert.end_s - now)
            if place(self._expert.moving(time_s)[0]).position[2] >= _LOW_M:
                break
        return time_s

    def _push(self, begin_s: float) -> _Displacement | None:
        """A displacement from a time on, if one was found that may be."""
        state = self._expert.moving(begin_s)
        if place(state[0]).position[2] < _LOW_M:
            return None
        for _ in range(_TRIES):
            seconds = math.ceil(self._rng.choice(_SECONDS) / self._every_s - 0.1) * self._every_s
            most = np.minimum(FARTHEST_RAD, _SHARE * self._limits.acceleration * seconds**2 / _PEAK)
            goal = state[0] + state[1] * seconds / 2 + self._rng.uniform(-most, most)
            path = Plan(np.array([0.0, seconds]), quintic(state, goal, seconds)[None], math.inf)
            if self._may_be(path):
                self._left, self._due_s = self._left - 1, math.inf
                self.spans.append((round(begin_s * NS), round((begin_s + seconds) * NS)))
                return _Displacement(begin_s, path)
        return None

    def _may_be(self, path: Plan) -> bool:
        """Whether it keeps to the limits of the joints, and well above the table."""
        limits = self._limits
        times: Floats = np.linspace(0.0, path.end_s, 13, dtype=np.float64)
        positions, velocities, accelerations = path.state(times)
        inside = (positions > limits.lower + _MARGIN_RAD) & (positions < limits.upper - _MARGIN_RAD)
        slow = (np.abs(velocities) < _KEPT * limits.velocity) & (np.abs(accelerations) < _KEPT * limits.acceleration)
        if not (inside.all() and slow.all()):
            return False
        heights = np.array([place(row).position[2] for row in positions[::3]])
        return bool(heights[-1] >= _ABOVE_M and heights.min() >= min(heights[0], _ABOVE_M) - _SINK_M)
