"""How often a policy does the tasks of the simulated Franka: `cosmos3 eval closed-loop`, kept as a result.

    nice -n 10 python benchmarks/closed_loop.py --policy expert --output FOLDER --workers 2 --save expert

A call that was interrupted goes on where it stopped, if it is given the same folder. See docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from figures import facts, machine, save, table

from cosmos3_ros.eval_runs import EvalOptions, evaluate
from cosmos3_ros.eval_world import Cast
from engine.evaluation.closed_loop import LoopTerms
from engine.evaluation.report_html import summary
from engine.evaluation.tasks import TASKS


@contextmanager
def lines() -> Iterator[Callable[[str, float], None]]:
    """Progress as lines of text, for logs."""
    yield lambda what, share: print(f'{what}: {share:.1%}', flush=True)


def main() -> int:
    """Run, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--policy', default='expert', help='expert, hold, random, or a checkpoint')
    parser.add_argument('--contract', default='demo_joint_pos', help='name or path')
    parser.add_argument('--task', default=','.join(TASKS), help='one or several, separated by commas')
    parser.add_argument('--episodes', type=int, default=100, help='of each task')
    parser.add_argument('--start-seed', type=int, default=0, help='seed of the first episode')
    parser.add_argument('--share-scene', type=int, default=1, help='seeds in a row that have one scene')
    parser.add_argument('--replan-rows', type=int, default=8, help='rows from one observation to the next')
    parser.add_argument('--latency', type=float, default=0.2, help='simulated seconds from an observation to its chunk')
    parser.add_argument('--graph', action='store_true', help='guard and policy as processes of a ROS graph')
    parser.add_argument('--output', type=Path, required=True, help='folder of the run')
    parser.add_argument('--workers', type=int, default=1, help='processes')
    parser.add_argument('--save', default='', help='write results/closed_loop_NAME.json and .md')
    given = parser.parse_args()
    tasks = tuple(given.task.split(','))
    terms = LoopTerms(given.replan_rows, given.latency)
    cast = Cast(given.policy, given.contract, terms, graph=given.graph)
    options = EvalOptions(
        given.output,
        cast,
        tasks,
        given.episodes,
        given.start_seed,
        workers=given.workers,
        share_scene=given.share_scene,
    )
    outcome = evaluate(options, lines)
    document = {'machine': machine(), **outcome.info}
    words = f'--policy {Path(given.policy).name} --task {given.task} --episodes {given.episodes}'
    for name in ('contract', 'start_seed', 'share_scene', 'replan_rows', 'latency', 'graph'):
        if (value := getattr(given, name)) != parser.get_default(name):
            words += f' --{name.replace("_", "-")}' + ('' if value is True else f' {value}')
    provenance = outcome.info['provenance']
    text = '\n\n'.join(
        [
            f'# Closed loop: {Path(given.policy).name}',
            f'{facts(document["machine"])}, mujoco {provenance["versions"]["mujoco"]}.',
            f'`cosmos3 eval closed-loop {words}`, seeds {provenance["seeds"][0]} to {provenance["seeds"][1]}.',
            table(*summary(outcome.records)),
            "Success with Wilson's 95 % interval, and the interval that holds 95 % of Beta(k + 1, n - k + 1).",
        ]
    )
    print(text)
    if given.save:
        save(f'closed_loop_{given.save}', document, text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
