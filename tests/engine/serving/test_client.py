"""A remote policy: what a local one gives, over every dialect; it reconnects, gives up in time, crosses nothing."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from websockets.sync.server import ServerConnection, serve

from engine.errors import ContractError, CosmosError, InvalidInput, ObservationError, ServerError, ServerUnavailable
from engine.serving.client import RemotePolicy
from engine.serving.dialects import DIALECTS
from engine.serving.terms import read_header
from engine.turns import Cancelled
from tests.engine.serving.clients import Held, Instant, picture, scripted, serving, with_history


@pytest.fixture
def seen(observe, droid):
    return observe(images={view: picture(360, 640, k) for k, view in enumerate(droid.views.streams)})


def actions(value: float = 0.0, rows: int = 32, columns: int = 8) -> bytes:
    return msgpack_numpy.packb({'action': np.full((rows, columns), value, np.float32)})


@pytest.mark.parametrize('name', DIALECTS)
def test_every_dialect_gives_the_chunk_of_the_policy_behind_the_server(server, instant, droid, seen, name):
    with RemotePolicy(server.url, droid, dialect_name=name) as policy:
        chunk = policy.infer(seen, seed=11)
        assert policy.is_current(chunk)
    observation, seed = instant.seen[-1]
    assert (seed, chunk.seed, chunk.instruction) == (11, 11, seen.instruction)
    np.testing.assert_array_equal(chunk.actions, instant.infer(seen, 11).actions)
    assert set(observation.images) == set(droid.views.streams)


def test_a_remote_policy_gives_to_the_bit_what_a_local_one_gives(model, demo_contract, observe):
    contract = replace(demo_contract, sampler=replace(demo_contract.sampler, steps=1, guidance=1.0))
    local, observation = model.policy(contract), observe()
    with serving(local, contract) as server, RemotePolicy(server.url, contract, deadline_s=60) as remote:
        chunk = remote.infer(observation, seed=3)
    np.testing.assert_array_equal(chunk.actions, local.infer(observation, seed=3).actions)


def test_a_broken_connection_is_made_anew_and_chunks_of_before_are_void(droid, seen):
    def script(connection: ServerConnection, number: int) -> None:
        connection.recv()
        if number == 1:
            return  # closes in the middle of a request
        connection.send(actions(number))
        connection.recv()  # and this one is never answered

    with scripted(script) as url, RemotePolicy(url, droid, deadline_s=20) as policy:
        first = policy.infer(seen)
        assert (policy.generation, first.generation) == (1, 1)
        policy._connection.socket.shutdown(2)
        second = policy.infer(seen)
        assert second.actions[0, 0] == 2  # connection 1 ended without an answer
        assert policy.generation == 3
        assert policy.is_current(second)
        assert not policy.is_current(first)


def test_a_server_that_starts_late_is_waited_for_and_none_is_given_up_in_time(droid, seen, unused_port):
    with RemotePolicy(f'ws://127.0.0.1:{unused_port}', droid, deadline_s=0.3) as policy:
        with pytest.raises(ServerError, match='cannot be reached'):
            policy.infer(seen)
        found: list[object] = []
        patient = RemotePolicy(f'ws://127.0.0.1:{unused_port}', droid, deadline_s=20)
        thread = threading.Thread(target=lambda: found.append(patient.infer(seen)))
        thread.start()
        options = {'port': unused_port}
        from engine.serving.server import BackgroundServer, PolicyServer, ServerOptions

        with BackgroundServer(PolicyServer(Instant(droid), droid, ServerOptions(**options))):
            thread.join(timeout=20)
            patient.close()
        assert found[0].actions.shape == (32, 8)


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def test_an_answer_that_comes_too_late_is_not_taken_for_that_of_the_next_request(droid, seen):
    late = threading.Event()

    def script(connection: ServerConnection, number: int) -> None:
        connection.recv()
        if number == 0:
            late.wait(20)
        connection.send(actions(number))

    with scripted(script) as url, RemotePolicy(url, droid, deadline_s=0.3) as policy:
        with pytest.raises(ServerError, match=r'did not answer within 0\.3 s'):
            policy.infer(seen)
        late.set()
        policy._deadline_s = 20
        assert policy.infer(seen).actions[0, 0] == 1


def test_a_request_that_is_given_up_ends_at_the_server_too(droid, seen):
    held = Held(droid)
    with serving(held, droid) as server, RemotePolicy(server.url, droid, deadline_s=30) as policy:
        with pytest.raises(Cancelled):
            policy.infer(seen, cancelled=lambda: held.begun.acquire(blocking=False))
        assert held.given_up.acquire(timeout=10)
        held.go.set()
        assert policy.infer(seen).actions.shape == (32, 8)


def test_a_busy_server_is_asked_again_until_it_has_room(droid, seen):
    def script(connection: ServerConnection, number: int) -> None:
        for answer in ('busy: come back', 'busy: come back', actions(5)):
            connection.recv()
            connection.send(answer)
        for _ in connection:
            connection.send('busy: come back')

    with scripted(script) as url, RemotePolicy(url, droid, deadline_s=20) as policy:
        assert policy.infer(seen).actions[0, 0] == 5
        policy._deadline_s = 0.2
        with pytest.raises(ServerError, match='gave no answer within'):
            policy.infer(seen)
        assert policy.generation == 1


@pytest.mark.parametrize(
    ('answer', 'words'),
    [
        ('Traceback ...', 'the server refused:\nTraceback'),
        (b'\xc1', 'the server sent what cannot be read'),
        (msgpack_numpy.packb({'state': 1}), 'answered without action or actions'),
        (actions(rows=10), r'sent no actions of contract droid_joint_pos: float32 \[10, 8\], not \[32, 8\]'),
        (actions(np.nan), 'sent actions that are not finite'),
        (msgpack_numpy.packb({'action': [[0.0] * 8] * 32}), 'sent no actions of contract'),
    ],
)
def test_what_is_no_chunk_of_the_contract_is_an_error_with_its_reason(droid, seen, answer, words):
    def script(connection: ServerConnection, _number: int) -> None:
        connection.recv()
        connection.send(answer)

    with scripted(script) as url, RemotePolicy(url, droid) as policy, pytest.raises(ServerError, match=words):
        policy.infer(seen)


@pytest.mark.parametrize(
    ('said', 'words'),
    [
        ({'action_space': 'joint_velocity'}, 'action_space: is another one at the server, got joint_velocity'),
        ({'n_external_cameras': 3}, 'views: are fewer exterior ones than the server asks for, got 2, allowed: 3'),
        ({'needs_stereo_camera': True}, 'views: have no pairs of pictures'),
        ({'action_horizon': 16, 'control_hz': 5}, 'control_hz: is another one at the server, got 5, allowed: 15'),
    ],
)
def test_first_words_that_contradict_the_contract_are_told_and_no_connection_is_kept(droid, said, words):
    with serve(lambda connection: connection.send(msgpack_numpy.packb(said)), '127.0.0.1', 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with RemotePolicy(f'ws://127.0.0.1:{server.socket.getsockname()[1]}', droid) as policy:
            with pytest.raises(ContractError) as raised:
                policy.connect()
            assert words in str(raised.value)
            assert len(raised.value.problems) == len(said)
            assert policy.generation == 0
        server.shutdown()
        thread.join()


def test_our_servers_say_in_a_header_what_they_are_for_and_a_robot_for_something_else_is_told_every_difference(
    server, droid, demo_contract
):
    with (
        RemotePolicy(server.url, demo_contract) as policy,
        pytest.raises(ContractError, match='droid_joint_pos') as told,
    ):
        policy.connect()
    assert [problem.where for problem in told.value.problems] == ['composite']
    with RemotePolicy(server.url, replace(droid, name='called otherwise')) as policy:
        policy.connect()


@pytest.mark.parametrize('text', [None, '', 'no json', '[1]', '{' * 5000, '"text"', '{"action_space": {"a": []}}'])
def test_whatever_a_header_says_is_read_or_passed_over(text):
    assert read_header(text) in ({}, {'action_space': {'a': []}})


def test_a_server_that_is_being_stopped_is_asked_again_and_so_is_the_next_one(droid, seen):
    def script(connection: ServerConnection, number: int) -> None:
        connection.recv()
        connection.send('stopping: the server is being shut down' if number == 0 else actions(number))

    with scripted(script) as url, RemotePolicy(url, droid, deadline_s=20) as policy:
        assert policy.infer(seen).actions[0, 0] == 1


def test_what_another_attempt_may_mend_is_told_apart_from_what_it_cannot(droid, seen, unused_port):
    gone = RemotePolicy(f'ws://127.0.0.1:{unused_port}', droid, deadline_s=0.1)
    with gone, pytest.raises(ServerUnavailable):
        gone.infer(seen)
    with (
        scripted(lambda connection, _: connection.send(connection.recv() and 'no')) as url,
        RemotePolicy(url, droid) as policy,
        pytest.raises(ServerError) as raised,
    ):
        policy.infer(seen)
    assert not isinstance(raised.value, ServerUnavailable)


def test_after_a_fault_the_connection_is_made_anew(server, droid, seen):
    with RemotePolicy(server.url, droid) as policy:
        with pytest.raises(ServerError, match='prompt: is too long'):
            policy.infer(replace(seen, instruction='x' * 9000))
        assert policy.infer(seen).actions.shape == (32, 8)
        assert policy.generation == 2


def test_first_words_that_are_none_are_an_error_and_no_connection_is_kept(droid, seen):
    with serve(lambda connection: connection.send('{"type": "error"}'), '127.0.0.1', 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with RemotePolicy(f'ws://127.0.0.1:{server.socket.getsockname()[1]}', droid) as policy:
            for _ in range(2):
                with pytest.raises(ServerError, match=r'refused: \{"type": "error"\}'):
                    policy.infer(seen)
            assert policy.generation == 0
        server.shutdown()
        thread.join()


def test_a_refused_key_is_told_at_once(instant, droid, seen):
    with serving(instant, droid, api_key='right') as server:
        with (
            RemotePolicy(server.url, droid, api_key='wrong', deadline_s=100) as policy,
            pytest.raises(ServerError, match='refused: 401 a key is needed'),
        ):
            policy.infer(seen)
        with RemotePolicy(server.url, droid, api_key='right') as policy:
            assert policy.infer(seen).actions.shape == (32, 8)


def test_a_faulty_observation_is_not_sent(server, instant, droid, seen):
    with RemotePolicy(server.url, droid) as policy:
        with pytest.raises(ObservationError, match='joint_positions'):
            policy.infer(replace(seen, joint_positions=None))
        with pytest.raises(ObservationError, match='cannot be sent to a remote policy'):
            policy.infer(seen, committed=np.zeros((1, 8)))
        with pytest.raises(ObservationError, match='instruction: is empty'):
            policy.prepare(' ')
        assert policy.generation == 0
        policy.prepare('go')
        assert (policy.generation, policy.metadata['n_external_cameras']) == (1, 2)
        with pytest.raises(CosmosError, match='keeps no imagined videos'):
            policy.imagined_video(policy.infer(seen))
    assert len(instant.seen) == 1


@pytest.mark.parametrize('name', DIALECTS)
def test_a_reset_makes_the_server_forget(droid, observe, name):
    contract = with_history(droid, 1)
    images = {view: picture(360, 640, k) for k, view in enumerate(droid.views.streams)}

    def at(joint: float):
        joints, gripper = np.full((2, 7), joint), np.zeros(2)
        return observe(images=images, joint_positions=joints, gripper_position=gripper)

    held = Instant(contract)
    with serving(held, contract) as server, RemotePolicy(server.url, contract, dialect_name=name) as policy:
        policy.infer(at(1.0))
        policy.reset()
        policy.infer(at(2.0))
        sessions = server.server.service.sessions
    assert sessions == 1
    np.testing.assert_array_equal(held.seen[-1][0].joint_positions, np.full((2, 7), 2.0))


@pytest.mark.parametrize('name', ['roboarena', 'vllm-omni'])
def test_a_reset_that_the_server_has_no_room_for_is_asked_again_and_one_that_it_refuses_is_an_error(
    droid, observe, name
):
    contract = with_history(droid, 1)
    held = Held(contract)
    joints, images = np.zeros((2, 7)), {view: picture(360, 640) for view in droid.views.streams}
    seen = observe(images=images, joint_positions=joints, gripper_position=np.zeros(2))
    with (
        serving(held, contract, queue=0) as server,
        RemotePolicy(server.url, contract, dialect_name=name, deadline_s=20) as policy,
        RemotePolicy(server.url, contract, dialect_name=name, deadline_s=20) as other,
    ):
        held.go.set()
        policy.infer(seen)
        held.go.clear()
        thread = threading.Thread(target=other.infer, args=(seen,))
        thread.start()
        for _ in range(2):
            assert held.begun.acquire(timeout=10)
        policy._deadline_s = 0.3
        with pytest.raises(ServerUnavailable, match='gave no answer within'):
            policy.reset()
        policy._deadline_s = 20
        held.go.set()
        policy.reset()
        thread.join(20)
        assert server.server.service.sessions == 1, 'that of the other robot'


@pytest.mark.parametrize(
    ('name', 'answer'),
    [
        ('roboarena', 'Traceback (most recent call last): ...'),
        ('roboarena', msgpack_numpy.packb({'type': 'error', 'message': 'no'})),
        ('vllm-omni', msgpack_numpy.packb({'type': 'error', 'message': 'Internal inference error'})),
        ('vllm-omni', '{"type": "error"}'),
        ('vllm-omni', msgpack_numpy.packb(1)),
    ],
)
def test_a_reset_that_is_answered_with_a_fault_is_none(droid, name, answer):
    def script(connection: ServerConnection, _number: int) -> None:
        for _ in connection:
            connection.send(answer)

    with scripted(script) as url, RemotePolicy(url, droid, dialect_name=name) as policy:
        policy.connect()
        with pytest.raises(ServerError):
            policy.reset()


def test_a_reset_can_be_given_up(droid):
    def script(connection: ServerConnection, _number: int) -> None:
        for _ in connection:
            pass  # and never answers

    with scripted(script) as url, RemotePolicy(url, droid, dialect_name='roboarena', deadline_s=600) as policy:
        policy.connect()
        with pytest.raises(Cancelled):
            policy.reset(cancelled=lambda: True)


@pytest.mark.parametrize(
    ('url', 'changes'),
    [('http://here', {}), ('ws://', {}), ('ws://here:port', {}), ('ws://here', {'deadline_s': 0})],
)
def test_what_cannot_be_a_server_is_refused_at_once(droid, url, changes):
    with pytest.raises(InvalidInput):
        RemotePolicy(url, droid, **changes)


def test_the_path_of_vllm_omni_is_added_where_there_is_none(droid):
    for given, wanted in (('ws://h:1', 'ws://h:1/v1/realtime/robot/openpi'), ('ws://h:1/x', 'ws://h:1/x')):
        assert RemotePolicy(given, droid, dialect_name='vllm-omni')._url == wanted
