"""The command `cosmos3`. Subcommands import what they need when they run, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos3_ros import processor
from cosmos3_ros.cli_ask import add_ask, add_plan
from cosmos3_ros.cli_dataset import add_dataset
from cosmos3_ros.cli_eval import add_eval
from cosmos3_ros.cli_imagine import add_imagine, add_infer_actions
from cosmos3_ros.cli_make_dataset import add_make_dataset
from cosmos3_ros.cli_safety import add_calibrate, add_safety_sim
from cosmos3_ros.cli_serve import add_serve
from cosmos3_ros.cli_train import add_train
from cosmos3_ros.cli_train_model import add_finetune
from engine.errors import CosmosError, InvalidInput, Problem

if TYPE_CHECKING:
    from rich.table import Table

    from engine.export.accuracy import Accuracy

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    processor.prepare()
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
    _add_compile(commands)
    _add_accuracy(commands)
    add_ask(commands)
    add_plan(commands)
    add_imagine(commands, _bars)
    add_infer_actions(commands, _bars)
    add_calibrate(commands, _bars)
    add_safety_sim(commands, _bars)
    add_dataset(commands, _bars)
    add_train(commands, _bars)
    add_finetune(commands, _bars)
    add_make_dataset(commands, _bars)
    add_eval(commands, _bars)
    add_serve(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        'demo',
        help='simulated robot, policy and guard for a few seconds, then a table, a video and a plot',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument(
        '--checkpoint', default='', help='directory or hub id; left out: what ships, or a tiny random one'
    )
    demo.add_argument(
        '--contract', default='', help='name in config/contracts or a path; the smallest that fits if left out'
    )
    demo.add_argument(
        '--instruction',
        action='append',
        default=argparse.SUPPRESS,
        help='what to tell the policy; given several times, they are followed in turn. Left out: what the model knows',
    )
    demo.add_argument('--duration', type=float, default=8.0, help='seconds to follow each instruction')
    demo.add_argument('--episode', default='', help='play a recorded episode instead of the simulated robot')
    demo.add_argument('--output', type=Path, default=Path('demo_output'), help='where video, plot and logs go')
    demo.add_argument('--seed', type=int, default=0, help='seed of the tiny checkpoint')
    demo.add_argument(
        '--imagined-every', type=float, default=1.0, help='seconds between videos that are imagined or decoded; 0: none'
    )
    demo.add_argument(
        '--hazard',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='a second act, with the model that ships: pictures freeze, and imagination has the guard stop the arm',
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
            instructions=tuple(getattr(arguments, 'instruction', ())),
            duration_s=arguments.duration,
            episode=arguments.episode,
            output=arguments.output,
            seed=arguments.seed,
            imagined_every_s=arguments.imagined_every,
            splice=arguments.splice,
            hazard=arguments.hazard,
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
        choices=('reflex', 'random', 'fresh'),
        default='reflex',
        help='reflex: random, but a DROID chunk starts where the arm is and drifts; random: nothing but noise; fresh: '
        'what a training begins with',
    )
    tiny.add_argument('--width', type=int, default=0, help="of both towers' streams; 0: the size's own")
    tiny.add_argument('--size', choices=('tiny', 'micro'), default='tiny', help='micro can be trained (default: tiny)')
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
        size=arguments.size,
        sentences=_words() if arguments.size == 'micro' else (),
        width=arguments.width,
    )
    size = sum(file.stat().st_size for file in path.rglob('*') if file.is_file())
    print(f'{path}: {arguments.variant}, {arguments.weights} weights, seed {arguments.seed}, {size / 1e6:.1f} MB')
    return 0


def _words() -> tuple[str, ...]:
    """What is asked for in simulation, as a prompt has it: Cosmos3-micro reads it in few tokens."""
    from engine.evaluation.tasks import TASKS, wordings
    from engine.observation.prompts import Clip, plain_prompt

    asked = dict.fromkeys(text for name, task in TASKS.items() for it in task.targets for text in wordings(name, it))
    clip = Clip(17, 15, 256, 320)
    return tuple(plain_prompt(it, clip, viewpoint='concat_view') for it in asked)


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


def _add_compile(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compile_ = commands.add_parser('compile', help='compile a checkpoint for a contract: ONNX graphs, TensorRT engines')
    compile_.add_argument('checkpoint', help='directory or hub id')
    compile_.add_argument('--contract', required=True, help='name in config/contracts or a path')
    compile_.add_argument('--precision', default='bf16', help='fp32, fp16, bf16 or fp8 (default: bf16)')
    compile_.add_argument(
        '--target',
        default='',
        help='GPUs the engines are for, such as sm_89,sm_120 or native; left out: graphs alone, for ONNX Runtime',
    )
    compile_.add_argument('--flavour', help='tensorrt or tensorrt_rtx; left out: the first that is installed')
    compile_.add_argument('--segments', type=int, help='pieces of the step; left out: as few as memory allows')
    compile_.add_argument(
        '--no-decoder', action='store_true', help='leave the decoder of imagined videos to PyTorch; actions do without'
    )
    compile_.add_argument(
        '--accuracy', type=int, default=2, help='made-up observations to hold the outcome to the reference; 0: none'
    )
    compile_.add_argument('-o', '--output', type=Path, required=True, help='folder to make')
    compile_.set_defaults(run=_compile)


def _compile(arguments: argparse.Namespace) -> int:
    from engine.checkpoint import open_checkpoint
    from engine.contract import load_contract
    from engine.export.compiling import Order, compile_checkpoint

    targets = tuple(target for target in arguments.target.split(',') if target)
    order = Order(
        open_checkpoint(arguments.checkpoint),
        load_contract(arguments.contract),
        arguments.precision,
        targets,
        arguments.flavour,
        arguments.segments,
        arguments.accuracy,
        not arguments.no_decoder,
    )
    with _bars() as report:
        made = compile_checkpoint(order, arguments.output, report)
    card = made.card
    print(f'{made.folder}: {"already there" if made.cached else "made"}, {card.precision}, key {card.key[:12]}')
    print(f'  {card.builder["flavour"]} {card.builder["version"]}, for {", ".join(card.targets) or "ONNX Runtime"}')
    for part in card.parts.values():
        size = sum(file.bytes for file in part.files.values()) / 1e6
        took = ', '.join(f'{stage} {seconds:g} s' for stage, seconds in part.seconds.items())
        print(f'  {part.name:<14} {size:8.1f} MB  {part.layers or "-":>5} layers  {took}')
    print(f'  accuracy: {_in_short(card.accuracy)}')
    return 0


def _in_short(accuracy: Mapping[str, Any]) -> str:
    if 'quantities' not in accuracy:
        return str(accuracy.get('left_out', 'not measured'))
    worst = max(accuracy['quantities'].items(), key=lambda item: item[1]['rmse'])
    name, found = worst
    return f'{name} {found["rmse"]:.1e} {found["unit"]} RMSE, the largest; {accuracy["subject"]}'


def _add_accuracy(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    accuracy = commands.add_parser(
        'accuracy',
        help='hold a backend and a precision to the reference, in radians',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    accuracy.add_argument('checkpoint', help='directory or hub id')
    accuracy.add_argument('--contract', required=True, help='name in config/contracts or a path')
    accuracy.add_argument('--compiled', default=None, help='folder that cosmos3 compile made')
    accuracy.add_argument('--backend', default='auto', help='auto, torch, torch-compiled, onnxruntime or tensorrt')
    accuracy.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ...; the reference runs there too')
    accuracy.add_argument('--dtype', default='bfloat16', help='precision that is judged, without compiled parts')
    accuracy.add_argument('--reference', default='float32', help='precision of the reference')
    accuracy.add_argument('--observations', type=int, default=8, help='made-up observations')
    accuracy.add_argument('--seeds', type=int, default=4, help='seeds for each of them')
    accuracy.set_defaults(run=_accuracy)


def _accuracy(arguments: argparse.Namespace) -> int:
    import torch
    from rich.console import Console

    import engine
    from engine.checkpoint import open_checkpoint
    from engine.contract import load_contract
    from engine.cosmos3 import load_with_torch
    from engine.export.accuracy import collect_chunks, compare_chunks, make_observations

    _check_positive(arguments, 'observations', 'seeds')
    contract, seeds = load_contract(arguments.contract), range(arguments.seeds)
    observations = make_observations(contract, arguments.observations)
    with _bars() as report:
        subject = engine.load(
            arguments.checkpoint,
            arguments.device,
            arguments.dtype,
            backend=arguments.backend,
            compiled=arguments.compiled,
        )
        backend, device = subject.runtime.backend.name, torch.device(arguments.device)
        precision = f'parts in {arguments.compiled}' if arguments.compiled else arguments.dtype
        policy = subject.policy(contract)
        found = collect_chunks(policy, observations, seeds, lambda share: report(f'{backend}, {precision}', share))
        del subject, policy  # the reference needs the room
        reference = load_with_torch(open_checkpoint(arguments.checkpoint), device, arguments.reference)
        policy = reference.policy(contract)
        wanted = collect_chunks(policy, observations, seeds, lambda share: report('reference', share))
    names = f'{backend}, {precision}', f'torch, {arguments.reference}'
    Console().print(_accuracy_table(compare_chunks(contract, found, wanted, names)))
    return 0


def _accuracy_table(accuracy: Accuracy) -> Table:
    from rich.table import Table

    count = f'{accuracy.observations} observations, {accuracy.seeds} seeds'
    table = Table(title=f'{accuracy.subject}\nagainst {accuracy.reference}; {count}')
    for column in ('quantity', 'unit', 'RMSE', 'worst', 'in row', 'between seeds'):
        table.add_column(column, justify='left' if column in ('quantity', 'unit') else 'right')
    for name, found in accuracy.quantities.items():
        figures = f'{found.rmse:.2e}', f'{found.worst:.2e}', str(found.worst_row), f'{accuracy.spread[name]:.2e}'
        table.add_row(name, found.unit, *figures)
    return table


def _check_positive(arguments: argparse.Namespace, *names: str) -> None:
    problems = [
        Problem(f'--{name}', 'out of range', str(value), 'a whole number from 1')
        for name in names
        if (value := getattr(arguments, name)) < 1
    ]
    if problems:
        raise InvalidInput('arguments', problems)


@contextmanager
def _bars() -> Iterator[Callable[[str, float], None]]:
    """A progress bar for each stage that is reported."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = TextColumn('{task.description}'), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        bars: dict[str, Any] = {}

        def report(what: str, share: float) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=1.0)
            progress.update(bars[what], completed=share)

        yield report


if __name__ == '__main__':
    raise SystemExit(main())
