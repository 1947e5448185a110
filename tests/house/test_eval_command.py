"""`cosmos3 eval`: episodes that repeat, a run that goes on where it stopped, figures and a report that add up."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip('mujoco', reason='the simulator is not installed')

from cosmos3_ros.cli import main
from cosmos3_ros.eval_runs import EvalOptions, evaluate
from cosmos3_ros.eval_world import Cast, WorldRunner
from engine.errors import CosmosError, InvalidInput
from engine.evaluation.closed_loop import EpisodeRecord, LoopTerms
from engine.evaluation.closed_loop_runs import EPISODES_FILE, Journal, fill, read_journal
from engine.evaluation.report import compare, eval_info, first_reached
from engine.evaluation.report_films import worth_seeing
from engine.evaluation.report_html import write_report
from engine.evaluation.tasks import TASKS, Jitter, make_episode


@pytest.fixture(scope='module')
def expert() -> WorldRunner:
    return WorldRunner(Cast('expert'))


@pytest.fixture
def silent() -> Callable[[], AbstractContextManager[Callable[[str, float], None]]]:
    """Bars that nobody sees."""

    @contextmanager
    def bars() -> Iterator[Callable[[str, float], None]]:
        yield lambda what, share: None

    return bars


def record(task: str, seed: int, success: bool, **changes) -> EpisodeRecord:
    """Of an episode that nobody ran."""
    episode, steps = make_episode(task, seed), TASKS[task].milestones
    done = {name: 1.0 + number for number, name in enumerate(steps)} if success else {}
    reached = ((1.0, episode.target),) if success else ()
    when = max(done.values(), default=None)
    plain = EpisodeRecord(
        task, seed, episode.target, episode.instruction, success, when, float(success), done, reached, (), 0, 0.0,
        1.0, 0.5, 5.0, 9,
    )  # fmt: skip
    return replace(plain, **changes)


RECORDS = [record('reach', seed, seed != 3) for seed in range(5)] + [
    record('push', 0, False, wrong=((2.0, 'green_ball', 'moved'),), refusals=((3.0, 'START_JUMP'),)),
    record('push', 1, True),
]

# Episodes


@pytest.mark.parametrize('task', TASKS)
def test_the_expert_does_every_task_and_the_guard_has_nothing_to_say(expert: WorldRunner, task: str) -> None:
    found = expert.run(make_episode(task, 1))
    assert (found.success, found.progress, found.refusals, found.wrong) == (True, 1.0, (), ())
    assert 1.0 < found.success_s < found.duration_s < TASKS[task].horizon_s


def test_an_episode_is_the_same_to_the_bit_whatever_was_run_before(expert: WorldRunner) -> None:
    episode = make_episode('push', 2, Jitter(0.1))
    expert.run(make_episode('reach', 7))
    assert expert.run(episode) == WorldRunner(Cast('expert')).run(episode)


def test_who_does_nothing_succeeds_in_nothing(expert: WorldRunner) -> None:
    found = WorldRunner(Cast('hold')).run(make_episode('reach', 0))
    assert (found.success, found.progress, found.milestones, found.refusals) == (False, 0.0, {}, ())
    assert found.duration_s == pytest.approx(TASKS['reach'].horizon_s)
    assert found.path_m < 0.05


def test_latency_passes_in_simulated_time() -> None:
    prompt, late = (
        WorldRunner(Cast('expert', terms=LoopTerms(8, seconds))).run(make_episode('reach', 0)) for seconds in (0.0, 1.0)
    )
    assert (prompt.success, late.success, late.refusals) == (True, True, ())
    assert late.success_s == pytest.approx(prompt.success_s + 1.0, abs=0.2)


@pytest.mark.slow
def test_a_checkpoint_plays_behind_the_guard_and_repeats_itself(tmp_path: Path) -> None:
    from engine.tiny import make_tiny

    tiny = str(make_tiny(tmp_path / 'tiny', sound=False))
    runner = WorldRunner(Cast(tiny, terms=LoopTerms(120, 0.2)))
    first, second = (runner.run(make_episode('reach', 0)) for _ in range(2))
    assert first == second
    assert (first.chunks, first.duration_s) == (1, pytest.approx(8.0))
    assert first.path_m > 0.0


# Runs


def test_a_run_goes_on_where_it_stopped_and_half_a_line_is_run_again(tmp_path: Path) -> None:
    def call(episodes: int) -> list[str]:
        words = ['eval', 'closed-loop', '--task', 'reach', '--episodes', str(episodes), '--no-films']
        assert main([*words, '-o', str(tmp_path)]) == 0
        return (tmp_path / EPISODES_FILE).read_text().splitlines()

    first = call(2)
    assert len(first) == 1 + 2
    (tmp_path / EPISODES_FILE).write_text('\n'.join(first[:2]) + '\n' + first[2][:60])
    second = call(3)
    assert second[:2] == first[:2], 'the first was not run again'
    assert [json.loads(line)['seed'] for line in second[1:]] == [0, 1, 2]
    info = json.loads((tmp_path / 'eval_info.json').read_text())
    assert (info['overall']['n_success'], info['overall']['n_episodes']) == (3, 3)


def test_several_processes_find_what_one_does(tmp_path: Path) -> None:
    episodes = [make_episode('reach', seed) for seed in (0, 1)]
    make = partial(WorldRunner, Cast('expert'))
    alone, together = (fill(Journal(tmp_path / f'{workers}.jsonl', {}), episodes, make, workers) for workers in (1, 2))
    assert alone == together


def test_a_process_that_dies_is_told_and_costs_no_record(tmp_path: Path) -> None:
    journal = Journal(tmp_path / EPISODES_FILE, {})
    journal.add(RECORDS[0])
    with pytest.raises(CosmosError, match='ended before its time'):
        fill(journal, [make_episode('reach', seed) for seed in range(3)], partial(os._exit, 3), 2)
    assert read_journal(tmp_path / EPISODES_FILE)[1] == [RECORDS[0]]


def test_what_a_worker_cannot_begin_is_told_in_its_own_words(tmp_path: Path) -> None:
    make = partial(WorldRunner, Cast('hold', contract='nowhere'))
    with pytest.raises(CosmosError, match='nowhere'):
        fill(Journal(tmp_path / EPISODES_FILE, {}), [make_episode('reach', seed) for seed in range(2)], make, 2)


def test_the_journal_of_another_run_is_refused_with_every_difference(tmp_path: Path, silent) -> None:
    options = EvalOptions(tmp_path, Cast('hold'), ('reach',), 1, films=False)
    Journal(tmp_path / EPISODES_FILE, {'policy': 'expert', 'contract': 'demo_joint_pos'})
    with pytest.raises(InvalidInput) as raised:
        evaluate(options, silent)
    assert {'policy', 'loop', 'jitter'} <= {problem.where for problem in raised.value.problems}


def test_a_record_survives_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / EPISODES_FILE, {'policy': 'x'})
    for one in RECORDS:
        journal.add(one)
    run, found = read_journal(tmp_path / EPISODES_FILE)
    assert (run, found) == ({'policy': 'x'}, sorted(RECORDS, key=lambda one: one.key))


@pytest.mark.parametrize(
    ('words', 'told'),
    [
        (['--task', 'juggle,reach'], ["unknown, got 'juggle'"]),
        (['--episodes', '0', '--latency', '-1', '--workers', '0'], ['episodes', 'latency', 'workers']),
        (['--contract', 'robomind_dual'], ['are not those of the simulated arm']),
        (['--policy', 'nowhere'], ['nowhere']),
    ],
)
def test_faults_are_told_before_anything_is_run(tmp_path: Path, words, told, capsys) -> None:
    assert main(['eval', 'closed-loop', '-o', str(tmp_path / 'out'), *words]) == 2
    text = capsys.readouterr().err
    assert all(one in text for one in told)
    assert not (tmp_path / 'out').exists()


# Figures


def test_the_figures_have_lerobots_keys_and_counts_intervals_and_provenance_besides() -> None:
    info = eval_info(RECORDS, {'policy': 'expert', 'commit': 'abc'}, {'reach': ['films/reach_0.mp4']}, 14.0)
    reach, push = info['per_task']
    assert (reach['task_group'], reach['task_id'], reach['metrics']['successes'][3]) == ('cosmos3', 0, False)
    assert {'sum_rewards', 'max_rewards', 'successes', 'video_paths'} <= set(reach['metrics'])
    assert push['metrics']['n_wrong_object'] == push['metrics']['n_refused'] == 1
    overall = info['overall']
    assert {'avg_sum_reward', 'avg_max_reward', 'pc_success', 'n_episodes', 'eval_s', 'eval_ep_s'} <= set(overall)
    assert (overall['n_success'], overall['n_episodes'], overall['eval_ep_s']) == (5, 7, 2.0)
    assert overall['pc_success_ci95'][0] < overall['pc_success'] < overall['pc_success_ci95'][1]
    assert info['per_group']['cosmos3']['pc_success'] == overall['pc_success'] == pytest.approx(500 / 7)
    assert info['provenance']['commit'] == 'abc'
    assert json.loads(json.dumps(info)) == info


def test_the_first_object_that_was_reached_is_the_one_that_was_asked_for_or_not() -> None:
    other = 'red_cube' if RECORDS[3].target != 'red_cube' else 'blue_disc'
    some = [*RECORDS[:3], replace(RECORDS[3], reached=((1.0, other), (2.0, RECORDS[3].target))), RECORDS[5]]
    assert first_reached(some) == {'right': 3, 'wrong': 1, 'none': 1}


def test_the_first_success_and_the_first_failure_of_each_task_are_worth_seeing() -> None:
    assert [(one.task, one.seed) for one in worth_seeing(RECORDS)] == [
        ('reach', 0), ('reach', 3), ('push', 1), ('push', 0),
    ]  # fmt: skip


def test_two_runs_are_compared_task_by_task() -> None:
    better = [replace(one, success=True) for one in RECORDS]
    found = compare(RECORDS, better[:6])
    assert {name: (one.only_first, one.only_second, one.trials) for name, one in found.items()} == {
        'reach': (0, 1, 5), 'push': (0, 1, 1), 'all': (0, 2, 6),
    }  # fmt: skip


def test_the_comparison_names_what_else_differs_and_refuses_runs_without_common_episodes(
    tmp_path: Path, capsys
) -> None:
    for name, some in (('a', RECORDS[:4]), ('b', RECORDS[1:]), ('c', RECORDS[5:])):
        (tmp_path / name).mkdir()
        journal = Journal(tmp_path / name / EPISODES_FILE, {'policy': name, 'contract': 'same'})
        for one in some:
            journal.add(one)
    assert main(['eval', 'compare', str(tmp_path / 'a'), str(tmp_path / 'b')]) == 0
    told = capsys.readouterr().out
    assert 'policy: a | b' in told
    assert 'contract' not in told
    assert main(['eval', 'compare', str(tmp_path / 'a'), str(tmp_path / 'c')]) == 2
    assert main(['eval', 'compare', str(tmp_path / 'a'), str(tmp_path / 'd')]) == 2


# The report


def test_the_report_loads_nothing_and_shows_every_task_and_failure(tmp_path: Path) -> None:
    path = tmp_path / 'report.html'
    episodes = {one.key: make_episode(*one.key) for one in RECORDS}
    write_report(path, RECORDS, episodes, {'policy': 'expert', 'versions': {'numpy': '2'}, 'commit': ''})
    text = path.read_text()
    assert not re.search(r'(src|href|poster)="(?!data:)|https?://|@import|<script', text)
    assert text.count('data:image/png;base64,') == 4
    for words in ('4/5', '1/2', '5/7', 'green ball moved at 2.0 s', 'guard: START_JUMP at 3.0 s', 'versions: numpy'):
        assert words in text


def test_films_are_of_the_episodes_that_they_say_and_lie_in_the_report(tmp_path: Path, silent) -> None:
    from engine.evaluation.video import VideoReader

    outcome = evaluate(EvalOptions(tmp_path, Cast('expert'), ('reach',), 1), silent)
    (name,) = outcome.info['per_task'][0]['metrics']['video_paths']
    film = VideoReader(tmp_path / name)
    assert film.length == pytest.approx(15 * outcome.records[0].duration_s, abs=12)
    film.close()
    text = outcome.report.read_text()
    assert 'data:video/mp4;base64,' in text
    assert 'reach, seed 0: done' in text
