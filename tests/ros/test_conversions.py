"""Promises of the conversions: pictures arrive as they were sent, joints by name, faults with their place."""

from __future__ import annotations

import array

import cv2
import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image, JointState

from cosmos3_ros import conversions as convert
from engine.errors import ObservationError

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
STAMP = convert.ns_to_stamp(1_500_000_001)


def message(pixels: np.ndarray, encoding: str, padding: int = 0) -> Image:
    height, width = pixels.shape[:2]
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, padding)), constant_values=99)
    return Image(
        height=height, width=width, encoding=encoding, step=rows.shape[1], data=array.array('B', rows.tobytes())
    )


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize(
    ('encoding', 'pixels', 'expected'),
    [
        ('rgb8', RGB, RGB),
        ('bgr8', RGB[..., ::-1], RGB),
        ('rgba8', np.dstack([RGB, RGB[..., :1]]), RGB),
        ('bgra8', np.dstack([RGB[..., ::-1], RGB[..., :1]]), RGB),
        ('mono8', RGB[..., 0], np.repeat(RGB[..., :1], 3, axis=2)),
    ],
)
def test_a_picture_of_every_encoding_arrives_as_rgb(encoding, pixels, expected, padding):
    np.testing.assert_array_equal(convert.image_to_rgb(message(pixels, encoding, padding), 'camera'), expected)


def test_an_rgb_picture_is_a_read_only_view_into_the_message():
    original = message(RGB, 'rgb8')
    picture = convert.image_to_rgb(original, 'camera')
    assert np.shares_memory(picture, np.frombuffer(original.data, np.uint8))
    with pytest.raises(ValueError, match='read-only'):
        picture[0, 0, 0] = 1


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        ({'encoding': '16UC1'}, "camera: unknown encoding, got '16UC1', allowed: rgb8, bgr8, rgba8, bgra8, mono8"),
        ({'height': 0}, 'camera: picture without pixels, got 0x8'),
        ({'step': 23}, 'camera: row step too small [bytes], got 23, allowed: at least 24'),
        ({'height': 7}, 'camera: too little data [bytes], got 144, allowed: 168'),
    ],
)
def test_a_malformed_picture_is_refused_with_topic_value_and_what_is_allowed(change, text):
    bad = message(RGB, 'rgb8')
    for field, value in change.items():
        setattr(bad, field, value)
    with pytest.raises(ObservationError) as raised:
        convert.image_to_rgb(bad, 'camera')
    assert text in str(raised.value)


def test_a_picture_of_the_wrong_size_is_refused_if_a_size_is_asked_for():
    with pytest.raises(ObservationError, match=r'wrong size, got 6x8, allowed: 180x320'):
        convert.image_to_rgb(message(RGB, 'rgb8'), 'camera', size=(180, 320))


def test_a_compressed_picture_arrives_as_rgb():
    ok, png = cv2.imencode('.png', RGB[..., ::-1])
    assert ok
    compressed = CompressedImage(format='png', data=array.array('B', png.tobytes()))
    np.testing.assert_array_equal(convert.compressed_to_rgb(compressed, 'camera'), RGB)
    with pytest.raises(ObservationError, match='wrong size, got 6x8'):
        convert.compressed_to_rgb(compressed, 'camera', size=(1, 1))


@pytest.mark.parametrize('data', [b'', b'not a picture'])
def test_a_damaged_compressed_picture_is_refused(data):
    with pytest.raises(ObservationError, match='cannot be decoded'):
        convert.compressed_to_rgb(CompressedImage(format='jpeg', data=array.array('B', data)), 'camera')


def test_a_written_picture_reads_back_and_the_message_is_reused():
    writer = convert.ImageWriter('wrist_optical')
    first = writer.fill(RGB, STAMP)
    np.testing.assert_array_equal(convert.image_to_rgb(first, 'camera'), RGB)
    assert (first.header.frame_id, first.header.stamp, first.step) == ('wrist_optical', STAMP, 24)
    assert writer.fill(RGB[::-1], STAMP) is first
    np.testing.assert_array_equal(convert.image_to_rgb(first, 'camera'), RGB[::-1])
    assert writer.fill(RGB[:2], STAMP).height == 2


