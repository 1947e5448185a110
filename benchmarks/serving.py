"""The policy server: what it adds to a request, a fleet of robots, and ten thousand frames that are no requests.

    python benchmarks/serving.py --save
    python benchmarks/serving.py --only load --model tiny --seconds 600

The server is a process of its own; robots and strangers are threads of this one. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import figures
import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed

ROOT = Path(__file__).resolve().parents[1]
# Packages elsewhere have a folder `tests` as well; this one is meant.
sys.modules['tests'] = TESTS = ModuleType('tests')
TESTS.__path__ = [str(ROOT / 'tests')]

from tests.engine.serving.clients import OMNI, Client, composite, views  # noqa: E402
from tests.engine.serving.fuzz import frames  # noqa: E402

OVERHEAD_MS = 10.0
"""What the server may add to a request of the DROID composite."""
SAME = 1.10
"""Latency of a well-behaved client, among and after malformed frames, against before."""
ROUND = 250  # malformed frames made at a time
SLOW = 20
IDLE = 200


class Echo:
    """Answers after a fixed time, as a policy on a GPU does, with actions that say who asked."""

    def __init__(self, contract: Any, seconds: float) -> None:
        self._rows = contract.timing.chunk_rows
        self._seconds = seconds

    def infer(self, observation: Any, seed: int = 0, cancelled: Callable[[], bool] = lambda: False) -> Any:
        """Joints and gripper, one row like the other."""
        from engine.policy import PolicyChunk

        if self._seconds:
            time.sleep(self._seconds)
        row = np.append(np.ravel(observation.joint_positions), np.ravel(observation.gripper_position))
        actions = np.repeat(row[None], self._rows, axis=0).astype(np.float32)
        return PolicyChunk(actions, None, observation.instruction, int(seed), {})


# The server's process


def be_server(options: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    import engine
    from engine.serving.server import PolicyServer, ServerOptions, serve_until_stopped

    contract = engine.load_contract(options.contract)
    policy: Any = Echo(contract, 1e-3 * options.policy_ms)
    if options.model == 'tiny':
        policy = engine.load(options.checkpoint).policy(contract)
        policy.warm_up()
    terms = ServerOptions(port=0, connections=IDLE + 64, rate_hz=1e5, handshake_s=2.0)
    server = PolicyServer(policy, contract, terms)
    serve_until_stopped(server, lambda: print(server.url, flush=True))


class Served:
    """A server that runs."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        self.port = int(url.rpartition(':')[2])

    def memory_mb(self) -> float:
        """Memory that is resident."""
        pages = int(Path(f'/proc/{self.process.pid}/statm').read_text(encoding='ascii').split()[1])
        return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


