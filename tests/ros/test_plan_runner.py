"""What drives a plan, without a graph: which pictures it asks about."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from cosmos3_ros.plan_execution import Execution, Now, Order, Reason, Rules
from cosmos3_ros.plan_questions import Planner
from cosmos3_ros.plan_runner import PlanRunner
from cosmos3_ros.reasoner_asker import Asker
from cosmos3_ros.reasoner_views import Views
from engine import load_contract
from engine.reasoner_questions import Skills
from engine.reasoner_talk import Answer, Choice, Sampling

LIMIT_S = 60.0
VIEW = 'wrist'


class Sure:
    """A reasoner that has a plan of one step, and finds everything to be so."""

    def __init__(self) -> None:
        self.looks = 0

    def generate(self, *_messages: Any, **_how: Any) -> Answer:
        return Answer('{"steps": [{"instruction": "lift it", "success": "it is in the air"}]}')

    def choose(self, _messages: Any, _choices: Any, **_how: Any) -> Choice:
        self.looks += 1
        return Choice('yes', {'yes': 0.99, 'no': 0.01})


class Obedient:
    """A policy that begins and ends as it is told."""

    offered = True

    def __init__(self, runner: PlanRunner) -> None:
        self.runner, self.open = runner, None

    def begin(self, order: Order) -> None:
        self.open = order
        self.runner.post(lambda: self.runner.execution.run_began(order.number))

    def end(self) -> None:
        self.open = None

    forget = end


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, 'this never came true'
        time.sleep(0.001)


def test_two_looks_that_agree_are_looks_at_two_pictures():
    views, mind, turns = Views(load_contract('demo_joint_pos')), Sure(), [0]

    def clock_ns() -> int:
        turns[0] += 1
        return stamp_ns + turns[0]

    stamp_ns = 10**12
    execution = Execution('tidy up', Rules(check_period_s=0.0), Now(stamp_ns / 1e9, time.monotonic()))
    planner = Planner('tidy up', Skills(), Sampling())
    runner = PlanRunner(
        execution, planner, Asker(mind, LIMIT_S), views, (VIEW,), clock_ns, lambda _known: None, lambda *_error: None
    )
    seen = threading.Thread(target=runner.run, args=(Obedient(runner), lambda: False))
    picture = np.zeros((4, 4, 3), np.uint8)
    views.push(VIEW, stamp_ns, stamp_ns, picture)
    seen.start()
    for looks in (0, 1):  # the first picture is planned with
        until(lambda looks=looks: mind.looks == looks and execution.current == 0)
        turn = turns[0]
        until(lambda turn=turn: turns[0] > turn + 20)
        assert mind.looks == looks, 'the same picture was looked at again'
        stamp_ns += 10**8
        views.push(VIEW, stamp_ns, stamp_ns, picture)
    seen.join(LIMIT_S)
    assert mind.looks == 2
    assert execution.ending is not None
    assert execution.ending.reason is Reason.DONE

    def news() -> None:
        raise AssertionError('nobody wants to hear it any more')

    runner.post(news)
    kept = weakref.ref(news)
    del news
    assert kept() is None, 'what happens after the end of a plan piles up'


def test_a_plan_in_which_something_breaks_is_over_and_says_so():
    views, told = Views(load_contract('demo_joint_pos')), []
    execution = Execution('tidy up', Rules(), Now(1.0, time.monotonic()))

    def changed(_known: Execution) -> None:
        raise ZeroDivisionError('nobody foresaw this')

    runner = PlanRunner(
        execution,
        Planner('tidy up', Skills(), Sampling()),
        Asker(Sure(), LIMIT_S),
        views,
        (VIEW,),
        lambda: 10**9,
        changed,
        lambda text, _error: told.append(text),
    )
    policy = Obedient(runner)
    ending = runner.run(policy, lambda: False)
    assert (ending.reason, execution.ending, policy.open) == (Reason.BROKEN, ending, None)
    assert 'nobody foresaw this' in ending.text
    assert 'nobody foresaw this' in told[0]
