"""From the parameters of a node to a reasoner: the weights of this process, or an endpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

from cosmos3_ros.parameters import Parameter, ParameterSet
from cosmos3_ros.shared_model import MODELS
from engine.cosmos3 import PRECISIONS
from engine.errors import InvalidInput, Problem
from engine.reasoner_checks import Dialect
from engine.reasoner_remote_body import PictureFormat
from engine.reasoner_talk import Talker

if TYPE_CHECKING:
    from engine.cosmos3 import Cosmos3

LOCAL, REMOTE = 'local', 'remote'
RUNTIMES = ('auto', 'torch', 'torch-compiled')
"""Of :data:`engine.backends.choice.BACKENDS` those that can hold a reasoner; not imported, since that takes PyTorch."""

BACKEND_PARAMETERS = (
    Parameter(
        'backend',
        LOCAL,
        'Who answers: the weights of this process, those of the policy if it is here (local), or an OpenAI-compatible '
        'endpoint (remote), for which none are loaded.',
        one_of=(LOCAL, REMOTE),
    ),
    Parameter('checkpoint', '', 'Checkpoint of a local back end: a directory in the public layout, or a hub id.'),
    Parameter('device', 'cpu', 'Device of the network: cpu, cuda, cuda:1, ...'),
    Parameter('dtype', 'float32', 'Computing precision.', one_of=PRECISIONS),
    Parameter(
        'runtime',
        'auto',
        'What runs the network, as the `backend` of the policy: weights are shared if both say the same.',
        one_of=RUNTIMES,
    ),
    Parameter('offload', False, 'As for the policy: weights are shared if both say the same.'),
    Parameter('url', '', 'Endpoint of a remote back end, version included, such as http://localhost:8000/v1.'),
    Parameter('remote_model', '', 'Name of the model at the endpoint.'),
    Parameter(
        'api_key_variable', '', 'Environment variable that holds the API key of the endpoint; empty: it asks for none.'
    ),
    Parameter(
        'dialect',
        'vllm',
        'What the endpoint understands: vLLM and NIM (vllm), or the bare protocol (openai).',
        one_of=get_args(Dialect),
    ),
    Parameter(
        'picture_format',
        'png',
        'How pictures go to the endpoint: exactly (png), or in a tenth of the size (jpeg).',
        one_of=get_args(PictureFormat),
    ),
    Parameter(
        'timeout_s',
        30.0,
        'How long an answer may take, if the question does not say.',
        's',
        minimum=0.1,
        maximum=600.0,
    ),
)


def make_talker(values: ParameterSet, report: Callable[[str], None]) -> tuple[Talker, str]:
    """Who answers, and how that is called in a status.

    Raises:
        CosmosError: Parameters are missing or do not fit, or the checkpoint cannot be loaded; says what and what to do.
    """
    problems = [*_problems(values)]
    if problems:
        raise InvalidInput('parameters of the reasoner', problems)
    if values['backend'] == REMOTE:
        return _remote(values), values['url']
    model = MODELS.load(
        values['checkpoint'],
        device=values['device'],
        dtype=values['dtype'],
        backend=values['runtime'],
        offload=values['offload'],
        report=report,
    )
    return MODELS.reasoner(model), LOCAL


def _remote(values: ParameterSet) -> Talker:
    from engine.reasoner_remote import RemoteTalker

    return RemoteTalker(
        values['url'],
        values['remote_model'],
        api_key=os.environ.get(values['api_key_variable'], ''),
        timeout_s=600.0,  # the asker's own limit comes first
        dialect=values['dialect'],
        pictures=values['picture_format'],
    )


def advising_talker(values: ParameterSet, model: Cosmos3) -> Talker:
    """Who has an opinion of what the dynamics node imagines: an endpoint, or the weights that imagined it.

    Raises:
        CosmosError: Parameters are missing or do not fit, or the checkpoint holds no reasoner.
    """
    from engine.reasoner_remote import RemoteTalker

    url, name, variable = values['opinion_url'], values['opinion_model'], values['opinion_key_variable']
    if not url:
        return MODELS.reasoner(model)
    problems = [] if name else [Problem('opinion_model', 'must be given with opinion_url')]
    if variable and not os.environ.get(variable):
        problems.append(Problem('opinion_key_variable', 'names a variable that is not set', variable))
    if problems:
        raise InvalidInput('parameters of opinions', problems)
    return RemoteTalker(url, name, api_key=os.environ.get(variable, ''), timeout_s=600.0)


def _problems(values: Any) -> list[Problem]:
    needed = ('checkpoint',) if values['backend'] == LOCAL else ('url', 'remote_model')
    problems = [
        Problem(name, f'must be given with backend: {values["backend"]}') for name in needed if not values[name]
    ]
    variable = values['api_key_variable']
    if values['backend'] == REMOTE and variable and not os.environ.get(variable):
        problems.append(Problem('api_key_variable', 'names a variable that is not set', variable))
    return problems
