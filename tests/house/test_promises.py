"""The promises in the guard's document are pinned by tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def promised() -> set[str]:
    text = (ROOT / 'docs/guard.md').read_text()
    match = re.search(r'^## Promises$\n(.*?)(?=^## )', text, re.M | re.S)
    return set(re.findall(r'`(test_\w+)`', match[1])) if match else set()


def written() -> set[str]:
    return {
        node.name
        for path in (ROOT / 'tests').rglob('*.py')
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }


def test_every_promise_of_the_guard_has_tests_that_exist():
    assert len(promised()) > 30
    assert promised() - written() == set()
