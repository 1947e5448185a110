"""Whatever arrives becomes a chunk in the robot's order, or a rejection; never an exception."""

from __future__ import annotations

import numpy as np
import pytest

from cosmos3_ros.guard import chunk as chunks
from cosmos3_ros.guard.chunk import ReceivedChunk
from cosmos3_ros.guard.reasons import Reason, Rejection

NAMES = ('a', 'b', 'c')
ROWS = np.arange(12.0).reshape(4, 3)


def arrange(chunk, grippers=('g',)):
    return chunks.arrange(chunk, NAMES, grippers)


def received(**changes):
    fields = {
        'stamp_ns': 1000,
        'epoch': 1,
        'sequence': 1,
        'step_ns': 100,
        'joint_names': NAMES,
        'positions': ROWS,
        'gripper': [[0], [0.5], [1], [1]],
        'gripper_names': ('g',),
    }
    return ReceivedChunk(**{**fields, **changes})


def test_a_chunk_in_order_comes_through_unchanged():
    chunk = arrange(received())
    np.testing.assert_array_equal(chunk.positions, ROWS)
    np.testing.assert_array_equal(chunk.gripper, [[0], [0.5], [1], [1]])


def test_permuted_names_permute_the_columns_back():
    chunk = arrange(received(joint_names=('c', 'a', 'b'), positions=ROWS[:, [2, 0, 1]]))
    np.testing.assert_array_equal(chunk.positions, ROWS)
    assert chunk.joint_names == NAMES


def test_the_chunk_keeps_nothing_of_the_senders_memory():
    mine = ROWS.copy()
    chunk = arrange(received(positions=mine))
    mine[:] = 99.0
    np.testing.assert_array_equal(chunk.positions, ROWS)
    with pytest.raises(ValueError, match='read-only'):
        chunk.positions[0, 0] = 1.0


@pytest.mark.parametrize(
    ('names', 'text'),
    [
        (('a', 'b'), 'CHUNK_JOINT_NAMES: c: missing: c'),
        (('a', 'b', 'c', 'd'), 'CHUNK_JOINT_NAMES: d: unknown: d'),
        (('a', 'b', 'x'), 'CHUNK_JOINT_NAMES: c: missing: c; unknown: x'),
        (('a', 'b', 'b'), 'CHUNK_JOINT_NAMES: c: missing: c; named twice: b'),
        ((), 'CHUNK_JOINT_NAMES: a: missing: a, b, c'),
    ],
)
def test_names_that_are_not_the_robots_are_refused_by_name(names, text):
    assert arrange(received(joint_names=names)).text == text


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'positions': ROWS[:, :2]}, 'CHUNK_SHAPE: positions have shape [4, 2], must be [N, 3]'),
        ({'positions': ROWS[0]}, 'CHUNK_SHAPE: positions have shape [3], must be [N, 3]'),
        ({'positions': ROWS[:1]}, 'CHUNK_SHAPE: 1 rows, allowed 2..1024'),
        ({'positions': []}, 'CHUNK_SHAPE: positions have shape [0], must be [N, 3]'),
        ({'positions': np.zeros((2000, 3))}, 'CHUNK_SHAPE: 2000 rows, allowed 2..1024'),
        ({'positions': [[1, 2, 3], [1, 2]]}, 'CHUNK_SHAPE: positions are not numbers in rows of 3'),
        ({'positions': [['x', 2, 3], [1, 2, 3]]}, 'CHUNK_SHAPE: positions are not numbers in rows of 3'),
        ({'positions': None}, 'CHUNK_SHAPE: positions have shape [], must be [N, 3]'),
        ({'gripper': [0, 1]}, 'CHUNK_SHAPE: gripper has shape [2], must be [4, 1]'),
        ({'gripper': None}, 'CHUNK_SHAPE: gripper has shape [], must be [4, 1]'),
        ({'gripper': 'open'}, 'CHUNK_SHAPE: gripper values are not numbers'),
        ({'step_ns': 0}, 'CHUNK_SHAPE: step_ns is 0, allowed 1..4611686018427387904'),
        ({'step_ns': 2_000_000_000}, 'CHUNK_SHAPE: time between rows 2.0000 s, limit 1.0000 s'),
        ({'stamp_ns': -1}, 'CHUNK_SHAPE: stamp_ns is -1, allowed 0..4611686018427387904'),
        ({'stamp_ns': 2**63}, 'CHUNK_SHAPE: stamp_ns is 9223372036854775808, allowed 0..4611686018427387904'),
        ({'sequence': 1.5}, 'CHUNK_SHAPE: sequence is not an integer'),
        ({'epoch': True}, 'CHUNK_SHAPE: epoch is not an integer'),
    ],
)
def test_a_wrong_form_is_refused_and_said(changes, text):
    assert arrange(received(**changes)).text == text


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_refuses_the_whole_chunk_and_names_joint_and_row(bad):
    rows = ROWS.copy()
    rows[2, 1] = bad
    verdict = arrange(received(positions=rows))
    assert (verdict.reason, verdict.joint, verdict.row) == (Reason.CHUNK_NOT_FINITE, 'b', 2)
    assert verdict.text == f'CHUNK_NOT_FINITE: b, row 2: position is {bad}'


