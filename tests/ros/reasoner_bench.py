"""A reasoner node on its graph, a scripted endpoint that it asks, and clients of all that it offers."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rclpy.parameter import Parameter as RosParameter

from cosmos3_msgs.action import MakePlan
from cosmos3_msgs.msg import ReasonerStatus
from cosmos3_msgs.srv import Ask
from cosmos3_ros import qos
from cosmos3_ros.action_client import ActionClient
from cosmos3_ros.reasoner_node import ReasonerNode
from tests.openai_server import OpenAIServer, Request, Says, choosing

CONTRACT = 'demo_joint_pos'
THREE = (('grasp the cube', 'it is grasped'), ('lift it', 'it is in the air'), ('put it down', 'it is on the table'))
HOPELESS = 'it has become impossible'
_CONDITION = re.compile(r'Can it be seen that this is so: (.*)')


def plan_text(steps: Any) -> str:
    return json.dumps({'steps': [{'instruction': what, 'success': seen} for what, seen in steps]})


class Mind:
    """What the endpoint thinks: plans in turn, the last one for ever, and how probable a condition is.

    Attributes:
        plans: What it says to a question for a plan.
        sees: What it says to a question whether something is so; a number is the probability of yes.
        conditions: Those that it was asked about, in order.
        asked_to_plan: Questions for a plan, in order.
    """

    def __init__(self) -> None:
        self.plans: list[Says] = [plan_text(THREE)]
        self.sees: Callable[[str], float | Says] = lambda condition: 0.02 if HOPELESS in condition else 0.98
        self.otherwise: Callable[[Request], Says] = lambda request: 'a red cube'
        self.conditions: list[str] = []
        self.asked_to_plan: list[Request] = []
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Says:
        with self._lock:
            asked = _CONDITION.search(request.text)
            if asked:
                self.conditions.append(asked[1])
                seen = self.sees(asked[1])
                return choosing(yes=seen, no=1.0 - seen) if isinstance(seen, float) else seen
            if 'You plan for' in request.messages[0][1]:
                self.asked_to_plan.append(request)
                return self.plans.pop(0) if len(self.plans) > 1 else self.plans[0]
            return self.otherwise(request)


class ReasonerBench:
    """A reasoner node, the endpoint that it asks, a client, and everything that was said."""

    def __init__(self, graph: Any, server: OpenAIServer | None, mind: Mind, **parameters: Any) -> None:
        remote = {'backend': 'remote', 'url': server.url, 'remote_model': 'tiny'} if server else {}
        quick = {'check_period_s': 0.1, 'timeout_s': 20.0, 'view_timeout_s': 15.0}
        values = {'contract': CONTRACT, **remote, **quick, **parameters}
        overrides = [RosParameter(name, value=value) for name, value in values.items()]
        self.graph, self.server, self.mind = graph, server, mind
        self.node = graph.add(ReasonerNode(parameter_overrides=overrides))
        self.client = graph.node('asker')
        self.statuses: list[ReasonerStatus] = []
        self.feedback: list[MakePlan.Feedback] = []
        self.client.create_subscription(ReasonerStatus, 'reasoner/status', self.statuses.append, qos.latched())
        self.questions = self.client.create_client(Ask, 'ask')
        self.goals = ActionClient(self.client, MakePlan, 'make_plan')

    def up(self) -> ReasonerBench:
        """Configure, activate, and wait for pictures if there are cameras."""
        assert self.node.transition('configure'), self.node.last_failure
        assert self.node.transition('activate'), self.node.last_failure
        self.graph.eventually(self.goals.server_is_ready)
        self.graph.eventually(self.questions.service_is_ready)
        return self

    def sees(self, *views: str) -> ReasonerBench:
        """Wait until there is a fresh picture of these views, or of all."""
        names = views or self.node.views.names
        self.graph.eventually(lambda: not self.node.views.missing(names, self.node.now_ns()), what='pictures')
        return self

    def ask(self, question: str = 'What is on the table?', **fields: Any) -> Ask.Response:
        future = self.questions.call_async(Ask.Request(question=question, **fields))
        self.graph.eventually(future.done, 60.0, 'an answer')
        return future.result()

    def send(self, goal: str = 'tidy up', *, execute: bool = True, **fields: Any) -> Any:
        """Send a goal; return its handle, which says whether it was accepted."""
        sent = self.goals.send_goal_async(
            MakePlan.Goal(goal=goal, execute=execute, **fields),
            feedback_callback=lambda told: self.feedback.append(told.feedback),
        )
        self.graph.eventually(sent.done)
        return sent.result()

    def begin(self, **goal: Any) -> tuple[Any, Any]:
        """Send a goal that must be accepted; return its handle and the future of its outcome."""
        handle = self.send(**goal)
        assert handle.accepted
        return handle, handle.get_result_async()

    def outcome(self, future: Any, timeout: float = 40.0) -> Any:
        """Status and result of a goal, when it has ended."""
        self.graph.eventually(future.done, timeout, 'the end of the plan')
        return future.result()

    def make_plan(self, **goal: Any) -> MakePlan.Result:
        return self.outcome(self.begin(**goal)[1]).result

    def in_phase(self, phase: str, timeout: float = 20.0) -> None:
        """Wait until feedback tells of a phase, now or before."""
        self.graph.eventually(lambda: any(told.phase == phase for told in self.feedback), timeout, phase)

    def says(self, state: int, timeout: float = 10.0) -> ReasonerStatus:
        """Wait until its status tells of a state."""
        self.graph.eventually(lambda: bool(self.statuses) and self.statuses[-1].state == state, timeout, str(state))
        return self.statuses[-1]


@pytest.fixture
def mind() -> Mind:
    return Mind()


@pytest.fixture
def endpoint(mind: Mind) -> Iterator[OpenAIServer]:
    with OpenAIServer(mind) as server:
        yield server


@pytest.fixture
def reasoner_bench(graph: Any, endpoint: OpenAIServer, mind: Mind) -> Callable[..., ReasonerBench]:
    """Make a reasoner node that asks the scripted endpoint; keyword arguments are its parameters."""
    return lambda **parameters: ReasonerBench(graph, endpoint, mind, **parameters)
