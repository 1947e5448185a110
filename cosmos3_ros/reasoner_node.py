"""The `reasoner` node: answers questions about what the cameras see, makes plans, and sees them through.

===================  =================================================  ==========================================
subscribes           topics of the contract's views                     pictures
                     `guard/status`                                     a plan that the guard has stopped is over
publishes            `~/status` (latched)                               `ReasonerStatus`
service              `ask`                                              `Ask`
action server        `make_plan`                                        `MakePlan`
action client        `run_policy`                                       `RunPolicy`: the steps of a plan
===================  =================================================  ==========================================

It lives in the process of the policy node and uses the same weights, whose requests go first; or it asks an endpoint,
and may live anywhere. It commands nothing: what it wants done goes through policy and guard as anybody's instruction.
"""

from __future__ import annotations

import threading
import time
import traceback
from functools import partial
from typing import Any

from rclpy.action import GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import Image

from cosmos3_msgs.action import MakePlan, RunPolicy
from cosmos3_msgs.msg import GuardStatus, ReasonerStatus
from cosmos3_msgs.srv import Ask
from cosmos3_ros import diagnostics, qos, reasoner_ask
from cosmos3_ros.action_client import ActionClient
from cosmos3_ros.conversions import image_to_rgb, ns_to_stamp, stamp_to_ns
from cosmos3_ros.goal_server import GoalServer
from cosmos3_ros.node_base import CosmosLifecycleNode, configured
from cosmos3_ros.parameters import Parameter, ParameterSet, Required
from cosmos3_ros.plan_execution import Execution, Now, Reason, Rules
from cosmos3_ros.plan_questions import Planner
from cosmos3_ros.plan_runner import PlanRunner
from cosmos3_ros.plan_runs import PolicyRuns
from cosmos3_ros.process import conclude_s
from cosmos3_ros.reasoner_asker import Asker
from cosmos3_ros.reasoner_messages import duration, feedback_message, result_message, status_message
from cosmos3_ros.reasoner_talker import BACKEND_PARAMETERS, make_talker
from cosmos3_ros.reasoner_views import Scene, Views
from cosmos3_ros.streams import Timeline
from engine.answers.parsers import MAX_STEPS
from engine.contract import Contract, load_contract
from engine.errors import CosmosError, InvalidInput, ObservationError, Problem
from engine.reasoner_questions import MalformedAnswer, Skills
from engine.reasoner_talk import Sampling
from engine.turns import Cancelled

PARAMETERS = (
    Parameter('contract', Required(str), 'Contract: a name in config/contracts, or a path.'),
    *BACKEND_PARAMETERS,
    Parameter(
        'timeline',
        'header',
        'Time that counts for a picture: when it was acquired (header) or when it arrived (receive).',
        one_of=('header', 'receive'),
    ),
    Parameter('views', (), 'Views that are looked at, unless a question names some; empty: all of the contract.'),
    Parameter('thinking', False, 'Think before planning; it takes longer.'),
    Parameter('max_tokens', 1024, 'Longest answer, thinking included.', minimum=16, maximum=32768),
    Parameter('seed', 0, 'Of what is drawn where answers are.', minimum=0, maximum=2**31 - 1),
    Parameter('robot', 'a robot arm with a gripper', 'What plans are made for, in words.'),
    Parameter('examples', (), 'Instructions that the policy follows well; steps are written like them.'),
    Parameter('max_steps', 8, 'Most steps of a plan, unless its goal says.', minimum=1, maximum=MAX_STEPS),
    Parameter('check_period_s', 2.0, 'Time between two looks at a step.', 's', minimum=0.05, maximum=60.0),
    Parameter('confidence', 0.8, 'Probability from which on a look counts.', minimum=0.5, maximum=1.0),
    Parameter('yes_checks', 2, 'Looks in a row that must find a step done.', minimum=1, maximum=20),
    Parameter(
        'no_checks',
        3,
        'Looks in a row that must find a step impossible to give it up before its time; 0: this is not asked.',
        minimum=0,
        maximum=20,
    ),
    Parameter('step_time_limit_s', 60.0, 'Time for a step.', 's', minimum=0.5, maximum=3600.0),
    Parameter('replans', 3, 'Other plans that are made after failures, until a person is asked.', '', 0, 20),
    Parameter('no_answers', 3, 'Questions in a row without a usable answer that end a plan.', '', 1, 20),
    Parameter('view_timeout_s', 3.0, 'How long a view may be missing until a plan ends.', 's', 0.1, 600.0),
    Parameter('policy_timeout_s', 5.0, 'How long the policy may take to accept a step, or to end one.', 's', 0.5, 60.0),
)
STATUS_PERIOD_S = 1.0
_RULES = (
    'check_period_s',
    'yes_checks',
    'no_checks',
    'confidence',
    'step_time_limit_s',
    'replans',
    'no_answers',
    'view_timeout_s',
    'policy_timeout_s',
)


