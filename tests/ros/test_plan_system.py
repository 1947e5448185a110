"""Plans with the whole system in its own processes: a simulated robot that moves, guard, policy, and a reasoner."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

pytest.importorskip('mujoco', reason='MuJoCo is not installed')

from cosmos3_msgs.action import MakePlan
from cosmos3_msgs.msg import GuardStatus, PolicyStatus, ReasonerStatus
from cosmos3_ros import qos
from cosmos3_ros.action_client import ActionClient
from cosmos3_ros.bringup import Options, processes
from tests.openai_server import OpenAIServer
from tests.ros.reasoner_bench import HOPELESS, THREE, Mind
from tests.ros.system_bench import AT_REST_RAD_S, MOVING_RAD_S, STARTED_S, System, can_draw

NAMESPACE = 'plans'


WHY_NOT = can_draw()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or 'pictures can be drawn')]


@pytest.fixture(scope='module')
def mind() -> Mind:
    return Mind()


@pytest.fixture(scope='module')
def system(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, mind: Mind) -> Iterator[System]:
    """All processes, for all tests of this file."""
    folder = tmp_path_factory.mktemp('plans')
    quick = {'/**/reasoner': {'check_period_s': 0.3, 'view_timeout_s': 10.0, 'policy_timeout_s': 20.0}}
    nodes = {name: {'ros__parameters': values} for name, values in quick.items()}
    (folder / 'params.yaml').write_text(yaml.safe_dump(nodes))
    with OpenAIServer(mind) as server:
        options = Options(
            contract='demo_joint_pos',
            checkpoint=str(tiny_checkpoint),
            namespace=NAMESPACE,
            params_file=str(folder / 'params.yaml'),
            reasoner=True,
            reasoner_url=server.url,
            reasoner_model='tiny',
        )
        made = System(processes(options), folder)
        yield made
        made.close()


class Witness:
    """Watches from outside, and sends goals."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.node = node = graph.node('witness', namespace=NAMESPACE)
        self.joints: list[JointState] = []
        self.guard: list[GuardStatus] = []
        self.policy: list[PolicyStatus] = []
        self.reasoner: list[ReasonerStatus] = []
        node.create_subscription(JointState, 'joint_states', self.joints.append, qos.sensor(50))
        node.create_subscription(GuardStatus, 'guard/status', self.guard.append, qos.latched())
        node.create_subscription(PolicyStatus, 'policy/status', self.policy.append, qos.latched())
        node.create_subscription(ReasonerStatus, 'reasoner/status', self.reasoner.append, qos.latched())
        self.goals = ActionClient(node, MakePlan, 'make_plan')

    def up(self) -> None:
        for kept in (self.joints, self.guard, self.policy, self.reasoner):
            self.graph.eventually(lambda kept=kept: bool(kept), STARTED_S, 'all processes are up')
        self.graph.eventually(self.goals.server_is_ready, STARTED_S)
        self.graph.eventually(lambda: self.policy[-1].state == PolicyStatus.IDLE, STARTED_S)

    def plan(self) -> tuple[Any, Any]:
        sent = self.goals.send_goal_async(MakePlan.Goal(goal='tidy up', execute=True))
        self.graph.eventually(sent.done)
        assert sent.result().accepted
        return sent.result(), sent.result().get_result_async()

    def speed(self, message: JointState) -> float:
        return float(np.abs(message.velocity[:7]).max())

    def moves(self) -> None:
        self.joints.clear()
        self.graph.eventually(
            lambda: bool(self.joints) and self.speed(self.joints[-1]) > MOVING_RAD_S, STARTED_S, 'motion'
        )

    def rests(self) -> None:
        self.joints.clear()
        self.graph.eventually(
            lambda: len(self.joints) >= 20 and all(self.speed(one) < AT_REST_RAD_S for one in self.joints[-20:]),
            30.0,
            'the robot at rest',
        )

    def call(self, service: str) -> Trigger.Response:
        client = self.node.create_client(Trigger, service)
        self.graph.eventually(client.service_is_ready)
        called = client.call_async(Trigger.Request())
        self.graph.eventually(called.done)
        self.node.destroy_client(client)
        return called.result()

    def reset(self) -> None:
        """Reset the guard, as soon as its cool-down is over."""
        said: list[str] = []

        def succeeds() -> bool:
            answer = self.call('guard/reset')
            said.append(answer.message)
            return answer.success

        self.graph.eventually(succeeds, what='a reset')
        assert all(text.startswith('too early') for text in said[:-1]), said


@pytest.fixture
def witness(graph: Any, system: System) -> Witness:
    system.start_all()
    made = Witness(graph)
    made.up()
    return made


def test_a_robot_follows_the_steps_of_a_plan_and_rests_when_it_is_done(witness, mind):
    seen: list[int] = []
    # A step is done once the arm was seen to move in it: the physics has the say here, not the clock.
    mind.sees = lambda condition: 0.02 if HOPELESS in condition or not seen else 0.98
    _, future = witness.plan()
    witness.moves()
    seen.append(len(witness.joints))
    witness.graph.eventually(future.done, STARTED_S, 'the end of the plan')
    result = future.result().result
    assert result.reason == MakePlan.Result.DONE, result.text
    assert [step.instruction for step in result.steps] == [what for what, _ in THREE]
    witness.rests()


def test_a_stop_of_the_guard_in_the_middle_of_a_plan_ends_it_in_rest_until_a_person_has_reset_it(witness, mind):
    mind.sees = lambda condition: 0.02
    _, future = witness.plan()
    witness.moves()
    assert witness.call('guard/stop').success
    witness.graph.eventually(future.done, 30.0, 'the end of the plan')
    assert future.result().result.reason == MakePlan.Result.STOPPED_BY_GUARD
    witness.rests()
    assert witness.policy[-1].state == PolicyStatus.IDLE, 'nothing was tried again'
    witness.graph.eventually(lambda: witness.reasoner[-1].state == ReasonerStatus.FAILED)
    witness.graph.eventually(lambda: witness.guard[-1].state == GuardStatus.FAULT)


def test_after_a_reset_a_plan_can_be_carried_out_and_its_cancellation_ends_in_rest(witness, mind):
    mind.sees = lambda condition: 0.02
    if witness.guard[-1].state == GuardStatus.FAULT:
        witness.reset()
        witness.graph.eventually(lambda: witness.guard[-1].state != GuardStatus.FAULT)
    handle, future = witness.plan()
    witness.moves()
    handle.cancel_goal_async()
    witness.graph.eventually(future.done, 30.0, 'the end of the plan')
    assert future.result().result.reason == MakePlan.Result.CANCELED
    witness.rests()


def test_a_signal_in_the_middle_of_a_plan_ends_the_reasoner_with_code_0_and_the_robot_comes_to_rest(
    witness, mind, system
):
    mind.sees = lambda condition: 0.02
    _, future = witness.plan()
    witness.moves()
    system.send('reasoner', signal.SIGINT)
    witness.graph.eventually(future.done, what='the end of the plan')
    assert future.result().result.reason == MakePlan.Result.DEACTIVATED
    assert system.wait('reasoner') == 0, system.log('reasoner')
    witness.rests()
    witness.graph.eventually(lambda: witness.policy[-1].state == PolicyStatus.IDLE)
