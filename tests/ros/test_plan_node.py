"""Plans in the real graph: a reasoner node that speaks the real protocol, a policy node on the tiny checkpoint."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from action_msgs.msg import GoalStatus
from action_msgs.srv import CancelGoal

from cosmos3_msgs.action import MakePlan
from cosmos3_msgs.msg import GuardStatus, PlanStep, PolicyStatus, ReasonerStatus
from cosmos3_ros import qos
from cosmos3_ros.shared_model import MODELS
from tests.openai_server import Drop, Hang, Status
from tests.ros.reasoner_bench import (  # noqa: F401 (fixtures among them)
    HOPELESS,
    THREE,
    ReasonerBench,
    endpoint,
    mind,
    plan_text,
    reasoner_bench,
)

Result = MakePlan.Result
WORK = [what for what, _ in THREE]


class Workshop:
    """A reasoner, a policy and sensors, all up."""

    def __init__(self, bench: ReasonerBench, policy: Any, drivers: Any) -> None:
        self.bench, self.policy, self.drivers = bench, policy, drivers
        self.graph, self.mind = bench.graph, bench.mind

    @property
    def followed(self) -> list[str]:
        """Instructions that the policy has followed, in order."""
        told = [status.instruction for status in self.policy.statuses if status.instruction]
        return [text for place, text in enumerate(told) if not place or told[place - 1] != text]

    @property
    def phases(self) -> list[str]:
        """Phases that feedback told of."""
        return [told.phase for told in self.bench.feedback]

    def policy_rests(self) -> None:
        self.graph.eventually(lambda: self.policy.statuses[-1].state == PolicyStatus.IDLE, what='an idle policy')

    def guard(self) -> Any:
        """Who can speak as the guard."""
        publisher = self.bench.client.create_publisher(GuardStatus, 'guard/status', qos.latched())
        self.graph.eventually(lambda: publisher.get_subscription_count() >= 2)
        return publisher


@pytest.fixture(scope='module', autouse=True)
def loaded(tiny_checkpoint: Path) -> Any:
    """Weights that outlast single tests: whoever asks for the same gets these."""
    return MODELS.load(str(tiny_checkpoint))


@pytest.fixture
def workshop(
    reasoner_bench: Callable[..., ReasonerBench],  # noqa: F811
    policy_bench: Callable[..., Any],
    sensors: Callable[..., Any],
) -> Callable[..., Workshop]:
    def make(**parameters: Any) -> Workshop:
        policy = policy_bench().up()
        bench = reasoner_bench(**parameters).up()
        drivers = sensors()
        bench.sees()
        return Workshop(bench, policy, drivers)

    return make


def never(_condition: str) -> float:
    return 0.02


def states(result: Result) -> list[str]:
    return [step.state_name for step in result.steps]


def test_a_plan_of_three_steps_is_made_and_done(workshop):
    work = workshop()
    _, future = work.bench.begin()
    outcome = work.bench.outcome(future)
    assert (outcome.result.reason, outcome.status) == (Result.DONE, GoalStatus.STATUS_SUCCEEDED), outcome.result.text
    assert outcome.result.success
    assert states(outcome.result) == ['DONE'] * 3
    assert [step.success for step in outcome.result.steps] == [seen for _, seen in THREE]
    assert all(step.confidence > 0.9 for step in outcome.result.steps)
    assert work.followed == WORK
    work.policy_rests()
    assert work.phases[0] == 'planning'
    assert {'following', 'ending a step'} <= set(work.phases)
    assert work.mind.conditions == [seen for _, seen in THREE for _ in range(2)], 'two looks for each step'
    assert work.bench.says(ReasonerStatus.IDLE).goal == 'tidy up'


def test_without_execution_a_plan_is_made_and_nothing_moves(workshop):
    work = workshop()
    result = work.bench.make_plan(execute=False, max_steps=3)
    assert result.reason == Result.DONE
    assert states(result) == ['WAITING'] * 3
    assert 'Write 3 at most' in work.mind.asked_to_plan[0].text
    assert len(work.mind.asked_to_plan[0].media()) == 3, 'all views are shown'
    assert work.followed == []


def test_a_step_that_has_become_impossible_leads_to_another_plan(workshop):
    work = workshop(no_checks=2)
    work.mind.plans = [plan_text(THREE), plan_text([('push it aside', 'it is aside')])]
    work.mind.sees = lambda condition: (
        0.98 if condition in ('it is grasped', 'it is aside') or HOPELESS in condition else 0.02
    )
    result = work.bench.make_plan()
    assert result.reason == Result.DONE, result.text
    assert states(result) == ['DONE', 'FAILED', 'DROPPED', 'DONE']
    assert [step.revision for step in result.steps] == [0, 0, 0, 1]
    assert result.replans == 1
    told = work.mind.asked_to_plan[1].text
    assert 'grasp the cube: done' in told
    assert 'lift it: failed (2 looks in a row found that it has become impossible)' in told
    assert work.followed == ['grasp the cube', 'lift it', 'push it aside']


def test_when_all_plans_fail_a_person_is_asked_and_whoever_comes_late_hears_it(workshop):
    work = workshop(step_time_limit_s=0.5, replans=1)
    work.mind.sees = never
    _, future = work.bench.begin()
    outcome = work.bench.outcome(future)
    assert (outcome.result.reason, outcome.status) == (Result.NEEDS_HELP, GoalStatus.STATUS_ABORTED)
    assert states(outcome.result) == ['FAILED', 'DROPPED', 'DROPPED'] * 2
    work.policy_rests()
    heard: list[ReasonerStatus] = []
    work.graph.node('late').create_subscription(ReasonerStatus, 'reasoner/status', heard.append, qos.latched())
    work.graph.eventually(lambda: bool(heard) and heard[-1].state == ReasonerStatus.NEEDS_HELP)
    assert 'a person has to look' in heard[-1].text
    assert 'grasp the cube' in heard[-1].text


def test_contradictory_answers_never_finish_a_step(workshop):
    work = workshop(replans=0, step_time_limit_s=5.0)
    work.mind.sees = lambda condition: 0.02 if HOPELESS in condition else (0.98, 0.02)[looks() % 2]

    def looks() -> int:
        return sum(HOPELESS not in condition for condition in work.mind.conditions)

    result = work.bench.make_plan()
    assert result.reason == Result.NEEDS_HELP
    assert looks() >= 4
    assert states(result) == ['FAILED', 'DROPPED', 'DROPPED']
    assert 'not done within 5 s' in result.text


def planning(work: Workshop) -> None:
    work.mind.plans = [Hang()]


def following(work: Workshop) -> None:
    work.mind.sees = never


def looking(work: Workshop) -> None:
    work.mind.sees = lambda condition: Hang()


def second_step(work: Workshop) -> None:
    work.mind.sees = lambda condition: 0.98 if condition == 'it is grasped' else Hang()


def replanning(work: Workshop) -> None:
    work.mind.plans = [plan_text(THREE), Hang()]
    work.mind.sees = lambda condition: 0.98 if HOPELESS in condition else 0.02


MOMENTS: dict[str, tuple[Callable[[Workshop], None], Callable[[Workshop], bool]]] = {
    'while it thinks of a plan': (planning, lambda work: bool(work.mind.asked_to_plan)),
    'while the policy is asked': (
        following,
        lambda work: any(t.phase == 'starting a step' for t in work.bench.feedback),
    ),
    'while a step is followed': (following, lambda work: len(work.mind.conditions) > 2),
    'while it looks': (looking, lambda work: bool(work.mind.conditions)),
    'in the second step': (second_step, lambda work: 'it is in the air' in work.mind.conditions),
    'while it thinks of another plan': (replanning, lambda work: len(work.mind.asked_to_plan) > 1),
}


@pytest.mark.parametrize('moment', MOMENTS)
def test_a_plan_can_be_canceled_at_any_moment_within_a_bounded_time(workshop, moment):
    prepare, reached = MOMENTS[moment]
    work = workshop()
    prepare(work)
    handle, future = work.bench.begin()
    work.graph.eventually(lambda: reached(work), 20.0, moment)
    began = time.monotonic()
    handle.cancel_goal_async()
    outcome = work.bench.outcome(future)
    assert time.monotonic() - began < 12.0, 'sooner than a question would end by itself'
    assert (outcome.result.reason, outcome.status) == (Result.CANCELED, GoalStatus.STATUS_CANCELED)
    assert not {'ACTIVE', 'WAITING'} & set(states(outcome.result))
    work.policy_rests()
    work.bench.says(ReasonerStatus.IDLE)


def test_a_lost_camera_ends_the_run_and_is_named(workshop):
    work = workshop(view_timeout_s=1.0)
    work.mind.sees = never
    _, future = work.bench.begin()
    work.graph.eventually(lambda: len(work.mind.conditions) > 2)
    work.drivers.change['wrist'] = lambda message: None
    result = work.bench.outcome(future).result
    assert result.reason == Result.VIEWS_LOST
    assert 'wrist (stale, ' in result.text
    work.policy_rests()
    looks = len(work.mind.conditions)
    work.drivers.change.clear()
    assert work.bench.sees().make_plan(execute=False).reason == Result.DONE, 'it can go on afterwards'
    assert len(work.mind.conditions) == looks


def test_a_camera_that_comes_back_in_time_changes_nothing(workshop):
    work = workshop(view_timeout_s=30.0)
    work.mind.sees = never
    _, future = work.bench.begin()
    work.graph.eventually(lambda: len(work.mind.conditions) > 2)
    work.drivers.change['wrist'] = lambda message: None
    work.graph.eventually(lambda: 'wrist (stale' in work.bench.feedback[-1].text)
    work.mind.sees = lambda condition: 0.98
    work.drivers.change.clear()
    assert work.bench.outcome(future).result.reason == Result.DONE


@pytest.mark.parametrize('fault', [Status(503, 'loading'), Drop(None), Hang()], ids=['refuses', 'drops', 'hangs'])
@pytest.mark.parametrize('when', ['planning', 'looking'])
def test_a_back_end_that_gives_no_answers_ends_the_plan_and_the_run_with_it(workshop, fault, when):
    work = workshop(timeout_s=1.5 if isinstance(fault, Hang) else 20.0, no_answers=2)
    if when == 'planning':
        work.mind.plans = [fault]
    else:
        work.mind.sees = lambda condition: fault
    result = work.bench.make_plan()
    assert result.reason == Result.BACKEND
    assert '2 questions in a row had no usable answer' in result.text
    assert states(result) == ([] if when == 'planning' else ['FAILED', 'DROPPED', 'DROPPED'])
    work.policy_rests()
    # The count and the state change one after the other, and a status may be written in between.
    work.graph.eventually(lambda: work.bench.says(ReasonerStatus.FAILED).unanswered >= 2)


def test_a_back_end_that_is_not_there_ends_the_plan(workshop):
    work = workshop(no_answers=2)
    work.bench.server.close()
    result = work.bench.make_plan()
    assert result.reason == Result.BACKEND
    assert 'cannot be reached' in result.text


def test_a_malformed_plan_is_asked_for_once_more_and_then_reported(workshop):
    work = workshop(no_answers=1)
    work.mind.plans = ['{"steps": [', plan_text(THREE)]
    assert work.bench.make_plan(execute=False).reason == Result.DONE
    assert len(work.mind.asked_to_plan) == 2
    assert 'That answer cannot be used' in work.mind.asked_to_plan[1].text
    work.mind.plans = ['{"steps": [', '{"steps": 7}']
    result = work.bench.make_plan(execute=False)
    assert result.reason == Result.BACKEND
    assert 'is no list' in result.text
    assert len(work.mind.asked_to_plan) == 4


def test_a_stop_of_the_guard_ends_the_plan_and_is_never_tried_again(workshop):
    work = workshop()
    work.mind.sees = never
    guard = work.guard()
    _, future = work.bench.begin()
    work.graph.eventually(lambda: len(work.mind.conditions) > 2)
    guard.publish(GuardStatus(state=GuardStatus.FAULT, text='a joint came too close to its limit'))
    result = work.bench.outcome(future).result
    assert result.reason == Result.STOPPED_BY_GUARD
    assert 'a joint came too close to its limit' in result.text
    assert work.followed == ['grasp the cube']
    asked = len(work.mind.asked_to_plan)
    again = work.bench.make_plan()
    assert again.reason == Result.STOPPED_BY_GUARD, 'until a person has reset it'
    assert (work.followed, len(work.mind.asked_to_plan)) == (['grasp the cube'], asked)
    guard.publish(GuardStatus(state=GuardStatus.WAITING))
    work.graph.eventually(lambda: work.bench.node._guard.state == GuardStatus.WAITING)
    work.mind.sees = lambda condition: 0.98
    assert work.bench.make_plan().reason == Result.DONE


def test_a_fault_of_the_guard_ends_the_plan_also_if_it_is_reset_at_once(workshop):
    work = workshop()
    work.mind.sees = never
    _, future = work.bench.begin()
    work.graph.eventually(lambda: bool(work.mind.conditions))
    go_on = threading.Event()
    work.bench.node.runner.post(go_on.wait)  # the plan is busy while both messages come
    for state in (GuardStatus.FAULT, GuardStatus.WAITING):
        work.bench.node._on_guard(GuardStatus(state=state))
    go_on.set()
    assert work.bench.outcome(future).result.reason == Result.STOPPED_BY_GUARD


def test_deactivation_ends_plan_and_run_with_a_reason(workshop):
    work = workshop()
    work.mind.sees = lambda condition: Hang()
    _, future = work.bench.begin()
    work.graph.eventually(lambda: bool(work.mind.conditions))
    began = time.monotonic()
    assert work.bench.node.transition('deactivate')
    assert time.monotonic() - began < 12.0, 'sooner than a question would end by itself'
    outcome = work.bench.outcome(future)
    assert (outcome.result.reason, outcome.status) == (Result.DEACTIVATED, GoalStatus.STATUS_ABORTED)
    work.policy_rests()
    work.bench.says(ReasonerStatus.INACTIVE)
    assert not work.bench.send().accepted
    assert work.bench.node.transition('activate')
    work.bench.sees()
    assert work.bench.make_plan(execute=False).reason == Result.DONE


def test_a_policy_that_is_deactivated_ends_the_plan(workshop):
    work = workshop()
    work.mind.sees = never
    _, future = work.bench.begin()
    work.graph.eventually(lambda: bool(work.mind.conditions))
    assert work.policy.node.transition('deactivate')
    assert work.bench.outcome(future).result.reason == Result.POLICY


def test_without_a_policy_a_plan_cannot_be_carried_out(reasoner_bench, sensors):  # noqa: F811
    bench = reasoner_bench(policy_timeout_s=0.5).up()
    sensors()
    result = bench.sees().make_plan()
    assert result.reason == Result.POLICY
    assert states(result) == ['FAILED', 'DROPPED', 'DROPPED']


def test_somebody_elses_cancellation_of_the_run_ends_the_plan(workshop):
    work = workshop()
    work.mind.sees = never
    _, future = work.bench.begin()
    work.graph.eventually(lambda: bool(work.mind.conditions))
    cancel = work.bench.client.create_client(CancelGoal, 'run_policy/_action/cancel_goal')
    work.graph.eventually(cancel.service_is_ready)
    cancel.call_async(CancelGoal.Request())
    outcome = work.bench.outcome(future)
    assert (outcome.result.reason, outcome.status) == (Result.CANCELED, GoalStatus.STATUS_ABORTED)


def test_one_plan_at_a_time_and_faulty_goals_are_refused(workshop):
    work = workshop()
    work.mind.plans = [Hang()]
    handle, future = work.bench.begin()
    assert not work.bench.send().accepted
    handle.cancel_goal_async()
    work.bench.outcome(future)
    work.mind.plans = [plan_text(THREE)]
    for faulty in ({'goal': ' '}, {'goal': 'x' * 2000}, {'max_steps': 99}):
        assert not work.bench.send(**faulty).accepted
    assert work.bench.make_plan(execute=False).reason == Result.DONE


def test_a_time_limit_ends_a_plan(workshop):
    work = workshop()
    work.mind.sees = never
    goal = MakePlan.Goal().time_limit
    goal.sec = 1
    result = work.bench.make_plan(time_limit=goal)
    assert result.reason == Result.TIME_LIMIT
    assert result.steps[0].state == PlanStep.FAILED
    work.policy_rests()
