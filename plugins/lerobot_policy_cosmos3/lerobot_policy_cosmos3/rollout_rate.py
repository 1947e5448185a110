"""At what rate `lerobot-rollout` plays rows. It never tells a policy, and its default is not that of any contract."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from engine.errors import InvalidInput, Problem

PROGRAM = 'lerobot-rollout'


def check_rollout_rate(fps: float) -> None:
    """Do nothing if rows are played as fast as they are meant, or if this program is no `lerobot-rollout`.

    A robot that plays the rows of a contract at another rate moves faster, or slower, than the policy intends.

    Args:
        fps: Rows a second, by the contract.

    Raises:
        InvalidInput: This program plays them at another rate.
    """
    if Path(sys.argv[0]).stem.replace('_', '-') != PROGRAM:
        return
    given = _asked_for()
    if abs(given - fps) > 1e-3 * fps:
        what = 'is not the rate of the contract, so the robot would move at another speed'
        raise InvalidInput(PROGRAM, [Problem('--fps', what, f'{given:g}', f'{fps:g}', f'--fps={fps:g}')])


def _asked_for() -> float:
    """The rate on the command line, or in its configuration file, or LeRobot's default."""
    from lerobot.configs import parser
    from lerobot.rollout import RolloutConfig

    if (text := parser.parse_arg('fps')) is not None:
        return float(text)
    file = parser.parse_arg('config_path')
    read = yaml.safe_load(Path(file).read_text(encoding='utf-8')) if file else None
    return float((read or {}).get('fps', RolloutConfig.fps))
