"""The command `cosmos3 dataset`: what is wrong with a data set, and a new one of it, of a bag, or of half a bag."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from engine.contract import Contract
    from engine.datasets.column_checks import Bounds
    from engine.datasets.doctor import Diagnosis

Bars = Callable[[], AbstractContextManager[Callable[[str, float], None]]]
Commands = Any  # argparse has no public name for what add_subparsers returns

EXIT_ILL = 1
"""The doctor found something grave, or the contract lacks something."""


def add_dataset(commands: Commands, bars: Bars) -> None:
    """Add `cosmos3 dataset` with its own commands."""
    parser = commands.add_parser('dataset', help='data sets: faults, conversion to LeRobot v3, recorded runs')
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='KIND')
    _add_doctor(kinds, bars)
    _add_convert(kinds, bars)
    _add_from_bag(kinds, bars)
    _add_recover(kinds)


def _add_reading(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add('path', type=Path, help='LeRobot data set (v2 or v3), or a folder with one .parquet table and videos')
    add('--contract', default='', help='name in config/contracts or a path: what the data set shall be good for')
    add('--schema', default='', help='droid_plus, droid_lerobot, lerobot_droid, openpi or cosmos3_ros; empty: find out')
    add(
        '--actions',
        default='',
        help='what the actions hold, if the schema is wrong: position, velocity, cartesian',
    )


def _add_doctor(kinds: Commands, bars: Bars) -> None:
    command = kinds.add_parser('doctor', help='list the faults of a data set; exit code 1 if there are any')
    _add_reading(command)
    command.add_argument('--episodes', type=int, default=50, help='how many to look into, evenly spread (default: 50)')
    command.set_defaults(run=lambda arguments: _doctor(arguments, bars))


def _doctor(arguments: argparse.Namespace, bars: Bars) -> int:
    from rich.console import Console

    from engine.contract import load_contract
    from engine.datasets.doctor import examine

    contract = load_contract(arguments.contract) if arguments.contract else None
    with bars() as report:
        found = examine(
            arguments.path,
            contract,
            _bounds(contract),
            schema=arguments.schema,
            given=arguments.actions,
            most=max(1, arguments.episodes),
            report=lambda share: report('episodes', share),
        )
    console = Console()
    console.print(_head(found), highlight=False)
    if found.faults:
        console.print(_faults_table(found))
    if contract is not None:
        console.print(_needs_table(found, contract.name))
    grave = sum(one.grave for one in found.faults)
    console.print(f'{grave} faults, {len(found.faults) - grave} remarks', highlight=False)
    return 0 if found.healthy else EXIT_ILL


def _bounds(contract: Contract | None) -> Bounds | None:
    """Limits of the contract's robot, in the order of its joints."""
    if contract is None:
        return None
    from cosmos3_ros.guard.limits import load_limits
    from engine.datasets.column_checks import Bounds

    limits = load_limits(contract.robot.description)
    return Bounds(limits.lower, limits.upper, limits.velocity)


def _head(found: Diagnosis) -> str:
    looked = '' if found.examined == found.episodes else f', {found.examined} looked into'
    rate = 'unknown rate' if found.fps is None else f'{found.fps:g} Hz'
    cameras = ', '.join(found.cameras) or 'none'
    return (
        f'{found.root.name}: {found.layout}, schema {found.schema}, {found.episodes} episodes{looked}, '
        f'{found.rows} rows, {rate}; cameras: {cameras}'
    )


def _faults_table(found: Diagnosis) -> Table:
    from rich.table import Table

    table = Table(show_lines=True)
    for name in ('', 'where', 'what', 'found', 'allowed', 'remedy'):
        table.add_column(name, overflow='fold')
    for one in found.faults:
        problem = one.problem
        what = problem.what + (f' ({one.episodes} episodes)' if one.episodes > 1 else '')
        table.add_row(
            one.code if one.grave else f'{one.code} (remark)',
            problem.where,
            what,
            problem.value,
            problem.allowed,
            problem.remedy,
        )
    return table


def _needs_table(found: Diagnosis, name: str) -> Table:
    from rich.table import Table

    table = Table(title=f'contract {name}')
    for column in ('reads', 'found in', 'missing'):
        table.add_column(column, overflow='fold')
    for need in found.needs:
        table.add_row(need.name, need.found or '-', need.missing)
    return table


def _add_convert(kinds: Commands, bars: Bars) -> None:
    command = kinds.add_parser('convert', help='make a data set that LeRobotDataset loads, of what can be believed')
    _add_reading(command)
    add = command.add_argument
    add('--instruction', default='', help='text for episodes that have none')
    add('--achieved', action='store_true', help='where actions are missing, take where the arm was one row later')
    add('-o', '--output', type=Path, required=True, help='folder of the new data set; must not exist')
    command.set_defaults(run=lambda arguments: _convert(arguments, bars))


def _convert(arguments: argparse.Namespace, bars: Bars) -> int:
    from engine.contract import load_contract
    from engine.datasets.convert import Order, convert

    contract = load_contract(arguments.contract) if arguments.contract else None
    text = Path(contract.source).read_text(encoding='utf-8') if contract is not None else ''
    order = Order(contract, text, arguments.schema, arguments.actions, arguments.achieved, arguments.instruction)
    with bars() as report:
        made = convert(arguments.path, arguments.output, order, lambda share: report('episodes', share))
    for note in made.left_out:
        print(f'left out or changed: {note}')
    print(f'{made.root}: {made.episodes} episodes, {made.rows} rows, {", ".join(made.features)}')
    return 0


def _add_from_bag(kinds: Commands, bars: Bars) -> None:
    command = kinds.add_parser(
        'from-bag', help='make a LeRobot data set of a recorded run, at the rate of the contract'
    )
    add = command.add_argument
    add('bag', type=Path, help='folder of the bag, as the recorder writes it; or any bag with --contract')
    add('--contract', default='', help='name or path; empty: the contract that the bag holds')
    add('--namespace', default='', help='namespace of the topics in the bag; empty: the one the bag names')
    add('--actions', default='commanded', choices=('commanded', 'achieved'), help='which actions (default: commanded)')
    add('--instruction', default='', help='text for stretches that have none; without it they are left out')
    add('-o', '--output', type=Path, required=True, help='folder of the new data set; must not exist')
    command.set_defaults(run=lambda arguments: _from_bag(arguments, bars))


def _from_bag(arguments: argparse.Namespace, bars: Bars) -> int:
    from cosmos3_ros.recorder_dataset import BagOrder, dataset_from_bag

    order = BagOrder(arguments.contract, arguments.namespace, arguments.actions, arguments.instruction)
    with bars() as report:
        made = dataset_from_bag(arguments.bag, arguments.output, order, lambda share: report('bag', share))
    for note in made.left_out:
        print(f'left out: {note}')
    print(f'{made.root}: {made.episodes} episodes, {made.rows} rows, {", ".join(made.features)}')
    return 0


def _add_recover(kinds: Commands) -> None:
    command = kinds.add_parser('recover', help='complete a bag whose recorder was killed')
    command.add_argument('bag', type=Path, help='folder of the bag')
    command.set_defaults(run=_recover)


def _recover(arguments: argparse.Namespace) -> int:
    from cosmos3_ros.recorder_recovery import recover

    found = recover(arguments.bag)
    lost = f'{found.lost_bytes} bytes at the end were incomplete' if found.lost_bytes else 'nothing was incomplete'
    print(f'{arguments.bag}: {found.messages} messages, {found.seconds:.1f} s; {lost}')
    return 0
