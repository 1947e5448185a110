"""The dynamics node on its graph, beside a policy node with the same weights: a verdict for every chunk, always."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from rclpy.parameter import Parameter as RosParameter
from sensor_msgs.msg import Image

from cosmos3_msgs.action import Imagine
from cosmos3_msgs.msg import ActionChunk, ChunkDecision, GuardStatus, Verdict
from cosmos3_msgs.srv import JudgeEpisode
from cosmos3_ros import qos
from cosmos3_ros.action_client import ActionClient
from cosmos3_ros.dynamics_messages import chunk_columns
from cosmos3_ros.dynamics_node import DynamicsNode
from cosmos3_ros.judge import MONITORS
from cosmos3_ros.shared_model import MODELS
from engine.calibration import Band, Calibration
from engine.checkpoint import open_checkpoint
from engine.contract import load_contract
from engine.errors import InvalidInput
from engine.monitors import VERSION

CONTRACT = load_contract('demo_joint_pos')
CONTRACT_FILE = Path(CONTRACT.source)
UNHURRIED = {'budget_s': 30.0, 'ladder': ['glance'], 'warm_up': False}
LEISURELY = {'replan_rows': 24}
"""Chunks so far apart that none overtakes the verdict about the one before."""


class DynamicsBench:
    """A dynamics node on its graph, and everything that it says."""

    def __init__(self, graph: Any, checkpoint: Path, **parameters: Any) -> None:
        values = {'contract': 'demo_joint_pos', 'checkpoint': str(checkpoint), **UNHURRIED, **parameters}
        overrides = [RosParameter(name, value=value) for name, value in values.items()]
        self.graph = graph
        self.node = graph.add(DynamicsNode(parameter_overrides=overrides))
        self.client = graph.node('onlooker')
        self.verdicts: list[Verdict] = []
        self.frames: list[Image] = []
        self.feedback: list[Imagine.Feedback] = []
        self.client.create_subscription(Verdict, 'dynamics/verdict', self.verdicts.append, qos.status(50))
        self.client.create_subscription(Image, 'dynamics/imagined', self.frames.append, qos.sensor(50))
        self.chunks = self.client.create_publisher(ActionChunk, 'policy/chunk', qos.status())
        self.goals = ActionClient(self.client, Imagine, 'imagine')

    def up(self) -> DynamicsBench:
        """Configure and activate."""
        assert self.node.transition('configure'), self.node.last_failure
        assert self.node.transition('activate'), self.node.last_failure
        self.graph.eventually(lambda: self.client.count_publishers('dynamics/verdict') == 1)
        self.graph.eventually(lambda: self.chunks.get_subscription_count() >= 1)
        return self

    def have_verdicts(self, count: int) -> list[Verdict]:
        self.graph.eventually(lambda: len(self.verdicts) >= count, 40, f'{count} verdicts')
        return self.verdicts

    def imagine(self, **goal: Any) -> Any:
        """Status and result of a goal; None if it was refused."""
        self.graph.eventually(self.goals.server_is_ready)
        future = self.goals.send_goal_async(
            Imagine.Goal(**goal), feedback_callback=lambda told: self.feedback.append(told.feedback)
        )
        self.graph.eventually(future.done)
        if not future.result().accepted:
            return None
        outcome = future.result().get_result_async()
        self.graph.eventually(outcome.done, 60, 'the end of the imagination')
        return outcome.result()


@pytest.fixture
def dynamics_bench(graph: Any, tiny_checkpoint: Path) -> Callable[..., DynamicsBench]:
    return lambda **parameters: DynamicsBench(graph, tiny_checkpoint, **parameters)


def calibration_file(path: Path, checkpoint: Path, threshold: float, **provenance: str) -> Path:
    """Bands that everything, or nothing, is above."""
    known = {
        'checkpoint': open_checkpoint(checkpoint).fingerprint,
        'contract': CONTRACT.fingerprint,
        'monitors': str(VERSION),
        **provenance,
    }
    bands = {
        f'{rung}/{name}': Band((threshold,), 0.05, 40) for rung in ('glance', 'brief', 'small') for name in MONITORS
    }
    Calibration(bands, known).save(path)
    return path


def chunk(**changes: Any) -> ActionChunk:
    """A chunk that nobody's policy has proposed."""
    message = ActionChunk(
        epoch=1,
        sequence=1,
        step_dt=CONTRACT.timing.step_s,
        contract=CONTRACT.name,
        joint_names=list(CONTRACT.robot.joints),
        rows=4,
        positions=[0.0] * 28,
        gripper_names=list(CONTRACT.robot.gripper_joints),
        grippers=[0.0] * 4,
    )
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def test_each_chunk_of_the_policy_is_judged_with_what_it_saw_and_dreamt(
    dynamics_bench: Callable[..., DynamicsBench],
    policy_bench: Callable[..., Any],
    sensors: Callable[..., Any],
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    file = calibration_file(tmp_path / 'bands.json', tiny_checkpoint, -1.0)
    policy = policy_bench(**LEISURELY).up()
    bench = dynamics_bench(calibration=str(file), record_directory=str(tmp_path / 'records')).up()
    assert bench.node.dynamics.runtime is policy.node.loop.policy.runtime, 'one set of weights'
    sensors()
    policy.run()
    first, second = bench.have_verdicts(2)[:2]
    known = {message.sequence: message for message in policy.chunks}
    for verdict in (first, second):
        assert verdict.stamp == known[verdict.sequence].header.stamp
        assert (verdict.epoch, verdict.contract) == (known[verdict.sequence].epoch, CONTRACT.name)
        assert (verdict.rung, verdict.rows, verdict.calibration) == ('glance', 16, bench.node._calibration)
        scores = dict(zip(verdict.monitors, verdict.scores, strict=True))
        assert scores['disagreement'] > 0, "the policy's own video was there to compare with"
    assert (first.decision, first.decision_name) == (Verdict.SLOW, 'SLOW'), first.text
    assert 'disagreement' in first.text
    assert (second.decision, second.decision_name) == (Verdict.STOP, 'STOP'), second.text
    assert 'inconsistency' in second.text
    kept = tmp_path / 'records' / 'verdicts.jsonl'
    bench.graph.eventually(lambda: kept.read_text().count('\n') >= 2)  # told first, then written down
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line['sequence'] for line in lines[:2]] == [first.sequence, second.sequence]
    assert lines[1]['scores']['inconsistency'][1] == -1.0


