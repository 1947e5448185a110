"""What a server says its policy is for, and in what that differs from the contract of who asks it.

This server says so in a header of its answer to a connection, which disturbs no dialect. Servers of others say less, if
anything, and as their first words: fields of RoboArena's configuration, or what openpi's servers happen to tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine.errors import ContractError, Problem
from engine.serving.cameras import EXTERIORS

if TYPE_CHECKING:
    from engine.checkpoint import Checkpoint
    from engine.contract import Contract

HEADER: Final = 'Cosmos3-Policy'
LONGEST: Final = 4096
"""Characters of a header that is read."""
IDENTITY: Final = ('checkpoint', 'preset', 'dtype', 'compiled', 'contract_fingerprint')
"""Names in a header of what tells a policy from others, if a server says it; clients need not agree with it."""


def terms(contract: Contract, rows: int = 0) -> dict[str, Any]:
    """What both sides have to agree on.

    Args:
        contract: What a policy is for.
        rows: Rows of a chunk, if they are not those of the contract.
    """
    return {
        'contract': contract.name,
        'action_space': contract.embodiment.action_space,
        'action_horizon': rows or contract.timing.chunk_rows,
        'control_hz': contract.timing.fps,
        'joints': list(contract.robot.joints),
        'grippers': [gripper.joint for gripper in contract.robot.grippers],
        'history_rows': contract.embodiment.history_rows,
        'views': list(contract.views.streams),
        'composite': list(contract.views.size),
    }


def identity(checkpoint: Checkpoint, preset: str, dtype: str, compiled: str | Path | None = None) -> dict[str, str]:
    """What tells a policy from others of the same contract.

    Args:
        checkpoint: Where its weights come from.
        preset: How its sampler is run.
        dtype: Its precision.
        compiled: Folder that `cosmos3 compile` made; empty or None: none.

    Raises:
        CosmosError: The compiled parts cannot be read.
    """
    found = {'checkpoint': checkpoint.fingerprint, 'preset': preset, 'dtype': dtype}
    if compiled:
        from engine.backends.card import read_card

        found['compiled'] = read_card(Path(compiled).expanduser()).key
    return found


def header_of(contract: Contract, of_policy: Mapping[str, str]) -> str:
    """The terms, and what tells this policy from others, as one line of ASCII."""
    said = {**terms(contract), 'contract_fingerprint': contract.fingerprint, **of_policy}
    return json.dumps(said, separators=(',', ':'))


def identity_said(said: Mapping[Any, Any]) -> dict[str, str]:
    """What a server says that tells its policy from others; nothing if it does not say."""
    return {name: value[:200] for name in IDENTITY if isinstance(value := said.get(name), str)}


def read_header(text: str | None) -> dict[str, Any]:
    """The terms that a server gave; nothing if it gave none that can be read."""
    try:
        found = json.loads(text) if text is not None and len(text) <= LONGEST else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def check_terms(said: Mapping[Any, Any], contract: Contract, rows: int, who: str) -> None:
    """Do nothing if nothing that a server says contradicts the contract; the name alone may be another.

    Args:
        said: By the server, whatever it is.
        contract: Of who asks.
        rows: Rows of a chunk, if they are not those of the contract.
        who: The server.

    Raises:
        ContractError: Lists every difference.
    """
    wanted = {name: value for name, value in terms(contract, rows).items() if name != 'contract'}
    problems = [
        Problem(name, 'is another one at the server', _told(said[name]), _told(value))
        for name, value in wanted.items()
        if name in said and said[name] != value
    ]
    problems += _views(said, contract)
    if problems:
        named = f', which serves {said["contract"]}' if isinstance(said.get('contract'), str) else ''
        raise ContractError(f'contract {contract.name} at {who}{named[:100]}', problems)


def _views(said: Mapping[Any, Any], contract: Contract) -> Iterator[Problem]:
    """Cameras that RoboArena's servers ask for and that the contract has not."""
    streams = contract.views.streams
    exteriors = sum(view in streams for view in ('main', *EXTERIORS))
    asked = said.get('n_external_cameras')
    if isinstance(asked, int) and asked > exteriors:
        yield Problem('views', 'are fewer exterior ones than the server asks for', str(exteriors), str(asked))
    if said.get('needs_wrist_camera') is True and 'wrist' not in streams:
        yield Problem('views', 'have no wrist, which the server asks for', ', '.join(streams))
    if said.get('needs_stereo_camera') is True:
        yield Problem('views', 'have no pairs of pictures, which the server asks for', ', '.join(streams))


def _told(value: Any) -> str:
    return (', '.join(map(str, value)) if isinstance(value, list) else str(value))[:200]
