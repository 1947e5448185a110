"""Promises of the policy server as a managed node: it shares weights, drains, and says how it is doing."""

from __future__ import annotations

import re
import socket
import threading
import time
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from rclpy.parameter import Parameter as RosParameter
from websockets.exceptions import ConnectionClosed

from cosmos3_ros import server_node
from cosmos3_ros.bringup import options_from_text, processes
from cosmos3_ros.bringup_server import SERVER_ARGUMENTS, server_processes
from cosmos3_ros.policy_remote import DIALECTS
from cosmos3_ros.process import GRACE_VARIABLE
from cosmos3_ros.runner import command, main
from cosmos3_ros.server_node import ServerNode, quantile
from engine.contract import load_contract
from engine.errors import InvalidInput
from engine.serving.client import RemotePolicy
from engine.serving.options import ServerOptions
from tests.engine.serving.clients import Client, Held, Instant, views

CONTRACT = load_contract('demo_joint_pos')
KEY = 'COSMOS3_TEST_SERVER_KEY'
HANDSHAKE = (
    b'GET / HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
    b'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n'
)


@pytest.fixture
def make(graph, tiny_checkpoint):
    """Make a server node; keyword arguments are its parameters."""

    def make(**parameters: Any) -> ServerNode:
        given = {'contract': CONTRACT.name, 'checkpoint': str(tiny_checkpoint), 'port': 0, 'warm_up': False}
        given |= {'preset': 'fast', 'diagnostic_updater.period': 0.1, **parameters}
        return graph.add(ServerNode(parameter_overrides=[RosParameter(k, value=v) for k, v in given.items()]))

    return make


@pytest.fixture
def quick(make, monkeypatch):
    """Make a server node whose policy does what a test wants, configured and active."""

    def quick(policy: Any, **parameters: Any) -> ServerNode:
        monkeypatch.setattr(server_node, 'load_policy', lambda *_: policy)
        return up(make(**parameters))

    return quick


def up(node: ServerNode) -> ServerNode:
    assert node.transition('configure'), node.last_failure
    assert node.transition('activate'), node.last_failure
    return node


