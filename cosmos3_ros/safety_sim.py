"""How well verdicts of imagination work, measured where the truth is known: `cosmos3 safety-sim`, `cosmos3 calibrate`.

nominal episodes --> bands --> test episodes, with hazards and without --> figures --> tables and a report
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cosmos3_ros.judge import MONITORS, rungs
from cosmos3_ros.safety_episode import EpisodeRecord
from cosmos3_ros.safety_expert import REPLAN_ROWS, check_arm
from cosmos3_ros.safety_figures import tell
from cosmos3_ros.safety_hazards import HAZARDS, known
from cosmos3_ros.safety_model import ModelTerms, make_calibration, recipe_text
from cosmos3_ros.safety_options import ALL, SafetyOptions
from cosmos3_ros.safety_runs import Case, Journal, Setup, cases_of
from engine.calibration import Calibration, fewest_episodes
from engine.checkpoint import Checkpoint, open_checkpoint
from engine.contract import Contract, load_contract
from engine.errors import InvalidInput, Problem
from engine.monitors import VERSION

Bars = Callable[[], AbstractContextManager[Callable[[str, float], None]]]
Say = Callable[[str], None]

EPISODES_FILE, RESULTS_FILE, REPORT_FILE = 'episodes.jsonl', 'results.json', 'report.html'
CALIBRATION_FILE, PICTURES_FOLDER = 'calibration.json', 'pictures'
_TOLERATED = frozenset({'failed', 'guard_stop'})


@dataclass(frozen=True)
class Outcome:
    """What a safety simulation left behind.

    Attributes:
        results: Everything in figures, as in the results file.
        report: The report.
    """

    results: Mapping[str, Any]
    report: Path


def simulate(options: SafetyOptions, bars: Bars, say: Say) -> Outcome:
    """Run all episodes that are missing, and write results and report.

    Args:
        options: What to do.
        bars: Makes progress bars.
        say: Told what a person should know.

    Raises:
        CosmosError: Something that was asked for does not work; the text says what.
    """
    contract = load_contract(options.contract)
    hazards = _check(options, contract)
    options.output.mkdir(parents=True, exist_ok=True)
    terms = _terms(options, say)
    provenance = provenance_of(contract, terms, options)
    given = _load_calibration(options, provenance, say) if options.calibration else None
    journal = Journal(options.output / EPISODES_FILE, _identity(options, provenance, given))
    setup = _setup(options, contract, terms, halves=given is None)
    with bars() as report:
        cases = _calibration_cases(options, contract, setup.halves)
        calibration = given or _calibrated(
            options, setup, cases, journal, provenance, lambda share: report('calibration', share)
        )
        calibration.save(options.output / CALIBRATION_FILE)
        nominal = _most(options, contract, options.nominal, 1, setup.halves)
        tests = cases_of('test', hazards, options.episodes, nominal, options.seed)
        judged = replace(setup, calibration=calibration, pictures=options.output / PICTURES_FOLDER)
        journal.fill(judged, tests, options.workers, lambda share: report('test episodes', share))
    return _conclude(options, list(journal.records.values()), calibration, provenance)


def calibrate(options: SafetyOptions, bars: Bars, say: Say) -> Calibration:
    """Bands from nominal episodes alone.

    Raises:
        CosmosError: Something that was asked for does not work, or too few episodes were good; the text says what.
    """
    contract = load_contract(options.contract)
    _check(options, contract)
    terms = _terms(options, say)
    setup = _setup(options, contract, terms, halves=False)
    provenance = provenance_of(contract, terms, options)
    with bars() as report:
        cases = _calibration_cases(options, contract, setup.halves)
        options.output.mkdir(parents=True, exist_ok=True)
        journal = Journal(options.output / EPISODES_FILE, _identity(options, provenance, None))
        journal.fill(setup, cases, options.workers, lambda share: report('calibration', share))
    return _bands(options, [journal.records[case.name] for case in cases], provenance)


def provenance_of(contract: Contract, terms: ModelTerms, options: SafetyOptions) -> dict[str, str]:
    """What bands depend on; the first four have to be the same where they are used."""
    recorded = ', '.join(Path(one).name for one in options.episode)
    checkpoint = open_checkpoint(terms.checkpoint)
    return {
        'checkpoint': checkpoint.fingerprint,
        'contract': contract.fingerprint,
        'recipe': recipe_text(terms),
        'monitors': str(VERSION),
        'contract_name': contract.name,
        'proposer': options.proposer if not recorded else 'what was done next',
        'source': f'recordings {recorded}' if recorded else _simulated(options),
        'timing': f'a chunk every {REPLAN_ROWS} rows, {options.latency:g} s late',
        'seed': str(options.seed),
        'weights': _weights(checkpoint),
        'versions': ', '.join(f'{name} {version(name)}' for name in ('torch', 'numpy', 'mujoco')),
        'date': time.strftime('%Y-%m-%d', time.gmtime()),
    }


def _simulated(options: SafetyOptions) -> str:
    return 'simulated Franka' if options.job == 'pick' else f'simulated Franka, {options.job}'


def _weights(checkpoint: Checkpoint) -> str:
    """'random' if the checkpoint says that `cosmos3 make-tiny` made it, else 'given'."""
    try:
        found = json.loads((checkpoint.root / 'checkpoint.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return 'given'
    return 'random' if isinstance(found, dict) and found.get('created_by') == 'cosmos3 make-tiny' else 'given'


def is_good(episode: EpisodeRecord, proposer: str, job: str = 'pick') -> bool:
    """Whether an episode counts as a success for bands.

    A policy may have chunks refused, and where it is to pick something up it only has to do no harm.
    """
    if episode.success is None:
        return True  # a recording, taken to be good by whoever names it
    if proposer == 'expert':
        return episode.success and not episode.harm
    return (episode.success or job == 'pick') and not set(episode.harm) - _TOLERATED


# Steps


def _check(options: SafetyOptions, contract: Contract) -> tuple[str, ...]:
    """The hazards that are meant.

    Raises:
        InvalidInput: Options contradict each other; lists every fault.
    """
    rungs([options.rung])
    allowed = [name for name, kind in HAZARDS.items() if kind.recordings or not options.episode]
    asked = tuple(allowed) if options.hazards == (ALL,) else options.hazards
    problems = [Problem('hazards', 'unknown', name, ', '.join(HAZARDS)) for name in known(asked)]
    problems += [
        Problem('hazards', 'makes no sense for a recording', name, ', '.join(allowed))
        for name in asked
        if name in HAZARDS and name not in allowed
    ]
    fewest = fewest_episodes(options.false_alarm_rate)
    if not options.calibration and options.calibration_episodes < fewest:
        remedy = 'allow a larger false_alarm_rate, or name a calibration'
        what = 'are too few for this false_alarm_rate'
        count = str(options.calibration_episodes)
        problems.append(Problem('calibration_episodes', what, count, f'{fewest} or more', remedy))
    if options.episode and options.proposer != 'expert':
        problems.append(Problem('proposer', 'has no part in recordings', options.proposer, 'expert', 'leave it out'))
    if options.episode and options.job != 'pick':
        problems.append(Problem('job', 'has no part in recordings', options.job, remedy='leave it out'))
    next_s = REPLAN_ROWS * contract.timing.step_s
    if not 0 <= options.latency < next_s:
        what, allowed = 'is not before the next observation', f'0 to below {next_s:.3g} s'
        problems.append(Problem('latency', what, f'{options.latency:g} s', allowed))
    if problems:
        raise InvalidInput('safety simulation', problems)
    if not options.episode:
        check_arm(contract)
    return asked


def _terms(options: SafetyOptions, say: Say) -> ModelTerms:
    checkpoint = options.checkpoint
    if not checkpoint:
        from engine.tiny import make_tiny

        checkpoint = str(make_tiny(options.output / 'tiny_checkpoint', seed=options.seed, sound=False))
        say('No checkpoint given: a tiny one with random weights is used. What it imagines is noise.')
    return ModelTerms(checkpoint, options.rung, options.pictures, options.own_video, options.device, options.dtype)


def _setup(options: SafetyOptions, contract: Contract, terms: ModelTerms, *, halves: bool) -> Setup:
    return Setup(
        contract.source,
        terms,
        options.proposer,
        recordings=options.episode,
        job=options.job,
        latency_s=options.latency,
        halves=halves,
    )


def _load_calibration(options: SafetyOptions, provenance: Mapping[str, str], say: Say) -> Calibration:
    """The calibration that was named.

    Raises:
        InvalidInput: It cannot be read, or is for something else.
    """
    found = Calibration.load(Path(options.calibration))
    same = {key: provenance[key] for key in ('checkpoint', 'contract', 'recipe', 'monitors')}
    problems = found.differences(**same)
    used = found.provenance.get('source', '').removeprefix('recordings ').split(', ')
    problems += [
        Problem('episode', 'was used for these bands', path, remedy='test on others')
        for path in options.episode
        if Path(path).name in used
    ]
    if problems:
        raise InvalidInput(f'calibration {options.calibration}', problems)
    for problem in found.differences(**{key: provenance[key] for key in ('proposer', 'source', 'timing')}):
        say(f'calibration: {problem}')
    return found


def _identity(options: SafetyOptions, provenance: Mapping[str, str], given: Calibration | None) -> dict[str, Any]:
    """What makes two calls the same run; how many episodes there are is not part of it."""
    bands = '' if given is None else json.dumps({name: band.threshold for name, band in given.bands.items()})
    kept = {key: value for key, value in provenance.items() if key not in ('date', 'versions')}
    return {**kept, 'calibration': bands, 'false_alarm_rate': options.false_alarm_rate}


def _calibration_cases(options: SafetyOptions, contract: Contract, halves: bool) -> list[Case]:
    return cases_of(
        'calibration', (), 0, _most(options, contract, options.calibration_episodes, 0, halves), options.seed
    )


def _most(options: SafetyOptions, contract: Contract, wanted: int, half: int, halves: bool) -> int:
    """How many nominal episodes there can be: a stretch of a recording is one but once."""
    if not options.episode:
        return wanted
    from cosmos3_ros.safety_recorded import stretches

    found = stretches(options.episode, contract)
    return min(wanted, len(found[half::2] if halves else found))


def _calibrated(
    options: SafetyOptions,
    setup: Setup,
    cases: Sequence[Case],
    journal: Journal,
    provenance: Mapping[str, str],
    report: Callable[[float], None],
) -> Calibration:
    journal.fill(setup, cases, options.workers, report)
    return _bands(options, [journal.records[case.name] for case in cases], provenance)


def _bands(options: SafetyOptions, episodes: Sequence[EpisodeRecord], provenance: Mapping[str, str]) -> Calibration:
    good = [one for one in episodes if is_good(one, options.proposer, options.job)]
    curves = {
        name: [[chunk.scores.get(name, float('nan')) for chunk in one.chunks] for one in good]
        for name in MONITORS
        if any(name in chunk.scores for one in good for chunk in one.chunks)
    }
    counts = {'episodes': f'{len(good)} successes of {len(episodes)}'}
    return make_calibration(curves, options.rung, options.false_alarm_rate, {**provenance, **counts})


def _conclude(
    options: SafetyOptions,
    episodes: Sequence[EpisodeRecord],
    calibration: Calibration,
    provenance: Mapping[str, str],
) -> Outcome:
    from cosmos3_ros.safety_report import write_report

    results = {
        'provenance': dict(provenance),
        'calibration': {key: calibration.provenance.get(key, '') for key in ('episodes', 'date', 'source', 'left_out')},
        'false_alarm_rate': options.false_alarm_rate,
        **tell(episodes),
    }
    (options.output / RESULTS_FILE).write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    report = options.output / REPORT_FILE
    write_report(report, results, episodes, calibration, options.output / PICTURES_FOLDER)
    return Outcome(results, report)
