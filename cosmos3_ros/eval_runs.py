"""`cosmos3 eval closed-loop`: episodes of the simulated Franka behind the guard, their figures, and a report.

episodes --> journal, a line for each --> eval_info.json --> films of some --> report.html
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cosmos3_ros.eval_world import SCRIPTED, Cast, WorldRunner, reach
from cosmos3_ros.safety_expert import check_arm
from engine.contract import Contract, load_contract
from engine.errors import ContractError, InvalidInput, Problem
from engine.evaluation.closed_loop import EpisodeRecord, Runner
from engine.evaluation.closed_loop_runs import EPISODES_FILE, Journal, MakeRunner, fill
from engine.evaluation.franka_scene import REVISION
from engine.evaluation.report import eval_info
from engine.evaluation.report_films import Film, make_films, worth_seeing
from engine.evaluation.report_html import write_report
from engine.evaluation.report_provenance import surroundings
from engine.evaluation.tasks import TASKS, Episode, Jitter, check_tasks, make_episode
from engine.serving.addresses import is_server

Bars = Callable[[], AbstractContextManager[Callable[[str, float], None]]]

IN_PROCESS = 'simulated Franka, in process, behind the guard'
IN_GRAPH = 'simulated Franka behind guard and policy in processes of a ROS graph'
INFO_FILE, REPORT_FILE, FILMS_FOLDER = 'eval_info.json', 'report.html', 'films'


@dataclass(frozen=True)
class EvalOptions:
    """What is to be run.

    Attributes:
        output: Folder for everything that is written; what it has of the same run already is not run again.
        cast: Who plays, and where.
        tasks: Their names.
        episodes: Of each task.
        start_seed: Seed of the first; the others count up from it.
        jitter: How much the beginnings differ.
        workers: Processes.
        films: Whether some episodes are run once more with cameras, for the report.
        record: Folder of a LeRobot data set that episodes are added to as they are run; None for none.
        share_scene: How many seeds in a row have one scene and are about its objects in turn.
    """

    output: Path
    cast: Cast
    tasks: tuple[str, ...] = tuple(TASKS)
    episodes: int = 100
    start_seed: int = 0
    jitter: Jitter = field(default_factory=Jitter)
    workers: int = 1
    films: bool = True
    record: Path | None = None
    share_scene: int = 1


@dataclass(frozen=True)
class EvalOutcome:
    """What a run left behind.

    Attributes:
        records: Of every episode that was asked for.
        info: All figures, as in the file.
        report: The report.
    """

    records: Sequence[EpisodeRecord]
    info: Mapping[str, Any]
    report: Path


def evaluate(options: EvalOptions, bars: Bars) -> EvalOutcome:
    """Run all episodes that are missing, and write figures and report.

    Args:
        options: What to do.
        bars: Makes progress bars.

    Raises:
        CosmosError: Something that was asked for does not work; the text says what.
    """
    _check(options)
    contract = load_contract(options.cast.contract)
    check_arm(contract)
    run = identity(options, contract)
    seeds = range(options.start_seed, options.start_seed + options.episodes)
    every = [make_episode(task, seed, options.jitter, options.share_scene) for task in options.tasks for seed in seeds]
    episodes = {one.key: one for one in every}
    options.output.mkdir(parents=True, exist_ok=True)
    journal, began = Journal(options.output / EPISODES_FILE, run), time.monotonic()
    make: MakeRunner = partial(make_runner, options.cast, record=options.record)
    with bars() as report:
        records = fill(
            journal, mixed(episodes.values()), make, options.workers, lambda share: report('episodes', share)
        )
        seconds = time.monotonic() - began
        films = _films(options, episodes, records) if options.films else []
    return _conclude(options, run, episodes, records, films, seconds)


def make_runner(cast: Cast, *, film: bool = False, record: Path | None = None) -> Runner:
    """What runs episodes: in this process, recorded or not, or through the whole ROS graph.

    Raises:
        CosmosError: The checkpoint, the contract or the simulator does not work.
    """
    if record is not None:
        from cosmos3_ros.recorder_episodes import RecordingRunner  # reads and writes tables

        return RecordingRunner(cast, record)
    if not cast.graph:
        return WorldRunner(cast, film=film)
    from cosmos3_ros.eval_graph import GraphRunner  # needs ROS

    return GraphRunner(cast, film=film)


def mixed(episodes: Sequence[Episode] | Any) -> list[Episode]:
    """Seed by seed, so that a run cut short has some of each task."""
    return sorted(episodes, key=lambda one: (one.seed, list(TASKS).index(one.task)))


def identity(options: EvalOptions, contract: Contract) -> dict[str, Any]:
    """What records depend on beside task and seed; runs with the same can be told apart by nothing else.

    Raises:
        CosmosError: The checkpoint or the compiled parts cannot be opened, or do not fit the contract.
    """
    cast = options.cast
    return {
        'policy': cast.policy if cast.policy in SCRIPTED or is_server(cast.policy) else Path(cast.policy).name,
        **({} if cast.policy in SCRIPTED else _of_policy(cast, contract)),
        'contract': contract.name,
        'contract_fingerprint': contract.fingerprint,
        'robot': IN_GRAPH if cast.graph else IN_PROCESS,
        'scene': REVISION,
        'loop': asdict(cast.terms),
        'jitter': asdict(options.jitter),
        **({'share_scene': options.share_scene} if options.share_scene > 1 else {}),
        **({'splice': cast.splice} if cast.splice != 'blend' else {}),
    }


def _of_policy(cast: Cast, contract: Contract) -> dict[str, Any]:
    """What is known of whoever makes the chunks; of a server what it says that tells its policy from others."""
    if not is_server(cast.policy):
        return _of_checkpoint(cast, contract)
    from engine.serving.terms import identity_said

    with reach(cast, contract) as remote:
        found = {'server': remote.url, 'dialect': cast.dialect}
        served = identity_said(remote.said)
    return found | ({'served': served} if served else {})


def _of_checkpoint(cast: Cast, contract: Contract) -> dict[str, Any]:
    from engine.checkpoint import open_checkpoint
    from engine.cosmos3 import contract_differences

    checkpoint = open_checkpoint(cast.policy)
    if problems := contract_differences(checkpoint, contract):
        raise ContractError(f'contract {contract.name} and checkpoint {checkpoint.root}', problems)
    found = {
        'checkpoint': checkpoint.fingerprint,
        'family': checkpoint.family,
        'sampler': asdict(contract.sampler),
        'device': cast.device,
        'dtype': cast.dtype,
        'threads': cast.threads,
    }
    return found | ({'engine_card': _card(cast.compiled)} if cast.compiled else {})


def _card(folder: str) -> dict[str, Any]:
    from engine.backends.card import read_card

    card = read_card(Path(folder))
    return {'key': card.key, 'precision': card.precision, 'builder': dict(card.builder)}


def _check(options: EvalOptions) -> None:
    check_tasks(options.tasks)
    terms, jitter = options.cast.terms, options.jitter
    ranges = {
        'episodes': (options.episodes, 1, 1_000_000),
        'start_seed': (options.start_seed, 0, 2**31 - 1),
        'workers': (options.workers, 1, 1024),
        'share_scene': (options.share_scene, 1, 1024),
        'threads': (options.cast.threads, 1, 1024),
        'replan_rows': (terms.replan_rows, 1, 1024),
        'latency': (terms.latency_s, 0.0, 10.0),
        'start_jitter': (jitter.start_rad, 0.0, 0.3),
        'light_jitter': (jitter.light, 0.0, 1.0),
        'camera_jitter': (jitter.camera_m, 0.0, 0.2),
        'camera_turn': (jitter.camera_rad, 0.0, 0.5),
    }
    problems = [
        Problem(name, 'out of range', str(value), f'{low} to {high}')
        for name, (value, low, high) in ranges.items()
        if not low <= value <= high
    ]
    plays = options.cast.policy in SCRIPTED or is_server(options.cast.policy)
    if options.cast.splice != 'blend' and (plays or not options.cast.graph):
        given, remedy = options.cast.splice, 'name a checkpoint, and run it with --graph'
        problems.append(Problem('splice', 'is for the policy node with weights of its own', given, 'blend', remedy))
    if options.record is not None and (options.workers > 1 or options.cast.graph):
        remedy = 'leave --workers and --graph out, or record a run with the recorder node'
        problems.append(Problem('record', 'episodes are recorded by one process, in which they run', remedy=remedy))
    if problems:
        raise InvalidInput('closed-loop evaluation', problems)


def _films(
    options: EvalOptions, episodes: Mapping[tuple[str, int], Episode], records: Sequence[EpisodeRecord]
) -> list[Film]:
    """Films of what is worth seeing; those that are there already are made again, for they may be of another run."""
    if not worth_seeing(records):
        return []
    runner = make_runner(options.cast, film=True)
    try:
        return make_films(runner, episodes, records, options.output / FILMS_FOLDER)
    finally:
        runner.close()


def _conclude(
    options: EvalOptions,
    run: Mapping[str, Any],
    episodes: Mapping[tuple[str, int], Episode],
    records: Sequence[EpisodeRecord],
    films: Sequence[Film],
    seconds: float,
) -> EvalOutcome:
    provenance = {
        **run,
        'tasks': list(options.tasks),
        'seeds': [options.start_seed, options.start_seed + options.episodes - 1],
        'workers': options.workers,
        **surroundings(),
    }
    videos = {
        task: [f'{FILMS_FOLDER}/{film.path.name}' for film in films if film.task == task] for task in options.tasks
    }
    info = eval_info(records, provenance, videos, seconds)
    target = options.output / INFO_FILE
    beside = target.with_name(f'.{target.name}.partial')
    beside.write_text(json.dumps(info, indent=1) + '\n', encoding='utf-8')
    beside.replace(target)
    report = options.output / REPORT_FILE
    write_report(report, records, episodes, provenance, films)
    return EvalOutcome(records, info, report)