def test_a_picture_of_another_kind_cannot_be_written():
    with pytest.raises(ObservationError, match=r'float64 \[6, 8, 3\]'):
        convert.rgb_to_image(RGB.astype(float), STAMP, 'wrist')


JOINTS = ('a', 'b', 'c')


def state(names, positions, velocities=()) -> JointState:
    return JointState(name=list(names), position=[float(p) for p in positions], velocity=[float(v) for v in velocities])


@given(st.permutations([('a', 1.0), ('b', 2.0), ('c', 3.0), ('finger', 4.0)]))
def test_joints_are_read_by_name_in_whatever_order_they_come(entries):
    names, positions = zip(*entries, strict=True)
    joints = convert.JointReader(JOINTS, 'joint_states').read(state(names, positions, [-p for p in positions]))
    np.testing.assert_array_equal(joints.positions, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(joints.velocities, [-1.0, -2.0, -3.0])


def test_the_order_may_change_from_message_to_message():
    reader = convert.JointReader(JOINTS, 'joint_states')
    for names, positions in [('abc', (1, 2, 3)), ('cab', (3, 1, 2)), ('abc', (1, 2, 3))]:
        np.testing.assert_array_equal(reader.read(state(names, positions)).positions, [1, 2, 3])


def test_velocities_are_optional():
    assert convert.JointReader(JOINTS, 'joint_states').read(state('abc', (1, 2, 3))).velocities is None


def test_all_missing_joints_are_named():
    with pytest.raises(
        ObservationError, match=r'(?s)joint_states/a: joint is missing.*joint_states/c: joint is missing'
    ):
        convert.JointReader(JOINTS, 'joint_states').read(state('bx', (1, 2)))


def test_a_joint_named_twice_is_refused():
    with pytest.raises(ObservationError, match='joint_states/b: joint is named 2 times'):
        convert.JointReader(JOINTS, 'joint_states').read(state('abbc', (1, 2, 3, 4)))


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_numbers_that_are_none_are_named_by_joint(bad):
    reader = convert.JointReader(JOINTS, 'joint_states')
    with pytest.raises(ObservationError, match='joint_states/b: position is not a number'):
        reader.read(state('abc', (1, bad, 3)))
    with pytest.raises(ObservationError, match='joint_states/c: velocity is not a number'):
        reader.read(state('abc', (1, 2, 3), (1, 2, bad)))


def test_too_few_numbers_are_refused():
    with pytest.raises(ObservationError, match='position does not match the names, got 2 numbers, allowed: 3'):
        convert.JointReader(JOINTS, 'joint_states').read(state('abc', (1, 2)))


def test_a_written_joint_state_reads_back():
    values = np.array([0.1, 0.2, 0.3])
    joints = convert.JointReader(JOINTS, 'x').read(convert.joint_state(JOINTS, values, STAMP, velocities=-values))
    np.testing.assert_array_equal(joints.positions, values)
    np.testing.assert_array_equal(joints.velocities, -values)


def test_a_pose_reads_back_with_a_unit_quaternion():
    turn = np.array([0.5, -0.5, 0.5, 0.5])
    sent = convert.pose_to_message(convert.Pose(np.array([1.0, 2.0, 3.0]), turn * 1.0005, 'base'), STAMP)
    pose = convert.message_to_pose(sent, 'pose')
    np.testing.assert_array_equal(pose.position, [1.0, 2.0, 3.0])
    np.testing.assert_allclose(pose.quaternion, turn, atol=1e-12)
    assert pose.frame_id == 'base'


@pytest.mark.parametrize('w', [0.0, 1.1, float('nan')])
def test_a_pose_without_a_rotation_is_refused(w):
    bad = PoseStamped()
    bad.pose.orientation.w = w
    with pytest.raises(ObservationError, match='pose/orientation: is not a unit quaternion'):
        convert.message_to_pose(bad, 'pose')


@given(st.integers(0, 2**31 * 1_000_000_000 - 1))
def test_times_survive_the_way_into_a_message_and_back(time_ns):
    assert convert.stamp_to_ns(convert.ns_to_stamp(time_ns)) == time_ns
