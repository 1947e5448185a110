"""The plugins in LeRobot: its programs run them, and what they do is what the engine and the closed loop do.

All in one file, because loading LeRobot takes longer than most of what is tested.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from importlib import import_module
from importlib.metadata import entry_points
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import engine
from cosmos3_ros.eval_world import Cast, SimulatedWorld, WorldRunner
from cosmos3_ros.guard.limits import load_limits
from engine.errors import CosmosError, InvalidInput, ObservationError
from engine.evaluation.expert import Expert
from engine.evaluation.simulated_franka import SimulatedFranka
from engine.evaluation.tasks import TASKS, make_episode

pytestmark = pytest.mark.usefixtures('installed')

CONTRACT = 'demo_joint_pos'
VIEWS = ('wrist', 'exterior_1', 'exterior_2')
REST = (0.1, -0.6, 0.05, -2.4, 0.0, 1.9, 0.1, 0.25)
ROWS = 32
SLACK_ROWS = 3
"""Rows that may pass between a look at our clock and LeRobot's at its own: 0.2 s."""
SMALL = ('--env.observation_height=36', '--env.observation_width=64')


def run(program: str, *words: str) -> None:
    """Run one of LeRobot's programs, as its console script does."""
    (script,) = entry_points(group='console_scripts', name=program)
    before = sys.argv
    try:
        sys.argv = [program, *words]
        script.load()()
    finally:
        sys.argv = before


@pytest.fixture(scope='module')
def plugin() -> SimpleNamespace:
    """The plugins' own names, loaded once they are installed."""
    homes = {
        'lerobot_env_cosmos3.configuration': ('Cosmos3EnvConfig',),
        'lerobot_env_cosmos3.environment': ('Cosmos3Env',),
        'lerobot_policy_cosmos3.__main__': ('main',),
        'lerobot_policy_cosmos3.columns': ('Columns', 'column_names'),
        'lerobot_policy_cosmos3.configuration_cosmos3': ('Cosmos3Config',),
        'lerobot_policy_cosmos3.modeling_cosmos3': ('Cosmos3Policy',),
    }
    return SimpleNamespace(
        **{name: getattr(import_module(home), name) for home, names in homes.items() for name in names}
    )


