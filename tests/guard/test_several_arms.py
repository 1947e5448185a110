"""Two arms on one base are each held to what they are alone, and kept clear of each other."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import yaml

from cosmos3_ros.guard.checks import Acceptance, Observed, SpliceContext, check_chunk
from cosmos3_ros.guard.chunk import Chunk
from cosmos3_ros.guard.figures import Workspace
from cosmos3_ros.guard.kinematics import frame_poses
from cosmos3_ros.guard.limits import LimitsError, load_limits, parse_limits
from cosmos3_ros.guard.motion import JointsState, instants
from cosmos3_ros.guard.options import CheckOptions
from cosmos3_ros.guard.reasons import Reason
from cosmos3_ros.guard.robot_description import limits_with_description
from cosmos3_ros.guard.several_arms import chain_through
from engine.resources import find_config

STEP = 66_666_667
H = STEP * 1e-9
T0 = 1_000_000_000_000
ONE = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])
HOME = np.concatenate([ONE, ONE])
PANDA = load_limits('panda')
PAIR = load_limits('panda_pair')
LEFT, RIGHT = PAIR.arms


@pytest.fixture
def document():
    return copy.deepcopy(yaml.safe_load(find_config('robots', 'panda_pair').read_text()))


def judge(way, limits=PAIR, start=HOME):
    """A motion from rest at `start` along `way` [14], and to rest again."""
    rows = start + np.asarray(way) * ((1 - np.cos(np.pi * np.arange(1, 33) / 32)) / 2)[:, None]
    context = SpliceContext(
        T0, T0 + 20_000_000, JointsState.at_rest(start), Observed(start, np.zeros(14)), None, epoch=3, last_sequence=5
    )
    chunk = Chunk(T0, 3, 6, STEP, limits.joint_names, rows, None)
    return check_chunk(chunk, limits, context, CheckOptions(start_jump_rad=0.2))


def towards_the_other(left, right):
    """The arms' first joints turned inwards by so much."""
    way = np.zeros(14)
    way[0], way[7] = -left, right
    return way


def test_a_pair_has_the_joints_of_both_arms_in_the_order_of_the_file():
    assert PAIR.joint_names == tuple(f'{side}_{name}' for side in ('left', 'right') for name in PANDA.joint_names)
    for key in ('lower', 'upper', 'velocity', 'acceleration', 'jerk'):
        np.testing.assert_array_equal(getattr(PAIR, key), np.tile(getattr(PANDA, key), 2))
    assert [arm.name for arm in PAIR.arms] == ['left', 'right']
    assert LEFT.chain.tool == 'left_panda_hand_tcp'
    assert LEFT.chain.base == RIGHT.chain.base == 'base'
    assert PANDA.arms == (PANDA,)


def test_each_arm_stands_where_the_file_puts_it():
    alone, _ = frame_poses(PANDA.chain, PANDA.joint_names, ONE[None], 'panda_hand_tcp')
    for arm, y in ((LEFT, 0.4), (RIGHT, -0.4)):
        place, _ = frame_poses(arm.chain, arm.joint_names, ONE[None], arm.chain.tool)
        np.testing.assert_allclose(place, alone + np.array([0.0, y, 0.0]), atol=1e-12)


def test_the_chain_through_both_arms_puts_every_frame_where_each_arm_puts_it():
    turned = dataclasses.replace(RIGHT, chain=tilted().arms[1].chain)
    through = chain_through(LEFT.chain, turned.chain)
    q = np.random.default_rng(0).uniform(PAIR.lower, PAIR.upper, (20, 14))
    for one in ('left_panda_hand', 'left_panda_link3', 'left_panda_link0', 'base'):
        for other in ('right_panda_hand_tcp', 'right_panda_link4', 'right_panda_link0'):
            found = relative(through, through, q, one, other)
            expected = relative(LEFT.chain, turned.chain, q, one, other)
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-12)


def relative(one_chain, other_chain, q, one, other):
    """Pose of one frame in another: origins [S, 3] and axes [S, 3, 3]."""
    origin, axes = frame_poses(one_chain, PAIR.joint_names, q, one)
    theirs, their_axes = frame_poses(other_chain, PAIR.joint_names, q, other)
    back = axes.swapaxes(1, 2)
    return (back @ (theirs - origin)[:, :, None])[:, :, 0], back @ their_axes


def tilted():
    document = yaml.safe_load(find_config('robots', 'panda_pair').read_text())
    document['arms']['mounted'][1] |= {'xyz': [0.3, -0.5, 0.2], 'rpy': [0.4, -0.3, 2.0]}
    return parse_limits(document, where='pair.yaml')


def distance_between_arms(positions):
    """Smallest distance between two capsules of different arms [S], m, by a search over points on their axes."""
    points = [[], []]
    for arm, found in zip((LEFT, RIGHT), points, strict=True):
        for shape in arm.capsules.shapes:
            origin, axes = frame_poses(arm.chain, PAIR.joint_names, positions, shape.link)
            local = np.linspace(shape.start, shape.end, 41).T
            found.append(origin[:, None] + (axes @ local).swapaxes(1, 2))
    radii = np.repeat([shape.radius for shape in LEFT.capsules.shapes], 41)
    left, right = (np.concatenate(found, axis=1) for found in points)
    apart = np.linalg.norm(left[:, :, None] - right[:, None], axis=3)
    return (apart - radii[:, None] - radii).min(axis=(1, 2))


