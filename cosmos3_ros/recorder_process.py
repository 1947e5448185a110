"""The executable `recorder`."""

from __future__ import annotations

from typing import NoReturn

from cosmos3_ros.process import answer_signals


def main() -> NoReturn:
    """Entry point of the executable `recorder`."""
    answer_signals()  # before the heavy imports below, so that Ctrl-C works during them
    from cosmos3_ros.node_base import spin
    from cosmos3_ros.recorder import RecorderNode

    spin(RecorderNode)


if __name__ == '__main__':
    main()
