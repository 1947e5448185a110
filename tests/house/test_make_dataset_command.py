"""`cosmos3 make-dataset`: the same data whoever makes them, nothing twice, pushes that are marked, and what failed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip('mujoco', reason='the simulator is not installed')
pytest.importorskip('sensor_msgs', reason='ROS 2 is not installed')

from cosmos3_ros import demonstration_leads
from cosmos3_ros.cli import main
from cosmos3_ros.demonstration_disturbances import FARTHEST_RAD
from cosmos3_ros.demonstration_runs import START_SEED, DatasetOptions, make_dataset
from cosmos3_ros.demonstrations import DISTURBED, Terms
from engine.contract import load_contract
from engine.datasets.convert import ACTION
from engine.datasets.doctor import examine
from engine.errors import InvalidInput
from engine.evaluation import franka_scene as scene
from engine.evaluation.closed_loop import LoopTerms
from engine.evaluation.recordings import open_recording
from engine.evaluation.tasks_watch import HOLD_S

SMALL = (36, 64)  # pictures that cost nothing
Report = Callable[[str, float], None]


@contextmanager
def quiet() -> Iterator[Report]:
    yield lambda _what, _share: None


def options(root: Path, episodes: int = 2, tasks: tuple[str, ...] = ('reach',), **terms: object) -> DatasetOptions:
    return DatasetOptions(root, Terms(picture=SMALL, **terms), tasks, episodes)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def rows(root: Path, episode: int = 0) -> dict[str, np.ndarray]:
    table = pq.read_table(root / f'data/chunk-000/file-{episode:03d}.parquet')
    return {key: np.asarray(table[key].to_pylist()) for key in (ACTION, 'observation.state', DISTURBED)}


@pytest.fixture(scope='module')
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two reaches and two lifts, all of them disturbed."""
    root = tmp_path_factory.mktemp('demonstrations') / 'set'
    made = make_dataset(options(root, tasks=('reach', 'lift'), disturbed=1.0), quiet)
    assert (made.episodes, made.dropped) == (4, [])
    return root


def test_the_same_is_asked_and_the_same_bytes_come_whoever_runs_the_episodes(pushed: Path, tmp_path: Path) -> None:
    asked = options(tmp_path / 'set', tasks=('reach', 'lift'), disturbed=1.0)
    make_dataset(replace(asked, workers=2), quiet)
    found, wanted = contents(tmp_path / 'set'), contents(pushed)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def test_a_run_that_was_interrupted_goes_on_and_ends_as_if_it_had_not_been(pushed: Path, tmp_path: Path) -> None:
    asked = options(tmp_path / 'set', tasks=('reach', 'lift'), disturbed=1.0)

    @contextmanager
    def interrupted() -> Iterator[Report]:
        def report(_what: str, share: float) -> None:
            if share >= 0.5:
                raise KeyboardInterrupt

        yield report

    with pytest.raises(KeyboardInterrupt):
        make_dataset(asked, interrupted)
    left = contents(tmp_path / 'set')
    assert not any('partial' in name or 'under_way' in name for name in left)
    made = make_dataset(asked, quiet)
    assert (made.run, made.episodes) == (2, 4)
    assert contents(tmp_path / 'set') == contents(pushed)
    assert make_dataset(asked, quiet).run == 0


def test_more_episodes_are_added_to_those_that_are_there(pushed: Path, tmp_path: Path) -> None:
    make_dataset(options(tmp_path / 'set', 1, ('reach', 'lift'), disturbed=1.0), quiet)
    assert make_dataset(options(tmp_path / 'set', 2, ('reach', 'lift'), disturbed=1.0), quiet).run == 2
    assert contents(tmp_path / 'set') == contents(pushed)


def test_a_data_set_of_other_demonstrations_is_refused(pushed: Path) -> None:
    with pytest.raises(InvalidInput, match=r'linger_s.*0\.6.*0\.1'):
        make_dataset(options(pushed, tasks=('reach', 'lift'), disturbed=1.0, linger_s=0.1), quiet)