@pytest.fixture(scope='module')
def folder(plugin: SimpleNamespace, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `--policy.path` takes, as the command writes it."""
    folder = tmp_path_factory.mktemp('policy')
    words = [f'--checkpoint={tiny}', f'--contract={CONTRACT}', '--preset=fast', '--device=cpu', '--warm_up=false']
    assert plugin.main([str(folder), *words]) == 0
    return folder


@pytest.fixture(scope='module')
def make(plugin: SimpleNamespace, folder: Path) -> Callable[..., Any]:
    """Make the policy of the folder; options can be changed."""
    return lambda **changed: plugin.Cosmos3Policy.from_pretrained(folder, **changed)


@pytest.fixture(scope='module')
def policy(make: Callable[..., Any]) -> Any:
    return make()


@pytest.fixture(scope='module')
def reference(policy: Any) -> Any:
    """The engine's policy below, for the same weights."""
    return policy._policy


def pictures(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {view: generator.integers(0, 256, (36, 64, 3), np.uint8) for view in VIEWS}


def batch(count: int = 1, task: str = 'reach for the red cube', state: Any = REST) -> dict[str, Any]:
    """A batch as LeRobot's preprocessor leaves it; its elements differ in their pictures."""
    import torch

    seen = [pictures(seed) for seed in range(count)]
    views = {
        f'observation.images.{view}': torch.stack(
            [torch.from_numpy(one[view]).permute(2, 0, 1).to(torch.float32) / 255 for one in seen]
        )
        for view in VIEWS
    }
    return {'observation.state': torch.tensor([state] * count), 'task': [task] * count, **views}


def observation(seed: int = 0) -> engine.Observation:
    """The same, as the engine takes it."""
    joints = np.array(REST, np.float32).astype(np.float64)
    return engine.Observation(pictures(seed), 'reach for the red cube', joints[:7], joints[7])


def noise(episode: int, chunk: int) -> int:
    return int(np.random.SeedSequence([episode, chunk]).generate_state(1)[0]) % 2**31


# Programs


@pytest.mark.slow
@pytest.mark.usefixtures('undisturbed')
def test_lerobot_eval_runs_the_policy_on_the_tasks_and_films_what_was_seen_and_imagined(
    folder: Path, tmp_path: Path
) -> None:
    from engine.evaluation.video import read_video

    out = tmp_path / 'out'
    run(
        'lerobot-eval',
        f'--policy.path={folder}',
        '--policy.save_predicted_video=true',
        '--env.type=cosmos3',
        '--env.task=reach,push',
        '--env.episode_length=9',
        *SMALL,
        '--eval.n_episodes=1',
        '--eval.batch_size=1',
        f'--output_dir={out}',
        '--seed=0',
    )
    found = json.loads((out / 'eval_info.json').read_text())
    assert list(found['per_group']) == ['reach', 'push']
    assert (found['overall']['n_episodes'], found['overall']['pc_success']) == (2, 0.0)
    assert len(found['overall']['video_paths']) == len(found['overall']['predicted_video_paths']) == 2
    films = [[*read_video(found['overall'][f'{kind}video_paths'][0])] for kind in ('', 'predicted_')]
    seen, imagined = map(np.stack, films)
    assert seen.shape[1:] == imagined.shape[1:] == (256, 304, 3)
    # The second chunk was made for the ninth row; of each chunk as much is shown as its rows may play.
    assert len(imagined) == 1 + 2 * 8


@pytest.mark.slow
@pytest.mark.usefixtures('undisturbed')
def test_lerobot_rollout_plays_rows_on_a_robot(folder: Path, tmp_path: Path, policy: Any) -> None:
    run('lerobot-rollout', *rollout(folder, tmp_path, rows=10))
    played = np.load(tmp_path / 'played.npy')
    assert played.shape == (10, 8)
    assert np.abs(np.diff(played[:8, :7], axis=0)).max() < 0.5


@pytest.mark.slow
@pytest.mark.usefixtures('undisturbed')
def test_with_real_time_chunking_every_chunk_continues_the_one_before(
    folder: Path, tmp_path: Path, plugin: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = watch_chunks(plugin, monkeypatch)
    words = ('--inference.type=rtc', f'--inference.rtc.execution_horizon={ROWS}')
    run('lerobot-rollout', *rollout(folder, tmp_path, rows=40), *words)
    played = np.load(tmp_path / 'played.npy')
    assert played.shape == (40, 8)
    first = made[0][2][0]
    waited = len(first) - ROWS  # the first row once more, for each that passed while the arm stood still
    assert waited > 0
    # Nothing is skipped before the arm has moved, but for what a busy machine adds to LeRobot's clock.
    assert (first[waited : waited + 1 + SLACK_ROWS] == played[0]).all(axis=1).any()
    continued = [(min(delay, 28), left, chunk) for delay, left, chunk in made if delay and left is not None]
    assert continued
    for count, left, chunk in continued:
        rows = left[:count][left[:count].any(axis=1)]  # LeRobot fills up with zeros
        np.testing.assert_allclose(chunk[0, : len(rows)], rows, atol=1e-6)


def rollout(folder: Path, tmp_path: Path, rows: int) -> list[str]:
    return [
        f'--policy.path={folder}',
        '--robot.type=simulated',
        f'--robot.rows={rows}',
        f'--robot.log={tmp_path / "played.npy"}',
        f'--robot.calibration_dir={tmp_path}',
        '--task=reach for the red cube',
        '--fps=15',
        '--duration=200',
        '--return_to_initial_position=false',
    ]


def watch_chunks(plugin: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Any, np.ndarray]]:
    """What is asked for when chunks are made, and what comes."""
    made: list[tuple[int, Any, np.ndarray]] = []
    inner = plugin.Cosmos3Policy.predict_action_chunk

    @wraps(inner)
    def watched(self: Any, batch: Any, inference_delay: int = 0, prev_chunk_left_over: Any = None) -> Any:
        chunk = inner(self, batch, inference_delay, prev_chunk_left_over)
        left = None if prev_chunk_left_over is None else prev_chunk_left_over.numpy().copy()
        made.append((inference_delay, left, chunk.numpy().copy()))
        return chunk

    monkeypatch.setattr(plugin.Cosmos3Policy, 'predict_action_chunk', watched)
    return made


@pytest.mark.usefixtures('undisturbed')
def test_rows_are_not_played_at_another_rate_than_the_contracts(folder: Path, tmp_path: Path) -> None:
    words = [word for word in rollout(folder, tmp_path, rows=1) if not word.startswith('--fps')]
    with pytest.raises(InvalidInput, match=r'--fps: is not the rate of the contract.*got 30, allowed: 15'):
        run('lerobot-rollout', *words)
    assert not (tmp_path / 'played.npy').exists()


@pytest.mark.usefixtures('undisturbed')
def test_a_mode_in_which_chunks_do_not_continue_each_other_is_refused_before_the_robot_is_connected(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=r'inference\.rtc\.enabled: plays a chunk behind the rows that are left'):
        run(
            'lerobot-rollout',
            *rollout(folder, tmp_path, rows=1),
            '--inference.type=rtc',
            '--inference.rtc.enabled=false',
        )
    assert not (tmp_path / 'played.npy').exists()


# Policy


def test_rows_are_those_of_the_engine_and_a_new_chunk_is_made_when_eight_were_played(
    make: Callable[..., Any], reference: Any
) -> None:
    policy = make(seed=5)
    rows = np.stack([policy.select_action(batch()).numpy()[0] for _ in range(10)])
    first, second = (reference.infer(observation(), noise(5, chunk)).actions for chunk in range(2))
    wanted = np.vstack([first[:8], second[:2]])
    wanted[:, 7] = np.clip(wanted[:, 7], 0, 1)
    np.testing.assert_array_equal(rows, wanted)


def test_what_comes_of_an_element_does_not_depend_on_the_batch_and_each_episode_has_its_noise(
    make: Callable[..., Any], reference: Any
) -> None:
    policy = make(seed=5)
    two = policy.predict_action_chunk(batch(2)).numpy()
    policy.reset()
    policy.reset()  # nothing was done in between: still the third episode
    third = policy.predict_action_chunk(batch()).numpy()
    for found, seen, episode in ((two[0], 0, 5), (two[1], 1, 6), (third[0], 0, 7)):
        wanted = reference.infer(observation(seen), noise(episode, 0)).actions
        np.testing.assert_array_equal(found[:, :7], wanted[:, :7])


def test_a_chunk_begins_with_the_rows_that_will_be_played_while_it_is_made(policy: Any) -> None:
    import torch

    policy.reset()
    left = policy.predict_action_chunk(batch())[0, 4:]
    padded = torch.cat([left[:5], torch.zeros(5, 8)])
    free = policy.predict_action_chunk(batch(), inference_delay=0, prev_chunk_left_over=left)[0]
    assert not np.allclose(free[:3], left[:3], atol=1e-4)
    for delay, given, kept in ((3, left, 3), (8, padded, 5), (ROWS, left, 28)):
        chunk = policy.predict_action_chunk(batch(), inference_delay=delay, prev_chunk_left_over=given)[0]
        np.testing.assert_allclose(chunk[:kept], left[:kept], atol=1e-6)
        assert not np.allclose(chunk[kept], given[kept] if kept < len(given) else 0, atol=1e-4)


@pytest.mark.parametrize('left', [0, 2])
def test_an_arm_that_had_to_wait_for_a_chunk_goes_on_where_it_is(
    left: int, make: Callable[..., Any], reference: Any
) -> None:
    import torch
    from lerobot.policies.rtc import ActionQueue
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    policy, given, padded = make(), None, None
    policy.config.rtc_config = RTCConfig()
    policy.init_rtc_processor()
    if left:
        given = torch.tensor([REST] * left) + 0.01
        padded = torch.cat([given, torch.zeros(10 - left, 8)])
    queue, began = ActionQueue(policy.config.rtc_config), time.perf_counter()
    # As LeRobot's engine does it.
    chunk = policy.predict_action_chunk(batch(), inference_delay=left, prev_chunk_left_over=padded)[0]
    passed = math.ceil((time.perf_counter() - began) * 15)
    queue.merge(chunk, chunk, passed, None)
    committed = None if given is None else given.numpy().astype(np.float64)
    wanted = reference.infer(observation(), noise(0, 0), committed=committed).actions
    following = [queue.get().numpy() for _ in range(4)]
    first = min(passed, left)  # whoever is quick enough need not wait
    np.testing.assert_allclose(following[0], wanted[first], atol=1e-6)
    assert any(np.allclose(row, wanted[first + 1], atol=1e-6) for row in following[1:])


def test_a_robot_with_another_order_and_other_units_gets_the_same_rows(
    make: Callable[..., Any], policy: Any, plugin: SimpleNamespace
) -> None:
    names = plugin.column_names(engine.load_contract(CONTRACT))
    assert names[0] == 'panda_joint1.pos'
    assert names[-1] == 'panda_finger_joint1.pos'
    order = [7, 2, 0, 1, 3, 4, 5, 6]
    other = make(columns=[names[place] for place in order], degrees=True, gripper_open=100.0, gripper_closed=0.0)
    theirs = np.append(np.degrees(REST[:7]), 100 * (1 - REST[7]))
    policy.reset()
    policy._begun = 0
    ours = policy.predict_action_chunk(batch()).numpy()[0]
    found = other.predict_action_chunk(batch(state=tuple(theirs[order]))).numpy()[0]
    wanted = np.column_stack([np.degrees(ours[:, :7]), 100 * (1 - ours[:, 7])])[:, order]
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_joints_in_degrees_or_in_another_order_are_noticed_before_anything_moves(policy: Any) -> None:
    degrees = (*np.degrees(REST[:7]), REST[7])
    for state, told in ((degrees, 'panda_joint2.pos'), ((*REST[7:], *REST[:7]), 'panda_joint4.pos')):
        policy.reset()
        with pytest.raises(ObservationError, match=rf'observation.state {told}: is beyond its range'):
            policy.select_action(batch(state=state))
    policy.reset()


def test_everything_that_is_wrong_with_an_observation_is_told_at_once(policy: Any) -> None:
    wrong = batch(task=' ') | {'observation.images.wrist': batch()['observation.images.wrist'] * 255}
    del wrong['observation.images.exterior_2']
    policy.reset()
    with pytest.raises(ObservationError) as raised:
        policy.select_action(wrong)
    told = {problem.where: problem.what for problem in raised.value.problems}
    assert told == {
        'observation.images.wrist': 'is out of range',
        'observation.images.exterior_2': 'is missing',
        'task': 'is empty',
    }
    policy.reset()
    with pytest.raises(ObservationError, match=r'observation.state: has not the columns, got \[1, 3\]'):
        policy.select_action(batch(state=REST[:3]))


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        ({'contract': ''}, {'contract', 'checkpoint'}),
        ({'contract': CONTRACT, 'backend': 'remote', 'save_predicted_video': True}, {'url', 'save_predicted_video'}),
        ({'contract': CONTRACT, 'backend': 'here', 'n_action_steps': 33}, {'backend', 'n_action_steps'}),
        ({'contract': CONTRACT, 'checkpoint': 'x', 'columns': ['panda_joint1.pos'] * 2}, {'columns'}),
        ({'contract': CONTRACT, 'checkpoint': 'x', 'use_amp': True, 'seed': -1}, {'use_amp', 'seed'}),
        ({'contract': 'droid_ee_delta', 'checkpoint': 'x', 'degrees': True}, {'degrees'}),
    ],
)
def test_options_that_do_not_fit_are_told_at_once(
    options: dict[str, Any], told: set[str], plugin: SimpleNamespace
) -> None:
    with pytest.raises(InvalidInput) as raised:
        plugin.Cosmos3Policy(plugin.Cosmos3Config(device='cpu', **options))
    assert {problem.where for problem in raised.value.problems} == told


