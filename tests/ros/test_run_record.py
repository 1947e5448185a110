"""What a run's record says of commands, rejections and motion, and how it is told."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cosmos3_ros.guard.limits import RobotLimits, load_limits
from cosmos3_ros.run_record import Decision, RunRecord, SeenChunk, SeenCommand, closest_to_limits
from cosmos3_ros.run_report import imagined_frame, plot_joints, summary_table

HOME = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])


@pytest.fixture(scope='module')
def limits() -> RobotLimits:
    return load_limits('panda')


def command(start: float = 0.0, speed: float = 0.0, acceleration: float = 0.0, joint: int = 1) -> SeenCommand:
    times = start + np.array([0.0, 0.01, 0.02])
    positions = np.tile(HOME, (3, 1))
    positions[:, joint] += speed * (times - start)
    velocities, accelerations = np.zeros((3, 7)), np.zeros((3, 7))
    velocities[:, joint], accelerations[:, joint] = speed, acceleration
    return SeenCommand(times, positions, velocities, accelerations)


def decision(sequence: int, accepted: bool = True, reason: str = 'NONE', jump: float = 0.01) -> Decision:
    return Decision(1, sequence, accepted, reason, '', jump, 0.1)


def test_a_command_within_all_limits_exceeds_none(limits: RobotLimits) -> None:
    assert not any(excess.exceeded for excess in closest_to_limits([command(speed=1.0)], limits))


@pytest.mark.parametrize(('quantity', 'fault'), [('velocity', {'speed': 2.2}), ('acceleration', {'acceleration': 7.6})])
def test_a_command_beyond_a_limit_is_found_and_named(limits: RobotLimits, quantity: str, fault: dict) -> None:
    found = {excess.quantity: excess for excess in closest_to_limits([command(), command(**fault)], limits)}
    assert found[quantity].exceeded
    assert found[quantity].joint == 'panda_joint2'


def test_speed_between_points_counts_even_if_the_command_states_none(limits: RobotLimits) -> None:
    lying = command(speed=2.3)
    lying = SeenCommand(lying.times, lying.positions, np.zeros((3, 7)), lying.accelerations)
    found = {excess.quantity: excess for excess in closest_to_limits([lying], limits)}
    assert found['velocity'].exceeded


def test_a_position_beyond_its_end_is_found_on_either_side(limits: RobotLimits) -> None:
    for end in (limits.lower, limits.upper):
        outside = command()
        outside.positions[:, 3] = end[3] + np.sign(end[3] - HOME[3]) * 0.01
        found = {excess.quantity: excess for excess in closest_to_limits([outside], limits)}
        assert found['position'].exceeded
        assert found['position'].joint == 'panda_joint4'


def test_nothing_commanded_is_close_to_no_limit(limits: RobotLimits) -> None:
    assert closest_to_limits([], limits) == []


def test_rejections_are_counted_by_reason_and_only_accepted_chunks_splice() -> None:
    record = RunRecord(('a',))
    record.decisions += [
        decision(1),
        decision(2, False, 'START_JUMP', np.nan),
        decision(3, False, 'START_JUMP', np.nan),
    ]
    assert record.accepted == 1
    assert record.rejections == {'START_JUMP': 2}
    assert record.largest_splice_jump == 0.01


def test_the_range_of_motion_is_that_of_the_measured_joints() -> None:
    record = RunRecord(('a', 'b'))
    assert record.travelled.tolist() == [0.0, 0.0]
    record.measured += [(0.0, np.array([0.0, 1.0])), (1.0, np.array([0.5, 1.0])), (2.0, np.array([-0.5, 1.0]))]
    assert record.travelled.tolist() == [1.0, 0.0]


def test_the_imagined_frame_is_the_newest_known_chunk_at_that_moment() -> None:
    record = RunRecord(('a',))
    record.chunks += [SeenChunk(1, 1, 10.0, 10.2, 32, None), SeenChunk(1, 2, 10.5, 10.8, 32, None)]
    videos = {
        (1, k): np.full((33, 2, 2, 3), 100 * k, np.uint8) + np.arange(33, dtype=np.uint8)[:, None, None, None]
        for k in (1, 2)
    }
    assert imagined_frame(record, videos, 10.1, 15) is None
    assert imagined_frame(record, videos, 10.4, 15)[0, 0, 0] == 100 + 6
    assert imagined_frame(record, videos, 10.9, 15)[0, 0, 0] == 200 + 6
    assert imagined_frame(record, videos, 99.0, 15)[0, 0, 0] == 200 + 32


def test_the_table_names_a_broken_limit(limits: RobotLimits) -> None:
    record = RunRecord(limits.joint_names)
    record.commands.append(command(speed=2.5))
    console = Console(record=True, width=140, file=io.StringIO())
    console.print(summary_table(record, closest_to_limits(record.commands, limits)))
    assert 'EXCEEDED' in console.export_text()


def test_the_plot_is_written_even_if_nothing_was_commanded(limits: RobotLimits, tmp_path: Path) -> None:
    record = RunRecord(limits.joint_names)
    record.measured += [(t, HOME) for t in np.linspace(5.0, 6.0, 5)]
    plot_joints(record, tmp_path / 'joints.png')
    assert (tmp_path / 'joints.png').stat().st_size > 10_000
