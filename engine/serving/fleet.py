"""One server, several copies of the policy: replicas that Ray Serve places, scales and replaces.

    clients --websocket--> front --Ray--> replica (checkpoint, device) x N

The front is the policy server itself, with all its dialects, limits, sessions and metrics; what it would compute it has
computed by a replica. Requests of one session go to the same replica as long as that lives. A replica that dies takes
no request with it: what it had in hand is computed by another one.

    with local_ray(cpus=2), deployed(plan) as policy:
        serve_until_stopped(PolicyServer(policy, contract, options))

or, where a Ray cluster runs already, `serve run engine.serving.fleet:app checkpoint=... contract=... replicas=4`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.errors import CosmosError, InvalidInput, Problem, ServerUnavailable
from engine.policy_observation import Observation, PolicyChunk
from engine.serving.base import BusyError
from engine.turns import Cancelled

APPLICATION: Final = 'cosmos3'
"""How the name of every server's application begins; :func:`application_name` says how it goes on."""
POLL_S: Final = 0.02
"""How often a wait for a replica asks whether the request has been given up."""
ATTEMPTS: Final = 2
"""That a request has: the second one, after the replica that had it died."""
IN_HAND: Final = 4
"""Requests that a replica takes at a time: one is computed, the others wait beside it; more go to another one."""
LOOPBACK: Final = '127.0.0.2'
"""Where a Ray of our own is found. Ray takes 127.0.0.1 for a mistake, and puts the machine's address in its place."""
_ROUTER: Final = 'ray.serve.experimental.consistent_hash_router.ConsistentHashRouter'


@dataclass(frozen=True)
class FleetPlan:
    """What the replicas are, and how many.

    Attributes:
        checkpoint: Directory or hub id, to be found by every replica.
        contract: Name or path.
        preset: How the sampler is run.
        device: Of each replica: cpu or cuda. Ray gives each a GPU of its own.
        dtype: Computing precision.
        backend: What runs the network.
        compiled: Folder that `cosmos3 compile` made; empty: none.
        replicas: At least so many.
        most: At most so many, if there is more to do; 0: as many as `replicas`.
        cpus: Cores of each replica.
        gpus: GPUs of each replica; two replicas of half a GPU share one. -1: one if `device` is a GPU, else none.
        warm_up: Whether replicas infer once before they take requests.
    """

    checkpoint: str
    contract: str
    preset: str = 'reference'
    device: str = 'cpu'
    dtype: str = 'float32'
    backend: str = 'auto'
    compiled: str = ''
    replicas: int = 1
    most: int = 0
    cpus: float = 1.0
    gpus: float = -1.0
    warm_up: bool = True

    def __post_init__(self) -> None:
        problems = []
        if not 1 <= self.replicas <= 1000:
            problems.append(Problem('replicas', 'is out of range', str(self.replicas), '1 to 1000'))
        if self.most and not self.replicas <= self.most <= 1000:
            problems.append(Problem('most', 'is out of range', str(self.most), f'{self.replicas} to 1000, or 0'))
        if not 0 < self.cpus <= 1024:
            problems.append(Problem('cpus', 'is out of range', str(self.cpus), 'above 0'))
        if not self.checkpoint or not self.contract:
            problems.append(Problem('checkpoint, contract', 'must be given'))
        if problems:
            raise InvalidInput('fleet of policies', problems)

    @property
    def gpus_each(self) -> float:
        """GPUs that Ray sets aside for each replica."""
        return self.gpus if self.gpus >= 0 else float(self.device.startswith('cuda'))

    @property
    def parallel(self) -> int:
        """Requests that the whole fleet takes at a time."""
        return IN_HAND * max(self.replicas, self.most)


@dataclass(frozen=True)
class Made:
    """What a replica sends back: actions, or why there are none.

    Attributes:
        place: Process id and name of the machine.
        actions: As :attr:`engine.policy_observation.PolicyChunk.actions`; None: refused.
        seconds: Time per stage.
        video: The imagined video, if it was asked for.
        problems: What was wrong with the observation.
        fault: Why there is nothing, if the observation was in order.
    """

    place: str
    actions: NDArray[np.float32] | None = None
    seconds: Mapping[str, float] | None = None
    video: NDArray[np.uint8] | None = None
    problems: tuple[Problem, ...] = ()
    fault: str = ''


@dataclass(frozen=True)
class FleetChunk(PolicyChunk):
    """A chunk of a replica.

    Attributes:
        place: Which one made it.
        video: Decoded there, if that was asked for.
    """

    place: str = ''
    video: NDArray[np.uint8] | None = None


