"""The one interface that every way of running the network has: a prefix once per prompt, then fixed-shape steps.

    prefix = backend.prefix(ids)                 # once per prompt
    step = backend.step(prefix, layout)          # once per request: everything that is the same in all of its steps
    for t in timesteps:
        velocities = step(tokens, t)

A step works on tokens, as the network does, so that a request is cut into patches once and put together once.

Requests take turns (:mod:`engine.turns`): between two calls of a step, steps of other requests may be made and called.
A step therefore keeps what it was made with, or puts it back in place in every call. Where nothing but local variables
lives, between two layers say, a backend calls :func:`engine.turns.give_way`, so that an urgent request need not wait
for the end of the pass; not while a graph is recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from engine.network.placement import Tokens
    from engine.network.transformer import Prefix
    from engine.sequence import Layout


class Step(Protocol):
    """One forward pass of the generation tower, for one prompt and one layout."""

    def __call__(self, tokens: Tokens, timestep: float) -> Tokens:
        """Run it.

        Args:
            tokens: The generation segment, float32, on the backend's device, in the shapes of the layout.
            timestep: Sampler time in [0, 1000).

        Returns:
            Velocities (noise minus clean) of the same shapes, float32, exactly 0 where nothing may change; new tensors.
        """


class Backend(Protocol):
    """Runs the two towers. Inputs and outputs live on `device`; samples stay float32 outside."""

    name: str
    together: bool
    """Whether it denoises several requests at once, by `step_together`; see :class:`TorchReference`."""

    @property
    def device(self) -> torch.device:
        """Where inputs are expected and outputs appear."""

    @property
    def patch(self) -> int:
        """Edge of a vision token, in latent cells."""

    def prefix(self, ids: list[int]) -> Prefix:
        """Keys and values of the understanding tower for one prompt; constant for these ids and weights."""

    def step(self, prefix: Prefix, layout: Layout) -> Step:
        """Prepare the denoising step for a prompt and a layout.

        Args:
            prefix: From :meth:`prefix`.
            layout: Which tokens there are and which of them are clean.

        Raises:
            InvalidInput: The backend was not made for this layout; says how they differ.
        """
