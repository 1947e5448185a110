"""Figures of an open-loop run as tables and as one HTML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from engine.evaluation.open_loop_plots import NAMES, Plot
from engine.evaluation.report_page import picture, provenance_table, table, write_page


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        title: Above it.
        head: Names of the columns.
        rows: Cells; the first of each row is a name.
        note: Below it.
        short: Whether it is worth showing in a terminal.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ''
    short: bool = True


def tables(document: Mapping[str, Any]) -> list[Table]:
    """Every table that there is something for."""
    found: list[Table] = []
    policy, dynamics, inverse = (document.get(name) or {} for name in ('policy', 'dynamics', 'inverse'))
    if policy:
        found += [_errors(policy), _by_channel(policy), _gripper(policy), _between(policy), _limits(policy)]
    if dynamics:
        found += [_likeness(dynamics), _gains(dynamics)]
    if inverse.get('rmse'):
        found.append(_inverse(inverse))
    return [one for one in found if one.rows]


def channels(policy: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Name, unit and index of every channel; the mean of all joints, where there is one, stands behind them."""
    own = [(one['name'], one['unit'], number) for number, one in enumerate(policy['channels'])]
    rows = str(policy['rows'])
    more = len(policy['executed'][rows]['policy']['rmse']['value']) - len(own)
    return own + ([('all joints', own[0][1], len(own))] if more else [])


