"""The journal of a run: one line of JSON for each look at it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole lines; one that was torn when the run was killed is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict) and 'step' in document and 'seconds' in document:
            found.append(document)
    return found


def write_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line."""
    with path.open('a', encoding='utf-8') as journal:
        journal.write(json.dumps(line) + '\n')


def go_back(path: Path, step: int) -> None:
    """Forget what comes after a step, because the run goes on from there."""
    lines = [line for line in read_journal(path) if line['step'] <= step]
    unfinished = path.with_name(f'.{path.name}')
    unfinished.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    os.replace(unfinished, path)


def last_validation(path: Path) -> dict[str, float]:
    """The figures of the last validation; empty if there was none."""
    for line in reversed(read_journal(path)):
        found = {key.partition('/')[2]: value for key, value in line.items() if key.startswith('valid/')}
        if found:
            return found
    return {}