@contextmanager
def serving(model: str, contract: str, policy_ms: float = 0.0, checkpoint: str = '') -> Iterator[Served]:
    """A server in a process of its own."""
    command = [sys.executable, __file__, '--be-server', '--model', model, '--contract', contract]
    command += ['--policy-ms', str(policy_ms), '--checkpoint', checkpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            url = process.stdout.readline().strip() if process.stdout else ''
            if not url:
                raise SystemExit('the server did not start')
            yield Served(process, url)
            process.send_signal(signal.SIGTERM)
            if process.wait(timeout=60):
                raise SystemExit(f'the server ended with {process.returncode}')
        finally:
            process.kill()


# What it adds


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Round trips of openpi's client with a policy that answers at once, and calls of that policy in this process."""
    import engine

    contract = engine.load_contract('droid_joint_pos')
    found: dict[str, Any] = {'direct_ms': direct_ms(Echo(contract, 0.0), options.requests)}
    with serving('echo', 'droid_joint_pos') as server:
        for name, request in (('composite 540 x 640', composite()), ('three views of 180 x 320', views())):
            client = WebsocketClientPolicy(server.url)
            times = [seconds_of(lambda client=client, request=request: client.infer(request)) for _ in range(20)]
            times = [
                seconds_of(lambda client=client, request=request: client.infer(request))
                for _ in range(options.requests)
            ]
            found[name] = quantiles(times)
            found[f'{name}, in the server beside the model'] = beside_the_model_ms(server.port, options.requests + 20)
    return found


def beside_the_model_ms(port: int, newest: int) -> dict[str, float]:
    """What the server says of itself: time from the arrival of a request to its answer, less that of the inference.

    A mean of the `newest` requests: its page has sums and counts, of which those of the last call are taken off.
    """
    with urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics') as page:
        lines = page.read().decode().splitlines()
    sums = {kind: sum(float(line.split()[-1]) for line in lines if line.startswith(f'{kind}_sum')) for kind in TIMED}
    before = _SAID.get(port, dict.fromkeys(TIMED, 0.0))
    _SAID[port] = sums
    request, inference = (sums[kind] - before[kind] for kind in TIMED)
    return {'mean': round(1e3 * (request - inference) / newest, 3)}


TIMED = ('cosmos3_request_seconds', 'cosmos3_inference_seconds')
_SAID: dict[int, dict[str, float]] = {}


def direct_ms(policy: Echo, requests: int) -> dict[str, float]:
    """The same policy, called."""
    from engine.policy import Observation

    images = {name: np.zeros((360, 640, 3), np.uint8) for name in ('wrist', 'exterior_1', 'exterior_2')}
    observation = Observation(images, 'go', np.zeros(7), 0.0)
    return quantiles([seconds_of(lambda: policy.infer(observation)) for _ in range(requests)])


def seconds_of(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def quantiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    values = 1e3 * np.asarray(seconds)
    return {
        'p50': round(float(np.percentile(values, 50)), 3),
        'p95': round(float(np.percentile(values, 95)), 3),
        'worst': round(float(values.max()), 3),
    }


# A fleet


@dataclass
class Robot:
    """A robot that plays rows at a constant rate, and asks for more whenever so many were played.

    Attributes:
        number: Its joints say it, and so do the actions that are its own.
        size: Of its composite, which is that of the contract.
        crossed: Answers that were somebody else's, or of another request.
        lost: Requests without an answer.
        late: Requests that were due before the one before was answered.
    """

    number: int
    size: tuple[int, int]
    seconds: list[float] = field(default_factory=list)
    server_ms: list[float] = field(default_factory=list)
    crossed: int = 0
    lost: int = 0
    late: int = 0

    def live(self, url: str, period_s: float, end: float, wanted: np.ndarray | None) -> None:
        """Until the end."""
        client = WebsocketClientPolicy(url)
        due = time.monotonic() + self.number * period_s / 8
        for tick in count():
            time.sleep(max(0.0, due - time.monotonic()))
            if time.monotonic() >= end:
                return
            self._ask(client, 0 if wanted is not None else tick, wanted)
            due += period_s
            if due < time.monotonic():
                self.late += 1
                due = time.monotonic()

    def request(self, tick: int) -> dict[str, Any]:
        """An observation that only this robot has, at this tick."""
        joints = np.array([self.number / 10, -0.6, 0.05, -2.4, 0.0, 1.9, tick / 1000])
        image = np.full((*self.size, 3), 30 * self.number % 256, np.uint8)
        return {
            **FRAME,
            'observation/image': image,
            'observation/joint_position': joints,
            'seed': self.number,
        }

    def _ask(self, client: WebsocketClientPolicy, tick: int, wanted: np.ndarray | None) -> None:
        request = self.request(tick)
        began = time.perf_counter()
        try:
            answer = client.infer(request)
        except (RuntimeError, ConnectionClosed):
            self.lost += 1
            return
        self.seconds.append(time.perf_counter() - began)
        self.server_ms.append(1e3 * self.seconds[-1] - answer['server_timing']['infer_ms'])
        rows = answer['action']
        own = np.append(request['observation/joint_position'], 0.25).astype(np.float32)
        same = np.array_equal(rows[0], own) if wanted is None else np.array_equal(rows, wanted)
        self.crossed += not same


FRAME = composite()


def load(options: argparse.Namespace, model: str) -> dict[str, Any]:
    """All robots at a time. Of a policy that answers at once they ask every row, else when they have played all."""
    import engine

    name, seconds, rows = (
        (options.contract, options.seconds, options.rows)
        if model == 'tiny'
        else ('droid_joint_pos', options.echo_seconds, 1)
    )
    period_s, size = rows / options.hz, engine.load_contract(name).views.size
    robots = [Robot(number, size) for number in range(options.robots)]
    with ExitStack() as stack:
        checkpoint = stack.enter_context(tiny_checkpoint()) if model == 'tiny' else ''
        server = stack.enter_context(serving(model, name, checkpoint=checkpoint))
        own = [alone(server.url, robot) if model == 'tiny' else None for robot in robots]
        before, end = server.memory_mb(), time.monotonic() + seconds
        threads = [
            threading.Thread(target=robot.live, args=(server.url, period_s, end, wanted))
            for robot, wanted in zip(robots, own, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = server.memory_mb()
    return {
        'robots': options.robots,
        'contract': name,
        'seconds': seconds,
        'requests a second, each': round(1 / period_s, 3),
        'answers': sum(len(robot.seconds) for robot in robots),
        'lost': sum(robot.lost for robot in robots),
        'crossed': sum(robot.crossed for robot in robots),
        'late': sum(robot.late for robot in robots),
        'latency_ms': quantiles([s for robot in robots for s in robot.seconds]),
        'beside_the_inference_ms': quantiles([ms / 1e3 for robot in robots for ms in robot.server_ms]),
        'memory_mb': [round(before, 1), round(after, 1)],
    }


def alone(url: str, robot: Robot) -> np.ndarray:
    """What the policy answers to a robot when nobody else asks."""
    client = WebsocketClientPolicy(url)
    return np.array(client.infer(robot.request(0))['action'])


@contextmanager
def tiny_checkpoint() -> Iterator[str]:
    """The checkpoint of the demonstration."""
    import engine

    with tempfile.TemporaryDirectory() as folder:
        yield str(engine.make_tiny(Path(folder) / 'tiny', sound=False))


# Abuse


def abuse(options: argparse.Namespace) -> dict[str, Any]:
    """A well-behaved client before, among and after malformed frames, silent and dripping connections, and deaths."""
    with serving('echo', 'droid_joint_pos', policy_ms=options.policy_ms) as server, ExitStack() as stack:
        good = stack.enter_context(Client(server.url))
        for k in range(20):
            proper(good, k)
        throw(server.url, frames(ROUND, 0), '/')  # first-time work, on both sides
        latency = {'before': [proper(good, k) for k in range(options.checks)]}
        memory = [server.memory_mb()]
        for _ in range(IDLE):
            stack.enter_context(Client(server.url))
        dripping = [stack.enter_context(drip(server.port)) for _ in range(SLOW)]
        latency['among'] = among(server, good, options.frames)
        killed = kill_in_a_request(server.url, 5)
        latency['after'] = [proper(good, k) for k in range(options.checks)]
        memory.append(server.memory_mb())
        alive = server.process.poll() is None
        del dripping
    return {
        'malformed frames': options.frames,
        'silent connections': IDLE,
        'dripping handshakes': SLOW,
        'clients killed in a request': killed,
        'policy_ms': options.policy_ms,
        'alive': alive,
        'latency_ms': {name: quantiles(times) for name, times in latency.items()},
        'memory_mb': [round(value, 1) for value in memory],
    }


def among(server: Served, good: Client, total: int) -> list[float]:
    """Round trips of a well-behaved client while strangers send `total` malformed frames, one stranger at each path."""
    halves = [threading.Thread(target=keep_throwing, args=(server.url, total // 2, path)) for path in ('/', OMNI)]
    for half in halves:
        half.start()
    times = []
    while any(half.is_alive() for half in halves):
        times.append(proper(good, len(times) % 1000))
    return times


def keep_throwing(url: str, total: int, path: str) -> None:
    """Malformed frames at one path."""
    for first in range(0, total, ROUND):
        throw(url, frames(min(ROUND, total - first), seed=first + len(path)), path)


def throw(url: str, messages: list[bytes], path: str) -> None:
    """Each message, on a new connection wherever the last one ended."""
    client = Client(url, path)
    for message in messages:
        try:
            answer = client.ask(message)
            ended = isinstance(answer, str)
        except ConnectionClosed:
            ended = True
        if ended:
            client.socket.close()
            client = Client(url, path)
    client.socket.close()


def proper(client: Client, k: int) -> float:
    """One well-formed request; its round trip in seconds."""
    request = {**FRAME, 'observation/joint_position': np.full(7, k / 1000)}
    began = time.perf_counter()
    answer = client.ask(request)
    seconds = time.perf_counter() - began
    if answer['action'][0, 0] != np.float32(k / 1000):
        raise SystemExit('a well-behaved client got the answer of somebody else')
    return seconds


@contextmanager
def drip(port: int) -> Iterator[socket.socket]:
    """A handshake that never ends."""
    with socket.create_connection(('127.0.0.1', port)) as connection:
        connection.sendall(b'GET / HTTP/1.1\r\nX-')
        yield connection


def kill_in_a_request(url: str, times: int) -> int:
    """Processes that are killed while they wait for an answer."""
    for _ in range(times):
        command = [sys.executable, __file__, '--be-victim', url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            if process.stdout is None or process.stdout.readline() != 'sent\n':
                raise SystemExit('a client to be killed did not start')
            process.kill()
    return times


# Report


TITLES = {
    'overhead': "Round trip of openpi's client",
    'load_echo': 'A fleet, policy that answers at once',
    'load_tiny': 'A fleet, tiny checkpoint',
    'abuse': 'Frames that are no requests',
}


def report(found: dict[str, Any]) -> str:
    """All tables, each with the machine as it was then."""
    parts = ['# The policy server']
    for name, title in TITLES.items():
        if name in found:
            figures_ = {key: value for key, value in found[name].items() if key != 'machine'}
            made = round_trips(figures_) if name == 'overhead' else facts_table(figures_)
            parts += [f'## {title}', f'{figures.facts(found[name]["machine"])}.', made]
    return '\n\n'.join(parts)


def round_trips(found: dict[str, Any]) -> str:
    """One row a request."""
    means = {name: times['mean'] for name, times in found.items() if 'mean' in times}
    rows = [[name, *times.values()] for name, times in found.items() if name not in means]
    rows[0][0] = 'the policy called directly'
    rows += [[f'{name} (mean)', mean, '', ''] for name, mean in means.items()]
    return figures.table(['ms, policy that answers at once', 'p50', 'p95', 'worst'], rows)


def facts_table(found: dict[str, Any]) -> str:
    """One row a figure."""
    rows: list[list[Any]] = []
    for name, value in found.items():
        if name == 'memory_mb':
            rows.append(['memory of the server before / after, MB', ' / '.join(map(str, value))])
        elif isinstance(value, dict) and 'p50' in value:
            rows.append([f'{name.removesuffix("_ms")}, ms: p50 / p95 / worst', ' / '.join(map(str, value.values()))])
        elif isinstance(value, dict):
            for part, times in value.items():
                text = ' / '.join(map(str, times.values()))
                rows.append([f'{name.removesuffix("_ms")} {part}, ms: p50 / p95 / worst', text])
        else:
            rows.append([name, value])
    return figures.table(['', 'found'], rows)


def faults(found: dict[str, Any]) -> list[str]:
    """What does not keep its promise."""
    bad = []
    if 'overhead' in found:
        inside = found['overhead'].get('composite 540 x 640, in the server beside the model', {'mean': 0.0})
        if max(found['overhead']['composite 540 x 640']['p50'], inside['mean']) > OVERHEAD_MS:
            bad.append('the server adds more than it may')
    for name in ('load_echo', 'load_tiny'):
        if name in found and found[name]['lost'] + found[name]['crossed']:
            bad.append(f'{name}: answers were lost or crossed')
    if 'abuse' in found:
        latency = found['abuse']['latency_ms']
        slow = [name for name in ('among', 'after') if latency[name]['p50'] > SAME * latency['before']['p50']]
        bad += [f'a well-behaved client waits longer {name}' for name in slow]
    return bad


def parse_options() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=('overhead', 'load', 'abuse'), help='one part; left out: all')
    parser.add_argument('--requests', type=int, default=500, help='of the first part')
    parser.add_argument('--robots', type=int, default=8)
    parser.add_argument('--hz', type=float, default=15.0, help='rows a second')
    parser.add_argument('--rows', type=int, default=32, help='rows that a robot plays before it asks the tiny policy')
    parser.add_argument('--seconds', type=float, default=600.0, help='of the fleet with the tiny policy')
    parser.add_argument('--echo-seconds', type=float, default=120.0, help='of the fleet with one that answers at once')
    parser.add_argument('--model', choices=('echo', 'tiny'), help='policy of the fleet; left out: one after the other')
    parser.add_argument('--contract', default='demo_joint_pos', help='of the tiny policy')
    parser.add_argument('--frames', type=int, default=10_000, help='malformed ones')
    parser.add_argument('--checks', type=int, default=100, help='well-formed requests before and after')
    parser.add_argument('--policy-ms', type=float, default=100.0, help='what an inference takes among malformed frames')
    parser.add_argument('--save', action='store_true', help='keep figures and tables in results')
    parser.add_argument('--be-victim', help=argparse.SUPPRESS)
    parser.add_argument('--be-server', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--checkpoint', default='', help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure, print, and keep the figures if asked to."""
    options = parse_options()
    if options.be_server:
        be_server(options)
        return 0
    if options.be_victim:
        client = Client(options.be_victim)
        client.send(composite())
        print('sent', flush=True)
        client.receive()
    found: dict[str, Any] = {}
    for name, part in parts(options).items():
        found[name] = part() | {'machine': figures.machine()}
        if options.save:
            keep(name, found[name])
    print(report(found))
    bad = faults(found)
    print('\n'.join(bad) or 'all promises kept')
    return bool(bad)


def parts(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is to be measured, by name."""
    wanted: dict[str, Callable[[], dict[str, Any]]] = {}
    if options.only in (None, 'overhead'):
        wanted['overhead'] = lambda: overhead(options)
    if options.only in (None, 'load'):
        for model in (options.model,) if options.model else ('echo', 'tiny'):
            wanted[f'load_{model}'] = lambda model=model: load(options, model)
    if options.only in (None, 'abuse'):
        wanted['abuse'] = lambda: abuse(options)
    return wanted


def keep(name: str, part: dict[str, Any]) -> None:
    """Put one part into the results, beside those of earlier runs."""
    file = figures.RESULTS / 'serving.json'
    found = json.loads(file.read_text(encoding='utf-8')) if file.exists() else {}
    found[name] = part
    figures.save('serving', found, report(found))


if __name__ == '__main__':
    raise SystemExit(main())
