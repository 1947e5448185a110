"""Codecs: what a robot measures becomes rows, and rows become what it obeys, with nothing lost on the way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.actions import (
    EMBODIMENTS,
    Codec,
    GripperConvention,
    JointCodec,
    Kind,
    Method,
    PoseCodec,
    Poses,
    Statistics,
    codec,
    compose,
    embodiment,
    normalizer,
    published_statistics,
    rotation_distance,
)
from engine.errors import InvalidInput

SPACES = [pytest.param(e, s.name, id=f'{e.name}-{s.name}') for e in EMBODIMENTS for s in e.spaces]
POSED = [
    ('droid_lerobot', 'ee_delta'),
    ('droid_lerobot', 'ee_delta_anchored'),
    ('robomind-franka', 'ee_delta'),
    ('robomind-franka-dual', 'ee_delta'),
    ('robomind-ur', 'ee_delta'),
    ('bridge_orig_lerobot', 'ee_delta'),
    ('fractal', 'ee_delta'),
    ('umi', 'ee_delta'),
    ('agibotworld', 'ee_delta'),
    ('av', 'camera_delta'),
    ('camera_pose', 'camera_delta'),
]
GEAR = [('embodiment_c_gripper', 'ee_delta'), ('embodiment_c_gripper_ext', 'ee_delta')]
DROID = ('droid_lerobot', 'ee_delta', 'none')


def path_of(*shape: int, seed: int = 0) -> Poses:
    """A trajectory of small steps from a pose well away from the identity."""
    rng = np.random.default_rng(seed)
    position = np.array([0.4, -0.1, 0.5]) + np.cumsum(rng.normal(scale=0.01, size=(*shape, 3)), axis=0)
    angles = np.array([3.0, 0.1, -0.4]) + np.cumsum(rng.normal(scale=0.03, size=(*shape, 3)), axis=0)
    return Poses.from_rpy(position, angles)


def grippers_of(of: Codec, rows: int, seed: int = 1) -> np.ndarray | None:
    count = len(of.space.of_kind(Kind.GRIPPER))
    values = np.random.default_rng(seed).uniform(size=(rows, count))
    return None if count == 0 else values[:, 0] if count == 1 else values


def assert_same(actual: Poses, expected: Poses) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.position, expected.position, atol=1e-11)
    assert rotation_distance(actual.rotation, expected.rotation).max() < 1e-11


# Named segments


@pytest.mark.parametrize(('entry', 'space'), SPACES)
def test_segments_put_together_again_are_the_row(entry, space):
    of = codec(entry, space, 'none')
    rows = np.random.default_rng(0).normal(size=(3, 5, of.dim))
    segments = of.split(rows)
    assert {name: part.shape for name, part in segments.items()} == {
        segment.name: (3, 5, segment.size) for segment in of.space.segments
    }
    np.testing.assert_array_equal(of.join(segments), rows)


def test_segments_are_raw_and_rows_are_normalised():
    of = codec('umi', 'ee_delta', 'quantile')
    np.testing.assert_allclose(of.split(np.ones(10))['gripper'], 0.096749)
    np.testing.assert_allclose(of.join(of.split(np.full((2, 10), 0.3))), 0.3)


def test_missing_and_unknown_segments_are_listed_together():
    with pytest.raises(InvalidInput) as caught:
        codec(*DROID).join({'translation': np.zeros(3), 'wrist': np.zeros(3)})
    found = [(problem.where, problem.what) for problem in caught.value.problems]
    assert found == [('wrist', 'is no segment'), ('rotation', 'is missing'), ('gripper', 'is missing')]


def test_segments_of_different_leading_shape_are_refused():
    parts = {'translation': np.zeros((2, 3)), 'rotation': np.zeros((2, 6)), 'gripper': np.zeros((3, 1))}
    with pytest.raises(InvalidInput, match='gripper: has the wrong shape'):
        codec(*DROID).join(parts)


# Joint positions


def test_a_droid_joint_state_is_seven_joints_and_the_open_fraction():
    of = codec('droid_lerobot', 'joint_position', 'none')
    joints = np.arange(7) / 10
    np.testing.assert_array_equal(of.encode_state(joints, 0.0), [*joints, 1.0])
    np.testing.assert_array_equal(of.encode_state(joints, 1.0), [*joints, 0.0])


def test_droid_joint_rows_are_the_joints_unclipped_and_the_gripper_the_other_way_round():
    of = codec('droid_lerobot', 'joint_position', 'none')
    rows = np.hstack([np.full((3, 7), 9.0), [[1.0], [0.0], [1.2]]])
    actions = of.decode(rows)
    np.testing.assert_array_equal(actions.joint_positions, np.full((3, 7), 9.0))
    np.testing.assert_allclose(actions.gripper, [0.0, 1.0, -0.2])


@given(st.integers(1, 33), st.integers(0, 99))
@settings(max_examples=20)
def test_a_joint_state_comes_back_from_its_row(rows, seed):
    of = codec('droid_lerobot', 'joint_position', 'none')
    rng = np.random.default_rng(seed)
    joints, gripper = rng.normal(size=(rows, 7)), rng.uniform(size=rows)
    actions = of.decode(of.encode_state(joints, gripper))
    np.testing.assert_array_equal(actions.joint_positions, joints)
    np.testing.assert_allclose(actions.gripper, gripper, atol=1e-15)


@given(st.integers(1, 33), st.integers(0, 99))
@settings(max_examples=20)
def test_rows_of_offsets_come_back_as_the_absolute_targets_they_were(rows, seed):
    absolute = codec('droid_lerobot', 'joint_position', scale([0.1] * 7 + [0.5], [0.2] * 7 + [0.5]))
    states = scale([0.5] * 8, [2.0] * 8)
    of = replace(absolute, offsets=True, state_normalizer=states)
    rng = np.random.default_rng(seed)
    joints, gripper, state = rng.normal(size=(rows, 7)), rng.uniform(size=rows), rng.normal(size=7)
    encoded = of.encode(joints, gripper, state)
    np.testing.assert_allclose(encoded, absolute.encode(joints - state, gripper), atol=1e-12)
    actions = of.decode(encoded, state)
    np.testing.assert_allclose(actions.joint_positions, joints, atol=1e-12)
    np.testing.assert_allclose(actions.gripper, gripper, atol=1e-12)
    np.testing.assert_allclose(of.encode_state(state, 0.0), states.forward([*state, 1.0]))


def test_rows_of_offsets_are_not_read_without_the_state_they_are_from():
    of = replace(codec('droid_lerobot', 'joint_position', 'none'), offsets=True)
    with pytest.raises(InvalidInput, match='state: is missing: these rows are offsets from it'):
        of.decode(np.zeros((1, 8)))


def scale(mean, std):
    """A standard score."""
    return normalizer('meanstd', Statistics('here', {'mean': np.array(mean), 'std': np.array(std)}))


def test_two_arms_give_their_joints_and_grippers_apart():
    of = codec('robotwin', 'joint_position', 'none')
    actions = of.decode(np.arange(14.0)[None])
    np.testing.assert_array_equal(actions.joint_positions[0], [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12])
    np.testing.assert_array_equal(actions.gripper[0], [6, 13])


@pytest.mark.parametrize(('joints', 'gripper'), [((6,), ()), ((4, 7), (3,)), ((4, 7), (4, 1)), ((7,), (1,))])
def test_a_joint_state_of_another_shape_is_refused(joints, gripper):
    with pytest.raises(InvalidInput, match='wrong shape'):
        codec('droid_lerobot', 'joint_position', 'none').encode_state(np.zeros(joints), np.zeros(gripper))


def test_a_joint_row_that_is_not_finite_is_named():
    rows = np.zeros((32, 8))
    rows[[4, 30], 2] = np.nan
    with pytest.raises(InvalidInput) as caught:
        codec('droid_lerobot', 'joint_position', 'none').decode(rows)
    assert [problem.where for problem in caught.value.problems] == ['rows[4]', 'rows[30]']


# Poses


@pytest.mark.parametrize(('name', 'space'), POSED)
@pytest.mark.parametrize('length', [1, 2, 16, 33])
def test_a_trajectory_comes_back_from_its_rows(name, space, length):
    of = codec(name, space, 'none')
    assert isinstance(of, PoseCodec)
    bodies = len(of.space.frames)
    poses = path_of(length + 1) if bodies == 1 else path_of(length + 1, bodies)
    gripper = grippers_of(of, length)
    rows = of.encode_trajectory(poses, gripper)
    assert rows.shape == (length, of.dim)
    actions = of.decode(rows, poses[0])
    assert_same(actions.poses, poses[1:])
    np.testing.assert_allclose(actions.gripper, np.zeros((length, 0)) if gripper is None else gripper, atol=1e-15)


@pytest.mark.parametrize('name', ['droid_lerobot', 'bridge_orig_lerobot', 'robomind-franka-dual', 'agibotworld'])
def test_a_trajectory_comes_back_from_normalised_rows(name):
    of = codec(name, 'ee_delta', 'quantile')
    poses = path_of(9) if len(of.space.frames) == 1 else path_of(9, len(of.space.frames))
    rows = of.encode_trajectory(poses, grippers_of(of, 8))
    assert_same(of.decode(rows, poses[0]).poses, poses[1:])


def test_a_droid_row_is_the_step_in_the_turned_frame():
    """Moving 1 cm along the flange's x is moving 1 cm along minus y of the frame turned by 90 degrees about z."""
    start = Poses.identity()
    poses = Poses(np.array([[0.0, 0, 0], [0.01, 0, 0]]), np.tile(np.eye(3), (2, 1, 1)))
    row = codec(*DROID).encode_trajectory(poses, [0.25])[0]
    np.testing.assert_allclose(row, [0, -0.01, 0, 1, 0, 0, 0, 1, 0, 0.75], atol=1e-15)
    assert_same(codec(*DROID).decode(row[None], start).poses, poses[1:])


