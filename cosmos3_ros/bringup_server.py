"""A policy server in a process of its own, described once for `launch/server.launch.py` and the runner. No ROS here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cosmos3_ros.bringup import (
    LAUNCH_ARGUMENTS,
    PACKAGE,
    TRUTH,
    Argument,
    ProcessSpec,
    node_problems,
    params_file,
    read_arguments,
)
from engine.contract import load_contract
from engine.errors import InvalidInput, Problem

_AS_EVER = (
    'contract',
    'checkpoint',
    'device',
    'compiled',
    'preset',
    'namespace',
    'params_file',
    'log_level',
    'autostart',
)

SERVER_ARGUMENTS = (
    *(argument for argument in LAUNCH_ARGUMENTS if argument.name in _AS_EVER),
    Argument('host', '', 'Address to listen at; 0.0.0.0: the whole network. Empty: as in the parameter file.'),
    Argument('port', '', 'Port to listen at; 0: any that is free. Empty: as in the parameter file.'),
    Argument('dialect', '', 'The only one that is spoken, or auto. Empty: as in the parameter file.'),
    Argument(
        'api_key_variable',
        '',
        'Environment variable with the key that clients have to show. Empty: as in the parameter file.',
    ),
)


def server_processes(given: Mapping[str, str]) -> tuple[ProcessSpec, ...]:
    """The one process, from arguments as text.

    Raises:
        InvalidInput: Arguments are unknown, wrong or missing; lists every fault.
        ContractError: The contract is faulty.
    """
    values = read_arguments(SERVER_ARGUMENTS, given)
    contract = load_contract(values['contract'])
    checkpoint = values['checkpoint'] or contract.checkpoint.policy or ''
    problems = [*_problems(values, checkpoint)]
    if problems:
        raise InvalidInput('launch arguments', problems)
    parameters: dict[str, Any] = {
        name: value for name in ('device', 'preset', 'host', 'dialect', 'api_key_variable') if (value := values[name])
    }
    if values['compiled']:
        parameters['compiled'] = str(Path(values['compiled']).expanduser().absolute())
    if values['port']:
        parameters['port'] = int(values['port'])
    parameters |= {'contract': values['contract'], 'checkpoint': checkpoint, 'autostart': TRUTH[values['autostart']]}
    return (
        ProcessSpec(
            'server',
            'host',
            f'{PACKAGE}.host',
            parameters=parameters,
            parameter_files=(params_file(values['params_file']),),
            namespace=values['namespace'].strip('/'),
            log_level=values['log_level'],
            essential=True,
            nodes=('server',),
        ),
    )


def _problems(values: Mapping[str, str], checkpoint: str) -> list[Problem]:
    problems = []
    if not checkpoint:
        remedy = (
            'give a directory, a hub id, or cosmos3-micro, which ships; `cosmos3 make-tiny DIR` writes a random one'
        )
        problems.append(Problem('checkpoint', 'must be given: the contract names none', remedy=remedy))
    if values['port'] and not (values['port'].isdecimal() and int(values['port']) <= 65535):
        problems.append(Problem('port', 'is no port', repr(values['port']), '0 to 65535'))
    return [*problems, *node_problems(values['namespace'], values['params_file'])]
