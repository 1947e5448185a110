"""Drives an execution: asks what is to be asked, begins and ends runs of the policy, tells what happened.

All of it happens on the thread of :meth:`PlanRunner.run`; whatever comes from elsewhere is put in line for it.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

from cosmos3_ros.plan_execution import Check, Ending, Execution, Now, Order, Question, RunEnd
from cosmos3_ros.plan_questions import Planner, look
from cosmos3_ros.reasoner_asker import Asker, Asking
from cosmos3_ros.reasoner_views import Scene, Views
from engine.errors import CosmosError, InvalidInput
from engine.turns import Cancelled

TURN_S = 0.05
"""Longest time between two turns: how late a cancellation may be noticed."""

type Event = Callable[[], None]
type Answers = tuple[tuple[str, str], ...] | Check


class Runs(Protocol):
    """Runs of the policy, one at a time; what happens to them is told to the runner on its thread."""

    @property
    def open(self) -> Order | None:
        """The run that was asked for and has not ended."""

    @property
    def offered(self) -> bool:
        """Whether somebody offers to run the policy."""

    def begin(self, order: Order) -> None:
        """Ask for a run."""

    def end(self) -> None:
        """Ask for the end of the open one, as soon as that is possible; more than once does no harm."""

    def forget(self) -> None:
        """Nobody listens any more: what is open is to end, also if it only begins now."""


class PlanRunner:
    """One goal from its acceptance to its end.

    Attributes:
        execution: What decides; to be read from other threads only.
        planner: How plans are asked for.
    """

    def __init__(
        self,
        execution: Execution,
        planner: Planner,
        asker: Asker,
        views: Views,
        names: Sequence[str],
        clock_ns: Callable[[], int],
        changed: Callable[[Execution], None],
        report: Callable[[str, BaseException], None],
    ) -> None:
        """Prepare; `changed` hears of every change, `report` of exceptions that nobody expected."""
        self.execution, self.planner = execution, planner
        self._asker, self._views, self._names = asker, views, tuple(names)
        self._clock_ns, self._changed, self._report = clock_ns, changed, report
        self._line: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._asking: tuple[Question, Asking[Any]] | None = None
        self._shown_ns: int | None = None
        self._over = False
        self._told: object = None

    def post(self, event: Event) -> None:
        """Let something happen on the runner's thread; from any thread. Once it has ended, nothing happens any more."""
        if not self._over:
            self._line.put(event)

    def run(self, runs: Runs, cancelled: Callable[[], bool]) -> Ending:
        """See it through.

        Args:
            runs: Of the policy.
            cancelled: Asked at every turn.
        """
        try:
            while self.execution.ending is None:
                self._turn(runs, cancelled)
                if self.execution.ending is None:
                    self._wait()
        except Exception as error:  # a plan that nobody sees through must not go on to be called one that is
            self._report(f'the plan broke down: {error!r}', error)
            self.execution.broke(f'a fault in the node itself: {error!r}')
        finally:
            self._stop_asking()
            runs.forget()
            self._over = True
            self._serve()  # a run that was accepted in the last moment
        return self._ended()

    def _ended(self) -> Ending:
        if self.execution.ending is None:
            raise RuntimeError('a plan was left before its end')
        return self.execution.ending

    def now(self) -> Now:
        """The present."""
        return Now(self._clock_ns() / 1e9, time.monotonic())

    def _wait(self) -> None:
        """Until something happens, or the next turn is due."""
        with contextlib.suppress(queue.Empty):
            self._line.get(timeout=TURN_S)()
        self._serve()

    def _serve(self) -> None:
        """All that is in line."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._line.get_nowait()()

    def _turn(self, runs: Runs, cancelled: Callable[[], bool]) -> None:
        execution = self.execution
        if cancelled():
            execution.cancel()
        before = None
        while before != execution.wanted:
            before = execution.wanted
            execution.advance(self.now(), self._views.missing(self._names, self._clock_ns()), runs.open is not None)
            self._follow(runs)
            self._ask()
        self._tell()

    def _follow(self, runs: Runs) -> None:
        """Bring about the run that is wanted, or its end."""
        wanted, is_open = self.execution.wanted.run, runs.open
        if is_open is not None and not runs.offered:
            runs.forget()
            self.execution.run_ended(is_open.number, RunEnd.LOST, 'nobody offers run_policy any more')
        elif is_open is not None and (wanted is None or wanted.number != is_open.number):
            runs.end()
        elif is_open is None and wanted is not None and runs.offered:
            runs.begin(wanted)

    def _ask(self) -> None:
        """Bring about the question that is wanted, if there is something to see."""
        wanted = self.execution.wanted.question
        if self._asking is not None:
            question, asking = self._asking
            if wanted is None or wanted.ticket != question.ticket:
                self._stop_asking()
            elif asking.overdue:
                self._stop_asking()
                self.execution.unanswered(question.ticket, 'the reasoner does not even notice that it is late')
        if wanted is None or self._asking is not None:
            return
        scene = self._views.seen(self._names, self._clock_ns())
        if isinstance(scene, Scene) and scene.stamp_ns != self._shown_ns:  # two looks at one picture would be one look
            self._begin(wanted, scene)

    def _begin(self, question: Question, scene: Scene) -> None:
        sure, media = self.execution.rules.confidence, scene.media()
        try:
            if question.condition:
                asking: Asking[Any] = self._asker.ask(partial(look, question, sure, media))
            else:
                asking = self._asker.ask(partial(self.planner.steps, question.past, media))
        except CosmosError as error:
            self.execution.unanswered(question.ticket, str(error))
            return
        self._asking, self._shown_ns = (question, asking), scene.stamp_ns
        asking.future.add_done_callback(lambda done: self.post(partial(self._answered, question, done)))

    def _answered(self, question: Question, done: Future[Answers]) -> None:
        if self._asking is not None and self._asking[0].ticket == question.ticket:
            self._asking = None
        error = done.exception()
        if error is None:
            self._take(question, done.result())
        elif not isinstance(error, Cancelled):
            if not isinstance(error, CosmosError):
                self._report(f'a question broke down: {error!r}', error)
            self.execution.unanswered(question.ticket, _sentence(error))

    def _take(self, question: Question, answer: Answers) -> None:
        if isinstance(answer, Check):
            self.execution.checked(question.ticket, answer)
        else:
            self.execution.planned(question.ticket, answer)

    def _stop_asking(self) -> None:
        if self._asking is not None:
            self._asking[1].give_up()
        self._asking = None

    def _tell(self) -> None:
        execution = self.execution
        # NaN differs from itself: its text does not.
        state = (execution.phase, str(execution.steps), execution.current, execution.text, execution.ending)
        if state != self._told:
            self._told = state
            self._changed(execution)


def _sentence(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, InvalidInput):
        return f'{error.subject}: {"; ".join(map(str, error.problems))}'
    return str(error) or type(error).__name__
