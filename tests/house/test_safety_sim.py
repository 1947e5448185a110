"""The safety simulation: hazards that change one thing, truth from the simulator, figures that add up."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import re
import runpy
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mujoco', reason='the simulator is not installed')

from cosmos3_ros import safety_sim
from cosmos3_ros.cli import main
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.runner import show_arguments
from cosmos3_ros.safety_episode import ChunkRecord, EpisodeRecord, Stage, Trace, harm_of, play
from cosmos3_ros.safety_expert import Expert, Plan, Rows, Seen, quintic
from cosmos3_ros.safety_figures import BOTH, GUARD, area_under_curve, curve, tell, wilson
from cosmos3_ros.safety_hazards import HAZARDS, Hazard, describe, make_hazard
from cosmos3_ros.safety_jobs import JOBS, TARGETS, target_of
from cosmos3_ros.safety_options import SAFETY_ARGUMENTS, SafetyOptions, safety_options
from cosmos3_ros.safety_process import command_line
from cosmos3_ros.safety_report import write_report
from cosmos3_ros.safety_runs import Journal, cases_of
from cosmos3_ros.safety_sim import is_good
from cosmos3_ros.safety_tables import limits_of, sections
from engine.calibration import Band, Calibration
from engine.contract import load_contract
from engine.errors import InvalidInput
from engine.evaluation.simulated_franka import Pose, SimulatedFranka

ARGUMENTS = {argument.name for argument in SAFETY_ARGUMENTS}
LAUNCH_FILE = 'launch/safety_sim.launch.py'


@pytest.fixture(scope='module')
def stage() -> Stage:
    contract = load_contract('demo_joint_pos')
    return Stage(SimulatedFranka(render_views=(), obstacle=True), load_limits('panda'), contract)


@pytest.fixture(scope='module')
def expert() -> Expert:
    return Expert(load_contract('demo_joint_pos'), load_limits('panda'))


@pytest.fixture
def run(stage: Stage, expert: Expert) -> Callable[..., tuple[Trace, Hazard]]:
    """Play an episode with a hazard, '' for none."""

    def one(name: str, seed: int, ahead: object = None) -> tuple[Trace, Hazard]:
        target = target_of(seed, tuple(TARGETS))
        return play(stage, expert, seed, target, lambda chunks: make_hazard(name, seed, chunks), None, ahead)

    return one


# The expert


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_a_hand_that_is_to_reach_stays_above_what_was_named_and_takes_nothing(seed: int) -> None:
    contract, limits, job = load_contract('micro_joint_pos'), load_limits('panda'), JOBS['reach']
    stage = Stage(SimulatedFranka(render_views=(), obstacle=True), limits, contract, job)
    target = target_of(seed)
    trace, _ = play(stage, Expert(contract, limits, job), seed, target, lambda chunks: make_hazard('', seed, chunks))
    assert (trace.success, trace.stops, trace.touched) == (True, [], {})
    assert not any(job.done(stage.robot, other, 0.0) for other in TARGETS if other != target)
    assert stage.job.instruction(target) == f'reach for the {target.replace("_", " ")}'
    stage.robot.close()


def test_the_path_of_least_jerk_begins_and_ends_as_it_is_told() -> None:
    start = np.array([0.1]), np.array([0.3]), np.array([0.2])
    stretch = Plan(np.array([0.0, 2.0]), quintic(start, np.array([0.9]), 2.0)[None], 0.0)
    found = np.concatenate(stretch.state(np.array([0.0, 2.0])), axis=1)
    np.testing.assert_allclose(found, [[0.1, 0.3, 0.2], [0.9, 0.0, 0.0]], atol=1e-12)


@pytest.mark.parametrize('seed', [0, 1, 4])
def test_the_hand_succeeds_where_nothing_is_wrong_and_the_guard_has_nothing_to_say(run, seed: int) -> None:
    trace, _ = run('', seed)
    assert (trace.success, trace.stops, trace.touched) == (True, [], {})
    assert {chunk.guard for chunk in trace.chunks} == {'ACCEPTED'}


# Hazards


def shown_at(index: int) -> Seen:
    picture = np.full((2, 2, 3), index, np.uint8)
    things = {name: Pose(np.full(3, 0.01 * index), np.array([0.0, 0.0, 0.0, 1.0])) for name in TARGETS}
    return Seen(index * 10, {'wrist': picture}, np.full(7, 0.1 * index), 0.01 * index, things)


def rows_at(index: int) -> Rows:
    grid = np.arange(32)[:, None] * 0.01 + np.arange(7)[None] + index
    return Rows(grid, np.linspace(0, 1, 32))


def changed(one: object, other: object) -> set[str]:
    """Names of the fields in which two records differ."""
    pairs = {f.name: (getattr(one, f.name), getattr(other, f.name)) for f in fields(one)}
    return {
        name
        for name, (a, b) in pairs.items()
        if (not np.array_equal(a, b) if isinstance(a, np.ndarray) else a is not b)
    }


@pytest.mark.parametrize(
    ('name', 'what'),
    [
        ('wrong_target', {'target'}),
        ('joint_swap', {'positions'}),
        ('gripper_polarity', {'grippers'}),
        ('frozen_camera', {'views', 'objects'}),
        ('stale_state', {'joints', 'gripper'}),
        ('obstacle', set()),
        ('action_noise', {'positions'}),
        ('time_shift', {'positions', 'grippers'}),
    ],
)
def test_each_hazard_changes_what_it_says_from_its_beginning_on_and_nothing_else(name: str, what: set[str]) -> None:
    hazard = make_hazard(name, 5, 9)
    before, after = set[str](), set[str]()
    for index in range(9):
        seen, rows = shown_at(index), rows_at(index)
        found = changed(hazard.seen(index, seen), seen) | changed(hazard.rows(index, rows), rows)
        found |= {'target'} if hazard.target(index, 'red_cube') != 'red_cube' else set()
        (after if hazard.active(index) else before).update(found)
    assert (before, after) == (set(), what)
    assert 1 <= hazard.begin <= 7


def test_an_obstacle_changes_the_scene_alone_and_the_simulator_says_when_it_is_touched(run) -> None:
    twin, _ = run('', 101)
    trace, hazard = run('obstacle', 101, twin.path)
    harm, apart = harm_of(trace, twin, trace.chunks[hazard.begin].observed_s)
    assert harm['obstacle'] > trace.chunks[hazard.begin].observed_s
    assert apart > 0.05
    assert 'obstacle' not in twin.touched


def test_a_scene_has_an_obstacle_only_if_it_was_asked_for_and_a_place_is_three_numbers() -> None:
    robot = SimulatedFranka(render_views=())
    with pytest.raises(InvalidInput) as raised:
        robot.place_obstacle([0.0, math.nan, 0.0])
    assert {problem.where for problem in raised.value.problems} == {'obstacle', 'position'}


def test_what_the_arm_touches_is_told_by_name_until_the_scene_is_reset(stage: Stage) -> None:
    robot = stage.robot
    robot.reset(0)
    assert robot.touched() == frozenset()
    robot.place_obstacle(robot.tool_position())
    assert robot.touched() == {'obstacle'}
    robot.reset(0)
    assert robot.touched() == frozenset()


@pytest.mark.parametrize('name', ['wrong_target', 'joint_swap', 'gripper_polarity', 'time_shift'])
def test_until_a_hazard_begins_an_episode_is_its_twin(run, name: str) -> None:
    twin, _ = run('', 7)
    trace, hazard = run(name, 7)
    ticks = round(trace.chunks[hazard.begin].arrived_s * 100) - 1
    np.testing.assert_allclose(trace.tool[:ticks], twin.tool[:ticks], atol=1e-9)
    assert np.abs(np.array(trace.tool[ticks:]) - np.array(twin.tool[ticks : len(trace.tool)])).max() > 1e-3


def test_harm_is_what_the_simulator_measures_and_the_twin_did_not_do(run) -> None:
    twin, _ = run('', 3)
    trace, hazard = run('gripper_polarity', 3)
    harm, _ = harm_of(trace, twin, trace.chunks[hazard.begin].observed_s)
    assert harm['failed'] == trace.times_s[-1]
    assert harm_of(twin, twin, 1.0) == ({}, 0.0)
    assert 'failed' not in harm_of(trace, trace, 1.0)[0], 'the twin failed too'


def test_every_hazard_says_in_a_sentence_what_it_does() -> None:
    assert all(describe(name).endswith('.') and len(describe(name)) > 25 for name in HAZARDS)


# Cases


def test_no_episode_for_bands_is_tested_and_none_is_run_twice() -> None:
    bands = cases_of('calibration', (), 0, 200, 3)
    tests = cases_of('test', tuple(HAZARDS), 40, 200, 3)
    seeds = [case.seed() for case in (*bands, *tests)]
    assert len({case.name for case in (*bands, *tests)}) == len(set(seeds)) == 200 + 200 + 40 * len(HAZARDS)


def test_a_run_that_is_cut_short_has_some_episodes_of_each_kind() -> None:
    first = cases_of('test', tuple(HAZARDS), 20, 40, 0)[:30]
    assert {case.hazard for case in first} == {'', *HAZARDS}


# Records


def episode(case: str, hazard: str, scores: list[float], harm: float | None = None) -> EpisodeRecord:
    """Chunks half a second apart with one score; the hazard begins with the third."""
    chunks = tuple(
        ChunkRecord(
            0.5 * k,
            0.5 * k + 0.2,
            bool(hazard) and k >= 2,
            'ACCEPTED',
            {'inconsistency': score},
            {'inconsistency': 1.0},
            'SLOW' if score > 1.0 else 'OK',
            ('inconsistency',) if score > 1.0 else (),
            0.25,
        )
        for k, score in enumerate(scores)
    )
    harmed = {} if harm is None else {'failed': harm}
    return EpisodeRecord(case, 'test', hazard, 1, 'pick up', 1.0 if hazard else None, chunks, (), True, harmed, 0.0)


EPISODES = [
    episode('a', 'joint_swap', [0, 0, 2, 2], harm=2.2),
    episode('b', 'joint_swap', [0, 2, 0, 0], harm=2.2),
    episode('c', 'time_shift', [0, 0, 0, 3]),
    replace(episode('d', '', [0, 0, 0, 0]), stops=((0.9, 'START_JUMP'),)),
    episode('e', '', [2, 0, 0, 0]),
    episode('f', '', [0, 0, 0, 0]),
]


def test_an_alarm_counts_as_a_detection_only_from_the_beginning_of_the_hazard_on() -> None:
    found = tell(EPISODES)['sources']['inconsistency']
    assert found['confusion'] == {
        'true_positive': 2,
        'false_negative': 1,
        'false_positive': 1,
        'true_negative': 2,
        'early_alarms_in_hazard_episodes': 1,
    }
    assert found['detection_by_hazard']['time_shift']['rate'] == 1.0
    assert (found['false_alarms_per_chunk']['hits'], found['false_alarms_per_chunk']['trials']) == (2, 2 * 3 + 4 * 3)
    assert (found['lead_s']['count'], found['lead_s']['median']) == (1, pytest.approx(1.0))


def test_the_guard_counts_by_itself_and_together_with_the_monitors() -> None:
    sources = tell(EPISODES)['sources']
    assert sources[GUARD]['confusion']['false_positive'] == 1
    assert sources[BOTH]['confusion']['false_positive'] == 2
    assert sources[BOTH]['confusion']['true_positive'] == 2


def test_the_area_under_the_curve_is_the_chance_that_a_bad_episode_scores_higher() -> None:
    found = area_under_curve([2.0, 3.0, 1.0], [1.0, 0.0])
    assert found['auc'] == pytest.approx((2 + 2 + 1.5) / 6)
    assert found['ci95'][0] < found['auc'] < found['ci95'][1] <= 1.0
    alarms, detections = curve([2.0, 3.0, 1.0], [1.0, 0.0])
    assert (alarms[0], detections[0], alarms[-1], detections[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert area_under_curve([], [1.0])['auc'] is None
    assert area_under_curve([2.0] * 9, [1.0] * 9)['ci95'][0] < 0.75, 'nine of nine prove little'


def test_the_interval_is_wilsons() -> None:
    assert wilson(0, 50) == pytest.approx((0.0, 0.0713476), abs=1e-6)
    assert wilson(45, 50) == pytest.approx((0.7864, 0.9565), abs=1e-4)


def test_a_record_survives_the_journal_infinite_scores_too(tmp_path: Path) -> None:
    path = tmp_path / 'episodes.jsonl'
    one = replace(EPISODES[0], chunks=(replace(EPISODES[0].chunks[0], scores={'cycle_gripper': math.inf}),))
    Journal(path, {'seed': 1}).add(one)
    assert Journal(path, {'seed': 1}).records == {'a': one}


def test_what_is_in_the_journal_is_not_run_again_and_half_a_line_is(tmp_path: Path) -> None:
    path = tmp_path / 'episodes.jsonl'
    journal = Journal(path, {'seed': 1})
    for one in EPISODES[:2]:
        journal.add(one)
    text = path.read_text()
    path.write_text(text + text.splitlines()[-1][:50])
    assert set(Journal(path, {'seed': 1}).records) == {'a', 'b'}
    assert path.read_text() == text


def test_the_journal_of_another_run_is_refused_with_every_difference(tmp_path: Path) -> None:
    Journal(tmp_path / 'episodes.jsonl', {'seed': 1, 'rung': 'small', 'contract': 'x'})
    with pytest.raises(InvalidInput) as raised:
        Journal(tmp_path / 'episodes.jsonl', {'seed': 2, 'rung': 'brief', 'contract': 'x'})
    assert {problem.where for problem in raised.value.problems} == {'seed', 'rung'}


def test_only_unharmed_successes_make_bands() -> None:
    good = replace(EPISODES[5], success=True, harm={})
    assert is_good(good, 'expert')
    assert not is_good(replace(good, success=False), 'expert')
    assert not is_good(replace(good, harm={'table': 1.0}), 'expert')
    assert is_good(replace(good, success=False, harm={'failed': 4.0}), 'checkpoint')
    assert not is_good(replace(good, success=False, harm={'table': 4.0}), 'checkpoint')
    assert is_good(replace(good, harm={'guard_stop': 1.0}), 'checkpoint', 'reach')
    assert not is_good(replace(good, success=False, harm={'failed': 4.0}), 'checkpoint', 'reach')


# The report


@pytest.fixture
def results() -> dict:
    named = ('contract_name', 'proposer', 'source', 'seed', 'versions', 'date')
    provenance = dict.fromkeys(named, 'x') | {'recipe': 'rung small, steps 6', 'weights': 'random'}
    return {
        'provenance': provenance,
        'calibration': {'episodes': '38 successes of 40'},
        'false_alarm_rate': 0.05,
        **tell(EPISODES),
    }


def test_the_report_loads_nothing_and_names_its_limits(tmp_path: Path, results: dict) -> None:
    calibration = Calibration({'small/inconsistency': Band((1.0, 1.0), 0.05, 40)})
    path = tmp_path / 'report.html'
    write_report(path, results, EPISODES, calibration, tmp_path / 'none')
    text = path.read_text()
    assert not re.search(r'(src|href)="(?!data:)|https?://|@import|<script', text)
    assert text.count('data:image/png;base64,') == 2
    for words in ('random weights', 'cannot tell danger from', 'not a safety case', 'nobody acted on them'):
        assert words in text


def test_the_words_about_random_weights_are_for_random_weights(results: dict) -> None:
    given = {**results, 'provenance': {**results['provenance'], 'weights': 'given'}}
    assert not any('random weights' in text for text in limits_of(given))
    assert any('for this checkpoint' in text for text in limits_of(given))


def test_the_tables_show_counts_rates_and_intervals(results: dict) -> None:
    text = '\n'.join(sections(results))
    assert '| inconsistency | 2 | 1 | 1 | 2 | 66.7 % [21, 94] |' in text


# Options, executable, launch file


def test_the_defaults_of_the_arguments_are_the_defaults_of_the_options() -> None:
    assert safety_options({}) == SafetyOptions()


def test_all_faulty_arguments_are_reported_at_once() -> None:
    with pytest.raises(InvalidInput) as raised:
        safety_options(
            {'episodes': '-1', 'proposer': 'x', 'speed': '2', 'false_alarm_rate': '1', 'workers': '0', 'latency': '-1'}
        )
    wanted = {'episodes', 'proposer', 'speed', 'false_alarm_rate', 'workers', 'latency'}
    assert {problem.where for problem in raised.value.problems} == wanted


def test_the_executable_takes_launch_arguments_and_leaves_those_of_ros() -> None:
    words = command_line(['episodes:=3', 'hazards:=obstacle', '--ros-args', '-r', '__node:=x'])
    assert words == ['safety-sim', '--episodes=3', '--hazards=obstacle']
    assert all(f'{name}:' in show_arguments(SAFETY_ARGUMENTS) for name in ARGUMENTS)
    with pytest.raises(InvalidInput, match='name:=value'):
        command_line(['episodes=3'])


def test_the_launch_file_takes_its_arguments_from_the_list_alone(repository: Path) -> None:
    tree = ast.parse((repository / LAUNCH_FILE).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {'SAFETY_ARGUMENTS', 'safety_options'} <= imported
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not texts & ARGUMENTS, 'a second list of arguments'


@pytest.mark.skipif(importlib.util.find_spec('launch_ros') is None, reason='the launch packages are not installed')
def test_the_launch_description_declares_every_argument(repository: Path) -> None:
    description = runpy.run_path(str(repository / LAUNCH_FILE))['generate_launch_description']()
    assert {argument.name for argument in description.get_launch_arguments()} == ARGUMENTS


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        (['--hazards', 'flood,obstacle'], 'hazards: unknown, got flood'),
        (['--latency', '0.6'], 'latency: is not before the next observation, got 0.6 s'),
        (['--calibration-episodes', '10'], 'are too few for this false_alarm_rate, got 10, allowed: 38 or more'),
        (['--contract', 'robomind_dual'], 'are not those of the simulated arm'),
        (['--episode', 'somewhere', '--hazards', 'obstacle'], 'makes no sense for a recording, got obstacle'),
        (['--rung', 'top'], 'are none or unknown'),
    ],
)
def test_faults_are_told_before_anything_is_run(
    tmp_path: Path, given: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(['safety-sim', '-o', str(tmp_path / 'out'), *given]) == 2
    assert words in capsys.readouterr().err


# The whole way


@pytest.mark.slow
def test_bands_are_made_used_refused_elsewhere_and_a_second_call_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.tiny import make_tiny

    tiny = str(make_tiny(tmp_path / 'tiny', sound=False))
    bands, out = tmp_path / 'bands.json', tmp_path / 'out'
    common = ['--rung', 'glance', '--own-video', 'false']
    made = ['calibrate', tiny, '--simulate', '2', '--false-alarm-rate', '0.5', *common, '-o', str(bands)]
    assert main(made) == 0
    provenance = json.loads(bands.read_text())['provenance']
    assert provenance['episodes'] == '2 successes of 2'
    call = ['safety-sim', '--checkpoint', tiny, '--calibration', str(bands), *common, '-o', str(out), '--nominal', '1']
    assert main([*call, '--episodes', '0']) == 0
    assert main([*call, '--episodes', '1', '--hazards', 'joint_swap']) == 0
    assert len((out / 'episodes.jsonl').read_text().splitlines()) == 1 + 1 + 1, 'the nominal episode is not run again'
    found = json.loads((out / 'results.json').read_text())
    assert found['episodes']['hazard'] == found['episodes']['nominal'] == 1
    assert found['sources'][GUARD]['confusion']['true_positive'] == 1
    assert (out / 'report.html').stat().st_size > 50_000
    monkeypatch.setattr(safety_sim, 'Journal', None)  # whatever follows is refused before an episode is looked for
    other = str(make_tiny(tmp_path / 'other', seed=9, sound=False))
    wrong = [
        ('recipe', ['--rung', 'small']),
        ('checkpoint', ['--checkpoint', other]),
        ('contract', ['--contract', 'droid_joint_pos']),
    ]
    for what, changes in wrong:
        assert main([*call, *changes]) == 2
        assert f'provenance.{what}: is another' in capsys.readouterr().err