def test_arms_that_would_meet_are_refused_and_both_links_are_named():
    refused = judge(towards_the_other(1.3, 1.3))
    assert refused.reason is Reason.SELF_COLLISION
    assert 'left_' in refused.joint
    assert 'right_' in refused.joint
    assert refused.limit == 0.02
    assert isinstance(judge(towards_the_other(1.3, 0.0)), Acceptance), 'with the other arm at home there is room'


def test_the_clearance_between_arms_is_what_a_search_finds():
    q = np.repeat(HOME[None], 8, axis=0)
    q[:, 0], q[:, 7] = -np.linspace(0.85, 1.05, 8), np.linspace(0.85, 1.05, 8)
    found = PAIR.body.clearances(q)
    assert (found < 0.13).all(), 'no two links of one arm are as near as that'
    np.testing.assert_allclose(found, distance_between_arms(q), atol=2e-3)


def test_an_arm_of_a_pair_is_held_to_what_it_is_alone():
    way = np.zeros(14)
    way[10] = 3.1  # the right elbow, too fast: 0.1 rad further than its speed allows in two seconds
    assert judge(way).joint == 'right_panda_joint4'
    document = yaml.safe_load(find_config('robots', 'panda_pair').read_text())
    box = {'arm': 'right', 'lower': [0.2, -0.7, 0.2], 'upper': [0.7, -0.1, 0.7]}
    document['workspaces'] = {'unit': 'm', 'source': 'measured', 'boxes': [box]}
    boxed = parse_limits(document, where='pair.yaml')
    assert isinstance(judge(towards_the_other(1.1, 0.0), boxed), Acceptance)
    refused = judge(towards_the_other(0.0, 1.1), boxed)
    assert (refused.reason, refused.joint) == (Reason.WORKSPACE, 'right_panda_hand_tcp')
    assert boxed.unchecked == ('left: The robot file has no workspace: the tool may go wherever the arm reaches.',)


def test_whatever_is_accepted_keeps_the_arms_clear_of_each_other():
    """Sampled at 1 kHz, with the tolerance that docs/guard.md states."""
    rng = np.random.default_rng(3)
    accepted, refused, closest = 0, 0, np.inf
    for _ in range(120):
        start = HOME + rng.normal(0, 0.2, 14)
        start[[0, 7]] += [-0.35, 0.35]
        if PAIR.body.know(start).margins.min() <= 0.0:
            continue
        verdict = judge(rng.normal(0, 0.35, 14), start=start)
        refused += getattr(verdict, 'reason', None) is Reason.SELF_COLLISION
        if isinstance(verdict, Acceptance):
            accepted += 1
            motion = verdict.motion
            positions = motion.sample(instants(motion.start_ns, motion.end_ns, 1_000_000)).positions
            between = PAIR.body.clearances(positions).min()
            assert between >= PANDA.capsules.clearance - 0.002
            closest = min(closest, between)
    assert accepted > 20
    assert refused > 5
    assert closest < 0.1


def test_joints_in_another_order_are_the_same_robot():
    order = np.random.default_rng(1).permutation(14)
    shuffled = PAIR.for_joints([PAIR.joint_names[i] for i in order])
    q = np.random.default_rng(2).uniform(PAIR.lower, PAIR.upper, (10, 14))
    np.testing.assert_allclose(shuffled.body.clearances(q[:, order]), PAIR.body.clearances(q), atol=1e-12)


def test_a_pair_at_reduced_speed_has_slower_tools():
    slow = PAIR.scaled(0.25)
    assert [arm.cartesian['translation'].velocity for arm in slow.arms] == [pytest.approx(1.7 / 4)] * 2
    np.testing.assert_allclose(slow.velocity, PAIR.velocity / 4)


def test_speeds_that_shrink_near_the_ends_stay_with_the_arm_they_belong_to(document):
    document['arms']['mounted'][1]['robot'] = 'fr3'
    mixed, fr3 = parse_limits(document, where='pair.yaml'), load_limits('fr3')
    assert mixed.joint_names[7] == 'right_fr3_joint1'
    q = np.concatenate([PANDA.upper, fr3.soft_upper])
    lowest, highest = mixed.velocity_bounds(q)
    np.testing.assert_array_equal(highest[:7], PANDA.velocity)
    np.testing.assert_array_equal(-lowest[:7], PANDA.velocity)
    np.testing.assert_allclose(highest[7:], fr3.velocity_bounds(fr3.soft_upper)[1])
    assert mixed.margin == max(PANDA.margin, fr3.margin)


