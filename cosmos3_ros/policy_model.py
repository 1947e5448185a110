"""From the parameters of a node to a policy that is loaded, built if need be, and warm."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos3_ros.parameters import Parameter, Required
from cosmos3_ros.policy_remote import REMOTE, REMOTE_PARAMETERS, Values, load_remote
from cosmos3_ros.shared_model import MODELS
from engine.backends.choice import AUTO, BACKENDS, TORCH
from engine.contract_sampler import PRESETS
from engine.cosmos3 import COMPILED_AS, PRECISIONS
from engine.errors import InvalidInput, Problem

if TYPE_CHECKING:
    from engine.contract import Contract
    from engine.policy import Policy
    from engine.serving.client import RemotePolicy

Report = Callable[[str], None]


MODEL_PARAMETERS = (
    Parameter('contract', Required(str), 'Contract: a name in config/contracts, or a path.'),
    Parameter(
        'checkpoint',
        Required(str),
        'Checkpoint: a directory in the public layout, a hub id, or cosmos3-micro, which ships.',
    ),
    Parameter('device', 'cpu', 'Device of the network: cpu, cuda, cuda:1, ...'),
    Parameter('dtype', 'float32', 'Computing precision; compiled parts bring their own.', one_of=PRECISIONS),
    Parameter(
        'backend',
        AUTO,
        'What runs the network; auto: engines or graphs if compiled parts are given, else compiled layers on a GPU.',
        one_of=BACKENDS,
    ),
    Parameter('compiled', '', 'Folder that cosmos3 compile made of this checkpoint for this contract; empty: none.'),
    Parameter(
        'build',
        False,
        'Compile into the folder of `compiled` while configuring, unless what is there is the very same already: '
        'engines for the GPU of this machine, graphs where there is none.',
    ),
    Parameter(
        'offload',
        False,
        'Keep the understanding tower in host memory: a GPU of 24 GB then holds a Nano, and a new prompt takes longer.',
    ),
    Parameter(
        'preset',
        'reference',
        "Denoising steps and guidance: the contract's own (reference), or two guided steps (fast).",
        one_of=tuple(PRESETS),
    ),
    Parameter('warm_up', True, 'Run one inference while configuring, so that the first chunk is not late.'),
)


def _of_policy(parameter: Parameter) -> Parameter:
    """A parameter of local weights as the policy node has it, whose policy may run elsewhere."""
    if parameter.name == 'checkpoint':
        description = parameter.description.removesuffix('.') + f'; none with `backend: {REMOTE}`.'
        return replace(parameter, default='', description=description)
    if parameter.name == 'backend':
        description = parameter.description.removesuffix('.') + f'; {REMOTE}: the policy server at `url`.'
        return replace(parameter, one_of=(*parameter.one_of, REMOTE), description=description)
    return parameter


POLICY_PARAMETERS = (*map(_of_policy, MODEL_PARAMETERS), *REMOTE_PARAMETERS)
"""Of a policy that is loaded here or asked elsewhere."""


def find_policy(values: Values, contract: Contract, report: Report) -> Policy | RemotePolicy:
    """The policy that `POLICY_PARAMETERS` name: weights of this process, or a server.

    Raises:
        CosmosError: As :func:`load_policy` and :func:`~cosmos3_ros.policy_remote.load_remote`.
    """
    if values['backend'] == REMOTE:
        return load_remote(values, contract, report)
    if not values['checkpoint']:
        remedy = f'give a directory or a hub id, or backend: {REMOTE} and url'
        problem = Problem('checkpoint', f'must be given with backend: {values["backend"]}', remedy=remedy)
        raise InvalidInput('parameters of the policy', [problem])
    return load_policy(values, contract, report)


def load_policy(values: Values, contract: Contract, report: Report) -> Policy:
    """Do everything that takes time before the first observation.

    Args:
        values: Of `MODEL_PARAMETERS`.
        contract: The one that `values` names, with the preset.
        report: Is told what is done, what was chosen and why, and how long it took.

    Raises:
        CosmosError: Something does not fit or is missing; says what and what to do.
    """
    compiled = Path(values['compiled']).expanduser() if values['compiled'] else None
    if values['build']:
        _build(values, contract, report)
    model = MODELS.load(
        values['checkpoint'],
        device=values['device'],
        dtype=values['dtype'],
        backend=values['backend'],
        compiled=compiled,
        offload=values['offload'],
        report=report,
    )
    policy = model.policy(contract)
    if values['warm_up']:
        _warm_up(policy, report)
    return policy


def _warm_up(policy: Policy, report: Report) -> None:
    """The first inference allocates, tunes and compiles. The second, where that is much, tells how long one takes."""
    began = time.monotonic()
    policy.warm_up()
    report(f'warmed up in {time.monotonic() - began:.1f} s')
    if policy.runtime.backend.name != TORCH:
        began = time.monotonic()
        policy.warm_up()
        report(f'a chunk takes {time.monotonic() - began:.2f} s')


def _build(values: Values, contract: Contract, report: Report) -> None:
    from engine.backends.tensorrt_api import NATIVE, gpu_of
    from engine.checkpoint import open_checkpoint
    from engine.export.compiling import Order, compile_checkpoint

    precision, problems = COMPILED_AS.get(values['dtype']), []
    if not values['compiled']:
        problems.append(Problem('compiled', 'is empty', remedy='name the folder to build into'))
    if precision is None:
        problems.append(Problem('dtype', 'cannot be compiled', values['dtype'], ', '.join(COMPILED_AS)))
    if precision is None or problems:
        raise InvalidInput('parameter build', problems)
    targets = (NATIVE,) if gpu_of() else ()
    stages = _Stages(report)
    # Without the decoder: the node keeps latents, and whoever wants to see them has PyTorch.
    order = Order(open_checkpoint(values['checkpoint']), contract, precision, targets, decoder=False)
    made = compile_checkpoint(order, Path(values['compiled']).expanduser(), stages.progress)
    report(f'{made.folder}: {"already built" if made.cached else "built"}, {made.card.precision}')


class _Stages:
    """Turns the progress of a compilation into a line for each stage that begins."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._stage = ''

    def progress(self, what: str, share: float) -> None:
        if what != self._stage:
            self._stage = what
            self._report(f'building {what}')
