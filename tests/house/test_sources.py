"""Rules for every file: short functions, nothing of the machine it was written on."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

LONGEST_FUNCTION = 60
MEDIAN_FUNCTION = 12

# Spelled in pieces, so that this file keeps the rules it holds others to.
MACHINE_PATHS = re.compile(r'(?<![\w.~-])/(?:' + '|'.join(('home', 'root', 'Users', 'work')) + r')/\w')
INDEXES = re.compile(
    '|'.join(
        ('--' + 'index-url', '--extra-' + 'index-url', '--' + 'find-links', 'py' + r'pi\.org', 'pythonho' + 'sted')
    )
)


def functions(tree: ast.AST) -> Iterator[tuple[str, int, int]]:
    """Name, first line and number of lines of every function in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, node.end_lineno - node.lineno + 1


def texts(files: list[Path], root: Path) -> Iterator[tuple[Path, str]]:
    for path in files:
        try:
            yield path, (root / path).read_text(encoding='utf-8')
        except UnicodeDecodeError:
            continue  # pictures and the like


def matches(pattern: re.Pattern[str], files: list[Path], root: Path) -> list[str]:
    return [
        f'{path}:{number}: {line.strip()}'
        for path, text in texts(files, root)
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]


def test_no_function_is_longer_than_sixty_lines(python_files):
    long = [
        f'{source.path}:{line} {name}: {length} lines'
        for source in python_files
        for name, line, length in functions(source.tree)
        if length > LONGEST_FUNCTION
    ]
    assert long == []


def test_the_median_function_has_at_most_twelve_lines(product):
    lengths = [length for source in product for _, _, length in functions(source.tree)]
    assert statistics.median(lengths) <= MEDIAN_FUNCTION


def test_no_file_names_a_folder_of_somebodys_machine(files, repository):
    assert matches(MACHINE_PATHS, files, repository) == []


def test_no_file_names_a_package_index(files, repository):
    assert matches(INDEXES, files, repository) == []


def test_libraries_do_not_print(product):
    printing = [
        f'{source.path}:{node.lineno}'
        for source in product
        if not source.module.startswith('cosmos3_ros.cli')
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'print'
    ]
    assert printing == []


def test_nothing_is_validated_by_assert(product):
    asserting = [
        f'{s.path}:{node.lineno}' for s in product for node in ast.walk(s.tree) if isinstance(node, ast.Assert)
    ]
    assert asserting == []
