"""Sees a plan through: what is to be asked and followed next, and when it is over; knows neither ROS nor a reasoner.

    planning --> starting a step --> following --> ending a step --> the next step, another plan, or the end
                      ^                                  |
                      +----------------------------------+

Whoever drives it calls :meth:`Execution.advance` again and again, tells it what has happened, and brings about what
:attr:`Execution.wanted` says: a question under way, a run under way, or nothing more. What it believes of a step comes
from looks at fresh pictures, and never from a single one: so many in a row have to agree. A step that fails leads to
another plan, as often as the rules allow, and then to a person. What the guard has stopped is never tried again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, IntEnum

DEACTIVATED_REST_S = 1.0
"""How long a run may take to end when the node goes down: within the grace that a process has."""


@dataclass(frozen=True)
class Now:
    """The present, s: by the node's clock, which may be simulated, and by a steady one."""

    clock_s: float
    steady_s: float


class Phase(Enum):
    """What is going on, as feedback calls it."""

    PLANNING = 'planning'
    STARTING = 'starting a step'
    FOLLOWING = 'following'
    ENDING = 'ending a step'
    CONFIRMING = 'confirming'
    ENDED = 'ended'


class State(IntEnum):
    """What has become of a step; numbers as in `PlanStep`."""

    WAITING = 0
    ACTIVE = 1
    DONE = 2
    FAILED = 3
    DROPPED = 4


class Reason(IntEnum):
    """Why it is over; numbers as in the result of `MakePlan`."""

    DONE = 1
    CANCELED = 2
    NEEDS_HELP = 3
    STOPPED_BY_GUARD = 4
    VIEWS_LOST = 5
    BACKEND = 6
    POLICY = 7
    TIME_LIMIT = 8
    DEACTIVATED = 9
    BROKEN = 10


class RunEnd(Enum):
    """Why a run of the policy is over."""

    TIME_LIMIT = 'time limit'
    CANCELED = 'canceled'
    STOPPED_BY_GUARD = 'stopped by guard'
    STALE_INPUT = 'stale input'
    POLICY_ERROR = 'policy error'
    DEACTIVATED = 'deactivated'
    LOST = 'lost'  # nobody offers run_policy any more


@dataclass(frozen=True)
class Rules:
    """How much evidence, time and patience there is.

    Attributes:
        check_period_s: Between two looks at a step.
        yes_checks: Looks in a row that must find a step done.
        no_checks: Looks in a row that must find it impossible to give it up early; 0: nobody asks.
        confidence: Probability from which on a look counts.
        step_time_limit_s: For a step, from the policy's acceptance on.
        replans: Other plans that are made after failures.
        no_answers: Questions in a row without a usable answer that end it.
        view_timeout_s: How long a view may be missing.
        policy_timeout_s: How long the policy may take to accept a step, or to end one.
        time_limit_s: For everything; 0: none.
    """

    check_period_s: float = 2.0
    yes_checks: int = 2
    no_checks: int = 3
    confidence: float = 0.8
    step_time_limit_s: float = 60.0
    replans: int = 3
    no_answers: int = 3
    view_timeout_s: float = 3.0
    policy_timeout_s: float = 5.0
    time_limit_s: float = 0.0


@dataclass(frozen=True)
class Step:
    """An instruction, and what has become of it; see `PlanStep`."""

    instruction: str
    success: str
    state: State = State.WAITING
    revision: int = 0
    confidence: float = math.nan
    text: str = ''


@dataclass(frozen=True)
class Check:
    """What a look at the pictures found: probabilities that a condition holds, and that it never will."""

    met: float
    hopeless: float = 0.0


@dataclass(frozen=True)
class Question:
    """What is to be asked; the answer brings the ticket back.

    Attributes:
        ticket: Another one for every question.
        condition: Whether this is so; empty: for a plan.
        step: Instruction of the step that it is about, to be asked whether it has become impossible; empty: do not ask.
        past: Steps that were tried, for another plan.
    """

    ticket: int
    condition: str = ''
    step: str = ''
    past: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Order:
    """A run of the policy that is to be under way; it is to end by itself after `limit_s`, should nobody end it."""

    number: int
    instruction: str
    limit_s: float


@dataclass(frozen=True)
class Ending:
    """Why it is over, and a sentence."""

    reason: Reason
    text: str


@dataclass(frozen=True)
class Wanted:
    """What is to be under way now; whatever else is, is to be ended."""

    question: Question | None = None
    run: Order | None = None
    ending: Ending | None = None


class _After(Enum):
    """What follows once a step's run has ended; an ending may stand in its place."""

    NEXT = 'next step'
    REPLAN = 'another plan'


