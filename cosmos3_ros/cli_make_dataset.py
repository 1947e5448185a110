"""The command `cosmos3 make-dataset`: episodes of the scripted hand as a LeRobot data set, for training."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from cosmos3_ros.demonstration_runs import DatasetOptions, Made

Bars = Callable[[], AbstractContextManager[Callable[[str, float], None]]]
Commands = Any  # argparse has no public name for what add_subparsers returns

_NAMED = 10  # dropped episodes that are named one by one


def add_make_dataset(commands: Commands, bars: Bars) -> None:
    """Add `cosmos3 make-dataset`."""
    command = commands.add_parser(
        'make-dataset',
        help='demonstrations of the simulated Franka by a scripted hand, as a LeRobot data set',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = command.add_argument
    add('--contract', default='micro_joint_pos', help='name in config/contracts or a path')
    add('--task', default='reach,push,lift,place', help='one or several, separated by commas')
    add('--episodes', type=int, default=100, help='of each task')
    add(
        '--start-seed',
        type=int,
        default=100_000,
        help='seed of the first episode; the others count up. Evaluations count from 0: keep away from those',
    )
    add(
        '--share-scene',
        type=int,
        default=1,
        help='seeds in a row that begin alike and name the objects in turn: only what is asked for tells them apart',
    )
    add('--start-jitter', type=float, default=0.25, help='largest turn of each joint from the start pose, rad')
    add('--light-jitter', type=float, default=0.15, help='largest share by which lamps are brighter or darker')
    add('--camera-jitter', type=float, default=0.0, help='largest shift of each camera along each axis, m')
    add('--camera-turn', type=float, default=0.0, help='largest turn of each camera about each axis, rad')
    add('--perturb', type=float, default=0.0, help='share of the episodes in which the arm is displaced once or twice')
    add('--led', type=float, default=0.0, help='share of the episodes in which somebody else leads at first')
    add('--led-by', default='', help='who: a checkpoint, ws://HOST:PORT, another, random or hold')
    add('--linger', type=float, default=0.6, help='seconds that an episode goes on after success')
    add('--replan-rows', type=int, default=4, help='rows from one observation to the next')
    add('--latency', type=float, default=0.0, help='simulated seconds from an observation to its chunk')
    add('--picture', type=_size, default='180x320', help='height and width of the pictures, pixels')
    add(
        '--only-successes',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='drop episodes that did not succeed',
    )
    add('--workers', type=int, default=1, help='processes that share the episodes; the data are the same')
    add('-o', '--output', type=Path, required=True, help='folder; episodes that it has are not run again')
    command.set_defaults(run=lambda arguments: _make(arguments, bars))


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    return int(height), int(width)


def _options(given: argparse.Namespace) -> DatasetOptions:
    from cosmos3_ros.demonstration_runs import DatasetOptions
    from cosmos3_ros.demonstrations import Terms
    from engine.evaluation.closed_loop import LoopTerms
    from engine.evaluation.tasks import Jitter

    loop = LoopTerms(given.replan_rows, given.latency)
    return DatasetOptions(
        given.output,
        Terms(given.contract, loop, given.linger, given.perturb, given.picture, given.led, given.led_by),
        tuple(dict.fromkeys(name.strip() for name in given.task.split(',') if name.strip())),
        given.episodes,
        given.start_seed,
        Jitter(given.start_jitter, given.light_jitter, given.camera_jitter, given.camera_turn),
        given.share_scene,
        given.only_successes,
        given.workers,
    )


def _make(arguments: argparse.Namespace, bars: Bars) -> int:
    options = _options(arguments)
    from rich.console import Console

    from cosmos3_ros.demonstration_runs import make_dataset

    made = make_dataset(options, bars)
    Console().print(_table(made, options.tasks))
    if made.dropped:
        named = ', '.join(f'{task} {seed}' for task, seed in made.dropped[:_NAMED])
        more = f' and {len(made.dropped) - _NAMED} more' if len(made.dropped) > _NAMED else ''
        print(f'dropped, not successful: {named}{more}')
    print(f'{made.root}: {made.episodes} episodes, {made.rows} rows; {made.run} episodes run by this call')
    return 0


def _table(made: Made, tasks: tuple[str, ...]) -> Table:
    from rich.table import Table

    table = Table(title='demonstrations')
    for name in ('task', 'episodes', 'successful', 'dropped', 'mean time, s', 'refused chunks'):
        table.add_column(name, justify='left' if name == 'task' else 'right')
    for task in tasks:
        records = [one for one in made.records if one.task == task]
        mean = sum(one.duration_s for one in records) / len(records)
        table.add_row(
            task,
            str(len(records)),
            str(sum(one.success for one in records)),
            str(sum(name == task for name, _ in made.dropped)),
            f'{mean:.1f}',
            str(sum(len(one.refusals) for one in records)),
        )
    return table
