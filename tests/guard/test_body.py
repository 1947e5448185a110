"""The arm does not hit itself, its tool stays in its box and within its speeds: on the grid, and between its points."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize

from cosmos3_ros.guard.capsules import SegmentPairs
from cosmos3_ros.guard.checks import Acceptance, Observed, SpliceContext, check_chunk
from cosmos3_ros.guard.chunk import Chunk
from cosmos3_ros.guard.figures import CartesianLimits, Workspace
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guard.motion import JointsState, instants
from cosmos3_ros.guard.options import CheckOptions
from cosmos3_ros.guard.reasons import Reason
from cosmos3_ros.guard.tracker import Braker

STEP = 66_666_667
H = STEP * 1e-9
T0 = 1_000_000_000_000
HOME = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])
PANDA = load_limits('panda')
FR3 = load_limits('fr3')
JOINTS = np.eye(7)
BOX = Workspace(np.array([0.2, -0.3, 0.2]), np.array([0.7, 0.3, 0.7]))
BOXED = dataclasses.replace(PANDA, workspace=BOX)


def eased(way, rows=32, seconds=None):
    """From rest at the home pose along `way` [7], and to rest again."""
    t = np.arange(1, rows + 1) * H / (seconds or rows * H)
    return HOME + np.asarray(way) * ((1 - np.cos(np.pi * np.minimum(t, 1.0))) / 2)[:, None]


def judge(rows, limits=PANDA, start=None, state=None):
    start = HOME if start is None else start
    state = state or JointsState.at_rest(start)
    context = SpliceContext(T0, T0 + 20_000_000, state, Observed(start, state.velocities), None, 3, 5)
    chunk = Chunk(T0, 3, 6, STEP, limits.joint_names, np.asarray(rows, dtype=np.float64), None)
    return check_chunk(chunk, limits, context, CheckOptions(start_jump_rad=0.2))


# Distances


def brute_force(p, d, q, e):
    """The distance of two segments by a search of its own."""
    best = min(
        minimize(
            lambda x: np.sum((p + x[0] * d - q - x[1] * e) ** 2), guess, bounds=((0, 1), (0, 1)), method='L-BFGS-B'
        ).fun
        for guess in ((0.1, 0.1), (0.9, 0.1), (0.1, 0.9), (0.9, 0.9))
    )
    return np.sqrt(best)


def test_the_distance_of_two_segments_is_what_a_search_finds():
    rng = np.random.default_rng(0)
    for _ in range(150):
        starts, ways = rng.normal(0, 1, (2, 3, 1)), rng.normal(0, rng.choice([0.1, 1, 3]), (2, 3, 1))
        pairs = SegmentPairs(np.linalg.norm(ways[:, :, 0], axis=1), np.array([0]), np.array([1]))
        found = pairs.distances(starts, ways)[0, 0]
        expected = brute_force(starts[0, :, 0], ways[0, :, 0], starts[1, :, 0], ways[1, :, 0])
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ('ways', 'second', 'expected'),
    [
        (((1, 0, 0), (1, 0, 0)), (0.5, 2, 0), 2.0),
        (((1, 0, 0), (2, 0, 0)), (3, 0, 0), 2.0),
        (((1, 0, 0), (-1, 0, 0)), (3, 1, 0), np.hypot(1, 1)),
        (((0, 0, 0), (1, 0, 0)), (1, 1, 0), np.hypot(1, 1)),
        (((1, 0, 0), (0, 0, 0)), (2, 0, 0), 1.0),
        (((0, 0, 0), (0, 0, 0)), (0, 3, 4), 5.0),
        (((2, 0, 0), (0, 2, 0)), (1, -1, 0.5), 0.5),
    ],
)
def test_parallel_segments_and_points_are_segments_too(ways, second, expected):
    starts = np.array([[0, 0, 0], second], dtype=float)[:, :, None]
    ways = np.array(ways, dtype=float)[:, :, None]
    pairs = SegmentPairs(np.linalg.norm(ways[:, :, 0], axis=1), np.array([0]), np.array([1]))
    assert pairs.distances(starts, ways)[0, 0] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize('name', ['panda', 'fr3', 'ur5e'])
def test_a_pair_that_is_not_watched_never_comes_within_the_clearance(name):
    """All pairs, by an arm that watches everything, against those that are watched, at random positions."""
    limits = load_limits(name)
    watched = limits.body.clearances
    joints = len(limits.joint_names)
    q = np.random.default_rng(3).uniform(limits.lower, limits.upper, (20_000, joints))
    shapes, fixed = limits.capsules.shapes, limits.capsules.never_checked
    from cosmos3_ros.guard.capsules import link_points, segment_lengths
    from cosmos3_ros.guard.kinematics import Kinematics, places

    links = {name: place.link for name, place in places(limits.chain).items()}
    pairs = [
        (i, j)
        for i in range(len(shapes))
        for j in range(i)
        if links[shapes[i].link] != links[shapes[j].link] and frozenset((shapes[i].link, shapes[j].link)) not in fixed
    ]
    first, second = np.array(pairs).T
    points, ends = link_points(limits.chain, shapes)
    kinematics = Kinematics(limits.chain, limits.joint_names, points)
    ends = kinematics.place(q).points[kinematics.where[ends]]
    apart = SegmentPairs(segment_lengths(shapes), first, second).distances(ends[:, 0], ends[:, 1] - ends[:, 0])
    radii = np.array([shape.radius for shape in shapes])
    everything = (apart - (radii[first] + radii[second])[:, None]).min(axis=0)
    close = everything < limits.capsules.clearance
    assert close.any()
    np.testing.assert_allclose(watched(q[close]), everything[close], atol=1e-6)


@pytest.mark.parametrize('name', ['panda', 'fr3', 'ur5e'])
def test_no_distance_changes_by_more_than_the_bound_says(name):
    body = load_limits(name).body
    limits = load_limits(name)
    rng = np.random.default_rng(4)
    joints = len(limits.joint_names)
    q = rng.uniform(limits.lower, limits.upper, (3000, joints))
    for joint in range(joints):
        step = np.zeros(joints)
        step[joint] = 0.01
        change = np.abs(body.margins(q + step, q * 0) - body.margins(q, q * 0))[: body._distances]
        assert (change.max(axis=1) <= body._influence[:, joint] * 0.01 + 1e-9).all()


# Single reasons


def test_the_home_pose_is_clear():
    assert PANDA.body.clearances(HOME[None])[0] > 0.1
    assert isinstance(judge(eased(np.zeros(7))), Acceptance)


def test_an_arm_that_folds_into_itself_is_refused_by_the_names_of_the_links():
    verdict = judge(eased([0, 1.3, 0, -0.3, 0, -1.0, 0], rows=64))
    assert verdict.reason is Reason.SELF_COLLISION, verdict
    assert ' and ' in verdict.joint
    assert verdict.value < verdict.limit == 0.003
    assert verdict.text.startswith(f'SELF_COLLISION: {verdict.joint}, row {verdict.row}: distance between them ')


def test_the_tool_may_not_leave_its_box():
    assert isinstance(judge(eased([0.5, 0, 0, 0, 0, 0, 0]), BOXED), Acceptance)
    verdict = judge(eased([1.3, 0, 0, 0, 0, 0, 0]), BOXED)
    assert (verdict.reason, verdict.joint) == (Reason.WORKSPACE, 'panda_hand_tcp')
    rows = eased([1.3, 0, 0, 0, 0, 0, 0])
    assert abs(PANDA.body.tool_position(rows)[verdict.row, 1]) == pytest.approx(0.3, abs=0.05)
    assert isinstance(judge(rows), Acceptance)


def test_the_stop_from_the_end_may_not_leave_the_box_either():
    rows = eased([1.3, 0, 0, 0, 0, 0, 0])[:20]
    wall = PANDA.body.tool_position(rows)[-1, 1] + 0.001
    box = Workspace(BOX.lower, np.array([0.7, wall, 0.7]))
    verdict = judge(rows, dataclasses.replace(PANDA, workspace=box))
    assert (verdict.reason, verdict.row) == (Reason.WORKSPACE, 19)
    assert 'in the stop from its end' in verdict.text


def test_a_tool_outside_its_box_may_come_back_and_not_go_further_out():
    outside = HOME + 1.1 * JOINTS[0]
    assert abs(PANDA.body.tool_position(outside[None])[0, 1]) > 0.3
    assert isinstance(judge(outside + eased([-0.8, 0, 0, 0, 0, 0, 0]) - HOME, BOXED, outside), Acceptance)
    assert isinstance(judge(outside + eased(np.zeros(7)) - HOME, BOXED, outside), Acceptance)
    further = judge(outside + eased([0.2, 0, 0, 0, 0, 0, 0]) - HOME, BOXED, outside)
    assert further.reason is Reason.WORKSPACE


def test_joints_that_are_each_within_their_limits_may_add_up_to_too_much_at_the_tool():
    rows = eased([0, 0, 0, 0, 1.6, 0, 1.6], rows=24, seconds=1.3)
    verdict = judge(rows)
    assert (verdict.reason, verdict.joint) == (Reason.TOOL_SPEED, 'panda_hand_tcp')
    assert 'rotation' in verdict.text
    assert verdict.limit == pytest.approx(0.99 * 2.5)
    fast = dataclasses.replace(PANDA, cartesian={'translation': CartesianLimits(0.15, 1, 1)})
    verdict = judge(eased([0.8, 0, 0, 0, 0, 0, 0]), fast)
    assert verdict.reason is Reason.TOOL_SPEED
    assert verdict.text.endswith('limit 0.1485 m/s')


def test_reduced_speed_holds_for_the_tool_too():
    slow = PANDA.scaled(0.25)
    assert slow.cartesian['translation'].velocity == pytest.approx(1.7 / 4)


def test_a_violation_between_two_rows_is_found():
    """Rows 0.9 s apart: on both the tool is inside its box, and between them it is not."""
    seconds = 0.9
    rows = np.repeat(HOME[None], 12, axis=0)
    rows[:, 0] += 1.25 * np.sin(np.arange(1, 13) * np.pi / 12 * 3)
    context = SpliceContext(T0, T0 + 20_000_000, JointsState.at_rest(HOME), Observed(HOME, np.zeros(7)), None, 3, 5)
    chunk = Chunk(T0, 3, 6, int(seconds * 1e9), PANDA.joint_names, rows, None)
    narrow = dataclasses.replace(PANDA, workspace=Workspace(np.array([0.1, -0.28, 0.2]), np.array([0.7, 0.28, 0.7])))
    verdict = check_chunk(chunk, narrow, context, CheckOptions(start_jump_rad=1.5, splice_jump_rad=1.5))
    assert verdict.reason is Reason.WORKSPACE


# Limits that shrink near the ends


def test_the_fr3_must_slow_down_towards_the_ends_of_its_range():
    start = HOME + (FR3.soft_upper[0] - 0.62) * JOINTS[0]
    way = np.concatenate([0.6 * (1 - np.cos(np.linspace(0, np.pi, 11)[1:])) / 2, np.full(8, 0.6)])
    rows = start + way[:, None] * JOINTS[0]
    assert isinstance(judge(rows, dataclasses.replace(FR3, near_ends=None), start), Acceptance)
    verdict = judge(rows, FR3, start)
    expected = 'VELOCITY_LIMIT: fr3_joint1, row 6: speed near the end of the range 1.2545 rad/s, limit 1.1286 rad/s'
    assert verdict.text == expected
    formula = np.sqrt(12.0 * (2.7501 - rows[6, 0])) - 0.3
    assert verdict.limit == pytest.approx(formula)
    assert isinstance(judge(start + (0.5 * way)[:, None] * JOINTS[0], FR3, start), Acceptance)


def test_a_joint_may_leave_the_end_of_its_range_as_fast_as_anywhere():
    lowest, highest = FR3.velocity_bounds(FR3.upper[None])
    np.testing.assert_allclose(lowest[0], -FR3.velocity)
    assert (highest[0] < 0.2).all()
    start = HOME.copy()
    start[0] = FR3.soft_upper[0]
    rows = start - 0.6 * JOINTS[0] * ((1 - np.cos(np.linspace(0, np.pi, 17)[1:])) / 2)[:, None]
    assert isinstance(judge(rows, FR3, start), Acceptance)


# Whatever is accepted


def sampled(motion, limits):
    """The motion and the stop from its end at 1 kHz: positions and velocities."""
    along = motion.sample(instants(motion.start_ns, motion.end_ns, 1_000_000))
    stop = Braker(limits, 40_000_000, 10_000_000).brake(motion.state(motion.end_ns), motion.end_ns)
    after = stop.sample(instants(stop.start_ns, stop.end_ns, 1_000_000))
    return np.concatenate([along.positions, after.positions]), np.concatenate([along.velocities, after.velocities])


def random_rows(rng, limits):
    start = rng.uniform(limits.soft_lower, limits.soft_upper) if rng.random() < 0.4 else HOME + rng.normal(0, 0.5, 7)
    start = np.clip(start, limits.soft_lower, limits.soft_upper)
    drift = rng.normal(0, 0.35, 7)
    t = np.arange(1, 33)[:, None] * H
    swing = rng.uniform(0, 0.3, 7) * (1 - np.cos(t * rng.uniform(0.5, 2.5, 7)))
    rows = start + drift * t**2 / (t + 0.4) + swing
    if rng.random() < 0.3:
        rows[:, 4:] += rng.uniform(-0.9, 0.9, 3) * (1 - np.cos(2.5 * t))
    return start, rows


@pytest.mark.parametrize('name', ['panda', 'fr3'])
def test_whatever_is_accepted_keeps_box_speeds_and_clearance_down_to_rest(name):
    """Sampled at 1 kHz, the stop from the end included, with the tolerances that docs/guard.md states."""
    limits = load_limits(name)
    limits = dataclasses.replace(limits, workspace=Workspace(np.array([-0.5, -0.6, 0.0]), np.array([0.8, 0.6, 1.1])))
    rng = np.random.default_rng(5)
    accepted, refused, closest, fastest = 0, {}, np.inf, 0.0
    for _ in range(400):
        start, rows = random_rows(rng, limits)
        inside = limits.body.know(start).margins.min() > 0.0
        verdict = judge(rows, limits, start) if inside else None
        if not isinstance(verdict, Acceptance):
            refused[getattr(verdict, 'reason', None)] = refused.get(getattr(verdict, 'reason', None), 0) + 1
            continue
        accepted += 1
        positions, velocities = sampled(verdict.motion, limits)
        lowest, highest = limits.velocity_bounds(positions)
        assert (velocities >= lowest - 1e-6).all()
        assert (velocities <= highest + 1e-6).all()
        tool = limits.body.tool_position(positions)
        assert (tool >= limits.workspace.lower - 0.002).all()
        assert (tool <= limits.workspace.upper + 0.002).all()
        speeds, turns = limits.body.tool_speeds(positions, velocities)
        assert (speeds <= limits.cartesian['translation'].velocity).all()
        assert (turns <= limits.cartesian['rotation'].velocity).all()
        clearance = limits.body.clearances(positions).min()
        assert clearance >= limits.capsules.clearance - 0.002
        closest, fastest = min(closest, clearance), max(fastest, turns.max())
    assert accepted > 40, refused
    for reason in (Reason.WORKSPACE, Reason.SELF_COLLISION, Reason.TOOL_SPEED):
        assert refused.get(reason, 0) > 0, refused
    assert closest < 0.05
    assert fastest > 1.5


def test_a_command_never_carries_a_stop_into_a_forbidden_place(make_bench):
    """The guard sends only stops that it has checked, whichever instant they begin at."""
    bench = make_bench(limits=BOXED)
    rng = np.random.default_rng(6)
    accepted = 0
    for _ in range(60):
        way = rng.normal(0, [0.5, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3])
        rows = bench.arm + way * ((1 - np.cos(np.linspace(0, np.pi, 25)[1:])) / 2)[:, None]
        accepted += isinstance(bench.send(rows), Acceptance)
        for command in bench.run(10 * int(rng.integers(5, 40))):
            tool = PANDA.body.tool_position(command.positions)
            assert (tool >= BOX.lower - 0.002).all()
            assert (tool <= BOX.upper + 0.002).all()
            assert PANDA.body.clearances(command.positions).min() >= 0.001
    assert accepted > 10
