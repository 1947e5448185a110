"""Processes that run a network keep the memory that they free, and open one thread for pictures."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

FAULTS = """
import resource
from cosmos3_ros.processor import prepare
import numpy as np

{prepare}

def work():
    blocks = [np.empty(1 << 21, np.uint8) for _ in range(16)]
    for block in blocks:
        block.fill(1)

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 16 * (1 << 21) // os.sysconf('SC_PAGE_SIZE')


def printed(code: str, **environment: str) -> str:
    """What Python prints, without what this process's environment says of memory and threads."""
    names = ('MALLOC_', 'GLIBC_TUNABLES', 'OPENCV_FOR_THREADS_NUM')
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    run = subprocess.run(
        [sys.executable, '-c', code], env=kept | environment, check=True, capture_output=True, text=True, timeout=120
    )
    return run.stdout.strip()


@pytest.mark.skipif(sys.platform != 'linux', reason='asks the C library of Linux')
def test_memory_that_was_freed_is_there_again_without_a_page_fault() -> None:
    faults = {prepare: int(printed(FAULTS.format(prepare=prepare))) for prepare in ('prepare()', 'pass')}
    assert faults['prepare()'] < PAGES / 10
    if faults['pass'] < PAGES / 10:
        pytest.skip('memory comes in huge pages here, with or without')


def test_what_the_environment_says_of_memory_is_left_alone() -> None:
    code = 'from cosmos3_ros.processor import keep_freed_memory; print(keep_freed_memory())'
    assert printed(code, MALLOC_TRIM_THRESHOLD_='131072') == 'False'
    assert printed(code, GLIBC_TUNABLES='glibc.malloc.trim_threshold=131072') == 'False'
    if hasattr(ctypes.CDLL(None), 'gnu_get_libc_version'):
        assert printed(code, GLIBC_TUNABLES='glibc.malloc.arena_max=4') == printed(code) == 'True'


@pytest.mark.parametrize(('said', 'threads'), [({}, 1), ({'OPENCV_FOR_THREADS_NUM': '2'}, 2)], ids=['nothing', 'two'])
def test_opencv_has_one_thread_unless_the_environment_says_otherwise(said: dict[str, str], threads: int) -> None:
    code = 'from cosmos3_ros.processor import prepare; prepare(); import cv2; print(cv2.getNumThreads())'
    assert int(printed(code, **said)) == threads


@pytest.mark.parametrize('entry', ['cosmos3_ros.cli', 'cosmos3_ros.host'])
def test_whoever_runs_networks_asks_for_it_before_opencv_is_there(entry: str) -> None:
    """Each entry point is left at the first thing it does with its arguments."""
    code = f"""
import sys
import {entry} as entry, cosmos3_ros.processor as processor

def asked():
    print('asked', 'cv2' in sys.modules)
    raise SystemExit

processor.prepare = asked
sys.argv = ['it', '--help']
entry.main()
"""
    assert printed(code) == 'asked False'
