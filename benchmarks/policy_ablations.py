"""What decides whether a policy works: the same episodes with one thing changed at a time.

    nice -n 10 python benchmarks/policy_ablations.py --policy CHECKPOINT --output FOLDER --workers 2 --save

Denoising steps, guidance and how often the policy looks are changed; with `--video` also whether it imagines the video
beside its actions, which the checkpoint must have been trained for; with `--graph` also how chunks are joined, in the
processes of a robot. A call that was interrupted goes on where it
stopped, if it is given the same folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

USUAL = LoopTerms(8, 0.1)
HEAD = (
    'variant', 'success', 'Wilson 95 %', 'against the first, %', 'p', 'time, s', 'way, m', 'top speed, m/s', 'refused',
    'ms per chunk',
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One line.

    Attributes:
        name: What is changed.
        sampler: Changes of the contract's sampler.
        loop: How the loop is closed.
        splice: How chunks are joined in a ROS graph; empty: in this process, where nothing but blending is known.
    """

    name: str
    sampler: Mapping[str, Any] = field(default_factory=dict)
    loop: LoopTerms = USUAL
    splice: str = ''


def variants(*, video: bool, graph: bool) -> Iterator[Variant]:
    """The first is what the others are held against."""
    yield Variant('as it ships: looks every 8 rows, 0.1 s late')
    for steps in (1, 2, 8):
        yield Variant(f'{steps} step{"s" * (steps > 1)}', {'steps': steps})
    for guidance in (1.5, 3.0):
        yield Variant(f'guidance {guidance:g}', {'guidance': guidance})
    for rows in (4, 16):
        yield Variant(f'looks every {rows} rows', loop=LoopTerms(rows, 0.1))
    yield Variant('0.4 s late', loop=LoopTerms(8, 0.4))
    if video:
        yield Variant('with the video', {'video': True})
    if graph:
        for splice in ('blend', 'prefix'):
            yield Variant(f'ROS graph, {splice}', splice=splice)


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
        f'{np.mean([one.path_m for one in records]):.3f}',
        f'{np.mean([one.top_speed for one in records]):.2f}',
        str(sum(len(one.refusals) for one in records)),
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
    parser.add_argument('--graph', action='store_true', help='also in the processes of a robot, blended and continued')
    parser.add_argument('--workers', type=int, default=1, help='processes')
    parser.add_argument('--output', type=Path, required=True, help='folder of the runs')
    parser.add_argument('--save', action='store_true', help='write results/policy_ablations.json and .md')
    given = parser.parse_args()
    plain = yaml.safe_load(find_config('contracts', given.contract).read_text(encoding='utf-8'))
    found: dict[str, Sequence[EpisodeRecord]] = {}
    for number, variant in enumerate(variants(video=given.video, graph=given.graph)):
        print(f'{variant.name}:', flush=True)
        folder = given.output / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        contract = folder / f'{plain["name"]}.yaml'
        changed = {**plain, 'sampler': {**plain['sampler'], **variant.sampler}}
        contract.write_text(yaml.safe_dump(changed), encoding='utf-8')
        cast = Cast(given.policy, str(contract), variant.loop)
        if variant.splice:
            cast = replace(cast, graph=True, splice=variant.splice)
        tasks = tuple(given.task.split(','))
        options = EvalOptions(folder, cast, tasks, given.episodes, workers=given.workers, films=False)
        found[variant.name] = evaluate(options, lines).records
    first = next(iter(found.values()))
    rows = [row(name, records, first) for name, records in found.items()]
    name = Path(given.policy).name
    document = {'machine': machine(), 'policy': name, 'columns': HEAD, 'rows': rows}
    words = f'--policy {name} --contract {plain["name"]} --task {given.task} --episodes {given.episodes}'
    words += ''.join(f' --{option}' for option in ('video', 'graph') if getattr(given, option))
    text = '\n\n'.join(
        [
            f'# What decides whether {name} works',
            f'{facts(document["machine"])}.',
            f'`python benchmarks/policy_ablations.py {words}`, the same seeds.',
            table(HEAD, rows),
            'Differences in points of success with 95 % intervals, and the exact McNemar test, episode by episode. '
            'Times are means over successes; way and speed are those of the tool, the speed the highest in each '
            'episode, both on average. Refused chunks are those of all episodes.',
        ]
    )
    print(text)
    if given.save:
        save('policy_ablations', document, text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
