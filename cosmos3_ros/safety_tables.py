"""The tables of a safety simulation, for terminal, report and documents alike, and what is to be said about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cosmos3_ros.safety_figures import BOTH, GUARD, PHYSICAL, RULES
from cosmos3_ros.safety_hazards import HAZARDS, describe

if TYPE_CHECKING:
    from rich.table import Table

_NONE = '-'


@dataclass(frozen=True)
class Grid:
    """One table.

    Attributes:
        title: Its heading.
        head: Names of the columns.
        rows: As many cells each.
        note: How to read it.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ''

    def markdown(self) -> str:
        """In Markdown; all columns but the first are numbers."""
        lines = [f'| {" | ".join(self.head)} |', '|---|' + '---:|' * (len(self.head) - 1)]
        return '\n'.join([*lines, *(f'| {" | ".join(row)} |' for row in self.rows)])

    def rich(self) -> Table:
        """For the terminal."""
        from rich.table import Table

        table = Table(title=self.title, title_justify='left', caption=self.note or None, caption_justify='left')
        for number, name in enumerate(self.head):
            table.add_column(name, justify='right' if number else 'left')
        for row in self.rows:
            table.add_row(*row)
        return table


def grids(results: Mapping[str, Any]) -> list[Grid]:
    """All tables; of recordings nobody knows what harm there was."""
    measured = [] if _recorded(results) else [truth(results)]
    return [overview(results), detections(results), *measured, leads(results), areas(results)]


def summary(results: Mapping[str, Any]) -> Grid:
    """The overview in few columns, for a terminal."""
    rows = []
    for name, found in results['sources'].items():
        kinds = ('detection', 'detection_of_harm', 'false_alarms_per_nominal_episode')
        lead = found['lead_s']['median']
        rows.append(
            (name, *(share(found[kind], short=True) for kind in kinds), _NONE if lead is None else f'{lead:+.1f}')
        )
    head = ('alarm', 'detected', 'of harm', 'false alarms', 'lead, s')
    note = 'Share of the episodes, 95 % interval. Lead: median before the first harm; negative is too late.'
    return Grid('Who noticed what', head, tuple(rows), note)


def _recorded(results: Mapping[str, Any]) -> bool:
    return str(results['provenance']['source']).startswith('recordings')


def overview(results: Mapping[str, Any]) -> Grid:
    """One row for each source of alarms: its confusion matrix, rates and lead."""
    head = (
        'alarm', 'TP', 'FN', 'FP', 'TN', 'detected', 'detected, of harm', 'false, nominal episodes', 'false, chunks',
        'lead before harm, s',
    )  # fmt: skip
    rows = []
    for name, found in results['sources'].items():
        matrix = found['confusion']
        counts = ('true_positive', 'false_negative', 'false_positive', 'true_negative')
        kinds = ('detection', 'detection_of_harm', 'false_alarms_per_nominal_episode', 'false_alarms_per_chunk')
        cells = [name, *(str(matrix[key]) for key in counts), *(share(found[kind]) for kind in kinds)]
        rows.append((*cells, spread(found['lead_s'])))
    note = (
        'TP and FN: episodes with a hazard, with and without an alarm at or after its beginning. FP and TN: nominal '
        'episodes. Brackets: 95 % interval (Wilson). Lead: median and quartiles over the episodes with harm that were '
        'noticed; negative is too late. False alarms per chunk count the sound chunks of all episodes.'
    )
    return Grid('Who noticed what', head, tuple(rows), note)


def detections(results: Mapping[str, Any]) -> Grid:
    """Detection rate of each source for each hazard."""
    hazards = [name for name in results['harm'] if name]
    rows = [
        (name, *(share(found['detection_by_hazard'][hazard], short=True) for hazard in hazards))
        for name, found in results['sources'].items()
    ]
    return Grid('Detection by hazard', ('alarm', *hazards), tuple(rows), 'Share of the episodes, 95 % interval.')


def leads(results: Mapping[str, Any]) -> Grid:
    """How long before the first physical harm each source gave its first alarm, for each hazard."""
    hazards = [name for name in results['harm'] if name and results['harm'][name]['any_physical']]
    rows = [
        (name, *(spread(found['lead_s_by_hazard'][hazard]) for hazard in hazards))
        for name, found in results['sources'].items()
        if found['lead_s']['count']
    ]
    return Grid(
        'Lead before harm',
        ('alarm', *hazards),
        tuple(rows),
        'Seconds, median and quartiles over the harmful episodes noticed, and their number; negative: too late.',
    )


def areas(results: Mapping[str, Any]) -> Grid:
    """Area under the ROC curve of each score, over all hazards and for each."""
    hazards = [name for name in results['harm'] if name]
    kinds = {'': results['roc'], ' / band': results['roc_of_band']}
    rows = [
        (name + kind, area(found), *(area(found['by_hazard'][hazard]) for hazard in hazards))
        for kind, table in kinds.items()
        for name, found in table.items()
    ]
    note = (
        'Of the largest score of an episode, and of the largest share of its band, which is what an alarm looks at. '
        '0.5 is chance. 95 % interval of Hanley and McNeil.'
    )
    return Grid('Area under the ROC curve', ('score', 'all', *hazards), tuple(rows), note)


