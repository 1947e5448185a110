"""Rows of absolute joint positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from engine.actions.arrays import Floats, as_floats
from engine.actions.layouts import Kind
from engine.actions.normalization import NO_NORMALIZATION, Normalizer
from engine.actions.row_codec import Codec
from engine.errors import InvalidInput, Problem


@dataclass(frozen=True, eq=False)
class JointActions:
    """What rows of joint positions ask for.

    Attributes:
        joint_positions: Targets [N, J] in rad, absolute, not clipped; row k is where to be (k + 1) steps after the
            observation.
        gripper: [N] ([N, G] if there are several): 0 open, 1 closed where the model's polarity is known; see
            `GripperConvention` for the others. Continuous, not clipped.
    """

    joint_positions: Floats
    gripper: Floats


@dataclass(frozen=True, eq=False)
class JointCodec(Codec):
    """Absolute joint positions and grippers, as the released DROID policy speaks them: seven joints, one gripper.

    A network that was trained so writes the joints of its actions as offsets from the measured state, which are small
    where absolute positions are not; robots never see the difference.

    Attributes:
        offsets: Whether action rows hold offsets of the joints (grippers stay absolute). State rows never do.
        state_normalizer: Scale of state rows if `offsets`; otherwise they have that of actions.
    """

    offsets: bool = False
    state_normalizer: Normalizer = NO_NORMALIZATION

    def encode_state(self, joint_positions: ArrayLike, gripper: ArrayLike) -> Floats:
        """Return the rows [..., D] of measured states.

        Args:
            joint_positions: [..., J] in rad, in the order of the row.
            gripper: Closed fraction (0 open, 1 closed): [...] for one gripper, [..., G] for several.

        Raises:
            InvalidInput: Wrong shapes, values that are not finite, or an embodiment whose rows hold no state.
        """
        self._need_state_row()
        scale = self.state_normalizer if self.offsets else self.normalizer
        return scale.forward(self._raw_rows(joint_positions, gripper))

    def encode(self, joint_positions: ArrayLike, gripper: ArrayLike, state: ArrayLike | None = None) -> Floats:
        """Return the action rows [..., D] that ask for these targets: the inverse of :meth:`decode`.

        Args:
            joint_positions: [..., J] in rad, in the order of the row.
            gripper: Closed fraction (0 open, 1 closed): [...] for one gripper, [..., G] for several.
            state: Measured joints [J], rad; needed where rows are offsets.

        Raises:
            InvalidInput: Wrong shapes, values that are not finite, or no state where one is needed.
        """
        raw = self._raw_rows(joint_positions, gripper)
        raw[..., self._channels(Kind.JOINT)] -= self._origin(state)
        return self.normalizer.forward(raw)

    def decode(self, rows: ArrayLike, state: ArrayLike | None = None) -> JointActions:
        """Return what action rows [N, D] ask for.

        Args:
            rows: In the model's space.
            state: As for :meth:`encode`.

        Raises:
            InvalidInput: Wrong width, values that are not finite (each bad row is named), or no state where one is
                needed.
        """
        raw = self._raw(rows)
        return JointActions(raw[..., self._channels(Kind.JOINT)] + self._origin(state), self._read_grippers(raw))

    def _raw_rows(self, joint_positions: ArrayLike, gripper: ArrayLike) -> Floats:
        channels = self._channels(Kind.JOINT)
        joints = as_floats(joint_positions, 'joint_positions', (channels.size,))
        raw = np.empty((*joints.shape[:-1], self.dim))
        raw[..., channels] = joints
        self._write_grippers(raw, gripper)
        return raw

    def _origin(self, state: ArrayLike | None) -> Floats:
        """What joints of action rows are counted from."""
        if not self.offsets:
            return np.zeros(())
        if state is None:
            problem = Problem('state', 'is missing: these rows are offsets from it', remedy='give the measured joints')
            raise InvalidInput(self._subject, [problem])
        return as_floats(state, 'state', (self._channels(Kind.JOINT).size,))
