"""Runs the episodes of a safety simulation: which there are, one after another or side by side, each kept when done."""

from __future__ import annotations

import json
import multiprocessing
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.processor import keep_freed_memory
from cosmos3_ros.safety_episode import EpisodeRecord, Stage, harm_of, play
from cosmos3_ros.safety_expert import Expert, Proposer
from cosmos3_ros.safety_hazards import NoRoom, make_hazard
from cosmos3_ros.safety_jobs import job_of, target_of
from cosmos3_ros.safety_model import ModelTerms, Network, PolicyProposer
from cosmos3_ros.safety_options import LATENCY_S
from cosmos3_ros.safety_pictures import Gallery
from engine.calibration import Calibration
from engine.contract import load_contract
from engine.errors import CosmosError, InvalidInput, Problem
from engine.evaluation.closed_loop_runs import run_differences
from engine.evaluation.simulated_franka import SimulatedFranka

_ATTEMPTS = 30


@dataclass(frozen=True)
class Case:
    """One episode that is to be run.

    Attributes:
        purpose: 'calibration' or 'test'.
        hazard: '' for none.
        number: Among those of its kind.
        run_seed: Of the whole simulation.
    """

    purpose: str
    hazard: str
    number: int
    run_seed: int

    @property
    def name(self) -> str:
        """Unique among those of a run."""
        return f'{self.purpose}/{self.hazard or "nominal"}/{self.number}'

    def seed(self, attempt: int = 0) -> int:
        """Of the episode. No two cases of any purpose share one, but for a chance of one in two thousand million."""
        kind = zlib.crc32(f'{self.purpose}/{self.hazard}'.encode())
        state = np.random.SeedSequence([self.run_seed, kind, self.number, attempt]).generate_state(1)
        return int(state[0]) % 2**31


def cases_of(purpose: str, hazards: Sequence[str], episodes: int, nominal: int, seed: int) -> list[Case]:
    """Episodes with each hazard and without one, mixed so that a run cut short has some of each."""
    kinds = [('', nominal), *((name, episodes) for name in hazards)]
    found = [Case(purpose, name, number, seed) for name, count in kinds for number in range(count)]
    counts = dict(kinds)
    return sorted(found, key=lambda case: ((case.number + 0.5) / counts[case.hazard], case.hazard))


@dataclass(frozen=True)
class Setup:
    """What a process needs to run episodes.

    Attributes:
        contract: Name or path.
        terms: Of the network.
        proposer: 'expert' or 'checkpoint'.
        calibration: Bands; None: nothing is decided.
        pictures: Folder for pictures of the first episode of each kind; None for none.
        recordings: Recorded episodes in place of the simulator.
        job: What the arm is about, in the simulator.
        latency_s: From an observation to the arrival of its chunk.
        halves: Whether every other stretch of the recordings is for bands, and the others for tests.
        threads: Of PyTorch; 0 leaves it as it is.
    """

    contract: str
    terms: ModelTerms
    proposer: str = 'expert'
    calibration: Calibration | None = None
    pictures: Path | None = None
    recordings: tuple[str, ...] = ()
    job: str = 'pick'
    latency_s: float = LATENCY_S
    halves: bool = True
    threads: int = 0


class Runner(Protocol):
    """Runs cases."""

    def run(self, case: Case) -> EpisodeRecord:
        """Run one."""


