"""Starts the system's processes where the launch packages of ROS 2 are not installed.

`python -m cosmos3_ros.runner robot:=sim checkpoint:=DIR` takes the arguments of
`ros2 launch cosmos3_ros policy.launch.py` and starts the same processes, and with `server` in front
those of `server.launch.py`. Programs use :class:`Runner` directly.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self, TextIO

from cosmos3_ros.bringup import LAUNCH_ARGUMENTS, Argument, ProcessSpec, options_from_text, processes
from cosmos3_ros.bringup_server import SERVER_ARGUMENTS, server_processes
from cosmos3_ros.process import GRACE_VARIABLE, STOP_SIGNALS, SUPERVISOR_VARIABLE, answer_signals
from engine.errors import CosmosError

STOP_GRACE_S = 4.0
OWN_GRACE_SHARE = 0.75  # of a runner's grace: when a process ends by itself whatever is still in its way
_ROOT = Path(__file__).resolve().parents[1]
_ASSIGNMENT = re.compile(r'(\w+):=(.*)', re.DOTALL)


def keep_to_ourselves() -> None:
    """What is run as a trial must not reach a robot that happens to be on the network, nor be disturbed by one."""
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ.setdefault('ROS_DOMAIN_ID', str(random.SystemRandom().randint(60, 100)))


def command(spec: ProcessSpec) -> list[str]:
    """Return the command line of a process."""
    arguments = [sys.executable, '-m', spec.module, *spec.nodes, '--ros-args']
    if not spec.nodes:
        arguments += ['-r', f'__node:={spec.name}']
    if spec.namespace:
        arguments += ['-r', f'__ns:=/{spec.namespace}']
    for source, target in spec.remappings:
        arguments += ['-r', f'{source}:={target}']
    for path in spec.parameter_files:
        arguments += ['--params-file', str(path)]
    for name, value in spec.parameters.items():
        # As JSON, which the parser reads as YAML: text that looks like a number or a switch stays text.
        arguments += ['-p', f'{name}:={json.dumps(value, ensure_ascii=False)}']
    return [*arguments, '--log-level', spec.log_level]


class Runner:
    """Processes that are started and stopped together.

    ::

        with Runner(processes(options)) as runner:
            while not runner.ended():
                ...

    On leaving, whatever still runs is stopped: the guard first, so that its stop command finds the robot still there,
    then the others. What does not end within the grace period is killed.
    """

    def __init__(
        self,
        specs: Iterable[ProcessSpec],
        *,
        log_directory: Path | None = None,
        output: TextIO | None = None,
        grace_s: float = STOP_GRACE_S,
    ) -> None:
        """Prepare to run `specs`.

        Args:
            specs: What to start.
            log_directory: Write each process's output to `NAME.log` there.
            output: Otherwise write it here, each line with the process's name; None: standard error.
            grace_s: Seconds that a process has to end after it was asked to.
        """
        self.specs = tuple(specs)
        self._log_directory = log_directory
        self._output = output if output is not None else sys.stderr
        self._grace_s = grace_s
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._readers: list[threading.Thread] = []
        self._killed: list[str] = []
        self._write_lock = threading.Lock()

    def __enter__(self) -> Self:
        """Start all processes; if one cannot be started, none is left running."""
        try:
            for spec in self.specs:
                self._start(spec)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop all processes."""
        self.stop()

    def poll(self) -> dict[str, int | None]:
        """Return each process's exit code by name, None for those that run; -N means ended by signal N."""
        return {name: process.poll() for name, process in self._processes.items()}

    def ended(self) -> dict[str, int]:
        """Return the exit codes of processes that ended and should not have: essential ones, and any that failed."""
        kinds = {spec.name: spec for spec in self.specs}
        codes = {name: code for name, code in self.poll().items() if code is not None}
        return {name: code for name, code in codes.items() if code != 0 or not kinds[name].transient}

    def pid(self, name: str) -> int:
        """Return the process id of `name`."""
        return self._processes[name].pid

    def send_signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one process; nothing happens if it has ended."""
        self._processes[name].send_signal(number)

    @property
    def killed(self) -> tuple[str, ...]:
        """Names of processes that had to be killed because they did not end in time."""
        return tuple(self._killed)

    def stop(self, number: signal.Signals = signal.SIGINT) -> dict[str, int]:
        """Stop what still runs and return all exit codes by name.

        Args:
            number: The signal that asks the processes to end.
        """
        first = [spec.name for spec in self.specs if spec.essential and spec.name in self._processes]
        others = [name for name in self._processes if name not in first]
        for group in (first, others):
            for name in group:
                self.send_signal(name, number)
            self._await(group)
        for reader in self._readers:
            reader.join(timeout=1.0)
        return {name: process.wait() for name, process in self._processes.items()}

    def _await(self, names: Sequence[str]) -> None:
        deadline = time.monotonic() + self._grace_s
        for name in names:
            try:
                self._processes[name].wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._killed.append(name)
                self._processes[name].kill()
                self._processes[name].wait()

    def _start(self, spec: ProcessSpec) -> None:
        log: int | IO[bytes] = subprocess.PIPE
        if self._log_directory is not None:
            self._log_directory.mkdir(parents=True, exist_ok=True)
            log = (self._log_directory / f'{spec.name}.log').open('wb')
        # The child begins with these signals held back and answers them once it can: it can be stopped at any moment,
        # even while Python itself starts. A session of its own keeps the terminal's Ctrl-C from reaching it directly.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            process = subprocess.Popen(
                command(spec),
                env=_environment(spec, OWN_GRACE_SHARE * self._grace_s),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            if not isinstance(log, int):
                log.close()
        self._processes[spec.name] = process
        if process.stdout is not None:
            reader = threading.Thread(target=self._copy, args=(spec.name, process.stdout), daemon=True)
            reader.start()
            self._readers.append(reader)

    def _copy(self, name: str, source: IO[bytes]) -> None:
        with source:
            for line in source:
                with self._write_lock:
                    self._output.write(f'[{name}] {line.decode(errors="replace")}')
                    self._output.flush()


def _environment(spec: ProcessSpec, grace_s: float) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get('PYTHONPATH', '')]))
    fixed = {'PYTHONPATH': path, 'PYTHONUNBUFFERED': '1', SUPERVISOR_VARIABLE: str(os.getpid())}
    forced = {name: spec.environment[name] for name in spec.forced}
    return {**spec.environment, **os.environ, **forced, **fixed, GRACE_VARIABLE: str(grace_s)}


def _parse(arguments: Sequence[str]) -> dict[str, str]:
    matches = [(argument, _ASSIGNMENT.fullmatch(argument)) for argument in arguments]
    wrong = [argument for argument, match in matches if match is None]
    if wrong:
        raise CosmosError(f'arguments are given as name:=value, not as {", ".join(wrong)}; --show-args lists them')
    return {match[1]: match[2] for _, match in matches if match is not None}


def show_arguments(arguments: Iterable[Argument] = LAUNCH_ARGUMENTS) -> str:
    """Return what `--show-args` prints."""
    lines = ['Arguments (pass as name:=value):']
    for argument in arguments:
        choices = f' One of: {", ".join(argument.choices)}.' if argument.choices else ''
        lines += [f'\n    {argument.name}:', f'        {argument.description}{choices}']
        lines += [f'        (default: {argument.default!r})']
    return '\n'.join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until Ctrl-C or until a process ends; return 0 if all ended well, 2 if the arguments are wrong, else 1."""
    stop = answer_signals()
    given = list(sys.argv[1:] if arguments is None else arguments)
    serves = given[:1] == ['server']
    if {'--show-args', '--help', '-h', '-s'} & set(given):
        sys.stdout.write(show_arguments(SERVER_ARGUMENTS if serves else LAUNCH_ARGUMENTS) + '\n')
        return 0
    try:
        specs = server_processes(_parse(given[1:])) if serves else processes(options_from_text(_parse(given)))
    except CosmosError as error:
        sys.stderr.write(f'{error}\n')
        return 2
    runner = Runner(specs)
    stop.take_over(late_exit_code=lambda: 1, grace_s=3 * STOP_GRACE_S)
    with runner:
        while not stop.requested.wait(0.1) and not runner.ended():
            pass
        ended = runner.ended()
    return _conclude(runner, ended)


def _conclude(runner: Runner, ended: Mapping[str, int]) -> int:
    for name, code in ended.items():
        sys.stderr.write(f'[runner] {name} ended by itself with exit code {code}, everything was stopped\n')
    for name in runner.killed:
        sys.stderr.write(f'[runner] {name} did not end in time and was killed\n')
    codes: dict[str, Any] = {name: code for name, code in runner.poll().items() if code != 0}
    for name, code in codes.items():
        sys.stderr.write(f'[runner] {name} exit code {code}\n')
    return 1 if ended or runner.killed or codes else 0


if __name__ == '__main__':
    raise SystemExit(main())
