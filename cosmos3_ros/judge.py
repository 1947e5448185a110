"""Judges a chunk before the robot has done it: what imagination makes of it, score by score, and what follows.

    chunk --(motion bridge)--> rows of motion --(forward dynamics)--> imagined latents --(monitors)--> scores
    scores --(bands of recorded successes)--> ok, slow or stop; without bands, or without scores: unknown

How much is imagined depends on the time there is: the :data:`LADDER` says what each rung does. Scores of one rung say
nothing about those of another, so each has bands of its own, under the name `rung/monitor`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cosmos3_ros.guard.verdicts import Decision
from cosmos3_ros.motion_bridge import MotionBridge, expected_motion
from engine.calibration import Calibration
from engine.dynamics import Dynamics, Rollout
from engine.errors import InvalidInput, ObservationError, Problem
from engine.monitors import Mismatch, cycle_error, disagreement, inconsistency, mismatch, seed_variance
from engine.policy_observation import Observation

Floats = NDArray[np.float64]

MONITORS = (
    'disagreement',
    'cycle_translation',
    'cycle_rotation',
    'cycle_gripper',
    'seed_variance',
    'surprise',
    'standstill',
    'inconsistency',
)
"""Names of the scores; see :mod:`engine.monitors` for what each is evidence of."""


@dataclass(frozen=True)
class Rung:
    """What is imagined of a chunk, and how well.

    Attributes:
        name: Its name.
        steps: Network evaluations for each window.
        tier: Resolution tier of the canvas; None for that of the contract, without which the policy's own video cannot
            be compared.
        seeds: Futures that are imagined; two or more tell how much the noise decides.
        cycle: Whether inverse dynamics looks for the actions in what was imagined.
        pictures: Whether what was imagined for now is decoded when the next chunk comes, and compared with what is
            seen then.
        windows: Windows of the embodiment's length that are imagined, one after another; None for the whole chunk.
    """

    name: str
    steps: int
    tier: int | None = None
    seeds: int = 1
    cycle: bool = True
    pictures: bool = False
    windows: int | None = 1


LADDER = (
    Rung('full', steps=30, seeds=2, pictures=True, windows=None),
    Rung('long', steps=30, seeds=2, pictures=True),
    Rung('short', steps=12, seeds=2),
    Rung('look', steps=4, cycle=False, pictures=True),
    Rung('brief', steps=6),
    Rung('small', steps=6, tier=256, seeds=2),
    Rung('glance', steps=4, cycle=False),
)
"""From the best to the cheapest. `full` imagines all of a chunk, all others its first window: the rows that are
executed before the next chunk comes, and some more."""


def rungs(names: Sequence[str]) -> tuple[Rung, ...]:
    """Rungs by name, in the order of the ladder.

    Raises:
        InvalidInput: No name, or one that is not on the ladder.
    """
    known = {rung.name: rung for rung in LADDER}
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise InvalidInput('ladder', [Problem('rungs', 'are none or unknown', ', '.join(wrong), ', '.join(known))])
    return tuple(rung for rung in LADDER if rung.name in names)


@dataclass(frozen=True)
class Proposal:
    """A chunk that somebody wants the robot to do, and what was known when it was made.

    Attributes:
        stamp_ns: Time of its observation.
        views: Picture of each of the contract's views at that time, uint8 [H, W, 3].
        joints: [J] rad, measured at that time, in the contract's order.
        positions: [N, J] rad: where row k wants the joints at `stamp_ns` + (k + 1) steps. With `motion`, anything that
            tells chunks apart, such as positions of the tool.
        grippers: [N] or [N, G], 0 = open, 1 = closed.
        instruction: What it is for.
        own: The policy's own imagined video, latents [1, C, T, h, w]; None if there is none.
        observation: All that the policy saw, for a :class:`Dreamer`; None if that is not known.
        motion: [N, D] in the model's space, if it is known without the joints, as of recorded poses.
        moment: Number of the chunk in its run, from 0; None: one more than the last one that was judged or skipped.
        follows: Whether the arm has done the chunk before since, at its own pace. If not, the two speak of different
            moments, and what was promised says nothing of what is.
    """

    stamp_ns: int
    views: Mapping[str, NDArray[np.uint8]]
    joints: Floats
    positions: Floats
    grippers: Floats
    instruction: str = ''
    own: torch.Tensor | None = None
    observation: Observation | None = None
    motion: NDArray[np.float32] | None = None
    moment: int | None = None
    follows: bool = True


@dataclass(frozen=True)
class Judgement:
    """What became of a proposal.

    Attributes:
        decision: What follows.
        text: Why, in a sentence.
        scores: By monitor; NaN where there was nothing to compute it from.
        thresholds: By monitor; NaN where none is calibrated.
        crossed: Monitors above their threshold.
        rung: What was done; None if nothing was.
        rows: Rows that were imagined.
        rollout: What was imagined; None if nothing was.
        seconds: Time that it took.
    """

    decision: Decision
    text: str
    scores: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(MONITORS, math.nan))
    thresholds: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(MONITORS, math.nan))
    crossed: tuple[str, ...] = ()
    rung: Rung | None = None
    rows: int = 0
    rollout: Rollout | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Rule:
    """How many monitors have to object.

    Attributes:
        slow: To slow down.
        stop: To stop; not fewer than `slow`.
    """

    slow: int = 1
    stop: int = 2

    def __post_init__(self) -> None:
        """Raise InvalidInput if it can never be followed as it stands."""
        if not 1 <= self.slow <= self.stop:
            problem = Problem('rule', 'is out of order', f'slow {self.slow}, stop {self.stop}', '1 <= slow <= stop')
            raise InvalidInput('verdicts', [problem])

    def decide(self, objections: int) -> Decision:
        """What follows from so many objections."""
        if objections >= self.stop:
            return Decision.STOP
        return Decision.SLOW if objections >= self.slow else Decision.OK


class Adviser(Protocol):
    """Whoever has more scores of a rollout, in time or not at all; see :mod:`cosmos3_ros.reasoner_opinions`."""

    names: tuple[str, ...]

    def scores(self, rollout: Rollout, proposal: Proposal, cancelled: Callable[[], bool]) -> Mapping[str, float]:
        """Those that could be had; larger is worse. `cancelled`: nobody wants to know any more."""


class Dreamer(Protocol):
    """Makes the policy's own video where a proposal has none; see :mod:`cosmos3_ros.dreams`.

    Attributes:
        passes: What that takes, in passes of the network over one window.
    """

    passes: float

    def __call__(self, proposal: Proposal, seed: int, cancelled: Callable[[], bool]) -> torch.Tensor | None:
        """Latents [1, C, T, h, w] of what the policy would do; None if it cannot tell."""


class Judge:
    """Judges the chunks of one run after another; not thread-safe."""

    def __init__(
        self,
        dynamics: Dynamics,
        bridge: MotionBridge,
        calibration: Calibration | None = None,
        *,
        rule: Rule | None = None,
        lag_s: float = 0.0,
        adviser: Adviser | None = None,
        dreamer: Dreamer | None = None,
    ) -> None:
        """Prepare.

        Args:
            dynamics: Of the contract that the chunks are of.
            bridge: Of the same contract and terms.
            calibration: Bands of the scores, named `rung/monitor`; None: all decisions are unknown.
            rule: How many objections it takes.
            lag_s: Time constant with which the arm follows its targets; see
                :func:`~cosmos3_ros.motion_bridge.expected_motion`.
            adviser: Has scores of its own, told and judged like the others; None: nobody has.
            dreamer: Makes the policy's own video where a proposal has none; None: then there is no disagreement.
        """
        self.dynamics = dynamics
        self.bridge = bridge
        self.calibration = calibration
        self.rule = rule or Rule()
        self.lag_s = lag_s
        self._adviser, self._dreamer = adviser, dreamer
        self.monitors = MONITORS if adviser is None else (*MONITORS, *adviser.names)
        self._surfaces: dict[Rung, Dynamics] = {}
        self._before: tuple[Proposal, Rollout | None] | None = None
        self._moment = 0

    def reset(self) -> None:
        """A new run begins."""
        self._before, self._moment = None, 0

    def judge(
        self, proposal: Proposal, rung: Rung, seed: int = 0, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Judgement:
        """Imagine a chunk and say what follows.

        Args:
            proposal: The next one of this run.
            rung: How well to do it.
            seed: Of the noise.
            cancelled: Asked between denoising steps; True gives it up.

        Raises:
            ObservationError: The pictures do not fit.
            InvalidInput: Joints or rows do not fit.
            Cancelled: `cancelled` returned True.
        """
        began = time.perf_counter()
        moment = self._moment if proposal.moment is None else proposal.moment
        rows = self.rows(proposal)
        dynamics = self._at(rung)
        futures = [
            dynamics.imagine(
                proposal.views,
                rows,
                proposal.instruction,
                _seed(seed, number),
                windows=rung.windows,
                cancelled=cancelled,
            )
            for number in range(rung.seeds)
        ]
        found = {}
        if len(futures) > 1:
            found['seed_variance'] = _mean(seed_variance([_as_video(future.latents[0]) for future in futures]))
        if rung.cycle:
            found |= self._of_cycle(dynamics, futures[0], seed, cancelled)
        if moment == self._moment:  # the arm has done no other chunk since
            found |= self._of_past(proposal)
        if self._adviser is not None:
            found |= self._adviser.scores(futures[0], proposal, cancelled)
        # What comes last may take too long; the next chunk is then compared with this one all the same.
        self._before, self._moment = (proposal, futures[0] if rung.pictures else None), moment + 1
        found |= self._of_own(futures[0], proposal, rung, seed, cancelled)
        # What was computed and is no number is as bad as can be; only what was not computed says nothing.
        scores = dict.fromkeys(self.monitors, math.nan)
        scores |= {name: math.inf if math.isnan(score) else score for name, score in found.items()}
        rows_seen = min(len(futures[0].rows), len(rows))
        return self._concluded(scores, rung, moment, rows_seen, futures[0], time.perf_counter() - began)

    def skip(self, proposal: Proposal) -> None:
        """Note a proposal that is not imagined, or not to the end; its successor is compared with it."""
        if self._before is not None and self._before[0] is proposal:
            return
        moment = self._moment if proposal.moment is None else proposal.moment
        self._before, self._moment = (proposal, None), moment + 1

    def rows(self, proposal: Proposal) -> NDArray[np.float32]:
        """The motion that a chunk will cause, in the model's space.

        Raises:
            InvalidInput: Joints or rows do not fit.
        """
        if proposal.motion is not None:
            return proposal.motion
        path = expected_motion(proposal.joints, proposal.positions, 1.0 / self.dynamics.terms.fps, self.lag_s)
        return self.bridge.rows(path, proposal.grippers)

    # Scores

    def _at(self, rung: Rung) -> Dynamics:
        if rung not in self._surfaces:
            terms = self.dynamics.terms
            self._surfaces[rung] = self.dynamics.with_terms(steps=rung.steps, tier=rung.tier or terms.tier)
        return self._surfaces[rung]

    def dream_passes(self, rung: Rung) -> float:
        """Passes of the network that a rung takes beside its own, for the policy's video of a proposal without one."""
        return self._dreamer.passes if self._dreamer is not None and self._is_of_one_size(rung) else 0.0

    def _is_of_one_size(self, rung: Rung) -> bool:
        """Whether what is imagined can be compared with the policy's own video."""
        return rung.tier in (None, self.dynamics.terms.tier)

    def _of_own(
        self, future: Rollout, proposal: Proposal, rung: Rung, seed: int, cancelled: Callable[[], bool]
    ) -> dict[str, float]:
        """Disagreement with the policy's own video over the first window."""
        if not self._is_of_one_size(rung):
            return {}
        own = proposal.own
        if own is not None and own.shape[2] < 2:  # what was seen, and nothing of what comes
            own = None
        if own is None and self._dreamer is not None:
            own = self._dreamer(proposal, _seed(seed, 0), cancelled)
        if own is None:
            return {}
        mine, theirs = _as_video(future.latents[0]), _as_video(own)
        shared = min(len(mine), len(theirs))
        if mine.shape[1:] != theirs.shape[1:] or shared < 2:
            return {}
        return {'disagreement': _mean(disagreement(mine[:shared], theirs[:shared]))}

    def _of_cycle(
        self, dynamics: Dynamics, rollout: Rollout, seed: int, cancelled: Callable[[], bool]
    ) -> dict[str, float]:
        found = dynamics.actions_of(rollout, seed, cancelled=cancelled)
        try:
            error = cycle_error(found, rollout.rows, self.dynamics.terms.codec())
        except InvalidInput:  # what inverse dynamics found is no motion at all
            return dict.fromkeys(('cycle_translation', 'cycle_rotation', 'cycle_gripper'), math.inf)
        return {
            'cycle_translation': _mean(error.translation),
            'cycle_rotation': _mean(error.rotation),
            'cycle_gripper': _mean(error.gripper),
        }

    def _of_past(self, proposal: Proposal) -> dict[str, float]:
        """What the chunk before promised, against what is seen and proposed now."""
        if self._before is None or not proposal.follows:
            return {}
        before, rollout = self._before
        step_ns = 1e9 / self.dynamics.terms.fps
        shift = round((proposal.stamp_ns - before.stamp_ns) / step_ns)
        if shift < 1:
            return {}
        scores = {}
        # What is recorded never contradicts itself.
        if shift < len(before.positions) and proposal.motion is None:
            scores['inconsistency'] = inconsistency(before.positions, proposal.positions, shift)
        if rollout is not None and shift < len(rollout.rows) + 1:
            outcome = self._mismatch(rollout, before, proposal, shift)
            scores |= {'surprise': outcome.surprise, 'standstill': outcome.standstill}
        return scores

    def _mismatch(self, rollout: Rollout, before: Proposal, proposal: Proposal, shift: int) -> Mismatch:
        frames = rollout.begin(shift + 1) if shift <= self.dynamics.terms.chunk else rollout.frames
        seen, then = (self.dynamics.seen_as(rollout, one.views) for one in (proposal, before))
        return mismatch(frames[shift], seen, frames[0], then)

    def _concluded(
        self, scores: dict[str, float], rung: Rung, moment: int, rows: int, rollout: Rollout, seconds: float
    ) -> Judgement:
        bands = {} if self.calibration is None else self.calibration.bands
        thresholds = {
            name: bands[key].at(moment) if (key := f'{rung.name}/{name}') in bands else math.nan
            for name in self.monitors
        }
        judged = [name for name in self.monitors if not (math.isnan(scores[name]) or math.isnan(thresholds[name]))]
        crossed = tuple(name for name in judged if scores[name] > thresholds[name])
        if judged:
            decision, text = self.rule.decide(len(crossed)), _reason(crossed, scores, thresholds, len(judged))
        else:
            decision, text = Decision.UNKNOWN, f'nothing is calibrated for the rung {rung.name}'
            if not all(map(math.isnan, thresholds.values())):
                text = f'no monitor that is calibrated for the rung {rung.name} could be computed for this chunk'
        return Judgement(decision, text, scores, thresholds, crossed, rung, rows, rollout, seconds)


def _reason(crossed: Sequence[str], scores: Mapping[str, float], thresholds: Mapping[str, float], judged: int) -> str:
    if not crossed:
        return f'all of {judged} monitors are below their thresholds'
    parts = [f'{name} {scores[name]:.3g}, threshold {thresholds[name]:.3g}' for name in crossed]
    return f'{len(crossed)} of {judged} monitors object: {"; ".join(parts)}'


def _as_video(latents: torch.Tensor) -> NDArray[np.float32]:
    """Latents [1, C, T, h, w] as [T, h, w, C], without silent channels: these hold 0 in pictures, and noise."""
    found: NDArray[np.float32] = latents[0].permute(1, 2, 3, 0).float().cpu().numpy()
    return found[..., (found[0] != 0).any(axis=(0, 1))]


def _mean(values: Floats) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _seed(seed: int, number: int) -> int:
    """Seeds of several futures, far enough apart that their windows share none."""
    return (seed + 1009 * number) % 2**31


def failed(error: Exception) -> Judgement:
    """The judgement of a chunk that could not be imagined."""
    faults = error.problems if isinstance(error, InvalidInput | ObservationError) else ()
    return Judgement(Decision.UNKNOWN, '; '.join(map(str, faults)) or str(error) or type(error).__name__)
