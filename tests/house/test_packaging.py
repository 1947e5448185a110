"""What a ROS 2 user gets: packages, data files, executables and dependencies that are complete and agree."""

from __future__ import annotations

import re
import runpy
from fnmatch import fnmatch
from pathlib import Path
from xml.etree import ElementTree

import pytest
import setuptools

MANIFESTS = ('package.xml', 'cosmos3_msgs/package.xml')


@pytest.fixture
def setup_arguments(monkeypatch, repository) -> dict:
    """What setup.py tells setuptools."""
    captured: dict = {}
    monkeypatch.chdir(repository)
    monkeypatch.setattr(setuptools, 'setup', lambda **arguments: captured.update(arguments))
    runpy.run_path('setup.py')
    return captured


def manifest(repository: Path, path: str = 'package.xml') -> ElementTree.Element:
    return ElementTree.parse(repository / path).getroot()


def declared(repository: Path) -> set[str]:
    return {element.text for element in manifest(repository) if element.tag in ('exec_depend', 'depend')}


def test_all_version_numbers_agree(repository, setup_arguments):
    versions = {path: manifest(repository, path).findtext('version') for path in MANIFESTS}
    versions['setup.py'] = setup_arguments['version']
    versions['CHANGELOG.rst'] = re.search(r'^(\d+\.\d+\.\d+)$', (repository / 'CHANGELOG.rst').read_text(), re.M)[1]
    assert len(set(versions.values())) == 1, versions


@pytest.mark.parametrize('path', MANIFESTS)
def test_a_manifest_says_what_rosdep_and_bloom_ask_for(repository, path):
    root = manifest(repository, path)
    build_type = {'package.xml': 'ament_python', 'cosmos3_msgs/package.xml': 'ament_cmake'}[path]
    assert root.get('format') == '3'
    assert root.findtext('export/build_type') == build_type
    assert root.findtext('license') == 'Apache-2.0'
    assert root.find('maintainer').get('email')
    dependencies = [(element.tag, element.text) for element in root if element.tag.endswith('depend')]
    assert len(dependencies) == len(set(dependencies))


def test_both_programs_agree_on_name_and_licence(repository, setup_arguments):
    assert manifest(repository).findtext('name') == setup_arguments['name']
    assert manifest(repository).findtext('license') == setup_arguments['license']
    assert 'Apache License' in (repository / 'LICENSE').read_text()


def test_every_launch_and_configuration_file_is_installed_where_it_is_looked_for(files, setup_arguments):
    share = f'share/{setup_arguments["name"]}'
    installed = {f'{place}/{Path(name).name}' for place, names in setup_arguments['data_files'] for name in names}
    wanted = {f'{share}/{path.as_posix()}' for path in files if path.parts[0] in ('launch', 'config')}
    assert wanted
    assert wanted | {f'{share}/package.xml'} <= installed


def test_the_package_is_in_the_ament_index(setup_arguments, repository):
    assert ('share/ament_index/resource_index/packages', ['resource/cosmos3_ros']) in setup_arguments['data_files']
    assert (repository / 'resource/cosmos3_ros').is_file()


def test_launch_files_have_names_that_ros2_launch_finds(files):
    launch = [path.name for path in files if path.parts[0] == 'launch' and path.suffix == '.py']
    assert [name for name in launch if not name.endswith(('.launch.py', '_launch.py'))] == []


def test_every_module_is_in_an_installed_package(product, setup_arguments):
    folders = {'.'.join(source.path.parent.parts) for source in product}
    assert folders == set(setup_arguments['packages'])


def test_every_data_file_beside_the_code_is_installed(files, setup_arguments):
    data = [path for path in files if path.parts[0] in ('engine', 'cosmos3_ros') and path.suffix != '.py']
    patterns = setup_arguments['package_data']
    forgotten = [
        str(path)
        for path in data
        if not any(
            fnmatch(f'/{"/".join(path.parts[1:])}', f'*/{p.removeprefix("**/")}')
            for p in patterns.get(path.parts[0], [])
        )
    ]
    assert forgotten == []


def test_every_executable_has_its_main(setup_arguments, product):
    mains = {s.module for s in product if any(getattr(node, 'name', None) == 'main' for node in s.tree.body)}
    targets = [line.split('=')[1].strip() for line in setup_arguments['entry_points']['console_scripts']]
    assert [target for target in targets if target.removesuffix(':main') not in mains] == []


def test_every_ros_package_that_is_imported_is_declared(python_files, repository):
    running = [source for source in python_files if source.path.parts[0] in ('cosmos3_ros', 'engine', 'launch')]
    assert {name for source in running for name in source.ros()} - declared(repository) == set()


def test_nothing_that_rosdep_does_not_know_is_declared(repository):
    unknown = {
        'torch',
        'tensorrt',
        'transformers',
        'diffusers',
        'ruckig',
        'mujoco',
        'lerobot',
        'av',
        'numpy',
        'scipy',
        'opencv',
    }
    assert declared(repository) & unknown == set()


def test_every_interface_is_generated(files, repository):
    listed = set(
        re.findall(r'"((?:msg|srv|action)/\w+\.\w+)"', (repository / 'cosmos3_msgs/CMakeLists.txt').read_text())
    )
    present = {'/'.join(path.parts[1:]) for path in files if path.suffix in ('.msg', '.srv', '.action')}
    assert listed == present