class Replica:
    """One copy of the policy, in a process of its own that Ray starts."""

    def __init__(self, plan: FleetPlan) -> None:
        """Load the checkpoint."""
        import engine
        from engine.contract import load_contract, with_preset
        from engine.serving.worker import Worker

        contract = with_preset(load_contract(plan.contract), plan.preset)
        compiled = Path(plan.compiled).expanduser() if plan.compiled else None
        model = engine.load(plan.checkpoint, plan.device, plan.dtype, backend=plan.backend, compiled=compiled)
        self._policy = model.policy(contract)
        if plan.warm_up:
            self._policy.warm_up()
        self._worker = Worker('policy-replica')
        self._place = f'{os.getpid()}@{os.uname().nodename}'

    async def infer(self, observation: Observation, seed: int, video: bool) -> Made:
        """One chunk; a caller that leaves has its inference given up."""
        gone = threading.Event()
        work = partial(self._made, observation, seed, video, gone.is_set)
        try:
            return await asyncio.wrap_future(self._worker.submit(work))
        except asyncio.CancelledError:
            gone.set()
            raise

    def _made(self, observation: Observation, seed: int, video: bool, gone: Callable[[], bool]) -> Made:
        try:
            chunk = self._policy.infer(observation, seed=seed, cancelled=gone)
            pictures = self._policy.imagined_video(chunk) if video else None
        except InvalidInput as error:
            return Made(self._place, problems=error.problems)
        except CosmosError as error:
            return Made(self._place, fault=str(error))
        return Made(self._place, chunk.actions, dict(chunk.seconds), pictures)


