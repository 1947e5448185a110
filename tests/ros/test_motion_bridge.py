"""Joint positions become the rows that imagination was trained on, in the right frame and polarity, and poses again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.inverse_kinematics import InverseKinematics
from cosmos3_ros.motion_bridge import MotionBridge, expected_motion
from engine.actions import Poses, codec
from engine.contract import Contract, load_contract
from engine.dynamics import DynamicsTerms
from engine.errors import ContractError, InvalidInput

DROID, DUAL = load_contract('droid_joint_pos'), load_contract('demo_dual')
DATA = Path(__file__).resolve().parents[3] / 'shared' / 'data' / 'droid' / 'episode.parquet'
NEAR = [0.37, 0.19, 0.44]  # m, where the recorded episode begins


def bridge_for(contract: Contract, **changes: object) -> MotionBridge:
    return MotionBridge(contract, replace(DynamicsTerms.of_contract(contract), **changes))


def on_ur() -> Contract:
    """The terms of a UR5e, which no shipped contract has."""
    limits = load_limits('ur5e')
    arm = replace(
        DROID.robot.arms[0], joints=limits.joint_names, end_effector_frame=limits.chain.names[-1], gripper=None
    )
    terms = replace(DROID.embodiment, domain='robomind-ur')
    return replace(DROID, embodiment=terms, robot=replace(DROID.robot, description='ur5e', arms=(arm,)))


CONTRACTS = {'panda': DROID, 'two pandas': DUAL, 'ur5e': on_ur()}
BRIDGES = {name: bridge_for(contract) for name, contract in CONTRACTS.items()}


def paths(bridge: MotionBridge, rows: int, seed: int) -> np.ndarray:
    """Joint positions [rows + 1, J] that wander by up to 0.1 rad a step."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-1.5, 1.5, bridge.joints) + np.cumsum(rng.uniform(-0.1, 0.1, (rows + 1, bridge.joints)), axis=0)


@pytest.mark.parametrize('robot', CONTRACTS)
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_rows_lead_through_the_poses_that_they_were_made_of(robot: str, rows: int, seed: int) -> None:
    bridge = BRIDGES[robot]
    joints = paths(bridge, rows, seed)
    grippers = np.random.default_rng(seed).uniform(0, 1, (rows, max(1, len(CONTRACTS[robot].robot.grippers))))
    encoded = bridge.rows(joints, grippers)
    assert encoded.dtype == np.float32
    # In float64, for float32 rows are right to a tenth of a micrometre each and add up.
    exact = bridge.exact_rows(joints, grippers)
    poses, closed = bridge.path(exact, joints[0])
    wanted = bridge.poses(joints)[1:]
    np.testing.assert_allclose(poses.position, wanted.position, atol=1e-6)
    np.testing.assert_allclose(poses.rotation, wanted.rotation, atol=1e-6)
    np.testing.assert_allclose(closed.reshape(grippers.shape), grippers, atol=1e-6)
    np.testing.assert_allclose(encoded, exact, atol=1e-5)


def recorded() -> tuple[Poses, np.ndarray]:
    """Measured poses of a real episode of DROID, and the commanded closed fractions."""
    parquet = pytest.importorskip('pyarrow.parquet')
    if not DATA.is_file():
        pytest.skip('the episode is not here')
    table = parquet.read_table(DATA)
    cartesian = np.stack(table['observation.state.cartesian_position'].to_numpy())
    return Poses.from_rpy(cartesian[:, :3], cartesian[:, 3:]), table['action.gripper_position'].to_numpy()


@pytest.fixture(scope='module')
def episode() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joint positions on a Panda's way through the recorded poses, closed fractions, and the rows of the recording."""
    poses, closed = recorded()
    panda = load_limits('panda')
    inverse = InverseKinematics(panda.chain, DROID.robot.joints, 'panda_link8')
    start = np.array([0.0, -0.6, 0.0, -2.5, 0.0, 1.9, 0.0])
    way = np.linspace(0.0, 1.0, 200)[1:, None]
    position, rotation = inverse.pose(start)
    turn = poses.rotation[0]
    joints = inverse.solve(position + way * (poses.position[0] - position), _turned(rotation, turn, way[:, 0]), start)
    joints = inverse.solve(poses.position, poses.rotation, joints[-1])
    rows = codec('droid_lerobot', 'ee_delta', 'quantile').encode_trajectory(poses, closed[:-1])
    return joints, closed[:-1], rows


