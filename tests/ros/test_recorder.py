"""Promises of the recorder: a bag gives a policy what the graph gave it, to the bit, and survives whatever ends it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rclpy.parameter import Parameter as RosParameter
from rclpy.qos import QoSReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from cosmos3_msgs.msg import ActionChunk, ChunkDecision, GuardStatus
from cosmos3_ros import qos
from cosmos3_ros.cli import main
from cosmos3_ros.conversions import joint_state, ns_to_stamp, rgb_to_image, stamp_to_ns
from cosmos3_ros.diagnostics import ERROR, OK, DiagnosticStatusWrapper
from cosmos3_ros.recorder import BagThread, RecorderNode
from cosmos3_ros.recorder_bag import CUSTOM_CONTRACT, BagWriter
from cosmos3_ros.recorder_dataset import BagOrder, dataset_from_bag
from cosmos3_ros.recorder_reader import RunBag, observations
from cosmos3_ros.recorder_recovery import recover
from cosmos3_ros.recorder_topics import recorded_topics
from engine.contract import load_contract
from engine.errors import InvalidInput
from engine.evaluation.recordings import open_recording
from engine.policy_observation import Observation
from tests.ros.conftest import ARM, FINGER, VIEWS

S = 1_000_000_000
STEP = S // 15


@pytest.fixture(scope='session')
def contract():
    return load_contract('demo_joint_pos')


class Drivers:
    """Cameras and joint states that change all the time, one moment after another, each when it is told to."""

    def __init__(self, graph) -> None:
        self.node = graph.node('drivers')
        self.rng = np.random.default_rng(3)
        self.cameras = {v: self.node.create_publisher(Image, f'camera/{v}/image_raw', qos.sensor()) for v in VIEWS}
        self.joints = self.node.create_publisher(JointState, 'joint_states', qos.sensor(10))
        self.stamps: list[int] = []

    def publish(self) -> int:
        """One picture of each camera, each a little earlier than the next, and joint states."""
        now = self.node.get_clock().now().nanoseconds
        for late, (view, publisher) in enumerate(self.cameras.items()):
            picture = self.rng.integers(0, 256, (90, 160, 3), np.uint8)
            publisher.publish(rgb_to_image(picture, ns_to_stamp(now + late * 1_000_000), view))
        positions = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.8, 0.8, 0.03]) + self.rng.uniform(-0.01, 0.01, 8)
        self.joints.publish(joint_state((*ARM, FINGER), positions, ns_to_stamp(now), np.zeros(8)))
        self.stamps.append(now)
        return now


def recorder(graph, folder: Path, **parameters: Any) -> RecorderNode:
    values = {'contract': 'demo_joint_pos', 'directory': str(folder), **parameters}
    node = graph.add(RecorderNode(parameter_overrides=[RosParameter(k, value=v) for k, v in values.items()]))
    assert node.transition('configure'), node.last_failure
    assert node.transition('activate'), node.last_failure
    return node


def arrived(inputs, node: RecorderNode, stamp_ns: int) -> bool:
    """Whether everything published at a moment has reached the policy and the bag."""
    roles = {*(f'view.{view}' for view in VIEWS), 'joint_states'}
    taken = all(node.tally.last.get(role, 0) > stamp_ns for role in roles)
    return taken and all((buffer.newest_stamp_ns() or 0) >= stamp_ns for buffer in inputs.buffers)


def same(first: Observation, second: Observation) -> None:
    assert first.images.keys() == second.images.keys()
    for view, picture in first.images.items():
        np.testing.assert_array_equal(picture, second.images[view])
    np.testing.assert_array_equal(first.joint_positions, second.joint_positions)
    assert first.gripper_position == second.gripper_position
    assert first.instruction == second.instruction


def test_a_bag_gives_the_policy_what_the_graph_gave_it_to_the_bit(graph, policy_bench, tmp_path):
    bench = policy_bench().up()
    node = recorder(graph, tmp_path)
    loop, live = bench.node.loop, {}
    observe = loop.inputs.observe

    def watched(now_ns, instruction):
        found = observe(now_ns, instruction)
        if isinstance(found[0], Observation):
            live[found[1].reference_ns] = found[0]
        return found

    loop.inputs.observe = watched
    drivers = Drivers(graph)
    graph.eventually(lambda: all(p.get_subscription_count() == 2 for p in (*drivers.cameras.values(), drivers.joints)))
    bench.run()
    while len(bench.chunks) < 2:
        stamp = drivers.publish()
        # Each moment has arrived everywhere before the next begins: what is lost on the way is not the question here.
        graph.eventually(lambda s=stamp: arrived(loop.inputs, node, s))
    assert node.transition('deactivate')
    with RunBag(node.bag) as bag:
        stamps = sorted({stamp_to_ns(one.message.header.stamp) for one in bag.messages('chunk')})
        chunks = {stamp_to_ns(one.message.header.stamp): one.message for one in bag.messages('chunk')}
        again = dict(observations(bag, stamps, 'put the red cube in the bowl'))
    assert len(stamps) >= 2
    for stamp in stamps:
        same(live[stamp], again[stamp][0])
    policy, stamp = loop.policy, stamps[-1]
    actions = policy.infer(again[stamp][0], 0).actions.astype(np.float64)
    np.testing.assert_array_equal(np.asarray(chunks[stamp].positions).reshape(-1, 7), actions[:, :7])


def test_a_recorded_bag_holds_the_contract_and_every_topic_of_the_run(graph, contract, tmp_path):
    node = recorder(graph, tmp_path)
    drivers = Drivers(graph)
    graph.eventually(lambda: all(p.get_subscription_count() for p in (*drivers.cameras.values(), drivers.joints)))
    drivers.publish()
    graph.eventually(lambda: node.tally.written >= 4)
    assert node.transition('deactivate')
    with RunBag(node.bag) as bag:
        assert bag.contract == contract
        assert bag.contract_text == Path(contract.source).read_text()
        assert set(bag.topics.values()) == {one.role for one in recorded_topics(contract)}
        assert {one.role for one in bag.messages()} == {*(f'view.{view}' for view in VIEWS), 'joint_states'}
    assert CUSTOM_CONTRACT in (node.bag / 'metadata.yaml').read_text()
    assert node.transition('activate'), 'each activation makes a bag'
    assert node.transition('deactivate')
    assert len(list(tmp_path.glob('run_*/metadata.yaml'))) == 2


def test_a_folder_that_cannot_be_written_fails_the_configuration(graph, tmp_path):
    (tmp_path / 'file').write_text('')
    node = graph.add(
        RecorderNode(
            parameter_overrides=[
                RosParameter('contract', value='demo_joint_pos'),
                RosParameter('directory', value=str(tmp_path / 'file')),
            ]
        )
    )
    assert not node.transition('configure')
    assert 'cannot be written to' in node.last_failure


def test_a_killed_recorder_leaves_a_bag_that_can_be_completed(graph, program, sensors, tmp_path):
    options = {'contract': 'demo_joint_pos', 'directory': str(tmp_path), 'autostart': 'true', 'sync_period_s': '0.05'}
    arguments = [part for name, value in options.items() for part in ('-p', f'{name}:={value}')]
    process = program('-m', 'cosmos3_ros.recorder_process', '--ros-args', *arguments)
    process.wait_for('recording to', 60.0)
    (path,) = tmp_path.glob('run_*')
    (file,) = path.glob('*.mcap')
    # At a camera's pace: as fast as it goes, every picture can get lost in shared memory that has room for a dozen.
    drivers = sensors(rate_hz=50.0)
    sizes = [0]

    def grows() -> bool:
        sizes.append(file.stat().st_size)
        return sum(2_000_000 < before < size for before, size in pairwise(sizes)) >= 2

    # And then more: of the piece that is being written a kill leaves nothing to be had.
    graph.eventually(grows, what='two megabytes on disk')
    process.end(signal.SIGKILL)
    drivers.close()
    with pytest.raises(InvalidInput, match='cosmos3 dataset recover'):
        RunBag(path)
    found = recover(path)
    with RunBag(path) as bag:
        assert bag.contract.name == 'demo_joint_pos'
        messages = list(bag.messages())
    assert len(messages) + 1 == found.messages
    assert sum(len(one.message.data) for one in messages if one.role.startswith('view.')) > 1_500_000


def test_a_disk_that_cannot_keep_up_costs_messages_and_nobody_time(contract, tmp_path):
    bag = BagWriter(tmp_path / 'bag', {'/joint_states': 'sensor_msgs/msg/JointState'}, about(contract), S)
    thread = BagThread(bag, 1.0, 1000)
    thread.put('joint_states', '/joint_states', S, bytes(1001))
    assert (thread.tally.dropped, thread.tally.backlog) == (1, 0)
    thread.put('joint_states', '/joint_states', S, serialize_message(JointState()))
    thread.close()
    assert (thread.tally.written, thread.tally.failure) == (1, '')


def fill_disk(bag: BagWriter) -> None:
    """From now on the disk is full."""
    bag._writer.storage.bio.flush()
    bag._writer.storage.bio = os.fdopen(os.open('/dev/full', os.O_WRONLY), 'wb')


@pytest.mark.parametrize('moment', ['while it runs', 'at its end'])
def test_a_full_disk_ends_the_bag_and_nothing_waits_for_it_any_more(contract, tmp_path, moment):
    bag, told = BagWriter(tmp_path / 'bag', {'/joint_states': 'sensor_msgs/msg/JointState'}, about(contract), S), []
    thread = BagThread(bag, 0.01 if moment == 'while it runs' else 60.0, 10**6, told.append)
    fill_disk(bag)
    for number in range(3):
        thread.put('joint_states', '/joint_states', S + number, serialize_message(JointState()))
    if moment == 'while it runs':
        thread._thread.join(30.0)
    thread.close()
    tally = thread.tally
    assert 'No space left' in tally.failure
    assert 'Traceback' in told[0]
    assert (tally.backlog, thread._queue.qsize() <= 1) == (0, True), 'what waited is let go'
    thread.put('joint_states', '/joint_states', 2 * S, bytes(10))
    assert tally.written + tally.dropped == 4
    assert recover(tmp_path / 'bag').messages == 1, 'the file is let go, and what was on the disk is there'


def test_diagnostics_and_the_log_say_that_nothing_is_written_any_more(graph, tmp_path, capfd):
    node = recorder(graph, tmp_path, sync_period_s=0.05)
    fill_disk(node._thread._bag)
    drivers = Drivers(graph)
    graph.eventually(lambda: bool(drivers.publish()) and bool(node.tally.failure), what='a failure')
    assert node.transition('deactivate')
    stat = node._report(DiagnosticStatusWrapper())
    assert (stat.level, 'nothing is written any more' in stat.message) == (ERROR, True), 'also afterwards'
    told = capfd.readouterr().err
    assert 'the rest of the run is lost:\nTraceback' in told
    assert 'cosmos3 dataset recover' in told
    assert node.transition('activate'), 'another bag can be tried'
    assert node._report(DiagnosticStatusWrapper()).level == OK


def test_profiles_of_the_recorder_can_be_overridden_like_those_of_every_node(graph, tmp_path):
    node = recorder(graph, tmp_path, **{'qos_overrides./joint_states.subscription.reliability': 'reliable'})
    profiles = {one.topic_name: one.qos_profile for one in node.subscriptions}
    assert profiles['/joint_states'].reliability is QoSReliabilityPolicy.RELIABLE
    assert profiles['/camera/wrist/image_raw'].reliability is QoSReliabilityPolicy.BEST_EFFORT


# ---- Bags that are made up ------------------------------------------------------------------------------------------


def about(contract) -> dict[str, Any]:
    topics = {one.role: f'/{one.name}' for one in recorded_topics(contract)}
    return {'contract': Path(contract.source).read_text(), 'topics': topics}


def moved(time_ns: int) -> np.ndarray:
    """Where the arm is told to be at a time."""
    return np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.8, 0.8]) + 0.1 * (time_ns / S - 10.0)


def command(time_ns: int) -> JointTrajectory:
    message = JointTrajectory(joint_names=list(ARM))
    message.header.stamp = ns_to_stamp(time_ns)
    for ahead in (10, 20, 30):
        point = JointTrajectoryPoint(positions=moved(time_ns + ahead * 1_000_000).tolist())
        point.time_from_start.nanosec = ahead * 1_000_000
        message.points.append(point)
    return message


def chunk(time_ns: int, sequence: int, instruction: str) -> ActionChunk:
    message = ActionChunk(epoch=1, sequence=sequence, step_dt=1 / 15, rows=32, instruction=instruction)
    message.header.stamp = ns_to_stamp(time_ns)
    return message


def picture(index: int, view: int) -> np.ndarray:
    return np.full((48, 64, 3), (7 * index + 40 * view) % 200 + 20, np.uint8)


def guard_says(states: dict[float, str], end_s: float) -> list[tuple[int, str, Any]]:
    """Status ten times a second; `states` are the guard's from a time on, s after the beginning."""
    found = []
    for t in range(10 * S, 10 * S + round(end_s * S), S // 10):
        (state,) = [name for since, name in states.items() if since * S <= t - 10 * S][-1:]
        message = GuardStatus(state_name=state)
        message.header.stamp = ns_to_stamp(t)
        found.append((t, '/guard/status', message))
    return found


def make_bag(
    path: Path,
    contract,
    *,
    seconds: float = 4.0,
    silent: tuple[float, float] = (9, 9),
    commands=True,
    words='do it',
    accepted: Callable[[float], bool] | None = None,
    states: dict[float, str] | None = None,
    guard_s: float = 9,
) -> Path:
    """A run that begins at 10 s: cameras at 15 Hz, joints and commands at 100 Hz, a chunk twice a second."""
    start, end = 10 * S, 10 * S + round(seconds * S)
    events: list[tuple[int, str, Any]] = []
    for index in range(round(seconds * 15)):
        t = start + round(index * S / 15)
        if not silent[0] <= (t - start) / S < silent[1]:
            events += [
                (t, f'/camera/{v}/image_raw', rgb_to_image(picture(index, n), ns_to_stamp(t), v))
                for n, v in enumerate(VIEWS)
            ]
    for t in range(start, end, 10_000_000):
        state = joint_state((*ARM, FINGER), np.array([*moved(t), 0.04]), ns_to_stamp(t))
        events.append((t, '/joint_states', state))
        if commands and t >= start + S // 5:
            events.append((t, '/joint_trajectory', command(t)))
    if words:
        events += [(t + 1, '/policy/chunk', chunk(t, n + 1, words)) for n, t in enumerate(range(start, end, S // 2))]
    for t, _, one in [event for event in events if accepted is not None and event[1] == '/policy/chunk']:
        taken = accepted((t - start) / S)
        decision = ChunkDecision(stamp=one.header.stamp, epoch=one.epoch, sequence=one.sequence, accepted=taken)
        events.append((t + 1, '/guard/decision', decision))
    events += guard_says(states, min(seconds, guard_s)) if states is not None else []
    gripper = JointState(name=[FINGER], position=[0.01])
    gripper.header.stamp = ns_to_stamp(start + S)
    events.append((start + S, '/gripper/command', gripper))
    types = {f'/{one.name}': one.type for one in recorded_topics(contract)}
    with BagWriter(path, types, about(contract), start) as bag:
        for t, topic, message in sorted(events, key=lambda event: event[0]):
            bag.write(topic, t, serialize_message(message))
    return path


def test_a_bag_becomes_a_data_set_at_the_rate_of_its_contract(contract, tmp_path):
    made = dataset_from_bag(make_bag(tmp_path / 'bag', contract), tmp_path / 'set', BagOrder())
    assert made.episodes == 1
    assert (tmp_path / 'set/meta/contract.yaml').read_text() == Path(contract.source).read_text()
    with open_recording(tmp_path / 'set') as recording:
        assert (recording.fps, recording.instruction, recording.views) == (15.0, 'do it', VIEWS)
        assert recording.length == made.rows == 57, 'from the first command on'
        first = json.loads((tmp_path / 'set/meta/info.json').read_text())
        assert first['features']['action']['names'] == [*ARM, 'gripper_closed']
        for row in (0, 20, made.rows - 1):
            index = 60 - made.rows + row
            np.testing.assert_allclose(recording.frame(row).views['wrist'].mean(), picture(index, 0).mean(), atol=3)


def test_actions_are_where_the_arm_was_told_to_be_one_row_later(contract, tmp_path):
    dataset_from_bag(make_bag(tmp_path / 'bag', contract), tmp_path / 'set', BagOrder())
    table = pq.read_table(tmp_path / 'set/data/chunk-000/file-000.parquet')
    start = int(pq.read_table(tmp_path / 'set/meta/episodes/chunk-000/file-000.parquet')['start_ns'][0].as_py())
    times = start + np.asarray(table['timestamp'], np.float64) * S
    actions = np.array(table['action'].to_pylist())
    # A line from 10 ms to 10 ms, as the commands are: exact up to the precision of the file.
    known = times + STEP < 14 * S
    wanted = np.stack([moved(t + STEP) for t in times])
    np.testing.assert_allclose(actions[known, :7], wanted[known], atol=1e-5)
    closed = actions[:, 7]
    assert set(np.round(closed[times + STEP < 11 * S - S // 100], 6)) == {0.0}, 'nobody told the gripper anything'
    np.testing.assert_allclose(closed[times + STEP > 11 * S], 0.75, atol=1e-6)


def test_a_gap_ends_an_episode_and_is_told(contract, tmp_path):
    bag = make_bag(tmp_path / 'bag', contract, silent=(1.0, 2.5))
    made = dataset_from_bag(bag, tmp_path / 'set', BagOrder())
    assert made.episodes == 2
    assert any('wrist stale' in note for note in made.left_out)


def spans(root: Path) -> list[tuple[float, float]]:
    """First and last row of each episode of a data set, s on the clock of the stamps."""
    found = []
    for file in sorted((root / 'meta/episodes').rglob('*.parquet')):
        one = pq.read_table(file, columns=['start_ns', 'length']).to_pylist()[0]
        found.append((one['start_ns'] / S, one['start_ns'] / S + (one['length'] - 1) / 15))
    return found


def test_time_that_was_driven_by_no_chunk_the_guard_accepted_is_in_no_episode(contract, tmp_path):
    bag = make_bag(tmp_path / 'bag', contract, accepted=lambda s: s < 1.2)
    dataset_from_bag(bag, tmp_path / 'set', BagOrder())
    ((first, last),) = spans(tmp_path / 'set')
    ends = 11.0 + 32 / 15
    assert first < 10.3
    assert ends - 1.5 / 15 < last <= ends + 1e-3
    refused = make_bag(tmp_path / 'refused', contract, accepted=lambda _: False)
    with pytest.raises(InvalidInput, match='none was played by the guard'):
        dataset_from_bag(refused, tmp_path / 'none', BagOrder(instruction='go'))


def test_an_episode_ends_where_the_guard_stops_and_another_begins_where_it_goes_on(contract, tmp_path):
    states = {0: 'WAITING', 0.5: 'TRACKING', 2.0: 'BRAKING', 2.3: 'HOLDING', 2.8: 'TRACKING'}
    bag = make_bag(tmp_path / 'bag', contract, accepted=lambda _: True, states=states)
    dataset_from_bag(bag, tmp_path / 'set', BagOrder())
    (one, stop), (again, _) = spans(tmp_path / 'set')
    assert abs(one - 10.5) < 1e-3
    assert 12.0 - 2.1 / 15 < stop <= 12.0 - 1 / 15 + 1e-3, 'the action of the last row is not that of the stop'
    assert abs(again - 12.8) < 1e-3


def test_a_guard_that_has_fallen_silent_drives_no_more(contract, tmp_path):
    bag = make_bag(tmp_path / 'bag', contract, states={0: 'TRACKING'}, guard_s=1.0)
    dataset_from_bag(bag, tmp_path / 'set', BagOrder())
    ((_, last),) = spans(tmp_path / 'set')
    assert 11.7 < last < 11.9 + 1e-3


def test_a_bag_without_commands_or_words_is_refused_with_the_way_out(contract, tmp_path):
    silent = make_bag(tmp_path / 'silent', contract, commands=False)
    with pytest.raises(InvalidInput, match='--actions achieved'):
        dataset_from_bag(silent, tmp_path / 'one', BagOrder())
    made = dataset_from_bag(silent, tmp_path / 'one', BagOrder(actions='achieved'))
    assert made.episodes == 1
    wordless = make_bag(tmp_path / 'wordless', contract, words='')
    with pytest.raises(InvalidInput, match='--instruction'):
        dataset_from_bag(wordless, tmp_path / 'two', BagOrder())
    assert dataset_from_bag(wordless, tmp_path / 'two', BagOrder(instruction='go')).episodes == 1
    assert not (tmp_path / 'three').exists()


def test_the_commands_recover_a_bag_and_make_a_data_set_of_it(contract, tmp_path, capsys):
    path = make_bag(tmp_path / 'bag', contract)  # a mebibyte of it is whole
    (path / 'metadata.yaml').unlink()
    file = path / 'bag.mcap'
    file.write_bytes(file.read_bytes()[:-50_000])
    assert main(['dataset', 'from-bag', str(path), '-o', str(tmp_path / 'set')]) == 2
    assert f'cosmos3 dataset recover {path}' in capsys.readouterr().err
    assert main(['dataset', 'recover', str(path)]) == 0
    assert 'incomplete' in capsys.readouterr().out
    assert main(['dataset', 'from-bag', str(path), '-o', str(tmp_path / 'set')]) == 0
    assert main(['dataset', 'doctor', str(tmp_path / 'set'), '--contract', 'demo_joint_pos']) == 0
    assert main(['dataset', 'recover', str(path)]) == 2


def test_a_bag_cut_off_anywhere_gives_its_beginning(contract, tmp_path):
    path, types = tmp_path / 'bag', {'/joint_states': 'sensor_msgs/msg/JointState'}
    bag = BagWriter(path, types, about(contract), S)
    for index in range(40):
        message = joint_state(ARM, np.full(7, float(index)), ns_to_stamp(S + index))
        bag.write('/joint_states', S + index, serialize_message(message))
        if index % 4 == 3:
            bag.sync()
    bag.abandon()
    whole = (path / 'bag.mcap').read_bytes()
    for length in np.linspace(len(whole) * 0.75, len(whole), 9).astype(int):
        shutil.rmtree(path)
        path.mkdir()
        (path / 'bag.mcap').write_bytes(whole[:length])
        found = recover(path)
        with RunBag(path) as cut:
            values = [one.message.position[0] for one in cut.messages()]
        assert values == list(range(len(values)))
        assert len(values) % 4 == 0
        assert found.messages == len(values) + 1
        assert (path / 'bag.mcap.broken').read_bytes() == whole[:length]
    assert len(values) == 40
    with pytest.raises(InvalidInput, match='is complete'):
        recover(path)


def test_a_bag_that_is_still_being_recorded_is_left_alone(contract, tmp_path):
    path = tmp_path / 'bag'
    bag = BagWriter(path, {'/joint_states': 'sensor_msgs/msg/JointState'}, about(contract), S)
    before = {file: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(InvalidInput, match='still being recorded'):
        recover(path)
    assert {file: file.read_bytes() for file in path.iterdir()} == before
    bag.write('/joint_states', 2 * S, serialize_message(JointState()))
    bag.close()
    with RunBag(path) as found:
        assert len(list(found.messages())) == 1


def unfinished(path: Path, contract) -> bytes:
    """A bag whose recorder was killed, with four messages; returns its file."""
    bag = BagWriter(path, {'/joint_states': 'sensor_msgs/msg/JointState'}, about(contract), S)
    for index in range(4):
        bag.write('/joint_states', S + index, serialize_message(JointState()))
    bag.sync()
    bag.abandon()
    return (path / 'bag.mcap').read_bytes()


@pytest.mark.parametrize('moves', range(4))
def test_a_recovery_that_was_interrupted_anywhere_can_be_called_again(contract, tmp_path, monkeypatch, moves):
    path = tmp_path / 'bag'
    original = unfinished(path, contract)
    left, rename = [moves], Path.rename

    def interrupted(self, target):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'rename', interrupted)
        if moves < 3:
            with pytest.raises(KeyboardInterrupt):
                recover(path)
            assert not (path / 'metadata.yaml').exists(), 'what is not complete does not look complete'
        else:
            recover(path)
    if moves < 3:
        assert recover(path).messages == 5
    assert (path / 'bag.mcap.broken').read_bytes() == original
    with RunBag(path) as found:
        assert len(list(found.messages())) == 4
    assert [file.name for file in tmp_path.iterdir()] == ['bag']


def test_a_recovery_overwrites_nothing_that_it_did_not_make(contract, tmp_path):
    path = tmp_path / 'bag'
    original = unfinished(path, contract)
    (path / 'bag.mcap.broken').write_bytes(b'of yesterday')
    with pytest.raises(InvalidInput, match=r'move it, or bag\.mcap, to another folder'):
        recover(path)
    (path / 'bag.mcap.broken').unlink()
    (tmp_path / 'bag.recovering').mkdir()
    (tmp_path / 'bag.recovering/notes.txt').write_text('mine')
    with pytest.raises(InvalidInput, match='in the way'):
        recover(path)
    assert (path / 'bag.mcap').read_bytes() == original
    assert (tmp_path / 'bag.recovering/notes.txt').read_text() == 'mine'


def test_a_bag_without_a_contract_needs_one_to_be_named(contract, tmp_path):
    types = {'/arm/joint_states': 'sensor_msgs/msg/JointState'}
    with BagWriter(tmp_path / 'bag', types, {}, S) as bag:
        bag.write('/arm/joint_states', S, serialize_message(JointState()))
    with pytest.raises(InvalidInput, match='--contract'):
        RunBag(tmp_path / 'bag')
    with RunBag(tmp_path / 'bag', 'demo_joint_pos', 'arm') as found:
        assert found.topics == {'/arm/joint_states': 'joint_states'}
