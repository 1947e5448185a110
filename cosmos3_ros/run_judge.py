"""Whether the hand came to what was named, judged from where a simulated robot says its objects are.

It is the rule of the evaluation (:mod:`engine.evaluation.tasks_watch`), applied to what a run left behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cosmos3_ros.run_record import Leg, RunRecord
from engine.evaluation.expert_kinematics import place
from engine.evaluation.franka_scene import ARM_JOINTS
from engine.evaluation.tasks import TASKS, wordings
from engine.evaluation.tasks_watch import HOLD_S, Truth


@dataclass(frozen=True)
class Reached:
    """What came of an instruction to reach for something.

    Attributes:
        target: The object that was named.
        after_s: After how long the hand was there to stay for half a second; None if it never was.
        beside_m: How far beside the object's middle the hand was in the end, seen from above.
        others: Other objects above which the hand stayed, in order; not the one that it was above to begin with.
    """

    target: str
    after_s: float | None
    beside_m: float
    others: tuple[str, ...]


def target_of(instruction: str) -> str | None:
    """The object that an instruction to reach names; None if it is none, or asks for something else."""
    said = instruction.strip().rstrip('.').lower()
    return next((target for target in TASKS['reach'].targets if said in wordings('reach', target)), None)


def judge(record: RunRecord, leg: Leg) -> Reached | None:
    """What came of a leg of a run; None where nobody can tell: other tasks, or a robot that is not simulated."""
    target = target_of(leg.instruction)
    poses = [(time, joints) for time, joints in record.measured if leg.begin_s <= time <= leg.end_s]
    if target is None or not record.objects or not poses or record.joint_names != ARM_JOINTS:
        return None
    told = np.array([time for time, _ in record.objects])
    since: dict[str, float] = {}
    stayed: dict[str, float] = {}
    for time, joints in poses:
        there = record.objects[max(0, int(np.searchsorted(told, time, side='right')) - 1)][1]
        truth = Truth(time, place(joints).position, there, frozenset())
        for name in there:
            if not truth.reached(name):
                since.pop(name, None)
            elif time - since.setdefault(name, time) >= HOLD_S and (name == target or since[name] > poses[0][0]):
                # Where the hand still is from the leg before says nothing of this one.
                stayed.setdefault(name, since[name])
    beside = float(np.hypot(*(truth.tool - truth.objects[target].position)[:2]))
    others = tuple(sorted((name for name in stayed if name != target), key=stayed.__getitem__))
    after = stayed[target] - leg.begin_s if target in stayed else None
    return Reached(target, after, beside, others)
