"""How good imagination is, view by view and moment by moment, against doing nothing and against other actions.

    nice -n 10 python benchmarks/imagination.py --output FOLDER --save

Episodes of the scripted hand are recorded that nothing was trained on; then recorded motion goes in, and the video that
comes out is held to the real one, with `cosmos3 eval open-loop`; and recorded video goes in, and the motion that comes
out is held to the real one. What is there in the folder is not recorded again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import RESULTS, facts, machine, save, table

MOMENTS_S = (0.5, 1.0, 2.0)
FIRST_SEED = 5000
"""Demonstrations that Cosmos3-micro is trained on have seeds from 300,000; evaluations from 0."""
NAMES = {
    'imagined': 'imagined',
    'repeat_first': 'first frame repeated',
    'other_actions': "imagined for another moment's actions",
    'reversed': 'imagined for the actions reversed',
    'ceiling': 'real video, encoded and decoded',
}
DETAIL = 'detail'
CONTROLS = ('repeat_first', 'other_actions', 'reversed')
SHIPPED = 'cosmos3-micro'


def record(folder: Path, episodes: int) -> Path:
    """Record the scripted hand, or take what is there."""
    data = folder / 'reach'
    if not (data / 'meta' / 'info.json').is_file():
        call = ['make-dataset', '--task', 'reach', '--episodes', str(episodes), '--start-seed', str(FIRST_SEED)]
        cosmos3(*call, '--picture', '144x256', '--workers', '2', '-o', str(data))
    return data


def cosmos3(*words: str) -> None:
    """Run a command of the package."""
    subprocess.run([sys.executable, '-m', 'cosmos3_ros.cli', *words], check=True)


def cell(estimate: Mapping[str, Any], at: int | None = None, digits: int = 1) -> str:
    """A figure with its interval."""
    figures = [estimate[name] if at is None else estimate[name][at] for name in ('value', 'low', 'high')]
    value, *ends = ('-' if one is None else f'{one:.{digits}f}' for one in figures)
    return value if '-' in ends else f'{value} [{", ".join(ends)}]'


def least_gain(dynamics: Mapping[str, Any], view: str, at: int) -> str:
    """What the imagined video gains over the better of the controls, paired by window, with its interval."""
    gains = [dynamics['gain_by_view'][who][view] for who in CONTROLS if who in dynamics['gain_by_view']]
    return cell(min(gains, key=lambda gain: gain['value'][at]), at)


def rows_of(dynamics: Mapping[str, Any]) -> list[list[str]]:
    """A line for each view and moment."""
    found = []
    for view in dynamics['views']:
        for moment in MOMENTS_S:
            at = round(moment * dynamics['fps']) - 1
            if at >= dynamics['rows']:
                continue
            figures = [cell(dynamics['psnr'][who][view]['by_frame'], at) for who in NAMES if who in dynamics['psnr']]
            name = f'{"whole picture" if view == "all" else view.replace("_", " ")}, {(at + 1) / dynamics["fps"]:.2f} s'
            found.append([name, *figures, least_gain(dynamics, view, at)])
    return found


def text_of(document: Mapping[str, Any], found: Mapping[str, Any], words: str) -> str:
    """The page that is kept."""
    dynamics, inverse = found['dynamics'], found['inverse']
    errors = inverse['rmse'] or {'found': {}, 'still': {}}
    motion = [[name, *(cell(errors[who][name], digits=2) for who in ('found', 'still'))] for name in errors['found']]
    wins = dynamics['wrong_is_worse']
    said = '; '.join(
        f'{NAMES[who].replace("imagined for ", "")} in {one["k"]} of {one["n"]} windows' for who, one in wins.items()
    )
    units = ', '.join(f'{name} in {unit}' for name, unit in inverse['units'].items())
    return '\n\n'.join(
        [
            f'# How well {document["policy"]} imagines',
            f'{facts(document["machine"])}.',
            f'`python benchmarks/imagination.py {words}`: {dynamics["windows"]} windows of {dynamics["rows"]} rows at '
            f'{dynamics["fps"]:g} Hz from {document["recorded"]} episodes of the scripted hand (seeds from '
            f'{FIRST_SEED})' + (', which it was not trained on.' if document['policy'] == SHIPPED else '.'),
            'PSNR in dB of single moments against the real video, by view. The last column is what the imagined video '
            'gains over the best of the three controls (first frame repeated, other actions, reversed actions), paired '
            'by window.',
            table(('view, moment', *(NAMES[who] for who in NAMES if who in dynamics['psnr']), 'gain, dB'),
                  rows_of(dynamics)),
            f'The right actions are nearer to the real video than {said}.',
            '![example](imagination.png)',
            'The same for what is shown to people: where little changes, all imagined videos keep the detail of the '
            'first picture (`Rollout.detailed`).',
            table(('view, moment', *(NAMES[who] for who in NAMES if who in dynamics['psnr']), 'gain, dB'),
                  rows_of(found[DETAIL]['dynamics'])),
            'Inverse dynamics: root mean square of the motion from one frame to the next that is found in the real '
            f'video ({units}), beside the guess that nothing moves.',
            table(('motion', 'found', 'nothing moves'), motion),
            f'Intervals: {dynamics["intervals"]}.',
        ]
    )  # fmt: skip


def main() -> int:
    """Record, measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--policy', default='cosmos3-micro', help='a checkpoint')
    parser.add_argument('--contract', default='micro_joint_pos', help='its contract')
    parser.add_argument('--episodes', type=int, default=60, help='to record')
    parser.add_argument('--windows', type=int, default=60, help='to measure at most')
    parser.add_argument('--steps', type=int, default=6, help='denoising steps')
    parser.add_argument('--chained', type=int, default=2, help='windows of the network that follow each other')
    parser.add_argument('--output', type=Path, required=True, help='folder of the recordings and the report')
    parser.add_argument('--save', action='store_true', help='write results/imagination.json, .md and .png')
    given = parser.parse_args()
    data, report = record(given.output, given.episodes), given.output / 'report'
    call: Sequence[str] = ['--policy', given.policy, '--contract', given.contract, '--max-windows', str(given.windows)]
    call = [*call, '--dynamics-steps', str(given.steps), '--dynamics-windows', str(given.chained)]
    cosmos3('eval', 'open-loop', str(data), *call, '--skip', 'policy', '-o', str(report))
    detail = given.output / 'report_detail'
    cosmos3('eval', 'open-loop', str(data), *call, '--skip', 'policy,inverse', '--dynamics-detail', '-o', str(detail))
    found, kept = (json.loads((folder / 'open_loop.json').read_text(encoding='utf-8')) for folder in (report, detail))
    found[DETAIL] = {'dynamics': kept['dynamics']}
    recorded = json.loads((data / 'meta' / 'info.json').read_text(encoding='utf-8'))['total_episodes']
    document = {'machine': machine(), 'policy': Path(given.policy).name, 'recorded': recorded, **found}
    words = f'--policy {document["policy"]} --contract {given.contract} --episodes {given.episodes}'
    words += f' --windows {given.windows} --steps {given.steps} --chained {given.chained}'
    text = text_of(document, found, words)
    print(text)
    if given.save:
        save('imagination', document, text)
        shutil.copyfile(report / 'plots' / 'example.png', RESULTS / 'imagination.png')
    return 0


if __name__ == '__main__':
    sys.exit(main())
