"""Episodes through guard and policy in processes of their own come to what they come to in one process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip('mujoco', reason='MuJoCo is not installed')

from cosmos3_ros.cli import main
from cosmos3_ros.eval_graph import GraphRunner
from cosmos3_ros.eval_runs import IN_GRAPH
from cosmos3_ros.eval_world import Cast, WorldRunner
from engine.errors import CosmosError
from engine.evaluation.closed_loop import LoopTerms
from engine.evaluation.closed_loop_runs import EPISODES_FILE, read_journal
from engine.evaluation.tasks import make_episode
from tests.ros.system_bench import can_draw

WHY_NOT = can_draw()


@pytest.fixture
def expert(tmp_path: Path) -> Iterator[GraphRunner]:
    runner = GraphRunner(Cast('expert', graph=True), logs=tmp_path / 'logs')
    yield runner
    runner.close()


@pytest.mark.slow
@pytest.mark.parametrize('task', ['reach', 'lift'])
def test_through_the_graph_the_expert_does_what_it_does_in_one_process_to_the_control_period(
    tmp_path: Path, task
) -> None:
    words = ['eval', 'closed-loop', '--graph', '--task', task, '--episodes', '2', '--no-films', '-o', str(tmp_path)]
    assert main(words) == 0
    run, records = read_journal(tmp_path / EPISODES_FILE)
    assert run['robot'] == IN_GRAPH
    runner = WorldRunner(Cast('expert'))
    for record in records:
        expected = runner.run(make_episode(task, record.seed))
        assert record.success
        assert (record.chunks, record.refusals, record.wrong) == (expected.chunks, (), ())
        # Times in messages are rounded to nanoseconds: that makes micrometres, and at times a control period.
        assert record.success_s == pytest.approx(expected.success_s, abs=0.011)
        assert record.milestones == pytest.approx(expected.milestones, abs=0.011)
        assert record.path_m == pytest.approx(expected.path_m, abs=1e-3)
        assert record.top_speed == pytest.approx(expected.top_speed, abs=1e-3)


@pytest.mark.slow
def test_a_guard_that_dies_is_told_with_the_end_of_its_log(graph, expert: GraphRunner) -> None:
    expert.runner.send_signal('guard', signal.SIGKILL)
    graph.eventually(lambda: expert.runner.poll()['guard'] is not None)
    with pytest.raises(CosmosError, match=r'guard ended.*its log(.|\n)*waiting for the first chunk'):
        expert.run(make_episode('reach', 0))


@pytest.mark.slow
def test_an_episode_in_which_the_guard_dies_is_no_record_of_the_policy(expert: GraphRunner) -> None:
    ticks: list[float] = []

    def kill(world) -> None:
        ticks.append(world.now_s)
        if len(ticks) == 60:
            expert.runner.send_signal('guard', signal.SIGKILL)

    with pytest.raises(CosmosError, match='guard ended with exit code -9'):
        expert.run(make_episode('reach', 0), kill)
    assert len(ticks) < 120, 'and it is told at once'


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[GraphRunner]:
    runner = GraphRunner(Cast(str(tiny_checkpoint), terms=LoopTerms(60, 0.2), graph=True), logs=tmp_path / 'logs')
    yield runner
    runner.close()


@pytest.mark.slow
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or 'pictures can be drawn')
def test_a_checkpoint_plays_through_the_graph(checkpoint: GraphRunner) -> None:
    record = checkpoint.run(make_episode('reach', 0))
    assert record.chunks == 2
    assert record.duration_s == pytest.approx(8.0)
    assert record.path_m > 0.0
    assert {reason for _, reason in record.refusals} <= {'STARVED'}


@pytest.mark.slow
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or 'pictures can be drawn')
def test_a_picture_that_is_lost_while_time_stands_still_comes_again(
    checkpoint: GraphRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, tried = checkpoint.world, set()
    show = world._show

    def lose_the_first_try() -> None:
        stamp = world._pictures[0][1].header.stamp
        moment = stamp.sec, stamp.nanosec
        if moment in tried:
            show()
        tried.add(moment)

    monkeypatch.setattr(world, '_show', lose_the_first_try)
    record = checkpoint.run(make_episode('reach', 0))
    assert record.chunks == 2
    assert record.duration_s == pytest.approx(8.0)
