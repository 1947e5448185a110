"""What is asked for a plan: which steps, whether one is done, whether it has become impossible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cosmos3_ros.plan_execution import Check, Question, State, Step
from engine.answers.values import Plan
from engine.reasoner_questions import Attempt, Skills, ask, plan, probability_met
from engine.reasoner_talk import GREEDY, THINKING, Part, Sampling, Talker

_LONGEST_WHY = 300
_LONGEST_STEP = 800
"""Characters of a step that are quoted within another sentence, which has a limit of its own."""


@dataclass(frozen=True)
class Planner:
    """How to ask for the plans of one goal.

    Attributes:
        goal: What is to be reached.
        skills: Of the policy.
        sampling: Longest answer and seed.
        thinking: Whether to think before planning.
    """

    goal: str
    skills: Skills
    sampling: Sampling
    thinking: bool = False

    def check(self) -> None:
        """Refuse a goal that nobody can be asked about.

        Raises:
            InvalidInput: It is empty or too long, or the plan may have no or too many steps.
        """
        plan(self.goal, self.skills)

    def steps(
        self, past: Sequence[Step], media: Sequence[Part], talker: Talker, cancelled: Callable[[], bool]
    ) -> tuple[tuple[str, str], ...]:
        """Instructions and conditions of a plan; raises as :func:`engine.reasoner_questions.ask` does."""
        question = plan(self.goal, self.skills, [_attempt(step) for step in past])
        base = THINKING if self.thinking else GREEDY
        # Another number after each failure: who is asked the same again shall not answer the same.
        how = replace(base, max_tokens=self.sampling.max_tokens, seed=self.sampling.seed + len(past))
        asked = ask(talker, question, media, sampling=how, thinking=self.thinking, cancelled=cancelled)
        found: Plan = asked.value
        return tuple((step.instruction, step.success) for step in found.steps)


def look(
    question: Question, sure: float, media: Sequence[Part], talker: Talker, cancelled: Callable[[], bool]
) -> Check:
    """Whether a condition holds; if that is not sure, whether it never will; raises as :meth:`Talker.choose` does."""
    met = probability_met(talker, question.condition, media, cancelled=cancelled)
    if met >= sure or not question.step:
        return Check(met)
    hopeless = f'it has become impossible for the robot to do this: {question.step[:_LONGEST_STEP]}'
    return Check(met, probability_met(talker, hopeless, media, cancelled=cancelled))


def _attempt(step: Step) -> Attempt:
    return Attempt(step.instruction, step.state is State.DONE, ' '.join(step.text.split())[:_LONGEST_WHY])
