"""Real recordings: a DROID episode, UMI actions and driving trajectories, as NVIDIA published them."""

from __future__ import annotations

import numpy as np
import pytest

from engine.actions import Method, Poses, codec, published_statistics, read_action_file, rotation_distance

pytest.importorskip('pandas')

DRIVES = ('forward', 'left', 'right')


@pytest.fixture(scope='module')
def episode(shared_data) -> tuple[Poses, np.ndarray]:
    """Measured poses of `panda_link8` and gripper commands (1 = closed), 722 of each at 15 Hz."""
    import pandas as pd

    table = pd.read_parquet(shared_data / 'droid' / 'episode.parquet')
    cartesian = np.stack(table['observation.state.cartesian_position'].to_numpy())
    return Poses.from_rpy(cartesian[:, :3], cartesian[:, 3:]), table['action.gripper_position'].to_numpy()


@pytest.fixture(scope='module')
def umi(shared_data) -> np.ndarray:
    return read_action_file(shared_data / 'umi' / 'umi.json', 10)


@pytest.fixture(scope='module')
def drives(shared_data) -> dict[str, np.ndarray]:
    return {name: read_action_file(shared_data / 'av' / f'av_traj_{name}.json', 9) for name in DRIVES}


def worst(actual: Poses, expected: Poses) -> tuple[float, float]:
    distance = np.linalg.norm(actual.position - expected.position, axis=-1)
    return distance.max(), rotation_distance(actual.rotation, expected.rotation).max()


@pytest.mark.parametrize(
    ('space', 'normalization'), [('ee_delta', 'none'), ('ee_delta', 'quantile'), ('ee_delta_anchored', 'none')]
)
def test_a_whole_droid_episode_comes_back_from_its_rows(episode, space, normalization):
    poses, gripper = episode
    of = codec('droid_lerobot', space, normalization)
    actions = of.decode(of.encode_trajectory(poses, gripper[:-1]), poses[0])
    metres, radians = worst(actions.poses, poses[1:])
    assert len(actions.poses) == 721
    assert metres < 1e-12
    assert radians < 1e-12
    np.testing.assert_allclose(actions.gripper, gripper[:-1], atol=1e-12)


def test_a_whole_droid_episode_comes_back_from_rows_in_single_precision(episode):
    poses, gripper = episode
    of = codec('droid_lerobot', 'ee_delta', 'none')
    rows = of.encode_trajectory(poses, gripper[:-1]).astype(np.float32)
    metres, radians = worst(of.decode(rows, poses[0]).poses, poses[1:])
    assert metres < 1e-5
    assert radians < 1e-4


def test_droid_rows_lie_within_the_published_percentiles_nearly_always(episode):
    """Wrong units, a wrong frame rate or rows of absolute poses would leave them at once."""
    poses, gripper = episode
    rows = codec('droid_lerobot', 'ee_delta', 'none').encode_trajectory(poses, gripper[:-1])
    low, high = published_statistics('droid', Method.QUANTILE).need('q01', 'q99')
    inside = ((rows >= low) & (rows <= high)).mean(axis=0)
    assert inside.min() > 0.95


def test_droid_steps_are_of_a_size_that_an_arm_can_make(episode):
    poses, gripper = episode
    rows = codec('droid_lerobot', 'ee_delta', 'none').encode_trajectory(poses, gripper[:-1])
    assert np.linalg.norm(rows[:, :3], axis=-1).max() * 15 < 1.0
    assert set(np.unique(rows[:, 9])) >= {0.0, 1.0}
    assert ((rows[:, 9] >= 0) & (rows[:, 9] <= 1)).all()


def test_the_gripper_of_the_episode_starts_open_on_both_sides(episode):
    poses, gripper = episode
    rows = codec('droid_lerobot', 'ee_delta', 'none').encode_trajectory(poses, gripper[:-1])
    assert gripper[0] == 0
    assert rows[0, 9] == 1


def test_umi_rows_are_normalised_and_turn_into_rotations_when_that_is_undone(umi):
    def faults(rotation: np.ndarray) -> float:
        first, second = rotation[:, :3], rotation[:, 3:]
        lengths = np.linalg.norm([first, second], axis=-1)
        return max(np.abs(lengths - 1).max(), np.abs(np.sum(first * second, axis=-1)).max())

    assert faults(codec('umi', 'ee_delta', 'none').split(umi)['rotation']) > 0.05
    assert faults(codec('umi', 'ee_delta', 'quantile').split(umi)['rotation']) < 7e-4


def test_umi_widths_are_those_of_a_hand_held_gripper(umi):
    width = codec('umi', 'ee_delta', 'quantile').split(umi)['gripper']
    assert ((width > 0) & (width < 0.097)).all()


def test_umi_rows_come_back_from_the_trajectory_they_describe(umi):
    of = codec('umi', 'ee_delta', 'quantile')
    start = Poses.identity()
    actions = of.decode(umi, start)
    path = Poses(
        np.vstack([start.position, actions.poses.position]), np.vstack([start.rotation[None], actions.poses.rotation])
    )
    again = of.split(of.encode_trajectory(path, actions.gripper))
    for name, part in of.split(umi).items():
        np.testing.assert_allclose(again[name], part, atol=1e-3)


@pytest.mark.parametrize('name', DRIVES)
def test_driving_rows_are_raw_rotations(drives, name):
    rotation = codec('av', 'camera_delta', 'none').split(drives[name])['camera_rotation']
    np.testing.assert_allclose(np.linalg.norm(rotation.reshape(-1, 2, 3), axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(np.sum(rotation[:, :3] * rotation[:, 3:], axis=-1), 0, atol=1e-5)


@pytest.mark.parametrize(('name', 'sign'), [('left', -1), ('right', 1)])
def test_a_car_that_turns_left_ends_up_on_the_left(drives, name, sign):
    """The camera looks along z with x to the right: rows read row by row would bend the path the other way."""
    path = codec('av', 'camera_delta', 'none').decode(drives[name], Poses.identity()).poses
    assert sign * path.position[-1, 0] > 5
    ahead = path.rotation[-1] @ [0, 0, 1]
    assert sign * ahead[0] > 0.5


def test_a_car_that_drives_straight_on_gets_ahead(drives):
    end = codec('av', 'camera_delta', 'none').decode(drives['forward'], Poses.identity()).poses.position[-1]
    assert end[2] > 5
    assert abs(end[0]) < 0.2 * end[2]
