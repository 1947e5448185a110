"""`cosmos3 eval open-loop`: what the expert did, foretold by who knows it and by who does not; a tiny network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip('mujoco', reason='the simulator is not installed')

from scipy.spatial.transform import Rotation

import engine
from cosmos3_ros.cli import main
from cosmos3_ros.contract_arms import chain_of
from cosmos3_ros.eval_world import Cast, WorldRunner
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.inverse_kinematics import InverseKinematics
from cosmos3_ros.open_loop_runs import Makers, OpenLoopOptions, gather, limits_of, measure
from engine.contract import load_contract
from engine.dynamics import DynamicsTerms
from engine.errors import InvalidInput
from engine.evaluation.open_loop import Moment
from engine.evaluation.open_loop_dynamics import DynamicsMeter, InverseMeter, Window
from engine.evaluation.open_loop_report import tables
from engine.evaluation.simulated_franka import SimulatedFranka
from engine.evaluation.tasks import make_episode
from engine.evaluation.video import VideoWriter
from engine.policy import Observation, PolicyChunk
from engine.serving.server import BackgroundServer, PolicyServer, ServerOptions

FPS, WINDOW = 15.0, 8
VIEWS = ('wrist', 'exterior_1', 'exterior_2')
EPISODE = make_episode('reach', 3)  # the hand moves and nothing else does


@contextmanager
def silent() -> Iterator[Any]:
    """Bars that nobody sees."""
    yield lambda what, share: None


class Notes:
    """Writes down what the expert does, fifteen times a second."""

    def __init__(self) -> None:
        self.joints: list[np.ndarray] = []
        self.poses: list[np.ndarray] = []
        self.views: list[Mapping[str, np.ndarray]] = []

    def __call__(self, world: Any) -> None:
        if world.now_s < len(self.joints) / FPS - 1e-9:
            return
        seen, pose = world.seen(True), world.robot.end_effector_pose()
        self.joints.append(seen.joints)
        self.poses.append(np.concatenate([pose.position, Rotation.from_quat(pose.quaternion).as_euler('xyz')]))
        self.views.append(seen.views)


@pytest.fixture(scope='module')
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The expert's way above an object, as a table and three videos."""
    notes, runner = Notes(), WorldRunner(Cast('expert'), film=True)
    assert runner.run(EPISODE, notes).success
    runner.world.robot.close()
    root = tmp_path_factory.mktemp('open_loop') / 'reach'
    root.mkdir()
    columns = {
        'timestamp': np.arange(len(notes.joints)) / FPS,
        'observation.state.joint_positions': np.stack(notes.joints),
        'observation.state.cartesian_position': np.stack(notes.poses),
        'observation.state.gripper_position': np.zeros(len(notes.joints)),
    }
    pq.write_table(pa.table({name: pa.array(values.tolist()) for name, values in columns.items()}), root / 'e.parquet')
    for view in VIEWS:
        with VideoWriter(root / f'{view}.mp4', FPS, notes.views[0][view].shape[:2]) as writer:
            for views in notes.views:
                writer.write(views[view])
    return root


