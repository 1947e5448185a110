"""The arm can always stop within its limits, and no command leaves that breaks one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ruckig import ControlInterface, InputParameter, Ruckig, Synchronization, Trajectory

from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guard.motion import Hold, JointsState, Samples, instants
from cosmos3_ros.guard.reasons import Reason
from cosmos3_ros.guard.tracker import Braker, check_continuity, check_output, peak_speed, stopping_displacement

MS = 1_000_000
MIDDLE = np.array([0.0, 0.0, 0.0, -1.5, 0.0, 1.8, 0.0])


@pytest.fixture(scope='module')
def braker(panda):
    return Braker(panda, ramp_ns=40 * MS, period_ns=10 * MS)


def moving(panda, rng, speed=0.9, rise=0.9):
    velocities = rng.uniform(-speed, speed, 7) * panda.velocity
    accelerations = rng.uniform(-rise, rise, 7) * panda.acceleration
    return JointsState(MIDDLE, velocities, accelerations)


def at_speed(panda, rng):
    """Fast, and accelerating no harder than a stop can take back before the speed limit."""
    state = moving(panda, rng)
    room = np.sqrt(2 * panda.jerk * np.maximum(panda.velocity - np.abs(state.velocities), 0.0))
    return JointsState(MIDDLE, state.velocities, np.clip(state.accelerations, -room, room))


def sampled(brake, period=10 * MS):
    return brake.sample(instants(brake.start_ns, brake.end_ns, period))


def test_a_stop_begins_with_the_state_and_ends_at_rest_within_all_limits(panda, braker):
    rng = np.random.default_rng(0)
    for _ in range(300):
        state = at_speed(panda, rng)
        points = sampled(braker.brake(state, 1_000))
        np.testing.assert_allclose(points.positions[0], state.positions)
        np.testing.assert_allclose(points.velocities[0], state.velocities)
        np.testing.assert_allclose(points.accelerations[0], state.accelerations)
        assert not points.velocities[-1].any()
        assert not points.accelerations[-1].any()
        assert check_output(points, panda) is None


def test_after_its_end_a_stop_stays_exactly_where_it_is(panda, braker):
    brake = braker.brake(at_speed(panda, np.random.default_rng(1)), 0)
    later = brake.sample(np.array([brake.end_ns, brake.end_ns + 10**12]))
    np.testing.assert_array_equal(later.positions[0], later.positions[1])
    assert not later.velocities.any()


def test_all_joints_of_a_comfortable_stop_come_to_rest_together(panda, braker):
    velocities = np.array([1.0, 0.5, 0, 0, 0, 0, -0.2])
    brake = braker.brake(JointsState(MIDDLE, velocities, np.zeros(7)), 0)
    points = sampled(brake, MS)
    moving_joints = np.abs(velocities) > 0
    almost = points.velocities[-12][moving_joints]
    assert (np.abs(almost) > 1e-6).all()


def test_a_stop_that_would_leave_the_position_range_does_not_exist(panda, braker):
    near = MIDDLE.copy()
    near[1] = panda.upper[1] - 0.05
    assert braker.brake(JointsState(near, 1.5 * np.eye(7)[1], np.zeros(7)), 0) is None


def test_near_an_end_the_hard_stop_is_taken_where_the_comfortable_one_is_too_long(panda, braker):
    speed = 1.0 * np.eye(7)[1]
    hard = stopping_displacement(speed, np.zeros(7), panda.acceleration, panda.jerk)[1]
    near = MIDDLE.copy()
    near[1] = panda.upper[1] - hard - 0.002
    points = sampled(braker.brake(JointsState(near, speed, np.zeros(7)), 0))
    assert points.positions[:, 1].max() <= panda.upper[1]
    assert np.abs(points.accelerations[:, 1]).max() == pytest.approx(panda.acceleration[1])


def test_the_stopping_distance_needed_grows_with_the_speed(panda, braker):
    """Found by bisection and compared with the closed form."""
    for speed in (0.5, 1.0, 2.0):
        low, high = 0.0, 0.6
        for _ in range(40):
            gap = (low + high) / 2
            near = MIDDLE.copy()
            near[1] = panda.upper[1] - gap
            possible = braker.brake(JointsState(near, speed * np.eye(7)[1], np.zeros(7)), 0) is not None
            low, high = (low, gap) if possible else (gap, high)
        closed = stopping_displacement(speed * np.eye(7)[1], np.zeros(7), panda.acceleration, panda.jerk)[1]
        assert closed <= high <= closed + 1e-3
        assert closed > speed**2 / (2 * panda.acceleration[1])


def test_numbers_the_solver_cannot_use_give_no_stop_and_no_exception(braker):
    nothing = np.full(7, np.nan)
    assert braker.brake(JointsState(MIDDLE, nothing, np.zeros(7)), 0) is None
    assert braker.brake(JointsState(nothing, np.zeros(7), np.zeros(7)), 0) is None


def test_the_closed_form_of_the_stop_is_what_ruckig_computes(panda):
    rng = np.random.default_rng(2)
    problem = InputParameter(7)
    problem.control_interface = ControlInterface.Velocity
    problem.synchronization = Synchronization.No
    problem.max_acceleration, problem.max_jerk = panda.acceleration.tolist(), panda.jerk.tolist()
    problem.target_velocity = problem.target_acceleration = problem.current_position = [0.0] * 7
    for _ in range(300):
        state = moving(panda, rng, 1.0, 1.0)
        problem.current_velocity = state.velocities.tolist()
        problem.current_acceleration = state.accelerations.tolist()
        trajectory = Trajectory(7)
        Ruckig(7).calculate(problem, trajectory)
        displacement = stopping_displacement(state.velocities, state.accelerations, panda.acceleration, panda.jerk)
        np.testing.assert_allclose(displacement, trajectory.at_time(trajectory.duration)[0], atol=1e-12)


def test_the_peak_speed_of_a_stop_is_what_ruckig_computes(panda):
    rng = np.random.default_rng(3)
    joints_alone = dataclasses.replace(panda, chain=None, capsules=None)  # some of these are too fast for the tool
    braker = Braker(joints_alone, ramp_ns=40 * MS, period_ns=10 * MS)
    for _ in range(50):
        state = moving(panda, rng, 0.5, 0.5)
        points = sampled(braker.brake(state, 0), 200_000)
        gentle = np.minimum(panda.jerk, 0.9 * panda.acceleration / 0.04)
        bound = peak_speed(state.velocities, state.accelerations, gentle)
        speeds = np.abs(points.velocities).max(axis=0)
        assert (speeds <= bound + 1e-9).all()
        np.testing.assert_allclose(speeds, bound, rtol=1e-3, atol=1e-3)


@pytest.fixture
def good(panda, braker):
    return sampled(braker.brake(JointsState(MIDDLE, np.full(7, 0.5), np.zeros(7)), 0))


def spoiled(points, field, index, change):
    values = getattr(points, field).copy()
    values[index] += change
    return dataclasses.replace(points, **{field: values})


@pytest.mark.parametrize(
    ('field', 'index', 'change', 'says'),
    [
        ('positions', (3, 2), 10.0, 'position'),
        ('positions', (3, 2), np.nan, 'position'),
        ('positions', (3, 2), 0.03, 'mean velocity'),
        ('velocities', (2, 5), 2.7, 'velocity'),
        ('velocities', (2, 5), np.inf, 'velocity'),
        ('velocities', (2, 5), 0.3, 'mean acceleration'),
        ('accelerations', (2, 1), -8.0, 'acceleration'),
        ('accelerations', (2, 1), np.nan, 'acceleration'),
        ('positions', (3, 2), 0.005, 'disagreement'),
        ('velocities', (-1, 0), 1e-9, 'end at rest'),
        ('accelerations', (-1, 0), 1e-9, 'end at rest'),
        ('times_ns', 2, 10**9, 'times'),
    ],
)
def test_the_last_check_sees_every_kind_of_violation(panda, good, field, index, change, says):
    assert check_output(good, panda) is None
    fault = check_output(spoiled(good, field, index, change), panda)
    assert fault.reason is Reason.OUTPUT_CHECK
    assert says in fault.text


def test_the_last_check_sees_too_much_jerk(panda, good):
    gentle = dataclasses.replace(panda, jerk=panda.jerk / 30)
    assert 'mean jerk' in check_output(good, gentle).text


def test_a_command_continues_the_previous_one(panda, braker):
    brake = braker.brake(JointsState(MIDDLE, np.full(7, 0.5), np.full(7, 1.0)), 0)
    before = sampled(brake)
    for later in (1, 3 * MS, 17 * MS, 55 * MS, brake.end_ns, brake.end_ns + 10**9):
        rest = brake.sample(instants(later, max(brake.end_ns, later + 10 * MS), 10 * MS))
        assert check_continuity(rest, before, panda) is None


@pytest.mark.parametrize(
    ('field', 'change', 'says'), [('positions', 0.001, 'position'), ('velocities', 0.3, 'velocity')]
)
def test_a_jump_between_commands_is_seen(panda, braker, field, change, says):
    brake = braker.brake(JointsState(MIDDLE, np.full(7, 0.5), np.zeros(7)), 0)
    rest = brake.sample(instants(15 * MS, brake.end_ns, 10 * MS))
    fault = check_continuity(spoiled(rest, field, (0, 4), change), sampled(brake), panda)
    assert f'jump of {says}' in fault.text
    assert fault.joint == 'panda_joint5'


def test_holding_is_a_motion_like_any_other(panda):
    points = Hold(0, MIDDLE).sample(instants(0, 10 * MS, 10 * MS))
    assert isinstance(points, Samples)
    assert check_output(points, panda) is None


def test_the_last_check_sees_a_speed_too_high_for_its_place():
    fr3 = load_limits('fr3')
    middle = np.array([0.0, 0.0, 0.0, -1.5, 0.0, 1.8, 0.0])
    speed = 1.0 * np.eye(7)[0]
    times = np.array([0, 10 * MS])
    for position, allowed in ((2.0, True), (2.7, False)):
        p = np.stack([middle, middle])
        p[:, 0] = position, position + 0.005
        moving = Samples(times, p, np.stack([speed, speed * 0]), np.zeros((2, 7)))
        fault = check_output(moving, dataclasses.replace(fr3, acceleration=fr3.acceleration * 100))
        assert allowed if fault is None else 'velocity near the end of the range' in fault.text


def test_a_stop_of_the_fr3_keeps_the_limits_near_the_ends_all_the_way():
    fr3 = load_limits('fr3')
    braker = Braker(fr3, ramp_ns=40 * MS, period_ns=10 * MS)
    rng = np.random.default_rng(8)
    found = refused = 0
    for _ in range(400):
        state = moving(fr3, rng, 0.6, 0.5)
        joint = int(rng.integers(7))
        positions = MIDDLE.copy()
        positions[joint] = fr3.upper[joint] - rng.uniform(0.02, 0.3)
        speed, rise = np.zeros(7), np.zeros(7)
        speed[joint], rise[joint] = abs(state.velocities[joint]), state.accelerations[joint]
        brake = braker.brake(JointsState(positions, speed, rise), 0)
        refused += brake is None
        if brake is None:
            continue
        found += 1
        points = sampled(brake, 200_000)
        lowest, highest = fr3.velocity_bounds(points.positions)
        assert (points.velocities <= highest + 1e-6).all()
        assert (points.velocities >= lowest - 1e-6).all()
    assert found > 50
    assert refused > 50
