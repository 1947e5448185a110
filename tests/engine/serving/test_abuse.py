"""Whatever strangers send, the server lives, answers those who speak properly, and does not grow."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import struct
import time
from contextlib import ExitStack, suppress

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.engine.serving.clients import OMNI, Client, Held, composite, serving
from tests.engine.serving.fuzz import frames

RESIDENT_MB = 24
"""Noise of the allocator; the large frames of a round that were kept would be 48 MB, every time."""
LARGE = [b'\xc1' + bytes(4_000_000)] * 12


def resident_mb() -> float:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed, but is kept at hand, is no growth
    with open(f'/proc/{os.getpid()}/statm', encoding='ascii') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20


def abuse(url: str, messages: list[bytes], path: str) -> None:
    """Send all of them, over as many connections as it takes."""
    client = Client(url, path)
    for message in messages:
        try:
            client.ask(message)
        except ConnectionClosed:
            client = Client(url, path)
            continue
        if path == '/':  # after a fault these dialects end the connection
            client.socket.close()
            client = Client(url, path)
    client.socket.close()


@pytest.mark.parametrize('path', ['/', OMNI])
def test_a_well_behaved_client_is_served_among_malformed_frames_and_memory_stays_flat(server, instant, path):
    with Client(server.url) as good:
        abuse(server.url, frames(60, seed=1), path)
        instant.seen.clear()
        resident = [resident_mb()]
        for k in range(4):
            abuse(server.url, [*frames(60, seed=2 + k), *LARGE], path)
            assert instant.seen == []  # none of them reached the policy
            answer = good.ask(composite(float(k)))
            assert answer['action'][0, 0] == np.float32(0.1 + k)
            instant.seen.clear()
            resident.append(resident_mb())
        # Whatever else lives in this process may grow at times; what keeps frames grows every time.
        assert np.diff(resident).min() < RESIDENT_MB, resident
    outcomes = {outcome for _, outcome in server.server.service.metrics.requests}
    assert 'invalid' in outcomes
    assert 'internal' not in outcomes


def test_handshakes_that_drip_are_cut_and_silent_connections_are_counted(instant, droid):
    with serving(instant, droid, handshake_s=1.0, connections=20) as server, ExitStack() as stack:
        address = ('127.0.0.1', server.server.port)
        slow = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(30)]
        for connection in slow:
            connection.sendall(b'GET / HTTP/1.1\r\nHost: x\r\nX-')
        good = stack.enter_context(Client(server.url))
        assert good.ask(composite())['action'].shape == (32, 8)
        # Whoever has not said what it wants within the time hears nothing and is cut.
        assert all(ended(connection) for connection in slow)
        taken = 0
        with suppress(InvalidHandshake):
            for taken in range(1, 40):  # noqa: B007
                stack.enter_context(Client(server.url))
        assert taken == 20  # the last of these was turned away
        assert good.ask(composite())['action'].shape == (32, 8)


def ended(connection: socket.socket) -> bool:
    """Whether the other side cut the connection without a word."""
    try:
        return connection.recv(1) == b''
    except ConnectionResetError:
        return True


def test_more_sockets_than_there_is_use_for_are_cut_at_once(instant, droid):
    with serving(instant, droid, connections=2, handshake_s=60) as server, ExitStack() as stack:
        address = ('127.0.0.1', server.server.port)
        sockets = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(60)]
        assert ended(sockets[-1])
        for connection in sockets[:20]:
            connection.close()
        until(lambda: len(server.server._server.handler_tasks) < 20)
        with Client(server.url) as client:
            assert client.ask(composite())['action'].shape == (32, 8)


def test_clients_that_vanish_in_the_middle_of_a_request_leave_nothing_behind(droid):
    policy = Held(droid)
    with serving(policy, droid) as server:
        for _ in range(5):
            client = Client(server.url)
            client.send(composite())
            assert policy.begun.acquire(timeout=10)
            raw = client.socket.socket
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            raw.close()  # as the system does for a client that was killed: a reset
            client.socket.close()
            assert policy.given_up.acquire(timeout=10)
        policy.go.set()
        with Client(server.url) as client:
            assert client.ask(composite())['action'].shape == (32, 8)
        until(lambda: server.server.connections == 0)
        assert server.server.service.taken == 0


def test_half_a_frame_and_a_client_that_reads_nothing_hold_up_nobody(instant, droid):
    options = {'decode_video': True, 'ping_interval_s': 0.1, 'ping_timeout_s': 0.5, 'rate_hz': 1e5}
    with serving(instant, droid, **options) as server, ExitStack() as stack:
        half = stack.enter_context(Client(server.url))
        half.socket.socket.sendall(b'\x82\xfe\xff\xff\0\0\0\0' + b'x' * 1000)  # 65535 bytes are announced
        deaf = socket.create_connection(('127.0.0.1', server.server.port), timeout=10)
        stack.callback(deaf.close)
        deaf.sendall(
            b'GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
            b'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n'
        )
        with Client(server.url) as good:
            assert good.ask(composite())['action'].shape == (32, 8)
            # It answers no ping, so that it is given up; the others are not.
            until(lambda: server.server.connections <= 2)
            assert good.ask(composite())['action'].shape == (32, 8)


def test_a_flood_that_nobody_reads_the_answers_of_is_sent_away(droid):
    policy = Held(droid)
    with serving(policy, droid) as server, Client(server.url, OMNI) as flood, Client(server.url) as good:
        with suppress(ConnectionClosed):
            for _ in range(500):
                flood.send(b'\x80')
        assert flood.until_closed() == 1008
        policy.go.set()
        assert good.ask(composite())['action'].shape == (32, 8)


def until(condition) -> None:
    """Wait until it holds; the test's own time limit says when it is too late."""
    while not condition():
        time.sleep(0.005)