class TrueDynamics:
    """The simulator as a network that imagines without fault: the arm is put where the rows lead, and drawn.

    Attributes:
        deaf: Whether it takes no notice of actions.
    """

    rows = WINDOW

    def __init__(self, deaf: bool = False) -> None:
        contract = load_contract('demo_joint_pos')
        arm = contract.robot.arms[0]
        chain = chain_of(arm, load_limits(contract.robot.description))
        self._solver = InverseKinematics(chain, arm.joints, arm.end_effector_frame)
        self._robot = SimulatedFranka(zone=True)
        self.codec = DynamicsTerms.of_contract(contract).codec()
        self.deaf = deaf

    def composite(self, views: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.hstack([views[view] for view in VIEWS])

    def shown(self, frames: np.ndarray) -> np.ndarray:
        return frames

    def tiles(self, size: tuple[int, int]) -> dict[str, tuple[slice, slice]]:
        wide = size[1] // len(VIEWS)
        return {view: (slice(None), slice(wide * k, wide * (k + 1))) for k, view in enumerate(VIEWS)}

    def through_codec(self, frames: np.ndarray) -> np.ndarray | None:
        return None

    def imagine(self, window: Window, rows: np.ndarray, seed: int) -> np.ndarray:
        used = window.rows(self.codec) if self.deaf else rows
        poses = self.codec.decode(used, window.path[0]).poses
        near = np.array(EPISODE.setting.joints)
        first = self._solver.solve(window.path.position[:1], window.path.rotation[:1], near)
        joints = self._solver.solve(poses.position, poses.rotation, first[0])
        return np.stack([self._drawn(at) for at in np.vstack([first, joints])])

    def _drawn(self, joints: np.ndarray) -> np.ndarray:
        self._robot.arrange(replace(EPISODE.setting, joints=tuple(joints)))
        return self.composite(self._robot.render())

    def actions(self, window: Window, seed: int) -> np.ndarray:
        return window.rows(self.codec)

    def close(self) -> None:
        self._robot.close()


@pytest.fixture
def true_dynamics() -> Iterator[TrueDynamics]:
    made = TrueDynamics()
    yield made
    made.close()


@pytest.mark.slow
def test_the_expert_on_true_dynamics_wrong_actions_and_a_still_picture_are_worse_than_the_truth(
    recording: Path, tmp_path: Path, true_dynamics: TrueDynamics
) -> None:
    options = OpenLoopOptions(
        recording, tmp_path / 'out', 'demo_joint_pos', max_windows=3, instruction=EPISODE.instruction
    )
    truth = gather(options).truths[0]

    def knows(moment: Moment, seed: int) -> np.ndarray:
        return truth.future[moment.index : moment.index + 32]

    found = measure(options, lambda contract: Makers(knows, true_dynamics), silent).document
    assert found['policy']['executed']['32']['policy']['rmse']['value'] == pytest.approx([0.0] * 8)
    assert found['policy']['executed']['32']['hold']['rmse']['value'][7] > 0.02
    dynamics = found['dynamics']
    mean = {who: by_view['all']['mean']['value'] for who, by_view in dynamics['psnr'].items()}
    likeness = {who: by_view['all']['mean']['value'] for who, by_view in dynamics['ssim'].items()}
    for who in ('repeat_first', 'other_actions', 'reversed'):
        assert mean['imagined'] > mean[who] + 1.0
        assert likeness['imagined'] > likeness[who]
    assert dynamics['wrong_is_worse']['reversed']['k'] == dynamics['wrong_is_worse']['reversed']['n'] >= 3
    wrist = {who: by_view['wrist']['by_frame']['value'] for who, by_view in dynamics['psnr'].items()}
    assert wrist['repeat_first'][-1] < wrist['repeat_first'][0]
    assert found['inverse']['rmse']['found']['translation']['value'] == pytest.approx(0, abs=1e-4)
    assert found['inverse']['rmse']['still']['translation']['value'] > 1.0


def test_dynamics_that_take_no_notice_of_actions_gain_nothing_over_wrong_ones(recording: Path) -> None:
    deaf = TrueDynamics(deaf=True)
    meter = DynamicsMeter(deaf, 9)
    frames = np.zeros((WINDOW + 1, 180, 960, 3), np.uint8)
    track = gather(OpenLoopOptions(recording, Path(), 'demo_joint_pos', instruction='reach')).sources[0].track
    window = Window('x', 5, {}, frames, track.poses[5 : WINDOW + 6], np.zeros(WINDOW), '')
    meter.add(window, window.backwards(deaf.codec))
    found = meter.conclude()
    deaf.close()
    assert found['gain']['psnr']['reversed']['value'] == found['gain']['psnr']['other_actions']['value'] == 0
    assert found['wrong_is_worse']['reversed'] == {
        'k': 0,
        'n': 1,
        'wilson95': found['wrong_is_worse']['reversed']['wilson95'],
    }


def test_the_guess_that_nothing_moves_is_off_by_the_motion_itself(
    recording: Path, tmp_path: Path, true_dynamics: TrueDynamics
) -> None:
    options = OpenLoopOptions(
        recording, tmp_path / 'out', 'demo_joint_pos', max_windows=1, skip=frozenset({'policy', 'dynamics'})
    )
    track = gather(options).sources[0].track
    steps = np.linalg.norm(np.diff(track.poses.position[: WINDOW + 1], axis=0), axis=1)
    found = measure(options, lambda contract: Makers(None, true_dynamics), silent).document
    assert set(found) == {'inverse', 'warnings', 'provenance'}
    assert found['inverse']['rmse']['still']['translation']['value'] == pytest.approx(
        1e3 * np.sqrt((steps**2).mean()), rel=1e-4
    )


def test_rows_that_hold_no_rotation_are_counted_and_not_measured(recording: Path, true_dynamics: TrueDynamics) -> None:
    true_dynamics.actions = lambda window, seed: np.full((WINDOW, 10), np.nan, np.float32)
    meter = InverseMeter(true_dynamics, 9)
    track = gather(OpenLoopOptions(recording, Path(), 'demo_joint_pos', instruction='reach')).sources[0].track
    frames = np.zeros((WINDOW + 1, 8, 24, 3), np.uint8)
    line = meter.add(Window('x', 0, {}, frames, track.poses[: WINDOW + 1], np.zeros(WINDOW), ''))
    assert 'unreadable' in line
    assert (meter.conclude()['unreadable'], meter.conclude()['rmse']) == (1, {})


# A policy server, and a network


class Still:
    """Answers that the arm shall stay where it is."""

    def infer(self, observation: Observation, seed: int = 0, cancelled: Any = None) -> PolicyChunk:
        row = np.append(np.ravel(observation.joint_positions), np.ravel(observation.gripper_position))
        return PolicyChunk(np.tile(row, (32, 1)).astype(np.float32), None, observation.instruction, seed, {})


def test_a_policy_server_is_measured_as_a_checkpoint_is(recording: Path, tmp_path: Path) -> None:
    contract = load_contract('demo_joint_pos')
    with BackgroundServer(PolicyServer(Still(), contract, ServerOptions(port=0))) as server:
        words = [str(recording), '--policy', server.url, '--contract', contract.name, '--instruction', 'reach it']
        assert main(['eval', 'open-loop', *words, '-o', str(tmp_path / 'out')]) == 0
    found = json.loads((tmp_path / 'out' / 'open_loop.json').read_text())
    policy, hold = (found['policy']['executed']['32'][who]['rmse']['value'] for who in ('policy', 'hold'))
    assert policy == pytest.approx(hold, abs=1e-6)
    assert found['provenance']['skipped'] == ['dynamics', 'inverse']


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine.make_tiny(tmp_path_factory.mktemp('checkpoint') / 'tiny', sound=False)


def command(dataset: Path, checkpoint: Path, output: Path, *more: str) -> int:
    words = [str(dataset), '--policy', str(checkpoint), '--contract', 'demo_joint_pos', '--threads', '2']
    return main(['eval', 'open-loop', *words, '-o', str(output), *more])


@pytest.mark.slow
def test_a_checkpoint_is_measured_and_reported_in_one_file_that_loads_nothing(
    recording: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ['--dynamics-rows', '4', '--dynamics-steps', '1', '--max-windows', '1', '--max-anchors', '2']
    told = ['--seeds', '2', '--instruction', EPISODE.instruction]
    assert command(recording, checkpoint, tmp_path / 'out', *small, *told) == 0
    found = json.loads((tmp_path / 'out' / 'open_loop.json').read_text())
    assert (found['policy']['moments'], found['dynamics']['windows'], found['inverse']['windows']) == (2, 1, 1)
    assert found['provenance']['checkpoint']
    assert found['provenance']['versions']['torch']
    assert set(found['dynamics']['psnr']) == {'ceiling', 'imagined', 'repeat_first', 'reversed'}
    assert found['dynamics']['views'] == ['all', *VIEWS]
    kinds = [json.loads(line)['kind'] for line in (tmp_path / 'out' / 'moments.jsonl').read_text().splitlines()]
    assert kinds == ['policy', 'policy', 'dynamics', 'inverse']
    page = (tmp_path / 'out' / 'report.html').read_text()
    assert all(source.startswith('data:') for source in re.findall(r'src="([^"]{,40})', page))
    assert not re.search(r'(?:href|src)="(?!data:)', page)
    for one in tables(found):
        assert one.title.replace('&', '&amp;') in page
    assert {path.name for path in (tmp_path / 'out' / 'plots').iterdir()} == {
        'lead_time.png', 'chunks.png', 'dynamics.png', 'example.png',
    }  # fmt: skip
    assert 'Forward dynamics' in capsys.readouterr().out


@pytest.mark.slow
def test_the_real_droid_sample_is_measured_with_stand_ins_and_joints_of_its_poses(
    shared_data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    cameras = ['--video-map', 'wrist=exterior_2', 'exterior_1=exterior_2']
    told = ['--instruction', 'move', '--skip', 'dynamics,inverse', '--max-anchors', '2']
    assert command(shared_data / 'droid', checkpoint, tmp_path / 'out', *cameras, *told) == 0
    found = json.loads((tmp_path / 'out' / 'open_loop.json').read_text())
    assert found['provenance']['signals']['joints'] == 'inverse kinematics of the measured poses'
    assert found['provenance']['signals']['next gripper'] == 'action.gripper_position'
    assert any('stands in' in text for text in found['warnings'])
    assert 0 < found['policy']['executed']['32']['policy']['rmse']['value'][7] < 1


def test_everything_that_a_recording_lacks_is_named_before_a_checkpoint_is_loaded(
    recording: Path, tmp_path: Path
) -> None:
    (tmp_path / 'blind').mkdir()
    for name in ('e.parquet', 'exterior_2.mp4'):
        (tmp_path / 'blind' / name).write_bytes((recording / name).read_bytes())
    with pytest.raises(InvalidInput) as caught:
        gather(OpenLoopOptions(tmp_path / 'blind', tmp_path / 'out', 'demo_joint_pos'))
    text = str(caught.value)
    assert 'wrist, exterior_1' in text
    assert '--video-map' in text
    assert '--instruction' in text
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('more', 'said'),
    [
        (['--stride', '0', '--seeds', '0'], '--stride.*--seeds'),
        (['--skip', 'policy,dreams'], 'dreams'),
        (['--skip', 'policy,dynamics,inverse'], 'nothing to measure'),
        (['--episodes', '3-1'], "'3-1'"),
        (['--video-map', 'wrist'], 'view=source'),
    ],
)
def test_arguments_that_make_no_sense_are_refused_by_name(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, tmp_path / 'no checkpoint', tmp_path / 'out', *more) == 2
    assert re.search(said, capsys.readouterr().err, re.DOTALL)


def test_limits_are_those_of_the_robot_file_in_the_order_of_the_contract() -> None:
    found, panda = limits_of(load_contract('demo_joint_pos')), load_limits('panda')
    way = np.vstack([np.zeros(7), panda.velocity / FPS])
    assert found.used(way, FPS)['velocity'] == pytest.approx(np.ones((1, 7)))
    poses = limits_of(load_contract('droid_ee_delta'))
    moved = np.array([[0, 0, 0, 0, 0, 0, 1.0], [panda.cartesian['translation'].velocity / FPS, 0, 0, 0, 0, 0, 1.0]])
    assert poses.used(moved, FPS)['velocity'][0] == pytest.approx([1.0, 0.0])
