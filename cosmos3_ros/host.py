"""The host process: everything that shares the network. At present the policy node."""

from __future__ import annotations

import os
from typing import NoReturn

from cosmos3_ros.process import answer_signals

NICENESS = 5
"""How far this process steps back: on a machine whose cores are all busy with inference, the guard goes first."""


def main() -> NoReturn:
    """Entry point of the executable `host`."""
    os.nice(NICENESS)
    answer_signals()  # before the heavy imports below, so that Ctrl-C works during them
    from cosmos3_ros.node_base import spin
    from cosmos3_ros.policy_node import PolicyNode

    spin(PolicyNode)


if __name__ == '__main__':
    main()
