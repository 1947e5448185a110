"""ROS messages to arrays and back.

Pictures are uint8 [height, width, 3] in RGB. Joints are matched by name, never by position in the message. Times are
integers in nanoseconds. What does not fit raises an :class:`~engine.errors.ObservationError` that names the topic.
"""

from __future__ import annotations

import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image, JointState

from engine.errors import ObservationError, Problem

_CHANNELS = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1}
ENCODINGS = tuple(_CHANNELS)

_QUATERNION_TOLERANCE = 1e-3  # float32 publishers round; anything beyond is not a rotation


def stamp_to_ns(stamp: Time) -> int:
    """Return a message's stamp in nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def ns_to_stamp(time_ns: int) -> Time:
    """Return nanoseconds as a message's stamp."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return Time(sec=seconds, nanosec=nanoseconds)


def image_to_rgb(message: Image, topic: str, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Return the picture of an image message.

    With encoding rgb8 the result is a read-only view into the message, without a copy.

    Args:
        message: The message; encodings `rgb8`, `bgr8`, `rgba8`, `bgra8` and `mono8`, rows padded or not.
        topic: Where it came from, for error messages.
        size: Height and width it must have; None accepts any.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        ObservationError: Encoding, size, row step or amount of data are wrong; lists every fault.
    """
    channels = _CHANNELS.get(message.encoding, 0)
    problems = _image_problems(message, topic, channels, size)
    if problems:
        raise ObservationError(f'image on {topic}', problems)
    rows = np.frombuffer(message.data, np.uint8)[: message.height * message.step].reshape(message.height, message.step)
    pixels = rows[:, : message.width * channels].reshape(message.height, message.width, channels)
    pixels.flags.writeable = False  # it may be shared with other readers of the message
    return _to_rgb(pixels, message.encoding)


def _image_problems(message: Image, topic: str, channels: int, size: tuple[int, int] | None) -> list[Problem]:
    problems = []
    if not channels:
        problems.append(Problem(topic, 'unknown encoding', repr(message.encoding), ', '.join(ENCODINGS)))
    if message.height == 0 or message.width == 0:
        problems.append(Problem(topic, 'picture without pixels', f'{message.height}x{message.width}'))
    elif size is not None and (message.height, message.width) != size:
        allowed = f'{size[0]}x{size[1]} (height x width)'
        problems.append(Problem(topic, 'wrong size', f'{message.height}x{message.width}', allowed))
    if channels and message.step < message.width * channels:
        allowed = f'at least {message.width * channels}'
        problems.append(Problem(topic, 'row step too small [bytes]', str(message.step), allowed))
    needed = message.height * message.step
    if len(message.data) < needed:
        problems.append(Problem(topic, 'too little data [bytes]', str(len(message.data)), f'{needed} (height x step)'))
    return problems


def _to_rgb(pixels: NDArray[np.uint8], encoding: str) -> NDArray[np.uint8]:
    if encoding == 'rgb8':
        return pixels
    if encoding == 'rgba8':
        return pixels[..., :3]
    import cv2  # here, since the guard reads joints by this file and never sees a picture

    code = {'bgr8': cv2.COLOR_BGR2RGB, 'bgra8': cv2.COLOR_BGRA2RGB, 'mono8': cv2.COLOR_GRAY2RGB}[encoding]
    return np.asarray(cv2.cvtColor(pixels, code), np.uint8)


def compressed_to_rgb(message: CompressedImage, topic: str, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG message; arguments, result and errors as for :func:`image_to_rgb`."""
    import cv2

    data = np.frombuffer(message.data, np.uint8)
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if bgr is None:
        value = f'format {message.format!r}, {data.size} bytes'
        raise ObservationError(f'image on {topic}', [Problem(topic, 'cannot be decoded', value, 'JPEG or PNG')])
    if size is not None and bgr.shape[:2] != size:
        value, allowed = f'{bgr.shape[0]}x{bgr.shape[1]}', f'{size[0]}x{size[1]} (height x width)'
        raise ObservationError(f'image on {topic}', [Problem(topic, 'wrong size', value, allowed)])
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


class ImageWriter:
    """Fills image messages of one camera, without Python lists of bytes: those cost tens of milliseconds a frame."""

    def __init__(self, frame_id: str) -> None:
        self._message = Image(encoding='rgb8', is_bigendian=0)
        self._message.header.frame_id = frame_id

    def fill(self, rgb: NDArray[np.uint8], stamp: Time) -> Image:
        """Return a message with the picture `rgb`, uint8 [height, width, 3].

        The message is the same object each time: publish it before the next call. Publishing copies it.

        Raises:
            ObservationError: `rgb` has another shape or type.
        """
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
            raise ObservationError(
                f'image of {self._message.header.frame_id}',
                [Problem('picture', 'wrong kind', f'{rgb.dtype} {list(rgb.shape)}', 'uint8 [height, width, 3]')],
            )
        message = self._message
        message.header.stamp = stamp
        message.height, message.width, message.step = rgb.shape[0], rgb.shape[1], rgb.shape[1] * 3
        if len(message.data) != rgb.size:
            message.data = array.array('B', bytes(rgb.size))
        np.frombuffer(message.data, np.uint8).reshape(rgb.shape)[...] = rgb
        return message


def rgb_to_image(rgb: NDArray[np.uint8], stamp: Time, frame_id: str) -> Image:
    """Return a new image message with the picture `rgb`, uint8 [height, width, 3]; see :class:`ImageWriter`."""
    return ImageWriter(frame_id).fill(rgb, stamp)


@dataclass(frozen=True)
class Joints:
    """State of some joints, in the order in which they were asked for.

    Attributes:
        positions: float64 [joints], rad or m.
        velocities: float64 [joints], rad/s or m/s; None if the message has none.
    """

    positions: NDArray[np.float64]
    velocities: NDArray[np.float64] | None


class JointReader:
    """Reads named joints out of joint state messages, whatever their order and whatever else is in them."""

    def __init__(self, names: Sequence[str], topic: str) -> None:
        """Prepare to read the joints `names`, in that order; `topic` is used in error messages."""
        self.names = tuple(names)
        self._topic = topic
        self._layout: tuple[str, ...] | None = None
        self._columns: NDArray[np.intp] = np.empty(0, np.intp)

    def read(self, message: JointState) -> Joints:
        """Return the joints' state.

        Raises:
            ObservationError: A joint is missing or named twice, a number is missing or not finite; lists every fault by
                joint.
        """
        layout = tuple(message.name)
        if layout != self._layout:
            self._columns = self._find(layout)
            self._layout = layout
        positions = self._take(message.position, 'position')
        velocities = self._take(message.velocity, 'velocity') if len(message.velocity) else None
        return Joints(positions, velocities)

    def _find(self, layout: tuple[str, ...]) -> NDArray[np.intp]:
        present = ', '.join(layout) or 'no joints'
        problems = []
        for name in self.names:
            count = layout.count(name)
            if count != 1:
                what = 'joint is missing' if count == 0 else f'joint is named {count} times'
                problems.append(Problem(f'{self._topic}/{name}', what, f'message with {present}'))
        if problems:
            raise ObservationError(f'joint states on {self._topic}', problems)
        return np.array([layout.index(name) for name in self.names], np.intp)

    def _take(self, numbers: Sequence[float], what: str) -> NDArray[np.float64]:
        if len(numbers) != len(self._layout or ()):
            problem = Problem(
                self._topic, f'{what} does not match the names', f'{len(numbers)} numbers', f'{len(self._layout or ())}'
            )
            raise ObservationError(f'joint states on {self._topic}', [problem])
        values = np.asarray(numbers, np.float64)[self._columns]
        if not np.isfinite(values).all():
            bad = [(name, value) for name, value in zip(self.names, values, strict=True) if not np.isfinite(value)]
            problems = [Problem(f'{self._topic}/{name}', f'{what} is not a number', str(value)) for name, value in bad]
            raise ObservationError(f'joint states on {self._topic}', problems)
        return values


def joint_state(
    names: Sequence[str],
    positions: NDArray[np.float64],
    stamp: Time,
    velocities: NDArray[np.float64] | None = None,
    efforts: NDArray[np.float64] | None = None,
) -> JointState:
    """Return a joint state message; positions in rad or m, velocities in rad/s or m/s, efforts in N m or N."""
    message = JointState(name=list(names), position=_doubles(positions))
    message.header.stamp = stamp
    if velocities is not None:
        message.velocity = _doubles(velocities)
    if efforts is not None:
        message.effort = _doubles(efforts)
    return message


def _doubles(values: NDArray[np.float64]) -> array.array[float]:
    return array.array('d', np.ascontiguousarray(values, np.float64).tobytes())


@dataclass(frozen=True)
class Pose:
    """Position and orientation of a frame.

    Attributes:
        position: float64 [3], m.
        quaternion: float64 [4], x y z w, of unit length.
        frame_id: Frame that they are given in.
    """

    position: NDArray[np.float64]
    quaternion: NDArray[np.float64]
    frame_id: str


def message_to_pose(message: PoseStamped, topic: str) -> Pose:
    """Return the pose of a message.

    Raises:
        ObservationError: A number is not finite, or the quaternion is not of unit length.
    """
    point, turn = message.pose.position, message.pose.orientation
    position = np.array([point.x, point.y, point.z])
    quaternion = np.array([turn.x, turn.y, turn.z, turn.w])
    problems = []
    if not np.isfinite(position).all():
        problems.append(Problem(f'{topic}/position', 'is not finite', str(position)))
    norm = float(np.linalg.norm(quaternion))
    if not abs(norm - 1.0) <= _QUATERNION_TOLERANCE:  # also catches NaN
        problems.append(Problem(f'{topic}/orientation', 'is not a unit quaternion', f'length {norm:.6g}', '1'))
    if problems:
        raise ObservationError(f'pose on {topic}', problems)
    return Pose(position, quaternion / norm, message.header.frame_id)


def pose_to_message(pose: Pose, stamp: Time) -> PoseStamped:
    """Return a pose as a message."""
    message = PoseStamped()
    message.header.stamp, message.header.frame_id = stamp, pose.frame_id
    point, turn = message.pose.position, message.pose.orientation
    point.x, point.y, point.z = (float(value) for value in pose.position)
    turn.x, turn.y, turn.z, turn.w = (float(value) for value in pose.quaternion)
    return message
