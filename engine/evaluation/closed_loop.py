"""One episode in closed loop: what is seen goes to an actor, its chunks to a guarded robot, and a watch says what came.

    every few rows: seen --> actor --> rows --(latency)--> guard --> arm     the watch looks at every control period

Where this happens is a :class:`World`, so that the same loop drives a robot in this process or another one. Who runs
whole episodes is a :class:`Runner`; a runner that hands them to a robot elsewhere, with a policy of its own, only has
to make the same records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from engine.evaluation import franka_scene as scene
from engine.evaluation.expert_paths import Rows, Seen
from engine.evaluation.tasks import Episode
from engine.evaluation.tasks_watch import Truth, Watch

if TYPE_CHECKING:
    from engine.policy_observation import Observation, PolicyChunk

Floats = NDArray[np.float64]

NS = 1_000_000_000


class World(Protocol):
    """A robot that obeys chunks, with something to be seen, in its own time."""

    step_ns: int
    """Time from row to row."""

    refusals: list[tuple[float, str]]
    """When a chunk was refused or the motion stopped, s since the episode began, and why."""

    @property
    def now_ns(self) -> int:
        """Time on the clock of the stamps."""

    @property
    def now_s(self) -> float:
        """Seconds since the episode began."""

    def begin(self, episode: Episode) -> None:
        """Lay everything out anew and come to rest."""

    def seen(self, with_pictures: bool) -> Seen:
        """What is to be seen now."""

    def truth(self) -> Truth:
        """What the simulator says of this instant."""

    def until(self, time_ns: int, each: Callable[[], bool]) -> bool:
        """Let time pass, calling `each` after every control period; whether it said that this is the end."""

    def offer(self, stamp_ns: int, rows: Rows) -> str:
        """Hand over a chunk made from an observation at `stamp_ns`: 'ACCEPTED', or why not."""


class Actor(Protocol):
    """Whatever makes chunks."""

    sees: bool
    """Whether it needs pictures."""

    def begin(self, episode: Episode) -> None:
        """A new episode begins."""

    def act(self, seen: Seen) -> Rows:
        """The next chunk."""


@dataclass(frozen=True)
class LoopTerms:
    """How the loop is closed.

    Attributes:
        replan_rows: Rows from one observation to the next.
        latency_s: From an observation to the arrival of its chunk; it passes in simulated time.
    """

    replan_rows: int = 8
    latency_s: float = 0.2


@dataclass(frozen=True)
class EpisodeRecord:
    """What came of an episode, in plain values. Times are seconds since it began.

    Attributes:
        task: Its task.
        seed: Its seed.
        target: The object that it is about.
        instruction: What was asked for.
        success: Whether the task was done.
        success_s: Since when it was.
        progress: Share of the task's milestones that were seen.
        milestones: When each was first seen.
        reached: Objects above which the hand stayed, in order, with the time from which on.
        wrong: What was done to other objects: when, what, how.
        table_contacts: How often the arm came to touch the table.
        table_s: How long it touched it.
        path_m: Length of the way of the tool.
        top_speed: Of the tool, m/s.
        duration_s: How long the episode was.
        chunks: How many chunks were made.
        refusals: When a chunk was refused or the motion stopped, and why.
        act_s: What a chunk took to make, on average, on the machine's clock. All else follows from task and seed.
    """

    task: str
    seed: int
    target: str
    instruction: str
    success: bool
    success_s: float | None
    progress: float
    milestones: Mapping[str, float]
    reached: tuple[tuple[float, str], ...]
    wrong: tuple[tuple[float, str, str], ...]
    table_contacts: int
    table_s: float
    path_m: float
    top_speed: float
    duration_s: float
    chunks: int
    refusals: tuple[tuple[float, str], ...] = ()
    act_s: float = field(default=0.0, compare=False)

    @property
    def key(self) -> tuple[str, int]:
        """Task and seed."""
        return self.task, self.seed

    def document(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def from_document(cls, found: Mapping[str, Any]) -> Self:
        """Back from JSON."""
        lists = {name: tuple(tuple(one) for one in found[name]) for name in ('reached', 'wrong', 'refusals')}
        return cls(**{**found, **lists})


class Runner(Protocol):
    """Runs whole episodes, wherever."""

    def run(self, episode: Episode, camera: Camera | None = None) -> EpisodeRecord:
        """Run one; the camera is called after every control period."""

    def close(self) -> None:
        """Free what it holds."""


Camera = Callable[[World], None]


def play(
    world: World,
    actor: Actor,
    episode: Episode,
    terms: LoopTerms,
    camera: Camera | None = None,
    linger_s: float = 0.0,
) -> EpisodeRecord:
    """Run one episode, up to success or to the end of its time.

    Args:
        world: Where.
        actor: Who makes the chunks.
        episode: Which one.
        terms: How the loop is closed.
        camera: Called at the beginning and after every control period.
        linger_s: How long it goes on after success.
    """
    world.begin(episode)
    actor.begin(episode)
    watch = Watch(episode, world.truth())
    done_ns: list[int] = []

    def look() -> bool:
        watch.look(world.truth())
        if camera is not None:
            camera(world)
        if watch.done and not done_ns:
            done_ns.append(world.now_ns)
        return bool(done_ns) and world.now_ns >= done_ns[0] + round(linger_s * NS)

    if camera is not None:
        camera(world)
    every, latency = world.step_ns * terms.replan_rows, round(terms.latency_s * NS)
    due = world.now_ns
    end = due + round(episode.terms.horizon_s * NS)
    chunks, spent = 0, 0.0
    while not world.until(min(due, end), look) and world.now_ns < end:
        seen, started = world.seen(actor.sees), time.perf_counter()
        rows = actor.act(seen)
        chunks, spent = chunks + 1, spent + time.perf_counter() - started
        if world.until(min(seen.stamp_ns + latency, end), look):
            break
        world.offer(seen.stamp_ns, rows)
        due = max(due + every, world.now_ns)
    return record_of(episode, watch, world, chunks, spent)


def record_of(episode: Episode, watch: Watch, world: World, chunks: int, spent: float) -> EpisodeRecord:
    """What came of an episode that is over.

    Args:
        episode: Which one.
        watch: That looked at it.
        world: Where it was.
        chunks: How many were made.
        spent: Seconds that they took together.
    """
    found = watch.findings()
    return EpisodeRecord(
        episode.task,
        episode.seed,
        episode.target,
        episode.instruction,
        found.success,
        found.success_s,
        found.progress,
        found.milestones,
        found.reached,
        found.wrong,
        found.table_contacts,
        found.table_s,
        found.path_m,
        found.top_speed,
        world.now_s,
        chunks,
        tuple(world.refusals),
        spent / max(1, chunks),
    )


# Actors


class Hold:
    """Stays where it is."""

    sees = False

    def __init__(self, chunk_rows: int) -> None:
        self._rows = chunk_rows

    def begin(self, _episode: Episode) -> None:
        """Nothing to prepare."""

    def act(self, seen: Seen) -> Rows:
        """The measured joints, again and again."""
        return Rows(np.tile(seen.joints, (self._rows, 1)), np.full(self._rows, seen.gripper))


class RandomWalk:
    """Goes somewhere, smoothly, and somewhere else with the next chunk."""

    sees = False
    _SHARE = 0.15  # of the velocity limits
    _EASE_ROWS = 4.0

    def __init__(self, step_s: float, chunk_rows: int) -> None:
        self._step_s, self._rows = step_s, chunk_rows

    def begin(self, episode: Episode) -> None:
        """The seed of the episode decides the way."""
        self._rng = np.random.default_rng([episode.seed, 4])

    def act(self, seen: Seen) -> Rows:
        """Away from where the arm is, at a speed that chance decides."""
        limits = np.array([joint.velocity for joint in scene.ARM])
        speed = self._rng.uniform(-1, 1, len(limits)) * self._SHARE * limits
        k = np.arange(1, self._rows + 1, dtype=np.float64)
        eased = k - self._EASE_ROWS * (1 - np.exp(-k / self._EASE_ROWS))
        positions = seen.joints + self._step_s * eased[:, None] * speed
        lower, upper = (np.array([getattr(joint, end) for joint in scene.ARM]) for end in ('lower', 'upper'))
        grip = float(self._rng.integers(2))
        return Rows(np.clip(positions, lower + 0.1, upper - 0.1), np.full(self._rows, grip))


class Infers(Protocol):
    """A policy surface, of a checkpoint or of a server."""

    def infer(self, observation: Observation, seed: int) -> PolicyChunk:
        """One chunk of actions."""


class PolicyActor:
    """The policy surface of a checkpoint, or of a server."""

    sees = True

    def __init__(self, policy: Infers, joints: int) -> None:
        """Take a policy.

        Args:
            policy: Of a contract for one arm, in absolute joint positions.
            joints: How many columns of its rows are joints; the next one is the gripper.
        """
        self._policy, self._joints = policy, joints

    def begin(self, episode: Episode) -> None:
        """The seed of the episode decides the noise."""
        self._episode, self._count = episode, 0

    def act(self, seen: Seen) -> Rows:
        """What the policy makes of what is seen."""
        from engine.policy_observation import Observation

        observation = Observation(seen.views, self._episode.instruction, seen.joints, seen.gripper)
        seed = int(np.random.SeedSequence([self._episode.seed, self._count]).generate_state(1)[0]) % 2**31
        self._count += 1
        actions = self._policy.infer(observation, seed).actions.astype(np.float64)
        return Rows(actions[:, : self._joints], np.clip(actions[:, self._joints], 0.0, 1.0))
