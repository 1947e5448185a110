"""From the parameters of a node to a policy that is loaded, built if need be, and warm."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cosmos3_ros.parameters import Parameter, Required
from cosmos3_ros.shared_model import MODELS
from engine.backends.choice import AUTO, BACKENDS, TORCH
from engine.contract_sampler import PRESETS
from engine.cosmos3 import COMPILED_AS, PRECISIONS
from engine.errors import InvalidInput, Problem

if TYPE_CHECKING:
    from engine.contract import Contract
    from engine.policy import Policy

Report = Callable[[str], None]


class Values(Protocol):
    """Values of parameters by name."""

    def __getitem__(self, name: str) -> Any:
        """The value of a parameter."""


MODEL_PARAMETERS = (
    Parameter('contract', Required(str), 'Contract: a name in config/contracts, or a path.'),
    Parameter('checkpoint', Required(str), 'Checkpoint: a directory in the public layout, or a hub id.'),
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
