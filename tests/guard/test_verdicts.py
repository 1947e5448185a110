"""A verdict of imagination can make the arm slower or stop it, and nothing else, whatever it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.hazards import CHUNKS, EVENTS, MIDDLE, MS
from cosmos3_ros.guard.checks import Acceptance, CheckOptions, Observed, SpliceContext, check_chunk
from cosmos3_ros.guard.chunk import Chunk
from cosmos3_ros.guard.guard import GuardState
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guard.motion import JointsState
from cosmos3_ros.guard.options import GuardOptions, OptionsError, VerdictOptions
from cosmos3_ros.guard.pace import PaceCap
from cosmos3_ros.guard.reasons import Reason, Rejection
from cosmos3_ros.guard.verdicts import Decision, Verdict, Verdicts

PANDA = load_limits('panda')
STEP = 66_666_667
H = STEP * 1e-9
S = 1_000_000_000
HOLD = VerdictOptions(on_stop='hold')
UNKNOWN, OK, SLOW, STOP = Decision


def say(bench, decision, **changes):
    """A verdict about the newest chunk, or another, arrives."""
    fields = {
        'epoch': bench.guard.epoch,
        'sequence': bench.sequence,
        'stamp_ns': bench.now,
        'decision': decision,
        'text': 'as found',
    }
    return bench.guard.on_verdict(Verdict(**{**fields, **changes}), bench.now)


def accept(bench, positions, **changes):
    verdict = bench.send(positions, **changes)
    assert isinstance(verdict, Acceptance), verdict
    return verdict


def pace(verdict):
    assert isinstance(verdict, Acceptance), verdict
    return verdict.motion.chunk.pace


def listening(make_bench, verdicts=None, **options):
    return make_bench(verdicts=verdicts or VerdictOptions(), **options)


def in_motion(bench, ms=600, **wave):
    accept(bench, bench.wave(**wave))
    bench.run(ms)
    assert bench.guard.state is GuardState.TRACKING
    assert bench.speed > 0.01
    return bench


def steady(bench, speed, rows=32):
    """Joint 1 from where the arm is, at a constant speed in rad/s from the first row on."""
    return bench.arm + np.arange(1, rows + 1)[:, None] * H * speed * np.eye(7)[0]


# STOP


@pytest.mark.parametrize('on_stop', ['latch', 'hold'])
def test_a_stop_verdict_is_the_braking_command_of_that_very_instant(make_bench, on_stop):
    told, asked = (in_motion(listening(make_bench, VerdictOptions(on_stop=on_stop)), amplitude=0.8) for _ in range(2))
    assert say(told, STOP).ok
    if on_stop == 'latch':
        asked.guard.request_stop('somebody', asked.now)
    else:
        asked.guard.pause(asked.now)
    one, other = told.tick(), asked.tick()
    assert one.stamp_ns == told.now
    assert one.reason is Reason.VERDICT_STOP
    assert one.state is (GuardState.FAULT if on_stop == 'latch' else GuardState.BRAKING)
    np.testing.assert_array_equal(one.positions, other.positions)
    np.testing.assert_array_equal(one.times_ns, other.times_ns)
    told.until_quiet()
    told.auditor.trace(told.trace)


def test_a_latched_stop_verdict_says_what_was_found_and_waits_for_a_person(make_bench):
    bench = in_motion(listening(make_bench))
    say(bench, STOP)
    bench.until_quiet()
    epoch = bench.guard.epoch
    assert bench.guard.cause.text == f'VERDICT_STOP: imagination says STOP of chunk {epoch}/1: as found'
    say(bench, OK, sequence=2)
    assert bench.send(bench.wave()).reason is Reason.FAULT_LATCHED
    bench.run(600)
    assert bench.guard.reset(bench.now).ok
    accept(bench, bench.wave())


@pytest.mark.parametrize('decision', [OK, SLOW])
def test_a_held_stop_ends_with_a_better_verdict_about_a_later_chunk(make_bench, decision):
    bench = in_motion(listening(make_bench, HOLD))
    say(bench, STOP)
    bench.until_quiet()
    assert bench.guard.state is GuardState.HOLDING
    say(bench, decision)  # about the same chunk
    say(bench, UNKNOWN, sequence=9)
    assert bench.send(bench.wave()).reason is Reason.VERDICT_STOP
    assert bench.send(bench.chunk(bench.wave()).positions, sequence=2).reason is Reason.CHUNK_DUPLICATE, 'it is booked'
    assert say(bench, decision, sequence=bench.sequence).ok
    assert pace(bench.send(bench.wave())) == (1.0 if decision is OK else 0.5)


def test_a_held_stop_ends_with_a_new_epoch(make_bench):
    bench = in_motion(listening(make_bench, HOLD))
    say(bench, STOP)
    bench.until_quiet()
    assert bench.send(bench.wave()).reason is Reason.VERDICT_STOP
    accept(bench, bench.wave(), epoch=bench.guard.epoch + 1, sequence=1)


def test_a_held_stop_before_the_first_chunk_keeps_the_arm_at_rest(make_bench):
    bench = listening(make_bench, HOLD)
    say(bench, STOP, sequence=1)
    assert bench.send(bench.wave(), sequence=1).reason is Reason.VERDICT_STOP
    assert bench.run(300) == []


# SLOW


def test_after_a_slow_verdict_the_chunk_goes_on_along_its_path_at_that_pace(make_bench):
    bench, free = listening(make_bench), make_bench()
    for one in (bench, free):
        in_motion(one, ms=500, amplitude=0.4)
    say(bench, SLOW)
    bench.tick()
    bench.run(3000)
    free.run(1520)
    bench.auditor.trace(bench.trace)
    assert bench.guard.state is GuardState.TRACKING
    moved = np.array(bench.trace) - bench.trace[0]
    np.testing.assert_allclose(moved[:, 1], moved[:, 3], atol=1e-9, err_msg='two joints that move as one')
    np.testing.assert_allclose(moved[:, [0, 2, 4, 5, 6]], 0.0, atol=1e-9)
    np.testing.assert_allclose(bench.arm, free.arm, atol=0.01)
    assert bench.speed == pytest.approx(free.speed / 2, rel=0.05)


def test_a_slowed_chunk_stays_near_a_path_that_bends(make_bench):
    bench, free = listening(make_bench), make_bench()
    t = np.arange(1, 33)[:, None] * H
    bends = 0.15 * (1 - np.cos(2 * np.pi * t / np.array([3.0, 2.2, 3.7, 2.9, 3.3, 2.5, 4.0])))
    for one in (bench, free):
        accept(one, one.arm + bends)
        one.run(500)
    say(bench, SLOW)
    for one in (bench, free):
        one.run(1000)
    way = np.array(free.trace)[::2]
    for position in bench.trace[::20]:
        assert np.abs(way - position).max(axis=1).min() < 0.01


def test_a_chunk_that_is_slow_already_is_not_slowed_twice(make_bench):
    bench = listening(make_bench, checks=CheckOptions(slowest_pace=0.2))
    s = np.arange(1, 25)[:, None] / 24
    fast = bench.arm + 2.6 * 24 * H / 1.875 * (10 * s**3 - 15 * s**4 + 6 * s**5) * np.eye(7)[0]
    assert 0.7 < pace(bench.send(fast)) < 1.0
    bench.run(300)
    say(bench, SLOW)
    bench.tick()
    assert bench.guard.take_slowed().accepted.motion.chunk.pace == pytest.approx(0.5, rel=1e-6)
    bench.run(100)
    say(bench, SLOW, sequence=5)
    bench.run(300)
    assert bench.guard.take_slowed() is None
    assert bench.guard.statistics().verdicts == {SLOW: 2}


@pytest.mark.parametrize(('slow', 'slowest'), [(0.2, 0.5), (0.5, 0.2), (0.3, 1.0)])
def test_chunks_after_a_slow_verdict_are_played_at_its_pace_until_an_ok_about_a_later_one(make_bench, slow, slowest):
    options = VerdictOptions(slow_pace=slow)
    bench = listening(make_bench, options, checks=CheckOptions(slowest_pace=slowest))
    say(bench, SLOW, sequence=1)
    for _ in range(3):
        assert pace(bench.send(bench.wave(amplitude=0.05))) == pytest.approx(slow, rel=1e-6)
        say(bench, OK, sequence=1)
        say(bench, UNKNOWN)
        bench.run(100)
    assert say(bench, OK).ok
    assert pace(bench.send(bench.wave(amplitude=0.05))) == 1.0


def test_a_slowed_arm_covers_its_share_of_the_way_however_late_the_chunks_come(make_bench):
    """A chunk that is late supposes that the arm went on at full speed; to catch up with it would undo the slowness."""
    covered = {}
    for decision in (OK, SLOW):
        bench = listening(make_bench)
        accept(bench, bench.wave(amplitude=0.01))
        say(bench, decision)
        for _ in range(8):
            rows, stamp = steady(bench, 0.3), bench.now
            bench.run(300)
            accept(bench, rows, stamp_ns=stamp)
            bench.run(200)
        covered[decision] = bench.arm[0] - bench.trace[0][0]
        bench.auditor.trace(bench.trace)
    assert covered[SLOW] < 0.6 * covered[OK]


def test_a_slow_verdict_for_which_there_is_no_time_left_brakes_and_the_next_chunk_is_welcome(make_bench):
    bench = in_motion(listening(make_bench), ms=720, rows=12)
    assert bench.guard.buffer_ns < STEP + 30 * MS
    say(bench, SLOW)
    bench.tick()
    assert bench.guard.state is GuardState.BRAKING
    assert bench.guard.cause.reason is Reason.VERDICT_SLOW
    assert 'CHUNK_EXPIRED' in bench.guard.cause.text
    bench.until_quiet()
    assert pace(bench.send(bench.wave())) == 0.5


def test_a_slow_verdict_after_a_late_tick_rejoins_the_chunk_slowly(make_bench):
    bench = in_motion(listening(make_bench))
    bench.pass_time(90)
    bench.report()
    say(bench, SLOW)
    bench.tick()
    assert bench.guard.state is GuardState.TRACKING
    slowed = bench.guard.take_slowed()
    assert slowed.accepted.motion.chunk.pace == pytest.approx(0.5, rel=1e-6)
    assert 'SLOW' in slowed.why
    bench.run(500)
    bench.auditor.trace(bench.trace)


def test_that_a_chunk_was_slowed_is_told_once(make_bench):
    bench = in_motion(listening(make_bench))
    assert bench.guard.take_slowed() is None
    say(bench, SLOW)
    bench.tick()
    assert bench.guard.take_slowed().accepted.motion.chunk.sequence == bench.sequence
    assert bench.guard.take_slowed() is None


SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=SEEDS, late=st.integers(0, 2200), since=st.integers(-3000, 100), slow=st.floats(0.05, 0.95))
def test_a_cap_lets_nothing_through_that_would_not_pass_without_it(seed, late, since, slow):
    rng = np.random.default_rng(seed)
    now = 1000 * S
    way = (1 - np.cos(np.linspace(0, np.pi, 33)[1:]))[:, None] / 2
    rows = MIDDLE + way * rng.normal(0, rng.choice([0.1, 0.5, 1.5]), 7)
    chunk = Chunk(now - late * MS, 1, 1, STEP, PANDA.joint_names, rows, None)
    k = rng.uniform(0.0, 1.0) * min(late * MS / STEP, 31.0)
    state = JointsState.at_rest(rows[int(k)])
    options = CheckOptions(slowest_pace=float(rng.choice([1.0, 0.3])))
    facts = (now, now + 20 * MS, state, Observed(rows[0], np.zeros(7)), None, 1, None)
    cap = PaceCap(slow, now + since * MS, 'for a test')
    free = check_chunk(chunk, PANDA, SpliceContext(*facts), options)
    capped = check_chunk(chunk, PANDA, SpliceContext(*facts, cap), options)
    if isinstance(capped, Acceptance):
        assert isinstance(free, Acceptance)
        assert capped.motion.chunk.pace <= min(slow * (1 + 1e-9), free.motion.chunk.pace)
    if isinstance(free, Rejection):
        assert capped == free


# What says nothing


NO_NUMBERS = st.sampled_from([10**400, None, 'STOP', np.nan, 3.0, True, np.float64(2), [3]])
GARBAGE = st.one_of(st.sampled_from([4, 7, 255, -1]), NO_NUMBERS)


def objecting(**changes):
    return st.fixed_dictionaries({'decision': st.sampled_from([SLOW, STOP]), **changes})


HARMLESS = st.one_of(
    st.fixed_dictionaries({'decision': st.sampled_from([OK, UNKNOWN]), 'sequence': st.integers(0, 50)}),
    st.fixed_dictionaries({'decision': GARBAGE, 'sequence': st.integers(0, 50)}),
    objecting(late=st.sampled_from([-80, -9000, 2001, 9000])),
    objecting(other=st.sampled_from([-1, 1, 7])),
    objecting(sequence=NO_NUMBERS),
    objecting(epoch=NO_NUMBERS),
    objecting(stamp_ns=GARBAGE),
)
QUIET_LIVES = st.lists(st.tuples(st.booleans(), SEEDS, st.lists(HARMLESS, max_size=4), st.integers(1, 9)), max_size=8)


def harmless(bench, late=0, other=0, **changes):
    """A verdict that objects to nothing, or does not count."""
    fields = {'stamp_ns': bench.now - late * MS, 'epoch': bench.guard.epoch + other, **changes}
    decision = fields.pop('decision')
    return say(bench, decision, **fields)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(life=QUIET_LIVES)
def test_verdicts_that_object_to_nothing_leave_every_command_as_it_is_bit_for_bit(make_bench, life):
    told, alone = listening(make_bench), make_bench()
    heard = 0
    for chunk, seed, verdicts, ticks in life:
        amplitude = np.random.default_rng(seed).uniform(-0.2, 0.2)
        for bench in (told, alone):
            if chunk:
                bench.send(bench.wave(amplitude=amplitude))
        for _ in range(ticks):
            for verdict in verdicts:
                harmless(told, **verdict)
                heard += 1
            told.run(10)
            alone.run(10)
    told.run(500)
    alone.run(500)
    for one, other in zip(told.commands, alone.commands, strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)
        np.testing.assert_array_equal(one.times_ns, other.times_ns)
        assert (one.state, one.reason) == (other.state, other.reason)
    counts = told.guard.statistics()
    assert sum(counts.verdicts.values()) + counts.verdicts_ignored == heard
    assert set(counts.verdicts) <= {OK, UNKNOWN}


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'decision': 9}, 'decision is 9'),
        ({'decision': 'STOP'}, 'decision is no whole number'),
        ({'epoch': 99}, 'of epoch 99'),
        ({'sequence': 3}, 'of chunk 5 more is known'),
        ({'late': 2001}, 'observation is 2.0010 s old'),
        ({'late': -51}, 'observation is -0.0510 s old'),
        ({'stamp_ns': 10**400}, 'stamp_ns is no whole number, or too large'),
    ],
)
def test_a_verdict_that_does_not_count_is_counted_as_such_and_the_answer_says_why(make_bench, changes, text):
    bench = listening(make_bench)
    assert say(bench, OK, sequence=5).ok
    answer = harmless(bench, **{'decision': STOP, 'sequence': 5, **changes})
    assert not answer.ok
    assert text in answer.text
    assert bench.guard.statistics().verdicts == {OK: 1}
    assert bench.guard.statistics().verdicts_ignored == 1
    assert bench.guard.state is GuardState.WAITING


def test_a_text_of_any_kind_and_length_makes_one_short_line(make_bench):
    for text in (None, 'x' * 10**6, 'two\nlines', b'bytes', 3):
        bench = listening(make_bench)
        say(bench, STOP, text=text)
        assert bench.guard.cause.reason is Reason.VERDICT_STOP
        assert len(bench.guard.cause.text) < 300
        assert '\n' not in bench.guard.cause.text


def test_where_nobody_listens_a_stop_verdict_changes_nothing(make_bench):
    bench = in_motion(make_bench())
    assert not say(bench, STOP).ok
    assert not say(bench, SLOW).ok
    bench.run(100)
    assert bench.guard.state is GuardState.TRACKING
    assert bench.guard.statistics().verdicts_ignored == 0


def test_an_ok_lifts_no_pause_no_stop_and_no_emergency_stop_and_excuses_no_bad_chunk(make_bench):
    bench = listening(make_bench, reset_cooldown_ns=0)

    def refusal():
        assert say(bench, OK, sequence=bench.sequence + 1).ok
        return bench.send(bench.wave()).reason

    bench.guard.pause(bench.now)
    assert refusal() is Reason.PAUSED
    bench.guard.resume(bench.now)
    bench.guard.request_stop('somebody', bench.now)
    assert refusal() is Reason.FAULT_LATCHED
    assert bench.guard.reset(bench.now).ok
    say(bench, OK, sequence=bench.sequence + 1)
    assert bench.send(bench.arm + np.full((32, 7), 0.1)).reason is Reason.START_JUMP
    bench.guard.on_emergency_stop(True, bench.now)
    assert refusal() is Reason.FAULT_LATCHED
    assert not bench.guard.reset(bench.now).ok


# When nothing is known


def test_where_silence_means_slowness_chunks_are_slow_before_the_first_verdict_and_after_the_last(make_bench):
    bench = listening(make_bench, VerdictOptions(on_unknown='slow', max_age_ns=S))
    assert pace(bench.send(bench.wave(amplitude=0.05))) == 0.5
    say(bench, UNKNOWN)
    bench.run(100)
    assert pace(bench.send(bench.wave(amplitude=0.05))) == 0.5
    say(bench, OK)
    bench.run(300)
    assert pace(bench.send(bench.wave(amplitude=0.4))) == 1.0
    bench.run(690)
    assert bench.guard.take_slowed() is None
    bench.run(30)
    slowed = bench.guard.take_slowed()
    assert slowed.accepted.motion.chunk.pace == 0.5
    assert 'VERDICT_UNKNOWN' in slowed.why
    bench.run(500)
    bench.auditor.trace(bench.trace)


def test_an_arm_that_was_slow_before_a_slow_verdict_has_been_slow_since_then():
    books = Verdicts(GuardOptions(verdicts=VerdictOptions(on_unknown='slow')), epoch=1, begun_ns=S)
    assert books.cap(2 * S).since_ns == S
    for sequence, now in ((1, 3 * S), (2, 4 * S)):
        assert books.receive(Verdict(1, sequence, now, SLOW), now) is SLOW
        assert books.cap(now).since_ns == S
    books.receive(Verdict(1, 3, 5 * S, OK), 5 * S)
    assert books.cap(5 * S) is None
    assert books.cap(8 * S).since_ns == 7 * S, 'unknown since the OK is too old'


def test_where_silence_means_a_stop_the_arm_sets_off_with_a_chunk_after_the_first_verdict(make_bench):
    bench = listening(make_bench, VerdictOptions(on_unknown='stop', max_age_ns=S))
    assert bench.send(bench.wave()).reason is Reason.VERDICT_UNKNOWN
    say(bench, UNKNOWN)
    assert bench.send(bench.wave()).reason is Reason.VERDICT_UNKNOWN
    say(bench, OK)
    in_motion(bench, ms=990)
    bench.run(20)
    assert bench.guard.state is GuardState.BRAKING
    assert bench.guard.cause.reason is Reason.VERDICT_UNKNOWN
    assert 'limit 1.0000 s' in bench.guard.cause.text
    bench.until_quiet()
    assert bench.send(bench.wave()).reason is Reason.VERDICT_UNKNOWN
    say(bench, OK)
    accept(bench, bench.wave())


def test_where_silence_means_a_stop_a_refused_chunk_of_a_new_epoch_can_still_be_judged(make_bench):
    bench = listening(make_bench, VerdictOptions(on_unknown='stop'))
    epoch = bench.guard.epoch + 7
    assert bench.send(bench.wave(), epoch=epoch, sequence=1).reason is Reason.VERDICT_UNKNOWN
    assert bench.guard.epoch == epoch
    assert say(bench, OK, sequence=1).ok
    accept(bench, bench.wave(), epoch=epoch, sequence=2)


def test_slow_and_stop_outlive_whoever_said_them(make_bench):
    bench = listening(make_bench, VerdictOptions(on_stop='hold', max_age_ns=S))
    say(bench, SLOW)
    bench.run(3000)
    assert pace(bench.send(bench.wave())) == 0.5
    say(bench, STOP)
    bench.run(3000)
    assert bench.send(bench.wave()).reason is Reason.VERDICT_STOP


# Forgetting


def restarted(bench):
    bench.guard.deactivate(bench.now)
    bench.guard.activate(bench.now)


def stopped_and_reset(bench):
    bench.guard.request_stop('somebody', bench.now)
    bench.run(600)
    assert bench.guard.reset(bench.now).ok


def set_back(bench):
    bench.now -= 10 * S


@pytest.mark.parametrize('event', [restarted, stopped_and_reset, set_back])
@pytest.mark.parametrize('decision', [SLOW, STOP])
def test_a_restart_a_reset_and_a_clock_that_jumps_back_make_all_that_was_said_void(make_bench, event, decision):
    bench = listening(make_bench, HOLD)
    epoch = bench.guard.epoch
    say(bench, decision, sequence=40)
    event(bench)
    bench.report()
    assert not say(bench, decision, sequence=41, epoch=epoch).ok
    assert pace(bench.send(bench.wave())) == 1.0


def test_an_inactive_guard_takes_no_verdict(make_bench):
    bench = listening(make_bench, HOLD, activate=False)
    assert not say(bench, STOP).ok
    bench.guard.activate(bench.now)
    bench.report()
    accept(bench, bench.wave())


# Anything, in any order


VERDICT = st.fixed_dictionaries(
    {
        'decision': st.one_of(st.sampled_from([OK, SLOW, SLOW, STOP, UNKNOWN]), GARBAGE),
        'ahead': st.integers(-3, 3),
        'late': st.sampled_from([0, 0, 0, 500, 2500, -100]),
        'other': st.sampled_from([0, 0, 0, 0, -1, 1]),
    }
)
TICKS = st.lists(st.sampled_from([1, 5, 9, 10, 10, 10, 11, 13, 25, 45, 80]), min_size=1, max_size=12)
HAPPENING = st.one_of(st.sampled_from(CHUNKS), st.sampled_from(CHUNKS[:3]), st.sampled_from(EVENTS), VERDICT, VERDICT)
LIVES = st.lists(st.tuples(HAPPENING, SEEDS, TICKS), min_size=1, max_size=20)
OPTIONS = st.builds(
    VerdictOptions,
    on_stop=st.sampled_from(['latch', 'hold', 'hold']),
    slow_pace=st.sampled_from([0.1, 0.5, 0.9]),
    on_unknown=st.sampled_from(['ignore', 'slow', 'stop']),
    max_age_ns=st.sampled_from([200 * MS, 2 * S]),
)


def happens(bench, happening, seed):
    rng = np.random.default_rng(seed)
    if isinstance(happening, dict):
        changes = dict(happening)
        sequence = max(0, bench.sequence + changes.pop('ahead'))
        if harmless(bench, sequence=sequence, **changes).ok and happening['decision'] is STOP:
            stops_at_once(bench)
    elif happening in CHUNKS:
        rows, changes = happening(bench, rng)
        bench.send(rows, **changes)
    else:
        happening(bench, rng)


def stops_at_once(bench):
    """A stop that counts is heeded by the tick of the same instant."""
    command = bench.tick()
    assert bench.guard.state is not GuardState.TRACKING
    if command is not None:
        assert command.stamp_ns == bench.now
        assert command.reason is not Reason.NONE


def heeds(bench):
    """Nothing is played that imagination forbids, nor faster than it allows, as of the last tick."""
    if bench.guard.state is not GuardState.TRACKING:
        return
    assert bench.guard._verdicts.obstacle(bench.now) is None
    cap, motion = bench.guard._verdicts.cap(bench.now), bench.guard._motion.chunk_motion
    assert cap is None or motion is None or motion.chunk.pace <= cap.pace * (1 + 1e-9)
    assert bench.guard._verdicts.epoch == bench.guard.epoch


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(life=LIVES, options=OPTIONS, replay=st.booleans(), slowest=st.sampled_from([1.0, 0.3]))
def test_whatever_verdicts_say_every_command_keeps_the_limits(make_bench, life, options, replay, slowest):
    checks = CheckOptions(replay_from_rest=replay, start_jump_rad=0.1, slowest_pace=slowest)
    bench = listening(make_bench, options, home=MIDDLE, reset_cooldown_ns=20 * MS, checks=checks)
    for happening, seed, ticks in life:
        happens(bench, happening, seed)
        for ms in ticks:
            bench.pass_time(ms)
            if bench.reports:
                bench.report()
            bench.tick()
            heeds(bench)
    bench.run(600)
    assert bench.guard.cause.reason is not Reason.OUTPUT_CHECK, bench.guard.cause
    trace = np.array(bench.trace)
    assert (trace >= PANDA.lower - 1e-4).all()
    assert (trace <= PANDA.upper + 1e-4).all()
    assert (np.abs(np.diff(trace, axis=0)) <= PANDA.velocity * 1e-3 * 1.01).all()
    assert (np.abs(np.diff(trace, 2, axis=0)) <= PANDA.acceleration * 1e-6 * 1.5).all()


@pytest.mark.parametrize('seed', range(2))
def test_a_long_motion_under_a_stream_of_verdicts_is_slowed_often_and_keeps_every_limit(make_bench, seed):
    rng = np.random.default_rng(seed)
    bench = listening(make_bench, HOLD, home=MIDDLE, checks=CheckOptions(start_jump_rad=0.1))
    slowed = accepted = 0
    for _ in range(120):
        target = MIDDLE + rng.uniform(-0.4, 0.4, 7)
        way = (1 - np.cos(np.linspace(0, np.pi, 33)[1:]))[:, None] / 2
        accepted += isinstance(bench.send(bench.arm + (target - bench.arm) * way), Acceptance)
        for _ in range(int(rng.integers(1, 4))):
            bench.run(10 * int(rng.integers(1, 15)))
            say(bench, rng.choice([OK, OK, SLOW, SLOW, STOP, UNKNOWN], p=[0.3, 0.2, 0.2, 0.2, 0.05, 0.05]))
            bench.tick()
            heeds(bench)
            slowed += bench.guard.take_slowed() is not None
    bench.auditor.trace(bench.trace)
    assert accepted > 40
    assert slowed > 10


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(verdicts=st.lists(st.tuples(VERDICT, TICKS), min_size=1, max_size=12), options=OPTIONS)
def test_an_arm_at_rest_stays_at_rest_whatever_verdicts_say(make_bench, verdicts, options):
    bench = listening(make_bench, options)
    for verdict, ticks in verdicts:
        happens(bench, verdict, 0)
        for ms in ticks:
            bench.run(10)
            bench.pass_time(ms)
    assert bench.commands == []


# Options


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('on_stop', 'ignore'),
        ('on_unknown', 'latch'),
        ('slow_pace', 0.0),
        ('slow_pace', 1.0),
        ('slow_pace', np.nan),
        ('max_age_ns', 0),
    ],
)
def test_options_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(OptionsError, match=name):
        VerdictOptions(**{name: value})


def test_all_faults_of_the_options_are_listed():
    with pytest.raises(OptionsError) as raised:
        VerdictOptions('x', 2.0, 'y', -1)
    assert {problem.where for problem in raised.value.problems} == {'on_stop', 'slow_pace', 'on_unknown', 'max_age_ns'}