@pytest.mark.slow
@pytest.mark.parametrize('own_video', ['given', 'made'])
def test_of_a_policy_that_makes_actions_alone_the_video_is_dreamt_if_that_is_wanted(
    dynamics_bench: Callable[..., DynamicsBench],
    policy_bench: Callable[..., Any],
    sensors: Callable[..., Any],
    tmp_path: Path,
    own_video: str,
) -> None:
    contract = tmp_path / 'actions_alone.yaml'
    contract.write_text(
        CONTRACT_FILE.read_text(encoding='utf-8').replace('sampler:\n', 'sampler:\n  video: false\n'), encoding='utf-8'
    )
    policy = policy_bench(contract=str(contract), **LEISURELY).up()
    bench = dynamics_bench(contract=str(contract), own_video=own_video, warm_up=True).up()
    sensors()
    policy.run()
    verdict = bench.have_verdicts(1)[0]
    assert policy.node.loop.policy.contract.sampler.video is False
    scores = dict(zip(verdict.monitors, verdict.scores, strict=True))
    assert np.isfinite(scores['disagreement']) == (own_video == 'made'), verdict.text


@pytest.mark.slow
def test_a_rollout_is_imagined_on_demand_shown_and_kept(
    dynamics_bench: Callable[..., DynamicsBench],
    policy_bench: Callable[..., Any],
    sensors: Callable[..., Any],
    tmp_path: Path,
) -> None:
    policy = policy_bench(execute_rows=4).up()
    bench = dynamics_bench(record_directory=str(tmp_path)).up()
    assert bench.imagine() is None, 'no chunk has been proposed'
    sensors()
    handle, future = policy.run()
    bench.have_verdicts(1)
    handle.cancel_goal_async()
    policy.outcome(future)
    found = bench.imagine(seed=3, save=True)
    assert found.result.success, found.result.text
    assert (found.result.frames, [feedback.done for feedback in bench.feedback]) == (5, [1])
    with av.open(found.result.video) as video:
        pictures = [frame.to_ndarray(format='rgb24') for frame in video.decode(video=0)]
    assert len(pictures) == 5
    bench.graph.eventually(lambda: len(bench.frames) >= 5, 10, 'frames on ~/imagined')
    shown = bench.frames[0]
    assert (shown.height, shown.width, shown.encoding) == (*pictures[0].shape[:2], 'rgb8')
    stamps = [frame.header.stamp.sec + frame.header.stamp.nanosec * 1e-9 for frame in bench.frames[:3]]
    np.testing.assert_allclose(np.diff(stamps), 1 / 15, atol=1e-6)