def test_the_joint_is_named_in_the_robots_order_even_if_the_chunk_was_permuted():
    rows = ROWS.copy()
    rows[1, 0] = np.nan
    assert arrange(received(joint_names=('c', 'a', 'b'), positions=rows)).joint == 'c'


def test_a_gripper_that_is_not_finite_refuses_the_whole_chunk():
    verdict = arrange(received(gripper=[[0], [1], [np.nan], [1]]))
    assert verdict.text == 'CHUNK_NOT_FINITE: g, row 2: gripper is nan'


def test_another_action_space_is_refused_by_name():
    verdict = arrange(received(action_space='ee_delta'))
    assert verdict.text == "UNSUPPORTED_ACTION_SPACE: action space 'ee_delta' is not 'joint_position'"


def test_a_chunk_without_a_gripper_is_a_chunk():
    assert not isinstance(arrange(received(gripper=None, gripper_names=())), Rejection)


def test_row_k_is_due_k_plus_one_steps_after_the_stamp():
    chunk = arrange(received())
    assert [chunk.due_ns(k) for k in range(4)] == [1100, 1200, 1300, 1400]
    assert chunk.end_ns == 1400


@pytest.mark.parametrize(
    ('time', 'row'), [(0, 0), (1000, 0), (1001, 0), (1100, 0), (1101, 1), (1399, 3), (1400, 3), (9999, 3)]
)
def test_the_row_at_a_time_is_the_next_one_due(time, row):
    assert arrange(received()).row_at(time) == row


def test_a_delayed_chunk_has_its_first_row_due_one_step_after_its_start():
    delayed = arrange(received()).starting_at(5000)
    assert delayed.due_ns(0) == 5100
    assert delayed.stamp_ns == 1000


# Several grippers

PAIR = ('left', 'right')
BOTH = np.array([[0.0, 1.0], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])


def test_grippers_are_sorted_by_name_as_joints_are():
    chunk = arrange(received(gripper=BOTH[:, ::-1], gripper_names=PAIR[::-1]), PAIR)
    np.testing.assert_array_equal(chunk.gripper, BOTH)
    assert chunk.gripper_names == PAIR


@pytest.mark.parametrize(
    ('names', 'text'),
    [
        (('left',), 'CHUNK_JOINT_NAMES: right: grippers missing: right'),
        (('left', 'wrong'), 'CHUNK_JOINT_NAMES: right: grippers missing: right; grippers unknown: wrong'),
        (('left', 'right', 'left'), 'CHUNK_JOINT_NAMES: left: grippers named twice: left'),
        ((), 'CHUNK_JOINT_NAMES: left: grippers missing: left, right'),
    ],
)
def test_grippers_that_are_not_the_robots_are_refused_by_name(names, text):
    assert arrange(received(gripper=BOTH, gripper_names=names), PAIR).text == text


def test_a_gripper_is_refused_where_the_robot_has_none():
    assert arrange(received(), ()).text == 'CHUNK_JOINT_NAMES: g: grippers unknown: g'