def _turned(first: np.ndarray, last: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Rotations on the shortest way."""
    from scipy.spatial.transform import Rotation, Slerp

    return Slerp([0, 1], Rotation.from_matrix([first, last]))(share).as_matrix()


def test_joints_on_a_real_path_give_the_rows_of_the_recording(episode: tuple[np.ndarray, ...]) -> None:
    joints, closed, wanted = episode
    found = BRIDGES['panda'].rows(joints, closed)
    assert found.shape == (721, 10)
    np.testing.assert_allclose(found, wanted, atol=5e-3)  # of the model's units, in which steps are of the order of one
    assert wanted[:, :9].std(0).min() > 0.05


@pytest.mark.parametrize('mistake', ['frame', 'rotation', 'polarity', 'scale', 'order'])
def test_a_mistake_of_frame_or_polarity_shows_in_the_rows(episode: tuple[np.ndarray, ...], mistake: str) -> None:
    joints, closed, wanted = episode
    contract, terms = DROID, DynamicsTerms.of_contract(DROID)
    if mistake == 'frame':  # the hand is turned by 45 degrees against the flange
        arm = replace(DROID.robot.arms[0], end_effector_frame='panda_hand')
        contract = replace(DROID, robot=replace(DROID.robot, arms=(arm,)))
    if mistake == 'scale':
        terms = replace(terms, normalization='none')
    bridge = MotionBridge(contract, terms)
    if mistake == 'rotation':  # of the training data, left out
        turned = bridge.poses(joints)
        bare = codec('bridge_orig_lerobot', 'ee_delta', 'none')
        found = bare.encode_trajectory(turned, closed)
    else:
        found = bridge.rows(
            joints[::-1] if mistake == 'order' else joints, 1 - closed if mistake == 'polarity' else closed
        )
    apart = abs(found - wanted).max(0)
    assert (apart[9] if mistake == 'polarity' else apart[:9].max()) > 0.5


def test_an_arm_that_lags_is_expected_behind_its_targets() -> None:
    targets = np.tile([1.0, -2.0], (40, 1))
    exact = expected_motion([0.0, 0.0], targets, 0.1, 0.0)
    np.testing.assert_array_equal(exact, np.vstack([[0.0, 0.0], targets]))
    behind = expected_motion([0.0, 0.0], targets, 0.1, 0.2)
    np.testing.assert_allclose(behind[:, 0], 1 - np.exp(-0.5 * np.arange(41)), atol=1e-12)
    np.testing.assert_allclose(behind[:, 1], -2 * behind[:, 0], atol=1e-12)


def test_what_does_not_fit_is_refused_by_name() -> None:
    bridge = BRIDGES['panda']
    with pytest.raises(InvalidInput, match=r'joints: have another width, got \[3, 6\], allowed: \[N, 7\]'):
        bridge.rows(np.zeros((3, 6)), np.zeros(2))
    with pytest.raises(InvalidInput, match='grippers: are not one for every row, got 3, allowed: 2'):
        bridge.rows(np.zeros((3, 7)), np.zeros(3))
    with pytest.raises(InvalidInput, match='joints: are not finite at row 1, column 2'):
        bridge.poses([[0.0] * 7, [0.0, 0.0, np.nan, 0.0, 0.0, 0.0, 0.0]])
    with pytest.raises(InvalidInput, match='lag_s: is out of range'):
        expected_motion([0.0], [[1.0]], 0.1, -1.0)
    with pytest.raises(InvalidInput, match='start: have another width'):
        expected_motion([[0.0, 0.0]], [[1.0, 1.0]], 0.1, 0.0)
    with pytest.raises(InvalidInput, match='targets: are not finite at row 0, column 1'):
        expected_motion([0.0, 0.0], [[1.0, np.nan]], 0.1, 0.0)
    wrong = replace(DROID.robot.arms[0], end_effector_frame='tool')
    with pytest.raises(ContractError, match=r'end_effector_frame: is not in the robot file, got tool'):
        MotionBridge(
            replace(DROID, robot=replace(DROID.robot, arms=(wrong,))),
            DynamicsTerms.of_contract(DROID),
        )
    with pytest.raises(ContractError, match='moves 2 arms, and the robot has 1'):
        MotionBridge(DROID, DynamicsTerms.of_contract(DUAL))
