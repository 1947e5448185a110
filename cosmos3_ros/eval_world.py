"""The world of closed-loop episodes in this process: the guarded robot, its scene, and whoever makes chunks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guarded_robot import GuardedRobot
from cosmos3_ros.processor import keep_freed_memory
from cosmos3_ros.safety_expert import check_arm
from engine.contract import Contract, load_contract
from engine.evaluation.closed_loop import Actor, Camera, EpisodeRecord, Hold, LoopTerms, PolicyActor, RandomWalk, play
from engine.evaluation.expert import Expert, Mistaken
from engine.evaluation.simulated_franka import SimulatedFranka
from engine.evaluation.tasks import Episode
from engine.evaluation.tasks_watch import Truth, truth_of
from engine.serving.addresses import SERVERS, key_from

if TYPE_CHECKING:
    from engine.serving.client import RemotePolicy

SCRIPTED = ('expert', 'another', 'hold', 'random')
"""Policies that are no checkpoint."""
PATIENCE_S = 60.0
"""For an answer of a server: simulated time stands still meanwhile."""


class Simulated(Protocol):
    """A simulated robot whose time passes by control periods, and who is honest about everything."""

    robot: SimulatedFranka

    @property
    def now_ns(self) -> int:
        """Time on the clock of the stamps."""

    @property
    def now_s(self) -> float:
        """Seconds since the episode began."""

    def tick(self) -> None:
        """Let one control period pass."""

    def truth(self) -> Truth:
        """What the simulator says of this instant."""
        return truth_of(self.robot, self.now_s)

    def until(self, time_ns: int, each: Callable[[], bool]) -> bool:
        """Let control periods pass; whether `each` said that this is the end."""
        while self.now_ns < time_ns:
            self.tick()
            if each():
                return True
        return False


class SimulatedWorld(GuardedRobot, Simulated):
    """The guarded robot as episodes want it: laid out for a task."""

    def begin(self, episode: Episode) -> None:
        """Lay everything out anew and come to rest."""
        self.robot.arrange(episode.setting)
        self.start()


@dataclass(frozen=True)
class Cast:
    """Who plays, and where; what a process needs to run episodes.

    Attributes:
        policy: 'expert', 'another', 'hold', 'random', a checkpoint (directory or hub id), or a policy server: ws://HOST:PORT.
        contract: Name or path.
        terms: How the loop is closed.
        device: Of a checkpoint: cpu, cuda, ...
        dtype: Of a checkpoint.
        compiled: Folder that `cosmos3 compile` made; empty for none.
        threads: Of PyTorch. Sums in another order have other last digits, so the same number makes the same episodes.
        graph: Whether guard and policy are processes of a ROS graph, as on a robot; otherwise all is in one.
        splice: How the policy's chunks are joined in a graph, see the parameter of the policy node.
        dialect: Of a policy server.
        api_key_variable: Environment variable that holds the key of a policy server; empty: it asks for none.
    """

    policy: str
    contract: str = 'demo_joint_pos'
    terms: LoopTerms = field(default_factory=LoopTerms)
    device: str = 'cpu'
    dtype: str = 'float32'
    compiled: str = ''
    threads: int = 1
    graph: bool = False
    splice: str = 'blend'
    dialect: str = 'cosmos-framework'
    api_key_variable: str = ''


class RemoteActor(PolicyActor):
    """The policy of a server, until it is closed."""

    def __init__(self, remote: RemotePolicy, joints: int) -> None:
        """Take a policy that is connected."""
        super().__init__(remote, joints)
        self._remote = remote

    def close(self) -> None:
        """End the connection."""
        self._remote.close()


def reach(cast: Cast, contract: Contract) -> RemotePolicy:
    """The policy server that plays, connected; whoever asks for it closes it.

    Raises:
        InvalidInput: There is no such dialect, or the variable of the key is empty or not set.
        ServerError: The server cannot be reached in time, or refused.
        ContractError: It is for something else; lists every difference.
    """
    from engine.serving.client import RemotePolicy

    key = key_from(cast.api_key_variable, 'api_key_variable', 'policy server')
    remote = RemotePolicy(cast.policy, contract, dialect_name=cast.dialect, api_key=key, deadline_s=PATIENCE_S)
    try:
        remote.connect()
    except BaseException:
        remote.close()
        raise
    return remote


def make_actor(cast: Cast, contract: Contract) -> Actor:
    """Who makes the chunks.

    Raises:
        CosmosError: The checkpoint cannot be loaded, the server cannot be asked, or it does not fit the contract.
    """
    step_s, rows = 1.0 / contract.timing.fps, contract.timing.chunk_rows
    if cast.policy in ('expert', 'another'):
        limits, hand = load_limits(contract.robot.description), Expert if cast.policy == 'expert' else Mistaken
        return hand(step_s, rows, limits.velocity, limits.acceleration, cast.terms.latency_s)
    if cast.policy == 'hold':
        return Hold(rows)
    if cast.policy == 'random':
        return RandomWalk(step_s, rows)
    if cast.policy.startswith(SERVERS):
        return RemoteActor(reach(cast, contract), len(contract.robot.joints))
    import torch

    import engine

    keep_freed_memory()  # for workers, which have not come through an entry point
    torch.set_num_threads(cast.threads)
    model = engine.load(cast.policy, cast.device, cast.dtype, compiled=cast.compiled or None)
    return PolicyActor(model.policy(contract), len(contract.robot.joints))


class WorldRunner:
    """Runs episodes in this process."""

    def __init__(self, cast: Cast, *, film: bool = False) -> None:
        """Build the scene, and load the policy.

        Args:
            cast: Who plays, and where.
            film: Whether there are pictures even if the policy needs none.

        Raises:
            CosmosError: The checkpoint, the contract or the simulator does not work.
        """
        contract = load_contract(cast.contract)
        check_arm(contract)
        self._terms, self._actor = cast.terms, make_actor(cast, contract)
        views = None if self._actor.sees or film else ()
        robot = SimulatedFranka(render_views=views, zone=True)
        self.world = SimulatedWorld(robot, load_limits(contract.robot.description), contract)

    def run(self, episode: Episode, camera: Camera | None = None) -> EpisodeRecord:
        """Run one episode."""
        return play(self.world, self._actor, episode, self._terms, camera)

    def close(self) -> None:
        """Free the cameras, and end the connection to a server."""
        self.world.robot.close()
        if isinstance(self._actor, RemoteActor):
            self._actor.close()