def test_a_droid_turn_about_x_appears_about_minus_y_column_by_column():
    angle = 0.2
    poses = Poses.from_rpy(np.zeros((2, 3)), [[0, 0, 0], [angle, 0, 0]])
    row = codec(*DROID).encode_trajectory(poses, [0.0])[0]
    np.testing.assert_allclose(row[3:9], [np.cos(angle), 0, np.sin(angle), 0, 1, 0], atol=1e-15)


def test_a_robot_that_stands_still_gives_identity_rows_whatever_its_pose():
    poses = Poses.from_rpy(np.tile([0.3, 0.2, 0.6], (4, 1)), np.tile([3.1, 0.2, -1.0], (4, 1)))
    rows = codec(*DROID).encode_trajectory(poses, np.ones(3))
    np.testing.assert_allclose(rows, np.tile([0, 0, 0, 1, 0, 0, 0, 1, 0, 0], (3, 1)), atol=1e-15)


def test_a_droid_pose_state_is_the_position_the_turned_orientation_and_the_open_fraction():
    pose = Poses.from_rpy([0.3, 0.1, 0.5], [np.pi, 0, 0])
    row = codec(*DROID).encode_state(pose, 1.0)
    np.testing.assert_allclose(row, [0.3, 0.1, 0.5, 0, -1, 0, -1, 0, 0, 0], atol=1e-12)


