"""What the reasoner node says: steps, feedback, result and status as messages."""

from __future__ import annotations

from builtin_interfaces.msg import Duration

from cosmos3_msgs.action import MakePlan
from cosmos3_msgs.msg import PlanStep, ReasonerStatus
from cosmos3_ros.conversions import ns_to_stamp
from cosmos3_ros.plan_execution import Ending, Execution, Phase, Reason, Step
from cosmos3_ros.reasoner_asker import Asker

_STATES = ('INACTIVE', 'IDLE', 'PLANNING', 'EXECUTING', 'NEEDS_HELP', 'FAILED')
_NAMES = {getattr(ReasonerStatus, name): name for name in _STATES}


def duration(seconds: float) -> Duration:
    """A length of time as a message."""
    whole, rest = divmod(round(max(0.0, seconds) * 1e9), 1_000_000_000)
    return Duration(sec=int(whole), nanosec=int(rest))


def step_message(step: Step) -> PlanStep:
    """A step as a message."""
    return PlanStep(
        instruction=step.instruction,
        success=step.success,
        state=int(step.state),
        state_name=step.state.name,
        revision=step.revision,
        confidence=float(step.confidence),
        text=step.text,
    )


def feedback_message(execution: Execution, elapsed_s: float) -> MakePlan.Feedback:
    """What is going on."""
    return MakePlan.Feedback(
        phase=execution.phase.value,
        steps=[step_message(step) for step in execution.steps],
        current=execution.current,
        confidence=float(execution.confidence),
        text=execution.text,
        elapsed=duration(elapsed_s),
    )


def result_message(execution: Execution, ending: Ending, elapsed_s: float) -> MakePlan.Result:
    """What came of a goal."""
    return MakePlan.Result(
        success=ending.reason is Reason.DONE,
        reason=int(ending.reason),
        text=ending.text,
        steps=[step_message(step) for step in execution.steps],
        replans=execution.replans,
        duration=duration(elapsed_s),
    )


def status_message(
    asker: Asker, backend: str, now_ns: int, execution: Execution | None, inactive: bool
) -> ReasonerStatus:
    """What the reasoner is doing; `execution`: the plan that is under way, or the last one."""
    state = ReasonerStatus.INACTIVE if inactive else _state(execution)
    p50, p95 = asker.times()
    message = ReasonerStatus(
        state=state,
        state_name=_NAMES[state],
        backend=backend,
        current=-1,
        asked=asker.asked,
        unanswered=asker.unanswered,
        answer_p50_s=p50,
        answer_p95_s=p95,
    )
    message.header.stamp = ns_to_stamp(now_ns)
    if execution is not None:
        message.goal, message.text = execution.goal, execution.text
        message.steps = [step_message(step) for step in execution.steps]
        message.current, message.replans = execution.current, execution.replans
    return message


def _state(execution: Execution | None) -> int:
    if execution is None:
        return ReasonerStatus.IDLE
    if execution.ending is None:
        return ReasonerStatus.PLANNING if execution.phase is Phase.PLANNING else ReasonerStatus.EXECUTING
    reason = execution.ending.reason
    if reason in (Reason.DONE, Reason.CANCELED):
        return ReasonerStatus.IDLE
    return ReasonerStatus.NEEDS_HELP if reason is Reason.NEEDS_HELP else ReasonerStatus.FAILED
