"""Verdicts of imagination on the graph: a stop leaves at once, and no verdict makes the arm less safe."""

# ruff: noqa: F811 (fixtures are imported, and named again where they are used)

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from std_msgs.msg import Bool

from cosmos3_msgs.msg import ActionChunk, GuardStatus, Verdict
from cosmos3_ros import qos
from cosmos3_ros.conversions import ns_to_stamp
from cosmos3_ros.guard.guard import GuardState
from cosmos3_ros.guard.verdicts import Decision
from tests.ros.guard_bench import HOME, Bench, bench, contract, travel  # noqa: F401 (fixtures among them)


class Dynamics:
    """Stands for a `dynamics` node: publishes what it is told to."""

    def __init__(self, b: Bench) -> None:
        self._bench = b
        self._publisher = b.observer.create_publisher(Verdict, 'dynamics/verdict', qos.status())
        b.graph.eventually(lambda: self._publisher.get_subscription_count() == 1)

    def say(self, decision: int, **fields: Any) -> None:
        """A verdict about the newest chunk, or what `fields` say; returns when the guard has heard it."""
        b = self._bench
        message = Verdict(
            epoch=b.epoch,
            sequence=b.sequence,
            stamp=ns_to_stamp(b.arm.now_ns()),
            decision=decision,
            decision_name='as it is called',
            text='the cup falls',
        )
        for name, value in fields.items():
            setattr(message, name, value)
        before = self.heard()
        self._publisher.publish(message)
        b.graph.eventually(lambda: self.heard() > before, what='the verdict is heard')

    def heard(self) -> int:
        counts = self._bench.node.guard.statistics()
        return sum(counts.verdicts.values()) + counts.verdicts_ignored


def imagined(bench: Any, **parameters: Any) -> tuple[Bench, Dynamics]:
    """A guard that is up and heeds a dynamics node, which found the first chunk (number 0) to be good."""
    b = bench(**parameters)
    assert b.node.transition('configure'), b.node.last_failure
    assert b.node.transition('activate'), b.node.last_failure
    b.epoch = b.node.guard.epoch
    dynamics = Dynamics(b)
    dynamics.say(Verdict.OK)
    return b.up_already(), dynamics


def braked(b: Bench) -> None:
    """The arm has come to rest where the guard stopped it, well before the end of the chunk."""
    b.graph.eventually(b.is_at_rest)
    assert not b.arm.motions[-1].velocities[-1].any()
    assert np.abs(b.arm.motions[-1].positions[-1] - HOME).max() < 0.29


def heard_at(b: Bench) -> list[int]:
    """Fills with the times, in the guard's own clock, at which it hears of verdicts."""
    times: list[int] = []
    hear = b.node.guard.on_verdict

    def noted(verdict: Any, now_ns: int) -> Any:
        times.append(now_ns)
        return hear(verdict, now_ns)

    b.node.guard.on_verdict = noted
    return times


# Objections


@pytest.mark.parametrize('on_stop', ['latch', 'hold'])
def test_a_stop_verdict_brakes_the_arm_within_one_control_period_of_its_arrival(bench, on_stop):
    b, dynamics = imagined(bench, on_stop_verdict=on_stop)
    b.moving()
    times = heard_at(b)
    dynamics.say(Verdict.STOP)
    states = (GuardStatus.FAULT,) if on_stop == 'latch' else (GuardStatus.BRAKING, GuardStatus.HOLDING)
    status = b.until(*states, reason='VERDICT_STOP')
    assert 'the cup falls' in status.text
    braked(b)
    assert 0 <= b.began_to_brake_ns() - times[0] <= b.node.guard.options.period_ns


def test_a_latched_stop_verdict_waits_for_a_reset(graph, bench):
    b, dynamics = imagined(bench)
    b.moving()
    dynamics.say(Verdict.STOP)
    b.until(GuardStatus.FAULT, reason='VERDICT_STOP')
    braked(b)
    dynamics.say(Verdict.OK, sequence=b.sequence + 1)
    assert b.send(travel(0.1) + b.arm.position - HOME).reason_name == 'FAULT_LATCHED'
    graph.eventually(lambda: b.call('reset').success)
    graph.eventually(lambda: b.statuses[-1].epoch > b.epoch)
    b.epoch = b.statuses[-1].epoch
    assert b.send(travel(0.1) + b.arm.position - HOME).accepted


