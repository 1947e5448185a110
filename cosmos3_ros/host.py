"""The host process: everything that shares the network. `host` holds the policy, `host policy dynamics` both.

`host reasoner` holds the reasoner alone, which needs no network if it asks an endpoint; `host server` a policy server.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from cosmos3_ros import processor
from cosmos3_ros.process import answer_signals

if TYPE_CHECKING:
    from cosmos3_ros.node_base import CosmosLifecycleNode

NICENESS = 5
"""How far this process steps back: on a machine whose cores are all busy with inference, the guard goes first."""
NODES = ('policy', 'dynamics', 'reasoner', 'server')
THREADS = 4
"""That run callbacks, for each node."""


def main() -> NoReturn:
    """Entry point of the executable `host`."""
    os.nice(NICENESS)
    answer_signals()  # before the heavy imports below, so that Ctrl-C works during them
    processor.prepare()
    from cosmos3_ros.node_base import spin

    names = wanted(sys.argv[1:])
    spin(lambda: [make(name) for name in names], threads=THREADS * len(names))


def wanted(arguments: list[str]) -> list[str]:
    """Nodes that the command line names, in front of what is for ROS; the policy if it names none.

    Raises:
        SystemExit: There is no such node.
    """
    end = arguments.index('--ros-args') if '--ros-args' in arguments else len(arguments)
    names = list(dict.fromkeys(arguments[:end])) or [NODES[0]]
    unknown = [name for name in names if name not in NODES]
    if unknown:
        raise SystemExit(f'host: no such node: {", ".join(unknown)}; there are {", ".join(NODES)}')
    return names


def make(name: str) -> CosmosLifecycleNode:
    """The node of a name."""
    if name == 'dynamics':
        from cosmos3_ros.dynamics_node import DynamicsNode

        return DynamicsNode()
    if name == 'reasoner':
        from cosmos3_ros.reasoner_node import ReasonerNode

        return ReasonerNode()
    if name == 'server':
        from cosmos3_ros.server_node import ServerNode

        return ServerNode()
    from cosmos3_ros.policy_node import PolicyNode

    return PolicyNode()


if __name__ == '__main__':
    main()
