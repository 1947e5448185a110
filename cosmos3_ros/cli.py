"""The command `cosmos3`. Subcommands import what they need when they run, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.errors import CosmosError

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except CosmosError as error:
        print(f'cosmos3 {arguments.command}: {error}', file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='cosmos3', description='Run a Cosmos 3 checkpoint on a robot.')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    _add_demo(commands)
    _add_make_tiny(commands)
    _add_inspect(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        'demo',
        help='simulated robot, policy and guard for a few seconds, then a table, a video and a plot',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument('--checkpoint', default='', help='directory or hub id; a tiny random one is made if left out')
    demo.add_argument(
        '--contract', default='', help='name in config/contracts or a path; the smallest that fits if left out'
    )
    demo.add_argument('--instruction', default='put the red cube in the bowl', help='what to tell the policy')
    demo.add_argument('--duration', type=float, default=20.0, help='seconds to follow the instruction')
    demo.add_argument('--episode', default='', help='play a recorded episode instead of the simulated robot')
    demo.add_argument('--output', type=Path, default=Path('demo_output'), help='where video, plot and logs go')
    demo.add_argument('--seed', type=int, default=0, help='seed of the tiny checkpoint and of the policy')
    demo.add_argument(
        '--imagined-every', type=float, default=2.0, help='seconds between imagined videos that are decoded; 0: none'
    )
    demo.add_argument(
        '--splice',
        choices=('blend', 'prefix'),
        default='blend',
        help='how chunks are joined: see the parameter of the policy node',
    )
    demo.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from cosmos3_ros.demo import DemoOptions, run_demo

    return run_demo(
        DemoOptions(
            checkpoint=arguments.checkpoint,
            contract=arguments.contract,
            instruction=arguments.instruction,
            duration_s=arguments.duration,
            episode=arguments.episode,
            output=arguments.output,
            seed=arguments.seed,
            imagined_every_s=arguments.imagined_every,
            splice=arguments.splice,
        )
    )


def _add_make_tiny(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    tiny = commands.add_parser('make-tiny', help='write a small random checkpoint in the public layout')
    tiny.add_argument('directory', type=Path, help='a directory that does not exist or holds such a checkpoint')
    tiny.add_argument('--variant', choices=('nano', 'edge'), default='nano', help='model family (default: nano)')
    tiny.add_argument('--seed', type=int, default=0, help='equal seeds give equal files (default: 0)')
    tiny.add_argument('--no-sound', action='store_true', help='leave the sound head out, as policy checkpoints may')
    tiny.add_argument('--real-ids', action='store_true', help='vocabulary with the published ids; adds tens of MB')
    tiny.add_argument(
        '--weights',
        choices=('reflex', 'random'),
        default='reflex',
        help='reflex: random, but a DROID chunk starts where the arm is and drifts; random: nothing but noise',
    )
    tiny.set_defaults(run=_make_tiny)


def _make_tiny(arguments: argparse.Namespace) -> int:
    from engine.tiny import make_tiny

    path = make_tiny(
        arguments.directory,
        arguments.variant,
        arguments.seed,
        sound=not arguments.no_sound and arguments.variant == 'nano',
        weights=arguments.weights,
        real_ids=arguments.real_ids,
    )
    size = sum(file.stat().st_size for file in path.rglob('*') if file.is_file())
    print(f'{path}: {arguments.variant}, {arguments.weights} weights, seed {arguments.seed}, {size / 1e6:.1f} MB')
    return 0


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    inspect = commands.add_parser('inspect', help='verify a checkpoint without loading it, and hold a contract to it')
    inspect.add_argument('checkpoint', help='directory or hub id')
    inspect.add_argument('--contract', default='', help='name in config/contracts or a path')
    inspect.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    from engine.checkpoint import open_checkpoint
    from engine.contract import load_contract
    from engine.cosmos3 import contract_differences
    from engine.errors import ContractError

    checkpoint = open_checkpoint(arguments.checkpoint)
    config = checkpoint.transformer_config
    print(f'{checkpoint.root}: complete, family {checkpoint.family}, fingerprint {checkpoint.fingerprint}')
    print(f'  {config.num_hidden_layers} layers, hidden size {config.hidden_size}, {len(checkpoint.tensors)} tensors')
    print(f'  actions: {"yes" if checkpoint.has_action else "no"}, sound: {"yes" if checkpoint.has_sound else "no"}')
    if arguments.contract:
        contract = load_contract(arguments.contract)
        problems = contract_differences(checkpoint, contract)
        if problems:
            raise ContractError(f'contract {contract.name} and checkpoint {checkpoint.root}', problems)
        print(f'  fits contract {contract.name}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
