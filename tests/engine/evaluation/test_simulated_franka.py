"""The simulated Franka is a Panda in its kinematics and limits, and obeys like one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import mujoco
import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from engine.errors import CosmosError, InvalidInput
from engine.evaluation import franka_scene, simulated_franka
from engine.evaluation.joint_path import JointPath
from engine.evaluation.simulated_franka import SimulatedFranka, choose_gl_backend

HOME = np.array([0, -np.pi / 5, 0, -4 * np.pi / 5, 0, 3 * np.pi / 5, 0])
# Denavit-Hartenberg parameters (Craig's convention) from the arm maker's public documentation; the last is the flange.
DH = (
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -np.pi / 2),
    (0.0, 0.316, np.pi / 2),
    (0.0825, 0.0, np.pi / 2),
    (-0.0825, 0.384, -np.pi / 2),
    (0.0, 0.0, np.pi / 2),
    (0.088, 0.0, np.pi / 2),
    (0.0, 0.107, 0.0),
)
TIP = 0.1034  # from the flange to the middle of the finger pads


def flange_by_dh(q: np.ndarray) -> np.ndarray:
    """Flange pose [4, 4] in the base frame, by the DH product."""
    pose = np.eye(4)
    for (a, d, alpha), theta in zip(DH, [*q, 0.0], strict=True):
        ca, sa, ct, st = np.cos(alpha), np.sin(alpha), np.cos(theta), np.sin(theta)
        link = np.array(
            [[ct, -st, 0, a], [st * ca, ct * ca, -sa, -d * sa], [st * sa, ct * sa, ca, d * ca], [0, 0, 0, 1]]
        )
        pose = pose @ link
    return pose


def reach(tip: np.ndarray, yaw: float, start: np.ndarray) -> np.ndarray:
    """Joint positions that put the finger tips at `tip`, pointing straight down with this yaw."""
    down = Rotation.from_euler('xyz', [np.pi, 0, yaw])

    def miss(q: np.ndarray) -> np.ndarray:
        pose = flange_by_dh(q)
        turn = (down.inv() * Rotation.from_matrix(pose[:3, :3])).as_rotvec()
        return np.concatenate([pose[:3, 3] + TIP * pose[:3, 2] - tip, turn, 1e-4 * (q - start)])

    return least_squares(miss, start).x


@pytest.fixture(scope='module')
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(franka_scene.franka_scene(18, 32))


@pytest.fixture
def robot() -> SimulatedFranka:
    return SimulatedFranka(seed=0, render_views=())


@pytest.fixture
def filmed() -> SimulatedFranka:
    try:
        choose_gl_backend()
    except CosmosError as error:
        pytest.skip(str(error))
    robot = SimulatedFranka(seed=0)
    yield robot
    robot.close()


@pytest.fixture
def pair() -> SimulatedFranka:
    return SimulatedFranka(seed=0, render_views=(), robot=franka_scene.PANDA_PAIR)


def test_two_arms_stand_side_by_side_each_at_the_start_pose(pair):
    state = pair.joint_state()
    assert len(state.names) == 18
    assert state.names[:9] == (*(f'left_panda_joint{i}' for i in range(1, 8)), *pair.kind.arms[0].fingers)
    np.testing.assert_allclose(state.positions, np.tile([*HOME, 0.04, 0.04], 2), atol=1e-9)
    expected = flange_by_dh(HOME)[:3, 3]
    for name, side in (('left', 0.4), ('right', -0.4)):
        np.testing.assert_allclose(pair.end_effector_pose(name).position, expected + np.array([0, side, 0]), atol=1e-6)


def test_each_arm_and_each_hand_of_a_pair_moves_by_itself(pair):
    target = np.concatenate([HOME + 0.1, HOME])
    pair.set_trajectory([0.5], target[None])
    pair.set_gripper(1.0, 'right')
    pair.advance(1.5)
    state = pair.joint_state().positions
    np.testing.assert_allclose(state[:7], HOME + 0.1, atol=0.03)
    np.testing.assert_allclose(state[9:16], HOME, atol=0.03)
    np.testing.assert_allclose(state[[7, 8]], 0.04, atol=1e-3)
    np.testing.assert_allclose(state[[16, 17]], 0.0, atol=1e-3)


def test_an_arm_that_a_robot_has_not_is_refused(pair, robot):
    for call in (lambda: pair.set_gripper(0.5), lambda: robot.end_effector_pose('left')):
        with pytest.raises(InvalidInput, match='no such arm'):
            call()
    with pytest.raises(InvalidInput, match=r'\(1, 14\)'):
        pair.set_trajectory([0.5], HOME[None])


def arm(robot: SimulatedFranka) -> np.ndarray:
    return robot.joint_state().positions[:7]


def test_the_flange_is_where_the_dh_parameters_say(model):
    data, generator = mujoco.MjData(model), np.random.default_rng(7)
    lower, upper = model.jnt_range[:7].T
    for q in generator.uniform(lower, upper, (200, 7)):
        data.qpos[:7] = q
        mujoco.mj_kinematics(model, data)
        site, expected = data.site('panda_link8'), flange_by_dh(q)
        np.testing.assert_allclose(site.xpos, expected[:3, 3], atol=1e-6)
        np.testing.assert_allclose(site.xmat.reshape(3, 3), expected[:3, :3], atol=1e-6)


def test_limits_are_those_of_the_panda(model):
    upper = [2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973]
    lower = [-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973]
    torque = [87, 87, 87, 87, 12, 12, 12]
    np.testing.assert_array_equal(model.jnt_range[:7], np.stack([lower, upper], 1))
    np.testing.assert_array_equal(model.jnt_actfrcrange[:7], np.stack([np.negative(torque), torque], 1))
    np.testing.assert_array_equal(model.jnt_range[7:9], [[0, 0.04]] * 2)
    assert [joint.velocity for joint in franka_scene.ARM] == [2.175] * 4 + [2.61] * 3


def test_the_measured_pose_is_that_of_the_measured_joints(robot):
    robot.set_trajectory([1.0], [HOME + 0.2])
    robot.advance(0.7)
    position, quaternion = robot.end_effector_pose()
    expected = flange_by_dh(arm(robot))
    np.testing.assert_allclose(position, expected[:3, 3], atol=1e-9)
    np.testing.assert_allclose(Rotation.from_quat(quaternion).as_matrix(), expected[:3, :3], atol=1e-9)


def test_the_arm_carries_its_own_weight_without_sagging(robot):
    robot.advance(5.0)
    assert np.abs(arm(robot) - HOME).max() < 1e-3
    assert robot.joint_state().efforts[3] > 20, 'the elbow must feel the weight of the forearm'


def test_joint_names_come_in_the_order_of_the_numbers(robot):
    state = robot.joint_state()
    assert state.names == (*(f'panda_joint{i}' for i in range(1, 8)), 'panda_finger_joint1', 'panda_finger_joint2')
    np.testing.assert_allclose(state.positions, [*HOME, 0.04, 0.04], atol=1e-9)
    assert all(values.shape == (9,) for values in state[1:])


def test_a_smooth_motion_sampled_at_15_hz_is_tracked_closely(robot):
    times = np.arange(1, 61) / 15
    swing, rate = np.array([0.4, 0.25, 0.3, 0.3, 0.4, 0.3, 0.5]), 2 * np.pi * 0.25
    goals = HOME + swing * (1 - np.cos(rate * times))[:, None] / 2
    speeds = swing * rate * np.sin(rate * times)[:, None] / 2
    speeds[-1] = 0
    robot.set_trajectory(times, goals, speeds)
    errors = []
    for goal in goals:
        robot.advance(1 / 15)
        errors.append(np.abs(arm(robot) - goal).max())
    assert max(errors) < 0.006


def test_a_path_passes_its_points_with_their_velocities():
    times = np.array([0, 100, 300, 400]) * 1_000_000
    points, speeds = np.random.default_rng(1).normal(size=(2, 4, 7))
    speeds[-1] = 0
    positions, velocities = JointPath.through(times, points, speeds).sample(times)
    np.testing.assert_allclose(positions, points, atol=1e-12)
    np.testing.assert_allclose(velocities, speeds, atol=1e-12)
    before, _ = JointPath.through(times, points, speeds).sample(times[1:3] - 1)
    np.testing.assert_allclose(before, points[1:3], atol=1e-6)


def test_a_path_without_velocities_is_made_of_straight_lines_and_rests_at_its_end():
    times = np.array([0, 200, 300]) * 1_000_000
    points = np.random.default_rng(1).normal(size=(3, 7))
    path = JointPath.through(times, points, None)
    positions, velocities = path.sample(np.array([50, 250, 300, 9000]) * 1_000_000)
    np.testing.assert_allclose(positions[:2], [0.75 * points[0] + 0.25 * points[1], (points[1] + points[2]) / 2])
    np.testing.assert_allclose(velocities[0], (points[1] - points[0]) / 0.2)
    np.testing.assert_array_equal(positions[2:], [points[2]] * 2)
    np.testing.assert_array_equal(velocities[2:], np.zeros((2, 7)))


def test_the_last_point_is_held(robot):
    goal = HOME + 0.1
    robot.set_trajectory([0.5, 1.0], [HOME + 0.05, goal])
    robot.advance(4.0)
    np.testing.assert_allclose(arm(robot), goal, atol=1e-3)


def test_a_newer_trajectory_takes_over_at_once_and_without_a_jolt(robot):
    robot.set_trajectory([1.0], [HOME + 0.5], [np.zeros(7)])
    robot.advance(0.5)
    robot.set_trajectory([1.0], [HOME], [np.zeros(7)])
    velocities = [robot.joint_state().velocities[:7]]
    for _ in range(20):
        robot.advance(0.001)
        velocities.append(robot.joint_state().velocities[:7])
    # At full speed the joints move with 0.75 rad/s; taking over from rest would show as a drop of that size.
    assert np.abs(np.diff(velocities, axis=0)).max() < 0.02
    robot.advance(3.0)
    np.testing.assert_allclose(arm(robot), HOME, atol=1e-3)


def test_points_whose_time_has_passed_are_skipped(robot):
    robot.advance(1.0)
    robot.set_trajectory([0.2, 0.8, 1.5], [HOME + 9, HOME - 9, HOME + 0.1], start_ns=0)
    robot.advance(2.0)
    np.testing.assert_allclose(arm(robot), HOME + 0.1, atol=1e-3)


def test_a_trajectory_that_lies_in_the_past_is_refused_and_changes_nothing(robot):
    robot.set_trajectory([1.0], [HOME + 0.1])
    robot.advance(0.5)
    with pytest.raises(InvalidInput, match='past'):
        robot.set_trajectory([0.1, 0.4], [HOME, HOME], start_ns=0)
    robot.advance(2.5)
    np.testing.assert_allclose(arm(robot), HOME + 0.1, atol=1e-3)


def test_all_faults_of_a_trajectory_are_named_at_once(robot):
    goals = np.tile(HOME, (3, 1))
    goals[1, 4] = np.nan
    with pytest.raises(InvalidInput) as caught:
        robot.set_trajectory([0.1, 0.3, 0.2], goals, np.ones((2, 7)))
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    for part in ('strictly increasing', 'positions[1]', 'panda_joint5', '(2, 7)', 'not at rest'):
        assert part in text


def test_a_joint_stops_at_its_limit_whatever_is_commanded(robot):
    robot.set_trajectory([1.0], [HOME + 4 * np.eye(7)[0]])
    robot.advance(3.0)
    assert 2.8 < arm(robot)[0] < 2.8973 + 0.02


def test_no_drive_exceeds_its_torque_limit(robot):
    robot.set_trajectory([0.05], [HOME + 1.0])
    torque = []
    for _ in range(100):
        robot.advance(0.005)
        torque.append(np.abs(robot.joint_state().efforts[:7]))
    assert (np.max(torque, axis=0) <= [87] * 4 + [12] * 3).all()
    assert np.max(torque) > 80


def test_the_fingers_close_and_open_at_their_own_speed(robot):
    robot.set_gripper(1.0)
    robot.advance(0.4)
    np.testing.assert_allclose(robot.joint_state().positions[7:], 0.02, atol=2e-3)
    robot.advance(1.0)
    np.testing.assert_allclose(robot.joint_state().positions[7:], 0.0, atol=1e-3)
    robot.set_gripper(0.25)
    robot.advance(1.5)
    np.testing.assert_allclose(robot.joint_state().positions[7:], 0.03, atol=1e-3)


@pytest.mark.parametrize('value', [-0.1, 1.5, float('nan')])
def test_a_gripper_command_outside_0_to_1_is_refused(robot, value):
    with pytest.raises(InvalidInput, match='closed_fraction'):
        robot.set_gripper(value)


def test_a_cube_can_be_grasped_and_lifted(robot):
    robot.advance(0.5)
    cube = robot.objects()['red_cube']
    yaw = Rotation.from_quat(cube.quaternion).as_euler('xyz')[2]
    yaw = (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4  # any face will do; take the least turn of the wrist
    above = reach(cube.position + np.array([0, 0, 0.12]), yaw, HOME)
    grasp = reach(cube.position, yaw, above)
    robot.set_trajectory([1.5, 2.5, 3.0], [above, grasp, grasp])
    robot.advance(3.5)
    robot.set_gripper(1.0)
    robot.advance(1.0)
    robot.set_trajectory([1.0], [above])
    robot.advance(2.0)
    assert robot.objects()['red_cube'].position[2] > 0.11
    np.testing.assert_allclose(robot.joint_state().positions[7:], 0.025, atol=2e-3)


@pytest.mark.parametrize('seed', range(12))
def test_objects_lie_still_and_apart_on_the_table_after_a_second(seed):
    robot = SimulatedFranka(seed=seed, render_views=())
    start = robot.objects()
    robot.advance(1.0)
    rest = robot.objects()
    assert set(rest) == {'red_cube', 'blue_disc', 'green_ball', 'yellow_bowl'}
    for thing in franka_scene.OBJECTS:
        np.testing.assert_allclose(rest[thing.name].position, start[thing.name].position, atol=1e-3)
        assert rest[thing.name].position[2] == pytest.approx(thing.height, abs=1e-3)
    places = np.array([pose.position[:2] for pose in rest.values()])
    gaps = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(4)
    assert gaps.min() > 0.08


def test_the_same_seed_and_commands_give_the_same_motion():
    def run(seed):
        robot = SimulatedFranka(seed=seed, render_views=())
        robot.set_trajectory([0.5], [HOME + 0.3])
        robot.advance(0.8)
        return np.concatenate([robot.joint_state().positions, *(p.position for p in robot.objects().values())])

    np.testing.assert_array_equal(run(3), run(3))
    assert np.abs(run(3) - run(4)).max() > 0.01


def test_a_reset_restores_the_start_but_never_turns_back_the_clock(robot):
    fresh = {name: pose.position for name, pose in robot.objects().items()}
    robot.set_trajectory([0.3], [HOME + 0.3])
    robot.set_gripper(1.0)
    robot.advance(0.5)
    robot.reset(seed=0)
    assert robot.time_ns == 500_000_000
    robot.advance(0.5)
    np.testing.assert_allclose(robot.joint_state().positions, [*HOME, 0.04, 0.04], atol=1e-6)
    for name, pose in robot.objects().items():
        np.testing.assert_allclose(pose.position, fresh[name], atol=1e-3)


def test_time_does_not_drift_when_it_passes_in_thirds_of_a_step(robot):
    for _ in range(15):
        robot.advance(1 / 15)
    assert robot.time_ns in (999_000_000, 1_000_000_000)  # 1/15 s rounds to whole ns: 15 of them fall 5 ns short
    robot.advance(1e-6)
    assert robot.time_ns == 1_000_000_000


@pytest.mark.parametrize('seconds', [-0.1, float('nan'), float('inf')])
def test_time_does_not_run_backwards_nor_forever(robot, seconds):
    with pytest.raises(InvalidInput, match='seconds'):
        robot.advance(seconds)


def test_wrong_options_are_all_named():
    with pytest.raises(InvalidInput) as caught:
        SimulatedFranka(image_size=(0, 320), render_views=('wrist', 'ceiling', 'floor'))
    assert len(caught.value.problems) == 3


def test_pictures_have_the_asked_size_and_show_the_things_on_the_table(filmed):
    filmed.advance(0.1)
    pictures = filmed.render()
    assert list(pictures) == ['wrist', 'exterior_1', 'exterior_2']
    for name, picture in pictures.items():
        assert picture.shape == (180, 320, 3)
        assert picture.dtype == np.uint8
        red, green, blue = picture.astype(int).reshape(-1, 3).T
        if name != 'wrist':
            assert ((red > 100) & (green < 70) & (blue < 70)).sum() > 20, f'no red cube in {name}'
            assert ((blue > 120) & (red < 80)).sum() > 20, f'no blue disc in {name}'
            assert ((green > 80) & (red < 60) & (blue < 90)).sum() > 20, f'no green ball in {name}'
            assert ((red > 130) & (green > 90) & (blue < 60)).sum() > 20, f'no yellow bowl in {name}'
            assert (picture.min(-1) > 200).sum() > 150, f'no white arm in {name}'
    left, right = pictures['wrist'][120:, :160], pictures['wrist'][120:, 160:]
    assert min((half.max(-1) < 60).sum() for half in (left, right)) > 100, 'a finger is out of the wrist camera'


def test_pictures_show_the_arm_where_it_is_now(filmed):
    before = filmed.render()
    filmed.set_trajectory([0.5], [HOME + np.array([0.0, 0.6, 0.0, -0.1, 0.0, 0.5, 0.0])])  # down to the table
    filmed.advance(1.0)
    after = filmed.render()
    assert all(np.abs(before[n].astype(int) - after[n]).mean() > 2 for n in before)
    again = filmed.render()
    assert all((after[n] == again[n]).all() for n in after)


def test_only_the_asked_views_are_rendered(filmed):
    robot = SimulatedFranka(image_size=(45, 81), render_views=('exterior_2',))
    assert {n: p.shape for n, p in robot.render().items()} == {'exterior_2': (45, 81, 3)}
    robot.close()


def test_rendering_from_a_second_thread_is_refused_with_the_reason(filmed):
    filmed.render()
    caught = []

    def render():
        try:
            filmed.render()
        except CosmosError as error:
            caught.append(str(error))

    thread = threading.Thread(target=render)
    thread.start()
    thread.join()
    assert len(caught) == 1
    assert 'thread' in caught[0]


def test_the_physics_may_run_in_another_thread_than_the_pictures(filmed):
    thread = threading.Thread(target=lambda: [filmed.advance(0.02) for _ in range(20)])
    filmed.render()
    thread.start()
    pictures = [filmed.render()['wrist'] for _ in range(3)]
    thread.join()
    assert filmed.time_ns == 400_000_000
    assert all(picture.std() > 10 for picture in pictures)


def test_rendering_works_even_if_mujoco_was_imported_before(filmed):
    program = (
        'import mujoco\n'
        'from engine.evaluation.simulated_franka import SimulatedFranka\n'
        'robot = SimulatedFranka(image_size=(36, 64), render_views=("wrist",))\n'
        'print(robot.render()["wrist"].std() > 10)\n'
        'robot.close()\n'
    )
    environment = {k: v for k, v in os.environ.items() if k not in ('MUJOCO_GL', 'PYOPENGL_PLATFORM', 'DISPLAY')}
    done = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == 'True', done.stderr


def test_without_opengl_the_error_names_the_packages(monkeypatch):
    monkeypatch.delenv('MUJOCO_GL', raising=False)
    monkeypatch.setattr(simulated_franka.ctypes.util, 'find_library', lambda name: None)
    with pytest.raises(CosmosError, match='apt-get install libegl1 libosmesa6 libgl1-mesa-dri libgles2'):
        SimulatedFranka()
    SimulatedFranka(render_views=()).advance(0.01)


def test_osmesa_is_taken_when_egl_is_missing_and_the_users_choice_always(monkeypatch):
    monkeypatch.delenv('MUJOCO_GL', raising=False)
    monkeypatch.setattr(simulated_franka.ctypes.util, 'find_library', lambda name: name if name == 'OSMesa' else None)
    assert choose_gl_backend() == 'osmesa'
    monkeypatch.setenv('MUJOCO_GL', 'glfw')
    assert choose_gl_backend() == 'glfw'
