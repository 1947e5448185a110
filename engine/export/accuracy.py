"""How far the chunks of one way of running a checkpoint are from those of the reference.

Both see the same observations and the same noise. What counts for a robot is the difference of the chunks: radians of
joints, metres and radians of poses, the closed fraction of grippers. It says what a precision does to the arithmetic,
and nothing about success at a task, which has to be measured in closed loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.actions import quaternion_to_matrix
from engine.observation.views import view_size
from engine.policy import POSE_COLUMNS, Observation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.contract import Contract
    from engine.policy import Policy

INSTRUCTIONS = (
    'put the red cube in the bowl',
    'open the drawer',
    'wipe the table with the cloth',
    'hand the cup to the person on the left',
)
_BLOBS = 12
_JOINT_SPREAD = 0.4  # rad; well inside the limits of the arms of the contracts


@dataclass(frozen=True)
class Difference:
    """What one quantity differs by over all chunks.

    Attributes:
        unit: 'rad', 'm' or 'closed fraction'.
        rmse: Root of the mean square.
        worst: Largest.
        worst_row: Row of the chunk, from 0, where the largest is.
    """

    unit: str
    rmse: float
    worst: float
    worst_row: int


@dataclass(frozen=True)
class Accuracy:
    """The outcome of a comparison.

    Attributes:
        subject: What was held to the reference.
        reference: What it was held to.
        observations: Number of observations.
        seeds: Number of seeds, each with every observation.
        quantities: By name: joints, positions, rotations and grippers of the contract.
        spread: For comparison, what noise alone changes: the root mean square difference between chunks of the
            reference that differ in their seed, in the unit of the quantity.
    """

    subject: str
    reference: str
    observations: int
    seeds: int
    quantities: Mapping[str, Difference]
    spread: Mapping[str, float]

    @property
    def worst_joint_rmse(self) -> float:
        """Largest root mean square of any angle, rad; 0 without angles."""
        return max((q.rmse for q in self.quantities.values() if q.unit == 'rad'), default=0.0)

    def document(self) -> dict[str, Any]:
        """As plain numbers and texts, for the engine card."""
        return {
            'subject': self.subject,
            'reference': self.reference,
            'observations': self.observations,
            'seeds': self.seeds,
            'quantities': {name: vars(quantity) for name, quantity in self.quantities.items()},
            'spread': dict(self.spread),
        }


def collect_chunks(
    policy: Policy,
    observations: Sequence[Observation],
    seeds: Sequence[int],
    report: Callable[[float], None] | None = None,
) -> NDArray[np.float64]:
    """The chunks of every observation under every seed: [observations, seeds, rows, columns].

    Collected one policy at a time, so that two need not be in memory together.

    Args:
        policy: What runs.
        observations: What it sees.
        seeds: Of its noise.
        report: Is told the share that is done, 0..1.
    """
    chunks = []
    for observation in observations:
        chunks.append([policy.infer(observation, seed).actions.astype(np.float64) for seed in seeds])
        if report is not None:
            report(len(chunks) / len(observations))
    return np.array(chunks)


def compare_chunks(
    contract: Contract, found: NDArray[np.float64], wanted: NDArray[np.float64], names: tuple[str, str]
) -> Accuracy:
    """Compare what two policies of one contract made of the same observations and seeds.

    Args:
        contract: Says what the columns mean.
        found: Chunks of what is judged, from :func:`collect_chunks`.
        wanted: Those of the reference.
        names: What to call the two.
    """
    quantities = {name: _difference(unit, distance(found, wanted)) for name, unit, distance in _quantities(contract)}
    first = np.broadcast_to(wanted[:, :1], wanted[:, 1:].shape)
    spread = {name: _rms(distance(wanted[:, 1:], first)) for name, _, distance in _quantities(contract)}
    observations, seeds = found.shape[:2]
    return Accuracy(*names, observations, seeds, quantities, spread)


def make_observations(contract: Contract, count: int, seed: int = 0) -> list[Observation]:
    """Made-up observations of a contract's kind: smooth pictures, joints and poses around a usual posture.

    They differ from what a camera sees; recorded observations say more wherever they can be had.
    """
    random = np.random.default_rng(seed)
    return [_observation(contract, random, INSTRUCTIONS[index % len(INSTRUCTIONS)]) for index in range(count)]


def _observation(contract: Contract, random: np.random.Generator, instruction: str) -> Observation:
    views, robot = contract.views, contract.robot
    rows, arms, grippers = max(1, contract.embodiment.clean_rows), len(robot.arms), len(robot.grippers)
    size = view_size(views.composition, views.size)
    poses = (rows,) if arms == 1 else (rows, arms)
    turns = random.normal(size=(*poses, 4))
    return Observation(
        images={name: _picture(random, size) for name in views.streams},
        instruction=instruction,
        joint_positions=random.uniform(-_JOINT_SPREAD, _JOINT_SPREAD, (rows, len(robot.joints))),
        gripper_position=random.uniform(0, 1, (rows,) if grippers == 1 else (rows, grippers)),
        end_effector_position=np.array([0.4, 0.0, 0.4]) + random.uniform(-0.1, 0.1, (*poses, 3)),
        end_effector_quaternion=turns / np.linalg.norm(turns, axis=-1, keepdims=True),
    )


def _picture(random: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Coloured blobs on a background: edges and areas, as in a picture, and not the white noise that nothing shows."""
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = random.integers(0, 256, 3)
    for _ in range(_BLOBS):
        centre, radii = random.uniform(0, 1, 2) * size, random.uniform(0.03, 0.3, 2) * size
        inside = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1
        picture[inside] = random.integers(0, 256, 3)
    return picture