def test_every_fault_of_a_file_of_several_arms_is_listed(document):
    document['schema'] = 2
    del document['base']
    left, right = document['arms']['mounted']
    left['xyz'], left['arm'] = [0.0, 'far', 0.0], 'right'
    right['prefix'], right['tilt'] = 'left_', 1.0
    document['between_arms'] = {'unit': 'mm', 'source': 'measured', 'clearance': -1.0, 'never_checked': [['a', 'a']]}
    document['workspaces'] = {'unit': 'm', 'source': 'x', 'boxes': [{'arm': 'up', 'lower': [0] * 3, 'upper': [0] * 3}]}
    with pytest.raises(LimitsError) as error:
        parse_limits(document, where='pair.yaml')
    assert [problem.where for problem in error.value.problems] == [
        'schema',
        'base',
        'arms.mounted[1]',
        'arms.mounted, arm',
        'arms.mounted, prefix',
        'workspaces.boxes[0].arm',
        *['workspaces.boxes[0]'] * 3,
        'arms.mounted[0].xyz[1]',
        'between_arms.unit',
        'between_arms.clearance',
        'between_arms.never_checked[0]',
    ]


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda d: d['arms']['mounted'].pop(), 'must be several arms'),
        (lambda d: d['arms']['mounted'][0].update(robot='panda_pair'), 'must be the file of one arm'),
        (lambda d: d['between_arms'].update(never_checked=[['left_panda_hand', 'right_hand']]), "'right_hand'"),
        (lambda d: d.pop('between_arms'), 'between_arms'),
    ],
)
def test_a_file_of_several_arms_that_means_nothing_is_refused_in_words(document, change, words):
    change(document)
    with pytest.raises(LimitsError, match=words):
        parse_limits(document, where='pair.yaml')


def test_the_box_of_an_arm_alone_is_never_taken_over_silently(document, tmp_path):
    alone = yaml.safe_load(find_config('robots', 'panda').read_text())
    box = Workspace(np.array([0.2, -0.3, 0.2]), np.array([0.7, 0.3, 0.7]))
    alone['workspace'] = {'unit': 'm', 'source': 'x', 'lower': box.lower.tolist(), 'upper': box.upper.tolist()}
    path = tmp_path / 'boxed.yaml'
    path.write_text(yaml.safe_dump(alone))
    document['arms']['mounted'][0]['robot'] = str(path)
    with pytest.raises(LimitsError, match=r'own base.*workspaces'):
        parse_limits(document, where='pair.yaml')


def pair_urdf(mounts=((0.0, 0.4, 0.0), (0.0, -0.4, 0.0)), speed=2.175):
    """Two of the arms that tests/guard/test_robot_description.py writes, on one base."""
    arms = ''
    for side, xyz in zip(('left', 'right'), mounts, strict=True):
        links = ''.join(f'<link name="{side}_panda_link{i}"/>' for i in range(9))
        foot = joint(f'{side}_foot', 'fixed', 'base', f'{side}_panda_link0', xyz)
        turning = ''.join(
            joint(f'{name}', 'revolute', f'{side}_panda_link{i}', frame.name, frame.translation, frame, speed)
            for i, (name, frame) in enumerate(moving(side))
        )
        arms += links + foot + turning
        arms += joint(f'{side}_flange', 'fixed', f'{side}_panda_link7', f'{side}_panda_link8', (0, 0, 0.107))
    return f'<robot name="pair"><link name="base"/>{arms}</robot>'


def moving(side):
    arm = LEFT if side == 'left' else RIGHT
    return [(frame.joint, frame) for frame in arm.chain.frames if frame.joint]


def joint(name, kind, parent, child, xyz, frame=None, speed=0.0):
    roll = 0.0 if frame is None else np.arctan2(frame.rotation[2, 1], frame.rotation[1, 1])
    ends = f'<parent link="{parent}"/><child link="{child}"/>'
    place = f'<origin xyz="{" ".join(map(str, xyz))}" rpy="{roll} 0 0"/>'
    if frame is None:
        return f'<joint name="{name}" type="{kind}">{ends}{place}</joint>'
    index = LEFT.joint_names.index(name) if name in LEFT.joint_names else RIGHT.joint_names.index(name)
    limit = f'<limit lower="{PANDA.lower[index]}" upper="{PANDA.upper[index]}" velocity="{speed}" effort="1"/>'
    return f'<joint name="{name}" type="{kind}">{ends}{place}<axis xyz="0 0 1"/>{limit}</joint>'


def test_each_arm_of_a_pair_is_compared_with_the_description():
    agreed = limits_with_description(PAIR, pair_urdf(speed=2.0))
    np.testing.assert_array_equal(agreed.velocity, np.full(14, 2.0))
    assert all(sentence.split(': ')[1].startswith('velocity') for sentence in agreed.differences)
    moved = limits_with_description(PAIR, pair_urdf(mounts=((0.0, 0.4, 0.0), (0.0, -0.405, 0.0))))
    assert any('right_panda_link7 up to 5.0 mm apart' in sentence for sentence in moved.differences)
    with pytest.raises(LimitsError, match=r'right_panda_link\d.*different places'):
        limits_with_description(PAIR, pair_urdf(mounts=((0.0, 0.4, 0.0), (0.0, -0.5, 0.0))))
