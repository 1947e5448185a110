"""Both flavours of TensorRT behind one small face: full TensorRT, and TensorRT for RTX.

They share their interface and differ in what they can do. Full TensorRT (10.16 on Jetson, 11) builds on the GPU that
the engine is for. TensorRT-RTX builds anywhere, without a GPU too, for the GPUs that are named, and finishes the
kernels where the engine is loaded; it knows neither Hopper nor the data-centre Blackwells nor Jetson.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.errors import CosmosError, InvalidInput, Problem

_LOG = logging.getLogger(__name__)

FULL, RTX = 'tensorrt', 'tensorrt_rtx'
NATIVE = 'native'
"""Target: the GPU of this machine."""
_MODULES = {FULL: ('tensorrt',), RTX: ('tensorrt_rtx', 'tensorrt_rtx_bindings')}
INSTALL = {
    FULL: 'pip install tensorrt (on a Jetson: the packages of JetPack)',
    RTX: 'pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs (requirements/compile.txt)',
}
_TARGET = re.compile(r'sm_?(\d+)', re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class TensorRt:
    """One flavour that is installed.

    Attributes:
        flavour: 'tensorrt' or 'tensorrt_rtx'.
        version: Its version.
        api: Its Python module.
    """

    flavour: str
    version: str
    api: Any

    @property
    def targets(self) -> tuple[str, ...]:
        """GPUs it can build for without having them, such as 'sm_89'; empty: only for the one at hand."""
        if self.flavour == FULL:
            return ()
        names = [name for name in dir(self.api.ComputeCapability) if re.fullmatch(r'SM\d+', name)]
        return tuple(f'sm_{name[2:]}' for name in sorted(names, key=lambda name: int(name[2:])))

    def check_targets(self, targets: Sequence[str], gpu: tuple[str, str] | None) -> tuple[str, ...]:
        """Targets in one spelling.

        Args:
            targets: 'native', or names such as 'sm_89'.
            gpu: Name and target of the GPU of this machine; None if there is none.

        Raises:
            InvalidInput: This flavour cannot build for one of them; says which one can.
        """
        problems = [*_unwanted(self, targets, gpu)]
        if problems:
            raise InvalidInput(f'targets of {self.flavour} {self.version}', problems)
        return tuple(dict.fromkeys(_spelled(target) for target in targets))


def _spelled(target: str) -> str:
    found = _TARGET.fullmatch(target.strip())
    return f'sm_{found[1]}' if found else target.strip().lower()


def _unwanted(tensorrt: TensorRt, targets: Sequence[str], gpu: tuple[str, str] | None) -> Iterator[Problem]:
    known = tensorrt.targets
    if not targets:
        yield Problem('target', 'is missing', allowed=f'{NATIVE}, {", ".join(known)}')
    for target in map(_spelled, targets):
        if target == NATIVE and gpu is None:
            remedy = f'name the GPU it is for: {", ".join(known)}' if known else 'build on the machine that has the GPU'
            yield Problem(NATIVE, 'there is no GPU on this machine', remedy=remedy)
        elif target == NATIVE and known and gpu is not None and gpu[1] not in known:
            remedy = f'full TensorRT ({INSTALL[FULL]}), or the backend torch-compiled'
            yield Problem(
                f'{gpu[0]} ({gpu[1]})', 'is not supported by TensorRT-RTX', allowed=', '.join(known), remedy=remedy
            )
        elif target != NATIVE and not known and (gpu is None or target != gpu[1]):
            remedy = f'TensorRT-RTX can build for other GPUs: {INSTALL[RTX]}'
            yield Problem(
                target, 'full TensorRT builds for the GPU of this machine alone', allowed=NATIVE, remedy=remedy
            )
        elif target != NATIVE and known and target not in known:
            remedy = f'full TensorRT on that GPU ({INSTALL[FULL]}), or the backend torch-compiled'
            yield Problem(target, 'is not supported by TensorRT-RTX', allowed=', '.join(known), remedy=remedy)


def find_tensorrt(flavour: str | None = None) -> TensorRt:
    """The flavour that is asked for; None: the full one if it is there, else that for RTX.

    Raises:
        CosmosError: It is not installed; says how to get it.
    """
    wanted = (flavour,) if flavour else (FULL, RTX)
    if flavour is not None and flavour not in _MODULES:
        raise CosmosError(f'unknown flavour of TensorRT {flavour!r}; there are {FULL} and {RTX}')
    reasons = []
    for name in wanted:
        for module in _MODULES[name]:
            try:
                api = importlib.import_module(module)
            except (ImportError, OSError) as error:
                reasons.append(f'{module}: {error}')
                continue
            return TensorRt(name, str(api.__version__), api)
    ways = '; '.join(INSTALL[name] for name in wanted)
    raise CosmosError(f'TensorRT is not installed ({"; ".join(reasons)}); {ways}')


def gpu_of(device: Any = None) -> tuple[str, str] | None:
    """Name of a GPU and its target, such as ('NVIDIA GeForce RTX 4090', 'sm_89'); None if there is none.

    Args:
        device: A `torch.device`; of one that is no GPU, or without it, the present GPU is told.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    which = device if device is not None and device.type == 'cuda' else None
    major, minor = torch.cuda.get_device_capability(which)
    return torch.cuda.get_device_name(which), f'sm_{major}{minor}'


@dataclass
class Messages:
    """What TensorRT says while it works: everything goes to the log, and the faults are kept for the error text."""

    faults: list[str] = field(default_factory=list)

    def logger(self, api: Any) -> Any:
        """A logger that TensorRT can be given; it must be kept as long as anything made with it."""
        severity = api.ILogger
        levels = {
            severity.INTERNAL_ERROR: logging.ERROR,
            severity.ERROR: logging.ERROR,
            severity.WARNING: logging.WARNING,
            severity.INFO: logging.DEBUG,
        }
        keep = self.faults

        class Logger(api.ILogger):
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, text: str) -> None:
                level = levels.get(severity)
                if level is not None:
                    _LOG.log(min(level, logging.INFO), '%s', text)
                if level == logging.ERROR:
                    keep.append(text)

        return Logger()
