"""How a policy server is run, checked all at once."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterator
from dataclasses import dataclass

from engine.errors import InvalidInput, Problem
from engine.serving.dialects import AUTO, DIALECTS
from engine.serving.sessions import MOST_SESSIONS


@dataclass(frozen=True)
class ServerOptions:
    """How a policy server is run.

    Attributes:
        host: Address to listen at. Only programs on this machine reach the default.
        port: 0: any that is free.
        dialect: `auto`, or the only one that is spoken.
        api_key: What `Authorization: Api-Key ...` has to say before anything else happens; None: nothing.
        origins: Web pages, as `https://HOST`, that may connect; requests of all others are refused. Robots name none.
        seed: Of the generator that gives every request a seed of its own, as cosmos-framework's server does.
        deterministic: Give every request `seed` itself. A seed in a request goes before either.
        queue: Requests of all connections that may wait for their turn; those beyond are told to come back.
        connections: Clients at a time.
        pipelined: Requests that one client may send ahead of their answers.
        rate_hz: Requests a second of one connection, over a second or two.
        idle_s: A connection on which nothing is asked for so long is closed; 0: never.
        ping_interval_s: Time between two pings, which tell whether a client that is silent still lives.
        ping_timeout_s: Longest wait for the answer to a ping.
        handshake_s: Longest time from connecting to a complete request.
        drain_s: How long what is under way may take when the server is stopped.
        sessions: Robots whose states are remembered.
        message_bytes: Largest message; None: what the dialect allows, 32 or 64 MiB.
        decode_video: Decode the imagined video of every chunk and send it, where the dialect has a place for it.
        tracebacks: Send tracebacks of defects to clients. They show the inside of this machine.
    """

    host: str = '127.0.0.1'
    port: int = 8000
    dialect: str = AUTO
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    seed: int = 0
    deterministic: bool = False
    queue: int = 16
    connections: int = 64
    pipelined: int = 4
    rate_hz: float = 100.0
    idle_s: float = 3600.0
    ping_interval_s: float = 20.0
    ping_timeout_s: float = 20.0
    handshake_s: float = 5.0
    drain_s: float = 10.0
    sessions: int = MOST_SESSIONS
    message_bytes: int | None = None
    decode_video: bool = False
    tracebacks: bool = False

    def __post_init__(self) -> None:
        problems = [*self._numbers()]
        if self.dialect not in (AUTO, *DIALECTS):
            problems.append(Problem('dialect', 'is not known', repr(self.dialect), ', '.join((AUTO, *DIALECTS))))
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip() == self.api_key != ''):
            problems.append(Problem('api_key', 'is empty, or holds what no header can', '', 'ASCII without blanks'))
        if problems:
            raise InvalidInput('options of the policy server', problems)

    def _numbers(self) -> Iterator[Problem]:
        """Each with its least and its largest value; floats may not be infinite either."""
        for name, least, most in (
            ('port', 0, 65535),
            ('seed', 0, 2**32 - 1),
            ('queue', 0, 10_000),
            ('connections', 1, 10_000),
            ('pipelined', 1, 64),
            ('rate_hz', 0.01, 1e6),
            ('idle_s', 0, 1e8),
            ('ping_interval_s', 0.01, 1e6),
            ('ping_timeout_s', 0.01, 1e6),
            ('handshake_s', 0.01, 600),
            ('drain_s', 0, 3600),
            ('sessions', 1, 10**6),
            ('message_bytes', 1024, 2**31),
        ):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and least <= value <= most):
                yield Problem(name, 'is out of range', str(value), f'{least:g} to {most:g}')

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == 'localhost'