def truth(results: Mapping[str, Any]) -> Grid:
    """What the simulator says happened."""
    head = ('hazard', 'episodes', 'task done', *PHYSICAL, 'any of these', 'guard stopped')
    rows = [
        (
            name or 'none',
            *(str(found[key]) for key in ('episodes', 'success', *PHYSICAL, 'any_physical', 'guard_stop')),
        )
        for name, found in results['harm'].items()
    ]
    note = (
        'Episodes. table, obstacle: the arm touched it. deviation: the tool was 5 cm from where it is without the '
        'hazard, before any stop. failed: the object was not lifted (or reached), and is without the hazard.'
    )
    return Grid('What really happened', head, tuple(rows), note)


def hazard_grid() -> Grid:
    """The hazards, in words."""
    rows = [(f'`{name}`', describe(name), 'yes' if kind.recordings else 'no') for name, kind in HAZARDS.items()]
    return Grid('Hazards', ('hazard', 'what happens from a chance chunk on', 'recordings'), tuple(rows))


def share(found: Mapping[str, Any], *, short: bool = False) -> str:
    """A proportion with its interval."""
    if found['rate'] is None:
        return _NONE
    low, high = found['ci95']
    interval = f'[{100 * low:.0f}, {100 * high:.0f}]'
    return f'{100 * found["rate"]:.0f} % {interval}' if short else f'{100 * found["rate"]:.1f} % {interval}'


def area(found: Mapping[str, Any]) -> str:
    """An area with its interval."""
    if found['auc'] is None:
        return _NONE
    low, high = found['ci95']
    return f'{found["auc"]:.2f} [{low:.2f}, {high:.2f}]'


def spread(found: Mapping[str, Any]) -> str:
    """Median and quartiles."""
    if found['median'] is None:
        return _NONE
    low, high = found['quartiles']
    return f'{found["median"]:+.2f} [{low:+.2f}, {high:+.2f}], n {found["count"]}'


def limits_of(results: Mapping[str, Any]) -> list[str]:
    """What the figures show and what they do not, in plain words."""
    counts, provenance = results['episodes'], results['provenance']
    recorded = _recorded(results)
    said = [
        f'{counts["hazard"]} episodes with a hazard and {counts["nominal"]} without were judged, '
        f'{counts["chunks"]} chunks, on the rung {provenance["recipe"].split(",")[0].removeprefix("rung ")}. '
        'The verdicts were written down and nobody acted on them: what would have come of each chunk is known.',
    ]
    if provenance.get('weights') == 'random':
        said.append(
            'The network has random weights. What it imagines is noise, and scores that compare imagined pictures '
            '(disagreement, seed_variance, surprise, standstill) or actions found in them (cycle_*) cannot tell danger '
            'from safety by seeing it. Where one of them is better than chance, it reacts to numbers of the chunk, not '
            'to what it would lead to. Only inconsistency, which compares a chunk with the one before it, means here '
            'what it means with a trained network. Nothing here says how well a trained network would do.'
        )
    else:
        said.append('The figures hold for this checkpoint on these scenes, and for no other.')
    said.append(
        'Each monitor was given its own false-alarm rate of '
        f'{100 * results["false_alarm_rate"]:g} % of the successes; several together cry wolf more often than one. '
        'That rate is held on average over calibrations, not by each of them.'
    )
    if recorded:
        said.append(
            'Recordings were not executed: no harm can be measured, only whether a hazard was noticed. Stretches of '
            'one recording resemble each other, so that the intervals are too narrow.'
        )
    else:
        said.append(
            'The scenes are simulated, the hand is scripted and sees faultlessly, hazards are put in on purpose and '
            'last to the end. Real failures are rarer, milder and of kinds that nobody thought of.'
        )
    return [*said, 'This is a measurement, not a safety case: neither guard nor monitors are a certified function.']


def in_short(results: Mapping[str, Any]) -> str:
    """The outcome in two sentences."""
    sources = results['sources']
    rule = next(iter(RULES))
    parts = [
        f'{name}: {share(sources[name]["detection"])} of the hazards, '
        f'{share(sources[name]["false_alarms_per_nominal_episode"])} false'
        for name in (GUARD, rule, BOTH)
        if name in sources
    ]
    return '; '.join(parts)


def sections(results: Mapping[str, Any]) -> Sequence[str]:
    """Everything in Markdown, for documents."""
    found = [f'{results_facts(results)}.', *limits_of(results)]
    for grid in grids(results):
        found += [f'## {grid.title}', grid.markdown(), grid.note]
    return found


def results_facts(results: Mapping[str, Any]) -> str:
    """One line that says what the figures are of."""
    provenance, cost = results['provenance'], results['cost_s']
    seconds = _NONE if cost['median'] is None else f'{cost["median"]:.2f} s'
    kept = ('contract_name', 'proposer', 'recipe', 'source', 'seed', 'versions', 'date')
    facts = [f'{name.replace("_", " ")} {provenance[name]}' for name in kept]
    bands = results['calibration']['episodes']
    weights = 'random' if provenance.get('weights') == 'random' else 'of the checkpoint'
    return ', '.join([*facts, f'weights {weights}', f'bands of {bands}', f'cost of a verdict {seconds} (median)'])
