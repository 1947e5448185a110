"""The executable `safety_sim`: `cosmos3 safety-sim` with its arguments as `name:=value`, as launch files give them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cosmos3_ros.runner import show_arguments
from cosmos3_ros.safety_options import SAFETY_ARGUMENTS, safety_options
from engine.errors import CosmosError, InvalidInput, Problem

_ROS = '--ros-args'


def command_line(given: Sequence[str]) -> list[str]:
    """The arguments of `cosmos3` that mean the same; what follows `--ros-args` is for nodes, and this is none.

    Raises:
        InvalidInput: An argument is not of that form, unknown, or has a value that cannot be used; lists every fault.
    """
    words = list(given[: given.index(_ROS)] if _ROS in given else given)
    pairs = [word.partition(':=') for word in words]
    problems = [Problem(word, 'is no argument', allowed='name:=value') for word, sign, _ in pairs if not sign]
    if problems:
        raise InvalidInput('safety simulation', problems)
    values = {name: value for name, _, value in pairs}
    safety_options(values)
    return ['safety-sim', *(f'--{name.replace("_", "-")}={value}' for name, value in values.items())]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns 0, 2 if the arguments are wrong, or 130 if interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {'--show-args', '--help', '-h', '-s'} & set(given):
        sys.stdout.write(show_arguments(SAFETY_ARGUMENTS) + '\n')
        return 0
    try:
        words = command_line(given)
    except CosmosError as error:
        sys.stderr.write(f'{error}\n')
        return 2
    from cosmos3_ros import cli

    return cli.main(words)


if __name__ == '__main__':
    raise SystemExit(main())