def test_features_of_another_robot_are_refused_by_name(plugin: SimpleNamespace, tiny: Path) -> None:
    from lerobot.configs import FeatureType, PolicyFeature

    config = plugin.Cosmos3Config(
        contract=CONTRACT,
        checkpoint=str(tiny),
        device='cpu',
        input_features={'observation.images.wrist': PolicyFeature(FeatureType.VISUAL, (3, 10, 10))},
        output_features={'action': PolicyFeature(FeatureType.ACTION, (7,))},
    )
    with pytest.raises(InvalidInput) as raised:
        config.validate_features()
    missing = {'observation.state', 'observation.images.exterior_1', 'observation.images.exterior_2'}
    assert {problem.where for problem in raised.value.problems} == {*missing, 'action'}
    assert 'got [7], allowed: [8]: panda_joint1.pos' in str(raised.value)


def test_a_checkpoint_becomes_a_policy_without_a_folder_and_a_saved_policy_is_one_again(
    plugin: SimpleNamespace, tiny: Path, tmp_path: Path
) -> None:
    made = plugin.Cosmos3Policy.from_pretrained(tiny, contract=CONTRACT, preset='fast', device='cpu', warm_up=False)
    made.save_pretrained(tmp_path / 'saved')
    again = plugin.Cosmos3Policy.from_pretrained(tmp_path / 'saved')
    assert sorted(path.name for path in (tmp_path / 'saved').iterdir()) == [
        'config.json',
        'policy_postprocessor.json',
        'policy_preprocessor.json',
    ]
    one, other = (policy.predict_action_chunk(batch()) for policy in (made, again))
    np.testing.assert_array_equal(one, other)


