"""The face of the engine: load a checkpoint once, hand out its surfaces."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from engine.errors import ContractError, CosmosError, InvalidInput, Problem

if TYPE_CHECKING:
    import torch

    from engine.backends.base import Backend
    from engine.backends.card import Card
    from engine.backends.torch_reference import TorchReference
    from engine.checkpoint import Checkpoint
    from engine.contract import Contract
    from engine.dynamics import Dynamics, DynamicsTerms
    from engine.policy import Policy
    from engine.reasoner import Reasoner
    from engine.runtime import Runtime


FP8 = 'fp8'
PRECISIONS = ('float32', 'bfloat16', 'float16', 'float64', FP8)
COMPILED_AS = {'float32': 'fp32', 'float16': 'fp16', 'bfloat16': 'bf16', FP8: 'fp8'}
"""What compiled parts call a precision; float64 is not compiled."""
AUTO = 'auto'  # as in engine.backends.choice, which is not imported for it: it imports PyTorch
_LOG = logging.getLogger(__name__)


class Cosmos3:
    """A loaded checkpoint: one copy of the weights, from which every surface is served."""

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        """Use :func:`load`."""
        self.checkpoint = checkpoint
        self.runtime = runtime
        self._reasoner: Reasoner | None = None
        self._making = threading.Lock()

    @property
    def family(self) -> str:
        """Model family: `nano`, `super` or `edge`."""
        return self.checkpoint.family

    def policy(self, contract: Contract) -> Policy:
        """The policy surface for one contract.

        Raises:
            ContractError: The contract does not fit this checkpoint, or the compiled parts that stand in for it; lists
                every difference.
        """
        from engine.backends.compiled import CompiledBackend, layout_differences
        from engine.policy import Policy, canvas_of, layout_of

        problems = contract_differences(self.checkpoint, contract)
        if problems:
            raise ContractError(f'contract {contract.name} and checkpoint {self.checkpoint.root}', problems)
        backend = self.runtime.backend
        if isinstance(backend, CompiledBackend):
            problems = [*layout_differences(backend.card, layout_of(contract), canvas_of(contract).size)]
            if problems:
                made_for = backend.card.contract['name']
                raise ContractError(f'contract {contract.name} and parts compiled for {made_for}', problems)
        return Policy(self.runtime, contract)

    def dynamics(self, terms: Contract | DynamicsTerms) -> Dynamics:
        """The dynamics surface: for what a contract's policy sees, or for terms of its own.

        Raises:
            ContractError: The terms do not fit this checkpoint, or its embodiment has no poses; lists every difference.
            InvalidInput: The model was loaded from compiled parts, which hold the step of a policy alone.
        """
        from engine.backends.compiled import CompiledBackend
        from engine.dynamics import Dynamics, DynamicsTerms

        if isinstance(self.runtime.backend, CompiledBackend):
            remedy = 'load the checkpoint without them'
            raise InvalidInput(
                'dynamics', [Problem('compiled parts', 'hold the step of a policy alone', remedy=remedy)]
            )
        contract = None if isinstance(terms, DynamicsTerms) else terms
        wanted = terms if isinstance(terms, DynamicsTerms) else DynamicsTerms.of_contract(terms)
        problems = action_differences(self.checkpoint, 'raw_dim', wanted.raw_dim)
        if problems:
            raise ContractError(f'dynamics of {wanted.embodiment.name} and checkpoint {self.checkpoint.root}', problems)
        return Dynamics(self.runtime, wanted, contract)

    def reasoner(self) -> Reasoner:
        """The reasoner surface: it answers questions about pictures and videos in words.

        There is one for all who ask. The first call loads the vision encoder, if the checkpoint has one; everything
        else is there already.

        Raises:
            InvalidInput: The checkpoint, or the way in which it was loaded, leaves out what it takes; lists every
                reason.
            CheckpointError: The vision encoder or the files that describe prompts are damaged; lists every fault.
        """
        problems = [*reasoner_obstacles(self.checkpoint, self.runtime.backend)]
        if problems:
            raise InvalidInput(f'reasoner of {self.checkpoint.root}', problems)
        with self._making:
            if self._reasoner is None:
                self._reasoner = make_reasoner(self.checkpoint, self.runtime)
            return self._reasoner


def reasoner_obstacles(checkpoint: Checkpoint, backend: Backend) -> Iterator[Problem]:
    """Everything that keeps a reasoner from being made."""
    from engine.backends.torch_reference import TorchReference

    remedy = 'download or write this file again'
    if not checkpoint.has_language_head:
        yield Problem('lm_head.weight', 'is not in this checkpoint', remedy='use one whose export kept the reasoner')
    for name in ('tokenizer.json', 'chat_template.jinja'):
        if not (checkpoint.root / name).exists():
            yield Problem(name, 'is missing beside config.json', remedy=remedy)
    if not checkpoint.ends_of_answer:
        what = 'is missing, and so is that of config.json'
        yield Problem('generation_config.json: eos_token_id', what, remedy=remedy)
    if not isinstance(backend, TorchReference):
        yield Problem('compiled parts', 'do not hold the language head', backend.name, remedy='load without them')
    elif checkpoint.has_language_head and backend.transformer.lm_head is None:
        yield Problem('surfaces', 'were loaded without the reasoner', remedy="load the transformer with 'reasoner' too")


def make_reasoner(checkpoint: Checkpoint, runtime: Runtime) -> Reasoner:
    """The reasoner of a checkpoint on what a runtime has loaded; see :meth:`Cosmos3.reasoner`."""
    from engine.reasoner import Parts, Reasoner
    from engine.reasoner_reading import Reader

    transformer = cast('TorchReference', runtime.backend).transformer
    encoder = None
    if checkpoint.has_vision_encoder:
        encoder = checkpoint.load_vision_encoder(transformer.device, transformer.dtype)
    reader = Reader(checkpoint.load_processor(), checkpoint.config)
    limit = checkpoint.config['text_config']['max_position_embeddings']
    return Reasoner(runtime, Parts(transformer, encoder, reader, checkpoint.ends_of_answer, limit))


def contract_differences(checkpoint: Checkpoint, contract: Contract) -> list[Problem]:
    """Everything in which a contract and a checkpoint disagree; empty if they fit."""
    problems = []
    if checkpoint.family not in contract.checkpoint.families:
        problems.append(
            Problem(
                'checkpoint.families',
                'this checkpoint is of another family',
                checkpoint.family,
                ', '.join(contract.checkpoint.families),
                'choose another checkpoint or contract',
            )
        )
    problems += action_differences(checkpoint, 'embodiment.raw_action_dim', contract.embodiment.raw_action_dim)
    terms = checkpoint.provenance.get('policy') or {}
    declared = (
        ('timing.chunk_rows', 'action_chunk_size', contract.timing.chunk_rows),
        ('timing.fps', 'conditioning_fps', contract.timing.fps),
        ('embodiment.domain', 'domain_name', contract.embodiment.domain),
    )
    for key, name, value in declared:
        if name in terms and terms[name] != value:
            problems.append(Problem(key, f'differs from checkpoint.json policy.{name}', str(value), str(terms[name])))
    return problems


def action_differences(checkpoint: Checkpoint, where: str, width: int) -> list[Problem]:
    """What keeps a checkpoint from reading or writing rows of `width` numbers; `where` names that figure."""
    most = checkpoint.transformer_config.action_dim
    if not checkpoint.has_action:
        return [Problem('transformer', 'has no action head', 'action_gen false', '', 'use a checkpoint with actions')]
    if width > (most or 0):
        return [Problem(where, 'exceeds the width of the action head', str(width), f'at most {most}')]
    return []


def load(
    source: str | Path,
    device: str | torch.device = 'cpu',
    dtype: str | torch.dtype = 'float32',
    *,
    backend: str = AUTO,
    compiled: str | Path | None = None,
    offload: bool = False,
    report: Callable[[str], None] = _LOG.info,
) -> Cosmos3:
    """Load a checkpoint in the public layout.

    Args:
        source: Directory, or hub id when the network is there.
        device: Where the weights go, e.g. `cpu` or `cuda`.
        dtype: Computing precision, one of `PRECISIONS`: a type of PyTorch, or 'fp8': bfloat16 with the matrix products
            of the generation tower in FP8. Compiled parts bring their own.
        backend: What runs the network: 'torch', 'torch-compiled', 'onnxruntime', 'tensorrt', or 'auto', which chooses
            by what is given and what is here (:mod:`engine.backends.choice`).
        compiled: Folder that `cosmos3 compile` made of this checkpoint; its parts run in place of PyTorch.
        offload: Keep what runs once for a prompt (the understanding tower) out of the GPU's memory; a new prompt then
            takes as long as its weights need to get there. With it a Nano in bfloat16 fits into 24 GB.
        report: Is told what is done, which backend was chosen and why, and how long each stage took.

    Returns:
        The model, ready to hand out surfaces.

    Raises:
        CheckpointError: The checkpoint is incomplete or damaged; lists every fault by file and tensor.
        EngineError: The compiled parts are damaged, or not of this checkpoint; lists every reason.
        InvalidInput: The backend cannot run here; lists everything that speaks against it.
        CosmosError: The device or dtype is not to be had.
    """
    from engine.backends.card import read_card
    from engine.backends.choice import TORCH_COMPILED, Machine, choose
    from engine.checkpoint import open_checkpoint

    where = usable_device(device)
    _check_dtype(dtype)
    clock = _Clock(report)
    checkpoint = open_checkpoint(source)
    clock.stage('checkpoint verified')
    card = None
    if compiled is not None:
        card = read_card(Path(compiled))
        clock.stage(f'compiled parts verified, {card.precision}, made {card.made}')
    chosen = choose(backend, where, card, Machine.this(where))
    report(f'backend {chosen.name}: {chosen.reason}')
    if card is not None and compiled is not None:
        model = load_compiled(Path(compiled), card, checkpoint, chosen.name, where, offload=offload)
    else:
        compiles = chosen.name == TORCH_COMPILED
        model = load_with_torch(checkpoint, where, dtype, layers_compiled=compiles, offload=offload)
    runs = model.runtime.backend
    clock.stage(f'weights loaded for {runs.name} on {runs.device}')
    return model


def load_compiled(
    folder: Path, card: Card, checkpoint: Checkpoint, backend: str, device: torch.device, *, offload: bool = False
) -> Cosmos3:
    """Open verified compiled parts of a verified checkpoint; see :func:`load` for the arguments."""
    import torch

    from engine.backends.opening import check_origin, open_compiled
    from engine.runtime import Runtime

    check_origin(folder, card, checkpoint.fingerprint)
    config = checkpoint.transformer_config
    runs, vae = open_compiled(folder, card, config, backend, device, offload=offload)
    dtype = torch.float32 if vae.device.type == 'cpu' else torch.bfloat16
    vae.elsewhere = lambda: checkpoint.load_vae(vae.device, dtype)
    return Cosmos3(checkpoint, Runtime(runs, vae, checkpoint.load_tokenizer()))


def load_with_torch(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: str | torch.dtype,
    *,
    layers_compiled: bool = False,
    offload: bool = False,
) -> Cosmos3:
    """Load a verified checkpoint into PyTorch; see :func:`load` for the arguments."""
    from engine.backends.torch_reference import TorchReference
    from engine.runtime import Runtime

    precision = _dtype('bfloat16' if dtype == FP8 else dtype)
    vae = checkpoint.load_vae(device, precision)
    transformer = checkpoint.load_transformer(device, precision, offload=offload)
    if dtype == FP8:
        from engine.network.fp8 import quantise_generation

        quantise_generation(transformer)
    runs: Backend = TorchReference(transformer, offload=offload)
    if layers_compiled:
        from engine.backends.torch_compiled import TorchCompiled

        runs = TorchCompiled(transformer, offload=offload)
    return Cosmos3(checkpoint, Runtime(runs, vae, checkpoint.load_tokenizer()))


class _Clock:
    """Tells how long each stage took."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._last = time.perf_counter()

    def stage(self, done: str) -> None:
        now = time.perf_counter()
        self._report(f'{done} ({now - self._last:.1f} s)')
        self._last = now


def usable_device(device: str | torch.device) -> torch.device:
    """A device by its name.

    Raises:
        CosmosError: It is not to be had.
    """
    import torch

    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise CosmosError(f'device {str(device)!r} cannot be used here: {error}') from error
    return chosen


def _check_dtype(dtype: str | torch.dtype) -> None:
    if dtype != FP8:
        _dtype(dtype)


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    import torch

    names: dict[str, torch.dtype] = {name: getattr(torch, name) for name in PRECISIONS if name != FP8}
    if isinstance(dtype, torch.dtype) and dtype in names.values():
        return dtype
    if isinstance(dtype, str) and dtype in names:
        return names[dtype]
    raise CosmosError(f'dtype {dtype!r} is not one of {", ".join(PRECISIONS)}')