def test_a_chunk_that_cannot_be_judged_gets_a_verdict_that_says_why(
    dynamics_bench: Callable[..., DynamicsBench],
) -> None:
    bench = dynamics_bench().up()
    for sequence, message in enumerate(
        (
            chunk(),
            chunk(rows=0, positions=[], grippers=[]),
            chunk(positions=[0.0] * 27),
            chunk(joint_names=[*CONTRACT.robot.joints[:6], 'elbow']),
            chunk(action_space=ActionChunk.END_EFFECTOR_POSE),
            chunk(step_dt=0.1),
        ),
        start=1,
    ):
        message.sequence = sequence
        bench.chunks.publish(message)
        verdict = bench.have_verdicts(sequence)[-1]
        assert (verdict.sequence, verdict.decision) == (sequence, Verdict.UNKNOWN)
        assert np.isnan(verdict.scores).all()
    texts = [verdict.text for verdict in bench.verdicts]
    for text, part in zip(
        texts,
        ('no policy of this process', 'rows: are none', 'positions', 'elbow', 'end_effector_chunks', 'step_dt'),
        strict=True,
    ):
        assert part in text


def test_a_chunk_is_not_compared_with_one_that_the_guard_did_not_play_as_it_is(
    dynamics_bench: Callable[..., DynamicsBench], policy_bench: Callable[..., Any], sensors: Callable[..., Any]
) -> None:
    policy, bench = policy_bench(**LEISURELY).up(), dynamics_bench().up()
    decisions = bench.client.create_publisher(ChunkDecision, 'guard/decision', qos.status())
    statuses = bench.client.create_publisher(GuardStatus, 'guard/status', qos.latched())
    statuses.publish(GuardStatus(state=GuardStatus.TRACKING))
    bench.graph.eventually(lambda: bench.node._guard is not None)

    def answer(message: ActionChunk) -> None:
        pace = 0.5 if message.sequence == 2 else 1.0
        decisions.publish(ChunkDecision(epoch=message.epoch, sequence=message.sequence, accepted=True, pace=pace))

    bench.client.create_subscription(ActionChunk, 'policy/chunk', answer, qos.status())
    sensors()
    policy.run()
    bench.have_verdicts(6)
    place = list(MONITORS).index('inconsistency')
    compared = {verdict.sequence: not np.isnan(verdict.scores[place]) for verdict in bench.verdicts if verdict.rung}
    assert any(compared.get(sequence) for sequence in range(4, 7))
    assert not compared.get(3, False), 'the arm was slower than the chunk before says'


