"""What a safety simulation is asked for: one list of arguments for command line, launch file and executable.

Nothing here loads the network, the simulator or ROS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmos3_ros.bringup import TRUTH, Argument
from engine.errors import InvalidInput, Problem

ALL = 'all'
LATENCY_S = 0.2
"""From an observation to the arrival of its chunk, unless something else is asked for."""
_SEPARATOR = ','

SAFETY_ARGUMENTS = (
    Argument('contract', 'demo_joint_pos', 'Contract: a name in config/contracts, or the path of a file.'),
    Argument(
        'checkpoint', '', 'Checkpoint: a directory in the public layout, or a hub id. Empty: a tiny random one is made.'
    ),
    Argument(
        'calibration',
        '',
        'Bands that cosmos3 calibrate made. Empty: from nominal episodes of its own, which are tested on nothing.',
    ),
    Argument('rung', 'small', 'How well chunks are imagined: full, long, short, look, brief, small or glance.'),
    Argument('output', 'safety_output', 'Folder for results and report; a second call with the same goes on there.'),
    Argument('seed', '0', 'Decides everything: objects, speeds, hazards, noise.'),
    Argument('hazards', ALL, 'Hazards to put in, separated by commas.'),
    Argument('episodes', '25', 'Test episodes with each hazard.'),
    Argument('nominal', '50', 'Test episodes without a hazard.'),
    Argument('calibration_episodes', '40', 'Nominal episodes for the bands; those that succeed count.'),
    Argument('false_alarm_rate', '0.05', 'Share of successes that may cross the band of one monitor anywhere.'),
    Argument(
        'proposer',
        'expert',
        'Who makes the chunks: a scripted hand, or the policy of the checkpoint.',
        ('expert', 'checkpoint'),
    ),
    Argument('latency', str(LATENCY_S), 'Seconds from an observation to the arrival of its chunk.'),
    Argument('job', 'pick', 'What the arm is about: an object is picked up, or reached for.', ('pick', 'reach')),
    Argument(
        'own_video',
        'true',
        "Let the policy imagine each chunk too: without its video there is no 'disagreement'. Costs time.",
        ('true', 'false'),
    ),
    Argument(
        'pictures',
        'false',
        'Decode what was imagined for now on every rung: else most have no surprise and no standstill. Costs time.',
        ('true', 'false'),
    ),
    Argument(
        'episode',
        '',
        'Recorded episodes in place of the simulator, separated by commas: LeRobot data sets, or folders of one table '
        'and videos.',
    ),
    Argument('workers', '1', 'Processes that share the episodes; each loads the checkpoint.'),
    Argument('device', 'cpu', 'Device of the network: cpu, cuda, cuda:1, ...'),
    Argument('dtype', 'float32', 'Precision of the network: float32, bfloat16 or float16.'),
)


@dataclass(frozen=True)
class SafetyOptions:
    """The choices of one safety simulation; see :data:`SAFETY_ARGUMENTS` for what each means."""

    contract: str = 'demo_joint_pos'
    checkpoint: str = ''
    calibration: str = ''
    rung: str = 'small'
    output: Path = Path('safety_output')
    seed: int = 0
    hazards: tuple[str, ...] = (ALL,)
    episodes: int = 25
    nominal: int = 50
    calibration_episodes: int = 40
    false_alarm_rate: float = 0.05
    proposer: str = 'expert'
    latency: float = LATENCY_S
    job: str = 'pick'
    own_video: bool = True
    pictures: bool = False
    episode: tuple[str, ...] = ()
    workers: int = 1
    device: str = 'cpu'
    dtype: str = 'float32'


_INTEGERS = {'seed': 0, 'episodes': 0, 'nominal': 0, 'calibration_episodes': 0, 'workers': 1}
_LISTS = ('hazards', 'episode')


def safety_options(given: Mapping[str, str]) -> SafetyOptions:
    """Read arguments as text, missing ones at their defaults.

    Raises:
        InvalidInput: A name is unknown or a value cannot be used; lists every fault.
    """
    known = {argument.name: argument for argument in SAFETY_ARGUMENTS}
    problems = [Problem(name, 'unknown argument', allowed=', '.join(known)) for name in given if name not in known]
    values: dict[str, Any] = {}
    for name, argument in known.items():
        text = given.get(name, argument.default)
        if argument.choices and text not in argument.choices:
            problems.append(Problem(name, 'not one of the choices', repr(text), ', '.join(argument.choices)))
        else:
            try:
                values[name] = _value(name, text, argument)
            except ValueError as error:
                problems.append(Problem(name, 'cannot be used', repr(text), str(error)))
    if problems:
        raise InvalidInput('safety simulation', problems)
    return SafetyOptions(**values)


def _value(name: str, text: str, argument: Argument) -> Any:
    """One value of its own type; ValueError with what is allowed."""
    if name in _INTEGERS:
        if not text.strip().isdecimal() or int(text) < _INTEGERS[name]:
            raise ValueError(f'a whole number from {_INTEGERS[name]}')
        return int(text)
    if name == 'false_alarm_rate':
        return _number(text, 'a number above 0 and below 1', lambda rate: 0 < rate < 1)
    if name == 'latency':
        return _number(text, 'seconds from 0, before the next observation', lambda seconds: 0 <= seconds < math.inf)
    if name in _LISTS:
        return tuple(part.strip() for part in text.split(_SEPARATOR) if part.strip())
    if name == 'output':
        return Path(text)
    return TRUTH[text] if argument.choices == tuple(TRUTH) else text


def _number(text: str, allowed: str, fits: Callable[[float], bool]) -> float:
    """A number; ValueError with what is allowed."""
    try:
        number = float(text)
    except ValueError:
        raise ValueError(allowed) from None
    if not fits(number):
        raise ValueError(allowed)
    return number
