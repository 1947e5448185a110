"""The executable `guard`."""

from __future__ import annotations

import gc
from functools import partial
from typing import NoReturn

from cosmos3_ros.process import answer_signals


def main() -> NoReturn:
    """Entry point of the executable `guard`."""
    answer_signals()  # before ROS is imported, so that a stop request is answered at any moment
    from cosmos3_ros.guard_node import GuardNode
    from cosmos3_ros.node_base import spin

    # What has been imported stays: the collector need not look through it while the arm moves.
    gc.collect()
    gc.freeze()
    spin(partial(GuardNode, owns_process=True), threads=4)


if __name__ == '__main__':
    main()
