"""What a policy is shown and what it hands back, wherever it runs: nothing of a network is imported here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.errors import CosmosError, ObservationError, Problem

if TYPE_CHECKING:
    import torch

    from engine.contract import Contract
    from engine.network.heads import VideoTokens

POSE_COLUMNS = 7
"""Columns of one arm's pose in a row of :attr:`PolicyChunk.actions`: position (m), then quaternion x, y, z, w."""


@dataclass(frozen=True)
class Observation:
    """What the robot knows at one instant.

    Shapes are those of a robot of one arm with one gripper. With B > 1 arms, poses have a dimension of arms before the
    last: [B, 3] and [B, 4], with history [history + 1, B, 3]; with G > 1 grippers their positions have one at the end:
    [G], with history [history + 1, G]. Arms and grippers are in the contract's order.

    Attributes:
        images: RGB picture of each view the contract names, uint8 [H, W, 3], of any size.
        instruction: What to do, in words.
        joint_positions: [J] rad, in the contract's joint order, that of all arms after each other; with history
            [history + 1, J], newest last.
        gripper_position: Robot convention, 0 = open, 1 = closed; with history [history + 1].
        end_effector_position: [3] m, robot base frame; needed by end-effector action spaces; [history + 1, 3] likewise.
        end_effector_quaternion: [4] xyzw, unit; likewise.
    """

    images: Mapping[str, NDArray[np.uint8]]
    instruction: str
    joint_positions: NDArray[np.floating] | None = None
    gripper_position: float | NDArray[np.floating] | None = None
    end_effector_position: NDArray[np.floating] | None = None
    end_effector_quaternion: NDArray[np.floating] | None = None


@dataclass(frozen=True)
class PolicyChunk:
    """What one inference hands back.

    Attributes:
        actions: float32 [rows, D] in physical units and the robot's convention. joint_position: joint radians, then
            gripper (1 = closed). ee_delta: position (m), quaternion xyzw, gripper; absolute, in the frame that the
            measured pose is given in. With several arms all of them come first, arm after arm, and behind them their
            grippers, however the model writes its rows: 14 joints and 2 grippers, or 2 x 7 numbers of poses and 2
            grippers, make 16 columns.
        imagined: The imagined video, as the network leaves it; None if it was not kept.
        instruction: The instruction it follows.
        seed: Seed of its noise.
        seconds: Time per stage: wait (for other requests), compose, encode, noise, prefix, denoise, decode, and total.
    """

    actions: NDArray[np.float32]
    imagined: VideoTokens | None
    instruction: str
    seed: int
    seconds: Mapping[str, float]

    @cached_property
    def latents(self) -> torch.Tensor:
        """The imagined video, float32 [1, 48, T, h, w]; decode with :meth:`engine.policy.Policy.imagined_video`.

        Raises:
            CosmosError: It was not kept.
        """
        if self.imagined is None:
            raise CosmosError('the imagined video of this chunk was not kept')
        return self.imagined.latents()


def grey_observation(contract: Contract) -> Observation:
    """Grey pictures of an arm with all joints at 0: for first-time work, and to see what comes back."""
    terms = contract.embodiment
    rows = max(1, terms.clean_rows)
    return Observation(
        images={name: np.full((180, 320, 3), 128, np.uint8) for name in contract.views.streams},
        instruction='warm up',
        joint_positions=np.zeros((rows, len(contract.robot.joints))),
        gripper_position=np.zeros(gripper_shape(contract, rows)),
        end_effector_position=np.zeros(pose_shape(contract, rows, 3)),
        end_effector_quaternion=np.broadcast_to([0.0, 0.0, 0.0, 1.0], pose_shape(contract, rows, 4)),
    )


def check_observation(observation: Observation, contract: Contract) -> None:
    """Do nothing if an observation holds what a contract asks for.

    Raises:
        ObservationError: It does not; lists every fault by field.
    """
    problems = [*instruction_problems(observation.instruction), *_check_images(observation.images, contract)]
    clean = contract.embodiment.clean_rows
    if clean and contract.embodiment.action_space == 'joint_position':
        width = len(contract.robot.joints)
        problems += check_numbers('joint_positions', observation.joint_positions, (clean, width))
    if contract.embodiment.action_space == 'ee_delta':
        poses = max(clean, 1)  # rows are integrated from the measured pose, whether the network sees it or not
        for name, numbers in (('position', 3), ('quaternion', 4)):
            value = getattr(observation, f'end_effector_{name}')
            problems += check_numbers(f'end_effector_{name}', value, pose_shape(contract, poses, numbers))
    if clean and contract.robot.grippers:
        problems += check_numbers('gripper_position', observation.gripper_position, gripper_shape(contract, clean))
    if problems:
        raise ObservationError(f'observation for contract {contract.name}', problems)


def instruction_problems(instruction: str) -> Iterator[Problem]:
    """What is wrong with an instruction, before anything is known of the checkpoint."""
    if not isinstance(instruction, str):
        yield Problem('instruction', 'must be text', type(instruction).__name__)
    elif not instruction.strip():
        yield Problem('instruction', 'is empty', repr(instruction), 'a sentence that says what to do')


def _check_images(images: Mapping[str, NDArray[np.uint8]], contract: Contract) -> Iterator[Problem]:
    for name in contract.views.streams:
        if name not in images:
            yield Problem(f'images.{name}', 'is missing', '', '', f'given: {", ".join(images) or "none"}')
            continue
        picture = np.asarray(images[name])
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3 or min(picture.shape) < 3:
            kind = f'{picture.dtype} {list(picture.shape)}'
            yield Problem(f'images.{name}', 'is no RGB picture', kind, 'uint8 [height, width, 3]')


def check_numbers(name: str, value: object, shape: tuple[int, ...]) -> list[Problem]:
    """What is wrong with a field of finite numbers.

    `shape` is (rows, ...); a single row may come without its first dimension.
    """
    if value is None:
        return [Problem(name, 'is missing')]
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return [Problem(name, 'is not numeric', repr(value)[:60])]
    allowed = {shape, shape[1:]} if shape[0] == 1 else {shape}
    if numbers.shape not in allowed:
        return [
            Problem(name, 'has the wrong shape', str(list(numbers.shape)), ' or '.join(str(list(s)) for s in allowed))
        ]
    if not np.isfinite(numbers).all():
        where = ', '.join(str(tuple(int(i) for i in index)) for index in np.argwhere(~np.isfinite(numbers)))
        return [Problem(name, f'is not finite at {where}', np.array2string(numbers, precision=4))]
    return []


def pose_shape(contract: Contract, rows: int, numbers: int) -> tuple[int, ...]:
    """[rows, numbers] for one arm, [rows, B, numbers] for several."""
    arms = len(contract.robot.arms)
    return (rows, numbers) if arms == 1 else (rows, arms, numbers)


def gripper_shape(contract: Contract, rows: int) -> tuple[int, ...]:
    """[rows] for one gripper, else [rows, G]."""
    grippers = len(contract.robot.grippers)
    return (rows,) if grippers == 1 else (rows, grippers)
