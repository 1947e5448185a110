"""Rows of absolute joint positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from engine.actions.arrays import Floats, as_floats
from engine.actions.layouts import Kind
from engine.actions.row_codec import Codec


@dataclass(frozen=True, eq=False)
class JointActions:
    """What rows of joint positions ask for.

    Attributes:
        joint_positions: Targets [N, J] in rad; row k is where to be (k + 1) steps after the observation. Not clipped.
        gripper: [N] ([N, G] if there are several): 0 open, 1 closed where the model's polarity is known; see
            `GripperConvention` for the others. Continuous, not clipped.
    """

    joint_positions: Floats
    gripper: Floats


class JointCodec(Codec):
    """Absolute joint positions and grippers, as the released DROID policy speaks them: seven joints, one gripper."""

    def encode_state(self, joint_positions: ArrayLike, gripper: ArrayLike) -> Floats:
        """Return the rows [..., D] of measured states.

        Args:
            joint_positions: [..., J] in rad, in the order of the row.
            gripper: Closed fraction (0 open, 1 closed): [...] for one gripper, [..., G] for several.

        Raises:
            InvalidInput: Wrong shapes, values that are not finite, or an embodiment whose rows hold no state.
        """
        self._need_state_row()
        return self.encode(joint_positions, gripper)

    def encode(self, joint_positions: ArrayLike, gripper: ArrayLike) -> Floats:
        """Return the action rows [..., D] that ask for these targets: the inverse of :meth:`decode`.

        Args:
            joint_positions: [..., J] in rad, in the order of the row.
            gripper: Closed fraction (0 open, 1 closed): [...] for one gripper, [..., G] for several.

        Raises:
            InvalidInput: Wrong shapes, or values that are not finite.
        """
        channels = self._channels(Kind.JOINT)
        joints = as_floats(joint_positions, 'joint_positions', (channels.size,))
        raw = np.empty((*joints.shape[:-1], self.dim))
        raw[..., channels] = joints
        self._write_grippers(raw, gripper)
        return self.normalizer.forward(raw)

    def decode(self, rows: ArrayLike) -> JointActions:
        """Return what action rows [N, D] ask for; they are absolute, so no state is needed.

        Raises:
            InvalidInput: Wrong width, or values that are not finite (each bad row is named).
        """
        raw = self._raw(rows)
        return JointActions(raw[..., self._channels(Kind.JOINT)], self._read_grippers(raw))
