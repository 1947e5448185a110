"""Open loop tells good chunks from bad ones by figures that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial.transform import Rotation

from engine.contract import Contract, load_contract
from engine.errors import InvalidInput
from engine.evaluation.open_loop import Moment, Source, moments_of, run_policy, state_at, thinned
from engine.evaluation.open_loop_pictures import psnr, ssim
from engine.evaluation.open_loop_policy import PolicyMeter, sparc
from engine.evaluation.open_loop_recorded import Truth, episodes_of, read_track, truth_of
from engine.evaluation.open_loop_spaces import JointLimits, JointSpace, PoseLimits, PoseSpace, Space
from engine.evaluation.open_loop_statistics import FEWEST_UNITS, Tally
from engine.evaluation.recordings import open_recording
from engine.evaluation.video import VideoWriter

FRAMES, ROWS, FPS, STRIDE = 140, 32, 15.0, 8
VIEWS = ('wrist', 'exterior_1', 'exterior_2')
PERIODS = np.array([3.0, 4.0, 5.0, 3.5, 4.5, 5.5, 6.0])
HOME = np.array([0.1, -0.6, 0.05, -2.2, 0.0, 1.9, 0.1])


def joints_at(times: np.ndarray) -> np.ndarray:
    """Every joint swings at its own pace."""
    return HOME + 0.3 * np.sin(2 * np.pi * times[:, None] / PERIODS)


TIMES = np.arange(FRAMES) / FPS
JOINTS = joints_at(TIMES)
CLOSED = (np.arange(FRAMES) >= 70).astype(float)
POSE = np.column_stack(
    [
        0.4 + 0.1 * np.sin(TIMES),
        0.1 * np.cos(TIMES),
        0.3 + 0.02 * TIMES,
        np.pi - 0.1 * np.sin(TIMES),
        0.2 * TIMES / 9,
        TIMES / 9,
    ]
)


def make_recording(root: Path, **columns: np.ndarray) -> Path:
    """An episode with plain grey cameras and these columns beside the measured ones."""
    root.mkdir()
    table = {
        'timestamp': TIMES,
        'observation.state.joint_positions': JOINTS,
        'observation.state.cartesian_position': POSE,
        'observation.state.gripper_position': CLOSED,
        **{name.replace('__', '.'): values for name, values in columns.items()},
    }
    pq.write_table(pa.table({name: pa.array(np.asarray(v).tolist()) for name, v in table.items()}), root / 'e.parquet')
    for view in VIEWS:
        with VideoWriter(root / f'{view}.mp4', FPS, (16, 24)) as writer:
            for _ in range(FRAMES):
                writer.write(np.full((16, 24, 3), 90, np.uint8))
    return root


@pytest.fixture(scope='module')
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recording(tmp_path_factory.mktemp('open_loop') / 'measured')


@pytest.fixture(scope='module')
def commanded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands are a hundredth of a radian ahead of where the arm gets."""
    after = np.vstack([JOINTS[1:], JOINTS[-1:]]) + 0.01
    return make_recording(tmp_path_factory.mktemp('open_loop') / 'commanded', action__joint_position=after)


@pytest.fixture(scope='module')
def joint_contract() -> Contract:
    return load_contract('demo_joint_pos')


@pytest.fixture(scope='module')
def pose_contract() -> Contract:
    return load_contract('droid_ee_delta')


Maker = Callable[[Truth, Moment, int], np.ndarray]


def future(truth: Truth, moment: Moment, _seed: int = 0) -> np.ndarray:
    """What a perfect policy says."""
    return truth.future[moment.index : moment.index + ROWS].copy()


def hold(truth: Truth, moment: Moment, _seed: int = 0) -> np.ndarray:
    return np.tile(truth.state[moment.index], (ROWS, 1))