class ReasonerNode(CosmosLifecycleNode):
    """Lifecycle shell around an :class:`~cosmos3_ros.reasoner_asker.Asker` and plans."""

    def __init__(self, name: str = 'reasoner', **kwargs: Any) -> None:
        """Start unconfigured."""
        super().__init__(name, **kwargs)
        self.parameters = ParameterSet(self, PARAMETERS)
        self.asker: Asker | None = None
        self.views: Views | None = None
        self.runner: PlanRunner | None = None
        self._backend = ''
        self._names: tuple[str, ...] = ()
        self._guard: GuardStatus | None = None
        self._goals: GoalServer | None = None
        self._accepting = False
        self._planning = threading.Lock()

    def configure_node(self) -> None:
        """Load the contract and, for a local back end, the checkpoint; open topics, the service and the actions."""
        values = self.parameters
        contract = load_contract(values['contract'])
        self.views = views = Views(contract, Timeline(values['timeline']))
        views.check(values['views'])
        self._names = values['views'] or views.names
        talker, self._backend = make_talker(values, self.get_logger().info)
        self.asker = Asker(talker, values['timeout_s'])
        self._open_outputs()
        self._open_inputs(contract)
        self.diagnostics.add('reasoner', self._report_reasoner)

    def activate_node(self) -> None:
        """Forget what was seen before; wait for questions and goals."""
        configured(self.views).clear()
        configured(self.asker).reset()
        self.runner = None
        self._accepting = True
        self._publish_status()
        self.get_logger().info(f'the reasoner answers; words come from {self._backend}')

    def deactivate_node(self) -> None:
        """End the plan, and the run of the policy with it; give up what is asked."""
        self._accepting = False
        runner, asker, deadline_s = self.runner, self.asker, time.monotonic() + conclude_s()
        if runner is not None:
            runner.post(lambda: runner.execution.deactivate('the reasoner node was deactivated'))
        if self._goals is not None and not self._goals.idle.wait(conclude_s()):
            self.get_logger().error('the plan did not conclude in time; its client gets no result')
        if asker is not None and not asker.give_up(max(0.0, deadline_s - time.monotonic())):
            self.get_logger().error('a question did not end in time')
        self._publish_status()

    def cleanup_node(self) -> None:
        """Release the network."""
        self.asker = self.views = self.runner = self._guard = self._goals = None
        self.diagnostics.removeByName('reasoner')

    def clock_jumped(self, backward_s: float) -> None:
        """What was seen belongs to another time."""
        if self.views is not None:
            self.views.clear()
        runner = self.runner
        if runner is not None:
            runner.post(lambda: runner.execution.clock_jumped(backward_s))

    # Inputs

    def _open_inputs(self, contract: Contract) -> None:
        for name, terms in contract.views.streams.items():
            # Of its own: pictures take long to read, and none of them waits for an answer.
            group = MutuallyExclusiveCallbackGroup()
            self.subscribe(Image, terms.topic, partial(self._on_image, name, terms.topic), qos.sensor(), group)
        self.subscribe(GuardStatus, 'guard/status', self._on_guard, qos.latched(), self.control_group)

    def _on_image(self, name: str, topic: str, message: Image) -> None:
        views = self.views
        if views is None or not self.active:
            return
        try:
            picture = image_to_rgb(message, topic)
        except ObservationError as error:
            if views.reject(name, error):
                self.get_logger().error(f'{name}: message ignored. {error}')
            return
        views.push(name, stamp_to_ns(message.header.stamp), self.now_ns(), picture)

    def _on_guard(self, message: GuardStatus) -> None:
        self._guard = message
        runner = self.runner
        if runner is not None:
            # This message and not the latest: a fault that is reset at once has stopped the plan all the same.
            runner.post(partial(_heed_guard, runner, message))

    # Outputs

    def _open_outputs(self) -> None:
        self._status = self.advertise(ReasonerStatus, '~/status', qos.latched())
        self.create_timer(
            STATUS_PERIOD_S,
            self._publish_status,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        self.create_service(Ask, 'ask', self._ask, callback_group=MutuallyExclusiveCallbackGroup())
        self._policy = ActionClient(self, RunPolicy, 'run_policy', callback_group=ReentrantCallbackGroup())
        self._goals = GoalServer(self, MakePlan, 'make_plan', self._make_plan, self._on_goal)

    def _publish_status(self) -> None:
        asker, runner = self.asker, self.runner
        if asker is None or not self.active:
            return
        execution = runner.execution if runner is not None else None
        message = status_message(asker, self._backend, self.now_ns(), execution, not self._accepting)
        self._status.publish(message)

    def _report_error(self, text: str, error: BaseException) -> None:
        self.get_logger().error(f'{text}\n{"".join(traceback.format_exception(error))}')

    def _report_reasoner(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        asker, views, runner = self.asker, self.views, self.runner
        if asker is None or views is None:
            stat.summary(diagnostics.STALE, 'not configured')
            return stat
        failure = asker.last_failure
        stat.summary(diagnostics.WARN if failure else diagnostics.OK, failure or f'answers come from {self._backend}')
        for name, reason in views.rejected.items():
            stat.mergeSummary(diagnostics.ERROR, f'{name}: {reason}')
        ending = runner.execution.ending if runner is not None else None
        if ending is not None and ending.reason not in (Reason.DONE, Reason.CANCELED):
            stat.mergeSummary(diagnostics.WARN, ending.text)
        stat.add('asked', asker.asked)
        stat.add('unanswered', asker.unanswered)
        p50, p95 = asker.times()
        stat.add('answer p50 / p95 [s]', f'{p50:.2f} / {p95:.2f}')
        return stat

    # Questions

    def _ask(self, request: Ask.Request, response: Ask.Response) -> Ask.Response:
        began = time.monotonic()
        response.reason = Ask.Response.REFUSED
        try:
            self._answer(request, response)
        except MalformedAnswer as error:
            response.reason, response.text = Ask.Response.MALFORMED, str(error)
        except (InvalidInput, Cancelled) as error:
            response.text = str(error)
        except CosmosError as error:
            response.reason, response.text = Ask.Response.NO_ANSWER, str(error)
        except Exception as error:  # rclpy would end the process for it, and the policy with it
            self._report_error(f'{request.question!r} could not be answered: {error}', error)
            response.reason, response.text = Ask.Response.NO_ANSWER, f'{type(error).__name__}: {error}'
        response.duration = duration(time.monotonic() - began)
        return response

    def _answer(self, request: Ask.Request, response: Ask.Response) -> None:
        """Fill in the response; raises what says why there is no answer."""
        asker, views = self.asker, self.views
        if asker is None or views is None or not self._accepting:
            raise InvalidInput('ask', [Problem('node', 'is not active')])
        reasoner_ask.check(request)
        views.check(request.views)
        names = tuple(dict.fromkeys(request.views)) or self._names
        scene = views.seen(names, self.now_ns())
        if not isinstance(scene, Scene):
            response.reason, response.text = Ask.Response.NO_VIEW, '; '.join(scene)
            return
        response.stamp, response.views = ns_to_stamp(scene.stamp_ns), list(names)
        job = partial(reasoner_ask.answer, request, scene, self._sampling())
        reasoner_ask.fill(response, asker.ask(job, reasoner_ask.timeout_of(request)).result())

    def _sampling(self) -> Sampling:
        return Sampling(max_tokens=self.parameters['max_tokens'], seed=self.parameters['seed'])

    # Plans

    def _on_goal(self, goal: MakePlan.Goal) -> GoalResponse:
        problems = []
        if not self._accepting:
            problems.append(Problem('node', 'is not active'))
        if goal.time_limit.sec < 0:
            problems.append(Problem('time_limit', 'is negative', f'{goal.time_limit.sec} s'))
        try:
            self._planner(goal).check()
        except InvalidInput as error:
            problems += error.problems
        if not problems and not self._planning.acquire(blocking=False):
            problems.append(Problem('goal', 'has to wait: another plan is under way; cancel that first'))
        if problems:
            self.get_logger().error(f'make_plan goal refused: {InvalidInput("make_plan", problems)}')
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _planner(self, goal: MakePlan.Goal) -> Planner:
        values = self.parameters
        step_s = values['step_time_limit_s']
        skills = Skills(values['robot'], values['examples'], step_s, goal.max_steps or values['max_steps'])
        return Planner(goal.goal, skills, self._sampling(), values['thinking'])

    def _make_plan(self, handle: ServerGoalHandle) -> MakePlan.Result:
        try:
            return self._seen_through(handle)
        finally:
            self._planning.release()

    def _seen_through(self, handle: ServerGoalHandle) -> MakePlan.Result:
        asker, views, goal = self.asker, self.views, handle.request
        if asker is None or views is None or not self._accepting:
            handle.abort()
            return MakePlan.Result(reason=MakePlan.Result.DEACTIVATED, text='the reasoner node was deactivated')
        began, now = time.monotonic(), Now(self.now_ns() / 1e9, time.monotonic())
        limit_s = goal.time_limit.sec + goal.time_limit.nanosec / 1e9
        rules = Rules(time_limit_s=limit_s, **{name: self.parameters[name] for name in _RULES})
        execution = Execution(goal.goal, rules, now, execute=goal.execute)

        def changed(known: Execution) -> None:
            handle.publish_feedback(feedback_message(known, time.monotonic() - began))
            self._publish_status()

        planner = self._planner(goal)
        runner = PlanRunner(execution, planner, asker, views, self._names, self.now_ns, changed, self._report_error)
        self.runner = runner
        _heed_guard(runner, self._guard)
        if not self._accepting:  # deactivated between the question above and this line
            execution.deactivate('the reasoner node was deactivated')
        self.get_logger().info(f'planning for {goal.goal!r}')
        ending = runner.run(PolicyRuns(self._policy, runner), lambda: handle.is_cancel_requested)
        if ending.reason is Reason.DONE:
            handle.succeed()
        elif ending.reason is Reason.CANCELED and handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.abort()
        self._publish_status()
        self.get_logger().info(f'plan ended, {ending.reason.name}: {ending.text}')
        return result_message(execution, ending, time.monotonic() - began)


def _heed_guard(runner: PlanRunner, guard: GuardStatus | None) -> None:
    if guard is not None and guard.state == GuardStatus.FAULT:
        runner.execution.guard_stopped(f'the guard stopped: {guard.text}')
