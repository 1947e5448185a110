"""Limits come from a file that leaves nothing out; a wrong file is refused with all of its faults."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import yaml

from cosmos3_ros.guard.limits import LimitsError, load_limits, parse_limits
from engine.resources import find_config


@pytest.fixture
def document():
    return yaml.safe_load(find_config('robots', 'panda').read_text())


def test_the_panda_has_the_limits_its_maker_prints(panda):
    assert panda.joint_names == tuple(f'panda_joint{i}' for i in range(1, 8))
    np.testing.assert_array_equal(panda.upper, [2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
    np.testing.assert_array_equal(panda.lower, [-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
    np.testing.assert_array_equal(panda.velocity, [2.175] * 4 + [2.61] * 3)
    np.testing.assert_array_equal(panda.acceleration, [15, 7.5, 10, 12.5, 15, 20, 20])
    np.testing.assert_array_equal(panda.jerk, [7500, 3750, 5000, 6250, 7500, 10000, 10000])
    assert panda.cartesian['translation'].velocity == 1.7


def test_every_quantity_names_its_source(panda):
    assert [line.split(':')[0] for line in panda.source.splitlines()] == [
        'position',
        'velocity',
        'acceleration',
        'jerk',
        'cartesian',
        'kinematics',
        'capsules',
    ]


def test_limits_cannot_be_changed_in_place(panda):
    with pytest.raises(ValueError, match='read-only'):
        panda.velocity[0] = 100.0


@pytest.mark.parametrize('key', ['joints', 'position', 'velocity', 'acceleration', 'jerk', 'name', 'schema'])
def test_a_missing_limit_has_no_default(document, key):
    del document[key]
    with pytest.raises(LimitsError) as error:
        parse_limits(document, where='robot.yaml')
    assert any(problem.where.startswith(key) for problem in error.value.problems)


@pytest.mark.parametrize('key', ['lower', 'upper', 'margin', 'unit', 'source'])
def test_a_missing_part_of_the_position_block_is_a_fault(document, key):
    del document['position'][key]
    with pytest.raises(LimitsError) as error:
        parse_limits(document, where='robot.yaml')
    assert [problem.where for problem in error.value.problems] == [f'position.{key}']


def test_all_faults_are_listed_at_once(document):
    document['velocity']['limit'][2] = -1.0
    document['acceleration']['unit'] = 'deg/s^2'
    document['jerk']['limit'].pop()
    document['position']['uper'] = 1
    with pytest.raises(LimitsError) as error:
        parse_limits(document, where='robot.yaml')
    assert {problem.where for problem in error.value.problems} == {
        'velocity.limit[2]',
        'acceleration.unit',
        'jerk.limit',
        'position',
    }


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), 0.0, True, '2.1', None])
def test_a_speed_that_is_no_positive_number_is_a_fault(document, bad):
    document['velocity']['limit'][0] = bad
    with pytest.raises(LimitsError, match=r'velocity\.limit\[0\]'):
        parse_limits(document, where='robot.yaml')


def test_a_range_without_room_is_a_fault(document):
    document['position']['lower'][3] = document['position']['upper'][3]
    with pytest.raises(LimitsError, match='panda_joint4'):
        parse_limits(document, where='robot.yaml')


def test_a_joint_named_twice_is_a_fault(document):
    document['joints'][1] = document['joints'][0]
    with pytest.raises(LimitsError, match='named twice'):
        parse_limits(document, where='robot.yaml')


@pytest.mark.parametrize('content', ['', '[1, 2]', 'joints: {a: 1}', 'a: [', '\x00'])
def test_a_file_that_is_something_else_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / 'robot.yaml'
    path.write_text(content)
    with pytest.raises(LimitsError, match=r'robot\.yaml'):
        load_limits(path)


def test_reduced_speed_scales_velocity_acceleration_and_jerk_and_leaves_positions(panda):
    slow = load_limits('panda', scale=0.25)
    np.testing.assert_allclose(slow.velocity, panda.velocity / 4)
    np.testing.assert_allclose(slow.acceleration, panda.acceleration / 4)
    np.testing.assert_allclose(slow.jerk, panda.jerk / 4)
    np.testing.assert_array_equal(slow.upper, panda.upper)
    assert slow.scale == 0.25


@pytest.mark.parametrize('scale', [0.0, -0.5, 1.01, float('nan'), float('inf')])
def test_a_scale_outside_zero_to_one_is_refused(scale):
    with pytest.raises(LimitsError, match='scale'):
        load_limits('panda', scale=scale)


def test_limits_can_be_put_into_another_order_of_joints(panda):
    names = panda.joint_names[::-1]
    turned = panda.for_joints(names)
    assert turned.joint_names == names
    np.testing.assert_array_equal(turned.lower, panda.lower[::-1])
    np.testing.assert_array_equal(turned.torque, panda.torque[::-1])


def test_asking_for_other_joints_lists_every_difference(panda):
    names = ['elbow', *panda.joint_names[2:], panda.joint_names[3]]
    with pytest.raises(LimitsError) as error:
        panda.for_joints(names)
    assert [p.where for p in error.value.problems] == ['elbow', 'panda_joint1', 'panda_joint2', 'panda_joint4']


def test_reading_does_not_change_the_document(document):
    before = copy.deepcopy(document)
    parse_limits(document, where='robot.yaml')
    assert document == before


# Kinematics, body and workspace


WORKSPACE = {'unit': 'm', 'source': 'the table', 'lower': [0.1, -0.4, 0.02], 'upper': [0.8, 0.4, 0.7]}


def places_of(document):
    with pytest.raises(LimitsError) as error:
        parse_limits(document, where='robot.yaml')
    return [problem.where for problem in error.value.problems]


@pytest.mark.parametrize('name', ['panda', 'fr3', 'ur5e'])
def test_the_shipped_robots_can_be_read_and_say_what_they_leave_out(name):
    limits = load_limits(name)
    assert limits.name == name
    assert limits.body is not None
    assert any('workspace' in sentence for sentence in limits.unchecked)


def test_the_template_is_refused_with_everything_that_is_missing():
    with pytest.raises(LimitsError) as error:
        load_limits('generic')
    assert {problem.where for problem in error.value.problems} == {
        'name',
        *(f'position.{key}' for key in ('source', 'lower', 'upper', 'margin')),
        *(f'{block}.{key}' for block in ('velocity', 'acceleration', 'jerk') for key in ('source', 'limit')),
    }


def test_what_a_file_lacks_is_not_checked_and_said(document):
    document['workspace'] = copy.deepcopy(WORKSPACE)
    assert parse_limits(document, where='robot.yaml').unchecked == ()
    for key in ('kinematics', 'capsules', 'workspace', 'cartesian'):
        del document[key]
    bare = parse_limits(document, where='robot.yaml')
    assert bare.body is None
    assert bare.unchecked == (
        'The robot file has no kinematics: speed and place of the tool are not checked.',
        'The robot file has no capsules: self-collision is not checked.',
    )


def test_the_fr3_has_the_limits_its_maker_prints():
    fr3 = load_limits('fr3')
    np.testing.assert_array_equal(fr3.velocity, [2.62] * 4 + [5.26, 4.18, 5.26])
    for joint, position, wanted in ((1, 1.7, min(2.62, -0.2 + np.sqrt(5.17 * (1.7918 - 1.7)))), (4, 0.0, 5.26)):
        q = np.zeros(7)
        q[joint] = position
        assert fr3.velocity_bounds(q)[1][joint] == pytest.approx(wanted)
    lowest, _ = fr3.velocity_bounds(np.full(7, 0.6))
    assert lowest[5] == pytest.approx(0.35 - np.sqrt(11.0 * (0.6 - 0.54092)))


def test_reduced_speed_scales_the_limits_near_the_ends_too():
    fr3, slow = load_limits('fr3'), load_limits('fr3', scale=0.3)
    q = np.random.default_rng(0).uniform(fr3.lower, fr3.upper, (100, 7))
    for whole, part in zip(fr3.velocity_bounds(q), slow.velocity_bounds(q), strict=True):
        np.testing.assert_allclose(part, 0.3 * whole, atol=1e-12)


def test_every_fault_of_the_kinematics_is_listed(document):
    chain = document['kinematics']
    chain['unit'] = 'm'
    chain['joints'][2]['xyz'] = [0.0, 1.0]
    chain['joints'][3]['joint'] = 'elbow'
    chain['frames'][1]['parent'] = 'nowhere'
    chain['tool'] = 'panda_finger'
    assert places_of(document)[:6] == [
        'kinematics.unit',
        'kinematics.joints[2].xyz',
        'kinematics.joints[3].joint',
        'kinematics.joints',
        'kinematics.frames[1].parent',
        'kinematics.tool',
    ]


def test_a_tool_that_not_all_joints_move_is_refused(document):
    document['kinematics']['tool'] = 'panda_link5'
    assert places_of(document)[0] == 'kinematics.tool'


def test_every_fault_of_the_body_is_listed(document):
    capsules = document['capsules']
    capsules['shapes'][0]['radius'] = 0.0
    capsules['shapes'][1]['link'] = 'link1'
    capsules['shapes'][2]['to'][1] = float('nan')
    capsules['never_checked'][0] = ['panda_link0']
    capsules['clearance'] = -0.01
    assert places_of(document) == [
        'capsules.clearance',
        'capsules.shapes[0].radius',
        'capsules.shapes[1].link',
        'capsules.shapes[2].to[1]',
        'capsules.never_checked[0]',
        'capsules.never_checked[1]',  # link 1 has no shape any more
        'capsules.never_checked[7]',
    ]


def test_a_box_without_room_or_without_kinematics_is_refused(document):
    document['workspace'] = {**WORKSPACE, 'upper': [0.8, -0.5, 0.7]}
    assert places_of(document) == ['workspace']
    document['workspace'] = copy.deepcopy(WORKSPACE)
    del document['kinematics'], document['capsules']
    assert places_of(document) == ['workspace']


def test_limits_near_the_ends_must_be_complete(document):
    document['velocity']['near_ends'] = {'unit': {}, 'gain': [1.0] * 7, 'offset': [-1.0] * 7, 'lower': [0.0] * 6}
    found = places_of(document)
    assert {'velocity.near_ends.unit', 'velocity.near_ends.lower', 'velocity.near_ends.upper'} <= set(found)
    assert 'velocity.near_ends.offset[0]' in found
