"""Policies that do what a test wants, requests, and clients of each dialect as its maker describes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
from openpi_client import msgpack_numpy
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from engine.contract import Contract
from engine.policy import Observation, PolicyChunk
from engine.serving.server import BackgroundServer, PolicyServer, ServerOptions
from engine.turns import Cancelled

PROMPT = 'put the red cube in the bowl'
OMNI = '/v1/realtime/robot/openpi'


class Instant:
    """Answers at once with actions that say what was asked: row k, column j holds k + the joint, then the gripper.

    Attributes:
        seen: Observation and seed of every request.
    """

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.seen: list[tuple[Observation, int]] = []

    def infer(self, observation: Observation, seed: int = 0, cancelled: Callable[[], bool] = lambda: False):
        self.seen.append((observation, int(seed)))
        joints = np.asarray(observation.joint_positions).reshape(-1, len(self.contract.robot.joints))[-1]
        row = np.append(joints, np.asarray(observation.gripper_position).reshape(-1)[-1])
        actions = row + np.arange(self.contract.timing.chunk_rows)[:, None]
        return PolicyChunk(actions.astype(np.float32), None, observation.instruction, int(seed), {})

    def imagined_video(self, chunk: PolicyChunk) -> np.ndarray:
        return np.full((5, 8, 16, 3), 7, np.uint8)


class Held(Instant):
    """Infers until it is let go, or its caller is gone.

    Attributes:
        begun: Released once for every request that has begun.
        go: Set to let all requests end.
        given_up: Released once for every request whose caller left.
    """

    def __init__(self, contract: Contract) -> None:
        super().__init__(contract)
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.given_up = threading.Semaphore(0)

    def infer(self, observation: Observation, seed: int = 0, cancelled: Callable[[], bool] = lambda: False):
        self.begun.release()
        while not self.go.wait(0.005):
            if cancelled():
                self.given_up.release()
                raise Cancelled('given up')
        return super().infer(observation, seed, cancelled)


@contextmanager
def serving(policy: Any, contract: Contract, **options: Any) -> Iterator[BackgroundServer]:
    """A server on a free port of this machine."""
    with BackgroundServer(PolicyServer(policy, contract, ServerOptions(port=0, **options))) as server:
        yield server


@contextmanager
def scripted(script: Callable[[ServerConnection, int], None]) -> Iterator[str]:
    """A server of somebody else: `script` speaks with each connection, numbered from 0; its first words are said."""
    numbers = iter(range(1000))

    def converse(connection: ServerConnection) -> None:
        connection.send(msgpack_numpy.packb({}))
        script(connection, next(numbers))

    with serve(converse, '127.0.0.1', 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f'ws://127.0.0.1:{server.socket.getsockname()[1]}'
        server.shutdown()
        thread.join()


def with_history(contract: Contract, rows: int) -> Contract:
    return replace(contract, embodiment=replace(contract.embodiment, history_rows=rows))


def picture(height: int = 180, width: int = 320, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def state(shift: float = 0.0) -> dict[str, Any]:
    joints = np.array([0.1, -0.6, 0.05, -2.4, 0.0, 1.9, 0.1]) + shift
    return {'observation/joint_position': joints, 'observation/gripper_position': np.array([0.25])}


def exteriors(*numbers: int) -> dict[str, Any]:
    """A wrist picture, and exterior ones with these numbers."""
    cameras = {f'observation/exterior_image_{n}_left': picture(seed=1 + k) for k, n in enumerate(numbers)}
    return {'observation/wrist_image_left': picture(seed=0), **cameras}


def views(shift: float = 0.0, **changed: Any) -> dict[str, Any]:
    """A request of three views counted from 1, as openpi's and cosmos-framework's clients send it."""
    return {**exteriors(1, 2), **state(shift), 'prompt': PROMPT, **changed}


def composite(shift: float = 0.0, height: int = 540, width: int = 640, **changed: Any) -> dict[str, Any]:
    """A request of RoboLab's client."""
    return {'observation/image': picture(height, width), **state(shift), 'prompt': PROMPT, **changed}