def test_the_anchored_space_of_droid_is_not_turned_and_counts_from_the_first_pose():
    poses = Poses(np.array([[0.0, 0, 0], [0.01, 0, 0], [0.03, 0, 0]]), np.tile(np.eye(3), (3, 1, 1)))
    rows = codec('droid_lerobot', 'ee_delta_anchored', 'none').encode_trajectory(poses, [0.0, 1.0])
    np.testing.assert_allclose(rows[:, 0], [0.01, 0.03])
    np.testing.assert_array_equal(rows[:, 9], [1, 0])


def test_one_chunk_framewise_is_another_chunk_anchored_of_the_same_motion():
    poses, gripper = path_of(17), np.linspace(0, 1, 16)
    for space in ('ee_delta', 'ee_delta_anchored'):
        of = codec('droid_lerobot', space, 'none')
        assert_same(of.decode(of.encode_trajectory(poses, gripper), poses[0]).poses, poses[1:])


def test_a_trajectory_in_two_chunks_is_the_trajectory_in_one():
    poses, of = path_of(33), codec(*DROID)
    rows = of.encode_trajectory(poses, np.zeros(32))
    first = of.decode(rows[:16], poses[0])
    second = of.decode(rows[16:], first.poses[-1])
    assert_same(second.poses, poses[17:])


