"""Sends one instruction to the policy as soon as it is there, and follows it to its end."""

from __future__ import annotations

import sys

from cosmos3_ros.process import answer_signals


def main() -> int:
    """Entry point of the executable `instruct`; 0 if the run ended as wanted or was stopped by a signal."""
    stop = answer_signals()
    from cosmos3_ros.instruction_client import follow

    return follow(stop)


if __name__ == '__main__':
    sys.exit(main())
