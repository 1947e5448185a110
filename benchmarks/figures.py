"""What the benchmarks share: the machine by name, the commit, intervals, and files in `results`."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cosmos3_ros.intervals import wilson

__all__ = ['RESULTS', 'commit', 'facts', 'machine', 'processor_name', 'save', 'table', 'wilson']

RESULTS = Path(__file__).parent / 'results'


def processor_name() -> str:
    """Model of the processor as Linux knows it, else the architecture."""
    try:
        found = re.search(r'^model name\s*: (.+)$', Path('/proc/cpuinfo').read_text(encoding='utf-8'), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.machine()


def machine() -> dict[str, Any]:
    """What figures were taken with."""
    return {
        'processor': processor_name(),
        'cores': os.cpu_count(),
        'load': round(os.getloadavg()[0], 2),
        'python': platform.python_version(),
        'numpy': version('numpy'),
        'ruckig': version('ruckig'),
        'commit': commit(),
        'date': time.strftime('%Y-%m-%d', time.gmtime()),
    }


def commit() -> str:
    """Abbreviated commit of this checkout, with '+' if files of the product differ from it; empty outside of git."""
    folder = Path(__file__).parent
    try:
        head = _git(folder, 'rev-parse', '--short=12', 'HEAD')
        changed = _git(folder, 'status', '--porcelain', '--', '../cosmos3_ros', '../engine', '../config', '.')
    except (OSError, subprocess.CalledProcessError):
        return ''
    return head + ('+' if changed else '')


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(['git', *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def save(name: str, document: Mapping[str, Any], text: str | None = None) -> None:
    """Write `results/NAME.json`, and `results/NAME.md` if there is a text."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f'{name}.json').write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
    if text is not None:
        (RESULTS / f'{name}.md').write_text(text.rstrip() + '\n', encoding='utf-8')


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; all columns but the first are numbers."""
    lines = [f'| {" | ".join(head)} |', '|---|' + '---:|' * (len(head) - 1)]
    return '\n'.join([*lines, *(f'| {" | ".join(map(str, row))} |' for row in rows)])


def facts(document: Mapping[str, Any]) -> str:
    """One line that names the machine."""
    return ', '.join(f'{key} {value}' for key, value in document.items() if value not in ('', None))
