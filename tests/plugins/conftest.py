"""The plugins as a user has them: built into wheels, unpacked where Python and LeRobot look for installed packages."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import engine

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGINS = ('lerobot_policy_cosmos3', 'lerobot_env_cosmos3')
ROBOT = 'lerobot_robot_simulated'


def build(name: str, folder: Path) -> Path:
    """Build the wheel of a plugin, of a copy of its sources: set-up tools leave their own files beside them."""
    source = shutil.copytree(REPOSITORY / 'plugins' / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
    pip = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation']
    subprocess.run([*pip, '--wheel-dir', str(folder), str(source)], check=True, stdin=subprocess.DEVNULL)
    (wheel,) = folder.glob(f'{name}-*.whl')
    return wheel


@pytest.fixture(scope='session')
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each plugin."""
    folder = tmp_path_factory.mktemp('wheels')
    return {name: build(name, folder) for name in PLUGINS}


@pytest.fixture(scope='session')
def site(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the plugins are installed."""
    folder = tmp_path_factory.mktemp('site')
    for wheel in wheels.values():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


@pytest.fixture(scope='session')
def installed(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The plugins, and a robot that needs no hardware, where this process finds them."""
    folder = tmp_path_factory.mktemp('robots')
    shutil.copytree(REPOSITORY / 'tests/plugins' / ROBOT, folder / ROBOT)
    about = folder / f'{ROBOT}-0.1.0.dist-info'
    about.mkdir()
    (about / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {ROBOT}\nVersion: 0.1.0\n')
    sys.path[:0] = [str(site), str(folder)]
    yield
    sys.path.remove(str(site))
    sys.path.remove(str(folder))


@pytest.fixture(scope='session')
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint, whose policy reacts to the state it is shown."""
    return engine.make_tiny(tmp_path_factory.mktemp('checkpoints') / 'tiny', sound=False)


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """LeRobot's programs without a network, in a folder of their own; what they do to this process is undone."""
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.chdir(tmp_path)
    root, signals = logging.getLogger(), (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    handlers, level, answers = list(root.handlers), root.level, {one: signal.getsignal(one) for one in signals}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for one, answer in answers.items():
        signal.signal(one, answer)
