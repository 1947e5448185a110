"""The viewer's web server: a fixed set of paths, read only, that no browser can keep waiting or make grow.

Each connection has a thread, which ends with it: when the browser leaves, stops reading, or falls silent. Nothing of a
request but its path and its `Host` is looked at, and no path leads to a file.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import ipaddress
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

from engine.errors import InvalidInput, Problem

MOST_CONNECTIONS = 128
"""A browser opens up to six."""

CLIENT_TIMEOUT_S = 5.0
"""How long a browser may leave a connection idle, or not read what it is sent."""

STOP_S = 0.5
"""Longest wait for the threads of connections that are being closed; it takes milliseconds."""

_ACCEPT_PERIOD_S = 0.05
_SEND_BUFFER = 256 * 1024  # bytes; what the system keeps for a browser that does not read
_TEXT = 'text/plain; charset=utf-8'


@dataclass(frozen=True)
class Reply:
    """An answer to a request: status, body, and headers beyond those that every answer has."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """What is served.

    Attributes:
        replies: By path, what makes the answer. They may be called by several threads at once.
        events_path: Path of the stream of server-sent events.
        event: Makes the next event, one line.
        period_s: Time between two events.
    """

    replies: Mapping[str, Callable[[], Reply]]
    events_path: str
    event: Callable[[], bytes]
    period_s: float


def text_reply(status: HTTPStatus, text: str) -> Reply:
    """An answer for people, or for the log of a script."""
    return Reply(status, _TEXT, f'{text}\n'.encode())


def page_reply() -> Reply:
    """The page. The browser is told to run the page's own script and style, and nothing else."""
    text = files('cosmos3_ros').joinpath('viewer_page.html').read_text(encoding='utf-8')
    policy = (
        f"default-src 'none'; script-src {_digests('script', text)}; style-src {_digests('style', text)}; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {'Content-Security-Policy': policy}
    return Reply(HTTPStatus.OK, 'text/html; charset=utf-8', text.encode(), headers)


def _digests(tag: str, text: str) -> str:
    contents = re.findall(rf'<{tag}>(.*?)</{tag}>', text, re.S)
    digests = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
    return ' '.join(f"'sha256-{digest}'" for digest in digests)


class PageServer(ThreadingHTTPServer):
    """Serves a :class:`Site` from :meth:`start` to :meth:`stop`."""

    allow_reuse_port = False
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: str, port: int, site: Site, log: Callable[[str], None]) -> None:
        """Open the port.

        Args:
            address: Address of this machine to listen at, or a name of it.
            port: Port; 0: any that is free.
            site: What to serve.
            log: Told of defects, with their traceback.

        Raises:
            InvalidInput: The port is in use or reserved, or the address is not one of this machine.
        """
        self.site = site
        self.address = address
        self.stopping = threading.Event()
        self._log = log
        self._changed = threading.Condition()
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(_ACCEPT_PERIOD_S,), name='page', daemon=True)
        try:
            family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
            self.address_family = family
            super().__init__(place, _Handler)  # type: ignore[arg-type]
        except OSError as error:
            raise InvalidInput('page of the viewer', [_opening_problem(error, address, port)]) from error

    def server_bind(self) -> None:
        """Bind, without asking name servers what the address is called."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    @property
    def url(self) -> str:
        """Where a browser on this machine, or on its network, finds the page."""
        host, port = self.server_address[:2]
        if str(host) in ('0.0.0.0', '::'):
            host = socket.gethostname()
        return f'http://[{host}]:{port}/' if ':' in str(host) else f'http://{host}:{port}/'

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Free the port and end every connection, however slow its browser is."""
        self.stopping.set()
        if self._thread.is_alive():
            self.shutdown()
        self.server_close()
        deadline = time.monotonic() + STOP_S
        with self._changed:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self._connections, deadline - time.monotonic())

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread; send it away if there are too many."""
        with self._changed:
            if len(self._connections) >= MOST_CONNECTIONS:
                _send_away(request)
                self.shutdown_request(request)
                return
            self._connections.add(request)
        _set_terms(request)
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no more threads to be had
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def _forget(self, request: Any) -> None:
        with self._changed:
            self._connections.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that left is none; anything else is a defect."""
        if not isinstance(sys.exception(), OSError):
            self._log(f'an answer to a browser broke down:\n{traceback.format_exc()}')

    def knows_itself_as(self, host: str) -> bool:
        """Whether a request for `host` (the header, with or without a port) is meant for this machine.

        A page from elsewhere can let its own name point to this address, and would then be allowed to read answers;
        names that are not this machine's are refused for that.
        """
        try:
            name = urlsplit(f'//{host}').hostname or ''
        except ValueError:
            return False
        own = socket.gethostname().lower()
        if name in ('localhost', self.address.lower(), own, own.partition('.')[0], f'{own}.local'):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = 'HTTP/1.1'
    timeout = CLIENT_TIMEOUT_S
    disable_nagle_algorithm = True
    server: PageServer

    def do_GET(self) -> None:
        """Answer a request."""
        if 'Content-Length' in self.headers or 'Transfer-Encoding' in self.headers:
            self.close_connection = True  # its body is not read, and would pass for the next request
        host = self.headers.get('Host')
        if host is not None and not self.server.knows_itself_as(host):
            self.send_error(HTTPStatus.FORBIDDEN, 'this machine has another name; open the page by its address')
            return
        path, site = self.path.partition('?')[0], self.server.site
        if path == site.events_path:
            self._stream(site)
        elif path in site.replies:
            self._send(site.replies[path]())
        else:
            self.send_error(HTTPStatus.NOT_FOUND, 'there is nothing here')

    def _stream(self, site: Site) -> None:
        """Send events until the browser leaves or the server stops."""
        self.close_connection = True
        self._send_head(HTTPStatus.OK, 'text/event-stream', {'Connection': 'close'})
        self.wfile.write(b'retry: 1000\n\n')
        stopping = self.server.stopping
        while not stopping.is_set():
            self.wfile.write(b'data: ' + site.event() + b'\n\n')
            stopping.wait(site.period_s)

    def _send(self, reply: Reply) -> None:
        self._send_head(reply.status, reply.content_type, {**reply.headers, 'Content-Length': str(len(reply.body))})
        if self.command != 'HEAD':
            self.wfile.write(reply.body)

    def _send_head(self, status: HTTPStatus, content_type: str, headers: Mapping[str, str]) -> None:
        own = {
            'Content-Type': content_type,
            'Cache-Control': 'no-store',
            'X-Content-Type-Options': 'nosniff',
            'X-Frame-Options': 'DENY',
            'Referrer-Policy': 'no-referrer',
            'Cross-Origin-Resource-Policy': 'same-origin',
            'Content-Security-Policy': "default-src 'none'; frame-ancestors 'none'",
        }
        self.send_response(status)
        for name, value in {**own, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request in plain text, and end its connection."""
        status, headers = HTTPStatus(code), {'Connection': 'close'}
        if status is HTTPStatus.NOT_IMPLEMENTED:  # so http.server calls a method that it finds no function for
            status, message = HTTPStatus.METHOD_NOT_ALLOWED, 'the page can only be looked at: GET'
            headers['Allow'] = 'GET'
        refusal = text_reply(status, message or status.phrase)
        self._send(Reply(status, refusal.content_type, refusal.body, headers))

    def version_string(self) -> str:
        """What serves; not in which version of what."""
        return 'cosmos3_ros'

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name in http.server)
        """Requests are not logged: there are dozens a second."""


def _set_terms(connection: socket.socket) -> None:
    """Bound what the system keeps for a browser, and how long it believes in one that has vanished."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(2e3 * CLIENT_TIMEOUT_S))


def _send_away(connection: socket.socket) -> None:
    answer = b'HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\nRetry-After: 5\r\n\r\n'
    with contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(answer)


def _opening_problem(error: OSError, address: str, port: int) -> Problem:
    if error.errno == errno.EADDRINUSE:
        remedy = 'give another one, or 0 for any that is free; `ss -ltnp` shows who has it'
        return Problem('port', 'is in use', str(port), '', remedy)
    if error.errno in (errno.EACCES, errno.EPERM):
        return Problem('port', 'is reserved by the system', str(port), '1024 to 65535, or 0 for any that is free')
    remedy = '127.0.0.1 for browsers on this machine, 0.0.0.0 for the whole network'
    return Problem('address', f'cannot be listened at ({error.strerror or error})', repr(address), '', remedy)
