"""The joints of a recorded DROID episode: its poses, traced by inverse kinematics.

The public recording keeps the pose of the flange at 15 Hz, but of its joints only the first frame. From there on they
are found pose by pose: Newton's method with damping, staying near the joints of the frame before. What comes out is as
rough as the recording is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from expert import NS, STEP_NS, Motion
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Craig's parameters a (m), d (m), alpha (rad) of the Panda, flange last: Franka Control Interface documentation.
_PARAMETERS = (
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -np.pi / 2),
    (0.0, 0.316, np.pi / 2),
    (0.0825, 0.0, np.pi / 2),
    (-0.0825, 0.384, -np.pi / 2),
    (0.0, 0.0, np.pi / 2),
    (0.088, 0.0, np.pi / 2),
)
_FLANGE_M = 0.107
_STEPS = 50
_NEAR = 1e-9


def flange(joints: Array) -> tuple[Array, Array, Array]:
    """Position [3] (m) and rotation [3, 3] of the flange, and the Jacobian [6, 7] of both in the base frame."""
    pose, axes, origins = np.eye(4), [], []
    for angle, (a, d, alpha) in zip(joints, _PARAMETERS, strict=True):
        ca, sa, ct, st = np.cos(alpha), np.sin(alpha), np.cos(angle), np.sin(angle)
        step = [[ct, -st, 0, a], [st * ca, ct * ca, -sa, -d * sa], [st * sa, ct * sa, ca, d * ca], [0, 0, 0, 1]]
        pose = pose @ np.array(step)
        axes.append(pose[:3, 2])
        origins.append(pose[:3, 3])
    end = pose[:3, 3] + _FLANGE_M * pose[:3, 2]
    linear = np.cross(np.array(axes), end - np.array(origins))
    return end, pose[:3, :3], np.concatenate([linear.T, np.array(axes).T])


def trace(positions: Array, rotations: Array, start: Array) -> Array:
    """Joints [N, 7] that follow poses [N, 3] and [N, 3, 3], near `start` [7] at first."""
    found, joints = [], np.array(start)
    for position, rotation in zip(positions, rotations, strict=True):
        for _ in range(_STEPS):
            at, turned, jacobian = flange(joints)
            error = np.concatenate([position - at, _rotation_vector(rotation @ turned.T)])
            if np.abs(error).max() < _NEAR:
                break
            inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + 1e-8 * np.eye(6))
            joints = joints + inverse @ error
        found.append(joints)
    return np.array(found)


def _rotation_vector(rotation: Array) -> Array:
    """Axis times angle of a small rotation."""
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine = np.linalg.norm(skew) / 2
    angle = np.arctan2(sine, (np.trace(rotation) - 1) / 2)
    return skew / 2 * (angle / sine if sine > 1e-12 else 1.0)


def droid_episode(folder: Path, smooth_rows: float = 0.0) -> Motion:
    """The episode in `folder` (`episode.parquet`) as a motion of the joints; straight lines between its frames.

    Args:
        folder: Where it is.
        smooth_rows: Standard deviation, in frames, of the bell curve that smooths the joints; 0: as recorded.
    """
    import pandas

    table = pandas.read_parquet(folder / 'episode.parquet')
    poses = np.stack(table['observation.state.cartesian_position'])
    start = table['observation.state.joint_positions'].to_numpy()[:7].astype(float)  # frame 0, one joint per row
    joints = trace(poses[:, :3], np.array([_from_roll_pitch_yaw(*angles) for angles in poses[:, 3:]]), start)
    if smooth_rows:
        from scipy.ndimage import gaussian_filter1d

        joints = gaussian_filter1d(joints, smooth_rows, axis=0, mode='nearest')
    grip = table['action.gripper_position'].to_numpy().astype(float).clip(0, 1)
    times = np.arange(len(joints)) * STEP_NS / NS

    def at(when: Array) -> Array:
        return np.stack([np.interp(when, times, column) for column in joints.T], axis=1)

    name = 'recorded DROID episode' + (f', smoothed over {smooth_rows:g} frame' if smooth_rows else '')
    return Motion(name, float(times[-1]), at, lambda when: np.interp(when, times, grip))


def _from_roll_pitch_yaw(roll: float, pitch: float, yaw: float) -> Array:
    """Rotation of extrinsic angles about x, y and z, in that order."""
    cx, sx, cy, sy, cz, sz = np.cos(roll), np.sin(roll), np.cos(pitch), np.sin(pitch), np.cos(yaw), np.sin(yaw)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
