"""Messages that are none: truncated, changed, lying about sizes or types; for tests and benchmarks."""

from __future__ import annotations

import pickle
import random
from typing import Any

import msgpack
import numpy as np

from tests.engine.serving.clients import composite, exteriors, picture, state, views


def marked(**changed: Any) -> dict[bytes, Any]:
    fields = {b'__ndarray__': True, b'data': b'\0' * 56, b'dtype': '<f8', b'shape': [7]}
    return fields | {key.encode(): value for key, value in changed.items()}


LIES = (
    marked(shape=[2**40]),
    marked(shape=[2**31, 2**31]),
    marked(shape=[-7]),
    marked(shape=[7] * 20),
    marked(shape='7'),
    marked(dtype='|O'),
    marked(dtype='|V8'),
    marked(dtype='<c16'),
    marked(dtype='U14'),
    marked(dtype='>i8', data=b'\x7f' * 56),
    marked(dtype=['<f8']),
    marked(dtype='f8' * 1000),
    marked(data=np.full(7, np.nan).tobytes()),
    marked(data=np.full(7, np.inf).tobytes()),
    marked(data=b''),
    marked(data='text'),
    {b'__ndarray__': True},
    {b'__npgeneric__': True, b'data': 10**18, b'dtype': '|u1'},
    {b'nd': True, b'type': '|O', b'kind': b'O', b'shape': [1], b'data': pickle.dumps(print)},
    [[[[[[[[[0]]]]]]]]],
    [[0.0] * 8],
    {'a': {'b': {'c': {}}}},
    None,
    True,
    'text',
    2**63,
    -1e300,
)
FIELDS = ('observation/image', 'observation/joint_position', 'observation/gripper_position', 'prompt', 'seed')
BYTES = (
    b'',
    b'\xc1',
    b'\x80',
    b'\xdf\xff\xff\xff\xff',
    b'\xdd\xff\xff\xff\xff',
    b'\xc6\xff\xff\xff\xff',
    b'\xdb\x7f\xff\xff\xff',
    b'\x91' * 5000,
    b'\xdc\x04\x00' * 3000,
    b'\x90' * 100_000,
    b'\xc7\x08\x05' + b'\0' * 8,
    b'\xd6\xff\0\0\0\0',
    pickle.dumps({'prompt': print}),
)


def frames(count: int, seed: int) -> list[bytes]:
    """So many messages, none of which is a request that can be served."""
    draw = random.Random(seed)
    return [_frame(draw) for _ in range(count)]


def _frame(draw: random.Random) -> bytes:
    kind = draw.randrange(6)
    if kind == 0:
        return draw.choice(BYTES)
    if kind == 1:
        return draw.randbytes(draw.choice((1, 10, 1000, 20_000)))
    request = draw.choice((_small, _cameras, _missing))(draw)
    packed = msgpack.packb(request, default=_mark)
    if kind == 2:
        return packed[: draw.randrange(1, len(packed))]
    if kind == 3:
        damaged = bytearray(packed + b'\xc1')  # more than a message: never served
        for _ in range(draw.randrange(1, 8)):
            damaged[draw.randrange(min(len(damaged), 4000))] = draw.randrange(256)
        return bytes(damaged)
    return packed


def _small(draw: random.Random) -> dict[str, Any]:
    """A request with a lie in it."""
    request: dict[str, Any] = {**composite(height=54, width=64), 'endpoint': 'infer'}
    request[draw.choice(FIELDS[:4])] = draw.choice(LIES[:-5])
    return request


def _cameras(draw: random.Random) -> dict[str, Any]:
    """Pictures and states of wrong shapes and types."""
    request = draw.choice((views(), exteriors(0, 1) | state() | {'prompt': 'x', 'endpoint': 'infer'}))
    wrong = (picture(8, 8), np.zeros((180, 320), np.uint8), np.full((64, 64, 3), np.nan), np.zeros((20, 5000, 3), 'u1'))
    return request | {'observation/wrist_image_left': draw.choice(wrong)}


def _missing(draw: random.Random) -> dict[str, Any]:
    """A request that lacks a field that every dialect wants."""
    request = composite(height=54, width=64)
    del request[draw.choice(('prompt', 'observation/joint_position', 'observation/gripper_position'))]
    return request


def _mark(array: np.ndarray) -> dict[bytes, Any]:
    return {b'__ndarray__': True, b'data': array.tobytes(), b'dtype': array.dtype.str, b'shape': array.shape}
