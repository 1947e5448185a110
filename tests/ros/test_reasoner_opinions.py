"""Promises of opinions of imagined videos: scores like others, in time or not at all."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
from rclpy.parameter import Parameter

import engine
from cosmos3_ros.dynamics_node import DynamicsNode
from cosmos3_ros.judge import MONITORS, Judge, Rung
from cosmos3_ros.motion_bridge import MotionBridge
from cosmos3_ros.reasoner_opinions import OPINIONS, Opinions
from cosmos3_ros.shared_model import MODELS
from engine.calibration import Band, Calibration
from engine.contract import load_contract
from engine.dynamics import Dynamics, Rollout
from engine.reasoner_remote import RemoteTalker
from tests.openai_server import Hang, OpenAIServer, Request, Says, Status, choosing
from tests.ros.test_judge import proposal

CONTRACT = load_contract('demo_joint_pos')
QUICK = Rung('quick', steps=1, tier=256, cycle=False)


@pytest.fixture(scope='module')
def model(tiny_checkpoint: Path) -> engine.Cosmos3:
    return MODELS.load(str(tiny_checkpoint))


@pytest.fixture(scope='module')
def rollout(model: engine.Cosmos3) -> Rollout:
    """An imagined future whose pictures are decoded once for all tests."""
    dynamics = model.dynamics(CONTRACT)
    rollout = Judge(dynamics, MotionBridge(CONTRACT, dynamics.terms)).judge(proposal(), QUICK).rollout
    assert len(rollout.frames) == 17
    return rollout


def judge_of(model: engine.Cosmos3, opinions: Opinions, **thresholds: float) -> Judge:
    dynamics = model.dynamics(CONTRACT)
    bands = {f'quick/{name}': Band((threshold,), 0.05, 40) for name, threshold in thresholds.items()}
    return Judge(dynamics, MotionBridge(CONTRACT, dynamics.terms), Calibration(bands), adviser=opinions)


def opinions_of(server: OpenAIServer, limit_s: float = 20.0) -> Opinions:
    return Opinions(RemoteTalker(server.url, 'tiny'), limit_s, CONTRACT.timing.fps)


def critic(request: Request) -> Says:
    if 'filmed in the real world' in request.text:
        return choosing(**{'1': 0.75, '5': 0.25})
    return choosing(**{'9': 1.0})


@pytest.fixture
def imagined(rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imagine the same again: decoding pictures anew takes a processor long, and is not what this is about."""
    monkeypatch.setattr(Dynamics, 'imagine', lambda *_given, **_options: rollout)


@pytest.mark.usefixtures('imagined')
def test_opinions_are_scores_like_others_and_are_judged_by_bands_of_their_own(model):
    with OpenAIServer(critic) as server:
        found = judge_of(model, opinions_of(server), implausibility=0.5, idleness=0.5).judge(proposal(), QUICK)
    assert list(found.scores) == [*MONITORS, *OPINIONS]
    assert found.scores['implausibility'] == pytest.approx(0.75)
    assert found.scores['idleness'] == pytest.approx(0.0, abs=1e-6)
    assert found.crossed == ('implausibility',)
    assert found.decision.name == 'SLOW'
    asked = server.requests
    assert ['push' in request.text for request in asked] == [True, True]
    assert all(len(request.media()) >= 4 for request in asked), 'frames of the imagined second'


@pytest.mark.usefixtures('imagined')
def test_without_bands_opinions_object_to_nothing(model):
    with OpenAIServer(critic) as server:
        found = judge_of(model, opinions_of(server)).judge(proposal(), QUICK)
    assert found.decision.name == 'UNKNOWN'
    assert found.scores['implausibility'] == pytest.approx(0.75)


@pytest.mark.usefixtures('imagined')
def test_without_an_opinion_the_verdict_is_that_of_the_others(model):
    with OpenAIServer(Hang()) as server:
        judge = judge_of(model, opinions_of(server, 0.2), inconsistency=-1.0, implausibility=-1.0)
        judge.skip(proposal(0))
        found = judge.judge(proposal(1), QUICK)
    assert math.isnan(found.scores['implausibility'])
    assert math.isnan(found.scores['idleness'])
    assert (found.decision.name, found.crossed) == ('SLOW', ('inconsistency',))


@pytest.mark.parametrize('fault', [Hang(), Status(500, 'out of memory'), 'seven'], ids=['hangs', 'refuses', 'babbles'])
def test_an_opinion_that_does_not_come_in_time_is_missing(rollout, fault):
    with OpenAIServer(fault) as server:
        opinions = opinions_of(server, 0.3)
        began = time.monotonic()
        assert opinions.scores(rollout, proposal(), lambda: False) == {}
        assert time.monotonic() - began < 5.0
        assert opinions.asker.unanswered == 1


def test_one_of_two_opinions_is_better_than_none(rollout):
    with OpenAIServer(lambda request: critic(request) if 'real world' in request.text else Hang()) as server:
        assert list(opinions_of(server, 1.0).scores(rollout, proposal(), lambda: False)) == ['implausibility']


def test_nobody_waits_for_an_opinion_that_is_not_wanted_any_more(rollout):
    with OpenAIServer(Hang()) as server:
        opinions = opinions_of(server, 60.0)
        assert opinions.scores(rollout, proposal(), lambda: bool(server.requests)) == {}
        assert server.wait_until(lambda known: known.abandoned == 1)
        assert opinions.scores(rollout, proposal(), lambda: True) == {}
        assert len(server.requests) == 1, 'nobody was asked'


def test_the_weights_that_imagine_have_opinions_too_and_are_there_once(model, rollout):
    reasoner = MODELS.reasoner(model)
    assert MODELS.reasoner(MODELS.load(str(model.checkpoint.root))) is reasoner
    assert reasoner.runtime is model.runtime
    found = Opinions(reasoner, 60.0, CONTRACT.timing.fps).scores(rollout, proposal(), lambda: False)
    assert list(found) == list(OPINIONS)
    assert all(0.0 <= score <= 1.0 for score in found.values())


def test_the_dynamics_node_asks_for_opinions_if_it_is_told_to(graph, model):
    def node(name: str, **parameters: object) -> DynamicsNode:
        quick = {'contract': CONTRACT.name, 'checkpoint': str(model.checkpoint.root), 'warm_up': False}
        values = [Parameter(key, value=value) for key, value in (quick | parameters).items()]
        return graph.add(DynamicsNode(name, parameter_overrides=values))

    faulty = node('faulty', opinion_s=1.0, opinion_url='http://localhost:1/v1', opinion_key_variable='NO_SUCH_KEY')
    assert not faulty.transition('configure')
    assert 'opinion_model' in faulty.last_failure
    assert 'NO_SUCH_KEY' in faulty.last_failure
    silent, advised = node('silent'), node('advised', opinion_s=1.0)
    for one, monitors in ((silent, MONITORS), (advised, (*MONITORS, *OPINIONS))):
        assert one.transition('configure'), one.last_failure
        assert one.loop.judge.monitors == monitors
