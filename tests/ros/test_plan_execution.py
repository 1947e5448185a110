"""Promises of seeing a plan through: what is believed, when it ends, and that it ends whatever happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos3_msgs.action import MakePlan
from cosmos3_msgs.msg import PlanStep
from cosmos3_ros.plan_execution import (
    DEACTIVATED_REST_S,
    Check,
    Execution,
    Now,
    Order,
    Phase,
    Question,
    Reason,
    Rules,
    RunEnd,
    State,
)

RULES = Rules(check_period_s=1.0, yes_checks=2, no_checks=2, confidence=0.8, step_time_limit_s=20.0, replans=1)
THREE = (('grasp the cube', 'it is grasped'), ('lift it', 'it is in the air'), ('put it down', 'it is on the table'))
YES, NO, UNSURE, HOPELESS = Check(0.95), Check(0.05), Check(0.79), Check(0.05, 0.95)
FAULTS = [RunEnd.TIME_LIMIT, RunEnd.STALE_INPUT, RunEnd.POLICY_ERROR]


class Played:
    """An execution, a clock that is moved by hand, and a policy that does as it is told."""

    def __init__(self, rules: Rules = RULES, *, execute: bool = True) -> None:
        self.time_s = 100.0
        self.execution = Execution('tidy up', rules, self.now, execute=execute)
        self.obeys = True
        self.running: Order | None = None
        self.begun: list[str] = []
        self.missing: Sequence[str] = ()

    @property
    def now(self) -> Now:
        return Now(self.time_s, self.time_s)

    def turn(self, seconds: float = 0.0) -> Played:
        """Let time pass, and the policy begin and end as it is told."""
        self.time_s += seconds
        for _ in range(3):
            self.execution.advance(self.now, self.missing, self.running is not None)
            wanted = self.execution.wanted.run
            if wanted and self.running is None:
                self.running = wanted
                self.begun.append(wanted.instruction)
                self.execution.run_began(wanted.number)
            elif self.running and self.obeys and (wanted is None or wanted.number != self.running.number):
                self.ends(RunEnd.CANCELED, 'canceled by a client')
        return self

    def ends(self, end: RunEnd, text: str = '') -> Played:
        assert self.running is not None
        number, self.running = self.running.number, None
        self.execution.run_ended(number, end, text)
        return self

    def question(self) -> Question:
        """The question that is due, after waiting for it."""
        self.turn()
        if self.execution.wanted.question is None:
            self.turn(self.execution.rules.check_period_s)
        question = self.execution.wanted.question
        assert question is not None, self.execution.phase
        return question

    def plan(self, steps: Sequence[tuple[str, str]] = THREE) -> Played:
        self.execution.planned(self.question().ticket, steps)
        return self.turn()

    def look(self, *checks: Check) -> Played:
        for check in checks:
            self.execution.checked(self.question().ticket, check)
            self.turn()
        return self

    def silence(self, times: int = 1) -> Played:
        for _ in range(times):
            self.execution.unanswered(self.question().ticket, 'nobody is there')
            self.turn()
        return self

    @property
    def reason(self) -> Reason | None:
        return self.execution.ending and self.execution.ending.reason

    @property
    def states(self) -> list[State]:
        return [step.state for step in self.execution.steps]


def test_steps_are_followed_one_after_the_other_until_each_is_seen_to_be_done():
    played = Played().plan()
    for number, (instruction, condition) in enumerate(THREE):
        assert played.begun == [step for step, _ in THREE[: number + 1]]
        assert played.question().condition == condition
        assert played.execution.steps[played.execution.current].instruction == instruction
        played.look(NO, YES, YES)
    assert played.reason is Reason.DONE
    assert played.states == [State.DONE] * 3
    assert played.running is None


def test_without_execution_the_plan_is_all():
    played = Played(execute=False).plan()
    assert played.reason is Reason.DONE
    assert played.states == [State.WAITING] * 3
    assert played.begun == []


@pytest.mark.parametrize('checks', [[YES, NO] * 8, [YES, UNSURE] * 8, [YES, Check(math.nan)] * 8, [YES, HOPELESS] * 8])
def test_contradictory_looks_never_finish_a_step(checks):
    played = Played().plan().look(*checks)
    assert played.execution.phase is Phase.FOLLOWING
    assert played.begun == ['grasp the cube']


def test_looks_without_an_answer_between_them_are_not_in_a_row():
    played = Played().plan().look(YES).silence().look(YES)
    assert played.begun == ['grasp the cube']
    played.look(YES)
    assert played.begun == ['grasp the cube', 'lift it']


def test_an_answer_about_an_earlier_step_says_nothing_about_this_one():
    played = Played().plan().look(YES)
    late = played.question().ticket
    played.look(YES)
    played.turn(5.0)
    played.execution.checked(late, YES)
    played.execution.checked(late, YES)
    assert played.states == [State.DONE, State.ACTIVE, State.WAITING]
    assert math.isnan(played.execution.confidence)


def test_the_next_step_waits_until_the_run_before_has_ended():
    played = Played().plan()
    played.obeys = False
    played.look(YES, YES)
    assert played.execution.phase is Phase.ENDING
    assert played.execution.wanted.run is None
    assert played.begun == ['grasp the cube']
    played.obeys = True
    played.turn(0.1)
    assert played.begun == ['grasp the cube', 'lift it']


@pytest.mark.parametrize(
    ('fail', 'why'),
    [
        (lambda played: played.turn(21.0), 'not done within 20 s'),
        (lambda played: played.look(HOPELESS, HOPELESS), 'impossible'),
        *((lambda played, end=end: played.ends(end, 'it is stuck').turn(), 'it is stuck') for end in FAULTS),
    ],
)
def test_a_step_that_fails_leads_to_another_plan_and_then_to_a_person(fail: Callable[[Played], Any], why: str):
    played = Played().plan().look(YES, YES)
    fail(played)
    past = played.question().past
    assert [(step.instruction, step.state) for step in past] == [
        ('grasp the cube', State.DONE),
        ('lift it', State.FAILED),
    ]
    assert why in past[1].text
    assert played.running is None, 'nothing moves while another plan is made'
    played.plan([('lift it slowly', 'it is in the air')])
    assert played.states == [State.DONE, State.FAILED, State.DROPPED, State.ACTIVE]
    assert [step.revision for step in played.execution.steps] == [0, 0, 0, 1]
    fail(played)
    assert played.reason is Reason.NEEDS_HELP
    assert 'lift it slowly' in played.execution.ending.text
    assert why in played.execution.ending.text


def test_one_hopeless_look_is_not_enough_to_give_up():
    played = Played().plan().look(HOPELESS, NO, HOPELESS, UNSURE, HOPELESS)
    assert played.execution.phase is Phase.FOLLOWING


def test_nobody_is_asked_whether_a_step_is_impossible_if_nothing_would_follow():
    assert Played().plan().question().step == 'grasp the cube'
    played = Played(replace(RULES, no_checks=0)).plan()
    assert played.question().step == ''
    assert played.look(*[HOPELESS] * 9).execution.phase is Phase.FOLLOWING


def test_when_nothing_is_left_to_do_the_goal_itself_is_looked_for():
    played = Played().plan().ends(RunEnd.POLICY_ERROR, 'broken').plan([])
    assert played.question().condition == 'tidy up'
    assert played.running is None
    assert played.look(YES, YES).reason is Reason.DONE


def test_a_plan_that_says_nothing_is_left_is_not_taken_at_its_word():
    played = Played().plan().ends(RunEnd.POLICY_ERROR, 'broken').plan([]).look(YES, NO, NO)
    assert played.reason is Reason.NEEDS_HELP
    played = Played().plan().ends(RunEnd.POLICY_ERROR, 'broken').plan([]).look(*[YES, NO] * 9)
    assert played.reason is None
    assert played.turn(5.0).reason is Reason.NEEDS_HELP, 'contradictions do not go on for ever'


def test_a_first_plan_without_steps_is_no_answer():
    played = Played(replace(RULES, no_answers=2)).plan([])
    assert played.reason is None
    assert played.plan([]).reason is Reason.BACKEND


def stopped_while_it_ends(played: Played) -> None:
    played.obeys = False
    played.look(YES, YES).ends(RunEnd.STOPPED_BY_GUARD, 'too close')


@pytest.mark.parametrize(
    'stop',
    [
        lambda played: played.ends(RunEnd.STOPPED_BY_GUARD, 'too close'),
        lambda played: played.execution.guard_stopped('too close'),
        stopped_while_it_ends,
    ],
)
def test_what_the_guard_has_stopped_is_never_tried_again(stop: Callable[[Played], Any]):
    played = Played().plan()
    stop(played)
    played.obeys = True
    played.turn(1.0)
    assert played.reason is Reason.STOPPED_BY_GUARD
    assert played.execution.ending.text == 'too close'
    assert played.begun == ['grasp the cube']


def test_somebody_elses_cancellation_of_the_run_is_heeded_and_not_tried_again():
    played = Played().plan().ends(RunEnd.CANCELED).turn()
    assert played.reason is Reason.CANCELED
    assert 'somebody else' in played.execution.ending.text


@pytest.mark.parametrize('end', [RunEnd.DEACTIVATED, RunEnd.LOST])
def test_without_a_policy_it_is_over(end):
    assert Played().plan().ends(end, 'gone').turn().reason is Reason.POLICY


def test_no_step_begins_if_nobody_knows_whether_the_run_before_has_ended():
    played = Played().plan()
    played.obeys = False
    played.look(YES, YES)
    assert played.execution.phase is Phase.ENDING
    played.ends(RunEnd.LOST, 'nobody offers run_policy any more').turn(0.1)
    assert played.reason is Reason.POLICY
    assert played.begun == ['grasp the cube']
    assert played.states == [State.DONE, State.DROPPED, State.DROPPED]


def test_a_policy_that_never_answers_ends_it():
    played = Played()
    played.execution.planned(played.question().ticket, THREE)
    played.execution.advance(Now(101.0, 101.0), running=True)
    assert played.execution.wanted.run is not None
    played.execution.advance(Now(106.5, 106.5), running=True)
    assert played.execution.wanted.run is None
    played.execution.advance(Now(106.6, 106.6), running=False)
    assert played.reason is Reason.POLICY


def test_a_refused_instruction_leads_to_another_plan():
    played = Played()
    played.execution.planned(played.question().ticket, THREE)
    played.execution.run_refused(played.execution.wanted.run.number)
    assert 'refused' in played.question().past[0].text


def test_a_view_that_is_missing_for_a_moment_changes_nothing():
    played = Played().plan()
    played.missing = ['wrist (stale, 0.41 s > 0.25 s)']
    played.turn(1.0).turn(1.0)
    assert 'wrist' in played.execution.text
    played.missing = ()
    played.turn(0.1)
    assert 'wrist' not in played.execution.text
    assert played.running is not None
    assert played.look(YES, YES).begun == ['grasp the cube', 'lift it']


def test_a_view_that_stays_missing_ends_the_run_and_is_named():
    for played in (Played(), Played().plan()):
        played.missing = ['wrist (never received)']
        played.turn(1.0).turn(3.5).turn(0.1)
        assert played.reason is Reason.VIEWS_LOST
        assert 'wrist (never received)' in played.execution.ending.text
        assert played.running is None


@pytest.mark.parametrize('planned', [False, True])
def test_a_back_end_that_is_silent_too_often_ends_it_and_one_answer_forgives(planned):
    played = Played().plan() if planned else Played()
    played.silence(2)
    assert played.reason is None
    if planned:
        assert played.look(NO).silence(2).reason is None
    assert played.silence(1).reason is Reason.BACKEND
    assert 'nobody is there' in played.execution.ending.text
    assert played.running is None


PHASES = {
    'planning': lambda played: played,
    'starting': lambda played: played.execution.planned(played.question().ticket, THREE),
    'following': lambda played: played.plan(),
    'ending': lambda played: (played.plan(), setattr(played, 'obeys', False), played.look(YES, YES)),
    'confirming': lambda played: played.plan().ends(RunEnd.POLICY_ERROR).plan([]),
}


@pytest.mark.parametrize('phase', PHASES)
@pytest.mark.parametrize('reason', [Reason.CANCELED, Reason.DEACTIVATED])
def test_it_can_be_ended_at_any_moment(phase, reason):
    played = Played()
    PHASES[phase](played)
    played.obeys = True
    if reason is Reason.CANCELED:
        played.execution.cancel()
    else:
        played.execution.deactivate('the node was deactivated')
    assert played.execution.wanted.run is None
    assert played.execution.wanted.question is None
    played.turn()
    assert played.reason is reason
    assert played.running is None
    assert State.ACTIVE not in played.states
    assert State.WAITING not in played.states


def test_it_ends_in_bounded_time_even_if_the_policy_does_not():
    for deactivated, limit_s in ((False, RULES.policy_timeout_s), (True, DEACTIVATED_REST_S)):
        played = Played().plan()
        played.obeys = False
        (played.execution.deactivate if deactivated else played.execution.cancel)('please')
        assert played.turn(limit_s - 0.1).reason is None
        played.turn(0.2)
        assert played.reason is (Reason.DEACTIVATED if deactivated else Reason.CANCELED)
        assert 'did not end' in played.execution.ending.text


def test_a_run_that_does_not_end_keeps_the_next_step_from_beginning_and_ends_the_plan():
    played = Played().plan()
    played.obeys = False
    played.look(YES, YES).turn(6.0)
    assert played.reason is Reason.POLICY
    assert played.begun == ['grasp the cube']


def test_it_ends_when_its_time_is_up():
    played = Played(replace(RULES, time_limit_s=10.0)).plan().turn(11.0)
    assert played.reason is Reason.TIME_LIMIT
    assert played.running is None


def test_a_clock_that_goes_back_does_not_make_anything_last_longer():
    played = Played().plan().turn(15.0)
    steady = played.time_s
    played.execution.clock_jumped(90.0)
    played.execution.advance(Now(steady - 90.0 + 6.0, steady + 6.0), running=True)
    assert played.execution.steps[0].state is State.FAILED


def test_what_was_seen_before_the_clock_went_back_does_not_count():
    played = Played().plan().look(YES)
    late = played.question().ticket
    played.execution.clock_jumped(0.0)
    played.execution.checked(late, YES)
    played.look(YES)
    assert played.begun == ['grasp the cube']
    assert played.look(YES).begun == ['grasp the cube', 'lift it']


def test_the_policy_would_end_by_itself_if_nobody_were_left_to_end_it():
    played = Played().plan()
    assert RULES.step_time_limit_s < played.running.limit_s < 2 * RULES.step_time_limit_s


def test_numbers_are_those_of_the_messages():
    for reason in Reason:
        assert getattr(MakePlan.Result, reason.name) == reason
    for state in State:
        assert getattr(PlanStep, state.name) == state


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just('wait'), st.floats(0.0, 8.0)),
        st.tuples(st.just('look'), st.sampled_from([YES, NO, UNSURE, HOPELESS, Check(math.nan)])),
        st.tuples(st.just('plan'), st.integers(0, 3)),
        st.tuples(st.just('silence'), st.none()),
        st.tuples(st.just('end'), st.sampled_from(list(RunEnd))),
        st.tuples(st.just('obey'), st.booleans()),
        st.tuples(st.just('missing'), st.booleans()),
        st.tuples(st.just('jump'), st.floats(0.0, 50.0)),
        st.tuples(st.just('guard'), st.none()),
        st.tuples(st.just('cancel'), st.none()),
    ),
    max_size=60,
)


def happen(played: Played, what: str, value: Any) -> None:
    execution = played.execution
    question = execution.wanted.question
    if what == 'wait':
        played.turn(value)
    elif what == 'obey':
        played.obeys = value
    elif what == 'missing':
        played.missing = ['wrist (stale)'] if value else ()
    elif what == 'jump':
        execution.clock_jumped(value)
        execution.clock_jumped(-value)
    elif what == 'guard':
        execution.guard_stopped('too close')
    elif what == 'cancel':
        execution.cancel()
    elif what == 'end' and played.running:
        played.ends(value, 'it ended')
    elif question is not None and what == 'silence':
        execution.unanswered(question.ticket, 'nobody')
    elif question is not None and what == 'look' and question.condition:
        execution.checked(question.ticket, value)
    elif question is not None and what == 'plan' and not question.condition:
        execution.planned(question.ticket, THREE[:value])
    played.turn()


@settings(max_examples=200, deadline=None)
@given(EVENTS)
def test_whatever_happens_one_step_runs_at_a_time_and_it_ends_with_nothing_running(events):
    played = Played(replace(RULES, time_limit_s=60.0))
    done: dict[int, int] = {}
    for what, value in events:
        phase, before = played.execution.phase, played.states
        happen(played, what, value)
        assert played.states.count(State.ACTIVE) <= 1
        if played.execution.phase is Phase.PLANNING:
            assert played.running is None
        for place, state in enumerate(before):
            if state in (State.DONE, State.FAILED, State.DROPPED):
                assert played.states[place] is state, 'what is over stays as it is'
            if played.states[place] is State.DONE and state is not State.DONE:
                done[place] = place
                assert what == 'look', f'{phase}: a step was done without a look'
    played.obeys = True
    for _ in range(30):
        played.turn(4.0)
    assert played.reason is not None, 'it ends by itself'
    assert played.running is None
    assert played.execution.wanted.run is None
    if played.reason is not Reason.DONE:
        assert not {State.ACTIVE, State.WAITING} & set(played.states)
