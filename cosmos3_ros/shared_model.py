"""Checkpoints that the nodes of one process share: loaded once, kept as long as somebody uses them.

What is loaded in another way, into compiled parts for one node and into PyTorch for another, is loaded twice. All that
runs on one device takes turns all the same, so that the policy goes first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from engine.checkpoint import Checkpoint
    from engine.cosmos3 import Cosmos3
    from engine.reasoner import Reasoner
    from engine.runtime import Runtime
    from engine.turns import Turns


class _Key(NamedTuple):
    """What has to be the same for weights to be shared."""

    checkpoint: str
    device: str
    dtype: str
    backend: str
    compiled: Path | None
    offload: bool


class ModelShelf:
    """Loads checkpoints; who asks for one that is in use gets that. Thread-safe."""

    def __init__(self) -> None:
        """Start empty."""
        self._loading = threading.Lock()
        self._runtimes: WeakValueDictionary[_Key, Runtime] = WeakValueDictionary()
        self._checkpoints: dict[_Key, Checkpoint] = {}
        self._turns: dict[str, Turns] = {}
        self._reasoners: WeakValueDictionary[int, Reasoner] = WeakValueDictionary()

    def reasoner(self, model: Cosmos3) -> Reasoner:
        """The reasoner on the weights of a model; who asks while one is in use gets that, vision encoder and all.

        Raises:
            CosmosError: As :meth:`engine.cosmos3.Cosmos3.reasoner`.
        """
        with self._loading:
            found = self._reasoners.get(id(model.runtime))  # it holds the runtime, so the number is not used again
            if found is None:
                found = self._reasoners[id(model.runtime)] = model.reasoner()
            return found

    def load(
        self,
        checkpoint: str,
        *,
        device: str = 'cpu',
        dtype: str = 'float32',
        backend: str = 'auto',
        compiled: Path | None = None,
        offload: bool = False,
        report: Callable[[str], None] = lambda _text: None,
    ) -> Cosmos3:
        """As :func:`engine.load`, unless that has been done and is still in use.

        Who comes while another is loading waits: it may be the same.

        Raises:
            CosmosError: As :func:`engine.load`.
        """
        import engine
        from engine.cosmos3 import Cosmos3

        key = _Key(checkpoint, _place(device), dtype, backend, compiled, offload)
        with self._loading:
            runtime = self._runtimes.get(key)
            if runtime is not None:
                report('the checkpoint is loaded already, and shared')
                return Cosmos3(self._checkpoints[key], runtime)
            for other in self._runtimes:
                if other.checkpoint == checkpoint:
                    report(f'the checkpoint is loaded already, but otherwise ({_differences(other, key)}): once more')
            model = engine.load(
                checkpoint,
                device=device,
                dtype=dtype,
                backend=backend,
                compiled=compiled,
                offload=offload,
                report=report,
            )
            model.runtime.turns = self._turns.setdefault(_place(device), model.runtime.turns)
            self._runtimes[key], self._checkpoints[key] = model.runtime, model.checkpoint
            self._checkpoints = {known: kept for known, kept in self._checkpoints.items() if known in self._runtimes}
            return model


def _differences(one: _Key, other: _Key) -> str:
    """What keeps two from sharing weights."""
    names = _Key._fields
    return ', '.join(f'{name} {a}, not {b}' for name, a, b in zip(names, one, other, strict=True) if a != b)


def _place(device: str) -> str:
    """One name for each device: 'cuda' is the first GPU."""
    kind, _, index = device.partition(':')
    return kind if kind == 'cpu' else f'{kind}:{index or 0}'


MODELS = ModelShelf()
"""Of this process."""
