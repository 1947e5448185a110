"""What a process that runs a network on the processor asks of the system. Entry points ask, and workers for themselves.

Freed memory stays with the process. By default the C library gives large blocks back as soon as they are free and gets
them anew for the next layer, and every page of them is cleared and entered again: a chunk of the model that ships with
this package takes 3,900 page faults so, an eighth of its time. The network asks for the same blocks in every pass.

OpenCV works with one thread. A tick's pictures are small, and to wake a second thread takes longer than it saves.

Both leave alone what the environment already says.
"""

from __future__ import annotations

import ctypes
import os
import sys

THREADS_VARIABLE = 'OPENCV_FOR_THREADS_NUM'
"""Read by OpenCV when it is imported."""
MALLOC_VARIABLES = ('MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TOP_PAD_')
MALLOC_TUNABLES = ('glibc.malloc.trim_threshold', 'glibc.malloc.mmap_threshold', 'glibc.malloc.top_pad')
KEPT_BYTES = 1 << 30
"""Of freed memory, at the end of what the process has; what lies between blocks in use is kept in any case."""
LARGEST_BYTES = 32 << 20
"""Blocks up to this size are kept; the C library takes no larger limit."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from <malloc.h>


def prepare() -> None:
    """Ask for both. To be called before OpenCV is imported; child processes find OpenCV's part in the environment."""
    os.environ.setdefault(THREADS_VARIABLE, '1')
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Keep what is freed for what is asked for next; returns whether the C library does so at this request."""
    tunables = os.environ.get('GLIBC_TUNABLES', '')
    said = any(map(os.environ.get, MALLOC_VARIABLES)) or any(name in tunables for name in MALLOC_TUNABLES)
    if said or sys.platform != 'linux':
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library than GNU's
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST_BYTES) and mallopt(_TRIM_THRESHOLD, KEPT_BYTES))
