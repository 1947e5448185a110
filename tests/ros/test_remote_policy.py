"""Promises of a policy that runs elsewhere: a laptop drives the robot, also when its server comes and goes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from openpi_client import msgpack_numpy
from rclpy.parameter import Parameter as RosParameter
from websockets.sync.server import ServerConnection

from cosmos3_msgs.action import RunPolicy
from cosmos3_msgs.msg import GuardStatus, PolicyStatus
from cosmos3_ros import qos
from cosmos3_ros.bringup import Options, options_from_text, processes
from cosmos3_ros.guard_node import GuardNode
from cosmos3_ros.policy_remote import DIALECTS
from engine.contract import load_contract
from engine.errors import InvalidInput, ServerError
from engine.evaluation.closed_loop import LoopTerms
from engine.serving import dialects
from engine.serving.server import BackgroundServer, PolicyServer, ServerOptions
from tests.engine.serving.clients import Held, Instant, scripted
from tests.ros.conftest import AT_REST
from tests.ros.system_bench import MOVING_RAD_S, System, can_draw
from tests.ros.test_system import Witness

Result = RunPolicy.Result
CONTRACT = load_contract('demo_joint_pos')
KEY = 'COSMOS3_TEST_POLICY_KEY'


class Still(Instant):
    """Answers with rows in which the arm stays where it is; `marks` tells what to add to the last joint."""

    mark = 0.0

    def infer(self, *arguments: Any, **named: Any):
        chunk = super().infer(*arguments, **named)
        chunk.actions[:] = chunk.actions[0]
        chunk.actions[:, 6] += self.mark
        return chunk


@pytest.fixture
def port() -> int:
    """One that is free, also after a server at it has gone."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@contextmanager
def served(policy: Any, port: int = 0, **options: Any) -> Iterator[BackgroundServer]:
    terms = {'drain_s': 0.0, **options}
    with BackgroundServer(PolicyServer(policy, policy.contract, ServerOptions(port=port, **terms))) as server:
        yield server


@pytest.fixture
def remote(policy_bench) -> Callable[..., Any]:
    """Make a policy node whose policy runs elsewhere."""

    def make(url: str, **parameters: Any) -> Any:
        return policy_bench(checkpoint='', backend='remote', url=url, **{'deadline_s': 5.0, **parameters})

    return make


