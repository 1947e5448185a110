"""One connection: requests are taken as they come and answered in that order.

Listening never waits for an answer, so that pings are answered, and a client that leaves is noticed, at any time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from engine.serving import wire
from engine.serving.base import Fault, Refusal

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection

    from engine.contract import Contract
    from engine.serving.options import ServerOptions
    from engine.serving.service import Caller, Service

MOST_REFUSALS: Final = 64
"""Refusals that wait to be sent; a client that sends on and on without reading them is sent away."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Item:
    """A message, or why it will not be read; and when it came."""

    content: bytes | Refusal
    arrived: float


class Allowance:
    """So many requests a second, and as many at once as two seconds bring, at least two."""

    def __init__(self, rate_hz: float) -> None:
        """Begin with all of it."""
        self._rate_hz = rate_hz
        self._most = max(2.0, 2.0 * rate_hz)
        self._left = self._most
        self._at = time.monotonic()

    def take(self) -> bool:
        """Whether one more is allowed now; if so it is counted."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._rate_hz)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Conversation:
    """One connection from its first message to its last.

    Attributes:
        quiet: Set while nothing is asked for or answered.
    """

    def __init__(
        self, connection: ServerConnection, caller: Caller, service: Service, contract: Contract, options: ServerOptions
    ) -> None:
        """Speak with a client whose connection has just been opened."""
        self.quiet = asyncio.Event()
        self.quiet.set()
        self._connection = connection
        self._caller = caller
        self._service = service
        self._contract = contract
        self._options = options
        self._inbox: asyncio.Queue[_Item] = asyncio.Queue()
        self._messages = 0  # of the inbox, without refusals
        self._allowance = Allowance(options.rate_hz)

    async def run(self) -> None:
        """Speak until either side ends it."""
        tasks = set()
        try:
            await self._connection.send(wire.pack(self._caller.tongue.metadata(self._contract)))
            tasks = {asyncio.create_task(self._listen()), asyncio.create_task(self._answer())}
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except ConnectionClosed:
            pass
        finally:
            self.quiet.set()
            self._service.forget(self._caller)
            for task in tasks:
                task.cancel()
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(error, Exception) and not isinstance(error, ConnectionClosed):
                    _LOG.error('a connection broke down', exc_info=error)

    def give_up(self) -> None:
        """Ask the inference under way to end early."""
        self._caller.gone.set()

    async def _listen(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._options.idle_s or None):
                    message = await self._connection.recv()
            except TimeoutError:
                if not self.quiet.is_set():
                    continue
                await self._connection.close(CloseCode.NORMAL_CLOSURE, f'idle for {self._options.idle_s:g} s')
                return
            self.quiet.clear()
            self._inbox.put_nowait(_Item(self._admitted(message), time.perf_counter()))
            if self._inbox.qsize() > MOST_REFUSALS + self._options.pipelined:
                await self._connection.close(CloseCode.POLICY_VIOLATION, 'too many requests')
                return

    def _admitted(self, message: bytes | str) -> bytes | Refusal:
        """The message, or why it is not looked at."""
        if not self._allowance.take():
            text = f'busy: more than {self._options.rate_hz:g} requests a second on this connection'
            return Refusal(Fault.RATE, text)
        if isinstance(message, str):
            return Refusal(Fault.INVALID, 'request: a text; allowed: binary messages of msgpack', ('request: a text',))
        if self._messages >= self._options.pipelined:
            text = f'busy: {self._messages} requests of this connection wait for their answers'
            return Refusal(Fault.BUSY, text)
        self._messages += 1
        return message

    async def _answer(self) -> None:
        while True:
            item = await self._inbox.get()
            if isinstance(item.content, Refusal):
                frame = self._service.refuse(self._caller, item.content)
            else:
                frame = await self._service.answer(item.content, self._caller, item.arrived)
                self._messages -= 1
            await self._connection.send(frame.data)
            self._caller.previous_ms = 1e3 * (time.perf_counter() - item.arrived)
            if frame.closes:
                await self._connection.close(CloseCode.INTERNAL_ERROR, 'the previous message says why')
                return
            if self._inbox.empty():
                self.quiet.set()
            del item, frame  # pictures must not be kept until the next request
