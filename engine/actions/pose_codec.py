"""Rows of end-effector (or camera) motion: translation and rot6d of each body, relative to an earlier pose.

Where the fixed frame F of an embodiment enters: every pose that comes in is turned first, `T F`, and every pose that
goes out is turned back, `T F^-1`. Rows, the state row among them, therefore live wholly in the frame of the training
data, while callers only ever see the robot's own frame (for DROID `panda_link8`). NVIDIA's DROID policy server turns
nothing and leaves it to its clients to send turned orientations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from engine.actions.arrays import Floats
from engine.actions.layouts import FrameConvention, Kind
from engine.actions.poses import (
    Poses,
    anchored_deltas,
    compose,
    framewise_deltas,
    integrate_anchored,
    integrate_framewise,
    inverse,
)
from engine.actions.rotations import matrix_to_rot6d, rot6d_to_matrix
from engine.actions.row_codec import Codec
from engine.errors import InvalidInput, Problem


@dataclass(frozen=True, eq=False)
class PoseActions:
    """What rows of pose deltas ask for, as absolute poses.

    Attributes:
        poses: Targets in the reference frame of the start pose, leading shape [N] ([N, B] for several bodies); row k
            is where to be (k + 1) steps after the observation.
        gripper: [N] ([N, G] unless there is exactly one): 0 open, 1 closed where the model's polarity is known; see
            `GripperConvention` for the others. Continuous, not clipped.
    """

    poses: Poses
    gripper: Floats


class PoseCodec(Codec):
    """Pose deltas of one or more bodies, such as DROID's [translation 3, rot6d 6, gripper].

    Poses of a single body have the leading shape of the rows, those of B bodies one more dimension, in row order.
    """

    def encode_state(self, pose: Poses, gripper: ArrayLike | None = None) -> Floats:
        """Return the rows [..., D] of measured states: absolute position, rot6d of the orientation, gripper.

        Args:
            pose: Measured, in the robot's own frame.
            gripper: Closed fraction (0 open, 1 closed).

        Raises:
            InvalidInput: Wrong shapes, values that are not finite, or an embodiment whose rows hold no state.
        """
        self._need_state_row()
        return self._write(compose(self._by_body(pose), self._frame), gripper)

    def encode_trajectory(self, poses: Poses, gripper: ArrayLike | None = None) -> Floats:
        """Return the N action rows [N, D] along a trajectory, as forward dynamics takes them.

        Args:
            poses: N + 1 poses in the robot's own frame, one step apart; the first is where the chunk starts.
            gripper: N closed fractions (0 open, 1 closed). DROID takes the command of the row's first pose; AgiBot and
                UMI take what is measured at its second.

        Raises:
            InvalidInput: Fewer than two poses, wrong shapes, or values that are not finite.
        """
        path = compose(self._by_body(poses), self._frame)
        return self._write(anchored_deltas(path) if self._anchored else framewise_deltas(path), gripper)

    def decode(self, rows: ArrayLike, start: Poses) -> PoseActions:
        """Return what action rows [N, D] ask for, as absolute poses.

        Args:
            rows: Action rows only, without a state row.
            start: Measured pose at the observation, in the robot's own frame.

        Raises:
            InvalidInput: Wrong shapes, values that are not finite, or rot6d that is no rotation (each row is named).
        """
        raw = self._raw(rows)
        if raw.ndim != 2:
            raise InvalidInput(self._subject, [Problem('rows', 'are no chunk', str(raw.shape), f'[N, {self.dim}]')])
        deltas = self._read(raw)
        first = compose(self._by_body(start), self._frame)
        path = integrate_anchored(first, deltas) if self._anchored else integrate_framewise(first, deltas)
        poses = compose(path[1:], inverse(self._frame))
        return PoseActions(poses.reshape(poses.shape[:-1]) if self.bodies == 1 else poses, self._read_grippers(raw))

    def _write(self, poses: Poses, gripper: ArrayLike | None) -> Floats:
        """Return normalised rows [..., D] of poses [..., B] in the model's frame."""
        lead = poses.shape[:-1]
        raw = np.empty((*lead, self.dim))
        raw[..., self._channels(Kind.TRANSLATION)] = (poses.position * self.space.translation_scale).reshape(*lead, -1)
        raw[..., self._channels(Kind.ROT6D)] = matrix_to_rot6d(poses.rotation).reshape(*lead, -1)
        self._write_grippers(raw, gripper)
        return self.normalizer.forward(raw)

    def _read(self, raw: Floats) -> Poses:
        """Return poses [..., B] in the model's frame of raw rows [..., D]."""
        lead = (*raw.shape[:-1], self.bodies)
        position = raw[..., self._channels(Kind.TRANSLATION)].reshape(*lead, 3) / self.space.translation_scale
        return Poses(position, rot6d_to_matrix(raw[..., self._channels(Kind.ROT6D)].reshape(*lead, 6)))

    def _by_body(self, poses: Poses) -> Poses:
        """Return poses with their dimension of bodies, which those of a single body lack."""
        if self.bodies == 1:
            return poses.reshape((*poses.shape, 1))
        self._same_shape('poses', poses.shape, (*poses.shape[:-1], self.bodies))
        return poses

    @property
    def bodies(self) -> int:
        """Bodies whose poses are in a row."""
        return len(self.space.of_kind(Kind.ROT6D))

    @property
    def _anchored(self) -> bool:
        return self.space.convention is FrameConvention.ANCHORED

    @property
    def _frame(self) -> Poses:
        """Return the fixed frames of all bodies, leading shape [B]."""
        fixed = self.space.frames or ()
        return Poses(np.stack([frame.position for frame in fixed]), np.stack([frame.rotation for frame in fixed]))
