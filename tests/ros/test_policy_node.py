"""Promises of the policy node in a real graph: chunks for one instruction at a time, and a reason for every end."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters
from rclpy.parameter import Parameter as RosParameter
from sensor_msgs.msg import JointState

from cosmos3_msgs.action import RunPolicy
from cosmos3_msgs.msg import ActionChunk, GuardStatus, PolicyStatus
from cosmos3_ros import qos
from cosmos3_ros.conversions import stamp_to_ns
from cosmos3_ros.policy_node import PARAMETERS
from engine.contract import load_contract

Result = RunPolicy.Result
MS = 1_000_000


def rows_of(chunk: ActionChunk) -> np.ndarray:
    return np.array(chunk.positions).reshape(chunk.rows, len(chunk.joint_names))


def stamps(chunks: list[ActionChunk]) -> list[int]:
    return [stamp_to_ns(chunk.header.stamp) for chunk in chunks]


# Chunks


def test_a_goal_makes_chunks_that_carry_everything_an_executor_needs(graph, sensors, policy_bench):
    sensors()
    bench = policy_bench().up()
    before_ns = bench.node.now_ns()
    bench.run(instruction='close the drawer')
    contract = load_contract('demo_joint_pos')
    chunks = bench.have_chunks(3)[:3]
    for chunk in chunks:
        assert chunk.action_space == ActionChunk.JOINT_POSITION
        assert tuple(chunk.joint_names) == contract.robot.joints
        assert chunk.rows == contract.timing.chunk_rows
        assert chunk.step_dt == pytest.approx(1 / 15)
        assert chunk.contract == 'demo_joint_pos'
        assert chunk.instruction == 'close the drawer'
        assert list(chunk.gripper_names) == ['panda_finger_joint1']
        assert len(chunk.grippers) == chunk.rows
        assert np.isfinite(rows_of(chunk)).all()
        assert np.isfinite(chunk.grippers).all()
        assert not chunk.poses
        assert chunk.inference.sec + chunk.inference.nanosec * 1e-9 > 0
    assert [chunk.sequence for chunk in chunks] == [1, 2, 3]
    assert len({chunk.epoch for chunk in chunks}) == 1
    assert chunks[0].epoch >= before_ns // 10**9


def test_a_chunk_is_stamped_with_the_time_up_to_which_every_input_was_known(graph, sensors, policy_bench):
    drivers = sensors()
    bench = policy_bench().up()
    bench.run()
    for chunk in bench.have_chunks(3)[:3]:
        stamp = stamp_to_ns(chunk.header.stamp)
        published = {name: set(stamps) for name, stamps in drivers.stamps.items()}
        assert stamp in set.union(*published.values())
        assert all(stamp <= max(stamps) for stamps in published.values())
        assert bench.node.now_ns() >= stamp


def test_rows_are_radians_near_where_the_joints_are(graph, sensors, policy_bench):
    drivers = sensors()
    bench = policy_bench().up()
    bench.run()
    first = rows_of(bench.have_chunks(1)[0])[0]
    assert np.abs(first - [0.0, -0.5, 0.0, -2.2, 0.0, 1.8, 0.8]).max() < 0.05  # what the guard allows as a start
    assert drivers.stamps['joint_states']


def test_successive_chunks_are_as_far_apart_as_replan_rows_says(graph, sensors, policy_bench):
    sensors(rate_hz=15.0)
    bench = policy_bench(replan_rows=12).up()
    bench.run()
    steps = np.diff(stamps(bench.have_chunks(4)[:4])) * 1e-9 * 15
    assert steps.min() > 11.5  # the frame that is due may come a little early


def test_permuted_joint_names_make_the_same_chunk(graph, sensors, policy_bench):
    drivers = sensors()
    bench = policy_bench().up()
    bench.run()
    expected = rows_of(bench.have_chunks(1)[0])
    order = [5, 0, 7, 3, 6, 1, 4, 2]

    def permuted(message: JointState) -> JointState:
        names, positions = list(message.name), list(message.position)
        message.name, message.position = [names[i] for i in order], [positions[i] for i in order]
        return message

    drivers.change['joint_states'] = permuted
    seen = len(bench.chunks)
    permuted_chunks = bench.have_chunks(seen + 3)[seen + 1 :]
    for chunk in permuted_chunks:
        np.testing.assert_array_equal(rows_of(chunk), expected)


def test_without_fixed_seed_every_chunk_has_its_own_noise_and_a_run_can_be_repeated(graph, sensors, policy_bench):
    sensors()
    bench = policy_bench(fixed_seed=False, seed=7).up()
    handle, future = bench.run()
    first, second = (rows_of(chunk) for chunk in bench.have_chunks(2)[:2])
    graph.eventually(handle.cancel_goal_async().done)
    bench.outcome(future)
    count = len(bench.chunks)
    bench.run()
    again = [rows_of(chunk) for chunk in bench.have_chunks(count + 2)[count : count + 2]]
    assert np.abs(first - second).max() > 0
    np.testing.assert_array_equal(again, [first, second])


# How a run ends


def test_a_time_limit_ends_the_run_as_a_success(graph, sensors, policy_bench):
    sensors()
    bench = policy_bench().up()
    _, future = bench.run(limit_s=1.5)
    outcome = bench.outcome(future)
    assert outcome.status == GoalStatus.STATUS_SUCCEEDED
    assert outcome.result.reason == Result.TIME_LIMIT
    assert outcome.result.chunks >= 1
    assert 1.5 <= outcome.result.duration.sec + outcome.result.duration.nanosec * 1e-9 < 2.5
    graph.eventually(lambda: bench.statuses[-1].state == PolicyStatus.IDLE)


def test_a_cancel_ends_the_run_even_while_it_infers(graph, sensors, policy_bench):
    sensors()
    bench = policy_bench(replan_rows=1).up()  # a new inference begins as soon as the last has ended
    handle, future = bench.run()
    bench.have_chunks(1)
    graph.eventually(lambda: bench.node.loop.run.phase.value == 'inferring')
    asked = time.monotonic()
    handle.cancel_goal_async()
    outcome = bench.outcome(future)
    assert time.monotonic() - asked < 0.6
    assert outcome.status == GoalStatus.STATUS_CANCELED
    assert outcome.result.reason == Result.CANCELED
    assert outcome.result.chunks == len(bench.chunks)


def test_no_chunk_leaves_after_its_run_has_ended(graph, sensors, policy_bench):
    sensors()
    bench = policy_bench(replan_rows=1).up()
    for _ in range(3):
        count = len(bench.chunks)
        handle, future = bench.run()
        bench.have_chunks(count + 1)
        handle.cancel_goal_async()
        outcome = bench.outcome(future)
        graph.eventually(lambda done=count + outcome.result.chunks: len(bench.chunks) == done)
    last = len(bench.chunks)
    handle, future = bench.run()
    bench.have_chunks(last + 1)  # the next run is under way: whatever the earlier ones had left would have come first
    assert bench.chunks[last].sequence == 1


def test_every_run_is_a_new_epoch(graph, sensors, policy_bench):
    sensors()
    bench = policy_bench().up()
    epochs = []
    for _ in range(3):
        count = len(bench.chunks)
        handle, future = bench.run()
        epochs.append(bench.have_chunks(count + 1)[count].epoch)
        handle.cancel_goal_async()
        bench.outcome(future)
    assert all(later > earlier for earlier, later in pairwise(epochs))


def test_deactivation_ends_the_run_and_says_so_to_its_client(graph, sensors, policy_bench):
    sensors()
    bench = policy_bench().up()
    _, future = bench.run()
    bench.have_chunks(1)
    assert bench.node.transition('deactivate')
    outcome = bench.outcome(future)
    assert outcome.status == GoalStatus.STATUS_ABORTED
    assert outcome.result.reason == Result.DEACTIVATED
    graph.eventually(lambda: bench.statuses[-1].state == PolicyStatus.INACTIVE)
    count = len(bench.statuses)
    assert not bench.ask().accepted  # the answer comes after many status periods
    assert all(status.state == PolicyStatus.INACTIVE for status in bench.statuses[count - 1 :])


@pytest.mark.parametrize('transition', ['deactivate', 'shutdown'])
def test_whatever_ends_the_node_the_client_gets_a_result(graph, sensors, policy_bench, transition):
    sensors()
    bench = policy_bench(replan_rows=1).up()
    _, future = bench.run()
    bench.have_chunks(1)
    assert bench.node.transition(transition)
    assert bench.outcome(future).result.reason == Result.DEACTIVATED


def test_a_fault_of_the_guard_ends_the_run_with_the_guards_words(graph, sensors, policy_bench):
    sensors()
    bench = policy_bench().up()
    guard = bench.client.create_publisher(GuardStatus, 'guard/status', qos.latched())
    _, future = bench.run()
    bench.have_chunks(1)
    guard.publish(GuardStatus(state=GuardStatus.TRACKING, epoch=bench.chunks[0].epoch))
    guard.publish(GuardStatus(state=GuardStatus.FAULT, text='the arm hit something', epoch=bench.chunks[0].epoch))
    outcome = bench.outcome(future)
    assert outcome.status == GoalStatus.STATUS_ABORTED
    assert outcome.result.reason == Result.STOPPED_BY_GUARD
    assert 'the arm hit something' in outcome.result.text


def test_a_guard_that_began_a_newer_epoch_gets_chunks_of_a_later_one(graph, sensors, policy_bench):
    sensors()
    bench = policy_bench().up()
    guard = bench.client.create_publisher(GuardStatus, 'guard/status', qos.latched())
    bench.run()
    epoch = bench.have_chunks(1)[0].epoch
    guard.publish(GuardStatus(state=GuardStatus.WAITING, epoch=epoch + 5))
    graph.eventually(lambda: bench.chunks[-1].epoch == epoch + 6)
    assert next(chunk.sequence for chunk in bench.chunks if chunk.epoch == epoch + 6) == 1


# One at a time


def test_a_second_goal_is_refused_while_the_first_goes_on(graph, sensors, policy_bench):
    sensors()
    bench = policy_bench().up()
    _, future = bench.run()
    bench.have_chunks(1)
    assert not bench.ask(instruction='do something else').accepted
    count = len(bench.chunks)
    bench.have_chunks(count + 1)
    assert not future.done()
    assert bench.chunks[-1].instruction == 'put the red cube in the bowl'


def test_feedback_tells_phase_chunks_and_latency(graph, sensors, policy_bench):
    sensors()
    bench = policy_bench().up()
    bench.run()
    graph.eventually(lambda: any(told.chunks >= 2 for told in bench.feedback))
    told = bench.feedback[-1]
    assert told.phase in {'inferring', 'executing'}
    assert 0 < told.last_latency_s < 10
    assert told.text == ''


def test_the_status_names_instruction_state_and_latencies(graph, sensors, policy_bench):
    sensors()
    bench = policy_bench().up()
    assert bench.statuses[-1].state == PolicyStatus.IDLE
    bench.run(instruction='wave')
    bench.have_chunks(2)
    graph.eventually(lambda: bench.statuses[-1].chunks >= 2)
    status = bench.statuses[-1]
    assert (status.state, status.state_name, status.instruction) == (PolicyStatus.RUNNING, 'RUNNING', 'wave')
    assert {'encode', 'denoise', 'total'} <= set(status.stage_names)
    assert all(0 < p50 <= p95 for p50, p95 in zip(status.stage_p50_s, status.stage_p95_s, strict=True))


# The executor stays free


def answered_in(graph, client, request) -> float:
    started = time.monotonic()
    future = client.call_async(request)
    graph.eventually(future.done)
    return time.monotonic() - started


def test_while_inferring_services_and_parameters_answer_at_once(graph, sensors, policy_bench):
    sensors()
    bench = policy_bench(replan_rows=1).up()
    state = bench.client.create_client(GetState, 'policy/get_state')
    parameters = bench.client.create_client(GetParameters, 'policy/get_parameters')
    graph.eventually(lambda: state.service_is_ready() and parameters.service_is_ready())
    bench.run()
    bench.have_chunks(1)
    seconds = []
    for _ in range(8):
        graph.eventually(lambda: bench.node.loop.run.phase.value == 'inferring')
        seconds.append(answered_in(graph, state, GetState.Request()))
        seconds.append(answered_in(graph, parameters, GetParameters.Request(names=['replan_rows'])))
    assert np.median(seconds) < 0.1
    assert max(seconds) < 0.5  # a shared machine has its moments; inference in the executor would block for all of them


def test_status_keeps_coming_while_inference_is_under_way(graph, sensors, policy_bench):
    sensors()
    bench = policy_bench(replan_rows=1).up()
    bench.run()
    bench.have_chunks(1)
    first = len(bench.statuses)
    graph.eventually(lambda: len(bench.statuses) >= first + 20)
    gaps = np.diff([stamp_to_ns(status.header.stamp) for status in bench.statuses[first:]]) * 1e-9
    assert np.median(gaps) < 0.2  # one every 0.1 s, where an inference takes longer than that


# Parameters


def test_every_parameter_tells_what_it_does(graph, policy_bench):
    bench = policy_bench()
    client = bench.client.create_client(DescribeParameters, 'policy/describe_parameters')
    graph.eventually(client.service_is_ready)
    future = client.call_async(DescribeParameters.Request(names=[parameter.name for parameter in PARAMETERS]))
    graph.eventually(future.done)
    for parameter, descriptor in zip(PARAMETERS, future.result().descriptors, strict=True):
        assert len(descriptor.description) > 15, parameter.name
        assert descriptor.read_only == parameter.read_only, parameter.name
        if parameter.name.endswith('_s'):
            assert '[s]' in descriptor.description, parameter.name
        if parameter.minimum is not None:
            assert descriptor.integer_range or descriptor.floating_point_range, parameter.name


# By name, a value other than the default, and where it has to arrive.
CHANGES = {
    'replan_rows': (3, lambda loop: loop.options.replan_rows == 3),
    'execute_rows': (12, lambda loop: loop.options.execute_rows == 12),
    'input_timeout_s': (0.7, lambda loop: loop.options.input_timeout_ns == 700 * MS),
    'server_timeout_s': (9.0, lambda loop: loop.options.server_timeout_ns == 9000 * MS),
    'seed': (41, lambda loop: loop.options.seed == 41),
    'fixed_seed': (False, lambda loop: loop.options.fixed_seed is False),
}


@pytest.mark.parametrize('parameter', [p for p in PARAMETERS if not p.read_only], ids=lambda p: p.name)
def test_a_parameter_that_can_be_changed_takes_effect(graph, policy_bench, parameter):
    value, arrived = CHANGES[parameter.name]
    bench = policy_bench().up()
    assert not arrived(bench.node.loop)
    client = bench.client.create_client(SetParameters, 'policy/set_parameters')
    graph.eventually(client.service_is_ready)
    change = RosParameter(parameter.name, value=value).to_parameter_msg()
    future = client.call_async(SetParameters.Request(parameters=[change]))
    graph.eventually(future.done)
    assert future.result().results[0].successful
    assert arrived(bench.node.loop)


@pytest.mark.parametrize('parameter', [p for p in PARAMETERS if p.read_only], ids=lambda p: p.name)
def test_a_parameter_that_is_read_only_refuses_a_change(graph, policy_bench, parameter):
    bench = policy_bench()
    value = bench.node.get_parameter(parameter.name).value
    other = not value if isinstance(value, bool) else value + type(value)(0.25) if isinstance(value, float) else 'other'
    result = bench.node.set_parameters([RosParameter(parameter.name, value=other)])[0]
    assert not result.successful
    assert bench.node.get_parameter(parameter.name).value == value


def test_a_new_seed_changes_the_next_chunk(graph, sensors, policy_bench):
    sensors()
    bench = policy_bench(replan_rows=1).up()
    bench.run()
    before = rows_of(bench.have_chunks(1)[0])
    assert bench.node.set_parameters([RosParameter('seed', value=5)])[0].successful
    count = len(bench.chunks)
    after = rows_of(bench.have_chunks(count + 3)[-1])
    assert np.abs(after - before).max() > 0


def test_with_a_record_directory_every_chunk_leaves_its_latents(graph, sensors, policy_bench, tmp_path):
    sensors()
    bench = policy_bench(record_directory=str(tmp_path / 'latents')).up()
    bench.run()
    chunk = bench.have_chunks(1)[0]
    path = tmp_path / 'latents' / f'chunk_{chunk.epoch}_{chunk.sequence:05d}.npz'
    graph.eventually(path.is_file)
    assert bench.node.transition('deactivate')
    bench.node.loop.close()  # whatever is being written is complete then
    with np.load(path) as kept:
        np.testing.assert_allclose(kept['actions'][:, :7], rows_of(chunk), atol=1e-6)
        assert kept['stamp_ns'] == stamp_to_ns(chunk.header.stamp)
        assert kept['latents'].dtype == np.float16
        assert np.isfinite(kept['latents']).all()


def test_drivers_without_stamps_can_be_served_by_the_time_of_arrival(graph, sensors, policy_bench):
    drivers = sensors()

    def without_stamp(message):
        message.header.stamp.sec = message.header.stamp.nanosec = 0
        return message

    drivers.change = dict.fromkeys(drivers.stamps, without_stamp)
    bench = policy_bench(timeline='receive')
    before = bench.node.now_ns()
    bench.up().run()
    assert stamp_to_ns(bench.have_chunks(1)[0].header.stamp) > before


# Lifecycle


def test_the_whole_life_can_be_lived_twice(graph, sensors, policy_bench):
    sensors()
    bench = policy_bench()
    threads = threading.active_count()
    for _ in range(2):
        bench.up()
        count = len(bench.chunks)
        bench.run()
        bench.have_chunks(count + 1)
        assert bench.node.transition('deactivate')
        assert bench.node.transition('cleanup')
        assert bench.node.loop is None
        graph.eventually(lambda: not bench.goals.server_is_ready())
    assert not [t for t in threading.enumerate() if t.name == 'policy']
    assert threading.active_count() <= threads + 4  # the executor's own threads start on demand


def test_a_second_activation_starts_with_empty_buffers_and_counts(graph, sensors, policy_bench):
    drivers = sensors()
    bench = policy_bench().up()
    bench.run()
    bench.have_chunks(1)
    drivers.close()

    def activated_anew_and_empty() -> bool:
        """What was on its way when the drivers fell silent may still come once."""
        assert bench.node.transition('deactivate')
        assert bench.node.transition('activate')
        return all(buffer.newest_stamp_ns() is None for buffer in bench.node.loop.inputs.buffers)

    graph.eventually(activated_anew_and_empty)
    count = len(bench.statuses)
    graph.eventually(lambda: len(bench.statuses) > count and bench.statuses[-1].state == PolicyStatus.IDLE)
    assert bench.statuses[-1].chunks == 0
    assert bench.statuses[-1].text == ''
    bench.run()
    graph.eventually(lambda: len(bench.statuses[-1].missing_or_stale) == 4)
    assert all('(never received)' in item for item in bench.statuses[-1].missing_or_stale)


# Time


def test_with_simulated_time_chunks_are_stamped_with_it(graph, sensors, policy_bench):
    sensors(clock_ns=100 * 10**9)
    bench = policy_bench(use_sim_time=True).up()
    bench.run()
    stamps_s = [stamp / 1e9 for stamp in stamps(bench.have_chunks(2)[:2])]
    assert all(100 < stamp < 200 for stamp in stamps_s)
    assert stamps_s[1] - stamps_s[0] > 7.5 / 15
    assert bench.chunks[0].epoch in range(100, 200)


def test_a_run_from_before_the_clock_is_heard_begins_with_it(graph, sensors, policy_bench):
    bench = policy_bench(use_sim_time=True).up()
    _, future = bench.run(limit_s=8.0)
    graph.eventually(lambda: any('/clock' in one.text for one in bench.feedback))
    assert bench.feedback[-1].elapsed.sec == 0
    sensors(clock_ns=100 * 10**9)
    assert bench.have_chunks(2)[0].epoch in range(100, 200)
    assert bench.feedback[-1].elapsed.sec < 60
    assert 8 <= bench.outcome(future).result.duration.sec < 60


def test_after_a_jump_back_of_the_clock_nothing_of_before_counts(graph, sensors, policy_bench):
    drivers = sensors(clock_ns=100 * 10**9)
    bench = policy_bench(use_sim_time=True).up()
    bench.run(limit_s=3600.0)
    before = bench.have_chunks(1)[0].epoch
    drivers.clock_ns = 20 * 10**9
    graph.eventually(lambda: stamp_to_ns(bench.chunks[-1].header.stamp) < 100 * 10**9, 15.0)
    late = [chunk for chunk in bench.chunks if stamp_to_ns(chunk.header.stamp) < 100 * 10**9]
    assert all(chunk.epoch > before for chunk in late)
    assert late[0].sequence == 1
    assert all(stamp >= 20 * 10**9 for stamp in stamps(late))
    graph.eventually(lambda: bench.feedback[-1].chunks >= 2)
    assert 0 <= bench.feedback[-1].elapsed.sec < 60


def test_a_time_limit_holds_in_simulated_time_across_a_jump_back(graph, sensors, policy_bench):
    drivers = sensors(clock_ns=100 * 10**9)
    bench = policy_bench(use_sim_time=True).up()
    _, future = bench.run(limit_s=8.0)  # a busy machine takes seconds for the first chunk
    bench.have_chunks(1)
    drivers.clock_ns = 20 * 10**9
    assert bench.outcome(future).result.reason == Result.TIME_LIMIT
