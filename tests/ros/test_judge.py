"""What imagination makes of a chunk: scores where there is something to compute, a decision where there are bands."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import engine
from cosmos3_ros.dreams import PolicyDreamer
from cosmos3_ros.judge import LADDER, MONITORS, Decision, Judge, Proposal, Rule, Rung, _as_video, failed, rungs
from cosmos3_ros.motion_bridge import MotionBridge
from engine.calibration import Band, Calibration
from engine.contract import load_contract
from engine.dynamics import Dynamics
from engine.errors import InvalidInput
from engine.runtime import Cancelled

CONTRACT = load_contract('demo_joint_pos')
HOME = np.array([0.0, -0.6, 0.0, -2.5, 0.0, 1.9, 0.0])
STEP_NS = round(1e9 / CONTRACT.timing.fps)
QUICK = Rung('quick', steps=2, seeds=2)
SMALL = Rung('small', steps=2, tier=256)
LARGE = Rung('large', steps=1, tier=480, cycle=False)
SEEING = Rung('seeing', steps=2, tier=256, cycle=False, pictures=True)


@pytest.fixture(scope='module')
def model(tiny_checkpoint: Path) -> engine.Cosmos3:
    return engine.load(tiny_checkpoint)


def proposal(moment: int = 0, shift: int = 8, **changes: object) -> Proposal:
    """A slow wave of one joint, seen by cameras before which something moves."""
    scene = np.random.default_rng(0).integers(0, 256, (180, 320, 3), np.uint8)
    views = {name: np.roll(scene, 8 * moment, 1) for name in CONTRACT.views.streams}
    times = np.arange(1, CONTRACT.timing.chunk_rows + 1)[:, None] + moment * shift
    positions = HOME + 0.01 * times * np.eye(7)[0]
    made = Proposal(moment * shift * STEP_NS, views, positions[0], positions, np.zeros(len(positions)), 'push')
    return replace(made, **changes)


def judge_of(model: engine.Cosmos3, calibration: Calibration | None = None, **options: object) -> Judge:
    dynamics = model.dynamics(CONTRACT)
    return Judge(dynamics, MotionBridge(CONTRACT, dynamics.terms), calibration, **options)


def bands(**thresholds: float) -> Calibration:
    return Calibration({f'quick/{name}': Band((threshold,), 0.05, 40) for name, threshold in thresholds.items()})


def known(scores: dict[str, float]) -> set[str]:
    return {name for name, score in scores.items() if not math.isnan(score)}


def test_a_rung_computes_the_scores_that_it_can_and_leaves_out_the_others(model: engine.Cosmos3) -> None:
    judge, cycle = judge_of(model), {'cycle_translation', 'cycle_rotation', 'cycle_gripper'}
    first = judge.judge(proposal(0), QUICK)
    assert known(first.scores) == cycle | {'seed_variance'}, 'there was no chunk before, and no video of the policy'
    assert set(first.scores) == set(MONITORS)
    assert (first.rows, first.rung, len(first.rollout.rows)) == (16, QUICK, 16)
    assert known(judge.judge(proposal(1), QUICK).scores) == cycle | {'seed_variance', 'inconsistency'}
    assert known(judge.judge(proposal(2), SMALL).scores) == cycle | {'inconsistency'}
    judge.reset()
    assert known(judge.judge(proposal(3), SMALL).scores) == cycle, 'a new run has no chunk before'


def test_the_policys_own_video_is_compared_where_the_pictures_are_of_one_size(model: engine.Cosmos3) -> None:
    chunk = model.policy(CONTRACT).infer(engine.Observation(proposal().views, 'push', HOME, 0.0), 3)
    judge = judge_of(model)
    mine = judge.judge(proposal(own=chunk.latents), QUICK).scores['disagreement']
    assert 0.1 < mine < 10
    own = judge.dynamics.with_terms(steps=2).imagine(proposal().views, judge.rows(proposal()), 'push', windows=1)
    assert judge.judge(proposal(own=own.latents[0]), QUICK).scores['disagreement'] < 1e-6
    assert judge.dynamics.terms.tier != LARGE.tier
    assert math.isnan(judge.judge(proposal(own=chunk.latents), LARGE).scores['disagreement'])


def test_where_a_chunk_comes_without_video_the_policy_of_the_weights_dreams_what_it_would_do(
    model: engine.Cosmos3,
) -> None:
    actions_alone = replace(CONTRACT, sampler=replace(CONTRACT.sampler, video=False))
    said: list[str] = []
    judge = judge_of(model, dreamer=PolicyDreamer(model, actions_alone, said.append))
    seen = engine.Observation(proposal().views, 'push', HOME, 0.0)
    dreamt = judge.judge(proposal(observation=seen), QUICK, seed=3).scores['disagreement']
    own = model.policy(CONTRACT).infer(seen, 3).latents
    assert dreamt == judge.judge(proposal(own=own), QUICK, seed=3).scores['disagreement']
    given = judge.judge(proposal(own=own + 1.0, observation=seen), QUICK, seed=3).scores['disagreement']
    assert math.isfinite(given), 'what comes with a chunk is not replaced'
    assert given != dreamt
    assert math.isnan(judge.judge(proposal(), QUICK).scores['disagreement']), 'what was seen is not known'
    assert math.isnan(judge.judge(proposal(observation=seen), LARGE).scores['disagreement'])
    assert (judge.dream_passes(LARGE), judge.dream_passes(QUICK) > CONTRACT.sampler.steps) == (0.0, True)
    assert said == []
    for _ in range(2):
        wordless = proposal(observation=replace(seen, instruction=''))
        found = judge.judge(wordless, QUICK).scores
        assert math.isnan(found['disagreement'])
        assert math.isfinite(found['seed_variance']), 'the others are told'
    assert len(said) == 1
    assert 'instruction' in said[0]


def test_what_was_imagined_for_now_is_compared_with_what_is_seen_now(model: engine.Cosmos3) -> None:
    judge = judge_of(model)
    assert math.isnan(judge.judge(proposal(0), SEEING).scores['surprise'])
    moved = judge.judge(proposal(1), SEEING).scores
    judge.reset()
    judge.judge(proposal(0), SEEING)
    frozen = judge.judge(proposal(1, views=proposal(0).views), SEEING).scores
    assert moved['surprise'] > 0.1, 'random weights do not imagine how pictures roll'
    assert (frozen['surprise'], frozen['standstill'] > moved['standstill']) == (0.0, True)
    judge.skip(proposal(2))
    assert math.isnan(judge.judge(proposal(3), SEEING).scores['surprise']), 'nothing was imagined for this moment'


def test_chunks_are_not_compared_over_one_that_was_done_in_between_and_that_nobody_judged(
    model: engine.Cosmos3,
) -> None:
    judge = judge_of(model)
    judge.judge(replace(proposal(0), moment=0), SEEING)
    found = judge.judge(replace(proposal(1), moment=2), SEEING).scores
    assert math.isnan(found['surprise'])
    assert math.isnan(found['inconsistency'])
    assert not math.isnan(judge.judge(replace(proposal(2), moment=3), SEEING).scores['surprise'])


def test_noise_in_silent_channels_is_no_disagreement() -> None:
    latents = torch.randn(1, 48, 3, 4, 4)
    latents[:, 16:, 0] = 0.0
    video = _as_video(latents)
    assert video.shape == (3, 4, 4, 16)
    np.testing.assert_array_equal(video[1], latents[0, :16, 1].permute(1, 2, 0))


def test_a_chunk_that_contradicts_the_one_before_is_inconsistent_and_one_that_continues_it_is_not(
    model: engine.Cosmos3,
) -> None:
    judge = judge_of(model)
    judge.judge(proposal(0), SMALL)
    assert judge.judge(proposal(1), SMALL).scores['inconsistency'] < 1e-9
    other = proposal(2, positions=proposal(2).positions + 0.1)
    assert judge.judge(other, SMALL).scores['inconsistency'] == pytest.approx(0.1)
    again = proposal(2)
    assert math.isnan(judge.judge(again, SMALL).scores['inconsistency']), 'the same moment says nothing of time'


def test_chunks_are_compared_only_where_the_arm_has_done_the_one_before_and_both_speak_of_the_same_time(
    model: engine.Cosmos3,
) -> None:
    contradiction = proposal(1).positions + 0.1
    for changes in (
        {'follows': False},
        {'stamp_ns': 100 * STEP_NS},
        {'motion': np.zeros((4, 10), np.float32) + np.eye(10, dtype=np.float32)[3]},
    ):
        judge = judge_of(model)
        judge.judge(proposal(0), SMALL)
        found = judge.judge(proposal(1, **{'positions': contradiction, **changes}), SMALL)
        assert math.isnan(found.scores['inconsistency']), changes


def test_thresholds_are_those_of_the_chunks_place_in_its_run(model: engine.Cosmos3) -> None:
    rising = Calibration({'small/cycle_translation': Band(tuple(range(100)), 0.05, 40)})
    judge = judge_of(model, rising)
    assert judge.judge(proposal(0), SMALL).thresholds['cycle_translation'] == 0
    assert judge.judge(replace(proposal(1), moment=7), SMALL).thresholds['cycle_translation'] == 7, 'six were overtaken'
    judge.skip(proposal(2))
    assert judge.judge(proposal(3), SMALL).thresholds['cycle_translation'] == 9


def test_a_score_that_is_no_number_objects(model: engine.Cosmos3, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = judge_of(model, bands(cycle_gripper=1.0, seed_variance=1e9))
    nothing = np.full((16, 10), np.nan, np.float32)
    monkeypatch.setattr(Dynamics, 'actions_of', lambda *_given, **_options: nothing)
    found = judge.judge(proposal(), QUICK)
    assert (found.scores['cycle_gripper'], found.decision) == (math.inf, Decision.SLOW)


def test_without_bands_nothing_is_decided_and_with_them_objections_are_counted(model: engine.Cosmos3) -> None:
    assert judge_of(model).judge(proposal(), QUICK).decision is Decision.UNKNOWN
    far = dict.fromkeys(('cycle_translation', 'cycle_rotation', 'cycle_gripper', 'seed_variance'), 1e9)
    for low, decision in ((0, Decision.OK), (1, Decision.SLOW), (2, Decision.STOP), (4, Decision.STOP)):
        thresholds = far | dict.fromkeys(list(far)[:low], -1.0)
        found = judge_of(model, bands(**thresholds)).judge(proposal(), QUICK)
        assert (found.decision, found.crossed) == (
            decision,
            tuple(name for name in MONITORS if name in list(far)[:low]),
        )
        assert all(name in found.text for name in found.crossed)
    only_other = judge_of(model, bands(**far)).judge(proposal(), SMALL)
    assert only_other.decision is Decision.UNKNOWN, 'bands of one rung say nothing of another'
    strict = judge_of(model, bands(**far | {'seed_variance': -1.0}), rule=Rule(1, 1)).judge(proposal(), QUICK)
    assert strict.decision is Decision.STOP


def test_the_same_proposal_and_seed_have_the_same_scores(model: engine.Cosmos3) -> None:
    one, other = (judge_of(model).judge(proposal(), QUICK, seed=5).scores for _ in range(2))
    np.testing.assert_array_equal(list(one.values()), list(other.values()))
    assert judge_of(model).judge(proposal(), QUICK, seed=6).scores['cycle_translation'] != one['cycle_translation']


def test_a_proposal_can_be_given_up_and_one_that_does_not_fit_is_refused(model: engine.Cosmos3) -> None:
    judge = judge_of(model)
    with pytest.raises(Cancelled):
        judge.judge(proposal(), QUICK, cancelled=lambda: True)
    with pytest.raises(InvalidInput, match='targets: have another width'):
        judge.judge(proposal(positions=np.zeros((32, 6))), QUICK)
    with pytest.raises(InvalidInput) as raised:
        judge.judge(proposal(joints=np.full(7, np.nan)), QUICK)
    unknown = failed(raised.value)
    assert unknown.decision is Decision.UNKNOWN
    assert 'not finite' in unknown.text


def test_a_lag_makes_the_motion_start_slowly(model: engine.Cosmos3) -> None:
    late, prompt = judge_of(model, lag_s=0.2).rows(proposal()), judge_of(model).rows(proposal())
    assert np.abs(late[0, :3]).max() < np.abs(prompt[1, :3]).max()


def test_rungs_are_found_by_name_and_keep_the_order_of_the_ladder() -> None:
    assert [rung.name for rung in rungs(['glance', 'short'])] == ['short', 'glance']
    assert len({rung.name for rung in LADDER}) == len(LADDER)
    for wrong in ([], ['short', 'long-ago']):
        with pytest.raises(InvalidInput, match='are none or unknown'):
            rungs(wrong)
    with pytest.raises(InvalidInput, match='1 <= slow <= stop'):
        Rule(slow=3, stop=2)


def test_a_dream_that_takes_too_long_does_not_keep_the_next_chunk_from_being_compared(model: engine.Cosmos3) -> None:
    class Slow:
        passes = 1.0

        def __call__(self, _proposal: Proposal, _seed: int, _cancelled: Callable[[], bool]) -> torch.Tensor:
            raise Cancelled('no time is left')

    looking = replace(SEEING, tier=None)
    judge, first = judge_of(model, dreamer=Slow()), proposal(0)
    with pytest.raises(Cancelled):
        judge.judge(first, looking)
    judge.skip(first)
    given = torch.zeros(1, 48, 5, 16, 19)
    assert math.isfinite(judge.judge(proposal(1, own=given), looking).scores['standstill'])
