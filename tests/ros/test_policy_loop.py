"""Promises of the loop of a run: it paces, waits, ends, and explains. With the real policy on a tiny checkpoint."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from websockets.sync.server import ServerConnection

from cosmos3_ros.inputs import JOINT_STATES, Inputs
from cosmos3_ros.policy_loop import End, Latencies, LoopOptions, Phase, PolicyLoop, Run, TimedChunk
from engine.contract import load_contract
from engine.errors import CosmosError, InvalidInput, Problem
from engine.policy import Policy
from engine.serving.client import RemotePolicy
from tests.engine.serving.clients import scripted

S = 1_000_000_000
PICTURE = np.full((90, 160, 3), 100, np.uint8)
STATE = (np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.8, 0.8]), 0.0)


class Bench:
    """A loop with a clock that the test moves, and everything that came out of it."""

    def __init__(self, policy: Policy, translate: Callable | None = None, **options: object) -> None:
        self.now_ns = 50 * S
        self.chunks: list[TimedChunk] = []
        self.recorded: list[TimedChunk] = []
        self.errors: list[str] = []
        self.running: list[int] = []  # chunks that there were each time it was told that inference begins
        self.inputs = Inputs(policy.contract)
        self.loop = PolicyLoop(
            policy,
            self.inputs,
            lambda: self.now_ns,
            self.chunks.append,
            lambda text, error: self.errors.append(text),
            LoopOptions(**options),
            self.recorded.append,
            translate,
            lambda: self.running.append(len(self.chunks)),
        )

    def see(self, *, picture: np.ndarray = PICTURE, without: tuple[str, ...] = ()) -> None:
        """Fresh inputs, all of the present moment."""
        for name in {*self.inputs.views, JOINT_STATES} - set(without):
            value = STATE if name == JOINT_STATES else picture
            self.inputs.push(name, self.now_ns, self.now_ns, value)
        self.loop.wake()

    def wait(self, condition: Callable[[], bool], what: str = '') -> None:
        deadline = time.monotonic() + 10.0
        pause = threading.Event()
        while not condition():
            assert time.monotonic() < deadline, f'did not happen: {what or condition}'
            pause.wait(0.002)

    def wait_end(self, run: Run) -> Run:
        assert run.ended.wait(10.0), 'the run did not end'
        return run


@pytest.fixture(scope='module')
def policy(tiny_checkpoint) -> Policy:
    import engine

    return engine.load(tiny_checkpoint).policy(load_contract('demo_joint_pos'))


@pytest.fixture
def bench(policy) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**options: object) -> Bench:
        made.append(Bench(policy, **options))
        return made[-1]

    yield make
    for one in made:
        one.loop.close()


def test_nothing_is_made_without_a_run(bench):
    b = bench()
    b.see()
    run = b.loop.begin('go')
    b.wait(lambda: len(b.chunks) == 1)
    assert b.chunks[0].sequence == 1, 'the first chunk is the first that was made'
    assert run.chunks == b.loop.chunks == 1


def test_every_chunk_goes_to_its_receiver_and_to_the_record(bench):
    b = bench()
    b.see()
    b.loop.begin('go')
    b.wait(lambda: len(b.recorded) == 1)
    assert b.recorded == b.chunks
    assert b.chunks[0].stamp_ns == b.now_ns
    assert b.chunks[0].chunk.instruction == 'go'


def test_it_is_told_when_a_run_that_waited_begins_to_infer_and_so_before_its_chunk(bench):
    """A fast policy has a chunk before its next status is due, and the guard follows none but a running policy."""
    b = bench(replan_rows=8)
    run = b.loop.begin('go')
    b.wait(lambda: bool(run.missing))
    assert b.running == []
    for count in (1, 2):
        b.see()
        b.wait(lambda count=count: len(b.chunks) == count)
        b.now_ns += S
    assert b.running == [0], 'between chunks it does not wait'
    b.now_ns += 60 * S
    b.wait(lambda: bool(run.missing), 'inputs of a minute ago')
    b.see()
    b.wait(lambda: len(b.chunks) == 3)
    assert b.running == [0, 2]


def test_the_next_observation_is_replan_rows_later_and_no_sooner(bench):
    b = bench(replan_rows=8)
    b.see()
    b.loop.begin('go')
    b.wait(lambda: len(b.chunks) == 1)
    start = b.now_ns
    for row in range(1, 9):
        b.now_ns = start + round(row * S / 15)
        b.see()
    b.wait(lambda: len(b.chunks) == 2)
    assert b.chunks[1].stamp_ns == start + round(8 * S / 15)


def test_a_frame_that_is_about_to_come_is_waited_for(bench):
    b = bench(replan_rows=2)
    b.see()
    b.loop.begin('go')
    b.wait(lambda: len(b.chunks) == 1)
    start = b.now_ns
    b.now_ns = start + round(1 * S / 15)
    b.see()
    b.now_ns = start + round(2.1 * S / 15)  # the second chunk is due, its frame is still on the way
    b.loop.wake()
    b.now_ns = start + round(2.2 * S / 15)
    b.see()
    b.wait(lambda: len(b.chunks) == 2)
    assert b.chunks[1].stamp_ns == start + round(2.2 * S / 15)


def test_a_run_waits_for_what_is_missing_and_names_it(bench):
    b = bench()
    b.see(without=('wrist',))
    run = b.loop.begin('go')
    b.wait(lambda: bool(run.missing))
    assert run.phase is Phase.WAITING
    assert run.missing == ('wrist (never received)',)
    b.see()
    b.wait(lambda: run.chunks == 1)
    assert run.missing == ()
    assert run.phase is Phase.EXECUTING


def test_waiting_too_long_ends_the_run_and_names_the_input(bench):
    b = bench(input_timeout_ns=S // 10)
    b.see(without=('exterior_1',))
    run = b.wait_end(b.loop.begin('go'))
    assert run.end is End.STALE_INPUT
    assert run.text == 'gave up waiting for exterior_1 (never received)'


def test_waiting_is_measured_in_real_time_even_if_the_clock_stands_still(bench):
    b = bench(input_timeout_ns=S // 5)
    started = time.monotonic()
    run = b.wait_end(b.loop.begin('go'))
    assert 0.2 <= time.monotonic() - started < 5.0
    assert run.end is End.STALE_INPUT


def test_time_spent_on_inference_does_not_count_as_waiting(bench):
    b = bench(input_timeout_ns=S // 20, replan_rows=1)  # shorter than one inference
    b.see()
    run = b.loop.begin('go')
    b.wait(lambda: run.phase is Phase.INFERRING)
    b.now_ns += S // 4  # after the inference the next observation is due, and there since a moment ago
    b.see()
    b.wait(lambda: run.chunks == 2)
    assert run.end is None


def test_a_time_limit_ends_the_run_also_during_inference(bench):
    b = bench()
    b.see()
    run = b.loop.begin('go', limit_ns=2 * S)
    b.wait(lambda: run.phase is Phase.INFERRING)
    b.now_ns += 2 * S
    b.wait_end(run)
    assert run.end is End.TIME_LIMIT
    assert run.text == 'ran for 2 s'
    again = b.loop.begin('again')
    b.see()
    b.wait(lambda: again.chunks == 1)
    assert [timed.chunk.instruction for timed in b.chunks] == ['again'], 'nothing came of the inference under way'


def test_finishing_gives_up_the_inference_under_way(bench):
    b = bench()
    b.see()
    run = b.loop.begin('first')
    b.wait(lambda: run.phase is Phase.INFERRING)
    b.loop.finish(End.CANCELED, 'enough')
    assert run.ended.is_set()
    second = b.loop.begin('second')
    b.wait(lambda: second.chunks == 1)
    assert [timed.chunk.instruction for timed in b.chunks] == ['second']
    assert (run.end, run.text) == (End.CANCELED, 'enough')


def test_the_first_end_of_a_run_is_the_one_that_counts(bench):
    b = bench()
    run = b.loop.begin('go')
    b.loop.finish(End.CANCELED, 'enough')
    b.loop.finish(End.DEACTIVATED, 'too late')
    assert (run.end, run.text) == (End.CANCELED, 'enough')


def test_a_second_run_is_refused_while_one_is_under_way(bench):
    b = bench()
    b.loop.begin('first')
    with pytest.raises(CosmosError, match='first'):
        b.loop.begin('second')


def test_a_failed_inference_ends_the_run_and_the_next_one_works(bench):
    b = bench()
    b.see(picture=np.zeros((2, 2, 3), np.uint8))  # arrives intact and is no picture the network can read
    run = b.wait_end(b.loop.begin('go'))
    assert run.end is End.POLICY_ERROR
    assert 'images.wrist' in run.text
    assert 'images.wrist' in b.errors[0]
    b.now_ns += S
    b.see()
    again = b.loop.begin('go')
    b.wait(lambda: again.chunks == 1)


def test_epochs_grow_with_every_run_and_with_the_clock(bench):
    b = bench()
    epochs = []
    for _ in range(3):
        b.loop.begin('go')
        epochs.append(b.loop.epoch)
        b.loop.finish(End.CANCELED, '')
    assert epochs == [50, 51, 52]
    b.now_ns = 900 * S
    b.loop.begin('go')
    assert b.loop.epoch == 900


def test_an_epoch_that_the_guard_has_begun_is_left_behind_at_once_or_with_the_next_run(bench):
    """Never joined: the guard may know chunks of it from a policy before this one, whose numbers were higher."""
    b = bench()
    b.loop.follow_epoch(70)
    b.loop.begin('go')
    assert b.loop.epoch == 71
    for known in (69, 71):  # the guard takes up the policy's own epoch
        b.loop.follow_epoch(known)
        assert b.loop.epoch == 71
    b.see()
    b.loop.follow_epoch(80)
    assert b.loop.epoch == 81
    b.wait(lambda: len(b.chunks) == 1)
    assert (b.chunks[0].epoch, b.chunks[0].sequence) == (81, 1)


def test_a_policy_that_starts_anew_after_the_clock_was_set_back_is_not_taken_for_the_one_before(bench):
    before, after = bench(), bench()
    before.now_ns = 900 * S
    before.loop.begin('go')
    after.loop.follow_epoch(before.loop.epoch)  # what the guard tells whoever comes
    after.loop.begin('go')
    assert after.now_ns < before.now_ns
    assert after.loop.epoch > before.loop.epoch


def test_a_chunk_whose_epoch_ended_while_it_was_made_is_dropped(bench):
    b = bench()
    b.see()
    run = b.loop.begin('go')
    b.wait(lambda: run.phase is Phase.INFERRING)
    b.loop.follow_epoch(70)
    b.now_ns += S
    b.see()
    b.wait(lambda: len(b.chunks) == 1)
    assert (b.chunks[0].epoch, b.chunks[0].sequence, b.chunks[0].stamp_ns) == (71, 1, 51 * S)


def test_a_clock_set_back_voids_inputs_and_epoch_but_not_the_time_that_is_left(bench):
    b = bench()
    b.now_ns = 100 * S
    b.see()
    run = b.loop.begin('go', limit_ns=10 * S)
    b.wait(lambda: run.chunks == 1)
    before = b.loop.epoch
    b.now_ns = 104 * S
    b.now_ns -= 84 * S
    b.loop.clock_jumped(84 * S)
    assert b.loop.epoch > before
    b.wait(lambda: len(run.missing) == 4)
    b.see()
    b.wait(lambda: run.chunks == 2)
    assert b.chunks[1].stamp_ns == 20 * S
    b.now_ns = 26 * S
    b.wait_end(run)
    assert run.end is End.TIME_LIMIT


def test_a_reset_leaves_nothing_of_the_life_before(bench):
    b = bench()
    b.see()
    b.loop.begin('go')
    b.wait(lambda: len(b.chunks) == 1)
    b.loop.finish(End.DEACTIVATED, '')
    b.loop.reset()
    assert (b.loop.run, b.loop.chunks) == (None, 0)
    assert len(b.inputs.observe(b.now_ns, 'go')) == 4


def test_closing_ends_the_run_and_the_thread_even_during_inference(bench):
    b = bench()
    b.see()
    run = b.loop.begin('go')
    b.wait(lambda: run.phase is Phase.INFERRING)
    b.loop.close()
    assert run.end is End.DEACTIVATED
    assert not b.loop._thread.is_alive()


@pytest.mark.parametrize(('answer', 'end'), [('', End.DEACTIVATED), ('Traceback ...', End.POLICY_ERROR)])
def test_a_run_does_not_begin_at_a_server_that_has_not_forgotten_the_one_before_and_waits_for_it_no_longer_than_asked(
    answer, end
):
    asked: list[str] = []
    heard = threading.Event()

    def script(connection: ServerConnection, _number: int) -> None:
        for message in connection:
            asked.append(msgpack_numpy.unpackb(message)['endpoint'])
            heard.set()
            if answer:
                connection.send(answer)

    contract = load_contract('demo_joint_pos')
    with scripted(script) as url, RemotePolicy(url, contract, dialect_name='roboarena', deadline_s=600) as remote:
        remote.connect()
        b = Bench(remote)
        b.see()
        run = b.loop.begin('go')
        assert heard.wait(10.0)
        if answer:
            b.wait_end(run)
        closing = threading.Thread(target=b.loop.close, daemon=True)
        closing.start()
        closing.join(10.0)
        assert not closing.is_alive(), 'the loop waits for its server'
    assert (run.end, asked) == (end, ['reset'])


def test_latencies_can_be_read_while_they_are_written():
    latencies = Latencies()
    stopping = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not stopping.is_set():
                latencies.percentiles()
        except BaseException as error:  # shown below
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for index in range(300):
        latencies.add({f'stage {index % 50}': float(index), 'total': 1.0})
    stopping.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert latencies.latest == 1.0


def test_percentiles_are_those_of_the_newest_inferences():
    latencies = Latencies()
    for seconds in np.linspace(0.0, 1.0, 101):
        latencies.add({'encode': float(seconds)})
    p50, p95 = latencies.percentiles()['encode']
    assert p50 == pytest.approx(0.5)
    assert p95 == pytest.approx(0.95)


def test_only_the_rows_of_the_horizon_are_handed_over(bench):
    b = bench(execute_rows=12)
    b.see()
    b.loop.begin('go')
    b.wait(lambda: len(b.chunks) == 1)
    assert b.chunks[0].chunk.actions.shape == (12, 8)


def continued(b: Bench, accept: bool) -> tuple[TimedChunk, TimedChunk]:
    """Two chunks, the second four rows after the first, which the guard accepts or does not."""
    b.see()
    b.loop.begin('go')
    b.wait(lambda: len(b.chunks) == 1)
    first = b.chunks[0]
    b.loop.continuation.decided(first.epoch, first.sequence, accept)
    b.loop.delays.add(0.25)
    b.now_ns += round(4 * S / 15)
    b.see()
    b.wait(lambda: len(b.chunks) == 2)
    return first, b.chunks[1]


def test_a_chunk_continues_the_rows_that_are_executed_while_it_is_made(bench):
    first, second = continued(bench(replan_rows=4, continue_chunks=True), accept=True)
    assert second.committed == 5  # 0.25 s and the take-over, at 15 rows per second
    np.testing.assert_allclose(second.chunk.actions[:5], first.chunk.actions[4:9], atol=1e-5)


def test_a_chunk_does_not_continue_what_the_guard_refused(bench):
    first, second = continued(bench(replan_rows=4, continue_chunks=True), accept=False)
    assert second.committed == 0
    assert not np.allclose(second.chunk.actions[:5], first.chunk.actions[4:9], atol=1e-5)


def test_chunks_are_not_continued_unless_asked_for(bench):
    assert continued(bench(replan_rows=4), accept=True)[1].committed == 0


def test_a_chunk_that_cannot_be_translated_is_reported_and_the_run_goes_on(policy):
    refusals = []

    def translate(chunk, observation):
        if not refusals:
            refusals.append(observation)
            raise InvalidInput('inverse kinematics', [Problem('row 3', 'cannot be reached')])
        return chunk

    b = Bench(policy, translate=translate)
    b.see()
    b.loop.begin('go')
    b.wait(lambda: bool(refusals))
    b.now_ns += S
    b.see()
    b.wait(lambda: len(b.chunks) == 1)
    b.loop.close()
    assert 'row 3' in b.errors[0]
    assert b.chunks[0].sequence == 1