def test_columns_are_found_by_name() -> None:
    joints = list(CONTRACT.robot.joints)
    order = [3, 1, 0, 2, 6, 5, 4]
    rows = np.arange(28.0).reshape(4, 7)
    mixed = chunk(joint_names=[joints[i] for i in order], positions=rows[:, order].ravel().tolist())
    np.testing.assert_array_equal(chunk_columns(mixed, CONTRACT)[0], rows)
    with pytest.raises(InvalidInput, match='positions'):
        chunk_columns(chunk(rows=5), CONTRACT)


@pytest.mark.slow
def test_topics_can_stand_in_for_a_policy_in_the_same_process(
    dynamics_bench: Callable[..., DynamicsBench], sensors: Callable[..., Any]
) -> None:
    bench = dynamics_bench(observations='topics').up()
    drivers = sensors()
    inputs = bench.node._inputs
    bench.graph.eventually(lambda: all(buffer.newest_stamp_ns() for buffer in inputs.buffers), what='all inputs')
    message = chunk(positions=[0.0] * 28)
    stamp = min(buffer.newest_stamp_ns() for buffer in inputs.buffers)
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
    bench.chunks.publish(message)
    (verdict,) = bench.have_verdicts(1)
    assert verdict.rung == 'glance', verdict.text
    old = chunk(sequence=2)
    old.header.stamp.sec = stamp // 10**9 - 60
    bench.chunks.publish(old)
    assert 'observations' in bench.have_verdicts(2)[1].text
    drivers.close()


def test_a_calibration_of_something_else_is_refused_with_what_differs(
    dynamics_bench: Callable[..., DynamicsBench], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    other = calibration_file(tmp_path / 'other.json', tiny_checkpoint, 1.0, contract='another', monitors='1')
    bench = dynamics_bench(calibration=str(other))
    assert not bench.node.transition('configure')
    assert 'provenance.contract: is another' in bench.node.last_failure
    assert 'provenance.monitors: is another' in bench.node.last_failure
    assert bench.node.state_label == 'unconfigured'


def test_a_recorded_episode_is_judged_on_demand(
    dynamics_bench: Callable[..., DynamicsBench], shared_data: Path
) -> None:
    bench = dynamics_bench(ladder=['small']).up()
    client = bench.client.create_client(JudgeEpisode, 'dynamics/judge_episode')
    bench.graph.eventually(client.service_is_ready)
    stand_ins = 'wrist:=exterior_2,exterior_1:=exterior_2'
    request = JudgeEpisode.Request(episode=str(shared_data / 'droid'), video_map=stand_ins, stride=8, chunks=2)
    future = client.call_async(request)
    bench.graph.eventually(future.done, 60, 'the judgement of an episode')
    answer = future.result()
    assert answer.success, answer.text
    assert [verdict.sequence for verdict in answer.verdicts] == [1, 2]
    assert all(verdict.rung == 'small' for verdict in answer.verdicts)
    request.episode = str(shared_data / 'nowhere')
    future = client.call_async(request)
    bench.graph.eventually(future.done)
    assert not future.result().success
    assert 'nowhere' in future.result().text


def test_the_whole_life_can_be_lived_twice(dynamics_bench: Callable[..., DynamicsBench]) -> None:
    bench = dynamics_bench()
    for _ in range(2):
        for transition in ('configure', 'activate', 'deactivate', 'cleanup'):
            assert bench.node.transition(transition), bench.node.last_failure
    assert bench.node.loop is None


def test_a_checkpoint_is_loaded_once_while_it_is_in_use(tiny_checkpoint: Path) -> None:
    told: list[str] = []
    first = MODELS.load(str(tiny_checkpoint), report=told.append)
    second = MODELS.load(str(tiny_checkpoint), report=told.append)
    other = MODELS.load(str(tiny_checkpoint), dtype='float64')
    assert second.runtime is first.runtime
    assert told[-1] == 'the checkpoint is loaded already, and shared'
    assert other.runtime is not first.runtime
    assert other.runtime.turns is first.runtime.turns, 'all of one device take turns'
