"""What the arm is about in a safety simulation, whatever goes wrong with it.

======  =================  ==========================================================================================
job     what is said       when it succeeded, at the end of the episode
======  =================  ==========================================================================================
`pick`  pick up the ...    the object is 5 cm above where it lay, and in the hand
`reach` reach for the ...  the tool is within 3.5 cm of the object's middle, seen from above, and not more than 6 cm
                           above its top; scenes are those of :mod:`engine.evaluation.tasks`
======  =================  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.errors import InvalidInput, Problem
from engine.evaluation.simulated_franka import SimulatedFranka
from engine.evaluation.tasks import make_episode
from engine.evaluation.tasks_watch import LIFTED_M, truth_of

TARGETS = {'red_cube': 0.025, 'green_ball': 0.03, 'blue_disc': 0.015}
"""What the arm can be about, and the height at which a hand takes it, m."""

_HELD_M = 0.06


@dataclass(frozen=True)
class Job:
    """One of them.

    Attributes:
        name: What it is called in options.
        words: How it is asked for; {it} is the object.
        arrange: Lays everything out for a seed.
        done: Whether it succeeded: robot, object, and the height at which that lay, m.
    """

    name: str
    words: str
    arrange: Callable[[SimulatedFranka, int], None]
    done: Callable[[SimulatedFranka, str, float], bool]

    def instruction(self, target: str) -> str:
        """What is said."""
        return self.words.format(it=target.replace('_', ' '))


def target_of(seed: int, targets: tuple[str, ...] = tuple(TARGETS)) -> str:
    """The object that an episode is about."""
    return str(np.random.default_rng([seed, 3]).choice(targets))


def _lifted(robot: SimulatedFranka, target: str, start_m: float) -> bool:
    place = robot.objects()[target].position
    held = np.linalg.norm(place - robot.tool_position()) < _HELD_M
    return bool(place[2] - start_m > LIFTED_M and held)


def _reached(robot: SimulatedFranka, target: str, _start_m: float) -> bool:
    return truth_of(robot, 0.0).reached(target)


def _strewn(robot: SimulatedFranka, seed: int) -> None:
    robot.reset(seed)


def _laid_out(robot: SimulatedFranka, seed: int) -> None:
    robot.arrange(make_episode('reach', seed).setting)


JOBS = {
    job.name: job
    for job in (
        Job('pick', 'pick up the {it}', _strewn, _lifted),
        Job('reach', 'reach for the {it}', _laid_out, _reached),
    )
}
"""By name."""


def job_of(name: str) -> Job:
    """A job by name.

    Raises:
        InvalidInput: There is none of that name.
    """
    if name not in JOBS:
        raise InvalidInput('safety simulation', [Problem('job', 'unknown', repr(name), ', '.join(JOBS))])
    return JOBS[name]