def test_rows_do_not_depend_on_where_the_base_of_the_robot_stands():
    poses, moved = path_of(9), Poses.from_rpy([1.0, -2.0, 0.3], [0.2, -0.1, 2.0])
    here = codec(*DROID).encode_trajectory(poses, np.zeros(8))
    there = codec(*DROID).encode_trajectory(compose(moved, poses), np.zeros(8))
    np.testing.assert_allclose(here, there, atol=1e-14)


def test_each_of_two_arms_is_coded_as_if_alone():
    both, single = codec('robomind-franka-dual', 'ee_delta', 'none'), codec('robomind-franka', 'ee_delta', 'none')
    poses, gripper = path_of(6, 2), np.random.default_rng(0).uniform(size=(5, 2))
    rows = both.encode_trajectory(poses, gripper)
    for arm in range(2):
        alone = Poses(poses.position[:, arm], poses.rotation[:, arm])
        expected = single.encode_trajectory(alone, gripper[:, arm])
        np.testing.assert_allclose(rows[:, 10 * arm : 10 * arm + 10], expected, atol=1e-14)


def test_vehicle_translations_are_scaled_in_rows_only():
    of = codec('av', 'camera_delta', 'none')
    poses = Poses(np.array([[0.0, 0, 0], [0, 0, 2.0]]), np.tile(np.eye(3), (2, 1, 1)))
    assert of.encode_trajectory(poses)[0, 2] == pytest.approx(2.7)
    assert_same(of.decode(of.encode_trajectory(poses), poses[0]).poses, poses[1:])


def test_predicted_rotations_that_are_not_exact_become_rotations():
    rows = codec(*DROID).encode_trajectory(path_of(33), np.zeros(32))
    noisy = rows + np.random.default_rng(0).normal(scale=0.02, size=rows.shape)
    rotation = codec(*DROID).decode(noisy, path_of(33)[0]).poses.rotation
    np.testing.assert_allclose(rotation @ np.swapaxes(rotation, -1, -2), np.tile(np.eye(3), (32, 1, 1)), atol=1e-12)


def test_a_row_whose_rotation_is_degenerate_is_named():
    rows = codec(*DROID).encode_trajectory(path_of(5), np.zeros(4))
    rows[2, 3:9] = 0
    with pytest.raises(InvalidInput, match=r'rot6d\[2, 0\]: determines no rotation'):
        codec(*DROID).decode(rows, path_of(5)[0])


@pytest.mark.parametrize('name', [n for n, s in POSED if s == 'ee_delta' and n not in ('fractal', 'umi')])
def test_both_ends_of_a_gripper_are_inverted_in_rows_and_back(name):
    opened, closed = 0.0, 1.0
    of = codec(name, 'ee_delta', 'none')
    bodies, grippers = len(of.space.frames), len(of.space.of_kind(Kind.GRIPPER))
    poses = path_of(3) if bodies == 1 else path_of(3, bodies)
    given_ends = np.array([opened, closed]) if grippers == 1 else np.repeat([[opened], [closed]], grippers, axis=1)
    rows = of.encode_trajectory(poses, given_ends)
    in_rows = np.hstack([rows[:, segment.channels] for segment in of.space.of_kind(Kind.GRIPPER)])
    np.testing.assert_array_equal(in_rows, np.repeat([[1.0], [0.0]], grippers, axis=1))
    np.testing.assert_array_equal(of.decode(rows, poses[0]).gripper, given_ends)


@pytest.mark.parametrize(
    ('name', 'convention'), [('umi', GripperConvention.WIDTH), ('fractal', GripperConvention.AS_RECORDED)]
)
def test_widths_and_grippers_of_unpublished_polarity_pass_unchanged(name, convention):
    of = codec(name, 'ee_delta', 'none')
    assert of.space.gripper is convention
    rows = of.encode_trajectory(path_of(3), [0.01, 0.07])
    np.testing.assert_array_equal(rows[:, 9], [0.01, 0.07])
    np.testing.assert_array_equal(of.decode(rows, path_of(3)[0]).gripper, [0.01, 0.07])