def test_the_command_holds_checkpoint_and_contract_to_each_other_and_leaves_other_folders_alone(
    plugin: SimpleNamespace, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f'--checkpoint={tiny}', '--device=cpu']
    assert plugin.main([str(tmp_path / 'one'), *words, '--contract=droid_joint_pos']) == 0
    assert 'lerobot-rollout' in capsys.readouterr().out
    assert plugin.main([str(tiny), *words, f'--contract={CONTRACT}']) == 1
    assert 'holds the config.json of something else' in capsys.readouterr().err
    assert plugin.main([str(tmp_path / 'two'), f'--contract={CONTRACT}', '--checkpoint=nowhere', '--device=cpu']) == 1
    assert not (tmp_path / 'two').exists()
    assert plugin.main([]) == 2


def test_lerobot_cannot_train_it_and_is_told_so(policy: Any) -> None:
    for ask in (policy.get_optim_params, policy.config.get_optimizer_preset, lambda: policy({})):
        with pytest.raises(CosmosError, match='does not train them'):
            ask()


@pytest.mark.slow
def test_a_server_gives_the_rows_that_local_weights_give_and_takes_no_part_in_real_time_chunking(
    plugin: SimpleNamespace, reference: Any
) -> None:
    from engine.serving.options import ServerOptions
    from engine.serving.server import BackgroundServer, PolicyServer

    with BackgroundServer(PolicyServer(reference, reference.contract, ServerOptions(port=0))) as server:
        config = plugin.Cosmos3Config(
            contract=CONTRACT, preset='fast', backend='remote', url=server.url, deadline_s=60.0, device='cpu', seed=3
        )
        remote = plugin.Cosmos3Policy(config)
        found = remote.select_action(batch()).numpy()[0]
        remote.reset()
        remote.select_action(batch())
    np.testing.assert_allclose(found, reference.infer(observation(), noise(3, 0)).actions[0], atol=1e-6)
    assert not remote.supports_rtc()
    assert remote._policy.generation == 2  # a reset makes the server forget this robot