def test_a_held_stop_verdict_refuses_chunks_until_a_later_one_is_found_better(bench):
    b, dynamics = imagined(bench, on_stop_verdict='hold')
    b.moving()
    dynamics.say(Verdict.STOP)
    b.until(GuardStatus.HOLDING, reason='VERDICT_STOP')
    braked(b)
    dynamics.say(Verdict.OK)  # about the same chunk
    refused = b.send(travel(0.1) + b.arm.position - HOME)
    assert refused.reason_name == 'VERDICT_STOP'
    assert 'the cup falls' in refused.text
    dynamics.say(Verdict.OK)  # about the one that was refused
    assert b.send(travel(0.1) + b.arm.position - HOME).accepted


def test_a_slow_verdict_slows_the_chunk_in_progress_along_its_path_and_the_policy_is_told(graph, bench):
    b, dynamics = imagined(bench, slow_verdict_pace=0.4)
    b.moving()
    assert (len(b.decisions), b.decisions[0].pace) == (1, 1.0)
    dynamics.say(Verdict.SLOW)
    graph.eventually(lambda: len(b.decisions) > 1, what='a decision about the same chunk')
    told = b.decisions[1]
    assert (told.epoch, told.sequence, told.accepted) == (b.epoch, 1, True)
    assert told.stamp == b.decisions[0].stamp
    assert told.pace == pytest.approx(0.4, rel=1e-6)
    assert 'goes on at 0.40 of its own pace: imagination says SLOW of chunk' in told.text
    b.until(GuardStatus.HOLDING, reason='STARVED')
    graph.eventually(b.is_at_rest)
    np.testing.assert_allclose(b.arm.position, HOME + 0.3, atol=0.01)
    ways = np.concatenate([motion.positions - HOME for motion in b.arm.motions])
    # Together up to what the stop of a late tick, which a busy machine has, leaves between them.
    assert np.ptp(ways, axis=1).max() < 0.02, 'all joints together, as the chunk had it'
    assert len(b.decisions) == 2
    assert b.send(travel(-0.1) + b.arm.position - HOME).pace == pytest.approx(0.4, rel=1e-6)
    dynamics.say(Verdict.OK)
    assert b.send(travel(-0.1) + b.arm.position - HOME).pace == 1.0


# Silence


@pytest.mark.parametrize('on_unknown', ['ignore', 'slow', 'stop'])
def test_imagination_that_falls_silent_leaves_the_arm_alone_slows_it_or_stops_it_as_told(graph, bench, on_unknown):
    b, dynamics = imagined(bench, on_unknown_verdict=on_unknown, verdict_max_age_s=1.5)
    dynamics.say(Verdict.OK)
    b.moving()
    assert b.decisions[0].pace == 1.0
    if on_unknown == 'stop':
        b.stopped_for('VERDICT_UNKNOWN')
        braked(b)
        assert b.send(travel(0.1) + b.arm.position - HOME).reason_name == 'VERDICT_UNKNOWN'
        return
    b.until(GuardStatus.HOLDING, reason='STARVED')
    graph.eventually(b.is_at_rest)
    np.testing.assert_allclose(b.arm.position, HOME + 0.3, atol=0.01)
    assert [decision.pace for decision in b.decisions] == ([1.0, 0.5] if on_unknown == 'slow' else [1.0])


def test_where_silence_means_a_stop_imagination_lets_the_arm_set_off_by_judging_what_is_refused(bench):
    b, dynamics = imagined(bench, on_unknown_verdict='stop', verdict_max_age_s=10.0)
    b.epoch += 1  # of which nothing is known yet
    assert b.send(travel(0.3)).reason_name == 'VERDICT_UNKNOWN'
    dynamics.say(Verdict.UNKNOWN)
    assert b.send(travel(0.3)).reason_name == 'VERDICT_UNKNOWN'
    dynamics.say(Verdict.OK)
    b.moving()


def test_a_guard_that_heeds_no_verdicts_does_not_listen(bench):
    b = bench(heed_verdicts=False, on_unknown_verdict='stop').up()
    assert b.node.guard.options.verdicts is None
    assert b.observer.count_subscribers('dynamics/verdict') == 0
    b.moving()


# Lies


def beyond_a_limit() -> np.ndarray:
    rows = travel(0.0)
    rows[20:, 3] = -3.2
    return rows


