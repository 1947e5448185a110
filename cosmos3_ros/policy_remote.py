"""A policy that runs elsewhere, from the parameters of the node: no weights are loaded here, and no network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from cosmos3_ros.parameters import Parameter
from engine.errors import InvalidInput, Problem, ServerUnavailable

if TYPE_CHECKING:
    from engine.contract import Contract
    from engine.serving.client import RemotePolicy

REMOTE = 'remote'
DIALECTS = ('cosmos-framework', 'openpi', 'roboarena', 'vllm-omni')
"""As in engine.serving.dialects, which is not imported for it: local weights need nothing of a network."""


class Values(Protocol):
    """Values of parameters by name."""

    def __getitem__(self, name: str) -> Any:
        """The value of a parameter."""


REMOTE_PARAMETERS = (
    Parameter('url', '', 'Policy server of `backend: remote`: ws://HOST:PORT, or wss:// behind a proxy.'),
    Parameter('dialect', DIALECTS[0], 'What that server speaks.', one_of=DIALECTS),
    Parameter(
        'api_key_variable', '', 'Environment variable that holds the key of that server; empty: it asks for none.'
    ),
    Parameter(
        'deadline_s',
        2.0,
        'Time for an answer of that server, connecting and waiting in line included. The guard rejects chunks that are '
        'older than its `chunk_max_age_s` anyway.',
        's',
        minimum=0.05,
        maximum=600.0,
    ),
    Parameter('remote_rows', 0, 'Rows of a chunk of that server; 0: as the contract says.', minimum=0, maximum=512),
    Parameter(
        'server_timeout_s',
        30.0,
        'How long that server may be gone before the run is given up; the arm is at rest meanwhile.',
        's',
        minimum=0.1,
        maximum=3600.0,
        read_only=False,
    ),
)
_ELSEWHERE = ('checkpoint', 'compiled', 'build', 'offload', 'record_directory')
"""Parameters that say something of weights or of imagined videos, which are not here."""


def load_remote(values: Values, contract: Contract, report: Callable[[str], None]) -> RemotePolicy:
    """Connect, compare contracts, and ask once; a server that is not there yet is waited for later.

    Args:
        values: Of the policy node.
        contract: What the policy is for.
        report: Is told what was found.

    Raises:
        InvalidInput: Parameters are missing or contradict each other, or the server is for another contract.
        ServerError: The server refused, or what it answers is no chunk of the contract.
    """
    problems = [*_problems(values)]
    if problems:
        raise InvalidInput('parameters of a remote policy', problems)
    from engine.serving.client import RemotePolicy

    policy = RemotePolicy(
        values['url'],
        contract,
        dialect_name=values['dialect'],
        api_key=os.environ.get(values['api_key_variable']) if values['api_key_variable'] else None,
        deadline_s=values['deadline_s'],
        rows=values['remote_rows'],
    )
    try:
        policy.connect()
        if values['warm_up']:
            policy.warm_up()
        report(f'the policy runs at {policy.url}, dialect {values["dialect"]}')
    except ServerUnavailable as error:
        report(f'there is no policy server yet, it is asked when there is something to do: {error}')
    except BaseException:
        policy.close()
        raise
    return policy


def _problems(values: Values) -> Iterator[Problem]:
    if not values['url']:
        yield Problem('url', f'must be given with backend: {REMOTE}', allowed='ws://HOST:PORT or wss://HOST:PORT')
    variable = values['api_key_variable']
    if variable and not os.environ.get(variable):
        yield Problem('api_key_variable', 'names a variable that is empty or not set', variable)
    for name in _ELSEWHERE:
        if values[name]:
            yield Problem(name, f'means nothing with backend: {REMOTE}', str(values[name]), remedy='leave it out')
    if values['preset'] != 'reference':
        remedy = 'give it to the server'
        yield Problem('preset', 'is the choice of the server', values['preset'], 'reference', remedy)
    if values['splice'] == 'prefix':
        yield Problem('splice', 'cannot be had from elsewhere', 'prefix', 'blend')
    if values['remote_rows'] == 1:
        yield Problem('remote_rows', 'a single row is no motion', '1', '0, or 2 and more')