def test_seeds_are_far_from_those_that_evaluations_count_from_and_are_told(pushed: Path) -> None:
    assert START_SEED >= 100_000
    origin = json.loads((pushed / 'meta/cosmos3.json').read_text(encoding='utf-8'))
    assert origin['made_by'] == 'cosmos3 make-dataset'
    assert (origin['start_seed'], origin['tasks'], origin['disturbed']) == (START_SEED, ['reach', 'lift'], 1.0)
    assert origin['versions']['mujoco']
    kept = pq.read_table(pushed / 'meta/episodes/chunk-000/file-003.parquet').to_pylist()[0]
    assert (kept['suite_task'], kept['seed'], kept['success']) == ('lift', START_SEED + 1, True)


def test_doctor_and_evaluation_read_it_and_find_nothing_wrong(pushed: Path) -> None:
    found = examine(pushed, load_contract('micro_joint_pos'))
    assert found.healthy
    assert found.faults == ()
    recording = open_recording(pushed, episode=1)
    assert len(recording) == len(rows(pushed, 1)[ACTION])


def test_until_it_is_pushed_an_episode_is_what_it_would_have_been_and_then_it_is_led_away(
    pushed: Path, tmp_path: Path
) -> None:
    make_dataset(options(tmp_path / 'set', 1), quiet)
    plain, found = rows(tmp_path / 'set'), rows(pushed)
    first = int(np.flatnonzero(found[DISTURBED])[0])
    assert not plain[DISTURBED].any()
    np.testing.assert_array_equal(found[ACTION][:first], plain[ACTION][:first])
    last = first + int(np.flatnonzero(found[DISTURBED][first:] == 0)[0]) - 1
    apart = np.abs(found[ACTION][last] - plain[ACTION][first - 1])[:7]
    assert apart.max() > 0.02, 'somewhere else than it was'
    assert 3 <= last - first + 1 <= 10, 'for a quarter or half a second'


def test_a_pushed_arm_stays_within_its_limits_and_the_guard_refuses_nothing(pushed: Path) -> None:
    lines = (pushed / 'meta/cosmos3_episodes.jsonl').read_text(encoding='utf-8').splitlines()[1:]
    assert all(json.loads(line)['refusals'] == [] for line in lines)
    limits = np.array([[joint.lower, joint.upper] for joint in scene.ARM])
    for episode in range(4):
        joints = rows(pushed, episode)[ACTION][:, :7]
        assert (joints > limits[:, 0]).all()
        assert (joints < limits[:, 1]).all()
        assert np.abs(np.diff(joints, axis=0)).max() < FARTHEST_RAD


def test_a_hand_that_is_pushed_with_the_object_in_it_does_not_let_go(pushed: Path, tmp_path: Path) -> None:
    held = []
    make_dataset(options(tmp_path / 'set', 8, ('lift',), disturbed=1.0), quiet)
    for episode in range(8):
        found = rows(tmp_path / 'set', episode)
        closed = np.flatnonzero(found[ACTION][:, 7] > 0.9)
        held.append(found[DISTURBED][closed[0] :].any())
        assert (found[ACTION][closed[0] :, 7] > 0.9).all()
    assert any(held), 'some were pushed while they held something'


def test_an_episode_shows_for_a_moment_how_the_arm_rests_at_the_goal(tmp_path: Path) -> None:
    made = make_dataset(options(tmp_path / 'set', 1, linger_s=0.4), quiet)
    record = made.records[0]
    assert record.duration_s == pytest.approx((record.success_s or 0.0) + HOLD_S + 0.4, abs=0.011)
    actions = rows(tmp_path / 'set')[ACTION]
    assert np.abs(np.diff(actions[-5:], axis=0)).max() < 2e-3


