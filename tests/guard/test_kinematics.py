"""Where the guard believes the arm to be is where it is: by MuJoCo, by published parameters and by differences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cosmos3_ros.guard.kinematics import Kinematics, frame_poses, reach
from cosmos3_ros.guard.limits import load_limits

mujoco = pytest.importorskip('mujoco', reason='MuJoCo is not installed')

PANDA = load_limits('panda')


def somewhere(limits, count, seed=0):
    return np.random.default_rng(seed).uniform(limits.lower, limits.upper, (count, len(limits.joint_names)))


def test_every_link_of_the_panda_is_where_mujoco_puts_it():
    from engine.evaluation.franka_scene import franka_scene

    model = mujoco.MjModel.from_xml_string(franka_scene(64, 64))
    data = mujoco.MjData(model)
    positions = somewhere(PANDA, 50)
    names = [name for name in PANDA.chain.names if mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name) >= 0]
    assert len(names) >= 8
    for name in names:
        origins, rotations = frame_poses(PANDA.chain, PANDA.joint_names, positions, name)
        for q, origin, rotation in zip(positions, origins, rotations, strict=True):
            data.qpos[:7] = q
            mujoco.mj_kinematics(model, data)
            base = model.body('panda_link0').id
            turned = data.xmat[base].reshape(3, 3).T
            np.testing.assert_allclose(origin, turned @ (data.body(name).xpos - data.xpos[base]), atol=1e-9)
            if name != 'panda_hand':  # DROID mounts its gripper straight, Franka its hand at 45 degrees
                np.testing.assert_allclose(rotation, turned @ data.body(name).xmat.reshape(3, 3), atol=1e-9)


def test_the_fr3_has_the_geometry_of_the_panda():
    fr3 = load_limits('fr3')
    positions = somewhere(fr3, 20)
    ours = fr3.body.tool_position(positions)
    np.testing.assert_allclose(ours, PANDA.body.tool_position(positions), atol=1e-12)


def test_the_ur5e_is_where_its_published_denavit_hartenberg_parameters_put_it():
    """Universal Robots' table: d, a and alpha of the six joints; its base frame is turned by half a turn."""
    ur5e = load_limits('ur5e')
    positions = somewhere(ur5e, 40)
    table = zip(
        (0.1625, 0.0, 0.0, 0.1333, 0.0997, 0.0996),
        (0.0, -0.425, -0.3922, 0.0, 0.0, 0.0),
        (np.pi / 2, 0.0, 0.0, np.pi / 2, -np.pi / 2, 0.0),
        strict=True,
    )
    table = list(table)
    origins, rotations = frame_poses(ur5e.chain, ur5e.joint_names, positions, 'tool0')
    for q, origin, rotation in zip(positions, origins, rotations, strict=True):
        pose = np.diag([-1.0, -1.0, 1.0, 1.0])
        for angle, (d, a, alpha) in zip(q, table, strict=True):
            step = np.eye(4)
            step[:3, :3] = (Rotation.from_euler('z', angle) * Rotation.from_euler('x', alpha)).as_matrix()
            step[:3, 3] = a * np.cos(angle), a * np.sin(angle), d
            pose = pose @ step
        np.testing.assert_allclose(origin, pose[:3, 3], atol=1e-9)
        np.testing.assert_allclose(rotation, pose[:3, :3], atol=1e-9)


def test_the_tools_velocity_is_the_difference_of_its_poses():
    rng = np.random.default_rng(1)
    q, v, h = somewhere(PANDA, 30, 1), rng.normal(0, 1, (30, 7)), 1e-6
    speeds, turns = PANDA.body.tool_speeds(q, v)
    (before, axes), (after, turned) = (
        frame_poses(PANDA.chain, PANDA.joint_names, q + side * h * v, PANDA.chain.tool) for side in (-1, 1)
    )
    np.testing.assert_allclose(speeds, np.linalg.norm(after - before, axis=1) / (2 * h), rtol=1e-6)
    angles = Rotation.from_matrix(turned @ axes.swapaxes(1, 2)).magnitude()
    np.testing.assert_allclose(turns, angles / (2 * h), rtol=1e-6)


def test_the_order_of_joints_does_not_matter():
    names = PANDA.joint_names[::-1]
    turned = PANDA.for_joints(names)
    q = somewhere(PANDA, 5)
    np.testing.assert_allclose(turned.body.tool_position(q[:, ::-1]), PANDA.body.tool_position(q), atol=1e-12)
    np.testing.assert_allclose(turned.body.clearances(q[:, ::-1]), PANDA.body.clearances(q), atol=1e-12)


@pytest.mark.parametrize('name', ['panda', 'ur5e'])
def test_no_point_is_ever_further_from_an_axis_than_its_reach(name):
    limits = load_limits(name)
    joints = len(limits.joint_names)
    tool = limits.body.tool_position(somewhere(limits, 4000))
    points = [np.zeros((0, 3))] * joints + [np.array([[0.05, 0.02, 0.2]])]
    kinematics = Kinematics(limits.chain, limits.joint_names, points)
    placed = kinematics.place(somewhere(limits, 4000))
    arm = placed.points[kinematics.where[0]] - placed.origins
    distances = np.linalg.norm(np.cross(placed.axes, arm, axis=1), axis=1).max(axis=1)
    bound = reach(limits.chain, joints, points[-1])
    assert (distances <= bound + 1e-9).all()
    assert (bound <= 2.5).all()
    assert np.isfinite(tool).all()


def test_a_chain_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match='read-only'):
        PANDA.chain.frames[0].translation[0] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        PANDA.chain.tool = 'elsewhere'