class Reports:
    """What the policy node says of itself on `/diagnostics`."""

    def __init__(self, graph: Any) -> None:
        self.latest: dict[str, Any] = {}
        graph.node('reader').create_subscription(DiagnosticArray, '/diagnostics', self._keep, 10)

    def _keep(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == 'policy: policy':
                self.latest = {'level': status.level, 'text': status.message}
                self.latest |= {value.key: value.value for value in status.values}


def rows_of(chunk: Any) -> np.ndarray:
    return np.array(chunk.positions).reshape(chunk.rows, -1)


# Driving


@pytest.mark.parametrize('dialect', DIALECTS)
def test_chunks_come_from_the_server_in_every_dialect(graph, sensors, remote, dialect):
    sensors()
    with served(Still(CONTRACT)) as server:
        bench = remote(server.url, dialect=dialect).up()
        bench.run(instruction='close the drawer')
        chunk = bench.have_chunks(2)[1]
        np.testing.assert_allclose(rows_of(chunk), np.tile(AT_REST, (32, 1)), atol=1e-6)
        assert (chunk.instruction, chunk.sequence) == ('close the drawer', 2)
        bench.node.transition('deactivate')
        assert bench.node.transition('cleanup')
        graph.eventually(lambda: server.server.connections == 0, what='the connection is ended')


def test_the_dialects_of_the_node_are_those_of_the_servers():
    assert set(DIALECTS) == set(dialects.DIALECTS)


def test_when_the_server_is_gone_the_run_waits_says_why_and_goes_on_in_a_new_epoch(graph, sensors, remote, port):
    sensors()
    reports = Reports(graph)
    policy = Still(CONTRACT)
    with served(policy, port):
        bench = remote(f'ws://127.0.0.1:{port}', deadline_s=1.0, **{'diagnostic_updater.period': 0.1}).up()
        _, future = bench.run()
        bench.have_chunks(2)
    graph.eventually(lambda: bench.statuses[-1].state == PolicyStatus.WAITING, what='the run waits')
    assert 'cannot be reached' in bench.statuses[-1].missing_or_stale[0]
    graph.eventually(lambda: 'cannot be reached' in reports.latest.get('text', ''), what='diagnostics say why')
    assert reports.latest['level'] == b'\x02'
    assert reports.latest['policy server'] == f'ws://127.0.0.1:{port}/'
    before, epoch = len(bench.chunks), bench.chunks[-1].epoch
    policy.mark = 0.01
    with served(policy, port):
        bench.have_chunks(before + 2)
        first = bench.chunks[before]
        assert (first.epoch > epoch, first.sequence) == (True, 1), 'chunks of before are void'
        assert rows_of(first)[0, 6] == pytest.approx(AT_REST[6] + 0.01)
        assert not future.done(), 'the same run goes on'
        graph.eventually(lambda: bench.statuses[-1].state == PolicyStatus.RUNNING)
        graph.eventually(lambda: reports.latest['level'] == b'\x00', what='diagnostics are at peace')


def set_server_timeout(bench: Any, seconds: float) -> None:
    (result,) = bench.node.set_parameters([RosParameter('server_timeout_s', value=seconds)])
    assert result.successful, result.reason


def test_a_server_that_does_not_come_back_ends_the_run_with_the_reason(graph, sensors, remote, port):
    sensors()
    with served(Still(CONTRACT), port):
        bench = remote(f'ws://127.0.0.1:{port}', deadline_s=1.0).up()
        _, future = bench.run()
        bench.have_chunks(1)
    set_server_timeout(bench, 0.1)  # not before: on a busy machine an answer may well take longer than its deadline
    outcome = bench.outcome(future)
    assert outcome.result.reason == Result.POLICY_ERROR
    assert re.match('gave up waiting for the policy server: ws://.* cannot be reached', outcome.result.text)
    set_server_timeout(bench, 60.0)
    with served(Still(CONTRACT), port):
        bench.run()
        bench.have_chunks(len(bench.chunks) + 1)


def test_a_server_that_is_too_slow_for_the_deadline_is_as_good_as_gone(graph, sensors, remote):
    sensors()
    policy = Held(CONTRACT)
    with served(policy) as server:
        bench = remote(server.url, deadline_s=1.0).up()
        bench.run()
        graph.eventually(lambda: bench.statuses[-1].state == PolicyStatus.WAITING, what='the run waits')
        assert 'did not answer within 1 s' in bench.statuses[-1].missing_or_stale[0]
        policy.go.set()
        bench.have_chunks(1)


def test_a_cancelled_run_is_given_up_at_the_server(graph, sensors, remote):
    sensors()
    policy = Held(CONTRACT)
    with served(policy) as server:
        bench = remote(server.url, deadline_s=60.0).up()
        handle, future = bench.run()
        graph.eventually(lambda: policy.begun.acquire(blocking=False), what='the server infers')
        graph.eventually(handle.cancel_goal_async().done)
        assert bench.outcome(future).result.reason == Result.CANCELED
        assert policy.given_up.acquire(timeout=10)


def test_a_server_that_refuses_what_it_is_asked_ends_the_run(graph, sensors, remote):
    sensors()

    class Broken(Still):
        def infer(self, *arguments: Any, **named: Any):
            raise RuntimeError('a defect')

    with served(Broken(CONTRACT)) as server:
        bench = remote(server.url).up()
        _, future = bench.run()
        result = bench.outcome(future).result
    assert result.reason == Result.POLICY_ERROR
    assert 'internal error' in result.text


@pytest.mark.parametrize(('announced', 'fits'), [(15, True), (0, False)])
def test_chunks_of_other_peoples_policies_may_have_a_length_of_their_own_if_it_is_announced(
    graph, sensors, remote, announced, fits
):
    sensors()
    row = np.array([*AT_REST, 0.0], np.float32)

    def pi(connection: ServerConnection, _number: int) -> None:
        for message in connection:
            asked = msgpack_numpy.unpackb(message)
            assert asked['observation/exterior_image_1_left'].shape == (90, 160, 3)
            connection.send(msgpack_numpy.packb({'actions': np.tile(row, (15, 1))}))

    with scripted(pi) as url:
        bench = remote(url, dialect='openpi', remote_rows=announced).up()
        _, future = bench.run()
        if fits:
            assert rows_of(bench.have_chunks(2)[1]).shape == (15, 7)
        else:
            assert 'float32 [15, 8], not [32, 8]' in bench.outcome(future).result.text
        bench.node.stop()


def test_the_guard_holds_while_the_server_is_gone_and_follows_again_when_it_is_back(graph, sensors, remote, port):
    sensors(rate_hz=50.0)
    given = {'contract': CONTRACT.name, 'dry_run': False, 'chunk_max_age_s': 10.0}
    guard = graph.add(GuardNode(parameter_overrides=[RosParameter(name, value=value) for name, value in given.items()]))
    assert guard.transition('configure'), guard.last_failure
    assert guard.transition('activate'), guard.last_failure
    states: list[GuardStatus] = []
    graph.node('watcher').create_subscription(GuardStatus, 'guard/status', states.append, qos.latched())
    with served(Still(CONTRACT), port):
        bench = remote(f'ws://127.0.0.1:{port}', deadline_s=1.0).up()
        bench.run()
        graph.eventually(lambda: bool(states) and states[-1].state == GuardStatus.TRACKING, what='the guard follows')
    graph.eventually(lambda: states[-1].state == GuardStatus.HOLDING, what='the guard holds')
    assert states[-1].reason_name == 'STALE_SOURCE', states[-1].text
    with served(Still(CONTRACT), port):
        graph.eventually(lambda: states[-1].state == GuardStatus.TRACKING, what='the guard follows again')


# Configuring


def test_configuring_waits_for_no_server_and_the_first_run_does(graph, sensors, remote, port):
    sensors()
    bench = remote(f'ws://127.0.0.1:{port}', deadline_s=1.0).up()
    with served(Still(CONTRACT), port):
        bench.run()
        bench.have_chunks(1)


@pytest.mark.parametrize(
    ('parameters', 'words'),
    [
        ({'url': ''}, 'url: must be given with backend: remote'),
        ({'url': 'http://somewhere'}, 'url: is none of a policy server'),
        ({'api_key_variable': KEY}, 'api_key_variable: names a variable that is empty or not set'),
        ({'checkpoint': 'tiny', 'compiled': 'here', 'splice': 'prefix'}, 'splice: cannot be had from elsewhere'),
        ({'record_directory': 'here'}, 'record_directory: means nothing with backend: remote'),
        ({'preset': 'fast'}, 'preset: is the choice of the server'),
    ],
)
def test_what_cannot_work_is_refused_while_configuring(policy_bench, parameters, words):
    given = {'checkpoint': '', 'backend': 'remote', 'url': 'ws://127.0.0.1:1', **parameters}
    bench = policy_bench(**given)
    assert not bench.node.transition('configure')
    assert words in bench.node.last_failure
    assert len(re.findall('^  ', bench.node.last_failure, re.M)) == (3 if 'compiled' in parameters else 1)


def test_a_server_for_another_contract_is_refused_with_every_difference(remote):
    with served(Instant(load_contract('robomind_dual'))) as server:
        bench = remote(server.url)
        assert not bench.node.transition('configure')
    for field in ('action_space', 'joints', 'grippers', 'views', 'composite'):
        assert f'{field}: is another one at the server' in bench.node.last_failure
    assert 'which serves robomind_dual' in bench.node.last_failure


def test_what_is_no_chunk_of_the_contract_is_refused_while_configuring(remote):
    class Narrow(Still):
        def infer(self, *arguments: Any, **named: Any):
            chunk = super().infer(*arguments, **named)
            return type(chunk)(chunk.actions[:, :7], None, chunk.instruction, chunk.seed, {})

    with served(Narrow(CONTRACT)) as server:
        bench = remote(server.url, warm_up=True)
        assert not bench.node.transition('configure')
    assert 'sent no actions of contract demo_joint_pos: float32 [32, 7], not [32, 8]' in bench.node.last_failure


def test_the_key_is_shown_and_a_wrong_one_is_refused_while_configuring(remote, monkeypatch):
    with served(Still(CONTRACT), api_key='right') as server:
        for key, fits in (('wrong', False), ('right', True)):
            monkeypatch.setenv(KEY, key)
            bench = remote(server.url, api_key_variable=KEY)
            assert bench.node.transition('configure') is fits
            assert fits or 'refused: 401' in bench.node.last_failure
            bench.node.stop()


def test_a_remote_policy_loads_no_network_and_no_weights():
    with served(Still(CONTRACT)) as server:
        code = (
            'import sys, rclpy\n'
            'from rclpy.parameter import Parameter\n'
            'from cosmos3_ros.policy_node import PolicyNode\n'
            'rclpy.init()\n'
            f'given = {{"contract": "demo_joint_pos", "backend": "remote", "url": {server.url!r}}}\n'
            'node = PolicyNode(parameter_overrides=[Parameter(name, value=value) for name, value in given.items()])\n'
            'assert node.transition("configure"), node.last_failure\n'
            'print("\\n".join(sys.modules))\n'
        )
        result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    loaded = result.stdout.split()
    assert 'engine.serving.client' in loaded
    heavy = ('engine.network.', 'engine.checkpoint', 'engine.runtime', 'engine.policy.', 'safetensors')
    assert [name for name in loaded if name.startswith(heavy) or name == 'engine.policy'] == []


# Starting


def test_one_argument_more_starts_the_system_with_a_remote_policy():
    given = {'backend': 'remote', 'url': 'ws://gpu.local:8000', 'dialect': 'openpi', 'api_key_variable': KEY}
    host = {spec.name: spec for spec in processes(options_from_text(given))}['policy']
    assert {name: host.parameters[name] for name in given} == given
    assert 'checkpoint' not in host.parameters


@pytest.mark.parametrize(
    ('given', 'wrong'),
    [
        ({'backend': 'remote'}, {'url'}),
        ({'checkpoint': 'tiny', 'url': 'ws://here', 'dialect': 'openpi'}, {'url', 'dialect'}),
        (
            {'backend': 'remote', 'url': 'ws://here', 'checkpoint': 'tiny', 'device': 'cuda', 'preset': 'fast'},
            {'checkpoint', 'device', 'preset'},
        ),
        ({'backend': 'remote', 'url': 'ws://here', 'dynamics': 'true', 'reasoner': 'true'}, {'dynamics', 'reasoner'}),
    ],
)
def test_arguments_that_contradict_each_other_are_refused_all_at_once(given, wrong):
    with pytest.raises(InvalidInput) as raised:
        processes(options_from_text(given))
    assert {problem.where for problem in raised.value.problems} == wrong


# Evaluating


def test_an_episode_of_a_server_is_the_episode_of_the_policy_behind_it(tiny_checkpoint):
    pytest.importorskip('mujoco')
    import engine
    from cosmos3_ros.eval_runs import EvalOptions, identity
    from cosmos3_ros.eval_world import Cast, make_actor
    from engine.evaluation.expert_paths import Seen
    from engine.evaluation.tasks import make_episode

    picture = np.full((90, 160, 3), 90, np.uint8)
    seen = Seen(0, dict.fromkeys(CONTRACT.views.streams, picture), np.array(AT_REST), 0.0, {})
    with served(engine.load(tiny_checkpoint).policy(CONTRACT)) as server:
        found = []
        for policy in (str(tiny_checkpoint), server.url):
            actor = make_actor(Cast(policy, CONTRACT.name), CONTRACT)
            actor.begin(make_episode('reach', 3))
            found.append(actor.act(seen))
        told = identity(EvalOptions(Path(), Cast(server.url, CONTRACT.name)), CONTRACT)
    np.testing.assert_array_equal(found[0].positions, found[1].positions)
    np.testing.assert_array_equal(found[0].grippers, found[1].grippers)
    assert (told['policy'], told['server']) == (server.url, f'{server.url}/')


def test_a_journal_of_one_policy_is_not_continued_by_another_one_at_the_same_address(tmp_path, port):
    from cosmos3_ros.eval_runs import EvalOptions, identity
    from cosmos3_ros.eval_world import Cast
    from engine.evaluation.closed_loop_runs import Journal

    found = []
    for weights, preset in (('a' * 64, 'reference'), ('b' * 64, 'fast'), ('b' * 64, 'fast')):
        told = {'checkpoint': weights, 'preset': preset, 'dtype': 'float32'}
        with BackgroundServer(PolicyServer(Instant(CONTRACT), CONTRACT, ServerOptions(port=port), told)) as server:
            found.append(identity(EvalOptions(tmp_path, Cast(server.url, CONTRACT.name)), CONTRACT))
        assert found[-1]['served'] == {**told, 'contract_fingerprint': CONTRACT.fingerprint}
    Journal(tmp_path / 'episodes', found[0])
    with pytest.raises(InvalidInput, match='served: is another in the run that lies there'):
        Journal(tmp_path / 'episodes', found[1])
    Journal(tmp_path / 'again', found[1])
    Journal(tmp_path / 'again', found[2])


def test_episodes_are_asked_of_a_server_with_a_key_and_in_its_dialect_and_its_connection_is_ended(monkeypatch, graph):
    pytest.importorskip('mujoco')
    from cosmos3_ros.eval_runs import EvalOptions, identity
    from cosmos3_ros.eval_world import Cast, WorldRunner
    from engine.evaluation.tasks import make_episode

    monkeypatch.setenv(KEY, 'a-secret-key')
    with served(Still(CONTRACT), api_key='a-secret-key', dialect='openpi') as server:
        with pytest.raises(ServerError, match='401'):
            WorldRunner(Cast(server.url, CONTRACT.name))
        cast = Cast(server.url, CONTRACT.name, LoopTerms(120), dialect='openpi', api_key_variable=KEY)
        runner = WorldRunner(cast)
        record = runner.run(make_episode('reach', 0))
        runner.close()
        graph.eventually(lambda: server.server.connections == 0, what='the connection is ended')
        told = identity(EvalOptions(Path(), cast), CONTRACT)
    assert record.chunks > 0
    assert told['dialect'] == 'openpi'
    assert 'a-secret-key' not in str(told)
    monkeypatch.delenv(KEY)
    with pytest.raises(InvalidInput, match=f'names a variable that is empty or not set, got {KEY}'):
        WorldRunner(cast)


# Everything in processes of its own


class ServerProcess:
    """`cosmos3 serve`, which can be killed and started again at the same port."""

    def __init__(self, checkpoint: Path, port: int) -> None:
        self._command = [sys.executable, '-m', 'cosmos3_ros.cli', 'serve', str(checkpoint), '--port', str(port)]
        self._command += ['--contract', CONTRACT.name, '--preset', 'fast']
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout.readline().startswith('ws://'), 'the server did not start'

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


@pytest.mark.slow
@pytest.mark.skipif(bool(can_draw()), reason=can_draw() or 'pictures can be drawn')
def test_a_robot_whose_server_is_killed_comes_to_rest_and_goes_on_with_the_next_server(
    graph, tiny_checkpoint, tmp_path, port
):
    patient = {'/**/policy': {'deadline_s': 10.0, 'server_timeout_s': 200.0}, '/**/guard': {'chunk_max_age_s': 5.0}}
    nodes = {name: {'ros__parameters': values} for name, values in patient.items()}
    (tmp_path / 'params.yaml').write_text(yaml.safe_dump(nodes))
    far = {'backend': 'remote', 'url': f'ws://127.0.0.1:{port}', 'params_file': str(tmp_path / 'params.yaml')}
    system = System(processes(Options(contract=CONTRACT.name, namespace='far', **far)), tmp_path)
    server, witness = ServerProcess(tiny_checkpoint, port), Witness(graph, system, 'far')
    try:
        server.start()
        witness.moving(anew=True)
        server.kill()
        graph.eventually(lambda: witness.statuses[-1].state == GuardStatus.HOLDING, 30.0, 'the guard holds')
        witness.stands_still('without a server')
        graph.eventually(lambda: witness.policy[-1].state == PolicyStatus.WAITING, 30.0, 'the policy waits')
        assert 'policy server' in witness.policy[-1].missing_or_stale[0]
        epoch, told = witness.chunks[-1].epoch, len(witness.chunks)
        server.start()
        graph.eventually(lambda: len(witness.chunks) > told, 60.0, 'chunks of the next server')
        assert witness.chunks[told].epoch > epoch
        graph.eventually(lambda: witness.speed(witness.joints[-1]) > MOVING_RAD_S, 60.0, 'motion')
        assert not witness.outcome.done(), 'it is still the same run'
    finally:
        system.close()
        server.kill()
