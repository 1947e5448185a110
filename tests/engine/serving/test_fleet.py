"""A fleet of replicas behind one server: none dies with a request in hand, none answers for another robot."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import engine
from cosmos3_ros.cli import main
from engine.contract import with_preset
from engine.errors import CosmosError, InvalidInput, Problem, ServerUnavailable
from engine.serving import fleet
from engine.serving.base import BusyError
from engine.serving.fleet import FleetChunk, FleetPlan, FleetPolicy, Made, read_arguments
from engine.serving.worker import Worker
from engine.turns import Cancelled
from tests.engine.serving.clients import Client, composite, serving

ROBOTS = 6


# Without Ray


class Answer:
    """What a handle of Ray returns: not there yet for a while, then a value or an error."""

    def __init__(self, outcome: Any, late: int = 0) -> None:
        self.outcome, self.late = outcome, late
        self.cancelled = False

    def result(self, timeout_s: float) -> Any:
        self.late -= 1
        if self.late >= 0:
            raise TimeoutError
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Answers one after the other, errors by raising them; `sessions` are those that were asked for."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self._answers = iter(answers)
        self.sessions: list[str] = []
        self.infer = self

    def options(self, session_id: str) -> Handle:
        self.sessions.append(session_id)
        return self

    def remote(self, *_: Any) -> Answer:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def made(place: str = 'here') -> Made:
    return Made(place, np.zeros((32, 8), np.float32), {'total': 0.1})


def died() -> Answer:
    pytest.importorskip('ray')
    from ray.exceptions import RayActorError

    return Answer(RayActorError())


def test_a_request_whose_replica_dies_is_computed_by_another_once(observe) -> None:
    policy = FleetPolicy(Handle(died(), Answer(made('there'), late=2)), 4)
    chunk = policy.infer_in('robot 1', observe(), 7, lambda: False)
    assert (chunk.place, chunk.seed, policy.again) == ('there', 7, 1)
    assert (policy.sessions, policy.places) == ({'robot 1': 'there'}, {'there': 1})
    policy = FleetPolicy(Handle(died(), died(), Answer(made())), 4)
    with pytest.raises(ServerUnavailable, match='replicas died 2 times'):
        policy.infer_in('robot 1', observe(), 7, lambda: False)


def test_a_fleet_without_room_is_busy_and_asked_no_second_time(observe) -> None:
    pytest.importorskip('ray')
    from ray.serve.exceptions import BackPressureError

    handle = Handle(Answer(BackPressureError(9, 8)), Answer(made()))
    policy = FleetPolicy(handle, 4)
    with pytest.raises(BusyError, match='the replicas have no room'):
        policy.infer(observe(), 0, lambda: False)
    assert policy.again == 0
    assert policy.infer(observe(), 0, lambda: False).place == 'here', 'the second answer was not asked for'


def test_a_handle_that_cannot_be_asked_is_asked_once_more_and_then_told_with_its_reason(observe) -> None:
    pytest.importorskip('ray')
    from ray.serve.exceptions import RayServeException

    policy = FleetPolicy(Handle(RayServeException('no router yet'), Answer(made())), 4)
    assert policy.infer(observe(), 0, lambda: False).place == 'here'
    policy = FleetPolicy(Handle(*(RayServeException('no router yet') for _ in range(2))), 4)
    with pytest.raises(ServerUnavailable, match='no replica could be asked: no router yet'):
        policy.infer(observe(), 0, lambda: False)


def test_two_fleets_on_one_cluster_have_replicas_of_their_own_and_leave_everybody_elses_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = pytest.importorskip('ray')
    done: list[tuple[str, Any]] = []

    class Serve:
        """Of a cluster that belongs to somebody else."""

        def start(self, **_: Any) -> None:
            pass

        def run(self, application: Any, name: str, route_prefix: None) -> Handle:
            done.append(('run', name))
            if application.replicas == 7:
                raise RuntimeError('no such checkpoint')
            return Handle()

        def status(self) -> Any:
            return SimpleNamespace(applications={})

        def delete(self, name: str) -> None:
            done.append(('delete', name))

        def shutdown(self) -> None:
            done.append(('shutdown', None))

    monkeypatch.setattr(fleet, 'find_ray', Serve)
    monkeypatch.setattr(fleet, 'replicas', lambda plan: plan)
    monkeypatch.setattr(ray, 'init', lambda **terms: done.append(('init', terms['address'])))
    monkeypatch.setattr(ray, 'shutdown', lambda: None)
    plan = FleetPlan('here', 'demo_joint_pos')
    with fleet.local_ray(1, address='auto'), fleet.deployed(plan), fleet.deployed(plan):
        names = [name for what, name in done if what == 'run']
        assert len(set(names)) == 2
        assert all(name.startswith('cosmos3-') for name in names)
    assert done[-2:] == [('delete', names[1]), ('delete', names[0])], 'and Serve goes on'
    with fleet.local_ray(1):
        with pytest.raises(CosmosError, match='no such checkpoint'), fleet.deployed(replace(plan, replicas=7)):
            pass
        assert done[-3:-2] == [('init', 'local')], 'a Ray of its own, whatever RAY_ADDRESS says'
        assert done[-1] == ('delete', done[-2][1]), 'what did not start is not left behind'
    assert done[-1] == ('shutdown', None)


def test_what_a_replica_cannot_do_is_told_as_a_local_policy_tells_it(observe) -> None:
    pytest.importorskip('ray')
    wrong = Answer(Made('here', problems=(Problem('instruction', 'is too long'),)))
    policy = FleetPolicy(Handle(wrong, Answer(Made('here', fault='no memory'))), 4)
    with pytest.raises(InvalidInput, match='instruction: is too long'):
        policy.infer(observe(), 0, lambda: False)
    with pytest.raises(CosmosError, match='no memory'):
        policy.infer(observe(), 0, lambda: False)


def test_a_request_that_is_given_up_or_takes_too_long_is_given_up_at_its_replica(observe) -> None:
    pytest.importorskip('ray')
    endless = [Answer(made(), late=10**9) for _ in range(2)]
    policy = FleetPolicy(Handle(*endless), 4, patience_s=0.05)
    with pytest.raises(Cancelled):
        policy.infer(observe(), 0, lambda: True)
    with pytest.raises(ServerUnavailable, match=r'no replica answered within 0\.05 s'):
        policy.infer(observe(), 0, lambda: False)
    assert all(answer.cancelled for answer in endless)


def test_videos_come_with_the_chunk_or_not_at_all() -> None:
    policy = FleetPolicy(Handle(), 4)
    chunk = FleetChunk(np.zeros((32, 8), np.float32), None, 'go', 0, {}, video=np.zeros((5, 8, 8, 3), np.uint8))
    assert policy.imagined_video(chunk).shape == (5, 8, 8, 3)
    with pytest.raises(CosmosError, match='not asked'):
        policy.imagined_video(replace(chunk, video=None))


def test_as_many_requests_are_under_way_as_a_fleet_takes_whatever_the_queue(droid) -> None:
    together = threading.Barrier(3, timeout=20)

    class Several:
        """Answers when three robots ask at a time."""

        parallel = 3

        def infer(self, *_: Any, **__: Any) -> Any:
            raise AssertionError('a fleet is told whose request it is')

        def infer_in(self, session: str, observation: Any, seed: int, cancelled: Any) -> FleetChunk:
            together.wait()
            joint = observation.joint_positions[-1, 0]
            return FleetChunk(np.full((32, 8), joint, np.float32), None, session, seed, {})

        def imagined_video(self, chunk: Any) -> Any:
            raise AssertionError('nobody wants it')

    with serving(Several(), droid, queue=0) as server:
        clients = [Client(server.url) for _ in range(3)]
        for number, client in enumerate(clients):
            client.send(composite(number))
        for number, client in enumerate(clients):
            assert client.receive()['action'][0, 0] == pytest.approx(0.1 + number)
            client.socket.close()


def test_a_worker_of_several_threads_does_all_its_jobs_before_it_ends() -> None:
    together = threading.Barrier(2, timeout=20)
    worker = Worker('test', threads=2)
    jobs = [worker.submit(together.wait) for _ in range(4)]
    assert sorted(job.result(20) for job in jobs) == [0, 0, 1, 1]
    worker.stop(20)


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ({'replicas': 'two'}, 'replicas: cannot be read'),
        ({'speed': '3'}, 'speed: is unknown'),
        ({'warm_up': 'perhaps'}, 'warm_up: cannot be read'),
        ({'port': '99999'}, 'port: is out of range'),
        ({'replicas': '4', 'most': '2'}, 'most: is out of range, got 2, allowed: 4 to 1000'),
        ({'api_key_variable': 'COSMOS3_NO_SUCH_KEY'}, 'api_key: is empty'),
        ({'api_key': 'in plain sight'}, 'api_key: is unknown'),
    ],
)
def test_arguments_of_a_fleet_are_checked_before_anything_starts(given: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        read_arguments({'checkpoint': 'here', 'contract': 'demo_joint_pos', **given})
    assert words in str(raised.value)


def test_arguments_of_a_fleet_are_those_of_its_plan_and_of_the_server() -> None:
    given = {'replicas': '2', 'most': '8', 'device': 'cuda', 'port': '0', 'decode_video': 'true', 'cpus': '0.5'}
    plan, options = read_arguments({'checkpoint': 'here', 'contract': 'demo_joint_pos', **given})
    assert (plan.replicas, plan.most, plan.cpus, plan.gpus_each, plan.parallel) == (2, 8, 0.5, 1.0, 32)
    assert options == {'port': 0, 'decode_video': True}
    with pytest.raises(InvalidInput, match='checkpoint: must be given'):
        read_arguments({})


@pytest.mark.parametrize('size', ['none', '0', '2-', '3-2', '-2'])
def test_a_fleet_of_no_size_is_refused_at_the_command_line(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['serve', 'nowhere', '--contract', 'demo_joint_pos', f'--fleet={size}']) == 2
    assert 'fleet' in capsys.readouterr().err


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(CosmosError, match=r"needs Ray Serve, which is not installed: pip install 'ray\[serve\]'"):
        fleet.find_ray()


# With Ray


class Robot:
    """A robot that asks on and on, each time what only it asks, and knows what the answer has to be."""

    def __init__(self, number: int, policy: engine.Policy, observe: Any) -> None:
        self.number = number
        joints = np.array([number / 10, -0.6, 0.05, -2.4, 0.0, 1.9, 0.1])
        seen = observe(joint_positions=joints, gripper_position=0.25, instruction='go')
        self.wanted = policy.infer(seen, seed=number).actions
        self.request = {
            **{f'observation/{key}': seen.images[view] for key, view in KEYS.items()},
            'observation/joint_position': joints,
            'observation/gripper_position': 0.25,
            'prompt': 'go',
            'seed': number,
            'session_id': f'robot {number}',
        }
        self.answers: list[Any] = []
        self.stop = threading.Event()

    def live(self, url: str) -> None:
        with Client(url) as client:
            for _ in count():
                if self.stop.is_set():
                    return
                self.answers.append(client.ask(self.request))


KEYS = {'wrist_image_left': 'wrist', 'exterior_image_1_left': 'exterior_1', 'exterior_image_2_left': 'exterior_2'}


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Ray keeps sockets in its folder, whose paths may have no more than 107 characters: pytest's are too long."""
    with tempfile.TemporaryDirectory(prefix='ray', ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_replica_that_is_killed_takes_no_request_with_it_and_sessions_stay_where_they_are(
    tiny_checkpoint: Path, model: engine.Cosmos3, demo_contract: engine.Contract, observe: Any, ray_folder: Path
) -> None:
    pytest.importorskip('ray')
    contract = with_preset(demo_contract, 'fast')
    local = model.policy(contract)
    robots = [Robot(number, local, observe) for number in range(ROBOTS)]
    plan = FleetPlan(str(tiny_checkpoint), contract.name, preset='fast', replicas=2, cpus=0.5)
    with (
        fleet.local_ray(1, folder=ray_folder),
        fleet.deployed(plan) as policy,
        serving(policy, contract) as server,
    ):
        threads = [threading.Thread(target=robot.live, args=(server.url,)) for robot in robots]
        for thread in threads:
            thread.start()
        _until(lambda: all(robot.answers for robot in robots))
        homes = dict(policy.sessions)
        victim = min(set(homes.values()), key=list(homes.values()).count)
        before = [len(robot.answers) for robot in robots]
        os.kill(int(victim.partition('@')[0]), signal.SIGKILL)
        # Of these the first may have been under way when the replica died; the second was asked for afterwards.
        _until(lambda: all(len(r.answers) >= n + 2 for r, n in zip(robots, before, strict=True)))
        after = dict(policy.sessions)
        for robot in robots:
            robot.stop.set()
        for thread in threads:
            thread.join(60)
        for robot in robots:
            for answer in robot.answers:
                assert isinstance(answer, dict), answer
                np.testing.assert_allclose(answer['actions'], robot.wanted, atol=1e-4)
    kept = [name for name, place in homes.items() if place != victim]
    assert {name: after[name] for name in kept} == {name: homes[name] for name in kept}
    assert all(place != victim for place in after.values())


def _until(condition: Any, timeout: float = 180.0) -> None:
    import time

    end, pause = time.monotonic() + timeout, threading.Event()
    while not condition():
        assert time.monotonic() < end, 'did not happen in time'
        pause.wait(0.05)