def measured(
    path: Path, contract: Contract, maker: Maker, seeds: int = 1, limits: Any = None, stride: int = STRIDE
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures of a policy that is a function, and the lines of its moments."""
    track = read_track(path, 0)
    truth = truth_of(track, contract)
    joints = contract.embodiment.action_space == 'joint_position'
    space: Space = JointSpace(contract.robot.joints) if joints else PoseSpace()
    meter = PolicyMeter(space, ROWS, stride, FPS, limits, 2 * ROWS)
    source = Source(track, lambda: open_recording(path, instruction='do it'))
    lines = list(
        run_policy(
            [source], [truth], contract, lambda moment, seed: maker(truth, moment, seed), meter, range(seeds), 1000
        )
    )
    return meter.conclude(), lines


def rmse(document: dict[str, Any], who: str, rows: int = ROWS) -> np.ndarray:
    return np.array(document['executed'][str(rows)][who]['rmse']['value'])


# Errors


@pytest.mark.parametrize('space', ['joint_contract', 'pose_contract'])
def test_a_policy_that_says_what_was_recorded_has_no_error_and_saves_all_of_that_of_holding_still(
    recording: Path, space: str, request: pytest.FixtureRequest
) -> None:
    found, lines = measured(recording, request.getfixturevalue(space), future)
    assert rmse(found, 'policy') == pytest.approx(0, abs=1e-7)
    assert np.array(found['skill'][str(ROWS)]['hold']['value']) == pytest.approx(1.0)
    assert found['gripper']['executed'][str(ROWS)]['policy']['accuracy']['value'] == pytest.approx(1.0)
    assert found['gripper']['executed'][str(ROWS)]['policy']['f1']['value'] == pytest.approx(1.0)
    assert np.array(found['seam']['jump']['value']) == pytest.approx(0, abs=1e-7)
    assert found['seam']['acceleration']['policy']['value'] == pytest.approx(
        found['seam']['acceleration']['recorded']['value']
    )
    assert len(lines) == found['moments'] == len(range(0, FRAMES - ROWS, STRIDE))


def test_holding_still_has_the_error_that_the_joints_have_moved(recording: Path, joint_contract: Contract) -> None:
    found, _ = measured(recording, joint_contract, hold)
    starts = np.arange(0, FRAMES - ROWS, STRIDE)
    moved = np.stack([JOINTS[t + 1 : t + ROWS + 1] - JOINTS[t] for t in starts])
    by_joint = np.sqrt((moved**2).mean(axis=(0, 1)))
    assert rmse(found, 'hold')[:7] == pytest.approx(by_joint)
    assert rmse(found, 'hold')[7] == pytest.approx(np.sqrt((moved**2).mean()))
    assert rmse(found, 'policy', 8) == pytest.approx(rmse(found, 'hold', 8))
    by_row = np.array(found['lead_time']['hold']['rmse']['value'])[:, :7]
    assert by_row == pytest.approx(np.sqrt((moved**2).mean(axis=0)))
    assert found['executed']['8']['hold']['mae']['value'][0] == pytest.approx(np.abs(moved[:, :8, 0]).mean())


def test_a_policy_that_swaps_two_joints_is_wrong_in_these_two_and_in_no_other(
    recording: Path, joint_contract: Contract
) -> None:
    def swapped(truth: Truth, moment: Moment, seed: int) -> np.ndarray:
        return future(truth, moment, seed)[:, [0, 2, 1, 3, 4, 5, 6, 7]]

    found, _ = measured(recording, joint_contract, swapped)
    error = rmse(found, 'policy')[:7]
    assert error[[0, 3, 4, 5, 6]] == pytest.approx(0)
    assert (error[[1, 2]] > 0.3).all()
    assert found['skill'][str(ROWS)]['hold']['value'][7] < 0


def test_commands_are_what_chunks_are_held_to_where_the_recording_has_them(
    commanded: Path, joint_contract: Contract
) -> None:
    where_it_went, _ = measured(
        commanded, joint_contract, lambda truth, moment, _: truth.state[moment.index + 1 : moment.index + ROWS + 1]
    )
    assert rmse(where_it_went, 'policy') == pytest.approx(0.01)
    as_told, _ = measured(commanded, joint_contract, future)
    assert rmse(as_told, 'policy') == pytest.approx(0, abs=1e-9)


def test_repeating_the_last_action_is_a_guess_of_its_own_only_where_there_are_commands(
    commanded: Path, recording: Path, joint_contract: Contract
) -> None:
    assert 'repeat_action' not in measured(recording, joint_contract, hold)[0]['lead_time']
    found, _ = measured(commanded, joint_contract, hold)
    starts = np.arange(0, FRAMES - ROWS, STRIDE)
    told = np.vstack([JOINTS[1:], JOINTS[-1:]]) + 0.01
    first = [told[0] - JOINTS[0]] + [told[t] - told[t - 1] for t in starts[1:]]
    by_row = np.array(found['lead_time']['repeat_action']['rmse']['value'])
    assert by_row[0, :7] == pytest.approx(np.sqrt((np.array(first) ** 2).mean(axis=0)))


def test_an_arm_that_goes_on_evenly_is_foretold_by_repeating_its_last_step() -> None:
    joints, poses = JointSpace(('a', 'b')), PoseSpace()
    line = np.linspace([0.0, 1.0], [1.0, 3.0], 6)
    assert joints.go_on(line[0], line[1], 4) == pytest.approx(line[2:])
    turns = Rotation.from_rotvec(np.outer(np.arange(6), [0, 0, 0.3]))
    around = np.column_stack([turns.apply([1.0, 0, 0]), turns.as_quat()])
    assert poses.apart(poses.go_on(around[0], around[1], 4), around[2:]) == pytest.approx(0, abs=1e-7)


def test_velocities_and_stuck_columns_are_not_taken_for_commands(tmp_path: Path, joint_contract: Contract) -> None:
    speed = np.gradient(JOINTS, 1 / FPS, axis=0)
    stuck = np.tile(JOINTS[0] + 1.0, (FRAMES, 1))
    path = make_recording(tmp_path / 'odd', action__joint_position=stuck, actions=np.column_stack([speed, CLOSED]))
    track = read_track(path, 0)
    assert 'joints' not in track.commanded
    assert track.sources['next joints'] == 'the state one frame later'
    assert track.sources['next gripper'] == 'actions'


def test_a_recording_without_joints_gets_them_from_its_poses_and_says_so(tmp_path: Path) -> None:
    path = make_recording(tmp_path / 'poses', observation__state__joint_positions=np.zeros((FRAMES, 1)))
    track = read_track(path, 0, lambda poses: np.tile(poses.position[:, :1], (1, 7)))
    assert track.sources['joints'] == 'inverse kinematics of the measured poses'
    assert track.joints is not None
    assert track.joints[:, 3] == pytest.approx(POSE[:, 0])
    assert read_track(path, 0).joints is None


# Poses


def test_errors_of_poses_are_metres_and_angles(recording: Path, pose_contract: Contract) -> None:
    def off(truth: Truth, moment: Moment, seed: int) -> np.ndarray:
        rows = future(truth, moment, seed)
        rows[:, 0] += 0.03
        rows[:, 1] += 0.04
        rows[:, 3:7] = (Rotation.from_quat(rows[:, 3:7]) * Rotation.from_rotvec([0.2, 0, 0])).as_quat()
        return rows

    found, _ = measured(recording, pose_contract, off)
    assert [one['unit'] for one in found['channels']] == ['m', 'rad']
    assert rmse(found, 'policy') == pytest.approx([0.05, 0.2])


# Chunks beside each other


def test_chunks_that_disagree_by_a_known_step_have_that_overlap_jump_and_acceleration(
    recording: Path, joint_contract: Contract
) -> None:
    step = 0.02

    def stairs(truth: Truth, moment: Moment, seed: int) -> np.ndarray:
        rows = np.tile(HOME, (ROWS, 1)) + step * (moment.index // STRIDE)
        return np.column_stack([rows, np.zeros(ROWS)])

    found, _ = measured(recording, joint_contract, stairs)
    assert found['overlap']['rmse']['value'] == pytest.approx([step] * 8)
    assert found['seam']['jump']['value'] == pytest.approx([step] * 8)
    assert found['seam']['jump']['most'] == pytest.approx([step] * 7)
    assert found['seam']['acceleration']['policy']['value'] == pytest.approx([step * FPS**2] * 8)


def test_moments_that_do_not_follow_each_other_show_no_seam(recording: Path, joint_contract: Contract) -> None:
    assert 'seam' not in measured(recording, joint_contract, future, stride=ROWS)[0]


def test_the_spread_over_seeds_is_their_standard_deviation(recording: Path, joint_contract: Contract) -> None:
    offsets = np.array([0.0, 0.01, 0.05])

    def noisy(truth: Truth, moment: Moment, seed: int) -> np.ndarray:
        rows = future(truth, moment)
        rows[:, 4] += offsets[seed]
        return rows

    found, lines = measured(recording, joint_contract, noisy, seeds=3)
    assert found['seed_spread']['all']['value'][4] == pytest.approx(offsets.std(ddof=1))
    assert found['seed_spread']['all']['value'][0] == pytest.approx(0)
    assert rmse(found, 'policy')[4] == pytest.approx(np.sqrt((offsets**2).mean()))
    assert lines[0]['seed_spread'][4] == pytest.approx(offsets.std(ddof=1))


# Limits and smoothness


def limits(velocity: float = 2.0, acceleration: float = 1000.0) -> JointLimits:
    bound = np.full(7, velocity)
    return JointLimits(HOME - 1.0, HOME + 1.0, lambda _: (-bound, bound), np.full(7, acceleration))


def test_a_joint_that_leaves_its_range_or_is_too_fast_is_counted_where_it_does(
    recording: Path, joint_contract: Contract
) -> None:
    def leaps(truth: Truth, moment: Moment, seed: int) -> np.ndarray:
        rows = future(truth, moment, seed)
        rows[20:, 2] = HOME[2] + 1.5
        return rows

    found, lines = measured(recording, joint_contract, leaps, limits=limits())
    position, velocity = found['limits']['position']['policy'], found['limits']['velocity']['policy']
    assert position['chunks']['value'] == velocity['chunks']['value'] == 1.0
    assert position['rows']['value'] == pytest.approx([0, 0, 12 / ROWS, 0, 0, 0, 0])
    assert velocity['rows']['value'] == pytest.approx([0, 0, 1 / ROWS, 0, 0, 0, 0])
    assert position['most_used'][2] == pytest.approx(1.5)
    assert found['limits']['velocity']['recorded']['chunks']['value'] == 0
    assert lines[0]['rows_over']['position'] == pytest.approx(12 / ROWS)


def test_what_is_too_fast_outwards_near_an_end_is_not_too_fast_inwards() -> None:
    bounds = JointLimits(
        np.array([-1.0]), np.array([1.0]), lambda _: (np.array([-2.0]), np.array([0.5])), np.array([1e9])
    )
    out, back = (bounds.used(np.array([[0.0], [way]]), 10.0)['velocity'] for way in (0.1, -0.1))
    assert out == pytest.approx(2.0)
    assert back == pytest.approx(0.5)


def test_limits_of_poses_are_those_of_the_way_and_of_the_turn() -> None:
    turns = Rotation.from_rotvec([[0, 0, 0], [0, 0, 0.1], [0, 0, 0.3]]).as_quat()
    path = np.column_stack([[0.0, 0.1, 0.2], np.zeros(3), np.zeros(3), turns])
    used = PoseLimits((0.5, 1.0), (1.0, 5.0)).used(path, 10.0)
    assert used['velocity'] == pytest.approx(np.array([[2.0, 1.0], [2.0, 2.0]]))
    assert used['acceleration'] == pytest.approx(np.array([[0.0, 2.0]]), abs=1e-9)


def test_a_trembling_chunk_is_less_smooth_than_what_was_recorded(recording: Path, joint_contract: Contract) -> None:
    def trembling(truth: Truth, moment: Moment, seed: int) -> np.ndarray:
        return future(truth, moment) + 0.01 * (-1) ** np.arange(ROWS)[:, None]

    found = measured(recording, joint_contract, trembling)[0]['smoothness']
    assert found['policy']['jerk']['value'][7] > 10 * found['recorded']['jerk']['value'][7]
    assert found['policy']['sparc']['value'] < found['recorded']['sparc']['value']


def test_sparc_knows_neither_the_size_nor_the_pace_of_a_motion_and_nothing_of_rest() -> None:
    share = np.linspace(0, 1, 100)
    bell = 30 * share**2 - 60 * share**3 + 30 * share**4
    assert sparc(bell, 50) == pytest.approx(sparc(7 * bell, 50))
    assert sparc(bell, 50) == pytest.approx(sparc(bell, 100), rel=0.01)
    assert sparc(bell + np.roll(bell, 50), 50) < sparc(bell, 50) < -1
    assert np.isnan(sparc(np.zeros(10), 15))


# Which moments


def test_of_too_many_moments_some_stay_in_a_row_and_all_of_the_episodes_are_seen() -> None:
    moments = [(episode, index) for episode in range(5) for index in range(0, 400, 8)]
    kept = thinned(moments, 40)
    assert len(kept) == 40
    assert {episode for episode, _ in kept} == set(range(5))
    pairs = sum(one[0] == two[0] and two[1] - one[1] == 8 for one, two in pairwise(kept))
    assert pairs >= 27
    assert thinned(moments, 1000) == moments


def test_an_episode_that_is_too_short_for_a_chunk_has_no_moments(recording: Path, joint_contract: Contract) -> None:
    assert moments_of(ROWS, ROWS, 8) == []
    assert moments_of(ROWS + 1, ROWS, 8) == [0]
    track = read_track(recording, 0)
    meter = PolicyMeter(JointSpace(joint_contract.robot.joints), FRAMES, 8, FPS, None, 64)
    with pytest.raises(InvalidInput, match='too short'):
        list(run_policy([Source(track, lambda: open_recording(recording))], [truth_of(track, joint_contract)],
                        joint_contract, lambda moment, seed: JOINTS, meter, [0], 10))  # fmt: skip


def test_a_chunk_of_another_shape_is_refused(recording: Path, joint_contract: Contract) -> None:
    with pytest.raises(InvalidInput, match=r'\[32, 7\].*\[32, 8\]'):
        measured(recording, joint_contract, lambda truth, moment, _: future(truth, moment)[:, :7])


def test_a_moment_shows_the_state_of_its_frame_and_the_history_before_it(
    recording: Path, joint_contract: Contract
) -> None:
    track = read_track(recording, 0)
    now = state_at(track, 9, joint_contract)
    assert now['joint_positions'] == pytest.approx(JOINTS[9:10])
    assert now['gripper_position'] == pytest.approx(CLOSED[9:10])
    assert now['end_effector_position'] == pytest.approx(POSE[9:10, :3])


def test_frames_that_have_no_picture_are_left_out(recording: Path) -> None:
    track = read_track(recording, 0)
    short = track.cut(50)
    assert (len(short), len(short.next_joints), len(short.next_poses), len(short.gripper)) == (50, 49, 49, 50)
    assert short.next_joints == pytest.approx(JOINTS[1:50])
    assert track.cut(FRAMES + 3) is track


def test_episodes_are_found_in_both_layouts(recording: Path, tmp_path: Path) -> None:
    assert episodes_of(recording) == [0]
    (tmp_path / 'meta' / 'episodes' / 'chunk-000').mkdir(parents=True)
    table = pa.table({'episode_index': [0, 1, 4]})
    pq.write_table(table, tmp_path / 'meta' / 'episodes' / 'chunk-000' / 'file-000.parquet')
    assert episodes_of(tmp_path) == [0, 1, 4]
    with pytest.raises(InvalidInput, match='no episodes'):
        episodes_of(tmp_path / 'nothing')


# Intervals


def test_an_interval_is_as_wide_as_the_units_say_and_not_as_the_moments_do() -> None:
    rng = np.random.default_rng(3)
    tally, centres = Tally(), rng.normal(size=40)
    for unit, centre in enumerate(centres):
        for value in centre + 0.01 * rng.normal(size=25):
            tally.add((f'episode {unit}', 0), 'x', value)
    found = tally.mean('x')
    wanted = 2 * 1.96 * centres.std() / np.sqrt(40)
    assert float(found.value) == pytest.approx(centres.mean(), abs=0.01)
    assert float(found.high - found.low) == pytest.approx(wanted, rel=0.15)
    assert tally.by_episode


def test_with_few_episodes_blocks_are_drawn_and_with_few_blocks_nothing_is() -> None:
    tally = Tally()
    for block in range(FEWEST_UNITS):
        tally.add(('one', block), 'x', float(block))
    assert not tally.by_episode
    assert np.isfinite(tally.mean('x').low)
    few = Tally()
    few.add(('one', 0), 'x', [1.0, np.nan])
    assert few.mean('x').document() == {'value': [1.0, None], 'low': [None, None], 'high': [None, None]}
    assert few.how(64).startswith('none, of 1 blocks of 64 frames')


def test_two_figures_of_one_run_are_of_the_same_draws() -> None:
    tally, rng = Tally(), np.random.default_rng(0)
    for block in range(12):
        base = rng.normal()
        tally.add(('one', block), 'mine', base)
        tally.add(('one', block), 'theirs', base + 1.0)
    apart = tally.estimate(tally.draws('theirs') - tally.draws('mine'))
    assert [float(apart.low), float(apart.value), float(apart.high)] == pytest.approx([1.0, 1.0, 1.0])


# Pictures


def test_psnr_of_a_known_difference_is_what_the_formula_says() -> None:
    picture = np.full((3, 20, 30, 3), 100, np.uint8)
    assert psnr(picture, picture + np.uint8(5)) == pytest.approx(20 * np.log10(255 / 5))
    assert psnr(picture, picture) == pytest.approx(58.92, abs=0.01)


def test_ssim_is_one_for_the_same_and_follows_the_formula_for_plain_and_for_noisy_pictures() -> None:
    rng = np.random.default_rng(1)
    one, other = (rng.integers(0, 256, (1, 11, 11, 3), np.uint8) for _ in range(2))
    assert ssim(one, one) == pytest.approx(1.0)
    plain, brighter = np.full((1, 24, 24, 3), 80, np.uint8), np.full((1, 24, 24, 3), 160, np.uint8)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    assert ssim(plain, brighter) == pytest.approx((2 * 80 * 160 + c1) / (80**2 + 160**2 + c1))
    # One window, and its weights written out.
    axis = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(axis, axis) / axis.sum() ** 2
    x, y = (picture[0].astype(float) @ [0.299, 0.587, 0.114] for picture in (one, other))
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
    both = (weights * (x - mean_x) * (y - mean_y)).sum()
    wanted = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    assert ssim(one, other) == pytest.approx(wanted)


def test_videos_of_other_sizes_are_refused_and_tiny_ones_have_no_ssim() -> None:
    small = np.zeros((2, 8, 8, 3), np.uint8)
    assert np.isnan(ssim(small, small)).all()
    with pytest.raises(InvalidInput, match='do not fit'):
        psnr(small, small[:, :4])