def headline(policy: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """The channels that are shown first: all joints together, or position and rotation."""
    found = channels(policy)
    return found[-1:] if found[-1][0] == 'all joints' else found


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits; '-' for what is not known."""
    if value is None:
        return '-'
    if abs(value) < 1e-6:
        return '0'
    text = f'{value:.{digits}g}'
    return f'{float(text):g}' if 'e' in text and 1e-4 < abs(value) < 1e6 else text


def interval(estimate: Mapping[str, Any], index: int | None = None, digits: int = 3) -> str:
    """A figure with its interval, if it has one."""
    value, low, high = (estimate[key] if index is None else estimate[key][index] for key in ('value', 'low', 'high'))
    if low is None or high is None:
        return number(value, digits)
    return f'{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]'


def percent(estimate: Mapping[str, Any]) -> str:
    """A share in percent with its interval."""
    scaled = {key: None if estimate[key] is None else 100 * estimate[key] for key in ('value', 'low', 'high')}
    return interval(scaled)


def _errors(policy: Mapping[str, Any]) -> Table:
    horizons = list(policy['executed'])
    rows = []
    for who in policy['lead_time']:
        for name, unit, index in headline(policy):
            cells = [interval(policy['executed'][rows_][who]['rmse'], index) for rows_ in horizons]
            skill = '' if who == 'policy' else interval(policy['skill'][horizons[-1]][who], index, 2)
            rows.append((f'{NAMES[who]}, {name}, {unit}', *cells, skill))
    head = ('RMSE', *(f'first {rows_} rows' for rows_ in horizons), "policy's gain on it")
    note = (
        "Gain: the share of that guess's mean square that the policy saves over the whole chunk; 1 is perfect, 0 no "
        f'better, below 0 worse. {policy["moments"]} moments, seeds for each: {policy["seeds"]}. '
        f'Intervals: {policy["intervals"]}.'
    )
    return Table(f'Error against {policy["targets"]}', head, tuple(rows), note)


def _by_channel(policy: Mapping[str, Any]) -> Table:
    horizon = str(policy['rows'])
    found = policy['executed'][horizon]
    head = ('channel', 'RMSE', 'MAE', *(f'{NAMES[who]}, RMSE' for who in found if who != 'policy'))
    rows = tuple(
        (
            f'{name}, {unit}',
            interval(found['policy']['rmse'], index),
            interval(found['policy']['mae'], index),
            *(interval(found[who]['rmse'], index) for who in found if who != 'policy'),
        )
        for name, unit, index in channels(policy)
    )
    return Table(f'Error of each channel over {horizon} rows', head, rows, short=False)


def _gripper(policy: Mapping[str, Any]) -> Table:
    gripper = policy.get('gripper')
    head = ('gripper', 'F1 of closed', 'accuracy', 'MAE, closed fraction')
    if not gripper:
        return Table('Gripper', head, ())
    rows = tuple(
        (f'{NAMES[who]}, first {rows} rows', *(interval(found[who][key]) for key in ('f1', 'accuracy', 'mae')))
        for rows, found in gripper['executed'].items()
        for who in found
    )
    return Table('Gripper', head, rows, f'Held to {policy["gripper_targets"]}; closed is above one half.')


def _between(policy: Mapping[str, Any]) -> Table:
    rows = [row for name, unit, index in headline(policy) for row in _between_rows(policy, name, unit, index)]
    rows += [
        (f'smoothness, SPARC: {NAMES[who]}', interval(found['sparc']), '')
        for who, found in policy['smoothness'].items()
    ]
    note = (
        f'Overlap and seams: of chunks made {policy["stride"]} rows apart. Jump: from the row that the old chunk '
        'has for a moment to the first row of the new one. Acceleration: the larger of the two second differences '
        'around the seam. SPARC: 0 is perfectly smooth.'
    )
    return Table('Between chunks, and within', ('root mean square', 'value', 'largest'), tuple(rows), note)


def _between_rows(policy: Mapping[str, Any], name: str, unit: str, index: int) -> Iterator[tuple[str, str, str]]:
    yield f'first row from the measured state, {name}, {unit}', interval(policy['start']['policy'], index), ''
    yield f'the same as recorded, {name}, {unit}', interval(policy['start']['recorded'], index), ''
    if 'overlap' in policy:
        seam = policy['seam']
        yield f'overlap of chunks, {name}, {unit}', interval(policy['overlap']['rmse'], index), ''
        yield f'jump at seams, {name}, {unit}', interval(seam['jump'], index), _most(seam['jump']['most'], index)
        bend = seam['acceleration']
        most = _most(bend['most'], index)
        yield f'acceleration at seams, {name}, {unit}/s²', interval(bend['policy'], index), most
        yield f'acceleration there as recorded, {name}, {unit}/s²', interval(bend['recorded'], index), ''
    if 'seed_spread' in policy:
        yield f'spread over seeds, {name}, {unit}', interval(policy['seed_spread']['all'], index), ''
    for who in ('policy', 'recorded'):
        yield f'jerk: {NAMES[who]}, {name}, {unit}/s³', interval(policy['smoothness'][who]['jerk'], index), ''


def _most(values: Sequence[float], index: int) -> str:
    """The largest of one channel, or of all of them where `index` stands for all."""
    return number(values[index] if index < len(values) else max(values))


def _limits(policy: Mapping[str, Any]) -> Table:
    rows = tuple(
        (
            f'{kind}: {NAMES[who]}',
            percent(found['chunks']),
            number(100 * max(found['rows']['value'])),
            number(100 * max(found['most_used'])),
        )
        for kind, sides in policy['limits'].items()
        for who, found in sides.items()
    )
    head = ('limit', 'chunks beyond it, %', 'rows of the worst joint, %', 'most of it used, %')
    note = (
        "Limits of the robot's description, by differences of rows. The guard judges continuous motion, more strictly."
    )
    return Table('Limits of the robot', head, rows, note)


def _likeness(dynamics: Mapping[str, Any]) -> Table:
    head = ('video', 'PSNR, dB', 'SSIM', *(f'{view}: PSNR, dB' for view in dynamics['views'] if view != 'all'))
    rows = tuple(
        (
            NAMES[who],
            interval(by_view['all']['mean']),
            interval(dynamics['ssim'][who]['all']['mean']),
            *(interval(by_view[view]['mean']) for view in dynamics['views'] if view != 'all'),
        )
        for who, by_view in dynamics['psnr'].items()
    )
    note = (
        f'Mean over {dynamics["rows"]} frames of {dynamics["windows"]} windows, against the real video. The ceiling is '
        f'the real video, encoded and decoded. Intervals: {dynamics["intervals"]}.'
    )
    return Table('Forward dynamics', head, rows, note)


def _gains(dynamics: Mapping[str, Any]) -> Table:
    wins = dynamics['wrong_is_worse']
    rows = []
    for who, gain in dynamics['gain']['psnr'].items():
        share = ''
        if who in wins:
            low, high = wins[who]['wilson95']
            share = f'{wins[who]["k"]}/{wins[who]["n"]} [{100 * low:.0f} %, {100 * high:.0f} %]'
        rows.append((NAMES[who], interval(gain), interval(dynamics['gain']['ssim'][who]), share))
    head = ('imagined against', 'PSNR, dB', 'SSIM', 'windows in which it is better')
    note = (
        'Paired by window; above 0 the right actions give the better video. A network that ignores actions has 0 '
        'against wrong ones. Better: by 0.01 dB at least.'
    )
    return Table('What the right actions are worth', head, tuple(rows), note)


def _inverse(inverse: Mapping[str, Any]) -> Table:
    names = [f'{name}, {unit}' for name, unit in inverse['units'].items()]
    rows = tuple(
        (NAMES[who], *(interval(found[name]) for name in inverse['units'])) for who, found in inverse['rmse'].items()
    )
    note = f'Root mean square of the motion of one row, {inverse["windows"]} windows'
    note += f'; in {inverse["unreadable"]} of them no rotation was found.' if inverse['unreadable'] else '.'
    return Table('Inverse dynamics', ('RMSE', *names), rows, note)


# The page


def write_report(path: Path, document: Mapping[str, Any], plots: Sequence[Plot]) -> None:
    """Write the report, which loads nothing.

    Args:
        path: The HTML file.
        document: As it stands in `open_loop.json`.
        plots: Pictures.
    """
    write_page(path, 'Open loop', _parts(document, plots))


def _parts(document: Mapping[str, Any], plots: Sequence[Plot]) -> Iterator[str]:
    yield '<h1>Open loop on recorded episodes</h1>'
    yield f'<p><b>{escape(in_short(document))}</b></p>'
    yield (
        '<p class="note">Nothing is executed: whatever the policy answers, the next moment is the recorded one. These '
        'figures say how well it imitates, and not whether it would succeed.</p>'
    )
    for one in tables(document):
        yield f'<h2>{escape(one.title)}</h2>' + table(one.head, one.rows)
        if one.note:
            yield f'<p class="note">{escape(one.note)}</p>'
    for plot in plots:
        yield picture(plot.title, plot.png)
        yield f'<p class="note">{escape(plot.note)}</p>' if plot.note else ''
    if document.get('warnings'):
        yield '<h2>Of the recordings</h2>' + table(('warning',), [(one,) for one in document['warnings']], words=True)
    ways = {name: part['intervals'] for name in ('policy', 'dynamics', 'inverse') if (part := document.get(name))}
    yield provenance_table({'intervals': ways, **document['provenance']})


def in_short(document: Mapping[str, Any]) -> str:
    """The outcome in a sentence or two."""
    found = []
    if policy := document.get('policy'):
        rows = str(policy['rows'])
        for name, unit, index in headline(policy):
            mine, hold = (policy['executed'][rows][who]['rmse']['value'][index] for who in ('policy', 'hold'))
            found.append(f'{name}: RMSE {number(mine)} {unit} over {rows} rows, holding the pose {number(hold)} {unit}')
    if dynamics := document.get('dynamics'):
        gain = dynamics['gain']['psnr']
        parts = ', '.join(f'{gain[who]["value"]:+.2f} dB against {NAMES[who]}' for who in gain if who != 'ceiling')
        found.append(f'imagined video: {parts}')
    if (inverse := document.get('inverse')) and inverse.get('rmse'):
        mine, still = (inverse['rmse'][who]['translation']['value'] for who in ('found', 'still'))
        found.append(f'inverse dynamics: {number(mine)} mm a row, if nothing moved {number(still)} mm')
    return '; '.join(found) + '.'