def test_poses_of_several_arms_become_an_observation(plugin: SimpleNamespace) -> None:
    contract = engine.load_contract('demo_dual')
    columns = plugin.Columns.of(contract)
    assert columns.names[:2] == ('left_x.pos', 'left_y.pos')
    assert len(columns.names) == 16
    fields = columns.fields(columns.from_robot(np.arange(16.0)[None]))
    assert fields['end_effector_position'].tolist() == [[0, 1, 2], [7, 8, 9]]
    assert fields['end_effector_quaternion'][1].tolist() == [10, 11, 12, 13]
    assert fields['gripper_position'].tolist() == [14, 15]


# Environments


def test_an_episode_begins_as_in_the_closed_loop_to_the_bit(plugin: SimpleNamespace) -> None:
    env = plugin.Cosmos3Env('push', size=(36, 64))
    found, info = env.reset(seed=7)
    contract = engine.load_contract(CONTRACT)
    robot = SimulatedFranka(image_size=(36, 64), render_views=VIEWS, zone=True)
    world, episode = SimulatedWorld(robot, load_limits('panda'), contract), make_episode('push', 7)
    world.begin(episode)
    seen = world.seen(with_pictures=True)
    assert (env.task_description, info['is_success']) == (episode.instruction, False)
    np.testing.assert_array_equal(found['agent_pos'], np.append(seen.joints, seen.gripper).astype(np.float32))
    for view in VIEWS:
        np.testing.assert_array_equal(found['pixels'][view], seen.views[view])
    env.close()
    robot.close()


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_the_expert_succeeds_row_by_row_where_it_succeeds_in_the_closed_loop(
    task: str, plugin: SimpleNamespace
) -> None:
    env = plugin.Cosmos3Env(task, size=(36, 64))
    reward, info, steps = play_expert(env, seed=1)
    there = WorldRunner(Cast('expert')).run(make_episode(task, 1))
    assert (info['is_success'], there.success) == (True, True)
    assert (list(env.findings.milestones), env.findings.wrong) == (list(there.milestones), there.wrong)
    assert reward == pytest.approx(1.0)
    assert steps < env._max_episode_steps == round(TASKS[task].horizon_s * 15)
    env.close()