class SimulatedRunner:
    """Runs cases in the simulator."""

    def __init__(self, setup: Setup) -> None:
        """Load the network and build the scene.

        Raises:
            CosmosError: The checkpoint, the contract or the simulator does not work.
        """
        contract = load_contract(setup.contract)
        limits = load_limits(contract.robot.description)
        self._setup = setup
        self._network = Network(contract, setup.terms, setup.calibration)
        self._job = job_of(setup.job)
        self._stage = Stage(SimulatedFranka(obstacle=True), limits, contract, self._job, setup.latency_s)
        expert = setup.proposer == 'expert'
        self._proposer: Proposer = (
            Expert(contract, limits, self._job) if expert else PolicyProposer(self._network, self._job)
        )

    def run(self, case: Case) -> EpisodeRecord:
        """Run one.

        Raises:
            CosmosError: The hazard finds no room in any of the scenes.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return self._attempt(case, case.seed(attempt))
            except NoRoom:
                continue
        raise CosmosError(f'{case.name}: the hazard found no room in {_ATTEMPTS} scenes')

    def _attempt(self, case: Case, seed: int) -> EpisodeRecord:
        target = target_of(seed)
        run = partial(play, self._stage, self._proposer, seed, target)
        twin = run(partial(make_hazard, '', seed))[0] if case.hazard else None
        judging = self._network.begin(seed)
        gallery = Gallery(self._network, judging)
        wanted = self._setup.pictures is not None and case.purpose == 'test' and case.number == 0
        ahead = None if twin is None else twin.path
        trace, hazard = run(partial(make_hazard, case.hazard, seed), gallery if wanted else judging, ahead)
        began = trace.chunks[hazard.begin].observed_s if case.hazard else None
        harm, apart = harm_of(trace, twin or trace, began)
        if wanted and self._setup.pictures is not None:
            gallery.save(self._setup.pictures / f'{case.hazard or "nominal"}.jpg', hazard.begin if case.hazard else 1)
        return EpisodeRecord(
            case.name,
            case.purpose,
            case.hazard,
            seed,
            self._job.instruction(target),
            began,
            tuple(trace.chunks),
            tuple(trace.stops),
            trace.success,
            harm,
            apart if twin else None,
        )


def make_runner(setup: Setup) -> Runner:
    """Whatever runs cases under this set-up, in this process.

    Raises:
        CosmosError: Something that it needs does not work.
    """
    keep_freed_memory()  # for workers, which have not come through an entry point
    if setup.threads:
        import torch

        torch.set_num_threads(setup.threads)
    if setup.recordings:
        from cosmos3_ros.safety_recorded import RecordedRunner

        return RecordedRunner(setup)
    return SimulatedRunner(setup)


_RUNNERS: list[Runner] = []  # the one of this process, if it is a worker


def _begin(setup: Setup) -> None:
    _RUNNERS[:] = [make_runner(setup)]


def _work(case: Case) -> EpisodeRecord:
    return _RUNNERS[0].run(case)


def run_cases(setup: Setup, cases: Sequence[Case], workers: int = 1) -> Iterator[EpisodeRecord]:
    """Run cases; each record comes when it is there, in any order if several processes are at work."""
    if not cases:
        return
    if workers == 1:
        runner = make_runner(setup)
        yield from map(runner.run, cases)
        return
    # Processes that were forked would share locks and OpenGL contexts with this one.
    with multiprocessing.get_context('spawn').Pool(workers, _begin, (replace(setup, threads=1),)) as pool:
        yield from pool.imap_unordered(_work, cases)


class Journal:
    """Records on disk, one a line, behind a line that says what they are of; what is there already is not run again."""

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        """Open it.

        Raises:
            InvalidInput: It holds another run, or is damaged.
        """
        self._path, self.records = path, dict[str, EpisodeRecord]()
        header = json.loads(json.dumps({'run': dict(run)}))
        if not path.exists():
            path.write_text(json.dumps(header) + '\n', encoding='utf-8')
            return
        lines = path.read_text(encoding='utf-8').splitlines()
        try:
            found = json.loads(lines[0]) if lines else {}
            whole = [line for line in lines[1:] if _is_whole(line)]
            records = [EpisodeRecord.from_document(json.loads(line)) for line in whole]
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidInput(str(path), [Problem('episodes', 'cannot be read', str(error))]) from error
        if found != header:
            raise InvalidInput(str(path), run_differences(found.get('run', {}), header['run']))
        self.records = {one.case: one for one in records}
        if len(whole) != len(lines) - 1:  # the last call ended in the middle of a line
            path.write_text('\n'.join([lines[0], *whole]) + '\n', encoding='utf-8')

    def add(self, record: EpisodeRecord) -> None:
        """Keep a record."""
        self.records[record.case] = record
        with self._path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(record.document()) + '\n')

    def fill(self, setup: Setup, cases: Sequence[Case], workers: int, report: Callable[[float], None]) -> None:
        """Run those cases that are missing."""
        missing = [case for case in cases if case.name not in self.records]
        report(1.0 - len(missing) / max(1, len(cases)))
        for done, record in enumerate(run_cases(setup, missing, workers), start=1):
            self.add(record)
            report(1.0 - (len(missing) - done) / len(cases))


def _is_whole(line: str) -> bool:
    return line.startswith('{') and line.endswith('}')
