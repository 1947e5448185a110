"""Promises of the whole system in its own processes: a robot that moves, and stands still however one ends."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import yaml
from action_msgs.srv import CancelGoal
from sensor_msgs.msg import JointState

pytest.importorskip('mujoco', reason='MuJoCo is not installed')

from cosmos3_msgs.action import RunPolicy
from cosmos3_msgs.msg import ActionChunk, ChunkDecision, GuardStatus, PolicyStatus, Verdict
from cosmos3_ros import qos
from cosmos3_ros.action_client import ActionClient
from cosmos3_ros.bringup import Options, processes
from cosmos3_ros.conversions import JointReader
from cosmos3_ros.judge import LADDER, MONITORS
from engine.calibration import Band, Calibration
from engine.checkpoint import open_checkpoint
from engine.contract import load_contract
from engine.monitors import VERSION
from tests.ros.system_bench import AT_REST_RAD_S, MOVING_RAD_S, STARTED_S, System, can_draw

NAMESPACE = 'arena'
JOINTS = tuple(f'panda_joint{i}' for i in range(1, 8))


WHY_NOT = can_draw()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or 'pictures can be drawn'),
]


class Witness:
    """Watches a system from outside, within its namespace, and gives it instructions."""

    def __init__(self, graph: Any, system: System, namespace: str = NAMESPACE) -> None:
        self.graph, self.system = graph, system
        node = graph.node('witness', namespace=namespace)
        self.joints: list[JointState] = []
        self.statuses: list[GuardStatus] = []
        self.policy: list[PolicyStatus] = []
        self.chunks: list[ActionChunk] = []
        self.decisions: list[ChunkDecision] = []
        self.verdicts: list[Verdict] = []
        node.create_subscription(Verdict, 'dynamics/verdict', self.verdicts.append, qos.status(50))
        node.create_subscription(JointState, 'joint_states', self.joints.append, qos.sensor(50))
        node.create_subscription(GuardStatus, 'guard/status', self.statuses.append, qos.latched())
        node.create_subscription(PolicyStatus, 'policy/status', self.policy.append, qos.latched())
        node.create_subscription(ActionChunk, 'policy/chunk', self.chunks.append, qos.status(50))
        node.create_subscription(ChunkDecision, 'guard/decision', self.decisions.append, qos.status(50))
        self.goals = ActionClient(node, RunPolicy, 'run_policy')
        self._cancel = node.create_client(CancelGoal, 'run_policy/_action/cancel_goal')
        self.outcome: Any = None
        self._reader = JointReader(JOINTS, 'joint_states')

    def speed(self, message: JointState) -> float:
        """Speed of the fastest joint, rad/s."""
        velocities = self._reader.read(message).velocities
        assert velocities is not None
        return float(np.abs(velocities).max())

    def is_at_rest(self) -> bool:
        """Whether the last 20 joint states, a fifth of a second, show no motion."""
        return len(self.joints) >= 20 and all(self.speed(message) < AT_REST_RAD_S for message in self.joints[-20:])

    def moving(self, anew: bool = False) -> None:
        """Bring the system to where the robot follows the policy; with `anew` in a run of this witness's own."""
        self.following(anew)
        self.graph.eventually(lambda: self.speed(self.joints[-1]) > MOVING_RAD_S, STARTED_S, 'motion')

    def following(self, anew: bool = False) -> None:
        """The same up to where the guard follows a chunk: whatever stops it may come before the arm has moved much."""
        self.system.start_all()
        for kept in (self.joints, self.policy, self.statuses):
            self.graph.eventually(lambda kept=kept: len(kept) >= 3, STARTED_S, 'all processes are up')
        self.graph.eventually(lambda: self.statuses[-1].state != GuardStatus.INACTIVE, STARTED_S)
        if anew and self.policy[-1].state != PolicyStatus.IDLE:
            self._end_run()
        if self.policy[-1].state == PolicyStatus.IDLE:
            self._instruct()
        since, decided = len(self.statuses) - 1, len(self.decisions)

        def follows() -> bool:
            # Of what the guard says of itself only the last word is kept: it may have stopped before this was read.
            accepted = any(decision.accepted for decision in self.decisions[decided:])
            return accepted or any(status.state == GuardStatus.TRACKING for status in self.statuses[since:])

        self.graph.eventually(follows, STARTED_S, 'an accepted chunk')

    def _instruct(self) -> None:
        self.graph.eventually(self.goals.server_is_ready, STARTED_S)
        sent = self.goals.send_goal_async(RunPolicy.Goal(instruction='put the red cube in the bowl'))
        self.graph.eventually(sent.done)
        assert sent.result().accepted
        self.outcome = sent.result().get_result_async()

    def _end_run(self) -> None:
        """End the run of an earlier test, as anybody may."""
        cancelled = self._cancel.call_async(CancelGoal.Request())
        self.graph.eventually(cancelled.done)
        self.graph.eventually(lambda: self.policy[-1].state == PolicyStatus.IDLE)

    def after_some_joint_states(self) -> int:
        """Let a random time pass, up to half a second of the robot's; return how many joint states that were."""
        count = random.SystemRandom().randrange(50)
        goal = len(self.joints) + count
        self.graph.eventually(lambda: len(self.joints) >= goal, 20.0)
        return count

    def stands_still(self, what: str) -> None:
        self.joints.clear()  # what came before does not count
        self.graph.eventually(self.is_at_rest, 20.0, f'the robot at rest {what}')


