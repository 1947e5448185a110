"""`cosmos3 demo`: the whole chain for a few seconds, and what it left behind as a table, a video and a plot."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cosmos3_ros.bringup import Options, ProcessSpec, large_image_environment, processes
from cosmos3_ros.demo_imagination import imagine_chunks
from cosmos3_ros.run_judge import judge, target_of
from cosmos3_ros.run_record import Leg, RunRecord, SeenChunk, closest_to_limits
from cosmos3_ros.run_report import plot_joints, reached_table, summary_table, video_frames
from cosmos3_ros.runner import Runner, keep_to_ourselves
from engine.contract import Contract, load_contract
from engine.errors import CosmosError
from engine.resources import find_model

if TYPE_CHECKING:
    from cosmos3_ros.demo_second_act import SecondAct, Stage
    from cosmos3_ros.run_recorder import RunRecorder

NAMESPACE = 'demo'
CALIBRATION = 'calibration.json'
"""Of the model that ships: above what its imagination objects."""
SHIPPED, SHIPPED_CONTRACT = 'cosmos3-micro', 'micro_joint_pos'
"""The model that ships with the package, and what it was trained for."""
REACHES = ('reach for the red cube', 'go to the blue disc', 'move the hand to the yellow bowl')
"""What that one is asked to do, one after another."""
START_TIMEOUT_S = 120.0
GOAL_MARGIN_S = 30.0
STOP_GRACE_S = 15.0  # a busy laptop finishes its denoising step first
MOVED_RAD = 1e-3
"""Range of motion from which on the robot counts as having moved."""


@dataclass(frozen=True)
class DemoOptions:
    """What to run; see `cosmos3 demo --help`."""

    checkpoint: str = ''
    contract: str = ''
    instructions: tuple[str, ...] = ()
    duration_s: float = 8.0
    episode: str = ''
    output: Path = Path('demo_output')
    seed: int = 0
    imagined_every_s: float = 1.0
    splice: str = 'blend'
    hazard: bool = True


def run_demo(options: DemoOptions, console: Console | None = None) -> int:
    """Run the demonstration; returns 0 only if it shows what it is meant to show.

    With the simulated robot: guarded commands reached it, it moved, and no limit was exceeded. With a recording: the
    policy made chunks from it. What came of the second act is told, and does not count: a slow machine imagines too
    late.

    Raises:
        CosmosError: Something the user chose does not work; the text says what.
    """
    console = console or Console()
    options = _completed(options)
    contract = load_contract(options.contract)
    options.output.mkdir(parents=True, exist_ok=True)
    checkpoint = options.checkpoint or _tiny_checkpoint(options, console)
    latents = options.output / 'latents'
    _empty(latents)
    keep_to_ourselves()
    bands = _bands(checkpoint, options)
    launch = Options(
        contract=contract.source,
        checkpoint=checkpoint,
        robot='replay' if options.episode else 'sim',
        namespace=NAMESPACE,
        log_level='info',
        record=str(latents) if options.imagined_every_s > 0 else '',
        episode=options.episode,
        dynamics=bands is not None,
        calibration=str(bands or ''),
    )
    specs = _with_stand_ins(_with_splice(processes(launch), options.splice), contract, options, console)
    record, act = _run(specs, contract, options, console, hazard=bands is not None)
    _write(record, contract, checkpoint, options, console)
    return _verdict(record, act, contract, options, console)


def _bands(checkpoint: str, options: DemoOptions) -> Path | None:
    """The bands of the monitors that a second act needs; None if there is none."""
    model = find_model(SHIPPED)
    fits = checkpoint == SHIPPED and options.contract == SHIPPED_CONTRACT and not options.episode
    if not options.hazard or not fits or model is None:
        return None
    return path if (path := model / CALIBRATION).is_file() else None


def _completed(options: DemoOptions) -> DemoOptions:
    """With everything that was left open: the model that ships with the package drives the simulated robot."""
    ships = find_model(SHIPPED) is not None and not options.episode and options.contract in ('', SHIPPED_CONTRACT)
    checkpoint = options.checkpoint or (SHIPPED if ships else '')
    contract = options.contract or ('droid_ee_delta' if options.episode else 'demo_joint_pos')
    if checkpoint == SHIPPED and not options.contract:
        contract = SHIPPED_CONTRACT
    asked = REACHES if checkpoint == SHIPPED else ('put the red cube in the bowl',)
    return replace(options, checkpoint=checkpoint, contract=contract, instructions=options.instructions or asked)


def _tiny_checkpoint(options: DemoOptions, console: Console) -> str:
    from engine.tiny import make_tiny

    directory = make_tiny(options.output / 'tiny_checkpoint', seed=options.seed)
    console.print(
        '[yellow]No checkpoint given: a tiny one with random weights is used.[/yellow] What the arm does means\n'
        'nothing: it starts where it is and sways at the whim of the seed; what is imagined is noise.'
    )
    return str(directory)


def _empty(directory: Path) -> None:
    """Remove what an earlier run recorded."""
    for file in directory.glob('chunk_*.npz'):
        file.unlink()


def _with_splice(specs: Sequence[ProcessSpec], splice: str) -> list[ProcessSpec]:
    return [
        replace(spec, parameters={**spec.parameters, 'splice': splice}) if spec.name == 'policy' else spec
        for spec in specs
    ]


def _with_stand_ins(
    specs: Sequence[ProcessSpec], contract: Contract, options: DemoOptions, console: Console
) -> list[ProcessSpec]:
    """Let cameras that a recording has stand in for views that it lacks, and say so."""
    if not options.episode:
        return list(specs)
    from engine.evaluation.recordings import open_recording

    with open_recording(options.episode) as recording:
        for warning in recording.warnings:
            console.print(f'[yellow]recording: {warning}[/yellow]')
        there = recording.views
    stand_ins = [f'{view}:={there[0]}' for view in contract.views.streams if view not in there] if there else []
    if stand_ins:
        console.print(f'[yellow]The recording lacks views; stand-ins: {", ".join(stand_ins)}[/yellow]')
    extra = {'loop': True, **({'video_map': stand_ins} if stand_ins else {})}  # loading may outlast the recording
    return [
        replace(spec, parameters={**spec.parameters, **extra}) if spec.name == 'replay_robot' else spec
        for spec in specs
    ]


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the demonstration as Ctrl-C does: everything that was started is stopped first."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(
    specs: Sequence[ProcessSpec], contract: Contract, options: DemoOptions, console: Console, *, hazard: bool
) -> tuple[RunRecord, SecondAct | None]:
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    from cosmos3_ros.demo_second_act import HANDED_ON, second_act
    from cosmos3_ros.run_recorder import RunRecorder

    if hazard:  # this process hands pictures on
        os.environ.update(large_image_environment())
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        recorder = RunRecorder(contract, NAMESPACE, f'{HANDED_ON}/' if hazard else '')
        recorder.recording = False
        executor = SingleThreadedExecutor()
        executor.add_node(recorder)

        def spin() -> None:
            with suppress(ExternalShutdownException):
                executor.spin()

        spinner = threading.Thread(target=spin, name='recorder', daemon=True)
        spinner.start()
        with ExitStack() as stack:
            stack.enter_context(_termination_as_interrupt())
            stage = stack.enter_context(second_act(contract, NAMESPACE)) if hazard else None
            runner = Runner(
                specs if stage is None else stage.prepared(specs),
                log_directory=options.output / 'logs',
                grace_s=STOP_GRACE_S,
            )
            stack.enter_context(runner)
            progress = stack.enter_context(_progress(console))
            _await_start(runner, recorder, progress, options)
            stage = _calm(stage, console)
            recorder.recording = True
            for instruction in options.instructions:
                _follow(instruction, runner, recorder, progress, options)
            act = None if stage is None else _second_act(stage, runner, recorder, progress, options)
            codes = runner.stop()
    finally:
        rclpy.try_shutdown()
    bad = {name: code for name, code in codes.items() if code}
    if bad:
        raise CosmosError(f'processes ended badly: {bad}; see {options.output / "logs"}')
    return recorder.record, act


def _calm(stage: Stage | None, console: Console) -> Stage | None:
    """Let nothing be imagined in the first act; None, and why, if nothing ever will be: then there is no second one.

    Raises:
        CosmosError: Something is imagined, and cannot be kept from stopping the arm.
    """
    if stage is not None:
        try:
            stage.let_imagine(NAMESPACE, now=False)
        except CosmosError as error:
            if not stage.imagines_nothing(NAMESPACE):
                raise
            console.print(f'[yellow]There will be no second act: {escape(str(error))}[/yellow]')
            return None
    return stage


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn('{task.description:<24}'),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn('{task.fields[note]}'),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


def _await_start(runner: Runner, recorder: RunRecorder, progress: Progress, options: DemoOptions) -> None:
    """Until sensors deliver, the guard guards and the policy waits for an instruction."""
    task = progress.add_task('starting', total=None, note='')
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        waiting = [
            name
            for name, there in (
                ('policy', recorder.policy_status is not None),
                ('guard', recorder.guard_status is not None),
                ('sensors', recorder.sensors_deliver),
            )
            if not there
        ]
        if not waiting:
            break
        progress.update(task, note=f'waiting for {", ".join(waiting)}')
        _check_alive(runner, options)
        if time.monotonic() > deadline:
            raise CosmosError(
                f'{", ".join(waiting)} did not come up within {START_TIMEOUT_S:g} s; see {options.output / "logs"}'
            )
        time.sleep(0.1)
    progress.update(task, total=1, completed=1, note='')


def _check_alive(runner: Runner, options: DemoOptions) -> None:
    ended = runner.ended()
    if ended:
        logs = options.output / 'logs'
        tail = '\n'.join(_last_lines(logs / f'{name}.log') for name in ended)
        raise CosmosError(f'ended unexpectedly: {ended}; the end of {logs}:\n{tail}')


def _last_lines(path: Path, count: int = 12) -> str:
    return '\n'.join(path.read_text(encoding='utf-8', errors='replace').splitlines()[-count:]) if path.is_file() else ''


def _follow(instruction: str, runner: Runner, recorder: RunRecorder, progress: Progress, options: DemoOptions) -> None:
    """One run_policy goal, to its end."""
    from cosmos3_msgs.action import RunPolicy

    handle = _told(instruction, options.duration_s, recorder, options)
    task = progress.add_task(escape(instruction), total=options.duration_s, note='')
    outcome = handle.get_result_async()
    begin_s = recorder.now_s()
    start = time.monotonic()
    while not outcome.done():
        elapsed = time.monotonic() - start
        progress.update(task, completed=min(elapsed, options.duration_s), note=_note(recorder))
        _check_alive(runner, options)
        if elapsed > options.duration_s + GOAL_MARGIN_S:
            raise CosmosError('the run did not end in time')
        time.sleep(0.1)
    result = outcome.result().result
    progress.update(task, completed=options.duration_s, note=f'{result.text}, {result.chunks} chunks')
    if result.reason != RunPolicy.Result.TIME_LIMIT:
        raise CosmosError(f'the run ended early: {result.text}')
    time.sleep(0.8)  # the stop that follows belongs into the record
    recorder.record.legs.append(Leg(instruction, begin_s, recorder.now_s()))


def _told(instruction: str, seconds: float, recorder: RunRecorder, options: DemoOptions) -> Any:
    """The handle of a run_policy goal that was accepted."""
    from builtin_interfaces.msg import Duration

    from cosmos3_msgs.action import RunPolicy
    from cosmos3_ros.action_client import ActionClient

    client = ActionClient(recorder, RunPolicy, 'run_policy')
    if not client.wait_for_server(timeout_sec=10.0):
        raise CosmosError('the policy offers no run_policy action')
    whole, rest = divmod(seconds, 1.0)
    limit = Duration(sec=int(whole), nanosec=int(rest * 1e9))
    goal = RunPolicy.Goal(instruction=instruction, time_limit=limit)
    handle = _result(client.send_goal_async(goal), 10.0, 'an answer to the goal')
    if not handle.accepted:
        raise CosmosError(f'the policy refused the instruction {instruction!r}; see {options.output / "logs"}')
    return handle


def _second_act(
    stage: Stage, runner: Runner, recorder: RunRecorder, progress: Progress, options: DemoOptions
) -> SecondAct:
    """Another goal, in the middle of which the pictures freeze. Whatever goes wrong does not spoil the first act."""
    from cosmos3_ros.demo_second_act import SecondAct

    task = progress.add_task('second act: frozen pictures', total=None, note='')
    watch = None
    try:
        stage.let_imagine(NAMESPACE, now=True)
        handle = _told(_another(options.instructions[-1]), stage.limit_s, recorder, options)
        outcome, watch = handle.get_result_async(), stage.watch(recorder)
        while not watch.look() and not outcome.done():
            progress.update(task, note=_note(recorder))
            _check_alive(runner, options)
            time.sleep(0.05)
        ended = outcome.done()
        if not ended:
            handle.cancel_goal_async()
        result = _result(outcome, GOAL_MARGIN_S, 'end of the run').result
        time.sleep(0.8)  # the stop belongs into the record
        watch.look()
        if ended and watch.act.objected_s is None:
            watch.act.text = f'the run ended early: {result.text}'
        return watch.act
    except CosmosError as error:
        act = SecondAct() if watch is None else watch.act
        act.text = str(error)
        return act
    finally:
        if watch is not None:
            watch.close()
        progress.update(task, total=1, completed=1, note='')


def _another(instruction: str) -> str:
    """What the arm has to move for, wherever the last instruction has led it."""
    last = target_of(instruction)
    return next(one for one in REACHES if target_of(one) != last)


def _result(future: Any, timeout_s: float, what: str) -> Any:
    deadline = time.monotonic() + timeout_s
    while not future.done():
        if time.monotonic() > deadline:
            raise CosmosError(f'no {what} within {timeout_s:g} s')
        time.sleep(0.02)
    return future.result()


def _note(recorder: RunRecorder) -> str:
    status = recorder.guard_status
    accepted = recorder.record.accepted
    return f'{accepted} chunks accepted, guard {status.state_name}' if status else ''


def _write(record: RunRecord, contract: Contract, checkpoint: str, options: DemoOptions, console: Console) -> None:
    """Video and plot."""
    from engine.evaluation.video import VideoWriter

    with _progress(console) as progress:
        imagined = _imagined(record, checkpoint, contract, options, progress)
        if record.frames:
            path = options.output / 'views_and_imagination.mp4'
            task = progress.add_task('writing video', total=len(record.frames), note=str(path))
            other = 'imagined (random weights)' if not options.checkpoint else 'imagined'
            frames = video_frames(record, imagined, contract.timing.fps, ('seen', other))
            first = next(frames)
            with VideoWriter(path, contract.timing.fps, first.shape[:2]) as writer:
                writer.write(first)
                for frame in frames:
                    writer.write(frame)
                    progress.advance(task)
            progress.update(task, completed=len(record.frames))
    if record.measured:
        plot_joints(record, options.output / 'joints.png')
        console.print(f'plot: {options.output / "joints.png"}')


def _imagined(
    record: RunRecord, checkpoint: str, contract: Contract, options: DemoOptions, progress: Progress
) -> Mapping[tuple[int, int], NDArray[np.uint8]]:
    """Videos of chunks at least `imagined_every_s` apart, by epoch and sequence."""
    chosen: list[SeenChunk] = []
    newest = -np.inf
    for chunk in record.chunks:
        if options.imagined_every_s > 0 and chunk.stamp - newest >= options.imagined_every_s:
            chosen.append(chunk)
            newest = chunk.stamp
    if contract.sampler.video:
        return _decoded(chosen, checkpoint, options, progress)
    task = progress.add_task('imagining', total=len(chosen), note='loading the checkpoint')

    def done(chunk: SeenChunk) -> None:
        progress.update(task, advance=1, note=f'chunk {chunk.sequence}')

    try:
        videos = imagine_chunks(record, chosen, checkpoint, contract, done) if chosen else {}
    except CosmosError as error:
        progress.update(task, total=1, completed=1, note=escape(str(error)))
        return {}
    progress.update(task, note='')
    return videos


def _decoded(
    chosen: Sequence[SeenChunk], checkpoint: str, options: DemoOptions, progress: Progress
) -> Mapping[tuple[int, int], NDArray[np.uint8]]:
    """The videos that the policy imagined beside its actions."""
    import torch

    from engine.checkpoint import open_checkpoint

    task = progress.add_task('decoding imagination', total=len(chosen), note='loading the autoencoder')
    vae = open_checkpoint(checkpoint).load_vae('cpu', torch.float32)
    videos = {}
    for chunk in chosen:
        progress.update(task, note=f'chunk {chunk.sequence}')
        path = options.output / 'latents' / f'chunk_{chunk.epoch}_{chunk.sequence:05d}.npz'
        if path.is_file():
            with np.load(path) as saved, torch.inference_mode():
                videos[chunk.epoch, chunk.sequence] = vae.decode(torch.from_numpy(saved['latents']).float()).numpy()
        progress.advance(task)
    progress.update(task, note='')
    return videos


def _verdict(
    record: RunRecord, act: SecondAct | None, contract: Contract, options: DemoOptions, console: Console
) -> int:
    closest = []
    if record.commands:
        from cosmos3_ros.guard_node import limits_of

        closest = closest_to_limits(record.commands, limits_of(contract))
    console.print(summary_table(record, closest))
    if asked := [(leg, found) for leg in record.legs if (found := judge(record, leg)) is not None]:
        console.print(reached_table(asked))
    if act is not None:
        console.print(act.table())
    if not options.checkpoint:
        console.print('[yellow]The weights are random: this shows that everything is connected, nothing more.[/yellow]')
    faults = _faults(record, [excess.quantity for excess in closest if excess.exceeded], bool(options.episode))
    for fault in faults:
        console.print(f'[red]{fault}[/red]')
    console.print('[red]FAILED[/red]' if faults else '[green]OK[/green]')
    return 1 if faults else 0


def _faults(record: RunRecord, exceeded: list[str], replayed: bool) -> list[str]:
    faults = [f'a command exceeded the {quantity} limit' for quantity in exceeded]
    if not record.chunks:
        faults.append('the policy made no chunk')
    if replayed:
        return faults
    if not record.commands:
        faults.append('no guarded command reached the robot')
    if record.travelled.max(initial=0.0) < MOVED_RAD:
        faults.append('the robot did not move')
    return faults