def test_imagination_that_always_says_ok_lets_no_bad_chunk_through(bench):
    b, _ = imagined(bench)
    liar = b.graph.node('liar')
    ok = liar.create_publisher(Verdict, 'dynamics/verdict', qos.status(100))

    def flatter(chunk: ActionChunk) -> None:
        sequence = chunk.sequence + 1  # the next one too, before it is there
        ok.publish(Verdict(epoch=chunk.epoch, sequence=sequence, stamp=chunk.header.stamp, decision=Verdict.OK))

    liar.create_subscription(ActionChunk, 'policy/chunk', flatter, qos.status())
    b.graph.eventually(lambda: b.chunks.get_subscription_count() == 2 and ok.get_subscription_count() == 1)
    bad = travel(0.1)
    bad[5, 2] = math.nan
    for rows, reason in ((beyond_a_limit(), 'POSITION_LIMIT'), (bad, 'CHUNK_NOT_FINITE'), (travel(0.0) + 0.2, 'START')):
        assert reason in b.send(rows).reason_name
        b.graph.eventually(lambda: b.node.guard.statistics().verdicts[Decision.OK] == 1 + b.sequence)
    assert b.send(travel(0.1), epoch=b.epoch - 1).reason_name == 'CHUNK_STALE_EPOCH'
    assert b.arm.motions == []


def test_an_ok_lifts_no_pause_no_fault_and_no_emergency_stop(graph, bench):
    b, dynamics = imagined(bench, reset_cooldown_s=0.0)

    def refusal() -> str:
        dynamics.say(Verdict.OK, sequence=b.sequence + 1)
        return b.send(travel(0.1)).reason_name

    assert b.call('pause').success
    assert refusal() == 'PAUSED'
    assert b.call('resume').success
    assert b.call('stop').success
    assert refusal() == 'FAULT_LATCHED'
    assert b.state() == GuardStatus.FAULT
    assert b.arm.motions == []


def test_an_ok_does_not_release_an_emergency_stop(graph, bench):
    b = bench(estop_topic='estop')
    assert b.node.transition('configure'), b.node.last_failure
    assert b.node.transition('activate'), b.node.last_failure
    button = b.observer.create_publisher(Bool, 'estop', qos.status())
    graph.eventually(lambda: button.get_subscription_count() == 1)
    button.publish(Bool(data=True))
    b.until(GuardStatus.FAULT, reason='EMERGENCY_STOP')
    b.epoch = b.node.guard.epoch
    Dynamics(b).say(Verdict.OK)
    assert b.send(travel(0.1)).reason_name == 'FAULT_LATCHED'
    assert not b.call('reset').success
    assert b.state() == GuardStatus.FAULT


@pytest.mark.parametrize(
    'fields',
    [
        {'decision': 200},
        {'epoch': 2**32 - 1},
        {'epoch': 0},
        {'stamp': ns_to_stamp(0)},
        {'sequence': 0},
        {'decision': 4, 'scores': [math.nan, math.inf], 'thresholds': [], 'monitors': [''], 'text': 'x' * 100_000},
    ],
    ids=['decision', 'later epoch', 'earlier epoch', 'stamp', 'overtaken', 'everything'],
)
def test_a_verdict_that_makes_no_sense_changes_nothing_and_is_counted(bench, fields):
    b, dynamics = imagined(bench)
    b.moving()
    dynamics.say(Verdict.OK)
    dynamics.say(fields.get('decision', Verdict.STOP), **{k: v for k, v in fields.items() if k != 'decision'})
    guard = b.node.guard
    assert guard.statistics().verdicts_ignored == 1
    assert guard.state is GuardState.TRACKING
    assert b.send(travel(0.05) + b.arm.position - HOME).pace == 1.0


def test_diagnostics_count_what_imagination_said(graph, bench):
    told: dict[str, str] = {}
    _, dynamics = imagined(bench, **{'diagnostic_updater.period': 0.2})
    graph.node('listener').create_subscription(
        DiagnosticArray,
        '/diagnostics',
        lambda m: told.update({v.key: v.value for s in m.status if s.name.endswith('guard') for v in s.values}),
        10,
    )
    for decision in (Verdict.SLOW, Verdict.UNKNOWN, 77):
        dynamics.say(decision)
    wanted = {'verdicts: OK': '1', 'verdicts: SLOW': '1', 'verdicts: UNKNOWN': '1', 'verdicts ignored': '1'}
    graph.eventually(lambda: wanted.items() <= told.items(), what='the counts')


def test_numbers_of_decisions_are_those_of_the_message():
    assert {decision.name: int(decision) for decision in Decision} == {
        name: getattr(Verdict, name) for name in ('UNKNOWN', 'OK', 'SLOW', 'STOP')
    }