class Execution:
    """One goal from its acceptance to its end. Not thread-safe.

    Attributes:
        phase: What is going on.
        replans: Plans made after a failure.
        ending: Why it is over; None while it is not.
        text: One sentence about what is going on.
    """

    def __init__(self, goal: str, rules: Rules, now: Now, *, execute: bool = True) -> None:
        """Begin with planning; without `execute` the plan is all."""
        self.goal, self.rules = goal, rules
        self.phase = Phase.PLANNING
        self.replans = 0
        self.ending: Ending | None = None
        self.text = self._phase_text = 'looking at the scene and thinking which steps to take'
        self._execute = execute
        self._now = now
        self._began_s = self._due_s = self._step_began_s = now.clock_s
        self._phase_began_s = now.steady_s
        self._blind_since_s: float | None = None
        self._missing: tuple[str, ...] = ()
        self._steps: list[Step] = []
        self._current = -1
        self._after: _After | Ending = _After.NEXT
        self._ticket, self._run = 1, 0
        self._yes = self._no = self._doubts = self._silence = 0

    # What others may know

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps of all plans in their order."""
        return tuple(self._steps)

    @property
    def current(self) -> int:
        """Place of the present step; -1 if there is none."""
        return self._current

    @property
    def confidence(self) -> float:
        """Probability that the present step is done, at the last look; NaN if there was none."""
        return self._steps[self._current].confidence if self._current >= 0 else math.nan

    @property
    def wanted(self) -> Wanted:
        """What is to be under way now."""
        if self.ending is not None:
            return Wanted(ending=self.ending)
        due = self._now.clock_s >= self._due_s
        if self.phase is Phase.PLANNING and due:
            return Wanted(Question(self._ticket, past=self._past()))
        if self.phase is Phase.CONFIRMING and due:
            return Wanted(Question(self._ticket, self.goal))
        if self.phase not in (Phase.STARTING, Phase.FOLLOWING):
            return Wanted()
        step = self._steps[self._current]
        # Should nobody be left to end it, it ends by itself; usually it is ended before.
        limit_s = self.rules.step_time_limit_s + self.rules.policy_timeout_s
        order = Order(self._run, step.instruction, limit_s)
        if self.phase is Phase.STARTING or not due:
            return Wanted(run=order)
        about = step.instruction if self.rules.no_checks else ''
        return Wanted(Question(self._ticket, step.success, about), order)

    # What happens

    def advance(self, now: Now, missing: Sequence[str] = (), running: bool = False) -> None:
        """Time passes.

        Args:
            now: The present.
            missing: Views that have no fresh picture, each with the reason.
            running: Whether a run is under way that this execution has begun, or has asked for.
        """
        self._now = now
        self._see(tuple(missing))
        if self.ending is not None:
            return
        limit_s = self.rules.time_limit_s
        if limit_s and now.clock_s - self._began_s >= limit_s:
            self._finish(Reason.TIME_LIMIT, f'not done within {limit_s:g} s')
        if self.phase is Phase.ENDING:
            self._wait_for_the_end(running)
        elif self._blind_since_s is not None:
            self._wait_for_views(now.steady_s - self._blind_since_s)
        elif self.phase is Phase.STARTING:
            if now.steady_s - self._phase_began_s >= self.rules.policy_timeout_s:
                self._finish(Reason.POLICY, f'run_policy did not answer within {self.rules.policy_timeout_s:g} s')
        elif self.phase in (Phase.FOLLOWING, Phase.CONFIRMING):
            self._look_at_the_clock()

    def planned(self, ticket: int, steps: Sequence[tuple[str, str]]) -> None:
        """A plan has come: instructions with their conditions. An empty one says that nothing is left to do."""
        if ticket != self._ticket or self.phase is not Phase.PLANNING:
            return
        if not steps and not self._steps:
            self.unanswered(ticket, 'the plan has no steps')
            return
        self._heard()
        self._steps += [Step(instruction, success, revision=self.replans) for instruction, success in steps]
        if not self._execute:
            self._finish(Reason.DONE, f'{len(steps)} steps')
        elif steps:
            self._begin_step()
        else:
            self._enter(Phase.CONFIRMING, 'nothing is left to do, as the plan has it; looking whether that is so')
            self._begin_looking()

    def checked(self, ticket: int, check: Check) -> None:
        """A look has found something."""
        if ticket != self._ticket or self.phase not in (Phase.FOLLOWING, Phase.CONFIRMING):
            return
        self._heard()
        met = check.met >= self.rules.confidence
        hopeless = not met and check.hopeless >= self.rules.confidence
        self._yes, self._doubts = (self._yes + 1, 0) if met else (0, self._doubts + 1)
        self._no = self._no + 1 if hopeless else 0
        done = self._yes >= self.rules.yes_checks
        if self.phase is Phase.CONFIRMING:
            self._confirm(done)
            return
        self._mark(State.ACTIVE, confidence=check.met)
        if done:
            self._mark(State.DONE)
            self._end_step(_After.NEXT, 'done')
        elif self.rules.no_checks and self._no >= self.rules.no_checks:
            self._fail(f'{self._no} looks in a row found that it has become impossible')

    def unanswered(self, ticket: int, why: str) -> None:
        """A question has no usable answer: late, malformed also when asked again, or nobody is there."""
        if ticket != self._ticket or self.phase not in (Phase.PLANNING, Phase.FOLLOWING, Phase.CONFIRMING):
            return
        silence = self._silence + 1
        self._heard(silence)
        self._yes = self._no = self._doubts = 0  # looks in a row have none between them that failed
        self.text = f'no usable answer ({silence} in a row): {why}'
        if silence >= self.rules.no_answers:
            self._finish(Reason.BACKEND, f'{silence} questions in a row had no usable answer; the last one: {why}')

    def run_began(self, number: int) -> None:
        """The policy has accepted the run of this number."""
        if number != self._run or self.phase is not Phase.STARTING:
            return
        self._enter(Phase.FOLLOWING, f'following {self._steps[self._current].instruction!r}')
        self._begin_looking()

    def run_refused(self, number: int) -> None:
        """The policy has refused it."""
        if number == self._run and self.phase is Phase.STARTING:
            self._fail('the policy refused it; its log says why')

    def run_ended(self, number: int, end: RunEnd, text: str) -> None:
        """A run is over, whoever ended it."""
        if number != self._run or self.phase not in (Phase.STARTING, Phase.FOLLOWING, Phase.ENDING):
            return
        if end is RunEnd.STOPPED_BY_GUARD:
            self.guard_stopped(text)
        elif end is RunEnd.LOST:  # nobody knows whether it goes on, so that no other may begin
            self._finish(Reason.POLICY, text)
        elif self.phase is Phase.ENDING:
            return
        elif end is RunEnd.DEACTIVATED:
            self._finish(Reason.POLICY, text)
        elif end is RunEnd.CANCELED:
            self._finish(Reason.CANCELED, 'somebody else canceled the run of the policy')
        else:
            self._fail(text)

    def guard_stopped(self, text: str) -> None:
        """The guard has latched a fault: a person has to reset it."""
        if self._execute:
            self._finish(Reason.STOPPED_BY_GUARD, text)

    def cancel(self, text: str = 'canceled by a client') -> None:
        """Somebody wants it to end."""
        self._finish(Reason.CANCELED, text)

    def deactivate(self, text: str) -> None:
        """The node goes down."""
        self._finish(Reason.DEACTIVATED, text)

    def broke(self, text: str) -> None:
        """What carries the plan out has failed and does nothing more: it is over at once."""
        if self.ending is None:
            self._over(Ending(Reason.BROKEN, text))

    def clock_jumped(self, backward_s: float) -> None:
        """The node's clock went back: what was measured by it lies as far behind as before.

        What was seen does not count any more: a simulation that begins anew shows another scene.
        """
        self._ticket += 1
        self._yes = self._no = self._doubts = 0
        self._began_s -= backward_s
        self._due_s -= backward_s
        self._step_began_s -= backward_s
        self._now = replace(self._now, clock_s=self._now.clock_s - backward_s)

    # Within

    def _enter(self, phase: Phase, text: str) -> None:
        self.phase, self._phase_began_s = phase, self._now.steady_s
        self.text = self._phase_text = text
        self._ticket += 1  # answers to earlier questions come too late

    def _heard(self, silence: int = 0) -> None:
        """A question has been answered, or the last `silence` ones have not; the next one is due in a while."""
        self._ticket += 1
        self._silence = silence
        self._due_s = self._now.clock_s + self.rules.check_period_s

    def _see(self, missing: tuple[str, ...]) -> None:
        if missing and self._blind_since_s is None:
            self._blind_since_s = self._now.steady_s
        elif not missing and self._blind_since_s is not None:
            self._blind_since_s = None
            self.text = self._phase_text
        self._missing = missing

    def _wait_for_views(self, blind_s: float) -> None:
        self.text = f'waits for {"; ".join(self._missing)}'
        if blind_s >= self.rules.view_timeout_s:
            self._finish(Reason.VIEWS_LOST, f'gave up waiting for {"; ".join(self._missing)}')

    def _look_at_the_clock(self) -> None:
        spent_s, limit_s = self._now.clock_s - self._step_began_s, self.rules.step_time_limit_s
        if spent_s < limit_s:
            return
        if self.phase is Phase.CONFIRMING:
            self._finish(
                Reason.NEEDS_HELP, self._help(f'the goal could not be seen to be reached within {limit_s:g} s')
            )
        else:
            self._fail(f'not done within {limit_s:g} s')

    def _confirm(self, done: bool) -> None:
        if done:
            self._finish(Reason.DONE, 'the goal is seen to be reached')
        elif self._doubts >= self.rules.yes_checks:
            self._finish(Reason.NEEDS_HELP, self._help('the goal cannot be seen to be reached, and no step is left'))

    def _begin_step(self) -> None:
        waiting = [place for place, step in enumerate(self._steps) if step.state is State.WAITING]
        if not waiting:
            done = sum(step.state is State.DONE for step in self._steps)
            self._current = -1
            self._finish(Reason.DONE, f'{done} steps are done')
            return
        self._current = waiting[0]
        self._run += 1
        self._mark(State.ACTIVE)
        self._enter(Phase.STARTING, f'starting {self._steps[self._current].instruction!r}')

    def _begin_looking(self) -> None:
        self._yes = self._no = self._doubts = 0
        self._step_began_s = self._now.clock_s
        self._due_s = self._now.clock_s + self.rules.check_period_s

    def _mark(self, state: State, **changes: object) -> None:
        if self._current >= 0:
            self._steps[self._current] = replace(self._steps[self._current], state=state, **changes)

    def _fail(self, why: str) -> None:
        self._mark(State.FAILED, text=why)
        self._end_step(_After.REPLAN, why)

    def _end_step(self, after: _After | Ending, text: str) -> None:
        self._after = after
        self._enter(Phase.ENDING, text)

    def _finish(self, reason: Reason, text: str) -> None:
        """End it; what somebody wanted, or the first thing that went wrong, is the reason."""
        if self.ending is not None:
            return
        if isinstance(self._after, Ending) and self.phase is Phase.ENDING:
            wanted = self._after.reason in (Reason.CANCELED, Reason.DEACTIVATED)
            if wanted or reason not in (Reason.CANCELED, Reason.DEACTIVATED, Reason.STOPPED_BY_GUARD):
                return
            self._after = Ending(reason, text)  # the wait goes on where it was
            return
        self._end_step(Ending(reason, text), text)

    def _wait_for_the_end(self, running: bool) -> None:
        after = self._after
        if not running:
            self._go_on(after)
            return
        hasty = isinstance(after, Ending) and after.reason is Reason.DEACTIVATED
        limit_s = min(self.rules.policy_timeout_s, DEACTIVATED_REST_S if hasty else math.inf)
        if self._now.steady_s - self._phase_began_s < limit_s:
            return
        silent = f'run_policy did not end within {limit_s:g} s of being told to'
        self._over(Ending(after.reason, f'{after.text}; {silent}') if isinstance(after, Ending) else _lost(silent))

    def _go_on(self, after: _After | Ending) -> None:
        if isinstance(after, Ending):
            self._over(after)
        elif after is _After.NEXT:
            self._begin_step()
            if isinstance(self._after, Ending):  # that was the last one, and nothing runs
                self._over(self._after)
        elif self.replans >= self.rules.replans:
            failed = self._steps[self._current]
            self._over(Ending(Reason.NEEDS_HELP, self._help(f'{failed.instruction!r} failed: {failed.text}')))
        else:
            self._plan_anew()

    def _plan_anew(self) -> None:
        self.replans += 1
        self._drop()
        self._current = -1
        self._due_s = self._now.clock_s
        self._enter(Phase.PLANNING, 'looking for another way')

    def _help(self, why: str) -> str:
        tried = f' after {self.replans} other plans' if self.replans else ''
        return f'a person has to look{tried}: {why}'

    def _over(self, ending: Ending) -> None:
        if self._execute and ending.reason is not Reason.DONE:
            if self._current >= 0 and self._steps[self._current].state is State.ACTIVE:
                self._mark(State.FAILED, text=ending.text)
            self._drop()
        self.ending = ending
        self._enter(Phase.ENDED, ending.text)

    def _drop(self) -> None:
        self._steps = [
            replace(step, state=State.DROPPED) if step.state is State.WAITING else step for step in self._steps
        ]

    def _past(self) -> tuple[Step, ...]:
        return tuple(step for step in self._steps if step.state in (State.DONE, State.FAILED))


def _lost(text: str) -> Ending:
    return Ending(Reason.POLICY, text)
