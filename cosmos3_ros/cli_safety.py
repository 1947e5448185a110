"""The commands `cosmos3 safety-sim` and `cosmos3 calibrate`: how well verdicts work, and the bands they need."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cosmos3_ros.safety_options import SAFETY_ARGUMENTS, safety_options
from engine.errors import InvalidInput, Problem

Bars = Callable[[], AbstractContextManager[Callable[[str, float], None]]]
Commands = Any  # argparse has no public name for what add_subparsers returns

_OF_CALIBRATE = (
    'contract', 'rung', 'seed', 'false_alarm_rate', 'proposer', 'job', 'latency', 'own_video', 'pictures', 'workers',
    'device', 'dtype',
)  # fmt: skip


def add_safety_sim(commands: Commands, bars: Bars) -> None:
    """Add `cosmos3 safety-sim`."""
    simulate = commands.add_parser(
        'safety-sim',
        help='measure how well verdicts of imagination work: episodes with hazards and without, tables and a report',
    )
    _add_arguments(simulate, [argument.name for argument in SAFETY_ARGUMENTS])
    simulate.set_defaults(run=lambda arguments: _simulate(arguments, bars))


def add_calibrate(commands: Commands, bars: Bars) -> None:
    """Add `cosmos3 calibrate`."""
    calibrate = commands.add_parser('calibrate', help="make the bands of a checkpoint's monitors from good episodes")
    calibrate.add_argument('checkpoint', help='directory or hub id')
    source = calibrate.add_mutually_exclusive_group()
    source.add_argument('--simulate', type=int, default=40, help='nominal episodes in the simulator (default: 40)')
    source.add_argument('--episode', action='append', default=[], help='recorded episode; may be given several times')
    calibrate.add_argument('-o', '--output', type=Path, required=True, help='JSON to write')
    _add_arguments(calibrate, _OF_CALIBRATE)
    calibrate.set_defaults(run=lambda arguments: _calibrate(arguments, bars))


def _add_arguments(command: argparse.ArgumentParser, names: list[str] | tuple[str, ...]) -> None:
    for argument in SAFETY_ARGUMENTS:
        if argument.name in names:
            flags = [f'--{argument.name.replace("_", "-")}', *(['-o'] if argument.name == 'output' else [])]
            help_ = f'{argument.description} (default: {argument.default or "empty"})'.replace('%', '%%')
            choices = argument.choices or None
            command.add_argument(*flags, default=argument.default, choices=choices, help=help_)


def _simulate(arguments: argparse.Namespace, bars: Bars) -> int:
    options = safety_options({argument.name: getattr(arguments, argument.name) for argument in SAFETY_ARGUMENTS})
    from rich.console import Console

    from cosmos3_ros.safety_sim import simulate
    from cosmos3_ros.safety_tables import limits_of, summary

    console = Console()
    outcome = simulate(options, bars, console.print)
    console.print(summary(outcome.results).rich())
    for text in limits_of(outcome.results):
        console.print(text)
    print(f'report: {outcome.report}')
    return 0


def _calibrate(arguments: argparse.Namespace, bars: Bars) -> int:
    given = {name: getattr(arguments, name) for name in _OF_CALIBRATE}
    given |= {'checkpoint': arguments.checkpoint, 'episode': ','.join(arguments.episode)}
    if arguments.output.is_dir() or not arguments.output.absolute().parent.is_dir():
        problem = Problem('--output', 'cannot be made', str(arguments.output), 'a file in a folder that exists')
        raise InvalidInput('arguments', [problem])
    if arguments.simulate < 0:
        problem = Problem('--simulate', 'is out of range', str(arguments.simulate), '0 or more')
        raise InvalidInput('arguments', [problem])
    with tempfile.TemporaryDirectory() as folder:
        options = safety_options({**given, 'calibration_episodes': str(arguments.simulate), 'output': folder})
        from cosmos3_ros.safety_sim import calibrate

        calibration = calibrate(options, bars, print)
    calibration.save(arguments.output)
    names = ', '.join(sorted(calibration.bands))
    print(f'{arguments.output}: bands of {names}, from {calibration.provenance["episodes"]}')
    return 0
