"""What a process need not import, it does not: a start of the host costs a third of what it did with all of this."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ('torch._dynamo', 'torch._inductor', 'sympy', 'diffusers', 'torchvision', 'scipy.stats', 'matplotlib')
"""Compilers, other people's models, statistics, plots: each takes between half a second and five to import."""

INFER = """
import numpy as np
import engine

model = engine.load({checkpoint!r})
policy = model.policy(engine.load_contract('demo_joint_pos'))
views = policy.contract.views.streams
policy.infer(
    engine.Observation(
        images={{name: np.zeros((180, 320, 3), np.uint8) for name in views}},
        instruction='open the drawer',
        joint_positions=np.zeros(7),
        gripper_position=0.0,
    ),
    0,
)
"""


def loaded_by(code: str) -> set[str]:
    """Names of all modules that a fresh Python holds after `code`."""
    code = f'{code}\nimport sys\nprint("\\n".join(sys.modules))'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines())


def test_loading_a_checkpoint_and_inferring_imports_no_compiler_and_nobody_elses_models(tiny_checkpoint: Path) -> None:
    loaded = loaded_by(INFER.format(checkpoint=str(tiny_checkpoint)))
    assert 'engine.network.autoencoder' in loaded
    assert loaded.isdisjoint(HEAVY), loaded.intersection(HEAVY)


@pytest.mark.parametrize('module', ['policy_node', 'guard_node', 'sim_robot_node', 'cli'])
def test_a_process_of_the_system_imports_none_of_it(module: str) -> None:
    pytest.importorskip('rclpy')
    loaded = loaded_by(f'import cosmos3_ros.{module}')
    assert loaded.isdisjoint(HEAVY), loaded.intersection(HEAVY)


def test_the_guard_never_sees_a_picture() -> None:
    pytest.importorskip('rclpy')
    assert loaded_by('import cosmos3_ros.guard_process, cosmos3_ros.guard_node').isdisjoint({'cv2', 'PIL', 'scipy'})


def test_a_tiny_checkpoint_is_written_without_diffusers(tmp_path: Path) -> None:
    assert 'diffusers' not in loaded_by(f'import engine\nengine.make_tiny({str(tmp_path / "tiny")!r})')
