"""Watches an episode in the simulator: what was done when, what was done wrongly, and when it had succeeded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.evaluation import franka_scene as scene
from engine.evaluation.simulated_franka import Pose, SimulatedFranka
from engine.evaluation.tasks import BOWL, TOPS, Episode

Floats = NDArray[np.float64]

HOLD_S = 0.5
"""How long something must hold without a break to count, s."""

REACH_M = 0.035
REACH_ABOVE_M = 0.06
LIFTED_M = 0.05
CARRIED_M = 0.03
MOVED_M = 0.02
IN_ZONE_M = 0.05
IN_BOWL_M = 0.045
IN_BOWL_HEIGHT_M = 0.07
REST_M_S = 0.03
UPRIGHT_RAD = 0.5

_PACE_S = 0.05  # over which velocities of objects are measured


@dataclass(frozen=True, eq=False)
class Truth:
    """What the simulator says of one instant.

    Attributes:
        time_s: Since the episode began.
        tool: [3] m, the point between the finger tips.
        objects: Pose of each loose object.
        contacts: Bodies of the arm, and what they touch.
    """

    time_s: float
    tool: Floats
    objects: Mapping[str, Pose]
    contacts: frozenset[tuple[str, str]]

    def grasped(self, name: str) -> bool:
        """Whether both fingers touch an object."""
        return {('panda_finger1', name), ('panda_finger2', name)} <= self.contacts

    def reached(self, name: str) -> bool:
        """Whether the tool is above an object, or about it."""
        place = self.objects[name].position
        top = place[2] - _REST[name] + TOPS[name]
        return bool(np.hypot(*(self.tool - place)[:2]) <= REACH_M and self.tool[2] <= top + REACH_ABOVE_M)


_REST = {thing.name: thing.height for thing in scene.OBJECTS}


def truth_of(robot: SimulatedFranka, time_s: float) -> Truth:
    """What there is to be known of a simulated robot now."""
    return Truth(time_s, robot.tool_position(), robot.objects(), robot.contacts())


@dataclass(frozen=True)
class Findings:
    """What came of an episode. Times are seconds since it began.

    Attributes:
        success: Whether the task was done.
        success_s: Since when it was.
        milestones: When each of the task's milestones was first seen.
        progress: Share of the milestones that were seen.
        reached: Objects above which the hand stayed, in order, with the time from which on.
        wrong: What was done to other objects than those that the task is about: when, what, and how: 'reached', 'moved'
            or 'grasped'.
        table_contacts: How often the arm came to touch the table.
        table_s: How long it touched it altogether.
        path_m: Length of the way of the tool.
        top_speed: Of the tool, m/s.
    """

    success: bool
    success_s: float | None
    milestones: Mapping[str, float]
    progress: float
    reached: tuple[tuple[float, str], ...]
    wrong: tuple[tuple[float, str, str], ...]
    table_contacts: int
    table_s: float
    path_m: float
    top_speed: float


class Watch:
    """Looks at one episode, instant after instant."""

    def __init__(self, episode: Episode, first: Truth) -> None:
        """Begin.

        Args:
            episode: Which one.
            first: How it began.
        """
        self._episode, self._first, self._last = episode, first, first
        self._milestones: dict[str, float] = {}
        self._since: dict[str, float] = {}
        self._reached: dict[str, float] = {}
        self._wrong: dict[tuple[str, str], float] = {}
        self._carried = False
        self._speeds = dict.fromkeys(first.objects, 0.0)
        self._measured = first
        self._table_contacts, self._table_s, self._path_m, self._top = 0, 0.0, 0.0, 0.0
        self._success_s: float | None = None
        self._look_at_milestones(first)

    @property
    def done(self) -> bool:
        """Whether the task is done, and has been for as long as it takes."""
        return self._success_s is not None

    def look(self, now: Truth) -> None:
        """Take in the next instant."""
        self._measure(now)
        self._look_at_arm(now)
        self._look_at_milestones(now)
        self._look_at_others(now)
        self._last = now

    def findings(self) -> Findings:
        """What was found so far."""
        order = self._episode.terms.milestones
        return Findings(
            self.done,
            self._success_s,
            {name: self._milestones[name] for name in order if name in self._milestones},
            1.0 if self.done else min(len(self._milestones), len(order) - 1) / len(order),
            tuple(sorted((when, name) for name, when in self._reached.items())),
            tuple(sorted((when, name, how) for (name, how), when in self._wrong.items())),
            self._table_contacts,
            round(self._table_s, 6),
            self._path_m,
            self._top,
        )

    # Parts

    def _measure(self, now: Truth) -> None:
        """Speeds of the objects, from where they were a moment ago."""
        passed = now.time_s - self._measured.time_s
        if passed < _PACE_S - 1e-9:
            return
        for name, pose in now.objects.items():
            way = np.linalg.norm(pose.position - self._measured.objects[name].position)
            self._speeds[name] = float(way) / passed
        self._measured = now

    def _look_at_arm(self, now: Truth) -> None:
        passed = now.time_s - self._last.time_s
        step = float(np.linalg.norm(now.tool - self._last.tool))
        self._path_m += step
        self._top = max(self._top, step / passed if passed > 0 else 0.0)
        if any(what == 'table' for _, what in now.contacts):
            self._table_s += passed
            self._table_contacts += not any(what == 'table' for _, what in self._last.contacts)

    def _held(self, what: str, now: Truth, holds: bool) -> float | None:
        """Since when something holds, if that is long enough."""
        if not holds:
            self._since.pop(what, None)
            return None
        since = self._since.setdefault(what, now.time_s)
        return since if now.time_s - since >= HOLD_S - 1e-9 else None

    def _look_at_milestones(self, now: Truth) -> None:
        """Milestones count in any order but the last one, which is success and has to hold."""
        target = self._episode.target
        self._carried |= self._height(now, target) > CARRIED_M
        *before, last = self._episode.terms.milestones
        for name in before:
            if name not in self._milestones and _MILESTONES[name](self, now):
                self._milestones[name] = now.time_s
        since = self._held(last, now, _MILESTONES[last](self, now))
        if since is not None and self._success_s is None:
            self._milestones[last] = self._success_s = since

    def _look_at_others(self, now: Truth) -> None:
        spared = {self._episode.target} | ({BOWL} if self._episode.task == 'place' else set())
        for name, pose in now.objects.items():
            if (since := self._held(f'reached {name}', now, now.reached(name))) is not None:
                self._reached.setdefault(name, since)
            if name in spared:
                continue
            moved = np.linalg.norm(pose.position - self._first.objects[name].position) > MOVED_M
            for how, found in (('reached', name in self._reached), ('moved', moved), ('grasped', now.grasped(name))):
                if found:
                    self._wrong.setdefault((name, how), self._reached[name] if how == 'reached' else now.time_s)

    def _height(self, now: Truth, name: str) -> float:
        """How far an object is above where it lay at the beginning, m."""
        return float(now.objects[name].position[2] - self._first.objects[name].position[2])

    def _to_zone(self, now: Truth) -> float:
        """Distance of the object from the middle of the mark, m."""
        zone = self._episode.setting.zone or (np.inf, np.inf)
        return float(np.hypot(*(now.objects[self._episode.target].position[:2] - zone)))

    # Milestones

    def _was_reached(self, now: Truth) -> bool:
        return now.reached(self._episode.target)

    def _was_touched(self, now: Truth) -> bool:
        return any(what == self._episode.target for _, what in now.contacts)

    def _was_moved(self, now: Truth) -> bool:
        target = self._episode.target
        way = now.objects[target].position - self._first.objects[target].position
        return float(np.linalg.norm(way)) > MOVED_M

    def _was_grasped(self, now: Truth) -> bool:
        return now.grasped(self._episode.target)

    def _was_lifted(self, now: Truth) -> bool:
        return self._height(now, self._episode.target) > LIFTED_M and now.grasped(self._episode.target)

    def _is_halfway(self, now: Truth) -> bool:
        return self._to_zone(now) < self._to_zone(self._first) / 2 and not self._carried

    def _is_in_zone(self, now: Truth) -> bool:
        slow = self._speeds[self._episode.target] < REST_M_S
        return self._to_zone(now) <= IN_ZONE_M and slow and not self._carried

    def _above_bowl(self, now: Truth) -> float:
        """Distance of the object from the middle of the bowl, seen from above, m."""
        thing, bowl = now.objects[self._episode.target], now.objects[BOWL]
        return float(np.hypot(*(thing.position - bowl.position)[:2]))

    def _is_above_bowl(self, now: Truth) -> bool:
        return self._above_bowl(now) < IN_BOWL_M and self._was_lifted(now)

    def _is_in_bowl(self, now: Truth) -> bool:
        target = self._episode.target
        x, y, _, _ = now.objects[BOWL].quaternion
        upright = 1 - 2 * (x * x + y * y) > math.cos(UPRIGHT_RAD)
        free = not any(what == target and 'finger' in body for body, what in now.contacts)
        low = now.objects[target].position[2] < IN_BOWL_HEIGHT_M
        slow = self._speeds[target] < REST_M_S
        return bool(self._above_bowl(now) < IN_BOWL_M and low and slow and upright and free)


_MILESTONES: dict[str, Callable[[Watch, Truth], bool]] = {
    'reached': Watch._was_reached,
    'touched': Watch._was_touched,
    'moved': Watch._was_moved,
    'halfway': Watch._is_halfway,
    'in the circle': Watch._is_in_zone,
    'grasped': Watch._was_grasped,
    'lifted': Watch._was_lifted,
    'above the bowl': Watch._is_above_bowl,
    'in the bowl': Watch._is_in_bowl,
}