class Client:
    """A bare connection that speaks msgpack as openpi writes it."""

    def __init__(self, url: str, path: str = '/', **options: Any) -> None:
        self.socket: ClientConnection = connect(url + path, compression=None, max_size=None, proxy=None, **options)
        self.metadata = msgpack_numpy.unpackb(self.socket.recv(timeout=10))

    def ask(self, request: Any) -> Any:
        """The answer: a text as it is, else what msgpack says."""
        self.send(request)
        return self.receive()

    def send(self, request: Any) -> None:
        self.socket.send(request if isinstance(request, bytes | str) else msgpack_numpy.packb(request))

    def receive(self) -> Any:
        answer = self.socket.recv(timeout=20)
        return answer if isinstance(answer, str) else msgpack_numpy.unpackb(answer)

    def until_closed(self) -> int:
        """The code with which the server ended the connection, after whatever it had to say before."""
        try:
            while True:
                self.receive()
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 1006

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


class RoboArenaClient:
    """RoboArena's client: configured by the server, cameras from 0, every request with its endpoint and session."""

    def __init__(self, url: str, session: str = 'episode 1') -> None:
        self._client = Client(url)
        configuration = dict(self._client.metadata)
        self.resolution = configuration.pop('image_resolution')
        self.wrist = configuration.pop('needs_wrist_camera')
        self.cameras = configuration.pop('n_external_cameras')
        self.stereo = configuration.pop('needs_stereo_camera')
        self.sessions = configuration.pop('needs_session_id')
        self.space = configuration.pop('action_space')
        assert not configuration, 'its configuration takes no other fields'
        self._session = session

    def observation(self, shift: float = 0.0) -> dict[str, Any]:
        keys = [f'observation/exterior_image_{k}_left' for k in range(self.cameras)]
        keys += ['observation/wrist_image_left'] * self.wrist
        images = {key: picture(*self.resolution, seed=k) for k, key in enumerate(keys)}
        cartesian = {'observation/cartesian_position': np.zeros(6)}
        return {**images, **state(shift), **cartesian, 'session_id': self._session, 'prompt': PROMPT}

    def infer(self, observation: dict[str, Any]) -> np.ndarray:
        answer = self._client.ask({**observation, 'endpoint': 'infer'})
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer['actions']

    def reset(self) -> str:
        return self._client.ask({'session_id': self._session, 'endpoint': 'reset'})

    def close(self) -> None:
        self._client.socket.close()


class RoboLabClient:
    """RoboLab's client: letter-boxes three cameras, joins them, plays all rows, and thresholds the gripper."""

    def __init__(self, url: str) -> None:
        self._client = Client(url)

    def infer(self, wrist: np.ndarray, left: np.ndarray, right: np.ndarray, shift: float = 0.0) -> np.ndarray:
        from openpi_client.image_tools import resize_with_pad

        top = resize_with_pad(wrist, 360, 640)
        below = [resize_with_pad(view, 360, 640).reshape(180, 2, 320, 2, 3).astype(int) for view in (left, right)]
        halves = [(view.sum(axis=(1, 3)) // 4).astype(np.uint8) for view in below]
        whole = np.concatenate([top, np.concatenate(halves, axis=1)], axis=0)
        answer = self._client.ask({'observation/image': whole, **state(shift), 'prompt': PROMPT})
        rows = answer['action'].copy()
        rows[:, -1] = rows[:, -1] > 0.5
        return rows

    def close(self) -> None:
        self._client.socket.close()


def legacy(array: np.ndarray) -> dict[bytes, Any]:
    """An array as msgpack-numpy marks it."""
    return {
        b'nd': True,
        b'type': array.dtype.str,
        b'kind': b'',
        b'shape': list(array.shape),
        b'data': array.tobytes(),
    }


def pack_legacy(request: dict[str, Any]) -> bytes:
    marked = {key: legacy(value) if isinstance(value, np.ndarray) else value for key, value in request.items()}
    return msgpack.packb(marked)
