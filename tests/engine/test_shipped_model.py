"""Cosmos3-micro, which ships with the package: small, in the public layout, and it goes to what it is told."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import engine
from cosmos3_ros.demo import CALIBRATION
from cosmos3_ros.eval_world import Cast, WorldRunner
from cosmos3_ros.motion_bridge import MotionBridge
from cosmos3_ros.safety_options import SafetyOptions
from cosmos3_ros.safety_sim import EPISODES_FILE, simulate
from engine.checkpoint import open_checkpoint
from engine.evaluation.closed_loop import LoopTerms
from engine.evaluation.open_loop_pictures import psnr
from engine.evaluation.simulated_franka import SimulatedFranka
from engine.evaluation.tasks import TASKS, make_episode
from engine.observation.views import compose, in_shape
from engine.policy import layout_of
from engine.resources import find_model
from tests.engine.test_network_diffusers import IDS, difference, inputs_for, largest, reference_step
from tests.ros.system_bench import can_draw

NAME, CONTRACT = 'cosmos3-micro', 'micro_joint_pos'
MOST_BYTES = 40e6
ROW_S = 1 / 15

draws = pytest.mark.skipif(bool(can_draw()), reason=can_draw() or 'pictures can be drawn')


@pytest.fixture(scope='module')
def model() -> engine.Cosmos3:
    torch.set_num_threads(1)
    return engine.load(NAME)


def seen(robot: SimulatedFranka, instruction: str) -> engine.Observation:
    return engine.Observation(
        images=robot.render(),
        joint_positions=robot.joint_state().positions[:7],
        gripper_position=0.0,
        instruction=instruction,
    )


def test_it_is_small_and_says_where_it_comes_from() -> None:
    root = find_model(NAME)
    assert root is not None
    assert sum(path.stat().st_size for path in root.rglob('*') if path.is_file()) <= MOST_BYTES
    told = json.loads((root / 'checkpoint.json').read_text(encoding='utf-8'))
    assert told['training']['contract']['name'] == CONTRACT
    assert {'corpus', 'recipe', 'steps', 'seconds', 'validation'} <= set(told['training'])
    assert 'cosmos3 train' in (root / 'README.md').read_text(encoding='utf-8')


def opened_by(diffusers: ModuleType, folder: Path) -> torch.nn.Module:
    """The transformer in float32, as its `from_pretrained` does it, which asks for another package (accelerate)."""
    model = diffusers.Cosmos3OmniTransformer
    found = model.from_config(model.load_config(folder))
    weights = {name: tensor for file in folder.glob('*.safetensors') for name, tensor in load_file(file).items()}
    found.load_state_dict(weights, strict=True)
    return found.float().eval()


@torch.no_grad()
def test_diffusers_opens_it_and_computes_the_same() -> None:
    diffusers = pytest.importorskip('diffusers', reason='diffusers is the reference here')
    checkpoint = open_checkpoint(NAME)
    reference = opened_by(diffusers, checkpoint.root / 'transformer')
    ours = checkpoint.load_transformer(dtype=torch.float32)
    contract = engine.load_contract(CONTRACT)
    for video in (False, True):
        layout = layout_of(contract, video=video)
        inputs = inputs_for(layout, torch.float32)
        mine = ours.denoise(ours.prefix(IDS), layout, *inputs, 700)
        assert difference(mine, reference_step(reference, IDS, layout, inputs, 700)) <= 1e-4
        assert largest(mine) > 0.1


@draws
def test_what_it_does_depends_on_what_it_is_told_and_not_on_a_cache(model: engine.Cosmos3) -> None:
    contract = engine.load_contract(CONTRACT)
    episode = make_episode('reach', 0)
    robot = SimulatedFranka()
    robot.arrange(episode.setting)
    one, other = (f'reach for the {name}' for name in ('red cube', 'blue disc'))
    warm = model.policy(contract)
    warm.prepare(one)
    chunks = [warm.infer(seen(robot, words), seed=5).actions for words in (one, other, one)]
    cold = engine.load(NAME).policy(contract).infer(seen(robot, one), seed=5).actions
    robot.close()
    np.testing.assert_array_equal(chunks[0], chunks[2])
    np.testing.assert_array_equal(chunks[0], cold)
    assert np.abs(chunks[0] - chunks[1])[-1, :7].max() > 0.05, 'other words lead elsewhere'


@draws
def test_what_it_imagines_of_a_chunk_is_what_happens_then(model: engine.Cosmos3) -> None:
    contract = engine.load_contract(CONTRACT)
    dynamics = model.dynamics(contract).with_terms(steps=6)
    bridge, policy = MotionBridge(contract, dynamics.terms), model.policy(contract)
    gains = []
    for seed in range(4):
        episode = make_episode('reach', seed)
        robot = SimulatedFranka()
        robot.arrange(episode.setting)
        chunk = policy.infer(seen(robot, episode.instruction), seed=seed).actions
        shown, path = [robot.render()], [robot.joint_state().positions[:7]]
        for row in chunk[:, :7]:
            robot.set_trajectory([ROW_S], row[None])
            robot.advance(ROW_S)
            shown.append(robot.render())
            path.append(robot.joint_state().positions[:7])
        robot.close()
        views = contract.views
        real = np.stack([compose(in_shape(one, views.composition, views.size), views.composition, views.size)
                         for one in shown])  # fmt: skip
        rows = bridge.rows(np.stack(path), np.zeros(len(chunk)))
        imagined = dynamics.imagine(shown[0], rows, episode.instruction).frames
        still = bridge.rows(np.repeat(path[:1], len(path), axis=0), np.zeros(len(chunk)))
        others = dynamics.imagine(shown[0], still, episode.instruction).frames
        late = slice(8, None)
        mine, repeated, stood = (
            float(psnr(video[late], real[late]).mean()) for video in (imagined, np.repeat(real[:1], 17, 0), others)
        )
        gains.append((mine - repeated, mine - stood))
    assert np.min(gains) > 1.0, f'dB more than the first picture, and than an arm that stands still: {gains}'


@draws
@pytest.mark.slow
def test_behind_the_guard_the_hand_goes_to_what_is_named() -> None:
    runner = WorldRunner(Cast(NAME, CONTRACT, LoopTerms(8, 0.1)))
    records = [runner.run(make_episode('reach', seed, share_scene=4)) for seed in range(8)]
    runner.close()
    assert {record.target for record in records} == set(TASKS['reach'].targets)
    first = [record.reached[0][1] if record.reached else '' for record in records]
    assert sum(name == record.target for name, record in zip(first, records, strict=True)) >= 7
    assert sum(record.success for record in records) >= 6
    assert not any(record.table_contacts for record in records)


@draws
@pytest.mark.slow
def test_what_it_imagines_objects_to_pictures_that_freeze_and_not_to_those_that_do_not(tmp_path: Path) -> None:
    root = find_model(NAME)
    assert root is not None
    options = SafetyOptions(
        contract=CONTRACT,
        checkpoint=NAME,
        calibration=str(root / CALIBRATION),  # refused if it were made of another checkpoint, contract or recipe
        rung='look',
        output=tmp_path,
        seed=11,
        hazards=('frozen_camera',),
        episodes=4,
        nominal=4,
        proposer='checkpoint',
        job='reach',
        own_video=False,
    )
    simulate(options, lambda: nullcontext(lambda _what, _share: None), print)
    lines = (tmp_path / EPISODES_FILE).read_text(encoding='utf-8').splitlines()[1:]
    noticed: dict[str, list[bool]] = {'': [], 'frozen_camera': []}
    for episode in map(json.loads, lines):
        chunks = [chunk for chunk in episode['chunks'] if chunk['active'] or not episode['hazard']]
        crossed = {name for chunk in chunks for name in chunk['crossed']}
        noticed[episode['hazard']].append('standstill' in crossed if episode['hazard'] else bool(crossed))
    assert sum(noticed['frozen_camera']) >= 3, noticed
    assert sum(noticed['']) <= 1, noticed
