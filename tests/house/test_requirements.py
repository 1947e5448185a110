"""Requirement files: each line pinned and justified, nothing forgotten, nothing about where packages come from."""

from __future__ import annotations

import re
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PIN = re.compile(r'(?P<name>[A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==(?P<version>[\w.]+)')


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r'[-_.]+', '-', name).lower()


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.strip() and not line.startswith('#')]


def pins(path: Path) -> dict[str, str]:
    found = [PIN.match(line) for line in lines(path)]
    return {normal(match['name']): match['version'] for match in found if match}


@pytest.fixture(scope='module')
def constraints(repository) -> dict[str, str]:
    return pins(repository / 'requirements/constraints.txt')


@pytest.fixture(scope='module')
def written(repository) -> list[Path]:
    """The requirement files that people write."""
    return [path for path in sorted((repository / 'requirements').glob('*.txt')) if path.stem != 'constraints']


def test_every_requirement_is_pinned_and_says_what_it_is_for(written):
    bad = [
        f'{path.name}: {line}'
        for path in written
        for line in lines(path)
        if not re.fullmatch(PIN.pattern + r'\s+# .{5,}', line)
    ]
    assert bad == []


def test_the_constraints_are_pins_and_nothing_else(repository):
    bad = [line for line in lines(repository / 'requirements/constraints.txt') if not PIN.fullmatch(line)]
    assert bad == []


def test_the_constraints_were_resolved_from_these_requirements(written, constraints):
    stale = {
        name: (version, constraints.get(name))
        for path in written
        if path.stem not in ('bootstrap', 'test-no-deps')
        for name, version in pins(path).items()
        if constraints.get(name) != version
    }
    assert stale == {}, 'run "make lock"'


def test_only_one_package_provides_opencv(constraints):
    assert [name for name in constraints if name.startswith('opencv')] == ['opencv-python-headless']


def test_every_third_party_import_is_required(product, written):
    required = {name for path in written for name in pins(path)}
    providers = packages_distributions()
    missing = {
        f'{source.path}: {name}'
        for source in product
        # What comes with ROS 2 is declared in package.xml, and brings each other along.
        for name in source.third_party() - source.ros()
        if not required & {normal(provider) for provider in providers.get(name, [name])}
    }
    assert missing == set()
