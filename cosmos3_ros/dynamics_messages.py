"""What the dynamics node reads and says: chunks as columns, verdicts as messages and on disk."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import numpy as np
from builtin_interfaces.msg import Duration

from cosmos3_msgs.msg import ActionChunk, Verdict
from cosmos3_ros.conversions import ns_to_stamp, stamp_to_ns
from cosmos3_ros.dynamics_loop import Told
from engine.contract import Contract
from engine.dynamics import Rollout
from engine.errors import CosmosError, InvalidInput, Problem
from engine.evaluation.video import VideoWriter
from engine.policy import Observation

_SAME_STEP = 0.01


class VerdictRecords:
    """Keeps verdicts as lines of `verdicts.jsonl`, and rollouts as `imagined_EPOCH_SEQUENCE.mp4`."""

    def __init__(self, directory: Path) -> None:
        """Make the directory.

        Raises:
            CosmosError: It cannot be made.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CosmosError(f'record_directory {directory} cannot be used: {error.strerror}') from error
        self._directory = directory
        self._writing = threading.Lock()

    def add(self, message: Verdict) -> None:
        """Append a verdict."""
        scores = zip(message.monitors, message.scores, message.thresholds, strict=True)
        line = {
            'stamp_s': stamp_to_ns(message.stamp) / 1e9,
            'epoch': message.epoch,
            'sequence': message.sequence,
            'decision': message.decision_name,
            'text': message.text,
            'rung': message.rung,
            'cost_s': message.cost.sec + message.cost.nanosec / 1e9,
            'scores': {name: [_or_none(score), _or_none(threshold)] for name, score, threshold in scores},
        }
        with self._writing, (self._directory / 'verdicts.jsonl').open('a', encoding='utf-8') as file:
            file.write(json.dumps(line) + '\n')

    def keep(self, rollout: Rollout, chunk: ActionChunk, fps: float) -> Path:
        """Write a rollout as a video."""
        path = self._directory / f'imagined_{chunk.epoch}_{chunk.sequence:05d}.mp4'
        frames = rollout.frames
        with VideoWriter(path, fps, frames.shape[1:3]) as video:
            for frame in frames:
                video.write(np.ascontiguousarray(frame))
        return path


def chunk_columns(message: ActionChunk, contract: Contract) -> tuple[np.ndarray, np.ndarray]:
    """Joint positions [N, J] and closed fractions [N] or [N, G] of a chunk, in the contract's order.

    Raises:
        InvalidInput: It is of another kind, or of other joints, or its numbers are not as many as it says.
    """
    problems = []
    step = contract.timing.step_s
    if abs(message.step_dt - step) > _SAME_STEP * step:
        problems.append(Problem('step_dt', 'is not that of the contract', f'{message.step_dt:.4f} s', f'{step:.4f} s'))
    joints, grippers = list(contract.robot.joints), list(contract.robot.gripper_joints)
    if message.action_space != ActionChunk.JOINT_POSITION:
        remedy = 'let the policy node find the joints: end_effector_chunks: joints'
        problems.append(Problem('action_space', 'holds no joint positions', str(message.action_space), '0', remedy))
    for name, given, wanted in (
        ('joint_names', list(message.joint_names), joints),
        ('gripper_names', list(message.gripper_names), grippers),
    ):
        if sorted(given) != sorted(wanted) and message.action_space == ActionChunk.JOINT_POSITION:
            problems.append(Problem(name, 'are not those of the contract', ', '.join(given), ', '.join(wanted)))
    columns = []
    for name, values, width in (('positions', message.positions, joints), ('grippers', message.grippers, grippers)):
        numbers = np.asarray(values, np.float64)
        if len(numbers) != message.rows * len(width):
            problems.append(Problem(name, 'are not as many as rows', str(len(numbers)), str(message.rows * len(width))))
        columns.append(numbers)
    if not message.rows:
        problems.append(Problem('rows', 'are none'))
    if problems:
        raise InvalidInput('proposal', problems)
    positions = columns[0].reshape(message.rows, -1)[:, [list(message.joint_names).index(name) for name in joints]]
    if not grippers:
        return positions, np.zeros(message.rows)
    closed = columns[1].reshape(message.rows, -1)[:, [list(message.gripper_names).index(name) for name in grippers]]
    return positions, closed if len(grippers) > 1 else closed[:, 0]


def measured_joints(observation: Observation, count: int) -> np.ndarray:
    """Where the joints were, [J] rad.

    Raises:
        InvalidInput: It is not known.
    """
    if observation.joint_positions is None:
        raise InvalidInput('proposal', [Problem('joint states', 'are not known')])
    return np.asarray(observation.joint_positions, np.float64).reshape(-1, count)[-1]


def verdict_message(told: Told, now_ns: int, budget_s: float, contract: str, calibration: str) -> Verdict:
    """A verdict as a message."""
    judgement = told.judgement
    return Verdict(
        decided=ns_to_stamp(now_ns),
        stamp=ns_to_stamp(told.pending.stamp_ns),
        epoch=told.pending.epoch,
        sequence=told.pending.sequence,
        contract=contract,
        decision=int(judgement.decision),
        decision_name=judgement.decision.name,
        text=judgement.text,
        monitors=list(judgement.scores),
        scores=[float(score) for score in judgement.scores.values()],
        thresholds=[float(judgement.thresholds[name]) for name in judgement.scores],
        rows=judgement.rows,
        rung=judgement.rung.name if judgement.rung else '',
        cost=duration(told.cost_s),
        budget=duration(budget_s),
        calibration=calibration,
    )


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def duration(seconds: float) -> Duration:
    """A length of time as a message."""
    whole, rest = divmod(round(seconds * 1e9), 1_000_000_000)
    return Duration(sec=int(whole), nanosec=int(rest))
