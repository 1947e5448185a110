"""A policy that runs elsewhere: the interface of :class:`engine.policy.Policy`, over any dialect.

    policy = RemotePolicy('ws://gpu.local:8000', contract)
    chunk = policy.infer(observation, seed=7)
    if policy.is_current(chunk):
        ...

A connection is made when it is first needed, and made anew when it breaks. An answer that comes too late is never taken
for that of another request: the connection on which it would come is given up.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from engine.errors import (
    ContractError,
    CosmosError,
    InvalidInput,
    ObservationError,
    Problem,
    ServerError,
    ServerUnavailable,
)
from engine.policy_observation import POSE_COLUMNS, Observation, PolicyChunk, check_observation, grey_observation
from engine.serving import wire
from engine.serving.base import ANSWER_LIMITS, BusyError, read_answer
from engine.serving.dialect_vllm_omni import PATH
from engine.serving.dialects import FRAMEWORK, VLLM_OMNI, dialect
from engine.serving.terms import HEADER, check_terms, read_header
from engine.turns import Cancelled

if TYPE_CHECKING:
    from engine.contract import Contract

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 2.0
"""Between attempts to connect, or to be let in by a busy server; doubled from the first to the longest."""
ATTEMPT_S: Final = 2.0
"""Longest single attempt to connect: it cannot be given up in between."""
POLL_S: Final = 0.02
"""How often a wait asks whether the request has been given up."""
_HOPELESS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)


@dataclass(frozen=True)
class RemoteChunk(PolicyChunk):
    """A chunk from elsewhere. It has no imagined video.

    Attributes:
        generation: Of the connection that it came by.
    """

    generation: int = 0


class _Wait:
    """The time that one request has."""

    def __init__(self, deadline_s: float, cancelled: Callable[[], bool]) -> None:
        self._end = time.monotonic() + deadline_s
        self._cancelled = cancelled

    @property
    def left_s(self) -> float:
        return max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        if self._cancelled():
            raise Cancelled('given up while a remote policy was asked')

    def pause(self, seconds: float) -> None:
        end = time.monotonic() + min(seconds, self.left_s)
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, POLL_S))


class RemotePolicy:
    """Asks a policy server for chunks. Thread-safe; one request at a time.

    Attributes:
        contract: What the policy is for.
        generation: Count of connections so far. Chunks of an earlier one are void: the server has forgotten the robot.
        metadata: What the server said first on this connection.
        said: What it said of its policy, in a header or in its first words.
    """

    def __init__(
        self,
        url: str,
        contract: Contract,
        *,
        dialect_name: str = FRAMEWORK.name,
        api_key: str | None = None,
        deadline_s: float = 5.0,
        rows: int = 0,
    ) -> None:
        """Nothing is connected before the first request, or :meth:`prepare`.

        Args:
            url: `ws://` or `wss://`, with vLLM-Omni's path added if there is none and that is its dialect.
            contract: What the policy is for; it decides what is sent, and what an answer has to look like.
            dialect_name: What the server speaks.
            api_key: Sent as `Authorization: Api-Key ...`.
            deadline_s: Longest time from a request to its chunk, connecting and waiting in line included.
            rows: Rows of a chunk of this server; 0: as many as the contract says.

        Raises:
            InvalidInput: The URL, the dialect or the deadline is none.
        """
        self.contract = contract
        self.generation = 0
        self.metadata: Any = None
        self.said: Mapping[str, Any] = {}
        self._dialect = dialect(dialect_name)
        self._url = _url(url, PATH if self._dialect is VLLM_OMNI else '/')
        self._headers = {'Authorization': f'Api-Key {api_key}'} if api_key else None
        self._deadline_s = deadline_s
        self._rows = rows
        self._session = secrets.token_hex(8)
        self._connection: ClientConnection | None = None
        self._lock = threading.Lock()
        if not 0 < deadline_s < 1e6:
            raise InvalidInput('remote policy', [Problem('deadline_s', 'is out of range', str(deadline_s), 'above 0')])

    @property
    def url(self) -> str:
        """Of the server, path included."""
        return self._url

    def infer(
        self,
        observation: Observation,
        seed: int = 0,
        cancelled: Callable[[], bool] = lambda: False,
        committed: NDArray[np.floating] | None = None,
    ) -> RemoteChunk:
        """One chunk of actions.

        Args:
            observation: Must hold what the contract asks for.
            seed: Of the noise; servers of other makers may not heed it.
            cancelled: Asked while the answer is waited for; True gives the request up.
            committed: No dialect has words for rows that are given; must be None.

        Raises:
            ObservationError: The observation does not fit the contract, or there are committed rows.
            ServerUnavailable: The server cannot be reached, or has no answer, in time.
            ServerError: It refused, or sent what is no chunk of this contract.
            ContractError: It says of itself that it is for something else; lists every difference.
            Cancelled: `cancelled` returned True.
        """
        check_observation(observation, self.contract)
        if committed is not None:
            remedy = 'join chunks by blending, or use local weights'
            problem = Problem('committed', 'cannot be sent to a remote policy', remedy=remedy)
            raise ObservationError('observation', [problem])
        message = wire.pack(self._dialect.request(observation, self.contract, int(seed), self._session))
        began = time.perf_counter()
        with self._lock:
            answer = self._ask(message, _Wait(self._deadline_s, cancelled), self._dialect.actions)
            actions = self._checked(answer)
            seconds = {'total': time.perf_counter() - began}
            return RemoteChunk(actions, None, observation.instruction, int(seed), seconds, self.generation)

    def is_current(self, chunk: PolicyChunk) -> bool:
        """Whether a chunk came by the connection of now."""
        return isinstance(chunk, RemoteChunk) and chunk.generation == self.generation

    def check_instruction(self, instruction: str) -> None:
        """Do nothing if the instruction can be sent; how long it may be is the server's to say.

        Raises:
            ObservationError: It is empty.
        """
        if not isinstance(instruction, str) or not instruction.strip():
            raise ObservationError('instruction', [Problem('instruction', 'is empty', repr(instruction)[:40])])

    def prepare(self, instruction: str) -> None:
        """Connect ahead of the first observation.

        Raises:
            ObservationError: The instruction is empty.
            ServerError: The server cannot be reached in time, or refused.
        """
        self.check_instruction(instruction)
        self.connect()

    def connect(self) -> None:
        """Connect, and compare what the server says of its policy with the contract.

        Raises:
            ServerUnavailable: The server cannot be reached in time.
            ServerError: It refused.
            ContractError: It is for something else; lists every difference.
        """
        with self._lock:
            self._connected(_Wait(self._deadline_s, lambda: False))

    def warm_up(self) -> None:
        """Ask for one chunk of grey pictures, as a local policy does; raises as :meth:`infer`."""
        self.infer(grey_observation(self.contract))

    def imagined_video(self, chunk: PolicyChunk) -> NDArray[np.uint8]:
        """Not to be had from elsewhere.

        Raises:
            CosmosError: Always.
        """
        raise CosmosError('a remote policy keeps no imagined videos')

    def reset(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Have the server forget the states of this robot; where a dialect has no word for it, by connecting anew.

        Args:
            cancelled: Asked while the answer is waited for; True gives it up.

        Raises:
            ServerUnavailable: The server cannot be reached, or has no room, in time.
            ServerError: It refused.
            Cancelled: `cancelled` returned True.
        """
        request = self._dialect.reset_request(self._session)
        with self._lock:
            if request is None:
                self._drop()
            elif self.generation:  # else the server has never heard of this robot
                self._ask(wire.pack(request), _Wait(self._deadline_s, cancelled), self._dialect.check_reset)

    def close(self) -> None:
        """End the connection."""
        with self._lock:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, message: bytes, wait: _Wait, read: Callable[[bytes | str], Any]) -> Any:
        """Send a message until there is an answer that is neither a broken connection nor `busy`."""
        for pause in _pauses():
            connection = self._connected(wait)
            try:
                connection.send(message)
                return read(self._receive(connection, wait))
            except BusyError as error:
                reason: Exception = error
            except ConnectionClosed as error:
                reason = error
                self._drop()
            if wait.left_s <= pause:
                raise ServerUnavailable(
                    f'{self._url} gave no answer within {self._deadline_s:g} s: {reason}'
                ) from reason
            wait.pause(pause)
        raise ServerError(self._url)  # not reached: pauses never end

    def _receive(self, connection: ClientConnection, wait: _Wait) -> bytes | str:
        while True:
            try:
                return connection.recv(timeout=min(POLL_S, wait.left_s))
            except TimeoutError:
                pass
            try:
                wait.check()
            except Cancelled:
                self._drop()  # its answer must not be taken for that of the next request
                raise
            if not wait.left_s:
                self._drop()
                raise ServerUnavailable(f'{self._url} did not answer within {self._deadline_s:g} s')

    def _connected(self, wait: _Wait) -> ClientConnection:
        """The connection, made anew if there is none, over and over until the time is up."""
        if self._connection is not None:
            return self._connection
        for pause in _pauses():
            wait.check()
            try:
                return self._greeted(self._connect(wait), wait)
            except InvalidStatus as error:
                status = error.response.status_code
                if status in _HOPELESS:
                    raise ServerError(f'{self._url} refused: {status} {_body(error)}') from error
                reason: Exception = error
            except (OSError, WebSocketException) as error:  # TimeoutError is an OSError
                reason = error
            self._drop()
            if wait.left_s <= pause:
                what = ' '.join(str(reason).split()) or type(reason).__name__
                raise ServerUnavailable(f'{self._url} cannot be reached: {what}') from reason
            wait.pause(pause)
        raise ServerError(self._url)  # not reached: pauses never end

    def _connect(self, wait: _Wait) -> ClientConnection:
        connection = connect(
            self._url,
            compression=None,
            additional_headers=self._headers,
            user_agent_header=None,
            proxy=None,
            open_timeout=min(ATTEMPT_S, wait.left_s) or 0.001,
            ping_interval=None,  # some servers answer no pings while they infer; the deadline says when it is enough
            close_timeout=0.2,
            max_size=ANSWER_LIMITS.size,
        )
        with suppress(OSError, AttributeError):  # a server that takes nothing must not hold a request for ever
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1e3 * self._deadline_s) + 1)
        return connection

    def _greeted(self, connection: ClientConnection, wait: _Wait) -> ClientConnection:
        """The connection, once its first words were heard."""
        self._connection = connection
        first = self._receive(connection, wait)
        try:
            if isinstance(first, str):
                raise ServerError(f'{self._url} refused: {first[:500]}')
            self.metadata = read_answer(first)
            self._check_terms(connection)
        except (ServerError, ContractError):
            self._drop()
            raise
        self.generation += 1
        return connection

    def _check_terms(self, connection: ClientConnection) -> None:
        """Compare what the server says of its policy, in a header or in its first words, with the contract."""
        header = connection.response.headers.get(HEADER) if connection.response is not None else None
        self.said = read_header(header) or (self.metadata if isinstance(self.metadata, dict) else {})
        check_terms(self.said, self.contract, self._rows, self._url)

    def _drop(self) -> None:
        """End the connection without waiting for the other side."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _checked(self, found: Any) -> NDArray[np.float32]:
        """Actions of this contract, [rows, D] and finite."""
        wanted = self._rows or self.contract.timing.chunk_rows, _columns(self.contract)
        if not isinstance(found, np.ndarray) or found.dtype.kind not in 'fiu' or found.shape != wanted:
            is_array = isinstance(found, np.ndarray)
            got = f'{found.dtype} {list(found.shape)}' if is_array else type(found).__name__
            raise ServerError(
                f'{self._url} sent no actions of contract {self.contract.name}: {got}, not {list(wanted)}'
            )
        if not np.isfinite(found).all():
            raise ServerError(f'{self._url} sent actions that are not finite')
        return found.astype(np.float32)


def _columns(contract: Contract) -> int:
    robot = contract.robot
    poses = contract.embodiment.action_space == 'ee_delta'
    return (POSE_COLUMNS * len(robot.arms) if poses else len(robot.joints)) + len(robot.grippers)


def _pauses() -> Iterator[float]:
    """Seconds between attempts, without end; each a fifth more or less, so that a fleet does not come back at once."""
    pause = FIRST_PAUSE_S
    while True:
        yield pause * (0.8 + 0.4 * secrets.randbelow(1000) / 1000)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _body(error: InvalidStatus) -> str:
    return ' '.join((error.response.body or b'').decode('utf-8', 'replace').split())[:200]


def _url(text: str, path: str) -> str:
    """The URL, with a path if it has none.

    Raises:
        InvalidInput: It is none of a websocket.
    """
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ('ws', 'wss') and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        allowed = 'ws://HOST:PORT or wss://HOST:PORT'
        raise InvalidInput('remote policy', [Problem('url', 'is none of a policy server', repr(text), allowed)])
    return parts._replace(path=parts.path if parts.path not in ('', '/') else path).geturl()