def play_expert(env: Any, seed: int) -> tuple[float, dict[str, Any], int]:
    """Play an episode: the sum of the rewards, what is said at the end, and the number of rows."""
    limits = load_limits('panda')
    expert = Expert(1 / 15, ROWS, limits.velocity, limits.acceleration, 0.0)
    env.reset(seed=seed)
    expert.begin(env.episode)
    total, steps = 0.0, 0
    while True:
        rows = expert.act(env.world.seen(with_pictures=False))
        for joints, gripper in list(zip(rows.positions, rows.grippers, strict=True))[:8]:
            _, reward, terminated, truncated, info = env.step(np.append(joints, gripper))
            total, steps = total + reward, steps + 1
            if terminated or truncated:
                return total, info, steps


def test_an_episode_is_over_when_its_time_is_and_who_waits_for_others_is_not_simulated(
    plugin: SimpleNamespace,
) -> None:
    config = plugin.Cosmos3EnvConfig(task='reach', episode_length=3, observation_height=36, observation_width=64)
    envs = config.create_envs(2)['reach'][0]
    envs.reset(seed=[0, 1], options={'lerobot_new_rollout': True})
    hold = np.stack([env.unwrapped.world.seen(False).joints for env in envs.envs])
    hold = np.column_stack([hold, np.zeros(2)])
    over = [envs.step(hold)[3].tolist() for _ in range(3)]
    assert over == [[False, False], [False, False], [True, True]]
    times = [env.unwrapped.world.now_ns for env in envs.envs]
    envs.step(hold)
    assert [env.unwrapped.world.now_ns for env in envs.envs] == times
    assert envs.call('_max_episode_steps') == (3, 3)
    envs.close()


