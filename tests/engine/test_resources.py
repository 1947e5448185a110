"""Configuration is found by name wherever the package lies, and a wrong name says what there is."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from engine import resources
from engine.checkpoint.source import resolve
from engine.errors import CheckpointError, InvalidInput
from engine.resources import config_names, find_config


def test_a_name_finds_the_file_that_ships_with_the_package(repository):
    assert find_config('robots', 'panda') == repository / 'config' / 'robots' / 'panda.yaml'


def test_every_listed_name_is_found():
    names = config_names('robots') + config_names('contracts')
    assert 'panda' in names
    assert all(find_config('robots', name).is_file() for name in config_names('robots'))


def test_a_path_is_taken_as_it_is(tmp_path):
    own = tmp_path / 'mine.yaml'
    own.write_text('schema: 1\n')
    assert find_config('robots', str(own)) == own


def test_a_relative_path_starts_at_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / 'mine.yaml').write_text('schema: 1\n')
    monkeypatch.chdir(tmp_path)
    assert find_config('robots', 'mine.yaml') == tmp_path / 'mine.yaml'


def test_an_unknown_name_lists_the_names_and_where_it_was_looked_for(repository):
    with pytest.raises(InvalidInput) as error:
        find_config('robots', 'pandaa')
    text = str(error.value)
    assert "'pandaa'" in text
    assert "did you mean 'panda'?" in text
    assert str(repository / 'config' / 'robots') in text


def test_a_path_without_a_file_says_so_and_offers_the_names(tmp_path):
    with pytest.raises(InvalidInput) as error:
        find_config('robots', str(tmp_path / 'nothing.yaml'))
    assert 'no such file' in str(error.value)
    assert 'panda' in str(error.value)


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(InvalidInput, match='is a directory'):
        find_config('robots', f'{tmp_path}/')


def installed_copy(repository, prefix):
    """The files as an ament install lays them out: code below lib, configuration below share."""
    code = prefix / 'lib' / 'python3.12' / 'site-packages' / 'engine'
    code.mkdir(parents=True)
    for name in ('__init__.py', 'errors.py', 'resources.py'):
        shutil.copy(repository / 'engine' / name, code)
    shutil.copytree(repository / 'config', prefix / 'share' / 'cosmos3_ros' / 'config')
    return code.parent


def test_an_installed_package_finds_its_share_directory_without_any_environment(repository, tmp_path):
    site = installed_copy(repository, tmp_path)
    code = "from engine.resources import find_config; print(find_config('robots', 'panda'))"
    found = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env={'PYTHONPATH': str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(tmp_path / 'share' / 'cosmos3_ros' / 'config' / 'robots' / 'panda.yaml')


def test_the_ament_index_is_asked_when_the_code_lies_elsewhere(repository, tmp_path):
    pytest.importorskip('ament_index_python')
    prefix, elsewhere = tmp_path / 'prefix', tmp_path / 'elsewhere'
    installed_copy(repository, prefix)
    shutil.move(prefix / 'lib' / 'python3.12' / 'site-packages', elsewhere)
    marker = prefix / 'share' / 'ament_index' / 'resource_index' / 'packages'
    marker.mkdir(parents=True)
    (marker / 'cosmos3_ros').touch()
    code = "from engine.resources import find_config; print(find_config('robots', 'panda'))"
    environment = {'PYTHONPATH': str(elsewhere), 'AMENT_PREFIX_PATH': str(prefix)}
    found = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(prefix / 'share' / 'cosmos3_ros' / 'config' / 'robots' / 'panda.yaml')


def test_a_checkpoint_that_ships_with_the_package_is_found_by_name(tmp_path, monkeypatch):
    for name in ('small', 'part'):
        (tmp_path / name).mkdir()
    (tmp_path / 'small' / 'model_index.json').touch()
    monkeypatch.setattr(resources, '_model_roots', lambda: [tmp_path / 'nowhere', tmp_path])
    assert resources.model_names() == ['small']
    assert resources.find_model('small') == (tmp_path / 'small').resolve()
    assert resources.find_model('large') is None
    assert resolve('small') == (tmp_path / 'small').resolve()
    with pytest.raises(CheckpointError, match='or what ships with the package: small'):
        resolve('large')
