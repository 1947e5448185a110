"""Promises for bad input to the policy node: it is named, nothing comes of it, and good input afterwards works."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from action_msgs.msg import GoalStatus
from sensor_msgs.msg import Image, JointState

from cosmos3_msgs.action import RunPolicy
from cosmos3_msgs.msg import PolicyStatus
from cosmos3_ros.diagnostics import DiagnosticStatusWrapper

Result = RunPolicy.Result


def without_joint(message: JointState) -> JointState:
    index = list(message.name).index('panda_joint4')
    for field in ('name', 'position', 'velocity'):
        values = list(getattr(message, field))
        del values[index]
        setattr(message, field, values)
    return message


def named_twice(message: JointState) -> JointState:
    message.name = ['panda_joint1' if name == 'panda_joint2' else name for name in message.name]
    return message


def with_nan(message: JointState) -> JointState:
    message.position[2] = math.nan
    return message


def too_short(message: JointState) -> JointState:
    message.position = list(message.position)[:-1]
    return message


def other_encoding(message: Image) -> Image:
    message.encoding = 'yuv422'
    return message


def truncated(message: Image) -> Image:
    message.data = message.data[:-100]
    return message


def without_pixels(message: Image) -> Image:
    message.height = message.width = message.step = 0
    message.data = []
    return message


def wrong_step(message: Image) -> Image:
    message.step = message.width
    return message


def from_the_future(message: Image) -> Image:
    message.header.stamp.sec += 60
    return message


def without_stamp(message: Image) -> Image:
    message.header.stamp.sec = message.header.stamp.nanosec = 0
    return message


FAULTS = [
    ('joint_states', without_joint, ['joint_states/panda_joint4: joint is missing']),
    ('joint_states', named_twice, ['joint_states/panda_joint1: joint is named 2 times', 'joint_states/panda_joint2']),
    ('joint_states', with_nan, ['joint_states/panda_joint3: position is not a number, got nan']),
    ('joint_states', too_short, ['position does not match the names']),
    ('wrist', other_encoding, ["camera/wrist/image_raw: unknown encoding, got 'yuv422'"]),
    ('wrist', truncated, ['camera/wrist/image_raw: too little data']),
    ('exterior_1', without_pixels, ['camera/exterior_1/image_raw: picture without pixels']),
    ('exterior_2', wrong_step, ['camera/exterior_2/image_raw: row step too small']),
    ('wrist', from_the_future, ['wrist (only from the future']),
    ('wrist', without_stamp, ['wrist (stale']),
]


@pytest.mark.parametrize(('stream', 'spoil', 'texts'), FAULTS, ids=[f'{f[0]}-{f[1].__name__}' for f in FAULTS])
def test_a_faulty_message_is_named_and_makes_no_chunk_until_good_ones_come(
    graph, sensors, policy_bench, stream, spoil, texts
):
    drivers = sensors()
    drivers.change[stream] = spoil
    bench = policy_bench().up()
    bench.run()

    def is_told(items: list[str]) -> bool:
        """Whether this stream, and no other, is reported with what is wrong with it."""
        return len(items) == 1 and items[0].startswith(f'{stream} (') and all(text in items[0] for text in texts)

    graph.eventually(lambda: is_told(bench.statuses[-1].missing_or_stale))
    assert bench.statuses[-1].state == PolicyStatus.WAITING
    graph.eventually(lambda: bool(bench.feedback) and is_told([bench.feedback[-1].text]))
    assert bench.chunks == []
    drivers.change.clear()
    bench.have_chunks(1)
    graph.eventually(lambda: bench.statuses[-1].state == PolicyStatus.RUNNING)
    assert not bench.statuses[-1].missing_or_stale


def test_a_fault_is_logged_once_and_shown_in_diagnostics(graph, sensors, policy_bench, capfd):
    drivers = sensors(rate_hz=50.0)
    drivers.change['wrist'] = other_encoding
    bench = policy_bench().up()
    count = len(drivers.stamps['wrist'])
    graph.eventually(lambda: len(drivers.stamps['wrist']) > count + 30)
    graph.eventually(lambda: 'wrist' in bench.node.loop.inputs.rejected)
    assert capfd.readouterr().err.count('wrist: message ignored.') == 1
    stat = bench.node._report_policy(DiagnosticStatusWrapper())
    assert "unknown encoding, got 'yuv422'" in stat.message
    assert stat.level == b'\2'


def silent(_message: Any) -> None:
    return None


@pytest.mark.parametrize('stream', ['exterior_2', 'joint_states'])
def test_a_stream_that_stops_ends_the_run_after_the_timeout_with_its_name(graph, sensors, policy_bench, stream):
    drivers = sensors()
    bench = policy_bench(input_timeout_s=0.8).up()
    _, future = bench.run()
    bench.have_chunks(1)
    drivers.change[stream] = silent
    graph.eventually(
        lambda: [item.startswith(f'{stream} (stale, ') for item in bench.statuses[-1].missing_or_stale] == [True]
    )
    assert bench.statuses[-1].state == PolicyStatus.WAITING
    outcome = bench.outcome(future)
    assert outcome.status == GoalStatus.STATUS_ABORTED
    assert outcome.result.reason == Result.STALE_INPUT
    assert f'{stream} (stale, ' in outcome.result.text
    assert 'exterior_1' not in outcome.result.text
    assert outcome.result.chunks == len(bench.chunks)


def test_a_camera_that_comes_back_in_time_ends_the_waiting(graph, sensors, policy_bench):
    drivers = sensors()
    bench = policy_bench(input_timeout_s=30.0).up()
    _, future = bench.run()
    bench.have_chunks(1)
    drivers.change['wrist'] = silent
    graph.eventually(lambda: bench.statuses[-1].state == PolicyStatus.WAITING)
    count = len(bench.chunks)
    drivers.change.clear()
    bench.have_chunks(count + 1)
    graph.eventually(lambda: bench.statuses[-1].state == PolicyStatus.RUNNING)
    assert not future.done()


# Instructions


@pytest.mark.parametrize(
    ('instruction', 'text'),
    [
        ('', 'instruction: is empty'),
        (' \n', 'instruction: is empty'),
        ('x ' * 10_000, 'instruction: is too long'),
        ('猫' * 20_000, 'instruction: is too long'),
    ],
    ids=['empty', 'blank', '20000 characters', '20000 ideographs'],
)
def test_an_instruction_of_the_wrong_length_is_refused_with_a_reason_and_the_node_lives_on(
    graph, sensors, policy_bench, capfd, instruction, text
):
    sensors()
    bench = policy_bench().up()
    assert not bench.ask(instruction=instruction).accepted
    log = capfd.readouterr().err
    assert 'run_policy goal refused: ' in log
    assert text in log
    assert len(log) < 5_000, 'the refusal does not repeat the whole instruction'
    bench.run()
    bench.have_chunks(1)


def test_a_negative_time_limit_is_refused(graph, policy_bench, capfd):
    bench = policy_bench().up()
    assert not bench.ask(limit_s=-1.0).accepted
    assert 'time_limit is negative (-1 s)' in capfd.readouterr().err


def test_a_goal_for_an_inactive_node_is_refused(graph, policy_bench, capfd):
    bench = policy_bench()
    assert bench.node.transition('configure')
    graph.eventually(bench.goals.server_is_ready)
    assert not bench.ask().accepted
    assert 'the node is not active' in capfd.readouterr().err


# Checkpoints and contracts


def copy(checkpoint: Path, folder: Path) -> Path:
    return Path(shutil.copytree(checkpoint, folder / 'checkpoint'))


def shard(checkpoint: Path) -> Path:
    return sorted((checkpoint / 'transformer').glob('*.safetensors'))[0]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ('damage', 'text'),
    [(truncate, 'truncated'), (Path.unlink, 'missing')],
    ids=['truncated', 'missing'],
)
def test_a_damaged_shard_fails_configuration_by_file_and_tensor_and_a_whole_one_mends_it(
    graph, sensors, policy_bench, tiny_checkpoint, tmp_path, damage: Callable[[Path], None], text
):
    drivers = sensors()
    checkpoint = copy(tiny_checkpoint, tmp_path)
    file = shard(checkpoint)
    whole = file.read_bytes()
    damage(file)
    bench = policy_bench(checkpoint)
    assert not bench.node.transition('configure')
    failure = bench.node.last_failure
    assert f'transformer/{file.name}' in failure
    assert text in failure
    assert '.weight' in failure, 'tensors are named'
    assert bench.node.state_label == 'unconfigured'
    assert not bench.node.transition('activate')
    count = len(drivers.stamps['wrist'])
    graph.eventually(lambda: len(drivers.stamps['wrist']) > count + 5)
    assert bench.chunks == []
    assert bench.statuses == []
    file.write_bytes(whole)
    bench.up().run()
    bench.have_chunks(1)


def contract_file(folder: Path, change: Callable[[dict[str, Any]], None]) -> str:
    shipped = Path(__file__).resolve().parents[2] / 'config' / 'contracts' / 'demo_joint_pos.yaml'
    data = yaml.safe_load(shipped.read_text(encoding='utf-8'))
    change(data)
    path = folder / 'contract.yaml'
    path.write_text(yaml.safe_dump(data), encoding='utf-8')
    return str(path)


def test_a_contract_for_other_checkpoints_fails_configuration_with_every_difference(graph, policy_bench, tmp_path):
    def change(data: dict[str, Any]) -> None:
        data['checkpoint']['families'] = ['super']
        data['embodiment']['domain'] = 'no_such_robot'

    bench = policy_bench(contract=contract_file(tmp_path, change))
    assert not bench.node.transition('configure')
    assert 'no_such_robot' in bench.node.last_failure
    path = contract_file(tmp_path, lambda data: data['checkpoint'].update(families=['super']))
    bench = policy_bench(contract=path)
    assert not bench.node.transition('configure')
    assert 'checkpoint.families' in bench.node.last_failure
    assert 'nano' in bench.node.last_failure


def test_a_faulty_contract_fails_configuration_with_all_its_faults_and_can_be_mended(graph, policy_bench, tmp_path):
    def change(data: dict[str, Any]) -> None:
        data['timing']['fps'] = -15
        data['sampler']['steps'] = 'four'
        del data['robot']['joints']

    path = contract_file(tmp_path, change)
    bench = policy_bench(contract=path)
    assert not bench.node.transition('configure')
    for where in ('timing.fps', 'sampler.steps', 'robot.joints'):
        assert where in bench.node.last_failure
    contract_file(tmp_path, lambda data: None)
    bench.up()


def test_a_contract_with_history_is_refused_with_a_way_out(graph, policy_bench, tmp_path):
    bench = policy_bench(contract=contract_file(tmp_path, lambda data: data['embodiment'].update(history_rows=3)))
    assert not bench.node.transition('configure')
    assert 'embodiment.history_rows: the policy node does not keep executed rows' in bench.node.last_failure


@pytest.mark.parametrize(
    ('parameter', 'value', 'text'),
    [
        ('contract', 'no_such_contract', 'no_such_contract'),
        ('checkpoint', 'nowhere/at/all', 'nowhere/at/all'),
        ('device', 'abacus', 'abacus'),
        ('record_directory', '/proc/no/such/place', 'record_directory'),
    ],
)
def test_a_parameter_that_leads_nowhere_fails_configuration_with_its_value(graph, policy_bench, parameter, value, text):
    values = {parameter: value}
    bench = policy_bench(Path(values.pop('checkpoint')), **values) if 'checkpoint' in values else policy_bench(**values)
    assert not bench.node.transition('configure')
    assert text in bench.node.last_failure
    assert bench.node.state_label == 'unconfigured'
    assert bench.node.loop is None
