"""Setting up: what it says when it cannot, and what it does not take for a finished environment."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NEEDED_BY_THE_SCRIPT = ('bash', 'cat', 'dirname', 'env', 'find', 'head', 'sed', 'sha256sum', 'sort', 'uname', 'xargs')


@pytest.fixture
def checkout(tmp_path, repository) -> Path:
    """A checkout in which nothing has been set up."""
    root = tmp_path / 'checkout'
    for part in ('tools', 'requirements', 'cosmos3_msgs', 'resource'):
        shutil.copytree(repository / part, root / part)
    for part in ('setup.py', 'setup.cfg'):
        shutil.copy(repository / part, root)
    return root


@pytest.fixture
def bare_path(tmp_path) -> Path:
    """A PATH on which there is neither Python nor a compiler nor a build tool."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name in NEEDED_BY_THE_SCRIPT:
        (folder / name).symlink_to(shutil.which(name))
    return folder


def set_up(checkout: Path, path: Path) -> subprocess.CompletedProcess[str]:
    command = [shutil.which('bash'), 'tools/setup.sh']
    return subprocess.run(command, cwd=checkout, env={'PATH': str(path)}, capture_output=True, text=True, check=False)


def test_everything_that_is_missing_is_named_at_once_with_its_package(checkout, bare_path):
    result = set_up(checkout, bare_path)
    assert result.returncode == 1
    for package in ('python3.12', 'python3.12-venv', 'python3.12-dev', 'cmake', 'make', 'gcc', 'g++', 'util-linux'):
        assert f'(package: {package})' in result.stderr
    assert 'apt-get install python3.12 ' in result.stderr


def test_nothing_is_made_when_something_is_missing(checkout, bare_path):
    before = sorted(checkout.rglob('*'))
    set_up(checkout, bare_path)
    assert sorted(checkout.rglob('*')) == before


def test_a_tool_that_is_too_old_counts_as_missing(checkout, bare_path):
    cmake = bare_path / 'cmake'
    cmake.write_text('#!/bin/sh\necho cmake version 3.16.3\n')
    cmake.chmod(0o755)
    assert 'cmake 3.21 or newer, found 3.16.3 (package: cmake)' in set_up(checkout, bare_path).stderr


def test_an_environment_without_its_stamps_is_not_taken_for_a_finished_one(checkout, bare_path):
    python = checkout / '.venv/bin/python'
    python.parent.mkdir(parents=True)
    python.symlink_to(shutil.which('sh'))
    assert set_up(checkout, bare_path).returncode == 1


def test_make_lists_what_it_can_do(repository):
    listing = subprocess.run(
        ['make', '--no-print-directory'], cwd=repository, capture_output=True, text=True, check=True
    )
    offered = {line.split()[1] for line in listing.stdout.splitlines()}
    assert {'setup', 'test', 'demo', 'lint', 'clean'} <= offered
