"""The policy behind a server: who is let in, whose state it is, with which seed, and what comes of it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from engine.errors import CosmosError, InvalidInput, ServerUnavailable
from engine.policy_observation import Observation, PolicyChunk
from engine.sampler import request_seeds
from engine.serving import wire
from engine.serving.base import Dialect, Fault, Frame, Refusal, Reply, Request, rows_needed
from engine.serving.dialects import Tongue
from engine.serving.metrics import Metrics
from engine.serving.options import ServerOptions
from engine.serving.sessions import Sessions
from engine.serving.worker import Worker
from engine.turns import Cancelled

if TYPE_CHECKING:
    from engine.contract import Contract

_LOG = logging.getLogger(__name__)
_READERS = 2
_LONGEST_TEXT = 8192
_MOST_PROBLEMS = 64


class Infers(Protocol):
    """As much of :class:`engine.policy.Policy` as a server needs."""

    def infer(self, observation: Observation, seed: int, cancelled: Callable[[], bool]) -> PolicyChunk:
        """One chunk of actions."""

    def imagined_video(self, chunk: PolicyChunk) -> NDArray[np.uint8]:
        """What was imagined with it; called only where videos are wanted."""


@runtime_checkable
class Fleet(Protocol):
    """A policy that several places compute.

    Attributes:
        parallel: Requests that may be under way at a time.
    """

    parallel: int

    def infer_in(self, session: str, observation: Observation, seed: int, cancelled: Callable[[], bool]) -> PolicyChunk:
        """One chunk of actions for a robot, computed where those before it were, if that place still is."""


@dataclass
class Caller:
    """What is known of a connection from one request to the next.

    Attributes:
        tongue: What is spoken at the path that it opened.
        name: Of its own session, which requests belong to that name no other.
        dialect: That of its last request.
        previous_ms: Time that its last request took.
        gone: Set when nobody waits for an answer any more.
    """

    tongue: Tongue
    name: str
    dialect: Dialect = field(init=False)
    previous_ms: float | None = None
    gone: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.dialect = self.tongue.default


class Service:
    """Answers messages. Its methods are called on one event loop, which never waits for the network here.

    Attributes:
        metrics: What happened so far.
        stopping: Whether requests are refused because the server is being stopped.
    """

    def __init__(self, policy: Infers, contract: Contract, options: ServerOptions) -> None:
        """Answer with this policy."""
        self.metrics = Metrics()
        self.stopping = False
        self._policy = policy
        self._contract = contract
        self._options = options
        self._sessions = Sessions(rows_needed(contract), options.sessions)
        self._seeds = _seeds(options)
        self._parallel = policy.parallel if isinstance(policy, Fleet) else 1
        self._worker = Worker('policy-server', self._parallel)
        self._readers = ThreadPoolExecutor(_READERS, 'policy-server-reader')
        self._taken = 0
        self._callers: set[int] = set()

    @property
    def taken(self) -> int:
        """Requests that are being read, wait, or are computed."""
        return self._taken

    @property
    def room(self) -> int:
        """Requests that may be in hand: those that wait, and as many as are computed at a time."""
        return self._options.queue + self._parallel

    @property
    def sessions(self) -> int:
        """Robots whose states are remembered."""
        return len(self._sessions)

    def close(self) -> None:
        """Let the threads end after what they are doing; returns at once."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._worker.stop()

    def forget(self, caller: Caller) -> None:
        """A connection has ended."""
        caller.gone.set()
        self._sessions.forget(_own(caller))

    def refuse(self, caller: Caller, refusal: Refusal, outcome: str = '', seconds: float | None = None) -> Frame:
        """The answer that tells a client why there is no other."""
        self.metrics.count(caller.dialect.name, outcome or refusal.fault, seconds)
        return caller.dialect.refusal(refusal)

    async def answer(self, message: bytes, caller: Caller, arrived: float) -> Frame:
        """What to send back for a message.

        Args:
            message: As it came.
            caller: From whom.
            arrived: When, by `time.perf_counter`.
        """
        refusal = self._no_room()
        if refusal is not None:
            return self.refuse(caller, refusal)
        self._taken += 1
        job: Future[tuple[Frame, float]] | None = None
        try:
            request = await self._read(message, caller)
            if request.kind == 'reset':
                return self._reset(request, caller, arrived)
            job = self._submit(request, caller)
            frame, seconds = await asyncio.wrap_future(job)
            self.metrics.inferred(seconds)
            self._count(caller, 'ok', arrived)
            return frame
        except asyncio.CancelledError:
            self._count(caller, 'cancelled', None)
            raise
        except Exception as error:
            return self.refuse(caller, self._reason(error), seconds=time.perf_counter() - arrived)
        finally:
            if job is None:
                self._taken -= 1

    def _no_room(self) -> Refusal | None:
        if self.stopping:
            return Refusal(Fault.STOPPING, 'stopping: the server is being shut down')
        if self._taken >= self.room:
            text = f'busy: {self._taken} requests are in hand, as many as are taken; ask again in a moment'
            return Refusal(Fault.BUSY, text)
        return None

    async def _read(self, message: bytes, caller: Caller) -> Request:
        """The request in a message; `caller` is told its dialect first, for faults are answered in it."""
        loop = asyncio.get_running_loop()
        limits = replace(wire.LIMITS, size=len(message))  # larger ones were not taken
        fields = await loop.run_in_executor(self._readers, lambda: wire.as_map(wire.unpack(message, limits)))
        caller.dialect = caller.tongue.dialect_of(fields)
        return await loop.run_in_executor(self._readers, caller.dialect.read, fields, self._contract)

    def _reset(self, request: Request, caller: Caller, arrived: float) -> Frame:
        self._sessions.forget(_session(request, caller))
        self._count(caller, 'reset', arrived)
        return caller.dialect.reset_reply()

    def _submit(self, request: Request, caller: Caller) -> Future[tuple[Frame, float]]:
        """Line the inference up. Its place is taken until it ends, also if its client leaves before."""
        session = _session(request, caller)
        state: dict[str, Any] = self._sessions.find(session).complete(request.state)
        observation = Observation(request.images, request.instruction, **state)
        seed = next(self._seeds) if request.seed is None else request.seed
        here = self._policy
        infer = partial(here.infer_in, session) if isinstance(here, Fleet) else here.infer
        chunk = partial(infer, observation, seed=seed, cancelled=caller.gone.is_set)
        job = self._worker.submit(partial(self._infer, chunk, caller.dialect, caller.previous_ms))
        loop = asyncio.get_running_loop()

        def ended(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody counts any more
                loop.call_soon_threadsafe(self._give_back)

        job.add_done_callback(ended)
        return job

    def _give_back(self) -> None:
        self._taken -= 1

    def _infer(
        self, infer: Callable[[], PolicyChunk], dialect: Dialect, previous_ms: float | None
    ) -> tuple[Frame, float]:
        """The worker's part: the answer, ready to be sent, and the seconds of the inference."""
        began = time.perf_counter()
        chunk = infer()
        seconds = time.perf_counter() - began
        if not np.isfinite(chunk.actions).all():
            raise CosmosError('the policy gave numbers that are not finite')
        video = self._policy.imagined_video(chunk) if self._options.decode_video else None
        actions = np.ascontiguousarray(chunk.actions, np.float32)
        return dialect.reply(Reply(actions, 1e3 * seconds, previous_ms, video)), seconds

    def _reason(self, error: Exception) -> Refusal:
        """What a client is told of an error."""
        if isinstance(error, InvalidInput):
            problems = tuple(map(str, error.problems[:_MOST_PROBLEMS]))
            return Refusal(Fault.INVALID, _cut(str(error)), tuple(map(_cut, problems)))
        if isinstance(error, Cancelled):
            return Refusal(Fault.STOPPING, 'stopping: the request was given up')
        if isinstance(error, ServerUnavailable):
            return Refusal(Fault.BUSY, _cut(f'busy: {error}'))
        number = secrets.token_hex(4)
        _LOG.error('defect %s in a request: %s', number, error, exc_info=error)
        trace = ''.join(traceback.format_exception(error)) if self._options.tracebacks else ''
        return Refusal(Fault.INTERNAL, f'internal error {number}; the log of the server says more', trace=trace)

    def _count(self, caller: Caller, outcome: str, arrived: float | None) -> None:
        seconds = None if arrived is None else time.perf_counter() - arrived
        self.metrics.count(caller.dialect.name, outcome, seconds)


def _seeds(options: ServerOptions) -> Iterator[int]:
    if not options.deterministic:
        yield from request_seeds(options.seed)
    while True:
        yield options.seed


def _session(request: Request, caller: Caller) -> str:
    return _own(caller) if request.session is None else f'named {request.session}'


def _own(caller: Caller) -> str:
    return f'connection {caller.name}'


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f'{text[:_LONGEST_TEXT]} ...'
