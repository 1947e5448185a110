"""What every backend of compiled parts shares: the towers as parts, the autoencoder as parts, and what fits what.

A compiled step was made for one number of tokens of each kind and one embodiment. Everything else (which tokens are
clean, rates, the length of the prompt) is an input.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from engine.backends.base import Step
from engine.backends.card import Card, EngineError
from engine.errors import InvalidInput, ObservationError, Problem
from engine.network.placement import Placement, Tokens, make_placement
from engine.network.rope import rotary, text_positions
from engine.network.transformer import Prefix

if TYPE_CHECKING:
    from engine.network.config import TransformerConfig
    from engine.sequence import Layout

Runner = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Runs one part: inputs by name in, outputs by name out, all on the backend's device."""

TYPES: Mapping[str, torch.dtype] = {
    'fp32': torch.float32,
    'fp16': torch.float16,
    'bf16': torch.bfloat16,
    'fp8': torch.bfloat16,
}
"""Type in which the towers calculate, by precision."""
_SEGMENT = re.compile(r'step(?:_(\d+)_of_\d+)?')
_PLACEMENTS_KEPT = 16  # two guidance branches for each of a few layouts, as with the reference


@dataclass(frozen=True)
class StackedPrefix(Prefix):
    """A prefix whose keys and values of all layers are one tensor each, [layers, length, kv_heads, head_dim]."""

    stacked: tuple[Tensor, Tensor]


class CompiledBackend:
    """Runs the two towers as compiled parts; see :class:`engine.backends.base.Backend`."""

    together = False

    def __init__(
        self,
        name: str,
        card: Card,
        config: TransformerConfig,
        device: torch.device,
        runners: Mapping[str, Runner],
    ) -> None:
        """Combine what has been loaded.

        Args:
            name: Of the backend.
            card: Of the folder.
            config: Of the checkpoint that the parts were made from.
            device: Where the runners take and leave their tensors.
            runners: One for each part of the card.
        """
        self.name = name
        self.card = card
        self._config = config
        self._device = device
        self._runners = runners
        self._dtype = TYPES[card.precision]
        self._segments = step_names(card)
        self._place = lru_cache(maxsize=_PLACEMENTS_KEPT)(make_placement)

    @property
    def device(self) -> torch.device:
        """See :attr:`Backend.device`."""
        return self._device

    @property
    def patch(self) -> int:
        """See :attr:`Backend.patch`."""
        return self._config.latent_patch_size

    def prefix(self, ids: list[int]) -> StackedPrefix:
        """See :meth:`Backend.prefix`.

        Raises:
            ObservationError: The prompt is longer than the parts were made for.
        """
        shortest, longest = self.card.layout['prompt']
        if not shortest <= len(ids) <= longest:
            allowed = f'{shortest} to {longest} tokens'
            problem = Problem('prompt', 'does not fit the compiled parts', f'{len(ids)} tokens', allowed)
            raise ObservationError('instruction', [problem])
        cos, sin = rotary(text_positions(len(ids)), self._config, self._dtype)
        found = self._runners['prefix'](
            {
                'ids': torch.tensor(ids, dtype=torch.long, device=self._device),
                'rotary_cos': cos.to(self._device),
                'rotary_sin': sin.to(self._device),
            }
        )
        keys, values = found['keys'], found['values']
        return StackedPrefix(keys.unbind(0), values.unbind(0), len(ids), (keys, values))

    def step(self, prefix: Prefix, layout: Layout) -> Step:
        """See :meth:`Backend.step`."""
        problems = [*layout_differences(self.card, layout)]
        if problems:
            raise InvalidInput(f'compiled parts of contract {self.card.contract["name"]}', problems)
        if not isinstance(prefix, StackedPrefix):
            raise InvalidInput('compiled step', [Problem('prefix', 'is of another backend')])
        placement = self._place(self._config, layout, prefix.length, self._device, self._dtype)
        shared = _shared_inputs(placement)
        pieces = list(self._with_keys(prefix, shared))

        def run(tokens: Tokens, timestep: float) -> Tokens:
            flow: dict[str, Tensor] = {
                'vision': _present(tokens.vision),
                'action': _present(tokens.action),
                'timestep': torch.full((1,), timestep, dtype=torch.float32, device=self._device),
            }
            for runner, constant in pieces:
                flow = {**runner({**constant, **flow})}
                if 'hidden_out' in flow:
                    flow = {'hidden': flow['hidden_out']}
            return Tokens(flow['vision_velocity'], flow['action_velocity'], None)

        return run

    def _with_keys(
        self, prefix: StackedPrefix, shared: Mapping[str, Tensor]
    ) -> Iterator[tuple[Runner, dict[str, Tensor]]]:
        """Each segment with everything that is the same in all steps."""
        first = 0
        for name in self._segments:
            part = self.card.parts[name]
            wanted = {port.name: port.shape for port in part.inputs}
            layers = int(wanted['keys'][0])
            keys, values = (whole[first : first + layers] for whole in prefix.stacked)
            given = {**shared, 'keys': keys, 'values': values}
            yield self._runners[name], {key: given[key] for key in wanted if key in given}
            first += layers


class ClipCodec(Protocol):
    """Whatever turns clips into latents and latents into pixels."""

    def encode(self, video: Tensor, between: Callable[[], None] | None = None) -> Tensor:
        """See :meth:`engine.network.vae.VideoVae.encode`."""

    def decode(self, latents: Tensor, between: Callable[[], None] | None = None) -> Tensor:
        """See :meth:`engine.network.vae.VideoVae.decode`."""


