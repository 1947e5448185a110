"""The command `cosmos3 eval open-loop`: a checkpoint's answers to recorded moments, held to what happened."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import InvalidInput, Problem

if TYPE_CHECKING:
    from cosmos3_ros.open_loop_runs import Makers, OpenLoopOptions
    from engine.contract import Contract

Bars = Callable[[], AbstractContextManager[Callable[[str, float], None]]]
Commands = Any  # argparse has no public name for what add_subparsers returns


def add_open_loop(kinds: Commands, bars: Bars) -> None:
    """Add `cosmos3 eval open-loop`."""
    command = kinds.add_parser(
        'open-loop',
        help='recorded episodes: errors of chunks and of imagination beside what knows nothing, report',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = command.add_argument
    add('dataset', type=Path, help='folder of a LeRobot v3 data set, or of a table and videos')
    add('--policy', required=True, help='checkpoint: directory or hub id; or ws://HOST:PORT of a policy server')
    add('--contract', default='droid_joint_pos', help='name in config/contracts or a path')
    add('--episodes', default='', help='such as 0,3,5-9; empty for all')
    add('--stride', type=int, default=8, help='frames from one moment to the next, as many as rows are executed')
    add('--seeds', type=int, default=1, help='seeds that the policy is asked with; from 2 on their spread is measured')
    add('--max-anchors', type=int, default=400, help='moments at most, spread evenly over all episodes')
    add('--max-windows', type=int, default=16, help='windows of dynamics at most, likewise')
    add('--dynamics-steps', type=int, help='denoising steps of a window; left out: the published number')
    add('--dynamics-rows', type=int, help='rows of such a window, a multiple of 4; likewise')
    add('--dynamics-windows', type=int, default=1, help='that are imagined one after another, for longer videos')
    add('--dynamics-detail', action='store_true', help='what does not change keeps the detail of the first picture')
    add('--skip', default='', help='of policy, dynamics, inverse, what to leave out, separated by commas')
    add('--video-map', nargs='*', default=[], metavar='VIEW=SOURCE', help='camera that stands in for a missing view')
    add('--instruction', help='what was to be done, in place of what the recording says')
    add('--device', default='cpu', help='where the checkpoint runs: cpu, cuda, ...')
    add('--dtype', default='float32', help='precision of the checkpoint')
    add('--backend', default='auto', help='auto, torch, torch-compiled, onnxruntime or tensorrt')
    add('--compiled', default='', help='folder that cosmos3 compile made, for the policy alone; empty for none')
    add('--dialect', default='cosmos-framework', help='of a policy server: openpi, roboarena or vllm-omni')
    add('--deadline', type=float, default=60.0, help='longest time for an answer of a policy server, s')
    add('--api-key-variable', default='', help='environment variable that holds the key of a policy server')
    add('--threads', type=int, default=0, help='of PyTorch; 0: its own choice')
    add('-o', '--output', type=Path, required=True, help='folder for figures, lines, plots and report')
    command.set_defaults(run=lambda arguments: _open_loop(arguments, bars))


def _open_loop(arguments: argparse.Namespace, bars: Bars) -> int:
    from rich.console import Console
    from rich.table import Table

    from cosmos3_ros.open_loop_runs import measure
    from engine.evaluation.open_loop_report import tables

    outcome = measure(_options(arguments), lambda contract: _load(arguments, contract), bars)
    console = Console()
    for found in tables(outcome.document):
        if not found.short:
            continue
        table = Table(title=found.title)
        for number, name in enumerate(found.head):
            table.add_column(name, justify='right' if number else 'left')
        for row in found.rows:
            table.add_row(*row)
        console.print(table)
    print(f'report: {outcome.report}')
    return 0


def _options(given: argparse.Namespace) -> OpenLoopOptions:
    """What the command line asks for, and where its checkpoint comes from."""
    from cosmos3_ros.open_loop_runs import OpenLoopOptions, check_options

    options = OpenLoopOptions(
        given.dataset,
        given.output,
        given.contract,
        _numbers(given.episodes),
        given.stride,
        given.seeds,
        given.max_anchors,
        given.max_windows,
        _skipped(given),
        _video_map(given.video_map),
        given.instruction,
    )
    check_options(options)
    return replace(options, provenance=_provenance(given))


def _is_remote(given: argparse.Namespace) -> bool:
    from engine.serving.addresses import is_server

    return is_server(given.policy)


def _provenance(given: argparse.Namespace) -> dict[str, Any]:
    if _is_remote(given):
        return {'policy': given.policy, 'dialect': given.dialect}
    from engine.checkpoint import open_checkpoint
    from engine.contract import load_contract

    checkpoint = open_checkpoint(given.policy)
    found = {
        'policy': Path(given.policy).name,
        'checkpoint': checkpoint.fingerprint,
        'family': checkpoint.family,
        'sampler': asdict(load_contract(given.contract).sampler),
        'device': given.device,
        'dtype': given.dtype,
        'backend': given.backend,
        'dynamics_steps': given.dynamics_steps,
        'dynamics_windows': given.dynamics_windows,
        'dynamics_detail': given.dynamics_detail,
    }
    if given.compiled:
        from engine.backends.card import read_card

        card = read_card(Path(given.compiled))
        found['engine_card'] = {'key': card.key, 'precision': card.precision, 'builder': dict(card.builder)}
    return found


def _skipped(given: argparse.Namespace) -> frozenset[str]:
    """What is left out; a policy server imagines nothing."""
    skipped = frozenset(name.strip() for name in given.skip.split(',') if name.strip())
    return skipped | {'dynamics', 'inverse'} if _is_remote(given) else skipped


def _connect(given: argparse.Namespace, contract: Contract) -> Makers:
    from cosmos3_ros.open_loop_runs import Makers
    from engine.evaluation.open_loop_network import NetworkPolicy
    from engine.serving.addresses import key_from
    from engine.serving.client import RemotePolicy

    key = key_from(given.api_key_variable, '--api-key-variable')
    remote = RemotePolicy(given.policy, contract, dialect_name=given.dialect, api_key=key, deadline_s=given.deadline)
    remote.connect()
    return Makers(NetworkPolicy(remote), None)


def _load(given: argparse.Namespace, contract: Contract) -> Makers:
    """The checkpoint's surfaces; a policy from compiled parts leaves dynamics to a second copy of the weights."""
    if _is_remote(given):
        return _connect(given, contract)
    import torch

    import engine
    from cosmos3_ros.open_loop_runs import Makers
    from engine.evaluation.open_loop_network import NetworkImaginer, NetworkPolicy

    if given.threads:
        torch.set_num_threads(given.threads)
    skipped = _skipped(given)
    policy = imaginer = None
    model = engine.load(given.policy, given.device, given.dtype, backend=given.backend, compiled=given.compiled or None)
    if 'policy' not in skipped:
        policy = NetworkPolicy(model.policy(contract))
    if not {'dynamics', 'inverse'} <= skipped:
        whole = engine.load(given.policy, given.device, given.dtype) if given.compiled else model
        dynamics = whole.dynamics(contract)
        changes = {'steps': given.dynamics_steps, 'chunk': given.dynamics_rows}
        dynamics = dynamics.with_terms(**{name: value for name, value in changes.items() if value is not None})
        imaginer = NetworkImaginer(dynamics, given.dynamics_windows, detailed=given.dynamics_detail)
    return Makers(policy, imaginer)


def _numbers(text: str) -> tuple[int, ...]:
    """'0,3,5-7' as 0, 3, 5, 6, 7."""
    found: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(','))):
        first, _, last = part.partition('-')
        if not first.isdecimal() or (last and not last.isdecimal()) or int(last or first) < int(first):
            raise InvalidInput('arguments', [Problem('--episodes', 'are no numbers', repr(part), 'such as 0,3,5-9')])
        found += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(found))


def _video_map(pairs: list[str]) -> dict[str, str]:
    problems = [
        Problem('--video-map', 'is no pair', repr(pair), 'view=source')
        for pair in pairs
        if not all(pair.partition('='))
    ]
    if problems:
        raise InvalidInput('arguments', problems)
    return {view: source for view, _, source in (pair.partition('=') for pair in pairs)}