Distance = Callable[['NDArray[np.float64]', 'NDArray[np.float64]'], 'NDArray[np.float64]']
"""Differences [observations, seeds, rows] of two arrays of chunks [observations, seeds, rows, columns]."""


def _quantities(contract: Contract) -> Iterator[tuple[str, str, Distance]]:
    """Name, unit and distance of everything that a row of the contract's chunks says."""
    robot = contract.robot
    if contract.embodiment.action_space == 'joint_position':
        for column, joint in enumerate(robot.joints):
            yield joint, 'rad', _column(column)
        column = len(robot.joints)
    else:
        for arm, frame in enumerate(robot.end_effector_frames):
            yield f'{frame} position', 'm', _position(arm)
            yield f'{frame} rotation', 'rad', _rotation(arm)
        column = POSE_COLUMNS * len(robot.arms)
    for number, joint in enumerate(robot.gripper_joints):
        yield joint, 'closed fraction', _column(column + number)


def _column(column: int) -> Distance:
    return lambda a, b: np.abs(a[..., column] - b[..., column])


def _position(arm: int) -> Distance:
    at = slice(POSE_COLUMNS * arm, POSE_COLUMNS * arm + 3)
    return lambda a, b: np.linalg.norm(a[..., at] - b[..., at], axis=-1)


def _rotation(arm: int) -> Distance:
    at = slice(POSE_COLUMNS * arm + 3, POSE_COLUMNS * (arm + 1))

    def angle(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        # Through the chord, not the arc cosine, which loses half of its digits near zero.
        chord = np.linalg.norm(_matrices(a[..., at]) - _matrices(b[..., at]), axis=(-2, -1))
        return 2.0 * np.arcsin(np.clip(chord / np.sqrt(8.0), 0.0, 1.0))

    return angle


def _matrices(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(quaternions, axis=-1, keepdims=True)
    flat = (quaternions / lengths).reshape(-1, 4)
    matrices: NDArray[np.float64] = quaternion_to_matrix(flat).reshape(*quaternions.shape[:-1], 3, 3)
    return matrices


def _difference(unit: str, distances: NDArray[np.float64]) -> Difference:
    rows = distances.max(axis=(0, 1))
    return Difference(unit, _rms(distances), float(distances.max()), int(rows.argmax()))


def _rms(distances: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(distances**2))) if distances.size else 0.0