class CompiledVae:
    """The autoencoder as compiled parts: the pictures of one canvas, the clips of one length.

    Attributes:
        elsewhere: Makes the autoencoder that encodes clips, and decodes them if the parts were made without a decoder;
            called at the first such clip. Without it they are refused.
    """

    def __init__(self, card: Card, device: torch.device, runners: Mapping[str, Runner]) -> None:
        """Take the parts `encoder` and `decoder`, if the latter is there."""
        self.device = device
        self.elsewhere: Callable[[], ClipCodec] | None = None
        self._other: ClipCodec | None = None
        self._card = card
        self._runners = runners

    def encode_frame(self, rgb: Tensor) -> Tensor:
        """Encode one picture; see :meth:`engine.network.vae.VideoVae.encode_frame`.

        Raises:
            ObservationError: The picture is not of the canvas that the part was made for.
        """
        self._check('encoder', 'pixels', rgb)
        return self._runners['encoder']({'pixels': rgb.to(self.device, torch.float32)})['latents']

    def decode(self, latents: Tensor, between: Callable[[], None] | None = None) -> Tensor:
        """Decode the latents of a clip, in one piece; see :meth:`engine.network.vae.VideoVae.decode`.

        Raises:
            ObservationError: The clip is not of the size that the part was made for.
        """
        if 'decoder' not in self._card.parts:
            return self._elsewhere().decode(latents, between)
        self._check('decoder', 'latents', latents)
        pixels = self._runners['decoder']({'latents': latents.to(self.device, torch.float32)})['pixels']
        levels: Tensor = (pixels.clamp(-1.0, 1.0) + 1.0) * 127.5
        return levels.to(torch.uint8).permute(1, 2, 3, 0).contiguous()

    def encode(self, video: Tensor, between: Callable[[], None] | None = None) -> Tensor:
        """Encode a clip, which no part does; see :meth:`engine.network.vae.VideoVae.encode`."""
        return self._elsewhere().encode(video, between)

    def _elsewhere(self) -> ClipCodec:
        if self._other is None and self.elsewhere is not None:
            self._other = self.elsewhere()
        if self._other is None:
            problem = Problem('autoencoder for clips', 'is not among the parts', remedy='load the checkpoint itself')
            raise ObservationError('compiled autoencoder', [problem])
        return self._other

    def _check(self, part: str, name: str, tensor: Tensor) -> None:
        wanted = next(port.shape for port in self._card.parts[part].inputs if port.name == name)
        if tuple(tensor.shape) != wanted:
            problem = Problem(name, 'is not what the part was compiled for', str(list(tensor.shape)), str(list(wanted)))
            raise ObservationError(f'compiled {part}', [problem])


def step_names(card: Card) -> list[str]:
    """The segments of the step, in order.

    Raises:
        EngineError: There are none, or one is missing.
    """
    found = {name: match for name in card.parts if (match := _SEGMENT.fullmatch(name))}
    names = sorted(found, key=lambda name: int(found[name][1] or 1))
    begins, ends = ('vision', 'vision_velocity')
    whole = names and begins in _names(card, names[0], 'inputs') and ends in _names(card, names[-1], 'outputs')
    if not whole or len(names) != (1 if names[0] == 'step' else int(names[0].rpartition('_')[2])):
        raise EngineError('compiled parts', [Problem('step', 'is not complete', ', '.join(names) or 'no part of it')])
    return names


def _names(card: Card, part: str, side: str) -> set[str]:
    return {port.name for port in getattr(card.parts[part], side)}


def layout_terms(layout: Layout) -> dict[str, Any]:
    """What of a layout is built into a compiled step: sizes and the embodiment."""
    vision, action = layout.vision, layout.action
    if vision is None or action is None or layout.sound is not None:
        problem = Problem('layout', 'cannot be compiled', str(layout), 'vision and actions, without sound')
        raise InvalidInput('compiled step', [problem])
    return {
        'frames': vision.frames,
        'height': vision.height,
        'width': vision.width,
        'rows': action.rows,
        'domain_id': action.domain_id,
    }


def layout_differences(card: Card, layout: Layout, canvas: tuple[int, int] | None = None) -> Iterator[Problem]:
    """In what a layout, and a canvas (height, width) if it is given, differ from what the parts were compiled for."""
    terms = layout_terms(layout) | ({} if canvas is None else {'canvas': list(canvas)})
    for key, value in terms.items():
        if card.layout[key] != value:
            remedy = 'compile the checkpoint for this contract'
            yield Problem(f'layout.{key}', 'differs from the compiled parts', str(value), str(card.layout[key]), remedy)


def _shared_inputs(placement: Placement) -> dict[str, Tensor]:
    vision, action = placement.vision, placement.action
    if vision is None or action is None:
        raise InvalidInput('compiled step', [Problem('layout', 'lacks vision or actions')])
    return {
        'rotary_cos': placement.cos,
        'rotary_sin': placement.sin,
        'vision_noisy': vision.noisy,
        'vision_free': vision.free,
        'action_noisy': action.noisy,
        'action_free': action.free,
    }


def _present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise InvalidInput('compiled step', [Problem('tokens', 'lack vision or actions')])
    return tensor
