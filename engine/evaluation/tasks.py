"""What a simulated Franka is asked to do: four tasks, their scenes, and who is to say whether one is done.

An episode is a task and a seed, and nothing else decides what lies where, which object is named and in which words, or
where the arm begins. Whether it succeeds is read from the simulator, never from pictures.

=========  =======================================  ==================================================================
task       what is asked for                        when it is done (for half a second without a break)
=========  =======================================  ==================================================================
`reach`    the hand above the named object          the tool is within 3.5 cm of its middle, seen from above, and not
                                                    more than 6 cm above its top
`push`     the named object on the purple circle    its middle is within 5 cm of the circle's, it lies on the table, at
                                                    rest, and was never carried
`lift`     the named object in the hand, lifted     it is 5 cm above where it lay, and both fingers touch it
`place`    the named object in the bowl             its middle is above the bowl's floor, below 7 cm, at rest, no finger
                                                    touches it, and the bowl stands upright
=========  =======================================  ==================================================================
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidInput, Problem
from engine.evaluation import franka_scene as scene

Floats = NDArray[np.float64]
Places = dict[str, tuple[float, float, float]]

BOWL = 'yellow_bowl'
GRASPABLE = ('red_cube', 'blue_disc', 'green_ball')
PUSHABLE = ('red_cube', 'blue_disc')  # a finger that pushes a ball climbs onto it
NAMES = {
    'red_cube': ('red cube', 'red block'),
    'blue_disc': ('blue disc', 'blue puck'),
    'green_ball': ('green ball', 'green sphere'),
    BOWL: ('yellow bowl', 'yellow dish'),
}
"""What each object is called."""

TOPS = {'red_cube': 0.05, 'blue_disc': 0.025, 'green_ball': 0.06, BOWL: 0.034}
"""Height of the top of each object that lies on the table, m."""

_RADIUS = {thing.name: thing.radius for thing in scene.OBJECTS}
# Where things may lie at the start, m: within reach and in sight.
_X, _Y = (0.36, 0.62), (-0.26, 0.26)
_APART_M = 0.05  # between any two: an open hand goes in between
_PUSH_M = (0.12, 0.22)  # from an object to the circle
_RUN_UP_M = 0.06  # behind an object that is to be pushed
_BESIDE_M = 0.08  # between the way of a push and whatever else lies there
_NEAREST_M = 0.32  # where the hand is too near to the shoulder to go down
_ATTEMPTS = 2000


@dataclass(frozen=True)
class Task:
    """One kind of episode.

    Attributes:
        name: What it is called.
        wordings: Ways to ask for it; {it} is the object.
        targets: Objects that it can be about.
        horizon_s: When an episode ends at the latest, s.
        milestones: What has to happen, in order; the last is success.
    """

    name: str
    wordings: tuple[str, ...]
    targets: tuple[str, ...]
    horizon_s: float
    milestones: tuple[str, ...]


TASKS = {
    task.name: task
    for task in (
        Task(
            'reach',
            (
                'reach for the {it}',
                'move the hand to the {it}',
                'go to the {it}',
                'bring the gripper above the {it}',
                'hover over the {it}',
            ),
            (*GRASPABLE, BOWL),
            8.0,
            ('reached',),
        ),
        Task(
            'push',
            (
                'push the {it} onto the purple circle',
                'slide the {it} to the purple circle',
                'move the {it} onto the purple circle without lifting it',
                'shove the {it} onto the purple spot',
                'get the {it} to the purple circle by pushing',
            ),
            PUSHABLE,
            25.0,
            ('touched', 'moved', 'halfway', 'in the circle'),
        ),
        Task(
            'lift',
            (
                'pick up the {it}',
                'lift the {it}',
                'grasp the {it} and raise it',
                'take the {it} off the table',
                'hold up the {it}',
            ),
            GRASPABLE,
            20.0,
            ('reached', 'grasped', 'lifted'),
        ),
        Task(
            'place',
            (
                'put the {it} in the bowl',
                'place the {it} in the yellow bowl',
                'drop the {it} into the bowl',
                'pick up the {it} and put it in the bowl',
                'move the {it} into the yellow bowl',
            ),
            GRASPABLE,
            30.0,
            ('reached', 'grasped', 'lifted', 'above the bowl', 'in the bowl'),
        ),
    )
}
"""By name."""


@dataclass(frozen=True)
class Jitter:
    """How much the beginnings of episodes differ beside what lies where.

    Attributes:
        start_rad: Largest turn of every joint away from the start pose.
        light: Largest share by which lamps are brighter or darker.
        camera_m: Largest shift of every camera along each of its axes.
        camera_rad: Largest turn of every camera about each of its axes.
    """

    start_rad: float = 0.05
    light: float = 0.0
    camera_m: float = 0.0
    camera_rad: float = 0.0


@dataclass(frozen=True)
class Episode:
    """One episode that is to be run.

    Attributes:
        task: Name of its task.
        seed: Decides all that follows.
        target: The object that it is about.
        instruction: What is asked for.
        setting: How the scene is at the beginning.
    """

    task: str
    seed: int
    target: str
    instruction: str
    setting: scene.Setting

    @property
    def key(self) -> tuple[str, int]:
        """Task and seed."""
        return self.task, self.seed

    @property
    def terms(self) -> Task:
        """The task."""
        return TASKS[self.task]


def check_tasks(names: Sequence[str]) -> None:
    """Do nothing if there are such tasks.

    Raises:
        InvalidInput: Lists those that are not there.
    """
    if unknown := [Problem('task', 'unknown', repr(name), ', '.join(TASKS)) for name in names if name not in TASKS]:
        raise InvalidInput('tasks', unknown)


def wordings(task: str, target: str) -> tuple[str, ...]:
    """Every way to ask for a task with an object."""
    return tuple(words.format(it=name) for words in TASKS[task].wordings for name in NAMES[target])


def make_episode(task: str, seed: int, jitter: Jitter | None = None, share_scene: int = 1) -> Episode:
    """The episode of a task and a seed.

    Args:
        task: Name of the task.
        seed: Not negative.
        jitter: What differs beside the objects. More of one kind of jitter changes nothing else.
        share_scene: So many seeds, from a multiple of it on, begin alike to the last pixel and are about the targets of
            the task in turn: nothing but what is asked for tells them apart. Not for `push`, whose scenes are laid out
            around what is pushed.

    Raises:
        InvalidInput: There is no such task, or its scenes cannot be shared by so many.
    """
    check_tasks([task])
    if share_scene < 1 or (share_scene > 1 and task == 'push'):
        allowed = '1, for a push is laid out around what is pushed' if task == 'push' else '1 or more'
        raise InvalidInput('episode', [Problem('share_scene', 'out of range', str(share_scene), allowed)])
    jitter = jitter or Jitter()
    # Each part has a stream of its own, so that one can be changed without the others.
    kind, turn = zlib.crc32(task.encode()), seed % share_scene
    # Words are drawn for each seed, all else for the first of those that share it.
    streams = [np.random.default_rng([seed if part == 1 else seed - turn, kind, part]) for part in range(4)]
    targets = TASKS[task].targets
    target = str(targets[(targets.index(str(streams[0].choice(targets))) + turn) % len(targets)])
    instruction = str(streams[1].choice(wordings(task, target)))
    places, zone = _arrangement(task, target, streams[0])
    joints = np.array(scene.HOME) + streams[2].uniform(-1, 1, len(scene.HOME)) * jitter.start_rad
    light = 1.0 + streams[3].uniform(-1, 1, 3) * jitter.light
    shifts = streams[3].uniform(-1, 1, (len(scene.CAMERAS), 2, 3))
    shifts *= np.array([[jitter.camera_m], [jitter.camera_rad]])
    cameras = {name: (_triple(shift[0]), _triple(shift[1])) for name, shift in zip(scene.CAMERAS, shifts, strict=True)}
    setting = scene.Setting(tuple(map(float, joints)), places, zone, _triple(light), cameras)
    return Episode(task, seed, target, instruction, setting)


def _triple(values: Floats) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _arrangement(task: str, target: str, rng: np.random.Generator) -> tuple[Places, tuple[float, float] | None]:
    """Where everything lies; arrangements in which something has no room are thrown away."""
    while True:
        places: Places = {}
        zone = None
        if task == 'push':
            places[target] = _somewhere(rng)
            zone = _zone_for(target, places[target], rng)
            if zone is None:
                continue
        way = _way(target, places, zone)
        # The largest first: whatever it takes, room for the smaller ones is left.
        others = sorted((name for name in _RADIUS if name not in places), key=lambda name: -_RADIUS[name])
        if all(_add(name, places, way, rng) for name in others):
            return places, zone


def _somewhere(rng: np.random.Generator) -> tuple[float, float, float]:
    return float(rng.uniform(*_X)), float(rng.uniform(*_Y)), float(rng.uniform(-math.pi, math.pi))


def _zone_for(target: str, place: tuple[float, float, float], rng: np.random.Generator) -> tuple[float, float] | None:
    """A place for the circle to which an object can be pushed from where it lies; None if none was found."""
    for _ in range(_ATTEMPTS):
        way, angle = rng.uniform(*_PUSH_M), rng.uniform(-math.pi, math.pi)
        x, y = place[0] + way * math.cos(angle), place[1] + way * math.sin(angle)
        behind = place[0] - (_RADIUS[target] + _RUN_UP_M) * math.cos(angle)
        if _X[0] <= x <= _X[1] and _Y[0] <= y <= _Y[1] and behind >= _NEAREST_M:
            return float(x), float(y)
    return None


def _way(target: str, places: Places, zone: tuple[float, float] | None) -> Floats:
    """Points [N, 2] over which a push leads, the hand behind the object included; none without a circle."""
    if zone is None:
        return np.empty((0, 2))
    start, goal = np.array(places[target][:2]), np.array(zone)
    ahead = (goal - start) / np.linalg.norm(goal - start)
    behind = start - ahead * (_RADIUS[target] + _RUN_UP_M)
    return np.asarray(np.linspace(behind, goal, 16))


def _add(name: str, places: Places, way: Floats, rng: np.random.Generator) -> bool:
    """Whether there was room for one more thing, which lies there now."""
    radius = _RADIUS[name]
    for _ in range(_ATTEMPTS):
        x, y, turn = _somewhere(rng)
        free = all(math.hypot(x - u, y - v) > radius + _RADIUS[other] + _APART_M for other, (u, v, _) in places.items())
        if free and (not len(way) or np.hypot(*(way - (x, y)).T).min() > radius + _BESIDE_M):
            places[name] = (x, y, turn)
            return True
    return False
