"""A policy server: one port, all dialects, a policy that infers on a thread of its own.

    server = PolicyServer(policy, contract, ServerOptions(port=8000))
    await server.start()
    ...
    await server.drain()

or, without an event loop of one's own, :func:`serve_until_stopped` and :class:`BackgroundServer`.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import logging
import math
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from http import HTTPStatus
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Self

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.frames import CloseCode
from websockets.typing import Origin

from engine.errors import InvalidInput, Problem
from engine.serving.conversation import Conversation
from engine.serving.dialect_vllm_omni import PATH
from engine.serving.dialects import Tongue, tongue
from engine.serving.metrics import CONTENT_TYPE
from engine.serving.options import ServerOptions
from engine.serving.service import Caller, Infers, Service
from engine.serving.terms import HEADER, header_of

if TYPE_CHECKING:
    from websockets.http11 import Request, Response

    from engine.contract import Contract

CLOSE_S = 2.0
"""How long a client may take to answer that the connection ends."""
FAREWELL_S = 0.3
"""What is left of the time to stop for telling clients so, where it is short."""
_LOG = logging.getLogger(__name__)
# What the protocol's library has to say is of strangers that do not speak it, with a traceback for each.
_PROTOCOL_LOG = logging.getLogger(f'{__name__}.protocol')
_PROTOCOL_LOG.setLevel(logging.CRITICAL + 1)


class _Connection(ServerConnection):
    """A connection that is cut before its first byte if there are too many, whatever they are for.

    Attributes:
        most: How many there may be at a time.
        sockets: Those of all that are there, also before their first word.
    """

    most = 0
    sockets: ClassVar[set[asyncio.Transport]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self.sockets.add(self.transport)
        if len(self.server.handler_tasks) > self.most:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self.sockets.discard(self.transport)
        super().connection_lost(exc)


class PolicyServer:
    """Serves a policy to clients of all dialects. Belongs to the event loop that starts it.

    Attributes:
        service: What answers requests, with its metrics.
    """

    def __init__(
        self,
        policy: Infers,
        contract: Contract,
        options: ServerOptions | None = None,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing is opened before :meth:`start`.

        Args:
            policy: Infers; it is called by one thread, one request at a time.
            contract: What the policy is for.
            options: How to run.
            identity: What tells the policy from others of the contract, as :func:`engine.serving.terms.identity` makes
                it, for clients to know; None: they are not told.
        """
        self.options = options or ServerOptions()
        self.service = Service(policy, contract, self.options)
        self._contract = contract
        self._introduction = header_of(contract, identity or {})
        self._server: Server | None = None
        self._port = self.options.port
        self._sockets: set[asyncio.Transport] = set()
        self._numbers = count(1)
        self._conversations: set[Conversation] = set()

    async def start(self) -> None:
        """Open the port and begin to answer.

        Raises:
            InvalidInput: The port is in use or reserved, or the address is not one of this machine.
        """
        options = self.options
        speaks = [tongue(path, options.dialect) for path in ('/', PATH)]
        # A socket more than there are clients, and then some, so that health and metrics can be asked for.
        kind = type('_Counted', (_Connection,), {'most': 2 * options.connections + 16, 'sockets': self._sockets})
        try:
            self._server = await serve(
                self._converse,
                options.host,
                options.port,
                process_request=self._greet,
                process_response=self._introduce,
                create_connection=kind,
                # Robots are no browsers, and a web page must not reach what listens on this machine.
                origins=[None, *map(Origin, options.origins)],
                compression=None,
                server_header=None,
                open_timeout=options.handshake_s,
                ping_interval=options.ping_interval_s,
                ping_timeout=options.ping_timeout_s,
                close_timeout=CLOSE_S,
                max_size=options.message_bytes or max(each.size for each in speaks if each is not None),
                logger=_PROTOCOL_LOG,
            )
        except OSError as error:
            self.service.close()
            raise InvalidInput('policy server', [_opening_problem(error, options)]) from error
        self._port = int(next(iter(self._server.sockets)).getsockname()[1])
        if not options.is_local and options.api_key is None:
            _LOG.warning('%s can be reached from other machines, and no key is asked for', self.url)

    @property
    def port(self) -> int:
        """The port that is listened at."""
        return self._port

    @property
    def url(self) -> str:
        """Where clients find the server."""
        host = self.options.host
        return f'ws://[{host}]:{self.port}' if ':' in host else f'ws://{host}:{self.port}'

    @property
    def connections(self) -> int:
        """Clients that are connected."""
        return len(self._conversations)

    async def drain(self, within_s: float = math.inf) -> None:
        """Take no more, finish what is under way within the time for it, and close all connections (1001).

        Args:
            within_s: Longest time for all of it, where that is less; connections that have not ended by then are cut.
        """
        server, self.service.stopping = self._server, True
        if server is None:
            return
        end = asyncio.get_running_loop().time() + within_s
        server.close(close_connections=False)
        pending = [asyncio.ensure_future(talk.quiet.wait()) for talk in self._conversations]
        if pending:
            _, late = await asyncio.wait(pending, timeout=max(0.0, min(self.options.drain_s, within_s - FAREWELL_S)))
            for task in late:
                task.cancel()
        for talk in self._conversations:
            talk.give_up()
        await self._hang_up(server, end)
        self.service.close()

    async def _hang_up(self, server: Server, end: float) -> None:
        """Close all connections, and cut at `end`, in time of the loop, those whose clients do not answer."""
        closing = [connection.close(CloseCode.GOING_AWAY, 'server is stopping') for connection in server.connections]
        farewell = asyncio.gather(*closing, server.wait_closed(), return_exceptions=True)
        if math.isfinite(end):
            await asyncio.wait({farewell}, timeout=max(0.0, end - asyncio.get_running_loop().time()))
            for transport in list(self._sockets):
                transport.abort()
        await farewell

    def _greet(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer what is no websocket, and send away whom there is no place for; None lets the client in."""
        path = request.path.partition('?')[0]
        if path == '/healthz':
            state = HTTPStatus.SERVICE_UNAVAILABLE if self.service.stopping else HTTPStatus.OK
            return connection.respond(state, 'stopping\n' if self.service.stopping else 'OK\n')
        if not self._has_key(request):
            response = self._turn_away(connection, HTTPStatus.UNAUTHORIZED, 'key', 'a key is needed')
            response.headers['WWW-Authenticate'] = 'Api-Key'
            return response
        if path == '/metrics':
            return self._metrics(connection)
        spoken = tongue(path, self.options.dialect)
        if spoken is None:
            return self._turn_away(connection, HTTPStatus.NOT_FOUND, 'path', 'there is nothing here')
        if self.service.stopping or self.connections >= self.options.connections:
            response = self._turn_away(connection, HTTPStatus.SERVICE_UNAVAILABLE, 'full', 'no more clients are taken')
            response.headers['Retry-After'] = '5'
            return response
        connection.protocol.max_message_size = self.options.message_bytes or spoken.size
        return None

    def _introduce(self, _connection: ServerConnection, _request: Request, response: Response) -> None:
        """Tell a client that is let in what the policy is for; those that do not know the header pass over it."""
        if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            response.headers[HEADER] = self._introduction

    def _turn_away(self, connection: ServerConnection, status: HTTPStatus, reason: str, text: str) -> Response:
        self.service.metrics.turn_away(reason)
        return connection.respond(status, f'{text}\n')

    def _has_key(self, request: Request) -> bool:
        if self.options.api_key is None:
            return True
        given = request.headers.get_all('Authorization')
        wanted = f'Api-Key {self.options.api_key}'.encode()
        return len(given) == 1 and hmac.compare_digest(given[0].encode('utf-8', 'replace'), wanted)

    def _metrics(self, connection: ServerConnection) -> Response:
        gauges = {
            'cosmos3_queue_depth': ('Requests that are read, wait, or are computed.', self.service.taken),
            'cosmos3_sessions': ('Robots whose states are remembered.', self.service.sessions),
            'cosmos3_connections': ('Clients that are connected.', self.connections),
        }
        response = connection.respond(HTTPStatus.OK, self.service.metrics.text(gauges))
        del response.headers['Content-Type']
        response.headers['Content-Type'] = CONTENT_TYPE
        return response

    async def _converse(self, connection: ServerConnection) -> None:
        """Speak with a client that was let in."""
        request = connection.request
        spoken = tongue(request.path.partition('?')[0], self.options.dialect) if request is not None else None
        if spoken is None or self.service.stopping or self.connections >= self.options.connections:
            self.service.metrics.turn_away('full')
            await connection.close(CloseCode.TRY_AGAIN_LATER, 'no more clients are taken')
            return
        await self._talk(connection, spoken)

    async def _talk(self, connection: ServerConnection, spoken: Tongue) -> None:
        caller = Caller(spoken, str(next(self._numbers)))
        talk = Conversation(connection, caller, self.service, self._contract, self.options)
        self._conversations.add(talk)
        try:
            await talk.run()
        finally:
            self._conversations.discard(talk)


def serve_until_stopped(server: PolicyServer, started: Callable[[], Any] = lambda: None) -> None:
    """Serve until SIGTERM or SIGINT, then drain; main thread only. A second signal ends the waiting.

    Args:
        server: Not yet started.
        started: Called when the port is open.

    Raises:
        InvalidInput: As :meth:`PolicyServer.start`.
    """
    asyncio.run(_serve(server, started))


async def _serve(server: PolicyServer, started: Callable[[], Any]) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    await server.start()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    started()
    await stop.wait()
    stop.clear()
    draining, again = asyncio.ensure_future(server.drain()), asyncio.ensure_future(stop.wait())
    await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if draining.done():
        draining.result()
        return
    draining.cancel()
    with suppress(asyncio.CancelledError):
        await draining


class BackgroundServer:
    """A server on a thread with an event loop of its own, for programs that have something else to do.

    with BackgroundServer(PolicyServer(policy, contract, options)) as server:
        ...
    """

    def __init__(self, server: PolicyServer) -> None:
        """Nothing happens before the block is entered."""
        self.server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name='policy-server-loop', daemon=True)

    def __enter__(self) -> Self:
        """Start; raises as :meth:`PolicyServer.start`."""
        self._thread.start()
        try:
            self._wait(self.server.start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Drain."""
        self.stop()

    def stop(self, within_s: float = math.inf) -> None:
        """Drain and end; `within_s` as in :meth:`PolicyServer.drain`."""
        try:
            self._wait(self.server.drain(within_s))
        finally:
            self._end()

    @property
    def url(self) -> str:
        """Where clients find the server."""
        return self.server.url

    def drain(self) -> Future[None]:
        """Begin to drain, without waiting for it."""
        return asyncio.run_coroutine_threadsafe(self.server.drain(), self._loop)

    def _wait(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _opening_problem(error: OSError, options: ServerOptions) -> Problem:
    if error.errno == errno.EADDRINUSE:
        return Problem('port', 'is in use', str(options.port), '', 'give another one, or 0 for any that is free')
    if error.errno in (errno.EACCES, errno.EPERM):
        return Problem('port', 'is reserved by the system', str(options.port), '1024 to 65535, or 0')
    remedy = '127.0.0.1 for programs on this machine, 0.0.0.0 for the whole network'
    return Problem('host', f'cannot be listened at ({error.strerror or error})', repr(options.host), '', remedy)
