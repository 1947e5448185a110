"""The command `cosmos3 eval`: how good a policy is, with intervals, and whether another one is better."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos3_ros.cli_open_loop import add_open_loop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from cosmos3_ros.eval_runs import EvalOptions
    from engine.evaluation.statistics import Paired

Bars = Callable[[], AbstractContextManager[Callable[[str, float], None]]]
Commands = Any  # argparse has no public name for what add_subparsers returns

_SHOWN = ('task', 'success', 'Wilson 95 %', 'progress', 'time, s', 'wrong object', 'refused')  # 80 letters wide


def add_eval(commands: Commands, bars: Bars) -> None:
    """Add `cosmos3 eval` with its own commands."""
    parser = commands.add_parser('eval', help='how good a policy is: episodes, figures with intervals, a report')
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='KIND')
    add_open_loop(kinds, bars)
    _add_closed_loop(kinds, bars)
    _add_compare(kinds)


def _add_closed_loop(kinds: Commands, bars: Bars) -> None:
    command = kinds.add_parser(
        'closed-loop',
        help='tasks of the simulated Franka, behind the guard: successes, report, films',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = command.add_argument
    add(
        '--policy',
        default='expert',
        help='expert, another, hold, random, a checkpoint (directory or hub id), or ws://HOST:PORT',
    )
    add('--task', default='reach,push,lift,place', help='one or several, separated by commas')
    add('--episodes', type=int, default=100, help='of each task')
    add('--start-seed', type=int, default=0, help='seed of the first episode; the others count up from it')
    add('--contract', default='demo_joint_pos', help='name in config/contracts or a path')
    add('--replan-rows', type=int, default=8, help='rows from one observation to the next')
    add('--latency', type=float, default=0.2, help='simulated seconds from an observation to its chunk')
    add('--start-jitter', type=float, default=0.05, help='largest turn of each joint from the start pose, rad')
    add('--light-jitter', type=float, default=0.0, help='largest share by which lamps are brighter or darker')
    add('--camera-jitter', type=float, default=0.0, help='largest shift of each camera along each axis, m')
    add('--camera-turn', type=float, default=0.0, help='largest turn of each camera about each axis, rad')
    add(
        '--share-scene',
        type=int,
        default=1,
        help='seeds in a row that begin alike and name the objects in turn: does the arm go to what is named?',
    )
    add('--device', default='cpu', help='where a checkpoint runs: cpu, cuda, ...')
    add('--dtype', default='float32', help='precision of a checkpoint')
    add('--compiled', default='', help='folder that cosmos3 compile made; empty for none')
    add('--dialect', default='cosmos-framework', help='of a policy server: openpi, roboarena or vllm-omni')
    add('--api-key-variable', default='', help='environment variable that holds the key of a policy server')
    add('--threads', type=int, default=1, help='of PyTorch in each process; the same number makes the same episodes')
    add('--workers', type=int, default=1, help='processes that share the episodes')
    add('--graph', action='store_true', help='guard and policy as processes of a ROS graph, as on a robot')
    add('--splice', choices=('blend', 'prefix'), default='blend', help='with --graph: how chunks are joined')
    add('--no-films', action='store_true', help='run no episode once more to film it')
    add('--record', type=Path, help='LeRobot data set that episodes are added to as they are run')
    add('-o', '--output', type=Path, required=True, help='folder; what it has of the same run is not run again')
    command.set_defaults(run=lambda arguments: _closed_loop(arguments, bars))


def _options(given: argparse.Namespace) -> EvalOptions:
    from cosmos3_ros.eval_runs import EvalOptions
    from cosmos3_ros.eval_world import Cast
    from engine.evaluation.closed_loop import LoopTerms
    from engine.evaluation.tasks import Jitter

    terms = LoopTerms(given.replan_rows, given.latency)
    return EvalOptions(
        given.output,
        Cast(
            given.policy,
            given.contract,
            terms,
            given.device,
            given.dtype,
            given.compiled,
            given.threads,
            given.graph,
            given.splice,
            given.dialect,
            given.api_key_variable,
        ),
        tuple(dict.fromkeys(name.strip() for name in given.task.split(',') if name.strip())),
        given.episodes,
        given.start_seed,
        Jitter(given.start_jitter, given.light_jitter, given.camera_jitter, given.camera_turn),
        given.workers,
        not given.no_films,
        given.record,
        given.share_scene,
    )


def _closed_loop(arguments: argparse.Namespace, bars: Bars) -> int:
    options = _options(arguments)
    from rich.console import Console
    from rich.table import Table

    from cosmos3_ros.eval_runs import evaluate
    from engine.evaluation.report_html import summary

    outcome = evaluate(options, bars)
    head, rows = summary(outcome.records)
    table = Table(title=f'{arguments.policy}, {arguments.episodes} episodes of each task')
    shown = [column for column, name in enumerate(head) if name in _SHOWN]
    for column in shown:
        table.add_column(head[column], justify='right' if column else 'left')
    for row in rows:
        table.add_row(*(row[column] for column in shown))
    Console().print(table)
    print(f'report: {outcome.report}')
    return 0


def _add_compare(kinds: Commands) -> None:
    compare = kinds.add_parser('compare', help='two closed-loop runs, episode by episode')
    compare.add_argument('first', type=Path, help='folder of a run')
    compare.add_argument('second', type=Path, help='folder of another one')
    compare.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from engine.errors import InvalidInput, Problem
    from engine.evaluation.closed_loop_runs import EPISODES_FILE, read_journal
    from engine.evaluation.report import compare

    (run, records), (other, others) = (
        read_journal(folder / EPISODES_FILE) for folder in (arguments.first, arguments.second)
    )
    parts = compare(records, others)
    if not parts['all'].trials:
        problem = Problem('episodes', 'the runs have none in common', remedy='run both with the same tasks and seeds')
        raise InvalidInput('comparison', [problem])
    Console().print(_compare_table(parts))
    for name in {**run, **other}:
        if run.get(name) != other.get(name):
            print(f'{name}: {run.get(name, "-")} | {other.get(name, "-")}')
    return 0


def _compare_table(parts: Mapping[str, Paired]) -> Table:
    from rich.table import Table

    table = Table(title='second against first, the same episodes; exact McNemar test')
    columns = ('task', 'first', 'second', 'both', 'only first', 'only second', 'difference, %', 'p')
    for name in columns:
        table.add_column(name, justify='left' if name == 'task' else 'right')
    for name, found in parts.items():
        middle, low, high = (100 * x for x in found.difference)
        table.add_row(
            name,
            f'{found.first.hits}/{found.trials}',
            f'{found.second.hits}/{found.trials}',
            *(str(count) for count in (found.both, found.only_first, found.only_second)),
            f'{middle:+.1f} [{low:+.1f}, {high:+.1f}]',
            f'{found.p_value:.3g}',
        )
    return table
