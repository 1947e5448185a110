"""The source files as the house rules see them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ('engine', 'cosmos3_ros')
ROS = ('rclpy', 'launch', 'launch_ros', 'ament_index_python', 'tf2_ros')


@dataclass(frozen=True)
class Source:
    """One Python file: its path below the root, its dotted name, its syntax tree."""

    path: Path
    module: str
    tree: ast.Module

    def imports(self) -> set[str]:
        """Dotted names of everything imported anywhere in the file, also inside functions and for type checkers."""
        return {name for node in ast.walk(self.tree) for name in self._imported(node)}

    def _imported(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = self._absolute(node)
            for alias in node.names:
                submodule = f'{base}.{alias.name}'
                yield submodule if _is_module(submodule) else base

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ''
        package = self.module.split('.') if self.path.name == '__init__.py' else self.module.split('.')[:-1]
        parents = package[: len(package) - node.level + 1]
        return '.'.join([*parents, *([node.module] if node.module else [])])

    def third_party(self) -> set[str]:
        """Top-level names of imported packages that are neither Python's nor this project's."""
        tops = {name.partition('.')[0] for name in self.imports()}
        return tops - sys.stdlib_module_names - set(PRODUCT)

    def ros(self) -> set[str]:
        """Those of the third-party packages that come with ROS 2."""
        return {name for name in self.third_party() if name in ROS or name.endswith(('_msgs', '_srvs', '_interfaces'))}


def _is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split('.'))
    return place.with_suffix('.py').is_file() or (place / '__init__.py').is_file()


def _dotted(path: Path) -> str:
    parts = path.with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def _files() -> list[Path]:
    """Paths below the root of all files that are tracked or would be."""
    listing = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    try:
        names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split('\0')
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('git cannot list the files of this tree')
    return [Path(name) for name in names if name and (ROOT / name).is_file()]


@pytest.fixture(scope='session')
def files() -> list[Path]:
    """All files of the project, relative to its root."""
    return _files()


@pytest.fixture(scope='session')
def python_files(files: list[Path]) -> list[Source]:
    """All Python files of the project."""
    return [Source(p, _dotted(p), ast.parse((ROOT / p).read_text())) for p in files if p.suffix == '.py']


@pytest.fixture(scope='session')
def product(python_files: list[Source]) -> list[Source]:
    """The Python files that users run, without tests, benchmarks and launch files."""
    return [source for source in python_files if source.path.parts[0] in PRODUCT]