@pytest.fixture(scope='module')
def system(tiny_checkpoint, tmp_path_factory) -> Iterator[System]:
    """Processes that outlast single tests; each test starts what it misses."""
    options = Options(contract='demo_joint_pos', checkpoint=str(tiny_checkpoint), robot='sim', namespace=NAMESPACE)
    made = System(processes(options), tmp_path_factory.mktemp('logs'))
    yield made
    made.close()


@pytest.fixture
def witness(graph, system) -> Witness:
    return Witness(graph, system)


@pytest.fixture
def imagining(graph, tiny_checkpoint, tmp_path) -> Iterator[Witness]:
    """A system of its own whose imagination objects to everything that it can judge."""
    everything = {f'{rung.name}/{monitor}': Band((-1.0,), 0.05, 40) for rung in LADDER for monitor in MONITORS}
    contract, checkpoint = load_contract('demo_joint_pos'), open_checkpoint(tiny_checkpoint)
    known = {'checkpoint': checkpoint.fingerprint, 'contract': contract.fingerprint}
    Calibration(everything, known | {'monitors': str(VERSION)}).save(tmp_path / 'bands.json')
    # A busy machine has time for verdicts too, if they may take some.
    patient = {'/**/dynamics': {'budget_s': 10.0, 'ladder': ['brief']}, '/**/guard': {'verdict_max_age_s': 20.0}}
    nodes = {name: {'ros__parameters': values} for name, values in patient.items()}
    (tmp_path / 'params.yaml').write_text(yaml.safe_dump(nodes))
    options = Options(
        contract='demo_joint_pos',
        checkpoint=str(tiny_checkpoint),
        namespace='dream',
        dynamics=True,
        calibration=str(tmp_path / 'bands.json'),
        params_file=str(tmp_path / 'params.yaml'),
    )
    system = System(processes(options), tmp_path)
    yield Witness(graph, system, 'dream')
    system.close()


def test_policy_imagination_guard_and_robot_work_together_and_a_stop_ends_in_rest(imagining):
    imagining.following(anew=True)
    graph = imagining.graph
    graph.eventually(lambda: imagining.statuses[-1].state == GuardStatus.FAULT, 60.0, 'the guard heeds imagination')
    assert imagining.statuses[-1].reason_name == 'VERDICT_STOP', imagining.statuses[-1].text
    said = imagining.statuses[-1].text

    def heeded() -> list[Verdict]:
        return [verdict for verdict in imagining.verdicts if f'chunk {verdict.epoch}/{verdict.sequence}: ' in said]

    graph.eventually(lambda: bool(heeded()), what='the verdict that the guard heeded')
    (stop,) = heeded()
    assert stop.decision == Verdict.STOP
    assert stop.sequence in {chunk.sequence for chunk in imagining.chunks}
    graph.eventually(imagining.outcome.done, what='the result of the run')
    assert imagining.outcome.result().result.reason == RunPolicy.Result.STOPPED_BY_GUARD
    imagining.stands_still('after a verdict')