@pytest.mark.slow
def test_environments_in_processes_of_their_own_show_the_same(plugin: SimpleNamespace, site: Path, monkeypatch) -> None:
    monkeypatch.setenv('PYTHONPATH', str(site))
    # So that LeRobot is loaded once for both; a program of LeRobot's own has it loaded there already.
    multiprocessing.set_forkserver_preload(['lerobot_env_cosmos3.environment'])
    config = plugin.Cosmos3EnvConfig(task='reach', observation_height=36, observation_width=64)
    alone, beside = (config.create_envs(2, use_async_envs=apart)['reach'][0] for apart in (False, True))
    found = [envs.reset(seed=[3, 4])[0] for envs in (alone, beside)]
    assert alone.call('task_description') == beside.call('task_description')
    for view in VIEWS:
        np.testing.assert_array_equal(found[0]['pixels'][view], found[1]['pixels'][view])
    alone.close()
    beside.close()


def test_environments_pass_gymnasiums_own_checks(plugin: SimpleNamespace) -> None:
    from gymnasium.utils.env_checker import check_env

    env = plugin.Cosmos3Env('lift', size=(36, 64))
    check_env(env, skip_render_check=True, skip_close_check=True)
    assert env.render().shape == (256, 304, 3)
    with pytest.raises(InvalidInput, match='action: is not one finite number for each column'):
        env.step(np.full(8, np.nan))
    env.close()


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        ({'task': 'dance,reach', 'fps': 30}, {'task', 'fps'}),
        ({'task': '', 'episode_length': 0}, {'task', 'episode_length'}),
        ({'max_parallel_tasks': 2, 'camera_jitter': -1.0}, {'max_parallel_tasks', 'camera_jitter'}),
        ({'contract': 'demo_dual'}, {'robot.joints', 'views.streams', 'embodiment.action_space'}),
    ],
)
def test_environments_that_cannot_be_are_refused_with_every_reason(
    options: dict[str, Any], told: set[str], plugin: SimpleNamespace
) -> None:
    with pytest.raises(InvalidInput) as raised:
        plugin.Cosmos3EnvConfig(**options)
    assert {problem.where for problem in raised.value.problems} == told


# Document


@pytest.mark.parametrize(
    ('section', 'name', 'inherited'),
    [
        ('Options of the policy', 'Cosmos3Config', {'device'}),
        ('Options of the environments', 'Cosmos3EnvConfig', {'task'}),
    ],
)
def test_the_document_lists_every_option_with_its_default(
    section: str, name: str, inherited: set[str], plugin: SimpleNamespace, repository: Path
) -> None:
    kind = getattr(plugin, name)
    own = {field.name: field.default for field in fields(kind) if field.name in kind.__annotations__}
    text = (repository / 'docs/lerobot.md').read_text().split(f'## {section}\n')[1].split('\n## ')[0]
    rows = [line.strip('|').split('|') for line in text.splitlines() if line.startswith('| `')]
    told = {
        option.strip(' `'): default.strip(' `')
        for names, defaults, _ in rows
        for option, default in zip_longest(names.split(','), defaults.split(', '), fillvalue=defaults)
    }
    assert set(own) - {'fps'} == set(told) - (inherited - set(own))
    shown = {key: str(value).lower() if isinstance(value, bool) else f'{value}' for key, value in own.items() if value}
    numbers = {key: f'{value:g}' for key, value in own.items() if isinstance(value, float)}
    wanted = {**shown, **numbers}
    assert {key: told[key] for key in wanted} == wanted