def reported(graph: Any) -> dict[str, str]:
    """What the node says on `/diagnostics`, kept up to date."""
    found: dict[str, Any] = {}

    def keep(message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == 'server: policy server':
                found.update({value.key: value.value for value in status.values}, level=status.level)
                found['texts'] = (*found.get('texts', ()), status.message)

    graph.node('reader').create_subscription(DiagnosticArray, '/diagnostics', keep, 10)
    return found


def test_a_client_of_openpi_is_served_with_the_weights_of_the_policy_beside_it(make, policy_bench):
    bench = policy_bench(preset='fast')
    assert bench.node.transition('configure'), bench.node.last_failure
    node = up(make())
    assert node.policy.runtime is bench.node.loop.policy.runtime, 'one copy of the weights'
    with RemotePolicy(node.server.url, CONTRACT) as remote:
        remote.connect()
        assert (len(remote.said['checkpoint']), remote.said['preset'], remote.said['dtype']) == (64, 'fast', 'float32')
    client = WebsocketClientPolicy(node.server.url)
    answer = client.infer(views())
    assert answer['actions'].shape == (32, 8)
    assert np.isfinite(answer['actions']).all()
    assert node.transition('deactivate')
    with pytest.raises(ConnectionClosed):
        client.infer(views())
    assert node.transition('cleanup')
    assert bench.node.loop.policy.runtime is not None


def test_deactivating_finishes_what_is_under_way_and_activating_opens_anew(graph, quick):
    policy = Held(CONTRACT)
    node = quick(policy, drain_s=20.0)
    first = Client(node.server.url)
    first.send(views())
    graph.eventually(lambda: policy.begun.acquire(blocking=False), what='the request is under way')
    service = node.server.server.service
    deactivating = threading.Thread(target=node.transition, args=('deactivate',))
    deactivating.start()
    graph.eventually(lambda: service.stopping, what='no more is taken')
    policy.go.set()
    assert first.receive()['actions'].shape == (32, 8)
    assert first.until_closed() == 1001
    deactivating.join(20)
    assert node.state_label == 'inactive'
    assert node.transition('activate'), node.last_failure
    with Client(node.server.url) as again:
        assert again.ask(views())['actions'].shape == (32, 8)


def test_a_request_that_takes_too_long_is_given_up_when_the_node_is_deactivated(graph, quick):
    policy = Held(CONTRACT)
    node = quick(policy, drain_s=0.1)
    with Client(node.server.url) as client:
        client.send(views())
        graph.eventually(lambda: policy.begun.acquire(blocking=False), what='the request is under way')
        assert node.transition('deactivate')
        assert policy.given_up.acquire(timeout=10)
        assert client.until_closed() == 1001


@pytest.mark.parametrize('drain_s', [1.5, 600.0])
def test_a_process_that_is_being_stopped_does_not_wait_for_clients_that_do_not_answer(
    graph, quick, monkeypatch, drain_s
):
    monkeypatch.setenv(GRACE_VARIABLE, '2.0')
    policy = Held(CONTRACT)
    node = quick(policy, drain_s=drain_s)
    port = node.server.server.port
    with socket.create_connection(('127.0.0.1', port)) as deaf, socket.create_connection(('127.0.0.1', port)):
        deaf.sendall(HANDSHAKE)
        assert deaf.recv(4096).startswith(b'HTTP/1.1 101')
        with Client(node.server.url) as client:
            client.send(views())
            graph.eventually(lambda: policy.begun.acquire(blocking=False), what='the request is under way')
            began = time.monotonic()
            assert node.stop()
            assert time.monotonic() - began < 2.0, 'stopped within the grace'
            assert client.until_closed() == 1001
    assert policy.given_up.acquire(timeout=10)


def test_diagnostics_say_what_is_asked_and_how_long_it_takes(graph, quick):
    found = reported(graph)
    policy = Instant(CONTRACT)
    node = quick(policy, queue=4)
    with Client(node.server.url) as client:
        for shift in range(3):
            client.ask(views(shift / 100))
        graph.eventually(lambda: found.get('requests ok') == '3', what='three requests are told')
        assert (found['clients'], found['queue'], found['sessions']) == ('1', '0 of 5', '1')
        assert re.fullmatch(r'\d+\.\d / \d+\.\d', found['request p50 / p95 [ms]'])
        assert found['level'] == b'\x00'

        def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError('a defect')

        policy.infer = broken
        assert 'internal error' in client.ask(views())
    graph.eventually(lambda: any('1 requests met a defect' in text for text in found['texts']), what='the defect')
    graph.eventually(lambda: found['level'] == b'\x00', what='what is over is over')


def test_a_port_in_use_keeps_the_node_inactive_and_says_what_to_do(make, quick):
    busy = quick(Instant(CONTRACT))
    port = int(busy.server.url.rpartition(':')[2])
    other = make(port=port)
    assert other.transition('configure')
    assert not other.transition('activate')
    assert 'port: is in use' in other.last_failure
    assert other.state_label == 'inactive'
    assert busy.transition('deactivate')
    assert other.transition('activate'), other.last_failure


def test_the_key_is_asked_for(quick, monkeypatch):
    monkeypatch.setenv(KEY, 'right')
    node = quick(Instant(CONTRACT), api_key_variable=KEY)
    client = WebsocketClientPolicy(node.server.url, api_key='right')
    assert client.infer(views())['actions'].shape == (32, 8)


@pytest.mark.parametrize(
    ('parameters', 'words'),
    [
        ({'checkpoint': ''}, 'checkpoint: is empty'),
        ({'api_key_variable': 'COSMOS3_NO_SUCH_KEY'}, 'names a variable that is empty or not set'),
        ({'compiled': 'nowhere'}, 'nowhere'),
    ],
)
def test_what_cannot_work_is_refused_while_configuring(make, parameters, words):
    node = make(**parameters)
    assert not node.transition('configure')
    assert words in node.last_failure


def test_the_defaults_of_the_node_are_those_of_the_server_but_for_the_time_it_has_to_stop():
    options = ServerOptions()
    ours = {parameter.name: parameter.default for parameter in server_node.PARAMETERS}
    differ = {name for name in server_node._OPTIONS if ours[name] != getattr(options, name)}
    assert differ == {'drain_s'}
    assert set(DIALECTS) < set(next(p.one_of for p in server_node.PARAMETERS if p.name == 'dialect'))


def test_a_quantile_is_one_of_the_times():
    assert [quantile([3.0, 1.0, 2.0, 4.0], share) for share in (0.0, 0.5, 0.95, 1.0)] == [1.0, 2.0, 4.0, 4.0]


# Starting


def test_the_server_shares_the_process_of_the_policy_if_it_is_asked_to():
    host = {s.name: s for s in processes(options_from_text({'checkpoint': 'tiny', 'server': 'true'}))}['policy']
    assert host.nodes == ('policy', 'server')


def test_alone_it_is_one_process_that_the_launch_file_and_the_runner_start():
    given = {'checkpoint': 'tiny', 'contract': CONTRACT.name, 'port': '0', 'api_key_variable': KEY, 'namespace': 'a'}
    (spec,) = server_processes(given)
    assert (spec.nodes, spec.parameters['port'], spec.parameters['autostart']) == (('server',), 0, True)
    assert (spec.parameters['api_key_variable'], spec.namespace) == (KEY, 'a')
    assert command(spec)[2:4] == ['cosmos3_ros.host', 'server']


def test_faulty_arguments_are_reported_all_at_once(capsys):
    with pytest.raises(InvalidInput) as raised:
        server_processes({'contract': CONTRACT.name, 'port': '70000', 'params_file': 'nowhere', 'namespace': '1/2'})
    assert {problem.where for problem in raised.value.problems} == {'checkpoint', 'port', 'params_file', 'namespace'}
    assert main(['server', 'robot:=sim']) == 2
    assert 'robot: unknown argument' in capsys.readouterr().err
    assert main(['server', '--show-args']) == 0
    told = capsys.readouterr().out
    assert all(argument.name in told for argument in SERVER_ARGUMENTS)


@pytest.mark.slow
def test_as_a_process_it_serves_and_ends_with_code_0(program, tiny_checkpoint, tmp_path):
    import signal

    given = [f'contract:={CONTRACT.name}', f'checkpoint:={tiny_checkpoint}', 'port:=0', 'preset:=fast']
    one = program('-m', 'cosmos3_ros.runner', 'server', *given)
    one.wait_for('is served at', timeout=90.0)
    url = re.search(r'is served at (ws://\S+),', one.output)[1]
    assert WebsocketClientPolicy(url).infer(views())['actions'].shape == (32, 8)
    assert one.end(signal.SIGINT, timeout=20.0)[0] == 0
