"""What a reasoner thinks of imagined videos, as two monitors more: do they obey physics, do they get the task done.

Slow, so it has a limit of time of its own, counted from when the video is decoded; without an answer within it there is
no score, and the others are what they are. Both are 0 where all is well and 1 at worst. Nobody has calibrated them:
without a band they object to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import wait

from cosmos3_ros.judge import Proposal
from cosmos3_ros.reasoner_asker import Asker
from engine.dynamics import Rollout
from engine.errors import CosmosError
from engine.reasoner_questions import plausibility, progress
from engine.reasoner_talk import Talker, Video

OPINIONS = ('implausibility', 'idleness')
SAMPLE_FPS = 4.0
"""Frames of an imagined second that are shown, as the published cookbook does with short videos."""
POLL_S = 0.02


class Opinions:
    """Asks a reasoner about rollouts; see :class:`cosmos3_ros.judge.Adviser`.

    Attributes:
        names: Of its scores.
        asker: Counts questions and failures.
    """

    names = OPINIONS

    def __init__(self, talker: Talker, limit_s: float, fps: float) -> None:
        """Ask `talker` about videos of `fps` frames per second, for `limit_s` at most each time."""
        self.asker = Asker(talker, limit_s)
        self._fps = fps

    def scores(self, rollout: Rollout, proposal: Proposal, cancelled: Callable[[], bool]) -> Mapping[str, float]:
        """Those that could be had in time: `implausibility`, and `idleness` if there is an instruction."""
        instruction, found = proposal.instruction, {}
        video = Video(rollout.frames, self._fps, SAMPLE_FPS, 'imagined')
        if cancelled():
            return found

        def ask(talker: Talker, over: Callable[[], bool]) -> None:
            found['implausibility'] = 1.0 - plausibility(talker, [video], instruction, cancelled=over).value
            if instruction:
                found['idleness'] = 1.0 - progress(talker, instruction, [video], cancelled=over).value

        try:
            asking = self.asker.ask(ask)
        except CosmosError:  # none of the earlier questions has ended
            return {}
        while not (cancelled() or asking.overdue or wait([asking.future], POLL_S).done):
            pass
        asking.give_up()
        if asking.future.done() and not isinstance(asking.future.exception(), CosmosError | None):
            asking.future.result()  # a defect: whoever judges is to hear of it
        return dict(found)