@pytest.mark.parametrize(
    ('poses', 'gripper'),
    [(path_of(4), np.zeros(4)), (path_of(4), None), (path_of(4), np.zeros((3, 1))), (path_of(4, 2), np.zeros(3))],
    ids=['as many grippers as poses', 'no gripper', 'grippers in a column', 'two arms for one'],
)
def test_a_trajectory_of_another_shape_is_refused(poses, gripper):
    with pytest.raises(InvalidInput, match='gripper: has the wrong shape'):
        codec(*DROID).encode_trajectory(poses, gripper)


def test_a_gripper_for_a_camera_is_refused():
    with pytest.raises(InvalidInput, match='gripper: has the wrong shape'):
        codec('av', 'camera_delta', 'none').encode_trajectory(path_of(3), np.zeros(2))


def test_one_pose_for_two_arms_is_refused():
    of = codec('robomind-franka-dual', 'ee_delta', 'none')
    with pytest.raises(InvalidInput, match='poses: has the wrong shape'):
        of.decode(of.encode_trajectory(path_of(3, 2), np.zeros((2, 2))), Poses.identity((3,)))


@pytest.mark.parametrize('shape', [(10,), (2, 2, 10), (3, 8), (3, 64)])
def test_rows_that_are_no_chunk_of_this_space_are_refused(shape):
    with pytest.raises(InvalidInput):
        codec(*DROID).decode(np.ones(shape), Poses.identity())


def test_a_state_row_is_refused_where_training_had_none():
    with pytest.raises(InvalidInput, match='put no measured state before the actions'):
        codec('umi', 'ee_delta', 'none').encode_state(Poses.identity(), 0.05)
    with pytest.raises(InvalidInput, match='put no measured state before the actions'):
        codec('robotwin', 'joint_position', 'none').encode_state(np.zeros(12), np.zeros(2))


# Building


@pytest.mark.parametrize(('entry', 'space'), SPACES)
def test_only_what_is_public_gets_more_than_segments(entry, space):
    of = codec(entry, space, 'none')
    if space == 'joint_position':
        assert isinstance(of, JointCodec)
    else:
        assert isinstance(of, PoseCodec) == ((entry.name, space) in [*POSED, *GEAR])


@pytest.mark.parametrize('space', ['', 'joint_pos', 'midtrain', 'ee_pose', 'ee_pose_delta', 'EE_DELTA', 'native'])
def test_no_action_space_is_guessed(space):
    with pytest.raises(InvalidInput, match='is unknown for droid_lerobot'):
        codec('droid_lerobot', space, 'none')


def test_a_method_without_published_statistics_is_refused_with_the_way_out():
    with pytest.raises(InvalidInput, match=r'hand_pose, hand_delta: has no published statistics.*a normalizer'):
        codec('hand_pose', 'hand_delta', 'quantile')
    with pytest.raises(InvalidInput, match='droid_lerobot, joint_position: has no published statistics'):
        codec('droid_lerobot', 'joint_position', 'quantile')


def test_own_statistics_of_another_width_are_refused():
    own = normalizer('quantile', published_statistics('agibot', Method.QUANTILE))
    with pytest.raises(InvalidInput, match='normalizer: has another width, got 29, allowed: 10'):
        codec('droid_lerobot', 'ee_delta', own)


def test_own_statistics_are_used_as_they_are():
    own = normalizer('quantile', published_statistics('droid', Method.QUANTILE), clamp=True)
    of = codec(embodiment('droid_lerobot'), 'ee_delta', own)
    assert np.abs(of.encode_trajectory(path_of(9), np.zeros(8))).max() <= 1


def test_a_single_umi_gripper_reads_the_statistics_of_the_right_arm():
    both = published_statistics('umi', Method.QUANTILE).need('q99')[0]
    np.testing.assert_allclose(codec('umi', 'ee_delta', 'quantile').normalizer.inverse(np.ones(10)), both[:10])
