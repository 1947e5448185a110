"""Every embodiment that the model has a name for.

Names, ids and widths are those of NVIDIA cosmos-framework, `domain_utils.py`; rates and views are those of its data set
classes and inference examples.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from engine.actions import spaces
from engine.actions.layouts import ActionSpace, Segment
from engine.errors import InvalidInput, Problem

NEAR_MISSES: Final[Mapping[str, str]] = MappingProxyType(
    {
        'joint_pos': "cosmos-framework's joint_pos is joint_position here",
        'midtrain': "cosmos-framework's midtrain is ee_delta here: framewise, with the fixed frame",
        'ee_pose': "cosmos-framework's ee_pose is its midtrain, ee_delta here: framewise, with the fixed frame",
        'ee_pose_delta': "cosmos-framework's ee_pose_delta is ee_delta_anchored here: without the fixed frame",
    }
)
"""Names that mean one of two conventions elsewhere: explained, never accepted."""


@dataclass(frozen=True, eq=False)
class Embodiment:
    """A robot, or another mover, as the model knows it.

    Attributes:
        name: Domain name.
        domain_id: Selects the weights of the action head.
        spaces: The ways in which its rows may be written; none for `no_action`.
        fps: Rows per second in training; None if unpublished.
        viewpoint: View of the training videos; None if unpublished.
        chunk: Rows of a chunk, unless a contract says otherwise.
        aliases: Older names of the same domain.
    """

    name: str
    domain_id: int
    spaces: tuple[ActionSpace, ...] = ()
    fps: float | None = None
    viewpoint: str | None = None
    chunk: int = 16
    aliases: tuple[str, ...] = ()

    @property
    def raw_dims(self) -> Mapping[str, int]:
        """Allowed action spaces, and the width of a row in each."""
        return {space.name: space.dim for space in self.spaces}

    def space(self, name: str) -> ActionSpace:
        """Return the action space called `name`.

        Raises:
            InvalidInput: The embodiment has no such space; names that mean something else elsewhere are explained.
        """
        for candidate in self.spaces:
            if candidate.name == name:
                return candidate
        allowed = ', '.join(self.raw_dims) or 'none: it has no actions'
        problem = Problem('action space', f'is unknown for {self.name}', repr(name), allowed, NEAR_MISSES.get(name, ''))
        raise InvalidInput('embodiment', [problem])

    def layout(self, action_space: str) -> tuple[Segment, ...]:
        """Return the segments of a row in the given action space."""
        return self.space(action_space).segments


def embodiment(name: str) -> Embodiment:
    """Return the embodiment of a domain name, current or legacy; case and outer blanks do not matter.

    Raises:
        InvalidInput: No such name; the closest ones are proposed.
    """
    key = name.strip().lower()
    if key in _BY_NAME:
        return _BY_NAME[key]
    closest = difflib.get_close_matches(key, _BY_NAME, n=3, cutoff=0.5)
    remedy = f'did you mean {" or ".join(closest)}?' if closest else ''
    raise InvalidInput('embodiment', [Problem('domain', 'is unknown', repr(name), ', '.join(sorted(_BY_NAME)), remedy)])


EMBODIMENTS: Final = (
    Embodiment('no_action', 0),
    Embodiment('av', 1, spaces.AV, 10, 'ego_view', chunk=60),
    Embodiment('camera_pose', 2, spaces.CAMERA_POSE, 30, 'ego_view', chunk=60),
    Embodiment('hand_pose', 3, spaces.HAND_POSE, 15, 'ego_view'),
    Embodiment('pusht', 4, spaces.PUSHT),
    Embodiment('libero', 5, spaces.LIBERO, 20, 'concat_view'),
    Embodiment('umi', 6, spaces.UMI, 10, 'wrist_view'),
    Embodiment('bridge_orig_lerobot', 7, spaces.BRIDGE, 5, 'ego_view'),
    Embodiment('droid_lerobot', 8, spaces.DROID, 15, 'concat_view'),
    Embodiment('robomind-franka', 8, spaces.ROBOMIND_FRANKA, 10, 'concat_view'),
    Embodiment('embodiment_b', 9, spaces.EMBODIMENT_B, aliases=('galbot',)),
    Embodiment('robomind-franka-dual', 12, spaces.ROBOMIND_FRANKA_DUAL, 10, 'concat_view'),
    Embodiment('robomind-ur', 13, spaces.ROBOMIND_UR, 10, 'third_person_view'),
    Embodiment('agibotworld', 15, spaces.AGIBOT, 10, 'concat_view'),
    Embodiment('embodiment_c_gripper', 15, spaces.AGIBOT_GEAR, aliases=('agibot_gear_gripper',)),
    Embodiment('embodiment_c_gripper_ext', 15, spaces.AGIBOT_GEAR, aliases=('agibot_gear_gripper_ext',)),
    Embodiment('xdof_yam', 16, spaces.YAM),
    Embodiment('molmoact2_yam', 16, spaces.YAM),
    Embodiment('abc_yam', 16, spaces.YAM),
    Embodiment('robotwin', 17, spaces.ROBOTWIN),
    Embodiment('fractal', 20, spaces.FRACTAL, 3, 'ego_view'),
    Embodiment('drawanything', 21, spaces.DRAWANYTHING),
    Embodiment('behavior1k_lerobot', 22, spaces.BEHAVIOR1K),
    Embodiment('maniparena', 23, spaces.MANIPARENA),
)
"""All named domains. Ids 10, 11, 14, 18, 19 and 24 to 31 are unused in public code."""

_BY_NAME: Final[Mapping[str, Embodiment]] = MappingProxyType(
    {name: entry for entry in EMBODIMENTS for name in (entry.name, *entry.aliases)}
)
