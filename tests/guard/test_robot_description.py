"""File and robot description together: the more restrictive figure wins, and every difference is said."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cosmos3_ros.guard.figures import LimitsError
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guard.robot_description import limits_with_description

PANDA = load_limits('panda')
HALF = np.pi / 2
# Franka's own figures, as in the URDF of its arm: lower, upper, speed; and where each joint sits.
FIGURES = [
    (-2.8973, 2.8973, 2.175, (0, 0, 0.333), 0),
    (-1.7628, 1.7628, 2.175, (0, 0, 0), -HALF),
    (-2.8973, 2.8973, 2.175, (0, -0.316, 0), HALF),
    (-3.0718, -0.0698, 2.175, (0.0825, 0, 0), HALF),
    (-2.8973, 2.8973, 2.61, (-0.0825, 0.384, 0), -HALF),
    (-0.0175, 3.7525, 2.61, (0, 0, 0), HALF),
    (-2.8973, 2.8973, 2.61, (0.088, 0, 0), HALF),
]
SPHERE = '<collision><geometry><sphere radius="0.05"/></geometry></collision>'


def origin(xyz=(0, 0, 0), rpy=(0, 0, 0)):
    return f'<origin xyz="{" ".join(map(str, xyz))}" rpy="{" ".join(map(str, rpy))}"/>'


def fixed(parent, child, xyz=(0, 0, 0), yaw=0.0):
    ends = f'<parent link="panda_{parent}"/><child link="panda_{child}"/>'
    return f'<joint name="{child}_fixed" type="fixed">{ends}{origin(xyz, (0, 0, yaw))}</joint>'


def urdf(figures=FIGURES, shapes=None, more='', acceleration=''):
    shapes = shapes or {}
    names = [*(f'link{i}' for i in range(9)), 'hand', 'hand_tcp']
    links = ''.join(f'<link name="panda_{name}">{shapes.get(name, "")}</link>' for name in names)
    joints = ''.join(
        f'<joint name="panda_joint{i}" type="revolute"><parent link="panda_link{i - 1}"/><child link="panda_link{i}"/>'
        f'{origin(xyz, (roll, 0, 0))}<axis xyz="0 0 1"/>'
        f'<limit lower="{lower}" upper="{upper}" velocity="{speed}" effort="87" {acceleration}/></joint>'
        for i, (lower, upper, speed, xyz, roll) in enumerate(figures, start=1)
    )
    ends = fixed('link7', 'link8', (0, 0, 0.107)) + fixed('link8', 'hand', yaw=-np.pi / 4)
    return f'<robot name="panda">{links}{joints}{ends}{fixed("hand", "hand_tcp", (0, 0, 0.1034))}{more}</robot>'


def changed(joint, **changes):
    names = ('lower', 'upper', 'speed', 'xyz', 'roll')
    figures = list(FIGURES)
    figures[joint] = tuple(changes.get(name, value) for name, value in zip(names, figures[joint], strict=True))
    return figures


def faults(text, limits=PANDA, **options):
    with pytest.raises(LimitsError) as error:
        limits_with_description(limits, text, **options)
    return {problem.where: str(problem) for problem in error.value.problems}


def test_the_file_of_the_panda_agrees_with_its_makers_description():
    combined = limits_with_description(PANDA, urdf())
    assert combined.differences == ()
    for name in ('lower', 'upper', 'velocity'):
        np.testing.assert_array_equal(getattr(combined, name), getattr(PANDA, name))


def test_the_more_restrictive_figure_wins_whichever_side_it_is_on():
    combined = limits_with_description(PANDA, urdf(changed(1, upper=1.5, lower=-2.0, speed=1.0)))
    assert (combined.upper[1], combined.lower[1], combined.velocity[1]) == (1.5, -1.7628, 1.0)
    assert combined.differences == (
        'panda_joint2: lower is -1.7628 rad in the robot file and -2 rad in the description; -1.7628 rad is used',
        'panda_joint2: upper is 1.7628 rad in the robot file and 1.5 rad in the description; 1.5 rad is used',
        'panda_joint2: velocity is 2.175 rad/s in the robot file and 1 rad/s in the description; 1 rad/s is used',
    )


def test_a_reduced_speed_stays_reduced():
    combined = limits_with_description(PANDA.scaled(0.5), urdf())
    assert combined.differences == ()
    np.testing.assert_allclose(combined.velocity, PANDA.velocity / 2)


def test_accelerations_count_where_the_description_states_them():
    combined = limits_with_description(PANDA, urdf(acceleration='acceleration="12"'))
    np.testing.assert_array_equal(combined.acceleration, np.minimum(PANDA.acceleration, 12.0))


def test_a_description_of_another_arm_is_refused():
    text = faults(urdf(changed(3, xyz=(0.15, 0, 0))))['kinematics, panda_hand_tcp']
    assert 'different places' in text
    slightly = limits_with_description(PANDA, urdf(changed(3, xyz=(0.0845, 0, 0))))
    assert 'panda_hand_tcp up to' in slightly.differences[0]


def test_what_is_stated_on_neither_side_is_refused_by_name():
    found = faults(urdf(), None, tip='panda_hand_tcp')
    assert len(found) == 7 + 1  # and the margin, which no description states
    assert 'neither in a robot file nor in the description' in found['joint panda_joint4']
    complete = urdf(acceleration='acceleration="10" jerk="1000"')
    assert set(faults(complete, None, tip='panda_hand_tcp')) == {'margin'}
    limits = limits_with_description(None, complete, tip='panda_hand_tcp', margin=0.02)
    assert limits.joint_names == PANDA.joint_names
    np.testing.assert_array_equal(limits.velocity, PANDA.velocity)


def test_kinematics_that_the_file_lacks_are_those_of_the_description():
    bare = dataclasses.replace(PANDA, chain=None, capsules=None)
    q = np.random.default_rng(0).uniform(PANDA.lower, PANDA.upper, (50, 7))
    combined = limits_with_description(bare, urdf(), tip='panda_hand_tcp')
    np.testing.assert_allclose(combined.body.tool_position(q), PANDA.body.tool_position(q), atol=1e-9)


@pytest.mark.parametrize('axis', [(0, 0, -1), (0, 1, 0), (1, 0, 0), (0.6, 0, 0.8)])
def test_a_joint_may_turn_about_any_axis(axis):
    bare = dataclasses.replace(PANDA, chain=None, capsules=None)
    text = urdf().replace('<axis xyz="0 0 1"/>', f'<axis xyz="{" ".join(map(str, axis))}"/>', 1)
    body = limits_with_description(bare, text, tip='panda_hand_tcp').body
    q = np.zeros((2, 7))
    q[:, 3], q[:, 5], q[1, 0] = -1.5, 1.8, 0.7
    before, after = body.tool_position(q) - [0, 0, 0.333]
    along = np.array(axis) / np.linalg.norm(axis)
    expected = Rotation.from_rotvec(0.7 * along).apply(before)
    np.testing.assert_allclose(after, expected, atol=1e-9)


def test_cylinders_and_spheres_of_the_description_are_a_body():
    tube = (
        '<collision><origin xyz="0 0 -0.145"/><geometry><cylinder radius="0.06" length="0.15"/></geometry></collision>'
    )
    box = '<collision><geometry><box size="1 1 1"/></geometry></collision>'
    bare = dataclasses.replace(PANDA, chain=None, capsules=None)
    text = urdf(shapes={'link0': SPHERE, 'link3': tube, 'hand': SPHERE, 'link5': box})
    combined = limits_with_description(bare, text, tip='panda_hand_tcp')
    assert [shape.link for shape in combined.capsules.shapes] == ['panda_link0', 'panda_link3', 'panda_hand']
    np.testing.assert_allclose(combined.capsules.shapes[1].start, [0, 0, -0.22])
    assert any('panda_link5' in text for text in combined.differences)
    folded = np.array([[0, 1.7, 0, -2.9, 0, 2.0, 0]])
    assert combined.body.clearances(folded)[0] < 0.4


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('', 'not well-formed'),
        ('/tmp/panda.urdf', 'not its path'),
        ('<robot', 'not well-formed'),
        ('<sdf/>', 'is no URDF'),
        ('<!DOCTYPE a [<!ENTITY b "c">]><robot name="x"/>', 'entities'),
        ('<robot xmlns:xacro="http://www.ros.org/wiki/xacro"><xacro:arm/></robot>', 'xacro'),
        ('<robot>' + ' ' * 8_000_001 + '</robot>', 'too long'),
        ('<robot>' + '<a>' * 100_000 + '</a>' * 100_000 + '</robot>', 'panda_joint1'),
    ],
)
def test_a_text_that_is_no_description_is_refused_and_nothing_worse(text, says):
    with pytest.raises(LimitsError, match=says):
        limits_with_description(PANDA, text)


def test_all_faults_of_a_description_are_listed_at_once():
    text = urdf(changed(2, lower='a', speed=-1)).replace('link="panda_link5"', 'link="nowhere"')
    found = faults(text.replace('xyz="0 0 0.333"', 'xyz="0 0"'))
    assert {
        'joint panda_joint1, origin xyz',
        'joint panda_joint3, limit lower',
        'joint panda_joint3, limit velocity',
        'joint panda_joint5, child',
        'joint panda_joint6, parent',
    } <= set(found)


def test_a_joint_that_the_description_lacks_is_named():
    found = faults(urdf().replace('panda_joint7', 'wrist'))
    assert 'not in the description' in found['joint panda_joint7']


def test_links_in_a_ring_do_not_hang_the_guard():
    ring = fixed('hand_tcp', 'link0')
    limits_with_description(PANDA, urdf(more=ring))