def test_what_did_not_succeed_is_dropped_and_told_and_not_run_again(tmp_path: Path) -> None:
    late = LoopTerms(4, 9.0)  # no chunk arrives before a reach is over
    asked = options(tmp_path / 'set', 1, loop=late)
    made = make_dataset(asked, quiet)
    assert (made.episodes, made.run, made.dropped) == (0, 1, [('reach', START_SEED)])
    assert not list((tmp_path / 'set').glob('**/*.mp4'))
    assert make_dataset(asked, quiet).run == 0
    kept = make_dataset(replace(asked, output=tmp_path / 'all', only_successes=False), quiet)
    assert (kept.episodes, kept.dropped) == (1, [])


def test_the_command_counts_and_names_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ['make-dataset', '-o', str(tmp_path / 'set'), '--task', 'reach', '--episodes', '1', '--picture', '36x64']
    assert main(asked) == 0
    told = capsys.readouterr().out
    assert re.search(r'reach │ +1 │ +1 │ +0 │', told)
    assert '1 episodes run by this call' in told
    assert main([*asked[:-1], '40x64']) == 2, 'pictures of another size are another data set'
    assert main([*asked, '--workers', '0', '--perturb', '2', '--linger', '-1']) == 2
    told = capsys.readouterr().err
    assert all(name in told for name in ('workers', 'perturb', 'linger'))


def test_the_hand_makes_good_what_somebody_else_began_and_only_that_is_unmarked(tmp_path: Path) -> None:
    asked = options(tmp_path / 'led', 3, led=1.0, led_by='random')
    made = make_dataset(asked, quiet)
    assert made.episodes + len(made.dropped) == 3
    assert made.episodes
    for episode in range(made.episodes):
        found = rows(tmp_path / 'led', episode)
        marked = found[DISTURBED].ravel() > 0
        led = int(marked.sum())
        assert marked[:led].all(), 'one span, from the beginning on'
        assert 4 <= led < len(marked) - 10
        speed = np.abs(np.diff(found[ACTION][:, :7], axis=0)).max(axis=1)
        assert speed[: led - 8].max() > 0.005, 'it was led somewhere'
        assert speed[led - 3 : led].min() < 0.3 * speed[: led - 8].max(), 'the hand goes on from rest'
    make_dataset(replace(asked, output=tmp_path / 'again', workers=2), quiet)
    assert contents(tmp_path / 'again') == contents(tmp_path / 'led')
    with pytest.raises(InvalidInput, match='led: is another'):
        make_dataset(replace(asked, terms=replace(asked.terms, led=0.5)), quiet)


def test_the_hand_turns_back_from_another_object(tmp_path: Path) -> None:
    asked = options(tmp_path / 'led', 4, led=1.0, led_by='another')
    made = make_dataset(asked, quiet)
    assert made.episodes >= 2
    assert any(record.wrong for record in made.records), 'it was led to another object'
    assert all(record.reached[-1][1] == record.target for record in made.records if record.success)


def test_a_share_without_a_leader_is_refused(tmp_path: Path) -> None:
    for terms in ({'led': 0.5}, {'led_by': 'random'}, {'led': 1.5, 'led_by': 'random'}):
        with pytest.raises(InvalidInput, match='led'):
            make_dataset(options(tmp_path / 'none', **terms), quiet)


def test_an_episode_in_which_the_hand_never_took_over_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demonstration_leads, '_SHORTEST_S', 60.0)
    monkeypatch.setattr(demonstration_leads, 'LONGEST_SHARE', 60.0)
    made = make_dataset(options(tmp_path / 'led', 1, led=1.0, led_by='hold'), quiet)
    assert (made.episodes, len(made.dropped)) == (0, 1)


def test_a_leader_needs_chunks_that_last_until_its_motion_has_died_away(tmp_path: Path) -> None:
    slow = options(tmp_path / 'none', led=1.0, led_by='hold', loop=LoopTerms(8, 0.5))
    with pytest.raises(InvalidInput, match='needs longer chunks'):
        make_dataset(slow, quiet)
    assert not (tmp_path / 'none').exists()