def test_camera_frames_become_guarded_motion_all_within_a_namespace(graph, witness):
    witness.moving()
    graph.eventually(lambda: sum(decision.accepted for decision in witness.decisions) >= 3, 30.0)
    assert witness.statuses[-1].smallest_velocity_margin >= 0
    assert witness.statuses[-1].smallest_acceleration_margin >= 0
    assert not witness.statuses[-1].dry_run
    observer = graph.node('outsider')
    ours = [name for name, _ in observer.get_topic_names_and_types() if name.endswith(('joint_trajectory', 'chunk'))]
    assert ours
    assert all(name.startswith(f'/{NAMESPACE}/') for name in ours)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_motion_ends_the_guard_with_code_0_and_the_robot_at_rest(witness, system, number):
    witness.moving()
    moment = witness.after_some_joint_states()
    system.send('guard', number)
    assert system.wait('guard') == 0, f'after {moment} joint states; log:\n{system.log("guard")}'
    witness.stands_still(f'after {moment} joint states and a {number.name}')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_motion_ends_the_policy_with_code_0_tells_its_client_and_the_robot_comes_to_rest(
    witness, system, number
):
    witness.moving(anew=True)
    moment = witness.after_some_joint_states()
    system.send('policy', number)
    witness.graph.eventually(witness.outcome.done, what='the result of the run')
    assert witness.outcome.result().result.reason == RunPolicy.Result.DEACTIVATED
    assert system.wait('policy') == 0, f'after {moment} joint states; log:\n{system.log("policy")}'
    witness.stands_still(f'after {moment} joint states and a {number.name}')
    system.start('policy')  # takes longest to start: the next test finds it well under way


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_simulated_robot_with_code_0_and_the_guard_stops_by_itself(witness, system, number):
    witness.moving()
    moment = witness.after_some_joint_states()
    system.send('sim_robot', number)
    assert system.wait('sim_robot') == 0, f'after {moment} joint states; log:\n{system.log("sim_robot")}'
    witness.graph.eventually(lambda: witness.statuses[-1].state == GuardStatus.HOLDING, 10.0, 'the guard holds')
    assert witness.statuses[-1].reason_name != 'NONE'


def test_when_the_policy_is_killed_the_guard_brakes_and_says_why(witness, system):
    witness.moving()
    system.send('policy', signal.SIGKILL)
    assert system.wait('policy') == -signal.SIGKILL
    witness.graph.eventually(lambda: witness.statuses[-1].state == GuardStatus.HOLDING, 10.0, 'the guard holds')
    assert witness.statuses[-1].reason_name != 'NONE'
    assert witness.statuses[-1].text
    witness.stands_still('after the policy was killed')


def test_when_the_guard_is_killed_the_robot_stops_by_what_it_has_and_a_new_guard_takes_over(witness, system):
    witness.moving()
    system.send('guard', signal.SIGKILL)
    assert system.wait('guard') == -signal.SIGKILL
    witness.stands_still('after the guard was killed')
    witness.statuses.clear()
    witness.moving()


def test_when_the_robot_is_killed_the_guard_stops_and_says_why(witness, system):
    witness.moving()
    system.send('sim_robot', signal.SIGKILL)
    assert system.wait('sim_robot') == -signal.SIGKILL
    witness.graph.eventually(lambda: witness.statuses[-1].state == GuardStatus.HOLDING, 10.0, 'the guard holds')
    assert witness.statuses[-1].reason_name != 'NONE'
    assert not any(decision.accepted for decision in _decided_from_now_on(witness)), 'no chunk without a robot'


def _decided_from_now_on(witness: Witness) -> list[ChunkDecision]:
    """Decisions while the guard tells its state five times more."""
    told, decided = len(witness.statuses), len(witness.decisions)
    witness.graph.eventually(lambda: len(witness.statuses) >= told + 5)
    return witness.decisions[decided:]


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('name', ['guard', 'policy', 'sim_robot'])
def test_a_signal_at_any_moment_of_the_start_ends_a_process_with_code_0(graph, system, tmp_path, name, number):
    for _ in range(2):
        moment = random.SystemRandom().uniform(0.0, 5.0)
        once = System([system.specs[name]], tmp_path)
        once.start(name)
        due = time.monotonic() + moment
        graph.eventually(lambda due=due: time.monotonic() >= due, 20.0)
        once.send(name, number)
        assert once.wait(name) == 0, f'{moment:.2f} s after the start; log:\n{once.log(name)}'
