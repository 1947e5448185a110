"""What decides whether a policy works: the same episodes with one thing changed at a time.

    nice -n 10 python benchmarks/policy_ablations.py --policy CHECKPOINT --output FOLDER --workers 2 --save

Denoising steps, guidance and how often the policy looks are changed; with `--video` also whether it imagines the video
beside its actions, which the checkpoint must have been trained for. A call that was interrupted goes on where it
stopped, if it is given the same folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from closed_loop import lines
from figures import facts, machine, save, table, wilson

from cosmos3_ros.eval_runs import EvalOptions, evaluate
from cosmos3_ros.eval_world import Cast
from engine.evaluation.closed_loop import EpisodeRecord, LoopTerms
from engine.evaluation.report import compare
from engine.resources import find_config

HEAD = ('variant', 'success', 'Wilson 95 %', 'against the first, %', 'p', 'time, s', 'top speed, m/s', 'ms per chunk')


def variants(*, video: bool) -> Iterator[tuple[str, dict[str, Any], LoopTerms]]:
    """Name, changes of the sampler, and how the loop is closed; the first is what the others are held against."""
    usual = LoopTerms(8, 0.1)
    yield 'as it ships', {}, usual
    for steps in (1, 2, 8):
        yield f'{steps} step{"s" * (steps > 1)}', {'steps': steps}, usual
    for guidance in (1.5, 3.0):
        yield f'guidance {guidance:g}', {'guidance': guidance}, usual
    for rows in (4, 16):
        yield f'looks every {rows} rows', {}, LoopTerms(rows, 0.1)
    yield '0.4 s late', {}, LoopTerms(8, 0.4)
    if video:
        yield 'with the video', {'video': True}, usual


def row(name: str, records: Sequence[EpisodeRecord], first: Sequence[EpisodeRecord]) -> list[str]:
    """One variant's line."""
    hits, count = sum(one.success for one in records), len(records)
    low, high = (100 * share for share in wilson(hits, count))
    found = compare(first, records)['all']
    middle, least, most = (100 * share for share in found.difference)
    against = '' if records is first else f'{middle:+.1f} [{least:+.1f}, {most:+.1f}]'
    times = [one.success_s for one in records if one.success_s is not None]
    return [
        name,
        f'{hits}/{count}',
        f'{low:.1f} to {high:.1f}',
        against,
        '' if records is first else f'{found.p_value:.2g}',
        f'{np.mean(times):.2f}' if times else '-',
        f'{np.mean([one.top_speed for one in records]):.2f}',
        f'{1e3 * np.median([one.act_s for one in records]):.0f}',
    ]


def main() -> int:
    """Run all variants, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--policy', required=True, help='a checkpoint')
    parser.add_argument('--contract', default='micro_joint_pos', help='its contract')
    parser.add_argument('--task', default='reach', help='one or several, separated by commas')
    parser.add_argument('--episodes', type=int, default=100, help='of each task')
    parser.add_argument('--video', action='store_true', help='also with the video beside the actions')
    parser.add_argument('--workers', type=int, default=1, help='processes')
    parser.add_argument('--output', type=Path, required=True, help='folder of the runs')
    parser.add_argument('--save', action='store_true', help='write results/policy_ablations.json and .md')
    given = parser.parse_args()
    plain = yaml.safe_load(find_config('contracts', given.contract).read_text(encoding='utf-8'))
    found: dict[str, Sequence[EpisodeRecord]] = {}
    for number, (name, changes, terms) in enumerate(variants(video=given.video)):
        print(f'{name}:', flush=True)
        folder = given.output / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        contract = folder / f'{plain["name"]}.yaml'
        contract.write_text(yaml.safe_dump({**plain, 'sampler': {**plain['sampler'], **changes}}), encoding='utf-8')
        cast = Cast(given.policy, str(contract), terms)
        tasks = tuple(given.task.split(','))
        options = EvalOptions(folder, cast, tasks, given.episodes, workers=given.workers, films=False)
        found[name] = evaluate(options, lines).records
    first = next(iter(found.values()))
    rows = [row(name, records, first) for name, records in found.items()]
    name = Path(given.policy).name
    document = {'machine': machine(), 'policy': name, 'columns': HEAD, 'rows': rows}
    text = '\n\n'.join(
        [
            f'# What decides whether {name} works',
            f'{facts(document["machine"])}.',
            f'`python benchmarks/policy_ablations.py --policy {name} --contract {plain["name"]} '
            f'--task {given.task} --episodes {given.episodes}{" --video" if given.video else ""}`, the same seeds.',
            table(HEAD, rows),
            'Differences in points of success with 95 % intervals, and the exact McNemar test, episode by episode. '
            'Times are means over successes; the speed is that of the tool, highest in each episode, on average.',
        ]
    )
    print(text)
    if given.save:
        save('policy_ablations', document, text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
