"""Promises of sampling: one moment for all streams, no guessing, and every gap named."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos3_ros.streams import (
    Missing,
    Reason,
    Sample,
    StreamBuffer,
    Timeline,
    reference_stamp,
    sample_all,
)
from engine.errors import ObservationError

MS = 1_000_000
S = 1_000 * MS


def filled(
    name: str, *stamps: int, max_age_ns: int = 250 * MS, depth: int = 64, **options: object
) -> StreamBuffer[int]:
    """A buffer whose values are their own stamps, each received as it was stamped."""
    buffer: StreamBuffer[int] = StreamBuffer(name, max_age_ns, depth, **options)
    for stamp in stamps:
        buffer.push(stamp, stamp, stamp)
    return buffer


def test_the_newest_value_not_newer_than_the_reference_is_taken():
    buffer = filled('wrist', 10 * MS, 20 * MS, 30 * MS)
    sample = buffer.as_of(25 * MS)
    assert isinstance(sample, Sample)
    assert (sample.value, sample.age_ns, sample.stream) == (20 * MS, 5 * MS, 'wrist')


def test_a_value_stamped_exactly_at_the_reference_is_taken():
    assert filled('wrist', 10 * MS, 20 * MS).as_of(20 * MS).value == 20 * MS


def test_a_stream_that_never_spoke_is_missing_as_never_received():
    missing = filled('wrist').as_of(1 * S)
    assert missing == Missing('wrist', Reason.NEVER_RECEIVED, None, 250 * MS)


def test_a_value_of_exactly_the_maximum_age_is_taken_and_one_nanosecond_older_is_stale():
    buffer = filled('wrist', 1 * S)
    assert isinstance(buffer.as_of(1 * S + 250 * MS), Sample)
    assert buffer.as_of(1 * S + 250 * MS + 1) == Missing('wrist', Reason.STALE, 250 * MS + 1, 250 * MS)


def test_a_value_that_fits_the_reference_but_is_old_now_is_stale():
    missing = filled('wrist', 1 * S).as_of(1 * S, now_ns=2 * S)
    assert missing == Missing('wrist', Reason.STALE, 1 * S, 250 * MS)


def test_a_future_value_within_the_tolerance_is_taken_with_its_negative_age():
    sample = filled('joints', 1 * S).as_of(1 * S - 20 * MS)
    assert isinstance(sample, Sample)
    assert sample.age_ns == -20 * MS


def test_a_stream_with_only_newer_values_is_missing_as_future():
    missing = filled('joints', 1 * S).as_of(1 * S - 60 * MS)
    assert missing == Missing('joints', Reason.FUTURE, -60 * MS, 250 * MS)


def test_a_stamp_far_ahead_of_the_clock_is_refused_and_reported():
    buffer = filled('wrist')
    assert not buffer.push(stamp_ns=10 * S, receive_ns=1 * S, value=0)
    assert buffer.as_of(1 * S) == Missing('wrist', Reason.FUTURE, -9 * S, 250 * MS)
    assert buffer.counts.rejected_future == 1


def test_receive_time_can_count_instead_of_the_header():
    buffer = filled('wrist', timeline=Timeline.RECEIVE)
    assert buffer.push(stamp_ns=0, receive_ns=5 * S, value=1)  # drivers without a clock leave the header empty
    assert buffer.as_of(5 * S).stamp_ns == 5 * S


def test_values_that_arrive_out_of_order_are_put_in_order():
    buffer = filled('wrist', 10 * MS, 30 * MS, 20 * MS)
    assert buffer.as_of(25 * MS).value == 20 * MS
    assert buffer.as_of(30 * MS).value == 30 * MS
    assert buffer.counts.reordered == 1


def test_the_later_of_two_values_with_one_stamp_counts():
    buffer = filled('wrist')
    buffer.push(10 * MS, 10 * MS, 1)
    buffer.push(10 * MS, 11 * MS, 2)
    assert buffer.as_of(10 * MS).value == 2


def test_only_the_last_values_are_kept():
    buffer = filled('joints', *(i * MS for i in range(100)), depth=10, future_tolerance_ns=0)
    assert buffer.as_of(89 * MS).reason is Reason.FUTURE
    assert buffer.as_of(90 * MS).value == 90 * MS


def test_a_backward_clock_jump_clears_the_history():
    buffer = filled('wrist', 100 * S, 101 * S)
    buffer.push(1 * S, 1 * S, 7)
    assert buffer.as_of(1 * S).value == 7
    assert buffer.newest_stamp_ns() == 1 * S
    assert buffer.counts.clock_resets == 1


def test_a_cleared_stream_has_received_nothing():
    buffer = filled('wrist', 1 * S)
    buffer.clear()
    assert buffer.as_of(1 * S).reason is Reason.NEVER_RECEIVED


@pytest.mark.parametrize('options', [{'max_age_ns': 0}, {'depth': 0}, {'jump_ns': 0}, {'future_tolerance_ns': -1}])
def test_a_senseless_buffer_cannot_be_made(options):
    with pytest.raises(ValueError, match='wrist'):
        filled('wrist', **options)


def test_a_snapshot_reports_every_missing_stream_by_name_and_reason():
    buffers = [filled('wrist'), filled('exterior_1', 1 * S), filled('joints', 5 * S)]
    snapshot = sample_all(buffers, 5 * S)
    assert not snapshot.complete
    assert list(snapshot.samples) == ['joints']
    assert [(item.stream, item.reason) for item in snapshot.missing] == [
        ('wrist', Reason.NEVER_RECEIVED),
        ('exterior_1', Reason.STALE),
    ]
    with pytest.raises(ObservationError, match=r'(?s)wrist: never received.*exterior_1: stale, got 4\.000 s old'):
        snapshot.require()


def test_a_complete_snapshot_knows_its_spread_and_its_oldest_age():
    snapshot = sample_all([filled('wrist', 100 * MS), filled('joints', 130 * MS)], 140 * MS)
    snapshot.require()
    assert (snapshot.spread_ns, snapshot.oldest_age_ns) == (30 * MS, 40 * MS)


def test_the_reference_is_the_oldest_of_the_newest_stamps():
    buffers = [filled('wrist', 100 * MS), filled('joints', 90 * MS, 110 * MS, 120 * MS)]
    assert reference_stamp(buffers, 150 * MS) == 100 * MS
    assert sample_all(buffers, 100 * MS).samples['joints'].value == 90 * MS


def test_a_dead_stream_does_not_hold_the_reference_back_and_is_the_one_that_is_named():
    dead = filled('wrist', 1 * S)
    live = filled('joints', *(2 * S + i * MS for i in range(100)))
    now_ns = 2 * S + 100 * MS
    reference_ns = reference_stamp([dead, live], now_ns)
    assert reference_ns == 2 * S + 99 * MS
    assert [item.stream for item in sample_all([dead, live], reference_ns, now_ns).missing] == ['wrist']


def test_the_reference_never_lies_in_the_future():
    assert reference_stamp([filled('wrist', 1 * S)], 1 * S - 10 * MS) == 1 * S - 10 * MS


def test_without_a_live_stream_the_reference_is_now():
    assert reference_stamp([filled('wrist'), filled('joints', 1 * S)], 9 * S) == 9 * S


@given(st.lists(st.integers(0, 900), min_size=1, max_size=40), st.integers(0, 900), st.randoms())
def test_the_order_of_arrival_does_not_change_what_is_sampled(stamps, reference, random):
    shuffled = list(stamps)
    random.shuffle(shuffled)
    in_order = filled('x', *(stamp * MS for stamp in sorted(stamps)))
    out_of_order = filled('x', *(stamp * MS for stamp in shuffled))
    assert in_order.as_of(reference * MS) == out_of_order.as_of(reference * MS)


@given(st.lists(st.integers(0, 900), min_size=1, max_size=40), st.integers(0, 900))
def test_what_is_sampled_is_never_newer_than_the_reference_beyond_the_tolerance(stamps, reference):
    found = filled('x', *(stamp * MS for stamp in stamps)).as_of(reference * MS)
    if isinstance(found, Sample):
        older = [stamp for stamp in stamps if stamp <= reference]
        assert found.value == (max(older) if older else min(stamps)) * MS


def test_a_buffer_may_be_filled_and_read_by_several_threads():
    buffer = filled('joints', 0, depth=16, max_age_ns=10 * S)
    failures: list[object] = []

    def read() -> None:
        last = 0
        for _ in range(2000):
            found = buffer.as_of(10 * S)
            if not isinstance(found, Sample) or found.value < last:
                failures.append(found)
            else:
                last = found.value

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for i in range(2000):
        buffer.push(i * MS, i * MS, i * MS)
    for reader in readers:
        reader.join()
    assert failures == []
    assert buffer.as_of(10 * S).value == 1999 * MS
