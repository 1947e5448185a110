"""The plugins as packages: what is in their wheels, how LeRobot finds them, and what they load when it does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

PLUGINS = ('lerobot_policy_cosmos3', 'lerobot_env_cosmos3')
# What LeRobot's programs load in any case comes first; then what the plugins add to it.
FOUND = """
import json, sys
import lerobot.envs.configs
from lerobot.configs import PreTrainedConfig
from lerobot.utils.import_utils import register_third_party_plugins
before = set(sys.modules)
register_third_party_plugins()
kinds = PreTrainedConfig, lerobot.envs.configs.EnvConfig
print(json.dumps([sorted(set(sys.modules) - before), ['cosmos3' in kind.get_known_choices() for kind in kinds]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize('name', PLUGINS)
def test_a_wheel_has_every_module_and_the_name_by_which_lerobot_imports_it(
    name: str, wheels: dict[str, Path], repository: Path
) -> None:
    with zipfile.ZipFile(wheels[name]) as archive:
        packed = {entry for entry in archive.namelist() if not entry.startswith(f'{name}-')}
        (about,) = (entry for entry in archive.namelist() if entry.endswith('/METADATA'))
        described = archive.read(about).decode()
    source = repository / 'plugins' / name
    assert packed == {path.relative_to(source).as_posix() for path in (source / name).glob('*.py')}
    # Written with hyphens, as indexes prefer it, LeRobot would not find it.
    assert re.search('^Name: (.+)$', described, re.M)[1] == name


@pytest.mark.parametrize('name', PLUGINS)
def test_a_plugin_has_the_version_of_the_rest_and_asks_for_the_lerobot_that_is_tested(
    name: str, repository: Path
) -> None:
    project = tomllib.loads((repository / 'plugins' / name / 'pyproject.toml').read_text())['project']
    assert project['version'] == version('cosmos3_ros')
    assert f'lerobot>={version("lerobot")},<0.7' in project['dependencies']


@pytest.mark.slow
def test_lerobot_finds_both_and_they_load_nothing_but_themselves(site: Path) -> None:
    environment = {**os.environ, 'PYTHONPATH': str(site)}
    told = subprocess.run([sys.executable, '-c', FOUND], env=environment, check=True, capture_output=True, text=True)
    added, registered = json.loads(told.stdout.splitlines()[-1])
    assert registered == [True, True]
    own = {name.partition('.')[0] for name in added}
    assert own == {*PLUGINS, 'engine'}
    assert {name for name in added if name.startswith('engine')} == {'engine', 'engine.errors'}