class FleetPolicy:
    """Has replicas infer; what :class:`~engine.serving.service.Service` asks in place of a policy. Thread-safe.

    Attributes:
        parallel: Requests that may be under way at a time.
        places: Chunks that each replica made.
        sessions: Which replica made a session's newest chunk.
        again: Requests that were asked a second time, because their replica had died.
    """

    def __init__(self, handle: Any, parallel: int, *, video: bool = False, patience_s: float = 60.0) -> None:
        """Ask through a handle.

        Args:
            handle: Of the deployment of :class:`Replica`.
            parallel: Requests that may be under way at a time.
            video: Whether replicas decode what they imagine.
            patience_s: Longest wait for one attempt, places in line and a replica that starts included.
        """
        self.parallel = parallel
        self.places: Counter[str] = Counter()
        self.sessions: dict[str, str] = {}
        self.again = 0
        self._handle = handle
        self._video = video
        self._patience_s = patience_s
        self._lock = threading.Lock()

    def infer(self, observation: Observation, seed: int, cancelled: Callable[[], bool]) -> FleetChunk:
        """One chunk, of any replica."""
        return self.infer_in('', observation, seed, cancelled)

    def infer_in(self, session: str, observation: Observation, seed: int, cancelled: Callable[[], bool]) -> FleetChunk:
        """One chunk, of the replica that made those of this session before.

        Raises:
            InvalidInput: The observation does not fit the contract.
            ServerUnavailable: No replica answered in time, none has room, or the second one died as well.
            Cancelled: `cancelled` returned True.
            CosmosError: The replica could not infer.
        """
        made = self._asked(session, observation, int(seed), cancelled)
        with self._lock:
            self.places[made.place] += 1
            self.sessions[session] = made.place
            while len(self.sessions) > _MOST_SESSIONS:
                del self.sessions[next(iter(self.sessions))]
        if made.problems:
            raise InvalidInput('observation', made.problems)
        if made.actions is None:
            raise CosmosError(made.fault)
        seconds = dict(made.seconds or {})
        return FleetChunk(
            made.actions, None, observation.instruction, int(seed), seconds, place=made.place, video=made.video
        )

    def imagined_video(self, chunk: PolicyChunk) -> NDArray[np.uint8]:
        """The video that the replica decoded.

        Raises:
            CosmosError: None was asked for.
        """
        if not isinstance(chunk, FleetChunk) or chunk.video is None:
            raise CosmosError('the replica was not asked for its imagined video')
        return chunk.video

    def _asked(self, session: str, observation: Observation, seed: int, cancelled: Callable[[], bool]) -> Made:
        """What the replica sends; asked again if it dies, since the same seed makes the same chunk anywhere."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError, RayServeException

        handle = self._handle.options(session_id=session) if session else self._handle
        reason: Exception | None = None
        for attempt in range(ATTEMPTS):
            try:
                return self._awaited(handle.infer.remote(observation, seed, self._video), cancelled)
            except BackPressureError as error:
                raise BusyError(f'the replicas have no room: {error}') from error
            except (RayActorError, RayServeException) as error:
                reason = error
                with self._lock:
                    self.again += attempt + 1 < ATTEMPTS
        if isinstance(reason, RayActorError):
            raise ServerUnavailable(f'replicas died {ATTEMPTS} times over one request: {type(reason).__name__}')
        raise ServerUnavailable(f'no replica could be asked: {reason}') from reason

    def _awaited(self, response: Any, cancelled: Callable[[], bool]) -> Made:
        end = time.monotonic() + self._patience_s
        while True:
            try:
                made: Made = response.result(timeout_s=POLL_S)
                return made
            except TimeoutError:
                pass
            if cancelled():
                response.cancel()
                raise Cancelled('given up while a replica was asked')
            if time.monotonic() > end:
                response.cancel()
                raise ServerUnavailable(f'no replica answered within {self._patience_s:g} s')


_MOST_SESSIONS = 1024


class Front:
    """The policy server as a deployment of its own, for clusters that run already."""

    def __init__(self, replicas: Any, plan: FleetPlan, options: Mapping[str, Any]) -> None:
        """Open the port, on the machine where Ray places this."""
        from engine.contract import load_contract, with_preset
        from engine.serving.options import ServerOptions
        from engine.serving.server import BackgroundServer, PolicyServer

        terms = ServerOptions(**options)
        policy = FleetPolicy(replicas, plan.parallel, video=terms.decode_video)
        contract = with_preset(load_contract(plan.contract), plan.preset)
        self._server = BackgroundServer(PolicyServer(policy, contract, terms, identity_of(plan))).__enter__()

    def url(self) -> str:
        """Where clients find it."""
        return self._server.url

    def __del__(self) -> None:
        """Drain, when Ray takes it down."""
        with suppress(Exception):
            self._server.__exit__()


def find_ray() -> Any:
    """Ray Serve.

    Raises:
        CosmosError: It is not installed; says how to get it.
    """
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # what is computed here is nobody else's business
    os.environ.setdefault('RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO', '0')
    try:
        from ray import serve
    except ImportError as error:
        way = "pip install 'ray[serve]' (requirements/fleet.txt)"
        raise CosmosError(f'a fleet needs Ray Serve, which is not installed: {way}') from error
    return serve


def replicas(plan: FleetPlan) -> Any:
    """The application of the replicas alone.

    Raises:
        CosmosError: Ray Serve is not installed.
    """
    serve = find_ray()
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    scale: dict[str, Any] = {'num_replicas': plan.replicas}
    if plan.most > plan.replicas:
        scale = {
            'autoscaling_config': AutoscalingConfig(
                min_replicas=plan.replicas, max_replicas=plan.most, target_ongoing_requests=1.5
            )
        }
    router: dict[str, Any] = {'request_router_class': _ROUTER}
    deployment = serve.deployment(
        Replica,
        name='replica',
        max_ongoing_requests=IN_HAND,
        ray_actor_options={'num_cpus': plan.cpus, 'num_gpus': plan.gpus_each},
        request_router_config=RequestRouterConfig(**router),
        health_check_period_s=2.0,
        graceful_shutdown_timeout_s=10.0,
        **scale,
    )
    return deployment.bind(plan)


def app(arguments: Mapping[str, str]) -> Any:
    """What `serve run engine.serving.fleet:app NAME=VALUE ...` deploys: a front and its replicas.

    Args:
        arguments: Attributes of :class:`FleetPlan` and of :class:`~engine.serving.options.ServerOptions`, and
            `api_key_variable` in place of a key.

    Raises:
        InvalidInput: One is unknown or not what it should be; lists every fault.
        CosmosError: Ray Serve is not installed.
    """
    plan, options = read_arguments(arguments)
    serve = find_ray()
    front = serve.deployment(Front, name='front', ray_actor_options={'num_cpus': 0.5}, max_ongoing_requests=4)
    return front.bind(replicas(plan), plan, options)


def read_arguments(arguments: Mapping[str, str]) -> tuple[FleetPlan, dict[str, Any]]:
    """The plan, and options of the server, from text.

    Raises:
        InvalidInput: One is unknown or not what it should be; lists every fault.
    """
    from engine.serving.options import ServerOptions

    kinds = {field.name: (owner, field.default) for owner in (FleetPlan, ServerOptions) for field in fields(owner)}
    del kinds['api_key'], kinds['origins'], kinds['message_bytes']
    given: dict[type, dict[str, Any]] = {FleetPlan: {}, ServerOptions: {}}
    problems = []
    for name, text in arguments.items():
        if name == 'api_key_variable':
            given[ServerOptions]['api_key'] = os.environ.get(str(text)) or ''
        elif name not in kinds:
            problems.append(Problem(name, 'is unknown', str(text), ', '.join(kinds)))
        else:
            owner, default = kinds[name]
            try:
                given[owner][name] = _as(default, str(text))
            except ValueError:
                problems.append(Problem(name, 'cannot be read', repr(text), type(default).__name__))
    for name in ('checkpoint', 'contract'):
        if name not in arguments:
            problems.append(Problem(name, 'must be given'))
    if problems:
        raise InvalidInput('arguments of a fleet', problems)
    ServerOptions(**given[ServerOptions])
    return FleetPlan(**given[FleetPlan]), given[ServerOptions]


def _as(default: Any, text: str) -> Any:
    """A value of the kind of a default; names without a default are text."""
    if isinstance(default, bool):
        if text.lower() not in ('true', 'false'):
            raise ValueError(text)
        return text.lower() == 'true'
    return type(default)(text) if isinstance(default, int | float) else text


@contextmanager
def local_ray(cpus: int, *, folder: Path | None = None, address: str | None = None) -> Iterator[None]:
    """A Ray of this machine's own for the block; or a cluster that runs already.

    Processes of one of our own tell each other loopback addresses, but Ray opens ports on all interfaces. Nobody is let
    in there without the token that Ray keeps in the user's home (`RAY_AUTH_MODE`).

    A cluster that runs already is left as it was found: whatever else is served there goes on.

    Args:
        cpus: Cores that Ray may give away.
        folder: Where it keeps its files; None: where Ray does.
        address: Of a cluster that runs already, or 'auto'; None: start one.

    Raises:
        CosmosError: Ray Serve is not installed.
    """
    serve = find_ray()
    import ray

    terms: dict[str, Any] = {'address': address}
    if address is None:
        here = None if folder is None else str(folder)
        own = {'address': 'local', 'num_cpus': cpus}  # never one that RAY_ADDRESS names: it is shut down in the end
        terms = {**own, 'include_dashboard': False, '_node_ip_address': LOOPBACK, '_temp_dir': here}
    ray.init(log_to_driver=False, logging_level=logging.WARNING, **terms)
    try:
        logging.getLogger('ray.serve').setLevel(logging.WARNING)
        serve.start(proxy_location='Disabled')  # the front has a port of its own
        yield
    finally:
        if address is None:
            with suppress(Exception):
                serve.shutdown()
        ray.shutdown()


def identity_of(plan: FleetPlan) -> dict[str, str]:
    """What tells the policy of a fleet from others; nothing where the front has no checkpoint to look at."""
    from engine.checkpoint import open_checkpoint
    from engine.serving.terms import identity

    folder = Path(plan.checkpoint).expanduser()
    if not folder.is_dir():  # the replicas download it, and the front need not
        return {}
    with suppress(CosmosError):
        return identity(open_checkpoint(folder), plan.preset, plan.dtype, plan.compiled)
    return {}


def application_name() -> str:
    """A name that no other server has: two on one cluster must not take each other's replicas for their own."""
    return f'{APPLICATION}-{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}'


@contextmanager
def deployed(plan: FleetPlan, *, video: bool = False) -> Iterator[FleetPolicy]:
    """The replicas, for the block, within a Ray that runs; returns when all of them have loaded and warmed up.

    They are an application of their own, which ends with the block; no other one is touched.

    Raises:
        CosmosError: They do not start; says why.
    """
    serve, name = find_ray(), application_name()
    try:
        yield FleetPolicy(_started(serve, plan, name), plan.parallel, video=video)
    finally:
        with suppress(Exception):
            serve.delete(name)


def _started(serve: Any, plan: FleetPlan, name: str) -> Any:
    """The handle of the replicas."""
    try:
        return serve.run(replicas(plan), name=name, route_prefix=None)
    except RuntimeError as error:
        status = serve.status().applications.get(name)
        told = [each.message for each in status.deployments.values()] if status is not None else []
        raise CosmosError(f'replicas do not start: {" ".join(told) or error}') from error
