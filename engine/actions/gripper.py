"""The gripper, the one place where its polarity changes hands.

Robot convention (messages, joint states, DROID's recordings): 0 is open, 1 is closed.
Model convention (rows of the network): 0 is closed, 1 is open.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from engine.actions.arrays import Floats, as_floats, refuse_rows
from engine.errors import InvalidInput, Problem


def to_model_gripper(closed: ArrayLike) -> Floats:
    """Return the model's value, 1 = open, of a closed fraction in robot convention, 1 = closed. Not clipped."""
    return 1.0 - as_floats(closed, 'gripper')


def to_robot_gripper(opened: ArrayLike) -> Floats:
    """Return the closed fraction in robot convention, 1 = closed, of the model's value, 1 = open. Not clipped."""
    return 1.0 - as_floats(opened, 'gripper')


@dataclass(frozen=True)
class GripperTravel:
    """The two ends of a gripper's travel, as a joint position (m or rad) or as an opening width (m).

    Either end may be the larger: a finger of a Panda opens towards 0.04 m, a Robotiq knuckle closes towards 0.8 rad.

    Attributes:
        open: Position when fully open.
        closed: Position when fully closed.
        slack: How far beyond its ends, as a fraction of the travel, a reading is noise rather than a fault.

    Raises:
        InvalidInput: The ends coincide or are not finite.
    """

    open: float
    closed: float
    slack: float = 0.1

    def __post_init__(self) -> None:
        span = abs(self.open - self.closed)
        if not np.isfinite(span) or span == 0:
            value = f'open {self.open}, closed {self.closed}'
            raise InvalidInput('gripper travel', [Problem('open, closed', 'span no travel', value, 'two positions')])

    def closed_fraction(self, position: ArrayLike) -> Floats:
        """Return 0 at the open end, 1 at the closed end, linear between; readings within the slack are clipped.

        Args:
            position: Measured joint positions or widths, any shape.

        Raises:
            InvalidInput: A reading lies beyond the slack: another joint, another unit, or a broken sensor.
        """
        reading = as_floats(position, 'gripper position')
        fraction = (reading - self.open) / (self.closed - self.open)
        beyond = np.abs(fraction - 0.5) > 0.5 + self.slack
        refuse_rows(
            beyond,
            reading,
            'gripper position',
            what='is beyond its travel',
            allowed=f'{self.open:g} (open) to {self.closed:g} (closed)',
            remedy='check the joint name and the unit',
        )
        return np.clip(fraction, 0.0, 1.0)

    def position(self, closed: ArrayLike) -> Floats:
        """Return the position to command for closed fractions (0 open, 1 closed); clipped, for the ends are stops."""
        fraction = np.clip(as_floats(closed, 'gripper'), 0.0, 1.0)
        return np.asarray(self.open + fraction * (self.closed - self.open))
