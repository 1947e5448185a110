"""Where figures come from: the policy, the contract, the software and the machine that made them."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ('numpy', 'scipy', 'torch', 'mujoco', 'ruckig')


def surroundings() -> dict[str, Any]:
    """Software, machine, commit and date, in plain values."""
    return {
        'versions': {'python': platform.python_version(), **_versions()},
        'hardware': hardware(),
        'commit': commit(),
        'date': time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime()) + ' UTC',
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, its cores, and the GPU if PyTorch was loaded and sees one."""
    found: dict[str, Any] = {'processor': _processor(), 'cores': os.cpu_count(), 'gpu': None}
    if (torch := sys.modules.get('torch')) is not None and torch.cuda.is_available():
        found['gpu'] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    """Model of the processor as Linux knows it, else the architecture."""
    try:
        found = re.search(r'^model name\s*: (.+)$', Path('/proc/cpuinfo').read_text(encoding='utf-8'), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.machine()


def commit() -> str:
    """Commit of the checkout that this code lies in, with '+' if its code was changed since; empty outside of one."""
    root = Path(__file__).resolve().parents[2]
    try:
        head = _git(root, 'rev-parse', '--short=12', 'HEAD')
        changed = _git(root, 'status', '--porcelain', '--', 'engine', 'cosmos3_ros', 'config')
    except (OSError, subprocess.SubprocessError):
        return ''
    return head + ('+' if changed else '')


def _git(folder: Path, *arguments: str) -> str:
    found = subprocess.run(['git', *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=10)
    return found.stdout.strip()
