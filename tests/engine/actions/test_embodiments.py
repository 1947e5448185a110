"""The table of embodiments: ids and widths as published, layouts without gaps, unknown names explained."""

from __future__ import annotations

import pytest

from engine.actions import EMBODIMENTS, FrameConvention, GripperConvention, Kind, embodiment
from engine.errors import InvalidInput

PUBLISHED = {
    'no_action': (0, {}),
    'av': (1, {'camera_delta': 9}),
    'camera_pose': (2, {'camera_delta': 9}),
    'hand_pose': (3, {'hand_delta': 57}),
    'pusht': (4, {'native': 2}),
    'libero': (5, {'control_delta': 10, 'control_delta_axis_angle': 7, 'control_delta_matrix': 13}),
    'umi': (6, {'ee_delta': 10}),
    'bridge_orig_lerobot': (7, {'ee_delta': 10}),
    'droid_lerobot': (8, {'joint_position': 8, 'ee_delta': 10, 'ee_delta_anchored': 10}),
    'robomind-franka': (8, {'ee_delta': 10}),
    'embodiment_b': (9, {'native': 30}),
    'robomind-franka-dual': (12, {'ee_delta': 20}),
    'robomind-ur': (13, {'ee_delta': 10}),
    'agibotworld': (15, {'ee_delta': 29}),
    'embodiment_c_gripper': (15, {'ee_delta': 29}),
    'embodiment_c_gripper_ext': (15, {'ee_delta': 29}),
    'xdof_yam': (16, {'ee_delta': 20}),
    'molmoact2_yam': (16, {'ee_delta': 20}),
    'abc_yam': (16, {'ee_delta': 20}),
    'robotwin': (17, {'joint_position': 14}),
    'fractal': (20, {'ee_delta': 10}),
    'drawanything': (21, {'native': 3}),
    'behavior1k_lerobot': (22, {'native': 23}),
    'maniparena': (23, {'native': 20}),
}
SPACES = [pytest.param(e, space, id=f'{e.name}-{space.name}') for e in EMBODIMENTS for space in e.spaces]
SIZES = {Kind.TRANSLATION: 3, Kind.ROT6D: 6, Kind.AXIS_ANGLE: 3, Kind.MATRIX: 9, Kind.FINGERTIPS: 15}


@pytest.mark.parametrize(('name', 'expected'), PUBLISHED.items())
def test_domain_ids_and_widths_are_the_published_ones(name, expected):
    entry = embodiment(name)
    assert (entry.domain_id, dict(entry.raw_dims)) == expected


def test_no_domain_is_missing_and_none_is_made_up():
    assert [entry.name for entry in EMBODIMENTS] == list(PUBLISHED)


@pytest.mark.parametrize(('entry', 'space'), SPACES)
def test_a_layout_covers_its_row_without_gaps_under_names_of_their_own(entry, space):
    covered = [channel for segment in space.segments for channel in range(segment.start, segment.start + segment.size)]
    assert covered == list(range(space.dim))
    assert len({segment.name for segment in space.segments}) == len(space.segments)
    assert space.dim <= 64


@pytest.mark.parametrize(('entry', 'space'), SPACES)
def test_segments_have_the_size_of_what_they_hold(entry, space):
    for segment in space.segments:
        assert segment.size == SIZES.get(segment.kind, segment.size)


@pytest.mark.parametrize(('entry', 'space'), SPACES)
def test_a_gripper_convention_is_given_where_there_is_a_gripper_and_only_there(entry, space):
    assert bool(space.of_kind(Kind.GRIPPER)) == (space.gripper is not GripperConvention.NONE)


@pytest.mark.parametrize(('entry', 'space'), SPACES)
def test_every_rotation_of_a_moving_body_follows_its_translation(entry, space):
    for rotation in space.of_kind(Kind.ROT6D):
        before = next(s for s in space.segments if s.channels.stop == rotation.start)
        assert before.kind is Kind.TRANSLATION


@pytest.mark.parametrize(
    ('legacy', 'current'),
    [
        ('galbot', 'embodiment_b'),
        ('agibot_gear_gripper', 'embodiment_c_gripper'),
        ('agibot_gear_gripper_ext', 'embodiment_c_gripper_ext'),
    ],
)
def test_legacy_names_lead_to_the_current_domain(legacy, current):
    assert embodiment(legacy) is embodiment(current)


def test_case_and_blanks_do_not_matter():
    assert embodiment(' DROID_lerobot\n') is embodiment('droid_lerobot')


def test_an_unknown_name_is_refused_with_the_closest_ones():
    with pytest.raises(InvalidInput, match=r"'droid_lerobto'.*did you mean droid_lerobot") as caught:
        embodiment('droid_lerobto')
    assert 'bridge_orig_lerobot' in str(caught.value)


def test_a_name_like_no_other_is_refused_with_all_names():
    with pytest.raises(InvalidInput, match='allowed: abc_yam') as caught:
        embodiment('§§§')
    assert 'did you mean' not in str(caught.value)


@pytest.mark.parametrize(
    ('elsewhere', 'here'),
    [
        ('joint_pos', 'joint_position'),
        ('midtrain', 'ee_delta'),
        ('ee_pose', 'ee_delta'),
        ('ee_pose_delta', 'ee_delta_anchored'),
    ],
)
def test_names_that_mean_several_things_elsewhere_are_refused_and_explained(elsewhere, here):
    with pytest.raises(InvalidInput, match=f'-> .* is .*{here}'):
        embodiment('droid_lerobot').space(elsewhere)


def test_an_embodiment_without_actions_says_so():
    with pytest.raises(InvalidInput, match='it has no actions'):
        embodiment('no_action').space('ee_delta')


def test_the_two_delta_spaces_of_droid_differ_in_anchor_and_frame():
    framewise, anchored = (embodiment('droid_lerobot').space(name) for name in ('ee_delta', 'ee_delta_anchored'))
    assert framewise.convention is FrameConvention.FRAMEWISE
    assert anchored.convention is FrameConvention.ANCHORED
    assert framewise.frames[0].rotation[0, 1] == -1
    assert anchored.frames[0].rotation[0, 0] == 1


def test_agibot_reads_head_then_right_then_left():
    names = [(segment.name, segment.start) for segment in embodiment('agibotworld').layout('ee_delta')]
    assert names == [
        ('head_translation', 0),
        ('head_rotation', 3),
        ('right_translation', 9),
        ('right_rotation', 12),
        ('right_gripper', 18),
        ('left_translation', 19),
        ('left_rotation', 22),
        ('left_gripper', 28),
    ]


def test_hands_read_camera_then_right_then_left():
    starts = {segment.name: segment.start for segment in embodiment('hand_pose').layout('hand_delta')}
    assert list(starts.values()) == [0, 3, 9, 12, 18, 33, 36, 42]
    assert list(starts)[4] == 'right_tips'


def test_two_arms_read_left_then_right():
    for name in ('robomind-franka-dual', 'xdof_yam'):
        assert [s.name for s in embodiment(name).layout('ee_delta')][::3] == ['left_translation', 'right_translation']


def test_rates_views_and_chunks_are_those_of_training():
    assert (embodiment('droid_lerobot').fps, embodiment('droid_lerobot').viewpoint) == (15, 'concat_view')
    assert (embodiment('av').fps, embodiment('av').chunk) == (10, 60)
    assert (embodiment('robomind-ur').viewpoint, embodiment('umi').viewpoint) == ('third_person_view', 'wrist_view')
    assert embodiment('bridge_orig_lerobot').chunk == 16
